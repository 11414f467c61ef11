# SPDX-License-Identifier: GPL-3.0-or-later
"""The store of the trail: the format of its lines, and that verification names whatever somebody does to it."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
from pathlib import Path

import pytest
from ansible_collections.bulwark.hardening.plugins.module_utils import trail_store as store

DAYS = ("2026-11-23", "2026-11-24", "2026-11-25")


def line(host, n, day, previous, text="x"):
    """Return (line, chain) of one entry."""
    at = f"{day}T00:00:{n % 60:02d}.000000Z"
    return store.make_line(n, at, at, host, f"s=a;i={n:x};b=c;m=1;t=2;x=3", {"MESSAGE": text, "PRIORITY": "6"}, previous)


@pytest.fixture
def trail(tmp_path):
    """Two hosts, three days of five lines each."""
    for host in ("ward-1", "ward-2"):
        n, chain = 0, store.genesis(host)
        (tmp_path / host).mkdir()
        for day in DAYS:
            with (tmp_path / host / f"{day}.jsonl").open("wb") as stream:
                for _turn in range(5):
                    n += 1
                    text, chain = line(host, n, day, chain, f"{host} {n}")
                    stream.write(text)
    return tmp_path


def found(trail, **more):
    """Return the findings as (file, line, kind)."""
    return [(f["file"], f["line"], f["kind"]) for f in store.verify(str(trail), **more)["findings"]]


def edit(path, change):
    """Let a function change a file's lines."""
    path.write_bytes(b"".join(change(path.read_bytes().splitlines(keepends=True))))


def test_a_line_is_what_the_format_says():
    text, chain = store.make_line(
        7, "2026-11-25T01:02:03.123456Z", "2026-11-25T01:02:02.000001Z", "ward-1", "s=a;i=1", {"MESSAGE": 'ä"\n\x1b'}, "ab" * 32
    )
    assert text == (
        b'{"n":7,"received":"2026-11-25T01:02:03.123456Z","time":"2026-11-25T01:02:02.000001Z","host":"ward-1","cursor":"s=a;i=1",'
        b'"entry":{"MESSAGE":"\\u00e4\\"\\n\\u001b"},"chain":"' + chain.encode() + b'"}\n'
    )
    body = text[: text.index(b',"chain":')]
    assert chain == hashlib.sha256(b"ab" * 32 + body).hexdigest()
    assert json.loads(text)["entry"]["MESSAGE"] == 'ä"\n\x1b'
    assert store.facts(text) == {
        "n": 7, "received": "2026-11-25T01:02:03.123456Z", "time": "2026-11-25T01:02:02.000001Z", "host": "ward-1",
        "cursor": "s=a;i=1", "chain": chain,
    }  # fmt: skip
    assert store.genesis("ward-1") == hashlib.sha256(b"bulwark-trail 1 ward-1").hexdigest()
    assert store.stamp(1795568523123456) == "2026-11-25T01:02:03.123456Z"


def test_what_says_it_is_a_chain_inside_an_entry_deceives_nobody():
    at, message = f"{DAYS[0]}T00:00:00.000000Z", '},"chain":"' + "0" * 64 + '"}\n'
    text, chain = store.make_line(1, at, at, "a", "s=a", {"MESSAGE": message}, "00" * 32)
    assert store.facts(text)["chain"] == chain


def test_an_untouched_trail_is_sound(trail):
    answer = store.verify(str(trail))
    assert answer["status"] == "sound" and answer["findings"] == []
    assert {host: (about["n"], about["lines"], about["files"]) for host, about in answer["hosts"].items()} == {
        "ward-1": (15, 15, 3), "ward-2": (15, 15, 3),
    }  # fmt: skip


def test_packed_days_are_the_same_trail(trail):
    before = store.verify(str(trail))["hosts"]["ward-1"]["chain"]
    packed = store.close_day(str(trail / "ward-1" / f"{DAYS[0]}.jsonl"))
    assert packed.endswith(".jsonl.gz") and not (trail / "ward-1" / f"{DAYS[0]}.jsonl").exists()
    answer = store.verify(str(trail))
    assert answer["status"] == "sound" and answer["hosts"]["ward-1"]["chain"] == before


