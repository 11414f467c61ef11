# Copyright: (c) 2026, Bulwark contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Rules of the kernel's audit system: made from declared intents, compared with what the kernel has. Standard library only.

This file is also put on the host as a program, which loads the rules in the place of the vendor's augenrules:

    audit_rules load                 load the rules and lock them (at each start of the system)
    audit_rules apply                load, compare, and start auditd anew with its configuration (when something changed)
    audit_rules check FILE           look whether the syscalls of a file of rules are known, without a kernel

Return codes of auditctl are not believed: against locked rules some versions change nothing and return 0. What counts is whether
the kernel's own list (auditctl -l) equals the file's.
"""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
import tempfile
import time

RULES = "/etc/audit/bulwark/audit.rules"
LOCKED = 2  # of auditctl -s, enabled: no rule can be changed until the system starts anew
PEOPLE = ("auid>=1000", "auid!=unset")  # somebody logged in, whoever they have become since
# Which system calls can do what a watch asks for. Naming them spares all others the look.
PERMITS = {
    "r": ("open", "openat", "openat2", "readlink", "readlinkat", "getxattr", "lgetxattr", "fgetxattr"),
    "w": (
        "open", "openat", "openat2", "creat", "truncate", "ftruncate", "fallocate", "rename", "renameat", "renameat2", "mkdir",
        "mkdirat", "rmdir", "link", "linkat", "unlink", "unlinkat", "symlink", "symlinkat", "mknod", "mknodat",
    ),
    "x": ("execve", "execveat"),
    "a": (
        "chmod", "fchmod", "fchmodat", "chown", "fchown", "lchown", "fchownat", "setxattr", "lsetxattr", "fsetxattr",
        "removexattr", "lremovexattr", "fremovexattr", "link", "linkat",
    ),
}  # fmt: skip
# What a 32-bit program calls instead, beside the names above.
NARROW = {
    "truncate": "truncate64", "ftruncate": "ftruncate64", "chown": "chown32", "fchown": "fchown32", "lchown": "lchown32",
    "clock_settime": "clock_settime64", "clock_adjtime": "clock_adjtime64",
}  # fmt: skip
ARCHITECTURES = {"x86_64": ("b64", "b32"), "aarch64": ("b64",)}  # machine: where a kernel also runs 32-bit programs
TABLES = {"x86_64": {"b64": "x86_64", "b32": "i386"}, "aarch64": {"b64": "aarch64"}}  # as ausyscall calls them
_NEEDS_VALUE = ("-a", "-A", "-S", "-F", "-C", "-w", "-W", "-p", "-k")


class AuditError(Exception):
    """Rules that cannot be used; the text says which, and why."""


# --- from intents to rules --------------------------------------------------------------------------------------------


def rules(intents: list[dict], wanted_class: str, machine: str, release: int, present: list[str]) -> list[str]:
    """Return the rules of all intents that a class of host asks for, as auditctl takes them: the first that fits counts.

    An intent is {key, title, rules, class} and a rule one of {syscalls}, {paths, perm} and {trees, perm}, with fields, never,
    people, class (baseline unless it says high), since (release of Debian that first knows it) and only (architectures).
    ``optional: true`` leaves out paths that are not among ``present``: a tree that is not there cannot be watched.
    """
    lines = []
    for intent in intents:
        for rule in intent["rules"]:
            if "high" in (intent.get("class"), rule.get("class")) and wanted_class != "high":
                continue
            if release < rule.get("since", 0):
                continue
            lines += _lines(rule, intent["key"], machine, present)
    return list(dict.fromkeys(lines))


def _lines(rule: dict, key: str, machine: str, present: list[str]) -> list[str]:
    places = [("path", path) for path in rule.get("paths", [])] + [("dir", path) for path in rule.get("trees", [])]
    if rule.get("optional"):
        places = [(kind, path) for kind, path in places if path in present]
    elif not places:
        places = [("", "")]
    lines = []
    for kind, path in places:
        for arch in ARCHITECTURES.get(machine, ("b64",)):
            if arch not in rule.get("only", (arch,)):
                continue
            names = list(rule.get("syscalls") or dict.fromkeys(name for letter in rule["perm"] for name in PERMITS[letter]))
            if arch == "b32":
                names += [NARROW[name] for name in names if name in NARROW]
            elif machine == "aarch64":
                names = [name for name in names if name not in _ONLY_OLD]
            fields = ([f"{kind}={path}", f"perm={rule['perm']}"] if kind else []) + list(rule.get("fields", []))
            compared = [field for field in fields if re.fullmatch(r"[a-z_]+!?=(?:obj_)?[a-z]*[ug]id", field)]
            fields = [field for field in fields if field not in compared] + (list(PEOPLE) if rule.get("people") else [])
            words = ["-a", "never,exit" if rule.get("never") else "always,exit", "-F", f"arch={arch}", "-S", ",".join(names)]
            for field in compared:
                words += ["-C", field]
            for field in fields:
                words += ["-F", field]
            lines.append(" ".join([*words, *([] if rule.get("never") else ["-F", f"key={key}"])]))
    return lines


# Younger architectures have only the newer form of these.
_ONLY_OLD = {
    "open", "creat", "readlink", "rename", "renameat", "mkdir", "rmdir", "link", "unlink", "symlink", "mknod", "chmod", "chown",
    "lchown",
}  # fmt: skip


def objections(lines: list[str]) -> list[str]:
    """Return why rules of a site's own cannot be taken, one sentence each; an empty list if they all can.

    Such a rule only adds: -a always,exit or -w, with a key of its own. One that deletes, locks, excludes or sets anything would
    undo what the others are there for.
    """
    said = []
    for line in lines:
        try:
            parts = _parsed(line)
        except AuditError as exc:
            said.append(f"{line!r}: {exc}")
            continue
        if parts["list"] not in ("always,exit", "exit,always"):
            said.append(f"{line!r}: must begin with -a always,exit (or be a watch, -w): a rule of a site only adds")
        elif not parts["key"]:
            said.append(f"{line!r}: has no key (-k name) by which its events are found")
        elif parts["key"].startswith("bulwark_"):
            said.append(f"{line!r}: keys that begin with bulwark_ are the role's own")
    return said


# --- comparing --------------------------------------------------------------------------------------------------------


def _parsed(line: str) -> dict:
    """Return one rule as {list, syscalls, fields, key}, in one form however it was written. Raises AuditError."""
    try:
        words = shlex.split(line)
    except ValueError as exc:
        raise AuditError(f"cannot be read: {exc}") from exc
    parts: dict = {"list": "", "syscalls": set(), "fields": set(), "key": ""}
    while words:
        word = words.pop(0)
        if word not in _NEEDS_VALUE or word == "-W":
            raise AuditError(f"{word} is no part of a rule")
        if not words:
            raise AuditError(f"{word} lacks its value")
        value = words.pop(0)
        if word in ("-a", "-A"):
            parts["list"] = ",".join(sorted(value.split(",")))
        elif word == "-S":
            parts["syscalls"] |= set(value.split(","))
        elif word == "-k":
            parts["key"] = value
        elif word == "-w":
            parts["list"] = parts["list"] or "always,exit"
            parts["fields"].add(("watch", "=", value.rstrip("/") or "/"))
        elif word == "-p":
            parts["fields"].add(("perm", "=", "".join(sorted(value))))
        else:
            match = re.fullmatch(r"([a-z0-9_]+)(!=|>=|<=|&=|=|>|<|&)(.+)", value)
            if not match:
                raise AuditError(f"{word} {value} is no comparison")
            name, operator, right = match.groups()
            if word == "-C":
                name, right = sorted((name, right))
            elif name == "key":
                parts["key"] = right
                continue
            elif right in ("-1", "4294967295") and name.endswith("id"):
                right = "unset"
            elif name == "perm":
                right = "".join(sorted(right))
            elif name in ("dir", "path"):
                right = right.rstrip("/") or "/"
            parts["fields"].add((name, operator, right))
    # Without an architecture and without syscalls a watch is listed as -w, with neither: is it a file or a tree?
    names = {name for name, _operator, _value in parts["fields"]}
    if not parts["syscalls"] - {"all"} and not names & {"arch"}:
        parts["fields"] = {("watch" if n in ("dir", "path") else n, o, v) for n, o, v in parts["fields"]}
    # With permissions it is these that decide which calls fit, and some releases of auditctl add calls by themselves.
    parts["syscalls"] = set() if "perm" in names else parts["syscalls"] - {"all"}
    return parts


def normalised(line: str) -> str:
    """Return a rule in one form, whether it stands in a file or is the kernel's as auditctl -l shows it. Raises AuditError."""
    parts = _parsed(line)
    words = ["-a", parts["list"]]
    words += ["-S", ",".join(sorted(parts["syscalls"]))] if parts["syscalls"] else []
    for name, operator, value in sorted(parts["fields"]):
        words += ["-F", f"{name}{operator}{value}"]
    return " ".join([*words, *(["-F", f"key={parts['key']}"] if parts["key"] else [])])


