# Copyright: (c) 2026, Bulwark contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Write one line that says that this host is there, and how its trail stands. Run every minute by bulwark-heartbeat.timer.

    event=heartbeat interval=60 unsent=<entries the collector does not have, or -> clock=<synchronised|unsynchronised|unknown>
    clock_offset_seconds=<seconds or -> audit_enabled=<0|1|2|-> audit_lost=<n|-> audit_pid=<n|-> boot=<boot id>

What cannot be looked at is a dash, or unknown: the line comes whatever is wrong, for it is missed when it does not.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys

STATES = ("/var/lib/systemd/journal-upload/state", "/var/lib/private/systemd/journal-upload/state")


def output(*command: str) -> str:
    """Return what a command prints, or nothing if it fails, is not there or takes longer than five seconds."""
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=5, stdin=subprocess.DEVNULL,
            env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C.UTF-8"},
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout if done.returncode == 0 else ""


def load(*paths: str) -> str:
    """Return the text of the first of these files that can be read."""
    for path in paths:
        try:
            with open(path, encoding="ascii") as stream:
                return stream.read()
        except (OSError, UnicodeDecodeError):
            continue
    return ""


def position(cursor: str) -> tuple[str, int, str] | None:
    """Return (sequence, number, boot) of an entry from its cursor."""
    found = re.search(r"s=([0-9a-f]+);i=([0-9a-f]+);b=([0-9a-f]+);", cursor)
    return (found.group(1), int(found.group(2), 16), found.group(3)) if found else None


def unsent(sent: str, last: str) -> str:
    """Return how many entries lie between what was acknowledged and the last one, or a dash when they cannot be compared.

    Within one boot all files of the journal are numbered by one counter, whatever their sequence is called.
    """
    begin, end = position(sent), position(last)
    same = begin and end and (begin[0] == end[0] or begin[2] == end[2])
    return str(end[1] - begin[1]) if same and end[1] >= begin[1] else "-"


def clock(tracking: str) -> tuple[str, str]:
    """Return (state, offset in seconds) of the clock from `chronyc -c tracking`."""
    fields = tracking.strip().split(",")
    if len(fields) < 14:
        return "unknown", "-"
    return "synchronised" if fields[13] == "Normal" else "unsynchronised", fields[4]


def audit(status: str) -> dict[str, str]:
    """Return enabled, lost and pid of `auditctl -s`; a dash for what it does not say."""
    found = dict(line.split(" ", 1) for line in status.splitlines() if re.fullmatch(r"\w+ -?\d+", line))
    return {key: found.get(key, "-") for key in ("enabled", "lost", "pid")}


def main() -> int:
    """Write the line."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--interval", type=int, required=True)
    args = parser.parse_args()
    last = output("journalctl", "--quiet", "--lines=1", "--output=export", "--output-fields=_BOOT_ID")
    state, offset = clock(output("chronyc", "-c", "tracking"))
    status = audit(output("auditctl", "-s"))
    sys.stdout.write(
        f"event=heartbeat interval={args.interval} unsent={unsent(load(*STATES), last)} "
        f"clock={state} clock_offset_seconds={offset} "
        f"audit_enabled={status['enabled']} audit_lost={status['lost']} audit_pid={status['pid']} "
        f"boot={load('/proc/sys/kernel/random/boot_id').strip().replace('-', '')}\n"
    )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
