# Copyright: (c) 2026, Bulwark contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Turn the host records of one run into the run record, the CSV and the HTML report. Pure: no files, no clock.

What a host says about itself is hostile input here: every value is escaped on its way into the report, made visible when it
holds control characters, and kept from becoming a spreadsheet formula. docs/evidence.md describes the files and the scores.
"""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import json
import math
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jinja2
from ansible_collections.bulwark.hardening.plugins.plugin_utils.judge import STATUSES, tally
from markupsafe import Markup

HOST_SCHEMA = "bulwark.host/1"
RUN_SCHEMA = "bulwark.run/1"
HOST_STATUSES = ("unreachable", "failed", "assessed", "excluded")
POLICIES = {
    "HMS": "IT Professional Code of Conduct",
    "UMDNJ": "Protection of Sensitive Electronic Information",
    "MA": "Enterprise Communications and Operations Management",
    "WTH": "System Access Policy",
}
CSV_COLUMNS = (
    "run_id", "host", "host_status", "profile", "os", "control", "title", "role", "status", "why", "statements", "expected",
    "observed", "variables", "source", "proof", "remedy", "exception_ticket", "exception_approver", "exception_expires",
    "observed_at",
)  # fmt: skip

_RUN_ID = re.compile(r"(\d{4})(\d{2})(\d{2})T(\d{2})(\d{2})(\d{2})Z-[0-9A-Za-z]+")
_SECRET = re.compile(
    r"pass(word|phrase|wd)s?(_|$)|(^|_)(secret|token|credential|psk|skey|ikey|api_?key|private_?key)s?(_|$)", re.I
)
_FORMULA = tuple("=+-@＝＋－＠")  # noqa: RUF001  (spreadsheets take the wide forms, too)
_SHOWN_LENGTH = 2000  # characters of one observed value in the HTML; the record holds all of it


# ---------------------------------------------------------------------------------------------------------------
# Records


def started_at(run_id: str) -> str | None:
    """Return the UTC time a run id begins with, as ``2026-11-21T23:59:59Z``, or None when it is not a run id."""
    found = _RUN_ID.fullmatch(run_id)
    return "{}-{}-{}T{}:{}:{}Z".format(*found.groups()) if found else None


def record_problems(record: Any, run_id: str) -> list[str]:
    """Return what is wrong with a host record, in words; an empty list means it can be relied on.

    Counts must be those of the listed controls: a record that contradicts itself was written by something else, or torn.
    """
    if not isinstance(record, Mapping):
        return ["it is not a JSON object"]
    said = []
    if record.get("schema") != HOST_SCHEMA:
        said.append(f"its schema is {record.get('schema')!r}, not {HOST_SCHEMA!r}")
    if record.get("run_id") != run_id:
        said.append(f"it belongs to run {record.get('run_id')!r}, not to {run_id!r}")
    if not isinstance(record.get("host"), str) or not record["host"]:
        said.append("it names no host")
    if record.get("status") not in HOST_STATUSES:
        said.append(f"its status is {record.get('status')!r}")
    elif record["status"] != "assessed" and not record.get("reason"):
        said.append(f"it gives no reason for being {record['status']}")
    controls = record.get("controls")
    if not isinstance(controls, list) or not all(isinstance(control, Mapping) for control in controls):
        return [*said, "it has no list of controls"]
    seen = set()
    for control in controls:
        name = control.get("id")
        if not isinstance(name, str) or not name:
            said.append("one of its controls has no id")
            continue
        if name in seen:
            said.append(f"control {name} is listed twice")
        seen.add(name)
        if control.get("status") not in STATUSES:
            said.append(f"control {name} has status {control.get('status')!r}")
        if control.get("status") == "exception" and not isinstance(control.get("exception"), Mapping):
            said.append(f"control {name} has status exception, but no exception")
        for key, kind, called in (
            ("statements", list, "list"),
            ("expected", list, "list"),
            ("observed", Mapping, "mapping"),
            ("variables", Mapping, "mapping"),
        ):
            if key in control and not isinstance(control[key], kind):
                said.append(f"control {name}: {key} is not a {called}")
    if record.get("status") in ("unreachable", "failed") and any(control.get("status") == "pass" for control in controls):
        said.append(f"it is {record['status']}, but some of its controls pass")
    if record.get("status") == "excluded" and controls:
        said.append("it is excluded, but lists controls")
    if not said and record.get("counts") != tally(controls)[0]:
        said.append("its counts are not those of its controls")
    return said


def stand_in(host: str, run_id: str, status: str, reason: str, controls: Sequence[Mapping] = ()) -> dict:
    """Return the record of a host that has none of its own; ``controls`` are its entries with status error, if known."""
    counts, score = tally(controls)
    return {
        "schema": HOST_SCHEMA, "run_id": run_id, "host": host, "status": status, "reason": reason, "profile": "", "roles": [],
        "identity": {}, "tool": {}, "revision": "", "observed_at": "", "clock": None, "assessed_at": "",
        "controls": list(controls), "posture": {}, "posture_errors": {}, "counts": counts, "score": score,
    }  # fmt: skip


def gather(
    found: Sequence[tuple[str, Any]],
    expected: Iterable[str],
    excluded: Mapping[str, str],
    run_id: str,
    known_controls: Mapping[str, Sequence[Mapping]] | None = None,
) -> tuple[list[dict], list[str]]:
    """Return (one record for every host, what was wrong with those found).

    ``found`` is a list of (file name without ``.json``, parsed content or None when it is not JSON). A record that cannot be
    relied on is replaced by a failed one: it never passes and is never left out. ``known_controls`` are the entries, all
    with status error, of hosts that turn out to have no record.
    """
    known_controls = known_controls or {}
    records: dict[str, dict] = {}
    problems = []

    def put_failed(host: str, reason: str) -> None:
        records[host] = stand_in(host, run_id, "failed", reason, known_controls.get(host, ()))

    for name, content in found:
        faults = ["it is not JSON"] if content is None else record_problems(content, run_id)
        host = content["host"] if isinstance(content, Mapping) and isinstance(content.get("host"), str) else name
        host = host or name
        if host in records:
            faults = [f"there is more than one record of {host}"]
        if faults:
            problems.append(f"hosts/{name}.json cannot be relied on: {'; '.join(faults)}")
            put_failed(host, f"Its record cannot be relied on: {'; '.join(faults)}.")
        else:
            records[host] = _complete(content)
    expected = list(dict.fromkeys(expected))
    for host in sorted(set(records) - set(expected) - set(excluded)):
        problems.append(f"{host} has a record, but is not in the inventory")
    for host, reason in excluded.items():
        if records.get(host, {}).get("status", "excluded") == "excluded":
            records[host] = stand_in(host, run_id, "excluded", reason)
        else:
            problems.append(f"{host} is excluded, but has a record: the record counts")
    for host in expected:
        if host not in records:
            problems.append(f"{host} has no record")
            put_failed(host, "No record: nothing was written about this host in this run.")
    return sorted(records.values(), key=_worst_first), problems


def _complete(record: Mapping) -> dict:
    """Return a record with every field the report shows, also where an optional one was left out."""
    whole = {**stand_in(record["host"], record["run_id"], record["status"], ""), **record}
    if not isinstance(whole["identity"], Mapping):
        whole["identity"] = {}
    if not isinstance(whole["clock"], Mapping):
        whole["clock"] = None
    optional = {"title": "", "role": "", "why": "", "source": "", "remedy": "", "exception": None}
    lists = {"statements": [], "expected": [], "proof": [], "observed": {}, "variables": {}}
    whole["controls"] = [{**optional, **lists, **control} for control in record["controls"]]
    return whole


def _worst_first(record: Mapping) -> tuple:
    score = record["score"]["before_exceptions"] if isinstance(record.get("score"), Mapping) else None
    return HOST_STATUSES.index(record["status"]), 2.0 if score is None else score, record["host"]


# ---------------------------------------------------------------------------------------------------------------
# The run


def summarise(records: Sequence[Mapping]) -> dict:
    """Return counts, scores and the hosts' entries of a run.

    Every control result of every host that was not excluded counts once. A host whose controls are unknown counts as many
    errors as the longest list of controls in the run has entries, and at least one, so that a silent host always lowers the
    score and never improves it.
    """
    heaviest = max((len(record["controls"]) for record in records), default=0)
    counts = dict.fromkeys(STATUSES, 0)
    assumed = 0
    inventory = []
    for record in records:
        own, score = tally(record["controls"])
        unknown = record["status"] in ("unreachable", "failed") and not record["controls"]
        stands_for = max(heaviest, 1) if unknown else 0
        if unknown:
            own, score = {**own, "error": stands_for}, {"before_exceptions": 0.0, "after_exceptions": 0.0}
        assumed += stands_for
        counts = {status: counts[status] + own[status] for status in STATUSES}
        inventory.append(
            {
                "host": record["host"],
                "status": record["status"],
                "reason": record.get("reason", ""),
                "counts": own,
                "assumed_errors": stands_for,
                "score": score,
            }
        )
    judged = counts["pass"] + counts["fail"] + counts["error"] + counts["exception"]
    return {
        "inventory": inventory,
        "hosts": {status: sum(record["status"] == status for record in records) for status in HOST_STATUSES},
        "counts": counts,
        "assumed_errors": assumed,
        "score": {
            "before_exceptions": counts["pass"] / judged if judged else None,
            "after_exceptions": (counts["pass"] + counts["exception"]) / judged if judged else None,
        },
    }


def run_record(
    run_id: str, records: Sequence[Mapping], problems: Sequence[str], parameters: Mapping, about: Mapping[str, Any]
) -> dict:
    """Return the run record. ``about`` gives started_at, finished_at, tool, revision and register_sha256."""
    return {
        "schema": RUN_SCHEMA,
        "run_id": run_id,
        **about,
        "parameters": withheld({**shared_parameters(records), **parameters}),
        **summarise(records),
        "problems": list(problems),
        "previous": None,  # the place of the previous package's digest, once packages are chained
    }


def shared_parameters(records: Sequence[Mapping]) -> dict[str, Any]:
    """Return the roles' variables that were the same on all hosts; where hosts differ, the value says to look there."""
    shared: dict[str, Any] = {}
    for name, value in (item for record in records for item in record.get("parameters", {}).items()):
        shared[name] = value if shared.setdefault(name, value) == value else "(differs: see the hosts' records)"
    return dict(sorted(shared.items()))


