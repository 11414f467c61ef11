# Copyright: (c) 2026, Bulwark contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Audit rules: made from intents, and the same in every form in which Debian 12's and 13's auditctl list them."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from ansible_collections.bulwark.hardening.plugins.module_utils import audit

ROOT = Path(__file__).resolve().parents[4]
INTENTS = yaml.safe_load((ROOT / "roles" / "audit_log" / "vars" / "main.yml").read_text())["__audit_log_intents"]
PEOPLE = "-F auid>=1000 -F auid!=unset"


def made(rule, wanted_class="baseline", machine="x86_64", release=12, present=(), **intent):
    return audit.rules([{"key": "k", "title": "t", "rules": [rule], **intent}], wanted_class, machine, release, list(present))


def test_a_call_is_watched_in_both_architectures():
    assert made({"syscalls": ["settimeofday"]}) == [
        "-a always,exit -F arch=b64 -S settimeofday -F key=k",
        "-a always,exit -F arch=b32 -S settimeofday -F key=k",
    ]


def test_32_bit_programs_have_calls_of_their_own():
    assert made({"syscalls": ["clock_settime"], "fields": ["a0=0x0"]})[1] == (
        "-a always,exit -F arch=b32 -S clock_settime,clock_settime64 -F a0=0x0 -F key=k"
    )


def test_a_call_that_only_one_architecture_has():
    assert made({"syscalls": ["stime"], "only": ["b32"]}) == ["-a always,exit -F arch=b32 -S stime -F key=k"]


def test_other_machines_lack_old_calls():
    (line,) = made({"syscalls": ["open", "openat", "rename", "renameat2"]}, machine="aarch64")
    assert line == "-a always,exit -F arch=b64 -S openat,renameat2 -F key=k"


def test_people_and_comparisons():
    assert made({"syscalls": ["execve"], "fields": ["auid!=uid"], "people": True})[0] == (
        f"-a always,exit -F arch=b64 -S execve -C auid!=uid {PEOPLE} -F key=k"
    )
    assert "-C auid!=obj_uid" in made({"trees": ["/home"], "perm": "r", "fields": ["auid!=obj_uid"]})[0]
    assert "-F euid=0" in made({"syscalls": ["execve"], "fields": ["euid=0"]})[0]
    assert "-F auid=unset" in made({"syscalls": ["mount"], "fields": ["auid=unset"]})[0]


def test_a_place_is_watched_with_the_calls_that_reach_it():
    lines = made({"trees": ["/srv"], "paths": ["/etc/passwd"], "perm": "x"})
    assert lines[0] == "-a always,exit -F arch=b64 -S execve,execveat -F path=/etc/passwd -F perm=x -F key=k"
    assert lines[2] == "-a always,exit -F arch=b64 -S execve,execveat -F dir=/srv -F perm=x -F key=k"


def test_what_may_be_missing_is_left_out_when_it_is():
    rule = {"trees": ["/a", "/b"], "perm": "r", "optional": True}
    assert made(rule) == []
    assert [line for line in made(rule, present=["/b"]) if "dir=/a" in line] == []
    assert len(made(rule, present=["/b"])) == 2


def test_class_and_release_decide():
    assert made({"syscalls": ["connect"], "class": "high"}) == []
    assert made({"syscalls": ["connect"]}, **{"class": "high"}) == []
    assert len(made({"syscalls": ["connect"], "class": "high"}, wanted_class="high")) == 2
    assert made({"syscalls": ["fchmodat2"], "since": 13}) == []
    assert len(made({"syscalls": ["fchmodat2"], "since": 13}, release=13)) == 2


def test_exclusions_have_no_key():
    assert made({"never": True, "syscalls": ["mount"], "fields": ["exe=/usr/lib/systemd/systemd"]})[0] == (
        "-a never,exit -F arch=b64 -S mount -F exe=/usr/lib/systemd/systemd"
    )


@pytest.mark.parametrize("release", [12, 13])
@pytest.mark.parametrize("wanted_class", ["baseline", "high"])
def test_declared_intents_make_rules_that_can_be_compared(release, wanted_class):
    lines = audit.rules(INTENTS, wanted_class, "x86_64", release, ["/var/log/journal"])
    forms = [audit.normalised(line) for line in lines]
    assert len(set(forms)) == len(forms)
    keys = {audit.key_of(form) for form in forms} - {""}
    assert keys == {intent["key"] for intent in INTENTS if wanted_class == "high" or intent.get("class") != "high"}
    assert all(key.startswith("bulwark_") for key in keys)
    # Debian 12 lists exe!= as exe=, so that one could not be told from the other.
    assert not [line for line in lines if "exe!=" in line]
    assert [line for line in lines if line.startswith("-a never")] == [line for line in lines if " -F exe=" in line]


