# Copyright: (c) 2026, Bulwark contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the policy allows: loading roles, controls and bounds of the collection, and checking values against them.

Everything here runs on the controller and is pure but for reading the collection's own files. A *bound* is one entry
of policy/parameters/<role>.yml; policy/register.yml says what each statement asks for.
"""

from __future__ import annotations

import datetime
import functools
import ipaddress
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from ansible.module_utils.common.arg_spec import ArgumentSpecValidator

ROOT = Path(__file__).resolve().parents[2]
PROFILES = ("server", "workstation", "gateway", "collector", "repository")
SERVERS = ("collector", "repository")  # kinds of server: what is meant for every server is meant for them, too
EXCEPTION_KEYS = {"approver", "approver_role", "reason", "compensating", "ticket", "expires"}

# Control characters, C1 included; the first keeps newline and tab for texts of several lines.
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")
_CONTROL_BUT_NEWLINE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")


class PolicyError(Exception):
    """The collection's own policy data cannot be read or is not what it should be."""


def read_yaml(path: Path) -> Any:
    """Return a YAML file's data. Raises PolicyError naming the file when it is missing, unreadable or not YAML."""
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as exc:
        raise PolicyError(f"{path}: {exc}") from exc


def all_roles(root: Path = ROOT) -> list[str]:
    """Return the names of the roles that have controls, sorted."""
    return sorted(path.parent.parent.name for path in root.glob("roles/*/meta/controls.yml"))


def controls_of(role: str, root: Path = ROOT) -> list[dict]:
    """Return a role's controls as written in its meta/controls.yml."""
    data = read_yaml(root / "roles" / role / "meta" / "controls.yml")
    if not isinstance(data, Mapping) or not isinstance(data.get("controls"), list):
        raise PolicyError(f"roles/{role}/meta/controls.yml: expected a mapping with a list 'controls'")
    return data["controls"]


def meant_for(control: Mapping, profile: str) -> bool:
    """Return whether a control is meant for hosts of a profile."""
    return profile in control["profiles"] or (profile in SERVERS and "server" in control["profiles"])


def roles_for(profile: str, root: Path = ROOT) -> list[str]:
    """Return the roles that concern hosts of a profile, sorted: those with a control that is meant for it."""
    return [role for role in all_roles(root) if any(meant_for(control, profile) for control in controls_of(role, root))]


def options_of(role: str, root: Path = ROOT) -> dict[str, dict]:
    """Return the public variables of a role with their argument specification."""
    data = read_yaml(root / "roles" / role / "meta" / "argument_specs.yml")
    return data["argument_specs"]["main"].get("options", {})


def parameters_of(role: str, root: Path = ROOT) -> dict[str, dict]:
    """Return the bounds of a role's variables, by variable (or variable.key for dicts in a list)."""
    data = read_yaml(root / "policy" / "parameters" / f"{role}.yml")
    if not isinstance(data, Mapping) or not isinstance(data.get("parameters"), Mapping):
        raise PolicyError(f"policy/parameters/{role}.yml: expected a mapping 'parameters'")
    return dict(data["parameters"])


