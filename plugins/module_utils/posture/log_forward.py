# Copyright: (c) 2026, Bulwark contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How a host keeps and forwards its journal: what is in effect, what the collector has acknowledged, and how far behind it is."""

from __future__ import annotations

import glob
import json
import os
import re
import stat
import subprocess
import time

from ansible_collections.bulwark.hardening.plugins.module_utils.posture import vpn_gateway
from ansible_collections.bulwark.hardening.plugins.module_utils.posture.certificates import certificate
from ansible_collections.bulwark.hardening.plugins.module_utils.posture.common import (
    CannotObserve,
    capable,
    group_name,
    look,
    owner_name,
    read,
    run,
)
from ansible_collections.bulwark.hardening.plugins.module_utils.posture.session import time_span

UPLOAD, TIMER = "systemd-journal-upload.service", "bulwark-heartbeat.timer"
DIRECTORY = "/etc/bulwark/log_forward"
STATES = ("/var/lib/systemd/journal-upload/state", "/var/lib/private/systemd/journal-upload/state")
CAP_SYS_ADMIN = 21  # bit, capability.h


def collect() -> dict:
    """Return how the host forwards.

    sandbox      whether systemd may filter what services do (in a plain container it may not)
    journal      {settings: {name: value} in effect, persistent, sync_seconds, in_force: journald has read them,
                 files: [{path, owner, group, mode, directory}]}
    upload       {name: value} of the uploader's settings
    unit         {running, at_boot, restart, start_limit_seconds, watchdog_seconds, user}
    lag          {acknowledged: whether there is a position, unsent: entries or None, seconds: age of the oldest unsent (0: none),
                 success_seconds_ago}
    certificate  {name, days, sound}; key_files [{path, owner, mode}]
    heartbeat    {active, at_boot, seconds_ago: the last line's age or None}
    """
    data: dict = {"sandbox": sandbox(read("/proc/1/status"))}
    parts = {
        "journal": journal, "upload": lambda: settings("systemd/journal-upload.conf", "Upload"), "unit": unit, "lag": lag,
        "certificate": lambda: certificate(DIRECTORY, "sslclient"), "key_files": keys, "heartbeat": heartbeat,
    }  # fmt: skip
    seen, data["unobserved"] = look(parts)
    return {**data, **seen}


def sandbox(status: str) -> bool:
    """Return from /proc/1/status whether the system's manager may set up what confines its services."""
    return capable(status, CAP_SYS_ADMIN)


def settings(name: str, section: str) -> dict[str, str]:
    """Return the settings in effect of a configuration of systemd with its drop-ins; no file, no settings."""
    try:
        return parsed(run(["systemd-analyze", "cat-config", name]), section)
    except CannotObserve as exc:
        if "not found" in str(exc).lower() or "No such file" in str(exc):
            return {}
        raise


def parsed(text: str, section: str) -> dict[str, str]:
    """Return the assignments of one section, of repeated ones the last; an empty one takes back what was before."""
    found: dict[str, str] = {}
    here = ""
    for line in text.splitlines():
        words = line.strip()
        if words[:1] in ("", "#", ";"):
            continue
        if words.startswith("["):
            here = words.strip("[]")
        elif here == section and "=" in words:
            key, value = (part.strip() for part in words.split("=", 1))
            found[key] = value
            if not value:
                del found[key]
    return found


def journal() -> dict:
    """Return how the journal is kept."""
    found = settings("systemd/journald.conf", "Journal")
    place = os.path.join("/var/log/journal", read("/etc/machine-id").strip())
    shown = dict(
        line.split("=", 1)
        for line in run(["systemctl", "show", "-p", "ExecMainStartTimestampMonotonic", "systemd-journald.service"]).splitlines()
    )
    started = time.time() - (time.monotonic() - int(shown.get("ExecMainStartTimestampMonotonic") or 0) / 1e6)
    drop_ins = [path for folder in ("/etc", "/run") for path in glob.glob(f"{folder}/systemd/journald.conf.d/*.conf")]
    paths = ["/var/log/journal", place, *sorted(glob.glob(os.path.join(place, "*.journal")))]
    return {
        "settings": found,
        "persistent": os.path.exists(os.path.join(place, "system.journal")),
        "sync_seconds": time_span(found.get("SyncIntervalSec", "5min")),
        "in_force": all(os.stat(path).st_mtime <= started + 1 for path in drop_ins),
        "files": [owned(path) for path in paths if os.path.lexists(path)],
    }


