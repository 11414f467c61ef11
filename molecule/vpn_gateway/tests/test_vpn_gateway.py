# Copyright: (c) 2026, Bulwark contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Attack the VPN gateway with real clients from a machine of their own. Beside every refusal stands somebody who gets in.

The client machine has one leg, outside; a server stands inside, behind the gateway. Duo's service is a stand-in, the client that
asks it is the real libpam-duo. An idle tunnel is ended after 11 seconds here, at worst 30.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[3]
sys.path.insert(0, str(ROOT / "molecule" / "shared"))

import machines  # noqa: E402

UP, INSIDE = "Initialization Sequence Completed", "10.20.30.5"
CONFIG = """client
dev-type tun
nobind
proto udp
remote {gateway} 1194
ca /root/ca.crt
cert /root/{name}.crt
key /root/{name}.key
tls-crypt-v2 /root/{name}.tc2
remote-cert-tls server
verify-x509-name gw.lab name
tls-version-min 1.3
data-ciphers AES-256-GCM
auth-user-pass /root/{name}.login
auth-retry none
hand-window 30
connect-retry-max 1
explicit-exit-notify 1
verb 3
"""
# Issue certificates with the gateway's own program: requests on standard input, certificates on standard output, both JSON.
ISSUE = """
import importlib.machinery, importlib.util, json, sys
loader = importlib.machinery.SourceFileLoader("pki", "/usr/local/lib/bulwark/pki")
pki = importlib.util.module_from_spec(importlib.util.spec_from_loader("pki", loader)); loader.exec_module(pki)
authority = pki.Authority("/var/lib/bulwark/vpn-authority")
print(json.dumps({n: authority.issue(n, "client", r, int(sys.argv[1])) for n, r in json.load(sys.stdin).items()}))
"""
WEB = """
import socketserver
class Echo(socketserver.BaseRequestHandler):
    def handle(self):
        while data := self.request.recv(4096): self.request.sendall(data)
socketserver.ThreadingTCPServer.allow_reuse_address = True
socketserver.ThreadingTCPServer(("0.0.0.0", 8080), Echo).serve_forever()
"""


def box(name: str, *command: str, given: str = "", timeout: float = 90) -> subprocess.CompletedProcess:
    """Run a command in a container beside the gateway."""
    argv = ["podman", "exec", "-i", name, *command]
    return subprocess.run(argv, input=given, capture_output=True, text=True, check=False, timeout=timeout)


