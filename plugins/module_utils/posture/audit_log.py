# Copyright: (c) 2026, Bulwark contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a host records of who did what: the kernel's own rules and state, and how auditd keeps and passes on what it gets.

The kernel is asked (auditctl), not the files alone: rules that are written but locked out record nothing. A rule counts as in
force when it is both loaded and written, because otherwise it is not yet there, or not after the next start.
"""

from __future__ import annotations

import glob
import os
import re
import shlex

from ansible_collections.bulwark.hardening.plugins.module_utils import audit
from ansible_collections.bulwark.hardening.plugins.module_utils.posture.common import CannotObserve, file_facts, read, run

AUDITCTL = "/usr/sbin/auditctl"
VENDOR = "/etc/audit"
UNIT = (
    "ActiveState", "UnitFileState", "MainPID", "Restart", "RefuseManualStop", "StartLimitIntervalUSec",
    "LogRateLimitIntervalUSec", "ExecStart",
)  # fmt: skip
OPTIONAL = (
    "/var/log/journal", "/var/spool/cron", "/root/.ssh",
    "/usr/lib/x86_64-linux-gnu/security", "/usr/lib/aarch64-linux-gnu/security",
)  # fmt: skip
LOGINS = ("sshd", "login", "cron")  # PAM services by which people's processes begin


def collect() -> dict:
    """Return what is recorded, and how.

    kernel_own     bool: whether the kernel is this host's own (a container shares its machine's)
    machine        as uname says; release: of Debian, a number (0 if unknown); boot_loader: grub or ""
    present        of the places that may be missing, those that are there
    status         numbers of auditctl -s (enabled, failure, pid, backlog_limit, lost, loginuid_immutable); {} without auditctl
    loaded         rules the kernel has, in one form; written: those of the file that is loaded at the start
    not_loaded     written and not loaded; not_written: the other way round
    rules          what is in force, rules by key; watched: places by key; misfits: trees that are watched as if they were files
    settings       of the file of rules, {"-e": "2", ...}
    daemon         auditd: installed, active, enabled, restart, refuse_stop, start_limited, log_limited, config_directory
    config         of auditd, {name: value}, in lower case
    journal        plugin {active, args}, running (whether it does), socket (whether journald takes records itself)
    loginuid       {PAM service: bool} of those that are there
    command_line   {name: value} of the kernel's options that concern audit
    files          list of {path, owner, group, mode}
    """
    data: dict = {
        "unobserved": {},
        "kernel_own": kernel_own(),
        "machine": os.uname().machine,
        "release": release(read("/etc/os-release")),
        "boot_loader": "grub" if os.path.exists("/usr/sbin/update-grub") and os.path.exists("/etc/default/grub") else "",
        "present": [path for path in OPTIONAL if os.path.isdir(path)],
        "loginuid": {name: sets_loginuid(read(f"/etc/pam.d/{name}")) for name in LOGINS if os.path.exists(f"/etc/pam.d/{name}")},
        "command_line": command_line(read("/proc/cmdline")),
    }
    unit = dict(line.split("=", 1) for line in run(["systemctl", "show", "-p", ",".join(UNIT), "auditd.service"]).splitlines())
    data["daemon"] = daemon(unit)
    directory = data["daemon"]["config_directory"]
    data["config"] = config(f"{directory}/auditd.conf")
    plugin = config(f"{data['config'].get('plugin_dir', directory + '/plugins.d')}/syslog.conf")
    data["journal"] = {
        "plugin": {"active": plugin.get("active", "no"), "args": plugin.get("args", "")},
        "running": "audisp-syslog" in children(unit.get("MainPID", "0")),
        "socket": run(["systemctl", "show", "-p", "ActiveState", "--value", "systemd-journald-audit.socket"]).strip() == "active",
    }
    data["files"] = files(directory)
    data.update(rules(data["kernel_own"], f"{directory}/audit.rules", data["unobserved"]))
    return data


def kernel_own() -> bool:
    """Return whether this is no container. systemd-detect-virt fails by design where it finds none, and says so."""
    try:
        return run(["systemd-detect-virt", "--container"]).strip() == "none"
    except CannotObserve as exc:
        if "exit 1" in str(exc):
            return True
        raise


def release(text: str) -> int:
    """Return the number of a Debian release, from /etc/os-release; 0 where there is none (testing, others)."""
    found = re.search(r'^VERSION_ID="?(\d+)', text, re.MULTILINE)
    return int(found.group(1)) if found else 0


def sets_loginuid(text: str) -> bool:
    """Return whether a PAM service notes who somebody logged in as, and refuses the login where it cannot."""
    return bool(re.search(r"^\s*session\s+(?:required|requisite)\s+(?:\S*/)?pam_loginuid\.so\b", text, re.MULTILINE))


def command_line(text: str) -> dict[str, str]:
    """Return the kernel's options that concern audit, from /proc/cmdline; of a repeated one, the last."""
    pairs = (word.partition("=") for word in text.split())
    return {name: value for name, _equals, value in pairs if name in ("audit", "audit_backlog_limit")}


