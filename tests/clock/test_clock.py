# SPDX-License-Identifier: GPL-3.0-or-later
"""Wrong clocks that are put right, and right ones that nobody moves: time_sync on guests, whose clocks are their own.

The true time is this machine's. Two time servers stand on it in containers (tests/lab/time_service.py), outside of the guests'
kernels. Debian 12 starts an hour slow, Debian 13 a hundred seconds fast; both get the role while their clocks are wrong.
"""

from __future__ import annotations

import dataclasses
import datetime
from collections.abc import Iterator

import guests
import machines
import pytest
import time_service

STARTS = {"clock-12": ("debian12", -3600), "clock-13": ("debian13", 100)}
SERVERS = {"ntp-a.test": "clock-time-a", "ntp-b.test": "clock-time-b"}
JUMP = 60  # time_sync_max_change_seconds of these hosts: more than that is refused once the clock was right
CONFIG = "/etc/chrony.bulwark.conf"


def shift_clock(seconds: float) -> str:
    """Return the shell command that moves the clock."""
    return f"python3 -c 'import time; time.clock_settime(time.CLOCK_REALTIME, time.time() + {seconds})'"


@dataclasses.dataclass
class Clocks:
    """The guests, how far off their clocks were before the role came, and their evidence afterwards."""

    fleet: guests.Fleet
    before: dict[str, float]
    records: dict[str, dict]
    foreign: str  # certificate of an authority that vouches for nobody here

    def each(self, do) -> dict:
        """Do something on all guests side by side and return the results by guest."""
        return dict(zip(STARTS, guests.together(lambda name: do(self.fleet.hosts[name]), STARTS), strict=True))

    def errors(self) -> dict[str, float]:
        """Return how far off each clock is, in seconds."""
        return self.each(lambda host: host.clock_error())

    def start_anew(self, *, off: float, edit: str = "true") -> None:
        """Set all clocks wrong by ``off`` seconds, edit the configuration, and start chronyd, which forgets all it learnt."""
        script = (
            f"systemctl stop chrony; rm -f /var/lib/chrony/*; test -e {CONFIG}.kept || cp -a {CONFIG} {CONFIG}.kept; "
            f"cp -a {CONFIG}.kept {CONFIG}; {edit}; "
        )

        def restart(host):
            host.out(f"{script} {shift_clock(off - host.clock_error())}; systemctl start chrony")

        self.each(restart)

    def believed(self, seconds: int) -> dict[str, bool]:
        """Wait until chronyd follows a source on all guests; return where it does."""
        return self.each(lambda host: host.run(f"chronyc waitsync {seconds} 0 0 1").returncode == 0)

    def statuses(self) -> dict[str, str]:
        """Return what the evidence says of the guests' clocks."""
        records = self.fleet.assess("guests", "time_sync")
        return {name: control["status"] for name, record in records.items() for control in record["controls"]
                if control["id"] == "time_sync.synchronised"}  # fmt: skip


@pytest.fixture(scope="module")
def clocks(tmp_path_factory) -> Iterator[Clocks]:
    """Boot the guests with wrong clocks, apply the role, and look."""
    directory = tmp_path_factory.mktemp("clock")
    authority = time_service.make_authority(directory / "authority", *SERVERS)
    foreign = time_service.make_authority(directory / "foreign", *SERVERS)
    machines.build_images(["debian12"])
    machines.build_guest_images([platform for platform, _off in STARTS.values()])
    with guests.fleet(directory) as fleet:

        def start(name: str) -> guests.Host | str:
            if name in STARTS:
                platform, off = STARTS[name]
                begin = datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=off)
                return fleet.start_guest(name, platform, clock=f"{begin:%Y-%m-%dT%H:%M:%S}")
            server = fleet.start_container(SERVERS[name], "debian12")
            time_service.serve(server.name, directory / "authority")
            return server

        started = dict(zip([*STARTS, *SERVERS], guests.together(start, [*STARTS, *SERVERS]), strict=True))
        names = "\n".join(f"{started[name].address} {name}" for name in SERVERS)
        for name in STARTS:
            fleet.add(started[name], "guests").out(f"echo '{names}' >>/etc/hosts")
        before = {name: fleet.hosts[name].clock_error() for name in STARTS}
        fleet.variables = {
            "time_sync_sources": [{"name": name} for name in SERVERS],
            "time_sync_trust_anchors": [authority],
            "time_sync_keys": [{"id": 10, "type": "SHA256", "secret": (directory / "authority" / "shared.key").read_text()}],
            "time_sync_max_change_seconds": JUMP,
        }
        (directory / "vars.yml").write_text("{}")
        fleet.ansible("ansible-playbook", str(guests.ROOT / "molecule" / "shared" / "converge.yml"),
                      targets="guests", role="time_sync", scenario_dir=str(directory))  # fmt: skip
        made = Clocks(fleet, before, {}, foreign)
        assert all(made.believed(60).values()), made.each(lambda host: host.out("journalctl -o cat -n 4 -u chrony"))
        made.records = fleet.assess("guests", "time_sync")
        yield made


