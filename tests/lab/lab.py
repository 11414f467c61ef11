#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-3.0-or-later
"""The embedded lab: plain Debian machines on two networks that fail the audit, are hardened, and pass it.

    outside  198.18.78.0/24, fd00:b1:78::/64     lab-outsider, lab-member (a workstation with a VPN profile)
                |                                 lab-gateway between the two, servers with a leg of their own
    inside   198.18.77.0/24, fd00:b1:77::/64     lab-server-12, -13, lab-collector, lab-backup-a, -b; the controller at .1
    on both                                       lab-time, which tells the time, and lab-duo, which stands in for Duo's service

Run as ``lab.py up`` (only start the plain machines) or ``lab.py down`` (make lab-down); make lab plays story.py on it.
The machines are new each time, so that it works from any state. The tests use the same functions.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import json
import os
import re
import secrets
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "molecule" / "shared"))
import duo_service  # noqa: E402
import machines  # noqa: E402
import time_service  # noqa: E402

# 198.18.0.0/15 is set aside for test networks (RFC 2544) and fd00::/8 for one's own; nothing real lives there.
INSIDE, OUTSIDE = "bulwark-lab-inside", "bulwark-lab-outside"
NETWORKS = {INSIDE: ("198.18.77.", "fd00:b1:77::"), OUTSIDE: ("198.18.78.", "fd00:b1:78::")}
CONTROLLER = "198.18.77.1"


class Machine(NamedTuple):
    """A machine of the lab: its release, its number on each of its networks, the first of which the controller uses."""

    platform: str
    number: int
    networks: tuple[str, ...]

    def address(self, network: str = "", version: int = 4) -> str:
        """Return the machine's address on a network, or the one that the controller uses."""
        return f"{NETWORKS[network or self.networks[0]][version == 6]}{self.number}"


# Every server has a leg outside, as one with a public address does: what keeps outsiders off must be the server itself.
SERVERS = {
    "lab-server-12": Machine("debian12", 12, (INSIDE, OUTSIDE)),
    "lab-server-13": Machine("debian13", 13, (INSIDE, OUTSIDE)),
}
GATEWAY, MEMBER, OUTSIDER, DUO = "lab-gateway", "lab-member", "lab-outsider", "lab-duo"
COLLECTOR = "lab-collector"  # keeps the trail of the others
# The one keeps backups, the other a second copy of them.
REPOSITORIES = {"lab-backup-a": Machine("debian13", 7, (INSIDE,)), "lab-backup-b": Machine("debian12", 8, (INSIDE,))}
TIME = "lab-time"
# Two sources have to agree. Here they are the two addresses of one server; a site's are servers of different operators.
TIME_NAMES = {"time-a.lab": 4, "time-b.lab": 6}
HOSTS = {  # what the inventory names
    GATEWAY: Machine("debian12", 2, (INSIDE, OUTSIDE)),
    **SERVERS,
    COLLECTOR: Machine("debian13", 6, (INSIDE,)),
    **REPOSITORIES,
    MEMBER: Machine("debian12", 21, (OUTSIDE,)),
}
FORETOLD = (GATEWAY, "lab-server-13", COLLECTOR, "lab-backup-b")  # one of each profile
MACHINES = {
    **HOSTS,
    OUTSIDER: Machine("debian12", 22, (OUTSIDE,)),
    DUO: Machine("debian12", 5, (INSIDE, OUTSIDE)),
    TIME: Machine("debian13", 4, (INSIDE, OUTSIDE)),
}
POOL = {"10.99.0.0/24": 4, "fd00:b1:99::/64": 6}  # addresses of those who come in through the gateway, by IP version
PERSON = "jdoe"  # has a certificate, a profile on lab-member, and a phone that Duo asks
INTEGRATION = "DILABLABLABLABLABLAB"  # its secret key is made anew each time: .cache/lab/duo_secret_key
STATE = ROOT / ".cache" / "lab"
LOGS = ROOT / ".cache" / "logs"
# The sealed account's key is made, and printed on a page that stays in .cache/lab here.
SEAL = ("rotate_break_glass.yml", "-e", f"bulwark_break_glass_dir={STATE}")
BEAT = 10  # seconds between two signs of life while a playbook runs
STARTED = time.monotonic()