class Lab:
    """The gateway, a machine outside with people's profiles, and a server inside."""

    def __init__(self, host, target) -> None:
        self.host, self.target = host, target
        self.ward, self.inside = (f"molecule-vpn_gateway-{target.platform}-{name}" for name in ("ward", "inside"))
        self.addresses: dict[str, str] = {}

    def start(self) -> None:
        """Start the machines and give people their keys and certificates."""
        image = machines.image_name(self.target.platform)
        for name in (self.ward, self.inside):
            machines.stop(name)
            machines.run("podman", "run", "-d", "--name", name, "--label", "owner=molecule", "--cap-add=NET_ADMIN,NET_RAW",
                         "--device=/dev/net/tun", image, "sleep", "infinity")  # fmt: skip
            self.addresses[name] = machines.run("podman", "inspect", "-f", "{{.NetworkSettings.IPAddress}}", name)
        done = box(self.ward, "apt-get", "install", "-qq", "-y", "--no-install-recommends", "openvpn", "tcpdump", timeout=120)
        assert done.returncode == 0, done
        box(self.inside, "sh", "-c", f"ip addr add {INSIDE}/32 dev lo; ip route add 10.99.0.0/24 via {self.target.address}")
        subprocess.run(["podman", "exec", "-d", self.inside, "python3", "-c", WEB], check=True)
        self.host.check_output(f"ip route replace 10.20.30.0/24 via {self.addresses[self.inside]}")
        self.host.check_output(f"cat >/root/issue.py <<'EOF'\n{ISSUE}\nEOF")
        self.enrol("alice", "bob", "carol", "dave")

    def enrol(self, *names: str, days: int = 30, login: str = "") -> None:
        """Make keys on the client machine, have them signed, and write configurations."""
        made = {}
        for name in names:
            made[name] = box(self.ward, "sh", "-c", f"""
                openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-384 -out /root/{name}.key 2>/dev/null
                openssl req -new -key /root/{name}.key -subj /CN={name}""").stdout  # fmt: skip
        signed = json.loads(self.give(json.dumps(made), f"python3 /root/issue.py {days}"))
        directory = "/etc/openvpn/server/bulwark"
        for name in names:
            known = name if self.host.file(f"{directory}/tls-crypt-v2/{name}.key").exists else "alice"
            self.put(f"{name}.crt", signed[name])
            self.put(f"{name}.tc2", self.host.check_output(f"cat {directory}/tls-crypt-v2/{known}.key") + "\n")
            self.put(f"{name}.login", f"{login or name}\npush\n")
            self.put(f"{name}.conf", CONFIG.format(gateway=self.target.address, name=name))
        self.put("ca.crt", self.host.check_output(f"cat {directory}/ca.crt") + "\n")

    def put(self, name: str, text: str) -> None:
        """Write a file on the client machine."""
        assert box(self.ward, "sh", "-c", f"umask 077; cat >/root/{name}", given=text).returncode == 0

    def give(self, text: str, command: str) -> str:
        """Run a command on the gateway with something on its standard input."""
        self.host.check_output("cat >/root/given <<'EOF'\n%s\nEOF" % text)
        return self.host.check_output(f"{command} </root/given")

    def up(self, name: str, *options: str, device: str = "vpn0", seconds: int = 40) -> str:
        """Start a client and return its log once it is up or has ended."""
        self.down(device)
        words = " ".join(options)
        script = f"""rm -f /root/{device}.log
            openvpn --config /root/{name}.conf --dev {device} --log /root/{device}.log \\
                --writepid /root/{device}.pid --daemon {words}
            for i in $(seq {seconds * 5}); do
                grep -q '{UP}' /root/{device}.log && break
                kill -0 $(cat /root/{device}.pid 2>/dev/null || echo 999999) 2>/dev/null || [ $i -lt 5 ] || break
                sleep 0.2
            done; cat /root/{device}.log"""
        return box(self.ward, "sh", "-c", script, timeout=seconds + 60).stdout

    def down(self, device: str = "vpn0") -> None:
        """End a client, if it still runs."""
        box(self.ward, "sh", "-c", f"""p=$(cat /root/{device}.pid 2>/dev/null) && kill $p 2>/dev/null &&
            for i in $(seq 30); do kill -0 $p 2>/dev/null || break; sleep 0.1; done; rm -f /root/{device}.pid""")  # fmt: skip

    def runs(self, device: str = "vpn0") -> bool:
        """Say whether a client still runs."""
        return box(self.ward, "sh", "-c", f"kill -0 $(cat /root/{device}.pid)").returncode == 0

    def reaches(self) -> bool:
        """Say whether the server inside answers through the tunnel."""
        script = f"import socket; s = socket.create_connection(('{INSIDE}', 8080), 5); s.sendall(b'there?'); print(s.recv(9))"
        return "there?" in box(self.ward, "python3", "-c", script).stdout

    def duo(self, answers: dict, **more: object) -> None:
        """Set what Duo answers."""
        self.give(json.dumps({"answers": answers, "hang_seconds": 2, **more}), "tee /opt/duo_service/state.json")

    def asked(self, user: str = "") -> int:
        """Return how often Duo was asked for a factor (of one user)."""
        text = self.host.run("cat /opt/duo_service/requests.jsonl").stdout
        lines = [json.loads(line) for line in text.splitlines() if line]
        return sum(str(line["call"]).split("/")[-1].split(".")[0] == "auth" and user in json.dumps(line) for line in lines)

    def log(self, since: str) -> list[dict]:
        """Return the watcher's lines since a cursor, each as a dict."""
        text = self.host.check_output(f"journalctl -q -o cat -t bulwark-vpn -t openvpn --after-cursor='{since}'")
        return [dict(word.split("=", 1) for word in line.split() if "=" in word)
                for line in text.splitlines() if line.startswith("event=")]  # fmt: skip

    def cursor(self) -> str:
        """Return a mark in the journal."""
        return self.host.check_output(
            "journalctl -q -n 1 -o json | python3 -c 'import json,sys; print(json.load(sys.stdin)[\"__CURSOR\"])'"
        )

    def wait_event(self, since: str, seconds: float, **wanted: str) -> dict:
        """Wait for a line of the watcher and return it."""
        end = time.monotonic() + seconds
        while True:
            for line in self.log(since):
                if all(line.get(key) == value for key, value in wanted.items()):
                    return line
            assert time.monotonic() < end, f"no {wanted} within {seconds} s, but {self.log(since)}"
            time.sleep(0.5)

    def state(self) -> dict:
        """Return what the watcher saw last."""
        return json.loads(self.host.check_output("cat /run/bulwark-vpn/state.json"))

    def connected(self) -> list[str]:
        """Return who has a tunnel."""
        return sorted(session["user"] for session in self.state()["sessions"] if not session["ending"])


