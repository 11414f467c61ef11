# Copyright: (c) 2026, Bulwark contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Back a host up, and try whether it can be restored. Run by bulwark-backup.service every few minutes. Standard library only.

    backup_agent tick                 do what is due, backups and the restore test
    backup_agent run [--set NAME]     back up now
    backup_agent restore-test         restore everything to scratch now, and compare
    backup_agent compare MANIFEST ROOT   compare what was restored elsewhere with the manifest that came with it

What is due is known to this program and its settings only, /etc/bulwark/backup/settings.json, mode 0600: the timer that all can
see ticks at the same pace on every host. The settings:

    {"host", "server", "site", "custodians": [names], "splay_minutes", "restore_test_days", "scratch",
     "sets": [{"name", "volatility", "interval_hours", "paths", "excludes", "databases": [{"name", "kind", ...}]}]}

A manifest says of every file what it was when it was backed up: type, owner, mode, size, time, extended attributes (so access
control lists, too) and SHA-256. It is part of the backup.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import email.utils
import errno
import fcntl
import glob
import hashlib
import http.client
import json
import os
import pwd
import re
import shutil
import sqlite3
import ssl
import stat
import subprocess
import sys
import tempfile
import time
import urllib.parse
from collections.abc import Callable, Iterator

SECRETS, STATE, CACHE = "/etc/bulwark/backup", "/var/lib/bulwark/backup", "/var/cache/bulwark-backup"
KEEPER = "/etc/bulwark/backup_keeper.json"  # on a host that keeps the backups of others
HOUR, DAY = 3600, 86400
AHEAD = 300  # how wrong clocks may be
BLOCK, SHOWN, KEPT_TESTS = 1 << 20, 20, 50
LONGEST_WAIT, LONGEST_RUN = 4 * HOUR, 12 * HOUR
LOCKED_SECONDS = 900  # for so long a dump waits for whoever keeps a database of SQLite locked
KEPT_FREE = 0.05
NO_ANSWERS = ("", "0", "f", "false", "no", "none", "null")
TABLESPACE = re.compile(r"(CREATE|ALTER|COMMENT ON) TABLESPACE |(GRANT|REVOKE) .* ON TABLESPACE ")
UNREACHED = re.compile(r"dial tcp|[Tt]imeout|connection re|no such host|no route|network is|x509|tls: |: EOF")
MARK = ".made-by-bulwark-backup"
ENVIRONMENT = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C.UTF-8", "HOME": "/root"}
# What a host is made of, beside its files: file in the inventory, command.
INVENTORY = {
    "packages": ["dpkg-query", "-W", "-f", "${Package}\t${Version}\t${Architecture}\t${db:Status-Abbrev}\n"],
    "installed-automatically": ["cat", "/var/lib/apt/extended_states"],  # apt-mark would take seconds to say the same
    "block-devices": ["lsblk", "--json", "--bytes", "-o", "NAME,TYPE,SIZE,FSTYPE,LABEL,UUID,PARTUUID,PARTTYPE,MOUNTPOINT,MODEL"],
    "file-systems": ["findmnt", "--task", "1", "--json", "--real", "-o", "TARGET,SOURCE,FSTYPE,OPTIONS,SIZE"],
    "physical-volumes": ["pvs", "--reportformat", "json", "-o", "pv_all"],
    "volume-groups": ["vgs", "--reportformat", "json", "-o", "vg_all"],
    "logical-volumes": ["lvs", "--reportformat", "json", "-o", "lv_all"],
    "raid": ["mdadm", "--detail", "--scan"],
    "addresses": ["ip", "-json", "address"],
    "routes": ["ip", "-json", "route"],
    "units": ["find", "/etc/systemd/system", "-type", "l", "-printf", r"%P -> %l\n"],
    "kernel": ["uname", "-a"],
}


class AgentError(Exception):
    """Something could not be done; the text says what, never a secret."""

    event = "failed"


class RepositoryGone(AgentError):
    """The repository is not there any more, or is another one: no fault that passes by itself."""

    event = "repository_gone"


def load(path: str) -> dict:
    """Return what a file of JSON holds; nothing if it is not there."""
    try:
        with open(path, encoding="utf-8") as stream:
            return json.load(stream)
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as exc:
        raise AgentError(f"{path}: {exc}") from exc


def write(path: str, content: bytes) -> None:
    """Write a file for root alone, in full or not at all. What a crash takes of it, the next run writes again."""
    os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(prefix=".new-", dir=os.path.dirname(path))
    with os.fdopen(descriptor, "wb") as stream:
        stream.write(content)
    os.replace(temporary, path)


def save(path: str, data: dict) -> None:
    """Write a file of JSON."""
    write(path, json.dumps(data, indent=1, sort_keys=True).encode() + b"\n")


