# Copyright: (c) 2026, Bulwark contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Write the evidence of a run on the controller; options and return values are documented in the module of this name."""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import json
import os
import platform
import tempfile
from pathlib import Path
from typing import Any

from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase
from ansible.release import __version__ as ansible_core_version
from ansible_collections.bulwark.hardening.plugins.action.assess import collection_version, revision
from ansible_collections.bulwark.hardening.plugins.plugin_utils import judge, policy, report

TEMPLATE = policy.ROOT / "playbooks" / "templates" / "report.html.j2"


class ActionModule(ActionBase):
    """Needs no connection: everything happens in the run's directory."""

    _requires_connection = False
    _supports_check_mode = True
    _supports_async = False

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        result = super().run(tmp, task_vars)
        _result, args = self.validate_argument_spec(
            {
                "run_dir": {"type": "path", "required": True},
                "inventory_hosts": {"type": "list", "elements": "str", "required": True},
                "excluded": {"type": "dict", "default": {}},
                "roles": {"type": "dict", "default": {}},
                "parameters": {"type": "dict", "default": {}},
            }
        )
        directory = Path(args["run_dir"]).absolute()
        run_id = directory.name
        started_at = report.started_at(run_id)
        if started_at is None:
            raise AnsibleActionFail(f"run_dir = {directory}: its last part must be a run id such as 20261121T235959Z-3f9c")
        excluded = {str(host): str(reason or "").strip() for host, reason in args["excluded"].items()}
        if unexplained := sorted(host for host, reason in excluded.items() if not reason):
            raise AnsibleActionFail(f"excluded: {', '.join(unexplained)}: a host is only left out for a reason; give one")

        try:
            register = (policy.ROOT / "policy" / "register.yml").read_bytes()
            requirements = policy.requirements()
            known = {
                str(host): [
                    judge.unjudged(control, "No record: nothing was written about this host in this run.")
                    for role in roles
                    for control in policy.controls_of(str(role))
                ]
                for host, roles in args["roles"].items()
            }
        except (OSError, policy.PolicyError) as exc:
            raise AnsibleActionFail(f"the collection's policy cannot be read: {exc}") from exc

        files = sorted((directory / "hosts").glob("*.json"))
        records, problems = report.gather(
            [(file.stem, _parsed(file)) for file in files],
            map(str, args["inventory_hosts"]),
            excluded,
            run_id,
            known,
        )
        run = report.run_record(
            run_id,
            records,
            problems,
            args["parameters"],
            {
                "started_at": started_at,
                "finished_at": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
                "tool": {
                    "collection": "bulwark.hardening",
                    "version": collection_version(),
                    "ansible_core": ansible_core_version,
                    "python": platform.python_version(),
                },
                "revision": revision(),
                "register_sha256": hashlib.sha256(register).hexdigest(),
            },
        )
        digests = {_host_of(file): (f"hosts/{file.name}", hashlib.sha256(file.read_bytes()).hexdigest()) for file in files}
        for entry in run["inventory"]:
            entry["record"], entry["record_sha256"] = digests.get(entry["host"], (None, None))

        contents = {
            "run.json": json.dumps(run, indent=2) + "\n",
            "controls.csv": report.csv_text(records),
            "report.html": report.render(run, records, TEMPLATE.read_text(encoding="utf-8"), requirements),
        }
        latest = directory.parent / "latest"
        if not self._task.check_mode:
            try:
                directory.mkdir(mode=0o700, parents=True, exist_ok=True)  # not there when no host could be assessed at all
                for name, text in contents.items():
                    _write(directory / name, text)
                _point(latest, run_id)
            except OSError as exc:
                raise AnsibleActionFail(f"the evidence could not be written: {exc}") from exc
        for problem in problems:
            self._display.warning(f"Evidence: {problem}.")
        return {
            **result,
            "changed": True,
            "run_id": run_id,
            "run": str(directory / "run.json"),
            "csv": str(directory / "controls.csv"),
            "report": str(directory / "report.html"),
            "latest": str(latest),
            "counts": run["counts"],
            "hosts": run["hosts"],
            "score": run["score"],
            "summary": " ".join(report.sentences(run)),
            "problems": problems,
        }


def _parsed(file: Path) -> Any:
    """Return a record's content, or None when it cannot be read or is no JSON (NaN and the like are not)."""

    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is not JSON")

    try:
        return json.loads(file.read_text(encoding="utf-8"), parse_constant=refuse)
    except (OSError, ValueError, RecursionError):
        return None


def _host_of(file: Path) -> str:
    content = _parsed(file)
    named = content.get("host") if isinstance(content, dict) else None
    return named if isinstance(named, str) and named else file.stem


def _write(path: Path, text: str) -> None:
    """Write a file, readable by its owner only, so that it is at every moment what it was or all of the new text."""
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(text.encode("utf-8"))
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise


def _point(link: Path, target: str) -> None:
    """Make a symbolic link lead to a target, in one step."""
    temporary = link.with_name(f".latest.{os.getpid()}")
    with contextlib.suppress(FileNotFoundError):
        temporary.unlink()
    temporary.symlink_to(target)
    try:
        os.replace(temporary, link)
    except OSError:
        temporary.unlink()
        raise
