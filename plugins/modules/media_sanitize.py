#!/usr/bin/python
# Copyright: (c) 2026, Bulwark contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: media_sanitize
short_description: Sanitise a medium as NIST SP 800-88 has it, read it back, and certify it
version_added: 0.1.0
description:
  - Finds out what a disk is, what uses it and what it can do, chooses a method and says why. Without O(confirm) that is all.
  - A disk that is mounted, swapped to, held by LVM, md or device-mapper (active or not), behind a loop device, open in a program,
    named in fstab or crypttab, or part of the running system is refused; so is one whose model, serial number and size are not
    exactly those that were given, or are those of another disk, too (another path to it), and one that hides sectors.
  - A class below the one that the register knows is refused.
  - What a drive or a tool reports is not believed. What was there before must be gone, and all of the medium, or a representative
    sample of it, must read back as zeros, past the kernel's caches.
  - Interrupted, it goes on where it was when it is run again, and then reads everything back. Until then there is no certificate.
    After a failure it begins anew, and nothing that was seen before counts.
  - Start, end, failure and progress go to the journal under C(bulwark-media), and into the register of media.
author:
  - Bulwark contributors (@bulwark)
options:
  device:
    description: The whole disk.
    type: path
    required: true
  model:
    description: Its model, exactly as C(lsblk) shows it; C(virtio) for a disk of virtio, which has none.
    type: str
    required: true
  serial:
    description: Its serial number, exactly as C(lsblk) shows it.
    type: str
    required: true
  size:
    description: Its size in bytes, exactly.
    type: int
    required: true
  confirm:
    description: The words C(erase) and the serial number. Without them nothing is changed, and what would be done is returned.
    type: str
    default: ""
  classification:
    description: Class of the most sensitive data that was ever on it.
    type: str
    choices: [low, moderate, high]
    required: true
  category:
    description: What must be reached. What was only cleared must be destroyed.
    type: str
    choices: [clear, purge]
    default: purge
  method:
    description:
      - How. V(auto) takes the best that the medium has; V(discard), V(nvme_format) and V(crypto_erase) must be asked for.
    type: str
    choices:
      - auto
      - overwrite
      - discard
      - crypto_erase
      - nvme_format
      - nvme_format_crypto
      - nvme_sanitize_crypto
      - nvme_sanitize_block
      - nvme_sanitize_overwrite
      - ata_sanitize_crypto
      - ata_sanitize_block
      - ata_sanitize_overwrite
      - ata_erase_enhanced
    default: auto
  encrypted_before_data:
    description:
      - For V(crypto_erase), that somebody vouches for it that LUKS was there before any data, and that no copy of its header is
        kept. Otherwise it counts as a clear.
    type: bool
    default: false
  disposition:
    description: Where the medium goes. Class V(high) and what was only cleared may only be destroyed.
    type: str
    choices: [reuse_internal, reuse_external, destroy]
    required: true
  destination:
    description: Details of where it goes.
    type: str
    default: ""
  verification:
    description: How much is read back; V(sample) is a tenth as SP 800-88 has it. After an interruption it is always everything.
    type: str
    choices: [full, sample]
    default: full
  retention_cleared_by:
    description: Who found that no retention period runs any more for what is on it.
    type: str
    default: ""
  retention_cleared_on:
    description: When they found that, as a date (YYYY-MM-DD).
    type: str
    default: ""
  performed_by:
    description: Who does it.
    type: dict
    default: {}
    suboptions: &person
      name:
        description: Name.
        type: str
        default: ""
      title:
        description: Title.
        type: str
        default: ""
      organisation:
        description: Organisation.
        type: str
        default: ""
      location:
        description: Location.
        type: str
        default: ""
      phone:
        description: Telephone.
        type: str
        default: ""
  validated_by:
    description: Who looks at the result; another person.
    type: dict
    default: {}
    suboptions: *person
  property_number:
    description: The medium's own number, as in the inventory of media.
    type: str
    default: ""
  source:
    description: User or computer it was in.
    type: str
    default: ""
  backed_up:
    description: Whether its data was backed up.
    type: str
    choices: ["yes", "no", unknown]
    default: unknown
  backup_location:
    description: Where that backup is.
    type: str
    default: ""
  notes:
    description: Anything else for the certificate.
    type: str
    default: ""
  directory:
    description: Where register, certificates and unfinished work lie.
    type: path
    default: /var/lib/bulwark/media
