# SPDX-License-Identifier: GPL-3.0-or-later
"""The posture module as Ansible calls it: it says what it saw, what it could not see, and refuses what it does not know."""

from __future__ import annotations

import json
import os

import pytest
from ansible.module_utils.testing import patch_module_args
from ansible_collections.bulwark.hardening.plugins.module_utils.posture import common
from ansible_collections.bulwark.hardening.plugins.modules import posture


def call(capsys, *collectors: str) -> dict:
    """Run the module and return its result."""
    with patch_module_args({"collectors": list(collectors)}), pytest.raises(SystemExit):
        posture.main()
    return json.loads(capsys.readouterr().out)


def test_unknown_collector(capsys):
    """A collector nobody knows is refused by name, with those that are known."""
    result = call(capsys, "session", "sesion")
    assert result["failed"]
    assert "collectors = ['sesion']: unknown" in result["msg"]
    assert "'session'" in result["msg"]


def test_what_cannot_be_seen_is_said(capsys, monkeypatch):
    """A collector that cannot look, and one that breaks, end up under errors; the others still report."""

    def cannot():
        raise common.CannotObserve("sshd is not installed")

    for name, collect in {"a": cannot, "b": lambda: 1 / 0, "c": lambda: {"seen": True}}.items():
        monkeypatch.setitem(posture.COLLECTORS, name, collect)
    result = call(capsys, "a", "b", "c")
    assert result["posture"] == {"c": {"seen": True}}
    assert result["errors"] == {"a": "sshd is not installed", "b": "ZeroDivisionError: division by zero"}
    assert not result["changed"]


def test_identity_names_the_host_without_its_machine_id(capsys, monkeypatch):
    """The machine id appears only as a digest."""
    monkeypatch.setitem(posture.COLLECTORS, "c", dict)
    texts = {"/etc/os-release": 'ID=debian\nVERSION_ID="12"\n', "/etc/machine-id": "0123456789abcdef\n"}
    monkeypatch.setattr(posture, "read", texts.__getitem__)
    result = call(capsys, "c")
    assert result["identity"]["os_id"] == "debian"
    assert result["identity"]["os_version"] == "12"
    assert result["identity"]["hostname"] == os.uname().nodename
    assert len(result["identity"]["machine_id_sha256"]) == 64
    assert "0123456789abcdef" not in json.dumps(result)


def test_every_role_has_a_collector():
    """Each role's controls name a collector that exists."""
    from ansible_collections.bulwark.hardening.plugins.plugin_utils.policy import all_roles, controls_of

    assert {control["posture"] for role in all_roles() for control in controls_of(role)} <= set(posture.COLLECTORS)


@pytest.mark.parametrize(
    ("argv", "said"),
    [(["no-such-program"], "not installed"), (["false"], "exit 1"), (["sleep", "5"], "timed out"), (["/etc/passwd"], "denied")],
)
def test_run_says_why(argv, said):
    """A command that is missing, fails, hangs or cannot be run raises with its reason."""
    with pytest.raises(common.CannotObserve, match=said):
        common.run(argv, timeout=0.5)


def test_read_says_why(tmp_path):
    """A file that cannot be read raises with its path."""
    with pytest.raises(common.CannotObserve, match="missing: No such file"):
        common.read(str(tmp_path / "missing"))
