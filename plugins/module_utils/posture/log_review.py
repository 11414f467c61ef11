# Copyright: (c) 2026, Bulwark contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Observe how the trail is reviewed: what runs, which rules are in force, which digests there are, and who has reviewed them."""

from __future__ import annotations

import grp
import hashlib
import json
import os
import pwd
import stat
import time

from ansible_collections.bulwark.hardening.plugins.module_utils import trail_review
from ansible_collections.bulwark.hardening.plugins.module_utils.posture import log_forward
from ansible_collections.bulwark.hardening.plugins.module_utils.posture.common import CannotObserve, load, read, run

DIRECTORY = "/var/lib/bulwark/trail-review"
PROGRAM = "/usr/local/lib/bulwark/trail_review"
USER, GROUP = "bulwark-review", "trail-reviewers"
TIMERS = ("bulwark-trail-review.timer", "bulwark-trail-digest.timer")
SERVICES = ("bulwark-trail-review.service", "bulwark-trail-digest.service")


def collect() -> dict:
    """Return how the trail is reviewed.

    sandbox        whether systemd may filter what services do (in a plain container it may not)
    accounts       names of all accounts; members: those of the reviewers' group, None if there is no such group
    units          {timer or service: {active, result, user, protected}}
    program        {as_released, owner, mode} of the program, None if it is not there
    config         what the program goes by, without its rules; {} if there is none
    rules          {id: {severity, count, statements}} in force; rules_problem: why the program would refuse to run, or ""
    fingerprints   id and SHA-256 of each rule in force
    watch          {age_seconds, lines, silent (hosts)} of the last look, None if there was none
    review         see trail_review.review_state; register_problem: what is wrong with the register, or ""
    digest_age_hours  of the end of the last digest's time, None if there is none
    digests_altered   digests that are not what was written
    files          list of {path, owner, group, mode} of the directory and what matters in it
    incidents      how many incident files there are
    """
    data: dict = {
        "sandbox": log_forward.sandbox(read("/proc/1/status")),
        "accounts": sorted(entry.pw_name for entry in pwd.getpwall()),
        "members": members(),
        "units": units(),
        "program": program(),
        "config": {},
        "rules": {},
        "rules_problem": "there is no configuration",
        "fingerprints": [],
        "watch": None,
        "register_problem": "",
        "digest_age_hours": None,
        "digests_altered": [],
        "files": [],
        "incidents": 0,
    }
    if os.path.exists(trail_review.CONFIG):
        data.update(configured(read(trail_review.CONFIG)))
    summary = os.path.join(DIRECTORY, "state", "watch-summary.json")
    if seen := load(summary):
        age = time.time() - trail_review.epoch(seen["at"])
        data["watch"] = {"age_seconds": round(age), "lines": seen["lines"], "silent": seen["silent"]}
    entries, data["register_problem"] = trail_review.read_register(os.path.join(DIRECTORY, "register.jsonl"))
    classes = data["config"].get("max_days", {})
    data["review"] = trail_review.review_state(entries, classes, time.time())
    if data["review"]["last_digest_until"]:
        until = trail_review.epoch(data["review"]["last_digest_until"])
        data["digest_age_hours"] = round((time.time() - until) / 3600, 3)
    data["digests_altered"] = altered(entries)
    data["files"] = files()
    if os.path.isdir(os.path.join(DIRECTORY, "incidents")):
        data["incidents"] = len(os.listdir(os.path.join(DIRECTORY, "incidents")))
    return data


def members() -> list[str] | None:
    """Return who belongs to the reviewers' group, the program's own account aside; None if there is no group."""
    try:
        group = grp.getgrnam(GROUP)
    except KeyError:
        return None
    primary = [entry.pw_name for entry in pwd.getpwall() if entry.pw_gid == group.gr_gid]
    return sorted({*group.gr_mem, *primary} - {USER})


def units() -> dict[str, dict]:
    """Return the state of timers and services; one that does not exist is inactive."""
    names = (*TIMERS, *SERVICES)
    shown = run(["systemctl", "show", "-p", "Id,ActiveState,Result,User,NoNewPrivileges,ProtectSystem,PrivateNetwork", *names])
    found = {}
    for block in shown.strip().split("\n\n"):
        unit = dict(line.partition("=")[::2] for line in block.splitlines())
        found[unit["Id"]] = {
            "active": unit.get("ActiveState", "") in ("active", "activating"),
            "result": unit.get("Result", ""),
            "user": unit.get("User", ""),
            "protected": (unit.get("NoNewPrivileges"), unit.get("ProtectSystem"), unit.get("PrivateNetwork"))
            == ("yes", "strict", "yes"),
        }
    return found


def program() -> dict | None:
    """Return {as_released, owner, mode} of the program, None if it is not there. Its first line is written by the role."""
    if not os.path.exists(PROGRAM):
        return None
    released = trail_review.__loader__.get_source(trail_review.__name__)
    about = os.stat(PROGRAM)
    same = read(PROGRAM).partition("\n")[2] == released
    return {"as_released": same, "owner": about.st_uid, "mode": f"{stat.S_IMODE(about.st_mode):04o}"}


def configured(text: str) -> dict:
    """Return config, rules and rules_problem from the program's configuration."""
    try:
        config = json.loads(text)
        rules = config.pop("rules")
        problems = trail_review.rule_problems(rules)
        kept = {rule["id"]: {key: rule.get(key) for key in ("severity", "count", "statements")} for rule in rules}
        prints = [trail_review.fingerprint(rule) for rule in rules]
    except (ValueError, KeyError, TypeError, AttributeError) as exc:
        return {"config": {}, "rules": {}, "rules_problem": f"{type(exc).__name__}: {exc}", "fingerprints": []}
    return {"config": config, "rules": {} if problems else kept, "rules_problem": "; ".join(problems), "fingerprints": prints}


def altered(entries: list[dict]) -> list[str]:
    """Return the digests of the register that are gone or not what was written; the last hundred are looked at."""
    wrong = []
    for entry in [entry for entry in entries if entry["what"] == "digest"][-100:]:
        for suffix, key in ((".json", "sha256"), (".html", "html_sha256")):
            path = os.path.join(DIRECTORY, "digests", os.path.basename(entry["digest"]) + suffix)
            try:
                with open(path, "rb") as stream:
                    same = hashlib.sha256(stream.read()).hexdigest() == entry[key]
            except FileNotFoundError:
                same = False
            except OSError as exc:
                raise CannotObserve(f"{path}: {exc.strerror}") from exc
            if not same:
                wrong.append(os.path.basename(path))
    return wrong


def files() -> list[dict]:
    """Return {path, owner, group, mode} of the directory, what lies right in it, and all digests."""
    if not os.path.isdir(DIRECTORY):
        return []
    paths = [DIRECTORY, *(os.path.join(DIRECTORY, name) for name in sorted(os.listdir(DIRECTORY)))]
    folder = os.path.join(DIRECTORY, "digests")
    paths += [os.path.join(folder, name) for name in sorted(os.listdir(folder))] if os.path.isdir(folder) else []
    owners = {entry.pw_uid: entry.pw_name for entry in pwd.getpwall()}
    groups = {entry.gr_gid: entry.gr_name for entry in grp.getgrall()}
    found = []
    for path in paths:
        about = os.lstat(path)
        owner, group = owners.get(about.st_uid, str(about.st_uid)), groups.get(about.st_gid, str(about.st_gid))
        found.append({"path": path, "owner": owner, "group": group, "mode": f"{stat.S_IMODE(about.st_mode):04o}"})
    return found
