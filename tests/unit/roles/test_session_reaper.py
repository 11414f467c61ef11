# Copyright: (c) 2026, Bulwark contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The program that logs idle people off: whom it counts as idle, and whom it takes for logged in at all.

The process tables were taken from Debian 12 and 13 with, at once: a console login, ssh with `sudo -i`, ssh with tmux, ssh
with a running program, and an ssh command without a terminal.
"""

from __future__ import annotations

import importlib.util
import json
import os
import pty
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
PROGRAM = ROOT / "roles" / "session" / "files" / "session_reaper.py"
FIXTURES = ROOT / "tests" / "unit" / "plugins" / "module_utils" / "posture" / "fixtures" / "session"
RELEASES = ("debian12", "debian13")


@pytest.fixture
def reaper():
    spec = importlib.util.spec_from_file_location("session_reaper", PROGRAM)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(params=RELEASES)
def table(request, reaper):
    """Return the processes of a release."""
    text = (FIXTURES / f"{request.param}-hardened-proc_stat.txt").read_text()
    return [reaper.parse_stat(line) for line in text.splitlines()]


def logins(reaper, monkeypatch, table, status="Uid:\t0\t0\t0\t0\n"):
    """Return {path: name of the first process} of the terminals somebody logged in on."""
    monkeypatch.setattr(reaper, "read", lambda path: status if path.endswith("/status") else "")
    by_pid = {process.pid: process for process in table}
    return {found.path: found.leader.name for found in reaper.terminals(table) if reaper.is_login(found, by_pid)}


def test_logins_are_told_from_other_terminals(reaper, monkeypatch, table):
    every = {found.path for found in reaper.terminals(table)}
    found = logins(reaper, monkeypatch, table)
    assert every - set(found) == {"/dev/pts/4", "/dev/pts/5"}  # sudo's own terminal, and the pane of tmux
    assert found["/dev/pts/0"] == "bash"  # the console: its shell, not login, which on Debian 12 leads the session
    assert sorted(found.values()) == ["bash", "bash", "bash", "tmux: client"]


def test_program_called_login_is_not_login(reaper, monkeypatch, table):
    assert "/dev/pts/0" not in logins(reaper, monkeypatch, table, status="Uid:\t1001\t1001\t1001\t1001\n")


def test_input_within_a_terminal_counts_for_it(reaper, table):
    every = reaper.terminals(table)
    idle = {reaper.key(terminal): 100.0 for terminal in every}
    inner = next(terminal for terminal in every if terminal.path == "/dev/pts/4")
    idle[reaper.key(inner)] = 3.0
    least = {terminal.path: reaper.shared_idle(terminal, idle, every) for terminal in every}
    (outer,) = (path for path, seconds in least.items() if seconds == 3.0 and path != "/dev/pts/4")
    assert next(terminal for terminal in every if terminal.path == outer).processes[-1].name == "sudo"


@pytest.mark.parametrize("name", ["bash", "tmux: client", "a) b (c", "(sd-pam)"])
def test_names_of_any_kind_are_read(reaper, name):
    line = f"4711 ({name}) S 1 4711 4711 34817 4712 4194560 1 2 3 4 5 6 7 8 20 0 1 0 987654 1 2 3"
    assert reaper.parse_stat(line) == (4711, name, 1, 4711, 4711, 34817, 4712, 987654)


@pytest.mark.parametrize(("device", "path"), [(34816, "/dev/pts/0"), (34816 + 255, "/dev/pts/255"), (35072, "/dev/pts/256")])
def test_paths_of_terminals(reaper, device, path):
    assert reaper.device_path(device) == path


def seen(atime, ctime=0.0, queued=0):
    return {"atime": atime, "ctime": ctime, "queued": queued}


def test_new_terminal_is_counted_from_the_last_look(reaper):
    """A console may carry the times of whoever sat there yesterday."""
    noted = reaper.note_input(None, seen(atime=1000.0), now=500.0, wall=90000.0, looked=440.0)
    assert noted["since"] == 440.0
    assert reaper.note_input(None, seen(atime=1000.0), now=500.0, wall=90000.0, looked=None)["since"] == 500.0
    assert reaper.note_input(None, seen(atime=89990.0), now=500.0, wall=90000.0, looked=440.0)["since"] == 490.0


def test_no_input_leaves_the_count(reaper):
    before = {**seen(1000.0), "since": 100.0, "warned": True}
    assert reaper.note_input(before, seen(1000.0), now=500.0, wall=1500.0, looked=440.0) == before


def test_input_starts_anew(reaper):
    before = {**seen(1000.0), "since": 100.0, "warned": True}
    noted = reaper.note_input(before, seen(1490.0), now=500.0, wall=1500.0, looked=440.0)
    assert (noted["since"], noted["warned"]) == (490.0, False)


@pytest.mark.parametrize("step", [-86400.0, -3600.0, 3600.0, 86400.0])
def test_setting_the_clock_logs_nobody_off(reaper, step):
    """Typed ten seconds ago, and then somebody set the clock: at most the time between two looks is counted."""
    before = {**seen(1000.0), "since": 100.0, "warned": False}
    noted = reaper.note_input(before, seen(1490.0), now=500.0, wall=1500.0 + step, looked=440.0)
    assert 440.0 <= noted["since"] <= 500.0
    assert reaper.note_input(noted, seen(1490.0), now=560.0, wall=1560.0 + step, looked=500.0)["since"] == noted["since"]


def test_touched_terminal_had_no_input(reaper):
    before = {**seen(1000.0, ctime=10.0), "since": 100.0, "warned": True}
    noted = reaper.note_input(before, seen(1490.0, ctime=1490.0), now=500.0, wall=1500.0, looked=440.0)
    assert (noted["since"], noted["warned"]) == (100.0, True)
    # and typing afterwards counts again
    assert reaper.note_input(noted, seen(1550.0, ctime=1490.0), now=560.0, wall=1560.0, looked=500.0)["since"] == 550.0


def test_what_waits_to_be_read_is_input(reaper):
    before = {**seen(1000.0, queued=1), "since": 100.0, "warned": True}
    assert reaper.note_input(before, seen(1000.0, queued=2), now=500.0, wall=1500.0, looked=440.0)["since"] == 500.0
    assert reaper.note_input(before, seen(1000.0, queued=1), now=500.0, wall=1500.0, looked=440.0)["since"] == 100.0


def test_times_without_a_typist_count_on(reaper):
    """What a program prints moves neither of the times looked at."""
    master, terminal = os.openpty()
    path = os.ttyname(terminal)
    before = os.stat(path)
    os.write(terminal, b"top\n")
    os.read(master, 10)
    after = os.stat(path)
    assert (before.st_atime, before.st_ctime) == (after.st_atime, after.st_ctime)
    assert reaper.queued(path) == 0
    os.write(master, b"typed\n")
    time.sleep(0.1)
    assert reaper.queued(path) == 6
    os.close(master)
    os.close(terminal)


@pytest.mark.parametrize(("status", "container"), [("NSpid:\t335\n", False), ("NSpid:\t11991\t1\n", True), ("", False)])
def test_containers(reaper, status, container):
    assert reaper.in_a_container(f"Name:\tbash\n{status}Threads:\t1\n") is container


@pytest.mark.parametrize(
    ("release", "old"), [("6.1.0-40-amd64", True), ("6.12.48+deb13-amd64", False), ("6.6.0", False), ("x", False)]
)
def test_kernels(reaper, release, old):
    assert reaper.old_kernel(release) is old


@pytest.mark.parametrize("text", ["", "{", "[]", '{"looked": "x"}', '{"looked": 1, "terminals": 3, "dev_tty": 0}'])
def test_unusable_memory_counts_everybody_anew(reaper, tmp_path, capsys, text):
    (tmp_path / "memory.json").write_text(text)
    assert reaper.remember(str(tmp_path / "memory.json")) == {"looked": None, "dev_tty": None, "terminals": {}}
    assert "<4>" in capsys.readouterr().out


def test_missing_memory_is_nothing_special(reaper, tmp_path, capsys):
    assert reaper.remember(str(tmp_path / "memory.json"))["looked"] is None
    assert capsys.readouterr().out == ""


def on_a_terminal(*argv):
    """Start a program on a terminal of its own; return (pid, our end)."""
    pid, master = pty.fork()
    if pid == 0:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)  # under nohup it would stay ignored, and nothing could trap it
        os.execvp(argv[0], argv)
    return pid, master


def look_for(reaper, pid):
    everything = reaper.processes()
    return [terminal for terminal in reaper.terminals(everything) if terminal.leader.pid == pid]


@pytest.mark.parametrize(("trap", "graceful"), [("trap 'exit 7' HUP", True), ("trap '' HUP", False)])
def test_hanging_up_comes_first_and_killing_after_it(reaper, trap, graceful):
    pid, master = on_a_terminal("sh", "-c", f"{trap}; echo ready; while :; do sleep 0.1; done")
    os.read(master, 100)
    patience = 20.0 if graceful else 1.0
    began = time.monotonic()
    assert reaper.end(look_for(reaper, pid), patience) == []
    _pid, status = os.waitpid(pid, 0)
    if graceful:
        assert os.WEXITSTATUS(status) == 7
        assert time.monotonic() - began < patience
    else:
        assert os.WTERMSIG(status) == signal.SIGKILL
    os.close(master)


def test_number_used_again_is_spared(reaper):
    """Between looking and ending, another process may have got the number."""
    pid, master = on_a_terminal("sleep", "60")
    time.sleep(0.2)
    (terminal,) = look_for(reaper, pid)
    stranger = terminal._replace(leader=terminal.leader._replace(started=1), processes=[terminal.leader._replace(started=1)])
    reaper.end([stranger], 0.2)
    assert os.waitpid(pid, os.WNOHANG) == (0, 0)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    os.close(master)


def test_terminal_nobody_logged_in_on_is_left_alone(tmp_path):
    """A terminal made by a program for a program (as apt does for dpkg) stays, however long nobody types there."""
    pid, master = on_a_terminal("sleep", "60")
    time.sleep(0.2)
    argv = [sys.executable, PROGRAM, "--limit=1", "--end-after=0", "--memory", tmp_path / "memory.json"]
    # Only our own process tree may be looked at here, so the program is given one: this terminal and nothing else
    wrapper = (
        "import importlib.util, sys; spec = importlib.util.spec_from_file_location('r', sys.argv[1]);"
        "r = importlib.util.module_from_spec(spec); spec.loader.exec_module(r); every = r.processes();"
        f"r.processes = lambda: [p for p in every if p.pid in ({pid}, {os.getpid()})];"
        "sys.argv = sys.argv[1:]; sys.exit(r.main())"
    )
    done = subprocess.run([sys.executable, "-c", wrapper, *argv[1:]], check=False, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert os.waitpid(pid, os.WNOHANG) == (0, 0)
    memory = json.loads((tmp_path / "memory.json").read_text())
    assert len(memory["terminals"]) == 1
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    os.close(master)
