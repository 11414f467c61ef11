# SPDX-License-Identifier: GPL-3.0-or-later
"""Infected files that cannot be opened: role antivirus on guests, whose kernels are their own.

The guest is of the newer release, for one without a processor of its own is slow; BULWARK_RELEASES=both has one of each (stage
antivirus both). molecule/antivirus tries everything else on both.

Signatures come from a server on each guest itself (lab_signatures.py); what is infected is put together there, on the spot.
"""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Iterator
from pathlib import Path

import guests
import pytest

GUESTS = {"guard-12": "debian12", "guard-13": "debian13"}
if os.environ.get("BULWARK_RELEASES") != "both":
    del GUESTS["guard-12"]
KINDS = ("plain.com", "a.zip", "a.tar.gz", "nested.tar", "letter.eml")
QUARANTINE = "/var/lib/bulwark/quarantine"
TOOL = Path(__file__).with_name("lab_signatures.py")
VARIABLES = {
    "antivirus_official": False,
    "antivirus_custom_urls": ["http://127.0.0.1:8081/lab.ndb"],
    "antivirus_paths": ["/srv", "/home"],
    "antivirus_scan_paths": ["/opt"],
    "antivirus_memory_max_mib": 256,
    "antivirus_watch_seconds": 600,  # proofs start it themselves
}

# Eats memory as one of the scanner's processes.
HOG = """
import os
with open(f"/sys/fs/cgroup{os.environ['GROUP']}/cgroup.procs", "w") as stream:
    stream.write(str(os.getpid()))
eaten = [bytearray(b"x" * 1048576) for _turn in range(1024)]
"""


@dataclasses.dataclass
class Guards:
    """The guests."""

    fleet: guests.Fleet

    def each(self, do) -> dict:
        """Do something on all guests side by side and return the results by guest."""
        return dict(zip(GUESTS, guests.together(lambda name: do(self.fleet.hosts[name]), GUESTS), strict=True))

    def out(self, script: str) -> dict[str, str]:
        """Run a shell script as root on all guests and return what each said."""
        return self.each(lambda host: host.out(script))

    def statuses(self) -> dict[str, dict[str, str]]:
        """Return what the evidence says, by guest and control."""
        records = self.fleet.assess("guests", "antivirus")
        return {name: {one["id"]: one["status"] for one in record["controls"]} for name, record in records.items()}


def journal(host: guests.Host, tag: str, since: str) -> str:
    """Return what was said under a tag since a moment."""
    return host.out(f"journalctl --sync; journalctl -q -o cat -t {tag} --since {since}")


def heard(host: guests.Host, since: str, *words: str, tag: str = "bulwark-antivirus") -> None:
    """Wait until all of this was said under a tag since a moment."""
    guests.until(lambda: all(word in journal(host, tag, since) for word in words), 30, f"{host.name}: {tag} says {words}")


def now(host: guests.Host) -> str:
    """Return a moment in the journal's words."""
    return f"@{int(host.out('date +%s'))}"


def refused(host: guests.Host, command: str) -> bool:
    """Return whether the guard refuses a command a file: not its absence, not its permissions."""
    done = host.run(command)
    return done.returncode != 0 and "Operation not permitted" in done.stderr


def guarded(host: guests.Host) -> bool:
    """Return whether an infected file cannot be opened at this moment."""
    made = "python3 /opt/lab_signatures.py make /opt/in LAB-MALWARE-FIRST"
    host.out(f"{made}; rm -f /srv/probe; cp /opt/in/plain.com /srv/probe || true")
    answer = refused(host, "cat /srv/probe >/dev/null")
    host.out("rm -f /srv/probe")
    return answer


