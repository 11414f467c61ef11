# Copyright: (c) 2026, Bulwark contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a set of configuration files is made of: entries, safe paths, the record on disk, and the plan.

An *entry* says what lies at a path, as plain JSON:

    {"type": "absent"}
    {"type": "file", "content": base64, "mode": "0644", "uid": 0, "gid": 0, "mtime_ns": 0, "xattrs": {name: base64}}
    {"type": "link", "target": "../x", "uid": 0, "gid": 0, "mtime_ns": 0}
    {"type": "directory", "mode": "0755", "uid": 0, "gid": 0}

An entry that describes a wish (not a finding) has neither C(mtime_ns) nor C(xattrs).
"""

from __future__ import annotations

import base64
import contextlib
import errno
import fcntl
import hashlib
import json
import os
import re
import shlex
import shutil
import signal
import stat
import subprocess
import tempfile
import time

ABSENT = {"type": "absent"}
ACL = "system.posix_acl_access"
SCHEMA = "bulwark.config_set/1"
LARGEST = 16 * 1024 * 1024  # bytes; what is larger is no configuration file and would bloat the record
LARGEST_SHOWN = 256 * 1024  # bytes; beyond this a diff names the digest instead of the text
TEMPORARY = ".bulwark-"  # leading dot and ".tmp": no *.conf, *.sh, sudoers.d, cron.d or run-parts reader takes it


class Refused(Exception):
    """The wish cannot be granted; nothing has been changed for it."""


class Failed(Exception):
    """A command failed; C(facts) go into the result."""

    def __init__(self, message: str, **facts: str) -> None:
        super().__init__(message)
        self.facts = facts


# --- words ------------------------------------------------------------------------------------------------------------


def check_name(name: str) -> None:
    """Refuse a set name that is not [a-z0-9_-]+ of at most 64 characters: it becomes a file name."""
    if not re.fullmatch(r"[a-z0-9_-]{1,64}", name):
        raise Refused(f"name = {name!r}: must be 1 to 64 of the characters a-z, 0-9, _ and -")


def check_path(path: object, what: str) -> None:
    """Refuse a path that is not absolute, plain and printable; C(what) names the option in the message."""
    if not isinstance(path, str) or not path:
        raise Refused(f"{what} = {path!r}: must be an absolute path")
    if not path.isprintable():
        raise Refused(f"{what} = {path!r}: must not contain control characters")
    if not path.startswith("/"):
        raise Refused(f"{what} = {path!r}: must be absolute")
    parts = path.split("/")[1:]
    if ".." in parts or "." in parts or "" in parts:
        raise Refused(f"{what} = {path!r}: must not contain '.', '..' or empty components, nor end in '/'")
    if any(len(part.encode()) > 255 for part in parts) or len(path.encode()) > 4000:
        raise Refused(f"{what} = {path!r}: is too long")
    if parts[0] in ("proc", "sys", "dev"):
        raise Refused(f"{what} = {path!r}: /{parts[0]} holds no files that could be replaced atomically")
    if parts[-1].startswith(TEMPORARY):
        raise Refused(f"{what} = {path!r}: names starting with {TEMPORARY} are kept for temporary files")


def check_mode(mode: object, path: str) -> str:
    """Return the mode as four octal digits, or refuse it.

    A number is refused because YAML reads 0644 and 644 as different numbers; set-id, sticky and world-writable files
    have no place among configuration.
    """
    if not isinstance(mode, str) or not re.fullmatch(r"0?[0-7]{3}", mode):
        raise Refused(f"{path}: mode = {mode!r}: must be a quoted octal string such as '0644', without special bits")
    if int(mode, 8) & 0o002:
        raise Refused(f"{path}: mode = {mode!r}: must not be writable by everyone")
    return mode.zfill(4)


def check_content(content: object, path: str) -> str:
    """Return the content as base64, or refuse what is not plain text."""
    if not isinstance(content, str):
        raise Refused(f"{path}: content must be text, not {type(content).__name__}")
    if "\0" in content:
        raise Refused(f"{path}: content must not contain NUL bytes")
    try:
        data = content.encode()
    except UnicodeEncodeError:
        raise Refused(f"{path}: content is not valid UTF-8") from None
    if len(data) > LARGEST:
        raise Refused(f"{path}: content is {len(data)} bytes, more than {LARGEST}")
    return base64.b64encode(data).decode()


def resolve(path: str) -> str:
    """Return the path with symbolic links in its parents followed; the last component is left alone.

    Refused: parents that someone other than root or the running user could redirect, for they could make us read or
    write anywhere: directories others own or may write to (a sticky one such as /tmp only if what follows is ours),
    links others own, and parents that are not directories.
    """
    trusted = {0, os.geteuid()}

    def guard(directory: str, child_uid: int | None) -> None:
        seen = os.lstat(directory)
        if seen.st_uid not in trusted:
            raise Refused(f"{path}: {directory} belongs to uid {seen.st_uid}, who could redirect what is written there")
        open_to_group = seen.st_mode & stat.S_IWGRP and seen.st_gid not in {0, os.getegid()}
        if not (open_to_group or seen.st_mode & stat.S_IWOTH):
            return
        if not (seen.st_mode & stat.S_ISVTX and child_uid in trusted):
            raise Refused(f"{path}: {directory} is writable by others, who could redirect what is written there")

    here, links = "/", 0
    *pending, name = path.split("/")[1:]
    while pending:
        part = pending.pop(0)
        if part in ("", "."):
            continue
        if part == "..":  # only from the target of a link
            here = os.path.dirname(here)
            continue
        child = os.path.join(here, part)
        try:
            found = os.lstat(child)
        except FileNotFoundError:
            guard(here, None)
            return os.path.normpath(os.path.join(child, *pending, name))
        guard(here, found.st_uid)
        if stat.S_ISLNK(found.st_mode):
            links += 1
            if links > 40:
                raise Refused(f"{path}: too many levels of symbolic links")
            target = os.readlink(child)
            pending = target.split("/") + pending
            here = "/" if target.startswith("/") else here
        elif stat.S_ISDIR(found.st_mode):
            here = child
        else:
            raise Refused(f"{path}: {child} is not a directory")
    final = os.path.join(here, name)
    try:
        guard(here, os.lstat(final).st_uid)
    except FileNotFoundError:
        guard(here, None)
    return final


def inside(path: str, directory: str) -> bool:
    """Tell whether a path is the directory itself or lies below it (by name)."""
    return path == directory or path.startswith(directory.rstrip("/") + "/")


def parents(path: str) -> list[str]:
    """Return all directories above a path except /, outermost first."""
    found = []
    while os.path.dirname(path) != "/":
        path = os.path.dirname(path)
        found.append(path)
    return found[::-1]


# --- entries ----------------------------------------------------------------------------------------------------------


def file_entry(content: str, mode: str, uid: int | None, gid: int | None) -> dict:
    """Return the entry of a wanted file; content is base64. An unknown uid or gid (check mode) is None."""
    return {"type": "file", "content": content, "mode": mode, "uid": uid, "gid": gid}


def snapshot(path: str) -> dict:
    """Return the entry of what lies at a path now. Refused: sockets, devices, pipes and very large files."""
    try:
        seen = os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return dict(ABSENT)
    owner = {"uid": seen.st_uid, "gid": seen.st_gid}
    mode = f"{stat.S_IMODE(seen.st_mode):04o}"
    if stat.S_ISDIR(seen.st_mode):
        return {"type": "directory", "mode": mode, **owner}
    if stat.S_ISLNK(seen.st_mode):
        return {"type": "link", "target": os.readlink(path), **owner, "mtime_ns": seen.st_mtime_ns}
    if not stat.S_ISREG(seen.st_mode):
        raise Refused(f"{path}: is neither a file nor a symbolic link")
    if seen.st_size > LARGEST:
        raise Refused(f"{path}: is {seen.st_size} bytes, more than {LARGEST}, too large for a configuration file")
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    with os.fdopen(fd, "rb") as stream:
        content = base64.b64encode(stream.read()).decode()
        try:
            names = [name for name in os.listxattr(fd) if name in (ACL, "security.selinux") or name.startswith("user.")]
            xattrs = {name: base64.b64encode(os.getxattr(fd, name)).decode() for name in names}
        except OSError:
            xattrs = {}  # this file system has none
    return {"type": "file", "content": content, "mode": mode, **owner, "mtime_ns": seen.st_mtime_ns, "xattrs": xattrs}


def same(found: dict, target: dict) -> bool:
    """Tell whether what was found already is the target. Times never count; extended attributes where known.

    Of a wish, only the access control list counts: a wanted file has none, as it could admit someone the mode does not.
    """
    if found["type"] != target["type"]:
        return False
    if found["type"] == "directory":
        return True  # directories that exist are never altered
    if any(found.get(key) != target.get(key) for key in ("content", "target", "mode", "uid", "gid")):
        return False
    if "xattrs" in target:
        return found.get("xattrs") == target["xattrs"]
    return ACL not in found.get("xattrs", {})


def temporary(path: str) -> str:
    """Return the name beside a path under which its next content is made ready; always the same, so that what a killed
    run left behind can be found and removed."""
    digest = hashlib.sha256(path.encode(errors="surrogateescape")).hexdigest()[:16]
    return os.path.join(os.path.dirname(path), f"{TEMPORARY}{digest}.tmp")


def discard(path: str) -> None:
    """Remove a file if it is there."""
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        os.unlink(path)


def sync(directory: str) -> None:
    """Make names in a directory durable."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def write(path: str, entry: dict) -> None:
    """Create a file that must not exist yet, durable and with all its attributes.

    Closed to others until complete: 0600 first, then owner, then mode (in this order: chown clears mode bits).
    """
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    try:
        data = memoryview(base64.b64decode(entry["content"]))
        while data:
            data = data[os.write(fd, data) :]
        seen = os.fstat(fd)
        uid, gid = entry["uid"], entry["gid"]
        if (uid is not None and seen.st_uid != uid) or (gid is not None and seen.st_gid != gid):
            os.fchown(fd, -1 if uid is None else uid, -1 if gid is None else gid)
        os.fchmod(fd, int(entry["mode"], 8))
        try:
            inherited = set(os.listxattr(fd)) & {ACL}
        except OSError:
            inherited = set()  # this file system has none
        if inherited:  # from a default list of the directory; without it the mode alone decides
            os.removexattr(fd, ACL)
            os.fchmod(fd, int(entry["mode"], 8))
        for name, value in entry.get("xattrs", {}).items():
            try:
                os.setxattr(fd, name, base64.b64decode(value))
            except OSError:
                if name != "security.selinux":  # which the policy of a container's machine may forbid
                    raise
        if "mtime_ns" in entry:
            os.utime(fd, ns=(time.time_ns(), entry["mtime_ns"]))
        os.fsync(fd)
    finally:
        os.close(fd)


