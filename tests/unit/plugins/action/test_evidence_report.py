# Copyright: (c) 2026, Bulwark contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import hashlib
import json
import os
import stat
from pathlib import Path
from unittest import mock

import pytest
from ansible.errors import AnsibleActionFail, AnsibleError
from ansible.parsing.dataloader import DataLoader
from ansible.playbook.task import Task
from ansible.template import Templar
from ansible_collections.bulwark.hardening.plugins.action import evidence_report
from ansible_collections.bulwark.hardening.plugins.plugin_utils import policy
from ansible_collections.bulwark.hardening.tests.unit.sample_run import RUN_ID, record, sample

HOSTS = ["records-1", "files-1", "portal-1"]


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    directory = tmp_path / "evidence" / RUN_ID
    (directory / "hosts").mkdir(parents=True)
    for item in sample():
        (directory / "hosts" / f"{item['host']}.json").write_text(json.dumps(item), encoding="utf-8")
    return directory


def act(run_dir: Path | str, check_mode: bool = False, **args) -> dict:
    """Run the action as a task would, without a connection."""
    task = Task()
    task.args = {"run_dir": str(run_dir), "inventory_hosts": HOSTS, **args}
    task.check_mode = check_mode
    loader = DataLoader()
    plugin = evidence_report.ActionModule(
        task=task,
        connection=mock.Mock(),
        play_context=mock.Mock(check_mode=check_mode),
        loader=loader,
        templar=Templar(loader=loader, variables={}),
        shared_loader_obj=None,
    )
    plugin._display = mock.Mock()
    return plugin.run(task_vars={})


def test_writes_everything_of_a_run(run_dir):
    result = act(run_dir, parameters={"session_idle_seconds": 900, "duo_skey": "hunter2"})
    run = json.loads((run_dir / "run.json").read_text(encoding="utf-8"))
    assert {path.name for path in run_dir.iterdir()} == {"hosts", "run.json", "controls.csv", "report.html"}
    assert result["changed"] is True and result["problems"] == []
    assert [result[key] for key in ("run", "csv", "report")] == [
        str(run_dir / name) for name in ("run.json", "controls.csv", "report.html")
    ]
    assert result["score"] == run["score"] == {"before_exceptions": 31 / 55, "after_exceptions": 32 / 55}
    assert run["schema"] == "bulwark.run/1" and run["run_id"] == RUN_ID
    assert run["started_at"] == "2026-11-21T08:15:02Z" and run["finished_at"].endswith("Z")
    assert run["tool"]["collection"] == "bulwark.hardening" and run["tool"]["version"] and run["tool"]["ansible_core"]
    assert run["register_sha256"] == hashlib.sha256((policy.ROOT / "policy" / "register.yml").read_bytes()).hexdigest()
    assert run["parameters"] == {"session_idle_seconds": 900, "duo_skey": "(withheld)"}
    assert run["previous"] is None
    for entry in run["inventory"]:
        written = (run_dir / entry["record"]).read_bytes()
        assert entry["record_sha256"] == hashlib.sha256(written).hexdigest()
    for name in ("run.json", "controls.csv", "report.html"):
        assert "hunter2" not in (run_dir / name).read_text(encoding="utf-8")


def test_latest_leads_to_the_newest_run(run_dir):
    result = act(run_dir)
    latest = Path(result["latest"])
    assert latest.is_symlink() and os.readlink(latest) == RUN_ID
    newer = run_dir.parent / "20261122T081502Z-aaaa"
    act(newer)
    assert os.readlink(latest) == newer.name
    assert [path.name for path in run_dir.parent.iterdir() if path.name.startswith(".")] == []


def test_files_are_readable_by_their_owner_only(run_dir):
    act(run_dir)
    for name in ("run.json", "controls.csv", "report.html"):
        assert stat.S_IMODE((run_dir / name).stat().st_mode) == 0o600


def test_missing_and_torn_records_are_failures_on_the_report(run_dir):
    (run_dir / "hosts" / "files-1.json").write_text('{"schema": "bulwark.host/1", "controls": [', encoding="utf-8")
    result = act(run_dir, inventory_hosts=[*HOSTS, "ghost"])
    page = (run_dir / "report.html").read_text(encoding="utf-8")
    assert result["hosts"] == {"unreachable": 1, "failed": 2, "assessed": 1, "excluded": 0}
    assert len(result["problems"]) == 2
    assert "ghost" in page and "No record" in page and "is not JSON" in page
    run = json.loads((run_dir / "run.json").read_text(encoding="utf-8"))
    assert {entry["host"]: entry["record"] for entry in run["inventory"]} == {
        "portal-1": "hosts/portal-1.json",
        "files-1": "hosts/files-1.json",
        "ghost": None,
        "records-1": "hosts/records-1.json",
    }