@pytest.fixture(scope="module")
def guards(tmp_path_factory) -> Iterator[Guards]:
    """Boot the guests, each with a source of signatures, and apply the role."""
    directory = tmp_path_factory.mktemp("antivirus")
    guests.machines.build_guest_images(list(GUESTS.values()))
    with guests.fleet(directory) as fleet:

        def start(name: str) -> guests.Host:
            host = fleet.start_guest(name, GUESTS[name])
            host.out(f"cat >/opt/lab_signatures.py <<'END'\n{TOOL.read_text()}\nEND\n"
                     "mkdir -p /opt/in /opt/signatures /srv/share; cd /opt\n"
                     "python3 lab_signatures.py sign signatures Lab.First LAB-MALWARE-FIRST\n"
                     "python3 lab_signatures.py sign signatures Lab.TestFile ''\n"
                     "systemd-run --quiet --unit=lab-signatures "
                     "python3 /opt/lab_signatures.py serve /opt/signatures 8081")  # fmt: skip
            return host

        for host in guests.together(start, GUESTS):
            fleet.add(host, "guests")
        fleet.variables = VARIABLES
        (directory / "vars.yml").write_text("{}")
        fleet.ansible("ansible-playbook", str(guests.ROOT / "molecule" / "shared" / "converge.yml"),
                      targets="guests", role="antivirus", scenario_dir=str(directory))  # fmt: skip
        yield Guards(fleet)


# How a file comes to be in /srv/share/DIRECTORY; what is infected lies in /opt/in, which nobody guards.
WAYS = {
    "written": "python3 /opt/lab_signatures.py make $to",
    "copied": "cp /opt/in/* $to",
    "moved": "cp -r /opt/in /opt/away; mv /opt/away/* $to; rmdir /opt/away",
    "unpacked from a tar": "tar cf - -C /opt/in . | tar xf - -C $to",
    "unpacked from a zip": "cd /opt/in; python3 -m zipfile -c /opt/all.zip *; python3 -m zipfile -e /opt/all.zip $to",
}


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_infected_file_cannot_be_opened_and_is_taken_away(guards, way):
    """The well-known test file, plain and packed: neither root nor anybody else can read it; it is taken away, and said."""

    def attack(host: guests.Host) -> None:
        since, to = now(host), "/srv/share/new"
        host.out(f"mkdir -p {to}; sleep 3; rm -f /opt/in/*; python3 /opt/lab_signatures.py make /opt/in; to={to}; {way}")
        for number, name in enumerate(KINDS):
            reader = ("cat", "setpriv --reuid=65534 --regid=65534 --clear-groups cat")[number % 2]
            host.out(f"chmod 0644 {to}/{name} 2>/dev/null || true")
            assert host.run(f"{reader} {to}/{name} >/dev/null").returncode != 0, (host.name, name)
        guests.until(lambda: host.out(f"ls {to}") == "", 30, f"{host.name}: nothing is left")
        heard(host, since, *(f"{to}/{name}: Lab.TestFile.UNOFFICIAL FOUND" for name in KINDS), tag="clamonacc")
        assert set(host.out(f"ls {QUARANTINE}").split()) >= set(KINDS)
        assert host.run(f"setpriv --reuid=65534 --regid=65534 --clear-groups ls {QUARANTINE}").returncode != 0
        host.out(f"rm -rf {to} {QUARANTINE}/*")

    guards.each(attack)


def test_infected_program_is_not_run(guards):
    """A script with something known in it does not run, neither for root nor for others; one without it does."""

    def attack(host: guests.Host) -> None:
        for mark, runs in (("LAB-MALWARE-FIRST", False), ("harmless", True)):
            for reader in ("", "setpriv --reuid=65534 --regid=65534 --clear-groups "):
                script = f"'#!/bin/sh\\necho it ran # {mark}\\n'"
                host.out(f"printf {script} >/opt/tool && install -m 0755 /opt/tool /srv/share/tool")
                done = host.run(f"{reader}/srv/share/tool")
                assert ("it ran" in done.stdout) is runs, (host.name, mark, done)
                host.out("rm -f /srv/share/tool")

    guards.each(attack)


