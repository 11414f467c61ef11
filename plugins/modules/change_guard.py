#!/usr/bin/python
# Copyright: (c) 2026, Bulwark contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: change_guard
short_description: Have a host take back an access change by itself unless it is confirmed in time
version_added: 0.1.0
description:
  - Before a change of sshd, PAM, sudo, the packet filter, Duo or the VPN, O(state=armed) takes a snapshot of all of them and
    starts a timer on the host. After the change, O(state=confirmed) comes in anew and only then calls the timer off. If that
    does not happen in time, for whatever reason, the host puts everything back by itself. So does a host that is started anew
    in between.
  - A confirmation counts only over a connection that was made after the change. The host itself sees to that, by the age of
    sshd's process for the connection. The connection that was there before, which a change does not end, proves nothing.
  - If nothing differs from the snapshot, the guard is taken away at once, over the connection that is there.
  - If the new connection does not come about, and the old one is still open, the change is taken back at once over that.
  - A guard that is armed already, as a run that was killed leaves one, is adopted. The older snapshot is kept, being the last
    state that somebody confirmed, and the window begins anew. Over SSH this too takes a connection that is younger than the
    guard; the plugin makes one. RV(adopted) and a warning say whose guard it was. Two runs on one host at the same time thus
    share one guard; whoever confirms first confirms for both, and the other is told that no guard is armed.
  - To snapshot and back belong the configuration of SSH, PAM, sudo, OpenVPN, systemd's units, the packet filter's
    tables and what M(bulwark.hardening.config_set) owns or comes to own, wherever it lies, and whether SSH's, OpenVPN's and
    Bulwark's units are active. Not the accounts, their groups, passwords and keys, nor installed packages.
author:
  - Bulwark contributors (@bulwark)
options:
  state:
    description:
      - V(armed) takes the snapshot and starts the timer.
      - V(confirmed) keeps the change. Fails if no guard is armed, saying what became of it.
      - V(rolled_back) has the host take the change back now. Nothing is done if no guard is armed.
      - V(status) only looks.
    type: str
    choices: [armed, confirmed, rolled_back, status]
    required: true
  window_seconds:
    description:
      - With O(state=armed), the seconds within which the confirmation must come, 60 to 3600.
      - Unless given, the variable C(bulwark_guard_window_seconds), or else 600.
      - It must be longer than the whole run takes between arming and confirming.
    type: int
  paths:
    description:
      - With O(state=armed), further files and directories to put back, absolute.
      - Other file systems mounted below a directory are left out.
    type: list
    elements: str
    default: []
  units:
    description:
      - With O(state=armed), further units to bring back to active or not. They are started anew if any file was put back.
      - C(nftables.service) is never stopped or started, for that would flush the tables of others.
    type: list
    elements: str
    default: []
attributes:
  check_mode:
    description: Says how things stand.
    support: partial
    details: Only V(status) does anything in check mode; arming, confirming and rolling back are left out.
  diff_mode:
    description: What differs from the snapshot is in RV(differs).
    support: none
notes:
  - Requires systemd on the host.
  - Arming and confirming report no change, for all they put on the host is gone after the confirmation.
  - Tables that C(iptables-nft) wrote cannot be put back; RV(notes) names them.
seealso:
  - module: bulwark.hardening.config_set
  - module: bulwark.hardening.ssh_admission
"""

EXAMPLES = r"""
- name: Come back by itself if this shuts us out
  bulwark.hardening.change_guard:
    state: armed
    window_seconds: 300
    paths: [/etc/fail2ban]
    units: [fail2ban.service]

- name: Change something about the access
  ansible.builtin.copy:
    src: jail.local
    dest: /etc/fail2ban/jail.local
    owner: root
    group: root
    mode: "0644"

- name: Come in anew, then keep the change
  bulwark.hardening.change_guard:
    state: confirmed
"""

RETURN = r"""
guard:
  description: What the guard is at the end, C(idle), C(armed) or C(rolling back).
  type: str
  returned: always
  sample: armed
seconds_left:
  description: Seconds until the change is taken back.
  type: int
  returned: always
  sample: 598
since:
  description: Since when, in UTC, there has been an unconfirmed change; empty if there is none.
  type: str
  returned: always
  sample: "2026-03-01T09:30:00Z"
account:
  description: The account that last armed the guard.
  type: str
  returned: always
  sample: deploy
address:
  description: The address it came from; empty if not over SSH.
  type: str
  returned: always
  sample: 192.0.2.10
differs:
  description: What differs from the snapshot; with O(state=confirmed) what was kept.
  type: dict
  returned: always
  sample: {files: [/etc/ssh/sshd_config.d/00-bulwark.conf], tables: [inet bulwark], units: []}
adopted:
  description: Whose guard was adopted, C({since, armed_at, account, address}); empty if none was.
  type: dict
  returned: with O(state=armed)
notes:
  description: What a rollback would not be able to put back.
  type: list
  elements: str
  returned: with O(state=armed)
report:
  description:
    - What the last rollback did, C({at, why, since, armed_at, account, address, files, tables, units, problems}); empty if
      there was none since the last confirmation.
  type: dict
  returned: always
