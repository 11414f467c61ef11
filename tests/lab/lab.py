#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-3.0-or-later
"""The embedded lab: plain Debian servers that fail the audit, are hardened, and pass it.

Run as ``lab.py run`` (make lab), ``lab.py up`` (only start the plain servers) or ``lab.py down`` (make lab-down).
The servers are new each time, so that it works from any state. tests/lab uses the same functions.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "molecule" / "shared"))
import machines  # noqa: E402

NETWORK = "bulwark-lab"
SUBNET = "198.18.77.0/24"
SERVERS = {"lab-server-12": ("debian12", "198.18.77.12"), "lab-server-13": ("debian13", "198.18.77.13")}
STATE = ROOT / ".cache" / "lab"
LOGS = ROOT / ".cache" / "logs"
BEAT = 10  # seconds between two signs of life while a playbook runs
STARTED = time.monotonic()

# What years of use leave on a server that nobody hardens: a root password "for emergencies", a cloud image's switch for
# password logins, a shared account, a second name for root, a helpful message for strangers.
NEGLECT = """
cat >/etc/ssh/sshd_config.d/50-cloud-init.conf <<'END'
PasswordAuthentication yes
PermitRootLogin yes
END
useradd --create-home --shell /bin/bash admin
useradd --non-unique --uid 0 --gid 0 --no-create-home --home-dir /root --shell /bin/bash toor
for name in root admin; do printf '%s:%s\\n' "$name" "$(openssl rand -hex 12)"; done | chpasswd
printf 'Welcome to \\\\n, \\\\S{PRETTY_NAME}!\\n' >/etc/issue
systemctl reload ssh.service
"""


def say(text: str) -> None:
    """Tell how far it is, with the seconds since the start."""
    print(f"[{time.monotonic() - STARTED:4.0f} s] {text}", flush=True)


def up() -> None:
    """Start the plain servers anew, and write the key and the known hosts with which the inventory reaches them."""
    _key, public = machines.key_pair(STATE)
    machines.build_images(sorted({platform for platform, _address in SERVERS.values()}))
    if NETWORK not in machines.run("podman", "network", "ls", "--format", "{{.Name}}").split():
        machines.run("podman", "network", "create", "--subnet", SUBNET, NETWORK)

    def start(name: str) -> str:
        platform, address = SERVERS[name]
        options = ("--network", NETWORK, "--ip", address)
        machines.start(name, platform, public, *options, owner="bulwark-lab", hostname=name)
        machines.run("podman", "exec", name, "sh", "-ec", NEGLECT)
        keys = machines.run("podman", "exec", name, "sh", "-c", "cat /etc/ssh/ssh_host_*_key.pub").splitlines()
        return "".join(f"{address} {' '.join(line.split()[:2])}\n" for line in keys)

    with concurrent.futures.ThreadPoolExecutor() as pool:
        (STATE / "known_hosts").write_text("".join(pool.map(start, SERVERS)))


def down() -> None:
    """Remove the servers, their network and their keys."""
    for name in SERVERS:
        machines.stop(name)
    if NETWORK in machines.run("podman", "network", "ls", "--format", "{{.Name}}").split():
        machines.run("podman", "network", "rm", NETWORK)
    for path in STATE.glob("*"):
        path.unlink()


def ansible(name: str, *arguments: str) -> subprocess.CompletedProcess:
    """Run ansible-playbook with its output in .cache/logs/<name>.log, showing the task it is at; return how it ended."""
    LOGS.mkdir(parents=True, exist_ok=True)
    log = LOGS / f"{name}.log"
    command = [str(ROOT / ".venv" / "bin" / "ansible-playbook"), *arguments]
    settings = {**os.environ, "ANSIBLE_NOCOLOR": "1", "PYTHONUNBUFFERED": "1"}
    with log.open("wb") as stream:
        process = subprocess.Popen(command, cwd=ROOT, env=settings, stdin=subprocess.DEVNULL, stdout=stream, stderr=stream)
        while True:
            try:
                process.wait(BEAT)
                break
            except subprocess.TimeoutExpired:
                tasks = re.findall(r"^TASK \[(.*)\]", log.read_text(errors="replace"), re.MULTILINE)
                say(f"  … {tasks[-1] if tasks else 'starting'}")
    return subprocess.CompletedProcess(command, process.returncode, log.read_text(errors="replace"))


def play(name: str, playbook: str, *arguments: str) -> str:
    """Run one of the clone's playbooks against the lab and return its output; end the program if it fails."""
    done = ansible(name, f"playbooks/{playbook}", *arguments)
    if done.returncode:
        print("\n".join(f"    {line}" for line in done.stdout.splitlines()[-40:]))
        sys.exit(f"playbooks/{playbook} failed (exit {done.returncode}); all of it: {LOGS / name}.log")
    return done.stdout


def records(run: Path = ROOT / "evidence" / "latest") -> dict[str, dict]:
    """Return the hosts' evidence records of a run, by host."""
    return {path.stem: json.loads(path.read_text()) for path in sorted(run.glob("hosts/*.json"))}


def scores(evidence: dict[str, dict]) -> str:
    """Return one line a host: how many controls hold, and what does not."""
    lines = []
    for host, record in evidence.items():
        counts, score = record["counts"], record["score"]["after_exceptions"]
        share = "  n/a" if score is None else f"{score:5.0%}"
        told = ", ".join(f"{counts[status]} {status.replace('_', ' ')}" for status in counts if counts[status])
        lines.append(f"         {host:16} {share}   {told}")
    return "\n".join(lines)


def story() -> int:
    """Show the whole line: plain servers fail, are hardened, pass; return 0 when every control holds."""
    say("Starting two plain servers (Debian 12 and 13)")
    up()
    say("Auditing them as they are")
    play("lab-audit-before", "audit.yml")
    before = records()
    print(scores(before))
    say("Hardening them: playbooks/site.yml")
    play("lab-site", "site.yml")
    say("Auditing them again")
    play("lab-audit-after", "audit.yml")
    after = records()
    print(scores(after))
    bad = [
        f"         {host}: {control['id']} {control['status']}: {control['why']}"
        for host, record in after.items()
        for control in record["controls"]
        if control["status"] in ("fail", "error")
    ]
    say("Not every control holds:" if bad or not after else "Every control holds on both.")
    print("\n".join(bad), end="\n" * bool(bad))
    width = max(map(len, after), default=4)
    print(f"\n{'':{width}}  before   after")
    for host in after:
        first, last = (run[host]["score"]["after_exceptions"] for run in (before, after))
        print(f"{host:{width}}  {first or 0:6.0%}  {last or 0:6.0%}")
    print(f"\nReport:  {(ROOT / 'evidence' / 'latest').resolve() / 'report.html'}")
    address = SERVERS["lab-server-13"][1]
    print(f"Look in: ssh -i .cache/lab/id_ed25519 -o UserKnownHostsFile=.cache/lab/known_hosts deploy@{address}")
    print("Remove:  make lab-down")
    return 1 if bad or not after else 0


def main() -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=["run", "up", "down"])
    action = parser.parse_args().action
    if action == "run":
        return story()
    {"up": up, "down": down}[action]()
    return 0


if __name__ == "__main__":
    sys.exit(main())