def test_update_catches_what_could_be_opened_before(guards):
    """What is unknown opens; once the source has its signature and the update ran, it does not."""

    def attack(host: guests.Host) -> None:
        host.out("mkdir -p /srv/share/later; python3 /opt/lab_signatures.py make /srv/share/later LAB-MALWARE-SECOND; sleep 2")
        assert "SECOND" in host.out("cat /srv/share/later/plain.com")
        host.out("python3 /opt/lab_signatures.py sign /opt/signatures Lab.Second LAB-MALWARE-SECOND; "
                 "systemctl start bulwark-antivirus-update.service")  # fmt: skip
        guests.until(lambda: refused(host, "cat /srv/share/later/plain.com"), 30, f"{host.name}: the new signature is in force")
        host.out(f"rm -rf /srv/share/later {QUARANTINE}/*")

    guards.each(attack)


def test_killed_guard_and_scanner_come_back(guards):
    """Both are killed; both come back by themselves, and it is on record that they were away."""

    def attack(host: guests.Host) -> None:
        for unit in ("clamav-daemon.service", "bulwark-antivirus-onaccess.service"):
            since = now(host)
            host.out(f"kill -KILL $(systemctl show -p MainPID --value {unit})")
            guests.until(lambda: guarded(host), 60, f"{host.name}: guarded again after {unit} was killed")
            heard(host, since, f"event=stopped unit={unit} result=signal")

    guards.each(attack)


def test_without_the_scanner_files_are_open_and_that_is_said(guards):
    """With the scanner stopped for good the guard fails open. That is said at once, and again by each trial."""

    def attack(host: guests.Host) -> None:
        since = now(host)
        host.out("systemctl stop clamav-daemon.socket clamav-daemon.service")
        host.out("python3 /opt/lab_signatures.py make /srv/share LAB-MALWARE-FIRST")
        assert "FIRST" in host.out("cat /srv/share/plain.com")
        heard(host, since, "event=stopped unit=clamav-daemon.service", "can be opened whatever they hold")
        host.out("systemctl start bulwark-antivirus-watch.service")
        heard(host, since, "event=scanner_off", "event=prevention_off")
        host.out("systemctl start clamav-daemon.socket clamav-daemon.service")
        guests.until(lambda: refused(host, "cat /srv/share/plain.com"), 60, f"{host.name}: guarded again")
        since = now(host)
        host.out("sleep 1.1; systemctl start bulwark-antivirus-watch.service")
        assert "event=prevention_off" not in journal(host, "bulwark-antivirus", since)
        host.out(f"rm -rf /srv/share/* {QUARANTINE}/*")

    guards.each(attack)


def settled(host: guests.Host) -> None:
    """Wait until scanner and guard are no longer at their beginning, when they may be busy with signatures and directories."""
    clock = "expr $(cut -d. -f1 /proc/uptime) - $(systemctl show -p ExecMainStartTimestampMonotonic --value {}) / 1000000"
    for unit in ("clamav-daemon.service", "bulwark-antivirus-onaccess.service"):
        guests.until(lambda unit=unit: int(host.out(clock.format(unit))) > 185, 240, f"{host.name}: {unit} has settled", 5)


# All in one script, for a login reads files in /home, which are guarded as well.
HANGING = """
rm -f /opt/went-on; echo harmless >/srv/share/letter
kill -STOP $(systemctl show -p MainPID --value {unit})
cat /srv/share/letter >/opt/went-on &
sleep 5
test ! -s /opt/went-on || echo nobody waited
systemctl start bulwark-antivirus-watch.service
wait
cat /opt/went-on
"""


