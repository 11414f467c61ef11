# SPDX-License-Identifier: GPL-3.0-or-later
"""What people in the lab do to come in, and what a stranger sees: shared by make lab and the tests."""

from __future__ import annotations

import concurrent.futures
import contextlib
import json
import re
import shlex
import subprocess
import time
from collections.abc import Iterable, Iterator

import lab

SSH = "ssh -i id_ed25519 -o IdentitiesOnly=yes -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -o LogLevel=ERROR"
SSH += " -o ControlPath=none -o ConnectTimeout=8 -o NumberOfPasswordPrompts=1"

# Connects to each (address, port) and says what became of it, all of them at once.
GREET = """
import concurrent.futures, json, socket, sys
def greet(address, port, seconds=4):
    try:
        source = (sys.argv[2], 0) if len(sys.argv) > 2 else None
        with socket.create_connection((address, port), seconds, source) as connection:
            connection.settimeout(seconds)
            try:
                return connection.recv(4).decode(errors="replace") or "closed"
            except TimeoutError:
                return "silent"
    except ConnectionRefusedError:
        return "refused"
    except TimeoutError:
        return "timeout"
    except OSError as exc:
        return exc.strerror or str(exc)
doors = json.loads(sys.argv[1])
with concurrent.futures.ThreadPoolExecutor(len(doors)) as pool:
    print(json.dumps(list(pool.map(lambda door: greet(*door), doors))))
"""
SHUT = {"refused", "timeout", "No route to host", "Network is unreachable"}


def on(machine: str, script: str, seconds: float = 60, user: str = "root", data: str = "") -> subprocess.CompletedProcess:
    """Run a shell script on a machine, past its ssh, and return how it ended; after ``seconds`` it is over (exit 124)."""
    command = ["podman", "exec", "--user", user, *(["-i"] if data else []), machine, "timeout", str(seconds), "sh", "-c", script]
    return lab.machines.finish(*command, data=data)


def ask_time(machine: str, config: str = "/etc/chrony.bulwark.conf") -> tuple[float | None, str]:
    """Have a machine ask its sources without setting its clock; return its offset in seconds, if believed, and all said."""
    said = on(machine, f"chronyd -x -Q -t 20 -f {config} 2>&1").stdout
    off = re.search(r"System clock wrong by (-?[0-9.]+) seconds", said)
    return float(off[1]) if off else None, said


def knock(machine: str, doors: Iterable[tuple[str, int]], source: str = "") -> dict[tuple[str, int], str]:
    """Return what a machine meets at each (address, port): the first letters of a greeting, "silent", or one of SHUT."""
    doors = list(doors)
    done = on(machine, f"python3 -c {shlex.quote(GREET)} {shlex.quote(json.dumps(doors))} {source}")
    assert done.returncode == 0, done.stderr
    return dict(zip(doors, json.loads(done.stdout), strict=True))


def server_doors(ports: Iterable[int] = (22,), networks: Iterable[str] = (lab.OUTSIDE,)) -> list[tuple[str, int]]:
    """Return every (address, port) of the servers on these networks, IPv4 and IPv6."""
    return [
        (server.address(network, version), port)
        for server in lab.SERVERS.values() for network in networks for version in (4, 6) for port in ports
    ]  # fmt: skip


def have(machine: str, program: str) -> None:
    """Install a program that waits in the machine's package cache."""
    install = f"DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-download --no-install-recommends {program}"
    done = on(machine, f"command -v {program} || {install}", 180)
    assert done.returncode == 0, done.stdout + done.stderr


def scan(machine: str, addresses: Iterable[str], *options: str) -> dict[str, set[int]]:
    """Return the open TCP ports of the lab's own addresses, all 65535 of them tried (nmap)."""

    def one(address: str) -> set[int]:
        version = "-6" if ":" in address else "-4"
        words = ["nmap", version, "-Pn", "-n", "-p-", "--open", "-T5", "--min-rate=20000", "--max-retries=1", *options, address]
        done = on(machine, shlex.join(words), 120)
        assert "1 IP address (1 host up) scanned" in done.stdout, (
            done.stdout + done.stderr
        )  # of more it says nothing when all are shut
        return {int(port) for port in re.findall(r"^(\d+)/tcp +open ", done.stdout, re.MULTILINE)}

    have(machine, "nmap")
    addresses = list(addresses)
    with concurrent.futures.ThreadPoolExecutor(3) as pool:
        return dict(zip(addresses, pool.map(one, addresses), strict=True))


def tunnel(seconds: float = 40) -> str:
    """Have the member's machine open its tunnel anew; return "up", or what its log says it ended with."""
    unit = "openvpn-client@bulwark.service"
    on(lab.MEMBER, f"systemctl stop {unit}; systemctl reset-failed {unit}; journalctl --rotate --vacuum-time=1s -q")
    since = on(lab.MEMBER, "date +%s").stdout.strip()
    started = on(lab.MEMBER, f"systemctl start {unit}", seconds)

    def ended() -> str:
        log = on(lab.MEMBER, f"journalctl -q -o cat -u {unit} --since=@{since}").stdout
        if "Initialization Sequence Completed" in log:
            return "up"
        refused = re.findall(r"AUTH_FAILED|TLS Error: .*|VERIFY ERROR.*|All connections have been connect-retry-max.*", log)
        return refused[0] if refused else ""

    return eventually(ended, seconds) or f"nothing within {seconds} s: {started.stderr}"


def close_tunnel() -> None:
    """Have the member's machine close its tunnel."""
    on(lab.MEMBER, "systemctl stop openvpn-client@bulwark.service")


def ssh(address: str, command: str = "id -un", data: str = "", seconds: float = 60) -> subprocess.CompletedProcess:
    """Come in to a server from the member's machine as the person: key, then Duo, which pushes by itself."""
    ways = "-o PreferredAuthentications=publickey,keyboard-interactive"
    words = f"cd && {SSH} {ways} {lab.PERSON}@{address} {shlex.quote(command)}"
    return on(lab.MEMBER, words, seconds, user=lab.PERSON, data=data or "\n")


@contextlib.contextmanager
def asked() -> Iterator[list[dict]]:
    """Return a list that holds, at the end, what Duo's stand-in was asked meanwhile, one entry a request."""

    def all_of_it() -> list[str]:
        return lab.machines.run("podman", "exec", lab.DUO, "sh", "-c", "cat /duo/requests.jsonl 2>/dev/null || true").splitlines()

    before, requests = len(all_of_it()), []
    yield requests
    requests += [json.loads(line) for line in all_of_it()[before:]]


def eventually(look, seconds: float = 20):
    """Return the first true value of ``look()``, or its last one when the seconds are over."""
    end = time.monotonic() + seconds
    while not (value := look()) and time.monotonic() < end:
        time.sleep(0.2)
    return value
