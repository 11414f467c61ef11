# SPDX-License-Identifier: GPL-3.0-or-later
"""Which method fits which medium, what may come of it, what is read back, and what the certificate says."""

from __future__ import annotations

import itertools
import json
import re

import pytest
from ansible_collections.bulwark.hardening.plugins.module_utils import media as module

HDPARM = """
/dev/sda:

ATA device, with non-removable media
\tModel Number:       EXAMPLE SSD
Commands/features:
\tEnabled\tSupported:
\t   *\tSMART feature set
\t   *\tSANITIZE feature set
\t   *\tCRYPTO_SCRAMBLE_EXT command
\t   *\tBLOCK_ERASE_EXT command
\t    \tOVERWRITE_EXT command
Security:
\tMaster password revision code = 65534
\t\tsupported
\tnot\tenabled
\tnot\tlocked
\tnot\tfrozen
\tnot\texpired: security count
\t\tsupported: enhanced erase
\t2min for SECURITY ERASE UNIT. 2min for ENHANCED SECURITY ERASE UNIT.
Logical Unit WWN Device Identifier: 5000
"""
LUKS2 = """LUKS header information
Version:       \t2
Data segments:
  0: crypt
\toffset: 16777216 [bytes]
\tlength: (whole device)
\tcipher: aes-xts-plain64
"""
MIB = 1 << 20


def facts(**more):
    """Return what is known of a disk."""
    return {
        "path": "/dev/sdb",
        "name": "sdb",
        "model": "EXAMPLE",
        "transport": "sata",
        "rotational": True,
        "size": 64 * MIB,
        **more,
    }


# --- abilities -----------------------------------------------------------------------------------------------------------


def test_nvme_says_what_it_can():
    able = module.nvme_capabilities({"sanicap": 3, "fna": 0, "oacs": 2}, 1)
    assert [name for name, why in able.items() if not why] == ["nvme_sanitize_crypto", "nvme_sanitize_block", "nvme_format"]
    assert "fna 0x0" in able["nvme_format_crypto"]
    assert all("2 namespaces" in why for why in module.nvme_capabilities({"sanicap": 7, "fna": 4, "oacs": 2}, 2).values())
    assert all(module.nvme_capabilities({}, 1).values()), "what says nothing can nothing"


def test_ata_says_what_it_can():
    able = module.ata_capabilities(HDPARM)
    assert able["ata_sanitize_crypto"] == able["ata_sanitize_block"] == able["ata_erase_enhanced"] == ""
    assert "OVERWRITE_EXT" in able["ata_sanitize_overwrite"], "supported but not enabled is not able"
    assert all(module.ata_capabilities("ATA device\nCommands/features:\n\t   *\tSMART feature set\n").values())


@pytest.mark.parametrize(
    ("old", "new", "word"),
    [
        ("not\tfrozen", "\tfrozen", "frozen"),
        ("not\tenabled", "\tenabled", "enabled"),
        ("not\tlocked", "\tlocked", "locked"),
        ("\t\tsupported: enhanced erase\n", "", "enhanced"),
        ("\t\tsupported\n", "\tnot\tsupported\n", "security feature set"),
    ],
)
def test_security_erase_needs_a_drive_that_is_ready(old, new, word):
    assert word in module.security_objection(HDPARM.replace(old, new))


def test_hidden_sectors_are_seen():
    assert module.hidden_sectors(" max sectors   = 1000/3000(3000?), HPA is enabled") == 2000
    assert module.hidden_sectors(" max sectors   = 3000/3000, HPA is disabled") == 0
    assert module.hidden_sectors("bad/missing sense data") == 0
    same = " max sectors   = 3000/3000, HPA is disabled"
    assert module.hidden_sectors(same, "DCO Revision: 0x0002\n\tReal max sectors: 3500\n") == 500
    for nothing in ("\tReal max sectors: 3000\n", "\tReal max sectors: 1\n", "bad/missing sense data"):
        assert module.hidden_sectors(same, nothing) == 0
    assert module.hidden_sectors("bad/missing sense data", "\tReal max sectors: 3500\n", 3000) == 500


@pytest.mark.parametrize(
    ("kind", "said", "word"),
    [
        ("nvme", b"\xff\xff\x01\x00", ""),
        ("nvme", b"\xff\xff\x04\x01", ""),  # without deallocating
        ("nvme", b"\xff\xff\x03\x00", "failed"),
        ("nvme", b"\xff\xff\x00\x00", "never"),
        ("ata", b"State:    SD0 Sanitize Idle\n    Last Sanitize Operation Completed Without Error\n", ""),
        ("ata", b"State:    SD0 Sanitize Idle\n", "Idle"),
        ("ata", b"State:    SD1 Sanitize Frozen\n", "Frozen"),
        ("ata", b"", "nothing"),
    ],
)
def test_a_sanitize_must_have_succeeded_by_the_drives_own_word(kind, said, word):
    assert (word in module.sanitize_objection(kind, said)) if word else module.sanitize_objection(kind, said) == ""