def put(path: str, entry: dict, label=None) -> None:
    """Bring a path to an entry in one atomic step: at any moment it is the old or the new, in full.

    C(label(temporary, path)), if given, sets the security context of new files. OSError if it cannot be done; then the
    path is untouched (a temporary file may remain; see discard).
    """
    kind, parent = entry["type"], os.path.dirname(path)
    if kind == "absent":
        try:
            if stat.S_ISDIR(os.lstat(path).st_mode):
                os.rmdir(path)
            else:
                os.unlink(path)
        except (FileNotFoundError, NotADirectoryError):
            return
    elif kind == "directory":
        if not os.path.isdir(path):
            os.mkdir(path, 0o700)
        if label:
            label(path, path)
        os.chown(path, entry["uid"], entry["gid"])
        os.chmod(path, int(entry["mode"], 8))
    else:
        ready = temporary(path)
        discard(ready)
        if kind == "link":
            os.symlink(entry["target"], ready)
            os.lchown(ready, entry["uid"], entry["gid"])
            os.utime(ready, ns=(time.time_ns(), entry["mtime_ns"]), follow_symlinks=False)
        else:
            write(ready, entry)
            if label and "xattrs" not in entry:
                label(ready, path)
        os.rename(ready, path)
    sync(parent)


# --- what a person sees -----------------------------------------------------------------------------------------------