def owned(path: str) -> dict:
    """Return {path, owner, group, mode, directory} of a file or directory."""
    about = os.lstat(path)
    return {
        "path": path, "owner": owner_name(about.st_uid), "group": group_name(about.st_gid),
        "mode": f"{stat.S_IMODE(about.st_mode):04o}",
        "directory": stat.S_ISDIR(about.st_mode),
    }  # fmt: skip


def unit() -> dict:
    """Return what systemd does about the uploader."""
    keys = "ActiveState,SubState,Restart,StartLimitIntervalUSec,WatchdogUSec,User,DynamicUser"
    shown = dict(line.split("=", 1) for line in run(["systemctl", "show", "-p", keys, UPLOAD]).splitlines() if "=" in line)
    return {
        # between two tries it is "activating": it runs in the sense that systemd sees to it; what lags is seen elsewhere
        "running": shown.get("ActiveState") in ("active", "activating"),
        "at_boot": UPLOAD in run(["systemctl", "show", "-p", "Wants", "--value", "multi-user.target"]).split(),
        "restart": shown.get("Restart", ""),
        "start_limit_seconds": time_span(shown.get("StartLimitIntervalUSec") or "0"),
        "watchdog_seconds": time_span(shown.get("WatchdogUSec") or "0") if shown.get("WatchdogUSec") != "infinity" else 0,
        "user": shown.get("User", ""),
    }


def lag() -> dict:
    """Return how far the collector is behind."""
    path = next((path for path in STATES if os.path.exists(path)), "")
    cursor = re.search(r"^LAST_CURSOR=(\S+)$", read(path), re.MULTILINE) if path else None
    if not cursor:
        return {"acknowledged": False, "unsent": None, "seconds": None, "success_seconds_ago": None}
    last = run(["journalctl", "-q", "-n", "1", "-o", "json", "--output-fields=_BOOT_ID"])
    begin, end = (re.search(r"s=([0-9a-f]+);i=([0-9a-f]+);b=([0-9a-f]+);", text) for text in (cursor.group(1), last))
    same = bool(begin and end and (begin.group(1) == end.group(1) or begin.group(3) == end.group(3)))
    first = first_after(cursor.group(1))
    return {
        "acknowledged": True,
        "unsent": max(int(end.group(2), 16) - int(begin.group(2), 16), 0) if same else None,
        "seconds": 0.0 if first is None else round(max(time.time() - first, 0), 1),
        "success_seconds_ago": round(time.time() - os.stat(path).st_mtime, 1),
    }


def first_after(cursor: str) -> float | None:
    """Return when the first entry after a position was written, in seconds since the epoch, or None if there is none."""
    argv = ["journalctl", "-q", "-o", "json", "--output-fields=_BOOT_ID", f"--after-cursor={cursor}"]
    try:
        with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, stdin=subprocess.DEVNULL) as process:
            line = process.stdout.readline()
            if line:
                process.kill()  # one is enough
    except OSError as exc:
        raise CannotObserve(f"journalctl: {exc}") from exc
    if not line:
        if process.returncode:  # that is no journal without anything new
            raise CannotObserve(f"journalctl: exit {process.returncode}")
        return None
    try:
        return int(json.loads(line)["__REALTIME_TIMESTAMP"]) / 1e6
    except (ValueError, KeyError, TypeError) as exc:
        raise CannotObserve(f"journalctl: {exc}") from exc


def keys() -> list[dict]:
    """Return owner and mode of the host's key; no file, no entry."""
    path = os.path.join(DIRECTORY, "private.key")
    return [{key: value for key, value in vpn_gateway.owned(path).items() if key != "secret"}] if os.path.lexists(path) else []


def heartbeat() -> dict:
    """Return whether the host says that it is there."""
    shown = run(["systemctl", "show", "-p", "ActiveState", "--value", TIMER]).strip()
    text = run(["journalctl", "-q", "-t", "bulwark-heartbeat", "-n", "1", "-o", "json"])
    try:
        ago = round(time.time() - int(json.loads(text)["__REALTIME_TIMESTAMP"]) / 1e6, 1) if text.strip() else None
    except (ValueError, KeyError, TypeError) as exc:
        raise CannotObserve(f"journalctl: {exc}") from exc
    return {
        "active": shown == "active",
        "at_boot": TIMER in run(["systemctl", "show", "-p", "Wants", "--value", "multi-user.target"]).split(),
        "seconds_ago": ago,
    }
