#!/usr/bin/env python3
# Copyright: (c) 2026, Bulwark contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Check that the line from policy statement to proof has no gap: ``tools/policy.py lint``.

Reads policy/, roles/, playbooks/ and molecule/ below a root, asks pytest once which proofs it would collect, and prints
every gap as ``file: id: what is wrong``. Exit code 0: none; 1: some; 2: wrong usage. No host is contacted.
"""

from __future__ import annotations

import argparse
import ast
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import jinja2
import yaml

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "collections"))  # the collection's own code, as ansible-core would import it

from ansible_collections.bulwark.hardening.plugins.plugin_utils import judge  # noqa: E402
from ansible_collections.bulwark.hardening.plugins.plugin_utils import policy as bounds  # noqa: E402

CLASSES = ("enforce", "verify", "procedure-supported-by-tool", "out-of-scope")
PROVABLE = ("enforce", "verify")  # a statement of these classes has a control or stands in not_yet.yml
PLATFORMS = ("server", "workstation", "gateway", "collector", "repository", "controller", "macos")
# How each kind of mapping may have come about; the crosswalk explains the words.
PROVENANCE = {"hipaa": ("named", "own"), "nist_800_53r5": ("sp800_66r2", "own"), "hitrust": ("named", "own")}
# Where proofs may be beside the role's own scenario: on machines with kernels of their own, several roles together.
GUESTS = ("tests/antivirus/", "tests/clock/", "tests/devices/", "tests/trail/")
RULES_OF_VALUES = ("at_most", "at_least", "equals", "one_of")
SOURCES = ("policy", "site", "technical")
# Task keywords that hold an expression without braces around it.
CONDITIONS = {"when", "changed_when", "failed_when", "until", "that", "expect"}
TASK_LISTS = ("tasks", "pre_tasks", "post_tasks", "handlers", "block", "rescue", "always")


@dataclass(frozen=True, order=True)
class Problem:
    """One gap: the file it is in (relative to the root), the id it is about, and what is wrong."""

    file: str
    subject: str
    message: str

    def __str__(self) -> str:
        return f"{self.file}: {self.subject}: {self.message}"


class Anything:
    """A shape that fits whatever is there."""


@dataclass(frozen=True)
class Map:
    """A mapping of any names to values of one shape."""

    of: Any
    empty: bool = False


@dataclass(frozen=True)
class Seq:
    """A list of values of one shape."""

    of: Any
    empty: bool = False


def misfits(value: Any, shape: Any, subject: str = "-", where: str = "") -> Iterator[tuple[str, str]]:
    """Yield (subject, what is wrong) wherever a value does not have a shape.

    A shape is Anything, a type, a Map or Seq, a tuple of alternatives, or a dict of keys: "key" must be there, "key?" may be,
    "..." allows others. The subject is the id of the entry (its name, where it has none) that the misfit is in.
    """
    named = f"'{where}'" if where else "the file"
    if shape is Anything:
        return
    if isinstance(shape, tuple):
        if all(list(misfits(value, one)) for one in shape):
            yield subject, f"{named} is {_told(value)}, not {' or '.join(_wanted(one) for one in shape)}"
    elif isinstance(shape, type):
        if not isinstance(value, shape) or (isinstance(value, bool) and shape is not bool):
            yield subject, f"{named} is {_told(value)}, not {_wanted(shape)}"
        elif value == "":
            yield subject, f"{named} is empty"
    elif isinstance(shape, Seq):
        if not isinstance(value, list):
            yield subject, f"{named} is {_told(value)}, not a list"
        elif not value and not shape.empty:
            yield subject, f"{named} is empty"
        for number, item in enumerate(value if isinstance(value, list) else []):
            name = item.get("id", item.get("control")) if isinstance(item, dict) else None
            own = isinstance(name, str) and bool(name)
            yield from misfits(item, shape.of, name if own else subject, "" if own else f"{where}[{number}]")
    elif not isinstance(value, dict):
        yield subject, f"{named} is {_told(value)}, not a mapping"
    elif isinstance(shape, Map):
        if not value and not shape.empty:
            yield subject, f"{named} is empty"
        for key, item in value.items():
            if not isinstance(key, str):
                yield subject, f"{named} has the key {key!r}, which is no text"
            elif subject == "-":
                yield from misfits(item, shape.of, key)
            else:
                yield from misfits(item, shape.of, subject, f"{where}.{key}".lstrip("."))
    else:
        known = {key.rstrip("?"): one for key, one in shape.items() if key != "..."}
        for key in shape:
            if key != "..." and not key.endswith("?") and key not in value:
                yield subject, f"'{where}.{key}' is missing".replace("'.", "'")
        for key, item in value.items():
            if key in known:
                yield from misfits(item, known[key], subject, f"{where}.{key}".lstrip("."))
            elif "..." not in shape:
                yield subject, f"unknown key '{key}'; known are {', '.join(sorted(known))}"


def _told(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:37]}..."


def _wanted(shape: Any) -> str:
    names = {str: "text", int: "a whole number", float: "a number", bool: "true or false", Seq: "a list", Map: "a mapping"}
    return names.get(shape, names.get(type(shape), "a mapping"))


TEXTS = (str, Seq(str))
NAMES = Seq(str)
STATEMENT = {
    "id": str,
    "source": {"policy": str, "section": str, "line": int},
    "requirement": str,
    "class": str,
    "reason?": str,
    "room?": str,
    "platforms?": NAMES,
    "shown_by?": str,
    "params?": Map(Anything),
    "note?": str,
    "conflicts?": NAMES,
    "mappings?": Map(Map(NAMES)),
}
BOOK = {"title": str, "titles": Map(str), "note?": str, "confirmed_by?": str, "named_by?": Map(Seq(str, empty=True))}
OPTION: dict[str, Any] = {"description": TEXTS, "type?": str, "elements?": str, "required?": bool, "...": Anything}
OPTION["options?"] = Map(OPTION)
# What each bound of policy/parameters takes.
OPERANDS = {
    **dict.fromkeys(("at_most", "at_least"), (int, float)),
    **dict.fromkeys(("one_of", "subset_of", "contains"), Seq(Anything)),
    **dict.fromkeys(("min_items", "max_items", "max_length"), int),
    **dict.fromkeys(("matches", "not_matches"), str),
    **dict.fromkeys(("unique", "single_line", "text", "absolute_path", "not_empty", "date", "disjoint"), bool),
    "network": (bool, {"ipv4?": int, "ipv6?": int, "any?": bool}),
    "equals": Anything,
}
SHAPES = {
    "policy/register.yml": {
        "policies": Map({"title": str, "text_sha256": str}),
        "classes": Map(str),
        "statements": Seq(STATEMENT),
    },
    "policy/rooms.yml": {"rooms": Map(str)},
    "policy/conflicts.yml": {"conflicts": Seq({"id": str, "topic": str, "members": NAMES, "resolution": str}, empty=True)},
    "policy/values.yml": {
        "values": Map({"rule": str, "value": (int, float, str, Seq(Anything)), "from": NAMES, "note?": str}, empty=True),
        "site_decides": Seq(str, empty=True),
    },
    "policy/crosswalk.yml": {"hipaa": BOOK, "nist_800_53r5": BOOK, "hitrust": BOOK},
    "policy/not_yet.yml": {
        "not_yet": Map(NAMES, empty=True),
        "partly": Map({"room": str, "missing": str}, empty=True),
    },
    "policy/parameters/{role}.yml": {
        "parameters": Map(
            {
                "source": str,
                "why": str,
                "unit?": str,
                "statements?": NAMES,
                "needed?": bool,
                "bounds?": Map(Anything),
                "limits?": Map(Anything),
            }
        )
    },
    "roles/{role}/defaults/main.yml": Map(Anything),
    "roles/{role}/vars/main.yml": Map(Anything, empty=True),
    "roles/{role}/meta/argument_specs.yml": {
        "argument_specs": {
            "main": {"short_description": str, "description?": TEXTS, "options": Map(OPTION), "...": Anything},
            "...": Anything,
        }
    },
    "roles/{role}/meta/main.yml": {
        "galaxy_info": {"platforms": Seq({"name": str, "versions": Seq(Anything)}), "...": Anything},
        "...": Anything,
    },
    "roles/{role}/meta/controls.yml": {
        "controls": Seq(
            {
                "id": str,
                "title": str,
                "statements": NAMES,
                "profiles": NAMES,
                "posture": str,
                "source": str,
                "expect": NAMES,
                "not_applicable?": Seq({"when": TEXTS, "reason": str}),
                "proof": TEXTS,
                "remedy": str,
            }
        )
    },
    "molecule/{role}/vars.yml": {"bulwark_not_applicable?": Seq(str, empty=True), "...": Anything},
    "molecule/{role}/sabotage.yml": {"sabotage": Seq({"control": str, "break": str, "mend": str})},
}


class Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):
    """YAML as Ansible writes it: a tagged value (!vault, !unsafe) is read as plain data."""


def _untagged(loader: Loader, _suffix: str, node: yaml.Node) -> Any:
    if isinstance(node, yaml.MappingNode):
        return loader.construct_mapping(node, deep=True)
    return loader.construct_sequence(node, deep=True) if isinstance(node, yaml.SequenceNode) else loader.construct_scalar(node)


Loader.add_multi_constructor("!", _untagged)


@dataclass
class Role:
    """What the files of one role and of its scenario say; a file that is missing or misshapen counts as empty."""

    name: str
    spec: dict[str, Any]  # meta/argument_specs.yml, entry point main
    platforms: list[dict]
    defaults: dict[str, Any]
    internals: dict[str, Any]
    controls: list[dict]
    parameters: dict[str, dict]
    sabotage: list[dict]
    not_here: list[str]  # controls that do not apply on the scenario's machines, so nothing is shown of them there

    @property
    def options(self) -> dict[str, dict]:
        """Return the public variables with their argument specification."""
        return self.spec.get("options", {})

    @property
    def complete(self) -> bool:
        """Tell whether there is enough of the role to show it to readers."""
        return bool(self.options and self.defaults and self.controls and self.parameters)


class Tree:
    """Everything the rules look at, read from a root. What is there has the shape it should have.

    ``missing`` and ``misshapen`` say which files are not there, and which cannot be read or hold something else.
    ``collected`` holds ``file::function`` of each proof that pytest would run.
    """

    def __init__(self, root: Path, collected: set[str] | None = None) -> None:
        self.root = root
        self.collected = collected or set()
        self.missing: list[Problem] = []
        self.misshapen: list[Problem] = []
        register = self._load("policy/register.yml")
        self.policies: dict[str, dict] = register.get("policies", {})
        self.classes: dict[str, str] = register.get("classes", {})
        self.entries: list[dict] = register.get("statements", [])
        self.statements = {entry["id"]: entry for entry in self.entries}  # in the order of the policies
        self.rooms: dict[str, str] = self._load("policy/rooms.yml").get("rooms", {})
        self.conflicts: list[dict] = self._load("policy/conflicts.yml").get("conflicts", [])
        values = self._load("policy/values.yml")
        self.values: dict[str, dict] = values.get("values", {})
        self.site_decides: list[str] = values.get("site_decides", [])
        self.crosswalk: dict[str, dict] = self._load("policy/crosswalk.yml")
        owed = self._load("policy/not_yet.yml")
        self.not_yet: dict[str, list[str]] = owed.get("not_yet", {})
        self.partly: dict[str, dict] = owed.get("partly", {})
        self.roles = {path.name: self._role(path.name) for path in sorted(root.glob("roles/*/"))}

    def _role(self, name: str) -> Role:
        internals = "roles/{role}/vars/main.yml"
        return Role(
            name,
            spec=self._load("roles/{role}/meta/argument_specs.yml", name).get("argument_specs", {}).get("main", {}),
            platforms=self._load("roles/{role}/meta/main.yml", name).get("galaxy_info", {}).get("platforms", []),
            defaults=self._load("roles/{role}/defaults/main.yml", name),
            internals=self._load(internals, name) if (self.root / internals.format(role=name)).is_file() else {},
            controls=self._load("roles/{role}/meta/controls.yml", name).get("controls", []),
            parameters=self._load("policy/parameters/{role}.yml", name).get("parameters", {}),
            sabotage=self._load("molecule/{role}/sabotage.yml", name).get("sabotage", []),
            not_here=self._load("molecule/{role}/vars.yml", name).get("bulwark_not_applicable", []),
        )

    def _load(self, pattern: str, role: str = "") -> dict:
        """Return the data of one of the SHAPES' files, or an empty mapping when it is missing or misshapen."""
        path = pattern.format(role=role)
        try:
            data = yaml.load((self.root / path).read_text(encoding="utf-8"), Loader=Loader)
        except FileNotFoundError:
            self.missing.append(Problem(path, role or "-", "file is missing"))
            return {}
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as exc:
            self.misshapen.append(Problem(path, role or "-", f"cannot be read: {' '.join(str(exc).split())}"))
            return {}
        found = [Problem(path, subject, message) for subject, message in misfits(data, SHAPES[pattern])]
        self.misshapen += found
        return {} if found else data

    def controls(self) -> Iterator[tuple[str, dict, Role]]:
        """Yield (file, control, role) of every control."""
        for role in self.roles.values():
            for control in role.controls:
                yield f"roles/{role.name}/meta/controls.yml", control, role

    @cached_property
    def satisfied(self) -> dict[str, list[str]]:
        """Return the ids of the controls that claim each statement, sorted."""
        claims: dict[str, list[str]] = {}
        for _file, control, _role in self.controls():
            for statement in control["statements"]:
                claims.setdefault(statement, []).append(control["id"])
        return {statement: sorted(ids) for statement, ids in claims.items()}


