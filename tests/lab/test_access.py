# SPDX-License-Identifier: GPL-3.0-or-later
"""The only way in, seen from outside: the VPN with certificate and Duo, then SSH with key and Duo. Everything else is shut.

The lab is hardened once (fixture story). Beside each refusal stands a proof that the same attempt succeeds where it may.
"""

from __future__ import annotations

import concurrent.futures
import json
import re
import secrets
import time
from collections.abc import Iterator

import lab
import pytest
import way_in

MARKER = "a-name-and-a-diagnosis"  # what must not be readable on the outside network
SERVER, OTHER = lab.SERVERS
GATEWAY = lab.HOSTS[lab.GATEWAY]
DECLARED, UNDECLARED = 8443, 8080  # ports on which programs listen in these tests; firewall_services of the servers has the first
WINDOW = 60  # seconds of the guard, the fewest it takes
NOBODY = ["198.18.77.250/32"]  # a management address at which nobody is
UNIT = "openvpn-client@bulwark.service"


@pytest.fixture(scope="module")
def listeners(story) -> Iterator[None]:
    """On every server a program listens on a declared port, another on one that nobody declared."""
    for server in lab.SERVERS:
        for port in (DECLARED, UNDECLARED):
            words = ("python3", "-m", "http.server", "--bind", "::", "--directory", "/mnt", str(port))
            lab.machines.run("podman", "exec", "-d", server, *words)
    doors = [(address, port) for address in ("127.0.0.1", "::1") for port in (DECLARED, UNDECLARED)]
    for server in lab.SERVERS:
        assert way_in.eventually(lambda name=server: not set(way_in.knock(name, doors).values()) & way_in.SHUT)
    yield
    for server in lab.SERVERS:
        way_in.on(server, "pkill --full 'http.server --bind'")


@pytest.fixture
def tunnel(story) -> Iterator[None]:
    """The member's tunnel is up, and closed afterwards."""
    lab.duo("allow")
    assert way_in.tunnel() == "up"
    yield
    lab.duo("allow")
    way_in.close_tunnel()


# --- what an outsider sees ---------------------------------------------------------------------------------------------


def sshd_ports(server: str) -> set[int]:
    """Return the ports sshd listens on, by its configuration and in fact."""
    asking = """sshd -T | sed -n 's/^port //p'; ss -Hltnp | grep '"sshd"' | awk '{print $4}' | sed 's/.*://'"""
    return {int(port) for port in way_in.on(server, asking).stdout.split()}


def test_ssh_is_shut_to_outsiders(story):
    """Every address of every server, IPv4 and IPv6, every port sshd listens on; before, each of them answered."""
    ports = {port for server in lab.SERVERS for port in sshd_ports(server)}
    assert 22 in ports
    met = way_in.knock(lab.OUTSIDER, way_in.server_doors(ports, lab.NETWORKS))
    assert len(met) == 8 * len(ports)
    assert set(met.values()) <= way_in.SHUT, met
    assert set(story.doors.values()) == {"SSH-"}, story.doors


def test_who_routes_to_the_inside_gets_no_further(story):
    """An outsider who makes the gateway, or the controller, the next hop to the inside network meets the same."""
    for version in (4, 6):
        inside = f"{lab.NETWORKS[lab.INSIDE][version == 6]}{'/64' if version == 6 else '0/24'}"
        doors = [(server.address(lab.INSIDE, version), 22) for server in lab.SERVERS.values()]
        for hop in (GATEWAY.address(lab.OUTSIDE, version), f"{lab.NETWORKS[lab.OUTSIDE][version == 6]}1"):
            assert way_in.on(lab.OUTSIDER, f"ip -{version} route replace {inside} via {hop}").returncode == 0
            met = way_in.knock(lab.OUTSIDER, doors)
            way_in.on(lab.OUTSIDER, f"ip -{version} route del {inside}")
            assert set(met.values()) <= way_in.SHUT, (hop, met)


