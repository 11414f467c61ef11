# Copyright: (c) 2026, Bulwark contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What role antivirus adds to ClamAV on a host: antivirus update|watch|try|paths|scan|seed|stopped. Standard library only.

    seed      have the signature of the canary among the databases (before the scanner starts)
    update    look for newer signatures, have the scanner load them, note when that succeeded (run by a timer)
    paths     write down for the guard what it is to guard (before it starts)
    watch     try whether an infected file can be opened, and say what is wrong (run by a timer)
    try       that trial alone, as a child of watch; exit code 0: it cannot, 3: it can
    scan      scan the host, note what came of it (run by a timer)
    stopped   say that a unit has ended, and what that means (run by systemd when it has)

The *canary* is a harmless file that a signature of our own calls infected, by the hash of the whole of it. Whoever can open it
could open anything; a scan that does not find it has found nothing. No other file can have its signature.

Lines for the journal are tagged bulwark-antivirus: `event=... name=value ...`. What is noted lies in STATE as JSON, and in WATCH,
which is root's: who takes files apart may not say that all is well.

    STATE/update.json  {checked: seconds since 1970 of the last success, databases: {file: version}}
    STATE/scan.json    {began, finished, proved: whether the canary was found, found: [[path, signature]], left: paths of what was
                       found and not taken away, errors, paths}
    WATCH/watch.json   {at, scanner: bool, prevention: working|off|hangs|none, unguarded: [paths], wrong: [events]}
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import glob
import hashlib
import json
import os
import pathlib
import re
import socket
import subprocess
import syslog
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

SETTINGS = "/etc/bulwark/antivirus/settings.json"
CONFIG = "/etc/bulwark/antivirus/clamd.conf"
GUARDED = "/run/bulwark-antivirus/clamd.conf"  # what the guard reads: CONFIG, and what is mounted below its paths
BEFORE = "/etc/bulwark-antivirus.before"  # as old as the role on this host
PROGRAM = "/usr/local/lib/bulwark/antivirus"
STATE = "/var/lib/bulwark/antivirus"
WATCH = "/var/lib/bulwark/antivirus-watch"
CANARIES = "/var/lib/bulwark/antivirus-canary"  # root's alone, or people would raise alarms by opening it
DATABASES = "/var/lib/clamav"
SOCKET = "/run/clamav/clamd.ctl"
CANARY = b"This file is harmless. It is there to be called infected, so that one sees that the scanner is awake.\n"
SIGNATURE = "Bulwark.Canary"
CURRENT = re.compile(r"^(\S+\.\w+) (?:database )?(?:is up-to-date|updated) \(version: ([^,)]+)", re.MULTILINE)
FOUND_ONE = re.compile(r" FOUND$", re.MULTILINE)
FOUND = re.compile(r"^(/.*): (\S+) FOUND$", re.MULTILINE)
# What clamdscan says when it gives a directory up; its exit code does not tell that from a file that vanished, or from a find.
GAVE_UP = re.compile(
    r"^(?:ERROR: |WARNING: )?(?:Could not connect to clamd|Can't send to clamd|Memory allocation failed|FD send failed|"
    r"Communication error|Overlong reply|Command rejected|Directory recursion limit|.*Failed to parse reply|"
    r".*no reply from clamd$|.*clamd may not be responding$).*",
    re.MULTILINE,
)
NOT_LOOKED_AT = re.compile(r"^(?:ERROR|WARNING): |ERROR$|: Failed to open file$", re.MULTILINE)
LONGEST = 86400  # seconds that the scan of one path may take: what holds it up must not hold up all later scans, too
LOADING = 180  # seconds that scanner and guard have for their beginning: signatures, and all directories
UNITS = ("clamav-daemon.service", "bulwark-antivirus-onaccess.service")
PATIENCE = 60  # seconds: whoever waits longer for a file is stopped by the guard, whatever it is busy with
NOTED = 100  # directories that are not guarded, of those that are noted
SAMPLE = 2000  # directories of each path that are looked at, those near its top first
FAN_OPEN_PERM = 0x00010000  # fanotify.h
MEANS = {
    "clamav-daemon.service": "nothing is scanned until it is back: files on guarded paths can be opened whatever they hold",
    "path": "files there can be opened whatever they hold",
    "bulwark-antivirus-onaccess.service": "files on guarded paths can be opened whatever they hold until it is back",
}


