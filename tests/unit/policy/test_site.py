# SPDX-License-Identifier: GPL-3.0-or-later
"""playbooks/site.yml applies every role, each once, and names no list of its own beside check_input's."""

from __future__ import annotations

import pytest
from ansible_collections.bulwark.hardening.plugins.plugin_utils.policy import PROFILES, ROOT, all_roles, read_yaml, roles_for

CHECK, HARDEN = read_yaml(ROOT / "playbooks" / "site.yml")
ROLES = {entry["role"].removeprefix("bulwark.hardening."): entry for entry in HARDEN["roles"]}
ARM, CONFIRM = HARDEN["pre_tasks"][0], HARDEN["post_tasks"][-1]
GUARD = "bulwark.hardening.change_guard"


def test_every_role_is_applied_once_when_it_was_checked():
    """A role that check_input did not look at is not applied, and none is forgotten."""
    assert len(HARDEN["roles"]) == len(ROLES)
    assert sorted(ROLES) == all_roles()
    for name, entry in ROLES.items():
        assert entry["tags"] == [name]
        assert entry["when"] == f"'{name}' in bulwark_checked.roles"
    assert CHECK["tasks"][-1]["register"] == "bulwark_checked"
    assert CHECK["tags"] == ["always"]


def test_firewall_comes_last_and_the_second_factor_once_sshd_passes_it_on():
    """An order that would shut somebody out half way is no order."""
    order = list(ROLES)
    assert order[-1] == "firewall"
    assert order.index("ssh") < order.index("duo")
    assert order.index("vpn_gateway") < order.index("vpn_client")
    # Its authority signs for those who forward; its store must be there to be watched; the clock is right first.
    assert order.index("time_sync") < order.index("log_collector") < order.index("audit_log") < order.index("log_forward")
    assert order.index("log_collector") < order.index("log_review")
    assert order.index("backup_repository") < order.index("backup")


def test_the_guard_holds_whatever_changes_access():
    """Armed first, confirmed last, for every role that arms it by itself when it is applied alone."""
    assert (ARM[GUARD]["state"], CONFIRM[GUARD]) == ("armed", {"state": "confirmed"})
    assert HARDEN["vars"]["bulwark_guard_held"] is True
    guarded = {name for name in ROLES if GUARD in (ROOT / "roles" / name / "tasks" / "main.yml").read_text()}
    assert guarded
    for task in (ARM, CONFIRM):
        assert set(task["tags"]) == guarded
        assert "when" not in task


@pytest.mark.parametrize("profile", PROFILES)
def test_roles_of_a_profile(profile):
    """Roles for one kind of host only are for that; workstations forward nothing; everything else is for every host."""
    only = {
        "vpn_gateway": "gateway",
        "vpn_client": "workstation",
        "log_collector": "collector",
        "log_review": "collector",
        "backup_repository": "repository",
    }
    wanted = [role for role in all_roles() if only.get(role, profile) == profile]
    if profile == "workstation":
        wanted = [role for role in wanted if role not in ("log_forward", "backup")]
    assert roles_for(profile) == wanted