# Machines that are no hosts of the inventory: options for podman, and the one program that runs there.
BARE = {
    OUTSIDER: ("sleep infinity",),
    DUO: (
        f"--volume={STATE / 'duo'}:/duo",
        f"--volume={Path(duo_service.__file__).resolve()}:/duo_service.py:ro",
        "python3 /duo_service.py serve /duo --bind 0.0.0.0",
    ),
}

# What years of use leave on a machine that nobody hardens: a root password "for emergencies", a cloud image's switch for
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
    """Start the plain machines anew, and write the keys and the known hosts with which the inventory reaches them."""
    down()
    _key, public = machines.key_pair(STATE)
    machines.key_pair(STATE / PERSON)
    prepare_duo()
    time_service.make_authority(STATE / "time", *TIME_NAMES)
    machines.build_images(sorted({machine.platform for machine in MACHINES.values()}))
    for name, (ipv4, ipv6) in NETWORKS.items():
        # Internal: no route to anywhere else, and no address translation that would make an outsider look like the controller.
        # This machine is there at .1 only because it is named; podman gives an internal network no gateway by itself.
        subnets = (
            "--subnet",
            f"{ipv4}0/24",
            "--gateway",
            f"{ipv4}1",
            "--ipv6",
            "--subnet",
            f"{ipv6}/64",
            "--gateway",
            f"{ipv6}1",
        )
        machines.run("podman", "network", "create", "--internal", "--disable-dns", *subnets, name)
    with concurrent.futures.ThreadPoolExecutor() as pool:
        bare = [pool.submit(start_bare, name, *words) for name, words in BARE.items()]
        bare.append(pool.submit(start_time, public))
        (STATE / "known_hosts").write_text("".join(pool.map(lambda name: start(name, public), HOSTS)))
        for done in bare:
            done.result()


def prepare_duo() -> None:
    """Make what the stand-in for Duo's service needs: authorities, certificates, the integration's secret key, its answers."""
    directory = STATE / "duo"
    duo_service.make_pki(directory, "duo.lab")
    skey = secrets.token_hex(20)
    for path, text in (
        (STATE / "duo_secret_key", skey),
        (directory / "integration.json", json.dumps({"ikey": INTEGRATION, "skey": skey})),
    ):
        path.touch(mode=0o600)
        path.write_text(text + "\n")
    duo()


def duo(answer: str = "allow", **more: str) -> None:
    """Have Duo answer so from now on; ``more`` are other parts of its state (see duo_service.py): certificate, service."""
    state = STATE / "duo" / "state.json"
    state.with_suffix(".new").write_text(json.dumps({"answers": {"*": answer}, **more}))
    state.with_suffix(".new").replace(state)