def listed(value: Any) -> list:
    """Return a value that may be one item or a list as a list."""
    return value if isinstance(value, list) else [] if value is None else [value]


def twice(file: str, names: Iterable[str], message: str) -> Iterator[Problem]:
    """Yield a problem for each name that stands there more than once."""
    yield from (Problem(file, name, message) for name, count in Counter(names).items() if count > 1)


# ---------------------------------------------------------------------------------------------------------------
# The policy's own data


def register_is_sound(tree: Tree) -> Iterator[Problem]:
    """Each statement has its own id and names only policies, rooms, conflicts and identifiers that exist."""
    file = "policy/register.yml"
    yield from (Problem(file, name, "class has no description") for name in CLASSES if name not in tree.classes)
    yield from twice(file, (entry["id"] for entry in tree.entries), "the id is used twice")
    conflicts = {conflict["id"] for conflict in tree.conflicts}
    for entry in tree.entries:
        name, policy = entry["id"], entry["source"]["policy"]
        if policy not in tree.policies or not name.startswith(f"{policy}-"):
            yield Problem(file, name, f"policy {policy} is unknown or not the first part of the id")
        for conflict in entry.get("conflicts", []):
            if conflict not in conflicts:
                yield Problem(file, name, f"conflict {conflict} is not in policy/conflicts.yml")
        yield from _class_is_sound(tree, file, name, entry)
        yield from _mappings_are_sound(tree, file, name, entry)


