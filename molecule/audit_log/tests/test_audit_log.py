# SPDX-License-Identifier: GPL-3.0-or-later
"""Proofs of the audit_log role: what people do is found in the journal, under their own names, and root cannot switch it off.

The journal is where it is looked for, because from there it leaves the host. Each proof notes how far the journal is, does
something as a person over SSH, and waits for the events that came since. An event is all records of one serial number.
"""

from __future__ import annotations

import re
import subprocess
import threading
import time

import pytest

RECORD = re.compile(r"(?:node=(?P<node>\S+) )?type=(?P<type>\w+) msg=audit\((?P<time>\d+\.\d+):(?P<serial>\d+)\): ?(?P<rest>.*)")
FIELD = re.compile(r"""([\w-]+)=("[^"]*"|'[^']*'|[^\s']+)""")
GATEWAY = "10.0.2.2"  # where connections come from, as a guest of QEMU sees it


class Event:
    """One event: what its records say."""

    def __init__(self, node: str, when: str) -> None:
        self.node, self.time = node, float(when)
        self.types: set[str] = set()
        self.fields: dict[str, str] = {}
        self.names: set[str] = set()
        self.text = ""

    def add(self, kind: str, rest: str) -> None:
        """Take one record; of a field that several records have, the first counts."""
        self.types.add(kind)
        self.text += rest + "\n"
        plain = rest.replace("msg='", "").replace("\x1d", " ")
        for name, value in FIELD.findall(plain):
            if name in ("acct", "name") and re.fullmatch(r"(?:[0-9A-F]{2}){4,}", value):
                value = bytes.fromhex(value).decode(errors="replace")  # what holds a blank comes in this form
            value = value.strip("\"'")
            self.fields.setdefault(name, value)
            if kind in ("PATH", "KERN_MODULE") and name == "name":
                self.names.add(value)

    def says(self, **wanted: str) -> bool:
        """Return whether the fields have these values (``type_`` is one of the records, ``name`` a path or the module)."""
        kind, name = wanted.pop("type_", None), wanted.pop("name", None)
        fits = all(self.fields.get(key) == value for key, value in wanted.items())
        return fits and (kind is None or kind in self.types) and (name is None or name in self.names)


class Journal:
    """The copy of the events that leaves the host, followed over one connection: each question costs an emulated host seconds."""

    def __init__(self, host, target) -> None:
        self.host = host
        self.all: list[str] = []
        self.since = 0
        follow = [*target.automation().ssh_argv(), "sudo journalctl -q -a -n 0 -f -o cat -t audispd -t auditd -t mark"]
        self.process = subprocess.Popen(follow, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True)
        threading.Thread(target=self._read, daemon=True).start()
        # It takes a moment until journalctl looks.
        self.until(lambda: self.host.check_output("logger -t mark here") or self.all, lambda: "nothing comes from the journal")

    def _read(self) -> None:
        for line in self.process.stdout:
            self.all.append(line.rstrip("\n"))

    def until(self, look, otherwise, seconds: float = 60):
        """Wait until ``look`` returns something and return it; fail with what ``otherwise`` returns.

        ``seconds`` is for emulated hosts on a busy machine, where auditd itself may come late to the processor.
        """
        end = time.monotonic() + seconds
        while not (found := look()):
            assert self.process.poll() is None, "the connection that follows the journal has ended"
            if time.monotonic() > end:
                pytest.fail(otherwise())
            time.sleep(0.3)
        return found

    def mark(self) -> None:
        """Look only at what comes from now on."""
        name = f"mark {len(self.all)}"  # which no line before is
        self.host.check_output(f"logger -t mark {name}")
        self.until(lambda: name in self.all, lambda: f"{name} does not come")
        self.since = self.all.index(name)

    def lines(self) -> list[str]:
        """Return the lines since the mark."""
        return self.all[self.since :]

    def said(self, words: str) -> list[str]:
        """Return what auditd itself said since the mark with these words (a pattern)."""
        return [line for line in self.lines() if re.search(words, line) and not RECORD.match(line)]

    def events(self) -> dict[str, Event]:
        """Return the events since the mark by serial number."""
        found: dict[str, Event] = {}
        for line in self.lines():
            if record := RECORD.match(line):
                event = found.setdefault(record["serial"], Event(record["node"] or "", record["time"]))
                event.add(record["type"], record["rest"])
        return found

    def find(self, seconds: float = 60, **wanted: str) -> Event:
        """Wait for an event whose fields have these values and return it; fail with what came instead."""

        def came() -> str:
            events = self.events().values()
            keys = {e.fields.get("key", "-") + " " + e.fields.get("AUID", "-") + " " + "+".join(sorted(e.types)) for e in events}
            return f"no event with {wanted} among {len(events)}:\n" + "\n".join(sorted(keys))[:3000]

        return self.until(lambda: next((e for e in self.events().values() if e.says(**wanted)), None), came, seconds)


