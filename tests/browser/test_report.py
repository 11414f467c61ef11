# Copyright: (c) 2026, Bulwark contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Open the report in a real browser, headless, and do with it what its readers do: click, type, tab, print, listen.

Nothing is skipped: without Chromium or its driver every test here fails and names the package to install.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from ansible_collections.bulwark.hardening.tests.unit.sample_run import big, record, rendered, sample, tallied
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.ui import Select, WebDriverWait


class Page:
    """One open report and what was asked of the network and said on the console since it was opened."""

    def __init__(self, driver: webdriver.Chrome, folder: Path) -> None:
        self.driver, self.folder = driver, folder

    def open(self, text: str, width: int = 1280) -> Page:
        """Write a report into a file of its own and open that file."""
        file = self.folder / "report.html"
        file.write_text(text, encoding="utf-8")
        self.cdp("Emulation.setEmulatedMedia", media="", features=[])
        self.cdp("Emulation.setDeviceMetricsOverride", width=width, height=1000, deviceScaleFactor=1, mobile=False)
        self.driver.get("about:blank")
        self.driver.get_log("browser")
        self.driver.get_log("performance")
        self.url = file.as_uri()
        self.driver.get(self.url)
        return self

    def cdp(self, command: str, **arguments) -> dict:
        """Send one command of the DevTools protocol."""
        return self.driver.execute_cdp_cmd(command, arguments)

    def js(self, body: str, *arguments):
        """Run the body of a JavaScript function in the page and return what it returns."""
        return self.driver.execute_script(body, *arguments)

    def one(self, selector: str) -> WebElement:
        """Return the first element a CSS selector finds."""
        return self.driver.find_element(By.CSS_SELECTOR, selector)

    def rows(self) -> list[tuple[str, str]]:
        """Return (host, control) of every control row that a filter leaves."""
        return [
            tuple(pair)
            for pair in self.js(
                "return [...document.querySelectorAll('tr[data-status]')].filter(r => !r.hidden)"
                ".map(r => [r.dataset.host, r.querySelector('th code').textContent])"
            )
        ]

    def said(self, text: str) -> None:
        """Wait until the live count says a text; fail with what it says instead."""
        WebDriverWait(self.driver, 10).until(lambda _d: text in self.one("output").text, f"waited for {text!r}")

    def requests(self) -> list[str]:
        """Return the addresses asked for since the page was opened, that of the page itself aside."""
        events = [json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance")]
        asked = [event["params"]["request"]["url"] for event in events if event["method"] == "Network.requestWillBeSent"]
        return [address for address in asked if address not in (self.url, "about:blank")]

    def tree(self) -> list[dict]:
        """Return the accessibility tree as (role, name) with properties, ignored nodes left out."""
        self.cdp("Accessibility.enable")
        nodes = self.cdp("Accessibility.getFullAXTree")["nodes"]
        return [
            {
                "role": node.get("role", {}).get("value", ""),
                "name": node.get("name", {}).get("value", ""),
                **{item["name"]: item["value"].get("value") for item in node.get("properties", [])},
            }
            for node in nodes
            if not node["ignored"]
        ]


@pytest.fixture
def page(driver: webdriver.Chrome, tmp_path: Path) -> Iterator[Page]:
    """Give a page to open; afterwards nothing may have been complained about or asked from elsewhere."""
    opened = Page(driver, tmp_path)
    yield opened
    assert driver.get_log("browser") == []
    assert opened.requests() == []


@pytest.fixture
def report(page: Page) -> Page:
    return page.open(rendered(sample()))


# ---------------------------------------------------------------------------------------------------------------
# What a reader sees and clicks


def test_first_view_tells_the_result(report):
    text = report.one("main").text
    assert "31 of 55 control results are met" in text
    assert "1 host of 3 could not be assessed" in text
    assert [item.text for item in report.driver.find_elements(By.CSS_SELECTOR, ".big dd")] == ["56 %", "58 %"]
    first = report.one("#hosts ~ .scroll tbody tr")
    assert "portal-1" in first.text and "Unreachable" in first.text and "Connection timed out" in first.text
    assert report.one("output").text == "Showing 57 of 57 control results on 3 of 3 hosts."
    assert report.js("return document.documentElement.scrollWidth <= innerWidth"), "no sideways scrolling"


def test_clocks_of_the_hosts_are_told(report):
    """Whose clock was how far off, by which source: what is needed to put events of several hosts in order."""
    cells = report.js(
        "const t = document.querySelector('section[aria-labelledby=hosts] table');"
        "const at = [...t.tHead.rows[0].cells].findIndex(c => c.textContent === 'Clock off by');"
        "return [...t.tBodies[0].rows].map(r => r.cells[at].innerText.split(/\\s*\\n\\s*/))"
    )
    assert cells == [["\u2013"], ["Not synchronised"], ["0.042 ms \u00b1 12.4 ms", "ntp1.juniper.example"]]


def test_status_filter(report):
    report.one("input[name=status][value=fail]").click()
    report.said("Showing 3 of 57 control results on 1 of 3 hosts.")
    assert set(report.rows()) == {
        ("files-1", "ssh.ciphers"), ("files-1", "session.idle_shell"), ("files-1", "accounts.no_generic")
    }  # fmt: skip
    assert [a.is_displayed() for a in report.driver.find_elements(By.CSS_SELECTOR, "article.host")] == [False, True, False]
    report.one("input[name=status][value=exception]").click()
    report.said("Showing 4 of 57 control results on 2 of 3 hosts.")
    assert ("records-1", "ssh.forwarding") in report.rows()
    assert report.one("article[data-host=records-1] table").is_displayed(), "a host with a match opens by itself"


def test_policy_filter(report):
    report.one("input[name=policy][value=UMDNJ]").click()
    expected = {
        (item["host"], control["id"])
        for item in sample()
        for control in item["controls"]
        if any(statement.startswith("UMDNJ-") for statement in control["statements"])
    }
    report.said(f"Showing {len(expected)} of 57")
    assert set(report.rows()) == expected


def test_role_and_host_filters_narrow_together(report):
    Select(report.one("select[name=role]")).select_by_visible_text("banner")
    report.said("Showing 9 of 57")
    Select(report.one("select[name=host]")).select_by_visible_text("records-1")
    report.said("Showing 3 of 57 control results on 1 of 3 hosts.")
    assert set(report.rows()) == {("records-1", f"banner.{name}") for name in ("ssh", "console", "no_system_details")}


@pytest.mark.parametrize(
    ("typed", "found"),
    [
        ("aes128-ctr", {("files-1", "ssh.ciphers")}),
        ("AES128 wth-7.2.1-12b", {("files-1", "ssh.ciphers")}),
        ("okafor", {("records-1", "ssh.forwarding")}),
        ("files-1 tmout", {("files-1", "session.idle_shell")}),
        ("no such thing anywhere", set()),
        ("<b>", set()),
    ],
)
def test_search_looks_into_everything(report, typed, found):
    report.one("input[type=search]").send_keys(typed)
    report.said(f"Showing {len(found)} of 57")
    assert set(report.rows()) == found


def test_clearing_brings_everything_back(report):
    report.one("input[type=search]").send_keys("okafor")
    report.one("input[name=status][value=exception]").click()
    Select(report.one("select[name=host]")).select_by_visible_text("records-1")
    report.said("Showing 1 of 57")
    report.one("button[type=reset]").click()
    report.said("Showing 57 of 57 control results on 3 of 3 hosts.")
    assert len(report.rows()) == 57
    folded = [table.is_displayed() for table in report.driver.find_elements(By.CSS_SELECTOR, "article.host table")]
    assert folded == [False, True, False], "what the filter unfolded is folded again"


def test_evidence_of_a_control_opens(report):
    row = report.one("article[data-host=files-1] tr[data-role=session]")
    assert not row.find_element(By.CSS_SELECTOR, "dl").is_displayed()
    row.find_element(By.CSS_SELECTOR, "summary").click()
    evidence = row.find_element(By.CSS_SELECTOR, "dl").text
    for part in (
        "Expected", "posture.session.shell_timeout_readonly", "session_idle_seconds = 1800", "Observed",
        "session.shell_timeout_seconds = 0", "Where it was looked", "bash -lc", "Remedy", "--tags session", "Proven by",
        "test_idle_shell_is_ended",
    ):  # fmt: skip
        assert part in evidence


def test_button_opens_and_closes_the_evidence_that_is_shown(report):
    report.one("input[name=status][value=fail]").click()
    report.said("Showing 3 of 57")
    report.one("#fold").click()
    assert report.js("return document.querySelectorAll('details.more[open]').length") == 3
    assert report.one("#fold").get_attribute("aria-pressed") == "true"
    report.one("#fold").click()
    assert report.js("return document.querySelectorAll('details.more[open]').length") == 0


def test_link_to_a_host_opens_it(report):
    assert not report.one("article[data-host=records-1] table").is_displayed()
    link = report.driver.find_element(By.LINK_TEXT, "records-1")
    link.click()
    WebDriverWait(report.driver, 10).until(lambda _d: report.one("article[data-host=records-1] table").is_displayed())


def test_link_of_a_statement_leads_to_what_it_asks(report):
    report.one("article[data-host=files-1] tr[data-role=session] .tags a").click()
    target = report.one(":target")
    assert target.text.startswith("WTH-7.7-2") and "30 idle minutes" in target.text


# ---------------------------------------------------------------------------------------------------------------
# Hostile hosts


@pytest.mark.parametrize(
    "text",
    [
        "<script>window.pwned=1</script>",
        "</script></style><script>window.pwned=1</script>",
        '"><img src="https://192.0.2.1/x" onerror="window.pwned=1">',
        "' autofocus onfocus='window.pwned=1",
        "<svg onload=window.pwned=1>",
        "<meta http-equiv=refresh content=0;url=https://192.0.2.1>",
        "<details open ontoggle=window.pwned=1>",
    ],
)
def test_what_a_host_says_is_shown_and_never_run(page, text):
    spoilt = record(f"host {text}")
    spoilt["identity"].update(os_id=text, virtualization=text)
    spoilt["controls"][0].update(
        title=text, why=text, source=text, remedy=text, status="fail", observed={text: text}, variables={text: text},
        expected=[text], proof=[text],
    )  # fmt: skip
    page.open(rendered([tallied(spoilt)], {f"printer {text}": text}, {text: text}))
    page.js("document.querySelectorAll('details').forEach(d => d.open = true)")
    assert page.js("return window.pwned") is None
    assert page.js("return document.scripts.length") == 1
    assert page.one("tr[data-status=fail] th").text.startswith(text)
    # The filters must find such a host by its name, too.
    Select(page.one("select[name=host]")).select_by_value(f"host {text}")
    page.said("Showing 19 of 19 control results on 1 of 2 hosts.")
    page.one("input[type=search]").send_keys(text.split()[0])
    page.said("Showing 19 of 19")


def test_browser_refuses_a_script_even_if_escaping_had_failed(driver, tmp_path):
    page = Page(driver, tmp_path)
    slipped = '<script>window.pwned=1</script><img src="https://192.0.2.1/x" onerror="window.pwned=2"><main'
    page.open(rendered(sample()).replace("<main", slipped, 1))
    assert page.js("return window.pwned") in (None, 2), "the slipped script ran"
    assert page.js("return window.pwned") is None, "the slipped handler ran"
    complaints = " ".join(entry["message"] for entry in driver.get_log("browser"))
    assert complaints.count("violates the following Content Security Policy") >= 3
    assert "Showing 57 of 57" in page.one("output").text, "the page's own script still runs"
    events = [json.loads(entry["message"])["message"] for entry in driver.get_log("performance")]
    assert not [event for event in events if event["method"] == "Network.responseReceived" and "192.0.2.1" in str(event)]


# ---------------------------------------------------------------------------------------------------------------
# Paper, no script, small windows, many hosts

SHOWN = """
const seen = (selector) => [...document.querySelectorAll(selector)]
  .filter(e => e.checkVisibility({contentVisibilityAuto: true}) && e.getBoundingClientRect().height > 0).length;
return {rows: seen('tr[data-status]'), evidence: seen('details.more dl'), form: seen('form'), hosts: seen('article.host'),
        parameters: seen('#about ~ details table')};
"""


def test_print_is_whole_whatever_is_folded_or_filtered(report):
    report.one("input[name=status][value=fail]").click()
    report.said("Showing 3 of 57")
    on_screen = report.js(SHOWN)
    assert (on_screen["rows"], on_screen["evidence"], on_screen["form"]) == (3, 0, 1)
    report.cdp("Emulation.setEmulatedMedia", media="print", features=[{"name": "prefers-color-scheme", "value": "dark"}])
    assert report.js(SHOWN) == {"rows": 57, "evidence": 57, "form": 0, "hosts": 3, "parameters": 1}
    assert report.js("return getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)", "light on paper"
    printed = report.cdp("Page.printToPDF", printBackground=True, preferCSSPageSize=True)["data"]
    assert printed.startswith("JVBERi0"), "a PDF"


def test_everything_is_there_without_javascript(page):
    text = rendered(sample())
    page.open(re.sub(r"<script>.*?</script>", "", text, flags=re.S))
    assert page.js(SHOWN) == {"rows": 57, "evidence": 57, "form": 0, "hosts": 3, "parameters": 1}


@pytest.mark.parametrize("width", [320, 390, 768])
def test_narrow_window(page, width):
    page.open(rendered(sample()), width=width)
    assert page.js("return document.documentElement.scrollWidth") <= width, "the page scrolls sideways"
    tables = [node["name"] for node in page.tree() if node["role"] == "table"]
    assert "Controls on files-1" in tables, "stacked rows are still a table to a screen reader"
    page.one("input[name=status][value=fail]").click()
    page.said("Showing 3 of 57")


def test_fifty_hosts_with_sixty_controls(page):
    page.open(rendered(big()))
    page.said("Showing 3000 of 3000 control results on 50 of 50 hosts.")
    assert page.js("return document.querySelectorAll('details.box[open]').length") == 0, "a long report starts folded"
    page.one("input[name=status][value=fail]").click()
    failures = sum(control["status"] == "fail" for item in big() for control in item["controls"])
    page.said(f"Showing {failures} of 3000 control results on 50 of 50 hosts.")
    page.one("input[type=search]").send_keys("host-07")
    page.said("control results on 1 of 50 hosts.")
    assert {host for host, _control in page.rows()} == {"host-07"}
    page.one("button[type=reset]").click()
    page.said("Showing 3000 of 3000")


def test_host_without_any_control_is_shown_and_can_be_found(page):
    ghost = {**record("ghost"), "schema": "bulwark.host/0"}
    page.open(rendered([record("records-1"), ghost]))
    article = page.one("article[data-host=ghost]")
    assert "cannot be relied on" in article.text and "it counts as 19 errors" in article.text
    page.one("input[type=search]").send_keys("ghost")
    page.said("Showing 0 of 19 control results on 1 of 2 hosts.")
    assert article.is_displayed()
    page.one("input[name=status][value=error]").click()
    page.said("on 1 of 2 hosts.")
    assert article.is_displayed(), "a silent host is an error, whatever else is looked for"


# ---------------------------------------------------------------------------------------------------------------
# Everyone


def test_accessibility_tree(report):
    report.js("document.querySelectorAll('details').forEach(d => d.open = true)")
    nodes = report.tree()
    named = {"button", "link", "searchbox", "textbox", "checkbox", "combobox", "DisclosureTriangle", "table", "region",
             "search", "article", "form", "image", "option"}  # fmt: skip
    assert {"button", "link", "searchbox", "checkbox", "combobox", "table", "region", "search"} <= {n["role"] for n in nodes}
    assert [node for node in nodes if node["role"] in named and not node["name"].strip()] == []
    roles = [node["role"] for node in nodes]
    for landmark in ("banner", "main", "contentinfo", "search"):
        assert roles.count(landmark) == 1, landmark
    tables = [node["name"] for node in nodes if node["role"] == "table"]
    assert len(tables) == len(set(tables)) == 8
    summaries = [node["name"] for node in nodes if node["role"] == "DisclosureTriangle"]
    assert len(summaries) == len(set(summaries)), "each disclosure says what it discloses"
    levels = [node["level"] for node in nodes if node["role"] == "heading"]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels)), levels


