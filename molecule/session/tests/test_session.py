# SPDX-License-Identifier: GPL-3.0-or-later
"""Proofs of the session role: whoever leaves a session alone is logged off, whatever runs there; whoever works is not.

Half an hour is stood for by LIMIT seconds: the trial applies the role with it, opens all sessions at once, leaves them
alone, notes when each ended, and puts the default back. So each test below only asks how one kind of session fared.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import subprocess
import threading
import time
from collections.abc import Callable

import pytest

LIMIT = 25  # seconds for what is 1800 by default
UNUSED = 5  # of these, sshd gives a connection with nothing open; LIMIT - UNUSED to what is open
LOGIND = "busctl get-property org.freedesktop.login1 /org/freedesktop/login1 org.freedesktop.login1.Manager StopIdleSessionUSec"
LATE = 6  # seconds until an ended session is noticed here, on a busy machine; the journal tells the host's own count

# Idle sessions on terminals: who logs in, and what they type before they leave. Each must have ended by LIMIT.
IDLE = {
    "bash": ("bella", ""),
    "zsh": ("zoe", ""),
    "dash": ("dan", ""),
    "ksh": ("kim", ""),
    "mksh": ("mo", ""),
    "bash running sleep": ("bella", "sleep 600"),
    "bash running cat": ("bella", "cat"),
    "bash printing, like top": ("bella", "while :; do date; sleep 1; done"),
    "bash without TMOUT": ("bella", "exec env -u TMOUT bash --norc"),
    "dash instead of bash": ("bella", "exec dash"),
    "sudo -i": ("bella", "sudo -i"),
    "sudo -i without a terminal of its own": ("dan", "sudo -i"),
    "su -": ("bella", "exec sudo su - dan"),
    "terminal within a terminal": ("bella", "exec script -q /dev/null"),
    "pager": ("bella", "cat /etc/services | more"),
    "program that ignores hanging up": ("bella", "exec bash -c 'trap \"\" HUP; while :; do date; sleep 1; done'"),
    "terminal whose times are set by hand": ("bella", "while :; do touch $(tty); date; sleep 1; done"),
    "tmux": ("bella", "exec tmux -L idle"),
    "tmux with a clock": ("bella", "exec tmux -L clock new 'while :; do date; sleep 1; done'"),
    "screen": ("bella", "exec screen -S idle"),
}
# Sessions in which somebody types a line every other second, and what they start first. Each must still be there.
PRINTING = "while :; do date; sleep 1; done"
BUSY = {
    "bash": ("tim", ""),
    "dash": ("dan", ""),
    "sudo -i": ("tim", "sudo -i"),
    "tmux": ("tim", "exec tmux -L busy"),
    "program that reads": ("tim", "cat"),
    "program that does not read": ("tim", "sleep 603"),
}


def wait_for(condition: Callable[[], bool], at_most: float) -> None:
    """Wait until something holds, or until so many seconds have passed."""
    until = time.monotonic() + at_most
    while not condition() and time.monotonic() < until:
        time.sleep(0.2)


@dataclasses.dataclass
class Session:
    """A client at work here: what it printed, and when the other side ended it."""

    argv: list[str]
    first: list[str] = dataclasses.field(default_factory=list)
    every: float = 0  # seconds between lines typed after that, 0 for never
    shown: str = ""
    began: float = 0.0  # when it was first left alone: after the prompt, or after the first line was typed
    lasted: float | None = None  # seconds since then until the other side ended it, None if it did not
    closed: bool = False  # by this side

    def __post_init__(self) -> None:
        """Start it."""
        self.client = subprocess.Popen(
            self.argv,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            bufsize=0,
            env={**os.environ, "TERM": "xterm"},
        )
        self.began = self.born = time.monotonic()
        threading.Thread(target=self.read, daemon=True).start()
        threading.Thread(target=self.type, daemon=True).start()

    def read(self) -> None:
        """Collect what it prints, and note when it ends."""
        while block := self.client.stdout.read(4096):
            if not self.shown:
                self.began = time.monotonic()
            self.shown += block.decode(errors="replace")
        self.client.wait()
        if not self.closed:
            self.lasted = time.monotonic() - self.began

    def type(self) -> None:
        """Type the first lines, each at a new prompt, then whatever is to be typed."""
        seen = 0
        try:
            for line in self.first:
                wait_for(lambda seen=seen: self.over or re.search(r"[$#%] (\x1b\S*)?$", self.shown[seen:]), 60)
                seen = len(self.shown)
                self.client.stdin.write(f"{line}\n".encode())
                self.began = time.monotonic()
            while self.every and not self.over:
                time.sleep(self.every)
                self.client.stdin.write(b":\n")
        except OSError:
            pass  # it was ended meanwhile

    @property
    def over(self) -> bool:
        """Whether either side ended it."""
        return self.lasted is not None or self.closed

    def close(self) -> None:
        """End it from this side."""
        self.closed = True
        self.client.kill()


# Runs on the host: offers a new terminal to getty, which logs somebody in; types a command; prints how long the login lasted.
CONSOLE = """
import os, pty, select, sys, time
user, command, at_most = sys.argv[1], sys.argv[2], float(sys.argv[3])
child, master = pty.fork()
if child == 0:
    os.execv("/sbin/agetty", ["agetty", "--autologin", user, "--noissue", "-", "linux"])
