# Copyright: (c) 2026, Bulwark contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Observe the firewall: the rules the kernel has, what they let in, what loads them, what logs, and what listens.

The kernel is asked (C(nft -j list ruleset)), not a file. Only the table C(inet bulwark) is judged: what any other table accepts
still has to pass it. What goes past all tables (flow tables) or before them is reported besides.
"""

from __future__ import annotations

import hashlib
import json
import os
import re

from ansible_collections.bulwark.hardening.plugins.module_utils import firewall
from ansible_collections.bulwark.hardening.plugins.module_utils.posture import ssh
from ansible_collections.bulwark.hardening.plugins.module_utils.posture.common import (
    SSHD,
    CannotObserve,
    read,
    run,
    sshd_effective,
)

NFT = "/usr/sbin/nft"
RULES = "/etc/bulwark/firewall.nft"
LOADED = "/run/bulwark-firewall/loaded"  # what the kernel listed right after our rules were loaded
LOADED_RULES = "/run/bulwark-firewall/rules"  # and the digest of the file they came from
GROUPS = "/proc/net/netfilter/nfnetlink_log"
SYNCOOKIES = "/proc/sys/net/ipv4/tcp_syncookies"
LOG_GROUP = 7
UNITS = ("bulwark-firewall.service", "bulwark-firewall-log.service", "bulwark-firewall-watch.service", "nftables.service")


def collect() -> dict:
    """Return the firewall as it is. A host without nft has no rules of ours; that is seen, not an error."""
    installed = os.path.exists(NFT)
    listing = json.loads(run([NFT, "-j", "list", "ruleset"], timeout=30)) if installed else {"nftables": []}
    units = unit_states(run(["systemctl", "show", *UNITS, "-p", "Id", "-p", "LoadState", "-p", "ActiveState", "-p", "Before",
                             "-p", "ExecStart", "-p", "ExecReload", "-p", "ExecStop"]))  # fmt: skip
    wanting = run(["systemctl", "show", "sysinit.target", "multi-user.target", "-p", "Wants"])
    sockets = run(["ss", "-H", "-l", "-n", "-t", "-u", "-p"])
    return {
        "installed": installed,
        **rules(listing),
        "in_force": installed and in_force(),
        "units": units,
        "wanted_at_boot": sorted(name for name in UNITS if name in wanting.replace("=", " ").split()),
        "log_group_read": log_group_read(read(GROUPS)) if os.path.exists(GROUPS) else False,
        "syncookies": read(SYNCOOKIES).strip(),
        "ssh_ports": ssh_ports(),
        "listening": listening(sockets),
    }


def ssh_ports() -> list[int]:
    """Return every port on which sshd listens, by its configuration or in fact; [22] where there is no sshd yet."""
    if not os.path.exists(SSHD):
        return [22]
    settings = sshd_effective(*ssh.options_of_daemon())
    found = {int(port) for port in re.findall(r"^port (\d+)$", settings, re.MULTILINE)}
    found |= {int(port) for port in re.findall(r"^listenaddress \S*:(\d+)$", settings, re.MULTILINE)}
    # What sshd holds open on a loopback address is a forward of somebody's session.
    return sorted(found | {int(place.rsplit(":", 1)[1]) for place in ssh.listening() if not re.match(r"127\.|\[?::1\]?:", place)})


def rules(listing: dict) -> dict:
    """Return what the kernel's rules come to: chains, openings, limits, log lines and counters of our table, and ways past it.

    ``listing`` is what C(nft -j list ruleset) printed.
    """
    chains: dict[str, dict] = {}
    counters: dict[str, int] = {}
    limits: dict[str, dict] = {}
    prefixes: dict[str, int] = {}
    checks: list[str] = []
    confined: dict[str, list[str]] = {"input": [], "forward": [], "passed": []}
    bypasses: list[str] = []
    tables: list[str] = []
    for item in listing["nftables"]:
        kind, entry = next(iter(item.items()))
        if kind == "table":
            tables.append(f"{entry['family']} {entry['name']}")
        ours = entry.get("family") == "inet" and entry.get("table") == firewall.TABLE
        if kind == "flowtable":
            bypasses.append(f"flowtable {entry['family']} {entry['table']} {entry['name']}")
        if not ours:
            continue
        if kind == "chain" and "hook" in entry:
            chains[entry["name"]] = {key: entry.get(key, "") for key in ("type", "hook", "prio", "policy")}
        elif kind == "counter":
            counters[entry["name"].removeprefix("count_")] = entry["packets"]
        elif kind == "rule":
            of_rule(entry, limits, prefixes, checks, confined)
    return {
        "tables": sorted(set(tables) - {f"inet {firewall.TABLE}"}),
        "chains": chains,
        "openings": firewall.openings(listing),
        "limits": limits,
        "log_prefixes": prefixes,
        "source_checks": checks,
        "confined": {hook: confined[hook] for hook in ("input", "forward")},
        "counters": counters,
        "bypasses": bypasses,
    }


def of_rule(entry: dict, limits: dict, prefixes: dict, checks: list, confined: dict) -> None:
    """Add what one rule of ours says about limits, the log, sources, and networks that are led aside."""
    matches, target = [], ""
    for part in entry.get("expr", []):
        kind, value = next(iter(part.items())) if isinstance(part, dict) else (part, None)
        if kind == "match":
            matches.append(value)
        elif kind == "set":
            for statement in value.get("stmt", []):
                if statement.get("limit", {}).get("inv"):
                    limit = statement["limit"]
                    limits[value["set"].lstrip("@")] = {key: limit[key] for key in ("rate", "per")}
        elif kind == "log":
            prefixes[value.get("prefix", "").strip()] = value.get("group", -1)
        elif kind == "goto":
            target = value["target"]
    if entry["chain"] == "spoofing" and target == "spoofed":
        checks.append("; ".join(map(source_check, matches)))
    if (entry["chain"], target) in (("input", "wireless"), ("forward", "wireless_forward")):
        for match in matches if entry["chain"] not in confined["passed"] else ():
            confined[entry["chain"]] += firewall.texts(match["right"], {})
    elif target in ("services", "published", "admit"):
        confined["passed"].append(entry["chain"])  # what is led aside only after this was let in before


def source_check(match: dict) -> str:
    """Return one condition of a rule against false sources in words: ``fib saddr iif``, ``saddr 10.99.0.0/24``."""
    right = ", ".join(sorted(firewall.texts(match["right"], {})))
    left = match["left"]
    if "fib" in left:
        flags = left["fib"]["flags"]
        return f"fib {' '.join(sorted(flags if isinstance(flags, list) else [flags]))}"
    if "meta" in left:
        return f"{left['meta']['key']} {match['op']} {right}"
    return f"{left.get('payload', {}).get('field', left)} {right}"


def in_force() -> bool:
    """Return whether the kernel's rules are still those that were loaded, and the file still the one they came from."""
    try:
        now = run([NFT, "-s", "-t", "list", "table", "inet", firewall.TABLE])
        with open(RULES, "rb") as stream:
            digest = hashlib.sha256(stream.read()).hexdigest()
        return now == read(LOADED) and digest == read(LOADED_RULES).split()[0]
    except (CannotObserve, OSError, IndexError):
        return False


