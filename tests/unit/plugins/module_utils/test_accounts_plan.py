# SPDX-License-Identifier: GPL-3.0-or-later
"""Unit tests of the plan: what happens to which account, and what is refused because it would lock people out."""

from __future__ import annotations

import pytest
from ansible_collections.bulwark.hardening.plugins.module_utils import accounts as rules
from ansible_collections.bulwark.hardening.plugins.module_utils import accounts_plan

NOW = 1795305600  # 2026-11-22 00:00 UTC
DAY = rules.DAY
REQUEST = {"ticket": "R-1", "approved_by": "Ada Officer", "approved_on": "2026-01-01", "identity_method": "phone"}
DEPLOY = {"name": "deploy", "kind": "automation", "owner": "O", "reason": "r", "peers": ["p"]}
JDOE = {"name": "jdoe", "owner": "Jane Doe", **REQUEST}


def account(name, uid=1001, **more) -> dict:
    """An open account of a person who logged in today."""
    return {
        "name": name, "uid": uid, "gid": uid, "home": f"/home/{name}", "kind": "person", "removed_name": None,
        "shell": "/bin/bash", "shell_kind": "listed", "password": "locked", "expires_day": None, "expired": False,
        "keys": [f"SHA256:{name}"], "key_files": [f"/home/{name}/.ssh/authorized_keys"], "groups": [],
        "last_login": {"at": NOW, "source": "bulwark"}, "first_seen": NOW - 500 * DAY, "sessions": 0, "used_by": [],
        "disabled": None, **more,
    }  # fmt: skip


def host(*people, root=None, system=(), **more) -> dict:
    """What the collector saw: root locked, the automation account and people."""
    quiet_root = account("root", 0, kind="root", keys=[], key_files=[], **(root or {}))
    deploy = account("deploy", 1000, groups=["sudo"])
    return {
        "now": NOW, "login_sources": {"lastlog": "read"}, "logins_lost_at": None, "root": quiet_root, "system": list(system),
        "people": [deploy, *people], "reserved": [], "lost_reservations": [], "nis_entries": [], "shared_uids": {},
        "repeated_names": [], "default_passwords": [], **more,
    }  # fmt: skip


def make(seen, users=(), record=None, became=("deploy",), over_ssh=False, admins=("deploy",), declared=None, **settings) -> dict:
    """Make a plan."""
    full = {
        "users": declared or [DEPLOY, *users], "undeclared": "report", "generic_names": [], "system_exempt": [], "approvers": [],
        "approval_required": True, "disable_days": 90, "remove_days": 90, "notice_days": 1, "at_once_percent": 25,
        "controller_time": NOW, "clock_tolerance": 3600, "known_groups": {"sudo", "ssh-users"},
        "missing_shells": {"/bin/fish"}, **settings,
    }  # fmt: skip
    blank = {"before": {}, "disabled": {}, "removed": {}, **(record or {})}
    return accounts_plan.plan(seen, blank, full, set(became), over_ssh, lambda name: name in admins)


def idle(name, uid, days, **more) -> dict:
    """A person who did not log in for so many days."""
    return account(name, uid, last_login={"at": NOW - int(days * DAY), "source": "lastlog"}, **more)


def test_quiet_host_stays_as_it_is():
    made = make(host(account("jdoe")), [JDOE])
    assert not made["refusals"]
    assert not made["want"]
    assert not made["disable"]


def test_root_is_closed_only_while_somebody_else_can_become_root():
    open_root = host(root={"password": "set"})
    assert make(open_root)["want"] == {"root": {"password": "locked"}}
    assert "no account would be left" in make(open_root, admins=())["refusals"][0]
    assert "came in as root over SSH" in make(open_root, over_ssh=True)["refusals"][0]


