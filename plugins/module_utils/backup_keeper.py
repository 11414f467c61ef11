# Copyright: (c) 2026, Bulwark contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a backup repository does with the copies it holds, and without their keys. Standard library only.

    backup_keeper check [--all]       read a slice of every copy (or all of it), and name what is broken, missing or foreign
    backup_keeper pull                fetch what is new in the repositories of other sites
    backup_keeper forget --host NAME  know no more of a copy that somebody took away, and of sealed keys that a custodian removed
    backup_keeper prune --host NAME   let copies go whose time is over; keys come on standard input, one a line

restic names each file by the SHA-256 of what is in it. So whether a file is as it was written can be told without any key, and by
whoever has a second copy. What was there once and is gone is known from a ledger. The settings, /etc/bulwark/backup_keeper.json:

    {"name", "directory", "hosts": [names], "slices": n, "retention_days": n, "free_percent": n, "site",
     "pulls": [{"server", "site", "address", "port", "hosts": [names]}]}

Below the directory lie hosts/<host> (where hosts add), offsite/<server>/<host> (fetched) and escrow/<host>/<SHA-256>.json (sealed
keys, each called by what is in it).
"""

from __future__ import annotations

import argparse
import base64
import calendar
import contextlib
import fcntl
import hashlib
import http.client
import json
import os
import pwd
import re
import shutil
import ssl
import subprocess
import sys
import tempfile
import time
from collections.abc import Collection, Iterator

SETTINGS, STATE = "/etc/bulwark/backup_keeper.json", "/var/lib/bulwark/backup-repository"
USER = "bulwark-backup"
KINDS = ("keys", "data", "index", "snapshots")  # in the order in which a copy is sound at every moment
DAY, LEAST_DAYS, HISTORY, ON_ITS_WAY = 86400, 30, 60, 3600
AHEAD = 300  # how wrong clocks may be
STALE_LOCK = 1800  # restic renews its locks every five minutes
BLOCK, FILE_BYTES = 1 << 20, 1 << 31
FILE = re.compile(r"[0-9a-f]{64}")


class KeeperError(Exception):
    """Something could not be looked at or done; the text says what, never a secret."""


def load(path: str) -> dict:
    """Return what a file of JSON holds; nothing if it is not there."""
    try:
        with open(path, encoding="utf-8") as stream:
            return json.load(stream)
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as exc:
        raise KeeperError(f"{path}: {exc}") from exc


def save(path: str, data: dict) -> None:
    """Write a file of JSON, in full or not at all, for root alone."""
    os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(prefix=".new-", dir=os.path.dirname(path))
    with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
        json.dump(data, stream, indent=1, sort_keys=True)
        stream.flush()
        os.fsync(stream.fileno())
    os.replace(temporary, path)


def stamp(at: float) -> str:
    """Return a time in UTC."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(at))


