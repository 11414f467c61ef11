# Copyright: (c) 2026, Bulwark contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The register of media: which there are, where they went, how they were sanitised; and how exports end.

Standard library only. This file is also put on hosts as a program:

    media_register show [--medium M]              what the register says of each medium now
    media_register add EVENT --medium M --by WHO [--location L] [--custodian C] [--reason R] [--details D]
    media_register verify [--head N:CHAIN]        0: sound, 1: something was altered, 2: cannot look
    media_register expire [--preview]             delete securely what is past its time, of the declared exports
    media_register keep                           the timer's: expire, let the register only grow, warn of what is overdue

One line an event, in pure ASCII:

    {"n":1,"at":"2026-11-25T01:02:03Z","event":"moved","medium":"...","by":"...", ... ,"chain":"<hex>"}

"chain" is the SHA-256 of the previous line's chain (as hex) and the bytes of the line up to, not including, C(,"chain":); before
the first line it is that of "bulwark-media 1". So each line vouches for all before it, and a head that was noted elsewhere (the
evidence of every audit has it) contradicts whoever makes all of it anew.

A line that a power cut or a full disk cut off has no end. It stays, and the next entry comes after one that says so: event
"recovered", with length and SHA-256 of what was cut off. Anything else that is no line is an alteration.
"""

from __future__ import annotations

import argparse
import array
import datetime
import errno
import fcntl
import hashlib
import json
import os
import re
import secrets
import stat
import sys
import syslog
import time
from collections.abc import Iterator

DIRECTORY, SETTINGS = "/var/lib/bulwark/media", "/etc/bulwark-media.json"
REGISTER, SEEN = "register.jsonl", "exports.json"
GENESIS = hashlib.sha256(b"bulwark-media 1").hexdigest()
LINE = re.compile(rb'(\{"n":([1-9]\d*),.*),"chain":"([0-9a-f]{64})"\}\n')
FS_IOC_GETFLAGS, FS_IOC_SETFLAGS, FS_IOC_GETVERSION, APPEND_ONLY = 0x80086601, 0x40086602, 0x80087601, 0x20
BY_HAND = ("moved", "destroyed", "reused")
# Where what was overwritten in place may still be somewhere else, because new data goes to new blocks.
ELSEWHERE = ("btrfs", "zfs", "nilfs2", "f2fs", "bcachefs", "overlay")


class RegisterError(Exception):
    """The register cannot be looked at or written; the text says why."""


# ---------------------------------------------------------------------------------------------------------------
# Lines


def medium_name(identity: dict) -> str:
    """Return what a medium is called in the register."""
    return f"{identity['model']} {identity['serial']}"


def make_line(n: int, at: str, entry: dict, previous: str) -> tuple[bytes, str]:
    """Return a line, with its newline, and its chain."""
    body = json.dumps({"n": n, "at": at, **entry}, separators=(",", ":"), ensure_ascii=True)[:-1].encode("ascii")
    chain = hashlib.sha256(previous.encode("ascii") + body).hexdigest()
    return b'%s,"chain":"%s"}\n' % (body, chain.encode("ascii")), chain


def examine(data: bytes) -> tuple[list[dict], list[str]]:
    """Return (entries, findings in words) of a register's bytes. Entries after an altered line are returned, too."""
    entries, findings, previous, cut = [], [], GENESIS, (0, b"")
    for number, line in enumerate(data.splitlines(keepends=True), 1):
        found = LINE.fullmatch(line)
        if not found:
            cut = (cut[0] or number, cut[1] + line)
            continue
        body, chain = found.group(1), found.group(3).decode()
        try:
            entry = json.loads(line)
        except ValueError:
            findings.append(f"line {number}: no JSON")
            continue
        if cut[0] and (entry.get("event"), entry.get("sha256")) != ("recovered", hashlib.sha256(cut[1][:-1]).hexdigest()):
            findings.append(f"line {cut[0]}: no line of a register")
        cut = (0, b"")
        if int(found.group(2)) != len(entries) + 1:
            findings.append(f"line {number}: has number {entry['n']}: lines are missing, or were put in")
        if hashlib.sha256(previous.encode("ascii") + body).hexdigest() != chain:
            findings.append(f"line {number}: was altered, or what comes before it")
        entries.append(entry)
        previous = chain
    if cut[0]:
        why = "no line of a register" if cut[1].endswith(b"\n") else "was cut off before its end"
        findings.append(f"line {cut[0]}: {why}")
    return entries, findings


