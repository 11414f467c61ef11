# Copyright: (c) 2026, Bulwark contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Receive what systemd-journal-upload of other hosts sends, and write it down. Run by bulwark-trail.service.

    trail_receive CONFIGURATION

The configuration is JSON: {"listen", "port", "directory", "hosts": [names], "authority", "certificate", "key", "crl": paths,
"reserve_bytes", "seal_seconds"}. Who sends is who the certificate says; nothing that is sent changes that. An upload is answered
with 200 once all of it is on the disk; until then its host keeps it and sends it again. What comes again is known by its cursor,
not written twice, and counted.

    400 malformed   403 unknown host   404, 405, 415 no upload   429 too many connections of one host
    503 numbers are missing: send it once more   507 no space

Threads, one a connection, with blocking reads and time limits: a collector serves some dozens of hosts, and a thread that waits
costs little. What a connection may hold in memory is bounded, whatever is sent.
"""

from __future__ import annotations

import base64
import contextlib
import errno
import fcntl
import hashlib
import json
import mmap
import os
import re
import select
import signal
import socket
import ssl
import struct
import sys
import threading
import time
from collections.abc import Iterator

try:
    from ansible_collections.bulwark.hardening.plugins.module_utils import trail_store as store
except ImportError:  # on the collector the store's program lies beside this one
    import importlib.machinery
    import importlib.util

    _loader = importlib.machinery.SourceFileLoader("trail_store", os.path.join(os.path.dirname(__file__), "trail_store"))
    _spec = importlib.util.spec_from_loader("trail_store", _loader)
    store = importlib.util.module_from_spec(_spec)
    _loader.exec_module(store)

HEAD_BYTES = 16384  # of a request's head
FIELD_BYTES = 262144  # kept of one field; of a larger one its beginning, size and SHA-256
ENTRY_BYTES = 1 << 20  # kept of one entry; of fields beyond that, size and SHA-256
ENTRY_FIELDS = 2048  # journald itself allows 1024
WIRE_BYTES = 1 << 30  # one entry as it comes; journald's own limit is 768 MiB a field
BATCH_LINES, BATCH_BYTES = 2000, 2 << 20  # what is written and flushed at once
SEEN_SLOTS = 1 << 18  # how many of a host's last entries are known again; 8 bytes each
HELLO_SECONDS, HEAD_SECONDS, BODY_SECONDS, IDLE_SECONDS = 10, 20, 60, 300
STRANGERS_MAX, CONNECTIONS_MAX, HOST_CONNECTIONS_MAX = 64, 512, 4
GAPS_KEPT, SEQUENCES_KEPT = 100, 16
# A number that did not come is asked for, and then counts as missing, after so many entries of the host or so many seconds. An
# uploader is back after five.
HOLE_ENTRIES, HOLE_SECONDS = 64, 30
FIELD_NAME = re.compile(rb"[A-Za-z0-9_]{1,64}")
CURSOR = re.compile(r"s=([0-9a-f]{1,32});i=([0-9a-f]{1,16});[a-z0-9=;]{1,160}")
REASONS = {200: "OK", 400: "Bad Request", 403: "Forbidden", 404: "Not Found", 405: "Method Not Allowed",
           415: "Unsupported Media Type", 429: "Too Many Requests", 503: "Service Unavailable",
           507: "Insufficient Storage"}  # fmt: skip


class Refused(Exception):
    """A request is answered with a status other than 200, and the connection ends. ``args`` is (status, event, problem)."""


class Gone(Exception):
    """The other side went away or was too slow; there is nobody to answer."""


class Log:
    """Lines for the journal. The same kind of line about the same peer comes once a minute, with how often it was held back."""

    def __init__(self, seconds: float = 60) -> None:
        self.seconds, self.lock = seconds, threading.Lock()
        self.last: dict[tuple[str, str], list] = {}

    def say(self, event: str, peer: str, **more: object) -> None:
        """Write a line, unless one like it was written just now."""
        now = time.monotonic()
        with self.lock:
            if len(self.last) > 4096:
                self.last.clear()
            about = self.last.setdefault((event, peer), [-self.seconds, 0])
            if now - about[0] < self.seconds:
                about[1] += 1
                return
            held, about[0], about[1] = about[1], now, 0
        words = [f"event={event}", f"peer={peer}"] + [f"{key}={plain(value)}" for key, value in more.items()]
        sys.stderr.write(" ".join(words + [f"held_back={held}"] * bool(held)) + "\n")
        sys.stderr.flush()


def plain(value: object) -> str:
    """Return a value as one word, or as a text in quotes; nothing that somebody sent can end the line."""
    text = str(value)[:300]
    return text if re.fullmatch(r"[A-Za-z0-9_.:/+-]+", text) else json.dumps(text)


# ---------------------------------------------------------------------------------------------------------------
# What comes over the line


class Reader:
    """A connection's bytes, read with a time limit and never more than asked for."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection, self.kept = connection, b""

    def more(self, seconds: float) -> None:
        """Wait for some bytes. Raises Gone."""
        self.connection.settimeout(max(seconds, 0.01))
        try:
            data = self.connection.recv(65536)
        except (OSError, ValueError) as exc:
            raise Gone(type(exc).__name__) from exc
        if not data:
            raise Gone("closed")
        self.kept += data

    def line(self, limit: int, seconds: float) -> bytes:
        """Return a line without its end; the whole of it must come within so many seconds."""
        end = time.monotonic() + seconds
        while (here := self.kept.find(b"\n")) < 0:
            if len(self.kept) > limit:
                raise Refused(400, "malformed", "a line of the request is too long")
            self.more(end - time.monotonic())
        if here > limit:
            raise Refused(400, "malformed", "a line of the request is too long")
        found, self.kept = self.kept[:here], self.kept[here + 1 :]
        return found.removesuffix(b"\r")

    def some(self, most: int, seconds: float) -> bytes:
        """Return at least one byte, at most so many."""
        if not self.kept:
            self.more(seconds)
        found, self.kept = self.kept[:most], self.kept[most:]
        return found


