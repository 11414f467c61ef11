# Copyright: (c) 2026, Bulwark contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Shut out, and back again: change_guard on real machines of Debian 12 and 13.

All that takes time happens side by side (the fixture `story`): eight machines are locked out, each kind on both releases, and
wait for their window; two go through what a confirmation may and may not do and are then started anew; on two more the
controller is killed again and again. The tests look at what came of it. What goes on inside a machine that nobody can reach
any more is seen with podman exec; every way in is tried with a connection of its own.
"""

from __future__ import annotations

import calendar
import concurrent.futures as cf
import dataclasses
import json
import os
import random
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import lab
import pytest

PLATFORMS = {"12": "debian12", "13": "debian13"}
WINDOW = 60  # seconds, the shortest there is
LATE = 20  # seconds that systemd, restoring and logging in may take on a busy machine
KILLS = int(os.environ.get("BULWARK_KILLS", "25"))  # on each of two machines
SEED = int(os.environ.get("BULWARK_SEED", "20260301"))
PROBE = "/etc/ssh/sshd_config.d/50-probe.conf"
DROP = "table inet lockout { chain i { type filter hook input priority 0; policy accept; tcp dport 22 ct state new drop; }; }"

# Each shuts out in a way of its own, after the connection that Ansible is on was made.
LOCKOUTS = {
    "nft": f"nft '{DROP}'",
    "sshd": f"echo 'NoSuchOption yes' >{PROBE}; systemctl restart ssh.service || true",
    "pam": "sed -i 's/pam_unix.so/pam_gone.so/' /etc/pam.d/common-account",
    # What a wrong secret of the second factor does: it is asked for, and says no to everybody.
    "factor": f"""printf '%s\\n' 'Name: Stand-in' 'Default: yes' 'Priority: 900' 'Auth-Type: Primary' 'Auth:' \
        '\trequisite pam_deny.so' >/usr/share/pam-configs/stand-in &&
        env DEBIAN_FRONTEND=noninteractive pam-auth-update --package &&
        printf 'KbdInteractiveAuthentication yes\\nAuthenticationMethods publickey,keyboard-interactive:pam\\n' >{PROBE} &&
        systemctl restart ssh.service""",
}
FOREIGN = (
    "table inet theirs { set seen { type ipv4_addr; flags dynamic,timeout; timeout 1h; }; "
    "chain c { type filter hook input priority 5; policy accept; ip saddr 203.0.113.1 counter; }; }"
)

# What the guard answers for, by path: mode, owner and content. Times of directories do not count.
LOOK = """
import hashlib, json, os, sys
found = {}
for top in ("/etc/ssh", "/etc/pam.d", "/etc/security", "/etc/sudoers", "/etc/sudoers.d", "/etc/systemd/system", "/etc/bulwark",
            "/etc/nftables.conf", "/usr/share/pam-configs", "/var/lib/pam", "/var/lib/bulwark/config_set"):
    pending = [top] if os.path.lexists(top) else []
    while pending:
        path = pending.pop()
        seen = os.lstat(path)
        if os.path.islink(path):
            what = os.readlink(path)
        elif os.path.isdir(path):
            what = ""
            pending += [os.path.join(path, name) for name in os.listdir(path)]
        else:
            what = hashlib.sha256(open(path, "rb").read()).hexdigest() + str(seen.st_mtime_ns) * ("config_set" not in path)
        if "config_set" not in path or path.endswith(".json"):
            found[path] = [oct(seen.st_mode), seen.st_uid, seen.st_gid, what]
print(json.dumps(found))
"""
STATE = """
import json, os, subprocess
def read(name):
    try:
        return json.load(open("/var/lib/bulwark/change_guard/" + name))
    except FileNotFoundError:
        return {}
