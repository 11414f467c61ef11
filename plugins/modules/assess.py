#!/usr/bin/python
# Copyright: (c) 2026, Bulwark contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: assess
short_description: Judge a host against the controls of its roles and write the evidence record
version_added: 0.1.0
description:
  - Observes the host with M(bulwark.hardening.posture) in one round trip, then judges what was seen against the controls in
    C(roles/<role>/meta/controls.yml), with Ansible's own conditionals over the posture and the host's variables.
  - A control becomes C(pass), C(fail), C(error) (it could not be observed, which is never a pass), C(not_applicable) or
    C(exception).
  - A host that cannot be reached, or where privileges cannot be gained, gets a record too, with every control as C(error).
  - Changes nothing on the host. With O(run_dir), one JSON record a host is written on the controller.
author:
  - Bulwark contributors (@bulwark)
options:
  roles:
    description: Roles whose controls are judged. All roles of the collection that have controls, unless given.
    type: list
    elements: str
  profile:
    description: What kind of host this is; controls meant for other kinds are C(not_applicable).
    type: str
    choices: [server, workstation, gateway, collector, repository]
    default: server
  run_dir:
    description: Directory on the controller for this run's evidence; its name is the run id. Nothing is written without it.
    type: path
  exceptions:
    description: Controls knowingly not met. An incomplete or expired exception changes nothing but the explanation.
    type: list
    elements: dict
    default: []
    suboptions:
      control: {description: Id of the control., type: str}
      parameter: {description: Variable whose policy bound is lifted instead., type: str}
      hosts: {description: Hosts it holds for; every host unless given., type: list, elements: str}
      approver: {description: Who approved it., type: str}
      approver_role: {description: In which role they approved it., type: str}
      reason: {description: Why the control is not met., type: str}
      compensating: {description: What is done instead., type: str}
      ticket: {description: Where the decision is recorded., type: str}
      expires: {description: Last day it counts (YYYY-MM-DD)., type: str}
  fail_on:
    description: The task fails when a control ends in one of these statuses.
    type: list
    elements: str
    choices: [pass, fail, error, not_applicable, exception]
    default: []
attributes:
  check_mode:
    description: Only observes, so check mode makes no difference; the record on the controller is written all the same.
    support: full
  diff_mode:
    description: Nothing is changed on the host, so there is no difference to show.
    support: none
seealso:
  - module: bulwark.hardening.posture
  - module: bulwark.hardening.evidence_report
"""

EXAMPLES = r"""
- name: Gate a release on the session controls
  bulwark.hardening.assess:
    roles: [session]
    fail_on: [fail, error]
"""

RETURN = r"""
status:
  description: C(assessed), C(unreachable) or C(failed) (reached, but could not be looked at).
  type: str
  returned: always
statuses:
  description: The status of each control, by id.
  type: dict
  returned: always
  sample: {session.idle_shell: pass}
reasons:
  description: Why a control did not pass, by id.
  type: dict
  returned: always
counts:
  description: Number of controls by status.
  type: dict
  returned: always
score:
  description: Share of the applicable controls that hold, before and after exceptions; null when none applies.
  type: dict
  returned: always
  sample: {before_exceptions: 0.9, after_exceptions: 1.0}
record:
  description: Path of the evidence record on the controller, or an empty string.
  type: str
  returned: always
"""
