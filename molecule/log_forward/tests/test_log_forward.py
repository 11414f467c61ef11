# Copyright: (c) 2026, Bulwark contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Attack forwarding: stop, kill and restart every part of it while numbered events are written, and count them at the collector.

Each machine is its own collector, which is also what a collector does with its own journal. The machine that is killed and comes
back is another one, whose journal outlives it as a disk would.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
sys.path.insert(0, str(ROOT / "molecule" / "shared"))

import machines  # noqa: E402

RUN = f"{int(time.time()):x}"  # numbers of an earlier run on the same machine are others
STORE, CAT = "/var/log/bulwark-trail", "/usr/local/lib/bulwark/trail_store cat --host"
# Write numbered events: emit.py TAG FIRST LAST PER_SECOND
EMIT = """
import socket, sys, time
tag, first, last, rate = sys.argv[1], *map(int, sys.argv[2:5])
line = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM); line.connect('/dev/log')
begin = time.monotonic()
for number in range(first, last + 1):
    line.send(f'<134>numbered: {tag}-{number:06d}-'.encode() + b'x' * 60)
    ahead = (number - first) / rate - (time.monotonic() - begin)
    if ahead > 0: time.sleep(ahead)
"""


class Trail:
    """The machine, its own collector, and what has arrived there."""

    def __init__(self, host, target) -> None:
        self.host, self.target, self.name = host, target, target.name
        host.check_output(f"cat >/root/emit.py <<'EOF'\n{EMIT}\nEOF")

    def numbers(self, tag: str, name: str = "") -> list[int]:
        """Return the numbers that the collector has of a tag, in its order."""
        found = self.host.run(f"{CAT} {name or self.name} | grep -o 'MESSAGE\":\"{tag}-[0-9]*' | grep -o '[0-9]*$'").stdout
        return [int(word) for word in found.split()]

    def wait(self, tag: str, count: int, name: str = "", seconds: float = 90) -> list[int]:
        """Wait until so many different numbers have arrived, and return all that have."""
        end = time.monotonic() + seconds
        while len(set(found := self.numbers(tag, name))) < count:
            assert time.monotonic() < end, f"{len(set(found))} of {count} arrived; {self.why()}"
            time.sleep(1)
        return found

    def why(self) -> str:
        """Return what the services last said."""
        return self.host.run("journalctl -q -n 15 -o cat -u systemd-journal-upload -u bulwark-trail").stdout

    def find(self, text: str, seconds: float = 40, name: str = "") -> dict:
        """Wait for an entry at the collector whose message begins with a text, and return it.

        Ansible and sudo write what they run to the journal, this search as well: there the text does not begin the message.
        """
        end = time.monotonic() + seconds
        while True:
            found = self.host.run(f"{CAT} {name or self.name} | grep -F '\"MESSAGE\":\"{text}' | tail -n 1").stdout
            if found:
                return json.loads(found)["entry"]
            assert time.monotonic() < end, f"no {text}; {self.why()}"
            time.sleep(1)

    def state(self, name: str = "") -> dict:
        """Return what the receiver counted."""
        return json.loads(self.host.check_output(f"cat {STORE}/.state/{name or self.name}.json"))

    def verify(self) -> str:
        """Return what verification says."""
        return self.host.run("/usr/local/lib/bulwark/trail_store verify").stdout


@pytest.fixture(scope="module")
def trail(host, target):
    """The machine whose own trail is looked at."""
    return Trail(host, target)


def kill(host, unit: str) -> None:
    """Kill a service's processes at once, as the kernel would; it is started again by systemd."""
    host.run(f"systemctl kill --signal=KILL {unit}")


def test_every_number_arrives_whatever_is_killed(host, trail):
    before = trail.state()
    host.check_output("systemctl stop bulwark-trail.service")
    host.check_output(f"python3 /root/emit.py OUT{RUN} 1 6000 100000")
    kill(host, "systemd-journal-upload.service")
    host.check_output("systemctl start bulwark-trail.service")
    host.check_output(f"systemd-run --quiet --unit=emit-out python3 /root/emit.py OUT{RUN} 6001 10000 1000")
    for unit in ("systemd-journal-upload", "bulwark-trail", "systemd-journal-upload", "bulwark-trail"):
        time.sleep(1.2)
        kill(host, f"{unit}.service")
    found = trail.wait(f"OUT{RUN}", 10000)
    assert sorted(set(found)) == list(range(1, 10001))
    after = trail.state()
    assert len(found) == 10000, f"{len(found) - 10000} were written twice"
    assert after["missing"] == before["missing"], after["gaps"]
    assert "sound" in trail.verify()
    print(f"duplicates that were dropped: {after['duplicates'] - before['duplicates']}")


