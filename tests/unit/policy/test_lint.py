# Copyright: (c) 2026, Bulwark contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Every rule of the lint is seen to catch what it is for: each case breaks a sound house in one way."""

from __future__ import annotations

import functools
import inspect
import itertools
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import yaml

import policy

from .conftest import FILES

ROOT = Path(__file__).resolve().parents[3]
REGISTER, CONFLICTS, VALUES = "policy/register.yml", "policy/conflicts.yml", "policy/values.yml"
NOT_YET, CROSSWALK, ROOMS = "policy/not_yet.yml", "policy/crosswalk.yml", "policy/rooms.yml"
PARAMETERS, DEFAULTS = "policy/parameters/door.yml", "roles/door/defaults/main.yml"
SPECS, CONTROLS = "roles/door/meta/argument_specs.yml", "roles/door/meta/controls.yml"
TASKS, SABOTAGE, PROOFS = "roles/door/tasks/main.yml", "molecule/door/sabotage.yml", "molecule/door/tests/test_door.py"


def statement(number, **changes):
    """Return a change of one statement of the register; None takes a key away."""
    return lambda data: change(data["statements"][number - 1], changes)


def control(**changes):
    """Return a change of the only control."""
    return lambda data: change(data["controls"][0], changes)


def parameter(name, **changes):
    """Return a change of one parameter."""
    return lambda data: change(data["parameters"][name], changes)


def change(entry, changes):
    """Set the keys of a mapping in place; None takes one away. A dash in a key is written as two underscores."""
    for key, value in changes.items():
        if value is None:
            entry.pop(key.replace("__", "-"), None)
        else:
            entry[key.replace("__", "-")] = value


PART = {"source": "site", "why": "w"}