@pytest.fixture(scope="module")
def journal(host, target):
    """The journal of the host under test."""
    followed = Journal(host, target)
    yield followed
    followed.process.terminate()


@pytest.fixture(scope="module")
def alice(host, resident):
    """Somebody who may become root."""
    made = resident("alice")
    host.check_output("echo 'alice ALL=(ALL:ALL) NOPASSWD: ALL' >/etc/sudoers.d/99-alice && chmod 0440 /etc/sudoers.d/99-alice")
    yield made
    host.check_output("rm /etc/sudoers.d/99-alice")


@pytest.fixture(scope="module")
def mallory(resident):
    """Somebody who may nothing."""
    return resident("mallory")


def do(person, command: str, *options: str) -> subprocess.CompletedProcess:
    """Run a command as a person over SSH; it may fail."""
    return subprocess.run([*person.ssh_argv(*options), command], check=False, capture_output=True, text=True, timeout=120)


# --- who, when, from where ------------------------------------------------------------------------------------------------


def test_ssh_login_is_found_with_its_address(journal, alice, host):
    """A login over SSH: host, time, person, terminal, address and result, and the number all that follows is known by."""
    journal.mark()
    assert do(alice, "true").returncode == 0
    event = journal.find(type_="USER_START", acct="alice", terminal="ssh", res="success")
    assert event.fields["addr"] == GATEWAY
    assert event.fields["AUID"] == "alice"
    assert event.node == host.check_output("hostname")
    assert abs(event.time - float(host.check_output("date +%s"))) < 120
    journal.find(type_="LOGIN", AUID="alice", res="1")


def test_failed_login_is_found_with_its_address(journal, alice, mallory):
    """A login that is refused, of somebody who is there and of somebody who is not."""
    journal.mark()
    strangers = [
        [*alice.ssh_argv()[:-1], f"nobody-at-all@{alice.target.address}"],
        [*mallory.ssh_argv()[:2], alice.key, *mallory.ssh_argv()[3:]],
    ]
    for argv in strangers:
        done = subprocess.run([*argv, "true"], check=False, capture_output=True, text=True, timeout=60)
        assert done.returncode == 255
    for acct in ("(invalid user)", "mallory"):
        event = journal.find(type_="USER_LOGIN", acct=acct, res="failed")
        assert event.fields["addr"] == GATEWAY
        assert event.fields["terminal"] == "sshd"


def test_sudo_and_su_keep_the_real_user(journal, alice):
    """What alice does through sudo, su and both is recorded as hers, with what she became."""
    journal.mark()
    done = do(alice, "sudo /usr/bin/id; sudo su - mallory -c /usr/bin/whoami; sudo su - -c 'cat /proc/self/loginuid'", "-tt")
    assert done.returncode == 0, done.stderr
    event = journal.find(key="bulwark_privileged", exe="/usr/bin/id", AUID="alice", EUID="root", success="yes")
    assert event.fields["tty"].startswith("pts")
    event = journal.find(key="bulwark_privileged", exe="/usr/bin/whoami", AUID="alice", UID="mallory")
    journal.find(type_="USER_CMD", AUID="alice", res="success")
    journal.find(type_="USER_START", AUID="alice", acct="mallory", exe="/usr/bin/su")
    assert done.stdout.split()[-1] == str(event.fields["auid"])


