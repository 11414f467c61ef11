# Copyright: (c) 2026, Bulwark contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Attack the firewall from a small town around the host. Without our table, every door tried here was seen to be open.

Two neighbours share a wire of their own with the host. One (street) plays the outsider, a controller, a neighbour with
a declared need, a wireless client and, over the interface tunnel0, a member of the VPN. The other (yard) plays a server behind
the host, on inside0, and a container, on ctr0. All over IPv4 and IPv6.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "shared"))
import machines

HOST = {4: "192.0.2.1", 6: "2001:db8:2::1"}
OUTSIDER = {4: "192.0.2.66", 6: "2001:db8:2::66"}
PASSER_BY = {4: "192.0.2.67", 6: "2001:db8:2::67"}  # an outsider who knows the way to the yard
CONTROLLER = {4: "192.0.2.20", 6: "2001:db8:2::20"}
NEIGHBOUR = {4: "192.0.2.30", 6: "2001:db8:2::30"}
WIRELESS = {4: "192.0.2.130", 6: "2001:db8:2:128::66"}
MEMBER = {4: "10.99.0.5", 6: "2001:db8:99::5"}
HOST_IN_TUNNEL = {4: "10.99.0.1", 6: "2001:db8:99::1"}
SERVER = {4: "203.0.113.10", 6: "2001:db8:203::10"}
SERVER_FOR_PASSER_BY = {4: "203.0.113.11", 6: "2001:db8:203::11"}
CONTAINER = {4: "172.31.9.2", 6: "2001:db8:c::2"}

# (interface of the host, addresses)
HOST_ADDRESSES = [
    ("", ["192.0.2.1/24", "2001:db8:2::1/64", "2001:db8:2:128::1/64"]),
    ("tunnel0", ["10.99.0.1/24", "2001:db8:99::1/64"]),
    ("inside0", ["203.0.113.1/24", "2001:db8:203::1/64"]),
    ("ctr0", ["172.31.9.1/24", "2001:db8:c::1/64"]),
]
STREET = [f"{place[4]}/24" for place in (OUTSIDER, PASSER_BY, CONTROLLER, NEIGHBOUR, WIRELESS, MEMBER)]
STREET += [f"{place[6]}/64" for place in (OUTSIDER, PASSER_BY, CONTROLLER, NEIGHBOUR, WIRELESS, MEMBER)]
YARD = [f"{place[4]}/24" for place in (SERVER, SERVER_FOR_PASSER_BY, CONTAINER)]
YARD += [f"{place[6]}/64" for place in (SERVER, SERVER_FOR_PASSER_BY, CONTAINER)]

