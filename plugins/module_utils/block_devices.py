# Copyright: (c) 2026, Bulwark contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a block device is, what it is used for, and why it must not be touched. Nothing here writes to any device.

    facts = look("/dev/sdb")                                 what can be seen
    objections(facts, {"model": ..., "serial": ..., "size": ...})   reasons not to touch it, none if it is the one that is meant

No single source sees every use of a device: the kernel's own lock (an exclusive open) misses volume groups that are not active,
loop devices, and programs that merely have it open; lists of mounts miss other mount namespaces. So all of them are asked, and
each can object.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import glob
import json
import os
import re
import stat
import struct
import subprocess
from collections.abc import Callable, Iterable, Iterator

COLUMNS = (
    "NAME,KNAME,PATH,TYPE,MODEL,SERIAL,WWN,SIZE,TRAN,ROTA,RM,RO,LOG-SEC,PHY-SEC,DISC-MAX,MAJ:MIN,MOUNTPOINTS,FSTYPE,LABEL,UUID,"
    "PARTUUID,PARTLABEL"
)
SYSTEM_MOUNTS = ("/", "/boot", "/boot/efi", "/efi", "/usr", "/var", "[SWAP]")
LOOP_GET_STATUS64 = 0x4C05
LOOP_INFO = 232  # bytes of struct loop_info64 (loop.h); its third number is the device behind, as the kernel writes numbers
ENVIRONMENT = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C.UTF-8", "HOME": "/"}
# Signatures that say: part of something larger, which may be asleep now.
MEMBERS = {
    "LVM2_member": "a volume group (take it out with vgreduce or vgremove, then pvremove)",
    "LVM1_member": "a volume group (take it out with vgreduce or vgremove, then pvremove)",
    "linux_raid_member": "an array (take it out with mdadm --remove, then mdadm --zero-superblock)",
    "zfs_member": "a pool (take it out with zpool, then zpool labelclear)",
    "bcache": "a cache (take it out with bcache-super-show and its detach)",
    "drbd": "a replicated device (take it down with drbdadm, then wipe-md)",
    "ceph_bluestore": "a storage cluster (take it out there first)",
    "VMFS_volume_member": "a storage pool (take it out there first)",
}


class DeviceError(Exception):
    """A device cannot be looked at; the text says why. What cannot be looked at is not touched."""


def run(argv: list[str], allowed: Iterable[int] = (0,)) -> str:
    """Return the output of a command that only reads. Raises DeviceError when it is missing, fails or takes too long."""
    try:
        done = subprocess.run(
            argv, check=False, stdin=subprocess.DEVNULL, capture_output=True, timeout=60, env=ENVIRONMENT, cwd="/"
        )
    except (OSError, subprocess.TimeoutExpired) as exc:
        raise DeviceError(f"{argv[0]}: {exc}") from exc
    if done.returncode not in allowed:
        said = done.stderr.decode(errors="replace").strip().splitlines()
        raise DeviceError(f"{' '.join(argv)}: exit {done.returncode}{': ' + said[-1] if said else ''}")
    return done.stdout.decode(errors="replace")


