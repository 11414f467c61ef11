# Copyright: (c) 2026, Bulwark contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a person is shown before and at login: over SSH, on the console, and by PAM when the shell starts.

Nobody logs in for this. sshd is asked for its effective settings and for the line it greets with, agetty prints what
the console's units would show, and PAM's own rules for messages of the day (pam_motd(8)) are followed on the files.
"""

from __future__ import annotations

import os
import re
import socket
import subprocess

from ansible_collections.bulwark.hardening.plugins.module_utils.posture.common import (
    SSHD,
    CannotObserve,
    look,
    read,
    run,
    sshd_effective,
)

UNITS = ("getty@tty1.service", "serial-getty@ttyS0.service", "console-getty.service", "container-getty@0.service")
MOTD_FILES = ("/etc/motd", "/run/motd", "/usr/lib/motd")  # pam_motd's defaults; the first that exists is shown
MOTD_DIRECTORIES = ("/etc/motd.d", "/run/motd.d", "/usr/lib/motd.d")  # all are shown; a name in an earlier one wins
AT_MOST = 16384  # characters kept of one surface: a notice is short, and a posture is not an archive


def collect() -> dict:
    """Return the texts of each surface, with runs of white space as one space so that line breaks do not matter.

    ``ssh``: ``installed``, ``banner_files``, ``texts`` (distinct, over several kinds of user), ``identification`` (the
    line sent to whoever connects), ``use_pam``. ``console``: ``vendor_exec`` (unit file: its own agetty lines),
    ``issue_files`` (unit: file or ""), ``texts``, ``waiting_issue_files`` (of the agettys that run now). ``shell``:
    ``services`` (of PAM), ``texts`` (distinct, what they show at login). ``details_shown``: surface: which of the names and
    numbers of this operating system are readable before login.
    """
    data, unobserved = look({"ssh": ssh, "console": console, "shell": shell})
    data["unobserved"] = unobserved
    try:
        details = system_details(read("/etc/os-release"), os.uname().release)
        if "ssh" in data and "console" in data:
            data["details_shown"] = {
                "ssh": shown(details, [data["ssh"]["identification"], *data["ssh"]["texts"]]),
                "console": shown(details, data["console"]["texts"]),
            }
        else:
            data["unobserved"]["details_shown"] = "a surface could not be looked at"
    except CannotObserve as exc:
        data["unobserved"]["details_shown"] = str(exc)
    return data


def words(text: str) -> str:
    """Return a text with every run of white space as one space, at most AT_MOST characters."""
    return " ".join(text.split())[:AT_MOST]


def distinct(items: list) -> list:
    """Return the items without repetitions, in their order."""
    return list(dict.fromkeys(items))


def ssh() -> dict:
    """Return what sshd shows before anybody has authenticated. Raises CannotObserve when sshd cannot say."""
    if not os.path.exists(SSHD):
        return {"installed": False, "banner_files": [], "texts": [], "identification": "", "use_pam": False}
    files, use_pam = [], []
    for user in ("root", "nobody"):  # a Match block could show one of them something else
        settings = sshd_settings(sshd_effective("-C", f"user={user},host=localhost,addr=127.0.0.1"))
        files.append(settings.get("banner", "none"))
        use_pam.append(settings.get("usepam") == "yes")
    files = distinct(files)
    texts = [words(read(path)) if path != "none" and os.path.exists(path) else "" for path in files]
    return {
        "installed": True,
        "banner_files": files,
        "texts": distinct(texts),
        "identification": identification(),
        "use_pam": all(use_pam),
    }


def sshd_settings(output: str) -> dict[str, str]:
    """Return `sshd -T` as a dict; of a keyword that repeats, the last."""
    return dict(line.split(" ", 1) for line in output.splitlines() if " " in line)


def identification() -> str:
    """Return the line by which sshd identifies itself, such as ``SSH-2.0-OpenSSH_9.2p1 Debian-2+deb12u10``.

    A private sshd is started on a socket pair with the host's configuration (sshd 9.2 cannot print DebianBanner), greets,
    and ends as soon as we hang up: no port, no connection from outside, nothing in the log. Raises CannotObserve.
    """
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.settimeout(5)
        try:
            with subprocess.Popen(
                [SSHD, "-i", "-e"], stdin=theirs, stdout=theirs, stderr=subprocess.DEVNULL, env={"PATH": "/usr/sbin:/usr/bin"}
            ) as server:
                theirs.close()
                try:
                    greeting = ours.recv(512)
                finally:
                    ours.close()
                    server.kill()
        except OSError as exc:
            raise CannotObserve(f"{SSHD} -i: {exc}") from exc
    line = greeting.decode(errors="replace").splitlines()[0] if greeting else ""
    if not line.startswith("SSH-"):
        raise CannotObserve(f"{SSHD} -i: no identification, but {line!r}")
    return line


def console() -> dict:
    """Return what agetty shows on the console before login. Raises CannotObserve when agetty cannot be asked."""
    units = getty_units(run(["systemctl", "show", "-p", "Id,LoadState,FragmentPath,ExecStart", *UNITS]))
    issue_files = {unit: seen["issue_file"] for unit, seen in units.items()}
    vendor_exec = {}
    for seen in units.values():
        path = seen["fragment"]
        vendor_exec[os.path.basename(path)] = agetty_lines(read(path))
    return {
        "vendor_exec": vendor_exec,
        "issue_files": issue_files,
        "texts": distinct([words(issue(path)) for path in distinct(list(issue_files.values()))]),
        "waiting_issue_files": distinct([issue_option(argv) for argv in running("agetty")]),
    }


def getty_units(output: str) -> dict[str, dict[str, str]]:
    """Return {unit: {fragment, issue_file}} from `systemctl show` of the units that exist and run agetty."""
    units = {}
    for block in output.strip().split("\n\n"):
        shown_as = dict(line.split("=", 1) for line in block.splitlines() if "=" in line)
        command = re.search(r"argv\[\]=(.*?) ; ignore_errors=", shown_as.get("ExecStart", ""))
        if shown_as.get("LoadState") == "loaded" and command and "agetty" in command.group(1):
            argv = command.group(1).split()
            units[shown_as["Id"]] = {"fragment": shown_as["FragmentPath"], "issue_file": issue_option(argv)}
    return units


def agetty_lines(unit_file: str) -> list[str]:
    """Return the values of a unit file's ExecStart lines that run agetty."""
    return re.findall(r"^ExecStart=(\S*agetty\s.*\S)\s*$", unit_file, re.MULTILINE)


