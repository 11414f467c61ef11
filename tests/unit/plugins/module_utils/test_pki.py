# SPDX-License-Identifier: GPL-3.0-or-later
"""The VPN's authority, with the real openssl."""

from __future__ import annotations

import os
import stat
import time

import pytest
from ansible_collections.bulwark.hardening.plugins.module_utils import pki


@pytest.fixture
def authority(tmp_path):
    """An authority of its own."""
    directory = str(tmp_path / "authority")
    with pki.Authority.lock(directory, create=True):
        made = pki.Authority(directory)
        made.create("Test VPN", 3650)
        yield made


def request(tmp_path, name, passphrase=""):
    """Return a request with a new key."""
    path = tmp_path / f"{name}-{time.monotonic_ns()}.key"
    pki.write(str(path), pki.make_key(passphrase), 0o600)
    return pki.make_request(str(path), name, passphrase), path


def test_issue_and_revoke(authority, tmp_path):
    asked, _key = request(tmp_path, "alice")
    pem = authority.issue("alice", "client", asked, 30)
    facts = pki.certificate_facts(pem)
    assert facts["name"] == "alice" and 29.9 < (facts["not_after"] - time.time()) / pki.DAY <= 30
    assert authority.current("alice", "client", facts["key"], time.time())["serial"] == facts["serial"]
    authority.make_crl(7)
    assert not authority.crl_due(3, time.time())
    authority.revoke({"alice"}, block=True)
    assert authority.crl_due(3, time.time()), "a revocation is not put off"
    authority.make_crl(7)
    assert pki.crl_facts(pki.load(authority.path("crl.pem")))["revoked"] == [facts["serial"]]
    assert authority.current("alice", "client", facts["key"], time.time()) is None
    assert pki.Authority(authority.directory).index["blocked"] == ["alice"], "it is on the disk"


def test_a_list_about_to_expire_is_due(authority):
    authority.make_crl(7)
    assert not authority.crl_due(3, time.time())
    assert authority.crl_due(3, time.time() + 5 * pki.DAY)


def test_a_lost_or_torn_list_is_due(authority):
    assert authority.crl_due(3, time.time())
    pki.write(authority.path("crl.pem"), b"-----BEGIN X509 CRL-----\nabc", 0o644)
    assert authority.crl_due(3, time.time())


def test_superseding_revokes_other_keys_only(authority, tmp_path):
    first, _path = request(tmp_path, "alice")
    second, _path = request(tmp_path, "alice")
    authority.issue("alice", "client", first, 30)
    authority.issue("alice", "client", second, 30)
    assert [bool(entry["revoked"]) for entry in authority.index["certificates"]] == [False, False]
    authority.issue("alice", "client", second, 30, supersede=True)
    assert [bool(entry["revoked"]) for entry in authority.index["certificates"]] == [True, False, False]


def test_a_request_for_another_name_is_refused(authority, tmp_path):
    asked, _path = request(tmp_path, "mallory")
    with pytest.raises(pki.PkiError, match="'mallory', not for 'alice'"):
        authority.issue("alice", "client", asked, 30)


def test_a_request_that_was_tampered_with_is_refused(authority, tmp_path):
    asked, _path = request(tmp_path, "alice")
    lines = asked.splitlines()
    lines[3] = lines[3][:10] + ("A" if lines[3][10] != "A" else "B") + lines[3][11:]
    with pytest.raises(pki.PkiError):
        authority.issue("alice", "client", "\n".join(lines) + "\n", 30)


def test_a_weak_key_is_refused(authority, tmp_path):
    key = tmp_path / "weak.key"
    key.write_bytes(pki.openssl("genpkey", "-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:1024"))
    with pytest.raises(pki.PkiError, match="at least 3072"):
        authority.issue("alice", "client", pki.make_request(str(key), "alice"), 30)


def test_a_key_with_a_passphrase_is_encrypted(tmp_path):
    _asked, path = request(tmp_path, "alice", "correct horse")
    assert path.read_text().startswith("-----BEGIN ENCRYPTED PRIVATE KEY-----")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    with pytest.raises(pki.PkiError):
        pki.make_request(str(path), "alice", "wrong horse")


def test_the_passphrase_is_no_argument_and_no_variable(monkeypatch, tmp_path):
    seen = []
    real = pki.subprocess.run

    def watched(argv, check=False, **more):
        seen.append((argv, more.get("env")))
        return real(argv, check=check, **more)

    monkeypatch.setattr(pki.subprocess, "run", watched)
    request(tmp_path, "alice", "correct horse")
    assert seen and "correct horse" not in repr(seen)


def test_files_are_private(authority):
    modes = {name: stat.S_IMODE(os.stat(authority.path(name)).st_mode) for name in ("ca.key", "ca.crt")}
    assert modes == {"ca.key": 0o600, "ca.crt": 0o644} and stat.S_IMODE(os.stat(authority.directory).st_mode) == 0o700


def test_a_certificate_without_its_key_is_not_taken_for_an_authority(authority):
    os.unlink(authority.path("ca.key"))
    with pytest.raises(pki.PkiError, match="from its backup"):
        authority.exists()


def test_the_timers_program(authority, tmp_path, capsys):
    published = tmp_path / "crl.pem"
    words = ["renew-crl", authority.directory, "--publish", str(published), "--days", "7", "--renew-days", "3"]
    handle_free = pki.Authority.lock  # the fixture holds the lock, so it is left out here
    try:
        pki.Authority.lock = staticmethod(lambda directory, create: pki.contextlib.nullcontext())
        assert pki.main(words) == 0 and "event=crl_renewed" in capsys.readouterr().out
        first = published.read_text()
        assert pki.main(words) == 0 and capsys.readouterr().out == "" and published.read_text() == first
        published.unlink()
        assert pki.main(words) == 0 and published.read_text() == first, "a lost copy is put back"
        os.unlink(authority.path("ca.key"))
        assert pki.main(words) == 1 and "event=crl_failed" in capsys.readouterr().err
    finally:
        pki.Authority.lock = handle_free


def test_dates_past_2049():
    assert pki._stamp(2524608000) == "20500101000000Z" and pki._stamp(2524607999) == "491231235959Z"
