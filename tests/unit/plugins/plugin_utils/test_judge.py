# SPDX-License-Identifier: GPL-3.0-or-later
"""Unit tests of the judgement: no observation is ever a pass, and every status says why."""

from __future__ import annotations

import datetime

import jinja2
import pytest
from ansible_collections.bulwark.hardening.plugins.plugin_utils.judge import clock_of, judge, look_up, names_in, tally, unjudged

TODAY = datetime.date(2026, 11, 21)
CONTROL = {
    "id": "demo.one",
    "title": "One",
    "statements": ["WTH-7.7-2"],
    "profiles": ["server"],
    "posture": "demo",
    "expect": ["posture.demo.value <= demo_limit"],
    "proof": "molecule/demo/tests/test_demo.py::test_one",
}
EXCEPTION = {
    "control": "demo.one",
    "approver": "security officer",
    "approver_role": "security_officer",
    "reason": "old device",
    "compensating": "locked room",
    "ticket": "T-1",
    "expires": "2026-12-31",
}


def evaluate_with(variables):
    """Return a strict evaluator of conditions over plain values."""
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined)
    return lambda condition: environment.compile_expression(condition, undefined_to_none=False)(**variables)


def judged(posture, errors=None, control=None, profile="server", exceptions=(), host="h", **variables):
    """Judge the control with a limit of 10 unless told otherwise."""
    control = control or CONTROL
    variables = {"demo_limit": 10, **variables}
    return judge(
        control, posture, errors or {}, variables, profile,
        evaluate_with({**variables, "posture": posture}), exceptions, host, TODAY,
    )  # fmt: skip


def test_pass_records_what_was_seen():
    """A pass names the value seen and the variable it was compared with."""
    entry = judged({"demo": {"value": 5}})
    assert entry["status"] == "pass"
    assert entry["observed"] == {"demo.value": 5}
    assert entry["variables"] == {"demo_limit": 10}
    assert entry["why"] == ""


def test_fail_says_why():
    """A failure names the condition and what was seen."""
    entry = judged({"demo": {"value": 50}})
    assert entry["status"] == "fail"
    assert "posture.demo.value <= demo_limit is false" in entry["why"]
    assert "demo.value = 50" in entry["why"]


@pytest.mark.parametrize(
    ("condition", "said"),
    [
        ("posture.demo.names | reject('eq', 'ann') | list | length == 0", "found: ['bob']"),
        ("posture.demo.names | list | length == 0 or false", "demo.names = ['ann', 'bob']"),
    ],
)
def test_fail_names_the_culprit(condition, said):
    """Where a list should be empty, what is on it is named, not everything that was looked at."""
    posture = {"demo": {"names": ["ann", "bob"]}}
    evaluate = evaluate_with({"posture": posture})
    entry = judge({**CONTROL, "expect": [condition]}, posture, {}, {}, "server", evaluate, show=evaluate)
    assert entry["status"] == "fail"
    assert said in entry["why"]


@pytest.mark.parametrize(
    ("posture", "errors", "said"),
    [
        ({}, {"demo": "sshd is not installed"}, "sshd is not installed"),
        ({}, {}, "returned nothing"),
        ({"demo": {}}, {}, "Could not be observed"),
        ({"demo": {"unobserved": {"value": "no permission"}}}, {}, "value: no permission"),
        ({"demo": {"value": "text"}}, {}, "Could not be observed"),
        ({"demo": {"value": None}}, {}, "Could not be observed"),
    ],
)
def test_could_not_look_is_an_error(posture, errors, said):
    """Whatever could not be looked at is an error with its reason."""
    entry = judged(posture, errors)
    assert entry["status"] == "error"
    assert said in entry["why"]


@pytest.mark.parametrize("result", [1, "yes", [], None])
def test_only_true_and_false_count(result):
    """A condition that is merely truthy is an error: it was not the question that was meant."""
    entry = judge(CONTROL, {"demo": {"value": 1}}, {}, {}, "server", lambda _condition: result)
    assert entry["status"] == "error"


def test_not_applicable_has_its_reason():
    """A control whose circumstances do not hold says so; one whose circumstances are unknown is an error."""
    control = {**CONTROL, "not_applicable": [{"when": "not posture.demo.settable", "reason": "a container"}]}
    assert judged({"demo": {"value": 1, "settable": False}}, control=control)["why"] == "a container"
    assert judged({"demo": {"value": 1, "settable": True}}, control=control)["status"] == "pass"
    assert judged({"demo": {"value": 1}}, control=control)["status"] == "error"


