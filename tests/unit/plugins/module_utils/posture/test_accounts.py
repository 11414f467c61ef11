# SPDX-License-Identifier: GPL-3.0-or-later
"""Unit tests of the accounts collector, fed with what Debian 12 and 13 really wrote."""

from __future__ import annotations

import base64
import os
import sqlite3
import zlib

import pytest
from ansible_collections.bulwark.hardening.plugins.module_utils.posture import accounts
from ansible_collections.bulwark.hardening.plugins.module_utils.posture.common import CannotObserve


def captured(text: str) -> bytes:
    """Return a captured file (compressed, base64)."""
    return zlib.decompress(base64.b64decode(text))


# Debian 12: slot of uid 1001 in lastlog after a login on a terminal, and the last two entries of wtmp (`last` said:
# jdoe pts/0 Sun Nov 22 01:11:02 2026 - 01:11:03).
LASTLOG_12 = captured("eNpTc2TKLigp1jdgGAW4AADbpQKL")
WTMP_12 = captured("eNpjZ2Bg2MTIwFBQUqxvwIAfZKXkpzKMAoJAzZEpO0KXiyi1HCSE/yggDqgDw3+zNjNRagEGiwmd")
# Debian 13: the only entry of wtmp, written by sshd for a session of deploy.
WTMP_13 = captured("eNpjZ2Bg8AbigpJifQMG3AAknZJakJNfiVuNoYGehYWegZ4hw8gGoo5M2ZvtGBi4IhgYCakFAHApCa8=")
WTMPDB_13 = (  # its schema and an entry, as sshd made them
    "CREATE TABLE wtmp(ID INTEGER PRIMARY KEY, Type INTEGER, User TEXT NOT NULL, Login INTEGER, Logout INTEGER, TTY TEXT, "
    "RemoteHost TEXT, Service TEXT) STRICT",
    "INSERT INTO wtmp VALUES (1, 3, 'jdoe', 1795306522774831, 1795306522784827, 'pts/0', '10.88.0.1', NULL)",
)
LOGGED_IN_12 = 1795309862
SSHD = "port 22\nusepam yes\nauthorizedkeysfile .ssh/authorized_keys /etc/ssh/keys/%u\nauthorizedkeyscommand none\n"
KEY = "AAAAC3NzaC1lZDI1NTE5AAAAIKFM+6ZRlPcYWAxUcGnqnYN1bbUdfD1e3/YBJ4tJZ4Bi"
FINGERPRINT = "SHA256:Eh4Na2mtaXyxWD9Lk5W05NL4/eyPd5WekgJ2P0+XH84"  # as ssh-keygen -l says


def test_lastlog_of_debian_12(tmp_path):
    path = tmp_path / "lastlog"
    path.write_bytes(bytes(292) * 1001 + LASTLOG_12)
    assert sorted(accounts.read_lastlog(str(path), {0, 1001, 4000000}, "x86_64")) == [(0, 0), (1001, LOGGED_IN_12)]


def test_lastlog_of_another_layout_is_not_guessed_at(tmp_path):
    path = tmp_path / "lastlog"
    path.write_bytes(bytes(292) * 3)
    with pytest.raises(CannotObserve, match="not a multiple of 296"):
        accounts.read_lastlog(str(path), {1}, "aarch64")
    with pytest.raises(CannotObserve, match="layout"):
        accounts.read_lastlog(str(path), {1}, "s390x")


def test_lastlog_after_2038_still_counts_forward(tmp_path):
    path = tmp_path / "lastlog"
    path.write_bytes((2**31 + 5).to_bytes(4, "little") + bytes(288))
    assert accounts.read_lastlog(str(path), {0}, "x86_64") == [(0, 2**31 + 5)]


def test_wtmp_of_both_releases(tmp_path):
    path = tmp_path / "wtmp"
    path.write_bytes(WTMP_12)
    assert accounts.read_wtmp(str(path), "x86_64") == [("jdoe", LOGGED_IN_12)]
    path.write_bytes(WTMP_13)
    assert [name for name, _at in accounts.read_wtmp(str(path), "x86_64")] == ["deploy"]
    path.write_bytes(WTMP_12 + WTMP_12[:100])  # cut off in the middle of an entry
    assert accounts.read_wtmp(str(path), "x86_64") == [("jdoe", LOGGED_IN_12)]


def test_databases_of_debian_13(tmp_path):
    with sqlite3.connect(tmp_path / "wtmp.db") as database:
        for statement in WTMPDB_13:
            database.execute(statement.replace(" STRICT", ""))  # sqlite of Debian 12 knows no STRICT
    query = "SELECT User, MAX(Login) / 1000000 FROM wtmp WHERE Type = 3 GROUP BY User"
    assert accounts.read_database(str(tmp_path / "wtmp.db"), query) == [("jdoe", 1795306522)]


