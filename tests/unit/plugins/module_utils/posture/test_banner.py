# Copyright: (c) 2026, Bulwark contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The collector of notices, on what Debian 12 and 13 printed and on files laid out for the test."""

from __future__ import annotations

from pathlib import Path

import pytest
from ansible_collections.bulwark.hardening.plugins.module_utils.posture import banner
from ansible_collections.bulwark.hardening.plugins.module_utils.posture.common import CannotObserve
from ansible_collections.bulwark.hardening.plugins.plugin_utils.policy import violations

FIXTURES = Path(__file__).parent / "fixtures" / "banner"
RELEASES = ("debian12", "debian13")


def fixture(name):
    return (FIXTURES / f"{name}.txt").read_text()


@pytest.mark.parametrize("release", RELEASES)
def test_getty_units_are_found_with_what_they_show(release):
    vendor = fixture(f"{release}-getty-vendor")
    units = banner.getty_units(vendor)
    assert sorted(units) == sorted(banner.UNITS)  # kmsconvt, which is not installed, is not among them
    assert {unit["issue_file"] for unit in units.values()} == {""}
    changed = vendor.replace("/sbin/agetty -o", "/sbin/agetty --issue-file /etc/issue.d/own.issue -o")
    assert {unit["issue_file"] for unit in banner.getty_units(changed).values()} == {"/etc/issue.d/own.issue"}


@pytest.mark.parametrize("release", RELEASES)
def test_vendor_command_is_taken_from_the_unit_file(release):
    (line,) = banner.agetty_lines(fixture(f"{release}-getty-unit"))
    assert line.startswith("-/sbin/agetty -o '")
    assert line.endswith(("$TERM", "${TERM}"))


@pytest.mark.parametrize(
    ("command", "wanted"),
    [
        ("agetty - linux", ""),
        ("agetty --issue-file=/a - linux", "/a"),
        ("agetty -f /a - linux", "/a"),
        ("agetty --noissue -f /a - linux", "/dev/null"),
        ("agetty --issue-file", ""),
    ],
)
def test_issue_file_of_a_command_line(command, wanted):
    assert banner.issue_option(command.split()) == wanted


@pytest.mark.parametrize("release", RELEASES)
def test_settings_of_sshd(release):
    settings = banner.sshd_settings(fixture(f"{release}-sshd-vendor"))
    assert (settings["banner"], settings["usepam"]) == ("none", "yes")


@pytest.mark.parametrize("release", RELEASES)
def test_details_of_the_system_are_recognised(release):
    details = banner.system_details(fixture(f"{release}-os-release"), "6.1.0-56-amd64")
    codename = {"debian12": "bookworm", "debian13": "trixie"}[release]
    assert {"Debian GNU/Linux", codename, "6.1.0-56-amd64", "debian"} <= set(details)
    assert banner.shown(details, ["SSH-2.0-OpenSSH_9.2p1 Debian-2+deb12u10"]) == ["debian"]
    assert banner.shown(details, ["SSH-2.0-OpenSSH_9.2p1", "This system belongs to Example Clinic"]) == []


def test_white_space_does_not_matter():
    assert banner.words("  a\tb \n\n c ") == "a b c"
    assert len(banner.words("a " * 100000)) == banner.AT_MOST


@pytest.fixture
def motd(tmp_path, monkeypatch):
    """Point pam_motd's defaults into a directory of the test's own."""
    for name in ("etc/motd.d", "run/motd.d"):
        (tmp_path / name).mkdir(parents=True)
    monkeypatch.setattr(banner, "MOTD_FILES", (str(tmp_path / "etc/motd"), str(tmp_path / "run/motd")))
    monkeypatch.setattr(banner, "MOTD_DIRECTORIES", (str(tmp_path / "etc/motd.d"), str(tmp_path / "run/motd.d")))
    return tmp_path


def test_message_of_the_day_is_shown_as_pam_motd_does(motd):
    (motd / "run/motd").write_text("second choice\n")
    (motd / "etc/motd").write_text("first choice\n")
    (motd / "etc/motd.d/10-b").write_text("b\n")
    (motd / "run/motd.d/00-a").write_text("a\n")
    (motd / "run/motd.d/10-b").write_text("hidden by the one of the same name\n")
    assert banner.message_of_the_day(["noupdate"]).split() == ["first", "choice", "a", "b"]
    dynamic = motd / "dynamic"
    dynamic.write_text("dynamic\n")
    assert banner.message_of_the_day([f"motd={dynamic}"]) == "dynamic\n"
    assert banner.message_of_the_day([f"motd={motd}/missing"]) == ""
    assert banner.message_of_the_day([f"motd_dir={motd}/etc/motd.d"]) == "b\n"


