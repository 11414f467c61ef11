# SPDX-License-Identifier: GPL-3.0-or-later
"""The collector of how a host is guarded against malware: databases, what the kernel guards, scans, limits."""

from __future__ import annotations

import json

import pytest
from ansible_collections.bulwark.hardening.plugins.module_utils.posture import antivirus

NOW = 1_795_608_000.0  # 2026-11-25 12:00 UTC


@pytest.fixture
def place(monkeypatch, tmp_path):
    """Have directories of a host."""
    for name in ("DIRECTORY", "STATE", "WATCH", "DATABASES"):
        (tmp_path / name.lower()).mkdir()
        monkeypatch.setattr(antivirus, name, str(tmp_path / name.lower()))
    monkeypatch.setattr(antivirus.time, "time", lambda: NOW)
    return tmp_path


@pytest.mark.parametrize(
    ("head", "seconds"),
    [
        (b"ClamAV-VDB:25 Nov 2026 09-30 -0500:27816:2078:90:x:y:builder:1", NOW + 9000),
        (b"ClamAV-VDB:25 Nov 2026 12-00 +0000:1:1:90:x", NOW),
        (b"ClamAV-VDB:25 Nov 2026 14-30 +0230:1:1:90:x", NOW),
        (b"Lab.First:0:*:4c4142", None),
        (b"", None),
    ],
)
def test_when_a_signed_database_was_built(head, seconds):
    """The header says it, in whatever zone it was built; a plain file has none."""
    assert antivirus.built(head) == seconds


def test_signatures(place):
    """Newest build, last confirmation, and what is declared but not there; the canary's own signature is no protection."""
    databases = place / "databases"
    (databases / "daily.cld").write_bytes(b"ClamAV-VDB:25 Nov 2026 06-00 +0000:2:1")
    (databases / "main.cvd").write_bytes(b"ClamAV-VDB:01 Jan 2024 00-00 +0000:1")
    for name in ("bulwark.hsb", "freshclam.dat"):
        (databases / name).write_bytes(b"x")
    (place / "state" / "update.json").write_text(json.dumps({"checked": NOW - 7200}))
    config = "# x\nDatabaseMirror a.example\nDatabaseCustomURL https://b.example/c.ndb\nX y\n"
    (place / "directory" / "freshclam.conf").write_text(config)
    seen = antivirus.signatures({"databases": ["main", "daily", "bytecode", "c.ndb"]})
    assert [entry["name"] for entry in seen["databases"]] == ["daily.cld", "main.cvd"]
    assert (seen["checked_hours"], seen["built_hours"]) == (2.0, 6.0)
    assert seen["missing"] == ["bytecode", "c.ndb"] and seen["foreign"] == []
    for name in ("c.ndb", "local.ign2", "former.ign2", "mine.fp"):
        (databases / name).write_bytes(b"x")
    assert antivirus.signatures({"databases": ["main", "daily", "c.ndb"]})["foreign"] == ["former.ign2", "mine.fp"]
    assert seen["sources"] == ["a.example", "https://b.example/c.ndb"]


@pytest.mark.parametrize(("noted", "hours"), [(None, None), ({}, None), ({"checked": NOW + 86400}, 1e6), ({"checked": NOW}, 0)])
def test_what_was_never_confirmed_is_not_fresh(place, noted, hours):
    """Neither is what a wrong clock will have confirmed tomorrow."""
    if noted is not None:
        (place / "state" / "update.json").write_text(json.dumps(noted))
    assert antivirus.signatures({})["checked_hours"] == hours


def test_marks():
    """Only what may be refused counts; flags of the descriptor and inotify do not."""
    text = (
        "pos:\t0\nflags:\t02\nfanotify flags:10 event-flags:8000\n"
        "fanotify ino:2a sdev:fe00000 mflags:0 mask:8010020 ignored_mask:0 fhandle-bytes:8\n"
        "fanotify ino:2b sdev:fe00000 mflags:0 mask:8010000 ignored_mask:0\n"
        "fanotify mnt_id:12 mflags:0 mask:20 ignored_mask:0\n"
        "inotify wd:1 ino:2a sdev:fe00000 mask:10000 ignored_mask:0\n"
    )
    assert antivirus.marks(text) == {(0xFE00000, 0x2A), (0xFE00000, 0x2B)}
    assert antivirus.marks("") == set()


