# SPDX-License-Identifier: GPL-3.0-or-later
"""What the collector says of a register, certificates, unfinished work and exports."""

from __future__ import annotations

import hashlib
import json
import os

import pytest
from ansible_collections.bulwark.hardening.plugins.module_utils import media_register as register
from ansible_collections.bulwark.hardening.plugins.module_utils.posture import media as module

DISK = {"id": "M-1", "model": "EXAMPLE", "serial": "1", "size": 512, "class": "moderate", "location": "Safe", "custodian": "Ann"}


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A host with a register, a declared disk and declared exports."""
    monkeypatch.setattr(register, "log", lambda event, words: None)
    monkeypatch.setattr(register, "DIRECTORY", str(tmp_path / "media"))
    monkeypatch.setattr(register, "SETTINGS", str(tmp_path / "settings.json"))
    monkeypatch.setattr(module, "timer", lambda: {"active": True, "at_boot": True, "last": "success"})
    exports = tmp_path / "exports"
    exports.mkdir()
    settings = {"media": [DISK], "unfinished_days": 14,
                "exports": [{"path": str(exports), "keep_hours": 24, "approver": "Ann", "reason": "r"}]}  # fmt: skip
    (tmp_path / "settings.json").write_text(json.dumps(settings))
    register.append(str(tmp_path / "media"), [{"event": "begun"}, *register.wanted_entries([DISK], {})])
    return tmp_path


def certify(place, **more):
    """Have the disk sanitised, with a certificate."""
    path = place / "certificate.json"
    record = {"sanitization": {"method_type": "purge"}, "destination": {"disposition": "reuse_internal"}}
    path.write_text(json.dumps(record))
    entry = {"event": "sanitised", "medium": "EXAMPLE 1", "class": "moderate", "category": "purge",
             "disposition": "reuse_internal", "certificate": str(path),
             "sha256": hashlib.sha256(path.read_bytes()).hexdigest(), **more}  # fmt: skip
    register.append(str(place / "media"), [entry])
    return path


def test_all_is_well(place):
    certify(place)
    seen = module.collect()
    assert seen["unobserved"] == {}
    assert (seen["register"]["status"], seen["register"]["mode"], seen["register"]["n"]) == ("sound", "0600", 3)
    for key in ("unrecorded", "overdue", "uncertified", "misused"):
        assert seen[key] == [], key
    assert seen["exports"] == {"expired": [], "loose": []}
    assert seen["settings"]["media"] == [DISK]


def test_a_host_without_the_role(place):
    os.unlink(register.SETTINGS)
    os.unlink(register.path_of(register.DIRECTORY))
    seen = module.collect()
    assert seen["settings"] == {} and seen["register"]["status"] == "missing" and seen["unobserved"] == {}


def test_an_altered_register(place):
    path = register.path_of(register.DIRECTORY)
    with open(path, "rb") as stream:
        data = stream.read()
    with open(path, "wb") as stream:
        stream.write(data.replace(b"Safe", b"Home"))
    seen = module.collect()
    assert seen["register"]["status"] == "altered" and "line 2" in seen["register"]["findings"][0]
    assert seen["unrecorded"] == ["EXAMPLE 1: moved"]


def test_certificates_must_be_there_and_unaltered(place):
    path = certify(place)
    path.write_text(path.read_text().replace("purge", "clear"))
    assert "was altered" in module.collect()["uncertified"][0]
    path.unlink()
    assert "No such file" in module.collect()["uncertified"][0]


def test_a_certificate_that_says_something_else(place):
    certify(place, category="clear")
    assert "something else" in module.collect()["uncertified"][0]


@pytest.mark.parametrize(
    ("entries", "word"),
    [
        ([{"event": "reused"}], "UMDNJ-I-2"),
        ([{"event": "reclassified", "class": "high"}, {"event": "reused"}], "UMDNJ-I-1"),
    ],
)
def test_misuse_is_seen(place, entries, word):
    register.append(register.DIRECTORY, [{"medium": "EXAMPLE 1", **entry} for entry in entries])
    assert word in module.collect()["misused"][0]


def test_unfinished_work_and_late_exports(place):
    (place / "media" / "jobs").mkdir()
    (place / "media" / "jobs" / "0.json").write_text(json.dumps({"medium": "EXAMPLE 1", "started_at": "2020-01-01T00:00:00Z"}))
    export = place / "exports" / "list.csv"
    export.write_text("x")
    about = os.stat(export)
    seen = {register.mark_of(str(export), about): about.st_ctime - 30 * 3600}
    (place / "media" / "exports.json").write_text(json.dumps(seen))
    os.chmod(place, 0o777)
    found = module.collect()
    os.chmod(place, 0o700)
    assert "did not end" in found["overdue"][0]
    assert found["exports"] == {"expired": [str(export)], "loose": [str(place / "exports")]}


def test_an_export_that_is_a_link_is_seen(place):
    os.rename(place / "exports", place / "elsewhere")
    os.symlink(place / "elsewhere", place / "exports")
    assert module.collect()["exports"]["loose"] == [str(place / "exports")]


def test_an_export_that_the_timer_had_no_time_for_is_not_late(place):
    export = place / "exports" / "list.csv"
    export.write_text("x")
    about = os.stat(export)
    seen = {register.mark_of(str(export), about): about.st_ctime - 24.5 * 3600}
    (place / "media" / "exports.json").write_text(json.dumps(seen))
    assert module.collect()["exports"]["expired"] == []
