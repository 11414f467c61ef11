# Copyright: (c) 2026, Bulwark contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is done with a disk that is declared, and what keeps it from being touched. Disks are files here, cryptsetup is none."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path

import pytest
from ansible_collections.bulwark.hardening.plugins.module_utils import luks

UUID, SIZE = "aaaaaaaa-0000-5000-8000-000000000001", 96 << 20
WANTED = {"name": "records", "uuid": UUID, "model": "M", "serial": "S1", "size": SIZE, "filesystem": "ext4",
          "recipients": ["age1b", "age1a"], "pbkdf_memory_mib": 64}  # fmt: skip
SEALED = b"-----BEGIN AGE ENCRYPTED FILE-----"


@pytest.fixture
def place(monkeypatch, tmp_path):
    """A disk of zeros, and directories of its keys and records. A header, once there, has slots 0 and 1."""
    monkeypatch.setattr(luks, "KEYS", str(tmp_path / "keys"))
    monkeypatch.setattr(luks, "RECORDS", str(tmp_path / "records"))
    monkeypatch.setattr(luks, "slots", lambda _device: {"0": {}, "1": {}})
    with (tmp_path / "disk").open("wb") as stream:
        stream.truncate(SIZE)
    return tmp_path


def facts(place, *signatures: tuple[str, str], **more: object) -> dict:
    """Return what block_devices.look() would say of the disk."""
    found = [{"name": "sdx", "type": kind, "usage": "", "label": "", "uuid": uuid} for kind, uuid in signatures]
    seen = {"path": str(place / "disk"), "name": "sdx", "kind": "disk", "model": "M", "serial": "S1", "size": SIZE,
            "read_only": False, "system": False, "mounts": [], "holders": [], "above": [], "signatures": found, "loops": [],
            "twins": [], "opened": [], "expected": [], "claimed": False}  # fmt: skip
    return {**seen, **more}


def record(place, stage="done", **recovery: object) -> dict:
    """Return the record of the volume, with its sealed key in place."""
    (place / "records" / "escrow").mkdir(parents=True)
    (place / "records" / "escrow" / "records.age").write_bytes(SEALED)
    known = {"slot": 1, "recipients": ["age1a", "age1b"], "sha256": hashlib.sha256(SEALED).hexdigest(), **recovery}
    return {"uuid": UUID, "stage": stage, "recovery": known}


def test_an_empty_disk_gets_it_all(place):
    assert luks.plan(facts(place), {}, WANTED) == ["create", "seal", "fill"]


def test_what_is_ours_and_whole_is_left_alone(place):
    assert luks.plan(facts(place, ("crypto_LUKS", UUID), claimed=True), record(place), WANTED) == []


@pytest.mark.parametrize(
    "recovery",
    [{"recipients": ["age1a"]}, {"recipients": ["age1a", "age1b", "age1c"]}, {"sha256": "0" * 64}, {"slot": 2}, {"slot": None}],
)
def test_a_recovery_key_that_is_not_what_it_should_be_is_made_anew(place, recovery):
    assert luks.plan(facts(place, ("crypto_LUKS", UUID)), record(place, **recovery), WANTED) == ["seal"]


def test_a_former_key_that_still_opens_is_no_whole_recovery(monkeypatch):
    """A change of custodians that was cut off right before it took the former key away is taken up."""
    record = {"recovery": {"slot": 1}}
    assert luks.alone(record, {"0", "1"}) and luks.alone(record, {"0", "1", "7"})
    for present in ({"0", "1", "2"}, {"0", "2"}, {"0"}):
        assert not luks.alone(record, present), present
    assert not luks.alone({}, {"0", "1"})


def test_another_volume_of_the_same_name_is_not_formatted(place, monkeypatch):
    ran = []
    monkeypatch.setattr(luks, "run", lambda argv, **_more: ran.append(argv))
    monkeypatch.setattr(luks, "mapped", lambda _name: "CRYPT-LUKS2-bbbbbbbb000050008000000000000001-records")
    with pytest.raises(luks.LuksError, match="is another volume"):
        luks.fill("/dev/sdx", WANTED)
    assert [argv[1] for argv in ran] == ["open"], "neither formatted nor closed"


def test_a_volume_of_our_own_is_filled(place, monkeypatch):
    ran = []
    monkeypatch.setattr(luks, "run", lambda argv, **_more: ran.append(argv))
    monkeypatch.setattr(luks, "mapped", lambda _name: f"CRYPT-LUKS2-{UUID.replace('-', '')}-records")
    monkeypatch.setattr(luks.block_devices, "signatures", lambda _path: [])
    luks.fill("/dev/sdx", WANTED)
    assert [argv[0] for argv in ran] == ["cryptsetup", "mkfs.ext4", "cryptsetup"]


def test_a_device_that_is_held_keeps_its_number(place):
    with luks.held("/dev/null") as number:
        assert number == "1:3"


def test_what_was_broken_off_is_taken_up(place):
    assert luks.plan(facts(place), {"uuid": UUID, "stage": "begun"}, WANTED) == ["create", "seal", "fill"]
    begun = {"uuid": UUID, "stage": "begun"}
    assert luks.plan(facts(place, ("crypto_LUKS", UUID)), begun, WANTED) == ["seal", "fill"]