def stamp(at: float) -> str:
    """Return a time in UTC."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(at))


def word(text: str) -> str:
    """Return a text as one word of a line: whoever names a file cannot end the quotation, and say something else."""
    return text if re.fullmatch(r"[A-Za-z0-9_.:/@+-]+", text) else json.dumps(text.replace('"', "'"))


def say(event: str, loud: bool = False, **more: object) -> None:
    """Write a line to the journal, as an error if it is loud. Role log_review raises alarms by what is said here."""
    words = [f"event={event}", *(f"{key}={word(str(value))}" for key, value in more.items())]
    sys.stderr.write(("<3>" if loud else "<6>") * ("JOURNAL_STREAM" in os.environ) + " ".join(words) + "\n")


@contextlib.contextmanager
def handed(text: str) -> Iterator[str]:
    """Yield the name of a file of which only the child process knows: neither arguments nor environment show what is in it."""
    with tempfile.TemporaryFile() as stream:
        stream.write(text.encode("utf-8", "surrogateescape"))
        stream.flush()
        stream.seek(0)
        os.set_inheritable(stream.fileno(), True)
        yield f"/dev/fd/{stream.fileno()}"


def restic(*words: str, allowed: tuple[int, ...] = (0,)) -> tuple[int, str]:
    """Run restic with the host's credential and key; return (exit status, what it printed)."""
    command = [
        "restic", "--repository-file", f"{SECRETS}/repository", "--password-file", f"{SECRETS}/password",
        "--cacert", f"{SECRETS}/ca.crt", "--cache-dir", CACHE, *words,
    ]  # fmt: skip
    try:
        done = subprocess.run(
            command, check=False, capture_output=True, text=True, errors="surrogateescape", stdin=subprocess.DEVNULL,
            close_fds=False, cwd="/", env=ENVIRONMENT, timeout=LONGEST_RUN,
        )  # fmt: skip
    except subprocess.TimeoutExpired as exc:
        raise AgentError(f"restic {words[0]}: did not end in {LONGEST_RUN // HOUR} hours") from exc
    if done.returncode not in allowed:
        raise AgentError(f"restic {words[0]}: {last_words(done.stderr or done.stdout) or done.returncode}")
    return done.returncode, done.stdout + (done.stderr if done.returncode else "")


def clocks_agree() -> bool:
    """Return whether the repository's clock, as it tells it to every visitor, says what ours does."""
    try:
        with open(f"{SECRETS}/repository", encoding="ascii") as stream:
            place = urllib.parse.urlsplit(stream.read().strip().removeprefix("rest:"))
        context = ssl.create_default_context(cafile=f"{SECRETS}/ca.crt")
        link = http.client.HTTPSConnection(place.hostname or "", place.port, timeout=20, context=context)
        with contextlib.closing(link):
            link.request("HEAD", "/")
            there = email.utils.parsedate_to_datetime(link.getresponse().headers["Date"])
    except (OSError, ValueError, TypeError, http.client.HTTPException):
        return False
    return abs(there.timestamp() - time.time()) < AHEAD


def unlock() -> None:
    """Take away what one that was killed left, here or as it tidied up there: it would keep all others out.

    restic goes by our clock. Were that wrong, it would take away the lock of one that works, and damage what it works on.
    """
    if clocks_agree():
        restic("--quiet", "unlock")


def last_words(text: str) -> str:
    """Return the last lines that a program said, without the password that an address may hold."""
    said = " | ".join(line for line in text.strip().splitlines()[-3:] if line)
    return re.sub(r"://[^@/\s]*@", "://", said)[:500]


def ahead(at: float) -> bool:
    """Return whether something is said to have happened in the future: the clock was wrong then, or is now."""
    return at > time.time() + AHEAD


def due_at(entry: dict, about: dict, host: str, splay_minutes: int) -> float:
    """Return when a set is to be backed up next: within its interval, each host and set at another minute.

    What failed once is tried again at the next tick, then at longer and longer intervals: it might read all data each time.
    """
    tried, failures = about.get("tried", 0), about.get("failures", 0)
    if failures > 1 and not ahead(tried):
        return tried + min(HOUR / 3 * 2 ** (failures - 2), LONGEST_WAIT)
    if not about.get("success") or ahead(about["started"]):
        return 0.0
    part = int(hashlib.sha256(f"{host}/{entry['name']}".encode()).hexdigest()[:8], 16) / 0xFFFFFFFF
    return about["started"] + entry["interval_hours"] * HOUR - splay_minutes * 60 * (1 + part)


# --- what a host is made of ---------------------------------------------------------------------------------------------


def asked(command: list[str]) -> tuple[str, bool]:
    """Return (what a command says about the host, or that it cannot; whether it failed). What is not installed has no say."""
    try:
        done = subprocess.run(command, check=False, capture_output=True, stdin=subprocess.DEVNULL, timeout=120, env=ENVIRONMENT)
    except FileNotFoundError:
        return f"not available: {command[0]} is not installed\n", False
    except (OSError, subprocess.TimeoutExpired) as exc:
        return f"not available: {exc}\n", True
    if done.returncode:
        return f"not available: {last_words(done.stderr.decode(errors='replace'))}\n", True
    return done.stdout.decode(errors="replace"), False