armed = read("armed.json")
unit = "bulwark-guard-" + armed.get("generation", "none") + ".timer"
timer = subprocess.run(["systemctl", "show", "--property=SubState", unit], capture_output=True, text=True).stdout.strip()
print(json.dumps({"armed": armed, "report": read("report.json"), "timer": timer}))
"""

# The module as it is, without the plugin that would make a new connection for it.
BARE = """
from ansible.plugins.action import ActionBase
class ActionModule(ActionBase):
    def run(self, tmp=None, task_vars=None):
        return self._execute_module("bulwark.hardening.change_guard", dict(self._task.args), task_vars=task_vars)
"""
ARM = {"name": "Arm", "bulwark.hardening.change_guard": {"state": "armed"}}
STRETCHES = ["starting", "Arm", "Write", "Shut us out", "Confirm"]
CONFIRM = {"name": "Confirm", "bulwark.hardening.change_guard": {"state": "confirmed"}, "register": "confirmed"}


def outside(name: str, *command: str) -> str:
    """Run a command in a machine the way its owner at the console would; return what it prints."""
    return lab.machines.run("podman", "exec", name, *command)


@dataclasses.dataclass
class Machine:
    """A test machine, and how to get in."""

    name: str
    address: str
    directory: Path

    def ssh(self, command: str = "sudo -n true", seconds: int = 4) -> tuple[int, str]:
        """Come in over a connection of its own and become root; return (exit status, what ssh and the host said)."""
        done = subprocess.run(
            ["ssh", "-i", self.directory / "id_ed25519", "-o", "IdentitiesOnly=yes", "-o", f"ConnectTimeout={seconds}",
             "-o", "UserKnownHostsFile=/dev/null", "-o", "StrictHostKeyChecking=no", "-o", "LogLevel=ERROR",
             "-o", "BatchMode=yes", "-o", "ControlMaster=no", "-o", "ControlPath=none", f"deploy@{self.address}", command],
            check=False, capture_output=True, text=True, timeout=60, stdin=subprocess.DEVNULL,
        )  # fmt: skip
        return done.returncode, done.stdout + done.stderr

    def tree(self) -> dict:
        """Return what the guard answers for."""
        return json.loads(outside(self.name, "python3", "-c", LOOK))

    def state(self) -> dict:
        """Return what the guard remembers: {"armed", "report", "timer"}."""
        return json.loads(outside(self.name, "python3", "-c", STATE))

    def left(self) -> list[str]:
        """Return all that the guard has on the machine, the report of a rollback and the lock aside."""
        files = outside(self.name, "sh", "-c", "find / -xdev -name '*bulwark-guard*'; find /run -name '*bulwark-guard*'").split()
        units = outside(self.name, "systemctl", "list-units", "--all", "--plain", "--no-legend", "bulwark-guard*").splitlines()
        inner = outside(self.name, "sh", "-c", "ls -A /var/lib/bulwark/change_guard 2>/dev/null || true").split()
        return sorted({*files, *units, *inner} - {"/run/bulwark-guard.lock", "report.json"})

    def settle(self) -> None:
        """Start what the timer waits to start, not to wait for the window fifty times, until nothing of the guard is left.

        What a killed controller had sent off may begin only now, on a busy machine: so it must stay that way for a while.
        """
        fire = """for timer in $(systemctl list-units --all --plain --no-legend 'bulwark-guard-*.timer' | cut -d' ' -f1); do
            systemctl start "${timer%.timer}.service"; done; true"""
        quiet, end = 0, time.monotonic() + WINDOW + LATE
        while quiet < 2 and time.monotonic() < end:
            outside(self.name, "sh", "-c", fire)
            quiet = 0 if self.left() else quiet + 1
            time.sleep(0.5)

    def find_again(self) -> None:
        """Learn the address anew, which a restart may have changed."""
        networks = json.loads(lab.machines.run("podman", "inspect", "-f", "{{json .NetworkSettings.Networks}}", self.name))
        self.address = next(iter(networks.values()))["IPAddress"]


class Park:
    """All machines of this file, under one inventory."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.sockets = tempfile.mkdtemp(prefix="guard-cp-")  # short, for a socket's name may not be long
        self.machines: dict[str, Machine] = {}
        (directory / "action").mkdir()
        (directory / "action" / "bare_guard.py").write_text(BARE)

    def start(self) -> None:
        """Start the machines, a few at a time."""
        _key, public = lab.machines.key_pair(self.directory)
        lab.machines.build_images(sorted(PLATFORMS.values()))
        kinds = [*LOCKOUTS, "calm", "killed"]
        wanted = [(kind, short) for kind in kinds for short in PLATFORMS]

        def start(kind: str, short: str) -> None:
            name = f"bulwark-guard-{kind}-{short}"
            self.machines[f"{kind}-{short}"] = Machine(name, "", self.directory)
            address = lab.machines.start(name, PLATFORMS[short], public, owner="bulwark-lab", hostname=f"{kind}-{short}")
            self.machines[f"{kind}-{short}"].address = address
            # Or a login right after the last logout waits a minute and a half for logind to stop the user's service manager.
            outside(name, "loginctl", "enable-linger", "deploy")
            if kind in ("nft", "calm", "killed"):
                outside(name, "apt-get", "install", "-qy", "--no-download", "--no-install-recommends", "nftables")

        with cf.ThreadPoolExecutor(6) as pool:
            list(pool.map(lambda each: start(*each), wanted))
        common = "-o IdentitiesOnly=yes -o UserKnownHostsFile=/dev/null -o StrictHostKeyChecking=no -o LogLevel=ERROR"
        variables = {**lab.machines.inventory_variables(str(self.directory / "id_ed25519")), "ansible_ssh_common_args": common}
        variables["ansible_timeout"] = 15
        hosts = {
            key: {"ansible_host": machine.address, "bulwark_guard_window_seconds": 600 if "calm" in key else WINDOW}
            for key, machine in self.machines.items()
        }
        (self.directory / "hosts.json").write_text(json.dumps({"all": {"hosts": hosts, "vars": variables}}))

    def stop(self) -> None:
        """Remove them."""
        for machine in self.machines.values():
            lab.machines.stop(machine.name)

    def command(self, playbook: Path | str, *more: str) -> list[str]:
        """Return the command line of a run."""
        program = str(lab.ROOT / ".venv" / "bin" / "ansible-playbook")
        return [program, "-i", str(self.directory / "hosts.json"), str(playbook), *more]

    def environment(self) -> dict[str, str]:
        """Return the environment of a run: ControlPersist on, as ansible.cfg has it."""
        return {
            **os.environ,
            "ANSIBLE_CONFIG": str(lab.ROOT / "ansible.cfg"),
            "ANSIBLE_NOCOLOR": "1",
            "ANSIBLE_ACTION_PLUGINS": str(self.directory / "action"),
            "ANSIBLE_SSH_CONTROL_PATH_DIR": self.sockets,
            "ANSIBLE_HOST_PATTERN_MISMATCH": "error",
        }

    def playbook(self, name: str, hosts: str, tasks: list[dict]) -> Path:
        """Write a playbook of one play."""
        path = self.directory / f"{name}.json"
        path.write_text(json.dumps([{"hosts": hosts, "gather_facts": False, "tasks": tasks}]))
        return path

    def run(self, playbook: Path | str, *more: str) -> subprocess.CompletedProcess:
        """Run a playbook to its end."""
        return subprocess.run(
            self.command(playbook, *more),
            check=False,
            cwd=lab.ROOT,
            env=self.environment(),
            stdin=subprocess.DEVNULL,  # ssh makes the terminal of others non-blocking, and Ansible refuses that
            capture_output=True,
            text=True,
        )


