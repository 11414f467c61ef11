# SPDX-License-Identifier: GPL-3.0-or-later
"""Disks of every kind on guests, full of a pattern: sanitised by every method and looked at from outside.

Beside these stand whatever must not be sanitised, devices and tools that lie, and a power cut. The guests share one boot. What
needs no patience is one list of cases, tried one after the other by one playbook (wiping.yml); the tests look at what came of it.
The two releases take the cases by turns, for a guest without a processor of its own is slow; BULWARK_RELEASES=both tries every
case on both (stage devices both). Purges by real drives cannot be tried here: QEMU's disks have none. They are tried with tools
that stand for them, honest ones and lying ones.
"""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import guests
import machines
import pytest
from ansible_collections.bulwark.hardening.plugins.module_utils import media

HERE = Path(__file__).resolve().parent
BOTH = os.environ.get("BULWARK_RELEASES") == "both"
HOSTS = {"media-12": "debian12", "media-13": "debian13"}
SIZE = 64 << 20
PLACE, PROGRAM = "/var/lib/bulwark/media", "/usr/local/lib/bulwark/media_register"
SERIALS = {
    "virtio": "VBLK0001",
    "scsi": "SCSI0002",
    "nvme": "NVME0003",
    "sata": "SATA0004",
    "slow": "SLOW0005",
    "data": "DATA0006",
    "broken": "BROKEN07",
}
# The guest's own disk takes the first free place, and the first place is /dev/vda: those here stay away from it (addr, in hex).
FRONTS = {
    "virtio": "virtio-blk-pci,addr=10,drive=d-virtio,serial=VBLK0001",
    "scsi": "scsi-hd,bus=scsi0.0,drive=d-scsi,serial=SCSI0002,vendor=EXAMPLE,product=MAGNETIC,rotation_rate=7200",
    "nvme": "nvme,drive=d-nvme,serial=NVME0003",
    "sata": "ide-hd,bus=ide.0,drive=d-sata,serial=SATA0004,model=SOLIDSTATE,rotation_rate=1",
    "slow": "virtio-blk-pci,addr=11,drive=d-slow,serial=SLOW0005",
    "data": "virtio-blk-pci,addr=12,drive=d-data,serial=DATA0006",
    "broken": "virtio-blk-pci,addr=13,drive=d-broken,serial=BROKEN07",
}
BACKS = {
    "slow": "file=IMAGE,throttling.bps-total=2000000",
    "broken": "file.driver=blkdebug,file.image.driver=file,file.image.filename=IMAGE,werror=report,"
    "file.inject-error.0.event=none,file.inject-error.0.iotype=write,file.inject-error.0.sector=65536",
}
BASIC = {
    "classification": "moderate", "category": "clear", "disposition": "destroy", "retention_cleared_by": "Records committee",
    "retention_cleared_on": "2026-01-02", "property_number": "M-0001", "source": "ward-3", "backed_up": "yes",
    "performed_by": {"name": "Example Person", "title": "Technician"}, "validated_by": {"name": "Example Colleague"},
}  # fmt: skip
MKFS = "mkfs.ext4 -qF -E nodiscard,lazy_itable_init=0,lazy_journal_init=0"  # or nothing would be left to look for
LUKS = "cryptsetup luksFormat -q --type luks2 --pbkdf pbkdf2 --pbkdf-force-iterations 1000 --key-file /root/key"
# mbr.py DEVICE SECTORS: two partitions, the first so long, the second the rest. There is no partitioning tool in the image.
MBR = """
import struct, sys
path, first = sys.argv[1], int(sys.argv[2])
entry = lambda start, size: struct.pack("<B3sB3sII", 0, b"\\0" * 3, 0x83, b"\\0" * 3, start, size)
with open(path, "r+b") as stream:
    total = stream.seek(0, 2) // 512
    stream.seek(0)
    stream.write(b"\\0" * 446 + entry(2048, first) + entry(2048 + first, total - 2048 - first) + b"\\0" * 32 + b"\\x55\\xaa")
"""
# A tool that stands for hdparm and a drive that can sanitise; what it does is the word DEED, an honest drive's or a liar's.
HDPARM = r"""cat >/usr/local/sbin/hdparm <<'END'
#!/bin/sh
case "$*" in
*-I*) printf 'ATA device\nCommands/features:\n\t   *\tSANITIZE feature set\n\t   *\tBLOCK_ERASE_EXT command\n' ;;
*--sanitize-status*) printf 'State:    SD0 Sanitize Idle\nLast Sanitize Operation Completed Without Error\n' ;;
*--sanitize-block-erase*) DEED ;;
-V) echo 'hdparm v0 (stands for a drive)' ;;
esac
END
chmod +x /usr/local/sbin/hdparm
"""
NO_HDPARM = "rm /usr/local/sbin/hdparm"
# Whoever looks at the disk at this moment (udev) keeps the kernel from taking up a new table of partitions.
PARTED = "python3 /root/mbr.py $R 32768; udevadm settle; blockdev --rereadpt $R; udevadm settle"
NVME = r"""cat >/usr/local/sbin/nvme <<'END'
#!/bin/sh
case "$1" in
id-ctrl) echo '{"sanicap": 2, "fna": 0, "oacs": 2}' ;;
sanitize-log) printf '\377\377\001\000' ;;
version) echo 'nvme version 0 (stands for a drive)' ;;
esac
exit 0
END
chmod +x /usr/local/sbin/nvme
"""


