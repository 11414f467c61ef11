# SPDX-License-Identifier: GPL-3.0-or-later
"""The collector of how a host forwards: settings in effect, and how far behind the collector is."""

from __future__ import annotations

import pytest
from ansible_collections.bulwark.hardening.plugins.module_utils.posture import log_forward
from ansible_collections.bulwark.hardening.plugins.module_utils.posture.common import CannotObserve

STATE = "# This is private data.\nLAST_CURSOR=s=ab;i=10;b=cd;m=1;t=2;x=3\n"


def test_of_repeated_settings_the_last_holds():
    text = "# /etc/x\n[Journal]\n#Storage=auto\nStorage=volatile\n[Other]\nStorage=none\n\n[Journal]\nStorage = persistent\n"
    assert log_forward.parsed(text, "Journal") == {"Storage": "persistent"}
    assert log_forward.parsed("[Journal]\nA=1\nA=\n", "Journal") == {}


@pytest.mark.parametrize(("bounding", "able"), [("000001ffffffffff", True), ("00000000e80435fb", False)])
def test_what_a_container_cannot_do(bounding, able):
    assert log_forward.sandbox(f"Name:\tsystemd\nCapBnd:\t{bounding}\n") is able


def test_without_capabilities_it_says_so():
    with pytest.raises(CannotObserve):
        log_forward.sandbox("Name: x\n")


def look(monkeypatch, tmp_path, state, last, first):
    """Return the lag for what the uploader remembers and the journal holds."""
    path = tmp_path / "state"
    if state:
        path.write_text(state)
    monkeypatch.setattr(log_forward, "STATES", (str(path),))
    monkeypatch.setattr(log_forward, "run", lambda argv: last)
    monkeypatch.setattr(log_forward, "first_after", lambda cursor: first)
    return log_forward.lag()


@pytest.mark.parametrize(
    ("program", "first"),
    [("echo '{\"__REALTIME_TIMESTAMP\": \"5000000\"}'; sleep 9", 5.0), ("exit 0", None)],
)
def test_the_first_entry_that_is_not_sent(monkeypatch, tmp_path, program, first):
    """One line is enough; none from a journalctl that is content means that all is sent."""
    (tmp_path / "journalctl").write_text(f"#!/bin/sh\n{program}\n")
    (tmp_path / "journalctl").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    assert log_forward.first_after("s=1;i=1") == first


@pytest.mark.parametrize("program", ["echo 'Failed to seek to cursor' >&2; exit 1", "echo nonsense"])
def test_a_journal_that_cannot_be_read_is_not_all_sent(monkeypatch, tmp_path, program):
    (tmp_path / "journalctl").write_text(f"#!/bin/sh\n{program}\n")
    (tmp_path / "journalctl").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    with pytest.raises(CannotObserve):
        log_forward.first_after("s=1;i=1")


def test_lag(monkeypatch, tmp_path):
    monkeypatch.setattr(log_forward.time, "time", lambda: 1000.0)
    seen = look(monkeypatch, tmp_path, STATE, '{"__CURSOR":"s=ef;i=15;b=cd;m=9"}', 940.0)
    assert (seen["acknowledged"], seen["unsent"], seen["seconds"]) == (True, 5, 60.0)
    seen = look(monkeypatch, tmp_path, STATE, '{"__CURSOR":"s=ef;i=15;b=ff;m=9"}', None)
    assert (seen["unsent"], seen["seconds"]) == (None, 0.0)


@pytest.mark.parametrize("state", ["", "nothing\n"])
def test_without_a_position_nothing_is_acknowledged(monkeypatch, tmp_path, state):
    assert look(monkeypatch, tmp_path, state, "", None)["acknowledged"] is False