@pytest.fixture(scope="module")
def everything(host, target):
    """The lab, for all tests of this file."""
    lab = Lab(host, target)
    try:
        lab.start()
        yield lab
    finally:
        for name in (lab.ward, lab.inside):
            machines.stop(name)
        host.run("ip route del 10.20.30.0/24; rm -f /root/issue.py /root/given")


@pytest.fixture
def lab(everything):
    """The lab with Duo saying yes and nobody connected."""
    everything.duo({"*": "allow"})
    yield everything
    for device in ("vpn0", "vpn1"):
        everything.down(device)


# --- who gets in ------------------------------------------------------------------------------------------------------


def test_both_factors_open_the_tunnel(lab):
    before, asked = lab.cursor(), lab.asked("alice")
    assert not lab.reaches(), "the server inside must not be reachable without a tunnel"
    log = lab.up("alice")
    assert UP in log, log
    assert lab.asked("alice") == asked + 1, "Duo was asked once"
    assert lab.reaches()
    assert "10.99.0.10/24" in box(lab.ward, "ip", "-o", "addr", "show", "vpn0").stdout, "her own address"
    lab.wait_event(before, 10, event="connect", user="alice", address="10.99.0.10")
    time.sleep(2)
    [session] = lab.state()["sessions"]
    assert session["cipher"] == "AES-256-GCM" and session["channel"] == "TLSv1.3 TLS_AES_256_GCM_SHA384", session


def test_only_declared_networks_are_routed(lab):
    before = box(lab.ward, "ip", "-o", "route", "show", "default").stdout
    assert UP in lab.up("alice")
    routes = box(lab.ward, "ip", "-o", "route", "show", "dev", "vpn0").stdout.splitlines()
    assert sorted(line.split()[0] for line in routes) == ["10.20.30.0/24", "10.99.0.0/24"]
    assert box(lab.ward, "ip", "-o", "route", "show", "default").stdout == before


@pytest.mark.parametrize(
    "duo",
    [
        {"answers": {"alice": "deny"}},
        {"answers": {"alice": "locked"}},
        {"answers": {"alice": "timeout"}},
        {"answers": {"alice": "badsignature"}},
        {"answers": {"alice": "500"}},
        {"answers": {"*": "allow"}, "certificate": "other-authority"},
        {"answers": {"*": "allow"}, "service": "closed"},
    ],
    ids=["deny", "locked", "timeout", "bad signature", "error", "other authority", "unreachable"],
)
def test_without_duo_there_is_no_tunnel(lab, duo):
    lab.duo(**duo)
    log = lab.up("alice")
    assert UP not in log and "AUTH_FAILED" in log, log


def test_without_its_configuration_duo_lets_nobody_in(lab):
    lab.host.check_output("mv /etc/bulwark/pam_duo.conf /root/pam_duo.conf")
    try:
        log = lab.up("alice")
        assert UP not in log and "AUTH_FAILED" in log, log
    finally:
        lab.host.check_output("mv /root/pam_duo.conf /etc/bulwark/pam_duo.conf")
    assert UP in lab.up("alice")


