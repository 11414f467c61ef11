# Copyright: (c) 2026, Bulwark contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Make audit rules from declared intents, and bring rules into one form in which they can be compared."""

from __future__ import annotations

from ansible.errors import AnsibleFilterError
from ansible_collections.bulwark.hardening.plugins.module_utils import audit


def audit_rules(intents, wanted_class, machine, release, present):
    """Return the rules of intents for a class of host, as auditctl takes them."""
    try:
        return audit.rules(intents, wanted_class, machine, int(release), present)
    except (KeyError, TypeError) as exc:
        raise AnsibleFilterError(f"audit_rules: an intent lacks {exc}") from exc


def audit_normalised(lines):
    """Return rules in the form that the collector gives them."""
    try:
        return [audit.normalised(line) for line in lines]
    except audit.AuditError as exc:
        raise AnsibleFilterError(f"audit_normalised: {exc}") from exc


def audit_objections(lines):
    """Return why rules of a site's own cannot be taken, one sentence each."""
    return audit.objections(lines)


class FilterModule:
    """Filters about the audit system."""

    def filters(self):
        """Return the filters by name."""
        return {"audit_normalised": audit_normalised, "audit_objections": audit_objections, "audit_rules": audit_rules}