attributes:
  check_mode:
    description: Says what would be done, as without O(confirm).
    support: full
  diff_mode:
    description: There is no difference to show.
    support: none
seealso:
  - module: bulwark.hardening.media_register
"""

EXAMPLES = r"""
- name: See what would be done
  bulwark.hardening.media_sanitize: &disk
    device: /dev/sdb
    model: EXAMPLE DISK 4T
    serial: EX1234567
    size: 4000787030016
    classification: moderate
    disposition: reuse_internal
    retention_cleared_by: Records committee
    retention_cleared_on: "2026-11-20"
    performed_by: {name: Example Person}
    validated_by: {name: Example Colleague}

- name: Do it
  bulwark.hardening.media_sanitize:
    <<: *disk
    confirm: erase EX1234567
"""

RETURN = r"""
medium:
  description: What the medium is.
  type: dict
  returned: always
  sample: {path: /dev/sdb, model: EXAMPLE DISK 4T, serial: EX1234567, size: 4000787030016, type: magnetic}
plan:
  description: Method, category, why, why not others, and the steps; empty if nothing fits.
  type: dict
  returned: always
  sample: {method: overwrite, category: clear, why: one pass of zeros, others: [], steps: []}
objections:
  description: Why it is refused; nothing is changed while there is any.
  type: list
  elements: str
  returned: always
  sample: [sdb1 is mounted at /srv]
resumes:
  description: Whether unfinished work would be, or was, taken up.
  type: bool
  returned: always
  sample: false
progress:
  description: A file on the host that says how far it is. It begins with the percentage.
  type: str
  returned: always
  sample: /var/lib/bulwark/media/jobs/4f1d.progress
certificate:
  description: The certificate.
  type: dict
  returned: when sanitised
  sample: {certificate: 20261125T010203Z-4f1d}
certificate_path:
  description: Where it lies on the host; beside it the same as .html.
  type: str
  returned: when sanitised
  sample: /var/lib/bulwark/media/certificates/20261125T010203Z-4f1d.json
certificate_sha256:
  description: SHA-256 of the certificate's file.
  type: str
  returned: when sanitised
  sample: 9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08
