# Copyright: (c) 2026, Bulwark contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Filters of the role log_review: the rules that are in force, and what is wrong with rules."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from ansible_collections.bulwark.hardening.plugins.module_utils import trail_review
from ansible_collections.bulwark.hardening.plugins.plugin_utils import policy


def log_review_rules(site_rules: Sequence[Mapping], failed_logins: int) -> list[dict]:
    """Return the role's rules with the site's number of failed logins, and the site's own rules behind them."""
    rules = policy.read_yaml(policy.ROOT / "roles" / "log_review" / "files" / "rules.yml")
    own = [{**rule, "count": int(failed_logins)} if rule["id"].startswith("failed_logins_") else rule for rule in rules]
    return own + [{key: value for key, value in rule.items() if value is not None} for rule in site_rules]


def log_review_problems(rules: Sequence[Mapping], tickets: Sequence[Mapping] = ()) -> list[str]:
    """Return what is wrong with rules and tickets, in words; an empty list means that each can do what it is meant for."""
    ended = [ticket["ticket"] for ticket in tickets if str(ticket["to"]) < str(ticket["from"])]
    return trail_review.rule_problems(rules) + [f"ticket {name} ends before it begins" for name in ended]


def log_review_fingerprints(rules: Sequence[Mapping]) -> list[str]:
    """Return id and SHA-256 of each rule, as the collector of the posture does for those in force on a host."""
    return [trail_review.fingerprint(json.loads(json.dumps(rule, default=str))) for rule in rules]


class FilterModule:
    """Filters of the role log_review."""

    def filters(self) -> dict:
        """Return filters by name."""
        return {
            "log_review_rules": log_review_rules,
            "log_review_problems": log_review_problems,
            "log_review_fingerprints": log_review_fingerprints,
        }