def test_paths_and_mounts_that_the_kernel_does_not_guard(monkeypatch, tmp_path):
    """A path of which only the canary beside it is guarded is not, nor is a disk that was mounted below it."""
    for name in ("srv/data disk", "srv/backup", "home"):
        (tmp_path / name).mkdir(parents=True)
    srv = str(tmp_path / "srv")
    text = f"1 0 254:1 / / rw - ext4 x rw\n2 1 8:16 / {srv}/data\\040disk rw - ext4 y rw\n3 1 8:17 / {srv}/backup rw\n"
    assert antivirus.mounts(text) == {"/": 254 << 20 | 1, f"{srv}/data disk": 8 << 20 | 16, f"{srv}/backup": 8 << 20 | 17}
    monkeypatch.setattr(antivirus, "read", lambda _path: text)
    known = {(254 << 20 | 1, (tmp_path / "srv").stat().st_ino), (254 << 20 | 1, (tmp_path / "srv/data disk").stat().st_ino)}
    seen = antivirus.unguarded([srv, str(tmp_path / "home"), "/gone"], [f"{srv}/backup"], known)
    assert seen == ["/gone", str(tmp_path / "home"), str(tmp_path / "srv/data disk")]
    more = {(254 << 20 | 1, (tmp_path / "home").stat().st_ino), (8 << 20 | 16, (tmp_path / "srv/data disk").stat().st_ino)}
    assert antivirus.unguarded([srv, str(tmp_path / "home")], [f"{srv}/backup"], known | more) == []


def test_what_others_noted_is_nothing(monkeypatch, place):
    """The evidence that all is well is root's; whoever else wrote it may have had reasons."""
    (place / "watch" / "watch.json").write_text(json.dumps({"at": NOW - 60, "wrong": [], "prevention": "working"}))
    real = antivirus.os.stat
    owner = {"uid": 0}

    class About:
        def __init__(self, path):
            self.st_uid, self.st_mode = owner["uid"], real(path).st_mode

    monkeypatch.setattr(antivirus.os, "stat", lambda path, **_more: About(path))
    assert antivirus.watch(NOW) == {"age_seconds": 60, "wrong": []}
    assert antivirus.watch(NOW - 9999)["age_seconds"] == 10**9, "what is said to have been tried tomorrow was not"
    owner["uid"] = 110
    assert antivirus.watch(NOW) == {"age_seconds": None, "wrong": []}


def test_size_of_the_quarantine(place):
    """What was caught counts; a directory that is not there holds nothing."""
    (place / "state" / "caught").write_bytes(b"x" * (3 << 20))
    assert antivirus.quarantine(str(place / "state"))["mib"] == 3
    assert antivirus.quarantine("/nowhere")["mib"] == 0


def test_scan_names_what_it_left(place):
    """Under whatever name it lies by now; a record that does not say is none. What is yet to come never was."""
    assert antivirus.scan(NOW)["age_days"] is None
    noted = {"finished": NOW - 43200, "proved": True, "paths": ["/"], "found": [["/opt/x", "A"], ["/srv/x", "B"]]}
    for entry, key, wanted in (
        ({"left": ["/opt/x"], "finished": NOW + 86400}, "age_days", 1e6 / 24),
        ({"left": ["/opt/x"]}, "remaining", ["/opt/x"]),
        ({"left": ["/opt/x"]}, "proved", True),
        ({}, "proved", False),
    ):
        (place / "state" / "scan.json").write_text(json.dumps({**noted, **entry}))
        assert antivirus.scan(NOW)[key] == pytest.approx(wanted), entry