def test_person_without_a_way_in_is_no_other_way_to_root():
    seen = host(account("jdoe", keys=[], key_files=[]), root={"password": "set"})
    assert make(seen, [JDOE], became=(), admins=("jdoe",))["refusals"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"state": "disabled"}, "disabled (declared disabled)"),
        ({"state": "absent"}, "removed"),
        ({"groups": ["ssh-users"]}, "taken out of sudo"),
        ({"kind": "service"}, "given shell"),
        ({"authorized_keys": ["ssh-ed25519 AAAA other"]}, "left without a key"),
        ({"kind": "personal"}, "the request lacks"),
        ({"kind": "temporary", **REQUEST, "expires": "2026-11-22"}, "expired on"),
    ],
)
def test_the_way_in_is_never_cut(change, said):
    text = "\n".join(make(host(), declared=[{**DEPLOY, **change}])["refusals"])
    assert "Ansible came in as deploy" in text
    assert said in text


def test_account_of_a_vendor_that_ansible_came_in_with():
    seen = host(account("ubuntu", 1002))
    assert "Ansible came in as ubuntu" in make(seen, became=("ubuntu",), admins=("ubuntu", "deploy"))["refusals"][0]
    assert make(seen)["disable"] == {"ubuntu": ("generic", "a vendor's default account")}


def test_undeclared_is_reported_unless_told_otherwise():
    seen = host(account("mallory"))
    assert not make(seen)["disable"]
    assert make(seen, undeclared="disable")["disable"] == {"mallory": ("undeclared", "not declared")}
    assert not make(seen, undeclared="disable", became=("deploy", "mallory"))["disable"]


def test_dormant_is_disabled_then_removed_after_notice():
    others = [account(f"p{n}", 1100 + n) for n in range(4)]
    made = make(host(idle("jdoe", 1001, 90), *others), [JDOE])
    assert made["disable"] == {"jdoe": ("dormant", "unused for 90 days")}
    assert made["want"]["jdoe"] == {"shell": "/usr/sbin/nologin", "expires_day": 1}
    shut = {"shell_kind": "none", "expires_day": 1, "expired": True}
    for since, days, removed in ((0.5, 91, False), (1, 91, True), (30, 90, False)):
        gone = idle("jdoe", 1001, days, **shut, disabled={"at": int(NOW - since * DAY), "reason": "dormant", "why": ""})
        made = make(host(gone, *others), [JDOE])
        assert bool(made["remove"]) is removed, (since, days)
        assert not made["enable"]


def test_approved_again_opens_it_again_as_it_was():
    gone = idle("jdoe", 1001, 91, shell_kind="none", expires_day=1, expired=True,
                disabled={"at": NOW - 2 * DAY, "reason": "dormant", "why": ""})  # fmt: skip
    record = {"before": {"jdoe": {"shell": ["/bin/zsh", "/usr/sbin/nologin"], "expires_day": [None, 1]}}}
    made = make(host(gone), [{**JDOE, "approved_on": "2026-11-21"}], record)
    assert made["enable"] == ["jdoe"]
    assert made["want"]["jdoe"] == {"shell": "/bin/zsh", "expires_day": None}


def test_mass_dormancy_is_refused_and_can_be_allowed():
    people = [idle(f"p{n}", 1100 + n, 400) for n in range(4)] + [account("jdoe")]
    made = make(host(*people))
    assert "4 of 5 accounts" in made["refusals"][0]
    assert not make(host(*people), at_once_percent=100)["refusals"]


def test_one_may_always_go_but_not_the_last_person_who_can_become_root():
    seen = host(idle("jdoe", 1001, 400))
    assert not make(seen, [JDOE])["refusals"]
    assert "no person would be left" in make(seen, [JDOE], admins=("deploy", "jdoe"))["refusals"][0]


@pytest.mark.parametrize("skew", [365 * DAY, -365 * DAY, 3601])
def test_wrong_clock_is_refused(skew):
    assert "clock differs" in make(host(now=NOW + skew))["refusals"][0]


def test_unreadable_logins_are_refused():
    seen = host(unobserved={"login_sources": "wtmpdb: unreadable: broken"})
    del seen["login_sources"]
    assert "last logins cannot be read" in make(seen)["refusals"][0]


def test_second_uid_0_loses_it():
    toor = account("toor", 0, kind="system", keys=[], key_files=[], password="set")
    made = make(host(system=[toor], shared_uids={"0": ["root", "toor"]}))
    assert made["want"]["toor"] == {"shell": "/usr/sbin/nologin", "password": "locked", "expires_day": 1, "uid": 999}
    assert made["disable"]["toor"][0] == "shared uid"


