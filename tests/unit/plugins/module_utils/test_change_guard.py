# Copyright: (c) 2026, Bulwark contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The guard on a directory that plays the host, with systemd and nft made up. Real ones: tests/faults/test_change_guard.py."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from ansible_collections.bulwark.hardening.plugins.module_utils import change_guard as guard
from ansible_collections.bulwark.hardening.plugins.module_utils import config_set as core

STEPS = "open write fsync rename replace unlink mkdir rmdir symlink chmod chown lchown fchmod fchown utime setxattr close"
WHO = {"account": "deploy", "address": "192.0.2.10"}
PROGRAM = {"change_guard": "x = 1\n", "config_set": "y = 2\n"}
TABLE = "table inet {name} {{\n\tchain c {{\n\t\t{rule}\n\t}}\n}}"


class Host:
    """A tree of files, tables and units, and what was asked of systemd."""

    def __init__(self, top: Path) -> None:
        self.top, self.root = top, top / "host"
        self.tables: dict[str, str] | None = {}
        self.active = {"ssh.service"}
        self.called: list[str] = []
        self.unreadable: set[str] = set()  # tables that nft would not load
        self.timer = "ActiveState=active\nSubState=waiting\nNextElapseUSecMonotonic=9min"

    def make(self) -> None:
        shutil.rmtree(self.top, ignore_errors=True)
        ssh = self.root / "etc/ssh"
        (ssh / "sshd_config.d").mkdir(parents=True)
        (ssh / "sshd_config").write_text("Port 22\n")
        (ssh / "key").write_text("secret\n")
        (ssh / "key").chmod(0o600)
        (ssh / "link").symlink_to("sshd_config")
        (ssh / "empty").mkdir(mode=0o750)
        (ssh / "kind").mkdir()
        os.mkfifo(ssh / "pipe")
        (self.root / "etc/units").mkdir()
        (self.root / "sets").mkdir(mode=0o700)
        (self.root / "var").mkdir()
        (self.root / "outside").write_text("first\n")

    def break_in(self) -> None:
        """Change something of every kind."""
        ssh = self.root / "etc/ssh"
        (ssh / "sshd_config").write_text("Port 2222\n")
        (ssh / "key").chmod(0o644)
        (ssh / "link").unlink()
        (ssh / "link").write_text("a file now\n")
        (ssh / "empty").rmdir()
        (ssh / "kind").rmdir()
        (ssh / "kind").symlink_to("elsewhere")
        (ssh / "new/deep").mkdir(parents=True)
        (ssh / "new/deep/file").write_text("came\n")
        (ssh / "sshd_config.d").chmod(0o700)
        (self.root / "etc/sudoers").write_text("came\n")
        (ssh / ".bulwark-0123.tmp").write_text("of a killed run\n")

    def tree(self) -> dict[str, tuple]:
        found = {}
        for path in sorted(self.root.rglob("*")):
            name, seen = str(path.relative_to(self.root)), path.lstat()
            if name.startswith("var") or name == "sets/.lock":
                continue
            about = (stat.filemode(seen.st_mode), seen.st_uid, seen.st_gid)
            if path.is_symlink():
                found[name] = (*about, os.readlink(path))
            elif path.is_file():
                found[name] = (*about, seen.st_mtime_ns, path.read_bytes())
            else:
                found[name] = about
        return found

    def call(self, argv: list[str], text: str = "", seconds: float = 60) -> tuple[int, str]:
        line = " ".join(argv)
        self.called.append(line)
        if argv[0] == "nft":
            return self.nft(argv[1:], text)
        if argv[0] == "systemd-run":
            return 0, ""
        if line.startswith("systemctl list-units"):
            return 0, "\n".join(f"{unit} loaded active running It" for unit in sorted(self.active))
        if line.startswith("systemctl show"):
            return 0, self.timer
        if argv[:2] == ["systemctl", "stop"]:
            self.active.discard(argv[2])
        if argv[:2] in (["systemctl", "start"], ["systemctl", "restart"]):
            self.active.add(argv[2])
        return 0, ""

    def nft(self, argv: list[str], text: str) -> tuple[int, str]:
        if self.tables is None:
            return 127, "nft is not installed"
        if argv == ["list", "tables"]:
            return 0, "\n".join(f"table {name}" for name in self.tables)
        if "table" in argv:
            return 0, self.tables[" ".join(argv[argv.index("table") + 1 :])]
        if any(f"table {name} {{" in text for name in self.unreadable):
            return 1, "cannot be read"
        if "-c" in argv:
            return 0, ""
        for line in text.splitlines():
            if line.startswith("delete table "):
                self.tables.pop(line[13:], None)
        for name, body in re.findall(r"^table (\w+ \w+) (\{\n.*?^\})", text, re.MULTILINE | re.DOTALL):
            self.tables[name] = f"table {name} {body}"
        return 0, ""


