# Copyright: (c) 2026, Bulwark contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is to be let in, what the kernel's rules let in, and who would be shut out."""

from __future__ import annotations

import pytest
from ansible_collections.bulwark.hardening.plugins.module_utils import firewall as module

WANTED = {
    "ssh_ports": [22, 2022],
    "vpn_networks": ["10.99.0.0/24", "2001:db8:99::/64"],
    "vpn_interfaces": [],
    "management_addresses": ["192.0.2.20/32", "2001:db8:2::20/128"],
    "wireless_networks": ["192.0.2.128/25", "2001:db8:2:128::/64"],
    "container_interfaces": [],
    "ping": True,
    "services": [
        {"name": "web", "ports": ["tcp/80", "tcp/8000-8010"], "from": ["any"]},
        {"name": "database", "ports": ["tcp/5432"], "from": ["192.0.2.0/26", "2001:db8:2::/64"]},
        {"name": "vpn", "ports": ["udp/1194"], "from": ["any"], "wireless": True},
    ],
    "forwards": [{"name": "members", "from": ["10.99.0.0/24"], "to": ["203.0.113.0/24"], "ports": ["tcp/22", "icmp"]}],
    "out": "open",
    "out_allowed": [],
}


def wanted(**changes):
    return {**WANTED, **changes}


# --- who would be let in ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("address", "port", "protocol", "admitted"),
    [
        ("192.0.2.20", 22, "tcp", True),
        ("192.0.2.20", 2022, "tcp", True),
        ("192.0.2.21", 22, "tcp", False),
        ("2001:db8:2::20", 22, "tcp", True),
        ("2001:db8:2::21", 22, "tcp", False),
        ("::ffff:192.0.2.20", 22, "tcp", True),
        ("10.99.0.200", 2022, "tcp", True),
        ("10.99.1.1", 22, "tcp", False),
        ("2001:db8:99::1", 22, "tcp", True),
        ("fe80::1%eth0", 22, "tcp", False),
        ("198.51.100.1", 80, "tcp", True),
        ("198.51.100.1", 8010, "tcp", True),
        ("198.51.100.1", 8011, "tcp", False),
        ("198.51.100.1", 80, "udp", False),
        ("192.0.2.9", 5432, "tcp", True),
        ("192.0.2.64", 5432, "tcp", False),
        ("2001:db8:2::9", 5432, "tcp", True),
        ("192.0.2.129", 80, "tcp", False),
        ("192.0.2.129", 1194, "udp", True),
        ("192.0.2.129", 22, "tcp", False),
        ("2001:db8:2:128::5", 1194, "udp", True),
        ("2001:db8:2:128::5", 80, "tcp", False),
    ],
)
def test_admits(address, port, protocol, admitted):
    assert module.admits(WANTED, address, port, protocol)[0] is admitted


def test_admission_names_the_variable():
    assert module.admits(WANTED, "192.0.2.20", 22) == (True, "firewall_management_addresses")
    assert module.admits(WANTED, "10.99.0.2", 22) == (True, "firewall_vpn_networks")
    assert "in neither firewall_vpn_networks nor firewall_management_addresses" in module.admits(WANTED, "192.0.2.9", 22)[1]
    assert "firewall_wireless_networks" in module.admits(WANTED, "192.0.2.200", 22)[1]


@pytest.mark.parametrize(("interface", "admitted"), [("vpn0", True), ("eth0", False), ("", False)])
def test_a_member_comes_in_by_the_tunnel(interface, admitted):
    bound = wanted(vpn_interfaces=["vpn0"])
    assert module.admits(bound, "10.99.0.2", 22, "tcp", interface)[0] is admitted
    assert module.admits(bound, "192.0.2.20", 22, "tcp", interface)[0] is True, "a controller is not bound to it"


# --- what does not fit together ---------------------------------------------------------------------------------------