over_ssh:
  description: Whether the connection came in over SSH. If not, there is no way in that a confirmation could prove.
  type: bool
  returned: when not idle in check mode
  sample: true
rolled_back_at_once:
  description: Whether the change was taken back over the old connection, as no new one came about.
  type: bool
  returned: when a confirmation failed
  sample: true
"""

import contextlib

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.bulwark.hardening.plugins.module_utils import change_guard as guard
from ansible_collections.bulwark.hardening.plugins.module_utils import config_set as core
from ansible_collections.bulwark.hardening.plugins.module_utils.posture.common import CannotObserve
from ansible_collections.bulwark.hardening.plugins.module_utils.way_in import began, way_in

WINDOW = (60, 3600)  # seconds
TOO_MUCH = ("/bin", "/boot", "/etc", "/home", "/lib", "/opt", "/root", "/run", "/sbin", "/srv", "/tmp", "/usr", "/var")


def sources() -> dict[str, str]:
    """Return the text of the program that is put on the host, by the names of its parts."""
    parts = {"change_guard": guard, "config_set": core}
    return {name: part.__loader__.get_source(part.__name__) for name, part in parts.items()}


def check_paths(paths: list[str]) -> list[str]:
    """Return the paths with links above them resolved; Refused for what no guard should hold."""
    for path in paths:
        core.check_path(path, "paths")
        if path in TOO_MUCH or core.inside(guard.DIRECTORY, path):
            raise core.Refused(f"paths = {path!r}: is more than an access path; name what lies below")
    return [core.resolve(path) for path in paths]


def arm(module: AnsibleModule, since: float | None) -> dict:
    """Arm the guard; return what becomes part of the result."""
    params = module.params
    window = 600 if params["window_seconds"] is None else params["window_seconds"]
    if not WINDOW[0] <= window <= WINDOW[1]:
        raise core.Refused(f"window_seconds = {window}: must be {WINDOW[0]} to {WINDOW[1]} seconds")
    for unit in params["units"]:
        if not unit or unit.startswith("-") or any(char.isspace() or not char.isprintable() for char in unit):
            raise core.Refused(f"units = {unit!r}: is not the name of a unit")
    paths = check_paths(params["paths"])
    way = None
    with contextlib.suppress(CannotObserve):
        way = way_in()
    who = {"account": way["account"] if way else "", "address": way["address"] if way else ""}
    done = guard.arm(sources(), window, paths, params["units"], who, since)
    if done["adopted"]:
        other = done["adopted"]
        whose = f"{other['account'] or 'somebody'} from {other['address'] or 'the host itself'}"
        module.warn(
            f"A guard armed at {other['armed_at']} by {whose} was never confirmed. It is adopted: "
            f"a rollback goes back to before {other['since']}."
        )
    if done["report"]:
        report = done["report"]
        module.warn(f"The change begun at {report['since']} was taken back at {report['at']}, {report['why']}.")
    return {"adopted": done["adopted"], "notes": done["notes"]}


def roll_back(module: AnsibleModule) -> bool:
    """Have the host roll back now, in a unit of its own; return whether there was anything to do."""
    unit = guard.request_rollback("as was asked for")
    if not unit:
        return False
    if guard.call(["systemctl", "start", unit], seconds=300)[0] and guard.status()["guard"] != "idle":
        guard.roll_back()  # the timer did not survive, after a boot say
    return True


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "state": {"type": "str", "choices": ["armed", "confirmed", "rolled_back", "status"], "required": True},
            "window_seconds": {"type": "int"},
            "paths": {"type": "list", "elements": "str", "default": []},
            "units": {"type": "list", "elements": "str", "default": []},
        },
        supports_check_mode=True,
    )
    state = module.params["state"]
    if module.check_mode and state != "status":
        module.exit_json(changed=False, guard="idle", seconds_left=0, since="", account="", address="", differs={}, report={})
    result: dict = {"changed": False}
    try:
        since = began()
    except CannotObserve as exc:
        module.fail_json(msg=f"this is an SSH connection, and since when cannot be told: {exc}", **guard.status())
    result["over_ssh"] = since is not None
    kept: dict = {}
    try:
        if state == "armed":
            result.update(arm(module, since))
        elif state == "confirmed":
            kept = guard.confirm(since)
        elif state == "rolled_back":
            result["changed"] = roll_back(module)
    except guard.NewConnectionNeeded as exc:
        module.fail_json(msg=f"Refused: {exc}", needs_new_connection=True, **result, **guard.status())
    except (core.Refused, core.Failed, OSError) as exc:
        with contextlib.suppress(core.Refused, OSError):
            result.update(guard.status())
        module.fail_json(msg=str(exc), **result)
    result.update(guard.status())
    if kept:
        result["differs"] = kept
    if state == "rolled_back" and result["report"].get("problems"):
        module.fail_json(msg=f"Not everything could be put back: {'; '.join(result['report']['problems'])}", **result)
    module.exit_json(**result)


if __name__ == "__main__":
    main()
