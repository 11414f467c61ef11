# SPDX-License-Identifier: GPL-3.0-or-later
"""Images of disks as seen from outside: images.py fill|blank|scan IMAGE. Standard library only."""

from __future__ import annotations

import json
import os
import sys

CANARY = b"DISK-CANARY-7f3c9a-"
SECTOR, STEP = 512, 1 << 20


def fill(path: str) -> None:
    """Write another pattern into each sector."""
    with open(path, "r+b") as stream:
        for first in range(0, os.path.getsize(path), STEP):
            numbers = range(first, first + STEP, SECTOR)
            stream.write(b"".join((CANARY + b"%012d|" % number).ljust(SECTOR, b"\xa5") for number in numbers))


def blank(path: str) -> None:
    """Have nothing but zeros."""
    size = os.path.getsize(path)
    os.truncate(path, 0)
    os.truncate(path, size)


def scan(path: str) -> dict:
    """Return how many sectors hold the pattern, and how many hold anything but zeros; those of the first 16 MiB by themselves."""
    found = {"sectors": 0, "canaries": 0, "nonzero": 0, "nonzero_16m": 0}
    if not os.path.exists(path):  # a disk that is made inside
        return found
    with open(path, "rb") as stream:
        at = 0
        while data := stream.read(STEP):
            found["sectors"] += len(data) // SECTOR
            found["canaries"] += data.count(CANARY)
            if data.count(0) != len(data):
                dirty = sum(data[n : n + SECTOR].count(0) != SECTOR for n in range(0, len(data), SECTOR))
                found["nonzero"] += dirty
                found["nonzero_16m"] += dirty if at < 16 * STEP else 0
            at += len(data)
    return found


if __name__ == "__main__":
    verb, image = sys.argv[1:]
    if verb == "scan":
        sys.stdout.write(json.dumps(scan(image)))
    else:
        {"fill": fill, "blank": blank}[verb](image)