def test_shared_uid_goes_to_the_declared_one_or_to_nobody():
    pair = [account("jdoe", 1001), account("ghost", 1001)]
    seen = host(*pair, shared_uids={"1001": ["jdoe", "ghost"]})
    assert "uid" in make(seen, [JDOE])["want"]["ghost"]
    assert "declare exactly one" in make(seen)["refusals"][0]


def test_unapproved_newcomer_is_not_created():
    made = make(host(), [{**JDOE, "approved_by": None}])
    assert not made["create"]
    assert "not created, the request lacks approved_by" in made["warnings"][0]
    assert make(host(), [JDOE])["create"] == [JDOE]


def test_removed_person_comes_back_only_if_approved_again():
    kept = account("removed-jdoe", 1001, kind="reserved", shell_kind="none", expires_day=1, expired=True)
    record = {"removed": {"jdoe": {"uid": 1001, "at": NOW - 5 * DAY, "reserved_as": "removed-jdoe", "owner": "Jane Doe"}}}
    seen = host(reserved=[kept])
    assert "was removed on 2026-11-17" in make(seen, [JDOE], record)["warnings"][0]
    renewed = {**JDOE, "approved_on": "2026-11-20"}
    assert make(seen, [renewed], record)["revive"] == [renewed]
    other = make(seen, [{**renewed, "owner": "John Doe"}], record)
    assert "another person gets another name" in other["refusals"][0]


def test_expired_temporary_account_is_closed_and_prolonging_opens_it():
    tempo = {"name": "tempo", "owner": "T", "kind": "temporary", **REQUEST, "expires": "2026-11-22"}
    assert make(host(account("tempo")), [tempo])["disable"]["tempo"][0] == "expired"
    shut = account("tempo", shell_kind="none", expires_day=1, expired=True, disabled={"at": NOW, "reason": "expired", "why": ""})
    assert make(host(shut), [{**tempo, "expires": "2026-12-01"}])["enable"] == ["tempo"]
    assert not make(host(shut), [tempo])["enable"]


def test_what_is_not_declared_is_left_alone():
    zsh = account("jdoe", shell="/bin/zsh", groups=["sudo"])
    assert not make(host(zsh), [JDOE])["want"]
    made = make(host(zsh), [{**JDOE, "shell": "/bin/bash", "groups": ["ssh-users"]}])
    assert made["want"]["jdoe"] == {"shell": "/bin/bash", "groups": ["ssh-users"]}
    assert "group nope does not exist" in make(host(zsh), [{**JDOE, "groups": ["nope"]}])["refusals"][0]
    assert "shell /bin/fish does not exist" in make(host(zsh), [{**JDOE, "shell": "/bin/fish"}])["refusals"][0]


def test_reserved_name_always_fits():
    assert accounts_plan.reserved_name("jdoe", 1001, set()) == "removed-jdoe"
    assert accounts_plan.reserved_name("jdoe", 1001, {"removed-jdoe"}) == "removed-1001"
    assert accounts_plan.reserved_name("a" * 30, 1001, set()) == "removed-1001"


def test_undeclared_stays_closed_opens_when_declared_and_goes_when_unused():
    shut = {
        "shell_kind": "none",
        "expires_day": 1,
        "expired": True,
        "disabled": {"at": NOW - 2 * DAY, "reason": "undeclared", "why": ""},
    }
    record = {"before": {"ghost": {"shell": ["/bin/bash", "/usr/sbin/nologin"], "expires_day": [None, 1]}}}
    made = make(host(account("ghost", **shut)), record=record, undeclared="disable")
    assert not made["want"]
    assert not made["remove"]
    assert make(host(account("ghost", **shut)), [{**JDOE, "name": "ghost"}], record)["enable"] == ["ghost"]
    assert make(host(account("ghost", **shut)), record=record)["enable"] == ["ghost"]  # back to report
    assert make(host(idle("ghost", 1001, 91, **shut)), record=record, undeclared="disable")["remove"] == {
        "ghost": "unused for 91 days"
    }
    kept = make(host(idle("ghost", 1001, 91, used_by=["app.service"], **shut)), record=record, undeclared="disable")
    assert not kept["remove"]
    assert "in use by app.service" in kept["warnings"][0]
