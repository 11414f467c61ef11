# Copyright: (c) 2026, Bulwark contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What sshd does with its settings, as pure functions: no file, no process, no host.

An *effective setting* is what C(sshd -T) prints: ``{"allowgroups": ["sudo", "ssh-users"], "usepam": ["yes"]}``, one list
entry a line, keys in lower case. A *key* is one line of an authorized_keys file without anything that names a person:
``{"type": "ssh-ed25519", "bits": 256, "fingerprint": "SHA256:…", "options": ["from", "restrict"]}``.
Sources: sshd_config(5) and sshd(8) of OpenSSH 9.2 and 10.0, RFC 4253 section 6.6 for the shape of public keys.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import ipaddress
import re
import shlex
import struct

# Signature algorithms that a public key of a type is used with; a key is good for a server that accepts any of them.
SIGNATURES = {"ssh-rsa": ("rsa-sha2-512", "rsa-sha2-256", "ssh-rsa")}
CURVE_BITS = {"nistp256": 256, "nistp384": 384, "nistp521": 521, "ed25519": 256}


# --- reading what programs print --------------------------------------------------------------------------------------


def parse_effective(text: str) -> dict[str, list[str]]:
    """Return effective settings from the output of ``sshd -T``; a key that comes several times keeps all its values."""
    found: dict[str, list[str]] = {}
    for line in text.splitlines():
        key, _space, value = line.strip().partition(" ")
        if key:
            found.setdefault(key.lower(), []).append(value.strip())
    return found


def words(line: str) -> list[str]:
    """Return the words of a line of sshd_config, without comments; an unfinished quote makes the line unreadable: []."""
    try:
        return shlex.split(line.replace("=", " ", 1) if re.match(r"\s*\w+\s*=", line) else line, comments=True)
    except ValueError:
        return []


def match_criteria(text: str) -> list[dict[str, list[str]]]:
    """Return the criteria of each C(Match) line of one configuration file.

    ``Match User a,b Address 10.0.0.0/8`` gives ``{"user": ["a", "b"], "address": ["10.0.0.0/8"]}``; C(Match all) gives {}.
    """
    found = []
    for line in text.splitlines():
        said = words(line)
        if not said or said[0].lower() != "match":
            continue
        criteria: dict[str, list[str]] = {}
        rest = [part for word in said[1:] for part in (word.split("=", 1) if re.match(r"[A-Za-z-]+=", word) else [word])]
        while rest:
            name = rest.pop(0).lower()
            if name in ("all", "canonical", "final", "invalid-user"):
                continue
            criteria.setdefault(name, []).extend(part for part in (rest.pop(0) if rest else "").split(",") if part)
        found.append(criteria)
    return found


def includes(text: str) -> list[str]:
    """Return the patterns of the C(Include) lines of one configuration file, absolute, in order."""
    found = []
    for line in text.splitlines():
        said = words(line)
        if said and said[0].lower() == "include":
            found += [path if path.startswith("/") else f"/etc/ssh/{path}" for path in said[1:]]
    return found


def daemon_options(exec_start: str, environment: str) -> list[str]:
    """Return the options of the running sshd that change its configuration (-o, -f, -h, -p), ready for C(sshd -T).

    ``exec_start`` is systemd's property ExecStart (``{ path=… ; argv[]=/usr/sbin/sshd -D $SSHD_OPTS ; …}``), ``environment``
    the text of /etc/default/ssh. Options given there win over every file, so looking at files alone would miss them.
    """
    found = re.search(r"argv\[\]=(.*?) ;", exec_start)
    command = found.group(1) if found else "/usr/sbin/sshd -D $SSHD_OPTS"
    variables = {}
    for line in environment.splitlines():
        name, equals, value = line.strip().partition("=")
        if equals and not name.startswith("#"):
            variables[name] = value.strip()
    said: list[str] = []
    for word in command.split()[1:]:
        if word.startswith("$"):
            value = variables.get(word.lstrip("$").strip("{}"), "")
            try:  # systemd takes quotes off the value, then splits it at blanks
                said += " ".join(shlex.split(value)).split()
            except ValueError:
                said += value.split()
        else:
            said.append(word)
    kept: list[str] = []
    while said:
        word = said.pop(0)
        for option in ("-o", "-f", "-h", "-p"):
            if word == option and said:
                kept += [option, said.pop(0)]
            elif word.startswith(option) and len(word) > 2:
                kept += [option, word[2:]]
    return kept


