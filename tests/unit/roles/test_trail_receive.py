# SPDX-License-Identifier: GPL-3.0-or-later
"""The receiver of the trail: what comes over the line, what is written, and what happens when there is no room."""

from __future__ import annotations

import base64
import importlib.util
import json
import os
import struct
from pathlib import Path

import pytest

PATH = Path(__file__).resolve().parents[3] / "roles" / "log_collector" / "files" / "trail_receive.py"
SPEC = importlib.util.spec_from_file_location("trail_receive", PATH)
receive = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(receive)
store = receive.store


def parse(data: bytes, size: int = 7) -> list[dict]:
    """Return the entries of an upload that comes in parts of a few bytes."""
    return list(receive.entries(receive.Parts(data[at : at + size] for at in range(0, len(data), size))))


def cursor(number: int, sequence: str = "ab") -> str:
    """Return a cursor as journald makes them."""
    return f"s={sequence};i={number:x};b=cd;m=1;t=2;x={number:x}"


def entry(number: int, text: str = "x", sequence: str = "ab") -> tuple[str, int, dict]:
    """Return an entry as the receiver passes it on."""
    return cursor(number, sequence), 1795568523000000 + number, {"MESSAGE": text}


@pytest.fixture
def place(tmp_path):
    """A store with what the receiver makes in it."""
    for name in (".state", ".seals"):
        (tmp_path / name).mkdir()
    return str(tmp_path)


def make(place, **more):
    """Return the part of the store of one host."""
    return receive.Host(place, "ward-1", receive.Log(), **more)


def written(place) -> list[dict]:
    """Return what is in the store."""
    return [json.loads(line) for line in store.cat(place, "ward-1")]


@pytest.mark.parametrize("size", [1, 3, 7, 100000])
def test_the_export_format_is_read_in_any_parts(size):
    data = b"__CURSOR=a\nMESSAGE=hello = you\nTAG=1\nTAG=2\nTAG=3\nRAW\n" + struct.pack("<Q", 5) + b"\xff\n\x00ab\n\n"
    raw = {"base64": base64.b64encode(b"\xff\n\0ab").decode()}
    assert parse(data + b"\n" + b"MESSAGE=" + "ä".encode() + b"\n\n", size) == [
        {"__CURSOR": "a", "MESSAGE": "hello = you", "TAG": ["1", "2", "3"], "RAW": raw},
        {"MESSAGE": "ä"},
    ]


@pytest.mark.parametrize("lines", [True, False])
def test_a_field_too_large_is_kept_in_part_and_named(lines):
    text = b"y" * 700000
    data = b"MESSAGE=" + text + b"\n\n" if lines else b"MESSAGE\n" + struct.pack("<Q", len(text)) + text + b"\n\n"
    value = parse(data, 65536)[0]["MESSAGE"]
    assert value["length"] == 700000 and value["sha256"] == receive.hashlib.sha256(text).hexdigest()
    assert len(base64.b64decode(value["base64"])) <= receive.FIELD_BYTES


def test_an_entry_of_many_large_fields_is_bounded():
    data = b"".join(b"F%d=" % n + b"z" * 200000 + b"\n" for n in range(40)) + b"\n"
    held = parse(data, 65536)[0]
    assert len(held) == 40
    assert sum(len(v) if isinstance(v, str) else len(v["base64"]) for v in held.values()) < 2 * receive.ENTRY_BYTES


@pytest.mark.parametrize(
    "data",
    [
        b"MESSAGE=no end\n",
        b"MESSAGE=no end",
        b"no name at all\n\n",
        b"BAD NAME=1\n\n",
        b"../../etc=1\n\n",
        b"RAW\n" + struct.pack("<Q", 1 << 62) + b"\n\n",
        b"RAW\n" + struct.pack("<Q", 5) + b"ab\n\n",
        b"RAW\n" + struct.pack("<Q", 2) + b"abc\n\n",
        b"".join(b"F%d=1\n" % n for n in range(3000)) + b"\n",
        b"\x16\x03\x01" * 100 + b"\n\n",
    ],
)
def test_what_is_malformed_is_refused(data):
    with pytest.raises(receive.Refused) as refused:
        parse(data)
    assert refused.value.args[0] == 400


@pytest.mark.parametrize(
    "fields",
    [{}, {"__CURSOR": "x", "__REALTIME_TIMESTAMP": "1"}, {"__CURSOR": cursor(1)},
     {"__CURSOR": cursor(1), "__REALTIME_TIMESTAMP": "-1"},
     {"__CURSOR": [cursor(1), cursor(2)], "__REALTIME_TIMESTAMP": "1"},
     {"__CURSOR": cursor(1) + '","host":"other', "__REALTIME_TIMESTAMP": "1"}],
)  # fmt: skip
def test_an_entry_needs_cursor_and_time(fields):
    with pytest.raises(receive.Refused):
        receive.checked(fields)


