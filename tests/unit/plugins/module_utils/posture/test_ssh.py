# Copyright: (c) 2026, Bulwark contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The collector of the SSH server, on what Debian 12 (OpenSSH 9.2) and Debian 13 (10.0) printed."""

from __future__ import annotations

import os
import pwd
import subprocess
from pathlib import Path

import pytest
from ansible_collections.bulwark.hardening.plugins.module_utils import ssh
from ansible_collections.bulwark.hardening.plugins.module_utils.posture import ssh as collector

FIXTURES = Path(__file__).parent / "fixtures" / "ssh"
RELEASES = ("debian12", "debian13")


def fixture(name):
    return (FIXTURES / f"{name}.txt").read_text()


@pytest.mark.parametrize("release", RELEASES)
def test_effective_settings_are_read(release):
    vendor = ssh.parse_effective(fixture(f"{release}-vendor"))
    assert vendor["permitrootlogin"] == ["without-password"]
    assert vendor["hostkey"] == [f"/etc/ssh/ssh_host_{kind}_key" for kind in ("rsa", "ecdsa", "ed25519")]
    assert "aes128-ctr" in vendor["ciphers"][0].split(",")
    assert vendor["subsystem"] == ["sftp /usr/lib/openssh/sftp-server"]
    hardened = ssh.parse_effective(fixture(f"{release}-hardened"))
    assert hardened["allowgroups"] == ["sudo", "ssh-users", "partners"]
    assert hardened["ciphers"] == ["aes256-gcm@openssh.com,chacha20-poly1305@openssh.com"]
    assert ("persourcepenalties" in hardened) == (release == "debian13")


@pytest.mark.parametrize("release", RELEASES)
def test_rules_and_includes_are_found(release):
    main, drop_in = fixture(f"{release}-sshd_config"), fixture(f"{release}-drop-in")
    assert ssh.includes(main) == ["/etc/ssh/sshd_config.d/*.conf"]
    assert ssh.match_criteria(main) == [{"user": ["kiosk"]}]
    rules = ssh.match_criteria(drop_in)
    assert {"user": ["root"]} in rules and {} in rules
    assert {"user": ["labfeed"], "address": ["*", "!127.0.0.8/32"]} in rules


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("Match all", [{}]),
        ("match user a,!b Group c", [{"user": ["a", "!b"], "group": ["c"]}]),
        ('Match Address "10.0.0.0/8,192.0.2.1"', [{"address": ["10.0.0.0/8", "192.0.2.1"]}]),
        ("Match User=a Address=10.0.0.1", [{"user": ["a"], "address": ["10.0.0.1"]}]),
        ("  Match LocalPort 2222 # comment", [{"localport": ["2222"]}]),
        ("# Match User a", []),
        ("MatchUser a", []),
        ('Match User "unfinished', []),
        ("Match invalid-user", [{}]),
        ("Match User", [{"user": []}]),
    ],
)
def test_match_lines(line, expected):
    assert ssh.match_criteria(line) == expected


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ("SSHD_OPTS=\n", []),
        ("SSHD_OPTS=-4\n", []),
        ("SSHD_OPTS=-oPasswordAuthentication=yes\n", ["-o", "PasswordAuthentication=yes"]),
        ('SSHD_OPTS="-o PasswordAuthentication=yes -p 2222"\n', ["-o", "PasswordAuthentication=yes", "-p", "2222"]),
        ("# SSHD_OPTS=-p 1\nSSHD_OPTS=-f /etc/ssh/other\n", ["-f", "/etc/ssh/other"]),
        ("", []),
        ("SSHD_OPTS='-o\n", ["-o"][:0]),
    ],
)
@pytest.mark.parametrize("release", RELEASES)
def test_options_of_the_service_count(release, environment, expected):
    assert ssh.daemon_options(fixture(f"{release}-exec-start"), environment) == expected


@pytest.fixture(scope="module")
def keys(tmp_path_factory):
    """Public keys as ssh-keygen writes them, by kind."""
    place = tmp_path_factory.mktemp("keys")
    for kind, bits in (("rsa", "2048"), ("ed25519", "256"), ("ecdsa", "384")):
        subprocess.run(["ssh-keygen", "-q", "-t", kind, "-b", bits, "-N", "", "-f", place / kind], check=True)
    return {path.stem: path.read_text().strip() for path in place.glob("*.pub")}