def case(name: str, disk: str, before: str = ":", after: str = ":", fill: str = "fill", **arguments: object) -> dict:
    """Return a case of wiping.yml. R is the device in what is done before, D a link to it; fill: fill, blank or nothing."""
    return {"name": name, "disk": disk, "before": f"R=$(realpath $D)\n{before}", "after": after, "fill": fill,
            "arguments": arguments}  # fmt: skip


METHODS = [
    *(case(f"{disk}-overwrite", disk) for disk in ("virtio", "scsi", "sata", "nvme")),
    *(case(f"{disk}-discard", disk, method="discard") for disk in ("scsi", "virtio", "nvme", "sata")),
    case("nvme-format", "nvme", method="nvme_format"),
    case("scsi-filesystem", "scsi", f"{MKFS} $D; mount $D /mnt; yes DISK-CANARY-7f3c9a- | head -c 9000000 >/mnt/f; umount /mnt"),
    case("virtio-sample", "virtio", verification="sample"),
    case("sata-partitions", "sata", f"{PARTED}; {MKFS} ${{R}}1"),
    case("sata-purge", "sata", HDPARM.replace("DEED", 'shift 2; exec /usr/sbin/blkdiscard -f -z "$@"'), NO_HDPARM,
         category="purge", disposition="reuse_external", destination="Example charity"),
    case("luks-partition", "sata", f"{PARTED}; {LUKS} ${{R}}2; "
         "yes DISK-CANARY-7f3c9a- | dd of=${R}1 bs=1M iflag=fullblock oflag=direct count=16 status=none",
         "cryptsetup isLuks ${R}2 && echo STILL-LUKS", fill="blank", method="crypto_erase"),
]  # fmt: skip
CRYPTO = case(
    "luks-whole", "scsi",
    f"{LUKS} $R; cryptsetup open --key-file /root/key $R c1; {MKFS} /dev/mapper/c1; mount /dev/mapper/c1 /mnt; "
    "yes DISK-CANARY-7f3c9a- | head -c 9000000 >/mnt/f; umount /mnt; cryptsetup close c1",
    "cryptsetup open --key-file /root/key $R c1 && echo OPENED; cryptsetup isLuks $R && echo STILL-LUKS",
    fill="blank", method="crypto_erase", category="purge", encrypted_before_data=True, disposition="reuse_internal",
)  # fmt: skip
HOLD = "systemd-run -q --collect --unit=holder"
VG = "pvcreate -ffyq $R; vgcreate -q v1 $R; lvcreate -qy -Wn -L 20M -n l1 v1"
MD = "mdadm --create /dev/md7 --run --force --level=1 --raid-devices=1 $R"
NO_MD = "mdadm --stop /dev/md7; udevadm settle; mdadm --stop /dev/md*; mdadm --zero-superblock $R"  # udev may start it again
# What must not be wiped, and what the refusal says.
REFUSED = [
    (case("mounted", "scsi", f"{MKFS} $R; mount $R /mnt", "umount /mnt"), "is mounted at /mnt"),
    (case("mounted-partition", "scsi", f"{PARTED}; {MKFS} ${{R}}1; mount ${{R}}1 /mnt",
          "umount /mnt; wipefs -qa $R; udevadm settle; blockdev --rereadpt $R"), "is mounted at /mnt"),
    (case("other-namespace", "scsi", f"{MKFS} $R; {HOLD} unshare -m sh -c \"mount $R /mnt && exec sleep 900\"; sleep 4",
          "systemctl stop holder"), "somebody holds it"),
    (case("swap", "scsi", "mkswap -q $R; swapon $R", "swapoff $R"), "used as swap"),
    (case("lvm-active", "scsi", VG, "vgremove -ffqy v1; pvremove -ffqy $R"), "held by"),
    (case("lvm-inactive", "scsi", f"{VG}; vgchange -q -an v1", "vgremove -ffqy v1; pvremove -ffqy $R"), "volume group"),
    (case("md", "scsi", MD, NO_MD), "held by md7"),
    (case("md-stopped", "scsi", f"{MD}; mdadm --stop /dev/md7", NO_MD), "array"),
    (case("device-mapper", "scsi", "echo \"0 2048 linear $R 0\" | dmsetup create held", "dmsetup remove held"), "held by held"),
    (case("luks-open", "scsi", f"{LUKS} $R; cryptsetup open --key-file /root/key $R c1", "cryptsetup close c1; wipefs -qa $R"),
     "held by c1"),
    (case("loop", "scsi", "modprobe loop; losetup /dev/loop5 $R", "losetup -d /dev/loop5"), "behind loop5"),
    (case("opened", "scsi", f"{HOLD} sh -c \"exec 5<$R; exec sleep 900\"; sleep 4", "systemctl stop holder"), "is open in pid"),
    (case("fstab", "scsi", f"{MKFS} -L later $R; udevadm settle; echo 'LABEL=later /srv/later ext4 noauto 0 0' >>/etc/fstab",
          "sed -i /srv.later/d /etc/fstab"), "the system expects it: /etc/fstab"),
    (case("system", "system", fill=""), "running system lies on it"),
    (case("serial", "scsi", serial="SCSI0003"), "serial 'SCSI0003' was declared"),
    (case("model", "scsi", model="MAGNETIC 2"), "model 'MAGNETIC 2' was declared"),
    (case("size", "scsi", size=SIZE - 512), "size 67108352 was declared"),
    (case("words", "scsi", confirm="erase it"), "must be the words"),
    (case("one-signer", "scsi", validated_by={"name": "Example Person"}), "UMDNJ-I-2"),
    (case("retention", "scsi", retention_cleared_by=""), "UMDNJ-F-1"),
    (case("retention-runs", "scsi", retention_cleared_on="2199-01-01"), "UMDNJ-F-1"),
    (case("high-reused", "scsi", classification="high", disposition="reuse_internal"), "UMDNJ-I-1"),
    (case("cleared-reused", "scsi", disposition="reuse_external"), "UMDNJ-I-2"),
    (case("no-purge", "sata", method="overwrite", category="purge"), "it clears, it does not purge"),
    (case("no-security", "sata", method="ata_erase_enhanced"), "ata_erase_enhanced"),
    (case("no-sanitize", "nvme", method="nvme_sanitize_block"), "not among the controller's abilities"),
]  # fmt: skip
# Devices and tools that lie or fail, and what is said.
NO_FAKE = "modprobe -r scsi_debug"
FAKE = (
    "modprobe -qr scsi_debug || true; modprobe scsi_debug dev_size_mb=64 delay=0 MORE; udevadm settle; "
    "ln -sfn /dev/$(ls /sys/bus/pseudo/drivers/scsi_debug/adapter*/host*/target*/*/block) $D"
)
STILL = "still hold what they held"
LIARS = [
    (case("lying-nvme", "nvme", NVME, "rm /usr/local/sbin/nvme", method="nvme_sanitize_block"), STILL),
    (case("lying-hdparm", "sata", HDPARM.replace("DEED", ":"), NO_HDPARM, method="ata_sanitize_block"), STILL),
    (case("failing-tool", "sata", HDPARM.replace("DEED", "exit 1"), NO_HDPARM, method="ata_sanitize_block"), "exit 1"),
    # A drive that takes all writes, drops them, and sends nothing; one that cannot read, and one that cannot write some sectors.
    (case("lost-writes", "fake", FAKE.replace("MORE", "fake_rw=1"), NO_FAKE, fill=""), "is not what was written"),
    (case("read-error", "fake", FAKE.replace("MORE", "") + "; echo 2 >/sys/bus/pseudo/drivers/scsi_debug/opts",
          NO_FAKE, fill=""), "read error"),
    (case("write-error", "broken", fill=""), "write error at byte"),
]  # fmt: skip
DRY = case("dry", "virtio", confirm="")
CASES = [*METHODS, CRYPTO, *(one for one, _word in REFUSED), *(one for one, _word in LIARS), DRY]
for turn, each_case in enumerate(CASES):
    each_case["hosts"] = list(HOSTS) if BOTH else [list(HOSTS)[turn % 2]]