# Says of each of many doors, all at once, what came of knocking: open, refused or silent.
KNOCK = r"""
import concurrent.futures, json, socket, sys
def knock(case):
    source, target, port = case
    with socket.socket(socket.AF_INET6 if ":" in target else socket.AF_INET) as door:
        door.settimeout(4)
        try:
            door.bind((source, 0))
            door.connect((target, port))
        except TimeoutError:
            return "silent"
        except OSError as error:
            return "refused" if error.errno == 111 else f"error {error}"
        return "open"
cases = json.load(sys.stdin)
with concurrent.futures.ThreadPoolExecutor(len(cases)) as pool:
    print(json.dumps(list(pool.map(knock, cases))))
"""
# Listens on many ports, TCP over both IP versions, and answers UDP on 1194.
LISTEN = r"""
import socket, sys, threading
def serve(port):
    server = socket.create_server(("::", port), family=socket.AF_INET6, dualstack_ipv6=True, backlog=64)
    while True:
        server.accept()[0].close()
for port in sys.argv[1:]:
    threading.Thread(target=serve, args=(int(port),)).start()
"""
# Knocks at every port from one source, twice, with raw packets, and says which answered that they are open: SOURCE TARGET.
SCAN = r"""
import ipaddress, json, socket, struct, sys, threading, time
source, target = map(ipaddress.ip_address, sys.argv[1:])
six = target.version == 6
family = socket.AF_INET6 if six else socket.AF_INET
ears = socket.socket(family, socket.SOCK_RAW, socket.IPPROTO_TCP)
wire = socket.socket(family, socket.SOCK_RAW, socket.IPPROTO_RAW)
found = set()
ears.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 22)
def hear():
    while True:
        data, place = ears.recvfrom(2000)
        data = data if six else data[(data[0] & 15) * 4:]
        if place[0] == str(target) and data[13] & 0x12 == 0x12 and data[2:4] == b"\x9c\x40":
            found.add(int.from_bytes(data[:2], "big"))
threading.Thread(target=hear, daemon=True).start()
if six:
    head = struct.pack("!IHBB16s16s", 0x60000000, 20, 6, 64, source.packed, target.packed)
else:
    head = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 40, 7, 0, 64, 6, 0, source.packed, target.packed)
fixed = source.packed + target.packed + struct.pack("!HHHHBBH", 6, 20, 40000, 0, 0x50, 2, 64240)
base = sum(struct.unpack(f"!{len(fixed) // 2}H", fixed))
for number in range(2 * 65535):
    port = number % 65535 + 1
    value = base + port
    while value >> 16:
        value = (value & 0xFFFF) + (value >> 16)
    packet = head + struct.pack("!HHIIBBHHH", 40000, port, 0, 0, 0x50, 2, 64240, ~value & 0xFFFF, 0)
    try:
        wire.sendto(packet, (str(target), 0))
    except OSError:
        time.sleep(0.01)
    if number % 500 == 0:
        time.sleep(0.005)
time.sleep(1)
print(json.dumps(sorted(found)))
"""
# Sends the first packet of a connection again and again: python3 - SOURCE TARGET PORT COUNT; SOURCE may be a list to take turns.
FLOOD = r"""
import ipaddress, socket, struct, sys
sources, target, port, count = sys.argv[1].split(","), ipaddress.ip_address(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
def total(data):
    value = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while value >> 16:
        value = (value & 0xFFFF) + (value >> 16)
    return ~value & 0xFFFF
family = socket.AF_INET if target.version == 4 else socket.AF_INET6
wire = socket.socket(family, socket.SOCK_RAW, socket.IPPROTO_RAW)
packets = []
for number in range(4000):
    source = ipaddress.ip_address(sources[number % len(sources)])
    tcp = struct.pack("!HHIIBBHHH", 1024 + number, port, number * 7919, 0, 0x50, 2, 64240, 0, 0)
    pseudo = source.packed + target.packed + struct.pack("!HH", 6, 20)
    tcp = tcp[:16] + struct.pack("!H", total(pseudo + tcp)) + tcp[18:]
    if target.version == 4:
        head = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 40, number, 0, 64, 6, 0, source.packed, target.packed)
    else:
        head = struct.pack("!IHBB16s16s", 0x60000000, 20, 6, 64, source.packed, target.packed)
    packets.append(head + tcp)
sent = 0
for number in range(count):
    try:
        wire.sendto(packets[number % len(packets)], (str(target), 0))
        sent += 1
    except OSError:
        pass
print(sent)
"""


def started(*words: str) -> subprocess.Popen:
    """Start podman as the machines do."""
    command = ["podman", *words]
    if os.geteuid():
        command = ["sudo", "-n", f"CONTAINERS_CONF={machines.HERE / 'containers.conf'}", *command]
    environment = {"CONTAINERS_CONF": str(machines.HERE / "containers.conf"), **os.environ}
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True, env=environment)


def podman(*words: str, stdin: str = "", check: bool = True, timeout: int = 120) -> str:
    """Run podman with something to read, and return its output."""
    with started(*words) as process:
        said, complaint = process.communicate(stdin, timeout)
    assert not check or process.returncode == 0, f"{words}: exit {process.returncode}\n{said}{complaint}"
    return said


@dataclasses.dataclass(frozen=True)
class Town:
    """The host's neighbours, by the names of their containers."""

    machine: str
    street: str
    yard: str

    def knock(self, cases: list[tuple[dict, dict, int]], who: str = "street") -> list[str]:
        """Try doors, each (from, to, port) over IPv4 and IPv6, and return what came of them in pairs, such as ``open open``."""
        flat = [(source[version], target[version], port) for source, target, port in cases for version in (4, 6)]
        said = json.loads(podman("exec", "-i", getattr(self, who), "python3", "-c", KNOCK, stdin=json.dumps(flat)))
        return [f"{one} {two}" for one, two in zip(said[::2], said[1::2], strict=True)]


def run_inside(name: str, script: str) -> str:
    """Run a shell script in a container."""
    return podman("exec", "-i", name, "sh", "-eu", stdin=script)


