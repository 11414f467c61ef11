# SPDX-License-Identifier: GPL-3.0-or-later
"""Proofs of the time_sync role: whom chronyd believes, whom it does not, and what others get from it (nothing).

A container shares its machine's clock and may not set it. So chronyd runs here with -x: it asks, checks and chooses as ever and
only leaves the clock alone. Everything else is the vendor's unit and the role's own files. The servers are chronyd again (for
NTS) and a few lines of Python (for servers that lie), on the loopback interface, with authorities made for the test.
"""

from __future__ import annotations

import re
import socket
import time

import pytest

NTS = {"port": 11123, "ntsport": 14460}
KEYED = [{"name": "ntp-a.test", "port": 11123, "key": 10}, {"name": "ntp-b.test", "port": 11123, "key": 10}]
UNUSED_SECRET = "8badf00d8badf00d8badf00d8badf00d"  # only ever handed to the role
SECRET = "00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff"
KEYS = [{"id": 10, "type": "AES256", "secret": SECRET}, {"id": 11, "type": "AES128", "secret": UNUSED_SECRET}]

# A chronyd that serves NTS and shared keys, with certificates of an authority of its own; and the same unit with -x.
SET_UP = r"""
set -e
install -d -m 0755 /srv/time && cd /srv/time
new() { openssl req -quiet -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes "$@" 2>/dev/null \
     || openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes "$@" 2>/dev/null; }
for name in good foreign; do new -x509 -keyout $name.key -out $name.pem -days 2 -subj "/CN=$name"; done
new -keyout server.key -out server.csr -subj /CN=ntp.test
printf 'subjectAltName=DNS:ntp-a.test,DNS:ntp-b.test\n' >names
openssl x509 -req -in server.csr -CA good.pem -CAkey good.key -CAcreateserial -days 2 -extfile names -out server.pem 2>/dev/null
echo "10 AES256 HEX:$1" >keys
cat >server.conf <<END
port 11123
ntsport 14460
ntsserverkey /srv/time/server.key
ntsservercert /srv/time/server.pem
keyfile /srv/time/keys
local stratum 3
allow 127.0.0.0/8
cmdport 0
bindcmdaddress /
pidfile /srv/time/server.pid
END
chown -R _chrony: /srv/time
grep -q ntp-a.test /etc/hosts || printf '127.0.0.1 ntp-a.test\n127.0.0.2 ntp-b.test\n127.0.0.3 ntp-c.test\n' >>/etc/hosts
systemd-run --quiet --collect --unit=time-server chronyd -x -d -f /srv/time/server.conf
mkdir -p /run/systemd/system/chrony.service.d
cat >/run/systemd/system/chrony.service.d/99-observe.conf <<'END'
[Unit]
ConditionCapability=
[Service]
ExecStart=
ExecStart=!/usr/sbin/chronyd $DAEMON_OPTS -x
END
systemctl daemon-reload
"""
TEAR_DOWN = r"""
systemctl stop chrony time-server liars
rm -rf /srv/time /run/systemd/system/chrony.service.d
hosts=$(grep -v 'ntp-[abc].test' /etc/hosts); echo "$hosts" >/etc/hosts
systemctl daemon-reload
"""

# Servers on 127.0.0.1 to 127.0.0.3 that prove themselves with a shared key and are off by what /srv/time/off-<address> says.
LIARS = r"""
import hashlib, pathlib, selectors, socket, struct, sys, time
key = bytes.fromhex(sys.argv[1])
def stamp(seconds):
    return struct.pack("!Q", int((seconds + 2208988800) * 2**32))
ready = selectors.DefaultSelector()
for address in ("127.0.0.1", "127.0.0.2", "127.0.0.3"):
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.bind((address, 12000))
    ready.register(sock, selectors.EVENT_READ, f"/srv/time/off-{address}")
while True:
    for event, _mask in ready.select():
        asked, asker = event.fileobj.recvfrom(1024)
        now = time.time() + float(pathlib.Path(event.data).read_text())
        said = struct.pack("!BBbb3I", 0x24, 2, asked[2], -20, 0, 0, 0x54455354)
        said += stamp(now - 1) + asked[40:48] + stamp(now) + stamp(now)
        event.fileobj.sendto(said + struct.pack("!I", 20) + hashlib.sha256(key + said).digest()[:20], asker)
"""


