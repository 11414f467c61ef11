# Copyright: (c) 2026, Bulwark contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Whether what a host keeps on its disks is encrypted: mounts, swap, how, with which keys, and who could recover it.

What lies below a mount is followed in the kernel's own tables down to the disks. It counts as encrypted when every way down goes
through dm-crypt, whatever lies above or below it.
"""

from __future__ import annotations

import glob
import hashlib
import os
import re

from ansible_collections.bulwark.hardening.plugins.module_utils import luks
from ansible_collections.bulwark.hardening.plugins.module_utils.posture.common import (
    CannotObserve,
    file_facts,
    look,
    read,
    run,
)

CRYPT = re.compile(r"CRYPT-(LUKS1|LUKS2|PLAIN|LOOPAES|TCRYPT|BITLK|FVAULT2)-")
ELSEWHERE = ("nfs", "nfs4", "cifs", "smb3", "ceph", "9p", "virtiofs", "squashfs", "iso9660", "erofs")  # not our disk, or no data
SLEEP = ("hibernate.target", "hybrid-sleep.target", "suspend-then-hibernate.target")


def collect() -> dict:
    """Return how the host's data at rest is encrypted.

    own_disks   the disks are this host's; in a container they are its machine's
    mounts      [{mount, places, source, filesystem, encrypted}] of filesystems on disks; places: everywhere it is mounted
    swaps       [{name, encrypted}]
    crypts      [{name, swap: whether it is in use as swap, type, cipher, key_bits, slots, derivations}] of open volumes
    volumes     [{name, recipients, sealed, slot, sha256}] of volumes that the role made
    key_files   owner and mode of key files and where they lie; loose: those that others than root could read
    sleep       what systemd says of ways to sleep that write memory to the disk, by unit
    cryptsetup  whether it is installed
    """
    own = not os.statvfs("/sys").f_flag & os.ST_RDONLY
    parts = {
        "mounts": lambda: mounts(read("/proc/self/mountinfo")) if own else [],
        "swaps": lambda: swaps(read("/proc/swaps")) if own else [],
        "crypts": lambda: crypts(swapped(read("/proc/swaps"))) if own else [],
        "volumes": lambda: [volume(name) for name in luks.records()],
        "key_files": guarded,
        "loose": loose,
        "sleep": sleep,
    }
    data, unobserved = look(parts, luks.LuksError, OSError, ValueError, KeyError)
    return {"own_disks": own, "cryptsetup": os.path.exists("/usr/sbin/cryptsetup") or os.path.exists("/sbin/cryptsetup"),
            **data, "unobserved": unobserved}  # fmt: skip


def encrypted(number: str, root: str = "/sys") -> bool:
    """Return whether everything a block device ("major:minor") keeps goes through dm-crypt, or never leaves memory."""
    place = os.path.realpath(f"{root}/dev/block/{number}")
    if not os.path.isdir(place):
        raise CannotObserve(f"block device {number}: the kernel does not show it")
    if re.match(r"zram|ram", os.path.basename(place)):
        behind = read(f"{place}/backing_dev").strip() if os.path.exists(f"{place}/backing_dev") else "none"
        return behind == "none" or encrypted(number_of(behind), root)  # zram may write what is idle to a disk
    if os.path.exists(f"{place}/dm/uuid") and CRYPT.match(read(f"{place}/dm/uuid")):
        return True
    if os.path.exists(f"{place}/partition"):
        return encrypted(read(f"{os.path.dirname(place)}/dev").strip(), root)
    if os.path.exists(f"{place}/loop/backing_file"):
        behind = os.stat(read(f"{place}/loop/backing_file").strip()).st_dev
        return encrypted(f"{os.major(behind)}:{os.minor(behind)}", root)
    below = sorted(glob.glob(f"{place}/slaves/*/dev"))
    return bool(below) and all(encrypted(read(path).strip(), root) for path in below)


def number_of(path: str) -> str:
    """Return "major:minor" of a block device, or of what a file lies on."""
    about = os.stat(path)
    number = about.st_rdev or about.st_dev
    return f"{os.major(number)}:{os.minor(number)}"


def together(name: str, root: str = "/sys") -> list[str]:
    """Return "major:minor" of all devices of the btrfs that one of them belongs to; nothing if it is none."""
    for place in glob.glob(f"{root}/fs/btrfs/*/devices"):
        if name in os.listdir(place):
            return [read(path).strip() for path in sorted(glob.glob(f"{place}/*/dev"))]
    return []


def plain(word: str) -> str:
    """Return a word of the kernel's tables, in which blanks are written as octal numbers."""
    return re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal.group(1), 8)), word)