def test_somebody_elses_factor_does_not_help(lab):
    before, asked = lab.cursor(), lab.asked("bob")
    lab.put("bob.login2", "bob\npush\n")
    log = lab.up("alice", "--auth-user-pass", "/root/bob.login2")
    assert UP not in log and "AUTH_FAILED" in log, log
    assert lab.asked("bob") == asked + 1, "it is not Duo that refused"
    lab.wait_event(before, 10, event="refused", user="alice", reason="not_the_same_person")
    assert UP in lab.up("bob"), "the certificate that belongs to the factor"


def test_a_stranger_stays_out(lab):
    asked = lab.asked()
    box(
        lab.ward,
        "sh",
        "-c",
        """cd /root
        openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-384 -nodes -keyout rogue.key -out rogue.crt -days 2 \\
            -subj /CN=alice 2>/dev/null
        openvpn --genkey tls-crypt-v2-server rogue.srv
        openvpn --tls-crypt-v2 rogue.srv --genkey tls-crypt-v2-client rogue.tc2""",
    )
    quick = ("--hand-window", "5", "--connect-timeout", "5")
    for options in (("--cert", "/root/rogue.crt", "--key", "/root/rogue.key"), ("--tls-crypt-v2", "/root/rogue.tc2")):
        log = lab.up("alice", *options, *quick, seconds=12)
        assert UP not in log, log
    assert lab.asked() == asked, "nobody's telephone rang"
    assert UP in lab.up("alice")


@pytest.mark.parametrize(
    "options",
    [
        ("--tls-version-min", "1.2", "--tls-version-max", "1.2"),
        ("--data-ciphers", "AES-128-GCM"),
        ("--data-ciphers", "CHACHA20-POLY1305"),
    ],
    ids=["TLS 1.2", "AES-128", "ChaCha20"],
)
def test_weaker_clients_are_refused(lab, options):
    log = lab.up("alice", *options, "--hand-window", "6", "--connect-timeout", "6", seconds=15)
    assert UP not in log, log


def test_an_undeclared_person_is_refused(lab):
    lab.host.check_output("useradd --system --no-create-home --shell /usr/sbin/nologin dave")
    try:
        log = lab.up("dave")
        assert UP not in log and "AUTH_FAILED" in log, log
    finally:
        lab.host.check_output("userdel dave")


def test_an_expired_certificate_opens_nothing(lab):
    lab.enrol("bob", days=0)
    try:
        log = lab.up("bob", "--hand-window", "5", "--connect-timeout", "5", seconds=12)
        assert UP not in log, log
    finally:
        lab.enrol("bob")
    assert UP in lab.up("bob")


# --- how long they stay -----------------------------------------------------------------------------------------------

TRICKLE = """
import socket, sys, time
tcp = socket.create_connection(("10.20.30.5", 8080), 5)   # as keepalives of SSH would
udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
sent = 0
tcp.sendall(b"x" * 3000)                                   # the last that a person did
print(time.time(), flush=True)
time.sleep(1.2)
udp.sendto(b"x" * 800, ("10.20.30.5", 9))                  # left over: below a burst, as are all that follow
try:
    while True:
        time.sleep(1)
        tcp.sendall(b"x" * 60)
        udp.sendto(b"x" * 200, ("10.20.30.5", 9))
        sent += 260
except OSError:
    pass
"""
BUSY = """
import socket, time
udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
udp.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"vpn1")
while True:
    udp.sendto(b"x" * 1300, ("10.99.0.1", 9))
    time.sleep(3)
"""