def cases(*lists: list) -> pytest.MarkDecorator:
    """Return the parameters name, one and, where a list has it, word: each case on each guest that tries it."""
    pairs = [(entry if isinstance(entry, tuple) else (entry,)) for entries in lists for entry in entries]
    words = ("name", "one", "word")[: len(pairs[0]) + 1]
    values = [pytest.param(name, *pair, id=f"{name}-{pair[0]['name']}") for pair in pairs for name in pair[0]["hosts"]]
    return pytest.mark.parametrize(words, values)


class Wiping:
    """The guests and what came of every case."""

    def __init__(self, fleet: guests.Fleet, directory: Path) -> None:
        """Take guests that run."""
        self.fleet, self.directory = fleet, directory

    def each(self, do) -> dict:
        """Do something on all guests side by side and return the results by guest."""
        return dict(zip(HOSTS, guests.together(lambda name: do(self.fleet.hosts[name]), HOSTS), strict=True))

    def link(self) -> None:
        """Give every disk a name of its own, whatever the kernel calls it at this start."""
        names = "\n".join(f"{serial}) ln -sfn $d /run/disks/{name} ;;" for name, serial in SERIALS.items())
        script = (
            "udevadm settle; mkdir -p /run/disks; ln -sfn $(findmnt -no SOURCE /) /run/disks/system\n"
            f"for d in $(lsblk -dnpo NAME); do case $(lsblk -dno SERIAL $d) in\n{names}\nesac; done; ls /run/disks"
        )
        for name, said in self.each(lambda host: host.out(script)).items():
            assert set(said.split()) >= {*SERIALS, "system"}, (name, said)

    def try_cases(self, cases: list[dict]) -> None:
        """Try cases."""
        self.fleet.ansible("ansible-playbook", str(HERE / "wiping.yml"), cases=cases, state=str(self.directory), basic=BASIC,
                           images=str(HERE / "images.py"))  # fmt: skip

    def outcome(self, name: str, case_name: str) -> dict:
        """Return what came of a case on a guest."""
        return json.loads((self.directory / f"{name}-{case_name}.json").read_text())

    def image(self, name: str, disk: str) -> Path:
        """Return the image of a disk of a guest."""
        return self.directory / f"{name}-{disk}.img"

    def scan(self, name: str, disk: str) -> dict:
        """Look at a disk from outside."""
        said = subprocess.run(["python3", HERE / "images.py", "scan", self.image(name, disk)], check=True, capture_output=True)
        return json.loads(said.stdout)

    def fill(self, name: str, disk: str) -> None:
        """Fill a disk from outside."""
        subprocess.run(["python3", HERE / "images.py", "fill", self.image(name, disk)], check=True)


