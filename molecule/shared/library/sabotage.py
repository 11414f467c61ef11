#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
"""Break one control after the other on this host and say what the collectors see each time; for scenarios only.

One task does it all: on a guest under emulation, starting a task costs more than breaking a control and looking at it.
"""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
import traceback

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.bulwark.hardening.plugins.module_utils.posture.collectors import look


def shell(module: AnsibleModule, control: str, deed: str, command: str) -> None:
    """Run a command of the scenario's; end the module if it fails."""
    with tempfile.TemporaryFile() as said:  # no pipe: what it starts may go on and would hold it
        argv = ["/bin/sh", "-c", command]
        code = subprocess.run(argv, check=False, stdin=subprocess.DEVNULL, stdout=said, stderr=said).returncode
        said.seek(0)
        if code:
            module.fail_json(msg=f"{control} could not be {deed}: exit {code}: {said.read().decode(errors='replace')}")


def look_afresh(collectors: list[str]) -> dict:
    """Look in a process of its own, as each audit does: nothing it remembers reaches the next."""
    with tempfile.TemporaryFile("w+") as answer:
        child = os.fork()
        if child == 0:
            try:
                posture, errors = look(collectors)
                json.dump({"posture": posture, "errors": errors}, answer)
                answer.flush()
            except Exception:
                traceback.print_exc()  # the parent finds no answer and fails; this says why
            os._exit(0)
        os.waitpid(child, 0)
        answer.seek(0)
        return json.load(answer)


def main() -> None:
    """Break, look, mend, for each; look once more at the end."""
    step = {"control": {"type": "str"}, "break": {"type": "str"}, "mend": {"type": "str"}}
    module = AnsibleModule(
        argument_spec={
            "collectors": {"type": "list", "elements": "str", "required": True},
            "steps": {"type": "list", "elements": "dict", "options": step, "required": True},
        }
    )
    collectors = module.params["collectors"]
    seen = []
    for each in module.params["steps"]:
        shell(module, each["control"], "broken", each["break"])
        seen.append(look_afresh(collectors))
        shell(module, each["control"], "mended", each["mend"])
    module.exit_json(changed=True, seen=[*seen, look_afresh(collectors)])


if __name__ == "__main__":
    main()
