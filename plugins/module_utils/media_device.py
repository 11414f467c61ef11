# Copyright: (c) 2026, Bulwark contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Write zeros over a device and read them back, past every cache of the kernel, and believe nothing that was not read.

None of the common tools does all of this: keep off what is in use, go on after a power cut, and read everything back.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import mmap
import os
import struct
import time
from collections.abc import Callable

from ansible_collections.bulwark.hardening.plugins.module_utils.media import CHUNK, merged, sample, total

BLKGETSIZE64, BLKFLSBUF = 0x80081272, 0x1261
POISON = b"\xa5unread\x5a" * (CHUNK // 8)
ZEROS = bytes(CHUNK)
BLOCK = 4096
WITNESSES = 2048  # blocks remembered before a drive's own command, to see afterwards whether it did anything


class DeviceLies(Exception):
    """A device or a tool did not do what it said, or failed. The text says where."""


def open_alone(path: str, direct: bool = True) -> int:
    """Open a device for ourselves alone, past caches. Raises DeviceLies. While it is open nobody can mount it."""
    try:
        return os.open(path, os.O_RDWR | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW | (os.O_DIRECT if direct else 0))
    except OSError as exc:
        why = "somebody holds it" if exc.errno == errno.EBUSY else exc.strerror
        raise DeviceLies(f"{path}: {why}") from exc


def size_of(descriptor: int) -> int:
    """Return the size of a device, as the kernel says now."""
    return struct.unpack("=Q", fcntl.ioctl(descriptor, BLKGETSIZE64, bytes(8)))[0]


def forget_caches(descriptor: int) -> None:
    """Have the kernel forget what it remembers of a device, for whoever reads it by other ways."""
    fcntl.ioctl(descriptor, BLKFLSBUF, 0)


def overwrite(
    descriptor: int, regions: list[list[int]], done: int, report: Callable[[int], None], fsync: Callable = os.fsync
) -> None:
    """Write zeros over regions [start, end), from the ``done``-th byte of them on. Raises DeviceLies.

    ``report`` gets how many bytes of the regions are on the device for certain; it is called about every five seconds, and when
    all is done.
    """
    written, flushed = 0, time.monotonic()
    with mmap.mmap(-1, CHUNK) as buffer, memoryview(buffer) as view:  # aligned, as O_DIRECT wants it
        for start, end in regions:
            at = start + max(0, min(done - written, end - start))
            written += at - start
            while at < end:
                want = min(CHUNK, end - at)
                with view[:want] as part:
                    try:
                        got = os.pwrite(descriptor, part, at)
                    except OSError as exc:
                        raise DeviceLies(f"write error at byte {at}: {exc.strerror}") from exc
                if got != want:
                    raise DeviceLies(f"short write at byte {at}: {got} of {want} bytes")
                at, written = at + got, written + got
                if time.monotonic() - flushed >= 5:
                    flush(descriptor, fsync)
                    report(written)
                    flushed = time.monotonic()
    flush(descriptor, fsync)
    report(written)


def flush(descriptor: int, fsync: Callable) -> None:
    """Have the device itself write down what it took. Raises DeviceLies."""
    try:
        fsync(descriptor)
    except OSError as exc:
        raise DeviceLies(f"the device could not write down what it took: {exc.strerror}") from exc


class Reader:
    """Reads a device into a buffer that is spoilt before, so that a device that sends nothing is not taken for one of zeros."""

    def __init__(self, descriptor: int) -> None:
        """Read from an open device."""
        self.descriptor = descriptor
        self.buffer = mmap.mmap(-1, CHUNK)

    def read(self, at: int, want: int) -> bytes:
        """Return ``want`` bytes from ``at`` on. Raises DeviceLies."""
        self.buffer[:want] = POISON[:want]
        with memoryview(self.buffer) as view, view[:want] as part:
            try:
                got = os.preadv(self.descriptor, [part], at)
            except OSError as exc:
                raise DeviceLies(f"read error at byte {at}: {exc.strerror}") from exc
        if got != want:
            raise DeviceLies(f"short read at byte {at}: {got} of {want} bytes")
        return self.buffer[:want]

    def close(self) -> None:
        """Give the buffer back."""
        self.buffer.close()


def verify(descriptor: int, regions: list[list[int]], report: Callable[[int], None]) -> int:
    """Read regions [start, end) and return how many bytes that were; all must be zeros.

    Raises DeviceLies naming the first byte that is not.
    """
    reader = Reader(descriptor)
    seen, told = 0, time.monotonic()
    try:
        for start, end in regions:
            at = start
            while at < end:
                want = min(CHUNK, end - at)
                data = reader.read(at, want)
                if data != ZEROS[:want]:
                    first = at + len(data) - len(data.lstrip(b"\0"))
                    raise DeviceLies(
                        f"byte {first} (sector {first // 512}) is not what was written: something is left, or was never sent"
                    )
                at, seen = at + want, seen + want
                if time.monotonic() - told >= 5:
                    report(seen)
                    told = time.monotonic()
    finally:
        reader.close()
    report(seen)
    if seen != total(regions):
        raise DeviceLies(f"only {seen} of {total(regions)} bytes were read")
    return seen


def witnesses(descriptor: int, regions: list[list[int]], seed: int) -> list[list]:
    """Return [offset, SHA-256] of blocks spread over regions that hold anything but one byte over and over."""
    # Ranges, not places: a tenth of a large disk has hundreds of millions.
    ranges = [range(start + first, start + last - BLOCK + 1, BLOCK)
              for start, end in regions for first, last in sample(end - start, seed, BLOCK)]  # fmt: skip
    ranges = [places for places in ranges if places]
    step, skip = max(1, sum(map(len, ranges)) // WITNESSES), 0
    chosen = {at for places in ranges[:1] for at in places[:8]} | {at for places in ranges[-1:] for at in places[-8:]}
    for places in ranges:
        chosen |= set(places[skip::step])
        skip = (skip - len(places)) % step
    reader, found = Reader(descriptor), []
    try:
        for at in sorted(chosen):
            data = reader.read(at, BLOCK)
            if data.count(data[:1]) != BLOCK:
                found.append([at, hashlib.sha256(data).hexdigest()])
    finally:
        reader.close()
    return found


def unchanged(descriptor: int, before: list[list]) -> list[int]:
    """Return where the device still holds what it held before."""
    reader = Reader(descriptor)
    try:
        return [at for at, known in before if hashlib.sha256(reader.read(at, BLOCK)).hexdigest() == known]
    finally:
        reader.close()


def sampled(regions: list[list[int]], seed: int) -> list[list[int]]:
    """Return a representative sample of regions."""
    return merged([[start + first, start + last] for start, end in regions for first, last in sample(end - start, seed, BLOCK)])
