# Copyright: (c) 2026, Bulwark contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Look at what the collector keeps: raise alarms, write digests, record reviews, answer questions. Standard library only.

Role log_review puts this file on the collector as a program, which runs as user bulwark-review and only ever reads the store:

    trail_review watch     look at what has come in since the last time, and raise alarms (run by a timer)
    trail_review digest    write what there is to review since the last digest (run by a timer, or by hand)
    trail_review sign      record that a reviewer has reviewed a digest
    trail_review reveal    say whom a pseudonym of a digest stands for; that is recorded
    trail_review redraw    draw a digest's random sample again from its seed, and compare
    trail_review query     find events; the question is recorded
    trail_review status    what is reviewed, what is overdue, whether the register holds
    trail_review mail      hand waiting mails to the local sendmail (run by a path unit)

From line to alarm: a *line* of the store (one journal entry: n, received, time, host, cursor, entry, chain) becomes no, one or
several *events*; an event is a plain dict, with text for values and "" for what is not known:

    time, received   as in the store          host            name in the certificate of who sent it
    kind, action     what happened            person, uid     the person behind it (login uid, else uid); the uid it was done as
    terminal         pts/0, ssh, ...          source          network address it came from
    objects          list of text             result          success, failed or ""
    program, via     by what, seen by what    text            one line of it, shortened; no control characters
    refs             list of n                key, ticket, hours, value: see where they are made

A *rule* is data: {id, title, statements, severity, select, group_by, count, window, distinct, quiet}. ``select`` gives for fields
of an event what they must be (see `matcher`). The rule fires when ``count`` selected events (or different values of the field
``distinct``) come within ``window`` seconds for the same ``group_by``; further ones within ``quiet`` seconds belong to the same
alarm.

Windows go by the time of receipt, which is the collector's own: a host that lies about its clock cannot stretch them. After an
outage lines come in a burst, so a rule may fire once too often then, never once too little.
"""

from __future__ import annotations

import argparse
import base64
import calendar
import collections
import contextlib
import csv
import datetime
import fcntl
import functools
import gzip
import hashlib
import heapq
import hmac
import html
import json
import os
import pwd
import re
import secrets
import subprocess
import sys
import syslog
import time
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from email.message import EmailMessage

CONFIG = "/etc/bulwark/trail-review.json"
SEVERITIES = ("info", "low", "medium", "high", "critical")
PRIORITIES = {
    "info": syslog.LOG_INFO,
    "low": syslog.LOG_NOTICE,
    "medium": syslog.LOG_WARNING,
    "high": syslog.LOG_ERR,
    "critical": syslog.LOG_CRIT,
}
RESULTS = ("nothing_found", "followed_up", "incident")
SHOWN = 400  # characters of a line that an event carries
LINE_MAX = 8 << 20  # bytes of a line of the store; a longer one is said to be broken
GROUPS_MAX = 5000  # groups a rule remembers; the ones seen longest ago are forgotten first, and counted
HOLES_MAX = 64  # missing numbers of a host that are waited for
HOLE_SECONDS = 60  # lines are not written in order of their numbers: a missing one may follow within this time
AUDIT_WAIT = 2  # seconds within which all records of one audit event come
SAVE_LINES, SAVE_ALARMS = 50_000, 200  # after so many, watch saves how far it is
ALARMS_PER_RULE = 50  # alarms of one rule in one run of watch; more are said in one
UNSET = ("4294967295", "-1", "unset", "")
FORMULA = tuple("=+-@\t＝＋－＠")  # noqa: RUF001  (spreadsheets take the wide forms, too)

Event = dict


class Refused(Exception):
    """Something is not done. The text says why, for the person who asked."""


# ------------------------------------------------------------------------------------------------------------------------------
# Text and time


def visible(text: str, limit: int = 0) -> str:
    """Return text on one line in which nothing hides: control characters, direction marks and broken encoding are written out."""
    cut = f"{text[:limit]} … ({len(text)} characters)" if limit and len(text) > limit else text
    if cut.isascii() and cut.isprintable():
        return cut
    return "".join(
        f"\\u{ord(char):04x}" if unicodedata.category(char) in ("Cc", "Cf", "Cs", "Co", "Zl", "Zp") else char for char in cut
    )


@functools.lru_cache(maxsize=4096)
def _minute(stamp: str) -> int:
    return calendar.timegm(time.strptime(stamp, "%Y-%m-%dT%H:%M"))


def epoch(stamp: str) -> float:
    """Return ``2026-11-25T01:02:03.123456Z`` (fraction optional) as seconds since 1970. Raises ValueError."""
    seconds = float(stamp[17:-1])
    if not 0 <= seconds < 61 or stamp[16] != ":":
        raise ValueError(f"{stamp!r} is no time")
    return _minute(stamp[:16]) + seconds


def stamp_of(seconds: float) -> str:
    """Return seconds since 1970 the way the store writes time."""
    return datetime.datetime.fromtimestamp(seconds, datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def asked_time(text: str) -> float:
    """Return a time that a person gave: UTC, to the day, minute or second, or so long ago (90m, 36h, 7d). Raises ValueError."""
    ago = re.fullmatch(r"(\d{1,6})([mhd])", text)
    if ago:
        return time.time() - int(ago.group(1)) * {"m": 60, "h": 3600, "d": 86400}[ago.group(2)]
    whole = text.rstrip("Z").replace(" ", "T")
    return datetime.datetime.fromisoformat(whole).replace(tzinfo=datetime.timezone.utc).timestamp()


def day_of(seconds: float) -> str:
    """Return the UTC day, which is what files of the store are called."""
    return stamp_of(seconds)[:10]


# ------------------------------------------------------------------------------------------------------------------------------
# The store


class Store:
    """The collector's files: <directory>/<host>/<day>.jsonl, or .jsonl.gz once the day is over."""

    def __init__(self, directory: str) -> None:
        self.directory = directory

    def hosts(self) -> list[str]:
        """Return the hosts that have ever delivered. Raises Refused when the store cannot be read."""
        try:
            entries = list(os.scandir(self.directory))
        except OSError as exc:
            raise Refused(f"{self.directory}: {exc.strerror}") from exc
        return sorted(entry.name for entry in entries if not entry.name.startswith(".") and entry.is_dir(follow_symlinks=False))

    def days(self, host: str) -> dict[str, str]:
        """Return {day: path} of a host, oldest first. While a day is being compressed there may be both; the plain one counts."""
        found = {}
        for entry in sorted(os.scandir(os.path.join(self.directory, host)), key=lambda entry: entry.name, reverse=True):
            named = re.fullmatch(r"(\d{4}-\d{2}-\d{2})\.jsonl(\.gz)?", entry.name)
            if named:
                found[named.group(1)] = entry.path
        return dict(sorted(found.items()))

    def let_go(self, host: str) -> str:
        """Return what the collector wrote down about a host's days whose retention is over."""
        try:
            with open(os.path.join(self.directory, ".removed", f"{host}.jsonl"), encoding="utf-8", errors="replace") as stream:
                return stream.read()
        except OSError:
            return ""

    def lines(self, host: str, place: Mapping | None = None, since: str = "", until: str = "") -> Iterator[dict]:
        """Yield a host's lines in order, each with ``raw`` (its bytes) and ``place`` (where the next one begins).

        ``place`` {day, offset} is where to go on; ``since`` and ``until`` are times of receipt, the last not included. What is no
        line is yielded as {"host", "broken", "raw", "place"}. A last line that is still being written waits for the next time.
        """
        place = dict(place or {"day": since[:10], "offset": 0})
        days = self.days(host)
        later = [day for day in days if day >= place["day"] and (not until or day <= until[:10])]
        if place["offset"] and place["day"] not in days and place["day"] not in self.let_go(host):
            yield {"host": host, "broken": f"{place['day']}.jsonl is gone", "raw": b"", "place": dict(place), "action": "removed"}
        for day in later:
            offset = place["offset"] if day == place["day"] else 0
            with gzip.open(days[day]) if days[day].endswith(".gz") else open(days[day], "rb") as stream:
                if offset:
                    if not days[day].endswith(".gz") and os.fstat(stream.fileno()).st_size < offset:
                        size = os.fstat(stream.fileno()).st_size
                        yield {
                            "host": host, "broken": f"{day}.jsonl has {size} bytes, it had {offset}", "raw": b"",
                            "place": {"day": day, "offset": size}, "action": "truncated",
                        }  # fmt: skip
                        offset = size
                    stream.seek(offset)
                while True:
                    try:
                        raw = stream.readline(LINE_MAX)
                    except (OSError, EOFError) as exc:  # a torn gzip
                        yield {
                            "host": host, "broken": f"{day}.jsonl.gz: {exc}", "raw": b"", "place": {"day": day, "offset": offset},
                            "action": "unreadable",
                        }  # fmt: skip
                        break
                    if not raw:
                        break
                    if not raw.endswith(b"\n") and len(raw) < LINE_MAX and day == later[-1]:
                        return
                    offset += len(raw)
                    while not raw.endswith(b"\n") and len(more := stream.readline(LINE_MAX)) > 0:  # the rest of an endless line
                        offset += len(more)
                        raw = raw[:64] + b" ... " + more[-64:] if more.endswith(b"\n") else raw
                    line = parsed_line(raw, host)
                    line["raw"], line["place"] = raw, {"day": day, "offset": offset}
                    if "broken" not in line:
                        if since and line["received"] < since:
                            continue
                        if until and line["received"] >= until:
                            continue
                    yield line

    def merged(
        self, places: Mapping[str, Mapping], since: str = "", until: str = "", hosts: Sequence[str] = ()
    ) -> Iterator[dict]:
        """Yield the lines of all hosts in the order of their receipt."""
        streams = [self.lines(host, places.get(host), since, until) for host in hosts or self.hosts()]
        return heapq.merge(*streams, key=lambda line: line.get("received", ""))


def parsed_line(raw: bytes, host: str) -> dict:
    """Return a line of the store as a dict, or {"host", "broken": why} when it is not one."""
    try:
        line = json.loads(raw)
        if not isinstance(line["n"], int) or not isinstance(line["entry"], dict) or line["host"] != host:
            raise ValueError("not what a line of this host looks like")
        epoch(line["received"])
        epoch(line["time"])
    except (ValueError, KeyError, TypeError, RecursionError) as exc:
        return {"host": host, "broken": visible(f"{type(exc).__name__}: {exc}", 200), "action": "broken_line"}
    return line


def first_link(host: str) -> str:
    """Return what stands for the chain before a host's first line."""
    return hashlib.sha256(f"bulwark-trail 1 {host}".encode()).hexdigest()


def link(previous: str, raw: bytes) -> tuple[str, str]:
    """Return (chain that a line must have, chain that it says it has)."""
    body, _mark, rest = raw.rpartition(b',"chain":')
    return hashlib.sha256(previous.encode() + body).hexdigest(), rest.strip().strip(b'"}').decode(errors="replace")


# ------------------------------------------------------------------------------------------------------------------------------
# From lines to events


def value_of(entry: Mapping, name: str) -> str:
    """Return a journal field as text; of a repeated one the first, of a binary one what can be read of it."""
    value = entry.get(name, "")
    if isinstance(value, list):
        value = value[0] if value else ""
    if isinstance(value, dict):
        try:
            return base64.b64decode(value.get("base64", "")).decode("utf-8", "replace")
        except (ValueError, TypeError):
            return ""
    return value if isinstance(value, str) else str(value)


def event(line: Mapping, kind: str, action: str = "", **more: object) -> Event:
    """Return an event with all its fields; what is not given is empty."""
    return {
        "time": line.get("time", ""), "received": line.get("received", ""), "host": line["host"], "kind": kind, "action": action,
        "person": "", "uid": "", "terminal": "", "source": "", "objects": [], "result": "", "program": "", "via": "", "key": "",
        "ticket": "", "hours": "", "value": "", "text": "", "refs": [line["n"]] if "n" in line else [], **more,
    }  # fmt: skip


_WORDS = re.compile(r"([A-Za-z][\w.-]*)=(\"[^\"]*\"|\S*)")
_AUDIT = re.compile(r"(?:node=\S+ )?type=([A-Z_0-9a-z\[\]]+) msg=audit\((\d+\.\d+):(\d+)\): ?")
_AUDIT_FIELD = re.compile(r"([A-Za-z][\w-]*)=('[^']*'|\"[^\"]*\"|[^\s,]*)")
_HEX = re.compile(r"(?:[0-9A-F]{2})+")
_HEXED = {"name", "exe", "comm", "cwd", "proctitle", "acct", "cmd", "key", "data", "grp"}
_ALONE = re.compile(r"(?:USER|CRED|ADD|DEL|GRP|ROLE|CRYPTO|SERVICE|SYSTEM|DAEMON|ANOM|RESP|CHGRP|CHUSER|ACCT|USYS)_|LABEL_")

# What the keys of audit rules (role audit_log) say about an event.
KEYS = {
    "bulwark_logins": ("login_records", "edit"),
    "bulwark_privileged": ("privilege", "run"),
    "bulwark_accounts": ("account_files", "edit"),
    "bulwark_config": ("configuration", "edit"),
    "bulwark_time": ("time", "set"),
    "bulwark_modules": ("module", "load"),
    "bulwark_mounts": ("mount", "mount"),
    "bulwark_deletions": ("file", "delete"),
    "bulwark_sensitive": ("sensitive", "read"),
    "bulwark_denied": ("file", "denied"),
    "bulwark_permissions": ("file", "permissions"),
    "bulwark_logtools": ("log_tool", "use"),
    "bulwark_trail": ("trail_read", "read"),
    "bulwark_programs": ("program", "run"),
    "bulwark_network": ("network", "connect"),
}
_CHANGES = re.compile(r"unlink|rename|truncate|chmod|chown|setxattr|link|mkdir|rmdir|mknod|creat")
_LOGIN_JOURNAL = "/var/log/wtmp.db-journal"  # of the list of logins (Debian 13), which the database itself deletes at each one
_SSHD_PROGRAMS = ("/usr/sbin/sshd", "/usr/lib/openssh/sshd-session")
_CANARIES = "/var/lib/bulwark/antivirus-canary/"
_CANARY = re.compile(r"Bulwark\.Canary(?:\.UNOFFICIAL)?")
_FOUND = re.compile(r"(.*): (\S+) FOUND\s*", re.DOTALL)
_UNGUARDED = re.compile(r"ClamInotif: (?:could not watch path|can't include|Not watching path) '(.*)'", re.DOTALL)
_LOGS = ("/var/log/", "/run/log/journal/", "/etc/audit/", "/var/spool/rsyslog")

