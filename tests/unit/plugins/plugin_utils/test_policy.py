# SPDX-License-Identifier: GPL-3.0-or-later
"""Unit tests of the policy's bounds, on a small policy of their own."""

from __future__ import annotations

import datetime

import pytest
import yaml
from ansible.errors import AnsibleFilterError
from ansible_collections.bulwark.hardening.plugins.filter.policy import FilterModule, policy_violations
from ansible_collections.bulwark.hardening.plugins.plugin_utils.policy import (
    BOUNDS,
    PolicyError,
    controls_of,
    requirements,
    unset,
    violations,
)

TODAY = datetime.date(2026, 11, 21)
OPTIONS = {
    "demo_seconds": {"type": "int", "description": "Seconds."},
    "demo_names": {"type": "list", "elements": "str", "description": "Names."},
    "demo_text": {"type": "str", "description": "Text."},
    "demo_secret": {"type": "str", "no_log": True, "description": "Secret."},
    "demo_users": {
        "type": "list",
        "elements": "dict",
        "description": "Users.",
        "options": {"name": {"type": "str", "required": True}, "expires": {"type": "str"}},
    },
    "demo_path": {"type": "path", "description": "Path."},
    "demo_flag": {"type": "bool", "description": "Flag."},
}
PARAMETERS = {
    "demo_seconds": {
        "unit": "seconds",
        "source": "policy",
        "statements": ["S-1"],
        "why": "w",
        "bounds": {"at_most": 1800},
        "limits": {"at_least": 10},
    },
    "demo_names": {
        "source": "policy", "statements": ["S-2"], "why": "w",
        "bounds": {"subset_of": ["a", "b"], "contains": ["a"]}, "limits": {"min_items": 1, "max_items": 2, "unique": True},
    },
    "demo_text": {"source": "site", "why": "w", "limits": {"text": True, "max_length": 20, "not_empty": True}},
    "demo_secret": {"source": "technical", "why": "w", "limits": {"matches": "[0-9a-f]+", "not_matches": "0+"}},
    "demo_users": {"source": "site", "why": "w"},
    "demo_users.name": {"source": "site", "why": "w", "limits": {"matches": "[a-z]+"}},
    "demo_users.expires": {"source": "site", "why": "w", "limits": {"date": True}},
    "demo_path": {"source": "technical", "why": "w", "limits": {"absolute_path": True}},
    "demo_flag": {"source": "policy", "statements": ["S-1"], "why": "w", "bounds": {"equals": True}},
}  # fmt: skip
APPROVED = {
    "parameter": "demo_seconds", "approver": "a", "approver_role": "r", "reason": "b", "compensating": "c", "ticket": "t",
    "expires": "2026-12-31",
}  # fmt: skip


@pytest.fixture
def root(tmp_path):
    """A collection with one role and two statements."""
    requirements.cache_clear()
    for path, data in {
        "roles/demo/meta/argument_specs.yml": {"argument_specs": {"main": {"options": OPTIONS}}},
        "policy/parameters/demo.yml": {"parameters": PARAMETERS},
        "policy/register.yml": {
            "statements": [{"id": "S-1", "requirement": "Ends idle sessions."}, {"id": "S-2", "requirement": "Only a."}]
        },
    }.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(yaml.safe_dump(data))
    return tmp_path


GOOD = {
    "demo_seconds": 1800, "demo_names": ["a", "b"], "demo_text": "two\nlines", "demo_secret": "00f",
    "demo_users": [{"name": "x", "expires": "2026-12-31"}], "demo_path": "/a/b", "demo_flag": True, "unrelated": object(),
}  # fmt: skip


