# SPDX-License-Identifier: GPL-3.0-or-later
"""Guests for tests of devices, with a kernel that knows them; disks and sticks come by hot-plug.

The two releases go by turns, for a guest without a processor of its own is slow: a module of tests takes the one that it names in
TURN. BULWARK_RELEASES=both (stage devices both) has every test on both.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import guests
import machines
import pytest

PLATFORMS = {"devices-12": "debian12", "devices-13": "debian13"}
BOTH = os.environ.get("BULWARK_RELEASES") == "both"
OPTIONS = ("-device", "qemu-xhci,id=xhci", "-device", "virtio-scsi-pci,id=scsi")


class Devices:
    """The guests, and what is plugged into them."""

    def __init__(self, fleet: guests.Fleet, directory: Path) -> None:
        """Take guests that run. Images of devices lie in the directory."""
        self.fleet, self.directory = fleet, directory

    def each(self, do: Callable) -> dict:
        """Do something on all guests side by side and return the results by guest."""
        return dict(zip(self.fleet.hosts, guests.together(do, self.fleet.hosts.values()), strict=True))

    def apply(self, role: str, *arguments: str, **variables: object) -> str:
        """Apply a role to all guests with variables, which stay for later looks; return what Ansible said."""
        self.fleet.variables |= variables
        scenario = self.directory / "no-scenario"
        scenario.mkdir(exist_ok=True)
        (scenario / "vars.yml").write_text("{}")
        return self.fleet.ansible("ansible-playbook", str(guests.ROOT / "molecule" / "shared" / "converge.yml"), *arguments,
                                  targets="guests", role=role, scenario_dir=str(scenario))  # fmt: skip

    def judged(self, role: str, targets: str = "guests") -> dict[str, dict[str, str]]:
        """Return what the evidence says of a role's controls on guests: {guest: {control: status}}."""
        records = self.fleet.assess(targets, role)
        return {name: {control["id"].split(".")[1]: control["status"] for control in record["controls"]}
                for name, record in records.items()}  # fmt: skip

    def statuses(self, role: str, name: str) -> dict[str, str]:
        """Return the same of one guest."""
        return self.judged(role, name)[name]

    def image(self, host: guests.Host, name: str, mebibytes: int) -> Path:
        """Return an image of zeros for one guest, made anew."""
        path = self.directory / f"{host.name}-{name}.img"
        path.unlink(missing_ok=True)
        with path.open("wb") as stream:
            stream.truncate(mebibytes << 20)
        return path

    def plug(self, host: guests.Host, image: Path, serial: str, driver: str = "usb-storage", **more: object) -> None:
        """Plug in a device of an image: a USB stick (usb-storage), or a disk (scsi-hd)."""
        bus = {"usb-storage": "xhci.0", "scsi-hd": "scsi.0"}[driver]
        host.guest.control("blockdev-add", **{"driver": "raw", "node-name": f"n-{serial}",
                                              "file": {"driver": "file", "filename": str(image)}})  # fmt: skip
        host.guest.control("device_add", driver=driver, id=f"d-{serial}", drive=f"n-{serial}", bus=bus, serial=serial, **more)

    def unplug(self, host: guests.Host, serial: str) -> None:
        """Pull a device out."""
        host.guest.control("device_del", id=f"d-{serial}")

        def gone() -> bool:
            with contextlib.suppress(OSError):
                host.guest.control("blockdev-del", **{"node-name": f"n-{serial}"})
                return True
            return False

        guests.until(gone, 60, f"{host.name}: {serial} is out", pause=0.5)


def names(module) -> list[str]:
    """Return which guests a module's tests run on."""
    return list(PLATFORMS) if BOTH else [module.TURN]


@pytest.fixture(scope="module")
def devices(request, tmp_path_factory) -> Iterator[Devices]:
    """Boot the guests."""
    directory = tmp_path_factory.mktemp("devices")
    machines.build_guest_images(list(PLATFORMS.values()))
    with guests.fleet(directory) as fleet:

        def start(name: str) -> guests.Host:
            return fleet.start_guest(name, PLATFORMS[name], *OPTIONS, kernel="generic")

        for host in guests.together(start, names(request.module)):
            fleet.add(host, "guests")
        yield Devices(fleet, directory)


def pytest_generate_tests(metafunc) -> None:
    """Have tests that take one guest run on each of those that their module runs on."""
    if "host" in metafunc.fixturenames:
        metafunc.parametrize("host", names(metafunc.module), indirect=True)


@pytest.fixture
def host(devices, request) -> guests.Host:
    """One guest after the other."""
    return devices.fleet.hosts[request.param]