# what is broken, file it is broken in, how; then the file and id named, and a part of what is said
CASES = [
    # the register
    ("no statements", REGISTER, lambda d: d.update(statements=[]), REGISTER, "-", "'statements' is empty"),
    ("class without description", REGISTER, lambda d: d["classes"].pop("verify"), REGISTER, "verify", "no description"),
    ("id twice", REGISTER, statement(2, id="ABC-1"), REGISTER, "ABC-1", "used twice"),
    (
        "statement is no mapping",
        REGISTER,
        lambda d: d["statements"].append("x"),
        REGISTER,
        "-",
        "'statements[4]' is 'x', not a mapping",
    ),
    ("requirement missing", REGISTER, statement(1, requirement=None), REGISTER, "ABC-1", "'requirement' is missing"),
    ("requirement empty", REGISTER, statement(1, requirement=""), REGISTER, "ABC-1", "'requirement' is empty"),
    ("requirement is a number", REGISTER, statement(1, requirement=5), REGISTER, "ABC-1", "'requirement' is 5, not text"),
    ("unknown key", REGISTER, statement(1, colour="red"), REGISTER, "ABC-1", "unknown key 'colour'"),
    ("line missing", REGISTER, lambda d: d["statements"][0]["source"].pop("line"), REGISTER, "ABC-1", "'source.line' is missing"),
    ("other policy", REGISTER, lambda d: d["statements"][0]["source"].update(policy="X"), REGISTER, "ABC-1", "policy X"),
    ("unknown conflict", REGISTER, statement(2, conflicts=["CF-09"]), REGISTER, "ABC-2", "CF-09 is not in"),
    ("unknown class", REGISTER, statement(2, **{"class": "maybe"}), REGISTER, "ABC-2", "class 'maybe' is unknown"),
    ("no reason", REGISTER, statement(4, reason=None), REGISTER, "ABC-4", "out of scope without a reason"),
    ("out of scope, in a room", REGISTER, statement(4, room="door"), REGISTER, "ABC-4", "and yet in a room"),
    ("reason in scope", REGISTER, statement(2, reason="why"), REGISTER, "ABC-2", "only for what is out of scope"),
    ("no way to show", REGISTER, statement(2, shown_by=None), REGISTER, "ABC-2", "'shown_by' is missing"),
    ("unknown room", REGISTER, statement(3, room="attic"), REGISTER, "ABC-3", "room 'attic' is not in"),
    ("unknown platform", REGISTER, statement(3, platforms=["moon"]), REGISTER, "ABC-3", "platform 'moon' is unknown"),
    # mappings
    ("unknown framework", REGISTER, statement(1, mappings={"iso": {"own": ["A"]}}), REGISTER, "ABC-1", "mapping 'iso'"),
    ("no provenance", REGISTER, statement(1, mappings={"hipaa": ["164.312(d)"]}), REGISTER, "ABC-1", "not a mapping"),
    ("odd provenance", REGISTER, statement(1, mappings={"hitrust": {"sure": ["01.a"]}}), REGISTER, "ABC-1", "'sure' is not"),
    ("no title", REGISTER, statement(1, mappings={"hitrust": {"own": ["09.z"]}}), REGISTER, "ABC-1", "09.z has no title"),
    ("named by nobody", REGISTER, statement(1, mappings={"hitrust": {"named": ["01.a"]}}), REGISTER, "ABC-1", "says otherwise"),
    ("own though named", REGISTER, statement(1, mappings={"hipaa": {"own": ["164.312(d)"]}}), REGISTER, "ABC-1", "otherwise"),
    ("identifier twice", REGISTER, statement(1, mappings={"hitrust": {"own": ["01.a"] * 2}}), REGISTER, "ABC-1", "there twice"),
    (
        "confirmed without citation",
        REGISTER,
        statement(1, mappings={"nist_800_53r5": {"sp800_66r2": ["AC-1"]}}),
        REGISTER,
        "ABC-1",
        "confirms by HIPAA citation",
    ),
    # conflicts and values
    ("conflict twice", CONFLICTS, lambda d: d["conflicts"].append(d["conflicts"][0]), CONFLICTS, "CF-01", "used twice"),
    ("no resolution", CONFLICTS, lambda d: d["conflicts"][0].pop("resolution"), CONFLICTS, "CF-01", "'resolution' is missing"),
    ("unknown member", CONFLICTS, lambda d: d["conflicts"][0]["members"].append("ABC-9"), CONFLICTS, "CF-01", "ABC-9 is not"),
    ("member knows nothing", CONFLICTS, lambda d: d["conflicts"][0]["members"].append("ABC-2"), CONFLICTS, "CF-01", "not name"),
    ("not a member", CONFLICTS, lambda d: d["conflicts"][0].update(members=["ABC-1"]), CONFLICTS, "CF-01", "is no member"),
    (
        "value without rule",
        VALUES,
        lambda d: d["values"]["door_seconds"].pop("rule"),
        VALUES,
        "door_seconds",
        "'rule' is missing",
    ),
    ("odd rule", VALUES, lambda d: d["values"]["door_seconds"].update(rule="near"), VALUES, "door_seconds", "rule 'near'"),
    ("value from nowhere", VALUES, lambda d: d["values"]["door_seconds"].update({"from": ["X"]}), VALUES, "door_seconds", "X is"),
    ("policy and site", VALUES, lambda d: d["site_decides"].append("door_seconds"), VALUES, "door_seconds", "either a policy"),
    # what is not there yet
    ("dropped silently", NOT_YET, lambda d: d["not_yet"].clear(), REGISTER, "ABC-2", "neither a control nor an entry"),
    ("unknown room waits", NOT_YET, lambda d: d["not_yet"].update(attic=["ABC-2"]), NOT_YET, "attic", "not in policy/rooms"),
    ("unknown waits", NOT_YET, lambda d: d["not_yet"]["window"].append("ABC-9"), NOT_YET, "ABC-9", "not in the register"),
    ("people wait", NOT_YET, lambda d: d["not_yet"].update(door=["ABC-3"]), NOT_YET, "ABC-3", "needs no entry"),
    ("waits elsewhere", NOT_YET, lambda d: d.update(not_yet={"door": ["ABC-2"]}), NOT_YET, "ABC-2", "the register says window"),
    ("waits twice", NOT_YET, lambda d: d["not_yet"]["window"].append("ABC-2"), NOT_YET, "ABC-2", "there twice"),
    ("stale", NOT_YET, lambda d: d["not_yet"].update(door=["ABC-1"]), NOT_YET, "ABC-1", "stale: door.shuts satisfies it"),
    ("partly nothing", NOT_YET, lambda d: d["partly"].update({"ABC-1": {"room": "door"}}), NOT_YET, "ABC-1", "'missing' is"),
    (
        "partly unknown",
        NOT_YET,
        lambda d: d["partly"].update({"X": {"room": "door", "missing": "m"}}),
        NOT_YET,
        "X",
        "not in the register",
    ),
    (
        "partly without control",
        NOT_YET,
        lambda d: d["partly"].update({"ABC-2": {"room": "window", "missing": "m"}}),
        NOT_YET,
        "ABC-2",
        "has no control at all",
    ),
    (
        "partly in no room",
        NOT_YET,
        lambda d: d["partly"].update({"ABC-1": {"room": "attic", "missing": "m"}}),
        NOT_YET,
        "ABC-1",
        "room 'attic'",
    ),
    ("only a neighbour", CONTROLS, control(statements=["ABC-1", "ABC-2"]), NOT_YET, "ABC-2", "say under partly what window"),
    (
        "profile left out",
        REGISTER,
        statement(1, platforms=["server", "gateway", "macos"]),
        NOT_YET,
        "ABC-1",
        "applies to gateway;",
    ),
    # roles and controls
    ("role is no room", ROOMS, lambda d: d["rooms"].pop("door"), "roles/door", "door", "not a room"),
    ("no controls", CONTROLS, lambda d: d["controls"].clear(), CONTROLS, "-", "'controls' is empty"),
    (
        "control is no mapping",
        CONTROLS,
        lambda d: d["controls"].append("x"),
        CONTROLS,
        "-",
        "'controls[1]' is 'x', not a mapping",
    ),
    ("control twice", CONTROLS, lambda d: d["controls"].append(d["controls"][0]), CONTROLS, "door.shuts", "used twice"),
    ("other prefix", CONTROLS, control(id="gate.shuts"), CONTROLS, "gate.shuts", "must be door.<what>"),
    ("unknown statement", CONTROLS, control(statements=["ABC-9"]), CONTROLS, "door.shuts", "ABC-9 is not in the register"),
    ("claims the impossible", CONTROLS, control(statements=["ABC-1", "ABC-4"]), CONTROLS, "door.shuts", "ABC-4 is out of scope"),
    ("satisfies nothing", CONTROLS, control(statements=[]), CONTROLS, "door.shuts", "'statements' is empty"),
    ("no profiles", CONTROLS, control(profiles=None), CONTROLS, "door.shuts", "'profiles' is missing"),
    ("unknown profile", CONTROLS, control(profiles=["moon"]), CONTROLS, "door.shuts", "profile 'moon' is unknown"),
    ("no posture", CONTROLS, control(posture=None), CONTROLS, "door.shuts", "'posture' is missing"),
    ("no expectation", CONTROLS, control(expect=None), CONTROLS, "door.shuts", "'expect' is missing"),
    ("no source", CONTROLS, control(source=None), CONTROLS, "door.shuts", "'source' is missing"),
    (
        "excuse without reason",
        CONTROLS,
        control(not_applicable=[{"when": "true"}]),
        CONTROLS,
        "door.shuts",
        "[0].reason' is missing",
    ),
    ("unregistered collector", CONTROLS, control(posture="gate"), CONTROLS, "door.shuts", "'gate' is not registered"),
    ("does not parse", CONTROLS, control(expect=["posture.door.x <"]), CONTROLS, "door.shuts", "does not parse"),
    (
        "an observed 0 is taken for nothing",
        CONTROLS,
        control(expect=["posture.door.age | default(999, true) < 5"]),
        CONTROLS,
        "door.shuts",
        "default(999, true) takes an observed 0",
    ),
    ("foreign posture", CONTROLS, control(expect=["posture.gate.x"]), CONTROLS, "door.shuts", "looks at posture.gate.x"),
    ("foreign variable", CONTROLS, control(expect=["posture.door.x < y"]), CONTROLS, "door.shuts", "uses y, which is neither"),
    (
        "foreign variable in an excuse",
        CONTROLS,
        control(not_applicable=[{"when": "ansible_facts.x", "reason": "r"}]),
        CONTROLS,
        "door.shuts",
        "uses ansible_facts",
    ),
    ("cannot fail", CONTROLS, control(expect=["true"], not_applicable=None), CONTROLS, "door.shuts", "can never fail"),
    # proofs
    ("no proof", CONTROLS, control(proof=None), CONTROLS, "door.shuts", "'proof' is missing"),
    ("proof without function", CONTROLS, control(proof=PROOFS), CONTROLS, "door.shuts", "must be <file>::<test function>"),
    ("proof elsewhere", CONTROLS, control(proof="tests/unit/test_x.py::test_y"), CONTROLS, "door.shuts", "is not in molecule/"),
    (
        "proof file is missing",
        CONTROLS,
        control(proof="molecule/door/tests/test_gone.py::test_x"),
        CONTROLS,
        "door.shuts",
        "no such file",
    ),
    ("proof not collected", CONTROLS, control(proof=f"{PROOFS}::helper"), CONTROLS, "door.shuts", "not collected by pytest"),
    (
        "one of two proofs",
        CONTROLS,
        control(proof=[f"{PROOFS}::test_door_shuts", f"{PROOFS}::x"]),
        CONTROLS,
        "door.shuts",
        "::x is",
    ),
    # sabotage
    ("not sabotaged", SABOTAGE, lambda d: d["sabotage"][0].update(control="door.x"), SABOTAGE, "door.shuts", "no sabotage of"),
    ("sabotage of nothing", SABOTAGE, lambda d: d["sabotage"][0].update(control="a.b"), SABOTAGE, "a.b", "no such control"),
    ("never mended", SABOTAGE, lambda d: d["sabotage"][0].update(mend=""), SABOTAGE, "door.shuts", "'mend' is empty"),
    # variables
    ("other prefix of variable", DEFAULTS, lambda d: d.update(gate=1), DEFAULTS, "gate", "starts with door_"),
    ("undocumented", DEFAULTS, lambda d: d.update(door_x=1), SPECS, "door_x", "in defaults/main.yml but not here"),
    ("unbounded", DEFAULTS, lambda d: d.update(door_x=1), PARAMETERS, "door_x", "in defaults/main.yml but not here"),
    ("no default", DEFAULTS, lambda d: d.pop("door_seconds"), SPECS, "door_seconds", "has no default"),
    ("cannot be taken back", DEFAULTS, lambda d: d.pop("door_state"), DEFAULTS, "door_state", "can be taken back"),
    (
        "spec without parameter",
        PARAMETERS,
        lambda d: d["parameters"].pop("door_guests"),
        PARAMETERS,
        "door_guests",
        "in argument_specs but not here",
    ),
    (
        "no description",
        SPECS,
        lambda d: d["argument_specs"]["main"]["options"]["door_seconds"].pop("description"),
        SPECS,
        "door_seconds",
        "'description' is missing",
    ),
    ("no such variable", PARAMETERS, lambda d: d["parameters"].update(door_x=PART), PARAMETERS, "door_x", "is not a variable"),
    (
        "no such part",
        PARAMETERS,
        lambda d: d["parameters"].update({"door_guests.age": PART}),
        PARAMETERS,
        "door_guests.age",
        "is not a variable",
    ),
    # parameters
    ("no why", PARAMETERS, parameter("door_seconds", why=None), PARAMETERS, "door_seconds", "'why' is missing"),
    ("odd source", PARAMETERS, parameter("door_seconds", source="me"), PARAMETERS, "door_seconds", "source 'me' is not one"),
    ("unknown origin", PARAMETERS, parameter("door_seconds", statements=["X"]), PARAMETERS, "door_seconds", "X is not in the"),
    ("unknown bound", PARAMETERS, parameter("door_seconds", limits={"about": 1}), PARAMETERS, "door_seconds", "'about' is"),
    (
        "policy, no statement",
        PARAMETERS,
        parameter("door_seconds", statements=None),
        PARAMETERS,
        "door_seconds",
        "no statement is",
    ),
    (
        "policy, no bound",
        PARAMETERS,
        parameter("door_seconds", bounds=None),
        PARAMETERS,
        "door_seconds",
        "no part of it has bounds or is required",
    ),
    (
        "site, with bounds",
        PARAMETERS,
        parameter("door_seconds", source="site"),
        PARAMETERS,
        "door_seconds",
        "goes under 'limits'",
    ),
    ("laxer", PARAMETERS, parameter("door_seconds", bounds={"at_most": 90}), PARAMETERS, "door_seconds", "at_most 90 disagrees"),
    (
        "stricter, called policy",
        PARAMETERS,
        parameter("door_seconds", bounds={"at_most": 9}),
        PARAMETERS,
        "door_seconds",
        "disagrees",
    ),
    ("wrong side", PARAMETERS, parameter("door_seconds", bounds={"at_least": 60}), PARAMETERS, "door_seconds", "the wrong side"),
    (
        "site's number dressed up as policy",
        PARAMETERS,
        parameter("door_guests", source="policy", statements=["ABC-2"], bounds={"max_items": 9, "at_most": 4}),
        PARAMETERS,
        "door_guests",
        "at_most 4 is called policy, but no statement named gives it",
    ),
    (
        "bound takes a number",
        PARAMETERS,
        parameter("door_guests", limits={"max_items": "9"}),
        PARAMETERS,
        "door_guests",
        "not a whole",
    ),
    (
        "broken pattern",
        PARAMETERS,
        parameter("door_guests", limits={"matches": "("}),
        PARAMETERS,
        "door_guests",
        "no regular expr",
    ),
    # defaults
    (
        "laxer default",
        DEFAULTS,
        lambda d: d.update(door_seconds=90),
        DEFAULTS,
        "door_seconds",
        "the default 90: must be at most 60",
    ),
    ("default of wrong type", DEFAULTS, lambda d: d.update(door_seconds="soon"), DEFAULTS, "door_seconds", "must be int"),
    (
        "default beyond a part's limit",
        DEFAULTS,
        lambda d: d.update(door_guests=[{"name": "annabella"}]),
        DEFAULTS,
        "door_guests[0].name",
        "at most 8 characters",
    ),
    # names
    ("short module", TASKS, lambda d: d[0].update(command="x"), TASKS, "-", "module 'command' needs its full name"),
    ("short module in a block", TASKS, lambda d: d[1]["block"][0].update(shell="x"), TASKS, "-", "module 'shell' needs"),
    ("short filter", TASKS, lambda d: d[0].update(vars={"x": "{{ 1 | policy_violations }}"}), TASKS, "-", "policy_violations?"),
    ("short filter in a condition", TASKS, lambda d: d[0].update(when="x | our_filter"), TASKS, "-", "filter 'our_filter'"),
    ("short test", TASKS, lambda d: d[0].update(when="x is our_test"), TASKS, "-", "test 'our_test' needs its full name"),
    ("broken template", TASKS, lambda d: d[0].update(when="x |"), TASKS, "-", "does not parse"),
    ("short role", "playbooks/site.yml", lambda d: d[0].update(roles=["door"]), "playbooks/site.yml", "-", "role 'door' needs"),
    (
        "short role included",
        TASKS,
        lambda d: d.append({"name": "x", "ansible.builtin.include_role": {"name": "door"}}),
        TASKS,
        "-",
        "role 'door' needs",
    ),
    (
        "short module in a play",
        "playbooks/site.yml",
        lambda d: d[0].update(tasks=[{"name": "x", "ping": None}]),
        "playbooks/site.yml",
        "-",
        "module 'ping' needs",
    ),
    (
        "short import",
        "playbooks/site.yml",
        lambda d: d.append({"name": "x", "import_playbook": "y.yml"}),
        "playbooks/site.yml",
        "-",
        "'import_playbook' needs",
    ),
]


