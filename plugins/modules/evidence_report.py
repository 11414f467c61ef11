#!/usr/bin/python
# Copyright: (c) 2026, Bulwark contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: evidence_report
short_description: Write the run record, the CSV and the HTML report of a run
version_added: 0.1.0
description:
  - Reads the host records that M(bulwark.hardening.assess) wrote into one run's directory and writes C(run.json),
    C(controls.csv) and C(report.html) beside them. C(latest), beside the run's directory, then leads to the run.
  - The report is one file without any outside part; it can be mailed, archived and read without a network.
  - A host that was expected and has no record is reported as failed. So is a host whose record is torn, belongs to another run
    or contradicts itself. No host is ever left out.
  - Each file is replaced in one step; a reader sees the old one or the new one, never half of one.
author:
  - Bulwark contributors (@bulwark)
options:
  run_dir:
    description:
      - Directory of the run, which holds C(hosts/*.json). Its last part is the run id, such as C(20261121T235959Z-3f9c).
    type: path
    required: true
  inventory_hosts:
    description: Names of all hosts that should have been assessed.
    type: list
    elements: str
    required: true
  excluded:
    description:
      - Hosts that were left out on purpose, each with the reason. They are listed, but count neither for nor against.
      - A host with an empty reason is refused. A host that has an assessment all the same is reported with it.
    type: dict
    default: {}
  roles:
    description:
      - The roles of each host, by host. Gives a host without a record its controls, each with status C(error).
      - A host whose roles are not given counts as many errors as the longest list of controls in the run has entries.
    type: dict
    default: {}
  parameters:
    description:
      - Parameters of the run, kept in C(run.json) and shown in the report beside the roles' variables from the hosts' records.
      - Values whose names say that they are secret are withheld.
    type: dict
    default: {}
attributes:
  action:
    description: Runs on the controller.
    support: full
  check_mode:
    description: Computes everything and writes nothing.
    support: full
  connection:
    description: No connection to the host is used.
    support: none
  diff_mode:
    description: Evidence is written anew by each run, so there is no difference to show.
    support: none
seealso:
  - module: bulwark.hardening.assess
"""

EXAMPLES = r"""
- name: Write the evidence of this run
  bulwark.hardening.evidence_report:
    run_dir: "{{ playbook_dir }}/../evidence/20261121T235959Z-3f9c"
    inventory_hosts: "{{ groups['all'] }}"
    excluded:
      ward-printer: Belongs to the vendor until its contract ends; see ticket 4711.
  run_once: true
  register: evidence

- name: Say what it shows
  ansible.builtin.debug:
    msg: "{{ evidence.summary }} {{ evidence.report }}"
"""

RETURN = r"""
run_id:
  description: Id of the run.
  type: str
  returned: success
  sample: 20261121T235959Z-3f9c
run:
  description: Path of the run record.
  type: str
  returned: success
  sample: /srv/bulwark/evidence/20261121T235959Z-3f9c/run.json
csv:
  description: Path of the CSV.
  type: str
  returned: success
  sample: /srv/bulwark/evidence/20261121T235959Z-3f9c/controls.csv
report:
  description: Path of the HTML report.
  type: str
  returned: success
  sample: /srv/bulwark/evidence/20261121T235959Z-3f9c/report.html
latest:
  description: Path of the symbolic link that leads to the newest run.
  type: str
  returned: success
  sample: /srv/bulwark/evidence/latest
counts:
  description: Control results of all hosts by status, with those assumed for hosts whose controls are unknown.
  type: dict
  returned: success
  sample: {pass: 40, fail: 2, error: 21, not_applicable: 3, exception: 1}
hosts:
  description: Number of hosts by status.
  type: dict
  returned: success
  sample: {unreachable: 1, failed: 0, assessed: 2, excluded: 0}
score:
  description: Share of control results that are met, from 0 to 1, before and after exceptions; null when none applied.
  type: dict
  returned: success
  sample: {before_exceptions: 0.625, after_exceptions: 0.641}
summary:
  description: What the run shows, in plain words.
  type: str
  returned: success
  sample: 40 of 64 control results met; 2 not met, 21 could not be observed and 1 not met under an approved exception.
problems:
  description: What was wrong with the records that were found or missing.
  type: list
  elements: str
  returned: success
  sample: [server-c has no record]
"""