began, shown, typed = time.monotonic(), b"", False
while time.monotonic() - began < at_most:
    if select.select([master], [], [], 0.2)[0]:
        try:
            shown += os.read(master, 4096)
        except OSError:
            if typed:
                break
            time.sleep(0.1)  # getty and login hang the terminal up once, for whoever had it before
    elif not typed and shown.rstrip().endswith(b"$"):
        os.write(master, command.encode() + b"\\n")
        typed = True
        began = time.monotonic()
lasted = time.monotonic() - began
os.kill(child, 9)  # not waited for yet, so at worst it is dead already
print(f"{lasted if lasted < at_most else -1:.1f} {'warned' if b'Press Enter' in shown else 'not warned'}")
"""

# Runs on the host: starts a login shell on a terminal nobody logged in on, so that only the shell itself can end it.
SHELL = """
import os, pty, select, sys, time
child, master = pty.fork()
if child == 0:
    os.execvp("runuser", ["runuser", "-l", sys.argv[1]])
began, shown = time.monotonic(), b""
while time.monotonic() - began < float(sys.argv[2]):
    if select.select([master], [], [], 0.2)[0]:
        try:
            block = os.read(master, 4096)
        except OSError:
            break
        began, shown = began if shown else time.monotonic(), shown + block
print(f"{time.monotonic() - began:.1f}")
os.kill(child, 9)
"""


def in_background(host, name: str, *argv: str) -> None:
    """Run a program on the host that does not depend on any connection; what it prints is had with printed()."""
    host.check_output(
        "systemd-run --quiet --unit=%s --property=StandardOutput=truncate:/run/%s.out" + " %s" * len(argv), name, name, *argv
    )


def printed(host, name: str) -> str:
    """Wait for a program that in_background() started, and return what it printed."""
    host.run("while systemctl is-active --quiet %s.service; do sleep 0.5; echo; done", name)
    return host.check_output("cat /run/%s.out", name).strip()


@dataclasses.dataclass
class Trial:
    """What became of every session, and what the host said about it."""

    idle: dict[str, Session]
    busy: dict[str, Session]
    other: dict[str, Session]
    shells: dict[str, float]
    console: str
    logind: dict[str, float | None]
    ansible: subprocess.CompletedProcess[str]
    journal: list[str]
    left: str
    observed: float


@pytest.fixture(scope="module")
def trial(host, target, resident, tmp_path_factory) -> Trial:
    """Open every kind of session under a limit of seconds, leave it alone, and see."""
    shells = {"bella": "bash", "zoe": "zsh", "dan": "dash", "kim": "ksh93", "mo": "mksh", "tim": "bash"}
    people = {name: resident(name, shell=f"/bin/{shell}") for name, shell in shells.items()}
    host.check_output("touch /home/zoe/.zshrc")  # or zsh asks newcomers questions
    host.check_output("echo 'bella,tim,dan ALL=(ALL) NOPASSWD: ALL' >/etc/sudoers.d/proof")
    host.check_output("echo 'Defaults:bella,tim use_pty\nDefaults:dan !use_pty' >>/etc/sudoers.d/proof")
    host.check_output("rm -rf /run/screen/S-bella")  # of a bella of an earlier run
    sessions: list[Session] = []

    def opened(argv: list[str], first: str = "", every: float = 0) -> Session:
        session = Session(argv, [first] if first else [], every)
        sessions.append(session)
        # sshd turns clients away while many are about to log in; one who is in is greeted, if on a terminal
        wait_for(lambda: sum(not one.shown for one in sessions) < 4 + sum("-tt" not in one.argv for one in sessions), 10)
        time.sleep(0.1)
        return session

    try:
        short = {"session_idle_seconds": LIMIT, "session_unused_connection_seconds": UNUSED, "session_warning_seconds": 5}
        target.reapply(**short, session_logind_enabled=False)
        started = host.check_output("date +%s")
        busy = {kind: opened(people[who].ssh_argv("-tt"), first, every=2) for kind, (who, first) in BUSY.items()}
        tim = people["tim"]
        shared = [
            "ssh",
            "-o",
            f"ControlPath={tmp_path_factory.mktemp('share')}/%C",
            "-o",
            "ControlMaster=auto",
            *tim.ssh_argv("-tt")[1:],
        ]
        other = {"shared connection, idle": opened(shared, "exec sleep 604")}
        ansible = subprocess.Popen(
            [
                "ansible", target.name, "--inventory", f"{os.environ['MOLECULE_EPHEMERAL_DIRECTORY']}/inventory",
                "--module-name=ansible.builtin.command", f"--args=sleep {1.5 * LIMIT}", "--background=90", "--poll=2",
            ],
            text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            env={**os.environ, "ANSIBLE_CONFIG": f"{os.environ['MOLECULE_EPHEMERAL_DIRECTORY']}/ansible.cfg"},
        )  # fmt: skip
        idle = {kind: opened(people[who].ssh_argv("-tt"), first) for kind, (who, first) in IDLE.items()}
        other |= {
            "shared connection, busy": opened(shared, every=2),
            "sftp": opened([*tim.ssh_argv("-s"), "sftp"]),
            "nothing open": opened(tim.ssh_argv("-N")),
            "command that says nothing": opened([*tim.ssh_argv(), "echo here; exec sleep 601"]),
            "command that reports": opened([*tim.ssh_argv(), "while sleep 2; do date; done"]),
            "command that went its own way": opened([*tim.ssh_argv(), "setsid sleep 602 >/dev/null 2>&1 </dev/null & echo here"]),
        }
        in_background(host, "proof-console", "python3", "-c", CONSOLE, "tim", PRINTING, str(2 * LIMIT))
        for name in ("bella", "zoe", "mo"):
            in_background(host, f"proof-{name}", "python3", "-c", SHELL, name, str(2 * LIMIT))
        # On a busy machine the last ones have only just begun
        wait_for(lambda: all(session.lasted is not None for session in idle.values()), LIMIT + 2 * LATE)
        shells = {name: float(printed(host, f"proof-{name}")) for name in ("bella", "zoe", "mo")}
        console = printed(host, "proof-console")
        observed = min(time.monotonic() - session.born for session in busy.values())
        # The second pair of eyes, with the first ones shut: what prints, so that sshd sees traffic, and no shell at its prompt
        target.reapply(session_idle_seconds=20, session_warning_seconds=0, session_logind_enabled=True)
        host.check_output("systemctl stop bulwark-session.timer")
        alone = opened(people["bella"].ssh_argv("-tt"), PRINTING)
        in_background(host, "proof-logind", "python3", "-c", CONSOLE, "bella", PRINTING, "26")
        ended = float(printed(host, "proof-logind").split()[0])
        wait_for(lambda: alone.lasted is not None, alone.began + 26 - time.monotonic())
        return Trial(
            idle, busy, other, shells, console,
            logind={"ssh": alone.lasted, "console": None if ended < 0 else ended},
            ansible=subprocess.CompletedProcess(ansible.args, ansible.wait(), ansible.stdout.read()),
            journal=host.check_output("journalctl --quiet --output=cat -t bulwark-session --since=@%s", started).splitlines(),
            left=host.check_output("ps -eo user:20,tty,args"),
            observed=observed,
        )  # fmt: skip
    finally:
        for session in sessions:
            session.close()
        host.check_output("rm /etc/sudoers.d/proof")
        target.reapply()


@pytest.mark.parametrize("kind", IDLE)
def test_idle_login_is_ended(trial, kind):
    """Whatever an absent user left running on a terminal, the login ends by the limit, and not much before."""
    lasted = trial.idle[kind].lasted
    assert lasted is not None, f"still open; the end of what it showed: {trial.idle[kind].shown[-300:]!r}"
    assert LIMIT / 2 < lasted <= LIMIT + LATE, trial.idle[kind].shown[-300:]


def test_user_is_warned_and_the_journal_tells(trial):
    """The terminal says so before it ends, and the journal afterwards: who, where, how long without input."""
    assert "Press Enter" in trial.idle["dash"].shown
    told = [
        line
        for line in trial.journal
        if re.fullmatch(r"logging off dan on pts/\d+ \(dash, pid \d+\): no input for \d+ s, limit 25 s", line)
    ]
    assert told, trial.journal
    assert all(
        LIMIT / 2 <= int(re.search(r"for (\d+) s", line).group(1)) <= LIMIT for line in trial.journal if "no input" in line
    )


def test_user_logs_in_again_at_once(trial):
    """Being logged off is no lockout."""
    for session in trial.idle.values():
        argv = [*(option for option in session.argv if option != "-tt"), "echo in"]
        assert subprocess.run(argv, check=False, capture_output=True, text=True, stdin=subprocess.DEVNULL).stdout == "in\n"


@pytest.mark.parametrize("kind", BUSY)
def test_busy_session_survives(trial, kind):
    """Somebody who types stays, for longer than the limit."""
    assert trial.observed > LIMIT + LATE
    assert trial.busy[kind].lasted is None, trial.busy[kind].shown[-500:]
    assert "Press Enter" not in trial.busy[kind].shown


def test_busy_shell_survives_an_idle_one_on_the_same_connection(trial):
    """Of two terminals on one shared connection, only the one nobody types on ends."""
    assert "Press Enter" in trial.other["shared connection, idle"].shown
    assert "sleep 604" not in trial.left
    assert trial.other["shared connection, busy"].lasted is None, trial.other["shared connection, busy"].shown[-500:]


def test_work_without_a_terminal_survives(trial):
    """Ansible's own jobs, and commands that report, are no idle people."""
    assert trial.ansible.returncode == 0, trial.ansible.stdout
    assert "CHANGED" in trial.ansible.stdout
    assert trial.other["command that reports"].lasted is None
    assert re.search(r"\bsleep 602$", trial.left, re.MULTILINE), "a job that had detached itself is gone"


