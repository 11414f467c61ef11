# Copyright: (c) 2026, Bulwark contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Filters of log_review: which rules are in force, and what is wrong with rules and tickets."""

from __future__ import annotations

from ansible_collections.bulwark.hardening.plugins.filter import log_review
from ansible_collections.bulwark.hardening.plugins.module_utils import trail_review

MINE = {"id": "mine", "title": "t", "severity": "low", "select": {"kind": "sudo"}, "count": None}


def test_site_rules_come_behind_and_failed_logins_are_the_sites():
    """The role's rules are all there, with the site's number; what was left empty is left out."""
    rules = log_review.log_review_rules([MINE], 3)
    assert {rule["count"] for rule in rules if rule["id"].startswith("failed_logins_")} == {3}
    assert rules[-1] == {key: value for key, value in MINE.items() if value is not None} and len(rules) > 40
    assert log_review.log_review_problems(rules) == []


def test_a_rule_of_the_roles_name_is_refused():
    """A site may add rules, and not put one of its own in the place of another."""
    said = log_review.log_review_problems(log_review.log_review_rules([{**MINE, "id": "port_scan"}], 5))
    assert said == ["rule port_scan: there is another with this id"]


def test_tickets_end_after_they_begin():
    """A ticket that could never hold is named."""
    ticket = {"person": "rita", "ticket": "INC-1", "from": "2026-11-02", "to": "2026-11-01"}
    assert log_review.log_review_problems([], [ticket]) == ["ticket INC-1 ends before it begins"]
    assert log_review.log_review_problems([], [{**ticket, "to": "2026-11-02"}]) == []


def test_fingerprints_are_those_of_the_host():
    """The controller and the host must come to the same, or every control would fail."""
    rule = {"id": "mine", "title": "ä", "count": 2}
    assert log_review.log_review_fingerprints([rule]) == [trail_review.fingerprint(rule)]
