# Copyright: (c) 2026, Bulwark contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Would the wanted rules let this connection in again? Without a host: the way in is made up."""

from __future__ import annotations

import pytest
from ansible_collections.bulwark.hardening.plugins.module_utils.posture.common import CannotObserve
from ansible_collections.bulwark.hardening.plugins.modules import firewall_admission as module

WANTED = {
    "vpn_networks": ["10.99.0.0/24"],
    "vpn_interfaces": ["vpn0"],
    "management_addresses": ["192.0.2.20/32"],
    "wireless_networks": [],
    "services": [],
    "forwards": [],
    "out_allowed": [],
}


class Ended(Exception):
    """The module ended."""


@pytest.fixture
def outcome(monkeypatch):
    """Run the module as if it had come in from an address; returns whether it failed, and its result."""

    def judge(address, wanted=None, enforced=True, interface="eth0", ports=(22,)):
        found, wanted = [], wanted or WANTED

        class Module:
            """Stands for AnsibleModule."""

            def __init__(self, **_spec):
                self.params = {"wanted": wanted, "enforced": enforced}

            def warn(self, text):
                found.append(text)

            def exit_json(self, **result):
                found.append((False, result))
                raise Ended

            def fail_json(self, **result):
                found.append((True, result))
                raise Ended

        def way():
            if address == "hidden":
                raise CannotObserve("neither in its environment nor in the log")
            return address and {"account": "deploy", "address": address, "lport": "22"}

        monkeypatch.setattr(module, "AnsibleModule", Module)
        monkeypatch.setattr(module, "way_in", way)
        monkeypatch.setattr(module.seen, "ssh_ports", lambda: list(ports))
        monkeypatch.setattr(module, "interface_towards", lambda _address: interface)
        with pytest.raises(Ended):
            module.main()
        return found[-1]

    return judge


def test_a_controller_comes_in_again(outcome):
    failed, result = outcome("192.0.2.20")
    assert not failed and result["admitted_by"] == "firewall_management_addresses"
    assert (result["address"], result["port"], result["interface"]) == ("192.0.2.20", 22, "eth0")


def test_a_member_comes_in_again_by_the_tunnel_only(outcome):
    assert outcome("10.99.0.2", interface="vpn0")[1]["admitted_by"] == "firewall_vpn_networks"
    failed, result = outcome("10.99.0.2")
    assert failed and "not by firewall_vpn_interfaces" in result["msg"]


def test_whoever_would_be_shut_out_is_refused(outcome):
    failed, result = outcome("192.0.2.21")
    assert failed and result["msg"].startswith("Refused before anything changed: Ansible came in from 192.0.2.21 to tcp/22")
    assert not outcome("192.0.2.21", enforced=False)[0], "unless the pre-flight is off"


def test_not_to_know_is_to_refuse(outcome):
    failed, result = outcome("hidden")
    assert failed and "unknown" in result["msg"]


def test_without_ssh_there_is_nothing_to_lose(outcome):
    assert outcome(None) == (
        False,
        {"changed": False, "over_ssh": False, "address": "", "port": 0, "interface": "", "admitted_by": ""},
    )


def test_what_does_not_fit_together_is_refused_in_any_case(outcome):
    wanted = {**WANTED, "services": [{"name": "x", "ports": ["tcp/2022"], "from": ["any"]}]}
    failed, result = outcome(None, wanted, enforced=False, ports=(22, 2022))
    assert failed and "port 2022 is sshd's" in result["msg"]


def test_half_a_wish_is_refused(outcome):
    assert outcome("192.0.2.20", {"vpn_networks": []})[0]
