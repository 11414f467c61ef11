# Copyright: (c) 2026, Bulwark contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""All collectors by name, and how they are asked."""

from __future__ import annotations

import functools
import importlib

from ansible_collections.bulwark.hardening.plugins.module_utils.posture.common import CannotObserve

PACKAGE = __name__.rpartition(".")[0]


def sent_along() -> None:
    """Never called: Ansible sends to a host what the source imports. A look then loads what it needs, a small part of it all."""
    from ansible_collections.bulwark.hardening.plugins.module_utils.posture import (  # noqa: F401
        accounts,
        antivirus,
        audit_log,
        backup,
        backup_repository,
        banner,
        disk_encryption,
        duo,
        firewall,
        log_collector,
        log_forward,
        log_review,
        media,
        removable_media,
        session,
        ssh,
        time_sync,
        vpn_client,
        vpn_gateway,
    )


def collect(name: str) -> dict:
    """Load one collector, ask it, and return what it saw. Raises CannotObserve, or whatever breaks in it."""
    return importlib.import_module(f"{PACKAGE}.{name}").collect()


# The names of what sent_along() imports: its variables, which Python knows without running it.
COLLECTORS = {name: functools.partial(collect, name) for name in sent_along.__code__.co_varnames}


def look(wanted: list[str]) -> tuple[dict, dict]:
    """Ask collectors by name; return (what each saw, why others could not look), both by collector."""
    posture, errors = {}, {}
    for name in wanted:
        try:
            posture[name] = COLLECTORS[name]()
        except CannotObserve as exc:
            errors[name] = str(exc)
        except Exception as exc:  # a collector that breaks must not pass for one that saw nothing wrong
            errors[name] = f"{type(exc).__name__}: {exc}"
    return posture, errors