def test_keys_are_described_without_naming_anybody(keys, tmp_path):
    for kind, bits in (("rsa", 2048), ("ed25519", 256), ("ecdsa", 384)):
        path = tmp_path / kind
        path.write_text(keys[kind])
        said = subprocess.run(["ssh-keygen", "-lf", path], check=True, capture_output=True, text=True).stdout.split()
        key = ssh.parse_key(keys[kind])
        assert (key["bits"], key["fingerprint"], key["options"]) == (bits, said[1], []) and str(bits) == said[0]
        assert keys[kind].split()[2] not in str(key)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ("restrict", ["restrict"]),
        ('from="10.0.0.1,10.0.0.2",restrict', ["from", "restrict"]),
        (r'command="echo \"hi, all\" pty=1",no-pty', ["command", "no-pty"]),
        ('environment="A=b c",From="x"', ["environment", "from"]),
    ],
)
def test_options_of_keys(keys, options, expected):
    assert ssh.parse_key(f"{options} {keys['ed25519']}")["options"] == expected


@pytest.mark.parametrize(
    "line", ["", "# ssh-ed25519 AAAA", "ssh-ed25519", "ssh-ed25519 !!!!", "ssh-ed25519 AAAA", "garbage", 'from="x']
)
def test_what_is_no_key(line):
    assert ssh.parse_key(line) is None


def test_a_key_that_says_it_is_another_is_none(keys):
    assert ssh.parse_key(keys["rsa"].replace("ssh-rsa", "ssh-ed25519")) is None


@pytest.mark.parametrize(
    ("texts", "patterns", "expected"),
    [
        (["alice"], ["alice"], True), (["alice"], ["al*"], True), (["alice"], ["?lice"], True), (["alice"], ["ALICE"], False),
        (["alice"], ["*", "!alice"], False), (["alice"], ["!bob"], False), (["a.c"], ["a?c"], True), (["abc"], ["a.c"], False),
        (["users", "sudo"], ["sudo"], True), (["users", "sudo"], ["*", "!sudo"], False), (["alice"], [], False),
    ],
)  # fmt: skip
def test_patterns(texts, patterns, expected):
    assert ssh.in_list(texts, patterns) is expected


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("10.0.0.0/8", "10.0.0.1"), ("!192.0.2.7", "192.0.2.7"), ("2001:db8::/32", "2001:db8::1"), ("192.168.*", "192.168.1.1"),
        ("*", None), ("10.1.?.*", "10.1.1.1"), ("host", None), ("192.0.2.7/32", "192.0.2.7"),
    ],
)  # fmt: skip
def test_an_address_of_each_rule(pattern, expected):
    assert ssh.sample_address(pattern) == expected


SETTINGS = {"permitrootlogin": ["no"], "allowgroups": ["sudo", "ssh-*"]}


@pytest.mark.parametrize(
    ("more", "name", "uid", "groups", "expected"),
    [
        ({}, "alice", 1000, ["alice", "sudo"], []),
        ({}, "alice", 1000, ["ssh-users"], []),
        ({}, "alice", 1000, ["alice"], ["allowgroups"]),
        ({}, "root", 0, ["root"], ["allowgroups", "permitrootlogin"]),
        ({"denyusers": ["al*"]}, "alice", 1000, ["sudo"], ["denyusers"]),
        ({"allowusers": ["bob", "alice@10.0.0.0/8"]}, "alice", 1000, ["sudo"], ["allowusers"]),
        ({"allowusers": ["bob", "alice@203.0.113.0/24"]}, "alice", 1000, ["sudo"], []),
        ({"denygroups": ["sudo"]}, "alice", 1000, ["sudo"], ["denygroups"]),
        ({"refuseconnection": ["yes"]}, "alice", 1000, ["sudo"], ["refuseconnection"]),
        ({"allowgroups": []}, "alice", 1000, [], []),
    ],
)
def test_who_is_refused(more, name, uid, groups, expected):
    said = ssh.refusals({**SETTINGS, **more}, name, uid, groups, "203.0.113.7")
    assert [setting for setting, _why in said] == expected


def test_which_keys_are_taken(keys):
    hardened = ssh.parse_effective(fixture("debian12-hardened"))
    assert ssh.key_refusals(hardened, ssh.parse_key(keys["ed25519"])) == []
    assert "too small" in ssh.key_refusals(hardened, ssh.parse_key(keys["rsa"]))[0]
    assert "ecdsa-sha2-nistp384" in ssh.key_refusals(hardened, ssh.parse_key(keys["ecdsa"]))[0]
    vendor = ssh.parse_effective(fixture("debian12-vendor"))
    assert not any(ssh.key_refusals(vendor, ssh.parse_key(line)) for line in keys.values())


