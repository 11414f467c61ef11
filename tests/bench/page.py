# SPDX-License-Identifier: GPL-3.0-or-later
"""How the page of benchmarks says things."""

from __future__ import annotations

import textwrap


def paragraph(text: str) -> str:
    """Return a text in lines as long as those of the other documents."""
    return textwrap.fill(text, 120)


def one_in(ratio: float) -> str:
    """Return a ratio as people say it: 1/37."""
    return f"1/{1 / ratio:.0f}" if ratio <= 0.4 else f"{ratio:.2f}"
