#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-3.0-or-later
"""How fast media_sanitize overwrites and reads back, over dd with the same device, in one run: wipe.py prints its section.

Two disks of a guest: one that is slowed down to the rate of a small hard disk, and one as fast as the emulation goes, where the
programs' own work shows. dd runs before and after, with the same block size and past caches; its mean counts.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "tests" / "lab")]
import guests  # noqa: E402
from page import paragraph  # noqa: E402

SIZE = 256 << 20
DISKS = {"SLOW0001": ",throttling.bps-total=20000000", "FAST0002": ""}
PLAY = """
- hosts: all
  gather_facts: false
  tasks:
    - bulwark.hardening.media_sanitize:
      args: "{{ arguments }}"
      register: done
    - ansible.builtin.copy:
        content: "{{ done.certificate | to_json }}"
        dest: "{{ state }}/{{ arguments.serial }}.json"
      delegate_to: localhost
      become: false
"""


def dd(host: guests.Host, device: str, words: str) -> float:
    """Return the rate of dd in MB/s."""
    said = host.out(f"LC_ALL=C dd {words.format(device)} bs=4M 2>&1 | tail -n 1", 300)
    seconds = float(said.split(" s, ")[0].split(", ")[-1])
    return SIZE / seconds / 1e6


def wiping(state: Path) -> list[str]:
    """Return the section about the rate of sanitising."""
    guests.machines.build_guest_images(["debian13"])
    state.mkdir(parents=True, exist_ok=True)
    (state / "play.yml").write_text(PLAY)
    options = []
    for serial, slow in DISKS.items():
        image = state / f"{serial}.img"
        image.write_bytes(b"\xa5" * SIZE)
        # The guest's own disk takes the first free place, and the first place is /dev/vda: these stay away from it.
        options += ["-drive", f"file={image},if=none,id={serial},format=raw{slow}", "-device",
                    f"virtio-blk-pci,addr={0x10 + len(options):x},drive={serial},serial={serial}"]  # fmt: skip
    rows = []
    with guests.fleet(state / "guest") as fleet:
        host = fleet.add(fleet.start_guest("bench-wipe", "debian13", *options, kernel="generic"))
        for serial in DISKS:
            device = host.out(f"lsblk -dnpo NAME,SERIAL | awk '$2 == \"{serial}\" {{print $1}}'")
            write, read = "if=/dev/zero of={} oflag=direct conv=fsync count=64", "if={} of=/dev/null iflag=direct"
            before = dd(host, device, write), dd(host, device, read)
            arguments = {
                "device": device, "model": "virtio", "serial": serial, "size": SIZE, "confirm": f"erase {serial}",
                "category": "clear", "classification": "low", "disposition": "destroy", "retention_cleared_by": "nobody",
                "retention_cleared_on": "2026-01-01", "performed_by": {"name": "One"}, "validated_by": {"name": "Another"},
            }  # fmt: skip
            fleet.ansible("ansible-playbook", str(state / "play.yml"), arguments=arguments, state=str(state))
            rate = json.loads((state / f"{serial}.json").read_text())["sanitization"]["rate"]
            after = dd(host, device, write), dd(host, device, read)
            ours = rate["write_mb_s"], rate["read_mb_s"]
            rows.append((serial, *(mine / ((a + b) / 2) for mine, a, b in zip(ours, before, after, strict=True))))
    names = {"SLOW0001": "slowed down to 20 MB/s", "FAST0002": "as fast as emulation goes"}
    return [
        "## Rate of sanitising",
        "",
        paragraph(
            f"media_sanitize over dd (bs=4M, direct) with the same disk of {SIZE >> 20} MiB, in a Debian 13 guest, whose "
            "processor is emulated. Reading back compares every byte, which dd does not. Measured once, dd before and after."
        ),
        "",
        "| disk | overwriting, times dd | reading back, times dd |",
        "|---|--:|--:|",
        *(f"| {names[serial]} | {write:.2f} | {read:.2f} |" for serial, write, read in rows),
        "",
    ]


MEASURES = (wiping,)

if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as place:
        sys.stdout.write("\n".join(wiping(Path(place))) + "\n")
