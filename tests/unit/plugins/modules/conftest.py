# SPDX-License-Identifier: GPL-3.0-or-later
"""Modules run on hosts; here they run beside tests that import Ansible's controller side."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def not_on_the_controller(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let warnings go into the module's result, as on a host; once the controller is imported they would go to its display."""
    monkeypatch.setattr("ansible.module_utils._internal.is_controller", False)
