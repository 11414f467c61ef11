# Copyright: (c) 2026, Bulwark contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Since when a connection has been there, with processes that are made up. How it came in: test_ssh_admission.py."""

from __future__ import annotations

import os

import pytest
from ansible_collections.bulwark.hardening.plugins.module_utils import way_in as module


def process(title, pid=50):
    return {"pid": pid, "uid": 0, "title": title, "environment": {}}


@pytest.fixture
def world(monkeypatch):
    """Make up the processes above."""
    return lambda above: monkeypatch.setattr(module, "ancestors", lambda: above)


@pytest.mark.parametrize("name", ["sshd: deploy [priv]", "sshd-session: deploy [priv]"])
def test_a_connection_is_as_old_as_sshds_first_process_for_it(world, monkeypatch, name):
    """Not as old as the session on it, which may be a later one over the same connection, nor as sshd itself."""
    above = [
        process("sshd: deploy@notty", 70),
        process(name, 60),
        process("sshd: /usr/sbin/sshd -D [listener] 0 of 10-100 startups", 5),
    ]
    world(above)
    fields = ["S", *["0"] * 18, str(90 * os.sysconf("SC_CLK_TCK")), "0"]
    monkeypatch.setattr(module, "read", lambda path: {"/proc/60/stat": f"60 (s) (d) {' '.join(fields)}"}[path])
    assert module.began() == 90


def test_what_does_not_come_over_ssh_has_no_age(world):
    world([process("podman exec"), process("conmon")])
    assert module.began() is None
