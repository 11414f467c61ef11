# Copyright: (c) 2026, Bulwark contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The generated documents say what the data say, the same each time, and notice when they are stale."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

import docs
import policy

from .conftest import PROOF

ROOT = Path(__file__).resolve().parents[3]
COVERAGE, ROLE = "docs/coverage.md", "roles/door/README.md"


def pages(house):
    """Return the generated files of a house by path."""
    return docs.generated(policy.Tree(house.root))


def row(text, start):
    """Return the cells of the one table row that starts with this."""
    (line,) = [line for line in text.splitlines() if line.startswith(f"| {start}")]
    return [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]


def statement(text, name):
    """Return the cells of a statement's row in the coverage."""
    return row(text, f'<a id="{name.lower()}"></a>')


def claim(house, *statements):
    """Let the only control satisfy these statements, and forget what was not yet there."""
    house.edit("roles/door/meta/controls.yml", lambda data: data["controls"][0].update(statements=list(statements)))
    house.edit("policy/not_yet.yml", lambda data: data.update(not_yet={}))


def test_a_statement_leads_to_its_control_its_role_and_its_proof(house):
    cells = statement(pages(house)[COVERAGE], "ABC-1")
    assert cells[0] == '<a id="abc-1"></a>**ABC-1**<br>1, line 1'
    assert cells[1:3] == ["Doors shut by themselves within a minute. [CF-01](#cf-01)", "enforce<br>server"]
    assert cells[3] == (
        "[door.shuts](../roles/door/README.md#doorshuts) → [test_door_shuts](../molecule/door/tests/test_door.py)"
    )
    assert cells[4] == "covered"


def test_what_no_control_satisfies_says_whose_it_will_be(house):
    text = pages(house)[COVERAGE]
    assert statement(text, "ABC-2")[3:] == ["—", "not yet (window)"]
    assert statement(text, "ABC-3")[3:] == ["—", "procedure (door)"]
    assert "*Note: the policy names no colour.*" in statement(text, "ABC-3")[1]
    assert statement(text, "ABC-4")[3:] == ["—", "out of scope: ethics"]


def test_people_supported_by_a_tool_do_not_count_as_covered(house):
    claim(house, "ABC-3")
    text = pages(house)[COVERAGE]
    assert statement(text, "ABC-3")[4] == "tool supports"
    assert row(text, "procedure-supported-by-tool") == ["procedure-supported-by-tool", "1", "0", "0", "0", "1", "0", "0"]


def test_what_is_partly_covered_says_what_is_missing_everywhere(house):
    claim(house, "ABC-1", "ABC-2")
    house.edit("policy/not_yet.yml", lambda data: data["partly"].update({"ABC-2": {"room": "window", "missing": "The bars"}}))
    files = pages(house)
    assert statement(files[COVERAGE], "ABC-2")[4] == "partly; missing (window): The bars"
    assert "Windows are barred. *(In part. Missing, room window: The bars.)*" in files[ROLE]
    assert "| [door](roles/door/README.md) | 1 | ABC-1, ABC-2 *(partly)* |" in files["README.md"]
    assert row_of_totals(files[COVERAGE], "policy") == [4, 1, 1, 0, 0, 1, 1]


def row_of_totals(text, heading):
    """Return the totals row of the table with this first heading."""
    table = text.split(f"| {heading} | statements |", 1)[1].split("\n\n", 1)[0]
    return [int(number) for number in re.findall(r"\*\*(\d+)\*\*", table.splitlines()[-1])]


def test_totals_agree_with_one_another(house):
    text = pages(house)[COVERAGE]
    assert row_of_totals(text, "policy") == row_of_totals(text, "class") == row_of_totals(text, "role") == [4, 1, 0, 1, 0, 1, 1]


def test_totals_of_our_own_coverage_count_every_statement_once():
    tree = policy.Tree(ROOT)
    text = docs.generated(tree)[COVERAGE]
    for heading in ("policy", "class", "role"):
        total, *parts = row_of_totals(text, heading)
        assert total == sum(parts) == len(tree.statements) == 388


