# SPDX-License-Identifier: GPL-3.0-or-later
"""Proofs of the banner role: what a stranger reads before login, what a user reads once, and what programs never read."""

from __future__ import annotations

import hashlib
import os
import pty
import re
import select
import socket
import subprocess
import time

import pytest

OWNER = ("Example Clinic", "https://clinic.example", "https://clinic.example/policies")
TOPICS = (
    "This system may hold sensitive information, which must be kept confidential.",
    "Access is logged, and the records may be examined.",
    "Misuse is sanctioned; disciplinary measures and prosecution are possible.",
)
NO_KEYS = ("-F", "/dev/null", "-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null", "-o", "BatchMode=yes")

# Runs on the host: offers a new terminal to the real getty unit, answers what it asks, and prints all that was shown.
# With a first argument, waits until that text was shown.
CONSOLE = r"""
import os, select, subprocess, sys, time
until, answers = sys.argv[1].encode(), sys.argv[2:]
master, terminal = os.openpty()
unit = "container-getty@%s.service" % os.path.basename(os.ttyname(terminal))
os.close(terminal)
subprocess.run(["systemctl", "start", unit], check=True)
shown, unread, end = b"", b"", time.monotonic() + 40
try:
    while time.monotonic() < end and not (until and until in shown):
        if not select.select([master], [], [], 0.2)[0]:
            continue
        try:
            unread += os.read(master, 4096)
        except OSError:  # nobody has the other end open while getty starts anew
            time.sleep(0.1)
        if unread.rstrip().endswith((b"login:", b"Password:", b"$")):
            shown, unread = shown + unread, b""
            if answers:
                os.write(master, answers.pop(0).encode() + b"\n")
            elif not until:
                break
finally:
    subprocess.run(["systemctl", "stop", unit])
sys.stdout.buffer.write(shown + unread)
"""


def on_console(host, *answers: str) -> str:
    """Return what the host's console shows up to the prompt after the last answer, line ends as plain line feeds."""
    return host.check_output("python3 -c %s ''" + " %s" * len(answers), CONSOLE, *answers).replace("\r", "")


