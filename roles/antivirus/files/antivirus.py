# Copyright: (c) 2026, Bulwark contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What role antivirus adds to ClamAV on a host: antivirus update|watch|scan|seed|stopped. Standard library only.

    seed      have the signature of the canary among the databases (before the scanner starts)
    update    look for newer signatures, have the scanner load them, note when that succeeded (run by a timer)
    watch     try whether an infected file can be opened, and say what is wrong (run by a timer)
    scan      scan the host, note what came of it (run by a timer)
    stopped   say that a unit has ended, and what that means (run by systemd when it has)

The *canary* is a harmless file that a signature of our own calls infected, by the hash of the whole of it. Whoever can open it
could open anything; a scan that does not find it has found nothing. No other file can have its signature.

Lines for the journal are tagged bulwark-antivirus: `event=... name=value ...`. What is noted lies in STATE as JSON:

    update.json  {checked: seconds since 1970 of the last success, databases: {file: version}}
    watch.json   {at, scanner: bool, prevention: working|off|none, wrong: [events]}
    scan.json    {began, finished, proved: whether the canary was found, found: [[path, signature]], errors, paths}
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import hashlib
import json
import os
import re
import socket
import subprocess
import syslog
import time
from collections.abc import Mapping, Sequence

SETTINGS = "/etc/bulwark/antivirus/settings.json"
STATE = "/var/lib/bulwark/antivirus"
CANARIES = "/var/lib/bulwark/antivirus-canary"  # root's alone, or people would raise alarms by opening it
DATABASES = "/var/lib/clamav"
SOCKET = "/run/clamav/clamd.ctl"
CANARY = b"This file is harmless. It is there to be called infected, so that one sees that the scanner is awake.\n"
SIGNATURE = "Bulwark.Canary"
CURRENT = re.compile(r"^(\S+\.\w+) (?:database )?(?:is up-to-date|updated) \(version: ([^,)]+)", re.MULTILINE)
FOUND = re.compile(r"^(/.*): (\S+) FOUND$", re.MULTILINE)
MEANS = {
    "clamav-daemon.service": "nothing is scanned until it is back: files on guarded paths can be opened whatever they hold",
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


def note(name: str, data: Mapping) -> None:
    """Note something for the next assessment."""
    write(os.path.join(STATE, name), json.dumps(data, indent=1).encode() + b"\n")


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
            command, check=False, capture_output=True, text=True, errors="replace", timeout=seconds, stdin=subprocess.DEVNULL
        )
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
    note("update.json", {"checked": time.time(), "databases": current})
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


def hours_since(moment: object) -> float | None:
    """Return how many hours ago a noted moment was; None if there is none."""
    return round((time.time() - float(moment)) / 3600, 1) if isinstance(moment, (int, float)) else None


def watch(settings: Mapping) -> None:
    """Say what is wrong. It is said again and again, until it is right."""
    wrong = []

    def complain(event: str, **words: object) -> None:
        wrong.append(event)
        say(syslog.LOG_ERR, event, **words)

    scanner = ask("PING") == "PONG"
    if not scanner:
        complain("scanner_off", means=MEANS["clamav-daemon.service"])
    state = "none"
    if settings["prevention"]:
        try:
            state = prevention(settings)
        except OSError as exc:
            state = "off"
            say(syslog.LOG_WARNING, "canary_failed", why=exc)
        if state == "off":
            complain("prevention_off", means=MEANS["bulwark-antivirus-onaccess.service"])
    age, limit = hours_since(load(os.path.join(STATE, "update.json")).get("checked")), settings["signature_max_age_hours"]
    if age is None or age > limit:
        complain("signatures_stale", hours="never" if age is None else age, limit=limit)
    age, limit = hours_since(load(os.path.join(STATE, "scan.json")).get("finished")), settings["scan_max_age_days"]
    if age is not None and age > limit * 24:
        complain("scan_overdue", days=round(age / 24, 1), limit=limit)
    note("watch.json", {"at": time.time(), "scanner": scanner, "prevention": state, "wrong": wrong})


def stopped(unit: str) -> None:
    """Say that a unit has ended; systemd tells how in the environment."""
    result, how, status = (os.environ.get(name, "-") for name in ("SERVICE_RESULT", "EXIT_CODE", "EXIT_STATUS"))
    say(syslog.LOG_ERR, "stopped", unit=unit, result=result, how=how, status=status, means=MEANS.get(unit, "-"))


# ------------------------------------------------------------------------------------------------------------------------------
# Scans


def scan(settings: Mapping) -> int:
    """Scan guarded directories with quarantine, then all others without: a false alarm may not take the system's files away.

    Files that vanish meanwhile, or that nobody can read, are errors of the client's; they are counted, and the scan goes on.
    """
    began = time.time()
    canary = os.path.join(CANARIES, "bulwark-scan-canary")
    write(canary, CANARY)
    found: list[tuple[str, str]] = []
    errors = 0
    try:
        for more, paths in (([f"--move={settings['quarantine']}"], settings["paths"]), ([], [*settings["scan_paths"], CANARIES])):
            there = [path for path in paths if os.path.isdir(path)]
            code, said = run([*settings["scanner"], *more, *there], None)
            found += [pair for pair in FOUND.findall(said) if pair not in found]
            errors += len(re.findall(r"^(?:ERROR|WARNING): |ERROR$", said, re.MULTILINE)) + (code not in (0, 1, 2))
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(canary)
    proved = any(path == canary for path, _name in found)
    found = [pair for pair in found if pair[0] != canary]
    words = {"found": len(found), "errors": errors, "seconds": round(time.time() - began)}
    if not proved:
        say(syslog.LOG_ERR, "scan_failed", **words, means="the canary was not found: nothing else would have been")
        return 1
    note("scan.json", {"began": began, "finished": time.time(), "proved": True, "found": found, "errors": errors,
                       "paths": [*settings["paths"], *settings["scan_paths"]]})  # fmt: skip
    say(syslog.LOG_WARNING if found else syslog.LOG_NOTICE, "scan_finished", **words)
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Do one thing. Exit code 0: done; 1: it failed, and the journal says why."""
    parser = argparse.ArgumentParser(prog="antivirus", description="What is added to ClamAV on this host.", allow_abbrev=False)
    parser.add_argument("verb", choices=["seed", "update", "watch", "scan", "stopped"])
    parser.add_argument("unit", nargs="?", default="")
    args = parser.parse_args(argv)
    os.umask(0o022)
    syslog.openlog("bulwark-antivirus", syslog.LOG_PID, syslog.LOG_DAEMON)
    settings = load(SETTINGS)
    if args.verb == "seed":
        seed()
    elif args.verb == "stopped":
        stopped(args.unit)
    elif args.verb == "update":
        return update(settings)
    elif args.verb == "scan":
        return scan(settings)
    else:
        watch(settings)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