def look(path: str, claim: bool = True) -> dict:
    """Return what a block device is and what it is used for. Raises DeviceError.

    ``claim``: also ask the kernel for the device alone, for a moment. False for whoever holds it already.

    path, name     /dev/sdb, sdb, whatever link was given; device: "major:minor"
    kind           disk, part, loop, crypt, lvm, raid1, ...
    model, serial  as lsblk shows them; of a partition, those of its disk. A virtio disk has no model: it is called "virtio"
    size           bytes; sector, physical_sector: bytes
    transport      virtio, sata, nvme, usb, scsi, ...; rotational: it says how fast it turns; removable, read_only; discards: it
                   takes them
    above          [{name, kind, mounts}] partitions and whatever lies on it, at any depth
    mounts         [{name, at}] of it and of everything above; [SWAP] is one, too
    holders        names of device-mapper and md devices that lie on it
    signatures     [{name, type, usage, label, uuid}] of filesystems, LUKS, volume groups, ... on it and on its partitions, as
                   blkid finds them on the device itself
    loops          loop devices behind which it lies
    twins          other disks of its model, serial number and size: other paths to it, or what cannot be told from it
    opened         ["pid 123 (qemu)"] programs that have it or a partition of it open
    expected       lines of /etc/fstab and /etc/crypttab that name it or what is on it
    claimed        the kernel says that somebody holds it; None if it was not asked
    system         the running system lies on it
    """
    real = os.path.realpath(path)
    try:
        about = os.stat(real)
    except OSError as exc:
        raise DeviceError(f"{path}: {exc.strerror}") from exc
    if not stat.S_ISBLK(about.st_mode):
        raise DeviceError(f"{path} is no block device")
    with contextlib.suppress(DeviceError):  # what udev is still looking at would be taken for used, and lsblk asks udev
        run(["udevadm", "settle", "--timeout=20"])
    tree = first(json.loads(run(["lsblk", "--json", "--bytes", "--output", COLUMNS, real])), path)
    disk = tree
    if tree["type"] == "part":
        own = run(["lsblk", "--noheadings", "--nodeps", "--output", "PKNAME", real]).strip()
        disk = first(json.loads(run(["lsblk", "--json", "--bytes", "--nodeps", "--output", COLUMNS, f"/dev/{own}"])), own)
    facts = describe(tree, disk)
    facts["rotational"] = facts["rotational"] and rotates(disk["kname"])
    parts = [real, *(f"/dev/{node['kname']}" for node in tree.get("children", []) if node["type"] == "part")]
    numbers = {os.stat(part).st_rdev for part in parts if os.path.exists(part)}
    facts["signatures"] = [signature for part in parts for signature in signatures(part)]
    facts["loops"] = loops(numbers)
    facts["twins"] = twins(disk, json.loads(run(["lsblk", "--json", "--bytes", "--nodeps", "--output", COLUMNS]))["blockdevices"])
    facts["opened"] = openers(numbers)
    facts["expected"] = expected(names(tree), [(place, text(place)) for place in ("/etc/fstab", "/etc/crypttab")])
    facts["claimed"] = claimed(real) if claim else None
    facts["system"] = any(mount["at"] in SYSTEM_MOUNTS for mount in facts["mounts"])
    return facts


def objections(facts: dict, declared: dict, blank: bool = False, kinds: tuple[str, ...] = ("disk",)) -> list[str]:
    """Return the reasons not to touch a device, in words; none if it is the one that is meant, and idle.

    ``declared`` holds model, serial and size (bytes), each exactly as look() has them. ``blank``: whoever asks is about to put
    something new on it, so a filesystem or anything else on it is a reason, too. ``kinds``: which kinds of devices will do.
    """
    found = []
    for key in ("model", "serial", "size"):
        wanted, seen = declared.get(key), facts[key]
        if wanted in (None, "", 0):
            found.append(f"its {key} was not declared; all of model, serial and size must be")
        elif str(wanted) != str(seen):
            found.append(f"unexpected device: {key} {wanted!r} was declared, and it is {seen!r}")
    if not facts["serial"]:
        found.append("it has no serial number, so nothing tells it from another")
    for twin in facts["twins"]:  # a lock on one path to a disk keeps nobody from using another
        found.append(f"{twin} has the same model, serial number and size: another path to it, or nothing tells the two apart")
    if facts["kind"] not in kinds:
        found.append(f"it is a {facts['kind']}, not a {' or '.join(kinds)}")
    if facts["read_only"]:
        found.append("it is read-only")
    if facts["system"]:
        found.append("the running system lies on it")
    for mount in facts["mounts"]:
        used = "used as swap" if mount["at"] == "[SWAP]" else f"mounted at {mount['at']}"
        found.append(f"{mount['name']} is {used}")
    for holder in facts["holders"]:
        found.append(f"it is held by {holder}")
    for signature in facts["signatures"]:
        if signature["type"] in MEMBERS:
            found.append(f"{signature['name']} belongs to {MEMBERS[signature['type']]}, active or not")
        elif signature["usage"] == "raid":  # firmware's, and whatever else libblkid knows to be a part of something
            found.append(f"{signature['name']} belongs to something larger, active or not: {signature['type']} (take it out)")
        elif blank:
            found.append(f"there is something on {signature['name']}: {signature['type']}")
    if blank:
        parts = [node["name"] for node in facts["above"] if node["kind"] == "part"]
        if parts and facts["kind"] == "disk":
            found.append(f"it has partitions: {', '.join(parts)}")
    found += [f"it lies behind {loop}" for loop in facts["loops"]]
    found += [f"it is open in {opener}" for opener in facts["opened"]]
    found += [f"the system expects it: {line}" for line in facts["expected"]]
    if facts["claimed"]:
        found.append("the kernel says that somebody holds it")
    return found


