# SPDX-License-Identifier: GPL-3.0-or-later
"""Judge what was seen each time a control was broken: it must be noticed, and nothing may be wrong once all is mended."""

from __future__ import annotations

from ansible.plugins.action import ActionBase
from ansible_collections.bulwark.hardening.plugins.action import assess
from ansible_collections.bulwark.hardening.plugins.plugin_utils.policy import controls_of


class ActionModule(assess.ActionModule):
    """Take the steps on the host in one go; judge here as an assessment does."""

    _supports_check_mode = False

    def run(self, tmp=None, task_vars=None):
        """Fail and name each control that was broken unnoticed, had no sabotage, or fails although mended."""
        result = ActionBase.run(self, tmp, task_vars)
        _result, args = self.validate_argument_spec(
            argument_spec={
                "role": {"type": "str", "required": True},
                "profile": {"type": "str", "required": True},
                "steps": {"type": "list", "elements": "dict", "required": True},
                "not_applicable": {"type": "list", "elements": "str", "required": True},
            }
        )
        steps = args["steps"]
        controls = controls_of(args["role"])
        done = self._execute_module(
            module_name="sabotage",
            module_args={"collectors": sorted({control["posture"] for control in controls}), "steps": steps},
            task_vars=task_vars,
        )
        if done.get("failed"):
            return {**result, **done}
        variables = self._role_variables([args["role"]], task_vars)
        judged = [
            {entry["id"]: entry for entry in self._judge(controls, seen, variables, {**args, "exceptions": []}, task_vars)}
            for seen in done["seen"]
        ]
        wrong = [
            f"{step['control']} is {entries[step['control']]['status']} although broken: {entries[step['control']]['why']}"
            for step, entries in zip(steps, judged, strict=False)
            if entries[step["control"]]["status"] != "fail"
        ]
        for name, entry in judged[-1].items():
            if name in args["not_applicable"]:
                continue
            if name not in {step["control"] for step in steps}:
                wrong.append(f"{name} had no sabotage")
            if entry["status"] != "pass":
                wrong.append(f"{name} is {entry['status']} although mended: {entry['why']}")
        result.update(changed=True, failed=bool(wrong), msg="\n".join(wrong) or f"{len(steps)} acts of sabotage, all noticed")
        return result
