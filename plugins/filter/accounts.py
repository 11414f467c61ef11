# Copyright: (c) 2026, Bulwark contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
name: account_findings
author: Bulwark contributors (@bulwark)
version_added: 0.1.0
short_description: Say what is wrong with observed or declared accounts
description:
  - Applies one rule to accounts that the C(accounts) collector observed (or to declared ones).
  - The role's module applies the same rules on the host; here they judge what was observed.
options:
  _input:
    description: Observed accounts; for V(declaration) and V(shared_owner) the entries of C(accounts_users).
    type: list
    elements: dict
    required: true
  rule:
    description: What to look for.
    type: str
    required: true
    choices:
      - declaration
      - dormant
      - open_service
      - open_system
      - overdue
      - refused_names
      - shared_owner
      - unapproved
      - undeclared
      - unlimited
  users:
    description: Entries of C(accounts_users).
    type: list
    elements: dict
  accounts:
    description: Observed accounts, for V(shared_owner), whose input is C(accounts_users).
    type: list
    elements: dict
  exempt:
    description: Entries of C(accounts_system_exempt), for V(open_system).
    type: list
    elements: dict
  generic:
    description: Generic names of the site, for V(refused_names) and V(declaration).
    type: list
    elements: str
  pattern:
    description: Form of a person's login name, for V(refused_names) and V(declaration).
    type: str
  approvers:
    description: Who may approve accounts, for V(unapproved).
    type: list
    elements: str
  days:
    description: Limit in days, for V(dormant), V(overdue) and V(unlimited).
    type: int
  notice_days:
    description: Days an account stays disabled before it is removed, for V(overdue).
    type: int
  now:
    description: The host's time in seconds since 1970, for V(dormant), V(overdue) and V(unlimited).
    type: int
  lost_at:
    description: When login records were lost, in seconds since 1970, or nothing, for V(dormant) and V(overdue).
    type: int
  temporary_days:
    description: Days a temporary account may last, for V(declaration).
    type: int
  windows:
    description: Days until an unused account is disabled, and removed, for V(declaration).
    type: list
    elements: int
positional: rule
"""

EXAMPLES = r"""
- name: Who is here that nobody declared?
  ansible.builtin.debug:
    msg: "{{ posture.accounts.people | bulwark.hardening.account_findings('undeclared', users=accounts_users) }}"
"""

RETURN = r"""
_value:
  description: One sentence for each finding, beginning with the account's name; empty when all is well.
  type: list
  elements: str
"""

import datetime
import inspect

from ansible.errors import AnsibleFilterError
from ansible_collections.bulwark.hardening.plugins.module_utils import accounts as rules

RULES = {
    "declaration": rules.declaration_problems,
    "dormant": rules.find_dormant,
    "open_service": rules.find_open_service,
    "open_system": rules.find_open_system,
    "overdue": rules.find_overdue,
    "refused_names": rules.find_refused_names,
    "shared_owner": rules.find_shared_owner,
    "unapproved": rules.find_unapproved,
    "undeclared": rules.find_undeclared,
    "unlimited": rules.find_unlimited,
}


def account_findings(subject, rule, **settings):
    """Return the findings of one rule; errors: unknown rule, a setting missing or unknown, no list of accounts."""
    if rule not in RULES:
        raise AnsibleFilterError(f"account_findings: rule = {rule!r}: unknown; known are {', '.join(RULES)}")
    if isinstance(subject, str) or not hasattr(subject, "__iter__"):
        raise AnsibleFilterError(f"account_findings expects a list of accounts, not {type(subject).__name__}")
    if "today" in inspect.signature(RULES[rule]).parameters:
        settings["today"] = datetime.datetime.now(datetime.UTC).date()
    try:
        return RULES[rule](subject, **settings)
    except (TypeError, KeyError) as exc:
        raise AnsibleFilterError(f"account_findings: {rule}: {type(exc).__name__}: {exc}") from exc


class FilterModule:
    """Rules over accounts."""

    def filters(self):
        """Return the filters of this file."""
        return {"account_findings": account_findings}
