# Copyright: (c) 2026, Bulwark contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a VPN gateway works out before it acts (module_utils/vpn.py), for templates and conditions."""

from __future__ import annotations

from ansible.errors import AnsibleFilterError
from ansible_collections.bulwark.hardening.plugins.module_utils import vpn


def vpn_addresses(users: list[dict], network: str, network6: str = "") -> list[dict]:
    """Return the tunnel address of each user; an error of the filter if there are more users than addresses."""
    try:
        return vpn.addresses(users, network, network6)
    except ValueError as exc:
        raise AnsibleFilterError(f"vpn_addresses: {exc}") from exc


def vpn_network(text: str) -> dict:
    """Return a network taken apart; an error of the filter if it is none."""
    try:
        return vpn.network(text)
    except ValueError as exc:
        raise AnsibleFilterError(f"vpn_network: {exc}") from exc


class FilterModule:
    """Offer the filters to Ansible."""

    def filters(self) -> dict:
        """Return the filters by name."""
        return {
            "vpn_addresses": vpn_addresses,
            "vpn_idle_plan": vpn.idle_plan,
            "vpn_network": vpn_network,
            "vpn_objections": vpn.objections,
        }