# --- what happens side by side ----------------------------------------------------------------------------------------


def locked_out(park: Park) -> dict[str, dict]:
    """Lock eight machines out under a guard, go away without confirming, and come back when the window is over."""
    names = [f"{kind}-{short}" for kind in LOCKOUTS for short in PLATFORMS]
    found: dict[str, dict] = {}
    for name in names:
        machine = park.machines[name]
        if name.startswith("nft"):
            outside(machine.name, "nft", FOREIGN)
        first = machine.ssh()
        found[name] = {"first": first, "before": machine.tree()}
    tasks = [ARM, {"name": "Shut us out", "ansible.builtin.shell": "{{ lockouts[inventory_hostname.split('-')[0]] }}"}]
    playbook = park.playbook("locked_out", ",".join(names), tasks)
    done = park.run(playbook, "-e", json.dumps({"lockouts": LOCKOUTS}))
    assert done.returncode == 0, done.stdout + done.stderr

    def follow(name: str) -> None:
        machine, facts = park.machines[name], found[name]
        facts["locked"] = machine.ssh()
        facts["state"] = machine.state()
        if name.startswith("nft"):  # a packet fills the set of others meanwhile
            outside(machine.name, "nft", "add element inet theirs seen { 203.0.113.7 }")
            facts["theirs"] = outside(machine.name, "nft", "-a", "list", "tables")
        armed = facts["state"]["armed"]
        end = time.monotonic() + WINDOW + LATE
        time.sleep(max(0, WINDOW - 5 - (time.time() - utc(armed["armed_at"]))))
        while (status := machine.ssh())[0] and time.monotonic() < end:
            time.sleep(1)
        facts["again"] = status
        end = time.monotonic() + LATE
        while (state := machine.state())["armed"] and time.monotonic() < end:
            time.sleep(1)
        facts["after"], facts["report"], facts["left"] = machine.tree(), state["report"], machine.left()
        facts["journal"] = outside(machine.name, "journalctl", "-q", "-p", "warning", "-t", "bulwark-guard", "-o", "cat")
        facts["tables"] = outside(machine.name, "nft", "-a", "list", "ruleset") if name.startswith("nft") else ""

    with cf.ThreadPoolExecutor(len(names)) as pool:
        list(pool.map(follow, names))
    return found


