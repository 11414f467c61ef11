# SPDX-License-Identifier: GPL-3.0-or-later
"""The lab's backups as those who answer for them work with them: a restore test on demand, and letting go of what is old.

How copies are attacked and hosts built anew is tried in molecule/backup and molecule/backup_repository.
"""

from __future__ import annotations

import json
import subprocess

import lab
import pytest
import way_in
from custodians import CUSTODIANS

HOST, REPOSITORY = "lab-server-12", next(iter(lab.REPOSITORIES))
SNAPSHOTS = f"/srv/backup/hosts/{HOST}/snapshots"
OLD = 500  # days
RESTIC = "restic --repository-file {0}/repository --password-file {0}/password --cacert {0}/ca.crt --no-cache -q".format(
    "/etc/bulwark/backup"
)


def on(name: str, command: str) -> str:
    """Run a command as root on a machine of the lab and return its output."""
    done = way_in.on(name, command)
    assert done.returncode == 0, f"{name}: {command}: {done.stderr}"
    return done.stdout


def test_restore_test_on_demand(story, tmp_path):
    """Every file of the newest backups comes back as it was, and the result is kept on the controller."""
    done = lab.ansible("test-restore", "playbooks/restore_test.yml", "-e", "bulwark_hosts=servers",
                       "-e", f"restore_test_directory={tmp_path}")  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:]
    kept = {
        result["host"]: result["restore_test"] for result in map(json.loads, (path.read_text() for path in tmp_path.iterdir()))
    }
    assert set(kept) == {name for name in lab.SERVERS if name not in lab.REPOSITORIES}
    for result in kept.values():
        assert result["passed"], result
        assert result["sets"]["system"]["compared"] > 100


@pytest.fixture(scope="module")
def old(story) -> str:
    """Have a backup in the repository that was made, and came, long ago; return its file's name."""
    before = set(on(REPOSITORY, f"ls {SNAPSHOTS}").split())
    when = on(HOST, f"date -u -d '{OLD} days ago' '+%Y-%m-%d %H:%M:%S'").strip()
    on(HOST, f"{RESTIC} backup --tag set:system --time '{when}' /etc/hostname")
    (name,) = set(on(REPOSITORY, f"ls {SNAPSHOTS}").split()) - before
    on(REPOSITORY, f"touch -d '{OLD} days ago' {SNAPSHOTS}/{name}")
    return name


def prune(tmp_path, identity: str) -> subprocess.CompletedProcess:
    """Let go of what is old with a secret key."""
    path = tmp_path / "key.txt"
    path.touch(0o600)
    path.write_text(f"{identity}\n")
    return lab.ansible("test-prune", "playbooks/backup_prune.yml", "-e", f"backup_prune_identity={path}",
                       "-e", f"backup_prune_repository={REPOSITORY}")  # fmt: skip


def test_a_key_that_opens_nothing_lets_nothing_go_and_is_named(old, tmp_path):
    stranger = subprocess.run(["age-keygen"], check=True, capture_output=True, text=True).stdout
    before = on(REPOSITORY, f"ls {SNAPSHOTS}")
    done = prune(tmp_path, stranger)
    assert done.returncode != 0
    assert f"/srv/backup/escrow/{HOST}/" in done.stdout
    assert "stays shut: age: error: no identity matched any of the recipients" in done.stdout
    assert on(REPOSITORY, f"ls {SNAPSHOTS}") == before


def test_without_a_key_nothing_begins(story, tmp_path):
    done = lab.ansible("test-prune", "playbooks/backup_prune.yml", "-e", f"backup_prune_identity={tmp_path}/none")
    assert done.returncode != 0
    assert f"backup_prune_identity is {tmp_path}/none" in done.stdout


def test_a_custodian_lets_go_of_what_is_old_and_of_nothing_else(story, old, tmp_path):
    """Who may open the sealed keys lets go, of all hosts at once; what they opened is nowhere to be read."""
    before = set(on(REPOSITORY, f"ls {SNAPSHOTS}").split())
    done = prune(tmp_path, CUSTODIANS[1])
    assert done.returncode == 0, done.stdout[-3000:]
    assert set(on(REPOSITORY, f"ls {SNAPSHOTS}").split()) == before - {old}
    told = [json.loads(line) for line in on(REPOSITORY, "cat /var/lib/bulwark/backup-repository/pruned.jsonl").splitlines()]
    assert {record["copy"]: len(record["removed"]) for record in told if record["copy"] == HOST} == {HOST: 1}
    assert {record["copy"].split("/")[-1] for record in told} >= {HOST, lab.GATEWAY, "lab-server-13"}
    secret = on(HOST, "cat /etc/bulwark/backup/password").strip()
    assert len(secret) > 20
    assert secret not in done.stdout and CUSTODIANS[1] not in done.stdout