def test_full_scan_finds_only_what_is_declared(story, listeners):
    """All 65535 TCP ports of servers and gateway from outside: a declared port is found, a program nobody declared is not."""
    servers = [address for address, _port in way_in.server_doors()]
    gateway = [GATEWAY.address(lab.OUTSIDE, version) for version in (4, 6)]
    found = way_in.scan(lab.OUTSIDER, servers + gateway)
    assert found == {**{address: {DECLARED} for address in servers}, **{address: set() for address in gateway}}


def test_from_the_wireless_network_there_is_even_less(story, listeners):
    """Not even what is declared for everybody, unless it is marked for wireless networks; from beside it, it is reached."""
    source = f"{lab.NETWORKS[lab.OUTSIDE][0]}130"
    doors = [door for door in way_in.server_doors((22, DECLARED)) if ":" not in door[0]]
    assert way_in.on(lab.OUTSIDER, f"ip addr replace {source}/24 dev outside0").returncode == 0
    met = way_in.knock(lab.OUTSIDER, doors, source)
    way_in.on(lab.OUTSIDER, f"ip addr del {source}/24 dev outside0")
    assert set(met.values()) <= way_in.SHUT, met
    met = way_in.knock(lab.OUTSIDER, doors)
    assert {port for (_address, port), said in met.items() if said not in way_in.SHUT} == {DECLARED}, met


# --- the way in ----------------------------------------------------------------------------------------------------------


def result(request: dict) -> str:
    """Return what came of a request to Duo: its result, an HTTP status, or what kind of end it had before it was one."""
    answer = request.get("answer") or {}
    return (answer.get("response") or {}).get("result") or str(request.get("status") or request["call"])


@pytest.mark.parametrize(
    ("answer", "more", "told"),
    [
        ("deny", {}, "deny"),
        ("timeout", {"hang_seconds": 2}, "deny"),
        ("badsignature", {}, "401"),
        ("500", {}, "500"),
        ("allow", {"service": "closed"}, "closed"),
        ("allow", {"certificate": "other-authority"}, "tls-error"),
        ("allow", {"certificate": "wrong-name"}, ""),  # turns away before it says a word
    ],
)
def test_no_tunnel_without_duos_yes(story, answer, more, told):
    """The certificate is good; Duo was asked, and what it said, or could not say, was no yes."""
    lab.duo(answer, **more)
    with way_in.asked() as requests:
        ended = way_in.tunnel(90)
    lab.duo("allow")
    links = way_in.on(lab.MEMBER, "ip -brief link; ip route").stdout
    way_in.close_tunnel()
    assert ended == "AUTH_FAILED"
    assert "bulwark" not in links and "198.18.77.0" not in links
    assert {result(request) for request in requests} >= ({told} if told else set()), requests
    assert "allow" not in {result(request) for request in requests}


def test_unreachable_duo_lets_nobody_in(story):
    """Its machine is frozen: connections hang. The tunnel waits for an answer and does not come."""
    lab.machines.run("podman", "pause", lab.DUO)
    try:
        ended = way_in.tunnel(20)
        routes = way_in.on(lab.MEMBER, "ip route").stdout
    finally:
        lab.machines.run("podman", "unpause", lab.DUO)
        way_in.close_tunnel()
    assert ended != "up"
    assert "198.18.77.0" not in routes


def test_with_both_factors_the_servers_are_reached(story, tunnel):
    """Certificate and Duo: a tunnel and a route; key and Duo: SSH to both servers over IPv4 and IPv6, by the tunnel's address."""
    for server in lab.SERVERS.values():
        for version, source in ((4, "10.99.0.10"), (6, "fd00:b1:99::a")):
            with way_in.asked() as requests:
                done = way_in.ssh(server.address(lab.INSIDE, version), "id -un; echo $SSH_CONNECTION")
            assert done.returncode == 0, done.stderr
            assert done.stdout.split()[:2] == [lab.PERSON, source]
            assert [result(r) for r in requests if r["call"] == "auth"] == ["allow"]


