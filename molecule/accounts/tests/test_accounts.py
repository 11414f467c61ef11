# SPDX-License-Identifier: GPL-3.0-or-later
"""Proofs of the role accounts: try to get in as everybody who must not, and as those who must.

prepare.yml left a key of every account in /opt/proof, and passwords that the attempts below know.
"""

from __future__ import annotations

import base64
import json
import os
import re
import secrets
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[3]
USERS = yaml.safe_load((ROOT / "molecule" / "accounts" / "vars.yml").read_text())["accounts_users"]
APPROVED = {"ticket": "REQ-9", "approved_by": "Ada Officer", "approved_on": "2026-01-01", "identity_method": "phone"}
SSH = ["-o", "IdentitiesOnly=yes", "-o", "UserKnownHostsFile=/dev/null", "-o", "StrictHostKeyChecking=no", "-o", "LogLevel=ERROR"]
PASSWORDS = {"root": "toor-and-tired", "toor": "second-root", "games": "play-and-win", "pi": "raspberry", "feeder": "laboratory"}

# Tries each name and password from standard input on two ways at once: at the console (/bin/login on a terminal of its own) and
# with su, as nobody, for root would not be asked. All at the same time, because PAM makes every failure wait.
ATTEMPTS = r"""
import concurrent.futures, json, os, pty, select, subprocess, sys, time

def console(name, password):
    pid, fd = pty.fork()
    if pid == 0:
        os.execv("/bin/login", ["login", name])
    said, sent, end = b"", False, time.time() + 20
    while time.time() < end and ("in-as-" + name).encode() not in said and b"incorrect" not in said:
        if select.select([fd], [], [], 1)[0]:
            try:
                data = os.read(fd, 4096)
            except OSError:  # login hangs the line up once and opens it again (util-linux, Debian 13), or it is over
                if os.waitpid(pid, os.WNOHANG)[0]:
                    break
                time.sleep(0.05)
                continue
            said += data
            if not sent and b"assword:" in said:
                os.write(fd, password.encode() + b"\n")
                sent = True
        elif sent:  # quiet: at a prompt, or not there yet (then what is typed is lost, and typed again)
            os.write(fd, b"echo in-as-$(id -un)\n")
    os.close(fd)  # hangs the line up
    return ("in-as-" + name).encode() in said

def su(name, password):
    argv = ["runuser", "-u", "nobody", "--", "su", "--command", "echo in-as-$(id -un)", name]
    return "in-as-" + name in subprocess.run(argv, input=password + "\n", capture_output=True, text=True).stdout

ways = {"console": console, "su": su}
attempts = [(way, *attempt) for attempt in json.load(sys.stdin) for way in ways]
with concurrent.futures.ThreadPoolExecutor(len(attempts)) as pool:
    opened = list(pool.map(lambda attempt: ways[attempt[0]](*attempt[1:]), attempts))
print(json.dumps([f"{name} with '{password}' by {way}" for (way, name, password), way_in in zip(attempts, opened) if way_in]))
"""


def doors(host, attempts: list[tuple[str, str]]) -> list[str]:
    """Try names with passwords at the console and with su; return those that opened."""
    script = base64.b64encode(ATTEMPTS.encode()).decode()
    given = base64.b64encode(json.dumps(attempts).encode()).decode()
    return json.loads(
        host.check_output(f"echo {script} | base64 -d >/tmp/attempts.py && echo {given} | base64 -d | python3 /tmp/attempts.py")
    )


def ssh(target, name: str, key: str) -> subprocess.CompletedProcess:
    """Try to get in over SSH with a key, and ask who one is."""
    return subprocess.run(
        ["ssh", "-n", "-i", key, "-p", str(target.port), *SSH, "-o", "BatchMode=yes", f"{name}@{target.address}", "id -un"],
        check=False, capture_output=True, text=True, timeout=30,
    )  # fmt: skip


def gets_in(somebody) -> bool:
    """Try to get in over SSH as a person that a fixture made."""
    return subprocess.run([*somebody.ssh_argv("-n", "-o", "BatchMode=yes"), "true"], check=False, timeout=30).returncode == 0


@pytest.fixture(scope="module")
def key_of(host, tmp_path_factory):
    """key_of(name): a private key that prepare.yml put into an account."""
    directory = tmp_path_factory.mktemp("keys")

    def fetch(name: str) -> str:
        path = directory / name
        if not path.exists():
            path.write_text(host.check_output(f"cat /opt/proof/{name}") + "\n")
            path.chmod(0o600)
        return str(path)

    return fetch


