#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-3.0-or-later
"""A stand-in for Duo's service in tests, standard library only; the clients that speak to it are the real ones.

    duo_service.py pki DIRECTORY [--name duo.lab]     make two authorities and the certificates below
    duo_service.py serve DIRECTORY [--bind 127.0.0.1] [--port 4443]

It speaks both dialects: /rest/v1/{preauth,auth,status}.bson, signed with HMAC-SHA1 (Debian's libpam-duo), and
/auth/v2/{ping,check,preauth,auth,auth_status}, signed with HMAC-SHA512 over the date as well (everything of today). Every
signature is verified. In the directory lie

    integration.json  {"ikey": "DI...", "skey": "..."}, mode 0600, so that the key is on no command line
    ca.pem            the lab's authority; other-ca.pem is one that nobody trusts
    state.json        what to answer, read at every connection and request, so that a test changes it by rewriting it
    requests.jsonl    every request as one line: time, dialect, call, user, arguments, whether the signature held, answer

state.json, every key of it optional:

    answers      {"alice": "allow", "*": "deny"}: by user; whoever is not named gets the answer of "*", else "deny"
        allow, deny              the second factor is approved or refused
        bypass, locked, enroll   answered before any factor is asked for
        timeout                  nobody reacts: after hang_seconds the login is refused
        code:123456              only this passcode is taken
        500 (any HTTP status)    that status and no content
        badsignature             what the service says to a wrong secret key, although the signature was right
        garbage                  200, but no answer that anybody could read
    certificate  good | wrong-name | other-authority
    service      up | closed (hangs up before a word is said) | silent (takes the connection and never speaks)
    hang_seconds    8
    clock_offset_seconds    0: how far the service's clock is from the host's
"""

from __future__ import annotations

import argparse
import base64
import email.utils
import hashlib
import hmac
import json
import os
import secrets
import ssl
import struct
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qsl, quote

CERTIFICATES = {"good": "ca", "wrong-name": "ca", "other-authority": "other-ca"}
CLOCK_TOLERANCE = 300  # seconds that a signed date may be off
EARLY = {  # answers at preauth, before any factor: result and what the user is told
    "bypass": ("allow", "Login allowed by bypass status"),
    "locked": ("deny", "Your account is disabled and cannot access this application."),
    "enroll": ("enroll", "Please enroll first."),
}


class Refused(Exception):
    """A request whose credentials do not hold, with the code and the words that Duo uses."""


def bson(document: dict) -> bytes:
    """Encode a dict of str, int and dict: the three types that the old dialect knows."""
    body = b""
    for key, value in document.items():
        name = key.encode() + b"\0"
        if isinstance(value, dict):
            body += b"\x03" + name + bson(value)
        elif isinstance(value, int):
            body += b"\x10" + name + struct.pack("<i", value)
        else:
            text = str(value).encode() + b"\0"
            body += b"\x02" + name + struct.pack("<i", len(text)) + text
    return struct.pack("<i", len(body) + 5) + body + b"\0"


def canonical(method: str, host: str, path: str, arguments: dict[str, str], date: str = "") -> str:
    """Return what a request's signature is made over. Duo's API: date (new dialect only), method, host, path, parameters."""
    parameters = "&".join(f"{quote(key, '~')}={quote(value, '~')}" for key, value in sorted(arguments.items()))
    return "\n".join([*([date] if date else []), method.upper(), host.lower(), path, parameters])


def sign(secret: str, text: str, legacy: bool) -> str:
    """Return the signature of a canonical request: SHA-1 in the old dialect, SHA-512 in the new one."""
    return hmac.new(secret.encode(), text.encode(), hashlib.sha1 if legacy else hashlib.sha512).hexdigest()


