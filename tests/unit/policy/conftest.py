# Copyright: (c) 2026, Bulwark contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A small, sound house to break: one policy, one role with its scenario, everything the lint and the documents look at."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[3]
sys.path.insert(0, str(ROOT / "tools"))

import policy  # noqa: E402

PROOF = "molecule/door/tests/test_door.py::test_door_shuts"

FILES = {
    "policy/register.yml": """
policies:
  ABC: {title: House rules, text_sha256: "00"}
classes: {enforce: a, verify: b, procedure-supported-by-tool: c, out-of-scope: d}
statements:
  - id: ABC-1
    source: {policy: ABC, section: "1", line: 1}
    requirement: Doors shut by themselves within a minute.
    class: enforce
    room: door
    platforms: [server]
    shown_by: Leave one open.
    params: {door_seconds: 60}
    conflicts: [CF-01]
    mappings:
      hipaa: {named: [164.312(d)], own: [164.310(b)]}
      nist_800_53r5: {sp800_66r2: [AC-1], own: [AC-2(3)]}
      hitrust: {own: [01.a]}
  - id: ABC-2
    source: {policy: ABC, section: "2", line: 2}
    requirement: Windows are barred
    class: verify
    room: window
    platforms: [server, macos]
    shown_by: Push.
    params: {window_bars: 4}
  - id: ABC-3
    source: {policy: ABC, section: "3", line: 3}
    requirement: Visitors sign the book.
    class: procedure-supported-by-tool
    room: door
    platforms: [controller]
    shown_by: Read the book.
    note: the policy names no colour
    conflicts: [CF-01]
  - id: ABC-4
    source: {policy: ABC, section: "4", line: 4}
    requirement: Be kind.
    class: out-of-scope
    reason: ethics
""",
    "policy/rooms.yml": "rooms: {door: Doors shut, window: Windows hold}\n",
    "policy/conflicts.yml": "conflicts: [{id: CF-01, topic: t, members: [ABC-1, ABC-3], resolution: r}]\n",
    "policy/values.yml": """
values:
  door_seconds: {rule: at_most, value: 60, from: [ABC-1]}
site_decides: [window_bars]
""",
    "policy/crosswalk.yml": """
hipaa: {title: Rule, named_by: {ABC: [164.312(d)]}, titles: {164.310(b): Use, 164.312(d): Who}}
nist_800_53r5: {title: Controls, confirmed_by: a list, titles: {AC-1: Policy, AC-2(3): Disable}}
hitrust: {title: References, note: Confirm them., named_by: {ABC: []}, titles: {01.a: Access}}
""",
    "policy/not_yet.yml": "not_yet: {window: [ABC-2]}\npartly: {}\n",
    "policy/parameters/door.yml": """
parameters:
  door_state: {source: site, why: It can be taken back., limits: {one_of: [present, absent]}}
  door_seconds:
    unit: seconds
    source: policy
    statements: [ABC-1]
    why: An open door invites.
    bounds: {at_most: 60}
    limits: {at_least: 1}
  door_guests: {source: site, why: Names are short.}
  door_guests.name: {source: site, why: Names are short., limits: {max_length: 8}}
""",
    "roles/door/defaults/main.yml": """---
# present or absent.
door_state: present

# A minute is what ABC-1 allows.
door_seconds: 60
door_guests:
  - name: ann
""",
    "roles/door/meta/argument_specs.yml": """
argument_specs:
  main:
    short_description: Doors
    description: [Shuts doors, Locks none.]
    options:
      door_state: {type: str, choices: [present, absent], description: State.}
      door_seconds: {type: int, description: How long a door may stand open}
      door_guests:
        type: list
        elements: dict
        description: Guests.
        options:
          name: {type: str, required: true, description: A name with a | in it}
""",
    "roles/door/meta/controls.yml": f"""
controls:
  - id: door.shuts
    title: Doors shut
    statements: [ABC-1]
    profiles: [server]
    posture: door
    source: the hinge
    expect: [posture.door.seconds | int <= door_seconds]
    not_applicable: [{{when: not posture.door.there, reason: No door.}}]
    proof: {PROOF}
    remedy: ansible-playbook playbooks/site.yml --tags door
""",
    "roles/door/meta/main.yml": "galaxy_info: {platforms: [{name: Debian, versions: [bookworm, trixie]}]}\n",
    "roles/door/tasks/main.yml": """
- name: Check
  bulwark.hardening.check_input: {role: door}
- name: Shut
  block:
    - name: Hinge
      ansible.builtin.command: {argv: [shut, "{{ door_guests | map(attribute='name') | join(',') }}"]}
      when: door_state is search('present')
""",
    "playbooks/site.yml": "- name: All\n  hosts: all\n  roles: [bulwark.hardening.door]\n",
    "plugins/module_utils/posture/collectors.py": "def sent_along():\n    from posture import door\n",
    "molecule/door/molecule.yml": "{}\n",
    "molecule/door/prepare.yml": "- name: Open\n  ansible.builtin.command: open\n",
    "molecule/door/vars.yml": "{}\n",
    "molecule/door/sabotage.yml": "sabotage: [{control: door.shuts, break: wedge, mend: unwedge}]\n",
    "molecule/door/tests/test_door.py": '''
"""Proofs."""


def test_door_shuts(host):
    """Leave a door open, and wait."""


def helper():
    """No test."""
''',
    "README.md": "# House\n\n<!-- statements -->\nold\n<!-- /statements -->\n\nEnd.\n",
    "docs/policy.md": "# Policy\n",
}


class House:
    """A repository below a temporary directory."""

    def __init__(self, root: Path) -> None:
        self.root = root
        for path, text in FILES.items():
            self.write(path, text)

    def write(self, path: str, text: str) -> None:
        """Write a file, with its directories."""
        file = self.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")

    def edit(self, path: str, change: Callable[[Any], None]) -> None:
        """Let ``change`` alter the data of a YAML file in place."""
        data = yaml.safe_load((self.root / path).read_text(encoding="utf-8"))
        change(data)
        self.write(path, yaml.safe_dump(data, sort_keys=False))

    def lint(self, collected: frozenset[str] = frozenset({PROOF})) -> list[policy.Problem]:
        """Return what the lint finds here, with the proofs that pytest is taken to have collected."""
        return policy.lint(self.root, set(collected))


@pytest.fixture
def house(tmp_path: Path) -> House:
    """Return a sound house of its own."""
    return House(tmp_path)
