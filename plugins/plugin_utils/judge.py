# Copyright: (c) 2026, Bulwark contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Judge a posture against controls. Pure: how a condition is evaluated is given by the caller.

The statuses are those of the evidence: pass, fail, error (could not be observed: never a pass), not_applicable and
exception (knowingly not met, approved and not expired).
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jinja2
from ansible_collections.bulwark.hardening.plugins.plugin_utils.policy import exception_problem, meant_for

STATUSES = ("pass", "fail", "error", "not_applicable", "exception")
_PARSER = jinja2.Environment()
# "X | length == 0" as a whole, where X is one expression (with "or" and "and" it would not be X that has to be empty)
_SHOULD_BE_EMPTY = re.compile(r"((?:(?!\sor\s|\sand\s).)+?)\s*\|\s*length == 0", re.DOTALL)


def clock_of(posture: Mapping[str, Any], observed_at: str) -> dict | None:
    """Return how right a host's clock was when it was looked at, from the posture of time_sync; None if nobody looked.

    {offset_seconds, uncertainty_seconds, source, synchronised, at}: the clock was ahead or behind by no more than the sum of the
    first two (None when it follows nobody), so events of two hosts happened in the order of their times if these lie further
    apart than both sums. A container has no clock of its own: None, for its machine's has to be looked at.
    """
    seen = posture.get("time_sync")
    if not isinstance(seen, Mapping) or not seen.get("clock_settable"):
        return None
    tracking = seen.get("tracking") or {}
    followed = bool(tracking.get("source")) and tracking.get("leap") != "Not synchronised"
    return {
        "offset_seconds": tracking["offset_seconds"] if followed else None,
        "uncertainty_seconds": tracking["uncertainty_seconds"] if followed else None,
        "source": tracking["source"] if followed else "",
        "synchronised": followed,
        "at": observed_at,
    }


def names_in(expression: str) -> tuple[list[str], list[str]]:
    """Return (posture paths, other variable names) that a condition looks at, each once, in order of appearance.

    ``posture.ssh.sshd['x'] == ssh_y`` gives ``(["ssh.sshd.x"], ["ssh_y"])``. Raises jinja2.TemplateSyntaxError.
    """
    paths: dict[str, None] = {}
    names: dict[str, None] = {}

    def chain(node: jinja2.nodes.Node) -> list[str] | None:
        if isinstance(node, jinja2.nodes.Name):
            return [node.name]
        if isinstance(node, jinja2.nodes.Getattr):
            before = chain(node.node)
            return before and [*before, node.attr]
        if isinstance(node, jinja2.nodes.Getitem) and isinstance(node.arg, jinja2.nodes.Const):
            before = chain(node.node)
            return before and [*before, str(node.arg.value)]
        return None

    def walk(node: jinja2.nodes.Node) -> None:
        if isinstance(node, jinja2.nodes.Call) and isinstance(node.node, jinja2.nodes.Getattr):
            # a method is not something observed: what it is called on is
            for child in (node.node.node, *node.args, *node.kwargs):
                walk(child)
            return
        steps = chain(node)
        if steps and steps[0] == "posture":
            paths[".".join(steps[1:])] = None
            return
        if isinstance(node, jinja2.nodes.Name) and node.ctx == "load":
            names[node.name] = None
        for child in node.iter_child_nodes():
            walk(child)

    walk(_PARSER.parse("{{ " + expression + " }}"))
    return list(paths), list(names)


def look_up(posture: Mapping[str, Any], path: str) -> Any:
    """Return the value at a dotted path of a posture (keys and list indexes). Raises KeyError when there is nothing."""
    here: Any = posture
    for step in path.split("."):
        if isinstance(here, Mapping) and step in here:
            here = here[step]
        elif isinstance(here, Sequence) and not isinstance(here, str) and step.isdigit() and int(step) < len(here):
            here = here[int(step)]
        else:
            raise KeyError(path)
    return here