def inventory(settings: dict, status: dict) -> None:
    """Write down packages, volumes, partitions and the like, how this host is recovered, and what could not be found out."""
    unavailable = []
    for name, command in INVENTORY.items():
        text, failed = asked(command)
        write(os.path.join(STATE, "inventory", name), text.encode())
        unavailable += [name] * failed
    disks = sorted(glob.glob("/dev/[sv]d?") + glob.glob("/dev/nvme*n?"))
    save(os.path.join(STATE, "inventory", "partitions.json"), {disk: asked(["sfdisk", "--dump", disk])[0] for disk in disks})
    write(os.path.join(STATE, "RECOVERY.md"), recovery_sheet(settings).encode())
    status["unavailable"] = unavailable


def recovery_sheet(settings: dict) -> str:
    """Return what somebody needs to know who builds this host anew."""
    lines = [
        f"# How {settings['host']} is recovered", "",
        f"Written {stamp(time.time())} by the host itself, from what it is. It lies in each of its backups.", "",
        f"Backups: {settings['server']} ({settings['site']}). The key is sealed to: {', '.join(settings['custodians'])}.", "",
        "| set | at least every | what |", "|---|---|---|",
    ]  # fmt: skip
    for entry in settings["sets"]:
        databases = [f"database {base['name']} ({base['kind']})" for base in entry["databases"]]
        lines.append(f"| {entry['name']} | {entry['interval_hours']} h | {', '.join([*entry['paths'], *databases])} |")
    lines += [
        "", "1. Install the same release of Debian on a machine with the partitions of `inventory/partitions.json`,",
        "   `inventory/block-devices` and `inventory/logical-volumes`.",
        f"2. A custodian opens the newest of the repository's `escrow/{settings['host']}/` with age: that is the key",
        "   (docs/backup.md).",
        "3. `restic restore latest --tag set:<set> --target /root/back` for each set, then",
        f"   `cp -a --remove-destination /root/back/. /`. State and dumps are below {STATE}.",
        "4. Install what `inventory/packages` lists (some of it comes by itself: `inventory/installed-automatically`).",
        f"5. Load the dumps of databases from {STATE}/dumps; of PostgreSQL first *.globals (psql), then the rest (pg_restore).",
        f"6. `backup_agent compare {STATE}/manifests/<set>.json /` says whether all is as it was.", "",
    ]  # fmt: skip
    return "\n".join(lines)


# --- databases ----------------------------------------------------------------------------------------------------------


def as_user(
    command: list[str], user: str, into: str = "", given: str = "", cwd: str = "/", seconds: int = 6 * HOUR, quiet: bool = False
) -> str:
    """Run a command as an account; its output goes into a file, or is returned. Raises AgentError if it fails.

    A quiet one has read what people entrusted to a database, so what it complains of may quote that, and goes nowhere.
    """
    about = pwd.getpwnam(user)
    environment = {**ENVIRONMENT, "HOME": about.pw_dir, "USER": user, "LOGNAME": user}
    with contextlib.ExitStack() as stack:
        output = stack.enter_context(open(into, "wb")) if into else subprocess.PIPE
        source = stack.enter_context(open(given, "rb")) if given else subprocess.DEVNULL
        try:
            done = subprocess.run(
                command, check=False, stdin=source, stdout=output, stderr=subprocess.PIPE, env=environment, cwd=cwd,
                user=about.pw_uid, group=about.pw_gid, extra_groups=os.getgrouplist(user, about.pw_gid), umask=0o077,
                timeout=seconds,
            )  # fmt: skip
        except (OSError, subprocess.TimeoutExpired) as exc:
            raise AgentError(f"{command[0]}: {exc}") from exc
    if done.returncode:
        said = f"exit {done.returncode}"
        raise AgentError(f"{command[0]}: {said}{'' if quiet else ': ' + last_words(done.stderr.decode(errors='replace'))}")
    return (done.stdout or b"").decode(errors="replace").strip()


def dump_path(base: dict) -> str:
    """Return where a database's dump lies."""
    return os.path.join(STATE, "dumps", base["name"])


def dump_paths(base: dict) -> list[str]:
    """Return all files of a database's dump. That of PostgreSQL has roles beside it, which own what is in the database."""
    return [dump_path(base), dump_path(base) + ".globals"] if base["kind"] == "postgresql" else [dump_path(base)]


def patience(seconds: float) -> Callable[..., None]:
    """Return what sqlite calls each time it has tried to copy a database, and which ends that after so long.

    Whoever keeps a database locked would keep all backups of the host waiting else: sqlite tries for ever.
    """
    end = time.monotonic() + seconds

    def tried(_status: int, remaining: int, _total: int) -> None:
        if time.monotonic() > end:
            raise sqlite3.OperationalError(f"somebody has kept it locked for {seconds:.0f} seconds, {remaining} pages to come")

    return tried