def _class_is_sound(tree: Tree, file: str, name: str, entry: dict) -> Iterator[Problem]:
    if entry["class"] not in CLASSES:
        yield Problem(file, name, f"class {entry['class']!r} is unknown; known are {', '.join(CLASSES)}")
    elif entry["class"] == "out-of-scope":
        if "reason" not in entry:
            yield Problem(file, name, "out of scope without a reason")
        if "room" in entry:
            yield Problem(file, name, "out of scope and yet in a room")
    else:
        if "reason" in entry:
            yield Problem(file, name, "a reason is only for what is out of scope")
        for key in ("room", "platforms", "shown_by"):
            if key not in entry:
                yield Problem(file, name, f"'{key}' is missing")
        if entry.get("room", "") not in {"", *tree.rooms}:
            yield Problem(file, name, f"room {entry['room']!r} is not in policy/rooms.yml")
        for platform in set(entry.get("platforms", [])) - set(PLATFORMS):
            yield Problem(file, name, f"platform {platform!r} is unknown; known are {', '.join(PLATFORMS)}")


def _mappings_are_sound(tree: Tree, file: str, name: str, entry: dict) -> Iterator[Problem]:
    for kind, by_provenance in entry.get("mappings", {}).items():
        if kind not in PROVENANCE:
            yield Problem(file, name, f"mapping {kind!r} is unknown; known are {', '.join(PROVENANCE)}")
            continue
        book = tree.crosswalk.get(kind, {})
        named = book.get("named_by", {}).get(entry["source"]["policy"], [])
        for provenance, identifiers in by_provenance.items():
            if provenance not in PROVENANCE[kind]:
                yield Problem(file, name, f"{kind}: provenance {provenance!r} is not one of {', '.join(PROVENANCE[kind])}")
            for identifier in identifiers:
                if identifier not in book.get("titles", {}):
                    yield Problem(file, name, f"{kind}: {identifier} has no title in policy/crosswalk.yml")
                if "named" in PROVENANCE[kind] and (provenance == "named") != (identifier in named):
                    yield Problem(file, name, f"{kind}: {identifier} is called {provenance}, but the crosswalk says otherwise")
        for problem in twice(file, (i for ids in by_provenance.values() for i in ids), "stands there twice"):
            yield Problem(file, name, f"{kind}: {problem.subject} {problem.message}")
        if kind == "nist_800_53r5" and "sp800_66r2" in by_provenance and "hipaa" not in entry["mappings"]:
            yield Problem(file, name, "SP 800-66r2 confirms by HIPAA citation, and the statement has none")


