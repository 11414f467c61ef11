# Copyright: (c) 2026, Bulwark contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What systemd, the kernel and a visitor can say of a service, as collectors of several rooms ask it."""

from __future__ import annotations

import os
import re
import socket
import ssl
import time
import warnings
from collections.abc import Iterable

from ansible_collections.bulwark.hardening.plugins.module_utils.posture.common import owner_name, read, run


def states(names: Iterable[str]) -> dict[str, str]:
    """Return {unit: its state (active, inactive, failed, ...)}; a unit that does not exist is inactive."""
    names = list(names)
    return dict(zip(names, run(["systemctl", "show", "-p", "ActiveState", "--value", *names]).split(), strict=True))


def at_boot(names: Iterable[str]) -> list[str]:
    """Return which of these units start with the system."""
    wanted = run(["systemctl", "show", "-p", "Wants", "--value", "multi-user.target", "timers.target"]).split()
    return [name for name in names if name in wanted]


def properties(unit: str, *names: str) -> dict[str, str]:
    """Return properties of a unit by name; the text of each as systemd shows it."""
    text = run(["systemctl", "show", "-p", ",".join(names), unit])
    return dict(line.split("=", 1) for line in text.splitlines() if "=" in line)


def process(unit: str) -> dict:
    """Return what a service's main process is.

    user               who it runs as, "" if it does not run
    no_new_privileges  whether it can never have more rights than it has
    arguments          the words it was started with, its own name not among them
    started            when, in seconds since the epoch, 0.0 if it does not run
    """
    pid = properties(unit, "MainPID").get("MainPID", "0")
    if pid == "0":
        return {"user": "", "no_new_privileges": False, "arguments": [], "started": 0.0}
    status = read(f"/proc/{pid}/status")
    ticks = int(read(f"/proc/{pid}/stat").rpartition(")")[2].split()[19])  # field 22 of proc(5)
    uid = re.search(r"^Uid:\s+(\d+)", status, re.MULTILINE)
    return {
        "user": owner_name(int(uid.group(1))) if uid else "",
        "no_new_privileges": bool(re.search(r"^NoNewPrivs:\s+1$", status, re.MULTILINE)),
        "arguments": read(f"/proc/{pid}/cmdline").split("\0")[1:-1],
        # Counted as the kernel does, through the times when the machine slept.
        "started": time.time() - (time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")),
    }


def unchanged_since(started: float, *paths: str) -> bool:
    """Return whether files are there and were last written before a moment (seconds since the epoch), a second allowed."""
    return all(os.path.exists(path) and os.stat(path).st_mtime <= started + 1 for path in paths)


def knock(address: str, port: int, request: bytes, refused: str, old: bool = False) -> str:
    """Return how a TLS server answers a visitor who has no certificate: open, refused, or closed if nobody listens.

    ``address`` is what the server listens on (all of a host's addresses: it is asked on the loopback); ``request`` is what
    the visitor asks; an answer that matches the pattern ``refused`` from its beginning, or none at all, is a refusal. With
    ``old`` the visitor speaks no protocol newer than TLS 1.1. Who the server is does not matter: it is only asked.
    """
    place = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(address, address)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    versions = ssl.TLSVersion
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # old protocols are asked for on purpose
        context.minimum_version = versions.TLSv1 if old else versions.TLSv1_2
        context.maximum_version = versions.TLSv1_1 if old else versions.MAXIMUM_SUPPORTED
    context.set_ciphers("ALL:@SECLEVEL=0")
    try:
        raw = socket.create_connection((place, port), 5)
    except OSError:
        return "closed"
    try:
        with raw, context.wrap_socket(raw) as secure:
            secure.sendall(request)
            answer = secure.recv(64).decode(errors="replace")
    except OSError:
        return "refused"
    return "refused" if not answer or re.match(refused, answer) else "open"