def say(priority: int, event: str, **words: object) -> None:
    """Write one line for the journal; control characters in it are written out."""
    parts = [f"event={event}"]
    for key, value in words.items():
        text = "".join(char if char.isprintable() else f"\\x{ord(char):02x}" for char in str(value)).replace('"', "'")
        parts.append(f'{key}="{text}"' if " " in text or not text else f"{key}={text}")
    syslog.syslog(priority, " ".join(parts))


def load(path: str) -> dict:
    """Return what a file of JSON holds; nothing, if it is not there or holds something else."""
    try:
        with open(path, encoding="utf-8") as stream:
            data = json.load(stream)
    except (OSError, ValueError):
        return {}
    return data if isinstance(data, dict) else {}


def write(path: str, data: bytes) -> None:
    """Put a file in place, in one step."""
    fresh = f"{path}.new"
    with contextlib.suppress(FileNotFoundError):
        os.unlink(fresh)
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o644)
    with os.fdopen(descriptor, "wb") as stream:
        stream.write(data)
    os.rename(fresh, path)


def note(path: str, data: Mapping) -> None:
    """Note something for the next assessment."""
    write(path, json.dumps(data, indent=1).encode() + b"\n")


def ask(command: str, seconds: float = 30) -> str:
    """Return the scanner's answer to a command of its own, or nothing if there is none in time."""
    try:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(seconds)
            connection.connect(SOCKET)
            connection.sendall(f"z{command}\0".encode())
            return connection.recv(4096).decode(errors="replace").strip("\0\n")
    except OSError:
        return ""