@pytest.fixture(scope="module")
def race(everything):
    """Two tunnels side by side: alice's with pings, keepalives and a trickle, bob's in use every few seconds."""
    lab = everything
    lab.duo({"*": "allow"})
    before, asked = lab.cursor(), lab.asked("alice")
    assert UP in lab.up("alice") and UP in lab.up("bob", "--route-nopull", device="vpn1")
    busy = subprocess.Popen(["podman", "exec", lab.ward, "python3", "-c", BUSY])
    ping = subprocess.Popen(["podman", "exec", lab.ward, "ping6", "-q", "-i", "0.5", "ff02::1%vpn0"], stdout=subprocess.DEVNULL,
                            stderr=subprocess.DEVNULL)  # fmt: skip
    trickle = subprocess.Popen(["podman", "exec", lab.ward, "python3", "-c", TRICKLE], stdout=subprocess.PIPE, text=True)
    try:
        last = float(trickle.stdout.readline())
        end = lab.wait_event(before, 60, event="end", user="alice")
        gone = lab.wait_event(before, 20, event="disconnect", user="alice", reason="idle")
        took = time.time() - last
        time.sleep(4)
        yield {"end": end, "gone": gone, "seconds": took, "alice": lab.runs("vpn0"), "bob": lab.runs("vpn1"),
               "connected": lab.connected(), "asked": lab.asked("alice") - asked}  # fmt: skip
    finally:
        box(lab.ward, "pkill", "-f", "python3 -c")
        box(lab.ward, "pkill", "ping")
        for process in (busy, ping, trickle):
            process.kill()
        for device in ("vpn0", "vpn1"):
            lab.down(device)


def test_an_idle_tunnel_is_ended_although_keepalives_and_a_trickle_flow(race):
    assert race["end"]["reason"] == "idle" and race["gone"]["reason"] == "idle"
    assert 9 < race["seconds"] <= 30, "neither early nor late"
    assert int(race["gone"]["received"]) > 5000, "far more than a burst has come in all the while"
    assert not race["alice"], "her client was told to stop"
    assert race["asked"] == 1, "and did not come back to make her telephone ring"


def test_a_tunnel_in_use_stays(race):
    assert race["bob"] and race["connected"] == ["bob"]


def test_the_token_of_an_ended_session_opens_nothing(lab):
    assert UP in lab.up("alice", "--auth-retry", "nointeract")
    before, asked = lab.cursor(), lab.asked("alice")
    box(lab.ward, "sh", "-c", "kill -USR1 $(cat /root/vpn0.pid)")  # as a client does that lost its connection: it kept the token
    lab.wait_event(before, 30, event="refused", user="alice", reason="no_fresh_factor")
    again = [line for line in lab.log(before) if line["event"] == "connect"]
    assert len(again) <= lab.asked("alice") - asked, "no tunnel without Duo"


def test_a_session_ends_after_its_longest_time(lab):
    unit = "/etc/systemd/system/bulwark-vpn-idle.service"
    lab.host.check_output(
        f"cp {unit} /root/unit && sed -i 's/--session-max=[0-9]*/--session-max=3/' {unit} && systemctl daemon-reload"
    )
    try:
        lab.host.check_output("systemctl restart bulwark-vpn-idle.service && sleep 1 && systemctl start openvpn-server@bulwark")
        before = lab.cursor()
        assert UP in lab.up("alice")
        lab.wait_event(before, 30, event="disconnect", user="alice", reason="session_limit")
        assert not lab.runs()
    finally:
        lab.host.check_output(
            f"cat /root/unit >{unit} && rm /root/unit && touch -d '1 hour ago' {unit} && systemctl daemon-reload"
        )
        lab.host.check_output("systemctl restart bulwark-vpn-idle.service && sleep 1 && systemctl start openvpn-server@bulwark")


def test_a_second_session_replaces_the_first(lab):
    before = lab.cursor()
    assert UP in lab.up("alice") and UP in lab.up("alice", "--route-nopull", device="vpn1")
    lab.wait_event(before, 10, event="disconnect", user="alice", reason="replaced")
    assert lab.connected() == ["alice"]


def test_who_is_removed_is_cut_off(lab):
    path = "/etc/openvpn/server/bulwark/users/bob"
    before = lab.cursor()
    assert UP in lab.up("bob")
    lab.host.check_output(f"mv {path} /root/bob")
    try:
        lab.wait_event(before, 20, event="disconnect", user="bob", reason="removed")
        assert UP not in lab.up("bob", seconds=15)
    finally:
        lab.host.check_output(f"mv /root/bob {path}")
    assert UP in lab.up("bob")


