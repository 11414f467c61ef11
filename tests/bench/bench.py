#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-3.0-or-later
"""Measure side by side on this machine in one run, and write the ratios to docs/benchmarks.md (make bench).

    bench.py [unchanged] [audits] [access] [trail] [data]     these parts; all unless named. The other parts of the page stay.

BULWARK_BENCH_DEVSEC names a collections directory that holds devsec.hardening and the collections it needs
(ansible-galaxy collection install devsec.hardening -p DIRECTORY); without it that peer is not measured. Lynis is installed in
a container, from Debian. Nothing of either is part of this project.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import json
import os
import re
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "tests" / "lab")]
import antivirus  # noqa: E402
import backup  # noqa: E402
import lab  # noqa: E402
import trail  # noqa: E402
import way_in  # noqa: E402
import wipe  # noqa: E402
from page import one_in, paragraph  # noqa: E402

PARTS = ("unchanged", "audits", "access", "trail", "data")
STATE = ROOT / ".cache" / "bench"
OUTPUT = ROOT / "docs" / "benchmarks.md"
PLATFORM = "debian13"
REPEATS = int(os.environ.get("BULWARK_BENCH_REPEATS", "3"))
FLEET = (1, 10, 50)
PEER_ROLES = ("os_hardening", "ssh_hardening")

# What os_hardening cannot do in a container: kernel settings and modules, the audit daemon, mounts (and with these, in the same
# part of it, permissions of files). Left out, which spares it time.
PEER_VARIABLES = {
    "os_auditd_enabled": False,
    "os_sysctl_enabled": False,
    "os_modprobe_enabled": False,
    "os_minimize_access_enabled": False,
}


class Hosts:
    """Plain servers of the benchmark's own, and an inventory for any number of them."""

    def __init__(self) -> None:
        self.key, self.public = lab.machines.key_pair(STATE)
        self.addresses: dict[str, str] = {}

    def grow(self, names: list[str]) -> None:
        """Start the servers of these names that do not run yet, two at a time."""
        missing = [name for name in names if name not in self.addresses]

        def start(name: str) -> str:
            return lab.machines.start(name, PLATFORM, self.public, owner="bulwark-bench", hostname=name)

        with concurrent.futures.ThreadPoolExecutor(2) as pool:
            self.addresses.update(zip(missing, pool.map(start, missing), strict=True))

    def inventory(self, *names: str) -> str:
        """Write an inventory of these servers and return its path."""
        variables = {
            **lab.machines.inventory_variables(self.key),
            "ansible_ssh_common_args": "-o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -o LogLevel=ERROR",
        }
        del variables["ansible_connection"]
        hosts = {name: {"ansible_host": self.addresses[name], **variables} for name in names}
        directory = STATE / f"inventory-{len(names)}-{names[0]}"
        (directory / "group_vars").mkdir(parents=True, exist_ok=True)
        (directory / "hosts.json").write_text(json.dumps({"all": {"hosts": hosts}}))
        site = (ROOT / "inventories" / "lab" / "group_vars" / "all" / "site.yml").read_text()
        (directory / "group_vars" / "all.yml").write_text(site + f"bulwark_roles: {json.dumps(FIVE)}\n")
        return str(directory / "hosts.json")

    def stop(self) -> None:
        """Remove them all."""
        for name in self.addresses:
            lab.machines.stop(name)