def test_ssh_through_the_tunnel_asks_for_both_again(story, tunnel):
    """With the tunnel up, Duo's no keeps the person out, and so does a key alone."""
    address = lab.SERVERS[SERVER].address()
    lab.duo("deny")
    with way_in.asked() as requests:
        done = way_in.ssh(address)
    assert done.returncode == 255 and "Permission denied (keyboard-interactive)" in done.stderr, done
    assert "deny" in {result(request) for request in requests}
    lab.duo("allow")
    only = way_in.SSH + " -o PreferredAuthentications=publickey"
    done = way_in.on(lab.MEMBER, f"cd && {only} {lab.PERSON}@{address} id </dev/null", user=lab.PERSON)
    assert done.returncode == 255 and "Permission denied (keyboard-interactive)" in done.stderr, done
    assert way_in.ssh(address).stdout == f"{lab.PERSON}\n"


@pytest.mark.parametrize("server", lab.SERVERS)
def test_sudo_asks_for_duo(story, tunnel, server):
    """The person's password and Duo's yes make root; the password and a no do not."""
    password = secrets.token_hex(12)
    assert way_in.on(server, "chpasswd", data=f"{lab.PERSON}:{password}\n").returncode == 0
    with way_in.asked() as requests:
        done = way_in.ssh(lab.SERVERS[server].address(), "sudo -k -S -p '' id -u", data=f"{password}\n")
    assert done.returncode == 0 and "0" in done.stdout.splitlines(), done
    assert [result(request) for request in requests].count("allow") == 2  # for SSH, for sudo
    lab.duo("deny")
    done = way_in.on(server, "sudo -k -S -p '' id -u", user=lab.PERSON, data=f"{password}\n")
    assert done.returncode == 1
    assert "0" not in done.stdout.split()


def test_the_gateway_passes_on_nothing_but_what_is_declared(story, tunnel, listeners):
    """Through the tunnel a server answers on SSH's port; the program on another port, which is there, is not reached."""
    inside = lab.SERVERS[SERVER].address()
    met = way_in.knock(lab.MEMBER, [(inside, 22), (inside, UNDECLARED), (inside, DECLARED)])
    assert met[inside, 22] == "SSH-"
    assert {met[inside, UNDECLARED], met[inside, DECLARED]} <= way_in.SHUT


def test_what_is_sent_is_strongly_encrypted(story, tunnel):
    """Read from the live tunnel at both ends."""
    for machine, unit in ((lab.MEMBER, UNIT), (lab.GATEWAY, "openvpn-server@bulwark.service")):
        asking = f"journalctl -q -o cat -u {unit} -n 100"

        def agreed(machine=machine, asking=asking) -> tuple[list[str], list[str]]:
            """Return the last ciphers of the data and the control channel that a machine's log names."""
            said = way_in.on(machine, asking).stdout
            data = re.findall(r"Data Channel: cipher '([^']+)'", said)
            return data[-1:], re.findall(r"Control Channel: (TLSv[\d.]+), cipher \S+ (\S+),", said)[-1:]

        assert way_in.eventually(lambda: all(agreed()))
        assert agreed() == (["AES-256-GCM"], [("TLSv1.3", "TLS_AES_256_GCM_SHA384")])


