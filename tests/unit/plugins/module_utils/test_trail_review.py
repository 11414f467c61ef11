# Copyright: (c) 2026, Bulwark contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The review of the trail: every rule fires on its fixture and keeps quiet on an ordinary day; what is killed loses nothing."""

from __future__ import annotations

import csv
import gzip
import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from ansible_collections.bulwark.hardening.plugins.module_utils import trail_review as review
from ansible_collections.bulwark.hardening.tests.unit import trail_lines as lines

ROOT = Path(__file__).resolve().parents[4]
RULES = yaml.safe_load((ROOT / "roles/log_review/files/rules.yml").read_text())
PROGRAMS = yaml.safe_load((ROOT / "roles/log_review/vars/main.yml").read_text())["__log_review_programs"]
IDS = [rule["id"] for rule in RULES]
NOON = 1_795_608_000.0  # 2026-11-25 12:00 UTC, a Wednesday
SAID: list[tuple[str, str]] = []


@pytest.fixture(autouse=True)
def journal(monkeypatch):
    """Keep what would go to the journal."""
    SAID.clear()
    monkeypatch.setattr(review, "say", lambda tag, priority, words: SAID.append((tag, json.dumps(words, default=str))))


@pytest.fixture
def config(tmp_path) -> dict:
    """A configuration as the role writes it, on a store of its own."""
    (tmp_path / "store").mkdir()
    (tmp_path / "review").mkdir()
    return {
        "store": str(tmp_path / "store"),
        "directory": str(tmp_path / "review"),
        "verify": "",
        "collector": "log",
        "hosts": {"web": "server"},
        "reviewers": ["rita"],
        "max_days": {"server": 7},
        "silent_minutes": 3,
        "clock_jump_seconds": 5,
        "sample_size": 5,
        "incident_severity": "high",
        "mail_severity": "high",
        "mail_to": [],
        "mail_from": "root@log",
        "sendmail": "/bin/false",
        "sensitive_paths": ["/srv/records"],
        "tickets": [],
        "vpn_hours": {"days": ["mon", "tue", "wed", "thu", "fri"], "from": "00:00", "to": "00:01"},
        "lists": {**PROGRAMS, "automation": ["deploy"]},
        "rules": RULES,
    }


def events(config: dict) -> list[dict]:
    """Return all events of a store."""
    found: list[dict] = []
    engine = review.Engine(config, {"since": NOON})
    engine.watch_events = found.append
    for line in review.Store(config["store"]).merged({}):
        engine.feed(line)
    return found


def fired(config: dict, until: float = 0.0) -> list[dict]:
    """Return the alarms that a store raises."""
    engine = review.Engine(config, {"since": NOON, "last_line": NOON, "last_tick": NOON})
    alarms = [alarm for line in review.Store(config["store"]).merged({}) for alarm in engine.feed(line)]
    return alarms + (engine.tick(until) if until else [])


def play(config: dict, rule: str, host: str = "web", at: float = NOON) -> float:
    """Put a rule's fixture into the store and return when its last line came."""
    return lines.played(lines.Writer(config["store"]), host, lines.fixtures(at)[rule], at, other="db")


# --- rules ----------------------------------------


@pytest.mark.parametrize("rule", IDS)
def test_every_rule_fires_on_its_fixture(config, rule):
    """The lines that a rule is there for raise it, with a host, a time and words."""
    end = play(config, rule)
    alarms = [alarm for alarm in fired(config, end + 10) if alarm["rule"] == rule]
    assert alarms, [alarm["rule"] for alarm in fired(config, end + 10)]
    item = alarms[0]["event"]
    assert item["host"] in ("web", "log", "db") and item["received"] and item["text"]


def test_no_rule_without_a_fixture():
    """Who adds a rule adds the lines that fire it."""
    assert set(IDS) <= set(lines.fixtures(NOON))


def test_every_rule_keeps_quiet_on_an_ordinary_day(config):
    """A whole day of three hosts, in which nothing happens, raises nothing at all."""
    config["hosts"] = dict.fromkeys(("web", "db", "gate"), "server")
    config["vpn_hours"] = {"days": ["mon", "tue", "wed", "thu", "fri"], "from": "00:00", "to": "23:59"}
    writer, last = lines.Writer(config["store"]), 0.0
    for host, entry, received in lines.normal_day():
        writer.put(host, entry, received)
        last = received
    engine = review.Engine(config, {"since": last - 86400, "last_line": last - 86400, "last_tick": last - 86400})
    seen: list[dict] = []
    engine.watch_events = seen.append
    alarms = [alarm for line in review.Store(config["store"]).merged({}) for alarm in engine.feed(line)] + engine.tick(last)
    assert alarms == []
    assert {item["kind"] for item in seen} >= {"login", "sudo", "firewall", "vpn", "file", "configuration", "duo"}


def test_audit_gap_is_told_apart(config):
    """Serial numbers that never came are said to be audit's."""
    end = play(config, "audit_gap")
    gaps = [alarm["event"] for alarm in fired(config, end + 10) if alarm["rule"] == "sequence_gap"]
    assert [gap["kind"] for gap in gaps] == ["audit"] and gaps[0]["value"] == "7"