def withheld(value: Any, name: str = "") -> Any:
    """Return a plain copy of a value with everything replaced whose name says that it is a secret."""
    if name and _SECRET.search(name) and value not in (None, "", [], {}) and not isinstance(value, (bool, int, float)):
        return "(withheld)"
    if isinstance(value, Mapping):
        return {str(key): withheld(item, str(key)) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, (str, bytes)):
        return [withheld(item) for item in value]
    if value is None or isinstance(value, (bool, int, float)):
        return value
    return str(value)


# ---------------------------------------------------------------------------------------------------------------
# Words and values as people read them


def visible(text: str) -> str:
    """Return text with every character written out that would be invisible, reorder the line or break the encoding."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(
        f"\\u{ord(char):04x}"
        if unicodedata.category(char) in ("Cc", "Cf", "Cs", "Co", "Zl", "Zp") and char not in "\n\t"
        else char
        for char in text
    )


def percent(score: float | None) -> str:
    """Return a score in whole per cent, rounded down: only a perfect one is 100 %."""
    return "none" if score is None else f"{math.floor(score * 100 + 1e-9)} %"


def clock_text(clock: Mapping | None) -> str:
    """Return how far off a clock was, for people: "0.04 ms ± 12 ms", "Not synchronised", or nothing when nobody looked."""
    if not clock:
        return ""
    numbers = [clock.get("offset_seconds"), clock.get("uncertainty_seconds")]
    if clock.get("synchronised") is not True or not all(_is_number(number) for number in numbers):
        return "Not synchronised"
    return " ± ".join(f"{number:.3g} s" if abs(number) >= 1 else f"{number * 1000:.3g} ms" for number in numbers)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def as_text(value: Any) -> str:
    """Return a value the way the report shows it: text as it is, everything else as JSON."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, sort_keys=True, default=str)


