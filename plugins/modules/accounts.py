#!/usr/bin/python
# Copyright: (c) 2026, Bulwark contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: accounts
short_description: Bring all local accounts of a host to what the policy and the declaration say
version_added: 0.1.0
description:
  - Looks at every local account at once, works out what has to happen, refuses what would lock people out, and only then
    changes C(/etc/passwd), C(/etc/shadow), C(/etc/group) and C(/etc/gshadow) in one transaction under their own lock.
  - Closes root, system accounts, vendors' default accounts and generic ones; takes second accounts of one uid apart; takes
    NIS lines out; creates, opens and closes declared accounts; disables and later removes accounts that nobody used.
  - A removed account's home is archived first and compared with the archive; its uid stays in C(/etc/passwd) under a name
    that says so, closed for good, so that no tool can give it to anybody else and old audit records still resolve.
  - What was there before is kept in C(/var/lib/bulwark/accounts/record.json), so that O(state=absent) can put it back.
  - No password is ever generated or set. Password hashes never leave the host's own files.
author:
  - Bulwark contributors (@bulwark)
options:
  state:
    description:
      - V(absent) puts back what was changed, where nobody changed it since. Removed accounts stay removed, created ones stay,
        and an empty password stays locked.
    type: str
    choices: [present, absent]
    default: present
  users:
    description: Declared accounts, as described for the role's variable C(accounts_users).
    type: list
    elements: dict
    default: []
  undeclared:
    description: What happens to accounts that can be logged in to but are not declared.
    type: str
    choices: [report, disable]
    default: report
  generic_names:
    description: Generic names of the site, beside the built-in ones.
    type: list
    elements: str
    default: []
  system_exempt:
    description: System accounts left alone, dicts with a C(name).
    type: list
    elements: dict
    default: []
  approvers:
    description: Who may approve accounts; with an empty list anybody but the owner.
    type: list
    elements: str
    default: []
  approval_required:
    description: Whether a person's account stays closed until its request is complete and approved.
    type: bool
    default: true
  disable_days:
    description: Days without login after which an account is disabled.
    type: int
    default: 90
  remove_days:
    description: Days without login beyond which a disabled account is removed.
    type: int
    default: 90
  notice_days:
    description: Days an account stays disabled before it may be removed.
    type: int
    default: 1
  at_once_percent:
    description: Share of the watched accounts that may be disabled as dormant in one run; one always may.
    type: int
    default: 25
  controller_time:
    description: The controller's time in seconds since 1970, which the host's clock is compared with.
    type: int
    required: true
  clock_tolerance:
    description: Seconds by which the two clocks may differ.
    type: int
    default: 3600
  archive_directory:
    description: Where homes of removed accounts are kept.
    type: path
    default: /var/backups/bulwark-accounts
  connection_user:
    description: The account Ansible came in with, as far as the inventory knows; the host adds what it sees itself.
    type: str
    default: ''
  connection_type:
    description: Name of the connection plugin; over anything like SSH root must not be the way in.
    type: str
    default: ssh
attributes:
  check_mode:
    description: Tells what would be changed, and refuses what would be refused.
    support: full
  diff_mode:
    description: Shows what changes in words, one line for each attribute of an account; never a password hash.
    support: full
seealso:
  - module: bulwark.hardening.posture
"""

EXAMPLES = r"""
- name: One person, one id
  bulwark.hardening.accounts:
    controller_time: "{{ now().timestamp() | int }}"
    users:
      - name: mkoehler
        owner: Maria Köhler
        ticket: REQ-1042
        approved_by: Ada Officer
        approved_on: "2026-11-20"
        identity_method: in_person
        groups: [ssh-users]
"""

RETURN = r"""
disabled:
  description: Accounts closed by this run, with the reason.
  type: dict
  returned: success
  sample: {mkoehler: unused for 93 days}
removed:
  description: Accounts removed by this run, with the path of the archive (empty where there was nothing to archive).
  type: dict
  returned: success
  sample: {mkoehler: /var/backups/bulwark-accounts/mkoehler-1004.tar.gz}
warnings_said:
  description: What a person has to decide.
  type: list
  elements: str
  returned: always
refusals:
  description: Why nothing was changed.
  type: list
  elements: str
  returned: failure