class Clock:
    """chronyd on the host under test, with the sources of a test."""

    def __init__(self, host, target):
        """Keep the host and how to apply the role to it."""
        self.host, self.target = host, target
        self.applied: dict = {}
        self.good = host.file("/srv/time/good.pem").content_string
        self.foreign = host.file("/srv/time/foreign.pem").content_string

    def follow(self, *sources: dict, **variables) -> None:
        """Apply the role with these sources, unless that was the last thing done; chronyd then starts with an empty memory."""
        wanted = {"time_sync_sources": list(sources), **variables}
        if self.applied != wanted:
            self.target.reapply(**wanted)
        self.applied = wanted

    def edit(self, script: str) -> None:
        """Change the configuration by a sed script, as somebody with an editor would, and start chronyd anew."""
        self.applied = {}
        self.host.check_output("sed -i %s /etc/chrony.bulwark.conf && systemctl restart chrony", script)

    def follow_nts(self, anchor: str) -> None:
        """Follow two NTS servers, trusting one authority."""
        self.follow({"name": "ntp-a.test", **NTS}, {"name": "ntp-b.test", **NTS}, time_sync_trust_anchors=[anchor])

    def report(self, name: str) -> list[list[str]]:
        """Return the rows of one of chronyc's reports."""
        return [line.split(",") for line in self.host.check_output(f"chronyc -c -N {name}").splitlines()]

    def synchronised(self, seconds: int = 45) -> bool:
        """Wait until chronyd follows a source; return whether it does."""
        return self.host.run(f"chronyc waitsync {seconds} 0 0 1").rc == 0

    def offset(self) -> float:
        """Return by how many seconds the clock was off at the last update."""
        return float(self.report("tracking")[0][5])

    def log(self) -> str:
        """Return what chronyd said since it last started."""
        return self.host.check_output("journalctl -o cat -u chrony _PID=$(cat /run/chrony/chronyd.pid)")


@pytest.fixture(scope="module")
def clock(host, target):
    """Servers, and a chronyd that asks them; both gone afterwards."""
    host.check_output("sh -c %s - %s", SET_UP, SECRET)
    yield Clock(host, target)
    host.run("sh -c %s", TEAR_DOWN)
    target.reapply()


def test_clock_is_observed_honestly(host):
    """This clock cannot be set from here, not even by root; chronyd knows and does not pretend to keep it."""
    assert "not permitted" in host.run("date --set @0").stderr
    assert host.service("chrony").is_enabled
    assert not host.service("chrony").is_running
    assert host.check_output("systemctl show -p ConditionResult --value chrony") == "no"


def test_other_time_daemons_neither_run_nor_start(host):
    """The daemon that was there is gone, and starting another fails."""
    assert not host.package("systemd-timesyncd").is_installed
    assert host.run("pgrep -x ntpd").rc == 1
    for name in ("ntpd", "systemd-timesyncd", "ntpsec", "openntpd"):
        done = host.run(f"systemctl start {name}")
        assert done.rc != 0
        assert "masked" in done.stderr


def test_authenticated_sources_are_followed(clock):
    """Servers that an own authority vouches for are believed, both by NTS, and one is selected."""
    clock.follow_nts(clock.good)
    assert clock.synchronised()
    assert sorted(row[:2] for row in clock.report("authdata")) == [["ntp-a.test", "NTS"], ["ntp-b.test", "NTS"]]
    chosen = [row for row in clock.report("selectdata") if row[0] == "*"]
    assert [row[2] for row in chosen] == ["Y"]
    assert abs(clock.offset()) < 1
    assert clock.report("tracking")[0][13] == "Normal"


