# Copyright: (c) 2026, Bulwark contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What USBGuard's rules, modprobe's and udev's configuration mean for what is plugged in."""

from __future__ import annotations

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
    assert media.kinds(config) == {"optical": False, "floppy": True, "firewire": True, "thunderbolt": True, "card": True}


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