def test_own_and_confirmed_mappings_are_kept_apart(house):
    text = pages(house)[COVERAGE]
    assert row(text, "AC-1 ") == ["AC-1", "Policy", "1 of 1", "—"]
    assert row(text, "AC-2(3)") == ["AC-2(3)", "Disable", "—", "1 of 1"]
    assert row(text, "164.312(d)")[2:4] == ["ABC", "1"]
    assert row(text, "164.310(b)")[2:4] == ["—", "1"]
    assert "Confirm them." in text


def test_a_role_page_shows_variables_with_units_bounds_and_statements(house):
    text = pages(house)[ROLE]
    assert row(text, "[`door_seconds`]") == [
        "[`door_seconds`](#door_seconds)",
        "`60`",
        "whole number; at most 60 seconds *(policy)*; at least 1 second",
        "policy",
    ]
    assert row(text, "[`door_state`]")[1:] == ["`present`", "text; one of `present`, `absent`", "site"]
    assert "How long a door may stand open.\n\nA minute is what ABC-1 allows.\n\nAn open door invites.\n" in text
    assert "- [ABC-1](../../docs/coverage.md#abc-1): Doors shut by themselves within a minute." in text
    assert row(text, "`name`") == [
        "`name`",
        "text, required",
        "at most 8 characters",
        "A name with a \\| in it. Names are short.",
    ]


def test_a_role_page_shows_what_is_looked_at_and_who_proves_it(house):
    text = pages(house)[ROLE]
    assert "```jinja\nposture.door.seconds | int <= door_seconds\n```" in text
    assert "Not applicable when `not posture.door.there`: No door." in text
    assert "- [test_door_shuts](../../molecule/door/tests/test_door.py): Leave a door open, and wait." in text
    assert row(text, "[test_door_shuts]")[1:] == ["Leave a door open, and wait.", "[door.shuts](#doorshuts)"]
    assert "helper" not in text
    assert "Debian 12, Debian 13" in text


def test_a_test_that_proves_no_control_is_shown_all_the_same(house):
    house.write("molecule/door/tests/test_more.py", "def test_also():\n    pass\n")
    assert row(pages(house)[ROLE], "[test_also]")[1:] == ["Also.", "—"]


@pytest.mark.parametrize(
    ("prose", "shown", "generic"),
    [
        ("# Doors\n\n## Inside\n", "\n## Doors\n\n### Inside\n", True),
        ("### Deep\n", "\n## Deep\n", True),
        ("## Fine\n\n```sh\n# no heading\n```\n", "\n## Fine\n\n```sh\n# no heading\n```\n", True),
        ("## How to take it back\n\nPull.\n", "\n## How to take it back\n\nPull.\n", False),
        ("No heading.\n", "\nNo heading.\n", True),
    ],
)
def test_prose_joins_the_page_at_its_level(house, prose, shown, generic):
    house.write("roles/door/docs.md", prose)
    text = pages(house)[ROLE]
    assert shown in text
    assert ("## Taking it back\n" in text) is generic


def test_long_defaults_are_shown_as_they_are_written(house):
    written = "door_guests:\n  # a guest\n  - name: ann\n  - name: bob\n  - name: cyd\n  - name: dora\n"
    house.write("roles/door/defaults/main.yml", f"---\ndoor_state: present\ndoor_seconds: 60\n{written}")
    text = pages(house)[ROLE]
    assert row(text, "[`door_guests`]")[1] == "*(below)*"
    assert f"```yaml\n{written}```" in text


def test_comments_become_prose_and_examples():
    lines = [" --- who ------", " One", " two (O(door_x)).", "   - name: x", "     y: 1", " More <role> text"]
    assert docs.comment_text(lines) == "One two (`door_x`).\n\n```yaml\n- name: x\n  y: 1\n```\n\nMore &lt;role> text."


