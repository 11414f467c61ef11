# Copyright: (c) 2026, Bulwark contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What USBGuard's rules, modprobe's and udev's configuration mean for what is plugged in."""

from __future__ import annotations

import errno

import pytest
from ansible_collections.bulwark.hardening.plugins.module_utils.posture import removable_media as media

STICK = {"id": "46f4:0001", "serial": "S1", "interfaces": ["08:06:50"]}
TYPING = {**STICK, "interfaces": ["08:06:50", "03:01:01"]}
KEYBOARD = {"id": "dead:0001", "serial": "", "interfaces": ["03:01:01"]}

# as the daemon lists them, as a file has them
RULES = """\
1: allow id 46f4:0001 serial "S1" with-interface match-all { 08:*:* }
2: block with-interface one-of { 00:*:* 08:*:* ff:*:* }
# a comment
allow with-interface one-of { 03:*:* 09:*:* }
"""


def decided(rules: str, device: dict, implicit: str = "block") -> str:
    """Return what rules say of a device."""
    return media.verdict([rule for rule in map(media.parsed, rules.splitlines()) if rule], device, implicit)


def test_the_first_rule_that_fits_decides():
    assert decided(RULES, STICK) == "allow"
    assert decided(RULES, {**STICK, "serial": "S2"}) == "block"
    assert decided(RULES, {**STICK, "id": "46f4:0002"}) == "block"
    assert decided(RULES, TYPING) == "block", "a stick that types is not the one that was permitted"
    assert decided(RULES, KEYBOARD) == "allow"
    assert decided(RULES, {**KEYBOARD, "interfaces": ["03:01:01", "08:06:50"]}) == "block"


@pytest.mark.parametrize(
    ("rule", "device", "wanted"),
    [
        ("allow", STICK, "allow"),
        ("allow id *:*", STICK, "allow"),
        ("allow 46f4:*", STICK, "allow"),
        ("allow with-interface 08:*:*", STICK, "allow"),
        ("allow with-interface 08:06:50", TYPING, "none"),  # equals: no more than that
        ("allow with-interface equals { 08:*:* 03:*:* }", TYPING, "allow"),
        ("allow with-interface all-of { 08:*:* }", TYPING, "allow"),
        ("allow with-interface none-of { 08:*:* }", STICK, "none"),
        ("allow with-interface none-of { 08:*:* }", KEYBOARD, "allow"),
        ("block with-interface all-of { 08:*:* 03:*:* }", TYPING, "block"),
        ("reject with-interface one-of { 08:*:* }", STICK, "reject"),
        # what we do not understand lets in, and keeps nothing out
        ('allow name "x" with-interface one-of { 08:*:* }', STICK, "allow"),
        ("allow with-interface one-of { 08:*:* } if !localtime(00:00-06:00)", STICK, "allow"),
        ('block name "x" with-interface one-of { 08:*:* }', STICK, "none"),
        ("block with-interface one-of { 08:*:* } if localtime(00:00-06:00)", STICK, "none"),
        ('block serial "S2"', STICK, "none"),
        ("rubbish", STICK, "none"),
    ],
)
def test_rules_are_read_as_the_worst_they_can_mean(rule, device, wanted):
    assert decided(rule, device, "none") == wanted


def test_the_first_install_line_is_obeyed():
    config = "install usb_storage /bin/false\ninstall usb_storage /sbin/modprobe -i usb-storage\nalias x y\n"
    assert media.modules(config) == {"usb-storage": "refused", "uas": "loadable"}
    config = f"install usb-storage {media.GATE} load usb-storage\ninstall ua* /bin/true\n"
    assert media.modules(config) == {"usb-storage": "gate", "uas": "refused"}
    assert media.modules(f"install uas {media.GATE} load uas; modprobe -i uas\n")["uas"] == "loadable"


def test_a_kind_is_closed_when_all_its_modules_are():
    config = "install firewire_sbp2 /bin/false\ninstall firewire_ohci /bin/false\ninstall sr_mod /bin/false\n"
    wanted = {"optical": False, "floppy": True, "firewire": True, "thunderbolt": True, "card": True}
    assert media.kinds(config, "") == wanted
    # What is in the kernel already works whatever is said about loading it.
    assert media.kinds(config, "sr_mod 28672 0 - Live 0x0\n") == {**wanted, "optical": True}


def test_storage_drivers_in_the_kernel():
    listed = "usb_storage 81920 1 uas, Live 0x0\nuas 1 0 - Live 0x0\nusbcore 1 0 - Live 0x0\n"
    assert media.loaded(listed) == ["usb-storage", "uas"]


def test_a_rule_that_is_commented_out_asks_nobody():
    rules = f'ACTION=="add|remove", SUBSYSTEM=="usb", RUN+="{media.GATE} seen"\n#SUBSYSTEMS=="usb", RUN+="{media.GATE} disk"\n'
    assert media.asked(rules) == {"disk": False, "seen": True}