@pytest.fixture
def host(tmp_path, monkeypatch) -> Host:
    made = Host(tmp_path / "top")
    made.make()
    root = made.root
    for name, value in {
        "DIRECTORY": f"{root}/var/guard",
        "SETS": f"{root}/sets",
        "LOCK": f"{tmp_path}/lock",
        "MARK": f"{root}/var/mark",
        "BOOT_UNIT": f"{root}/etc/units/bulwark-guard-boot.service",
        "BOOT_LINK": f"{root}/etc/units/sysinit.target.wants/bulwark-guard-boot.service",
        "PATHS": (f"{root}/etc/ssh", f"{root}/etc/sudoers", f"{root}/etc/units", f"{root}/sets"),
        "PATIENCE": 0.1,
        "call": made.call,
        "log": lambda text: None,
        "uptime": lambda: 100.0,
    }.items():
        monkeypatch.setattr(guard, name, value)
    return made


def arm(began: float | None = 50, **more) -> dict:
    options = {"sources": PROGRAM, "window": 60, "paths": [], "units": [], "who": WHO, "began": began, **more}
    return guard.arm(**options)


def left(host: Host) -> list[str]:
    """Return what the guard has left behind, the report aside."""
    names = {str(path.relative_to(host.root)) for path in (host.root / "var").rglob("*")}
    units = {str(path.relative_to(host.root)) for path in (host.root / "etc/units").rglob("*bulwark-guard*")}
    return sorted(names | units - {"var/guard", "var/guard/report.json"})


def test_everything_comes_back(host):
    before = host.tree()
    arm()
    host.break_in()
    assert host.tree() != before
    report = guard.roll_back()
    assert host.tree() == before
    assert not report["problems"]
    assert f"{host.root}/etc/ssh/sshd_config" in report["files"]
    assert left(host) == ["var/guard", "var/guard/report.json"]
    assert guard.roll_back() == {}, "once is enough"
    assert guard.status()["report"]["at"] == report["at"]


def test_sshd_is_started_anew_only_if_it_accepts_what_came_back(host, monkeypatch):
    """Restarted, not reloaded, and checked before."""
    monkeypatch.setattr(guard, "READS", {"ssh.service": f"{host.root}/etc/ssh/"})
    arm()
    host.break_in()
    assert guard.roll_back()["units"] == ["restart ssh.service"]
    assert host.called.index("/usr/sbin/sshd -t") < host.called.index("systemctl restart ssh.service")
    arm()
    host.break_in()
    usual = host.call
    monkeypatch.setattr(guard, "call", lambda argv, *rest, **more: (1, "bad") if argv[-1] == "-t" else usual(argv, *rest, **more))
    report = guard.roll_back()
    assert report["units"] == []
    assert "sshd -t refuses" in report["problems"][0]


def test_no_change_is_confirmed_over_the_connection_that_is_there(host):
    before = host.tree()
    arm()
    assert not any(guard.confirm(began=50).values())
    assert host.tree() == before
    assert left(host) == []
    assert "systemctl stop bulwark-guard-*.timer" in host.called


