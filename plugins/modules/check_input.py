#!/usr/bin/python
# Copyright: (c) 2026, Bulwark contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: check_input
short_description: Refuse variables that the policy does not allow, before anything changes
version_added: 0.1.0
description:
  - Compares the variables of the named roles, as they are for this host, with the roles' argument specifications and with
    the bounds in C(policy/parameters/).
  - Refuses wrong types, unknown names with a role's prefix, unknown keys, values beyond a bound and control characters. The
    message names every violation at once, with the variable, the value, the bound and the statement.
  - Runs on the controller and never connects to the host.
  - A bound that the policy sets can be lifted by an approved, unexpired entry in C(bulwark_exceptions) that names the
    variable as its C(parameter). Technical limits cannot.
author:
  - Bulwark contributors (@bulwark)
options:
  roles:
    description: Roles whose variables are checked. Unless given, those that concern hosts of O(profile).
    type: list
    elements: str
    aliases: [role]
  profile:
    description: What kind of host this is. A role concerns it when one of the role's controls is meant for this kind.
    type: str
    choices: [server, workstation, gateway, collector, repository]
    default: server
notes:
  - The variables O(ignore:bulwark_exceptions) and O(ignore:bulwark_foreign_variables) are read from the host's variables.
attributes:
  check_mode:
    description: Only checks, so check mode makes no difference.
    support: full
  diff_mode:
    description: Nothing is changed, so there is no difference to show.
    support: none
seealso:
  - plugin: bulwark.hardening.policy_violations
    plugin_type: filter
"""

EXAMPLES = r"""
- name: Check the input before anything changes
  bulwark.hardening.check_input:
    roles: [ssh, session]
"""

RETURN = r"""
roles:
  description: The roles that were checked, for a play that applies the same ones.
  type: list
  elements: str
  returned: always
violations:
  description: One message for each violation; the task fails unless it is empty.
  type: list
  elements: str
  returned: always
"""