@pytest.mark.parametrize("split", ["none", "uid"])
def test_nothing_is_passed_over_when_the_journal_begins_new_files(host, trail, split):
    """Events come while files are rotated, and people's processes write, too; an uploader by itself skips some then.

    systemd-journal-upload lost 42,000 of 50,000 so; the receiver asks for what it misses before it acknowledges anything.
    """
    other, tag = "/etc/systemd/journald.conf.d/95-split.conf", f"ROLL{split}{RUN}"
    anew = "systemctl restart systemd-journald; journalctl --flush"
    host.check_output(f"printf '[Journal]\\nSplitMode={split}\\n' >{other}; {anew}")
    before = trail.state()
    try:
        host.check_output(f"systemd-run --quiet --unit=emit-{tag} python3 /root/emit.py {tag} 1 20000 4000")
        for _turn in range(8):
            host.check_output("su deploy -c 'logger -t person something of mine'; journalctl --rotate")
            time.sleep(0.4)
        found = trail.wait(tag, 20000)
    finally:
        host.check_output(f"rm {other}; {anew}")
    assert sorted(set(found)) == list(range(1, 20001)), f"{20000 - len(set(found))} are missing; {trail.why()}"
    assert len(found) == 20000
    after = trail.state()
    assert after["missing"] == before["missing"], after["gaps"][-3:]


def test_faults_arrive_with_their_severity(host, trail):
    host.check_output("systemd-run --quiet --unit=faulty-probe sh -c 'exit 3' || true")
    host.check_output("logger -p kern.err -t kernel 'EDAC probe: uncorrected error'")
    failed = trail.find("faulty-probe.service: Failed with result")
    assert int(failed["PRIORITY"]) <= 4 and failed["UNIT"] == "faulty-probe.service" and failed["SYSLOG_IDENTIFIER"] == "systemd"
    fault = trail.find("EDAC probe: uncorrected error")
    assert fault["PRIORITY"] == "3"
    host.run("systemctl reset-failed faulty-probe.service")


def test_the_heartbeat_says_how_the_trail_stands(host, trail):
    entry = trail.find("event=heartbeat interval=10 ")
    assert re.fullmatch(
        r"event=heartbeat interval=10 unsent=(\d+|-) clock=(synchronised|unsynchronised|unknown)"
        r" clock_offset_seconds=(-|-?[\d.]+) audit_enabled=(-|\d) audit_lost=(-|\d+) audit_pid=(-|\d+) boot=[0-9a-f]{32}",
        entry["MESSAGE"],
    ), entry
    assert entry["SYSLOG_IDENTIFIER"] == "bulwark-heartbeat"


def test_lagging_is_noticed(host, trail):
    host.check_output("systemctl stop bulwark-trail.service; logger lagging; sleep 1")
    try:
        seen = host.run("cd / && systemctl is-active systemd-journal-upload.service").stdout.strip()
        assert seen in ("activating", "active"), "it goes on trying"
        host.check_output("systemctl start bulwark-heartbeat.service")
        line = host.check_output("journalctl -q -o cat -t bulwark-heartbeat -n 1")
        assert int(re.search(r"unsent=(\d+)", line).group(1)) > 0, line
    finally:
        host.check_output("systemctl start bulwark-trail.service")
    trail.find("lagging")


def test_nobody_else_reads_the_key(host):
    for path in ("/etc/bulwark/log_forward/private.key", "/run/credentials/systemd-journal-upload.service/key"):
        done = host.run(f"setpriv --reuid=nobody --regid=nogroup --clear-groups cat {path}")
        assert done.rc != 0 and not done.stdout, path  # between two tries the copy is not there
    user = host.check_output("ps -o user= -p $(systemctl show -p MainPID --value systemd-journal-upload.service) || true").strip()
    assert user in ("bulwark-forward", "bulwark+", ""), user


def test_nobody_else_reads_what_waits(host):
    done = host.run("setpriv --reuid=nobody --regid=nogroup --clear-groups sh -c 'cat /var/log/journal/*/system.journal'")
    assert "Permission denied" in done.stderr, done
    done = host.run("setpriv --reuid=nobody --regid=nogroup --clear-groups sh -c 'echo x >>/var/log/journal/*/system.journal'")
    assert done.rc != 0


def test_a_collector_that_is_another_gets_nothing(host, trail):
    """Somebody with a certificate for the right address, but of another authority, answers in the collector's place."""
    address = trail.target.address
    host.check_output(
        "mkdir -p /root/false && cd /root/false && openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout k"
        f" -out c -days 2 -subj /CN=false -addext subjectAltName=IP:{address} 2>/dev/null"
    )
    host.check_output("systemctl stop bulwark-trail.service")
    try:
        host.check_output(
            "systemd-run --quiet --unit=false-collector sh -c 'cd /root/false;"
            " exec openssl s_server -accept 19532 -cert c -key k -quiet >got 2>err'"
        )
        host.check_output("logger 'nothing for strangers'; sleep 8")
        assert host.run("grep -c . /root/false/err").stdout.strip() != "0", "it was spoken to"
        assert host.file("/root/false/got").size == 0
    finally:
        host.run("systemctl stop false-collector.service")
        host.check_output("systemctl start bulwark-trail.service")
    trail.find("nothing for strangers")