def dump(base: dict) -> None:
    """Write a database as it is at one moment. A dump that fails leaves the one before, and the backup counts as failed."""
    fresh = [path + ".new" for path in dump_paths(base)]
    os.makedirs(os.path.dirname(fresh[0]), mode=0o700, exist_ok=True)
    if base["kind"] == "postgresql":
        as_user(["pg_dumpall", "--globals-only"], base["user"], fresh[1])
        as_user(["pg_dump", "--format=custom", "--dbname", base["database"]], base["user"], fresh[0])
    elif base["kind"] == "sqlite":
        with contextlib.suppress(FileNotFoundError):
            os.unlink(fresh[0])
        try:
            source = sqlite3.connect(f"file:{base['path']}?mode=ro", uri=True)
            target = sqlite3.connect(fresh[0])
            with contextlib.closing(source), contextlib.closing(target):
                source.backup(target, progress=patience(LOCKED_SECONDS))
        except sqlite3.Error as exc:
            raise AgentError(f"{base['name']}: {exc}") from exc
    else:
        as_user(base["dump"], base["user"], fresh[0], quiet=True)
    for path in fresh:
        os.chmod(path, 0o600)
        if not os.stat(path).st_size:
            raise AgentError(f"{base['name']}: the dump is empty")
    for path in fresh:
        os.replace(path, path.removesuffix(".new"))


def ask(base: dict, path: str, scratch: str) -> dict:
    """Load a restored dump into a database of its own, ask it something, and return {answered, length}. Raises AgentError else.

    What it answered may be somebody's data, and is written down nowhere. Nothing, 0 and false are no answers: an empty database
    gives them as well.
    """
    if base["kind"] == "postgresql":
        answer = ask_postgresql(base, path, scratch)
    elif base["kind"] == "sqlite":
        try:
            with contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as link:
                if link.execute("PRAGMA integrity_check").fetchone()[0] != "ok":
                    raise AgentError(f"{base['name']}: the restored database is not sound")
                query = base.get("query") or "SELECT count(*) FROM sqlite_master WHERE type = 'table'"
                answer = "\n".join("|".join(map(str, row)) for row in link.execute(query))
        except sqlite3.Error as exc:
            raise AgentError(f"{base['name']}: {type(exc).__name__}: the restored database cannot be read") from exc
    else:
        answer = as_user(base["probe"], base["user"], given=path, quiet=True)
    if answer.strip().lower() in NO_ANSWERS:
        raise AgentError(f"{base['name']}: the restored database does not answer, or holds nothing")
    return {"answered": True, "length": len(answer)}


def roles_of(text: str) -> str:
    """Return the part of PostgreSQL's globals that makes roles: a tablespace would be made where the real one lies."""
    return "".join(line for line in text.splitlines(keepends=True) if not TABLESPACE.match(line))


def ask_postgresql(base: dict, path: str, scratch: str) -> str:
    """Ask a server that was started for this, which nobody else can reach. All belongs in it to whom it belonged."""
    found = sorted(glob.glob("/usr/lib/postgresql/*/bin/initdb"), key=lambda name: float(name.split("/")[4]))
    if not found:
        raise AgentError(f"{base['name']}: no PostgreSQL is installed that could read it")
    programs, user = os.path.dirname(found[-1]), base["user"]
    place, about = tempfile.mkdtemp(prefix="pg-", dir=scratch), pwd.getpwnam(user)  # short, for it is part of a socket's name
    copy, roles = os.path.join(place, "dump"), os.path.join(place, "roles.sql")
    shutil.copyfile(path, copy)
    with open(path + ".globals", encoding="utf-8", errors="surrogateescape") as stream:
        write(roles, roles_of(stream.read()).encode("utf-8", "surrogateescape"))
    for name in (copy, roles, place):
        os.chown(name, about.pw_uid, about.pw_gid)
    data = os.path.join(place, "data")
    as_user([f"{programs}/initdb", "--no-sync", "-A", "trust", "-D", data], user, cwd=place)
    options = f"-k {place} -c listen_addresses= -c fsync=off -c max_connections=10 -c shared_buffers=16MB"
    as_user([f"{programs}/pg_ctl", "-D", data, "-w", "-s", "-l", f"{place}/log", "-o", options, "start"], user, cwd=place)
    try:
        ask_it = [f"{programs}/psql", "-X", "-q", "-h", place, "-d", "postgres"]
        as_user([*ask_it, "-f", roles], user, cwd=place, quiet=True)  # that the account itself is there already is no error
        as_user([f"{programs}/createdb", "-h", place, "-T", "template0", "restored"], user, cwd=place)
        restore = [f"{programs}/pg_restore", "-h", place, "-d", "restored", "--no-tablespaces", "--exit-on-error", copy]
        as_user(restore, user, cwd=place, quiet=True)
        query = base.get("query") or "SELECT count(*) FROM pg_stat_user_tables"
        return as_user([*ask_it[:-1], "restored", "-t", "-A", "-c", query], user, cwd=place, quiet=True)
    finally:
        as_user([f"{programs}/pg_ctl", "-D", data, "-w", "-s", "-m", "immediate", "stop"], user, cwd=place)


# --- manifests ----------------------------------------------------------------------------------------------------------


def kind_of(mode: int) -> str:
    """Return a letter for the type of a file; nothing for a socket, which is nobody's data."""
    kinds = {stat.S_IFREG: "f", stat.S_IFDIR: "d", stat.S_IFLNK: "l", stat.S_IFCHR: "c", stat.S_IFBLK: "b", stat.S_IFIFO: "p"}
    return kinds.get(stat.S_IFMT(mode), "")