def daemon(unit: dict[str, str]) -> dict:
    """Return how auditd's unit is set up, from `systemctl show`."""
    command = re.search(r"argv\[\]=(.*?) ; ignore_errors=", unit.get("ExecStart", ""))
    words = shlex.split(command.group(1)) if command else []
    directory = words[words.index("-c") + 1] if "-c" in words[:-1] else VENDOR
    return {
        "installed": os.path.exists("/usr/sbin/auditd"),
        "active": unit.get("ActiveState") == "active",
        "enabled": unit.get("UnitFileState") == "enabled",
        "restart": unit.get("Restart", ""),
        "refuse_stop": unit.get("RefuseManualStop") == "yes",
        "start_limited": unit.get("StartLimitIntervalUSec") != "0",
        "log_limited": unit.get("LogRateLimitIntervalUSec") != "0",
        "config_directory": directory.rstrip("/"),
    }


def config(path: str) -> dict[str, str]:
    """Return the settings of a file of auditd in lower case, {} if there is none."""
    if not os.path.exists(path):
        return {}
    settings = {}
    for line in read(path).splitlines():
        name, equals, value = (part.strip() for part in line.partition("="))
        if equals and not name.startswith("#"):
            settings[name.lower()] = value if name.lower() == "plugin_dir" else value.lower()
    return settings


def children(pid: str) -> list[str]:
    """Return the names of a process's children, as the kernel has them."""
    names = []
    for path in glob.glob("/proc/[0-9]*/stat"):
        try:
            text = read(path)
        except CannotObserve:
            continue  # it ended while we looked
        name, _bracket, rest = text.partition("(")[2].rpartition(")")
        if rest.split()[1] == pid and pid != "0":
            names.append(name)
    return names


def files(directory: str) -> list[dict]:
    """Return owner, group and mode of what is recorded, and of what decides about it; what does not exist is left out."""
    paths = ["/var/log/audit", *glob.glob("/var/log/audit/audit.log*"), directory, "/usr/local/lib/bulwark/audit_rules"]
    paths += [*glob.glob(f"{directory}/*"), *glob.glob(f"{directory}/plugins.d/*")]
    paths += glob.glob("/etc/systemd/system/audit*.service.d/*")
    return [file_facts(path) for path in sorted(dict.fromkeys(path for path in paths if os.path.exists(path)))]


def rules(own: bool, path: str, unobserved: dict[str, str]) -> dict:
    """Return status, loaded, written, not_loaded, not_written, rules, watched, misfits and settings (see collect).

    The kernel of a container's machine is not looked at; that is noted in ``unobserved``.
    """
    try:
        written, settings = audit.written(read(path)) if os.path.exists(path) else ([], {})
    except audit.AuditError as exc:
        raise CannotObserve(f"{path}: {exc}") from exc
    found: dict = {"written": written, "settings": settings}
    if not own:
        for key in ("status", "loaded", "not_loaded", "not_written"):
            unobserved[key] = "a container shares its machine's kernel"
        in_force = written
    elif not os.path.exists(AUDITCTL):
        found.update(status={}, loaded=[], not_loaded=written, not_written=[])
        in_force = []
    else:
        try:
            loaded = audit.listed(run([AUDITCTL, "-l"]))
        except audit.AuditError as exc:
            raise CannotObserve(f"auditctl -l: {exc}") from exc
        missing, foreign = audit.differences(written, loaded)
        found.update(status=audit.status(run([AUDITCTL, "-s"])), loaded=loaded, not_loaded=missing, not_written=foreign)
        in_force = [rule for rule in written if rule in loaded]
    by_key: dict[str, list[str]] = {}
    places: dict[str, list[str]] = {}
    misfits = []
    for rule in in_force:
        key = audit.key_of(rule)
        by_key.setdefault(key, []).append(rule)
        kind, place = audit.watched(rule)
        if kind and place not in places.setdefault(key, []):
            places[key].append(place)
        if kind == "path" and os.path.isdir(place) and key == "bulwark_sensitive" and place not in misfits:
            misfits.append(place)
    found.update(rules=by_key, watched=places, misfits=misfits)
    return found
