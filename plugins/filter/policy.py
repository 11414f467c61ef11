# Copyright: (c) 2026, Bulwark contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
name: policy_violations
author: Bulwark contributors (@bulwark)
version_added: 0.1.0
short_description: Say which variables of a role the policy does not allow
description:
  - Compares variables with the bounds in C(policy/parameters/) and with the role's argument specification.
  - Each message names the variable, its value, the bound and the statement it comes from.
options:
  _input:
    description: Mapping of variable names to values; names without the role's prefix are left alone.
    type: dict
    required: true
  role:
    description: The role whose variables are checked.
    type: str
    required: true
  exceptions:
    description: Approved exceptions; one whose C(parameter) is a variable lifts the policy's side of its bound until it expires.
    type: list
    elements: dict
    default: []
positional: role, exceptions
"""

EXAMPLES = r"""
- name: Look before you leap
  ansible.builtin.debug:
    msg: "{{ {'session_idle_seconds': 3600} | bulwark.hardening.policy_violations('session') }}"
"""

RETURN = r"""
_value:
  description: One message for each violation; empty when everything is allowed.
  type: list
  elements: str
"""

from ansible.errors import AnsibleFilterError
from ansible_collections.bulwark.hardening.plugins.plugin_utils.policy import PolicyError, all_roles, violations


def policy_violations(variables, role, exceptions=()):
    """Return the violations of a role's variables; errors: not a mapping, unknown role, unreadable policy data."""
    if not hasattr(variables, "items"):
        raise AnsibleFilterError(f"policy_violations expects a mapping of variables, not {type(variables).__name__}")
    if role not in all_roles():
        raise AnsibleFilterError(f"role = {role!r}: unknown; known are {', '.join(all_roles())}")
    try:
        return violations(role, variables, exceptions)
    except PolicyError as exc:
        raise AnsibleFilterError(str(exc)) from exc


class FilterModule:
    """Filters about policy bounds."""

    def filters(self):
        """Return the filters by name."""
        return {"policy_violations": policy_violations}
