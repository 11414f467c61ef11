# Copyright: (c) 2026, Bulwark contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import copy
import csv
import html.parser
import io
import json
import re

import pytest
from ansible_collections.bulwark.hardening.plugins.plugin_utils import report
from ansible_collections.bulwark.hardening.tests.unit import sample_run
from ansible_collections.bulwark.hardening.tests.unit.sample_run import RUN_ID, record, rendered, sample, tallied


def found(records: list[dict]) -> list[tuple[str, dict]]:
    return [(item["host"], item) for item in records]


def summary(
    records: list[dict], expected: list[str] | None = None, excluded: dict | None = None, known: dict | None = None
) -> dict:
    hosts = [item["host"] for item in records] if expected is None else expected
    return report.summarise(report.gather(found(records), hosts, excluded or {}, RUN_ID, known)[0])


# ---------------------------------------------------------------------------------------------------------------
# Records that can and that cannot be relied on


def test_whole_records_are_taken_as_they_are():
    records, problems = report.gather(found(sample()), ["records-1", "files-1", "portal-1"], {}, RUN_ID)
    assert problems == []
    assert [item["host"] for item in records] == ["portal-1", "files-1", "records-1"], "without an assessment first, then worst"
    assert {item["host"]: item for item in records} == {item["host"]: item for item in sample()}