def test_idle_connection_is_closed(trial):
    """A transfer, a command or a bare connection without traffic is closed by the limit."""
    for kind in ("sftp", "nothing open", "command that says nothing"):
        assert trial.other[kind].lasted is not None, f"{kind}: still open"
        assert trial.other[kind].lasted <= LIMIT + LATE, kind
    assert re.search(r"\bsleep 601$", trial.left, re.MULTILINE), "documented otherwise: the command itself goes on"


def test_idle_console_is_ended(trial):
    """A login on a console ends as one over SSH does, after a warning."""
    lasted, warned = trial.console.split(maxsplit=1)
    assert LIMIT / 2 < float(lasted) <= LIMIT + LATE
    assert warned == "warned"


def test_idle_shell_ends_by_itself(trial):
    """A shell at its prompt ends even where nobody watches the terminal. ksh93 would take a minute more than the trial has."""
    for name, lasted in trial.shells.items():
        assert LIMIT - LATE / 2 <= lasted <= LIMIT + LATE, name


def test_logind_is_the_second_pair_of_eyes(trial, target):
    """With the timer dead, logind ends a program that prints; over SSH only on Debian 12, which still tells it the terminal."""
    assert trial.logind["console"] is not None
    if target.platform == "debian12":
        assert trial.logind["ssh"] is not None
    else:
        assert trial.logind["ssh"] is None, "works after all: say so in the role's docs"


