# SPDX-License-Identifier: GPL-3.0-or-later
"""The backup agent: when something is due, what a manifest says, and that a comparison sees every kind of difference."""

from __future__ import annotations

import argparse
import collections
import contextlib
import importlib.util
import json
import os
import pwd
import shutil
import sqlite3
import time
from pathlib import Path

import pytest

PATH = Path(__file__).resolve().parents[3] / "roles" / "backup" / "files" / "backup_agent.py"
SPEC = importlib.util.spec_from_file_location("backup_agent", PATH)
agent = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(agent)


def test_due_within_the_interval_and_not_all_at_once():
    entry = {"name": "records", "interval_hours": 24}
    assert agent.due_at(entry, {}, "a", 60) == 0
    about = {"success": 1001, "started": 1000}
    due = [agent.due_at(entry, about, f"ward-{number}", 60) - 1000 for number in range(50)]
    assert all(22 * 3600 <= at <= 23 * 3600 for at in due)
    assert max(due) - min(due) > 1800
    assert agent.due_at(entry, {"started": 1000}, "a", 60) == 0, "one that never ended well is due"


@pytest.fixture
def tree(tmp_path):
    """A few files, and their manifest."""
    place = tmp_path / "data"
    (place / "below").mkdir(parents=True)
    (place / "file").write_text("content")
    (place / "below" / "other").write_text("more")
    (place / "left-out").write_text("x")
    (place / "link").symlink_to("file")
    old = time.time() - 1000
    for path in ("file", "below/other", "left-out", "below"):
        os.utime(place / path, (old, old))
    manifest = agent.make_manifest("s", [str(place)], [str(place / "left-out")], {})
    return place, manifest


def test_a_manifest_names_everything_but_what_is_left_out(tree):
    place, manifest = tree
    assert set(manifest["files"]) == {str(place), *(str(place / name) for name in ("file", "below", "below/other", "link"))}
    assert agent.compare(manifest, "/", set())["different"] == []
    assert agent.touched(manifest) == []


def test_what_was_not_touched_is_not_read_again(tree, monkeypatch):
    place, manifest = tree
    (place / "file").write_text("changed")
    read = []
    monkeypatch.setattr(agent, "digest", lambda path, _inode=0: read.append(path) or "h")
    agent.make_manifest("s", [str(place)], [str(place / "left-out")], manifest)
    assert read == [str(place / "file")]
    assert set(agent.touched(manifest)) == {str(place / "file")}


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        ("file", lambda path: (path.write_text("CONTENT"), os.utime(path, ns=(1, path.before))), "content"),
        ("file", lambda path: path.chmod(0o777), "mode"),
        ("file", lambda path: path.unlink(), "is missing"),
        ("below/other", lambda path: os.utime(path, (1, 1)), "time"),
        ("link", lambda path: (path.unlink(), path.symlink_to("elsewhere")), "target"),
    ],
)
def test_a_comparison_sees(tree, name, change, said):
    place, manifest = tree

    class Known(type(place)):
        before = (place / name).lstat().st_mtime_ns

    change(Known(place / name))
    parent = {str((place / name).parent)}  # its time changes, too
    (different,) = agent.compare(manifest, "/", parent)["different"]
    assert different.startswith(f"{place / name}: ") and said in different


def test_what_changed_while_it_was_read_is_counted_and_not_compared(tree):
    place, manifest = tree
    seen = agent.compare(manifest, "/", {str(place / "file")})
    assert (seen["moved"], seen["compared"]) == (1, 4)


def test_a_dump_of_sqlite_is_whole_although_somebody_writes(tmp_path, monkeypatch):
    monkeypatch.setattr(agent, "STATE", str(tmp_path / "state"))
    path = tmp_path / "db"
    link = sqlite3.connect(path)
    link.execute("PRAGMA journal_mode = wal")
    link.execute("CREATE TABLE t (a)")
    link.execute("INSERT INTO t VALUES (7)")
    link.commit()
    link.execute("INSERT INTO t VALUES (8)")  # not committed
    base = {"name": "d", "kind": "sqlite", "path": str(path), "query": "SELECT group_concat(a) FROM t"}
    agent.dump(base)
    assert agent.ask(base, agent.dump_path(base), str(tmp_path)) == {"answered": True, "length": 1}
    Path(agent.dump_path(base)).write_bytes(b"SQLite format 3\0" + b"\xff" * 200)
    with pytest.raises(agent.AgentError):
        agent.ask(base, agent.dump_path(base), str(tmp_path))