def test_what_the_journal_dropped_is_on_record(host, trail):
    """The collector is away for longer than the journal holds: the oldest goes, and the hole is written down."""
    small = "/etc/systemd/journald.conf.d/95-small.conf"
    host.check_output("systemctl stop bulwark-trail.service")
    host.check_output(
        f"printf '[Journal]\\nSystemMaxUse=8M\\nSystemMaxFileSize=1M\\n' >{small};"
        " systemctl restart systemd-journald; journalctl --flush; sleep 1"
    )
    before = trail.state()
    try:
        host.check_output(f"python3 /root/emit.py FULL{RUN} 1 15000 100000")
        used = int(host.check_output("du -sm /var/log/journal | cut -f1"))
        assert used <= 12, f"{used} MiB of 8"
    finally:
        host.check_output(f"rm {small}; systemctl restart systemd-journald; systemctl start bulwark-trail.service")
    found: set[int] = set()
    end = time.monotonic() + 90
    while 15000 not in found and time.monotonic() < end:
        time.sleep(2)
        found = set(trail.numbers(f"FULL{RUN}"))
    assert 15000 in found and len(found) < 15000, f"{len(found)} arrived; {trail.why()}"
    lost = 15000 - len(found)
    while (after := trail.state())["missing"] - before["missing"] < lost and time.monotonic() < end + 60:
        host.check_output("logger something goes on")  # it is asked for once, and waited for
        time.sleep(3)
    assert after["missing"] - before["missing"] >= lost, (lost, after["gaps"][-3:])
    assert "event=gap" in host.check_output("journalctl -q -o cat -t bulwark-trail -n 200")
    assert "sound" in trail.verify()


@pytest.fixture(scope="module")
def ward(host, target, tmp_path_factory):
    """A machine of its own, hardened by the same role, whose journal lies on a volume; it delivers to the machine under test."""
    name = f"ward-{target.platform}"
    container = f"molecule-log_forward-{name}"
    public = subprocess.run(["ssh-keygen", "-y", "-f", target.key], capture_output=True, text=True, check=True).stdout.strip()
    machines.run("podman", "volume", "rm", "--force", container)
    address = machines.start(container, target.platform, public, f"--volume={container}:/var/log/journal")
    extra = tmp_path_factory.mktemp("ward") / "ward.json"
    variables = {**machines.inventory_variables(target.key), "ansible_host": address, "bulwark_collector": target.name}
    extra.write_text(json.dumps({"all": {"hosts": {name: {**variables, "bulwark_platform": target.platform}}}}))
    state = os.environ["MOLECULE_EPHEMERAL_DIRECTORY"]
    done = subprocess.run(
        [
            Path(sys.executable).with_name("ansible-playbook"), "-i", f"{state}/inventory", "-i", extra, "--extra-vars",
            json.dumps({"targets": name, "role": "log_forward", "scenario_dir": str(ROOT / "molecule" / "log_forward")}),
            ROOT / "molecule" / "shared" / "converge.yml",
        ],
        check=False, capture_output=True, text=True, cwd=ROOT, env={**os.environ, "ANSIBLE_CONFIG": f"{state}/ansible.cfg"},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-4000:]
    yield name, container
    machines.stop(container)
    machines.run("podman", "volume", "rm", "--force", container)


def test_a_host_that_was_killed_and_comes_back_loses_nothing(host, trail, ward):
    name, container = ward

    def inside(*command):
        return machines.run("podman", "exec", container, *command)

    machines.finish("podman", "exec", "-i", container, "tee", "/root/emit.py", data=EMIT)
    host.check_output("systemctl stop bulwark-trail.service")
    inside("python3", "/root/emit.py", f"BACK{RUN}", "1", "5000", "100000")
    inside("journalctl", "--sync")
    machines.run("podman", "kill", container)
    machines.run("podman", "start", container)
    host.check_output("systemctl start bulwark-trail.service")
    end = time.monotonic() + 60
    while machines.finish("podman", "exec", container, "systemctl", "is-active", "systemd-journald").stdout.strip() != "active":
        assert time.monotonic() < end
        time.sleep(0.5)
    inside("python3", "/root/emit.py", f"BACK{RUN}", "5001", "10000", "5000")
    kill(host, "bulwark-trail.service")
    found = trail.wait(f"BACK{RUN}", 10000, name)
    assert sorted(set(found)) == list(range(1, 10001))
    assert len(found) == 10000
    assert "sound" in trail.verify()


def test_the_role_can_be_taken_back(host, target):
    target.reapply(log_forward_state="absent")
    units = host.run("systemctl is-active systemd-journal-upload.service bulwark-heartbeat.timer").stdout.split()
    assert units == ["inactive"] * 2
    assert not host.file("/etc/bulwark/log_forward").exists
    assert "volatile" in host.check_output("systemd-analyze cat-config systemd/journald.conf | grep ^Storage")
    target.reapply()