def issue_option(argv: list[str]) -> str:
    """Return the file that an agetty command line names with --issue-file, or "" where agetty's own default holds.

    --noissue shows as little as an empty file, so it is returned as /dev/null.
    """
    for here, argument in enumerate(argv):
        if argument in ("--noissue", "-i"):
            return "/dev/null"
        if argument.startswith("--issue-file="):
            return argument.partition("=")[2]
        if argument in ("--issue-file", "-f") and here + 1 < len(argv):
            return argv[here + 1]
    return ""


def running(name: str) -> list[list[str]]:
    """Return the command lines of the processes with a name."""
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            if read(f"/proc/{pid}/comm").strip() == name:
                found.append(read(f"/proc/{pid}/cmdline").split("\0")[:-1])
        except CannotObserve:
            continue  # it ended while we looked
    return found


def issue(path: str) -> str:
    """Return what agetty prints before its prompt, from a file or ("") from where it looks by itself.

    agetty wants a terminal even for --show-issue, so it gets one nobody else uses. Raises CannotObserve.
    """
    master, terminal = os.openpty()
    try:
        done = subprocess.run(
            ["/sbin/agetty", "--show-issue", *(["--issue-file", path] if path else [])],
            check=False,
            stdin=terminal,
            capture_output=True,
            timeout=5,
        )
    except (OSError, subprocess.TimeoutExpired) as exc:
        raise CannotObserve(f"agetty --show-issue: {exc}") from exc
    finally:
        os.close(master)
        os.close(terminal)
    if done.returncode:
        raise CannotObserve(f"agetty --show-issue: exit {done.returncode}: {done.stderr.decode(errors='replace').strip()}")
    return done.stdout.decode(errors="replace")


def shell() -> dict[str, list[str]]:
    """Return what PAM shows when a session opens. A service without a PAM file is left out."""
    services = [service for service in ("login", "sshd") if os.path.exists(f"/etc/pam.d/{service}")]
    texts = [words("\n".join(message_of_the_day(options) for options in motd_modules(service))) for service in services]
    return {"services": services, "texts": distinct(texts)}


def motd_modules(service: str) -> list[list[str]]:
    """Return the options of each pam_motd line that a PAM service runs when a session opens, includes followed."""
    found = []
    for line in read(f"/etc/pam.d/{service}").splitlines():
        fields = re.sub(r"\[[^]]*\]", "[]", line.partition("#")[0]).split()
        if len(fields) == 2 and fields[0] == "@include":
            found += motd_modules(fields[1])
        elif len(fields) >= 3 and fields[0].lstrip("-") == "session":
            if fields[1] in ("include", "substack"):
                found += motd_modules(fields[2])
            elif os.path.basename(fields[2]) == "pam_motd.so":
                found.append(fields[3:])
    return found


def message_of_the_day(options: list[str]) -> str:
    """Return what one pam_motd line shows: a file, then the files of directories. Naming one kind silences the other."""
    given = dict(option.split("=", 1) for option in options if "=" in option)
    files = given["motd"].split(":") if "motd" in given else [] if "motd_dir" in given else MOTD_FILES
    directories = given["motd_dir"].split(":") if "motd_dir" in given else [] if "motd" in given else MOTD_DIRECTORIES
    first = next((path for path in files if os.path.isfile(path)), None)
    paths: dict[str, str] = {}
    for directory in directories:
        for name in os.listdir(directory) if os.path.isdir(directory) else []:
            paths.setdefault(name, os.path.join(directory, name))
    parts = [first, *(paths[name] for name in sorted(paths))]
    return "\n".join(read(path) for path in parts if path and os.path.isfile(path))


def system_details(os_release: str, kernel: str) -> list[str]:
    """Return the names and numbers that would tell a stranger which operating system this is, longest first."""
    given = dict(line.split("=", 1) for line in os_release.splitlines() if "=" in line)
    values = {given.get(key, "").strip('"') for key in ("PRETTY_NAME", "NAME", "ID", "VERSION_CODENAME", "VERSION")}
    return sorted({value for value in {*values, kernel} if value}, key=lambda value: (-len(value), value))


def shown(details: list[str], texts: list[str]) -> list[str]:
    """Return which details occur in the texts, whatever their case."""
    everything = "\n".join(texts).lower()
    return [detail for detail in details if detail.lower() in everything]