def test_passwords_are_not_repeated():
    assert "secret" not in agent.last_words("Fatal: Head https://ward-1:secret@backup:19633/x: refused\n")


def test_no_settings_is_an_error(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(agent, "SECRETS", str(tmp_path))
    assert agent.main(["tick"]) == 2
    assert "settings.json" in capsys.readouterr().err


@pytest.fixture
def place(tmp_path, monkeypatch):
    """An agent with places of its own, and a restic that does nothing but is asked."""
    for name in ("SECRETS", "STATE", "CACHE"):
        monkeypatch.setattr(agent, name, str(tmp_path / name.lower()))
    monkeypatch.setattr(agent, "KEEPER", str(tmp_path / "keeper.json"))
    monkeypatch.setattr(agent, "inventory", lambda settings, status: None)
    (tmp_path / "state").mkdir()
    (tmp_path / "data" / "copies" / "hosts").mkdir(parents=True)
    (tmp_path / "data" / "file").write_text("x")
    return tmp_path


SUMMARY = {"message_type": "summary", "snapshot_id": "5a", "total_files_processed": 1, "data_added": 1}


@pytest.fixture
def asked(monkeypatch):
    """What restic was asked; its answers can be replaced."""
    words: list[tuple] = []
    answers = {"cat": (0, '{"id": "r"}'), "backup": (0, json.dumps(SUMMARY))}

    def restic(*given, **_more):
        words.append(given)
        return answers.get(next(word for word in given if not word.startswith("--")), (0, ""))

    monkeypatch.setattr(agent, "restic", restic)
    restic.words, restic.answers = words, answers
    return restic


def settings(place, **more) -> dict:
    """Return settings with one set."""
    entry = {"name": "s", "interval_hours": 24, "paths": [str(place / "data")], "excludes": [], "databases": [], **more}
    return {"host": "w", "server": "b", "site": "", "custodians": [], "splay_minutes": 0, "restore_test_days": 30,
            "scratch": str(place / "scratch"), "sets": [entry]}  # fmt: skip


def test_what_is_kept_of_others_is_left_out(place, asked):
    given = settings(place)
    (place / "keeper.json").write_text(json.dumps({"directory": str(place / "data" / "copies")}))
    status: dict = {}
    seen = agent.backed_up(given, given["sets"][0], status)
    assert str(place / "data" / "copies") in seen["left_out"]
    manifest = agent.read_manifest(agent.manifest_path("s"))
    assert not [path for path in manifest["files"] if "copies" in path] and str(place / "data" / "file") in manifest["files"]
    given["sets"][0]["paths"] = [str(place / "data" / "copies" / "hosts")]
    with pytest.raises(agent.AgentError, match="backups of others"):
        agent.backed_up(given, given["sets"][0], status)


@pytest.mark.parametrize("agree", [True, False])
def test_locks_of_the_killed_are_taken_away_first_unless_the_clock_is_wrong(place, asked, monkeypatch, agree):
    monkeypatch.setattr(agent, "clocks_agree", lambda: agree)
    given = settings(place)
    agent.backed_up(given, given["sets"][0], {})
    named = [next(word for word in words if not word.startswith("--")) for words in asked.words]
    assert ("unlock" in named[: named.index("backup")]) is agree
    assert not [words for words in asked.words if "--remove-all" in words], "those of others that live are left alone"


def test_what_cannot_be_read_is_no_file_that_went_away():
    """Under a name that restic had to alter nothing is found, whether it is there or not."""
    line = {"item": "/srv/gone", "error": {"Op": "open", "Err": 2}}
    assert agent.vanished(line, []) and not agent.vanished(line, ["/srv/gone"])
    assert agent.vanished({"item": "/srv/nothing/of/that/name", "error": {"Err": 13}}, [])
    assert not agent.vanished({"item": "/srv/caf\ufffd.pdf", "error": {"Op": "read", "Err": 5}}, [])
    assert agent.vanished({"item": "/srv/caf\ufffd.pdf", "error": {"Op": "open", "Err": 2}}, [])


def test_names_do_not_split_what_restic_says(place, asked):
    """A line ends where the line ends, not at what Unicode calls the end of one."""
    given = settings(place)
    odd = json.dumps({"message_type": "status", "current_files": ["/srv/a\x85b\u2028c"]}, ensure_ascii=False)
    asked.answers["backup"] = (0, f"{odd}\n{json.dumps(SUMMARY)}\n")
    assert agent.backed_up(given, given["sets"][0], {})["snapshot"] == "5a"


def test_a_set_that_does_not_exist_is_an_error(place, monkeypatch, capsys):
    (place / "secrets").mkdir()
    (place / "secrets" / "settings.json").write_text(json.dumps(settings(place)))
    assert agent.main(["run", "--set", "typo"]) == 2
    assert "typo: there is no such set" in capsys.readouterr().err


def test_a_database_that_somebody_keeps_locked_does_not_stop_everything(place, tmp_path, monkeypatch):
    path = tmp_path / "locked.db"
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as holder:
        holder.execute("CREATE TABLE t (a)")
        holder.execute("BEGIN EXCLUSIVE")
        monkeypatch.setattr(agent, "LOCKED_SECONDS", 0.5)
        with pytest.raises(agent.AgentError, match="kept it locked"):
            agent.dump({"name": "d", "kind": "sqlite", "path": str(path), "query": "SELECT 1"})


def test_room_is_made_and_cleared_again(place):
    made = agent.room(settings(place))
    assert made == str(place / "scratch" / "bulwark-restore-test") and os.listdir(made) == [agent.MARK]
    (Path(made) / "files" / "below").mkdir(parents=True)
    (Path(made) / "files" / "link").symlink_to(place / "data")
    assert os.listdir(agent.room(settings(place))) == [agent.MARK], "what one that was killed left goes first"
    (place / "scratch" / "somebody's").write_text("x")
    agent.clear(made)
    assert os.listdir(place / "scratch") == ["somebody's"] and (place / "data" / "file").exists()


def test_one_that_was_killed_before_its_mark_was_there_stops_nothing(place):
    made = place / "scratch" / "bulwark-restore-test"
    made.mkdir(parents=True)
    (made / ".new-x").write_text("x")
    assert agent.room(settings(place)) == str(made)


@pytest.mark.parametrize("what", ["directory", "link", "file"])
def test_what_is_not_its_own_is_never_removed(place, what):
    made = place / "scratch" / "bulwark-restore-test"
    made.parent.mkdir()
    if what == "directory":
        made.mkdir()
        (made / "precious").write_text("x")
    elif what == "link":
        made.symlink_to(place / "data")
        (place / "data" / agent.MARK).write_text("x")
    else:
        made.write_text("x")
    with pytest.raises(agent.AgentError, match="not made by"):
        agent.room(settings(place))
    assert os.path.lexists(made / "precious" if what == "directory" else made) and (place / "data" / "file").exists()


@pytest.mark.parametrize(
    ("scratch", "said"), [("data", "what is backed up"), ("", "what is backed up"), ("copies/x", "of others")]
)
def test_no_room_where_something_else_lies(place, scratch, said):
    (place / "keeper.json").write_text(json.dumps({"directory": str(place / "copies")}))
    with pytest.raises(agent.AgentError, match=said):
        agent.room({**settings(place), "scratch": str(place / scratch).rstrip("/")})


def test_no_room_where_others_can_write(place):
    (place / "scratch").mkdir()
    (place / "scratch").chmod(0o777)
    with pytest.raises(agent.AgentError, match="others"):
        agent.room(settings(place))


@pytest.fixture
def backed(place, asked, monkeypatch):
    """A host with one backup; restoring puts back what is on the disk now."""
    given, status = settings(place), {"sets": {"s": {}}}
    for name in ("inventory/packages", "inventory/partitions.json", "RECOVERY.md"):
        (place / "state" / name).parent.mkdir(exist_ok=True)
        (place / "state" / name).write_text("x")
    agent.back_up(given, given["sets"][0], status)
    assert status["sets"]["s"]["problem"] == ""
    plain = agent.restic

    def restic(*words, **more):
        if "restore" in words:
            root = words[-1]
            for tree in (place / "data", place / "state"):
                shutil.copytree(tree, root + str(tree), symlinks=True)
        return plain(*words, **more)

    restic.words = asked.words
    monkeypatch.setattr(agent, "restic", restic)
    monkeypatch.setattr(agent, "KEPT_FREE", 0.0)
    return given, status


def test_a_restore_test_passes_and_asks_for_the_backup_that_this_host_made(backed):
    given, status = backed
    assert agent.restore_test(given, status), status["restore_test"]
    assert ("--quiet", "restore", "5a", "--target", agent.scratch_of(given) + "/files") in agent.restic.words
    assert status["restore_test"]["sets"]["s"]["compared"] == 4
    assert not os.path.exists(agent.scratch_of(given))


def test_a_younger_file_than_the_manifest_is_no_excuse(backed, place):
    given, status = backed
    (place / "data" / "file").write_text("y")
    os.utime(place / "data" / "file", (time.time() + 9, time.time() + 9))
    assert not agent.restore_test(given, status)
    assert "changed after" in status["restore_test"]["sets"]["s"]["problem"]


def test_a_restore_test_that_compared_nothing_fails(backed, place):
    given, status = backed
    everything = list(agent.read_manifest(agent.manifest_path("s"))["files"])
    agent.save(f"{agent.STATE}/manifests/s.moved.json", {"snapshot": "5a", "moved": everything})
    assert not agent.restore_test(given, status)
    assert "nothing could be compared" in status["restore_test"]["sets"]["s"]["problem"]


def test_without_a_backup_there_is_nothing_to_restore(backed):
    given, _status = backed
    status = {"sets": {"s": {}}}
    assert not agent.restore_test(given, status) and "no backup" in status["restore_test"]["sets"]["s"]["problem"]


def test_no_restore_where_the_disk_would_run_full(place, monkeypatch):
    (place / "state" / "dumps").mkdir()
    (place / "state" / "dumps" / "d").write_bytes(b"x" * 100)
    usage = collections.namedtuple("usage", "total used free")
    known, entry = {"files": {"/a": {"s": 100}, "/b": {}}}, {"databases": [{"name": "d", "kind": "sqlite"}]}
    for free, fits in ((450, True), (449, False)):
        monkeypatch.setattr(agent.shutil, "disk_usage", lambda _place, free=free: usage(1000, 1000 - free, free))
        if fits:
            agent.enough_room("/", known, entry)
        else:
            with pytest.raises(agent.AgentError, match="room"):
                agent.enough_room("/", known, entry)


@pytest.mark.parametrize("answer", ["0", "", "f", " 0\n", "False"])
def test_nothing_is_no_answer(answer, monkeypatch):
    monkeypatch.setattr(agent, "as_user", lambda *_words, **_more: answer)
    with pytest.raises(agent.AgentError, match="does not answer"):
        agent.ask({"name": "d", "kind": "command", "probe": ["x"], "user": "root"}, "/x", "/x")


def test_answers_and_complaints_of_a_database_go_nowhere(tmp_path):
    user = pwd.getpwuid(os.geteuid()).pw_name
    base = {"name": "d", "kind": "command", "user": user, "probe": ["sh", "-c", "echo Example Patient; echo Example >&2"]}
    (tmp_path / "dump").write_text("x")
    assert agent.ask(base, str(tmp_path / "dump"), "/x") == {"answered": True, "length": 15}
    base["probe"][2] += "; exit 3"
    with pytest.raises(agent.AgentError) as caught:
        agent.ask(base, str(tmp_path / "dump"), "/x")
    assert "exit 3" in str(caught.value) and "Example" not in str(caught.value)


def test_of_globals_only_roles_are_tried():
    kept = "CREATE ROLE clinic;\nALTER ROLE clinic WITH LOGIN;\nGRANT clinic TO doctors;\n"
    gone = "CREATE TABLESPACE t OWNER clinic LOCATION '/srv/t';\nGRANT ALL ON TABLESPACE t TO clinic;\n"
    assert agent.roles_of(gone + kept) == kept


def test_what_fails_again_and_again_is_tried_less_often():
    entry, now = {"name": "records", "interval_hours": 24}, time.time()
    about = {"success": now - 90000, "started": now - 90000, "tried": now}
    due = [agent.due_at(entry, {**about, "failures": failures}, "a", 0) - now for failures in range(9)]
    assert due[0] < 0 and due[1] < 0 and due[2:5] == [1200, 2400, 4800] and due[-1] == 4 * 3600
    assert agent.due_at(entry, {"tried": now, "failures": 3}, "a", 0) > now, "also one that never ended well"
    assert agent.due_at(entry, {**about, "tried": now + 9e6, "failures": 9}, "a", 0) < now, "but not until a wrong clock is right"


@pytest.mark.parametrize(("ahead", "due"), [(86400, True), (301, True), (200, False)])
def test_a_backup_from_the_future_does_not_count(ahead, due):
    at = time.time() + ahead
    entry = {"name": "records", "interval_hours": 24}
    assert (agent.due_at(entry, {"success": at, "started": at}, "a", 0) <= time.time()) is due


def test_a_restore_test_from_the_future_does_not_count(place, monkeypatch):
    tried = []
    monkeypatch.setattr(agent, "restore_test", lambda *_given: tried.append(1) or True)
    monkeypatch.setattr(agent, "due_at", lambda *_given: time.time() + 9)
    given, args = settings(place), argparse.Namespace(action="tick", set=None)
    for at, count in ((time.time(), 0), (time.time() + 1000, 1)):
        agent.save(f"{agent.STATE}/status.json", {"restore_tried": at, "restore_test": {"passed": True}})
        agent.act(args, given)
        assert len(tried) == count


def errors(*items: str) -> str:
    """Return what restic says when it could not read something, and a summary."""
    said = [{"message_type": "error", "error": {}, "during": "archival", "item": item} for item in items]
    return "".join(json.dumps(line) + "\n" for line in [SUMMARY, *said]) + "Warning: at least one source file could not be read\n"


@pytest.mark.parametrize("error", [{"Op": "lstat", "Path": "/x", "Err": 2}, {"message": "lstat /x: no such file or directory"}])
def test_what_was_gone_and_is_back_is_no_fault_either(place, error):
    line = {"message_type": "error", "item": str(place / "data" / "file"), "error": error}
    assert agent.vanished(line, [])
    assert not agent.vanished(line, [str(place / "data" / "file")])
    assert not agent.vanished({**line, "error": {"Op": "open", "Path": "/x", "Err": 13}}, [])


def test_what_is_really_gone_is_no_fault(place, asked):
    given, (gone, there) = settings(place), (str(place / "data" / "gone"), str(place / "data" / "file"))
    asked.answers["backup"] = (3, errors(gone))
    assert agent.backed_up(given, given["sets"][0], {})["vanished"] == 1
    for items in ((gone, there), (), ("relative",)):
        asked.answers["backup"] = (3, errors(*items))
        with pytest.raises(agent.AgentError, match="could not be read"):
            agent.backed_up(given, given["sets"][0], {})
    asked.answers["backup"] = (3, errors(given["sets"][0]["paths"][0]))
    (place / "data").rename(place / "away")
    with pytest.raises(agent.AgentError, match="declared"):
        agent.backed_up(given, given["sets"][0], {})


@pytest.mark.parametrize("what", ["pipe", "link", "other"])
def test_what_is_swapped_before_it_is_opened_neither_stalls_nor_misleads(place, monkeypatch, what):
    path, plain = place / "data" / "file", agent.mark

    def swap(name):
        seen = plain(name)
        if name == str(path):
            (place / "secret").write_text("s")
            path.rename(place / "kept")
            {"pipe": lambda: os.mkfifo(path), "link": lambda: path.symlink_to(place / "secret"),
             "other": lambda: path.write_text("another")}[what]()  # fmt: skip
        return seen

    monkeypatch.setattr(agent, "mark", swap)
    before = time.monotonic()
    manifest = agent.make_manifest("s", [str(place / "data")], [], {})
    assert str(path) not in manifest["files"] and time.monotonic() - before < 5


def test_a_line_of_the_journal_cannot_be_ended_by_a_name(capsys):
    agent.say("failed", True, set="s", problem='/srv/a" event=backed_up "\nevent=x')
    (line,) = capsys.readouterr().err.splitlines()
    assert line == "event=failed set=s problem=" + json.dumps("/srv/a' event=backed_up '\nevent=x")


def test_a_repository_that_is_gone_is_said_as_such(place, asked, capsys):
    given = settings(place)
    asked.answers["cat"] = (1, "Is there a repository at the following location?")
    agent.back_up(given, given["sets"][0], {"repository": "r"})
    assert "event=repository_gone set=s" in capsys.readouterr().err
    asked.answers["cat"] = (1, 'unable to open config file: Head "https://b:1/w/config": dial tcp 10.0.0.1:1: connect: refused')
    agent.back_up(given, given["sets"][0], {"repository": "r"})
    assert "event=failed set=s" in capsys.readouterr().err, "a network that is down is no loss"


def test_what_cannot_be_described_is_on_record(tmp_path, monkeypatch):
    monkeypatch.setattr(agent, "STATE", str(tmp_path))
    commands = {"whole": ["echo", "x"], "broken": ["sh", "-c", "echo no >&2; exit 1"], "lvm": ["no-such-program"]}
    monkeypatch.setattr(agent, "INVENTORY", commands)
    status: dict = {}
    agent.inventory(settings(tmp_path), status)
    assert status["unavailable"] == ["broken"], "of what is not installed, there is nothing to describe"
    assert (tmp_path / "inventory" / "whole").read_text() == "x\n"
    assert "not installed" in (tmp_path / "inventory" / "lvm").read_text()