@pytest.mark.parametrize("release", RELEASES)
def test_what_may_be_forwarded(release):
    assert ssh.forwards(ssh.parse_effective(fixture(f"{release}-hardened"))) == {}
    vendor = ssh.forwards(ssh.parse_effective(fixture(f"{release}-vendor")))
    assert vendor["tcp"] == "yes" and vendor["permitopen"] == ["any"] and vendor["agent"] == "yes"
    assert ssh.forwards({**ssh.parse_effective(fixture(f"{release}-vendor")), "disableforwarding": ["yes"]}) == {}


# --- the collector ----------------------------------------------------------------------------------------------------


def account(name, uid=1000):
    return pwd.struct_passwd((name, "x", uid, uid, "", f"/home/{name}", "/bin/bash"))


@pytest.fixture
def asked(monkeypatch):
    """Answer like sshd: nobody may use a password, but kiosk, and everybody from 10.0.0.0/8."""
    seen = []

    def ask(options, user, address, host, laddr, lport):
        seen.append((user, address))
        yes = user == "kiosk" or address.startswith("10.")
        return {"passwordauthentication": ["yes" if yes else "no"], "allowgroups": ["sudo", "ssh-users"]}

    monkeypatch.setattr(collector, "ask", ask)
    monkeypatch.setattr(collector, "groups_of", lambda entry: ["ssh-users"] if entry.pw_name != "root" else ["root"])
    return seen


def test_every_kind_of_connection_is_asked_for_once(asked):
    people = [account("root", 0), account("nobody", 65534), account("alice"), account("bob", 1001), account("kiosk", 1002)]
    seen = collector.connections(people, ["Match User kiosk\nMatch Address 10.0.0.0/8\n"], [])
    assert {user for user, _address in asked} == {"root", "nobody", "alice", "kiosk"}, "alice stands for bob"
    assert {address for _user, address in asked} == {"203.0.113.7", "2001:db8::7", "127.0.0.1", "10.0.0.1"}
    values = collector.by_value("passwordauthentication", seen)
    assert values["no"] == ["anyone"]
    assert "kiosk" in values["yes"] and "alice, bob from 10.0.0.1" in values["yes"] and "alice, bob" not in values["yes"]
    assert collector.by_value("allowgroups", seen) == {"sudo ssh-users": ["anyone"]}


def test_without_rules_one_address_will_do(asked):
    collector.connections([account("nobody", 65534), account("alice")], ["PasswordAuthentication no\n"], [])
    assert asked == [("nobody", "203.0.113.7"), ("alice", "203.0.113.7")]


def test_too_many_kinds_are_said_not_passed_over(asked):
    text = "".join(f"Match Address 10.{n}.0.0/16\n" for n in range(100))
    with pytest.raises(collector.CannotObserve, match="kinds of connection"):
        collector.connections([account("nobody", 65534), account("alice")], [text], [])
    assert not asked


def test_key_files_follow_the_pattern(tmp_path):
    entry = account("alice")
    settings = {"authorizedkeysfile": [".ssh/authorized_keys /etc/keys/%u %h/k%%"]}
    assert collector.key_files(settings, entry) == ["/home/alice/.ssh/authorized_keys", "/etc/keys/alice", "/home/alice/k%"]
    assert collector.key_files({"authorizedkeysfile": ["none"]}, entry) == []


def test_a_pipe_for_a_key_file_keeps_nobody_waiting(tmp_path, keys):
    os.mkfifo(tmp_path / "pipe")
    assert collector.read_keys(str(tmp_path / "pipe")) == []
    assert collector.read_keys(str(tmp_path)) == []
    (tmp_path / "good").write_text("# mine\n" + "\n".join(keys.values()) + "\nnonsense\n")
    assert len(collector.read_keys(str(tmp_path / "good"))) == 3


def test_passwords_are_described_never_shown(monkeypatch):
    text = "root:*:19000:0:99999:7:::\nalice:$y$j9T$secret:18000:0:90:7:::\nbob::19000:0:99999:7:::\nold:!:0:0:99999:7::1:\n"
    monkeypatch.setattr(collector, "read", lambda path: text)
    found = collector.shadow()
    assert {name: entry["password"] for name, entry in found.items()} == {
        "root": "none",
        "alice": "set",
        "bob": "empty",
        "old": "none",
    }
    assert found["alice"]["password_expired"] and found["old"]["password_expired"] and not found["root"]["password_expired"]
    assert found["old"]["account_expired"] and not found["alice"]["account_expired"]
    assert "secret" not in str(found)