@pytest.mark.parametrize(
    ("broken", "said"),
    [
        ({"id": "X"}, "id must be"), ({"title": ""}, "title is missing"), ({"severity": "awful"}, "severity must be"),
        ({"select": {}}, "select must name a kind"), ({"select": {"kind": "sudo", "colour": "red"}}, "colour is no field"),
        ({"select": {"kind": "sudo", "text": {"match": "("}}}, "unterminated"), ({"group_by": ["nobody"]}, "nobody is no field"),
        ({"count": 0}, "count must be"), ({"window": "long"}, "window must be"), ({"more": 1}, "more is not known"),
        ({"select": {"kind": "sudo", "text": {"like": "x"}}}, "unknown test"), ({"distinct": "value"}, "distinct needs a count"),
        ({"quiet": True}, "quiet must be"),
    ],
)  # fmt: skip
def test_bad_rules_are_refused(broken, said):
    """A rule that could never fire as meant is refused by name."""
    rule = {"id": "mine", "title": "t", "severity": "low", "select": {"kind": "sudo"}, **broken}
    assert any(said in problem for problem in review.rule_problems([rule])), review.rule_problems([rule])


def test_rules_of_the_role_are_sound():
    """The role's own rules have nothing wrong with them, and each names what it is for."""
    assert review.rule_problems(RULES) == []
    known = {
        entry["id"] for entry in yaml.load((ROOT / "policy/register.yml").read_text(), Loader=yaml.CSafeLoader)["statements"]
    }
    assert all(rule["statements"] and set(rule["statements"]) <= known for rule in RULES)


# --- events ----------------------------------------


def test_audit_event_says_who_what_where_from(config):
    """The records of one serial become one event: person by login uid, terminal, object decoded, address of the session."""
    writer, audit = lines.Writer(config["store"]), lines.Audit()
    login = audit.user(
        NOON, "USER_LOGIN", 'op=login id=1000 exe="/usr/sbin/sshd" hostname=? addr=10.99.0.10 terminal=ssh res=success'
    )
    for number, entry in enumerate([*login, *audit.call(NOON, "bulwark_sensitive", path="/srv/records/patient 1.txt")]):
        writer.put("web", entry, NOON + number / 100)
    item = next(item for item in events(config) if item["kind"] == "sensitive")
    assert item["person"] == "alice" and item["uid"] == "root" and item["terminal"] == "pts0" and item["source"] == "10.99.0.10"
    assert item["objects"] == ["/srv/records/patient 1.txt"] and item["result"] == "success" and item["action"] == "read"
    assert item["refs"] == [2, 3, 4, 5]


def test_sudo_and_accounts_say_where_the_session_came_from(config):
    """Their lines name no address; the journal knows their session, and audit records where its login came from."""
    writer, audit = lines.Writer(config["store"]), lines.Audit()
    login = audit.user(NOON, "USER_START", 'op=PAM:session_open acct="alice" exe="/usr/sbin/sshd" hostname=10.99.0.10 '
                                           "addr=10.99.0.10 terminal=ssh res=success")  # fmt: skip
    own = audit.user(NOON, "ADD_USER", 'op=adding user acct="mallory" exe="/usr/sbin/useradd" hostname=web addr=? '
                                       "terminal=pts/1 res=success")  # fmt: skip
    said = "alice : TTY=pts/0 ; PWD=/home/alice ; USER=root ; COMMAND=/usr/sbin/useradd mallory"
    added = "new user: name=mallory, UID=1002, GID=1002, home=/home/mallory, shell=/bin/sh, from=/dev/pts/1"
    entries = [*login, *own, lines.log("sudo", said, _AUDIT_SESSION="7"), lines.log("useradd", added, _AUDIT_SESSION="7"),
               lines.log("sudo", said, _AUDIT_SESSION="8")]  # fmt: skip
    for number, entry in enumerate(entries):
        writer.put("web", entry, NOON + number / 100)
    seen = [(item["kind"], item["source"]) for item in events(config) if item["kind"] in ("sudo", "account", "audit_account")]
    assert seen == [("audit_account", "10.99.0.10"), ("sudo", "10.99.0.10"), ("account", "10.99.0.10"), ("sudo", "")]


def test_sshd_says_where_a_session_came_from_before_audit_does(config):
    """Audit records take another way into the journal, and sudo may be there first."""
    writer = lines.Writer(config["store"])
    said = "alice : TTY=pts/0 ; PWD=/home/alice ; USER=root ; COMMAND=/usr/bin/true"
    sshd = {"_EXE": "/usr/sbin/sshd", "_PID": "4711"}
    opened = "pam_unix(sshd:session): session opened for user alice(uid=1000) by (uid=0)"
    entries = [
        lines.log("sshd", "Accepted publickey for alice from 10.99.0.10 port 50022 ssh2: ED25519 SHA256:x", **sshd),
        lines.log("sshd", opened, **sshd, _AUDIT_SESSION="7"),
        lines.log("sshd", opened, **{**sshd, "_PID": "4712"}, _AUDIT_SESSION="8"),
        lines.log("sudo", said, _AUDIT_SESSION="7"),
        lines.log("sudo", said, _AUDIT_SESSION="8"),
    ]
    for number, entry in enumerate(entries):
        writer.put("web", entry, NOON + number / 100)
    assert [item["source"] for item in events(config) if item["kind"] == "sudo"] == ["10.99.0.10", ""]


CANARIES = "/var/lib/bulwark/antivirus-canary"