def test_a_changed_byte_is_named(trail):
    edit(trail / "ward-1" / f"{DAYS[1]}.jsonl", lambda ls: [*ls[:2], ls[2].replace(b"ward-1 8", b"ward-1 9"), *ls[3:]])
    assert found(trail) == [(f"ward-1/{DAYS[1]}.jsonl", 3, "altered")]


def test_a_changed_byte_in_a_packed_day_is_named(trail):
    packed = Path(store.close_day(str(trail / "ward-1" / f"{DAYS[0]}.jsonl")))
    packed.write_bytes(gzip.compress(gzip.decompress(packed.read_bytes()).replace(b"ward-1 4", b"ward-1 5")))
    assert found(trail) == [(f"ward-1/{DAYS[0]}.jsonl.gz", 4, "altered")]


def test_a_damaged_packed_day_is_named(trail):
    packed = Path(store.close_day(str(trail / "ward-1" / f"{DAYS[0]}.jsonl")))
    packed.write_bytes(packed.read_bytes()[:-20])
    assert (f"ward-1/{DAYS[0]}.jsonl.gz", "altered") in [(path, kind) for path, _line, kind in found(trail)]


@pytest.mark.parametrize("gone", [0, 2, 4])
def test_a_removed_line_is_named(trail, gone):
    edit(trail / "ward-1" / f"{DAYS[1]}.jsonl", lambda ls: ls[:gone] + ls[gone + 1 :])
    day, number = (DAYS[1], gone + 1) if gone < 4 else (DAYS[2], 1)
    answer = store.verify(str(trail))["findings"]
    assert [(f["file"], f["line"], f["kind"]) for f in answer] == [(f"ward-1/{day}.jsonl", number, "removed")]
    assert f"number {6 + gone} is missing" in answer[0]["problem"]


def test_a_removed_day_is_named(trail):
    (trail / "ward-1" / f"{DAYS[1]}.jsonl").unlink()
    answer = store.verify(str(trail))["findings"]
    assert [(f["file"], f["kind"]) for f in answer] == [(f"ward-1/{DAYS[2]}.jsonl", "removed")]
    assert "numbers 6 to 10 are missing" in answer[0]["problem"]


def test_the_end_cut_off_is_named_by_an_earlier_head(trail):
    heads = store.all_heads(str(trail))
    edit(trail / "ward-1" / f"{DAYS[2]}.jsonl", lambda ls: ls[:3])
    assert found(trail) == [], "nothing in the trail itself knows"
    assert found(trail, heads=heads) == [(f"ward-1/{DAYS[2]}.jsonl", 0, "truncated")]


def test_the_end_cut_off_is_named_by_a_seal_and_by_the_receiver(trail):
    chain = store.all_heads(str(trail))["ward-1"]["chain"]
    (trail / ".seals").mkdir()
    store.append(
        str(trail / ".seals" / f"{DAYS[2]}.jsonl"),
        {"sealed": "x", "host": "ward-1", "n": 15, "chain": chain, "file": f"{DAYS[2]}.jsonl"},
    )
    edit(trail / "ward-1" / f"{DAYS[2]}.jsonl", lambda ls: ls[:3])
    assert found(trail) == [(f"ward-1/{DAYS[2]}.jsonl", 0, "truncated")]
    (trail / ".state").mkdir()
    store.write(str(trail / ".state" / "ward-1.json"), json.dumps({"n": 15, "chain": chain}).encode())
    assert len(found(trail)) == 2


def test_a_torn_line_is_named_and_repaired(trail):
    path = trail / "ward-1" / f"{DAYS[2]}.jsonl"
    path.write_bytes(path.read_bytes()[:-30])
    assert (f"ward-1/{DAYS[2]}.jsonl", 5, "torn") in found(trail)
    done = store.repair(str(trail))
    assert [(about["host"], about["file"]) for about in done] == [("ward-1", f"{DAYS[2]}.jsonl")] and done[0]["bytes"] > 100
    assert found(trail) == [] and store.head(str(trail), "ward-1")[0] == 14
    assert store.repair(str(trail)) == []


def test_a_file_that_is_one_torn_line_is_emptied(trail):
    path = trail / "ward-1" / "2026-11-26.jsonl"
    path.write_bytes(b'{"n":16,"rec' + b"\0" * 100000)
    assert store.repair(str(trail))[0]["bytes"] == 100012
    assert store.head(str(trail), "ward-1")[0] == 15 and found(trail) == []