def parse_key(line: str) -> dict | None:
    """Return the key on one line of an authorized_keys or .pub file; None for comments, blanks and what sshd would skip."""
    line = line.strip()
    if not line or line.startswith("#"):
        return None
    options: list[str] = []
    first = line.split(None, 1)[0]
    if not re.fullmatch(r"(sk-)?(ssh|ecdsa)-[a-z0-9@.-]+", first):
        quoted = end = 0
        for end, letter in enumerate(line):
            if letter == '"' and (end == 0 or line[end - 1] != "\\"):
                quoted = not quoted
            elif letter in " \t" and not quoted:
                break
        text, line = line[:end], line[end:].strip()
        bare = re.sub(r'"(\\.|[^"\\])*"', "", text)
        options = sorted({name.lower() for name in re.findall(r"(?:^|,)([A-Za-z0-9-]+)(?==|,|$)", bare)})
    parts = line.split(None, 2)
    if len(parts) < 2:
        return None
    try:
        blob = base64.b64decode(parts[1], validate=True)
        fields = _fields(blob)
    except (binascii.Error, ValueError, struct.error):
        return None
    kind = fields[0].decode("ascii", "replace") if fields else ""
    if kind != parts[0]:
        return None
    digest = base64.b64encode(hashlib.sha256(blob).digest()).decode().rstrip("=")
    return {"type": kind, "bits": _bits(kind, fields), "fingerprint": f"SHA256:{digest}", "options": options}


def _fields(blob: bytes) -> list[bytes]:
    """Return the length-prefixed fields of a public key. Raises ValueError or struct.error when it is cut short."""
    found, at = [], 0
    while at < len(blob):
        (length,) = struct.unpack_from(">I", blob, at)
        if at + 4 + length > len(blob):
            raise ValueError("cut short")
        found.append(blob[at + 4 : at + 4 + length])
        at += 4 + length
    return found


def _bits(kind: str, fields: list[bytes]) -> int:
    if kind == "ssh-rsa" and len(fields) > 2:
        return int.from_bytes(fields[2], "big").bit_length()
    if kind == "ssh-dss" and len(fields) > 1:
        return int.from_bytes(fields[1], "big").bit_length()
    return next((bits for name, bits in CURVE_BITS.items() if name in kind), 0)


# --- patterns ---------------------------------------------------------------------------------------------------------


def like(text: str, pattern: str) -> bool:
    """Say whether a text fits one of sshd's patterns: * any characters, ? one character, nothing else is special."""
    expression = "".join(".*" if c == "*" else "." if c == "?" else re.escape(c) for c in pattern)
    return re.fullmatch(expression, text, re.DOTALL) is not None


def in_list(texts: list[str], patterns: list[str]) -> bool:
    """Say whether any text fits a pattern list; one negated pattern (!…) that fits any of them makes it false."""
    if any(like(text, pattern[1:]) for pattern in patterns if pattern.startswith("!") for text in texts):
        return False
    return any(like(text, pattern) for pattern in patterns if not pattern.startswith("!") for text in texts)


def at_address(address: str, pattern: str) -> bool:
    """Say whether an address lies in a network, or fits a pattern."""
    try:
        return ipaddress.ip_address(address) in ipaddress.ip_network(pattern, strict=False)
    except ValueError:
        return like(address, pattern)


