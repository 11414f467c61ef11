# Copyright: (c) 2026, Bulwark contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Observe the accounts of a host: who could log in, how, and when somebody last did.

Only local account files are read. No password hash leaves this module: a password is locked, set, empty or missing.
Last logins come from every source the host has, and each says which one it was:

lastlog   /var/log/lastlog       sshd (terminal sessions) and, on Debian 12, login
wtmp      /var/log/wtmp, wtmp.1  the same programs, until rotated away
wtmpdb    /var/log/wtmp.db       Debian 13: sshd (terminal sessions), and login where libpam-wtmpdb is installed
lastlog2  /var/lib/lastlog/lastlog2.db   Debian 13 with libpam-lastlog2
bulwark   /var/lib/bulwark/logins        what the role accounts makes PAM write down: every login, terminal or not
record    /var/lib/bulwark/accounts/record.json   what the role saw at its last run, should a source have been lost
"""

from __future__ import annotations

import base64
import binascii
import ctypes
import glob
import hashlib
import hmac
import json
import os
import platform
import re
import sqlite3
import stat
import struct
import time

from ansible_collections.bulwark.hardening.plugins.module_utils import accounts as rules
from ansible_collections.bulwark.hardening.plugins.module_utils.posture.common import (
    SSHD,
    CannotObserve,
    read,
    sshd_effective,
)

RECORD = "/var/lib/bulwark/accounts/record.json"
LOGINS = "/var/lib/bulwark/logins"
RECORDER = "/usr/local/libexec/bulwark/record-login"
LASTLOG = "/var/log/lastlog"
WTMPS = ("/var/log/wtmp", "/var/log/wtmp.1")
WTMPDB = "/var/log/wtmp.db"
LASTLOG2 = "/var/lib/lastlog/lastlog2.db"

# Programs that let nobody in, and the Debian package whose checksums say whether they are still what they were.
NO_SHELLS = {
    "/usr/sbin/nologin": ("login", ("usr/sbin/nologin",)),
    "/usr/bin/false": ("coreutils", ("usr/bin/false", "bin/false")),
}

# glibc keeps 32-bit times in these files on some machines and 64-bit ones on others: machine: (lastlog format,
# utmp size, offset of the seconds, their format). Machines not listed are not guessed at.
LAYOUTS = {
    "x86_64": ("<I32s256s", 384, 340, "<I"),
    "i686": ("<I32s256s", 384, 340, "<I"),
    "aarch64": ("<q32s256s", 400, 344, "<q"),
}
USER_PROCESS = 7

# Passwords that images, installers and hurried people leave behind. Each is tried at most once an account.
DEFAULT_PASSWORDS = ("password", "changeme")
VENDOR_PASSWORDS = {"pi": "raspberry", "root": "toor", "kali": "kali", "ubnt": "ubnt"}
GUESSING_SECONDS = 3.0


def collect() -> dict:
    """Return what is known of all local accounts. Raises CannotObserve when their files cannot be read."""
    now = int(time.time())
    passwd, shadow = read("/etc/passwd"), rules.parse_shadow(read("/etc/shadow"))
    groups = rules.parse_groups(read("/etc/group"))
    record = load_record()
    lines = rules.parse_passwd(passwd)
    entries = [entry for entry in lines if "odd" not in entry]
    logins, sources = last_logins(entries, record)
    patterns, uses_pam = sshd_settings()
    uid_min = lowest_person(read("/etc/login.defs") if os.path.exists("/etc/login.defs") else "")
    in_use, sessions, shells = programs(), live_sessions(), listed_shells()
    reserved = {entry["reserved_as"]: name for name, entry in record["removed"].items()}

    accounts = []
    for entry in entries:
        name, uid = entry["name"], entry["uid"]
        field, expires_day = shadow.get(name, (None, None))
        files = key_files(name, uid, entry["home"], patterns)
        accounts.append(
            {
                "name": name,
                "uid": uid,
                "gid": entry["gid"],
                "home": entry["home"],
                "kind": "reserved" if name in reserved else rules.account_kind(name, uid, uid_min),
                "removed_name": reserved.get(name),
                "shell": entry["shell"],
                "shell_kind": shell_kind(entry["shell"], shells),
                "password": rules.password_kind(entry["password"], field),
                "expires_day": expires_day,
                "expired": expires_day is not None and 0 <= expires_day <= now // rules.DAY,
                "keys": sorted({key for path in files for key in fingerprints(path)}),
                "key_files": files,
                "groups": sorted(group for group, members in groups.items() if name in members),
                "last_login": logins.get(name),
                "first_seen": record["seen"].get(f"{name}:{uid}", {}).get("first_seen"),
                "sessions": sessions.get(uid, 0),
                "used_by": sorted(in_use.get(uid, set()) | in_use.get(name, set())),
                "disabled": record["disabled"].get(name) if record["uids"].get(name, uid) == uid else None,
            }
        )

    uids: dict = {}
    for entry in entries:
        uids.setdefault(entry["uid"], []).append(entry["name"])
    names = [entry["name"] for entry in entries]
    recorder = login_recorder(uses_pam)
    kept_since = record["recording_since"]
    files = ("/etc/passwd", "/etc/shadow", "/etc/group", "/etc/gshadow")
    data = {
        "now": now,
        "login_recorder": recorder,
        # Somebody emptied our own login records after they were first kept: what they held is not held against anyone.
        "logins_lost_at": recorder["since"] if kept_since and (recorder["since"] or 0) > kept_since + 60 else None,
        "root": next((account for account in accounts if account["kind"] == "root"), None),
        "system": [account for account in accounts if account["kind"] == "system"],
        "people": [account for account in accounts if account["kind"] == "person"],
        "reserved": [account for account in accounts if account["kind"] == "reserved"],
        "lost_reservations": sorted(
            name
            for name, entry in record["removed"].items()
            if not entry.get("revived") and entry["reserved_as"] not in uids.get(entry["uid"], [])
        ),
        "empty_passwords": [account["name"] for account in accounts if account["password"] == "empty"],
        "shared_uids": {str(uid): sharing for uid, sharing in sorted(uids.items()) if len(sharing) > 1},
        "repeated_names": sorted({name for name in names if names.count(name) > 1}),
        "nis_entries": [f"{path}: {name}" for path in files if os.path.exists(path) for name in rules.nis_lines(read(path))],
        "malformed_lines": [entry["line"] + 1 for entry in lines if entry.get("odd") == "malformed"],
        "shared_keys": rules.find_shared_keys(accounts),
    }
    unobserved = {}
    broken = sorted(name for name, state in sources.items() if state.startswith("unreadable"))
    if broken:
        unobserved["login_sources"] = "; ".join(f"{name}: {sources[name]}" for name in broken)
    else:
        data["login_sources"] = sources
    try:
        data["default_passwords"] = default_passwords(entries, shadow)
    except CannotObserve as exc:
        unobserved["default_passwords"] = str(exc)
    if unobserved:
        data["unobserved"] = unobserved
    return data


def load_record() -> dict:
    """Return the role's own record, empty where there is none. Raises CannotObserve when it is damaged.

    seen        {"name:uid": {"first_seen": seconds, "last_login": seconds}}
    before      {name: {attribute: [what it was, what the role made of it]}}
    disabled    {name: {"at": seconds, "reason": word, "why": text}}
    uids        {name: uid} of those in before and disabled, for a name may come back as somebody else
    removed     {name: {"uid", "gid", "at", "reserved_as", "archive", "sha256", "owner"}}
    files       [{"path", "saved", ...}]: files of keys that were put away
    lines       [{"path", "line"}]: NIS lines that were taken out
    """
    record: dict = {"schema": 1, "recording_since": None, "files": [], "lines": []}
    record.update({key: {} for key in ("seen", "before", "disabled", "uids", "removed")})
    if os.path.exists(RECORD):
        try:
            record.update(json.loads(read(RECORD)))
        except ValueError as exc:
            raise CannotObserve(f"{RECORD} is damaged: {exc}") from exc
        if record["schema"] != 1:
            raise CannotObserve(f"{RECORD} has schema {record['schema']}, this version knows 1")
    return record


def lowest_person(login_defs: str) -> int:
    """Return the lowest uid of people (UID_MIN of login.defs; 1000 where nothing is said)."""
    found = re.search(r"^UID_MIN\s+(\d+)", login_defs, re.M)
    return int(found.group(1)) if found else 1000


# --- shells -----------------------------------------------------------------------------------------------------------


def listed_shells() -> set:
    """Return the shells of /etc/shells."""
    try:
        return {line.strip() for line in read("/etc/shells").splitlines() if line.startswith("/")}
    except CannotObserve:
        return set()


def shell_kind(shell: str, listed: set) -> str:
    """Return none (lets nobody in, and is the vendor's own program), listed (in /etc/shells) or unlisted.

    Where a shell really is counts, not what it is called: a bash copied over /bin/false is a shell. A missing program is
    unlisted, for somebody may put one there.
    """
    real = os.path.realpath(shell) if shell else ""
    if real in NO_SHELLS and genuine(real):
        return "none"
    return "listed" if not shell or (shell in listed and real not in NO_SHELLS) else "unlisted"


_genuine: dict = {}


def genuine(program: str) -> bool:
    """Tell whether a program that lets nobody in still is the one its Debian package brought."""
    if program not in _genuine:
        package, names = NO_SHELLS[program]
        known: dict = {}
        # Multi-arch packages carry their architecture in the file's name.
        for path in glob.glob(f"/var/lib/dpkg/info/{package}.md5sums") + glob.glob(f"/var/lib/dpkg/info/{package}:*.md5sums"):
            known.update(line.split("  ", 1)[::-1] for line in read(path).splitlines() if "  " in line)
        try:
            with open(program, "rb") as stream:
                digest = hashlib.md5(stream.read(), usedforsecurity=False).hexdigest()  # what dpkg has
        except OSError:
            digest = ""
        _genuine[program] = any(known.get(name) == digest for name in names)
    return _genuine[program]


# --- keys -------------------------------------------------------------------------------------------------------------


def sshd_settings() -> tuple[list[str], bool | None]:
    """Return (AuthorizedKeysFile patterns, whether sshd uses PAM); sshd's defaults and None where it is not installed."""
    if not os.path.exists(SSHD):
        return [".ssh/authorized_keys", ".ssh/authorized_keys2"], None
    text = sshd_effective()
    settings = dict(line.split(" ", 1) for line in text.splitlines() if " " in line)
    patterns = settings.get("authorizedkeysfile", "").split()
    return [pattern for pattern in patterns if pattern != "none"], settings.get("usepam") == "yes"


def key_files(name: str, uid: int, home: str, patterns: list[str]) -> list[str]:
    """Return the files that exist and hold keys which open an account.

    ~/.ssh is looked at whatever sshd is told now: a key left there opens the account the day the setting changes.
    """
    found = []
    for pattern in dict.fromkeys([*patterns, ".ssh/authorized_keys", ".ssh/authorized_keys2"]):
        path = re.sub(r"%([%huU])", lambda m: {"%": "%", "h": home, "u": name, "U": str(uid)}[m.group(1)], pattern)
        path = os.path.normpath(path if path.startswith("/") else os.path.join(home or "/", path))
        if path not in found and fingerprints(path):
            found.append(path)
    return found


def fingerprints(path: str) -> list[str]:
    """Return the SHA-256 fingerprints of the public keys in a file; none where it is no plain file."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # somebody may have put a pipe there
    except OSError:
        return []
    with os.fdopen(fd, "rb") as stream:
        seen = os.fstat(fd)
        if not stat.S_ISREG(seen.st_mode):
            return []
        lines = stream.read(1 << 20).decode(errors="replace").splitlines()
    found = []
    for line in lines:
        blob = None if line.lstrip().startswith("#") else rules.key_blob(line)
        try:
            digest = hashlib.sha256(base64.b64decode(blob)).digest() if blob else b""
        except binascii.Error:
            continue
        if digest:
            found.append("SHA256:" + base64.b64encode(digest).decode().rstrip("="))
    return found


# --- who is here ------------------------------------------------------------------------------------------------------


def programs() -> dict:
    """Return {uid or name: what runs under it}: processes, system units, crontabs."""
    found: dict = {}
    for entry in os.scandir("/proc"):
        if entry.name.isdigit():
            try:
                found.setdefault(entry.stat().st_uid, set()).add("processes")
            except OSError:
                continue  # it ended meanwhile
    for directory in ("/etc/systemd/system", "/run/systemd/system", "/usr/local/lib/systemd/system", "/usr/lib/systemd/system"):
        for path in glob.glob(f"{directory}/*.service") + glob.glob(f"{directory}/*.service.d/*.conf"):
            try:
                users = re.findall(r"^User=(\S+)", read(path), re.M)
            except CannotObserve:
                continue
            for user in users:
                unit = os.path.basename(path if path.endswith(".service") else os.path.dirname(path)[:-2])
                found.setdefault(int(user) if user.isdigit() else user, set()).add(unit)
    for path in glob.glob("/var/spool/cron/crontabs/*"):
        found.setdefault(os.path.basename(path), set()).add("crontab")
    for path in ["/etc/crontab", *glob.glob("/etc/cron.d/*")]:
        try:
            lines = read(path).splitlines()
        except CannotObserve:
            continue
        for line in lines:
            fields = line.split()
            if line.startswith("@") and len(fields) > 2:
                found.setdefault(fields[1], set()).add(path)
            elif line[:1].isdigit() or line.startswith("*"):
                found.setdefault(fields[5] if len(fields) > 6 else "", set()).add(path)
    return found


def live_sessions() -> dict:
    """Return {uid: sessions of people that logind knows and that have not ended}."""
    found: dict = {}
    for path in glob.glob("/run/systemd/sessions/*"):
        if not os.path.isfile(path):  # beside each session lies a pipe, and reading it would wait for ever
            continue
        try:
            session = dict(line.split("=", 1) for line in read(path).splitlines() if "=" in line)
        except CannotObserve:
            continue
        if session.get("CLASS", "").startswith("user") and session.get("STATE") != "closing" and session.get("UID", "").isdigit():
            found[int(session["UID"])] = found.get(int(session["UID"]), 0) + 1
    return found


def login_recorder(uses_pam: bool | None) -> dict:
    """Return whether PAM writes down every login: {in_pam, program_ok, uses_pam, since}.

    ``since`` is when our own records began (seconds), or None. ``uses_pam`` is None where there is no sshd.
    """
    try:
        stack = read("/etc/pam.d/common-session")
    except CannotObserve:
        stack = ""
    try:
        seen = os.stat(RECORDER)
        program_ok = seen.st_uid == 0 and not seen.st_mode & 0o022 and bool(seen.st_mode & 0o100)
    except OSError:
        program_ok = False
    try:
        began = int(read(os.path.join(LOGINS, ".since")).split()[0])
    except (CannotObserve, ValueError, IndexError):
        began = None
    active = [line for line in stack.splitlines() if not line.lstrip().startswith("#") and RECORDER in line.split()]
    return {"in_pam": bool(active), "program_ok": program_ok, "uses_pam": uses_pam, "since": began}


# --- last logins ------------------------------------------------------------------------------------------------------


def last_logins(entries: list, record: dict) -> tuple[dict, dict]:
    """Return ({name: {"at": seconds, "source": word}}, {source: read, absent or "unreadable: why"}).

    The latest over all sources counts.
    """
    found: dict = {}
    state: dict = {}
    by_uid: dict = {}
    for entry in entries:
        by_uid.setdefault(entry["uid"], []).append(entry["name"])

    def note(name: str, at: int, source: str) -> None:
        if at > 0 and (name not in found or at > found[name]["at"]):
            found[name] = {"at": at, "source": source}

    def look(source, path, reader) -> None:
        try:
            if not os.path.exists(path):
                state[source] = "absent"
                return
            for who, at in reader(path):
                for name in by_uid.get(who, []) if isinstance(who, int) else [who]:
                    note(name, at, source)
            state[source] = "read"
        except (OSError, ValueError, struct.error, sqlite3.Error, CannotObserve) as exc:
            state[source] = f"unreadable: {exc}"

    for entry in entries:
        note(entry["name"], record["seen"].get(f"{entry['name']}:{entry['uid']}", {}).get("last_login") or 0, "record")
    look("lastlog", LASTLOG, lambda path: read_lastlog(path, set(by_uid), platform.machine()))
    for path in WTMPS:
        look(os.path.basename(path), path, lambda path: read_wtmp(path, platform.machine()))
    look(
        "wtmpdb",
        WTMPDB,
        lambda path: read_database(path, "SELECT User, MAX(Login) / 1000000 FROM wtmp WHERE Type = 3 GROUP BY User"),
    )
    look("lastlog2", LASTLOG2, lambda path: read_database(path, "SELECT Name, Time FROM Lastlog2"))
    look("bulwark", LOGINS, read_records)
    state = {source: said for source, said in state.items() if said != "absent"}
    return {name: login for name, login in found.items() if any(name in names for names in by_uid.values())}, state


def read_lastlog(path: str, uids: set, machine: str) -> list:
    """Return [(uid, seconds)] of a lastlog file, which has a slot for every uid (and holes for most of them)."""
    if machine not in LAYOUTS:
        raise CannotObserve(f"the layout of {path} on {machine} is not known")
    layout = LAYOUTS[machine][0]
    size = struct.calcsize(layout)
    found = []
    with open(path, "rb") as stream:
        end = stream.seek(0, os.SEEK_END)
        if end % size:
            raise CannotObserve(f"{path} has {end} bytes, not a multiple of {size}")
        for uid in uids:
            if (uid + 1) * size <= end:
                stream.seek(uid * size)
                found.append((uid, struct.unpack(layout, stream.read(size))[0]))
    return found


def read_wtmp(path: str, machine: str) -> list:
    """Return [(name, seconds)] of the logins in a wtmp file."""
    if machine not in LAYOUTS:
        raise CannotObserve(f"the layout of {path} on {machine} is not known")
    _lastlog, size, offset, layout = LAYOUTS[machine]
    found = []
    with open(path, "rb") as stream:
        while True:
            block = stream.read(size * 4096)
            if not block:
                return found
            for start in range(0, len(block) - size + 1, size):
                entry = block[start : start + size]
                if struct.unpack_from("<h", entry)[0] == USER_PROCESS:
                    name = entry[44:76].split(b"\0", 1)[0].decode(errors="replace")
                    found.append((name, struct.unpack_from(layout, entry, offset)[0]))


def read_database(path: str, query: str) -> list:
    """Return [(name, seconds)] from one of Debian 13's login databases."""
    database = sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=2)
    try:
        return [(str(name), int(at)) for name, at in database.execute(query) if at is not None]
    finally:
        database.close()


