# Copyright: (c) 2026, Bulwark contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Coming in anew, on the controller, with a host that is made up."""

from __future__ import annotations

import types

import pytest
from ansible.errors import AnsibleConnectionFailure
from ansible_collections.bulwark.hardening.plugins.action import change_guard as module

OLD, NEW = "-o ControlPersist=120s", "-o ControlMaster=no -o ControlPath=none -o ControlPersist=120s"
NEEDED = {"failed": True, "needs_new_connection": True, "guard": "armed", "seconds_left": 500, "msg": "come in anew"}
GONE = AnsibleConnectionFailure("Connection timed out")


class Connection:
    """What the plugin asks of ssh's connection plugin."""

    transport = "ssh"

    def __init__(self) -> None:
        self.args, self.resets = OLD, 0

    def get_option(self, name: str) -> str:
        assert name == "ssh_args"
        return self.args

    def set_option(self, name: str, value: str) -> None:
        assert name == "ssh_args"
        self.args = value

    def reset(self) -> None:
        self.resets += 1


@pytest.fixture
def play(monkeypatch):
    """Return a function that runs the plugin against the host's answers, one a call; it returns (result, calls, connection)."""

    def run(state: str, *answers, **variables):
        connection, calls, waiting = Connection(), [], list(answers)

        def answer(module_name, module_args, task_vars):
            calls.append((module_args, connection.args))
            said = waiting.pop(0) if len(waiting) > 1 else waiting[0]
            if isinstance(said, Exception):
                raise said
            return dict(said)

        plugin = module.ActionModule.__new__(module.ActionModule)
        plugin._task = types.SimpleNamespace(args={"state": state})
        plugin._connection = connection
        plugin._templar = types.SimpleNamespace(template=lambda value: value)
        monkeypatch.setattr(module.ActionBase, "run", lambda self, tmp=None, task_vars=None: {})
        monkeypatch.setattr(plugin, "_execute_module", answer, raising=False)
        clock = iter(range(0, 10000, 10))
        monkeypatch.setattr(module.time, "monotonic", lambda: next(clock))
        monkeypatch.setattr(module.time, "sleep", lambda seconds: None)
        return plugin.run(task_vars=variables), calls, connection

    return run


def test_nothing_to_prove_takes_one_call(play):
    result, calls, connection = play("confirmed", {"guard": "idle", "changed": False})
    assert (result["guard"], len(calls), connection.resets) == ("idle", 1, 0)


def test_a_confirmation_comes_beside_the_old_connection_and_then_replaces_it(play):
    result, calls, connection = play("confirmed", NEEDED, GONE, {"guard": "idle", "changed": False})
    assert "failed" not in result and "needs_new_connection" not in result
    assert [args for _args, args in calls] == [OLD, NEW, NEW]
    assert (connection.args, connection.resets) == (OLD, 1)


def test_where_nobody_comes_in_the_old_connection_takes_it_back(play):
    said = {"guard": "idle", "changed": True, "report": {"at": "then"}}
    result, calls, connection = play("confirmed", NEEDED, *[GONE] * 4, said)
    assert calls[-1] == ({"state": "rolled_back"}, OLD)
    assert result["failed"] and result["rolled_back_at_once"]
    assert "Connection timed out" in result["msg"] and "taken back at once" in result["msg"]
    assert connection.resets == 0


def test_where_the_old_one_is_gone_too_it_says_when_the_host_comes_back(play):
    result, _calls, _connection = play("confirmed", NEEDED, GONE)
    assert result["failed"] and not result["rolled_back_at_once"]
    assert 0 < result["seconds_left"] < 500
    assert f"by itself in {result['seconds_left']} seconds" in result["msg"]


def test_in_but_not_root_is_not_in(play):
    no_sudo = {"failed": True, "module_stderr": "sudo: PAM account management error"}
    result, _calls, _connection = play("confirmed", NEEDED, no_sudo)
    assert result["failed"] and "PAM account management error" in result["msg"]


def test_arming_anew_changes_nothing_if_nobody_comes_in(play):
    result, calls, _connection = play("armed", NEEDED, GONE)
    assert result["failed"] and "nothing was changed" in result["msg"]
    assert {args["state"] for args, _ssh in calls} == {"armed"}


def test_the_window_is_the_hosts_variable(play):
    _result, calls, _connection = play("armed", {"guard": "armed"}, bulwark_guard_window_seconds=90)
    assert calls[0][0] == {"state": "armed", "window_seconds": 90}
