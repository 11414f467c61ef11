# Copyright: (c) 2026, Bulwark contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The module as Ansible calls it, on real files in a temporary directory."""

from __future__ import annotations

import fcntl
import grp
import json
import os
import pwd
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
from ansible.module_utils.testing import patch_module_args
from ansible_collections.bulwark.hardening.plugins.module_utils import config_set as core
from ansible_collections.bulwark.hardening.plugins.modules import config_set

ME = pwd.getpwuid(os.geteuid()).pw_name
MY_GROUP = grp.getgrgid(os.getegid()).gr_name
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root may give files away")


class Host:
    """A directory that plays the host, and the module run on it."""

    def __init__(self, root: Path, capsys: pytest.CaptureFixture) -> None:
        self.root = root / "host"
        self.root.mkdir(mode=0o755)
        self.state_dir = root / "state" / "config_set"
        self.capsys = capsys

    def path(self, name: str) -> str:
        """Return the full path of a file on the host."""
        return str(self.root / name)

    def file(self, name: str, content: object = "new\n", **more: object) -> dict:
        """Return an item of the option files."""
        item = {"path": self.path(name), "owner": ME, "group": MY_GROUP, **more}
        return item if more.get("state") == "absent" else {"content": content, **item}

    def run(self, *files: dict, name: str = "demo", check_mode: bool = False, **options: object) -> dict:
        """Run the module and return its result; it must not fail."""
        result = self.attempt(*files, name=name, check_mode=check_mode, **options)
        assert not result.get("failed"), result
        return result

    def refuse(self, *files: dict, **options: object) -> str:
        """Run the module, which must fail with everything as before; return the message."""
        before = self.everything()
        results = [self.attempt(*files, check_mode=check_mode, **options) for check_mode in (True, False)]
        assert all(result.get("failed") for result in results), results
        assert self.everything() == before
        assert not any(result["changed"] for result in results)
        return results[1]["msg"]

    def attempt(self, *files: dict, name: str = "demo", check_mode: bool = False, **options: object) -> dict:
        """Run the module and return its result."""
        arguments = {
            "name": name,
            "files": list(files),
            "state_dir": str(self.state_dir),
            "_ansible_check_mode": check_mode,
            "_ansible_diff": True,
            **options,
        }
        numbers = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)
        handlers = [signal.getsignal(number) for number in numbers]
        self.capsys.readouterr()
        try:
            with patch_module_args(arguments), pytest.raises(SystemExit):
                config_set.main()
        finally:
            for number, handler in zip(numbers, handlers, strict=True):
                signal.signal(number, handler)
        self.printed = self.capsys.readouterr().out
        return json.loads(self.printed)

    def everything(self) -> dict:
        """Return all files and directories with content, mode, owner, and time, state directory included."""
        found = {}
        for top in (self.root, self.state_dir):
            for directory, directories, files in os.walk(top):
                for name in directories + files:
                    path = os.path.join(directory, name)
                    if name == ".lock":
                        continue
                    seen = os.lstat(path)
                    if stat.S_ISLNK(seen.st_mode):
                        body = os.readlink(path)
                    elif stat.S_ISREG(seen.st_mode):
                        body = Path(path).read_bytes()
                    else:
                        body = None
                    found[path] = (body, seen.st_mode, seen.st_uid, seen.st_gid, body and seen.st_mtime_ns)
        return found

    def host(self) -> dict:
        """Return everything() without the state directory."""
        return {path: found for path, found in self.everything().items() if path.startswith(str(self.root))}

    def record(self, name: str = "demo") -> dict:
        """Return the record of a set."""
        return json.loads((self.state_dir / f"{name}.json").read_text())