def test_multiplexers_go_on_without_anybody(trial):
    """What runs in tmux or screen goes on, with nobody attached; a shell at its prompt in tmux ends by itself."""
    assert "tmux -L clock" in trial.left
    assert "SCREEN -S idle" in trial.left
    assert "tmux -L idle" not in trial.left
    assert not re.search(r"^bella +pts/\S+ +(tmux|screen)", trial.left, re.MULTILINE), "somebody is still attached"


def test_default_is_thirty_minutes_at_worst(host):
    """With nothing configured, every mechanism ends a session within 1800 s, all delays added up."""
    timer = host.check_output("systemctl show bulwark-session.timer -p TimersMonotonic -p AccuracyUSec -p ActiveState")
    assert "ActiveState=active" in timer
    assert "OnUnitActiveUSec=1min ;" in timer
    assert "AccuracyUSec=1s" in timer
    host.check_output("systemctl start bulwark-session.service")
    used = json.loads(host.check_output("cat /run/bulwark-session/memory.json"))
    assert used["end_after"] == 1732
    assert 1700 < used["end_after"] + 60 + 1 + used["grace"] + 2 <= 1800
    assert used["warn_after"] == 1732 - 120 - 60
    sshd = host.check_output("sshd -T -C user=nobody,host=localhost,addr=127.0.0.1").splitlines()
    assert "channeltimeout *=1620" in sshd
    assert "unusedconnectiontimeout 180" in sshd
    assert host.check_output(LOGIND) == "t 1800000000"


