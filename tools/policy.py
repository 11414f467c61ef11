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
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
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
PLATFORMS = ("server", "workstation", "gateway", "collector", "controller", "macos")
# How each kind of mapping may have come about; the crosswalk explains the words.
PROVENANCE = {"hipaa": ("named", "own"), "nist_800_53r5": ("sp800_66r2", "own"), "hitrust": ("named", "own")}
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


class Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):
    """YAML as Ansible writes it: a tagged value (!vault, !unsafe) is read as plain data."""


def _untagged(loader: Loader, _suffix: str, node: yaml.Node) -> Any:
    if isinstance(node, yaml.MappingNode):
        return loader.construct_mapping(node, deep=True)
    return loader.construct_sequence(node, deep=True) if isinstance(node, yaml.SequenceNode) else loader.construct_scalar(node)


Loader.add_multi_constructor("!", _untagged)


@dataclass
class Role:
    """What the files of one role and of its scenario say; a file that is missing or broken counts as empty."""

    name: str
    spec: dict[str, Any]  # meta/argument_specs.yml, entry point main
    platforms: list[dict]
    defaults: dict[str, Any]
    internals: dict[str, Any]
    controls: list[dict]
    parameters: dict[str, dict]
    sabotage: list[dict]

    @property
    def options(self) -> dict[str, dict]:
        """Return the public variables with their argument specification."""
        return self.spec.get("options") or {}

    @property
    def complete(self) -> bool:
        """Tell whether there is enough of the role to show it to readers."""
        return bool(self.options and self.defaults and self.controls and self.parameters)


@dataclass
class Tree:
    """Everything the rules look at. ``collected`` holds ``file::function`` of each proof that pytest would run."""

    root: Path
    collected: set[str] = field(default_factory=set)
    unreadable: list[Problem] = field(default_factory=list)

    def load(self, path: str, key: str | None = None, kind: type = dict) -> Any:
        """Return a file's data (or the part under ``key``), empty and noted in ``unreadable`` if it is not of that kind."""
        try:
            data = yaml.load((self.root / path).read_text(encoding="utf-8"), Loader=Loader)
        except FileNotFoundError:
            self.unreadable.append(Problem(path, key or "-", "file is missing"))
            return kind()
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as exc:
            self.unreadable.append(Problem(path, key or "-", f"cannot be read: {' '.join(str(exc).split())}"))
            return kind()
        if key is not None:
            data = data.get(key) if isinstance(data, dict) else None
        if data is None and key is None:
            return kind()
        if not isinstance(data, kind):
            self.unreadable.append(Problem(path, key or "-", f"expected a {kind.__name__}"))
            return kind()
        return data

    @cached_property
    def register(self) -> dict:
        """Return policy/register.yml."""
        return self.load("policy/register.yml")

    @cached_property
    def statements(self) -> dict[str, dict]:
        """Return the statements by id, in the order of the policies."""
        entries = self.register.get("statements") or []
        return {entry["id"]: entry for entry in entries if isinstance(entry, dict) and "id" in entry}

    @cached_property
    def rooms(self) -> dict[str, str]:
        """Return what each room is for, by its name."""
        return self.load("policy/rooms.yml", "rooms")

    @cached_property
    def conflicts(self) -> list[dict]:
        """Return the conflicts between statements, with their resolutions."""
        return self.load("policy/conflicts.yml", "conflicts", list)

    @cached_property
    def values(self) -> dict[str, dict]:
        """Return the values that hold once conflicts are settled."""
        return self.load("policy/values.yml", "values")

    @cached_property
    def site_decides(self) -> list[str]:
        """Return the numbers that no policy gives."""
        return self.load("policy/values.yml", "site_decides", list)

    @cached_property
    def crosswalk(self) -> dict[str, dict]:
        """Return titles and provenance of the identifiers in mappings."""
        return self.load("policy/crosswalk.yml")

    @cached_property
    def not_yet(self) -> dict[str, list[str]]:
        """Return the statements without a control, by room."""
        return self.load("policy/not_yet.yml", "not_yet")

    @cached_property
    def partly(self) -> dict[str, dict]:
        """Return what is missing from statements whose controls do not reach all they ask."""
        return self.load("policy/not_yet.yml", "partly")

    @cached_property
    def roles(self) -> dict[str, Role]:
        """Return the roles by name."""
        found = {}
        for path in sorted(self.root.glob("roles/*/")):
            name = path.name
            specs = self.load(f"roles/{name}/meta/argument_specs.yml", "argument_specs")
            galaxy = self.load(f"roles/{name}/meta/main.yml", "galaxy_info")
            internals = f"roles/{name}/vars/main.yml"
            found[name] = Role(
                name,
                spec=specs.get("main") or {},
                platforms=galaxy.get("platforms") or [],
                defaults=self.load(f"roles/{name}/defaults/main.yml"),
                internals=self.load(internals) if (self.root / internals).is_file() else {},
                controls=self.load(f"roles/{name}/meta/controls.yml", "controls", list),
                parameters=self.load(f"policy/parameters/{name}.yml", "parameters"),
                sabotage=self.load(f"molecule/{name}/sabotage.yml", "sabotage", list),
            )
        return found

    def controls(self) -> Iterator[tuple[str, dict, str]]:
        """Yield (file, control, role) of every control that is a mapping with an id."""
        for role in self.roles.values():
            for control in role.controls:
                if isinstance(control, dict) and control.get("id"):
                    yield f"roles/{role.name}/meta/controls.yml", control, role.name

    @cached_property
    def satisfied(self) -> dict[str, list[str]]:
        """Return the ids of the controls that claim each statement, sorted."""
        claims: dict[str, list[str]] = {}
        for _file, control, _role in self.controls():
            for statement in control.get("statements") or []:
                claims.setdefault(statement, []).append(control["id"])
        return {statement: sorted(ids) for statement, ids in claims.items()}


