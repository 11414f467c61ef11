# SPDX-License-Identifier: GPL-3.0-or-later
"""The register of media, and how exports end."""

from __future__ import annotations

import errno
import json
import os

import pytest
from ansible_collections.bulwark.hardening.plugins.module_utils import media_register as module

DISK = {"id": "M-1", "model": "EXAMPLE", "serial": "1", "size": 512, "class": "moderate", "location": "Safe", "custodian": "Ann"}
NAME = "EXAMPLE 1"
GONE = {"event": "destroyed", "medium": NAME, "at": "x"}


@pytest.fixture(autouse=True)
def quiet(monkeypatch):
    """Say nothing in the journal of whoever runs the tests."""
    monkeypatch.setattr(module, "log", lambda event, words: None)


@pytest.fixture
def place(tmp_path):
    """A register with a few entries."""
    module.append(str(tmp_path), [{"event": "begun"}, *module.wanted_entries([DISK], {})])
    return str(tmp_path)


def known(place) -> dict:
    """Return what it says."""
    entries, findings = module.examine(module.load(place))
    assert not findings
    return module.states(entries)


def test_what_is_declared_is_written_down_once(place):
    assert known(place)[NAME]["location"] == "Safe"
    assert module.wanted_entries([DISK], known(place)) == []


def test_movements_classes_and_withdrawals(place):
    moved = {**DISK, "location": "Van", "class": "high"}
    wanted = module.wanted_entries([moved], known(place))
    assert [entry["event"] for entry in wanted] == ["reclassified", "moved"]
    assert wanted[1]["from_location"] == "Safe"
    module.append(place, wanted)
    assert module.wanted_entries([moved], known(place)) == []
    assert [entry["event"] for entry in module.wanted_entries([], known(place))] == ["withdrawn"]
    module.append(place, module.wanted_entries([], known(place)))
    assert module.wanted_entries([], known(place)) == []
    assert [entry["event"] for entry in module.wanted_entries([moved], known(place))] == ["declared"], "it came back"


def edit(place, change) -> list[str]:
    """Change the lines of the register and return what is found."""
    lines = module.load(place).splitlines(keepends=True)
    change(lines)
    return module.examine(b"".join(lines))[1]


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (lambda lines: lines.__setitem__(1, lines[1].replace(b"Safe", b"Home")), "line 2: was altered"),
        (lambda lines: lines.pop(0), "line 1: has number 2"),
        (lambda lines: lines.insert(1, lines[1]), "line 3"),
        (lambda lines: lines.reverse(), "line 1"),
        (lambda lines: lines.append(b"{}\n"), "line 3: no line"),
        (lambda lines: lines.__setitem__(1, lines[1][:-1]), "line 2: was cut off"),
    ],
)
def test_alterations_are_named(place, change, word):
    assert word in edit(place, change)[0]


def test_an_altered_register_takes_nothing(place):
    path = module.path_of(place)
    with open(path, "rb") as stream:
        data = stream.read()
    with open(path, "wb") as stream:
        stream.write(data.replace(b"Safe", b"Home"))
    with pytest.raises(module.RegisterError, match="line 2"):
        module.append(place, [{"event": "begun"}])
    assert module.load(place) == data.replace(b"Safe", b"Home")


def cut(place, bytes_: int) -> bytes:
    """Let an entry be cut off in the middle of being written; return what is left of it."""
    whole = module.load(place)
    module.append(place, [{"event": "begun"}])
    with open(module.path_of(place), "r+b") as stream:
        stream.truncate(len(whole) + bytes_)
    return module.load(place)[len(whole) :]


@pytest.mark.parametrize("times", [1, 2])
def test_a_line_that_was_cut_off_is_on_record_and_the_register_goes_on(place, times):
    left = b""
    for _time in range(times):
        left += cut(place, 20)
        assert "was cut off" in module.examine(module.load(place))[1][0]
    module.append(place, [{"event": "destroyed", "medium": NAME}])
    entries, findings = module.examine(module.load(place))
    assert findings == []
    assert [entry["event"] for entry in entries[-2:]] == ["recovered", "destroyed"]
    assert entries[-2]["bytes"] == len(left)
    assert [entry["n"] for entry in entries] == list(range(1, len(entries) + 1))


