# SPDX-License-Identifier: GPL-3.0-or-later
"""The collector of how a trail is kept: retention, capacity, who may read, and that no store is no sound store."""

from __future__ import annotations

import datetime
import os

import pytest
from ansible_collections.bulwark.hardening.plugins.module_utils import trail_store
from ansible_collections.bulwark.hardening.plugins.module_utils.posture import log_collector

EXEC = (
    "{ path=/usr/local/lib/bulwark/trail_store ; argv[]=/usr/local/lib/bulwark/trail_store keep --directory=/x "
    "--retention-days=400 --approver=Records committee --low-percent=15 ; ignore_errors=no ; start_time=[n/a] }"
)


def day(ago: int) -> str:
    """Return a day of so many days ago."""
    return (datetime.datetime.now(datetime.UTC).date() - datetime.timedelta(days=ago)).isoformat()


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A store of one host with three days."""
    monkeypatch.setattr(log_collector, "run", lambda argv: EXEC)
    (tmp_path / "ward-1").mkdir()
    chain = trail_store.genesis("ward-1")
    for n, ago in enumerate((5, 3, 0), 1):
        at = f"{day(ago)}T00:00:00.000000Z"
        line, chain = trail_store.make_line(n, at, at, "ward-1", "s=1", {}, chain)
        (tmp_path / "ward-1" / f"{day(ago)}.jsonl").write_bytes(line)
    return str(tmp_path)


def test_retention_is_what_the_keeper_was_told(place):
    assert log_collector.retention(place) == {"days": 400, "approver": "Records committee", "oldest_days": 5, "too_early": []}


def test_what_was_removed_too_early_is_named(place):
    os.mkdir(f"{place}/.removed")
    for ago, approver in ((401, "A"), (399, "A"), (500, "")):
        record = {"removed": f"{day(0)}T00", "day": day(ago), "retention_days": 400, "approver": approver, "file": f"x{ago}"}
        trail_store.append(f"{place}/.removed/ward-1.jsonl", record)
    assert log_collector.retention(place)["too_early"] == ["x399", "x500"]


def test_capacity_is_reckoned_from_closed_days(place):
    seen = log_collector.capacity(place)
    assert seen["bytes_a_day"] > 200 and seen["days_that_fit"] > 1000
    os.unlink(f"{place}/ward-1/{day(5)}.jsonl")
    assert log_collector.capacity(place)["days_that_fit"] is None, "one day tells nothing"


def test_integrity_and_heads(place):
    assert log_collector.integrity(place)["status"] == "sound"
    assert log_collector.heads(place)["ward-1"]["n"] == 3
    with open(f"{place}/ward-1/{day(0)}.jsonl", "r+b") as stream:
        stream.seek(40)
        stream.write(b"X")
    assert log_collector.integrity(place)["status"] == "altered"


def test_no_store_is_no_sound_store(tmp_path):
    nowhere = str(tmp_path / "nowhere")
    assert log_collector.integrity(nowhere)["status"] == "missing"
    assert log_collector.store(nowhere)["exists"] is False
    assert log_collector.heads(nowhere) == {} and log_collector.there(nowhere) == []


def test_what_is_odd_in_the_store_is_said(place, monkeypatch):
    monkeypatch.setattr(log_collector, "owner_name", lambda uid: "bulwark-trail")
    os.chmod(place, 0o750)
    os.chmod(f"{place}/ward-1", 0o750)
    for name in os.listdir(f"{place}/ward-1"):
        os.chmod(f"{place}/ward-1/{name}", 0o640)
    assert log_collector.store(place)["odd"] == []
    os.chmod(f"{place}/ward-1/{day(3)}.jsonl", 0o644)
    os.symlink("/etc/passwd", f"{place}/ward-1/link")
    assert len(log_collector.store(place)["odd"]) == 2


def test_who_delivered_nothing_for_a_day_is_a_former_host(place):
    assert log_collector.former(place) == []
    os.unlink(f"{place}/ward-1/{day(0)}.jsonl")
    assert log_collector.former(place) == ["ward-1"]


def test_nobody_listens(monkeypatch):
    assert log_collector.door({"listen": "127.0.0.1", "port": 1}) == {"without_certificate": "closed", "old_protocol": "closed"}