def unit_states(output: str) -> dict[str, dict]:
    """Return C(systemctl show) of several units by name: whether loaded and active, what it comes before, what it runs."""
    found = {}
    for block in output.strip().split("\n\n"):
        unit: dict[str, str] = {}
        for line in block.splitlines():
            key, _equals, value = line.partition("=")
            unit[key] = f"{unit[key]}\n{value}" if key in unit else value
        found[unit.get("Id", "")] = {
            "loaded": unit.get("LoadState") == "loaded",
            "active": unit.get("ActiveState") == "active",
            "before": unit.get("Before", "").split(),
            **{
                key: re.findall(r"argv\[\]=(.*?) ;", unit.get(name, ""))
                for key, name in (("start", "ExecStart"), ("reload", "ExecReload"), ("stop", "ExecStop"))
            },
        }
    return found


def log_group_read(text: str) -> bool:
    """Return whether a program reads our log group, from /proc/net/netfilter/nfnetlink_log."""
    return any(line.split()[:1] == [str(LOG_GROUP)] for line in text.splitlines())


def listening(output: str) -> list[dict]:
    """Return what listens beyond the loopback addresses, from C(ss -H -lntup): protocol, address, port, program."""
    found = []
    for line in output.splitlines():
        parts = line.split()
        if len(parts) < 5 or parts[0] not in ("tcp", "udp"):
            continue
        address, _colon, port = parts[4].rpartition(":")
        address = address.strip("[]").partition("%")[0] if address != "*" else "*"
        if address.removeprefix("::ffff:").startswith("127.") or address == "::1" or "%lo:" in parts[4] or not port.isdigit():
            continue
        named = re.search(r'\(\("([^"]+)"', line)
        program = named.group(1) if named else ""
        found.append({"protocol": parts[0], "address": address, "port": int(port), "program": program})
    return sorted(found, key=lambda one: (one["protocol"], one["port"], one["address"]))
