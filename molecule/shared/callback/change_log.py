# SPDX-License-Identifier: GPL-3.0-or-later
"""Record what check mode said it would change, and what the converge after it did change."""

from __future__ import annotations

DOCUMENTATION = """
name: change_log
type: aggregate
short_description: Records changes of converge runs, for comparing check mode with the truth
description:
  - Writes predicted.json (check mode) and converged.json (the first real run) beside Molecule's own state.
requirements:
  - Enabled in the configuration; only runs of converge.yml under Molecule are recorded.
"""

import json
import os
from pathlib import Path

from ansible import context
from ansible.plugins.callback import CallbackBase


class CallbackModule(CallbackBase):
    """Keep, for each host and task, whether it changed something and the difference it showed."""

    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "aggregate"
    CALLBACK_NAME = "change_log"
    CALLBACK_NEEDS_ENABLED = True

    def __init__(self):
        """Start with nothing seen."""
        super().__init__()
        self.playbook = ""
        self.changes = {}

    def v2_playbook_on_start(self, playbook):
        """Remember which playbook runs."""
        self.playbook = os.path.basename(playbook._file_name)

    def v2_runner_on_ok(self, result):
        """Keep one task's outcome on one host."""
        outcome = result._result
        if outcome.get("changed"):
            task = f"{result._task.get_name()} ({os.path.basename(str(result._task.get_path()))})"
            entry = {"task": task, "diff": self._differences(outcome)}
            self.changes.setdefault(result._host.get_name(), []).append(entry)

    def v2_playbook_on_stats(self, stats):
        """Write the record: every check run anew, of the real runs only the first after it."""
        state = os.environ.get("MOLECULE_EPHEMERAL_DIRECTORY")
        if not state or self.playbook != "converge.yml":
            return
        if context.CLIARGS["check"]:
            Path(state, "predicted.json").write_text(json.dumps(self.changes, indent=1, sort_keys=True))
            Path(state, "converged.json").unlink(missing_ok=True)
        elif not Path(state, "converged.json").exists():
            Path(state, "converged.json").write_text(json.dumps(self.changes, indent=1, sort_keys=True))

    @staticmethod
    def _differences(outcome) -> list:
        """Return what a task showed as before and after; a package's "prepared" output is not comparable and left out."""
        shown = outcome.get("diff") or []
        shown = shown if isinstance(shown, list) else [shown]
        kept = [{key: d[key] for key in ("before_header", "before", "after_header", "after") if key in d} for d in shown if d]
        return [json.loads(json.dumps(d, default=str)) for d in kept if d]
