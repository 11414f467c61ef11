# SPDX-License-Identifier: GPL-3.0-or-later
"""The program of role antivirus: what counts as an update, as a scan, and as a guard that is awake."""

from __future__ import annotations

import errno
import importlib.util
import json
import os
import time
from pathlib import Path

import pytest

PATH = Path(__file__).resolve().parents[3] / "roles" / "antivirus" / "files" / "antivirus.py"
SPEC = importlib.util.spec_from_file_location("antivirus", PATH)
antivirus = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(antivirus)
SAID: list[str] = []


@pytest.fixture(autouse=True)
def place(monkeypatch, tmp_path):
    """Have directories of a host, and keep what would go to the journal."""
    SAID.clear()
    monkeypatch.setattr(antivirus.syslog, "syslog", lambda _priority, text: SAID.append(text))
    for name in ("STATE", "WATCH", "CANARIES", "DATABASES"):
        (tmp_path / name.lower()).mkdir()
        monkeypatch.setattr(antivirus, name, str(tmp_path / name.lower()))
    (tmp_path / "quarantine").mkdir()
    (tmp_path / "before").touch()
    monkeypatch.setattr(antivirus, "BEFORE", str(tmp_path / "before"))
    monkeypatch.setattr(antivirus, "age", lambda _unit: 9999)
    monkeypatch.setattr(antivirus, "restarts", lambda _unit: 0)
    monkeypatch.setattr(antivirus, "unguarded", lambda _settings: [])
    monkeypatch.setattr(antivirus.time, "sleep", lambda _seconds: None)
    monkeypatch.setattr(antivirus, "ask", lambda command: {"PING": "PONG", "RELOAD": "RELOADING"}[command])
    return tmp_path


def settings(place, **more) -> dict:
    """Return what the role would write."""
    return {
        "updater": ["freshclam"], "databases": ["lab.ndb"], "prevention": True, "quarantine": str(place / "quarantine"),
        "quarantine_max_mib": 1, "signature_max_age_hours": 24, "scan_max_age_days": 8, "scanner": ["clamdscan"],
        "rest": ["rest"], "paths": [str(place)], "scan_paths": [str(place)], "excluded": [], **more,
    }  # fmt: skip


def answers(monkeypatch, *answers: tuple[int, str]) -> list[list[str]]:
    """Have commands answered in this order; return those that were given."""
    given, left = [], list(answers)

    def run(command, _seconds):
        given.append(command)
        return left.pop(0)

    monkeypatch.setattr(antivirus, "run", run)
    return given


# As freshclam 1.4 says it.
OFFICIAL = """daily.cvd database is up-to-date (version: 27816, sigs: 2078000, f-level: 90, builder: raynman)
main.cvd updated (version: 62, sigs: 6647427, f-level: 90, builder: sigmgr)
bytecode.cld database is up-to-date (version: 339, sigs: 80, f-level: 90, builder: nrandolp)
lab.ndb is up-to-date (version: custom database)
"""


def test_update_counts_when_all_are_confirmed(monkeypatch, place):
    """Each declared database by name, compressed or not."""
    answers(monkeypatch, (0, OFFICIAL))
    assert antivirus.update(settings(place, databases=["main", "daily", "bytecode", "lab.ndb"])) == 0
    noted = json.loads((place / "state" / "update.json").read_text())
    assert noted["databases"]["main.cvd"] == "62" and abs(noted["checked"] - time.time()) < 5
    assert SAID == ["event=signatures_new databases=bulwark.hsb scanner=RELOADING"]


@pytest.mark.parametrize(("code", "said"), [(0, "lab.ndb is up-to-date (version: 1)"), (11, OFFICIAL), (0, "")])
def test_update_that_lacks_one_does_not_count(monkeypatch, place, code, said):
    """Neither does one that says 0 and names nothing, nor one that names all and fails."""
    answers(monkeypatch, (code, said))
    assert antivirus.update(settings(place, databases=["daily", "lab.ndb"])) == 1
    assert not (place / "state" / "update.json").exists()
    assert SAID[-1].startswith("event=update_failed")


def test_canary_that_can_be_opened_means_off(place):
    """Here nobody guards anything."""
    assert antivirus.prevention(settings(place)) == "off"
    assert list((place / "canaries").iterdir()) == []


