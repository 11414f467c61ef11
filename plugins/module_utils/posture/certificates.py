# Copyright: (c) 2026, Bulwark contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Certificates that hosts keep, as collectors of several rooms look at them."""

from __future__ import annotations

import os
import time

from ansible_collections.bulwark.hardening.plugins.module_utils import pki
from ansible_collections.bulwark.hardening.plugins.module_utils.posture.common import CannotObserve, read


def days(until: float) -> float:
    """Return how many days are left until a moment (seconds since the epoch)."""
    return round((until - time.time()) / 86400, 1)


def certificate(directory: str, purpose: str) -> dict:
    """Return {name, days, sound}: whose certificate is in place, for how long, and whether the authority in place made it.

    ``purpose`` is what it must be good for, as openssl calls it (sslclient, sslserver).
    """
    paths = [os.path.join(directory, name) for name in ("ca.crt", "own.crt")]
    if not all(os.path.exists(path) for path in paths):
        return {"name": "", "days": 0.0, "sound": False}
    try:
        facts = pki.certificate_facts(read(paths[1]))
    except pki.PkiError as exc:
        raise CannotObserve(str(exc)) from exc
    try:
        pki.openssl("verify", "-purpose", purpose, "-CAfile", *paths)
        sound = True
    except pki.PkiError:
        sound = False
    return {"name": facts["name"], "days": days(facts["not_after"]), "sound": sound}
