# SPDX-License-Identifier: GPL-3.0-or-later
"""The lab's trail: what happens on its machines is found on the collector, by whom and from where, and raises alarms.

What containers cannot show, because their kernel is not their own, tests/trail shows on guests.
"""

from __future__ import annotations

import json
import re
import time

import lab
import pytest
import way_in
from collected import alarms, query
from guests import until

DELIVERING = [name for name in lab.HOSTS if name != lab.MEMBER]  # a workstation forwards nothing


@pytest.mark.parametrize("name", DELIVERING)
def test_every_host_delivers(story, name):
    """What is logged on a server, the gateway or the collector itself is there within a minute."""
    mark = f"here-{name}-{int(time.time())}"
    assert way_in.on(name, f"logger -t lab-mark {mark}").returncode == 0
    event = until(lambda: query(f"--host={name}", f"--text={mark}"), 60, mark)[0]
    assert event["host"] == name


def test_person_who_came_in_is_known_by_name_address_and_factor(story):
    """The tunnel on the gateway, the login and sudo on the server: each is jdoe's, with the address she came from."""
    begin = time.time()
    lab.duo("allow")
    assert way_in.tunnel() == "up"
    server = lab.SERVERS["lab-server-13"]
    try:
        assert way_in.ssh(server.address(), "sudo -n true").returncode != 0  # a password is asked for, and none given
    finally:
        way_in.close_tunnel()
    member = lab.HOSTS[lab.MEMBER].address()
    stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(begin - 1))

    def found(host: str, **wanted: str):
        for event in query(f"--host={host}", f"--since={stamp}"):
            if all(re.search(value, str(event[key])) for key, value in wanted.items()):
                return event
        return None

    until(lambda: found(lab.GATEWAY, kind="^vpn$", action="^connect$", person="^jdoe$", source=member), 60, "the tunnel")
    inside = r"^10\.99\.0\.10$"
    until(lambda: found("lab-server-13", kind="^login$", person="^jdoe$", source=inside, result="success"), 60, "the login")
    until(lambda: found("lab-server-13", kind="^sudo$", person="^jdoe$"), 60, "sudo")


def test_port_scan_raises_an_alarm_within_a_minute(story):
    """An outsider tries a hundred ports of a server (UMDNJ-G-9a): the collector raises the alarm, with the address."""
    begin = time.time()
    server = lab.SERVERS["lab-server-12"]
    way_in.knock(lab.OUTSIDER, [(server.address(lab.OUTSIDE), port) for port in range(3000, 3100)])
    alarm = until(lambda: alarms("port_scan", "lab-server-12", begin), 60, "the scan")[0]
    assert alarm["event"]["source"] == lab.MACHINES[lab.OUTSIDER].address()


def test_hardening_a_plain_lab_raises_no_false_alarm(story):
    """What Ansible, sshd and assessments do every day is no forgery, no gap, and no unsound second factor."""
    told = way_in.on(lab.COLLECTOR, "cat /var/lib/bulwark/trail-review/alerts/*.jsonl").stdout.splitlines()
    every = {alarm["rule"] for alarm in map(json.loads, told)}
    assert not every & {"forged_line", "duo_unsound", "sequence_gap", "audit_gap", "chain_broken", "lines_missing"}, every


def test_operators_ask_from_the_controller(story):
    """playbooks/query_trail.yml answers, and the question is on record with the account that asked."""
    done = lab.ansible("test-query", "playbooks/query_trail.yml", "-e", "query_trail_since=2h", "-e", "query_trail_kind=login")
    assert done.returncode == 0, done.stdout[-3000:]
    assert "lab-server-13" in done.stdout
    asked = way_in.on(lab.COLLECTOR, "grep -h query /var/lib/bulwark/trail-review/register.jsonl").stdout
    assert '"deploy"' in asked


def test_nobody_writes_as_another_host(story):
    """The certificate of one server cannot deliver in the name of another, nor can somebody without one."""
    script = f"""
import http.client, ssl, sys
context = ssl.create_default_context(cafile='/etc/bulwark/log_forward/ca.crt')
if sys.argv[1] == 'own':
    context.load_cert_chain('/etc/bulwark/log_forward/own.crt', '/etc/bulwark/log_forward/private.key')
line = http.client.HTTPSConnection('{lab.HOSTS[lab.COLLECTOR].address()}', 19532, context=context, timeout=20)
said = ['__CURSOR=s=ab;i=1;b=cd;m=1;t=1;x=1', '__REALTIME_TIMESTAMP=1795568523000000', '_HOSTNAME=lab-gateway']
body = '\\n'.join([*said, 'MESSAGE=forged-in-the-lab', '', ''])
try:
    line.request('POST', '/upload', body, {{'Content-Type': 'application/vnd.fdo.journal'}})
    print(line.getresponse().status)
except OSError as exc:
    print('refused', exc)
"""
    none = way_in.on("lab-server-12", f"python3 - none <<'END'\n{script}END")
    assert none.stdout.startswith("refused"), none.stdout + none.stderr
    own = way_in.on("lab-server-12", f"python3 - own <<'END'\n{script}END")
    assert own.stdout.strip() == "200", own.stdout + own.stderr
    held = way_in.on(lab.COLLECTOR, "grep -l '\"MESSAGE\":\"forged-in-the-lab\"' /var/log/bulwark-trail/*/*.jsonl").stdout.split()
    assert [path.split("/")[-2] for path in held] == ["lab-server-12"]


def test_trail_verifies_and_evidence_is_its_witness(story):
    """The store is sound against the heads that an audit on the controller wrote down."""
    record = story.runs["after"] / "hosts" / f"{lab.COLLECTOR}.json"
    done = way_in.on(lab.COLLECTOR, "cat >/tmp/heads.json && /usr/local/lib/bulwark/trail_store verify --heads /tmp/heads.json",
                     data=record.read_text())  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.startswith("sound")
