# Copyright: (c) 2026, Bulwark contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How a host is backed up: when, how completely, with which promises of the repository, and whether it was restored.

No key and no password is returned. The repository is asked one thing: to delete a file that does not exist.
"""

from __future__ import annotations

import base64
import glob
import hashlib
import http.client
import os
import pwd
import re
import ssl
import stat
import time
from collections import Counter

from ansible_collections.bulwark.hardening.plugins.module_utils import backup_escrow
from ansible_collections.bulwark.hardening.plugins.module_utils.posture import services
from ansible_collections.bulwark.hardening.plugins.module_utils.posture.common import (
    CannotObserve,
    file_facts,
    load,
    look,
    owner_name,
    read,
    run,
)

SECRETS, STATE = "/etc/bulwark/backup", "/var/lib/bulwark/backup"
POSTGRESQL, SOCKETS = "/var/lib/postgresql", "/var/run/postgresql"
KEEPER = "/etc/bulwark/backup_keeper.json"
TIMER = "bulwark-backup.timer"
SECRET_FILES = ("access", "password", "repository", "settings.json", "escrow.json")
FILES = (
    "/usr/local/lib/bulwark/backup_agent",
    "/etc/systemd/system/bulwark-backup.service",
    f"/etc/systemd/system/{TIMER}",
)
LONG_AGO, AHEAD = 1000000.0, 300


def collect() -> dict:
    """Return how the host is backed up.

    timer         {active, at_boot}; command: what it runs
    settings      what the agent was told, but for commands and queries, which may name what is in a database; without, {}
    settings_sha256   of all of it, as it lies there
    secrets       [{path, owner, mode}] of what must be root's alone; missing: which of them are not there
    open          what the agent keeps and somebody else could read or change
    sets          {name: {hours: since the newest whole backup began; late_hours: by how much that is more than its interval,
                  less than zero when it is not; problem, files, databases, moved}}
    circles       sets whose last backup held, or may have held, the backups that this host keeps of others
    undeclared    databases of PostgreSQL that are here and not declared, and clusters that nobody can ask while none is
    door          {delete: the answer to an attempt to delete, without_password: to one without password; 0 if nobody answers}
    escrow        {custodians: public keys to which the key is sealed, of_this_key: it is the key in use, recipients: number}
    restore_test  {days: since the last that passed, passed: whether the last did, at, seconds, sets, structure}
    documents     {inventory: what is described, unavailable: what could not be, hours: since the sheet of recovery was written}
    """
    settings = load(f"{SECRETS}/settings.json")
    status = load(f"{STATE}/status.json")
    parts = {
        "timer": timer, "settings": lambda: shown(settings), "settings_sha256": settings_sha256,
        "secrets": secrets, "missing": missing, "open": loose,
        "sets": lambda: sets(settings, status), "circles": lambda: circles(settings, status),
        "undeclared": lambda: undeclared(settings), "door": lambda: door(settings), "escrow": lambda: escrow(settings),
        "restore_test": lambda: restore_test(status), "documents": lambda: documents(status),
    }  # fmt: skip
    data: dict = {}
    seen, data["unobserved"] = look(parts, OSError)
    return {**data, **seen}


def timer() -> dict:
    """Return whether the host looks regularly what is due."""
    command = run(["systemctl", "show", "-p", "ExecStart", "--value", "bulwark-backup.service"])
    found = re.search(r"argv\[\]=(.*?) ; ", command)
    return {
        "active": services.states([TIMER])[TIMER] == "active",
        "at_boot": bool(services.at_boot([TIMER])),
        "command": found.group(1) if found else "",
    }


def shown(settings: dict) -> dict:
    """Return settings without what databases are asked, and by which commands."""
    hidden = ("dump", "probe", "query")
    sets = [
        {**entry, "databases": [{key: base[key] for key in base if key not in hidden} for base in entry["databases"]]}
        for entry in settings.get("sets", [])
    ]
    return {**settings, "sets": sets} if settings else {}


def settings_sha256() -> str:
    """Return the SHA-256 of the settings' file; nothing if there is none."""
    path = f"{SECRETS}/settings.json"
    return hashlib.sha256(read(path).encode()).hexdigest() if os.path.exists(path) else ""


def secrets() -> list[dict]:
    """Return owner and mode of secret files."""
    paths = [SECRETS, *(os.path.join(SECRETS, name) for name in SECRET_FILES)]
    facts = [file_facts(path) for path in paths if os.path.exists(path)]
    return [{key: about[key] for key in ("path", "owner", "mode")} for about in facts]


def missing() -> list[str]:
    """Return which secret files are not there."""
    return [name for name in (*SECRET_FILES, "ca.crt") if not os.path.exists(os.path.join(SECRETS, name))]


def loose() -> list[str]:
    """Return what others could read of what the agent keeps, or change of the agent itself."""
    found = []
    for path in (STATE, *FILES, os.path.dirname(FILES[0])):
        if os.path.lexists(path):
            about = os.lstat(path)
            wrong = 0o7077 if path == STATE else 0o7022
            if about.st_uid or stat.S_IMODE(about.st_mode) & wrong:
                found.append(f"{path}: {owner_name(about.st_uid)} {stat.S_IMODE(about.st_mode):04o}")
    return found


def hours(at: float | None) -> float:
    """Return how many hours ago something was; long ago if it never was, or only will be: then a clock was wrong."""
    return round((time.time() - at) / 3600, 2) if at and at < time.time() + AHEAD else LONG_AGO