@pytest.fixture(scope="module")
def wiping(tmp_path_factory) -> Iterator[Wiping]:
    """Boot the guests with their disks, and try every case."""
    directory = tmp_path_factory.mktemp("media")
    machines.build_guest_images(list(HOSTS.values()))
    with guests.fleet(directory) as fleet:
        made = Wiping(fleet, directory)

        def start(name: str) -> guests.Host:
            options = ["-device", "virtio-scsi-pci,id=scsi0"]
            for disk, front in FRONTS.items():
                with made.image(name, disk).open("wb") as stream:
                    stream.truncate(SIZE)
                back = f"if=none,id=d-{disk},format=raw,discard=unmap,{BACKS.get(disk, 'file=IMAGE')}"
                options += ["-drive", back.replace("IMAGE", str(made.image(name, disk))), "-device", front]
            return fleet.start_guest(name, HOSTS[name], *options, kernel="generic")

        for host in guests.together(start, HOSTS):
            fleet.add(host, "guests")
        packages = "nvme-cli hdparm cryptsetup-bin lvm2 mdadm dmsetup"
        made.each(lambda host: host.out(
            f"DEBIAN_FRONTEND=noninteractive apt-get install -qy --no-install-recommends {packages} >/dev/null 2>&1; "
            f"head -c 64 /dev/urandom >/root/key; cat >/root/mbr.py <<'END'\n{MBR}\nEND", 600))  # fmt: skip
        made.link()
        made.try_cases(CASES)
        yield made