def conflicts_are_sound(tree: Tree) -> Iterator[Problem]:
    """Each conflict has its own id, and it and its statements name each other."""
    file = "policy/conflicts.yml"
    yield from twice(file, (conflict["id"] for conflict in tree.conflicts), "the id is used twice")
    for conflict in tree.conflicts:
        name = conflict["id"]
        for member in conflict["members"]:
            if member not in tree.statements:
                yield Problem(file, name, f"statement {member} is not in the register")
            elif name not in tree.statements[member].get("conflicts", []):
                yield Problem(file, name, f"statement {member} does not name this conflict")
        for statement in tree.entries:
            if name in statement.get("conflicts", []) and statement["id"] not in conflict["members"]:
                yield Problem(file, name, f"statement {statement['id']} names this conflict but is no member of it")


def values_are_sound(tree: Tree) -> Iterator[Problem]:
    """Each settled value says how it binds and which statements give it."""
    file = "policy/values.yml"
    for name, value in tree.values.items():
        if value["rule"] not in RULES_OF_VALUES:
            yield Problem(file, name, f"rule {value['rule']!r} is not one of {', '.join(RULES_OF_VALUES)}")
        for statement in value["from"]:
            if statement not in tree.statements:
                yield Problem(file, name, f"statement {statement} is not in the register")
        if name in tree.site_decides:
            yield Problem(file, name, "stands in values and in site_decides; either a policy gives it or the site does")


def not_yet_is_true(tree: Tree) -> Iterator[Problem]:
    """What can be proven has a control or stands in not_yet.yml, never both; what is partly there says what is missing."""
    file = "policy/not_yet.yml"
    waiting = [name for names in tree.not_yet.values() for name in names]
    yield from twice(file, waiting, "stands there twice")
    for room, names in tree.not_yet.items():
        if room not in tree.rooms:
            yield Problem(file, room, "the room is not in policy/rooms.yml")
        for name in names:
            statement = tree.statements.get(name)
            if statement is None:
                yield Problem(file, name, "the statement is not in the register")
            elif statement["class"] not in PROVABLE:
                yield Problem(file, name, f"class {statement['class']} needs no entry here")
            elif statement.get("room") != room:
                yield Problem(file, name, f"stands under {room}, the register says {statement.get('room')}")
            if name in tree.satisfied:
                by = ", ".join(tree.satisfied[name])
                yield Problem(file, name, f"stale: {by} satisfies it; take it out or move it to partly")
    for name, entry in tree.partly.items():
        if name not in tree.statements:
            yield Problem(file, name, "the statement is not in the register")
        elif name not in tree.satisfied:
            yield Problem(file, name, "has no control at all; it belongs under not_yet")
        if entry["room"] not in tree.rooms:
            yield Problem(file, name, f"room {entry['room']!r} is not in policy/rooms.yml")
    for name, statement in tree.statements.items():
        if statement["class"] not in PROVABLE:
            continue
        room, controls = statement.get("room"), tree.satisfied.get(name, [])
        if controls and name not in tree.partly and not any(control.startswith(f"{room}.") for control in controls):
            message = f"only {', '.join(controls)} satisfies it, but its room is {room}; say under partly what {room} still owes"
            yield Problem(file, name, message)
        applied = {
            profile
            for _file, control, _role in tree.controls()
            if control["id"] in controls
            for profile in bounds.PROFILES
            if bounds.meant_for(control, profile)
        }
        left_out = [platform for platform in statement.get("platforms", []) if platform in {*bounds.PROFILES} - applied]
        if controls and left_out and name not in tree.partly:
            message = (
                f"no control of it applies to {', '.join(left_out)}; widen their profiles or say under partly what is missing"
            )
            yield Problem(file, name, message)
        unseen = {control for role in tree.roles.values() for control in role.not_here}
        if controls and set(controls) <= unseen and name not in tree.partly:
            message = (
                f"{', '.join(controls)} does not apply on the scenario's machines; say under partly what is still to be shown"
            )
            yield Problem(file, name, message)
        if not controls and name not in waiting:
            message = f"is {statement['class']} but has neither a control nor an entry in {file}"
            yield Problem("policy/register.yml", name, message)


