# SPDX-License-Identifier: GPL-3.0-or-later
"""Unit tests of the rules over accounts."""

from __future__ import annotations

import datetime

import pytest
from ansible_collections.bulwark.hardening.plugins.module_utils import accounts as rules

NOW = 1795305600  # 2026-11-22 00:00 UTC
TODAY = datetime.date(2026, 11, 22)
DAY = rules.DAY
PATTERN = "^[a-z][a-z0-9]{1,7}$"
REQUEST = {"ticket": "R-1", "approved_by": "Ada Officer", "approved_on": "2026-01-01", "identity_method": "phone"}


def account(name="jdoe", **more) -> dict:
    """An open account of a person."""
    return {
        "name": name, "uid": 1001, "gid": 1001, "home": f"/home/{name}", "kind": "person", "removed_name": None,
        "shell": "/bin/bash", "shell_kind": "listed", "password": "locked", "expires_day": None, "expired": False, "keys": [],
        "key_files": [], "groups": [], "last_login": None, "first_seen": NOW - 400 * DAY, "sessions": 0, "used_by": [],
        "disabled": None, **more,
    }  # fmt: skip


def closed(name="jdoe", **more) -> dict:
    """The same, closed."""
    return account(name, **{"shell_kind": "none", "expires_day": 1, "expired": True, **more})


def logged_in(days: float, source="lastlog") -> dict:
    """A last login so many days ago."""
    return {"at": int(NOW - days * DAY), "source": source}


@pytest.mark.parametrize(
    ("passwd_field", "shadow_field", "kind"),
    [
        ("x", "!", "locked"),
        ("x", "!*", "locked"),
        ("x", "*", "locked"),
        ("x", "!$6$salt$hash", "locked"),
        ("x", "$y$j9T$x$y", "set"),
        ("x", "", "empty"),
        ("x", None, "missing"),
        ("", "$6$salt$hash", "empty"),  # the field in passwd wins when it is not x
        ("$1$old$hash", None, "set"),
        ("*", None, "locked"),
    ],
)
def test_password_kind(passwd_field, shadow_field, kind):
    assert rules.password_kind(passwd_field, shadow_field) == kind


def test_passwd_lines_that_are_no_accounts():
    text = "root:x:0:0:root:/root:/bin/bash\n+\n-bob\n+@ward::::::\nbroken:x:1\nneg:x:-1:1::/:/bin/sh\n\n"
    found = rules.parse_passwd(text)
    assert [entry.get("odd", entry.get("name")) for entry in found] == ["root", "NIS", "NIS", "NIS", "malformed", "malformed"]
    assert rules.nis_lines(text) == ["+", "-bob", "+@ward"]


@pytest.mark.parametrize(
    ("name", "uid", "kind"),
    [("root", 0, "root"), ("toor", 0, "system"), ("daemon", 1, "system"), ("nobody", 65534, "system"), ("big", 70000, "person")],
)
def test_kind(name, uid, kind):
    assert rules.account_kind(name, uid, 1000) == kind


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("test", "generic"),
        ("Test_01", "generic"),
        ("guest-7", "generic"),
        ("2user2", "generic"),
        ("nurse3", "generic"),  # the site's own
        ("ec2-user", "vendor"),
        ("ubuntu", "vendor"),
        ("pi", "vendor"),
        ("dbadmin", "admin"),
        ("jroot", "root"),
        ("privat", "priv"),
        ("dbarnes", "dba"),
        ("jane.doe", "form"),
        ("j", "form"),
        ("averylongname", "form"),
    ],
)
def test_refused_names(name, said):
    assert said in rules.refused_name(name, ["nurse"], PATTERN)


@pytest.mark.parametrize("name", ["jdoe", "mkoehl", "testa", "piotr", "userov"])
def test_names_of_people_are_not_refused(name):
    assert rules.refused_name(name, ["nurse"], PATTERN) is None


@pytest.mark.parametrize(
    ("days", "found"), [(0, False), (89.99, False), (90, True), (400, True), (-0.5, False)], ids=str
)  # fmt: skip
def test_dormant_by_last_login(days, found):
    said = rules.find_dormant([account(last_login=logged_in(days))], [], 90, NOW, None)
    assert bool(said) is found


def test_login_from_the_future_cannot_be_judged():
    assert "clock" in rules.find_dormant([account(last_login=logged_in(-30))], [], 90, NOW, None)[0]


def test_never_used_counts_from_first_seen_and_not_before():
    assert rules.find_dormant([account(first_seen=NOW - 91 * DAY)], [], 90, NOW, None)
    assert not rules.find_dormant([account(first_seen=NOW - 80 * DAY)], [], 90, NOW, None)
    assert not rules.find_dormant([account(first_seen=None)], [], 90, NOW, None)
    old_approval = {"name": "jdoe", "owner": "Jane Doe", **REQUEST}
    assert not rules.find_dormant([account(first_seen=None)], [old_approval], 90, NOW, None), (
        "approved long before the host was seen"
    )