def describe(tree: dict, disk: dict) -> dict:
    """Return what lsblk's entry of a device, and that of its disk, say about it."""
    above = list(nodes(tree.get("children", [])))
    mounts = [
        {"name": node["name"], "at": at} for node in [tree, *above] for at in node.get("mountpoints") or [] if at
    ]  # fmt: skip
    transport = disk.get("tran") or ("virtio" if re.fullmatch(r"vd[a-z]+", disk["kname"]) else "")
    return {
        "path": tree["path"],
        "name": tree["kname"],
        "device": tree["maj:min"].strip(),
        "kind": tree["type"],
        "model": " ".join((disk.get("model") or "").split()) or ("virtio" if transport == "virtio" else ""),
        "serial": (disk.get("serial") or "").strip(),
        "wwn": disk.get("wwn") or "",
        "size": int(tree["size"]),
        "sector": int(tree["log-sec"]),
        "physical_sector": int(tree["phy-sec"]),
        "transport": transport or "scsi",
        "rotational": truth(disk["rota"]),
        "removable": truth(disk["rm"]),
        "read_only": truth(tree["ro"]),
        "discards": int(tree.get("disc-max") or 0) > 0,
        "above": [{"name": node["name"], "kind": node["type"], "mounts": [at for at in node.get("mountpoints") or [] if at]}
                  for node in above],
        "mounts": mounts,
        "holders": sorted({node["name"] for node in above if node["type"] != "part"}),
    }  # fmt: skip


def rotates(name: str, root: str = "/sys") -> bool:
    """Return whether a disk says how fast it turns (SCSI's page B1, which the kernel makes for drives of ATA, too).

    The kernel takes whatever says nothing for a disk that turns: volumes of arrays and of hypervisors, flash or not.
    """
    try:
        with open(f"{root}/block/{name}/device/vpd_pgb1", "rb") as stream:
            page = stream.read(6)
    except OSError:
        return False
    return len(page) == 6 and int.from_bytes(page[4:6], "big") > 1  # 0: it does not say; 1: it does not turn


def truth(value: object) -> bool:
    """Return a column of yes and no, which lsblk writes in several ways."""
    return value in (True, 1, "1")


def first(found: dict, path: str) -> dict:
    """Return the entry of the one device that was asked for."""
    if len(found.get("blockdevices", [])) != 1:
        raise DeviceError(f"{path}: lsblk does not show it")
    return found["blockdevices"][0]


def nodes(children: list[dict]) -> Iterator[dict]:
    """Yield everything above a device, at any depth, each once."""
    seen = set()
    waiting = list(children)
    while waiting:
        node = waiting.pop(0)
        if node["kname"] not in seen:
            seen.add(node["kname"])
            yield node
            waiting += node.get("children", [])


def signatures(path: str) -> list[dict]:
    """Return what is on a device, read from the device itself and not from anybody's memory of it. Raises DeviceError.

    wipefs shows all that blkid would find, and does not stop where two contradict each other, as blkid does.
    """
    shown = json.loads(run(["wipefs", "--json", "--no-act", "--output", "TYPE,USAGE,LABEL,UUID", path]) or "{}")
    found: list[dict] = []
    for entry in shown.get("signatures", []):
        item = {"name": os.path.basename(path), **{key: entry.get(key) or "" for key in ("type", "usage", "label", "uuid")}}
        if item not in found:
            found.append(item)
    return found


