# Copyright: (c) 2026, Bulwark contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How sessions end on a host: shells, sshd, logind, and the timer that looks for terminals without input."""

from __future__ import annotations

import glob
import json
import os
import re
import time

from ansible_collections.bulwark.hardening.plugins.module_utils.posture.common import (
    SSHD,
    CannotObserve,
    look,
    read,
    run,
    sshd_effective,
)

# Shells that know TMOUT, and the seconds each grants on top of it (measured: ksh93 warns and waits another minute).
SHELLS = {"bash": 0, "zsh": 0, "ksh93": 60, "mksh": 0}
NOBODY = 65534
MEMORY = "/run/bulwark-session/memory.json"
# The look itself, on a slow machine.
LOOK_SECONDS = 2
SECONDS = {
    "us": 1e-6, "ms": 1e-3, "s": 1, "sec": 1, "m": 60, "min": 60, "h": 3600, "hr": 3600, "d": 86400, "day": 86400, "w": 604800,
    "week": 604800, "month": 2629800, "y": 31557600, "year": 31557600,
}  # fmt: skip


def collect() -> dict:
    """Return how sessions end.

    All times are seconds, 0 means never. Keys: ``ssh_installed``; ``shells`` {name: {timeout_seconds, ends_after_seconds,
    readonly}}, ``shell_timeout_seconds`` (when the slowest of them ends) and ``shell_timeout_readonly`` (in every shell), as
    an unprivileged user's interactive login shell has them; ``ssh`` {channel_timeout_seconds, unused_connection_seconds}
    and ``ssh_exceptions`` (lines of Match blocks that set these anew); ``logind_seconds``; ``reaper`` {running, at_boot,
    last_look_seconds_ago, interval_seconds, end_after_seconds, worst_case_seconds}.
    """
    data: dict = {"ssh_installed": os.path.exists(SSHD), "shells": {}}
    parts = {"shells": shells, "logind_seconds": logind_seconds, "reaper": reaper}
    if data["ssh_installed"]:
        parts.update(ssh=ssh, ssh_exceptions=ssh_exceptions)
    seen, data["unobserved"] = look(parts)
    data.update(seen)
    if "shells" in data["unobserved"]:
        data["shells"] = {}
    else:
        ends = [shell["ends_after_seconds"] for shell in data["shells"].values()]
        data["shell_timeout_seconds"] = max(ends) if all(ends) else 0
        data["shell_timeout_readonly"] = all(shell["readonly"] for shell in data["shells"].values())
    return data


def shells() -> dict[str, dict]:
    """Return what shell_settings says, by installed shell that can end by itself. Raises CannotObserve."""
    ask = 'echo "TMOUT is ${TMOUT-}"; readonly -p'
    return {
        # In a session of its own, or an interactive shell would take the terminal of whoever runs this by hand.
        name: shell_settings(run(["setsid", "--wait", name, "-lic", ask], user=NOBODY), extra)
        for name, extra in SHELLS.items()
        if os.path.exists(f"/bin/{name}")
    }


def shell_settings(output: str, extra: int) -> dict:
    """Return {timeout_seconds, ends_after_seconds, readonly} from what a shell printed that grants ``extra`` seconds on top.

    What a profile prints in between is passed over.
    """
    values = re.findall(r"^TMOUT is (.*)$", output, re.MULTILINE)
    value = values[-1].strip() if values else ""
    timeout = int(value) if value.isdigit() else 0
    return {
        "timeout_seconds": timeout,
        "ends_after_seconds": timeout + extra if timeout else 0,
        "readonly": bool(re.search(r"^(?:declare|typeset|readonly)\b.*\sTMOUT=", output, re.MULTILINE)),
    }


def ssh() -> dict[str, int]:
    """Return {channel_timeout_seconds, unused_connection_seconds} of sshd. Raises CannotObserve."""
    return sshd_timeouts(sshd_effective("-C", "user=nobody,host=localhost,addr=127.0.0.1"))


def sshd_timeouts(output: str) -> dict[str, int]:
    """Return {channel_timeout_seconds, unused_connection_seconds} from `sshd -T`.

    Only the type ``*`` counts for channels: other types leave some kind of channel open, which one depends on the version.
    Every type must end, so of several entries the slowest counts.
    """
    settings = dict(line.split(" ", 1) for line in output.splitlines() if " " in line)
    channels = dict(pair.partition("=")[::2] for pair in settings.get("channeltimeout", "none").split())
    # The first pattern that matches wins, so what stands before the star is looked at, what stands after it is not.
    counted = []
    for kind, value in channels.items():
        counted.append(time_span(value))
        if kind == "*":
            break
    everything = "*" in channels and all(counted)
    return {
        "channel_timeout_seconds": max(counted) if everything else 0,
        "unused_connection_seconds": time_span(settings.get("unusedconnectiontimeout", "none")),
    }


def ssh_exceptions(path: str = "/etc/ssh/sshd_config") -> list[str]:
    """Return, as "file:line: text", the lines of Match blocks that set either timeout for somebody. Raises CannotObserve."""
    return exceptions_in(config_lines(path))