def test_guard_that_hangs_is_ended_and_comes_back(guards):
    """The guard, then the scanner is stopped in mid-air, and whoever opens a file waits. The next trial says so and ends the
    guard, with which all go on; and the scanner, but only the one that does not answer.
    """

    def attack(host: guests.Host) -> None:
        settled(host)
        asked = "systemctl show -p MainPID --value clamav-daemon.service"
        first = host.out(asked)
        for unit, stays in (("bulwark-antivirus-onaccess.service", True), ("clamav-daemon.service", False)):
            since = now(host)
            assert host.out(HANGING.format(unit=unit), 400) == "harmless", (host.name, unit)
            heard(host, since, "event=guard_hangs", *["event=scanner_off"] * (not stays))
            guests.until(lambda: guarded(host), 120, f"{host.name}: guarded again")
            assert (host.out(asked) == first) is stays, (host.name, unit)
            # What was tried last is that it hangs; the next trial finds that it does not.
            host.out("systemctl start bulwark-antivirus-watch.service", 300)
        host.out("rm -f /srv/share/letter /opt/went-on")

    guards.each(attack)


# Opens what is no file, as nobody in particular: a pipe from which nobody reads, one to which nobody writes, a socket. Were the
# guard asked about them, it would have to open them itself, wait as long, or fail.
SPECIAL = """
import os, socket
os.setuid(65534)
for path, flags in (("pipe", os.O_RDONLY), ("pipe2", os.O_WRONLY), ("socket", os.O_RDONLY)):
    if os.fork() == 0:
        try:
            os.open(f"/srv/share/{path}", flags)
        except OSError as exc:
            print(path, exc.errno, flush=True)
        os._exit(0)
"""
MAKE = """
import os, socket
for name in ("pipe", "pipe2"):
    os.mkfifo(f"/srv/share/{name}")
socket.socket(socket.AF_UNIX).bind("/srv/share/socket")
for name in ("pipe", "pipe2", "socket"):
    os.chmod(f"/srv/share/{name}", 0o666)
"""


def test_pipes_and_sockets_stop_nobody(guards):
    """Somebody opens pipes and a socket on a guarded path: others open their files, and the guard neither hangs nor ends."""

    def attack(host: guests.Host) -> None:
        restarts = "systemctl show -p NRestarts -p MainPID bulwark-antivirus-onaccess.service"
        since, before = now(host), host.out(restarts)
        host.out(f"python3 - <<'END'\n{MAKE}\nEND\necho harmless >/srv/share/letter; sleep 2\n"
                 f"cat >/root/special.py <<'END'\n{SPECIAL}\nEND\n"
                 "timeout --signal=KILL 300 python3 /root/special.py >/root/special 2>&1 &\nsleep 5")  # fmt: skip
        assert host.out("cat /root/special") == "socket 6", "no such device: the kernel lets nobody open a socket"
        assert host.out("ps -o wchan= -C python3 | grep -c wait_for_partner") == "2", "two wait for the other end, as they should"
        assert host.out("timeout --signal=KILL 20 cat /srv/share/letter") == "harmless", host.name
        host.out("systemctl start bulwark-antivirus-watch.service", 300)
        assert "event=guard_hangs" not in journal(host, "bulwark-antivirus", since)
        host.out("pkill -KILL -x -f 'python3 /root/special.py' || true; cd /srv/share && rm -f pipe pipe2 socket letter")
        assert host.out(restarts) == before and guarded(host), host.name

    guards.each(attack)


# Directories in each other whose path is longer than the kernel takes one; so none of them can be watched by its path.
DEEP = """
import os
os.chdir("/srv/share")
for _level in range(20):
    os.mkdir("d" * 250)
    os.chdir("d" * 250)
"""


