# SPDX-License-Identifier: GPL-3.0-or-later
"""Fixtures of every scenario's proofs: the host under test, people on it, and the way in that an outsider has."""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from xdist.scheduler import LoadScopeScheduling

NUMBERS = itertools.count(20000 + int(time.time() * 10) % 30000)
ROOT = Path(__file__).resolve().parents[1]
SSH_OPTIONS = (
    "-o", "IdentitiesOnly=yes", "-o", "UserKnownHostsFile=/dev/null", "-o", "StrictHostKeyChecking=no",
    "-o", "LogLevel=ERROR", "-o", "ControlMaster=no", "-o", "ControlPath=none", "-o", "ConnectTimeout=10",
)  # fmt: skip


class OneHostOneWorker(LoadScopeScheduling):
    """Keep each host's tests in order on one worker: hosts run side by side, the proofs of one host one by one.

    xdist's own groups do not work with this pytest, whose node ids no longer take the suffix they need.
    """

    def _split_scope(self, nodeid: str) -> str:
        named = re.search(r"ansible://(\w+-debian\d+)", nodeid)
        return named.group(1) if named else nodeid


def pytest_xdist_make_scheduler(config: pytest.Config, log) -> OneHostOneWorker:
    """Tell xdist to spread hosts, not tests."""
    return OneHostOneWorker(config, log)


@dataclasses.dataclass(frozen=True)
class Target:
    """A test machine, and how its automation account gets in."""

    name: str
    platform: str
    address: str
    port: int
    key: str
    scenario: str

    def automation(self) -> Person:
        """Return the account that Ansible comes with."""
        return Person("deploy", self.key, self)

    def reapply(self, **variables: object) -> None:
        """Run the scenario's role on this host again, with extra variables. Fails with Ansible's output."""
        state = os.environ["MOLECULE_EPHEMERAL_DIRECTORY"]
        extra = {"targets": self.name, "role": self.scenario, "scenario_dir": str(ROOT / "molecule" / self.scenario), **variables}
        environment = {
            **{key: value for key, value in os.environ.items() if key != "MOLECULE_EPHEMERAL_DIRECTORY"},
            "ANSIBLE_CONFIG": f"{state}/ansible.cfg",
        }
        done = subprocess.run(
            [
                Path(sys.executable).with_name("ansible-playbook"), "--inventory", f"{state}/inventory",
                "--extra-vars", json.dumps(extra), ROOT / "molecule" / "shared" / "converge.yml",
            ],
            check=False, capture_output=True, text=True, env=environment, cwd=ROOT,
        )  # fmt: skip
        if done.returncode:
            pytest.fail(f"the role failed with {variables}:\n{done.stdout[-4000:]}{done.stderr[-2000:]}")


@dataclasses.dataclass(frozen=True)
class Person:
    """A Unix user on the host under test, with a key of their own on this side."""

    name: str
    key: str
    target: Target

    def ssh_argv(self, *options: str) -> list[str]:
        """Return the start of an ssh command line as this person; append the remote command."""
        return ["ssh", "-i", self.key, "-p", str(self.target.port), *SSH_OPTIONS, *options, f"{self.name}@{self.target.address}"]


@pytest.fixture(scope="module")
def target(host) -> Target:
    """The machine under test as seen from here."""
    name = host.backend.get_pytest_id().split("://", 1)[1]
    variables = host.backend.ansible_runner.get_variables(name) if hasattr(host.backend, "ansible_runner") else {}
    return Target(
        name=name,
        platform=variables["bulwark_platform"],
        address=variables["ansible_host"],
        port=int(variables["ansible_port"]),
        key=variables["ansible_private_key_file"],
        scenario=os.environ["MOLECULE_SCENARIO_NAME"],
    )


def people(host, target: Target, directory: Path) -> Iterator[Callable[..., Person]]:
    """Yield a maker of people, whose keys lie in a directory; afterwards they are gone."""
    made: list[str] = []

    def make(name: str, shell: str = "/bin/bash", groups: tuple[str, ...] = ()) -> Person:
        key = directory / f"{name}.key"
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", name, "-f", key], check=True)
        made.append(name)
        for group in groups:
            host.run_expect([0, 9], "groupadd %s", group)  # 9: it is there already
        joined = f"--groups {','.join(groups)}" if groups else ""
        # '*' means no password but not locked: a key may still open the account. Nobody gets a number somebody had just now:
        # logind still stops that one's service manager then, and the new login waits a minute and a half for it.
        number = next(NUMBERS)
        host.check_output(f"useradd --create-home --uid {number} --shell {shell} --password '*' {joined} {name}")
        public = (directory / f"{name}.key.pub").read_text().strip()
        host.check_output(
            f"install -d -m 0700 -o {name} -g {name} /home/{name}/.ssh && "
            f"echo '{public}' >/home/{name}/.ssh/authorized_keys && "
            f"chown {name}: /home/{name}/.ssh/authorized_keys && chmod 0600 /home/{name}/.ssh/authorized_keys"
        )
        return Person(name, str(key), target)

    yield make
    for name in made:
        host.run(f"pkill -KILL -u {name}; loginctl terminate-user {name}; sleep 0.2; userdel --remove --force {name}")


@pytest.fixture
def person(host, target, tmp_path) -> Iterator[Callable[..., Person]]:
    """Make people: person("alice", shell="/bin/zsh", groups=("ssh-users",)); they are gone after the test."""
    yield from people(host, target, tmp_path)


@pytest.fixture(scope="module")
def resident(host, target, tmp_path_factory) -> Iterator[Callable[..., Person]]:
    """Make people as `person` does, who stay for all tests of a file."""
    yield from people(host, target, tmp_path_factory.mktemp("residents"))