def test_a_marker_is_never_readable_outside(story, tunnel, listeners):
    """Sent through the tunnel it is readable in there, and not on the outside network; sent past the tunnel, it is."""
    way_in.have(lab.MEMBER, "tcpdump")
    # As plain text in the first words of a connection; nothing but the tunnel encrypts it.
    speak = "import socket, sys; c = socket.create_connection((sys.argv[1], int(sys.argv[2])), 8); "
    speak += f"c.sendall(b'SSH-2.0-{MARKER}\\r\\n\\r\\n'); c.settimeout(8); c.recv(64)"

    def capture(address: str, port: int, *interfaces: str) -> list[bytes]:
        """Return what passed these interfaces while the member's machine spoke."""
        names = " ".join(interfaces)
        start = f"cd /run; for i in {names}; do tcpdump -i $i -U -w $i.pcap 2>$i.log & echo $! >>tcpdump.pids; done"
        way_in.on(lab.MEMBER, f"rm -f /run/tcpdump.pids; {start}")
        heard = f"cd /run; cat {' '.join(f'{name}.log' for name in interfaces)}"
        assert way_in.eventually(lambda: way_in.on(lab.MEMBER, heard).stdout.count("listening on") == len(interfaces))
        done = way_in.on(lab.MEMBER, f'python3 -c "{speak}" {address} {port}')
        assert done.returncode == 0, done.stderr
        way_in.on(lab.MEMBER, "sleep 1; kill $(cat /run/tcpdump.pids); sleep 0.3")  # until the last packets are written
        return [bytes.fromhex(way_in.on(lab.MEMBER, f"od -An -v -tx1 /run/{name}.pcap").stdout) for name in interfaces]

    inner, outer = capture(lab.SERVERS[SERVER].address(), 22, "bulwark", "outside0")
    assert MARKER.encode() in inner
    assert len(outer) > 500  # the tunnel's packets are there
    assert MARKER.encode() not in outer
    (outer,) = capture(lab.SERVERS[SERVER].address(lab.OUTSIDE), DECLARED, "outside0")
    assert MARKER.encode() in outer


# --- what changes ----------------------------------------------------------------------------------------------------------


def site(name: str, *words: str, **variables: object):
    """Run site.yml with variables of its own and return how it ended."""
    return lab.ansible(f"test-access-{name}", "playbooks/site.yml", *words, "-e", json.dumps(variables))


def test_a_removed_management_address_no_longer_gets_in(story):
    """The outsider's address is declared, and sshd answers it; it is taken away, and sshd does not any more."""
    outsider = lab.MACHINES[lab.OUTSIDER]
    usual = ["198.18.77.1/32", "fd00:b1:77::1/128"]
    more = [*usual, f"{outsider.address()}/32", f"{outsider.address(version=6)}/128"]
    words = ("--tags", "firewall", "--limit", "servers")
    done = site("more", *words, firewall_management_addresses=more)
    assert done.returncode == 0, done.stdout[-4000:]
    assert set(way_in.knock(lab.OUTSIDER, way_in.server_doors()).values()) == {"SSH-"}
    done = site("fewer", *words)
    assert done.returncode == 0, done.stdout[-4000:]
    assert set(way_in.knock(lab.OUTSIDER, way_in.server_doors()).values()) <= way_in.SHUT


def rules(server: str) -> str:
    """Return a server's own firewall, without what counts."""
    return way_in.on(server, "nft --stateless list table inet bulwark | grep -v elements").stdout


def answers(address: str) -> bool:
    """Whether sshd greets the controller."""
    try:
        lab.machines.wait_ssh(address, 22, 1)
    except SystemExit:
        return False
    return True


def test_a_firewall_that_shuts_us_out_is_refused_beforehand(story):
    """The controller's address is not among those let in: nothing changes, the message says why."""
    before = rules(SERVER)
    done = site("lockout", "--tags", "firewall", "--limit", SERVER, firewall_management_addresses=NOBODY)
    assert done.returncode != 0
    assert "198.18.77.1" in done.stdout
    assert before and rules(SERVER) == before
    assert answers(lab.SERVERS[SERVER].address())


def test_a_wrong_duo_secret_is_refused_beforehand(story):
    """Duo does not take the keys: nothing changes."""
    look = "sha256sum /etc/bulwark/pam_duo.conf"
    before = way_in.on(OTHER, look).stdout
    done = site("secret", "--tags", "duo", "--limit", OTHER, duo_secret_key="0" * 40)
    assert done.returncode != 0
    assert before and way_in.on(OTHER, look).stdout == before