@pytest.mark.parametrize(
    ("message", "path", "name"),
    [
        ("/srv/a: Bulwark.Canary FOUND: Eicar-Signature FOUND", "/srv/a: Bulwark.Canary FOUND", "Eicar-Signature"),
        (f"{CANARIES}/x: Bulwark.Canary FOUND: Evil FOUND", f"{CANARIES}/x: Bulwark.Canary FOUND", "Evil"),
        ("/srv/a: Bulwark.Canary.UNOFFICIAL FOUND", "/srv/a", "Bulwark.Canary.UNOFFICIAL"),
        (f"/srv{CANARIES}/a: Bulwark.Canary.UNOFFICIAL FOUND", f"/srv{CANARIES}/a", "Bulwark.Canary.UNOFFICIAL"),
        (f"{CANARIES}/a: Bulwark.CanaryNot FOUND", f"{CANARIES}/a", "Bulwark.CanaryNot"),
        ("name with a line break: Eicar-Signature FOUND", "name with a line break", "Eicar-Signature"),
        ("fd[12]: Eicar-Signature FOUND", "fd[12]", "Eicar-Signature"),
        (f"{CANARIES}/bulwark-canary: Bulwark.Canary.UNOFFICIAL FOUND", None, None),
        ("/srv/a: moved to '/var/lib/bulwark/quarantine/a: Evil FOUND'", None, None),
    ],
)
def test_a_files_name_silences_no_finding(config, message, path, name):
    """Whatever a file is called, what was found in it is an alarm; only the canary in root's own directory is none."""
    lines.Writer(config["store"]).put("web", lines.log("clamonacc", message), NOON)
    found = [(item["objects"], item["value"]) for item in events(config) if item["kind"] == "malware"]
    assert found == ([([path], name)] if path else [])
    assert ("malware" in [alarm["rule"] for alarm in fired(config)]) is bool(path)


@pytest.mark.parametrize(
    "entry",
    [
        ("clamonacc", "ERROR: ClamInotif: could not watch path '/home', No such file or directory"),
        ("clamonacc", "ERROR: ClamInotif: can't include '/home'"),
        ("bulwark-antivirus", "event=path_unguarded paths=/home count=1"),
        ("bulwark-antivirus", "event=guard_hangs seconds=60"),
        ("bulwark-antivirus", "event=guard_ended times=2"),
    ],
)
def test_path_that_is_not_guarded_raises_an_alarm(config, entry):
    """clamonacc runs on when it cannot watch a path; so what it says is an alarm, as is what our own trial finds."""
    lines.Writer(config["store"]).put("web", lines.log(*entry), NOON)
    assert [alarm["rule"] for alarm in fired(config)] == ["antivirus_off"]


def test_a_file_s_name_silences_no_alarm_of_backups(config):
    """Neither does a line of somebody who is not root."""
    writer = lines.Writer(config["store"])
    said = 'event=broken copy=w file=x problem="a" event=checked problem="none"'
    writer.put("web", lines.log("bulwark-backup", said), NOON)
    writer.put("web", lines.log("bulwark-backup", "event=repository_gone", _UID="1000", _COMM="logger"), NOON + 1)
    assert [(item["kind"], item["action"]) for item in events(config)] == [("backup", "broken"), ("log", "forged")]


def test_journals_of_people_share_one_count(config, monkeypatch):
    """Debian 12 gives each person's journal its own id; that is neither a new journal nor a gap, and gaps are still seen."""
    writer = lines.Writer(config["store"])
    for number in range(6):
        monkeypatch.setattr(lines, "CURSOR", "s=aaaa" if number % 2 else "s=bbbb")
        writer.put("web", lines.log("cron", "x"), NOON + number)
    assert not {alarm["rule"] for alarm in fired(config)} & {"journal_anew", "sequence_gap"}
    monkeypatch.setattr(lines, "CURSOR", "s=aaaa")
    writer.put("web", lines.log("cron", "x"), NOON + 10, skip=3)
    monkeypatch.setattr(lines, "CURSOR", "s=bbbb")
    writer.put("web", lines.log("cron", "x"), NOON + 11)
    writer.put("web", lines.log("cron", "x"), NOON + 200)
    assert {alarm["rule"] for alarm in fired(config)} & {"journal_anew", "sequence_gap"} == {"sequence_gap"}


def test_what_a_login_itself_leaves_raises_nothing(config):
    """As seen on hosts: sshd's part that runs as the person, the list of logins' own journal, each session's own systemd."""
    writer, audit = lines.Writer(config["store"]), lines.Audit()
    bye = "Received disconnect from 10.0.2.2 port 48248:11: disconnected by user"
    sshd = {"_UID": "1000", "_COMM": "sshd-session", "_EXE": "/usr/lib/openssh/sshd-session"}
    claim = "Accepted password for root from 1.2.3.4 port 5"
    entries = [lines.log("sshd-session", bye, **sshd), lines.log("sshd-session", claim, **sshd)]
    entries += audit.call(NOON, "bulwark_logtools", syscall="unlink", path="/var/log/wtmp.db-journal", exe=sshd["_EXE"])
    for _unit in range(25):
        entries += audit.call(NOON, "bulwark_denied", path="/dev/console", exe="/usr/lib/systemd/systemd-executor", success=False)
    for number, entry in enumerate(entries):
        writer.put("web", entry, NOON + number / 100)
    assert not {alarm["rule"] for alarm in fired(config)} & {"forged_line", "log_cleared", "denied_many"}
    assert "login" not in [item["kind"] for item in events(config)]
    writer.put("web", lines.log("sshd-session", bye, **{**sshd, "_EXE": "/usr/bin/logger"}), NOON + 10)
    assert "forged_line" in [alarm["rule"] for alarm in fired(config)]


@pytest.mark.parametrize(
    ("path", "kind"),
    [("/srv/records", "sensitive"), ("/srv/records/9.txt", "sensitive"), ("/srv/records2/9.txt", "file"), ("/srv", "file")],
)
def test_refusal_on_the_way_to_a_sensitive_path_is_one(config, path, kind):
    """The kernel never gets to what lies in a closed directory: the rule for what is denied speaks, not the path's own."""
    writer = lines.Writer(config["store"])
    for number, entry in enumerate(lines.Audit().call(NOON, "bulwark_denied", path=path, success=False)):
        writer.put("web", entry, NOON + number / 100)
    item = next(item for item in events(config) if item["key"] == "bulwark_denied")
    assert (item["kind"], item["result"], item["objects"]) == (kind, "failed", [path])
    assert ("sensitive_refused" in [alarm["rule"] for alarm in fired(config)]) == (kind == "sensitive")


