# SPDX-License-Identifier: GPL-3.0-or-later
"""Unit tests of the accounts module: editing the account files, archives, keys. No host is touched."""

from __future__ import annotations

import os
import stat
import subprocess

import pytest
from ansible_collections.bulwark.hardening.plugins.modules import accounts as module

PASSWD = """root:x:0:0:root:/root:/bin/bash
toor:x:0:0::/root:/bin/bash
jdoe:x:1001:1001:Jane Doe:/home/jdoe:/bin/bash
old:$1$old$hash:1002:1002::/home/old:/bin/sh
open::1003:1003::/home/open:/bin/sh
+@ward::::::
"""
SHADOW = """root:$y$j9T$root:20779:0:99999:7:::
jdoe:$y$j9T$jane:20779:0:99999:7:::
open::20779:0:99999:7:::
"""
GROUP = "root:x:0:\nsudo:x:27:jdoe,old\njdoe:x:1001:\nward:x:1100:old\n"
GSHADOW = "root:*::\nsudo:*::jdoe,old\njdoe:!::\nward:!::old\n"


@pytest.fixture
def files(tmp_path, monkeypatch):
    """Account files in a directory of their own."""
    monkeypatch.setattr(module.shutil, "which", lambda program: None)  # no pwck here: the lines are deliberately odd
    for name, text in zip(module.DATABASES, (PASSWD, SHADOW, GROUP, GSHADOW), strict=True):
        (tmp_path / name).write_text(text)
    (tmp_path / "shadow").chmod(0o640)
    opened = module.Databases(str(tmp_path))
    yield opened
    opened.close()


def line(files, database: str, name: str) -> str:
    """The line of a name."""
    return next(text for text in files.lines[database] if text.startswith(name + ":"))


def test_lock_and_open_give_the_same_password_back(files):
    files.set("jdoe", "password", "locked")
    assert line(files, "shadow", "jdoe").split(":")[1] == "!$y$j9T$jane"
    files.set("jdoe", "password", "locked")
    assert line(files, "shadow", "jdoe").split(":")[1] == "!$y$j9T$jane"
    files.set("jdoe", "password", "open")
    assert line(files, "shadow", "jdoe") == SHADOW.splitlines()[1]


def test_empty_password_is_locked_and_cannot_be_opened(files):
    files.set("open", "password", "locked")
    assert line(files, "passwd", "open").split(":")[1] == "x"
    assert line(files, "shadow", "open").split(":")[1] == "!"
    files.set("open", "password", "open")
    assert line(files, "shadow", "open").split(":")[1] == "!"


def test_password_in_passwd_moves_to_shadow(files):
    files.set("old", "password", "locked")
    assert line(files, "passwd", "old").split(":")[1] == "x"
    assert line(files, "shadow", "old").split(":")[1] == "!$1$old$hash"


def test_groups_are_exactly_those_wanted_in_both_files(files):
    files.set("old", "groups", ["ward"])
    assert line(files, "group", "sudo") == "sudo:x:27:jdoe"
    assert line(files, "gshadow", "sudo") == "sudo:*::jdoe"
    assert line(files, "group", "ward") == "ward:x:1100:old"
    files.set("jdoe", "groups", ["sudo", "ward"])
    assert line(files, "group", "ward") == "ward:x:1100:old,jdoe"


def test_only_the_named_account_of_a_uid_changes(files):
    files.set("toor", "uid", 999)
    assert line(files, "passwd", "root") == PASSWD.splitlines()[0]
    assert line(files, "passwd", "toor").split(":")[2] == "999"


def test_removed_account_keeps_uid_and_nothing_else(files):
    files.rename("jdoe", "removed-jdoe", "was jdoe; uid reserved", "/nonexistent", "/usr/sbin/nologin", "1")
    assert (
        line(files, "passwd", "removed-jdoe") == "removed-jdoe:x:1001:1001:was jdoe; uid reserved:/nonexistent:/usr/sbin/nologin"
    )
    assert line(files, "shadow", "removed-jdoe") == "removed-jdoe:!*:20779:0:99999:7::1:"
    assert line(files, "group", "removed-jdoe").startswith("removed-jdoe:x:1001:")
    assert line(files, "gshadow", "removed-jdoe") == "removed-jdoe:!::"
    assert not any(text.startswith("jdoe:") for lines in files.lines.values() for text in lines)


def test_save_keeps_owner_and_mode_and_touches_only_what_changed(files, tmp_path):
    before = {name: os.stat(tmp_path / name).st_ino for name in module.DATABASES}
    assert [entry["line"] for entry in files.drop_nis()] == ["+@ward::::::"]
    files.set("jdoe", "password", "locked")
    files.save()
    assert stat.S_IMODE(os.stat(tmp_path / "shadow").st_mode) == 0o640
    changed = {name for name in module.DATABASES if os.stat(tmp_path / name).st_ino != before[name]}
    assert changed == {"passwd", "shadow"}
    assert not [name for name in os.listdir(tmp_path) if name.startswith(".bulwark")]