class Service:
    """What all connections share: the directory, the integration, the open transactions and the record."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        integration = json.loads((directory / "integration.json").read_text())
        self.ikey, self.skey = integration["ikey"], integration["skey"]
        self.lock = threading.Lock()
        self.transactions: dict[str, list] = {}  # id: [user, factor, times asked]

    def state(self) -> dict:
        """Return what a test wants answered; a file that is just being written is read again."""
        for _ in range(20):
            try:
                return json.loads((self.directory / "state.json").read_text())
            except FileNotFoundError:
                return {}
            except ValueError:
                time.sleep(0.02)
        raise SystemExit("state.json is no JSON")

    def answer(self, user: str) -> str:
        """Return the scripted answer of a user."""
        answers = self.state().get("answers", {})
        return str(answers.get(user, answers.get("*", "deny")))

    def now(self) -> float:
        """Return the service's own time."""
        return time.time() + float(self.state().get("clock_offset_seconds", 0))

    def record(self, **entry: object) -> None:
        """Add one line to the record of requests."""
        line = json.dumps({"time": round(time.time(), 3), **entry})
        with self.lock, (self.directory / "requests.jsonl").open("a") as stream:
            stream.write(line + "\n")

    def verify(self, method: str, headers: dict, path: str, arguments: dict[str, str], legacy: bool) -> None:
        """Raise Refused unless a request is signed with the integration's keys, and dated now."""
        try:
            scheme, blob = headers["Authorization"].split()
            ikey, given = base64.b64decode(blob).decode().split(":")
        except (KeyError, TypeError, ValueError, AttributeError):
            raise Refused(40101, "Missing request credentials") from None
        if scheme != "Basic" or ikey != self.ikey:
            raise Refused(40102, "Invalid integration key in request credentials")
        date = "" if legacy else headers["X-Duo-Date"] or headers["Date"] or ""
        host = (headers["Host"] or "").rsplit(":", 1)[0]
        wanted = sign(self.skey, canonical(method, host, path, arguments, date), legacy)
        if not hmac.compare_digest(wanted, given):
            raise Refused(40103, "Invalid signature in request credentials")
        if not legacy:
            try:
                distance = abs(email.utils.parsedate_to_datetime(date).timestamp() - self.now())
            except (TypeError, ValueError):
                distance = CLOCK_TOLERANCE + 1
            if distance > CLOCK_TOLERANCE:
                raise Refused(40105, "Bad request timestamp")


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    service: Service

    def log_message(self, *_words: object) -> None:
        """Keep quiet: requests.jsonl has it all."""

    def handle_one_call(self) -> None:
        """Answer one request, of either dialect."""
        self.route, _, query = self.path.partition("?")
        length = int(self.headers.get("Content-Length") or 0)
        text = self.rfile.read(length).decode() if length else query
        self.arguments = dict(parse_qsl(text, keep_blank_values=True))
        self.legacy = self.route.startswith("/rest/v1/")
        self.call = self.route.rsplit("/", 1)[1].split(".")[0]
        self.signed: bool | None = None
        if self.route == "/auth/v2/ping":
            self.good({"time": int(self.service.now())})
            return
        try:
            self.service.verify(self.command, self.headers, self.route, self.arguments, self.legacy)
        except Refused as refused:
            self.signed = False
            self.bad(*refused.args)
            return
        self.signed = True
        user = self.arguments.get("user") or self.arguments.get("username") or ""
        if self.call in ("status", "auth_status"):
            self.follow_up(self.arguments.get("txid", ""))
        elif self.call == "check":
            self.scripted("*") or self.good({"time": int(self.service.now())})
        elif self.call == "preauth":
            self.scripted(user) or self.preauth(user)
        elif self.call == "auth":
            self.scripted(user) or self.auth(user)
        else:
            self.reply(404, b"")

    do_GET = do_POST = handle_one_call

    # --- the calls ---------------------------------------------------------------------------------------------------

    def scripted(self, user: str) -> bool:
        """Give the answers that are none: a bare HTTP status, a refused signature, garbage. Return whether one was given."""
        answer = self.service.answer(user)
        if answer.isdigit():
            self.reply(int(answer), b"")
        elif answer == "badsignature":
            self.bad(40103, "Invalid signature in request credentials")
        elif answer == "garbage":
            self.reply(200, b"\x07\x00\x00\x00not an answer" + os.urandom(32))
        else:
            return False
        return True

    def preauth(self, user: str) -> None:
        """Say whether a factor is needed, and which there are."""
        early = EARLY.get(self.service.answer(user))
        if early:
            self.good({"result": early[0], self.words: early[1]})
            return
        prompt = f"Duo two-factor login for {user}\n\nEnter a passcode or select one of the following options:\n\n"
        prompt += " 1. Duo Push to XXX-XXX-0100\n\nPasscode or option (1-1): "
        factors = {"default": "push1", "1": "push1"}
        if self.legacy:
            self.good({"result": "auth", self.words: "Account is active", "prompt": prompt, "factors": factors})
        else:
            self.good({"result": "auth", self.words: "Account is active", "prompt": {"text": prompt, "factors": factors}})

    def auth(self, user: str) -> None:
        """Try a factor, at once or as a transaction that is asked about later."""
        given = [self.arguments.get(name) for name in ("auto", "prompt", "passcode", "factor")]
        factor = next((one for one in given if one), "")
        if self.arguments.get("async") == "1":
            transaction = secrets.token_hex(16)
            self.service.transactions[transaction] = [user, factor, 0]
            self.good({"txid": transaction})
        else:
            self.good(self.decision(user, factor))

    def follow_up(self, transaction: str) -> None:
        """Say how a transaction stands: pushed when first asked, decided from then on."""
        known = self.service.transactions.get(transaction)
        if known is None:
            self.good({"result": "deny", self.words: "No such transaction"})
            return
        known[2] += 1
        if known[2] == 1:
            waiting = {} if self.legacy else {"result": "waiting"}
            self.good({self.words: "Pushed a login request to your phone...", **waiting})
        else:
            self.good(self.decision(known[0], known[1]))

    def decision(self, user: str, factor: str) -> dict:
        """Return what became of a factor."""
        answer = self.service.answer(user)
        if answer == "timeout":
            time.sleep(float(self.service.state().get("hang_seconds", 8)))
            return {"result": "deny", self.words: "Login timed out."}
        if factor == answer[5:] if answer.startswith("code:") else answer in ("allow", "bypass"):
            return {"result": "allow", self.words: "Success. Logging you in..."}
        if answer.startswith("code:"):
            return {"result": "deny", self.words: "Incorrect passcode. Please try again."}
        return {"result": "deny", self.words: "Login request denied."}

    # --- answers -----------------------------------------------------------------------------------------------------

    @property
    def words(self) -> str:
        """The name of the field with words for the user."""
        return "status" if self.legacy else "status_msg"

    def good(self, response: dict) -> None:
        """Answer that a call succeeded."""
        self.reply(200, {"stat": "OK", "response": response})

    def bad(self, code: int, message: str) -> None:
        """Answer that the credentials of a request do not hold."""
        self.reply(401, {"stat": "FAIL", "code": code, "message": message})

    def reply(self, status: int, payload: dict | bytes) -> None:
        """Send an answer and write it down."""
        raw = payload if isinstance(payload, bytes) else bson(payload) if self.legacy else json.dumps(payload).encode()
        self.service.record(
            dialect="rest/v1" if self.legacy else "auth/v2", call=self.call, method=self.command, signed=self.signed,
            user=self.arguments.get("user") or self.arguments.get("username") or "", arguments=self.arguments,
            agent=self.headers.get("User-Agent", ""), status=status, answer=None if isinstance(payload, bytes) else payload,
        )  # fmt: skip
        try:
            self.send_response(status)
            self.send_header("Content-Type", "application/bson" if self.legacy else "application/json")
            self.send_header("Content-Length", str(len(raw)))
            self.end_headers()
            self.wfile.write(raw)
        except OSError:  # the client gave up: a test case
            self.close_connection = True