def test_what_was_cut_off_cannot_be_something_else_afterwards(place):
    left = cut(place, 20)
    module.append(place, [{"event": "begun"}])
    changed = module.load(place).replace(left, b"x" * len(left), 1)
    assert "no line" in module.examine(changed)[1][0]
    assert module.examine(module.load(place).replace(left + b"\n", b"", 1))[1] == [], "the entry still says what was there"


def test_a_whole_line_cannot_pass_for_a_cut_one(place):
    data = module.load(place)
    with open(module.path_of(place), "wb") as stream:
        stream.write(data.replace(b"Safe", b"Home"))
        stream.write(b'{"n":3')
    with pytest.raises(module.RegisterError, match="line 2"):
        module.append(place, [{"event": "begun"}])


def test_a_link_is_not_followed(tmp_path):
    (tmp_path / "register.jsonl").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(module.RegisterError):
        module.append(str(tmp_path), [{"event": "begun"}])
    assert not (tmp_path / "elsewhere").exists()


def test_it_is_readable_for_its_owner_only(place):
    assert os.stat(module.path_of(place)).st_mode & 0o777 == 0o600


def sanitised(**more):
    """Return the entry of a sanitisation."""
    return {"event": "sanitised", "medium": NAME, "class": "moderate", "category": "purge", "disposition": "reuse_internal",
            "certificate": "/c", "sha256": "ab", **more}  # fmt: skip


def test_states_follow_the_life_of_a_medium(place):
    signed = {"event": "signed", "medium": NAME}
    module.append(place, [sanitised(), {**signed, "sha256": "ab", "signer": "Ann"},
                          {**signed, "sha256": "other", "signer": "Bob"}, {"event": "reused", "medium": NAME}])  # fmt: skip
    state = known(place)[NAME]
    assert state["signers"] == ["Ann"] and state["reused"] and state["sanitised"]["category"] == "purge"
    module.append(place, [sanitised(sha256="cd"), {"event": "destroyed", "medium": NAME}])
    state = known(place)[NAME]
    assert (state["signers"], state["reused"], state["destroyed"]) == ([], False, True)
    module.append(place, [{"event": "started", "medium": NAME, "class": "low"}])
    assert known(place)[NAME]["sanitised"] is None, "what an older certificate says is over"


def test_who_wipes_does_not_classify(place):
    module.append(place, [{"event": "declared", "medium": NAME, "id": "M-1", "class": "high"}, sanitised()])
    assert known(place)[NAME]["class"] == "high"
    module.append(place, [{"event": "reclassified", "medium": NAME, "class": "low"}])
    assert known(place)[NAME]["class"] == "low"


def test_one_purge_is_good_for_one_more_use(place, capsys):
    reuse = ["--directory", place, "add", "reused", "--medium", NAME, "--by", "Ann"]
    module.append(place, [sanitised()])
    assert module.main(reuse) == 0
    assert module.main(reuse) == 2 and "sanitised anew" in capsys.readouterr().err
    module.append(place, [sanitised(sha256="cd")])
    assert module.main(reuse) == 0


def test_by_hand_only_what_the_policy_allows(place, capsys):
    def add(event, *more):
        return module.main(["--directory", place, "add", event, "--medium", NAME, "--by", "Ann", *more])

    assert add("reused") == 2 and "UMDNJ-I-2" in capsys.readouterr().err
    assert add("moved") == 2, "whereto?"
    assert add("moved", "--location", "Van") == 0
    module.append(place, [sanitised(category="clear", disposition="destroy")])
    assert add("reused") == 2
    assert add("destroyed", "--details", "shredded") == 0
    assert add("moved", "--location", "Van") == 2, "what is destroyed goes nowhere"
    assert module.main(["--directory", place, "add", "moved", "--medium", "x", "--by", "a", "--location", "b"]) == 2
    with pytest.raises(SystemExit):
        add("sanitised")