def config_lines(path: str) -> list[tuple[str, str]]:
    """Return ("file:line", text) of the lines of sshd's configuration in the order sshd reads them. Raises CannotObserve.

    A Match block ends with its file, so after an included file the line that was in force before it is repeated.
    """
    found, block = [], ("", "Match")
    for number, line in enumerate(read(path).splitlines(), 1):
        keyword, patterns = words(line)
        if keyword == "include":
            for pattern in patterns:
                for included in sorted(glob.glob(os.path.join("/etc/ssh", pattern.strip('"')))):
                    found += [*config_lines(included), block]
        else:
            found.append((f"{path}:{number}", line))
            block = found[-1] if keyword == "match" else block
    return found


def words(line: str) -> tuple[str, list[str]]:
    """Return the keyword of a line of sshd's configuration, in lower case, and its arguments."""
    parts = re.sub(r"^(\s*\w+)\s*=", r"\1 ", line).split() or [""]
    return parts[0].lower(), parts[1:]


def exceptions_in(lines: list[tuple[str, str]]) -> list[str]:
    """Return, as "file:line: text", what Match blocks exempt somebody with, from what config_lines returned.

    The first Match block that applies sets a keyword, so one for all makes every later one void. Only
    ``UnusedConnectionTimeout none`` wins over those before it, wherever its block stands (OpenSSH 9.2 and 10.0).
    """
    found, settled, block = [], set(), []
    for place, line in lines:
        keyword, arguments = words(line)
        if keyword == "match":
            block = [argument.lower() for argument in arguments]
        elif block and keyword in ("channeltimeout", "unusedconnectiontimeout"):
            lifted = keyword == "unusedconnectiontimeout" and arguments[:1] == ["none"]
            if block == ["all"] and not lifted:
                settled.add(keyword)
            elif lifted or keyword not in settled:
                found.append(f"{place}: {line.strip()}")
    return found


def time_span(text: str) -> int:
    """Return seconds, rounded up, of a time as sshd or systemd writes it (``1800``, ``1min 30s``, ``30m``); never is 0.

    Raises CannotObserve on anything else.
    """
    text = text.strip()
    if text in ("", "none", "infinity"):
        return 0
    if text.isdigit():
        return int(text)
    parts = re.findall(r"([\d.]+)\s*([a-z]+)", text.lower())
    if not parts or "".join(number + unit for number, unit in parts) != re.sub(r"\s", "", text.lower()):
        raise CannotObserve(f"{text!r} is no time")
    try:
        total = sum(float(number) * SECONDS[unit if unit in SECONDS else unit[:-1]] for number, unit in parts)
    except (KeyError, ValueError) as exc:
        raise CannotObserve(f"{text!r} is no time") from exc
    return int(-(-total // 1))


def logind_seconds() -> int:
    """Return the seconds after which logind ends an idle login, 0 for never. Raises CannotObserve."""
    shown = run([
        "busctl", "get-property", "org.freedesktop.login1", "/org/freedesktop/login1", "org.freedesktop.login1.Manager",
        "StopIdleSessionUSec",
    ])  # fmt: skip
    return microseconds(shown.split()[-1])


def microseconds(number: str) -> int:
    """Return seconds of systemd's microseconds, 0 for its infinity (2^64 - 1)."""
    return 0 if int(number) == 2**64 - 1 else int(number) // 1_000_000


def reaper() -> dict:
    """Return how logins on terminals without input are looked for. Raises CannotObserve when systemd cannot say."""
    properties = "Id,ActiveState,TimersMonotonic,AccuracyUSec,Wants"
    shown = run(["systemctl", "show", "-p", properties, "bulwark-session.timer", "timers.target"])
    try:
        memory = read(MEMORY)
    except CannotObserve:
        memory = "{}"  # it never looked
    return reaper_state(shown, memory, time.clock_gettime(time.CLOCK_BOOTTIME))


def reaper_state(shown: str, memory: str, now: float) -> dict:
    """Return the state from `systemctl show`, the text of the program's memory, and the seconds since boot.

    The limits are those the program used at its last look, not those of its unit file. ``last_look_seconds_ago`` and
    ``worst_case_seconds`` are None when it never looked or no interval is set.
    """
    units = {}
    for block in shown.strip().split("\n\n"):
        values: dict[str, str] = {}
        for line in block.splitlines():
            name, _equals, value = line.partition("=")
            values[name] = f"{values.get(name, '')} {value}".strip()  # TimersMonotonic comes once for each
        units[values.get("Id", "")] = values
    timer, target = units.get("bulwark-session.timer", {}), units.get("timers.target", {})
    try:
        used = json.loads(memory)
        looked, end_after, grace = used.get("looked"), used.get("end_after", 0), used.get("grace", 0)
    except (ValueError, AttributeError):
        looked, end_after, grace = None, 0, 0
    # TimersMonotonic={ OnUnitActiveUSec=1min ; next_elapse=14min 3.120651s }
    interval = re.search(r"OnUnitActiveUSec=([^;]+?) ;", timer.get("TimersMonotonic", ""))
    every = time_span(interval.group(1)) if interval else 0
    late = every + time_span(timer.get("AccuracyUSec", "1min")) + grace + LOOK_SECONDS
    return {
        "running": timer.get("ActiveState") == "active",
        "at_boot": "bulwark-session.timer" in target.get("Wants", "").split(),
        "interval_seconds": every,
        "last_look_seconds_ago": round(now - looked) if looked is not None else None,
        "end_after_seconds": end_after,
        "worst_case_seconds": end_after + late if end_after and every else None,
    }