def run(command: Sequence[str], seconds: float | None) -> tuple[int, str]:
    """Return (exit code, output) of a command; 124 if it takes too long."""
    try:
        done = subprocess.run(
            command, check=False, capture_output=True, text=True, errors="surrogateescape", timeout=seconds,
            stdin=subprocess.DEVNULL,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return 124, f"took longer than {seconds} s"
    except OSError as exc:
        return 127, str(exc)
    return done.returncode, f"{done.stdout}\n{done.stderr}"


# ------------------------------------------------------------------------------------------------------------------------------
# Signatures


def signature() -> bytes:
    """Return the signature of the canary: the hash of the file, its size, its name."""
    return f"{hashlib.sha256(CANARY).hexdigest()}:{len(CANARY)}:{SIGNATURE}\n".encode()


def seed() -> None:
    """Have the canary's signature among the databases; a scanner without any database does not start."""
    path = os.path.join(DATABASES, "bulwark.hsb")
    try:
        with open(path, "rb") as stream:
            if stream.read() == signature():
                return
    except OSError:
        pass
    write(path, signature())


def stamps() -> dict[str, tuple[int, int]]:
    """Return of each database file when it was written, and its size."""
    found = {}
    for entry in os.scandir(DATABASES):
        if entry.is_file(follow_symlinks=False) and entry.name != "freshclam.dat":
            about = entry.stat(follow_symlinks=False)
            found[entry.name] = (about.st_mtime_ns, about.st_size)
    return found


def missing(wanted: Sequence[str], current: Mapping[str, str]) -> list[str]:
    """Return which databases were not confirmed; one without a suffix may be compressed (.cvd) or not (.cld)."""
    known = {*current, *(os.path.splitext(name)[0] for name in current)}
    return [name for name in wanted if name not in known]


def update(settings: Mapping) -> int:
    """Look for newer signatures. Only when every declared database was confirmed as the newest has that succeeded.

    freshclam has the scanner load what is new only if all of it came; here it is loaded whatever else failed.
    """
    before = stamps()
    seed()
    code, said = run(settings["updater"], 3600)
    current = dict(CURRENT.findall(said))
    changed = sorted(name for name, stamp in stamps().items() if before.get(name) != stamp)
    if changed:
        answer = ask("RELOAD")
        say(syslog.LOG_NOTICE, "signatures_new", databases=",".join(changed), scanner=answer or "no answer")
    lacking = missing(settings["databases"], current)
    if code or lacking:
        last = [line for line in said.splitlines() if line.startswith("ERROR")]
        say(syslog.LOG_ERR, "update_failed", exit=code, missing=",".join(lacking) or "-", said=(last or ["-"])[0][:200])
        return 1
    note(os.path.join(STATE, "update.json"), {"checked": time.time(), "databases": current})
    return 0


# ------------------------------------------------------------------------------------------------------------------------------
# The guard


def opened(path: str) -> bool:
    """Return whether a file can be opened and read. Raises OSError if something else than the guard keeps us from it."""
    try:
        with open(path, "rb") as stream:
            stream.read()
    except OSError as exc:
        if exc.errno == errno.EPERM:
            return False
        raise
    return True


def clear(quarantine: str) -> None:
    """Take the canaries out of the quarantine; what else is there is not looked at."""
    for entry in os.scandir(quarantine):
        if not entry.name.startswith("bulwark-canary") or not entry.is_file(follow_symlinks=False):
            continue
        with open(entry.path, "rb") as stream:
            ours = stream.read(len(CANARY) + 1) == CANARY
        if ours:
            os.unlink(entry.path)


def prevention(settings: Mapping) -> str:
    """Return working if the canary cannot be opened, off if it can.

    It is tried more than once: a directory that was just made is guarded a moment later.
    """
    path = os.path.join(CANARIES, "bulwark-canary")
    guarded = False
    for _try in range(5):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)  # opening the old one for writing would be prevented, too
        with open(path, "wb") as stream:
            stream.write(CANARY)
        try:
            guarded = not opened(path)
        except FileNotFoundError:
            guarded = True  # taken away before we came to it
        if guarded:
            break
        time.sleep(1)
    for _wait in range(30):  # it is on its way into the quarantine
        if not guarded or not os.path.lexists(path):
            break
        time.sleep(0.1)
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)
    with contextlib.suppress(OSError):
        clear(settings["quarantine"])
    return "working" if guarded else "off"


def age(unit: str) -> float:
    """Return for how many seconds a unit has been running; of one that is not, since when it last began."""
    said = run(["systemctl", "show", "-p", "ExecMainStartTimestampMonotonic", "--value", unit], 30)[1].strip()
    return time.monotonic() - int(said) / 1e6 if said.isdigit() else 0


def restarts(unit: str) -> int:
    """Return how often systemd has had a unit back by itself since somebody last started it."""
    said = run(["systemctl", "show", "-p", "NRestarts", "--value", unit], 30)[1].strip()
    return int(said) if said.isdigit() else 0


def trial(before: str = "none") -> str:
    """Return working or off; hangs, if there was no answer in time. ``before``: what the last trial said.

    By a child, for whoever opens a file that the guard has no answer for waits until killed. It answers for one file after the
    other, so everybody waits then. The guard is ended, which lets everybody go on, and systemd has it back; with it the scanner,
    unless that answers and it is the first time, for without the scanner files open until its signatures are loaded again. A
    scanner that only just began is not ended: it is loading them.
    """
    child = subprocess.Popen([PROGRAM, "try"], stdin=subprocess.DEVNULL)
    try:
        return "working" if child.wait(PATIENCE) == 0 else "off"
    except subprocess.TimeoutExpired:
        if age(UNITS[0]) > LOADING:
            alone = before != "hangs" and ask("PING", 5) == "PONG"
            run(["systemctl", "kill", "--signal=KILL", *UNITS[alone:]], 30)
    child.kill()
    with contextlib.suppress(subprocess.TimeoutExpired):
        child.wait(10)
    return "hangs"


