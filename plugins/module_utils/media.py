# Copyright: (c) 2026, Bulwark contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How a medium is sanitised: what it can do, which method fits, and what the certificate says. Nothing here touches a device.

Terms are those of NIST SP 800-88: clear keeps data from whoever reads through the interface, purge also from a laboratory. What
counts as which is read strictly:

    overwrite of all that can be addressed                       clear (a flash medium keeps copies that cannot be addressed)
    discard, read back as zeros                                  clear, and only if asked for by name
    NVMe format with user data erase                             clear
    ATA security erase, enhanced                                 purge of magnetic disks
    NVMe sanitize; NVMe format with crypto erase; ATA sanitize   purge
    LUKS: key slots and header destroyed                         purge of magnetic disks if data came after encryption, else clear
    any of these on a virtual disk                               clear: what its commands do to the storage below cannot be known
"""

from __future__ import annotations

import hashlib
import html
import json
import random
import re

PATTERN = "zeros"
CHUNK = 4 << 20  # bytes moved at a time
SAMPLE_PARTS = 1000  # subsections of a representative sample, with two samples of a twentieth each (SP 800-88, 4.7.2)
VIRTUAL = re.compile(r"QEMU|VMware|VBOX|Virtual|Msft", re.IGNORECASE)
REUSES = ("reuse_internal", "reuse_external")
DISPOSITIONS = (*REUSES, "destroy")
PASSWORD = "bulwark"  # no secret: ATA's security erase wants one, and whoever finds a drive that was cut off needs it

# In the order in which they are taken. Each: what it is called on the certificate, and how it works in words.
METHODS = {
    "nvme_sanitize_crypto": ("crypto erase", "NVMe sanitize, crypto erase: the drive forgets the key of all its cells"),
    "nvme_sanitize_block": ("block erase", "NVMe sanitize, block erase: the drive erases all its cells"),
    "nvme_sanitize_overwrite": ("overwrite", "NVMe sanitize, overwrite: the drive overwrites all its cells"),
    "nvme_format_crypto": ("crypto erase", "NVMe format with crypto erase: the drive forgets the namespace's key"),
    "ata_sanitize_crypto": ("crypto erase", "ATA sanitize, crypto scramble: the drive forgets the key of all its cells"),
    "ata_sanitize_block": ("block erase", "ATA sanitize, block erase: the drive erases all its cells"),
    "ata_sanitize_overwrite": ("overwrite", "ATA sanitize, overwrite: the drive overwrites all sectors, spare ones included"),
    "ata_erase_enhanced": (
        "overwrite",
        "ATA security erase, enhanced: the drive overwrites all sectors, reallocated ones included",
    ),
    "crypto_erase": ("crypto erase", "LUKS: key slots destroyed, headers and all that is not ciphertext overwritten"),
    "overwrite": ("overwrite", "one pass of zeros over every sector that can be addressed"),
    "nvme_format": ("block erase", "NVMe format with user data erase"),
    "discard": ("other", "all blocks discarded, and read back as zeros"),
}
ASKED_ONLY = ("discard", "nvme_format", "crypto_erase")  # never chosen without being asked for


class MediaError(Exception):
    """A medium cannot or must not be sanitised as asked; the text says why."""


# ---------------------------------------------------------------------------------------------------------------
# What a medium can do


def medium_type(facts: dict) -> str:
    """Return virtual, magnetic or flash; ``facts`` as block_devices.look() returns them."""
    if facts["transport"] == "virtio" or VIRTUAL.search(facts["model"]):
        return "virtual"
    # The kernel takes most USB sticks for rotating, and what counts as a purge of magnetic disks is none of flash.
    return "magnetic" if facts["rotational"] and facts["transport"] not in ("nvme", "usb") else "flash"


def several(namespaces: int) -> str:
    """Return why a drive that has several namespaces, or none that can be seen, is not sanitised."""
    return f"the drive has {namespaces} namespaces: all would be hit, or a certificate about the drive would hide the others"


def nvme_capabilities(id_ctrl: dict, namespaces: int) -> dict[str, str]:
    """Return {method: "" or why not} out of what C(nvme id-ctrl) says in JSON, and how many namespaces the controller has."""
    sanicap, fna, oacs = (int(id_ctrl.get(key, 0)) for key in ("sanicap", "fna", "oacs"))
    wide = several(namespaces) if namespaces != 1 else ""
    no_format = "" if oacs & 2 else "the controller knows no format (oacs)"
    return {
        "nvme_sanitize_crypto": wide or ("" if sanicap & 1 else f"not among the controller's abilities (sanicap {sanicap:#x})"),
        "nvme_sanitize_block": wide or ("" if sanicap & 2 else f"not among the controller's abilities (sanicap {sanicap:#x})"),
        "nvme_sanitize_overwrite": wide
        or ("" if sanicap & 4 else f"not among the controller's abilities (sanicap {sanicap:#x})"),
        "nvme_format_crypto": wide or no_format or ("" if fna & 4 else f"the controller has no crypto erase (fna {fna:#x})"),
        "nvme_format": wide or no_format,
    }


def ata_capabilities(identify: str) -> dict[str, str]:
    """Return {method: "" or why not} out of what C(hdparm -I) says. Only features marked as enabled count."""
    on = {match.strip() for match in re.findall(r"^\s+\*\s+(.*)$", identify, re.MULTILINE)}

    def feature(name: str) -> str:
        if not any("SANITIZE" in line for line in on):
            return "the drive knows no sanitize"
        return "" if any(name in line for line in on) else f"the drive does not know {name}"

    return {
        "ata_sanitize_crypto": feature("CRYPTO_SCRAMBLE_EXT"),
        "ata_sanitize_block": feature("BLOCK_ERASE_EXT"),
        "ata_sanitize_overwrite": feature("OVERWRITE_EXT"),
        "ata_erase_enhanced": security_objection(identify),
    }


def security_objection(identify: str) -> str:
    """Return why a drive's enhanced security erase cannot be used, from C(hdparm -I); empty if it can."""
    found = re.search(r"^Security:[^\n]*\n((?:[ \t]+[^\n]*\n?)*)", identify, re.MULTILINE)
    states = [" ".join(line.split()) for line in found.group(1).splitlines()] if found else []
    if "supported" not in states:
        return "the drive knows no security feature set"
    if "supported: enhanced erase" not in states:
        return "the drive knows no enhanced erase"
    for state, hint in (("frozen", "suspend and resume the host, or plug the drive in anew"), ("locked", "unlock it first"),
                        ("enabled", "somebody set a password; disable it first")):  # fmt: skip
        if f"not {state}" not in states:
            return f"its security is {state}: {hint}"
    return ""


