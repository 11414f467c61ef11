# Copyright: (c) 2026, Bulwark contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Take the picture of the report that the documentation shows: PYTHONPATH=collections python tests/browser/picture.py

Looks best where the fonts Inter and JetBrains Mono are installed (Debian: fonts-inter, fonts-jetbrains-mono).
"""

from __future__ import annotations

import base64
import tempfile
from pathlib import Path

from ansible_collections.bulwark.hardening.tests.unit.sample_run import rendered, sample
from conftest import chromium

TARGET = Path(__file__).resolve().parents[2] / "docs" / "images" / "report.png"

with tempfile.TemporaryDirectory() as folder:
    page = Path(folder, "report.html")
    page.write_text(rendered(sample()), encoding="utf-8")
    with chromium(Path(folder, "profile"), "--hide-scrollbars", "--force-prefers-reduced-motion") as driver:
        metrics = {"width": 1280, "height": 1000, "deviceScaleFactor": 1.25, "mobile": False}
        driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        driver.get(page.as_uri())
        # From the top of the page down to a host's first finding, with its evidence unfolded, and the beginning of the next.
        row = driver.find_element("css selector", "article:has(details[open]) tr[data-role=session]")
        row.find_element("css selector", "summary").click()
        bottom = driver.execute_script("return scrollY + arguments[0].nextElementSibling.getBoundingClientRect().bottom", row)
        clip = {"x": 0, "y": 0, "width": 1280, "height": bottom, "scale": 1}
        shot = driver.execute_cdp_cmd("Page.captureScreenshot", {"format": "png", "captureBeyondViewport": True, "clip": clip})
TARGET.parent.mkdir(parents=True, exist_ok=True)
TARGET.write_bytes(base64.b64decode(shot["data"]))