def test_failed_sudo_and_su_are_found(journal, mallory):
    """Somebody without rights who tries sudo and su: what they tried, and that it failed."""
    journal.mark()
    assert do(mallory, "echo wrong | sudo -S /usr/bin/id").returncode != 0
    assert do(mallory, "echo wrong | su - -c id").returncode != 0
    journal.find(key="bulwark_privileged", exe="/usr/bin/sudo", AUID="mallory")
    journal.find(key="bulwark_privileged", exe="/usr/bin/su", AUID="mallory")
    journal.find(type_="USER_AUTH", AUID="mallory", exe="/usr/bin/sudo", res="failed")
    journal.find(type_="USER_AUTH", AUID="mallory", exe="/usr/bin/su", res="failed")


def test_nobody_changes_who_they_are(alice, host):
    """Not even root can take on another login's name."""
    done = do(alice, "sudo sh -c 'echo 12345 >/proc/self/loginuid'; sudo cat /proc/self/loginuid")
    assert done.stdout.strip() == host.check_output("id -u alice")


# --- what they do ---------------------------------------------------------------------------------------------------------


def test_new_account_is_found(journal, alice, host):
    """An account with the number of root, made with useradd and by hand."""
    journal.mark()
    try:
        assert do(alice, "sudo useradd --non-unique --uid 0 --no-create-home toor").returncode == 0
        journal.find(type_="ADD_USER", AUID="alice", res="success")
        event = journal.find(key="bulwark_accounts", AUID="alice", name="/etc/passwd", success="yes")
        assert event.fields["exe"] == "/usr/sbin/useradd"
        journal.mark()
        assert do(alice, "sudo sh -c 'echo x >>/etc/group; sed -i /^x$/d /etc/group'").returncode == 0
        journal.find(key="bulwark_accounts", AUID="alice", name="/etc/group")
    finally:
        host.check_output("sed -i /^toor:/d /etc/passwd /etc/shadow; rm -f /etc/group- ")


def test_changed_configuration_is_found(journal, alice, host):
    """Edits of sudoers, of a unit and of the trail's own configuration, new files and replaced ones."""
    journal.mark()
    for path in ("/etc/sudoers.d/99-more", "/etc/systemd/system/more.service", "/etc/cron.d/more", "/usr/local/sbin/more"):
        assert do(alice, f"sudo sh -c 'echo \"#\" >{path}; mv {path} {path}2; rm {path}2'").returncode == 0
        event = journal.find(key="bulwark_config", AUID="alice", name=path, success="yes")
        assert event.fields["EUID"] == "root"
    assert (
        do(alice, "sudo sh -c 'echo >>/etc/audit/bulwark/auditd.conf; sed -i \\$d /etc/audit/bulwark/auditd.conf'").returncode
        == 0
    )
    journal.find(key="bulwark_logtools", AUID="alice", name="/etc/audit/bulwark/auditd.conf")
    assert host.file("/etc/audit/bulwark/auditd.conf").content_string.endswith("\n")


def test_clock_change_is_found(journal, alice, host):
    """Somebody sets the clock, by a hundredth of a second."""
    journal.mark()
    assert do(alice, "sudo date --set=+0.01seconds").returncode == 0
    event = journal.find(key="bulwark_time", AUID="alice", success="yes")
    assert event.fields["exe"] == "/usr/bin/date"


def test_module_is_found(journal, alice, host):
    """A module is loaded and unloaded; its name is in the record, and not only that of another one that it needs."""
    journal.mark()
    module = host.check_output(
        "find /lib/modules/$(uname -r)/kernel -name 'dummy.ko*' -o -name 'nlmon.ko*' -o -name 'bonding.ko*' | head -n 1"
    )
    name = module.rsplit("/", 1)[-1].split(".")[0]
    assert do(alice, f"sudo modprobe {name} && sudo modprobe -r {name}").returncode == 0
    event = journal.find(key="bulwark_modules", AUID="alice", type_="KERN_MODULE", success="yes", name=name)
    assert event.fields["exe"] == "/usr/bin/kmod"


def test_mount_is_found(journal, alice):
    """A medium (a file with a file system) is mounted and unmounted; where, is in the record."""
    made = "truncate -s 4M /tmp/m && /usr/sbin/mke2fs -q -F /tmp/m && sudo mount -o loop /tmp/m /mnt && sudo umount /mnt"
    journal.mark()
    assert do(alice, made).returncode == 0
    event = journal.find(key="bulwark_mounts", AUID="alice", name="/mnt", success="yes")
    assert event.fields["exe"] == "/usr/bin/mount"
    journal.find(key="bulwark_mounts", AUID="alice", exe="/usr/bin/umount")