def lay_wire(town: Town) -> None:
    """Give the host its interfaces and everybody their addresses and ways."""
    eth = run_inside(town.machine, "ip -o link show | sed -n 's/^[0-9]*: \\(eth[1-9]\\)@.*/\\1/p' | tail -1").strip()
    script = ""
    for name, addresses in HOST_ADDRESSES:
        if name:
            script += f"ip link add {name} link {eth} type macvlan mode bridge\nip link set {name} up\n"
        script += "".join(f"ip addr add {address} dev {name or eth} nodad\n" for address in addresses)
    script += "ip -o link show\n"
    links = run_inside(town.machine, script)
    macs = dict(re.findall(r"^\d+: (\w+)@\S+ .*link/ether (\S+)", links, re.MULTILINE))
    for peer, addresses in ((town.street, STREET), (town.yard, YARD)):
        script = "".join(f"ip addr add {address} dev eth0 nodad\n" for address in addresses)
        # All interfaces of the host hear every question for an address; only one is to answer.
        for name, places in HOST_ADDRESSES:
            for place in places:
                script += f"ip neigh replace {place.partition('/')[0]} lladdr {macs[name or eth]} dev eth0 nud permanent\n"
        run_inside(peer, script)
    run_inside(town.street, """
        ip route add 203.0.113.10/32 via 10.99.0.1
        ip -6 route add 2001:db8:203::10/128 via 2001:db8:99::1
        ip route add 203.0.113.11/32 via 192.0.2.1
        ip -6 route add 2001:db8:203::11/128 via 2001:db8:2::1
        ip route add 172.31.9.0/24 via 192.0.2.1
        ip -6 route add 2001:db8:c::/64 via 2001:db8:2::1""")  # fmt: skip
    run_inside(town.yard, """
        ip route add 10.99.0.0/24 via 203.0.113.1
        ip -6 route add 2001:db8:99::/64 via 2001:db8:203::1
        ip route add 192.0.2.67/32 via 203.0.113.1
        ip -6 route add 2001:db8:2::67/128 via 2001:db8:203::1
        ip route add 192.0.2.0/24 via 172.31.9.1
        ip -6 route add 2001:db8:2::/64 via 2001:db8:c::1""")  # fmt: skip
    # What vpn_gateway sets on a gateway; a container cannot by itself.
    pid = podman("inspect", "-f", "{{.State.Pid}}", town.machine).strip()
    sudo = ["sudo", "-n"] if os.geteuid() else []
    forwarding = ["net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1"]
    subprocess.run([*sudo, "nsenter", f"--net=/proc/{pid}/ns/net", "sysctl", "-q", "-w", *forwarding], check=True)


@pytest.fixture(scope="module")
def town(host, target):
    """Neighbours around the host, who found every door open as long as our table was not there."""
    base = f"molecule-firewall-{target.platform}"
    here = Town(base, f"{base}-street", f"{base}-yard")
    image = machines.image_name(target.platform)
    for name in (here.street, here.yard):
        machines.stop(name)
    podman("network", "rm", "--force", base, check=False)
    podman("network", "create", "--internal", "--disable-dns", base)
    try:
        podman("network", "connect", base, here.machine)
        for name in (here.street, here.yard):
            podman("run", "-d", "--name", name, "--label", "owner=molecule", "--cap-add=NET_ADMIN,NET_RAW", "--network", base,
                   image, "sleep", "infinity")  # fmt: skip
        lay_wire(here)
        run_inside(here.street, "apt-get install -qq -y --no-install-recommends nmap >/dev/null 2>&1")
        podman("exec", "-d", here.street, "python3", "-c", LISTEN, "7000")
        podman("exec", "-d", here.yard, "python3", "-c", LISTEN, "22", "80")
        podman("cp", target.key, f"{here.street}:/root/key")
        with without_rules(host):
            doors = [(who, HOST, port) for who in (OUTSIDER, CONTROLLER, NEIGHBOUR, WIRELESS) for port in (22, 5432, 6379, 8080)]
            doors += [
                (MEMBER, HOST_IN_TUNNEL, 22),
                (MEMBER, SERVER, 22),
                (MEMBER, SERVER, 80),
                (PASSER_BY, SERVER_FOR_PASSER_BY, 22),
            ]
            found = here.knock(doors)
            assert set(found) == {"open open"}, "a door that is always shut proves nothing: " + str(
                list(zip(doors, found, strict=True))
            )
        yield here
    finally:
        for name in (here.street, here.yard):
            machines.stop(name)
        podman("network", "disconnect", "--force", base, here.machine, check=False)
        podman("network", "rm", "--force", base, check=False)


