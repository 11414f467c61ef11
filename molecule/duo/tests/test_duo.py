# Copyright: (c) 2026, Bulwark contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Try to get past Duo. A stand-in answers for Duo's service; sshd, PAM, pam_duo, sudo, su and login are the real ones.

A refusal counts only if it is known to be Duo's or the guard's: by what the service was asked, or by what the guard logged.
Beside every refusal stands somebody who gets in.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
CONFIG = "/etc/bulwark/pam_duo.conf"
SECRET = "lab0only0lab0only0lab0only0lab0only0lab0"
PASSWORD = "correct horse"
OPTIONS = (
    "-o", "IdentitiesOnly=yes", "-o", "UserKnownHostsFile=/dev/null", "-o", "StrictHostKeyChecking=no", "-o", "LogLevel=ERROR",
    "-o", "ConnectTimeout=10", "-o", "PasswordAuthentication=no", "-o", "NumberOfPasswordPrompts=1",
)  # fmt: skip
ALONE = ("-o", "ControlMaster=no", "-o", "ControlPath=none")


def ssh(target, name, key, *words, options=ALONE, answer=None, port=None, timeout=60):
    """Run ssh from here; ``answer`` is a program that answers prompts. Return what became of it."""
    argv = ["ssh", "-i", str(key), "-p", str(port or target.port), *options, *OPTIONS, f"{name}@{target.address}", *words]
    environment = {**os.environ, "SSH_ASKPASS": str(answer), "SSH_ASKPASS_REQUIRE": "force"} if answer else None
    return subprocess.run(
        argv, check=False, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=timeout, env=environment
    )


def gets_in(done) -> bool:
    """Say whether ssh ran its command."""
    return done.returncode == 0 and "I am in" in done.stdout


class Duo:
    """The stand-in on the host under test, and what the host's log says."""

    def __init__(self, host):
        self.host = host

    def says(self, **state):
        """Set what the service answers from now on, and forget what it was asked: says(alice="deny") or says(certificate=…)."""
        known = ("certificate", "service", "hang_seconds", "clock_offset_seconds")
        full = {key: value for key, value in state.items() if key in known}
        full["answers"] = {"*": "deny", **{key: value for key, value in state.items() if key not in known}}
        text = shlex.quote(json.dumps(full))
        self.host.check_output(f"echo {text} >/opt/duo_service/state.json && : >/opt/duo_service/requests.jsonl")

    def asked(self, call="auth"):
        """Return the calls of one kind since."""
        lines = self.host.check_output("cat /opt/duo_service/requests.jsonl").splitlines()
        return [record for record in map(json.loads, lines) if record["call"] == call]


@pytest.fixture(scope="module")
def duo(host):
    """The service, which says no unless told otherwise, and yes to all afterwards, as the scenario has it."""
    service = Duo(host)
    script = (Path(__file__).parent / "drive.py").read_text()
    host.check_output(f"printf %s {shlex.quote(script)} >/root/drive.py")
    yield service
    service.says(**{"*": "allow"})


@pytest.fixture(scope="module")
def alice(host, resident, duo):
    """Somebody who may come in and, with a password, become root."""
    alice = resident("alice", groups=("ssh-users", "sudo"))
    host.check_output(f"echo 'alice:{PASSWORD}' | chpasswd")
    return alice


def enter(target, who, *options, answer=None):
    """Come in over SSH."""
    return ssh(target, who.name, who.key, "echo", "I am in", options=(*ALONE, *options), answer=answer)


@contextlib.contextmanager
def config(host, command):
    """Have the configuration spoilt by a shell command, and as it was afterwards."""
    host.check_output(f"cp -a {CONFIG} /root/pam_duo.kept")
    try:
        host.check_output(command)
        yield
    finally:
        host.check_output(f"rm -rf {CONFIG}; cp -a /root/pam_duo.kept {CONFIG}")


def refused_by_guard(host):
    """Return what the guard has logged so far, one refusal a line."""
    return host.check_output("journalctl -q -o cat -t bulwark-duo").splitlines()


def sudo(host, words, name="alice", password=PASSWORD):
    """Have an account run sudo, its password on standard input."""
    return host.run(f"runuser -u {name} -- sh -c {shlex.quote(f'echo {shlex.quote(password)} | sudo -S -p asked {words}')}")