def hidden_sectors(text: str, overlay: str = "", sectors: int = 0) -> int:
    """Return how many sectors a drive hides from us; zero if it says nothing of the kind.

    ``text`` is what C(hdparm -N) says, ``overlay`` what C(hdparm --dco-identify) does, ``sectors`` how many the system sees.
    """
    found = re.search(r"max sectors\s*=\s*(\d+)/(\d+)", text)
    now, native = map(int, found.groups()) if found else (sectors, sectors)
    real = re.search(r"Real max sectors:\s*(\d+)", overlay)
    return max(native - now, int(real.group(1)) - now if real and now else 0, 0)


def sanitize_objection(kind: str, said: bytes) -> str:
    """Return why a drive's own sanitize did not succeed, empty if it did.

    ``said`` is its log as C(nvme sanitize-log --raw-binary) has it (kind nvme), or what C(hdparm --sanitize-status) says (ata).
    """
    if kind == "nvme":
        state = said[2] & 7
        names = {0: "it never was sanitised", 2: "it is still at it", 3: "its sanitize failed"}
        return "" if state in (1, 4) else names.get(state, f"state {state}")
    text = said.decode(errors="replace")
    return "" if "Completed Without Error" in text else " ".join(text.split())[-200:] or "nothing"


def luks_payload(dump: str, size: int) -> list[int]:
    """Return where ciphertext lies, [start, end) in bytes, from what C(cryptsetup luksDump) says of a device of ``size`` bytes.

    Raises MediaError when it does not say so, or when what lies there is no ciphertext.
    """
    if "cipher_null" in dump:
        raise MediaError("its LUKS has no cipher: what lies there is plain text")
    second = re.search(
        r"^Data segments:\n\s+0: crypt\n\s+offset: (\d+) \[bytes\]\n\s+length: (?:(\d+)|\(whole device\))", dump, re.M
    )
    if second:
        start = int(second.group(1))
        return [start, start + int(second.group(2)) if second.group(2) else size]
    one = re.search(r"^Payload offset:\s+(\d+)$", dump, re.M)
    if one:
        return [int(one.group(1)) * 512, size]
    raise MediaError("the LUKS header does not say where its data lies")


