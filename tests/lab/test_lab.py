# SPDX-License-Identifier: GPL-3.0-or-later
"""The whole line on the embedded lab: plain servers fail, are hardened, pass; nothing secret leaks; nobody is locked out."""

from __future__ import annotations

import re
import subprocess

import lab
import pytest
import way_in
from conftest import MISSING

ROLES = {
    *("accounts", "ssh", "session", "banner", "time_sync", "duo", "audit_log", "firewall"),
    *("antivirus", "media", "removable_media", "disk_encryption"),
}
SERVING = {"log_forward", "backup"}
MORE = {  # roles that are not for every profile
    lab.GATEWAY: {"vpn_gateway", *SERVING},
    **dict.fromkeys(lab.SERVERS, SERVING),
    lab.COLLECTOR: {"log_collector", "log_review", *SERVING},
    **{name: {"backup_repository", *SERVING} for name in lab.REPOSITORIES},
    lab.MEMBER: {"vpn_client"},
}


def recap(output: str) -> dict[str, dict[str, int]]:
    """Return Ansible's final counts by host."""
    lines = re.findall(r"^(\S+) +: (ok=.*)$", output.split("PLAY RECAP")[-1], re.MULTILINE)
    return {host: {key: int(value) for key, value in re.findall(r"(\w+)=(\d+)", counts)} for host, counts in lines}


@pytest.mark.parametrize("server", lab.HOSTS)
def test_plain_server_fails(story, server):
    """A score that is good on a neglected host would say nothing on a hardened one."""
    record = story.records("before")[server]
    assert record["status"] == "assessed"
    assert record["score"]["before_exceptions"] < 0.5, record["counts"]
    failing = {control["id"].split(".")[0] for control in record["controls"] if control["status"] == "fail"}
    assert failing == ROLES | MORE.get(server, set())


@pytest.mark.parametrize("server", lab.HOSTS)
def test_hardened_server_passes(story, server):
    """Every control passes, or does not apply and says why; only who skips the second factor is an approved exception."""
    assert story.output["site"].returncode == 0, story.output["site"].stdout[-6000:]
    record = story.records("after")[server]
    others = {c["id"]: (c["status"], c["why"]) for c in record["controls"] if c["status"] not in ("pass", "not_applicable")}
    assert {name: status for name, (status, _why) in others.items()} == {"duo.no_exceptions": "exception"}, others
    assert record["score"]["after_exceptions"] == 1.0
    silent = [c["id"] for c in record["controls"] if c["status"] == "not_applicable" and not c["why"]]
    assert not silent
    assert {c["id"].split(".")[0] for c in record["controls"] if c["status"] == "pass"} >= (ROLES - {"time_sync"}) | MORE.get(
        server, set()
    )


@pytest.mark.parametrize("when", ["before", "after"])
def test_host_that_is_not_there_is_a_failure(story, when):
    """It has a record, every control of it is an error, and the run names it."""
    record = story.records(when)[MISSING]
    assert record["status"] == "unreachable"
    assert record["reason"]
    assert {control["status"] for control in record["controls"]} == {"error"}
    assert record["score"]["after_exceptions"] == 0
    assert MISSING in (story.runs[when] / "run.json").read_text()
    assert MISSING in (story.runs[when] / "report.html").read_text()


@pytest.mark.parametrize("when", ["before", "after"])
def test_evidence_is_complete(story, when):
    """One record a host, a run record, a table and a report; each record belongs to this run."""
    run = story.runs[when]
    assert set(story.records(when)) == {*lab.HOSTS, MISSING}
    assert {record["run_id"] for record in story.records(when).values()} == {run.name}
    for name in ("run.json", "controls.csv", "report.html"):
        assert (run / name).stat().st_size > 0


def test_nothing_secret_is_written_or_shown(story):
    """Neither evidence nor Ansible's output (with --diff and -v) holds a password hash or a line of a private key."""
    assert len(story.secrets) > 10
    texts = {str(path): path.read_text(errors="replace") for path in story.directory.rglob("*") if path.is_file()}
    texts |= {name: done.stdout for name, done in story.output.items()}
    for name, text in texts.items():
        leaked = any(secret in text for secret in story.secrets)
        hashed = bool(re.search(r"\$(?:y|6|5|2[aby]|gy|7)\$[./A-Za-z0-9]{2,}", text))
        assert (leaked, hashed, "PRIVATE KEY-----" in text) == (False, False, False), name


