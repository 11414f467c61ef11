# SPDX-License-Identifier: GPL-3.0-or-later
"""Proofs of the log_review role: lines come into the store as the receiver writes them, and the real timers do the rest.

The lines are those of tests/unit/trail_lines.py, which is put on the host and writes them there. People act through sudo, with a
password, as they would.
"""

from __future__ import annotations

import csv
import json
import os
import re
import shlex
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[3]
PLACE = "/var/lib/bulwark/trail-review"
PROGRAM = "/usr/local/lib/bulwark/trail_review"
RULES = [rule["id"] for rule in yaml.safe_load((ROOT / "roles/log_review/files/rules.yml").read_text())]
TIMED = ("host_silent", "collector_deaf", "chain_broken", "sequence_gap")  # these have proofs of their own


@pytest.fixture(scope="module", autouse=True)
def trail(host):
    """Put the maker of lines on the host."""
    source = (ROOT / "tests/unit/trail_lines.py").read_text()
    host.check_output(f"printf %s {shlex.quote(source)} >/root/trail_lines.py")
    host.check_output("""
        test -e /root/key || ssh-keygen -q -t ed25519 -N '' -f /root/key
        for name in rita tom mallory; do
            install -d -m 0700 -o $name -g $name /home/$name/.ssh
            install -m 0600 -o $name -g $name /root/key.pub /home/$name/.ssh/authorized_keys
        done""")


def play(host, name: str, *rules: str) -> None:
    """Let a host deliver the lines of some rules, now."""
    host.check_output(f"python3 /root/trail_lines.py /srv/trail {name} {' '.join(rules)} && chgrp -R trail-readers /srv/trail "
                      "&& chmod -R g+rX /srv/trail")  # fmt: skip


def beat(host, *names: str) -> None:
    """Let hosts give a sign of life."""
    code = ("import sys, time; sys.path.insert(0, '/root'); import trail_lines as t; w = t.Writer('/srv/trail'); "
            "[w.put(name, t.heartbeat(), time.time()) for name in sys.argv[1:]]")  # fmt: skip
    host.check_output(
        f"python3 -c {shlex.quote(code)} {' '.join(names)} && chmod -R g+rX /srv/trail && chgrp -R trail-readers /srv/trail"
    )


def alarms(host) -> list[dict]:
    """Return the alarms that have been raised."""
    return [json.loads(line) for line in host.check_output(f"cat {PLACE}/alerts/*.jsonl 2>/dev/null || true").splitlines()]