def key_of(rule: str) -> str:
    """Return the key of a rule in that form, or an empty string."""
    return rule.rpartition(" -F key=")[2] if " -F key=" in rule else ""


def watched(rule: str) -> tuple[str, str]:
    """Return (dir or path or watch, what a rule in that form watches), or two empty strings."""
    match = re.search(r" -F (dir|path|watch)=(\S+)", rule)
    return (match.group(1), match.group(2)) if match else ("", "")


def written(text: str) -> tuple[list[str], dict[str, str]]:
    """Return (rules in one form, settings such as {"-b": "8192", "-e": "2"}) of a file for auditctl -R. Raises AuditError."""
    found, settings = [], {}
    for number, line in enumerate(text.splitlines(), 1):
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        if words[0] in ("-a", "-A", "-w"):
            try:
                found.append(normalised(line))
            except AuditError as exc:
                raise AuditError(f"line {number}: {line.strip()}: {exc}") from exc
        else:
            settings[words[0]] = words[1] if len(words) > 1 else ""
    return found, settings


def listed(output: str) -> list[str]:
    """Return the kernel's rules in one form, from auditctl -l. Raises AuditError."""
    return [normalised(line) for line in output.splitlines() if line.strip() and line.strip() != "No rules"]


def differences(wanted: list[str], loaded: list[str]) -> tuple[list[str], list[str]]:
    """Return (rules that are written but not loaded, rules that are loaded but not written). Order counts only within both."""
    return [rule for rule in wanted if rule not in loaded], [rule for rule in loaded if rule not in wanted]