def utc(text: str) -> float:
    """Return the seconds since the epoch of a time as the guard writes it."""
    return calendar.timegm(time.strptime(text, "%Y-%m-%dT%H:%M:%SZ"))


def logins(machine: Machine) -> int:
    """Return how many connections of Ansible's sshd has let in so far."""
    return outside(machine.name, "journalctl", "-q", "-o", "cat", "-t", "sshd", "-t", "sshd-session").count("Accepted publickey")


def calm(park: Park, short: str) -> dict:
    """Confirm what is good, try to confirm what is not, and start the machine anew in the middle of a change."""
    machine, name = park.machines[f"calm-{short}"], f"calm-{short}"
    found: dict = {"before": machine.tree(), "logins": [logins(machine)]}

    def change(text: str) -> dict:
        return {"name": "Change", "ansible.builtin.copy": {"content": text, "dest": PROBE, "mode": "0644"}}

    found["idle"] = park.run(park.playbook(f"idle-{short}", name, [ARM, CONFIRM]))
    found["logins"].append(logins(machine))
    found["idle_tree"], found["idle_left"] = machine.tree(), machine.left()

    found["good"] = park.run(park.playbook(f"good-{short}", name, [ARM, change("LoginGraceTime 77\n"), CONFIRM]))
    found["logins"].append(logins(machine))
    found["good_tree"], found["good_left"] = machine.tree(), machine.left()

    lock = {"name": "Shut us out", "ansible.builtin.command": {"argv": ["nft", DROP]}}
    bare = {"name": "Over the old", "bare_guard": {"state": "confirmed"}, "register": "bare", "ignore_errors": True}
    show = {"name": "Show", "ansible.builtin.debug": {"msg": "BARE {{ bare | to_json }}"}}
    found["old"] = park.run(park.playbook(f"old-{short}", name, [ARM, lock, bare, bare, show]))
    found["old_ssh"], found["old_state"] = machine.ssh(), machine.state()
    over = [bare, show, CONFIRM]
    found["late"] = park.run(park.playbook(f"late-{short}", name, over))
    found["late_ssh"], found["late_state"], found["late_tree"] = machine.ssh(), machine.state(), machine.tree()

    persist = f"""
        printf '#!/usr/sbin/nft -f\\n%s\\n' '{DROP}' >/etc/nftables.conf; systemctl enable nftables.service
        printf '[Service]\\nExecStartPre=/bin/false\\n' >/etc/systemd/system/ssh.service.d/stop.conf; echo No >>{PROBE}"""
    deep = {"name": "Break the next start", "ansible.builtin.shell": "mkdir -p /etc/systemd/system/ssh.service.d;" + persist}
    found["broken"] = park.run(park.playbook(f"boot-{short}", name, [ARM, deep]))
    found["boot_state"] = machine.state()
    lab.machines.run("podman", "restart", "--time", "5", machine.name)
    machine.find_again()
    end = time.monotonic() + 60
    while (status := machine.ssh())[0] and time.monotonic() < end:
        time.sleep(0.5)
    found["boot_ssh"] = status
    outside(machine.name, "sh", "-c", "systemctl is-system-running --wait || true")
    found["boot_tree"], found["boot_left"], found["boot_report"] = machine.tree(), machine.left(), machine.state()["report"]
    found["boot_tables"] = outside(machine.name, "nft", "list", "ruleset")
    return found