def listed(value: Any) -> list:
    """Return a value that may be one item or a list as a list."""
    return value if isinstance(value, list) else [] if value is None else [value]


def shape(file: str, subject: str, entry: Any, required: Mapping[str, Any], optional: Mapping[str, Any]) -> Iterator[Problem]:
    """Yield what is missing, unknown, empty or of the wrong type in one mapping; types are Python's."""
    if not isinstance(entry, dict):
        yield Problem(file, subject, "must be a mapping")
        return
    known = {**required, **optional}
    for key in required:
        if key not in entry:
            yield Problem(file, subject, f"'{key}' is missing")
    for key, value in entry.items():
        if key not in known:
            yield Problem(file, subject, f"unknown key '{key}'; known are {', '.join(sorted(known))}")
        elif not isinstance(value, known[key]):
            yield Problem(file, subject, f"'{key}' is a {type(value).__name__}, which is not expected here")
        elif value in ("", [], {}):
            yield Problem(file, subject, f"'{key}' is empty")


# ---------------------------------------------------------------------------------------------------------------
# The policy's own data


def register_is_sound(tree: Tree) -> Iterator[Problem]:
    """Each statement is complete, has its own id, and names only rooms, conflicts and identifiers that exist."""
    file = "policy/register.yml"
    policies = tree.register.get("policies") or {}
    entries = tree.register.get("statements") or []
    if not entries:
        yield Problem(file, "statements", "the register holds no statements")
    yield from (Problem(file, c, "class has no description") for c in CLASSES if c not in (tree.register.get("classes") or {}))
    ids = Counter(entry.get("id") for entry in entries if isinstance(entry, dict))
    yield from (Problem(file, str(name), "the id is used twice") for name, count in ids.items() if count > 1)
    required = {"id": str, "source": dict, "requirement": str, "class": str}
    optional = {"reason": str, "room": str, "platforms": list, "shown_by": str, "params": dict, "note": str}
    optional |= {"conflicts": list, "mappings": dict}
    conflicts = {conflict.get("id") for conflict in tree.conflicts if isinstance(conflict, dict)}
    for entry in entries:
        name = entry.get("id", "?") if isinstance(entry, dict) else str(entry)
        found = list(shape(file, name, entry, required, optional))
        yield from found
        if found:
            continue
        yield from shape(file, name, entry["source"], {"policy": str, "section": str, "line": int}, {})
        policy = entry["source"].get("policy")
        if policy not in policies or not name.startswith(f"{policy}-"):
            yield Problem(file, name, f"policy {policy} is unknown or not the first part of the id")
        yield from _class_is_sound(tree, file, name, entry)
        for conflict in entry.get("conflicts") or []:
            if conflict not in conflicts:
                yield Problem(file, name, f"conflict {conflict} is not in policy/conflicts.yml")
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
        for platform in set(entry.get("platforms") or []) - set(PLATFORMS):
            yield Problem(file, name, f"platform {platform!r} is unknown; known are {', '.join(PLATFORMS)}")