def play(target, *words):
    """Run ansible as the scenario does and return what it printed, JSON results where it is a module."""
    state = os.environ["MOLECULE_EPHEMERAL_DIRECTORY"]
    environment = {
        **{key: value for key, value in os.environ.items() if key != "MOLECULE_EPHEMERAL_DIRECTORY"},
        "ANSIBLE_CONFIG": f"{state}/ansible.cfg",
        "ANSIBLE_NOCOLOR": "1",
    }
    return subprocess.run(
        [Path(sys.executable).with_name(words[0]), "--inventory", f"{state}/inventory", *words[1:]],
        check=False, capture_output=True, text=True, env=environment, cwd=ROOT,
    )  # fmt: skip


def assess(target, *exceptions, run_dir=""):
    """Return (status by control, reason by control) of the role's controls."""
    arguments = {"roles": ["duo"], "exceptions": exceptions, **({"run_dir": str(run_dir)} if run_dir else {})}
    for _attempt in range(2):  # a machine that is busy may not become root in time
        done = play(
            target, "ansible", target.name, "-m", "bulwark.hardening.assess", "-a", json.dumps(arguments),
            "-e", f"@{ROOT}/molecule/duo/vars.yml",
        )  # fmt: skip
        if "=>" in done.stdout:
            break
    assert "=>" in done.stdout, done.stdout + done.stderr
    found = re.search(r"=> ?(\{.*\})", done.stdout, re.DOTALL)
    if found:
        said = json.loads(found.group(1))
    else:
        import yaml

        said = yaml.safe_load(done.stdout.split("=>", 1)[1])
    return said["statuses"], said["reasons"]


# --- over SSH ---------------------------------------------------------------------------------------------------------

ANSWERS = [  # what Duo does, who gets in, and the call by which one knows that it was Duo
    ({"alice": "allow"}, True, "auth"),
    ({"alice": "bypass"}, True, "preauth"),
    ({"alice": "deny"}, False, "auth"),
    ({"alice": "locked"}, False, "preauth"),
    ({"alice": "enroll"}, False, "preauth"),
    ({"alice": "timeout", "hang_seconds": 5}, False, "preauth"),
    ({"alice": "500"}, False, "preauth"),
    ({"alice": "badsignature"}, False, "preauth"),
    ({"alice": "garbage"}, False, "preauth"),
    ({"certificate": "other-authority", "alice": "allow"}, False, "tls-error"),
    ({"certificate": "wrong-name", "alice": "allow"}, False, ""),
    ({"service": "closed", "alice": "allow"}, False, "closed"),
    ({"service": "silent", "alice": "allow"}, False, "silent"),
    ({"alice": "allow"}, True, "auth"),
]


@pytest.mark.parametrize(
    "state, opens, call", ANSWERS, ids=lambda part: "-".join(map(str, part.values())) if isinstance(part, dict) else ""
)
def test_over_ssh_only_a_yes_opens(target, duo, alice, state, opens, call):
    duo.says(**{**state})
    done = enter(target, alice)
    assert gets_in(done) == opens, done
    if not opens:
        # Garbage now and then ends the process that asks (Debian 12), and the connection with it.
        ended = "|^$" if "garbage" in state.values() else ""
        assert re.search(f"Permission denied|Too many authentication failures{ended}", done.stderr), done
    assert not call or duo.asked(call), "what happened did not happen because of Duo"


def test_when_nobody_listens_nobody_gets_in(host, target, duo, alice):
    duo.says(alice="allow")
    assert gets_in(enter(target, alice))
    host.check_output("systemctl stop duo-service")
    try:
        done = enter(target, alice)
        assert not gets_in(done) and "Permission denied" in done.stderr, done
    finally:
        host.check_output(
            "systemctl start duo-service; timeout 10 sh -c 'until ss -Hltn sport = :4443 | grep -q .; do sleep 0.1; done'"
        )
    assert gets_in(enter(target, alice))


def test_a_wrong_secret_key_opens_nothing(host, target, duo, alice):
    duo.says(alice="allow")
    with config(host, f"sed -i 's/^skey = .*/skey = {'0' * 40}/' {CONFIG}"):
        done = enter(target, alice)
        assert not gets_in(done) and "Permission denied" in done.stderr, done
        assert [record["signed"] for record in duo.asked("preauth")][:1] == [False]
    assert gets_in(enter(target, alice))