@pytest.fixture
def refused(target):
    """refused(**variables): the role must refuse, and what it says is returned."""

    def run(**variables) -> str:
        with pytest.raises(pytest.fail.Exception) as caught:
            target.reapply(**variables)
        return re.sub(r"\s+", " ", str(caught.value))

    return run


@pytest.fixture
def last_login(host):
    """last_login(name, days): forget all logins of an account but one so many days ago, as sshd would have written it.

    With ``journal=True`` the journal remembers.
    """

    def write(name: str, days: float, journal: bool = False) -> None:
        if not journal:
            host.check_output("journalctl --quiet --rotate --vacuum-time=1s")
        host.check_output(
            f"rm -f /var/lib/bulwark/logins/{name}; python3 -c \"import struct, time, pwd; f = open('/var/log/lastlog', 'r+b'); "
            f"f.seek(pwd.getpwnam('{name}').pw_uid * 292); "
            f"f.write(struct.pack('<I32s256s', int(time.time() - {days} * 86400), b'pts/0', b'192.0.2.1'))\""
        )

    return write


def root_by_su(host) -> bool:
    """Try to become root with root's password."""
    return "root with 'toor-and-tired' by su" in doors(host, [("root", PASSWORDS["root"])])


@pytest.fixture(scope="module")
def opened(host) -> list[str]:
    """What opened when every password of the bad host was tried at the console and with su."""
    return doors(host, [*PASSWORDS.items(), ("blank", ""), ("list", "")])


def record(host) -> dict:
    """Return what the role remembers."""
    return json.loads(host.check_output("cat /var/lib/bulwark/accounts/record.json"))


def personal(name: str, **more) -> dict:
    """Return the declaration of one more person."""
    return {"name": name, "owner": f"Owner of {name}", **APPROVED, **more}


# --- nobody gets in who must not ----------------------------------------------------------------------------------------


def test_the_attempts_work_where_they_may(host, target, key_of):
    """Without this, every refusal below could be a broken attempt."""
    assert ssh(target, "jdoe", key_of("jdoe")).stdout.strip() == "jdoe"
    host.check_output("usermod --password \"$(openssl passwd -6 'open sesame')\" jdoe")
    try:
        assert doors(host, [("jdoe", "open sesame"), ("jdoe", "wrong")]) == [
            "jdoe with 'open sesame' by console",
            "jdoe with 'open sesame' by su",
        ]
    finally:
        host.check_output("usermod --password '!' jdoe")


def test_root_cannot_log_in(target, key_of, opened):
    assert ssh(target, "root", key_of("root")).returncode == 255
    assert not [door for door in opened if door.startswith("root")]


def test_system_accounts_cannot_log_in(host, target, key_of, opened):
    assert not [door for door in opened if door.startswith(("games", "list"))]
    assert ssh(target, "list", key_of("list")).returncode == 255
    # and were the key back, the shell would still let nobody in, not even from root
    host.check_output("install -D -m 0600 -o list -g list /opt/proof/list.pub /var/list/.ssh/authorized_keys")
    try:
        assert "list" not in ssh(target, "list", key_of("list")).stdout
    finally:
        host.check_output("rm /var/list/.ssh/authorized_keys")
    for name in ("games", "list", "sync"):
        assert "in-as" not in host.run(f"su --command 'echo in-as-$(id -un)' {name}").stdout


def test_empty_password_opens_nothing(target, key_of, opened):
    assert not [door for door in opened if door.startswith("blank")]
    assert ssh(target, "blank", key_of("blank")).returncode == 255


def test_default_password_opens_nothing(opened):
    assert not [door for door in opened if door.startswith("pi ")]


def test_second_uid_0_is_gone(host, target, key_of, opened):
    assert host.check_output("getent passwd | awk -F: '$3 == 0 { print $1 }'") == "root"
    assert not [door for door in opened if door.startswith("toor")]
    assert ssh(target, "toor", key_of("root")).returncode == 255
    assert host.run("grep --quiet '^+' /etc/passwd").rc == 1


def test_generic_and_vendor_accounts_cannot_log_in(target, key_of):
    assert ssh(target, "pi", key_of("pi")).returncode != 0


def test_undeclared_account_cannot_log_in(target, key_of):
    assert ssh(target, "ghost", key_of("ghost")).returncode != 0


def test_one_key_opens_one_account(target, key_of):
    assert ssh(target, "jdoe", key_of("jdoe")).stdout.strip() == "jdoe"
    assert ssh(target, "ghost", key_of("jdoe")).returncode != 0


