#!/usr/bin/python
# Copyright: (c) 2026, Bulwark contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: posture
short_description: Observe what a host really is
version_added: 0.1.0
description:
  - Runs the named collectors and returns what they saw as plain data, in one round trip and without an opinion.
  - Nothing is changed on the host. Secrets such as password hashes or private keys are never returned.
  - A collector that cannot look says so under RV(errors); it never guesses.
author:
  - Bulwark contributors (@bulwark)
options:
  collectors:
    description: Names of the collectors to run; each role has one of its own name.
    type: list
    elements: str
    required: true
attributes:
  check_mode:
    description: Only observes, so check mode makes no difference.
    support: full
  diff_mode:
    description: Nothing is changed, so there is no difference to show.
    support: none
seealso:
  - module: bulwark.hardening.assess
"""

EXAMPLES = r"""
- name: See how sessions end on this host
  bulwark.hardening.posture:
    collectors: [session]
  register: seen
"""

RETURN = r"""
posture:
  description: What each collector saw, by collector.
  type: dict
  returned: always
  sample: {session: {shell_timeout_seconds: 1800}}
errors:
  description: Why a collector could see nothing, by collector.
  type: dict
  returned: always
  sample: {ssh: sshd is not installed}
identity:
  description: What tells this host from others; the machine id only as a SHA-256 digest.
  type: dict
  returned: always
  sample: {hostname: ward-3, os_id: debian, os_version: "12", kernel: 6.1.0, virtualization: none, machine_id_sha256: 9f86d0}
observed_at:
  description: When the observation was made, by the host's own clock, in UTC.
  type: str
  returned: always
  sample: "2026-11-21T23:59:59Z"
"""

import hashlib
import os
import time

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.bulwark.hardening.plugins.module_utils.posture.collectors import COLLECTORS, look
from ansible_collections.bulwark.hardening.plugins.module_utils.posture.common import CannotObserve, read, run


def identity() -> dict:
    """Return what tells this host from others; a part that cannot be read is an empty string."""
    release = {}
    try:
        for line in read("/etc/os-release").splitlines():
            key, _equals, value = line.partition("=")
            release[key] = value.strip('"')
    except CannotObserve:
        pass
    try:
        machine_id = hashlib.sha256(read("/etc/machine-id").strip().encode()).hexdigest()
    except CannotObserve:
        machine_id = ""
    try:
        virtualization = run(["systemd-detect-virt"])
    except CannotObserve:
        virtualization = "none"  # systemd-detect-virt fails by design where it finds none
    return {
        "hostname": os.uname().nodename,
        "kernel": os.uname().release,
        "os_id": release.get("ID", ""),
        "os_version": release.get("VERSION_ID", ""),
        "virtualization": virtualization.strip(),
        "machine_id_sha256": machine_id,
    }


def main() -> None:
    """Run the collectors asked for."""
    module = AnsibleModule(
        argument_spec={"collectors": {"type": "list", "elements": "str", "required": True}}, supports_check_mode=True
    )
    wanted = module.params["collectors"]
    unknown = sorted(set(wanted) - set(COLLECTORS))
    if unknown:
        module.fail_json(msg=f"collectors = {unknown}: unknown; known are {sorted(COLLECTORS)}")
    posture, errors = look(wanted)
    module.exit_json(
        changed=False,
        posture=posture,
        errors=errors,
        identity=identity(),
        observed_at=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    )


if __name__ == "__main__":
    main()