def test_markup_a_screen_reader_relies_on(report):
    assert report.js("return document.documentElement.lang") == "en"
    assert report.js("return document.title").startswith("Hardening evidence")
    assert report.js("return [...document.querySelectorAll('th')].filter(c => !c.scope).length") == 0
    assert report.js("return [...document.querySelectorAll('table')].filter(t => !t.caption).length") == 0
    live = report.one("output")
    assert (live.get_attribute("aria-live"), live.get_attribute("role")) == ("polite", "status")
    unlabelled = "return [...document.querySelectorAll('input, select')].filter(i => !i.labels.length).length"
    assert report.js(unlabelled) == 0, "a placeholder is no label"
    nameless = "[role=group]:not([aria-label]):not([aria-labelledby])"
    assert report.driver.find_elements(By.CSS_SELECTOR, nameless) == []
    # Status is a word everywhere, not a colour alone.
    assert report.js("return [...document.querySelectorAll('.badge')].filter(b => !b.textContent.trim()).length") == 0


CONTRAST = """
const canvas = document.createElement('canvas').getContext('2d', {willReadFrequently: true});
const rgba = (colour) => {
  canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1);
  return [...canvas.getImageData(0, 0, 1, 1).data];
};
const light = (c) => { const [r, g, b] = c.map(v => (v /= 255) <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4);
  return .2126 * r + .7152 * g + .0722 * b; };
const behind = (e) => { for (; e; e = e.parentElement) { const c = rgba(getComputedStyle(e).backgroundColor);
  if (c[3] === 255) return c; } return [255, 255, 255, 255]; };
const poor = new Map();
let looked = 0;
const judge = (element, style, what) => {
  const [a, b] = [light(rgba(style.color)), light(behind(element))].sort((x, y) => y - x);
  const ratio = (a + .05) / (b + .05), size = parseFloat(style.fontSize);
  const large = size >= 24 || (size >= 18.66 && style.fontWeight >= 700);
  looked += 1;
  if (ratio < (large ? 3 : 4.5)) poor.set(what + ' ' + element.className, ratio.toFixed(2));
};
const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
while (walker.nextNode()) {
  const element = walker.currentNode.parentElement;
  if (!walker.currentNode.data.trim() || !element.checkVisibility() || element.closest('script, style, .unseen')) continue;
  judge(element, getComputedStyle(element), element.tagName);
}
judge(document.querySelector('input[type=search]'), getComputedStyle(document.querySelector('input[type=search]'), '::placeholder'), 'placeholder');
for (const box of document.querySelectorAll('input[type=search], select, button')) {
  const [a, b] = [light(rgba(getComputedStyle(box).borderColor)), light(behind(box.parentElement))].sort((x, y) => y - x);
  if ((a + .05) / (b + .05) < 3) poor.set('border of ' + box.tagName, ((a + .05) / (b + .05)).toFixed(2));
}
return {looked, poor: [...poor]};
"""  # noqa: E501


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_contrast(report, scheme):
    report.cdp("Emulation.setEmulatedMedia", media="screen", features=[{"name": "prefers-color-scheme", "value": scheme}])
    background = report.js("return getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, re.findall(r"\d+", background)[:3])) > 382) is (scheme == "light")
    report.js("document.querySelectorAll('details').forEach(d => d.open = true)")
    seen = report.js(CONTRAST)
    assert seen["looked"] > 1000
    assert seen["poor"] == []


def focused(page: Page) -> str:
    """Return a short description of what has the focus."""
    return page.js(
        "const e = document.activeElement;"
        "return e.tagName.toLowerCase() + (e.name ? '.' + e.name : '') + (e.id ? '#' + e.id : '')"
        " + (e.value && e.type === 'checkbox' ? '=' + e.value : '')"
    )


def press(page: Page, *keys: str) -> None:
    for key in keys:
        page.driver.switch_to.active_element.send_keys(key)


def test_keyboard_alone(report):
    press(report, Keys.TAB)
    assert report.driver.switch_to.active_element.text == "Skip to the results"
    press(report, Keys.ENTER)
    assert focused(report) == "main#main"

    stops, hidden = [], []
    for _stop in range(80):
        press(report, Keys.TAB)
        name = focused(report)
        stops.append(name)
        outline = report.js(
            "const e = document.activeElement; const s = (x) => getComputedStyle(x).outlineStyle;"
            "return s(e) !== 'none' || (e.type === 'checkbox' && s(e.closest('label')) !== 'none')"
        )
        if not outline:
            hidden.append(name)
        if name == "button":
            break
    assert hidden == [], "the focus can be seen at every stop"
    form = stops[stops.index("input.search") :]
    assert form[:3] == ["input.search", "select.role", "select.host"]
    assert [stop for stop in form if stop.startswith("input.status=")] == [
        f"input.status={value}" for value in ("fail", "error", "exception", "pass", "not_applicable")
    ]
    assert form[-2:] == ["button#fold", "button"]

    press(report, *[Keys.SHIFT + Keys.TAB] * (len(form) - 1))
    assert focused(report) == "input.search"
    press(report, "cipher")
    report.said("Showing 3 of 57")
    press(report, Keys.TAB, Keys.TAB)
    assert focused(report) == "select.host"
    press(report, "files")
    report.said("Showing 1 of 57")
    press(report, Keys.TAB, Keys.SPACE)
    assert focused(report) == "input.status=fail"
    report.said("Showing 1 of 57")
    while focused(report) != "button":
        press(report, Keys.TAB)
    press(report, Keys.TAB)
    assert report.driver.switch_to.active_element.text.startswith("19 controls:")
    press(report, Keys.TAB, Keys.ENTER)
    assert report.one("article[data-host=files-1] tr[data-status=fail] dl").is_displayed()
    press(report, Keys.SHIFT + Keys.TAB, Keys.SHIFT + Keys.TAB)
    assert focused(report) == "button"
    press(report, Keys.SPACE)
    report.said("Showing 57 of 57")