def test_other_profiles():
    """A control for servers does not apply to a workstation."""
    entry = judged({"demo": {"value": 50}}, profile="workstation")
    assert entry["status"] == "not_applicable"
    assert "server" in entry["why"]


def test_exception_counts_until_it_expires():
    """A complete exception turns a failure into an exception; expired or incomplete it changes only the explanation."""
    bad = {"demo": {"value": 50}}
    assert judged(bad, exceptions=[EXCEPTION])["status"] == "exception"
    assert judged(bad, exceptions=[{**EXCEPTION, "hosts": ["other"]}])["status"] == "fail"
    for broken in ({**EXCEPTION, "expires": "2026-11-20"}, {**EXCEPTION, "approver": ""}, {**EXCEPTION, "expires": "soon"}):
        entry = judged(bad, exceptions=[broken])
        assert entry["status"] == "fail"
        assert "exception for demo.one" in entry["why"]


def test_exception_never_hides_an_error():
    """An approved exception is for a control not met, not for one that was not looked at."""
    assert judged({}, {"demo": "gone"}, exceptions=[EXCEPTION])["status"] == "error"


def test_unreachable():
    """A host that was not reached has every control as an error."""
    assert unjudged(CONTROL, "Unreachable")["status"] == "error"


def test_names_in():
    """Attribute and item access both count as a path; filters and tests are not variables."""
    assert names_in("posture.a.b['c'] | int <= x_y and posture.a.d is defined and z in posture.a.l") == (
        ["a.b.c", "a.d", "a.l"],
        ["x_y", "z"],
    )


def test_methods_are_not_observations():
    """What a method is called on was looked at, and what it is given."""
    assert names_in("posture.a.texts[0].count(x_y.split() | join(' ')) == 1") == (["a.texts.0"], ["x_y"])


def test_look_up():
    """Steps are keys or list indexes."""
    posture = {"a": {"b": [{"c": 1}], "items": 3}}
    assert look_up(posture, "a.b.0.c") == 1
    assert look_up(posture, "a.items") == 3
    for nothing in ("a.z", "a.b.1", "a.items.real"):
        with pytest.raises(KeyError):
            look_up(posture, nothing)


def test_tally():
    """Errors count as not passed; exceptions only in the second score; nothing judged is no score at all."""
    entries = [{"status": s} for s in ("pass", "fail", "error", "exception", "not_applicable")]
    counts, score = tally(entries)
    assert counts == {"pass": 1, "fail": 1, "error": 1, "not_applicable": 1, "exception": 1}
    assert score == {"before_exceptions": 0.25, "after_exceptions": 0.5}
    assert tally([])[1] == {"before_exceptions": None, "after_exceptions": None}


TRACKING = {"stratum": 4, "offset_seconds": 0.002, "uncertainty_seconds": 0.03, "leap": "Normal", "source": "a"}


def test_clock_of_a_host_is_told():
    assert clock_of({"time_sync": {"clock_settable": True, "tracking": TRACKING}}, "2026-11-21T08:15:09Z") == {
        "offset_seconds": 0.002, "uncertainty_seconds": 0.03, "source": "a", "synchronised": True, "at": "2026-11-21T08:15:09Z",
    }  # fmt: skip


@pytest.mark.parametrize("changed", [{"leap": "Not synchronised"}, {"source": ""}])
def test_clock_that_follows_nobody_has_no_offset(changed):
    """What chronyd last thought of the clock says nothing once it follows nobody."""
    clock = clock_of({"time_sync": {"clock_settable": True, "tracking": {**TRACKING, **changed}}}, "now")
    assert clock == {"offset_seconds": None, "uncertainty_seconds": None, "source": "", "synchronised": False, "at": "now"}


def test_clock_without_a_running_daemon_is_not_synchronised():
    stopped = {"clock_settable": True, "unobserved": {"tracking": "chronyd does not run"}}
    assert clock_of({"time_sync": stopped}, "")["synchronised"] is False


@pytest.mark.parametrize("posture", [{}, {"time_sync": None}, {"time_sync": {"clock_settable": False, "tracking": TRACKING}}])
def test_clock_that_nobody_looked_at_or_that_is_the_machines(posture):
    assert clock_of(posture, "") is None