@pytest.mark.parametrize(
    ("sanitise_by", "entries", "jobs", "found"),
    [
        ("2026-11-28", [], [], 1),
        ("2026-11-29", [], [], 0),
        ("2026-11-28", [sanitised(at="2026-11-01T00:00:00Z")], [], 0),
        (None, [sanitised(at="2026-11-01T00:00:00Z", disposition="destroy")], [], 1),
        (None, [sanitised(at="2026-11-20T00:00:00Z", disposition="destroy")], [], 0),
        (None, [sanitised(at="2026-11-01T00:00:00Z", disposition="destroy"), GONE], [], 0),
        (None, [], [{"medium": NAME, "started_at": "2026-11-01T00:00:00Z"}], 1),
        (None, [], [{"medium": NAME, "started_at": "2026-11-20T00:00:00Z"}], 0),
    ],
)  # fmt: skip
def test_what_is_overdue(sanitise_by, entries, jobs, found):
    declared = [{**DISK, **({"sanitise_by": sanitise_by} if sanitise_by else {})}]
    first = {
        "event": "declared",
        "medium": NAME,
        "id": "M-1",
        "class": "moderate",
        "location": "Safe",
        "custodian": "Ann",
        "at": "x",
    }
    known = module.states([first, *entries])
    assert len(module.overdue(declared, known, jobs, "2026-11-29", 14)) == found
    # To be taken off the list destroys nothing.
    gone = module.overdue([], known, jobs, "2026-11-29", 14)
    assert len(gone) == found - bool(sanitise_by and found)


# --- exports -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def exports(tmp_path):
    """A declared directory with a file in it."""
    directory = tmp_path / "exports"
    directory.mkdir()
    (directory / "a.csv").write_bytes(b"canary" * 1000)
    return [{"path": str(directory), "keep_hours": 24, "approver": "Ann", "reason": "r"}]


def now(exports) -> float:
    """Return when the file came."""
    return os.stat(f"{exports[0]['path']}/a.csv").st_ctime


def test_a_file_ends_after_its_time(place, exports):
    path = f"{exports[0]['path']}/a.csv"
    begin = now(exports)
    assert module.expire(place, exports, begin + 23 * 3600) == ([], [])
    os.utime(path, (begin + 10**6, begin + 10**6))
    with open(path, "ab") as stream:
        stream.write(b"more")
    assert module.expire(place, exports, begin + 25 * 3600, preview=True)[0][0]["path"] == path
    assert os.path.exists(path)
    [gone], problems = module.expire(place, exports, begin + 25 * 3600)
    assert not problems and not os.path.exists(path)
    assert (gone["path"], gone["bytes"], gone["hours"]) == (path, 6004, 25.0)
    assert json.loads(module.load(place).splitlines()[-1])["event"] == "deleted"


def test_another_name_makes_no_file_younger(place, exports):
    begin, path = now(exports), f"{exports[0]['path']}/a.csv"
    module.expire(place, exports, begin + 3600)
    if module.generation(path, os.lstat(path)) is None:
        pytest.skip("this file system does not number its files")
    os.rename(path, f"{path}.new")
    [gone], _problems = module.expire(place, exports, begin + 25 * 3600)
    assert (gone["path"], gone["hours"]) == (f"{path}.new", 25.0)


def test_what_was_never_seen_counts_from_its_coming(place, exports):
    begin = now(exports)
    module.expire(place, exports, begin + 3600)
    assert module.mark_seen(place), "it is remembered"
    files, _seen = module.look_at_exports(exports, {}, begin + 3600)
    assert not files[0]["expired"] and 0.9 < files[0]["hours"] < 1.1


def test_what_is_moved_in_with_its_directory_has_its_time(place, exports, tmp_path):
    """Moving a directory leaves what is in it as old as it was: it counts from when the keeper first saw it there."""
    begin = now(exports)
    module.expire(place, exports, begin + 3600)
    project = tmp_path / "project"
    project.mkdir()
    (project / "b.csv").write_text("old, and moved in now")
    project.rename(f"{exports[0]['path']}/project")
    late = begin + 200 * 3600
    gone, _problems = module.expire(place, exports, late)
    assert [entry["path"] for entry in gone] == [f"{exports[0]['path']}/a.csv"]
    gone, _problems = module.expire(place, exports, late + 23 * 3600)
    assert not gone
    [entry], _problems = module.expire(place, exports, late + 25 * 3600)
    assert entry["path"].endswith("project/b.csv")


def test_nothing_goes_that_cannot_be_written_down(place, exports, monkeypatch):
    """Neither when the register was altered nor when the disk is full."""
    begin, path = now(exports), f"{exports[0]['path']}/a.csv"
    module.append(place, [{"event": "declared", "medium": "x", "id": "y"}, {"event": "moved", "medium": "x"}])
    module.expire(place, exports, begin)

    def full(*_given):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(module, "write_json", full)
        with pytest.raises(OSError, match="No space"):
            module.expire(place, exports, begin + 99 * 3600)
    assert os.path.exists(path)
    register = module.path_of(place)
    with open(register, "rb") as stream:
        lines = stream.read()
    with open(register, "wb") as stream:
        stream.write(lines.replace(b'"y"', b'"z"'))
    with pytest.raises(module.RegisterError):
        module.expire(place, exports, begin + 99 * 3600)
    assert os.path.exists(path)