def twins(disk: dict, listed: list[dict]) -> list[str]:
    """Return the names of other disks with the same model, serial number and size, given what lsblk says of it and of all."""
    mine = describe(disk, disk)
    others = [describe(node, node) for node in listed if node["type"] == "disk" and node["kname"] != disk["kname"]]
    keys = ("model", "serial", "size")
    return [other["name"] for other in others if mine["serial"] and all(other[key] == mine[key] for key in keys)]


def claimed(path: str) -> bool:
    """Return whether the kernel refuses to give a device to us alone: mounted anywhere, in an array, swapped to, ..."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_EXCL | os.O_CLOEXEC)
    except OSError as exc:
        if exc.errno == errno.EBUSY:
            return True
        raise DeviceError(f"{path}: {exc.strerror}") from exc
    os.close(descriptor)
    return False


def loops(numbers: set[int]) -> list[str]:
    """Return the loop devices that have one of these devices (st_rdev) behind them. Raises DeviceError."""
    found = []
    for place in sorted(glob.glob("/sys/block/loop*/loop")):
        name = place.split("/")[3]
        try:
            descriptor = os.open(f"/dev/{name}", os.O_RDONLY | os.O_CLOEXEC)
            try:
                info = fcntl.ioctl(descriptor, LOOP_GET_STATUS64, bytes(LOOP_INFO))
            finally:
                os.close(descriptor)
        except OSError as exc:
            if exc.errno == errno.ENXIO:  # nothing behind it any more
                continue
            raise DeviceError(f"/dev/{name}: {exc.strerror}") from exc
        behind = struct.unpack_from("=QQQ", info)[2]
        if kernel_number(behind) in numbers:
            found.append(name)
    return found


def kernel_number(number: int) -> int:
    """Return a device's number as stat() has it, from how the kernel writes it."""
    return os.makedev((number & 0xFFF00) >> 8, (number & 0xFF) | ((number >> 12) & 0xFFF00))


def openers(numbers: set[int]) -> list[str]:
    """Return which programs, but for ourselves, have one of these devices (st_rdev) open. udev, that only looks, is none."""
    found = []
    for place in sorted(glob.glob("/proc/[0-9]*/fd")):
        pid = int(place.split("/")[2])
        name = text(f"/proc/{pid}/comm").strip()
        if pid == os.getpid() or name in ("udev-worker", "(udev-worker)", "systemd-udevd"):
            continue
        try:
            handles = os.listdir(place)
        except OSError:  # it has ended
            continue
        for handle in handles:
            try:
                about = os.stat(f"{place}/{handle}")
            except OSError:
                continue
            if stat.S_ISBLK(about.st_mode) and about.st_rdev in numbers:
                found.append(f"pid {pid} ({name})")
                break
    return found


def names(tree: dict) -> dict[str, str]:
    """Return by what tables could name a device or something on it, and which device that is."""
    found = {}
    for node in [tree, *nodes(tree.get("children", []))]:
        found[node["path"]] = found[f"/dev/{node['kname']}"] = node["name"]
        for key in ("uuid", "label", "partuuid", "partlabel"):
            if node.get(key):
                found[f"{key.upper()}={node[key]}"] = node["name"]
    return found


def expected(known: dict[str, str], tables: list[tuple[str, str]], resolve: Callable = os.path.realpath) -> list[str]:
    """Return the lines of tables (path, text) that name a device; ``known`` is what names() returns.

    The device is the first word of a line of fstab, and the second of one of crypttab.
    """
    found = []
    for place, written in tables:
        for line in written.splitlines():
            words = line.split()
            turn = 1 if place.endswith("crypttab") else 0
            if len(words) <= turn or words[0].startswith("#"):
                continue
            word = words[turn].replace('"', "")
            real = resolve(word) if word.startswith("/dev/") else word
            if word in known or real in known:
                found.append(f"{place}: {' '.join(words)}")
    return found


def text(path: str) -> str:
    """Return the text of a file, nothing if there is none or it has just gone."""
    try:
        with open(path, encoding="utf-8", errors="replace") as stream:
            return stream.read()
    except (FileNotFoundError, ProcessLookupError):
        return ""