@contextlib.contextmanager
def without_rules(host):
    """Have our table away for a moment."""
    host.check_output("nft delete table inet bulwark")
    try:
        yield
    finally:
        host.check_output("systemctl restart bulwark-firewall")


def forget(host) -> None:
    """Let the rules forget whom they saw, so that one proof does not use up another's share of the log."""
    host.check_output("systemctl reload bulwark-firewall")


def cursor(host) -> str:
    """Return the present end of the journal."""
    return re.search(r"-- cursor: (.*)", host.check_output("journalctl -n 0 --show-cursor")).group(1)


def logged(host, since: str, *words: str, seconds: float = 6) -> list[str]:
    """Return the firewall's log lines since then that hold all words, waiting a little for the first."""
    end = time.monotonic() + seconds
    while True:
        text = host.check_output(f"journalctl -q -o cat --after-cursor='{since}' SYSLOG_IDENTIFIER=ulogd")
        lines = [line for line in text.splitlines() if line.startswith("bulwark-fw ") and all(word in line for word in words)]
        if lines or time.monotonic() > end:
            return lines
        time.sleep(0.3)


def counter(host, name: str) -> int:
    """Return how many packets met this end."""
    return int(re.search(r"packets (\d+)", host.check_output(f"nft list counter inet bulwark count_{name}")).group(1))


# --- who reaches what -------------------------------------------------------------------------------------------------


def test_ssh_answers_the_vpn_and_controllers_only(town):
    doors = [(CONTROLLER, HOST, 22), (MEMBER, HOST_IN_TUNNEL, 22)]
    closed = [(OUTSIDER, HOST, 22), (NEIGHBOUR, HOST, 22), (WIRELESS, HOST, 22)]
    assert town.knock(doors) == ["open open"] * 2
    assert town.knock(closed) == ["silent silent"] * 3


def test_a_service_answers_those_it_is_declared_for(town):
    assert town.knock([(NEIGHBOUR, HOST, 5432), (OUTSIDER, HOST, 8080), (MEMBER, HOST_IN_TUNNEL, 8080)]) == ["open open"] * 3
    assert (
        town.knock([(OUTSIDER, HOST, 5432), (OUTSIDER, HOST, 6379), (CONTROLLER, HOST, 6379), (MEMBER, HOST_IN_TUNNEL, 6379)])
        == ["silent silent"] * 4
    )


def test_from_wireless_only_the_vpn_is_reached(host, town):
    assert town.knock([(WIRELESS, HOST, port) for port in (22, 5432, 6379, 8080)]) == ["silent silent"] * 4
    assert town.knock([(OUTSIDER, HOST, 8080)]) == ["open open"], "the same from beside the wireless network"
    answer = (
        "import socket\n"
        "s = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM); s.bind(('::', 1194)); s.settimeout(20)\n"
        "for _ in range(2): s.sendto(b'here', s.recvfrom(99)[1])\n"
    )
    host.check_output(f'systemd-run --quiet --collect --unit=udp-1194 python3 -c "{answer}"')
    ask = (
        "import socket, sys, time\nsource, target = sys.argv[1:]\ntime.sleep(0.5)\n"
        "s = socket.socket(socket.AF_INET6 if ':' in source else socket.AF_INET, socket.SOCK_DGRAM)\n"
        "s.bind((source, 0)); s.settimeout(5); s.sendto(b'?', (target, 1194)); print(s.recvfrom(99)[0].decode())\n"
    )
    for version in (4, 6):
        assert podman("exec", town.street, "python3", "-c", ask, WIRELESS[version], HOST[version]) == "here\n"


def scan_all(town) -> list[list[int]]:
    """Return which TCP ports of the host an outsider finds open, of all, over IPv4 and over IPv6."""
    scans = [started("exec", town.street, "python3", "-c", SCAN, OUTSIDER[version], HOST[version]) for version in (4, 6)]
    return [json.loads(scan.communicate(timeout=120)[0]) for scan in scans]


def test_a_full_scan_shows_what_is_declared_only(host, town):
    with without_rules(host):
        assert scan_all(town) == [[22, 5432, 6379, 8080]] * 2, "as the host was before"
    since = cursor(host)
    assert scan_all(town) == [[8080]] * 2
    for version in (4, 6):
        assert logged(host, since, "event=scan", f"SRC={OUTSIDER[version]} "), "no trace"
    assert len(logged(host, since, "event=scan")) <= 60, "the log was flooded"
    assert counter(host, "scan") + counter(host, "drop") + counter(host, "flood") > 200000, "the counters tell how many"