def test_a_link_above_an_export_leads_nowhere(place, exports, tmp_path):
    """Whoever owns a directory on the way puts a link in its place, to a tree in which there is one of the same name."""
    begin = now(exports)
    others = tmp_path / "others" / "exports"
    others.mkdir(parents=True)
    (others / "a.csv").write_text("precious")
    way = tmp_path / "alice"
    way.symlink_to(tmp_path / "others")
    declared = [{**exports[0], "path": f"{way}/exports"}]
    gone, problems = module.expire(place, declared, begin + 99 * 3600)
    assert not gone and "below one" in problems[0]
    with pytest.raises(OSError, match=r"alice|Not a directory|symbolic"):
        module.delete_securely(f"{way}/exports/a.csv", f"{way}/exports")
    assert (others / "a.csv").read_text() == "precious"


def test_a_last_day_ends_everything(place, exports):
    begin = now(exports)
    files, _seen = module.look_at_exports([{**exports[0], "expires": "2000-01-01"}], {}, begin)
    assert files[0]["expired"]
    files, _seen = module.look_at_exports([{**exports[0], "expires": "2100-01-01"}], {}, begin)
    assert not files[0]["expired"]


def test_content_is_overwritten(exports):
    path = f"{exports[0]['path']}/a.csv"
    with open(path, "rb") as held:
        written = []
        real = os.pwrite

        def spy(handle, data, at):
            written.append((at, bytes(data)))
            return real(handle, data, at)

        module.os.pwrite = spy
        try:
            done = module.delete_securely(path, exports[0]["path"])
        finally:
            module.os.pwrite = real
        assert written == [(0, bytes(6000))]
        assert held.read() == b""
    assert done["bytes"] == 6000 and os.listdir(exports[0]["path"]) == []


def test_links_and_further_names(tmp_path, exports):
    place = exports[0]["path"]
    (tmp_path / "precious").write_text("precious")
    os.symlink(tmp_path / "precious", f"{place}/link")
    os.link(tmp_path / "precious", f"{place}/hard")
    module.delete_securely(f"{place}/link", place)
    with pytest.raises(module.RegisterError, match="2 names"):
        module.delete_securely(f"{place}/hard", place)
    assert (tmp_path / "precious").read_text() == "precious" and not os.path.lexists(f"{place}/link")


def test_a_directory_exchanged_for_a_link_leads_nowhere(tmp_path, exports):
    place = exports[0]["path"]
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "file").write_text("precious")
    os.symlink(tmp_path / "outside", f"{place}/deep")
    with pytest.raises(OSError):
        module.delete_securely(f"{place}/deep/file", place)
    assert (tmp_path / "outside" / "file").read_text() == "precious"


def test_a_declared_place_that_is_a_link_is_no_end(place, tmp_path, exports):
    """The link would be taken away, the files behind it would stay, and all would look well."""
    os.symlink(exports[0]["path"], tmp_path / "link")
    declared = [{**exports[0], "path": str(tmp_path / "link")}, exports[0]]
    gone, problems = module.expire(place, declared, now(exports) + 25 * 3600)
    assert [entry["path"] for entry in gone] == [f"{exports[0]['path']}/a.csv"], "the other one ends"
    assert "is a link" in problems[0] and os.path.islink(tmp_path / "link")


def test_holes_are_not_filled(tmp_path):
    path = tmp_path / "sparse"
    with open(path, "wb") as stream:
        stream.write(b"canary")
        stream.seek(1 << 40)
        stream.write(b"end")
    before = os.stat(path).st_blocks
    handle = os.open(path, os.O_RDWR)
    try:
        module.overwrite(handle, (1 << 40) + 3)
        assert os.pread(handle, 6, 0) == bytes(6) and os.pread(handle, 3, 1 << 40) == bytes(3)
        assert os.fstat(handle).st_blocks <= before + 64
    finally:
        os.close(handle)


def test_other_file_systems_are_not_entered(exports, monkeypatch):
    os.mkdir(f"{exports[0]['path']}/mounted")
    (path,) = [item for item, _about in module.walk(exports[0]["path"])]
    assert path.endswith("a.csv")
    assert list(module.walk("/no/such/place")) == []