def test_what_the_scanner_goes_by(place, monkeypatch):
    """Options as they are; paths that are passed by as people write them, and any other expression as it is."""
    config = place / "directory" / "clamd.conf"
    assert antivirus.configured(str(config)) == antivirus.skipped(str(config)) == []
    config.write_text("# MaxFileSize 1M\nMaxFileSize 100M\nMaxScanTime 15000\nScanArchive yes\nOnAccessIncludePath /srv\n"
                      "ExcludePath ^/opt/a\\ b\\.c/\nExcludePath ^/opt/.*/\nExcludePath evil$\n")  # fmt: skip
    monkeypatch.setattr(antivirus, "CONFIG", str(config))
    monkeypatch.setattr(antivirus.services, "properties", lambda *_words: {})
    monkeypatch.setattr(antivirus.services, "process", lambda _unit: {"user": "", "started": None})
    seen = antivirus.scanner()
    assert seen["options"] == {"MaxFileSize": "100M", "MaxScanTime": 15000, "ScanArchive": "yes"}
    assert seen["skipped"] == ["/opt/a b.c", "^/opt/.*/", "evil$"]


@pytest.mark.parametrize("text", ["max", ""])
def test_no_limit_is_none(text):
    """What the kernel does not limit is not limited, whatever a unit asks for."""
    assert antivirus.number(text) is None
    assert antivirus.number("268435456") == 268435456


def test_limits_are_those_of_the_kernel(monkeypatch):
    """Without a control group there is none."""
    monkeypatch.setattr(antivirus.services, "run", lambda argv: "ControlGroup=\n")
    monkeypatch.setattr(antivirus, "value", lambda name, _place: "cpuset cpu memory pids" if name == "cgroup.controllers" else "")
    assert antivirus.limits() == {"enforceable": True, "memory_bytes": None, "tasks": None, "cpu_percent": None}
    monkeypatch.setattr(antivirus, "value", lambda _name, _place: "")
    assert antivirus.limits()["enforceable"] is False


def test_local_rules_of_the_site_are_kept(tmp_path):
    """What stood before ours stays; what comes behind is ours."""
    path = tmp_path / "usr.sbin.clamd"
    assert antivirus.site(str(path)) == ""
    path.write_text(f"/data/** r,\n{antivirus.MARK} from here on.\n/etc/x r,\n")
    assert antivirus.site(str(path)) == "/data/** r,\n"


def test_engine(monkeypatch):
    """Installed and to be had, of the package alone, not of each source."""
    text = "clamav-daemon:\n  Installed: 1.4.3\n  Candidate: 1.4.6\n  Version table:\n     1.4.6 500\n"
    monkeypatch.setattr(antivirus, "run", lambda argv: text)
    assert antivirus.engine() == {"installed": "1.4.3", "candidate": "1.4.6"}
    monkeypatch.setattr(antivirus, "run", lambda argv: "")
    assert antivirus.engine() == {"installed": "(none)", "candidate": "(none)"}


@pytest.mark.parametrize(
    ("protect", "label", "confined"),
    [("strict", "unconfined\n", True), ("no", "/usr/sbin/clamd (enforce)\n", True), ("no", "/usr/sbin/clamd (complain)\n", False),
     ("no", "unconfined\n", False), ("no", None, False)],
)  # fmt: skip
def test_scanner_is_confined_by_its_unit_or_by_a_profile_that_is_enforced(tmp_path, monkeypatch, protect, label, confined):
    """That the kernel knows AppArmor says nothing of this process."""
    path = tmp_path / "current"
    if label is not None:
        path.write_text(label)
    about = {"ActiveState": "active", "MainPID": "1", "ProtectSystem": protect}
    monkeypatch.setattr(antivirus.services, "properties", lambda unit, *names: about)
    monkeypatch.setattr(antivirus.services, "process", lambda unit: {"user": "clamav", "started": 0.0})
    monkeypatch.setattr(antivirus, "ask", lambda command: "PONG")
    monkeypatch.setattr(antivirus, "enforced", lambda _path, honest=antivirus.enforced: honest(str(path)))
    assert antivirus.scanner()["confined"] is confined


def test_whom_the_guard_lets_through_is_told(monkeypatch, place):
    monkeypatch.setattr(antivirus.services, "properties", lambda unit, *names: {"MainPID": "0"})
    config = place / "directory" / "clamd.conf"
    config.write_text("OnAccessIncludePath /srv\nOnAccessExcludeUname clamav\nOnAccessExcludeUname www-data\n")
    monkeypatch.setattr(antivirus, "CONFIG", str(config))
    seen = antivirus.guard(NOW, {})
    assert seen["spared"] == ["clamav", "www-data"] and seen["paths"] == ["/srv"]
