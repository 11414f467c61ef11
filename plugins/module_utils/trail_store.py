# Copyright: (c) 2026, Bulwark contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The trail on a collector: how it is written down, how it is proven unaltered, and how it is read. Standard library only.

This file is also put on the collector as a program:

    trail_store verify [--directory D] [--since DAY] [--heads FILE] [--json]   0: sound, 1: something was altered, 2: cannot look
    trail_store cat --host H [--since T] [--until T] [--directory D]           lines in the order they were received
    trail_store heads [--directory D]                                          {host: {"n", "chain"}}, for --heads of a later day
    trail_store repair [--directory D]                                         cut off a line that a crash tore
    trail_store keep [--directory D] --retention-days N --approver A ...       close days, let old ones go, watch the space

One directory a host, one file a day of receipt (UTC): <directory>/<host>/<YYYY-MM-DD>.jsonl, closed days as .jsonl.gz. One line
an entry, in pure ASCII:

    {"n":1,"received":"2026-11-25T01:02:03.123456Z","time":"...","host":"...","cursor":"...","entry":{...},"chain":"<hex>"}

"n" runs from 1 and is never reset, "time" is when the host says that it happened. "chain" is the SHA-256 of the previous line's
chain (as hex) and the bytes of the line up to, not including, C(,"chain":); what comes before the first line is the SHA-256 of
"bulwark-trail 1 <host>". So each line vouches for all lines before it, across days, and whoever knows one chain of some day,
noted off the collector, can prove that nothing up to there was altered since.

Beside the hosts lie, hidden: .seals/<day>.jsonl (heads, noted every few minutes), .removed/<host>.jsonl (days that were let go
when their retention was over), .state/<host>.json (counters of the receiver).
"""

from __future__ import annotations

import argparse
import array
import contextlib
import datetime
import errno
import fcntl
import gzip
import hashlib
import json
import os
import re
import sys
import time
import zlib
from collections.abc import Iterator

DIRECTORY = "/var/log/bulwark-trail"
HOST = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,62}")
DAY_FILE = re.compile(r"(\d{4}-\d{2}-\d{2})\.jsonl(\.gz)?")
# What a line is made of. The entry is between; it is looked at by whoever reads, not by whoever verifies.
START = re.compile(
    rb'\{"n":([1-9]\d*),"received":"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z)","time":"(\d{4,}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z)",'
    rb'"host":"([A-Za-z0-9_.-]+)","cursor":"([^"\\]*)","entry":\{'
)
END = re.compile(rb'\},"chain":"([0-9a-f]{64})"\}\n')
MARK, TAIL = b',"chain":"', 78  # how the last field begins; what a line ends with, from the } of its entry on
FINDINGS_MAX = 1000  # of each host; more would say nothing new
FS_IOC_GETFLAGS, FS_IOC_SETFLAGS = 0x80086601, 0x40086602
APPEND_ONLY, IMMUTABLE = 0x20, 0x10


class StoreError(Exception):
    """The store cannot be looked at or worked on; the text says why."""


# ---------------------------------------------------------------------------------------------------------------
# Lines


def genesis(host: str) -> str:
    """Return what stands for the chain before a host's first line."""
    return hashlib.sha256(b"bulwark-trail 1 " + host.encode("ascii")).hexdigest()


def link(previous: str, body: bytes) -> str:
    """Return the chain of a line: of the chain before it, and its bytes up to its own chain."""
    return hashlib.sha256(previous.encode("ascii") + body).hexdigest()


def stamp(microseconds: int) -> str:
    """Return microseconds since the epoch as lines have them, in UTC."""
    seconds, rest = divmod(microseconds, 1000000)
    return "%04d-%02d-%02dT%02d:%02d:%02d.%06dZ" % (*time.gmtime(seconds)[:6], rest)


def make_line(n: int, received: str, happened: str, host: str, cursor: str, entry: dict, previous: str) -> tuple[bytes, str]:
    """Return a line, with its newline, and its chain."""
    inner = json.dumps(entry, separators=(",", ":"))
    body = (
        f'{{"n":{n},"received":"{received}","time":"{happened}","host":"{host}","cursor":{json.dumps(cursor)},"entry":{inner}'
    ).encode("ascii")
    chain = link(previous, body)
    return b'%s,"chain":"%s"}\n' % (body, chain.encode("ascii")), chain