def test_path_that_is_given_up_is_said(guards):
    """Somebody makes a directory that cannot be watched, for which clamonacc gives up all of /srv when it begins the next time,
    while the canary beside it is guarded as ever. That is said, and the assessment notices; without it all is guarded again.
    """

    def attack(host: guests.Host) -> None:
        since = now(host)
        host.out(f"python3 - <<'END'\n{DEEP}\nEND\nsystemctl restart bulwark-antivirus-onaccess.service; sleep 10")
        host.out("systemctl start bulwark-antivirus-watch.service", 300)
        heard(host, since, "event=path_unguarded paths=/srv")
        heard(host, since, "could not watch path '/srv'", tag="clamonacc")
        assert not guarded(host), host.name
        assert '"working"' in host.out("cat /var/lib/bulwark/antivirus-watch/watch.json"), "the canary alone noticed nothing"

    guards.each(attack)
    try:
        for name, found in guards.statuses().items():
            broken = {control for control, status in found.items() if status != "pass"}
            assert broken >= {"antivirus.prevention", "antivirus.alarms"}, (name, found)
    finally:
        guards.out("rm -rf /srv/share/d*; systemctl restart bulwark-antivirus-onaccess.service")
    guards.each(lambda host: guests.until(lambda: guarded(host), 60, f"{host.name}: guarded again"))
    guards.each(lambda host: host.out("systemctl start bulwark-antivirus-watch.service", 300))
    assert {found["antivirus.alarms"] for found in guards.statuses().values()} == {"pass"}


SLOW = """
import zipfile
with zipfile.ZipFile("/opt/slow.zip", "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
    for number in range(4):
        archive.writestr(f"{number}.txt", bytes([48 + number]) * (90 << 20))
"""


def test_slow_archive_does_not_stop_the_host(guards):
    """While somebody has an archive opened that takes long to look into, others wait for that, but not for long."""

    def attack(host: guests.Host) -> None:
        host.out(f"python3 - <<'END'\n{SLOW}\nEND\ncp /opt/slow.zip /srv/share/; echo harmless >/srv/share/letter", 300)
        waited = host.out(
            "cat /srv/share/slow.zip >/dev/null 2>&1 & sleep 1; begin=$(date +%s); "
            "cat /srv/share/letter >/dev/null; end=$(date +%s); grep -c '^State:.[RSD]' /proc/$!/status; kill -KILL $!; "
            "echo $((end - begin))",
            300,
        ).split()
        print(host.name, waited)
        assert waited[0] == "1" or int(waited[1]) > 2, "else nobody was looking into the archive any more"
        assert int(waited[1]) < 60, (host.name, waited)
        host.out("rm -f /srv/share/slow.zip /srv/share/letter /opt/slow.zip", 300)
        guests.until(lambda: guarded(host), 120, f"{host.name}: guarded again")

    guards.each(attack)


def test_what_is_mounted_later_is_guarded(guards):
    """A disk is mounted below a guarded path: the next trial says that it is not guarded, and has it guarded beside the rest."""

    def attack(host: guests.Host) -> None:
        settled(host)
        since, disk = now(host), "/srv/share/disk"
        host.out(f"mkdir -p {disk}; mount -t tmpfs disk {disk}; mkdir {disk}/deep; "
                 f"python3 /opt/lab_signatures.py make {disk}/deep LAB-MALWARE-FIRST; "
                 f"sleep 2; cat {disk}/deep/plain.com")  # fmt: skip
        host.out("systemctl start bulwark-antivirus-watch.service", 300)
        heard(host, since, f"event=path_unguarded paths={disk}")
        guests.until(lambda: refused(host, f"cat {disk}/deep/a.zip >/dev/null"), 120, f"{host.name}: the disk is guarded")
        guests.until(lambda: guarded(host), 60, f"{host.name}: the rest is guarded")
        since = now(host)
        host.out("sleep 1.1; systemctl start bulwark-antivirus-watch.service", 300)
        assert "event=path_unguarded" not in journal(host, "bulwark-antivirus", since)
        host.out(f"umount --lazy {disk}; rmdir {disk}; rm -rf {QUARANTINE}/*")

    guards.each(attack)