def describe(entry: dict, owner=str, group=str) -> str:
    """Return the attributes of an entry, one a line; owner and group turn ids into names."""
    kind = entry["type"]
    if kind == "absent":
        return "state: absent\n"
    lines = [f"state: {kind}", f"owner: {owner(entry['uid'])}", f"group: {group(entry['gid'])}"]
    if kind == "link":
        lines.append(f"target: {entry['target']}")
    else:
        lines.append(f"mode: {entry['mode']}")
    if ACL in entry.get("xattrs", {}):
        lines.append("access control list: present")
    return "\n".join(lines) + "\n"


def text(entry: dict) -> str:
    """Return the content of an entry for a diff; of what cannot be shown, size and digest."""
    if entry["type"] != "file":
        return ""
    data = base64.b64decode(entry["content"])
    if len(data) <= LARGEST_SHOWN and b"\0" not in data:
        try:
            return data.decode()
        except UnicodeDecodeError:
            pass
    return f"({len(data)} bytes, sha256 {hashlib.sha256(data).hexdigest()})\n"


def difference(path: str, before: dict, after: dict, secret: bool, owner=str, group=str) -> list[dict]:
    """Return Ansible diff items for one path: one for the content, one for the attributes, each only if it differs."""
    items = []
    if text(before) != text(after):
        shown = [("(secret)\n" if secret and entry["type"] == "file" else text(entry)) for entry in (before, after)]
        if shown[0] == shown[1]:
            shown = ["(secret, before)\n", "(secret, after)\n"]
        items.append({"before_header": path, "after_header": path, "before": shown[0], "after": shown[1]})
    about = [describe(entry, owner, group) for entry in (before, after)]
    if about[0] != about[1]:
        header = f"{path} (attributes)"
        items.append({"before_header": header, "after_header": header, "before": about[0], "after": about[1]})
    if not items and not same(before, after):
        header = f"{path} (extended attributes)"
        names = ["\n".join(sorted(entry.get("xattrs", {}))) + "\n" for entry in (before, after)]
        if names[0] == names[1]:
            names = ["before\n", "after\n"]
        items.append({"before_header": header, "after_header": header, "before": names[0], "after": names[1]})
    return items


