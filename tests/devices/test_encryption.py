# SPDX-License-Identifier: GPL-3.0-or-later
"""Empty disks become encrypted volumes that come back and can be recovered; what holds anything is never touched."""

from __future__ import annotations

import hashlib
import json
import re

import guests
import pytest

TURN = "devices-12"
SIZE = 160  # MiB of a data disk
KEYS = "/etc/bulwark/disk_encryption/keys"
MODEL = "QEMU HARDDISK"
CANARY = b"PLAINTEXT-CANARY-ON-A-DISK"
QUICK = "--pbkdf pbkdf2 --pbkdf-force-iterations 1000"
PLAIN_SWAP = "head -c 32M /dev/zero >/swapfile; chmod 600 /swapfile; mkswap /swapfile >/dev/null; swapon /swapfile"
ROOT = {"mount": "/", "reason": "The guest's own disk is made anew for each test", "approver": "Example Officer"}


def volume(name: str, serial: str, **more: object) -> dict:
    """Return the declaration of a volume on a disk of the guests."""
    about = {"name": name, "model": MODEL, "serial": serial, "size": SIZE << 20, "filesystem": "ext4", "mount": f"/srv/{name}"}
    return {key: value for key, value in {**about, **more}.items() if value is not None}


def disk(host, serial: str) -> str:
    """Return the path of the disk with a serial number."""

    def seen() -> str:
        lines = [line.split() for line in host.out("lsblk -rndo PATH,SERIAL").splitlines()]
        return next((words[0] for words in lines if words[1:] == [serial]), "")

    return guests.until(seen, 60, f"{host.name}: disk {serial}")


VOLUMES = [volume("records", "DATA1"), volume("swapped", "SWAP1", filesystem="swap", mount=None)]
SETTINGS = {"disk_encryption_exempt": [ROOT], "disk_encryption_pbkdf_memory_mib": 64}


@pytest.fixture(scope="module")
def encrypted(devices):
    """Plug disks into hosts that keep records and swap in the clear; see all controls fail; then have empty disks encrypted."""
    devices.images = {}

    def prepare(host):
        for serial in ("DATA1", "SWAP1", "PLAIN1", "OTHER1"):
            devices.images[host.name, serial] = devices.image(host, serial, SIZE)
            devices.plug(host, devices.images[host.name, serial], serial, "scsi-hd")
        plain = disk(host, "PLAIN1")
        host.out("apt-get install -qq -y --no-install-recommends age cryptsetup-bin >/dev/null 2>&1", 300)
        host.out(f"mkfs.ext4 -q {plain} && mkdir -p /srv/old && mount {plain} /srv/old && echo precious >/srv/old/file")
        host.out(PLAIN_SWAP)
        host.out("mkdir /etc/keys; echo k >/etc/keys/k; chmod 644 /etc/keys/k; echo k UUID=1-1 /etc/keys/k noauto >/etc/crypttab")
        other = disk(host, "OTHER1")
        host.out(f"cryptsetup luksFormat -q --type luks1 --pbkdf-force-iterations 1000 --key-file /etc/keys/k {other} && "
                 f"cryptsetup open --key-file /etc/keys/k {other} weak")  # fmt: skip
        host.out("umask 077; for who in one two; do age-keygen -o /root/$who.key 2>/dev/null; done")
        return {who: host.out(f"age-keygen -y /root/{who}.key") for who in ("one", "two")}

    keys = devices.each(prepare)
    devices.recipients = next(iter(keys.values()))
    for host in devices.fleet.hosts.values():  # the same custodians for both
        for who in ("one", "two"):
            secret = devices.fleet.hosts[next(iter(keys))].out(f"cat /root/{who}.key")
            host.out(f"cat >/root/{who}.key <<'END'\n{secret}\nEND")
    custodians = [{"name": who, "recipient": recipient} for who, recipient in devices.recipients.items()]
    escrow = devices.directory / "escrow"
    more = {"disk_encryption_volumes": VOLUMES, "disk_encryption_custodians": custodians,
            "disk_encryption_escrow_directory": str(escrow), **SETTINGS}  # fmt: skip
    devices.fleet.variables |= more
    before = devices.judged("disk_encryption")
    assert all(set(statuses.values()) == {"fail"} for statuses in before.values()), before
    devices.each(lambda host: host.out(f"swapoff /swapfile; rm /swapfile; umount /srv/old; cryptsetup close weak; "
                                       f"blkdiscard -f -z {disk(host, 'OTHER1')}; udevadm settle"))  # fmt: skip
    foretold = devices.apply("disk_encryption", "--check")
    said = re.findall(r"changed: \[devices-1[23]\] => \(item=(?:records|swapped)\)", foretold)
    assert len(said) == len(VOLUMES) * len(devices.fleet.hosts), foretold[-3000:]
    assert not any(devices.each(lambda host: host.out(f"wipefs -n {disk(host, 'DATA1')}")).values()), "check mode changes nothing"
    devices.apply("disk_encryption")
    return devices