def mounts(table: str) -> list[dict]:
    """Return the filesystems on disks out of /proc/self/mountinfo, each device once, by the first place it is mounted."""
    found: dict[str, dict] = {}
    for line in table.splitlines():
        before, _dash, after = line.partition(" - ")
        number, place = before.split()[2], before.split()[4]
        kind, source = after.split()[:2]
        if number in found:
            found[number]["places"].append(plain(place))
            continue
        if kind in ELSEWHERE:
            continue
        if kind == "zfs":  # its own encryption is not looked at
            found[number] = {"mount": place, "places": [place], "source": source, "filesystem": kind, "encrypted": False}
            continue
        devices = [number]
        if number.startswith("0:"):  # btrfs and the like have no device of their own; others are in memory
            if not source.startswith("/dev/"):
                continue
            if not os.path.exists(source):
                raise CannotObserve(f"{plain(place)}: nobody knows on what it lies: {source}")
            devices = together(os.path.basename(os.path.realpath(source))) or [number_of(source)]
        found[number] = {
            "mount": plain(place), "places": [plain(place)], "source": source, "filesystem": kind,
            "encrypted": all(map(encrypted, devices)),
        }  # fmt: skip
    return sorted(found.values(), key=lambda one: one["mount"])


def swapped(table: str) -> list[str]:
    """Return the names of the swap in use out of /proc/swaps."""
    return [plain(line.split()[0]) for line in table.splitlines()[1:]]


def swaps(table: str) -> list[dict]:
    """Return the swap in use out of /proc/swaps, and whether it is encrypted."""
    return [{"name": name, "encrypted": encrypted(number_of(name))} for name in swapped(table)]


def crypts(swap: list[str], root: str = "/sys") -> list[dict]:
    """Return how open volumes are encrypted; ``swap``: names of what is in use as swap."""
    found, numbers = [], {number_of(name) for name in swap}
    for path in sorted(glob.glob(f"{root}/class/block/dm-*/dm")):
        if CRYPT.match(read(f"{path}/uuid")):
            name, number = read(f"{path}/name").strip(), read(f"{os.path.dirname(path)}/dev").strip()
            found.append({"name": name, "swap": number in numbers, **status(run(["cryptsetup", "status", name]))})
    return found


def status(text: str) -> dict:
    """Return {type, cipher, key_bits, slots, derivations} of what `cryptsetup status` says, and of the LUKS2 header below."""
    said = {key.strip(): value.strip() for key, _colon, value in (line.partition(":") for line in text.splitlines()[1:])}
    about = {"type": said.get("type", ""), "cipher": said.get("cipher", ""), "key_bits": int(said.get("keysize", "0").split()[0]),
             "slots": 0, "derivations": []}  # fmt: skip
    if about["type"] == "LUKS2":
        slots = luks.slots(said["device"])
        about["slots"] = len(slots)
        about["derivations"] = sorted({slot.get("kdf", {}).get("type", "") for slot in slots.values()})
    return about


def volume(name: str) -> dict:
    """Return how a volume that the role made could be recovered: sealed for whom, and whether only that key opens it."""
    record = luks.read_record(name)
    known, path = record.get("recovery", {}), luks.escrow_path(name)
    content = b""
    if os.path.exists(path):
        with open(path, "rb") as stream:
            content = stream.read()
    device = f"/dev/disk/by-uuid/{record['uuid']}"
    slots = luks.slots(device) if os.path.exists(device) else {}
    return {
        "name": name,
        "recipients": known.get("recipients", []),
        "sealed": bool(content) and hashlib.sha256(content).hexdigest() == known.get("sha256"),
        "slot": luks.alone(record, slots),
        "sha256": known.get("sha256", ""),
    }


def key_files() -> list[str]:
    """Return the key files of volumes: the role's own, and those that /etc/crypttab names."""
    paths = sorted(glob.glob(f"{luks.KEYS}/*"))
    if os.path.exists("/etc/crypttab"):
        lines = [line.split() for line in read("/etc/crypttab").splitlines() if not line.startswith("#")]
        paths += [words[2] for words in lines if len(words) > 2 and os.path.isfile(words[2])]
    return list(dict.fromkeys(paths))


def guarded() -> list[dict]:
    """Return owner, group and mode of key files, and of the directory of ours."""
    return [file_facts(path) for path in [luks.KEYS, luks.RECORDS, *key_files()] if os.path.exists(path)]


def loose() -> list[str]:
    """Return the key files that somebody else than root could read or change."""
    return [path for path in key_files() if os.stat(path).st_uid != 0 or os.stat(path).st_mode & 0o077]


def sleep() -> dict[str, str]:
    """Return what systemd says of the ways to sleep that write memory to the disk."""
    shown = run(["systemctl", "show", "-p", "Id,LoadState", *SLEEP])
    units = [dict(line.split("=", 1) for line in block.splitlines() if "=" in line) for block in shown.strip().split("\n\n")]
    states = {one["Id"]: one["LoadState"] for one in units}
    return {unit: states[unit] for unit in SLEEP}  # a unit that is not spoken of is a KeyError: not looked at