def test_days_swapped_are_named(trail):
    one, two = (trail / "ward-1" / f"{day}.jsonl" for day in DAYS[:2])
    first, second = one.read_bytes(), two.read_bytes()
    one.write_bytes(second)
    two.write_bytes(first)
    assert {(path, kind) for path, _line, kind in found(trail)} >= {
        (f"ward-1/{DAYS[0]}.jsonl", "swapped"), (f"ward-1/{DAYS[1]}.jsonl", "swapped"),
    }  # fmt: skip


def test_hosts_swapped_are_named(trail):
    one, two = (trail / host / f"{DAYS[1]}.jsonl" for host in ("ward-1", "ward-2"))
    first, second = one.read_bytes(), two.read_bytes()
    one.write_bytes(second)
    two.write_bytes(first)
    assert set(found(trail)) >= {
        (f"ward-1/{DAYS[1]}.jsonl", 1, "swapped"), (f"ward-2/{DAYS[1]}.jsonl", 1, "swapped"),
    }  # fmt: skip


def test_lines_swapped_are_named(trail):
    edit(trail / "ward-1" / f"{DAYS[0]}.jsonl", lambda ls: [ls[0], ls[2], ls[1], *ls[3:]])
    assert (f"ward-1/{DAYS[0]}.jsonl", 2, "removed") in found(trail)


def test_a_line_of_an_attackers_own_is_named(trail):
    edit(trail / "ward-1" / f"{DAYS[0]}.jsonl", lambda ls: [*ls[:2], ls[1], *ls[2:]])
    assert (f"ward-1/{DAYS[0]}.jsonl", 3, "inserted") in found(trail)


def test_a_chain_that_was_made_anew_is_caught_by_an_earlier_head(trail):
    heads = {host: {"n": 10, "chain": json.loads(text)["chain"]} for host in ("ward-1",)
             for text in (trail / host / f"{DAYS[1]}.jsonl").read_text().splitlines()[-1:]}  # fmt: skip
    n, chain = 0, store.genesis("ward-1")
    for day in DAYS:
        with (trail / "ward-1" / f"{day}.jsonl").open("wb") as stream:
            for _turn in range(5):
                n += 1
                text, chain = line("ward-1", n, day, chain, "nothing happened")
                stream.write(text)
    assert found(trail) == [], "it is a sound trail of another story"
    assert found(trail, heads=heads) == [(f"ward-1/{DAYS[1]}.jsonl", 5, "rewritten")]


def test_a_host_that_vanished_is_named(trail):
    heads = store.all_heads(str(trail))
    for path in (trail / "ward-2").iterdir():
        path.unlink()
    (trail / "ward-2").rmdir()
    assert [kind for _path, _line, kind in found(trail, heads=heads)] == ["truncated"]


def test_what_does_not_belong_there_is_named(trail):
    (trail / "ward-1" / "notes.txt").write_text("x")
    assert found(trail) == [("ward-1/notes.txt", 0, "inserted")]


def test_since_reads_no_earlier_day(trail):
    edit(trail / "ward-1" / f"{DAYS[0]}.jsonl", lambda ls: [ls[0].replace(b"ward-1 1", b"ward-1 2"), *ls[1:]])
    assert found(trail) and found(trail, since=DAYS[1]) == []
    assert store.verify(str(trail), since=DAYS[1])["hosts"]["ward-1"]["lines"] == 10


def test_retention_lets_only_closed_days_go_and_the_rest_still_verifies(trail):
    told = store.keep(str(trail), "2026-11-25", 1, "A. Person", protect=False, low_percent=0)
    assert sorted(name for name in os.listdir(trail / "ward-1")) == [
        f"{DAYS[0]}.jsonl.gz", f"{DAYS[1]}.jsonl.gz", f"{DAYS[2]}.jsonl",
    ], told  # fmt: skip
    told = store.keep(str(trail), "2026-11-25", 1, "A. Person", protect=False, low_percent=0)
    assert any(text.startswith("event=removed host=ward-1") and 'approver="A. Person"' in text for text in told), told
    answer = store.verify(str(trail))
    assert answer["status"] == "sound", answer["findings"]
    assert [(gone["host"], gone["first_n"], gone["n"], gone["approver"]) for gone in answer["removed"]] == [
        ("ward-1", 1, 5, "A. Person"), ("ward-2", 1, 5, "A. Person"),
    ]  # fmt: skip