def test_canary_that_is_refused_means_working_and_leaves_nothing(monkeypatch, place):
    """The guard refuses and takes it away; only canaries leave the quarantine again."""
    (place / "quarantine" / "bulwark-canary").write_bytes(antivirus.CANARY)
    (place / "quarantine" / "bulwark-canary.001").write_bytes(b"!" * len(antivirus.CANARY))
    (place / "quarantine" / "invoice").write_bytes(antivirus.CANARY)

    def refuse(_path):
        return False

    monkeypatch.setattr(antivirus, "opened", refuse)
    assert antivirus.prevention(settings(place)) == "working"
    assert sorted(path.name for path in (place / "quarantine").iterdir()) == ["bulwark-canary.001", "invoice"]


@pytest.mark.parametrize(("number", "answer"), [(errno.EPERM, False), (errno.EACCES, None), (errno.EIO, None)])
def test_only_the_guards_refusal_counts(monkeypatch, number, answer):
    """Permissions and broken disks refuse, too, and guard nothing."""

    def fail(*_arguments):
        raise OSError(number, "x")

    monkeypatch.setattr("builtins.open", fail)
    if answer is None:
        with pytest.raises(OSError):
            antivirus.opened("/x")
    else:
        assert antivirus.opened("/x") is answer


def test_watch_says_all_that_is_wrong(monkeypatch, place):
    """No scanner, no guard, signatures that were never confirmed, a scan long ago, a quarantine that nobody looks at."""
    monkeypatch.setattr(antivirus, "ask", lambda _command: "")
    monkeypatch.setattr(antivirus, "trial", lambda _before: "off")
    (place / "state" / "scan.json").write_text(json.dumps({"finished": time.time() - 9 * 86400}))
    os.truncate(os.open(place / "quarantine" / "invoice", os.O_CREAT | os.O_WRONLY), 2 << 20)
    antivirus.watch(settings(place))
    noted = json.loads((place / "watch" / "watch.json").read_text())
    assert noted["wrong"] == ["scanner_off", "prevention_off", "signatures_stale", "scan_overdue", "quarantine_full"]
    assert "event=signatures_stale hours=never limit=24" in SAID
    assert all("can be opened" in line for line in SAID[:2])


@pytest.mark.parametrize(
    ("noted", "state", "ended", "said"),
    [(0, "working", 0, False), (0, "working", 2, True), (3, "working", 0, False), (0, "hangs", 1, False), (0, "hangs", 2, True)],
)
def test_guard_that_ended_in_between_is_said(monkeypatch, place, noted, state, ended, said):
    """It works when it is tried, and was away before. That the watch itself ended it does not count."""
    monkeypatch.setattr(antivirus, "trial", lambda _before: "working")
    monkeypatch.setattr(antivirus, "restarts", lambda _unit: ended)
    (place / "state" / "update.json").write_text(json.dumps({"checked": time.time() - 3600}))
    (place / "watch" / "watch.json").write_text(json.dumps({"restarts": noted, "prevention": state}))
    antivirus.watch(settings(place))
    noted = json.loads((place / "watch" / "watch.json").read_text())
    assert noted["restarts"] == ended and ("guard_ended" in noted["wrong"]) is said
    antivirus.watch(settings(place))
    assert json.loads((place / "watch" / "watch.json").read_text())["wrong"] == [], "said once"


def test_watch_keeps_quiet_when_all_is_well(monkeypatch, place):
    """Nothing is said, and that is noted. A host that is new here was not scanned yet."""
    monkeypatch.setattr(antivirus, "trial", lambda _before: "working")
    (place / "state" / "update.json").write_text(json.dumps({"checked": time.time() - 3600}))
    antivirus.watch(settings(place))
    assert SAID == []
    assert json.loads((place / "watch" / "watch.json").read_text())["prevention"] == "working"


@pytest.mark.parametrize(("days", "said"), [(7, []), (9, ["event=scan_overdue days=9.0 limit=8"])])
def test_host_that_was_never_scanned_is_overdue_some_time(monkeypatch, place, days, said):
    """It has as long for its first scan as from one to the next, and no longer."""
    monkeypatch.setattr(antivirus, "trial", lambda _before: "working")
    (place / "state" / "update.json").write_text(json.dumps({"checked": time.time()}))
    os.utime(place / "before", (0, time.time() - days * 86400))
    antivirus.watch(settings(place))
    assert said == SAID


@pytest.mark.parametrize("moment", [None, "yesterday", time.time() + 86400])
def test_what_is_yet_to_come_never_was(moment):
    """A clock that was ahead for a while does not make signatures fresh for as long."""
    assert antivirus.hours_since(moment) is None


# ------------------------------------------------------------------------------------------------------------------------------
# Whether all of it is guarded, and whether the guard answers


