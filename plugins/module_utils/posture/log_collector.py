# Copyright: (c) 2026, Bulwark contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How a collector keeps the trails of hosts: who may deliver and read, whether anything was altered, and how much room is left.

The heads of all chains are part of what is returned: kept off the collector, with the evidence, they are witnesses against
whoever alters the trail later. No entry of any trail is returned.
"""

from __future__ import annotations

import datetime
import grp
import os
import pwd
import re
import stat
import time

from ansible_collections.bulwark.hardening.plugins.module_utils import pki, trail_store
from ansible_collections.bulwark.hardening.plugins.module_utils.posture import log_forward, services, vpn_gateway
from ansible_collections.bulwark.hardening.plugins.module_utils.posture.certificates import days
from ansible_collections.bulwark.hardening.plugins.module_utils.posture.common import (
    CannotObserve,
    capable,
    group_name,
    load,
    look,
    owner_name,
    read,
    run,
)

UNITS = ("bulwark-trail.service", "bulwark-trail-keep.timer", "bulwark-trail-crl.timer")
SETTINGS, DIRECTORY = "/etc/bulwark-trail.json", "/etc/bulwark/log_collector"
PROGRAM = "/usr/local/lib/bulwark/trail_receive"
GROUP, USER = "trail-readers", "bulwark-trail"
CAP_LINUX_IMMUTABLE = 9  # bit, capability.h


def collect() -> dict:
    """Return how the trail is kept.

    sandbox       whether systemd may filter what services do (in a plain container it may not)
    units         {name: state}; at_boot: those that start with the system
    settings      the receiver's configuration; without one, {}
    running       {user, no_new_privileges, in_force: nothing it read has changed since}
    door          {without_certificate, old_protocol: refused, open or closed}
    directories   hosts with something in the store; former: those of them whose last entry is older than a day
    store         {exists, mode, group, odd: [what has another owner, group or mode than it should, in words]}
    append_only   {possible, why, open: files that could be changed}
    key_files     [{path, owner, mode}] of secret files
    integrity     {status, findings: the first twenty, lines}; heads {host: {n, chain}}
    counts        {host: {accepted, duplicates, missing, gap_count, received}} as the receiver counted
    certificates  {server, authority, crl: days until the end, sound}
    retention     {days, approver: as the keeper has them, oldest_days, too_early: [files removed before their time]}
    capacity      {free_bytes, free_percent, bytes, bytes_a_day, days_that_fit: None while less than two days are known}
    readers       people in the group; accounts: all
    """
    data: dict = {"sandbox": log_forward.sandbox(read("/proc/1/status"))}
    settings = load(SETTINGS)
    directory = settings.get("directory", trail_store.DIRECTORY)
    parts = {
        "settings": lambda: settings,
        "units": lambda: services.states(UNITS), "at_boot": lambda: services.at_boot(UNITS),
        "running": running, "door": lambda: door(settings),
        "directories": lambda: there(directory), "former": lambda: former(directory), "store": lambda: store(directory),
        "append_only": lambda: append_only(directory), "key_files": keys, "integrity": lambda: integrity(directory),
        "heads": lambda: heads(directory), "counts": lambda: counts(directory), "certificates": certificates,
        "retention": lambda: retention(directory), "capacity": lambda: capacity(directory), "readers": readers,
        "accounts": lambda: sorted(entry.pw_name for entry in pwd.getpwall()),
    }  # fmt: skip
    seen, data["unobserved"] = look(parts, trail_store.StoreError, OSError)
    return {**data, **seen}


def running() -> dict:
    """Return what the receiver runs as, and whether what it read still holds. Certificates it reads anew by itself."""
    about = services.process(UNITS[0])
    return {
        "user": about["user"],
        "no_new_privileges": about["no_new_privileges"],
        "in_force": services.unchanged_since(about["started"], SETTINGS, PROGRAM, "/usr/local/lib/bulwark/trail_store"),
    }


def door(settings: dict) -> dict[str, str]:
    """Return what the receiver does with a visitor without certificate, and with one who speaks an old protocol."""
    place = settings.get("listen", "127.0.0.1"), int(settings.get("port", 19532))
    # Whoever has no certificate is to get no answer at all, not even a refusal.
    asked = b"GET /upload HTTP/1.1\r\n\r\n", "(?!)"
    return {"without_certificate": services.knock(*place, *asked), "old_protocol": services.knock(*place, *asked, old=True)}


def there(directory: str) -> list[str]:
    """Return the hosts in the store; no store, none."""
    return trail_store.hosts(directory) if os.path.isdir(directory) else []


def former(directory: str) -> list[str]:
    """Return the hosts in the store that delivered nothing for a day."""
    recent = time.strftime("%Y-%m-%d", time.gmtime(time.time() - 86400))
    found = []
    for host in there(directory):
        known = trail_store.days(directory, host)
        if not known or known[-1][0] < recent:
            found.append(host)
    return found


def store(directory: str) -> dict:
    """Return who may read and write the trail."""
    if not os.path.isdir(directory):
        return {"exists": False, "mode": "", "group": "", "odd": []}
    odd = []
    for place, names, files in os.walk(directory):
        for path in [place, *(os.path.join(place, name) for name in files)]:
            about = os.lstat(path)
            mode = stat.S_IMODE(about.st_mode)
            owner = owner_name(about.st_uid)
            if not (stat.S_ISDIR(about.st_mode) or stat.S_ISREG(about.st_mode)):
                odd.append(f"{path}: neither file nor directory")
            elif owner != USER or mode & 0o7027:
                odd.append(f"{path}: {owner} {mode:04o}")
        odd += [f"{os.path.join(place, name)}: a link" for name in names if os.path.islink(os.path.join(place, name))]
    about = os.stat(directory)
    mode, group = f"{stat.S_IMODE(about.st_mode):04o}", group_name(about.st_gid)
    return {"exists": True, "mode": mode, "group": group, "odd": sorted(odd)[:50]}


def append_only(directory: str) -> dict:
    """Return whether files can be made to only grow here, and which of the trail could still be changed."""
    if not capable(read("/proc/1/status"), CAP_LINUX_IMMUTABLE):
        return {"possible": False, "why": "the system's manager lacks CAP_LINUX_IMMUTABLE (a container)", "open": []}
    place = directory
    while not os.path.isdir(place):
        place = os.path.dirname(place)
    if trail_store.flags(place) is None:
        return {"possible": False, "why": "the file system knows no such flags", "open": []}
    late = time.time() - 900  # the keeper looks every five minutes
    paths = [path for host in there(directory) for _day, path in trail_store.days(directory, host)]
    loose = [path for path in paths if not trail_store.flags(path) and os.stat(path).st_ctime < late]
    return {"possible": True, "why": "", "open": loose}


def keys() -> list[dict]:
    """Return owner and mode of what must be root's alone."""
    authority = "/var/lib/bulwark/trail-authority"
    paths = [os.path.join(DIRECTORY, "private.key"), authority, os.path.join(authority, "ca.key")]
    found = [vpn_gateway.owned(path) for path in paths if os.path.lexists(path)]
    return [{key: about[key] for key in ("path", "owner", "mode")} for about in found]


