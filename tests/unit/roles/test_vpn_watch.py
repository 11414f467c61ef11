# SPDX-License-Identifier: GPL-3.0-or-later
"""The watcher of the VPN: what counts as activity, and when a tunnel must end."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest

PATH = Path(__file__).resolve().parents[3] / "roles" / "vpn_gateway" / "files" / "vpn_watch.py"
SPEC = importlib.util.spec_from_file_location("vpn_watch", PATH)
watch = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(watch)

from ansible_collections.bulwark.hardening.plugins.module_utils import vpn  # noqa: E402

LIMITS = {"end_after": 1720, "session_max": 43200}


def session(**more):
    """Return a session that began at 1000 seconds after boot."""
    return {"user": "alice", "serial": "AB", "since": 1000.0, "active": 1000.0, "sent": 0, "bursts": 0, **more}


def simulate(sends, poll=10, end_after=1720, threshold=1000, until=20000.0, offset=0.0):
    """Return when a session that began at 0 is ended; ``sends`` is [(time, bytes)], looks come every poll from an offset."""
    about = session(since=0.0, active=0.0)
    limits = {"end_after": end_after, "session_max": 10**9}
    looked, at = 0.0, offset
    while at < until:
        note_at = sum(size for when, size in sends if when <= at)
        watch.note(about, note_at, at, looked, threshold)
        looked = at
        if watch.verdict(about, at, limits, {"alice"}, set()):
            return at
        at += poll
    return None


def test_a_trickle_for_ever_is_no_activity():
    assert simulate([(second, 90) for second in range(1, 20000)]) <= 1730


def test_ssh_keepalives_are_no_activity():
    assert simulate([(second, 5 * 140) for second in range(0, 20000, 15)]) <= 1730


def test_bursts_are_activity():
    assert simulate([(second, 1500) for second in range(0, 20000, 900)]) is None


def test_what_is_left_over_does_not_add_up():
    sends = [(100, 5000), (101, 900)] + [(second, 900) for second in range(200, 20000, 30)]
    assert simulate(sends) <= 100 + 1720 + 10


@pytest.mark.parametrize("idle", [30, 60, 300, 900, 1800])
@pytest.mark.parametrize("part", [0.0, 0.1, 0.5, 0.9])
def test_whenever_the_last_byte_comes_the_bound_holds(idle, part):
    plan = vpn.idle_plan(idle)
    last = 400.0 + part * plan["poll"]
    sends = [(float(second), 5000) for second in range(401) if second <= last] + [(last, 5000)]
    ended = simulate(sends, plan["poll"], plan["end_after"], until=400 + 3 * idle)
    late_look_and_kill = plan["watchdog"] + plan["kill"]
    assert last < ended and ended - last + late_look_and_kill <= idle


def test_a_counter_set_up_anew_counts_from_nothing():
    assert watch.burst(5000, 5600) == 600
    assert watch.burst(5000, 300) == 300


@pytest.mark.parametrize(
    ("about", "now", "declared", "revoked", "expected"),
    [
        (session(), 1100, {"alice"}, set(), ""),
        (session(), 1000 + 1719, {"alice"}, set(), ""),
        (session(), 1000 + 1720, {"alice"}, set(), "idle"),
        (session(active=44100.0), 44200, {"alice"}, set(), "session_limit"),
        (session(), 1001, {"bob"}, set(), "removed"),
        (session(), 1001, {"alice"}, {"AB"}, "revoked"),
        (session(), 9999, {"bob"}, {"AB"}, "revoked"),
    ],
)
def test_verdict(about, now, declared, revoked, expected):
    assert watch.verdict(about, now, LIMITS, declared, revoked) == expected


def test_status_by_its_own_header():
    text = (
        "TITLE\tOpenVPN\nHEADER\tCLIENT_LIST\tCommon Name\tReal Address\tVirtual Address\tClient ID\tData Channel Cipher\n"
        "CLIENT_LIST\talice\t192.0.2.1:40000\t10.99.0.10\t7\tAES-256-GCM\nROUTING_TABLE\t10.99.0.10\talice\nEND"
    )
    [row] = watch.status_rows(text.split("\n"))
    assert row["Client ID"] == "7" and row["Data Channel Cipher"] == "AES-256-GCM" and row["Virtual Address"] == "10.99.0.10"


def test_counters_of_a_table():
    listing = {"nftables": [
        {"set": {"name": "inside4", "elem": [{"prefix": {"addr": "10.0.0.0", "len": 8}}, "10.1.1.1"]}},
        {"set": {"name": "sent4", "elem": [{"elem": {"val": "10.99.0.10", "counter": {"packets": 3, "bytes": 102}}}]}},
        {"rule": {"expr": [{"match": {}}, {"set": {"op": "add", "elem": {}, "set": "@sent4"}}]}},
        {"rule": {"expr": [{"accept": None}]}},
    ]}  # fmt: skip
    assert watch.counters(json.dumps(listing)) == ({"10.99.0.10": 102}, 1)


def test_serials_agree_however_they_are_written():
    printed = "Revoked Certificates:\n    Serial Number: 0AC36F1A\n        Revocation Date: x\n"
    assert watch.crl_serials(printed) == {watch.serial_of({"tls_serial_hex_0": "0a:c3:6f:1a"})}


def test_a_line_cannot_be_broken_open():
    line = watch.line_of("connect", user='a" reason=x\nevent=refused', real="[::1]:1", nothing="")
    assert "\n" not in line and line.count("event=") == 1 + line.count("?event=") and line.endswith("nothing=-")
    assert len(line.split(" ")) == 4


class Talk:
    """A management socket that says what it is told to."""

    def __init__(self):
        self.sent = []

    def send(self, command):
        self.sent.append(command)


@pytest.fixture
def watching(tmp_path, capsys):
    """A watcher without a VPN."""
    (tmp_path / "users").mkdir()
    options = ["--management=x", f"--state={tmp_path}/state", "--interface=vpn0", "--crl=x",
               f"--users={tmp_path}/users", "--end-after=15", "--poll=1", "--kill=10", "--burst=1000", "--session-max=60",
               "--network=10.20.0.0/16"]  # fmt: skip
    parser_args = {}

    class Stop(Exception):
        pass

    real = watch.Watch
    try:
        watch.Watch = lambda args: parser_args.update(args=args) or real(args)
        assert watch.main([*options, "--try"]) == 0
    finally:
        watch.Watch = real
    found = watch.Watch(parser_args["args"])
    found.management = Talk()
    return found


def feed(watcher, kind, cid, **about):
    """Let OpenVPN tell of a client."""
    watcher.line(f">CLIENT:{kind},{cid}")
    for key, value in {"session_state": "Initial", "username": about["common_name"], **about}.items():
        watcher.line(f">CLIENT:ENV,{key}={value}")
    watcher.line(">CLIENT:ENV,END")


def test_a_session_from_first_line_to_last(watching, capsys):
    watching.line(">HOLD:Waiting for hold release:0")
    assert watching.management.sent == ["hold release"]
    feed(watching, "ESTABLISHED", 4, common_name="alice", trusted_ip="192.0.2.9", trusted_port="4000", tls_serial_hex_0="ab:cd",
         ifconfig_pool_remote_ip="10.99.0.10")  # fmt: skip
    assert watching.sessions["4"]["serial"] == "ABCD"
    watching.line(">LOG:1,,192.0.2.9:4000 Control Channel: TLSv1.3, cipher TLSv1.3 TLS_AES_256_GCM_SHA384, peer certificate: 384")
    assert watching.channels["192.0.2.9:4000"] == "TLSv1.3 TLS_AES_256_GCM_SHA384"
    watching.line(">BYTECOUNT_CLI:4,10,20")
    watching.line(">LOG:1,,alice/192.0.2.9:4000 SIGTERM[soft,remote-exit] received, client-instance exiting")
    lines = capsys.readouterr().out.splitlines()
    assert lines[-2] == "event=connect user=alice real=192.0.2.9:4000 address=10.99.0.10 address6=- serial=ABCD"
    assert lines[-1].startswith("event=disconnect user=alice real=192.0.2.9:4000 address=10.99.0.10 ")
    assert lines[-1].endswith(" received=10 sent=20 seconds=0 reason=left")
    assert not watching.sessions


def test_the_second_session_replaces_the_first(watching, capsys):
    about = {"common_name": "alice", "trusted_ip": "192.0.2.9", "ifconfig_pool_remote_ip": "10.99.0.10"}
    feed(watching, "ESTABLISHED", 1, trusted_port="1", **about)
    watching.line(">LOG:1,D,MULTI: new connection by client 'alice' will cause previous active sessions by")
    assert "reason=replaced" in capsys.readouterr().out and not watching.sessions
    feed(watching, "ESTABLISHED", 2, trusted_port="2", **about)
    assert list(watching.sessions) == ["2"]


@pytest.mark.parametrize("sign", [{"session_state": "Authenticated"}, {"username": "bob"}])
def test_who_is_turned_away_has_no_session(watching, sign):
    feed(watching, "ESTABLISHED", 1, common_name="alice", trusted_ip="192.0.2.9", trusted_port="1", **sign)
    assert not watching.sessions


def test_why_we_ended_it_counts_more_than_how_openvpn_puts_it(watching, capsys):
    feed(watching, "ESTABLISHED", 1, common_name="alice", trusted_ip="192.0.2.9", trusted_port="1")
    watching.sessions["1"]["ending"] = "revoked"
    watching.line(">LOG:1,,alice/192.0.2.9:1 SIGTERM[soft,delayed-exit] received, client-instance exiting")
    assert "reason=revoked" in capsys.readouterr().out
