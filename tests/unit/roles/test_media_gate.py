# Copyright: (c) 2026, Bulwark contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The gate: whom it lets through today, what it cuts off, and what it writes down, on a /sys of files."""

from __future__ import annotations

import datetime
import importlib.util
import json
from pathlib import Path

import pytest

FILE = Path(__file__).resolve().parents[3] / "roles" / "removable_media" / "files" / "media_gate.py"
TODAY = datetime.date.today()
PERMIT = {"id": "46f4:0001", "serial": "S1", "expires": TODAY.isoformat()}


@pytest.fixture
def gate(monkeypatch, tmp_path):
    """The program, with a stick S1 plugged in, permitted until today, and lines that would go to the journal."""
    spec = importlib.util.spec_from_file_location("media_gate", FILE)
    program = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(program)
    program.lines, program.stick = [], tmp_path / "sys" / "devices" / "usb1" / "1-1"
    block = program.stick / "1-1:1.0" / "host0" / "block" / "sda"
    block.mkdir(parents=True)
    (tmp_path / "sys" / "class" / "block").mkdir(parents=True)
    (tmp_path / "sys" / "class" / "block" / "sda").symlink_to(block)
    for name, text in {"idVendor": "46f4", "idProduct": "0001", "serial": "S1", "authorized": "1"}.items():
        (program.stick / name).write_text(f"{text}\n")
    monkeypatch.setattr(program, "SYS", str(tmp_path / "sys"))
    monkeypatch.setattr(program, "SEEN", str(tmp_path / "seen"))
    monkeypatch.setattr(program, "PERMITS", str(tmp_path / "permits.json"))
    monkeypatch.setattr(program.syslog, "syslog", lambda _level, text: program.lines.append(text))
    program.looks = []
    monkeypatch.setattr(program, "look_again", lambda block: program.looks.append(Path(block).name))
    program.permit = lambda *devices: (tmp_path / "permits.json").write_text(json.dumps({"devices": devices}))
    program.permit(PERMIT)
    program.environment = {"DEVPATH": "/devices/usb1/1-1/1-1:1.0/host0/block/sda", "DEVNAME": "/dev/sda"}
    program.authorised = lambda: (program.stick / "authorized").read_text().strip() == "1"
    return program


def test_a_blank_permitted_stick_stays(gate):
    assert gate.disk(gate.environment) == 0
    assert gate.authorised()
    assert gate.lines == ['event=accepted id="46f4:0001" serial="S1" device="/dev/sda" content="blank"']


@pytest.mark.parametrize(
    "permits",
    [
        [],
        [{**PERMIT, "serial": "S2"}],
        [{**PERMIT, "id": "46f4:0002"}],
        [{**PERMIT, "expires": (TODAY - datetime.timedelta(days=1)).isoformat()}],
    ],
)
def test_who_is_not_permitted_today_is_cut_off(gate, permits):
    gate.permit(*permits)
    gate.disk(gate.environment)
    assert not gate.authorised()
    assert gate.lines[-1].startswith('event=refused id="46f4:0001" serial="S1" port="1-1" reason="not permitted')


@pytest.mark.parametrize("text", ["", "[]", '{"devices": 5}', '{"devices": [{}]}', "nonsense"])
def test_permissions_that_cannot_be_read_permit_nobody(gate, text):
    Path(gate.PERMITS).write_text(text)
    gate.disk(gate.environment)
    assert not gate.authorised()
    assert gate.lines[0].startswith("event=unreadable")


@pytest.mark.parametrize(
    "content",
    [
        {"ID_FS_USAGE": "filesystem", "ID_FS_TYPE": "vfat"},
        {"ID_FS_USAGE": "raid", "ID_FS_TYPE": "LVM2_member"},
        {"ID_FS_AMBIVALENT": "filesystem:vfat crypto:crypto_LUKS:2"},
        {"ID_FS_USAGE": "crypto", "ID_FS_TYPE": "crypto_LUKS"},  # /dev/sda is none: what cannot be looked at is not accepted
    ],
)
def test_what_is_not_encrypted_is_cut_off(gate, content):
    gate.disk({**gate.environment, "DEVNAME": "/dev/null", **content})
    assert not gate.authorised()


