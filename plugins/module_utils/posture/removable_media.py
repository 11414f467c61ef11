# Copyright: (c) 2026, Bulwark contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What may be plugged into a host, and what is: USBGuard's rules, kernel modules, udev's rules, devices.

The rules are those in force in the running daemon where it runs, else those it would read. What they mean is found out by asking
them about devices, among them sticks that nobody permitted.
"""

from __future__ import annotations

import datetime
import errno
import fnmatch
import glob
import os
import re
from collections.abc import Iterable

from ansible_collections.bulwark.hardening.plugins.module_utils import block_devices
from ansible_collections.bulwark.hardening.plugins.module_utils.posture.common import (
    CannotObserve,
    file_facts,
    load,
    look,
    read,
    run,
)

DIRECTORY = "/etc/bulwark/removable_media"
RECORD = "/etc/bulwark-removable-media.before"
GATE = "/usr/local/lib/bulwark/media_gate"
VENDOR_CONFIG = "/etc/usbguard/usbguard-daemon.conf"
USB = "/sys/bus/usb/devices"
INPUT, BLUETOOTH = "/sys/class/input", "0005"  # the bus that an input device says it hangs on
STORAGE_MODULES = ("usb-storage", "uas")
KINDS = {  # as in roles/removable_media/vars/main.yml
    "optical": ("sr_mod",),
    "floppy": ("floppy",),
    "firewire": ("firewire-sbp2", "firewire-ohci", "firewire-core"),
    "thunderbolt": ("thunderbolt",),
    "card": ("mmc_block", "ms_block", "mspro_block"),
}
RULE = re.compile(r"(?:\d+: )?(allow|block|reject)\b(?: (?:id )?([0-9a-fA-F*]{1,4}:[0-9a-fA-F*]{1,4}))?(.*)")
INTERFACES = re.compile(r"with-interface (?:([a-z-]+) )?(?:\{ ([^}]*?) ?\}|([0-9a-f]{2}:[0-9a-f*]{1,2}:[0-9a-f*]{1,2}))")
SERIAL = re.compile(r'(?<!\S)serial "((?:[^"\\]|\\.)*)"')
# Devices that nobody permitted. A stick that says it is a keyboard, too, types commands.
STRANGERS = {
    "stick": ["08:06:50"],
    "fast_stick": ["08:06:50", "08:06:62"],
    "typing_stick": ["08:06:50", "03:01:01"],
    "phone": ["06:01:01"],
    "unknown": ["ff:ff:ff"],
    "keyboard": ["03:01:01"],
}


def collect() -> dict:
    """Return what may be plugged in.

    today       the host's date; packages: ["usbguard"] if it is installed; before: those before the role came, None unless it did
    usb         {here: the kernel has USB and this host may control it, closed: new devices wait for a permission,
                present: [{id, product, classes, input}] of devices that are plugged in and can be used; input: somebody types
                or points with it, or with something behind it (a hub)}
    usbguard    {active, at_boot, settings, source: "daemon" or the file that the rules are from}
    rules       [{target, id, serial, interfaces, operator, else}]
    verdicts    what becomes of devices nobody permitted, by kind: allow, block or reject
    permitted   [{id, serial}] storage that the rules allow, sorted, the serial number empty where any will do; permits: what the
                gate would let through today
    modules     {module: "refused", "gate" or "loadable"} for USB storage; kinds: {kind: whether any of its modules can be
                loaded, or is}
    loaded      storage modules that are in the kernel
    udev        {disk, seen}: the gate is asked; gate: what it says of a plain file system, and of a blank device
    attached    [{name, id, serial, content, permitted, used}] USB storage that is plugged in; content: luks, blank, or what it
                holds; used: mounted, swapped to, or under something else
    sweep       whether the timer that ends permissions is active
    files       owner and mode of what decides all this
    """
    parts = {
        "packages": installed,
        "before": lambda: read(RECORD).split() if os.path.exists(RECORD) else None,
        "usb": usb,
        "usbguard": usbguard,
        "modules": lambda: modules(run(["modprobe", "--showconfig"])),
        "kinds": lambda: kinds(run(["modprobe", "--showconfig"]), read("/proc/modules") if controllable() else ""),
        "loaded": lambda: loaded(read("/proc/modules")) if controllable() else [],
        "udev": lambda: asked(udev_rules()),
        "gate": lambda: {"plain": gate("filesystem", "ext4"), "blank": gate("", "")},
        "attached": lambda: attached() if controllable() else [],
        "sweep": sweep,
        "files": files,
        "permits": lambda: identities(current(load(f"{DIRECTORY}/permits.json").get("devices", []))),
    }  # fmt: skip
    data, unobserved = look(parts)
    data["today"] = today()
    try:
        text = rules_text(data["usbguard"])
        data["rules"] = [rule for rule in map(parsed, text.splitlines()) if rule]
        implicit = data["usbguard"]["settings"].get("ImplicitPolicyTarget", "block") if data["usbguard"]["installed"] else "allow"
        strangers = {name: {"id": "ffff:ffff", "serial": "?", "interfaces": faces} for name, faces in STRANGERS.items()}
        data["verdicts"] = {name: verdict(data["rules"], device, implicit) for name, device in strangers.items()}
        data["permitted"] = identities([rule for rule in data["rules"] if rule["target"] == "allow" and lets_in(rule)])
    except (CannotObserve, KeyError) as exc:
        for key in ("rules", "verdicts", "permitted"):
            unobserved[key] = str(exc)
    return {**data, "unobserved": unobserved}


def today() -> str:
    """Return the host's date."""
    return datetime.date.today().isoformat()


