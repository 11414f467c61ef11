# Copyright: (c) 2026, Bulwark contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Make an encrypted volume out of an empty disk, and keep its recovery key sealed to custodians.

What is ours is known by its record and by the UUID in its LUKS header, both: a disk that holds anything else is never touched. A
run that was broken off is taken up by the next one, unless that was while the header itself was written. Secrets go through files
in memory, never through arguments or the environment.

    /etc/bulwark/disk_encryption/keys/NAME.key        the host's own key, by which it opens the volume (slot 0)
    /var/lib/bulwark/disk_encryption/NAME.json        the record
    /var/lib/bulwark/disk_encryption/escrow/NAME.age  the recovery key, sealed; each custodian alone can open it
"""

from __future__ import annotations

import base64
import contextlib
import glob
import hashlib
import json
import os
import re
import subprocess
from collections.abc import Iterable, Iterator

from ansible_collections.bulwark.hardening.plugins.module_utils import block_devices

KEYS = "/etc/bulwark/disk_encryption/keys"
RECORDS = "/var/lib/bulwark/disk_encryption"
CIPHER, KEY_BITS = "aes-xts-plain64", 512
HOST_SLOT, RECOVERY_SLOTS = 0, (1, 2)  # recovery keys take turns, so that there is one at any moment
ZEROS = bytes(1 << 20)
EDGE, SAMPLE, SAMPLES = 16 << 20, 65536, 256  # bytes and places at which a disk is looked at before it counts as empty
ENVIRONMENT = block_devices.ENVIRONMENT


class LuksError(Exception):
    """A volume is not made, or not kept. The text says why."""


def run(argv: list[str], secret: bytes | None = None, data: bytes | None = None) -> bytes:
    """Run a command and return its output. Raises LuksError with what it said.

    The word SECRET among the arguments becomes a file in memory that holds ``secret``; ``data`` is its standard input.
    """
    handles: tuple[int, ...] = ()
    try:
        if secret is not None:
            handle = os.memfd_create("secret", 0)
            handles = (handle,)
            os.write(handle, secret)
            argv = [f"/proc/self/fd/{handle}" if word == "SECRET" else word for word in argv]
        done = subprocess.run(
            argv, check=False, capture_output=True, timeout=600, env=ENVIRONMENT, cwd="/", pass_fds=handles, input=data or b""
        )
    except (OSError, subprocess.TimeoutExpired) as exc:
        raise LuksError(f"{argv[0]}: {exc}") from exc
    finally:
        for handle in handles:
            os.close(handle)
    if done.returncode:
        said = (done.stderr or done.stdout).decode(errors="replace").strip().splitlines()
        raise LuksError(f"{argv[0]} {argv[1]}: exit {done.returncode}{': ' + said[-1] if said else ''}")
    return done.stdout


def write(path: str, content: bytes) -> None:
    """Write a file that only root reads, all of it or nothing, and durable."""
    os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
    temporary = f"{path}.new"
    if os.path.lexists(temporary):
        os.unlink(temporary)
    handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    with os.fdopen(handle, "wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())
    os.rename(temporary, path)
    directory = os.open(os.path.dirname(path), os.O_RDONLY)
    os.fsync(directory)
    os.close(directory)


def key_path(name: str) -> str:
    """Return where the host's own key of a volume lies."""
    return os.path.join(KEYS, f"{name}.key")


def record_path(name: str) -> str:
    """Return where the record of a volume lies."""
    return os.path.join(RECORDS, f"{name}.json")


def escrow_path(name: str) -> str:
    """Return where the sealed recovery key of a volume lies."""
    return os.path.join(RECORDS, "escrow", f"{name}.age")


def read_record(name: str) -> dict:
    """Return the record of a volume, {} if there is none. Raises LuksError when it cannot be read."""
    path = record_path(name)
    if not os.path.exists(path):
        return {}
    try:
        with open(path, encoding="utf-8") as stream:
            return json.load(stream)
    except (OSError, ValueError) as exc:
        raise LuksError(f"{path}: {exc}") from exc


def keep_record(name: str, record: dict) -> None:
    """Write the record of a volume."""
    write(record_path(name), f"{json.dumps(record, indent=1, sort_keys=True)}\n".encode())


