# Copyright: (c) 2026, Bulwark contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What can be tried without a kernel of one's own: drivers, rules, permissions, records. Sticks are for tests/devices."""

from __future__ import annotations

import json

import pytest

GATE = "/usr/local/lib/bulwark/media_gate"
PERMITS = "/etc/bulwark/removable_media/permits.json"


def said(host) -> str:
    """Return what the gate wrote to the journal."""
    return host.check_output("journalctl -q -o cat -t bulwark-media -n 50")


def with_permit(host, **changes):
    """Give the only permission other values, and return how it was."""
    before = host.check_output(f"cat {PERMITS}")
    wanted = json.loads(before)
    wanted["devices"][0].update(changes)
    host.check_output("printf %%s %s >%s", json.dumps(wanted), PERMITS)
    return before


@pytest.mark.parametrize("module", ["usb-storage", "uas"])
def test_a_permission_that_ended_loads_no_driver(host, module):
    """Nobody runs a playbook at midnight: the day passes, and the driver does not load any more."""
    assert json.loads(host.check_output(f"cat {PERMITS}"))["devices"][0]["serial"] == "PERMITTED1"
    assert f"{GATE} load {module}" in host.check_output(f"modprobe --dry-run --verbose {module}")
    before = with_permit(host, expires="2026-01-31")
    try:
        assert host.run(f"modprobe {module}").rc != 0
        assert f'event=refused module="{module}"' in said(host)
    finally:
        host.check_output("printf %%s %s >%s", before, PERMITS)
    count = said(host).count("event=refused module")
    host.run(f"modprobe {module}")  # there is no such module in a container, but the gate does not say no
    assert said(host).count("event=refused module") == count


def test_an_expired_permission_is_not_written_down(host):
    """What the declaration still lists and whose day has passed reaches neither USBGuard nor the gate."""
    rules = host.check_output("usbguard-rule-parser -f /etc/bulwark/removable_media/rules.conf")
    assert 'allow id 46f4:0001 serial "PERMITTED1" with-interface match-all { 08:*:* }' in rules
    assert "EXPIRED1" not in rules + host.check_output(f"cat {PERMITS}")


def test_rules_refuse_storage_and_let_keyboards_work(host):
    """As USBGuard itself reads them: the permitted stick, then a block of every class but those declared, then these."""
    rules = host.check_output("usbguard-rule-parser -f /etc/bulwark/removable_media/rules.conf")
    output = [line.removeprefix("OUTPUT: ") for line in rules.splitlines() if line.startswith("OUTPUT: ") and line != "OUTPUT: "]
    permitted, blocked, allowed = output
    assert permitted.startswith("allow id ")
    classes = {word.split(":")[0] for word in blocked.split() if word.endswith(":*:*")}
    declared = {"01", "03", "09", "0b", "0e", "10"}
    assert blocked.startswith("block with-interface one-of ")
    assert classes == {f"{number:02x}" for number in range(256)} - declared
    assert {word.split(":")[0] for word in allowed.split() if word.endswith(":*:*")} == declared


@pytest.mark.parametrize("module", ["sr_mod", "floppy", "firewire-ohci", "firewire-sbp2", "thunderbolt", "mmc_block"])
def test_media_that_nobody_needs_cannot_be_used(host, module):
    assert host.check_output(f"modprobe --dry-run --verbose {module}").strip() == "install /bin/false"
    assert host.run(f"modprobe {module}").rc != 0


@pytest.mark.parametrize(
    ("usage", "kind", "answer"),
    [
        ("filesystem", "ext4", "not encrypted: ext4"),
        ("filesystem", "vfat", "not encrypted: vfat"),
        ("raid", "LVM2_member", "not encrypted: LVM2_member"),
        ("other", "swap", "not encrypted: swap"),
        ("crypto", "BitLocker", "not encrypted: BitLocker"),
        ("crypto", "crypto_LUKS", "not encrypted with LUKS2"),  # what is no LUKS2 although it says so
        ("", "", "accepted"),
    ],
)
def test_the_gate_knows_what_is_encrypted(host, usage, kind, answer):
    assert host.check_output(f"{GATE} judge '{usage}' '{kind}'") == answer


