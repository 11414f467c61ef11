# Copyright: (c) 2026, Bulwark contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The collector of how sessions end, on what Debian 12 and 13 printed before and after the role."""

from __future__ import annotations

from pathlib import Path

import pytest
from ansible_collections.bulwark.hardening.plugins.module_utils.posture import session
from ansible_collections.bulwark.hardening.plugins.module_utils.posture.common import CannotObserve

FIXTURES = Path(__file__).parent / "fixtures" / "session"
RELEASES = ("debian12", "debian13")


def fixture(release, state, what):
    return (FIXTURES / f"{release}-{state}-{what}.txt").read_text()


@pytest.mark.parametrize("release", RELEASES)
@pytest.mark.parametrize("shell", session.SHELLS)
def test_vendor_shell_never_ends(release, shell):
    seen = session.shell_settings(fixture(release, "plain", shell), session.SHELLS[shell])
    assert seen == {"timeout_seconds": 0, "ends_after_seconds": 0, "readonly": False}


@pytest.mark.parametrize("release", RELEASES)
@pytest.mark.parametrize("shell", session.SHELLS)
def test_hardened_shell_ends_after_half_an_hour(release, shell):
    seen = session.shell_settings(fixture(release, "hardened", shell), session.SHELLS[shell])
    assert seen == {"timeout_seconds": 1740 if shell == "ksh93" else 1800, "ends_after_seconds": 1800, "readonly": True}


@pytest.mark.parametrize(
    ("output", "timeout", "readonly"),
    [
        ("", 0, False),
        ("welcome\nTMOUT is 900\ndeclare -x LANG\n", 900, False),
        ("TMOUT is 900\nTMOUT is 600\nreadonly TMOUT=600\n", 600, True),  # the last one counts: a profile may print the same
        ("TMOUT is soon\n", 0, False),
        ("TMOUT is -1\n", 0, False),
        ('TMOUT is 900\ndeclare -r MYTMOUT="1"\n', 900, False),
        ('TMOUT is 900\ndeclare -irx TMOUT="900"\n', 900, True),
    ],
)
def test_other_things_shells_say(output, timeout, readonly):
    assert session.shell_settings(output, 0) == {
        "timeout_seconds": timeout,
        "ends_after_seconds": timeout,
        "readonly": readonly,
    }


@pytest.mark.parametrize("release", RELEASES)
def test_sshd(release):
    never = {"channel_timeout_seconds": 0, "unused_connection_seconds": 0}
    assert session.sshd_timeouts(fixture(release, "plain", "sshd")) == never  # direct-tcpip=30m covers no session
    assert session.sshd_timeouts(fixture(release, "hardened", "sshd")) == {
        "channel_timeout_seconds": 1620,
        "unused_connection_seconds": 180,
    }


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("none", 0),
        ("*=1620", 1620),
        ("*=0", 0),
        ("session=1620", 0),  # matches nothing in some versions
        ("session:*=600 *=1200", 1200),
        ("*=600 session:*=0", 600),  # the first that matches wins
        ("session:command=0 *=600", 0),  # commands stay
        ("session:command=1h *=600", 3600),
    ],
)
def test_channel_timeouts(value, seconds):
    assert session.sshd_timeouts(f"channeltimeout {value}\n")["channel_timeout_seconds"] == seconds


@pytest.mark.parametrize("release", RELEASES)
def test_logind(release):
    assert session.microseconds(fixture(release, "plain", "logind").split()[-1]) == 0
    assert session.microseconds(fixture(release, "hardened", "logind").split()[-1]) == 1800


@pytest.mark.parametrize("release", RELEASES)
def test_no_timer(release):
    seen = session.reaper_state(fixture(release, "plain", "systemctl"), "{}", 6370.0)
    assert seen == {
        "running": False,
        "at_boot": False,
        "interval_seconds": 0,
        "last_look_seconds_ago": None,
        "end_after_seconds": 0,
        "worst_case_seconds": None,
    }


@pytest.mark.parametrize("release", RELEASES)
def test_timer(release):
    memory = fixture(release, "hardened", "memory")
    seen = session.reaper_state(fixture(release, "hardened", "systemctl"), memory, 6380.5)
    assert seen == {
        "running": True,
        "at_boot": True,
        "interval_seconds": 60,
        "last_look_seconds_ago": 11 if release == "debian12" else 10,
        "end_after_seconds": 1732,
        "worst_case_seconds": 1800,
    }


@pytest.mark.parametrize("memory", ["", "{", "[]", "null", "{}"])
def test_unusable_memory_is_no_look(memory):
    seen = session.reaper_state(fixture("debian12", "hardened", "systemctl"), memory, 6380.5)
    assert seen["running"]
    assert seen["last_look_seconds_ago"] is None
    assert seen["worst_case_seconds"] is None


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("none", 0), ("infinity", 0), ("", 0), ("0", 0), ("1800", 1800), ("30m", 1800), ("1h30m", 5400), ("1min 30s", 90),
        ("100ms", 1), ("1w", 604800), ("1d 2h", 93600), ("60s", 60), ("2h 1min 500ms", 7261),
    ],
)  # fmt: skip
def test_times(text, seconds):
    assert session.time_span(text) == seconds


@pytest.mark.parametrize("text", ["soon", "30 q", "-5", "5x", "1..5s", "30m!"])
def test_no_times(text):
    with pytest.raises(CannotObserve, match="no time"):
        session.time_span(text)


def exceptions(tmp_path, text, **included):
    """Return what is found, without the directory's name, in a configuration with included files."""
    for name, content in included.items():
        (tmp_path / f"{name}.conf").write_text(content)
    (tmp_path / "sshd_config").write_text(text.replace("DIR", str(tmp_path)))
    return [line.replace(f"{tmp_path}/", "") for line in session.ssh_exceptions(str(tmp_path / "sshd_config"))]


def test_match_blocks(tmp_path):
    exempt = "Match User root\n    ChannelTimeout *=0\n"
    settled = "ChannelTimeout *=9\nMatch all\n    ChannelTimeout *=9\n    UnusedConnectionTimeout 9\n"
    found = ["b.conf:2: ChannelTimeout *=0"]
    assert exceptions(tmp_path, "Include DIR/*.conf\n", b=exempt) == found
    assert exceptions(tmp_path, "Include DIR/*.conf\n", a=settled, b=exempt) == []
    assert exceptions(tmp_path, "Include DIR/b.conf DIR/a.conf\n", a=settled, b=exempt) == found
    # a file ends its own block
    assert exceptions(tmp_path, "Include DIR/b.conf\nChannelTimeout *=9\n", b="Match User root\nX11Forwarding no\n") == []
    # and what it was included in goes on
    text = "Match Group a\nInclude DIR/b.conf\nchanneltimeout=*=0\n"
    assert exceptions(tmp_path, text, b="Match all\nPermitTTY no\n") == ["sshd_config:3: channeltimeout=*=0"]


def test_none_wins_wherever_it_stands(tmp_path):
    text = "Match all\n  UnusedConnectionTimeout 9\nMatch User root\n  UnusedConnectionTimeout none\n"
    assert exceptions(tmp_path, text) == ["sshd_config:4: UnusedConnectionTimeout none"]


def test_part_that_cannot_be_observed_is_named(monkeypatch):
    def refuse(*_args, **_more):
        raise CannotObserve("out of order")

    for part in ("run", "read"):
        monkeypatch.setattr(session, part, refuse)
    seen = session.collect()
    assert set(seen["unobserved"]) >= {"logind_seconds", "reaper", "shells"}
    assert "reaper" not in seen
    assert "shell_timeout_seconds" not in seen