def installed() -> list[str]:
    """Return the package of USBGuard, if it is installed."""
    return ["usbguard"] if os.path.exists("/usr/sbin/usbguard-daemon") else []


def controllable() -> bool:
    """Return whether the kernel's devices are ours to control; in a container they are not."""
    return not os.statvfs("/sys").f_flag & os.ST_RDONLY


def usb() -> dict:
    """Return whether there is USB to control, and whether whatever is plugged in waits for a permission."""
    here = os.path.isdir(USB) and controllable()
    defaults = [read(path).strip() for path in sorted(glob.glob(f"{USB}/usb*/authorized_default"))] if here else []
    return {"here": here, "closed": here and set(defaults) == {"0"}, "present": present() if here else []}


def present() -> list[dict]:
    """Return {id, product, classes, input} of the USB devices that can be used; the classes are those of their interfaces."""
    found = []
    inputs = {path.split("/")[-2] for path in glob.glob(f"{USB}/*:*/bInterfaceClass") if read(path).strip() == "03"}
    # A keyboard without a cable hangs on the adapter that it talks to.
    if any(read(path).strip() == BLUETOOTH for path in glob.glob(f"{INPUT}/input*/id/bustype")):
        inputs |= {path.split("/")[-3] for path in glob.glob(f"{USB}/*:*/bluetooth/hci*")}
    for place in sorted(os.path.dirname(path) for path in glob.glob(f"{USB}/*/idVendor")):
        faces = glob.glob(f"{place}/{os.path.basename(place)}:*/bInterfaceClass")
        about = {name: read(f"{place}/{name}").strip() if os.path.exists(f"{place}/{name}") else "" for name in
                 ("idVendor", "idProduct", "product")}  # fmt: skip
        classes = sorted({read(path).strip() for path in faces})
        name = os.path.basename(place)
        found.append({
            "id": f"{about['idVendor']}:{about['idProduct']}", "product": about["product"], "classes": classes,
            "input": any(one.startswith((f"{name}:", f"{name}.")) for one in inputs),
        })  # fmt: skip
    return found


def usbguard() -> dict:
    """Return whether USBGuard runs, and its settings in effect."""
    shown = run(["systemctl", "show", "-p", "ActiveState,UnitFileState,MainPID,ExecStart", "usbguard.service"])
    unit = dict(line.split("=", 1) for line in shown.splitlines() if "=" in line)
    pid = unit.get("MainPID", "0")
    command = read(f"/proc/{pid}/cmdline").replace("\0", " ") if pid != "0" else unit.get("ExecStart", "")
    named = re.search(r"\s-c\s*(\S+)", command)
    config = named.group(1) if named else VENDOR_CONFIG
    settings = {}
    if os.path.exists(config):
        lines = [line for line in read(config).splitlines() if "=" in line and not line.lstrip().startswith("#")]
        settings = {key.strip(): value.strip() for key, value in (line.split("=", 1) for line in lines)}
    return {
        "installed": bool(installed()),
        "active": unit.get("ActiveState") == "active",
        "at_boot": unit.get("UnitFileState") == "enabled",
        "config": config,
        "settings": settings,
    }


def rules_text(daemon: dict) -> str:
    """Return the rules in force: what the daemon says, or what it would read."""
    if daemon["active"]:
        return run(["usbguard", "list-rules"])
    settings = daemon["settings"]
    folder = settings.get("RuleFolder", "")
    paths = [settings.get("RuleFile", ""), *(sorted(glob.glob(f"{glob.escape(folder)}/*.conf")) if folder else [])]
    return "\n".join(read(path) for path in paths if path and os.path.exists(path))