_SSHD = (
    (re.compile(r"Accepted (\S+) for (\S+) from (\S+) port"), "login", "success"),
    (re.compile(r"Failed (\S+) for (?:invalid user )?(.*) from (\S+) port \d+"), "login", "failed"),
    (re.compile(r"error: (PAM): .* for (?:illegal user |invalid user )?(\S+) from (\S+)"), "login", "failed"),
    (
        re.compile(
            r"(?:Connection closed|Connection reset|Disconnected) (?:by|from) (authenticating|invalid) user (.*) (\S+) port \d+"
        ),
        "login",
        "failed",
    ),
    (
        re.compile(r"error: (maximum) authentication attempts exceeded for (?:invalid user )?(.*) from (\S+) port"),
        "login",
        "failed",
    ),
)
_SUDO = re.compile(  # TTY is there only where somebody has one
    r"\s*(\S+) : (?:(?!TTY=|PWD=)(.*?) ; )?(?:TTY=(\S+) ; )?PWD=(.*?) ; USER=(\S+) ;(?: \S+=\S+ ;)* COMMAND=(.*)", re.DOTALL
)
_SU = re.compile(r"(FAILED SU )?\(to (\S+)\) (\S+) on (\S+)")
_ACCOUNT = (
    (re.compile(r"new user: name=([^,]+), UID=(\d+)"), "add"),
    (re.compile(r"new group: name=([^,]+)"), "add_group"),
    (re.compile(r"delete user '([^']+)'"), "remove"),
    (re.compile(r"(?:group '([^']+)' removed|removed group '([^']+)')"), "remove_group"),
    (re.compile(r"change user '([^']+)' (password|UID|GID|shell|home|expiration|inactive)"), "change"),
    (re.compile(r"(?:lock|unlock) user '([^']+)' password"), "change"),
    (re.compile(r"(?:add|delete) '([^']+)' (?:to|from) (?:shadow )?group '([^']+)'"), "membership"),
    (re.compile(r"user (\S+) (?:added|removed) by \S+ (?:to|from) group (\S+)"), "membership"),
    (re.compile(r"password (?:for '?([^' ]+)'? changed|changed for (\S+))"), "password"),
    (re.compile(r"changed (?:user '([^']+)'|password expiry for (\S+))"), "change"),
)
_ACCOUNT_PROGRAMS = {
    "useradd",
    "userdel",
    "usermod",
    "groupadd",
    "groupdel",
    "groupmod",
    "gpasswd",
    "chage",
    "passwd",
    "chpasswd",
    "newusers",
    "chsh",
    "chfn",
    "vipw",
}
_DUO = re.compile(
    r"(Successful|Failed|Aborted|Failsafe|Skipped) Duo login for '([^']*)'(?: from '?([0-9A-Fa-f.:]*[0-9A-Fa-f])'?)?(?:: (.*))?"
)
_PAM_FAILED = re.compile(r"pam_unix\((login|su|su-l|lightdm|gdm-password|cockpit):auth\): authentication failure;(.*)")
_CHRONY = re.compile(
    r"System clock wrong by (-?[\d.]+) seconds|System clock was stepped by (-?[\d.]+)|Can't synchronise|Forward time jump|"
    r"Backward time jump|(?:Could not|Failed to) authenticate"
)
_KERNEL = (
    (re.compile(r"Out of memory: Killed process|oom-kill:|invoked oom-killer"), "fault", "memory"),
    (
        re.compile(
            r"I/O error|EXT4-fs error|XFS .*(?:error|corruption)|BTRFS (?:error|critical)|Remounting filesystem read-only|"
            r"critical (?:medium|target) error|ata\d.*failed command|"
            r"nvme.*(?:I/O .*timeout|controller is down)"
        ),
        "fault",
        "disk",
    ),
    (re.compile(r"Hardware Error|mce:.*error|EDAC .*(?:CE|UE)"), "fault", "hardware"),
    (
        re.compile(r"audit: (?:backlog limit exceeded|kauditd hold queue overflow|audit_lost=[1-9]|rate limit exceeded)"),
        "audit",
        "lost",
    ),
    (re.compile(r"module verification failed|loading out-of-tree module|module license .* taints"), "module", "load"),
    (
        re.compile(
            r"Attached SCSI removable disk|usb-storage .*USB Mass Storage device detected|"
            r"usb.*Product: .*(?:Flash|Storage|Disk)"
        ),
        "media",
        "attached",
    ),
)
# Units whose end means that less is recorded.
RECORDERS = re.compile(
    r"(?:auditd|audit-rules|systemd-journald|systemd-journal-upload|rsyslog|bulwark-(?:heartbeat|trail|forward|log|firewall-log|"
    r"firewall-watch)\S*)\.(?:service|timer|socket)"
)
# Who may write lines under these names: root, or an account of the service.
_OWN = {
    "sshd",
    "sshd-session",
    "systemd",
    "systemd-logind",
    "systemd-journald",
    "useradd",
    "userdel",
    "usermod",
    "groupadd",
    "groupdel",
    "gpasswd",
    "audispd",
    "audisp-syslog",
    "auditd",
    "bulwark-guard",
    "bulwark-break-glass",
    "bulwark-heartbeat",
    "bulwark-duo",
    "bulwark-backup",
}
_SETUID = {"sudo", "su", "passwd", "chage", "chsh", "chfn", "gpasswd"}


# What sshd says with the rights of whom it serves. It proves nothing, so nothing is made of it, and nobody gains by writing it.
_SSHD_OF_A_PERSON = re.compile(
    r"(Starting session|Close session|Received disconnect|Disconnected from user|Connection closed|Session closed|"
    r"Environment|Child|session open|User child|Changed root|subsystem|channel|error: |Timeout, )"
)


def numbers() -> dict:
    """Return a fresh watch over numbers that must follow one another."""
    return {"series": "", "last": 0, "holes": []}


def counted(watch: dict, series: str, number: int, now: float) -> list[tuple[int, int]]:
    """Note a number of a series, and return the holes [(from, to)] that nobody will fill any more.

    Lines need not come in the order of their numbers: a hole counts when it is still there after HOLE_SECONDS (see `overdue`).
    """
    lost = []
    if series != watch["series"]:
        lost = watch["holes"]
        watch.update(series=series, last=number, holes=[])
    elif number > watch["last"]:
        if number > watch["last"] + 1:
            watch["holes"].append([watch["last"] + 1, number - 1, now])
            lost, watch["holes"] = watch["holes"][:-HOLES_MAX], watch["holes"][-HOLES_MAX:]
        watch["last"] = number
    else:
        for hole in watch["holes"]:
            if hole[0] <= number <= hole[1]:
                rest = [[hole[0], number - 1, hole[2]], [number + 1, hole[1], hole[2]]]
                watch["holes"] = [h for h in watch["holes"] if h is not hole] + [h for h in rest if h[0] <= h[1]]
                break
    return [(hole[0], hole[1]) for hole in lost]


def goes_on(watch: Mapping, number: int) -> bool:
    """Return whether a number continues a count, or fills a hole of it; one begun anew starts from 1."""
    return number > watch["last"] or any(hole[0] <= number <= hole[1] for hole in watch["holes"])


def series_of(watch: dict, sequence: str, boot: str, number: int) -> str:
    """Return by which name the numbers of a host's journal go on, for `counted`.

    journald counts all that happens between two starts of the system by one counter, also where (on Debian 12) the files of the
    system and of its users have sequences of their own; after a start a sequence goes on. Only what fits neither was begun anew.
    """
    known = watch.setdefault("known", [])
    same = sequence in known or (boot == watch.get("boot") and goes_on(watch, number))
    watch["boot"] = boot
    watch["known"] = [*(name for name in known if same and name != sequence), sequence][-16:]
    return watch["series"] if same else sequence


def overdue(watch: dict, now: float) -> list[tuple[int, int]]:
    """Return, and forget, the holes [(from, to)] that have been waited for long enough."""
    late = [hole for hole in watch["holes"] if now - hole[2] > HOLE_SECONDS]
    watch["holes"] = [hole for hole in watch["holes"] if hole not in late]
    return [(hole[0], hole[1]) for hole in late]


def gaps(line: Mapping, kind: str, holes: Iterable[tuple[int, int]]) -> Iterator[Event]:
    """Yield one event for each hole in a host's journal (kind trail) or its audit events (kind audit)."""
    what = "audit events" if kind == "audit" else "entries of the host's journal"
    for first, last in holes:
        text = f"{last - first + 1} {what} never came ({first}-{last})"
        yield event(line, kind, "gap", objects=[f"{first}-{last}"], value=str(last - first + 1), text=text)


def audit_fields(text: str) -> dict[str, str]:
    """Return the fields of one audit record: hexadecimal text decoded, quotes taken off, those within msg='...' raised up."""
    fields: dict[str, str] = {}
    for name, value in _AUDIT_FIELD.findall(text):
        if value[:1] == "'":
            fields.update(audit_fields(value[1:-1]))
            continue
        if value[:1] == '"':
            value = value[1:-1]
        elif (name in _HEXED or (name[0] == "a" and name[1:].isdigit() and len(value) > 3)) and _HEX.fullmatch(value):
            value = bytes.fromhex(value).replace(b"\0", b" ").decode("utf-8", "replace")
        if value not in ("?", "(null)"):
            fields[name] = value
    return fields


def unknown_host() -> dict:
    """Return what is remembered of a host that has not been heard yet."""
    return {
        "n": 0, "chain": "", "cursor": numbers(), "serials": numbers(), "clock": ["", 0.0], "down": "", "pids": [], "names": {},
        "sessions": {}, "logins": {}, "audit": {}, "place": None, "heartbeat": 0.0, "silent": False, "lines": 0,
    }  # fmt: skip


