# Copyright: (c) 2026, Bulwark contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The collector of the clock, on what Debian 12 (chrony 4.3) and Debian 13 (4.6.1) printed."""

from __future__ import annotations

from pathlib import Path

import pytest
from ansible_collections.bulwark.hardening.plugins.module_utils.posture import time_sync
from ansible_collections.bulwark.hardening.plugins.module_utils.posture.common import CannotObserve
from ansible_collections.bulwark.hardening.plugins.plugin_utils.policy import violations

FIXTURES = Path(__file__).parent / "fixtures" / "time_sync"
RELEASES = ("debian12", "debian13")
WHOLE_MACHINE = "         0          0 4294967295\n"


def fixture(name):
    return (FIXTURES / f"{name}.txt").read_text()


@pytest.mark.parametrize("release", RELEASES)
def test_container_cannot_set_the_clock(release):
    assert not time_sync.clock_settable(fixture(f"{release}-status-container"), WHOLE_MACHINE)


@pytest.mark.parametrize(
    ("bounding", "uid_map", "settable"),
    [
        ("000001ffffffffff", WHOLE_MACHINE, True),  # a machine of its own
        ("000001ffffffffff", "0 100000 65536", False),  # a user namespace: all capabilities, but not over the clock
        ("000001fffdffffff", WHOLE_MACHINE, False),
        ("0000000002000000", WHOLE_MACHINE, True),
    ],
)
def test_capability_decides_whether_the_clock_can_be_set(bounding, uid_map, settable):
    assert time_sync.clock_settable(f"Name:\tsystemd\nCapBnd:\t{bounding}\nCapAmb:\t0\n", uid_map) is settable


def test_status_without_capabilities_is_an_error():
    with pytest.raises(CannotObserve):
        time_sync.clock_settable("Name:\tsystemd\n", WHOLE_MACHINE)


@pytest.mark.parametrize("release", RELEASES)
def test_vendor_configuration_is_read(release):
    sources, directives = time_sync.parsed(fixture(f"{release}-config-vendor"))
    assert sources == [{"kind": "pool", "name": "2.debian.pool.ntp.org", "auth": "", "options": {"iburst": True}}]
    assert directives["makestep"] == "1 3"
    assert directives["sourcedir"] == "/run/chrony-dhcp /etc/chrony/sources.d"
    assert "port" not in directives
    assert "authselectmode" not in directives


@pytest.mark.parametrize("release", RELEASES)
def test_hardened_configuration_is_read(release):
    sources, directives = time_sync.parsed(fixture(f"{release}-config-hardened"))
    assert {source["auth"] for source in sources} == {"nts"}
    assert len(sources) == 4
    assert sources[0]["options"] == {"nts": True, "iburst": True, "minpoll": 6, "maxpoll": 10}
    assert (directives["authselectmode"], directives["port"], directives["cmdport"]) == ("require", "0", "0")
    assert directives["rtcsync"] == ""


def test_options_with_and_without_numbers():
    sources, directives = time_sync.parsed(
        "# a comment\n\nServer a.example KEY 10 minpoll -2 burst\npeer 192.0.2.1 port 124\nport 123\nport 0\nserver\n"
    )
    assert sources == [
        {"kind": "server", "name": "a.example", "auth": "key", "options": {"key": 10, "minpoll": -2, "burst": True}},
        {"kind": "peer", "name": "192.0.2.1", "auth": "", "options": {"port": 124}},
        {"kind": "server", "name": "", "auth": "", "options": {}},
    ]
    assert directives == {"port": "0"}  # of a repeated directive the last counts


@pytest.mark.parametrize("release", RELEASES)
def test_last_environment_file_of_the_unit_decides(release, monkeypatch):
    texts = {
        "/etc/default/chrony": '# options\nDAEMON_OPTS="-F 1"\n',
        "/etc/chrony.bulwark.env": '# ours\nDAEMON_OPTS="-F 1 -f /etc/chrony.bulwark.conf"\n',
    }
    monkeypatch.setattr(time_sync, "read", lambda path: texts[path])
    monkeypatch.setattr(time_sync.os.path, "exists", lambda path: path in texts)
    vendor, *others = time_sync.blocks(fixture(f"{release}-units-vendor"))
    assert time_sync.expanded(vendor) == ["-F", "1"]
    assert not any(time_sync.in_use(unit) for unit in others)
    hardened = time_sync.blocks(fixture(f"{release}-units-hardened"))[0]
    arguments = time_sync.expanded(hardened)
    assert time_sync.option(arguments, "-f") == "/etc/chrony.bulwark.conf"
    del texts["/etc/chrony.bulwark.env"]
    assert time_sync.expanded(hardened) == ["-F", "1"]


def test_unit_that_only_waits_for_the_next_start_is_in_use():
    assert time_sync.in_use({"ActiveState": "inactive", "UnitFileState": "enabled"})
    assert time_sync.in_use({"ActiveState": "active", "UnitFileState": "static"})
    assert not time_sync.in_use({"ActiveState": "inactive", "UnitFileState": "masked"})
    assert not time_sync.in_use({"ActiveState": "inactive", "UnitFileState": ""})


@pytest.mark.parametrize("release", RELEASES)
def test_running_daemon_is_read(release):
    seen = time_sync.state(fixture(f"{release}-tracking"), fixture(f"{release}-selectdata"))
    assert seen["stratum"] == 4
    assert 0 < seen["offset_seconds"] < 0.001
    assert seen["uncertainty_seconds"] == {"debian12": 0.000010573, "debian13": 0.000011661}[release]
    assert seen["leap"] == "Normal"
    assert seen["source"] == {"debian12": "ntp-a.test", "debian13": "ntp-b.test"}[release]
    assert seen["source_auth"] is True