def outside(size: int, payloads: list[list[int]]) -> list[list[int]]:
    """Return the regions [start, end) of a medium that are not ciphertext, given those that are."""
    found, at = [], 0
    for start, end in sorted(payloads):
        if start < at or end > size or start >= end:
            raise MediaError("encrypted areas overlap or reach over the end")
        if start > at:
            found.append([at, start])
        at = end
    if at < size:
        found.append([at, size])
    return found


# ---------------------------------------------------------------------------------------------------------------
# Which method


def category_of(method: str, kind: str, encrypted_first: bool) -> str:
    """Return clear or purge: what a method amounts to on a kind of medium."""
    if kind == "virtual" or method in ("overwrite", "discard", "nvme_format"):
        return "clear"
    if method == "ata_erase_enhanced":
        return "purge" if kind == "magnetic" else "clear"
    if method == "crypto_erase":
        return "purge" if kind == "magnetic" and encrypted_first else "clear"
    return "purge"


def choose(kind: str, able: dict[str, str], wanted: str, method: str = "auto", encrypted_first: bool = False) -> dict:
    """Return which method is taken and why. Raises MediaError when none will do.

    ``kind`` is what medium_type() returns; ``able`` {method: "" or why not}, a method that is missing fits other media only;
    ``wanted`` is clear or purge. The answer: {method, category, why, others: [{method, why_not}]}.
    """
    others, chosen = [], ""
    for name in METHODS:
        reaches = category_of(name, kind, encrypted_first)
        if name not in able:
            why_not = "for media of another kind"
        elif able[name]:
            why_not = able[name]
        elif wanted == "purge" and reaches != "purge":
            why_not = f"on a {kind} medium it clears, it does not purge"
        elif method != "auto" and name != method:
            why_not = "another method was asked for"
        elif method == "auto" and name in ASKED_ONLY:
            why_not = "only taken when it is asked for"
        elif wanted == "clear" and method == "auto" and name != "overwrite":
            why_not = "more than a clearing needs, and less that can be read back"
        elif chosen:
            why_not = "an earlier one is better"
        else:
            chosen = name
            continue
        others.append({"method": name, "why_not": why_not})
    if not chosen:
        reasons = "; ".join(f"{item['method']}: {item['why_not']}" for item in others
                            if item["method"] == method or (method == "auto" and item["method"] in able))  # fmt: skip
        hint = "" if wanted == "clear" else ". It can be cleared (category clear) and must then be destroyed"
        raise MediaError(f"no method gives a {wanted} of this {kind} medium ({reasons or method + ': unknown'}){hint}")
    why = f"{METHODS[chosen][1]}; on a {kind} medium that is a {category_of(chosen, kind, encrypted_first)}"
    if method != "auto":
        why += "; it was asked for by name"
    return {"method": chosen, "category": category_of(chosen, kind, encrypted_first), "why": why, "others": others}


def disposition_objections(classification: str, category: str, disposition: str) -> list[str]:
    """Return why a medium of a class must not go where it is meant to go, with the statement that forbids it."""
    found = []
    if disposition in REUSES and classification == "high":
        found.append("UMDNJ-I-1: a medium of class high is never used again; its disposition is destroy")
    if disposition in REUSES and category != "purge":
        found.append("UMDNJ-I-2: only a medium that was purged is used again; after a clear its disposition is destroy")
    return found


def retention_objections(by: str, on: str, today: str) -> list[str]:
    """Return what speaks against disposing of the data yet; dates are YYYY-MM-DD."""
    if not by or not on:
        return [
            "UMDNJ-F-1: retention_cleared_by and retention_cleared_on must say who found, and when, that no retention period runs"
        ]
    if not re.fullmatch(r"\d{4}-\d{2}-\d{2}", on):
        return [f"retention_cleared_on = {on!r} must be a date (YYYY-MM-DD)"]
    if on > today:
        return [f"UMDNJ-F-1: retention is cleared only on {on}, and today is {today}"]
    return []