class Normaliser:
    """Turn lines into events. What it must remember of each host lies in ``state``, which is plain data and can be saved."""

    def __init__(self, config: Mapping, state: dict | None = None, everything: bool = False) -> None:
        self.config, self.everything = config, everything
        self.state: dict = {} if state is None else state
        for name, known in self.state.items():  # an older program may have saved less
            self.state[name] = {**unknown_host(), **known}
        self.tickets = config.get("tickets", [])
        self.hours = config.get("vpn_hours") or {}

    def host(self, name: str) -> dict:
        """Return what is remembered of a host."""
        if name not in self.state:
            self.state[name] = unknown_host()
        return self.state[name]

    def feed(self, line: Mapping, check: bool = True) -> list[Event]:
        """Return the events of one line; ``check`` also watches chain, numbers and clock."""
        known = self.host(line["host"])
        known["place"] = line.get("place")
        if "broken" in line:
            text = f"{line['broken']}: {line['raw'][:80].decode(errors='replace')}" if line.get("raw") else line["broken"]
            known["chain"] = ""
            return [event({**line, "received": stamp_of(time.time())}, "trail", line["action"], text=visible(text, SHOWN))]
        known["lines"] += 1
        events = self._checked(line, known) if check else []
        entry = line["entry"]
        name = entry.get("SYSLOG_IDENTIFIER") or ("kernel" if entry.get("_TRANSPORT") == "kernel" else entry.get("_COMM", ""))
        name = name if isinstance(name, str) else value_of(entry, "SYSLOG_IDENTIFIER")
        reader = READERS.get(name)
        if reader is None and name.startswith(("bulwark-", "clam", "ovpn-", "openvpn")):
            reader = READERS.get(name.partition("-")[0])
        found: list[Event] = []
        if reader is not None:
            user = entry.get("_UID", "0")
            forged = name in _OWN and user not in ("0", "") and name != "systemd"
            forged = forged or (name == "systemd" and user != "0" and "_PID" in entry and not entry.get("_SYSTEMD_USER_UNIT")
                                and entry.get("_COMM") not in (None, "systemd", "(systemd)"))  # fmt: skip
            forged = forged or (name in _SETUID and user not in ("0", "") and entry.get("_COMM") not in (None, name))
            forged = forged or (name == "kernel" and entry.get("_TRANSPORT") not in (None, "kernel"))
            own = entry["_EXE"] in _SSHD_PROGRAMS if "_EXE" in entry else _SSHD_OF_A_PERSON.match(value_of(entry, "MESSAGE"))
            if forged and name in ("sshd", "sshd-session") and own:
                pass  # the part of sshd that runs as the person; who came in, only root's part says
            elif forged:
                text = visible(value_of(entry, "MESSAGE"), SHOWN)
                found = [event(line, "log", "forged", uid=str(user), person=account(str(user)), program=name, text=text)]
            else:
                found = reader(self, line, entry, value_of(entry, "MESSAGE"), known, name)
        if not found and self.everything:
            text = visible(value_of(entry, "MESSAGE"), SHOWN)
            found = [event(line, "line", uid=value_of(entry, "_UID"), program=visible(name, 64), text=text)]
        if known["audit"]:
            found += self._audit_due(known, epoch(line["received"]))
        return events + found

    def _checked(self, line: Mapping, known: dict) -> list[Event]:
        """Return what is wrong with a line's place in the order of things: chain, numbers, clock."""
        events = []
        previous = known["chain"] or (first_link(line["host"]) if line["n"] == 1 else "")
        must, says = link(previous, line["raw"])
        day = line["place"]["day"] if line.get("place") else ""
        if previous and must != says:
            text = f"line {line['n']} in {line['host']}/{day}.jsonl does not follow from the one before it"
            events.append(event(line, "trail", "chain_broken", objects=[f"{line['host']}/{day}"], text=text))
        if known["n"] and line["n"] != known["n"] + 1:
            text = f"line {known['n']} is followed by {line['n']}"
            events.append(event(line, "trail", "lines_missing", objects=[f"{known['n'] + 1}-{line['n'] - 1}"], text=text))
        known["n"], known["chain"] = line["n"], says
        now, entry = epoch(line["received"]), line["entry"]
        cursor = dict(part.partition("=")[::2] for part in str(line.get("cursor", "")).split(";"))
        with contextlib.suppress(ValueError, KeyError):
            former = known["cursor"]["series"]
            number = int(cursor["i"], 16)
            series = series_of(known["cursor"], cursor["s"], cursor["b"], number)
            events += gaps(line, "trail", counted(known["cursor"], series, number, now))
            if former and former != series:
                text = "the host's journal was begun anew: what was there before may have been deleted"
                events.append(event(line, "trail", "new_journal", objects=[cursor["s"][:16]], text=text))
        ahead = epoch(line["time"]) - now
        limit = self.config.get("clock_jump_seconds", 5)
        if ahead > limit:
            text = f"the host's clock is {ahead:.1f} s ahead of the collector's"
            events.append(event(line, "clock", "ahead", value=f"{ahead:.1f}", text=text))
        uptime = entry.get("__MONOTONIC_TIMESTAMP") or entry.get("_SOURCE_MONOTONIC_TIMESTAMP")
        if isinstance(uptime, str) and uptime.isdigit():
            offset, boot = epoch(line["time"]) - int(uptime) / 1e6, value_of(entry, "_BOOT_ID")
            if boot == known["clock"][0] and abs(offset - known["clock"][1]) > limit:
                jump = offset - known["clock"][1]
                text = f"the host's clock jumped by {jump:+.1f} s"
                events.append(event(line, "clock", "jump", value=f"{jump:+.1f}", text=text))
            known["clock"] = [boot, offset]
        return events

    # --- one method for each who writes ------------------------------------------------------------------------------------

    def sshd(self, line: Mapping, entry: Mapping, message: str, known: dict, name: str) -> list[Event]:
        """sshd: who came in, and who did not. A try is counted once, although sshd may write of it twice."""
        duo = self.duo(line, entry, message, known, name)
        if duo:
            return duo
        pid, logins = value_of(entry, "_PID"), known["logins"]
        if pid in logins and "session opened for user" in message:
            remember_session(known, value_of(entry, "_AUDIT_SESSION"), logins.pop(pid))
        for pattern, kind, result in _SSHD:
            found = pattern.match(message)
            if found:
                how, person, source = found.groups()
                if result == "success":  # the same process opens the session, in another line
                    remember(logins, pid, source, 64)
                if how in ("authenticating", "invalid", "maximum") and pid in known["pids"]:
                    return []
                if how.startswith("keyboard-interactive") and result == "failed" and f"{pid}p" in known["pids"]:
                    return []
                if result == "failed":
                    known["pids"] = [*known["pids"][-31:], pid, *([f"{pid}p"] if how == "PAM" else [])]
                text = visible(message, SHOWN)
                person = visible(person, 64)
                return [event(line, kind, "login", person=person, source=source, terminal="ssh", result=result, via="sshd",
                              program="sshd", objects=[line["host"]], text=text)]  # fmt: skip
        if message.startswith("drop connection"):
            source = re.search(r"from \[([^\]]+)\]", message)
            return [event(line, "firewall", "flood", source=source.group(1) if source else "", program="sshd",
                          text=visible(message, SHOWN))]  # fmt: skip
        return []

    def duo(self, line: Mapping, entry: Mapping, message: str, known: dict, name: str) -> list[Event]:
        """pam_duo: what Duo said about a person."""
        found = _DUO.search(message)
        if not found:
            return []
        how, person, source, why = found.groups()
        action = {"Successful": "approved", "Failed": "denied", "Aborted": "aborted"}.get(how, "skipped")
        return [event(line, "duo", action, person=visible(person, 64), source=source or "", via=name, program="pam_duo",
                      result="failed" if action in ("denied", "aborted") else "success", value=why or "",
                      text=visible(message, SHOWN))]  # fmt: skip

    def sudo(self, line: Mapping, entry: Mapping, message: str, known: dict, name: str) -> list[Event]:
        """sudo: who ran what as whom, or was not let."""
        found = _SUDO.match(message)
        if not found:
            return self.duo(line, entry, message, known, name)
        person, said, terminal, _directory, target, command = found.groups()
        failed = bool(said) and not said.startswith("HOST=")
        return [event(line, "sudo", "refused" if failed else "run", person=person, uid=target, terminal=terminal or "",
                      source=session_source(entry, known), program="sudo", via="sudo", objects=[visible(command, 300)],
                      result="failed" if failed else "success", value=said or "",
                      text=visible(message.strip(), SHOWN))]  # fmt: skip

    def su(self, line: Mapping, entry: Mapping, message: str, known: dict, name: str) -> list[Event]:
        """su: who became whom."""
        found = _SU.search(message)
        if found:
            failed, target, person, terminal = found.groups()
            return [event(line, "su", "become", person=person, uid=target, terminal=terminal, objects=[target], program="su",
                          result="failed" if failed else "success", via="su", text=visible(message, SHOWN))]  # fmt: skip
        return self.pam(line, entry, message, known, name)

    def pam(self, line: Mapping, entry: Mapping, message: str, known: dict, name: str) -> list[Event]:
        """Consoles and desktops: a failed login as pam_unix tells it."""
        found = _PAM_FAILED.search(message)
        if not found:
            return self.duo(line, entry, message, known, name)
        words = dict(_WORDS.findall(found.group(2)))
        return [event(line, "login", "login", person=visible(words.get("user", "").strip('"'), 64), result="failed",
                      terminal=words.get("tty", ""), source=words.get("rhost", ""), via=found.group(1), program=name,
                      text=visible(message, SHOWN))]  # fmt: skip

    def accounts(self, line: Mapping, entry: Mapping, message: str, known: dict, name: str) -> list[Event]:
        """useradd and its like: which account was changed how; by whom as far as the journal knows."""
        for pattern, action in _ACCOUNT:
            found = pattern.search(message)
            if found:
                groups = [group for group in found.groups() if group]
                number = value_of(entry, "_AUDIT_LOGINUID")
                by = known["names"].get(number) or account(number)
                uid = groups[1] if action == "add" and len(groups) > 1 else ""
                to_root = re.search(r"(?:UID=0,|UID from '\d+' to '0')", message)
                return [event(line, "account", action, person=by, uid=value_of(entry, "_UID"), objects=groups[:2] if not uid else
                              groups[:1], value="uid0" if to_root else uid, program=name, result="success",
                              source=session_source(entry, known), text=visible(message, SHOWN))]  # fmt: skip
        return []

    def firewall(self, line: Mapping, entry: Mapping, message: str, known: dict, name: str) -> list[Event]:
        """ulogd with the firewall's lines: `bulwark-fw event=scan  IN=eth0 ... SRC=... DST=... PROTO=TCP DPT=...`."""
        if not message.startswith("bulwark-fw "):
            return []
        words = dict(_WORDS.findall(message))
        port = f"{words.get('PROTO', '').lower()}/{words.get('DPT', '')}".rstrip("/")
        return [event(line, "firewall", words.get("event", ""), source=words.get("SRC", ""), program="nftables", result="failed",
                      objects=[item for item in (port, words.get("DST", "")) if item], value=port,
                      text=visible(message, SHOWN))]  # fmt: skip

    def firewall_rules(self, line: Mapping, entry: Mapping, message: str, known: dict, name: str) -> list[Event]:
        """`nft monitor`: one line for each change, and one with the process that made them."""
        made = re.search(r"new generation \d+ by process (\d+) \((.*)\)", message)
        if not made:
            return []
        return [event(line, "firewall", "rules_changed", program=visible(made.group(2), 32), text=visible(message, SHOWN))]

    def bulwark(self, line: Mapping, entry: Mapping, message: str, known: dict, name: str) -> list[Event]:
        """Our own programs: bulwark-vpn, bulwark-duo, bulwark-guard, bulwark-break-glass, bulwark-review, bulwark-antivirus,
        bulwark-backup."""
        text, words = visible(message, SHOWN), dict(_WORDS.findall(message))
        words = {key: value.strip('"') for key, value in words.items()}
        if name == "bulwark-vpn":
            action = words.get("event", "")
            result = {"connect": "success", "refused": "failed"}.get(action, "")
            source = words.get("real", "")
            source = source.rpartition(":")[0] if source.count(":") == 1 else source
            more = {"hours": self._hours(line)} if action == "connect" else {}
            return [event(line, "vpn", action, person=words.get("user", ""), source=source, objects=[words.get("address", "")],
                          result=result, program="openvpn", value=words.get("reason", ""), text=text, **more)]  # fmt: skip
        if name == "bulwark-break-glass":
            return [event(line, "break_glass", "used", person=words.get("account", ""), source=words.get("from", ""),
                          terminal=words.get("terminal", ""), via=words.get("service", ""), text=text)]  # fmt: skip
        if name == "bulwark-guard":
            action = "rolled_back" if "was taken back" in message else "failed" if "rolling back failed" in message else "other"
            by = re.search(r"begun at \S+ by (\S+) was", message)
            return [event(line, "guard", action, person=by.group(1) if by and by.group(1) != "somebody" else "", text=text)]
        if name == "bulwark-duo":
            if re.search(r"/run/bulwark-duo-\w+/sample\.conf ", message):
                return []  # an assessment tried whether it would refuse
            return [event(line, "duo", "unsound", result="failed", text=text)]
        if name == "bulwark-antivirus":
            action = words.get("event", "")
            if action == "stopped" and known["down"] == value_of(entry, "_BOOT_ID"):
                return []  # with the whole host
            objects = [words[key] for key in ("unit", "missing") if key in words]
            return [event(line, "antivirus", action, program=name, text=text, objects=objects, value=words.get("hours", ""))]
        if name == "bulwark-backup":
            words = {key: value.strip('"') for key, value in reversed(_WORDS.findall(message))}  # what stands first counts
            action, wrong = words.get("event", ""), words.get("problem", "none") not in ("", "none")
            if action == "restore_test" and words.get("passed") != "True":
                action = "restore_test_failed"
            elif action == "pulled" and wrong:
                action = "pull_failed"
            objects = [visible(words[key], 300) for key in ("set", "copy", "file") if key in words]
            return [event(line, "backup", action, program=name, text=text, objects=objects, value=words.get("free_percent", ""))]
        if name == "bulwark-review":
            return [
                event(
                    line,
                    "review",
                    words.get("event", ""),
                    person=words.get("by", ""),
                    text=text,
                    result=words.get("result", ""),
                    objects=[words[key] for key in ("what", "digest") if key in words],
                )
            ]
        return []

    def heartbeat(self, line: Mapping, entry: Mapping, message: str, known: dict, name: str) -> list[Event]:
        """The minute's word of log_forward: alive, clock, audit."""
        words = dict(_WORDS.findall(message))
        if words.get("event") != "heartbeat":
            return []
        known["heartbeat"] = epoch(line["received"])
        text, events = visible(message, SHOWN), []
        if known["silent"]:
            known["silent"] = False
            events.append(event(line, "trail", "heard_again", text=text))
        if words.get("clock") == "unsynchronised":
            events.append(event(line, "clock", "unsynchronised", value=words.get("clock_offset_seconds", ""), text=text))
        if words.get("audit_enabled") == "0" or words.get("audit_pid") == "0":
            events.append(event(line, "audit", "off", text=text))
        if words.get("audit_lost", "-").isdigit() and int(words["audit_lost"]) > 0:
            events.append(event(line, "audit", "lost", value=words["audit_lost"], objects=[words.get("boot", "")], text=text))
        return events

    def systemd(self, line: Mapping, entry: Mapping, message: str, known: dict, name: str) -> list[Event]:
        """systemd and its parts: failed units, recorders that end, time that was set, the journal's own troubles."""
        text = visible(message, SHOWN)
        if name == "systemd-logind":
            if re.match(r"(?:The system will|System is) (?:reboot|power|halt)", message):
                known["down"] = value_of(entry, "_BOOT_ID")
            return []
        if name == "systemd-journald":
            for pattern, action in (
                (r"Suppressed (\d+) messages", "suppressed"),
                (r"Received client request to (?:rotate|relinquish)", "rotated"),
                (r"(?:Deleted (?:archived|empty) journal|Vacuuming done, freed [1-9])", "vacuumed"),
                (r"Time jumped backwards", "time"),
                (r"File .* corrupted or uncleanly", "unclean"),
                (r"Failed to write entry", "failed"),
            ):
                if re.match(pattern, message):
                    kind, action = ("clock", "jump") if action == "time" else ("journal", action)
                    return [event(line, kind, action, program=name, text=text)]
            return []
        unit = value_of(entry, "UNIT")
        failed = re.match(r"(\S+\.\w+): Failed with result '([\w-]+)'", message)
        if failed:
            kind = "recorder" if RECORDERS.fullmatch(failed.group(1)) else "fault"
            return [event(line, kind, "failed" if kind == "recorder" else "unit", objects=[visible(failed.group(1), 100)],
                          value=failed.group(2), result="failed", program="systemd", text=text)]  # fmt: skip
        if message.startswith("Stopped ") and RECORDERS.fullmatch(unit) and known["down"] != value_of(entry, "_BOOT_ID"):
            return [event(line, "recorder", "stopped", objects=[unit], program="systemd", text=text)]
        if value_of(entry, "MESSAGE_ID") == "c7a787079b354eaaa9e77b371893cd27":
            return [event(line, "time", "changed", program="systemd", text=text)]
        return []

    def kernel(self, line: Mapping, entry: Mapping, message: str, known: dict, name: str) -> list[Event]:
        """The kernel: errors, lost audit records, media, modules."""
        for pattern, kind, action in _KERNEL:
            if pattern.search(message):
                return [event(line, kind, action, program="kernel", text=visible(message, SHOWN))]
        if value_of(entry, "PRIORITY") in ("0", "1", "2", "3"):
            return [event(line, "fault", "kernel", program="kernel", text=visible(message, SHOWN))]
        return []

    def chrony(self, line: Mapping, entry: Mapping, message: str, known: dict, name: str) -> list[Event]:
        """chronyd: steps of the clock and sources that do not agree."""
        found = _CHRONY.match(message)
        if not found:
            return []
        amount = found.group(1) or found.group(2) or ""
        action = "stepped" if found.group(2) else "wrong" if amount else "unsynchronised"
        if amount and abs(float(amount)) <= self.config.get("clock_jump_seconds", 5):
            return []
        return [event(line, "clock", action, value=amount, program="chronyd", text=visible(message, SHOWN))]

    def clam(self, line: Mapping, entry: Mapping, message: str, known: dict, name: str) -> list[Event]:
        """clamd and clamonacc: `/path: Signature FOUND`. The signature is the last word but one: a file's name may hold anything.

        A name with a line break comes in several lines, of which the last one ends so. The canary of role antivirus is known by
        the hash of the whole of it, and lies in a directory that is root's.
        """
        missed = _UNGUARDED.search(message)
        if missed and name == "clamonacc":
            return [event(line, "antivirus", "path_unguarded", program=name, text=visible(message, SHOWN),
                          objects=[visible(missed.group(1), 300)])]  # fmt: skip
        found = _FOUND.fullmatch(message)
        if not found or (_CANARY.fullmatch(found.group(2)) and found.group(1).startswith(_CANARIES)):
            return []
        return [event(line, "malware", "found", objects=[visible(found.group(1), 300)], value=visible(found.group(2), 100),
                      program=name, text=visible(message, SHOWN))]  # fmt: skip

    def openvpn(self, line: Mapping, entry: Mapping, message: str, known: dict, name: str) -> list[Event]:
        """OpenVPN itself: refused logins, and our connect script's words."""
        if message.startswith("event="):
            return self.bulwark(line, entry, message, known, "bulwark-vpn")
        found = re.search(r"([0-9a-fA-F.:]+):\d+ .*(?:TLS Auth Error|VERIFY ERROR|AUTH_FAILED)", message)
        if not found:
            return []
        return [event(line, "login", "login", source=found.group(1), result="failed", via="vpn", program="openvpn",
                      text=visible(message, SHOWN))]  # fmt: skip

    def auditd(self, line: Mapping, entry: Mapping, message: str, known: dict, name: str) -> list[Event]:
        """auditd about itself."""
        if re.search(
            r"Audit daemon (?:is exiting|has no space|is (?:low|suspending|halting))|dispatch err|queue .*full", message
        ):
            return [event(line, "audit", "daemon", program="auditd", text=visible(message, SHOWN))]
        return []

    def audit(self, line: Mapping, entry: Mapping, message: str, known: dict, name: str) -> list[Event]:
        """One record; an event once all records with its serial number are there."""
        head = _AUDIT.match(message)
        if not head:
            return []
        kind, stamp, serial = head.groups()
        events, now = [], epoch(line["received"])
        if not kind.startswith("DAEMON_"):  # auditd numbers its own records by itself
            events += gaps(line, "audit", counted(known["serials"], value_of(entry, "_BOOT_ID"), int(serial), now))
        body = message[head.end() :].replace("\x1d", " ")
        if _ALONE.match(kind):
            return events + self._audit_alone(line, kind, audit_fields(body), known)
        identity = f"{stamp}:{serial}"
        waiting = known["audit"].setdefault(identity, {"since": now, "line": kept(line), "records": [], "refs": []})
        if kind == "EOE":
            return events + self._audit_whole(known["audit"].pop(identity), known)
        waiting["refs"] = [*waiting["refs"][:19], line["n"]]
        if len(waiting["records"]) < 40:
            waiting["records"].append([kind, audit_fields(body)])
        if kind == "PROCTITLE":
            events += self._audit_whole(known["audit"].pop(identity), known)
        return events

    def _named(self, fields: Mapping[str, str], known: dict) -> str:
        """Return the person behind an audit record, and remember which number that name has on this host."""
        person, number = person_of(fields), fields.get("auid", "")
        if person and person != number and known["names"].get(number) != person:
            remember(known["names"], number, person, 1024)
        return person

    def _audit_due(self, known: dict, now: float) -> list[Event]:
        """Return the events whose last record has long been due."""
        late = [key for key, waiting in known["audit"].items() if now - waiting["since"] > AUDIT_WAIT]
        late += list(known["audit"])[: max(0, len(known["audit"]) - 64)]
        return [item for key in dict.fromkeys(late) for item in self._audit_whole(known["audit"].pop(key), known)]

    def _audit_alone(self, line: Mapping, kind: str, fields: dict, known: dict) -> list[Event]:
        person = self._named(fields, known)
        # PAM names the other end; useradd and its like name the host itself.
        named = fields.get("hostname", "") if fields.get("op", "").startswith("PAM:") or kind == "USER_LOGIN" else ""
        source = fields.get("addr", "") or named
        result = {"success": "success", "failed": "failed", "1": "success", "0": "failed"}.get(fields.get("res", ""), "")
        common = {
            "person": person, "uid": fields.get("UID", fields.get("uid", "")), "terminal": fields.get("terminal", ""),
            "source": source or known["sessions"].get(fields.get("ses", ""), ""), "result": result,
            "program": fields.get("exe", ""), "via": "audit",
        }  # fmt: skip
        if source:
            remember_session(known, fields.get("ses", ""), source)
        acct = fields.get("acct", "") or fields.get("ID", "")

        def made(what: str, action: str, objects: list[str], **more: object) -> list[Event]:
            return [event(line, what, action, **{**common, "objects": objects, "text": f"{kind} {shown(fields)}", **more})]

        if kind == "USER_LOGIN":
            return made("audit_login", "login", [line["host"]], person=person or acct)
        if kind == "USER_AUTH":
            return made("audit_login", "authenticate", [acct], person=person or acct)
        if kind == "USER_CMD":
            return made("command", "run", [visible(fields.get("cmd", ""), 300)])
        if kind in ("ADD_USER", "DEL_USER", "ADD_GROUP", "DEL_GROUP", "USER_MGMT", "GRP_MGMT", "USER_CHAUTHTOK", "ACCT_LOCK",
                    "ACCT_UNLOCK", "GRP_CHAUTHTOK", "CHGRP_ID", "CHUSER_ID"):  # fmt: skip
            return made("audit_account", kind.lower(), [acct or fields.get("id", "")])
        if kind in ("DAEMON_END", "DAEMON_ABORT", "DAEMON_CONFIG", "DAEMON_ERR"):
            return made("audit", {"DAEMON_END": "stopped", "DAEMON_CONFIG": "rules"}.get(kind, "daemon"), ["auditd"])
        if kind.startswith("ANOM_") and kind not in ("ANOM_ABEND",):
            return made("anomaly", kind.lower(), [fields.get("acct", fields.get("exe", ""))])
        return []

    def _audit_whole(self, waiting: Mapping, known: dict) -> list[Event]:
        """Return the events that the records of one serial number are."""
        line, records = waiting["line"], waiting["records"]
        call: dict = next((fields for kind, fields in records if kind == "SYSCALL"), {})
        cwd = next((fields.get("cwd", "") for kind, fields in records if kind == "CWD"), "")
        paths = [(f.get("name", ""), f.get("nametype", "")) for kind, f in records if kind == "PATH" and f.get("name")]
        objects = [p if p.startswith("/") or not cwd else os.path.normpath(f"{cwd}/{p}") for p, what in paths if what != "PARENT"]
        objects = list(dict.fromkeys(visible(p, 300) for p in objects or [p for p, _what in paths]))[:8]
        ran = next((f for kind, f in records if kind == "EXECVE"), None)
        command = next((f.get("proctitle", "") for kind, f in records if kind == "PROCTITLE"), "")
        if ran:
            count = int(ran["argc"]) if ran.get("argc", "").isdigit() else 0
            command = " ".join(ran.get(f"a{number}", "") for number in range(min(count, 40)))
        person, session = self._named(call, known), call.get("ses", "")
        common = {
            "person": person,
            "uid": call.get("EUID", call.get("euid", "")),
            "terminal": call.get("tty", "").replace("(none)", ""),
            "source": known["sessions"].get(session, ""),
            "result": {"yes": "success", "no": "failed"}.get(call.get("success", ""), ""),
            "program": visible(call.get("exe", ""), 200),
            "via": "audit",
            "refs": waiting["refs"],
            "text": visible(f"{call.get('SYSCALL', call.get('syscall', ''))} {call.get('exe', '')}: {command}", SHOWN),
        }
        events = []
        name = call.get("SYSCALL", "")
        for key in [k for k in re.split("[\x01 ,]", call.get("key", "")) if k]:
            kind, action = KEYS.get(key, ("audit_key", key))
            about = objects or ([visible(command, 300)] if command else [])
            value = ""
            if kind == "module":
                action = "unload" if name == "delete_module" else action
                about = [visible(f["name"], 100) for k, f in records if k == "KERN_MODULE" and f.get("name")] or about
            elif kind == "mount" and name.startswith("umount"):
                action = "unmount"
            elif action == "denied" and self._sensitive(objects):  # on the way there: the path's own rule did not see it
                kind, action = "sensitive", "write" if writes(name, call) else "read"
            elif kind in ("sensitive", "trail_read") and (_CHANGES.search(name) or writes(name, call)):
                action = "write"
            elif action == "permissions" and (mode := mode_given(name, call)) & 0o6000:
                kind, action, value = "setuid", "set", f"{mode:04o}"
            elif kind == "privilege":
                about, value = [visible(command, 300)] if command else about, call.get("exe", "")
            more = {"ticket": self._ticket(person, line["received"])} if kind == "trail_read" else {}
            events.append(event(line, kind, action, **{**common, "objects": about, "key": key, "value": value, **more}))
            if any(path.startswith("/etc/sudoers") for path in objects) and kind in ("configuration", "account_files", "file"):
                events.append(event(line, "sudoers", "edit", **{**common, "objects": objects, "key": key}))
            touched = [path for path in objects if path.startswith(_LOGS) and path != _LOGIN_JOURNAL]
            if kind in ("file", "log_tool") and action != "denied" and touched:
                events.append(event(line, "log_file", "changed", **{**common, "objects": objects, "key": key, "value": name}))
        for kind, fields in records:
            if kind == "CONFIG_CHANGE":
                by = {
                    "person": person or person_of(fields),
                    "result": {"1": "success", "0": "failed"}.get(fields.get("res", ""), ""),
                }
                what = fields.get("op", "") or next(
                    (f"{w}={fields[w]}" for w in ("audit_enabled", "audit_failure") if w in fields), ""
                )
                text = f"CONFIG_CHANGE {shown(fields)}"
                objects_of = [visible(fields.get("key", what), 100)]
                events.append(
                    event(line, "audit", "rules", **{**common, **by, "objects": objects_of, "value": what, "text": text})
                )
        if not events and self.everything and records:
            text = f"{records[0][0]} {common['text']}" if call else f"{records[0][0]} {shown(records[0][1])}"
            events.append(event(line, "audit_record", records[0][0].lower(), **{**common, "objects": objects, "text": text}))
        return events

    def _sensitive(self, paths: Sequence[str]) -> bool:
        """Return whether one of these paths is, or lies below, one that the site named as sensitive."""
        tops = self.config.get("sensitive_paths", [])
        return any(path == top or path.startswith(f"{top.rstrip('/')}/") for path in paths for top in tops)

    def _ticket(self, person: str, received: str) -> str:
        """Return the ticket by which a person may look into the trail on that day, or nothing."""
        for ticket in self.tickets:
            if ticket["person"] == person and ticket["from"] <= received[:10] <= ticket["to"]:
                return ticket["ticket"]
        return ""

    def _hours(self, line: Mapping) -> str:
        """Return inside or outside of the declared hours (local time of receipt), or nothing if none are declared."""
        if not self.hours:
            return ""
        local = time.localtime(epoch(line["received"]))
        day = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")[local.tm_wday]
        clock = f"{local.tm_hour:02}:{local.tm_min:02}"
        return "inside" if day in self.hours["days"] and self.hours["from"] <= clock < self.hours["to"] else "outside"

    def tick(self, now: float) -> list[Event]:
        """Return what is waited for no more: the rest of audit events, and numbers that never came."""
        events: list[Event] = []
        for name, known in self.state.items():
            if known["audit"]:
                events += self._audit_due(known, now)
            for kind, watch in (("trail", known["cursor"]), ("audit", known["serials"])):
                if watch["holes"]:
                    line = {"host": name, "n": known["n"], "received": stamp_of(now), "time": stamp_of(now)}
                    events += gaps(line, kind, overdue(watch, now))
        return events


