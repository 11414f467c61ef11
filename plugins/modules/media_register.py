#!/usr/bin/python
# Copyright: (c) 2026, Bulwark contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: media_register
short_description: Keep the register of media in step with what is declared, and record who signed a certificate
version_added: 0.1.0
description:
  - The register only grows, and each line vouches for all before it. An altered register takes no more entries.
  - A medium that is declared for the first time, at another place, with another custodian or of another class gives an entry; so
    does one that is no longer declared.
author:
  - Bulwark contributors (@bulwark)
options:
  declared:
    description: All media there are, as role C(media) has them in C(media_declared). Not given, nothing is compared.
    type: list
    elements: dict
  by:
    description: Who declared it.
    type: str
    default: ""
  signed:
    description: A signature to record, with C(medium) (model and serial number), C(sha256) of the certificate, and C(signer).
    type: dict
    default: {}
    suboptions:
      medium:
        description: Model and serial number.
        type: str
        default: ""
      sha256:
        description: SHA-256 of the certificate's file.
        type: str
        default: ""
      signer:
        description: Who signed, with the fingerprint of the key.
        type: str
        default: ""
  directory:
    description: Where the register lies.
    type: path
    default: /var/lib/bulwark/media
attributes:
  check_mode:
    description: Says what would be recorded.
    support: full
  diff_mode:
    description: Shows the entries, without time and chain.
    support: full
seealso:
  - module: bulwark.hardening.media_sanitize
"""

EXAMPLES = r"""
- name: Record what is declared
  bulwark.hardening.media_register:
    by: inventory
    declared:
      - id: M-0017
        model: EXAMPLE DISK 4T
        serial: EX1234567
        size: 4000787030016
        class: moderate
        location: Server room, rack 2
        custodian: Example Person
"""

RETURN = r"""
entries:
  description: What was recorded, or would be.
  type: list
  elements: dict
  returned: always
  sample: [{event: moved, medium: EXAMPLE DISK 4T EX1234567, location: Safe}]
"""

import json

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.bulwark.hardening.plugins.module_utils import media_register as core


def main() -> None:
    """Record what is missing."""
    text = {"type": "str", "default": ""}
    module = AnsibleModule(
        argument_spec={
            "declared": {"type": "list", "elements": "dict"},
            "by": text,
            "signed": {"type": "dict", "default": {}, "options": {"medium": text, "sha256": text, "signer": text}},
            "directory": {"type": "path", "default": core.DIRECTORY},
        },
        supports_check_mode=True,
    )
    params = module.params
    try:
        entries, findings = core.examine(core.load(params["directory"]))
        if findings:
            raise core.RegisterError(f"the register was altered: {findings[0]}")
        known = core.states(entries)
        wanted = [] if entries else [{"event": "begun"}]
        wanted += core.wanted_entries(params["declared"], known) if params["declared"] is not None else []
        signed = params["signed"]
        if signed.get("medium"):
            state = known.get(signed["medium"]) or {}
            if (state.get("sanitised") or {}).get("sha256") != signed["sha256"]:
                raise core.RegisterError(f"{signed['medium']} has no certificate with SHA-256 {signed['sha256']}")
            if signed["signer"] not in state["signers"]:
                wanted.append({"event": "signed", **signed})
        wanted = [{**entry, "by": params["by"]} if params["by"] else entry for entry in wanted]
        if wanted and not module.check_mode:
            core.append(params["directory"], wanted)
    except (core.RegisterError, KeyError) as exc:
        module.fail_json(msg=f"Nothing was recorded: {exc}")
    shown = "".join(json.dumps(entry) + "\n" for entry in wanted)
    module.exit_json(
        changed=bool(wanted), entries=wanted, diff={"before": "", "after": shown, "after_header": "register of media"}
    )


if __name__ == "__main__":
    main()