def _mappings_are_sound(tree: Tree, file: str, name: str, entry: dict) -> Iterator[Problem]:
    for kind, by_provenance in (entry.get("mappings") or {}).items():
        if kind not in PROVENANCE or not isinstance(by_provenance, dict):
            yield Problem(file, name, f"mapping {kind!r} is unknown or says nothing about where it comes from")
            continue
        book = tree.crosswalk.get(kind) or {}
        named = (book.get("named_by") or {}).get(entry["source"].get("policy"), [])
        seen: Counter = Counter()
        for provenance, identifiers in by_provenance.items():
            if provenance not in PROVENANCE[kind]:
                yield Problem(file, name, f"{kind}: provenance {provenance!r} is not one of {', '.join(PROVENANCE[kind])}")
            for identifier in listed(identifiers):
                seen[identifier] += 1
                if identifier not in (book.get("titles") or {}):
                    yield Problem(file, name, f"{kind}: {identifier} has no title in policy/crosswalk.yml")
                if (provenance == "named") != (identifier in named) and "named" in PROVENANCE[kind]:
                    yield Problem(file, name, f"{kind}: {identifier} is called {provenance}, but the crosswalk says otherwise")
        yield from (Problem(file, name, f"{kind}: {i} stands there twice") for i, count in seen.items() if count > 1)
        if kind == "nist_800_53r5" and by_provenance.get("sp800_66r2") and "hipaa" not in entry["mappings"]:
            yield Problem(file, name, "SP 800-66r2 confirms by HIPAA citation, and the statement has none")


def conflicts_are_sound(tree: Tree) -> Iterator[Problem]:
    """Each conflict has a resolution, and it and its statements name each other."""
    file = "policy/conflicts.yml"
    ids = Counter(c.get("id") for c in tree.conflicts if isinstance(c, dict))
    yield from (Problem(file, str(name), "the id is used twice") for name, count in ids.items() if count > 1)
    for conflict in tree.conflicts:
        name = conflict.get("id", "?") if isinstance(conflict, dict) else str(conflict)
        wrong = list(shape(file, name, conflict, {"id": str, "topic": str, "members": list, "resolution": str}, {}))
        yield from wrong
        if wrong:
            continue
        for member in conflict["members"]:
            if member not in tree.statements:
                yield Problem(file, name, f"statement {member} is not in the register")
            elif name not in (tree.statements[member].get("conflicts") or []):
                yield Problem(file, name, f"statement {member} does not name this conflict")
        for statement in tree.statements.values():
            if name in (statement.get("conflicts") or []) and statement["id"] not in conflict["members"]:
                yield Problem(file, name, f"statement {statement['id']} names this conflict but is no member of it")