@pytest.fixture
def host(tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> Host:
    monkeypatch.setattr(config_set.AnsibleModule, "log", lambda self, msg, log_args=None: None)
    return Host(tmp_path, capsys)


def read(path: str) -> str:
    return Path(path).read_text()


# --- present ----------------------------------------------------------------------------------------------------------


def test_writes_files_with_content_and_mode_and_says_which(host):
    result = host.run(host.file("a", "alpha\n", mode="0640"), host.file("b", "beta\n"))
    assert result["changed"] and not result["recovered"]
    assert result["files"] == [host.path("a"), host.path("b")] and result["removed"] == []
    assert read(host.path("a")) == "alpha\n" and read(host.path("b")) == "beta\n"
    assert stat.S_IMODE(os.stat(host.path("a")).st_mode) == 0o640
    assert stat.S_IMODE(os.stat(host.path("b")).st_mode) == 0o644
    assert "skipped" not in result


def test_second_run_changes_nothing_not_even_times(host):
    files = [host.file("a"), host.file("d/b")]
    host.run(*files)
    before = host.everything()
    result = host.run(*files, activate=["false"], validate=["false"], check=["false"])
    assert not result["changed"] and result["files"] == [] and result["diff"] == []
    assert host.everything() == before


def test_umask_does_not_matter(host):
    old = os.umask(0o077)
    try:
        host.run(host.file("d/e/a"))
    finally:
        os.umask(old)
    assert stat.S_IMODE(os.stat(host.path("d/e/a")).st_mode) == 0o644
    assert stat.S_IMODE(os.stat(host.path("d/e")).st_mode) == 0o755


@pytest.mark.parametrize("content", ["", "no newline", "ümläut ☂\n", "crlf\r\n", " trailing \n\n", "x" * 300_000])
def test_content_is_taken_to_the_letter(host, content):
    host.run(host.file("a", content))
    assert Path(host.path("a")).read_bytes() == content.encode()
    assert not host.run(host.file("a", content))["changed"]


@needs_root
def test_owner_and_group_by_name_and_number(host):
    host.run(host.file("a", owner="nobody", group="nogroup"), host.file("b", owner="12345", group="54321"))
    seen = os.stat(host.path("a"))
    assert (seen.st_uid, seen.st_gid) == (pwd.getpwnam("nobody").pw_uid, grp.getgrnam("nogroup").gr_gid)
    assert (os.stat(host.path("b")).st_uid, os.stat(host.path("b")).st_gid) == (12345, 54321)
    host.run(host.file("a"), host.file("b"))
    assert os.stat(host.path("a")).st_uid == 0


def test_wanted_absence_removes_and_gives_back(host):
    Path(host.path("old")).write_text("precious\n")
    before = host.host()
    result = host.run(host.file("old", state="absent"), host.file("never", state="absent"))
    assert result["files"] == result["removed"] == [host.path("old")]
    assert not os.path.lexists(host.path("old"))
    assert not host.run(host.file("old", state="absent"), host.file("never", state="absent"))["changed"]
    host.run(state="absent")
    assert host.host() == before


def test_file_that_already_is_right_becomes_owned_without_a_change(host):
    Path(host.path("a")).write_text("new\n")
    os.chmod(host.path("a"), 0o644)
    before = host.host()
    assert not host.run(host.file("a"), activate=["false"])["changed"]
    assert host.host() == before and list(host.record()["files"]) == [host.path("a")]
    assert "already belongs to the set 'demo'" in host.refuse(host.file("a"), name="other")


def test_symbolic_link_is_replaced_not_followed(host):
    Path(host.path("target")).write_text("untouched\n")
    os.symlink("target", host.path("a"))
    host.run(host.file("a"))
    assert not os.path.islink(host.path("a")) and read(host.path("target")) == "untouched\n"
    host.run(state="absent")
    assert os.readlink(host.path("a")) == "target"


def test_dangling_link_is_restored(host):
    os.symlink("/nowhere/at/all", host.path("a"))
    host.run(host.file("a"))
    host.run(state="absent")
    assert os.readlink(host.path("a")) == "/nowhere/at/all"


# --- drift ------------------------------------------------------------------------------------------------------------


def drift_content(path):
    Path(path).write_text("by hand\n")


def drift_mode(path):
    os.chmod(path, 0o666)


def drift_removed(path):
    os.unlink(path)


def drift_link(path):
    os.unlink(path)
    os.symlink("/etc/passwd", path)


def drift_owner(path):
    os.chown(path, 65534, 65534)


def drift_acl(path):
    """Let uid 65534 read: version 2, then (tag, permissions, id) for owner, user 65534, group, mask, others."""
    acl = b"\x02\0\0\0"
    for tag, allowed, who in [(1, 6, -1), (2, 4, 65534), (4, 4, -1), (0x10, 4, -1), (0x20, 4, -1)]:
        acl += tag.to_bytes(2, "little") + allowed.to_bytes(2, "little") + (who & 0xFFFFFFFF).to_bytes(4, "little")
    try:
        os.setxattr(path, core.ACL, acl)
    except OSError as exc:
        pytest.skip(f"this file system has no access control lists: {exc}")


@pytest.mark.parametrize(
    "drift",
    [
        drift_content,
        drift_mode,
        drift_removed,
        drift_link,
        drift_acl,
        pytest.param(drift_owner, marks=needs_root),
    ],
)
def test_drift_is_put_right_and_reported(host, drift):
    host.run(host.file("a"))
    right = {path: found[:4] for path, found in host.host().items()}
    drift(host.path("a"))
    predicted = host.run(host.file("a"), check_mode=True)
    result = host.run(host.file("a"))
    assert result["changed"] and result["files"] == [host.path("a")] and result["diff"]
    assert predicted["diff"] == result["diff"] and predicted["changed"]
    assert {path: found[:4] for path, found in host.host().items()} == right
    assert core.ACL not in os.listxattr(host.path("a"))
    assert not host.run(host.file("a"))["changed"]


@pytest.mark.parametrize("drift", [drift_content, drift_mode, drift_removed, drift_link])
def test_drift_does_not_spoil_the_way_back(host, drift):
    Path(host.path("a")).write_text("original\n")
    before = host.host()
    host.run(host.file("a"))
    drift(host.path("a"))
    host.run(state="absent")
    assert host.host() == before


def test_original_is_the_first_one_for_ever(host):
    Path(host.path("a")).write_text("original\n")
    os.chmod(host.path("a"), 0o600)
    before = host.host()
    host.run(host.file("a", "one\n"))
    host.run(host.file("a", "two\n"))
    drift_content(host.path("a"))
    host.run(host.file("a", "three\n"))
    host.run(host.file("a", state="absent"))
    host.run(host.file("a", "four\n"))
    host.run(state="absent")
    assert host.host() == before


# --- leaving ----------------------------------------------------------------------------------------------------------


def test_file_no_longer_listed_goes_back_to_what_it_was(host):
    Path(host.path("was")).write_text("original\n")
    os.chmod(host.path("was"), 0o600)
    before = host.host()
    host.run(host.file("was"), host.file("new"), host.file("stays"))
    result = host.run(host.file("stays"))
    assert result["files"] == [host.path("new"), host.path("was")] and result["removed"] == [host.path("new")]
    assert host.host()[host.path("was")] == before[host.path("was")]
    assert not os.path.exists(host.path("new"))
    assert list(host.record()["files"]) == [host.path("stays")]


def test_absent_restores_precisely(host):
    for name, mode in (("a", 0o600), ("b", 0o444), ("c", 0o4755)):
        Path(host.path(name)).write_bytes(b"binary \0\xff " + name.encode())
        os.chmod(host.path(name), mode)
    os.symlink("b", host.path("link"))
    os.setxattr(host.path("a"), "user.note", b"keep me")
    before = host.host()
    names = ("a", "b", "c", "link", "fresh", "deep/er/fresh")
    files = [host.file(name) for name in names]
    host.run(*files)
    predicted = host.run(state="absent", check_mode=True)
    result = host.run(state="absent")
    assert host.host() == before
    assert os.getxattr(host.path("a"), "user.note") == b"keep me"
    assert result["removed"] == [host.path("deep/er/fresh"), host.path("fresh")]
    assert result["files"] == sorted(host.path(name) for name in names)
    assert predicted["diff"] == result["diff"] and predicted["files"] == result["files"]
    assert not (host.state_dir / "demo.json").exists()
    assert not host.run(state="absent")["changed"]


@needs_root
def test_absent_restores_owner(host):
    Path(host.path("a")).write_text("x")
    os.chown(host.path("a"), 1234, 4321)
    host.run(host.file("a"))
    host.run(state="absent")
    assert (os.stat(host.path("a")).st_uid, os.stat(host.path("a")).st_gid) == (1234, 4321)


def test_absent_of_an_unknown_set_does_nothing_at_all(host):
    assert not host.run(state="absent", activate=["false"])["changed"]
    assert not host.state_dir.exists()


def test_absent_runs_check_and_activate_but_not_validate(host):
    host.run(host.file("a"))
    host.run(state="absent", validate=["false"], check=["true"], activate=[f"touch {host.path('activated')}"])
    assert os.path.exists(host.path("activated"))


def test_absent_ignores_files_even_wrong_ones(host):
    host.run(host.file("a"))
    host.run(host.file("a", owner="gone-with-its-package"), state="absent")
    assert not os.path.exists(host.path("a"))


def test_made_directories_go_only_when_empty(host):
    host.run(host.file("d/e/a"), host.file("f/b"))
    Path(host.path("f/foreign")).write_text("not ours")
    result = host.run(state="absent")
    assert result["changed"] and not os.path.exists(host.path("d"))
    assert os.listdir(host.path("f")) == ["foreign"]


def test_directory_that_was_there_stays(host):
    os.mkdir(host.path("d"))
    host.run(host.file("d/a"))
    host.run(state="absent")
    assert os.listdir(host.path("d")) == []


def test_made_directory_goes_when_its_last_file_leaves_the_set(host):
    host.run(host.file("d/a"), host.file("b"))
    host.run(host.file("b"))
    assert not os.path.exists(host.path("d")) and host.record()["directories"] == []


def test_shared_directory_goes_with_the_last_set(host):
    host.run(host.file("d/a"), name="one")
    host.run(host.file("d/b"), name="two")
    host.run(state="absent", name="one")
    assert os.listdir(host.path("d")) == ["b"]
    host.run(state="absent", name="two")
    assert not os.path.exists(host.path("d"))


def test_parent_removed_by_hand_is_made_again_for_the_original(host):
    os.mkdir(host.path("d"))
    Path(host.path("d/a")).write_text("original\n")
    host.run(host.file("d/a"))
    os.unlink(host.path("d/a"))
    os.rmdir(host.path("d"))
    host.run(state="absent")
    assert read(host.path("d/a")) == "original\n"


# --- check mode and diff ----------------------------------------------------------------------------------------------


def test_check_mode_touches_nothing_and_predicts_everything(host):
    Path(host.path("same")).write_text("new\n")
    os.chmod(host.path("same"), 0o644)
    Path(host.path("mode")).write_text("new\n")
    os.chmod(host.path("mode"), 0o600)
    Path(host.path("content")).write_text("old\n")
    os.chmod(host.path("content"), 0o644)
    Path(host.path("gone")).write_text("old\n")
    os.symlink("same", host.path("link"))
    names = ("same", "mode", "content", "link", "d/fresh")
    files = [*(host.file(name) for name in names), host.file("gone", state="absent")]
    before = host.everything()
    predicted = host.run(*files, check_mode=True, check=["false"], activate=["false"], validate=["true"])
    assert host.everything() == before and not host.state_dir.exists()
    result = host.run(*files, validate=["true"])
    for key in ("changed", "files", "removed", "recovered", "diff"):
        assert predicted[key] == result[key], key
    assert result["files"] == sorted(host.path(name) for name in ("mode", "content", "link", "d/fresh", "gone"))
    again = host.run(*files, check_mode=True)
    assert not again["changed"]


def test_diff_shows_content_and_attributes(host):
    Path(host.path("content")).write_text("old\n")
    os.chmod(host.path("content"), 0o644)
    Path(host.path("mode")).write_text("new\n")
    os.chmod(host.path("mode"), 0o600)
    diff = host.run(host.file("content"), host.file("mode"), host.file("empty", ""), host.file("d/x"))["diff"]
    by_header = {item["before_header"]: (item["before"], item["after"]) for item in diff}
    about = f"state: file\nowner: {ME}\ngroup: {MY_GROUP}\nmode: "
    assert by_header[host.path("content")] == ("old\n", "new\n")
    assert host.path("content") + " (attributes)" not in by_header
    assert by_header[host.path("mode") + " (attributes)"] == (about + "0600\n", about + "0644\n")
    assert host.path("mode") not in by_header
    assert by_header[host.path("empty") + " (attributes)"] == ("state: absent\n", about + "0644\n")
    assert by_header[host.path("d") + " (attributes)"][0] == "state: absent\n"
    assert by_header[host.path("d/x")] == ("", "new\n")


def test_diff_of_what_is_no_text_names_size_and_digest(host):
    Path(host.path("a")).write_bytes(b"\0\1\2")
    (item, *_rest) = host.run(host.file("a"))["diff"]
    assert item["before"].startswith("(3 bytes, sha256 ae4b3280") and item["after"] == "new\n"


def test_check_mode_takes_unknown_accounts_for_ones_to_come(host):
    result = host.run(host.file("a", owner="not-yet", group="not-yet"), check_mode=True, validate=["true"])
    assert result["changed"] and any("'not-yet' does not exist" in str(warning) for warning in result["warnings"])
    assert "owner = 'not-yet': does not exist" in host.attempt(host.file("a", owner="not-yet"))["msg"]


def test_check_mode_passes_over_missing_validators_only(host):
    result = host.run(host.file("a"), check_mode=True, validate=["not-installed -t", "true"])
    assert result["changed"] and any("not-installed is not installed" in str(warning) for warning in result["warnings"])
    assert "not-installed is not installed" in host.attempt(host.file("a"), validate=["not-installed -t"])["msg"]
    assert not os.path.exists(host.path("a"))


def test_check_mode_runs_installed_validators(host):
    result = host.attempt(host.file("a"), check_mode=True, validate=["grep -q good %(root)s" + host.path("a")])
    assert result["failed"] and "grep" in result["msg"]


# --- validate, check, activate ----------------------------------------------------------------------------------------


def test_validators_see_all_new_files_with_owner_and_mode_and_nothing_swapped(host):
    Path(host.path("a")).write_text("old\n")
    script = host.root / "look"
    script.write_text(
        f"#!/bin/sh -e\ngrep -qx new $1{host.path('a')}\ngrep -qx unchanged $1{host.path('d/b')}\n"
        f"test $(stat -c %a $1{host.path('a')}) = 600\ngrep -qx old {host.path('a')}\n"
        f"test ! -e $1{host.path('gone')}\ntest $(stat -c %a $1) = 700\n"
    )
    script.chmod(0o755)
    files = [host.file("d/b", "unchanged\n"), host.file("gone", state="absent")]
    host.run(*files)
    host.run(host.file("a", mode="0600"), *files, validate=[f"{script} %(root)s"])
    assert read(host.path("a")) == "new\n"
    assert not (host.state_dir / "demo.staging").exists()


def test_validator_failure_changes_nothing_and_names_set_command_file_and_output(host):
    Path(host.path("a")).write_text("old\n")
    command = f"grep -n -v new %(root)s{host.path('a')} %(root)s/missing"
    message = host.refuse(host.file("a"), host.file("d/b"), validate=[command])
    assert "set demo" in message and command in message and host.path("a") in message and host.path("d/b") in message
    assert "exit status 2" in message and "/missing: No such file" in message and "staging" not in message
    assert read(host.path("a")) == "old\n" and not os.path.exists(host.path("d"))


def test_commands_are_not_run_by_a_shell(host):
    touched = host.path("touched")
    result = host.attempt(host.file("a"), validate=[f"true; touch {touched}"])
    assert result["failed"] and "true; is not installed" in result["msg"]
    host.run(host.file("a"), check=[f"echo $(touch {touched}) > {touched} && touch {touched}"])
    assert not os.path.exists(touched)


def test_words_are_split_before_the_root_is_filled_in(host, tmp_path):
    host.state_dir = tmp_path / "state dir; with an odd' name"
    host.run(host.file("a"), validate=["test -d %(root)s", f"grep -q new %(root)s{host.path('a')}"])


def test_check_failure_puts_everything_back(host):
    Path(host.path("a")).write_text("old\n")
    os.chmod(host.path("a"), 0o600)
    Path(host.path("gone")).write_text("old\n")
    os.symlink("a", host.path("link"))
    before = host.host()
    files = [host.file("a"), host.file("link"), host.file("d/e/new"), host.file("gone", state="absent")]
    result = host.attempt(*files, check=["true", "grep -q old " + host.path("a")])
    assert result["failed"] and result["rolled_back"] and not result["changed"] and result["files"] == []
    assert host.host() == before and not (host.state_dir / "demo.json").exists()
    assert "every file has been put back" in result["msg"] and "grep -q old" in result["msg"]
    assert result["command"] == "grep -q old " + host.path("a")


def test_check_failure_goes_back_to_the_last_good_set(host):
    host.run(host.file("a", "good\n"), host.file("d/b", "good\n"))
    before = host.everything()
    result = host.attempt(host.file("a", "bad\n"), host.file("c"), check=["false"])
    assert result["failed"]
    assert host.host() == {path: found for path, found in before.items() if path.startswith(str(host.root))}
    assert set(host.record()["files"]) == {host.path("a"), host.path("d/b")}


def test_activation_runs_once_after_a_change_only_and_sees_it(host):
    log = host.path("log")
    activate = [f"sh -c 'cat {host.path('a')} >> {log}'"]
    host.run(host.file("a", "one\n"), activate=activate)
    host.run(host.file("a", "one\n"), activate=activate)
    host.run(host.file("a", "two\n"), activate=activate)
    assert read(log) == "one\ntwo\n"


def test_activation_failure_puts_back_and_activates_again(host):
    log = host.path("log")
    activate = [f"sh -c 'cat {host.path('a')} >> {log}; ! grep -q bad {host.path('a')}'"]
    host.run(host.file("a", "good\n"), activate=activate)
    result = host.attempt(host.file("a", "bad\n"), activate=activate)
    assert result["failed"] and result["rolled_back"] and read(host.path("a")) == "good\n"
    assert read(log) == "good\nbad\ngood\n"
    assert not host.run(host.file("a", "good\n"), activate=activate)["changed"]


def test_activation_that_fails_even_after_putting_back_is_owed(host):
    host.run(host.file("a", "good\n"))
    result = host.attempt(host.file("a", "bad\n"), activate=["false"])
    assert "activating what was put back failed too" in result["msg"] and result["rolled_back"]
    assert host.run(host.file("a", "good\n"), check_mode=True)["changed"]
    assert host.attempt(host.file("a", "good\n"))["failed"], "still owed, and still fails"
    log = host.path("log")
    result = host.run(host.file("a", "good\n"), activate=[f"touch {log}"])
    assert result["changed"] and result["files"] == [] and os.path.exists(log)
    assert not host.run(host.file("a", "good\n"))["changed"]


def test_missing_program_is_noticed_before_the_swap(host):
    for option in ("check", "activate"):
        result = host.attempt(host.file("a"), **{option: ["not-installed"]})
        assert "not-installed is not installed" in result["msg"] and "no file was changed" in result["msg"]
        assert "rolled_back" not in result and not os.path.exists(host.path("a"))


def test_program_may_come_with_the_set(host):
    host.run(host.file("tool", "#!/bin/sh\nexit 0\n", mode="0755"), activate=[host.path("tool")])


@pytest.mark.parametrize("option", ["validate", "check"])
def test_time_limit_ends_the_command_and_its_children(host, option):
    pid = host.path("pid")
    command = f"sh -c 'sleep 60 & echo $! > {pid}; wait'"
    started = time.monotonic()
    result = host.attempt(host.file("a"), timeout=1, **{option: [command]})
    assert "took longer than 1 seconds" in result["msg"] and time.monotonic() - started < 5
    assert not os.path.exists(host.path("a"))
    state = Path(f"/proc/{read(pid).strip()}/stat")

    def gone() -> bool:  # or dead and not yet collected
        try:
            return state.read_text().split()[2] == "Z"
        except OSError:
            return True

    while not gone() and time.monotonic() - started < 5:  # it was told; on a busy machine it takes a moment to die
        time.sleep(0.05)
    assert gone()


def test_daemon_left_running_does_not_hold_up(host):
    started = time.monotonic()
    host.run(host.file("a"), activate=["sh -c 'sleep 3 & exit 0'"])
    assert time.monotonic() - started < 2


def test_failing_write_rolls_back(host, monkeypatch):
    Path(host.path("a")).write_text("old\n")
    before = host.host()
    rename = os.rename

    def full(source, target):
        if target == host.path("b"):
            raise OSError(28, "No space left on device")
        rename(source, target)

    monkeypatch.setattr(os, "rename", full)
    result = host.attempt(host.file("a"), host.file("b"))
    assert f"{host.path('b')}: No space left on device" in result["msg"] and result["rolled_back"]
    assert host.host() == before


def test_failing_rollback_says_so_and_the_next_run_heals(host, monkeypatch):
    for name in ("a", "b", "c"):
        Path(host.path(name)).write_text("old\n")
    put = core.put

    def stuck(path, entry, label=None):
        if path == host.path("b") and label is None:
            raise OSError(5, "Input/output error")
        put(path, entry, label)

    monkeypatch.setattr(core, "put", stuck)
    files = [host.file(name) for name in ("a", "b", "c")]
    result = host.attempt(*files, check=["false"])
    assert "putting the files back failed" in result["msg"] and result["rolled_back"] is False and result["changed"]
    assert read(host.path("a")) == read(host.path("c")) == "old\n", "the others are put back all the same"
    monkeypatch.undo()
    predicted = host.run(check_mode=True, state="absent")
    result = host.run(state="absent")
    assert result["recovered"] and predicted["recovered"] and predicted["files"] == result["files"] == [host.path("b")]
    assert [read(host.path(name)) for name in ("a", "b", "c")] == ["old\n"] * 3


def test_everything_is_on_the_disk_before_it_counts(host, monkeypatch):
    """A power cut is a kill that also forgets what was not flushed: content before its name, name before the next."""
    calls, names = [], {}
    real = {name: getattr(os, name) for name in ("open", "fsync", "rename")}

    def opened(path, *arguments, **options):
        fd = real["open"](path, *arguments, **options)
        names[fd] = path
        return fd

    def synced(fd):
        calls.append(("fsync", names[fd]))
        real["fsync"](fd)

    def renamed(source, target):
        calls.append(("rename", source, target))
        real["rename"](source, target)

    for name, function in (("open", opened), ("fsync", synced), ("rename", renamed)):
        monkeypatch.setattr(os, name, function)
    host.run(host.file("a"), host.file("d/b"))
    renames = [index for index, call in enumerate(calls) if call[0] == "rename"]
    for index in renames:
        _call, source, target = calls[index]
        assert calls[index - 1] == ("fsync", source) and calls[index + 1] == ("fsync", os.path.dirname(target))
    record = str(host.state_dir / "demo.json")
    assert [calls[index][2] for index in renames] == [record, host.path("a"), host.path("d/b"), record]


# --- secrets ----------------------------------------------------------------------------------------------------------


def test_secret_stays_out_of_everything_printed(host):
    first, second, original = 'hunter2\nline "two"\n', "correct\thorse\n", "staple\n"
    Path(host.path("key")).write_text(original)
    outputs = []
    for content, options in (
        (first, {"check_mode": True}),
        (first, {}),
        (first, {}),
        (second, {}),
        ("third\n", {"check": [f"sh -c 'cat {host.path('key')}; exit 1'"]}),
        (second, {"files_typo": 1}),
    ):
        host.attempt(host.file("key", content, secret=True), host.file("open", "visible\n"), **options)
        outputs.append(host.printed)
    host.attempt(host.file("key", second, secret=True, unknown="x"))
    outputs.append(host.printed)
    host.attempt(host.file("open", "visible\n"), check_mode=True)
    outputs.append(host.printed)
    host.attempt(state="absent")
    outputs.append(host.printed)
    for word in ("hunter2", "two", "horse", "staple", "third"):
        assert not any(word in output for output in outputs), word
    assert "visible" in outputs[0] and "output withheld" in outputs[4]
    assert json.loads(outputs[1])["diff"][0]["after"].startswith("(secret")
    assert json.loads(outputs[1])["changed"] and json.loads(outputs[3])["diff"]


def test_options_are_not_logged(host, monkeypatch):
    logged = []
    monkeypatch.setattr(config_set.AnsibleModule, "log", lambda self, msg, log_args=None: logged.append((msg, log_args)))
    host.attempt(host.file("key", "hunter2\nmore\n", secret=True))
    assert logged and "hunter2" not in str(logged)


def test_record_and_state_directory_are_closed(host):
    old = os.umask(0)
    try:
        host.run(host.file("key", "hunter2\n", secret=True))
    finally:
        os.umask(old)
    assert stat.S_IMODE(host.state_dir.stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in host.state_dir.iterdir()} == {0o600}
    host.state_dir.chmod(0o750)
    host.run(host.file("key", "hunter2\n", secret=True))
    assert stat.S_IMODE(host.state_dir.stat().st_mode) == 0o700


# --- two at a time ----------------------------------------------------------------------------------------------------


def test_lock_is_waited_for_and_given_up_on(host):
    host.run(host.file("a"))
    with open(host.state_dir / ".lock", "r+") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for check_mode in (False, True):
            result = host.attempt(host.file("a", "x\n"), lock_timeout=0, check_mode=check_mode)
            assert result["failed"] and "another run holds" in result["msg"]
    host.run(host.file("a", "x\n"), lock_timeout=0)


def test_concurrent_runs_follow_each_other(host, tmp_path):
    """Several processes at once, each with its own content for the same two files: never a mixture."""
    program = (
        "import sys, json\n"
        "from ansible.module_utils.testing import patch_module_args\n"
        "from ansible_collections.bulwark.hardening.plugins.modules import config_set\n"
        "with patch_module_args(json.load(sys.stdin)):\n    config_set.main()\n"
    )
    same = f"cmp {host.path('a')} {host.path('b')}"
    runs = []
    for number in range(3):
        files = [host.file("a", f"{number}\n"), host.file("b", f"{number}\n")]
        arguments = {"name": "demo", "files": files, "state_dir": str(host.state_dir), "check": [same]}
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        process = subprocess.Popen(
            [sys.executable, "-c", program],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        process.stdin.write(json.dumps(arguments))
        process.stdin.close()
        runs.append(process)
    results = [json.loads(process.stdout.read()) for process in runs]
    for process in runs:
        process.wait()
    assert all(result["changed"] and not result.get("failed") and not result["recovered"] for result in results), results
    assert read(host.path("a")) == read(host.path("b"))


# --- an earlier run that was ended ------------------------------------------------------------------------------------


def test_asked_to_end_it_goes_back_at_once(host):
    Path(host.path("a")).write_text("old\n")
    before = host.host()
    result = host.attempt(host.file("a"), check=[f"kill -TERM {os.getpid()}", "sleep 5"])
    assert result["failed"] and "signal 15" in result["msg"] and result["rolled_back"]
    assert host.host() == before


def test_commands_on_the_way_back_can_be_ended_by_signals(host):
    first = host.path("first")
    command = f"sh -c 'test -e {first} || {{ touch {first}; exit 1; }}; kill -TERM $$; sleep 1; exit 0'"
    result = host.attempt(host.file("a"), activate=[command])
    assert "put back failed too" in result["msg"] and "was ended by signal 15" in result["msg"]


def killed_run(host, *files, **options):
    """Leave what a run leaves that is killed while it activates."""
    once = host.state_dir.parent.parent / "killed"
    if (child := os.fork()) == 0:
        activate = f"sh -c 'test -e {once} || {{ touch {once}; kill -9 {os.getpid()}; }}'"
        host.attempt(*files, activate=[activate], **options)
        os._exit(0)
    _pid, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL


def test_recovery_goes_back_then_forward_and_check_mode_foretells_it(host):
    Path(host.path("a")).write_text("old\n")
    before = host.host()
    killed_run(host, host.file("a", "killed\n"), host.file("d/b"))
    assert read(host.path("a")) == "killed\n"
    half_way = host.everything()
    files = [host.file("a", "next\n")]
    predicted = host.run(*files, check_mode=True)
    assert host.everything() == half_way
    log = host.path("log")
    result = host.run(*files, activate=[f"cp {host.path('a')} {log}"])
    for key in ("changed", "files", "removed", "recovered", "diff"):
        assert predicted[key] == result[key], key
    assert result["recovered"] and result["removed"] == [host.path("d/b")] and read(host.path("a")) == "next\n"
    assert read(log) == "next\n" and not os.path.exists(host.path("d"))
    os.unlink(log)
    host.run(state="absent")
    assert host.host() == before


def test_recovery_alone_is_a_change(host):
    Path(host.path("a")).write_text("old\n")
    killed_run(host, host.file("a", "killed\n"))
    predicted = host.run(check_mode=True, state="absent")
    result = host.run(state="absent")
    assert result["recovered"] and result["changed"] and result["files"] == [host.path("a")] == predicted["files"]
    assert predicted["changed"] and predicted["recovered"] and read(host.path("a")) == "old\n"


def test_any_set_recovers_all(host):
    Path(host.path("a")).write_text("old\n")
    killed_run(host, host.file("a", "killed\n"))
    result = host.run(host.file("b"), name="other")
    assert result["recovered"] and result["files"] == [host.path("b")] and read(host.path("a")) == "old\n"
    assert any("set demo was killed" in str(warning) for warning in result["warnings"])


def test_recovery_keeps_secrets(host):
    Path(host.path("a")).write_text("hunter2\n")
    killed_run(host, host.file("a", "horse\n", secret=True))
    host.run(state="absent")
    assert "hunter2" not in host.printed and "horse" not in host.printed


# --- refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "why"),
    [
        ("etc/x", "must be absolute"),
        ("", "must be an absolute path"),
        ("/", "must not contain"),
        ("/etc/../etc/x", "must not contain '.', '..'"),
        ("/etc/./x", "must not contain '.', '..'"),
        ("/etc//x", "empty components"),
        ("/etc/x/", "nor end in '/'"),
        ("//etc/x", "empty components"),
        ("/etc/x\n", "control characters"),
        ("/etc/\x1b[2Jx", "control characters"),
        ("/etc/x\0y", "control characters"),
        ("/etc/" + "x" * 256, "is too long"),
        ("/etc" + "/x" * 2000, "is too long"),
        ("/proc/sys/kernel/x", "/proc holds no files"),
        ("/sys/x", "/sys holds no files"),
        ("/dev/x", "/dev holds no files"),
        ("/etc/.bulwark-x.tmp", "kept for temporary files"),
        ("~/x", "must be absolute"),
        ("$HOME/x", "must be absolute"),
    ],
)
def test_refuses_path(host, path, why):
    assert why in host.refuse({"path": path, "content": "x"})


@pytest.mark.parametrize(
    "mode",
    ["", "rw-r--r--", "u=rw", "0888", "64", "00644", "4755", "04755", "1777", "0666", "0777", "-644", "0o644", 644, 420],
)
def test_refuses_mode(host, mode):
    assert "mode = " in host.refuse(host.file("a", mode=mode))


@pytest.mark.parametrize("content", [5, 1.5, True, ["a"], {"a": 1}])
def test_refuses_content_that_is_no_text(host, content):
    assert "content must be text" in host.refuse(host.file("a", content))


def test_refuses_other_content(host):
    assert "NUL" in host.refuse(host.file("a", "x\0y"))
    assert "content is missing" in host.refuse(host.file("a", None))
    assert "content makes no sense" in host.refuse({**host.file("a", state="absent"), "content": "x"})
    assert "more than" in host.refuse(host.file("a", "x" * (core.LARGEST + 1)))


@pytest.mark.parametrize("name", ["", "A", "a b", "../x", "a/b", "a.b", "ä", "a\n", "x" * 65, "$(id)"])
def test_refuses_name(host, name):
    assert "name = " in host.refuse(host.file("a"), name=name)


@pytest.mark.parametrize("kind", ["owner", "group"])
@pytest.mark.parametrize("who", ["no-such-account", "-1", "4294967295", "²", ""])
def test_refuses_unknown_account(host, kind, who):
    result = host.attempt(host.file("a", **{kind: who}))
    assert result["failed"] and f"{kind} = {who!r}: does not exist" in result["msg"]
    assert host.everything() == {}


@pytest.mark.parametrize("option", ["validate", "check", "activate"])
@pytest.mark.parametrize("command", ["", "  ", "echo 'open", "./relative", "bin/relative", "true\0"])
def test_refuses_command(host, option, command):
    assert f"{option} = " in host.refuse(host.file("a"), **{option: [command]})


@pytest.mark.parametrize("options", [{"timeout": 0}, {"timeout": 3601}, {"lock_timeout": -1}, {"lock_timeout": 9999}])
def test_refuses_times(host, options):
    assert "seconds" in host.refuse(host.file("a"), **options)


def test_refuses_directory_and_other_things(host):
    os.mkdir(host.path("d"))
    os.mkfifo(host.path("fifo"))
    Path(host.path("file")).write_text("x")
    assert "is a directory" in host.refuse(host.file("d"))
    assert "is a directory" in host.refuse(host.file("d", state="absent"))
    assert "neither a file nor a symbolic link" in host.refuse(host.file("fifo"))
    assert f"{host.path('file')} is not a directory" in host.refuse(host.file("file/below"))
    with open(host.path("huge"), "wb") as stream:
        stream.truncate(core.LARGEST + 1)
    assert "too large" in host.refuse(host.file("huge", state="absent"))


def test_refuses_owned_path_that_became_a_directory(host):
    host.run(host.file("a"))
    os.unlink(host.path("a"))
    os.mkdir(host.path("a"))
    assert "is a directory" in host.refuse(host.file("a"))
    assert "is a directory" in host.refuse(state="absent")


def test_refuses_paths_that_meet(host):
    os.mkdir(host.path("d"))
    os.symlink("d", host.path("alias"))
    assert "is listed twice" in host.refuse(host.file("a"), host.file("a", "other\n"))
    assert "is listed twice" in host.refuse(host.file("d/a"), host.file("alias/a"))
    assert "lies below" in host.refuse(host.file("a"), host.file("a/b"))
    host.run(host.file("d/a"), name="other")
    assert "already belongs to the set 'other'" in host.refuse(host.file("d/a"))
    assert "already belongs to the set 'other'" in host.refuse(host.file("alias/a"))
    assert "already belongs to the set 'other'" in host.refuse(host.file("d/a", state="absent"))


def test_path_is_free_again_once_the_other_set_let_go(host):
    host.run(host.file("a", "one\n"), name="one")
    host.run(name="one")
    host.run(host.file("a", "two\n"), name="two")
    assert read(host.path("a")) == "two\n"


def test_refuses_state_directory(host):
    state = str(host.state_dir)
    base = {"owner": ME, "group": MY_GROUP, "content": "x"}
    for path in (f"{state}/demo.json", f"{state}/x/y", state, os.path.dirname(state)):
        assert "state directory" in host.refuse({"path": path, **base})
    os.symlink(os.path.dirname(state), host.path("alias"))
    os.mkdir(os.path.dirname(state))
    assert "state directory" in host.refuse({"path": host.path("alias/config_set/x"), **base})
    for wrong in ("relative", "/proc/x"):
        assert "state_dir" in host.refuse(host.file("a"), state_dir=wrong)
    Path(host.path("file")).write_text("x")
    assert "is not a directory" in host.refuse(host.file("a"), state_dir=host.path("file"))
    os.mkdir(host.path("open"))
    os.chmod(host.path("open"), 0o777)
    assert "is writable by others" in host.refuse(host.file("a"), state_dir=host.path("open"))


def test_refuses_parents_others_could_redirect(host):
    os.mkdir(host.path("d"))
    os.chmod(host.path("d"), 0o777)
    assert "is writable by others" in host.refuse(host.file("d/a"))
    assert "is writable by others" in host.refuse(host.file("d/e/a"))
    os.chmod(host.path("d"), 0o1777)
    assert "is writable by others" in host.refuse(host.file("d/a"))
    os.mkdir(host.path("d/mine"))
    host.run(host.file("d/mine/a"), name="sticky")
    os.chmod(host.path("d"), 0o777)
    os.symlink(host.path("d/mine"), host.path("by_link"))
    assert "is writable by others" in host.refuse(host.file("by_link/b"))


@needs_root
def test_refuses_parents_that_belong_to_others(host):
    os.mkdir(host.path("d"))
    os.chown(host.path("d"), 1234, 1234)
    assert "belongs to uid 1234" in host.refuse(host.file("d/a"))
    os.chown(host.path("d"), 0, 1234)
    os.chmod(host.path("d"), 0o775)
    assert "is writable by others" in host.refuse(host.file("d/a"))
    os.mkdir(host.path("tmp"))
    os.chmod(host.path("tmp"), 0o1777)
    os.symlink("/etc", host.path("tmp/trap"))
    os.lchown(host.path("tmp/trap"), 1234, 1234)
    assert "is writable by others" in host.refuse(host.file("tmp/trap/a"))


def test_refuses_going_back_through_a_parent_others_could_redirect(host):
    host.run(host.file("d/a"))
    os.chmod(host.path("d"), 0o777)
    assert "is writable by others" in host.refuse(state="absent")


def test_links_in_loops_are_refused(host):
    os.symlink("two", host.path("one"))
    os.symlink("one", host.path("two"))
    assert "too many levels" in host.refuse(host.file("one/a"))


def test_links_of_the_administrator_are_followed(host):
    os.mkdir(host.path("real"))
    os.symlink("real", host.path("alias"))
    os.symlink("../" + host.root.name + "/alias", host.path("twice"))
    result = host.run(host.file("twice/a"))
    assert result["files"] == [host.path("twice/a")] and read(host.path("real/a")) == "new\n"
    os.unlink(host.path("twice"))
    host.run(state="absent")
    assert os.listdir(host.path("real")) == []


def test_directory_that_became_a_link_keeps_its_files_owned(host):
    os.mkdir(host.path("d"))
    Path(host.path("d/a")).write_text("original\n")
    host.run(host.file("d/a"), host.file("d/e/b"))
    os.rename(host.path("d"), host.path("moved"))
    os.symlink("moved", host.path("d"))
    result = host.run(host.file("d/a"), host.file("d/e/b"))
    assert not result["changed"] and read(host.path("moved/a")) == "new\n"
    host.run(state="absent")
    assert read(host.path("moved/a")) == "original\n" and not os.path.exists(host.path("moved/e"))


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"schema": "other/1", "name": "demo"}', '{"name": "demo"}'])
def test_refuses_damaged_record(host, damage):
    host.run(host.file("a"))
    (host.state_dir / "demo.json").write_text(damage)
    assert "is damaged" in host.refuse(host.file("a", "x\n"))
    assert "is damaged" in host.refuse(host.file("b"), name="other")


def test_refuses_unknown_options(host):
    assert "nmae" in host.attempt(host.file("a"), nmae="x")["msg"]
    assert "contnt" in host.attempt(host.file("a", contnt="x"))["msg"]
    assert host.everything() == {}


# --- security contexts ------------------------------------------------------------------------------------------------


def test_security_context_is_kept_or_the_default_of_the_place(host, monkeypatch):
    Path(host.path("old")).write_text("old\n")
    given = {}
    monkeypatch.setattr(config_set.AnsibleModule, "selinux_enabled", lambda self: True)
    monkeypatch.setattr(config_set.AnsibleModule, "selinux_context", lambda self, path: ["kept", path])
    monkeypatch.setattr(config_set.AnsibleModule, "selinux_default_context", lambda self, path, mode=0: ["default", path])

    def label(self, path, context, changed, diff=None):
        given[context[1]] = (os.path.basename(path).startswith(core.TEMPORARY), context[0])
        return changed

    monkeypatch.setattr(config_set.AnsibleModule, "set_context_if_different", label)
    host.run(host.file("old"), host.file("d/new"))
    assert given[host.path("old")] == (True, "kept")
    assert given[host.path("d/new")] == (True, "default") and given[host.path("d")] == (False, "default")