def test_a_key_alone_and_duo_alone_open_nothing(target, duo, alice):
    duo.says(alice="allow")
    done = enter(target, alice, "-o", "BatchMode=yes")
    assert not gets_in(done) and "Permission denied (keyboard-interactive)" in done.stderr, done
    done = enter(target, alice, "-o", "PreferredAuthentications=publickey")
    assert not gets_in(done) and "Permission denied (keyboard-interactive)" in done.stderr, done
    assert not duo.asked("preauth"), "nobody's phone rings for a key alone"
    done = enter(target, alice, "-o", "PubkeyAuthentication=no")
    assert not gets_in(done) and "Permission denied (publickey)" in done.stderr, done
    assert not duo.asked("preauth"), "nobody's phone rings for a stranger without a key"
    assert gets_in(enter(target, alice))


def test_belonging_to_no_group_spares_nobody(host, target, duo, alice, person):
    bob = person("bob", groups=("ssh-users",))  # no sudo, no password, in no group that Duo would know
    duo.says(alice="allow")
    done = enter(target, bob)
    assert not gets_in(done) and duo.asked()[0]["user"] == "bob", done
    duo.says(bob="allow")
    assert gets_in(enter(target, bob))


def test_a_passcode_is_the_right_one_or_none(host, target, duo, alice, tmp_path):
    def types(code):
        path = tmp_path / f"type-{code}"
        path.write_text(f"#!/bin/sh\necho {code}\n")
        path.chmod(0o700)
        return path

    duo.says(alice="code:123456")
    with config(host, f"sed -i 's/^autopush = yes/autopush = no/' {CONFIG}"):
        done = enter(target, alice, answer=types("654321"))
        assert not gets_in(done) and "654321" in duo.asked()[0]["arguments"].values(), done
        assert gets_in(enter(target, alice, answer=types("123456")))


def test_a_denial_is_pushed_twice_at_most(target, duo, alice):
    duo.says(alice="deny")
    options = [option for option in OPTIONS if "NumberOfPasswordPrompts" not in option]
    argv = ["ssh", "-i", alice.key, *ALONE, *options[:-1], f"alice@{target.address}", "true"]
    done = subprocess.run(argv, check=False, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=60)
    assert done.returncode == 255 and len(duo.asked()) == 2, "a client left to itself tries again until sshd has enough"


def test_every_use_of_ssh_asks(host, target, duo, alice, tmp_path):
    """A command, a file transfer, a connection for forwarding only; a shared connection asks once, for all within it."""

    def sftp():
        argv = ["sftp", "-i", alice.key, *ALONE, *OPTIONS, f"alice@{target.address}"]
        return subprocess.run(argv, check=False, capture_output=True, text=True, input="pwd\n", timeout=60)

    forward = ("-N", "-L", "127.0.0.1:18022:127.0.0.1:22")
    duo.says(alice="deny")
    done = ssh(target, "alice", alice.key, "id")
    assert done.returncode == 255 and len(duo.asked()) == 1, done
    done = sftp()
    assert done.returncode == 255 and "Permission denied" in done.stderr and len(duo.asked()) == 2, done
    done = ssh(target, "alice", alice.key, options=(*ALONE, *forward))
    assert done.returncode == 255 and "Permission denied" in done.stderr and len(duo.asked()) == 3, done

    duo.says(alice="allow")
    assert ssh(target, "alice", alice.key, "id", "-un").stdout == "alice\n"
    done = sftp()
    assert done.returncode == 0 and "/home/alice" in done.stdout, done
    with pytest.raises(subprocess.TimeoutExpired):  # it is in, and stays
        ssh(target, "alice", alice.key, options=(*ALONE, *forward), timeout=3)
    assert len(duo.asked()) == 3

    duo.says(alice="allow")
    shared = ("-o", f"ControlPath={tmp_path}/shared")
    assert (
        ssh(
            target, "alice", alice.key, "true", options=("-o", "ControlMaster=auto", "-o", "ControlPersist=20", *shared)
        ).returncode
        == 0
    )
    duo.says(alice="deny")
    assert ssh(target, "alice", alice.key, "id", "-un", options=shared).stdout == "alice\n", "one factor a connection"
    assert not duo.asked()
    ssh(target, "alice", alice.key, options=("-O", "exit", *shared))
    assert ssh(target, "alice", alice.key, "id", "-un", options=shared).returncode == 255 and duo.asked()