@pytest.fixture(params=HOSTS)
def name(request) -> str:
    """One guest after the other."""
    return request.param


@cases(METHODS)
def test_nothing_is_left_on_the_image(wiping, name, one):
    found = wiping.outcome(name, one["name"])
    assert found["tried"].get("msg", "").startswith("Sanitised"), found["tried"].get("msg")
    assert found["before"]["canaries"] > 10000, "there was something to be wiped"
    assert found["after"]["canaries"] == 0
    if one["arguments"].get("method") != "crypto_erase":
        assert found["after"]["nonzero"] == 0
    assert "STILL-LUKS" not in found["said"]


@cases([CRYPTO])
def test_a_luks_disk_without_its_header_is_noise(wiping, name, one):
    """The old key opens nothing, nothing of the header is there any more, and all ciphertext still is, as is claimed."""
    found = wiping.outcome(name, one["name"])
    assert found["tried"]["msg"] == "Sanitised: purge by crypto_erase", found["tried"]["msg"]
    assert found["said"].strip() == ""
    assert found["before"]["nonzero_16m"] > 0 and found["after"]["nonzero_16m"] == 0
    assert found["after"]["canaries"] == 0 and found["after"]["nonzero"] > 10000
    assert "was not looked at" in found["tried"]["certificate"]["sanitization"]["verification_result"]


@cases(METHODS, [CRYPTO])
def test_the_certificate_says_what_happened(wiping, name, one):
    found = wiping.outcome(name, one["name"])
    tried, record = found["tried"], found["tried"]["certificate"]
    assert media.missing_fields(record) == []
    about, how = record["media"], record["sanitization"]
    assert (about["serial"], about["size"], about["classification"]) == (SERIALS[one["disk"]], SIZE, "moderate")
    assert (about["model"], about["property_number"]) == (found["seen"]["model"] or "virtio", "M-0001")
    assert how["method"] == one["arguments"].get("method", "ata_sanitize_block" if one["name"] == "sata-purge" else "overwrite")
    assert how["method_type"] == one["arguments"].get("category", "clear")
    assert how["verification"] == ("representative sample" if one["name"] == "virtio-sample" else "full")
    assert record["destination"]["disposition"] == one["arguments"].get("disposition", "destroy")
    assert record["validated_by"]["name"] == "Example Colleague" != record["performed_by"]["name"]
    assert "Records committee on 2026-01-02" in how["retention"]
    read = int(how["verified"].split()[0])
    assert read == SIZE or one["name"] in ("luks-whole", "luks-partition", "virtio-sample")
    if one["name"] == "virtio-sample":
        assert 0.05 < read / SIZE < 0.15
    host = wiping.fleet.hosts[name]
    assert host.out(f"sha256sum <{tried['certificate_path']}").split()[0] == tried["certificate_sha256"]
    assert json.loads(host.out(f"cat {tried['certificate_path']}")) == record
    page = host.out(f"cat {tried['certificate_path'].removesuffix('json')}html")
    assert tried["certificate_sha256"] in page and SERIALS[one["disk"]] in page
    assert f'"sha256":"{tried["certificate_sha256"]}"' in host.out(f"cat {PLACE}/register.jsonl")