def wait_alarms(host, wanted: set[tuple[str, str]], seconds: float = 60) -> list[dict]:
    """Wait until the timer has raised alarms of these (rule, host), within a minute of their lines' arrival."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        found = alarms(host)
        if wanted <= {(alarm["rule"], alarm["event"]["host"]) for alarm in found}:
            return found
        time.sleep(1)
    missing = wanted - {(alarm["rule"], alarm["event"]["host"]) for alarm in alarms(host)}
    pytest.fail(f"no alarm of {missing}: {host.run('journalctl -q -n 20 -t bulwark-review -t bulwark-alert -o cat').stdout}")


def logged_in(host, name: str, command: str):
    """Run a command as somebody who has logged in by themselves, over ssh: so the kernel knows who they are."""
    options = "-o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -o LogLevel=ERROR -o BatchMode=yes"
    return host.run(f"ssh -i /root/key {options} {name}@127.0.0.1 {shlex.quote(command)}")


def as_reviewer(host, name: str, words: str):
    """Run the program as a person does: log in, sudo to the review's account, with the person's password."""
    return logged_in(host, name, f"echo review | sudo -S -p '' -u bulwark-review {PROGRAM} {words}")


def register(host) -> list[dict]:
    """Return the register."""
    return [json.loads(line) for line in host.check_output(f"cat {PLACE}/register.jsonl").splitlines()]


def digest(host) -> dict:
    """Have a digest written by its own unit and return its entry in the register."""
    host.check_output("systemctl reset-failed bulwark-trail-digest.service; systemctl start bulwark-trail-digest.service")
    return next(entry for entry in reversed(register(host)) if entry["what"] == "digest")


# --- watch ----------------------------------------


def test_every_rule_fires_through_the_watch(host):
    """Each rule's lines come in; the timer's own runs raise every alarm, without a hand."""
    beat(host, "web", "gate")
    loud = [rule for rule in RULES if rule not in (*TIMED, "privileged_access", "sensitive_access")]
    for start in range(0, len(loud), 10):
        play(host, "web", *loud[start : start + 10])
    wait_alarms(host, {(rule, "web") for rule in loud})
    said = host.check_output("journalctl -q -t bulwark-alert -o cat")
    for rule in loud:
        assert f"event=alert rule={rule} host=web " in said, rule
    assert "rule=privileged_access" not in said, "what is only for the digest raises no alarm"


def test_alarm_incident_and_mail_come_by_themselves(host):
    """The sealed account is used: journal, incident and mail within a minute, each once."""
    host.check_output("rm -f /var/tmp/mails")
    play(host, "gate", "break_glass")
    found = wait_alarms(host, {("break_glass", "gate")})
    alarm = next(alarm for alarm in found if alarm["rule"] == "break_glass" and alarm["event"]["host"] == "gate")
    stub = json.loads(host.check_output(f"cat {PLACE}/incidents/*-break_glass-{alarm['id']}.json"))
    assert stub["status"] == "open" and stub["host"] == "gate" and stub["from"] == "127.0.0.9"
    mail = host.check_output(
        "for i in $(seq 30); do grep -qs 'alarm " + alarm["id"] + "' /var/tmp/mails && break; sleep 1; done; cat /var/tmp/mails"
    )
    assert "ARGUMENTS -i -- security@clinic.example" in mail and "CRITICAL" in mail
    time.sleep(6)
    assert host.check_output(f"journalctl -q -t bulwark-alert -o cat | grep -c id={alarm['id']}") == "1"
    assert host.check_output(f"grep -c 'alarm {alarm['id']}' /var/tmp/mails") == "1"


def test_silent_host_is_raised(host):
    """A host that gives no sign of life for log_review_silent_minutes is named, while others are heard."""
    for _turn in range(2):
        beat(host, "web", "gate")
        time.sleep(3)
    host.check_output("systemctl stop bulwark-trail-review.timer")
    host.check_output("""python3 -c "
import json; p = '/var/lib/bulwark/trail-review/state/watch.json'; s = json.load(open(p))
s['engine']['hosts']['gate']['heartbeat'] -= 121; json.dump(s, open(p, 'w'))" """)
    beat(host, "web")
    host.check_output("systemctl start bulwark-trail-review.timer")
    wait_alarms(host, {("host_silent", "gate")})
    assert ("host_silent", "web") not in {(alarm["rule"], alarm["event"]["host"]) for alarm in alarms(host)}
    beat(host, "gate")


def test_altered_store_is_raised(host):
    """A line is altered under the watch's eyes, another file is shortened."""
    play(host, "web", "chain_broken")
    wait_alarms(host, {("chain_broken", "web")})
    beat(host, "gate")
    time.sleep(7)
    host.check_output("f=$(ls /srv/trail/gate/*.jsonl | tail -1); truncate -s -30 $f")
    wait_alarms(host, {("chain_broken", "gate")})
    host.check_output("rm -rf /srv/trail/gate && mkdir /srv/trail/gate && chgrp trail-readers /srv/trail/gate")


def test_killed_watch_loses_nothing(host):
    """kill -9 in the middle of work, several times: every alarm comes, at most one a kill comes twice."""
    code = ("import sys, time; sys.path.insert(0, '/root'); import trail_lines as t; w = t.Writer('/srv/trail'); "
            "[w.put('killed', t.log('clamd', f'/srv/{n}: Sig FOUND'), time.time()) for n in range(45)]")  # fmt: skip
    host.check_output(f"systemctl stop bulwark-trail-review.timer; python3 -c {shlex.quote(code)}; chmod -R g+rX /srv/trail; "
                      "chgrp -R trail-readers /srv/trail")  # fmt: skip
    for wait in ("0.15", "0.25"):
        host.run(
            f"systemctl start --no-block bulwark-trail-review.service; sleep {wait}; "
            "systemctl kill -s KILL bulwark-trail-review.service"
        )
    host.check_output("systemctl reset-failed bulwark-trail-review.service; systemctl start bulwark-trail-review.service")
    host.check_output("systemctl start bulwark-trail-review.timer")
    kept = [
        alarm["event"]["objects"][0]
        for alarm in alarms(host)
        if alarm["event"]["host"] == "killed" and alarm["rule"] == "malware"
    ]
    assert sorted(kept) == sorted(f"/srv/{number}" for number in range(45))
    said = host.check_output("journalctl -q -t bulwark-alert -o cat | grep -c 'rule=malware host=killed '")
    assert 45 <= int(said) <= 47


