# Copyright: (c) 2026, Bulwark contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The collector of log_review: what there is, what is missing, and that it cannot be taken in."""

from __future__ import annotations

import hashlib
import json

import pytest
from ansible_collections.bulwark.hardening.plugins.module_utils import trail_review
from ansible_collections.bulwark.hardening.plugins.module_utils.posture import log_review

RULE = {"id": "one", "title": "t", "severity": "low", "select": {"kind": "sudo"}, "count": 3, "statements": []}


@pytest.fixture(autouse=True)
def host(tmp_path, monkeypatch):
    """A host of its own, on which nothing of the role is."""
    monkeypatch.setattr(log_review, "DIRECTORY", str(tmp_path))
    monkeypatch.setattr(log_review, "PROGRAM", str(tmp_path / "program"))
    monkeypatch.setattr(trail_review, "CONFIG", str(tmp_path / "config"))


def test_rules_are_read_with_their_fingerprints():
    """Settings and rules apart; a rule that differs in anything has another fingerprint."""
    seen = log_review.configured(json.dumps({"reviewers": ["rita"], "rules": [RULE]}))
    assert seen["config"] == {"reviewers": ["rita"]} and seen["rules"]["one"]["count"] == 3 and seen["rules_problem"] == ""
    other = log_review.configured(json.dumps({"rules": [{**RULE, "select": {"kind": "su"}}]}))
    assert seen["fingerprints"] != other["fingerprints"] and seen["fingerprints"] == [trail_review.fingerprint(RULE)]


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"rules": 1}', '{"rules": [1]}', '{"rules": [{"id": "x"}]}'])
def test_a_configuration_that_cannot_be_used_has_no_rules(text):
    """What the program would refuse is no rule in force."""
    seen = log_review.configured(text)
    assert seen["rules"] == {} and seen["rules_problem"]


def test_program_is_compared_with_the_one_released(tmp_path):
    """Its first line aside, it must be this file, to the letter."""
    assert log_review.program() is None
    released = trail_review.__loader__.get_source(trail_review.__name__)
    (tmp_path / "program").write_text("#!/usr/bin/python3 -IS\n" + released)
    assert log_review.program()["as_released"]
    (tmp_path / "program").write_text("#!/usr/bin/python3 -IS\n" + released.replace("Refused", "Allowed", 1))
    assert not log_review.program()["as_released"]


def test_altered_digests_are_named(tmp_path):
    """One that is not what was written, and one that is gone."""
    (tmp_path / "digests").mkdir()
    (tmp_path / "digests" / "a.json").write_text("{}")
    (tmp_path / "digests" / "a.html").write_text("altered")
    digest = hashlib.sha256(b"{}").hexdigest()
    entry = {"what": "digest", "digest": "a", "sha256": digest, "html_sha256": digest}
    assert log_review.altered([entry, {**entry, "digest": "../../etc/gone"}]) == ["a.html", "gone.json", "gone.html"]
