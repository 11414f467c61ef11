#!/usr/bin/env python3
# Copyright: (c) 2026, Bulwark contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Write the documents that follow from the policy and the roles: ``tools/docs.py [--check]``.

docs/coverage.md, roles/<role>/README.md, and the table between the markers ``<!-- statements -->`` and
``<!-- /statements -->`` of README.md. With --check nothing is written; exit code 1 names what is stale. The layout is in
tools/templates/, the data comes from the same Tree that tools/policy.py checks.
"""

from __future__ import annotations

import argparse
import ast
import difflib
import json
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import jinja2

sys.path.insert(0, str(Path(__file__).resolve().parent))

from policy import ROOT, Role, Tree, listed

STATUSES = ("covered", "partly", "not yet", "tool supports", "procedure", "out of scope")
MARKERS = ("<!-- statements -->", "<!-- /statements -->")
RELEASES = {"bookworm": "Debian 12", "trixie": "Debian 13"}
TYPES = {"str": "text", "int": "whole number", "float": "number", "bool": "yes or no", "dict": "mapping"}
LONG = 160  # bounds in more characters than this are shown below the table, too
SHORT = 48  # a default longer than this many characters is shown below the table, in full


def _network_words(bound: Any) -> str:
    """Say how wide networks may be, and whether the word any may stand for all."""
    if not isinstance(bound, dict):
        return ""
    widest = [f"IPv{version} from /{bound[f'ipv{version}']} on" for version in (4, 6) if bound.get(f"ipv{version}")]
    return "".join(f", {words}" for words in widest) + (f", or {code('any')}" if bound.get("any") else "")


# How a bound reads after "the value": each takes the bound and the unit with its leading space.
WORDS: dict[str, Callable[[Any, str], str]] = {
    "at_most": lambda b, unit: f"at most {b}{unit.removesuffix('s') if b == 1 else unit}",
    "at_least": lambda b, unit: f"at least {b}{unit.removesuffix('s') if b == 1 else unit}",
    "equals": lambda b, unit: f"{code(b)}{unit}",
    "one_of": lambda b, _: "one of " + codes(b),
    "subset_of": lambda b, _: "only " + codes(b),
    "contains": lambda b, _: "holds " + codes(b),
    "min_items": lambda b, _: f"at least {b} item{'' if b == 1 else 's'}",
    "max_items": lambda b, _: f"at most {b} item{'' if b == 1 else 's'}",
    "unique": lambda _b, _: "no item twice",
    "network": lambda b, _: "networks in CIDR notation" + _network_words(b),
    "disjoint": lambda _b, _: "no networks that overlap",
    "matches": lambda b, _: f"matches {code(b)}",
    "not_matches": lambda b, _: f"does not match {code(b)}",
    "single_line": lambda _b, _: "one line, no control characters",
    "text": lambda _b, _: "no control characters but newline and tab",
    "max_length": lambda b, _: f"at most {b} characters",
    "absolute_path": lambda _b, _: "an absolute path",
    "not_empty": lambda _b, _: "not empty",
    "date": lambda _b, _: "a date, YYYY-MM-DD",
}


# ---------------------------------------------------------------------------------------------------------------
# Markdown


def cell(text: str) -> str:
    """Return text as one table cell: one line, bars escaped."""
    return re.sub(r"(?<!\\)\|", r"\\|", " ".join(str(text).split()))


def code(value: Any) -> str:
    """Return a value as inline code; backquotes in it are fenced by longer ones."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    fence = "`" * (max((len(run) for run in re.findall("`+", text)), default=0) + 1)
    return f"{fence}{text}{fence}" if text else '`""`'


def codes(values: Iterable) -> str:
    """Return several values as inline code, separated by commas."""
    return ", ".join(code(value) for value in values)


