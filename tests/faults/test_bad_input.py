# SPDX-License-Identifier: GPL-3.0-or-later
"""Wrong values, each refused before anything changes, by name, value, bound and statement.

All cases go through one run of playbooks/site.yml, one host a case. The hosts do not exist: had the run tried to connect to one
before refusing, that host would be reported unreachable instead.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
USER = {"name": "someone", "owner": "Example Person"}
TOPICS = {
    "sensitive_data": "This system may hold sensitive data.",
    "audit_logging": "Access is logged and may be examined.",
    "sanctions": "Misuse has consequences for those who do it.",
}


def user(**more: object) -> dict:
    """Return variables that declare one account, with something wrong about it."""
    return {"accounts_users": [{**USER, **more}]}


# (variables of the host, what the refusal must say)
CASES: list[tuple[dict, list[str]]] = [
    # laxer than the policy
    ({"session_idle_seconds": 1801}, ["session_idle_seconds = 1801", "at most 1800 seconds", "WTH-7.7-2"]),
    ({"session_idle_seconds": 86400}, ["session_idle_seconds = 86400", "at most 1800 seconds", "WTH-7.7-2"]),
    ({"accounts_dormant_disable_days": 91}, ["accounts_dormant_disable_days = 91", "at most 90 days", "WTH-7.2.1-7d"]),
    ({"accounts_dormant_remove_days": 365}, ["accounts_dormant_remove_days = 365", "at most 90 days", "WTH-7.2.1-7c"]),
    ({"accounts_temporary_max_days": 120}, ["accounts_temporary_max_days = 120", "at most 90 days", "WTH-7.2.1-7a"]),
    ({"accounts_approval_required": False}, ["accounts_approval_required = False", "must be True", "WTH-7.2.1-2"]),
    ({"ssh_ciphers": ["aes128-ctr"]}, ["ssh_ciphers", "aes128-ctr", "may only hold", "MA-11.7"]),
    ({"ssh_ciphers": ["aes256-gcm@openssh.com", "3des-cbc"]}, ["ssh_ciphers", "3des-cbc", "may only hold", "WTH-7.2.1-12b"]),
    ({"ssh_ciphers": []}, ["ssh_ciphers = []", "at least 1 item", "MA-11.7"]),
    ({"ssh_macs": ["hmac-md5"]}, ["ssh_macs", "hmac-md5", "may only hold", "MA-11.4"]),
    ({"ssh_kex_algorithms": ["diffie-hellman-group1-sha1"]}, ["ssh_kex_algorithms", "may only hold", "MA-11.4"]),
    ({"ssh_host_key_algorithms": ["ssh-dss"]}, ["ssh_host_key_algorithms", "ssh-dss", "may only hold", "MA-11.4"]),
    ({"ssh_public_key_algorithms": ["ssh-rsa"]}, ["ssh_public_key_algorithms", "ssh-rsa", "may only hold", "MA-11.4"]),
    ({"ssh_authentication_methods": ["password"]}, ["ssh_authentication_methods", "password", "must match", "WTH-7.2.1-12"]),
    ({"ssh_authentication_methods": []}, ["ssh_authentication_methods = []", "at least 1 item", "WTH-7.2.1-12"]),
    ({"ssh_allowed_groups": []}, ["ssh_allowed_groups = []", "at least 1 item", "WTH-7.0-1"]),
    ({"ssh_allowed_groups": ["*"]}, ["ssh_allowed_groups", "'*'", "must match", "UMDNJ-B-1"]),
    ({"banner_topics": {**TOPICS, "sanctions": ""}}, ["banner_topics.sanctions = ''", "must match", "UMDNJ-A-1e"]),
    ({"banner_topics": {"sensitive_data": TOPICS["sensitive_data"]}}, ["banner_topics", "audit_logging", "UMDNJ-A-1e"]),
    # beyond a technical limit, or a site's own
    ({"session_idle_seconds": 1}, ["session_idle_seconds = 1", "at least 20 seconds", "WTH-7.7-2"]),
    ({"session_idle_seconds": 0}, ["session_idle_seconds = 0", "at least 20 seconds"]),
    ({"session_idle_seconds": -1800}, ["session_idle_seconds = -1800", "at least 20 seconds"]),
    ({"session_warning_seconds": 4000}, ["session_warning_seconds = 4000", "at most 900 seconds", "site limit"]),
    ({"session_unused_connection_seconds": 1}, ["session_unused_connection_seconds = 1", "at least 5 seconds", "WTH-7.7-2"]),
    ({"ssh_login_grace_seconds": 0}, ["ssh_login_grace_seconds = 0", "at least 10 seconds", "MA-11.2"]),
    ({"ssh_auth_tries_max": 50}, ["ssh_auth_tries_max = 50", "at most 5 tries", "MA-11.2"]),
    ({"ssh_sessions_max": 0}, ["ssh_sessions_max = 0", "at least 2 sessions", "MA-11.2"]),
    ({"ssh_startups_per_source_max": 1}, ["ssh_startups_per_source_max = 1", "at least 2 connections", "MA-11.2"]),
    ({"ssh_startups_max": "none"}, ["ssh_startups_max = 'none'", "must match", "MA-11.2"]),
    ({"ssh_rsa_bits_min": 1024}, ["ssh_rsa_bits_min = 1024", "at least 2048 bits", "MA-11.4"]),
    ({"ssh_ciphers": ["aes256-gcm@openssh.com"] * 2}, ["ssh_ciphers", "must not repeat", "MA-11.7"]),
    ({"accounts_dormant_disable_days": 0}, ["accounts_dormant_disable_days = 0", "at least 7 days"]),
    ({"accounts_dormant_at_once_percent": 101}, ["accounts_dormant_at_once_percent = 101", "at most 100 percent"]),
    ({"accounts_clock_tolerance_seconds": 1}, ["accounts_clock_tolerance_seconds = 1", "at least 10 seconds"]),
    ({"accounts_archive_directory": "/"}, ["accounts_archive_directory = '/'", "must not match"]),
    ({"accounts_archive_directory": "backups"}, ["accounts_archive_directory = 'backups'", "absolute path"]),
    (user(uid=0), ["accounts_users[0].uid = 0", "at least 1000"]),
    (user(uid=70000), ["accounts_users[0].uid = 70000", "at most 59999"]),
    (user(name="Someone"), ["accounts_users[0].name = 'Someone'", "must match"]),
    (user(name="-rf"), ["accounts_users[0].name = '-rf'", "must match"]),
    (user(expires="tomorrow"), ["accounts_users[0].expires = 'tomorrow'", "YYYY-MM-DD", "WTH-7.2.1-7a"]),
    (user(expires="2026-02-30"), ["accounts_users[0].expires = '2026-02-30'", "YYYY-MM-DD"]),
    (user(shell="bash"), ["accounts_users[0].shell = 'bash'", "absolute path"]),
    ({"banner_policies_url": "policies.example"}, ["banner_policies_url = 'policies.example'", "must match", "WTH-7.8-7d"]),
    ({"banner_owner_url": "javascript:alert(1)"}, ["banner_owner_url = 'javascript:alert(1)'", "must match", "WTH-7.8-7d"]),
    ({"banner_text": ""}, ["banner_text = ''", "must not be empty", "WTH-7.8-7d"]),
    ({"banner_text": "x" * 2001}, ["banner_text", "at most 2000 characters"]),
    # wrong types
    ({"session_idle_seconds": "half an hour"}, ["session_idle_seconds = 'half an hour'", "must be int", "WTH-7.7-2"]),
    ({"session_idle_seconds": [1800]}, ["session_idle_seconds = [1800]", "must be int", "WTH-7.7-2"]),
    ({"session_logind_enabled": "sometimes"}, ["session_logind_enabled = 'sometimes'", "must be bool"]),
    ({"ssh_ciphers": {"aes": 256}}, ["ssh_ciphers", "must be list", "MA-11.7"]),
    ({"ssh_state": "gone"}, ["ssh_state = 'gone'", "present, absent"]),
    ({"accounts_users": "someone"}, ["accounts_users = 'someone'", "must be list of dict", "WTH-7.5-1"]),
    ({"accounts_users": [{"owner": "Example Person"}]}, ["accounts_users", "name", "required", "WTH-7.5-1"]),
    ({"banner_topics": "none"}, ["banner_topics = 'none'", "must be dict", "UMDNJ-A-1e"]),
    ({"time_sync_sources": "pool.example"}, ["time_sync_sources", "must be list of dict"]),
    ({"time_sync_minpoll": 1}, ["time_sync_minpoll = 1", "at least", "MA-12.2"]),
    ({"time_sync_max_offset_seconds": "little"}, ["time_sync_max_offset_seconds = 'little'", "must be float"]),
    ({"time_sync_authentication": "maybe"}, ["time_sync_authentication = 'maybe'", "MA-12.1"]),
    ({"banner_owner": ["Clinic"]}, ["banner_owner = ['Clinic']", "a list where text is meant", "WTH-7.8-7d"]),
    # unknown keys
    ({"session_idle_secs": 900}, ["session_idle_secs = 900", "unknown variable of role session", "session_idle_seconds"]),
    ({"ssh_permit_root": True}, ["ssh_permit_root = True", "unknown variable of role ssh"]),
    (user(colour="blue"), ["accounts_users", "colour", "WTH-7.5-1"]),
    ({"ssh_forwards": [{"group": "g", "reason": "r", "opne": ["db:5432"]}]}, ["ssh_forwards", "opne", "WTH-7.2.1-14"]),
    # injection
    ({"banner_owner": "Clinic\nPermitRootLogin yes"}, ["banner_owner", "one line", "WTH-7.8-7d"]),
    ({"banner_text": "Hello \x1b[2J"}, ["banner_text", "control characters", "WTH-7.8-7d"]),
    ({"banner_text": "ab\u202ecd"}, ["banner_text", "control characters"]),
    ({"banner_topics": {**TOPICS, "sanctions": "Misuse has consequences\nfor you."}}, ["banner_topics.sanctions", "must match"]),
    ({"ssh_allowed_groups": ["staff\nPermitRootLogin yes"]}, ["ssh_allowed_groups", "must match"]),
    ({"ssh_allowed_groups": ["staff root"]}, ["ssh_allowed_groups", "must match"]),
    ({"ssh_ciphers": ["aes256-gcm@openssh.com\nPermitRootLogin yes"]}, ["ssh_ciphers", "may only hold"]),
    ({"ssh_machine_accounts": [{"name": "sync", "from": ["0.0.0.0/0"], "reason": "r"}]}, ["from", "must match", "WTH-7.2.1-14"]),
    (
        {"ssh_machine_accounts": [{"name": "sync", "from": ["10.0.0.0/24"], "reason": "r", "command": "a\nMatch all"}]},
        ["ssh_machine_accounts[0].command", "one line"],
    ),
    ({"ssh_sftp_only": [{"group": "lab", "directory": "/srv/../etc"}]}, ["ssh_sftp_only[0].directory", "must not match"]),
    (user(owner="Person:0:0::/root:/bin/sh"), ["accounts_users[0].owner", "must match", "WTH-7.5-1"]),
    (user(authorized_keys=["ssh-ed25519 AAAA\nssh-ed25519 BBBB"]), ["accounts_users[0].authorized_keys", "one line"]),
    (user(ticket="T-1\x07"), ["accounts_users[0].ticket", "one line"]),
    # exceptions that do not count
    (
        {"session_idle_seconds": 3600, "bulwark_exceptions": [{"parameter": "session_idle_seconds", "approver": "x"}]},
        ["session_idle_seconds = 3600", "exception for session_idle_seconds", "ticket"],
    ),
    (
        {
            "session_idle_seconds": 3600,
            "bulwark_exceptions": [
                {
                    "parameter": "session_idle_seconds", "approver": "x", "approver_role": "security_officer", "reason": "r",
                    "compensating": "c", "ticket": "T-1", "expires": "2020-01-01",
                }
            ],
        },
        ["session_idle_seconds = 3600", "expired on 2020-01-01"],
    ),
    # a role nobody knows
    ({"bulwark_roles": ["shh"]}, ["roles = ['shh']", "unknown", "ssh"]),
]  # fmt: skip


@pytest.fixture(scope="module")
def refusals(tmp_path_factory) -> dict[str, str]:
    """Run site.yml once over all cases and return what was said of each host."""
    directory = tmp_path_factory.mktemp("bad")
    hosts = {f"case{n}": variables for n, (variables, _words) in enumerate(CASES)}
    reached = {"ansible_host": "127.0.0.1", "ansible_port": 1, "ansible_user": "nobody"}
    (directory / "hosts.json").write_text(json.dumps({"all": {"hosts": hosts, "vars": reached}}))
    done = subprocess.run(
        [Path(sys.executable).with_name("ansible-playbook"), "-i", directory / "hosts.json", "playbooks/site.yml"],
        cwd=ROOT, capture_output=True, text=True, check=False,
        env={**os.environ, "ANSIBLE_CALLBACK_RESULT_FORMAT": "json", "ANSIBLE_NOCOLOR": "1", "ANSIBLE_FORKS": "4"},
    )  # fmt: skip
    assert done.returncode == 2, done.stdout[-2000:] + done.stderr[-2000:]
    (directory / "output").write_text(done.stdout + done.stderr)
    found = re.findall(r"^(fatal: )?\[(case\d+)\]: (FAILED|UNREACHABLE)! => (\{.*\})$", done.stdout, re.MULTILINE)
    assert not [host for _f, host, outcome, _r in found if outcome == "UNREACHABLE"]
    assert "PLAY [Harden]" not in done.stdout
    return {host: json.loads(result)["msg"] for _f, host, _outcome, result in found}


@pytest.mark.parametrize("case", range(len(CASES)), ids=lambda n: f"{n}-{'-'.join(CASES[n][0])}"[:60])
def test_refused_before_anything_changes(refusals, case):
    """The refusal names variable, value, bound and where the bound comes from."""
    said = refusals[f"case{case}"]
    for word in CASES[case][1]:
        assert word in said, said


def test_enough_cases():
    """At least sixty wrong values are tried."""
    assert len(CASES) >= 60