def test_a_scanner_finds_nothing_else(host, town):
    """The tool that everybody uses, for TCP and UDP, from a harmless source port as well."""
    ports = "T:1-100,443,2022,3306,5432,6379,8080,9080,U:53,123,161,1194"
    for options in (["-S", OUTSIDER[4], HOST[4]], ["-6", "-S", OUTSIDER[6], HOST[6]], ["-g", "53", "-S", OUTSIDER[4], HOST[4]]):
        words = ["-n", "-Pn", "-sS", "-sU", "-T5", "--max-retries", "1", "-p", ports, "-e", "eth0", "--open", "-oG", "-"]
        said = podman("exec", town.street, "nmap", *words, *options)
        assert re.findall(r"(\d+)/open/(\w+)", said) == [("8080", "tcp")], said


def test_a_scan_leaves_traces(host, town):
    """A slow one, of few ports; and the same port again and again is no scan."""
    forget(host)
    since = cursor(host)
    town.knock([(NEIGHBOUR, HOST, port) for port in range(3000, 3030)])
    assert logged(host, since, "event=scan", "SRC=192.0.2.30 ", "PROTO=TCP"), logged(host, since)
    assert logged(host, since, "event=scan", "SRC=2001:db8:2::30 ", "PROTO=TCP")
    assert logged(host, since, "event=drop", "SRC=192.0.2.30 ", "DPT=30"), "and the first of it as plain drops"
    forget(host)
    since = cursor(host)
    town.knock([(NEIGHBOUR, HOST, 6379)] * 20)
    assert logged(host, since, "event=drop", "SRC=192.0.2.30 ", "DPT=6379")
    assert not logged(host, since, "event=scan", seconds=0)


def test_neighbours_are_found_over_ipv6(host, town):
    """Without these few kinds of ICMPv6, IPv6 is dead; with more, it is open."""
    run_inside(town.street, "ip neigh del 2001:db8:2::1 dev eth0; ip neigh flush dev eth0 nud reachable nud stale nud failed")
    host.check_output("ip -6 neigh flush dev $(ip -o -6 addr show to 2001:db8:2::1 | awk '{print $2}')")
    assert town.knock([(OUTSIDER, HOST, 8080)]) == ["open open"]
    for address in HOST.values():
        run_inside(town.street, f"python3 - <<'END'\n{PING.format(address=address)}\nEND\n")


PING = r"""
import os, socket, struct
six = ":" in "{address}"
family, protocol = (socket.AF_INET6, socket.IPPROTO_ICMPV6) if six else (socket.AF_INET, socket.IPPROTO_ICMP)
s = socket.socket(family, socket.SOCK_RAW, protocol)
s.settimeout(3)
data = struct.pack("!BBHHH", 128 if six else 8, 0, 0, 7, 1)
total = sum(struct.unpack("!4H", data))
s.sendto(data[:2] + struct.pack("!H", ~total & 0xFFFF) + data[4:], ("{address}", 0))
while (s.recv(99) if six else s.recv(99)[20:])[:1] != (b"\x81" if six else b"\x00"):
    pass
"""


# --- who comes from where ---------------------------------------------------------------------------------------------


def test_a_vpn_address_outside_the_tunnel_is_dropped(host, town):
    since = cursor(host)
    before = counter(host, "spoof")
    assert town.knock([(MEMBER, HOST, 22), (MEMBER, HOST, 8080)]) == ["silent silent"] * 2
    assert counter(host, "spoof") > before
    assert logged(host, since, "event=spoof", "SRC=10.99.0.5 ") and logged(host, since, "event=spoof", "SRC=2001:db8:99::5 ")
    assert town.knock([(MEMBER, HOST_IN_TUNNEL, 22)]) == ["open open"]


def test_a_false_source_is_dropped(host, town):
    """An address of the yard, coming from the street."""
    since = cursor(host)
    for version, source in ((4, "203.0.113.99"), (6, "2001:db8:203::99")):
        podman("exec", town.street, "python3", "-c", FLOOD, source, HOST[version], "8080", "5")
        assert logged(host, since, "event=spoof", f"SRC={source} ", "DPT=8080")
        podman("exec", town.street, "python3", "-c", FLOOD, OUTSIDER[version], HOST[version], "6379", "5")
        assert logged(host, since, "event=drop", f"SRC={OUTSIDER[version]} "), (
            "a true one is dropped for its port, not its source"
        )