def test_latest_login_of_all_sources_wins_and_says_which(tmp_path, monkeypatch):
    (tmp_path / "lastlog").write_bytes(bytes(292) * 1001 + LASTLOG_12)
    (tmp_path / "wtmp").write_bytes(WTMP_12)
    with sqlite3.connect(tmp_path / "wtmp.db") as database:
        for statement in WTMPDB_13:
            database.execute(statement.replace(" STRICT", ""))
    (tmp_path / "logins").mkdir()
    (tmp_path / "logins" / ".since").write_text("1\n")
    (tmp_path / "logins" / "asmith").write_text("1795309999 sshd\n")
    for name, file in (("LASTLOG", "lastlog"), ("WTMPDB", "wtmp.db"), ("LASTLOG2", "none"), ("LOGINS", "logins")):
        monkeypatch.setattr(accounts, name, str(tmp_path / file))
    monkeypatch.setattr(accounts, "WTMPS", (str(tmp_path / "wtmp"), str(tmp_path / "wtmp.1")))
    monkeypatch.setattr(accounts.platform, "machine", lambda: "x86_64")
    entries = [{"name": "jdoe", "uid": 1001}, {"name": "asmith", "uid": 1002}, {"name": "never", "uid": 1003}]
    record = {"seen": {"never:1003": {"last_login": 5}}}

    found, sources = accounts.last_logins(entries, record)
    assert found["jdoe"] == {"at": LOGGED_IN_12, "source": "lastlog"}
    assert found["asmith"] == {"at": 1795309999, "source": "bulwark"}
    assert found["never"] == {"at": 5, "source": "record"}
    assert sources == {"lastlog": "read", "wtmp": "read", "wtmpdb": "read", "bulwark": "read"}

    (tmp_path / "wtmp.db").write_bytes(b"no database at all, but long enough to be one" * 20)
    _found, sources = accounts.last_logins(entries, record)
    assert sources["wtmpdb"].startswith("unreadable")


def test_damaged_record_is_no_empty_record(tmp_path, monkeypatch):
    monkeypatch.setattr(accounts, "RECORD", str(tmp_path / "record.json"))
    assert accounts.load_record()["disabled"] == {}
    (tmp_path / "record.json").write_text('{"schema": 1, "dis')
    with pytest.raises(CannotObserve, match="damaged"):
        accounts.load_record()
    (tmp_path / "record.json").write_text('{"schema": 2}')
    with pytest.raises(CannotObserve, match="schema 2"):
        accounts.load_record()


def test_shell_is_what_it_really_is(tmp_path, monkeypatch):
    real = tmp_path / "false"
    real.write_bytes(b"false")
    link = tmp_path / "link"
    link.symlink_to("/bin/bash")
    monkeypatch.setattr(accounts, "NO_SHELLS", {str(real): ("coreutils", ("usr/bin/false",))})
    monkeypatch.setattr(accounts, "_genuine", {str(real): True})
    listed = {"/bin/bash", str(real)}
    assert accounts.shell_kind(str(real), listed) == "none"
    assert accounts.shell_kind("", listed) == "listed"  # an empty field means /bin/sh
    assert accounts.shell_kind("/bin/bash", listed) == "listed"
    assert accounts.shell_kind(str(link), listed) == "unlisted"
    assert accounts.shell_kind("/no/such/shell", listed) == "unlisted"
    monkeypatch.setattr(accounts, "_genuine", {str(real): False})  # something else was copied over it
    assert accounts.shell_kind(str(real), listed) == "unlisted"


def test_keys_are_found_where_sshd_looks_and_where_it_might(tmp_path, monkeypatch):
    monkeypatch.setattr(accounts, "SSHD", str(tmp_path))  # something that is there
    monkeypatch.setattr(accounts, "sshd_effective", lambda: SSHD)
    patterns, uses_pam = accounts.sshd_settings()
    assert (patterns, uses_pam) == ([".ssh/authorized_keys", "/etc/ssh/keys/%u"], True)
    home = tmp_path / "home"
    (home / ".ssh").mkdir(parents=True)
    (home / ".ssh" / "authorized_keys2").write_text(
        f'# a comment\nfrom="10.0.0.1",command="a b" ssh-ed25519 {KEY} me\nnonsense\n'
    )
    assert accounts.key_files("jdoe", 1001, str(home), patterns) == [str(home / ".ssh" / "authorized_keys2")]
    assert accounts.fingerprints(str(home / ".ssh" / "authorized_keys2")) == [FINGERPRINT]


def test_pipe_in_place_of_keys_does_not_block(tmp_path):
    os.mkfifo(tmp_path / "authorized_keys")
    assert accounts.fingerprints(str(tmp_path / "authorized_keys")) == []


def test_default_passwords_are_tried_and_never_shown():
    pi = "$6$saltsalt$" + "q" * 86
    assert accounts.default_passwords([{"name": "pi", "password": "x"}], {"pi": (pi, None)}) == []
    # made by: openssl passwd -6 -salt bulwark jdoe
    jdoe = "$6$bulwark$Y3PGTc9jpbczPvrnjWcDTELXlAV/CjS8gOK.lAjGF/KQ3u2yXP/Ee4x58MlE.J9S6RTiWQZCSTeq2HwtU97zQ1"
    assert accounts.default_passwords([{"name": "jdoe", "password": "x"}], {"jdoe": (jdoe, None)}) == ["jdoe"]
    assert accounts.default_passwords([{"name": "jdoe", "password": "x"}], {"jdoe": ("!" + jdoe, None)}) == []


def test_too_many_passwords_to_try_is_no_pass(monkeypatch):
    monkeypatch.setattr(accounts, "GUESSING_SECONDS", -1)
    with pytest.raises(CannotObserve, match="takes more than"):
        accounts.default_passwords([{"name": "a", "password": "x"}], {"a": ("$6$salt$" + "q" * 86, None)})


def test_lowest_uid_of_people():
    assert accounts.lowest_person("#UID_MIN 5\nUID_MIN\t\t\t 1000\nUID_MAX 60000\n") == 1000
    assert accounts.lowest_person("UID_MIN 500\n") == 500
    assert accounts.lowest_person("") == 1000
