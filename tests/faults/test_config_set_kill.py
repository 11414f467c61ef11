# Copyright: (c) 2026, Bulwark contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""config_set killed with SIGKILL at every single step that it takes on the system.

A forked child runs the real module with the functions that reach the system wrapped: the n-th call kills the process
instead of being made (so right after the call before it), or, if it is a write, after half of the data. n goes from 1
until a run comes through alive. Flushing to disk is counted but left out, for a kill forgets nothing; the unit tests
look at its order.
"""

from __future__ import annotations

import contextlib
import grp
import io
import json
import os
import pwd
import shutil
import signal
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from ansible.module_utils.testing import patch_module_args
from ansible_collections.bulwark.hardening.plugins.module_utils import config_set as core
from ansible_collections.bulwark.hardening.plugins.modules import config_set

STEPS = "open write fsync rename replace unlink mkdir rmdir symlink chmod chown lchown fchmod fchown utime setxattr close"
OWNER = {"owner": pwd.getpwuid(os.geteuid()).pw_name, "group": grp.getgrgid(os.getegid()).gr_name}
LIMIT = 2000  # far more steps than any run takes: ends a test that would go on for ever


def look(path: str) -> tuple:
    """Return all that counts of what lies at a path."""
    try:
        seen = os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return ("absent",)
    about = (stat.filemode(seen.st_mode), seen.st_uid, seen.st_gid)
    if stat.S_ISLNK(seen.st_mode):
        return (*about, os.readlink(path))
    return (*about, Path(path).read_bytes()) if stat.S_ISREG(seen.st_mode) else about


class Host:
    """A directory that plays the host. The "service" reads service.conf when activated; it is what log says."""

    def __init__(self, top: Path) -> None:
        self.top = top
        self.root = top / "host"
        self.log = top / "log"
        self.names = ("service.conf", "link", "gone", "kept", "dropped", "a/b/new", "c/later")

    def reset(self) -> None:
        """Start again with what the host was before any set."""
        shutil.rmtree(self.top, ignore_errors=True)
        self.root.mkdir(parents=True, mode=0o755)
        (self.top / "tmp").mkdir()
        for name, mode, content in (
            ("service.conf", 0o640, "original " * 1000),
            ("gone", 0o600, "to be restored\n"),
            ("kept", 0o644, "kept as it is\n"),
        ):
            (self.root / name).write_text(content)
            (self.root / name).chmod(mode)
        os.symlink("kept", self.root / "link")
        shutil.copy(self.root / "service.conf", self.log)

    def arguments(self, version: str, check_mode: bool = False) -> dict:
        """Return the module's options for a version of the set: one, two, failing (its check fails) or absent."""

        def file(name: str, content: str, mode: str = "0644") -> dict:
            return {"path": str(self.root / name), "content": content, "mode": mode, **OWNER}

        files = {
            "one": [
                file("service.conf", "one " * 1000),
                file("link", "no link\n"),
                {"path": str(self.root / "gone"), "state": "absent"},
                file("kept", "kept as it is\n"),
                file("dropped", "one\n"),
                file("a/b/new", "one\n", "0600"),
            ],
            "two": [
                file("service.conf", "two " * 2000, "0600"),
                file("link", "no link\n"),
                file("gone", "here again\n"),
                file("kept", "kept as it is\n"),
                file("c/later", "two\n"),
            ],
            "absent": [],
        }
        files["failing"] = files["two"]
        return {
            "name": "demo",
            "state": "absent" if version == "absent" else "present",
            "files": files[version],
            "validate": ["grep -q . %(root)s" + str(self.root / "service.conf")],
            "check": ["false" if version == "failing" else "true"],
            "activate": [f"cp {self.root / 'service.conf'} {self.log}"],
            "state_dir": str(self.top / "state"),
            "_ansible_check_mode": check_mode,
            "_ansible_diff": True,
            "_ansible_tmpdir": str(self.top / "tmp"),
        }

    def run(self, version: str, check_mode: bool = False) -> dict:
        """Run the module to its end; return its result."""
        output = io.StringIO()
        numbers = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)
        handlers = [signal.getsignal(number) for number in numbers]
        try:
            with patch_module_args(self.arguments(version, check_mode)), contextlib.redirect_stdout(output):
                config_set.main()
        except SystemExit as exc:
            assert exc.code == 0, output.getvalue()
        finally:
            for number, handler in zip(numbers, handlers, strict=True):
                signal.signal(number, handler)
        return json.loads(output.getvalue())

    def state(self) -> dict:
        """Return all that lies on the host, by name."""
        names = {*self.names, "a", "a/b", "c"}
        return {name: look(str(self.root / name)) for name in names}

    def leftovers(self) -> list[str]:
        """Return temporary files and staging roots that should no longer be there."""
        found = [str(path) for path in self.top.rglob(f"{core.TEMPORARY}*")]
        return found + [str(path) for path in self.top.glob("state/*.staging")]


def in_child(arguments: dict, output: Path, prepare: Callable[[], None]) -> int:
    """Run the module in a forked child after calling C(prepare) there; return 0, 1 (module failed) or -signal."""
    if (child := os.fork()) == 0:
        sys.stdout = output.open("w")
        status = 2
        try:
            with patch_module_args(arguments):
                prepare()
                config_set.main()
        except SystemExit as exc:
            status = exc.code
        finally:
            sys.stdout.flush()
            os._exit(status)
    _pid, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status)


