# Copyright: (c) 2026, Bulwark contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Find out how this very run came in, on the host: by which account, from where, to which port, with which key."""

from __future__ import annotations

import contextlib
import os
import pwd
import re

from ansible_collections.bulwark.hardening.plugins.module_utils.posture.common import CannotObserve, read, run
from ansible_collections.bulwark.hardening.plugins.module_utils.posture.ssh import owner_name

LOGS = "/var/log/auth.log"
TAIL = 1 << 20  # bytes of the log that are looked through, from its end


def ancestors() -> list[dict]:
    """Return the processes above this one, nearest first: ``{"pid", "uid", "title", "environment"}``.

    The environment is {} where the kernel hides it (a container without CAP_SYS_PTRACE), as sudo's children's often is.
    """
    found, pid = [], os.getpid()
    while pid > 1:
        try:
            status = read(f"/proc/{pid}/status")
            title = read(f"/proc/{pid}/cmdline").replace("\0", " ").strip()
        except CannotObserve:
            break
        try:
            parts = read(f"/proc/{pid}/environ").split("\0")
        except CannotObserve:
            parts = []
        environment = dict(part.split("=", 1) for part in parts if "=" in part)
        uid = int(re.search(r"^Uid:\s+(\d+)", status, re.MULTILINE).group(1))
        found.append({"pid": pid, "uid": uid, "title": title, "environment": environment})
        pid = int(re.search(r"^PPid:\s+(\d+)", status, re.MULTILINE).group(1))
    return found


def logged(pids: list[int]) -> list[tuple[str, str, str, str, str]]:
    """Return (method, account, address, port, rest) of each login that these processes of sshd logged, oldest first."""
    text = ""
    with contextlib.suppress(CannotObserve):
        text = run(["journalctl", "-q", "-o", "cat", "-n", "2000", *(f"_PID={pid}" for pid in pids)], timeout=5)
    if "Accepted " not in text:
        try:
            with open(LOGS, "rb") as stream:
                stream.seek(max(0, os.fstat(stream.fileno()).st_size - TAIL))
                lines = stream.read().decode("utf-8", "replace").splitlines()
        except OSError:
            lines = []
        text = "\n".join(line for line in lines if any(f"[{pid}]: " in line for pid in pids))
    return re.findall(r"Accepted (\S+) for (\S+) from (\S+) port (\d+) ssh2(?:: (.*))?", text)


def way_in() -> dict | None:
    """Return how this process came in; None if not over SSH. Raises CannotObserve when it did and cannot be told how.

    ``{"account", "address", "laddr", "lport", "method", "fingerprint"}``; method and fingerprint are "" when sshd's log no
    longer has them. sudo drops the environment, so the processes above are asked: the shell that sshd started knows the
    connection, and sshd's own processes logged it under their numbers.
    """
    above = ancestors()
    servers = [process for process in above if re.match(r"sshd(-session)?: ", process["title"])]
    shells = [process for process in above if len(process["environment"].get("SSH_CONNECTION", "").split()) == 4]
    if not servers and not shells:
        return None
    lines = logged([process["pid"] for process in servers]) if servers else []
    found: dict = {"method": "", "fingerprint": "", "laddr": "192.0.2.1", "lport": "22"}
    port = ""
    if shells:
        top = shells[-1]
        found["address"], port, found["laddr"], found["lport"] = top["environment"]["SSH_CONNECTION"].split()
        found["account"] = top["environment"].get("LOGNAME", "")
        if found["account"] not in [entry.pw_name for entry in pwd.getpwall() if entry.pw_uid == top["uid"]]:
            found["account"] = owner_name(top["uid"])
    lines = [line for line in lines if not port or line[3] == port]
    if lines:
        found["method"], found["account"], found["address"], port, rest = lines[-1]
        fingerprint = re.search(r"SHA256:\S+", rest)
        found["fingerprint"] = fingerprint.group(0) if fingerprint else ""
    if "account" not in found:
        title = re.match(r"sshd(?:-session)?: ([^@ ]+)", servers[0]["title"])
        name = title.group(1) if title else "somebody"
        raise CannotObserve(f"this is an SSH connection of {name}, from where is neither in its environment nor in the log")
    return found


def began() -> float | None:
    """Return when this SSH connection was made, in seconds since boot; None if it is none of SSH. Raises CannotObserve.

    sshd starts a process of its own for each connection, above all that comes in over it; a further session over the same
    connection (ControlPersist) has the same one.
    """
    servers = [process for process in ancestors() if re.match(r"sshd(-session)?: ", process["title"])]
    servers = [process for process in servers if "[listener]" not in process["title"]]
    if not servers:
        return None
    ticks = read(f"/proc/{servers[-1]['pid']}/stat").rpartition(")")[2].split()[19]  # starttime, the 22nd field of all
    return int(ticks) / os.sysconf("SC_CLK_TCK")