def anchor(heading: str) -> str:
    """Return the fragment under which a heading of one or more words is reached."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def sentence(text: str | list | None) -> str:
    """Return descriptions (one string or several) as sentences on one line, each with its full stop.

    Ansible's own markup, such as O(name) or C(text), becomes code; what would pass for an HTML tag is escaped.
    """
    parts = [re.sub(r"\b(?:RV|[OVCEPM])\(([^()]*)\)", r"`\1`", " ".join(str(part).split())) for part in listed(text)]
    parts = [re.sub(r"<(?=[A-Za-z/!])", "&lt;", part) for part in parts]
    return " ".join(part if part[-1:] in ".!?:" else f"{part}." for part in parts if part)


def comment_text(lines: list[str]) -> str:
    """Return a comment's lines (without their hash) as Markdown: prose flows, what is indented is an example, rules go."""
    out: list[str] = []
    example = False
    for line in lines:
        if re.match(r"\s*(-{3,}|={3,}|#)", line):
            continue
        if line.startswith("   ") != example and line.strip():
            example = not example
            out += ["```yaml"] if example else ["```"]
        out.append(line[3:] if example else line.strip())
    if example:
        out.append("```")
    text = "\n".join(out)
    flowing = re.split(r"(```yaml\n.*?```)", text, flags=re.DOTALL)
    return "\n\n".join(part.strip() if part.startswith("```") else sentence(part) for part in flowing if part.strip())


def table(header: list[str], rows: Iterable[Iterable[Any]]) -> str:
    """Return a Markdown table; the first column is text, the others are numbers."""
    lines = ["| " + " | ".join(header) + " |", "|---|" + "--:|" * (len(header) - 1)]
    return "\n".join([*lines, *("| " + " | ".join(str(value) for value in row) + " |" for row in rows)])


def totals(what: str, groups: dict[str, Counter]) -> str:
    """Return a table of statuses by group, with a last row for all; ``groups`` counts statuses by group."""
    rows = [[name, sum(counts.values()), *(counts[status] for status in STATUSES)] for name, counts in groups.items()]
    everything = sum(groups.values(), Counter())
    rows.append([f"**{value}**" for value in ("all", everything.total(), *(everything[status] for status in STATUSES))])
    return table([what, "statements", *STATUSES], rows)


# ---------------------------------------------------------------------------------------------------------------
# What the tree says


def status(tree: Tree, statement: dict) -> str:
    """Return how far a statement has come, as one of STATUSES."""
    name, kind = statement["id"], statement["class"]
    if kind == "out-of-scope":
        return "out of scope"
    if name in tree.partly:
        return "partly"
    people = kind == "procedure-supported-by-tool"
    if name in tree.satisfied:
        return "tool supports" if people else "covered"
    return "procedure" if people else "not yet"