def policy_of(statement: str) -> str:
    """Return the policy a statement belongs to, which is how its id begins."""
    return statement.partition("-")[0]


def _count(number: int, one: str, many: str) -> str:
    return f"{number} {one if number == 1 else many}"


def sentences(summary: Mapping[str, Any]) -> list[str]:
    """Return what a run says, in plain words: the verdict first."""
    counts, hosts = summary["counts"], summary["hosts"]
    judged = counts["pass"] + counts["fail"] + counts["error"] + counts["exception"]
    silent = hosts["unreachable"] + hosts["failed"]
    expected = silent + hosts["assessed"]
    if not expected:
        return ["No host was assessed, so this run shows nothing."]
    if not judged:
        said = ["No control applied to any host, so this run shows nothing."]
    elif counts["pass"] == judged:
        said = [f"All {_count(judged, 'control result', 'control results')} on {_count(expected, 'host', 'hosts')} are met."]
    else:
        parts = [
            f"{counts[key]} {words}"
            for key, words in (
                ("fail", "not met"),
                ("error", "could not be observed"),
                ("exception", "not met under an approved exception"),
            )
            if counts[key]
        ]
        listed = parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"
        said = [f"{counts['pass']} of {_count(judged, 'control result', 'control results')} are met; {listed}."]
    if silent:
        said.append(
            f"{_count(silent, 'host', 'hosts')} of {expected} could not be assessed and "
            f"{'counts' if silent == 1 else 'count'} as failed."
        )
    if hosts["excluded"]:
        said.append(f"{_count(hosts['excluded'], 'host was', 'hosts were')} excluded on purpose and do not count.")
    return said


# ---------------------------------------------------------------------------------------------------------------
# CSV


