#!/usr/bin/python
# Copyright: (c) 2026, Bulwark contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: duo_check
short_description: Ask Duo's service whether it is there and takes the keys
version_added: 0.2.0
description:
  - Makes the calls C(/auth/v2/ping) and C(/auth/v2/check) of Duo's Auth API with the given keys, from wherever it runs.
  - Fails, saying which it is, if the service cannot be reached, proves itself by a certificate of another name or of an
    authority that is not believed, does not take the keys, has another time, or gives an answer that nobody can read.
  - Nothing is changed, neither here nor there. Nobody is asked for a second factor.
author:
  - Bulwark contributors (@bulwark)
options:
  host:
    description: The host name of the API, as Duo's administration shows it; a port may follow after a colon.
    type: str
    required: true
  integration_key:
    description: The integration key.
    type: str
    required: true
  secret_key:
    description: The secret key. It is used to sign and never shown.
    type: str
    required: true
  ca_file:
    description: File with the authorities that are believed. Empty for those of the system.
    type: str
    default: ""
  timeout:
    description: Seconds that connecting and each answer may take, 1 to 60.
    type: int
    default: 10
attributes:
  check_mode:
    description: Only asks, so check mode makes no difference.
    support: full
  diff_mode:
    description: Nothing is changed, so there is no difference to show.
    support: none
"""

EXAMPLES = r"""
- name: Look whether Duo takes the keys before anybody is asked for them
  bulwark.hardening.duo_check:
    host: api-xxxxxxxx.duosecurity.com
    integration_key: "{{ duo_integration_key }}"
    secret_key: "{{ duo_secret_key }}"
  delegate_to: localhost
"""

RETURN = r"""
clock_seconds:
  description: Seconds by which the service's clock is ahead of this machine's.
  type: float
  returned: success
  sample: 0.4
problem:
  description: What is wrong, in one word.
  type: str
  returned: failure
  choices: [unreachable, name, authority, keys, clock, answer]
  sample: keys
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.bulwark.hardening.plugins.module_utils import duo_api


def main() -> None:
    """Ask, and say what came of it."""
    module = AnsibleModule(
        argument_spec={
            "host": {"type": "str", "required": True},
            "integration_key": {"type": "str", "required": True, "no_log": False},
            "secret_key": {"type": "str", "required": True, "no_log": True},
            "ca_file": {"type": "str", "default": ""},
            "timeout": {"type": "int", "default": 10},
        },
        supports_check_mode=True,
    )
    wanted = module.params
    if not 1 <= wanted["timeout"] <= 60:
        module.fail_json(msg=f"timeout = {wanted['timeout']}: must be 1 to 60 seconds")
    try:
        ahead = duo_api.check(
            wanted["host"], wanted["integration_key"], wanted["secret_key"], wanted["ca_file"], wanted["timeout"]
        )
    except duo_api.Problem as problem:
        module.fail_json(msg=f"Duo cannot be used: {problem}.", problem=problem.kind)
    module.exit_json(changed=False, clock_seconds=round(ahead, 1))


if __name__ == "__main__":
    main()