def test_penalties_can_fake_a_denial(host, target, duo, alice):
    """Debian 13's sshd shuts an address out after failures: then a yes of Duo is refused as well, and nobody asked Duo.

    That is why refusals here are told by what Duo was asked, and why these addresses are spared on the real server.
    """
    new = target.platform == "debian13"
    lines = ["Port 2022", "PidFile none", "PerSourcePenalties authfail:30 min:1", "PerSourcePenaltyExemptList 192.0.2.1"]
    lines = [*lines[: None if new else 2], "Include /etc/ssh/sshd_config.d/00-bulwark.conf"]
    host.check_output(f"printf '%s\\n' {' '.join(map(shlex.quote, lines))} >/run/second_sshd")
    host.check_output("systemd-run --quiet --collect --unit=second-sshd /usr/sbin/sshd -D -f /run/second_sshd")
    host.check_output("timeout 10 sh -c 'until ss -Hltn sport = :2022 | grep -q .; do sleep 0.1; done'")
    try:
        duo.says(alice="deny")
        ssh(target, "alice", alice.key, "true", port=2022)
        assert duo.asked(), "this one was Duo's"
        duo.says(alice="allow")
        done = ssh(target, "alice", alice.key, "echo", "I am in", port=2022)
        assert gets_in(done) != new, done
        assert bool(duo.asked()) != new, "a refusal that is not Duo's"
    finally:
        host.run("systemctl stop second-sshd; rm -f /run/second_sshd")
    assert gets_in(enter(target, alice)), "the real server spares this address"


# --- sudo, su, console, cron --------------------------------------------------------------------------------------------


def test_sudo_asks_in_both_its_ways(host, duo, alice):
    for words in ("id -un", "-i id -un"):
        duo.says(alice="allow")
        done = sudo(host, words)
        assert "root" in done.stdout.split() and len(duo.asked()) == 1, done
        duo.says(alice="deny")
        done = sudo(host, words)
        assert done.rc == 1 and "root" not in done.stdout.split() and len(duo.asked()) == 1, done
        duo.says(alice="allow")
        done = sudo(host, words, password="wrong")
        assert done.rc == 1 and not duo.asked(), "no phone rings for a wrong password"
    done = host.run("runuser -u alice -- sudo -n id -un")
    assert done.rc == 1 and "a password is required" in done.stderr and not duo.asked(), done


def test_sudo_asks_again_when_its_time_is_over(host, duo, alice):
    again = "echo '{0}' | sudo -S -p '' true && sleep {1} && sudo -n id -un"
    duo.says(alice="allow")
    done = host.run(f"runuser -u alice -- sh -c {shlex.quote(again.format(PASSWORD, 0))}")
    assert "root" in done.stdout and len(duo.asked()) == 1, "within its time it does not ask again"
    host.check_output("echo 'Defaults timestamp_timeout = 0.01' >/etc/sudoers.d/zzz && chmod 0440 /etc/sudoers.d/zzz")
    try:
        done = host.run(f"runuser -u alice -- sh -c {shlex.quote(again.format(PASSWORD, 1))}")
        assert done.rc == 1 and "a password is required" in done.stderr, done
    finally:
        host.check_output("rm /etc/sudoers.d/zzz")
    assert "Authentication timestamp timeout: 5.0 minutes" in host.check_output("sudo -V")


def test_console_and_su_ask(host, duo, alice):
    greet = "echo I am $(id -un); exit"
    ways = {
        "console": f"python3 /root/drive.py 12 login: alice '[Pp]assword:' '{PASSWORD}' '[$] $' '{greet}' -- login",
        "su": f"python3 /root/drive.py 8 '[Pp]assword:' '{PASSWORD}' -- runuser -u nobody -- su alice -c 'echo I am $(id -un)'",
    }
    for way, command in ways.items():
        asked = "alice" if way == "console" else "nobody"  # su asks the one who runs it, whose phone is at hand
        duo.says(**{asked: "allow"})
        done = host.run(command)
        assert "I am alice" in done.stdout and [record["user"] for record in duo.asked()] == [asked], (way, done)
        duo.says()
        done = host.run(f"timeout 6 {command}")
        assert "I am alice" not in done.stdout and [record["user"] for record in duo.asked()] == [asked], (way, done)


