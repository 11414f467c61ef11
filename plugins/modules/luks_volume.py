#!/usr/bin/python
# Copyright: (c) 2026, Bulwark contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: luks_volume
short_description: Make an encrypted volume out of an empty disk
version_added: 0.3.0
description:
  - Makes a LUKS2 volume (AES-256 in XTS mode) on the one disk that has model, serial number and size as given, with a key of the
    host's own, and puts a filesystem or swap into it.
  - A disk is touched only if it is empty and idle. Not if it has partitions or signatures of any kind, holds anything but zeros
    in the 16 MiB at either end or at 256 places between, is mounted, held, open in a program, or expected by F(/etc/fstab) or
    F(/etc/crypttab). What keeps it from being touched is said, and nothing is changed. There is no option to do it nevertheless.
  - Makes a recovery key and seals it with age to the public keys of custodians, each of whom alone can open it. The key itself is
    kept nowhere. When the custodians change, another recovery key takes its place.
  - A run that was broken off is taken up by the next one.
author:
  - Bulwark contributors (@bulwark)
options:
  name:
    description: Name of the volume, and of its device below F(/dev/mapper).
    type: str
    required: true
  model:
    description: Model of the disk, as C(lsblk --output MODEL) shows it; C(virtio) for virtio disks, which have none.
    type: str
    required: true
  serial:
    description: Serial number of the disk, as C(lsblk --output SERIAL) shows it.
    type: str
    required: true
  size:
    description: Size of the disk in bytes, as C(lsblk --bytes --output SIZE) shows it.
    type: int
    required: true
  uuid:
    description: UUID that the volume gets, by which it is known again.
    type: str
    required: true
  filesystem:
    description: What is put into the new volume.
    type: str
    choices: [ext4, swap]
    default: ext4
  recipients:
    description: Public keys (age) of the custodians.
    type: list
    elements: str
    required: true
  pbkdf_memory_mib:
    description: Memory in MiB that trying one passphrase costs.
    type: int
    default: 256
attributes:
  check_mode:
    description: Looks at the disk as closely, and says what would be made.
    support: full
  diff_mode:
    description: Says in words what is made.
    support: full
requirements:
  - cryptsetup 2.6
  - age
"""

EXAMPLES = r"""
- name: Keep records on an encrypted disk
  bulwark.hardening.luks_volume:
    name: records
    model: Samsung SSD 870
    serial: S5STNG0R123456
    size: 1000204886016
    uuid: "{{ 'records S5STNG0R123456' | ansible.builtin.to_uuid }}"
    recipients: [age1zvkyg2lqzraa2lnjvqej32nkuu0ues2s82hzrye869xeexvn73equnujwj]
"""

RETURN = r"""
device:
  description: The disk that is meant.
  type: str
  returned: always
  sample: /dev/sdb
steps:
  description: What was done, or would be in check mode. C(create), C(seal), C(fill), in this order.
  type: list
  elements: str
  returned: always
  sample: [create, seal, fill]
escrow_file:
  description: Where the sealed recovery key lies on the host.
  type: str
  returned: always
  sample: /var/lib/bulwark/disk_encryption/escrow/records.age
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.bulwark.hardening.plugins.module_utils import block_devices, luks

WORDS = {
    "create": "a LUKS2 volume on the empty disk",
    "seal": "a recovery key, sealed to the custodians",
    "fill": "a new filesystem or swap inside",
}


def main() -> None:
    """Bring the volume to what is wanted, or say why the disk is not touched."""
    module = AnsibleModule(
        argument_spec={
            "name": {"type": "str", "required": True},
            "model": {"type": "str", "required": True},
            "serial": {"type": "str", "required": True},
            "size": {"type": "int", "required": True},
            "uuid": {"type": "str", "required": True},
            "filesystem": {"type": "str", "choices": ["ext4", "swap"], "default": "ext4"},
            "recipients": {"type": "list", "elements": "str", "required": True},
            "pbkdf_memory_mib": {"type": "int", "default": 256},
        },
        supports_check_mode=True,
    )
    wanted, done = module.params, []
    try:
        if not wanted["recipients"]:
            raise luks.LuksError("recipients = []: must have at least one, or the data would be lost with the host")
        device = luks.find(wanted)
        with luks.held(device) as number:
            facts = block_devices.look(device)
            if facts["device"] != number:
                raise luks.LuksError(f"{device} became another disk while it was looked at")
            steps = luks.plan(facts, luks.read_record(wanted["name"]), wanted)
            for step in [] if module.check_mode else steps:
                luks.STEPS[step](device, wanted)
                done.append(step)
    except (luks.LuksError, block_devices.DeviceError, OSError) as exc:
        module.fail_json(msg=f"luks_volume {wanted['name']}: {exc}", changed=bool(done), steps=done)
    said = "".join(f"{device} {wanted['name']}: {WORDS[step]}\n" for step in steps)
    difference = {"diff": {"before": "", "after": said}} if said and module._diff else {}
    module.exit_json(
        changed=bool(steps), device=device, steps=steps, escrow_file=luks.escrow_path(wanted["name"]), **difference
    )


if __name__ == "__main__":
    main()
