# SPDX-License-Identifier: GPL-3.0-or-later
"""The trail from end to end: what people and attackers do on hosts with kernels of their own, as the collector has it.

Debian 12 and 13 are guests with audit_log, log_forward and time_sync; a container collects and reviews. All tests share these
machines and go from what is ordinary to what breaks things: people at work, root who wants no witness, then outages, kills and a
power cut.
"""

from __future__ import annotations

import dataclasses
import datetime
import json
import os
import re
import shlex
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import guests
import machines
import pytest
import time_service

HOSTS = {"trail-12": "debian12", "trail-13": "debian13"}
COLLECTOR = "trail-collector"
SERVERS = {"ntp-a.test": "trail-time-a", "ntp-b.test": "trail-time-b"}
STORE = "/var/log/bulwark-trail"
REVIEW = "/usr/local/lib/bulwark/trail_review"
HEARTBEAT, WATCH, SILENT = 60, 5, 2  # seconds, seconds, minutes; a heartbeat costs an emulated processor seconds
SYNC = 2  # log_forward_sync_seconds: what was written longer ago than that survives a power cut
PASSWORD = "correct-horse-battery"
EVENTS = 10000  # numbered ones, on each host

# Who works on the hosts: Alice with a key, a password and sudo; what she is not to read, and a disk to mount.
PEOPLE = f"""
useradd --create-home --shell /bin/bash --groups sudo alice
echo 'alice:{PASSWORD}' | chpasswd
printf 'alice ALL=(ALL:ALL) NOPASSWD: ALL\\n' >/etc/sudoers.d/91-alice
install -d -m 0700 -o alice -g alice /home/alice/.ssh
cp /home/deploy/.ssh/authorized_keys /home/alice/.ssh/
chown alice: /home/alice/.ssh/authorized_keys
install -d -m 0700 /srv/patients
echo 'name,diagnosis' >/srv/patients/1.txt
mkfs.ext4 -q /dev/vdb
"""


