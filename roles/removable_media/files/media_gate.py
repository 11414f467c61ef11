# Managed by bulwark.hardening (role removable_media). Changes made here are overwritten.
# Copyright: (c) 2026, Bulwark contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Behind USBGuard: cut off removable storage that is not permitted, no longer permitted, or not encrypted, and tell the journal.

    media_gate seen             by udev, for each USB device that comes or goes: one line in the journal
    media_gate disk             by udev, for each block device below a USB device, also whenever what is on it changes
    media_gate sweep            by a timer: cut off what is plugged in and no longer permitted
    media_gate load MODULE      by modprobe: load a storage driver if any device is permitted today
    media_gate judge USAGE TYPE say what would be done with a permitted device that holds this; touches nothing

USBGuard decides by rules, which know no dates and nothing of what is on a device. Permissions are in PERMITS. What udev knows of
a device comes as environment variables. Cutting off is the kernel's: a device that is not authorised is there for nobody, root
included.
"""

from __future__ import annotations

import datetime
import glob
import json
import os
import re
import subprocess
import sys
import syslog

PERMITS = "/etc/bulwark/removable_media/permits.json"
SYS = "/sys"
SEEN = "/run/bulwark-media"  # what is plugged in, a file for each port, and what was accepted there, <port>.<block device>
AGAIN = 5  # seconds until a blank device is looked at once more
STORAGE = "08"  # USB's class of interfaces
ENVIRONMENT = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C.UTF-8"}


def tell(event: str, **about: str) -> None:
    """Write one line to the journal. What a device says of itself may hold anything, so it is quoted."""
    words = [f"event={event}", *(f"{key}={json.dumps(value)}" for key, value in about.items())]
    syslog.openlog("bulwark-media", facility=syslog.LOG_AUTHPRIV)
    syslog.syslog(syslog.LOG_WARNING if event == "refused" else syslog.LOG_NOTICE, " ".join(words))


def permits() -> list[dict]:
    """Return the permissions that hold today; none if they cannot be read."""
    today = datetime.date.today().isoformat()
    try:
        with open(PERMITS, encoding="utf-8") as stream:
            return [device for device in json.load(stream)["devices"] if device["expires"] >= today]
    except (OSError, ValueError, KeyError, TypeError) as exc:
        tell("unreadable", file=PERMITS, problem=str(exc))
        return []


def permitted(device: dict[str, str]) -> bool:
    """Return whether a device ({id, serial}) may be used today."""
    return any(permit["id"] == device["id"] and permit["serial"] == device["serial"] for permit in permits())


def attribute(place: str, name: str) -> str:
    """Return what the kernel says of a device; nothing if it says nothing."""
    try:
        with open(os.path.join(place, name), encoding="utf-8", errors="replace") as stream:
            return stream.read().strip()
    except OSError:
        return ""


def usb_device(path: str) -> str:
    """Return the directory of the USB device above a path of /sys, or nothing if there is none."""
    while path.startswith(f"{SYS}/") and path != SYS:
        if os.path.exists(os.path.join(path, "idVendor")):
            return path
        path = os.path.dirname(path)
    return ""


def identity(place: str) -> dict[str, str]:
    """Return {id, serial} of the USB device in a directory of /sys."""
    return {"id": f"{attribute(place, 'idVendor')}:{attribute(place, 'idProduct')}", "serial": attribute(place, "serial")}


def objection(usage: str, kind: str, device: str) -> str:
    """Return why what is on a device keeps it from being used; nothing if it may be. Blank is no objection: it can be encrypted.

    ``usage`` and ``kind`` are udev's ID_FS_USAGE and ID_FS_TYPE, ``device`` is where LUKS is looked at more closely.
    """
    if not usage and not kind:
        return ""
    if kind != "crypto_LUKS":
        return f"not encrypted: {kind or usage}"
    try:
        dump = subprocess.run(
            ["cryptsetup", "luksDump", "--dump-json-metadata", device],
            check=True, capture_output=True, timeout=20, env=ENVIRONMENT, stdin=subprocess.DEVNULL,
        )  # fmt: skip
        return weakness(json.loads(dump.stdout))
    except (OSError, ValueError, subprocess.SubprocessError):
        return "not encrypted with LUKS2"


def weakness(metadata: dict) -> str:
    """Return what is wrong with how a volume is encrypted, from its LUKS2 metadata: it must be AES-256."""
    ciphers = {segment.get("encryption", "") for segment in metadata.get("segments", {}).values()}
    sizes = {slot.get("key_size") for slot in metadata.get("keyslots", {}).values()}
    if ciphers != {"aes-xts-plain64"} or sizes != {64}:
        return f"not encrypted with AES-256: {', '.join(sorted(ciphers))}, keys of {sorted(map(str, sizes))} bytes"
    return ""


def cut_off(place: str, why: str) -> None:
    """Take a USB device away from everybody, and tell why."""
    tell("refused", **identity(place), port=os.path.basename(place), reason=why)
    with open(os.path.join(place, "authorized"), "w", encoding="ascii") as stream:
        stream.write("0")


def seen(environment: dict[str, str]) -> int:
    """Tell that a device came or went. Hubs are none.

    When one goes, udev has forgotten what it was (the event "unbind" before it clears that): what came is kept by its port.
    """
    port = os.path.basename(environment.get("DEVPATH", ""))
    note = os.path.join(SEEN, port)
    gone = environment.get("ACTION") == "remove"
    if gone:
        try:
            with open(note, encoding="utf-8") as stream:
                environment = {**environment, **json.load(stream)}
            os.unlink(note)
        except (OSError, ValueError):
            pass  # it was there before this program: what the kernel says has to do
    else:
        for old in glob.glob(f"{glob.escape(note)}.*"):  # what was accepted there before
            os.unlink(old)
        noted(port, json.dumps({key: value for key, value in environment.items() if key.startswith("ID_")}))
    classes = re.findall(r":([0-9a-f]{2})[0-9a-f]{4}(?=:)", environment.get("ID_USB_INTERFACES", ""))
    if classes and set(classes) == {"09"}:
        return 0
    told = [number.zfill(4) for number in environment.get("PRODUCT", "").split("/")[:2]]  # of the kernel: 46f4/1/0
    device = {
        "id": ":".join((environment.get("ID_VENDOR_ID") or told[0], environment.get("ID_MODEL_ID") or told[-1])),
        "serial": environment.get("ID_USB_SERIAL_SHORT") or environment.get("ID_SERIAL_SHORT", ""),
    }
    tell(
        "removed" if gone else "inserted",
        **device,
        product=environment.get("ID_MODEL", ""),
        storage="yes" if STORAGE in classes else "no",
        permitted="yes" if permitted(device) else "no",
        port=port,
    )
    return 0


def disk(environment: dict[str, str]) -> int:
    """Look at a block device that came or changed, and cut its USB device off if it may not be used."""
    block = SYS + environment.get("DEVPATH", "")
    place = usb_device(block)
    if not place or not os.path.exists(block) or attribute(place, "authorized") == "0":
        return 0  # it is gone already
    if not permitted(identity(place)):
        cut_off(place, "not permitted, or not any more")
        return 0
    mixed = "several things at once" if environment.get("ID_FS_AMBIVALENT") else ""
    usage, kind = environment.get("ID_FS_USAGE") or mixed, environment.get("ID_FS_TYPE", "")
    name = os.path.basename(block)
    why = objection(usage, kind, environment.get("DEVNAME", ""))
    if why:
        cut_off(place, f"{name}: {why}")
        return 0
    content = kind or "blank"
    if noted(f"{os.path.basename(place)}.{name}", content):
        tell("accepted", **identity(place), device=environment.get("DEVNAME", ""), content=content)
    if not kind:
        look_again(block)
    return 0


def noted(name: str, text: str) -> bool:
    """Keep a text below SEEN; return whether it is another one than before."""
    path = os.path.join(SEEN, name)
    os.makedirs(SEEN, mode=0o700, exist_ok=True)
    try:
        with open(path, encoding="utf-8") as stream:
            if stream.read() == text:
                return False
    except FileNotFoundError:
        pass
    with open(path, "w", encoding="utf-8") as stream:
        stream.write(text)
    return True


def look_again(block: str) -> None:
    """Have udev look at a block device once more, when this look is over.

    While udev looks at a device, it does not hear that somebody writes to it. So one that is blank, and will hold something, is
    looked at until it does. If the name is taken, such a look is due already.
    """
    subprocess.run(
        ["systemd-run", "--quiet", "--collect", f"--on-active={AGAIN}", f"--unit=bulwark-media-look-{os.path.basename(block)}",
         "udevadm", "trigger", "--action=change", block],
        check=False, capture_output=True, timeout=20, env=ENVIRONMENT, stdin=subprocess.DEVNULL,
    )  # fmt: skip


def sweep() -> int:
    """Cut off all USB storage that is not permitted, or not any more; have what is permitted looked at again."""
    for block in sorted(glob.glob(f"{SYS}/class/block/*")):
        path = os.path.realpath(block)
        place = usb_device(path)
        if not place or attribute(place, "authorized") == "0":
            continue
        if permitted(identity(place)):
            look_again(path)
        else:
            cut_off(place, "not permitted, or not any more")
    return 0


def load(module: str) -> int:
    """Load a storage driver, if any device is permitted today."""
    if not permits():
        tell("refused", module=module, reason="no device is permitted")
        return 1
    return subprocess.run(["modprobe", "--ignore-install", module], check=False, env=ENVIRONMENT).returncode


def main(argv: list[str]) -> int:
    """Do what udev, modprobe or the timer asks for."""
    match argv:
        case ["seen"]:
            return seen(dict(os.environ))
        case ["disk"]:
            return disk(dict(os.environ))
        case ["sweep"]:
            return sweep()
        case ["load", module]:
            return load(module)
        case ["judge", usage, kind]:
            sys.stdout.write(f"{objection(usage, kind, '/dev/null') or 'accepted'}\n")
            return 0
    sys.stderr.write(f"{__doc__}\n")
    return 2


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