def found(problems, file, subject, said):
    """Return the problems that name this file and id and say this."""
    return [p for p in problems if p.file == file and p.subject == subject and said in p.message]


def test_a_sound_house_has_no_problems(house):
    assert house.lint() == []


@pytest.mark.parametrize(("broken", "path", "how", "file", "subject", "said"), CASES, ids=[case[0] for case in CASES])
def test_what_is_broken_is_found(house, broken, path, how, file, subject, said):
    house.edit(path, how)
    assert found(house.lint(), file, subject, said), "\n".join(map(str, house.lint()))


def test_no_case_stands_there_twice():
    assert [name for name, count in Counter(case[0] for case in CASES).items() if count > 1] == []


@pytest.mark.parametrize(
    "path", [CONTROLS, SPECS, DEFAULTS, PARAMETERS, SABOTAGE, TASKS, "molecule/door/prepare.yml", REGISTER, ROOMS, VALUES]
)
def test_a_missing_file_is_found(house, path):
    (house.root / path).unlink()
    assert [p for p in house.lint() if p.file == path and "file is missing" in p.message]


@pytest.mark.parametrize(("text", "said"), [("a: [", "cannot be read"), ("- a\n", "the file is ['a'], not a mapping")])
def test_a_file_that_holds_something_else_is_found(house, text, said):
    house.write(CONTROLS, text)
    assert [p for p in house.lint() if p.file == CONTROLS and said in p.message]


