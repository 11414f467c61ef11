# SPDX-License-Identifier: GPL-3.0-or-later
"""What the posture says of a repository: never better than it is."""

from __future__ import annotations

import base64
import json
import time

import pytest
from ansible_collections.bulwark.hardening.plugins.module_utils import backup_escrow
from ansible_collections.bulwark.hardening.plugins.module_utils import backup_keeper as keeper
from ansible_collections.bulwark.hardening.plugins.module_utils.posture import backup_repository as repository


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    """Places of its own."""
    monkeypatch.setattr(keeper, "STATE", str(tmp_path))
    return tmp_path


def sealed(number: int) -> str:
    """Return what age would write for so many custodians."""
    head = b"age-encryption.org/v1\n" + b"-> X25519 abc\ndef\n" * number + b"--- mac\nrest"
    text = base64.b64encode(head).decode()
    return f"-----BEGIN AGE ENCRYPTED FILE-----\n{text}\n-----END AGE ENCRYPTED FILE-----\n"


def test_seals(place):
    (place / "escrow" / "w").mkdir(parents=True)
    text = backup_escrow.text_of({"custodians": [{"name": "B", "key": "b"}, {"name": "A", "key": "a"}], "sealed": sealed(2)})
    path = place / "escrow" / "w" / backup_escrow.name_of(text)
    path.write_text(text)
    whole = {"host": "w", "custodians": ["a", "b"], "recipients": 2, "whole": True}
    assert repository.escrow(str(place)) == [whole]
    path.write_text(text.replace('"name": "A"', '"name": "C"'))
    assert repository.escrow(str(place)) == [{**whole, "whole": False}], "one byte has turned"
    path.write_text(text)
    (place / "escrow" / "v").mkdir()
    (place / "escrow" / "u").write_text("x")
    (place / "escrow" / "w" / "odd.json").write_text("[]")
    nothing = {"custodians": [], "recipients": 0, "whole": False}
    assert repository.escrow(str(place)) == [{"host": "u", **nothing}, whole, {"host": "w", **nothing}]


def test_fetched_is_told_of_each_host(place):
    now = time.time()
    told = {"b": {"w": {"sound_at": keeper.stamp(now - 7200)}, "v": {"problem": "x"}, "u": {"sound_at": keeper.stamp(now + 9e5)}}}
    (place / "pulls.json").write_text(json.dumps(told))
    seen = {one["copy"]: (round(one["hours"]), one["problem"]) for one in repository.pulls()}
    never = round(repository.LONG_AGO)
    assert seen == {"b/w": (2, ""), "b/v": (never, "x"), "b/u": (never, "")}


def test_broken_seals_are_in_the_report(place):
    (place / "report.json").write_text(
        json.dumps({"copies": {}, "escrow": {"w/1.json": "is missing"}, "at": "2000-01-01T00:00:00Z"})
    )
    assert repository.report()["broken"] == ["escrow: w/1.json is missing"]