def sets(settings: dict, status: dict) -> dict:
    """Return how each set stands that the agent was told of."""
    found = {}
    for entry in settings.get("sets", []):
        about = status.get("sets", {}).get(entry["name"], {})
        found[entry["name"]] = {
            "hours": hours(about.get("started") if about.get("success") else None),
            "late_hours": round(hours(about.get("started") if about.get("success") else None) - entry["interval_hours"], 2),
            "problem": about.get("problem", ""),
            "files": about.get("files", 0),
            "databases": about.get("databases", 0),
            "moved": about.get("moved", 0),
        }
    return found


def circles(settings: dict, status: dict) -> list[str]:
    """Return sets whose last backup did not leave out what this host keeps of others although it lies there."""
    directory = load(KEEPER).get("directory")
    if not directory:
        return []
    return [
        entry["name"] for entry in settings.get("sets", [])
        if any(f"{directory}/".startswith(f"{path.rstrip('/')}/") for path in entry["paths"])
        and directory not in status.get("sets", {}).get(entry["name"], {}).get("left_out", [])
    ]  # fmt: skip


def undeclared(settings: dict) -> list[str]:
    """Return databases of PostgreSQL that nobody dumps, and clusters that nobody can ask: a copy of files does not restore."""
    bases = [base for entry in settings.get("sets", []) for base in entry["databases"]]
    declared = Counter(base.get("database", base["name"]) for base in bases if base["kind"] in ("postgresql", "command"))
    clusters = sorted(os.path.dirname(path) for path in glob.glob(f"{POSTGRESQL}/*/*/PG_VERSION"))
    # A cluster whose files lie elsewhere is known by its socket alone.
    sockets = sorted(path for path in glob.glob(f"{SOCKETS}/.s.PGSQL.*") if path.rpartition(".")[2].isdigit())
    there = Counter(name for path in sockets for name in databases(path))
    # Two clusters with a database of the same name are two databases: one declaration dumps the first one's alone.
    found = [name if not declared[name] else f"{name} (in {number} clusters)" for name, number in there.items()
             if number > declared[name]]  # fmt: skip
    # One that does not run is not asked; that some other database is dumped says nothing of it.
    asked = any(base["kind"] == "postgresql" for base in bases)
    return sorted(found) + (clusters if len(sockets) < len(clusters) and not asked else [])


def databases(path: str) -> list[str]:
    """Return the databases that people made on the server behind a socket."""
    query = "SELECT datname FROM pg_database WHERE datallowconn AND NOT datistemplate AND datname <> 'postgres'"
    words = ["psql", "-X", "-A", "-t", "-h", os.path.dirname(path), "-p", path.rpartition(".")[2], "-d", "postgres", "-c", query]
    try:
        return run(words, user=pwd.getpwnam("postgres").pw_uid).splitlines()
    except KeyError as exc:
        raise CannotObserve("there is PostgreSQL, but no account of that name") from exc


def door(settings: dict) -> dict[str, int]:
    """Return what the repository answers to somebody who wants to delete, and to somebody who has no password."""
    access, authority = os.path.join(SECRETS, "access"), os.path.join(SECRETS, "ca.crt")
    if not (settings and os.path.exists(access) and os.path.exists(authority)):
        return {"delete": 0, "without_password": 0}
    word = base64.b64encode(f"{settings['host']}:{read(access).strip()}".encode()).decode()
    nothing = f"/{settings['host']}/data/{'0' * 64}"
    return {
        "delete": knock(settings["address"], authority, "DELETE", nothing, {"Authorization": f"Basic {word}"}),
        "without_password": knock(settings["address"], authority, "GET", nothing, {}),
    }


def knock(address: str, authority: str, method: str, path: str, headers: dict) -> int:
    """Return the status of an answer; 0 if there is none from somebody for whom the authority vouches."""
    try:
        context = ssl.create_default_context(cafile=authority)
        line = http.client.HTTPSConnection(address, timeout=10, context=context)
        line.request(method, path, headers=headers)
        return line.getresponse().status
    except (OSError, http.client.HTTPException):
        return 0


def escrow(settings: dict) -> dict:
    """Return to whom the key is sealed, and whether the seal is that of the key which is in use."""
    about = load(os.path.join(SECRETS, "escrow.json"))
    words = [os.path.join(SECRETS, name) for name in ("access", "password")]
    there = settings and all(os.path.exists(path) for path in words)
    inside = backup_escrow.inside(settings["host"], settings["address"], *(read(path).strip() for path in words)) if there else {}
    return {
        "custodians": sorted(entry["key"] for entry in about.get("custodians", [])),
        "of_this_key": bool(inside) and about.get("of") == backup_escrow.mark(inside),
        "recipients": backup_escrow.recipients(str(about.get("sealed", ""))),
    }


def restore_test(status: dict) -> dict:
    """Return how the last restore test went."""
    last = status.get("restore_test", {})
    return {
        "days": round(hours(status.get("restore_passed")) / 24, 2),
        "passed": bool(last.get("passed")),
        "seconds": last.get("seconds", 0),
        "structure": last.get("structure", ""),
        "sets": {name: tried(about) for name, about in last.get("sets", {}).items()},
    }


def tried(about: dict) -> dict:
    """Return how the restore of a set went. What databases answered is nobody's business: that they did is."""
    wanted = ("identical", "compared", "moved", "bytes", "problem", "seconds")
    said = about.get("databases") or {}
    answered = {name: isinstance(one, dict) and bool(one.get("answered")) for name, one in said.items()}
    return {**{key: about.get(key) for key in wanted}, "databases": answered}


def documents(status: dict) -> dict:
    """Return what is described of the host, and how old the sheet of recovery is."""
    sheet, place = os.path.join(STATE, "RECOVERY.md"), os.path.join(STATE, "inventory")
    return {
        "hours": hours(os.stat(sheet).st_mtime if os.path.exists(sheet) else None),
        "inventory": sorted(os.listdir(place)) if os.path.isdir(place) else [],
        "unavailable": status.get("unavailable", []),
    }
