# Copyright: (c) 2026, Bulwark contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Lines as the collector keeps them: an ordinary day of a small clinic, and for each rule of role log_review what makes it fire.

Standard library only, for proofs take this file to test machines and run it there: trail_lines.py DIRECTORY RULE... writes the
fixtures of these rules behind what is in a store; `normal` is the ordinary day.
"""

from __future__ import annotations

import datetime
import hashlib
import json
import os
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

BOOT = "4b1d0c0e8e3c4c52a1fdf7a0d2a4b7c1"
CURSOR = "s=2f7c0d4d2f5b4a7e9a3d1f0c9b8e7d6c"
OWNERS = {"sshd": "0", "ulogd": "102", "bulwark-vpn": "995", "bulwark-fw-rules": "102"}


def stamp(seconds: float) -> str:
    """Return seconds since 1970 the way the store writes time."""
    return datetime.datetime.fromtimestamp(seconds, datetime.UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


class Writer:
    """Write lines of hosts into a store, numbered and chained on from what is there."""

    def __init__(self, directory: str | os.PathLike) -> None:
        self.directory = Path(directory)
        self.heads: dict[str, dict] = {}
        self.boot_began = 1_700_000_000.0

    def head(self, host: str) -> dict:
        """Return where a host's lines have got to; read from its last line on first use."""
        if host not in self.heads:
            first = hashlib.sha256(f"bulwark-trail 1 {host}".encode()).hexdigest()
            head = {"n": 0, "chain": first, "i": 0}
            days = sorted((self.directory / host).glob("*.jsonl")) if (self.directory / host).is_dir() else []
            if days:
                with days[-1].open("rb") as stream:
                    last = json.loads(stream.readlines()[-1])
                head = {"n": last["n"], "chain": last["chain"], "i": int(last["cursor"].split("i=")[1].split(";")[0], 16)}
            self.heads[host] = head
        return self.heads[host]

    def line(self, host: str, entry: Mapping, received: float, late: float = 0.2, skip: int = 0, **fields: object) -> bytes:
        """Return the next line of a host. ``late`` is how far its time lies behind, ``skip`` how many entries never came."""
        head = self.head(host)
        head["n"], head["i"] = head["n"] + 1, head["i"] + 1 + skip
        happened = received - late
        whole = {
            "__MONOTONIC_TIMESTAMP": str(int((received - 0.2 - self.boot_began) * 1e6)),
            "_BOOT_ID": BOOT,
            "_HOSTNAME": host,
            "PRIORITY": "6",
            "_TRANSPORT": "syslog",
            "_UID": OWNERS.get(str(entry.get("SYSLOG_IDENTIFIER")), "0"),
            **entry,
        }
        line = {
            "n": head["n"],
            "received": stamp(received),
            "time": stamp(happened),
            "host": host,
            "cursor": f"{CURSOR};i={head['i']:x};b={BOOT};m=1;t=1;x=1",
            "entry": whole,
            **fields,
        }
        body = json.dumps(line, separators=(",", ":")).encode()[:-1]
        head["chain"] = hashlib.sha256(head["chain"].encode() + body).hexdigest()
        return body + b',"chain":"' + head["chain"].encode() + b'"}\n'

    def put(self, host: str, entry: Mapping, received: float, **more: object) -> None:
        """Append a line to the file of its day."""
        path = self.directory / host / f"{stamp(received)[:10]}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        line = self.line(host, entry, received, **more)
        with path.open("ab") as stream:
            stream.write(line)


def log(program: str, message: str, **fields: str) -> dict:
    """Return a journal entry of a program."""
    return {"SYSLOG_IDENTIFIER": program, "MESSAGE": message, **fields}


def kernel(message: str, priority: str = "6") -> dict:
    """Return a journal entry of the kernel."""
    return {"SYSLOG_IDENTIFIER": "kernel", "_TRANSPORT": "kernel", "MESSAGE": message, "PRIORITY": priority}


