# SPDX-License-Identifier: GPL-3.0-or-later
"""When an idle tunnel is ended, who has which address, and which networks cannot work."""

from __future__ import annotations

import pytest
from ansible_collections.bulwark.hardening.plugins.module_utils import vpn


def test_the_worst_case_is_within_the_limit():
    for idle in range(30, 1801):
        plan = vpn.idle_plan(idle)
        assert plan["worst_case"] == vpn.worst_case_seconds(plan["end_after"], plan["poll"], plan["watchdog"], plan["kill"])
        assert plan["worst_case"] <= idle
        assert plan["end_after"] > 2 * plan["poll"] > 0, "somebody who pauses for a moment is not idle"
        assert plan["watchdog"] > 2 * plan["poll"], "a slow look is not yet a dead watcher"


def test_half_an_hour():
    assert vpn.idle_plan(1800) == {"poll": 10, "watchdog": 60, "kill": 10, "end_after": 1720, "worst_case": 1800}


def test_addresses_follow_from_names_and_stay():
    users = [{"name": name} for name in ("alice", "bob", "carol")]
    before = {entry["name"]: entry["address"] for entry in vpn.addresses(users, "10.99.0.0/24")}
    after = {entry["name"]: entry["address"] for entry in vpn.addresses(users[1:], "10.99.0.0/24")}
    assert after == {name: before[name] for name in after}
    assert len(set(before.values())) == 3 and "10.99.0.1" not in before.values()


def test_declared_addresses_are_kept_and_not_given_twice():
    free = vpn.addresses([{"name": "bob"}], "10.99.0.0/24")[0]["address"]
    found = vpn.addresses([{"name": "bob"}, {"name": "alice", "address": free}], "10.99.0.0/24", "fd00:99::/64")
    assert found[0]["address"] == free != found[1]["address"]
    assert found[0]["address6"] == f"fd00:99::{int(free.rsplit('.', 1)[1]):x}"


def test_a_full_network_is_an_error():
    users = [{"name": f"u{n}"} for n in range(14)]
    assert len({entry["address"] for entry in vpn.addresses(users[:13], "10.99.0.0/28")}) == 13
    with pytest.raises(ValueError, match="no address left"):
        vpn.addresses(users, "10.99.0.0/28")


GOOD = {
    "network": "10.99.0.0/24", "network6": "fd00:99::/64", "routes": ["10.20.0.0/16", "fd00:20::/64"], "address": "198.51.100.1",
    "users": [{"name": "alice", "address": "10.99.0.10"}, {"name": "bob"}],
}  # fmt: skip
SEEN = {
    "networks": [{"network": "192.0.2.0/24", "interface": "eth0"}, {"network": "10.99.0.0/24", "interface": "vpn0"}],
    "peers": [{"address": "192.0.2.7", "interface": "eth0"}, {"address": "10.99.0.10", "interface": "vpn0"}],
}


def test_what_works_is_not_objected_to():
    assert vpn.objections(GOOD, SEEN) == []


@pytest.mark.parametrize(
    ("wrong", "seen", "said"),
    [
        ({"routes": ["10.99.0.128/25"]}, SEEN, "overlaps with vpn_gateway_network"),
        ({"routes": ["fd00:99::/80"]}, SEEN, "overlaps with vpn_gateway_network6"),
        ({"routes": ["10.20.0.0/16", "10.20.5.0/24"]}, SEEN, "overlaps with 10.20.0.0/16"),
        ({"routes": ["10.20.0.1/16"]}, SEEN, "has host bits set"),
        ({"network": "10.99.0.1/24"}, SEEN, "has host bits set"),
        ({"address": ""}, SEEN, "vpn_gateway_address: must be set"),
        ({"address": "10.20.0.1"}, SEEN, "the tunnel would lead into itself"),
        ({"address": "10.99.0.200"}, SEEN, "the tunnel would lead into itself"),
        ({"users": [{"name": "alice"}, {"name": "alice"}]}, SEEN, "alice: is listed twice"),
        ({"users": [{"name": "a", "address": "10.99.0.9"}, {"name": "b", "address": "10.99.0.9"}]}, SEEN, "address of two users"),
        ({"users": [{"name": "a", "address": "10.98.0.9"}]}, SEEN, "no address for a user"),
        ({"users": [{"name": "a", "address": "10.99.0.1"}]}, SEEN, "no address for a user"),
        ({"users": [{"name": f"u{n}"} for n in range(254)]}, SEEN, "has room for 253"),
        ({"network": "192.0.2.0/25"}, SEEN, "overlaps with 192.0.2.0/24 on eth0"),
        ({"network": "192.0.0.0/20", "users": []}, SEEN, "holds 192.0.2.7, from where this gateway is being managed"),
    ],
)
def test_what_cannot_work_is_said(wrong, seen, said):
    found = vpn.objections({**GOOD, **wrong}, seen)
    assert any(said in line for line in found), found


def test_a_name_as_address_is_the_resolvers_business():
    assert vpn.objections({**GOOD, "address": "vpn.example.org"}, SEEN) == []


def test_network_taken_apart():
    found = vpn.network("10.99.0.0/24")
    assert (found["version"], found["netmask"], found["prefix"], found["first"]) == (4, "255.255.255.0", 24, "10.99.0.1")