def mounts() -> dict[str, int]:
    """Return of each mount point the device as the kernel counts it; of several on one place the last."""
    found = {}
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as stream:
        for line in stream:
            words = line.split(" ")
            major, minor = words[2].split(":")
            place = re.sub(r"\\([0-7]{3})", lambda code: chr(int(code.group(1), 8)), words[4])
            found[place] = int(major) << 20 | int(minor)
    return found


def within(path: str, tops: Iterable[str]) -> bool:
    """Return whether a path is one of these, or below one of them."""
    return any(path == top or path.startswith(f"{top.rstrip('/')}/") for top in tops)


def wanted(settings: Mapping, mounted: Mapping[str, int]) -> list[str]:
    """Return the guarded paths and what is mounted below them, the innermost first.

    clamonacc looks no further than a mount point, and gives a path up when it finds a directory below it of which it does not
    know what is in it. So mount points are paths of their own, and it has to come to them first. What lies on the same file
    system as another path is that one's: noted twice, a directory that is removed and made again would not be guarded.
    """
    tops, out = ([os.path.realpath(path) for path in settings[name]] for name in ("paths", "excluded"))
    found = {*tops, *(path for path in mounted if within(path, tops) and not os.path.isfile(path))}
    inner = {path for path in found - mounted.keys() if within(path, found - {path})}
    return sorted((path for path in found - inner if not within(path, out)), key=lambda path: (-path.count("/"), path))


def paths(settings: Mapping) -> None:
    """Write down for the guard what it is to guard: what is declared and what is mounted below; the canary last of all.

    clamonacc ends its work, but not itself, at a path that is not there; so those are left out, and watch says so.
    """
    with open(CONFIG, encoding="utf-8") as stream:
        lines = [line for line in stream.read().splitlines() if not line.startswith("OnAccessIncludePath ")]
    there = [path for path in wanted(settings, mounts()) if os.path.isdir(path) and re.fullmatch(r"[\w/.,:@+=~%-]+", path)]
    lines += [f"OnAccessIncludePath {path}" for path in [*there, CANARIES]]
    write(GUARDED, "\n".join([*lines, ""]).encode())


def marks(pid: str) -> set[tuple[int, int]]:
    """Return (device, inode) of the directories in which the kernel asks a process before anybody opens a file."""
    found = set()
    for path in glob.glob(f"/proc/{pid}/fdinfo/*"):
        try:
            with open(path, encoding="utf-8") as stream:
                text = stream.read()
        except OSError:
            continue  # closed meanwhile
        for inode, device, mask in re.findall(r"^fanotify ino:(\w+) sdev:(\w+) .*?\bmask:(\w+)", text, re.MULTILINE):
            if int(mask, 16) & FAN_OPEN_PERM:
                found.add((int(device, 16), int(inode, 16)))
    return found


def sample(top: str, out: Collection[str]) -> Iterator[str]:
    """Yield a directory and directories below it, those near its top first, and not all of very many."""
    waiting, count = [top], 0
    while waiting and count < SAMPLE:
        path = waiting.pop(0)
        count += 1
        yield path
        with contextlib.suppress(OSError):
            waiting += [entry.path for entry in os.scandir(path)
                        if len(waiting) < SAMPLE and entry.is_dir(follow_symlinks=False) and entry.path not in out]  # fmt: skip


def unguarded(settings: Mapping) -> list[str]:
    """Return directories that ought to be guarded and are not. New ones are a moment later, so it is looked several times."""
    missing: set[str] = set()
    for turn in range(3 if age(UNITS[1]) > LOADING else 30):
        pid = run(["systemctl", "show", "-p", "MainPID", "--value", UNITS[1]], 30)[1].strip()
        known, mounted = marks(pid), mounts()
        out = {*mounted, *map(os.path.realpath, settings["excluded"])}
        bare = set()
        for top in wanted(settings, mounted):
            device = mounted[next(place for place in [top, *map(str, pathlib.PurePath(top).parents)] if place in mounted)]
            for path in sample(top, out):
                try:
                    inode = os.lstat(path).st_ino
                except OSError as exc:
                    if path != top and isinstance(exc, FileNotFoundError):
                        continue  # it went while we looked
                    inode = -1
                if (device, inode) not in known:
                    bare.add(path)
        missing = missing & bare if turn else bare
        if not missing:
            break
        time.sleep(2)
    return sorted(missing)