"""

import base64
import fcntl
import functools
import hashlib
import json
import os
import pwd
import re
import shutil
import signal
import subprocess
import tempfile
import time

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.bulwark.hardening.plugins.module_utils import accounts as rules
from ansible_collections.bulwark.hardening.plugins.module_utils import accounts_plan
from ansible_collections.bulwark.hardening.plugins.module_utils.posture import accounts as posture
from ansible_collections.bulwark.hardening.plugins.module_utils.posture.common import CannotObserve, run

DATABASES = ("passwd", "shadow", "group", "gshadow")
ENVIRONMENT = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C.UTF-8"}


class Failed(Exception):
    """Something on the host did not work; the text is for the person who runs the play."""


def do(argv: list[str], accept: tuple = (0,)) -> str:
    """Run a command that changes something and return its output. Raises Failed."""
    done = subprocess.run(argv, check=False, capture_output=True, text=True, stdin=subprocess.DEVNULL, env=ENVIRONMENT)
    if done.returncode not in accept:
        raise Failed(f"{' '.join(argv)}: exit {done.returncode}: {done.stderr.strip()}")
    return done.stdout


def write_atomically(path: str, data: bytes, like: os.stat_result | None = None, mode: int = 0o600) -> None:
    """Replace a file in one durable step, keeping owner and mode of the one it replaces."""
    fd, ready = tempfile.mkstemp(prefix=".bulwark-", dir=os.path.dirname(path))
    try:
        with os.fdopen(fd, "wb") as stream:
            stream.write(data)
            stream.flush()
            if like:
                os.fchown(fd, like.st_uid, like.st_gid)
            os.fchmod(fd, like.st_mode & 0o7777 if like else mode)
            try:
                for name in os.listxattr(path) if like else []:
                    os.setxattr(fd, name, os.getxattr(path, name))
            except OSError:
                pass  # this file system has none
            os.fsync(fd)
        os.rename(ready, path)
    except BaseException:
        os.unlink(ready)
        raise
    directory = os.open(os.path.dirname(path), os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def save_record(record: dict) -> None:
    """Write the role's record down, readable for root only."""
    os.makedirs(os.path.dirname(posture.RECORD), mode=0o700, exist_ok=True)
    write_atomically(posture.RECORD, (json.dumps(record, indent=1, sort_keys=True) + "\n").encode())


# --- the account files ------------------------------------------------------------------------------------------------