def test_allowed(root):
    """Values within the bounds are not remarked on; numbers may come as text, as they do from the command line."""
    assert violations("demo", GOOD, today=TODAY, root=root) == []
    assert violations("demo", {"demo_seconds": "900"}, today=TODAY, root=root) == []


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ({"demo_seconds": 3600}, ["demo_seconds = 3600", "at most 1800 seconds", "S-1: Ends idle sessions"]),
        ({"demo_seconds": 5}, ["at least 10 seconds", "S-1"]),
        ({"demo_seconds": "soon"}, ["demo_seconds = 'soon'", "int", "S-1"]),
        ({"demo_seconds": [1]}, ["int"]),
        ({"demo_names": ["a", "c"]}, ["may only hold a, b", "S-2: Only a"]),
        ({"demo_names": ["b"]}, ["must hold a"]),
        ({"demo_names": ["a", "a"]}, ["must not repeat"]),
        ({"demo_names": []}, ["at least 1 item"]),
        ({"demo_names": ["a", "b", "a"]}, ["at most 2 item"]),
        ({"demo_text": "a\x1b[31m"}, ["control characters"]),
        ({"demo_text": "a" * 21}, ["at most 20 characters"]),
        ({"demo_text": ""}, ["must not be empty", "site limit"]),
        ({"demo_users": [{"name": "x"}, {"name": "Root"}]}, ["demo_users[1].name = 'Root'", "must match"]),
        ({"demo_users": [{"name": "x\n"}]}, ["demo_users[0].name"]),
        ({"demo_users": [{"name": "x", "expires": "31.12.2026"}]}, ["YYYY-MM-DD"]),
        ({"demo_users": [{"nmae": "x"}]}, ["demo_users"]),
        ({"demo_users": ["x y"]}, ["demo_users"]),
        ({"demo_path": "a/b"}, ["absolute path"]),
        ({"demo_path": "/a/../b"}, ["absolute path"]),
        ({"demo_flag": False}, ["must be True", "S-1"]),
        ({"demo_flag": "perhaps"}, ["bool"]),
        ({"demo_text": ["a"]}, ["demo_text = ['a']", "demo_text is a list where text is meant"]),
        ({"demo_path": {"a": 1}}, ["demo_path is a mapping where text is meant"]),
        ({"demo_names": ["a", ["b"]]}, ["demo_names[1] is a list where text is meant"]),
        ({"demo_users": [{"name": ["x"]}]}, ["demo_users[0].name is a list where text is meant"]),
        ({"demo_secnods": 5}, ["demo_secnods = 5", "unknown variable", "demo_seconds"]),
        ({"demo_path": "/a\u202eb"}, ["control characters"]),
    ],
)
def test_refused(root, variables, words):
    """Each violation names the variable, the value, the bound and where it comes from."""
    said = "\n".join(violations("demo", variables, today=TODAY, root=root))
    for word in words:
        assert word in said


@pytest.mark.parametrize(
    ("value", "bound", "said"),
    [
        (["10.0.0.0/24", "fd00::/64"], True, None),
        (["10.0.0.0/24", "fd00::/64"], {"ipv4": 24, "ipv6": 64}, None),
        ("10.0.0.0/24", True, None),
        (["any"], {"any": True}, None),
        (["any"], True, "CIDR notation"),
        (["10.0.0.1"], True, "CIDR notation"),
        (["10.0.0.1/24"], True, "without host bits"),
        (["10.0.0.0/33"], True, "CIDR notation"),
        (["fe80::1%eth0/64"], True, "CIDR notation"),
        ([24], True, "CIDR notation"),
        (["0.0.0.0/0"], {"ipv4": 24}, "/24 or smaller (IPv4)"),
        (["fd00::/48"], {"ipv4": 24, "ipv6": 64}, "/64 or smaller (IPv6)"),
        (["nowhere"], False, None),
    ],
)
def test_network(value, bound, said):
    """Networks are said without doubt, and are no wider than allowed."""
    found = BOUNDS["network"](value, bound)
    assert (found is None) if said is None else said in found