def test_a_connection_from_before_the_change_confirms_nothing(host, monkeypatch):
    """Not one from before arming, not one from between arming and asking, however often it asks."""
    arm(began=50)
    host.break_in()
    for began in (50, 105):
        monkeypatch.setattr(guard, "uptime", lambda: 110.0)
        with pytest.raises(guard.NewConnectionNeeded):
            guard.confirm(began=began)
    assert guard.status()["guard"] == "armed"
    monkeypatch.setattr(guard, "uptime", lambda: 112.0)
    assert guard.confirm(began=111)["files"]
    assert left(host) == []


def test_having_asked_once_does_not_count_for_ever(host, monkeypatch):
    """A connection that was made long ago, after somebody asked in vain, may be from before a further change."""
    arm()
    host.break_in()
    with pytest.raises(guard.NewConnectionNeeded):
        guard.confirm(began=50)
    monkeypatch.setattr(guard, "uptime", lambda: 100.0 + guard.FRESH + 1)
    with pytest.raises(guard.NewConnectionNeeded):
        guard.confirm(began=101)


def test_what_is_not_ssh_may_confirm(host):
    arm(began=None)
    host.break_in()
    assert guard.confirm(began=None)["files"]


def test_confirming_too_late_says_what_happened(host):
    arm()
    host.break_in()
    report = guard.roll_back()
    with pytest.raises(core.Refused, match=f"no guard is armed.*taken back at {report['at']}, as nobody confirmed it within 60"):
        guard.confirm(began=200)
    arm()
    guard.confirm(began=50)
    with pytest.raises(core.Refused, match=r"nothing to confirm$"):
        guard.confirm(began=50)


def test_a_guard_left_by_a_killed_run_is_adopted_with_its_snapshot(host):
    before = host.tree()
    arm()
    first = guard.load("armed.json")["generation"]
    host.break_in()
    with pytest.raises(guard.NewConnectionNeeded):
        arm(began=99)
    extra = host.root / "outside"
    done = arm(began=101, paths=[str(extra)], units=["more.service"])
    assert done["adopted"]["account"] == "deploy"
    assert f"systemctl stop bulwark-guard-{first}.timer" in host.called
    extra.write_text("second\n")
    assert guard.roll_back(generation=first) == {}, "the first timer no longer counts"
    guard.roll_back(generation=guard.load("armed.json")["generation"])
    assert host.tree() == before


def test_without_a_waiting_timer_nothing_is_armed(host):
    host.timer = "ActiveState=inactive\nSubState=dead\nNextElapseUSecMonotonic=infinity"
    with pytest.raises(core.Refused, match="nothing may be changed"):
        arm()
    assert guard.load("armed.json") == {}
    guard.roll_back()
    assert left(host) == []


def test_at_boot_it_rolls_back_unless_the_machine_has_not_been_started_anew(host):
    before = host.tree()
    host.tables = {"inet mine": TABLE.format(name="mine", rule="accept")}
    arm()
    host.break_in()
    assert guard.roll_back(boot=True) == {}
    (host.root / "var/mark").unlink()  # as a boot does
    host.tables = {}  # so does this
    report = guard.roll_back(boot=True)
    assert "started anew" in report["why"]
    assert host.tree() == before
    assert host.tables == {}, "the boot itself loads them, from the files that are back"
    assert report["units"] == ["start ssh.service"]
    assert "systemctl --no-block start ssh.service" in host.called


def test_tables_that_differ_come_back_and_the_others_are_not_touched(host):
    host.tables = {f"inet {name}": TABLE.format(name=name, rule="accept") for name in ("mine", "theirs", "gone")}
    before = dict(host.tables)
    arm()
    host.tables["inet mine"] = TABLE.format(name="mine", rule="drop")
    host.tables["inet lockout"] = TABLE.format(name="lockout", rule="drop")
    del host.tables["inet gone"]
    host.called.clear()
    report = guard.roll_back()
    assert host.tables == before
    assert report["tables"] == ["inet gone", "inet lockout", "inet mine"]
    assert not report["problems"]