def test_audit_event_in_parts_is_put_together_by_the_next_watch(config):
    """Records that come in two deliveries are still one event."""
    writer, place = lines.Writer(config["store"]), review.Place(config["directory"])
    records = lines.Audit().call(time.time(), "bulwark_modules", syscall="finit_module", exe="/usr/bin/kmod",
                                 more=(("KERN_MODULE", 'name="usb_storage"'),))  # fmt: skip
    now = time.time()
    for entry in records[:2]:
        writer.put("web", entry, now)
    assert review.watch(config, place)["alarms"] == 0
    for entry in records[2:]:
        writer.put("web", entry, now + 0.1)
    assert review.watch(config, place)["alarms"] == 1 and "usb_storage" in SAID[-1][1]


def test_binary_message_is_read(config):
    """auditd's separator makes journald call the message binary."""
    import base64

    entry = lines.Audit().call(NOON, "bulwark_time", syscall="clock_settime", exe="/usr/bin/date")
    for record in entry:
        record["MESSAGE"] = {"base64": base64.b64encode(record["MESSAGE"].encode()).decode()}
        lines.Writer(config["store"]).put("web", record, NOON)
    assert any(item["kind"] == "time" for item in events(config))


def test_one_try_is_one_failure(config):
    """sshd writes twice about one failed try; three tries on one connection are three."""
    writer = lines.Writer(config["store"])
    for number, text in enumerate([
        "Invalid user eve from 198.51.100.9 port 50000",
        *["Failed password for invalid user eve from 198.51.100.9 port 50000 ssh2"] * 3,
        "Connection closed by invalid user eve 198.51.100.9 port 50000 [preauth]",
    ]):  # fmt: skip
        writer.put("web", lines.log("sshd", text, _PID="77"), NOON + number)
    writer.put(
        "web",
        lines.log("sshd-session", "Connection closed by authenticating user bob 198.51.100.9 port 5 [preauth]", _PID="78"),
        NOON + 9,
    )
    assert [item["person"] for item in events(config) if item["kind"] == "login"] == ["eve", "eve", "eve", "bob"]


def test_reboot_is_no_sabotage(config):
    """A recorder that ends because the host goes down raises nothing; one that ends by itself does."""
    writer = lines.Writer(config["store"])
    stop = lines.log("systemd", "Stopped auditd.service - Security Auditing Service.", UNIT="auditd.service", _PID="1")
    writer.put("web", lines.log("systemd-logind", "The system will reboot now!"), NOON)
    writer.put("web", stop, NOON + 1)
    assert not [item for item in events(config) if item["kind"] == "recorder"]
    writer.put("web", {**stop, "_BOOT_ID": "another"}, NOON + 60)
    assert [item["action"] for item in events(config) if item["kind"] == "recorder"] == ["stopped"]


@pytest.mark.parametrize(("ticket", "quiet"), [({}, False), ({"person": "alice"}, True), ({"person": "bob"}, False),
                                               ({"person": "alice", "to": "2026-11-24"}, False)])  # fmt: skip
def test_reading_the_trail_needs_a_ticket(config, ticket, quiet):
    """HMS-SA-3: a declared ticket of that person and day makes a read ordinary."""
    if ticket:
        config["tickets"] = [{"ticket": "INC-7", "from": "2026-11-01", "to": "2026-11-30", **ticket}]
    end = play(config, "trail_read")
    assert ("trail_read" not in {alarm["rule"] for alarm in fired(config, end)}) is quiet


def test_numbers_out_of_order_are_no_gap():
    """A hole that is filled in time is none; one that stays is said once."""
    watch = review.numbers()
    said = []
    for now, number in enumerate([1, 2, 5, 4, 3, 6, 9]):
        said += review.counted(watch, "s", number, float(now))
    assert said == [] and review.overdue(watch, 50.0) == []
    assert review.overdue(watch, 100.0) == [(7, 8)] and review.overdue(watch, 200.0) == []
    review.counted(watch, "s", 12, 201.0)
    assert review.counted(watch, "another boot", 1, 202.0) == [(10, 11)]


def test_files_of_one_boot_share_their_numbers():
    """The files of system and users have sequences of their own and one counter; neither begins a journal anew."""
    watch, said = review.numbers(), []
    lines = [("s", "b", 1), ("s", "b", 3), ("u", "b", 2), ("s", "b", 4), ("u", "b", 5), ("s", "c", 6), ("u", "c", 7)]
    lines.append(("s", "c", 9))
    names = []
    for now, (sequence, boot, number) in enumerate(lines):
        names.append(review.series_of(watch, sequence, boot, number))
        said += review.counted(watch, names[-1], number, float(now))
    assert set(names) == {"s"} and said == []
    assert review.overdue(watch, 100.0) == [(8, 8)]
    assert review.series_of(watch, "fresh", "d", 1) == "fresh"
    review.counted(watch, "fresh", 1, 101.0)
    review.counted(watch, review.series_of(watch, "fresh", "d", 5000), 5000, 102.0)
    assert review.series_of(watch, "deleted and begun anew in the same boot", "d", 1) != "fresh"


