# Copyright: (c) 2026, Bulwark contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How a host is guarded against malware: scanner, signatures, the guard of opened files, scans, quarantine, limits.

Whether infected files can be opened is tried by the host itself every few minutes (files/antivirus.py of role antivirus), for a
collector writes nothing. Here is looked at what that said and when, and at what the kernel guards at this moment.
"""

from __future__ import annotations

import calendar
import contextlib
import glob
import os
import re
import socket
import stat
import time

from ansible_collections.bulwark.hardening.plugins.module_utils.posture import services
from ansible_collections.bulwark.hardening.plugins.module_utils.posture.common import (
    CannotObserve,
    capable,
    file_facts,
    group_name,
    load,
    look,
    owner_name,
    read,
    run,
)

PACKAGES = ("clamav-daemon", "clamav-freshclam", "clamdscan")
DAEMON, GUARD = "clamav-daemon.service", "bulwark-antivirus-onaccess.service"
UNITS = ("clamav-daemon.socket", DAEMON, GUARD, "bulwark-antivirus-update.timer", "bulwark-antivirus-scan.timer",
         "bulwark-antivirus-watch.timer", "clamav-freshclam.service", "clamav-clamonacc.service")  # fmt: skip
DIRECTORY, STATE, DATABASES = "/etc/bulwark/antivirus", "/var/lib/bulwark/antivirus", "/var/lib/clamav"
WATCH = "/var/lib/bulwark/antivirus-watch"
CONFIG, UNGUARDED, SOCKET = f"{DIRECTORY}/clamd.conf", f"{DIRECTORY}/scan.conf", "/run/clamav/clamd.ctl"
LISTS = ("ExcludePath", "OnAccessIncludePath", "OnAccessExcludePath")  # options that are there more than once
BEFORE = "/etc/bulwark-antivirus.before"  # packages that were there before the role came
MARK = "# Managed by bulwark.hardening (role antivirus)"
APPARMOR = {"clamd": "/etc/apparmor.d/local/usr.sbin.clamd", "freshclam": "/etc/apparmor.d/local/usr.bin.freshclam"}
PROFILES = "/sys/kernel/security/apparmor"
SPARING = ("OnAccessExcludeUname", "OnAccessExcludeUID", "OnAccessExcludeRootUID")  # whom the guard lets through
KEEPER = "/etc/bulwark/backup_keeper.json"
CAP_SYS_ADMIN = 21  # bit, capability.h
FAN_OPEN_PERM = 0x00010000  # fanotify.h


def collect() -> dict:
    """Return how the host is guarded.

    fanotify    whether opening can be prevented here: in a container it cannot
    packages    those of the scanner that are installed; before: those that were before the role came, None unless it did
    apparmor    {enabled: whether the kernel goes by profiles; clamd, freshclam: what the site itself wrote into the local rules}
    engine      {installed, candidate: versions}
    units       {name: state}; at_boot: those that start with the system
    scanner     {answers, user, restart, start_limit, in_force: nothing it read has changed since, confined: it can write only
                where it has to, by its unit or by AppArmor, options: {name: value} that it goes by, skipped, skipped_unguarded:
                paths that it does not look into, at all and in scans of what is not guarded}
    door        {exists, mode, owner} of the socket of the scanner
    signatures  {databases: [{name, built: seconds since 1970 or None}], checked_hours, built_hours: None if unknown, declared,
                missing: declared ones that are not there, foreign: others, sources: as in the configuration}
    guard       {working: as tried last, age_seconds, marks: directories the kernel guards now, in_force, paths, spared: whom it
                lets through, both as configured,
                unguarded: declared paths, and what is mounted below them, that the kernel does not guard now}
    scan        {age_days: None before the first, proved, paths, remaining: what was found and not taken away, by the names that
                it had then}
    quarantine  {directory, exists, owner, mode, mib: how much it holds}
    watch       {age_seconds: None if never, wrong}
    limits      {memory_bytes, tasks, cpu_percent: as the kernel enforces them, None for none, enforceable: not in every
                container}
    kept        where this host keeps backups of others, "" if it does not
    settings    what the programs go by; files: [{path, owner, mode}] of what decides
    """
    settings = load(f"{DIRECTORY}/settings.json")
    parts = {
        "fanotify": lambda: capable(read("/proc/1/status"), CAP_SYS_ADMIN), "packages": packages,
        "before": lambda: read(BEFORE).split() if os.path.exists(BEFORE) else None,
        "apparmor": apparmor, "engine": engine, "units": lambda: services.states(UNITS),
        "at_boot": lambda: services.at_boot(UNITS), "scanner": scanner, "door": door, "signatures": lambda: signatures(settings),
        "guard": lambda: guard(time.time(), settings), "scan": lambda: scan(time.time()),
        "quarantine": lambda: quarantine(settings.get("quarantine", "/var/lib/bulwark/quarantine")),
        "watch": lambda: watch(time.time()), "limits": limits, "settings": lambda: settings, "files": files,
        "kept": lambda: load(KEEPER).get("directory", ""),
    }  # fmt: skip
    seen, unobserved = look(parts, OSError, ValueError, TypeError)
    return {**seen, "unobserved": unobserved}


def packages() -> list[str]:
    """Return which packages of the scanner are installed."""
    lines = run(["dpkg-query", "-W", "-f", "${Package} ${db:Status-Status}\\n"]).splitlines()
    return [name for name in PACKAGES if f"{name} installed" in lines]


def apparmor() -> dict:
    """Return whether AppArmor confines programs here, and the site's own additions. A container sees nothing of it."""
    return {"enabled": os.path.isdir(PROFILES), **{name: site(path) for name, path in APPARMOR.items()}}