def test_functions(path: Path) -> list[tuple[str, str]]:
    """Return (name, first line of the docstring) of the tests in a file, in their order."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_"):
            found.append((node.lineno, node.name, (ast.get_docstring(node) or "").split("\n\n")[0]))
    return [(name, " ".join(said.split())) for _line, name, said in sorted(found)]


def blocks(path: Path) -> dict[str, tuple[str, str]]:
    """Return (comment, source) of each top-level key of a YAML file: the comment directly above it, and its own lines.

    Keys that follow one another without a gap share the comment above the first.
    """
    found: dict[str, tuple[str, list[str]]] = {}
    above: list[str] = []
    last, shared = "", ""
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
        if line.startswith("#"):
            above.append(line[1:])
            last = shared = ""
        elif not line.strip():
            above, last, shared = [], "", ""
        elif key := re.match(r"([A-Za-z_]\w*):", line):
            last, shared = key[1], comment_text(above) if above else shared
            above = []
            found[last] = (shared, [line])
        elif last:
            found[last][1].append(line)
    return {key: (comment, "\n".join(lines)) for key, (comment, lines) in found.items()}


# ---------------------------------------------------------------------------------------------------------------
# docs/coverage.md


def coverage(tree: Tree) -> dict[str, Any]:
    """Return what templates/coverage.md.j2 shows."""
    every = list(tree.statements.values())
    state = {statement["id"]: status(tree, statement) for statement in every}

    def group(name: Callable[[dict], str], order: Iterable[str]) -> dict[str, Counter]:
        counts = {key: Counter() for key in order}
        for statement in every:
            counts[name(statement)][state[statement["id"]]] += 1
        return {key: count for key, count in counts.items() if count}

    proofs = {control["id"]: listed(control["proof"]) for _file, control, _role in tree.controls()}
    roles = {control["id"]: role.name for _file, control, role in tree.controls()}

    def row(statement: dict) -> dict[str, str]:
        name = statement["id"]
        lines = []
        for control in tree.satisfied.get(name, []):
            tests = [f"[{p.split('::')[1]}](../{p.split('::')[0]})" for p in proofs[control]]
            lines.append(f"[{control}](../roles/{roles[control]}/README.md#{anchor(control)}) → {', '.join(tests)}")
        shown = state[name]
        if shown == "out of scope":
            shown += f": {statement['reason']}"
        elif shown == "partly":
            shown += f"; missing ({tree.partly[name]['room']}): {tree.partly[name]['missing']}"
        elif shown in ("not yet", "procedure"):
            shown += f" ({statement['room']})"
        asks = sentence(statement["requirement"])
        if statement.get("conflicts"):
            asks += " " + " ".join(f"[{c}](#{c.lower()})" for c in statement["conflicts"])
        if statement.get("note"):
            asks += f" *Note: {sentence(statement['note'])}*"
        source, kind = statement["source"], statement["class"].replace("procedure-supported-by-tool", "procedure")
        return {
            "anchor": name.lower(),
            "id": f"**{name}**",
            "where": cell(f"{source['section']}, line {source['line']}"),
            "asks": cell(asks),
            "class": "<br>".join([kind, *statement.get("platforms", [])]),
            "controls": cell("<br>".join(lines) or "—"),
            "status": cell(shown),
        }

    return {
        "totals": totals,
        "by_policy": group(lambda s: s["source"]["policy"], tree.policies),
        "by_class": group(lambda s: s["class"], tree.classes),
        "by_room": group(lambda s: s.get("room", "(none: out of scope)"), [*tree.rooms, "(none: out of scope)"]),
        "policies": [
            {"id": policy, **facts, "rows": [row(s) for s in every if s["source"]["policy"] == policy]}
            for policy, facts in tree.policies.items()
        ],
        "conflicts": [
            {
                "anchor": conflict["id"].lower(),
                "id": conflict["id"],
                "topic": cell(conflict["topic"]),
                "members": ", ".join(f"[{member}](#{member.lower()})" for member in conflict["members"]),
                "resolution": cell(conflict["resolution"]),
            }
            for conflict in tree.conflicts
        ],
        "hipaa": identifiers(tree, state, "hipaa"),
        "nist": nist(tree, state),
        "hitrust": identifiers(tree, state, "hitrust"),
    }


def identifiers(tree: Tree, state: dict[str, str], kind: str) -> dict[str, Any]:
    """Return one row an identifier of a framework: how many statements are mapped to it, by status, and who named it."""
    book = tree.crosswalk[kind]
    named = {identifier: policy for policy, ids in book["named_by"].items() for identifier in ids}
    counts: dict[str, Counter] = {identifier: Counter() for identifier in book["titles"]}
    for statement in tree.statements.values():
        for ids in (statement.get("mappings") or {}).get(kind, {}).values():
            for identifier in ids:
                counts[identifier][state[statement["id"]]] += 1
    note = f"{book['title']}. *Named by* says which policy names the identifier itself; everything else is our own mapping."
    return {
        "note": " ".join(filter(None, [note, book.get("note")])),
        "rows": [
            {
                "id": identifier,
                "title": book["titles"][identifier],
                "named": named.get(identifier, "—"),
                "total": count.total(),
                "counts": [count[name] for name in STATUSES],
            }
            for identifier, count in counts.items()
        ],
    }


def nist(tree: Tree, state: dict[str, str]) -> dict[str, Any]:
    """Return one row a SP 800-53 control: statements covered of statements mapped, confirmed and own mapping apart."""
    book = tree.crosswalk["nist_800_53r5"]
    found: dict[str, dict[str, Counter]] = {c: {"sp800_66r2": Counter(), "own": Counter()} for c in book["titles"]}
    for statement in tree.statements.values():
        for provenance, ids in (statement.get("mappings") or {}).get("nist_800_53r5", {}).items():
            for identifier in ids:
                found[identifier][provenance][state[statement["id"]]] += 1

    def share(counts: Counter) -> str:
        done = counts["covered"] + counts["tool supports"]
        return f"{done} of {counts.total()}" if counts.total() else "—"

    return {
        "note": (
            f"{book['title']}. The first number column counts statements for which the mapping is confirmed: "
            f"{book['confirmed_by']} list the base control for the HIPAA citation that the statement carries. The second counts "
            "our own mapping, which nobody has confirmed. Covered means *covered* or *tool supports*; *partly* does not count."
        ),
        "rows": [
            {"id": c, "title": book["titles"][c], "confirmed": share(by["sp800_66r2"]), "own": share(by["own"])}
            for c, by in found.items()
        ],
    }


# ---------------------------------------------------------------------------------------------------------------
# roles/<role>/README.md


def role_page(tree: Tree, role: Role) -> dict[str, Any]:
    """Return what templates/role.md.j2 shows."""
    here = tree.root / "roles" / role.name
    releases = [version for platform in role.platforms for version in platform.get("versions") or []]
    prose = (here / "docs.md").read_text(encoding="utf-8").strip() if (here / "docs.md").is_file() else ""
    prose = under_second_level(prose)
    claimed = {statement for control in role.controls for statement in control["statements"]}
    return {
        "name": role.name,
        "purpose": sentence(tree.rooms.get(role.name) or role.spec.get("short_description")),
        "description": sentence(role.spec.get("description")),
        "platforms": [RELEASES.get(str(release), str(release)) for release in releases],
        "statements": sorted(claimed),
        "prose": prose,
        "takes_back": bool(re.search(r"^#+ .*\bback\b", prose, re.MULTILINE | re.IGNORECASE)),
        "variables": variables(tree, role, blocks(here / "defaults" / "main.yml")),
        "controls": [control_page(tree, role, control) for control in role.controls],
        "sabotaged": len(role.sabotage),
        "tests": tests_of(tree, role),
    }


def under_second_level(prose: str) -> str:
    """Return Markdown with its headings moved so that the highest is of the second level; code blocks are left alone."""
    fenced, levels, lines = False, [], prose.splitlines()
    is_heading = []
    for line in lines:
        fenced ^= line.lstrip().startswith("```")
        is_heading.append(not fenced and bool(re.match(r"#{1,6} ", line)))
    levels = [len(line) - len(line.lstrip("#")) for line, heading in zip(lines, is_heading, strict=True) if heading]
    shift = 2 - min(levels, default=2)
    moved = [
        "#" * shift + line if heading and shift > 0 else line[-shift:] if heading and shift < 0 else line
        for line, heading in zip(lines, is_heading, strict=True)
    ]
    return "\n".join(moved)


def statement_line(tree: Tree, name: str) -> str:
    """Return a link to a statement's row in docs/coverage.md, with what it asks."""
    asks = sentence(tree.statements[name]["requirement"]) if name in tree.statements else "unknown statement"
    owed = tree.partly.get(name)
    rest = f" *(In part. Missing, room {owed['room']}: {sentence(owed['missing'])})*" if owed else ""
    return f"[{name}](../../docs/coverage.md#{name.lower()}): {asks}{rest}"