def values_are_sound(tree: Tree) -> Iterator[Problem]:
    """Each settled value says how it binds and which statements give it."""
    file = "policy/values.yml"
    for name, value in tree.values.items():
        anything = (int, float, str, list)
        wrong = list(shape(file, name, value, {"rule": str, "value": anything, "from": list}, {"note": str}))
        yield from wrong
        if wrong:
            continue
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
    counted: Counter = Counter()
    for room, names in tree.not_yet.items():
        if room not in tree.rooms:
            yield Problem(file, room, "the room is not in policy/rooms.yml")
        for name in listed(names):
            counted[name] += 1
            statement = tree.statements.get(name)
            if statement is None:
                yield Problem(file, name, "the statement is not in the register")
            elif statement.get("class") not in PROVABLE:
                yield Problem(file, name, f"class {statement.get('class')} needs no entry here")
            elif statement.get("room") != room:
                yield Problem(file, name, f"stands under {room}, the register says {statement.get('room')}")
            if name in tree.satisfied:
                by = ", ".join(tree.satisfied[name])
                yield Problem(file, name, f"stale: {by} satisfies it; take it out or move it to partly")
    yield from (Problem(file, name, "stands there twice") for name, count in counted.items() if count > 1)
    for name, entry in tree.partly.items():
        yield from shape(file, name, entry, {"room": str, "missing": str}, {})
        if name not in tree.statements:
            yield Problem(file, name, "the statement is not in the register")
        elif name not in tree.satisfied:
            yield Problem(file, name, "has no control at all; it belongs under not_yet")
        if isinstance(entry, dict) and entry.get("room", "") not in {"", *tree.rooms}:
            yield Problem(file, name, f"room {entry['room']!r} is not in policy/rooms.yml")
    for name, statement in tree.statements.items():
        if statement.get("class") not in PROVABLE:
            continue
        room, controls = statement.get("room"), tree.satisfied.get(name, [])
        if controls and name not in tree.partly and not any(control.startswith(f"{room}.") for control in controls):
            message = f"only {', '.join(controls)} satisfies it, but its room is {room}; say under partly what {room} still owes"
            yield Problem(file, name, message)
        if not controls and not counted[name]:
            message = f"is {statement['class']} but has neither a control nor an entry in {file}"
            yield Problem("policy/register.yml", name, message)


# ---------------------------------------------------------------------------------------------------------------
# Roles: complete, their controls judge what they say, their proofs exist


def roles_are_complete(tree: Tree) -> Iterator[Problem]:
    """Each role is a known room and has all files of one."""
    for role in tree.roles:
        if role not in tree.rooms:
            yield Problem(f"roles/{role}", role, "the role is not a room of policy/rooms.yml")
        # files that are read here (all but these) are missed by Tree.load
        for file in (f"roles/{role}/tasks/main.yml", f"molecule/{role}/molecule.yml", f"molecule/{role}/prepare.yml"):
            if not (tree.root / file).is_file():
                yield Problem(file, role, "file is missing")


def controls_are_sound(tree: Tree) -> Iterator[Problem]:
    """Each control is complete, has its own id that starts with its role, and claims statements that hosts can satisfy."""
    required = {"id": str, "title": str, "statements": list, "profiles": list, "posture": str, "source": str}
    required |= {"expect": list, "proof": (str, list), "remedy": str}
    counted = Counter(control["id"] for _file, control, _role in tree.controls())
    for role in tree.roles.values():
        file = f"roles/{role.name}/meta/controls.yml"
        if not role.controls and (tree.root / file).is_file():
            yield Problem(file, role.name, "the role has no controls")
        for control in role.controls:
            name = str(control.get("id", "?")) if isinstance(control, dict) else str(control)
            wrong = list(shape(file, name, control, required, {"not_applicable": list}))
            yield from wrong
            if not isinstance(control, dict):
                continue
            if counted[name] > 1:
                yield Problem(file, name, "the id is used twice")
            if not re.fullmatch(rf"{re.escape(role.name)}\.[a-z0-9_]+", name):
                yield Problem(file, name, f"the id must be {role.name}.<what>, in small letters, digits and _")
            for statement in listed(control.get("statements")):
                if statement not in tree.statements:
                    yield Problem(file, name, f"statement {statement} is not in the register")
                elif tree.statements[statement].get("class") == "out-of-scope":
                    yield Problem(file, name, f"statement {statement} is out of scope; a control cannot satisfy it")
            for profile in set(listed(control.get("profiles"))) - set(bounds.PROFILES):
                yield Problem(file, name, f"profile {profile!r} is unknown; known are {', '.join(bounds.PROFILES)}")
            for case in listed(control.get("not_applicable")):
                yield from shape(file, name, case, {"when": (str, list), "reason": str}, {})


def collectors(root: Path) -> set[str]:
    """Return the names registered in COLLECTORS of plugins/modules/posture.py, without importing it."""
    path = root / "plugins" / "modules" / "posture.py"
    if not path.is_file():
        return set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
        if any(isinstance(t, ast.Name) and t.id == "COLLECTORS" for t in targets) and isinstance(node.value, ast.Dict):
            return {key.value for key in node.value.keys if isinstance(key, ast.Constant)}
    return set()