def start(name: str, public: str) -> str:
    """Start one machine as nobody hardened it, and return its lines for a known_hosts file."""
    machine = HOSTS[name]
    options = networking(machine)
    if name == GATEWAY:
        options += ["--sysctl=net.ipv4.ip_forward=1", "--sysctl=net.ipv6.conf.all.forwarding=1"]
    address = machines.start(name, machine.platform, public, *options, owner="bulwark-lab", hostname=name)
    # No network leads to Debian's archive from here; what roles install waits in the cache, so its lists never are too old.
    script = (
        NEGLECT + f"touch /var/lib/apt/lists\ncat >/etc/ssl/lab-duo.pem <<'END'\n{(STATE / 'duo' / 'ca.pem').read_text()}END\n"
    )
    # Signatures of the lab's own: no network leads to ClamAV's.
    script += f"mkdir -p /opt/signatures\necho 'Lab.Malware:0:*:{b'LAB-MALWARE'.hex()}' >/opt/signatures/lab.ndb\n"
    if name in SERVERS:  # the way back to those who come in
        for pool, version in POOL.items():
            script += f"ip -{version} route add {pool} via {HOSTS[GATEWAY].address(INSIDE, version)}\n"
    if name == MEMBER:  # its owner's key for the servers
        key = Path(machines.key_pair(STATE / PERSON)[0]).read_text()
        script += f"useradd --create-home --shell /bin/bash {PERSON}\ncd /home/{PERSON}\numask 077\n"
        script += f"cat >id_ed25519 <<'END'\n{key}END\nchown {PERSON} id_ed25519\n"
    done = machines.finish("podman", "exec", "-i", name, "sh", "-e", data=script)
    if done.returncode:
        sys.exit(f"{name} could not be prepared: {done.stderr}")
    keys = machines.run("podman", "exec", name, "sh", "-c", "cat /etc/ssh/ssh_host_*_key.pub").splitlines()
    return "".join(f"{address} {' '.join(line.split()[:2])}\n" for line in keys)


def start_bare(name: str, *words: str) -> None:
    """Start a machine that is no host of the inventory: one program, no systemd."""
    machines.run(
        "podman", "run", "-d", "--name", name, "--hostname", name, "--label", "owner=bulwark-lab", "--cap-add=NET_ADMIN,NET_RAW",
        *networking(MACHINES[name]), *words[:-1], machines.image_name(MACHINES[name].platform), *shlex.split(words[-1]),
    )  # fmt: skip


def start_time(public: str) -> None:
    """Start the server that tells the time, with Network Time Security. It only tells it: no container sets a clock."""
    machine = MACHINES[TIME]
    machines.start(TIME, machine.platform, public, *networking(machine), owner="bulwark-lab", hostname=TIME)
    time_service.serve(TIME, STATE / "time")


def networking(machine: Machine) -> list[str]:
    """Return podman's options that connect a machine: interfaces named after their network, and the names known there."""
    options = []
    for network in machine.networks:
        ends = f"ip={machine.address(network)},ip6={machine.address(network, 6)}"
        options.append(f"--network={network}:{ends},interface_name={network.rsplit('-', 1)[1]}0")
    near = machine.networks[0]
    options += [f"--add-host={name}:{MACHINES[TIME].address(near, version)}" for name, version in TIME_NAMES.items()]
    return [*options, f"--add-host=duo.lab:{MACHINES[DUO].address(near)}"]


def down() -> None:
    """Remove the machines, their networks and their keys, also what a run that was killed left."""
    with concurrent.futures.ThreadPoolExecutor() as pool:
        list(pool.map(machines.stop, MACHINES))
    for network in {*NETWORKS, "bulwark-lab"} & set(machines.run("podman", "network", "ls", "--format", "{{.Name}}").split()):
        machines.run("podman", "network", "rm", network)
    shutil.rmtree(STATE, ignore_errors=True)


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


def first_night() -> None:
    """Have hosts back up, and the repositories fetch from each other and read what they hold: what timers do until morning."""

    def back_up(host: str) -> None:
        machines.run("podman", "exec", host, "systemctl", "start", "bulwark-backup.service")

    with concurrent.futures.ThreadPoolExecutor() as pool:
        list(pool.map(back_up, [host for host in HOSTS if host != MEMBER]))  # a workstation keeps nothing
    for work in ("pull", "check"):
        for host in REPOSITORIES:
            machines.run("podman", "exec", host, "systemctl", "start", f"bulwark-backup-{work}.service")


def records(run: Path = ROOT / "evidence" / "latest") -> dict[str, dict]:
    """Return the hosts' evidence records of a run, by host."""
    return {path.stem: json.loads(path.read_text()) for path in sorted(run.glob("hosts/*.json"))}


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=["up", "down"])
    {"up": up, "down": down}[parser.parse_args().action]()


if __name__ == "__main__":
    main()