def type_words(spec: dict) -> str:
    """Say in words what kind of value an argument specification asks for."""
    kind = spec.get("type", "str")
    if kind == "list" and "elements" in spec:
        return f"list of {TYPES.get(spec['elements'], spec['elements'])}s"
    return TYPES.get(kind, kind)


def allowed(entry: dict, spec: dict) -> str:
    """Say in words which values a variable may have: its type, the policy's bounds, then the limits."""
    unit = f" {entry['unit']}" if entry.get("unit") else ""
    said = [type_words(spec)]
    if entry.get("needed"):
        said.append("must be set")
    if spec.get("choices"):
        said.append("one of " + codes(spec["choices"]))
    said += [f"{WORDS[name](bound, unit)} *(policy)*" for name, bound in (entry.get("bounds") or {}).items()]
    said += [
        WORDS[name](bound, unit)
        for name, bound in (entry.get("limits") or {}).items()
        if (name, spec.get("choices")) != ("one_of", bound)
    ]
    return "; ".join(said)


def variables(tree: Tree, role: Role, written: dict[str, tuple[str, str]]) -> list[dict[str, Any]]:
    """Return the public variables of a role in the order of its defaults, with everything a reader may want to know."""
    found = []
    for name in [*role.defaults, *(n for n in role.options if n not in role.defaults)]:
        spec, entry = role.options.get(name) or {}, role.parameters.get(name) or {}
        default = role.defaults.get(name)
        shown = "*(required)*" if name not in role.defaults else "*(empty)*" if default in ("", [], {}) else code(default)
        bound = allowed(entry, spec)
        comment, source = written.get(name, ("", ""))
        full = ""
        if len(shown) > SHORT or "\n" in shown:
            shown, full = "*(below)*", source
        found.append(
            {
                "name": name,
                "anchor": anchor(name),
                "default": cell(shown),
                "full": full,
                "allowed": cell(bound if len(bound) <= LONG else f"{type_words(spec)} *(bounds below)*"),
                "bounds": bound if len(bound) > LONG else "",
                "source": entry.get("source", "—"),
                "description": sentence(spec.get("description")),
                "comment": comment,
                "why": sentence(entry.get("why")),
                "statements": [statement_line(tree, statement) for statement in listed(entry.get("statements"))],
                "parts": list(parts_of(role, name, spec)),
            }
        )
    return found