def test_assessment_notices_when_the_guard_is_off(guards):
    """All controls pass; with the guard stopped and the limit gone, two of them do not, at once, whatever the last trial said."""
    guards.out("rm -rf /opt/in/* /opt/all.zip /opt/tool; "
               "systemctl start bulwark-antivirus-scan.service bulwark-antivirus-watch.service")  # fmt: skip
    assert {status for found in guards.statuses().values() for status in found.values()} == {"pass"}, guards.statuses()
    guards.out("systemctl stop bulwark-antivirus-onaccess.service; "
               "systemctl set-property --runtime clamav-daemon.service MemoryMax=infinity")  # fmt: skip
    try:
        for name, found in guards.statuses().items():
            broken = {control for control, status in found.items() if status != "pass"}
            assert broken == {"antivirus.prevention", "antivirus.limits"}, (name, found)
    finally:
        guards.out("systemctl set-property --runtime clamav-daemon.service MemoryMax=256M; "
                   "systemctl start bulwark-antivirus-onaccess.service")  # fmt: skip
    guards.each(lambda host: guests.until(lambda: guarded(host), 60, f"{host.name}: guarded again"))


# as_scanner.py FILE: write to a file as clamd would that was taken over: as its account, and with what AppArmor leaves it.
AS_SCANNER = """
import os, pwd, sys
about = pwd.getpwnam("clamav")
os.setgroups([])
os.setgid(about.pw_gid)
os.setuid(about.pw_uid)
with open("/proc/self/attr/current", "w") as stream:
    stream.write("changeprofile /usr/sbin/clamd")
open(sys.argv[1], "a").close()
"""


def test_scanner_writes_no_evidence_of_its_own(guards):
    """What takes files apart may be taken over by one. It can write signatures, but not that updates and scans went well."""

    def attack(host: guests.Host) -> None:
        label = host.out("cat /proc/$(systemctl show -p MainPID --value clamav-daemon.service)/attr/current")
        assert label == "/usr/sbin/clamd (enforce)", "else the following proves nothing"
        host.out(f"cat >/root/as_scanner.py <<'END'\n{AS_SCANNER}\nEND")
        inside = "python3 /root/as_scanner.py /var/lib/"
        assert host.run(f"{inside}clamav/probe && rm /var/lib/clamav/probe").returncode == 0, host.name
        for name in ("antivirus/update.json", "antivirus/scan.json", "antivirus-watch/watch.json"):
            assert "Permission denied" in host.run(f"{inside}bulwark/{name}").stderr, (host.name, name)

    guards.each(attack)


def test_scanner_that_eats_memory_is_ended_and_comes_back(guards):
    """More than its limit it does not get: the kernel ends who asks for it, and the scanner is there again by itself."""

    def attack(host: guests.Host) -> None:
        pid = "systemctl show -p MainPID --value clamav-daemon.service"
        assert host.out(f"cat /proc/$({pid})/oom_score_adj") == "500", "it goes before what people work with"
        host.out(f"cat >/root/hog.py <<'END'\n{HOG}\nEND")
        done = host.run("GROUP=$(systemctl show -p ControlGroup --value clamav-daemon.service) python3 /root/hog.py")
        assert done.returncode in (137, -9), (host.name, done)
        guests.until(lambda: guarded(host), 60, f"{host.name}: guarded again")

    guards.each(attack)


def test_guard_is_there_after_a_restart_of_the_host(guards):
    """The host loses its power; when it is back, so is the guard, without anybody's doing."""

    def attack(host: guests.Host) -> None:
        before = host.out("cat /proc/sys/kernel/random/boot_id; sync").split()[0]
        host.guest.cut_power()
        time.sleep(1)
        host.guest.wait()
        assert host.out("cat /proc/sys/kernel/random/boot_id") != before
        guests.until(lambda: guarded(host), 120, f"{host.name}: guarded again", 3)
        host.out("systemctl start bulwark-antivirus-watch.service", 300)
        assert '"working"' in host.out("cat /var/lib/bulwark/antivirus-watch/watch.json")

    guards.each(attack)
