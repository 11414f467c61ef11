# SPDX-License-Identifier: GPL-3.0-or-later
"""media_sanitize from the first look to the certificate, over a file that stands for a disk. Real devices: tests/devices."""

from __future__ import annotations

import json
import os

import pytest
from ansible_collections.bulwark.hardening.plugins.module_utils import block_devices, media, media_device, media_register
from ansible_collections.bulwark.hardening.plugins.modules import media_sanitize as module

SIZE = 6 << 20
CANARY = b"CANARY".ljust(512, b"\xa5")
PEOPLE = {"performed_by": {"name": "Ann"}, "validated_by": {"name": "Bob"}}


class Ended(Exception):
    """The module ended."""


class Disk:
    """A file that stands for a disk, and ways to sanitise it."""

    def __init__(self, monkeypatch, directory) -> None:
        """Fill it."""
        self.path = str(directory / "disk")
        self.directory = directory
        self.monkeypatch = monkeypatch
        self.able = {"overwrite": ""}
        self.more = {}
        self.logged = []
        with open(self.path, "wb") as stream:
            stream.write(CANARY * (SIZE // 512))
        monkeypatch.setattr(block_devices, "look", lambda path, claim=True: {**self.facts(), **self.more})
        monkeypatch.setattr(module, "abilities", lambda facts: (self.able, {"payloads": [], "luks": [], "hidden": 0}))
        monkeypatch.setattr(media_device, "open_alone", lambda path: os.open(path, os.O_RDWR))
        monkeypatch.setattr(media_device, "size_of", lambda descriptor: SIZE)
        monkeypatch.setattr(media_device, "forget_caches", lambda descriptor: None)
        monkeypatch.setattr(media_register, "log", lambda event, words: self.logged.append((event, words)))
        monkeypatch.setattr(module, "vendor", lambda facts: "EXAMPLE")

    def facts(self) -> dict:
        """Return what look() would."""
        number = os.stat(self.path).st_rdev
        return {
            "path": self.path, "name": "disk", "device": f"{os.major(number)}:{os.minor(number)}", "kind": "disk",
            "model": "EXAMPLE", "wwn": "",
            "serial": "EX1", "size": SIZE, "sector": 512, "physical_sector": 512, "transport": "sata",
            "rotational": True,
            "removable": False, "read_only": False, "discards": False, "above": [], "mounts": [], "holders": [], "signatures": [],
            "loops": [], "twins": [], "opened": [], "expected": [], "claimed": False, "system": False,
        }  # fmt: skip

    def content(self) -> bytes:
        """Return all of it."""
        with open(self.path, "rb") as stream:
            return stream.read()

    def register(self) -> list[str]:
        """Return the events of the register."""
        entries, findings = media_register.examine(media_register.load(str(self.directory / "state")))
        assert not findings
        return [entry["event"] for entry in entries]

    def sanitise(self, check: bool = False, **more: object) -> tuple[bool, dict]:
        """Run the module; return whether it failed, and its result."""
        found = []
        params = {
            "device": self.path, "model": "EXAMPLE", "serial": "EX1", "size": SIZE, "confirm": "erase EX1",
            "classification": "moderate",
            "category": "clear", "method": "auto", "encrypted_before_data": False, "disposition": "destroy", "destination": "",
            "verification": "full", "retention_cleared_by": "Committee", "retention_cleared_on": "2026-01-01", **PEOPLE,
            "property_number": "M-1", "source": "", "backed_up": "no", "backup_location": "", "notes": "",
            "directory": str(self.directory / "state"), **more,
        }  # fmt: skip

        class Module:
            """Stands for AnsibleModule."""

            ansible_version = "0"

            def __init__(self, **_spec):
                self.params, self.check_mode = params, check

            def exit_json(self, **result):
                found.append((False, result))
                raise Ended

            def fail_json(self, **result):
                found.append((True, result))
                raise Ended

        self.monkeypatch.setattr(module, "AnsibleModule", Module)
        with pytest.raises(Ended):
            module.main()
        return found[-1]


@pytest.fixture
def disk(monkeypatch, tmp_path) -> Disk:
    """A disk full of a pattern."""
    return Disk(monkeypatch, tmp_path)


def test_without_the_words_nothing_happens(disk):
    failed, result = disk.sanitise(confirm="")
    assert not failed and not result["changed"] and result["plan"]["method"] == "overwrite" and result["objections"] == []
    assert disk.content() == CANARY * (SIZE // 512) and not (disk.directory / "state").exists()


def test_check_mode_foretells_and_does_nothing(disk):
    failed, result = disk.sanitise(check=True)
    assert not failed and result["changed"]
    assert disk.content() == CANARY * (SIZE // 512) and not (disk.directory / "state").exists()


def test_it_is_overwritten_read_back_certified_and_recorded(disk):
    failed, result = disk.sanitise()
    assert not failed, result["msg"]
    assert disk.content() == bytes(SIZE)
    record = result["certificate"]
    assert media.missing_fields(record) == []
    assert record["sanitization"]["verified"] == f"{SIZE} of {SIZE} bytes"
    with open(result["certificate_path"], encoding="utf-8") as stream:
        assert media.digest(stream.read()) == result["certificate_sha256"]
    assert os.stat(result["certificate_path"]).st_mode & 0o777 == 0o600
    assert disk.register() == ["started", "sanitised"]
    assert {"started", "progress", "sanitised"} <= {event for event, _words in disk.logged}
    assert os.listdir(disk.directory / "state" / "jobs") == [os.path.basename(result["progress"])]
    with open(result["progress"], encoding="utf-8") as stream:
        assert stream.read() == "100 ended: sanitised\n"


@pytest.mark.parametrize(
    ("seen", "params", "word"),
    [
        ({"mounts": [{"name": "disk", "at": "/srv"}]}, {}, "mounted at /srv"),
        ({"claimed": True}, {}, "somebody holds it"),
        ({}, {"serial": "EX2"}, "unexpected device"),
        ({}, {"confirm": "yes"}, "must be the words"),
        ({}, {"confirm": "erase EX2"}, "must be the words"),
        ({}, {"category": "purge"}, "no method gives a purge"),
        ({}, {"retention_cleared_by": ""}, "UMDNJ-F-1"),
        ({}, {"validated_by": {"name": "Ann"}}, "two people"),
        ({}, {"validated_by": {}}, "two people"),
        ({}, {"disposition": "reuse_internal"}, "UMDNJ-I-2"),
        ({}, {"classification": "high", "disposition": "reuse_internal"}, "UMDNJ-I-1"),
    ],
)
def test_refused_before_anything_changes(disk, seen, params, word):
    disk.more = seen
    failed, result = disk.sanitise(**params)
    assert failed and word in result["msg"] and result["msg"].startswith("Refused")
    assert disk.content() == CANARY * (SIZE // 512) and not (disk.directory / "state").exists()


@pytest.mark.parametrize(
    ("known", "given", "refused"), [("high", "moderate", True), ("moderate", "moderate", False), ("low", "high", False)]
)
def test_the_class_that_the_register_knows_is_not_talked_down(disk, known, given, refused):
    declared = {"event": "declared", "medium": "EXAMPLE EX1", "id": "M-1", "class": known, "location": "x", "custodian": "y"}
    media_register.append(str(disk.directory / "state"), [declared])
    failed, result = disk.sanitise(classification=given)
    assert failed is refused and ("UMDNJ-I-1" in result["msg"]) is refused
    assert (disk.content() == bytes(SIZE)) is not refused


def test_a_disk_that_gets_used_at_the_last_moment_is_left(disk, monkeypatch):
    looks = []

    def look(path, claim=True):
        looks.append(claim)
        return {**disk.facts(), "mounts": [] if len(looks) == 1 else [{"name": "disk", "at": "/srv"}]}

    monkeypatch.setattr(block_devices, "look", look)
    failed, result = disk.sanitise()
    assert failed and "changed while" in result["msg"] and looks == [True, False]
    assert disk.content() == CANARY * (SIZE // 512)


def test_a_cut_goes_on_and_reads_everything_back(disk, monkeypatch):
    real = os.pwrite

    def cut(descriptor, data, at):
        if at >= 4 << 20:
            raise KeyboardInterrupt
        return real(descriptor, data, at)

    monkeypatch.setattr(media_device.os, "pwrite", cut)
    with pytest.raises(KeyboardInterrupt):
        disk.sanitise(verification="sample")
    assert disk.register() == ["started"] and not (disk.directory / "state" / "certificates").exists()
    monkeypatch.setattr(media_device.os, "pwrite", real)
    assert disk.sanitise(confirm="")[1]["resumes"]
    failed, result = disk.sanitise(verification="sample")
    assert not failed and result["resumes"] and disk.content() == bytes(SIZE)
    how = result["certificate"]["sanitization"]
    assert (how["interruptions"], how["verification"]) == (1, "full")


def test_it_goes_on_from_what_is_on_the_device_for_certain(disk):
    place = disk.directory / "state" / "jobs"
    place.mkdir(parents=True)
    _failed, result = disk.sanitise(confirm="")
    job = {"medium": "EXAMPLE EX1", "method": "overwrite", "started_at": "2026-11-28T00:00:00Z", "step": 0, "done": 4 << 20,
           "interruptions": 0, "seed": 1, "witnesses": None, "plan": result["plan"]}  # fmt: skip
    (place / f"{media.key_of(disk.facts())}.json").write_text(json.dumps(job))
    failed, result = disk.sanitise()
    assert failed and "byte 0 (sector 0)" in result["msg"], "the first part was said to be written, and is not"
    assert disk.content()[4 << 20 :] == bytes(2 << 20), "only the rest was written"
    failed, result = disk.sanitise()
    assert not failed and disk.content() == bytes(SIZE), "after a failure it begins at the start"
    assert result["certificate"]["sanitization"]["started_at"] == "2026-11-28T00:00:00Z"


def test_a_cut_between_reading_and_certifying_reads_again(disk, monkeypatch):
    def cut(*_arguments):
        raise KeyboardInterrupt

    real = module.certificate
    monkeypatch.setattr(module, "certificate", cut)
    with pytest.raises(KeyboardInterrupt):
        disk.sanitise()
    monkeypatch.setattr(module, "certificate", real)
    with open(disk.path, "r+b") as stream:
        stream.write(b"back again")
    failed, result = disk.sanitise()
    assert failed and "byte 0 " in result["msg"]


@pytest.mark.parametrize(
    ("deed", "word"), [("true", "still hold what they held"), ("false", "exit 1"), ("no-such-tool", "no-such-tool")]
)
def test_a_tool_is_not_believed(disk, monkeypatch, deed, word):
    disk.able["discard"] = ""
    steps = media.steps_of

    def with_deed(*arguments):
        made = steps(*arguments)
        made[0]["argv"] = [deed]
        return made

    monkeypatch.setattr(media, "steps_of", with_deed)
    monkeypatch.setitem(module.VERSIONS, deed, ["true"])
    failed, result = disk.sanitise(method="discard")
    assert failed and word in result["msg"] and result["msg"].startswith("NOT SANITISED")
    assert disk.register() == ["started", "failed"]
    assert "certificate" not in result and disk.content() == CANARY * (SIZE // 512)


def test_a_try_after_a_failure_rests_on_nothing_of_before(disk, monkeypatch):
    """The medium was used in between: a tool that lies now must not profit from what it was seen to do then."""
    disk.able["discard"] = ""
    steps = media.steps_of
    deeds = [["dd", "if=/dev/zero", f"of={disk.path}", "bs=1M", "count=6", "conv=notrunc", "status=none"], ["true"]]

    def with_deed(*arguments):
        made = steps(*arguments)
        made[0]["argv"] = deeds[0]
        return made

    def unreadable(*_arguments):
        raise media_device.DeviceLies("read error at byte 0")

    monkeypatch.setattr(media, "steps_of", with_deed)
    for tool in ("dd", "true"):
        monkeypatch.setitem(module.VERSIONS, tool, ["true"])
    with monkeypatch.context() as patch:
        patch.setattr(media_device, "verify", unreadable)
        assert disk.sanitise(method="discard")[0]
    with open(disk.path, "wb") as stream:
        stream.write(b"OTHER".ljust(512, b"\x5a") * (SIZE // 512))
    deeds.pop(0)
    failed, result = disk.sanitise(method="discard")
    assert failed and "still hold what they held" in result["msg"], result["msg"]


def test_what_failed_is_planned_anew(disk):
    """Where ciphertext lay then says nothing of what lies there now."""
    place = disk.directory / "state" / "jobs"
    place.mkdir(parents=True)
    plan = {"method": "crypto_erase", "category": "clear", "payloads": [[1 << 20, SIZE]], "luks": [], "why": "", "others": []}
    job = {"medium": "EXAMPLE EX1", "method": "crypto_erase", "started_at": "2026-11-28T00:00:00Z", "step": 0, "done": 0,
           "interruptions": 0, "seed": 1, "witnesses": [], "plan": plan, "failed": True}  # fmt: skip
    (place / f"{media.key_of(disk.facts())}.json").write_text(json.dumps(job))
    failed, result = disk.sanitise()
    assert not failed and result["plan"]["method"] == "overwrite" and disk.content() == bytes(SIZE)


def test_whoever_follows_is_told_of_every_end(disk, monkeypatch):
    def held(_path):
        raise media_device.DeviceLies("somebody holds it")

    monkeypatch.setattr(media_device, "open_alone", held)
    failed, result = disk.sanitise()
    with open(result["progress"], encoding="utf-8") as stream:
        assert failed and stream.read() == "100 ended: failed: somebody holds it\n"


def test_an_honest_tool_comes_through(disk, monkeypatch):
    disk.able["discard"] = ""
    steps = media.steps_of

    def with_deed(*arguments):
        made = steps(*arguments)
        made[0]["argv"] = ["sh", "-c", f"head -c {SIZE} /dev/zero | dd of={disk.path} conv=notrunc status=none"]
        return made

    monkeypatch.setattr(media, "steps_of", with_deed)
    monkeypatch.setitem(module.VERSIONS, "sh", ["echo", "sh 0"])
    failed, result = disk.sanitise(method="discard")
    assert not failed, result["msg"]
    how = result["certificate"]["sanitization"]
    assert "sh 0" in how["tools"] and "held other data after it" in how["verification_result"]


def test_an_altered_register_stops_everything(disk):
    place = disk.directory / "state"
    place.mkdir()
    (place / "register.jsonl").write_text("forged\n")
    failed, result = disk.sanitise()
    assert failed and "takes no more entries" in result["msg"]
    assert disk.content() == CANARY * (SIZE // 512)


def test_another_method_begins_anew(disk):
    place = disk.directory / "state" / "jobs"
    place.mkdir(parents=True)
    (place / f"{media.key_of(disk.facts())}.json").write_text(json.dumps({"method": "discard", "plan": {}}))
    failed, result = disk.sanitise(method="overwrite")
    assert not failed and not result["resumes"] and result["certificate"]["sanitization"]["interruptions"] == 0


# --- what a drive is asked -----------------------------------------------------------------------------------------------


def test_namespaces_are_counted_over_all_controllers_of_a_drive(tmp_path):
    """Another controller of the same drive may show one that ours does not; a second path to one is no second one."""
    system = tmp_path / "class" / "nvme-subsystem" / "nvme-subsys0"
    for name in ("nvme0", "nvme1", "nvme0n1"):
        (system / name).mkdir(parents=True)
    for controller, names in (("nvme0", ["nvme0c0n1"]), ("nvme1", ["nvme0c1n1"]), ("nvme2", ["nvme2n1", "nvme2n2"])):
        for name in (*names, "hwmon3", "power"):
            (tmp_path / "class" / "nvme" / controller / name).mkdir(parents=True)
    assert module.namespaces("nvme0", str(tmp_path)) == 1
    (tmp_path / "class" / "nvme" / "nvme1" / "nvme0c1n2").mkdir()
    assert module.namespaces("nvme0", str(tmp_path)) == 2
    assert module.namespaces("nvme2", str(tmp_path)) == 2
    assert module.namespaces("nvme9", str(tmp_path)) == 0


@pytest.mark.parametrize(
    ("oacs", "shown", "listed", "several"),
    [(2, 1, 1, False), (2, 2, 1, True), (0xA, 1, 1, False), (0xA, 1, 2, True), (0xA, 2, 2, True)],
)
def test_a_drive_of_several_namespaces_is_not_sanitised_in_part(tmp_path, monkeypatch, oacs, shown, listed, several):
    """Whatever the method: the certificate would speak of the whole drive."""
    asked = []

    def run(argv, allowed=(0,)):
        asked.append(argv[1])
        ids = [{"nsid": number} for number in range(listed)]
        return json.dumps({"sanicap": 7, "fna": 4, "oacs": oacs} if argv[1] == "id-ctrl" else {"nsid_list": ids})

    monkeypatch.setattr(block_devices, "run", run)
    monkeypatch.setattr(block_devices, "text", lambda path: "S1")
    monkeypatch.setattr(module, "namespaces", lambda controller: shown)
    facts = {"transport": "nvme", "path": "/dev/nvme0n1", "name": "nvme0n1", "serial": "S1", "discards": True, "signatures": [],
             "size": SIZE}  # fmt: skip
    able, _more = module.abilities(facts)
    assert ("list-ns" in asked) is bool(oacs & 8)
    for method in ("overwrite", "discard", "nvme_format", "nvme_sanitize_crypto"):
        assert ("namespaces" in able[method]) is several, method


def test_a_drive_that_may_hide_sectors_and_does_not_say_is_refused(monkeypatch):
    def run(argv, allowed=(0,)):
        raise block_devices.DeviceError("bad/missing sense data")

    monkeypatch.setattr(block_devices, "run", run)
    assert "does not say" in module.hidden("/dev/sda", "\t   *\tHost Protected Area feature set\n", 1000)
    assert module.hidden("/dev/sda", "\t   *\tSMART feature set\n", 1000) == ""
    monkeypatch.setattr(block_devices, "run", lambda argv, allowed=(0,): " max sectors   = 900/1000, HPA is enabled")
    assert "hides 100 sectors" in module.hidden("/dev/sda", "\t   *\tHost Protected Area feature set\n", 900)