def test_where_ciphertext_lies():
    assert module.luks_payload(LUKS2, 64 * MIB) == [16 * MIB, 64 * MIB]
    assert module.luks_payload(LUKS2.replace("(whole device)", f"{MIB} [bytes]"), 64 * MIB) == [16 * MIB, 17 * MIB]
    assert module.luks_payload("Version:       \t1\nPayload offset:\t4096\n", 64 * MIB) == [2 * MIB, 64 * MIB]
    with pytest.raises(module.MediaError):
        module.luks_payload("something else", 64 * MIB)
    with pytest.raises(module.MediaError, match="plain text"):
        module.luks_payload(LUKS2.replace("aes-xts-plain64", "cipher_null-ecb"), 64 * MIB)


def test_what_is_not_ciphertext_is_overwritten():
    assert module.outside(100, [[20, 50], [60, 100]]) == [[0, 20], [50, 60]]
    assert module.outside(100, []) == [[0, 100]]
    for wrong in ([[0, 200]], [[10, 50], [40, 60]], [[5, 5]]):
        with pytest.raises(module.MediaError):
            module.outside(100, wrong)


# --- choice --------------------------------------------------------------------------------------------------------------

ALL = dict.fromkeys(module.METHODS, "")


@pytest.mark.parametrize(
    ("kind", "able", "wanted", "method", "expected"),
    [
        ("flash", ALL, "purge", "auto", ("nvme_sanitize_crypto", "purge")),
        ("flash", {**ALL, "nvme_sanitize_crypto": "no"}, "purge", "auto", ("nvme_sanitize_block", "purge")),
        ("magnetic", {"overwrite": "", "ata_erase_enhanced": ""}, "purge", "auto", ("ata_erase_enhanced", "purge")),
        ("magnetic", ALL, "clear", "auto", ("overwrite", "clear")),
        ("flash", ALL, "clear", "discard", ("discard", "clear")),
        ("virtual", ALL, "clear", "nvme_sanitize_block", ("nvme_sanitize_block", "clear")),
    ],
)
def test_the_best_method_is_taken(kind, able, wanted, method, expected):
    plan = module.choose(kind, able, wanted, method)
    assert (plan["method"], plan["category"]) == expected
    assert plan["why"]
    assert {item["method"] for item in plan["others"]} == set(module.METHODS) - {plan["method"]}
    assert all(item["why_not"] for item in plan["others"])


@pytest.mark.parametrize(
    ("kind", "able", "method", "word"),
    [
        ("flash", {"overwrite": ""}, "auto", "it clears, it does not purge"),  # MA-4.5
        ("flash", {"overwrite": ""}, "overwrite", "it clears, it does not purge"),
        ("magnetic", {"overwrite": ""}, "auto", "must then be destroyed"),
        ("virtual", ALL, "auto", "virtual medium it clears"),
        ("flash", {"overwrite": "", "ata_erase_enhanced": ""}, "ata_erase_enhanced", "it clears"),
        ("magnetic", ALL, "crypto_erase", "it clears"),
        ("flash", {"overwrite": "", "nvme_sanitize_block": "not among"}, "nvme_sanitize_block", "not among"),
    ],
)
def test_no_purge_is_claimed_that_is_none(kind, able, method, word):
    with pytest.raises(module.MediaError, match=re.escape(word)):
        module.choose(kind, able, "purge", method)


def test_crypto_erase_purges_only_what_was_never_clear():
    assert module.choose("magnetic", ALL, "purge", "crypto_erase", encrypted_first=True)["category"] == "purge"
    with pytest.raises(module.MediaError):
        module.choose("flash", ALL, "purge", "crypto_erase", encrypted_first=True)


@pytest.mark.parametrize(
    ("classification", "category", "disposition", "statements"),
    [
        ("high", "purge", "reuse_internal", ["UMDNJ-I-1"]),
        ("high", "clear", "reuse_external", ["UMDNJ-I-1", "UMDNJ-I-2"]),
        ("low", "clear", "reuse_internal", ["UMDNJ-I-2"]),
        ("moderate", "purge", "reuse_external", []),
        ("high", "clear", "destroy", []),
    ],
)
def test_class_decides_reuse_or_destruction(classification, category, disposition, statements):
    said = module.disposition_objections(classification, category, disposition)
    assert [text.split(":")[0] for text in said] == statements