def asked(person, *commands: str) -> str:
    """Return what somebody's login shell on a terminal shows who types these lines, and leaves."""
    session = Session(person.ssh_argv("-tt"), [*commands, "exit"])
    wait_for(lambda: session.lasted is not None, 60)
    session.close()
    assert session.lasted is not None, f"does not end: {session.shown}"
    return session.shown


@pytest.mark.parametrize(("shell", "seconds"), [("bash", 1800), ("zsh", 1800), ("mksh", 1800), ("ksh93", 1740)])
def test_timeout_cannot_be_raised(host, person, shell, seconds):
    """A user's login shell has the timeout, refuses to change or forget it, and says nothing when profiles are read again."""
    una = person("una", shell=f"/bin/{shell}")
    host.check_output("touch /home/una/.zshrc")  # or zsh asks newcomers questions
    # zsh lets whoever means it take the lock off, so there it only keeps from accidents; the terminal is watched all the same
    attacks = ("TMOUT=99999", "TMOUT=0", "unset TMOUT", *(() if shell == "zsh" else ("typeset +r TMOUT", "TMOUT=99999")))
    shown = asked(una, "echo is=$TMOUT=", *(f"{attack} 2>/dev/null" for attack in attacks), "echo is=$TMOUT=")
    assert re.findall(r"is=(\w+)=", shown) == [str(seconds), str(seconds)], shown
    again = asked(una, ". /etc/profile", ". /etc/profile", f"{shell} -l", ". /etc/profile", "echo is=$TMOUT=", "exit")
    assert f"is={seconds}=" in again
    assert not re.search(r"read.?only", again), again