def test_disks_that_are_not_usb_are_none_of_its_business(gate):
    assert gate.disk({"DEVPATH": "/devices/pci0000:00/virtio/block/vda", "DEVNAME": "/dev/vda"}) == 0
    assert gate.lines == []


def test_the_sweep_ends_permissions(gate):
    gate.sweep()
    assert gate.authorised() and gate.lines == []
    gate.permit()
    gate.sweep()
    assert not gate.authorised()
    gate.sweep()
    assert len([line for line in gate.lines if "refused" in line]) == 1, "said once"


def test_no_driver_without_a_permission(gate, monkeypatch):
    monkeypatch.setattr(gate.subprocess, "run", lambda *_a, **_k: gate.subprocess.CompletedProcess([], 0))
    assert gate.load("uas") == 0
    gate.permit()
    assert gate.load("uas") == 1


@pytest.mark.parametrize(
    ("cipher", "size", "weak"),
    [
        ("aes-xts-plain64", 64, False),
        ("aes-xts-plain64", 32, True),
        ("aes-cbc-essiv:sha256", 32, True),
        ("cipher_null-ecb", 64, True),
    ],
)
def test_only_aes_256_will_do(gate, cipher, size, weak):
    metadata = {"segments": {"0": {"encryption": cipher}}, "keyslots": {"0": {"key_size": size}}}
    assert bool(gate.weakness(metadata)) is weak
    assert gate.weakness({})


def test_what_is_blank_is_looked_at_again_and_told_once(gate):
    """udev does not hear of what is written while it looks."""
    gate.seen({"ACTION": "add", "ID_USB_INTERFACES": ":080650:", "DEVPATH": "/devices/usb1/1-1"})
    for _look in range(2):
        gate.disk(gate.environment)
    assert gate.looks == ["sda", "sda"]
    assert sum("event=accepted" in line for line in gate.lines) == 1
    gate.seen({"ACTION": "add", "ID_USB_INTERFACES": ":080650:", "DEVPATH": "/devices/usb1/1-1"})
    gate.disk(gate.environment)
    assert sum("event=accepted" in line for line in gate.lines) == 2, "put in again, told again"
    gate.disk({**gate.environment, "ID_FS_TYPE": "ext4", "ID_FS_USAGE": "filesystem"})
    assert not gate.authorised()
    gate.disk(gate.environment)
    assert len(gate.looks) == 3 and "event=refused" in gate.lines[-1], "of what is cut off, nothing is accepted"


def test_the_sweep_has_permitted_ones_looked_at(gate):
    gate.sweep()
    assert gate.looks == ["sda"] and gate.authorised() and gate.lines == []


def test_hubs_are_not_told(gate):
    gate.seen({"ACTION": "add", "ID_USB_INTERFACES": ":090000:", "DEVPATH": "/devices/usb1/1-2"})
    gate.seen({"ACTION": "remove", "DEVPATH": "/devices/usb1/1-2", "PRODUCT": "46f4/2/0"})
    assert gate.lines == []


def test_what_goes_is_what_came(gate):
    """As udev tells it: of one that goes, it knows no more than the kernel."""
    came = {"ID_VENDOR_ID": "46f4", "ID_MODEL_ID": "0001", "ID_SERIAL_SHORT": "S1", "ID_MODEL": "Stick",
            "ID_USB_INTERFACES": ":080650:080662:"}  # fmt: skip
    here = {"DEVPATH": "/devices/usb1/1-1", "PRODUCT": "46f4/1/0"}
    about = 'id="46f4:0001" serial="S1" product="Stick" storage="yes" permitted="yes" port="1-1"'
    gate.seen({"ACTION": "add", **came, **here})
    gate.seen({"ACTION": "remove", **here})
    assert gate.lines == [f"event=inserted {about}", f"event=removed {about}"]
    gate.seen({"ACTION": "remove", **here})
    assert gate.lines[2:] == ['event=removed id="46f4:0001" serial="" product="" storage="no" permitted="no" port="1-1"']


@pytest.mark.parametrize("argv", [[], ["load"], ["open", "uas"]])
def test_nonsense_does_nothing(gate, argv, capsys):
    assert gate.main(argv) == 2
    assert "media_gate" in capsys.readouterr().err