def parts_of(role: Role, path: str, spec: dict) -> Iterable[dict[str, str]]:
    """Yield the keys of the dicts that a variable holds, deeper ones with their path."""
    for key, part in (spec.get("options") or {}).items():
        entry = role.parameters.get(f"{path}.{key}") or {}
        kind = type_words(part) + (", required" if part.get("required") else "")
        if part.get("default") not in (None, ""):
            kind += f", default {code(part['default'])}"
        yield {
            "name": ".".join([*path.split(".")[1:], key]),
            "type": cell(kind),
            "allowed": cell("; ".join(allowed(entry, part).split("; ")[1:]) or "—"),
            "description": cell(" ".join(filter(None, [sentence(part.get("description")), sentence(entry.get("why"))]))),
        }
        yield from parts_of(role, f"{path}.{key}", part)


def control_page(tree: Tree, role: Role, control: dict) -> dict[str, Any]:
    """Return one control for the role's page."""
    proofs = []
    for proof in listed(control["proof"]):
        path, _colons, name = proof.partition("::")
        file = tree.root / path
        said = dict(test_functions(file)).get(name, "") if file.is_file() else ""
        proofs.append(f"[{name}](../../{path})" + (f": {sentence(said)}" if said else ""))
    return {
        **{key: control[key] for key in ("id", "profiles")},
        "remedy": code(control["remedy"]) if control["remedy"].startswith("ansible") else sentence(control["remedy"]),
        "title": control["title"].rstrip("."),
        "anchor": anchor(control["id"]),
        "source": sentence(control["source"]).rstrip("."),
        "unseen": control["id"] in role.not_here,
        "claims": ", ".join(control["statements"]),
        "statements": [statement_line(tree, name) for name in control["statements"]],
        "expect": [str(condition).strip() for condition in control["expect"]],
        "not_applicable": [
            {"when": " and ".join(map(str, listed(case["when"]))), "reason": sentence(case["reason"])}
            for case in control.get("not_applicable") or []
        ],
        "proof": proofs,
    }


def tests_of(tree: Tree, role: Role) -> list[dict[str, str]]:
    """Return every test of a role's scenario with the controls it proves."""
    proves: dict[str, list[str]] = {}
    for control in role.controls:
        for proof in listed(control["proof"]):
            proves.setdefault(proof, []).append(f"[{control['id']}](#{anchor(control['id'])})")
    rows = []
    for file in sorted((tree.root / "molecule" / role.name / "tests").glob("test_*.py")):
        path = str(file.relative_to(tree.root))
        for name, said in test_functions(file):
            linked = ", ".join(proves.get(f"{path}::{name}", ["—"]))
            told = said or name.removeprefix("test_").replace("_", " ").capitalize()
            rows.append({"name": name, "link": f"../../{path}", "does": cell(sentence(told)), "proves": linked})
    return rows


# ---------------------------------------------------------------------------------------------------------------
# README.md