def cut_off(data: bytes) -> bytes:
    """Return what a power cut or a full disk left at the end of a register: no whole line; b"" if all is whole."""
    if data.endswith(b"\n"):
        return b""
    end = 0
    for found in LINE.finditer(data):
        end = found.end()
    return data[end:]


def head(entries: list[dict]) -> dict:
    """Return {n, chain} of the last entry."""
    return {"n": entries[-1]["n"], "chain": entries[-1]["chain"]} if entries else {"n": 0, "chain": GENESIS}


def states(entries: list[dict]) -> dict[str, dict]:
    """Return what the register says of each medium: class, location, custodian, id, withdrawn, sanitised, destroyed, reused, at.

    ``sanitised`` is {at, certificate, sha256, category, disposition, class}, or None: whatever was on it since is not known.
    """
    found: dict[str, dict] = {}
    for entry in entries:
        name = entry.get("medium", "")
        if not name:
            continue
        state = found.setdefault(name, {
            "id": "", "class": "", "location": "", "custodian": "", "withdrawn": False, "sanitised": None, "destroyed": False,
            "reused": False, "signers": [], "failed": ""})  # fmt: skip
        event = entry["event"]
        for key in ("id", "class", "location", "custodian"):
            if key in entry and (key != "class" or event in ("declared", "reclassified")):  # who wipes does not classify
                state[key] = entry[key]
        if event == "started":  # an older certificate says nothing of what was on it since
            state["sanitised"] = None
        if event == "declared":
            state["withdrawn"] = False
        if event in ("withdrawn", "destroyed", "reused"):
            state[event] = True
        if event == "failed":
            state["failed"] = entry.get("reason", "")
        if event == "sanitised":
            state.update(failed="", signers=[], reused=False)
            state["sanitised"] = {
                key: entry.get(key, "") for key in ("at", "certificate", "sha256", "category", "disposition", "class")
            }
        if event == "signed" and state["sanitised"] and entry.get("sha256") == state["sanitised"]["sha256"]:
            state["signers"].append(entry.get("signer", ""))
        state["at"] = entry["at"]
    return found


def wanted_entries(declared: list[dict], known: dict[str, dict]) -> list[dict]:
    """Return the entries that are missing for the register to say what was declared: new media, movements, other classes."""
    found, names = [], set()
    for medium in declared:
        name = medium_name(medium)
        names.add(name)
        state = known.get(name)
        place = {key: medium[key] for key in ("location", "custodian")}
        if state is None or state["withdrawn"] or not state["id"]:
            found.append({"event": "declared", "medium": name, "id": medium["id"], "class": medium["class"], **place,
                          "size": medium["size"]})  # fmt: skip
            continue
        if medium["class"] != state["class"]:
            found.append({"event": "reclassified", "medium": name, "from": state["class"], "class": medium["class"]})
        if any(place[key] != state[key] for key in place):
            was = {f"from_{key}": state[key] for key in place}
            found.append({"event": "moved", "medium": name, **was, **place})
    for name, state in known.items():
        if name not in names and state["id"] and not state["withdrawn"]:
            found.append({"event": "withdrawn", "medium": name})
    return found


# ---------------------------------------------------------------------------------------------------------------
# Files


def path_of(directory: str) -> str:
    """Return the register's path."""
    return os.path.join(directory, REGISTER)


def load(directory: str) -> bytes:
    """Return the bytes of the register, none if it does not exist. Raises RegisterError."""
    try:
        with open(path_of(directory), "rb") as stream:
            return stream.read()
    except FileNotFoundError:
        return b""
    except OSError as exc:
        raise RegisterError(f"{path_of(directory)}: {exc.strerror}") from exc


