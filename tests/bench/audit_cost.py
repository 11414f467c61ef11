#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the audit rules cost a job that does nothing but system calls: run on a host, it prints one line of JSON.

    audit_cost.py [ROUNDS]

Two jobs, each a process of a login (auid is set, so that the rules for people are looked at): *quiet* does what no rule records
(stat, open, read and close of a file of its own), *recorded* what one does (chmod of it). trail.py runs it in a guest without and
with the role's rules; the ratios are what counts. Seconds are of the job alone, the best of RUNS.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from pathlib import Path

RUNS = 5


def quiet(path: str, rounds: int) -> None:
    """Four calls a round, none of them recorded."""
    for _turn in range(rounds):
        os.stat(path)
        descriptor = os.open(path, os.O_RDONLY)
        os.read(descriptor, 64)
        os.close(descriptor)


def recorded(path: str, rounds: int) -> None:
    """One call a round, each of them recorded where people's changes of permissions are."""
    for turn in range(rounds):
        os.chmod(path, 0o600 if turn % 2 else 0o640)


def seconds(job, path: str, rounds: int) -> float:
    """Return how long the fastest of RUNS runs took."""
    best = float("inf")
    for _turn in range(RUNS):
        begin = time.perf_counter()
        job(path, rounds)
        best = min(best, time.perf_counter() - begin)
    return best


def main() -> None:
    """Measure both jobs."""
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 20000
    with tempfile.NamedTemporaryFile("w") as stream:
        stream.write("x" * 64)
        stream.flush()
        result = {"quiet": seconds(quiet, stream.name, rounds), "recorded": seconds(recorded, stream.name, rounds // 20)}
    loginuid = int(Path("/proc/self/loginuid").read_text())
    print(json.dumps({"runs": RUNS, "calls": rounds // 20 * RUNS, "loginuid": loginuid, **result}))


if __name__ == "__main__":
    main()