@dataclasses.dataclass
class Trail:
    """The machines, and how the collector is asked."""

    fleet: guests.Fleet

    def __getitem__(self, name: str) -> guests.Host:
        return self.fleet.hosts[name]

    @property
    def collector(self) -> guests.Host:
        """The machine that keeps and reviews."""
        return self.fleet.hosts[COLLECTOR]

    def each(self, do) -> dict:
        """Do something on both hosts side by side and return the results by host."""
        return dict(zip(HOSTS, guests.together(lambda name: do(self[name]), HOSTS), strict=True))

    def query(self, host: str, *options: str) -> list[dict]:
        """Ask the collector as its operators do, and return what it knows of a host in the last hours."""
        command = f"sudo -u bulwark-review {REVIEW} query --since 3h --host {host} --format json {shlex.join(options)}"
        done = subprocess.run([*self.collector.ssh(), command], check=False, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def found(self, host: str, what: dict, *options: str, seconds: float = 60) -> dict:
        """Wait until the collector knows of an event with these fields (patterns, or None for "anything but nothing")."""

        def fits(event: dict) -> bool:
            for name, wanted in what.items():
                value = " ".join(event[name]) if isinstance(event[name], list) else str(event[name])
                if not (value if wanted is None else re.search(wanted, value)):
                    return False
            return True

        return guests.until(
            lambda: next((event for event in self.query(host, *options) if fits(event)), None), seconds, f"{host}: {what}", 3
        )

    def deed(self, host: str, deed: str) -> dict:
        """Wait until the collector knows of a deed, and return what it knows."""
        return self.found(host, DEEDS[deed], "--kind", DEEDS[deed]["kind"])

    def alarms(self) -> list[dict]:
        """Return what the review has raised so far."""
        return [json.loads(line) for line in self.collector.out("cat /var/lib/bulwark/trail-review/alerts/*").splitlines()]

    def alarm(self, host: str, *rules: str, since: float, seconds: float = 90) -> dict:
        """Wait until the review has raised one of these rules for a host since a moment; return the alarm."""
        begin = datetime.datetime.fromtimestamp(since, datetime.UTC).strftime("%Y-%m-%dT%H:%M:%S")

        def raised() -> dict | None:
            for alarm in self.alarms():
                if alarm["rule"] in rules and alarm["event"]["host"] == host and alarm["raised"] >= begin:
                    return alarm
            return None

        return guests.until(raised, seconds, f"{host}: one of {rules}", 3)

    def lines(self, host: str, tag: str) -> list[dict]:
        """Return all lines of the store that carry a tag, also those that came twice, in the order received."""
        script = f'cat {STORE}/{host}/*.jsonl | grep -F \'"SYSLOG_IDENTIFIER":"{tag}"\' || true'
        return [json.loads(line) for line in self.collector.out(script).splitlines()]


@pytest.fixture(scope="module")
def trail(tmp_path_factory) -> Iterator[Trail]:
    """Boot everything, once, and apply the roles."""
    directory = tmp_path_factory.mktemp("trail")
    authority = time_service.make_authority(directory / "authority", *SERVERS)
    machines.build_images(["debian12"])
    machines.build_guest_images(list(HOSTS.values()))
    with guests.fleet(directory) as fleet:

        def start(name: str) -> guests.Host:
            if name in HOSTS:
                disk = directory / f"{name}.img"
                disk.touch()
                os.truncate(disk, 64 << 20)
                return fleet.start_guest(name, HOSTS[name], "-drive", f"file={disk},if=virtio,format=raw")
            host = fleet.start_container(name, "debian12")
            if name in SERVERS.values():
                time_service.serve(name, directory / "authority")
            return host

        names = [*HOSTS, COLLECTOR, *SERVERS.values()]
        started = dict(zip(names, guests.together(start, names), strict=True))
        known = "\n".join(f"{started[container].address} {name}" for name, container in SERVERS.items())
        guests.together(lambda name: started[name].out(f"echo '{known}' >>/etc/hosts\n{PEOPLE}"), HOSTS)
        for name in HOSTS:
            fleet.add(started[name], "guests")
        fleet.add(started[COLLECTOR], "collector").out("useradd --create-home rita")
        fleet.variables = {
            "time_sync_sources": [{"name": name} for name in SERVERS],
            "time_sync_trust_anchors": [authority],
            "log_forward_collector": COLLECTOR,
            "log_forward_collector_address": started[COLLECTOR].address,
            "log_forward_heartbeat_seconds": HEARTBEAT,
            "log_forward_sync_seconds": SYNC,
            "log_collector_hosts": [*HOSTS, COLLECTOR],
            "log_collector_addresses": [started[COLLECTOR].address],
            "log_collector_retention_approver": "Director of the clinic",
            "log_review_reviewers": ["rita"],
            "log_review_hosts": [{"name": name, "class": "server"} for name in HOSTS],
            "log_review_silent_minutes": SILENT,
            "log_review_watch_seconds": WATCH,
            "audit_log_sensitive_paths": ["/srv/patients"],
            "log_review_sensitive_paths": ["/srv/patients"],
        }
        fleet.ansible("ansible-playbook", str(Path(__file__).with_name("site.yml")))
        yield Trail(fleet)


# ---------------------------------------------------------------------------------------------------------------
# People at work


def log_in(host: guests.Host, command: str, *, password: str = "") -> subprocess.CompletedProcess:
    """Log in as Alice with a terminal, and run a command; with her key, or with a password."""
    if not password:
        return subprocess.run([*host.ssh("-tt", user="alice"), command], check=False, capture_output=True, text=True, timeout=120,
                              stdin=subprocess.DEVNULL)  # fmt: skip
    helper = Path(host.key).with_name(f"askpass-{host.name}")
    helper.write_text(f"#!/bin/sh\necho {password}\n")
    helper.chmod(0o700)
    settings = {**os.environ, "SSH_ASKPASS": str(helper), "SSH_ASKPASS_REQUIRE": "force"}
    options = ("-o", "PreferredAuthentications=password", "-o", "NumberOfPasswordPrompts=1")
    return subprocess.run([*host.ssh(*options, user="alice"), command], check=False, capture_output=True, text=True, timeout=120,
                          stdin=subprocess.DEVNULL, env=settings)  # fmt: skip


WORK = """sudo sh -c '
useradd mallory
echo "# changed" >>/etc/hosts.allow
cat /srv/patients/1.txt
mount /dev/vdb /mnt
umount /mnt
modprobe dummy
date --set=+1sec
'; cat /srv/patients/1.txt"""

# What was done, and how the collector must know it: by whom, although it was done as root; from where; to what; how it ended.
ALICE = {"time": None, "host": None, "person": "^alice$", "source": r"^10\.0\.2\.2$"}
AS_ROOT = {**ALICE, "uid": "^root$", "terminal": "pts", "result": "success"}
DEEDS = {
    "login": {**ALICE, "kind": "login", "result": "success"},
    "failed login": {**ALICE, "kind": "login", "result": "failed"},
    # As audit has it: of a program that has ended, journald cannot see any more whose it was; and sudo itself knows no address.
    "sudo": {**ALICE, "kind": "command", "terminal": "pts", "result": "success", "objects": "sh -c"},
    "account": {**AS_ROOT, "kind": "audit_account", "objects": "mallory"},
    "watched edit": {**AS_ROOT, "kind": "configuration", "objects": "/etc/hosts.allow"},
    "sensitive read": {**AS_ROOT, "kind": "sensitive", "objects": "/srv/patients/1.txt"},
    "denied read": {**ALICE, "kind": "sensitive", "uid": "^alice$", "terminal": "pts", "objects": "/srv/patients/1.txt",
                    "result": "failed"},
    "mount": {**AS_ROOT, "kind": "mount", "objects": "/dev/vdb|/mnt"},
    "module": {**AS_ROOT, "kind": "module", "objects": "dummy"},
    "clock": {**AS_ROOT, "kind": "time"},
}  # fmt: skip


@pytest.fixture(scope="module")
def work(trail) -> dict[str, str]:
    """Let Alice work on both hosts, and wait until all of it must have arrived; return what she saw."""
    seen = trail.each(lambda host: log_in(host, WORK).stdout)
    refused = trail.each(lambda host: log_in(host, "true", password="wrong").returncode)
    assert set(refused.values()) == {255}
    admitted = trail.each(lambda host: log_in(host, "true", password=PASSWORD).returncode)
    assert set(admitted.values()) == {0}
    return seen


@pytest.mark.parametrize("deed", DEEDS)
@pytest.mark.parametrize("name", HOSTS)
def test_what_people_do_is_found_on_the_collector(trail, work, name, deed):
    """Each deed is there with time, host, the real person (not root), terminal or address, object and result."""
    assert "name,diagnosis" in work[name]
    event = trail.deed(name, deed)
    assert event["host"] == name


def test_a_journal_that_comes_late_costs_no_address(trail, work):
    """What sudo says itself is read after its end, so that journald finds no session; audit's record of it has the address."""
    stopped = "systemctl kill --kill-whom=main --signal={} systemd-journald.service"
    trail.each(lambda host: host.out(stopped.format("STOP")))
    ended = trail.each(lambda host: log_in(host, "sudo echo read-too-late").stdout.strip())
    trail.each(lambda host: host.out(stopped.format("CONT")))
    assert set(ended.values()) == {"read-too-late"}
    for name in HOSTS:
        said = trail.found(name, {"person": "^alice$", "uid": "^root$", "objects": "read-too-late"}, "--kind", "sudo")
        assert said["source"] == ""
        trail.found(name, {**DEEDS["sudo"], "objects": "read-too-late"}, "--kind", "command")


# ---------------------------------------------------------------------------------------------------------------
# Root who wants no witness


def test_rules_cannot_be_flushed_and_auditd_not_quietly_stopped(trail):
    """Rules stay whatever root tries, stopping the daemon is refused or undone, and the attempt is known elsewhere."""
    begin = time.time()

    def attack(host: guests.Host) -> tuple[list[str], list[str]]:
        before = host.out("auditctl -l").splitlines()
        log_in(host, "sudo auditctl -D; sudo auditctl -e 0; sudo systemctl stop auditd; sudo pkill -TERM -x auditd; "
                     "sudo systemctl kill -s TERM auditd")  # fmt: skip
        return before, host.out("auditctl -l").splitlines()

    for name, (before, after) in trail.each(attack).items():
        assert len(before) > 5, name
        assert after == before, name
        trail.alarm(name, "audit_stopped", "audit_rules", "recorder_stopped", "log_tool", since=begin)


def test_what_is_deleted_here_stays_there(trail, work):
    """Local logs are deleted and emptied: the collector keeps what was in them, and says who did it."""
    begin = time.time()
    trail.each(lambda host: log_in(host, "sudo sh -c 'rm -f /var/log/audit/audit.log; : >/var/log/auth.log; journalctl --rotate; "
                                         "journalctl --vacuum-time=1s'"))  # fmt: skip
    for name in HOSTS:
        trail.alarm(name, "log_cleared", "journal_cleared", since=begin)
        assert trail.deed(name, "account")


def test_clock_set_back_is_raised(trail):
    """A clock set back by an hour is an alarm, and what follows is in the order of receipt all the same."""
    begin = time.time()
    trail.each(lambda host: log_in(host, "sudo date --set='-1 hour'"))
    for name in HOSTS:
        trail.alarm(name, "clock_jump", "time_set", since=begin)
    trail.each(lambda host: host.out("systemctl restart chrony; chronyc waitsync 60 0 0 1"))


def test_host_that_falls_silent_is_missed_within_minutes(trail):
    """Whoever stops the forwarder is noticed by the silence, and what happened meanwhile comes once it runs again.

    One host only: when all fall silent, it is the collector that hears nothing, and the alarm is another one.
    """
    name, begin = "trail-13", time.time()
    stop = "systemctl stop systemd-journal-upload.service"
    trail[name].out(f"{stop}; logger -t in-the-dark nobody sees this")
    trail.alarm(name, "host_silent", since=begin, seconds=SILENT * 60 + 90)
    assert not trail.lines(name, "in-the-dark")
    trail[name].out("systemctl start systemd-journal-upload.service")
    guests.until(lambda: trail.lines(name, "in-the-dark"), 60, f"{name}: what happened in the dark")
    others = [alarm for alarm in trail.alarms() if alarm["rule"] == "host_silent" and alarm["event"]["host"] != name]
    assert not others


# ---------------------------------------------------------------------------------------------------------------
# Outages, kills, a power cut


def numbered(first: int, last: int, tag: str = "trail-count") -> str:
    """Return a script that writes numbered events to the journal."""
    return f"seq -f 'number=%.0f' {first} {last} | systemd-cat -t {tag}"


def numbers(lines: list[dict]) -> Counter:
    """Return how often each number is in lines of the store."""
    return Counter(int(line["entry"]["MESSAGE"].removeprefix("number=")) for line in lines)


@dataclasses.dataclass
class Outage:
    """What became of numbered events: at the collector, and of those written right before the power cut, on the host."""

    arrived: dict[str, Counter]
    late_there: dict[str, set[int]]
    late_here: dict[str, set[int]]
    acknowledged: dict[str, int]  # number of the last line that the collector had of each host before the outage
    before: dict[str, list[str]]  # their chains


@pytest.fixture(scope="module")
def outage(trail) -> Outage:
    """Take the collector away, write events, kill the forwarder, cut the power, and let everything come back, killing again."""
    heads = {name: trail.lines(name, "bulwark-heartbeat")[-1] for name in HOSTS}
    trail.collector.out("systemctl kill -s KILL bulwark-trail.service; systemctl stop bulwark-trail.service")

    def suffer(host: guests.Host) -> None:
        third = EVENTS // 3
        host.out(numbered(1, third))
        host.run("systemctl kill -s KILL systemd-journal-upload.service")
        host.out(numbered(third + 1, 2 * third))
        # The journal reads them from a socket, on a busy machine a while later, and writes its pages every SYNC seconds.
        last = f"number={2 * third}"
        guests.until(lambda: host.out("journalctl -q -n 1 -o cat -t trail-count").strip() == last, 120, f"{host.name}: {last}")
        time.sleep(2 * SYNC + 5)
        # The connection is gone with the host: no answer is to be waited for.
        host.out(f"{numbered(1, 100, 'trail-late')}; sleep 0.2")
        host.guest.cut_power()
        time.sleep(1)
        host.guest.wait()
        host.out(numbered(2 * third + 1, EVENTS))

    trail.each(suffer)
    trail.collector.out("systemctl start bulwark-trail.service")
    time.sleep(4)
    trail.collector.out("systemctl kill -s KILL bulwark-trail.service")
    trail.each(lambda host: host.run("systemctl kill -s KILL systemd-journal-upload.service"))

    # As long as more arrives, slow is not lost.
    came, end = 0, time.monotonic() + 180
    while came < EVENTS * len(HOSTS) and time.monotonic() < end:
        time.sleep(5)
        now = sum(len(numbers(trail.lines(name, "trail-count"))) for name in HOSTS)
        if now > came:
            came, end = now, time.monotonic() + 180
    late = trail.each(lambda host: host.out("journalctl -o cat -t trail-late"))
    return Outage(
        arrived={name: numbers(trail.lines(name, "trail-count")) for name in HOSTS},
        late_there={name: set(numbers(trail.lines(name, "trail-late"))) for name in HOSTS},
        late_here={name: {int(line.removeprefix("number=")) for line in text.splitlines()} for name, text in late.items()},
        acknowledged={name: line["n"] for name, line in heads.items()},
        before={name: line["chain"] for name, line in heads.items()},
    )


@pytest.mark.parametrize("name", HOSTS)
def test_every_numbered_event_arrives(outage, name):
    """Nothing that the journal had on its disk is lost by outage, kills or power cut; what came twice is counted, not hidden."""
    missing = sorted(set(range(1, EVENTS + 1)) - set(outage.arrived[name]))
    assert not missing, f"{len(missing)} of {EVENTS}, first {missing[:5]}, last {missing[-5:]}"
    assert sum(outage.arrived[name].values()) == EVENTS, "the receiver drops what it has already"


@pytest.mark.parametrize("name", HOSTS)
def test_power_cut_loses_only_what_the_journal_had_not_synced(outage, name):
    """Of what was written right before the cut, the collector has what the host still has; both are a run from the first."""
    assert outage.late_there[name] == outage.late_here[name]
    assert outage.late_there[name] == set(range(1, len(outage.late_there[name]) + 1))


@pytest.mark.parametrize("name", HOSTS)
def test_what_was_acknowledged_is_still_there_unaltered(trail, outage, name):
    """The chain goes on over outage, kills and power cut, and holds."""
    lines = trail.collector.out(f"cat {STORE}/{name}/*.jsonl").splitlines()
    kept = {line["n"]: line["chain"] for line in map(json.loads, lines)}
    assert kept[outage.acknowledged[name]] == outage.before[name]
    assert sorted(kept) == list(range(1, len(lines) + 1))
    verified = trail.collector.run("/usr/local/lib/bulwark/trail_store verify --json")
    assert verified.returncode == 0, verified.stdout[-2000:]