@pytest.mark.parametrize(
    ("message", "seen"),
    [
        ("   jdoe : TTY=pts/0 ; PWD=/home/jdoe ; USER=root ; COMMAND=/usr/bin/id -un", ("jdoe", "run", "pts/0", "success")),
        ("   jdoe : PWD=/home/jdoe ; USER=root ; COMMAND=/usr/bin/id -un", ("jdoe", "run", "", "success")),
        ("   jdoe : a password is required ; PWD=/ ; USER=root ; COMMAND=/bin/true", ("jdoe", "refused", "", "failed")),
        ("   bob : user NOT in sudoers ; TTY=pts/1 ; PWD=/ ; USER=root ; COMMAND=/bin/id", ("bob", "refused", "pts/1", "failed")),
    ],
)
def test_sudo_with_and_without_a_terminal(config, message, seen):
    """Programs and `ssh host sudo …` have no terminal; who they are and whether they were let counts all the same."""
    line = {"host": "web", "n": 1, "time": "2026-11-25T01:02:03.000000Z", "received": "2026-11-25T01:02:03.000000Z"}
    entry = {"SYSLOG_IDENTIFIER": "sudo", "MESSAGE": message, "_COMM": "sudo", "_UID": "1000"}
    (event,) = review.Normaliser(config).feed({**line, "entry": entry, "raw": b"", "cursor": ""}, check=False)
    assert (event["person"], event["action"], event["terminal"], event["result"]) == seen


# --- watch ----------------------------------------


def now_play(config: dict, rule: str, host: str = "web") -> None:
    """Put a fixture into the store as if it had just come."""
    play(config, rule, host, time.time() - 5)


def test_watch_raises_each_alarm_once_and_goes_on(config):
    """What was looked at is not looked at again; what comes later is."""
    place = review.Place(config["directory"])
    now_play(config, "break_glass")
    assert review.watch(config, place)["alarms"] == 1
    assert review.watch(config, place) == {"lines": 0, "alarms": 0}
    now_play(config, "malware")
    assert review.watch(config, place)["alarms"] == 1
    assert [json.loads(said)["rule"] for tag, said in SAID if tag == "bulwark-alert"] == ["break_glass", "malware"]
    stubs = sorted(path.name for path in Path(config["directory"], "incidents").iterdir())
    assert len(stubs) == 2 and json.loads(Path(config["directory"], "incidents", stubs[0]).read_text())["status"] == "open"


def test_watch_reads_on_in_a_file_that_was_compressed_meanwhile(config):
    """A day that ended and became a gzip is read from where the watch was."""
    place, at = review.Place(config["directory"]), NOON
    end = play(config, "break_glass", at=at)
    assert review.watch(config, place, end + 1)["alarms"] == 1
    end = play(config, "malware", at=end)
    path = Path(config["store"], "web", "2026-11-25.jsonl")
    path.with_suffix(".jsonl.gz").write_bytes(gzip.compress(path.read_bytes()))
    path.unlink()
    assert review.watch(config, place, end + 1)["lines"] == 1 and "malware" in SAID[-1][1]


def test_half_a_line_waits(config):
    """A line that is still being written is taken when it is whole."""
    place, writer = review.Place(config["directory"]), lines.Writer(config["store"])
    whole = writer.line("web", lines.fixtures(NOON)["malware"][0][0], time.time())
    path = Path(config["store"], "web", f"{review.day_of(time.time())}.jsonl")
    path.parent.mkdir()
    path.write_bytes(whole[:200])
    assert review.watch(config, place)["lines"] == 0
    path.write_bytes(whole)
    assert review.watch(config, place) == {"lines": 1, "alarms": 1}


@pytest.mark.parametrize("at", ["appended", "journalled"])
def test_killed_watch_loses_nothing_and_repeats_one_alarm_at_most(config, monkeypatch, at):
    """The watch dies in the middle, after an alarm was written down or after it was said."""
    place, writer = review.Place(config["directory"]), lines.Writer(config["store"])
    for number in range(10):
        writer.put("web", lines.log("clamd", f"/srv/{number}: Sig-{number} FOUND"), time.time() - 20 + number)
    calls = []

    def dies(tag, priority, words):
        if at == "journalled":
            SAID.append((tag, json.dumps(words)))
        calls.append(tag)
        if len(calls) == 5:
            raise KeyboardInterrupt
        if at == "appended":
            SAID.append((tag, json.dumps(words)))

    with monkeypatch.context() as patch:
        patch.setattr(review, "say", dies)
        with pytest.raises(KeyboardInterrupt):
            review.watch(config, place)
    review.watch(config, place)
    told = [json.loads(said)["object"] for tag, said in SAID if tag == "bulwark-alert"]
    assert sorted(set(told)) == [f"/srv/{number}" for number in range(10)]
    assert len(told) == (11 if at == "journalled" else 10)
    kept = "".join(path.read_text() for path in Path(config["directory"], "alerts").iterdir()).splitlines()
    assert len(kept) == 10


def test_killed_process_loses_nothing(config, tmp_path):
    """The same with a real SIGKILL at a moment nobody chose."""
    writer = lines.Writer(config["store"])
    for number in range(3000):
        writer.put("web", lines.log("clamd", f"/srv/{number}: Sig-{number} FOUND"), time.time() - 60 + number / 1000)
    file = tmp_path / "config.json"
    file.write_text(json.dumps(config))
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); import trail_review as r; r.ALARMS_PER_RULE = 10**6; r.main(sys.argv[2:])"
    )
    command = [sys.executable, "-c", code, str(ROOT / "plugins/module_utils"), "--config", str(file), "watch"]
    for wait in (0.25, 0.4):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(wait)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    kept = [json.loads(text)["event"]["objects"][0] for path in sorted(Path(config["directory"], "alerts").iterdir())
            for text in path.read_text().splitlines()]  # fmt: skip
    assert len(kept) == len(set(kept)) == 3000


def test_a_storm_of_alarms_is_said_in_one(config):
    """A host in wrong hands can make thousands of lines; the reviewers get a number."""
    writer = lines.Writer(config["store"])
    for number in range(500):
        writer.put("web", lines.log("clamd", f"/srv/{number}: Sig FOUND"), time.time() - 20 + number / 100)
    assert review.watch(config, review.Place(config["directory"]))["alarms"] == review.ALARMS_PER_RULE + 1
    assert "450 more alarms" in SAID[-1][1]