def facts(line: bytes) -> dict | None:
    """Return ``{"n", "received", "time", "host", "cursor", "chain"}`` of a line, or None if it is none."""
    start, end = START.match(line), END.fullmatch(line, max(len(line) - TAIL, 0))
    if not start or not end:
        return None
    n, received, happened, host, cursor = (part.decode("ascii", "replace") for part in start.groups())
    return {"n": int(n), "received": received, "time": happened, "host": host, "cursor": cursor, "chain": end.group(1).decode()}


# ---------------------------------------------------------------------------------------------------------------
# Files


def hosts(directory: str) -> list[str]:
    """Return the hosts that have something in the store, or had (what was let go is on record)."""
    try:
        with os.scandir(directory) as entries:
            found = {entry.name for entry in entries if entry.is_dir(follow_symlinks=False) and HOST.fullmatch(entry.name)}
    except OSError as exc:
        raise StoreError(f"{directory}: {exc.strerror}") from exc
    with contextlib.suppress(FileNotFoundError):
        found |= {name.removesuffix(".jsonl") for name in os.listdir(os.path.join(directory, ".removed"))}
    return sorted(name for name in found if HOST.fullmatch(name))


def days(directory: str, host: str) -> list[tuple[str, str]]:
    """Return (day, path) of a host's files, oldest first. A day that is there twice (plain and packed) is listed twice."""
    try:
        names = sorted(os.listdir(os.path.join(directory, host)))
    except FileNotFoundError:
        return []
    except OSError as exc:
        raise StoreError(f"{directory}/{host}: {exc.strerror}") from exc
    return [(found[1], os.path.join(directory, host, name)) for name in names if (found := DAY_FILE.fullmatch(name))]


def strangers(directory: str, host: str) -> list[str]:
    """Return the names of what lies in a host's directory and does not belong there."""
    with contextlib.suppress(FileNotFoundError):
        return sorted(
            name for name in os.listdir(os.path.join(directory, host))
            if not DAY_FILE.fullmatch(name) and not (name.startswith(".") and name.endswith(".new"))
        )  # fmt: skip
    return []


def lines(path: str) -> Iterator[bytes]:
    """Yield the lines of a day, packed or not. A packed file that was damaged raises ValueError where it is."""
    opener = gzip.open if path.endswith((".gz", ".gz.new")) else open
    try:
        with opener(path, "rb") as stream:
            yield from stream
    except (EOFError, zlib.error, gzip.BadGzipFile) as exc:
        raise ValueError(f"cannot be unpacked: {exc}") from exc
    except OSError as exc:
        raise StoreError(f"{path}: {exc.strerror or exc}") from exc


def last_line(path: str) -> dict | None:
    """Return the facts of the last complete line of a day, or None if it has none."""
    if path.endswith(".gz"):
        last = b""
        for line in lines(path):
            last = line
        return facts(last)
    with open(path, "rb") as stream:
        end, size = stream.seek(0, os.SEEK_END), 65536
        while True:
            begin = max(end - size, 0)
            stream.seek(begin)
            block = stream.read(end - begin)
            whole = block[: block.rfind(b"\n") + 1]
            here = whole.rfind(b"\n", 0, len(whole) - 1)
            if whole and (here >= 0 or begin == 0):
                return facts(whole[here + 1 :])
            if begin == 0:
                return None
            size *= 4


def records(path: str) -> list[dict]:
    """Return the records of a small file of lines in JSON; none if it is not there. What is no record is an error."""
    try:
        with open(path, encoding="utf-8") as stream:
            return [json.loads(line) for line in stream if line.strip()]
    except FileNotFoundError:
        return []
    except (OSError, ValueError) as exc:
        raise StoreError(f"{path}: {exc}") from exc


def removed(directory: str, host: str) -> list[dict]:
    """Return what was let go of a host: ``{"removed", "host", "file", "first_n", "n", "before", "chain", "sha256", ...}``."""
    return records(os.path.join(directory, ".removed", f"{host}.jsonl"))


def seals(directory: str) -> list[dict]:
    """Return all heads that were noted beside the trail: ``{"sealed", "host", "n", "chain", "file"}``."""
    place = os.path.join(directory, ".seals")
    try:
        names = sorted(os.listdir(place))
    except FileNotFoundError:
        return []
    except OSError as exc:
        raise StoreError(f"{place}: {exc.strerror}") from exc
    return [seal for name in names if DAY_FILE.fullmatch(name) for seal in records(os.path.join(place, name))]