# --- floods -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "sources",
    [
        pytest.param(OUTSIDER, id="one-source"),
        pytest.param(
            {
                4: ",".join(f"192.0.2.{number}" for number in range(200, 250)),
                6: ",".join(f"2001:db8:2::{number:x}" for number in range(0x100, 0x500)),
            },
            id="forged-sources",
        ),
    ],
)
def test_a_flood_keeps_nobody_else_out(host, town, sources):
    forget(host)
    since, begun = cursor(host), time.monotonic()
    floods = [started("exec", town.street, "python3", "-c", FLOOD, sources[v], HOST[v], "8080", "30000") for v in (4, 6)]
    time.sleep(1)
    tried = town.knock([(MEMBER, HOST_IN_TUNNEL, 8080), (CONTROLLER, HOST, 22)] * 6)
    others = town.knock([(NEIGHBOUR, HOST, 5432)] * 4)
    sent = [int(flood.communicate(timeout=90)[0]) for flood in floods]
    assert min(sent) > 10000, sent
    assert tried == ["open open"] * 12
    assert [one.split()[0] for one in others] == ["open"] * 4, "over IPv6 the neighbour is in the /64 that is counted as one"
    lines = logged(host, since, "event=flood", "DPT=8080")
    assert [line for line in lines if "SRC=2001:db8:2::" in line], "one /64 is one source, however many addresses it uses"
    # Fifty forged sources of IPv4 that take turns may each stay below what one source is allowed.
    assert sources is not OUTSIDER or [line for line in lines if f"SRC={OUTSIDER[4]} " in line], lines
    assert len(lines) < 250 + 40 * (time.monotonic() - begun), "the log was flooded"
    assert counter(host, "flood") > 10000, "the counter tells how many"


# --- what passes through ----------------------------------------------------------------------------------------------


def test_only_declared_forwards_pass(town):
    assert town.knock([(MEMBER, SERVER, 22)]) == ["open open"]
    assert town.knock([(MEMBER, SERVER, 80), (PASSER_BY, SERVER_FOR_PASSER_BY, 22)]) == ["silent silent"] * 2
    assert town.knock([(SERVER, MEMBER, 7000)], who="yard") == ["silent silent"], "nor the other way"


@pytest.fixture(scope="module")
def containers(host, town):
    """A table such as container engines make: ports led to a container, and all of its traffic accepted."""
    host.check_output("""nft -f - <<'END'
        table ip engine {
          chain pre { type nat hook prerouting priority dstnat;
            fib daddr type local tcp dport { 9080, 9443 } dnat to 172.31.9.2:80; }
          chain post { type nat hook postrouting priority srcnat; ip saddr 172.31.9.0/24 oifname != "ctr0" masquerade; }
          chain forward { type filter hook forward priority filter; policy accept; iifname "ctr0" accept; oifname "ctr0" accept; }
        }
        table ip6 engine {
          chain pre { type nat hook prerouting priority dstnat;
            fib daddr type local tcp dport { 9080, 9443 } dnat to [2001:db8:c::2]:80; }
          chain forward { type filter hook forward priority filter; policy accept; iifname "ctr0" accept; oifname "ctr0" accept; }
        }\nEND""")
    with without_rules(host):
        doors = [(OUTSIDER, HOST, 9080), (OUTSIDER, HOST, 9443), (OUTSIDER, CONTAINER, 80)]
        assert town.knock(doors) == ["open open"] * 3, "as engines leave it"
    return town


def test_a_published_port_is_closed_unless_declared(host, containers):
    assert containers.knock([(OUTSIDER, HOST, 9080)]) == ["open open"]
    assert containers.knock([(OUTSIDER, HOST, 9443), (OUTSIDER, CONTAINER, 80)]) == ["silent silent"] * 2
    assert containers.knock([(WIRELESS, HOST, 9080)]) == ["silent silent"]


def test_containers_reach_out(host, containers):
    assert containers.knock([(CONTAINER, OUTSIDER, 7000)], who="yard") == ["open open"]
    assert "engine" in host.check_output("nft list tables"), "other tables are left alone"


