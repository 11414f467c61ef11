# SPDX-License-Identifier: GPL-3.0-or-later
"""The other supported ansible-core: Debian 13 as the controller, with its own Python 3.13, set up by tools/setup.sh.

The controller is a container; with its tools installed it is kept as an image until setup or lock change.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import lab
import pytest

NAME = "bulwark-controller"
CLONE = "/root/bulwark"
BUNDLE = "/etc/ssl/certs/ca-certificates.crt"
TARGET = "bulwark-core-2-21"


def podman(*arguments: str, data: bytes | None = None, check: bool = True) -> str:
    """Run podman as root, with bytes for its standard input; its output ends the test if it fails."""
    settings = f"CONTAINERS_CONF={lab.machines.HERE / 'containers.conf'}"
    command = [*(["sudo", "-n"] if os.geteuid() else []), "env", settings, "podman", *arguments]
    done = subprocess.run(command, check=False, input=data, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    output = done.stdout.decode(errors="replace")
    if check and done.returncode:
        pytest.fail(f"podman {' '.join(arguments)}: exit {done.returncode}\n{output[-8000:]}", pytrace=False)
    return output


def controller(script: str, data: bytes | None = None) -> str:
    """Run a script in the clone on the controller and return its output; it must succeed."""
    return podman("exec", *(["-i"] if data else []), "-w", CLONE, NAME, "sh", "-ec", script, data=data)


def start(image: str) -> None:
    """Start the controller and bring the clone's files in. It trusts what this machine trusts, and asks the index it asks."""
    lab.machines.stop(NAME)
    mounts = [BUNDLE, "/etc/pip.conf", str(Path.home() / ".config/pip/pip.conf")]
    inside = [BUNDLE, "/etc/pip.conf", "/root/.config/pip/pip.conf"]
    options = [f"--volume={here}:{there}:ro" for here, there in zip(mounts, inside, strict=True) if os.path.exists(here)]
    options.append(f"--env=PIP_CERT={BUNDLE}")
    podman("run", "-d", "--name", NAME, "--label=owner=bulwark-lab", *options, image, "sleep", "infinity")
    listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listed, cwd=lab.ROOT, check=True, capture_output=True).stdout.split(b"\0")
    wanted = b"\0".join(name for name in names if name and os.path.lexists(lab.ROOT / os.fsdecode(name)))
    packed = subprocess.run(
        ["tar", "-c", "--null", "--no-recursion", "-T", "-"], cwd=lab.ROOT, check=True, capture_output=True, input=wanted
    ).stdout
    podman("exec", "-i", NAME, "sh", "-c", f"mkdir -p {CLONE} && tar -x -C {CLONE}", data=packed)


@pytest.fixture(scope="module", autouse=True)
def machine() -> Iterator[None]:
    """The controller, made from its cached image, or made from plain Debian 13 and cached."""
    (plain,) = lab.machines.build_images(["debian13"])
    parts = [plain.encode(), *((lab.ROOT / name).read_bytes() for name in ("requirements.lock", "tools/setup.sh"))]
    image = f"localhost/bulwark-controller:{hashlib.sha256(b''.join(parts)).hexdigest()[:12]}"
    present = lab.machines.run("podman", "images", "--format", "{{.Repository}}:{{.Tag}}").split()
    if image not in present:
        start(plain)
        controller("tools/setup.sh >&2")
        podman("commit", "-q", NAME, image)
        for older in filter(lambda name: name.startswith("localhost/bulwark-controller:"), present):
            podman("rmi", older, check=False)
    start(image)
    controller("tools/setup.sh")
    yield
    lab.machines.stop(NAME)


def test_the_controller_is_the_distributions_own():
    """Python 3.13 and ansible-core 2.21, from the same lock."""
    said = controller(".venv/bin/ansible --version")
    assert "ansible [core 2.21." in said
    assert "python version = 3.13." in said


def test_unit_tests_pass():
    """The same unit tests."""
    controller(".venv/bin/pytest -q -p no:cacheprovider tests/unit")


def test_site_and_audit(plain_server):
    """A plain Debian 12 server, hardened and audited from there: every control passes."""
    mine = lab.machines.run("podman", "inspect", "-f", "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}", NAME)
    inventory = plain_server(TARGET, "debian12", [mine])
    packed = subprocess.run(["tar", "-c", "."], cwd=inventory, check=True, capture_output=True).stdout
    controller("mkdir -p /root/inventory && tar -x -C /root/inventory", data=packed)
    play = ".venv/bin/ansible-playbook -i /root/inventory/hosts.json"
    controller(f"{play} playbooks/site.yml")
    again = controller(f"{play} playbooks/site.yml")
    assert " changed=0 " in again.split("PLAY RECAP")[-1], again[-6000:]
    controller(f"{play} playbooks/audit.yml")
    record = json.loads(controller(f"cat evidence/latest/hosts/{TARGET}.json"))
    assert record["tool"]["ansible_core"].startswith("2.21.")
    assert {c["id"]: c["why"] for c in record["controls"] if c["status"] not in ("pass", "not_applicable")} == {}
