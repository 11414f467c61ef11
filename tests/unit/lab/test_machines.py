# SPDX-License-Identifier: GPL-3.0-or-later
"""The machinery of the tests itself: which images are thrown away, where a guest is reached, how a dead one ends."""

from __future__ import annotations

import os
import time

import machines
import pytest

USERNET = (
    "Hub -1 (net):\r\n  Protocol[State]    FD  Source Address  Port   Dest. Address  Port RecvQ SendQ\r\n"
    "  TCP[ESTABLISHED]  21       10.0.2.15 41922     198.51.100.7   443     0     0\r\n"
    "  TCP[HOST_FORWARD]  13       127.0.0.1 34723       10.0.2.15    22     0     0\r\n"
)


@pytest.fixture
def guest(tmp_path, monkeypatch):
    """A guest whose files lie in a directory of the test."""
    monkeypatch.setattr(machines, "GUESTS", tmp_path / "guests")
    monkeypatch.setattr(machines, "LOGS", tmp_path / "logs")
    guest = machines.Guest("molecule-x-debian12")
    guest.directory.mkdir(parents=True)
    guest.console.parent.mkdir()
    return guest


def test_port_is_read_from_qemus_own_table():
    """QEMU chose the port, so nobody else can have taken it."""
    assert machines.forwarded_port(USERNET) == 34723


@pytest.mark.parametrize("table", ["", USERNET.replace("    22 ", "    80 "), None])
def test_no_forwarded_port_is_an_error(table):
    """No port of something else is taken for the SSH server's."""
    with pytest.raises(OSError, match="forwards no port"):
        machines.forwarded_port(table)


def test_only_old_images_of_the_same_platforms_are_outdated(tmp_path):
    """Another clone's image of yesterday goes; one that was used an hour ago, and other platforms, stay."""
    now = time.time()
    for name, age in (("debian12-new", 0), ("debian12-used", 3600), ("debian12-old", 200000), ("debian13-old", 200000)):
        (tmp_path / name).mkdir()
        os.utime(tmp_path / name, (now - age, now - age))
    gone = machines.outdated(list(tmp_path.iterdir()), [tmp_path / "debian12-new"], now)
    assert [path.name for path in gone] == ["debian12-old"]


def test_a_changed_builder_has_another_image(tmp_path, monkeypatch):
    """Both kinds of image are named after the builder that makes them."""
    before = machines.image_name("debian12"), machines.guest_image("debian12")
    builder = tmp_path / "build.sh"
    builder.write_text(machines.BUILDER.read_text() + "\n")
    monkeypatch.setattr(machines, "BUILDER", builder)
    after = machines.image_name("debian12"), machines.guest_image("debian12")
    assert before[0] != after[0]
    assert before[1] != after[1]


def test_recorded_process_of_somebody_else_is_not_ours(guest):
    """A process id that was given to another program meanwhile is neither a running guest nor ended."""
    (guest.directory / "pid").write_text(f"{os.getpid()}\n")
    assert guest.pid() == 0
    guest.stop()
    assert not guest.directory.exists()


def test_console_is_shown_without_colours(guest):
    """The end of the console's log is what tells why a guest did not come up."""
    guest.console.write_text("early\n[\x1b[0;32m  OK  \x1b[0m] Started\r\n" + "\x1b[1mKernel panic\x1b[0m\n")
    assert guest.tail(2) == "[  OK  ] Started\nKernel panic"


def test_guest_that_ended_is_reported_with_its_console(guest, monkeypatch):
    """No waiting for minutes when QEMU is gone: the console's end is said at once."""
    guest.console.write_text("Kernel panic - not syncing: no root\n")
    monkeypatch.setattr(machines.Guest, "port", 9)
    with pytest.raises(SystemExit, match=r"machine has ended[\s\S]*Kernel panic - not syncing: no root"):
        guest.wait()


def test_guest_whose_processor_sleeps_on_is_started_anew(guest, monkeypatch):
    """What an emulator's lost interrupt stopped is not waited for; one more start, and no more than three."""
    boots = []

    def boot(self, *_arguments, **_settings):
        boots.append(self.name)
        stalled = len(boots) == 1
        self.console.write_text("rcu: rcu_preempt kthread starved for 5252 jiffies!\n" if stalled else "Welcome\n")

    monkeypatch.setattr(machines.Guest, "_boot", boot)
    monkeypatch.setattr(machines.Guest, "wait", lambda self: None)
    guest.start("debian12", "key")
    assert len(boots) == 2
