# Copyright: (c) 2026, Bulwark contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How media are accounted for, sanitised and certified, and whether exports end in time.

The head of the register is part of what is returned: kept off the host, with the evidence, it is a witness against whoever makes
the register anew.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import stat
import time

from ansible_collections.bulwark.hardening.plugins.module_utils import media_register as register
from ansible_collections.bulwark.hardening.plugins.module_utils.posture import services
from ansible_collections.bulwark.hardening.plugins.module_utils.posture.common import (
    CannotObserve,
    capable,
    file_facts,
    load,
    look,
    read,
)

TOOLS = ("nvme", "hdparm", "cryptsetup", "blkdiscard", "lsblk", "wipefs")
UNIT = "bulwark-media.timer"
CAP_LINUX_IMMUTABLE = 9  # bit, capability.h
LATE_HOURS = 2  # the timer comes every hour


def collect() -> dict:
    """Return how media are kept.

    tools         those that are missing, of what sanitising needs
    settings      what the role declared here: media, exports, unfinished_days; without it, {}
    register      {exists, owner, mode, status: sound, altered or missing, findings, n, chain}
    append_only   {possible, why, open: whether the register could be changed}
    media         {model and serial: what the register says of it}
    unrecorded    entries the register lacks for it to say what is declared, in words
    overdue       what should be sanitised, destroyed or ended by now, in words
    uncertified   media said to be sanitised without a whole, unaltered certificate, in words
    misused       media that went where their class or certificate forbids, in words
    exports       {expired: [paths past their time that are still there], loose: [declared places that are
                  links, or that somebody may put another in the place of]}
    timer         {active, at_boot, last: how the keeper's last run ended}
    """
    settings = load(register.SETTINGS)
    directory = register.DIRECTORY
    entries, findings = register.examine(whole(directory))
    known = register.states(entries)
    declared = settings.get("media", [])
    today = time.strftime("%Y-%m-%d", time.gmtime())
    parts = {
        "tools": lambda: [name for name in TOOLS if not found(name)],
        "settings": lambda: settings,
        "register": lambda: about(directory, entries, findings),
        "append_only": lambda: append_only(directory),
        "media": lambda: known,
        "unrecorded": lambda: [f"{entry['medium']}: {entry['event']}" for entry in register.wanted_entries(declared, known)],
        "overdue": lambda: register.overdue(declared, known, register.jobs(directory), today, settings.get("unfinished_days", 0)),
        "uncertified": lambda: [f"{name}: {why}" for name, state in known.items() if (why := uncertified(state))],
        "misused": lambda: [f"{name}: {why}" for name, state in known.items() if (why := misused(state))],
        "exports": lambda: exports(directory, settings.get("exports", [])),
        "timer": timer,
    }
    seen, unobserved = look(parts, register.RegisterError, OSError, ValueError, KeyError)
    return {**seen, "unobserved": unobserved}


def whole(directory: str) -> bytes:
    """Return the register's bytes."""
    try:
        return register.load(directory)
    except register.RegisterError as exc:
        raise CannotObserve(str(exc)) from exc


def found(name: str) -> bool:
    """Return whether a tool is there."""
    return bool(shutil.which(name, path="/usr/sbin:/usr/bin:/sbin:/bin"))


def about(directory: str, entries: list[dict], findings: list[str]) -> dict:
    """Return what the register is, and whether it was altered."""
    path = register.path_of(directory)
    if not os.path.exists(path):
        return {"exists": False, "owner": "", "mode": "", "status": "missing", "findings": [], "n": 0, "chain": ""}
    facts = file_facts(path)
    place = file_facts(directory)
    odd = [] if place["owner"] == "root" and place["mode"] == "0700" else [f"{directory}: {place['owner']} {place['mode']}"]
    return {
        "exists": True,
        "owner": facts["owner"],
        "mode": facts["mode"],
        "status": "altered" if findings else "sound",
        "findings": (findings + odd)[:20],
        **register.head(entries),
    }


def append_only(directory: str) -> dict:
    """Return whether files can be made to only grow here, and whether the register could be changed."""
    path = register.path_of(directory)
    if not capable(read("/proc/1/status"), CAP_LINUX_IMMUTABLE):
        return {"possible": False, "why": "the system's manager lacks CAP_LINUX_IMMUTABLE (a container)", "open": False}
    flags = register.flags(path) if os.path.exists(path) else None
    if flags is None:
        return {"possible": False, "why": "there is no register, or its file system knows no such flags", "open": False}
    return {"possible": True, "why": "", "open": not flags}


def uncertified(state: dict) -> str:
    """Return what is wrong with a medium's certificate; nothing if it has none to show, or a good one."""
    done = state["sanitised"]
    if not done:
        return ""
    try:
        with open(done["certificate"], "rb") as stream:
            data = stream.read()
    except OSError as exc:
        return f"its certificate {done['certificate']}: {exc.strerror}"
    if hashlib.sha256(data).hexdigest() != done["sha256"]:
        return f"its certificate {done['certificate']} was altered"
    record = json.loads(data)
    if record["sanitization"]["method_type"] != done["category"] or record["destination"]["disposition"] != done["disposition"]:
        return f"its certificate {done['certificate']} says something else than the register"
    return ""


def misused(state: dict) -> str:
    """Return how a medium was used against what its class and certificate allow."""
    done = state["sanitised"]
    if state["reused"] and state["class"] == "high":
        return "it is of class high, and was used again (UMDNJ-I-1)"
    if state["reused"] and (not done or done["category"] != "purge" or done["disposition"] == "destroy"):
        return "it was used again without a certificate of purge (UMDNJ-I-2)"
    if done and done["disposition"] != "destroy" and "high" in (done["class"], state["class"]):
        return "it is of class high, and not meant to be destroyed (UMDNJ-I-1)"
    return ""


def exports(directory: str, declared: list[dict]) -> dict:
    """Return which exports are past their time, though the timer has come since, and which places somebody may take away."""
    now = time.time()
    files, _seen = register.look_at_exports(declared, register.mark_seen(directory), now - LATE_HOURS * 3600)
    loose = []
    for export in declared:
        place = os.path.dirname(export["path"])
        if os.path.realpath(export["path"]) != export["path"]:
            loose.append(export["path"])
        elif os.path.isdir(place):
            mode = os.stat(place).st_mode
            if mode & stat.S_IWOTH and not mode & stat.S_ISVTX:
                loose.append(export["path"])
    return {"expired": [file["path"] for file in files if file["expired"]][:50], "loose": loose}


def timer() -> dict:
    """Return whether the keeper comes, and how it went last."""
    active, last = services.states([UNIT])[UNIT] == "active", services.properties("bulwark-media.service", "Result")["Result"]
    return {"active": active, "at_boot": bool(services.at_boot([UNIT])), "last": last}