def test_hostile_lines_harm_nothing(host):
    """Markup, terminal escapes, newlines, a huge line, no JSON at all: the watch goes on, and what it says is harmless."""
    code = r"""
import sys, time; sys.path.insert(0, '/root'); import trail_lines as t
w = t.Writer('/srv/trail')
for text in ('<script>alert(1)</script>', '\x1b]0;owned\x07\x1b[2J', 'a\nevent=alert rule=forged host=x', '\u202egnp',
             'A' * 3000000):
    w.put('hostile', t.log('sudo', f'eve : TTY=pts/0 ; PWD=/ ; USER=root ; COMMAND=/bin/echo {text}'), time.time())
    w.put('hostile', t.log('clamd', f'/srv/{text}: Sig FOUND'), time.time())
f = f'/srv/trail/hostile/{t.stamp(time.time())[:10]}.jsonl'
open(f, 'ab').write(b'not json\n\xff\xfe\n' + b'[' * 100000 + b'\n')
w.put('hostile', t.log('clamd', '/srv/last: Sig FOUND'), time.time())
"""
    host.check_output(f"python3 -c {shlex.quote(code)}; chmod -R g+rX /srv/trail; chgrp -R trail-readers /srv/trail")
    wait_alarms(host, {("malware", "hostile"), ("chain_broken", "hostile")})
    entry = digest(host)
    page = host.check_output(f"cat {PLACE}/digests/{entry['digest']}.html")
    assert "<script" not in page and "\x1b" not in page and "\u202e" not in page and "/srv/last" in page
    said = host.check_output("journalctl -q -t bulwark-alert -o json | tail -200")
    messages = [json.loads(line)["MESSAGE"] for line in said.splitlines()]
    assert all(isinstance(message, str) and message.isprintable() and message.startswith("event=alert ") for message in messages)
    outside = [re.sub(r'"[^"]*"', '""', message) for message in messages]  # what a file's name holds stands in quotes
    assert any("/srv/a" in message for message in messages) and not any("rule=forged " in f"{message} " for message in outside)
    answer = as_reviewer(host, "rita", "query --since 1h --host hostile")
    assert answer.rc == 0 and "\x1b" not in answer.stdout


# --- reviewers ----------------------------------------


def test_digest_is_signed_by_reviewers_only(host):
    """A reviewer signs under their own name; others, changed digests and forged names are refused."""
    entry = digest(host)
    before = len(register(host))
    stranger = as_reviewer(host, "mallory", f"sign {entry['digest']} --result nothing_found")
    assert stranger.rc != 0 and "reviewed" not in stranger.stdout
    forged = logged_in(host, "mallory", f"SUDO_UID=$(id -u rita) {PROGRAM} sign {entry['digest']} --result nothing_found")
    assert forged.rc != 0 and len(register(host)) == before
    root = host.run(
        f"env -u SUDO_UID setpriv --reuid bulwark-review --regid trail-reviewers --clear-groups {PROGRAM} sign latest "
        "--result nothing_found"
    )
    assert root.rc == 1 and "deploy is no declared reviewer" in root.stderr, "root is who they logged in as"
    page = f"{PLACE}/digests/{entry['digest']}.html"
    host.check_output(f"cp -a {page} /root/page && echo ' ' >>{page}")
    changed = as_reviewer(host, "rita", "sign latest --result nothing_found")
    assert changed.rc == 1 and "it was changed" in changed.stderr
    host.check_output(f"cp -a /root/page {page}")
    signed = as_reviewer(host, "rita", "sign latest --result followed_up --remark 'called alice; it was her'")
    assert signed.rc == 0, signed.stderr
    last = register(host)[-1]
    assert (last["what"], last["by"], last["digest"], last["sha256"]) == ("sign", "rita", entry["digest"], entry["sha256"])
    assert f"event=sign by=rita digest={entry['digest']}" in host.check_output("journalctl -q -t bulwark-review -o cat -n 50")