def playbook(name: str, *arguments: str, collections: str = "") -> tuple[float, dict[str, int]]:
    """Run ansible-playbook with the clone's settings; return (seconds of wall time, counts of the recap, summed up)."""
    log = lab.LOGS / f"bench-{name}.log"
    settings = {**os.environ, "ANSIBLE_NOCOLOR": "1"}
    if collections:
        settings["ANSIBLE_COLLECTIONS_PATH"] = collections
    command = [str(ROOT / ".venv" / "bin" / "ansible-playbook"), *arguments]
    begin = time.monotonic()
    with log.open("wb") as stream:
        done = subprocess.run(command, check=False, cwd=ROOT, env=settings, stdout=stream, stderr=stream)
    seconds = time.monotonic() - begin
    text = log.read_text(errors="replace")
    if done.returncode:
        sys.exit(f"{' '.join(command)}: exit {done.returncode}\n{text[-4000:]}")
    counts: dict[str, int] = {}
    for key, value in re.findall(r"(\w+)=(\d+)", text.split("PLAY RECAP")[-1]):
        counts[key] = counts.get(key, 0) + int(value)
    return seconds, counts


def peer_playbook() -> str:
    """Write a playbook that applies the peer's roles and return its path."""
    path = STATE / "peer.yml"
    roles = [{"role": f"devsec.hardening.{role}"} for role in PEER_ROLES]
    path.write_text(json.dumps([{"hosts": "all", "become": True, "vars": PEER_VARIABLES, "roles": roles}]))
    return str(path)


def hardening(hosts: Hosts, peer: str) -> list[str]:
    """Return the section about a run that changes nothing: five roles against the peer's two, each on a server of its own."""
    title = "## A run that changes nothing"
    if not peer:
        return [title, "", "Not measured: BULWARK_BENCH_DEVSEC is not set.", ""]
    hosts.grow(["bench-ours", "bench-peer"])
    ours = ["-i", hosts.inventory("bench-ours"), "playbooks/site.yml"]
    theirs = ["-i", hosts.inventory("bench-peer"), peer_playbook()]
    lab.say("hardening one server with each")
    playbook("ours-first", *ours)
    playbook("peer-first", *theirs, collections=peer)
    seconds: dict[str, list[float]] = {"ours": [], "peer": []}
    for turn in range(REPEATS):
        lab.say(f"  unchanged run {turn + 1} of {REPEATS}")
        wall, counts = playbook("ours-again", *ours)
        seconds["ours"].append(wall)
        wall, peer_counts = playbook("peer-again", *theirs, collections=peer)
        seconds["peer"].append(wall)
    ratio = statistics.median(seconds["ours"]) / statistics.median(seconds["peer"])
    return [
        title,
        "",
        paragraph(
            "The five roles of `playbooks/site.yml` against os_hardening and ssh_hardening of devsec.hardening, each on a plain "
            "Debian 13 server that it had hardened before; same Ansible, same settings, same account, in turns. Of ours "
            f"{counts['ok']} tasks ran and {counts['changed']} changed something; of theirs {peer_counts['ok']} ran and "
            f"{peer_counts['changed']} changed something. os_hardening cannot finish in a container; what it cannot do there "
            "(kernel settings and modules, the audit daemon, mounts, and the file permissions set with these) is left out, which "
            "spares it time. The two do not do the same things: this compares what it costs to keep a host as it is, not how "
            "much is hardened."
        ),
        "",
        "| | share of the peer's time | goal |",
        "|---|--:|--:|",
        f"| unchanged run, wall time | {one_in(ratio)} | at most 1/4 |",
        "",
    ]


