# SPDX-License-Identifier: GPL-3.0-or-later
"""Sticks plugged into guests: strange ones, permitted ones with and without encryption, and one whose day has passed."""

from __future__ import annotations

import datetime

import guests
import pytest

TURN = "devices-13"
PERMITS = "/etc/bulwark/removable_media/permits.json"
CANARY = b"PLAINTEXT-CANARY-ON-A-STICK"
KDF = "--pbkdf pbkdf2 --pbkdf-force-iterations 1000"  # quick; the key is random anyway
LUKS = f"--type luks2 --cipher aes-xts-plain64 --key-size 512 {KDF} --key-file /root/stick.key"


def sticks(host) -> list[str]:
    """Return the names of USB storage that the guest can use."""
    return [line.split()[0] for line in host.out("lsblk -rndo NAME,TRAN").splitlines() if line.endswith(" usb")]


def told(host, *words: str) -> list[str]:
    """Return the lines of the gate in the journal that hold all these words."""
    lines = host.out("journalctl -q -o cat -t bulwark-media").splitlines()
    return [line for line in lines if all(word in line for word in words)]


def wait(host, *words: str) -> str:
    """Wait until the journal tells something, and return the line."""
    return guests.until(lambda: told(host, *words), 60, f"{host.name}: {words}; so far {told(host)}")[-1]


def permit(serial: str, days: int) -> dict:
    """Return a permission of QEMU's stick with a serial number that ends so many days from now."""
    last = datetime.date.today() + datetime.timedelta(days=days)
    about = {"approver": "Head of radiology", "purpose": "Proofs"}
    return {"id": "46f4:0001", "serial": serial, "expires": last.isoformat(), **about}


@pytest.fixture(scope="module")
def guarded(devices):
    """Plug a stick into plain hosts, which works; then apply the role, with one stick permitted and one not any more."""

    def plain(host):
        devices.plug(host, devices.image(host, "plain", 16), "STRANGER0")
        guests.until(lambda: sticks(host), 60, f"{host.name}: a plain host takes any stick")
        devices.unplug(host, "STRANGER0")

    devices.each(plain)
    before = devices.judged("removable_media")
    assert all(set(statuses.values()) == {"fail"} for statuses in before.values()), before
    devices.apply("removable_media", removable_media_devices=[permit("PERMITTED1", 30), permit("EXPIRED1", -1)])
    return devices


def test_hardened_hosts_pass(guarded):
    judged = guarded.judged("removable_media")
    assert all(set(statuses.values()) == {"pass"} for statuses in judged.values()), judged


def test_a_strange_stick_is_of_no_use_and_on_record(guarded, host):
    """Neither an unknown stick nor the one whose permission has ended gets as far as being a disk."""
    for serial in ("STRANGER1", "EXPIRED1"):
        guarded.plug(host, guarded.image(host, "strange", 16), serial)
        line = wait(host, "event=inserted", f'serial="{serial}"')
        assert 'id="46f4:0001"' in line and 'storage="yes"' in line and 'permitted="no"' in line, line
        host.out("udevadm settle; sleep 3")
        assert sticks(host) == []
        assert host.out(f"cat $(dirname $(grep -l {serial} /sys/bus/usb/devices/*/serial))/authorized") == "0"
        guarded.unplug(host, serial)
        wait(host, "event=removed", f'serial="{serial}"')


def test_a_keyboard_in_use_is_not_cut_off(guarded, host):
    """A declaration that would leave nobody a keyboard is refused, and the keyboard goes on working."""
    keyboards = "grep -c 'QEMU USB Keyboard' /proc/bus/input/devices || true"
    host.guest.control("device_add", driver="usb-kbd", id="keyboard", bus="xhci.0")
    guests.until(lambda: host.out(keyboards) != "0", 60, f"{host.name}: a keyboard that is plugged in works")
    try:
        with pytest.raises(AssertionError, match="would be cut off"):
            guarded.apply("removable_media", "--limit", host.name, removable_media_usb_kinds=["hub"])
        assert host.out(keyboards) != "0"
    finally:
        guarded.fleet.variables.pop("removable_media_usb_kinds")
        host.guest.control("device_del", id="keyboard")


def test_a_stopped_guard_lets_nobody_in_and_is_noticed(guarded, host):
    """USBGuard killed is no way in: what comes then waits for ever."""
    host.out("systemctl stop usbguard")
    try:
        assert guarded.statuses("removable_media", host.name)["guard"] == "fail"
        host.out("systemctl mask --runtime usbguard")  # udev would start it again
        guarded.plug(host, guarded.image(host, "strange", 16), "STRANGER2")
        wait(host, "event=inserted", 'serial="STRANGER2"')
        host.out("udevadm settle; sleep 3")
        assert sticks(host) == []
        assert host.out("cat $(dirname $(grep -l STRANGER2 /sys/bus/usb/devices/*/serial))/authorized") == "0"
        guarded.unplug(host, "STRANGER2")
    finally:
        host.out("systemctl unmask --runtime usbguard; systemctl start usbguard; sleep 2")