def test_daemon_that_follows_nobody():
    seen = time_sync.state(
        "00000000,,0,0.0,0.0,0.0,0.0,0.000,0.000,0.000,1.0,1.0,0.0,Not synchronised\n",
        "M,ntp-a.test,Y,-,-,-,-,-,-,-,-,-,-,0,1.0,-0.000002095,0.000034669,Normal\n",
    )
    assert (seen["leap"], seen["source"], seen["source_auth"]) == ("Not synchronised", "", False)


def test_answer_that_is_no_report_is_an_error():
    with pytest.raises(CannotObserve):
        time_sync.state("506 Cannot talk to daemon\n", "")


def test_only_ports_of_a_time_server_count():
    assert time_sync.listeners(
        "UNCONN 0 0 127.0.0.1:323 0.0.0.0:*\nUNCONN 0 0 0.0.0.0:123 0.0.0.0:*\nUNCONN 0 0 [::]:1123 [::]:*\n"
        "UNCONN 0 0 [::1]:323 [::]:*\n"
    ) == ["0.0.0.0:123", "127.0.0.1:323", "[::1]:323"]


def test_installed_time_daemons():
    assert time_sync.installed("chrony config-files\nsystemd-timesyncd installed\nbash installed\n") == ["systemd-timesyncd"]


def test_owner_and_mode_of_a_file(tmp_path):
    path = tmp_path / "keys"
    path.write_text("")
    path.chmod(0o640)
    seen = time_sync.owned(str(path), True)
    assert (seen["mode"], seen["secret"]) == ("0640", True)


# --- what the role is told --------------------------------------------------------------------------------------------

A, B = {"name": "a.example"}, {"name": "b.example"}
SECRET = "00112233445566778899aabbccddeeff"
KEY = {"id": 1, "type": "AES128", "secret": SECRET}
PEM = "-----BEGIN CERTIFICATE-----\nMIIB+w==\n-----END CERTIFICATE-----\n"


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"time_sync_sources": []}, "at least 2 item"),
        ({"time_sync_sources": [A]}, "at least 2 item"),
        ({"time_sync_sources": [A, A]}, "repeat"),
        ({"time_sync_sources": "a.example"}, "time_sync_sources"),
        ({"time_sync_sources": [A, {"name": "b.example\nallow all"}]}, "must match"),
        ({"time_sync_sources": [A, {"name": "b.example iburst"}]}, "must match"),
        ({"time_sync_sources": [A, {"name": "-x"}]}, "must match"),
        ({"time_sync_sources": [A, {"name": ""}]}, "must match"),
        ({"time_sync_sources": [A, {"host": "b.example"}]}, "host"),
        ({"time_sync_sources": [A, {**B, "port": 0}]}, "at least 1"),
        ({"time_sync_sources": [A, {**B, "ntsport": 70000}]}, "at most 65535"),
        ({"time_sync_sources": [A, {**B, "key": 0}]}, "at least 1"),
        ({"time_sync_sources": [A, {**B, "nts": "perhaps"}]}, "time_sync_sources"),
        ({"time_sync_agreeing_sources": 0}, "at least 1"),
        ({"time_sync_authentication": "mix"}, "MA-12.1"),
        ({"time_sync_authentication": "ignore"}, "MA-12.1"),
        ({"time_sync_authentication": "require\nallow"}, "time_sync_authentication"),
        ({"time_sync_trust_anchors": ["/etc/ssl/ca.pem"]}, "must match"),
        ({"time_sync_trust_anchors": ["-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----"]}, "must match"),
        ({"time_sync_trust_anchors": [PEM + "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----"]}, "must match"),
        ({"time_sync_keys": [{**KEY, "type": "MD5"}]}, "time_sync_keys"),
        ({"time_sync_keys": [{**KEY, "secret": "short"}]}, "time_sync_keys"),
        ({"time_sync_keys": [{**KEY, "secret": f"{SECRET}\nallow"}]}, "time_sync_keys"),
        ({"time_sync_keys": [{**KEY, "id": -1}]}, "time_sync_keys"),
        ({"time_sync_keys": [{"id": 1, "secret": SECRET}]}, "time_sync_keys"),
        ({"time_sync_max_offset_seconds": 3600}, "at most 60 seconds"),
        ({"time_sync_max_offset_seconds": 0}, "at least 0.001"),
        ({"time_sync_max_offset_seconds": "soon"}, "float"),
        ({"time_sync_max_change_seconds": 0}, "at least 1"),
        ({"time_sync_max_distance_seconds": 16}, "at most 3"),
        ({"time_sync_minpoll": 4}, "MA-12.2"),
        ({"time_sync_maxpoll": 17}, "MA-12.2"),
        ({"time_sync_state": "disabled"}, "one of"),
        ({"time_sync_servers": ["a.example"]}, "unknown variable"),
    ],
)
def test_what_the_role_refuses(variables, expected):
    said = violations("time_sync", variables)
    assert said and expected in " ".join(said), said
    assert next(iter(variables)) in said[0]
    assert SECRET not in " ".join(said)


@pytest.mark.parametrize(
    "variables",
    [
        {"time_sync_sources": [{**A, "port": 11123, "ntsport": 14460}, {"name": "192.0.2.1", "key": 1}, {"name": "2001:db8::1"}]},
        {"time_sync_trust_anchors": [PEM, PEM + PEM], "time_sync_trust_system_anchors": True},
        {"time_sync_keys": [KEY, {"id": 2, "type": "SHA512", "secret": SECRET * 2}]},
        {"time_sync_minpoll": 7, "time_sync_maxpoll": 9, "time_sync_max_offset_seconds": 0.1},
    ],
)
def test_what_the_role_takes(variables):
    assert violations("time_sync", variables) == []