def test_variables_that_follow_one_another_share_a_comment(tmp_path):
    file = tmp_path / "main.yml"
    file.write_text("---\n# Both.\na: 1\nb:\n  - x\n\n# Alone.\n\nc: 1\n# Its own.\nd: 1\n")
    assert docs.blocks(file) == {
        "a": ("Both.", "a: 1"),
        "b": ("Both.", "b:\n  - x"),
        "c": ("", "c: 1"),
        "d": ("Its own.", "d: 1"),
    }


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ("a | b", "a \\| b"),
        ("a \\| b", "a \\| b"),
        ("two\nlines", "two lines"),
    ],
)
def test_a_cell_stays_one_cell(given, shown):
    assert docs.cell(given) == shown


@pytest.mark.parametrize(
    ("given", "shown"), [("x", "`x`"), ("", '`""`'), ("a`b", "``a`b``"), (["a", 1], '`["a", 1]`'), (True, "`true`")]
)
def test_code_is_fenced(given, shown):
    assert docs.code(given) == shown


def test_every_bound_can_be_put_into_words():
    assert set(docs.WORDS) == set(policy.bounds.BOUNDS) == set(policy.OPERANDS)


def test_only_what_stands_between_the_markers_of_the_front_page_changes(house):
    text = pages(house)["README.md"]
    assert text.startswith("# House\n\n<!-- statements -->\n| role |")
    assert text.endswith("\n<!-- /statements -->\n\nEnd.\n")
    assert "old" not in text
    house.write("README.md", "# No markers\n")
    assert "README.md" not in pages(house)


def test_a_role_that_is_only_begun_has_no_page_yet(house):
    (house.root / "roles" / "window").mkdir()
    assert sorted(pages(house)) == ["README.md", COVERAGE, ROLE]


def run(house, *options):
    """Run the command on a house and return exit code and output."""
    command = [sys.executable, ROOT / "tools" / "docs.py", "--root", house.root, *options]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    return done.returncode, done.stdout + done.stderr


def test_the_check_notices_what_is_stale_and_writes_nothing(house):
    code, said = run(house, "--check")
    assert code == 1
    assert f"{COVERAGE}: stale" in said
    assert not (house.root / COVERAGE).exists()
    assert run(house) == (
        0,
        f"{COVERAGE}: written\n{ROLE}: written\nREADME.md: written\n3 generated files, all links lead somewhere\n",
    )
    assert run(house, "--check") == (0, "3 generated files, all links lead somewhere\n")
    house.edit("roles/door/meta/controls.yml", lambda data: data["controls"][0].update(title="Doors close"))
    code, said = run(house, "--check")
    assert code == 1
    assert "+| [door.shuts](#doorshuts) | Doors close | ABC-1 |" in said
    assert "Doors close" not in (house.root / ROLE).read_text()


def test_the_check_notices_links_that_lead_nowhere(house):
    house.write(
        "roles/door/docs.md", "[a](gone.md) [b](#nowhere) [c](../../docs/policy.md#policy) [d](https://example.org/x) `[e](f)`\n"
    )
    code, said = run(house)
    assert code == 1
    assert f"{ROLE}: gone.md: no such file" in said
    assert f"{ROLE}: #nowhere: no such place in the file" in said
    assert said.count("no such") == 2
    (house.root / PROOF.split("::")[0]).rename(house.root / "elsewhere.py")
    assert f"{COVERAGE}: ../molecule/door/tests/test_door.py: no such file" in run(house)[1]


def test_misshapen_data_is_named_instead_of_documented(house):
    house.write("policy/rooms.yml", "rooms: 5\n")
    assert run(house) == (1, "policy/rooms.yml: -: 'rooms' is 5, not a mapping\n")


def test_the_documents_are_the_same_each_time(house):
    assert pages(house) == pages(house)
    first = docs.generated(policy.Tree(ROOT))
    assert docs.generated(policy.Tree(ROOT)) == first