def test_what_iptables_wrote_is_named_and_left(host):
    table = "table ip filter { # managed by iptables-nft\n\tchain c {\n\t\taccept\n\t}\n}"
    host.tables = {"ip filter": table, "inet odd": TABLE.format(name="odd", rule="xyz")}
    host.unreadable = {"inet odd"}
    notes = arm()["notes"]
    assert [note for note in notes if note.startswith("table")] == [
        f"table {name} could not be loaded again, so it stays as it is" for name in ("ip filter", "inet odd")
    ]
    host.tables["ip filter"] = table.replace("accept", "drop")
    assert "table ip filter was changed and cannot be put back" in guard.roll_back()["problems"][0]


def test_with_nft_came_only_what_nft_wrote(host):
    """What iptables-nft keeps may have been there before nft was installed."""
    host.tables = None
    arm()
    host.tables = {"inet x": TABLE.format(name="x", rule="drop"), "ip nat": "table ip nat { # managed by iptables-nft\n}"}
    guard.roll_back()
    assert list(host.tables) == ["ip nat"]


def test_elements_that_come_by_themselves_are_no_difference():
    text = "table inet f {{\n\tset banned {{\n\t\ttype ipv4_addr\n\t\tflags dynamic,timeout\n{}\t}}\n\n\tset {} }}\n}}"
    listed = "\t\telements = {{ {} }}\n"
    plain = "fixed {{\n\t\ttype ipv4_addr\n\t\telements = {{ {} }}\n\t}}"
    one = text.format(listed.format("192.0.2.1 timeout 1m,\n\t\t\t192.0.2.2"), plain.format("192.0.2.9"))
    two = text.format(listed.format("192.0.2.3"), plain.format("192.0.2.9"))
    three = text.format(listed.format("192.0.2.3"), plain.format("192.0.2.8"))
    none = text.format("", plain.format("192.0.2.9"))
    assert guard.steady(none) == guard.steady(one) == guard.steady(two)
    assert guard.steady(two) != guard.steady(three)


def test_units_go_back_to_what_they_were(host):
    host.active = {"ssh.service", "bulwark-x.timer"}
    arm()
    host.active = {"ssh.socket", "bulwark-new.service", "nftables.service", "bulwark-guard-1.timer"}
    host.called.clear()
    done = guard.roll_back()["units"]
    assert done == ["stop bulwark-new.service", "stop ssh.socket", "start ssh.service", "start bulwark-x.timer"]
    assert not [line for line in host.called if "nftables" in line.split("list-units")[0]]


def config_set(host: Host, **more: object) -> dict:
    """Return a record of config_set."""
    return {**core.new_record("demo"), **more}


def test_what_config_set_wrote_elsewhere_goes_back_with_its_records(host):
    """Or the next run would take its own file for what was there first."""
    outside, made = str(host.root / "outside"), str(host.root / "made")
    store = core.Store(guard.SETS)
    kept = str(host.root / "kept")
    Path(kept).write_text("owned before\n")
    store.save(config_set(host, files={kept: {"original": dict(core.ABSENT), "secret": False}}))
    before = host.tree()
    arm()
    owned = {path: {"original": core.snapshot(path), "secret": False} for path in (outside, f"{made}/file")}
    Path(outside).write_text("second\n")
    Path(kept).unlink()
    os.mkdir(made)
    Path(made, "file").write_text("came\n")
    store.save(config_set(host, files=owned, directories=[made]))
    assert outside in guard.differences()["files"]
    guard.roll_back()
    assert host.tree() == before


def test_a_killed_transaction_goes_back_too_and_what_others_put_there_stays(host):
    outside, made = str(host.root / "outside"), str(host.root / "made")
    store, before = core.Store(guard.SETS), host.tree()
    arm()
    steps = [[outside, core.snapshot(outside)], [made, dict(core.ABSENT)]]
    store.save(config_set(host, journal={"before": steps, "activate": [], "activating": False, "secret": False}))
    Path(outside).write_text("half\n")
    os.mkdir(made)
    Path(made, "others").write_text("stays\n")
    guard.roll_back()
    assert Path(made, "others").read_text() == "stays\n"
    shutil.rmtree(made)
    assert host.tree() == before