def write(path: str, content: bytes, mode: int = 0o640) -> None:
    """Write a small file so that it is there in full or not at all, flushed to the disk."""
    fresh = os.path.join(os.path.dirname(path), f".{os.path.basename(path)}.new")
    handle = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, mode)
    with os.fdopen(handle, "wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())
    os.replace(fresh, path)
    flush_directory(os.path.dirname(path))


def append(path: str, record: dict, mode: int = 0o640) -> None:
    """Add one record to a small file of lines in JSON, flushed to the disk."""
    fresh = not os.path.exists(path)
    handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, mode)
    try:
        os.write(handle, json.dumps(record, separators=(",", ":")).encode("ascii") + b"\n")
        os.fsync(handle)
    finally:
        os.close(handle)
    if fresh:
        flush_directory(os.path.dirname(path))


def flush_directory(path: str) -> None:
    """Make sure that names that were made, changed or taken away in a directory are on the disk."""
    handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


# ---------------------------------------------------------------------------------------------------------------
# Proving that nothing was altered


def verify(directory: str, since: str = "", heads: dict | None = None) -> dict:
    """Return what is wrong with the trail.

    ``since`` is a day; earlier ones are not read, their last line is believed. ``heads`` is ``{host: {"n", "chain"}}`` as noted
    earlier, off the collector at best. The answer:

        {"status": "sound" | "altered", "hosts": {host: {"n", "chain", "lines", "files"}}, "removed": [records],
         "findings": [{"host", "file", "line" (from 1; 0: the file as such), "kind", "problem"}]}

    A kind is one of altered, removed, truncated, swapped, torn, inserted, rewritten, missing.
    """
    known = hosts(directory)
    witnesses: dict[str, list[dict]] = {}
    for seal in seals(directory):
        witnesses.setdefault(str(seal.get("host")), []).append({**seal, "by": f"the seal of {seal.get('sealed')}"})
    for host, head in (heads or {}).items():
        witnesses.setdefault(host, []).append({**head, "by": "the head noted earlier"})
    state = {host: read_state(directory, host) for host in known}
    for host, counted in state.items():
        if counted.get("n") and counted.get("chain"):
            point = {"n": counted["n"], "chain": counted["chain"], "by": "the receiver's own count"}
            witnesses.setdefault(host, []).append(point)

    answer: dict = {"status": "sound", "hosts": {}, "findings": [], "removed": []}
    for host in sorted({*known, *witnesses}):
        gone = removed(directory, host)
        answer["removed"] += gone
        summary, findings = verify_host(directory, host, since, gone, witnesses.get(host, []))
        answer["hosts"][host] = summary
        answer["findings"] += findings
    if answer["findings"]:
        answer["status"] = "altered"
    return answer