def statements_table(tree: Tree) -> str:
    """Return the short tables for the front page: what each role satisfies, and how far each policy is covered."""
    rows = []
    for role in (role for role in tree.roles.values() if role.complete):
        claimed = {name for control in role.controls for name in control["statements"]}
        names = [name for name in tree.statements if name in claimed]
        names = [f"{name} *(partly)*" if name in tree.partly else name for name in names]
        rows.append(f"| [{role.name}](roles/{role.name}/README.md) | {len(role.controls)} | {', '.join(names)} |")
    by_policy = {policy: Counter() for policy in tree.policies}
    for statement in tree.statements.values():
        by_policy[statement["source"]["policy"]][status(tree, statement)] += 1
    lines = ["| role | controls | statements it satisfies |", "|---|--:|---|", *rows, "", totals("policy", by_policy), ""]
    return "\n".join([*lines, "Every statement, with its proof or what is missing: [docs/coverage.md](docs/coverage.md)."])


def generated(tree: Tree) -> dict[str, str]:
    """Return the text of every generated file by its path relative to the root."""
    pages = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).resolve().parent / "templates"),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    files = {"docs/coverage.md": pages.get_template("coverage.md.j2").render(coverage(tree))}
    for role in (role for role in tree.roles.values() if role.complete):
        files[f"roles/{role.name}/README.md"] = pages.get_template("role.md.j2").render(role_page(tree, role))
    files = {path: re.sub(r"\n{3,}", "\n\n", text).rstrip() + "\n" for path, text in files.items()}
    front = tree.root / "README.md"
    text = front.read_text(encoding="utf-8") if front.is_file() else ""
    start, end = MARKERS
    if start in text and end in text:
        before, rest = text.split(start, 1)
        files["README.md"] = f"{before}{start}\n{statements_table(tree)}\n{end}{rest.split(end, 1)[1]}"
    return files


def broken_links(root: Path, files: dict[str, str]) -> list[str]:
    """Return ``file: target`` of each relative link in these texts whose file, or whose place in it, does not exist."""
    places: dict[Path, set[str]] = {}

    def fragments(path: Path) -> set[str]:
        if path not in places:
            name = str(path.relative_to(root))
            text = files.get(name) or path.read_text(encoding="utf-8")
            places[path] = set(re.findall(r'<a id="([^"]+)">', text))
            places[path] |= {anchor(heading.replace("`", "")) for heading in re.findall(r"^#+ +(.+)$", text, re.MULTILINE)}
        return places[path]

    found = []
    for name, text in files.items():
        prose = re.sub(r"```.*?```|`[^`\n]*`", "", text, flags=re.DOTALL)
        for target in dict.fromkeys(re.findall(r"\]\(([^)\s]+)\)", prose)):
            path, _hash, fragment = target.partition("#")
            file = (root / name).parent.joinpath(path).resolve() if path else root / name
            if re.match(r"[a-z]+:", target):
                continue
            if not file.exists() and str(file.relative_to(root)) not in files:
                found.append(f"{name}: {target}: no such file")
            elif fragment and file.suffix == ".md" and fragment not in fragments(file):
                found.append(f"{name}: {target}: no such place in the file")
    return found


def main(argv: list[str] | None = None) -> int:
    """Run the command line and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing; fail when a file is stale")
    parser.add_argument("--root", type=Path, default=ROOT, help="repository to look at (default: this one)")
    options = parser.parse_args(argv)
    root = options.root.resolve()
    tree = Tree(root)
    if tree.misshapen:
        print("\n".join(map(str, sorted(tree.misshapen))))
        return 1
    files = generated(tree)
    stale = 0
    for path, text in files.items():
        file = root / path
        old = file.read_text(encoding="utf-8") if file.is_file() else ""
        if old == text:
            continue
        stale += 1
        if options.check:
            print(f"{path}: stale; run tools/docs.py")
            changed = difflib.unified_diff(old.splitlines(), text.splitlines(), "as it is", "as it should be", n=0, lineterm="")
            print("\n".join(f"  {line[:160]}" for line in list(changed)[:12]))
        else:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text, encoding="utf-8")
            print(f"{path}: written")
    broken = broken_links(root, files)
    print("\n".join(broken) or f"{len(files)} generated files, all links lead somewhere")
    return 1 if broken or (options.check and stale) else 0


if __name__ == "__main__":
    sys.exit(main())