def integrity(directory: str) -> dict:
    """Return whether the trail is unaltered from yesterday on; earlier days are the business of the review."""
    if not os.path.isdir(directory):
        return {"status": "missing", "findings": [], "lines": 0}
    yesterday = time.strftime("%Y-%m-%d", time.gmtime(time.time() - 86400))
    answer = trail_store.verify(directory, since=yesterday)
    lines = sum(about["lines"] for about in answer["hosts"].values())
    return {"status": answer["status"], "findings": answer["findings"][:20], "lines": lines}


def heads(directory: str) -> dict:
    """Return where each host's chain stands."""
    return trail_store.all_heads(directory) if os.path.isdir(directory) else {}


def counts(directory: str) -> dict:
    """Return what the receiver counted, by host."""
    wanted = ("accepted", "duplicates", "missing", "gap_count", "received")
    found = {}
    for host in there(directory):
        counted = trail_store.read_state(directory, host)
        found[host] = {key: counted.get(key) for key in wanted}
    return found


def certificates() -> dict:
    """Return for how many days certificates and revocation list still hold, and whether they belong together."""
    found: dict = {"server": 0.0, "authority": 0.0, "crl": 0.0, "sound": False}
    names = {"authority": "ca.crt", "server": "own.crt", "crl": "crl.pem"}
    paths = {key: os.path.join(DIRECTORY, name) for key, name in names.items()}
    if not all(os.path.exists(path) for path in paths.values()):
        return found
    try:
        for key in ("authority", "server"):
            found[key] = days(pki.certificate_facts(read(paths[key]))["not_after"])
        found["crl"] = days(pki.crl_facts(read(paths["crl"]))["next_update"])
    except pki.PkiError as exc:
        raise CannotObserve(str(exc)) from exc
    try:
        pki.openssl("verify", "-purpose", "sslserver", "-CAfile", paths["authority"], paths["server"])
        pki.openssl("crl", "-noout", "-verify", "-CAfile", paths["authority"], "-in", paths["crl"])
        found["sound"] = True
    except pki.PkiError:
        found["sound"] = False
    return found


