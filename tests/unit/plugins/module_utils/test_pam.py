# SPDX-License-Identifier: GPL-3.0-or-later
"""What a PAM stack can be brought to say: every known way past Duo must be found, and none made up."""

from __future__ import annotations

import pytest
from ansible_collections.bulwark.hardening.plugins.module_utils import pam

SSH = f"""\
auth [success=ignore ignore=ignore default=2] pam_succeed_if.so quiet service = sshd
auth [success=ignore ignore=ignore default=die] pam_exec.so seteuid quiet {pam.GUARD}
auth [success=2 default=die] pam_duo.so conf={pam.CONFIG}
"""
UNIX = "auth [success=1 default=ignore] pam_unix.so nullok try_first_pass\n"
FALLBACK = "auth requisite pam_deny.so\nauth required pam_permit.so\n"
OTHERS = f"""\
auth [success=2 default=ignore] pam_succeed_if.so quiet service in sshd:kiosk
auth [success=ignore ignore=ignore default=die] pam_exec.so seteuid quiet {pam.GUARD}
auth [success=ok default=die] pam_duo.so conf={pam.CONFIG}
"""
GOOD = SSH + UNIX + FALLBACK + OTHERS
FILES = {
    "common-auth": GOOD,
    "sshd": "@include common-auth\naccount required pam_nologin.so\n",
    "sudo": "session required pam_limits.so\n@include common-auth\n",
    "su": "auth sufficient pam_rootok.so\n@include common-auth\n",
    "su-l": "auth include su\n",
    "login": "auth optional pam_faildelay.so\nauth requisite pam_nologin.so\n@include common-auth\nauth optional pam_group.so\n",
    "runuser": "auth\tsufficient pam_rootok.so\n",
}


def opens(service, world, **files):
    """Say whether a service says yes, with some files other than they should be."""
    stack = pam.stack_of(service, "auth", {**FILES, **files}.get)
    return pam.way_through(stack, service, world) is not None


@pytest.mark.parametrize("service", sorted(set(FILES) - {"common-auth", "runuser"}))
def test_nothing_gets_past_and_yes_means_yes(service):
    assert not opens(service, pam.SAYS_NO)
    assert not opens(service, pam.UNSOUND)
    assert opens(service, pam.SAYS_YES)


def test_what_root_may_is_no_way_past():
    assert not opens("runuser", pam.SAYS_NO) and not opens("runuser", pam.SAYS_YES)


@pytest.mark.parametrize(
    ("what", "files"),
    [
        ("no Duo at all", {"common-auth": UNIX + FALLBACK}),
        ("a module that suffices above", {"common-auth": "auth sufficient pam_unix.so\n" + GOOD}),
        ("a module that suffices between", {"common-auth": SSH + "auth sufficient pam_sss.so\n" + UNIX + FALLBACK + OTHERS}),
        ("a line before the include", {"sudo": "auth sufficient pam_unix.so\n@include common-auth\n"}),
        ("a file of its own", {"sudo": "auth required pam_unix.so\n"}),
        ("another configuration", {"common-auth": GOOD.replace(pam.CONFIG, "/etc/security/pam_duo.conf")}),
        ("Duo made optional", {"common-auth": GOOD.replace("[success=ok default=die]", "optional")}),
        ("another jump across it", {"common-auth": SSH + UNIX + FALLBACK + "auth [default=3] pam_echo.so\n" + OTHERS}),
        ("an exempted service", {"common-auth": GOOD.replace("sshd:kiosk", "sshd:kiosk:sudo")}),
        ("everybody exempted by name", {"common-auth": GOOD.replace("quiet service in sshd:kiosk", "quiet user = bob")}),
    ],
)
def test_ways_past_duo_are_found(what, files):
    assert opens("sudo", pam.SAYS_NO, **files), what


def test_a_guard_that_is_gone_is_found():
    bare = "\n".join(line for line in GOOD.splitlines() if pam.GUARD not in line).replace("default=2", "default=1")
    bare = bare.replace("success=2 default=ignore", "success=1 default=ignore")
    assert not opens("sudo", pam.SAYS_NO, **{"common-auth": bare}), "Duo still says no"
    assert opens("sudo", pam.UNSOUND, **{"common-auth": bare}), "but pam_duo fails open"


def test_exempt_and_substacked_services():
    assert opens("kiosk", pam.SAYS_NO, kiosk="@include common-auth\n")
    assert not opens("thing", pam.SAYS_NO, thing="auth substack common-auth\nauth optional pam_permit.so\n")
    assert opens("thing", pam.SAYS_NO, thing="auth substack inner\n", inner="auth sufficient pam_unix.so\n")


def test_a_jump_off_the_stack_is_refused():
    assert not opens("sudo", pam.SAYS_YES, sudo="auth [success=7 default=ignore] pam_permit.so\n")


@pytest.mark.parametrize(
    "text", ["@include nowhere\n", "auth wanted pam_unix.so\n", "auth required\n", "auth include sudo\n"]
)  # fmt: skip
def test_what_cannot_be_followed_is_said(text):
    with pytest.raises(pam.CannotFollow):
        pam.stack_of("sudo", "auth", {"sudo": text}.get)


@pytest.mark.parametrize(
    ("arguments", "service", "said"),
    [
        ("quiet service = sshd", "sshd", {"success"}),
        ("service = sshd", "sudo", {"auth_err"}),
        ("service notin sshd:cron", "sudo", {"success"}),
        ("quiet_success service =~ su*", "sudo", {"success"}),
        ("service != sudo", "sudo", {"auth_err"}),
        ("service = sudo user = bob", "sudo", {"success", "auth_err"}),
        ("user ingroup staff", "sudo", {"success", "auth_err"}),
        ("", "sudo", {"success", "auth_err"}),
    ],
)
def test_conditions(arguments, service, said):
    assert pam.succeeds_if(arguments.split(), service) == said


SAVED = """\
Module: unix
[success=end default=ignore]\tpam_unix.so nullok
Module: systemd
optional\tpam_systemd.so
"""
CURRENT = """\
# here are the per-package modules (the "Primary" block)
auth\t[success=1 default=ignore]\tpam_unix.so nullok
# here's the fallback if no module succeeds
auth\trequisite\t\t\tpam_deny.so
# and here are more per-package modules (the "Additional" block)
auth\toptional\tpam_systemd.so
# end of pam-auth-update config
"""


def test_what_pam_auth_update_refuses_is_foretold():
    assert pam.locally_modified("auth", CURRENT, SAVED) == ""
    assert pam.locally_modified("auth", CURRENT.replace("nullok", "nullok minlen=8"), SAVED) == "", "it keeps added options"
    assert pam.locally_modified("auth", "# mine\n" + CURRENT, SAVED) == "", "outside its block anything goes"
    assert "pam_ldap.so" in pam.locally_modified(
        "auth", CURRENT.replace("# here's", "auth sufficient pam_ldap.so\n# here's"), SAVED
    )
    assert "required" in pam.locally_modified("auth", CURRENT.replace("optional", "required"), SAVED)
    assert "marks" in pam.locally_modified("auth", "auth required pam_unix.so\n", SAVED)
    assert pam.profiles_of(SAVED) == ["unix", "systemd"]
