# Copyright: (c) 2026, Bulwark contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What lies below a mount is followed down to the disks, on a /sys of files."""

from __future__ import annotations

import pytest
from ansible_collections.bulwark.hardening.plugins.module_utils.posture import disk_encryption as disks
from ansible_collections.bulwark.hardening.plugins.module_utils.posture.common import CannotObserve


@pytest.fixture
def kernel(tmp_path):
    """Return a function that puts a block device into /sys: number, name, uuid of dm, numbers below, disk of a partition."""
    (tmp_path / "dev" / "block").mkdir(parents=True)

    def add(number, name, uuid="", below=(), disk=""):
        place = tmp_path / "devices" / disk / name
        (place / "slaves").mkdir(parents=True)
        (place / "dev").write_text(f"{number}\n")
        if uuid:
            (place / "dm").mkdir()
            (place / "dm" / "uuid").write_text(f"{uuid}\n")
        if disk:
            (place / "partition").write_text("1\n")
        for other in below:
            target = (tmp_path / "dev" / "block" / other).resolve()
            (place / "slaves" / target.name).symlink_to(target)
        (tmp_path / "dev" / "block" / number).symlink_to(place)
        return lambda number=number: disks.encrypted(number, str(tmp_path))

    return add


def test_a_plain_disk_and_its_partition(kernel):
    assert kernel("8:0", "sda")() is False
    assert kernel("8:1", "sda1", disk="sda")() is False


def test_luks_below_lvm_below_raid(kernel):
    kernel("8:0", "sda")
    kernel("254:0", "dm-0", "CRYPT-LUKS2-abc-data", ["8:0"])
    assert kernel("254:1", "dm-1", "LVM-abc", ["254:0"])() is True
    kernel("8:16", "sdb")
    kernel("254:2", "dm-2", "CRYPT-LUKS2-abd-data", ["8:16"])
    kernel("9:0", "md0", below=["254:0", "254:2"])
    assert kernel("254:3", "dm-3", "LVM-abd", ["9:0"])() is True


def test_one_plain_way_down_is_enough(kernel):
    kernel("8:0", "sda")
    kernel("8:16", "sdb")
    kernel("254:0", "dm-0", "CRYPT-LUKS2-abc-data", ["8:0"])
    assert kernel("9:0", "md0", below=["254:0", "8:16"])() is False
    assert kernel("254:1", "dm-1", "LVM-abc", ["9:0"])() is False


@pytest.mark.parametrize(
    ("uuid", "wanted"),
    [("CRYPT-LUKS1-a", True), ("CRYPT-PLAIN-x", True), ("CRYPT-VERITY-a", False), ("CRYPT-INTEGRITY-x", False), ("LVM-a", False)],
)
def test_not_everything_that_begins_with_crypt_encrypts(kernel, uuid, wanted):
    kernel("8:0", "sda")
    assert kernel("254:0", "dm-0", uuid, ["8:0"])() is wanted


def test_a_partition_of_an_encrypted_disk(kernel):
    kernel("8:0", "sda")
    kernel("254:0", "dm-0", "CRYPT-LUKS2-abc-data", ["8:0"])
    assert kernel("254:1", "dm-0p1", disk="dm-0")() is True


def test_memory_is_no_disk_and_what_is_not_there_is_not_guessed(kernel):
    assert kernel("252:0", "zram0")() is True
    with pytest.raises(CannotObserve):
        kernel("8:0", "sda")("8:16")


def test_mounts_are_those_on_disks(monkeypatch):
    monkeypatch.setattr(disks, "encrypted", lambda number: number == "254:0")
    table = (
        "22 28 0:20 / /proc rw shared:5 - proc proc rw\n"
        "28 1 8:1 / / rw shared:1 - ext4 /dev/sda1 rw\n"
        "30 28 8:1 /var/x /srv/bound rw shared:1 - ext4 /dev/sda1 rw\n"
        "31 28 254:0 / /srv/with\\040blank rw shared:1 - ext4 /dev/mapper/x rw\n"
        "32 28 0:50 / /mnt rw shared:1 - nfs4 server:/x rw\n"
        "33 28 0:51 / /run rw shared:1 - tmpfs tmpfs rw\n"
        "34 28 0:52 / /pool rw shared:1 - zfs pool rw\n"
    )
    found = {one["mount"]: one["encrypted"] for one in disks.mounts(table)}
    assert found == {"/": False, "/srv/with blank": True, "/pool": False}
    assert next(one["places"] for one in disks.mounts(table) if one["mount"] == "/") == ["/", "/srv/bound"]