def test_own_administration_waits_for_somebody_else(host):
    """rita used root's rights: her own signature leaves that part open, tom's closes it."""
    code = (
        "import sys, time; sys.path.insert(0, '/root'); import trail_lines as t; t.Writer('/srv/trail').put('web', t.log('sudo', "
        "'rita : TTY=pts/0 ; PWD=/ ; USER=root ; COMMAND=/usr/bin/id'), time.time())"
    )
    host.check_output(f"python3 -c {shlex.quote(code)}; chmod -R g+rX /srv/trail")
    digest(host)
    signed = as_reviewer(host, "rita", "sign latest --result nothing_found")
    assert signed.rc == 0 and "waits for somebody else" in signed.stdout
    waiting = json.loads(as_reviewer(host, "rita", "status").stdout)
    assert waiting["administrators_unreviewed_days"] > 0
    for entry in [entry["digest"] for entry in register(host) if entry["what"] == "digest"]:
        assert as_reviewer(host, "tom", f"sign {entry} --result nothing_found").rc == 0
    done = json.loads(as_reviewer(host, "tom", "status").stdout)
    assert done["administrators_unreviewed_days"] == 0 and done["register"] == "holds together"
    assert all(days == 0 for days in done["unreviewed_days"].values())


def test_overdue_review_fails(host, target):
    """A digest that nobody signed for longer than its class allows makes the observation say so."""
    code = """
import sys, time; sys.path.insert(0, '/usr/local/lib/bulwark')
from importlib.machinery import SourceFileLoader
r = SourceFileLoader('r', '/usr/local/lib/bulwark/trail_review').load_module()
entries, problem = r.read_register('/var/lib/bulwark/trail-review/register.jsonl')
kept = [e for e in entries if e['what'] == 'digest']
print(problem or r.review_state(kept, ['server', 'gateway'], time.time() + 8 * 86400)['unreviewed_days'])
"""
    said = host.check_output(f"python3 -W ignore -c {shlex.quote(code)}")
    assert said.startswith("{") and "'server': 8." in said and "'gateway': 8." in said


def test_sample_is_drawn_again(host):
    """The sample of a digest comes again from its seed."""
    play(host, "web", "sensitive_many")
    entry = digest(host)
    again = as_reviewer(host, "rita", f"redraw {entry['digest']}")
    assert again.rc == 0 and "the same 20 events" in again.stdout, again.stderr
    data = json.loads(host.check_output(f"cat {PLACE}/digests/{entry['digest']}.json"))
    assert data["sample"]["seed"] == entry["seed"] and data["sample"]["of"] == 101
    assert as_reviewer(host, "tom", "sign latest --result nothing_found").rc == 0


def test_others_read_nothing(host):
    """Digests, alarms, incidents and names: the reviewers read the first three, somebody else nothing, nobody the names."""
    name = digest(host)["digest"]
    for person, what, allowed in (
        ("rita", f"digests/{name}.html", True),
        ("rita", f"digests/{name}.private.json", False),
        ("rita", "state/key", False),
        ("mallory", f"digests/{name}.html", False),
        ("mallory", "register.jsonl", False),
        ("nobody", f"digests/{name}.json", False),
    ):
        assert (host.run(f"su -s /bin/sh -c 'cat {PLACE}/{what}' {person}").rc == 0) is allowed, (person, what)
    assert host.run(f"su -s /bin/sh -c 'echo x >>{PLACE}/register.jsonl' rita").rc != 0
    assert as_reviewer(host, "tom", "sign latest --result nothing_found").rc == 0


def test_names_are_revealed_to_reviewers_and_that_is_recorded(host):
    """Somebody who only read a file is a pseudonym, until a reviewer asks with a reason."""
    code = ("import sys, time; sys.path.insert(0, '/root'); import trail_lines as t; w = t.Writer('/srv/trail'); "
            "[w.put('quiet', e, time.time()) for e in t.Audit().call(time.time(), 'bulwark_sensitive', path='/srv/records/1', "
            "person='unset')]")  # fmt: skip
    host.check_output(f"python3 -c {shlex.quote(code)}; chmod -R g+rX /srv/trail; chgrp -R trail-readers /srv/trail")
    time.sleep(3)
    entry = digest(host)
    data = json.loads(host.check_output(f"cat {PLACE}/digests/{entry['digest']}.json"))
    alias = next(item["host"] for item in data["sample"]["events"] if item["host"].startswith("host-"))
    assert '"quiet"' not in json.dumps(data)
    assert as_reviewer(host, "mallory", f"reveal {entry['digest']} {alias} --reason curious").rc != 0
    told = as_reviewer(host, "rita", f"reveal {entry['digest']} {alias} --reason INC-7")
    assert told.stdout.strip() == "quiet", told.stderr
    last = register(host)[-1]
    assert (last["what"], last["by"], last["pseudonym"], last["reason"]) == ("reveal", "rita", alias, "INC-7")
    assert as_reviewer(host, "tom", "sign latest --result nothing_found").rc == 0