def site(path: str) -> str:
    """Return what stood in local rules of AppArmor before ours."""
    return read(path).partition(MARK)[0] if os.path.exists(path) else ""


def engine() -> dict[str, str]:
    """Return which version of the scanner is installed, and which is to be had from the known package lists."""
    text = run(["apt-cache", "policy", PACKAGES[0]])
    found = dict(re.findall(r"^  (Installed|Candidate): (\S+)$", text, re.MULTILINE))
    return {"installed": found.get("Installed", "(none)"), "candidate": found.get("Candidate", "(none)")}


def scanner() -> dict:
    """Return whether the scanner answers, as whom it runs, and whether it comes back. One that waits is not woken by asking."""
    about = services.properties(DAEMON, "ActiveState", "MainPID", "Restart", "StartLimitIntervalUSec", "ProtectSystem")
    started, runs = services.process(DAEMON), about.get("ActiveState") == "active"
    label = f"/proc/{about.get('MainPID')}/attr/current"
    return {
        "answers": runs and ask("PING") == "PONG",
        "user": started["user"],
        "restart": about.get("Restart", ""),
        "start_limit": about.get("StartLimitIntervalUSec", ""),
        "confined": about.get("ProtectSystem") == "strict" or enforced(label),
        "in_force": runs and services.unchanged_since(started["started"], CONFIG),
        "options": {name: int(word) if word.isdigit() else word for name, word in configured(CONFIG) if name not in LISTS},
        "skipped": skipped(CONFIG),
        "skipped_unguarded": skipped(UNGUARDED),
    }


def configured(path: str) -> list[tuple[str, str]]:
    """Return (name, value) of each option in a configuration of ClamAV; nothing if it is not there."""
    if not os.path.exists(path):
        return []
    words = [line.split(None, 1) for line in read(path).splitlines() if not line.startswith("#")]
    return [(pair[0], pair[1].strip()) for pair in words if len(pair) == 2]


def skipped(path: str) -> list[str]:
    """Return which paths a configuration has the scanner pass by; an expression that is more than a path as it is."""
    found = [word for name, word in configured(path) if name == "ExcludePath"]
    plain = re.compile(r"\^((?:[^\\^$.*+?()\[\]{}|]|\\.)+)/")
    return [re.sub(r"\\(.)", r"\1", match.group(1)) if (match := plain.fullmatch(word)) else word for word in found]


def enforced(path: str) -> bool:
    """Return whether AppArmor keeps a process to its profile, from C(/proc/PID/attr/current)."""
    try:
        return "(enforce)" in read(path)
    except CannotObserve:  # no process, or a kernel without
        return False


def ask(command: str) -> str:
    """Return the scanner's answer to a command of its own, or nothing if there is none in time."""
    try:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(20)
            connection.connect(SOCKET)
            connection.sendall(f"z{command}\0".encode())
            return connection.recv(4096).decode(errors="replace").strip("\0\n")
    except OSError:
        return ""


def door() -> dict:
    """Return who can talk to the scanner: whoever can, can have it end itself."""
    if not os.path.exists(SOCKET):
        return {"exists": False, "mode": "", "owner": ""}
    about = os.stat(SOCKET)
    return {"exists": True, "mode": f"{stat.S_IMODE(about.st_mode):04o}", "owner": owner_name(about.st_uid)}