def find(identity: dict) -> str:
    """Return the path of the one disk that is meant ({model, serial, size}). Raises LuksError when it is not alone."""
    listed = json.loads(block_devices.run(["lsblk", "--json", "--bytes", "--nodeps", "--output", block_devices.COLUMNS]))
    disks = [block_devices.describe(node, node) for node in listed["blockdevices"] if node["type"] == "disk"]
    wanted = {key: str(identity[key]) for key in ("model", "serial", "size")}
    fitting = [disk["path"] for disk in disks if all(str(disk[key]) == wanted[key] for key in wanted)]
    if len(fitting) != 1:
        there = "; ".join(f"{disk['model']!r} {disk['serial']!r} {disk['size']}" for disk in disks if disk["serial"])
        many = f"{len(fitting)} disks are" if fitting else "no disk is"
        meant = f"model {wanted['model']!r}, serial {wanted['serial']!r} and {wanted['size']} bytes"
        raise LuksError(f"{many} of {meant}; here are: {there}")
    return fitting[0]


@contextlib.contextmanager
def held(path: str) -> Iterator[str]:
    """Keep a device open, and give its "major:minor": as long as it is open, no other device gets its name."""
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        number = os.fstat(handle).st_rdev
        yield f"{os.major(number)}:{os.minor(number)}"
    finally:
        os.close(handle)