@pytest.mark.parametrize("server", lab.HOSTS)
def test_automation_is_not_locked_out(story, server):
    """deploy comes in over a new connection and becomes root, as before."""
    done = ssh("deploy", server, "sudo -n id -u")
    assert (done.returncode, done.stdout) == (0, "0\n"), done.stderr


@pytest.mark.parametrize("server", lab.HOSTS)
def test_time_is_asked_of_sources_that_prove_who_they_are(story, server):
    """The configuration as the role wrote it gets an answer over Network Time Security, and none from who is not vouched for."""
    forge = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout /dev/null -subj /CN=nobody"
    off, said = way_in.ask_time(server)
    assert off is not None, said
    assert abs(off) < 1  # its clock is that of the machine all of them stand on
    other = f"/etc/chrony.{server}.conf"  # where AppArmor would let chronyd read
    way_in.on(
        server,
        # Without the cookies of the first answer, which it would go on to believe.
        f"sed '/^ntsdumpdir/d; s,^ntstrustedcerts .*,ntstrustedcerts /etc/chrony.{server}.pem,' "
        f"/etc/chrony.bulwark.conf >{other}; "
        f"{forge} -out /etc/chrony.{server}.pem",
    )
    off, said = way_in.ask_time(server, other)
    way_in.on(server, f"rm {other} /etc/chrony.{server}.pem")
    assert "No suitable source" in said or "Timeout reached" in said, said
    assert off is None


@pytest.mark.parametrize("user", ["root", "admin", "toor"])
@pytest.mark.parametrize("server", lab.HOSTS)
def test_neglected_way_in_is_shut(story, server, user):
    """What the plain server offered to everybody is offered no more: a password prompt for root and shared accounts."""
    done = ssh(user, server, "id", "-v", "-o", "PreferredAuthentications=password,keyboard-interactive")
    assert done.returncode == 255
    offered = set(re.findall(r"Authentications that can continue: (\S+)", done.stderr))
    assert offered, done.stderr
    assert not {way for line in offered for way in line.split(",")} & {"password", "keyboard-interactive"}


@pytest.mark.parametrize("name", ["again", "check"])
def test_second_run_changes_nothing(story, name):
    """The hardened state is stable, and check mode knows it."""
    done = story.output[name]
    assert done.returncode == 0, done.stdout[-6000:]
    counts = recap(done.stdout)
    assert set(counts) == set(lab.HOSTS if name == "again" else lab.FORETOLD)
    told = "\n".join(re.findall(r"^(?:TASK|changed: ).*", done.stdout, re.MULTILINE))
    assert all(count["changed"] == 0 for count in counts.values()), told


def test_laxer_than_policy_is_refused_before_anything_changes(story):
    """The message names variable, value, bound and statement; no host is touched."""
    done = lab.ansible("test-site-lax", "playbooks/site.yml", "-e", "session_idle_seconds=3600", "-e", "session_state=present")
    assert done.returncode != 0
    for word in ("session_idle_seconds", "3600", "1800", "WTH-7.7-2"):
        assert word in done.stdout
    assert all(count["changed"] == 0 for count in recap(done.stdout).values())


def ssh(user: str, server: str, command: str, *options: str) -> subprocess.CompletedProcess:
    """Log in over a connection of its own, checking the host's key."""
    argv = [
        "ssh", "-i", lab.STATE / "id_ed25519", "-o", f"UserKnownHostsFile={lab.STATE / 'known_hosts'}",
        "-o", "IdentitiesOnly=yes", "-o", "BatchMode=yes", "-o", "ControlPath=none", "-o", "ConnectTimeout=10",
        *options, f"{user}@{lab.HOSTS[server].address()}", command,
    ]  # fmt: skip
    return subprocess.run(argv, check=False, capture_output=True, text=True, timeout=60)