READERS: dict[str, Callable[..., list[Event]]] = {
    "sshd": Normaliser.sshd,
    "sshd-session": Normaliser.sshd,
    "sudo": Normaliser.sudo,
    "su": Normaliser.su,
    "login": Normaliser.pam,
    "ulogd": Normaliser.firewall,
    "bulwark-fw-rules": Normaliser.firewall_rules,
    "bulwark": Normaliser.bulwark,
    "bulwark-heartbeat": Normaliser.heartbeat,
    "systemd": Normaliser.systemd,
    "systemd-logind": Normaliser.systemd,
    "systemd-journald": Normaliser.systemd,
    "kernel": Normaliser.kernel,
    "chronyd": Normaliser.chrony,
    "clamd": Normaliser.clam,
    "clam": Normaliser.clam,
    "clamonacc": Normaliser.clam,
    "clamav": Normaliser.clam,
    "clamscan": Normaliser.clam,
    "openvpn": Normaliser.openvpn,
    "ovpn": Normaliser.openvpn,
    "audispd": Normaliser.audit,  # what the plugin calls itself
    "audisp-syslog": Normaliser.audit,
    "auditd": Normaliser.auditd,
    "pam_duo": Normaliser.duo,
    **dict.fromkeys(_ACCOUNT_PROGRAMS, Normaliser.accounts),
}


def kept(line: Mapping) -> dict:
    """Return of a line what an event needs, without its raw bytes."""
    return {key: line[key] for key in ("n", "received", "time", "host")}


def shown(fields: Mapping[str, str]) -> str:
    """Return the fields of an audit record on one line."""
    return visible(" ".join(f"{key}={value}" for key, value in fields.items()), SHOWN)


def person_of(fields: Mapping[str, str]) -> str:
    """Return the person behind an audit record, by the login uid; nobody, if a service did it."""
    name, number = fields.get("AUID", ""), fields.get("auid", "")
    if number in UNSET and name in UNSET:
        return ""
    return visible(name, 64) if name not in UNSET else number


def remember(known: dict, name: str, value: str, most: int) -> None:
    """Remember a value under a name, and forget what was first remembered when there are more than ``most``."""
    known[name] = value
    while len(known) > most:
        known.pop(next(iter(known)))


def remember_session(known: dict, session: str, source: str) -> None:
    """Remember the address that a session's login came from; audit records tell it, and sshd, which may be heard earlier."""
    if session not in UNSET:
        remember(known["sessions"], session, source, 256)


def session_source(entry: Mapping, known: Mapping) -> str:
    """Return the address that the login came from in whose session a line was written, as lines before told it."""
    return known["sessions"].get(value_of(entry, "_AUDIT_SESSION"), "")


def account(number: str) -> str:
    """Return how a uid of another host is shown: the collector does not know its names."""
    return "" if number in UNSET else f"uid {number}"


def mode_given(name: str, call: Mapping[str, str]) -> int:
    """Return the mode that chmod and its like were given, 0 for other calls."""
    which = {"chmod": "a1", "fchmod": "a1", "fchmodat": "a2", "fchmodat2": "a2"}.get(name, "")
    try:
        return int(call.get(which, "0"), 16) & 0o7777
    except ValueError:
        return 0


def writes(name: str, call: Mapping[str, str]) -> bool:
    """Return whether an open was for writing."""
    which = {"open": "a1", "openat": "a2"}.get(name, "")
    try:
        return bool(int(call.get(which, "0"), 16) & 3)
    except ValueError:
        return False


# ------------------------------------------------------------------------------------------------------------------------------
# Rules


def matcher(wanted: object, lists: Mapping[str, Sequence[str]]) -> Callable[[object], bool]:
    """Return a test of one field: text (equal), list (one of), or a mapping with some of

    match / not_match (regular expression found in it), prefix (list), not (list of what it must not be), present (true: not
    empty), at_least (a number), in / not_in (name of a list in the configuration). Of several objects one is enough; all must
    pass what begins with not.
    """
    if isinstance(wanted, str):
        return lambda value: wanted in value if isinstance(value, list) else value == wanted
    if isinstance(wanted, list):
        choices = frozenset(wanted)
        return lambda value: not choices.isdisjoint(value) if isinstance(value, list) else value in choices
    tests: list[Callable[[str], bool]] = []
    refusals: list[Callable[[str], bool]] = []
    for name, bound in wanted.items():
        if name in ("match", "not_match"):
            found = re.compile(bound).search
            (tests if name == "match" else refusals).append(lambda value, found=found: bool(found(value)))
        elif name == "prefix":
            tests.append(lambda value, starts=tuple(bound): value.startswith(starts))
        elif name == "not":
            refusals.append(frozenset(bound).__contains__)
        elif name == "present":
            tests.append(lambda value, must=bool(bound): bool(value) is must)
        elif name == "at_least":
            tests.append(
                lambda value, least=float(bound): bool(re.fullmatch(r"[+-]?[\d.]+", value)) and abs(float(value)) >= least
            )
        elif name in ("in", "not_in"):
            (tests if name == "in" else refusals).append(frozenset(lists.get(bound, ())).__contains__)
        else:
            raise ValueError(f"{name}: unknown test; known are match, not_match, prefix, not, present, at_least, in, not_in")

    def test(value: object) -> bool:
        values = [str(item) for item in value] if isinstance(value, list) else [str(value)]
        if not values:
            values = [""]
        return not any(no(item) for no in refusals for item in values) and all(any(yes(item) for item in values) for yes in tests)

    return test


class Rule:
    """One rule, ready to be asked."""

    def __init__(self, data: Mapping, lists: Mapping[str, Sequence[str]]) -> None:
        self.id, self.title, self.severity = data["id"], data["title"], data["severity"]
        self.statements = data.get("statements", [])
        kinds = data["select"]["kind"]
        self.kinds = [kinds] if isinstance(kinds, str) else list(kinds)
        self.tests = [(field, matcher(wanted, lists)) for field, wanted in data["select"].items() if field != "kind"]
        self.group_by, self.distinct = data.get("group_by", []), data.get("distinct", "")
        self.count, self.window = int(data.get("count", 1)), float(data.get("window", 300))
        self.quiet = float(data.get("quiet", max(self.window, 300)))
        self.each = not self.group_by and self.count == 1  # every event is an alarm of its own

    def selects(self, item: Event) -> bool:
        """Return whether an event is one that the rule is about."""
        return all(test(item[field]) for field, test in self.tests)


