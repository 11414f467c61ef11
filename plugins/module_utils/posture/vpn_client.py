# Copyright: (c) 2026, Bulwark contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How a person's machine reaches the servers: its profile, and who can read its keys. No secret is returned."""

from __future__ import annotations

import glob
import os
import re

from ansible_collections.bulwark.hardening.plugins.module_utils.posture import vpn_gateway
from ansible_collections.bulwark.hardening.plugins.module_utils.posture.certificates import certificate
from ansible_collections.bulwark.hardening.plugins.module_utils.posture.common import look, read, run

UNIT = "openvpn-client@bulwark.service"
CONFIG = "/etc/openvpn/client/bulwark.conf"
DIRECTORY = "/etc/openvpn/client/bulwark"
# What OpenVPN can hold inline and nobody but its owner should know.
SECRET_BLOCKS = re.compile(r"^<(auth-user-pass|key|pkcs12|secret|tls-auth|tls-crypt(-v2)?|http-proxy-user-pass)>", re.MULTILINE)


def collect() -> dict:
    """Return how the machine reaches the servers.

    installed, unit (its state), at_boot; directives {name: [arguments]}; files [{path, owner, mode, secret}];
    password: what the file for the login holds beside a name: nothing, the word push, or "something" (never what);
    inline_secrets: whether the profile itself holds a secret; certificate {name, days, sound}
    """
    data: dict = {"installed": os.path.exists(vpn_gateway.OPENVPN)}
    parts = {
        "unit": lambda: run(["systemctl", "show", "-p", "ActiveState", "--value", UNIT]).strip(),
        "at_boot": lambda: UNIT in run(["systemctl", "show", "-p", "Wants", "--value", "multi-user.target"]).split(),
        "directives": lambda: vpn_gateway.configuration(CONFIG)[0],
        "files": files,
        "password": password,
        "inline_secrets": lambda: os.path.exists(CONFIG) and bool(SECRET_BLOCKS.search(read(CONFIG))),
        "certificate": lambda: certificate(DIRECTORY, "sslclient"),
    }
    seen, data["unobserved"] = look(parts)
    return {**data, **seen}


def files() -> list[dict]:
    """Return owner and mode of the profile and what belongs to it; what does not exist is left out."""
    paths = sorted(glob.glob(f"{DIRECTORY}.*") + glob.glob(os.path.join(DIRECTORY, "*")))
    plain = ("ca.crt", "own.crt")
    return [vpn_gateway.owned(path, os.path.basename(path) not in plain) for path in paths if os.path.lexists(path)]


def password() -> str:
    """Return what kind of password lies on the disk."""
    given = vpn_gateway.configuration(CONFIG)[0].get("auth-user-pass", [])
    path = next((value for value in given if value), "")
    if not path:
        return ""
    path = os.path.join(os.path.dirname(CONFIG), path)
    lines = read(path).splitlines() if os.path.exists(path) else []
    kind = lines[1].strip() if len(lines) > 1 else ""
    return kind if kind in ("", "push") and len(lines) < 3 else "something"