def signatures(settings: dict) -> dict:
    """Return which databases are there, when they were built, and when they were last confirmed as the newest."""
    now, databases = time.time(), []
    names = sorted(os.listdir(DATABASES)) if os.path.isdir(DATABASES) else []
    for name in names:
        path = os.path.join(DATABASES, name)
        if name.startswith("bulwark.") or name == "freshclam.dat" or not os.path.isfile(path):
            continue
        with open(path, "rb") as stream:
            databases.append({"name": name, "built": built(stream.read(512))})
    known = {*(entry["name"] for entry in databases), *(os.path.splitext(entry["name"])[0] for entry in databases)}
    declared = settings.get("databases", [])
    times = [entry["built"] for entry in databases if entry["built"]]
    checked = load(f"{STATE}/update.json").get("checked")
    return {
        "databases": databases,
        "checked_hours": None if checked is None else hours(now - float(checked)),
        "built_hours": hours(now - max(times)) if times else None,
        "declared": declared,
        # Whatever lies there counts, also what allows.
        "foreign": [entry["name"] for entry in databases if entry["name"] not in {*declared, "local.ign2"}
                    and os.path.splitext(entry["name"])[0] not in declared],
        "missing": [name for name in declared if name not in known],
        "sources": sources(f"{DIRECTORY}/freshclam.conf"),
    }


def age(seconds: float) -> int:
    """Return seconds in whole ones; what lies in the future is as bad as what never was."""
    return round(seconds) if seconds > -300 else 10**9


def hours(seconds: float) -> float:
    """Return seconds as hours; what lies in the future is as bad as what never was."""
    return round(seconds / 3600, 2) if seconds > -300 else 1e6


def built(head: bytes) -> int | None:
    """Return when a signed database was built, in seconds since 1970, or None: C(ClamAV-VDB:07 Nov 2025 09-30 -0500:27816:)."""
    found = re.match(rb"ClamAV-VDB:(\d{2} \w{3} \d{4} \d{2}-\d{2}) ([+-])(\d{2})(\d{2}):", head)
    if not found:
        return None
    when, sign, ahead, minutes = (part.decode() for part in found.groups())
    offset = (int(ahead) * 60 + int(minutes)) * 60
    return calendar.timegm(time.strptime(when, "%d %b %Y %H-%M")) - (offset if sign == "+" else -offset)


def sources(path: str) -> list[str]:
    """Return where signatures come from, out of freshclam's configuration."""
    kinds = ("DatabaseMirror", "PrivateMirror", "DatabaseCustomURL")
    return [word for name, word in configured(path) if name in kinds]


def guard(now: float, settings: dict) -> dict:
    """Return what the kernel guards at this moment, and what the last trial said."""
    pid, tried = services.properties(GUARD, "MainPID").get("MainPID", "0"), watched()
    words = configured(CONFIG)
    known: set[tuple[int, int]] = set()
    for path in glob.glob(f"/proc/{pid}/fdinfo/*") if pid != "0" else ():
        with contextlib.suppress(CannotObserve):  # files that are being looked at come and go; what guards stays
            known |= marks(read(path))
    return {
        "working": tried.get("prevention", "none"),
        "age_seconds": None if "at" not in tried else age(now - float(tried["at"])),
        "marks": len(known),
        "unguarded": unguarded(settings.get("paths", []), settings.get("excluded", []), known),
        "paths": [word for name, word in words if name == "OnAccessIncludePath"],
        "spared": [word for name, word in words if name in SPARING],
        "in_force": pid != "0" and services.unchanged_since(services.process(GUARD)["started"], CONFIG),
    }


def marks(text: str) -> set[tuple[int, int]]:
    """Return (device, inode) of what a fanotify descriptor guards with permission, from its C(/proc/PID/fdinfo)."""
    found = re.findall(r"^fanotify ino:([0-9a-f]+) sdev:([0-9a-f]+) .*?\bmask:([0-9a-f]+)", text, re.MULTILINE)
    return {(int(device, 16), int(inode, 16)) for inode, device, mask in found if int(mask, 16) & FAN_OPEN_PERM}


def mounts(text: str) -> dict[str, int]:
    """Return of each mount point the device as the kernel counts it in fdinfo, from C(/proc/self/mountinfo)."""
    found = {}
    for line in text.splitlines():
        words = line.split(" ")
        major, minor = words[2].split(":")
        found[re.sub(r"\\([0-7]{3})", lambda code: chr(int(code.group(1), 8)), words[4])] = int(major) << 20 | int(minor)
    return found