def heartbeat(**words: str) -> dict:
    """Return the minute's sign of life."""
    said = {
        "interval": "60",
        "unsent": "0",
        "clock": "synchronised",
        "clock_offset_seconds": "0.000113",
        "audit_enabled": "2",
        "audit_lost": "0",
        "audit_pid": "512",
        "boot": BOOT,
        **words,
    }
    return log("bulwark-heartbeat", "event=heartbeat " + " ".join(f"{key}={value}" for key, value in said.items()))


class Audit:
    """Audit records as auditd's syslog plugin writes them, with serial numbers that go on."""

    def __init__(self, serial: int = 1000) -> None:
        self.serial = serial

    def record(self, kind: str, text: str, at: float, enriched: str = "") -> dict:
        """Return one record under the current serial number."""
        tail = f"\x1d{enriched}" if enriched else ""
        return log("audispd", f"type={kind} msg=audit({at:.3f}:{self.serial}): {text}{tail}")

    def call(
        self,
        at: float,
        key: str,
        syscall: str = "openat",
        path: str = "",
        exe: str = "/usr/bin/cat",
        person: str = "alice",
        success: bool = True,
        arguments: str = "a0=ffffff9c a1=7ffd a2=0 a3=0",
        command: str = "",
        more: tuple[tuple[str, str], ...] = (),
    ) -> list[dict]:
        """Return the records of one system call."""
        self.serial += 1
        auid = "4294967295" if person == "unset" else "1000"
        comm = exe.rsplit("/", 1)[-1]
        records = [
            self.record(
                "SYSCALL",
                f"arch=c000003e syscall=257 success={'yes' if success else 'no'} exit={3 if success else -13} {arguments} "
                f"items=1 ppid=2211 pid=2212 auid={auid} uid=0 gid=0 euid=0 suid=0 fsuid=0 egid=0 sgid=0 fsgid=0 tty=pts0 ses=7 "
                f'comm="{comm}" exe="{exe}" subj=unconfined key="{key}"',
                at,
                f'ARCH=x86_64 SYSCALL={syscall} AUID="{person}" UID="root" GID="root" EUID="root" SUID="root" FSUID="root"',
            )
        ]
        records += [self.record(kind, text, at) for kind, text in more]
        records.append(self.record("CWD", 'cwd="/root"', at))
        if path:
            name = f'"{path}"' if path.isascii() and " " not in path and '"' not in path else path.encode().hex().upper()
            records.append(
                self.record(
                    "PATH",
                    f"item=0 name={name} inode=131 dev=fe:01 mode=0100640 ouid=0 ogid=42 nametype=NORMAL",
                    at,
                    'OUID="root" OGID="shadow"',
                )
            )
        title = (command or f"{comm} {path}").strip().replace(" ", "\0").encode().hex().upper()
        return [*records, self.record("PROCTITLE", f"proctitle={title}", at)]

    def user(self, at: float, kind: str, text: str, person: str = "alice") -> list[dict]:
        """Return a record that a program in user space made."""
        self.serial += 1
        auid = "4294967295" if person == "unset" else "1000"
        return [
            self.record(kind, f"pid=700 uid=0 auid={auid} ses=7 subj=unconfined msg='{text}'", at, f'UID="root" AUID="{person}"')
        ]


def firewall(event: str, source: str = "198.51.100.7", port: int = 3389, target: str = "192.0.2.1") -> dict:
    """Return a line of the firewall."""
    return log(
        "ulogd",
        f"bulwark-fw event={event}  IN=eth0 OUT= MAC=02:42:ac:11:00:02:02:42:ac:11:00:03:08:00 SRC={source} "
        f"DST={target} LEN=44 TOS=00 PREC=0x00 TTL=52 ID=23951 PROTO=TCP SPT=40001 DPT={port} SEQ=1 ACK=0 WINDOW=1024 SYN "
        "URGP=0 MARK=0",
    )


