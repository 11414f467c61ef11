# SPDX-License-Identifier: GPL-3.0-or-later
"""The duo collector: what sudo and sshd say about who is asked, and that no key ever leaves it."""

from __future__ import annotations

import pwd

import pytest
from ansible_collections.bulwark.hardening.plugins.module_utils import pam
from ansible_collections.bulwark.hardening.plugins.module_utils.posture import duo

ENTRY = """
Sudoers entry: /etc/sudoers.d/90-deploy
    RunAsUsers: ALL
    RunAsGroups: ALL
{options}    Commands:
\tALL
"""


def listing(defaults="env_reset, use_pty", options=""):
    """Return what `sudo -ll -U` prints."""
    return (
        f"Matching Defaults entries for jdoe on host:\n    {defaults}\n\nUser jdoe may run the following commands on host:\n"
        + (ENTRY.format(options=options))
    )


@pytest.mark.parametrize(
    ("text", "special", "said"),
    [
        ("User nobody is not allowed to run sudo on host.\n", False, (False, [], "")),
        (listing(), False, (True, [], "")),
        (listing(options="    Options: !authenticate\n"), False, (True, ["ALL"], "")),
        (listing("!authenticate"), False, (True, ["ALL"], "")),
        (listing("!authenticate, authenticate, timestamp_timeout=5"), False, (True, [], "5")),
        (listing("!authenticate, authenticate"), True, (True, ["ALL"], "")),
        (listing("!authenticate", options="    Options: authenticate\n"), False, (True, [], "")),
        (listing("timestamp_timeout=60, timestamp_timeout=5"), False, (True, [], "5")),
        (listing("timestamp_timeout=60, timestamp_timeout=5"), True, (True, [], "60")),
        (listing("timestamp_timeout=-1, timestamp_timeout=5"), True, (True, [], "-1")),
    ],
)
def test_what_sudo_grants(text, special, said):
    assert duo.granted(text, special) == said


def test_defaults_for_some_are_noticed():
    assert not duo.bound(["Defaults !authenticate\nDefaults timestamp_timeout=5\n", "# Defaults:jdoe !authenticate"])
    assert duo.bound(["Defaults:jdoe !authenticate"]) and duo.bound(["", "Defaults!/bin/ls timestamp_timeout=99"])


PERSON = pwd.struct_passwd(("jdoe", "x", 1001, 1001, "", "/home/jdoe", "/bin/bash"))
OPEN = {"pubkeyauthentication": ["yes"], "kbdinteractiveauthentication": ["yes"], "usepam": ["yes"], "logingracetime": ["90"]}
BOTH = {**OPEN, "authenticationmethods": ["publickey,keyboard-interactive:pam"]}


def connection(settings, place=""):
    """Return one kind of connection as the ssh collector describes it."""
    return {"accounts": [PERSON], "address": "203.0.113.7", "place": place, "settings": settings}


@pytest.fixture(autouse=True)
def no_groups(monkeypatch):
    """The person of these tests exists nowhere."""
    monkeypatch.setattr(duo.server, "groups_of", lambda _entry: [])


def test_who_is_asked_over_ssh():
    assert duo.over_ssh([connection(BOTH)]) == {
        "asks": True, "usepam": ["yes"], "without_key": [], "grace_seconds": 90, "tries_max": 6,
    }  # fmt: skip
    assert duo.by_key_alone([connection(BOTH)]) == {}
    key_only = {**OPEN, "authenticationmethods": ["publickey"]}
    assert duo.by_key_alone([connection(BOTH), connection(key_only, "from 10.0.0.1")]) == {"jdoe": "from 10.0.0.1"}
    assert duo.by_key_alone([connection(key_only)]) == {"jdoe": "from anywhere"}
    assert not duo.over_ssh([connection(key_only)])["asks"]
    anything = {**OPEN, "authenticationmethods": ["any"]}
    assert duo.over_ssh([connection(anything)])["without_key"] == ["jdoe"]
    closed = {**BOTH, "kbdinteractiveauthentication": ["no"]}
    assert not duo.over_ssh([connection(closed)])["asks"], "sshd would let nobody in at all"
    refused = {**key_only, "denyusers": ["jdoe"]}
    assert duo.by_key_alone([connection(refused)]) == {}


def test_the_keys_are_not_told(tmp_path, monkeypatch):
    path = tmp_path / "pam_duo.conf"
    path.write_text("[duo]\nfailmode = secure\nhost = 127.0.0.1:1\nikey = DISECRET\nskey = topsecret\ncafile = /nonexistent\n")
    monkeypatch.setattr(pam, "CONFIG", str(path))
    told = [duo.config(), duo.service()]
    assert told[0]["settings"] == {"failmode": "secure", "host": "127.0.0.1:1", "cafile": "/nonexistent"}
    assert told[1]["problem"] == "authority" and "SECRET" not in str(told).upper()
    path.unlink()
    assert duo.config() == {"present": False, "mode": "", "settings": {}} and duo.service()["problem"] == "config"