def steps_of(method: str, facts: dict, payloads: list[list[int]], luks: list[str], verification: str) -> list[dict]:
    """Return what is done, in order. Each step: {do, ...}.

    command    argv; a drive's own: wait: how its end is seen ("", nvme or ata)
    changed    what the tool reported is not believed: what was there before must be gone
    overwrite  regions [start, end)
    verify     regions, extent: full or sample; all of it must read as zeros
    """
    device, name = facts["path"], facts["name"]
    controller = re.sub(r"n\d+$", "", device)
    whole = [[0, facts["size"]]]
    regions = outside(facts["size"], payloads) if method == "crypto_erase" else whole

    def command(*argv: str, wait: str = "") -> dict:
        return {"do": "command", "argv": list(argv), "wait": wait}

    force = "--yes-i-know-what-i-am-doing"
    commands = {
        "nvme_sanitize_crypto": [command("nvme", "sanitize", controller, "--sanact=4", wait="nvme")],
        "nvme_sanitize_block": [command("nvme", "sanitize", controller, "--sanact=2", wait="nvme")],
        "nvme_sanitize_overwrite": [
            command("nvme", "sanitize", controller, "--sanact=3", "--ovrpat=0", "--owpass=1", wait="nvme")
        ],
        "nvme_format_crypto": [command("nvme", "format", device, "--ses=2", "--force")],
        "nvme_format": [command("nvme", "format", device, "--ses=1", "--force")],
        "ata_sanitize_crypto": [command("hdparm", force, "--sanitize-crypto-scramble", device, wait="ata")],
        "ata_sanitize_block": [command("hdparm", force, "--sanitize-block-erase", device, wait="ata")],
        "ata_sanitize_overwrite": [command("hdparm", force, "--sanitize-overwrite", "hex:00000000", device, wait="ata")],
        "ata_erase_enhanced": [
            command("hdparm", "--user-master", "u", "--security-set-pass", PASSWORD, device),
            command("hdparm", "--user-master", "u", "--security-erase-enhanced", PASSWORD, device),
        ],
        "crypto_erase": [command("cryptsetup", "erase", "--batch-mode", path) for path in luks],
        "discard": [command("blkdiscard", "--force", device)],
        "overwrite": [],
    }[method]
    steps = list(commands)
    if commands and method != "crypto_erase":  # whose key slots are overwritten once more, and read back
        steps.append({"do": "changed", "regions": regions, "what": METHODS[method][1]})
    if method != "discard":
        steps.append({"do": "overwrite", "regions": regions})
    steps.append({"do": "verify", "regions": regions, "extent": "full" if method == "crypto_erase" else verification})
    if not name or not steps:
        raise MediaError(f"nothing to do for {device}")
    return steps