def request_head(reader: Reader, wait: float) -> tuple[str, str, dict[str, str]]:
    """Return (method, path, headers by lower-case name) of a request; wait that long for it to begin."""
    if not reader.kept:
        reader.more(wait)
    end, size = time.monotonic() + HEAD_SECONDS, 0
    words = reader.line(HEAD_BYTES, HEAD_SECONDS).decode("latin-1").split(" ")
    if len(words) != 3 or words[2] not in ("HTTP/1.1", "HTTP/1.0"):
        raise Refused(400, "malformed", "no request of HTTP/1.1")
    headers: dict[str, str] = {}
    while line := reader.line(HEAD_BYTES, end - time.monotonic()):
        size += len(line)
        name, colon, value = line.decode("latin-1").partition(":")
        if size > HEAD_BYTES or not colon or not re.fullmatch(r"[A-Za-z0-9-]+", name) or name.lower() in headers:
            raise Refused(400, "malformed", "a header is malformed, repeated or too long")
        headers[name.lower()] = value.strip()
    return words[0], words[1], headers


def body(reader: Reader, headers: dict[str, str]) -> Iterator[bytes]:
    """Yield the bytes of a request's body as they come, and leave the reader behind its end."""
    coding, length = headers.get("transfer-encoding", "").lower(), headers.get("content-length", "")
    if coding == "chunked" and not length:
        while True:
            text = reader.line(64, BODY_SECONDS).partition(b";")[0].strip()
            if not re.fullmatch(rb"[0-9A-Fa-f]{1,8}", text):
                raise Refused(400, "malformed", "a chunk without a size")
            left = int(text, 16)
            if not left:
                while reader.line(HEAD_BYTES, BODY_SECONDS):
                    pass
                return
            while left:
                part = reader.some(left, BODY_SECONDS)
                left -= len(part)
                yield part
            if reader.line(2, BODY_SECONDS):
                raise Refused(400, "malformed", "a chunk longer than its size")
    elif not coding and re.fullmatch(r"[0-9]{1,15}", length):
        left = int(length)
        while left:
            part = reader.some(left, BODY_SECONDS)
            left -= len(part)
            yield part
    else:
        raise Refused(400, "malformed", "neither chunked nor of a known length")


