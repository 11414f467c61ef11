# Copyright: (c) 2026, Bulwark contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The guard of access changes: what was, a timer that brings it back, and the word that calls the timer off.

The module change_guard imports this file on the host and also lays it out there, with config_set.py beside it, as the
program that the timer (and, after a reboot, the boot unit) starts: ``python3 PROGRAM rollback``.

    arm         take a snapshot, start the timer, put the boot unit in place; only then is the guard armed
    confirm     nothing differs, or the caller has come in anew: take all of this away again
    roll_back   everything back as the snapshot has it; may be killed at any moment, then it is begun again
    status      how things stand

Whether the guard is armed is one file, armed.json, written last and removed first. While it is there, the snapshot
is the last state that somebody confirmed. On disk (C(DIRECTORY), 0700, fsynced):

    armed.json     {"schema", "generation", "since", "armed_at", "account", "address", "window_seconds", "deadline": monotonic
                   seconds, "clock": seconds since boot, "asked": the same or None, "stage": "armed"|"rolling back", "why",
                   "also": {path: entry}}
    snapshot.json  {"roots": [path], "entries": {path: entry}, "tables": {name: table} or None, "patterns": [unit pattern],
                   "active": [unit], "units": [unit of the caller], "notes": [text]}
    report.json    what the last rollback did
    program/       this program
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import errno
import fcntl
import fnmatch
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import syslog
import time
import uuid

from . import config_set as core
from .config_set import ABSENT, Refused

DIRECTORY = "/var/lib/bulwark/change_guard"
SETS = "/var/lib/bulwark/config_set"
LOCK = "/run/bulwark-guard.lock"
MARK = "/run/bulwark-guard.armed"  # gone after a boot: so the boot unit does nothing when something else starts it
UNIT = "bulwark-guard"  # the start of the names of all units of the guard, and its identifier in the journal
BOOT_UNIT = f"/etc/systemd/system/{UNIT}-boot.service"
BOOT_LINK = f"/etc/systemd/system/sysinit.target.wants/{UNIT}-boot.service"
SSHD = "/usr/sbin/sshd"
SCHEMA = "bulwark.change_guard/1"
PATHS = (
    "/etc/bulwark",
    "/etc/nftables.conf",
    "/etc/nftables.d",
    "/etc/openvpn",
    "/etc/pam.d",
    "/etc/security",
    "/etc/ssh",
    "/etc/sudoers",
    "/etc/sudoers.d",
    "/etc/systemd/system",
    "/usr/local/lib/bulwark",
    "/usr/share/pam-configs",
    "/var/lib/pam",
    SETS,
)
UNITS = ("ssh.service", "ssh.socket", "bulwark-*", "openvpn-server@*.service", "openvpn@*.service")
# Stopping nftables.service flushes every table, those of container engines too, and starting it may do the same. The
# tables are put back one by one instead, and whether it starts at boot is a link below /etc/systemd/system.
LEFT_ALONE = ("nftables.service", f"{UNIT}*")
# Whose configuration lies where: a unit is started anew when something there was put back.
READS = {"ssh.service": "/etc/ssh/", "openvpn*@*": "/etc/openvpn/", "bulwark-*": "/etc/bulwark/"}
MOST_ENTRIES, MOST_BYTES = 20000, 64 * 1024 * 1024  # what a snapshot may hold; more is not an access path
FRESH = 120  # seconds for which "asked for a confirmation" counts: a connection made within them has come after the change
RETRY = 10  # seconds after which a rollback that did not come to its end is begun again
PATIENCE = 10  # seconds for a config_set that is at work; then it is ended
XATTRS = ("system.posix_acl_access", "system.posix_acl_default", "security.selinux")
# What iptables-nft wrote cannot be read back from what nft lists.
FOREIGN = re.compile(r"managed by iptables-nft|\bxt (?:match|target)\b|# xt_")
# A set that programs or packets fill by themselves; its elements come and go and say nothing about a change.
FILLED = re.compile(
    r"(\t(?:set|map) [^{]*\{\n(?:(?!\n\t\}).)*?flags [^\n]*(?:dynamic|timeout)(?:(?!\n\t\}).)*?)\s*elements = \{.*?\}", re.DOTALL
)
BOOT_TEXT = """\
# Put here by bulwark.hardening.change_guard while a change waits for its confirmation, and taken away with it.
[Unit]
Description=Take back an access change that nobody confirmed before the reboot
DefaultDependencies=no
ConditionPathExists=!{mark}
RequiresMountsFor={mounts}
After=local-fs.target systemd-journald-dev-log.socket
Before=sysinit.target network-pre.target nftables.service ssh.service ssh.socket shutdown.target
Wants=network-pre.target
Conflicts=shutdown.target
StartLimitIntervalSec=0
[Service]
Type=oneshot
Restart=on-failure
RestartSec={retry}
ExecStart={command} rollback --boot
"""