def rule_problems(rules: Sequence) -> list[str]:
    """Return what is wrong with rules, in words."""
    known = {"id", "title", "statements", "severity", "select", "group_by", "count", "window", "distinct", "quiet"}
    fields, said, ids = set(event({"host": ""}, "")), [], set()
    for number, data in enumerate(rules):
        where = f"rule {number + 1}"
        if not isinstance(data, Mapping):
            said.append(f"{where}: not a mapping")
            continue
        where = f"rule {data.get('id', number + 1)!s:.60}"
        if not re.fullmatch(r"[a-z][a-z0-9_]{1,39}", str(data.get("id", ""))):
            said.append(f"{where}: id must be 2 to 40 of a-z, 0-9 and _")
        if data.get("id") in ids:
            said.append(f"{where}: there is another with this id")
        ids.add(data.get("id"))
        said += [f"{where}: {key} is not known" for key in sorted(set(data) - known)]
        if not isinstance(data.get("title"), str) or not data["title"].strip():
            said.append(f"{where}: title is missing")
        if data.get("severity") not in SEVERITIES:
            said.append(f"{where}: severity must be one of {', '.join(SEVERITIES)}")
        select = data.get("select")
        if not isinstance(select, Mapping) or not select.get("kind") or not isinstance(select["kind"], (str, list)):
            said.append(f"{where}: select must name a kind")
            continue
        for field in [*select, *data.get("group_by", []), *([data["distinct"]] if data.get("distinct") else [])]:
            if field not in fields:
                said.append(f"{where}: {field} is no field of an event")
        for name, low, high in (("count", 1, 10000), ("window", 1, 86400), ("quiet", 0, 604800)):
            number_given = data.get(name, low)
            if isinstance(number_given, bool) or not isinstance(number_given, (int, float)) or not low <= number_given <= high:
                said.append(f"{where}: {name} must be a number from {low} to {high}")
        if data.get("distinct") and int(data.get("count", 1) or 1) < 2:
            said.append(f"{where}: distinct needs a count of 2 or more")
        try:
            for wanted in select.values():
                matcher(wanted, {})
        except (ValueError, TypeError, AttributeError, re.error) as exc:
            said.append(f"{where}: {exc}")
    return said


def fingerprint(rule: Mapping) -> str:
    """Return a rule's id and the SHA-256 of all it says, so that two rules can be compared without showing them."""
    said = json.dumps(rule, sort_keys=True, ensure_ascii=True)
    return f"{rule.get('id', '')} {hashlib.sha256(said.encode()).hexdigest()}"


class Engine:
    """Lines go in, alarms come out. All it remembers is in ``state``."""

    def __init__(self, config: Mapping, state: dict | None = None) -> None:
        self.config = config
        self.state: dict = state if state is not None else {}
        for key, empty in (
            ("hosts", {}),
            ("groups", {}),
            ("last_tick", 0.0),
            ("last_line", 0.0),
            ("forgotten", 0),
            ("since", 0.0),
        ):
            self.state.setdefault(key, empty)
        self.normaliser = Normaliser(config, self.state["hosts"])
        lists = config.get("lists", {})
        self.rules = [Rule(data, lists) for data in config["rules"]]
        self.by_kind: dict[str, list[Rule]] = {}
        for rule in self.rules:
            for kind in rule.kinds:
                self.by_kind.setdefault(kind, []).append(rule)
        self.silent_seconds = 60.0 * config.get("silent_minutes", 3)
        self.expected = list(config.get("hosts", {}))
        self.watch_events: Callable[[Event], None] | None = None

    def feed(self, line: Mapping) -> list[dict]:
        """Return the alarms that a line raises."""
        alarms = []
        if "received" in line:
            now = epoch(line["received"])
            if now - self.state["last_tick"] >= 30:
                alarms += self.tick(now)
            self.state["last_line"] = max(now, self.state["last_line"])
        for item in self.normaliser.feed(line):
            alarms += self.judge(item)
        return alarms

    def judge(self, item: Event) -> list[dict]:
        """Return the alarms that an event raises."""
        if self.watch_events is not None:
            self.watch_events(item)
        alarms = []
        for rule in self.by_kind.get(item["kind"], ()):
            if rule.selects(item):
                fired = self._count(rule, item)
                if fired:
                    alarms.append(fired)
        return alarms

    def _count(self, rule: Rule, item: Event) -> dict | None:
        if rule.each:
            return self._alarm(rule, item, 1)
        group = [" ".join(value) if isinstance(value, list) else value for value in (item[field] for field in rule.group_by)]
        if any(not value and field != "host" for field, value in zip(rule.group_by, group, strict=True)):
            return None
        now = epoch(item["received"])
        groups = self.state["groups"].setdefault(rule.id, {})
        key = "\x1f".join(group)
        known = groups.pop(key, None) or {"seen": [], "until": 0.0}
        groups[key] = known  # the last in the order, so the one that is forgotten last
        if len(groups) > GROUPS_MAX:
            groups.pop(next(iter(groups)))
            self.state["forgotten"] += 1
        if now < known["until"]:
            return None
        value = item[rule.distinct] if rule.distinct else ""
        value = " ".join(value) if isinstance(value, list) else value
        known["seen"] = [
            [when, what] for when, what in known["seen"] if now - when < rule.window and not (value and what == value)
        ]
        known["seen"].append([now, value])
        if len(known["seen"]) < rule.count:
            return None
        count = len(known["seen"])
        known["seen"], known["until"] = [], now + rule.quiet
        return self._alarm(rule, item, count)

    def _alarm(self, rule: Rule, item: Event, count: int) -> dict:
        about = [
            rule.id,
            item["host"],
            item["kind"],
            item["action"],
            item["refs"],
            item["objects"],
            item["person"],
            item["source"],
        ]
        identity = hashlib.sha256(json.dumps(about).encode()).hexdigest()[:16]
        return {
            "id": identity, "rule": rule.id, "title": rule.title, "severity": rule.severity, "statements": rule.statements,
            "count": count, "window": rule.window if count > 1 else 0, "event": item,
        }  # fmt: skip

    def tick(self, now: float) -> list[dict]:
        """Return the alarms of hosts that have been silent for too long, and of audit events that were waited for.

        When nothing came from anybody, it is the collector that is deaf: that is one alarm, and the hosts' silence begins anew.
        """
        state, alarms = self.state, []
        state["last_tick"] = now
        state["since"] = state["since"] or now
        for item in self.normaliser.tick(now):
            alarms += self.judge(item)
        names = list(dict.fromkeys([*self.expected, *state["hosts"]]))
        heard = state["last_line"] or state["since"]
        if now - heard > self.silent_seconds:
            if state.get("deaf") != heard and names:
                state["deaf"] = heard
                line = {"host": self.config.get("collector", "collector"), "received": stamp_of(now), "time": stamp_of(now)}
                text = f"nothing has come from any host since {stamp_of(heard)}"
                alarms += self.judge(event(line, "trail", "deaf", objects=[stamp_of(heard)], text=text))
            for name in names:
                known = self.normaliser.host(name)
                known["heartbeat"] = max(known["heartbeat"], now - self.silent_seconds / 2)
            return alarms
        for name in names:
            known = self.normaliser.host(name)
            last = known["heartbeat"] or state["since"]
            if now - last > self.silent_seconds and not known["silent"]:
                known["silent"] = True
                line = {
                    "host": name,
                    "received": stamp_of(now),
                    "time": stamp_of(now),
                    **({"n": known["n"]} if known["n"] else {}),
                }
                text = f"no sign of life since {stamp_of(last)}"
                alarms += self.judge(event(line, "trail", "silent", objects=[stamp_of(last)], text=text))
        return alarms


# ------------------------------------------------------------------------------------------------------------------------------
# What is kept


def read_config(path: str) -> dict:
    """Return the configuration. Raises Refused when it or one of its rules is not what it should be."""
    try:
        with open(path, encoding="utf-8") as stream:
            config = json.load(stream)
        problems = rule_problems(config["rules"])
    except (OSError, ValueError, KeyError, TypeError) as exc:
        raise Refused(f"{path}: {type(exc).__name__}: {exc}") from exc
    if problems:
        raise Refused(f"{path}: {'; '.join(problems)}")
    return config


def write_whole(path: str, text: str, mode: int = 0o640) -> None:
    """Write a file so that it is there in full or not at all."""
    new = f"{path}.new"
    with open(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, mode), "w", encoding="utf-8") as stream:
        os.fchmod(stream.fileno(), mode)
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())
    os.replace(new, path)


class Place:
    """The program's own directory: state/ (nobody else's), alerts/, incidents/, digests/, outbox/, register.jsonl."""

    def __init__(self, directory: str) -> None:
        self.directory = directory
        for name, mode in (("state", 0o700), ("alerts", 0o750), ("incidents", 0o750), ("digests", 0o750), ("outbox", 0o700)):
            path = os.path.join(directory, name)
            if not os.path.isdir(path):
                os.mkdir(path, mode)
                os.chmod(path, mode)

    def path(self, *names: str) -> str:
        """Return where something lies."""
        return os.path.join(self.directory, *names)

    @contextlib.contextmanager
    def alone(self, name: str) -> Iterator[None]:
        """Let one process at a time do something."""
        with open(os.open(self.path("state", f"{name}.lock"), os.O_RDWR | os.O_CREAT, 0o600), "r+") as handle:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield

    def key(self) -> bytes:
        """Return the key of the pseudonyms, made on first use."""
        path = self.path("state", "key")
        if not os.path.exists(path):
            with self.alone("key"):
                if not os.path.exists(path):
                    write_whole(path, secrets.token_hex(32) + "\n", 0o600)
        with open(path, encoding="ascii") as stream:
            return bytes.fromhex(stream.read().strip())


def pseudonym(key: bytes, kind: str, name: str) -> str:
    """Return what stands for a person or a host: the same for the same name, and nobody without the key can tell whose."""
    return f"{kind}-{hmac.new(key, f'{kind} {name}'.encode(), hashlib.sha256).hexdigest()[:8]}"


def entry_hash(entry: Mapping) -> str:
    """Return what an entry of the register must carry as ``hash``: over the one before and its own content."""
    return hashlib.sha256(json.dumps({k: v for k, v in entry.items() if k != "hash"}, sort_keys=True).encode()).hexdigest()


def read_register(path: str) -> tuple[list[dict], str]:
    """Return (entries, what is wrong with the register or nothing). A register that is not there is empty."""
    entries, previous = [], ""
    try:
        with open(path, encoding="utf-8") as stream:
            for number, text in enumerate(stream, 1):
                entry = json.loads(text)
                if entry["n"] != number or entry["previous"] != previous or entry["hash"] != entry_hash(entry):
                    return entries, f"line {number} of the register was altered, or lines before it are missing"
                previous = entry["hash"]
                entries.append(entry)
    except FileNotFoundError:
        return [], ""
    except (OSError, ValueError, KeyError, TypeError) as exc:
        return entries, f"line {len(entries) + 1} of the register cannot be read: {type(exc).__name__}"
    return entries, ""


def record(place: Place, what: str, by: str, **more: object) -> dict:
    """Append an entry to the register and say so in the journal, which goes to the trail like everybody's."""
    path = place.path("register.jsonl")
    with place.alone("register"):
        entries, problem = read_register(path)
        if problem:
            raise Refused(f"nothing is recorded any more: {problem}")
        entry = {"n": len(entries) + 1, "time": stamp_of(time.time()), "what": what, "by": by, **more,
                 "previous": entries[-1]["hash"] if entries else ""}  # fmt: skip
        entry["hash"] = entry_hash(entry)
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW, 0o640), "a", encoding="utf-8") as stream:
            os.fchmod(stream.fileno(), 0o640)
            stream.write(json.dumps(entry, sort_keys=True) + "\n")
            stream.flush()
            os.fsync(stream.fileno())
    words = {
        key: value for key, value in more.items() if isinstance(value, str) and key in ("digest", "result", "pseudonym", "ticket")
    }
    say("bulwark-review", syslog.LOG_NOTICE, {"event": what, "by": by, **words, "n": entry["n"], "hash": entry["hash"]})
    return entry


def say(tag: str, priority: int, words: Mapping[str, object]) -> None:
    """Write one line of words to the journal; text with blanks stands in quotes."""
    said = []
    for key, value in words.items():
        text = visible(str(value), SHOWN).replace('"', "'")
        said.append(f'{key}="{text}"' if " " in text or not text else f"{key}={text}")
    syslog.openlog(tag, 0, syslog.LOG_AUTHPRIV)
    syslog.syslog(priority, " ".join(said))
    syslog.closelog()


def actor() -> tuple[str, int]:
    """Return (name, uid) of the person who runs this: whom the kernel remembers from the login, else whom sudo names."""
    number = -1
    with contextlib.suppress(OSError, ValueError), open("/proc/self/loginuid", encoding="ascii") as stream:
        number = int(stream.read())
    if number in (-1, 4294967295):
        given = os.environ.get("SUDO_UID", "")
        if not given.isdigit():
            raise Refused("who asks is not known: neither the kernel nor sudo names a person")
        number = int(given)
    try:
        return pwd.getpwuid(number).pw_name, number
    except KeyError as exc:
        raise Refused(f"who asks is not known: no account has the number {number}") from exc


def reviewer(config: Mapping, what: str) -> tuple[str, int]:
    """Return (name, uid) of the declared reviewer who runs this. Raises Refused, and says so in the journal, for anybody else."""
    name, number = actor()
    if name not in config["reviewers"]:
        say("bulwark-review", syslog.LOG_WARNING, {"event": "refused", "by": name, "what": what})
        raise Refused(f"{name} is no declared reviewer (log_review_reviewers)")
    return name, number


# ------------------------------------------------------------------------------------------------------------------------------
# watch


class Herald:
    """Let the world know of alarms, each once: the file first, then incident, mail and journal.

    A watch that was killed does its last lines again. Alarms that are in the file since it last saved how far it was are not
    raised again, but for the last of them: nobody knows how far that one came.
    """

    def __init__(self, config: Mapping, place: Place, saved: str) -> None:
        self.config, self.place = config, place
        since: list[str] = []
        for name in sorted(os.listdir(place.path("alerts")))[-2:]:
            for text in tail(place.path("alerts", name)):
                with contextlib.suppress(ValueError, KeyError, TypeError):
                    identity = json.loads(text)["id"]
                    since = [] if identity == saved else [*since[-2000:], identity]
        self.done, self.unsure = set(since), since[-1] if since else ""
        self.last, self.raised = since[-1] if since else saved, 0
        self.by_rule: collections.Counter = collections.Counter()

    def raise_alarm(self, alarm: dict) -> None:
        """Raise one alarm, if its rule has not raised too many in this run already."""
        if alarm["severity"] == "info":
            return  # the digest shows these
        if alarm["id"] in self.done and alarm["id"] != self.unsure:
            return
        self.by_rule[alarm["rule"]] += 1
        if self.by_rule[alarm["rule"]] <= ALARMS_PER_RULE:
            self._out(alarm)

    def close(self) -> None:
        """Say in one alarm what was too much for one run."""
        for rule, number in self.by_rule.items():
            if number > ALARMS_PER_RULE:
                item = event(
                    {"host": self.config.get("collector", "collector"), "time": stamp_of(time.time())},
                    "trail",
                    "many",
                    text=f"{number - ALARMS_PER_RULE} more alarms of this rule, see the next digest",
                )
                self._out({"id": secrets.token_hex(8), "rule": rule, "title": "Many alarms at once", "severity": "high",
                           "statements": [], "count": number, "window": 0, "event": item})  # fmt: skip

    def _out(self, alarm: dict) -> None:
        raised = {"raised": stamp_of(time.time()), **alarm}
        if alarm["id"] not in self.done:
            path = self.place.path("alerts", f"{day_of(time.time())}.jsonl")
            with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o640), "a", encoding="utf-8") as stream:
                os.fchmod(stream.fileno(), 0o640)
                stream.write(json.dumps(raised) + "\n")
                stream.flush()
                os.fsync(stream.fileno())
        self.done.add(alarm["id"])
        self.last, self.raised = alarm["id"], self.raised + 1
        item = alarm["event"]
        if SEVERITIES.index(alarm["severity"]) >= SEVERITIES.index(self.config["incident_severity"]):
            path = self.place.path("incidents", f"{raised['raised'][:10]}-{alarm['rule']}-{alarm['id']}.json")
            if not os.path.exists(path):
                stub = {
                    "incident": alarm["id"],
                    "opened": raised["raised"],
                    "status": "open",
                    "owner": "",
                    "severity": alarm["severity"],
                    "what": alarm["title"],
                    "rule": alarm["rule"],
                    "statements": alarm["statements"],
                    "host": item["host"],
                    "person": item["person"],
                    "when": item["time"],
                    "from": item["source"],
                    "objects": item["objects"],
                    "lines": item["refs"],
                    "text": item["text"],
                    "done": [],
                }
                write_whole(path, json.dumps(stub, indent=1) + "\n")
        if self.config.get("mail_to") and SEVERITIES.index(alarm["severity"]) >= SEVERITIES.index(self.config["mail_severity"]):
            path = self.place.path("outbox", f"{alarm['id']}.json")
            if len(os.listdir(self.place.path("outbox"))) < 1000:
                write_whole(path, json.dumps(raised), 0o600)
        words = {"event": "alert", "rule": alarm["rule"], "host": item["host"], "severity": alarm["severity"], "id": alarm["id"]}
        words |= {name: item[name] for name in ("person", "source", "terminal", "result") if item[name]}
        if item["objects"]:
            words["object"] = " ".join(item["objects"])[:200]
        words |= {"count": alarm["count"], "time": item["time"], "text": item["text"]}
        say("bulwark-alert", PRIORITIES[alarm["severity"]], words)