def test_query_finds_and_is_recorded(host):
    """Who, what, when, where from: found by a reviewer, as a table, JSON and CSV, and in the register."""
    table = as_reviewer(host, "rita", "query --since 1h --person alice --object /etc/sudoers.d")
    assert "sudoers/edit" in table.stdout and "alice>root" in table.stdout and "pts0" in table.stdout
    found = json.loads(as_reviewer(host, "rita", "query --since 1h --kind login --result failed --format json").stdout)
    assert len(found) >= 10 and {item["kind"] for item in found} == {"login"}
    assert as_reviewer(host, "rita", "query --since 1h --kind malware --format csv").stdout.startswith('"time","host"')
    asked = [entry for entry in register(host) if entry["what"] == "query"]
    assert asked[-1]["by"] == "rita" and asked[-1]["asked"]["kind"] == ["malware"]
    assert as_reviewer(host, "mallory", "query --since 1h").rc != 0


def test_ops_ask_from_the_controller(host, target, tmp_path):
    """playbooks/query_trail.yml finds the same, keeps it in a file of its own, and the register says which account asked."""
    state = os.environ["MOLECULE_EPHEMERAL_DIRECTORY"]
    kept = tmp_path / "found.csv"
    asked = {
        "query_trail_collector": target.name,
        "query_trail_since": "1h",
        "query_trail_kind": "break_glass,malware",
        "query_trail_text": "used; touch /tmp/owned --format=json",
        "query_trail_to": str(kept),
        "query_trail_ticket": "INC-7",
    }
    words: list[dict] = [asked, {**asked, "query_trail_text": "sealed"}]
    for variables in words:
        subprocess.run(
            [
                Path(sys.executable).with_name("ansible-playbook"),
                f"--inventory={state}/inventory",
                f"--extra-vars={json.dumps(variables)}",
                ROOT / "playbooks" / "query_trail.yml",
            ],
            check=True,
            capture_output=True,
            cwd=ROOT,
            env={**os.environ, "ANSIBLE_CONFIG": f"{state}/ansible.cfg"},
        )
        found = list(csv.DictReader(kept.read_text().splitlines()))
        assert bool(found) is (variables["query_trail_text"] == "sealed"), "a value is a value, whatever it looks like"
    assert found[0]["kind"] == "break_glass" and found[0]["source"] == "127.0.0.9" and kept.stat().st_mode & 0o777 == 0o600
    assert not host.file("/tmp/owned").exists
    last = [entry for entry in register(host) if entry["what"] == "query"][-1]
    assert (last["by"], last["ticket"], last["asked"]["text"]) == ("deploy", "INC-7", "sealed")


def test_the_review_can_change_nothing(host):
    """The review's account reads the store and cannot write it, and its unit reaches nobody."""
    assert (
        host.run(
            "setpriv --reuid bulwark-review --regid trail-reviewers --groups trail-readers sh -c 'echo >>/srv/trail/web/x'"
        ).rc
        != 0
    )
    shown = host.check_output("systemctl show -p User,PrivateNetwork,NoNewPrivileges,ProtectSystem bulwark-trail-review.service")
    assert set(shown.splitlines()) == {"User=bulwark-review", "PrivateNetwork=yes", "NoNewPrivileges=yes", "ProtectSystem=strict"}


def test_taking_the_role_back_and_bringing_it_again(host, target):
    """absent takes timers, program and rules away and keeps what was reviewed; present goes on with it."""
    before = len(register(host))
    target.reapply(log_review_state="absent")
    assert host.run("systemctl cat bulwark-trail-review.timer").rc != 0 and not host.file(PROGRAM).exists
    assert not host.file("/etc/sudoers.d/60-bulwark-log-review").exists and len(register(host)) == before
    target.reapply()
    assert host.check_output("systemctl is-active bulwark-trail-review.timer") == "active"
    digest(host)
    assert as_reviewer(host, "tom", "sign latest --result nothing_found").rc == 0
    assert len(register(host)) == before + 2
