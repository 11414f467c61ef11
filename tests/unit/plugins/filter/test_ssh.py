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
from ansible_collections.bulwark.hardening.plugins.plugin_utils.policy import violations

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


# --- what the role is told ----------------------------------------------------------------------------------------------

PEER = {"name": "labfeed", "from": ["10.20.0.15/32"], "reason": "results"}


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"ssh_ciphers": ["aes128-ctr"]}, "may only hold aes256-gcm@openssh.com"),
        ({"ssh_ciphers": ["aes256-ctr"]}, "MA-11.7"),
        ({"ssh_ciphers": []}, "at least 1 item"),
        ({"ssh_ciphers": ["aes256-gcm@openssh.com\nPermitRootLogin yes"]}, "may only hold"),
        ({"ssh_macs": ["hmac-sha1"]}, "MA-11.4"),
        ({"ssh_kex_algorithms": ["diffie-hellman-group14-sha1"]}, "MA-11.4"),
        ({"ssh_host_key_algorithms": ["ssh-rsa"]}, "MA-11.4"),
        ({"ssh_public_key_algorithms": ["ssh-dss"]}, "MA-11.4"),
        ({"ssh_rsa_bits_min": 1024}, "at least 2048 bits"),
        ({"ssh_rsa_bits_min": "many"}, "int"),
        ({"ssh_allowed_groups": []}, "WTH-7.0-1"),
        ({"ssh_allowed_groups": ["*"]}, "must match"),
        ({"ssh_allowed_groups": ["sudo\nPermitRootLogin yes"]}, "must match"),
        ({"ssh_allowed_groups": ["sudo staff"]}, "must match"),
        ({"ssh_allowed_groups": ["sudo", "sudo"]}, "repeat"),
        ({"ssh_group_members": [{"group": "sudo", "members": ["root"]}]}, "must not match"),
        ({"ssh_group_members": [{"group": "sudo"}]}, "members"),
        ({"ssh_group_members": {"sudo": ["alice"]}}, "ssh_group_members"),
        ({"ssh_authentication_methods": ["password"]}, "WTH-7.2.1-12"),
        ({"ssh_authentication_methods": ["any"]}, "WTH-7.2.1-12"),
        ({"ssh_authentication_methods": ["publickey", "keyboard-interactive"]}, "WTH-7.2.1-12"),
        ({"ssh_authentication_methods": ["hostbased,publickey"]}, "must match"),
        ({"ssh_machine_accounts": [{**PEER, "from": ["0.0.0.0/0"]}]}, "WTH-7.2.1-14"),
        ({"ssh_machine_accounts": [{**PEER, "from": ["10.20.0.999/32"]}]}, "must match"),
        ({"ssh_machine_accounts": [{**PEER, "from": ["10.20.0/24"]}]}, "must match"),
        ({"ssh_machine_accounts": [{**PEER, "from": []}]}, "at least 1 item"),
        ({"ssh_machine_accounts": [{**PEER, "from": ["::/0"]}]}, "must match"),
        ({"ssh_machine_accounts": [{**PEER, "name": "*"}]}, "must match"),
        ({"ssh_machine_accounts": [{**PEER, "name": "root"}]}, "must not match"),
        ({"ssh_machine_accounts": [{**PEER, "reason": ""}]}, "not be empty"),
        ({"ssh_machine_accounts": [{**PEER, "command": "true\nMatch all"}]}, "control characters"),
        ({"ssh_machine_accounts": [{**PEER, "comand": "true"}]}, "comand"),
        ({"ssh_machine_accounts": [{"name": "labfeed", "from": ["10.20.0.15/32"]}]}, "reason"),
        ({"ssh_forwards": [{**FORWARD, "open": ["*:*"]}]}, "UMDNJ-C-3"),
        ({"ssh_forwards": [{**FORWARD, "open": ["any"]}]}, "UMDNJ-C-3"),
        ({"ssh_forwards": [{**FORWARD, "open": ["10.0.0.5:5432\nX11Forwarding yes"]}]}, "must match"),
        ({"ssh_forwards": [{**FORWARD, "group": "dba,sudo"}]}, "must match"),
        ({"ssh_forwards": [{**FORWARD, "agent": True}]}, "agent"),
        ({"ssh_sftp_enabled": "perhaps"}, "bool"),
        ({"ssh_sftp_only": [{"group": "partners", "directory": "srv/%u"}]}, "must match"),
        ({"ssh_sftp_only": [{"group": "partners", "directory": "/srv/../%u"}]}, "must not match"),
        ({"ssh_sftp_only": [{"group": "partners", "directory": "/srv/a b"}]}, "must match"),
        ({"ssh_startups_max": "10"}, "must match"),
        ({"ssh_startups_max": "10:30:9999"}, "must match"),
        ({"ssh_startups_per_source_max": 1000}, "at most 60"),
        ({"ssh_login_grace_seconds": 0}, "at least 10"),
        ({"ssh_login_grace_seconds": 3600}, "at most 120"),
        ({"ssh_auth_tries_max": 6}, "at most 5"),
        ({"ssh_sessions_max": 0}, "at least 2"),
        ({"ssh_penalty_exempt_addresses": ["0.0.0.0/0"]}, "must match"),
        ({"ssh_permit_root_login": True}, "unknown variable"),
        ({"ssh_state": "gone"}, "one of"),
    ],
)
def test_what_the_role_refuses(variables, expected):
    said = violations("ssh", variables)
    assert said and expected in " ".join(said), said
    assert next(iter(variables)) in said[0]


@pytest.mark.parametrize(
    "variables",
    [
        {"ssh_ciphers": ["aes256-gcm@openssh.com"]},
        {"ssh_authentication_methods": ["publickey,keyboard-interactive:pam", "publickey,publickey"]},
        {"ssh_machine_accounts": [{**PEER, "from": ["10.0.0.0/8", "192.0.2.255/32", "2001:db8::/32"], "command": "cat"}]},
        {"ssh_forwards": [{**FORWARD, "listen": ["8080", "127.0.0.1:8081"]}]},
        {"ssh_sftp_only": [{"group": "partners", "directory": "/srv/partners/%u"}, {"group": "labs"}]},
        {"ssh_penalty_exempt_addresses": ["10.8.0.0/24"]},
        {"ssh_public_key_algorithms": ["ssh-ed25519", "ecdsa-sha2-nistp384"], "ssh_rsa_bits_min": 2048},
    ],
)
def test_what_the_role_takes(variables):
    assert violations("ssh", variables) == []
