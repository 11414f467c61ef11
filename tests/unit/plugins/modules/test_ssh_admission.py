# Copyright: (c) 2026, Bulwark contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Would this connection be let in again? Without a host: processes, files and accounts are made up."""

from __future__ import annotations

import os
import pwd
import subprocess
from pathlib import Path

import pytest
from ansible_collections.bulwark.hardening.plugins.module_utils import way_in as entrance
from ansible_collections.bulwark.hardening.plugins.module_utils.posture.common import CannotObserve
from ansible_collections.bulwark.hardening.plugins.modules import ssh_admission as module

ME = pwd.getpwuid(os.getuid())
LOGIN = "Accepted publickey for {name} from 192.0.2.9 port 40001 ssh2: ED25519 SHA256:abc"


def process(title, uid=1000, **environment):
    return {"pid": 50, "uid": uid, "title": title, "environment": environment}


@pytest.fixture
def world(monkeypatch):
    """Make up the processes above and what sshd logged."""

    def make(above, log=""):
        monkeypatch.setattr(entrance, "ancestors", lambda: above)
        monkeypatch.setattr(entrance, "run", lambda argv, timeout=10: log)
        monkeypatch.setattr(entrance, "LOGS", "/nonexistent")

    return make


@pytest.mark.parametrize("title", ["sshd: deploy [priv]", "sshd-session: deploy@notty"])
def test_the_log_tells_where_environments_are_hidden(world, title):
    world([process("sudo -u root"), process(title, uid=0)], LOGIN.format(name="deploy"))
    way = module.way_in()
    assert (way["account"], way["address"], way["method"], way["fingerprint"]) == (
        "deploy",
        "192.0.2.9",
        "publickey",
        "SHA256:abc",
    )


def test_the_environment_tells_where_the_log_is_gone(world):
    world([process("sh", uid=ME.pw_uid, SSH_CONNECTION="192.0.2.9 40001 192.0.2.1 2222", LOGNAME=ME.pw_name)])
    way = module.way_in()
    assert (way["account"], way["address"], way["lport"], way["method"]) == (ME.pw_name, "192.0.2.9", "2222", "")


def test_somebody_elses_login_is_not_taken_for_ours(world):
    above = [
        process("sh", uid=ME.pw_uid, SSH_CONNECTION="192.0.2.9 7 192.0.2.1 22", LOGNAME=ME.pw_name),
        process("sshd: x@notty"),
    ]
    world(above, LOGIN.format(name="mallory"))
    assert module.way_in()["account"] == ME.pw_name


def test_neither_is_no_reason_to_go_on(world):
    world([process("sudo"), process("sshd: deploy@notty")])
    with pytest.raises(CannotObserve, match="SSH connection of deploy"):
        module.way_in()


def test_without_ssh_there_is_nothing_to_lose(world):
    world([process("podman exec"), process("conmon")])
    assert module.way_in() is None


def test_files_are_laid_out_beside_the_present_ones(tmp_path):
    parts = tmp_path / "parts"
    parts.mkdir()
    (parts / "50-site.conf").write_text("Match User a\n  X11Forwarding no\n")
    main = tmp_path / "sshd_config"
    main.write_text(f"Port 22\nInclude {parts}/*.conf\nUsePAM yes\n")
    place = tmp_path / "place"
    place.mkdir()
    staged = module.lay_out({f"{parts}/00-new.conf": "PermitRootLogin no\n"}, str(place), str(main))
    text = Path(staged).read_text()
    assert "Port 22" in text and "UsePAM yes" in text and str(parts) not in text
    assert [path.name for path in sorted((place / "1").iterdir())] == ["0000.conf", "0001.conf"]
    assert (place / "1" / "0000.conf").read_text() == "PermitRootLogin no\n"
    assert (parts / "50-site.conf").exists() and not (parts / "00-new.conf").exists()


def test_a_present_file_is_replaced_not_doubled(tmp_path):
    (tmp_path / "a.conf").write_text("PermitRootLogin yes\n")
    main = tmp_path / "main"
    main.write_text(f"Include {tmp_path}/*.conf\n")
    (tmp_path / "place").mkdir()
    module.lay_out({f"{tmp_path}/a.conf": "PermitRootLogin no\n"}, str(tmp_path / "place"), str(main))
    assert [path.read_text() for path in (tmp_path / "place" / "1").iterdir()] == ["PermitRootLogin no\n"]


def test_files_that_include_each_other_for_ever_are_refused(tmp_path):
    main = tmp_path / "main"
    main.write_text(f"Include {tmp_path}/main\n")
    (tmp_path / "place").mkdir()
    with pytest.raises(CannotObserve, match="Include"):
        module.lay_out({}, str(tmp_path / "place"), str(main))


# --- what stands against it -------------------------------------------------------------------------------------------


