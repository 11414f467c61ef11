# SPDX-License-Identifier: GPL-3.0-or-later
"""What the posture says of a host's backups: never better than it is."""

from __future__ import annotations

import json
import time

import pytest
from ansible_collections.bulwark.hardening.plugins.module_utils import backup_escrow
from ansible_collections.bulwark.hardening.plugins.module_utils.posture import backup


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    """Places of its own."""
    for name in ("SECRETS", "STATE", "KEEPER"):
        monkeypatch.setattr(backup, name, str(tmp_path / name.lower()))
    (tmp_path / "secrets").mkdir()
    return tmp_path


def entry(name: str, *paths: str) -> dict:
    """Return a set as the agent is told of it."""
    return {"name": name, "paths": list(paths), "databases": [], "interval_hours": 24}


def test_circles(place):
    told = {"sets": [entry("a", "/srv"), entry("b", "/srv/backup/"), entry("c", "/srv/backups"), entry("d", "/")]}
    assert backup.circles(told, {}) == []
    (place / "keeper").write_text('{"directory": "/srv/backup"}')
    assert backup.circles(told, {}) == ["a", "b", "d"]
    done = {"sets": {"a": {"left_out": ["/srv/backup"]}, "d": {"left_out": ["/srv/backu"]}}}
    assert backup.circles(told, done) == ["b", "d"]


def test_a_seal_of_another_key_is_seen(place):
    told = {"host": "w", "address": "b:1", "sets": []}
    for name in ("access", "password"):
        (place / "secrets" / name).write_text(f"{name}-1\n")
    of = backup_escrow.mark(backup_escrow.inside("w", "b:1", "access-1", "password-1"))
    (place / "secrets" / "escrow.json").write_text(json.dumps({"of": of, "custodians": [{"key": "age1"}], "sealed": "x"}))
    assert backup.escrow(told) == {"custodians": ["age1"], "of_this_key": True, "recipients": 0}
    (place / "secrets" / "password").write_text("password-2\n")
    assert not backup.escrow(told)["of_this_key"]
    assert not backup.escrow({})["of_this_key"]


def test_neither_answers_nor_questions_leave_the_host():
    base = {"name": "d", "kind": "command", "user": "u", "dump": ["d"], "probe": ["p"], "query": "SELECT name"}
    seen = backup.shown({"host": "w", "sets": [{**entry("a", "/srv"), "databases": [base]}]})
    assert seen["sets"][0]["databases"] == [{"name": "d", "kind": "command", "user": "u"}] and seen["host"] == "w"
    assert backup.shown({}) == {}
    last = {"databases": {"d": {"answered": True, "length": 15}, "e": "Example Patient"}, "identical": True}
    assert backup.tried(last)["databases"] == {"d": True, "e": False}
    assert backup.tried({})["databases"] == {}


def test_nothing_happened_in_the_future():
    now = time.time()
    assert backup.hours(now - 7200) == 2 and backup.hours(now + 60) < 0 and backup.hours(None) == backup.LONG_AGO
    assert backup.hours(now + 400) == backup.LONG_AGO
    told = {"sets": [entry("a", "/srv")]}
    assert backup.sets(told, {"sets": {"a": {"success": 1, "started": now + 86400}}})["a"]["late_hours"] > 1000


def test_every_database_is_to_be_declared(tmp_path, monkeypatch):
    """One that is declared does not stand for all others."""
    monkeypatch.setattr(backup, "POSTGRESQL", str(tmp_path / "clusters"))
    monkeypatch.setattr(backup, "SOCKETS", str(tmp_path / "sockets"))
    monkeypatch.setattr(backup, "databases", lambda path: ["clinic", "billing", "lab"])
    told = {"sets": [{**entry("a", "/srv"), "databases": [
        {"name": "clinic", "kind": "postgresql", "database": "clinic"}, {"name": "lab", "kind": "command"}]}]}  # fmt: skip
    assert backup.undeclared(told) == [], "there is no PostgreSQL"
    cluster = tmp_path / "clusters" / "17" / "main"
    cluster.mkdir(parents=True)
    (cluster / "PG_VERSION").write_text("17")
    assert backup.undeclared(told) == [] and backup.undeclared({}) == [str(cluster)], "it does not run"
    (tmp_path / "sockets").mkdir()
    (tmp_path / "sockets" / ".s.PGSQL.5432").write_text("")
    (tmp_path / "sockets" / ".s.PGSQL.5432.lock").write_text("")
    assert backup.undeclared(told) == ["billing"]
    assert backup.undeclared({}) == ["billing", "clinic", "lab"]
    (tmp_path / "sockets" / ".s.PGSQL.5433").write_text("")
    assert backup.undeclared(told) == ["billing", "clinic (in 2 clusters)", "lab (in 2 clusters)"]
    told["sets"][0]["databases"] += [{"name": name, "kind": "command"} for name in ("clinic", "billing")]
    assert backup.undeclared(told) == ["billing (in 2 clusters)", "lab (in 2 clusters)"], "a command dumps the other one"


def test_a_cluster_is_known_by_its_files_or_by_its_socket(tmp_path, monkeypatch):
    """Data may lie elsewhere; and what some command dumps says nothing of a cluster that does not run."""
    monkeypatch.setattr(backup, "POSTGRESQL", str(tmp_path / "clusters"))
    monkeypatch.setattr(backup, "SOCKETS", str(tmp_path))
    monkeypatch.setattr(backup, "databases", lambda path: ["clinic"])
    (tmp_path / ".s.PGSQL.5432").write_text("")
    assert backup.undeclared({}) == ["clinic"]
    (tmp_path / ".s.PGSQL.5432").unlink()
    (tmp_path / "clusters" / "17" / "main").mkdir(parents=True)
    (tmp_path / "clusters" / "17" / "main" / "PG_VERSION").write_text("17")
    told = {"sets": [{**entry("a", "/srv"), "databases": [{"name": "directory", "kind": "command"}]}]}
    assert backup.undeclared(told) == [str(tmp_path / "clusters" / "17" / "main")]