@pytest.mark.parametrize(("code", "state"), [(0, "working"), (3, "off"), (1, "off")])
def test_trial_is_a_childs(monkeypatch, place, code, state):
    """Its exit code says what came of it."""
    (place / "program").write_text(f"#!/bin/sh\nexit {code}\n")
    (place / "program").chmod(0o755)
    monkeypatch.setattr(antivirus, "PROGRAM", str(place / "program"))
    assert antivirus.trial() == state


@pytest.mark.parametrize(
    ("seconds", "before", "answer", "ended"),
    [
        (9999, "working", "PONG", antivirus.UNITS[1:]),
        (9999, "hangs", "PONG", antivirus.UNITS),
        (9999, "working", "", antivirus.UNITS),
        (10, "hangs", "", ()),
    ],
)
def test_guard_that_does_not_answer_is_ended(monkeypatch, place, seconds, before, answer, ended):
    """The child is killed; so is the guard, and the scanner if it does not answer or if it is the second time, unless that is
    still loading its signatures.
    """
    (place / "program").write_text(f"#!/bin/sh\necho $$ >{place}/pid\nexec sleep 600\n")
    (place / "program").chmod(0o755)
    monkeypatch.setattr(antivirus, "PROGRAM", str(place / "program"))
    monkeypatch.setattr(antivirus, "PATIENCE", 1)
    monkeypatch.setattr(antivirus, "age", lambda _unit: seconds)
    monkeypatch.setattr(antivirus, "ask", lambda *_words: answer)
    (place / "watch" / "watch.json").write_text(json.dumps({"prevention": before}))
    given = answers(monkeypatch, (0, ""))
    antivirus.watch(settings(place))
    assert any(line.startswith("event=guard_hangs seconds=1 ") for line in SAID)
    assert json.loads((place / "watch" / "watch.json").read_text())["prevention"] == "hangs"
    assert given == [["systemctl", "kill", "--signal=KILL", *ended]] * bool(ended)
    assert not Path("/proc", (place / "pid").read_text().strip()).exists()


def guarding(monkeypatch, place, *directories: Path, mounted: tuple[Path, ...] = ()) -> None:
    """Have the kernel guard these directories, and file systems mounted on those."""
    monkeypatch.setattr(antivirus, "unguarded", UNGUARDED)
    monkeypatch.setattr(antivirus, "run", lambda _command, _seconds: (0, "42\n"))
    monkeypatch.setattr(antivirus, "mounts", lambda: {"/": 7, **{str(path): 8 for path in mounted}})
    found = {(8 if any(path.is_relative_to(top) for top in mounted) else 7, path.stat().st_ino) for path in directories}
    monkeypatch.setattr(antivirus, "marks", lambda pid: found if pid == "42" else set())


UNGUARDED = antivirus.unguarded


def test_directory_that_the_kernel_does_not_guard_is_named(monkeypatch, place):
    """The path itself, one below it, and what is mounted below it; not what is excluded, nor on another device by chance."""
    tops = {name: place / "srv" / name for name in (".", "a", "a/b", "data", "data/x", "backup", "backup/y")}
    for path in tops.values():
        path.mkdir(parents=True, exist_ok=True)
    words = settings(place, paths=[str(place / "srv")], excluded=[str(place / "srv/backup")])
    all_of_it = [tops[name] for name in (".", "a", "a/b", "data", "data/x")]
    guarding(monkeypatch, place, *all_of_it, mounted=(tops["data"],))
    assert antivirus.unguarded(words) == []
    assert antivirus.wanted(words, antivirus.mounts()) == [str(tops["data"]), str(place / "srv")]
    words["paths"].append(str(tops["a/b"]))
    assert antivirus.wanted(words, antivirus.mounts()) == [str(tops["data"]), str(place / "srv")], "it is within another"
    for missing in all_of_it:
        guarding(monkeypatch, place, *(path for path in all_of_it if path != missing), mounted=(tops["data"],))
        assert antivirus.unguarded(words) == [str(missing)]
    guarding(monkeypatch, place, *all_of_it)
    monkeypatch.setattr(antivirus, "mounts", lambda: {"/": 9})
    assert len(antivirus.unguarded(words)) == 5
    words["paths"].append(str(place / "gone"))
    assert str(place / "gone") in antivirus.unguarded(words)