def test_renewed_approval_and_lost_records_begin_the_count_anew():
    old = account(last_login=logged_in(200))
    assert not rules.find_dormant([old], [{"name": "jdoe", "approved_on": "2026-11-01"}], 90, NOW, None)
    assert not rules.find_dormant([old], [], 90, NOW, NOW - 10 * DAY)
    assert rules.find_dormant([old], [], 90, NOW, NOW - 95 * DAY)


def test_live_session_is_not_disuse():
    assert not rules.find_dormant([account(last_login=logged_in(200), sessions=1)], [], 90, NOW, None)


def test_what_programs_run_under_is_not_dormant_but_undeclared():
    service = account("app", used_by=["app.service"], last_login=logged_in(300))
    assert not rules.find_dormant([service], [], 90, NOW, None)
    assert rules.find_undeclared([service], []) == ["app: not declared (in use by app.service)"]
    # a person's own crontab does not keep the person from being dormant
    assert rules.find_dormant([service], [{"name": "app", "kind": "personal"}], 90, NOW, None)


@pytest.mark.parametrize("kind", ["service", "automation"])
def test_machines_are_never_dormant(kind):
    assert not rules.find_dormant([account(last_login=logged_in(900))], [{"name": "jdoe", "kind": kind}], 90, NOW, None)


def test_closed_accounts_are_no_findings():
    gone = closed(last_login=logged_in(300))
    assert not rules.find_dormant([gone], [], 90, NOW, None)
    assert not rules.find_undeclared([gone], [])
    assert not rules.find_refused_names([closed("admin")], [], [], PATTERN, TODAY)


@pytest.mark.parametrize(
    ("idle", "notice", "reason", "due"),
    [
        (91, 2, "dormant", True),
        (90, 2, "dormant", False),
        (91, 0, "dormant", False),
        (91, 2, "declared", False),
        (91, 2, "undeclared", True),
    ],
)
def test_overdue(idle, notice, reason, due):
    gone = closed(last_login=logged_in(idle), disabled={"at": NOW - notice * DAY, "reason": reason, "why": ""})
    assert bool(rules.find_overdue([gone], [], 90, 1, NOW, None)) is due


def test_approved_again_is_not_overdue():
    gone = closed(last_login=logged_in(95), disabled={"at": NOW - 3 * DAY, "reason": "dormant", "why": ""})
    assert not rules.find_overdue([gone], [{"name": "jdoe", "approved_on": "2026-11-20"}], 90, 1, NOW, None)
    assert rules.find_overdue([gone], [{"name": "jdoe", "approved_on": "2026-11-01"}], 15, 1, NOW, None)


@pytest.mark.parametrize(
    ("more", "gap"),
    [
        ({}, []),
        ({"ticket": ""}, ["ticket"]),
        ({"approved_by": None, "approved_on": None}, ["approved_by", "approved_on"]),
        ({"approved_by": "Eve Else"}, ["approved_by one of accounts_approvers"]),
        ({"owner": "ada officer"}, ["approval by someone else than the owner"]),
        ({"identity_method": None}, ["identity_method"]),
        ({"audience": "external"}, ["sponsor", "agreement_on", "expires"]),
        ({"audience": "vendor", "sponsor": "s", "agreement_on": "d", "expires": "d"}, ["attested_on"]),
        ({"kind": "service", "ticket": ""}, []),
    ],
)
def test_request_gaps(more, gap):
    assert rules.request_gaps({"name": "jdoe", "owner": "Jane Doe", **REQUEST, **more}, ["Ada Officer"]) == gap


def problems(*users) -> str:
    """What is wrong with a declaration, as one text."""
    return "\n".join(rules.declaration_problems(list(users), [], PATTERN, 90, TODAY))


def person(name, **more) -> dict:
    """A declared person."""
    return {"name": name, "owner": f"Owner of {name}", **REQUEST, **more}


def test_sound_declaration():
    assert problems(
        person("jdoe"),
        person("tempo", kind="temporary", expires="2027-02-20"),
        {"name": "relay", "kind": "service", "owner": "Olga", "reason": "mail", "peers": ["mx"]},
        person("admin", state="absent"),  # to get rid of it, it must be named
    ) == ""  # fmt: skip