class Server(ThreadingHTTPServer):
    """Greets each connection with the certificate that the state names at that moment."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, address: tuple[str, int], directory: Path) -> None:
        self.service = Service(directory)
        self.contexts = {}
        for name in CERTIFICATES:
            self.contexts[name] = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            self.contexts[name].load_cert_chain(directory / f"{name}.pem")
        super().__init__(address, type("BoundHandler", (Handler,), {"service": self.service}))

    def finish_request(self, request, client_address) -> None:
        """Speak TLS, in the connection's own thread so that a client that hangs holds up nobody."""
        state = self.service.state()
        service = state.get("service", "up")
        if service != "up":
            self.service.record(dialect="", call=service)
            if service == "silent":
                request.settimeout(120)
                while request.recv(4096):
                    pass
            return
        request.settimeout(120)
        with self.contexts[state.get("certificate", "good")].wrap_socket(request, server_side=True) as secured:
            super().finish_request(secured, client_address)

    def handle_error(self, _request, _client_address) -> None:
        """Write down that a client turned away from us, at our certificate most often."""
        self.service.record(dialect="", call="tls-error", error=repr(sys.exc_info()[1])[:200])


def openssl(directory: Path, *words: str, text: str = "") -> None:
    """Run openssl in a directory, quietly. Raises CalledProcessError."""
    subprocess.run(["openssl", *words], cwd=directory, input=text, text=True, check=True, capture_output=True)