def tail(path: str, size: int = 2 << 20) -> list[str]:
    """Return the last lines of a file, at most so many bytes of them."""
    with open(path, "rb") as stream:
        length = stream.seek(0, os.SEEK_END)
        stream.seek(max(0, length - size))
        lines = stream.read().decode("utf-8", "replace").splitlines()
    return lines[1:] if length > size else lines


def watch(config: Mapping, place: Place, now: float | None = None) -> dict:
    """Look at everything that has come in since the last time. Returns {lines, alarms}."""
    with place.alone("watch"):
        path = place.path("state", "watch.json")
        try:
            with open(path, encoding="utf-8") as stream:
                saved = json.load(stream)
        except FileNotFoundError:
            saved = {"engine": {}, "last_alarm": "", "lines": 0, "runs": 0}
        except ValueError as exc:
            raise Refused(f"{path}: {exc}: delete it to begin anew with all that is in the store") from exc
        engine = Engine(config, saved["engine"])
        herald = Herald(config, place, saved["last_alarm"])
        lines = since_saved = raised_saved = 0

        def save() -> None:
            nonlocal since_saved, raised_saved
            saved.update(engine=engine.state, last_alarm=herald.last, at=stamp_of(time.time()))
            write_whole(path, json.dumps(saved), 0o600)
            since_saved, raised_saved = 0, herald.raised

        hosts = Store(config["store"]).hosts()
        places = {host: engine.state["hosts"].get(host, {}).get("place") for host in hosts}
        # Only the days that can still grow matter once a host is known; a new host is read from its beginning.
        for line in Store(config["store"]).merged({host: at for host, at in places.items() if at}):
            for alarm in engine.feed(line):
                herald.raise_alarm(alarm)
            lines, since_saved = lines + 1, since_saved + 1
            if since_saved >= SAVE_LINES or herald.raised - raised_saved >= SAVE_ALARMS:
                save()
        for alarm in engine.tick(now or time.time()):
            herald.raise_alarm(alarm)
        herald.close()
        saved["lines"], saved["runs"] = saved["lines"] + lines, saved["runs"] + 1
        save()
        summary = {
            "at": saved["at"], "lines": saved["lines"], "runs": saved["runs"], "hosts": len(engine.state["hosts"]),
            "silent": sorted(name for name, known in engine.state["hosts"].items() if known["silent"]),
        }  # fmt: skip
        write_whole(place.path("state", "watch-summary.json"), json.dumps(summary), 0o600)
    return {"lines": lines, "alarms": herald.raised}


def send_mail(config: Mapping, place: Place) -> int:
    """Hand what waits in the outbox to sendmail, all in one message, and return how many alarms it tells of."""
    names = sorted(name for name in os.listdir(place.path("outbox")) if name.endswith(".json"))
    if not names or not config.get("mail_to"):
        return 0
    alarms = []
    for name in names:
        with open(place.path("outbox", name), encoding="utf-8") as stream:
            alarms.append(json.load(stream))
    alarms.sort(key=lambda alarm: (-SEVERITIES.index(alarm["severity"]), alarm["raised"]))
    message = EmailMessage()
    message["From"], message["To"] = config["mail_from"], ", ".join(config["mail_to"])
    message["Subject"] = visible(f"[bulwark] {len(alarms)} alarm(s), worst {alarms[0]['severity']}: {alarms[0]['title']}", 150)
    message["Auto-Submitted"] = "auto-generated"
    lines = []
    for alarm in alarms[:50]:
        item = alarm["event"]
        lines += [f"{alarm['severity'].upper()}  {visible(alarm['title'], 150)}", f"  host {item['host']}, {item['time']}"]
        lines += [
            f"  {name} {visible(str(item[name]), 100)}" for name in ("person", "source", "terminal", "result") if item[name]
        ]
        lines += [f"  {visible(' '.join(item['objects']), 200)}"] if item["objects"] else []
        lines += [f"  {visible(item['text'], SHOWN)}", f"  rule {alarm['rule']}, alarm {alarm['id']}", ""]
    lines += [f"and {len(alarms) - 50} more"] if len(alarms) > 50 else []
    message.set_content("\n".join(lines))
    done = subprocess.run(
        [config["sendmail"], "-i", "--", *config["mail_to"]],
        input=message.as_bytes(),
        check=False,
        capture_output=True,
        timeout=60,
    )
    if done.returncode:
        raise Refused(f"{config['sendmail']}: exit {done.returncode}: {visible(done.stderr.decode(errors='replace'), 200)}")
    for name in names:
        os.unlink(place.path("outbox", name))
    return len(alarms)


# ------------------------------------------------------------------------------------------------------------------------------
# digest


class Sample:
    """A random sample that can be drawn again: those lines whose hash with the seed is the smallest. Order does not matter."""

    def __init__(self, seed: str, size: int) -> None:
        self.seed, self.size, self.of = seed, size, 0
        self.heap: list[tuple[int, str, Event]] = []

    def offer(self, item: Event) -> None:
        """Consider one event."""
        self.of += 1
        name = f"{item['host']} {item['refs'][0]} {item['key']}"
        drawn = int(hashlib.sha256(f"{self.seed} {name}".encode()).hexdigest()[:15], 16)
        if len(self.heap) < self.size:
            heapq.heappush(self.heap, (-drawn, name, item))
        elif self.size and -self.heap[0][0] > drawn:
            heapq.heapreplace(self.heap, (-drawn, name, item))

    def drawn(self) -> list[Event]:
        """Return the sample, in order of time."""
        return [item for _drawn, _name, item in sorted(self.heap, key=lambda entry: (entry[2]["received"], entry[1]))]


ADMINISTRATION = (
    "sudo",
    "su",
    "account",
    "account_files",
    "configuration",
    "sudoers",
    "privilege",
    "audit",
    "module",
    "mount",
    "setuid",
    "log_tool",
    "log_file",
    "firewall",
    "guard",
    "break_glass",
)


class Activity:
    """What each person did, counted; a person who did an administrator's work is one."""

    def __init__(self) -> None:
        self.people: dict[str, dict] = {}
        self.more = 0

    def note(self, item: Event) -> None:
        """Count one event."""
        name = item["person"]
        if not name:
            return
        if name not in self.people and len(self.people) >= 2000:
            self.more += 1
            return
        known = self.people.setdefault(name, {
            "first": item["time"], "last": item["time"], "events": 0, "administrator": False, "logins": 0, "failed": 0,
            "privileged": 0, "changes": 0, "sensitive": 0, "hosts": [], "sources": [], "commands": [],
        })  # fmt: skip
        kind = item["kind"]
        known["events"] += 1
        known["first"], known["last"] = min(known["first"], item["time"]), max(known["last"], item["time"])
        known["logins"] += kind in ("login", "vpn") and item["result"] == "success"
        known["failed"] += item["result"] == "failed"
        known["privileged"] += kind in ("sudo", "su", "privilege")
        known["changes"] += kind in ("account", "account_files", "configuration", "sudoers", "module", "mount", "setuid", "audit")
        known["sensitive"] += kind in ("sensitive", "trail_read")
        if (
            kind in ADMINISTRATION
            and item["result"] != "failed"
            and not (kind in ("privilege", "sudo", "su") and item["uid"] not in ("root", "0"))
        ):
            known["administrator"] = True
        for key, value in (("hosts", item["host"]), ("sources", item["source"])):
            if value and value not in known[key] and len(known[key]) < 20:
                known[key].append(value)
        if kind == "sudo" and len(known["commands"]) < 20:
            known["commands"].append(item["objects"][0] if item["objects"] else "")


def verified(config: Mapping) -> dict:
    """Return what `trail_store verify` says: {ok: true, false or None (could not be asked), said: text}."""
    program = config.get("verify", "")
    if not program or not os.path.exists(program):
        return {"ok": None, "said": f"{program or 'no program'} is not there: nobody has looked"}
    try:
        done = subprocess.run(
            [program, "verify", "--directory", config["store"], "--json"],
            check=False,
            capture_output=True,
            timeout=3600,
            stdin=subprocess.DEVNULL,
        )
    except (OSError, subprocess.TimeoutExpired) as exc:
        return {"ok": None, "said": visible(str(exc), 200)}
    said = (done.stdout or done.stderr).decode(errors="replace").strip()
    with contextlib.suppress(ValueError, KeyError, TypeError):
        findings = json.loads(said)["findings"]
        more = f"; and {len(findings) - 10} more" if len(findings) > 10 else ""
        said = "; ".join(f"{f['host']}/{f['file']}, line {f['line']}: {f['problem']}" for f in findings[:10]) + more
    said = visible(said, 2000)
    verdicts = {0: True, 1: False}  # anything else: it could not look
    return {"ok": verdicts.get(done.returncode), "said": said if done.returncode else "every line follows from the one before it"}


def digest_of(
    config: Mapping, since: str, until: str, seed: str, key: bytes, former: Mapping | None = None, ends: Mapping | None = None
) -> tuple[dict, dict]:
    """Return (digest, what stays private: {names, heads, places, from}).

    With ``former`` (what was private of the digest before, or {}), it goes on in the store exactly where that one ended, and
    takes everything that is there, or up to the places ``ends``: so every line is in one digest, whatever the collector's clock
    did. Without, it takes what was received from ``since`` until before ``until``.
    """
    started = time.monotonic()
    sample, activity = Sample(seed, config["sample_size"]), Activity()
    seen: collections.Counter = collections.Counter()
    faults: dict[tuple[str, str, str], dict] = {}
    sensitive = config.get("sensitive_paths", [])
    automation = set(config.get("lists", {}).get("automation", []))

    def look(item: Event) -> None:
        seen[item["kind"]] += 1
        activity.note(item)
        within = sensitive and any(path == top or path.startswith(f"{top}/") for path in item["objects"] for top in sensitive)
        if item["refs"] and (item["kind"] == "sensitive" or (item["kind"] == "file" and within)):
            sample.offer(item)
        if item["kind"] == "fault" or (item["kind"] == "recorder" and item["action"] == "failed"):
            what = item["objects"][0] if item["objects"] else item["text"][:80]
            name = (item["host"], item["action"], what)
            if name in faults or len(faults) < 500:
                fault = faults.setdefault(name, {"count": 0, "first": item["time"], "last": "", "text": item["text"]})
                fault["count"] += 1
                fault["last"] = item["time"]

    engine = Engine(config, {"since": epoch(since), "last_line": epoch(since), "last_tick": epoch(since)})
    engine.watch_events = look
    counts: dict[str, int] = dict.fromkeys((rule.id for rule in engine.rules), 0)
    findings: dict[str, list[dict]] = {rule.id: [] for rule in engine.rules}
    lines = 0
    broken: list[str] = []

    def found(alarms: Iterable[dict]) -> None:
        for alarm in alarms:
            counts[alarm["rule"]] += 1
            if len(findings[alarm["rule"]]) < config.get("findings_max", 200):
                findings[alarm["rule"]].append(alarm)

    store = Store(config["store"])
    present = store.hosts()
    places: dict = dict((former or {}).get("places", {}))
    for host, head in (former or {}).get("heads", {}).items():
        engine.normaliser.host(host).update(n=head["n"], chain=head["chain"])
    for line in store.merged(places, since, until) if former is None else store.merged(places):
        if ends is not None and not within(line["place"], ends.get(line["host"])):
            continue
        lines += 1
        if "broken" in line and len(broken) < 50:
            broken.append(f"{line['host']}: {line['broken']}")
        found(engine.feed(line))
    found(engine.tick(epoch(until)))

    rules = {rule.id: rule for rule in engine.rules}
    fired = [alarm for group in findings.values() for alarm in group]
    named = {alarm["event"]["person"] for alarm in fired} | {alarm["event"]["host"] for alarm in fired}
    ended = {host: known["place"] for host, known in engine.state["hosts"].items() if known["place"]}
    private: dict = {"names": {}, "heads": {}, "from": places, "places": {**places, **ended}}

    def name_of(kind: str, name: str) -> str:
        if not name or name in named or name in automation:
            return name
        alias = pseudonym(key, kind, name)
        private["names"][alias] = name
        return alias

    hosts = []
    for host in sorted({*config.get("hosts", {}), *present, *engine.state["hosts"]}):
        known = engine.state["hosts"].get(host) or {}
        head = {"n": known.get("n", 0), "chain": known.get("chain", "")}
        if head["n"]:
            private["heads"][host] = head
        hosts.append(
            {
                "host": name_of("host", host),
                "class": config.get("hosts", {}).get(host, "undeclared"),
                "lines": known.get("lines", 0),
                "silent": bool(known.get("silent")) or not known.get("lines"),
                "n": head["n"],
                "chain": head["chain"],
            }
        )
    administrators = [name for name, did in activity.people.items() if did["administrator"] and name not in automation]
    people = []
    for name, did in sorted(activity.people.items(), key=lambda entry: (not entry[1]["administrator"], -entry[1]["events"])):
        if did["administrator"] and name not in automation:
            shown_sources = did["sources"] if name in named else [f"{len(did['sources'])} address(es)"]
            people.append({**did, "person": name_of("person", name), "hosts": [name_of("host", host) for host in did["hosts"]],
                           "sources": shown_sources})  # fmt: skip
    check = verified(config)
    gaps = [f"{host['host']}: nothing was received" for host in hosts if not host["lines"]]
    gaps += [
        f"{host['host']}: delivers, but is not declared in log_review_hosts" for host in hosts if host["class"] == "undeclared"
    ]
    gaps += [f"broken line: {text}" for text in broken]
    gaps += ["The store was not verified: " + check["said"]] if check["ok"] is None else []
    gaps += (
        [f"{engine.state['forgotten']} groups of events were forgotten, for there were too many"]
        if engine.state["forgotten"]
        else []
    )
    gaps += [f"{activity.more} events of further people are not in the list of administrators"] if activity.more else []
    digest = {
        "schema": "bulwark.digest/1",
        "collector": config.get("collector", ""),
        "since": since,
        "until": until,
        "made": stamp_of(time.time()),
        "seconds": round(time.monotonic() - started, 3),
        "lines": lines,
        "events": dict(sorted(seen.items())),
        "rules": [
            {
                "id": rule.id,
                "title": rule.title,
                "severity": rule.severity,
                "statements": rule.statements,
                "count": counts[rule.id],
            }
            for rule in sorted(rules.values(), key=lambda rule: (-SEVERITIES.index(rule.severity), rule.id))
        ],
        "findings": sorted(fired, key=lambda alarm: (-SEVERITIES.index(alarm["severity"]), alarm["event"]["received"])),
        "hosts": hosts,
        "verification": check,
        "administrators": people,
        "administrators_keys": sorted(pseudonym(key, "person", name) for name in administrators),
        "faults": [
            {"host": name_of("host", host), "kind": kind, "what": what, **fault}
            for (host, kind, what), fault in sorted(faults.items(), key=lambda entry: -entry[1]["count"])
        ],
        "sample": {
            "seed": seed,
            "size": sample.size,
            "of": sample.of,
            "events": [
                {
                    **item,
                    "person": name_of("person", item["person"]),
                    "host": name_of("host", item["host"]),
                    "source": "",
                    "text": "",
                    "host_key": pseudonym(key, "host", item["host"]),
                }
                for item in sample.drawn()
            ],
        },
        "gaps": gaps,
        "classes": sorted({host["class"] for host in hosts}),
        "max_days": config["max_days"],
    }
    return digest, private