def test_groups_are_bounded(config, monkeypatch):
    """A scan from a million addresses does not fill the memory, and forgetting is counted."""
    monkeypatch.setattr(review, "GROUPS_MAX", 100)
    writer = lines.Writer(config["store"])
    for number in range(300):
        writer.put("web", lines.firewall("drop", source=f"10.{number // 250}.0.{number % 250}"), NOON + number / 100)
    engine = review.Engine(config)
    for line in review.Store(config["store"]).merged({}):
        engine.feed(line)
    assert len(engine.state["groups"]["slow_port_scan"]) == 100 and engine.state["forgotten"] == 200


def test_removed_and_truncated_files_are_said(config):
    """Somebody shortens, then deletes, the file that the watch has read."""
    place = review.Place(config["directory"])
    now_play(config, "audit_lost")
    now_play(config, "audit_lost", "db")
    review.watch(config, place)
    web, db = (next(Path(config["store"], host).iterdir()) for host in ("web", "db"))
    web.write_bytes(web.read_bytes()[:-40])
    db.unlink()
    review.watch(config, place)
    told = [json.loads(said) for tag, said in SAID if tag == "bulwark-alert"]
    assert {(said["rule"], said["host"]) for said in told} >= {("chain_broken", "web"), ("chain_broken", "db")}


HOSTILE = (
    "<script>alert(1)</script><img src=x onerror=alert(2)>",
    "\x1b]0;owned\x07\x1b[2J\x1b[31mred",
    "line one\nevent=alert rule=forged",
    "\u202egnp.exe",
    "A" * 200_000,
    "=cmd|' /C calc'!A0",
    "\ud800 lone",
    "' OR 1=1 --",
    "${jndi:ldap://x}",
    "%s%n%x",
    "\x00\x00",
)


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text_harms_nothing(config, monkeypatch, text):
    """What an attacker writes into a log arrives as text: no markup, no control characters, one line, bounded."""
    monkeypatch.setattr(review, "actor", lambda: ("rita", 1000))
    place, writer = review.Place(config["directory"]), lines.Writer(config["store"])
    at = time.time() - 10
    writer.put("web", lines.log("clamd", f"/srv/x {text}: Sig{text[:50]} FOUND"), at)
    writer.put("web", lines.log("sudo", f"{text[:40]} : TTY=pts/0 ; PWD=/ ; USER=root ; COMMAND={text}"), at + 1)
    writer.put("web", lines.log("sshd", f"Failed password for {text} from 198.51.100.9 port 1 ssh2"), at + 2)
    review.watch(config, place)
    entry = review.write_digest(config, place, "", review.stamp_of(time.time()), "5eed", "test")
    page = Path(config["directory"], "digests", f"{entry['digest']}.html").read_text()
    assert "<script" not in page and "<img" not in page and "\x1b" not in page and "\u202e" not in page and "\x00" not in page
    assert len(page) < 100_000
    for form in ("table", "csv", "json"):
        out = io.StringIO()
        asked = {"since": "", "until": "", "host": "", "person": "", "kind": [], "object": "", "result": "", "text": ""}
        review.query(config, place, asked, form, 100, out)
        said = out.getvalue()
        assert all(char.isprintable() or char in "\r\n" for char in said)
        if form == "csv":
            cells = [cell for row in csv.reader(io.StringIO(said)) for cell in row]
            assert not any(cell.startswith(("=", "+", "@", "-")) for cell in cells)
    assert all("\n" not in json.loads(said).get("text", "") for _tag, said in SAID if "{" in said)


def test_broken_lines_stop_nothing(config):
    """A line that is no JSON, one of another host, a huge one: each is said, and the next is read."""
    writer = lines.Writer(config["store"])
    writer.put("web", lines.heartbeat(), NOON)
    path = Path(config["store"], "web", "2026-11-25.jsonl")
    with path.open("ab") as stream:
        stream.write(b"not json\n" + b'{"n":2,"host":"db","entry":{}}\n' + b"[" * 100_000 + b"\n")
        stream.write(b'"' + b"x" * (review.LINE_MAX + 5) + b"\n")
    writer.put("web", lines.fixtures(NOON)["malware"][0][0], NOON + 1)
    found = events(config)
    assert [item["action"] for item in found if item["kind"] == "trail"].count("broken_line") == 4
    assert any(item["kind"] == "malware" for item in found)


# --- digest, register, signatures ----------------------------------------


def made(config: dict, monkeypatch, by: str = "rita") -> tuple[review.Place, dict]:
    """Make a digest of a store with some accesses, as a person."""
    monkeypatch.setattr(review, "actor", lambda: (by, 1000))
    place = review.Place(config["directory"])
    for rule in ("sensitive_many", "uid_zero", "grave_fault"):
        play(config, rule)
    return place, review.write_digest(config, place, "", review.stamp_of(NOON + 900), "5eed", "timer")


def test_digest_shows_names_by_need_only(config, monkeypatch):
    """Who fired a rule is named; somebody who only read a file is a pseudonym, also in the data and in the sample."""
    config["rules"] = [rule for rule in RULES if not rule["id"].startswith("sensitive")]
    config["sample_size"] = 200
    writer = lines.Writer(config["store"])
    for entry in lines.Audit().call(NOON, "bulwark_sensitive", path="/srv/records/9.txt", person="quiet.person"):
        writer.put("innocent", entry, NOON)
    place, entry = made(config, monkeypatch)
    folder = Path(config["directory"], "digests")
    public = (folder / f"{entry['digest']}.json").read_text() + (folder / f"{entry['digest']}.html").read_text()
    assert "quiet.person" not in public and "toor" in public
    private = json.loads((folder / f"{entry['digest']}.private.json").read_text())
    assert "quiet.person" in private["names"].values() and private["heads"]["web"]["n"] > 0
    assert (folder / f"{entry['digest']}.private.json").stat().st_mode & 0o777 == 0o600
    alias = next(key for key, name in private["names"].items() if name == "quiet.person")
    assert review.reveal(config, place, entry["digest"], alias, "ticket 7") == "quiet.person"
    assert review.read_register(place.path("register.jsonl"))[0][-1]["what"] == "reveal"
    monkeypatch.setattr(review, "actor", lambda: ("mallory", 1001))
    with pytest.raises(review.Refused, match="no declared reviewer"):
        review.reveal(config, place, entry["digest"], alias, "curious")


