# Copyright: (c) 2026, Bulwark contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The certificates of a VPN: one authority in one directory, driven by the host's own openssl. Standard library only.

This file is also put on the gateway as a program, which a timer runs to renew the revocation list before it expires:

    pki renew-crl AUTHORITY --publish FILE --days N --renew-days N

An authority's directory (0700) holds ca.key, ca.crt, crl.pem, index.json and issued/<serial>.pem. index.json is the truth:

    {"certificates": [{"serial", "name", "kind", "key", "not_before", "not_after", "revoked": null | {"at", "reason"}}],
     "blocked": [names that get no certificate until they are added again], "crl_number": n}

Times are seconds since the epoch, serials upper-case hex, "key" the SHA-256 of the public key. Whatever may be killed at any
moment is written in an order that never loses a revocation: first the index, then the list that is made from it.
"""

from __future__ import annotations

import argparse
import calendar
import contextlib
import fcntl
import hashlib
import ipaddress
import json
import os
import re
import secrets
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence

DAY = 86400
NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,62}")
USAGE = {"server": "serverAuth", "client": "clientAuth"}


class PkiError(Exception):
    """Something about keys or certificates is not as it must be; the text says what, never a secret."""


def openssl(*arguments: str, given: bytes = b"", passphrase: str = "", program: str = "openssl") -> bytes:
    """Return what a command prints. ``@pass`` among the arguments stands for the passphrase, handed over by a pipe.

    Neither arguments nor environment of a process ever hold a secret: others could read them.
    """
    words, kept = list(arguments), []
    try:
        if "@pass" in words:
            reader, writer = os.pipe()
            kept.append(reader)
            os.write(writer, passphrase.encode() + b"\n")
            os.close(writer)
            words[words.index("@pass")] = f"fd:{reader}"
        done = subprocess.run(
            [program, *words], input=given, capture_output=True, check=False, pass_fds=kept, timeout=60,
            env={"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C.UTF-8", "HOME": "/"},
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired) as exc:
        raise PkiError(f"{program} {words[0]}: {exc}") from exc
    finally:
        for descriptor in kept:
            os.close(descriptor)
    if done.returncode:
        said = (done.stderr or done.stdout).decode(errors="replace").strip().splitlines()
        raise PkiError(f"{program} {words[0]}: {said[-1] if said else f'exit {done.returncode}'}")
    return done.stdout


@contextlib.contextmanager
def alone(directory: str):
    """Let only one at a time work in a directory. One that is not there (check mode) keeps nobody out."""
    if not os.path.isdir(directory):
        yield
        return
    handle = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def write(path: str, content: bytes, mode: int) -> None:
    """Write a file so that it is there in full or not at all, and never readable for more people than it should be."""
    directory = os.path.dirname(path)
    descriptor, temporary = tempfile.mkstemp(prefix=".new-", dir=directory)
    try:
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(content)
            os.fchmod(stream.fileno(), mode)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
    handle = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def load(path: str) -> str:
    """Return the text of a file, or nothing when it is not there."""
    try:
        with open(path, encoding="ascii") as stream:
            return stream.read()
    except FileNotFoundError:
        return ""
    except (OSError, UnicodeDecodeError) as exc:
        raise PkiError(f"{path}: {exc}") from exc


def seconds(text: str) -> int:
    """Return the seconds since the epoch of a time as openssl prints it: C(Nov 24 21:00:00 2026 GMT)."""
    return calendar.timegm(time.strptime(text.strip(), "%b %d %H:%M:%S %Y %Z"))


def fields(output: bytes) -> dict[str, str]:
    """Return the C(name=value) lines that openssl prints."""
    return dict(line.split("=", 1) for line in output.decode().splitlines() if "=" in line)


def public_digest(pem: bytes) -> str:
    """Return the SHA-256 of a public key; refuse one that is too weak to prove anything by."""
    text = openssl("pkey", "-pubin", "-noout", "-text", given=pem).decode()
    bits = re.search(r"Public-Key: \((\d+) bit", text)
    curve = re.search(r"ASN1 OID: (\S+)", text)
    good = (curve and curve.group(1) in ("secp384r1", "secp521r1", "prime256v1")) or (
        not curve and "Modulus" in text and bits and int(bits.group(1)) >= 3072
    )
    if not good:
        raise PkiError("the key must be on P-256, P-384 or P-521, or RSA with at least 3072 bits")
    return hashlib.sha256(openssl("pkey", "-pubin", "-outform", "DER", given=pem)).hexdigest()


def certificate_facts(pem: str) -> dict:
    """Return ``{"name", "serial", "not_before", "not_after", "key"}`` of a certificate."""
    given = pem.encode()
    seen = fields(openssl("x509", "-noout", "-serial", "-startdate", "-enddate", given=given))
    subject = openssl("x509", "-noout", "-subject", "-nameopt", "multiline", given=given).decode()
    name = re.search(r"commonName\s*= (.+)", subject)
    public = openssl("x509", "-noout", "-pubkey", given=given)
    return {
        "name": name.group(1) if name else "",
        "serial": seen["serial"].upper(),
        "not_before": seconds(seen["notBefore"]),
        "not_after": seconds(seen["notAfter"]),
        "key": hashlib.sha256(openssl("pkey", "-pubin", "-outform", "DER", given=public)).hexdigest(),
    }


def request_facts(pem: str) -> dict:
    """Return ``{"name", "key"}`` of a signing request whose own signature holds (so the sender has the key)."""
    given = pem.encode()
    openssl("req", "-verify", "-noout", given=given)
    subject = openssl("req", "-noout", "-subject", "-nameopt", "multiline", given=given).decode()
    name = re.search(r"commonName\s*= (.+)", subject)
    return {"name": name.group(1) if name else "", "key": public_digest(openssl("req", "-noout", "-pubkey", given=given))}


def crl_facts(pem: str) -> dict:
    """Return ``{"issued", "next_update", "revoked": [serials]}`` of a revocation list."""
    given = pem.encode()
    seen = fields(openssl("crl", "-noout", "-lastupdate", "-nextupdate", given=given))
    text = openssl("crl", "-noout", "-text", given=given).decode()
    return {
        "issued": seconds(seen["lastUpdate"]),
        "next_update": seconds(seen["nextUpdate"]),
        "revoked": sorted(re.findall(r"Serial Number: ([0-9A-F]+)", text)),
    }


# --- where a key lives ------------------------------------------------------------------------------------------------


def make_key(passphrase: str = "") -> bytes:
    """Return a new private key on P-384 as PKCS#8, encrypted with AES-256 and a slow derivation if there is a passphrase."""
    key = openssl("genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-384", "-pkeyopt", "ec_param_enc:named_curve")
    if not passphrase:
        return key
    return openssl(
        "pkcs8", "-topk8", "-v2", "aes-256-cbc", "-v2prf", "hmacWithSHA256", "-iter", "600000", "-passout", "@pass",
        given=key, passphrase=passphrase,
    )  # fmt: skip


