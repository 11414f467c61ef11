# SPDX-License-Identifier: GPL-3.0-or-later
"""The whole line on the embedded lab: plain servers fail, are hardened, pass; nothing secret leaks; nobody is locked out."""

from __future__ import annotations

import dataclasses
import json
import re
import subprocess
from pathlib import Path

import lab
import pytest

MISSING = "lab-server-99"
ROLES = {"accounts", "ssh", "session", "banner", "time_sync"}


@dataclasses.dataclass
class Story:
    """What happened: the output of each playbook, and the evidence before and after."""

    directory: Path
    output: dict[str, subprocess.CompletedProcess] = dataclasses.field(repr=False)
    runs: dict[str, Path]
    # What must never show up anywhere, nor in a failed test's own output: password hashes and lines of private keys.
    secrets: set[str] = dataclasses.field(repr=False)

    def records(self, when: str) -> dict[str, dict]:
        """Return the hosts' records ``before`` or ``after``."""
        return lab.records(self.runs[when])


def on(server: str, script: str) -> str:
    """Run a script as root inside a server, past its ssh: the test's own way of looking."""
    return lab.machines.run("podman", "exec", server, "sh", "-c", script)


def recap(output: str) -> dict[str, dict[str, int]]:
    """Return Ansible's final counts by host."""
    lines = re.findall(r"^(\S+) +: (ok=.*)$", output.split("PLAY RECAP")[-1], re.MULTILINE)
    return {host: {key: int(value) for key, value in re.findall(r"(\w+)=(\d+)", counts)} for host, counts in lines}


@pytest.fixture(scope="module")
def story(tmp_path_factory) -> Story:
    """Play it once. One more host is in the inventory for the audits: it does not exist."""
    directory = tmp_path_factory.mktemp("lab")
    missing = directory / "missing.json"
    address = lab.SUBNET.rsplit(".", 1)[0] + ".99"
    missing.write_text(json.dumps({"servers": {"hosts": {MISSING: {"ansible_host": address, "ansible_ssh_timeout": 5}}}}))
    lab.up()
    secrets = set()
    for server in lab.SERVERS:
        hashes = on(server, "cut -d: -f2 /etc/shadow").split()
        keys = on(server, "cat /etc/ssh/ssh_host_*_key").splitlines()
        secrets |= {word for word in [*hashes, *keys] if len(word) > 20 and "PRIVATE KEY" not in word}
    secrets |= {line for line in (lab.STATE / "id_ed25519").read_text().splitlines() if "PRIVATE KEY" not in line}

    story = Story(directory, {}, {}, secrets)

    def audit(when: str) -> None:
        evidence = directory / when
        story.output[when] = lab.ansible(
            f"test-audit-{when}", "-i", "inventories/lab", "-i", str(missing), "-e", f"bulwark_evidence_dir={evidence}",
            "playbooks/audit.yml", "-v",
        )  # fmt: skip
        story.runs[when] = (evidence / "latest").resolve()

    audit("before")
    for name in ("site", "again", "check"):
        options = ["--check"] if name == "check" else []
        story.output[name] = lab.ansible(f"test-site-{name}", "playbooks/site.yml", "--diff", *options)
    audit("after")
    return story


@pytest.mark.parametrize("server", lab.SERVERS)
def test_plain_server_fails(story, server):
    """A score that is good on a neglected host would say nothing on a hardened one."""
    record = story.records("before")[server]
    assert record["status"] == "assessed"
    assert record["score"]["before_exceptions"] < 0.5, lab.scores({server: record})
    failing = {control["id"].split(".")[0] for control in record["controls"] if control["status"] == "fail"}
    assert failing == ROLES


@pytest.mark.parametrize("server", lab.SERVERS)
def test_hardened_server_passes(story, server):
    """Every control passes, or does not apply and says why."""
    assert story.output["site"].returncode == 0, story.output["site"].stdout[-6000:]
    record = story.records("after")[server]
    others = {c["id"]: (c["status"], c["why"]) for c in record["controls"] if c["status"] not in ("pass", "not_applicable")}
    assert not others
    assert record["score"]["before_exceptions"] == 1.0
    silent = [c["id"] for c in record["controls"] if c["status"] == "not_applicable" and not c["why"]]
    assert not silent
    assert {c["id"].split(".")[0] for c in record["controls"] if c["status"] == "pass"} >= ROLES - {"time_sync"}


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
    assert set(story.records(when)) == {*lab.SERVERS, MISSING}
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


@pytest.mark.parametrize("server", lab.SERVERS)
def test_automation_is_not_locked_out(story, server):
    """deploy comes in over a new connection and becomes root, as before."""
    done = ssh("deploy", server, "sudo -n id -u")
    assert (done.returncode, done.stdout) == (0, "0\n"), done.stderr


@pytest.mark.parametrize("user", ["root", "admin", "toor"])
@pytest.mark.parametrize("server", lab.SERVERS)
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
    assert set(counts) == set(lab.SERVERS)
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
        *options, f"{user}@{lab.SERVERS[server][1]}", command,
    ]  # fmt: skip
    return subprocess.run(argv, check=False, capture_output=True, text=True, timeout=60)