class Databases:
    """passwd, shadow, group and gshadow, changed together under the lock that all account tools take."""

    def __init__(self, directory: str = "/etc", patience: float = 15) -> None:
        self.directory = directory
        self.lock = os.open(os.path.join(directory, ".pwd.lock"), os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
        end = time.monotonic() + patience
        while True:
            try:
                fcntl.lockf(self.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError as exc:
                if time.monotonic() > end:
                    os.close(self.lock)
                    raise Failed(f"the account files stay locked by another program for {patience} s") from exc
                time.sleep(0.1)
        self.before = {}
        for name in DATABASES:
            if os.path.exists(self._path(name)):
                with open(self._path(name), encoding="utf-8", errors="surrogateescape") as stream:
                    self.before[name] = stream.read()
        self.lines = {name: text.splitlines() for name, text in self.before.items()}

    def _path(self, name: str) -> str:
        return os.path.join(self.directory, name)

    def close(self) -> None:
        """Let others in again."""
        os.close(self.lock)

    def _edit(self, path: str, name: str, change) -> None:
        """Apply change(fields) to the line of a name."""
        for number, line in enumerate(self.lines.get(path, [])):
            fields = line.split(":")
            if fields[0] == name:
                change(fields)
                self.lines[path][number] = ":".join(fields)

    def set(self, name: str, attribute: str, value) -> None:
        """Give an attribute of an account a value: shell, password (locked or open), expires_day, uid or groups."""

        def put(index: int, text: str):
            return lambda fields: fields.__setitem__(index, text)

        if attribute == "shell":
            self._edit("passwd", name, put(6, value))
        elif attribute == "uid":
            self._edit("passwd", name, put(2, str(value)))
        elif attribute == "expires_day":
            self._edit("shadow", name, put(7, "" if value is None else str(value)))
        elif attribute == "groups":
            self._groups(name, set(value))
        elif attribute == "password" and value == "open":
            self._edit("shadow", name, lambda f: f.__setitem__(1, f[1][1:] if len(f[1]) > 1 and f[1][0] == "!" else f[1]))
        elif attribute == "password":
            self._lock(name)
        else:
            raise ValueError(attribute)

    def _lock(self, name: str) -> None:
        """Put a '!' before the password field; one that stands in /etc/passwd moves to where only root can read it."""
        field = []
        self._edit("passwd", name, lambda f: (field.append(f[1]), f.__setitem__(1, "x")))
        known = any(line.split(":")[0] == name for line in self.lines["shadow"])
        former = "" if field == ["x"] else "".join(field)
        if not known:
            self.lines["shadow"].append(f"{name}:!{former}:{int(time.time()) // rules.DAY}:0:99999:7:::")
            return

        def lock(fields):
            kept = former or fields[1]
            fields[1] = kept if kept.startswith("!") else "!" + kept

        self._edit("shadow", name, lock)

    def _groups(self, name: str, wanted: set) -> None:
        for path in ("group", "gshadow"):
            for number, line in enumerate(self.lines.get(path, [])):
                fields = line.split(":")
                if len(fields) != 4:
                    continue
                members = [member for member in fields[3].split(",") if member]
                if fields[0] in wanted and name not in members:
                    members.append(name)
                elif fields[0] not in wanted and name in members:
                    members = [member for member in members if member != name]
                else:
                    continue
                fields[3] = ",".join(members)
                self.lines[path][number] = ":".join(fields)

    def rename(self, name: str, new: str, gecos: str, home: str, shell: str, expires: str) -> None:
        """Rename an account and its private group; nobody can have logged in by password before or after."""

        def passwd(fields):
            fields[0], fields[1], fields[4], fields[5], fields[6] = new, "x", gecos, home, shell

        def shadow(fields):
            fields[0], fields[1], fields[7] = new, "!*", expires

        gid = next(line.split(":")[3] for line in self.lines["passwd"] if line.split(":")[0] == name)
        self._lock(name)
        self._edit("passwd", name, passwd)
        self._edit("shadow", name, shadow)
        private = any(line.split(":")[0] == name and line.split(":")[2] == gid for line in self.lines["group"])
        for path in ("group", "gshadow") if private else ():
            self._edit(path, name, lambda fields: fields.__setitem__(0, new))

    def drop_nis(self) -> list[dict]:
        """Take NIS lines out and return them."""
        out = []
        for path, lines in self.lines.items():
            out += [{"path": self._path(path), "line": line} for line in lines if line.startswith(("+", "-"))]
            self.lines[path] = [line for line in lines if not line.startswith(("+", "-"))]
        return out

    def save(self) -> None:
        """Check the new files as a whole with the system's own checkers, then put them in place. Raises Failed."""
        new = {name: "".join(line + "\n" for line in lines) for name, lines in self.lines.items()}
        changed = [name for name in new if new[name] != self.before[name]]
        if not changed:
            return
        worse = sorted(self._problems(new) - self._problems(self.before))
        if worse:
            raise Failed(f"the account files would be inconsistent, nothing was changed: {'; '.join(worse)}")
        for name in changed:
            write_atomically(self._path(name), new[name].encode(errors="surrogateescape"), os.stat(self._path(name)))
        if shutil.which("nscd"):
            subprocess.run(["nscd", "-i", "passwd", "-i", "group"], check=False, capture_output=True)

    @staticmethod
    def _problems(texts: dict) -> set:
        """Return what pwck and grpck have to say about the files."""
        found = set()
        with tempfile.TemporaryDirectory(prefix="bulwark-accounts-") as directory:  # 0700: a copy of shadow lies in it
            for name, text in texts.items():
                with open(os.path.join(directory, name), "w", encoding="utf-8", errors="surrogateescape") as stream:
                    stream.write(text)
            for checker, names in (("pwck", ("passwd", "shadow")), ("grpck", ("group", "gshadow"))):
                if shutil.which(checker) and set(names) <= set(texts):
                    argv = [checker, "-r", "-q", *(os.path.join(directory, name) for name in names)]
                    done = subprocess.run(argv, check=False, capture_output=True, text=True, env=ENVIRONMENT)
                    said = (done.stdout + done.stderr).replace(directory, "").splitlines()
                    # these checkers quote whole lines of shadow, hash included, when they suggest to delete one
                    found |= {line.split("delete line")[0] for line in said if line and "no changes" not in line}
        return found


# --- keys -------------------------------------------------------------------------------------------------------------


def as_user(uid: int, gid: int, action) -> None:
    """Do something in a child process with the rights of a user only, for homes are full of links to elsewhere."""
    pid = os.fork()
    if pid == 0:
        try:
            os.setgroups([])
            os.setresgid(gid, gid, gid)
            os.setresuid(uid, uid, uid)
            action()
            os._exit(0)
        except BaseException as exc:
            os.write(2, f"{exc}\n".encode())
            os._exit(1)
    _pid, status = os.waitpid(pid, 0)
    if status:
        raise Failed(f"could not write with the rights of uid {uid}")


def put_keys(path: str, home: str, uid: int, gid: int, lines: list[str]) -> None:
    """Make a file hold exactly these keys."""
    data = "".join(line.strip() + "\n" for line in lines).encode()

    def write():
        os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
        write_atomically(path, data, mode=0o600)

    if os.path.commonpath([path, home]) == home:
        as_user(uid, gid, write)
    else:  # a directory of root's, such as /etc/ssh/authorized_keys
        os.makedirs(os.path.dirname(path), mode=0o755, exist_ok=True)
        write_atomically(path, data, mode=0o644)


def managed_keys_path(account: dict, patterns: list[str]) -> str:
    """Return the file that declared keys are written to: the first one sshd reads."""
    pattern = patterns[0] if patterns else ".ssh/authorized_keys"
    path = re.sub(
        r"%([%huU])",
        lambda m: {"%": "%", "h": account["home"], "u": account["name"], "U": str(account["uid"])}[m.group(1)],
        pattern,
    )
    return os.path.normpath(path if path.startswith("/") else os.path.join(account["home"], path))


def keys_differ(path: str, lines: list[str]) -> bool:
    """Tell whether a file does not hold exactly these keys."""
    try:
        with open(path, encoding="utf-8", errors="replace") as stream:
            return stream.read() != "".join(line.strip() + "\n" for line in lines)
    except OSError:
        return True


def put_away(record: dict, path: str) -> None:
    """Move a file into root's own store, so that it can come back. A link on the way is taken away instead of followed."""
    step = ""
    for part in path.split("/")[1:]:
        step += "/" + part
        if os.path.islink(step) and os.lstat(step).st_uid != 0:
            record["files"].append({"path": step, "link": os.readlink(step), "uid": os.lstat(step).st_uid})
            save_record(record)
            os.unlink(step)
            return
    try:
        seen = os.stat(path)
        with open(path, "rb") as stream:
            data = stream.read()
    except FileNotFoundError:
        return
    record["files"].append(
        {
            "path": path,
            "content": base64.b64encode(data).decode(),
            "uid": seen.st_uid,
            "gid": seen.st_gid,
            "mode": seen.st_mode & 0o7777,
        }
    )
    save_record(record)
    os.unlink(path)


# --- people leave -----------------------------------------------------------------------------------------------------


def end_sessions(name: str, uid: int) -> None:
    """End what a person's account has running; services of the system are none of its sessions."""
    if shutil.which("loginctl") and os.path.isdir("/run/systemd/system"):
        subprocess.run(["loginctl", "terminate-user", name], check=False, capture_output=True, env=ENVIRONMENT)
    if uid < 1000 or uid == rules.NOBODY:
        return
    end = time.monotonic() + 5
    while True:
        running = [int(e.name) for e in os.scandir("/proc") if e.name.isdigit() and _owner(e.path) == uid]
        if not running:
            return
        for pid in running:
            try:
                os.kill(pid, signal.SIGTERM if time.monotonic() < end - 3 else signal.SIGKILL)
            except ProcessLookupError:
                continue
        if time.monotonic() > end:
            raise Failed(f"{name}: processes {running} do not end")
        time.sleep(0.2)


def _owner(path: str) -> int:
    try:
        return os.stat(path).st_uid
    except OSError:
        return -1


def belongings(account: dict, accounts: dict) -> tuple[list[str], str]:
    """Return (paths that are the account's alone, why its home is not among them)."""
    name, home = account["name"], os.path.normpath(account["home"] or "/")
    kept = ""
    if not os.path.isdir(home) or os.path.islink(home):
        kept = "there is none" if not os.path.lexists(home) else "it is no directory"
    elif home.count("/") < 2 or home.split("/")[1] in (
        "bin",
        "boot",
        "dev",
        "etc",
        "lib",
        "proc",
        "root",
        "run",
        "sbin",
        "sys",
        "usr",
    ):
        kept = "it belongs to the system"
    elif os.stat(home).st_uid != account["uid"]:
        kept = "somebody else owns it"
    else:
        for other in accounts.values():
            theirs = os.path.normpath(other["home"] or "/")
            if other["name"] != name and (theirs == home or theirs.startswith(home + "/")):
                kept = f"{other['name']} lives there"
        with open("/proc/self/mountinfo", encoding="utf-8", errors="replace") as stream:
            points = [line.split()[4] for line in stream]
        if any(point == home or point.startswith(home + "/") for point in points):
            kept = "another file system is mounted there"
    mine = [path for path in (f"/var/mail/{name}", f"/var/spool/cron/crontabs/{name}") if os.path.isfile(path)]
    return ([home] if not kept else []) + mine, kept


def archive(account: dict, paths: list[str], directory: str) -> tuple[str, str]:
    """Archive paths into DIRECTORY/NAME-UID.tar.gz (root, 0600), compare it with them, and return (path, SHA-256)."""
    if not paths:
        return "", ""
    os.makedirs(directory, mode=0o700, exist_ok=True)
    os.chmod(directory, 0o700)
    target = os.path.join(directory, f"{account['name']}-{account['uid']}.tar.gz")
    while os.path.exists(target):  # a name that came back and went again keeps both archives
        target = target.replace(".tar.gz", "+.tar.gz")
    partial = target + ".partial"
    relative = [path.lstrip("/") for path in paths]
    old = os.umask(0o077)
    try:
        do(["tar", "--create", "--gzip", "--file", partial, "--numeric-owner", "--acls", "--xattrs", "--sparse",
            "--warning=no-file-ignored", "-C", "/", "--", *relative])  # fmt: skip
        do(["tar", "--compare", "--gzip", "--file", partial, "-C", "/"])
    except Failed:
        if os.path.exists(partial):
            os.unlink(partial)
        raise
    finally:
        os.umask(old)
    digest = hashlib.sha256()
    with open(partial, "rb") as stream:
        for block in iter(lambda: stream.read(1 << 20), b""):
            digest.update(block)
        os.fsync(stream.fileno())
    os.rename(partial, target)
    return target, digest.hexdigest()


def delete(paths: list[str], uid: int) -> None:
    """Delete what was archived, where it still is that account's: a run cut short may be finished days later."""
    for path in paths:
        if os.path.lexists(path) and os.lstat(path).st_uid == uid:
            if os.path.isdir(path) and not os.path.islink(path):
                shutil.rmtree(path)
            else:
                os.unlink(path)


def drop_subids(name: str) -> None:
    """Take an account's ranges of subordinate ids away."""
    for path in ("/etc/subuid", "/etc/subgid"):
        if os.path.exists(path):
            with open(path, encoding="utf-8") as stream:
                lines = stream.readlines()
            kept = [line for line in lines if line.split(":")[0] != name]
            if kept != lines:
                write_atomically(path, "".join(kept).encode(), os.stat(path))


# --- what a person sees -----------------------------------------------------------------------------------------------


def shown(attribute: str, value) -> str:
    """Return an attribute's value in words."""
    if attribute == "expires_day":
        return f"expires {'never' if value is None else rules.from_day(value)}"
    if attribute == "groups":
        return f"groups {', '.join(value) or 'none'}"
    return f"{attribute} {value if value != '' else '(empty)'}"


def as_diff(before: list[str], after: list[str]) -> dict:
    """Return lines as Ansible shows them."""
    text = {"before": before, "after": after}
    return {f"{key}_header": "accounts" for key in text} | {key: "".join(f"{line}\n" for line in text[key]) for key in text}


def difference(made: dict, accounts: dict, keys: dict) -> tuple[list[str], list[str]]:
    """Return what is and what will be, as lines."""
    before, after = [], []
    for name, wanted in sorted(made["want"].items()):
        for attribute, value in sorted(wanted.items()):
            before.append(f"{name}: {shown(attribute, accounts[name][attribute])}")
            after.append(f"{name}: {shown(attribute, value)}")
    for name, (reason, why) in sorted(made["disable"].items()):
        after.append(f"{name}: disabled ({reason}): {why}")
    before += [f"{name}: disabled ({accounts[name]['disabled']['reason']})" for name in sorted(made["enable"])]
    for name, why in sorted(made["remove"].items()):
        before.append(f"{name}: uid {accounts[name]['uid']}, home {accounts[name]['home']}")
        after.append(f"{name}: removed ({why}), home archived, uid {accounts[name]['uid']} reserved")
    after += [f"{user['name']}: created, locked until a password is set" for user in made["create"]]
    after += [f"{user['name']}: back under its former uid" for user in made["revive"]]
    for name, path in sorted(keys.items()):
        before.append(f"{name}: keys in {path}: as they were")
        after.append(f"{name}: keys in {path}: {len(made['keys'][name])} declared")
    before += [f"{name}: keys in {path}" for path, name in sorted(made["put_away"].items())]
    if made["nis"]:
        before.append("NIS lines in the account files")
    return before, after


# --- state: present ---------------------------------------------------------------------------------------------------


def look() -> tuple[dict, dict, dict]:
    """Return (what was observed, the record, accounts by name)."""
    try:
        seen, record = posture.collect(), posture.load_record()
    except CannotObserve as exc:
        raise Failed(f"the accounts cannot be observed: {exc}") from exc
    accounts = {a["name"]: a for a in [seen["root"], *seen["system"], *seen["people"], *seen["reserved"]] if a}
    return seen, record, accounts


def came_in_as(module: AnsibleModule) -> tuple[set, bool]:
    """Return (accounts Ansible came in with, whether it is root over something like SSH)."""
    names = {os.environ.get("SUDO_USER", ""), module.params["connection_user"]} - {""}
    try:
        with open("/proc/self/loginuid", encoding="ascii") as stream:
            uid = int(stream.read())
        names.add(pwd.getpwuid(uid).pw_name)
    except (OSError, ValueError, KeyError):
        pass  # no audit in this kernel, or not a login
    remote = "SSH_CONNECTION" in os.environ or module.params["connection_type"] in ("ssh", "smart", "paramiko_ssh", "libssh")
    return names, remote and (not names - {""} or "root" in names)


def can_become_root(name: str) -> bool:
    """Tell whether sudo lets an account do everything as root."""
    try:
        text = run(["sudo", "-n", "-l", "-U", name])
    except CannotObserve:
        return False
    return bool(re.search(r"\((ALL|root)( : [\w-]+)?\)\s+(?:[A-Z_]+:\s*)*ALL\b", text))


def journal_says(names: list[str], days: int) -> dict:
    """Return {name: seconds of the last SSH login the journal knows of}, for sessions without terminal leave no other trace."""
    try:
        text = run(
            ["journalctl", "-q", "--no-pager", "-o", "short-unix", f"--since=-{days}d", "-t", "sshd", "-t", "sshd-session",
             "-g", "^Accepted "], timeout=60
        )  # fmt: skip
    except CannotObserve:
        return {}
    found: dict = {}
    for at, name in re.findall(r"^(\d+)\.\d+ .*?: Accepted \S+ for (\S+) from ", text, re.M):
        if name in names:
            found[name] = max(int(at), found.get(name, 0))
    return found


def settings_of(module: AnsibleModule) -> dict:
    """Return the parameters as the plan wants them."""
    with open("/etc/group", encoding="utf-8", errors="replace") as stream:
        groups = set(rules.parse_groups(stream.read()))
    users = [{key: value for key, value in user.items() if value is not None} for user in module.params["users"]]
    for user in users:
        blobs = [rules.key_blob(line) for line in user.get("authorized_keys", [])]
        user["__fingerprints"] = [
            "SHA256:" + base64.b64encode(hashlib.sha256(base64.b64decode(blob)).digest()).decode().rstrip("=")
            for blob in blobs
            if blob
        ]
    missing = {user["shell"] for user in users if user.get("shell") and not os.access(user["shell"], os.X_OK)}
    return {**module.params, "users": users, "known_groups": groups, "missing_shells": missing}


def present(module: AnsibleModule) -> dict:
    """Carry the plan out, or say what would happen."""
    settings = settings_of(module)
    seen, record, accounts = look()
    names, root_over_ssh = came_in_as(module)
    root_by_sudo = functools.lru_cache(maxsize=None)(can_become_root)
    made = accounts_plan.plan(seen, record, settings, names, root_over_ssh, root_by_sudo)
    going = [name for name, (reason, _why) in made["disable"].items() if reason == "dormant"]
    heard = journal_says(going, settings["disable_days"]) if going else {}
    if heard:
        for name, at in heard.items():
            accounts[name]["last_login"] = {"at": at, "source": "journal"}
        made = accounts_plan.plan(seen, record, settings, names, root_over_ssh, root_by_sudo)
    if made["refusals"]:
        module.fail_json(
            msg="Nothing was changed:\n" + "\n".join(f"- {said}" for said in made["refusals"]),
            refusals=made["refusals"],
            warnings_said=made["warnings"],
        )

    patterns, _uses_pam = posture.sshd_settings()
    newcomers = {
        u["name"]: {"name": u["name"], "uid": u.get("uid"), "home": f"/home/{u['name']}"} for u in made["create"] + made["revive"]
    }
    paths = {name: managed_keys_path({**accounts, **newcomers}[name], patterns) for name in made["keys"]}
    keys = {name: path for name, path in paths.items() if keys_differ(path, made["keys"][name])}
    for name in made["keys"]:
        made["put_away"].update({p: name for p in accounts.get(name, {}).get("key_files", []) if p != paths[name]})

    before, after = difference(made, accounts, keys)
    before += [
        f"{name}: left over from a removal that was cut short" for name, e in sorted(record["removed"].items()) if e.get("delete")
    ]
    result = {
        "changed": before != after,
        "diff": as_diff(before, after),
        "disabled": {name: why for name, (_reason, why) in made["disable"].items()},
        "removed": dict.fromkeys(made["remove"], ""),
        "warnings_said": made["warnings"],
    }
    for said in made["warnings"]:
        module.warn(said)
    if not module.check_mode:
        remember(record, seen, accounts)
        if result["changed"]:
            carry_out(made, record, seen, accounts, keys, settings, result)
        save_record(record)
    return result


def remember(record: dict, seen: dict, accounts: dict) -> None:
    """Note who was seen and when each last logged in, and forget who is gone; this alone is no change of the host."""
    for name in set(record["before"]) | set(record["disabled"]):
        if name not in accounts or record["uids"].get(name, accounts[name]["uid"]) != accounts[name]["uid"]:
            for part in ("before", "disabled", "uids"):
                record[part].pop(name, None)
    since = seen["login_recorder"]["since"]
    if record["recording_since"] is None:
        record["recording_since"] = since
    for account in accounts.values():
        entry = record["seen"].setdefault(f"{account['name']}:{account['uid']}", {"first_seen": seen["now"]})
        if account["last_login"]:
            entry["last_login"] = max(entry.get("last_login") or 0, account["last_login"]["at"])


def carry_out(made: dict, record: dict, seen: dict, accounts: dict, keys: dict, settings: dict, result: dict) -> None:
    """Change the host. What was there is written into the record before it is changed."""
    now = int(time.time())
    for name, wanted in made["want"].items():
        before = record["before"].setdefault(name, {})
        for attribute, value in wanted.items():
            found = accounts[name][attribute]
            if attribute == "password":
                found = "open" if found == "set" else found
            former = before.get(attribute)
            if former and former[0] == value:
                del before[attribute]
            else:
                before[attribute] = [former[0] if former else found, value]
    for name, (reason, why) in made["disable"].items():
        record["disabled"][name] = {"at": now, "reason": reason, "why": why}
    for name in set(made["want"]) | set(made["disable"]):
        record["uids"][name] = made["want"].get(name, {}).get("uid", accounts[name]["uid"])
    save_record(record)

    for user in made["create"]:
        create(user)
        record["seen"][f"{user['name']}:{pwd.getpwnam(user['name']).pw_uid}"] = {"first_seen": now}

    for name in made["remove"]:
        account = accounts[name]
        end_sessions(name, account["uid"])
        paths, kept = belongings(account, accounts)
        entry = record["removed"].get(name, {}) if not paths else {}  # all of it went away in a run that was cut short
        if not entry.get("archive") or entry["uid"] != account["uid"]:
            path, digest = archive(account, paths, settings["archive_directory"])
            entry = {"archive": path, "sha256": digest, "delete": paths, "home_kept": kept}
        owner = rules.by_name(settings["users"]).get(name, {}).get("owner", "")
        taken = set(accounts)
        entry.update(
            uid=account["uid"], gid=account["gid"], at=now, owner=owner, home=account["home"], shell=account["shell"],
            reserved_as=accounts_plan.reserved_name(name, account["uid"], taken),
        )  # fmt: skip
        record["removed"][name] = entry
        result["removed"][name] = entry["archive"]
        save_record(record)

    files = Databases()
    try:
        if made["nis"]:
            record["lines"] += files.drop_nis()
            save_record(record)
        for name, wanted in made["want"].items():
            if name not in made["remove"]:
                for attribute, value in wanted.items():
                    files.set(name, attribute, value)
        for name in made["remove"]:
            entry = record["removed"][name]
            files.set(name, "groups", [])
            files.rename(name, entry["reserved_as"], f"was {name}; uid reserved", "/nonexistent", accounts_plan.NOLOGIN, "1")
        for user in made["revive"]:
            entry = record["removed"][user["name"]]
            shell = user.get("shell") or accounts_plan.SHELL
            files.rename(entry["reserved_as"], user["name"], user["owner"], f"/home/{user['name']}", shell, "")
            for attribute, value in (("groups", user.get("groups", [])), ("expires_day", rules.to_day(user.get("expires")))):
                files.set(user["name"], attribute, value)
        files.save()
    finally:
        files.close()

    for user in made["revive"]:
        del record["removed"][user["name"]]
        furnish(pwd.getpwnam(user["name"]))
    for name in made["enable"]:
        record["disabled"].pop(name, None)
    for name in made["remove"]:
        record["disabled"].pop(name, None)
        record["before"].pop(name, None)
        drop_subids(name)
        for leftover in (os.path.join(posture.LOGINS, name), f"/var/lib/systemd/linger/{name}"):
            if os.path.exists(leftover):
                os.unlink(leftover)
    for entry in record["removed"].values():
        delete(entry.pop("delete", []), entry["uid"])
    for path in made["put_away"]:
        put_away(record, path)
    for name, path in keys.items():
        person = pwd.getpwnam(name)
        put_keys(path, person.pw_dir, person.pw_uid, person.pw_gid, made["keys"][name])
    for name in made["disable"]:
        end_sessions(name, accounts[name]["uid"])
    save_record(record)


def create(user: dict) -> None:
    """Create a declared account: without a password, so locked until its owner sets one."""
    service = rules.kind_of(user) == "service"
    argv = [
        "useradd",
        "--comment",
        user.get("owner", ""),
        "--shell",
        accounts_plan.NOLOGIN if service else user.get("shell") or accounts_plan.SHELL,
    ]
    argv += (
        ["--system", "--no-create-home", "--home-dir", "/nonexistent"]
        if service
        else ["--create-home", "-K", "HOME_MODE=0700", "-K", "UMASK=077"]
    )
    if user.get("uid") is not None:
        argv += ["--uid", str(user["uid"])]
    if user.get("groups"):
        argv += ["--groups", ",".join(user["groups"])]
    if user.get("expires"):
        argv += ["--expiredate", user["expires"]]
    do([*argv, "--", user["name"]])


def furnish(person: pwd.struct_passwd) -> None:
    """Give an account a home from the skeleton, if it has none."""
    if os.path.exists(person.pw_dir):
        return
    shutil.copytree("/etc/skel", person.pw_dir, symlinks=True)
    for directory, names, files in os.walk(person.pw_dir):
        for path in [directory, *[os.path.join(directory, name) for name in names + files]]:
            os.lchown(path, person.pw_uid, person.pw_gid)
    os.chmod(person.pw_dir, 0o700)


# --- state: absent ----------------------------------------------------------------------------------------------------


def absent(module: AnsibleModule) -> dict:
    """Put back what the record says, where nobody changed it since."""
    _seen, record, accounts = look()
    want: dict = {}
    for name, attributes in record["before"].items():
        for attribute, (was, is_ours) in attributes.items():
            account = accounts.get(name)
            now_is = account and ("open" if attribute == "password" and account["password"] == "set" else account[attribute])
            if attribute == "shell" and account and account["shell_kind"] == "none" and is_ours == accounts_plan.NOLOGIN:
                now_is = is_ours
            if account and now_is == is_ours and was != "empty":
                want.setdefault(name, {})[attribute] = was
    lines = ["%s: %s" % (entry["path"], entry["line"].split(":")[0]) for entry in record["lines"]]
    files_back = [entry for entry in record["files"] if not os.path.lexists(entry["path"])]
    before = [f"{n}: {shown(a, accounts[n][a])}" for n, w in sorted(want.items()) for a in sorted(w)]
    after = [f"{n}: {shown(a, v)}" for n, w in sorted(want.items()) for a, v in sorted(w.items())]
    after += [f"{entry['path']}: put back" for entry in files_back] + lines
    gone = sorted(record["removed"].items())
    result = {
        "changed": before != after,
        "diff": as_diff(before, after),
        "disabled": {},
        "removed": {},
        "warnings_said": [f"{name}: stays removed; archive {entry['archive']}" for name, entry in gone],
    }
    if module.check_mode or not (result["changed"] or record["before"] or record["disabled"] or record["files"]):
        return result
    files = Databases()
    try:
        for name, attributes in want.items():
            for attribute, value in attributes.items():
                files.set(name, attribute, value)
        for entry in record["lines"]:
            files.lines[os.path.basename(entry["path"])].append(entry["line"])
        files.save()
    finally:
        files.close()
    for entry in files_back:
        restore(entry)
    record.update(before={}, disabled={}, uids={}, files=[], lines=[])
    save_record(record)
    return result


def restore(entry: dict) -> None:
    """Put a file of keys back; as its owner where that is not root."""

    def write():
        os.makedirs(os.path.dirname(entry["path"]), mode=0o700, exist_ok=True)
        if "link" in entry:
            os.symlink(entry["link"], entry["path"])
        else:
            write_atomically(entry["path"], base64.b64decode(entry["content"]), mode=entry["mode"])

    if entry["uid"]:
        as_user(entry["uid"], entry.get("gid", entry["uid"]), write)
    else:
        write()


def main() -> None:
    """Entry point."""
    module = AnsibleModule(
        argument_spec={
            "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
            "users": {"type": "list", "elements": "dict", "default": []},
            "undeclared": {"type": "str", "choices": ["report", "disable"], "default": "report"},
            "generic_names": {"type": "list", "elements": "str", "default": []},
            "system_exempt": {"type": "list", "elements": "dict", "default": []},
            "approvers": {"type": "list", "elements": "str", "default": []},
            "approval_required": {"type": "bool", "default": True},
            "disable_days": {"type": "int", "default": 90},
            "remove_days": {"type": "int", "default": 90},
            "notice_days": {"type": "int", "default": 1},
            "at_once_percent": {"type": "int", "default": 25},
            "controller_time": {"type": "int", "required": True},
            "clock_tolerance": {"type": "int", "default": 3600},
            "archive_directory": {"type": "path", "default": "/var/backups/bulwark-accounts"},
            "connection_user": {"type": "str", "default": ""},
            "connection_type": {"type": "str", "default": "ssh"},
        },
        supports_check_mode=True,
    )
    if os.geteuid():
        module.fail_json(msg="accounts can only be changed by root")
    try:
        module.exit_json(**(present(module) if module.params["state"] == "present" else absent(module)))
    except Failed as exc:
        module.fail_json(msg=str(exc))


if __name__ == "__main__":
    main()