def test_who_is_revoked_is_cut_off_and_stays_out(lab):
    before = lab.cursor()
    assert UP in lab.up("carol")
    lab.host.check_output(f"""cat >/root/revoke.py <<'EOF'
{ISSUE.rsplit("print", 1)[0].replace("import importlib", "import importlib.machinery, time, importlib", 1)}
authority.revoke({{"carol"}}, False)
EOF
python3 /root/revoke.py && systemctl start bulwark-vpn-crl.service""")
    lab.wait_event(before, 20, event="disconnect", user="carol", reason="revoked")
    asked = lab.asked("carol")
    assert UP not in lab.up("carol", "--hand-window", "5", "--connect-timeout", "5", seconds=12)
    assert lab.asked("carol") == asked, "her telephone stays quiet"
    lab.enrol("carol")
    assert UP in lab.up("carol"), "a new certificate is another matter"


def test_one_pending_factor_holds_up_nobody_else(lab):
    assert UP in lab.up("alice")
    lab.duo({"alice": "allow", "bob": "timeout"}, hang_seconds=5)
    asked = lab.asked("bob")
    bob = subprocess.Popen(
        ["podman", "exec", lab.ward, "openvpn", "--config", "/root/bob.conf", "--dev", "vpn1", "--log", "/root/b"]
    )
    try:
        pings = box(lab.ward, "python3", "-c", f"""
import socket, time
worst, end = 0, time.time() + 7
while time.time() < end:
    start = time.time()
    with socket.create_connection(("{INSIDE}", 8080), 10) as s: s.sendall(b"x"); s.recv(1)
    worst = max(worst, time.time() - start); time.sleep(0.1)
print(worst)""")  # fmt: skip
        assert lab.asked("bob") == asked + 1, "his telephone rang meanwhile"
        assert float(pings.stdout) < 2, pings
    finally:
        box(lab.ward, "pkill", "-f", "bob.conf")
        bob.wait(20)


# --- what others can do -----------------------------------------------------------------------------------------------


def test_nothing_of_a_marker_is_seen_outside(lab):
    assert UP in lab.up("alice")
    marker = "patient-4711-marker"
    script = f"""
        tcpdump -i eth0 -U -w /tmp/outside 2>/dev/null & tcpdump -i vpn0 -U -w /tmp/tunnel 2>/dev/null & sleep 2
        python3 -c "import socket; s = socket.create_connection(('{INSIDE}', 8080)); s.sendall(b'{marker}' * 20); s.recv(9)"
        sleep 1; pkill tcpdump; sleep 0.5
        grep -c -a {marker} /tmp/tunnel; grep -c -a {marker} /tmp/outside
        tcpdump -n -r /tmp/outside udp port 1194 2>/dev/null | wc -l"""
    lines = box(lab.ward, "sh", "-c", script).stdout.split()
    tunnel, outside, packets = (int(number) for number in lines[-3:])
    assert tunnel > 0, "it did go through the tunnel"
    assert packets > 5, "and that was captured"
    assert outside == 0


def test_nobody_else_commands_the_vpn(lab):
    script = "import socket; s = socket.socket(socket.AF_UNIX); s.connect('/run/bulwark-vpn/management.sock')"
    for user in ("nobody", "bulwark-vpn"):
        done = lab.host.run(f'setpriv --reuid={user} --regid=nogroup --clear-groups python3 -c "{script}"')
        assert done.rc != 0 and "PermissionError" in done.stderr, done
    assert "openvpn" not in lab.host.check_output("ss -Hltnp"), "no TCP port leads to it"


def test_nobody_else_reads_keys(lab):
    for path in ("private.key", "tls-crypt-v2.key", "tls-crypt-v2/alice.key"):
        done = lab.host.run(
            f"setpriv --reuid=bulwark-vpn --regid=bulwark-vpn --clear-groups cat /etc/openvpn/server/bulwark/{path}"
        )
        assert done.rc != 0 and "Permission denied" in done.stderr, done
    done = lab.host.run("setpriv --reuid=nobody --regid=nogroup --clear-groups ls /var/lib/bulwark/vpn-authority")
    assert "Permission denied" in done.stderr


