# Copyright: (c) 2026, Bulwark contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Sealed keys: of which key one is, what its file is called, for how many it is sealed. Standard library only.

A repository keeps each as escrow/<host>/<SHA-256 of the file>.json. So none ever takes the place of another, and one of which a
byte has turned is no longer what it is called.
"""

from __future__ import annotations

import base64
import hashlib
import json


def mark(what: dict) -> str:
    """Return of what something is the seal. It is 256 random bits among others: nobody finds them by this."""
    return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()


def inside(host: str, server: str, access: str, password: str) -> dict:
    """Return what is sealed of a host."""
    return {"host": host, "server": server, "access": access, "password": password}


def text_of(escrow: dict) -> str:
    """Return the text of a sealed key's file."""
    return json.dumps(escrow, indent=1, sort_keys=True) + "\n"


def name_of(text: str) -> str:
    """Return what a file with this text is called."""
    return hashlib.sha256(text.encode()).hexdigest() + ".json"


def recipients(sealed: str) -> int:
    """Return for how many keys a text of age(1) is sealed; 0 if it is none."""
    lines = [line for line in sealed.splitlines() if line and not line.startswith("-----")]
    try:
        head = base64.b64decode("".join(lines), validate=True)
    except ValueError:
        return 0
    if not head.startswith(b"age-encryption.org/v1\n"):
        return 0
    return head.split(b"\n---", 1)[0].count(b"\n-> X25519 ")