def verify_host(directory: str, host: str, since: str, gone: list[dict], witnesses: list[dict]) -> tuple[dict, list[dict]]:
    """Return (summary, findings) of one host."""
    findings: list[dict] = []

    def say(path: str, line: int, kind: str, problem: str) -> None:
        name = os.path.relpath(path, directory)
        again = kind == "swapped" and any((f["file"], f["kind"], f["problem"]) == (name, kind, problem) for f in findings)
        if len(findings) < FINDINGS_MAX and not again:  # of a whole file from elsewhere, its first line says enough
            findings.append({"host": host, "file": name, "line": line, "kind": kind, "problem": problem})

    at = os.path.join(directory, host)
    n, chain = 0, genesis(host)
    for record in gone:  # what was let go vouches for what is left
        if record.get("first_n") != n + 1 or record.get("before") != chain or record.get("host") != host:
            where = os.path.join(directory, ".removed", f"{host}.jsonl")
            say(where, 0, "altered", f"{record.get('file')} does not follow the record before it")
        n, chain = int(record.get("n", 0)), str(record.get("chain", ""))
    left = days(directory, host)
    lost_before = n
    for day, path in left:
        if day < since and day < max((other for other, _path in left), default=""):
            with contextlib.suppress(ValueError, OSError):
                last = last_line(path)
                n, chain = (last["n"], last["chain"]) if last else (n, chain)
            lost_before = n
    chosen, twice = [], {day for day, _path in left if [other for other, _p in left].count(day) > 1}
    for day, path in left:
        if day in twice and path.endswith(".gz"):
            if digest(path) != digest(path.removesuffix(".gz")):
                say(path, 0, "inserted", f"{day} is there twice, and differs")
            continue
        if not (day < since and day < left[-1][0]):
            chosen.append((day, path))
    for name in strangers(directory, host):
        say(os.path.join(at, name), 0, "inserted", "does not belong here")

    points: dict[int, list[dict]] = {}
    for witness in witnesses:
        points.setdefault(int(witness.get("n", 0)), []).append(witness)
    count, latest, final = 0, "", os.path.join(at, "")
    for day, path in chosen:
        number, final = 0, path
        try:
            for line in lines(path):
                number, count = number + 1, count + 1
                seen = facts(line)
                if seen is None and not line.endswith(b"\n"):
                    if not being_written(path, line):
                        say(path, number, "torn", "the line ends in its middle")
                        n, chain = n + 1, ""
                    continue
                if seen is None:
                    say(path, number, "altered", "is no line of a trail")
                    n += 1
                    chain = ""
                    continue
                if seen["host"] != host:
                    say(path, number, "swapped", f"belongs to {seen['host']}")
                if seen["received"][:10] != day:
                    say(path, number, "swapped", f"belongs to {seen['received'][:10]}")
                if seen["received"] < latest:
                    say(path, number, "altered", "was received before the line before it")
                latest = max(latest, seen["received"])
                if seen["n"] > n + 1:
                    say(path, number, "removed", f"before it, {said(n + 1, seen['n'] - 1)} missing")
                elif seen["n"] <= n:
                    say(path, number, "inserted", f"number {seen['n']} again, after {n}")
                elif chain and link(chain, line[: line.rindex(MARK)]) != seen["chain"]:
                    say(path, number, "altered", f"number {seen['n']} is not what was received, or the line before it is not")
                n, chain = seen["n"], seen["chain"]
                for witness in points.pop(n, []) if points else []:
                    if witness.get("chain") != chain:
                        say(path, number, "rewritten", f"number {n} has another chain than {witness['by']} says")
        except ValueError as exc:
            say(path, number + 1, "altered", str(exc))
            chain = ""
    ends = {int(record.get("n", 0)): str(record.get("chain", "")) for record in gone}
    for number, group in sorted(points.items()):
        for witness in group:
            if number > n:
                say(final, 0, "truncated", f"ends with number {n}, but {witness['by']} knows number {number}")
            elif number in ends and ends[number] != witness.get("chain"):
                say(final, 0, "rewritten", f"number {number} was let go with another chain than {witness['by']} says")
            elif number > lost_before:
                say(final, 0, "removed", f"number {number}, which {witness['by']} knows, is not there")
    return {"n": n, "chain": chain, "lines": count, "files": len(chosen)}, findings


def being_written(path: str, seen: bytes) -> bool:
    """Say whether a line that has no end yet gets one when the receiver is given half a second."""
    if path.endswith(".gz"):
        return False
    before = os.path.getsize(path)
    time.sleep(0.5)
    with open(path, "rb") as stream:
        stream.seek(max(before - len(seen), 0))
        return b"\n" in stream.read(16 << 20)


def said(first: int, last: int) -> str:
    """Say which numbers are meant."""
    return f"number {first} is" if first == last else f"numbers {first} to {last} are"


def digest(path: str) -> str:
    """Return the SHA-256 of a day's lines, packed or not; a damaged file has none."""
    total = hashlib.sha256()
    try:
        for line in lines(path):
            total.update(line)
    except ValueError:
        return ""
    return total.hexdigest()


def read_state(directory: str, host: str) -> dict:
    """Return the receiver's counters of a host; nothing if there are none."""
    try:
        with open(os.path.join(directory, ".state", f"{host}.json"), encoding="utf-8") as stream:
            data = json.load(stream)
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as exc:
        raise StoreError(f"{directory}/.state/{host}.json: {exc}") from exc
    return data if isinstance(data, dict) else {}


def head(directory: str, host: str) -> tuple[int, str]:
    """Return (n, chain) of a host's last complete line, or of what was let go last, or of nothing."""
    for _day, path in reversed(days(directory, host)):
        try:
            last = last_line(path)
        except ValueError:
            last = None
        if last:
            return last["n"], last["chain"]
    gone = removed(directory, host)
    return (int(gone[-1]["n"]), gone[-1]["chain"]) if gone else (0, genesis(host))