def killed(park: Park, short: str) -> list[dict]:
    """Kill the controller again and again, at random moments of runs that change or shut out; return what each led to."""
    name, machine = f"killed-{short}", park.machines[f"killed-{short}"]
    chance = random.Random(f"{SEED}-{short}")
    shut_out = f"nft '{DROP}'; sed -i 's/pam_unix.so/pam_gone.so/' /etc/pam.d/common-account"
    tasks = [
        ARM,
        {
            "name": "Write",
            "bulwark.hardening.config_set": {
                "name": "probe",
                "files": [
                    {"path": PROBE, "content": "# change {{ number }}\nLoginGraceTime 66\n"},
                    {"path": "/etc/probe-elsewhere", "content": "change {{ number }}\n"},
                ],
                "check": ["sshd -t"],
                "activate": ["systemctl restart ssh.service"],
            },
        },
        {"name": "Shut us out", "ansible.builtin.shell": shut_out, "when": "bad | bool"},
        CONFIRM,
    ]
    playbook = park.playbook(f"killed-{short}", name, tasks)

    def whole(number: int) -> subprocess.CompletedProcess:
        return park.run(playbook, "-e", f"number={number}", "-e", "bad=false")

    assert (done := whole(1000)).returncode == 0, done.stdout + done.stderr
    lengths = dict.fromkeys(STRETCHES, 2.0)  # seconds that each stretch of a run takes, learned as we go
    tales = []
    for number in range(KILLS):
        bad = number % 2 == 1
        before = {"tree": machine.tree(), "elsewhere": outside(machine.name, "cat", "/etc/probe-elsewhere")}
        # Spread over the whole run: every stretch of it has its turn, when in it is left to chance.
        stretch, share = STRETCHES[number // 2 % len(STRETCHES)], chance.random()
        process = subprocess.Popen(
            park.command(playbook, "-e", f"number={number}", "-e", f"bad={str(bad).lower()}"),
            cwd=lab.ROOT, env=park.environment(), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            start_new_session=True, text=True,
        )  # fmt: skip
        here, since = STRETCHES[0], time.monotonic()
        while here != stretch and (line := process.stdout.readline()):
            if (name_of := line.removeprefix("TASK [").partition("]")[0]) in STRETCHES and line.startswith("TASK ["):
                lengths[here] = max(lengths[here], time.monotonic() - since)
                here, since = name_of, time.monotonic()
        try:
            process.wait(share * lengths[stretch])
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        process.stdout.close()
        moment = f"{share:.0%} of {lengths[stretch]:.1f} s into {stretch}"
        # What the host was told before may still be at work there.
        at_work, end = "pgrep -f '^/usr/bin/python3$|BECOME-SUCCES[S]|bulwark/change_guar[d]' || true", time.monotonic() + 60
        while outside(machine.name, "sh", "-c", at_work) and time.monotonic() < end:
            time.sleep(0.2)
        tale = {"number": number, "bad": bad, "moment": moment, "killed": process.returncode}
        tale["state"] = machine.state()
        tale["locked"] = "lockout" in outside(machine.name, "nft", "list", "tables")
        adopted = number % 5 == 4 and not tale["locked"]
        if not adopted:
            machine.settle()
        if number % 5 != 4 or tale["locked"]:
            tale["after"] = machine.state()
            tale["elsewhere"] = outside(machine.name, "cat", "/etc/probe-elsewhere")
            tale["tree"] = machine.tree()
            tale["before"] = before
        tale["ssh"] = machine.ssh()
        if number % 5 == 4:
            tale["next"] = whole(2000 + number)
            tale["next_text"] = outside(machine.name, "cat", PROBE, "/etc/probe-elsewhere")
            tale["next_state"] = machine.state()
        tales.append(tale)
    return tales


@pytest.fixture(scope="module")
def story(tmp_path_factory) -> Iterator[dict[str, cf.Future]]:
    """Return what is going on, by name; a test waits for what it is about."""
    park = Park(tmp_path_factory.mktemp("park"))
    pool = cf.ThreadPoolExecutor()
    try:
        park.start()
        going = {"locked_out": pool.submit(locked_out, park)}
        for short in PLATFORMS:
            going[f"calm-{short}"] = pool.submit(calm, park, short)
        for short in PLATFORMS:
            going[f"killed-{short}"] = pool.submit(killed, park, short)
        yield going
        cf.wait(going.values())
    finally:
        pool.shutdown()
        park.stop()


both = pytest.mark.parametrize("short", PLATFORMS)


@both
@pytest.mark.parametrize("kind", LOCKOUTS)
def test_locked_out_and_back_by_itself(story, kind, short):
    """Nobody confirms; the host comes back within the window, to exactly what it was."""
    facts = story["locked_out"].result()[f"{kind}-{short}"]
    assert facts["first"][0] == 0, facts["first"]
    assert facts["locked"][0] != 0, "it was no lock-out"
    assert facts["state"]["timer"] == "SubState=waiting"
    assert facts["again"] == (0, ""), facts
    took = utc(facts["report"]["at"]) - utc(facts["state"]["armed"]["armed_at"])
    assert WINDOW - 2 <= took <= WINDOW + LATE, took
    assert facts["after"] == facts["before"]
    assert facts["left"] == []
    assert facts["report"]["problems"] == []
    assert "nobody confirmed it within 60 seconds" in facts["journal"]


@both
def test_tables_of_others_are_not_touched(story, short):
    """Their handle is the one they had, and what came into their set in the meantime is there."""
    facts = story["locked_out"].result()[f"nft-{short}"]
    assert facts["report"]["tables"] == ["inet lockout"]
    assert "table inet lockout" not in facts["tables"]
    (handle,) = [line for line in facts["theirs"].splitlines() if "theirs" in line]
    assert handle.replace("theirs #", "theirs { #") in facts["tables"]
    assert "203.0.113.7" in facts["tables"]


@both
def test_a_run_without_a_change_needs_no_new_connection(story, short):
    facts = story[f"calm-{short}"].result()
    assert facts["idle"].returncode == 0, facts["idle"].stdout
    assert "changed=0" in facts["idle"].stdout
    assert facts["logins"][1] - facts["logins"][0] == 1
    assert facts["idle_tree"] == facts["before"]
    assert facts["idle_left"] == []


@both
def test_a_good_change_is_kept_over_a_new_connection_and_nothing_else_stays(story, short):
    facts = story[f"calm-{short}"].result()
    assert facts["good"].returncode == 0, facts["good"].stdout
    assert "changed=1" in facts["good"].stdout, "the guard itself reports no change"
    assert facts["logins"][2] - facts["logins"][1] >= 1, "none but the one that ControlPersist kept"
    assert set(facts["good_tree"]) - set(facts["before"]) == {PROBE}
    assert {path: facts["good_tree"][path] for path in facts["before"]} == facts["before"]
    assert facts["good_left"] == []


@both
def test_the_old_connection_confirms_nothing(story, short):
    """ControlPersist keeps it open and it works, although nobody could come in any more."""
    facts = story[f"calm-{short}"].result()
    assert facts["old"].returncode == 0, facts["old"].stdout
    assert "come in anew" in facts["old"].stdout
    assert facts["old_ssh"][0] != 0, "it was no lock-out"
    assert facts["old_state"]["armed"]["stage"] == "armed"
    assert facts["late"].stdout.count("come in anew") >= 1, "another run comes over the old connection, too"


@both
def test_what_cannot_be_confirmed_is_taken_back_at_once(story, short):
    """Over the connection that is still open, long before the window is over."""
    facts = story[f"calm-{short}"].result()
    assert facts["late"].returncode != 0
    assert "taken back at once" in facts["late"].stdout
    assert facts["late_ssh"] == (0, "")
    assert facts["late_state"]["armed"] == {}
    assert facts["late_tree"] == facts["good_tree"]


@both
def test_a_reboot_in_the_window_takes_the_change_back(story, short):
    facts = story[f"calm-{short}"].result()
    assert facts["broken"].returncode == 0, facts["broken"].stdout
    assert facts["boot_state"]["timer"] == "SubState=waiting"
    assert facts["boot_ssh"] == (0, "")
    assert facts["boot_tree"] == facts["good_tree"]
    assert "lockout" not in facts["boot_tables"]
    assert "started anew" in facts["boot_report"]["why"]
    assert facts["boot_report"]["problems"] == []
    assert facts["boot_left"] == []


@both
def test_controller_killed_at_any_moment(story, short):
    """The way in is there each time, the files are what they were or confirmed in full, and the next run converges."""
    tales = story[f"killed-{short}"].result()
    print(json.dumps([{key: tale[key] for key in ("number", "bad", "moment", "killed", "locked")} for tale in tales]))
    assert len(tales) == KILLS
    for tale in tales:
        about = f"kill {tale['number']}, {tale['moment']}, seed {SEED}"
        if tale["state"]["armed"]:
            assert tale["state"]["timer"] == "SubState=waiting", about
        assert tale["ssh"] == (0, ""), about
        if "tree" in tale:
            assert tale["after"]["armed"] == {}, about
            old = tale["before"]
            kept = tale["elsewhere"] == f"change {tale['number']}"
            assert kept or tale["elsewhere"] == old["elsewhere"], about
            assert not (kept and tale["bad"]), about
            # a set's record holds what was there first, so it stays the same from change to change
            other = {path for path in {*tale["tree"], *old["tree"]} if tale["tree"].get(path) != old["tree"].get(path)}
            assert other == ({PROBE} if kept else set()), about
        if "next" in tale:
            assert tale["next"].returncode == 0, f"{about}\n{tale['next'].stdout}"
            assert f"# change {2000 + tale['number']}" in tale["next_text"], about
            assert f"\nchange {2000 + tale['number']}" in tale["next_text"], about
            assert tale["next_state"]["armed"] == {}, about
    assert sum(tale["killed"] == -signal.SIGKILL for tale in tales) >= KILLS * 0.7
    assert any(tale["locked"] for tale in tales), "no kill came while it was locked out"
    assert any(tale["state"]["armed"] and not tale["locked"] for tale in tales)
    assert any(not tale["state"]["armed"] for tale in tales)