def test_sample_is_drawn_again_from_its_seed(config, monkeypatch):
    """The same seed gives the same sample, another one another."""
    place, entry = made(config, monkeypatch)
    assert review.redraw(config, place, entry["digest"]) == (True, 5)
    key = place.key()
    drawn = [
        review.digest_of(config, entry["since"], entry["until"], seed, key)[0]["sample"] for seed in ("5eed", "5eed", "other")
    ]
    assert drawn[0] == drawn[1] != drawn[2] and drawn[0]["of"] == 101


def test_digests_follow_each_other(config, monkeypatch):
    """The next digest begins where the last one ended; one on the side changes nothing that is due."""
    place, first = made(config, monkeypatch)
    aside = review.write_digest(config, place, first["since"], first["until"], "aa", "rita")
    second = review.write_digest(config, place, "", review.stamp_of(NOON + 5000), "bb", "timer")
    assert second["since"] == first["until"] and not aside["periodic"]
    state = review.review_state(review.read_register(place.path("register.jsonl"))[0], ["server"], time.time())
    assert state["digests"] == 2 and state["gaps"] == []


def test_every_line_is_in_one_digest(config, monkeypatch):
    """Even if the collector's clock steps back, what comes after a digest is in the next, once, and its sample can be redrawn."""
    place, first = made(config, monkeypatch)
    writer = lines.Writer(config["store"])
    for number, entry in enumerate(lines.Audit(9).call(NOON, "bulwark_sensitive", path="/srv/records/late.txt")):
        writer.put("web", entry, NOON - 100 + number / 100)
    second = review.write_digest(config, place, "", review.stamp_of(NOON), "bb", "timer")
    data = json.loads(Path(place.path("digests", f"{second['digest']}.json")).read_text())
    assert data["lines"] == 4 and data["sample"]["of"] == 1 and first["digest"] != second["digest"]
    assert review.redraw(config, place, second["digest"]) == (True, 1) and review.redraw(config, place, first["digest"]) == (
        True,
        5,
    )
    assert [alarm for alarm in data["findings"] if alarm["rule"] == "chain_broken"] == [], "the chain goes on across digests"


def test_signing(config, monkeypatch):
    """Only declared reviewers, only digests as they were written, and never one's own administration."""
    place, entry = made(config, monkeypatch)
    day = review.epoch(entry["time"]) + 86400 * 8

    def state() -> dict:
        return review.review_state(review.read_register(place.path("register.jsonl"))[0], ["server"], day)

    assert state()["unreviewed_days"]["server"] == 8.0
    monkeypatch.setattr(review, "actor", lambda: ("mallory", 1001))
    with pytest.raises(review.Refused, match="mallory is no declared reviewer"):
        review.sign(config, place, "latest", "nothing_found", "", [])
    assert SAID[-1][1] == json.dumps({"event": "refused", "by": "mallory", "what": "sign"})
    monkeypatch.setattr(review, "actor", lambda: ("rita", 1000))
    with pytest.raises(review.Refused, match="needs a remark"):
        review.sign(config, place, "latest", "incident", " ", [])
    with pytest.raises(review.Refused, match="no class of hosts"):
        review.sign(config, place, "latest", "nothing_found", "", ["gateway"])
    with pytest.raises(review.Refused, match="no such digest"):
        review.sign(config, place, "../../etc/passwd", "nothing_found", "", [])
    signed = review.sign(config, place, "latest", "nothing_found", "looked\nat", [])
    assert signed["by"] == "rita" and signed["remark"] == "looked\\u000aat" and not signed["own"]
    assert state()["unreviewed_days"]["server"] == 0.0
    page = Path(config["directory"], "digests", f"{entry['digest']}.html")
    page.write_text(page.read_text() + " ")
    with pytest.raises(review.Refused, match="it was changed"):
        review.sign(config, place, "latest", "nothing_found", "", [])


def test_nobody_reviews_their_own_administration(config, monkeypatch):
    """An administrator who reviews: the hosts' part counts, their own part waits for another."""
    config["reviewers"] = ["alice", "rita"]
    lines.played(lines.Writer(config["store"]), "web", lines.fixtures(NOON)["privileged_access"], NOON)
    place, entry = made(config, monkeypatch, "alice")
    day = review.epoch(entry["time"]) + 86400 * 8
    assert len(entry["administrators"]) >= 1
    assert review.sign(config, place, "latest", "nothing_found", "", [])["own"]
    state = review.review_state(review.read_register(place.path("register.jsonl"))[0], ["server"], day)
    assert state["unreviewed_days"]["server"] == 0.0 and state["administrators_unreviewed_days"] == 8.0
    monkeypatch.setattr(review, "actor", lambda: ("rita", 1002))
    review.sign(config, place, "latest", "nothing_found", "", [])
    state = review.review_state(review.read_register(place.path("register.jsonl"))[0], ["server"], day)
    assert state["administrators_unreviewed_days"] == 0.0