@pytest.mark.parametrize(
    ("signatures", "more", "said"),
    [
        ([("ext4", "x")], {}, "there is something on sdx: ext4"),
        ([("crypto_LUKS", "another")], {}, "there is something on sdx: crypto_LUKS"),
        ([("crypto_LUKS", UUID)], {}, "there is something on sdx: crypto_LUKS"),  # without a record it is not ours
        ([("LVM2_member", "x")], {}, "belongs to a volume group"),
        ([], {"model": "N"}, "unexpected device"),
        ([], {"serial": "S2"}, "unexpected device"),
        ([], {"size": SIZE + 512}, "unexpected device"),
        ([], {"kind": "part"}, "it is a part"),
        ([], {"system": True}, "the running system"),
        ([], {"mounts": [{"name": "sdx1", "at": "/srv"}]}, "mounted at /srv"),
        ([], {"holders": ["vg-lv"]}, "held by vg-lv"),
        ([], {"above": [{"name": "sdx1", "kind": "part", "mounts": []}]}, "partitions: sdx1"),
        ([], {"loops": ["loop0"]}, "behind loop0"),
        ([], {"opened": ["pid 1 (x)"]}, "open in pid 1 (x)"),
        ([], {"expected": ["/etc/fstab: /dev/sdx /x"]}, "the system expects it"),
        ([], {"claimed": True}, "somebody holds it"),
        ([], {"read_only": True}, "read-only"),
    ],
)
def test_a_disk_that_is_anything_but_idle_and_empty_is_not_touched(place, signatures, more, said):
    with pytest.raises(luks.LuksError, match="is not touched") as refused:
        luks.plan(facts(place, *signatures, **more), {}, WANTED)
    assert said in str(refused.value)


def test_two_things_on_a_disk_are_not_ours_either(place):
    with pytest.raises(luks.LuksError, match="there is something on sdx: ext4"):
        luks.plan(facts(place, ("crypto_LUKS", UUID), ("ext4", "x")), record(place), WANTED)


def test_a_volume_that_was_made_and_is_gone_is_not_made_again(place):
    with pytest.raises(luks.LuksError, match="says that the volume was made"):
        luks.plan(facts(place), record(place), WANTED)


def test_a_key_that_nobody_knows_is_not_used(place):
    (place / "keys").mkdir()
    (place / "keys" / "records.key").write_bytes(b"k")
    with pytest.raises(luks.LuksError, match="nobody knows what it opens"):
        luks.plan(facts(place), {}, WANTED)


@pytest.mark.parametrize("at", [0, 1, 511, 16 << 20 - 1, (16 << 20) - 1, 33 << 20, SIZE - 1, SIZE - (16 << 20)])
def test_data_of_no_known_kind_is_seen(place, at):
    """At both ends any byte is, in between what lies in a sample."""
    step = max(luks.SAMPLE, SIZE // luks.SAMPLES // luks.SAMPLE * luks.SAMPLE)
    at = at if at < luks.EDGE or at >= SIZE - luks.EDGE else at // step * step
    with (place / "disk").open("r+b") as stream:
        stream.seek(at)
        stream.write(b"x")
    assert luks.written(str(place / "disk"), SIZE) is not None
    with pytest.raises(luks.LuksError, match="it is not empty"):
        luks.plan(facts(place), {}, WANTED)


def test_an_empty_disk_is_empty(place):
    assert luks.written(str(place / "disk"), SIZE) is None


def test_secrets_are_no_arguments(monkeypatch, place):
    """A secret goes through a file in memory, and age gets the recovery key on its standard input."""
    seen = []

    def finish(argv, **more):
        words = [word for word in argv if word.startswith("/proc/self/fd/")]
        held = [Path(word).read_bytes() for word in words]
        seen.append((argv, held, more["input"]))
        return luks.subprocess.CompletedProcess(argv, 0, SEALED, b"")

    monkeypatch.setattr(luks.subprocess, "run", finish)
    luks.seal("/dev/sdx", WANTED)
    age, kill, add, tried = seen
    secret = age[2]
    assert age[0] == ["age", "--armor", "--recipient", "age1a", "--recipient", "age1b"]
    assert kill[0][1] == "luksKillSlot", "slot 1 of a run that was broken off"
    assert add[0][1] == "luksAddKey" and add[1] == [secret]
    assert tried[0][1:3] == ["open", "--test-passphrase"] and tried[1] == [secret]
    assert not any(secret.decode() in word for argv, _held, _data in seen for word in argv)
    kept = "".join(path.read_text() for path in (place / "records").rglob("*") if path.is_file())
    assert secret.decode() not in kept
    assert json.loads((place / "records" / "records.json").read_text())["recovery"]["recipients"] == ["age1a", "age1b"]
    assert all(path.stat().st_mode & 0o77 == 0 for path in (place / "records").rglob("*"))


def test_a_recovery_key_can_be_typed_and_is_never_the_same():
    assert re.fullmatch(rb"([a-z2-7]{5}-){7}[a-z2-7]{5}", luks.recovery_key())
    assert luks.recovery_key() != luks.recovery_key()


def test_the_disk_is_the_only_one_that_fits(monkeypatch):
    node = {"kname": "sda", "maj:min": "8:0", "path": "/dev/sda", "type": "disk", "model": "M", "serial": "S1", "size": SIZE,
            "log-sec": 512, "phy-sec": 512, "rota": True, "rm": False, "ro": False, "tran": "sata"}  # fmt: skip
    disks = [node, {**node, "path": "/dev/sdb", "serial": "S2"}]
    monkeypatch.setattr(luks.block_devices, "run", lambda _argv: json.dumps({"blockdevices": disks}))
    assert luks.find({"model": "M", "serial": "S2", "size": SIZE}) == "/dev/sdb"
    for wrong in ({"model": "N"}, {"serial": "S3"}, {"size": SIZE + 1}):
        with pytest.raises(luks.LuksError, match="no disk is of model"):
            luks.find({"model": "M", "serial": "S2", "size": SIZE, **wrong})
    disks.append({**node, "path": "/dev/sdc"})
    with pytest.raises(luks.LuksError, match="2 disks are of model"):
        luks.find({"model": "M", "serial": "S1", "size": SIZE})