def fixtures(at: float) -> dict[str, list[tuple[dict, dict]]]:
    """Return {rule: [(entry, how the line comes)]}; lines follow each other by a second from ``at`` on unless they say otherwise.

    Of what the line comes like, ``gap_seconds`` is how long after the one before; the rest goes to Writer.line.
    """
    audit = Audit(5000)

    def calls(*arguments: object, **more: object) -> list[tuple[dict, dict]]:
        return [(entry, {"gap_seconds": 0.01}) for entry in audit.call(at, *arguments, **more)]

    def plain(*entries: dict) -> list[tuple[dict, dict]]:
        return [(entry, {}) for entry in entries]

    def failed(number: int, person: str = "alice", source: str = "198.51.100.9") -> dict:
        return log("sshd", f"Failed password for {person} from {source} port {50000 + number} ssh2", _PID=str(4000 + number))

    def stopped(unit: str) -> dict:
        return log("systemd", f"Stopped {unit} - A service.", UNIT=unit, _PID="1")

    duo = [log("sshd", "Failed Duo login for 'alice' from 198.51.100.9: Login request denied.") for _turn in range(3)]
    audit.serial += 1
    rules = [
        audit.record("CONFIG_CHANGE", 'auid=1000 ses=7 op=remove_rule key="bulwark_accounts" list=4 res=1', at, 'AUID="alice"'),
        audit.record("PROCTITLE", f"proctitle={b'auditctl -D'.hex().upper()}", at),
    ]
    gap = Audit(9000)
    before = gap.call(at, "bulwark_config", path="/etc/hosts", person="deploy")
    gap.serial += 7
    after = gap.call(at, "bulwark_config", path="/etc/hosts", person="deploy")
    return {
        "port_scan": plain(firewall("scan")),
        "slow_port_scan": plain(*(firewall("drop", port=port) for port in range(1, 22))),
        "flood": plain(firewall("flood", port=443)),
        "false_source": plain(*(firewall("spoof", source="10.99.0.5") for _turn in range(3))),
        "firewall_rules_changed": plain(log("bulwark-fw-rules", "# new generation 12 by process 4711 (nftx)")),
        "failed_logins_source": plain(*(failed(n, f"user{n}") for n in range(5))),
        "failed_logins_person": plain(*(failed(n, "bob", f"198.51.100.{n}") for n in range(5))),
        "duo_denied": plain(*duo),
        "duo_unsound": plain(log("bulwark-duo", "refusing logins: /etc/bulwark/pam_duo.conf is missing")),
        "break_glass": plain(
            log(
                "bulwark-break-glass",
                "bulwark-break-glass used: service=sshd account=sealed from=127.0.0.9 terminal=ssh by=-",
                PRIORITY="1",
            )
        ),
        "vpn_hours": plain(
            log("bulwark-vpn", "event=connect user=alice real=198.51.100.7:40123 address=10.99.0.10 address6=- serial=4AC3")
        ),
        "vpn_refused": plain(
            *(log("bulwark-vpn", "event=refused user=alice real=198.51.100.7 reason=not_the_same_person") for _turn in range(3))
        ),
        "privileged_access": plain(log("sudo", "   alice : TTY=pts/0 ; PWD=/home/alice ; USER=root ; COMMAND=/usr/bin/id")),
        "sudo_refused": plain(
            log(
                "sudo",
                "     bob : user NOT in sudoers ; TTY=pts/1 ; PWD=/home/bob ; USER=root ; COMMAND=/usr/bin/cat /etc/shadow",
                _UID="1001",
                _COMM="sudo",
            )
        ),
        "su_root": plain(log("su", "(to root) alice on pts/0", _UID="1000", _COMM="su")),
        "uid_zero": plain(
            log(
                "useradd",
                "new user: name=toor, UID=0, GID=0, home=/root, shell=/bin/bash, from=/dev/pts/0",
                _AUDIT_LOGINUID="1000",
            )
        ),
        "sudoers_edit": calls("bulwark_config", path="/etc/sudoers.d/99-mine", exe="/usr/bin/tee"),
        "account_changed": plain(log("usermod", "add 'bob' to group 'sudo'", _AUDIT_LOGINUID="1000")),
        "account_file_edited": calls("bulwark_accounts", path="/etc/passwd", exe="/usr/bin/vim.basic"),
        "setuid_file": calls(
            "bulwark_permissions",
            syscall="fchmodat",
            path="/usr/local/bin/sh2",
            exe="/usr/bin/chmod",
            arguments="a0=ffffff9c a1=55d0 a2=9ed a3=0",
        ),
        "log_tool": calls(
            "bulwark_logtools", syscall="execve", path="/usr/sbin/auditctl", exe="/usr/sbin/auditctl", command="auditctl -s"
        ),
        "log_cleared": calls("bulwark_deletions", syscall="unlinkat", path="/var/log/auth.log", exe="/usr/bin/rm"),
        "journal_cleared": plain(
            log("systemd-journald", "Vacuuming done, freed 48.0M of archived journals from /var/log/journal/1.")
        ),
        "audit_stopped": plain(heartbeat(audit_enabled="0", audit_pid="0")),
        "recorder_stopped": plain(stopped("systemd-journal-upload.service")),
        "audit_rules": plain(*rules),
        "audit_lost": plain(heartbeat(audit_lost="12")),
        "host_silent": [(heartbeat(), {}), (heartbeat(), {"gap_seconds": 400, "others": True})],
        "collector_deaf": [(heartbeat(), {}), (heartbeat(), {"gap_seconds": 900})],
        "sequence_gap": [(heartbeat(), {}), (heartbeat(), {"skip": 5}), (heartbeat(), {"gap_seconds": 61})],
        "journal_anew": [(heartbeat(), {}), (heartbeat(), {"cursor": "s=00000000000000000000000000000001;i=1;b=1;m=1;t=1;x=1"})],
        "chain_broken": [(heartbeat(), {}), (heartbeat(), {"tamper": True}), (heartbeat(), {})],
        "forged_line": plain(log("sshd", "Accepted publickey for root from 10.0.0.1 port 1 ssh2", _UID="1000", _COMM="logger")),
        "trail_read": calls("bulwark_trail", path="/var/log/bulwark-trail/web/2026-11-25.jsonl", exe="/usr/bin/less"),
        "review_refused": plain(log("bulwark-review", "event=refused by=mallory what=sign", _UID="990")),
        "clock_jump": [(heartbeat(), {}), (heartbeat(), {"late": 3600.0})],
        "time_set": calls("bulwark_time", syscall="clock_settime", exe="/usr/bin/date", command="date --set 12:00"),
        "clock_unsynchronised": [(heartbeat(clock="unsynchronised"), {"gap_seconds": 60}) for _turn in range(5)],
        "module_load": calls(
            "bulwark_modules", syscall="finit_module", exe="/usr/bin/kmod", more=(("KERN_MODULE", 'name="usb_storage"'),)
        ),
        "foreign_module": plain(kernel("evil: loading out-of-tree module taints kernel.")),
        "media_mounted": plain(kernel("sd 6:0:0:0: [sdb] Attached SCSI removable disk")),
        "sensitive_access": calls("bulwark_sensitive", path="/srv/records/patient 1.txt"),
        "sensitive_refused": calls("bulwark_sensitive", path="/srv/records/2.txt", success=False),
        "sensitive_many": [item for n in range(101) for item in calls("bulwark_sensitive", path=f"/srv/records/{n}.txt")],
        "denied_many": [item for n in range(20) for item in calls("bulwark_denied", path=f"/etc/secret{n}", success=False)],
        "anomaly": plain(
            *audit.user(
                at,
                "ANOM_LOGIN_FAILURES",
                'pam_faillock uid=1001 exe="/usr/sbin/sshd" hostname=? addr=? terminal=? res=success',
                "unset",
            )
        ),
        "malware": plain(log("clamd", "/srv/share/invoice.exe: Eicar-Signature FOUND")),
        "antivirus_off": plain(
            log(
                "bulwark-antivirus",
                "event=stopped unit=clamav-daemon.service result=signal how=killed status=KILL "
                'means="nothing is scanned until it is back: files on guarded paths can be opened whatever they hold"',
                _UID="110",
            )
        ),
        "antivirus_stale": plain(log("bulwark-antivirus", "event=signatures_stale hours=25.5 limit=24")),
        "backup_lost": plain(
            log(
                "bulwark-backup",
                'event=broken copy=ward-1 file=data/9b/9bb3 problem="is not what was written"',
            )
        ),
        "restore_test_failed": plain(
            log(
                "bulwark-backup",
                'event=restore_test passed=False seconds=12.5 problem="records: 1 differ: /srv/x\' event=backed_up passed=True"',
            )
        ),
        "backup_failed": plain(
            *(
                log("bulwark-backup", 'event=failed set=records problem="declared, but not there: /srv/records"')
                for _turn in range(2)
            )
        ),
        "backup_capacity": plain(log("bulwark-backup", "event=capacity free_percent=4.2 wanted_percent=15")),
        "guard_rollback": plain(
            log(
                "bulwark-guard",
                "The access change begun at 2026-11-25T10:00:00Z by deploy was taken back, it was "
                "not confirmed in time: 3 files, 1 tables; no unit was touched",
            )
        ),
        "unit_failed": plain(log("systemd", "backup.service: Failed with result 'exit-code'.", UNIT="backup.service", _PID="1")),
        "kernel_error": plain(kernel("i915 0000:00:02.0: [drm] *ERROR* CPU pipe A FIFO underrun", "3")),
        "grave_fault": plain(kernel("blk_update_request: I/O error, dev sda, sector 12345 op 0x0:(READ)", "3")),
        "audit_gap": [*plain(*before, *after), (heartbeat(), {"gap_seconds": 61})],
    }