def all_heads(directory: str) -> dict:
    """Return ``{host: {"n", "chain"}}``."""
    return {host: dict(zip(("n", "chain"), head(directory, host), strict=True)) for host in hosts(directory)}


def noted_heads(path: str) -> dict:
    """Return the heads in a file: those that the verb heads prints, or a host's evidence of the role log_collector."""
    try:
        with open(path, encoding="utf-8") as stream:
            data = json.load(stream)
    except (OSError, ValueError) as exc:
        raise StoreError(f"{path}: {exc}") from exc
    for key in ("posture", "log_collector", "heads"):
        data = data[key] if isinstance(data, dict) and isinstance(data.get(key), dict) else data
    good = (
        isinstance(data, dict)
        and data
        and all(
            isinstance(head, dict) and isinstance(head.get("n"), int) and re.fullmatch(r"[0-9a-f]{64}", str(head.get("chain")))
            for head in data.values()
        )
    )
    if not good:
        raise StoreError(f"{path}: holds no heads")
    return data


# ---------------------------------------------------------------------------------------------------------------
# Reading


def cat(directory: str, host: str, since: str = "", until: str = "") -> Iterator[bytes]:
    """Yield a host's lines that were received from ``since`` up to, not including, ``until`` (days or times, UTC)."""
    if not HOST.fullmatch(host):
        raise StoreError(f"{host!r} is no host")
    done = set()
    for day, path in days(directory, host):
        if day in done or (since and day < since[:10]) or (until and day > until[:10]):
            continue
        done.add(day)
        whole = (not since or day > since[:10] or len(since) == 10) and (not until or day < until[:10])
        for line in lines(path):
            seen = None if whole else facts(line)
            received = "" if seen is None else seen["received"]
            if whole or ((not since or received >= since) and (not until or received < until)):
                yield line


# ---------------------------------------------------------------------------------------------------------------
# Keeping


def flags(path: str, wanted: int | None = None) -> int | None:
    """Return the append-only and immutable flags of a file, after setting them if some are wanted.

    None where the file system has no such flags, or this process may not set them.
    """
    handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        word = array.array("i", [0, 0])
        fcntl.ioctl(handle, FS_IOC_GETFLAGS, word, True)
        if wanted is not None and word[0] & (APPEND_ONLY | IMMUTABLE) != wanted:
            word[0] = word[0] & ~(APPEND_ONLY | IMMUTABLE) | wanted
            fcntl.ioctl(handle, FS_IOC_SETFLAGS, word, True)
        return word[0] & (APPEND_ONLY | IMMUTABLE)
    except OSError as exc:
        if exc.errno in (errno.ENOTTY, errno.EOPNOTSUPP, errno.EPERM, errno.EACCES, errno.EINVAL, errno.ENOSYS):
            return None
        raise
    finally:
        os.close(handle)


def repair(directory: str) -> list[dict]:
    """Cut off what a crash left of a last line, and return ``[{"host", "file", "bytes"}]``.

    A line that is torn was never acknowledged: that happens once it is on the disk in full. So its host sends it again.
    """
    done = []
    for host in hosts(directory):
        plain = [path for _day, path in days(directory, host) if not path.endswith(".gz")]
        for path in plain[-1:]:
            with open(path, "rb") as stream:
                size = stream.seek(0, os.SEEK_END)
                good = size
                while good:
                    begin = max(good - 65536, 0)
                    stream.seek(begin)
                    here = stream.read(good - begin).rfind(b"\n")
                    if here >= 0:
                        good = begin + here + 1
                        break
                    good = begin
            if good < size:
                before = flags(path)
                if before:
                    flags(path, 0)
                with open(path, "r+b") as stream:
                    stream.truncate(good)
                    os.fsync(stream.fileno())
                if before:
                    flags(path, before)
                done.append({"host": host, "file": os.path.basename(path), "bytes": size - good})
    return done


