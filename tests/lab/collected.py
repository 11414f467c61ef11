# SPDX-License-Identifier: GPL-3.0-or-later
"""What the lab's collector has: shared by make lab and the tests."""

from __future__ import annotations

import json
import shlex
import time

import lab
import way_in

REVIEW = "sudo -u bulwark-review /usr/local/lib/bulwark/trail_review"


def query(*options: str) -> list[dict]:
    """Return the events that the collector finds, of the last two hours unless told; Ansible's account asks."""
    command = f"{REVIEW} query --since=2h --format=json {shlex.join(options)}"
    done = way_in.on(lab.COLLECTOR, f"su deploy -c {shlex.quote(command)}")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def known(since: float, host: str, kind: str, **fields: str) -> dict | None:
    """Return the first event of a kind on a host since a moment that has these fields, or None."""
    begin = time.strftime("--since=%Y-%m-%dT%H:%M:%S", time.gmtime(since))
    return next((event for event in query(begin, f"--host={host}", f"--kind={kind}") if fields.items() <= event.items()), None)


def alarms(rule: str, host: str, since: float) -> list[dict]:
    """Return the alarms of a rule for a host since a moment."""
    begin = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(since))
    told = way_in.on(lab.COLLECTOR, "cat /var/lib/bulwark/trail-review/alerts/*.jsonl").stdout.splitlines()
    return [a for a in map(json.loads, told) if a["rule"] == rule and a["event"]["host"] == host and a["raised"] >= begin]