BROKEN = {
    "other schema": (lambda r: r.update(schema="bulwark.host/2"), "schema is 'bulwark.host/2'"),
    "no schema": (lambda r: r.pop("schema"), "schema is None"),
    "another run": (lambda r: r.update(run_id="20200101T000000Z-0000"), "belongs to run"),
    "no host": (lambda r: r.update(host=""), "names no host"),
    "host is a list": (lambda r: r.update(host=["a"]), "names no host"),
    "unknown status": (lambda r: r.update(status="fine"), "its status is 'fine'"),
    "unreachable without a reason": (lambda r: r.update(status="unreachable"), "gives no reason"),
    "controls missing": (lambda r: r.pop("controls"), "no list of controls"),
    "controls not objects": (lambda r: r.update(controls=["ssh.root_login"]), "no list of controls"),
    "control without id": (lambda r: r["controls"][0].pop("id"), "has no id"),
    "control twice": (lambda r: r["controls"].append(r["controls"][0]), "listed twice"),
    "control of unknown status": (lambda r: r["controls"][0].update(status="passed"), "has status 'passed'"),
    "exception without one": (lambda r: r["controls"][0].update(status="exception"), "but no exception"),
    "statements not a list": (lambda r: r["controls"][0].update(statements="WTH-7.7-2"), "statements is not a list"),
    "observed not a mapping": (lambda r: r["controls"][0].update(observed=[1]), "observed is not a mapping"),
    "fail turned into pass": (lambda r: r.update(counts={**r["counts"], "pass": 18, "fail": 1}), "counts are not those"),
    "excluded host with controls": (lambda r: r.update(status="excluded", reason="No time."), "excluded, but lists controls"),
    "failed host that passes": (lambda r: r.update(status="failed", reason="lost"), "some of its controls pass"),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_record_that_cannot_be_relied_on_is_a_failed_host(name):
    spoil, said = BROKEN[name]
    spoilt = record("files-1")
    spoil(spoilt)
    records, problems = report.gather(
        [("records-1", record("records-1")), ("files-1", spoilt)], ["records-1", "files-1"], {}, RUN_ID
    )
    by_host = {item["host"]: item for item in records}
    assert set(by_host) == {"records-1", "files-1"}
    assert by_host["files-1"]["status"] == "failed"
    assert said in by_host["files-1"]["reason"]
    assert len(problems) == 1 and problems[0].startswith("hosts/files-1.json") and said in problems[0]


@pytest.mark.parametrize("content", [None, [], "pass", 1, True])
def test_torn_record_is_a_failed_host(content):
    records, problems = report.gather([("files-1", content)], ["files-1"], {}, RUN_ID)
    assert [item["status"] for item in records] == ["failed"]
    assert len(problems) == 1


def test_two_records_of_one_host_count_as_none():
    records, problems = report.gather([("a", record("files-1")), ("b", record("files-1"))], ["files-1"], {}, RUN_ID)
    assert [(item["host"], item["status"]) for item in records] == [("files-1", "failed")]
    assert "more than one record" in problems[0]


def test_missing_record_is_a_failed_host_and_not_left_out():
    records, problems = report.gather(found([record("records-1")]), ["records-1", "ghost"], {}, RUN_ID)
    assert [(item["host"], item["status"]) for item in records] == [("ghost", "failed"), ("records-1", "assessed")]
    assert records[0]["reason"].startswith("No record")
    assert problems == ["ghost has no record"]


def test_record_of_a_host_nobody_expected_is_shown_and_said():
    records, problems = report.gather(found([record("stray")]), [], {}, RUN_ID)
    assert [item["host"] for item in records] == ["stray"]
    assert problems == ["stray has a record, but is not in the inventory"]


def test_excluded_host_is_listed_with_its_reason():
    records, problems = report.gather(found([record("records-1")]), ["records-1", "printer"], {"printer": "Vendor's."}, RUN_ID)
    assert [(item["host"], item["status"], item["reason"]) for item in records][1] == ("printer", "excluded", "Vendor's.")
    assert problems == []


def test_exclusion_does_not_hide_an_assessment():
    records, problems = report.gather(found([record("files-1")]), ["files-1"], {"files-1": "No time."}, RUN_ID)
    assert [item["status"] for item in records] == ["assessed"]
    assert "the record counts" in problems[0]


# ---------------------------------------------------------------------------------------------------------------
# Scores


def test_counts_and_scores_of_a_run_by_hand():
    seen = summary(sample())
    # records-1: 17 pass, 1 exception, 1 n/a; files-1: 14 pass, 3 fail, 1 error, 1 n/a; portal-1: 19 error
    assert seen["counts"] == {"pass": 31, "fail": 3, "error": 20, "not_applicable": 2, "exception": 1}
    assert seen["score"] == {"before_exceptions": 31 / 55, "after_exceptions": 32 / 55}
    assert seen["hosts"] == {"unreachable": 1, "failed": 0, "assessed": 2, "excluded": 0}
    assert seen["assumed_errors"] == 0


def test_host_without_known_controls_weighs_as_much_as_the_longest_list():
    short = record("short")
    short = tallied({**short, "controls": short["controls"][:4]})
    seen = summary([record("long"), short], ["long", "short", "ghost"])
    assert seen["counts"]["error"] == 19 and seen["assumed_errors"] == 19
    assert seen["score"]["before_exceptions"] == 23 / 42
    ghost = seen["inventory"][0]
    assert ghost["host"] == "ghost" and ghost["score"] == {"before_exceptions": 0.0, "after_exceptions": 0.0}


def test_known_controls_of_a_missing_host_count_one_by_one():
    known = [{**control, "status": "error"} for control in record("x")["controls"][:5]]
    seen = summary([record("long")], ["long", "ghost"], known={"ghost": known})
    assert (seen["counts"]["error"], seen["assumed_errors"]) == (5, 0)


@pytest.mark.parametrize("kept", range(1, 4))
def test_score_never_rises_when_a_host_falls_silent(kept):
    everyone = [*sample()[:2], record("third")]
    hosts = [item["host"] for item in everyone]
    for missing in everyone:
        heard = [item for item in everyone if item is not missing][:kept]
        without = summary(heard, [item["host"] for item in heard])["score"]
        silent = summary(heard, hosts)["score"]
        for when in ("before_exceptions", "after_exceptions"):
            assert silent[when] < without[when]


def test_all_hosts_silent_scores_zero():
    seen = summary([], ["a", "b"])
    assert seen["score"] == {"before_exceptions": 0.0, "after_exceptions": 0.0}
    assert seen["counts"]["error"] == 2


def test_nothing_assessed_has_no_score():
    assert summary([], [])["score"] == {"before_exceptions": None, "after_exceptions": None}
    assert summary([], [], {"a": "Away."})["score"] == {"before_exceptions": None, "after_exceptions": None}


def test_excluded_host_counts_neither_for_nor_against():
    plain = summary(sample())
    more = summary(sample(), excluded={"printer": "Vendor's."})
    assert (more["counts"], more["score"]) == (plain["counts"], plain["score"])
    assert more["hosts"]["excluded"] == 1


@pytest.mark.parametrize(
    ("score", "text"), [(None, "none"), (0.0, "0 %"), (1.0, "100 %"), (0.9999, "99 %"), (0.29, "29 %"), (2 / 3, "66 %")]
)
def test_percentages_are_rounded_down(score, text):
    assert report.percent(score) == text


def test_sentences_say_what_happened():
    assert report.sentences(summary(sample())) == [
        "31 of 55 control results are met; 3 not met, 20 could not be observed and 1 not met under an approved exception.",
        "1 host of 3 could not be assessed and counts as failed.",
    ]
    assert report.sentences(summary([record("a")])) == ["All 19 control results on 1 host are met."]
    assert report.sentences(summary([], [])) == ["No host was assessed, so this run shows nothing."]
    assert "shows nothing" in report.sentences(summary([tallied({**record("a"), "controls": []})]))[0]
    assert report.sentences(summary([record("a")], ["a"], {"b": "Away."}))[1].startswith("1 host was excluded on purpose")


# ---------------------------------------------------------------------------------------------------------------
# The run record


def test_run_record_is_plain_json_and_leaves_room_for_the_chain():
    records, problems = report.gather(found(sample()), ["records-1", "files-1", "portal-1"], {}, RUN_ID)
    run = report.run_record(RUN_ID, records, problems, {"session_idle_seconds": 900}, {"revision": "abc"})
    assert json.loads(json.dumps(run)) == run
    assert run["schema"] == "bulwark.run/1" and run["previous"] is None
    assert run["parameters"] == {"session_idle_seconds": 900} and run["revision"] == "abc"


@pytest.mark.parametrize(
    "name", ["backup_passphrase", "duo_skey", "db_password", "API_TOKEN", "wifi_psk", "ssh_host_private_key", "duo_secret_key"]
)
def test_secret_parameters_are_withheld(name):
    assert report.withheld({name: "hunter2"}) == {name: "(withheld)"}
    assert report.withheld({"outer": [{name: {"nested": "hunter2"}}]}) == {"outer": [{name: "(withheld)"}]}


@pytest.mark.parametrize("name", ["password_max_days", "ssh_ciphers", "accounts_keys", "session_idle_seconds", "bypass_groups"])
def test_parameters_that_are_no_secret_are_kept(name):
    assert report.withheld({name: 90}) == {name: 90}


@pytest.mark.parametrize(
    ("run_id", "time"),
    [(RUN_ID, "2026-11-21T08:15:02Z"), ("latest", None), ("20261121T081502Z", None), ("../20261121T081502Z-3f9c", None)],
)
def test_run_id_tells_the_start(run_id, time):
    assert report.started_at(run_id) == time


# ---------------------------------------------------------------------------------------------------------------
# CSV


def rows(records: list[dict]) -> list[dict]:
    return list(csv.DictReader(io.StringIO(report.csv_text(records), newline="")))


def test_csv_has_one_row_for_every_host_and_control():
    read = rows(sample())
    assert len(read) == 3 * 19
    assert {(row["host"], row["control"]) for row in read} == {
        (item["host"], control["id"]) for item in sample() for control in item["controls"]
    }
    failed = next(row for row in read if row["host"] == "files-1" and row["control"] == "session.idle_shell")
    assert failed["status"] == "fail"
    assert failed["statements"] == "WTH-7.7-2 UMDNJ-J-1 MA-1.8"
    assert json.loads(failed["observed"]) == {"session.shell_timeout_seconds": 0, "session.shell_timeout_readonly": False}
    excepted = next(row for row in read if row["status"] == "exception")
    assert (excepted["exception_ticket"], excepted["exception_expires"]) == ("SEC-212", "2027-02-28")


def test_host_without_controls_still_has_a_row_and_it_is_an_error():
    silent = report.stand_in("ghost", RUN_ID, "failed", "No record.")
    assert [(row["host"], row["host_status"], row["status"], row["why"]) for row in rows([silent])] == [
        ("ghost", "failed", "error", "No record.")
    ]


FORMULAS = [
    "=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", "\n=1", "  =1", "=cmd|' /C calc'!A0", '=HYPERLINK("http://x","y")',
    "＝1", "＋1", "－1", "＠x", "\u00a0=1",  # noqa: RUF001
]  # fmt: skip


@pytest.mark.parametrize("text", FORMULAS)
def test_no_cell_is_a_formula(text):
    hostile = record(text)
    hostile["controls"][0].update(why=text, title=text, source=text, remedy=text, observed={text: text})
    hostile["identity"]["os_id"] = text
    for row in rows([hostile]):
        for cell in row.values():
            assert not re.match(r"[\s\u00a0]*[=+\-@＝＋－＠]|[\t\r\n]", cell), cell  # noqa: RUF001


def test_ordinary_cells_are_untouched():
    for text in ("", "plain", "a=b", "10.0.0.1", "user@host", "e-mail"):
        assert report.cell(text) == text


# ---------------------------------------------------------------------------------------------------------------
# HTML

HOSTILE = [
    "<script>window.pwned=1</script>", "</script><script>window.pwned=1</script>", "</style><script>window.pwned=1</script>",
    '"><img src=x onerror=window.pwned=1>', "' onmouseover='window.pwned=1", "{{ 7 * 7 }}{% raw %}", "javascript:window.pwned=1",
    "<!--", "]]>", "&lt;b&gt;", "`${1}`",
]  # fmt: skip


def hostile_record(text: str) -> dict:
    spoilt = record(f"host{text}")
    spoilt["profile"] = text
    spoilt["identity"].update(os_id=text, os_version=text, virtualization=text)
    spoilt["observed_at"] = text
    spoilt["controls"][0].update(
        title=text, why=text, source=text, remedy=text, status="fail", observed={text: text, "deep": {text: [text]}},
        variables={text: text}, expected=[text], proof=[text],
    )  # fmt: skip
    spoilt["controls"][1].update(
        status="exception",
        exception=dict.fromkeys(("reason", "compensating", "approver", "approver_role", "ticket", "expires"), text),
    )
    return tallied(spoilt)


class Reader(html.parser.HTMLParser):
    """Collects elements, attributes and text the way a browser's parser sees them."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict]] = []
        self.text = ""
        self.inside: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list) -> None:
        self.elements.append((tag, dict(attrs)))
        self.inside.append(tag)

    def handle_endtag(self, tag: str) -> None:
        while tag in self.inside and self.inside.pop() != tag:
            pass

    def handle_data(self, data: str) -> None:
        if not {"script", "style"} & set(self.inside):
            self.text += data


@pytest.mark.parametrize("text", HOSTILE)
def test_what_a_host_says_stays_text(text):
    page = Reader(rendered([hostile_record(text)], {f"printer{text}": text}, {f"name {text}": text}))
    calm = Reader(rendered([hostile_record("calm")], {"printercalm": "calm"}, {"name calm": "calm"}))
    assert [tag for tag, _attrs in page.elements] == [tag for tag, _attrs in calm.elements], "no element was added or lost"
    assert [sorted(attrs) for _tag, attrs in page.elements] == [sorted(attrs) for _tag, attrs in calm.elements]
    assert page.text.count(text) >= 20


def test_page_loads_nothing_and_runs_only_its_own_script():
    page = Reader(rendered(sample()))
    for tag, attrs in page.elements:
        assert not {"src", "srcset", "action", "style", "data", "poster"} & set(attrs), (tag, attrs)
        assert not [name for name in attrs if name.startswith("on")], (tag, attrs)
        if "href" in attrs:
            assert attrs["href"].startswith("#"), (tag, attrs)
        assert tag not in ("link", "iframe", "object", "embed", "base", "img")
    assert [tag for tag, _attrs in page.elements].count("script") == 1
    policy = next(attrs["content"] for tag, attrs in page.elements if attrs.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'; style-src 'sha256-") and "unsafe" not in policy
    assert not re.search(r"url\(|@import", rendered(sample()))


def test_invisible_and_reordering_characters_are_written_out():
    text = "admin\u202egpj.exe\u200b\x00\x1b[31m\ud800"
    page = rendered([hostile_record(text)])
    page.encode("utf-8")
    assert not re.search("[\u202e\u200b\x00\x1b]", page)
    assert "admin\\u202egpj.exe\\u200b\\u0000\\u001b[31m\\ud800" in page


def test_every_link_leads_somewhere_and_ids_are_unique():
    page = Reader(rendered(sample()))
    ids = [attrs["id"] for _tag, attrs in page.elements if "id" in attrs]
    assert len(ids) == len(set(ids))
    assert {attrs["href"][1:] for _tag, attrs in page.elements if "href" in attrs} <= set(ids)


def test_silent_host_stands_first_and_names_its_reason():
    page = Reader(rendered(sample()))
    assert page.text.index("portal-1") < page.text.index("files-1")
    assert "Connection timed out" in page.text


def test_report_tells_everything_about_a_control():
    text = Reader(rendered(sample())).text
    for part in (
        "An idle interactive shell is ended", "session.idle_shell", "posture.session.shell_timeout_readonly",
        "session.shell_timeout_seconds = 0", "session_idle_seconds = 1800", "bash -lc, zsh -lc as an unprivileged user",
        "molecule/session/tests/test_session.py::test_idle_shell_is_ended", "--tags session", "UMDNJ-J-1", "SEC-212",
        "R. Okafor", "Systems log users off after 30 idle minutes.", "2026-11-21 08:15:12 UTC", "0c6f5e0e4f6d8c1d",
    ):  # fmt: skip
        assert part in text, part


def test_statements_stand_in_the_registers_order():
    names = ["WTH-7.10-4", "WTH-7.7-2", "ZZZ-1", "UMDNJ-J-1", "WTH-7.2.1-12b", "MA-1.8", "HMS-FT-3", "WTH-7.2.1-9"]
    ordered = sorted(({"name": name} for name in names), key=report._in_policy_order)
    assert [group["name"] for group in ordered] == [
        "HMS-FT-3", "UMDNJ-J-1", "MA-1.8", "WTH-7.2.1-9", "WTH-7.2.1-12b", "WTH-7.7-2", "WTH-7.10-4", "ZZZ-1",
    ]  # fmt: skip


def test_longer_lists_stand_one_item_a_line():
    assert report._shown(["a", "b"]) == '["a", "b"]'
    people = [{"name": "jane.doe", "shell": "/bin/bash"}, {"name": "richard.roe", "shell": "/bin/bash"}]
    assert report._shown(people).splitlines() == [
        '[{"name": "jane.doe", "shell": "/bin/bash"},', ' {"name": "richard.roe", "shell": "/bin/bash"}]'
    ]  # fmt: skip
    assert json.loads(report._shown(people)) == people


def test_longest_values_are_cut_in_the_page_only():
    long = record("files-1")
    long["controls"][0]["observed"] = {"accounts.names": ["x" * 50] * 1000}
    page = rendered([long])
    assert len(page) < 200_000 and "the record has all" in page
    assert len(next(iter(rows([long])))["observed"]) > 50_000


def test_record_without_optional_fields_is_shown():
    bare = record("files-1")
    bare["identity"] = None
    for control in bare["controls"]:
        for name in ("why", "source", "remedy", "proof", "exception", "variables", "observed", "expected", "title"):
            del control[name]
    assert "files-1" in rendered([bare])


@pytest.mark.parametrize(
    ("clock", "said"),
    [
        ({"offset_seconds": 0.000042, "uncertainty_seconds": 0.0124, "synchronised": True}, "0.042 ms ± 12.4 ms"),
        ({"offset_seconds": 3.25, "uncertainty_seconds": 0.5, "synchronised": True}, "3.25 s ± 500 ms"),
        ({"offset_seconds": None, "uncertainty_seconds": None, "synchronised": False}, "Not synchronised"),
        ({"offset_seconds": 0.1, "uncertainty_seconds": 0.1, "synchronised": "<b>"}, "Not synchronised"),
        ({"offset_seconds": "0.1", "uncertainty_seconds": True, "synchronised": True}, "Not synchronised"),
        ({}, ""),
        (None, ""),
    ],
)
def test_clock_in_words(clock, said):
    assert report.clock_text(clock) == said


def test_clocks_of_hosts_are_in_their_table():
    """Right, wrong, and not looked at: the three sample hosts in this order, worst first on the page."""
    page = rendered(sample())
    table = page[page.index('id="hosts"') : page.index('id="groups"')]
    assert table.index("\u2013</td>") < table.index("Not synchronised") < table.index("0.042 ms ± 12.4 ms")
    assert "ntp1.juniper.example" in table


@pytest.mark.parametrize("clock", ["yes", 7, [1], {"source": "<script>"}, {"source": [1]}])
def test_spoilt_clock_is_shown_harmlessly(clock):
    page = rendered([{**record("files-1"), "clock": clock}])
    assert "<script>" not in page[page.index('id="hosts"') : page.index('id="groups"')]


def test_rendering_does_not_change_the_records():
    records = sample()
    before = copy.deepcopy(records)
    rendered(records)
    assert records == before


def test_size_of_a_large_report():
    page = rendered(sample_run.big())
    assert page.count("<tr data-status=") == 3000
    assert len(page) < 5_000_000