def judge(
    control: Mapping[str, Any],
    posture: Mapping[str, Any],
    errors: Mapping[str, str],
    variables: Mapping[str, Any],
    profile: str,
    evaluate: Callable[[str], bool],
    exceptions: Sequence[Mapping] = (),
    host: str = "",
    today: datetime.date | None = None,
    show: Callable[[str], Any] | None = None,
) -> dict:
    """Return one control's entry of the evidence record (its shape is in docs/evidence.md).

    ``variables`` are the role's variables; only those that a condition names are recorded. ``evaluate`` returns the truth of
    one condition and raises anything when it has none. ``show``, if given, returns the value of an expression: for conditions
    of the kind "this list is empty" the explanation then names what is on the list, not all that was looked at.
    """
    collector = control["posture"]
    entry = {
        "id": control["id"],
        "title": control["title"],
        "role": control["id"].split(".")[0],
        "status": "error",
        "why": "",
        "statements": list(control["statements"]),
        "profiles": list(control["profiles"]),
        "expected": list(control["expect"]),
        "observed": {},
        "variables": {},
        "source": control.get("source", ""),
        "proof": [control["proof"]] if isinstance(control["proof"], str) else list(control["proof"]),
        "remedy": control.get("remedy", ""),
        "exception": None,
    }
    looked_at = [names_in(condition) for condition in control["expect"]]
    unobserved = posture.get(collector, {}).get("unobserved", {})
    for path in dict.fromkeys(p for paths, _names in looked_at for p in paths):
        try:
            entry["observed"][path] = look_up(posture, path)
        except KeyError:
            entry["observed"][path] = None
    for name in dict.fromkeys(n for _paths, names in looked_at for n in names):
        if name in variables:
            entry["variables"][name] = variables[name]

    if not meant_for(control, profile):
        return {**entry, "status": "not_applicable", "why": f"Meant for {', '.join(control['profiles'])}; this is a {profile}."}
    if collector in errors:
        return {**entry, "why": f"Could not be observed: {errors[collector]}"}
    if collector not in posture:
        return {**entry, "why": f"Could not be observed: collector {collector} returned nothing"}
    for case in control.get("not_applicable", []):
        try:
            if evaluate(case["when"]):
                return {**entry, "status": "not_applicable", "why": case["reason"]}
        except Exception as exc:
            reason = _reason(exc, unobserved, case["when"])
            return {**entry, "why": f"Could not tell whether it applies: {case['when']}: {reason}"}

    failed = []
    for condition, (paths, _names) in zip(control["expect"], looked_at, strict=True):
        try:
            holds = evaluate(condition)
        except Exception as exc:
            return {**entry, "why": f"Could not be observed: {condition}: {_reason(exc, unobserved, condition)}"}
        if holds is not True and holds is not False:
            return {**entry, "why": f"{condition} is neither true nor false but {holds!r}"}
        if not holds:
            listed = _SHOULD_BE_EMPTY.fullmatch(condition) if show else None
            if listed:
                seen = f"found: {_short(show(listed[1]))}"
            else:
                seen = ", ".join(f"{path} = {_short(entry['observed'][path])}" for path in paths)
            failed.append(f"{condition} is false" + (f" ({seen})" if seen else ""))
    if not failed:
        return {**entry, "status": "pass"}
    entry["why"] = "; ".join(failed)
    today = today or datetime.date.today()
    for exception in exceptions:
        if exception.get("control") != control["id"] or host not in (exception.get("hosts") or [host]):
            continue
        problem = exception_problem(exception, today)
        if problem is None:
            return {**entry, "status": "exception", "exception": dict(exception)}
        entry["why"] += f"; {problem}"
    return {**entry, "status": "fail"}


def unjudged(control: Mapping[str, Any], why: str) -> dict:
    """Return the entry of a control on a host that could not be reached or looked at."""
    return judge(control, {}, {control["posture"]: why}, {}, control["profiles"][0], lambda _condition: False)


def tally(entries: Iterable[Mapping[str, Any]]) -> tuple[dict[str, int], dict[str, float | None]]:
    """Return (counts by status, scores before and after exceptions); a score is None when nothing applied."""
    counts = dict.fromkeys(STATUSES, 0)
    for entry in entries:
        counts[entry["status"]] += 1
    judged = counts["pass"] + counts["fail"] + counts["error"] + counts["exception"]
    if not judged:
        return counts, {"before_exceptions": None, "after_exceptions": None}
    return counts, {
        "before_exceptions": counts["pass"] / judged,
        "after_exceptions": (counts["pass"] + counts["exception"]) / judged,
    }


def _short(value: Any, length: int = 160) -> str:
    text = repr(value)
    return text if len(text) <= length else text[: length - 3] + "..."


def _reason(exc: Exception, unobserved: Mapping[str, str], condition: str) -> str:
    """Say why a condition has no answer: what the collector could not see of it, or else what went wrong."""
    steps = {step for path in names_in(condition)[0] for step in path.split(".")}
    said = "; ".join(f"{key}: {reason}" for key, reason in unobserved.items() if steps & set(key.split(".")))
    return said or f"{type(exc).__name__}: {exc}"