def make_pki(directory: Path, name: str) -> None:
    """Make the authorities and the certificates of CERTIFICATES, unless they are there. Their keys are mode 0600."""
    if (directory / "other-authority.pem").exists():
        return
    os.umask(0o077)
    directory.mkdir(parents=True, exist_ok=True)
    curve = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")
    for authority in sorted(set(CERTIFICATES.values())):
        openssl(
            directory, "req", "-x509", *curve, "-keyout", f"{authority}.key", "-out", f"{authority}.pem", "-days", "30",
            "-subj", f"/CN=Lab authority {authority}", "-addext", "keyUsage=critical,keyCertSign,cRLSign",
        )  # fmt: skip
    for certificate, authority in CERTIFICATES.items():
        subject = f"elsewhere.{name}" if certificate == "wrong-name" else name
        openssl(directory, "req", *curve, "-keyout", "leaf.key", "-out", "leaf.csr", "-subj", f"/CN={subject}")
        extensions = directory / "leaf.ext"
        extensions.write_text(f"subjectAltName=DNS:{subject}\nbasicConstraints=critical,CA:FALSE\nextendedKeyUsage=serverAuth\n")
        openssl(
            directory, "x509", "-req", "-in", "leaf.csr", "-CA", f"{authority}.pem", "-CAkey", f"{authority}.key",
            "-CAcreateserial", "-days", "30", "-out", "leaf.crt", "-extfile", "leaf.ext",
        )  # fmt: skip
        both = (directory / "leaf.key").read_text() + (directory / "leaf.crt").read_text()
        (directory / f"{certificate}.pem").write_text(both)
    for leftover in directory.glob("leaf.*"):
        leftover.unlink()
    for authority in set(CERTIFICATES.values()):
        (directory / f"{authority}.pem").chmod(0o644)
    directory.chmod(0o755)


def main() -> None:
    """Do what the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    pki = commands.add_parser("pki")
    pki.add_argument("directory", type=Path)
    pki.add_argument("--name", default="duo.lab")
    serve = commands.add_parser("serve")
    serve.add_argument("directory", type=Path)
    serve.add_argument("--bind", default="127.0.0.1")
    serve.add_argument("--port", type=int, default=4443)
    arguments = parser.parse_args()
    if arguments.command == "pki":
        make_pki(arguments.directory, arguments.name)
    else:
        os.umask(0o077)
        Server((arguments.bind, arguments.port), arguments.directory).serve_forever()


if __name__ == "__main__":
    main()