def killer(n: int) -> Callable[[], None]:
    """Return a function that has the process killed at the n-th step from its call."""

    def prepare() -> None:
        count = 0

        def wrap(function: Callable, name: str) -> Callable:
            def step(*arguments: object, **options: object) -> object:
                nonlocal count
                count += 1
                if count == n:
                    if name == "write":
                        function(arguments[0], arguments[1][: len(arguments[1]) // 2])
                    os.kill(os.getpid(), signal.SIGKILL)
                return function(*arguments, **options)

            return step

        for name in STEPS.split():
            setattr(os, name, wrap(getattr(os, name), name))
        subprocess.Popen.wait = wrap(subprocess.Popen.wait, "wait")

    return prepare


def survive(host: Host, history: list[str], version: str, follows: list[str]) -> int:
    """Kill the run of C(version), after those in C(history), at each of its steps, then let one of C(follows) run, in turn.

    A history entry "killed:<version>" is itself a run that is killed, while it activates. Returns the number of steps.
    """
    for n in range(1, LIMIT):
        follow = follows[n % len(follows)]
        host.reset()
        original, times = host.state(), os.lstat(host.root / "service.conf").st_mtime_ns
        possible = []
        for before in history:
            possible.append(host.state())
            if before.startswith("killed:"):
                last_wait = killer_of_activation()
                assert in_child(host.arguments(before[7:]), host.top / "result", last_wait) == -signal.SIGKILL
            else:
                host.run(before)
        old = host.state()
        status = in_child(host.arguments(version), host.top / "result", killer(n))
        killed = status == -signal.SIGKILL
        assert killed or status == (1 if version == "failing" else 0), (host.top / "result").read_text()
        now = host.state()

        possible += [old, WANTED["two" if version == "failing" else version](original)]
        for name in host.names:
            assert now[name] in [state[name] for state in possible], f"step {n}: {name} is torn: {now[name]}"

        record = host.top / "state" / "demo.json"
        pending = record.exists() and json.loads(record.read_text())["journal"] is not None
        predicted = host.run(follow, check_mode=True)
        assert host.state() == now, f"step {n}: check mode changed something"
        result = host.run(follow)
        for key in ("changed", "files", "removed", "recovered", "diff"):
            assert predicted[key] == result[key], f"step {n}: check mode predicted another {key}"
        assert result["recovered"] == pending, f"step {n}"
        assert host.state() == WANTED[follow](original), f"step {n}: did not converge"
        assert host.log.read_bytes() == (host.root / "service.conf").read_bytes(), f"step {n}: not in effect"
        assert host.leftovers() == [], f"step {n}"
        if follow != "absent":
            assert not host.run(follow)["changed"], f"step {n}: not stable"
            host.run("absent")
        assert host.state() == original, f"step {n}: original not restored"
        assert os.lstat(host.root / "service.conf").st_mtime_ns == times
        assert {path.name for path in host.top.glob("state/*")} <= {".lock"}, f"step {n}"
        if not killed:
            return n
    pytest.fail("never came to its end")


def killer_of_activation() -> Callable[[], None]:
    """Return a function that has the process killed right after its activation command has ended."""

    def prepare() -> None:
        wait = subprocess.Popen.wait

        def step(process: subprocess.Popen, *arguments: object, **options: object) -> int:
            status = wait(process, *arguments, **options)
            if os.path.basename(process.args[0]) == "cp":
                os.kill(os.getpid(), signal.SIGKILL)
            return status

        subprocess.Popen.wait = step

    return prepare


def one(original: dict) -> dict:
    """Return the host's state with version one of the set."""
    ids = (os.geteuid(), os.getegid())
    return {
        **original,
        "service.conf": ("-rw-r--r--", *ids, b"one " * 1000),
        "link": ("-rw-r--r--", *ids, b"no link\n"),
        "gone": ("absent",),
        "dropped": ("-rw-r--r--", *ids, b"one\n"),
        "a": ("drwxr-xr-x", *ids),
        "a/b": ("drwxr-xr-x", *ids),
        "a/b/new": ("-rw-------", *ids, b"one\n"),
    }


def two(original: dict) -> dict:
    """Return the host's state with version two of the set."""
    ids = (os.geteuid(), os.getegid())
    return {
        **original,
        "service.conf": ("-rw-------", *ids, b"two " * 2000),
        "link": ("-rw-r--r--", *ids, b"no link\n"),
        "gone": ("-rw-r--r--", *ids, b"here again\n"),
        "c": ("drwxr-xr-x", *ids),
        "c/later": ("-rw-r--r--", *ids, b"two\n"),
    }


WANTED = {"one": one, "two": two, "absent": dict}


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Host:
    monkeypatch.setattr(os, "fsync", lambda fd: None)
    monkeypatch.setattr(config_set.AnsibleModule, "log", lambda self, msg, log_args=None: None)
    return Host(tmp_path / "top")


@pytest.mark.parametrize(
    ("history", "version", "follow"),
    [
        ([], "one", ["one", "absent"]),
        (["one"], "two", ["two", "absent"]),
        (["one"], "absent", ["absent", "two"]),
        (["one"], "failing", ["one", "absent", "two"]),
        (["one", "killed:two"], "two", ["two", "absent"]),
    ],
    ids=["first", "second", "absent", "rollback", "recovery"],
)
def test_killed_at_every_step(host, history, version, follow):
    steps = survive(host, history, version, follow)
    print(f"{steps} steps")
    assert steps > 40, "the wrapped functions are no longer those that the module calls"