CRON = """
import ctypes
pam, handle = ctypes.CDLL("libpam.so.0"), ctypes.c_void_p()
class Talk(ctypes.Structure):
    _fields_ = [("conversation", ctypes.c_void_p), ("data", ctypes.c_void_p)]
assert pam.pam_start(b"cron", b"alice", ctypes.byref(Talk()), ctypes.byref(handle)) == 0
print(pam.pam_acct_mgmt(handle, 0), pam.pam_setcred(handle, 2))
"""


def test_work_without_anybody_goes_on(host, duo, alice):
    """Timed jobs and root's own su are not logins: nobody is there to be asked. cron only wants account and credentials."""
    duo.says()
    assert host.check_output("su alice -c 'id -un'") == "alice"
    assert host.check_output(f"python3 -c {shlex.quote(CRON)}") == "0 0"
    with config(host, f"rm {CONFIG}"):
        assert host.check_output(f"python3 -c {shlex.quote(CRON)}") == "0 0", "and they go on when the guard refuses logins"
    assert not duo.asked("preauth")


# --- failing closed -----------------------------------------------------------------------------------------------------

SPOILT = {
    "missing": f"rm {CONFIG}",
    "readable to others": f"chmod 0644 {CONFIG}",
    "somebody else's": f"chown nobody {CONFIG}",
    "a link": f"mv {CONFIG} /root/elsewhere.conf && ln -s /root/elsewhere.conf {CONFIG}",
    "a line unknown to pam_duo before failmode": f"sed -i 's/^\\[duo\\]/[duo]\\nunknown = 1/' {CONFIG}",
    "altered to fail open": f"sed -i 's/secure/safe/' {CONFIG}",
    "unchecked certificates": f"echo 'noverify = 1' >>{CONFIG}",
    "only a group is asked": f"echo 'groups = nobody' >>{CONFIG}",
    "empty": f": >{CONFIG}",
    "authorities gone": f"sed -i 's/^cafile = .*/cafile = \\/nonexistent/' {CONFIG}",
}
# What lets everybody in if pam_duo is left to itself; the rest it refuses by itself, or would let in the day Duo is away.
OPENS_BARE = ("missing", "readable to others", "a line unknown to pam_duo before failmode", "only a group is asked", "empty")


def test_a_configuration_that_is_not_sound_lets_nobody_in(host, target, duo, alice):
    duo.says(alice="allow")
    for spoilt, command in SPOILT.items():
        before = len(refused_by_guard(host))
        with config(host, command):
            done = enter(target, alice)
            assert not gets_in(done) and "Permission denied" in done.stderr, (spoilt, done)
            if spoilt in ("missing", "readable to others"):
                done = sudo(host, "id -un")
                assert done.rc == 1 and "root" not in done.stdout.split(), (spoilt, done)
        assert not duo.asked("preauth"), (spoilt, "the guard comes first")
        logged = refused_by_guard(host)[before:]
        assert logged and all(re.fullmatch(rf"refusing logins: {CONFIG} \S.*", line) for line in logged), (spoilt, logged)
    assert gets_in(enter(target, alice))


def test_without_the_guard_it_would_fail_open(host, target, duo, alice):
    """The trap is real: the same configurations, pam_duo alone, Duo saying no."""
    bare = f"auth required pam_duo.so conf={CONFIG}\\naccount required pam_permit.so\\nsession required pam_permit.so\\n"
    host.check_output("cp -a /etc/pam.d/su /root/su.kept")
    try:
        host.check_output(f"printf '{bare}' >/etc/pam.d/su")
        duo.says(alice="deny")
        ask = "python3 /root/drive.py 6 -- runuser -u nobody -- su alice -c 'echo I am $(id -un)'"
        assert "I am alice" not in host.run(ask).stdout and duo.asked(), "a sound configuration is obeyed"
        for spoilt in OPENS_BARE:
            with config(host, SPOILT[spoilt]):
                assert "I am alice" in host.run(ask).stdout, spoilt
    finally:
        host.check_output("cp -a /root/su.kept /etc/pam.d/su")