@pytest.fixture
def home(tmp_path, monkeypatch):
    """Have an account with a home and an Ed25519 key; return its key file."""
    (tmp_path / ".ssh").mkdir(mode=0o700)
    tmp_path.chmod(0o755)
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", tmp_path / "key"], check=True)
    keys = tmp_path / ".ssh" / "authorized_keys"
    keys.write_text((tmp_path / "key.pub").read_text())
    keys.chmod(0o600)
    entry = pwd.struct_passwd(("deploy", "x", os.getuid(), os.getgid(), "", str(tmp_path), "/bin/bash"))
    monkeypatch.setattr(pwd, "getpwnam", lambda name: entry)
    monkeypatch.setattr(module.seen, "shadow", lambda: {"deploy": {"account_expired": False, "password_expired": False}})
    return keys


SETTINGS = {
    "allowgroups": ["sudo"], "permitrootlogin": ["yes"], "authenticationmethods": ["publickey"], "strictmodes": ["yes"],
    "authorizedkeysfile": [".ssh/authorized_keys"], "pubkeyacceptedalgorithms": ["ssh-ed25519,rsa-sha2-512"],
    "requiredrsasize": ["3072"],
}  # fmt: skip
WAY = {"account": "deploy", "address": "192.0.2.9", "laddr": "192.0.2.1", "lport": "22", "method": "publickey", "fingerprint": ""}


def test_a_good_connection_comes_in_again(home):
    assert module.objections(SETTINGS, WAY, ["deploy", "sudo"]) == []


@pytest.mark.parametrize(
    ("settings", "way", "groups", "expected"),
    [
        ({}, {}, ["deploy"], "in none of the groups sudo, only in deploy (ssh_allowed_groups, ssh_group_members)"),
        ({}, {"method": "password"}, ["sudo"], "came in with password, which will not be accepted"),
        ({"authenticationmethods": ["publickey,keyboard-interactive:pam"]}, {}, ["sudo"], "a key alone will not do"),
        ({"pubkeyacceptedalgorithms": ["rsa-sha2-512"]}, {}, ["sudo"], "keys of type ssh-ed25519 are not accepted"),
        ({"authorizedkeysfile": ["none"]}, {}, ["sudo"], "there is none in its authorized_keys"),
        ({}, {"fingerprint": "SHA256:other"}, ["sudo"], "its key SHA256:other would not be accepted"),
        ({"denyusers": ["deploy"]}, {}, ["sudo"], "DenyUsers deploy"),
    ],
)
def test_what_would_keep_it_out_is_named(home, settings, way, groups, expected):
    said = module.objections({**SETTINGS, **settings}, {**WAY, **way}, groups)
    assert len(said) == 1 and expected in said[0], said


def test_a_second_factor_that_was_given_counts(home):
    way = {**WAY, "method": "keyboard-interactive/pam"}
    assert module.objections({**SETTINGS, "authenticationmethods": ["publickey,keyboard-interactive:pam"]}, way, ["sudo"]) == []


@pytest.mark.parametrize("what", ["account_expired", "password_expired"])
def test_age_counts(home, monkeypatch, what):
    state = {"account_expired": False, "password_expired": False, what: True}
    monkeypatch.setattr(module.seen, "shadow", lambda: {"deploy": state})
    assert len(module.objections(SETTINGS, WAY, ["sudo"])) == 1


def test_files_that_others_may_write_count_only_where_sshd_minds(home):
    home.chmod(0o666)
    assert "may be written by others (StrictModes)" in module.objections(SETTINGS, WAY, ["sudo"])[0]
    assert module.objections({**SETTINGS, "strictmodes": ["no"]}, WAY, ["sudo"]) == []


def test_root_is_told_what_to_change(home, monkeypatch):
    entry = pwd.struct_passwd(("root", "x", 0, 0, "", str(home.parent.parent), "/bin/bash"))
    monkeypatch.setattr(pwd, "getpwnam", lambda name: entry)
    said = module.objections({**SETTINGS, "permitrootlogin": ["no"]}, {**WAY, "account": "root"}, ["sudo"])
    assert "root may not log in (ansible_user)" in said  # where root does not run the tests, the files are not root's either


def test_a_way_out_is_named(monkeypatch, home):
    people = [
        pwd.struct_passwd((name, "x", uid, 1, "", str(home.parent.parent), "/bin/bash"))
        for name, uid in (("root", 0), ("deploy", 1000), ("dora", 1001), ("eve", 1002))
    ]
    monkeypatch.setattr(module.seen, "accounts_of_interest", lambda: people)
    monkeypatch.setattr(module.seen, "groups_of", lambda entry: ["users"] if entry.pw_name == "eve" else ["sudo"])
    monkeypatch.setattr(module.seen, "ask", lambda *args: SETTINGS)
    assert module.others([], {**WAY, "account": "root"}, []) == ["deploy", "dora"]
    assert module.others([], WAY, [{"group": "sudo", "members": ["eve"]}]) == ["dora", "eve"]
