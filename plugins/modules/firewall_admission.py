#!/usr/bin/python
# Copyright: (c) 2026, Bulwark contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: firewall_admission
short_description: Refuse firewall rules that would shut Ansible itself out
version_added: 0.2.0
description:
  - Finds out from which address and to which port this very connection came in, and works out whether the wanted rules would
    let it in again.
  - Fails, naming address and variable, if they would not, or if what is wanted does not fit together (networks that overlap, a
    service on a port of sshd).
  - Nothing on the host is changed. Over a connection that is no SSH connection there is nothing to lose, and it succeeds.
author:
  - Bulwark contributors (@bulwark)
options:
  wanted:
    description: What is to be let in, as the role C(firewall) puts it together from its variables.
    type: dict
    required: true
  enforced:
    description:
      - Whether to fail if this connection would not be let in. What does not fit together is refused in any case.
      - With V(false), only a warning is given. Meant for tests of what happens to those who do without.
    type: bool
    default: true
attributes:
  check_mode:
    description: Only looks, so check mode makes no difference.
    support: full
  diff_mode:
    description: Nothing is changed, so there is no difference to show.
    support: none
seealso:
  - module: bulwark.hardening.ssh_admission
"""

EXAMPLES = r"""
- name: Look before leaping
  bulwark.hardening.firewall_admission:
    wanted:
      vpn_networks: [10.99.0.0/24]
      vpn_interfaces: []
      management_addresses: [192.0.2.10/32]
      wireless_networks: []
      services: []
      forwards: []
      out_allowed: []
"""

RETURN = r"""
over_ssh:
  description: Whether this connection came in over SSH.
  type: bool
  returned: always
  sample: true
address:
  description: The address it came from; empty if it did not come over SSH.
  type: str
  returned: always
  sample: 192.0.2.10
port:
  description: The port it came to; 0 if it did not come over SSH.
  type: int
  returned: always
  sample: 22
interface:
  description: The interface by which answers to that address leave; empty if there is no way to it.
  type: str
  returned: always
  sample: eth0
admitted_by:
  description: The variable that lets it in; empty if none does.
  type: str
  returned: always
  sample: firewall_management_addresses
"""

import json

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.bulwark.hardening.plugins.module_utils import firewall
from ansible_collections.bulwark.hardening.plugins.module_utils.posture import firewall as seen
from ansible_collections.bulwark.hardening.plugins.module_utils.posture.common import CannotObserve, run
from ansible_collections.bulwark.hardening.plugins.module_utils.way_in import way_in


def interface_towards(address: str) -> str:
    """Return the interface by which this host answers an address, or "" when it does not know a way."""
    try:
        route = json.loads(run(["ip", "-j", "route", "get", address.partition("%")[0]]))
    except (CannotObserve, ValueError):
        return address.partition("%")[2]
    return route[0].get("dev", "") if route else ""


def main() -> None:
    """Judge the wanted rules by the connection we are on."""
    module = AnsibleModule(
        argument_spec={"wanted": {"type": "dict", "required": True}, "enforced": {"type": "bool", "default": True}},
        supports_check_mode=True,
    )
    result = {"changed": False, "over_ssh": False, "address": "", "port": 0, "interface": "", "admitted_by": ""}
    wanted = module.params["wanted"]
    try:
        wanted = {**wanted, "ssh_ports": seen.ssh_ports()}
        said = firewall.objections(wanted)
        if said:
            module.fail_json(msg=f"Refused before anything changed: {'; '.join(said)}", **result)
        way = way_in()
        if way is None:
            module.exit_json(**result)
        result.update(over_ssh=True, address=way["address"], port=int(way["lport"]), interface=interface_towards(way["address"]))
        admitted, why = firewall.admits(wanted, way["address"], result["port"], "tcp", result["interface"])
    except CannotObserve as exc:
        module.fail_json(msg=f"Refused before anything changed: whether Ansible could come in again is unknown: {exc}", **result)
    except (KeyError, ValueError, TypeError) as exc:
        module.fail_json(msg=f"wanted: {type(exc).__name__}: {exc}", **result)
    if admitted:
        result["admitted_by"] = why
        module.exit_json(**result)
    message = f"Ansible came in from {way['address']} to tcp/{result['port']} and could not come in again: {why}"
    if module.params["enforced"]:
        module.fail_json(msg=f"Refused before anything changed: {message}", **result)
    module.warn(f"{message}; going on all the same, because firewall_preflight is off")
    module.exit_json(**result)


if __name__ == "__main__":
    main()