def facts(path: str) -> dict:
    """Return what a file is: type, mode, owner, group, size, time, extended attributes, target."""
    about = os.lstat(path)
    found: dict = {"t": kind_of(about.st_mode), "u": about.st_uid, "g": about.st_gid}
    if found["t"] != "l":
        found["m"] = stat.S_IMODE(about.st_mode)
        found["n"] = about.st_mtime_ns
        with contextlib.suppress(OSError):
            names = sorted(os.listxattr(path, follow_symlinks=False))
            if names:
                found["x"] = {name: base64.b64encode(os.getxattr(path, name, follow_symlinks=False)).decode() for name in names}
    if found["t"] == "f":
        found["s"] = about.st_size
    elif found["t"] == "l":
        found["l"] = os.readlink(path)
    elif found["t"] in "cb":
        found["r"] = about.st_rdev
    return found


def digest(path: str, inode: int = 0) -> str:
    """Return the SHA-256 of a file's content, if it is a plain file, and the one that was looked at.

    People own directories that are backed up: what was a file a moment ago may be a pipe or a link now, to stall or to mislead.
    """
    total = hashlib.sha256()
    with os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC), "rb") as stream:
        about = os.fstat(stream.fileno())
        if not stat.S_ISREG(about.st_mode) or (inode and about.st_ino != inode):
            raise FileNotFoundError(f"{path}: is another one now")
        while block := stream.read(BLOCK):
            total.update(block)
    return total.hexdigest()


def walk(paths: list[str], excludes: list[str]) -> Iterator[str]:
    """Yield everything at and below paths, but for what is excluded, each once."""
    seen, out = set(), {path.rstrip("/") for path in excludes}
    for top in paths:
        if top in seen or top in out:
            continue
        seen.add(top)
        yield top
        if os.path.islink(top) or not os.path.isdir(top):
            continue
        for place, directories, names in os.walk(top):
            directories[:] = sorted(name for name in directories if os.path.join(place, name) not in out)
            for name in sorted([*directories, *names]):
                path = os.path.join(place, name)
                if path not in out and path not in seen:
                    seen.add(path)
                    yield path


def mark(path: str) -> list[int]:
    """Return what tells whether a file was touched since."""
    about = os.lstat(path)
    return [about.st_ino, about.st_size, about.st_mtime_ns, about.st_ctime_ns]


def make_manifest(name: str, paths: list[str], excludes: list[str], before: dict) -> dict:
    """Return {"set", "at", "files": {path: facts}, "marks": {path: mark}}; what was not touched is not read again."""
    files, marks, known, old = {}, {}, before.get("files", {}), before.get("marks", {})
    at = time.time()
    for path in walk(paths, excludes):
        try:
            entry, sign = facts(path), mark(path)
            if entry["t"] == "f":
                unchanged = old.get(path) == sign and "h" in known.get(path, {})
                entry["h"] = known[path]["h"] if unchanged else digest(path, sign[0])
        except OSError:
            continue  # it went away this moment; what stays and cannot be read, restic reports
        if entry["t"]:
            files[path], marks[path] = entry, sign
    return {"set": name, "at": at, "files": files, "marks": marks}


def manifest_path(name: str) -> str:
    """Return where the manifest of a set lies. It is not compressed, so that restic keeps what is as before only once."""
    return os.path.join(STATE, "manifests", f"{name}.json")


def read_manifest(path: str) -> dict:
    """Return a manifest; an empty one if there is none."""
    try:
        with open(path, encoding="ascii") as stream:
            return json.load(stream)
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as exc:
        raise AgentError(f"{path}: {exc}") from exc


def touched(manifest: dict) -> list[str]:
    """Return what was changed or removed since the manifest was made."""
    found = []
    for path, sign in manifest["marks"].items():
        try:
            if mark(path) != sign:
                found.append(path)
        except OSError:
            found.append(path)
    return found


def compare(manifest: dict, root: str, moved: set[str]) -> dict:
    """Return how what lies below a root differs from a manifest, file by file.

    {"compared", "moved": not compared, for they changed while they were backed up, "different": [words], "bytes"}
    """
    different, skipped, size = [], 0, 0
    for path, wanted in manifest["files"].items():
        there = root.rstrip("/") + path
        try:
            seen = facts(there)
        except OSError:
            seen = {}
        if path in moved:
            skipped += 1
            continue
        names = {"t": "type", "u": "owner", "g": "group", "m": "mode", "n": "time", "x": "extended attributes", "s": "size",
                 "l": "target", "r": "device"}  # fmt: skip
        wrong = [word for key, word in names.items() if seen.get(key) != wanted.get(key)] if seen else ["is missing"]
        if not wrong and wanted["t"] == "f":
            size += wanted["s"]
            try:
                wrong = [] if digest(there) == wanted["h"] else ["content"]
            except OSError:
                wrong = ["cannot be read"]
        if wrong:
            younger = seen.get("n", 0) > manifest["at"] * 1e9 and "time" in wrong
            different.append(f"{path}: {', '.join(wrong)}{' (changed after the manifest was made)' if younger else ''}")
    return {"compared": len(manifest["files"]) - skipped, "moved": skipped, "different": different, "bytes": size}


