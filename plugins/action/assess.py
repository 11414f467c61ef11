# Copyright: (c) 2026, Bulwark contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Judge a host against the controls of its roles and write the evidence record (documented in modules/assess.py)."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import tempfile
import time
from pathlib import Path

from ansible.errors import AnsibleActionFail, AnsibleConnectionFailure, AnsibleError
from ansible.plugins.action import ActionBase
from ansible.release import __version__ as ansible_version
from ansible.template import trust_as_template
from ansible_collections.bulwark.hardening.plugins.plugin_utils.judge import (
    STATUSES,
    clock_of,
    judge,
    names_in,
    tally,
    unjudged,
)
from ansible_collections.bulwark.hardening.plugins.plugin_utils.policy import (
    PROFILES,
    ROOT,
    PolicyError,
    all_roles,
    controls_of,
    meant_for,
    options_of,
    read_yaml,
)


class ActionModule(ActionBase):
    """Observe one host, judge it, write its record."""

    TRANSFERS_FILES = False
    _supports_check_mode = True
    _supports_async = False

    def run(self, tmp=None, task_vars=None):
        """Return statuses, scores and the path of the record; an unreachable host is a result, not an abort."""
        result = super().run(tmp, task_vars)
        _result, args = self.validate_argument_spec(
            argument_spec={
                "roles": {"type": "list", "elements": "str"},
                "profile": {"type": "str", "choices": list(PROFILES), "default": "server"},
                "run_dir": {"type": "path"},
                "exceptions": {"type": "list", "elements": "dict", "default": []},
                "fail_on": {"type": "list", "elements": "str", "choices": list(STATUSES), "default": []},
            }
        )
        roles = args["roles"] or all_roles()
        unknown = sorted(set(roles) - set(all_roles()))
        if unknown:
            raise AnsibleActionFail(f"roles = {unknown}: unknown; known are {', '.join(all_roles())}")
        try:
            controls = [control for role in roles for control in controls_of(role)]
        except PolicyError as exc:
            raise AnsibleActionFail(f"the controls cannot be read: {exc}") from exc

        # What is only meant for other kinds of host is not even looked at.
        wanted = {control["posture"] for control in controls if meant_for(control, args["profile"])}
        seen = self._observe(sorted(wanted), task_vars)
        variables = self._role_variables(roles, task_vars)
        parameters = self._parameters(roles, variables, task_vars)
        if seen["status"] == "assessed":
            entries = self._judge(controls, seen, variables, args, task_vars)
        else:
            entries = [unjudged(control, seen["reason"]) for control in controls]
        counts, score = tally(entries)
        record = self._record(args, roles, seen, entries, parameters, task_vars["inventory_hostname"])
        record.update(counts=counts, score=score)
        result.update(
            changed=False,
            status=seen["status"],
            statuses={entry["id"]: entry["status"] for entry in entries},
            reasons={entry["id"]: entry["why"] for entry in entries if entry["why"]},
            counts=counts,
            score=score,
            record=self._write(args["run_dir"], record) if args["run_dir"] else "",
        )
        bad = [entry for entry in entries if entry["status"] in args["fail_on"]]
        if bad:
            lines = [f"- {entry['id']}: {entry['status']}: {entry['why'] or entry['title']}" for entry in bad]
            result.update(failed=True, msg="\n".join([f"{len(bad)} of {len(entries)} controls:", *lines]))
        return result

    def _observe(self, collectors: list[str], task_vars: dict) -> dict:
        """Return what the posture module saw, with a `status` of assessed, unreachable or failed and a `reason`."""
        try:
            seen = self._execute_module(
                module_name="bulwark.hardening.posture", module_args={"collectors": collectors}, task_vars=task_vars
            )
        except AnsibleConnectionFailure as exc:
            return {"status": "unreachable", "reason": f"Unreachable: {exc}"}
        except AnsibleError as exc:
            return {"status": "failed", "reason": f"Could not be looked at: {exc}"}
        if seen.get("unreachable"):
            return {"status": "unreachable", "reason": f"Unreachable: {seen.get('msg', '')}"}
        if seen.get("failed") or "posture" not in seen:
            said = seen.get("msg") or seen.get("module_stderr") or "the posture module returned nothing"
            return {"status": "failed", "reason": f"Could not be looked at: {said}"}
        return {**seen, "status": "assessed", "reason": ""}

    def _role_variables(self, roles: list[str], task_vars: dict) -> dict:
        """Return the roles' public variables as they are for this host: role defaults, then the host's own."""
        variables: dict = {}
        for role in roles:
            path = str(ROOT / "roles" / role / "defaults" / "main.yml")
            variables.update(self._loader.load_from_file(path, trusted_as_template=True) or {})
            # vars/main.yml holds what the role works out from its variables (names start with __), if it has one
            if os.path.exists(internal := str(ROOT / "roles" / role / "vars" / "main.yml")):
                variables.update(self._loader.load_from_file(internal, trusted_as_template=True) or {})
        variables.update({name: value for name, value in task_vars.items() if name in variables})
        return variables

    def _judge(self, controls: list[dict], seen: dict, variables: dict, args: dict, task_vars: dict) -> list[dict]:
        # A role's variable may be made of others of the host, a site's own ones.
        scope = {**task_vars, **variables, "posture": seen["posture"]}
        templar = self._templar.copy_with_new_env(available_variables=scope)

        def evaluate(condition: str) -> bool:
            return templar.evaluate_conditional(trust_as_template(condition))

        def show(expression: str) -> object:
            return templar.evaluate_expression(trust_as_template(expression))

        named = {n for control in controls for c in control["expect"] for n in names_in(c)[1]}
        plain = {name: templar.template(variables[name]) for name in named & set(variables)}
        secret = {
            n for role in {c["id"].split(".")[0] for c in controls} for n, spec in options_of(role).items() if spec.get("no_log")
        }
        plain = {name: "(hidden)" if name in secret else value for name, value in plain.items()}
        host = task_vars["inventory_hostname"]
        return [
            judge(control, seen["posture"], seen["errors"], plain, args["profile"], evaluate, args["exceptions"], host, show=show)
            for control in controls
        ]

    def _parameters(self, roles: list[str], variables: dict, task_vars: dict) -> dict:
        """Return the roles' public variables, resolved; secrets and what only makes sense inside the role are not shown."""
        templar = self._templar.copy_with_new_env(available_variables={**task_vars, **variables})
        shown = {}
        for name, spec in (item for role in roles for item in options_of(role).items() if item[0] in variables):
            try:
                shown[name] = "(hidden)" if spec.get("no_log") else templar.template(variables[name])
            except AnsibleError:
                shown[name] = "(set by the role as it runs)"
        return shown

    def _record(self, args, roles, seen, entries, parameters, host) -> dict:
        return {
            "schema": "bulwark.host/1",
            "run_id": os.path.basename(args["run_dir"]) if args["run_dir"] else "",
            "host": host,
            "status": seen["status"],
            "reason": seen["reason"],
            "profile": args["profile"],
            "roles": roles,
            "identity": seen.get("identity", {}),
            "tool": {
                "collection": "bulwark.hardening",
                "version": collection_version(),
                "ansible_core": ansible_version,
                "python": platform.python_version(),
            },
            "revision": revision(),
            "observed_at": seen.get("observed_at", ""),
            "clock": clock_of(seen.get("posture", {}), seen.get("observed_at", "")),
            "assessed_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "parameters": parameters,
            "controls": entries,
            "posture": seen.get("posture", {}),
            "posture_errors": seen.get("errors", {}),
        }

    def _write(self, run_dir: str, record: dict) -> str:
        """Write the record atomically, readable by its owner only, and return its path."""
        # A host's name is the inventory's; it must not lead out of the directory.
        path = Path(run_dir, "hosts", record["host"].replace("/", "_") + ".json")
        Path(run_dir).mkdir(mode=0o700, parents=True, exist_ok=True)
        path.parent.mkdir(mode=0o700, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=path.parent, prefix=".", encoding="utf-8", delete=False) as stream:
            json.dump(record, stream, indent=1, sort_keys=True, default=str)
            stream.write("\n")
        os.replace(stream.name, path)
        return str(path)


def collection_version() -> str:
    """Return the collection's version, from the manifest of an installed one or the clone's galaxy.yml."""
    manifest = ROOT / "MANIFEST.json"
    if manifest.exists():
        return json.loads(manifest.read_text(encoding="utf-8"))["collection_info"]["version"]
    return str(read_yaml(ROOT / "galaxy.yml")["version"])


def revision() -> str:
    """Return the git revision of a clone (with -dirty when files differ from it), or an empty string elsewhere."""
    if not (ROOT / ".git").exists():
        return ""
    done = subprocess.run(
        ["git", "-C", str(ROOT), "describe", "--always", "--abbrev=40", "--dirty"], check=False, capture_output=True, text=True
    )
    return done.stdout.strip() if done.returncode == 0 else ""
