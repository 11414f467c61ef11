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


def service(**more: object) -> dict:
    """Return variables that declare one service, with something wrong about it."""
    return {"firewall_services": [{"name": "web", "ports": ["tcp/443"], "from": ["any"], "reason": "r", **more}]}


def forward(**more: object) -> dict:
    """Return variables that declare one forward, with something wrong about it."""
    whole = {"name": "f", "from": ["10.0.0.0/24"], "to": ["10.1.0.0/24"], "ports": ["tcp/22"], "reason": "r"}
    return {"firewall_forwards": [{**whole, **more}]}


def trail(**variables) -> dict:
    """Return the variables of a collector, some of them as given."""
    return {"log_collector_retention_approver": "Records committee", **variables}


def duo(**more: object) -> dict:
    """Return variables of role duo that would do, but for what is given."""
    keys = {"duo_host": "api-12345678.duosecurity.com", "duo_integration_key": "DI" + "X" * 18, "duo_secret_key": "a" * 40}
    return {"bulwark_roles": ["duo"], **keys, **more}


def review(**more: object) -> dict:
    """Return variables of a collector whose trail is reviewed, with something wrong about it."""
    return {"bulwark_roles": ["log_review"], "bulwark_profile": "collector", "log_review_reviewers": ["rita"], **more}


def rule(**more: object) -> dict:
    """Return variables that add one rule to the review, with something wrong about it."""
    whole = {"id": "mine", "title": "t", "severity": "low", "select": {"kind": "sudo"}}
    return review(log_review_site_rules=[{**whole, **more}])


def medium(**more: object) -> dict:
    """Return variables that declare one medium, with something wrong about it."""
    whole = {"id": "M-1", "model": "M", "serial": "S1", "size": 1 << 30, "class": "high", "location": "Safe", "custodian": "Ann"}
    return {"media_declared": [{**whole, **more}]}


def export(**more: object) -> dict:
    """Return variables that declare one export, with something wrong about it."""
    return {"media_exports": [{"path": "/srv/exports", "keep_hours": 24, "approver": "Ann", "reason": "billing", **more}]}


def stick(**more: object) -> dict:
    """Return variables that permit one stick, with something wrong about it."""
    whole = {"id": "0951:1666", "serial": "60A44C3F", "approver": "A", "purpose": "p", "expires": "2026-12-31"}
    return {"removable_media_devices": [{**whole, **more}]}


def disk(**more: object) -> dict:
    """Return variables that declare one volume, with something wrong about it."""
    whole = {"name": "data", "model": "M", "serial": "S1", "size": 1 << 30, "filesystem": "ext4", "mount": "/srv/data"}
    return {"disk_encryption_volumes": [{**whole, **more}]}


def copies(**more: object) -> dict:
    """Return variables of a backup repository, with something wrong about it."""
    return {"bulwark_roles": ["backup_repository"], "bulwark_profile": "repository", **more}


