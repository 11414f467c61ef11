# Copyright: (c) 2026, Bulwark contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How a backup repository serves hosts, and how the copies it holds are: who comes in, what is broken, what is off site.

No key and no password is returned, and none of the copies is opened: the repository could not.
"""

from __future__ import annotations

import json
import os
import pwd
import re
import shutil
import stat
import time

from ansible_collections.bulwark.hardening.plugins.module_utils import backup_escrow
from ansible_collections.bulwark.hardening.plugins.module_utils import backup_keeper as keeper
from ansible_collections.bulwark.hardening.plugins.module_utils.posture import log_forward, services
from ansible_collections.bulwark.hardening.plugins.module_utils.posture.certificates import certificate
from ansible_collections.bulwark.hardening.plugins.module_utils.posture.common import (
    CannotObserve,
    file_facts,
    load,
    look,
    owner_name,
    read,
)

UNITS = (
    "bulwark-backup-server.service",
    "bulwark-backup-offer.service",
    "bulwark-backup-check.timer",
    "bulwark-backup-pull.timer",
)
DIRECTORY, ACCESS = "/etc/bulwark/backup_repository", "/etc/bulwark/backup_repository/access"
LONG_AGO = 1000000.0
PACKAGES = ("restic", "restic-rest-server", "rclone")
BEFORE = "/etc/bulwark-backup-repository.before"  # which of them were there before the role came


def collect() -> dict:
    """Return how copies are kept.

    release       version of the system; sandbox: whether systemd may filter what services do (in a plain container it may not)
    packages      those that serve which are installed; before: those that were before the role came, None unless it did
    own_service   what becomes of the package's own service, which would serve everybody: {active, enabled}
    units         {name: state}; at_boot: those that start with the system
    settings      what the keeper was told; without, {}
    running       {user, no_new_privileges, append_only, private, in_force: nothing it was started with has changed since}
    door          {without_password, old_protocol: refused, open or closed}
    access        {hosts, pullers: who may come in; odd: what others could read}
    certificate   {name, days, sound}
    store         {exists, odd: [what somebody else owns or may read]}
    report        {hours: since the last look, broken: [copy: file what], copies: {name: about}, bytes}
    pulls         [{copy: <server>/<host>, hours: since it was last fetched whole, problem}]
    escrow        [{host, custodians: their public keys, recipients: how many can open it, whole: no byte has turned}]
    capacity      {free_percent, free_bytes, days_that_fit: None while less than two days are known or they shrink}
    retention     {days: as the keeper has them, too_early: [what was let go before its time]}
    """
    data: dict = {"sandbox": log_forward.sandbox(read("/proc/1/status"))}
    settings = load(keeper.SETTINGS)
    directory = settings.get("directory", "/srv/backup")
    parts = {
        "release": release, "packages": packages, "own_service": own_service,
        "before": lambda: read(BEFORE).split() if os.path.exists(BEFORE) else None,
        "units": lambda: services.states(UNITS), "at_boot": lambda: services.at_boot(UNITS),
        "settings": lambda: settings, "running": running,
        "door": lambda: door(settings), "access": access, "certificate": lambda: certificate(DIRECTORY, "sslserver"),
        "store": lambda: store(directory), "report": report, "pulls": pulls, "escrow": lambda: escrow(directory),
        "capacity": lambda: capacity(directory), "retention": lambda: retention(settings),
    }  # fmt: skip
    seen, data["unobserved"] = look(parts, keeper.KeeperError, OSError)
    return {**data, **seen}


def release() -> int:
    """Return the version of the system, 0 if it has none."""
    found = re.search(r'^VERSION_ID="?(\d+)', read("/etc/os-release"), re.MULTILINE)
    return int(found.group(1)) if found else 0


def packages() -> list[str]:
    """Return which packages are installed."""
    return [name for name in PACKAGES if os.path.exists(f"/var/lib/dpkg/info/{name}.list")]


def own_service() -> dict[str, bool]:
    """Return whether the package's own service runs, or would at the next start."""
    state = services.properties("restic-rest-server.service", "ActiveState", "UnitFileState")
    return {"active": state.get("ActiveState") in ("active", "activating"), "enabled": state.get("UnitFileState") == "enabled"}


def running() -> dict:
    """Return what the server runs as, and with which promises."""
    about = services.process(UNITS[0])
    loaded = services.properties(UNITS[0], "NeedDaemonReload").get("NeedDaemonReload") == "no"
    return {
        "user": about["user"],
        "no_new_privileges": about["no_new_privileges"],
        "append_only": "--append-only" in about["arguments"],
        "private": "--private-repos" in about["arguments"],
        "in_force": loaded and services.unchanged_since(about["started"], f"/etc/systemd/system/{UNITS[0]}"),
    }


def door(settings: dict) -> dict[str, str]:
    """Return what the server does with a visitor without password, and with one who speaks an old protocol."""
    place = settings.get("listen", "127.0.0.1"), int(settings.get("port", 19633))
    asked = b"GET /nobody/config HTTP/1.1\r\nHost: nobody\r\nConnection: close\r\n\r\n", r"HTTP/1\.[01] 40[13] "
    return {"without_password": services.knock(*place, *asked), "old_protocol": services.knock(*place, *asked, old=True)}