def cell(value: Any) -> str:
    """Return a CSV cell that no spreadsheet takes for a formula (OWASP, CSV injection): those get a leading apostrophe."""
    text = visible(as_text(value))
    return f"'{text}" if text[:1] in ("\t", "\n") or text.lstrip()[:1] in _FORMULA else text


def csv_text(records: Sequence[Mapping]) -> str:
    """Return controls.csv: one row for every host and control; a host without controls has one row of its own."""
    out = io.StringIO()
    writer = csv.writer(out, quoting=csv.QUOTE_ALL, lineterminator="\r\n")
    writer.writerow(CSV_COLUMNS)
    for record in records:
        identity = record.get("identity") or {}
        common = {
            "run_id": record["run_id"],
            "host": record["host"],
            "host_status": record["status"],
            "profile": record.get("profile", ""),
            "os": f"{identity.get('os_id', '')} {identity.get('os_version', '')}".strip(),
            "observed_at": record.get("observed_at", ""),
        }
        silent = {"status": "" if record["status"] in ("excluded", "assessed") else "error", "why": record.get("reason", "")}
        for control in record["controls"] or [silent]:
            exception = control.get("exception") or {}
            row = {
                **common,
                "control": control.get("id", ""),
                **{key: control.get(key, "") for key in ("title", "role", "status", "why", "source", "remedy")},
                "statements": " ".join(map(str, control.get("statements", []))),
                "expected": " and ".join(map(str, control.get("expected", []))),
                "observed": control.get("observed", ""),
                "variables": control.get("variables", ""),
                "proof": " ".join(map(str, control.get("proof", []))),
                **{f"exception_{key}": exception.get(key, "") for key in ("ticket", "approver", "expires")},
            }
            writer.writerow([cell(row[name]) for name in CSV_COLUMNS])
    return out.getvalue()


# ---------------------------------------------------------------------------------------------------------------
# HTML


def _csp_hash(text: str) -> str:
    """Return the source expression that lets a browser run exactly this inline script or style (CSP level 2)."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _shown(value: Any) -> str:
    """Return a value for the page: a longer list one item a line, and no more than a screenful of anything."""
    text = as_text(value)
    if isinstance(value, list) and len(text) > 80:
        text = "[" + ",\n ".join(json.dumps(item, ensure_ascii=False, sort_keys=True, default=str) for item in value) + "]"
    return text if len(text) <= _SHOWN_LENGTH else f"{text[:_SHOWN_LENGTH]} … ({len(text)} characters; the record has all)"


def _groups(records: Sequence[Mapping], keys_of: Any) -> list[dict]:
    """Return counts and score by group; ``keys_of`` gives the groups of a control's entry."""
    entries: dict[str, list[Mapping]] = {}
    for record in records:
        for control in record["controls"]:
            for key in dict.fromkeys(keys_of(control)):
                entries.setdefault(key, []).append(control)
    result = []
    for key, members in entries.items():
        counts, score = tally(members)
        controls = list(dict.fromkeys(member["id"] for member in members))
        result.append({"name": key, "counts": counts, "score": score, "controls": controls})
    return result


def _in_policy_order(group: Mapping) -> tuple:
    """Sort policies and statements as the register has them, numbers as numbers: WTH-7.7-2 before WTH-7.10-1."""
    known = [*POLICIES]
    policy = policy_of(group["name"])
    # Splitting at numbers gives text at even and digits at odd places, so like is always compared with like.
    parts = [int(part) if place % 2 else part for place, part in enumerate(re.split(r"([0-9]+)", group["name"]))]
    return known.index(policy) if policy in known else len(known), policy, parts


def render(run: Mapping[str, Any], records: Sequence[Mapping], template: str, requirements: Mapping[str, str]) -> str:
    """Return the HTML report. ``requirements`` says what each statement asks for, by id.

    The template's script and style are fixed text and are named by digest in the content security policy, so a browser runs
    nothing that came from a host, even if escaping failed.
    """

    def make_visible(value: Any) -> Any:
        return visible(value) if isinstance(value, str) and not isinstance(value, Markup) else value

    environment = jinja2.Environment(
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        finalize=make_visible,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters.update(percent=percent, clock_text=clock_text, shown=_shown, csp_hash=_csp_hash, policy_of=policy_of)
    policies = _groups(records, lambda control: map(policy_of, control["statements"]))
    statements = _groups(records, lambda control: control["statements"])
    return environment.from_string(template).render(
        run=run,
        hosts=list(zip(run["inventory"], records, strict=True)),
        sentences=sentences(run),
        roles=sorted(_groups(records, lambda control: [control["role"]]), key=lambda group: group["name"]),
        policies=sorted(policies, key=_in_policy_order),
        policy_names=POLICIES,
        statements=sorted(statements, key=_in_policy_order),
        requirements=requirements,
    )