"""

import contextlib
import fcntl
import glob
import json
import os
import re
import subprocess
import time

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.bulwark.hardening.plugins.module_utils import block_devices, media, media_device, media_register
from ansible_collections.bulwark.hardening.plugins.module_utils.block_devices import DeviceError
from ansible_collections.bulwark.hardening.plugins.module_utils.media import MediaError
from ansible_collections.bulwark.hardening.plugins.module_utils.media_device import DeviceLies
from ansible_collections.bulwark.hardening.plugins.module_utils.media_register import RegisterError

BLKRRPART = 0x125F
VERSIONS = {"nvme": ["nvme", "version"], "hdparm": ["hdparm", "-V"], "cryptsetup": ["cryptsetup", "--version"],
            "blkdiscard": ["blkdiscard", "--version"]}  # fmt: skip


def now() -> str:
    """Return the time, in UTC."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def abilities(facts: dict) -> tuple[dict[str, str], dict]:
    """Return ({method: "" or why not}, {payloads, luks, hidden}) of a medium, by asking it."""
    able = {"overwrite": "", "discard": "" if facts["discards"] else "the medium takes no discards"}
    more: dict = {"payloads": [], "luks": [], "hidden": ""}
    if facts["transport"] == "nvme":
        controller = re.sub(r"n\d+$", "", facts["path"])
        name = os.path.basename(controller)
        count = namespaces(name)
        try:
            own = block_devices.text(f"/sys/class/nvme/{name}/serial")  # udev writes another character for some
            if re.sub(r"[\W_]", "", own) != re.sub(r"[\W_]", "", facts["serial"]):
                raise ValueError(f"{controller} is not the controller of {facts['path']}")
            told = json.loads(block_devices.run(["nvme", "id-ctrl", controller, "--output-format=json"]))
            if int(told.get("oacs", 0)) & 8:  # there may be some that no controller shows, and what is in them is not gone
                listed = block_devices.run(["nvme", "list-ns", controller, "--all", "--output-format=json"])
                count = max(count, len(json.loads(listed)["nsid_list"]))
            able.update(media.nvme_capabilities(told, count))
        except (DeviceError, KeyError, TypeError, ValueError) as exc:
            able.update(dict.fromkeys((name for name in media.METHODS if name.startswith("nvme_")), str(exc)))
        if count != 1:
            able.update(dict.fromkeys(("overwrite", "discard", "crypto_erase"), media.several(count)))
    # Behind a controller for SAS, a drive of ATA has another transport, and gives itself away by its vendor.
    if facts["transport"] in ("sata", "ata") or block_devices.text(f"/sys/block/{facts['name']}/device/vendor").strip() == "ATA":
        try:
            identify = block_devices.run(["hdparm", "-I", facts["path"]])
            able.update(media.ata_capabilities(identify))
            more["hidden"] = hidden(facts["path"], identify, facts["size"] // 512)
        except DeviceError as exc:
            able.update(dict.fromkeys((name for name in media.METHODS if name.startswith("ata_")), str(exc)))
            more["hidden"] = f"the drive cannot be asked whether it hides sectors: {exc}"
    for signature in facts["signatures"]:
        if signature["type"] == "crypto_LUKS" and f"/dev/{signature['name']}" not in more["luks"]:
            path = f"/dev/{signature['name']}"
            try:
                start, end = place_of(signature["name"], facts)
                dump = block_devices.run(["cryptsetup", "luksDump", path])
                more["payloads"].append([start + at for at in media.luks_payload(dump, end - start)])
                more["luks"].append(path)
                able.setdefault("crypto_erase", "")
            except (DeviceError, MediaError, OSError, ValueError) as exc:
                able["crypto_erase"] = str(exc)
    return able, more


def namespaces(controller: str, root: str = "/sys") -> int:
    """Return how many namespaces a drive has that any of its controllers shows; a second path to one counts as one."""
    systems = [place for place in glob.glob(f"{root}/class/nvme-subsystem/*") if os.path.exists(f"{place}/{controller}")]
    others = {name for place in systems for name in os.listdir(place) if re.fullmatch(r"nvme\d+", name)}
    places = [*systems, *(f"{root}/class/nvme/{name}" for name in {controller, *others})]
    names = {name for place in places if os.path.isdir(place) for name in os.listdir(place)}
    return len({re.sub(r"c\d+", "", name) for name in names if re.fullmatch(r"nvme\d+(c\d+)?n\d+", name)})


def hidden(path: str, identify: str, sectors: int) -> str:
    """Return what is wrong if a drive of ATA hides sectors, or does not say whether it does although it knows how to.

    ``identify`` is what C(hdparm -I) says, ``sectors`` (of 512 bytes) how long the drive is said to be now.
    """
    said = {}
    for question in ("-N", "--dco-identify"):
        with contextlib.suppress(DeviceError):
            said[question] = block_devices.run(["hdparm", question, path])
    if "Host Protected Area feature set" in identify and "max sectors" not in said.get("-N", ""):
        return "the drive knows how to hide sectors, and does not say whether it does (hdparm -N)"
    number = media.hidden_sectors(said.get("-N", ""), said.get("--dco-identify", ""), sectors)
    where = "hdparm -N, hdparm --dco-identify"
    return f"the drive hides {number} sectors ({where}); make them visible first, or they are not sanitised" if number else ""


def place_of(name: str, facts: dict) -> tuple[int, int]:
    """Return where a partition lies on its disk, [start, end) in bytes; of the disk itself, all of it."""
    if name == facts["name"]:
        return 0, facts["size"]
    numbers = []
    for part in ("start", "size"):
        with open(f"/sys/class/block/{name}/{part}", encoding="ascii") as stream:
            numbers.append(int(stream.read()) * 512)
    return numbers[0], numbers[0] + numbers[1]


def speaks_against(params: dict, facts: dict, more: dict, category: str) -> list[str]:
    """Return everything that speaks against touching a medium."""
    found = block_devices.objections(facts, {key: params[key] for key in ("model", "serial", "size")})
    if more["hidden"]:
        found.append(more["hidden"])
    found += media.retention_objections(params["retention_cleared_by"], params["retention_cleared_on"], now()[:10])
    if category:
        found += media.disposition_objections(params["classification"], category, params["disposition"])
    found += outranked(params, facts)
    names = [(params[role] or {}).get("name") or "" for role in ("performed_by", "validated_by")]
    if not all(names) or names[0] == names[1]:
        found.append("performed_by and validated_by must name two people: a certificate has two signers (UMDNJ-I-2)")
    return found


def outranked(params: dict, facts: dict) -> list[str]:
    """Return what is wrong with the class that is given, where the register knows another."""
    medium, classes = media_register.medium_name(facts), ("low", "moderate", "high")
    try:
        known = media_register.states(media_register.examine(media_register.load(params["directory"]))[0]).get(medium, {})
    except (RegisterError, KeyError) as exc:
        return [f"the register cannot be asked: {exc}"]
    if known.get("class") not in classes or classes.index(known["class"]) <= classes.index(params["classification"]):
        return []
    return [f"UMDNJ-I-1: the register knows it as of class {known['class']}, and classification is {params['classification']}"]


def vendor(facts: dict) -> str:
    """Return who made a medium, as far as it says so."""
    said = block_devices.text(f"/sys/block/{facts['name']}/device/vendor").strip()
    return said if said and said != "ATA" and not said.startswith("0x") else facts["model"].split(" ")[0]


class Work:
    """The sanitisation of one medium: its steps, how far it is, and what is known at its end."""

    def __init__(self, module: AnsibleModule, facts: dict, plan: dict, resumed: dict | None) -> None:
        """Begin, or take up what was begun."""
        self.params, self.module, self.facts, self.plan = module.params, module, facts, plan
        self.directory = module.params["directory"]
        self.key = media.key_of(facts)
        self.place = os.path.join(self.directory, "jobs", self.key)
        self.medium = media_register.medium_name(facts)
        self.rates: dict[str, float] = {}
        self.verified = 0
        self.told = -10
        self.job = resumed or {
            "medium": self.medium, "method": plan["method"], "started_at": now(), "step": 0, "done": 0, "interruptions": 0,
            "seed": int.from_bytes(os.urandom(8), "big"), "witnesses": None, "plan": plan,
        }  # fmt: skip
        if resumed:
            self.job["interruptions"] += 1
            if self.job.pop("failed", False):  # nothing that was known then counts: the medium may have been used since
                self.job.update(method=plan["method"], plan=plan, witnesses=None, step=0, done=0)
            for step in plan["steps"]:  # nobody knows what happened to it in between
                if step["do"] == "verify":
                    step["extent"] = "full"

    def save(self) -> None:
        """Write down how far it is."""
        media_register.write_json(f"{self.place}.json", self.job)

    def tell(self, phase: str, done: int, size: int, began: float, first: int) -> None:
        """Say how far it is, in the progress file and, each tenth, in the journal."""
        steps = [step for step in self.plan["steps"] if step["do"] in ("overwrite", "verify")]
        whole = sum(media.total(step["regions"]) for step in steps)
        before = sum(
            media.total(step["regions"]) for step in steps[: sum(s in steps for s in self.plan["steps"][: self.job["step"]])]
        )
        percent = int(100 * (before + done) / max(whole, 1))
        seconds = max(time.monotonic() - began, 1e-6)
        rate = (done - first) / seconds / 1e6
        left = int((size - done) / max(rate * 1e6, 1))
        text = f"{min(percent, 99)} {phase} {done} of {size} bytes, {rate:.1f} MB/s, {left} s left in this step"
        with open(f"{self.place}.progress", "w", encoding="utf-8") as stream:
            stream.write(text + "\n")
        if percent >= self.told + 10:
            self.told = percent
            media_register.log(
                "progress", {"medium": self.medium, "percent": percent, "phase": phase, "rate_mb_s": round(rate, 1)}
            )
        self.rates[phase] = rate

    def run(self, descriptor: int) -> dict:
        """Do what is left of the steps, and return the certificate. Raises DeviceLies."""
        steps = self.plan["steps"]
        while self.job["step"] < len(steps):
            step = steps[self.job["step"]]
            if step["do"] in ("command", "changed"):
                if self.job["witnesses"] is None:
                    regions = next(other["regions"] for other in steps if "regions" in other)
                    self.job["witnesses"] = media_device.witnesses(descriptor, regions, self.job["seed"])
                    self.save()
                self.command(step) if step["do"] == "command" else self.changed(descriptor)
            elif step["do"] == "overwrite":
                self.overwrite(descriptor, step["regions"])
            else:
                self.verify(descriptor, step)
            self.job["step"] += 1
            self.job["done"] = 0
            self.save()
        return self.certify()

    def command(self, step: dict) -> None:
        """Have a tool do something. That it reports success means nothing yet; that it reports failure does."""
        with open(f"{self.place}.progress", "w", encoding="utf-8") as stream:
            stream.write(f"0 {step['argv'][0]} at work\n")
        media_register.log("command", {"medium": self.medium, "command": " ".join(step["argv"])})
        if step["wait"] and self.pending(step["wait"]):  # begun before the power was cut: the drive goes on by itself
            self.wait(step["wait"])
            return
        try:
            done = subprocess.run(step["argv"], check=False, stdin=subprocess.DEVNULL, capture_output=True, text=True,
                                  env=block_devices.ENVIRONMENT, cwd="/")  # fmt: skip
        except OSError as exc:
            raise DeviceLies(f"{step['argv'][0]}: {exc.strerror}") from exc
        if done.returncode:
            said = (done.stderr or done.stdout).strip().splitlines()
            raise DeviceLies(f"{' '.join(step['argv'])}: exit {done.returncode}{': ' + said[-1] if said else ''}")
        if step["wait"]:
            self.wait(step["wait"])

    def pending(self, kind: str) -> bool:
        """Return whether a drive is still at a sanitize of its own."""
        said = self.status(kind)
        return said[2] & 7 == 2 if kind == "nvme" else b"In Process" in said

    def status(self, kind: str) -> bytes:
        """Return what a drive says of its last sanitize. Raises DeviceLies, DeviceError."""
        if kind == "ata":
            return block_devices.run(["hdparm", "--sanitize-status", self.facts["path"]]).encode()
        controller = re.sub(r"n\d+$", "", self.facts["path"])
        done = subprocess.run(["nvme", "sanitize-log", controller, "--raw-binary"], check=False, stdin=subprocess.DEVNULL,
                              capture_output=True, env=block_devices.ENVIRONMENT, cwd="/")  # fmt: skip
        if done.returncode or len(done.stdout) < 4:
            raise DeviceLies(f"nvme sanitize-log {controller}: exit {done.returncode}, {len(done.stdout)} bytes")
        return done.stdout

    def wait(self, kind: str) -> None:
        """Wait until a drive's own sanitize has ended. Raises DeviceLies if the drive does not say that it succeeded.

        Cells that cannot be addressed cannot be read back, so that is what a purge rests on.
        """
        while self.pending(kind):
            time.sleep(2)
        said = media.sanitize_objection(kind, self.status(kind))
        if said:
            raise DeviceLies(f"the drive does not say that its sanitize succeeded: {said}")

    def changed(self, descriptor: int) -> None:
        """See that what was there is gone. Raises DeviceLies."""
        media_device.forget_caches(descriptor)
        if media_device.size_of(descriptor) != self.facts["size"]:
            raise DeviceLies("the device has another size now")
        known = self.job["witnesses"]
        left = media_device.unchanged(descriptor, known)
        if left:
            where = f"{len(left)} of {len(known)} places still hold what they held, the first at byte {left[0]}"
            raise DeviceLies(f"the tool reports success, and {where}")

    def overwrite(self, descriptor: int, regions: list[list[int]]) -> None:
        """Write zeros, from where it was."""
        size, first, began = media.total(regions), self.job["done"], time.monotonic()

        def report(done: int) -> None:
            self.job["done"] = done
            self.save()
            self.tell("write", done, size, began, first)

        media_device.overwrite(descriptor, regions, first, report)

    def verify(self, descriptor: int, step: dict) -> None:
        """Read back."""
        media_device.forget_caches(descriptor)
        regions = step["regions"]
        if step["extent"] == "sample":
            regions = media_device.sampled(regions, self.job["seed"])
        size, began = media.total(regions), time.monotonic()
        self.verified = media_device.verify(descriptor, regions, lambda done: self.tell("read", done, size, began, 0))

    def certify(self) -> dict:
        """Write the certificate, record it, and end the work."""
        step = self.plan["steps"][-1]
        if not self.verified:  # the power was cut after everything was read, before anything was certified
            self.job.update(step=len(self.plan["steps"]) - 1, done=0)
            raise Again
        record = certificate(self, step)
        lacking = media.missing_fields(record)
        if lacking:
            raise MediaError(f"the certificate would lack {', '.join(lacking)}")
        text = media.canonical(record)
        place = os.path.join(self.directory, "certificates", record["certificate"])
        for suffix, content in ((".json", text), (".html", media.certificate_html(record))):
            write(place + suffix, content)
        entry = {
            "event": "sanitised", "medium": self.medium, "by": self.params["performed_by"]["name"],
            "class": self.params["classification"], "category": self.plan["category"], "method": self.plan["method"],
            "disposition": self.params["disposition"], "certificate": f"{place}.json", "sha256": media.digest(text),
        }  # fmt: skip
        media_register.append(self.directory, [entry])
        os.unlink(f"{self.place}.json")
        self.ended("sanitised")
        return {"certificate": record, "certificate_path": f"{place}.json", "certificate_sha256": media.digest(text)}

    def ended(self, how: str) -> None:
        """Say in the progress file that it is over."""
        with open(f"{self.place}.progress", "w", encoding="utf-8") as stream:
            stream.write(f"100 ended: {how}\n")

    def failed(self, why: str) -> None:
        """Record that it failed; the next try begins at the start, and looks at everything anew."""
        self.job.update(step=0, done=0, failed=True)
        self.save()
        media_register.append(
            self.directory, [{"event": "failed", "medium": self.medium, "by": self.params["performed_by"]["name"], "reason": why}]
        )
        self.ended(f"failed: {why}")


class Again(Exception):
    """The last step must be done once more."""


def write(path: str, text: str) -> None:
    """Write a file that only root reads, whole or not at all."""
    os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
    fresh = f"{path}.new"
    with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600), "w", encoding="utf-8") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())
    os.replace(fresh, path)
    handle = os.open(os.path.dirname(path), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(handle)  # the register is about to name it
    finally:
        os.close(handle)


def tools(plan: dict, module: AnsibleModule) -> list[str]:
    """Return which tools were used, with versions."""
    found = [f"bulwark.hardening.media_sanitize, ansible-core {module.ansible_version}, kernel {os.uname().release}"]
    for name in sorted({step["argv"][0] for step in plan["steps"] if step["do"] == "command"}):
        try:
            said = block_devices.run(VERSIONS[name]).strip().splitlines()
            found.append(said[0] if said and name in said[0] else f"{name} {said[0] if said else ''}".strip())
        except DeviceError as exc:
            found.append(f"{name} ({exc})")
    return found


def certificate(work: Work, last: dict) -> dict:
    """Return the certificate of a finished sanitisation, with the fields of SP 800-88's sample."""
    params, facts, plan, job = work.params, work.facts, work.plan, work.job
    size = media.total(last["regions"])
    extent = {"full": "full", "sample": "representative sample"}[last["extent"]]
    known = len(job["witnesses"] or [])
    result = "passed: all that was read was zeros"
    if any(step["do"] == "changed" for step in plan["steps"]):
        result += f"; {known} places that held data before the drive's own command held other data after it"
    if plan["method"] == "crypto_erase":
        result += "; the rest is ciphertext without its keys, and was not looked at"
    moment = now()
    chosen = f", chosen with seed {job['seed']}" if last["extent"] == "sample" else ""
    return {
        "schema": "bulwark.sanitization/1",
        "certificate": f"{re.sub('[-:]', '', moment)}-{work.key}",
        "host": os.uname().nodename,
        "performed_by": person(params["performed_by"]),
        "validated_by": person(params["validated_by"]),
        "media": {
            "vendor": vendor(facts), "type": f"{media.medium_type(facts)}, {facts['transport']}",
            **{key: facts[key] for key in ("model", "serial", "wwn", "size")},
            **{key: params[key] for key in ("property_number", "source", "classification", "backed_up", "backup_location")},
        },
        "sanitization": {
            "method_type": plan["category"], "method_used": media.METHODS[plan["method"]][0],
            "method_details": media.METHODS[plan["method"]][1], "method": plan["method"], "why": plan["why"],
            "others": plan["others"], "steps": plan["steps"], "tools": tools(plan, work.module), "verification": extent,
            "verified": f"{work.verified} of {size} bytes{chosen}", "verification_result": result,
            "started_at": job["started_at"], "finished_at": moment, "interruptions": job["interruptions"],
            "rate": {f"{phase}_mb_s": round(rate, 1) for phase, rate in work.rates.items()},
            "post_classification": "none" if plan["category"] == "purge" else params["classification"],
            "retention": f"cleared by {params['retention_cleared_by']} on {params['retention_cleared_on']}",
            "notes": params["notes"],
        },
        "destination": {"disposition": params["disposition"], "details": params["destination"]},
    }  # fmt: skip


def person(given: dict) -> dict:
    """Return a person as the certificate has them."""
    return {key: given.get(key) or "" for key in media.PERSON}


def unfinished(params: dict, facts: dict, kind: str) -> dict | None:
    """Return the work that was begun on a medium, if it is of use for what is wanted now, or failed."""
    try:
        with open(os.path.join(params["directory"], "jobs", f"{media.key_of(facts)}.json"), encoding="utf-8") as stream:
            job = json.load(stream)
    except FileNotFoundError:
        return None
    if job.get("failed"):
        return job
    reached = media.category_of(job["method"], kind, params["encrypted_before_data"])
    fits = params["method"] in ("auto", job["method"]) and (reached == "purge" or params["category"] == "clear")
    return job if fits else None


def make_plan(params: dict, facts: dict, able: dict, more: dict, kind: str) -> tuple[dict, dict | None]:
    """Return (what is to be done, the unfinished work that this takes up). Raises MediaError.

    What was begun goes on as it was planned: its LUKS header, say, can no longer be seen. Only names of devices may be others.
    What failed is planned anew, or it would rest on what was on the medium then.
    """
    job = unfinished(params, facts, kind)
    if job and not job.get("failed"):
        plan = job["plan"]
        luks = [facts["path"] + suffix for suffix in plan["luks"]]
        plan["category"] = media.category_of(plan["method"], kind, params["encrypted_before_data"])
    else:
        plan = media.choose(kind, able, params["category"], params["method"], params["encrypted_before_data"])
        luks = more["luks"]
        plan.update(payloads=more["payloads"], luks=[path[len(facts["path"]) :] for path in luks])
    plan["steps"] = media.steps_of(plan["method"], facts, plan["payloads"], luks, params["verification"])
    return plan, job


def sanitise(module: AnsibleModule, facts: dict, plan: dict, job: dict | None) -> dict:
    """Do it. Raises DeviceLies, MediaError, RegisterError, DeviceError."""
    directory = module.params["directory"]
    os.makedirs(os.path.join(directory, "jobs"), mode=0o700, exist_ok=True)
    os.chmod(directory, 0o700)
    descriptor = media_device.open_alone(facts["path"])
    try:
        # Now that nobody else can come in: is it still what it was when it was looked at?
        again = block_devices.look(facts["path"], claim=False)
        found = speaks_against(module.params, again, {"hidden": ""}, plan["category"])
        about = os.fstat(descriptor)
        same = (
            f"{os.major(about.st_rdev)}:{os.minor(about.st_rdev)}" == again["device"]
            and media_device.size_of(descriptor) == facts["size"]
        )
        if found or not same:
            raise DeviceLies(f"the device changed while it was looked at: {found}")
        work = Work(module, facts, plan, job)
        work.save()
        by = module.params["performed_by"]["name"]
        words = {"by": by, "class": module.params["classification"], "method": plan["method"], "size": facts["size"]}
        if work.job["interruptions"]:
            words["interruptions"] = work.job["interruptions"]
        media_register.append(directory, [{"event": "started", "medium": work.medium, **words}])
        try:
            try:
                return work.run(descriptor)
            except Again:
                return work.run(descriptor)
        except (DeviceLies, DeviceError, MediaError, OSError) as exc:
            work.failed(str(exc))
            raise DeviceLies(str(exc)) from exc
    finally:
        os.close(descriptor)
        reread(facts["path"])


def reread(path: str) -> None:
    """Have the kernel forget partitions that are gone. If it will not, the next start does."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return
    try:
        fcntl.ioctl(handle, BLKRRPART)
    except OSError:
        pass
    finally:
        os.close(handle)


def main() -> None:
    """Look, choose, and do it if it is confirmed."""
    people = {key: {"type": "str", "default": ""} for key in media.PERSON}
    texts = ("confirm", "destination", "retention_cleared_by", "retention_cleared_on", "property_number", "source",
             "backup_location", "notes")  # fmt: skip
    module = AnsibleModule(
        argument_spec={
            "device": {"type": "path", "required": True},
            "model": {"type": "str", "required": True},
            "serial": {"type": "str", "required": True},
            "size": {"type": "int", "required": True},
            "classification": {"type": "str", "required": True, "choices": ["low", "moderate", "high"]},
            "category": {"type": "str", "choices": ["clear", "purge"], "default": "purge"},
            "method": {"type": "str", "choices": ["auto", *media.METHODS], "default": "auto"},
            "encrypted_before_data": {"type": "bool", "default": False},
            "disposition": {"type": "str", "required": True, "choices": list(media.DISPOSITIONS)},
            "verification": {"type": "str", "choices": ["full", "sample"], "default": "full"},
            "performed_by": {"type": "dict", "default": {}, "options": people},
            "validated_by": {"type": "dict", "default": {}, "options": people},
            "backed_up": {"type": "str", "choices": ["yes", "no", "unknown"], "default": "unknown"},
            "directory": {"type": "path", "default": media_register.DIRECTORY},
            **{name: {"type": "str", "default": ""} for name in texts},
        },
        supports_check_mode=True,
    )
    params = module.params
    try:
        facts = block_devices.look(params["device"])
        able, more = abilities(facts)
    except (DeviceError, OSError) as exc:
        module.fail_json(msg=f"Refused: {exc}", objections=[str(exc)])
    kind = media.medium_type(facts)
    plan, job, fits = {}, None, []
    try:
        plan, job = make_plan(params, facts, able, more, kind)
    except MediaError as exc:
        fits = [str(exc)]
    result = {
        "medium": {
            **{key: facts[key] for key in ("path", "model", "serial", "size", "transport", "signatures", "mounts")},
            "type": kind,
        },
        "plan": plan,
        "objections": speaks_against(params, facts, more, plan.get("category", "")) + fits,
        "progress": os.path.join(params["directory"], "jobs", f"{media.key_of(facts)}.progress"),
        "resumes": job is not None,
    }
    if not params["confirm"]:
        module.exit_json(changed=False, msg="Nothing was changed: this only shows what would be done", **result)
    if params["confirm"] != f"erase {facts['serial']}":
        result["objections"].append(f"confirm = {params['confirm']!r} must be the words 'erase' and the serial number")
    if result["objections"]:
        refuse(module, facts, result)
    if module.check_mode:
        module.exit_json(changed=True, msg="Check mode: nothing was changed", **result)
    try:
        done = sanitise(module, facts, plan, job)
    except (DeviceLies, DeviceError, MediaError, RegisterError, OSError) as exc:
        with contextlib.suppress(OSError), open(result["progress"], "w", encoding="utf-8") as stream:
            stream.write(f"100 ended: failed: {exc}\n")  # whoever follows would wait for ever
        module.fail_json(msg=f"NOT SANITISED, no certificate: {exc}", **result)
    module.exit_json(changed=True, msg=f"Sanitised: {plan['category']} by {plan['method']}", **result, **done)


def refuse(module: AnsibleModule, facts: dict, result: dict) -> None:
    """Say in the journal and to whoever asked why nothing is touched."""
    if not module.check_mode:
        media_register.log("refused", {"medium": media_register.medium_name(facts), "reasons": result["objections"]})
    module.fail_json(msg=f"Refused before anything changed: {'; '.join(result['objections'])}", **result)


if __name__ == "__main__":
    main()
