# Managed by bulwark.hardening (role session). Changes made here are overwritten.
# Copyright: (c) 2026, Bulwark contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Log off people whose terminals had no input for too long. Run by bulwark-session.timer, as root, every few seconds.

The kernel moves a terminal's access time when a program reads what somebody typed, and leaves it alone when a program
prints. So top, sleep, tail -f, another shell or a clock in tmux hide nobody, and logind need not know the terminal.

Judged are the terminals people log in on: those whose session sshd or its like, or login, started, and consoles.
Never judged, because nobody sits there or somebody else judges it: commands without a terminal (Ansible), services,
containers' terminals, the panes of tmux and screen (the terminal they are shown on is judged), terminals of apt, expect
or script, and graphical sessions (the desktop's lock judges those).

Idle time is counted on the clock that runs since boot, from when a run last saw the access time move. A wall clock that
is set, forward or backward, therefore logs nobody off. A change that came with a changed status-change time was made by
`touch` (or mesg, or the login itself), not by the keyboard, and does not count. What was typed but not read yet does.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import json
import os
import pwd
import re
import signal
import sys
import termios
import time
from collections import namedtuple

# Programs that start the shell of somebody who logs in from elsewhere.
TERMINAL_SERVERS = {
    "sshd", "sshd-session", "dropbear", "mosh-server", "in.telnetd", "telnetd", "ttyd", "shellinaboxd", "cockpit-bridge",
}  # fmt: skip
# What runs on a console as long as nobody is logged in there.
GREETERS = {"agetty", "getty", "mingetty", "(agetty)", "login"}
DEV_TTY = os.makedev(5, 0)
KDGETMODE, KD_GRAPHICS = 0x4B3B, 1

# One row of /proc/PID/stat; terminal is the device number of the controlling terminal, started is in clock ticks after boot
Process = namedtuple("Process", "pid name parent group session terminal foreground started")
# Device number and path, the processes whose controlling terminal it is, and the first of them, with which all of them end
Terminal = namedtuple("Terminal", "device path leader processes")


def read(path: str) -> str:
    """Return the text of a file below /proc or /sys, empty if it is gone."""
    try:
        with open(path, encoding="utf-8", errors="replace") as stream:
            return stream.read()
    except OSError:
        return ""


def parse_stat(text: str) -> Process:
    """Return a process from the text of /proc/PID/stat. The program's name may hold spaces and brackets."""
    before, after = text.rsplit(")", 1)
    pid, name = before.split(" (", 1)
    rest = after.split()
    parent, group, session, terminal, foreground = map(int, rest[1:6])
    return Process(int(pid), name, parent, group, session, terminal, foreground, int(rest[19]))


def split_device(terminal: int) -> tuple[int, int]:
    """Return (major, minor) of the terminal number in /proc/PID/stat."""
    return (terminal >> 8) & 0xFFF, (terminal & 0xFF) | ((terminal >> 12) & 0xFFF00)


def device_path(terminal: int) -> str | None:
    """Return the path of a terminal's device, or None if it has none here."""
    major, minor = split_device(terminal)
    if 136 <= major <= 143:
        return f"/dev/pts/{minor + (major - 136) * 256}"
    found = re.search(r"^DEVNAME=(.+)$", read(f"/sys/dev/char/{major}:{minor}/uevent"), re.MULTILINE)
    return f"/dev/{found.group(1)}" if found else None


def in_a_container(status: str) -> bool:
    """Return whether a process belongs to a container below us, from the text of /proc/PID/status: it has a number there too."""
    numbers = re.search(r"^NSpid:(.*)$", status, re.MULTILINE)
    return bool(numbers) and len(numbers.group(1).split()) > 1


def processes() -> list[Process]:
    """Return every process we can see, but those on terminals of containers, which are others than ours of the same number."""
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        text = read(f"/proc/{pid}/stat")
        if text:
            process = parse_stat(text)
            if not process.terminal or not in_a_container(read(f"/proc/{pid}/status")):
                found.append(process)
    return found


def terminals(everything: list[Process]) -> list[Terminal]:
    """Return the terminals that control a session, each with that session's processes.

    The first process is the session's leader; but login on Debian 12 stays that itself, there it is the shell it started.
    """
    by_device: dict[int, list[Process]] = {}
    for process in everything:
        if process.terminal:
            by_device.setdefault(process.terminal, []).append(process)
    found = []
    for device, members in by_device.items():
        path = device_path(device)
        leader = next((process for process in members if process.pid == process.session), None)
        if leader and leader.name == "login":
            leader = next((process for process in members if process.parent == leader.pid), leader)
        if path and leader:
            found.append(Terminal(device, path, leader, members))
    return found


def key(terminal: Terminal) -> str:
    """Return what tells one login on a terminal from the next login on the same terminal."""
    return f"{terminal.path} {terminal.leader.pid} {terminal.leader.started}"


def note_input(before: dict | None, seen: dict, now: float, wall: float, looked: float | None) -> dict:
    """Return what is remembered of a terminal: what was seen, and since when (seconds after boot) it had no input.

    ``before`` is what the last run remembered, ``seen`` has the present ``atime``, ``ctime`` and ``queued`` (characters typed
    that no program has read yet), ``looked`` is when the last run looked (None: never). The wall clock only tells where
    between two looks the input came.
    """
    elapsed = now - looked if looked is not None else 0.0
    if before is None or (seen["atime"] != before["atime"] and seen["ctime"] == before["ctime"]):
        return {**seen, "since": now - min(max(wall - seen["atime"], 0.0), elapsed), "warned": False}
    if seen["queued"] > before["queued"]:
        return {**seen, "since": now, "warned": False}
    return {**seen, "since": before["since"], "warned": before["warned"]}


def ask(path: str, request: int) -> int | None:
    """Return what a terminal answers to a request with a number as answer; None if it knows no such request."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOCTTY | os.O_NONBLOCK)
    except OSError:
        return None
    try:
        answer = bytearray(8)
        fcntl.ioctl(descriptor, request, answer)
        return int.from_bytes(answer[:4], sys.byteorder)
    except OSError:
        return None
    finally:
        os.close(descriptor)


def queued(path: str) -> int:
    """Return how many characters wait to be read: somebody who watches a program that reads nothing may press Enter."""
    return ask(path, termios.FIONREAD) or 0


def shows_graphics(path: str) -> bool:
    """Return whether a virtual console is in graphics mode: then its keys are not read through it."""
    return ask(path, KDGETMODE) == KD_GRAPHICS


def is_login(terminal: Terminal, everything: dict[int, Process]) -> bool:
    """Return whether somebody logged in on a terminal, rather than a program having made it for a program.

    Who started the first process tells: neither that nor anything it starts can change it. Names and control groups can be
    read without the capability to trace processes, which root has not got in every container.
    """
    parent = everything.get(terminal.leader.parent)
    if parent and parent.name in TERMINAL_SERVERS:
        return True
    if parent and parent.name == "login" and re.search(r"^Uid:\s+0\s", read(f"/proc/{parent.pid}/status"), re.MULTILINE):
        return True
    if terminal.path.startswith("/dev/pts/") or shows_graphics(terminal.path):
        return False
    people = [process for process in terminal.processes if process.name not in GREETERS]
    return any(re.search(r"/user\.slice/|getty[^/\n]*\.service", read(f"/proc/{process.pid}/cgroup")) for process in people)


def reads_dev_tty(terminal: Terminal) -> bool:
    """Return whether a program in the foreground reads its keys from /dev/tty, as pagers and sudo do."""
    for process in terminal.processes:
        if process.group != process.foreground:
            continue
        with contextlib.suppress(OSError):
            for number in os.listdir(f"/proc/{process.pid}/fd"):
                with contextlib.suppress(OSError):
                    if os.stat(f"/proc/{process.pid}/fd/{number}").st_rdev == DEV_TTY:
                        return True
    return False


def old_kernel(release: str) -> bool:
    """Return whether input read through /dev/tty does not move the time of the terminal itself (Linux before 6.6)."""
    found = re.match(r"(\d+)\.(\d+)", release)
    return bool(found) and (int(found.group(1)), int(found.group(2))) < (6, 6)


def shared_idle(terminal: Terminal, idle: dict[str, float], every: list[Terminal]) -> float:
    """Return the least idle seconds of a terminal and of those within it.

    A program such as sudo, su --pty or script reads the keys of its own terminal and passes them on to one it made.
    """
    least, open_ones, done = idle[key(terminal)], [terminal], {terminal.device}
    while open_ones:
        pids = {process.pid for process in open_ones.pop().processes}
        for inner in every:
            if inner.device not in done and inner.leader.parent in pids:
                done.add(inner.device)
                least = min(least, idle[key(inner)])
                open_ones.append(inner)
    return least


def say(level: int, text: str) -> None:
    """Write one line to the journal, with a syslog level that systemd takes off again."""
    print(f"<{level}>{text}", flush=True)


def user_of(path: str) -> str:
    """Return who logged in on a terminal: login and sshd give it to that user."""
    try:
        uid = os.stat(path).st_uid
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)
    except OSError:
        return "unknown"


def warn(terminal: Terminal, idle: float, limit: int, left: int) -> None:
    """Tell whoever sits at a terminal what will happen. Never waits for the terminal."""
    text = f"\r\n\a*** No input for {idle // 60:.0f} min: at the limit of {limit // 60} min you are logged off. "
    if limit < 600:
        text = f"\r\n\a*** No input for {idle:.0f} s: at the limit of {limit} s you are logged off. "
    text += f"Press Enter within {left} s to stay. ***\r\n"
    with contextlib.suppress(OSError):
        descriptor = os.open(terminal.path, os.O_WRONLY | os.O_NOCTTY | os.O_NONBLOCK)
        try:
            os.write(descriptor, text.encode())
        finally:
            os.close(descriptor)


def still(process: Process) -> bool:
    """Return whether a process is still the one we looked at, not a later one with its number."""
    text = read(f"/proc/{process.pid}/stat")
    return bool(text) and parse_stat(text).started == process.started and text.rsplit(")", 1)[1].split()[0] not in "ZX"


def send(process: Process, *signals: int) -> None:
    """Send signals to a process if it is still the same one."""
    for number in signals:
        if still(process):
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, number)


def end(doomed: list[Terminal], grace: float) -> list[Terminal]:
    """Hang terminals up; return those whose session's leader is still there after being killed.

    The leader and what runs in the foreground are told as by a broken line, and have ``grace`` seconds to put things in order.
    What was left behind on purpose (nohup, tmux, a detached job) has another group or no terminal, and is left alone.
    """
    for terminal in doomed:
        for process in terminal.processes:
            if process == terminal.leader or process.group == process.foreground:
                send(process, signal.SIGHUP, signal.SIGCONT)
    until = time.monotonic() + grace
    while time.monotonic() < until and any(still(terminal.leader) for terminal in doomed):
        time.sleep(0.1)
    for terminal in doomed:
        send(terminal.leader, signal.SIGKILL)
    until = time.monotonic() + 1
    while time.monotonic() < until and any(still(terminal.leader) for terminal in doomed):
        time.sleep(0.05)
    return [terminal for terminal in doomed if still(terminal.leader)]


def remember(path: str) -> dict:
    """Return what the last run remembered; after a reboot, or if it cannot be read, nothing."""
    try:
        with open(path, encoding="utf-8") as stream:
            memory = json.load(stream)
        return {"looked": float(memory["looked"]), "dev_tty": memory["dev_tty"], "terminals": dict(memory["terminals"])}
    except FileNotFoundError:
        pass
    except (OSError, ValueError, KeyError, TypeError) as exc:
        say(4, f"{path} cannot be used, every terminal is counted anew: {exc}")
    return {"looked": None, "dev_tty": None, "terminals": {}}


def save(path: str, memory: dict) -> None:
    """Write what is remembered, whole or not at all."""
    with open(os.open(f"{path}.new", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8") as stream:
        json.dump(memory, stream)
    os.replace(f"{path}.new", path)


def look(every: list[Terminal], memory: dict, now: float, wall: float) -> dict[str, dict]:
    """Return what is to be remembered of each terminal, by its key."""
    noted = {}
    for terminal in every:
        with contextlib.suppress(OSError):
            times = os.stat(terminal.path)
            if times.st_rdev == os.makedev(*split_device(terminal.device)):
                seen = {"atime": times.st_atime, "ctime": times.st_ctime, "queued": queued(terminal.path)}
                noted[key(terminal)] = note_input(memory["terminals"].get(key(terminal)), seen, now, wall, memory["looked"])
    return noted


def main() -> int:
    """Look once; return 1 if a session could not be ended."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--limit", type=int, required=True, help="the policy's limit in seconds, for what users are told")
    parser.add_argument("--end-after", type=int, required=True, help="seconds without input after which a login ends")
    parser.add_argument("--warn-after", type=int, default=0, help="seconds after which the user is warned, 0 for never")
    parser.add_argument("--grace", type=int, default=5, help="seconds between hanging up and killing")
    parser.add_argument("--memory", default="/run/bulwark-session/memory.json", help="file that is kept between runs")
    wish = parser.parse_args()

    now, wall = time.clock_gettime(time.CLOCK_BOOTTIME), time.time()
    memory = remember(wish.memory)
    everything = processes()
    every = terminals(everything)
    noted = look(every, memory, now, wall)
    every = [terminal for terminal in every if key(terminal) in noted]
    dev_tty = os.stat("/dev/tty").st_atime
    typed_elsewhere = old_kernel(os.uname().release) and memory["dev_tty"] not in (None, dev_tty)
    idle = {name: now - entry["since"] for name, entry in noted.items()}
    first = min(wish.end_after, wish.warn_after or wish.end_after)
    suspects = [terminal for terminal in every if idle[key(terminal)] >= first]
    doomed = []
    if suspects:
        by_pid = {process.pid: process for process in everything}
        for terminal in suspects:
            entry = noted[key(terminal)]
            if not is_login(terminal, by_pid):
                continue
            seconds = shared_idle(terminal, idle, every)
            if typed_elsewhere and reads_dev_tty(terminal):
                entry["since"], entry["warned"] = now, False
            elif seconds >= wish.end_after:
                doomed.append(terminal)
            elif wish.warn_after and seconds >= wish.warn_after and not entry["warned"]:
                warn(terminal, seconds, wish.limit, round(wish.end_after - seconds))
                entry["warned"] = True

    named = {}
    for terminal in list(doomed):
        entry, name = noted[key(terminal)], user_of(terminal.path)
        with contextlib.suppress(OSError):
            if os.stat(terminal.path).st_atime != entry["atime"]:  # a key was pressed this very moment
                doomed.remove(terminal)
                continue
        shown = f"{name} on {terminal.path[5:]} ({terminal.leader.name}, pid {terminal.leader.pid})"
        named[key(terminal)] = shown
        say(5, f"logging off {shown}: no input for {idle[key(terminal)]:.0f} s, limit {wish.limit} s")
    # Remembered before the wait, so that the time of this look is right even if we are stopped meanwhile
    save(wish.memory, {
        "looked": now, "end_after": wish.end_after, "warn_after": wish.warn_after, "grace": wish.grace,
        "dev_tty": dev_tty, "terminals": noted,
    })  # fmt: skip
    stubborn = end(doomed, wish.grace)
    for terminal in stubborn:
        say(3, f"could not end {named[key(terminal)]}; trying again at the next run")
    return 1 if stubborn else 0


if __name__ == "__main__":
    sys.exit(main())