def test_a_short_filter_in_a_template_file_is_found(house):
    house.write("roles/door/templates/a.j2", "{{ x | our_filter }}")
    house.write("roles/door/templates/b.j2", "{% if %}")
    assert found(house.lint(), "roles/door/templates/a.j2", "-", "filter 'our_filter'")
    assert found(house.lint(), "roles/door/templates/b.j2", "line 1", "does not parse")


def test_full_names_and_those_of_the_platform_are_fine(house):
    text = "x | bulwark.hardening.ours | default('') | regex_replace('\\.', '\\\\.') is match('a') and x is bulwark.hardening.odd"
    house.edit(TASKS, lambda data: data[0].update(when=text, vars={"secret": "{{ x }}"}))
    assert house.lint() == []


def test_vaulted_and_unsafe_values_are_read_as_plain_data(house):
    house.write(
        "molecule/door/vars.yml", "a: !vault |\n  $ANSIBLE_VAULT\nb: !unsafe '{{ x }}'\nc: !unsafe [1]\nd: !unsafe {e: 1}\n"
    )
    assert house.lint() == []


def test_internal_variables_of_the_role_may_be_used_in_conditions(house):
    house.edit(CONTROLS, control(expect=["posture.door.x == __door_x"]))
    assert found(house.lint(), CONTROLS, "door.shuts", "uses __door_x")
    house.write("roles/door/vars/main.yml", "__door_x: 1\n")
    assert house.lint() == []