# --- backing up ---------------------------------------------------------------------------------------------------------


def repository(status: dict) -> None:
    """See that the repository is ours; make it once. One that is gone or another one is an alarm, never made anew."""
    code, said = restic("--no-lock", "--quiet", "cat", "config", allowed=(0, 1, 10))
    if code == 0:
        found = json.loads(said)["id"]
        if status.setdefault("repository", found) != found:
            raise RepositoryGone(f"the repository is another one than before: {found[:10]}, not {status['repository'][:10]}")
        return
    if UNREACHED.search(said):
        raise AgentError(f"the repository cannot be reached: {last_words(said)}")
    if status.get("repository"):
        raise RepositoryGone(f"the repository is gone, or does not let this host in: {last_words(said)}")
    if not re.search(r"Is there a repository|does not exist|unable to open config", said):
        raise AgentError(f"restic: {last_words(said)}")
    restic("--quiet", "init")
    status["repository"] = json.loads(restic("--no-lock", "--quiet", "cat", "config")[1])["id"]


def copies_of_others() -> list[str]:
    """Return where this host keeps backups, if it does. They are never part of one: two repositories would grow in circles."""
    directory = load(KEEPER).get("directory")
    return sorted({directory, os.path.realpath(directory)}) if directory else []


def within(path: str, above: str) -> bool:
    """Return whether a path is another one or lies below it."""
    return f"{path.rstrip('/')}/".startswith(f"{above.rstrip('/')}/")


def vanished(line: dict, wanted: list[str]) -> bool:
    """Return whether what restic could not read is no fault: a file that came and went while it looked, as they do."""
    item, error = str(line.get("item", "")), line.get("error")
    absent = (isinstance(error, dict) and error.get("Err") == errno.ENOENT) or os.strerror(errno.ENOENT).lower() in str(error)
    # restic writes U+FFFD for what is no UTF-8: under such a name nothing is found, whether it is there or not.
    return item.startswith("/") and item not in wanted and (absent or ("\ufffd" not in item and not os.path.lexists(item)))


def back_up(settings: dict, entry: dict, status: dict) -> None:
    """Back one set up, and note in the status how it went."""
    about = status.setdefault("sets", {}).setdefault(entry["name"], {})
    about.update(tried=time.time(), failures=about.get("failures", 0) + 1)
    try:
        about.update(backed_up(settings, entry, status), problem="", failures=0)
        say("backed_up", set=entry["name"], snapshot=about["snapshot"][:8], files=about["files"], added=about["added"])
    except (AgentError, OSError, KeyError, ValueError) as exc:
        about["problem"] = f"{type(exc).__name__}: {exc}"[:500] if not isinstance(exc, AgentError) else str(exc)[:500]
        say(getattr(exc, "event", "failed"), True, set=entry["name"], problem=about["problem"])
    save(os.path.join(STATE, "status.json"), status)


def backed_up(settings: dict, entry: dict, status: dict) -> dict:
    """Return {started, success, snapshot, files, added, moved} of one backup. Raises AgentError, or what went wrong else."""
    started = time.time()
    gone = [path for path in entry["paths"] if not os.path.lexists(path)]
    if gone:
        raise AgentError(f"declared, but not there: {', '.join(gone)}")
    others = copies_of_others()
    if circles := [path for path in entry["paths"] for other in others if within(path, other)]:
        raise AgentError(f"backups of others are no data of this host: {', '.join(circles)}")
    repository(status)
    unlock()
    inventory(settings, status)
    for base in entry["databases"]:
        dump(base)
    path = manifest_path(entry["name"])
    excludes = [*entry["excludes"], scratch_of(settings), CACHE, *others]
    manifest = make_manifest(entry["name"], entry["paths"], [*excludes, STATE], read_manifest(path))
    write(path, json.dumps(manifest).encode("ascii"))
    own = [os.path.join(STATE, part) for part in ("inventory", "RECOVERY.md", f"manifests/{entry['name']}.json")]
    own += [path for base in entry["databases"] for path in dump_paths(base)]
    with handed("".join(f"{item}\0" for item in [*entry["paths"], *own])) as listed, handed("\n".join(excludes) + "\n") as out:
        code, said = restic(
            "backup", "--quiet", "--json", "--host", settings["host"], "--tag", f"set:{entry['name']}",
            "--files-from-raw", listed, "--exclude-file", out, allowed=(0, 3),
        )  # fmt: skip
    lines = [json.loads(line) for line in said.split("\n") if line.startswith("{")]  # names may hold what splitlines() splits at
    summary = next((line for line in lines if line.get("message_type") == "summary"), None)
    errors = [str(line.get("item", "")) for line in lines if line.get("message_type") == "error"]
    unread = [str(line.get("item", "")) for line in lines
              if line.get("message_type") == "error" and not vanished(line, [*entry["paths"], *own])]  # fmt: skip
    if summary is None or unread or (code == 3 and not errors):
        raise AgentError(f"could not be read: {', '.join(unread[:SHOWN]) or last_words(said)}")
    moved = touched(manifest)
    save(os.path.join(STATE, "manifests", f"{entry['name']}.moved.json"), {"snapshot": summary["snapshot_id"], "moved": moved})
    return {
        "started": started, "success": time.time(), "snapshot": summary["snapshot_id"], "moved": len(moved),
        "files": summary["total_files_processed"], "added": summary["data_added"], "databases": len(entry["databases"]),
        "left_out": excludes, "vanished": len(errors),
    }  # fmt: skip


