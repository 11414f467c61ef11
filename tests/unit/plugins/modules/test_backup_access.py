# SPDX-License-Identifier: GPL-3.0-or-later
"""Secrets of backups: made once, sealed to whoever is a custodian now, and the list of those who may come in."""

from __future__ import annotations

import base64
import grp
import hashlib
import json
import multiprocessing
import os

import pytest
from ansible_collections.bulwark.hardening.plugins.module_utils import backup_escrow as escrow
from ansible_collections.bulwark.hardening.plugins.module_utils.pki import PkiError
from ansible_collections.bulwark.hardening.plugins.modules import backup_access as module

CUSTODIANS = [{"name": "One", "key": "age1one"}, {"name": "Two", "key": "age1two"}]


@pytest.fixture(autouse=True)
def age(monkeypatch):
    """Stand in for age: say to whom what was sealed."""
    sealed = []

    def seal(*words: str, given: bytes, program: str) -> bytes:
        sealed.append((program, words, given))
        return b"sealed %d" % len(sealed)

    monkeypatch.setattr(module, "openssl", seal)
    return sealed


def make(tmp_path, check: bool = False, **more) -> tuple[dict, list[str]]:
    """Make a host's secrets; return what the server gets, and what was said."""
    said: list[str] = []
    params = {"directory": str(tmp_path / "secrets"), "name": "ward-1", "address": "b:1", "authority": "PEM",
              "taken": False, "custodians": CUSTODIANS, **more}  # fmt: skip
    return module.made(params, said, check), said


def enter(tmp_path, check: bool = False, **more) -> tuple[dict, list[str]]:
    """Change the list; return what was answered, and what was said."""
    said: list[str] = []
    params = {"directory": str(tmp_path), "path": str(tmp_path / "list"), "group": grp.getgrgid(os.getegid()).gr_name,
              "name": None, "names": None, "line": "", "escrow": None, "copies": None, "authority_file": None,
              **more}  # fmt: skip
    return module.entered(params, said, check), said


def test_secrets_are_made_once_and_only_their_digest_leaves(tmp_path, age):
    first, said = make(tmp_path)
    place = tmp_path / "secrets"
    access = (place / "access").read_text().strip()
    assert len(access) == 64 and access != (place / "password").read_text().strip()
    assert first["line"] == "ward-1:{SHA}" + base64.b64encode(hashlib.sha1(access.encode()).digest()).decode()
    assert (place / "repository").read_text() == f"rest:https://ward-1:{access}@b:1/ward-1/\n"
    assert {name: (place / name).stat().st_mode & 0o777 for name in os.listdir(place)} == dict.fromkeys(
        ("access", "password", "repository", "ca.crt", "escrow.json"), 0o600
    )
    assert (age[0][0], age[0][1]) == ("age", ("-a", "-r", "age1one", "-r", "age1two"))
    assert json.loads(age[0][2])["password"] == (place / "password").read_text().strip()
    assert not [line for line in said if access in line]
    again, said = make(tmp_path)
    assert again == first and said == [] and len(age) == 1


def test_check_mode_foretells_the_same(tmp_path):
    _outcome, foretold = make(tmp_path, check=True)
    assert not (tmp_path / "secrets").exists()
    _outcome, said = make(tmp_path)
    assert said == foretold


def test_other_custodians_get_it_sealed_anew(tmp_path, age):
    first, _said = make(tmp_path)
    second, said = make(tmp_path, custodians=[CUSTODIANS[0], {"name": "Three", "key": "age1three"}])
    assert len(said) == 1 and "One, Three" in said[0] and second["escrow"] != first["escrow"] and second["line"] == first["line"]
    assert age[1][1] == ("-a", "-r", "age1one", "-r", "age1three")


def test_who_only_fetches_gets_no_key(tmp_path, age):
    outcome, _said = make(tmp_path, custodians=[])
    assert outcome["escrow"] == {} and sorted(os.listdir(tmp_path / "secrets")) == ["access", "ca.crt"] and not age


def test_a_mode_that_was_loosened_is_put_right(tmp_path):
    make(tmp_path)
    (tmp_path / "secrets" / "access").chmod(0o644)
    assert make(tmp_path)[1] == [f"{tmp_path}/secrets/access: owner root, mode 0600"]
    assert (tmp_path / "secrets" / "access").stat().st_mode & 0o777 == 0o600