@pytest.mark.parametrize("release", RELEASES)
def test_pam_lines_are_followed(release, monkeypatch):
    files = {
        "/etc/pam.d/sshd": fixture(f"{release}-pam-sshd"),
        "/etc/pam.d/common-session": "session [default=1] pam_permit.so\n-session optional pam_motd.so motd=/a # again\n",
    }
    monkeypatch.setattr(banner, "read", lambda path: files.get(path, ""))
    assert banner.motd_modules("sshd") == [["motd=/a"], ["motd=/run/motd.dynamic"], ["noupdate"]]


def test_host_without_an_ssh_server(monkeypatch):
    monkeypatch.setattr(banner, "SSHD", "/nonexistent/sshd")
    assert banner.ssh() == {"installed": False, "banner_files": [], "texts": [], "identification": "", "use_pam": False}


def test_part_that_cannot_be_seen_is_left_out_with_the_reason(monkeypatch):
    def blind():
        raise CannotObserve("sshd -T: exit 255")

    monkeypatch.setattr(banner, "ssh", blind)
    monkeypatch.setattr(banner, "console", lambda: {"texts": []})
    monkeypatch.setattr(banner, "shell", lambda: {"services": [], "texts": []})
    monkeypatch.setattr(banner, "read", lambda path: "ID=debian\n")
    data = banner.collect()
    assert "ssh" not in data
    assert "details_shown" not in data
    assert data["unobserved"]["ssh"] == "sshd -T: exit 255"
    assert "details_shown" in data["unobserved"]


def test_agetty_that_fails_is_not_taken_for_silence(monkeypatch):
    def missing(*_args, **_kwargs):
        raise FileNotFoundError("/sbin/agetty")

    monkeypatch.setattr(banner.subprocess, "run", missing)
    with pytest.raises(CannotObserve, match="agetty"):
        banner.issue("")


# --- what the role is told --------------------------------------------------------------------------------------------

TOPICS = {
    "sensitive_data": "This system may hold sensitive information.",
    "audit_logging": "Access is logged, and the records may be examined.",
    "sanctions": "Misuse is sanctioned.",
}


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"banner_owner": "Example Clinic\nPermitRootLogin yes"}, "without control characters"),
        ({"banner_owner": "Example \x1b[31mClinic"}, "without control characters"),
        ({"banner_owner": "\u202egnp.cinilC"}, "without control characters"),
        ({"banner_owner": "x" * 121}, "at most 120"),
        ({"banner_owner_url": "clinic.example"}, "must match"),
        ({"banner_owner_url": "javascript:alert(1)"}, "must match"),
        ({"banner_owner_url": "https://clinic.example/\nBanner none"}, "must match"),
        ({"banner_policies_url": "https://clinic.example/a policy"}, "must match"),
        ({"banner_policies_url": "file:///etc/shadow"}, "must match"),
        ({"banner_policies_url": "https://" + "a" * 200}, "must match"),
        ({"banner_text": ""}, "must not be empty"),
        ({"banner_text": "Cleared \x1b[2J"}, "control characters"),
        ({"banner_text": "One\rTwo"}, "control characters"),
        ({"banner_text": "Bell \x07"}, "control characters"),
        ({"banner_text": "C1 \x9b2J"}, "control characters"),
        ({"banner_text": "Tab\there"}, "must not match"),
        ({"banner_text": "Zero width \u200b space"}, "must not match"),
        ({"banner_text": "Reversed \u202e text"}, "control characters"),
        ({"banner_text": "a" * 2001}, "at most 2000"),
        ({"banner_topics": {}}, "UMDNJ-A-1e"),
        ({"banner_topics": {key: TOPICS[key] for key in ("sensitive_data", "sanctions")}}, "audit_logging"),
        ({"banner_topics": {**TOPICS, "sanctions": ""}}, "UMDNJ-A-1e"),
        ({"banner_topics": {**TOPICS, "sanctions": "-"}}, "UMDNJ-A-1e"),
        ({"banner_topics": {**TOPICS, "sanctions": "Misuse is\nnot sanctioned at all."}}, "UMDNJ-A-1e"),
        ({"banner_topics": {**TOPICS, "sanction": "Misuse is sanctioned."}}, "sanction"),
        ({"banner_topics": list(TOPICS.values())}, "UMDNJ-A-1e"),
        ({"banner_state": "off"}, "one of"),
        ({"banner_txt": "Misspelt"}, "unknown variable"),
    ],
)
def test_what_the_role_refuses(variables, expected):
    said = violations("banner", variables)
    assert said and expected in " ".join(said), said
    assert next(iter(variables)) in said[0]


@pytest.mark.parametrize(
    "variables",
    [
        {"banner_owner": "Klinik Zürich & Söhne", "banner_owner_url": "http://10.0.0.5:8080/x?y=1#z", "banner_policies_url": ""},
        {"banner_text": "Two lines,\n  with \\n, %s, $(id) and `id`, https://a.example https://b.example\n"},
        {"banner_topics": {**TOPICS, "sanctions": "Missbrauch wird geahndet."}},
    ],
)
def test_what_the_role_takes(variables):
    assert violations("banner", variables) == []