# ---------------------------------------------------------------------------------------------------------------
# Roles: complete, their controls judge what they say, their proofs exist


def roles_are_complete(tree: Tree) -> Iterator[Problem]:
    """Each role is a known room and has all files of one."""
    for role in tree.roles:
        if role not in tree.rooms:
            yield Problem(f"roles/{role}", role, "the role is not a room of policy/rooms.yml")
        # files that are read here (all but these) are missed when the tree is loaded
        for file in (f"roles/{role}/tasks/main.yml", f"molecule/{role}/molecule.yml", f"molecule/{role}/prepare.yml"):
            if not (tree.root / file).is_file():
                yield Problem(file, role, "file is missing")


def controls_are_sound(tree: Tree) -> Iterator[Problem]:
    """Each control has its own id that starts with its role, and claims statements that hosts can satisfy."""
    for role in tree.roles.values():
        file = f"roles/{role.name}/meta/controls.yml"
        yield from twice(file, (control["id"] for control in role.controls), "the id is used twice")
        for control in role.controls:
            name = control["id"]
            if not re.fullmatch(rf"{re.escape(role.name)}\.[a-z0-9_]+", name):
                yield Problem(file, name, f"the id must be {role.name}.<what>, in small letters, digits and _")
            for statement in control["statements"]:
                if statement not in tree.statements:
                    yield Problem(file, name, f"statement {statement} is not in the register")
                elif tree.statements[statement]["class"] == "out-of-scope":
                    yield Problem(file, name, f"statement {statement} is out of scope; a control cannot satisfy it")
            for profile in set(control["profiles"]) - set(bounds.PROFILES):
                yield Problem(file, name, f"profile {profile!r} is unknown; known are {', '.join(bounds.PROFILES)}")


def collectors(root: Path) -> set[str]:
    """Return the names imported by sent_along() of plugins/module_utils/posture/collectors.py, without importing it."""
    path = root / "plugins" / "module_utils" / "posture" / "collectors.py"
    if not path.is_file():
        return set()
    functions = [node for node in ast.parse(path.read_text(encoding="utf-8")).body if isinstance(node, ast.FunctionDef)]
    imports = [n for f in functions if f.name == "sent_along" for n in f.body if isinstance(n, ast.ImportFrom)]
    return {alias.name for node in imports for alias in node.names}


def zero_as_missing(condition: str) -> Iterator[float]:
    """Yield the numbers that a condition puts in the place of an observed 0: ``x | default(999, true)``.

    Such a one stands for "nobody looked", and 0 (seconds ago, say) is something that was seen.
    """
    for node in _JINJA.parse("{{ " + condition + " }}").find_all(jinja2.nodes.Filter):
        given = [arg.value for arg in node.args if isinstance(arg, jinja2.nodes.Const)]
        if node.name in ("default", "d") and given[1:] == [True] and isinstance(given[0], (int, float)) and given[0]:
            yield given[0]


def controls_can_be_judged(tree: Tree) -> Iterator[Problem]:
    """A registered collector observes each control, and its conditions parse and look only at that and the role's variables."""
    registered = collectors(tree.root)
    for file, control, role in tree.controls():
        name, posture = control["id"], control["posture"]
        if posture not in registered:
            yield Problem(file, name, f"collector {posture!r} is not registered in plugins/module_utils/posture/collectors.py")
        excuses = [condition for case in control.get("not_applicable", []) for condition in listed(case["when"])]
        looked = False
        for condition in [*control["expect"], *excuses]:
            try:
                paths, names = judge.names_in(condition)
            except jinja2.TemplateSyntaxError as exc:
                yield Problem(file, name, f"'{condition}' does not parse: {exc.message}")
                continue
            looked = looked or bool(paths)
            for stand_in in zero_as_missing(condition):
                yield Problem(file, name, f"'{condition}': default({stand_in}, true) takes an observed 0 for nothing observed")
            for path in paths:
                if path.split(".")[0] != posture:
                    yield Problem(file, name, f"'{condition}' looks at posture.{path}, but its collector is {posture}")
            for variable in names:
                if variable not in {**role.defaults, **role.internals}:
                    message = f"uses {variable}, which is neither posture nor a variable of the role"
                    yield Problem(file, name, f"'{condition}' {message}")
        if not looked:
            yield Problem(file, name, "no condition looks at the posture, so it can never fail because of the host")