def status(output: str) -> dict[str, int]:
    """Return what auditctl -s says as numbers: enabled, failure, pid, backlog_limit, lost, loginuid_immutable, ...."""
    pairs = (line.split() for line in output.splitlines())
    return {words[0]: int(words[1]) for words in pairs if len(words) > 1 and words[1].isdigit()}


# --- the program ------------------------------------------------------------------------------------------------------


def _run(*argv: str) -> subprocess.CompletedProcess:
    return subprocess.run(argv, check=False, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60)


def _read(path: str) -> str:
    with open(path, encoding="utf-8") as stream:
        return stream.read()


def _say(event: str, **more: object) -> None:
    """Write one line that the journal keeps: by systemd's way of giving a priority, as a warning."""
    words = " ".join(f"{name}={value}" for name, value in more.items())
    _tell(f"<4>bulwark-audit event={event} {words}")


def _tell(text: str) -> None:
    """Write a line to whoever called."""
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


def _load(lock: bool) -> list[str]:
    """Put the file's rules into the kernel, unless they are locked there; return what then differs, in words."""
    text = _read(RULES)
    wanted, settings = written(text)
    if status(_run("/usr/sbin/auditctl", "-s").stdout).get("enabled") != LOCKED:
        # auditctl takes rules from a file only. It goes on after a rule that it cannot load: better all others than none.
        with tempfile.NamedTemporaryFile("w", dir="/run", prefix="bulwark-audit-", suffix=".rules") as copy:
            copy.write("".join(line + "\n" for line in text.splitlines() if not line.startswith("-e ")))
            copy.flush()
            said = _run("/usr/sbin/auditctl", "-R", copy.name).stderr
        for line in said.splitlines():
            if "error" in line.lower() or "unknown" in line.lower():
                _tell(f"<4>{line}")
    missing, foreign = differences(wanted, listed(_run("/usr/sbin/auditctl", "-l").stdout))
    if lock and "-e" in settings:
        _run("/usr/sbin/auditctl", "-e", settings["-e"])
    return [f"not loaded: {rule}" for rule in missing] + [f"not written: {rule}" for rule in foreign]