def audits(hosts: Hosts) -> list[str]:
    """Return the sections about the audit: against Lynis on one server, and over growing numbers of servers."""
    names = [f"bench-fleet-{number:02}" for number in range(1, FLEET[-1] + 1)]
    walls: dict[int, float] = {}
    evidence = ["-e", f"bulwark_evidence_dir={STATE / 'evidence'}"]
    for size in FLEET:
        lab.say(f"auditing {size} server(s)")
        hosts.grow(names[:size])
        command = ["-i", hosts.inventory(*names[:size]), *evidence, "playbooks/audit.yml"]
        playbook(f"audit-{size}-first", *command)  # opens the connections, as the one before did in daily use
        walls[size] = statistics.median(playbook(f"audit-{size}", *command)[0] for _turn in range(REPEATS))
        records = lab.records((STATE / "evidence" / "latest").resolve())
        assert [record["status"] for record in records.values()] == ["assessed"] * size, "not every server was assessed"
    lab.say("Lynis on one of them")
    install = "apt-get update -qq; apt-get install -qq -y --no-install-recommends lynis >/dev/null"
    lab.machines.run("podman", "exec", "--env=DEBIAN_FRONTEND=noninteractive", names[0], "sh", "-ec", install)
    lynis = []
    for _turn in range(REPEATS):
        begin = time.monotonic()
        lab.machines.run("podman", "exec", names[0], "sh", "-c", "lynis audit system --quick >/dev/null 2>&1; true")
        lynis.append(time.monotonic() - begin)
    peer = statistics.median(lynis)
    few, many = FLEET[-2:]
    marginal = (walls[many] - walls[FLEET[0]]) / (many - FLEET[0])
    return [
        "## Audit of one host",
        "",
        paragraph(
            "`playbooks/audit.yml` against `lynis audit system --quick`, on the same plain Debian 13 server. Lynis is started in "
            "the server, with no connection to make. A whole run includes Ansible's own start, the connection, judging and the "
            f"report. One host more in a run costs what a run of {many} hosts takes longer than a run of one, for each host: "
            "observing and judging it, its record, its share of the report, hosts side by side. The two do not look at the same "
            "things: Lynis looks at far more of a host, the audit at what the policy's controls need."
        ),
        "",
        "| | share of Lynis's time | goal |",
        "|---|--:|--:|",
        f"| one host more in a run | {one_in(marginal / peer)} | at most 1/20 |",
        f"| a whole playbook run for one host, with its report | {one_in(walls[1] / peer)} | |",
        "",
        "## Audit of many hosts",
        "",
        paragraph(
            f"Wall time for each host, compared with a run of {few} hosts. With one host, Ansible's own start is most of it; "
            "from there on it should not grow with their number."
        ),
        "",
        "| hosts | time for each host |",
        "|--:|--:|",
        *(f"| {size} | {walls[size] / size / (walls[few] / few):.2f} |" for size in FLEET),
        "",
    ]


# --- the way in ----------------------------------------------------------------------------------------------------------

SERVER = "lab-server-13"
TUNNEL = "openvpn-client@bulwark.service"
FIVE = ["accounts", "ssh", "session", "banner", "time_sync"]
IPERF = 5201
TOUCH = """
- name: Change a file of sshd
  ansible.builtin.copy:
    dest: /etc/ssh/sshd_config.d/99-bench.conf
    content: "# {{ now().timestamp() }}"
    mode: "0600"
"""
NOTHING = """
- name: Change nothing
  ansible.builtin.command: {argv: ["true"]}
  changed_when: false
"""


def median(measure) -> float:
    """Return the median of some measurements, each in seconds or whatever ``measure()`` returns."""
    return statistics.median(measure() for _turn in range(REPEATS))


def wall(action) -> float:
    """Return how many seconds something takes."""
    begin = time.monotonic()
    action()
    return time.monotonic() - begin


def access() -> list[str]:
    """Return the sections about the way in, measured on the hardened lab."""
    lab.say("the lab, hardened")
    lab.up()
    lab.play("bench-lab-site", "site.yml")
    server = lab.SERVERS[SERVER]
    try:
        return [*runs(), *tunnels(server), *logins(server)]
    finally:
        lab.down()