def test_deletion_and_permissions_are_found(journal, alice):
    """A file's mode, owner and name change, then it is deleted."""
    journal.mark()
    assert (
        do(
            alice, "cd /tmp && echo >mine && chmod 0666 mine && mv -f mine yours && sudo chown root yours && sudo rm yours"
        ).returncode
        == 0
    )
    assert journal.find(key="bulwark_permissions", AUID="alice", exe="/usr/bin/chmod").says(name="mine")
    assert journal.find(key="bulwark_permissions", AUID="alice", exe="/usr/bin/chown").says(EUID="root")
    assert journal.find(key="bulwark_deletions", AUID="alice", exe="/usr/bin/mv").says(name="yours")
    event = journal.find(key="bulwark_deletions", AUID="alice", exe="/usr/bin/rm", name="yours")
    assert "DELETE" in event.text


def test_sensitive_read_has_every_field(journal, alice, host):
    """Sensitive data is read, written and given away: time, host, person, terminal, object and result can be found again."""
    journal.mark()
    assert (
        do(
            alice,
            "sudo cat /srv/patients/1.txt; sudo sh -c 'echo more >>/srv/register.csv'; sudo chmod g+r /srv/register.csv",
            "-tt",
        ).returncode
        == 0
    )
    event = journal.find(key="bulwark_sensitive", AUID="alice", name="/srv/patients/1.txt", exe="/usr/bin/cat")
    for field in ("auid", "uid", "UID", "GID", "ses", "tty", "comm", "exe", "success", "SYSCALL", "cwd", "inode", "OUID"):
        assert field in event.fields, field
    assert event.node == host.check_output("hostname")
    assert event.fields["success"] == "yes"
    journal.find(key="bulwark_sensitive", AUID="alice", name="/srv/register.csv", comm="sh")
    journal.find(key="bulwark_sensitive", AUID="alice", name="/srv/register.csv", exe="/usr/bin/chmod")
    # The same with the log's own tool, as docs.md has it.
    found = host.check_output("ausearch --input-logs -i -k bulwark_sensitive -ua alice -f /srv/patients")
    assert "/srv/patients/1.txt" in found
    host.check_output("chmod 0600 /srv/register.csv")


def test_denied_access_is_found(journal, mallory):
    """Somebody without rights tries to read sensitive data, a shadow file, and to list what is closed."""
    journal.mark()
    for path in ("/srv/patients/1.txt", "/srv/register.csv", "/etc/shadow"):
        assert do(mallory, f"cat {path}").returncode != 0
    for key, path in (
        ("bulwark_sensitive", "/srv/patients/1.txt"),
        ("bulwark_sensitive", "/srv/register.csv"),
        ("bulwark_denied", "/etc/shadow"),
    ):
        event = journal.find(key=key, AUID="mallory", name=path, success="no")
        assert event.fields["exit"] == "-13"


def test_browsing_of_others_is_found(journal, alice, mallory):
    """An administrator reads what is in somebody else's home; reading one's own is nobody's business."""
    assert do(mallory, "echo diary >~/diary && chmod 0600 ~/diary").returncode == 0
    journal.mark()
    assert do(mallory, "cat ~/diary").returncode == 0
    assert do(alice, "sudo cat /home/mallory/diary").returncode == 0
    journal.find(key="bulwark_sensitive", AUID="alice", name="/home/mallory/diary", exe="/usr/bin/cat")
    assert not [
        e for e in journal.events().values() if e.says(key="bulwark_sensitive", AUID="mallory", name="/home/mallory/diary")
    ]


