# Copyright: (c) 2026, Bulwark contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""All collectors by name, and how they are asked."""

from __future__ import annotations

from ansible_collections.bulwark.hardening.plugins.module_utils.posture import (
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
from ansible_collections.bulwark.hardening.plugins.module_utils.posture.common import CannotObserve

COLLECTORS = {
    "accounts": accounts.collect,
    "antivirus": antivirus.collect,
    "audit_log": audit_log.collect,
    "backup": backup.collect,
    "backup_repository": backup_repository.collect,
    "banner": banner.collect,
    "disk_encryption": disk_encryption.collect,
    "duo": duo.collect,
    "firewall": firewall.collect,
    "log_collector": log_collector.collect,
    "log_forward": log_forward.collect,
    "log_review": log_review.collect,
    "media": media.collect,
    "removable_media": removable_media.collect,
    "session": session.collect,
    "ssh": ssh.collect,
    "time_sync": time_sync.collect,
    "vpn_client": vpn_client.collect,
    "vpn_gateway": vpn_gateway.collect,
}


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
