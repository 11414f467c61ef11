# Copyright: (c) 2026, Bulwark contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What can be tried without disks of one's own: keys, sleep, what is refused. Disks are encrypted in tests/devices."""

from __future__ import annotations

import pytest

RECIPIENT = "age1zvkyg2lqzraa2lnjvqej32nkuu0ues2s82hzrye869xeexvn73equnujwj"
DISK = {"model": "No such disk", "serial": "NONE1", "size": 1 << 30}
VOLUME = {"name": "records", **DISK, "filesystem": "ext4", "mount": "/srv/records"}
CUSTODIANS = [{"name": "Security officer", "recipient": RECIPIENT}]


def test_nobody_else_reads_a_key(host, person):
    """The key that everybody could read, root alone can."""
    someone = person("mallory")
    assert host.run("su %s -s /bin/sh -c %s", someone.name, "cat /etc/keys/archive.key").rc != 0
    assert host.check_output("cat /etc/keys/archive.key") == "not so secret"


@pytest.mark.parametrize("way", ["hibernate", "hybrid-sleep", "suspend-then-hibernate"])
def test_the_system_cannot_hibernate(host, way):
    """Asked for, it is refused by systemd, whatever the hardware could do."""
    tried = host.run(f"systemctl start {way}.target")
    assert tried.rc != 0 and "masked" in tried.stderr, tried.stderr


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({"disk_encryption_volumes": [VOLUME]}, "disk_encryption_custodians must name somebody"),
        ({"disk_encryption_volumes": [VOLUME], "disk_encryption_custodians": CUSTODIANS}, "no disk is of model"),
        (
            {"disk_encryption_volumes": [VOLUME, {**VOLUME, "serial": "NONE2"}], "disk_encryption_custodians": CUSTODIANS},
            "names must differ",
        ),
    ],
)
def test_a_disk_that_is_not_the_one_is_not_made_up_for(host, target, variables, said):
    """No other disk takes its place, and nothing was written when that is said."""
    with pytest.raises(pytest.fail.Exception) as failed:
        target.reapply(**variables)
    assert said in " ".join(str(failed.value).split()).replace("\\n", " ")
    assert not host.file("/etc/bulwark/disk_encryption/keys/records.key").exists
    assert not host.file("/etc/systemd/system/bulwark-volume-records.service").exists