def test_unapproved_account_cannot_log_in(host, target, key_of):
    assert ssh(target, "pend", key_of("pend")).returncode != 0
    assert not host.run("runuser -u pend -- true").rc  # it is there, closed: nothing of theirs is lost
    approved = [
        {**user, "approved_by": "Ada Officer", "approved_on": "2026-01-02"} if user["name"] == "pend" else user for user in USERS
    ]
    target.reapply(accounts_users=approved)
    assert ssh(target, "pend", key_of("pend")).stdout.strip() == "pend"
    target.reapply()
    assert ssh(target, "pend", key_of("pend")).returncode != 0


def test_service_account_cannot_log_in(target, key_of, opened):
    assert not [door for door in opened if door.startswith("feeder")]
    assert "feeder" not in ssh(target, "feeder", key_of("feeder")).stdout


def test_expired_temporary_account_cannot_log_in(host, target, key_of):
    assert ssh(target, "tempo", key_of("tempo")).stdout.strip() == "tempo"
    until = host.check_output("getent shadow tempo").split(":")[7]
    host.check_output('chage --expiredate "$(date --utc +%F)" tempo')  # its last day was yesterday
    try:
        assert ssh(target, "tempo", key_of("tempo")).returncode != 0
    finally:
        host.check_output(f"chage --expiredate {until} tempo")


# --- people come ----------------------------------------------------------------------------------------------------------


def test_declared_person_gets_in_with_a_key_and_without_password(host, target, tmp_path):
    name = "n" + secrets.token_hex(3)  # a name of a former run would be reserved
    key = tmp_path / "key"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "new", "-f", key], check=True)
    users = [*USERS, personal(name, authorized_keys=[Path(f"{key}.pub").read_text().strip()])]
    by_su = f"{name} with 'my own choice' by su"
    target.reapply(accounts_users=users)
    assert host.check_output(f"getent shadow {name}").split(":")[1] == "!"
    assert ssh(target, name, str(key)).stdout.strip() == name
    assert host.file(f"/home/{name}").mode == 0o700
    assert doors(host, [(name, guess) for guess in ("", name, "!", "changeme")]) == []
    host.check_output(f"usermod --password \"$(openssl passwd -6 'my own choice')\" {name}")  # what passwd would do for her
    assert by_su in doors(host, [(name, "my own choice")])
    target.reapply(accounts_users=users)
    assert by_su in doors(host, [(name, "my own choice")]), "her own password was taken away"

    target.reapply(accounts_users=[*USERS, personal(name, state="absent")])
    assert host.run(f"getent passwd {name}").rc == 2
    assert ssh(target, name, str(key)).returncode == 255


def test_wrong_declarations_are_refused_before_any_change(host, refused):
    before = host.check_output("sha256sum /etc/passwd /etc/shadow /etc/group")
    key = host.check_output("cat /opt/proof/jdoe.pub")
    said = refused(
        accounts_users=[
            *USERS,
            personal("guest7"),
            personal("dbadmin"),
            personal("toolonganame"),
            personal("janed", owner="jane  DOE"),
            personal("first", authorized_keys=[key], uid=1700),
            personal("second", authorized_keys=[key], uid=1700),
            personal("summer", kind="temporary", expires="2199-01-01"),
            {"name": "relay", "kind": "service", "owner": "Olga Operator"},
        ]
    )
    for expected in (
        "guest7: is generic", "WTH-7.2.1-11", "dbadmin: reveals privilege", "WTH-7.6-7b", "toolonganame: does not have the form",
        "already has jdoe", "WTH-7.6-8", "keys are never shared", "ids are never shared", "WTH-7.6-5",
        "must be at most 90 days away", "WTH-7.2.1-7a", "reason is missing", "peers is missing", "WTH-7.2.1-10",
    ):  # fmt: skip
        assert expected in said
    assert host.check_output("sha256sum /etc/passwd /etc/shadow /etc/group") == before


# --- people go ------------------------------------------------------------------------------------------------------------


def test_logins_without_terminal_are_written_down(host, target, key_of):
    host.check_output("rm -f /var/lib/bulwark/logins/jdoe")
    start = int(host.check_output("date +%s"))
    assert ssh(target, "jdoe", key_of("jdoe")).stdout.strip() == "jdoe"
    at, service = host.check_output("cat /var/lib/bulwark/logins/jdoe").split()
    assert int(at) >= start
    assert service == "sshd"
    host.check_output("rm /var/lib/bulwark/logins/jdoe; su --command true jdoe; runuser --user jdoe -- true")
    assert not host.file("/var/lib/bulwark/logins/jdoe").exists, "somebody else's su is no login of hers"


