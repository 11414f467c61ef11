# Copyright: (c) 2026, Bulwark contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What an SSH server grants, against what was declared."""

from __future__ import annotations

import pytest
from ansible_collections.bulwark.hardening.plugins.filter.ssh import (
    ssh_unconfined_machines,
    ssh_unconfined_transfers,
    ssh_undeclared_forwards,
)

FORWARD = {"group": "dba", "open": ["10.0.0.5:5432"], "listen": [], "reason": "query tool"}
SEEN = {
    "account": "dora",
    "place": "",
    "groups": ["dba"],
    "tcp": "local",
    "permitopen": ["10.0.0.5:5432"],
    "permitlisten": ["any"],
}


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({}, []),
        ({"groups": ["users"]}, ["dora: opens 10.0.0.5:5432"]),
        ({"permitopen": ["any"]}, ["dora: opens any"]),
        ({"permitopen": ["10.0.0.5:5432", "10.0.0.6:22"], "place": "from 10.0.0.9"}, ["dora from 10.0.0.9: opens 10.0.0.6:22"]),
        ({"tcp": "yes"}, ["dora: listens on any"]),
        ({"tcp": "remote", "permitlisten": ["8080"]}, ["dora: listens on 8080"]),
        ({"agent": "yes"}, ["dora: agent yes"]),
        ({"x11": "yes", "tunnel": "point-to-point"}, ["dora: x11 yes", "dora: tunnel point-to-point"]),
    ],
)
def test_forwards(change, expected):
    assert ssh_undeclared_forwards([{**SEEN, **change}], [FORWARD]) == expected


def test_nothing_forwarded_is_nothing_undeclared():
    assert ssh_undeclared_forwards([], []) == []


MACHINE = {"name": "labfeed", "from": ["10.20.0.15/32", "2001:db8:1::/48"], "command": "internal-sftp", "reason": "results"}
FEED = {
    "name": "labfeed", "uid": 1200, "groups": ["ssh-users"], "keys": [{"type": "ssh-ed25519"}], "forwards": [],
    "terminal": ["no"], "admitted_from": ["10.20.0.15"],
    "refused_from": ["203.0.113.7"], "forced_command": ["internal-sftp"], "chroot": ["none"],
}  # fmt: skip


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({}, []),
        ({"admitted_from": ["10.20.0.15", "203.0.113.7"]}, ["labfeed: is admitted from 203.0.113.7"]),
        ({"admitted_from": ["2001:db8:1::9"]}, []),
        ({"forwards": ["tcp"]}, ["labfeed: may forward tcp"]),
        ({"terminal": ["no", "yes"]}, ["labfeed: gets a terminal"]),
        ({"forced_command": ["none"]}, ["labfeed: may run none"]),
        ({"name": "other", "uid": 400}, ["other: a system account with a key is admitted and not declared"]),
        ({"name": "other", "uid": 400, "keys": []}, []),
        ({"name": "other", "uid": 400, "admitted_from": []}, []),
        ({"name": "alice", "uid": 1000}, []),
        ({"name": "root", "uid": 0}, []),
    ],
)
def test_machines(change, expected):
    assert ssh_unconfined_machines([{**FEED, **change}], [MACHINE]) == expected


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({}, []),
        ({"groups": ["users"], "forced_command": ["none"]}, []),
        ({"forced_command": ["none"]}, ["petra: may run none"]),
        ({"forced_command": ["internal-sftp -f AUTH", "/bin/sh"]}, ["petra: may run internal-sftp -f AUTH, /bin/sh"]),
        ({"forwards": ["agent"]}, ["petra: may forward agent"]),
        ({"chroot": ["none"]}, ["petra: is not held in /srv/%u but in none"]),
    ],
)
def test_transfers(change, expected):
    petra = {**FEED, "name": "petra", "groups": ["partners"], "forced_command": ["internal-sftp -l INFO"], "chroot": ["/srv/%u"]}
    assert ssh_unconfined_transfers([{**petra, **change}], [{"group": "partners", "directory": "/srv/%u"}]) == expected