@functools.lru_cache(maxsize=4)
def requirements(root: Path = ROOT) -> dict[str, str]:
    """Return what each statement asks for, by id. Raises PolicyError when the register cannot be read."""
    path = root / "policy" / "register.yml"
    try:  # the C loader reads the 388 statements in a twentieth of a second, the other takes one and a half
        register = yaml.load(path.read_text(encoding="utf-8"), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
        return {entry["id"]: entry["requirement"] for entry in register["statements"]}
    except (OSError, UnicodeDecodeError, yaml.YAMLError, KeyError, TypeError) as exc:
        raise PolicyError(f"{path}: the register of statements cannot be read: {type(exc).__name__}: {exc}") from exc


# ---------------------------------------------------------------------------------------------------------------
# Bounds: each returns what the value should have been, or None when it holds.


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _strings(key)
            yield from _strings(item)
    elif isinstance(value, Sequence):
        for item in value:
            yield from _strings(item)


def _items(value: Any) -> Sequence:
    return value if isinstance(value, Sequence) and not isinstance(value, str) else [value]


def _is_date(value: Any) -> bool:
    try:
        return bool(re.fullmatch(r"\d{4}-\d{2}-\d{2}", str(value))) and bool(datetime.date.fromisoformat(str(value)))
    except ValueError:
        return False


def _network(value: Any, bound: Any) -> str | None:
    """Return what each item should have been: a network in CIDR notation, no wider than the bound's ``ipv4`` and ``ipv6`` say.

    The bound is true, or a mapping with the shortest prefixes that are allowed, and ``any: true`` where the word any may stand.
    """
    widest = bound if isinstance(bound, Mapping) else {}
    for item in _items(value) if bound else ():
        if item == "any" and widest.get("any"):
            continue
        try:
            if "/" not in str(item):
                raise ValueError
            network = ipaddress.ip_network(str(item))
        except ValueError:
            either = " (or any)" if widest.get("any") else ""
            return f"must be networks in CIDR notation without host bits, such as 192.0.2.0/24{either}"
        least = widest.get(f"ipv{network.version}", 0)
        if network.prefixlen < least:
            return f"must be networks of /{least} or smaller (IPv{network.version})"
    return None


def _disjoint(value: Any, bound: Any) -> str | None:
    """Return that networks overlap, if two of them do; what is no network is another bound's business."""
    found = []
    for item in _items(value) if bound else ():
        try:
            network = ipaddress.ip_network(str(item), strict=False)
        except ValueError:
            continue
        for other in found:
            if other.version == network.version and other.overlaps(network):
                return f"must not overlap, as {other} and {network} do"
        found.append(network)
    return None


def _listed(items: Iterable) -> str:
    return ", ".join(str(item) for item in items)


BOUNDS = {
    "at_most": lambda v, b: None if v <= b else f"must be at most {b}",
    "at_least": lambda v, b: None if v >= b else f"must be at least {b}",
    "equals": lambda v, b: None if v == b else f"must be {b}",
    "one_of": lambda v, b: None if v in b else f"must be one of {_listed(b)}",
    "subset_of": lambda v, b: None if set(_items(v)) <= set(b) else f"may only hold {_listed(b)}",
    "contains": lambda v, b: None if set(b) <= set(_items(v)) else f"must hold {_listed(b)}",
    "min_items": lambda v, b: None if len(v) >= b else f"must have at least {b} item(s)",
    "max_items": lambda v, b: None if len(v) <= b else f"must have at most {b} item(s)",
    "unique": lambda v, b: None if not b or len({str(i) for i in v}) == len(v) else "must not repeat an item",
    "matches": lambda v, b: None if all(re.fullmatch(b, str(i)) for i in _items(v)) else f"must match {b}",
    "not_matches": lambda v, b: None if not any(re.fullmatch(b, str(i)) for i in _items(v)) else f"must not match {b}",
    "single_line": lambda v, b: (
        None if not b or not any(_CONTROL.search(s) for s in _strings(v)) else "must be one line without control characters"
    ),
    "text": lambda v, b: (
        None
        if not b or not any(_CONTROL_BUT_NEWLINE.search(s) for s in _strings(v))
        else "must be text without control characters other than newline and tab"
    ),
    "max_length": lambda v, b: None if all(len(s) <= b for s in _strings(v)) else f"must be at most {b} characters long",
    "absolute_path": lambda v, b: (
        None
        if not b or all(str(i).startswith("/") and ".." not in str(i).split("/") for i in _items(v))
        else "must be an absolute path without '..'"
    ),
    "not_empty": lambda v, b: None if not b or (v not in ("", None) and v != [] and v != {}) else "must not be empty",
    "network": _network,
    "disjoint": _disjoint,
    "date": lambda v, b: None if not b or _is_date(v) else "must be a date written YYYY-MM-DD",
}


def _broken(value: Any, bounds: Mapping[str, Any]) -> Iterator[str]:
    for name, bound in bounds.items():
        if name not in BOUNDS:
            raise PolicyError(f"unknown bound {name!r}; known are {_listed(sorted(BOUNDS))}")
        try:
            said = BOUNDS[name](value, bound)
        except TypeError:
            said = f"cannot be compared with {name} {bound}"
        if said:
            yield said


def _shown(value: Any, secret: bool) -> str:
    text = "(hidden)" if secret else repr(value)
    return text if len(text) <= 120 else text[:117] + "..."


def _origin(parameter: Mapping[str, Any], root: Path) -> str:
    """Say in one bracket who sets a bound: the statements with what they ask for, or the site, and why."""
    known = requirements(root)
    said = [f"{name}: {known.get(name, 'unknown statement').rstrip('.')}" for name in parameter.get("statements", [])]
    if parameter.get("source") != "policy" or not said:
        said.append(f"{parameter.get('source', 'technical')} limit: {parameter.get('why', 'no reason given').rstrip('.')}")
    return "; ".join(said)


def _values_at(variables: Mapping[str, Any], path: str) -> Iterator[tuple[str, Any]]:
    """Yield (where, value) for a parameter path: a variable, or a key of each dict in a list (or dict) variable."""
    name, *keys = path.split(".")
    if name not in variables:
        return
    found = [(name, variables[name])]
    for key in keys:
        deeper = []
        for where, value in found:
            entries = [(f"{where}[{n}]", e) for n, e in enumerate(value)] if isinstance(value, list) else [(where, value)]
            deeper += [(f"{w}.{key}", e[key]) for w, e in entries if isinstance(e, Mapping) and e.get(key) is not None]
        found = deeper
    yield from found


def unset(role: str, variables: Mapping[str, Any], root: Path = ROOT) -> list[str]:
    """Return one message for each variable that has no default which would do and is not set; none if the role is taken back."""
    if variables.get(f"{role}_state") == "absent":
        return []
    needed = {name: entry for name, entry in parameters_of(role, root).items() if entry.get("needed")}
    return [f"{name} is not set: must be ({_origin(entry, root)})" for name, entry in needed.items() if not variables.get(name)]


def violations(
    role: str,
    variables: Mapping[str, Any],
    exceptions: Sequence[Mapping] = (),
    today: datetime.date | None = None,
    root: Path = ROOT,
) -> list[str]:
    """Return everything that is wrong with a role's variables, one message each, or an empty list.

    ``variables`` holds plain values, by name; only names that start with the role's prefix are looked at. Each message
    names the variable, its value, the bound and the statement (or the reason of a technical limit). An approved,
    unexpired exception whose ``parameter`` is the variable lifts the policy's own side of a bound, never a technical limit.
    """
    options, parameters = options_of(role, root), parameters_of(role, root)
    longer = tuple(f"{other}_" for other in all_roles(root) if other.startswith(f"{role}_"))  # backup_repository_ is not backup's
    mine = {name: value for name, value in variables.items() if name.startswith(f"{role}_") and not name.startswith(longer)}
    today = today or datetime.date.today()
    lifted = {e["parameter"] for e in exceptions if e.get("parameter") and not exception_problem(e, today)}
    said: list[str] = []

    foreign = set(variables.get("bulwark_foreign_variables") or [])
    for name in sorted(set(mine) - set(options) - foreign):
        said.append(
            f"{name} = {_shown(mine.pop(name), _looks_secret(name))}: unknown variable of role {role}; known are "
            f"{_listed(sorted(options))} (technical limit: a misspelt setting must not be taken for one that is in force; "
            "name variables of other roles in bulwark_foreign_variables)"
        )
    for name in foreign - set(options):
        mine.pop(name, None)

    checked = {}
    for name, spec in options.items():
        if name not in mine:
            continue
        result = ArgumentSpecValidator({name: _module_spec(spec)}).validate({name: mine[name]})
        errors = [*result.error_messages, *_not_text(name, mine[name], spec)]
        if errors:
            parameter = parameters.get(name, {"source": "technical", "why": spec_text(spec)})
            for message in errors:
                value = _shown(mine[name], bool(spec.get("no_log")))
                text = "wrong type or key" if spec.get("no_log") else message
                said.append(f"{name} = {value}: must be {_type_name(spec)}: {text} ({_origin(parameter, root)})")
        else:
            checked[name] = result.validated_parameters[name]

    for path, parameter in parameters.items():
        secret = bool(_option_at(options, path).get("no_log"))
        unit = f" {parameter['unit']}" if parameter.get("unit") else ""
        policy_bounds, limits = dict(parameter.get("bounds") or {}), dict(parameter.get("limits") or {})
        if not {"text", "matches"} & (set(policy_bounds) | set(limits)):
            limits["single_line"] = True
        if path in lifted:
            policy_bounds = {}
        for where, value in _values_at(checked, path):
            if value is None:
                continue
            for message in [*_broken(value, policy_bounds), *_broken(value, limits)]:
                said.append(f"{where} = {_shown(value, secret)}: {message}{unit} ({_origin(parameter, root)})")
    return said


def spec_text(spec: Mapping[str, Any]) -> str:
    """Return a variable's description as one line."""
    text = spec.get("description", "")
    return text if isinstance(text, str) else " ".join(text)


def _looks_secret(name: str) -> bool:
    return bool(re.search(r"pass|secret|token|_key", name))


def _type_name(spec: Mapping[str, Any]) -> str:
    kind = spec.get("type", "str")
    return f"list of {spec['elements']}" if kind == "list" and spec.get("elements") else str(kind)


def _option_at(options: Mapping[str, Mapping], path: str) -> Mapping[str, Any]:
    name, *keys = path.split(".")
    spec: Mapping[str, Any] = options.get(name, {})
    for key in keys:
        spec = (spec.get("options") or {}).get(key, {})
    return spec


def _not_text(where: str, value: Any, spec: Mapping[str, Any]) -> Iterator[str]:
    """Yield what stands where text is meant but is a list or a mapping: Ansible would silently write it out as text."""
    kind = spec.get("type", "str")
    if kind in ("str", "path") and isinstance(value, (Mapping, list, tuple)):
        yield f"{where} is a {'mapping' if isinstance(value, Mapping) else 'list'} where text is meant"
    for number, item in enumerate(value if kind == "list" and isinstance(value, (list, tuple)) else ()):
        deeper = {**spec, "type": spec.get("elements", "raw")}
        yield from _not_text(f"{where}[{number}]", item, deeper)
    if kind == "dict" and isinstance(value, Mapping):
        for key, option in (spec.get("options") or {}).items():
            if key in value:
                yield from _not_text(f"{where}.{key}", value[key], option)


def _module_spec(spec: Mapping[str, Any]) -> dict:
    """Turn one argument_specs.yml entry into what Ansible's validator takes (it knows no descriptions or versions)."""
    kept = {key: spec[key] for key in ("type", "elements", "choices", "required") if key in spec}
    if spec.get("options"):
        kept["options"] = {key: _module_spec(value) for key, value in spec["options"].items()}
    return kept


# ---------------------------------------------------------------------------------------------------------------
# Exceptions


def exception_problem(exception: Mapping[str, Any], today: datetime.date) -> str | None:
    """Return why an exception does not count, or None when it is complete, approved and not expired."""
    named = exception.get("control") or exception.get("parameter") or "(unnamed)"
    missing = sorted(key for key in EXCEPTION_KEYS if not exception.get(key))
    if missing or named == "(unnamed)":
        return f"exception for {named}: {_listed(missing or ['control or parameter'])} missing"
    if not _is_date(exception["expires"]):
        return f"exception for {named}: expires = {exception['expires']!r}: must be a date written YYYY-MM-DD"
    if datetime.date.fromisoformat(str(exception["expires"])) < today:
        return f"exception for {named}: expired on {exception['expires']}"
    return None