# What was loaded, and how the auditctl of Debian 12 (3.0.9) and 13 (4.0.2) list it.
LISTED = [
    ("-w /etc/gshadow -p wa -k k", "-w /etc/gshadow -p wa -k k"),
    ("-a always,exit -F dir=/boot -F perm=aw -F key=k", "-w /boot -p wa -k k"),
    (
        "-a always,exit -F arch=b64 -S execve -C auid!=uid -F auid>=1000 -F auid!=unset -k k",
        "-a always,exit -F arch=b64 -S execve -C uid!=auid -F auid>=1000 -F auid!=-1 -F key=k",
    ),
    (
        "-a exit,always -F arch=b64 -S openat2,open -F exit=-EACCES -F key=k",
        "-a always,exit -F arch=b64 -S open,openat2 -F exit=-EACCES -F key=k",
    ),
    ("-a never,exit -F arch=b64 -S close", "-a never,exit -F arch=b64 -S close"),
    (
        "-a always,exit -F arch=b32 -F dir=/etc/ -F perm=wa -F key=k",
        "-a always,exit -F arch=b32 -S all -F dir=/etc -F perm=wa -F key=k",
    ),
]


@pytest.mark.parametrize(("written", "listed"), LISTED)
def test_written_and_listed_rules_are_the_same(written, listed):
    assert audit.normalised(written) == audit.normalised(listed)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("-w /etc -p wa -k k", "-w /etc -p w -k k"),
        ("-w /etc -p wa -k k", "-w /etc -p wa -k l"),
        ("-a always,exit -S open -F auid>=1000 -k k", "-a always,exit -S open -F auid>1000 -k k"),
        ("-a always,exit -S open -F auid!=unset -k k", "-a always,exit -S open -F auid=unset -k k"),
        ("-a always,exit -S open -k k", "-a never,exit -S open -k k"),
        ("-a always,exit -F arch=b64 -S open -k k", "-a always,exit -F arch=b32 -S open -k k"),
        ("-a always,exit -F arch=b64 -S open -F dir=/a -k k", "-a always,exit -F arch=b64 -S open -F path=/a -k k"),
    ],
)
def test_different_rules_differ(one, other):
    assert audit.normalised(one) != audit.normalised(other)


def test_file_of_rules_is_read():
    rules, settings = audit.written("# note\n-D\n-b 8192\n\n-w /etc -p wa -k k\n--loginuid-immutable\n-e 2\n")
    assert rules == ["-a always,exit -F perm=aw -F watch=/etc -F key=k"]
    assert settings == {"-D": "", "-b": "8192", "--loginuid-immutable": "", "-e": "2"}


def test_file_that_cannot_be_read_says_where():
    with pytest.raises(audit.AuditError, match="line 2: -w: -w lacks its value"):
        audit.written("-D\n-w\n")


def test_differences_name_both_sides():
    assert audit.differences(["a", "b"], ["b", "c"]) == (["a"], ["c"])
    assert audit.listed("No rules\n") == []


def test_status_is_read():
    text = "enabled 2\nfailure 1\npid 214\nlost 0\nloginuid_immutable 1 locked\n"
    assert audit.status(text) == {"enabled": 2, "failure": 1, "pid": 214, "lost": 0, "loginuid_immutable": 1}


@pytest.mark.parametrize(
    ("rule", "said"),
    [
        ("-D", "no part of a rule"),
        ("-e 0", "no part of a rule"),
        ("-b 1", "no part of a rule"),
        ("-W /etc -p wa -k k", "no part of a rule"),
        ("-a never,exit -F arch=b64 -S open -k k", "only adds"),
        ("-a always,exclude -F msgtype=SYSCALL -k k", "only adds"),
        ("-a never,task", "only adds"),
        ("-a always,exit -F arch=b64 -S open", "no key"),
        ("-w /etc/hosts -p wa -k bulwark_config", "role's own"),
        ("-a always,exit -F arch -k k", "no comparison"),
        ("-w '/etc", "cannot be read"),
        ("-w", "lacks its value"),
    ],
)
def test_rules_that_would_undo_something_are_refused(rule, said):
    (message,) = audit.objections([rule])
    assert said in message


