# SPDX-License-Identifier: GPL-3.0-or-later
"""The program of role antivirus: what counts as an update, as a scan, and as a guard that is awake."""

from __future__ import annotations

import errno
import importlib.util
import json
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
    for name in ("STATE", "CANARIES", "DATABASES"):
        (tmp_path / name.lower()).mkdir()
        monkeypatch.setattr(antivirus, name, str(tmp_path / name.lower()))
    (tmp_path / "quarantine").mkdir()
    monkeypatch.setattr(antivirus.time, "sleep", lambda _seconds: None)
    monkeypatch.setattr(antivirus, "ask", lambda command: {"PING": "PONG", "RELOAD": "RELOADING"}[command])
    return tmp_path


def settings(place, **more) -> dict:
    """Return what the role would write."""
    return {
        "updater": ["freshclam"], "databases": ["lab.ndb"], "prevention": True, "quarantine": str(place / "quarantine"),
        "signature_max_age_hours": 24, "scan_max_age_days": 8, "scanner": ["clamdscan"], "paths": [str(place)],
        "scan_paths": [str(place)], **more,
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
    """No scanner, no guard, signatures that were never confirmed, a scan long ago."""
    monkeypatch.setattr(antivirus, "ask", lambda _command: "")
    (place / "state" / "scan.json").write_text(json.dumps({"finished": time.time() - 9 * 86400}))
    antivirus.watch(settings(place))
    noted = json.loads((place / "state" / "watch.json").read_text())
    assert noted["wrong"] == ["scanner_off", "prevention_off", "signatures_stale", "scan_overdue"]
    assert "event=signatures_stale hours=never limit=24" in SAID
    assert all("can be opened" in line for line in SAID[:2])


def test_watch_keeps_quiet_when_all_is_well(monkeypatch, place):
    """Nothing is said, and that is noted."""
    monkeypatch.setattr(antivirus, "prevention", lambda _settings: "working")
    (place / "state" / "update.json").write_text(json.dumps({"checked": time.time() - 3600}))
    antivirus.watch(settings(place))
    assert SAID == []
    assert json.loads((place / "state" / "watch.json").read_text())["prevention"] == "working"


def test_scan_that_finds_the_canary_counts(monkeypatch, place):
    """Guarded paths with quarantine, the rest without; what was found is noted, the canary is not."""
    canary = str(place / "canaries" / "bulwark-scan-canary")
    first = "/srv/a b: Lab.First.UNOFFICIAL FOUND\n/srv/a b: moved to '/q/a b'\n"
    second = f"{canary}: Bulwark.Canary.UNOFFICIAL FOUND\n/opt/x: Win.Test.EICAR_HDB-1 FOUND\nERROR: Can't access file /proc/1\n"
    given = answers(monkeypatch, (1, first), (2, second))
    assert antivirus.scan(settings(place)) == 0
    assert f"--move={place / 'quarantine'}" in given[0] and not any("--move" in word for word in given[1])
    assert given[1][-1] == str(place / "canaries")
    noted = json.loads((place / "state" / "scan.json").read_text())
    assert noted["found"] == [["/srv/a b", "Lab.First.UNOFFICIAL"], ["/opt/x", "Win.Test.EICAR_HDB-1"]] and noted["errors"] == 1
    assert not Path(canary).exists()


def test_scan_that_misses_the_canary_does_not_count(monkeypatch, place):
    """Whatever its exit code says."""
    answers(monkeypatch, (0, ""), (0, ""))
    assert antivirus.scan(settings(place)) == 1
    assert not (place / "state" / "scan.json").exists()
    assert SAID[-1].startswith("event=scan_failed")


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
