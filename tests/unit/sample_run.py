# Copyright: (c) 2026, Bulwark contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Host records as an assessment of a small clinic writes them; the report's tests and its picture are made from these.

Two servers were assessed: one hardened but for an approved exception, one drifted. A third did not answer.
"""

from __future__ import annotations

import copy

from ansible_collections.bulwark.hardening.plugins.plugin_utils import policy, report

RUN_ID = "20261121T081502Z-3f9c"

# id, title, statements, expectation, observed, variables, source, proof
_CONTROLS = [
    (
        "ssh.root_login", "Root cannot log in over SSH", ["WTH-7.6-4", "WTH-7.2.1-9"],
        ["posture.ssh.sshd.permitrootlogin == 'no'"], {"ssh.sshd.permitrootlogin": "no"}, {},
        "sshd -T -C user=root", "test_root_is_refused",
    ),
    (
        "ssh.no_passwords", "Passwords are not accepted over SSH", ["WTH-7.2.1-6", "MA-13.2.1"],
        ["posture.ssh.sshd.passwordauthentication == 'no'", "posture.ssh.sshd.kbdinteractiveauthentication == 'no'"],
        {"ssh.sshd.passwordauthentication": "no", "ssh.sshd.kbdinteractiveauthentication": "no"}, {},
        "sshd -T -C user=nobody", "test_password_is_refused",
    ),
    (
        "ssh.ciphers", "Only 256-bit authenticated ciphers are offered", ["WTH-7.2.1-12b", "MA-11.7", "MA-14.2.5"],
        ["posture.ssh.sshd.ciphers | difference(ssh_ciphers) | length == 0"],
        {"ssh.sshd.ciphers": ["chacha20-poly1305@openssh.com", "aes256-gcm@openssh.com"]},
        {"ssh_ciphers": ["aes256-gcm@openssh.com", "chacha20-poly1305@openssh.com"]},
        "sshd -T", "test_weak_cipher_is_refused",
    ),
    (
        "ssh.groups", "Only members of the login group get in", ["UMDNJ-B-7", "WTH-7.3-2", "MA-13.2.3"],
        ["posture.ssh.sshd.allowgroups == ssh_allow_groups"], {"ssh.sshd.allowgroups": ["ssh-users"]},
        {"ssh_allow_groups": ["ssh-users"]}, "sshd -T -C user=nobody", "test_outsider_is_refused",
    ),
    (
        "ssh.forwarding", "Connections cannot be passed through the host", ["UMDNJ-C-3", "MA-13.2.2"],
        ["posture.ssh.sshd.allowtcpforwarding == 'no'", "posture.ssh.sshd.allowagentforwarding == 'no'"],
        {"ssh.sshd.allowtcpforwarding": "no", "ssh.sshd.allowagentforwarding": "no"}, {},
        "sshd -T -C user=nobody", "test_tunnel_is_refused",
    ),
    (
        "session.idle_shell", "An idle interactive shell is ended", ["WTH-7.7-2", "UMDNJ-J-1", "MA-1.8"],
        ["posture.session.shell_timeout_seconds | int <= session_idle_seconds", "posture.session.shell_timeout_readonly"],
        {"session.shell_timeout_seconds": 1800, "session.shell_timeout_readonly": True}, {"session_idle_seconds": 1800},
        "bash -lc, zsh -lc as an unprivileged user (TMOUT and its readonly flag)", "test_idle_shell_is_ended",
    ),
    (
        "session.idle_ssh", "An idle SSH connection is ended", ["WTH-7.7-2", "WTH-7.2.1-12c", "UMDNJ-J-3"],
        ["posture.session.channel_timeout_seconds | int <= session_idle_seconds"],
        {"session.channel_timeout_seconds": 1800}, {"session_idle_seconds": 1800},
        "sshd -T (ChannelTimeout, UnusedConnectionTimeout)", "test_idle_connection_is_ended",
    ),
    (
        "session.idle_logind", "logind ends sessions that stay idle", ["WTH-7.7-1", "UMDNJ-J-3"],
        ["posture.session.stop_idle_session_seconds | int <= session_idle_seconds"],
        {"session.stop_idle_session_seconds": 1800}, {"session_idle_seconds": 1800},
        "busctl get-property org.freedesktop.login1 StopIdleSessionUSec", "test_logind_stops_idle_session",
    ),
    (
        "accounts.root_locked", "Root has no usable password", ["WTH-7.6-4", "WTH-7.12-8"],
        ["posture.accounts.root.password == 'locked'"], {"accounts.root.password": "locked"}, {},
        "passwd -S root", "test_root_password_is_refused",
    ),
    (
        "accounts.system_nologin", "System accounts have no login shell", ["WTH-7.6-4", "WTH-7.2.1-11"],
        ["posture.accounts.system_with_shell | difference(accounts_exempt) | length == 0"],
        {"accounts.system_with_shell": []}, {"accounts_exempt": []},
        "getent passwd, /etc/shells", "test_system_accounts_cannot_log_in",
    ),
    (
        "accounts.dormant", "Accounts unused for 90 days are disabled", ["WTH-7.2.1-7d", "WTH-7.2.1-7c", "WTH-7.10-4"],
        ["posture.accounts.dormant_enabled | length == 0"], {"accounts.dormant_enabled": []},
        {"accounts_dormant_days": 90}, "lastlog2, wtmp, chage -l", "test_dormant_account_is_disabled",
    ),
    (
        "accounts.no_generic", "No account carries a generic name", ["WTH-7.2.1-11", "WTH-7.6-5", "UMDNJ-B-8"],
        ["posture.accounts.names | intersect(accounts_generic_names) | length == 0"],
        {"accounts.names": ["jane.doe", "richard.roe", "ansible"]}, {"accounts_generic_names": ["admin", "test", "guest"]},
        "getent passwd", "test_generic_account_is_noticed",
    ),
    (
        "accounts.unique_uid", "No two accounts share a user id", ["WTH-7.6-8", "UMDNJ-B-8"],
        ["posture.accounts.shared_uids | length == 0"], {"accounts.shared_uids": []}, {},
        "getent passwd", "test_second_uid_zero_is_noticed",
    ),
    (
        "banner.ssh", "The notice is sent before login over SSH", ["WTH-7.8-7d", "UMDNJ-A-1e"],
        ["posture.banner.ssh.texts | length == 1", "banner_owner in posture.banner.ssh.texts[0]"],
        {"banner.ssh.texts": ["This computer belongs to Juniper Valley Clinic. Use is logged; misuse is sanctioned."]},
        {"banner_owner": "Juniper Valley Clinic"},
        "sshd -T -C user=root and user=nobody (Banner), and the file it names", "test_stranger_reads_the_notice",
    ),
    (
        "banner.console", "The notice is shown before login on the console", ["WTH-7.8-7d", "UMDNJ-A-1e"],
        ["banner_owner in posture.banner.console.text"],
        {"banner.console.text": "This computer belongs to Juniper Valley Clinic. Use is logged; misuse is sanctioned."},
        {"banner_owner": "Juniper Valley Clinic"}, "agetty --show-issue", "test_console_shows_the_notice",
    ),
    (
        "banner.no_system_details", "Nothing before login names the operating system", ["MA-11.8a"],
        ["posture.banner.details_shown | length == 0"], {"banner.details_shown": []}, {},
        "the identification line of sshd, /etc/issue.net", "test_nothing_names_the_system",
    ),
    (
        "time_sync.authenticated", "Time comes from authenticated sources", ["MA-12", "MA-12.1"],
        ["posture.time_sync.sources | rejectattr('authenticated') | length == 0"],
        {"time_sync.sources": [{"name": "ntp1.juniper.example", "mode": "nts", "authenticated": True}]}, {},
        "chronyc -c authdata", "test_forged_time_is_refused",
    ),
    (
        "time_sync.offset", "The clock is within bounds", ["MA-12"],
        ["posture.time_sync.offset_seconds | abs <= time_sync_max_offset_seconds"],
        {"time_sync.offset_seconds": 0.000042}, {"time_sync_max_offset_seconds": 0.1}, "chronyc -c tracking",
        "test_clock_is_within_bounds",
    ),
    (
        "time_sync.single_daemon", "One program alone sets the clock", ["MA-12", "MA-12.2"],
        ["posture.time_sync.daemons == ['chrony.service']"], {"time_sync.daemons": ["chrony.service"]}, {},
        "systemctl list-units --state=active", "test_second_daemon_is_noticed",
    ),
]  # fmt: skip

_EXCEPTION = {
    "control": "ssh.forwarding",
    "approver": "R. Okafor",
    "approver_role": "Security officer",
    "reason": "The imaging archive is reached through this host until its own gateway is delivered.",
    "compensating": "Forwarding is limited to one destination and logged.",
    "ticket": "SEC-212",
    "expires": "2027-02-28",
    "hosts": ["records-1"],
}

_DRIFTED = {
    "session.idle_shell": (
        {"session.shell_timeout_seconds": 0, "session.shell_timeout_readonly": False},
        "posture.session.shell_timeout_seconds | int <= session_idle_seconds is false (session.shell_timeout_seconds = 0); "
        "posture.session.shell_timeout_readonly is false (session.shell_timeout_readonly = False)",
    ),
    "accounts.no_generic": (
        {"accounts.names": ["jane.doe", "richard.roe", "ansible", "test"]},
        "posture.accounts.names | intersect(accounts_generic_names) | length == 0 is false "
        "(accounts.names = ['jane.doe', 'richard.roe', 'ansible', 'test'])",
    ),
    "ssh.ciphers": (
        {"ssh.sshd.ciphers": ["aes128-ctr", "aes256-gcm@openssh.com"]},
        "posture.ssh.sshd.ciphers | difference(ssh_ciphers) | length == 0 is false "
        "(ssh.sshd.ciphers = ['aes128-ctr', 'aes256-gcm@openssh.com'])",
    ),
}


def tallied(record: dict) -> dict:
    """Return a record whose counts and scores are those of its controls (written out here, not taken from the product)."""
    counts = {
        status: sum(control["status"] == status for control in record["controls"])
        for status in ("pass", "fail", "error", "not_applicable", "exception")
    }
    judged = sum(counts.values()) - counts["not_applicable"]
    score = {
        "before_exceptions": counts["pass"] / judged if judged else None,
        "after_exceptions": (counts["pass"] + counts["exception"]) / judged if judged else None,
    }
    return {**record, "counts": counts, "score": score}


def role_of(control: str) -> str:
    """Return the role a control belongs to."""
    return control.split(".", 1)[0]


def record(host: str, os_version: str = "13", kernel: str = "6.12.48+deb13-amd64") -> dict:
    """Return the record of an assessed server on which every control passes."""
    controls = [
        {
            "id": name, "title": title, "role": role_of(name), "status": "pass", "why": "", "statements": statements,
            "profiles": ["server", "workstation", "gateway"], "expected": expected, "observed": observed,
            "variables": variables, "source": source,
            "proof": [f"molecule/{role_of(name)}/tests/test_{role_of(name)}.py::{proof}"],
            "remedy": f"ansible-playbook playbooks/site.yml --tags {role_of(name)}", "exception": None,
        }
        for name, title, statements, expected, observed, variables, source, proof in copy.deepcopy(_CONTROLS)
    ]  # fmt: skip
    return tallied(
        {
            "schema": "bulwark.host/1",
            "run_id": RUN_ID,
            "host": host,
            "status": "assessed",
            "reason": "",
            "profile": "server",
            "roles": ["ssh", "session", "accounts", "banner", "time_sync"],
            "identity": {
                "hostname": host,
                "os_id": "debian",
                "os_version": os_version,
                "kernel": kernel,
                "virtualization": "podman",
                "machine_id_sha256": "5e884898da28047151d0e56f8dc6292773603d0d6aabbdd62a11ef721d1542d8",
            },
            "tool": {"collection": "bulwark.hardening", "version": "0.1.0", "ansible_core": "2.19.14", "python": "3.11.2"},
            "revision": "75b367d0c1f24a7be9b6a2b5e83c1e7d9f0a4c11",
            "observed_at": "2026-11-21T08:15:09Z",
            "clock": {
                "offset_seconds": 0.000042,
                "uncertainty_seconds": 0.0124,
                "source": "ntp1.juniper.example",
                "synchronised": True,
                "at": "2026-11-21T08:15:09Z",
            },
            "assessed_at": "2026-11-21T08:15:10Z",
            "controls": controls,
            "posture": {},
            "posture_errors": {},
        }
    )


def sample() -> list[dict]:
    """Return the records of three servers: one nearly perfect, one drifted, one that did not answer."""
    good = record("records-1")
    drifted = record("files-1", "12", "6.1.0-41-amd64")
    silent = record("portal-1")
    for control in good["controls"]:
        if control["id"] == "ssh.forwarding":
            control.update(
                status="exception",
                exception=_EXCEPTION,
                observed={"ssh.sshd.allowtcpforwarding": "yes", "ssh.sshd.allowagentforwarding": "no"},
                why="posture.ssh.sshd.allowtcpforwarding == 'no' is false (ssh.sshd.allowtcpforwarding = 'yes')",
            )
        if control["id"] == "time_sync.offset":
            control.update(status="not_applicable", why="A container shares its machine's clock; assess the machine instead.")
    for control in drifted["controls"]:
        if control["id"] in _DRIFTED:
            control["status"] = "fail"
            control["observed"], control["why"] = _DRIFTED[control["id"]]
        if control["id"] == "time_sync.offset":
            control.update(status="not_applicable", why="A container shares its machine's clock; assess the machine instead.")
        if control["id"] == "time_sync.authenticated":
            control.update(
                status="error",
                observed={"time_sync.sources": None},
                why="Could not be observed: chronyc -c authdata: 506 Cannot talk to daemon",
            )
    reason = "Unreachable: Failed to connect to the host via ssh: connect to host 10.20.0.14 port 22: Connection timed out"
    drifted["clock"].update(offset_seconds=None, uncertainty_seconds=None, source="", synchronised=False)
    silent.update(status="unreachable", reason=reason, identity={}, observed_at="", clock=None)
    for control in silent["controls"]:
        control.update(status="error", why=f"Could not be observed: {reason}", variables={})
        control["observed"] = dict.fromkeys(control["observed"])
    return [tallied(good), tallied(drifted), tallied(silent)]


def big(hosts: int = 50, controls: int = 60) -> list[dict]:
    """Return as many records as a larger site has; every eleventh result is a failure."""
    records = []
    for host in range(hosts):
        whole = record(f"host-{host:02d}")
        whole["controls"] = [
            {
                **copy.deepcopy(whole["controls"][number % len(whole["controls"])]),
                "id": f"{whole['controls'][number % len(whole['controls'])]['id']}_{number}",
                **({"status": "fail", "why": "It is not as expected."} if (host + number) % 11 == 0 else {}),
            }
            for number in range(controls)
        ]
        records.append(tallied(whole))
    return records


def rendered(records: list[dict], excluded: dict[str, str] | None = None, parameters: dict | None = None) -> str:
    """Return the HTML report of records, made the way the action makes it but with a fixed time and revision."""
    hosts, problems = report.gather(
        [(item["host"], item) for item in records], [item["host"] for item in records], excluded or {}, RUN_ID
    )
    about = {
        "started_at": report.started_at(RUN_ID),
        "finished_at": "2026-11-21T08:15:12Z",
        "tool": {"collection": "bulwark.hardening", "version": "0.1.0", "ansible_core": "2.19.14", "python": "3.11.2"},
        "revision": "75b367d0c1f24a7be9b6a2b5e83c1e7d9f0a4c11",
        "register_sha256": "0c6f5e0e4f6d8c1d6b7c0d0a5b8f2f3c9e1a7b4d5c6e8f90123456789abcdef0",
    }
    run = report.run_record(RUN_ID, hosts, problems, parameters or {"session_idle_seconds": 1800}, about)
    template = (policy.ROOT / "playbooks" / "templates" / "report.html.j2").read_text(encoding="utf-8")
    return report.render(run, hosts, template, policy.requirements())