def proofs_exist(tree: Tree) -> Iterator[Problem]:
    """Each control names at least one proof, in its own role's scenario or among guests (GUESTS), that pytest collects."""
    for file, control, role in tree.controls():
        name = control["id"]
        for proof in listed(control["proof"]):
            path, _colons, function = proof.partition("::")
            if not function:
                yield Problem(file, name, f"proof {proof} must be <file>::<test function>")
            elif not path.startswith((f"molecule/{role.name}/tests/", *GUESTS)):
                yield Problem(file, name, f"proof {proof} is not in molecule/{role.name}/tests/ or {', '.join(GUESTS)}")
            elif not (tree.root / path).is_file():
                yield Problem(file, name, f"proof {proof}: no such file")
            elif proof not in tree.collected:
                yield Problem(file, name, f"proof {proof} is not collected by pytest")


def sabotage_is_complete(tree: Tree) -> Iterator[Problem]:
    """Each control is broken and mended in its scenario, so that the assessment is seen to notice."""
    for role in tree.roles.values():
        file = f"molecule/{role.name}/sabotage.yml"
        own = {control["id"] for control in role.controls}
        broken = {entry["control"] for entry in role.sabotage}
        yield from (Problem(file, name, "the role has no such control") for name in sorted(broken - own))
        yield from (Problem(file, name, "no sabotage of this control") for name in sorted(own - broken - set(role.not_here)))
        excused = {control["id"] for control in role.controls if "not_applicable" in control}
        for name in sorted(set(role.not_here) - excused):
            yield Problem(f"molecule/{role.name}/vars.yml", name, "is called not applicable, but no control says when that is so")


# ---------------------------------------------------------------------------------------------------------------
# Variables: documented, bounded, and in agreement with the policy


def variables_are_declared(tree: Tree) -> Iterator[Problem]:
    """Defaults, argument_specs and policy/parameters name the same public variables, all with the role's prefix."""
    for role in tree.roles.values():
        defaults, specs = f"roles/{role.name}/defaults/main.yml", f"roles/{role.name}/meta/argument_specs.yml"
        fragment = f"policy/parameters/{role.name}.yml"
        for name in role.defaults:
            if not name.startswith(f"{role.name}_"):
                yield Problem(defaults, name, f"a public variable of this role starts with {role.name}_")
            if name not in role.options:
                yield Problem(specs, name, "is in defaults/main.yml but not here")
            if name not in role.parameters:
                yield Problem(fragment, name, "is in defaults/main.yml but not here")
        for name, spec in role.options.items():
            if name not in role.defaults and not spec.get("required"):
                yield Problem(specs, name, "has no default and is not required")
            if name not in role.parameters:
                yield Problem(fragment, name, "is in argument_specs but not here")
        for path in role.parameters:
            if not option(role, path):
                yield Problem(fragment, path, f"is not a variable of {specs}")
        if role.defaults and f"{role.name}_state" not in role.defaults:
            yield Problem(defaults, f"{role.name}_state", "is missing: every role can be taken back")


def option(role: Role, path: str) -> dict:
    """Return the argument specification of a variable, or of a key of the mappings in it; empty if there is none."""
    name, *keys = path.split(".")
    spec = role.options.get(name, {})
    for key in keys:
        spec = spec.get("options", {}).get(key, {})
    return spec


def parameters_are_sound(tree: Tree) -> Iterator[Problem]:
    """Each parameter says who sets it, with bounds that can be checked; one set by policy agrees with what the policy says."""
    for role in tree.roles.values():
        file = f"policy/parameters/{role.name}.yml"
        for name, entry in role.parameters.items():
            if entry["source"] not in SOURCES:
                yield Problem(file, name, f"source {entry['source']!r} is not one of {', '.join(SOURCES)}")
            for statement in entry.get("statements", []):
                if statement not in tree.statements:
                    yield Problem(file, name, f"statement {statement} is not in the register")
            for side in ("bounds", "limits"):
                yield from _bounds_are_sound(file, name, side, entry.get(side, {}))
            if entry["source"] == "policy":
                yield from _agrees_with_policy(tree, role, file, name, entry)
            elif entry.get("bounds"):
                yield Problem(file, name, "'bounds' are the policy's side; what site or technique sets goes under 'limits'")


def _bounds_are_sound(file: str, name: str, side: str, given: dict) -> Iterator[Problem]:
    for bound, operand in given.items():
        if bound not in bounds.BOUNDS:
            yield Problem(file, name, f"bound {bound!r} is unknown; known are {', '.join(sorted(bounds.BOUNDS))}")
        for _subject, message in misfits(operand, OPERANDS.get(bound, Anything), name, f"{side}.{bound}"):
            yield Problem(file, name, message)
        if bound in ("matches", "not_matches") and isinstance(operand, str):
            try:
                re.compile(operand)
            except re.error as exc:
                yield Problem(file, name, f"'{side}.{bound}' is no regular expression: {exc}")