class Parts:
    """Bytes that come in parts, read as journald's export format needs them."""

    def __init__(self, parts: Iterator[bytes]) -> None:
        self.parts, self.kept, self.at = parts, b"", 0

    def fill(self) -> bool:
        """Fetch another part; say whether there was one."""
        part = next(self.parts, b"")
        self.kept, self.at = self.kept[self.at :] + part, 0
        return bool(part)

    def line(self, limit: int) -> tuple[bytes, bool] | None:
        """Return (a line without its end, whether it was whole), or None at the end. What exceeds the limit stays where it is."""
        looked = self.at
        while (here := self.kept.find(b"\n", looked)) < 0:
            if len(self.kept) - self.at > limit:
                break
            looked = len(self.kept) - self.at
            if not self.fill():
                if self.kept:
                    raise Refused(400, "malformed", "the upload ends in the middle of an entry")
                return None
        if here < 0 or here - self.at > limit:
            found = self.kept[self.at : self.at + limit]
            self.at += limit
            return found, False
        found = self.kept[self.at : here]
        self.at = here + 1
        return found, True

    def exactly(self, size: int) -> Iterator[bytes]:
        """Yield so many bytes in parts."""
        while size:
            if self.at >= len(self.kept) and not self.fill():
                raise Refused(400, "malformed", "the upload ends in the middle of an entry")
            part = self.kept[self.at : self.at + size]
            self.at += len(part)
            size -= len(part)
            yield part

    def rest_of_line(self) -> Iterator[bytes]:
        """Yield what is left of a line that is too long to hold."""
        while True:
            found, whole = self.line(65536) or (b"", True)
            yield found
            if whole:
                return


def entries(parts: Parts) -> Iterator[dict[str, object]]:
    """Yield the entries of an upload in journald's export format, each as fields by name; a field that repeats is a list.

    A field that is too large to keep is kept as ``{"base64": beginning, "length": bytes, "sha256": of all of it}``: so nobody
    who may write to a journal can stop it from being forwarded by writing something that is too large.
    """
    fields: dict[str, object] = {}
    count, kept, wire = 0, 0, 0
    while (found := parts.line(FIELD_BYTES)) is not None:
        line, whole = found
        if not line and whole:
            if fields:
                yield fields
            fields, count, kept, wire = {}, 0, 0, 0
            continue
        name, equals, start = line.partition(b"=")
        if not FIELD_NAME.fullmatch(name) or (not equals and not whole):
            raise Refused(400, "malformed", "a field without a proper name")
        budget = min(FIELD_BYTES, max(ENTRY_BYTES - kept, 0))
        if equals and whole and len(start) <= budget:
            value: object = text_or_bytes(start)
            size = len(start)
        else:
            if equals:
                size, value = large(parts.rest_of_line() if not whole else (), start, budget)
            else:
                size = struct.unpack("<Q", b"".join(parts.exactly(8)))[0]
                if size > WIRE_BYTES:
                    raise Refused(400, "malformed", "a field of more than a gibibyte")
                size, value = large(parts.exactly(size), b"", budget)
                if b"".join(parts.exactly(1)) != b"\n":
                    raise Refused(400, "malformed", "a field longer than its size")
        count, kept, wire = count + 1, kept + min(size, budget), wire + size
        if count > ENTRY_FIELDS or wire > WIRE_BYTES:
            raise Refused(400, "malformed", "an entry with too many fields, or too large")
        key = name.decode("ascii")
        if key in fields:
            before = fields[key]
            fields[key] = [*before, value] if isinstance(before, list) else [before, value]
        else:
            fields[key] = value
    if fields:
        raise Refused(400, "malformed", "the upload ends in the middle of an entry")


def large(parts: Iterator[bytes], start: bytes, budget: int) -> tuple[int, object]:
    """Return (size, value) of a field that comes in parts; at most the budget is held."""
    total, size, held = hashlib.sha256(start), len(start), start[:budget]
    for part in parts:
        total.update(part)
        size += len(part)
        held += part[: budget - len(held)] if len(held) < budget else b""
    if size <= budget:
        return size, text_or_bytes(held)
    return size, {"base64": base64.b64encode(held).decode(), "length": size, "sha256": total.hexdigest()}