@cases(REFUSED)
def test_what_must_not_be_wiped_is_refused(wiping, name, one, word):
    found = wiping.outcome(name, one["name"])
    assert found["tried"].get("failed"), found["tried"].get("msg")
    assert found["tried"]["msg"].startswith("Refused before anything changed"), found["tried"]["msg"]
    assert word in found["tried"]["msg"], found["tried"]["msg"]
    assert "certificate" not in found["tried"]
    if one["disk"] != "system":
        # Taking a volume group away, as is done before the second look, writes some sectors of its own.
        assert found["before"]["canaries"] > 10000
        assert 0 <= found["before"]["canaries"] - found["after"]["canaries"] < 64, "nothing of it was touched"


@cases([DRY])
def test_without_the_words_nothing_happens(wiping, name, one):
    found = wiping.outcome(name, one["name"])
    assert not found["tried"].get("failed") and not found["tried"]["changed"] and found["tried"]["objections"] == []
    assert found["tried"]["plan"]["method"] == "overwrite" and found["tried"]["plan"]["others"]
    assert found["after"]["canaries"] == found["before"]["canaries"] == SIZE // 512


@cases(LIARS)
def test_a_tool_that_reports_success_over_intact_data_fails_loudly(wiping, name, one, word):
    """Nor does a device that loses writes, or cannot read, come out with a certificate."""
    found = wiping.outcome(name, one["name"])
    assert found["tried"].get("failed"), found["tried"].get("msg")
    assert found["tried"]["msg"].startswith("NOT SANITISED, no certificate"), found["tried"]["msg"]
    assert word in found["tried"]["msg"], found["tried"]["msg"]
    assert "certificate_path" not in found["tried"]
    said = wiping.fleet.hosts[name].out("journalctl -q -o cat -t bulwark-media --grep event=failed")
    assert word in said


def test_start_progress_and_end_are_in_the_journal(wiping, name):
    said = wiping.fleet.hosts[name].out("journalctl -q -o cat -t bulwark-media").splitlines()
    about = [line for line in said if SERIALS["virtio"] in line]
    for event in ("started", "progress", "sanitised"):
        assert any(f"event={event}" in line for line in about), event
    assert any("rate_mb_s=" in line and "phase=" in line for line in about)
    assert any("event=refused" in line for line in said)


def slow(**more: object) -> dict:
    """Return what is asked for the slow disk."""
    about = {"device": "/run/disks/slow", "model": "virtio", "serial": SERIALS["slow"], "size": SIZE}
    return {**BASIC, **about, "confirm": f"erase {SERIALS['slow']}", **more}


def begin(wiping) -> None:
    """Begin to sanitise the slow disk, and wait until it is well under way."""
    wiping.fleet.ansible("ansible", "guests", "--background=600", "--poll=0", "--module-name", "bulwark.hardening.media_sanitize",
                         "--args", json.dumps(slow()))  # fmt: skip

    def under_way(host) -> None:
        guests.until(lambda: host.run(f"grep -Eq '^[1-6][0-9] write' {PLACE}/jobs/*.progress").returncode == 0, 180,
                     f"{host.name}: under way", pause=0.5)  # fmt: skip

    wiping.each(under_way)