def _agrees_with_policy(tree: Tree, role: Role, file: str, name: str, entry: dict) -> Iterator[Problem]:
    """A number that is called policy is one that its statements give, to the side they give it."""
    statements = set(entry.get("statements", []))
    if not statements:
        yield Problem(file, name, "source is policy, but no statement is named")
    parts = [part for path, part in role.parameters.items() if path.startswith(f"{name}.")]
    demanded = any(part.get("required") for part in option(role, name).get("options", {}).values())
    if not demanded and not any(part.get("bounds") for part in [entry, *parts]):
        yield Problem(file, name, "source is policy, but it has no bounds, and no part of it has bounds or is required")
    settled = {key: value for key, value in tree.values.items() if key == name or statements & set(value["from"])}
    given = [
        number
        for statement in statements & set(tree.statements)
        for key, number in tree.statements[statement].get("params", {}).items()
        if key not in tree.site_decides
    ]
    for bound, number in entry.get("bounds", {}).items():
        if bound not in ("at_most", "at_least", "equals") or isinstance(number, bool) or not isinstance(number, int | float):
            continue
        agreeing = [key for key, value in settled.items() if value["value"] == number]
        if name in settled and settled[name]["value"] != number:
            value = settled[name]
            yield Problem(file, name, f"{bound} {number} disagrees with policy/values.yml: {value['rule']} {value['value']}")
        elif not agreeing and number not in given:
            near = ", ".join(f"{key} {v['rule']} {v['value']}" for key, v in sorted(settled.items())) or "none"
            message = f"{bound} {number} is called policy, but no statement named gives it (settled values: {near})"
            yield Problem(file, name, message)
        elif agreeing and bound not in {"equals", *(settled[key]["rule"] for key in agreeing)}:
            rule = settled[agreeing[0]]["rule"]
            yield Problem(file, name, f"{bound} {number} binds the wrong side; policy/values.yml says {rule}")


def defaults_hold(tree: Tree) -> Iterator[Problem]:
    """The defaults satisfy their own types and bounds. Templates are left to the run that can resolve them."""
    for role in tree.roles.values():
        plain = {name: value for name, value in role.defaults.items() if name in role.options and not _is_template(value)}
        if not (plain and role.parameters):
            continue  # nothing to compare, and said elsewhere
        file = f"roles/{role.name}/defaults/main.yml"
        try:
            said = bounds.violations(role.name, plain, root=tree.root)
        except (bounds.PolicyError, ArithmeticError, AttributeError, KeyError, TypeError, ValueError, re.error) as exc:
            yield Problem(file, role.name, f"cannot be compared with the bounds: {type(exc).__name__}: {exc}")
            continue
        for message in said:
            name, _equals, rest = message.partition(" = ")
            yield Problem(file, name, f"the default {rest}")


def _is_template(value: Any) -> bool:
    return "{{" in str(value) or "{%" in str(value)


# ---------------------------------------------------------------------------------------------------------------
# Names: a short name works in a clone and fails once installed


@cache
def _known(kind: str) -> frozenset[str]:
    """Return the short names of filters or tests that Jinja and ansible.builtin bring."""
    from ansible.plugins.filter import core, encryption, mathstuff, urls, urlsplit
    from ansible.plugins.test import core as test_core
    from ansible.plugins.test import files, uri
    from ansible.plugins.test import mathstuff as test_mathstuff

    if kind == "filter":
        names = set(jinja2.defaults.DEFAULT_FILTERS)
        for module in (core, encryption, mathstuff, urls, urlsplit):
            names |= set(module.FilterModule().filters())
    else:
        names = set(jinja2.defaults.DEFAULT_TESTS)
        for module in (test_core, files, test_mathstuff, uri):
            names |= set(module.TestModule().tests())
    return frozenset(names)


@cache
def _task_keywords() -> frozenset[str]:
    from ansible.playbook.block import Block
    from ansible.playbook.handler import Handler

    return frozenset({*Block.fattributes, *Handler.fattributes, "local_action"})


_JINJA = jinja2.Environment()


def short_plugins(text: str) -> Iterator[str]:
    """Yield a message for each filter or test in a template that has neither a full name nor a builtin's.

    Raises jinja2.TemplateSyntaxError when the text is no template that Jinja alone can parse.
    """
    for node in _JINJA.parse(text).find_all((jinja2.nodes.Filter, jinja2.nodes.Test)):
        kind = "filter" if isinstance(node, jinja2.nodes.Filter) else "test"
        if "." not in node.name and node.name not in _known(kind):
            yield f"{kind} {node.name!r} needs its full name (bulwark.hardening.{node.name}?)"