# --- who is not asked -----------------------------------------------------------------------------------------------------


def inside(host, key, name, source, *words):
    """Come in over SSH from an address of the host itself."""
    options = (
        "-o IdentitiesOnly=yes -o UserKnownHostsFile=/dev/null -o StrictHostKeyChecking=no -o LogLevel=ERROR -o BatchMode=yes"
    )
    command = f"ssh -i {key} -b {source} {options} {name}@127.0.0.1 {' '.join(map(shlex.quote, words))}"
    return host.run(f"{command}; code=$?; [ $code -ne 255 ] || code=254; exit $code")  # 255 would look like the way to the host


def put_key(host, path, text):
    """Have a private key on the host for a moment."""
    host.check_output(f"umask 077; printf '%s\\n' {shlex.quote(text.strip())} >{path}")


def test_automation_comes_in_from_its_address_only(host, target, duo):
    duo.says()
    assert ssh(target, "deploy", target.key, "sudo", "-n", "id", "-un").stdout == "root\n"
    put_key(host, "/root/deploy.key", Path(target.key).read_text())
    try:
        done = inside(host, "/root/deploy.key", "deploy", "127.0.0.1", "true")
        assert done.rc == 254 and "Permission denied" in done.stderr, done
        assert "User deploy from 127.0.0.1 not allowed" in host.check_output("journalctl -q -o cat -u ssh -n 50")
    finally:
        host.check_output("rm /root/deploy.key")
    assert not duo.asked("preauth")


def test_who_skips_duo_by_sudo_or_key_is_named(host, target, duo, alice):
    host.check_output(
        "echo 'alice ALL = NOPASSWD: /usr/bin/apt-get' >/etc/sudoers.d/60-alice && chmod 0440 /etc/sudoers.d/60-alice;"
        "printf 'Match User jdoe Address 10.1.2.3\\n  AuthenticationMethods publickey\\n' >/etc/ssh/sshd_config.d/00-a.conf"
    )
    try:
        duo.says(**{"*": "allow"})
        statuses, reasons = assess(target)
    finally:
        host.check_output("rm /etc/sudoers.d/60-alice /etc/ssh/sshd_config.d/00-a.conf")
    assert statuses["duo.nobody_skips"] == "fail"
    assert "alice: sudo without being asked: /usr/bin/apt-get" in reasons["duo.nobody_skips"]
    assert "jdoe: SSH with a key alone from 10.1.2.3" in reasons["duo.nobody_skips"]


def test_declared_accounts_are_exceptions_that_somebody_approved(target, duo):
    duo.says(**{"*": "allow"})
    exception = {
        "control": "duo.no_exceptions", "approver": "A. Officer", "approver_role": "security_officer", "reason": "Automation",
        "compensating": "Key only, from one address", "ticket": "T-1", "expires": "2099-01-01",
    }  # fmt: skip
    statuses, _reasons = assess(target, exception)
    assert statuses["duo.no_exceptions"] == "exception" and statuses["duo.nobody_skips"] == "pass"
    statuses, reasons = assess(target, {**exception, "expires": "2020-01-01"})
    assert statuses["duo.no_exceptions"] == "fail" and "deploy" in reasons["duo.no_exceptions"]


# --- the sealed account -----------------------------------------------------------------------------------------------------


