# Copyright: (c) 2026, Bulwark contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Compare who skips the second factor with what a site declared, and find what speaks against asking everybody for it."""

from __future__ import annotations

import base64
import hashlib
import ipaddress

ROOM_SECONDS = 15  # that sshd must wait longer than Duo may take: the key exchange, the key, and the way to Duo


def duo_undeclared(free: list[dict], automation: list[dict], break_glass: dict) -> list[str]:
    """Return in words everybody who skips the second factor and is not declared.

    ``free`` is what the collector saw: ``[{"account", "ways"}]``; ``automation`` is C(duo_automation_accounts), ``break_glass``
    C(duo_break_glass).
    """
    declared = {entry["name"] for entry in automation} | {(break_glass or {}).get("name", "")}
    return [f"{seen['account']}: {way}" for seen in free if seen["account"] not in declared for way in seen["ways"]]


def duo_outside(addresses: list[str], networks: list[str]) -> list[str]:
    """Return those addresses that lie in none of the networks."""
    known = [ipaddress.ip_network(network, strict=False) for network in networks]
    return [address for address in addresses if not any(ipaddress.ip_address(address) in network for network in known)]


def duo_fingerprint(blob: str) -> str:
    """Return the SHA-256 fingerprint of a public key, from its second field, as ssh-keygen -l writes it after C(SHA256:)."""
    return base64.b64encode(hashlib.sha256(base64.b64decode(blob)).digest()).decode().rstrip("=")


def duo_objections(seen: dict, wanted: dict) -> list[str]:
    """Return in words what would go wrong if PAM asked Duo now; an empty list when nothing would.

    ``seen`` is the duo posture. ``wanted`` has the account by which Ansible came in ("" if not over SSH), C(timeout_seconds),
    the name of the sealed account, and, in check mode only, what role ssh is about to set: C(ssh_methods), C(ssh_grace_seconds).
    """
    said = []
    for kind, why in sorted(seen["modified"].items()):
        said.append(
            f"/etc/pam.d/common-{kind} was changed by hand and pam-auth-update would not touch it ({why}); take the change "
            "back, or have pam-auth-update --force write the file anew"
        )
    ssh, methods = seen["ssh"], wanted["ssh_methods"]
    if ssh["installed"]:
        coming = bool(methods) and all("publickey" in one and "keyboard-interactive" in one for one in methods)
        if not ssh["asks"] and not coming:
            said.append(
                "sshd does not ask for a key and then for what PAM wants, so nobody would be asked for Duo over SSH; set "
                "ssh_authentication_methods: ['publickey,keyboard-interactive:pam'] and apply role ssh first"
            )
        if ssh["usepam"] != ["yes"]:
            said.append("sshd does not use PAM for everybody (UsePAM)")
        if ssh["without_key"] and not coming:
            said.append(f"without a key sshd lets in {', '.join(ssh['without_key'])}: Duo would be the only factor")
        grace = max(ssh["grace_seconds"], wanted["ssh_grace_seconds"])
        if ssh["grace_seconds"] and grace < wanted["timeout_seconds"] + ROOM_SECONDS:
            said.append(
                f"sshd gives up after {grace} seconds, a push may take {wanted['timeout_seconds']}; set "
                f"ssh_login_grace_seconds to {wanted['timeout_seconds'] + ROOM_SECONDS} or more, or duo_https_timeout_seconds to "
                "less"
            )
    account, ways = wanted["account"], {entry["account"]: entry["ways"] for entry in seen["free"]}
    unasked = any(way.startswith("sudo") and way.endswith((": ALL", ", ALL")) for way in ways.get(account, []))
    if account not in ("", "root") and seen["sudo"]["installed"] and not unasked:
        said.append(
            f"Ansible came in as {account}, whose sudo asks for a password and would ask for Duo at every task; let an "
            "automation account come in (ssh_machine_accounts, duo_automation_accounts) that becomes root unasked"
        )
    if wanted["break_glass"] and wanted["break_glass"] not in seen["accounts"]:
        said.append(
            f"there is no account {wanted['break_glass']} (duo_break_glass); make it first (accounts_users, kind automation)"
        )
    return said


class FilterModule:
    """Filters about the second factor."""

    def filters(self):
        """Return the filters by name."""
        return {
            "duo_undeclared": duo_undeclared,
            "duo_outside": duo_outside,
            "duo_fingerprint": duo_fingerprint,
            "duo_objections": duo_objections,
        }