def runs() -> list[str]:
    """Return the section about what access rooms and guard add to a run."""
    lab.say("unchanged runs, with and without the access rooms; what the guard adds")
    one = ("--limit", SERVER)
    five = ("-e", json.dumps({"bulwark_roles": FIVE}))
    whole = median(lambda: playbook("access-all", "playbooks/site.yml", *one)[0])
    narrow = median(lambda: playbook("access-five", "playbooks/site.yml", *one, *five)[0])
    bare = STATE / "bare.yml"
    bare.write_text(json.dumps([{
        "hosts": SERVER, "become": True, "gather_facts": False,
        "tasks": [{"name": "The change", "ansible.builtin.include_tasks": "{{ bulwark_change }}"}],
    }]))  # fmt: skip
    added = {}
    for name, tasks in (("nothing", NOTHING), ("something", TOUCH)):
        change = STATE / f"change-{name}.yml"
        change.write_text(tasks)
        words = ("-e", f"bulwark_change={change}", "-e", f"bulwark_hosts={SERVER}")
        guarded = median(lambda words=words: playbook("access-guarded", "playbooks/guarded.yml", *words)[0])
        added[name] = guarded - median(lambda words=words: playbook("access-bare", str(bare), *words)[0])
    return [
        "## The guard, and the rooms of the way in",
        "",
        paragraph(
            "On one hardened Debian 13 server of the lab. The first line is a run of `playbooks/site.yml` that changes "
            "nothing, with all rooms of a server, compared with the five that do not concern the way in. The others are "
            "what `playbooks/guarded.yml` takes longer than the same tasks without it, compared with that whole run: "
            "arming, looking for differences, and after a change the new connection."
        ),
        "",
        "| | ratio |",
        "|---|--:|",
        f"| unchanged run of all rooms, of the time of five | {whole / narrow:.2f} |",
        f"| guard around nothing, of the time of an unchanged run | {one_in(added['nothing'] / whole)} |",
        f"| guard around a change, of the time of an unchanged run | {one_in(added['something'] / whole)} |",
        "",
    ]


def tunnels(server: lab.Machine) -> list[str]:
    """Return the section about throughput: a member to a server, through the tunnel and past it."""
    lab.say("throughput of the tunnel")
    for machine in (lab.MEMBER, SERVER):
        way_in.have(machine, "iperf3")
    # Only for this: the port of the measuring program, on the server and through the gateway.
    for machine, chain in ((SERVER, "input"), (lab.GATEWAY, "forward")):
        way_in.on(machine, f"nft insert rule inet bulwark {chain} tcp dport {IPERF} accept")
    if (ended := way_in.tunnel()) != "up":
        sys.exit(f"no tunnel: {ended}")
    lab.machines.run("podman", "exec", SERVER, "iperf3", "--server", "--daemon", "--port", str(IPERF))

    def rate(network: str, *options: str) -> float:
        words = f"iperf3 --json --time 4 --port {IPERF} --client {server.address(network)} {' '.join(options)}"
        done = way_in.on(lab.MEMBER, words)
        return json.loads(done.stdout)["end"]["sum_received"]["bits_per_second"]

    ratios = {}
    for name, options in (("to the server", ()), ("from the server", ("--reverse",))):
        through = median(lambda options=options: rate(lab.INSIDE, *options))
        ratios[name] = through / median(lambda options=options: rate(lab.OUTSIDE, *options))
    way_in.close_tunnel()
    return [
        "## Throughput of the tunnel",
        "",
        paragraph(
            "One TCP connection between the member's machine and a server, through the tunnel and the gateway, compared "
            "with the same on the plain network between them (iperf3). All of it runs on one machine, whose plain network "
            "is its memory; the tunnel's two ends, each one thread of OpenVPN in user space, share its processors. On a "
            "real line the line is the limit long before."
        ),
        "",
        "| | share of the plain path |",
        "|---|--:|",
        *(f"| {name} | {one_in(ratio)} |" for name, ratio in ratios.items()),
        "",
    ]


