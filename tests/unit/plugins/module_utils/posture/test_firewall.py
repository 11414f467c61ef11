# Copyright: (c) 2026, Bulwark contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the collector makes of what nft, systemctl and ss print, on captured output of Debian 12 and 13."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from ansible_collections.bulwark.hardening.plugins.filter import firewall as filters
from ansible_collections.bulwark.hardening.plugins.module_utils.posture import firewall as module

FIXTURES = Path(__file__).parent / "fixtures" / "firewall"
VARIABLES = yaml.safe_load((FIXTURES / "variables.yml").read_text())
DEBIANS = ["debian12", "debian13"]


@pytest.fixture(params=DEBIANS)
def listing(request):
    """The rules of the role's own scenario, as nft of each Debian lists them."""
    return json.loads((FIXTURES / f"{request.param}-ruleset.json").read_text())


@pytest.mark.parametrize("hook", ["input", "forward", "output"])
def test_the_rules_open_what_is_declared_and_nothing_else(listing, hook):
    seen = module.rules(listing)["openings"]
    assert filters.firewall_undeclared(seen, VARIABLES, [22], hook) == []
    assert filters.firewall_closed(seen, VARIABLES, [22], hook) == []


def test_limits_logs_and_checks_are_found(listing):
    seen = module.rules(listing)
    assert seen["limits"]["new4"] == seen["limits"]["new6"] == {"rate": 50, "per": "second"}
    assert seen["log_prefixes"]["bulwark-fw event=scan"] == 7 and len(seen["log_prefixes"]) == 7
    assert "fib iif saddr" in seen["source_checks"] and len(seen["source_checks"]) == 3
    assert seen["confined"] == {hook: ["192.0.2.128/25", "2001:db8:2:128::/64"] for hook in ("input", "forward")}
    assert seen["chains"]["input"]["policy"] == seen["chains"]["forward"]["policy"] == "drop"
    assert set(seen["counters"]) >= {"drop", "scan", "flood"} and seen["bypasses"] == []


def test_one_rule_more_is_noticed(listing):
    rule = {"family": "inet", "table": "bulwark", "chain": "services", "expr": [{"accept": None}]}
    listing["nftables"].insert(-1, {"rule": rule})
    seen = module.rules(listing)["openings"]
    assert filters.firewall_undeclared(seen, VARIABLES, [22], "input") == ["input"]
    assert filters.firewall_ssh_strangers(seen, VARIABLES, [22]) == ["any"]


def test_one_rule_less_is_noticed(listing):
    listing["nftables"] = [item for item in listing["nftables"] if item.get("rule", {}).get("comment") != "database"]
    seen = module.rules(listing)["openings"]
    assert "input; from 192.0.2.30/32; ports tcp/5432" in filters.firewall_closed(seen, VARIABLES, [22], "input")


def test_wireless_led_aside_too_late_is_not_led_aside(listing):
    early = {"family": "inet", "table": "bulwark", "chain": "input", "expr": [{"goto": {"target": "services"}}]}
    first = next(n for n, item in enumerate(listing["nftables"]) if item.get("rule", {}).get("chain") == "input")
    listing["nftables"].insert(first, {"rule": early})
    assert module.rules(listing)["confined"]["input"] == []


def test_a_flow_table_goes_past_all_rules():
    found = module.rules({"nftables": [{"flowtable": {"family": "ip", "table": "fast", "name": "lane"}}]})
    assert found["bypasses"] == ["flowtable ip fast lane"]


@pytest.mark.parametrize("debian", DEBIANS)
def test_units(debian):
    units = module.unit_states((FIXTURES / f"{debian}-units.txt").read_text())
    assert units["bulwark-firewall.service"]["active"] and "network-pre.target" in units["bulwark-firewall.service"]["before"]
    assert units["nftables.service"]["start"] == ["/usr/sbin/nft -f /etc/bulwark/firewall-with-site.nft"]
    assert units["nftables.service"]["stop"] == ["/usr/sbin/nft -f /etc/bulwark/firewall-alone.nft"]


def test_log_group():
    assert module.log_group_read("    0    337     0 2 65531    100  1\n    7    404     0 2 65531    100  1\n")
    assert not module.log_group_read("   70    404     0 2 65531    100  1\n")
    assert not module.log_group_read("")


def test_listening():
    text = (
        'tcp LISTEN 0 128 0.0.0.0:22 0.0.0.0:* users:(("sshd",pid=53,fd=3))\n'
        "tcp LISTEN 0 5 *:8080 *:*\n"
        'tcp LISTEN 0 5 127.0.0.1:25 0.0.0.0:* users:(("master",pid=1,fd=3))\n'
        "tcp LISTEN 0 5 [::1]:25 [::]:*\n"
        "udp UNCONN 0 0 127.0.0.53%lo:53 0.0.0.0:*\n"
        'udp UNCONN 0 0 [fe80::1%eth0]:546 [::]:* users:(("networkd",pid=9,fd=1))\n'
    )
    assert [(one["protocol"], one["address"], one["port"], one["program"]) for one in module.listening(text)] == [
        ("tcp", "0.0.0.0", 22, "sshd"),
        ("tcp", "*", 8080, ""),
        ("udp", "fe80::1", 546, "networkd"),
    ]


def test_without_nft_everything_is_open(monkeypatch):
    monkeypatch.setattr(module, "NFT", "/nonexistent")
    monkeypatch.setattr(module, "run", lambda argv, timeout=10: "")
    monkeypatch.setattr(module, "read", lambda path: "1\n")
    monkeypatch.setattr(module, "ssh_ports", lambda: [22])
    seen = module.collect()
    assert not seen["installed"] and not seen["in_force"]
    assert filters.firewall_ssh_strangers(seen["openings"], VARIABLES, [22]) == ["any"]