def names_are_full(tree: Tree) -> Iterator[Problem]:
    """Modules, roles, filters and tests are named in full in roles, playbooks and scenarios."""
    patterns = ("roles/*/tasks/**/*.yml", "roles/*/defaults/*.yml", "roles/*/vars/*.yml", "roles/*/meta/controls.yml")
    patterns += ("playbooks/**/*.yml", "molecule/**/*.yml")
    for path in sorted({path for pattern in patterns for path in tree.root.glob(pattern)}):
        file = str(path.relative_to(tree.root))
        try:
            data = yaml.load(path.read_text(encoding="utf-8"), Loader=Loader)
        except yaml.YAMLError as exc:
            yield Problem(file, "-", f"cannot be read: {' '.join(str(exc).split())}")
            continue
        for message in dict.fromkeys([*_short_modules(data), *_short_in(data)]):
            yield Problem(file, "-", message)
    for path in sorted(tree.root.glob("roles/*/templates/**/*.j2")):
        file = str(path.relative_to(tree.root))
        try:
            yield from (Problem(file, "-", message) for message in dict.fromkeys(short_plugins(path.read_text(encoding="utf-8"))))
        except jinja2.TemplateSyntaxError as exc:
            yield Problem(file, f"line {exc.lineno}", f"does not parse: {exc.message}")


def _short_modules(data: Any) -> Iterator[str]:
    """Yield a message for each module or role that a list of plays or tasks names in short."""
    for item in data if isinstance(data, list) else []:
        if not isinstance(item, dict):
            continue
        for key in TASK_LISTS:
            yield from _short_modules(item.get(key))
        if "import_playbook" in item:
            yield "module 'import_playbook' needs its full name"
        if "hosts" in item:
            for role in listed(item.get("roles")):
                name = role.get("role", role.get("name")) if isinstance(role, dict) else role
                if "." not in str(name):
                    yield f"role {name!r} needs its full name"
            continue
        if "ansible.builtin.import_playbook" in item:
            continue
        for key, value in ((str(key), value) for key, value in item.items()):
            if key in _task_keywords() or key.startswith("with_"):
                continue
            if "." not in key:
                yield f"module {key!r} needs its full name"
            if key.endswith(("include_role", "import_role")) and isinstance(value, dict):
                name = str(value.get("name", ""))
                if "." not in name and not _is_template(name):
                    yield f"role {name!r} needs its full name"


def _short_in(data: Any, condition: bool = False) -> Iterator[str]:
    """Yield a message for each short filter or test in the strings of a YAML document."""
    if isinstance(data, dict):
        for key, value in data.items():
            yield from _short_in(value, key in CONDITIONS)
    elif isinstance(data, list):
        for item in data:
            yield from _short_in(item, condition)
    elif isinstance(data, str) and (condition or _is_template(data)):
        try:
            # in YAML, ansible-core takes a backslash in an expression for itself; for Jinja alone it would escape
            text = data.replace("\\", "\\\\")
            yield from short_plugins(text if _is_template(text) else "{{ " + text + " }}")
        except jinja2.TemplateSyntaxError as exc:
            yield f"'{data.strip().splitlines()[0]}' does not parse: {exc.message}"


RULES = (
    register_is_sound,
    conflicts_are_sound,
    values_are_sound,
    not_yet_is_true,
    roles_are_complete,
    controls_are_sound,
    controls_can_be_judged,
    proofs_exist,
    sabotage_is_complete,
    variables_are_declared,
    parameters_are_sound,
    defaults_hold,
    names_are_full,
)


def collect(root: Path) -> tuple[set[str], list[Problem]]:
    """Ask pytest, once and without any host, which proofs it would run; return them as file::function, and what failed."""
    places = ("molecule/*/tests/", *GUESTS)
    files = sorted(str(path.relative_to(root)) for place in places for path in root.glob(f"{place}test_*.py"))
    if not files:
        return set(), []
    options = ["-q", "--no-header", "--color=no", "--rootdir=.", "--import-mode=importlib", "-p", "no:cacheprovider"]
    command = [sys.executable, "-m", "pytest", "--collect-only", *options, *files]
    done = subprocess.run(command, cwd=root, check=False, capture_output=True, text=True)
    # testinfra adds the host to each name: test_x[ssh://...]
    named = [line.split("[", 1)[0] for line in done.stdout.splitlines() if "::" in line]
    found = {name for name in named if name.startswith(("molecule/", *GUESTS))}
    if done.returncode in (0, 5):
        return found, []
    said = " ".join((done.stdout + done.stderr).split())[-600:]
    return found, [Problem("molecule", "pytest", f"the proofs cannot be collected (exit code {done.returncode}): ... {said}")]


def lint(root: Path, collected: set[str]) -> list[Problem]:
    """Return every problem below a root, sorted; ``collected`` is what pytest found there.

    As long as a file is misshapen, only that is said: what else is wrong shows once it is mended.
    """
    tree = Tree(root, collected)
    if tree.misshapen:  # the rules take the shapes for granted
        return sorted({*tree.missing, *tree.misshapen})
    return sorted({*tree.missing, *(problem for rule in RULES for problem in rule(tree))})


def main(argv: list[str] | None = None) -> int:
    """Run the command line and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("command", choices=["lint"])
    parser.add_argument("--root", type=Path, default=ROOT, help="repository to look at (default: this one)")
    root = parser.parse_args(argv).root.resolve()
    collected, failed = collect(root)
    problems = [*failed, *lint(root, collected)]
    for problem in problems:
        print(problem)
    tree = Tree(root)
    controls = sum(1 for _ in tree.controls())
    print(f"{len(tree.statements)} statements, {len(tree.roles)} roles, {controls} controls, {len(problems)} problem(s)")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