def parsed(line: str) -> dict | None:
    """Return {target, id, serial, operator, interfaces, more} of one of USBGuard's rules, None of what is no rule.

    ``more`` holds whatever else the rule asks for.
    """
    found = RULE.match(line.strip())
    if not found:
        return None
    target, device, rest = found.groups()
    faces, serial = INTERFACES.search(rest), SERIAL.search(rest)
    more = " ".join(SERIAL.sub("", INTERFACES.sub("", rest)).split())
    return {
        "target": target,
        "id": "" if device in (None, "*:*") else device.lower(),
        "serial": serial.group(1) if serial else "",
        "operator": (faces.group(1) or "equals") if faces else "",
        "interfaces": (faces.group(2) or faces.group(3) or "").split() if faces else [],
        "more": more,
    }


def applies(rule: dict, device: dict) -> bool:
    """Return whether a rule fits a device. What we do not understand of it fits an allowing rule and no other: worst case."""
    if rule["id"] and not fnmatch.fnmatch(device["id"], rule["id"]):
        return False
    if rule["serial"] and rule["serial"] != device["serial"]:
        return False
    patterns, faces = rule["interfaces"], device["interfaces"]

    def fits(face: str, pattern: str) -> bool:
        return fnmatch.fnmatch(face, pattern)

    operators = {
        "": lambda: True,
        "one-of": lambda: any(fits(face, pattern) for face in faces for pattern in patterns),
        "all-of": lambda: all(any(fits(face, pattern) for face in faces) for pattern in patterns),
        "none-of": lambda: not any(fits(face, pattern) for face in faces for pattern in patterns),
        "match-all": lambda: all(any(fits(face, pattern) for pattern in patterns) for face in faces),
        "equals": lambda: (
            all(any(fits(face, pattern) for pattern in patterns) for face in faces)
            and all(any(fits(face, pattern) for face in faces) for pattern in patterns)
        ),
    }
    allowing = rule["target"] == "allow"
    fitting = operators.get(rule["operator"], lambda: allowing)()
    return fitting and (allowing or not rule["more"])


def verdict(rules: list[dict], device: dict, implicit: str) -> str:
    """Return what becomes of a device ({id, serial, interfaces}): the first rule that fits decides."""
    return next((rule["target"] for rule in rules if applies(rule, device)), implicit)


def lets_in(rule: dict) -> bool:
    """Return whether an allowing rule is about storage by its number: by serial number, or all devices of one make."""
    makes = [
        {"id": rule["id"], "serial": rule["serial"], "interfaces": STRANGERS[kind]} for kind in ("stick", "fast_stick", "phone")
    ]
    return bool(rule["serial"]) or bool(rule["id"] and any(applies(rule, device) for device in makes))


def identities(devices: list[dict]) -> list[dict]:
    """Return {id, serial} of devices, sorted."""
    return sorted(({"id": one["id"], "serial": one["serial"]} for one in devices), key=lambda one: (one["id"], one["serial"]))


def current(permits: list[dict]) -> list[dict]:
    """Return the permissions that hold today."""
    return [permit for permit in permits if str(permit.get("expires", "")) >= today()]


def installs(config: str) -> list[tuple[str, str]]:
    """Return (pattern, command) of modprobe's install lines, as it prints its configuration; the first that fits is obeyed."""
    found = re.findall(r"^install (\S+) (.+)$", config, re.MULTILINE)
    return [(pattern.replace("-", "_"), command.strip()) for pattern, command in found]


def instead(config: str, module: str) -> str:
    """Return the command that is run in the place of loading a module, or nothing."""
    name = module.replace("-", "_")
    return next((command for pattern, command in installs(config) if fnmatch.fnmatch(name, pattern)), "")


def refused(command: str) -> bool:
    """Return whether a command that is run in a module's place loads nothing for sure."""
    return command in ("/bin/false", "/usr/bin/false", "/bin/true", "/usr/bin/true")


def modules(config: str) -> dict[str, str]:
    """Return what becomes of USB's storage drivers: refused, gate (loaded only while a device is permitted), or loadable."""
    commands = {module: instead(config, module) for module in STORAGE_MODULES}
    return {
        module: "refused" if refused(command) else "gate" if command == f"{GATE} load {module}" else "loadable"
        for module, command in commands.items()
    }


def kinds(config: str, listed: str) -> dict[str, bool]:
    """Return for each kind of media whether any of its kernel modules can be loaded, or is (``listed``: /proc/modules)."""
    return {
        kind: any(not refused(instead(config, module)) for module in names) or bool(loaded(listed, names))
        for kind, names in KINDS.items()
    }