def test_what_cryptsetup_says(monkeypatch):
    slots = {"0": {"kdf": {"type": "argon2id"}}, "1": {"kdf": {"type": "pbkdf2"}}}
    monkeypatch.setattr(disks.luks, "slots", lambda device: slots)
    text = "/dev/mapper/x is active.\n  type:    LUKS2\n  cipher:  aes-xts-plain64\n  keysize: 512 {}\n  device:  /dev/sda\n"
    for bits in ("bits", "[bits]"):
        seen = disks.status(text.format(bits))
        assert seen == {"type": "LUKS2", "cipher": "aes-xts-plain64", "key_bits": 512, "slots": 2,
                        "derivations": ["argon2id", "pbkdf2"]}  # fmt: skip


def test_zram_that_writes_to_a_disk(kernel, tmp_path, monkeypatch):
    """What lies idle in memory may go to a device behind it."""
    disk = kernel("8:0", "sda")
    kernel("252:0", "zram0")
    behind = tmp_path / "devices" / "zram0" / "backing_dev"
    behind.write_text("none\n")
    assert disks.encrypted("252:0", str(tmp_path)) is True
    behind.write_text("/dev/sda\n")
    monkeypatch.setattr(disks, "number_of", lambda path: {"/dev/sda": "8:0"}[path])
    assert disk() is False and disks.encrypted("252:0", str(tmp_path)) is False


def test_all_devices_of_a_btrfs_count(tmp_path, monkeypatch):
    """The kernel names one in its table of mounts; what is written goes to all."""
    place = tmp_path / "fs" / "btrfs" / "5f1a" / "devices"
    for name, number in (("dm-0", "254:0"), ("sdb", "8:16")):
        (place / name).mkdir(parents=True)
        (place / name / "dev").write_text(f"{number}\n")
    assert disks.together("dm-0", str(tmp_path)) == ["254:0", "8:16"]
    assert disks.together("sdc", str(tmp_path)) == []
    monkeypatch.setattr(disks, "together", lambda name: ["254:0", "8:16"])
    monkeypatch.setattr(disks, "encrypted", lambda number: number == "254:0")
    [found] = disks.mounts("30 1 0:31 / /srv rw - btrfs /dev/null rw\n")
    assert found["encrypted"] is False


def test_a_mount_of_nobody_knows_what_is_no_pass():
    with pytest.raises(CannotObserve, match="/srv"):
        disks.mounts("30 1 0:31 / /srv rw - bcachefs /dev/sdx1:/dev/sdy1 rw\n")
    assert disks.mounts("30 1 0:31 / /srv rw - fuse.other something rw\n") == []


def test_an_open_volume_knows_whether_it_is_swap(tmp_path, monkeypatch):
    """One without a header is good enough for swap; that another volume is swap excuses nothing."""
    for name, number in (("dm-0", "254:0"), ("dm-1", "254:1")):
        place = tmp_path / "class" / "block" / name
        (place / "dm").mkdir(parents=True)
        (place / "dev").write_text(f"{number}\n")
        (place / "dm" / "uuid").write_text(f"CRYPT-PLAIN-{name}\n")
        (place / "dm" / "name").write_text(f"volume-{name}\n")
    monkeypatch.setattr(disks, "number_of", lambda path: {"/dev/dm-1": "254:1"}[path])
    monkeypatch.setattr(disks, "run", lambda argv: "is active.\n  type: PLAIN\n")
    found = {one["name"]: (one["swap"], one["type"]) for one in disks.crypts(["/dev/dm-1"], str(tmp_path))}
    assert found == {"volume-dm-0": (False, "PLAIN"), "volume-dm-1": (True, "PLAIN")}