def test_sudo_and_su_nest_silently(host, person):
    """Becoming root, twice, reads the profile again; nobody is told of a readonly variable."""
    host.check_output("echo 'ron ALL=(ALL) NOPASSWD: ALL' >/etc/sudoers.d/proof")
    try:
        shown = asked(person("ron"), "sudo -i", "su -", "echo is=$TMOUT=; id -un", "exit", "exit")
    finally:
        host.check_output("rm /etc/sudoers.d/proof")
    assert re.search(r"is=1800=\s+root", shown), shown
    assert "readonly" not in shown


def test_scripts_have_no_timeout(person):
    """A script's `read` obeys TMOUT too; so scripts, transfers and commands never get it."""
    sue = person("sue")
    for command in ("echo is=$TMOUT=", "bash -lc 'echo is=$TMOUT='", "zsh -lc 'echo is=$TMOUT='", "sh -lc 'echo is=$TMOUT='"):
        assert subprocess.run([*sue.ssh_argv(), command], check=True, capture_output=True, text=True).stdout.strip() == "is==", (
            command
        )
    inherited = subprocess.run(
        [*sue.ssh_argv(), "bash -lic 'bash -c \"echo is=\\$TMOUT=\"' 2>/dev/null"], check=True, capture_output=True, text=True
    )
    assert inherited.stdout.strip() == "is=="


def test_watching_survives_a_restart(host):
    """What starts timers at boot starts this one."""
    host.check_output("systemctl stop bulwark-session.timer timers.target")
    host.check_output("systemctl start timers.target")
    assert host.check_output("systemctl is-active bulwark-session.timer") == "active"


def test_stopped_timer_is_started_again(host, target):
    """The next run of the role finds a timer that somebody stopped, although no file differs."""
    host.check_output("systemctl stop bulwark-session.timer")
    target.reapply()
    assert host.check_output("systemctl is-active bulwark-session.timer") == "active"


def test_exemption_for_somebody_is_void_or_noticed(host):
    """A Match block of a site's own exempts nobody; one that comes before the role's would, so it is noticed."""
    exempt = "printf 'Match User root\n    ChannelTimeout *=0\n' >/etc/ssh/sshd_config.d/%s"
    root = "sshd -T -C user=root,host=localhost,addr=127.0.0.1"
    found = {}
    for name in ("10-proof.conf", "00-a-proof.conf"):
        host.check_output(exempt % name)
        try:
            effective = host.check_output(root).splitlines()
            seen = host.ansible("bulwark.hardening.posture", "collectors=session", check=False, become=True)["posture"]["session"]
        finally:
            host.check_output(f"rm /etc/ssh/sshd_config.d/{name}")
        found[name] = ("channeltimeout *=1620" in effective, seen["ssh_exceptions"])
    assert found["10-proof.conf"] == (True, [])
    assert found["00-a-proof.conf"] == (False, ["/etc/ssh/sshd_config.d/00-a-proof.conf:2: ChannelTimeout *=0"])


@pytest.mark.parametrize("seconds", [0, 1801])
def test_laxer_value_is_refused(host, target, seconds):
    """The period is the policy's: no run sets a longer one, or none, and nothing changes on the host."""
    with pytest.raises(pytest.fail.Exception, match=r"session_idle_seconds = \d+: must be"):
        target.reapply(session_idle_seconds=seconds)
    assert "channeltimeout *=1620" in host.check_output("sshd -T").splitlines()


def test_role_can_be_taken_back(host, target):
    """Everything is put back as it was, and comes again."""
    try:
        target.reapply(session_state="absent")
        for path in ("/etc/systemd/system/bulwark-session.timer", "/etc/profile.d/zz-bulwark-session.sh"):
            assert not host.file(path).exists
        assert "bulwark" not in host.file("/etc/zsh/zshenv").content_string
        assert host.run("dpkg --verify zsh-common").stdout == ""
        assert host.run("systemctl is-active bulwark-session.timer").stdout.strip() == "inactive"
        assert "unusedconnectiontimeout none" in host.check_output("sshd -T").splitlines()
        assert host.check_output(LOGIND) == f"t {2**64 - 1}"
    finally:
        target.reapply()
    assert host.check_output("systemctl is-active bulwark-session.timer") == "active"
