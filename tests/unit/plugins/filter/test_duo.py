# SPDX-License-Identifier: GPL-3.0-or-later
"""Who skips the second factor undeclared, and what speaks against asking for it."""

from __future__ import annotations

import copy

import pytest
from ansible_collections.bulwark.hardening.plugins.filter.duo import (
    duo_fingerprint,
    duo_objections,
    duo_outside,
    duo_undeclared,
)

FREE = [
    {"account": "deploy", "ways": ["SSH with a key alone from 10.0.0.1", "sudo without being asked: ALL"]},
    {"account": "jdoe", "ways": ["sudo without being asked: /usr/bin/apt-get"]},
    {"account": "sealed", "ways": ["sudo without being asked: ALL"]},
]
SEEN = {
    "modified": {},
    "ssh": {"installed": True, "asks": True, "usepam": ["yes"], "without_key": [], "grace_seconds": 90, "tries_max": 2},
    "sudo": {"installed": True},
    "free": FREE,
    "accounts": ["deploy", "jdoe", "root", "sealed"],
}
WANTED = {"account": "deploy", "ssh_methods": [], "ssh_grace_seconds": 0, "timeout_seconds": 60, "break_glass": "sealed"}


def test_only_declared_accounts_skip():
    declared = [{"name": "deploy", "reason": "r"}]
    assert duo_undeclared(FREE, declared, {"name": "sealed"}) == ["jdoe: sudo without being asked: /usr/bin/apt-get"]
    assert len(duo_undeclared(FREE, [], {})) == 4


def test_addresses_outside():
    assert duo_outside(["10.0.0.1", "203.0.113.7", "2001:db8::7"], ["10.0.0.0/28"]) == ["203.0.113.7", "2001:db8::7"]
    assert duo_outside(["10.0.0.1"], []) == ["10.0.0.1"]


def test_a_fingerprint_is_that_of_ssh_keygen():
    blob = "AAAAC3NzaC1lZDI1NTE5AAAAIOMqqnkVzrm0SdG6UOoqKLsabgH5C9okWi0dh2l9GKJl"  # GitHub's host key
    assert duo_fingerprint(blob) == "+DiY3wvvV6TuJJhbpZisF/zLDA0zPMSvHdkr4UvCOqU"


def test_nothing_speaks_against_a_host_that_is_ready():
    assert duo_objections(SEEN, WANTED) == []
    assert duo_objections(SEEN, {**WANTED, "account": "root"}) == [] and duo_objections(SEEN, {**WANTED, "account": ""}) == []


@pytest.mark.parametrize(
    ("seen", "wanted", "words"),
    [
        ({"modified": {"auth": "a line"}}, {}, "/etc/pam.d/common-auth was changed by hand"),
        ({"ssh": {"asks": False}}, {}, "sshd does not ask for a key"),
        ({"ssh": {"asks": False}}, {"ssh_methods": ["publickey"]}, "sshd does not ask for a key"),
        ({"ssh": {"usepam": ["no", "yes"]}}, {}, "UsePAM"),
        ({"ssh": {"without_key": ["kiosk from 10.0.0.1"]}}, {}, "sshd lets in kiosk from 10.0.0.1"),
        ({"ssh": {"grace_seconds": 60}}, {}, "sshd gives up after 60 seconds"),
        ({"ssh": {"grace_seconds": 60}}, {"ssh_grace_seconds": 74}, "sshd gives up after 74 seconds"),
        ({}, {"account": "jdoe"}, "Ansible came in as jdoe"),
        ({"accounts": ["root"]}, {}, "there is no account sealed"),
    ],
)
def test_each_objection(seen, wanted, words):
    full = copy.deepcopy(SEEN)
    for key, value in seen.items():
        full[key] = {**full[key], **value} if key == "ssh" else value
    (said,) = duo_objections(full, {**WANTED, **wanted})
    assert words in said


def test_what_role_ssh_is_about_to_set_counts():
    full = copy.deepcopy(SEEN)
    full["ssh"].update(asks=False, grace_seconds=60)
    coming = {"ssh_methods": ["publickey,keyboard-interactive:pam"], "ssh_grace_seconds": 90}
    assert duo_objections(full, {**WANTED, **coming}) == []
    full["ssh"]["grace_seconds"] = 0  # no limit
    assert duo_objections(full, {**WANTED, **coming, "ssh_grace_seconds": 0}) == []