def test_what_does_not_apply_on_the_machines_of_the_scenario_is_neither_sabotaged_nor_enough(house):
    house.write("molecule/door/vars.yml", "bulwark_not_applicable: [door.shuts, door.x]\n")
    house.edit(SABOTAGE, lambda data: data["sabotage"][0].update(control="door.x"))
    said = house.lint()
    assert found(said, "molecule/door/vars.yml", "door.x", "no control says when")
    assert found(said, NOT_YET, "ABC-1", "door.shuts does not apply on the scenario's machines")
    assert not found(said, SABOTAGE, "door.shuts", "no sabotage")
    house.edit(CONTROLS, control(not_applicable=None))
    assert found(house.lint(), "molecule/door/vars.yml", "door.shuts", "no control says when")


def test_a_required_variable_needs_no_default(house):
    house.edit(DEFAULTS, lambda data: data.pop("door_seconds"))
    house.edit(SPECS, lambda data: data["argument_specs"]["main"]["options"]["door_seconds"].update(required=True))
    house.edit(CONTROLS, control(expect=["posture.door.seconds < 60"]))
    assert not [p for p in house.lint() if p.subject == "door_seconds"]


def test_templates_in_defaults_are_left_to_the_run(house):
    house.edit(DEFAULTS, lambda data: data.update(door_seconds="{{ 2 * 3 }}"))
    assert house.lint() == []


