# Copyright: (c) 2026, Bulwark contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The collector of the audit trail: what counts as in force, what a container cannot tell, how units and files are read."""

from __future__ import annotations

import pytest
from ansible_collections.bulwark.hardening.plugins.module_utils.posture import audit_log
from ansible_collections.bulwark.hardening.plugins.module_utils.posture.common import CannotObserve

STATUS = "enabled 2\nfailure 1\npid 9\nlost 0\nbacklog_limit 16384\n"
WRITTEN = (
    "-a always,exit -F arch=b64 -S execve -F euid=0 -F key=bulwark_privileged\n-w /etc -p wa -k bulwark_config\n"
    "-a always,exit -F arch=b64 -S openat -F path={place} -F perm=r -F key=bulwark_sensitive\n-e 2\n"
)


@pytest.fixture
def host(monkeypatch, tmp_path):
    """A host with a file of rules, whose kernel lists what is given."""
    path = tmp_path / "audit.rules"
    path.write_text(WRITTEN.format(place=tmp_path / "data"))
    monkeypatch.setattr(audit_log, "AUDITCTL", str(path))  # it exists

    def look(listed, own=True):
        monkeypatch.setattr(audit_log, "run", lambda argv: listed if argv[1] == "-l" else STATUS)
        unobserved = {}
        return audit_log.rules(own, str(path), unobserved), unobserved

    return look


def test_a_rule_is_in_force_when_loaded_and_written(host):
    seen, unobserved = host("-w /etc -p wa -k bulwark_config\n-w /old -p wa -k old\n")
    assert list(seen["rules"]) == ["bulwark_config"]
    assert len(seen["not_loaded"]) == 2
    assert len(seen["not_written"]) == 1
    assert seen["watched"] == {"bulwark_config": ["/etc"]}
    assert seen["status"]["enabled"] == 2
    assert seen["settings"]["-e"] == "2"
    assert unobserved == {}


def test_a_tree_that_is_watched_as_a_file_is_named(host, tmp_path):
    (tmp_path / "data").mkdir()
    seen, _unobserved = host(f"-a always,exit -F arch=b64 -S openat -F path={tmp_path}/data -F perm=r -F key=bulwark_sensitive\n")
    assert seen["misfits"] == [str(tmp_path / "data")]


def test_a_container_does_not_look_at_its_machines_kernel(host):
    seen, unobserved = host("-w /etc -p wa -k bulwark_config\n", own=False)
    assert "loaded" not in seen
    assert unobserved["status"] == "a container shares its machine's kernel"
    assert seen["watched"]["bulwark_config"] == ["/etc"]


def test_a_list_that_cannot_be_read_is_an_error(host):
    with pytest.raises(CannotObserve, match="auditctl -l"):
        host("-x what\n")


def test_without_auditctl_nothing_is_recorded(monkeypatch, tmp_path):
    monkeypatch.setattr(audit_log, "AUDITCTL", str(tmp_path / "none"))
    seen = audit_log.rules(True, str(tmp_path / "no.rules"), {})
    assert seen["status"] == {}
    assert seen["loaded"] == seen["written"] == []
    assert seen["rules"] == {}


@pytest.mark.parametrize(
    ("line", "yes"),
    [
        ("session    required     pam_loginuid.so", True),
        ("session required /lib/security/pam_loginuid.so", True),
        ("session    requisite    pam_loginuid.so require_auditd", True),
        ("session    optional     pam_loginuid.so", False),
        ("# session  required     pam_loginuid.so", False),
        ("auth required pam_loginuid.so", False),
    ],
)
def test_pam_notes_who_logs_in(line, yes):
    assert audit_log.sets_loginuid(f"# PAM\nauth required pam_unix.so\n{line}\n") is yes


def test_unit_of_the_vendor_and_ours():
    command = "{ path=/sbin/auditd ; argv[]=/sbin/auditd ; ignore_errors=no ; start_time=[n/a] }"
    limits = {"StartLimitIntervalUSec": "10s", "LogRateLimitIntervalUSec": "30s"}
    vendor = audit_log.daemon({"Restart": "on-failure", "RefuseManualStop": "no", "ExecStart": command, **limits})
    assert vendor["config_directory"] == "/etc/audit"
    assert vendor["start_limited"]
    assert not vendor["refuse_stop"]
    command = command.replace("argv[]=/sbin/auditd", "argv[]=/usr/sbin/auditd -c /etc/audit/bulwark")
    ours = audit_log.daemon({"Restart": "always", "RefuseManualStop": "yes", "StartLimitIntervalUSec": "0",
                             "LogRateLimitIntervalUSec": "0", "ExecStart": command})  # fmt: skip
    assert ours["config_directory"] == "/etc/audit/bulwark"
    assert not ours["start_limited"]
    assert not ours["log_limited"]


def test_configuration_is_read(tmp_path):
    path = tmp_path / "auditd.conf"
    path.write_text("#\n# x = y\nlog_format = ENRICHED\nspace_left = 15%\nplugin_dir = /Etc/x\n##name = mydomain\n")
    assert audit_log.config(str(path)) == {"log_format": "enriched", "space_left": "15%", "plugin_dir": "/Etc/x"}
    assert audit_log.config(str(tmp_path / "none")) == {}


def test_command_line_and_release():
    assert audit_log.command_line("root=/dev/vda audit=0 quiet audit=1 audit_backlog_limit=8192\n") == {
        "audit": "1",
        "audit_backlog_limit": "8192",
    }
    assert audit_log.release('ID=debian\nVERSION_ID="13"\n') == 13
    assert audit_log.release("ID=debian\n") == 0


@pytest.mark.parametrize(("answer", "own"), [("none\n", True), ("podman\n", False), (CannotObserve("it: exit 1"), True)])
def test_whose_kernel_it_is(monkeypatch, answer, own):
    def said(_argv):
        if isinstance(answer, str):
            return answer
        raise answer

    monkeypatch.setattr(audit_log, "run", said)
    assert audit_log.kernel_own() is own


def test_a_missing_tool_is_an_error(monkeypatch):
    def missing(_argv):
        raise CannotObserve("systemd-detect-virt is not installed")

    monkeypatch.setattr(audit_log, "run", missing)
    with pytest.raises(CannotObserve):
        audit_log.kernel_own()