@pytest.mark.parametrize(
    ("value", "overlap"),
    [
        (["10.0.0.0/24", "10.0.1.0/24", "fd00::/64"], False),
        (["10.0.0.0/24", "10.0.0.128/25"], True),
        (["fd00::/48", "10.0.0.0/8", "fd00:0:0:1::/64"], True),
        (["10.0.0.0/24", "10.0.0.0/24"], True),
        (["any", "nowhere", "10.0.0.0/24"], False),
    ],
)
def test_disjoint(value, overlap):
    """Networks of one list have no address in common."""
    assert bool(BOUNDS["disjoint"](value, True)) is overlap


def test_secrets_are_not_repeated(root):
    """A secret is refused without being shown."""
    said = "\n".join(violations("demo", {"demo_secret": "hunter2", "demo_passwd_x": "hunter3"}, today=TODAY, root=root))
    assert "demo_secret = (hidden)" in said
    assert "hunter" not in said


def test_exception_lifts_only_the_policy_side(root):
    """An approved exception lets a site be laxer, never beyond a technical limit, and not after it expired."""
    assert violations("demo", {"demo_seconds": 3600}, [APPROVED], TODAY, root) == []
    assert violations("demo", {"demo_seconds": 1}, [APPROVED], TODAY, root) != []
    assert violations("demo", {"demo_seconds": 3600}, [{**APPROVED, "expires": "2026-11-20"}], TODAY, root) != []
    assert violations("demo", {"demo_seconds": 3600}, [{**APPROVED, "ticket": ""}], TODAY, root) != []


def test_foreign_variables(root):
    """A name with the role's prefix that belongs to somebody else can be declared so."""
    assert violations("demo", {"demo_theirs": 1, "bulwark_foreign_variables": ["demo_theirs"]}, today=TODAY, root=root) == []


@pytest.mark.parametrize("text", [None, "statements: 7", "statements: [{id: X}]", "{", "[]"])
def test_unreadable_register(root, text):
    """Without the register nothing is allowed to pass: the error names the file."""
    register = root / "policy" / "register.yml"
    register.unlink() if text is None else register.write_text(text)
    with pytest.raises(PolicyError, match=r"register\.yml"):
        violations("demo", {"demo_seconds": 3600}, today=TODAY, root=root)


def test_unknown_bound(root):
    """A bound nobody knows is an error of the policy's data, not a bound that always holds."""
    (root / "policy/parameters/demo.yml").write_text(yaml.safe_dump({"parameters": {"demo_seconds": {"bounds": {"atmost": 1}}}}))
    with pytest.raises(PolicyError, match="atmost"):
        violations("demo", {"demo_seconds": 3600}, today=TODAY, root=root)


def test_controls_must_be_a_list(root):
    """A controls file of another shape is refused by name."""
    (root / "roles/demo/meta/controls.yml").write_text("controls: 3")
    with pytest.raises(PolicyError, match=r"roles/demo/meta/controls\.yml"):
        controls_of("demo", root)


def test_filter_errors():
    """The filter refuses what is not a mapping and a role nobody knows."""
    assert FilterModule().filters() == {"policy_violations": policy_violations}
    with pytest.raises(AnsibleFilterError, match="mapping"):
        policy_violations("x", "session")
    with pytest.raises(AnsibleFilterError, match="unknown"):
        policy_violations({}, "nosuchrole")


def test_what_is_needed_must_be_set_unless_the_role_is_taken_back(root):
    """Missing and empty are the same; the message says whose wish it is."""
    path = root / "policy" / "parameters" / "demo.yml"
    data = yaml.safe_load(path.read_text())
    data["parameters"]["demo_names"]["needed"] = True
    path.write_text(yaml.safe_dump(data))
    assert unset("demo", GOOD, root) == []
    for variables in ({}, {"demo_names": []}):
        (message,) = unset("demo", variables, root)
        assert message.startswith("demo_names is not set: must be (")
    assert unset("demo", {"demo_state": "absent"}, root) == []