class NewConnectionNeeded(Exception):
    """This connection is older than what it is to vouch for."""


# --- the host ---------------------------------------------------------------------------------------------------------


def call(argv: list[str], text: str = "", seconds: float = 60) -> tuple[int, str]:
    """Run a command; return (exit status, what it printed). 127 if it is not there, 124 if it takes too long."""
    program = core.find(argv[0])
    if program is None:
        return 127, f"{argv[0]} is not installed"
    try:
        done = subprocess.run(
            [program, *argv[1:]],
            input=text.encode(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            check=False,
            cwd="/",
            timeout=seconds,
            env={**os.environ, "LC_ALL": "C"},
        )
    except subprocess.TimeoutExpired:
        return 124, f"took longer than {seconds:g} seconds"
    return done.returncode, done.stdout.decode(errors="replace").strip()


def uptime() -> float:
    """Return the seconds since boot, sleep included: the clock that processes' start times are in."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def now() -> str:
    """Return the time as people read it."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def log(text: str) -> None:
    """Write to the journal, as a warning."""
    syslog.openlog(UNIT, syslog.LOG_PID, syslog.LOG_AUTH)
    syslog.syslog(syslog.LOG_WARNING, text)


@contextlib.contextmanager
def lock(patience: float = 60):
    """Let one at a time arm, confirm or roll back."""
    fd = os.open(LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        end = time.monotonic() + patience
        while True:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError as exc:
                if exc.errno != errno.EAGAIN or time.monotonic() > end:
                    raise Refused(f"the guard is busy: {LOCK} is held, also after {patience:g} seconds") from exc
            time.sleep(0.05)
        yield
    finally:
        os.close(fd)


# --- what is remembered -----------------------------------------------------------------------------------------------


def place(name: str) -> str:
    """Return the path of a file of the guard."""
    return os.path.join(DIRECTORY, name)


def load(name: str) -> dict:
    """Return a file of the guard; {} if it is not there. Refused if it is damaged."""
    try:
        with open(place(name), "rb") as stream:
            found = json.load(stream)
    except FileNotFoundError:
        return {}
    except ValueError as exc:
        raise Refused(f"{place(name)} is damaged: {exc}") from exc
    if found.get("schema") != SCHEMA:
        raise Refused(f"{place(name)}: unknown schema {found.get('schema')!r}")
    return found


def load_snapshot() -> dict:
    """Return the snapshot of an armed guard. Refused if it is not there or damaged."""
    found = load("snapshot.json")
    if not found:
        raise Refused(f"{place('snapshot.json')} is missing although the guard is armed")
    return found


def save_text(path: str, text: str, mode: str = "0600") -> None:
    """Write a file, atomically and durable."""
    content = base64.b64encode(text.encode()).decode()
    core.put(path, core.file_entry(content, mode, os.geteuid(), os.getegid()))


def save(name: str, what: dict) -> None:
    """Write a file of the guard, atomically and durable."""
    save_text(place(name), json.dumps({**what, "schema": SCHEMA}, sort_keys=True))


# --- files ------------------------------------------------------------------------------------------------------------


def look(path: str) -> dict:
    """Return the entry of what lies at a path (see config_set), of a directory with its access control lists.

    What is neither file, link nor directory, or is too large for a configuration file, is {"type": "other"}: left alone.
    """
    try:
        entry = core.snapshot(path)
    except Refused:
        return {"type": "other"}
    if entry["type"] == "directory":
        try:
            names = [name for name in os.listxattr(path) if name in XATTRS]
            entry["xattrs"] = {name: base64.b64encode(os.getxattr(path, name)).decode() for name in names}
        except OSError:
            entry["xattrs"] = {}  # this file system has none
    return entry


def own(path: str) -> bool:
    """Tell whether a path belongs to the guard itself, or is config_set's lock: nothing to compare or put back."""
    return path in (BOOT_UNIT, BOOT_LINK, os.path.join(SETS, ".lock")) or core.inside(path, DIRECTORY)


def survey(roots: list[str]) -> dict[str, dict]:
    """Return the entries of all that lies at and below the roots, by path; a root that is missing is absent.

    Other file systems that are mounted below a root are not entered.
    """
    found: dict = {}
    for root in roots:
        pending = [root]
        while pending:
            path = pending.pop()
            if path in found or own(path):
                continue
            entry = look(path)
            if entry["type"] == "absent" and path != root:
                continue  # it went just now
            found[path] = entry
            if entry["type"] == "directory" and (path == root or not os.path.ismount(path)):
                pending += [os.path.join(path, name) for name in os.listdir(path)]
    wants = os.path.dirname(BOOT_LINK)
    if wants in found and not set(os.listdir(wants)) - {os.path.basename(BOOT_LINK)}:
        del found[wants]  # with nothing of others in it, it is there for our link at most
    return found


def bare(entry: dict) -> dict:
    """Return an entry without the time: the same content written again is no difference."""
    return {key: value for key, value in entry.items() if key != "mtime_ns"}


def differing(before: dict[str, dict], after: dict[str, dict]) -> list[str]:
    """Return the paths at which two surveys differ, sorted."""
    return sorted(path for path in {*before, *after} if bare(before.get(path, ABSENT)) != bare(after.get(path, ABSENT)))


def records() -> tuple[dict, list[str]]:
    """Return (config_set's records by name, what is wrong with them)."""
    try:
        return core.Store(SETS).load(), []
    except Refused as exc:
        return {}, [str(exc)]


def elsewhere(entries: dict[str, dict], roots: list[str]) -> tuple[dict[str, dict], list[str]]:
    """Return ({path: entry} of what config_set has touched outside the roots since the snapshot, problems).

    config_set's records go back with the snapshot. So must all they speak of, or the next run would take our own file for
    what lay there first. What a set owned already at the snapshot is a root; of what it came to own since, and of a
    transaction that was killed, the records know what was there before.
    """
    found: dict = {}
    known, problems = records()

    def add(path: str, entry: dict) -> None:
        if path not in found and path not in entries and not any(core.inside(path, root) for root in roots):
            found[path] = entry

    for record in known.values():
        for path, owned in record["files"].items():
            add(path, owned["original"])
        for path, before in (record["journal"] or {"before": []})["before"]:
            add(path, before)
        for path in record["directories"]:
            add(path, dict(ABSENT))
    return found, problems


def remove(path: str) -> None:
    """Remove whatever lies at a path; a directory only if it is empty."""
    try:
        core.put(path, dict(ABSENT))
    except OSError as exc:
        if exc.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOENT):
            raise


def put_back(path: str, entry: dict) -> None:
    """Bring a path to its entry, each file in one atomic step."""
    seen = look(path)
    if entry["type"] == "other" or bare(seen) == bare(entry):
        return
    if entry["type"] == "absent":
        remove(path)
        return
    if seen["type"] == "directory" and entry["type"] != "directory":
        shutil.rmtree(path)
    elif entry["type"] == "directory" and seen["type"] not in ("directory", "absent"):
        os.unlink(path)
    os.makedirs(os.path.dirname(path), mode=0o755, exist_ok=True)
    core.put(path, entry)
    if entry["type"] == "directory":
        for name in {*seen.get("xattrs", {}), *entry["xattrs"]} if "xattrs" in entry else ():
            with contextlib.suppress(OSError):  # of the security context, which a container may not set, the rest is not lost
                if name in entry["xattrs"]:
                    os.setxattr(path, name, base64.b64decode(entry["xattrs"][name]))
                elif name != "security.selinux":
                    os.removexattr(path, name)


def restore(entries: dict[str, dict], roots: list[str], also: dict[str, dict]) -> tuple[list[str], list[str]]:
    """Put all files back; return (paths that were put back or removed, problems).

    First what was there comes back, then what came goes: at no moment is less there than in either state.
    """
    wanted = {**also, **entries}
    seen = present(wanted, roots, also)
    paths = differing(wanted, seen)
    there = [path for path in paths if wanted.get(path, ABSENT)["type"] != "absent"]
    came = [path for path in reversed(paths) if wanted.get(path, ABSENT)["type"] == "absent"]
    problems = []
    for path in there + came:
        try:
            put_back(path, wanted.get(path, ABSENT))
        except OSError as exc:
            problems.append(f"{path}: {exc.strerror or exc}")
        except Refused as exc:
            problems.append(str(exc))
    for path, entry in wanted.items():  # the same content may have been written again
        if entry["type"] == "file" and path not in paths and entry["mtime_ns"] != seen[path]["mtime_ns"]:
            with contextlib.suppress(OSError):
                os.utime(path, ns=(time.time_ns(), entry["mtime_ns"]))
    return paths, problems


def present(wanted: dict[str, dict], roots: list[str], also: dict[str, dict]) -> dict[str, dict]:
    """Return the entries of what lies there now, to be compared with what was.

    In a directory that config_set made only what its records name counts: the rest is others' business.
    """
    seen = survey([*roots, *also])
    foreign = {path for path in seen if any(path != made and core.inside(path, made) for made in also)}
    seen = {path: entry for path, entry in seen.items() if path in wanted or path not in foreign}
    return {**{path: look(path) for path in wanted if path not in seen and not own(path)}, **seen}


# --- the packet filter ------------------------------------------------------------------------------------------------


def steady(text: str) -> str:
    """Return a table without what comes and goes in it by itself."""
    return FILLED.sub(r"\1", text)


def tables() -> tuple[dict[str, dict] | None, str]:
    """Return ({"inet filter": {"steady": text to compare, "text": text to load, "foreign": bool}}, ""), or (None, why not)."""
    status, listed = call(["nft", "list", "tables"])
    if status:
        return None, f"the tables of the packet filter cannot be seen: {listed.splitlines()[0] if listed else 'nft failed'}"
    found = {}
    for name in re.findall(r"^table (\w+ \S+)", listed, re.MULTILINE):
        status, text = call(["nft", "list", "table", *name.split()])
        quiet, stateless = call(["nft", "-s", "list", "table", *name.split()])
        if status or quiet:
            continue  # it went just now
        found[name] = {"steady": steady(stateless), "text": text, "foreign": bool(FOREIGN.search(text))}
    return found, ""


def script(name: str, text: str) -> str:
    """Return what replaces one table: made first, for one that is not there cannot be deleted."""
    return f"add table {name}\ndelete table {name}\n{text}\n"


def check_tables(found: dict[str, dict]) -> list[str]:
    """Try out whether each table could be loaded again; mark those that could not, and say so."""
    own_kind = [name for name, table in found.items() if not table["foreign"]]
    together = "".join(script(name, found[name]["text"]) for name in own_kind)
    if own_kind and call(["nft", "-c", "-f", "-"], together)[0]:
        for name in own_kind:
            for text in (found[name]["text"], found[name]["steady"]):
                if not call(["nft", "-c", "-f", "-"], script(name, text))[0]:
                    found[name]["text"] = text
                    break
            else:
                found[name]["foreign"] = True
    return [f"table {name} could not be loaded again, so it stays as it is" for name, table in found.items() if table["foreign"]]


def differing_tables(before: dict[str, dict] | None) -> list[str]:
    """Return the names of the tables that came, went or changed."""
    after, _why = tables()
    if after is None:
        return []
    if before is None:  # nft has come since: what iptables-nft keeps was there, for all we know
        return sorted(name for name, table in after.items() if not table["foreign"])
    return sorted(name for name in {*before, *after} if before.get(name, {}).get("steady") != after.get(name, {}).get("steady"))


def restore_tables(before: dict[str, dict] | None) -> tuple[list[str], list[str]]:
    """Put the tables back that differ, all in one transaction; return (their names, problems)."""
    parts, problems = {}, []
    for name in differing_tables(before):
        table = (before or {}).get(name)
        if table is None:
            parts[name] = f"delete table {name}\n"
        elif table["foreign"]:
            problems.append(f"table {name} was changed and cannot be put back: iptables-nft wrote it, or nft cannot read it back")
        else:
            parts[name] = script(name, table["text"])
    if parts and call(["nft", "-f", "-"], "".join(parts.values()))[0]:
        for name, text in parts.items():  # one that cannot be had must not hold the others back
            status, said = call(["nft", "-f", "-"], text)
            if status:
                problems.append(f"table {name}: {said.splitlines()[0] if said else 'nft failed'}")
    return sorted(parts), problems


# --- units ------------------------------------------------------------------------------------------------------------


def states(patterns: list[str]) -> dict[str, str]:
    """Return the state (active, inactive, failed, …) of each unit that systemd has loaded and a pattern names."""
    status, listed = call(["systemctl", "list-units", "--all", "--plain", "--no-legend", "--no-pager", *patterns])
    if status:
        return {}
    rows = [line.split() for line in listed.splitlines()]
    found = {row[0]: row[2] for row in rows if len(row) > 3}
    return {unit: state for unit, state in found.items() if not any(fnmatch.fnmatchcase(unit, each) for each in LEFT_ALONE)}


def active(patterns: list[str]) -> list[str]:
    """Return the units that are active, sorted."""
    return sorted(unit for unit, state in states(patterns).items() if state == "active")


def concerned(unit: str, changed: list[str], callers: list[str]) -> bool:
    """Tell whether a unit reads any of the files that were put back."""
    if unit in callers:
        return bool(changed)
    base = "/etc/systemd/system/"
    definitions = {base + unit, base + re.sub(r"@.*\.", "@.", unit)}
    places = tuple(where for pattern, where in READS.items() if fnmatch.fnmatchcase(unit, pattern))
    return any(
        path.startswith(places) or path in definitions or os.path.dirname(path) in {f"{each}.d" for each in definitions}
        for path in changed
    )


def restore_units(snapshot: dict, changed: list[str], boot: bool) -> tuple[list[str], list[str]]:
    """Bring units back to active or not, and start those anew whose files were put back; return (what was done, problems)."""
    done, problems = [], []
    was = set(snapshot["active"])

    def do(verb: str, unit: str) -> None:
        if verb != "stop":
            call(["systemctl", "reset-failed", unit])  # or systemd refuses one that failed too often
        status, said = call(["systemctl", *["--no-block"] * boot, verb, unit])
        if status:
            problems.append(f"systemctl {verb} {unit}: {said.splitlines()[-1] if said else 'failed'}")
        else:
            done.append(f"{verb} {unit}")

    if changed:
        status, said = call(["systemctl", "daemon-reload"])
        if status:
            problems.append(f"systemctl daemon-reload: {said}")
    if boot:  # what was to start, and what not, the boot had read off the files before
        links = [path for path in changed if path.startswith("/etc/systemd/") and os.path.dirname(path).endswith(".wants")]
        for path in links:
            if not os.path.lexists(path):
                do("stop", os.path.basename(path))
        for unit in sorted(was):
            do("start", unit)
        return done, problems
    is_now = states(snapshot["patterns"])
    if "ssh.socket" in was:
        was |= {"ssh.service"} & set(is_now)  # a server behind a socket comes and goes with those who connect
    for unit in sorted(unit for unit, state in is_now.items() if state == "active" and unit not in was):
        do("stop", unit)
    for unit in sorted(was, key=lambda unit: (not unit.startswith("ssh."), unit)):  # the way in comes first
        again = concerned(unit, changed, snapshot["units"]) or is_now.get(unit) == "failed"
        if not again and is_now.get(unit) == "active":
            continue
        if unit == "ssh.service":
            if is_now.get(unit) == "inactive" and "ssh.socket" in snapshot["active"]:
                continue
            os.makedirs("/run/sshd", mode=0o755, exist_ok=True)  # its service makes it; sshd -t wants it
            status, said = call([SSHD, "-t"])
            if status:
                problems.append(f"sshd -t refuses what was put back, so sshd was not started anew: {said}")
                continue
        do("restart" if again else "start", unit)
    return done, problems


# --- the states -------------------------------------------------------------------------------------------------------


def command() -> str:
    """Return how the program is started."""
    return f"/usr/bin/python3 -IBS {place('program')}"


def install(sources: dict[str, str]) -> None:
    """Lay the program out as a package in a directory that python3 can run."""
    inner = os.path.join(place("program"), "guard")
    for directory in (place("program"), inner):
        core.put(directory, {"type": "directory", "mode": "0700", "uid": os.geteuid(), "gid": os.getegid()})
    save_text(os.path.join(inner, "__init__.py"), "")
    for name, text in sources.items():
        save_text(os.path.join(inner, f"{name}.py"), text)
    save_text(os.path.join(place("program"), "__main__.py"), "from guard import change_guard\n\nchange_guard.main()\n")


def start_timer(generation: str, seconds: int) -> None:
    """Have systemd roll back after so many seconds, again and again until it is done; Refused if it does not wait for that."""
    unit = f"{UNIT}-{generation}"
    status, said = call(
        [
            "systemd-run",
            "--quiet",
            f"--unit={unit}",
            "--description=Take back an access change that nobody confirmed",
            "--service-type=oneshot",
            f"--on-active={seconds}",
            "--timer-property=AccuracySec=200ms",
            f"--timer-property=OnUnitInactiveSec={RETRY}",
            *command().split(),
            "rollback",
            f"--generation={generation}",
        ]
    )
    if status:
        raise Refused(f"no timer could be started, so nothing may be changed: {said}")
    _status, said = call(["systemctl", "show", "--property=ActiveState,SubState,NextElapseUSecMonotonic", f"{unit}.timer"])
    if not {"ActiveState=active", "SubState=waiting"} <= set(said.split()) or "NextElapseUSecMonotonic=infinity" in said:
        call(["systemctl", "stop", f"{unit}.timer"])
        raise Refused(f"the timer {unit}.timer is not waiting, so nothing may be changed: {said}")


def take(roots: list[str], patterns: list[str], callers: list[str]) -> dict:
    """Return a snapshot of everything, of what config_set owns elsewhere, too; Refused if it is too large."""
    owned = {path for record in records()[0].values() for path in [*record["files"], *record["directories"]]}
    files = {path for path in owned if not os.path.isdir(path)}
    roots = sorted({*roots, *files})
    seen = {**{path: look(path) for path in owned - files}, **survey(roots)}
    entries = {path: entry for path, entry in seen.items() if not os.path.basename(path).startswith(core.TEMPORARY)}
    size = sum(len(entry.get("content", "")) for entry in entries.values()) * 3 // 4
    if len(entries) > MOST_ENTRIES or size > MOST_BYTES:
        raise Refused(f"{len(entries)} files with {size} bytes are more than a guard is for; name narrower paths")
    others = [path for path, entry in entries.items() if entry["type"] == "other"]
    notes = [f"{path} is no ordinary file or too large, so it stays as it is" for path in others]
    found, why = tables()
    if found is not None:
        notes += check_tables(found)
    elif core.find("nft"):
        notes.append(why)
    return {
        "roots": roots,
        "entries": entries,
        "tables": found,
        "patterns": patterns,
        "active": active(patterns),
        "units": callers,
        "notes": notes,
    }


def widen(snapshot: dict, roots: list[str], patterns: list[str], callers: list[str]) -> dict:
    """Return the snapshot of a guard that is adopted, with what it did not hold yet; what it holds stays, for it is older."""
    new = [root for root in roots if not any(core.inside(root, each) for each in snapshot["roots"])]
    units = [pattern for pattern in patterns if pattern not in snapshot["patterns"]]
    return {
        **snapshot,
        "roots": sorted({*snapshot["roots"], *new}),
        "entries": {**survey(new), **snapshot["entries"]} if new else snapshot["entries"],
        "patterns": snapshot["patterns"] + units,
        "active": sorted({*snapshot["active"], *(active(units) if units else [])}),
        "units": sorted({*snapshot["units"], *callers}),
    }


def arm(sources: dict, window: int, paths: list[str], units: list[str], who: dict, began: float | None) -> dict:
    """Arm the guard; return {"adopted": bool, "notes": [text], "report": what the last rollback did}.

    paths, units  what the caller adds to those of every guard
    who           {"account", "address"} of the caller
    began         when the caller's connection was made, in seconds since boot; None if it is none of SSH

    One that is armed already is adopted: its snapshot, the last confirmed state, is kept, and the window begins anew, if the
    caller has come in since; NewConnectionNeeded if not, for a connection from before proves nothing about the change
    that may be half made.
    """
    with lock():
        for directory in (*core.parents(DIRECTORY), DIRECTORY):
            if not os.path.isdir(directory):
                mode = "0700" if directory == DIRECTORY else "0755"
                core.put(directory, {"type": "directory", "mode": mode, "uid": os.geteuid(), "gid": os.getegid()})
        os.chmod(DIRECTORY, 0o700)
        record = load("armed.json")
        if record and record["stage"] != "armed":
            raise Refused("the guard is rolling back right now; try again in a minute")
        if record and began is not None and began <= record["clock"]:
            raise NewConnectionNeeded("an earlier change is not confirmed, and this connection is older than it")
        roots, patterns = sorted({*PATHS, *paths}), [*UNITS, *units]
        snapshot = widen(load_snapshot(), roots, patterns, units) if record else take(roots, patterns, units)
        generation = uuid.uuid4().hex[:8]
        install(sources)
        save("snapshot.json", snapshot)
        start_timer(generation, window)
        os.makedirs(os.path.dirname(BOOT_LINK), mode=0o755, exist_ok=True)
        save_text(BOOT_UNIT, BOOT_TEXT.format(mark=MARK, mounts=DIRECTORY, command=command(), retry=RETRY), "0644")
        if not os.path.lexists(BOOT_LINK):
            os.symlink(f"../{os.path.basename(BOOT_UNIT)}", BOOT_LINK)
            core.sync(os.path.dirname(BOOT_LINK))
        save_text(MARK, generation + "\n")
        save(
            "armed.json",
            {
                **who,
                "generation": generation,
                "since": record.get("since", now()),
                "armed_at": now(),
                "window_seconds": window,
                "deadline": time.monotonic() + window,
                "clock": uptime(),
                "asked": None,
                "stage": "armed",
                "why": "",
                "also": {},
            },
        )
        if record:
            call(["systemctl", "stop", f"{UNIT}-{record['generation']}.timer"])
        before = {key: record[key] for key in ("since", "armed_at", "account", "address")} if record else {}
        return {"adopted": before, "notes": snapshot["notes"], "report": load("report.json")}


def differences() -> dict[str, list[str]]:
    """Return what differs from the snapshot: {"files": [path], "tables": [name], "units": [unit]}."""
    snapshot = load_snapshot()
    also, _problems = elsewhere(snapshot["entries"], snapshot["roots"])
    wanted = {**also, **snapshot["entries"]}
    was, is_now = set(snapshot["active"]), set(active(snapshot["patterns"]))
    if "ssh.socket" in was & is_now:
        is_now |= {"ssh.service"} & was
        was |= {"ssh.service"} & is_now
    return {
        "files": differing(wanted, present(wanted, snapshot["roots"], also)),
        "tables": differing_tables(snapshot["tables"]),
        "units": sorted(was ^ is_now),
    }


def confirm(began: float | None) -> dict[str, list[str]]:
    """Keep the change and take the guard away; return what differed from the snapshot.

    Refused if no guard is armed. NewConnectionNeeded, when something differs, unless the caller came in after a confirmation
    was first asked for, so after the change. Asking is what this call does when it refuses.
    """
    with lock():
        record = load("armed.json")
        if not record:
            raise Refused("no guard is armed, so there is nothing to confirm" + last_rollback())
        if record["stage"] != "armed":
            raise Refused("the guard is rolling back right now: nothing can be confirmed any more")
        found = differences()
        fresh = record["asked"] is not None and uptime() - record["asked"] <= FRESH
        if any(found.values()) and began is not None and not (fresh and began > record["asked"]):
            save("armed.json", {**record, "asked": uptime()})
            raise NewConnectionNeeded("this connection is from before the change, so it proves nothing: come in anew")
        disarm()
        core.discard(place("report.json"))
        tidy()
        return found


def last_rollback() -> str:
    """Return a half-sentence about the last rollback, or ""."""
    report = load("report.json")
    return f": the change was taken back at {report['at']}, {report['why']}" if report else ""


def disarm() -> None:
    """Take the guard away. From its first step on nothing will be rolled back any more."""
    core.put(place("armed.json"), dict(ABSENT))
    tidy()


def tidy() -> None:
    """Remove what a guard that is not armed has left: it is called whenever one finds that."""
    for path in (MARK, BOOT_LINK, BOOT_UNIT):
        core.discard(path)
    with contextlib.suppress(OSError):
        os.rmdir(os.path.dirname(BOOT_LINK))  # unless others have something there
    call(["systemctl", "stop", f"{UNIT}-*.timer"])
    unit = os.path.basename(BOOT_UNIT)
    if "LoadState=loaded" in call(["systemctl", "show", "--property=LoadState", unit])[1]:
        call(["systemctl", "daemon-reload"])  # something else had systemd read it; now it would be started without its program
    if not os.path.isdir(DIRECTORY):
        return
    for name in os.listdir(DIRECTORY):
        if name.startswith(core.TEMPORARY) or name == "snapshot.json":
            core.discard(place(name))
    shutil.rmtree(place("program"), ignore_errors=True)
    for directory in (DIRECTORY, os.path.dirname(DIRECTORY)):
        with contextlib.suppress(OSError):
            os.rmdir(directory)


def stop_config_set() -> tuple[core.Store, list[str]]:
    """Take config_set's lock, so that no transaction runs on while files are put back; one that does not end is ended.

    That is safe: a killed transaction leaves each file old or new in full, and all of it is put back here.
    """
    store, said = core.Store(SETS), []
    for _attempt in range(3):
        try:
            store.open(create=False, patience=PATIENCE)
            return store, said
        except Refused:
            store.close()
        for pid in holders(os.path.join(SETS, ".lock")):
            said.append(f"config_set was at work (process {pid}) and was ended")
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
    return store, [*said, f"{SETS}/.lock is held by nobody that can be found; gone on without it"]


def holders(path: str) -> list[int]:
    """Return the processes that hold a lock on a file and have it open."""
    inode = os.stat(path).st_ino
    with open("/proc/locks", encoding="ascii") as stream:
        locks = re.findall(r"FLOCK\s+ADVISORY\s+WRITE (\d+) \w+:\w+:(\d+) ", stream.read())
    pids = {int(pid) for pid, number in locks if int(number) == inode}
    found = []
    for pid in sorted(pids - {0, os.getpid()}):
        with contextlib.suppress(OSError):
            if any(os.path.realpath(f"/proc/{pid}/fd/{fd}") == path for fd in os.listdir(f"/proc/{pid}/fd")):
                found.append(pid)
    return found


def roll_back(generation: str = "", boot: bool = False) -> dict:
    """Bring back the snapshot; return the report, {} if there was nothing to do.

    generation  only if the guard is still of this arming: the timer of one that was armed anew has no say
    boot        the machine has just been started: the packet filter and the units are started by the boot itself

    May be killed at any moment: it is begun again by the timer or at the next boot, and ends the same.
    """
    with lock():
        record = load("armed.json")
        if not record:
            tidy()
            return {}
        if (generation and generation != record["generation"]) or (boot and os.path.exists(MARK)):
            return {}
        snapshot = load_snapshot()
        store, problems = stop_config_set()
        try:
            if record["stage"] == "armed":
                also, wrong = elsewhere(snapshot["entries"], snapshot["roots"])
                why = record["why"] or f"as nobody confirmed it within {record['window_seconds']} seconds"
                if boot:
                    why = "as the machine was started anew before anybody confirmed it"
                record.update(stage="rolling back", also=also, why=why)
                problems += wrong
            save("armed.json", record)
            changed_tables, wrong = ([], []) if boot else restore_tables(snapshot["tables"])
            problems += wrong
            changed, wrong = restore(snapshot["entries"], snapshot["roots"], record["also"])
            problems += wrong
        finally:
            store.close()
        done, wrong = restore_units(snapshot, changed, boot)
        problems += wrong
        if not boot:  # a unit that was started or stopped may have touched them
            more, wrong = restore_tables(snapshot["tables"])
            changed_tables = sorted({*changed_tables, *more})
            problems += [each for each in wrong if each not in problems]
        report = {
            "at": now(),
            "why": record["why"],
            "armed_at": record["armed_at"],
            "since": record["since"],
            "account": record["account"],
            "address": record["address"],
            "files": changed,
            "tables": changed_tables,
            "units": done,
            "problems": problems,
        }
        save("report.json", report)
        log(
            f"The access change begun at {record['since']} by {record['account'] or 'somebody'} was taken back, {record['why']}: "
            f"{len(changed)} files, {len(changed_tables)} tables; {', '.join(done) or 'no unit was touched'}"
            + (f"; PROBLEMS: {'; '.join(problems)}" if problems else "")
        )
        disarm()
        return report


def request_rollback(why: str) -> str:
    """Note why a rollback is wanted now; return the unit to start for it, "" if no guard is armed.

    A unit of its own, for what is about to change may end the connection that asks.
    """
    with lock():
        record = load("armed.json")
        if not record:
            return ""
        if record["stage"] == "armed":
            save("armed.json", {**record, "why": why})
        return f"{UNIT}-{record['generation']}.service"


def status() -> dict:
    """Return how things stand: {"guard": "idle"|"armed"|"rolling back", "seconds_left", "since", "armed_at", "account",
    "address", "differs", "report"}."""
    record = load("armed.json")
    found = {
        "guard": record.get("stage", "idle"),
        "seconds_left": 0,
        "since": "",
        "armed_at": "",
        "account": "",
        "address": "",
        "differs": {"files": [], "tables": [], "units": []},
        "report": {key: value for key, value in load("report.json").items() if key != "schema"},
    }
    if record:
        found.update({key: record[key] for key in ("since", "armed_at", "account", "address")})
        found["differs"] = differences()
        if record["stage"] == "armed":
            found["seconds_left"] = max(0, round(record["deadline"] - time.monotonic()))
    return found


def main() -> None:
    """What the timer, the boot unit, or somebody at the console starts."""
    parser = argparse.ArgumentParser(prog="change_guard", description="Take back an access change that nobody confirmed.")
    parser.add_argument("action", choices=["rollback", "status"])
    parser.add_argument("--generation", default="", help="only if the guard is still of this arming")
    parser.add_argument("--boot", action="store_true", help="the machine is just starting")
    args = parser.parse_args()
    if args.action == "status":
        sys.stdout.write(json.dumps(status(), indent=1) + "\n")
        return
    try:
        roll_back(args.generation, args.boot)
    except Exception as exc:
        log(f"rolling back failed and is tried again in {RETRY} seconds: {exc}")
        raise


if __name__ == "__main__":
    raise SystemExit("Start the directory this file lies in: python3 program rollback")