def test_sources_are_asked_at_the_agreed_pace(clock):
    """After the first few answers nobody is asked again for a while."""
    clock.follow_nts(clock.good)
    assert clock.synchronised()
    time.sleep(15)
    for row in clock.report("sources"):
        assert 6 <= int(row[4]) <= 10
        assert int(row[6]) >= 8, "asked again within 8 seconds"


def test_neighbour_gets_no_answer(clock, host, target):
    """With chronyd running, a stranger on the network gets neither the time nor an answer to a command."""
    clock.follow_nts(clock.good)
    assert clock.synchronised()
    for port, question in ((123, b"\x23" + 47 * b"\0"), (323, b"\x06\x01\0\0\0\x21" + 98 * b"\0")):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger:
            stranger.settimeout(2)
            stranger.connect((target.address, port))
            with pytest.raises((TimeoutError, ConnectionRefusedError)):
                stranger.send(question)
                stranger.recv(512)
    assert host.check_output("ss -Huln '( sport = :123 or sport = :323 )'") == ""


def test_vendor_pool_and_dhcp_add_no_source(clock, host):
    """Neither the package's pool, nor a lease, nor a file dropped beside it brings a source of its own."""
    assert host.file("/etc/chrony/chrony.conf").contains("^pool ")
    clock.follow_nts(clock.good)
    host.check_output("mkdir -p /run/chrony-dhcp; for directory in /run/chrony-dhcp /etc/chrony/sources.d; do "
                      "echo 'server 127.0.0.3 iburst' >$directory/rogue.sources; done; "
                      "echo 'server 127.0.0.4' >/etc/chrony/conf.d/rogue.conf")  # fmt: skip
    try:
        host.check_output("systemctl restart chrony && chronyc reload sources")
        assert clock.synchronised()
        assert sorted(row[2] for row in clock.report("sources")) == ["ntp-a.test", "ntp-b.test"]
    finally:
        host.check_output("rm -rf /run/chrony-dhcp /etc/chrony/sources.d/rogue.sources /etc/chrony/conf.d/rogue.conf")


def test_unauthenticated_server_is_refused(clock):
    """A server that answers, but cannot prove who it is, is not followed even if there is no other."""
    clock.follow_nts(clock.good)
    clock.edit("s/ nts ntsport 14460//")
    assert not clock.synchronised(12)
    assert all(int(row[5], 8) > 0 for row in clock.report("sources")), "the servers must have answered"
    clock.edit("s/^authselectmode.*/authselectmode mix/")
    assert clock.synchronised()  # so nothing but that line kept them out


def test_server_with_a_foreign_certificate_is_refused(clock):
    """A server that only a stranger vouches for is not even asked for the time, although it was believed before."""
    clock.follow_nts(clock.good)
    assert clock.synchronised()
    clock.follow_nts(clock.foreign)
    assert not clock.synchronised(12)
    assert [row[5] for row in clock.report("sources")] == ["0", "0"]
    assert "certificate" in clock.log().lower()


def test_unprivileged_user_can_neither_change_nor_read(clock, person, host):
    """Somebody with an account can neither edit the configuration, nor command chronyd, nor read its keys."""
    clock.follow(*KEYED, time_sync_keys=KEYS)
    person("mallory")
    for attempt in (
        "echo server ntp.elsewhere.example >>/etc/chrony.bulwark.conf",
        "echo DAEMON_OPTS= >/etc/chrony.bulwark.env",
        "cat /etc/chrony.bulwark.keys",
        "chronyc makestep",
        "chronyc add server ntp.elsewhere.example",
    ):
        done = host.run("su mallory -c %s", attempt)
        assert done.rc != 0, attempt
        assert UNUSED_SECRET not in done.stdout
    keys = host.file("/etc/chrony.bulwark.keys")
    assert (keys.user, keys.group, keys.mode) == ("root", "_chrony", 0o640)
    assert UNUSED_SECRET in keys.content_string
    # Applying the role did not write it to the log. (The brackets keep the search from finding itself there.)
    assert host.run("journalctl --no-pager | grep %s", f"[{UNUSED_SECRET[0]}]{UNUSED_SECRET[1:]}").rc == 1