def test_permissions_end(monkeypatch):
    monkeypatch.setattr(media, "today", lambda: "2026-11-29")
    permits = [{"id": "a", "serial": number, "expires": f"2026-11-{number}"} for number in ("28", "29")] + [{"id": "b"}]
    assert media.identities(media.current(permits)) == [{"id": "a", "serial": "29"}]


def test_what_a_keyboard_hangs_on_counts_as_one(tmp_path, monkeypatch):
    """A keyboard behind a hub dies with the hub; a camera's does not."""
    monkeypatch.setattr(media, "USB", str(tmp_path))
    for name, faces in {"usb1": ["09"], "1-1": ["09"], "1-1.2": ["03"], "1-11": ["0e"], "1-3": ["03", "ff"]}.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "idVendor").write_text(f"{name}\n")
        (tmp_path / name / "idProduct").write_text("0001\n")
        for number, face in enumerate(faces):
            for place in (tmp_path / name / f"{name}:1.{number}", tmp_path / f"{name}:1.{number}"):
                place.mkdir()
                (place / "bInterfaceClass").write_text(f"{face}\n")
    found = {device["id"].split(":")[0]: device["input"] for device in media.present()}
    assert found == {"usb1": False, "1-1": True, "1-1.2": True, "1-11": False, "1-3": True}


@pytest.mark.parametrize(("bus", "counts"), [("0005", True), ("0003", False)])
def test_an_adapter_that_a_keyboard_talks_to_counts_as_one(tmp_path, monkeypatch, bus, counts):
    """Bluetooth keyboards die with their adapter; an adapter without one may go."""
    monkeypatch.setattr(media, "USB", str(tmp_path / "usb"))
    monkeypatch.setattr(media, "INPUT", str(tmp_path / "input"))
    for place in ("usb/1-1", "usb/1-1/1-1:1.0", "usb/1-1:1.0/bluetooth/hci0", "input/input7/id"):
        (tmp_path / place).mkdir(parents=True, exist_ok=True)
    (tmp_path / "usb/1-1/idVendor").write_text("8087\n")
    (tmp_path / "usb/1-1/idProduct").write_text("0a2b\n")
    for place in ("usb/1-1/1-1:1.0", "usb/1-1:1.0"):
        (tmp_path / place / "bInterfaceClass").write_text("e0\n")
    (tmp_path / "input/input7/id/bustype").write_text(f"{bus}\n")
    assert [device["input"] for device in media.present()] == [counts]


@pytest.mark.parametrize(
    ("rule", "found"),
    [
        ('allow 46f4:0001 serial "S1" with-interface match-all { 08:*:* }', True),
        ("allow 0781:5567", True),
        ("allow 0781:*", True),
        ("allow 0781:5567 with-interface one-of { 08:*:* 03:*:* }", True),
        ("allow 18d1:4ee1 with-interface one-of { 06:*:* }", True),
        ("allow 06cb:00bd with-interface none-of { 06:*:* 08:*:* }", False),
        ("allow with-interface one-of { 03:*:* 09:*:* }", False),
    ],
)
def test_a_make_that_is_let_in_without_a_serial_number_is_seen(rule, found):
    assert media.lets_in(media.parsed(rule)) is found


def test_storage_that_the_kernel_gives_to_nobody_else_is_in_use(tmp_path, monkeypatch):
    """btrfs is mounted under a number of its own, and what others mount in a place of theirs is not in our table."""
    block = tmp_path / "sdb2"
    block.mkdir()
    (block / "dev").write_text("8:18\n")
    asked = []
    monkeypatch.setattr(media.block_devices, "claimed", lambda path: asked.append(path) or True)
    assert media.used(str(block), "31 1 0:31 / / rw - btrfs /dev/sdb2 rw\n", "Filename\n")
    assert asked == ["/dev/sdb2"]

    def no_card(path):
        raise media.block_devices.DeviceError("no medium") from OSError(errno.ENOMEDIUM, "no medium")

    monkeypatch.setattr(media.block_devices, "claimed", no_card)
    assert not media.used(str(block), "", "Filename\n")

    def unknown(path):
        raise media.block_devices.DeviceError("not now") from OSError(errno.EACCES, "not now")

    monkeypatch.setattr(media.block_devices, "claimed", unknown)
    with pytest.raises(media.CannotObserve, match="not now"):
        media.used(str(block), "", "Filename\n")


def test_storage_in_use_is_seen(tmp_path):
    block = tmp_path / "sdb1"
    (block / "holders").mkdir(parents=True)
    (block / "dev").write_text("8:17\n")
    other, swaps = "22 1 8:1 / / rw - ext4 /dev/sda1 rw\n", "Filename Type Size Used Priority\n"
    assert not media.used(str(block), other, swaps)
    assert media.used(str(block), other + "30 22 8:17 / /srv rw - ext4 /dev/sdb1 rw\n", swaps)
    assert media.used(str(block), other, swaps + "/dev/sdb1 partition 1024 0 -2\n")
    (block / "holders" / "dm-0").touch()
    assert media.used(str(block), other, swaps)