def played(writer: Writer, host: str, steps: list[tuple[dict, dict]], at: float, other: str = "") -> float:
    """Put the lines of a fixture into the store and return when the last came. ``other`` is a host that is heard meanwhile."""
    now = at
    for entry, how in steps:
        how = dict(how)
        gap = float(how.pop("gap_seconds", 1.0))
        if how.pop("others", False) and other:
            for second in range(30, int(gap), 30):
                writer.put(other, heartbeat(), now + second)
        now += gap
        tamper = how.pop("tamper", False)
        writer.put(host, entry, now, **how)
        if tamper:
            path = writer.directory / host / f"{stamp(now)[:10]}.jsonl"
            lines = path.read_bytes().splitlines(keepends=True)
            path.write_bytes(b"".join([*lines[:-1], lines[-1].replace(b"audit_pid=512", b"audit_pid=513")]))
    return now


def normal_day(hosts: tuple[str, ...] = ("web", "db", "gate"), day: float = 1_795_564_800.0, lines: int = 0) -> Iterator[tuple]:
    """Yield (host, entry, received) of a day on which nothing happened that anybody must look at, in order of receipt.

    People log in with their keys and work, one mistypes once, automation upgrades packages, cron runs, a stranger knocks on a few
    ports, a timer fails nowhere. With ``lines``, so many are made: busier programs, the same kinds of lines.
    """
    audits = {host: Audit(100) for host in hosts}
    minutes = 24 * 60
    chatter = max(2, int((lines / len(hosts) / minutes - 1.2) / 1.75)) if lines else 4
    for minute in range(minutes):
        for place, host in enumerate(hosts):
            at, audit = day + minute * 60 + place * 0.1, audits[host]
            yield host, heartbeat(), at
            made: list[dict] = []
            if minute % 60 == 17:
                made.append(log("CRON", "(root) CMD (cd / && run-parts --report /etc/cron.hourly)"))
            if minute % 30 == 5:
                made += [
                    log("systemd", "Starting apt-daily.service - Daily apt download activities...", UNIT="apt-daily.service"),
                    log("systemd", "apt-daily.service: Deactivated successfully.", UNIT="apt-daily.service"),
                ]
            if minute % 45 == 9:
                made.append(firewall("drop", source=f"203.0.113.{minute % 200}", port=(22, 23, 445, 3389)[minute % 4]))
            if 480 <= minute <= 1080 and minute % 90 == 3:
                made.append(
                    log(
                        "sshd",
                        f"Accepted publickey for alice from 10.99.0.10 port {40000 + minute} ssh2: ED25519 SHA256:x",
                        _PID=str(minute),
                    )
                )
                made += audit.user(
                    at,
                    "USER_LOGIN",
                    'op=login id=1000 exe="/usr/sbin/sshd" hostname=10.99.0.10 addr=10.99.0.10 terminal=/dev/pts/0 res=success',
                )
                made.append(log("sshd", "Successful Duo login for 'alice' from 10.99.0.10"))
                # The process that serves her has her rights; what it says is no forgery.
                made.append(log("sshd", "Starting session: shell on pts/0 for alice from 10.99.0.10 port 4003 id 0", _UID="1001"))
            if minute == 240:  # an assessment
                said = "refusing logins: /run/bulwark-duo-av4cyb4n/sample.conf is not a plain file of root:root with mode 0600"
                made.append(log("bulwark-duo", said))
            if minute == 541:
                made.append(log("sshd", "Failed password for alice from 10.99.0.10 port 41000 ssh2", _PID="881"))
            if minute == 610 and host == "gate":
                made.append(
                    log("bulwark-vpn", "event=connect user=alice real=198.51.100.7:40123 address=10.99.0.10 address6=- serial=4A")
                )
            if minute == 180:
                made.append(
                    log(
                        "sudo",
                        "  deploy : TTY=pts/0 ; PWD=/home/deploy ; USER=root ; COMMAND=/bin/sh -c echo; /usr/bin/python3",
                        _UID="1002",
                        _COMM="sudo",
                    )
                )
                made += audit.call(
                    at, "bulwark_config", path="/etc/ssh/sshd_config.d/00-x.conf", exe="/usr/bin/python3", person="deploy"
                )
                made += audit.call(
                    at,
                    "bulwark_permissions",
                    syscall="fchmodat",
                    path="/usr/bin/sudo",
                    exe="/usr/bin/dpkg",
                    person="deploy",
                    arguments="a0=ffffff9c a1=1 a2=9ed a3=0",
                )
            if minute % 5 == 2:
                canary = "/var/lib/bulwark/antivirus-canary/bulwark-canary"
                made.append(log("clamd", f"{canary}: Bulwark.Canary.UNOFFICIAL FOUND", _UID="110"))
            if minute == 200:
                made.append(log("bulwark-antivirus", "event=scan_finished found=0 errors=2 seconds=812", _UID="110"))
            if minute % 480 == 30:
                made.append(log("bulwark-backup", "event=backed_up set=records snapshot=5a3c99e1 files=812 added=10240"))
                made.append(log("bulwark-backup", "event=pulled copy=backup-2/web new=3 problem=none"))
            if minute == 210:
                made.append(log("bulwark-backup", 'event=failed set=records problem="restic backup: connection refused"'))
                made.append(log("bulwark-backup", "event=restore_test passed=True seconds=12.5 problem=none"))
            if minute % 120 == 40:
                made.append(log("chronyd", "Selected source 192.0.2.123 (ntp.clinic.example)"))
            for turn in range(chatter):
                if turn % 4 == 3:
                    made += audit.call(
                        at,
                        "bulwark_deletions",
                        syscall="unlinkat",
                        path=f"/var/lib/app/cache/{minute}-{turn}",
                        exe="/usr/bin/python3",
                        person="unset",
                    )
                else:
                    made.append(
                        log("app", f"request {minute * 1000 + turn} GET /patients/{turn} 200 in {turn % 90} ms", _UID="998")
                    )
            step = 50.0 / max(1, len(made))
            for number, entry in enumerate(made, 1):
                yield host, entry, at + min(number * step, 55)


def main() -> None:
    """Write fixtures behind what is in a store: trail_lines.py DIRECTORY HOST RULE..."""
    directory, host, *names = sys.argv[1:]
    writer, at = Writer(directory), time.time() - 1
    for name in names:
        known = fixtures(at)
        at = played(writer, host, known[name], at)


if __name__ == "__main__":
    main()