def test_transfer_of_sensitive_data_is_found(journal, alice, host, tmp_path):
    """Sensitive data leaves through sftp: which file, by whom; the login before it has the address."""
    host.check_output(
        "install -d -o alice /srv/patients/alice && echo x >/srv/patients/alice/2.txt && chown alice /srv/patients/alice/2.txt"
    )
    journal.mark()
    argv = alice.ssh_argv()
    options = [word if word != "-p" else "-P" for word in argv[1:-1]]
    done = subprocess.run(
        ["scp", *options, f"{argv[-1]}:/srv/patients/alice/2.txt", str(tmp_path / "2.txt")],
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    event = journal.find(key="bulwark_sensitive", AUID="alice", name="/srv/patients/alice/2.txt")
    assert "sftp-server" in event.fields["exe"]
    login = journal.find(type_="USER_START", AUID="alice", terminal="ssh", ses=event.fields["ses"])
    assert login.fields["addr"] == GATEWAY


def test_use_of_the_log_is_found(journal, alice):
    """Whoever looks into the log, or at its rules, is in it."""
    journal.mark()
    for command in ("ausearch --input-logs -m LOGIN", "auditctl -l", "journalctl -n 1", "cat /var/log/audit/audit.log"):
        do(alice, f"sudo {command} >/dev/null")
    for exe in ("/usr/sbin/ausearch", "/usr/sbin/auditctl", "/usr/bin/journalctl"):
        journal.find(key="bulwark_logtools", AUID="alice", exe=exe)
    journal.find(key="bulwark_logtools", AUID="alice", exe="/usr/bin/cat", name="/var/log/audit/audit.log")


# --- nobody switches it off ---------------------------------------------------------------------------------------------


def rules(host) -> str:
    """Return the kernel's rules, as one text."""
    return host.check_output("auditctl -l | sort")


def test_root_cannot_change_the_rules(journal, alice, host):
    """Root deletes, adds, loads, disables, and makes itself somebody else: nothing of it counts, and all of it is recorded."""
    before = rules(host)
    journal.mark()
    for attempt in (
        "auditctl -D", "auditctl -e 0", "auditctl -a never,exit -S all", "auditctl -A never,task", "auditctl -b 1",
        "auditctl -f 0", "auditctl -a always,exclude -F msgtype=SYSCALL", "auditctl --reset-lost", "augenrules --load",
        "auditctl -R /etc/audit/rules.d/audit.rules", "systemctl start audit-rules.service",
    ):  # fmt: skip
        do(alice, f"sudo {attempt}")  # some return 0: that says nothing
    assert rules(host) == before
    status = host.check_output("auditctl -s")
    assert re.search(r"^enabled 2$", status, re.MULTILINE)
    assert re.search(r"^backlog_limit 16384$", status, re.MULTILINE)
    assert re.search(r"^failure 1$", status, re.MULTILINE)
    journal.find(key="bulwark_logtools", AUID="alice", exe="/usr/sbin/auditctl", EUID="root")
    journal.find(type_="CONFIG_CHANGE", AUID="alice", res="0")


def test_auditd_is_not_stopped_and_comes_back(journal, alice, host):
    """A stop is refused, a kill is undone, many in a row too; and what happened in between is not lost."""
    journal.mark()
    assert do(alice, "sudo systemctl stop auditd").returncode != 0
    assert do(alice, "sudo systemctl restart auditd").returncode != 0
    for signal in ("KILL", "TERM", "KILL", "KILL", "KILL", "KILL", "KILL"):
        host.check_output("pid=$(auditctl -s | sed -n 's/^pid //p'); kill -%s $pid; " % signal
                          + "for i in $(seq 150); do now=$(auditctl -s | sed -n 's/^pid //p'); "
                            "if [ \"$now\" != 0 ] && [ \"$now\" != $pid ]; then exit 0; fi; sleep 0.1; done; exit 1")  # fmt: skip
    # Once it is dead: what the kernel had handed to it before that dies with it.
    killed = "p=$(pidof auditd); kill -KILL $p; while kill -0 $p 2>/dev/null; do :; done; touch /etc/shadow"
    assert do(alice, f"sudo sh -c '{killed}'").returncode == 0
    event = journal.find(key="bulwark_accounts", AUID="alice", name="/etc/shadow")
    assert event.fields["success"] == "yes"
    # Systemd may just be starting it again: it has a second for each try, and an emulated host is slow.
    assert host.run("for i in $(seq 60); do systemctl -q is-active auditd && exit 0; sleep 1; done; exit 1").rc == 0
    assert re.search(r"^lost 0$", host.check_output("auditctl -s"), re.MULTILINE)


def test_truncated_log_leaves_a_trace(journal, alice, host):
    """Root empties the log on the host: who did it is in the journal, with what was before."""
    journal.mark()
    assert (
        do(alice, "sudo sh -c 'echo secret >/etc/bulwark-trace; rm /etc/bulwark-trace; : >/var/log/audit/audit.log'").returncode
        == 0
    )
    event = journal.find(key="bulwark_logtools", AUID="alice", name="/var/log/audit/audit.log")
    assert event.fields["success"] == "yes"
    journal.find(key="bulwark_config", AUID="alice", name="/etc/bulwark-trace")


def test_user_without_rights_gets_nowhere(mallory, host):
    """Somebody with an account neither reads what is recorded nor decides about it."""
    for attempt in (
        "cat /var/log/audit/audit.log", "ls /var/log/audit", "/usr/sbin/auditctl -s", "/usr/sbin/auditctl -D",
        "cat /etc/audit/bulwark/audit.rules", "echo >>/etc/audit/bulwark/auditd.conf", "kill $(pidof auditd)",
        "systemctl stop auditd", "echo 0 >/proc/self/loginuid", "/usr/local/lib/bulwark/audit_rules load",
    ):  # fmt: skip
        assert do(mallory, attempt).returncode != 0, attempt


# --- room ---------------------------------------------------------------------------------------------------------------

BURST = """
import os
for number in range({count}):
    os.close(os.open(f"/srv/patients/burst-{number}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600))
"""


def test_burst_loses_nothing(journal, host):
    """Thousands of events as fast as they come: the kernel loses none, and each is in the log and in the journal.

    Six records each; auditd holds 20000 (audit_log_queue) for a journal that is slower.
    """
    count = 3000
    script = BURST.replace("{count}", str(count))
    journal.mark()
    host.check_output("python3 -c %s", script)
    wanted = {f"/srv/patients/burst-{number}" for number in range(count)}

    def missing() -> set[str]:
        return wanted - set(re.findall(r'name="(/srv/patients/burst-\d+)"', "\n".join(journal.lines())))

    journal.until(lambda: not missing(), lambda: f"{len(missing())} are missing in the journal", 180)
    distinct = "grep -o 'name=\"/srv/patients/burst-[0-9]*\"' | sort -u | wc -l"
    kept = host.check_output(f"cat /var/log/audit/audit.log* | {distinct}")
    assert int(kept) == count
    assert re.search(r"^lost 0$", host.check_output("auditctl -s"), re.MULTILINE)
    assert not journal.said("queue")
    host.check_output("find /srv/patients -name 'burst-*' -delete")


# auditd with the role's configuration, but its log on a disk with next to no room; and back.
SMALL = """
truncate -s 12M /root/small
mke2fs -q -F /root/small
mkdir -p /run/small /run/systemd/system/auditd.service.d
mount -o loop /root/small /run/small
head -c "$(( $(stat -f -c '%a * %S' /run/small) - 400000 ))" /dev/zero >/run/small/filler
cp -r /etc/audit/bulwark /run/auditd-small
sed -i s,/var/log/audit,/run/small, /run/auditd-small/auditd.conf
cd /run/systemd/system/auditd.service.d
printf '[Service]\\nExecStart=\\nExecStart=/usr/sbin/auditd -c /run/auditd-small\\n' >99-small.conf
systemctl daemon-reload
/usr/local/lib/bulwark/audit_rules apply
"""
LARGE = """
rm -r /run/systemd/system/auditd.service.d
systemctl daemon-reload
/usr/local/lib/bulwark/audit_rules apply
umount /run/small
rm -rf /root/small /run/auditd-small
"""


def test_full_disk_is_survived_and_said(journal, alice, host):
    """With no room left for the log the host goes on, says so, and goes on to pass events to the journal."""
    journal.mark()  # before auditd starts there: it may say so at once
    host.check_output("sh -ec %s", SMALL)
    try:
        host.check_output("python3 -c %s", BURST.replace("{count}", "500"))
        host.check_output("find /srv/patients -name 'burst-*' -delete")
        journal.until(lambda: journal.said("full|disk space"), lambda: "auditd says nothing of a full disk")
        journal.mark()
        assert do(alice, "sudo touch /etc/shadow").returncode == 0
        journal.find(180, key="bulwark_accounts", AUID="alice", name="/etc/shadow")  # behind the rest of the burst
        assert host.service("auditd").is_running
    finally:
        host.check_output("sh -c %s", LARGE)


# --- changing it honestly -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        (
            {
                "audit_log_sensitive_paths": ["/srv/not-there"],
                "audit_log_extra_rules": ["-a always,exit -F arch=b64 -S ptrace", "-w /etc/hosts -p w -k bulwark_config"],
                "audit_log_admin_space_left_percent": 20,
            },
            ("/srv/not-there", "has no key", "role's own", "must be below"),
        ),
        # What only the kernel's tool knows is tried with it, before the files are put in place.
        ({"audit_log_extra_rules": ["-a always,exit -F arch=b64 -S no_such_call -k mine"]}, ("unknown system calls",)),
    ],
)
def test_bad_rules_are_refused_before_anything_changes(host, target, variables, said):
    """What cannot be watched, would undo something, or is no rule never reaches the host (single values: tests/faults)."""
    before = host.check_output("sha256sum /etc/audit/bulwark/*.rules /etc/audit/bulwark/*.conf")
    with pytest.raises(pytest.fail.Exception) as refused:
        target.reapply(**variables)
    told = re.sub(r"\s+", " ", str(refused.value)).replace("''", "'")  # as YAML folds and quotes it
    for words in said:
        assert words in told, told[-3000:]
    assert host.check_output("sha256sum /etc/audit/bulwark/*.rules /etc/audit/bulwark/*.conf") == before