def hours_since(moment: object) -> float | None:
    """Return how many hours ago a noted moment was; None if there is none, or if it is yet to come."""
    hours = (time.time() - float(moment)) / 3600 if isinstance(moment, (int, float)) else -1
    return round(hours, 1) if hours > -0.1 else None


def held(directory: str) -> int:
    """Return how many MiB the quarantine holds."""
    total = 0
    with contextlib.suppress(OSError):
        for entry in os.scandir(directory):
            with contextlib.suppress(FileNotFoundError):
                total += entry.stat(follow_symlinks=False).st_size
    return total >> 20


def watch(settings: Mapping) -> None:
    """Say what is wrong. It is said again and again, until it is right."""
    wrong: list[str] = []

    def complain(event: str, **words: object) -> None:
        wrong.append(event)
        say(syslog.LOG_ERR, event, **words)

    scanner = ask("PING") == "PONG"
    if not scanner:
        complain("scanner_off", means=MEANS[UNITS[0]])
    before = load(os.path.join(WATCH, "watch.json"))
    back = restarts(UNITS[1]) if settings["prevention"] else 0  # before the trial, which may have it end
    state = trial(before.get("prevention", "none")) if settings["prevention"] else "none"
    # It may work at this moment and have been away in between: whoever can have it end opens what they like meanwhile.
    if back > before.get("restarts", back) + (before.get("prevention") == "hangs"):
        complain("guard_ended", times=back - before["restarts"], means=MEANS[UNITS[1]])
    if state == "off":
        complain("prevention_off", means=MEANS[UNITS[1]])
    elif state == "hangs":
        complain("guard_hangs", seconds=PATIENCE, means="whoever opens a file on a guarded path waits; what hangs is ended")
    hours, limit = hours_since(load(os.path.join(STATE, "update.json")).get("checked")), settings["signature_max_age_hours"]
    if hours is None or hours > limit:
        complain("signatures_stale", hours="never" if hours is None else hours, limit=limit)
    ended = load(os.path.join(STATE, "scan.json")).get("finished")
    if ended is None and os.path.exists(BEFORE):
        ended = os.stat(BEFORE).st_mtime  # a host that is new here has as long for its first one
    hours, limit = hours_since(ended), settings["scan_max_age_days"]
    if hours is None or hours > limit * 24:
        complain("scan_overdue", days="never" if hours is None else round(hours / 24, 1), limit=limit)
    size, limit = held(settings["quarantine"]), settings["quarantine_max_mib"]
    if size > limit:
        complain("quarantine_full", mib=size, limit=limit, means="nobody looks at what is caught, and it takes the disk")
    bare = unguarded(settings) if state == "working" else []
    if bare:
        complain("path_unguarded", paths=",".join(path[:200] for path in bare[:5]), count=len(bare), means=MEANS["path"])
        # Something that was mounted since, most likely. Once for each state of things, or the guard would do nothing but begin.
        if bare[:NOTED] != before.get("unguarded") and age(UNITS[1]) > LOADING:
            run(["systemctl", "try-restart", "--no-block", UNITS[1]], 30)
    note(os.path.join(WATCH, "watch.json"),
         {"at": time.time(), "scanner": scanner, "prevention": state, "unguarded": bare[:NOTED], "wrong": wrong,
          "restarts": back})  # fmt: skip


def stopped(unit: str) -> None:
    """Say that a unit has ended; systemd tells how in the environment."""
    result, how, status = (os.environ.get(name, "-") for name in ("SERVICE_RESULT", "EXIT_CODE", "EXIT_STATUS"))
    say(syslog.LOG_ERR, "stopped", unit=unit, result=result, how=how, status=status, means=MEANS.get(unit, "-"))


# ------------------------------------------------------------------------------------------------------------------------------
# Scans


