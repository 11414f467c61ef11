# SPDX-License-Identifier: GPL-3.0-or-later
"""The writer and the reader, over a file that stands for a device, and over devices that lie."""

from __future__ import annotations

import itertools
import os
import tracemalloc

import pytest
from ansible_collections.bulwark.hardening.plugins.module_utils import media_device as module

SIZE = 9 * (1 << 20) + 512
CANARY = (b"CANARY-%08d" % 7).ljust(512, b"\xa5")


@pytest.fixture
def device(tmp_path):
    """A file full of a pattern, open, without O_DIRECT for the sake of any file system."""
    path = tmp_path / "device"
    path.write_bytes(CANARY * (SIZE // 512))
    descriptor = os.open(path, os.O_RDWR)
    yield descriptor
    os.close(descriptor)


def content(descriptor: int) -> bytes:
    """Return all of it."""
    return os.pread(descriptor, SIZE, 0)


def test_all_is_overwritten_and_read_back(device):
    told = []
    module.overwrite(device, [[0, SIZE]], 0, told.append)
    assert content(device) == bytes(SIZE)
    assert told[-1] == SIZE
    assert module.verify(device, [[0, SIZE]], told.append) == SIZE


def test_only_regions_are_overwritten(device):
    module.overwrite(device, [[512, 1024], [SIZE - 512, SIZE]], 0, lambda done: None)
    data = content(device)
    assert data[:512] == CANARY and data[512:1024] == bytes(512) and data[1024:-512] == CANARY * (SIZE // 512 - 3)
    assert data[-512:] == bytes(512)


@pytest.mark.parametrize("done", [0, 512, 1024, 1536, 4 << 20, SIZE - 1024])
def test_it_goes_on_where_it_was(device, done):
    regions = [[0, 1024], [2048, SIZE]]
    told = []
    module.overwrite(device, regions, done, told.append)
    data = content(device)
    skipped = 0 if done < 1024 else done - 1024
    assert data[: min(done, 1024)] == CANARY[:512] * (min(done, 1024) // 512)
    assert data[2048 : 2048 + skipped] == (CANARY * (skipped // 512 + 1))[:skipped]
    assert data[2048 + skipped :] == bytes(SIZE - 2048 - skipped)
    assert told[-1] == SIZE - 1024


def test_what_is_left_is_named(device):
    module.overwrite(device, [[0, SIZE]], 0, lambda done: None)
    os.pwrite(device, b"x", 5_000_001)
    with pytest.raises(module.DeviceLies, match=r"byte 5000001 .sector 9765"):
        module.verify(device, [[0, SIZE]], lambda done: None)


def test_a_device_that_sends_nothing_is_not_one_of_zeros(device, monkeypatch):
    """Reads that report success and transfer nothing."""
    module.overwrite(device, [[0, SIZE]], 0, lambda done: None)
    monkeypatch.setattr(module.os, "preadv", lambda descriptor, views, at: len(views[0]))
    with pytest.raises(module.DeviceLies, match="never sent"):
        module.verify(device, [[0, SIZE]], lambda done: None)


def test_short_writes_and_reads_fail(device, monkeypatch):
    write, read = os.pwrite, os.preadv
    monkeypatch.setattr(
        module.os, "pwrite", lambda descriptor, data, at: write(descriptor, bytes(data)[: -512 if at else None], at)
    )
    with pytest.raises(module.DeviceLies, match="short write at byte 4194304"):
        module.overwrite(device, [[0, SIZE]], 0, lambda done: None)
    monkeypatch.setattr(module.os, "preadv", lambda descriptor, views, at: read(descriptor, [bytearray(512)], at))
    with pytest.raises(module.DeviceLies, match="short read"):
        module.verify(device, [[0, SIZE]], lambda done: None)


def test_a_region_beyond_the_end_fails(device):
    with pytest.raises(module.DeviceLies, match="short read"):
        module.verify(device, [[SIZE - 512, SIZE + 512]], lambda done: None)


@pytest.mark.parametrize("where", ["pwrite", "fsync", "preadv"])
def test_errors_fail(device, monkeypatch, where):
    def broken(*_arguments):
        raise OSError(5, "Input/output error")

    if where == "fsync":
        with pytest.raises(module.DeviceLies, match="could not write down"):
            module.overwrite(device, [[0, SIZE]], 0, lambda done: None, fsync=broken)
        return
    monkeypatch.setattr(module.os, where, broken)
    with pytest.raises(module.DeviceLies, match=r"(write|read) error at byte 0"):
        (module.overwrite(device, [[0, SIZE]], 0, print) if where == "pwrite" else module.verify(device, [[0, SIZE]], print))


def test_dropped_writes_are_seen(device, monkeypatch):
    monkeypatch.setattr(module.os, "pwrite", lambda descriptor, data, at: len(data))
    module.overwrite(device, [[0, SIZE]], 0, lambda done: None)
    with pytest.raises(module.DeviceLies, match="byte 0 "):
        module.verify(device, [[0, SIZE]], lambda done: None)


def test_witnesses_tell_whether_a_tool_did_anything(device):
    before = module.witnesses(device, [[0, SIZE]], 3)
    assert 100 < len(before) <= module.WITNESSES + 16
    assert before[0][0] == 0 and before[-1][0] >= SIZE - 8192
    assert len(module.unchanged(device, before)) == len(before)
    os.pwrite(device, bytes(SIZE // 2), 0)
    left = module.unchanged(device, before)
    assert left and min(left) >= SIZE // 2 - 4096
    os.pwrite(device, bytes(SIZE), 0)
    assert module.unchanged(device, before) == []
    assert module.witnesses(device, [[0, SIZE]], 3) == [], "what is blank proves nothing"


def test_witnesses_of_the_largest_disk_take_little(monkeypatch):
    """20 TB: hundreds of millions of blocks are chosen from without any list of them."""
    read = []

    class Reader:
        def __init__(self, _descriptor):
            pass

        def read(self, at, want):
            read.append(at)
            return os.urandom(want)

        def close(self):
            pass

    monkeypatch.setattr(module, "Reader", Reader)
    size = 20 * 10**12 // 4096 * 4096
    tracemalloc.start()
    found = module.witnesses(0, [[0, size // 3], [size // 2, size]], 3)
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert most < 20e6
    assert module.WITNESSES * 0.9 < len(found) <= module.WITNESSES + 17
    assert read == sorted(set(read)) and read[0] == 0 and read[-1] >= size - 8192
    gaps = [b - a for a, b in itertools.pairwise(read)]
    assert not [at for at in read if size // 3 <= at < size // 2] and max(gaps) < size / 5, "spread over all that is looked at"


def test_a_held_device_is_not_opened(tmp_path):
    with pytest.raises(module.DeviceLies):
        module.open_alone(str(tmp_path / "none"))
    (tmp_path / "link").symlink_to("/dev/null")
    with pytest.raises(module.DeviceLies):
        module.open_alone(str(tmp_path / "link"))