def test_wrong_clock_is_put_right_by_the_role(clocks):
    """An hour slow and a hundred seconds fast: both were so when the role came, and both are right now, by its own doing."""
    assert {name: round(off) // 10 * 10 for name, off in clocks.before.items()} in (
        {"clock-12": -3600, "clock-13": 100}, {"clock-12": -3610, "clock-13": 100}, {"clock-12": -3600, "clock-13": 90},
        {"clock-12": -3610, "clock-13": 90})  # fmt: skip
    assert all(abs(off) < 1 for off in clocks.errors().values()), clocks.errors()
    said = clocks.each(lambda host: host.out("journalctl -o cat -u chrony"))
    assert all("System clock was stepped by" in text for text in said.values()), said
    servers = clocks.each(lambda host: host.out("chronyc -c -N authdata"))
    assert all([line.split(",")[1] for line in text.splitlines()] == ["NTS", "NTS"] for text in servers.values()), servers


def test_evidence_says_how_far_off_the_clock_is(clocks):
    """All controls of the role are met, and the record tells offset, source and when, so that events can be put in order."""
    for name, record in clocks.records.items():
        assert {control["id"]: control["status"] for control in record["controls"] if control["status"] != "pass"} == {}, name
        clock = record["clock"]
        assert clock["synchronised"] is True
        assert clock["source"] in SERVERS
        assert 0 <= clock["offset_seconds"] < 1
        assert clock["at"] == record["observed_at"]


@pytest.mark.parametrize("off", [-3600, 100])
def test_clock_wrong_at_a_later_start_is_put_right(clocks, off):
    """The same on both releases for both errors, when chronyd starts on a host that the role was applied to before."""
    clocks.start_anew(off=off)
    assert all(clocks.believed(60).values())
    assert all(abs(error) < 1 for error in clocks.errors().values()), clocks.errors()


# How the configuration would have to be, for each, to be asking such a server; the role's own is put back afterwards.
ATTACKS = {
    "a server whose certificate is somebody else's": "cp /etc/chrony.foreign.pem /etc/chrony.bulwark.pem",
    "a server that proves nothing": f"sed -i 's/ nts / /' {CONFIG}",
    "a server without the shared key": f"sed -i 's/ nts / port {time_service.LIAR_PORT} key 11 /' {CONFIG}; "
    f"printf '11 SHA256 HEX:{'ab' * 32}\\n' >>/etc/chrony.bulwark.keys",
}


@pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS)
def test_server_that_cannot_prove_itself_moves_nothing(clocks, attack):
    """A wrong clock stays as it is rather than follow a stranger, and the control says that it is not synchronised."""
    clocks.each(lambda host: host.out(
        f"cat >/etc/chrony.foreign.pem <<'END'\n{clocks.foreign}END\n"
        "for f in pem keys; do test -e /root/$f || cp -a /etc/chrony.bulwark.$f /root/$f; done"))  # fmt: skip
    clocks.start_anew(off=100, edit=attack)
    try:
        assert not any(clocks.believed(15).values())
        assert all(abs(error - 100) < 5 for error in clocks.errors().values()), clocks.errors()
        assert clocks.statuses() == dict.fromkeys(STARTS, "fail")
    finally:
        clocks.each(lambda host: host.out("for f in pem keys; do cp -a /root/$f /etc/chrony.bulwark.$f; done"))
        clocks.start_anew(off=0)


def test_jump_of_all_servers_is_not_followed(clocks):
    """Servers with the key are followed; when all of them jump by a hundred seconds later, the clock stays right."""
    for server in SERVERS.values():
        time_service.lie(server, 0)
    clocks.start_anew(
        off=30, edit=f"sed -i 's/ nts .*/ port {time_service.LIAR_PORT} key 10 iburst minpoll 0 maxpoll 0/' {CONFIG}"
    )
    try:
        assert all(clocks.believed(60).values())
        assert all(abs(error) < 1 for error in clocks.errors().values()), clocks.errors()
        for server in SERVERS.values():
            time_service.lie(server, 100)
        refused = f"exceeds the allowed maximum of {JUMP}"
        clocks.each(lambda host: guests.until(
            lambda: refused in host.out("journalctl -o cat -u chrony --since -1min"), 60, f"{host.name}: {refused}"))  # fmt: skip
        assert all(abs(error) < 1 for error in clocks.errors().values()), clocks.errors()
    finally:
        for server in SERVERS.values():
            time_service.lie(server, 0)
        clocks.start_anew(off=0)


def test_clock_years_slow_is_not_put_right_and_says_so(clocks):
    """With an empty battery no certificate is valid yet, so nobody is believed; set about right by hand, the clock recovers."""
    years = -8 * 365 * 86400
    clocks.start_anew(off=years)
    assert not any(clocks.believed(15).values())
    assert all(abs(error - years) < 5 for error in clocks.errors().values()), clocks.errors()
    why = clocks.each(lambda host: host.out("journalctl -o cat -u chrony _PID=$(cat /run/chrony/chronyd.pid)"))
    assert all("not yet" in text for text in why.values()), why
    assert clocks.statuses() == dict.fromkeys(STARTS, "fail")
    clocks.start_anew(off=-7200)
    assert all(clocks.believed(60).values())
    assert all(abs(error) < 1 for error in clocks.errors().values()), clocks.errors()
