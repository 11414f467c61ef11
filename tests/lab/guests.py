# SPDX-License-Identifier: GPL-3.0-or-later
"""What tests need to work with guests, and with containers beside them: a shell on each, and Ansible over all of them."""

from __future__ import annotations

import concurrent.futures
import contextlib
import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "molecule" / "shared"))
import machines  # noqa: E402

SSH = ("-o", "UserKnownHostsFile=/dev/null", "-o", "StrictHostKeyChecking=no", "-o", "LogLevel=ERROR", "-o", "IdentitiesOnly=yes",
       "-o", "ConnectTimeout=20")  # fmt: skip
PATIENCE = 1200  # seconds after which a run of Ansible counts as hung; the longest takes about half of it


class Host:
    """A machine under test: where it is reached, and how one does something there."""

    def __init__(self, name: str, platform: str, address: str, port: int, key: str, guest: machines.Guest | None = None) -> None:
        """Name a machine as the inventory does; ``key`` is the path of the automation account's private key."""
        self.name, self.platform, self.address, self.port, self.key, self.guest = name, platform, address, port, key, guest
        self.kept = ("-o", "ControlMaster=auto", "-o", f"ControlPath={Path(key).parent}/%C", "-o", "ControlPersist=60")

    def ssh(self, *options: str, user: str = "deploy", key: str = "") -> list[str]:
        """Return the start of an ssh command line; a remote command may follow."""
        return ["ssh", "-i", key or self.key, "-p", str(self.port), *SSH, *options, f"{user}@{self.address}"]

    def run(self, script: str, seconds: float = 120) -> subprocess.CompletedProcess:
        """Run a shell script as root, over a connection that is kept, and return how it ended."""
        command = [*self.ssh(*self.kept), f"sudo sh -c {shlex.quote(script)}"]
        return subprocess.run(command, check=False, capture_output=True, text=True, timeout=seconds, stdin=subprocess.DEVNULL)

    def out(self, script: str, seconds: float = 120) -> str:
        """Run a shell script as root and return its output. Fails with what it said if it fails."""
        done = self.run(script, seconds)
        assert done.returncode == 0, f"{self.name}: {script}: exit {done.returncode}\n{done.stdout[-2000:]}{done.stderr[-2000:]}"
        return done.stdout.strip()

    def clock_error(self) -> float:
        """Return by how many seconds its clock is ahead of this machine's: of ten questions, the one answered soonest."""
        answer = "python3 -c 'import sys, time\nfor _line in sys.stdin: print(time.time(), flush=True)'"
        tries = []
        with subprocess.Popen(
            [*self.ssh(*self.kept), answer], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
        ) as there:
            for _question in range(10):
                before = time.time()
                there.stdin.write("\n")
                said = float(there.stdout.readline())
                after = time.time()
                tries.append((after - before, said - (before + after) / 2))
            there.stdin.close()
        return min(tries)[1]

    def inventory(self) -> dict:
        """Return its variables in an inventory."""
        return {"ansible_host": self.address, "ansible_port": self.port, "bulwark_platform": self.platform}


class Fleet:
    """Machines under test together, with an inventory in a directory of the test."""

    def __init__(self, directory: Path) -> None:
        """Make the automation account's key, and an empty inventory."""
        self.directory = directory
        self.key, self.public = machines.key_pair(directory / "keys")
        self.hosts: dict[str, Host] = {}
        self.groups: dict[str, list[str]] = {}
        self.variables: dict = {}
        self.guests: list[machines.Guest] = []
        self.containers: list[str] = []

    def add(self, host: Host, *groups: str) -> Host:
        """Take a machine in."""
        self.hosts[host.name] = host
        for group in groups:
            self.groups.setdefault(group, []).append(host.name)
        return host

    def start_guest(self, name: str, platform: str, *options: str, **more: object) -> Host:
        """Start a guest; the options are those of machines.Guest.start()."""
        guest = machines.Guest(name)
        self.guests.append(guest)
        guest.start(platform, self.public, *options, hostname=name, **more)
        host = Host(name, platform, guest.address, guest.port, self.key, guest)
        host.out(f"echo 127.0.1.1 {name} >>/etc/hosts")
        return host

    def start_container(self, name: str, platform: str, *options: str) -> Host:
        """Start a container; the options are podman's."""
        self.containers.append(name)
        return Host(name, platform, machines.start(name, platform, self.public, *options, hostname=name), 22, self.key)

    def stop(self) -> None:
        """Remove all machines."""
        for guest in self.guests:
            guest.stop()
        together(machines.stop, self.containers)

    def ansible(self, program: str, *arguments: str, **variables: object) -> str:
        """Run ansible or ansible-playbook over the machines with extra variables; return the output, fail with its end."""
        inventory = {"all": {
            "hosts": {name: host.inventory() for name, host in self.hosts.items()},
            "children": {group: {"hosts": {name: {} for name in names}} for group, names in self.groups.items()},
            "vars": {**machines.inventory_variables(self.key), **self.variables},
        }}  # fmt: skip
        path = self.directory / "inventory.json"
        path.write_text(json.dumps(inventory))
        # Sudo's prompt, too, may take a guest under emulation long to give.
        settings = {**os.environ, "ANSIBLE_NOCOLOR": "1", "ANSIBLE_HOST_KEY_CHECKING": "False", "ANSIBLE_TIMEOUT": "60"}
        command = [
            # An end to it all, forks included, so that a test that waits for ever says where.
            "timeout", "--kill-after=20", str(PATIENCE), str(ROOT / ".venv" / "bin" / program),
            "--inventory", str(path), "--extra-vars", json.dumps(variables),
            "--ssh-common-args=-o UserKnownHostsFile=/dev/null -o LogLevel=ERROR", *arguments,
        ]  # fmt: skip
        done = subprocess.run(
            command, check=False, capture_output=True, text=True, cwd=ROOT, env=settings, stdin=subprocess.DEVNULL
        )
        late = f" did not end within {PATIENCE} s" * (done.returncode in (124, 137))
        assert done.returncode == 0, f"{program} {arguments}{late}:\n{done.stdout[-6000:]}{done.stderr[-2000:]}"
        return done.stdout

    def assess(self, targets: str, *roles: str) -> dict[str, dict]:
        """Judge machines against the controls of roles and return their evidence records, by host."""
        run = self.directory / f"run-{time.time_ns()}"
        words = json.dumps({"roles": list(roles), "run_dir": str(run)})
        self.ansible("ansible", targets, "--module-name", "bulwark.hardening.assess", "--args", words)
        return {path.stem: json.loads(path.read_text()) for path in sorted(run.glob("hosts/*.json"))}


def together(do: Callable, things: Iterable) -> list:
    """Do something with each of several things side by side, and return the results in order."""
    with concurrent.futures.ThreadPoolExecutor() as pool:
        return list(pool.map(do, things))


def until(true: Callable[[], object], seconds: float, what: str, pause: float = 1) -> object:
    """Wait until something is true and return it. Raises TimeoutError naming ``what`` when it does not become so in time."""
    end = time.monotonic() + seconds
    while not (found := true()):
        if time.monotonic() >= end:
            raise TimeoutError(f"not within {seconds} s: {what}")
        time.sleep(pause)
    return found


@contextlib.contextmanager
def fleet(directory: Path) -> Iterator[Fleet]:
    """Have a fleet whose machines are gone afterwards, whatever happened."""
    made = Fleet(directory)
    try:
        yield made
    finally:
        made.stop()