def test_day_89_is_in_and_day_90_is_out(target, person, last_login, host):
    early, late = person("early"), person("late")
    users = [*USERS, personal("early"), personal("late")]
    last_login("early", 89.9)
    last_login("late", 90.01)
    target.reapply(accounts_users=users)
    assert gets_in(early)
    assert not gets_in(late)
    assert record(host)["disabled"]["late"]["reason"] == "dormant"

    # approved again after that, it opens again
    today = host.check_output("date --utc +%F")
    target.reapply(accounts_users=[*USERS, personal("early"), personal("late", approved_on=today)])
    assert gets_in(late)


def test_a_login_only_the_journal_knows_of_counts(target, person, last_login, host):
    quiet = person("quiet")
    users = [*USERS, personal("quiet")]
    assert gets_in(quiet)
    last_login("quiet", 200, journal=True)  # takes our own record away, as on the first run on a host
    data = record(host)
    for entry in data["seen"].values():
        entry.pop("last_login", None)
    host.check_output("cat >/var/lib/bulwark/accounts/record.json <<'END'\n%s\nEND" % json.dumps(data))
    target.reapply(accounts_users=users)
    assert gets_in(quiet)


def test_removed_account_is_archived_and_its_uid_never_given_away(target, person, last_login, host):
    goner = person("goner")
    users = [*USERS, personal("goner")]
    host.check_output("runuser --user goner -- sh -c 'mkdir ~/work; echo precious >~/work/notes; ln -s /etc/shadow ~/link'")
    uid = int(host.check_output("id -u goner"))
    last_login("goner", 92)
    target.reapply(accounts_users=users)
    target.reapply(accounts_users=users)
    assert host.user("goner").exists, "removed without notice"

    data = record(host)
    data["disabled"]["goner"]["at"] -= 2 * 86400
    host.check_output("cat >/var/lib/bulwark/accounts/record.json <<'END'\n%s\nEND" % json.dumps(data))
    target.reapply(accounts_users=users)
    assert host.run("getent passwd goner").rc == 2
    assert not host.file("/home/goner").exists
    assert not gets_in(goner)

    path = record(host)["removed"]["goner"]["archive"]
    archive = host.file(path)
    assert (archive.mode, archive.user, archive.size > 0) == (0o600, "root", True)
    assert host.file(os.path.dirname(path)).mode == 0o700
    assert record(host)["removed"]["goner"]["sha256"] == archive.sha256sum
    host.check_output(f"rm -rf /tmp/back && mkdir -m 0700 /tmp/back && tar --extract --file {path} -C /tmp/back")
    assert host.file("/tmp/back/home/goner/work/notes").content_string.strip() == "precious"
    assert host.file("/tmp/back/home/goner/work/notes").uid == uid
    assert host.file("/tmp/back/home/goner/link").linked_to == "/etc/shadow"

    assert host.run(f"useradd --uid {uid} squatter").rc == 4, "the uid was given away"
    host.check_output("useradd --no-create-home nextone")
    assert host.user("nextone").uid != uid
    host.check_output("userdel nextone")
    assert host.check_output("stat --format %U /tmp/back/home/goner/work/notes") == "removed-goner"
    assert "in-as" not in host.run("su --command 'echo in-as-$(id -un)' removed-goner").stdout

    today = host.check_output("date --utc +%F")
    target.reapply(accounts_users=[*USERS, personal("goner", approved_on=today)])  # hired again
    assert host.user("goner").uid == uid


def test_a_wrong_clock_disables_nobody(host, refused):
    before = host.check_output("sha256sum /etc/passwd /etc/shadow")
    said = refused(__accounts_controller_time=int(time.time()) - 365 * 86400)
    assert "the host's clock differs from the controller's by 315" in said
    assert host.check_output("sha256sum /etc/passwd /etc/shadow") == before


def test_everybody_dormant_at_once_is_refused(host, target, person, last_login, refused):
    names = ["anna", "bert", "carl", "dora"]
    users = [*USERS, *[personal(name) for name in names]]
    for name in names:
        person(name)
        last_login(name, 400)
    before = host.check_output("sha256sum /etc/passwd /etc/shadow")
    assert "would be disabled as dormant at once (anna, bert, carl, dora)" in refused(accounts_users=users)
    assert host.check_output("sha256sum /etc/passwd /etc/shadow") == before


def test_unreadable_login_records_disable_nobody(host, refused):
    host.check_output("cp -p /var/log/lastlog /root/lastlog && printf x >>/var/log/lastlog")
    try:
        assert "last logins cannot be read" in refused()
    finally:
        host.check_output("mv /root/lastlog /var/log/lastlog")