def before_login(target) -> str:
    """Return what an ssh client without any credentials is shown before it is turned away."""
    done = subprocess.run(
        [
            "ssh", *NO_KEYS, "-o", "PubkeyAuthentication=no", "-o", "PreferredAuthentications=none", "-p", str(target.port),
            f"stranger@{target.address}", "true",
        ],
        check=False, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 255, done
    assert "Permission denied" in done.stderr, done.stderr
    assert not done.stdout
    return done.stderr.replace("\r", "")


def in_terminal(argv: list[str], say: str = "exit\n") -> str:
    """Run a command in a terminal, type one line once it is quiet, and return all that was shown."""
    pid, master = pty.fork()
    if not pid:
        os.execvp(argv[0], argv)
    shown, end = b"", time.monotonic() + 20
    while time.monotonic() < end:
        if select.select([master], [], [], 1)[0]:
            try:
                part = os.read(master, 4096)
            except OSError:
                part = b""
            if not part:
                break
            shown += part
        elif say:
            os.write(master, say.encode())
            say = ""
    os.close(master)
    os.waitpid(pid, 0)
    return shown.decode(errors="replace").replace("\r", "")


def words(text: str) -> str:
    """Return a text with line breaks and runs of spaces as single spaces."""
    return " ".join(text.split())


def test_stranger_reads_the_notice_before_authenticating(host, target):
    """Somebody with no key and no account is shown the whole notice, byte for byte, and then turned away."""
    assert host.file("/etc/ssh/bulwark-banner").content_string in before_login(target)


def test_console_shows_the_notice_before_the_login_prompt(host):
    """The real getty unit shows the notice, and nothing else, above its prompt."""
    shown = on_console(host)
    notice, _newline, prompt = shown.rstrip().rpartition("\n")
    assert words(notice) == words(host.file("/etc/motd.d/00-bulwark").content_string)
    assert re.fullmatch(r"\S+ login:", prompt)


def test_each_surface_names_owner_addresses_and_topics(host, target, person):
    """Owner, both addresses and all three warnings are readable on every surface."""
    surfaces = {
        "ssh": before_login(target),
        "console": on_console(host),
        "shell": in_terminal(person("rita").ssh_argv("-tt")),
    }
    for name, shown in surfaces.items():
        for wanted in (*OWNER, *TOPICS):
            assert wanted in words(shown), name


@pytest.mark.parametrize("shell", ["/bin/bash", "/bin/zsh", "/bin/sh"])
def test_interactive_session_shows_the_notice_once(host, person, shell):
    """Whoever starts a session in a terminal sees the notice exactly once after login."""
    olga = person("olga", shell=shell)
    host.check_output("touch /home/olga/.zshrc")  # else zsh asks a newcomer questions
    shown = words(in_terminal(olga.ssh_argv("-tt")))
    assert [shown.count(topic) for topic in TOPICS] == [1, 1, 1]


def test_console_login_shows_the_notice_once(host, person):
    """After a login on the console the notice is there once more (once before the prompt, once after the password)."""
    person("conny", shell="/bin/sh")
    host.check_output("echo conny:Sunny-Day-77 | chpasswd")
    shown = on_console(host, "conny", "Sunny-Day-77")
    before, _password, after = shown.partition("Password:")
    assert before.count(TOPICS[2]) == 1
    assert after.count(TOPICS[2]) == 1
    assert after.rstrip().endswith("$")


def test_output_of_commands_and_transfers_stays_clean(host, person, target, tmp_path):
    """Programs that talk over ssh get their bytes and nothing else, with and without a terminal."""
    ida = person("ida")
    wanted = host.file("/usr/bin/true").sha256sum
    talkative = [option if option != "LogLevel=ERROR" else "LogLevel=INFO" for option in ida.ssh_argv()]

    silent = subprocess.run([*talkative, "true"], check=True, capture_output=True)
    assert silent.stdout == b""
    assert TOPICS[1].encode() in silent.stderr  # the client prints the notice as a message, so it cannot spoil data
    assert in_terminal([*ida.ssh_argv("-tt"), "true"], say="") == ""

    piped = subprocess.run([*talkative, "cat /usr/bin/true"], check=True, capture_output=True).stdout
    assert hashlib.sha256(piped).hexdigest() == wanted

    options = talkative[1:-1]
    for how, argv in {
        "scp": ["scp", "-q"],
        "scp, old protocol": ["scp", "-q", "-O"],
    }.items():
        options_scp = ["-P" if option == "-p" else option for option in options]
        copy = tmp_path / how.replace(",", "").replace(" ", "-")
        subprocess.run([*argv, *options_scp, f"ida@{target.address}:/usr/bin/true", copy], check=True, capture_output=True)
        assert hashlib.sha256(copy.read_bytes()).hexdigest() == wanted, how
    batch = tmp_path / "batch"
    batch.write_text(f"get /usr/bin/true {tmp_path}/by-sftp\n")
    options_sftp = ["-P" if option == "-p" else option for option in options]
    subprocess.run(["sftp", "-q", "-b", batch, *options_sftp, f"ida@{target.address}"], check=True, capture_output=True)
    assert hashlib.sha256((tmp_path / "by-sftp").read_bytes()).hexdigest() == wanted


def test_nothing_before_login_names_the_operating_system(host, target):
    """Neither sshd's first line nor any text before login tells the distribution, its version or the kernel."""
    with socket.create_connection((target.address, target.port), 5) as stranger:
        greeting = stranger.recv(256).decode().strip()
    assert re.fullmatch(r"SSH-2\.0-OpenSSH_\d+\.\d+(p\d+)?", greeting)
    for shown in (greeting, before_login(target), on_console(host)):
        text = re.sub(r"\S+ login:", "", shown).lower().replace(str(target.address), "")
        for detail in ("debian", "gnu/linux", "bookworm", "trixie", host.check_output("uname -r"), host.check_output("uname -m")):
            assert detail not in text


def test_literal_is_shown_byte_for_byte_also_on_a_waiting_console(host, target):
    """A site's own text is shown as it is, however much it looks like an escape, and consoles that wait show it at once."""
    literal = (
        "PROPERTY of the Clinic \\n \\S{NAME} \\e{red} \\\\ %s %h $(id) `id` ~ #\n"
        "  indented - see https://clinic.example and https://clinic.example/policies"
    )
    host.check_output("systemd-run --quiet --unit=waiting-console --property=StandardOutput=file:/run/waiting-console "
                      "python3 -c %s 'PROPERTY of the Clinic'", CONSOLE)  # fmt: skip
    try:
        host.check_output("timeout 20 sh -c 'until pgrep -x agetty; do sleep 0.2; done'")
        target.reapply(banner_text=literal)
        assert f"{literal}\n" in before_login(target)
        assert f"{literal}\n" in on_console(host)
        for _second in range(20):
            if host.run("systemctl is-active waiting-console").stdout.strip() != "active":
                break
            time.sleep(1)
        waiting = host.file("/run/waiting-console").content_string.replace("\r", "")
        assert TOPICS[0] in waiting.partition("PROPERTY")[0]
        assert f"{literal}\n" in waiting
    finally:
        host.run("systemctl stop waiting-console; rm -f /run/waiting-console")
        target.reapply()
    assert "PROPERTY" not in before_login(target)


@pytest.mark.parametrize(
    "name, value",
    [
        ("banner_text", "Cleared \x1b[2J and https://a.example https://b.example"),
        ("banner_owner", "Example Clinic\nPermitRootLogin yes"),
        ("banner_topics", {"sensitive_data": "This system may hold sensitive information."}),
    ],
)
def test_hostile_or_lax_text_is_refused_before_anything_changes(host, target, name, value):
    """Escape sequences, smuggled lines and missing warnings never reach the host (more of them: the unit tests)."""
    before = host.check_output("sha256sum /etc/ssh/bulwark-banner /etc/motd.d/00-bulwark /etc/issue.d/00-bulwark.issue")
    refusal = rf"(Refused before anything changed|Validation of arguments failed)[^$]*{name}"
    with pytest.raises(pytest.fail.Exception, match=refusal):
        target.reapply(**{name: value})
    assert host.check_output("sha256sum /etc/ssh/bulwark-banner /etc/motd.d/00-bulwark /etc/issue.d/00-bulwark.issue") == before


def test_newcomer_who_sets_nothing_shows_a_true_notice(target):
    """Without an owner the notice names none, makes none up and still warns."""
    target.reapply(banner_owner="", banner_owner_url="", banner_policies_url="")
    try:
        shown = words(before_login(target))
        assert "This system belongs to the organisation that operates it and is for authorised users only." in shown
        assert "the policies of that organisation." in shown
        assert "()" not in shown
        assert all(topic in shown for topic in TOPICS)
    finally:
        target.reapply()


def test_vendor_files_are_untouched_and_all_can_be_taken_back(host, target):
    """No file of a package was edited, and `banner_state: absent` leaves nothing behind."""
    assert host.check_output("dpkg --verify openssh-server login systemd libpam-modules util-linux") == ""
    ours = host.check_output("find /etc -path '*bulwark*' -o -name issue.d -o -name motd.d").splitlines()
    assert len(ours) > 5
    target.reapply(banner_state="absent")
    try:
        for path in ours:
            assert not host.file(path).exists
        assert "--issue-file" not in host.check_output("systemctl show -p ExecStart getty@tty1.service")
        assert "kernel" in on_console(host)  # what the bad state had put there is there again
    finally:
        target.reapply()
