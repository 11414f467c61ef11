# Copyright: (c) 2026, Bulwark contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Arm the guard of an access change, and confirm it over a new connection (documented in modules/change_guard.py)."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

from ansible.errors import AnsibleConnectionFailure, AnsibleError
from ansible.plugins.action import ActionBase

PATIENCE = 30  # seconds for a new connection: sshd may just be starting anew
PAUSE = 2  # seconds between two attempts
FRESH = "-o ControlMaster=no -o ControlPath=none"


class ActionModule(ActionBase):
    """Ask the host; where it wants a new connection, make one beside the old."""

    TRANSFERS_FILES = False
    _supports_check_mode = True
    _supports_async = False

    def run(self, tmp=None, task_vars=None):
        """Return what the module says; a confirmation that cannot come in anew is taken back at once if that is possible."""
        result = super().run(tmp, task_vars)
        args = dict(self._task.args)
        if args.get("state") == "armed" and args.get("window_seconds") is None and "bulwark_guard_window_seconds" in task_vars:
            args["window_seconds"] = self._templar.template(task_vars["bulwark_guard_window_seconds"])
        first = self._ask(args, task_vars)
        if not first.pop("needs_new_connection", False):
            result.update(first)
            return result
        result.update(self._come_in_anew(args, task_vars, first))
        return result

    def _ask(self, args: dict, task_vars: dict) -> dict:
        return self._execute_module(module_name="bulwark.hardening.change_guard", module_args=args, task_vars=task_vars)

    def _come_in_anew(self, args: dict, task_vars: dict, first: dict) -> dict:
        """Say it again over a new connection. If none comes about, take the change back over the old one, which is still open."""
        began = time.monotonic()
        with self._beside():
            while True:
                said, why = self._try(args, task_vars)
                if not why or time.monotonic() - began > min(PATIENCE, first["seconds_left"]):
                    break
                time.sleep(PAUSE)
        if not why:
            self._connection.reset()  # what follows takes the way that has just been proven
            said.pop("needs_new_connection", None)
            return said
        if args["state"] != "confirmed":
            return {**first, "failed": True, "msg": f"{first['msg']}. No new one came about, so nothing was changed: {why}"}
        said, broken = self._try({"state": "rolled_back"}, task_vars)
        if not broken and said.get("guard") == "idle" and said.get("report"):
            told = f"The change was taken back at once, over the connection that was still open, at {said['report']['at']}."
            if said.get("failed"):
                told += f" {said['msg']}"
            outcome = {**said, "rolled_back_at_once": True}
        else:
            left = max(0, round(first["seconds_left"] - (time.monotonic() - began)))
            told = f"The host takes the change back by itself in {left} seconds."
            outcome = {**first, "rolled_back_at_once": False, "seconds_left": left}
        return {**outcome, "failed": True, "msg": f"Nobody could come in after the change: {why}. {told}"}

    def _try(self, args: dict, task_vars: dict) -> tuple[dict, str]:
        """Ask once; return (what the module said, "") or ({}, why it could not be asked)."""
        try:
            said = self._ask(args, task_vars)
        except (AnsibleConnectionFailure, AnsibleError) as exc:
            return {}, " ".join(str(exc).split())
        if said.get("unreachable") or "guard" not in said:  # no way in, or in but not root
            why = said.get("msg") or said.get("module_stderr") or said.get("module_stdout") or "the module returned nothing"
            return {}, " ".join(str(why).split())
        return said, ""

    @contextlib.contextmanager
    def _beside(self) -> Iterator[None]:
        """Have the connection plugin make a new connection each time, the old one left alone; other plugins begin anew."""
        if self._connection.transport != "ssh":
            self._connection.reset()
            yield
            return
        usual = self._connection.get_option("ssh_args")
        self._connection.set_option("ssh_args", f"{FRESH} {usual or ''}")  # the first one said counts
        try:
            yield
        finally:
            self._connection.set_option("ssh_args", usual)