# --- later changes ----------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def session(town, source: str, target: str):
    """Have an SSH session from an address that says something five times a second; yields a way to hear how much it said."""
    options = "-o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -o LogLevel=ERROR -o IdentitiesOnly=yes -i /root/key"
    name = re.sub(r"\W", "-", source)
    talk = "while echo still here; do sleep 0.2; done"
    script = f"ssh {options} -b {source} deploy@{target} '{talk}' >/tmp/{name} 2>&1 || true; echo ended >>/tmp/{name}"
    run_inside(town.street, f"({script}) >/dev/null 2>&1 &")

    def heard() -> str:
        return run_inside(town.street, f"cat /tmp/{name}")

    end = time.monotonic() + 10
    while "still here" not in heard() and time.monotonic() < end:
        time.sleep(0.2)
    assert "still here" in heard(), heard()
    yield heard
    run_inside(town.street, f"pkill -f -- '-b {source} ' || true")


PORTS = "/etc/ssh/sshd_config.d/10-ports.conf"


@pytest.fixture(scope="module")
def changed(host, target, town):
    """The host after its site changed its mind: a controller less, sshd on a second port, and only declared ways out.

    Returns what was heard of two sessions that were open before, a controller's that is now off the list and a member's, by name.
    """
    since = cursor(host)
    assert town.knock([(CONTROLLER, HOST, 22)]) == ["open open"]
    allowed = [
        {"name": "yard", "to": [f"{SERVER[4]}/32", f"{SERVER[6]}/128"], "ports": ["tcp/80"], "reason": "Stands for updates"}
    ]
    host.check_output(f"printf 'Port 22\\nPort 2022\\n' >{PORTS} && systemctl restart ssh")
    with session(town, CONTROLLER[4], HOST[4]) as revoked, session(town, MEMBER[4], HOST_IN_TUNNEL[4]) as kept:
        target.reapply(
            firewall_management_addresses=["10.88.0.1/32", f"{CONTROLLER[6]}/128"],
            firewall_out="declared",
            firewall_out_allowed=allowed,
        )
        time.sleep(1)
        heard = kept()
        time.sleep(1)
        return {"since": since, "revoked": revoked(), "kept before": heard, "kept": kept()}


def test_a_revoked_address_loses_its_session(host, changed, town):
    assert town.knock([(CONTROLLER, HOST, 22)]) == ["silent open"], "only the one that was taken off the list"
    assert changed["revoked"].splitlines()[-1] == "ended", changed["revoked"][-200:]
    assert changed["kept"].count("still here") > changed["kept before"].count("still here"), "the other session goes on"
    assert "ended" not in changed["kept"]
    assert logged(host, changed["since"], "event=revoked", f"SRC={CONTROLLER[4]} ", "DPT=22")


def test_another_port_of_sshd_is_closed_as_well(changed, town):
    assert town.knock([(OUTSIDER, HOST, 2022), (CONTROLLER, HOST, 2022), (MEMBER, HOST_IN_TUNNEL, 2022)]) == [
        "silent silent", "silent open", "open open",
    ]  # fmt: skip


def test_the_host_reaches_what_is_declared_only(host, changed, town):
    """With firewall_out: declared. Who may come in is still answered; what is not declared is refused at once."""
    knock = "for address in 203.0.113.10 2001:db8:203::10; do for port in 80 22; do " + (
        'timeout 2 bash -c "</dev/tcp/$address/$port" 2>/dev/null && echo open || echo shut; done; done'
    )
    assert host.check_output(knock).split() == ["open", "shut"] * 2
    assert town.knock([(OUTSIDER, HOST, 8080), (MEMBER, HOST_IN_TUNNEL, 22)]) == ["open open"] * 2
    assert logged(host, changed["since"], "event=out", "DST=203.0.113.10 ", "DPT=22")
    with without_rules(host):
        assert host.check_output(knock).split() == ["open"] * 4


def test_a_change_can_be_taken_back(host, target, town):
    """After the three above: the site changes its mind once more, and everything is as the scenario has it."""
    host.run(f"rm {PORTS} && systemctl restart ssh")
    target.reapply()
    assert town.knock([(CONTROLLER, HOST, 22), (OUTSIDER, HOST, 22)]) == ["open open", "silent silent"]


def test_rules_that_would_shut_ansible_out_are_refused(host, target):
    before = host.check_output("sha256sum /etc/bulwark/firewall.nft; nft -s -t list table inet bulwark")
    with pytest.raises(pytest.fail.Exception) as refused:
        target.reapply(firewall_management_addresses=["192.0.2.20/32"])
    said = re.sub(r"\s+", " ", str(refused.value))
    assert "Refused before anything changed: Ansible came in from 10.88.0.1 to tcp/22" in said, said
    assert "neither firewall_vpn_networks nor firewall_management_addresses" in said
    assert host.check_output("sha256sum /etc/bulwark/firewall.nft; nft -s -t list table inet bulwark") == before