@pytest.mark.parametrize(
    ("by", "on", "ok"),
    [("Committee", "2026-11-28", True), ("Committee", "2026-11-29", True), ("Committee", "2026-11-30", False),
     ("", "2026-11-01", False), ("Committee", "", False), ("Committee", "yesterday", False)],
)  # fmt: skip
def test_nothing_goes_before_retention_is_over(by, on, ok):
    assert bool(module.retention_objections(by, on, "2026-11-29")) is not ok


@pytest.mark.parametrize("method", module.METHODS)
def test_every_method_ends_with_reading_back(method):
    path, name = ("/dev/nvme0n1", "nvme0n1") if method.startswith("nvme") else ("/dev/sdb", "sdb")
    steps = module.steps_of(method, facts(path=path, name=name), [[16 * MIB, 64 * MIB]], ["/dev/sdb"], "full")
    assert steps[-1]["do"] == "verify"
    commands = [step for step in steps if step["do"] == "command"]
    if commands and method != "crypto_erase":
        assert steps[len(commands)]["do"] == "changed", "a tool's word is not enough"
    if method == "crypto_erase":
        assert steps[-1]["regions"] == steps[-2]["regions"] == [[0, 16 * MIB]]
    for step in commands:
        assert all(isinstance(word, str) for word in step["argv"])
    if method.startswith("nvme_sanitize"):
        assert commands[0]["argv"][2] == "/dev/nvme0", "it is the controller that sanitises"


# --- samples -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [512, 4096, 64 * MIB, 64 * MIB + 512, 10**12])
def test_a_sample_is_representative(size):
    regions = module.sample(size, 7)
    assert regions[0][0] == 0 and regions[-1][1] == size, "first and last are in it"
    assert all(start < end for start, end in regions)
    assert all(one[1] < other[0] for one, other in itertools.pairwise(regions)), "in order, none twice"
    if size >= 64 * MIB:
        assert 0.05 < module.total(regions) / size < 0.15
        halves = module.total([r for r in regions if r[1] <= size / 2]), module.total([r for r in regions if r[0] > size / 2])
        assert 0.8 < halves[0] / halves[1] < 1.25
    assert module.sample(size, 7) == regions
    if size >= 64 * MIB:
        assert module.sample(size, 8) != regions


def test_regions_are_merged():
    assert module.merged([[5, 9], [0, 5], [20, 30], [25, 26]]) == [[0, 9], [20, 30]]


# --- certificate ---------------------------------------------------------------------------------------------------------


def record(**more):
    """Return a certificate, in part."""
    made = {"certificate": "20261129T010203Z-ab", "host": "bench-1"}
    for key, _title, fields in module.SECTIONS:
        made[key] = {field: f"{key} {field} <&>" for field, _label in fields}
    made["validated_by"] = dict.fromkeys(module.PERSON, "Example Colleague")
    return {**made, **more}


def test_the_page_shows_every_field_and_asks_for_nothing():
    made = record()
    page = module.certificate_html(made)
    for key, _title, fields in module.SECTIONS:
        for field, label in fields:
            assert f"{key} {field} &lt;&amp;&gt;" in page and label in page
    assert "<&>" not in page
    assert not re.search(r"https?://|<script|src=|url\(", page)
    assert module.digest(module.canonical(made)) in page
    assert page.count("Signature") == 2, "two people sign"


def test_a_certificate_that_lacks_something_is_none():
    assert module.missing_fields(record()) == []
    made = record()
    del made["media"]["backup_location"]
    made["sanitization"]["verification_result"] = ""
    made["validated_by"]["name"] = ""
    assert module.missing_fields(made) == ["media.backup_location", "validated_by.name", "sanitization.verification_result"]


def test_its_digest_is_that_of_its_file():
    made = record()
    assert json.loads(module.canonical(made)) == made
    assert module.digest(module.canonical(made)) != module.digest(module.canonical({**made, "host": "other"}))


def test_media_are_told_apart():
    one = {"model": "A", "serial": "1", "size": 512}
    assert module.key_of(one) == module.key_of(dict(one))
    assert len({module.key_of({**one, key: "x"}) for key in one} | {module.key_of(one)}) == 4


def test_kinds_of_media():
    assert module.medium_type(facts()) == "magnetic"
    assert module.medium_type(facts(rotational=False)) == "flash"
    assert module.medium_type(facts(transport="nvme")) == "flash"
    assert module.medium_type(facts(transport="usb")) == "flash", "most sticks say that they rotate"
    for virtual in (facts(transport="virtio"), facts(model="QEMU HARDDISK"), facts(model="Virtual disk")):
        assert module.medium_type(virtual) == "virtual"