def test_what_fits_together_is_not_objected_to():
    assert module.objections(WANTED) == []


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"management_addresses": ["10.99.0.7/32"]}, ["vpn_networks and firewall_management_addresses overlap", "WTH-7.2.1-12"]),
        ({"wireless_networks": ["192.0.2.0/24"]}, ["wireless_networks and firewall_management_addresses overlap", "WTH-7.9-4d"]),
        ({"wireless_networks": ["10.99.0.128/25"]}, ["wireless_networks and firewall_vpn_networks overlap", "WTH-7.9-4d"]),
        ({"services": [{"name": "x", "ports": ["tcp/2000-2100"], "from": ["any"]}]}, ["port 2022 is sshd's", "WTH-7.2.1-12"]),
        ({"services": [{"name": "x", "ports": ["tcp/22"], "from": ["10.0.0.0/8"]}]}, ["port 22 is sshd's"]),
        ({"services": [{"name": "x", "ports": ["tcp/90-80"], "from": ["any"]}]}, ["firewall_services x", "before its beginning"]),
        ({"services": [{"name": "x", "ports": ["tcp/70000"], "from": ["any"]}]}, ["firewall_services x", "tcp/70000"]),
        ({"forwards": [{"name": "x", "from": ["192.0.2.130/32"], "to": ["any"], "ports": ["tcp/1"]}]}, ["WTH-7.9-4d"]),
        ({"services": [{"name": "x", "ports": ["tcp/1"], "from": ["any"]}] * 2}, ["x is declared twice"]),
    ],
)  # fmt: skip
def test_objections(changes, words):
    said = " ".join(module.objections(wanted(**changes)))
    for word in words:
        assert word in said, said


# --- networks and ports in one form -----------------------------------------------------------------------------------


def test_networks_are_merged_and_sorted():
    values = ["10.0.1.0/24", "10.0.0.0/24", "10.0.0.9/32", "192.0.2.1", "2001:DB8::/64", "198.51.100.0-198.51.100.127"]
    assert module.networks(values, 4) == ["10.0.0.0/23", "192.0.2.1/32", "198.51.100.0/25"]
    assert module.networks(values, 6) == ["2001:db8::/64"]


def test_ports_are_merged_and_sorted():
    assert module.port_names(["tcp/443", "tcp/80", "tcp/81-90", "udp/53", "icmp"]) == ["tcp/80-90", "tcp/443", "udp/53", "icmp"]


@pytest.mark.parametrize("port", ["tcp/0", "tcp/65536", "tcp/x", "tcp/"])
def test_no_port(port):
    with pytest.raises(ValueError, match=r"."):
        module.port_spans([port], "tcp")


# --- what the kernel has ----------------------------------------------------------------------------------------------


def table(*rules, policy="drop", sets=()):
    """Return a listing with rules (chain, expressions) of our table; every chain named like a hook is a base chain."""
    chains = {chain for chain, _expr in rules} | {"input", "forward", "output"}
    found = [{"table": {"family": "inet", "name": "bulwark"}}]
    for chain in sorted(chains):
        base = {"type": "filter", "hook": chain, "prio": 0, "policy": policy} if chain in ("input", "forward", "output") else {}
        found.append({"chain": {"family": "inet", "table": "bulwark", "name": chain, **base}})
    found += [{"set": {"family": "inet", "table": "bulwark", "name": name, "elem": elements}} for name, elements in sets]
    found += [{"rule": {"family": "inet", "table": "bulwark", "chain": chain, "expr": list(expr)}} for chain, expr in rules]
    return {"nftables": found}


def match(left, right, op="=="):
    return {"match": {"op": op, "left": left, "right": right}}


def payload(protocol, field):
    return {"payload": {"protocol": protocol, "field": field}}


ACCEPT, DROP = {"accept": None}, {"drop": None}
FROM_NET = match(payload("ip", "saddr"), {"prefix": {"addr": "10.0.0.0", "len": 24}})
TO_22 = match(payload("tcp", "dport"), 22)


def words(listing, hook="input"):
    return [module.in_words(one) for one in module.openings(listing) if one["hook"] == hook]


def test_a_closed_table_opens_nothing():
    assert module.openings(table(("input", [DROP]))) == []


def test_no_table_is_all_open():
    assert sorted(map(module.in_words, module.openings({"nftables": []}))) == ["forward", "input", "output"]


def test_a_policy_that_accepts_is_an_opening():
    assert words(table(policy="accept")) == ["input"]