@pytest.mark.parametrize("content", [b"\xff\xfe", b"", b"null", b"NaN", b'{"score": NaN}', b"[" * 100_000, b'"text"'])
def test_any_rubbish_in_a_record_is_a_failed_host(run_dir, content):
    (run_dir / "hosts" / "files-1.json").write_bytes(content)
    assert act(run_dir)["hosts"]["failed"] == 1


def test_roles_give_a_missing_host_its_controls(run_dir):
    role = policy.all_roles()[0]
    result = act(run_dir, inventory_hosts=[*HOSTS, "ghost"], roles={"ghost": [role]})
    assert result["counts"]["error"] == 20 + len(policy.controls_of(role))
    assert policy.controls_of(role)[0]["id"] in (run_dir / "controls.csv").read_text(encoding="utf-8")


def test_run_without_any_record_still_has_a_report(tmp_path):
    result = act(tmp_path / "evidence" / RUN_ID)
    assert result["score"] == {"before_exceptions": 0.0, "after_exceptions": 0.0}
    assert "portal-1" in Path(result["report"]).read_text(encoding="utf-8")


def test_check_mode_writes_nothing(run_dir):
    result = act(run_dir, check_mode=True)
    assert result["score"]["before_exceptions"] == 31 / 55
    assert {path.name for path in run_dir.iterdir()} == {"hosts"}
    assert not (run_dir.parent / "latest").exists()


REFUSED = {
    "no run id": ({"run_dir": "/tmp/evidence/latest"}, "must be a run id"),
    "hosts as a dict": ({"inventory_hosts": {"a": 1}}, "inventory_hosts"),
    "excluded as a list": ({"excluded": ["a"]}, "excluded"),
    "exclusion without a reason": ({"excluded": {"printer": "", "plotter": None}}, "plotter, printer"),
    "exclusion with a blank reason": ({"excluded": {"printer": "  "}}, "printer"),
    "roles of an unknown name": ({"roles": {"ghost": ["no_such_role"]}}, "no_such_role"),
    "unknown argument": ({"exclude": {}}, "exclude"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_bad_arguments_are_refused_before_anything_is_written(run_dir, name):
    args, said = REFUSED[name]
    with pytest.raises(AnsibleError, match=said):
        act(**{"run_dir": run_dir, **args})
    assert {path.name for path in run_dir.iterdir()} == {"hosts"}


def test_unreadable_register_is_refused(run_dir, monkeypatch, tmp_path):
    monkeypatch.setattr(policy, "ROOT", tmp_path)
    with pytest.raises(AnsibleActionFail, match="policy cannot be read"):
        act(run_dir)


def test_interrupted_write_leaves_the_old_file_whole(run_dir, monkeypatch):
    act(run_dir)
    before = {path: path.read_bytes() for path in run_dir.glob("*.*")}
    (run_dir / "hosts" / "records-1.json").write_text(json.dumps(record("records-1")), encoding="utf-8")
    monkeypatch.setattr(evidence_report.os, "fsync", mock.Mock(side_effect=OSError(28, "No space left on device")))
    with pytest.raises(AnsibleActionFail, match="No space left"):
        act(run_dir)
    assert {path: path.read_bytes() for path in run_dir.glob("*.*")} == before


def test_directory_named_latest_is_not_replaced(run_dir):
    (run_dir.parent / "latest").mkdir()
    with pytest.raises(AnsibleActionFail, match="could not be written"):
        act(run_dir)
    assert (run_dir.parent / "latest").is_dir() and not list(run_dir.parent.glob(".latest*"))


def test_host_name_cannot_lead_out_of_the_run(run_dir):
    hostile = record("../../../../tmp/evil")
    (run_dir / "hosts" / "evil.json").write_text(json.dumps(hostile), encoding="utf-8")
    before = set(run_dir.parent.rglob("*"))
    act(run_dir)
    made = {path.name for path in set(run_dir.parent.rglob("*")) - before}
    assert made == {"run.json", "controls.csv", "report.html", "latest"}