def answer(wiping, arguments: dict) -> dict[str, dict]:
    """Call the module on both guests and return the results."""
    (wiping.directory / "one.yml").write_text(
        "- hosts: guests\n  gather_facts: false\n  tasks:\n"
        "    - bulwark.hardening.media_sanitize:\n      args: '{{ arguments }}'\n      register: done\n"
        "      ignore_errors: true\n"
        "    - ansible.builtin.copy: {content: '{{ done | to_json }}', dest: '{{ state }}/{{ inventory_hostname }}-one.json'}\n"
        "      delegate_to: localhost\n      become: false\n")  # fmt: skip
    wiping.fleet.ansible("ansible-playbook", str(wiping.directory / "one.yml"), arguments=arguments, state=str(wiping.directory))
    return {name: wiping.outcome(name, "one") for name in HOSTS}


@pytest.fixture(scope="module")
def cut(wiping) -> dict:
    """Cut the power in the middle of a wipe, look, and run it again."""
    for name in HOSTS:
        wiping.fill(name, "slow")
    begin(wiping)
    for host in wiping.fleet.hosts.values():
        host.guest.cut_power()
    time.sleep(1)
    for host in wiping.fleet.hosts.values():
        host.guest.wait()
        guests.until(lambda host=host: host.run("true").returncode == 0, 300, f"{host.name}: is back")
    wiping.link()
    found = {
        "between": {name: wiping.scan(name, "slow") for name in HOSTS},
        "certificates": wiping.each(lambda host: host.run(f"grep -l SLOW0005 {PLACE}/certificates/*.json").stdout),
        "unfinished": wiping.each(lambda host: host.out(f"cat {PLACE}/jobs/*.json | grep -c SLOW0005")),
        "dry": answer(wiping, slow(confirm="")),
    }
    found["again"] = answer(wiping, slow(verification="sample"))
    return found


def test_a_power_cut_leaves_no_certificate_and_the_work_goes_on(wiping, cut, name):
    assert 0 < cut["between"][name]["canaries"] < SIZE // 512, "it was in the middle"
    assert cut["certificates"][name] == "" and cut["unfinished"][name] == "1"
    assert cut["dry"][name]["resumes"] is True
    done = cut["again"][name]
    assert done["resumes"] is True and done["msg"].startswith("Sanitised"), done["msg"]
    how = done["certificate"]["sanitization"]
    assert how["interruptions"] == 1
    assert how["verification"] == "full", "a sample was asked for; after a power cut that is not enough"
    assert wiping.scan(name, "slow")["nonzero"] == 0


def test_what_came_back_in_between_is_found(wiping, cut, name):
    """Half overwritten, killed, and somebody writes to the first half: going on where it was must not hide that."""
    host = wiping.fleet.hosts[name]
    if name == next(iter(HOSTS)):
        for other in HOSTS:
            wiping.fill(other, "slow")
        begin(wiping)
        wiping.each(lambda host: host.out("pkill -KILL -f '[m]edia_sanitize'; sleep 2; printf x | "
                                          "dd of=/run/disks/slow oflag=direct conv=sync,notrunc bs=512 seek=9 2>&1"))  # fmt: skip
        wiping.came_back = answer(wiping, slow())
    done = wiping.came_back[name]
    assert done.get("failed") and "byte 4608 (sector 9) is not what was written" in done["msg"], done["msg"]
    assert host.run(f"ls {PLACE}/jobs/*.json").returncode == 0, "and it must be done again"


@pytest.fixture(scope="module")
def role(wiping, cut) -> Wiping:
    """Apply the role, with exports on a disk of their own."""
    wiping.each(lambda host: host.out(f"{MKFS} $(realpath /run/disks/data); mkdir -p /srv/data; mount /run/disks/data /srv/data; "
                                      "mkdir /srv/data/exports"))  # fmt: skip
    (wiping.directory / "vars.yml").write_text("{}")
    wiping.fleet.variables |= {
        "media_exports": [{"path": "/srv/data/exports", "keep_hours": 24, "approver": "Records committee", "reason": "billing"}],
        "media_declared": [{"id": "M-0001", "model": "MAGNETIC", "serial": "SCSI0002", "size": SIZE, "class": "moderate",
                            "location": "Bench", "custodian": "Example Person"}],
    }  # fmt: skip
    wiping.fleet.ansible("ansible-playbook", str(guests.ROOT / "molecule" / "shared" / "converge.yml"), targets="guests",
                         role="media", scenario_dir=str(wiping.directory))  # fmt: skip
    wiping.each(lambda host: host.out("systemctl start bulwark-media.service"))
    return wiping