def close_day(path: str) -> str:
    """Pack a day that is over, and return the new path. May be interrupted at any moment and done again."""
    packed = path + ".gz"
    fresh = os.path.join(os.path.dirname(path), f".{os.path.basename(packed)}.new")
    if os.path.exists(packed) and digest(packed) != digest(path):
        raise StoreError(f"{packed}: is there already, and differs from {os.path.basename(path)}")
    if not os.path.exists(packed):
        total = hashlib.sha256()
        handle = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o640)
        with os.fdopen(handle, "wb") as target, gzip.GzipFile("", "wb", 6, target, mtime=0) as stream:
            for line in lines(path):
                total.update(line)
                stream.write(line)
        if digest(fresh) != total.hexdigest():
            raise StoreError(f"{fresh}: is not what was written")
        with open(fresh, "rb") as stream:
            os.fsync(stream.fileno())
        about = os.stat(path)
        os.utime(fresh, ns=(about.st_atime_ns, about.st_mtime_ns))
        os.replace(fresh, packed)
        flush_directory(os.path.dirname(path))
    flags(path, 0)
    os.unlink(path)
    flush_directory(os.path.dirname(path))
    return packed


def let_go(directory: str, host: str, day: str, path: str, retention_days: int, approver: str) -> dict:
    """Remove a day whose retention is over, after noting what it was, and return that record."""
    gone = removed(directory, host)
    n, chain = (int(gone[-1]["n"]), gone[-1]["chain"]) if gone else (0, genesis(host))
    first, last = None, None
    for line in lines(path):
        last = facts(line)
        first = first or last
        if last is None:
            raise StoreError(f"{path}: holds something that is no line; it stays until somebody has looked at it")
    record = {
        "removed": stamp(int(time.time() * 1e6)), "host": host, "file": f"{host}/{os.path.basename(path)}", "day": day,
        "first_n": first["n"] if first else n + 1, "n": last["n"] if last else n, "before": chain,
        "chain": last["chain"] if last else chain, "sha256": digest(path), "retention_days": retention_days, "approver": approver,
    }  # fmt: skip
    if record["first_n"] != n + 1:
        raise StoreError(f"{path}: begins with number {record['first_n']} where {n + 1} was expected; it stays")
    place = os.path.join(directory, ".removed")
    os.makedirs(place, mode=0o750, exist_ok=True)
    append(os.path.join(place, f"{host}.jsonl"), record)
    flags(path, 0)
    os.unlink(path)
    flush_directory(os.path.dirname(path))
    return record


def keep(directory: str, today: str, retention_days: int, approver: str, protect: bool, low_percent: int) -> list[str]:
    """Close days, guard files, let old days go, look at the space. Returns lines C(event=...) about what was done or is wrong."""
    told: list[str] = []
    oldest = (datetime.date.fromisoformat(today) - datetime.timedelta(days=retention_days)).isoformat()
    for host in hosts(directory):
        noted = {record.get("file"): record for record in removed(directory, host)}
        for day, path in days(directory, host):
            try:
                name = f"{host}/{os.path.basename(path)}"
                if name in noted:  # killed between the note and the removal
                    flags(path, 0)
                    os.unlink(path)
                elif day < oldest and retention_days and approver and path.endswith(".gz"):
                    record = let_go(directory, host, day, path, retention_days, approver)
                    told.append(
                        f"event=removed host={host} file={record['file']} first={record['first_n']} last={record['n']} "
                        f"chain={record['chain']} sha256={record['sha256']} retention_days={retention_days} "
                        f"approver={json.dumps(approver)}"
                    )
                elif day < today and not path.endswith(".gz"):
                    path = close_day(path)
                    told.append(f"event=closed host={host} file={host}/{os.path.basename(path)}")
                    if protect:
                        flags(path, IMMUTABLE)
                elif protect:
                    flags(path, IMMUTABLE if path.endswith(".gz") else APPEND_ONLY)
            except (StoreError, ValueError, OSError) as exc:
                told.append(f"event=keep_failed host={host} file={os.path.basename(path)} problem={json.dumps(str(exc))}")
    if protect:
        for place in (".seals", ".removed"):
            with contextlib.suppress(FileNotFoundError):
                for name in os.listdir(os.path.join(directory, place)):
                    if name.endswith(".jsonl"):
                        flags(os.path.join(directory, place, name), APPEND_ONLY)
    room = space(directory)
    if room["free_percent"] < low_percent:
        percent = f"{room['free_percent']:.1f}"
        told.append(f"event=capacity free_percent={percent} free_bytes={room['free']} limit_percent={low_percent}")
    return told