def seconds_of(text: str) -> float:
    """Return the seconds since the epoch of a time as restic or stamp() writes it."""
    found = re.fullmatch(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(?:\.\d+)?(Z|[+-]\d\d:\d\d)", text)
    if not found:
        raise KeeperError(f"{text!r} is no time")
    at, zone = calendar.timegm(time.strptime(found.group(1), "%Y-%m-%dT%H:%M:%S")), found.group(2)
    return at if zone == "Z" else at - int(zone[0] + "1") * (int(zone[1:3]) * 3600 + int(zone[4:]) * 60)


def word(text: str) -> str:
    """Return a text as one word of a line: whoever names a file cannot end the quotation, and say something else."""
    return text if re.fullmatch(r"[A-Za-z0-9_.:/@+-]+", text) else json.dumps(text.replace('"', "'"))


def say(event: str, loud: bool = False, **more: object) -> None:
    """Write a line to the journal, as an error if it is loud. Role log_review raises alarms by what is said here."""
    words = [f"event={event}", *(f"{key}={word(str(value))}" for key, value in more.items())]
    sys.stderr.write(("<3>" if loud else "<6>") * ("JOURNAL_STREAM" in os.environ) + " ".join(words) + "\n")


# --- copies as they lie there -----------------------------------------------------------------------------------------


def copies(directory: str) -> Iterator[tuple[str, str]]:
    """Yield (name, path) of each host's copy: <host> where hosts add, <server>/<host> where they were fetched."""
    own, others = os.path.join(directory, "hosts"), os.path.join(directory, "offsite")
    for name in sorted(os.listdir(own)) if os.path.isdir(own) else ():
        yield name, os.path.join(own, name)
    for server in sorted(os.listdir(others)) if os.path.isdir(others) else ():
        for name in sorted(os.listdir(os.path.join(others, server))):
            yield f"{server}/{name}", os.path.join(others, server, name)


def files(path: str) -> tuple[dict[str, int], list[str]]:
    """Return (sizes of a copy's files by their names below it, names of what does not belong there). Locks come and go."""
    found: dict[str, int] = {}
    foreign = []
    for place, directories, names in os.walk(path):
        below = os.path.relpath(place, path)
        if below == ".":
            directories[:] = [name for name in directories if name != "locks"]
        for name in [*names, *(name for name in directories if os.path.islink(os.path.join(place, name)))]:
            if name.startswith(".new-") or name.endswith(".rest-server-temp"):
                continue  # on its way, or left by somebody who was killed
            whole = os.path.normpath(os.path.join(below, name))
            kind, _slash, rest = whole.partition("/")
            right = rest == f"{name[:2]}/{name}" if kind == "data" and "/" in rest else rest == name
            if os.path.islink(os.path.join(place, name)):
                foreign.append(whole)
            elif whole == "config" or (kind in KINDS and right and FILE.fullmatch(name)):
                found[whole] = os.stat(os.path.join(place, name)).st_size
            else:
                foreign.append(whole)
    return found, foreign


def digest(path: str) -> str:
    """Return the SHA-256 of a file."""
    total = hashlib.sha256()
    with open(path, "rb") as stream:
        while block := stream.read(BLOCK):
            total.update(block)
        with contextlib.suppress(OSError):  # what was read once is not wanted in memory
            os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    return total.hexdigest()


def slice_of(name: str, slices: int) -> int:
    """Return which slice a file of data is in, from 0 on; small files of other kinds are in all."""
    return int(name.rsplit("/", 1)[1][:8], 16) % slices if name.startswith("data/") else -1


def check_copy(name: str, path: str, ledger: dict, slices: int, everything: bool, now: float) -> dict:
    """Read what is due of one copy; return what was found and bring its ledger up to date.

    The ledger is {"config": digest, "files": {name: size}, "slices": [when each was last read], "broken": {name: what}}. New
    files are read at once, and enter it once they are sound; of the others the slice that was read longest ago, and what was
    broken. What came within the last hour and is not whole may still be on its way.
    """
    present, foreign = files(path)
    known = ledger.setdefault("files", {})
    read_at = ledger.setdefault("slices", [])
    past = [at for at in read_at if at <= now + AHEAD]  # the clock may have been wrong
    oldest = min(past, default=0.0 if known else now)
    if len(read_at) != slices:  # never seen, or cut otherwise: nobody knows what was read after the oldest
        read_at[:] = [oldest] * slices
    read_at[:] = [at if at <= now + AHEAD else oldest for at in read_at]
    turn = read_at.index(min(read_at))
    before, broken = ledger.setdefault("broken", {}), {}
    for file, size in sorted(present.items()):
        due = everything or file not in known or slice_of(file, slices) in (-1, turn) or file in before
        if file in known and size != known[file]:
            broken[file] = f"has {size} bytes instead of {known[file]}"
        elif due:
            try:
                said = problem(file, digest(os.path.join(path, file)), ledger)
                young = file not in known and now - os.stat(os.path.join(path, file)).st_mtime < ON_ITS_WAY
            except FileNotFoundError:
                continue  # it was let go this moment; if not, it is missing next time
            except OSError as exc:  # the disk itself: the rest is read all the same
                said, young = f"cannot be read: {exc.strerror}", False
            if not said:
                known[file] = size
            elif not young:
                broken[file] = said
    broken.update({file: "is missing" for file in known if file not in present})
    broken.update(dict.fromkeys(foreign, "does not belong here"))
    for number in range(slices) if everything else [turn]:
        read_at[number] = now
    ledger["broken"] = broken
    for file, said in sorted(broken.items()):
        say("broken", True, copy=name, file=file, problem=said)
    arrived = [os.stat(os.path.join(path, file)).st_mtime for file in present if file.startswith("snapshots/")]
    past = [at for at in arrived if at <= now + AHEAD]  # one that arrives tomorrow must not hide that nothing arrived since
    return {
        "files": len(present), "bytes": sum(present.values()), "snapshots": len(arrived), "broken": broken,
        "newest_hours": round((now - max(past)) / 3600, 2) if past else None,
        "read_days": round((now - min(read_at)) / DAY, 2),
    }  # fmt: skip


def problem(file: str, seen: str, ledger: dict) -> str:
    """Return what is wrong with a file whose content has a digest, or nothing. The config is not named by its own."""
    if file == "config":
        return "" if ledger.setdefault("config", seen) == seen else "was altered"
    return "" if seen == file.rsplit("/", 1)[1] else "is not what was written"


def ledger_path(name: str) -> str:
    """Return where a copy's ledger lies."""
    return os.path.join(STATE, "ledger", f"{name.replace('/', '@')}.json")


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """Let only one keeper work at a time."""
    os.makedirs(STATE, mode=0o700, exist_ok=True)
    with open(os.path.join(STATE, "lock"), "w", encoding="ascii") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def known_copies() -> list[str]:
    """Return the copies of which there is a ledger."""
    place = os.path.join(STATE, "ledger")
    names = sorted(os.listdir(place)) if os.path.isdir(place) else []
    return [name[:-5].replace("@", "/") for name in names if name.endswith(".json") and not name.startswith(".")]


def lost(name: str) -> dict:
    """Return what is to be said of a copy that is not there any more."""
    say("broken", True, copy=name, problem="the whole copy is missing")
    return {
        "files": 0, "bytes": 0, "snapshots": 0, "newest_hours": None, "read_days": 0.0,
        "broken": {"copy": "is missing as a whole"},
    }  # fmt: skip


def check_escrow(directory: str, known: dict) -> dict[str, str]:
    """Return {sealed key: what is wrong with it}, and bring what is known up to date. Each is called by what is in it."""
    place, broken, present = os.path.join(directory, "escrow"), {}, set()
    for host in sorted(os.listdir(place)) if os.path.isdir(place) else ():
        inside = os.path.join(place, host)
        for name in sorted(os.listdir(inside)) if os.path.isdir(inside) and not os.path.islink(inside) else ("",):
            path, below = os.path.join(inside, name), f"{host}/{name}"
            if name.startswith(".new-"):
                continue
            if os.path.islink(path) or not os.path.isfile(path) or not re.fullmatch(r"[0-9a-f]{64}\.json", name):
                broken[below] = "does not belong here"
                continue
            present.add(below)
            try:
                whole = f"{digest(path)}.json" == name
            except OSError as exc:
                broken[below] = f"cannot be read: {exc.strerror}"
                continue
            if whole:
                known.setdefault(below, stamp(time.time()))
            else:
                broken[below] = "is not what was written"
    broken.update({below: "is missing" for below in known if below not in present})
    for below, said in sorted(broken.items()):
        say("broken", True, copy="escrow", file=below, problem=said)
    return broken


def forget(settings: dict, name: str) -> int:
    """Know no more of a copy that was taken away, and of its host's sealed keys that were. What is there is not forgotten."""
    if name in dict(copies(settings["directory"])):
        raise KeeperError(f"{name}: is still there")
    host, escrow = name.rsplit("/", 1)[-1], load(os.path.join(STATE, "escrow.json"))
    gone = [below for below in escrow if below.startswith(f"{host}/")
            and not os.path.exists(os.path.join(settings["directory"], "escrow", below))]  # fmt: skip
    if name not in known_copies() and not gone:
        raise KeeperError(f"{name}: nothing is known of it")
    with contextlib.suppress(FileNotFoundError):
        os.unlink(ledger_path(name))
    save(os.path.join(STATE, "escrow.json"), {below: at for below, at in escrow.items() if below not in gone})
    by = os.environ.get("SUDO_USER", "root")
    record = {"at": stamp(time.time()), "copy": name, "by": by, "forgotten": True, "sealed": gone, "removed": []}
    with open(os.path.join(STATE, "pruned.jsonl"), "a", encoding="utf-8") as stream:
        stream.write(json.dumps(record, sort_keys=True) + "\n")
    say("forgotten", copy=name, by=by, sealed=len(gone))
    return 0


def check(settings: dict, everything: bool) -> int:
    """Look at every copy, at sealed keys and at the space, and write the report."""
    now, report = time.time(), load(os.path.join(STATE, "report.json"))
    found = {}
    for name, path in copies(settings["directory"]):
        ledger = load(ledger_path(name))
        found[name] = check_copy(name, path, ledger, settings["slices"], everything, now)
        save(ledger_path(name), ledger)
    found.update({name: lost(name) for name in known_copies() if name not in found and load(ledger_path(name)).get("files")})
    sealed = load(os.path.join(STATE, "escrow.json"))
    escrow = check_escrow(settings["directory"], sealed)
    save(os.path.join(STATE, "escrow.json"), sealed)
    room = shutil.disk_usage(settings["directory"])
    total = sum(about["bytes"] for about in found.values())
    days = {**report.get("days", {}), stamp(now)[:10]: total}
    days = dict(sorted(days.items())[-HISTORY:])
    free = round(100 * room.free / room.total, 1)
    if free < settings["free_percent"]:
        say("capacity", True, free_percent=free, wanted_percent=settings["free_percent"])
    broken = sum(len(about["broken"]) for about in found.values()) + len(escrow)
    report = {"at": stamp(now), "copies": found, "escrow": escrow, "days": days, "bytes": total, "broken": broken}
    save(os.path.join(STATE, "report.json"), report)
    say("checked", bool(broken), copies=len(found), bytes=total, broken=broken, free_percent=free)
    return 1 if broken else 0


def days_that_fit(days: dict[str, int], free: int) -> int | None:
    """Return for how many days there is room at the rate of the days that are known; None if they are less than two or shrink."""
    sizes = sorted(days.items())
    if len(sizes) < 2:
        return None
    first, last = (time.mktime(time.strptime(day, "%Y-%m-%d")) for day in (sizes[0][0], sizes[-1][0]))
    rate = (sizes[-1][1] - sizes[0][1]) / max((last - first) / DAY, 1)
    return int(free / rate) if rate > 0 else None


# --- fetching from another site -----------------------------------------------------------------------------------------


class Source:
    """The read-only door of another repository."""

    def __init__(self, pull: dict, place: str, own: str) -> None:
        context = ssl.create_default_context(cafile=os.path.join(place, "ca.crt"))
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        with open(os.path.join(place, "access"), encoding="ascii") as stream:
            word = base64.b64encode(f"{own}:{stream.read().strip()}".encode()).decode()
        self.headers = {"Authorization": f"Basic {word}", "Accept": "application/vnd.x.restic.rest.v2"}
        self.line = http.client.HTTPSConnection(pull["address"], pull["port"], timeout=60, context=context)

    def get(self, path: str) -> http.client.HTTPResponse:
        """Ask for something; the answer must be read before the next question."""
        self.line.request("GET", path, headers=self.headers)
        return self.line.getresponse()

    def names(self, host: str, kind: str) -> list[str]:
        """Return the names of a kind of files of a host."""
        answer = self.get(f"/{host}/{kind}/")
        text = answer.read()
        if answer.status == 404:
            return []
        if answer.status != 200:
            raise KeeperError(f"/{host}/{kind}/: {answer.status} {answer.reason}")
        found = json.loads(text or b"[]")
        if not isinstance(found, list) or not all(isinstance(entry, dict) for entry in found):
            raise KeeperError(f"/{host}/{kind}/: the answer is no list of files")
        return sorted(entry["name"] for entry in found if FILE.fullmatch(str(entry.get("name"))))

    def fetch(self, host: str, file: str, path: str, expected: str) -> str:
        """Bring one file here if it is what its name says; return missing, altered, or nothing when all is well."""
        answer = self.get(f"/{host}/{file}")
        if answer.status != 200:
            answer.read()
            if answer.status == 404:
                return "missing"
            raise KeeperError(f"/{host}/{file}: {answer.status} {answer.reason}")
        os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
        total, size = hashlib.sha256(), 0
        descriptor, temporary = tempfile.mkstemp(prefix=".new-", dir=os.path.dirname(path))
        try:
            with os.fdopen(descriptor, "wb") as stream:
                while block := answer.read(BLOCK):
                    total.update(block)
                    size += len(block)
                    if size > FILE_BYTES:
                        raise KeeperError(f"/{host}/{file}: does not end")
                    stream.write(block)
                if getattr(answer, "length", 0):
                    raise KeeperError(f"/{host}/{file}: the connection was cut, {answer.length} bytes are missing")
                stream.flush()
                os.fsync(stream.fileno())
            if expected and total.hexdigest() != expected:
                os.unlink(temporary)
                return "altered"
            os.replace(temporary, path)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            raise
        return ""


def pull_copy(source: Source, host: str, path: str, name: str, let_go: Collection[str] = ()) -> dict:
    """Fetch what is new of a host. Nothing that is here already is ever written again, so what breaks there stays whole here.

    Snapshots that were let go here are not fetched again while they are still there.
    """
    new, broken = 0, {}
    config = os.path.join(path, "config")
    if os.path.exists(config):
        before = digest(config)
        answer = source.get(f"/{host}/config")
        text = answer.read()
        if answer.status == 200 and hashlib.sha256(text).hexdigest() != before:
            return {"new": 0, "files": 0, "broken": {"config": "is another repository's there: nothing was fetched"}}
    for _turn in range(5):
        # What others point to is listed last and fetched first: so whatever is here is whole, also if this ends half-way.
        listed = {kind: source.names(host, kind) for kind in reversed(KINDS)}
        if not listed["keys"]:
            return {"new": new, "files": 0, "broken": {"keys": "there is nothing to fetch"}}
        broken, missing = {}, 0
        for kind in KINDS:
            for file in listed[kind]:
                below = f"data/{file[:2]}/{file}" if kind == "data" else f"{kind}/{file}"
                if os.path.exists(os.path.join(path, below)) or (kind == "snapshots" and file in let_go):
                    continue
                said = source.fetch(host, f"{kind}/{file}", os.path.join(path, below), file)
                new += not said
                missing += said == "missing"
                if said == "altered":
                    broken[below] = "is not what was written, there"
                    say("broken", True, copy=name, file=below, problem=broken[below])
            if kind == "keys" and not os.path.exists(config) and source.fetch(host, "config", config, ""):
                broken["config"] = "is missing there"
        if not missing and source.names(host, "index") == listed["index"]:
            break  # else they were tidying up there meanwhile
    else:
        broken["index"] = "changes all the time there"
    os.makedirs(os.path.join(path, "locks"), mode=0o700, exist_ok=True)
    return {"new": new, "files": sum(len(names) for names in listed.values()) + 1, "broken": broken}


def pull(settings: dict, own: str) -> int:
    """Fetch from all sites, and write down how it went. One that cannot be reached does not keep others from being fetched."""
    record = load(os.path.join(STATE, "pulls.json"))
    failed = 0
    for entry in settings["pulls"]:
        server, place = entry["server"], os.path.join(STATE, "pulls", entry["server"])
        for host in entry["hosts"]:
            name, about = f"{server}/{host}", record.setdefault(server, {}).setdefault(host, {})
            path = os.path.join(settings["directory"], "offsite", server, host)
            try:
                let_go = load(ledger_path(name)).get("let_go", [])
                about.update(pull_copy(Source(entry, place, own), host, path, name, let_go))
                if not about["broken"]:
                    about.update(sound_at=stamp(time.time()), problem="")
                else:
                    about["problem"] = "; ".join(f"{file} {said}" for file, said in sorted(about["broken"].items()))[:500]
            except (KeeperError, OSError, ValueError, KeyError, TypeError, AttributeError, http.client.HTTPException) as exc:
                about["problem"] = f"{type(exc).__name__}: {exc}"[:500]
            failed += bool(about["problem"])
            save(os.path.join(STATE, "pulls.json"), record)  # the next one may take hours
            say("pulled", bool(about["problem"]), copy=name, new=about.get("new", 0), problem=about["problem"] or "none")
        for gone in set(record[server]) - set(entry["hosts"]) if server in record else ():
            del record[server][gone]
    wanted = {entry["server"] for entry in settings["pulls"]}
    save(os.path.join(STATE, "pulls.json"), {server: about for server, about in record.items() if server in wanted})
    return 1 if failed else 0


# --- letting copies go --------------------------------------------------------------------------------------------------


def outlived(snapshots: list[dict], retention_days: int, now: float) -> list[dict]:
    """Return the snapshots that may go: both written and arrived longer ago than the time they are kept.

    When something arrived here is this repository's knowledge; what a snapshot says of itself was said by a host, which may lie:
    one from the future would make all others look old to `forget --keep-within`. The newest of each set stays in any case: the
    one that came last, and the one that was written last of those that do not claim to be newer than their arrival, for what was
    fetched at once came in no order.
    """
    newest: dict[tuple, str] = {}
    for order in (lambda entry: entry["arrived"], lambda entry: min(entry["arrived"], seconds_of(entry["time"]))):
        for entry in sorted(snapshots, key=order):
            newest[(order, entry["hostname"], *sorted(entry.get("tags") or []))] = entry["id"]
    limit = now - retention_days * DAY
    return [entry for entry in snapshots
            if entry["arrived"] < limit and seconds_of(entry["time"]) < limit and entry["id"] not in newest.values()]  # fmt: skip


def restic(path: str, key: str, *words: str) -> str:
    """Run restic on a copy as whoever owns it; the key is handed over by a pipe."""
    about = os.stat(path)
    owner = pwd.getpwuid(about.st_uid)
    reader, writer = os.pipe()
    try:
        os.write(writer, key.encode() + b"\n")
        os.close(writer)
        os.fchown(reader, owner.pw_uid, about.st_gid)  # restic opens it anew, by its name
        done = subprocess.run(
            ["restic", "--repo", path, "--password-file", f"/dev/fd/{reader}", "--no-cache", "--quiet", *words],
            check=False, capture_output=True, text=True, stdin=subprocess.DEVNULL, pass_fds=[reader],
            user=owner.pw_uid, group=about.st_gid, extra_groups=[], umask=0o077, cwd="/",
            env={"PATH": "/usr/local/bin:/usr/bin:/bin", "LC_ALL": "C.UTF-8", "HOME": "/nonexistent"},
        )  # fmt: skip
    finally:
        os.close(reader)
    if done.returncode:
        said = (done.stderr or done.stdout).strip().splitlines()
        raise KeeperError(f"restic {words[0]}: {said[-1] if said else done.returncode}")
    return done.stdout


def opening(path: str, keys: list[str]) -> str:
    """Return the key that opens a copy: a host that had several was sealed several times."""
    said = KeeperError("no key came on standard input")
    for key in keys:
        try:
            restic(path, key, "--no-lock", "cat", "config")
            return key
        except KeeperError as exc:
            said = exc
    raise said


def unlock(path: str, now: float) -> None:
    """Take away locks of those that were killed. Whoever works renews theirs every few minutes.

    How old a lock is, this repository knows itself. restic goes by the clock and the processes of the host that wrote it, and a
    host's clock may be wrong.
    """
    try:  # others write there: a link must lead nowhere
        place = os.open(os.path.join(path, "locks"), os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except FileNotFoundError:
        return
    try:
        for name in filter(re.compile(r"[0-9a-f]{64}").fullmatch, os.listdir(place)):
            with contextlib.suppress(FileNotFoundError):
                if now - os.stat(name, dir_fd=place, follow_symlinks=False).st_mtime > STALE_LOCK:
                    os.unlink(name, dir_fd=place)
    finally:
        os.close(place)


def may_go(file: str, ledger: dict) -> bool:
    """Return whether letting go, done or cut short, may have taken a file away: data, index, and the snapshots that were to go.

    That a snapshot or a key is gone `restic check` does not see, so nothing else explains it away.
    """
    if file.startswith(("data/", "index/")):
        return "pruning" in ledger
    return any(file == f"snapshots/{entry['id']}" for entry in ledger.get("pruning", []))


def went(name: str, path: str, ledger: dict, now: float, settings: dict) -> dict:
    """Write down which of the snapshots that were about to go are gone, and forget the files that went with them."""
    present, _foreign = files(path)
    removed = [entry for entry in ledger["pruning"] if f"snapshots/{entry['id']}" not in present]
    ledger["let_go"] = sorted({*ledger.get("let_go", []), *(entry["id"] for entry in removed)})
    known = ledger.get("files", {}).items()
    ledger["files"] = {file: size for file, size in known if file in present or not may_go(file, ledger)}
    ledger["broken"] = {}
    del ledger["pruning"]
    record = {
        "at": stamp(now), "copy": name, "by": os.environ.get("SUDO_USER", "root"), "retention_days": settings["retention_days"],
        "removed": removed, "kept": sum(file.startswith("snapshots/") for file in present),
    }  # fmt: skip
    with open(os.path.join(STATE, "pruned.jsonl"), "a", encoding="utf-8") as stream:
        stream.write(json.dumps(record, sort_keys=True) + "\n")
    save(ledger_path(name), ledger)
    return record


def prune(settings: dict, name: str, keys: list[str]) -> int:
    """Let go what has outlived its time, and write down what that was."""
    if settings["retention_days"] < LEAST_DAYS:
        raise KeeperError(f"copies are kept at least {LEAST_DAYS} days (MA-2.4b), not {settings['retention_days']}")
    path = dict(copies(settings["directory"])).get(name)
    if not path:
        raise KeeperError(f"{name}: there is no such copy")
    now, ledger = time.time(), load(ledger_path(name))
    interrupted = "pruning" in ledger
    broken = {file for file, said in ledger.get("broken", {}).items() if said != "is missing" or not may_go(file, ledger)}
    if broken:
        raise KeeperError(f"{name}: {len(broken)} files are broken; nothing goes before they are whole again")
    key = opening(path, keys)
    unlock(path, now)
    if interrupted:  # the one before was cut short: what is missing is what it took away, if all that is left fits together
        restic(path, key, "--no-lock", "check")
        went(name, path, ledger, now, settings)
    found = json.loads(restic(path, key, "--no-lock", "snapshots", "--json"))
    for entry in found:
        entry["arrived"] = os.stat(os.path.join(path, "snapshots", entry["id"])).st_mtime
    gone = outlived(found, settings["retention_days"], now)
    # What is about to go is written down before: it may be cut short, and must not look like a loss then.
    ledger["pruning"] = [{"id": entry["id"], "time": entry["time"], "arrived": stamp(entry["arrived"])} for entry in gone]
    save(ledger_path(name), ledger)
    if gone:
        restic(path, key, "forget", "--prune", *(entry["id"] for entry in gone))
    record = went(name, path, ledger, now, settings)
    say("pruned", copy=name, removed=len(record["removed"]), kept=record["kept"])
    sys.stdout.write(json.dumps(record, indent=1) + "\n")
    return 0


def main(argv: list[str] | None = None) -> int:
    """Check, fetch, or let go. 0: all is well; 1: something is wrong, and named; 2: it could not be looked at."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=["check", "pull", "prune", "forget"])
    parser.add_argument("--all", action="store_true", help="read everything, not just what is due")
    parser.add_argument("--host", help="the copy, as <host> or <server>/<host>")
    args = parser.parse_args(argv)
    os.umask(0o077)
    try:
        settings = load(SETTINGS)
        if not settings:
            raise KeeperError(f"{SETTINGS} is not there")
        with alone():
            if args.action == "check":
                return check(settings, args.all)
            if args.action == "pull":
                return pull(settings, settings["name"])
            if not args.host:
                raise KeeperError("--host: which copy?")
            if args.action == "forget":
                return forget(settings, args.host)
            return prune(settings, args.host, sys.stdin.read().split())
    except (KeeperError, OSError, KeyError, ValueError) as exc:
        say("failed", True, action=args.action, problem=f"{type(exc).__name__}: {exc}")
        return 2


if __name__ == "__main__":
    raise SystemExit(main())
