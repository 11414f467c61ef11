#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-3.0-or-later
"""Measure against peers, side by side on this machine in one run, and write the ratios to docs/benchmarks.md (make bench).

BULWARK_BENCH_DEVSEC names a collections directory that holds devsec.hardening and the collections it needs
(ansible-galaxy collection install devsec.hardening -p DIRECTORY); without it that peer is not measured. Lynis is installed in
a container, from Debian. Nothing of either is part of this project.
"""

from __future__ import annotations

import concurrent.futures
import json
import os
import re
import statistics
import subprocess
import sys
import textwrap
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "tests" / "lab")]
import lab  # noqa: E402

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
        site = (ROOT / "inventories" / "lab" / "group_vars" / "all.yml").read_text()
        (directory / "group_vars" / "all.yml").write_text(site)
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


def paragraph(text: str) -> str:
    """Return a text in lines as long as those of the other documents."""
    return textwrap.fill(text, 120)


def one_in(ratio: float) -> str:
    """Return a ratio as people say it: 1/37."""
    return f"1/{1 / ratio:.0f}" if ratio <= 0.4 else f"{ratio:.2f}"


def main() -> None:
    """Measure, write, clean up."""
    hosts = Hosts()
    lab.LOGS.mkdir(parents=True, exist_ok=True)
    lab.machines.build_images([PLATFORM])
    try:
        lines = [*hardening(hosts, os.environ.get("BULWARK_BENCH_DEVSEC", "")), *audits(hosts)]
    finally:
        hosts.stop()
    head = [
        "<!-- Written by tests/bench/bench.py (make bench), not by hand. -->",
        "# Benchmarks",
        "",
        paragraph(
            f"Ratios, not seconds: everything was measured in one run on one machine ({os.cpu_count()} processor cores), ours "
            f"and the peers in turns, {REPEATS} times, of which the median counts. `make bench` measures again."
        ),
        "",
    ]
    OUTPUT.write_text("\n".join([*head, *lines]).rstrip() + "\n")
    lab.say(f"written to {OUTPUT.relative_to(ROOT)}")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