@pytest.mark.parametrize(("noted", "seconds", "again"), [([], 9999, True), (["/srv/x"], 9999, False), ([], 10, False)])
def test_guard_begins_anew_once_for_what_it_does_not_guard(monkeypatch, place, noted, seconds, again):
    """That mends what was mounted since. What it does not mend is said, and does not have the guard begin for ever."""
    monkeypatch.setattr(antivirus, "trial", lambda _before: "working")
    monkeypatch.setattr(antivirus, "unguarded", lambda _settings: ["/srv/x"])
    monkeypatch.setattr(antivirus, "age", lambda _unit: seconds)
    (place / "watch" / "watch.json").write_text(json.dumps({"unguarded": noted}))
    given = answers(monkeypatch, (0, ""))
    antivirus.watch(settings(place))
    assert any(line.startswith("event=path_unguarded paths=/srv/x count=1 ") for line in SAID)
    assert bool(given) is again
    noted = json.loads((place / "watch" / "watch.json").read_text())
    assert noted["unguarded"] == ["/srv/x"] and "path_unguarded" in noted["wrong"]


def test_guard_begins_anew_once_for_many_directories_too(monkeypatch, place):
    monkeypatch.setattr(antivirus, "trial", lambda _before: "working")
    monkeypatch.setattr(antivirus, "unguarded", lambda _settings: [f"/srv/{number}" for number in range(150)])
    monkeypatch.setattr(antivirus, "age", lambda _unit: 9999)
    given = answers(monkeypatch, (0, ""), (0, ""))
    antivirus.watch(settings(place))
    antivirus.watch(settings(place))
    assert len(given) == 1


def test_marks_are_those_that_can_refuse(monkeypatch):
    """As the kernel shows them; what is only told is not guarded."""
    text = (
        "fanotify flags:10 event-flags:8000\nfanotify ino:2a sdev:fe00001 mflags:0 mask:8030000 ignored_mask:0 fhandle-bytes:8\n"
        "fanotify ino:2b sdev:fe00001 mflags:0 mask:8000020 ignored_mask:10000\ninotify wd:1 ino:2a sdev:1 mask:10000\n"
    )
    monkeypatch.setattr(antivirus.glob, "glob", lambda _pattern: [str(made)])
    made = Path(antivirus.STATE, "fdinfo")
    made.write_text(text)
    assert antivirus.marks("1") == {(0xFE00001, 0x2A)}


def test_guard_is_given_what_is_mounted(monkeypatch, place):
    """Inner paths first, the canary last, and nothing that is not there, at which clamonacc would end its work."""
    config = "LocalSocket /x\nOnAccessIncludePath /old\nOnAccessExcludePath /y\n"
    (place / "clamd.conf").write_text(config)
    (place / "srv" / "data").mkdir(parents=True)
    (place / "srv" / "a b").mkdir()
    for name, path in (("CONFIG", "clamd.conf"), ("GUARDED", "guarded.conf")):
        monkeypatch.setattr(antivirus, name, str(place / path))
    monkeypatch.setattr(antivirus, "mounts", lambda: {"/": 1, str(place / "srv/data"): 2, str(place / "srv/a b"): 3})
    antivirus.paths(settings(place, paths=[str(place / "gone"), str(place / "srv")]))
    assert (place / "guarded.conf").read_text() == (
        f"LocalSocket /x\nOnAccessExcludePath /y\nOnAccessIncludePath {place}/srv/data\nOnAccessIncludePath {place}/srv\n"
        f"OnAccessIncludePath {antivirus.CANARIES}\n"
    )


def test_mounts_of_this_machine():
    """Devices are counted as the kernel does in fdinfo: twelve bits more than a byte."""
    assert "/" in antivirus.mounts() and all(isinstance(device, int) for device in antivirus.mounts().values())


# ------------------------------------------------------------------------------------------------------------------------------
# Scans


def scanned(monkeypatch, place, *said: tuple[int, str], canary: bool = True, restarted: bool = False) -> list[list[str]]:
    """Have a scan of two paths answered; return the commands."""
    monkeypatch.setattr(antivirus, "proved", lambda _settings: canary)
    turns = iter(range(9))
    monkeypatch.setattr(antivirus, "scanners", lambda: [str(next(turns) if restarted else 1)])
    return answers(monkeypatch, *said)


def test_scan_that_saw_all_counts(monkeypatch, place):
    """Guarded paths with quarantine, the rest without; what was found is noted."""
    first = "/srv/a b: Lab.First.UNOFFICIAL FOUND\n/srv/a b: moved to '/q/a b'\n"
    second = "/opt/x: Win.Test.EICAR_HDB-1 FOUND\nERROR: Can't access file /proc/1\n/tmp/s: Failed to open file\n"
    given = scanned(monkeypatch, place, (1, first), (2, second))
    assert antivirus.scan(settings(place)) == 0
    assert given == [["clamdscan", f"--move={place}/quarantine", str(place)], ["rest", str(place)]]
    noted = json.loads((place / "state" / "scan.json").read_text())
    assert noted["found"] == [["/srv/a b", "Lab.First.UNOFFICIAL"], ["/opt/x", "Win.Test.EICAR_HDB-1"]] and noted["errors"] == 2
    assert noted["paths"] == [str(place), str(place)]
    assert noted["left"] == ["/opt/x"], "what was moved is not there any more; what was not is, whatever it is called by now"