def test_inconsistent_result_is_refused_without_quoting_hashes(files, tmp_path, monkeypatch):
    monkeypatch.setattr(module.shutil, "which", lambda program: "/usr/sbin/" + program if program == "pwck" else None)
    calls = []

    def checker(argv, **_more):
        calls.append(argv)
        said = "" if len(calls) == 2 else "invalid shadow password file entry\ndelete line 'jdoe:$y$j9T$jane:20779'? No\n"
        return subprocess.CompletedProcess(argv, 2, said, "")

    monkeypatch.setattr(module.subprocess, "run", checker)
    files.set("jdoe", "shell", "/bin/zsh")
    with pytest.raises(module.Failed) as caught:
        files.save()
    assert "invalid shadow password file entry" in str(caught.value)
    assert "jane" not in str(caught.value)
    assert (tmp_path / "passwd").read_text() == PASSWD


def test_locked_files_are_not_written(files, tmp_path):
    script = (
        "import sys; from ansible_collections.bulwark.hardening.plugins.modules import accounts as m\n"
        "try: m.Databases(sys.argv[1], 0.2)\n"
        "except m.Failed as exc: print(exc)"
    )
    root = os.path.abspath(os.path.join(os.path.dirname(__file__), "../../../../collections"))
    done = subprocess.run(
        [os.sys.executable, "-c", script, str(tmp_path)], check=False, capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": root},
    )  # fmt: skip
    assert "stay locked by another program" in done.stdout


def account(home, **more) -> dict:
    """An account for archives."""
    return {"name": "jdoe", "uid": os.getuid(), "home": str(home), **more}


def test_archive_is_complete_private_and_never_overwritten(tmp_path):
    home = tmp_path / "home" / "jdoe"
    home.mkdir(parents=True)
    (home / "notes").write_text("precious")
    (home / "link").symlink_to("/etc/shadow")
    target = tmp_path / "archives"
    first, digest = module.archive(account(home), [str(home)], str(target))
    second, _digest = module.archive(account(home), [str(home)], str(target))
    assert first != second
    assert len(digest) == 64
    assert stat.S_IMODE(os.stat(first).st_mode) == 0o600
    assert stat.S_IMODE(os.stat(target).st_mode) == 0o700
    (tmp_path / "back").mkdir()
    subprocess.run(["tar", "-xzf", first, "-C", str(tmp_path / "back")], check=True)
    assert (tmp_path / "back" / str(home).lstrip("/") / "notes").read_text() == "precious"
    assert module.archive(account(home), [], str(target)) == ("", "")


@pytest.mark.parametrize("home", ["/", "/root", "/usr/games", "/var", "/etc/x", "/no/such/home"])
def test_homes_that_are_not_the_accounts_own_stay(home):
    paths, why = module.belongings(account(home), {})
    assert paths == []
    assert why


def test_home_of_two_stays(tmp_path):
    home = tmp_path / "home"
    home.mkdir()
    both = {"jdoe": account(home), "other": {"name": "other", "home": f"{home}/sub"}}
    assert module.belongings(both["jdoe"], both) == ([], "other lives there")
    assert module.belongings(both["jdoe"], {"jdoe": both["jdoe"]})[0] == [str(home)]


def test_only_what_still_is_the_accounts_own_is_deleted(tmp_path):
    (tmp_path / "home").mkdir()
    (tmp_path / "mail").write_text("x")
    paths = [str(tmp_path / name) for name in ("home", "mail", "gone")]
    module.delete(paths, os.getuid() + 1)
    assert sorted(os.listdir(tmp_path)) == ["home", "mail"]
    module.delete(paths, os.getuid())
    assert os.listdir(tmp_path) == []


def test_difference_shows_words_never_hashes():
    made = {
        "want": {"jdoe": {"password": "locked", "expires_day": 1}}, "disable": {"jdoe": ("dormant", "unused for 90 days")},
        "enable": [], "remove": {}, "create": [], "revive": [], "put_away": {"/root/.ssh/authorized_keys": "root"}, "keys": {},
        "nis": False,
    }  # fmt: skip
    before, after = module.difference(made, {"jdoe": {"password": "set", "expires_day": None}}, {})
    assert before == ["jdoe: expires never", "jdoe: password set", "root: keys in /root/.ssh/authorized_keys"]
    assert after == ["jdoe: expires 1970-01-02", "jdoe: password locked", "jdoe: disabled (dormant): unused for 90 days"]


@pytest.mark.parametrize(
    ("said", "able"),
    [
        ("User deploy may run the following commands on host:\n    (ALL : ALL) NOPASSWD: ALL\n", True),
        ("    (ALL) ALL\n", True),
        ("    (root) PASSWD: ALL\n", True),
        ("    (root) /usr/bin/apt update\n", False),
        ("    (www-data) ALL\n", False),
        ("User jdoe is not allowed to run sudo on host.\n", False),
    ],
)
def test_who_can_become_root(monkeypatch, said, able):
    monkeypatch.setattr(module, "run", lambda argv: said)
    assert module.can_become_root("somebody") is able


def test_journal_of_both_releases(monkeypatch):
    text = (
        "1795306520.123456 debian12 sshd[421]: Accepted publickey for jdoe from 10.0.0.1 port 5 ssh2: ED25519 SHA256:x\n"
        "1795306600.000001 debian13 sshd-session[77]: Accepted publickey for jdoe from 10.0.0.1 port 6 ssh2: ED25519 SHA256:x\n"
        "1795306700.000001 debian13 sshd-session[78]: Accepted publickey for other from 10.0.0.1 port 6 ssh2: ED25519 SHA256:x\n"
    )
    monkeypatch.setattr(module, "run", lambda argv, timeout: text)
    assert module.journal_says(["jdoe"], 90) == {"jdoe": 1795306600}