def test_upgrade_of_the_package_changes_nothing(host):
    """No file of the package was edited, so installing it anew asks nothing and leaves our configuration in force."""
    assert host.check_output("dpkg --verify auditd audispd-plugins libpam-modules openssh-server login cron") == ""
    before = rules(host)
    host.check_output("DEBIAN_FRONTEND=noninteractive apt-get install -y --reinstall auditd")
    assert "-c /etc/audit/bulwark" in host.check_output("tr '\\0' ' ' </proc/$(auditctl -s | sed -n 's/^pid //p')/cmdline")
    assert rules(host) == before


def test_changed_rules_wait_for_a_reboot_and_say_so(host, target):
    """New rules are written, the kernel keeps the old ones, and the program says that they wait.

    All that writes other rules in one run: a rule of the site's own, another class, and the store that a collector has. They stay
    for the next test, which takes all back: a run of the role is dear on a guest.
    """
    before = rules(host)
    host.check_output("install -d -m 0750 /var/log/bulwark-trail")
    target.reapply(
        audit_log_extra_rules=["-a always,exit -F arch=b64 -S ptrace -F auid>=1000 -F auid!=unset -k debuggers"],
        audit_log_class="high",
        bulwark_profile="collector",
    )
    try:
        assert rules(host) == before
        text = host.file("/etc/audit/bulwark/audit.rules").content_string
        for words in ("debuggers", "key=bulwark_programs", "key=bulwark_network", "-F dir=/var/log/bulwark-trail -F perm=rwa"):
            assert words in text
        done = host.run("/usr/local/lib/bulwark/audit_rules load")
        assert done.rc == 1
        for word in ("event=rules_differ", "debuggers", "bulwark_programs", "bulwark_network", "/var/log/bulwark-trail"):
            assert word in done.stderr, done.stderr
    finally:
        host.check_output("rmdir /var/log/bulwark-trail")


def test_all_can_be_taken_back(host, target):
    """With `audit_log_state: absent` the vendor's auditd runs with its own files; locked rules stay until the next start.

    Where GRUB starts the kernel, its options came with a file of our own, and go with it.
    """
    assert host.file("/run/grub-line").content_string == "quiet audit=1 audit_backlog_limit=16384\n"
    target.reapply(audit_log_state="absent")
    try:
        assert host.file("/run/grub-line").content_string == "quiet\n"
        assert host.check_output("find /etc /usr/local -name '*bulwark*'") in ("", "/usr/local/lib/bulwark")
        assert "-c" not in host.check_output("tr '\\0' ' ' </proc/$(auditctl -s | sed -n 's/^pid //p')/cmdline").split()
        assert host.service("auditd").is_running
        host.check_output("systemctl restart auditd")  # by hand again
    finally:
        target.reapply()
    assert host.service("auditd").is_running
    assert host.run("/usr/local/lib/bulwark/audit_rules load").rc == 0
    assert "key=bulwark_programs" not in host.file("/etc/audit/bulwark/audit.rules").content_string