def test_scan_loses_no_find_by_an_odd_name(monkeypatch, place):
    """What is no UTF-8 is found again under its name; of a name with a line break at least that there is one below the path."""
    bad = place / os.fsdecode(b"evil\xff.exe")
    bad.write_text("x")
    scanned(monkeypatch, place, (1, f"{bad}: Lab.First FOUND\n"), (1, "/opt/evil\n.exe: Lab.First FOUND\n"))
    assert antivirus.scan(settings(place)) == 0
    first, second = json.loads((place / "state" / "scan.json").read_text())["found"]
    assert os.path.lexists(first[0]) and first[1] == "Lab.First"
    assert second == [str(place), "a file whose name has line breaks"]


def test_what_a_program_says_is_no_utf8(tmp_path):
    """It is what it is, so that a file is found under the name that was said."""
    code, said = antivirus.run(["printf", "%b", "/srv/\\0377: X FOUND"], 5)
    assert code == 0 and os.fsencode(said.split(":")[0]) == b"/srv/\xff"


@pytest.mark.parametrize(
    "said",
    [
        (2, "ERROR: Could not connect to clamd on LocalSocket /run/clamav/clamd.ctl: Connection refused\n"),
        (1, "/srv/x: Lab.First FOUND\n/srv/y: no reply from clamd\n"),
        (2, "/srv/y: stat() failed with No such file or directory, clamd may not be responding\n"),
        (2, "ERROR: Communication error\n"),
        (2, "ERROR: Can't send to clamd: Broken pipe\n"),
        (0, "WARNING: Directory recursion limit reached\n"),
        (127, "No such file or directory"),
    ],
)
def test_scan_that_was_given_up_does_not_count(monkeypatch, place, said):
    """Whatever its exit code is: what it found first hides that it saw nothing later."""
    scanned(monkeypatch, place, said, (0, ""))
    assert antivirus.scan(settings(place)) == 1
    assert not (place / "state" / "scan.json").exists()
    assert SAID[-1].startswith(f"event=scan_failed paths={place} ")


@pytest.mark.parametrize("words", [{"canary": False}, {"restarted": True}])
def test_scan_without_the_same_scanner_to_the_end_does_not_count(monkeypatch, place, words):
    """Neither one that misses the canary, nor one of which the scanner did not live to see the end."""
    scanned(monkeypatch, place, (0, ""), (0, ""), **words)
    assert antivirus.scan(settings(place)) == 1
    assert not (place / "state" / "scan.json").exists()


def test_path_that_is_not_there_is_said_and_not_noted(monkeypatch, place):
    """What was not scanned is not said to have been."""
    scanned(monkeypatch, place, (0, ""))
    assert antivirus.scan(settings(place, scan_paths=["/nowhere"])) == 0
    assert any(line.startswith("event=scan_path_missing path=/nowhere ") for line in SAID)
    assert json.loads((place / "state" / "scan.json").read_text())["paths"] == [str(place)]


def test_canary_is_found_where_it_lies(monkeypatch, place):
    """By its path and its signature; afterwards it is gone. A name that only says so is no proof."""
    canary = place / "canaries" / "bulwark-scan-canary"
    answers(monkeypatch, (1, f"{canary}: Bulwark.Canary.UNOFFICIAL FOUND\n"), (1, f"/x{canary}: Bulwark.Canary FOUND\n"), (0, ""))
    assert [antivirus.proved(settings(place)) for _turn in range(3)] == [True, False, False]
    assert not canary.exists()


def test_end_of_a_unit_is_said_with_what_it_means(monkeypatch):
    """systemd tells how it ended."""
    monkeypatch.setenv("SERVICE_RESULT", "signal")
    monkeypatch.setenv("EXIT_CODE", "killed")
    monkeypatch.setenv("EXIT_STATUS", "KILL")
    antivirus.stopped("clamav-daemon.service")
    assert SAID[0].startswith("event=stopped unit=clamav-daemon.service result=signal how=killed status=KILL means=")


def test_a_name_cannot_forge_a_line():
    """What comes from others is one line, whatever is in it."""
    antivirus.say(3, "x", said='a"\nevent=y')
    assert SAID == ["event=x said=a'\\x0aevent=y"]