def test_a_change_of_the_rules_leaves_a_trace(host):
    since = cursor(host)
    host.check_output(
        "nft 'add table inet elsewhere; add chain inet elsewhere open' && sleep 0.3 && nft delete table inet elsewhere"
    )
    end = time.monotonic() + 6
    said = ""
    while "delete table inet elsewhere" not in said and time.monotonic() < end:
        time.sleep(0.3)
        said = host.check_output(f"journalctl -q -o cat --after-cursor='{since}' SYSLOG_IDENTIFIER=bulwark-fw-rules")
    assert "add chain inet elsewhere open" in said and "delete table inet elsewhere" in said, said
    assert re.search(r"by process \d+ \(nft\)", said)


def test_a_change_by_hand_is_put_right(host, target, town):
    host.check_output("nft insert rule inet bulwark input tcp dport 6379 accept")
    assert town.knock([(OUTSIDER, HOST, 6379)]) == ["open open"]
    target.reapply()
    assert town.knock([(OUTSIDER, HOST, 6379), (OUTSIDER, HOST, 8080)]) == ["silent silent", "open open"]


def test_the_vendors_service_opens_nothing(host, town):
    """Its configuration flushes the whole ruleset when it starts, reloads and stops."""
    for action in ("start", "reload", "restart", "stop"):
        host.check_output(f"systemctl {action} nftables.service")
        assert town.knock([(OUTSIDER, HOST, 6379), (OUTSIDER, HOST, 8080)]) == ["silent silent", "open open"], action
        assert host.run("nft list table inet filter").succeeded == (action != "stop"), "the site's own rules are loaded as ever"
    host.check_output("systemctl stop bulwark-firewall.service")
    assert town.knock([(OUTSIDER, HOST, 6379)]) == ["silent silent"], "nor does stopping ours"
    host.check_output("systemctl start bulwark-firewall.service")


def test_taken_back_everything_is_as_it_was(host, target, town):
    target.reapply(firewall_state="absent")
    try:
        assert host.run("nft list table inet bulwark").failed
        left = host.run("ls /etc/bulwark /etc/systemd/system/nftables.service.d /etc/systemd/system/bulwark-firewall*").stdout
        assert "firewall" not in left, left
        assert "nft -f /etc/nftables.conf" in host.check_output("systemctl show nftables.service -p ExecStart")
        assert host.check_output("systemctl list-units --plain --no-legend 'bulwark-firewall*'") == ""
        assert town.knock([(OUTSIDER, HOST, 6379), (OUTSIDER, HOST, 22)]) == ["open open"] * 2
    finally:
        target.reapply()
    assert town.knock([(OUTSIDER, HOST, 6379), (OUTSIDER, HOST, 22)]) == ["silent silent"] * 2


def test_rules_are_back_after_a_boot(target, town):
    """Last, because the machine comes back under another address; it is given the old ones besides."""
    mac = run_inside(town.machine, "cat /sys/class/net/eth0/address").strip()
    podman("restart", "--time", "5", town.machine)
    end = time.monotonic() + 60
    while "running" not in (state := podman("exec", town.machine, "systemctl", "is-system-running", check=False)):
        assert time.monotonic() < end and "degraded" not in state, state
        time.sleep(0.5)
    there = f"ip addr show eth0 | grep -q ' {target.address}/'"
    run_inside(town.machine, f"ip link set eth0 address {mac}; {there} || ip addr add {target.address}/16 dev eth0")
    lay_wire_again(town)
    assert town.knock([(OUTSIDER, HOST, 6379), (OUTSIDER, HOST, 22), (OUTSIDER, HOST, 8080), (CONTROLLER, HOST, 22)]) == [
        "silent silent", "silent silent", "open open", "open open",
    ]  # fmt: skip
    show = "systemctl show -p ActiveEnterTimestampMonotonic --value"
    first = int(podman("exec", town.machine, *show.split(), "bulwark-firewall.service"))
    assert 0 < first < int(podman("exec", town.machine, *show.split(), "ssh.service"))


def lay_wire_again(town: Town) -> None:
    """Lay the host's side of the wire after a boot, and tell the neighbours its new hardware addresses."""
    for peer in (town.street, town.yard):
        run_inside(
            peer,
            "ip -4 route flush root 0/0 scope global; ip -6 route flush root ::/0 proto boot;"
            " ip addr flush scope global dev eth0",
        )
    lay_wire(town)