def make_request(key_file: str, name: str, passphrase: str = "") -> str:
    """Return a signing request of the key in a file."""
    if not NAME.fullmatch(name):
        raise PkiError(f"{name!r} is no name for a certificate")
    words = ["req", "-new", "-sha384", "-key", key_file, "-subj", f"/CN={name}"]
    return openssl(*words, *(["-passin", "@pass"] if passphrase else []), passphrase=passphrase).decode()


# --- the authority ----------------------------------------------------------------------------------------------------


class Authority:
    """One authority. All methods but C(lock) expect the lock to be held, and raise PkiError."""

    def __init__(self, directory: str, passphrase: str = "") -> None:
        self.directory, self.passphrase = directory, passphrase
        self.index: dict = {"certificates": [], "blocked": [], "crl_number": 0}
        text = load(self.path("index.json"))
        if text:
            try:
                self.index = json.loads(text)
            except ValueError as exc:
                raise PkiError(f"{self.path('index.json')}: {exc}") from exc

    def path(self, name: str) -> str:
        """Return a path in the authority's directory."""
        return os.path.join(self.directory, name)

    @staticmethod
    @contextlib.contextmanager
    def lock(directory: str, create: bool):
        """Let nobody else change the authority meanwhile; make its directory first if asked to."""
        if create:
            os.makedirs(os.path.dirname(directory), mode=0o755, exist_ok=True)
            with contextlib.suppress(FileExistsError):
                os.mkdir(directory, 0o700)
            os.chmod(directory, 0o700)
        with alone(directory):
            yield

    def save(self) -> None:
        """Write the index."""
        write(self.path("index.json"), json.dumps(self.index, indent=1, sort_keys=True).encode() + b"\n", 0o600)

    def exists(self) -> bool:
        """Say whether there is an authority. Half of one (a key without certificate, or the reverse) is an error."""
        key, certificate = (os.path.exists(self.path(name)) for name in ("ca.key", "ca.crt"))
        if certificate and not key:
            raise PkiError(f"{self.directory}: ca.crt is there, its key is not; put the key back from its backup")
        return certificate

    def create(self, name: str, days: int) -> None:
        """Make key and certificate of the authority. A key that a killed run left without certificate is used."""
        if not os.path.exists(self.path("ca.key")):
            write(self.path("ca.key"), make_key(self.passphrase), 0o600)
        certificate = openssl(
            "req", "-x509", "-new", "-sha384", "-key", self.path("ca.key"), *self._passin(), "-subj", f"/CN={name}",
            "-days", str(days), "-set_serial", str(secrets.randbits(127) | 1 << 126),
            "-addext", "basicConstraints=critical,CA:TRUE,pathlen:0", "-addext", "keyUsage=critical,keyCertSign,cRLSign",
            passphrase=self.passphrase,
        )  # fmt: skip
        write(self.path("ca.crt"), certificate, 0o644)

    def _passin(self) -> list[str]:
        return ["-passin", "@pass"] if self.passphrase else []

    def current(self, name: str, kind: str, key: str, now: float, addresses: Sequence[str] = ()) -> dict | None:
        """Return the entry of the certificate of a name and key that lasts longest and is neither revoked nor expired."""
        good = [
            entry for entry in self.index["certificates"]
            if entry["name"] == name and entry["kind"] == kind and entry["key"] == key
            and not entry["revoked"] and entry["not_after"] > now and entry.get("addresses", []) == sorted(addresses)
        ]  # fmt: skip
        return max(good, key=lambda entry: entry["not_after"], default=None)

    def issue(self, name: str, kind: str, request: str, days: int, supersede: bool = False, addresses: Sequence[str] = ()) -> str:
        """Sign a request and return the certificate. With ``supersede`` the name's certificates for other keys are revoked.

        ``addresses`` are other names and addresses under which a server is reached.
        """
        facts = request_facts(request)
        if facts["name"] != name:
            raise PkiError(f"the request is for {facts['name']!r}, not for {name!r}")
        serial = secrets.randbits(127) | 1 << 126
        extensions = f"basicConstraints=critical,CA:FALSE\nkeyUsage=critical,digitalSignature\nextendedKeyUsage={USAGE[kind]}\n"
        extensions += "subjectKeyIdentifier=hash\nauthorityKeyIdentifier=keyid:always\n"
        if kind == "server":
            others = [f"{'IP' if _is_address(other) else 'DNS'}:{other}" for other in addresses if other != name]
            extensions += f"subjectAltName={','.join([f'DNS:{name}', *others])}\n"
        with tempfile.TemporaryDirectory(dir=self.directory) as place:
            with open(os.path.join(place, "extensions"), "w", encoding="ascii") as stream:
                stream.write(extensions)
            pem = openssl(
                "x509", "-req", "-sha384", "-CA", self.path("ca.crt"), "-CAkey", self.path("ca.key"), *self._passin(),
                "-set_serial", str(serial), "-days", str(days), "-extfile", os.path.join(place, "extensions"),
                given=request.encode(), passphrase=self.passphrase,
            ).decode()  # fmt: skip
        facts = certificate_facts(pem)
        os.makedirs(self.path("issued"), mode=0o700, exist_ok=True)
        write(self.path(f"issued/{facts['serial']}.pem"), pem.encode(), 0o600)
        for entry in self.index["certificates"] if supersede else []:
            if entry["name"] == name and entry["kind"] == kind and entry["key"] != facts["key"] and not entry["revoked"]:
                entry["revoked"] = {"at": int(time.time()), "reason": "superseded"}
        more = {"addresses": sorted(addresses)} if addresses else {}
        self.index["certificates"].append({**facts, "kind": kind, "revoked": None, **more})
        self.save()
        return pem

    def revoke(self, names: set[str], block: bool) -> None:
        """Revoke all certificates of people; with ``block`` these get none until they are added again."""
        for entry in self.index["certificates"]:
            if entry["name"] in names and entry["kind"] == "client" and not entry["revoked"]:
                entry["revoked"] = {"at": int(time.time()), "reason": "cessationOfOperation"}
        if block:
            self.index["blocked"] = sorted({*self.index["blocked"], *names})
        self.save()

    def revoked(self, now: float) -> list[dict]:
        """Return the entries that belong on the list: revoked, and not expired anyway."""
        return [entry for entry in self.index["certificates"] if entry["revoked"] and entry["not_after"] > now]

    def crl_due(self, renew_days: float, now: float) -> bool:
        """Say whether the list must be made anew: it is missing, too old, or lacks a revocation."""
        text = load(self.path("crl.pem"))
        if not text:
            return True
        try:
            facts = crl_facts(text)
        except PkiError:
            return True
        missing = {entry["serial"] for entry in self.revoked(now)} - set(facts["revoked"])
        return bool(missing) or facts["next_update"] - now < renew_days * DAY

    def make_crl(self, days: int) -> None:
        """Sign a new revocation list from the index. openssl wants its own kind of index for that, made for the moment."""
        now = time.time()
        self.index["crl_number"] += 1
        self.save()
        with tempfile.TemporaryDirectory(dir=self.directory) as place:
            lines = [
                "\t".join(["R", _stamp(e["not_after"]), f"{_stamp(e['revoked']['at'])},{e['revoked']['reason']}",
                           e["serial"], "unknown", f"/CN={e['name']}"])
                for e in self.revoked(now)
            ]  # fmt: skip
            texts = {
                "index": "".join(line + "\n" for line in lines),
                "number": f"{self.index['crl_number']:04X}\n",
                "config": "[ca]\ndefault_ca=d\n[d]\ndefault_md=sha384\ncrl_extensions=e\nunique_subject=no\n"
                f"database={place}/index\ncrlnumber={place}/number\n[e]\nauthorityKeyIdentifier=keyid:always\n",
            }
            for name, text in texts.items():
                with open(os.path.join(place, name), "w", encoding="ascii") as stream:
                    stream.write(text)
            pem = openssl(
                "ca", "-config", f"{place}/config", "-gencrl", "-crldays", str(days), "-keyfile", self.path("ca.key"),
                "-cert", self.path("ca.crt"), *self._passin(), passphrase=self.passphrase,
            )  # fmt: skip
        write(self.path("crl.pem"), pem, 0o644)

    def public_index(self, now: float) -> list[dict]:
        """Return what a gateway may know of each certificate that is neither revoked nor expired."""
        return [
            {key: entry[key] for key in ("name", "kind", "serial", "not_after")}
            for entry in self.index["certificates"]
            if not entry["revoked"] and entry["not_after"] > now
        ]


