# SPDX-License-Identifier: GPL-3.0-or-later
"""The built collection, installed elsewhere, does what the clone does."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import lab
import pytest

BIN = lab.ROOT / ".venv" / "bin"
SERVER = "bulwark-installed"


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory) -> Path:
    """Return an empty directory with nothing but the installed collection under collections/."""
    directory = tmp_path_factory.mktemp("elsewhere")
    galaxy = [str(BIN / "ansible-galaxy"), "collection"]
    run(directory, *galaxy, "build", "--output-path", str(directory), str(lab.ROOT))
    (tarball,) = directory.glob("bulwark-hardening-*.tar.gz")
    run(directory, *galaxy, "install", "--offline", "-p", str(directory / "collections"), str(tarball))
    return directory


@pytest.fixture(scope="module")
def inventory(plain_server) -> Path:
    """Return the inventory of a plain Debian 13 server."""
    return plain_server(SERVER, "debian13") / "hosts.json"


def environment(directory: Path) -> dict[str, str]:
    """Return an environment in which Ansible knows this directory only: no settings, home or collections of the clone."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("ANSIBLE_", "MOLECULE_", "PYTHON"))}
    return {**kept, "HOME": str(directory), "ANSIBLE_COLLECTIONS_PATH": str(directory / "collections"), "ANSIBLE_NOCOLOR": "1"}


def run(directory: Path, *command: str) -> str:
    """Run a command there and return its output; it must succeed."""
    done = subprocess.run(command, check=False, cwd=directory, env=environment(directory), capture_output=True, text=True)
    assert done.returncode == 0, f"{command}\n{done.stdout[-6000:]}{done.stderr[-3000:]}"
    return done.stdout


def test_nothing_of_the_clone_is_on_the_path(elsewhere):
    """The collection that Ansible finds is the installed one."""
    listed = json.loads(run(elsewhere, str(BIN / "ansible-galaxy"), "collection", "list", "--format", "json"))
    places = [place for place, collections in listed.items() if "bulwark.hardening" in collections]
    assert places == [str(elsewhere / "collections" / "ansible_collections")]


def test_artefact_holds_what_users_need_and_no_more(elsewhere):
    """Roles, playbooks, policy and documentation ship; what only a clone needs does not."""
    root = elsewhere / "collections" / "ansible_collections" / "bulwark" / "hardening"
    for name in ("LICENSE", "README.md", "docs", "playbooks/site.yml", "policy/register.yml", "roles/session"):
        assert (root / name).exists(), name
    for name in ("Makefile", ".venv", ".cache", "evidence", "inventories", "molecule", "tests/lab", "tools", "collections"):
        assert not (root / name).exists(), name


def test_installed_collection_hardens_and_audits(elsewhere, inventory):
    """By its full names, from a directory that is empty otherwise: every control passes, the evidence lies there."""
    play = [str(BIN / "ansible-playbook"), "-i", str(inventory)]
    run(elsewhere, *play, "bulwark.hardening.site")
    run(elsewhere, *play, "bulwark.hardening.audit")
    record = lab.records(elsewhere / "evidence" / "latest")[SERVER]
    assert record["status"] == "assessed"
    assert {c["id"]: c["why"] for c in record["controls"] if c["status"] not in ("pass", "not_applicable")} == {}
    assert record["tool"]["version"]
    assert not record["revision"]  # an installed collection has no git revision