def logins(server: lab.Machine) -> list[str]:
    """Return the section about connection times."""
    lab.say("connection times")

    def ssh(user: str, key: Path) -> None:
        ways = "publickey" if user == "deploy" else "publickey,keyboard-interactive"
        settings = [f"PreferredAuthentications={ways}", f"UserKnownHostsFile={lab.STATE / 'known_hosts'}"]
        settings += ["IdentitiesOnly=yes", "ControlPath=none"]
        options = [word for setting in settings for word in ("-o", setting)]
        argv = ["ssh", "-i", str(key), *options, f"{user}@{server.address()}", "true"]
        done = subprocess.run(argv, check=False, stdin=subprocess.DEVNULL, capture_output=True, text=True)
        if done.returncode:
            sys.exit(f"{user} cannot log in: {done.stderr}")

    machine = median(lambda: wall(lambda: ssh("deploy", lab.STATE / "id_ed25519")))
    person = median(lambda: wall(lambda: ssh(lab.PERSON, lab.STATE / lab.PERSON / "id_ed25519")))

    def dial() -> float:
        way_in.close_tunnel()
        # The unit counts as started before anybody was let in; the tunnel's address comes with Duo's yes.
        up = "until ip -4 address show dev bulwark 2>/dev/null | grep -q inet; do sleep 0.05; done"
        return wall(lambda: way_in.on(lab.MEMBER, f"systemctl start {TUNNEL}; {up}"))

    opened = median(dial)
    return [
        "## Time to connect",
        "",
        paragraph(
            "Duo's stand-in says yes at once, so this is what the machines take, not the person with the telephone. "
            "Compared with an SSH login of the automation account, which shows a key only."
        ),
        "",
        "| | times a login by key |",
        "|---|--:|",
        f"| SSH login of a person, key and Duo | {person / machine:.1f} |",
        f"| opening the tunnel, certificate and Duo | {opened / machine:.1f} |",
        "",
    ]


# --- the page ------------------------------------------------------------------------------------------------------------


def sections(text: str) -> dict[str, str]:
    """Return a page's parts by their heading of the second level; what stands before the first is under ""."""
    parts = re.split(r"^(?=## )", text, flags=re.MULTILINE)
    return {part.split("\n", 1)[0] if part.startswith("## ") else "": part.strip() + "\n" for part in parts}


def write(lines: list[str]) -> None:
    """Put sections into the page, in the place of what they were, as soon as they are measured: a whole run takes long."""
    head = [
        "<!-- Written by tests/bench/bench.py (make bench), not by hand. -->",
        "# Benchmarks",
        "",
        paragraph(
            f"Ratios, not seconds: the numbers of each section were measured in one run on one machine ({os.cpu_count()} "
            f"processor cores), ours and what they are compared with in turns, and are medians of {REPEATS}; or once, where a "
            "section says so. Where there is nothing to compare with, it is what this machine did. `make bench` measures again."
        ),
        "",
    ]
    page = sections(OUTPUT.read_text()) if OUTPUT.exists() else {}
    page.update(sections("\n".join([*head, *lines])))
    OUTPUT.write_text("\n".join(page.values()))
    print("\n".join(lines), flush=True)


def main() -> None:
    """Measure what was asked for, put it into the page, clean up."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", choices=PARTS, metavar="PART")
    parts = parser.parse_args().parts or PARTS
    hosts = Hosts()
    lab.LOGS.mkdir(parents=True, exist_ok=True)
    lab.machines.build_images([PLATFORM])
    try:
        if "unchanged" in parts:
            write(hardening(hosts, os.environ.get("BULWARK_BENCH_DEVSEC", "")))
        if "audits" in parts:
            write(audits(hosts))
        if "access" in parts:
            write(access())
        if "trail" in parts:
            for measure in trail.MEASURES:
                lab.say(f"the trail: {measure.__name__}")
                write(measure(STATE / "trail"))
        if "data" in parts:
            for measure in (*wipe.MEASURES, *backup.MEASURES, *antivirus.MEASURES):
                lab.say(f"the data: {measure.__name__}")
                write(measure(STATE / measure.__name__))
    finally:
        hosts.stop()
    lab.say(f"written to {OUTPUT.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
