# Copyright: (c) 2026, Bulwark contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Write what a site declared as nftables takes it, and compare what the kernel lets in with what was declared."""

from __future__ import annotations

from ansible.errors import AnsibleFilterError
from ansible_collections.bulwark.hardening.plugins.module_utils import firewall


def firewall_networks(values, version):
    """Return the networks of an IP version as a set of nftables, ``any`` if all are meant, or "" if none is of that version."""
    if "any" in values:
        return "any"
    try:
        found = firewall.networks(values, version)
    except ValueError as exc:
        raise AnsibleFilterError(f"firewall_networks: {exc}") from exc
    return f"{{ {', '.join(found)} }}" if found else ""


def firewall_ports(values, protocol):
    """Return the ports of a protocol as a set of nftables, ``any`` for C(icmp), or "" if none is of that protocol."""
    if protocol == "icmp":
        return "any" if "icmp" in values else ""
    try:
        found = firewall.written(firewall.port_spans(values, protocol))
    except ValueError as exc:
        raise AnsibleFilterError(f"firewall_ports: {exc}") from exc
    return f"{{ {', '.join(found)} }}" if found else ""


def _compared(openings, wanted, ssh_ports, hook):
    declared = firewall.declared_openings({**wanted, "ssh_ports": ssh_ports})
    return tuple({firewall.in_words(one): one for one in found if one["hook"] == hook} for found in (openings, declared))


def firewall_undeclared(openings, wanted, ssh_ports, hook):
    """Return in words every opening of a hook that the kernel has and nobody declared."""
    seen, declared = _compared(openings, wanted, ssh_ports, hook)
    return sorted(set(seen) - set(declared))


def firewall_closed(openings, wanted, ssh_ports, hook):
    """Return in words every opening of a hook that was declared and that the kernel does not have."""
    seen, declared = _compared(openings, wanted, ssh_ports, hook)
    return sorted(set(declared) - set(seen))


def firewall_ssh_strangers(openings, wanted, ssh_ports):
    """Return every network that reaches a port of sshd although it is neither the VPN's nor a controller's; ``any`` is all."""
    return firewall.strangers(openings, {**wanted, "ssh_ports": ssh_ports})


def firewall_exposed(listening, openings, wanted, ssh_ports):
    """Return in words what listens on the host and is reached although nobody declared it."""
    return firewall.exposed(listening, openings, {**wanted, "ssh_ports": ssh_ports})


class FilterModule:
    """Filters about the firewall."""

    def filters(self):
        """Return the filters by name."""
        return {
            "firewall_closed": firewall_closed,
            "firewall_exposed": firewall_exposed,
            "firewall_networks": firewall_networks,
            "firewall_ports": firewall_ports,
            "firewall_ssh_strangers": firewall_ssh_strangers,
            "firewall_undeclared": firewall_undeclared,
        }