def test_nothing_goes_without_an_approver(trail):
    for _turn in range(2):
        store.keep(str(trail), "2026-11-25", 1, "", protect=False, low_percent=0)
    assert len(os.listdir(trail / "ward-1")) == 3


def test_a_removal_that_was_killed_halfway_is_finished(trail):
    store.keep(str(trail), "2026-11-25", 9, "A", protect=False, low_percent=0)
    path = trail / "ward-1" / f"{DAYS[0]}.jsonl.gz"
    kept = path.read_bytes()
    store.let_go(str(trail), "ward-1", DAYS[0], str(path), 1, "A")
    path.write_bytes(kept)
    store.keep(str(trail), "2026-11-25", 9, "A", protect=False, low_percent=0)
    assert not path.exists() and store.verify(str(trail))["status"] == "sound"


def test_packing_that_was_killed_halfway_is_finished(trail):
    path = trail / "ward-1" / f"{DAYS[0]}.jsonl"
    kept = path.read_bytes()
    store.close_day(str(path))
    path.write_bytes(kept)
    assert store.verify(str(trail))["status"] == "sound", "both are there, and are the same"
    store.close_day(str(path))
    assert not path.exists() and store.verify(str(trail))["status"] == "sound"
    path.write_bytes(kept.replace(b"ward-1 1", b"ward-1 2"))
    assert found(trail)
    with pytest.raises(store.StoreError, match="differs"):
        store.close_day(str(path))


def test_a_forged_record_of_removal_is_named(trail):
    heads = {"ward-1": {"n": 5, "chain": store.last_line(str(trail / "ward-1" / f"{DAYS[0]}.jsonl"))["chain"]}}
    (trail / "ward-1" / f"{DAYS[0]}.jsonl").unlink()
    (trail / ".removed").mkdir()
    record = {"host": "ward-1", "file": "x", "first_n": 1, "n": 5, "before": store.genesis("ward-1"), "chain": "0" * 64}
    store.append(str(trail / ".removed" / "ward-1.jsonl"), record)
    kinds = [kind for _path, _line, kind in found(trail, heads=heads)]
    assert "altered" in kinds and "rewritten" in kinds


def test_low_space_is_told(trail):
    assert any(text.startswith("event=capacity free_percent=") for text in
               store.keep(str(trail), "2026-11-25", 9, "A", protect=False, low_percent=100))  # fmt: skip


def test_cat_streams_a_part(trail, capfdbinary):
    store.close_day(str(trail / "ward-1" / f"{DAYS[0]}.jsonl"))
    assert [json.loads(text)["n"] for text in store.cat(str(trail), "ward-1")] == list(range(1, 16))
    assert [json.loads(text)["n"] for text in store.cat(str(trail), "ward-1", DAYS[1], DAYS[1] + "T00:00:09")] == [6, 7, 8]
    assert [json.loads(text)["n"] for text in store.cat(str(trail), "ward-1", DAYS[0], DAYS[1])] == [1, 2, 3, 4, 5]
    assert store.main(["cat", "--directory", str(trail), "--host", "ward-1", "--since", f"{DAYS[2]}T00:00:15Z"]) == 0
    assert json.loads(capfdbinary.readouterr().out)["n"] == 15


def test_the_program_says_what_it_found(trail, capsys):
    assert store.main(["verify", "--directory", str(trail)]) == 0
    heads = trail / "heads.json"
    assert store.main(["heads", "--directory", str(trail)]) == 0
    noted = json.loads(capsys.readouterr().out.split("findings\n")[1])
    heads.write_text(json.dumps({"posture": {"log_collector": {"heads": noted}}}))
    edit(trail / "ward-1" / f"{DAYS[2]}.jsonl", lambda ls: ls[:3])
    assert store.main(["verify", "--directory", str(trail), "--heads", str(heads), "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["status"] == "altered"
    assert store.main(["verify", "--directory", str(trail / "nowhere")]) == 2
    heads.write_text('{"ward-1": {"n": "x"}}')
    assert store.main(["verify", "--directory", str(trail), "--heads", str(heads)]) == 2
    assert "holds no heads" in capsys.readouterr().err
    assert store.main(["cat", "--directory", str(trail), "--host", "../etc"]) == 2