def controls_can_be_judged(tree: Tree) -> Iterator[Problem]:
    """A registered collector observes each control, and its conditions parse and look only at that and the role's variables."""
    registered = collectors(tree.root)
    for file, control, role in tree.controls():
        name, posture = control["id"], control.get("posture")
        if posture not in registered:
            yield Problem(file, name, f"collector {posture!r} is not registered in plugins/modules/posture.py")
        conditions = [*listed(control.get("expect"))]
        for case in listed(control.get("not_applicable")):
            conditions += listed(case.get("when")) if isinstance(case, dict) else []
        looked = False
        for condition in conditions:
            try:
                paths, names = judge.names_in(str(condition))
            except jinja2.TemplateSyntaxError as exc:
                yield Problem(file, name, f"'{condition}' does not parse: {exc.message}")
                continue
            looked = looked or bool(paths)
            for path in paths:
                if path.split(".")[0] != posture:
                    yield Problem(file, name, f"'{condition}' looks at posture.{path}, but its collector is {posture}")
            for variable in names:
                if variable not in {**tree.roles[role].defaults, **tree.roles[role].internals}:
                    message = f"uses {variable}, which is neither posture nor a variable of the role"
                    yield Problem(file, name, f"'{condition}' {message}")
        if conditions and not looked:
            yield Problem(file, name, "no condition looks at the posture, so it can never fail because of the host")


def proofs_exist(tree: Tree) -> Iterator[Problem]:
    """Each control names at least one proof, in its own role's scenario, that pytest collects."""
    for file, control, role in tree.controls():
        name = control["id"]
        for proof in listed(control.get("proof")):
            path, _colons, function = str(proof).partition("::")
            if not function:
                yield Problem(file, name, f"proof {proof} must be <file>::<test function>")
            elif not path.startswith(f"molecule/{role}/tests/"):
                yield Problem(file, name, f"proof {proof} is not in molecule/{role}/tests/")
            elif not (tree.root / path).is_file():
                yield Problem(file, name, f"proof {proof}: no such file")
            elif proof not in tree.collected:
                yield Problem(file, name, f"proof {proof} is not collected by pytest")


def sabotage_is_complete(tree: Tree) -> Iterator[Problem]:
    """Each control is broken and mended once in its scenario, so that the assessment is seen to notice."""
    for role in tree.roles.values():
        file = f"molecule/{role.name}/sabotage.yml"
        own = {control["id"] for control in role.controls if isinstance(control, dict) and control.get("id")}
        counted: Counter = Counter()
        for entry in role.sabotage:
            name = str(entry.get("control", "?")) if isinstance(entry, dict) else str(entry)
            counted[name] += 1
            yield from shape(file, name, entry, {"control": str, "break": str, "mend": str}, {})
            if name not in own:
                yield Problem(file, name, "the role has no such control")
        yield from (Problem(file, name, "no sabotage of this control") for name in sorted(own - set(counted)))


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
            if name not in role.defaults and not (isinstance(spec, dict) and spec.get("required")):
                yield Problem(specs, name, "has no default and is not required")
            if name not in role.parameters:
                yield Problem(fragment, name, "is in argument_specs but not here")
            if isinstance(spec, dict) and not spec.get("description"):
                yield Problem(specs, name, "has no description")
        for path in role.parameters:
            if not _option(role.options, str(path)):
                yield Problem(fragment, str(path), f"is not a variable of {specs}")
        if f"{role.name}_state" not in role.defaults:
            yield Problem(defaults, f"{role.name}_state", "is missing: every role can be taken back")


def _option(options: Mapping[str, dict], path: str) -> dict:
    name, *keys = path.split(".")
    spec = options.get(name) or {}
    for key in keys:
        spec = (spec.get("options") or {}).get(key) or {}
    return spec


