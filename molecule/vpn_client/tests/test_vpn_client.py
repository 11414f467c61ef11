# Copyright: (c) 2026, Bulwark contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Use and attack a person's profile. The machine is its own gateway here, and Duo's service is a stand-in."""

from __future__ import annotations

import json
import time

import pytest

DIRECTORY = "/etc/openvpn/client/bulwark"


def duo(host, answer):
    """Set what Duo answers."""
    host.check_output("echo '%s' >/opt/duo_service/state.json" % json.dumps({"answers": {"*": answer}, "hang_seconds": 2}))


def asked(host):
    """Return how often Duo was asked for a factor."""
    lines = [json.loads(line) for line in host.run("cat /opt/duo_service/requests.jsonl").stdout.splitlines()]
    return sum(str(line["call"]).split("/")[-1].split(".")[0] == "auth" for line in lines)


def is_up(host, seconds=20):
    """Wait for the tunnel's interface to have its address; say whether it does."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if "10.99.0.10/24" in host.run("ip -o addr show bulwark").stdout:
            return True
        if host.run("systemctl is-active openvpn-client@bulwark").stdout.strip() in ("inactive", "failed"):
            return False
        time.sleep(0.3)
    return False


@pytest.fixture
def tunnel(host):
    """Start the tunnel as a person would, with what Duo answers; it is stopped after the test."""

    def start(answer="allow"):
        duo(host, answer)
        host.check_output("systemctl start --no-block openvpn-client@bulwark")
        return is_up(host)

    yield start
    host.run("systemctl stop openvpn-client@bulwark; systemctl reset-failed openvpn-client@bulwark")


def test_the_profile_opens_the_tunnel(host, tunnel):
    before = asked(host)
    assert tunnel()
    assert asked(host) == before + 1
    assert "10.20.30.0/24 via 10.99.0.1" in host.check_output("ip -o route; sleep 1; ip -o route")
    state = json.loads(host.check_output("sleep 2; cat /run/bulwark-vpn/state.json"))
    assert [(s["user"], s["cipher"], s["channel"]) for s in state["sessions"]] == [
        ("alice", "AES-256-GCM", "TLSv1.3 TLS_AES_256_GCM_SHA384")
    ]


def test_a_refusal_is_final(host, tunnel):
    before = asked(host)
    assert not tunnel("deny")
    time.sleep(8)  # the unit would be started anew after 5 seconds, did it think that this is a failure
    assert asked(host) <= before + 1, "her telephone rang once"


def test_what_the_gateway_pushes_beyond_its_networks_is_ignored(host, tunnel):
    before = host.check_output("ip route show default; ip route show 203.0.113.0/24; cat /etc/resolv.conf")
    extra = 'push "redirect-gateway def1"\npush "dhcp-option DNS 203.0.113.1"\npush "route 203.0.113.0 255.255.255.0"\n'
    host.check_output(
        f"cp /etc/openvpn/server/bulwark.conf /root/server.conf; printf '%s' '{extra}' >>/etc/openvpn/server/bulwark.conf"
    )
    try:
        host.check_output("systemctl restart openvpn-server@bulwark; sleep 1")
        assert tunnel()
        assert "PUSH: Received" in host.check_output("journalctl -q -o cat -u openvpn-client@bulwark | grep redirect-gateway")
        assert host.check_output("ip route show default; ip route show 203.0.113.0/24; cat /etc/resolv.conf") == before
        assert "0.0.0.0/1" not in host.check_output("ip route")
    finally:
        host.check_output("cat /root/server.conf >/etc/openvpn/server/bulwark.conf; systemctl restart openvpn-server@bulwark")


def test_nobody_else_reads_keys(host):
    for path in (f"{DIRECTORY}/private.key", f"{DIRECTORY}.tls-crypt-v2.key", f"{DIRECTORY}.login", f"{DIRECTORY}.conf"):
        done = host.run(f"setpriv --reuid=nobody --regid=nogroup --clear-groups cat {path}")
        assert "Permission denied" in done.stderr, done
    assert host.check_output(f"cat {DIRECTORY}.login") == "alice\npush"
    assert host.run("grep -rlsF 'PRIVATE KEY' /etc/openvpn/client /home /root /tmp").stdout.split() == [
        f"{DIRECTORY}/private.key"
    ]


def test_a_passcode_is_asked_for_and_not_kept(host, target):
    target.reapply(vpn_client_factor="ask")
    try:
        assert host.check_output(f"cat {DIRECTORY}.login") == "alice"
        duo(host, "allow")
        host.check_output("systemctl start --no-block openvpn-client@bulwark")
        end = time.monotonic() + 20
        while not host.run("grep -h ^Message /run/systemd/ask-password/ask.*").stdout:
            assert time.monotonic() < end, "nobody asked"
            time.sleep(0.3)
        assert not is_up(host, 1)
    finally:
        host.run("systemctl stop openvpn-client@bulwark; systemctl reset-failed openvpn-client@bulwark")
        target.reapply()


def test_somebody_undeclared_gets_no_certificate(target):
    with pytest.raises(pytest.fail.Exception, match=r"WTH-7\.2\.1-2"):
        target.reapply(vpn_client_user="mallory")


def test_the_role_can_be_taken_back(host, target):
    target.reapply(vpn_client_state="absent")
    assert not host.file(DIRECTORY).exists
    assert "vpn.invalid" in host.file("/etc/openvpn/client/bulwark.conf").content_string, "the site's own is back"
    target.reapply()