def test_entries_are_written_once_and_in_order(place):
    host = make(place)
    host.add([entry(n) for n in range(1, 6)])
    host.add([entry(n) for n in range(3, 9)])
    host.add([entry(9), entry(9)])
    assert [(line["n"], line["cursor"]) for line in written(place)] == [(n, cursor(n)) for n in range(1, 10)]
    assert (host.counters["duplicates"], host.counters["accepted"], host.counters["gap_count"]) == (4, 9, 0)
    assert store.verify(place)["status"] == "sound"


def test_a_new_start_knows_what_was_written(place):
    make(place).add([entry(n) for n in range(1, 6)])
    again = make(place)
    again.add([entry(n) for n in range(1, 8)])
    assert [line["n"] for line in written(place)] == list(range(1, 8))
    assert again.counters["duplicates"] == 5 and store.verify(place)["status"] == "sound"


def test_a_new_start_knows_it_without_its_own_notes(place):
    make(place).add([entry(n) for n in range(1, 6)])
    for name in os.listdir(f"{place}/.state"):
        os.unlink(f"{place}/.state/{name}")
    make(place).add([entry(n) for n in range(1, 8)])
    assert [line["n"] for line in written(place)] == list(range(1, 8))


def test_another_entry_with_the_same_number_is_no_duplicate(place):
    """Whoever sends numbers of the future, so that what really happens then looks like a duplicate, gains nothing."""
    host = make(place)
    host.add([(cursor(5) + "f", 1, {"MESSAGE": "forged"})])
    host.add([entry(5, "real")])
    assert [line["entry"]["MESSAGE"] for line in written(place)] == ["forged", "real"]


def test_a_hole_and_a_new_sequence_are_noted(place):
    host = make(place)
    host.add([entry(1001), entry(1002), entry(1007)])
    host.add([entry(1, sequence="ef"), entry(2, sequence="ef"), entry(3, sequence="ef")])
    kinds = [(gap.get("new", False), gap.get("missing")) for gap in host.counters["gaps"]]
    assert kinds == [(True, None), (False, 4)] and host.counters["missing"] == 4
    assert json.loads(Path(place, ".state", "ward-1.json").read_text())["gap_count"] == 2


def test_without_room_nothing_is_accepted_and_later_it_is(place):
    host = make(place, reserve=1 << 60)
    with pytest.raises(receive.Refused) as refused:
        host.add([entry(1)])
    assert refused.value.args[0] == 507 and written(place) == []
    host.reserve = 0
    host.add([entry(1)])
    assert len(written(place)) == 1 and store.verify(place)["status"] == "sound"