def test_an_empty_disk_becomes_a_volume_that_comes_back(encrypted, host):
    """All controls hold; what is written is there after everything was closed and opened again, as a start of the system does."""
    assert set(encrypted.statuses("disk_encryption", host.name).values()) == {"pass"}
    host.out(f"yes {CANARY.decode()} | head -c 4000000 >/srv/records/file; sync")
    before = host.out("sha256sum </srv/records/file")
    host.out("systemctl stop srv-records.mount bulwark-volume-records.service")
    assert host.run("test -e /dev/mapper/records").returncode, "closed"
    assert encrypted.statuses("disk_encryption", host.name)["mounts"] == "fail"
    host.out("systemctl start srv-records.mount")
    assert host.out("sha256sum </srv/records/file") == before
    assert "nosuid" in host.out("findmnt -no OPTIONS /srv/records")
    assert "srv-records.mount" in host.out("systemctl show -p Wants multi-user.target")


def test_nothing_can_be_read_on_the_outside(encrypted, host):
    """The raw image of the disk shows a LUKS header and nothing of what is written."""
    host.out(f"yes {CANARY.decode()} | head -c 4000000 >/srv/records/canary; sync; grep -q CANARY /srv/records/canary")
    raw = encrypted.images[host.name, "DATA1"].read_bytes()
    assert raw.startswith(b"LUKS\xba\xbe\x00\x02")
    assert CANARY not in raw
    assert len(set(raw[64 << 20 : 80 << 20])) in (1, 256)


def test_a_second_run_changes_nothing(encrypted):
    """Nothing is made anew, and no key is exchanged."""
    assert len(re.findall(r"changed=0 ", encrypted.apply("disk_encryption"))) == len(encrypted.fleet.hosts)


def test_plain_swap_is_noticed_and_encrypted_swap_will_do(encrypted, host):
    """Swap on the declared disk passes; a plain file beside it does not, and is not touched either."""
    assert host.out("swapon --show=NAME --noheadings") == f"/dev/{host.out('basename $(realpath /dev/mapper/swapped)')}"
    host.out(PLAIN_SWAP)
    try:
        assert encrypted.statuses("disk_encryption", host.name)["swap"] == "fail"
    finally:
        host.out("swapoff /swapfile; rm /swapfile")
    assert encrypted.statuses("disk_encryption", host.name)["swap"] == "pass"