# --- commands ---------------------------------------------------------------------------------------------------------


def split(command: str, option: str) -> list[str]:
    """Return the words of a command; refuse one that has none or cannot be split."""
    try:
        words = shlex.split(command)
    except ValueError as exc:
        raise Refused(f"{option} = {command!r}: cannot be split into words: {exc}") from exc
    if not words or "\0" in command:
        raise Refused(f"{option} = {command!r}: is not a command")
    if "/" in words[0] and not words[0].startswith(("/", "%(root)s/")):
        raise Refused(f"{option} = {command!r}: the program must be a bare name or an absolute path")
    return words


def find(program: str) -> str | None:
    """Return the path of a program, searched as root's login shell would; None if there is none."""
    places = os.environ.get("PATH", "").split(":")
    places += [place for place in ("/usr/local/sbin", "/usr/sbin", "/sbin", "/usr/bin", "/bin") if place not in places]
    return shutil.which(program, path=":".join(place for place in places if place.startswith("/")))


def run(command: str, option: str, timeout: int, files: list[str], secret: bool, root: str = "") -> None:
    """Run one command to its end; Failed if it cannot be run, takes too long or returns non-zero.

    Not AnsibleModule.run_command, which knows no time limit. Output goes to a file, not a pipe: a daemon that the command
    leaves running would keep a pipe open for ever.
    """
    words = [word.replace("%(root)s", root) if root else word for word in split(command, option)]
    program = find(words[0])
    about = f"{option} command {command!r}"
    concerned = f"files concerned: {', '.join(files)}" if files else "no file was to be changed"
    if program is None:
        raise Failed(f"{about}: {words[0]} is not installed; {concerned}", command=command)
    with tempfile.TemporaryFile() as printed:
        try:
            process = subprocess.Popen(
                [program, *words[1:]],
                stdin=subprocess.DEVNULL,
                stdout=printed,
                stderr=subprocess.STDOUT,
                cwd="/",
                env={**os.environ, "LC_ALL": "C"},
                start_new_session=True,
            )
        except OSError as exc:
            raise Failed(f"{about}: cannot be run: {exc.strerror}; {concerned}", command=command) from exc
        try:
            status = process.wait(timeout)
            why = f"failed with exit status {status}" if status > 0 else f"was ended by signal {-status}"
        except BaseException as exc:
            os.killpg(process.pid, signal.SIGKILL)  # its children too
            process.wait()
            if not isinstance(exc, subprocess.TimeoutExpired):
                raise
            status, why = None, f"took longer than {timeout} seconds"
        if status == 0:
            return
        printed.seek(0)
        output = printed.read().decode(errors="replace").strip()
    if root:
        output = output.replace(root, "")
    facts = {"command": command}
    if secret:
        shown = "output withheld, for the set has secret files"
    else:
        facts["output"] = output[-4000:]
        shown = f"output: {facts['output'] or '(none)'}"
    raise Failed(f"{about} {why}; {concerned}; {shown}", **facts)