def write_digest(config: Mapping, place: Place, since: str, until: str, seed: str, by: str) -> dict:
    """Write one digest, record that it was made, and return its entry in the register."""
    with place.alone("digest"):
        entries, problem = read_register(place.path("register.jsonl"))
        if problem:
            raise Refused(problem)
        former = [entry for entry in entries if entry["what"] == "digest" and entry["periodic"]]
        periodic, before = not since, None
        if periodic:
            since = former[-1]["until"] if former else first_received(config, until)
            before = private_part(place, former[-1]["digest"]) if former else {}
            until = max(until, since)  # the clock may have been set back
        elif since >= until:
            raise Refused(f"nothing to review: from {since} to {until}")
        digest, private = digest_of(config, since, until, seed, place.key(), before)
        private["former"] = None if before is None else {key: before[key] for key in ("places", "heads") if key in before}
        name = re.sub(r"[:.]", "", until[:19]) + "Z"
        if not periodic or any(entry.get("digest") == name for entry in entries):
            name += f"-{seed[:6]}"
        digest = {"id": name, **digest}
        page, data = render(digest), json.dumps(digest, indent=1) + "\n"
        for suffix, text, mode in ((".json", data, 0o640), (".html", page, 0o640), (".private.json", json.dumps(private), 0o600)):
            write_whole(place.path("digests", name + suffix), text, mode)
        counts = collections.Counter(alarm["severity"] for alarm in digest["findings"])
        return record(
            place,
            "digest",
            by,
            digest=name,
            since=since,
            until=until,
            periodic=periodic,
            seed=seed,
            classes=digest["classes"],
            administrators=digest["administrators_keys"],
            findings=dict(counts),
            sha256=hashlib.sha256(data.encode()).hexdigest(),
            html_sha256=hashlib.sha256(page.encode()).hexdigest(),
            verified=digest["verification"]["ok"],
        )


def private_part(place: Place, name: str) -> dict:
    """Return what a digest keeps to itself: names behind pseudonyms, heads of chains, places in the store."""
    with open(place.path("digests", f"{name}.private.json"), encoding="utf-8") as stream:
        return json.load(stream)


def within(place: Mapping, end: Mapping | None) -> bool:
    """Return whether a line's place in a host's files is not behind where a digest ended."""
    return end is not None and (place["day"], place["offset"]) <= (end["day"], end["offset"])


def first_received(config: Mapping, until: str) -> str:
    """Return where the first digest begins: with the first line of the store, or a day ago if it is empty."""
    store = Store(config["store"])
    firsts = []
    for host in store.hosts():
        for line in store.lines(host):
            if "received" in line:
                firsts.append(line["received"])
                break
    return min(firsts, default=stamp_of(epoch(until) - 86400))


def digest_entry(place: Place, name: str) -> dict:
    """Return the register's entry of a digest that is still as it was made. Raises Refused for any other."""
    entries, problem = read_register(place.path("register.jsonl"))
    if problem:
        raise Refused(problem)
    made = [entry for entry in entries if entry["what"] == "digest" and name in (entry["digest"], "latest")]
    if not made:
        raise Refused(f"{visible(name, 60)}: no such digest")
    for suffix, key in ((".json", "sha256"), (".html", "html_sha256")):
        try:
            with open(place.path("digests", made[-1]["digest"] + suffix), "rb") as stream:
                now = hashlib.sha256(stream.read()).hexdigest()
        except OSError as exc:
            raise Refused(f"{made[-1]['digest']}{suffix}: {exc.strerror}") from exc
        if now != made[-1][key]:
            raise Refused(f"{made[-1]['digest']}{suffix} is not what was written on {made[-1]['time']}: it was changed")
    return made[-1]


def sign(config: Mapping, place: Place, name: str, result: str, remark: str, classes: Sequence[str]) -> dict:
    """Record that the person who runs this has reviewed a digest."""
    by, number = reviewer(config, "sign")
    entry = digest_entry(place, name)
    wanted = list(classes) or entry["classes"]
    strange = sorted(set(wanted) - set(entry["classes"]))
    if strange:
        raise Refused(f"{', '.join(strange)}: no class of hosts in this digest; it has {', '.join(entry['classes'])}")
    if result != "nothing_found" and not remark.strip():
        raise Refused(f"{result} needs a remark: what was done")
    mine = pseudonym(place.key(), "person", by)
    own = mine in entry["administrators"]
    return record(place, "sign", by, uid=number, digest=entry["digest"], sha256=entry["sha256"], result=result,
                  remark=visible(remark, 2000), classes=wanted, own=own, signer=mine)  # fmt: skip


def review_state(entries: Sequence[Mapping], classes: Iterable[str], now: float) -> dict:
    """Return how old the oldest digest is that nobody has reviewed, in days, by class of hosts, and for administrators' activity.

    An administrator's activity is reviewed when somebody else has signed; their own signature does not count for it.
    """
    signs: dict[str, list[Mapping]] = {}
    for entry in entries:
        if entry["what"] == "sign":
            signs.setdefault(entry["digest"], []).append(entry)
    overdue = dict.fromkeys(classes, 0.0)
    administrators = 0.0
    digests = [entry for entry in entries if entry["what"] == "digest" and entry["periodic"]]
    for entry in digests:
        age = round((now - epoch(entry["time"])) / 86400, 6)
        signed = signs.get(entry["digest"], [])
        done = {name for sign in signed if sign["sha256"] == entry["sha256"] for name in sign["classes"]}
        for name in entry["classes"]:
            if name not in done:
                overdue[name] = max(overdue.get(name, 0.0), age)
        for person in entry["administrators"]:
            if not any(sign["signer"] != person and sign["sha256"] == entry["sha256"] for sign in signed):
                administrators = max(administrators, age)
    last = digests[-1] if digests else None
    return {
        "unreviewed_days": overdue,
        "administrators_unreviewed_days": administrators,
        "digests": len(digests),
        "last_digest": last["digest"] if last else "",
        "last_digest_until": last["until"] if last else "",
        "last_verified": last["verified"] if last else None,
        "signed": sum(entry["what"] == "sign" for entry in entries),
        "gaps": [a["until"] for a, b in zip(digests, digests[1:], strict=False) if a["until"] != b["since"]],
    }


def reveal(config: Mapping, place: Place, name: str, alias: str, reason: str) -> str:
    """Return whom a pseudonym of a digest stands for, once it is recorded that the person who runs this wanted to know."""
    by, number = reviewer(config, "reveal")
    if not reason.strip():
        raise Refused("a reason is needed")
    entry = digest_entry(place, name)
    names = private_part(place, entry["digest"])["names"]
    if alias not in names:
        raise Refused(f"{visible(alias, 60)}: no pseudonym of this digest")
    record(place, "reveal", by, uid=number, digest=entry["digest"], pseudonym=alias, reason=visible(reason, 500))
    return names[alias]


def redraw(config: Mapping, place: Place, name: str) -> tuple[bool, int]:
    """Draw a digest's sample again from its seed. Returns (it is the same, its size)."""
    by, _number = reviewer(config, "redraw")
    entry = digest_entry(place, name)
    with open(place.path("digests", f"{entry['digest']}.json"), encoding="utf-8") as stream:
        before = json.load(stream)["sample"]
    private, key = private_part(place, entry["digest"]), place.key()
    ends = private["places"] if entry["periodic"] else None
    again = digest_of({**config, "verify": ""}, entry["since"], entry["until"], entry["seed"], key, private["former"], ends)[0][
        "sample"
    ]
    same = [[(e["host_key"], e["refs"]) for e in drawn["events"]] for drawn in (before, again)]
    record(place, "redraw", by, digest=entry["digest"], result="same" if same[0] == same[1] else "different")
    return same[0] == same[1], len(same[1])


# ------------------------------------------------------------------------------------------------------------------------------
# The digest as a page

STYLE = """
:root { color-scheme: light; --paper: #f6f7f5; --card: #fff; --ink: #1b2530; --soft: #4d5a67; --line: #dde2e0; --accent: #0f5a70;
  --critical: #7a0f1c; --critical-soft: #f8dcdf; --high: #a3202c; --high-soft: #fbe7e7; --medium: #8a4a00; --medium-soft: #fcefdc;
  --low: #0f5a70; --low-soft: #e3f0f3; --info: #55616d; --info-soft: #eceff1; --good: #1b6a43; --good-soft: #e2f2e9; }
@media screen and (prefers-color-scheme: dark) { :root { color-scheme: dark; --paper: #10161c; --card: #182028; --ink: #e6ebef;
  --soft: #a5b2be; --line: #2d3843; --accent: #7cc7dc; --critical: #ffb3ba; --critical-soft: #571b24; --high: #ff9ea4;
  --high-soft: #43191e;
  --medium: #f6bf7a; --medium-soft: #3d2a10; --low: #7cc7dc; --low-soft: #14323c; --info: #aab6c1; --info-soft: #27313a;
  --good: #86d8ad;
  --good-soft: #153527; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink); font: 1rem/1.5 "Inter", "Segoe UI", "Cantarell", "Noto Sans",
  system-ui,
  sans-serif; font-variant-numeric: tabular-nums; }
code { font-family: "JetBrains Mono", "DejaVu Sans Mono", Consolas, monospace; font-size: .84em; overflow-wrap: anywhere; }
h1, h2, p, dl, dd, ul { margin: 0; } h1 { font-size: 1.5rem; line-height: 1.25; } h2 { font-size: 1.3rem; margin-bottom: .4rem; }
.wrap { max-width: 77rem; margin: 0 auto; padding: 0 1.5rem; }
header { background: var(--card); border-bottom: 1px solid var(--line); padding: 1.5rem 0 1.25rem; }
header p, .why, small { color: var(--soft); } .why { margin-bottom: .8rem; max-width: 60rem; font-size: .925rem; }
dl { display: flex; flex-wrap: wrap; gap: .35rem 2.25rem; margin-top: 1rem; font-size: .875rem; }
dl div { display: flex; gap: .5rem; } dt { color: var(--soft); }
section { margin-top: 2.5rem; }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 14px; overflow-x: auto; }
.verdict { font-size: 1.2rem; font-weight: 600; } .verdict + p { color: var(--soft); margin-top: .2rem; max-width: 62rem; }
.counts { display: grid; grid-template-columns: repeat(5, 1fr); margin-top: 1.2rem; }
.counts div { padding: 1rem 1.25rem; border-left: 1px solid var(--line); } .counts div:first-child { border: 0; }
.counts b { display: block; font-size: 2.4rem; font-weight: 650; letter-spacing: -.03em; line-height: 1.15; }
.counts .none b { color: var(--soft); font-weight: 400; }
table { border-collapse: collapse; width: 100%; font-size: .9rem; }
th, td { text-align: left; vertical-align: top; padding: .6rem .8rem; overflow-wrap: break-word; }
thead th { color: var(--soft); font-weight: 500; font-size: .8125rem; border-bottom: 1px solid var(--line); white-space: nowrap; }
tbody tr + tr > * { border-top: 1px solid var(--line); } tbody th { font-weight: 600; }
.num { text-align: right; white-space: nowrap; } .when { white-space: nowrap; }
.badge { display: inline-block; padding: .1rem .6rem; border-radius: 99px; font-size: .8125rem; font-weight: 600;
  white-space: nowrap; }
.critical { color: var(--critical); background: var(--critical-soft); }
.high { color: var(--high); background: var(--high-soft); }
.medium { color: var(--medium); background: var(--medium-soft); } .low { color: var(--low); background: var(--low-soft); }
.info { color: var(--info); background: var(--info-soft); } .good { color: var(--good); background: var(--good-soft); }
.line { display: block; color: var(--soft); margin-top: .2rem; } .empty { padding: 1rem 1.25rem; color: var(--soft); }
.steps { padding: 1rem 1.25rem; } .steps code { display: block; margin-top: .3rem; }
ul.gaps { padding: 1rem 1.25rem 1rem 2.4rem; }
footer { color: var(--soft); font-size: .85rem; margin: 2.5rem 0; }
@media print { body { background: #fff; font-size: 10pt; } .wrap { max-width: none; padding: 0; } .card { overflow: visible;
  border-radius: 0; } tr, .counts { break-inside: avoid; } thead { display: table-header-group; }
  section { margin-top: 1.4rem; } }
@media (max-width: 46rem) { .counts { grid-template-columns: repeat(2, 1fr); } }
"""


def escaped(value: object, limit: int = 600) -> str:
    """Return text for the page: what a host wrote is hostile, so everything goes through here."""
    return html.escape(visible(str(value), limit))


def when(stamp: str) -> str:
    """Return a time as the page shows it."""
    return f'<span class="when">{escaped(stamp[:19].replace("T", " "))}</span>' if stamp else ""


def table(heads: Sequence[str], rows: Sequence[Sequence[str]], empty: str) -> str:
    """Return a table whose cells are already HTML; a head that begins with # is one of numbers."""
    if not rows:
        return f'<p class="empty">{escaped(empty)}</p>'
    kinds = ["num" if head.startswith("#") else "" for head in heads]
    out = [
        "<table><thead><tr>",
        *(f'<th scope="col" class="{k}">{escaped(h.lstrip("#"))}</th>' for h, k in zip(heads, kinds, strict=True)),
    ]
    out.append("</tr></thead><tbody>")
    for row in rows:
        cells = [f'<td class="{k}">{cell}</td>' for cell, k in zip(row, kinds, strict=True)]
        out.append(f"<tr>{''.join(cells)}</tr>")
    return "".join([*out, "</tbody></table>"])


def verdict(digest: Mapping) -> tuple[str, str]:
    """Return what a digest says, in two sentences."""
    counts = collections.Counter(alarm["severity"] for alarm in digest["findings"])
    grave = counts["critical"] + counts["high"]
    silent = sum(host["silent"] for host in digest["hosts"])
    first = (
        f"{grave} finding{'s' if grave != 1 else ''} that cannot wait" if grave else
        f"{counts['medium']} finding{'s' if counts['medium'] != 1 else ''} to look at" if counts["medium"] else
        "Nothing grave was found"
    )  # fmt: skip
    checked = {True: "The store holds together.", False: "THE STORE DOES NOT HOLD TOGETHER.", None: "The store was not verified."}
    second = (
        f"{digest['lines']:,} lines of {len(digest['hosts'])} hosts; {silent or 'none'} of them silent at the end or never heard."
        f" {checked[digest['verification']['ok']]}"
    )
    return f"{first}.", second