def test_a_custodian_alone_opens_the_volume(encrypted, host):
    """With the host's own key gone, either custodian's does, from what was collected on the controller."""
    (sealed,) = encrypted.directory.glob(f"escrow/{host.name}-records.age")
    host.out(f"cat >/root/records.age <<'END'\n{sealed.read_text()}END")
    path = disk(host, "DATA1")
    host.out(f"systemctl stop srv-records.mount bulwark-volume-records.service; mv {KEYS}/records.key /root")
    try:
        for who in ("one", "two"):
            host.out(f"age -d -i /root/{who}.key /root/records.age | cryptsetup open --key-file - {path} records")
            host.out("mount /dev/mapper/records /mnt && grep -q CANARY /mnt/file && umount /mnt && cryptsetup close records")
        host.out("age-keygen -o /root/stranger.key 2>/dev/null")
        assert host.run("age -d -i /root/stranger.key /root/records.age").returncode
        assert host.run("systemctl start srv-records.mount").returncode, "without a key it stays closed"
    finally:
        host.out(f"mv /root/records.key {KEYS}/; systemctl reset-failed; systemctl start srv-records.mount")


def test_other_custodians_get_another_key(encrypted):
    """Whoever is no custodian any more opens nothing: there is a new key, and the old one's slot is gone."""
    before = encrypted.fleet.variables["disk_encryption_custodians"]
    old = encrypted.each(lambda host: host.out("age -d -i /root/one.key /var/lib/bulwark/disk_encryption/escrow/records.age"))
    encrypted.fleet.variables["disk_encryption_custodians"] = [entry for entry in before if entry["name"] == "two"]
    assert {statuses["escrow"] for statuses in encrypted.judged("disk_encryption").values()} == {"fail"}
    encrypted.apply("disk_encryption")

    def tried(host):
        path = disk(host, "DATA1")
        assert host.run("age -d -i /root/one.key /var/lib/bulwark/disk_encryption/escrow/records.age").returncode
        assert host.run(f"printf %s {old[host.name]} | cryptsetup open --test-passphrase --key-file - {path}").returncode
        host.out("age -d -i /root/two.key /var/lib/bulwark/disk_encryption/escrow/records.age | "
                 f"cryptsetup open --test-passphrase --key-file - {path}")  # fmt: skip
        assert len(re.findall(r"^  [0-9]+: luks2", host.out(f"cryptsetup luksDump {path}"), re.MULTILINE)) == 2

    encrypted.each(tried)
    assert {statuses["escrow"] for statuses in encrypted.judged("disk_encryption").values()} == {"pass"}


def test_a_weak_volume_is_noticed(encrypted, host):
    """LUKS1, and a key too short, made by somebody by hand."""
    path = disk(host, "OTHER1")
    host.out("head -c 64 /dev/urandom >/root/weak")
    short = f"--type luks2 --cipher aes-xts-plain64 --key-size 256 {QUICK}"
    for options in ("--type luks1 --pbkdf-force-iterations 1000", short):
        host.out(f"cryptsetup luksFormat -q {options} --key-file /root/weak {path} && "
                 f"cryptsetup open --key-file /root/weak {path} weak")  # fmt: skip
        try:
            assert encrypted.statuses("disk_encryption", host.name)["strength"] == "fail", options
        finally:
            host.out(f"cryptsetup close weak; wipefs -aq {path}; dd if=/dev/zero of={path} bs=1M count=20 conv=fsync status=none")


def test_a_key_without_a_header_will_do_for_swap_only(encrypted, host):
    """Encrypted swap elsewhere is no excuse for a volume that has no header; when that one is swap itself, it passes."""
    path = disk(host, "OTHER1")
    host.out("head -c 64 /dev/urandom >/root/weak; cryptsetup open --type plain --cipher aes-xts-plain64 --key-size 512 "
             f"--key-file /root/weak {path} bare")  # fmt: skip
    try:
        assert encrypted.statuses("disk_encryption", host.name)["strength"] == "fail"
        host.out("mkswap -q /dev/mapper/bare && swapon /dev/mapper/bare")
        assert encrypted.statuses("disk_encryption", host.name)["strength"] == "pass"
    finally:
        host.out(f"swapoff /dev/mapper/bare; cryptsetup close bare; "
                 f"dd if=/dev/zero of={path} bs=1M count=20 conv=fsync status=none")  # fmt: skip