def test_every_session_leaves_its_lines_in_the_journal(lab):
    before = lab.cursor()
    assert UP in lab.up("alice") and lab.reaches()
    lab.down()
    first = lab.wait_event(before, 10, event="connect", user="alice")
    last = lab.wait_event(before, 15, event="disconnect", user="alice")
    assert {"user", "real", "address", "serial"} <= set(first)
    assert first["real"].startswith(lab.addresses[lab.ward] + ":") and last["address"] == "10.99.0.10"
    assert last["reason"] == "left" and int(last["received"]) > 500 and int(last["sent"]) > 500 and int(last["seconds"]) >= 0


@pytest.mark.parametrize("signal", ["KILL", "STOP"], ids=["killed", "frozen"])
def test_without_its_watcher_the_vpn_stops_and_comes_back(lab, signal):
    assert UP in lab.up("alice")
    before = lab.host.check_output("systemctl show -p MainPID --value openvpn-server@bulwark")
    lab.host.check_output(f"systemctl kill -s {signal} bulwark-vpn-idle.service")
    end = time.monotonic() + 25
    while lab.host.run(f"kill -0 {before}").rc == 0:
        assert time.monotonic() < end, "the VPN goes on although nobody watches"
        time.sleep(0.3)
    while lab.host.run("systemctl is-active openvpn-server@bulwark bulwark-vpn-idle").stdout.split() != ["active"] * 2:
        assert time.monotonic() < end + 10, "the VPN did not come back"
        time.sleep(0.3)
    assert UP in lab.up("bob")


def test_the_revocation_list_is_renewed_in_time(lab):
    shown = "openssl crl -in /etc/openvpn/server/bulwark/crl.pem -noout -nextupdate"
    lab.host.check_output(f"""cat >/root/short.py <<'EOF'
{ISSUE.rsplit("print", 1)[0]}
authority.make_crl(1); pki.write("/etc/openvpn/server/bulwark/crl.pem", open(authority.path("crl.pem"), "rb").read(), 0o644)
EOF
python3 /root/short.py""")
    short = lab.host.check_output(shown)
    lab.host.check_output("systemctl start bulwark-vpn-crl.service")
    assert lab.host.check_output(shown) != short
    assert "event=crl_renewed" in lab.host.check_output("journalctl -q -o cat -t bulwark-vpn -n 50")
    again = lab.host.check_output(shown)
    lab.host.check_output("systemctl start bulwark-vpn-crl.service")
    assert lab.host.check_output(shown) == again, "a list that lasts is left alone"
    assert UP in lab.up("alice")


# --- the role ---------------------------------------------------------------------------------------------------------


def seen(target) -> dict:
    """Return what the collector sees on the gateway."""
    state = os.environ["MOLECULE_EPHEMERAL_DIRECTORY"]
    environment = {**os.environ, "ANSIBLE_CONFIG": f"{state}/ansible.cfg", "ANSIBLE_CALLBACK_RESULT_FORMAT": "json"}
    done = subprocess.run(
        [Path(sys.executable).with_name("ansible"), "-i", f"{state}/inventory", target.name, "-o",
         "-m", "bulwark.hardening.posture", "-a", '{"collectors": ["vpn_gateway"]}'],
        capture_output=True, text=True, check=False, cwd=ROOT, env=environment,
    )  # fmt: skip
    # What may follow is the end of a colour.
    return json.JSONDecoder().raw_decode(done.stdout[done.stdout.index("{") :])[0]["posture"]["vpn_gateway"]


@contextlib.contextmanager
def another_way(host):
    """Have a program that lets people in from afar."""
    host.check_output(
        "cp /usr/bin/sleep /usr/local/sbin/anydesk && systemd-run -q --unit=another /usr/local/sbin/anydesk infinity"
    )
    try:
        yield
    finally:
        host.check_output("systemctl stop another; rm /usr/local/sbin/anydesk")