def rotate(target, directory):
    """Run the playbook and return (its output, the page's text, the private key on it)."""
    done = play(
        target, "ansible-playbook", "playbooks/rotate_break_glass.yml", "-v", "-e", f"@{ROOT}/molecule/duo/vars.yml",
        "-e", json.dumps({"bulwark_hosts": target.name, "bulwark_break_glass_dir": str(directory)}),
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
    (page,) = directory.rglob("break-glass.html")
    lines = re.search(r"<pre>\n(.*)</pre>", page.read_text(), re.DOTALL).group(1).splitlines()
    return done.stdout + done.stderr, page, "\n".join(line[:72].rstrip() for line in lines)


@pytest.fixture(scope="module")
def paper(target, duo, tmp_path_factory):
    """The key of the sealed account, from its first rotation."""
    return rotate(target, tmp_path_factory.mktemp("paper"))


def test_the_sealed_account_opens_from_its_address_only(host, target, duo, paper):
    duo.says()
    put_key(host, "/root/paper.key", paper[2])
    done = inside(host, "/root/paper.key", "sealed", "127.0.0.1", "true")
    assert done.rc == 254 and "Permission denied" in done.stderr, done
    # An address that sshd's rule would let in is refused by the key itself, which names its addresses, too.
    assert 'from="127.0.0.9/32"' in host.file("/home/sealed/.ssh/authorized_keys").content_string
    assert not host.file("/var/lib/bulwark/break_glass/used").exists, "a refusal is no use"


def test_the_sealed_account_raises_the_alarm(host, target, duo, paper):
    """It opens although Duo is away, becomes root, and everybody hears of it."""
    put_key(host, "/root/paper.key", paper[2])
    duo.says(service="closed")
    done = inside(host, "/root/paper.key", "sealed", "127.0.0.9", "sudo", "-n", "id", "-un")
    assert done.stdout == "root\n", done
    alarm = host.check_output("journalctl -q -o json -t bulwark-break-glass -n 1")
    assert (
        json.loads(alarm)["PRIORITY"] == "1" and "bulwark-break-glass used: service=sshd account=sealed from=127.0.0.9" in alarm
    )
    assert "service=sshd account=sealed from=127.0.0.9" in host.check_output("cat /var/lib/bulwark/break_glass/used")
    duo.says(**{"*": "allow"})
    statuses, reasons = assess(target)
    assert statuses["duo.break_glass_sealed"] == "fail" and "uses == 0" in reasons["duo.break_glass_sealed"]
    assert statuses["duo.break_glass_watched"] == "pass"


def test_rotation_seals_it_again(host, target, duo, paper, tmp_path):
    duo.says(**{"*": "allow"})
    output, page, key = rotate(target, tmp_path)
    try:
        put_key(host, "/root/paper.key", paper[2])
        put_key(host, "/root/new.key", key)
        assert page.stat().st_mode & 0o777 == 0o600 and page.parent.stat().st_mode & 0o777 == 0o700
        assert [path.name for path in page.parent.iterdir()] == ["break-glass.html"], "no other copy of the key is left"
        for text in (output, paper[0]):
            assert "OPENSSH PRIVATE KEY" not in text and not any(line in text for line in key.splitlines()[1:-1])
            assert str(page.parent.parent) in output
        done = inside(host, "/root/paper.key", "sealed", "127.0.0.9", "true")
        assert done.rc == 254 and "Permission denied" in done.stderr, "the old key is refused"
        statuses, reasons = assess(target)
        assert statuses["duo.break_glass_sealed"] == "pass", reasons
        assert inside(host, "/root/new.key", "sealed", "127.0.0.9", "id", "-un").stdout == "sealed\n", "the new one opens"
    finally:
        host.check_output("rm -f /root/paper.key /root/new.key /var/lib/bulwark/break_glass/used")  # as if it had not been used


# --- what the role refuses, keeps to itself, and takes back -------------------------------------------------------------------


@contextlib.contextmanager
def refuses(target, *words, **variables):
    """Expect the role to fail with words in what it says."""
    with pytest.raises(pytest.fail.Exception) as refused:
        target.reapply(**variables)
    said = re.sub(r"[\s|│]+", " ", str(refused.value))
    for word in words:
        assert word in said, said
    assert "changed=0" in said, "something changed before it was refused"
    yield said


def test_the_role_refuses_to_shut_anybody_out(host, target, duo, alice):
    duo.says(alice="allow")
    host.check_output("cp -a /etc/pam.d/common-auth /root/common-auth.kept")
    host.check_output("sed -i '/the fallback if no/i auth sufficient pam_localuser.so' /etc/pam.d/common-auth")
    host.check_output("printf 'AuthenticationMethods publickey\\nLoginGraceTime 10\\n' >/etc/ssh/sshd_config.d/00-a.conf")
    try:
        with refuses(
            target, "pam-auth-update would not touch it", "pam_localuser.so", "sshd does not ask for a key and then for what",
            "sshd gives up after 10 seconds", "there is no account nobody_has",
            duo_break_glass={"name": "nobody_has", "from": ["127.0.0.9/32"]},
        ):  # fmt: skip
            pass
    finally:
        host.check_output("rm /etc/ssh/sshd_config.d/00-a.conf; cp -a /root/common-auth.kept /etc/pam.d/common-auth")
    assert gets_in(enter(target, alice))


def test_wrong_keys_and_impostors_are_found_beforehand(host, target, duo):
    duo.says(certificate="other-authority")
    with refuses(target, "Duo cannot be used", "an authority that is not believed"):
        pass
    duo.says(certificate="good")
    with refuses(target, "the secret key does not belong to the integration key (40103)", duo_secret_key="0" * 40) as said:
        assert "0" * 40 not in said.partition("PLAY [")[2]
    duo.says(clock_offset_seconds=4000)
    statuses, reasons = assess(target)
    assert statuses["duo.service"] == "fail" and "problem" in reasons["duo.service"]
    assert SECRET in host.check_output(f"cat {CONFIG}"), "the right key is still in place"
    duo.says(**{"*": "allow"})


def test_the_secret_key_stays_where_it_is(host, target, duo, alice, tmp_path):
    duo.says(alice="allow")
    began = host.check_output("date +%s")
    host.check_output(
        "systemd-run --quiet --collect --unit=argv-watch sh -c 'while sleep 0.05; do cat /proc/[0-9]*/cmdline; done >/run/argv'"
    )
    try:
        assert gets_in(enter(target, alice))
        host.check_output(f"sed -i 's/^prompts = .*/prompts = 2/' {CONFIG}")
        state = os.environ["MOLECULE_EPHEMERAL_DIRECTORY"]
        extra = {"targets": target.name, "role": "duo", "scenario_dir": str(ROOT / "molecule" / "duo")}
        done = play(target, "ansible-playbook", "-vv", "--diff", "-e", json.dumps(extra), "molecule/shared/converge.yml")
        assert done.returncode == 0 and "changed=1" in done.stdout, done.stdout[-2000:]
        assess(target, run_dir=tmp_path)
    finally:
        host.check_output("systemctl stop argv-watch")
    assert SECRET not in done.stdout + done.stderr
    for path in [path for path in [*tmp_path.rglob("*"), *Path(state).glob("*.json")] if path.is_file()]:
        assert SECRET not in path.read_text(errors="replace"), path
    assert any(tmp_path.rglob("*.json")), "there is evidence to look at"
    assert host.run(f"grep -a -c -e '{SECRET}' /run/argv").rc == 1
    # this very test names the key to the shell that searches for it, so only what others logged counts
    assert (
        host.run(f"journalctl -q -o cat --since @{began} | grep -v -e grep -e testinfra | grep -c '{SECRET}'").stdout.strip()
        == "0"
    )
    assert oct(host.file(CONFIG).mode) == "0o600" and host.file(CONFIG).user == "root"


def test_the_packages_own_profile_is_switched_off_again(host, target, duo, alice):
    host.check_output("DEBIAN_FRONTEND=noninteractive pam-auth-update --package --enable duo-unix --disable bulwark-duo")
    duo.says(**{"*": "allow"})
    statuses, reasons = assess(target)
    assert statuses["duo.every_service"] == "fail", reasons
    target.reapply()
    assert assess(target)[0]["duo.every_service"] == "pass"


def test_it_can_be_taken_back(host, target, duo, alice):
    target.reapply(duo_state="absent")
    try:
        # but for the list of profiles that pam-auth-update ever saw, in which the package's own stays as the package does
        assert host.run("diff -r /root/pam.d /etc/pam.d && diff -r --exclude=seen /root/pam /var/lib/pam").stdout == ""
        for path in (CONFIG, "/usr/local/lib/bulwark/duo_config_check", "/etc/sudoers.d/zz-bulwark-duo"):
            assert not host.file(path).exists, path
        duo.says()
        assert "root" in sudo(host, "id -un").stdout.split() and not duo.asked("preauth"), "nobody is asked any more"
    finally:
        duo.says(**{"*": "allow"})
        target.reapply()
    duo.says(alice="allow")
    assert gets_in(enter(target, alice)) and duo.asked()
