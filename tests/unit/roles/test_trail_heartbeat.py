# SPDX-License-Identifier: GPL-3.0-or-later
"""The heartbeat: what it makes of what it sees, and that nothing keeps the line from coming."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest

PATH = Path(__file__).resolve().parents[3] / "roles" / "log_forward" / "files" / "trail_heartbeat.py"
SPEC = importlib.util.spec_from_file_location("trail_heartbeat", PATH)
heartbeat = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(heartbeat)


@pytest.mark.parametrize(
    ("sent", "last", "unsent"),
    [
        ("LAST_CURSOR=s=ab;i=10;b=c;m=1", "__CURSOR=s=ab;i=1a;b=d;m=2", "10"),
        ("LAST_CURSOR=s=ab;i=10;b=c;m=1", "__CURSOR=s=ef;i=12;b=c;m=2", "2"),
        ("LAST_CURSOR=s=ab;i=10;b=c;m=1", "__CURSOR=s=ef;i=12;b=d;m=2", "-"),
        ("LAST_CURSOR=s=ab;i=10;b=c;m=1", "__CURSOR=s=ab;i=2;b=c;m=2", "-"),
        ("", "__CURSOR=s=ab;i=2;b=c;m=2", "-"),
        ("LAST_CURSOR=s=ab;i=10;b=c;m=1", "", "-"),
    ],
)
def test_unsent(sent, last, unsent):
    assert heartbeat.unsent(sent, last) == unsent


def test_clock():
    tracking = "C0A80001,192.0.2.1,3,1795568523.1,-0.000012,0.00001,0.00002,1.2,0.0,0.1,0.01,0.001,64.2,Normal\n"
    assert heartbeat.clock(tracking) == ("synchronised", "-0.000012")
    assert heartbeat.clock(tracking.replace("Normal", "Not synchronised"))[0] == "unsynchronised"
    assert heartbeat.clock("") == ("unknown", "-")


def test_audit():
    assert heartbeat.audit("enabled 2\nfailure 1\npid 311\nlost 0\nbacklog_wait_time 60000\n") == {
        "enabled": "2", "lost": "0", "pid": "311",
    }  # fmt: skip
    assert heartbeat.audit("") == {"enabled": "-", "lost": "-", "pid": "-"}


def test_the_line_comes_whatever_is_missing(monkeypatch, capsys):
    monkeypatch.setattr(heartbeat.sys, "argv", ["trail_heartbeat", "--interval=60"])
    monkeypatch.setattr(heartbeat, "output", lambda *command: "")
    assert heartbeat.main() == 0
    assert re.fullmatch(
        r"event=heartbeat interval=60 unsent=- clock=unknown clock_offset_seconds=- audit_enabled=- audit_lost=- audit_pid=- "
        r"boot=[0-9a-f]{32}\n",
        capsys.readouterr().out,
    )