def parameters_are_sound(tree: Tree) -> Iterator[Problem]:
    """Each parameter says who sets it and why, with known bounds; one set by policy agrees with what the policy says."""
    optional = {"unit": str, "statements": list, "bounds": dict, "limits": dict}
    for role in tree.roles.values():
        file = f"policy/parameters/{role.name}.yml"
        for name, entry in role.parameters.items():
            wrong = list(shape(file, name, entry, {"source": str, "why": str}, optional))
            yield from wrong
            if not isinstance(entry, dict):
                continue
            if entry.get("source") not in SOURCES:
                yield Problem(file, name, f"source {entry.get('source')!r} is not one of {', '.join(SOURCES)}")
            for statement in listed(entry.get("statements")):
                if statement not in tree.statements:
                    yield Problem(file, name, f"statement {statement} is not in the register")
            for bound in {**(entry.get("bounds") or {}), **(entry.get("limits") or {})}:
                if bound not in bounds.BOUNDS:
                    yield Problem(file, name, f"bound {bound!r} is unknown; known are {', '.join(sorted(bounds.BOUNDS))}")
            if entry.get("source") == "policy":
                yield from _agrees_with_policy(tree, file, name, entry)
            elif entry.get("bounds"):
                yield Problem(file, name, "'bounds' are the policy's side; what site or technique sets goes under 'limits'")


def _agrees_with_policy(tree: Tree, file: str, name: str, entry: dict) -> Iterator[Problem]:
    """A number that is called policy is one that its statements give, to the side they give it."""
    statements = set(listed(entry.get("statements")))
    if not statements:
        yield Problem(file, name, "source is policy, but no statement is named")
    parts = [e for path, e in tree.roles[Path(file).stem].parameters.items() if path.startswith(f"{name}.")]
    if not any(isinstance(e, dict) and e.get("bounds") for e in [entry, *parts]):
        yield Problem(file, name, "source is policy, but neither it nor a part of it has bounds")
    settled = {key: value for key, value in tree.values.items() if key == name or statements & set(value.get("from") or [])}
    given = {
        number
        for statement in statements
        for key, number in (tree.statements.get(statement, {}).get("params") or {}).items()
        if isinstance(number, int | float) and key not in tree.site_decides
    }
    for bound, number in (entry.get("bounds") or {}).items():
        if bound not in ("at_most", "at_least", "equals") or isinstance(number, bool) or not isinstance(number, int | float):
            continue
        agreeing = [key for key, value in settled.items() if value.get("value") == number]
        if settled.get(name, {}).get("value", number) != number:
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
        file = f"roles/{role.name}/defaults/main.yml"
        if not (role.options and role.parameters):
            continue  # nothing to compare with, and said elsewhere
        try:
            said = bounds.violations(role.name, plain, root=tree.root)
        except (bounds.PolicyError, KeyError, TypeError, AttributeError) as exc:
            yield Problem(file, role.name, f"cannot be compared with the bounds: {exc}")
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
            for role in item.get("roles") or []:
                name = role.get("role", role.get("name")) if isinstance(role, dict) else role
                if "." not in str(name):
                    yield f"role {name!r} needs its full name"
            continue
        if "ansible.builtin.import_playbook" in item:
            continue
        for key, value in item.items():
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
    files = sorted(str(path.relative_to(root)) for path in root.glob("molecule/*/tests/test_*.py"))
    if not files:
        return set(), []
    options = ["-q", "--no-header", "--color=no", "--rootdir=.", "--import-mode=importlib", "-p", "no:cacheprovider"]
    command = [sys.executable, "-m", "pytest", "--collect-only", *options, *files]
    done = subprocess.run(command, cwd=root, check=False, capture_output=True, text=True)
    # testinfra adds the host to each name: test_x[ssh://...]
    found = {line.split("[", 1)[0] for line in done.stdout.splitlines() if "::" in line and line.startswith("molecule/")}
    if done.returncode in (0, 5):
        return found, []
    said = " ".join((done.stdout + done.stderr).split())[-600:]
    return found, [Problem("molecule", "pytest", f"the proofs cannot be collected (exit code {done.returncode}): ... {said}")]


def lint(root: Path, collected: set[str]) -> list[Problem]:
    """Return every problem below a root, sorted; ``collected`` is what pytest found there."""
    tree = Tree(root, collected)
    found = [problem for rule in RULES for problem in rule(tree)]
    return sorted({*tree.unreadable, *found})


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