# --- room to restore ---------------------------------------------------------------------------------------------------


def scratch_of(settings: dict) -> str:
    """Return where restores are tried: a directory of the agent's own, below the one that was declared."""
    return os.path.join(settings["scratch"], "bulwark-restore-test")


def room(settings: dict) -> str:
    """Make an empty directory to restore to, and return it. Refuse a place where something of somebody else would be at stake."""
    base, place = settings["scratch"], scratch_of(settings)
    declared = [path for entry in settings["sets"] for path in entry["paths"]]
    declared += [base["path"] for entry in settings["sets"] for base in entry["databases"] if base.get("path")]
    if wrong := [path for path in declared if within(path, base)]:
        raise AgentError(f"{base}: is no place to restore to, for it holds what is backed up: {', '.join(wrong)}")
    if wrong := [path for path in copies_of_others() if within(path, base) or within(base, path)]:
        raise AgentError(f"{base}: is no place to restore to, for backups of others are kept there: {', '.join(wrong)}")
    if not os.path.isdir(base):
        os.mkdir(base)
        os.chmod(base, 0o711)  # a database's account passes through; what is in it is closed to others
    about = os.stat(base)
    if about.st_uid != os.geteuid() or about.st_mode & 0o022:
        raise AgentError(f"{base}: is no place to restore to, for others can change what is in it")
    clear(place)
    os.mkdir(place)
    os.chmod(place, 0o711)
    write(os.path.join(place, MARK), b"Everything beside this file is removed after each restore test.\n")
    return place


def clear(place: str) -> None:
    """Remove what a restore test left. The mark that says so goes last; without it nothing is removed."""
    if not os.path.lexists(place):
        return
    ours = os.path.isdir(place) and not os.path.islink(place)
    left = [name for name in os.listdir(place) if not name.startswith(".new-")] if ours else []
    if not ours or (left and not os.path.isfile(os.path.join(place, MARK))):
        raise AgentError(f"{place}: was not made by a restore test; somebody looks at it, and removes it")
    for name in os.listdir(place):
        path = os.path.join(place, name)
        if os.path.isdir(path) and not os.path.islink(path):
            shutil.rmtree(path)
        elif name != MARK:
            os.unlink(path)
    with contextlib.suppress(FileNotFoundError):
        os.unlink(os.path.join(place, MARK))
    os.rmdir(place)


# --- restoring ----------------------------------------------------------------------------------------------------------


def restore_test(settings: dict, status: dict) -> bool:
    """Restore the newest backup of each set to scratch, compare, let databases answer, and write down how it went."""
    begun = time.time()
    result: dict = {"host": settings["host"], "server": settings["server"], "at": stamp(begun), "sets": {}}
    for entry in settings["sets"]:
        part = time.time()
        try:
            result["sets"][entry["name"]] = restored(settings, entry, status)
        except (AgentError, OSError, KeyError, ValueError) as exc:
            result["sets"][entry["name"]] = {"identical": False, "problem": f"{type(exc).__name__}: {exc}"[:500]}
        with contextlib.suppress(AgentError, OSError):  # the next one says so, if it is still there
            clear(scratch_of(settings))
        result["sets"][entry["name"]]["seconds"] = round(time.time() - part, 1)
    try:
        restic("--quiet", "--no-lock", "check")
        result["structure"] = "sound"
    except AgentError as exc:
        result["structure"] = str(exc)
    result["passed"] = result["structure"] == "sound" and all(about["identical"] for about in result["sets"].values())
    result["seconds"] = round(time.time() - begun, 1)
    place = os.path.join(STATE, "restore-tests")
    save(os.path.join(place, f"{result['at'].replace(':', '')}.json"), result)
    for name in sorted(os.listdir(place))[:-KEPT_TESTS]:
        os.unlink(os.path.join(place, name))
    status.update(restore_test=result, restore_tried=begun)
    if result["passed"]:
        status["restore_passed"] = begun
    save(os.path.join(STATE, "status.json"), status)
    problems = "; ".join(f"{name}: {about['problem']}" for name, about in result["sets"].items() if about.get("problem"))
    say("restore_test", not result["passed"], passed=result["passed"], seconds=result["seconds"], problem=problems or "none")
    return result["passed"]