# --- the record -------------------------------------------------------------------------------------------------------


def new_record(name: str) -> dict:
    """Return the record of a set that owns nothing yet.

    files        {path: {"original": entry, "secret": bool}}: what lay there before the set first owned it
    directories  paths of the directories made for them
    owed         activation commands that still have to succeed after files were put back
    journal      None, or while a transaction is open {"before": [[path, entry], ...], "activate": [command, ...],
                 "activating": bool, "secret": bool}: the way back; files and directories above are from before it
    """
    return {"schema": SCHEMA, "name": name, "files": {}, "directories": [], "owed": [], "journal": None}


class Store:
    """The directory with one record a set, and the lock over all of them."""

    def __init__(self, directory: str) -> None:
        self.directory = directory
        self.lock_fd = -1

    def path(self, name: str) -> str:
        """Return the path of a set's record."""
        return os.path.join(self.directory, f"{name}.json")

    def staging(self, name: str) -> str:
        """Return the path of a set's staging root; fixed, so that a killed run's is found and removed."""
        return os.path.join(self.directory, f"{name}.staging")

    def open(self, create: bool, patience: float) -> bool:
        """Take the lock, waiting at most C(patience) seconds, after making the directory (0700) if wished.

        Without C(create) nothing is made; False if there is no lock yet, so nobody to wait for.
        """
        if create:
            for parent in parents(self.directory):
                if not os.path.isdir(parent):
                    os.mkdir(parent, 0o755)
                    os.chmod(parent, 0o755)
            if not os.path.isdir(self.directory):
                os.mkdir(self.directory, 0o700)
        flags = os.O_RDWR | os.O_NOFOLLOW | (os.O_CREAT if create else 0)
        try:
            self.lock_fd = os.open(os.path.join(self.directory, ".lock"), flags, 0o600)
        except FileNotFoundError:
            return False
        deadline = time.monotonic() + patience
        while True:
            try:
                fcntl.flock(self.lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return True
            except OSError as exc:
                if exc.errno not in (errno.EAGAIN, errno.EACCES):
                    raise
            if time.monotonic() >= deadline:
                raise Refused(f"another run holds {self.directory}/.lock, also after {patience:g} seconds")
            time.sleep(0.05)

    def tidy(self) -> None:
        """Remove what killed runs left behind here; only while holding the lock: then no other run is alive."""
        os.chmod(self.directory, 0o700)
        for name in os.listdir(self.directory):
            path = os.path.join(self.directory, name)
            if name.endswith(".staging"):
                shutil.rmtree(path, ignore_errors=True)
            elif name.startswith(TEMPORARY):
                discard(path)

    def close(self) -> None:
        """Let go of the lock."""
        if self.lock_fd >= 0:
            os.close(self.lock_fd)
            self.lock_fd = -1

    def load(self) -> dict[str, dict]:
        """Return all records by name. A damaged one is refused: what it would put back, and what it owns, is unknown."""
        records = {}
        try:
            names = sorted(entry for entry in os.listdir(self.directory) if entry.endswith(".json"))
        except FileNotFoundError:
            return records
        for entry in names:
            path = os.path.join(self.directory, entry)
            try:
                with open(path, "rb") as stream:
                    record = json.load(stream)
                if record["schema"] != SCHEMA or f"{record['name']}.json" != entry:
                    raise ValueError(f"schema {record['schema']!r}, name {record['name']!r}")
                if set(record) != set(new_record("")):
                    raise ValueError("unexpected keys")
            except (ValueError, KeyError, TypeError) as exc:
                raise Refused(f"{path} is damaged ({exc}); it holds what this set would put back") from exc
            records[record["name"]] = record
        return records

    def save(self, record: dict) -> None:
        """Write a record, atomically and durable; one that holds nothing is removed."""
        if record == new_record(record["name"]):
            put(self.path(record["name"]), ABSENT)
            return
        data = json.dumps(record, sort_keys=True).encode()
        entry = file_entry(base64.b64encode(data).decode(), "0600", os.geteuid(), os.getegid())
        put(self.path(record["name"]), entry)


# --- the plan ---------------------------------------------------------------------------------------------------------


class View:
    """What lies on the disk once open journals have been undone, without undoing them."""

    def __init__(self, journals: list[dict]) -> None:
        self.overlay = {path: entry for journal in journals for path, entry in journal["before"]}

    def at(self, path: str) -> dict:
        """Return the entry at a path."""
        return self.overlay[path] if path in self.overlay else snapshot(path)

    def children(self, directory: str) -> set[str]:
        """Return the paths in a directory."""
        try:
            found = {os.path.join(directory, name) for name in os.listdir(directory)}
        except FileNotFoundError:
            found = set()
        for path, entry in self.overlay.items():
            if os.path.dirname(path) == directory:
                found.discard(temporary(path))
                (found.discard if entry["type"] == "absent" else found.add)(path)
        return found


def make_plan(view: View, record: dict, wanted: dict, others_made: set[str], keep: bool) -> tuple[list, dict]:
    """Work out how to get from what is there to what is wanted.

    wanted       {path: {"entry": entry, "secret": bool}}; paths as resolve() returns them
    others_made  directories that other sets have made: shared ones go when the last set in them goes
    keep         whether the set goes on existing; if not, nothing of it will be remembered

    Returns (steps, record after them); a step is (path, entry before, entry after), in the order to be taken:
    directories to make, outermost first; files; directories to remove, innermost first.
    """
    targets = {path: wish["entry"] for path, wish in wanted.items()}
    for path, owned in record["files"].items():
        targets.setdefault(path, owned["original"])
    found = {path: view.at(path) for path in targets}
    for path, entry in found.items():
        if entry["type"] == "directory":
            raise Refused(f"{path}: is a directory; this module only ever writes, replaces and removes files")
    files = [(path, found[path], targets[path]) for path in sorted(targets) if not same(found[path], targets[path])]

    there = {path for path, entry in targets.items() if entry["type"] != "absent"}
    needed = {parent for path in there for parent in parents(path)}
    missing = sorted(parent for parent in needed if view.at(parent)["type"] == "absent")
    made = {"type": "directory", "mode": "0755", "uid": os.geteuid(), "gid": os.getegid()}
    steps = [(path, dict(ABSENT), made) for path in missing] + files

    wanted_parents = {parent for path, wish in wanted.items() if wish["entry"]["type"] != "absent" for parent in parents(path)}
    known = set(record["directories"]) | {path for path in missing if path in wanted_parents}
    known |= others_made & wanted_parents
    gone = {path for path, entry in targets.items() if entry["type"] == "absent"}
    for directory in sorted(known - needed, key=lambda path: path.count("/"), reverse=True):
        before = view.at(directory)
        if before["type"] == "directory" and view.children(directory) <= gone:
            steps.append((directory, before, dict(ABSENT)))
            gone.add(directory)
        elif before["type"] == "absent":
            gone.add(directory)  # someone else removed it

    after = new_record(record["name"])
    if keep:
        after["directories"] = sorted(path for path in known - gone if path in missing or view.at(path)["type"] == "directory")
        for path, wish in wanted.items():
            first = record["files"].get(path, {"original": found[path], "secret": False})
            after["files"][path] = {"original": first["original"], "secret": wish["secret"] or first["secret"]}
    return steps, after