def test_conditions_add_up_along_the_way():
    listing = table(("input", [TO_22, {"goto": {"target": "ssh"}}]), ("ssh", [FROM_NET, ACCEPT]))
    assert words(listing) == ["input; from 10.0.0.0/24; ports tcp/22"]


def test_what_comes_after_in_a_rule_counts_and_what_excludes_itself_does_not_open():
    other = match(payload("ip", "saddr"), "192.0.2.1")
    assert words(table(("input", [FROM_NET, {"goto": {"target": "more"}}]), ("more", [other, ACCEPT]))) == []


def test_a_named_set_is_looked_up():
    listing = table(
        ("input", [match(payload("ip", "saddr"), "@friends"), ACCEPT]), sets=[("friends", ["192.0.2.1", "192.0.2.0"])]
    )
    assert words(listing) == ["input; from 192.0.2.0/31"]


def test_what_is_not_understood_stays_visible():
    assert words(table(("input", [match({"meta": {"key": "mark"}}, 7), ACCEPT]))) == [
        "input; only {'meta': {'key': 'mark'}} == 7"
    ]
    assert words(table(("input", [match(payload("ip", "saddr"), "192.0.2.1", "!="), ACCEPT]))) != ["input"]
    assert "vmap" in words(table(("input", [{"vmap": {"key": {"meta": {"key": "mark"}}, "data": "@x"}}])))[0]


def test_another_table_is_not_ours():
    listing = table()
    listing["nftables"].append({"rule": {"family": "ip", "table": "bulwark", "chain": "input", "expr": [ACCEPT]}})
    assert words(listing) == []


def test_ports_as_nft_of_debian_12_writes_them():
    original = {"ct": {"key": "proto-dst", "dir": "original"}}
    expr = [
        match({"meta": {"key": "l4proto"}}, 6),
        match(original, {"set": ["0x1f90 [invalid type]", {"range": ["0x2328 [invalid type]", 9005]}]}),
    ]
    assert words(table(("forward", [*expr, ACCEPT])), "forward") == ["forward; ports tcp/8080, tcp/9000-9005; only as published"]


def test_a_whole_protocol_is_an_opening():
    found = module.openings(table(("input", [match({"meta": {"key": "l4proto"}}, {"set": [6]}), ACCEPT])))
    assert [module.in_words(one) for one in found] == ["input; ports tcp"]
    assert module.strangers(found, WANTED) == ["any"]


def test_a_loop_of_chains_ends():
    listing = table(("input", [{"jump": {"target": "a"}}]), ("a", [{"jump": {"target": "input"}}]), ("a", [ACCEPT]))
    assert "input" in words(listing)


def test_who_reaches_sshd():
    net = module.openings(table(("input", [FROM_NET, TO_22, ACCEPT])))
    assert module.strangers(net, WANTED) == ["10.0.0.0/24"]
    assert module.strangers(net, wanted(vpn_networks=["10.0.0.0/16"])) == []
    assert module.strangers(module.openings({"nftables": []}), WANTED) == ["any"]
    answers = [match({"ct": {"key": "direction"}}, "reply"), match({"ct": {"key": "state"}}, "established", "in"), ACCEPT]
    assert module.strangers(module.openings(table(("input", answers))), WANTED) == []


def test_what_listens_and_is_reached():
    listening = [{"protocol": "tcp", "address": "*", "port": port, "program": "python3"} for port in (22, 80, 6379)]
    assert module.exposed(listening, module.openings({"nftables": []}), WANTED) == ["tcp/6379 (python3)"]
    assert module.exposed(listening, module.openings(table(("input", [TO_22, ACCEPT]))), WANTED) == []


def test_declared_openings_are_in_one_form():
    found = {module.in_words(one) for one in module.declared_openings(WANTED)}
    assert "input; from 192.0.2.20/32; ports tcp/2022, tcp/22" in found
    assert "input; ports tcp/80, tcp/8000-8010" in found
    assert "input; from 192.0.2.128/25; ports udp/1194" in found
    assert "forward; from 10.99.0.0/24; to 203.0.113.0/24; ports icmp/echo-request" in found
    assert "output" in found
    confined = {module.in_words(one) for one in module.declared_openings(wanted(out="declared"))}
    assert "output" not in confined and "output; only tcp sport 22, 2022" in confined