def enough_room(place: str, known: dict, entry: dict) -> None:
    """Refuse to restore where the file system would run full: files, dumps and what is made of them, and a little for others."""
    dumps = sum(os.stat(path).st_size for base in entry["databases"] for path in dump_paths(base) if os.path.exists(path))
    needed = sum(about.get("s", 0) for about in known.get("files", {}).values()) + 3 * dumps
    disk = shutil.disk_usage(place)
    if disk.free - needed < disk.total * KEPT_FREE:
        raise AgentError(f"{place}: not enough room to restore {needed} bytes; set backup_scratch_directory")


def restored(settings: dict, entry: dict, status: dict) -> dict:
    """Return how the newest backup of a set compares with what was backed up, and whether its databases answered.

    Which one is the newest this host knows by itself: what a backup says of its time may be wrong.
    """
    about = status.get("sets", {}).get(entry["name"], {})
    snapshot = about.get("snapshot")
    if not snapshot:
        raise AgentError("there is no backup")
    scratch = room(settings)
    root = os.path.join(scratch, "files")
    os.mkdir(root, 0o700)
    known = read_manifest(manifest_path(entry["name"]))
    enough_room(scratch, known, entry)
    unlock()
    restic("--quiet", "restore", snapshot, "--target", root)
    manifest = read_manifest(root + manifest_path(entry["name"]))
    if not manifest:
        raise AgentError("the backup holds no manifest")
    note = load(os.path.join(STATE, "manifests", f"{entry['name']}.moved.json"))
    moved = set(note.get("moved", [])) if note.get("snapshot") == snapshot else set()
    seen = compare(manifest, root, moved)
    answers = {base["name"]: ask(base, root + dump_path(base), scratch) for base in entry["databases"]}
    missing = [
        name
        for name in ("inventory/packages", "inventory/partitions.json", "RECOVERY.md")
        if not os.path.exists(f"{root}{STATE}/{name}")
    ]
    different = [*seen["different"], *(f"{name}: is missing" for name in missing)]
    if entry["paths"] and not seen["compared"]:
        different.append(f"nothing could be compared, {seen['moved']} files changed while they were backed up")
    return {
        "identical": not different, "snapshot": snapshot, "backed_up": stamp(about["started"]), "compared": seen["compared"],
        "moved": seen["moved"], "bytes": seen["bytes"], "different": different[:SHOWN], "databases": answers,
        "problem": f"{len(different)} differ: {'; '.join(different[:3])}" if different else "",
    }  # fmt: skip


# --- main ---------------------------------------------------------------------------------------------------------------


def main(argv: list[str] | None = None) -> int:
    """Do what is due, or what is asked for. 0: done; 1: something failed, and is on record; 2: it could not be tried."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=["tick", "run", "restore-test", "compare"])
    parser.add_argument("manifest", nargs="?")
    parser.add_argument("root", nargs="?")
    parser.add_argument("--set", help="back up this set only")
    args = parser.parse_args(argv)
    os.umask(0o077)
    try:
        if args.action == "compare":
            if not (args.manifest and args.root):
                raise AgentError("compare: which manifest, below which root?")
            seen = compare(read_manifest(args.manifest), args.root, set())
            sys.stdout.write(json.dumps(seen, indent=1) + "\n")
            return 1 if seen["different"] else 0
        settings = load(os.path.join(SECRETS, "settings.json"))
        if not settings:
            raise AgentError(f"{SECRETS}/settings.json is not there")
        os.makedirs(STATE, mode=0o700, exist_ok=True)
        with open(os.path.join(STATE, "lock"), "w", encoding="ascii") as handle:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | (fcntl.LOCK_NB if args.action == "tick" else 0))
            except BlockingIOError:
                return 0  # it is at work already
            return act(args, settings)
    except (AgentError, OSError, KeyError, ValueError) as exc:
        say("failed", True, action=args.action, problem=f"{type(exc).__name__}: {exc}")
        return 2


def act(args: argparse.Namespace, settings: dict) -> int:
    """Work, while nobody else does."""
    if args.set not in (None, *(entry["name"] for entry in settings["sets"])):
        raise AgentError(f"--set {args.set}: there is no such set")
    for left in glob.glob(f"{STATE}/.new-*") + glob.glob(f"{STATE}/*/.new-*"):
        os.unlink(left)  # by one that was killed
    status = load(os.path.join(STATE, "status.json"))
    status["sets"] = {entry["name"]: status.get("sets", {}).get(entry["name"], {}) for entry in settings["sets"]}
    for entry in settings["sets"]:
        due = due_at(entry, status["sets"][entry["name"]], settings["host"], settings["splay_minutes"]) <= time.time()
        if (args.action == "tick" and due) or (args.action == "run" and args.set in (None, entry["name"])):
            back_up(settings, entry, status)
    failed = any(about.get("problem") for about in status["sets"].values())
    every = settings["restore_test_days"] if status.get("restore_test", {}).get("passed") else 1
    late = time.time() - status.get("restore_tried", 0) > every * DAY or ahead(status.get("restore_tried", 0))
    if args.action == "restore-test" or (args.action == "tick" and late and not failed):
        return 0 if restore_test(settings, status) else 1
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