def unguarded(paths: list[str], excluded: list[str], known: set[tuple[int, int]]) -> list[str]:
    """Return which of these paths, and of the mount points below them, are not guarded; that of all below a path it cannot tell,
    the host itself looks at more of them.
    """
    mounted = mounts(read("/proc/self/mountinfo"))
    tops, out = ([os.path.realpath(path) for path in given] for given in (paths, excluded))

    def within(path: str, places: list[str]) -> bool:
        return any(path == place or path.startswith(f"{place}/") for place in places)

    bare = []
    for path in sorted({*tops, *(path for path in mounted if within(path, tops) and not os.path.isfile(path))}):
        place = path
        while place not in mounted and place != "/":
            place = os.path.dirname(place)
        inode = os.lstat(path).st_ino if os.path.lexists(path) else -1
        if not within(path, out) and (mounted.get(place, -1), inode) not in known:
            bare.append(path)
    return bare[:50]


def shown(path: str) -> str:
    """Return a path as a report can show it: what is no UTF-8 is written out."""
    return path.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def scan(now: float) -> dict:
    """Return when the last whole scan ended, and which infected files it left. Until a scan does not find them they are there:
    they may have other names by now.
    """
    said = load(f"{STATE}/scan.json")
    return {
        "age_days": None if "finished" not in said else round(hours(now - float(said["finished"])) / 24, 2),
        "proved": bool(said.get("proved")) and "left" in said,
        "paths": said.get("paths", []),
        "remaining": [shown(path) for path in said.get("left", [])][:50],
    }


def quarantine(directory: str) -> dict:
    """Return who can look at what was caught."""
    if not os.path.isdir(directory):
        return {"directory": directory, "exists": False, "owner": "", "group": "", "mode": "", "mib": 0}
    size = 0
    for entry in os.scandir(directory):
        with contextlib.suppress(FileNotFoundError):  # a canary on its way
            size += entry.stat(follow_symlinks=False).st_size
    about = os.lstat(directory)
    return {
        "directory": directory, "exists": stat.S_ISDIR(about.st_mode), "owner": owner_name(about.st_uid),
        "group": group_name(about.st_gid), "mode": f"{stat.S_IMODE(about.st_mode):04o}",
        "mib": size >> 20,
    }  # fmt: skip


def watched() -> dict:
    """Return what the host noted when it last looked after itself; only if that is root's: others could note what they like."""
    path = f"{WATCH}/watch.json"
    if any(os.path.exists(one) and os.stat(one).st_uid != 0 for one in (WATCH, path)):
        return {}
    return load(path)


def watch(now: float) -> dict:
    """Return when the host last looked after itself, and what was wrong."""
    said = watched()
    return {"age_seconds": None if "at" not in said else age(now - float(said["at"])), "wrong": said.get("wrong", [])}


def limits() -> dict:
    """Return what the kernel lets the scanner have: its control group, not what a unit asks for. None is no limit."""
    group = services.properties(DAEMON, "ControlGroup").get("ControlGroup", "")
    place = f"/sys/fs/cgroup{group}"
    enforceable = {"cpu", "memory", "pids"} <= set(value("cgroup.controllers", "/sys/fs/cgroup").split())
    if not group or not os.path.isdir(place):
        return {"enforceable": enforceable, "memory_bytes": None, "tasks": None, "cpu_percent": None}
    quota, period = (value("cpu.max", place) or "max 100000").split()
    return {
        "enforceable": enforceable,
        "memory_bytes": number(value("memory.max", place)),
        "tasks": number(value("pids.max", place)),
        "cpu_percent": None if quota == "max" else round(100 * int(quota) / int(period)),
    }


def value(name: str, place: str) -> str:
    """Return a value of a control group; nothing if it has no such controller, and so no such limit."""
    path = os.path.join(place, name)
    return read(path).strip() if os.path.exists(path) else ""


def number(text: str) -> int | None:
    """Return a limit of a control group."""
    return int(text) if text.isdigit() else None


def files() -> list[dict]:
    """Return owner and mode of what decides what is caught."""
    paths = [DIRECTORY, *glob.glob(f"{DIRECTORY}/*"), "/usr/local/lib/bulwark/antivirus", DATABASES, *glob.glob(f"{DATABASES}/*"),
             *glob.glob("/etc/systemd/system/bulwark-antivirus*"),
             *glob.glob("/etc/systemd/system/clamav-daemon.*.d/*-bulwark-antivirus.conf")]  # fmt: skip
    found = []
    for path in paths:
        try:
            found.append({key: fact for key, fact in file_facts(path).items() if key != "group"})
        except FileNotFoundError:
            continue  # it went while we looked, or is not there at all
        except OSError as exc:
            raise CannotObserve(f"{path}: {exc.strerror}") from exc
    return found