# --- nobody is locked out -------------------------------------------------------------------------------------------------


# the other ways to cut it (removed, closed shell, no key) are refused by the same code: tests/unit, test_accounts_plan.py
def test_the_way_ansible_came_in_is_never_cut(host, refused):
    before = host.check_output("sha256sum /etc/passwd /etc/shadow /etc/group")
    said = refused(
        accounts_users=[{**user, "groups": [], "authorized_keys": []} if user["name"] == "deploy" else user for user in USERS]
    )
    assert "Ansible came in as deploy, which would be taken out of sudo, left without a key that it has now" in said
    said = refused(accounts_users=[{**user, "state": "disabled"} if user["name"] == "deploy" else user for user in USERS])
    assert "Ansible came in as deploy, which would be disabled" in said
    assert host.check_output("sha256sum /etc/passwd /etc/shadow /etc/group") == before


def test_undeclared_automation_account_survives(target):
    target.reapply(accounts_users=[user for user in USERS if user["name"] != "deploy"])
    assert ssh(target, "deploy", target.key).stdout.strip() == "deploy"


def test_root_is_not_closed_when_nobody_else_could_become_root(host, refused):
    # Ansible itself only needs /bin/sh by sudo; nobody else may do anything
    host.check_output("cp -p /etc/sudoers.d/90-deploy /root/90-deploy && gpasswd --delete deploy sudo")
    host.check_output("usermod --unlock root && echo 'deploy ALL=(root) NOPASSWD: /bin/sh' >/etc/sudoers.d/90-deploy")
    try:
        assert "no account would be left that can log in and become root" in refused()
        assert root_by_su(host)
    finally:
        host.check_output("cp -p /root/90-deploy /etc/sudoers.d/90-deploy; gpasswd --add deploy sudo; usermod --lock root")


# --- nothing leaks, everything comes back -----------------------------------------------------------------------------------


def test_no_password_hash_leaves_the_host(host, target):
    host.check_output("usermod --password \"$(openssl passwd -6 'open sesame')\" jdoe && usermod --unlock root")
    hashes = {line.split(":")[1].lstrip("!") for line in host.check_output("cat /etc/shadow").splitlines()}
    hashes = {field for field in hashes if field.startswith("$")}
    assert len(hashes) >= 4
    state = os.environ["MOLECULE_EPHEMERAL_DIRECTORY"]
    environment = {k: v for k, v in os.environ.items() if k != "MOLECULE_EPHEMERAL_DIRECTORY"} | {
        "ANSIBLE_CONFIG": f"{state}/ansible.cfg"
    }
    shared, extra = (
        ROOT / "molecule" / "shared",
        {"targets": target.name, "role": "accounts", "scenario_dir": str(ROOT / "molecule/accounts")},
    )
    said = ""
    for playbook in ("assess_passes.yml", "converge.yml"):
        said += subprocess.run(
            [Path(sys.executable).with_name("ansible-playbook"), "--inventory", f"{state}/inventory", "-vvv", "--diff",
             "--extra-vars", json.dumps(extra), shared / playbook],
            check=False, capture_output=True, text=True, env=environment, cwd=ROOT,
        ).stdout  # fmt: skip
    host.check_output("usermod --password '!' jdoe")
    assert "password locked" in said, "the run changed nothing that could have leaked"
    said += host.check_output(
        "cat /var/lib/bulwark/accounts/record.json; journalctl --no-pager --quiet | grep --text ansible | cat -v"
    )
    for field in hashes:
        assert field not in said
        assert field[-40:] not in said


def test_taken_back_and_put_on_again(host, target, key_of):
    target.reapply(accounts_state="absent")
    try:
        assert root_by_su(host)
        assert host.user("games").shell == "/usr/games/sh"
        assert host.user("toor").uid == 0
        assert ssh(target, "ghost", key_of("ghost")).stdout.strip() == "ghost"
        assert host.file("/root/.ssh/authorized_keys").exists
        assert host.run("grep --recursive bulwark /etc/pam.d /usr/share/pam-configs").rc == 1
        assert host.check_output("getent shadow blank").split(":")[1] == "!", "an empty password came back"
        assert host.run("getent passwd removed-leaver").rc == 0
        assert ssh(target, "deploy", target.key).stdout.strip() == "deploy"
    finally:
        target.reapply()
    assert not root_by_su(host)
    assert ssh(target, "ghost", key_of("ghost")).returncode != 0