def test_a_deleted_export_is_not_on_the_image(role, name):
    host = role.fleet.hosts[name]
    host.out("yes DISK-CANARY-7f3c9a- | head -c 5000000 >/srv/data/exports/list.csv; sync")
    assert role.scan(name, "data")["canaries"] > 100000
    host.out(f"systemctl start bulwark-media.service && sed -i 's/: [0-9.e+]*/: 1.0/g' {PLACE}/exports.json && "
             "systemctl start bulwark-media.service && test ! -e /srv/data/exports/list.csv && sync")  # fmt: skip
    assert role.scan(name, "data")["canaries"] == 0
    assert '"overwritten":true' in host.out(f"grep list.csv {PLACE}/register.jsonl")


def test_the_register_only_grows(role, name):
    host = role.fleet.hosts[name]
    host.out("systemctl start bulwark-media.service")
    for attempt in (f"sed -i 2d {PLACE}/register.jsonl", f": >{PLACE}/register.jsonl", f"rm {PLACE}/register.jsonl"):
        assert host.run(attempt).returncode != 0, attempt
    host.out(f"{PROGRAM} add moved --medium 'MAGNETIC SCSI0002' --by alice --location Bench; {PROGRAM} verify")


def test_the_host_passes_but_for_what_was_left_undone(role, name):
    """Work that failed is unfinished until it is done; that is a finding only after the agreed days."""
    record = role.fleet.assess(name, "media")[name]
    said = {control["id"]: (control["status"], control["why"]) for control in record["controls"]}
    assert {status for status, _why in said.values()} == {"pass"}, said


def test_the_playbook_wipes_signs_and_records(role, tmp_path_factory):
    """As ops run it: dry first, then with the words; a signed certificate lies on the controller."""
    name = next(iter(HOSTS))
    directory = tmp_path_factory.mktemp("certificates")
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", directory / "key"], check=True)
    role.fill(name, "virtio")
    about = {"device": "/run/disks/virtio", "model": "virtio", "serial": SERIALS["virtio"], "size": SIZE}
    variables = {"bulwark_hosts": name, "wipe_media": {**BASIC, **about}, "wipe_media_signing_key": str(directory / "key"),
                 "wipe_media_certificates": str(directory / "made"), "wipe_media_hours": 1}  # fmt: skip
    playbook = str(guests.ROOT / "playbooks" / "wipe_media.yml")
    said = role.fleet.ansible("ansible-playbook", playbook, **variables)
    assert "one pass of zeros" in said and role.scan(name, "virtio")["canaries"] == SIZE // 512
    said = role.fleet.ansible("ansible-playbook", playbook, **variables, wipe_media_confirm=f"erase {SERIALS['virtio']}")
    assert "100 % ended: sanitised" in said and role.scan(name, "virtio")["nonzero"] == 0
    [record] = (directory / "made").glob("*.json")
    assert record.with_suffix(".html").exists()
    signature = record.with_name(record.name + ".sig")
    check = ["ssh-keygen", "-Y", "check-novalidate", "-n", "bulwark-media", "-s", signature]
    assert subprocess.run(check, check=False, input=record.read_bytes(), capture_output=True).returncode == 0
    altered = record.read_bytes().replace(b"VBLK0001", b"VBLK0002")
    assert subprocess.run(check, check=False, input=altered, capture_output=True).returncode != 0
    entries = role.fleet.hosts[name].out(f"tail -n 1 {PLACE}/register.jsonl")
    assert '"event":"signed"' in entries and "SHA256:" in entries and os.path.getsize(record) > 1000
