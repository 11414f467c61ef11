# SPDX-License-Identifier: GPL-3.0-or-later
"""Unit tests of the account_findings filter: the rules themselves are tested with module_utils/accounts.py."""

from __future__ import annotations

import pytest
import yaml
from ansible.errors import AnsibleFilterError
from ansible_collections.bulwark.hardening.plugins.filter.accounts import DOCUMENTATION, RULES, account_findings


def test_rule_is_applied():
    assert account_findings([{"name": "guest", "owner": "x"}], "declaration", generic=[], pattern=".*", temporary_days=90) == [
        "accounts_users[0].name = guest: is a vendor's default account (WTH-7.6-4)"
    ]


@pytest.mark.parametrize(
    ("subject", "rule", "settings", "said"),
    [
        ([], "nonsense", {}, "unknown; known are"),
        ("text", "undeclared", {"users": []}, "expects a list"),
        (None, "undeclared", {"users": []}, "expects a list"),
        ([], "undeclared", {}, "users"),
        ([], "undeclared", {"users": [], "colour": 1}, "colour"),
        ([{"name": "x"}], "undeclared", {"users": []}, "KeyError"),
    ],
)
def test_wrong_use_is_an_error_and_never_an_empty_list(subject, rule, settings, said):
    with pytest.raises(AnsibleFilterError, match=said):
        account_findings(subject, rule, **settings)


def test_every_rule_is_documented():
    assert yaml.safe_load(DOCUMENTATION)["options"]["rule"]["choices"] == sorted(RULES)