def _is_address(text: str) -> bool:
    """Say whether a text is an address, not a name."""
    try:
        return bool(ipaddress.ip_address(text))
    except ValueError:
        return False


def _stamp(at: float) -> str:
    """Return a time as openssl's index has it: two digits of the year up to 2049, four from then on."""
    moment = time.gmtime(at)
    return time.strftime("%y%m%d%H%M%SZ" if moment.tm_year < 2050 else "%Y%m%d%H%M%SZ", moment)


def main(argv: list[str] | None = None) -> int:
    """Renew a revocation list before it expires, and publish it. Run by bulwark-vpn-crl.timer."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("action", choices=["renew-crl"])
    parser.add_argument("authority")
    parser.add_argument("--publish", required=True)
    parser.add_argument("--days", type=int, required=True)
    parser.add_argument("--renew-days", type=float, required=True)
    args = parser.parse_args(argv)
    try:
        with Authority.lock(args.authority, create=False):
            authority = Authority(args.authority)
            if not authority.exists():
                raise PkiError(f"{args.authority} holds no authority")
            if authority.crl_due(args.renew_days, time.time()):
                authority.make_crl(args.days)
                sys.stdout.write(f"event=crl_renewed number={authority.index['crl_number']} days={args.days}\n")
            fresh = load(authority.path("crl.pem"))
            if fresh != load(args.publish):
                write(args.publish, fresh.encode(), 0o644)
    except (PkiError, OSError) as exc:
        sys.stderr.write(f"event=crl_failed problem={json.dumps(str(exc))}\n")
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