def retention(directory: str) -> dict:
    """Return how long the keeper keeps what, for how long there is something, and what was removed before its time."""
    shown = run(["systemctl", "show", "-p", "ExecStart", "--value", "bulwark-trail-keep.service"])
    command = re.search(r"argv\[\]=(.*?) ; ignore_errors=", shown)
    text = command.group(1) if command else ""
    given = re.search(r"--retention-days=(\d+) --approver=(.*) --low-percent=", text)
    today = datetime.datetime.now(datetime.timezone.utc).date()
    oldest, early = 0, []
    for host in there(directory):
        known = trail_store.days(directory, host)
        if known:
            oldest = max(oldest, (today - datetime.date.fromisoformat(known[0][0])).days)
        for record in trail_store.removed(directory, host):
            try:
                age = datetime.date.fromisoformat(record["removed"][:10]) - datetime.date.fromisoformat(record["day"])
                if age.days <= int(record["retention_days"]) or not record["approver"]:
                    early.append(record["file"])
            except (KeyError, ValueError, TypeError):
                early.append(str(record.get("file")))
    return {
        "days": int(given.group(1)) if given else 0,
        "approver": given.group(2).strip("\"'") if given else "",
        "oldest_days": oldest,
        "too_early": early,
    }


def capacity(directory: str) -> dict:
    """Return how much room is left, and how many days fit at the rate of the days that are known."""
    place = directory
    while not os.path.isdir(place):
        place = os.path.dirname(place)
    room = trail_store.space(place)
    sizes: dict[str, int] = {}
    for host in there(directory):
        for day, path in trail_store.days(directory, host):
            sizes[day] = sizes.get(day, 0) + os.stat(path).st_size
    today = time.strftime("%Y-%m-%d", time.gmtime())
    closed = [size for day, size in sizes.items() if day < today]
    rate = sum(closed) / len(closed) if len(closed) >= 2 else None
    return {
        "free_bytes": room["free"],
        "free_percent": round(room["free_percent"], 1),
        "bytes": sum(sizes.values()),
        "bytes_a_day": None if rate is None else int(rate),
        "days_that_fit": None if not rate else int((room["free"] + sum(sizes.values())) / rate),
    }


def readers() -> list[str]:
    """Return who is in the group of readers, whichever way, but for the service itself and the review (role log_review)."""
    try:
        group = grp.getgrnam(GROUP)
    except KeyError:
        return []
    primary = {entry.pw_name for entry in pwd.getpwall() if entry.pw_gid == group.gr_gid}
    return sorted((set(group.gr_mem) | primary) - {USER, "bulwark-review"})