@pytest.mark.parametrize("how", ["changed", "removed", "swapped", "torn"])
def test_register_that_was_altered_is_known(config, monkeypatch, how):
    """The register's own chain: nothing is recorded behind an alteration."""
    place, _entry = made(config, monkeypatch)
    for _turn in range(2):
        review.sign(config, place, "latest", "nothing_found", "fine", [])
    path = Path(place.path("register.jsonl"))
    kept = path.read_text().splitlines(keepends=True)
    path.write_text("".join({
        "changed": [kept[0], kept[1].replace("fine", "well"), kept[2]], "removed": [kept[0], kept[2]],
        "swapped": [kept[1], kept[0], kept[2]], "torn": [*kept[:2], kept[2][:50]],
    }[how]))  # fmt: skip
    assert review.read_register(str(path))[1]
    with pytest.raises(review.Refused, match="line"):
        review.sign(config, place, "latest", "nothing_found", "", [])


def test_digest_says_when_the_store_does_not_hold(config, monkeypatch, tmp_path):
    """trail_store's verdict stands in the digest; without it, that nobody looked."""
    program = tmp_path / "trail_store"
    program.write_text('#!/bin/sh\necho \'{"problems": ["web/2026-11-25.jsonl: line 3"]}\'\nexit 1\n')
    program.chmod(0o755)
    config["verify"] = str(program)
    _place, entry = made(config, monkeypatch)
    assert entry["verified"] is False
    assert "DOES NOT HOLD" in Path(config["directory"], "digests", f"{entry['digest']}.html").read_text()
    config["verify"] = ""
    assert review.verified(config)["ok"] is None


def test_the_stores_own_program_is_asked(config, monkeypatch, tmp_path):
    """trail_store itself: sound as long as nothing is altered; then the digest names where."""
    program = tmp_path / "trail_store"
    source = (ROOT / "plugins/module_utils/trail_store.py").read_text()
    program.write_text(f"#!{sys.executable} -IS\n{source}")
    program.chmod(0o755)
    config["verify"] = str(program)
    play(config, "uid_zero")
    play(config, "malware", at=NOON + 5)
    assert review.verified(config) == {"ok": True, "said": "every line follows from the one before it"}
    path = Path(config["store"], "web", "2026-11-25.jsonl")
    path.write_text(path.read_text().replace("toor", "tool", 1))
    found = review.verified(config)
    assert found["ok"] is False and "2026-11-25.jsonl" in found["said"] and "web" in found["said"]
    config["store"] = "/nowhere"
    assert review.verified(config)["ok"] is None


# --- mail and query ----------------------------------------


def test_mail_goes_through_sendmail_without_a_shell(config, tmp_path):
    """One mail for all that waits; hostile words make no headers; a sendmail that fails is tried again."""
    program = tmp_path / "sendmail"
    program.write_text(f'#!/bin/sh\nprintf "%s\\n" "$@" >{tmp_path}/arguments\ncat >{tmp_path}/mail\n')
    program.chmod(0o755)
    config.update(mail_to=["security@clinic.example"], sendmail="/bin/false")
    place = review.Place(config["directory"])
    entry = lines.log("bulwark-break-glass", "bulwark-break-glass used: service=sshd account=a\r\nBcc:x@y from=- terminal=- by=-")
    lines.Writer(config["store"]).put("web", entry, time.time())
    now_play(config, "malware")
    review.watch(config, place)
    with pytest.raises(review.Refused, match="exit 1"):
        review.send_mail(config, place)
    config["sendmail"] = str(program)
    assert review.send_mail(config, place) == 2 and review.send_mail(config, place) == 0
    assert (tmp_path / "arguments").read_text() == "-i\n--\nsecurity@clinic.example\n"
    headers = (tmp_path / "mail").read_text().partition("\n\n")[0]
    assert "Bcc" not in headers and "To: security@clinic.example" in headers and "2 alarm(s)" in headers


def test_query_finds_and_is_recorded(config, monkeypatch):
    """By person, object, kind, result and text, also in compressed days; the question is in the register."""
    place, _entry = made(config, monkeypatch)
    path = Path(config["store"], "web", "2026-11-25.jsonl")
    path.with_suffix(".jsonl.gz").write_bytes(gzip.compress(path.read_bytes()))
    path.unlink()
    base = {"since": "2026-11-25T00:00:00.000000Z", "until": "", "host": "", "person": "", "kind": [], "object": "", "result": "",
            "text": ""}  # fmt: skip

    def ask(**asked: object) -> list[dict]:
        out = io.StringIO()
        review.query(config, place, {**base, **asked}, "json", 1000, out)
        return json.loads(out.getvalue())

    assert len(ask(person="alice", object="/srv/records/5.txt")) == 1
    assert [item["value"] if "value" in item else item["action"] for item in ask(kind=["account"])] == ["add"]
    assert len(ask(text="i/o ERROR")) == 1 and ask(result="failed") == [] and ask(person="nobody") == []
    with pytest.raises(review.Refused, match="no such host"):
        ask(host="../..")
    last = review.read_register(place.path("register.jsonl"))[0][-1]
    assert last["what"] == "query" and last["by"] == "rita"


def test_who_asks_is_never_taken_from_an_argument(monkeypatch):
    """The login uid of the kernel counts, then sudo; nobody is nobody."""
    monkeypatch.setattr("builtins.open", lambda *_a, **_k: io.StringIO("0"))
    monkeypatch.setenv("SUDO_UID", "12345")
    assert review.actor() == ("root", 0)
    monkeypatch.setattr("builtins.open", lambda *_a, **_k: io.StringIO("4294967295"))
    with pytest.raises(review.Refused, match="no account has the number"):
        review.actor()
    monkeypatch.delenv("SUDO_UID")
    with pytest.raises(review.Refused, match="not known"):
        review.actor()