def sample(size: int, seed: int, block: int = 4096) -> list[list[int]]:
    """Return a representative sample of a medium: regions [start, end), in order, first and last block among them.

    As SP 800-88 has it: a thousand equal subsections (fewer on small media), of each two places chosen by chance that do not
    overlap, each a twentieth of it. About a tenth of the medium. The seed goes into the certificate.
    """
    # For which places are looked at it does not matter who could guess them.
    chance = random.Random(seed)
    parts = max(1, min(SAMPLE_PARTS, size // (40 * block)))
    length = size // parts // block * block
    piece = max(block, length // 20 // block * block)
    regions = [[0, min(block, size)]]
    for part in range(parts):
        start = part * length
        half = (length // 2 - piece) // block
        for offset in (0, length // 2 // block * block):
            at = start + offset + (chance.randint(0, half) if half > 0 else 0) * block
            regions.append([at, min(at + piece, size)])
    regions.append([max(size - block, 0), size])
    return merged(regions)


def merged(regions: list[list[int]]) -> list[list[int]]:
    """Return regions in order, those that touch or overlap as one."""
    found: list[list[int]] = []
    for start, end in sorted(regions):
        if found and start <= found[-1][1]:
            found[-1][1] = max(found[-1][1], end)
        else:
            found.append([start, end])
    return found


def total(regions: list[list[int]]) -> int:
    """Return how many bytes regions have together."""
    return sum(end - start for start, end in regions)


# ---------------------------------------------------------------------------------------------------------------
# The certificate


def key_of(identity: dict) -> str:
    """Return a short name for a medium by model, serial and size, fit for a file's name."""
    words = f"{identity['model']}\n{identity['serial']}\n{identity['size']}"
    return hashlib.sha256(words.encode()).hexdigest()[:16]


def canonical(record: dict) -> str:
    """Return a record as its file holds it. Its SHA-256 is that of these bytes."""
    return json.dumps(record, indent=1, sort_keys=True, ensure_ascii=True) + "\n"


def digest(text: str) -> str:
    """Return the SHA-256 of a text."""
    return hashlib.sha256(text.encode()).hexdigest()


PERSON = ("name", "title", "organisation", "location", "phone")
# Sections of the certificate as SP 800-88 has them in its sample, with the words that stand on paper.
SECTIONS = (
    ("performed_by", "Person performing sanitization", [(key, key.capitalize()) for key in PERSON]),
    ("media", "Media information", [
        ("vendor", "Make / vendor"), ("model", "Model number"), ("serial", "Serial number"),
        ("property_number", "Media property number"), ("type", "Media type"), ("size", "Size (bytes)"),
        ("source", "Source (user or computer)"), ("classification", "Classification"), ("backed_up", "Data backed up"),
        ("backup_location", "Backup location")]),
    ("sanitization", "Sanitization details", [
        ("method_type", "Method type"), ("method_used", "Method used"), ("method_details", "Method details"),
        ("why", "Why this method"), ("tools", "Tools used"), ("verification", "Verification method"),
        ("verified", "What was read back"), ("verification_result", "Result of the verification"), ("started_at", "Started"),
        ("finished_at", "Finished"), ("rate", "Rate"), ("interruptions", "Interruptions"),
        ("post_classification", "Post sanitization classification"), ("retention", "Retention cleared"), ("notes", "Notes")]),
    ("destination", "Media destination", [("disposition", "Destination"), ("details", "Details")]),
)  # fmt: skip
ATTEST = "I attest that the information provided on this statement is accurate to the best of my knowledge."


def certificate_html(record: dict) -> str:
    """Return a certificate as one printable page that asks for nothing from anywhere."""

    def row(label: str, value: object) -> str:
        return f"<tr><th scope=row>{html.escape(label)}<td>{html.escape(shown(value)) or '&mdash;'}"

    def table(title: str, rows: list[str]) -> str:
        return f"<section><h2>{html.escape(title)}</h2><table>{''.join(rows)}</table></section>"

    parts = [table(title, [row(label, record[key].get(field, "")) for field, label in fields]) for key, title, fields in SECTIONS]
    sign = "<p class=line>Signature<p class=line>Date"
    people = table("Validation", [row(key.capitalize(), record["validated_by"].get(key, "")) for key in PERSON])
    style = (
        "body{font:11pt/1.35 sans-serif;max-width:48em;margin:2em auto;padding:0 1em;color:#111;background:#fff}"
        "h1{font-size:1.4em}h2{font-size:1em;margin:1.2em 0 .2em}table{border-collapse:collapse;width:100%}"
        "th,td{border:1px solid #777;padding:.25em .5em;text-align:left;vertical-align:top;overflow-wrap:anywhere}"
        "th{width:32%;font-weight:normal;background:#eee}.line{border-bottom:1px solid #111;padding-top:2em;margin:0;width:60%}"
        "code{overflow-wrap:anywhere}@media print{body{margin:0}section{break-inside:avoid}th{background:none}}"
    )
    return (
        "<!DOCTYPE html><html lang=en><head><meta charset=utf-8>"
        "<meta http-equiv=Content-Security-Policy content=\"default-src 'none'; style-src 'unsafe-inline'\">"
        f"<title>Certificate of sanitization {html.escape(record['certificate'])}</title><style>{style}</style></head><body>"
        f"<h1>Certificate of sanitization</h1><p>No. {html.escape(record['certificate'])}, host {html.escape(record['host'])}"
        f"{''.join(parts)}<section><h2>Attestation</h2><p>{ATTEST}{sign}</section>{people}<section><p>{ATTEST}{sign}</section>"
        f"<p>SHA-256 of the record this page was made from:<br><code>{digest(canonical(record))}</code></body></html>\n"
    )


def shown(value: object) -> str:
    """Return a value of a record in words for paper."""
    if isinstance(value, dict):
        return ", ".join(f"{key} {shown(item)}" for key, item in value.items() if item not in ("", None))
    if isinstance(value, list):
        return "; ".join(shown(item) for item in value)
    return "" if value is None else str(value)


def missing_fields(record: dict) -> list[str]:
    """Return which fields a certificate lacks altogether, or leaves empty although they must be filled."""
    found = []
    for key, _title, fields in SECTIONS:
        found += [f"{key}.{field}" for field, _label in fields if field not in record.get(key, {})]
    must = {"performed_by": ["name"], "validated_by": ["name"], "media": ["model", "serial", "size", "classification"],
            "sanitization": ["method_type", "method_used", "verification", "verification_result", "finished_at"],
            "destination": ["disposition"]}  # fmt: skip
    found += [f"{key}.{field}" for key, fields in must.items() for field in fields if not record.get(key, {}).get(field)]
    return found