def vpn_user(target, directory, **variables) -> str:
    """Run the playbook by which a person gets, renews or loses their access, and return all that it said."""
    state = os.environ["MOLECULE_EPHEMERAL_DIRECTORY"]
    extra = {
        **yaml.safe_load((ROOT / "molecule/vpn_gateway/vars.yml").read_text()), "vpn_gateway_address": target.address,
        "vpn_user_gateway": target.name, "vpn_user_name": "carol", "vpn_user_directory": str(directory), **variables,
    }  # fmt: skip
    done = subprocess.run(
        [Path(sys.executable).with_name("ansible-playbook"), "-vv", "-i", f"{state}/inventory", "-e", json.dumps(extra),
         ROOT / "playbooks/vpn_user.yml"],
        capture_output=True, text=True, check=False, cwd=ROOT, env={**os.environ, "ANSIBLE_CONFIG": f"{state}/ansible.cfg"},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:]
    return done.stdout + done.stderr


def test_a_person_gets_a_profile_and_loses_their_access(lab, target, tmp_path):
    passphrase = "correct horse battery staple"
    said = vpn_user(target, tmp_path, vpn_user_action="add", vpn_user_passphrase=passphrase)
    profile = tmp_path / "carol.ovpn"
    text = profile.read_text()
    assert profile.stat().st_mode & 0o777 == 0o600
    assert "BEGIN ENCRYPTED PRIVATE KEY" in text and "BEGIN PRIVATE KEY" not in text and "BEGIN EC" not in text
    assert "PRIVATE KEY" not in said and "tls-crypt-v2 client key" not in said
    lab.put("carol.conf", text)
    lab.put("carol.pass", passphrase + "\n")
    words = ("--askpass", "/root/carol.pass", "--auth-user-pass", "/root/carol.login")
    assert UP in lab.up("carol", *words, device="vpn1")
    before = lab.cursor()
    busy = subprocess.Popen(["podman", "exec", lab.ward, "python3", "-c", BUSY], stderr=subprocess.DEVNULL)
    try:
        vpn_user(target, tmp_path, vpn_user_action="revoke", vpn_user_passphrase="")
        lab.wait_event(before, 20, event="disconnect", user="carol", reason="revoked")
    finally:
        box(lab.ward, "pkill", "-f", "python3 -c")
        busy.wait(20)
    assert UP not in lab.up("carol", *words, "--hand-window", "5", "--connect-timeout", "5", seconds=12)


def test_another_way_in_is_noticed(host, target):
    assert seen(target)["other_ways"] == []
    with another_way(host):
        assert seen(target)["other_ways"] == ["program anydesk"]


def test_a_laxer_limit_is_refused(target):
    with pytest.raises(pytest.fail.Exception, match=r"at most 1800 seconds[\s\S]*WTH-7\.2\.1-12c"):
        target.reapply(vpn_gateway_idle_seconds=1801)


def test_networks_that_would_shut_us_out_are_refused(target):
    peers = [peer["address"] for peer in seen(target)["surroundings"]["peers"]]
    assert peers, "the collector came over SSH itself"
    with pytest.raises(pytest.fail.Exception, match=r"WTH-7\.2\.1-12[\s\S]*this gateway is\s+being\s+managed"):
        target.reapply(vpn_gateway_network=f"{peers[0].rsplit('.', 1)[0]}.0/24")


def test_the_role_can_be_taken_back(lab, target):
    assert UP in lab.up("alice")
    target.reapply(vpn_gateway_state="absent")
    assert not lab.host.file("/etc/pam.d/openvpn").exists and not lab.host.file("/etc/openvpn/server/bulwark").exists
    assert "client-to-client" in lab.host.file("/etc/openvpn/server/bulwark.conf").content_string, "the site's own is back"
    assert (
        lab.host.run("systemctl is-active bulwark-vpn-idle openvpn-server@bulwark bulwark-vpn-crl.timer").stdout.split()
        == ["inactive"] * 3
    )
    assert "bulwark_vpn" not in lab.host.check_output("nft list tables") and lab.host.run("id alice").rc != 0
    target.reapply()
    lab.enrol("alice")
    assert UP in lab.up("alice")