def loaded(listed: str, names: Iterable[str] = STORAGE_MODULES) -> list[str]:
    """Return which of these modules are in the kernel, from /proc/modules."""
    present = {line.split()[0] for line in listed.splitlines() if line}
    return [module for module in names if module.replace("-", "_") in present]


def udev_rules() -> str:
    """Return udev's rules in the order in which they hold: of files with one name, /etc's, then /run's, then the vendor's."""
    found: dict[str, str] = {}
    for directory in ("/usr/lib/udev/rules.d", "/run/udev/rules.d", "/etc/udev/rules.d"):
        found.update({os.path.basename(path): path for path in glob.glob(f"{directory}/*.rules")})
    return "\n".join(read(path) for _name, path in sorted(found.items()) if os.path.realpath(path) != "/dev/null")


def asked(rules: str) -> dict[str, bool]:
    """Return whether udev asks the gate about disks, and tells it what comes and goes."""
    lines = [line for line in rules.splitlines() if not line.lstrip().startswith("#")]
    return {
        "disk": any(f'RUN+="{GATE} disk"' in line and 'SUBSYSTEMS=="usb"' in line for line in lines),
        "seen": any(f'RUN+="{GATE} seen"' in line and "add|remove" in line for line in lines),
    }


def gate(usage: str, kind: str) -> str:
    """Return what the gate would do with what is on a permitted device, in its own words; nothing if there is no gate."""
    return run([GATE, "judge", usage, kind]).strip() if os.path.exists(GATE) else ""


def attached() -> list[dict]:
    """Return the USB storage that is plugged in and can be used, with what udev says is on it."""
    permits = identities(current(load(f"{DIRECTORY}/permits.json").get("devices", [])))
    found = []
    for block in sorted(glob.glob("/sys/class/block/*")):
        place = os.path.realpath(block)
        while place != "/sys" and not os.path.exists(f"{place}/idVendor"):
            place = os.path.dirname(place)
        if place == "/sys":
            continue
        said = run(["udevadm", "info", "--query=property", f"--name={os.path.basename(block)}"])
        known = dict(line.split("=", 1) for line in said.splitlines() if "=" in line)
        kind = known.get("ID_FS_TYPE") or known.get("ID_FS_USAGE", "")
        serial = read(f"{place}/serial").strip() if os.path.exists(f"{place}/serial") else ""
        device = {"id": f"{read(f'{place}/idVendor').strip()}:{read(f'{place}/idProduct').strip()}", "serial": serial}
        content = {"crypto_LUKS": "luks", "": "several" if known.get("ID_FS_AMBIVALENT") else "blank"}.get(kind, kind)
        found.append({"name": os.path.basename(block), **device, "content": content, "permitted": device in permits,
                      "used": used(block, read("/proc/self/mountinfo"), read("/proc/swaps"))})  # fmt: skip
    return found


def used(block: str, mounts: str, swaps: str) -> bool:
    """Return whether a block device (a directory of /sys) is in use, given the kernel's tables of mounts and swap."""
    number = read(f"{block}/dev").strip()
    mounted = any(line.split()[2] == number for line in mounts.splitlines())
    swapped = any(line.split()[0] == f"/dev/{os.path.basename(block)}" for line in swaps.splitlines()[1:])
    if mounted or swapped or glob.glob(f"{block}/holders/*"):
        return True
    try:  # btrfs, mounts that only others see, and whatever else claims it
        return block_devices.claimed(f"/dev/{os.path.basename(block)}")
    except block_devices.DeviceError as exc:
        if getattr(exc.__cause__, "errno", None) in (errno.ENOMEDIUM, errno.ENOENT, errno.ENXIO):
            return False  # a reader without a card, or gone
        raise CannotObserve(str(exc)) from exc


def sweep() -> bool:
    """Return whether the timer that ends permissions is active."""
    return run(["systemctl", "show", "-p", "ActiveState", "bulwark-media-sweep.timer"]).strip() == "ActiveState=active"


def files() -> list[dict]:
    """Return owner, group and mode of what decides what may be plugged in."""
    paths = [DIRECTORY, *sorted(glob.glob(f"{DIRECTORY}/*")), GATE, os.path.dirname(GATE)]
    for directory in ("/etc/modprobe.d", "/etc/udev/rules.d"):
        paths += [directory, *sorted(glob.glob(f"{directory}/*"))]
    return [file_facts(path) for path in paths if os.path.exists(path)]