def access() -> dict:
    """Return who may come in, and which of the files that say so is not as it should be."""
    found: dict = {"odd": []}
    for name in ("hosts", "pullers"):
        path = os.path.join(ACCESS, name)
        found[name] = sorted(line.split(":")[0] for line in read(path).splitlines() if line) if os.path.exists(path) else []
        if os.path.exists(path):
            facts = file_facts(path)
            if (facts["owner"], facts["group"], facts["mode"]) != ("root", keeper.USER, "0640"):
                found["odd"].append(f"{path}: {facts['owner']}:{facts['group']} {facts['mode']}")
    key = os.path.join(DIRECTORY, "private.key")
    if os.path.exists(key) and (file_facts(key)["owner"], file_facts(key)["mode"]) != ("root", "0600"):
        found["odd"].append(f"{key}: {file_facts(key)['owner']} {file_facts(key)['mode']}")
    return found


def store(directory: str) -> dict:
    """Return whose the copies are; the top directories keep everybody else out of what lies below."""
    if not os.path.isdir(directory):
        return {"exists": False, "odd": []}
    wanted = {"": "root", "hosts": keeper.USER, "offsite": "root", "escrow": "root"}
    odd = []
    for name, owner in wanted.items():
        path = os.path.join(directory, name).rstrip("/")
        if not os.path.isdir(path) or os.path.islink(path):
            odd.append(f"{path}: is no directory")
            continue
        facts = file_facts(path)
        mode = "0710" if not name else "0700"
        if facts["owner"] != owner or facts["mode"] != mode:
            odd.append(f"{path}: {facts['owner']} {facts['mode']}")
    try:
        uid = pwd.getpwnam(keeper.USER).pw_uid
    except KeyError:
        return {"exists": True, "odd": [*odd, f"there is no {keeper.USER}"]}
    for place, names, files in os.walk(os.path.join(directory, "hosts")):
        for path in (os.path.join(place, name) for name in [*names, *files]):
            about = os.lstat(path)
            if about.st_uid != uid or stat.S_IMODE(about.st_mode) & 0o7077 or os.path.islink(path):
                odd.append(f"{path}: {owner_name(about.st_uid)} {stat.S_IMODE(about.st_mode):04o}")
    return {"exists": True, "odd": sorted(odd)[:50]}


def hours(text: str) -> float:
    """Return how many hours ago something was; long ago if nobody wrote it down, or a clock was wrong."""
    at = keeper.seconds_of(text) if text else 0
    return round((time.time() - at) / 3600, 2) if text and at < time.time() + keeper.AHEAD else LONG_AGO


def report() -> dict:
    """Return what the keeper saw when it last looked."""
    seen = load(os.path.join(keeper.STATE, "report.json"))
    copies = seen.get("copies", {})
    broken = [f"{name}: {file} {said}" for name, about in copies.items() for file, said in about["broken"].items()]
    broken += [f"escrow: {file} {said}" for file, said in seen.get("escrow", {}).items()]
    wanted = ("bytes", "files", "snapshots", "newest_hours", "read_days")
    return {
        "hours": hours(seen.get("at", "")),
        "broken": sorted(broken)[:50],
        "copies": {name: {key: about[key] for key in wanted} for name, about in copies.items()},
        "bytes": seen.get("bytes", 0),
    }


def pulls() -> list[dict]:
    """Return how it went when copies of other sites were fetched."""
    seen = load(os.path.join(keeper.STATE, "pulls.json"))
    return [
        {"copy": f"{server}/{host}", "hours": hours(about.get("sound_at", "")), "problem": about.get("problem", "")}
        for server, hosts in sorted(seen.items()) for host, about in sorted(hosts.items())
    ]  # fmt: skip


def escrow(directory: str) -> list[dict]:
    """Return the sealed keys: to whom, as it was written down and as the seal says, and whether a byte has turned."""
    place, found = os.path.join(directory, "escrow"), []
    for host in sorted(os.listdir(place)) if os.path.isdir(place) else ():
        found += [{"host": host, **seal(os.path.join(place, host, name))} for name in names_in(os.path.join(place, host))]
    return found


def names_in(place: str) -> list[str]:
    """Return what lies in a directory, but for what is on its way; what is none is odd itself."""
    return sorted(name for name in os.listdir(place) if not name.startswith(".new-")) if os.path.isdir(place) else [""]


def seal(path: str) -> dict:
    """Return {custodians, recipients, whole} of a sealed key."""
    try:
        text = read(path)
        about = json.loads(text)
        keys = sorted(entry["key"] for entry in about["custodians"])
        whole = os.path.basename(path) == backup_escrow.name_of(text)
        return {"custodians": keys, "recipients": backup_escrow.recipients(about["sealed"]), "whole": whole}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, CannotObserve):
        return {"custodians": [], "recipients": 0, "whole": False}


def capacity(directory: str) -> dict:
    """Return how much room is left, and for how long."""
    place = directory
    while not os.path.isdir(place):
        place = os.path.dirname(place)
    room = shutil.disk_usage(place)
    days = load(os.path.join(keeper.STATE, "report.json")).get("days", {})
    return {
        "free_bytes": room.free,
        "free_percent": round(100 * room.free / room.total, 1),
        "days_that_fit": keeper.days_that_fit(days, room.free),
    }


def retention(settings: dict) -> dict:
    """Return for how long copies are kept, and what went before its time."""
    early, path = [], os.path.join(keeper.STATE, "pruned.jsonl")
    for line in read(path).splitlines() if os.path.exists(path) else ():
        try:
            record = json.loads(line)
            limit = keeper.seconds_of(record["at"]) - keeper.LEAST_DAYS * keeper.DAY
            early += [f"{record['copy']}: {entry['id'][:8]}" for entry in record["removed"]
                      if max(keeper.seconds_of(entry["arrived"]), keeper.seconds_of(entry["time"])) > limit]  # fmt: skip
        except (ValueError, KeyError, TypeError) as exc:
            raise CannotObserve(f"{path}: {exc}") from exc
    return {"days": settings.get("retention_days", 0), "too_early": early}