def space(directory: str) -> dict:
    """Return ``{"total", "free", "free_percent"}`` of the file system, in bytes, as others than root have it."""
    about = os.statvfs(directory)
    total, free = about.f_blocks * about.f_frsize, about.f_bavail * about.f_frsize
    return {"total": total, "free": free, "free_percent": 100.0 * free / total if total else 0.0}


# ---------------------------------------------------------------------------------------------------------------


def moment(text: str) -> str:
    """Return a day or a time as lines have them; a time may come with or without fractions and Z."""
    if text and not re.fullmatch(r"\d{4}-\d\d-\d\d(T\d\d:\d\d(:\d\d(\.\d{1,6})?)?Z?)?", text):
        raise argparse.ArgumentTypeError(f"{text!r} is neither a day (2026-11-25) nor a time (2026-11-25T01:02:03Z)")
    return text.rstrip("Z")


def main(argv: list[str] | None = None) -> int:
    """Do what is asked; see the top of this file."""
    parser = argparse.ArgumentParser(prog="trail_store", description="Verify, read and keep the trail of a collector.")
    verbs = parser.add_subparsers(dest="verb", required=True)
    made = {name: verbs.add_parser(name) for name in ("verify", "cat", "heads", "repair", "keep")}
    for verb in made.values():
        verb.add_argument("--directory", default=DIRECTORY)
    made["verify"].add_argument("--since", type=moment, default="")
    made["verify"].add_argument("--heads", default="")
    made["verify"].add_argument("--json", action="store_true")
    made["cat"].add_argument("--host", required=True)
    made["cat"].add_argument("--since", type=moment, default="")
    made["cat"].add_argument("--until", type=moment, default="")
    made["keep"].add_argument("--retention-days", type=int, required=True)
    made["keep"].add_argument("--approver", required=True)
    made["keep"].add_argument("--low-percent", type=int, required=True)
    made["keep"].add_argument("--protect", action="store_true")
    args = parser.parse_args(argv)
    try:
        return VERBS[args.verb](args)
    except BrokenPipeError:
        sys.stdout = None  # nobody reads any more
        return 0
    except (StoreError, ValueError, OSError) as exc:
        sys.stderr.write(f"event=trail_store_failed verb={args.verb} problem={json.dumps(str(exc))}\n")
        return 2


def say_verify(args: argparse.Namespace) -> int:
    """Verify, and say what was found."""
    answer = verify(args.directory, args.since[:10], noted_heads(args.heads) if args.heads else None)
    if args.json:
        sys.stdout.write(json.dumps(answer, indent=1) + "\n")
    else:
        for finding in answer["findings"]:
            sys.stdout.write("{file}:{line}: {kind}: {problem}\n".format(**finding))
        seen = sum(about["lines"] for about in answer["hosts"].values())
        found = len(answer["findings"])
        sys.stdout.write(f"{answer['status']}: {seen} lines of {len(answer['hosts'])} hosts, {found} findings\n")
    return 1 if answer["findings"] else 0


def say_cat(args: argparse.Namespace) -> int:
    """Write lines."""
    for line in cat(args.directory, args.host, args.since, args.until):
        sys.stdout.buffer.write(line)
    sys.stdout.buffer.flush()
    return 0


def say_heads(args: argparse.Namespace) -> int:
    """Write the heads."""
    sys.stdout.write(json.dumps(all_heads(args.directory), indent=1) + "\n")
    return 0


def say_repair(args: argparse.Namespace) -> int:
    """Repair, and say what was cut off."""
    for done in repair(args.directory):
        sys.stdout.write("event=repaired host={host} file={file} bytes={bytes}\n".format(**done))
    return 0


def say_keep(args: argparse.Namespace) -> int:
    """Keep, and say what was done; fail if something could not be."""
    today = time.strftime("%Y-%m-%d", time.gmtime())
    told = keep(args.directory, today, args.retention_days, args.approver, args.protect, args.low_percent)
    for line in told:
        sys.stdout.write(line + "\n")
    return 1 if any(line.startswith("event=keep_failed") for line in told) else 0


VERBS = {"verify": say_verify, "cat": say_cat, "heads": say_heads, "repair": say_repair, "keep": say_keep}

if __name__ == "__main__":
    raise SystemExit(main())