# A table with one partition in it, byte by byte: the guests have no program for that.
PARTITION = (
    r"printf '\000\000\002\000\203\377\377\377\000\010\000\000\000\010\000\000' | "
    r"dd of=$D bs=1 seek=446 conv=notrunc status=none; "
    r"printf '\125\252' | dd of=$D bs=1 seek=510 conv=notrunc,fsync status=none"
)
# What is done to the disk that is empty otherwise, how it is undone, and what the refusal must say.
OCCUPIED = {
    "a filesystem": ("mkfs.ext4 -q $D", "wipefs -aq $D", "there is something on"),
    "a partition": (f"{PARTITION}; udevadm settle; blockdev --rereadpt $D", "wipefs -aq $D", "it has partitions"),
    "data of no known kind": ("echo x | dd of=$D bs=1 seek=40000000 conv=fsync,notrunc status=none", "true", "not empty"),
    "an open program": ("sleep 600 <$D >/dev/null 2>&1 & echo $! >/root/sleeper", "kill $(cat /root/sleeper)", "is open in pid"),
    "a line in fstab": ("echo $D /srv/x ext4 noauto 0 0 >>/etc/fstab", "sed -i '$d' /etc/fstab", "the system expects it"),
    "another's volume": (f"cryptsetup luksFormat -q {QUICK} --key-file /root/weak $D", "wipefs -aq $D", "crypto_LUKS"),
}


@pytest.mark.parametrize("name", ["DATA1", "PLAIN1", "nothing"])
def test_a_disk_that_is_not_meant_is_never_touched(encrypted, host, name):
    """The disk with records, the plain one with a file on it (not mounted), and a size that is wrong by one byte."""
    serial = "OTHER1" if name == "nothing" else name
    wrong = volume("taken", serial, **({"size": (SIZE << 20) + 512} if name == "nothing" else {}))
    before = contents(encrypted, host, serial)
    refused = refusal(encrypted, host, wrong)
    assert ("no disk is of model" if name == "nothing" else "there is something on") in refused
    assert contents(encrypted, host, serial) == before
    if name == "PLAIN1":
        host.out(f"mount -o ro {disk(host, 'PLAIN1')} /mnt && grep -q precious /mnt/file && umount /mnt")


@pytest.mark.parametrize("what", OCCUPIED)
def test_a_disk_that_holds_anything_is_never_touched(encrypted, host, what):
    """Neither what is on it nor what is about it: one after the other on the same disk."""
    do, undo, said = OCCUPIED[what]
    path = disk(host, "OTHER1")
    host.out("test -e /root/weak || head -c 64 /dev/urandom >/root/weak")
    host.out(f"D={path}; {do}; udevadm settle")
    try:
        before = contents(encrypted, host, "OTHER1")
        assert said in refusal(encrypted, host, volume("taken", "OTHER1")), what
        assert contents(encrypted, host, "OTHER1") == before
        assert host.run(f"test -e {KEYS}/taken.key").returncode, "not even a key was made"
    finally:
        host.out(f"D={path}; {undo}; blkdiscard -f -z $D; udevadm settle; blockdev --rereadpt $D; udevadm settle")


def contents(devices, host, serial: str) -> str:
    """Return a digest of all that is on a disk, read on the outside."""
    host.out("sync")
    return hashlib.sha256(devices.images[host.name, serial].read_bytes()).hexdigest()


def refusal(devices, host, wanted: dict) -> str:
    """Ask the module for a volume on one guest, and return with which words it refuses."""
    name = f"{wanted['name']} {wanted['serial']}"
    about = {key: value for key, value in wanted.items() if key != "mount"}
    words = {**about, "uuid": "3f5a0b1c-0000-4000-8000-000000000001", "recipients": list(devices.recipients.values())}
    with pytest.raises(AssertionError) as failed:
        devices.fleet.ansible("ansible", host.name, "--module-name", "bulwark.hardening.luks_volume", "--args", json.dumps(words))
    assert "luks_volume" in str(failed.value), name
    return " ".join(str(failed.value).split())