def append(directory: str, added: list[dict]) -> list[dict]:
    """Append entries to the register and return them as they are in it.

    Raises RegisterError; an altered register takes nothing.
    """
    os.makedirs(directory, mode=0o700, exist_ok=True)
    try:
        handle = os.open(path_of(directory), os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    except OSError as exc:
        raise RegisterError(f"{path_of(directory)}: {exc.strerror}") from exc
    with os.fdopen(handle, "r+b", buffering=0) as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        data = stream.read()
        cut = cut_off(data)
        entries, findings = examine(data[: len(data) - len(cut)])
        if findings:
            raise RegisterError(f"{path_of(directory)} takes no more entries: {findings[0]}")
        last, written = head(entries), []
        if cut:
            added = [{"event": "recovered", "bytes": len(cut), "sha256": hashlib.sha256(cut).hexdigest()}, *added]
        for entry in added:
            at = datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
            line, chain = make_line(last["n"] + 1, at, entry, last["chain"])
            if cut and not written:  # gets its end, so that the entry begins a line
                line = b"\n" + line
            if os.write(stream.fileno(), line) != len(line):
                raise RegisterError(f"{path_of(directory)}: not all of an entry could be written")
            last = {"n": last["n"] + 1, "chain": chain}
            written.append({**entry, "at": at, **last})
        os.fsync(stream.fileno())
    for entry in written:
        log(entry["event"], {key: value for key, value in entry.items() if key not in ("event", "chain")})
    return written


def log(event: str, words: dict) -> None:
    """Say something in the journal, from where it goes to the collector."""
    text = " ".join(
        f"{key}={json.dumps(value) if not isinstance(value, (int, float)) else value}" for key, value in words.items()
    )
    syslog.openlog("bulwark-media", 0, syslog.LOG_AUTHPRIV)
    syslog.syslog(syslog.LOG_NOTICE, f"event={event} {text}")


def flags(path: str, wanted: int | None = None) -> int | None:
    """Return whether a file can only grow (APPEND_ONLY or 0), after making it so if ``wanted`` says so.

    None where that is not possible.
    """
    handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        word = array.array("i", [0, 0])
        fcntl.ioctl(handle, FS_IOC_GETFLAGS, word, True)
        if wanted is not None and word[0] & APPEND_ONLY != wanted:
            word[0] = word[0] & ~APPEND_ONLY | wanted
            fcntl.ioctl(handle, FS_IOC_SETFLAGS, word, True)
        return word[0] & APPEND_ONLY
    except OSError as exc:
        if exc.errno in (errno.ENOTTY, errno.EOPNOTSUPP, errno.EPERM, errno.EACCES, errno.EINVAL, errno.ENOSYS):
            return None
        raise
    finally:
        os.close(handle)


def settings() -> dict:
    """Return what the role declared on this host: media, exports, limits. Nothing without it."""
    try:
        with open(SETTINGS, encoding="utf-8") as stream:
            return json.load(stream)
    except FileNotFoundError:
        return {}


def write_json(path: str, data: object) -> None:
    """Write a file in one step, so that a power cut leaves the old or the new one."""
    fresh = f"{path}.new"
    with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600), "w", encoding="utf-8") as stream:
        json.dump(data, stream)
        stream.flush()
        os.fsync(stream.fileno())
    os.replace(fresh, path)
    handle = os.open(os.path.dirname(path), os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def jobs(directory: str) -> list[dict]:
    """Return the sanitisations that have begun and have no end: {medium, started_at, interruptions, step}."""
    found = []
    place = os.path.join(directory, "jobs")
    for name in sorted(os.listdir(place)) if os.path.isdir(place) else []:
        if name.endswith(".json"):
            with open(os.path.join(place, name), encoding="utf-8") as stream:
                job = json.load(stream)
            found.append({key: job.get(key) for key in ("medium", "started_at", "interruptions", "step")})
    return found


def overdue(declared: list[dict], known: dict[str, dict], begun: list[dict], today: str, days: int) -> list[str]:
    """Return which media should have been sanitised by now and were not, in words; ``begun`` as jobs() returns them."""
    found = []
    for medium in declared:
        state = known.get(medium_name(medium), {})
        done = (not state.get("reused") and state.get("sanitised")) or {}
        if medium.get("sanitise_by") and medium["sanitise_by"] < today and not (done or state.get("destroyed")):
            found.append(f"{medium['id']} was to be sanitised by {medium['sanitise_by']}")
    named = {medium_name(medium): medium["id"] for medium in declared}
    for name, state in known.items():  # also what nobody declares any more: that does not destroy it
        done = (not state.get("reused") and state.get("sanitised")) or {}
        if done and done["disposition"] == "destroy" and not state.get("destroyed"):
            late = datetime.date.fromisoformat(done["at"][:10]) + datetime.timedelta(days=days)
            if late.isoformat() < today:
                who = named.get(name, name)
                found.append(f"{who} was sanitised on {done['at'][:10]} and is still not recorded as destroyed")
    for job in begun:
        late = datetime.date.fromisoformat(str(job["started_at"])[:10]) + datetime.timedelta(days=days)
        if late.isoformat() < today:
            found.append(f"the sanitisation of {job['medium']} began on {str(job['started_at'])[:10]} and did not end")
    return found


# ---------------------------------------------------------------------------------------------------------------
# Exports


def walk(path: str) -> Iterator[tuple[str, os.stat_result]]:
    """Yield (path, lstat) of what is not a directory at or below a path, never past a link or into another file system."""
    try:
        about = os.lstat(path)
    except FileNotFoundError:
        return
    if not stat.S_ISDIR(about.st_mode):
        yield path, about
        return
    with os.scandir(path) as entries:
        for entry in sorted(entries, key=lambda item: item.name):
            below = entry.stat(follow_symlinks=False)
            if stat.S_ISDIR(below.st_mode):
                if below.st_dev == about.st_dev:
                    yield from walk(entry.path)
            else:
                yield entry.path, below


def look_at_exports(exports: list[dict], seen: dict[str, float], now: float) -> tuple[list[dict], dict[str, float]]:
    """Return (files of declared exports with how long they are there, what was seen when, for the next look).

    Each file: {path, export, hours, expired}. A file's time runs from when it was first seen there, so neither touching it nor
    writing into it nor giving it another name makes it younger; what was there before the first look at an export counts from its
    last change.
    """
    found, kept = [], {}
    for export in exports:
        looked = f"looked at {export['path']}"
        first = looked not in seen
        kept[looked] = seen.get(looked, now)
        over = bool(export.get("expires")) and export["expires"] < time.strftime("%Y-%m-%d", time.gmtime(now))
        for path, about in walk(export["path"]):
            mark = mark_of(path, about)
            since = min(seen.get(mark, about.st_ctime if first else now), now)
            kept[mark] = since
            hours = (now - since) / 3600
            found.append({"path": path, "export": export["path"], "hours": round(hours, 2),
                          "expired": over or hours >= export["keep_hours"]})  # fmt: skip
    return found, kept


def generation(path: str, about: os.stat_result) -> int | None:
    """Return what tells a file from an older one that had the same inode, whatever it is called now.

    None where the file system has no such number, or for what is no regular file.
    """
    if not stat.S_ISREG(about.st_mode):
        return None
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        word = array.array("i", [0, 0])
        fcntl.ioctl(handle, FS_IOC_GETVERSION, word, True)
        return word[0] & 0xFFFFFFFF
    except OSError:
        return None
    finally:
        os.close(handle)


def mark_of(path: str, about: os.stat_result) -> str:
    """Return what a file is remembered by: another name does not change it, where the file system lets files be told apart."""
    born = generation(path, about)
    return f"{about.st_dev}:{about.st_ino}:{path if born is None else born}"


def mark_seen(directory: str) -> dict[str, float]:
    """Return when files of exports were first seen."""
    try:
        with open(os.path.join(directory, SEEN), encoding="utf-8") as stream:
            return json.load(stream)
    except (FileNotFoundError, ValueError):
        return {}


def open_place(root: str, path: str) -> int:
    """Return an open directory: that of a file below ``root``, with no link on the way, above ``root`` neither. Raises OSError.

    Whoever owns a directory on the way may put a link in its place at any moment, and root would follow it.
    """
    way = os.path.relpath(os.path.dirname(path), root).split("/")
    handle = os.open("/", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    for part in [*root.strip("/").split("/"), *(way if way != ["."] else [])]:
        try:
            below = os.open(part, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=handle)
        finally:
            os.close(handle)
        handle = below
    return handle


def overwrite(handle: int, size: int) -> None:
    """Overwrite what a file holds, but not its holes: a sparse file would fill the disk. Raises OSError."""
    at = 0
    while at < size:
        try:
            start = os.lseek(handle, at, os.SEEK_DATA)
        except OSError as exc:
            if exc.errno == errno.ENXIO:  # nothing but a hole is left
                break
            raise
        end = min(os.lseek(handle, start, os.SEEK_HOLE), size)
        at = start
        while at < end:
            done = os.pwrite(handle, bytes(min(1 << 20, end - at)), at)
            if done <= 0:
                raise OSError(errno.EIO, "short write")
            at += done
    os.fsync(handle)


def delete_securely(path: str, root: str) -> dict:
    """Overwrite a file where it lies, give it another name, empty it and take it away. Return {bytes, overwritten, why}.

    ``root`` is the declared directory; links below it are not followed. Raises OSError, and RegisterError for what has further
    names: its content would live on there, or die there unasked.
    """
    name = os.path.basename(path)
    directory = open_place(root, path)
    try:
        about = os.stat(name, dir_fd=directory, follow_symlinks=False)
        if not stat.S_ISREG(about.st_mode):
            os.unlink(name, dir_fd=directory)
            return {"bytes": 0, "overwritten": False, "why": "no regular file"}
        handle = os.open(name, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK, dir_fd=directory)
        try:
            about = os.fstat(handle)
            if about.st_nlink != 1 or not stat.S_ISREG(about.st_mode):
                raise RegisterError(
                    f"{path} has {about.st_nlink} names: take the others away first, or its content lives on there"
                )
            overwrite(handle, about.st_size)
            nameless = f".{secrets.token_hex(8)}"
            os.rename(name, nameless, src_dir_fd=directory, dst_dir_fd=directory)
            os.ftruncate(handle, 0)
            os.fsync(handle)
        finally:
            os.close(handle)
        os.unlink(nameless, dir_fd=directory)
        os.fsync(directory)
        kind = filesystem(about.st_dev)
        why = f"{kind} writes new data to new blocks: only encryption and fstrim reach the old ones" if kind in ELSEWHERE else ""
        return {"bytes": about.st_size, "overwritten": not why, "why": why}
    finally:
        os.close(directory)


def filesystem(device: int) -> str:
    """Return the kind of file system of a device number (st_dev)."""
    number = f"{os.major(device)}:{os.minor(device)}"
    with open("/proc/self/mountinfo", encoding="utf-8") as stream:
        for line in stream:
            words = line.split()
            if words[2] == number:
                return words[words.index("-") + 1]
    return "unknown"


def expire(directory: str, exports: list[dict], now: float, preview: bool = False) -> tuple[list[dict], list[str]]:
    """Delete what is past its time. Return (what went, or would go: {path, hours, ...}; what could not be deleted, in words)."""
    links = [export["path"] for export in exports if os.path.realpath(export["path"]) != export["path"]]
    exports = [export for export in exports if export["path"] not in links]
    files, kept = look_at_exports(exports, mark_seen(directory), now)
    gone, problems = [], [f"{path} is a link, or below one: only what is declared where it lies ends" for path in links]
    if not preview:  # nothing goes that cannot be written down: neither into an altered register nor onto a full disk
        append(directory, [])
        write_json(os.path.join(directory, SEEN), kept)
    approvers = {export["path"]: export["approver"] for export in exports}
    for file in files:
        if not file["expired"]:
            continue
        if preview:
            gone.append(file)
            continue
        try:
            root = file["export"] if file["export"] != file["path"] else os.path.dirname(file["path"])
            done = delete_securely(file["path"], root)
        except (OSError, RegisterError) as exc:
            problems.append(f"{file['path']}: {exc}")
            continue
        entry = {"event": "deleted", "by": f"expiry, approved by {approvers[file['export']]}", "path": file["path"],
                 "hours": file["hours"], **done}  # fmt: skip
        append(directory, [entry])
        gone.append(entry)
    return gone, problems


# ---------------------------------------------------------------------------------------------------------------


def main(argv: list[str] | None = None) -> int:
    """Do what is asked; see the top of this file."""
    parser = argparse.ArgumentParser(prog="media_register", description="Keep the register of media, and let exports end.")
    parser.add_argument("--directory", default=DIRECTORY)
    verbs = parser.add_subparsers(dest="verb", required=True)
    made = {name: verbs.add_parser(name) for name in ("show", "add", "verify", "expire", "keep")}
    made["show"].add_argument("--medium", default="")
    made["add"].add_argument("event", choices=BY_HAND)
    for name in ("--medium", "--by"):
        made["add"].add_argument(name, required=True)
    for name in ("--location", "--custodian", "--reason", "--details"):
        made["add"].add_argument(name, default="")
    made["verify"].add_argument("--head", default="")
    made["expire"].add_argument("--preview", action="store_true")
    args = parser.parse_args(argv)
    try:
        return VERBS[args.verb](args)
    except (RegisterError, ValueError, OSError) as exc:
        sys.stderr.write(f"event=media_register_failed verb={args.verb} problem={json.dumps(str(exc))}\n")
        return 2


def say_show(args: argparse.Namespace) -> int:
    """Write what is known of media."""
    known = states(examine(load(args.directory))[0])
    wanted = {args.medium: known.get(args.medium)} if args.medium else known
    sys.stdout.write(json.dumps({"media": wanted, "unfinished": jobs(args.directory)}, indent=1) + "\n")
    return 0


def say_add(args: argparse.Namespace) -> int:
    """Record what people did with a medium. Refuses what the policy forbids."""
    known = states(examine(load(args.directory))[0])
    if args.medium not in known:
        raise RegisterError(f"{args.medium!r} is not in the register; known are {', '.join(sorted(known)) or 'none'}")
    state, done = known[args.medium], known[args.medium]["sanitised"]
    if state["destroyed"]:
        raise RegisterError(f"{args.medium} was destroyed")
    if args.event == "moved" and not (args.location or args.custodian):
        raise RegisterError("moved: needs --location or --custodian")
    if args.event == "reused" and state["reused"]:
        raise RegisterError(f"UMDNJ-I-2: {args.medium} was used again since it was sanitised; it must be sanitised anew before")
    if args.event == "reused" and (not done or done["disposition"] == "destroy" or done["category"] != "purge"):
        raise RegisterError("UMDNJ-I-2: only a medium with a certificate of purge, and not meant to be destroyed, is used again")
    more = {key: getattr(args, key) for key in ("location", "custodian", "reason", "details") if getattr(args, key)}
    append(args.directory, [{"event": args.event, "medium": args.medium, "by": args.by, **more}])
    return 0


def say_verify(args: argparse.Namespace) -> int:
    """Say whether the register is unaltered."""
    data = load(args.directory)
    entries, findings = examine(data)
    if args.head:
        n, _colon, chain = args.head.partition(":")
        if not any(entry["n"] == int(n) and entry["chain"] == chain for entry in entries):
            findings.append(f"the head {args.head} is not in it: it was made anew, or cut off")
    for finding in findings:
        sys.stdout.write(finding + "\n")
    last = head(entries)
    sys.stdout.write(f"{'altered' if findings else 'sound'}: {len(entries)} entries, head {last['n']}:{last['chain']}\n")
    return 1 if findings else 0


def say_expire(args: argparse.Namespace) -> int:
    """Let exports end, and say which."""
    gone, problems = expire(args.directory, settings().get("exports", []), time.time(), args.preview)
    for entry in gone:
        sys.stdout.write(f"{'would delete' if args.preview else 'deleted'} {entry['path']} after {entry['hours']} hours\n")
    for problem in problems:
        log("expire_failed", {"problem": problem})
        sys.stderr.write(problem + "\n")
    return 1 if problems else 0


def say_keep(args: argparse.Namespace) -> int:
    """Do what the timer does."""
    answer = say_expire(argparse.Namespace(directory=args.directory, preview=False))
    if os.path.exists(path_of(args.directory)):
        flags(path_of(args.directory), APPEND_ONLY)
    wanted = settings()
    entries, findings = examine(load(args.directory))
    today = time.strftime("%Y-%m-%d", time.gmtime())
    for finding in findings:
        log("register_altered", {"finding": finding})
    for text in overdue(wanted.get("media", []), states(entries), jobs(args.directory), today, wanted.get("unfinished_days", 0)):
        log("overdue", {"problem": text})
    return 1 if findings else answer


VERBS = {"show": say_show, "add": say_add, "verify": say_verify, "expire": say_expire, "keep": say_keep}

if __name__ == "__main__":
    raise SystemExit(main())