def test_config_set_at_work_is_ended_first(host):
    before = host.tree()
    arm()
    (host.root / "sets/.lock").touch()
    holder = subprocess.Popen(["flock", "--close", f"{guard.SETS}/.lock", "sleep", "3"])
    try:
        while not guard.holders(f"{guard.SETS}/.lock"):
            assert holder.poll() is None
        host.break_in()
        report = guard.roll_back()
    finally:
        holder.kill()
    assert holder.wait() == -signal.SIGKILL
    assert "config_set was at work" in report["problems"][0]
    assert host.tree() == before


def test_no_secret_gets_out(host):
    arm()
    (host.root / "etc/ssh/key").write_text("another secret\n")
    said = json.dumps([guard.status(), guard.roll_back(), guard.status()])
    assert "secret\\n" not in said
    assert f"{host.root}/etc/ssh/key" in said


def test_what_is_remembered_is_for_root_only(host):
    arm()
    for path in (host.root / "var/guard").rglob("*"):
        assert path.stat().st_mode & 0o077 == 0, path
    assert (host.root / "var/guard").stat().st_mode & 0o777 == 0o700


def test_too_large_a_snapshot_is_refused_before_anything_is_armed(host, monkeypatch):
    monkeypatch.setattr(guard, "MOST_ENTRIES", 3)
    with pytest.raises(core.Refused, match="narrower"):
        arm()
    assert guard.load("armed.json") == {}


def in_child(action: Callable[[], object], n: int) -> int:
    """Run an action in a forked child that is killed at the n-th step on the system; return 0 or -signal."""
    if (child := os.fork()) == 0:
        count = 0

        def wrap(function: Callable, name: str) -> Callable:
            def step(*arguments, **options):
                nonlocal count
                count += 1
                if count == n:
                    if name == "write":
                        function(arguments[0], arguments[1][: len(arguments[1]) // 2])
                    os.kill(os.getpid(), signal.SIGKILL)
                return function(*arguments, **options)

            return step

        try:
            for name in STEPS.split():
                setattr(os, name, wrap(getattr(os, name), name))
            action()
        except BaseException:
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.mark.parametrize("what", ["arm", "rollback", "confirm"])
def test_killed_at_every_step(host, monkeypatch, what):
    """Arming: armed in full or not at all. Rolling back: begun again, it ends the same. Confirming: kept or still armed."""
    monkeypatch.setattr(os, "fsync", lambda fd: None)
    actions = {"arm": lambda: arm(began=None), "rollback": guard.roll_back, "confirm": lambda: guard.confirm(None)}
    for n in range(1, 2000):
        host.make()
        before = host.tree()
        if what != "arm":
            arm(began=None)
            host.break_in()
        after = {name: entry for name, entry in host.tree().items() if not name.startswith("etc/units/")}
        status = in_child(actions[what], n)
        assert status in (0, -signal.SIGKILL), f"step {n}"
        armed = bool(guard.load("armed.json"))
        if what == "arm":
            assert armed or status, f"step {n}"
            host.break_in()
            if not armed:
                arm(began=None)
                guard.confirm(None)
                assert left(host) == [], f"step {n}"
                continue
            guard.roll_back()
        elif what == "rollback":
            guard.roll_back()
            assert guard.status()["report"], f"step {n}"
        elif armed:
            assert {**host.tree(), **after} == host.tree(), f"step {n}: still armed, so unharmed"
            guard.roll_back()
        else:
            guard.roll_back()  # as its timer might
            assert host.tree() == {**after, "etc/units": before["etc/units"]}, f"step {n}: it was confirmed"
            assert left(host) == [], f"step {n}"
            if not status:
                break
            continue
        assert host.tree() == before, f"step {n}"
        assert set(left(host)) <= {"var/guard", "var/guard/report.json"}, f"step {n}"
        if not status:
            break
    assert not status and n > 20, n
    print(f"{n} steps")
