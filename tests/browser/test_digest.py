# Copyright: (c) 2026, Bulwark contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Open a digest of the trail in a real browser: it is whole, asks nobody for anything, and hostile lines stay text."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import pytest
import yaml
from ansible_collections.bulwark.hardening.plugins.module_utils import trail_review
from ansible_collections.bulwark.hardening.tests.unit import trail_lines
from selenium import webdriver

ROOT = Path(__file__).resolve().parents[2]
NOON = 1_795_608_000.0  # 2026-11-25 12:00 UTC
HOSTILE = (
    "<script>document.title='owned'</script><img src=http://192.0.2.1/x onerror=\"document.title='owned'\">\x1b[31m\u202egnp"
)


def page(folder: Path) -> Path:
    """Write a digest with a finding of every rule, and one of hostile text."""
    writer, at = trail_lines.Writer(folder / "store"), NOON
    for name, steps in trail_lines.fixtures(NOON).items():
        if name not in ("collector_deaf", "host_silent"):
            at = trail_lines.played(writer, "web", steps, at)
    writer.put("web", trail_lines.log("clamd", f"/srv/{HOSTILE}: Sig FOUND"), at + 1)
    for second in range(0, int(at - NOON), 30):
        writer.put("db", trail_lines.heartbeat(), NOON + second)
    programs = yaml.safe_load((ROOT / "roles/log_review/vars/main.yml").read_text())["__log_review_programs"]
    config = {
        "store": str(folder / "store"),
        "verify": "",
        "collector": "log",
        "hosts": {"web": "server", "db": "server", "gate": "gateway"},
        "max_days": {"server": 7, "gateway": 7},
        "silent_minutes": 3,
        "sample_size": 8,
        "sensitive_paths": ["/srv/records"],
        "lists": {**programs, "automation": ["deploy"]},
        "rules": yaml.safe_load((ROOT / "roles/log_review/files/rules.yml").read_text()),
    }
    until = trail_review.stamp_of(at + 5)
    digest, _private = trail_review.digest_of(config, trail_review.stamp_of(NOON), until, "5eed5eed", b"k" * 32)
    file = folder / "digest.html"
    file.write_text(trail_review.render({"id": "2026-11-25T130000Z", **digest}), encoding="utf-8")
    return file


@pytest.fixture(scope="module")
def opened(driver, tmp_path_factory) -> webdriver.Chrome:
    """A digest, open in Chromium."""
    driver.get("about:blank")
    driver.get_log("performance")
    driver.get(page(tmp_path_factory.mktemp("digest")).as_uri())
    return driver


def test_it_is_whole_and_fits(opened):
    """Every section is there, and the page is no wider than the window, on a telephone either."""
    heads = [head.text for head in opened.find_elements("css selector", "h2")]
    assert heads == ["Findings", "Hosts", "Administrators", "Faults", "Random sample", "Not covered", "Rules", "Sign"]
    for width in (1280, 390):
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
        opened.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        assert opened.execute_script("return document.documentElement.scrollWidth") <= width


def test_hostile_lines_are_text(opened):
    """No element comes from a line, nothing runs, nothing is asked for, and the browser has nothing to complain about."""
    assert opened.title == "Review of the trail 2026-11-25T130000Z"
    assert opened.find_elements("css selector", "img, script, iframe, a[href], form") == []
    assert "<script>" in opened.find_element("css selector", "main").text
    asked = [json.loads(entry["message"])["message"] for entry in opened.get_log("performance")]
    urls = [m["params"]["request"]["url"] for m in asked if m["method"] == "Network.requestWillBeSent"]
    assert [url for url in urls if not url.startswith(("file://", "chrome://"))] == []
    assert [entry for entry in opened.get_log("browser") if entry["level"] == "SEVERE"] == []


def test_its_style_is_in_force_and_it_prints(opened):
    """The policy lets exactly this style in; on paper the page is some pages of A4, with text in them."""
    assert opened.execute_script("return getComputedStyle(document.querySelector('.badge')).borderRadius") == "99px"
    pdf = base64.b64decode(opened.execute_cdp_cmd("Page.printToPDF", {"paperWidth": 8.27, "paperHeight": 11.69})["data"])
    assert pdf[:5] == b"%PDF-" and 3 <= pdf.count(b"/Type /Page\n") + pdf.count(b"/Type /Page ") <= 60