def test_a_write_that_ends_in_the_middle_leaves_nothing(place, monkeypatch):
    host = make(place)
    host.add([entry(1)])
    real = os.write

    def short(handle, data):
        if len(data) > 50:
            return real(handle, data[:50])
        raise OSError(receive.errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(receive.os, "write", short)
    with pytest.raises(receive.Refused):
        host.add([entry(2, "y" * 200)])
    monkeypatch.undo()
    host.add([entry(2, "y" * 200)])
    assert [line["n"] for line in written(place)] == [1, 2] and store.verify(place)["status"] == "sound"


def failing(problem: BaseException):
    """Return a function that raises, whatever it is called with."""

    def fail(*_arguments):
        raise problem

    return fail


def test_a_disk_that_fails_ends_the_receiver(place, monkeypatch):
    host = make(place)
    monkeypatch.setattr(receive.os, "fsync", failing(OSError(5, "Input/output error")))
    monkeypatch.setattr(receive.os, "_exit", failing(SystemExit(1)))
    with pytest.raises(SystemExit):
        host.add([entry(1)])


def test_a_clock_set_back_does_not_turn_the_order_round(place, monkeypatch):
    host = make(place)
    host.add([entry(1)])
    monkeypatch.setattr(receive.time, "time_ns", lambda: 10**18)
    host.add([entry(2)])
    assert store.verify(place)["status"] == "sound"


def test_numbers_go_on_when_the_end_was_cut_off(place):
    host = make(place)
    host.add([entry(n) for n in range(1, 6)])
    path = store.days(place, "ward-1")[0][1]
    Path(path).write_bytes(b"".join(Path(path).read_bytes().splitlines(keepends=True)[:3]))
    make(place).add([entry(6)])
    found = store.verify(place)["findings"]
    assert [f["kind"] for f in found] == ["removed"] and "numbers 4 to 5 are missing" in found[0]["problem"]


def test_heads_are_sealed(place):
    host = make(place)
    host.add([entry(1)])
    host.seal()
    host.seal()
    assert [(seal["host"], seal["n"], seal["chain"]) for seal in store.seals(place)] == [("ward-1", 1, host.chain)]


@pytest.mark.parametrize(
    ("certificate", "name"),
    [({"subject": ((("commonName", "ward-1"),),)}, "ward-1"), ({"subject": ()}, ""), (None, ""),
     ({"subject": ((("commonName", "a"),), (("commonName", "b"),))}, "")],
)  # fmt: skip
def test_the_name_is_the_one_in_the_certificate(certificate, name):
    assert receive.common_name(certificate) == name


def test_what_somebody_sent_cannot_end_a_line_of_the_log(capsys):
    log = receive.Log()
    log.say("unknown_host", "192.0.2.1", name="x\nevent=removed host=a")
    log.say("unknown_host", "192.0.2.1", name="again")
    assert capsys.readouterr().err == 'event=unknown_host peer=192.0.2.1 name="x\\nevent=removed host=a"\n'


def many(first: int, count: int = receive.HOLE_ENTRIES + 1) -> list:
    """Return more entries than a hole is waited for."""
    return [entry(n) for n in range(first, first + count)]


def test_one_counter_for_several_files_is_no_hole(place):
    """What systemd 252 does: the files of the system and of its users have names of their own and share their numbers."""
    host = make(place)
    host.add([entry(1), entry(2), entry(3, sequence="ef"), entry(4), entry(5, sequence="ef"), entry(6, sequence="ef")])
    host.finish()
    assert host.counters["missing"] == 0 and host.counters["holes"] == []


def test_numbers_that_come_out_of_order_are_no_hole(place):
    """Entries of one moment in two files come in any order."""
    host = make(place)
    host.add([entry(1), entry(3), entry(2, sequence="ef"), entry(5)])
    host.add([entry(4, sequence="ef"), entry(6)])
    host.finish()
    assert host.counters["missing"] == 0 and host.counters["holes"] == []


@pytest.mark.parametrize("after", ["more entries", "the upload's end", "time"])
def test_what_an_uploader_passed_over_is_asked_for_and_kept(place, monkeypatch, after):
    """A hole is not acknowledged: the upload is refused once, and what comes then is kept; nothing is missing."""
    host = make(place)
    host.add([entry(1), entry(2)])
    host.finish()
    with pytest.raises(receive.Refused) as refused:
        if after == "more entries":
            host.add([entry(300), *many(301)])
            host.add([entry(1000)])
        elif after == "time":
            host.add([entry(300)])
            now = receive.time.time
            monkeypatch.setattr(receive.time, "time", lambda: now() + receive.HOLE_SECONDS + 1)
            host.add([entry(301)])
        else:
            host.add([entry(300)])
            host.finish()
    assert refused.value.args[:2] == (503, "asked_again")
    host.add([entry(n) for n in range(2, 302)])  # from what was acknowledged last
    host.finish()
    assert host.counters["missing"] == 0 and host.counters["gaps"] == []
    kept = {int(receive.CURSOR.fullmatch(line["cursor"])[2], 16) for line in written(place)}
    assert kept >= set(range(1, 302))


def test_what_does_not_come_when_asked_for_is_missing_and_told(place):
    """It is asked for once; a part may come."""
    host = make(place)
    with pytest.raises(receive.Refused):
        host.add([entry(1), entry(10), *many(11)])
    host.add([entry(1), entry(5), entry(10), *many(11, 200)])
    host.finish()
    assert host.counters["missing"] == 7
    assert [(gap["after"], gap["before"]) for gap in host.counters["gaps"]] == [(1, 5), (5, 10)]


def test_holes_are_remembered_over_a_new_start(place):
    with pytest.raises(receive.Refused):
        make(place).add([entry(1), entry(4), *many(5)])
    host = make(place)
    host.add(many(5 + receive.HOLE_ENTRIES + 1))
    assert host.counters["missing"] == 2


def test_a_journal_begun_anew_ends_what_was_waited_for(place):
    host = make(place)
    host.add([entry(1000), entry(1003)])
    host.add([entry(1, sequence="ef"), entry(2, sequence="ef")])
    assert [gap.get("new", False) for gap in host.counters["gaps"]] == [True, False]
    assert host.counters["missing"] == 2