def read_records(path: str) -> list:
    """Return [(name, seconds)] of our own records: one file an account, seconds and service inside."""
    found = []
    for entry in os.scandir(path):
        if entry.name.startswith("."):
            continue
        words = read(entry.path).split()
        if not words or not words[0].isdigit():
            raise CannotObserve(f"{entry.path} does not hold a time")
        found.append((entry.name, int(words[0])))
    return found


# --- passwords --------------------------------------------------------------------------------------------------------


def default_passwords(entries: list, shadow: dict) -> list[str]:
    """Return the names of accounts whose password is their own name or one that vendors ship.

    Raises CannotObserve when there is no libcrypt, or when trying takes too long. No hash is kept or shown.
    """
    usable = [(e["name"], shadow[e["name"]][0]) for e in entries if e["name"] in shadow and e["password"] == "x"]
    usable = [(name, field) for name, field in usable if rules.password_kind("x", field) == "set"]
    if not usable:
        return []
    try:
        crypt = ctypes.CDLL("libcrypt.so.1").crypt
    except (OSError, AttributeError) as exc:
        raise CannotObserve(f"libcrypt: {exc}") from exc
    crypt.restype, crypt.argtypes = ctypes.c_char_p, [ctypes.c_char_p, ctypes.c_char_p]
    end = time.monotonic() + GUESSING_SECONDS
    found = []
    for name, field in usable:
        for guess in dict.fromkeys([name, *DEFAULT_PASSWORDS, VENDOR_PASSWORDS.get(name, name)]):
            if time.monotonic() > end:
                raise CannotObserve(f"trying default passwords on {len(usable)} accounts takes more than {GUESSING_SECONDS} s")
            made = crypt(guess.encode(), field.encode())
            if made and hmac.compare_digest(made, field.encode()):
                found.append(name)
                break
    return found
