# SPDX-License-Identifier: GPL-3.0-or-later
"""What the collectors of the VPN make of files and commands."""

from __future__ import annotations

import json
import time
from pathlib import Path

import jinja2
import pytest
import yaml
from ansible_collections.bulwark.hardening.plugins.module_utils import vpn
from ansible_collections.bulwark.hardening.plugins.module_utils.posture import vpn_client, vpn_gateway
from ansible_collections.bulwark.hardening.plugins.module_utils.posture.common import CannotObserve

ROOT = Path(__file__).resolve().parents[5]


def test_configuration(tmp_path, monkeypatch):
    monkeypatch.setattr(vpn_gateway, "CONFIG", str(tmp_path / "main.conf"))
    (tmp_path / "main.conf").write_text(
        '# a comment\n; another\n  data-ciphers AES-256-GCM # trailing\n--verb 3\npush "route 10.1.0.0 255.255.0.0"\n'
        "<ca>\nverb 9\n</ca>\nconfig more.conf\n"
    )
    (tmp_path / "more.conf").write_text("data-ciphers BF-CBC\nduplicate-cn\npush 'redirect-gateway def1'\n")
    directives, pushed = vpn_gateway.configuration(str(tmp_path / "main.conf"))
    assert directives == {"data-ciphers": ["AES-256-GCM", "BF-CBC"], "verb": ["3"], "duplicate-cn": [""]}
    assert pushed == ["route 10.1.0.0 255.255.0.0", "redirect-gateway def1"]


def test_a_configuration_that_cannot_be_read_is_an_error(tmp_path):
    (tmp_path / "main.conf").write_text('push "never closed\n')
    with pytest.raises(CannotObserve):
        vpn_gateway.configuration(str(tmp_path / "main.conf"))


def test_no_configuration_is_nothing(tmp_path):
    assert vpn_gateway.configuration(str(tmp_path / "none.conf")) == ({}, [])


@pytest.mark.parametrize(
    ("unit", "worst"),
    [
        ({"ActiveState": "active", "WatchdogUSec": "1min"}, 1800),
        ({"ActiveState": "active", "WatchdogUSec": "0"}, 0),
        ({"ActiveState": "failed", "WatchdogUSec": "1min"}, 0),
    ],
)
def test_worst_case_of_what_runs(tmp_path, monkeypatch, unit, worst):
    state = tmp_path / "state.json"
    monkeypatch.setattr(vpn_gateway, "STATE", str(state))
    state.write_text(json.dumps({"looked_at": time.time() - 4, "end_after": 1720, "poll": 10, "kill": 10, "attached": True}))
    found = vpn_gateway.watcher(unit)
    assert found["worst_case_seconds"] == worst
    assert (found["looked_seconds_ago"] is not None) == (unit["ActiveState"] == "active")


@pytest.mark.parametrize(("ago", "holds"), [(0.0, True), (29.9, True), (31.0, False), (None, False)])
def test_when_the_watcher_looked(ago, holds):
    """A watcher that looked this very moment looked; one that never did, did not."""
    controls = yaml.safe_load((ROOT / "roles/vpn_gateway/meta/controls.yml").read_text(encoding="utf-8"))["controls"]
    [idle] = [control for control in controls if control["id"] == "vpn_gateway.idle"]
    [condition] = [text for text in idle["expect"] if "looked_seconds_ago" in text]
    posture = {"vpn_gateway": {"watcher": {"looked_seconds_ago": ago, "poll_seconds": 10}}}
    assert jinja2.Environment().compile_expression(condition)(posture=posture) is holds


def test_a_watcher_that_never_looked(tmp_path, monkeypatch):
    monkeypatch.setattr(vpn_gateway, "STATE", str(tmp_path / "none"))
    assert vpn_gateway.watcher({"ActiveState": "active", "WatchdogUSec": "1min"})["worst_case_seconds"] == 0


def test_users(tmp_path, monkeypatch):
    monkeypatch.setattr(vpn_gateway, "DIRECTORY", str(tmp_path))
    (tmp_path / "users").mkdir()
    (tmp_path / "users" / ".bulwark").write_text("# nobody\n")
    (tmp_path / "users" / "alice").write_text('# managed\nifconfig-push 10.99.0.10 255.255.255.0\npush "route 0.0.0.0 0.0.0.0"\n')
    assert vpn_gateway.users() == [{"name": "alice", "address": "10.99.0.10", "address6": "", "more": ["push"]}]


@pytest.mark.parametrize(
    ("login", "expected"),
    [("alice\n", ""), ("alice\npush\n", "push"), ("alice\nopen sesame\n", "something"), ("alice\npush\nmore\n", "something")],
)
def test_no_password_is_returned(tmp_path, monkeypatch, login, expected):
    monkeypatch.setattr(vpn_client, "CONFIG", str(tmp_path / "client.conf"))
    (tmp_path / "client.conf").write_text("auth-user-pass login\n")
    (tmp_path / "login").write_text(login)
    assert vpn_client.password() == expected


def test_the_docs_say_what_is_computed():
    plan = vpn.idle_plan(1800)
    text = (ROOT / "roles/vpn_gateway/docs.md").read_text()
    assert f"after {plan['end_after']} s, at worst {plan['worst_case']} s" in text
    assert f"looks every {plan['poll']} seconds" in text
    assert f"{plan['watchdog']} s by which a look may be late + {plan['kill']} s" in " ".join(text.split())