def test_the_list(tmp_path):
    assert enter(tmp_path, name="a", line="a:{SHA}x")[1] == [f"{tmp_path}/list: a may come in"]
    assert enter(tmp_path, name="b", line="b:{SHA}y", escrow={"sealed": "s"})[1][1] == f"{tmp_path}/b: a sealed key of b"
    assert (tmp_path / "list").read_text() == "a:{SHA}x\nb:{SHA}y\n"
    assert enter(tmp_path, name="b", line="b:{SHA}y", escrow={"sealed": "s"})[1] == []
    assert enter(tmp_path)[1] == []
    outcome, said = enter(tmp_path, names=["b", "c"])
    assert outcome["removed"] == ["a"] and said == [f"{tmp_path}/list: a may no longer come in"]
    assert (tmp_path / "list").read_text() == "b:{SHA}y\n" and (tmp_path / "list").stat().st_mode & 0o777 == 0o640


def test_only_asking_changes_nothing(tmp_path):
    (tmp_path / "ca").write_text("PEM")
    assert enter(tmp_path, authority_file=str(tmp_path / "ca"))[0]["authority"] == "PEM"
    assert not (tmp_path / "list").exists()


@pytest.mark.parametrize(("name", "line"), [("a", "b:{SHA}x"), ("a", ""), ("a", "a:plain")])
def test_a_line_of_somebody_else_is_refused(tmp_path, name, line):
    with pytest.raises(PkiError):
        enter(tmp_path, name=name, line=line)


def test_what_lies_above_stays_open(tmp_path):
    before = os.umask(0o077)
    try:
        make(tmp_path / "above")
    finally:
        os.umask(before)
    assert (tmp_path / "above").stat().st_mode & 0o777 == 0o755
    assert (tmp_path / "above" / "secrets").stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("left", [None, "", "\n"])
def test_a_key_that_is_gone_is_not_made_anew_while_the_old_one_is_needed(tmp_path, left):
    make(tmp_path)
    path = tmp_path / "secrets" / "password"
    key = path.read_text()
    path.unlink()
    if left is not None:
        path.write_text(left)
    for check in (True, False):
        with pytest.raises(PkiError, match="custodian"):
            make(tmp_path, check=check, taken=True)
    assert not path.exists() or not path.read_text().strip()
    path.write_text(key)
    path.chmod(0o644)
    assert make(tmp_path, taken=True)[1] == [f"{path}: owner root, mode 0600"], "given back, it is used again"
    path.unlink()
    assert any("a new encryption key" in line for line in make(tmp_path)[1]), "nothing was backed up"


def test_sealed_keys_never_take_the_place_of_others(tmp_path):
    first, second = {"sealed": "one", "of": "x"}, {"sealed": "two", "of": "x"}
    for given in (first, second, first):
        enter(tmp_path, name="b", line="b:{SHA}y", escrow=given)
    kept = {path.name: json.loads(path.read_text()) for path in (tmp_path / "b").iterdir()}
    assert sorted(kept.values(), key=str) == sorted([first, second], key=str)
    assert set(kept) == {escrow.name_of(path.read_text()) for path in (tmp_path / "b").iterdir()}
    assert (tmp_path / "b").stat().st_mode & 0o777 == 0o700


def test_a_sealed_key_of_which_a_byte_turned_is_written_again(tmp_path):
    given = {"sealed": "one", "of": "x"}
    enter(tmp_path, name="b", line="b:{SHA}y", escrow=given)
    (path,) = (tmp_path / "b").iterdir()
    path.write_text(path.read_text().replace("one", "onf"))
    assert enter(tmp_path, name="b", line="b:{SHA}y", escrow=given)[1] and json.loads(path.read_text()) == given


def add(tmp_path, letter: str) -> None:
    """Enter twenty hosts, one after the other, as a process of its own."""
    for number in range(20):
        enter(tmp_path, name=f"{letter}{number}", line=f"{letter}{number}:{{SHA}}x")


def test_hosts_that_enter_at_the_same_moment_are_all_let_in(tmp_path):
    both = [multiprocessing.get_context("fork").Process(target=add, args=(tmp_path, letter)) for letter in "ab"]
    for one in both:
        one.start()
    for one in both:
        one.join(60)
    assert [one.exitcode for one in both] == [0, 0]
    assert len((tmp_path / "list").read_text().splitlines()) == 40


def test_whether_there_are_backups_is_told(tmp_path):
    assert enter(tmp_path, copies=str(tmp_path / "hosts" / "w"))[0]["held"] is False
    (tmp_path / "hosts" / "w").mkdir(parents=True)
    (tmp_path / "hosts" / "w" / "config").write_text("x")
    assert enter(tmp_path, copies=str(tmp_path / "hosts" / "w"))[0]["held"] is True
