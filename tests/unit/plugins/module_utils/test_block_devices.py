# SPDX-License-Identifier: GPL-3.0-or-later
"""What speaks against touching a device, out of what lsblk and others say. Real devices: tests/devices."""

from __future__ import annotations

import os
import subprocess

import pytest
from ansible_collections.bulwark.hardening.plugins.module_utils import block_devices as module

DECLARED = {"model": "EXAMPLE DISK", "serial": "EX1", "size": 1 << 20}


def node(name, kind="disk", mounts=(), children=(), **more):
    """Return an entry as lsblk prints it."""
    return {
        "name": name, "kname": name, "path": f"/dev/{name}", "type": kind, "model": "EXAMPLE  DISK ", "serial": "EX1",
        "wwn": None, "size": 1 << 20, "tran": "sata", "rota": True, "rm": False, "ro": False, "log-sec": 512, "phy-sec": 4096,
        "disc-max": 0, "maj:min": "  8:0 ", "mountpoints": list(mounts) or [None], "fstype": None, "label": None, "uuid": None,
        "partuuid": None, "partlabel": None, "children": list(children), **more,
    }  # fmt: skip


def facts(tree=None, **more):
    """Return what look() would, of an idle disk but for what is given."""
    found = module.describe(tree or node("sdb"), tree or node("sdb"))
    found["system"] = any(mount["at"] in module.SYSTEM_MOUNTS for mount in found["mounts"])
    return {**found, "signatures": [], "loops": [], "twins": [], "opened": [], "expected": [], "claimed": False, **more}


def signature(kind, name="sdb"):
    """Return a signature as look() has them."""
    return {"name": name, "type": kind, "usage": "", "label": "", "uuid": ""}


def test_an_idle_disk_that_is_meant_may_be_touched():
    assert module.objections(facts(), DECLARED) == []


@pytest.mark.parametrize(
    ("seen", "words"),
    [
        (facts(node("sdb", mounts=["/srv"])), ["sdb is mounted at /srv"]),
        (facts(node("sdb", children=[node("sdb1", "part", ["/srv"])])), ["sdb1 is mounted at /srv"]),
        (facts(node("sdb", mounts=["[SWAP]"])), ["used as swap", "running system"]),
        (facts(node("sdb", children=[node("sdb1", "part", children=[node("c", "crypt", ["/"])])])), ["by c", "running system"]),
        (facts(node("sdb", children=[node("md7", "raid1")])), ["held by md7"]),
        (facts(signatures=[signature("LVM2_member")]), ["belongs to a volume group", "active or not"]),
        (facts(signatures=[{**signature("isw_raid_member"), "usage": "raid"}]), ["something larger", "isw_raid_member"]),
        (facts(signatures=[signature("linux_raid_member", "sdb2")]), ["sdb2 belongs to an array"]),
        (facts(loops=["loop5"]), ["behind loop5"]),
        (facts(twins=["sdc"]), ["sdc has the same model, serial number and size"]),
        (facts(opened=["pid 7 (qemu)"]), ["open in pid 7 (qemu)"]),
        (facts(expected=["/etc/fstab: UUID=1 /srv ext4"]), ["the system expects it: /etc/fstab"]),
        (facts(claimed=True), ["somebody holds it"]),
        (facts(node("sdb", ro=True)), ["read-only"]),
        (facts(node("sdb1", "part")), ["a part, not a disk"]),
        (facts(node("sdb", serial=None)), ["no serial number"]),
    ],
)  # fmt: skip
def test_each_use_objects(seen, words):
    said = "\n".join(module.objections(seen, DECLARED))
    for word in words:
        assert word in said


@pytest.mark.parametrize("key", ["model", "serial", "size"])
@pytest.mark.parametrize("value", ["other", "", None])
def test_identity_must_be_exact(key, value):
    [said] = module.objections(facts(), {**DECLARED, key: value})
    assert key in said