def test_a_statement_may_be_covered_in_part_by_a_neighbour(house):
    house.edit(CONTROLS, control(statements=["ABC-1", "ABC-2"]))
    house.edit(NOT_YET, lambda data: data.update(not_yet={}, partly={"ABC-2": {"room": "window", "missing": "the bars"}}))
    assert house.lint() == []


def test_pytest_is_asked_which_proofs_exist(house):
    house.write(
        PROOFS,
        "import pytest\n\n@pytest.fixture(params=['ssh://a', 'ssh://b'])\ndef host(request):\n    raise RuntimeError\n\n"
        "def test_door_shuts(host):\n    pass\n\n@pytest.mark.parametrize('x', ['a::b[', 'c'])\ndef test_many(x):\n    pass\n\n"
        "class TestLock:\n    def test_turns(self):\n        pass\n\ndef helper():\n    pass\n",
    )
    collected, failed = policy.collect(house.root)
    assert failed == []
    assert collected == {f"{PROOFS}::test_door_shuts", f"{PROOFS}::test_many", f"{PROOFS}::TestLock::test_turns"}


def test_proofs_that_cannot_be_imported_are_a_problem(house):
    house.write(PROOFS, "import nothing_of_that_name\n\ndef test_door_shuts():\n    pass\n")
    collected, failed = policy.collect(house.root)
    assert collected == set()
    assert "nothing_of_that_name" in failed[0].message


def test_a_house_without_proofs_asks_nobody(house):
    (house.root / PROOFS).unlink()
    assert policy.collect(house.root) == (set(), [])