def render(digest: Mapping) -> str:
    """Return a digest as one HTML page: no script, nothing from outside, and a policy that keeps it so whatever a host wrote."""
    styles = base64.b64encode(hashlib.sha256(STYLE.encode()).digest()).decode()
    counts = collections.Counter(alarm["severity"] for alarm in digest["findings"])
    first, second = verdict(digest)

    def badge(severity: str, text: str = "") -> str:
        return (
            f'<span class="badge {severity if severity in (*SEVERITIES, "good") else "info"}">{escaped(text or severity)}</span>'
        )

    def what(item: Mapping) -> str:
        objects = "<br>".join(f"<code>{escaped(name, 200)}</code>" for name in item["objects"][:4])
        return objects

    findings = [
        [
            badge(alarm["severity"]),
            f"<b>{escaped(alarm['title'])}</b><br><small>{escaped(alarm['rule'])}"
            f"{', ' + str(alarm['count']) + ' times' if alarm['count'] > 1 else ''}</small>",
            when(item["time"]),
            escaped(item["host"]),
            escaped(item["person"] or "—") + (f"<br><small>{escaped(item['source'])} {escaped(item['terminal'])}</small>"),
            f'{what(item)}<code class="line">{escaped(item["text"])}</code>',
            escaped(item["result"] or "—"),
        ]
        for alarm in digest["findings"]
        for item in [alarm["event"]]
    ]
    hosts = [
        [
            f"<code>{escaped(host['host'])}</code>", escaped(host["class"]), badge("high", "silent") if host["silent"] else
            badge("good", "heard"), f"{host['lines']:,}", f"{host['n']:,}", f"<code>{escaped(host['chain'][:16])}</code>",
        ]
        for host in digest["hosts"]
    ]  # fmt: skip
    people = [
        [
            f"<code>{escaped(did['person'])}</code>", f"{did['events']:,}", str(did["logins"]), str(did["failed"]),
            str(did["privileged"]), str(did["changes"]), str(did["sensitive"]), escaped(", ".join(did["hosts"]), 200),
            "<br>".join(f"<code>{escaped(command, 120)}</code>" for command in did["commands"][:5]),
        ]
        for did in digest["administrators"]
    ]  # fmt: skip
    faults = [
        [escaped(f["host"]), escaped(f["kind"]), f"<code>{escaped(f['what'], 120)}</code>", str(f["count"]), when(f["first"]),
         when(f["last"]), f"<code>{escaped(f['text'], 200)}</code>"]
        for f in digest["faults"][:200]
    ]  # fmt: skip
    drawn = [
        [when(item["time"]), f"<code>{escaped(item['host'])}</code>", f"<code>{escaped(item['person'] or '—')}</code>",
         escaped(item["action"]), what(item), escaped(item["program"], 80), escaped(item["result"])]
        for item in digest["sample"]["events"]
    ]  # fmt: skip
    rules = [
        [
            badge(rule["severity"]),
            escaped(rule["title"]),
            f"<code>{escaped(rule['id'])}</code>",
            escaped(" ".join(rule["statements"])),
            f"<b>{rule['count']:,}</b>" if rule["count"] else "0",
        ]
        for rule in digest["rules"]
    ]
    check = digest["verification"]
    state = {True: badge("good", "holds together"), False: badge("critical", "altered"), None: badge("medium", "not verified")}[
        check["ok"]
    ]
    gaps = "".join(f"<li>{escaped(gap)}</li>" for gap in digest["gaps"])
    limits = ", ".join(f"{name} {days} days" for name, days in digest["max_days"].items())
    name = escaped(digest["id"])
    sections = [
        (
            "Findings",
            "Who did what, when, from where, and whether it succeeded. Names are shown here because a rule fired.",
            table(
                ["Severity", "What", "When (UTC)", "Host", "Who, from where", "Object and line", "Result"],
                findings,
                "No rule fired.",
            ),
        ),
        (
            "Hosts",
            f"Who was heard, and the last link of each host's chain. {state} {escaped(check['said'])}",
            table(["Host", "Class", "State", "#Lines", "#Last number", "Chain"], hosts, "No host has ever delivered anything."),
        ),
        (
            "Administrators",
            "What each did with an administrator's rights. Nobody's own signature counts for their own row.",
            table(
                ["Who", "#Events", "#Logins", "#Failed", "#Privileged", "#Changes", "#Sensitive", "Hosts", "Commands"],
                people,
                "Nobody used an administrator's rights.",
            ),
        ),
        (
            "Faults",
            "Units that failed, errors of kernel, disks and memory.",
            table(["Host", "Kind", "What", "#Times", "First", "Last", "Line"], faults, "No fault was logged."),
        ),
        (
            "Random sample",
            f"{len(drawn)} of {digest['sample']['of']:,} accesses to sensitive paths, drawn with seed "
            f"<code>{escaped(digest['sample']['seed'])}</code>; <code>trail_review redraw {name}</code> draws the same.",
            table(
                ["When (UTC)", "Host", "Who", "Action", "Object", "Program", "Result"], drawn, "No access to a sensitive path."
            ),
        ),
        (
            "Not covered",
            "What this digest cannot tell.",
            f'<ul class="gaps">{gaps}</ul>' if gaps else '<p class="empty">No gap was found.</p>',
        ),
        ("Rules", "Everything that was looked for.", table(["Severity", "Rule", "Id", "Statements", "#Fired"], rules, "")),
        (
            "Sign",
            f"Review is due by class of host: {escaped(limits)}. "
            "A pseudonym is revealed to declared reviewers only; that is recorded.",
            '<div class="steps">As the person who has reviewed this digest:'
            f"<code>sudo -u bulwark-review /usr/local/lib/bulwark/trail_review sign {name} --result {'|'.join(RESULTS)} "
            "--remark '...'</code>"
            f"<code>sudo -u bulwark-review /usr/local/lib/bulwark/trail_review reveal {name} PSEUDONYM --reason '...'</code>"
            "</div>",
        ),
    ]
    body = "".join(
        f'<section><h2>{title}</h2><p class="why">{why}</p><div class="card">{inner}</div></section>'
        for title, why, inner in sections
    )
    boxes = "".join(
        f'<div class="{"" if counts[severity] else "none"}"><b>{counts[severity]}</b>{badge(severity)}</div>'
        for severity in reversed(SEVERITIES)
    )
    return f"""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; style-src 'sha256-{styles}'; base-uri 'none'; form-action 'none'">
<meta name="referrer" content="no-referrer"><title>Review of the trail {name}</title><style>{STYLE}</style></head><body>
<header><div class="wrap"><h1>Review of the trail</h1><p>What the logs of all hosts hold that somebody should look at</p><dl>
<div><dt>Digest</dt><dd><code>{name}</code></dd></div><div><dt>From</dt><dd>{when(digest["since"])}</dd></div>
<div><dt>until</dt><dd>{when(digest["until"])} UTC</dd></div><div><dt>Collector</dt><dd>{escaped(digest["collector"])}</dd></div>
<div><dt>Made</dt><dd>{when(digest["made"])} in {digest["seconds"]:.1f} s</dd></div></dl></div></header>
<main class="wrap"><section><p class="verdict">{escaped(first)}</p><p>{escaped(second)}</p>
<div class="card counts">{boxes}</div></section>{body}</main>
<footer class="wrap">Written by bulwark.hardening, role log_review. For declared reviewers only.</footer></body></html>
"""


# ------------------------------------------------------------------------------------------------------------------------------
# query

COLUMNS = (
    "time",
    "host",
    "kind",
    "action",
    "person",
    "uid",
    "terminal",
    "source",
    "result",
    "objects",
    "program",
    "text",
    "refs",
)


def matches(item: Event, asked: Mapping) -> bool:
    """Return whether an event is one that was asked for."""
    if asked.get("person") and item["person"] != asked["person"]:
        return False
    if asked.get("kind") and item["kind"] not in asked["kind"]:
        return False
    if asked.get("result") and item["result"] != asked["result"]:
        return False
    if asked.get("object") and not any(asked["object"] in path for path in item["objects"]):
        return False
    return not asked.get("text") or asked["text"].lower() in f"{item['text']} {' '.join(item['objects'])}".lower()


def found_events(config: Mapping, asked: Mapping) -> Iterator[Event]:
    """Yield the events that were asked for, as they are read."""
    store = Store(config["store"])
    known = store.hosts()
    if asked.get("host") and asked["host"] not in known:
        raise Refused(f"{visible(asked['host'], 60)}: no such host; there are {', '.join(known) or 'none'}")
    normaliser = Normaliser(config, everything=True)
    for line in store.merged({}, asked["since"], asked["until"], [asked["host"]] if asked.get("host") else ()):
        for item in normaliser.feed(line, check=False):
            if matches(item, asked):
                yield item
    for item in normaliser.tick(time.time() + 3600):
        if matches(item, asked):
            yield item


def cell(value: object) -> str:
    """Return a CSV cell that no spreadsheet takes for a formula."""
    text = visible(" ".join(map(str, value)) if isinstance(value, list) else str(value))
    return f"'{text}" if text.lstrip()[:1] in FORMULA and text else text


def query(config: Mapping, place: Place, asked: Mapping, form: str, limit: int, out: object) -> int:
    """Print what was asked for, once the question is recorded; return how many events were found."""
    by, number = actor()
    words = {key: value for key, value in asked.items() if value}
    record(place, "query", by, uid=number, asked=words, ticket=asked.get("ticket", ""))
    count = 0
    writer = csv.writer(out, quoting=csv.QUOTE_ALL)
    if form == "csv":
        writer.writerow(COLUMNS)
    elif form == "json":
        out.write("[")
    for item in found_events(config, asked):
        count += 1
        if count > limit:
            break
        if form == "csv":
            writer.writerow([cell(item[name]) for name in COLUMNS])
        elif form == "json":
            out.write((",\n " if count > 1 else "\n ") + json.dumps({name: item[name] for name in (*COLUMNS, "received", "key")}))
        else:
            out.write(row(item) + "\n")
    if form == "json":
        out.write("\n]\n")
    out.flush()
    sys.stderr.write(f"{min(count, limit)} events{f'; there are more than {limit}' if count > limit else ''}\n")
    return count


def row(item: Event) -> str:
    """Return an event as one line of a table."""
    about = " ".join(item["objects"])
    where_from = " ".join(part for part in (item["source"], item["terminal"]) if part)
    who = item["person"] + (f">{item['uid']}" if item["uid"] not in ("", item["person"]) else "")
    head = f"{item['time'][:19]}  {item['host']:<14}  {item['kind']}/{item['action']:<12}  {who or '-':<16}"
    return visible(f"{head}  {where_from or '-':<18}  {item['result'] or '-':<8}  {about[:120] or '-'}  |  {item['text'][:200]}")


# ------------------------------------------------------------------------------------------------------------------------------


def parser() -> argparse.ArgumentParser:
    """Return what the command line may say."""
    top = argparse.ArgumentParser(prog="trail_review", description="Look at what the collector keeps.", allow_abbrev=False)
    top.add_argument("--config", default=CONFIG, help=argparse.SUPPRESS)
    verbs = top.add_subparsers(dest="verb", required=True)
    verbs.add_parser("watch", help="look at what has come in since the last time")
    verbs.add_parser("mail", help="hand waiting mails to sendmail")
    made = verbs.add_parser("digest", help="write what there is to review since the last digest")
    made.add_argument(
        "--since", type=asked_time, help="UTC time or 36h; for a digest on the side, which changes nothing that is due"
    )
    made.add_argument("--until", type=asked_time)
    signed = verbs.add_parser("sign", help="record that you have reviewed a digest")
    signed.add_argument("digest", help="its id, or latest")
    signed.add_argument("--result", choices=RESULTS, required=True)
    signed.add_argument("--remark", default="")
    signed.add_argument("--class", dest="classes", action="append", default=[], help="only these hosts' part")
    revealed = verbs.add_parser("reveal", help="say whom a pseudonym stands for; that is recorded")
    revealed.add_argument("digest")
    revealed.add_argument("pseudonym")
    revealed.add_argument("--reason", required=True)
    verbs.add_parser("redraw", help="draw a digest's sample again").add_argument("digest")
    verbs.add_parser("status", help="what is reviewed and what is overdue")
    asked = verbs.add_parser("query", help="find events; the question is recorded")
    asked.add_argument("--since", type=asked_time, default="24h", help="UTC time, or 90m, 36h, 7d ago")
    asked.add_argument("--until", type=asked_time)
    asked.add_argument("--kind", action="append", default=[])
    for name in ("host", "person", "object", "text", "ticket"):
        asked.add_argument(f"--{name}", default="")
    asked.add_argument("--result", choices=["success", "failed"], default="")
    asked.add_argument("--format", choices=["table", "json", "csv"], default="table")
    asked.add_argument("--limit", type=int, default=10000)
    return top


def main(argv: Sequence[str] | None = None) -> int:
    """Do one thing. Exit code 0: done; 1: refused, the reason is on standard error; 2: wrong usage."""
    args = parser().parse_args(argv)
    os.umask(0o027)
    try:
        config = read_config(args.config)
        place = Place(config["directory"])
        if args.verb == "watch":
            done = watch(config, place)
            if done["alarms"]:
                sys.stdout.write(f"{done['lines']} lines, {done['alarms']} alarms\n")
        elif args.verb == "mail":
            send_mail(config, place)
        elif args.verb == "digest":
            until = stamp_of(args.until or time.time())
            with contextlib.suppress(Refused):
                by = ""
                by = actor()[0]
            entry = write_digest(
                config, place, stamp_of(args.since) if args.since else "", until, secrets.token_hex(8), by or "timer"
            )
            sys.stdout.write(f"{place.path('digests', entry['digest'])}.html\n")
        elif args.verb == "sign":
            entry = sign(config, place, args.digest, args.result, args.remark, args.classes)
            sys.stdout.write(
                f"Recorded as number {entry['n']}: {entry['by']} reviewed {entry['digest']} ({entry['sha256'][:16]}).\n"
            )
            if entry["own"]:
                sys.stdout.write("Your own activity as an administrator is in it. That part waits for somebody else's review.\n")
        elif args.verb == "reveal":
            sys.stdout.write(f"{visible(reveal(config, place, args.digest, args.pseudonym, args.reason))}\n")
        elif args.verb == "redraw":
            same, size = redraw(config, place, args.digest)
            sys.stdout.write(f"{'the same' if same else 'NOT the same'} {size} events\n")
            return 0 if same else 1
        elif args.verb == "status":
            entries, problem = read_register(place.path("register.jsonl"))
            state = {**review_state(entries, config["max_days"], time.time()), "register": problem or "holds together"}
            sys.stdout.write(json.dumps(state, indent=1) + "\n")
        else:
            since = args.since if isinstance(args.since, float) else asked_time(args.since)
            asked = {name: getattr(args, name) for name in ("host", "person", "kind", "object", "result", "text", "ticket")}
            asked.update(since=stamp_of(since), until=stamp_of(args.until) if args.until else "")
            query(config, place, asked, args.format, args.limit, sys.stdout)
    except BrokenPipeError:
        sys.stdout = None  # whoever read has seen enough
        return 0
    except (Refused, OSError, subprocess.TimeoutExpired) as exc:
        sys.stderr.write(f"trail_review: {exc}\n")
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
