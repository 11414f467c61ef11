# SPDX-License-Identifier: GPL-3.0-or-later
"""The keeper of backups: what is broken is named in its turn, what was let go was old, and only sound files are fetched."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import time

import pytest
from ansible_collections.bulwark.hardening.plugins.module_utils import backup_keeper as keeper

DAY = keeper.DAY


def add(place, kind: str, content: bytes) -> str:
    """Add a file as restic would, and return its name below the copy."""
    name = hashlib.sha256(content).hexdigest()
    below = f"data/{name[:2]}/{name}" if kind == "data" else f"{kind}/{name}"
    (place / below).parent.mkdir(parents=True, exist_ok=True)
    (place / below).write_bytes(content)
    return below


@pytest.fixture
def copy(tmp_path):
    """A copy with thirty files of data."""
    place = tmp_path / "hosts" / "w"
    place.mkdir(parents=True)
    (place / "config").write_bytes(b"config")
    for kind in ("keys", "index", "snapshots"):
        add(place, kind, kind.encode())
    for number in range(30):
        add(place, "data", b"data %d" % number)
    (place / "locks").mkdir()
    (place / "locks" / "anything").write_text("x")
    return place


def look(copy, ledger, now, everything=False, slices=4):
    """Look at a copy once."""
    return keeper.check_copy("w", str(copy), ledger, slices, everything, now)


def test_a_sound_copy(copy):
    ledger: dict = {}
    seen = look(copy, ledger, time.time())
    assert (seen["files"], seen["broken"], seen["snapshots"]) == (34, {}, 1)
    assert seen["read_days"] == 0


@pytest.mark.parametrize("number", range(5))
def test_every_flipped_byte_is_found_in_its_turn(copy, number):
    ledger, now = {}, time.time()
    look(copy, ledger, now)
    name = sorted(name for name in ledger["files"] if name.startswith("data/"))[number * 6]
    content = bytearray((copy / name).read_bytes())
    content[3] ^= 1
    (copy / name).write_bytes(bytes(content))
    found = [look(copy, ledger, now + day * DAY)["broken"] for day in range(1, 5)]
    assert {name: "is not what was written"} in found
    assert found[-1] or {} in found[:1]
    assert look(copy, ledger, now + 5 * DAY)["broken"] == {name: "is not what was written"}, "until it is whole again"
    content[3] ^= 1
    (copy / name).write_bytes(bytes(content))
    assert look(copy, ledger, now + 6 * DAY)["broken"] == {}


def test_what_is_gone_altered_or_foreign_is_named(copy):
    ledger, now = {}, time.time()
    look(copy, ledger, now)
    gone = next(name for name in ledger["files"] if name.startswith("snapshots/"))
    (copy / gone).unlink()
    (copy / "config").write_bytes(b"gifnoc")
    (copy / "data" / "readme").write_text("x")
    (copy / "index" / ("0" * 64)).symlink_to("/etc/passwd")
    (copy / "data" / ".new-x").write_text("on its way")
    assert look(copy, ledger, now)["broken"] == {
        gone: "is missing",
        "config": "was altered",
        "data/readme": "does not belong here",
        "index/" + "0" * 64: "does not belong here",
    }


def test_what_just_came_may_still_be_on_its_way(copy):
    ledger, now = {}, time.time()
    look(copy, ledger, now)
    name = "data/ab/" + "ab" * 32
    (copy / "data" / "ab").mkdir(exist_ok=True)
    (copy / name).write_bytes(b"half")
    assert look(copy, ledger, now)["broken"] == {}
    os.utime(copy / name, (now - 4000, now - 4000))
    assert look(copy, ledger, now)["broken"] == {name: "is not what was written"}
    (copy / name).unlink()
    assert look(copy, ledger, now)["broken"] == {}, "it never was whole, so nothing is missing"


def test_missed_days_are_seen(copy):
    ledger, now = {}, time.time()
    look(copy, ledger, now)
    assert look(copy, ledger, now + 20 * DAY)["read_days"] == 20
    assert look(copy, ledger, now + 20 * DAY, everything=True)["read_days"] == 0


def snapshot(number: int, arrived: float, said: float, **more) -> dict:
    """Return a snapshot as restic lists it, with its arrival; both in days ago."""
    now = 2_000_000_000
    when = time.strftime("%Y-%m-%dT%H:%M:%S.123456789Z", time.gmtime(now - said * DAY))
    return {"id": f"{number:064x}", "time": when, "hostname": "w", "tags": ["set:s"], "arrived": now - arrived * DAY, **more}


def test_only_what_is_old_by_both_accounts_goes():
    found = [
        snapshot(1, 40, 40), snapshot(2, 36, 36), snapshot(3, 34, 34), snapshot(4, 1, 1000),  # dated back
        snapshot(5, 40, -4000),  # dated into the future
        snapshot(6, 50, 50, tags=["set:rare"]),  # the newest of its set
        snapshot(7, 90, 90, tags=["set:rare"]),
    ]  # fmt: skip
    assert [int(entry["id"], 16) for entry in keeper.outlived(found, 35, 2_000_000_000)] == [1, 2, 7]


@pytest.mark.parametrize(
    ("text", "wanted"),
    [("1970-01-02T00:00:00Z", 86400), ("1970-01-02T01:00:00.5+01:00", 86400), ("1970-01-01T19:30:00-04:30", 86400)],
)
def test_times(text, wanted):
    assert keeper.seconds_of(text) == wanted


def test_no_time():
    with pytest.raises(keeper.KeeperError):
        keeper.seconds_of("yesterday")


def test_days_that_fit():
    assert keeper.days_that_fit({"2026-01-01": 0, "2026-01-11": 1000}, 5000) == 50
    assert keeper.days_that_fit({"2026-01-01": 0}, 5000) is None
    assert keeper.days_that_fit({"2026-01-01": 10, "2026-01-02": 5}, 5000) is None


class Answer:
    """What another repository answers."""

    def __init__(self, status: int, content: bytes = b"") -> None:
        self.status, self.content, self.reason = status, content, ""

    def read(self, _size: int = -1) -> bytes:
        content, self.content = self.content, b""
        return content


class Source(keeper.Source):
    """Another repository, without a network in between."""

    def __init__(self, place) -> None:
        self.place = place

    def get(self, path: str) -> Answer:
        _host, kind, *rest = path.strip("/").split("/")
        if kind == "config":
            return Answer(200, (self.place / "config").read_bytes())
        if not rest or not rest[0]:
            names = [path.name for path in sorted((self.place / kind).rglob("*")) if path.is_file()]
            return Answer(200, json.dumps([{"name": name, "size": 1} for name in names]).encode())
        path = self.place / kind / (f"{rest[0][:2]}/{rest[0]}" if kind == "data" else rest[0])
        return Answer(200, path.read_bytes()) if path.exists() else Answer(404)


def test_fetched_is_what_is_new_and_whole(copy, tmp_path):
    there, here = Source(copy), tmp_path / "here"
    assert keeper.pull_copy(there, "w", str(here), "s/w") == {"new": 33, "files": 34, "broken": {}}
    assert keeper.files(str(here)) == keeper.files(str(copy))
    assert keeper.pull_copy(there, "w", str(here), "s/w")["new"] == 0
    broken = copy / add(copy, "data", b"new one")
    broken.write_bytes(b"altered")
    seen = keeper.pull_copy(there, "w", str(here), "s/w")
    assert list(seen["broken"].values()) == ["is not what was written, there"] and seen["new"] == 0
    broken.unlink()
    shutil.rmtree(copy / "snapshots")
    (copy / "snapshots").mkdir()
    assert keeper.pull_copy(there, "w", str(here), "s/w")["broken"] == {}
    assert os.listdir(here / "snapshots"), "what is deleted there stays here"


def test_another_repository_under_the_same_name_is_not_fetched(copy, tmp_path):
    there, here = Source(copy), tmp_path / "here"
    keeper.pull_copy(there, "w", str(here), "s/w")
    (copy / "config").write_bytes(b"begun anew")
    add(copy, "snapshots", b"new")
    seen = keeper.pull_copy(there, "w", str(here), "s/w")
    assert seen["broken"] and seen["new"] == 0


@pytest.fixture
def asked(monkeypatch, tmp_path):
    """A keeper whose restic is only asked: one old snapshot and a new one."""
    words: list[tuple] = []
    place = tmp_path / "hosts" / "w"
    (place / "snapshots").mkdir(parents=True)
    found = []
    for number, days in ((1, 90), (2, 1)):
        name, at = f"{number:064x}", time.time() - days * DAY
        (place / "snapshots" / name).write_text("x")
        os.utime(place / "snapshots" / name, (at, at))
        found.append({"id": name, "time": keeper.stamp(at), "hostname": "w", "tags": ["set:s"]})

    def restic(_path, key, *given):
        if key != "right":
            raise keeper.KeeperError("wrong password")
        words.append(given)
        if given[0] == "forget":
            for name in given[2:]:
                (place / "snapshots" / name).unlink()
        return json.dumps(found) if "snapshots" in given else ""

    monkeypatch.setattr(keeper, "restic", restic)
    monkeypatch.setattr(keeper, "STATE", str(tmp_path / "state"))
    (tmp_path / "state").mkdir()
    return {"words": words, "settings": {"directory": str(tmp_path), "retention_days": 35}, "ids": [one["id"] for one in found],
            "found": found}  # fmt: skip


def test_letting_go_first_takes_away_locks_of_the_killed(asked, tmp_path):
    """How old they are, the repository knows itself. A link leads nowhere."""
    locks = tmp_path / "hosts" / "w" / "locks"
    locks.mkdir()
    for name, minutes in (("a" * 64, 31), ("b" * 64, 29), ("other", 99)):
        (locks / name).write_text("x")
        at = time.time() - minutes * 60
        os.utime(locks / name, (at, at))
    assert keeper.prune(asked["settings"], "w", ["wrong", "right"]) == 0
    assert sorted(os.listdir(locks)) == ["b" * 64, "other"]
    assert asked["words"][-1] == ("forget", "--prune", asked["ids"][0])
    locks.rename(tmp_path / "elsewhere")
    locks.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError, match="locks"):
        keeper.unlock(str(tmp_path / "hosts" / "w"), time.time() + DAY)
    assert len(os.listdir(tmp_path / "elsewhere")) == 2


def test_letting_go_that_was_cut_short_is_no_loss_and_goes_on(asked, tmp_path, monkeypatch):
    """The snapshot went, then the disk was full: that is on record before, and the next time puts it straight."""
    honest, place = keeper.restic, tmp_path / "hosts" / "w"

    def full(path, key, *given):
        said = honest(path, key, *given)
        if given[0] == "forget":
            raise keeper.KeeperError("restic forget: no space left")
        return said

    ledger = keeper.ledger_path("w")
    sizes = {f"snapshots/{name}": 1 for name in os.listdir(place / "snapshots")}
    keeper.save(ledger, {"files": sizes})
    monkeypatch.setattr(keeper, "restic", full)
    with pytest.raises(keeper.KeeperError, match="no space"):
        keeper.prune(asked["settings"], "w", ["right"])
    left = keeper.load(ledger)
    assert [entry["id"] for entry in left["pruning"]] == [asked["ids"][0]]
    left["broken"] = {f"snapshots/{asked['ids'][0]}": "is missing"}  # what the next check says
    keeper.save(ledger, left)
    asked["found"][:] = asked["found"][1:]
    monkeypatch.setattr(keeper, "restic", honest)
    assert keeper.prune(asked["settings"], "w", ["right"]) == 0
    assert ("--no-lock", "check") in asked["words"], "what is left fits together"
    done = keeper.load(ledger)
    assert done["let_go"] == [asked["ids"][0]] and not done["broken"] and "pruning" not in done
    told = [json.loads(line) for line in (tmp_path / "state" / "pruned.jsonl").read_text().splitlines()]
    assert [len(record["removed"]) for record in told] == [1, 0]


def test_after_letting_go_was_cut_short_what_was_altered_still_stops_it(asked):
    keeper.save(keeper.ledger_path("w"), {"pruning": [], "broken": {"data/x": "is not what was written"}})
    with pytest.raises(keeper.KeeperError, match="1 files are broken"):
        keeper.prune(asked["settings"], "w", ["right"])


def test_letting_go_that_was_cut_short_explains_no_other_snapshot_away(asked):
    """restic finds no fault in a repository from which somebody took a snapshot, or a key."""
    for file in (f"snapshots/{asked['ids'][1]}", "keys/x"):
        going = [{"id": asked["ids"][0], "time": "", "arrived": ""}]
        keeper.save(keeper.ledger_path("w"), {"pruning": going, "files": {file: 1}, "broken": {file: "is missing"}})
        with pytest.raises(keeper.KeeperError, match="1 files are broken"):
            keeper.prune(asked["settings"], "w", ["right"])
    keeper.save(keeper.ledger_path("w"), {"files": {"keys/x": 1}})
    keeper.prune(asked["settings"], "w", ["right"])
    assert "keys/x" in keeper.load(keeper.ledger_path("w"))["files"], "the next look says that it is missing"


def test_what_was_fetched_at_once_is_kept_by_when_it_was_written():
    """All came in one hour and in no order; later the host was no more. The newest stays."""
    now = time.time()
    came = now - 39 * DAY
    about = {"hostname": "w", "tags": ["set:s"]}
    found = [{"id": f"{days}", "time": keeper.stamp(now - days * DAY), "arrived": came + order, **about}
             for order, days in enumerate((40, 50, 60))]  # fmt: skip
    assert {entry["id"] for entry in keeper.outlived(found, 35, now)} == {"50"}


def test_a_file_that_the_disk_does_not_give_is_named_and_the_rest_is_read(copy, monkeypatch):
    """One bad sector must not keep everything behind it from being looked at."""
    bad, ledger = add(copy, "data", b"on a bad sector"), {}
    honest = keeper.digest

    def digest(path: str) -> str:
        if path.endswith(bad):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return honest(path)

    monkeypatch.setattr(keeper, "digest", digest)
    seen = look(copy, ledger, time.time())
    assert seen["broken"] == {bad: "cannot be read: Input/output error"}
    assert seen["files"] > 1 and len(ledger["files"]) == seen["files"] - 1


def test_without_the_key_nothing_goes(asked):
    for keys in ([], ["wrong"]):
        with pytest.raises(keeper.KeeperError):
            keeper.prune(asked["settings"], "w", keys)
    assert not asked["words"]


@pytest.fixture
def store(copy, tmp_path, monkeypatch):
    """A repository with one copy and two sealed keys."""
    monkeypatch.setattr(keeper, "STATE", str(tmp_path / "state"))
    (tmp_path / "escrow" / "w").mkdir(parents=True)
    for text in (b"one", b"two"):
        (tmp_path / "escrow" / "w" / f"{hashlib.sha256(text).hexdigest()}.json").write_bytes(text)
    told = {"directory": str(tmp_path), "slices": 4, "free_percent": 0}

    def look_at() -> dict:
        code = keeper.check(told, False)
        report = keeper.load(f"{keeper.STATE}/report.json")
        assert code == (1 if report["broken"] else 0)
        return report

    look_at.settings = told
    return look_at


def test_a_whole_copy_that_vanished_is_named_until_somebody_says_that_it_may(store, tmp_path, capsys):
    assert store()["broken"] == 0
    shutil.move(tmp_path / "hosts" / "w", tmp_path / "away")
    for _turn in range(2):
        report = store()
        assert (
            report["copies"]["w"]["broken"] == {"copy": "is missing as a whole"} and report["copies"]["w"]["newest_hours"] is None
        )
    assert "event=broken copy=w" in capsys.readouterr().err
    shutil.move(tmp_path / "away", tmp_path / "hosts" / "w")
    assert store()["broken"] == 0
    with pytest.raises(keeper.KeeperError, match="still there"):
        keeper.forget(store.settings, "w")
    shutil.rmtree(tmp_path / "hosts" / "w")
    assert keeper.forget(store.settings, "w") == 0
    report = store()
    assert report["broken"] == 0 and "w" not in report["copies"]
    record = json.loads((tmp_path / "state" / "pruned.jsonl").read_text())
    assert record["copy"] == "w" and record["forgotten"] and record["sealed"] == [], "its keys are still there"


def test_sealed_keys_that_are_gone_or_altered_are_named(store, tmp_path):
    assert store()["escrow"] == {}
    first, second = sorted((tmp_path / "escrow" / "w").iterdir())
    first.unlink()
    second.write_bytes(second.read_bytes()[:-1] + b"x")
    (tmp_path / "escrow" / "w.json").write_text("x")
    (tmp_path / "escrow" / "w" / "readme").write_text("x")
    report = store()
    assert report["escrow"] == {
        f"w/{first.name}": "is missing", f"w/{second.name}": "is not what was written",
        "w.json/": "does not belong here", "w/readme": "does not belong here",
    }  # fmt: skip
    assert report["broken"] == 4


def test_what_arrives_tomorrow_does_not_hide_that_nothing_arrived(copy):
    ledger, now = {}, time.time()
    (snapshot_file,) = (copy / "snapshots").iterdir()
    os.utime(snapshot_file, (now - 10 * DAY, now - 10 * DAY))
    assert look(copy, ledger, now)["newest_hours"] == 240
    late = copy / add(copy, "snapshots", b"from tomorrow")
    os.utime(late, (now + DAY, now + DAY))
    assert look(copy, ledger, now)["newest_hours"] == 240
    snapshot_file.unlink()
    assert look(copy, ledger, now)["newest_hours"] is None


def test_other_slices_make_nothing_look_unread_for_ages(copy):
    ledger, now = {}, time.time()
    look(copy, ledger, now)
    assert look(copy, ledger, now + 3 * DAY, slices=7)["read_days"] == 3
    ledger["slices"][2] = now + 900 * DAY  # when the clock was wrong
    assert look(copy, ledger, now + 4 * DAY, slices=7)["read_days"] == 4


def test_what_was_let_go_is_not_fetched_again(copy, tmp_path):
    there, here = Source(copy), tmp_path / "here"
    old = add(copy, "snapshots", b"old").split("/")[1]
    keeper.pull_copy(there, "w", str(here), "s/w", [old])
    assert old not in os.listdir(here / "snapshots") and len(os.listdir(here / "snapshots")) == 1
    assert keeper.pull_copy(there, "w", str(here), "s/w", [old])["new"] == 0


def test_what_was_let_go_is_remembered(asked):
    keeper.prune(asked["settings"], "w", ["right"])
    assert keeper.load(keeper.ledger_path("w"))["let_go"] == [asked["ids"][0]]


def test_a_connection_that_was_cut_is_no_alteration(copy, tmp_path, monkeypatch):
    there, here = Source(copy), tmp_path / "here"

    def cut(_path: str) -> Answer:
        answer = Answer(200, b"half")
        answer.length = 9
        return answer

    monkeypatch.setattr(there, "get", cut)
    with pytest.raises(keeper.KeeperError, match="9 bytes are missing"):
        there.fetch("w", "data/x", str(here / "x"), "ab")
    assert os.listdir(here) == []


@pytest.mark.parametrize("text", [b'{"a": 1}', b"[1]", b"[[]]", b"null"])
def test_an_odd_answer_is_said_to_be_one(copy, monkeypatch, text):
    there = Source(copy)
    monkeypatch.setattr(there, "get", lambda _path: Answer(200, text))
    with pytest.raises(keeper.KeeperError, match="no list"):
        there.names("w", "keys")
