# Copyright: (c) 2026, Bulwark contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Compare what an SSH server was seen to grant with what a site declared."""

from __future__ import annotations

import ipaddress

SYSTEM_UIDS = range(1, 1000)  # login.defs of Debian; root is no system account here


def ssh_undeclared_forwards(forwarding: list[dict], declared: list[dict]) -> list[str]:
    """Return in words every forward that somebody may open and nobody declared.

    ``forwarding`` is what the collector saw: ``[{"account", "place", "groups", "tcp", "permitopen", "agent", …}]``;
    ``declared`` is C(ssh_forwards): ``[{"group", "open": ["host:port"], "listen": ["port"]}]``.
    """
    said = []
    for seen in forwarding:
        about = f"{seen['account']} {seen['place']}".strip()
        mine = [entry for entry in declared if entry["group"] in seen["groups"]]
        may_open = {place for entry in mine for place in entry.get("open") or []}
        may_listen = {place for entry in mine for place in entry.get("listen") or []}
        for name in ("stream_local", "agent", "x11", "tunnel", "gateway_ports"):
            if name in seen:
                said.append(f"{about}: {name} {seen[name]}")
        tcp = seen.get("tcp", "no")
        if tcp in ("yes", "all", "local") and not set(seen["permitopen"]) <= may_open:
            said.append(f"{about}: opens {' '.join(sorted(set(seen['permitopen']) - may_open))}")
        if tcp in ("yes", "all", "remote") and not set(seen["permitlisten"]) <= may_listen:
            said.append(f"{about}: listens on {' '.join(sorted(set(seen['permitlisten']) - may_listen))}")
    return said


def ssh_unconfined_machines(accounts: list[dict], declared: list[dict]) -> list[str]:
    """Return in words every machine account that can come in and is not declared, or not held to what was declared.

    A machine account is one that C(ssh_machine_accounts) declares, or a system account (uid below 1000, not root) that is
    admitted and has a key. ``accounts`` is what the collector saw.
    """
    said = []
    by_name = {entry["name"]: entry for entry in declared}
    for seen in accounts:
        name = seen["name"]
        wanted = by_name.get(name)
        if wanted is None:
            if seen["uid"] in SYSTEM_UIDS and seen["keys"] and seen["admitted_from"]:
                said.append(f"{name}: a system account with a key is admitted and not declared")
            continue
        networks = [ipaddress.ip_network(network, strict=False) for network in wanted["from"]]
        strange = [a for a in seen["admitted_from"] if not any(ipaddress.ip_address(a) in network for network in networks)]
        if strange:
            said.append(f"{name}: is admitted from {', '.join(strange)}")
        if seen["forwards"]:
            said.append(f"{name}: may forward {', '.join(seen['forwards'])}")
        if seen["terminal"] != ["no"] and not wanted.get("terminal"):
            said.append(f"{name}: gets a terminal")
        if wanted.get("command") and seen["forced_command"] != [wanted["command"]]:
            said.append(f"{name}: may run {', '.join(seen['forced_command'])}")
    return said


def ssh_unconfined_transfers(accounts: list[dict], declared: list[dict]) -> list[str]:
    """Return in words every account of a transfer-only group that can do more than transfer files in its directory.

    ``declared`` is C(ssh_sftp_only): ``[{"group", "directory"}]``.
    """
    said = []
    for seen in accounts:
        wanted = next((entry for entry in declared if entry["group"] in seen["groups"]), None)
        if wanted is None:
            continue
        if not all(command.split()[:1] == ["internal-sftp"] for command in seen["forced_command"]):
            said.append(f"{seen['name']}: may run {', '.join(seen['forced_command'])}")
        if seen["forwards"]:
            said.append(f"{seen['name']}: may forward {', '.join(seen['forwards'])}")
        if wanted.get("directory") and seen["chroot"] != [wanted["directory"]]:
            said.append(f"{seen['name']}: is not held in {wanted['directory']} but in {', '.join(seen['chroot'])}")
    return said


class FilterModule:
    """Filters about SSH."""

    def filters(self):
        """Return the filters by name."""
        return {
            "ssh_undeclared_forwards": ssh_undeclared_forwards,
            "ssh_unconfined_machines": ssh_unconfined_machines,
            "ssh_unconfined_transfers": ssh_unconfined_transfers,
        }