def text_or_bytes(value: bytes) -> object:
    """Return a value as text, or as ``{"base64": ...}`` if it is none."""
    try:
        return value.decode("utf-8")
    except UnicodeDecodeError:
        return {"base64": base64.b64encode(value).decode()}


# ---------------------------------------------------------------------------------------------------------------
# What is written


class Host:
    """One host's part of the store: where its chain stands, and which of its last entries are known."""

    def __init__(self, directory: str, name: str, log: Log, reserve: int = 0) -> None:
        self.directory, self.name, self.log, self.reserve = directory, name, log, reserve
        self.lock = threading.Lock()
        self.sealed = 0
        self.connections = 0
        self.counters = {"duplicates": 0, "accepted": 0, "missing": 0, "gap_count": 0, "gaps": [], "sequences": {}, "holes": [],
                         **store.read_state(directory, name)}  # fmt: skip
        self.n, self.chain = store.head(directory, name)
        known = store.days(directory, name)
        last = store.last_line(known[-1][1]) if known else None
        self.received = last["received"] if last else ""
        if int(self.counters.get("n", 0)) > self.n:
            # Somebody cut the end off. Numbers go on from where they were, so that verification names what is missing.
            log.say("lines_missing", name, in_store=self.n, counted=self.counters["n"])
            self.n, self.chain = int(self.counters["n"]), str(self.counters["chain"])
        self.seen = self._seen(known)

    def _seen(self, known: list[tuple[str, str]]) -> mmap.mmap:
        """Return the table of entries that are known: for each of the last sequence numbers a digest of its cursor."""
        path = os.path.join(self.directory, ".state", f"{self.name}.seen")
        fresh = not os.path.exists(path)
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o640)
        os.ftruncate(handle, SEEN_SLOTS * 8)
        table = mmap.mmap(handle, SEEN_SLOTS * 8)
        os.close(handle)
        plain_files = [path for _day, path in known if not path.endswith(".gz")]
        for path in plain_files[-1:]:  # what was written just before a crash may not be in the table yet
            with open(path, "rb") as stream:
                size = stream.seek(0, os.SEEK_END)
                stream.seek(0 if fresh else max(size - 4 * BATCH_BYTES, 0))
                for line in stream:
                    about = store.facts(line)
                    if about and (where := slot(about["cursor"])):
                        table[where[0] : where[0] + 8] = where[1]
        return table

    def add(self, batch: list[tuple[str, int, dict]]) -> None:
        """Write down (cursor, time in microseconds, fields) of entries, flush them to the disk, and only then know them.

        Raises Refused with 507 when there is no room; nothing of the batch is in the store then.
        """
        with self.lock:
            fresh, again = [], 0
            here: set[bytes] = set()
            for cursor, happened, fields in batch:
                place, mark = slot(cursor)
                if self.seen[place : place + 8] == mark or mark in here:
                    again += 1
                    continue
                here.add(mark)
                fresh.append((cursor, happened, fields, place, mark))
            self.counters["duplicates"] += again
            if fresh:
                self._write(fresh)
            self._note()
            self._ask(late=True)

    def finish(self) -> None:
        """Have an upload that leaves holes sent again instead of acknowledging it. Raises Refused."""
        with self.lock:
            self._ask(late=False)

    def _ask(self, late: bool) -> None:
        """Refuse to go on when numbers are missing that were not asked for yet: all, or those that are ``late``.

        An uploader that reads while journald begins a new file may pass over what lies between (systemd 257 does). Refused, it
        starts anew from what was acknowledged last, with all files before it. What it has not got then either is gone.
        """
        missing = [hole for hole in self.counters["holes"] if not hole["asked"] and (self._overdue(hole) or not late)]
        for hole in missing:
            hole.update(asked=True, since=time.time(), entries=0)
        if missing:
            self._note()
            numbers = sum(hole["before"] - hole["after"] - 1 for hole in missing)
            raise Refused(503, "asked_again", f"{numbers} entries after {missing[0]['after']} did not come")

    def _write(self, fresh: list[tuple[str, int, dict, int, bytes]]) -> None:
        received = max(store.stamp(time.time_ns() // 1000), self.received)  # a clock set back does not turn the order round
        if self.received and received[:10] != self.received[:10]:
            self.seal(self.received[:10])
        n, chain, made = self.n, self.chain, []
        for cursor, happened, fields, _place, _mark in fresh:
            n += 1
            line, chain = store.make_line(n, received, store.stamp(happened), self.name, cursor, fields, chain)
            made.append(line)
        data = b"".join(made)
        room = os.statvfs(self.directory)
        if room.f_bavail * room.f_frsize < self.reserve + len(data):
            raise Refused(507, "no_space", f"{room.f_bavail * room.f_frsize} bytes left, {self.reserve} are kept free")
        self._append(os.path.join(self.directory, self.name, f"{received[:10]}.jsonl"), data)
        self.n, self.chain, self.received = n, chain, received
        for cursor, _happened, _fields, place, mark in fresh:
            self.seen[place : place + 8] = mark
            self._follow(cursor, received)
        self.counters["accepted"] += len(fresh)
        self.counters["cursor"] = fresh[-1][0]

    def _append(self, path: str, data: bytes) -> None:
        """Add bytes to a file and flush them, all or none of them."""
        directory = os.path.dirname(path)
        try:
            if not os.path.isdir(directory):
                os.mkdir(directory, 0o750)
                store.flush_directory(self.directory)
            fresh = not os.path.exists(path)
            handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o640)
        except OSError as exc:
            if exc.errno not in NO_ROOM:
                stop(f"{path}: {exc.strerror}")
            raise Refused(507, "no_space", exc.strerror) from exc
        try:
            before, written = os.fstat(handle).st_size, 0
            try:
                while written < len(data):
                    written += os.write(handle, data[written:])
                os.fsync(handle)
                if fresh:
                    store.flush_directory(directory)
            except OSError as exc:
                try:
                    os.ftruncate(handle, before)
                    os.fsync(handle)
                except OSError as other:
                    # What lies there is unknown, or cannot be taken back: only a new start, which repairs, may go on.
                    stop(f"{path}: {other.strerror}")
                if exc.errno not in NO_ROOM:
                    stop(f"{path}: {exc.strerror}")
                raise Refused(507, "no_space", exc.strerror) from exc
        finally:
            os.close(handle)

    def _follow(self, cursor: str, received: str) -> None:
        """Note a hole in the host's own numbers: entries that its journal dropped, or that somebody took out of it."""
        sequence, number = CURSOR.fullmatch(cursor).group(1), int(CURSOR.fullmatch(cursor).group(2), 16)
        sequences, latest = self.counters["sequences"], self.counters.get("number", 0)
        # journald may number the files of the system and of its users by one counter and yet give them names of their own;
        # entries of the same moment then come in any order. So there is one count, and a hole is one only if it stays.
        holes = self.counters["holes"]
        if sequence not in sequences and sequences:
            self._gap({"sequence": sequence, "new": True, "first": number, "received": received})
            if not latest - HOLE_ENTRIES < number <= latest + HOLE_ENTRIES:  # a journal that begins anew
                latest = number
                self._settle(holes)
        if latest and number > latest + 1:
            hole = {"sequence": sequence, "after": latest, "before": number, "received": received}
            holes.append({**hole, "since": time.time(), "entries": 0, "asked": False})
        for hole in [hole for hole in holes if hole["after"] < number < hole["before"]]:
            holes.remove(hole)
            rest = [{**hole, **more, "since": time.time(), "entries": 0} for more in ({"before": number}, {"after": number})]
            holes += [part for part in rest if part["before"] > part["after"] + 1]
        for hole in holes:
            hole["entries"] += 1
        self._settle([hole for hole in holes if hole["asked"] and self._overdue(hole)])
        sequences.pop(sequence, None)
        sequences[sequence] = number
        self.counters["number"] = max(number, latest)
        while len(sequences) > SEQUENCES_KEPT:
            sequences.pop(next(iter(sequences)))

    @staticmethod
    def _overdue(hole: dict) -> bool:
        """Return whether a hole has been waited for long enough."""
        return hole["entries"] > HOLE_ENTRIES or not 0 <= time.time() - hole["since"] <= HOLE_SECONDS

    def _settle(self, holes: list[dict]) -> None:
        """Note holes that nothing will fill any more."""
        for hole in list(holes):
            self.counters["holes"].remove(hole)
            missing = hole["before"] - hole["after"] - 1
            self.counters["missing"] += missing
            about = {key: value for key, value in hole.items() if key not in ("since", "entries", "asked")}
            self._gap({**about, "missing": missing})

    def _gap(self, gap: dict) -> None:
        """Note a hole or a new sequence, and say so."""
        self.counters["gap_count"] += 1
        self.counters["gaps"] = [*self.counters["gaps"], gap][-GAPS_KEPT:]
        kind = "new_sequence" if gap.get("new") else "gap"
        self.log.say(kind, self.name, **{key: value for key, value in gap.items() if key not in ("new", "received")})

    def _note(self) -> None:
        """Keep the counters. They follow from the store but for the duplicates, so nothing waits for the disk here."""
        self.counters.update(n=self.n, chain=self.chain, received=self.received)
        path = os.path.join(self.directory, ".state", f"{self.name}.json")
        with contextlib.suppress(OSError):
            with open(path + ".new", "w", encoding="ascii", opener=lambda p, f: os.open(p, f | os.O_NOFOLLOW, 0o640)) as stream:
                json.dump(self.counters, stream)
            os.replace(path + ".new", path)

    def seal(self, day: str = "") -> None:
        """Note the head beside the trail, if it moved since."""
        if self.n and self.n != self.sealed:
            day = day or self.received[:10]
            now = store.stamp(time.time_ns() // 1000)
            record = {"sealed": now, "host": self.name, "n": self.n, "chain": self.chain, "file": f"{self.name}/{day}.jsonl"}
            store.append(os.path.join(self.directory, ".seals", f"{now[:10]}.jsonl"), record)
            self.sealed = self.n


NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def slot(cursor: str) -> tuple[int, bytes] | None:
    """Return (offset in the table, mark) of a cursor, or None if it is none."""
    found = CURSOR.fullmatch(cursor)
    if not found:
        return None
    mark = hashlib.blake2b(cursor.encode("ascii"), digest_size=8).digest()
    return int(found.group(2), 16) % SEEN_SLOTS * 8, mark if any(mark) else b"\1" * 8


def stop(problem: str) -> None:
    """End at once, without another byte written. systemd starts the receiver again, after repairing the store."""
    sys.stderr.write(f"event=store_failed problem={json.dumps(problem)}\n")
    sys.stderr.flush()
    os._exit(70)


def checked(fields: dict[str, object]) -> tuple[str, int, dict]:
    """Return (cursor, time in microseconds, fields to keep) of an entry. Raises Refused."""
    cursor, happened = fields.pop("__CURSOR", None), fields.get("__REALTIME_TIMESTAMP")
    if not isinstance(cursor, str) or not CURSOR.fullmatch(cursor):
        raise Refused(400, "malformed", "an entry without a cursor")
    if not isinstance(happened, str) or not re.fullmatch(r"[0-9]{1,16}", happened):
        raise Refused(400, "malformed", "an entry without a time")
    return cursor, int(happened), fields


# ---------------------------------------------------------------------------------------------------------------
# Who comes


class Receiver:
    """The hosts that may deliver, and the door."""

    def __init__(self, configuration: dict) -> None:
        self.about, self.log = configuration, Log()
        self.directory = configuration["directory"]
        for place in (".state", ".seals"):
            os.makedirs(os.path.join(self.directory, place), mode=0o750, exist_ok=True)
        self.alone = os.open(os.path.join(self.directory, ".state", ".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o640)
        fcntl.flock(self.alone, fcntl.LOCK_EX | fcntl.LOCK_NB)
        self.hosts: dict[str, Host] = {}
        self.lock = threading.Lock()
        self.strangers = self.connections = 0
        self.read, self.context = self.changed(), self.make_context()

    def changed(self) -> tuple:
        """Return what tells whether the revocation list or a certificate was changed."""
        return tuple(os.stat(self.about[key]).st_mtime_ns for key in ("authority", "certificate", "crl"))

    def make_context(self) -> ssl.SSLContext:
        """Return how connections are made: certificates of our authority only, none that it revoked, TLS 1.2 and 1.3."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.set_ciphers("ECDHE+AESGCM:ECDHE+CHACHA20")
        context.options |= ssl.OP_NO_TICKET | ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_COMPRESSION
        context.num_tickets = 0  # each connection shows its certificate anew
        context.load_cert_chain(self.about["certificate"], self.about["key"])
        context.load_verify_locations(self.about["authority"])
        context.load_verify_locations(self.about["crl"])
        context.verify_flags |= ssl.VERIFY_CRL_CHECK_LEAF | ssl.VERIFY_X509_STRICT
        context.verify_mode = ssl.CERT_REQUIRED
        return context

    def refresh(self) -> None:
        """Read certificates and revocation list anew if they were changed. What cannot be read leaves the former in force."""
        try:
            now = self.changed()
            if now != self.read:
                self.context, self.read = self.make_context(), now
                sys.stderr.write("event=certificates_read\n")
                sys.stderr.flush()
        except (OSError, ssl.SSLError) as exc:
            self.log.say("certificates_failed", "-", problem=exc)

    def host(self, name: str) -> Host:
        """Return a host's part of the store."""
        with self.lock:
            if name not in self.hosts:
                self.hosts[name] = Host(self.directory, name, self.log, self.about["reserve_bytes"])
            return self.hosts[name]

    def serve(self) -> None:
        """Let hosts in, for ever."""
        family = socket.AF_INET6 if ":" in self.about["listen"] else socket.AF_INET
        with socket.create_server(
            (self.about["listen"], self.about["port"]), family=family, backlog=128, dualstack_ipv6=self.about["listen"] == "::"
        ) as door:
            threading.Thread(target=self.look_after, daemon=True).start()
            notify("READY=1")
            while True:
                connection, address = door.accept()
                peer = address[0].removeprefix("::ffff:")
                with self.lock:
                    full = self.strangers >= STRANGERS_MAX or self.connections >= CONNECTIONS_MAX
                    self.strangers += not full
                    self.connections += not full
                if full:
                    connection.close()
                    self.log.say("too_many", peer)
                    continue
                threading.Thread(target=self.meet, args=(connection, peer), daemon=True).start()

    def look_after(self) -> None:
        """Every few seconds: certificates, watchdog; every few minutes: seals."""
        sealed = time.monotonic()
        while True:
            time.sleep(2)
            notify("WATCHDOG=1")
            self.refresh()
            if time.monotonic() - sealed >= self.about["seal_seconds"]:
                sealed = time.monotonic()
                for host in list(self.hosts.values()):
                    try:
                        with host.lock:
                            host.seal()
                    except OSError as exc:
                        self.log.say("seal_failed", host.name, problem=exc)

    def meet(self, connection: socket.socket, peer: str) -> None:
        """See who comes, and serve them. Whatever goes wrong ends this connection only."""
        stranger, secure, host = True, None, None
        try:
            connection.settimeout(HELLO_SECONDS)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            read = self.read
            secure = self.context.wrap_socket(connection, server_side=True, do_handshake_on_connect=False)
            shake_hands(secure, HELLO_SECONDS)
            name = common_name(secure.getpeercert())
            with self.lock:
                self.strangers -= 1
            stranger = False
            reader = Reader(secure)
            if name not in self.about["hosts"] or not store.HOST.fullmatch(name):
                self.log.say("unknown_host", peer, name=name)
                answer(secure, 403, "this host is not declared")
                return
            host = self.host(name)
            with self.lock:
                host.connections += 1
            if host.connections > HOST_CONNECTIONS_MAX:
                self.log.say("too_many", name)
                answer(secure, 429, "too many connections")
                return
            while read == self.read:  # when a list of revoked certificates came, everybody shows theirs anew
                self.one(reader, secure, host)
        except Gone:
            pass
        except Refused as exc:
            status, event, problem = exc.args
            self.log.say(event, host.name if host else peer, status=status, problem=problem)
            if secure:
                answer(secure, status, problem)
        except (ssl.SSLError, OSError) as exc:
            if stranger:
                self.log.say("refused", peer, problem=getattr(exc, "reason", "") or exc)
        except Exception as exc:  # a mistake of ours must not take the door down; the host sends again
            self.log.say("failed", host.name if host else peer, problem=f"{type(exc).__name__}: {exc}")
            if secure:
                answer(secure, 400, "this could not be received")
        finally:
            with self.lock:
                self.strangers -= stranger
                self.connections -= 1
                if host:
                    host.connections -= 1
            with contextlib.suppress(OSError):
                (secure or connection).close()

    def one(self, reader: Reader, secure: ssl.SSLSocket, host: Host) -> None:
        """Receive one upload and answer once it is on the disk."""
        method, path, headers = request_head(reader, IDLE_SECONDS)
        if path != "/upload":
            raise Refused(404, "malformed", "there is only /upload")
        if method != "POST":
            raise Refused(405, "malformed", "there is only POST")
        if headers.get("content-type", "") != "application/vnd.fdo.journal" or headers.get("content-encoding"):
            raise Refused(415, "malformed", "no journal in export format")
        if headers.get("expect", "").lower() == "100-continue":
            secure.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
        batch, size = [], 0
        try:
            for fields in entries(Parts(body(reader, headers))):
                batch.append(checked(fields))
                size += sum(len(value) if isinstance(value, str) else 400 for value in fields.values()) + 32 * len(fields)
                size += sum(len(value.get("base64", "")) for value in fields.values() if isinstance(value, dict))
                if len(batch) >= BATCH_LINES or size >= BATCH_BYTES:
                    host.add(batch)
                    batch, size = [], 0
        except (Refused, Gone):
            if batch:  # what came in full is good; it comes again, and is known then
                with contextlib.suppress(Refused):
                    host.add(batch)
            raise
        if batch:
            host.add(batch)
        host.finish()
        secure.settimeout(BODY_SECONDS)
        secure.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 3\r\n\r\nOK\n")


def shake_hands(secure: ssl.SSLSocket, seconds: float) -> None:
    """Do the handshake, all of it within so many seconds, however slowly bytes trickle in."""
    end = time.monotonic() + seconds
    secure.setblocking(False)
    while True:
        reading, writing = [], []
        try:
            secure.do_handshake()
            break
        except ssl.SSLWantReadError:
            reading = [secure]
        except ssl.SSLWantWriteError:
            writing = [secure]
        ready = select.select(reading, writing, [], max(end - time.monotonic(), 0))
        if not (ready[0] or ready[1]) or time.monotonic() >= end:
            raise TimeoutError("too slow")
    secure.setblocking(True)


def common_name(certificate: dict | None) -> str:
    """Return the one common name of a certificate that was verified, or nothing."""
    names = [value for part in (certificate or {}).get("subject", ()) for key, value in part if key == "commonName"]
    return names[0] if len(names) == 1 else ""


def answer(secure: ssl.SSLSocket, status: int, text: str) -> None:
    """Answer with a refusal, and take in a little of what still comes, so that the other side gets to read it."""
    said = (text + "\n").encode("ascii", "replace")
    head = f"HTTP/1.1 {status} {REASONS[status]}\r\nContent-Type: text/plain\r\nContent-Length: {len(said)}\r\n"
    head += "Connection: close\r\n\r\n"
    with contextlib.suppress(OSError, ValueError):
        secure.settimeout(2)
        secure.sendall(head.encode("ascii") + said)
        end = time.monotonic() + 2
        secure.settimeout(0.5)
        while time.monotonic() < end and secure.recv(65536):
            pass


def notify(text: str) -> None:
    """Tell systemd something, if it listens."""
    path = os.environ.get("NOTIFY_SOCKET", "")
    if path:
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as line:
            line.connect("\0" + path[1:] if path.startswith("@") else path)
            line.send(text.encode())


def main(argv: list[str]) -> int:
    """Receive until stopped."""
    try:
        with open(argv[0], encoding="utf-8") as stream:
            configuration = json.load(stream)
        configuration["key"] = configuration["key"].replace("%d", os.environ.get("CREDENTIALS_DIRECTORY", "."))
        signal.signal(signal.SIGTERM, lambda *_: os._exit(0))  # what was acknowledged is on the disk, what was not comes again
        threading.stack_size(1 << 20)
        Receiver(configuration).serve()
    except (OSError, ValueError, KeyError, ssl.SSLError, store.StoreError) as exc:
        sys.stderr.write(f"event=receiver_failed problem={json.dumps(f'{type(exc).__name__}: {exc}')}\n")
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