def test_wrong_shared_key_is_refused(clock):
    """A server that knows the shared key is followed; with another key it answers in vain."""
    clock.follow(*KEYED, time_sync_keys=KEYS)
    assert clock.synchronised()
    clock.follow(*KEYED, time_sync_keys=[{"id": 10, "type": "AES256", "secret": SECRET[::-1]}])
    assert not clock.synchronised(12)
    assert clock.report("tracking")[0][13] == "Not synchronised"


def test_late_jump_of_all_sources_is_not_followed(clock, host):
    """One source that lies is outvoted; when all of them lie after the clock was right, it stays as it is."""
    for address, seconds in (("127.0.0.1", 0), ("127.0.0.2", 0), ("127.0.0.3", 3600)):
        host.check_output(f"echo {seconds} >/srv/time/off-{address}")
    host.check_output("systemd-run --quiet --collect --unit=liars python3 -c %s %s", LIARS, SECRET)
    clock.follow(*({"name": f"ntp-{name}.test", "port": 12000, "key": 20} for name in "abc"),
                 time_sync_keys=[{"id": 20, "type": "SHA256", "secret": SECRET}])  # fmt: skip
    clock.edit("s/minpoll 6 maxpoll 10/minpoll 0 maxpoll 0/")
    assert clock.synchronised()
    time.sleep(5)
    assert {row[1]: row[0] for row in clock.report("selectdata")}["ntp-c.test"] == "x"  # a falseticker
    assert abs(clock.offset()) < 1

    host.check_output("for file in /srv/time/off-*; do echo 7200 >$file; done")
    for _second in range(40):
        if "exceeds the allowed maximum" in clock.log():
            break
        time.sleep(1)
    assert re.search(r"exceeds the allowed maximum of 1000(\.0+)? seconds \(ignored\)", clock.log())
    assert abs(clock.offset()) < 1

    host.check_output("systemctl restart chrony")  # the same servers are followed by one that was never right
    assert clock.synchronised()
    assert abs(clock.offset()) > 7000


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({"time_sync_sources": [{"name": "a.example", "nts": False}, {"name": "b.example"}]}, "MA-12.1"),
        ({"time_sync_sources": [{"name": "a.example", "key": 3}, {"name": "b.example"}]}, "a.example"),
    ],
)
def test_source_that_cannot_prove_itself_is_refused_before_anything_changes(host, target, variables, said):
    """A source without NTS and without a known key never reaches the host (single wrong values: the unit tests)."""
    before = host.check_output("sha256sum /etc/chrony.bulwark.*")
    with pytest.raises(pytest.fail.Exception, match=said):
        target.reapply(**variables)
    assert host.check_output("sha256sum /etc/chrony.bulwark.*") == before


def test_upgrade_of_the_package_changes_nothing(host):
    """No file of the package was edited, so installing it anew asks nothing and leaves the role's configuration in force."""
    assert host.check_output("dpkg --verify chrony") == ""
    host.check_output("DEBIAN_FRONTEND=noninteractive apt-get install -y --reinstall chrony")
    assert host.check_output("dpkg --verify chrony") == ""
    assert "/etc/chrony.bulwark.env" in host.check_output("systemctl show -p EnvironmentFiles chrony").splitlines()[-1]


def test_all_can_be_taken_back(host, target):
    """With `time_sync_state: absent` the former daemons are back, and nothing of the role is left."""
    target.reapply(time_sync_state="absent")
    try:
        assert host.package("systemd-timesyncd").is_installed
        assert host.service("systemd-timesyncd").is_enabled
        assert not host.package("chrony").is_installed
        assert host.file("/etc/systemd/system/ntpd.service").contains("ExecStart=/usr/local/sbin/ntpd")
        assert host.check_output("find /etc -name '*bulwark*'") == ""
        assert not host.file("/etc/chrony.bulwark.replaced").exists
    finally:
        target.reapply()
    assert host.package("chrony").is_installed
