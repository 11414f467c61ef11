# SPDX-License-Identifier: GPL-3.0-or-later
"""The guard before pam_duo: exactly what the role writes is sound, and nothing else."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
GUARD = ROOT / "roles" / "duo" / "files" / "duo_config_check"
SOUND = """\
; a comment
[duo]
failmode = secure
host = api-12345678.duosecurity.com
ikey = DIXXXXXXXXXXXXXXXXXX
skey = aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa
cafile = {ca}
pushinfo = yes
autopush = yes
prompts = 1
https_timeout = 60
"""
pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can make a file of root's")


@pytest.fixture
def accepts(tmp_path):
    """Write a configuration and say whether the guard takes it."""
    authorities = tmp_path / "ca.pem"
    authorities.write_text("-----BEGIN CERTIFICATE-----\n")

    def judge(text, mode=0o600):
        path = tmp_path / "pam_duo.conf"
        path.write_bytes(text.replace("{ca}", str(authorities)).encode("latin-1"))
        path.chmod(mode)
        return subprocess.run(["sh", GUARD, path], check=False, capture_output=True, stdin=subprocess.DEVNULL).returncode == 0

    return judge


def test_what_the_role_writes_is_taken(accepts):
    assert accepts(SOUND)


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o400, 0o700])
def test_other_modes_are_refused(accepts, mode):
    assert not accepts(SOUND, mode)


@pytest.mark.parametrize(
    ("what", "old", "new"),
    [
        ("fails open", "secure", "safe"),
        ("failmode not first", "failmode = secure\nhost", "host"),
        ("unknown line first", "[duo]\n", "[duo]\nunknown = 1\n"),
        ("a setting before the section", "[duo]\n", "prompts = 1\n[duo]\n"),
        ("no section", "[duo]\n", ""),
        ("another section", "[duo]\n", "[duo]\n[other]\n"),
        ("the section twice", "prompts = 1", "[duo]"),
        ("certificates not checked", "prompts = 1", "noverify = 1"),
        ("only some groups", "prompts = 1", "groups = staff"),
        ("a proxy", "prompts = 1", "http_proxy = http://proxy.example"),
        ("failmode again", "prompts = 1", "failmode = secure"),
        ("host twice", "prompts = 1", "host = elsewhere.example"),
        ("an indented line, which continues the one above", "failmode = secure\n", "failmode = secure\n  safe\n"),
        ("a colon for an equals sign", "prompts = 1", "failmode: safe"),
        ("no blanks", "prompts = 1", "prompts=1"),
        ("a comment behind a value", "prompts = 1", "prompts = 1 ; not 3"),
        ("an overlong line", "prompts = 1", "; " + "x" * 200),
        ("a carriage return", "prompts = 1", "prompts = 1\r"),
        ("a byte of zero", "prompts = 1", "prompts = 1\0"),
        ("a mark of byte order", "; a comment", "\xef\xbb\xbf; a comment"),
        ("no host", "host = api-12345678.duosecurity.com\n", ""),
        ("no key", "skey = aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa", "skey = "),
        ("no authorities named", "cafile = {ca}\n", ""),
        ("authorities gone", "{ca}", "/nonexistent"),
        ("authorities without a certificate", "{ca}", "/etc/hostname"),
    ],
)
def test_anything_else_is_refused(accepts, what, old, new):
    assert old in SOUND
    assert not accepts(SOUND.replace(old, new)), what


def test_files_that_are_none(accepts, tmp_path):
    assert not accepts("")
    assert accepts(SOUND)
    path, link = tmp_path / "pam_duo.conf", tmp_path / "link"
    link.symlink_to(path)
    assert subprocess.run(["sh", GUARD, link], check=False, capture_output=True).returncode != 0, "a link"
    assert subprocess.run(["sh", GUARD, tmp_path], check=False, capture_output=True).returncode != 0, "a directory"
    os.chown(path, 1, 0)
    assert subprocess.run(["sh", GUARD, path], check=False, capture_output=True).returncode != 0, "somebody else's"
    os.chown(path, 0, 0)
    tmp_path.chmod(0o777)
    assert subprocess.run(["sh", GUARD, path], check=False, capture_output=True).returncode != 0, "where others may write"
    tmp_path.chmod(0o700)
    assert subprocess.run(["sh", GUARD, path], check=False, capture_output=True).returncode == 0
    path.unlink()
    assert subprocess.run(["sh", GUARD, path], check=False, capture_output=True).returncode != 0, "missing"