def sample_address(pattern: str) -> str | None:
    """Return one address that a C(Match Address) pattern speaks of, negated or not; None when it names no address."""
    pattern = pattern.lstrip("!")
    try:
        network = ipaddress.ip_network(pattern, strict=False)
        return str(network[min(1, network.num_addresses - 1)])
    except ValueError:
        pass
    if not re.fullmatch(r"[0-9.?*]+", pattern) or pattern == "*":
        return None
    parts = pattern.replace("*", "1").replace("?", "1").split(".")
    guess = ".".join((parts + ["1"] * 4)[:4])
    try:
        return str(ipaddress.ip_address(guess))
    except ValueError:
        return None


# --- who gets in ------------------------------------------------------------------------------------------------------


def refusals(settings: dict[str, list[str]], name: str, uid: int, groups: list[str], address: str) -> list[tuple[str, str]]:
    """Return why sshd would refuse an account, as (setting, reason); an empty list when it admits it.

    Only who may come in is looked at, not how they prove who they are: DenyUsers, AllowUsers, DenyGroups, AllowGroups,
    PermitRootLogin and RefuseConnection, in sshd's own order.
    """

    def fits(pattern: str) -> bool:
        user, at, place = pattern.partition("@")
        return like(name, user) and (not at or any(at_address(address, part) for part in place.split(",")))

    def said(setting: str) -> list[str]:
        return [value for value in settings.get(setting, []) if value and value != "none"]

    found = []
    if settings.get("refuseconnection", ["no"])[0] == "yes":
        found.append(("refuseconnection", "connections like this one are refused (RefuseConnection)"))
    for pattern in said("denyusers"):
        if fits(pattern):
            found.append(("denyusers", f"DenyUsers {pattern} refuses it"))
    if said("allowusers") and not any(fits(pattern) for pattern in said("allowusers")):
        found.append(("allowusers", f"AllowUsers admits only {', '.join(said('allowusers'))}"))
    for pattern in said("denygroups"):
        if any(like(group, pattern) for group in groups):
            found.append(("denygroups", f"DenyGroups {pattern} refuses it"))
    allowed = said("allowgroups")
    if allowed and not any(like(group, pattern) for group in groups for pattern in allowed):
        found.append(("allowgroups", f"it is in none of the groups {', '.join(allowed)}"))
    if uid == 0 and settings.get("permitrootlogin", [""])[0] in ("no", "forced-commands-only"):
        found.append(("permitrootlogin", "root may not log in"))
    return found


def key_refusals(settings: dict[str, list[str]], key: dict) -> list[str]:
    """Return why sshd would not take a public key, by its type and size; an empty list when it would."""
    accepted = settings.get("pubkeyacceptedalgorithms", [""])[0].split(",")
    found = []
    names = SIGNATURES.get(key["type"], (key["type"],))
    if not set(names) & set(accepted):
        found.append(f"keys of type {key['type']} are not accepted (ssh_public_key_algorithms)")
    smallest = int(settings.get("requiredrsasize", ["1024"])[0])
    if key["type"] == "ssh-rsa" and key["bits"] < smallest:
        found.append(f"an RSA key of {key['bits']} bits is too small, {smallest} are asked for (ssh_rsa_bits_min)")
    return found


def forwards(settings: dict[str, list[str]]) -> dict:
    """Return what a connection may forward, only what is open; empty when nothing is.

    ``{"tcp": "local", "permitopen": ["10.0.0.5:5432"], "permitlisten": ["any"], "stream_local": "yes", "agent": "yes", …}``
    """
    if settings.get("disableforwarding", ["no"])[0] == "yes":
        return {}
    names = {
        "tcp": "allowtcpforwarding",
        "stream_local": "allowstreamlocalforwarding",
        "agent": "allowagentforwarding",
        "x11": "x11forwarding",
        "tunnel": "permittunnel",
        "gateway_ports": "gatewayports",
    }
    found: dict = {name: settings[key][0] for name, key in names.items() if settings.get(key, ["no"])[0] != "no"}
    if "tcp" in found:
        found["permitopen"] = settings.get("permitopen", ["any"])[0].split()
        found["permitlisten"] = settings.get("permitlisten", ["any"])[0].split()
    return found
