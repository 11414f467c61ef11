# Copyright: (c) 2026, Bulwark contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Refuse variables that the policy does not allow, before anything changes (documented in modules/check_input.py)."""

from __future__ import annotations

import datetime

from ansible.errors import AnsibleActionFail, AnsibleError
from ansible.plugins.action import ActionBase
from ansible_collections.bulwark.hardening.plugins.plugin_utils.policy import (
    PROFILES,
    PolicyError,
    all_roles,
    exception_problem,
    roles_for,
    unset,
    violations,
)


class ActionModule(ActionBase):
    """Check the variables of roles on the controller."""

    TRANSFERS_FILES = False
    _requires_connection = False
    _supports_check_mode = True
    _supports_async = False

    def run(self, tmp=None, task_vars=None):
        """Return the roles and their violations; fails when there is one."""
        result = super().run(tmp, task_vars)
        _result, args = self.validate_argument_spec(
            argument_spec={
                "roles": {"type": "list", "elements": "str", "aliases": ["role"]},
                "profile": {"type": "str", "choices": list(PROFILES), "default": "server"},
            }
        )
        said = []
        try:
            roles = roles_for(args["profile"]) if args["roles"] is None else args["roles"]
            unknown = sorted(set(roles) - set(all_roles()))
            if unknown:
                raise AnsibleActionFail(f"roles = {unknown}: unknown; known are {', '.join(all_roles())}")
            exceptions = self._plain("bulwark_exceptions", task_vars) or []
            said += [problem for e in exceptions if (problem := exception_problem(e, datetime.date.today())) is not None]
            for role in roles:
                said += self._violations(role, task_vars, exceptions)
        except PolicyError as exc:
            raise AnsibleActionFail(f"the policy cannot be read, so nothing may change: {exc}") from exc
        result.update(roles=roles, violations=said)
        if said:
            result.update(failed=True, msg="Refused before anything changed:\n" + "\n".join(f"- {line}" for line in said))
        return result

    def _violations(self, role: str, task_vars: dict, exceptions: list) -> list[str]:
        mine, said = {}, []
        for name in task_vars:
            if not name.startswith(f"{role}_") or name in ("role_name", "role_path", "role_names"):
                continue
            try:
                mine[name] = self._plain(name, task_vars)
            except AnsibleError as exc:
                said.append(f"{name}: cannot be evaluated: {exc}")
        mine["bulwark_foreign_variables"] = self._plain("bulwark_foreign_variables", task_vars)
        return said + unset(role, mine) + violations(role, mine, exceptions)

    def _plain(self, name: str, task_vars: dict):
        """Return a variable's value with its templates resolved, or None when it is not set."""
        return self._templar.template(task_vars[name]) if name in task_vars else None