def test_a_filesystem_objects_only_to_what_comes_new():
    seen = facts(node("sdb", children=[node("sdb1", "part")]), signatures=[signature("ext4", "sdb1"), signature("crypto_LUKS")])
    assert module.objections(seen, DECLARED) == []
    said = "\n".join(module.objections(seen, DECLARED, blank=True))
    for word in ("ext4", "crypto_LUKS", "partitions: sdb1"):
        assert word in said


def test_tables_name_devices_in_any_way():
    tree = node("sdb", uuid="u-1", children=[node("sdb1", "part", label="data", partuuid="p-1")])
    fstab = '# UUID=u-1 is a comment\nUUID=u-1 /a ext4\nLABEL="data" /b ext4\n/dev/disk/by-id/x /c ext4\n/dev/sdc /d ext4\n'
    links = {"/dev/disk/by-id/x": "/dev/sdb1"}
    found = module.expected(module.names(tree), [("/etc/fstab", fstab), ("/etc/crypttab", "c PARTUUID=p-1 none\n")],
                            lambda path: links.get(path, path))  # fmt: skip
    assert [line.split()[1] for line in found] == ["UUID=u-1", 'LABEL="data"', "/dev/disk/by-id/x", "c"]


def test_model_and_serial_of_virtio():
    tree = node("vda", model=None, tran=None, serial=" V1 ")
    found = module.describe(tree, tree)
    assert (found["model"], found["serial"], found["transport"]) == ("virtio", "V1", "virtio")


def test_another_path_to_the_same_disk_is_seen():
    disk = node("sdb")
    others = [node("sdb"), node("sdc"), node("sdd", serial="EX2"), node("sde", size=1 << 21), node("sr0", "rom")]
    assert module.twins(disk, others) == ["sdc"]
    nameless = node("sdb", serial=None)
    assert module.twins(nameless, [nameless, node("sdc", serial=None)]) == []


def test_a_partition_has_its_disks_identity():
    found = module.describe(node("sdb1", "part", serial=None, model=None, tran=None, size=512), node("sdb"))
    assert (found["model"], found["serial"], found["size"], found["kind"]) == ("EXAMPLE DISK", "EX1", 512, "part")


def test_numbers_of_devices_as_the_kernel_writes_them():
    for major, minor in ((8, 1), (259, 300), (8, 4097)):
        written = (minor & 0xFF) | (major << 8) | ((minor & ~0xFF) << 12)
        assert module.kernel_number(written) == os.makedev(major, minor)


def test_what_is_no_device_is_not_looked_at(tmp_path):
    (tmp_path / "file").write_text("x")
    for path in (tmp_path / "file", tmp_path / "none", "/dev/null"):
        with pytest.raises(module.DeviceError):
            module.look(str(path))


def test_a_tool_that_fails_or_is_missing_is_an_error():
    for command in (["false"], ["no-such-tool"]):
        with pytest.raises(module.DeviceError):
            module.run(command)


def test_signatures_come_from_the_device_itself(tmp_path):
    image = tmp_path / "image"
    image.write_bytes(bytes(1 << 20))
    try:
        assert module.signatures(str(image)) == []
        subprocess.run(["mkswap", image], check=True, capture_output=True)
    except (module.DeviceError, FileNotFoundError) as exc:
        pytest.skip(f"util-linux is not whole here: {exc}")
    assert [item["type"] for item in module.signatures(str(image))] == ["swap"]


@pytest.mark.parametrize(("rate", "turns"), [(7200, True), (1, False), (0, False), (None, False)])
def test_only_what_says_how_fast_it_turns_is_magnetic(tmp_path, rate, turns):
    """A volume of an array says nothing, and the kernel takes it for a disk that turns."""
    place = tmp_path / "block" / "sdb" / "device"
    place.mkdir(parents=True)
    if rate is not None:
        (place / "vpd_pgb1").write_bytes(b"\0\xb1\0\x3c" + rate.to_bytes(2, "big") + b"\0" * 58)
    assert module.rotates("sdb", str(tmp_path)) is turns