def load() -> int:
    """Load and lock at the start of the system; say what differs."""
    found = _load(lock=True)
    for one in found:
        _say("rules_differ", rule=repr(one))
    return 1 if found else 0


def apply() -> int:
    """Load what changed, start auditd anew and lock; fail if the kernel does not take a rule, before anything is locked."""
    if _run("/usr/bin/systemd-detect-virt", "--quiet", "--container").returncode == 0:
        return 0  # the kernel is the machine's, not ours
    locked = status(_run("/usr/sbin/auditctl", "-s").stdout).get("enabled") == LOCKED
    if not locked and (found := _load(lock=False)):
        _tell("\n".join(found))
        return 1
    socket = "systemd-journald-audit.socket"
    if _show(socket, "LoadState") == "masked" and _show(socket, "ActiveState") == "active":
        _run("/usr/bin/systemctl", "stop", socket)
        _run("/usr/bin/systemctl", "restart", "systemd-journald.service")  # it keeps its end of the socket otherwise
    return 0 if _restart() else 1


def _show(unit: str, name: str) -> str:
    """Return one property of a unit."""
    return _run("/usr/bin/systemctl", "show", "--value", "-p", name, unit).stdout.strip()


def _restart() -> bool:
    """End auditd (its unit refuses to be stopped by hand) and start it; return whether another one then serves the kernel."""
    before = _show("auditd.service", "MainPID")
    if before not in ("", "0"):
        os.kill(int(before), signal.SIGTERM)  # what happens meanwhile waits in the kernel
        for _tenth in range(100):
            if not os.path.exists(f"/proc/{before}"):
                break
            time.sleep(0.1)
    started = _run("/usr/bin/systemctl", "start", "auditd.service")
    for _tenth in range(150):
        pid = status(_run("/usr/sbin/auditctl", "-s").stdout).get("pid", 0)
        if pid and str(pid) != before and str(pid) == _show("auditd.service", "MainPID"):
            return True
        time.sleep(0.1)
    _tell(f"auditd does not come up: {started.stderr}")
    return False


def check(path: str) -> int:
    """Look whether the file can be read and its syscalls are known here; what the kernel says is known once it is asked."""
    try:
        text = _read(path)
        written(text)
    except (AuditError, OSError) as exc:
        _tell(f"{path}: {exc}")
        return 1
    tables = TABLES.get(os.uname().machine, {})
    unknown = []
    for arch, table in tables.items():
        try:
            known = {line.split()[1] for line in _run("/usr/bin/ausyscall", table, "--dump").stdout.splitlines() if "\t" in line}
        except FileNotFoundError:
            return 0  # auditd is yet to be installed
        for line in text.splitlines():
            names = re.findall(r" -S (\S+)", f" {line}") if f"arch={arch}" in line else []
            unknown += [f"{arch} {name}" for name in ",".join(names).split(",") if known and name and name not in known | {"all"}]
    if unknown:
        _tell(f"{path}: unknown system calls: {', '.join(dict.fromkeys(unknown))}")
    return 1 if unknown else 0


def main(argv: list[str]) -> int:
    """Do what one verb says; return the exit code."""
    if argv == ["load"]:
        return load()
    if argv == ["apply"]:
        return apply()
    if len(argv) == 2 and argv[0] == "check":
        return check(argv[1])
    _tell(str(__doc__))
    return 2


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