def test_the_gate_looks_closely_at_luks(host):
    """LUKS1, or keys too short for AES-256, are refused; what the manual says is accepted. Files will do, without a kernel."""
    make = "cryptsetup luksFormat -q --pbkdf pbkdf2 --pbkdf-force-iterations 1000 --key-file /root/key"
    host.check_output("head -c 64 /dev/urandom >/root/key")
    load = (
        "import importlib.machinery as m, importlib.util as u, sys; l = m.SourceFileLoader('gate', sys.argv[1]); "
        "g = u.module_from_spec(u.spec_from_loader('gate', l)); l.exec_module(g); "
        "print(g.objection('crypto', 'crypto_LUKS', sys.argv[2]) or 'accepted')"
    )
    wanted = {
        "--type luks1": "not encrypted with LUKS2",
        "--type luks2 --cipher aes-xts-plain64 --key-size 256": "not encrypted with AES-256",
        "--type luks2 --cipher aes-cbc-essiv:sha256 --key-size 256": "not encrypted with AES-256",
        "--type luks2 --cipher aes-xts-plain64 --key-size 512": "accepted",
    }
    for options, answer in wanted.items():
        host.check_output("truncate -s 0 /root/stick; truncate -s 32M /root/stick")
        host.check_output(f"{make} {options} /root/stick")
        assert host.check_output('python3 -B -c "%s" %s /root/stick' % (load, GATE)).startswith(answer), options


def test_the_gate_tells_the_journal_and_nobody_forges_its_lines(host):
    """A stick whose name looks like a line of the log is told as what it is."""
    name = 'x" storage="no"\nevent=accepted'
    environment = (
        "ACTION=add ID_VENDOR_ID=dead ID_MODEL_ID=beef ID_SERIAL_SHORT=S1 ID_USB_INTERFACES=:080650: DEVPATH=/devices/usb1/1-1"
    )
    host.check_output(f"env {environment} ID_MODEL=%s {GATE} seen", name)
    host.check_output(f"env {environment.replace('add', 'remove')} {GATE} seen")
    lines = [line for line in said(host).splitlines() if "dead:beef" in line]
    assert len(lines) == 2, lines
    assert lines[0].startswith('event=inserted id="dead:beef" serial="S1" product="x\\" storage=\\"no\\"\\nevent=accepted"')
    assert 'storage="yes" permitted="no" port="1-1"' in lines[0]
    assert lines[1].startswith('event=removed id="dead:beef" serial="S1"')


def test_nobody_else_permits_anything(host, person):
    """A person, even in the group that the vendor trusts with it, reads no permission and changes no rule."""
    someone = person("mallory", groups=("plugdev",))
    for command in (
        f"cat {PERMITS}",
        f"echo >>{PERMITS}",
        "echo >>/etc/bulwark/removable_media/rules.conf",
        f"echo >>{GATE}",
        "echo 'install uas /sbin/modprobe -i uas' >/etc/modprobe.d/00-a.conf",
        "echo >/etc/udev/rules.d/99-bulwark-removable-media.rules",
        "usbguard allow-device 1",
    ):
        assert host.run("su %s -s /bin/sh -c %s", someone.name, command).rc != 0, command
    assert host.run(f"cat {PERMITS}").rc == 0


def test_without_a_permission_no_storage_driver_loads(host, target):
    """With nobody permitted, there is no gate to ask; permissions come back with the declaration."""
    target.reapply(removable_media_devices=[])
    try:
        for module in ("usb-storage", "uas"):
            assert host.check_output(f"modprobe --dry-run --verbose {module}").strip() == "install /bin/false"
        assert "46f4" not in host.check_output("cat /etc/bulwark/removable_media/rules.conf")
    finally:
        target.reapply()
    assert f"{GATE} load" in host.check_output("modprobe --dry-run --verbose uas")