def written(path: str, size: int) -> int | None:
    """Return where on a disk there is something other than zeros: both ends are looked at closely, the rest by samples."""
    places = [(0, min(EDGE, size)), (max(0, size - EDGE), min(EDGE, size))]
    step = max(SAMPLE, size // SAMPLES // SAMPLE * SAMPLE)
    places += [(place, SAMPLE) for place in range(0, max(0, size - SAMPLE), step)]
    with open(path, "rb", buffering=0) as stream:
        for place, length in places:
            stream.seek(place)
            while length > 0:
                block = stream.read(min(length, len(ZEROS)))
                if not block:
                    break
                if block != ZEROS[: len(block)]:
                    return place
                place, length = place + len(block), length - len(block)
    return None


def ours(facts: dict, record: dict, uuid: str) -> bool:
    """Return whether a disk holds the volume of a record: its LUKS header has the UUID, and nothing else is on it."""
    mine = [(s["type"], s["uuid"]) for s in facts["signatures"] if s["name"] == facts["name"]]
    return bool(record) and record["uuid"] == uuid and mine == [("crypto_LUKS", uuid)]


def slots(device: str) -> dict[str, dict]:
    """Return the key slots of a volume, by number. Raises LuksError when it is no LUKS2."""
    return json.loads(run(["cryptsetup", "luksDump", "--dump-json-metadata", device]))["keyslots"]


def sealed(name: str, record: dict, recipients: list[str]) -> bool:
    """Return whether the recovery key lies sealed for exactly these custodians, as it was when it was made."""
    known = record.get("recovery", {})
    if known.get("recipients") != sorted(recipients) or not os.path.exists(escrow_path(name)):
        return False
    with open(escrow_path(name), "rb") as stream:
        return hashlib.sha256(stream.read()).hexdigest() == known["sha256"]


def alone(record: dict, present: Iterable[str]) -> bool:
    """Return whether the recovery key of a record opens the volume, and no former one does any more.

    A former one's slot stays when a change of keys is cut off right before its end.
    """
    slot = record.get("recovery", {}).get("slot")
    return str(slot) in present and not {str(number) for number in RECOVERY_SLOTS if number != slot} & set(present)


def plan(facts: dict, record: dict, wanted: dict) -> list[str]:
    """Return what is to be done: create, seal, fill; nothing if all is there. Raises LuksError when the disk must not be touched.

    ``facts`` is what block_devices.look() says of the disk; ``wanted`` has name, uuid, model, serial, size, recipients.
    """
    if ours(facts, record, wanted["uuid"]):
        steps = []
        if not sealed(wanted["name"], record, wanted["recipients"]) or not alone(record, slots(facts["path"])):
            steps.append("seal")
        if record["stage"] != "done":
            steps.append("fill")
        return steps
    reasons = block_devices.objections(facts, wanted, blank=True)
    if not reasons and (place := written(facts["path"], facts["size"])) is not None:
        reasons = [f"it is not empty: there is something at byte {place}, although it looks like nothing that is known"]
    if record.get("stage") == "done":
        reasons.append(f"{record_path(wanted['name'])} says that the volume was made, and it is not on this disk")
    if os.path.lexists(f"/dev/mapper/{wanted['name']}"):
        reasons.append(f"/dev/mapper/{wanted['name']} is there already, and is something else")
    if not record and os.path.exists(key_path(wanted["name"])):
        reasons.append(f"{key_path(wanted['name'])} is there already, and nobody knows what it opens")
    if reasons:
        raise LuksError(f"{facts['path']} is not touched: {'; '.join(reasons)}")
    return ["create", "seal", "fill"]


def create(device: str, wanted: dict) -> None:
    """Write the LUKS header, with the host's own key."""
    name = wanted["name"]
    identity = {key: wanted[key] for key in ("uuid", "model", "serial", "size", "filesystem")}
    if not os.path.exists(key_path(name)):
        write(key_path(name), os.urandom(64))
    keep_record(name, {**identity, "stage": "begun"})
    run([
        "cryptsetup", "luksFormat", "--batch-mode", "--type", "luks2", "--uuid", wanted["uuid"], "--label", name,
        "--cipher", CIPHER, "--key-size", str(KEY_BITS), "--hash", "sha512", "--key-slot", str(HOST_SLOT),
        *derivation(wanted), "--key-file", key_path(name), device,
    ])  # fmt: skip


def derivation(wanted: dict) -> list[str]:
    """Return how a key slot makes guessing dear."""
    return ["--pbkdf", "argon2id", "--pbkdf-memory", str(wanted["pbkdf_memory_mib"] * 1024), "--pbkdf-parallel", "2"]


def recovery_key() -> bytes:
    """Return a new recovery key that a person can type: 40 letters and digits in groups of five, 200 bits."""
    text = base64.b32encode(os.urandom(25)).decode().lower()
    return "-".join(text[here : here + 5] for here in range(0, len(text), 5)).encode()


def seal(device: str, wanted: dict) -> None:
    """Give the volume a new recovery key, sealed to the custodians, and take the old one away."""
    name, record = wanted["name"], read_record(wanted["name"])
    old = record.get("recovery", {}).get("slot")
    slot = next(number for number in RECOVERY_SLOTS if number != old)
    secret, recipients = recovery_key(), sorted(wanted["recipients"])
    escrow = run(["age", "--armor", *(word for one in recipients for word in ("--recipient", one))], data=secret)
    if str(slot) in slots(device):  # left behind by a run that was broken off: nobody has its key
        kill(device, name, slot)
    run(
        ["cryptsetup", "luksAddKey", "--batch-mode", "--key-file", key_path(name), "--key-slot", str(slot), *derivation(wanted),
         device, "SECRET"],
        secret=secret,
    )  # fmt: skip
    run(["cryptsetup", "open", "--test-passphrase", "--key-slot", str(slot), "--key-file", "SECRET", device], secret=secret)
    write(escrow_path(name), escrow)
    record["recovery"] = {"slot": slot, "recipients": recipients, "sha256": hashlib.sha256(escrow).hexdigest()}
    keep_record(name, record)
    if old is not None and str(old) in slots(device):
        kill(device, name, old)


def kill(device: str, name: str, slot: int) -> None:
    """Take a key slot away."""
    run(["cryptsetup", "luksKillSlot", "--batch-mode", "--key-file", key_path(name), device, str(slot)])


def mapped(name: str) -> str:
    """Return what the kernel says that a mapping of this name is; nothing if there is none."""
    places = [place for place in glob.glob("/sys/block/dm-*/dm") if block_devices.text(f"{place}/name").strip() == name]
    return block_devices.text(f"{places[0]}/uuid").strip() if places else ""


def fill(device: str, wanted: dict) -> None:
    """Put a filesystem, or swap, into the new volume. It is closed again afterwards: opening it is its unit's business."""
    name, kind = wanted["name"], wanted["filesystem"]
    mapper = f"/dev/mapper/{name}"
    if not os.path.exists(mapper):
        run(["cryptsetup", "open", "--key-file", key_path(name), device, name])
    if not mapped(name).startswith(f"CRYPT-LUKS2-{wanted['uuid'].replace('-', '').lower()}-"):
        raise LuksError(f"{mapper} is another volume, and stays as it is")
    try:
        if not block_devices.signatures(mapper):
            run(["mkswap", "--label", name[:15], mapper] if kind == "swap" else ["mkfs.ext4", "-q", "-L", name[:16], mapper])
    finally:
        run(["cryptsetup", "close", name])
    keep_record(name, {**read_record(name), "stage": "done"})


STEPS = {"create": create, "seal": seal, "fill": fill}


def records() -> list[str]:
    """Return the names of the volumes that have a record."""
    return sorted(re.sub(r"\.json$", "", os.path.basename(path)) for path in glob.glob(f"{RECORDS}/*.json"))