def test_rules_that_only_add_are_taken():
    assert audit.objections(["-w /srv/x -p rwa -k mine", "-a always,exit -F arch=b64 -S ptrace -F auid>=1000 -k debuggers"]) == []


def test_places_of_rules():
    assert audit.watched(audit.normalised("-a always,exit -F arch=b64 -S open -F dir=/srv/ -F perm=r -k k")) == ("dir", "/srv")
    assert audit.watched(audit.normalised("-w /etc/passwd -p w -k k")) == ("watch", "/etc/passwd")
    assert audit.watched(audit.normalised("-a always,exit -S open -k k")) == ("", "")


# --- the program, with a kernel that is played --------------------------------------------------------------------------


class Kernel:
    """Answers as auditctl does: takes rules unless locked, may refuse one, and returns 0 in any case, as Debian 12's does."""

    def __init__(self, monkeypatch, tmp_path, text, enabled=1, refuses=""):
        self.rules, self.enabled, self.refuses = [], enabled, refuses
        self.commands = []
        path = tmp_path / "audit.rules"
        path.write_text(text)
        monkeypatch.setattr(audit, "RULES", str(path))
        monkeypatch.setattr(audit, "_run", self.run)
        monkeypatch.setattr(audit.tempfile, "NamedTemporaryFile", lambda mode, **_more: (tmp_path / "copy").open("w"))

    def run(self, *argv):
        self.commands.append(argv[1:])
        out = ""
        if argv[1] == "-s":
            out = f"enabled {self.enabled}\n"
        elif argv[1] == "-l":
            out = "\n".join(self.rules) or "No rules"
        elif argv[1] == "-R" and self.enabled != audit.LOCKED:
            lines = Path(argv[2]).read_text().splitlines()
            assert not [line for line in lines if line.startswith("-e")], "locked before it was compared"
            self.rules = [line for line in lines if line[:2] in ("-a", "-w") and not (self.refuses and self.refuses in line)]
        elif argv[1] == "-e":
            self.enabled = int(argv[2])
        return audit.subprocess.CompletedProcess(argv, 0, out, "")


TEXT = "-D\n-w /etc -p wa -k one\n-w /boot -p wa -k two\n-e 2\n"


def test_load_loads_then_locks(monkeypatch, tmp_path):
    kernel = Kernel(monkeypatch, tmp_path, TEXT)
    assert audit.main(["load"]) == 0
    assert len(kernel.rules) == 2
    assert kernel.enabled == audit.LOCKED


def test_load_says_what_the_kernel_refused(monkeypatch, tmp_path, capsys):
    kernel = Kernel(monkeypatch, tmp_path, TEXT, refuses="/boot")
    assert audit.main(["load"]) == 1
    assert "event=rules_differ" in capsys.readouterr().err
    assert kernel.enabled == audit.LOCKED  # the rules it has are still kept


def test_load_is_not_fooled_by_a_locked_kernel(monkeypatch, tmp_path, capsys):
    kernel = Kernel(monkeypatch, tmp_path, TEXT, enabled=audit.LOCKED)
    kernel.rules = ["-w /etc -p wa -k one", "-w /old -p wa -k old"]
    assert audit.main(["load"]) == 1
    said = capsys.readouterr().err
    assert "not loaded" in said
    assert "key=two" in said
    assert "not written" in said
    assert "key=old" in said


def test_what_is_not_to_be_locked_stays_open(monkeypatch, tmp_path):
    kernel = Kernel(monkeypatch, tmp_path, TEXT.replace("-e 2\n", ""))
    assert audit.main(["load"]) == 0
    assert kernel.enabled == 1


def test_unknown_verbs_are_refused(capsys):
    assert audit.main(["flush"]) == 2
    assert "audit_rules load" in capsys.readouterr().err


def test_check_names_unknown_calls(monkeypatch, tmp_path, capsys):
    path = tmp_path / "rules"
    path.write_text("-a always,exit -F arch=b64 -S open,nonsense -k k\n")
    monkeypatch.setattr(audit.os, "uname", type("U", (), {"machine": "x86_64"}))
    table = audit.subprocess.CompletedProcess([], 0, "Using table:\n2\topen\n", "")
    monkeypatch.setattr(audit, "_run", lambda *_argv: table)
    assert audit.main(["check", str(path)]) == 1
    assert "b64 nonsense" in capsys.readouterr().err
    path.write_text("-a always,exit -F arch=b64 -S open -k k\n")
    assert audit.main(["check", str(path)]) == 0
    path.write_text("-w\n")
    assert audit.main(["check", str(path)]) == 1