def test_a_permitted_stick_without_encryption_is_cut_off(guarded, host):
    """Blank it may stay; the moment there is a plain file system on it, it is gone, also when it is plugged in again."""
    image = guarded.image(host, "permitted", 32)
    guarded.plug(host, image, "PERMITTED1")
    wait(host, "event=accepted", 'content="blank"')
    (name,) = sticks(host)
    host.run(f"mkfs.ext4 -q -F /dev/{name}")
    wait(host, "event=refused", 'serial="PERMITTED1"', "not encrypted: ext4")
    guests.until(lambda: not sticks(host), 30, f"{host.name}: the stick with a plain file system is gone")
    guarded.unplug(host, "PERMITTED1")
    count = len(told(host, "not encrypted: ext4"))
    guarded.plug(host, image, "PERMITTED1")
    guests.until(lambda: len(told(host, "not encrypted: ext4")) > count, 60, f"{host.name}: refused once more")
    guests.until(lambda: not sticks(host), 30, f"{host.name}: gone once more")
    guarded.unplug(host, "PERMITTED1")


def test_a_permitted_encrypted_stick_works(guarded, host):
    """Encrypted, filled, taken out, put in again: all is there, and nothing of it can be read on the outside."""
    image = guarded.image(host, "permitted", 32)
    host.out("test -e /root/stick.key || head -c 64 /dev/urandom >/root/stick.key")
    guarded.plug(host, image, "PERMITTED1")
    (name,) = guests.until(lambda: sticks(host), 60, f"{host.name}: the permitted stick is there")
    host.out(f"udevadm settle; cryptsetup luksFormat -q {LUKS} /dev/{name}")
    wait(host, "event=accepted", 'content="crypto_LUKS"')
    host.out(f"cryptsetup open --key-file /root/stick.key /dev/{name} stick && mkfs.ext4 -q /dev/mapper/stick && "
             f"mount /dev/mapper/stick /mnt && yes {CANARY.decode()} | head -c 2000000 >/mnt/file && "
             "umount /mnt && cryptsetup close stick && sync")  # fmt: skip
    guarded.unplug(host, "PERMITTED1")
    raw = image.read_bytes()
    assert raw.startswith(b"LUKS") and CANARY not in raw
    guarded.plug(host, image, "PERMITTED1")
    (name,) = guests.until(lambda: sticks(host), 60, f"{host.name}: the permitted stick is there again")
    opened = f"cryptsetup open --key-file /root/stick.key /dev/{name} stick && mount /dev/mapper/stick /mnt"
    host.out(f"{opened} && grep -q CANARY /mnt/file && umount /mnt && cryptsetup close stick")
    assert set(guarded.statuses("removable_media", host.name).values()) == {"pass"}
    guarded.unplug(host, "PERMITTED1")


def test_a_permission_that_ends_takes_the_stick_away(guarded, host):
    """The day passes while it is plugged in, and nobody runs a playbook: it is gone, comes back no more, and that is noticed."""
    guarded.plug(host, guarded.image(host, "permitted", 32), "PERMITTED1")
    guests.until(lambda: sticks(host), 60, f"{host.name}: the permitted stick is there")
    host.out(f'cp -a {PERMITS} /root/permits; sed -i \'s/"expires": "[0-9-]*"/"expires": "2026-01-31"/\' {PERMITS}')
    try:
        host.out("systemctl start bulwark-media-sweep.service")
        wait(host, "event=refused", 'serial="PERMITTED1"', "not any more")
        guests.until(lambda: not sticks(host), 30, f"{host.name}: the stick is gone")
        assert guarded.statuses("removable_media", host.name)["permits"] == "fail"
        guarded.unplug(host, "PERMITTED1")
        count = len(told(host, "event=refused", "not any more"))
        guarded.plug(host, guarded.image(host, "permitted", 32), "PERMITTED1")
        guests.until(lambda: len(told(host, "event=refused", "not any more")) > count, 60, f"{host.name}: refused at the door")
        guests.until(lambda: not sticks(host), 30, f"{host.name}: and gone")
        guarded.unplug(host, "PERMITTED1")
    finally:
        host.out(f"cp -a /root/permits {PERMITS}")
