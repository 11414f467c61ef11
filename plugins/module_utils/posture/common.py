# Copyright: (c) 2026, Bulwark contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What every posture collector uses: look at something, or say plainly that it could not be looked at."""

from __future__ import annotations

import grp
import json
import os
import pwd
import re
import stat
import subprocess
from collections.abc import Callable, Mapping

SSHD = "/usr/sbin/sshd"


class CannotObserve(Exception):
    """Something could not be looked at. The text says why; it ends up as status `error`, never as a pass."""


def run(argv: list[str], timeout: float = 10, user: int | None = None) -> str:
    """Return the standard output of a read-only command.

    ``timeout`` is in seconds. With ``user`` (a numeric uid) the command runs without privileges and groups. Raises
    CannotObserve when the command is missing, fails or takes too long.
    """
    identity = {} if user is None else {"user": user, "group": user, "extra_groups": []}
    environment = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C.UTF-8", "HOME": "/"}
    try:
        done = subprocess.run(
            argv,
            check=False,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=timeout,
            env=environment,
            cwd="/",
            **identity,
        )
    except FileNotFoundError as exc:
        raise CannotObserve(f"{argv[0]} is not installed") from exc
    except (OSError, subprocess.TimeoutExpired) as exc:
        raise CannotObserve(f"{argv[0]}: {exc}") from exc
    if done.returncode:
        said = done.stderr.decode(errors="replace").strip().splitlines()
        raise CannotObserve(f"{' '.join(argv)}: exit {done.returncode}{': ' + said[-1] if said else ''}")
    return done.stdout.decode(errors="replace")


def sshd_effective(*options: str) -> str:
    """Return the settings that sshd says are in effect, as C(sshd -T) prints them. Raises CannotObserve.

    Waiting behind a socket, sshd has lost the empty directory that its service makes anew at every start, and without
    which it does not even print its settings; so the directory is made here. That changes nothing that anybody sees.
    """
    if os.path.exists(SSHD):
        os.makedirs("/run/sshd", mode=0o755, exist_ok=True)
    return run([SSHD, "-T", *options])


def read(path: str) -> str:
    """Return the text of a file. Raises CannotObserve when it cannot be read."""
    try:
        with open(path, encoding="utf-8", errors="replace") as stream:
            return stream.read()
    except OSError as exc:
        raise CannotObserve(f"{path}: {exc.strerror}") from exc


def load(path: str) -> dict:
    """Return what a file of JSON holds, nothing if it is not there. Raises CannotObserve when it cannot be read or is no JSON."""
    if not os.path.exists(path):
        return {}
    try:
        return json.loads(read(path))
    except ValueError as exc:
        raise CannotObserve(f"{path}: {exc}") from exc


def look(parts: Mapping[str, Callable[[], object]], *also: type[Exception]) -> tuple[dict, dict[str, str]]:
    """Return what each part sees, by name, and why the others could not look.

    A part could not look when it raises CannotObserve, or what ``also`` names.
    """
    seen, unobserved = {}, {}
    for key, part in parts.items():
        try:
            seen[key] = part()
        except (CannotObserve, *also) as exc:
            unobserved[key] = str(exc)
    return seen, unobserved


def capable(status: str, capability: int) -> bool:
    """Return from /proc/1/status whether the system's manager may have a capability (its bit, capability.h)."""
    bounding = re.search(r"^CapBnd:\s*([0-9a-f]+)$", status, re.MULTILINE)
    if not bounding:
        raise CannotObserve("/proc/1/status has no CapBnd")
    return bool(int(bounding.group(1), 16) >> capability & 1)


def owner_name(uid: int) -> str:
    """Return the name of a uid, or its number."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def group_name(gid: int) -> str:
    """Return the name of a gid, or its number."""
    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return str(gid)


def file_facts(path: str) -> dict:
    """Return {path, owner, group, mode} of a file; where one of the two has no name, both are numbers."""
    about = os.stat(path)
    try:
        owner, group = pwd.getpwuid(about.st_uid).pw_name, grp.getgrgid(about.st_gid).gr_name
    except KeyError:
        owner, group = str(about.st_uid), str(about.st_gid)
    return {"path": path, "owner": owner, "group": group, "mode": f"{stat.S_IMODE(about.st_mode):04o}"}
