#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the guard against malware costs: opening files on a guarded path, in a guest, and memory of the scanner.

MEASURES are those of bench.py's page; by itself it prints the section: antivirus.py. Signatures are a handful of the test's own:
the public databases need 1.3 GiB and cannot be had here, which is said.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "tests" / "lab"), str(Path(__file__).parent)]
import guests  # noqa: E402
from page import paragraph  # noqa: E402

SCALE = float(os.environ.get("BULWARK_BENCH_SCALE", "1"))
FILES = max(20, int(400 * SCALE))
TOOL = ROOT / "tests" / "antivirus" / "lab_signatures.py"

# Reads COUNT files of 16 KiB, each with a content of its own, one after the other, on both paths. What was read before is known
# to the scanner as clean. Prints seconds: of the first time, and of the best of three later ones.
COST = """
import json, os, sys, time
count = int(sys.argv[1])
places = {'open': '/opt/bench', 'guarded': '/srv/bench'}
for place in places.values():
    os.makedirs(place, exist_ok=True)
    for number in range(count):
        with open(f'{place}/{number}', 'wb') as stream:
            stream.write(os.urandom(16384))
time.sleep(3)
def read(place):
    begin = time.perf_counter()
    for number in range(count):
        with open(f'{place}/{number}', 'rb') as stream:
            stream.read()
    return time.perf_counter() - begin
first = {name: read(place) for name, place in places.items()}
again = {name: min(read(place) for _turn in range(3)) for name, place in places.items()}
print(json.dumps({'first': first, 'again': again}))
"""


def memory(host: guests.Host, unit: str) -> float:
    """Return the resident memory of a unit's process in MiB."""
    status = f"/proc/$(systemctl show -p MainPID --value {unit})/status"
    return int(host.out(f"sed -n 's/^VmRSS:[^0-9]*\\([0-9]*\\).*/\\1/p' {status}")) / 1024


def guarding(state: Path) -> list[str]:
    """Return the section about the cost of the guard, measured in a guest with role antivirus."""
    guests.machines.build_guest_images(["debian12"])
    with guests.fleet(state / "antivirus") as fleet:
        host = fleet.add(fleet.start_guest("bench-guard", "debian12"))
        host.out(f"cat >/opt/lab_signatures.py <<'END'\n{TOOL.read_text()}\nEND\n"
                 "mkdir -p /opt/signatures; python3 /opt/lab_signatures.py sign /opt/signatures Lab.TestFile ''\n"
                 "systemd-run --quiet --unit=signatures python3 /opt/lab_signatures.py serve /opt/signatures 8081")  # fmt: skip
        fleet.variables = {
            "antivirus_official": False,
            "antivirus_custom_urls": ["http://127.0.0.1:8081/lab.ndb"],
            "antivirus_scan_paths": ["/srv"],
        }
        words = ("--module-name", "ansible.builtin.include_role", "--args", "name=bulwark.hardening.antivirus")
        fleet.ansible("ansible", host.name, *words)
        host.out(f"cat >/root/cost.py <<'END'\n{COST}\nEND")
        cost = json.loads(host.out(f"python3 /root/cost.py {FILES}", 900))
        used = {unit: memory(host, unit) for unit in ("clamav-daemon.service", "bulwark-antivirus-onaccess.service")}
    ratios = {turn: times["guarded"] / times["open"] for turn, times in cost.items()}
    each = (cost["first"]["guarded"] - cost["first"]["open"]) / FILES * 1000
    return [
        "## Cost of the guard against malware",
        "",
        paragraph(
            f"{FILES} files of 16 KiB, opened and read one after the other in a Debian 12 guest, on a path that the guard "
            "watches, times the same on one that it does not. Several programs take turns at each opening, which the emulated "
            "processor makes dearer than it is. A job that opens few files and works on them long notices nothing of it."
        ),
        "",
        "| | guarded, times unguarded |",
        "|---|--:|",
        f"| a file that was never looked at | {ratios['first']:.0f} |",
        f"| one that was looked at before | {ratios['again']:.0f} |",
        "",
        f"That is {each:.1f} ms a file the first time. Memory: clamd {used['clamav-daemon.service']:.0f} MiB with a handful of "
        f"signatures (the public databases need about 1300), clamonacc {used['bulwark-antivirus-onaccess.service']:.0f} MiB.",
        "",
    ]


MEASURES = (guarding,)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as directory:
        for measure in MEASURES:
            print("\n".join(measure(Path(directory))))