@pytest.fixture(scope="module")
def lockouts(story) -> dict[str, dict]:
    """Shut everybody out of both servers, each in its own way, side by side, the pre-flights off; return what was seen."""
    with concurrent.futures.ThreadPoolExecutor() as pool:
        seen = {"firewall": pool.submit(shut_by_firewall), "duo": pool.submit(shut_by_duo)}
    return {name: future.result() for name, future in seen.items()}


def shut_by_firewall() -> dict:
    """Apply a firewall that does not let the controller in, and wait for what happens."""
    address, before, began = lab.SERVERS[SERVER].address(), rules(SERVER), time.monotonic()
    done = site(
        "lockout-guard", "--tags", "firewall", "--limit", SERVER,
        firewall_management_addresses=NOBODY, firewall_preflight=False, bulwark_guard_window_seconds=WINDOW,
    )  # fmt: skip
    shut = not answers(address), rules(SERVER) != before
    left = time.monotonic() - began + WINDOW + 20  # armed at some time since it began
    back = way_in.eventually(lambda: answers(address), left), way_in.eventually(lambda: rules(SERVER) == before)
    return {"run": done, "shut": shut, "back": back, "after": site("after-lockout", "--tags", "firewall", "--limit", SERVER)}


def shut_by_duo() -> dict:
    """Give Duo a wrong secret key, Ansible coming in as a person whom sshd sends to Duo, and wait for what happens."""
    look = "sha256sum /etc/bulwark/pam_duo.conf"
    person = {
        "ansible_user": lab.PERSON,
        "ansible_private_key_file": str(lab.STATE / lab.PERSON / "id_ed25519"),
        "ansible_ssh_args": "-o ControlMaster=auto -o ControlPersist=120s -o KbdInteractiveAuthentication=yes "
        "-o PreferredAuthentications=publickey,keyboard-interactive -o NumberOfPasswordPrompts=1",
    }
    words, sudoers = ("--tags", "duo", "--limit", OTHER), "/etc/sudoers.d/zzz-test"
    way_in.on(OTHER, f"umask 0337; echo '{lab.PERSON} ALL=(ALL:ALL) NOPASSWD: ALL' >{sudoers}")
    try:
        good = site("person-guard", *words, **person)
        before = way_in.on(OTHER, look).stdout
        wrong = {"duo_secret_key": "0" * 40, "duo_preflight": [], "bulwark_guard_window_seconds": WINDOW}
        done = site("secret-guard", *words, **wrong, **person)
        back = way_in.eventually(lambda: way_in.on(OTHER, look).stdout == before, WINDOW + 20)
    finally:
        way_in.on(OTHER, f"rm -f {sudoers}")
    return {"good": good, "run": done, "back": back}


def test_a_firewall_that_shuts_us_out_goes_back_by_itself(lockouts):
    """The run ends locked out, and so is everybody; within the window the server is what it was, and the next run finds it so."""
    seen = lockouts["firewall"]
    assert seen["run"].returncode != 0 and "UNREACHABLE" in seen["run"].stdout, seen["run"].stdout[-3000:]
    assert seen["shut"] == (True, True)
    assert seen["back"] == (True, True)
    assert seen["after"].returncode == 0 and " changed=0 " in seen["after"].stdout, seen["after"].stdout[-3000:]


def test_a_wrong_duo_secret_goes_back_by_itself(lockouts):
    """Who cannot come in anew keeps nothing. The same run with the right secret is kept."""
    seen = lockouts["duo"]
    assert seen["good"].returncode == 0, seen["good"].stdout[-3000:]
    assert seen["run"].returncode != 0, seen["run"].stdout[-3000:]
    assert re.search(r"TASK \[bulwark.hardening.duo : Configure Duo.*\n(?:.*\n)*?changed: ", seen["run"].stdout)
    assert "Nobody could come in after the change" in seen["run"].stdout, seen["run"].stdout[-3000:]
    assert seen["back"]