def test_the_command_names_file_and_id_and_fails(house):
    command = [sys.executable, ROOT / "tools" / "policy.py", "lint", "--root", house.root]
    good = subprocess.run(command, check=False, capture_output=True, text=True)
    assert (good.returncode, good.stdout) == (0, "4 statements, 1 roles, 1 controls, 0 problem(s)\n"), good.stderr
    house.edit(CONTROLS, control(statements=["ABC-9"]))
    bad = subprocess.run(command, check=False, capture_output=True, text=True)
    assert bad.returncode == 1
    assert "roles/door/meta/controls.yml: door.shuts: statement ABC-9 is not in the register\n" in bad.stdout
    assert subprocess.run(command[:2], check=False, capture_output=True).returncode == 2


def test_every_rule_is_broken_by_some_case(house):
    """A rule that no case of the table trips would be a rule nobody has seen at work."""
    tripped = set()
    for _broken, path, how, *_rest in CASES:
        before = (house.root / path).read_text()
        house.edit(path, how)
        tree = policy.Tree(house.root, {f"{PROOFS}::test_door_shuts"})
        tripped |= {rule.__name__ for rule in policy.RULES if list(rule(tree))}
        house.write(path, before)
    assert {rule.__name__ for rule in policy.RULES} - tripped == set()


def test_nothing_that_a_file_may_hold_upsets_the_lint(house):
    """Put something odd into each place of each file in turn: there is always an answer, never a traceback."""

    def places(data, path=()):
        if path:
            yield path
        for key, item in data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ():
            yield from places(item, (*path, key))

    odd = itertools.cycle([None, 5, "x", [1], {"a": 1}, [[]], [None], {5: 5}, True])
    for file in (file for file in FILES if file.endswith(".yml")):
        before = (house.root / file).read_text()
        for *above, last in places(yaml.safe_load(before)):
            data = yaml.safe_load(before)
            functools.reduce(lambda inner, key: inner[key], above, data)[last] = next(odd)
            house.write(file, yaml.safe_dump(data))
            assert isinstance(house.lint(), list), (file, above, last)
        for text in ("", "5", "[]", "[[x]]", "- {5: 5}", "a: [", "\x00"):
            house.write(file, text)
            assert isinstance(house.lint(), list), (file, text)
        house.write(file, before)


def test_every_rule_of_the_module_is_run():
    generators = {
        name
        for name, function in inspect.getmembers(policy, inspect.isfunction)
        if re.search(r"_(are|is|exist|can|hold)(_|$)", name)
        and not name.startswith("_")
        and inspect.isgeneratorfunction(function)
    }
    assert generators | {"defaults_hold"} == {rule.__name__ for rule in policy.RULES}


# ---------------------------------------------------------------------------------------------------------------
# The register itself: what came in stays in


@pytest.fixture(scope="module")
def register():
    return yaml.load((ROOT / REGISTER).read_text(encoding="utf-8"), Loader=policy.Loader)


def test_no_statement_got_lost(register):
    by = Counter((s["source"]["policy"], s["class"]) for s in register["statements"])
    kinds = ("enforce", "verify", "procedure-supported-by-tool", "out-of-scope")
    assert {p: tuple(by[p, kind] for kind in kinds) for p in register["policies"]} == {
        "HMS": (6, 3, 13, 22),
        "UMDNJ": (29, 1, 21, 39),
        "MA": (62, 4, 31, 23),
        "WTH": (61, 5, 36, 32),
    }
    assert len({s["id"] for s in register["statements"]}) == 388


def test_mappings_kept_their_provenance(register):
    counts = Counter(
        (kind, provenance)
        for s in register["statements"]
        for kind, by in (s.get("mappings") or {}).items()
        for provenance, ids in by.items()
        for _id in ids
    )
    assert counts["nist_800_53r5", "sp800_66r2"] == 366
    assert counts["nist_800_53r5", "own"] == 700 - 366
    assert {
        s["source"]["policy"] for s in register["statements"] for by in (s.get("mappings") or {}).values() if "named" in by
    } == {"WTH"}


def test_our_own_house_is_sound_but_for_what_is_being_built():
    """The policy's own files have no problems, whatever the state of the roles."""
    own = {REGISTER, CONFLICTS, VALUES, CROSSWALK, ROOMS}
    tree = policy.Tree(ROOT)
    rules = (policy.register_is_sound, policy.conflicts_are_sound, policy.values_are_sound)
    assert [str(p) for rule in rules for p in rule(tree)] == []
    assert [str(p) for p in [*tree.missing, *tree.misshapen] if p.file in own] == []