@pytest.mark.parametrize(
    ("users", "said"),
    [
        ([person("jdoe"), person("jdoe")], "declared twice"),
        ([person("root")], "WTH-7.6-4"),
        ([person("shared")], "WTH-7.2.1-11"),
        ([person("jdoe", owner="Jane Doe"), person("jdoe2", owner=" jane  doe")], "WTH-7.6-8"),
        ([person("jdoe", uid=1500), person("mkoe", uid=1500)], "ids are never shared"),
        ([person("tempo", kind="temporary")], "expires is missing"),
        ([person("tempo", kind="temporary", expires="2027-02-21")], "at most 90 days"),
        ([person("tempo", kind="temporary", expires="2026-12-01", ticket=None)], "ticket is missing"),
        ([person("cust", kind="temporary", audience="customer", expires="2026-12-01")], "refused for customers"),
        ([{"name": "relay", "kind": "service", "owner": "O"}], "reason is missing"),
        ([person("jdoe", approved_on="2026-12-24")], "lies in the future"),
        ([person("jdoe", authorized_keys=["ssh-ed25519 nonsense!"])], "is not a public key"),
        (
            [person("a1", authorized_keys=["ssh-ed25519 AAAA one"]), person("b1", authorized_keys=["ssh-ed25519 AAAA two"])],
            "keys are never shared",
        ),
    ],
)
def test_wrong_declarations(users, said):
    assert said in problems(*users)


def test_exception_lifts_name_and_second_account_until_it_ends():
    granted = {"approver": "Ada Officer", "reason": "family name", "expires": "2026-11-22"}
    users = [person("jdoe", owner="Jane Doe"), person("dbarnes", owner="Jane Doe", exception=granted)]
    assert problems(*users) == ""
    users[1]["exception"] = {**granted, "expires": "2026-11-21"}
    assert "WTH-7.6-7b" in problems(*users)
    assert "WTH-7.6-8" in problems(*users)


def test_pattern_that_is_no_regular_expression():
    assert "accounts_name_pattern = [a-z: is not a regular expression" in rules.declaration_problems([], [], "[a-z", 90, TODAY)[0]


def test_removal_before_disabling_is_refused():
    assert "CF-01" in rules.declaration_problems([], [], PATTERN, 90, TODAY, (90, 60))[0]


def test_temporary_accounts_on_the_host():
    users = [person("tempo", kind="temporary", expires="2026-12-22")]
    limit = rules.to_day("2026-12-22")
    assert not rules.find_unlimited([account("tempo", expires_day=limit)], users, 90, NOW)
    assert "never expires" in rules.find_unlimited([account("tempo")], users, 90, NOW)[0]
    assert "declared until" in rules.find_unlimited([account("tempo", expires_day=limit + 1)], users, 90, NOW)[0]
    assert "expires only on" in rules.find_unlimited([account("tempo", expires_day=limit + 400)], users, 90, NOW)[0]


def test_service_accounts_on_the_host():
    users = [{"name": "relay", "kind": "service", "owner": "O", "reason": "r", "peers": ["p"]}]
    assert not rules.find_open_service([closed("relay", expired=False)], users)
    assert "shell" in rules.find_open_service([account("relay")], users)[0]
    assert "password set" in rules.find_open_service([closed("relay", password="set")], users)[0]


def test_system_accounts():
    bad = [
        account("games", kind="system"),
        closed("list", kind="system", key_files=["/var/list/.ssh/authorized_keys"]),
        closed("sys", kind="system", password="set"),
        closed("ok", kind="system"),
        account("postgres", kind="system"),
        account("deploy", kind="system", keys=["k"]),
    ]
    said = rules.find_open_system(bad, [{"name": "postgres"}], [{"name": "deploy", "kind": "automation"}])
    assert [line.split(":")[0] for line in said] == ["games", "list", "sys"]


def test_shared_keys_and_owners():
    assert rules.find_shared_keys([account("a", keys=["K"]), account("b", keys=["K", "L"]), closed("c", keys=["L"])]) == [
        "K: a, b"
    ]
    users = [person("a", owner="X Y"), person("b", owner="x  y")]
    assert rules.find_shared_owner(users, [account("a"), account("b")], TODAY) == ["x  y: a and b"]
    assert not rules.find_shared_owner(users, [account("a"), closed("b")], TODAY)


@pytest.mark.parametrize(
    ("line", "blob"),
    [
        ("ssh-ed25519 AAAAC3 me@here", "AAAAC3"),
        ('restrict,command="echo ssh-rsa" ssh-ed25519 AAAAC3', "AAAAC3"),
        ("ecdsa-sha2-nistp256 AAAAE2== x", "AAAAE2=="),
        ("sk-ssh-ed25519@openssh.com AAAAG x", "AAAAG"),
        ("ssh-ed25519-cert-v01@openssh.com AAAAI x", "AAAAI"),
        ("hello world", None),
        ("ssh-ed25519", None),
    ],
)
def test_key_blob(line, blob):
    assert rules.key_blob(line) == blob
