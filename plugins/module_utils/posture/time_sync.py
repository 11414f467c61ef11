# Copyright: (c) 2026, Bulwark contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How a host's clock is kept: which daemon, from which sources, how authenticated, and how far off.

The configuration is what chronyd itself reads out of the file its unit names (chronyd -p), with source directories
followed; the state of a running chronyd is what chronyc says over its local socket.
"""

from __future__ import annotations

import glob
import os
import re
import shlex

from ansible_collections.bulwark.hardening.plugins.module_utils.posture.common import (
    CannotObserve,
    capable,
    file_facts,
    read,
    run,
)

CHRONYD = "/usr/sbin/chronyd"
PACKAGES = ("chrony", "ntp", "ntpsec", "openntpd", "systemd-timesyncd")  # what can be installed to keep the time
OTHER_UNITS = ("ntp.service", "ntpd.service", "ntpsec.service", "openntpd.service", "systemd-timesyncd.service")
OTHER_PROCESSES = ("ntpd", "openntpd", "systemd-timesyn")  # names as the kernel cuts them, 15 characters
SOURCES = ("server", "pool", "peer", "refclock")
NUMBERED = ("minpoll", "maxpoll", "key", "port", "ntsport")
CAP_SYS_TIME = 25  # bit, capability.h
RECORD = "/etc/chrony.bulwark.replaced"  # packages that kept the time before the role came


def collect() -> dict:
    """Return how the clock is kept.

    clock_settable   bool
    packages         time daemons that are installed; replaced: those that were before the role came, None unless it did
    other_daemons    units (enabled or active) and processes of daemons other than chrony
    chrony           installed, enabled, active, arguments (of the running daemon, else of the unit), config_file
    sources          list of {kind, name, auth (nts, key or ""), options}
    directives       the rest of the configuration, {name: arguments}; of a repeated one, the last
    files            list of {path, owner, group, mode, secret}
    listening        addresses open on the ports of a time server
    tracking         {stratum, offset_seconds, uncertainty_seconds, leap, source, source_auth}, only while chronyd runs
    """
    settable = clock_settable(read("/proc/1/status"), read("/proc/self/uid_map"))
    units = blocks(run(["systemctl", "show", "-p", "Id,ActiveState,UnitFileState,MainPID,ExecStart,EnvironmentFiles,Environment",
                        "chrony.service", *OTHER_UNITS]))  # fmt: skip
    data: dict = {
        "unobserved": {},
        "clock_settable": settable,
        "packages": installed(run(["dpkg-query", "-W", "-f", "${Package} ${db:Status-Status}\\n"])),
        "replaced": read(RECORD).split() if os.path.exists(RECORD) else None,
        "other_daemons": sorted({
            *(unit["Id"] for unit in units[1:] if in_use(unit)),
            *(name for name in running_names() if name in OTHER_PROCESSES),
        }),
        "chrony": {"installed": os.path.exists(CHRONYD), "enabled": False, "active": False, "arguments": [], "config_file": ""},
        "sources": [],
        "directives": {},
        "files": [],
    }  # fmt: skip
    try:
        data["listening"] = listeners(run(["ss", "-H", "-u", "-l", "-n"]))
    except CannotObserve as exc:
        data["unobserved"]["listening"] = str(exc)
    if not data["chrony"]["installed"]:
        return data
    running = units[0].get("MainPID", "0")
    arguments = read(f"/proc/{running}/cmdline").split("\0")[1:-1] if running != "0" else expanded(units[0])
    config = option(arguments, "-f") or "/etc/chrony/chrony.conf"
    data["chrony"].update(
        enabled=units[0].get("UnitFileState") == "enabled",
        active=units[0].get("ActiveState") == "active",
        arguments=arguments,
        config_file=config,
    )
    try:
        data["sources"], data["directives"] = parsed(run([CHRONYD, "-p", "-f", config]))
        for directory in (d for d in data["directives"].pop("sourcedir", "").split() if d):
            for path in sorted(glob.glob(os.path.join(glob.escape(directory), "*.sources"))):
                data["sources"] += parsed(read(path))[0]
        data["files"] = files(config, data["directives"].get("keyfile", ""))
    except CannotObserve as exc:
        for key in ("sources", "directives", "files"):
            del data[key]
            data["unobserved"][key] = str(exc)
    try:
        if "chronyd" not in running_names():
            raise CannotObserve("chronyd does not run")
        data["tracking"] = state(run(["chronyc", "-c", "-N", "tracking"]), run(["chronyc", "-c", "-N", "selectdata"]))
    except CannotObserve as exc:
        data["unobserved"]["tracking"] = str(exc)
    return data


def clock_settable(status: str, uid_map: str) -> bool:
    """Return whether root may set this host's clock, from /proc/1/status and /proc/self/uid_map.

    A container usually lacks CAP_SYS_TIME; in a user namespace the capability is only for show.
    """
    whole_machine = uid_map.split() == ["0", "0", "4294967295"]
    return capable(status, CAP_SYS_TIME) and whole_machine


def blocks(output: str) -> list[dict[str, str]]:
    """Return `systemctl show` of several units, one dict each, in the order asked for; a repeated key keeps all lines."""
    units = []
    for block in output.strip().split("\n\n"):
        unit: dict[str, str] = {}
        for line in block.splitlines():
            key, _equals, value = line.partition("=")
            unit[key] = f"{unit[key]}\n{value}" if key in unit else value
        units.append(unit)
    return units


def in_use(unit: dict[str, str]) -> bool:
    """Return whether a unit runs or will run at the next start."""
    return unit.get("ActiveState") in ("active", "activating", "reloading") or unit.get("UnitFileState", "").startswith("enabled")


def installed(output: str) -> list[str]:
    """Return which packages that keep the time are installed, from dpkg-query."""
    names = [line.split()[0] for line in output.splitlines() if line.endswith(" installed")]
    return [name for name in names if name in PACKAGES]


def running_names() -> set[str]:
    """Return the names of all processes, as the kernel has them."""
    names = set()
    for path in glob.glob("/proc/[0-9]*/comm"):
        try:
            names.add(read(path).strip())
        except CannotObserve:
            continue  # it ended while we looked
    return names


def expanded(unit: dict[str, str]) -> list[str]:
    """Return the words of a unit's command line after the program, variables filled in as systemd would.

    ``unit`` has ExecStart, Environment and EnvironmentFiles of `systemctl show`; a file named later wins.
    """
    command = re.search(r"argv\[\]=(.*?) ; ignore_errors=", unit.get("ExecStart", ""))
    if not command:
        return []
    variables = dict(word.split("=", 1) for word in shlex.split(unit.get("Environment", "")) if "=" in word)
    for line in unit.get("EnvironmentFiles", "").splitlines():
        path = re.sub(r" \(ignore_errors=\w+\)$", "", line)
        if os.path.exists(path):
            variables.update(assignments(read(path)))
    words: list[str] = []
    for word in command.group(1).split()[1:]:
        name = re.fullmatch(r"\$(\w+)", word)
        words += shlex.split(variables.get(name.group(1), "")) if name else [word]
    return words


def assignments(text: str) -> dict[str, str]:
    """Return the variables that an EnvironmentFile sets."""
    found = {}
    for line in text.splitlines():
        name, equals, value = line.strip().partition("=")
        if equals and not name.startswith(("#", ";")):
            found[name.strip()] = " ".join(shlex.split(value))
    return found


def option(arguments: list[str], name: str) -> str:
    """Return the value after the last occurrence of an option, or an empty string."""
    values = [arguments[here + 1] for here, word in enumerate(arguments[:-1]) if word == name]
    return values[-1] if values else ""


def parsed(config: str) -> tuple[list[dict], dict[str, str]]:
    """Return (sources, other directives) of a chrony configuration as `chronyd -p` prints it."""
    sources, directives = [], {}
    for line in config.splitlines():
        words = line.split()
        if not words or words[0][0] in "!;#%":
            continue
        name = words[0].lower()
        if name not in SOURCES:
            value = " ".join(words[1:])
            directives[name] = f"{directives[name]} {value}" if name == "sourcedir" and name in directives else value
            continue
        options: dict = {}
        rest = iter(word.lower() for word in words[2:])
        for word in rest:
            given = next(rest, "") if word in NUMBERED else ""
            options[word] = int(given) if given.lstrip("-").isdigit() else given or True
        auth = "nts" if "nts" in options else "key" if "key" in options else ""
        sources.append({"kind": name, "name": words[1] if len(words) > 1 else "", "auth": auth, "options": options})
    return sources, directives


def files(config: str, keyfile: str) -> list[dict]:
    """Return owner, group and mode of what decides how the clock is kept; what does not exist is left out."""
    paths = [os.path.dirname(config), config, keyfile, "/var/lib/chrony"]
    paths += sorted(glob.glob("/etc/chrony.bulwark.*") + glob.glob("/etc/systemd/system/chrony.service.d/*"))
    return [owned(path, path == keyfile) for path in dict.fromkeys(paths) if path and os.path.exists(path)]


def owned(path: str, secret: bool) -> dict:
    """Return {path, owner, group, mode, secret} of a file; an owner without a name is a number."""
    return {**file_facts(path), "secret": secret}


def listeners(output: str) -> list[str]:
    """Return the addresses of `ss` that wait for anybody on the ports of NTP (123) or of chronyd's commands (323)."""
    return sorted({line.split()[3] for line in output.splitlines() if line.split()[3].rpartition(":")[2] in ("123", "323")})


def state(tracked: str, selectable: str) -> dict:
    """Return {stratum, offset_seconds, uncertainty_seconds, leap, source, source_auth} from chronyc's reports in CSV.

    ``offset_seconds`` is how far the clock is from what chronyd holds for true, always positive; ``uncertainty_seconds`` is how
    far that may be from the true time at most (root dispersion and half of the root delay, as in RFC 5905).
    """
    fields = tracked.strip().split(",")
    if len(fields) < 14:
        raise CannotObserve(f"chronyc tracking: {tracked.strip()!r}")
    sources = [line.split(",") for line in selectable.splitlines()]
    selected = [row for row in sources if row[0] == "*"]
    return {
        "stratum": int(fields[2]),
        "offset_seconds": abs(float(fields[4])),
        "uncertainty_seconds": round(float(fields[11]) + float(fields[10]) / 2, 9),
        "leap": fields[13],
        "source": selected[0][1] if selected else "",
        "source_auth": bool(selected) and selected[0][2] == "Y",
    }