def backed_up(name: str = "", **more: object) -> dict:
    """Return variables of a host that is backed up, with something wrong about a set or, by name, about its database."""
    if name:
        more = {"databases": [{"name": "d", "kind": "postgresql", "database": "d", name: more[name]}]}
    return {"bulwark_roles": ["backup"], "backup_server": "b", "backup_sets": [{"name": "s", "paths": ["/etc"], **more}]}


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
    # the VPN
    ({"vpn_gateway_idle_seconds": 1801}, ["vpn_gateway_idle_seconds = 1801", "at most 1800 seconds", "WTH-7.2.1-12c"]),
    ({"vpn_gateway_idle_seconds": 0}, ["vpn_gateway_idle_seconds = 0", "at least 30 seconds", "WTH-7.2.1-12c"]),
    ({"vpn_gateway_activity_bytes": 1}, ["vpn_gateway_activity_bytes = 1", "at least 500 bytes", "WTH-7.2.1-12c"]),
    ({"vpn_gateway_session_seconds_max": 604800}, ["vpn_gateway_session_seconds_max", "at most 86400 seconds", "MA-1.8"]),
    ({"vpn_gateway_ciphers": ["AES-128-GCM"]}, ["vpn_gateway_ciphers", "AES-128-GCM", "may only hold", "WTH-7.2.1-12b"]),
    ({"vpn_gateway_ciphers": ["ROT13"]}, ["vpn_gateway_ciphers", "ROT13", "may only hold", "WTH-7.2.1-12b"]),
    ({"vpn_gateway_ciphers": []}, ["vpn_gateway_ciphers = []", "at least 1 item", "WTH-7.2.1-12b"]),
    ({"vpn_gateway_network": "10.99.0.0"}, ["vpn_gateway_network = '10.99.0.0'", "must match", "WTH-7.2.1-12"]),
    ({"vpn_gateway_network": "10.99.0.300/24"}, ["vpn_gateway_network", "must match", "WTH-7.2.1-12"]),
    ({"vpn_gateway_network": "8.8.8.0/24"}, ["vpn_gateway_network = '8.8.8.0/24'", "must match", "WTH-7.2.1-12"]),
    ({"vpn_gateway_network6": "2001:db8::/64"}, ["vpn_gateway_network6", "must match", "WTH-7.2.1-12"]),
    ({"vpn_gateway_routes": ["0.0.0.0/0"]}, ["vpn_gateway_routes", "0.0.0.0/0", "must match", "WTH-7.2.1-12"]),
    ({"vpn_gateway_routes": ["::/0"]}, ["vpn_gateway_routes", "::/0", "must match", "WTH-7.2.1-12"]),
    ({"vpn_gateway_users": [{"name": "*"}]}, ["vpn_gateway_users[0].name = '*'", "must match", "WTH-7.2.1-2"]),
    ({"vpn_gateway_users": [{"name": "root"}]}, ["vpn_gateway_users[0].name = 'root'", "must not match", "WTH-7.2.1-2"]),
    ({"vpn_gateway_users": [{"name": "a/../b"}]}, ["vpn_gateway_users[0].name", "must match", "WTH-7.2.1-2"]),
    ({"vpn_gateway_users": ["alice"]}, ["vpn_gateway_users", "must be list of dict", "WTH-7.2.1-2"]),
    ({"vpn_gateway_address": "gw.example\nscript-security 3"}, ["vpn_gateway_address", "must match", "WTH-7.2.1-12"]),
    ({"vpn_gateway_protocol": "sctp"}, ["vpn_gateway_protocol = 'sctp'", "udp, tcp"]),
    ({"vpn_gateway_authority_passphrase": "short"}, ["vpn_gateway_authority_passphrase = (hidden)", "must match"]),
    ({"vpn_gateway_crl_days": 3650}, ["vpn_gateway_crl_days = 3650", "at most 90 days", "WTH-7.2.1-12"]),
    ({"vpn_client_user": "root"}, ["vpn_client_user = 'root'", "must not match", "WTH-7.2.1-2"]),
    ({"vpn_client_user": "a b"}, ["vpn_client_user = 'a b'", "must match", "WTH-7.2.1-2"]),
    ({"vpn_client_gateway": "gw; rm -rf /"}, ["vpn_client_gateway", "must match", "WTH-7.2.1-12"]),
    ({"vpn_client_factor": "password"}, ["vpn_client_factor = 'password'", "push, ask", "WTH-7.2.1-12"]),
    ({"vpn_client_pasword": "x"}, ["vpn_client_pasword", "unknown variable of role vpn_client"]),
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
    # the firewall
    ({"firewall_management_addresses": ["0.0.0.0/0"]}, ["firewall_management_addresses", "/24 or smaller", "WTH-7.2.1-12"]),
    ({"firewall_management_addresses": ["::/0"]}, ["firewall_management_addresses", "/64 or smaller", "WTH-7.2.1-12"]),
    ({"firewall_management_addresses": ["10.0.0.0/16"]}, ["firewall_management_addresses", "/24 or smaller", "WTH-7.2.1-12"]),
    ({"firewall_management_addresses": ["10.0.0.300/32"]}, ["firewall_management_addresses", "CIDR", "WTH-7.2.1-12"]),
    ({"firewall_management_addresses": ["controller.example"]}, ["firewall_management_addresses", "CIDR", "WTH-7.2.1-12"]),
    ({"firewall_vpn_networks": ["any"]}, ["firewall_vpn_networks", "CIDR", "WTH-7.2.1-12"]),
    ({"firewall_vpn_networks": ["10.99.0.1/24"]}, ["firewall_vpn_networks", "without host bits", "WTH-7.2.1-12"]),
    ({"firewall_vpn_networks": ["10.0.0.0/8"]}, ["firewall_vpn_networks", "/16 or smaller", "WTH-7.2.1-12"]),
    ({"firewall_vpn_networks": ["10.99.0.0/24", "10.99.0.128/25"]}, ["firewall_vpn_networks", "must not overlap"]),
    ({"firewall_vpn_interfaces": ["vpn0; drop"]}, ["firewall_vpn_interfaces", "must match"]),
    (service(ports=["443"]), ["firewall_services[0].ports", "must match", "MA-15.1.6"]),
    (service(ports=[]), ["firewall_services[0].ports", "at least 1 item", "MA-15.1.6"]),
    (service(ports=["tcp/443 accept"]), ["firewall_services[0].ports", "must match"]),
    (service(**{"from": ["0.0.0.0/0"]}), ["firewall_services[0].from", "/1 or smaller", "MA-13.2.3"]),
    (service(**{"from": []}), ["firewall_services[0].from", "at least 1 item", "MA-13.2.3"]),
    (service(name='web" accept'), ["firewall_services[0].name", "must match"]),
    (service(reason=""), ["firewall_services[0].reason", "must not be empty"]),
    (service(source=["any"]), ["firewall_services", "source", "MA-13.2.3"]),
    (forward(to=["servers"]), ["firewall_forwards[0].to", "CIDR", "WTH-7.4-2a"]),
    (forward(ports=["any"]), ["firewall_forwards[0].ports", "must match", "WTH-7.4-2a"]),
    ({"firewall_container_interfaces": ["*"]}, ["firewall_container_interfaces", "must match"]),
    ({"firewall_wireless_networks": ["0.0.0.0/0"]}, ["firewall_wireless_networks", "/8 or smaller", "WTH-7.9-4d"]),
    ({"firewall_out": "closed"}, ["firewall_out = 'closed'", "open, declared"]),
    ({"firewall_new_connections_per_second": 0}, ["firewall_new_connections_per_second = 0", "at least 5", "WTH-7.4-2c"]),
    ({"firewall_log_per_second": 100000}, ["firewall_log_per_second = 100000", "at most 1000 lines", "MA-11.5"]),
    # the audit trail
    ({"audit_log_class": "low"}, ["audit_log_class = 'low'", "baseline, high", "MA-5.1"]),
    ({"audit_log_immutable": False}, ["audit_log_immutable = False", "must be True", "MA-6.4-adm"]),
    ({"audit_log_sensitive_paths": ["srv/patients"]}, ["audit_log_sensitive_paths", "absolute path", "UMDNJ-A-1a"]),
    ({"audit_log_sensitive_paths": ["/usr"]}, ["audit_log_sensitive_paths", "must not match", "UMDNJ-A-1a"]),
    ({"audit_log_sensitive_paths": ["/srv/x -F key=y"]}, ["audit_log_sensitive_paths", "must match", "UMDNJ-A-1a"]),
    ({"audit_log_personal_paths": []}, ["audit_log_personal_paths = []", "at least 1 item", "HMS-PRO-6"]),
    ({"audit_log_extra_rules": ["-D"]}, ["audit_log_extra_rules", "'-D'", "must match", "MA-6.4-adm"]),
    ({"audit_log_extra_rules": ["-a never,exit -S all"]}, ["audit_log_extra_rules", "must match", "MA-6.4-adm"]),
    ({"audit_log_extra_rules": ["-w /srv -p w -k mine\n-e 0"]}, ["audit_log_extra_rules", "must match", "MA-6.4-adm"]),
    ({"audit_log_backlog": 64}, ["audit_log_backlog = 64", "at least 8192 events", "MA-6.1"]),
    ({"audit_log_files": 1}, ["audit_log_files = 1", "at least 2 files", "MA-6.1"]),
    ({"audit_log_when_unable": "panic"}, ["audit_log_when_unable = 'panic'", "keep_running, halt", "MA-6.1"]),
    ({"audit_log_queue": 100000}, ["audit_log_queue = 100000", "at most 99999 records"]),
    ({"audit_log_imutable": True}, ["audit_log_imutable", "unknown variable of role audit_log"]),
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
    # the second factor
    (duo(duo_host=""), ["duo_host = ''", "must match", "WTH-7.2.1-12a"]),
    (duo(duo_host="10.0.0.1"), ["duo_host = '10.0.0.1'", "must match", "WTH-7.2.1-12a"]),
    (duo(duo_host="https://api-12345678.duosecurity.com"), ["duo_host = 'https:", "must match", "WTH-7.2.1-12a"]),
    (duo(duo_host="api.example\nfailmode = safe"), ["duo_host", "must match"]),
    (duo(duo_integration_key="DI123"), ["duo_integration_key", "must match", "WTH-7.2.1-12a"]),
    (duo(duo_secret_key=""), ["duo_secret_key = (hidden)", "must match", "WTH-7.2.1-12a"]),
    (duo(duo_secret_key="a" * 39 + "\n"), ["duo_secret_key = (hidden)", "must match", "WTH-7.2.1-12a"]),
    (duo(duo_ca_file="certs.pem"), ["duo_ca_file = 'certs.pem'", "absolute path"]),
    (duo(duo_https_timeout_seconds=0), ["duo_https_timeout_seconds = 0", "at least 2 seconds"]),
    (duo(duo_prompts=9), ["duo_prompts = 9", "at most 3 factors"]),
    (duo(duo_sudo_timestamp_minutes=-1), ["duo_sudo_timestamp_minutes = -1", "at least 0 minutes", "WTH-7.2.1-12a"]),
    (duo(duo_sudo_timestamp_minutes=60), ["duo_sudo_timestamp_minutes = 60", "at most 15 minutes"]),
    (
        duo(duo_exempt_services=[{"name": "sudo", "reason": "It is tiresome"}]),
        ["duo_exempt_services[0].name = 'sudo'", "must not match", "WTH-7.2.1-12"],
    ),
    (duo(duo_automation_accounts=[{"name": "root", "reason": "r"}]), ["duo_automation_accounts[0].name = 'root'", "not match"]),
    (duo(duo_break_glass={"name": "sealed", "from": []}), ["duo_break_glass.from = []", "at least 1 item", "UMDNJ-D-1e"]),
    (duo(duo_break_glass={"name": "sealed", "from": ["0.0.0.0/0"]}), ["duo_break_glass.from", "must match", "UMDNJ-D-1e"]),
    (duo(duo_break_glass={"name": "%wheel", "from": ["10.0.0.1/32"]}), ["duo_break_glass.name = '%wheel'", "must match"]),
    (duo(duo_failmode="safe"), ["duo_failmode = 'safe'", "unknown variable of role duo"]),
    (duo(duo_groups=["staff"]), ["duo_groups = ['staff']", "unknown variable of role duo"]),
    # the trail
    ({"session_idle_seconds": 900}, ["log_forward_collector is not set", "log_forward_collector_address is not set", "MA-6.3"]),
    ({"log_forward_collector": "trail; reboot"}, ["log_forward_collector", "must match", "MA-6.3"]),
    ({"log_forward_collector_address": "https://trail.example"}, ["log_forward_collector_address", "must match", "MA-6.3"]),
    ({"log_forward_collector_address": "trail\nURL=http://x"}, ["log_forward_collector_address", "must match", "MA-6.3"]),
    ({"log_forward_journal_max_mib": 1}, ["log_forward_journal_max_mib = 1", "at least 16 MiB", "MA-6.3"]),
    ({"log_forward_sync_seconds": 300}, ["log_forward_sync_seconds = 300", "at most 60 seconds", "MA-6.3"]),
    ({"log_forward_burst_events": 10}, ["log_forward_burst_events = 10", "must match", "MA-6.3"]),
    ({"log_forward_lag_seconds": 86400}, ["log_forward_lag_seconds = 86400", "at most 3600 seconds", "MA-6.3"]),
    ({"log_forward_heartbeat_seconds": 3600}, ["log_forward_heartbeat_seconds = 3600", "at most 60 seconds", "MA-6.3"]),
    ({"log_forward_tls": False}, ["log_forward_tls", "unknown variable of role log_forward"]),
    ({"log_collector_port": 19532}, ["log_collector_addresses is not set", "log_collector_hosts is not set", "MA-6.3"]),
    (trail(log_collector_hosts=["../etc"]), ["log_collector_hosts", "must match", "MA-7"]),
    (trail(log_collector_hosts=["*"]), ["log_collector_hosts", "must match", "MA-7"]),
    (trail(log_collector_hosts="ward-1 ward-2"), ["log_collector_hosts", "must match", "MA-7"]),
    (trail(log_collector_readers=["root"]), ["log_collector_readers", "must not match", "HMS-SA-1"]),
    (trail(log_collector_readers=["%staff"]), ["log_collector_readers", "must match", "HMS-SA-3"]),
    (trail(log_collector_retention_days=7), ["log_collector_retention_days = 7", "at least 30 days", "MA-6"]),
    (trail(log_collector_retention_approver='A" %n $(id)'), ["log_collector_retention_approver", "must match", "MA-6"]),
    (trail(log_collector_retention_approver="A\nUser=root"), ["log_collector_retention_approver", "must match", "MA-6"]),
    (trail(log_collector_directory="/var/log"), ["log_collector_directory = '/var/log'", "must not match", "MA-6.4"]),
    (trail(log_collector_directory="/var/log/../../etc"), ["log_collector_directory", "absolute path", "MA-6.4"]),
    (trail(log_collector_port=443), ["log_collector_port = 443", "at least 1024"]),
    (trail(log_collector_seal_seconds=86400), ["log_collector_seal_seconds = 86400", "at most 3600 seconds", "UMDNJ-A-1c"]),
    # a role nobody knows
    ({"bulwark_roles": ["shh"]}, ["roles = ['shh']", "unknown", "ssh"]),
    # the trail's review
    (review(log_review_reviewers=["Rita X"]), ["log_review_reviewers", "Rita X", "must match", "UMDNJ-G-9"]),
    (review(log_review_reviewers=["root"]), ["log_review_reviewers", "root", "must not match", "UMDNJ-G-9"]),
    (review(log_review_failed_logins=50), ["log_review_failed_logins = 50", "at most 5 failed logins", "UMDNJ-G-9d"]),
    (review(log_review_watch_seconds=600), ["log_review_watch_seconds = 600", "at most 30 seconds", "UMDNJ-G-9a"]),
    (review(log_review_max_days={"server": 365}), ["log_review_max_days.server = 365", "at most 31 days", "MA-5.2"]),
    (review(log_review_incident_severity="critical"), ["log_review_incident_severity", "one of low, medium, high", "MA-9.3"]),
    (review(log_review_sensitive_paths=["records"]), ["log_review_sensitive_paths", "absolute path", "UMDNJ-A-1d"]),
    (review(log_review_mail_to=["-oQ/tmp x@y"]), ["log_review_mail_to", "must match", "site limit"]),
    (review(log_review_hosts=[{"name": "../etc"}]), ["log_review_hosts[0].name = '../etc'", "must match"]),
    (review(log_review_digest_calendar="daily\nExecStart=/bin/sh"), ["log_review_digest_calendar", "must match", "MA-7.2"]),
    (review(log_review_tickets=[{"person": "rita", "ticket": "", "from": "2026-01-01", "to": "soon"}]),
     ["log_review_tickets[0].ticket = ''", "must not be empty", "HMS-SA-3", "must be a date"]),
    (rule(severity="awful"), ["log_review_site_rules", "severity", "must be one of"]),
    (rule(select={}), ["log_review_site_rules[0].select", "must not be empty"]),
    (rule(id="../x"), ["log_review_site_rules[0].id = '../x'", "must match"]),
    (rule(count=0), ["log_review_site_rules[0].count = 0", "at least 1"]),
    # media
    ({"media_state": "gone"}, ["media_state", "gone", "present, absent"]),
    (medium(**{"class": "secret"}), ["media_declared", "secret", "one of", "MA-4.2"]),
    (medium(location=""), ["media_declared[0].location = ''", "must not be empty", "MA-1.1"]),
    (medium(custodian=""), ["media_declared[0].custodian = ''", "must not be empty", "MA-1.1"]),
    (medium(serial=""), ["media_declared[0].serial = ''", "must match", "technical limit"]),
    (medium(id="M 1"), ["media_declared[0].id = 'M 1'", "must match", "MA-1.1"]),
    (medium(size=0), ["media_declared[0].size = 0", "at least 512 bytes"]),
    (medium(size="big"), ["media_declared", "cannot be converted to an int", "MA-1.1"]),
    (medium(location="Safe\nforged: entry"), ["media_declared", "one line", "MA-1.1"]),
    (medium(sanitise_by="soon"), ["media_declared[0].sanitise_by = 'soon'", "must be a date", "MA-4"]),
    ({"media_declared": [{"id": "M-1"}]}, ["media_declared", "missing required arguments", "MA-4.2"]),
    ({"media_declared_by": ""}, ["media_declared_by = ''", "must not be empty", "MA-1.1"]),
    (export(path="/"), ["media_exports[0].path = '/'", "must match", "MA-1.9b"]),
    (export(path="/etc/exports"), ["media_exports[0].path = '/etc/exports'", "must not match", "MA-1.9b"]),
    (export(path="/home/alice"), ["media_exports[0].path = '/home/alice'", "must not match", "MA-1.9b"]),
    (export(path="/srv/a/../../etc"), ["media_exports[0].path", "without '..'", "MA-1.9b"]),
    (export(path='/srv/x" "/'), ["media_exports[0].path", "must match", "MA-1.9b"]),
    (export(keep_hours=0), ["media_exports[0].keep_hours = 0", "at least 1 hours"]),
    (export(keep_hours=10000), ["media_exports[0].keep_hours = 10000", "at most 744 hours", "MA-1.9b"]),
    (export(approver=""), ["media_exports[0].approver = ''", "must not be empty", "UMDNJ-F-1"]),
    (export(reason=""), ["media_exports[0].reason = ''", "must not be empty", "HMS-PRO-5"]),
    (export(expires="2027-02-30"), ["media_exports[0].expires = '2027-02-30'", "must be a date"]),
    ({"media_unfinished_days": 365}, ["media_unfinished_days = 365", "at most 90 days", "MA-4"]),
    ({"media_wipe": True}, ["media_wipe", "unknown variable of role media"]),
    # removable media
    (stick(id="0951:*"), ["removable_media_devices[0].id = '0951:*'", "must match", "MA-1.3"]),
    (stick(id="0951"), ["removable_media_devices[0].id = '0951'", "must match", "MA-1.3"]),
    (stick(serial=""), ["removable_media_devices[0].serial = ''", "must match", "MA-1.2"]),
    (stick(serial="0000000000"), ["removable_media_devices[0].serial", "must not match", "MA-1.2"]),
    (stick(serial='X" with-interface { *:*:* }'), ["removable_media_devices[0].serial", "must match", "MA-1.2"]),
    (stick(approver=""), ["removable_media_devices[0].approver = ''", "must not be empty", "MA-1.2"]),
    (stick(approver="A\nallow"), ["removable_media_devices[0].approver", "must match", "MA-1.2"]),
    (stick(expires="never"), ["removable_media_devices[0].expires = 'never'", "must be a date", "MA-1.2"]),
    (stick(expires="2027-02-30"), ["removable_media_devices[0].expires", "must be a date", "MA-1.2"]),
    ({"removable_media_max_days": 3650}, ["removable_media_max_days = 3650", "at most 366 days", "MA-1.2"]),
    ({"removable_media_usb_kinds": ["hid", "storage"]}, ["removable_media_usb_kinds", "storage", "may only hold", "MA-1.3"]),
    ({"removable_media_kinds": ["usb"]}, ["removable_media_kinds", "may only hold", "MA-1.3"]),
    ({"removable_media_allow": True}, ["removable_media_allow", "unknown variable of role removable_media"]),
    # encrypted disks
    (disk(name="../x"), ["disk_encryption_volumes[0].name = '../x'", "must match"]),
    (disk(serial=""), ["disk_encryption_volumes[0].serial = ''", "must match", "MA-1.5"]),
    (disk(model="a\nb"), ["disk_encryption_volumes[0].model", "must match", "MA-1.5"]),
    (disk(size=512), ["disk_encryption_volumes[0].size = 512", "at least 33554432 bytes"]),
    (disk(size="all of it"), ["disk_encryption_volumes", "cannot be converted to an int", "MA-1.5"]),
    (disk(filesystem="vfat"), ["disk_encryption_volumes", "filesystem", "must be one of"]),
    (disk(mount="/etc"), ["disk_encryption_volumes[0].mount = '/etc'", "must not match"]),
    (disk(mount="/srv/../etc"), ["disk_encryption_volumes[0].mount", "must match"]),
    (disk(force=True), ["disk_encryption_volumes", "force"]),
    ({"disk_encryption_custodians": [{"name": "A", "recipient": "AGE-SECRET-KEY-1" + "Q" * 58}]},
     ["disk_encryption_custodians[0].recipient", "must match", "WTH-7.8-7b"]),
    ({"disk_encryption_custodians": [{"name": "", "recipient": "age1" + "q" * 58}]},
     ["disk_encryption_custodians[0].name", "must not be empty"]),
    ({"disk_encryption_exempt": [{"mount": "/", "reason": "", "approver": "A"}]},
     ["disk_encryption_exempt[0].reason", "must not be empty", "MA-1.5"]),
    ({"disk_encryption_key_slots": 32}, ["disk_encryption_key_slots = 32", "at most 8 key slots", "MA-1.5"]),
    ({"disk_encryption_pbkdf_memory_mib": 1}, ["disk_encryption_pbkdf_memory_mib = 1", "at least 64 MiB"]),
    ({"disk_encryption_wipe": True}, ["disk_encryption_wipe", "unknown variable of role disk_encryption"]),
    # antivirus
    ({"antivirus_prevention": False}, ["antivirus_prevention = False", "must be True", "MA-10.1"]),
    ({"antivirus_paths": []}, ["antivirus_paths = []", "at least 1 item", "MA-10.1"]),
    ({"antivirus_paths": ["/usr/bin"]}, ["antivirus_paths", "/usr/bin", "must not match", "technical limit"]),
    ({"antivirus_paths": ["/var/lib/clamav"]}, ["antivirus_paths", "must not match", "the scanner lives"]),
    ({"antivirus_paths": ["/srv/a b"]}, ["antivirus_paths", "/srv/a b", "must match"]),
    ({"antivirus_exclude_paths": ["/srv/../etc"]}, ["antivirus_exclude_paths", "without '..'", "MA-10.1"]),
    ({"antivirus_signature_max_age_hours": 48}, ["antivirus_signature_max_age_hours = 48", "at most 24 hours", "UMDNJ-G-2"]),
    ({"antivirus_build_max_age_hours": 1000}, ["antivirus_build_max_age_hours = 1000", "at most 168 hours", "MA-10"]),
    ({"antivirus_update_minutes": 1440}, ["antivirus_update_minutes = 1440", "at most 240 minutes", "MA-10.2"]),
    ({"antivirus_custom_urls": ["http://av.example/a.ndb"]}, ["antivirus_custom_urls", "must match", "not signed"]),
    ({"antivirus_custom_urls": ["https://av.example/a.exe"]}, ["antivirus_custom_urls", "a.exe", "must match", "MA-10.2"]),
    ({"antivirus_mirrors": ["mirror.example\nNotifyClamd /x"]}, ["antivirus_mirrors", "must match"]),
    ({"antivirus_authorities": ["-----BEGIN PRIVATE KEY-----"]}, ["antivirus_authorities", "must match", "private key"]),
    ({"antivirus_scan_calendar": "daily\nExecStart=/bin/sh"}, ["antivirus_scan_calendar", "must match", "MA-10.1"]),
    ({"antivirus_scan_max_age_days": 90}, ["antivirus_scan_max_age_days = 90", "at most 31 days", "MA-10.1"]),
    ({"antivirus_quarantine_directory": "/srv/q"}, ["antivirus_quarantine_directory = '/srv/q'", "must match", "MA-10.1"]),
    ({"antivirus_max_file_mib": 5}, ["antivirus_max_file_mib = 5", "at least 25 MiB", "MA-14.2.4"]),
    ({"antivirus_memory_max_mib": 64}, ["antivirus_memory_max_mib = 64", "at least 128 MiB", "MA-11.2"]),
    ({"antivirus_watch_seconds": 3600}, ["antivirus_watch_seconds = 3600", "at most 600 seconds", "MA-6.1.9"]),
    ({"antivirus_quarantine_max_mib": 1}, ["antivirus_quarantine_max_mib = 1", "at least 100 MiB", "MA-10.1"]),
    ({"antivirus_threads": "many"}, ["antivirus_threads", "must be int"]),
    # backups, where they are kept
    (copies(backup_repository_retention_days=29), ["backup_repository_retention_days = 29", "at least 30 days", "MA-2.4b"]),
    (copies(backup_repository_custodians=[{"name": "One", "key": "AGE-SECRET-KEY-" + "1" * 59}] * 2),
     ["backup_repository_custodians[0].key", "must match", "age1"]),
    (copies(backup_repository_hosts=["../etc"]), ["backup_repository_hosts", "../etc", "must match", "MA-2.2"]),
    (copies(backup_repository_directory="/var/lib"), ["backup_repository_directory", "must not match"]),
    (copies(backup_repository_directory="/etc/backup"), ["backup_repository_directory", "must match"]),
    (copies(backup_repository_port=443), ["backup_repository_port = 443", "at least 1024"]),
    (copies(backup_repository_check_max_days=365), ["backup_repository_check_max_days = 365", "at most 182 days", "UMDNJ-D-1f"]),
    (copies(backup_repository_pulls=[{"server": "a/b"}]), ["backup_repository_pulls[0].server", "must match"]),
    (copies(backup_repository_site=""), ["backup_repository_site is not set", "MA-2.3"]),
    (copies(backup_repository_listen="0.0.0.0 --no-auth"), ["backup_repository_listen", "must match"]),
    # hosts that are backed up
    ({"bulwark_roles": ["backup"], "backup_interval_hours": {"high": 48, "medium": 72, "low": 168}},
     ["backup_interval_hours.high = 48", "at most 24 hours", "MA-2.4a"]),
    ({"bulwark_roles": ["backup"], "backup_restore_test_max_days": 183}, ["backup_restore_test_max_days = 183", "MA-2.11"]),
    ({"bulwark_roles": ["backup"], "backup_restore_test_days": 0}, ["backup_restore_test_days = 0", "at least 1 days"]),
    ({"bulwark_roles": ["backup"], "backup_sets": []}, ["backup_sets = []", "at least 1 item", "MA-2.1"]),
    ({"bulwark_roles": ["backup"], "backup_scratch_directory": "/var/lib"}, ["backup_scratch_directory", "must match", "MA-2.2"]),
    ({"bulwark_roles": ["backup"]}, ["backup_server is not set", "MA-2"]),
    (backed_up(paths=["etc"]), ["backup_sets[0].paths", "absolute path", "MA-2.1"]),
    (backed_up(paths=["/proc/self"]), ["backup_sets[0].paths", "must not match"]),
    (backed_up(paths=["/srv/*"]), ["backup_sets[0].paths", "must match"]),
    (backed_up(volatility="often"), ["backup_sets", "volatility", "often"]),
    (backed_up(retention=3), ["backup_sets", "retention"]),
    (backed_up("database", database="d password=x"), ["backup_sets[0].databases[0].database", "must match"]),
    (backed_up("query", query="SELECT 1\nSELECT 2"), ["backup_sets[0].databases[0].query", "one line"]),
    (backed_up("kind", kind="oracle"), ["backup_sets", "kind", "oracle"]),
]  # fmt: skip


def profile(variables: dict) -> str:
    """Return the profile whose roles look at these variables."""
    kinds = {"vpn_gateway_": "gateway", "vpn_client_": "workstation", "log_collector_": "collector"}
    return next((kind for prefix, kind in kinds.items() if any(name.startswith(prefix) for name in variables)), "server")


@pytest.fixture(scope="module")
def refusals(tmp_path_factory) -> dict[str, str]:
    """Run site.yml once over all cases and return what was said of each host."""
    directory = tmp_path_factory.mktemp("bad")
    hosts = {f"case{n}": {"bulwark_profile": profile(variables), **variables} for n, (variables, _words) in enumerate(CASES)}
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
    """At least a hundred and forty wrong values are tried, forty of them of the rooms of the way in."""
    assert len(CASES) >= 140
    rooms = ("firewall_", "duo_", "vpn_gateway_", "vpn_client_")
    assert sum(any(name.startswith(rooms) for name in variables) for variables, _words in CASES) >= 40