def scanners() -> list[str]:
    """Return the scanner's processes: another one than before has not looked at what the one before did not come to."""
    found = []
    for path in glob.glob("/proc/[0-9]*/comm"):
        with contextlib.suppress(OSError), open(path, encoding="utf-8", errors="replace") as stream:
            if stream.read() == "clamd\n" and os.stat(os.path.dirname(path)).st_uid == os.getuid():
                found.append(path)
    return sorted(found)


def proved(settings: Mapping) -> bool:
    """Return whether the scanner finds the canary at this moment."""
    canary = os.path.join(CANARIES, "bulwark-scan-canary")
    write(canary, CANARY)
    try:
        _code, said = run([*settings["scanner"], canary], 600)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(canary)
    return any(path == canary and name.startswith(SIGNATURE) for path, name in FOUND.findall(said))


def scan(settings: Mapping) -> int:
    """Scan guarded directories with quarantine, then all others without: a false alarm may not take the system's files away.

    Files that vanish meanwhile, or that nobody can read, are errors of the client's; they are counted, and the scan goes on.
    A directory that the client gave up, or during which the scanner was another one, was not scanned; neither was anything, if
    the scanner does not find the canary afterwards. What was found and not taken away counts as there until a scan does not find
    it: it may have another name by then.
    """
    began, found, left, done, failed, errors = time.time(), [], [], [], [], 0
    move = [*settings["scanner"], f"--move={settings['quarantine']}"]
    for command, tops in ((move, settings["paths"]), (settings["rest"], settings["scan_paths"])):
        for path in tops:
            if not os.path.isdir(path):
                say(syslog.LOG_ERR, "scan_path_missing", path=path, means="it is declared, but there is no such directory")
                continue
            before = scanners()
            code, said = run([*command, path], LONGEST)
            here = FOUND.findall(said)
            if code == 1 and len(here) < len(FOUND_ONE.findall(said)):
                here.append((path, "a file whose name has line breaks"))  # it is somewhere below
            found += [pair for pair in here if pair not in found]
            left += [name for name, _signature in here if command is not move or os.path.lexists(name)]
            errors += len(NOT_LOOKED_AT.findall(said))
            whole = code in (0, 1, 2) and not GAVE_UP.search(said) and proved(settings) and scanners() == before
            (done if whole else failed).append(path)
    words = {"found": len(found), "errors": errors, "seconds": round(time.time() - began)}
    if failed or not done:
        say(syslog.LOG_ERR, "scan_failed", paths=",".join(failed) or "-", **words, means="the scanner did not look at all of it")
        return 1
    note(os.path.join(STATE, "scan.json"), {"began": began, "finished": time.time(), "proved": True, "found": found,
                                            "left": sorted(set(left)), "errors": errors, "paths": done})  # fmt: skip
    say(syslog.LOG_WARNING if found else syslog.LOG_NOTICE, "scan_finished", **words)
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Do one thing. Exit code 0: done; 1: it failed, and the journal says why."""
    parser = argparse.ArgumentParser(prog="antivirus", description="What is added to ClamAV on this host.", allow_abbrev=False)
    parser.add_argument("verb", choices=["seed", "update", "paths", "watch", "try", "scan", "stopped"])
    parser.add_argument("unit", nargs="?", default="")
    args = parser.parse_args(argv)
    os.umask(0o022)
    syslog.openlog("bulwark-antivirus", syslog.LOG_PID, syslog.LOG_DAEMON)
    settings = load(SETTINGS)
    if args.verb == "seed":
        seed()
    elif args.verb == "stopped":
        stopped(args.unit)
    elif args.verb == "paths":
        paths(settings)
    elif args.verb == "try":
        try:
            return 0 if prevention(settings) == "working" else 3
        except OSError as exc:
            say(syslog.LOG_WARNING, "canary_failed", why=exc)
            return 1
    elif args.verb == "update":
        return update(settings)
    elif args.verb == "scan":
        return scan(settings)
    else:
        watch(settings)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
