# SPDX-License-Identifier: GPL-3.0-or-later
"""The stand-in for Duo's service: a test double that answers anybody, or anything, would prove nothing."""

from __future__ import annotations

import base64
import email.utils
import json
import socket
import ssl
import threading
import time
import urllib.error
import urllib.request
from urllib.parse import urlencode

import duo_service
import pytest

IKEY, SKEY = "DILABLABLABLABLABLAB", "lab0only0lab0only0lab0only0lab0only0lab0"


class Client:
    """Speaks to the double as a well-behaved client does, unless told otherwise."""

    def __init__(self, directory, port):
        self.directory, self.port = directory, port

    def state(self, **state):
        (self.directory / "state.json").write_text(json.dumps(state))

    def records(self):
        return [json.loads(line) for line in (self.directory / "requests.jsonl").read_text().splitlines()]

    def call(self, path, secret=SKEY, ikey=IKEY, when=None, authority="ca.pem", **arguments):
        """Return (status, body) of a call in the dialect of its path."""
        legacy = path.startswith("/rest/")
        date = email.utils.formatdate(when if when is not None else time.time())
        text = duo_service.canonical("POST", "localhost", path, arguments, "" if legacy else date)
        signature = duo_service.sign(secret, text, legacy)
        headers = {"Authorization": "Basic " + base64.b64encode(f"{ikey}:{signature}".encode()).decode(), "Date": date}
        request = urllib.request.Request(f"https://localhost:{self.port}{path}", urlencode(arguments).encode(), headers)
        context = ssl.create_default_context(cafile=self.directory / authority)
        try:
            with urllib.request.urlopen(request, timeout=10, context=context) as answer:
                return answer.status, answer.read()
        except urllib.error.HTTPError as error:
            return error.code, error.read()


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    """A directory with keys and certificates for localhost."""
    directory = tmp_path_factory.mktemp("duo")
    (directory / "integration.json").write_text(json.dumps({"ikey": IKEY, "skey": SKEY}))
    duo_service.make_pki(directory, "localhost")
    return directory


@pytest.fixture(scope="module")
def client(directory):
    """A client of a double that runs."""
    server = duo_service.Server(("127.0.0.1", 0), directory)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield Client(directory, server.server_address[1])
    server.shutdown()
    server.server_close()


def answer(result):
    """Return the response within an answer of the new dialect that says all is well."""
    status, body = result
    assert status == 200, result
    return json.loads(body)["response"]


def test_only_a_right_signature_is_answered(client):
    client.state(answers={"*": "allow"})
    assert answer(client.call("/auth/v2/check"))["time"]
    for wrong, code in (({"secret": "0" * 40}, 40103), ({"ikey": "DIOTHER"}, 40102), ({"when": time.time() - 900}, 40105)):
        status, body = client.call("/auth/v2/check", **wrong)
        assert (status, json.loads(body)["code"]) == (401, code)
    assert client.call("/rest/v1/preauth.bson", secret="0" * 40, user="alice")[0] == 401
    assert [record["signed"] for record in client.records()[-5:]] == [True, False, False, False, False]


def test_a_ping_needs_no_signature_and_tells_the_time(client):
    client.state(clock_offset_seconds=1000)
    context = ssl.create_default_context(cafile=client.directory / "ca.pem")
    with urllib.request.urlopen(f"https://localhost:{client.port}/auth/v2/ping", timeout=10, context=context) as got:
        assert json.loads(got.read())["response"]["time"] - time.time() > 900


@pytest.mark.parametrize(
    ("scripted", "result"), [("bypass", "allow"), ("locked", "deny"), ("enroll", "enroll"), ("allow", "auth"), ("code:1", "auth")]
)
def test_answers_before_a_factor(client, scripted, result):
    client.state(answers={"alice": scripted})
    assert answer(client.call("/auth/v2/preauth", username="alice"))["result"] == result
    status, body = client.call("/rest/v1/preauth.bson", user="alice")
    assert status == 200 and b"\x02result\0" in body and result.encode() + b"\0" in body
    assert answer(client.call("/auth/v2/auth", username="mallory", factor="push"))["result"] == "deny", "who is not named"


def test_a_push_waits_and_is_then_decided(client):
    client.state(answers={"alice": "allow"})
    transaction = answer(client.call("/auth/v2/auth", username="alice", factor="push", **{"async": "1"}))["txid"]
    assert answer(client.call("/auth/v2/auth_status", txid=transaction))["result"] == "waiting"
    client.state(answers={"alice": "deny"})
    assert answer(client.call("/auth/v2/auth_status", txid=transaction))["result"] == "deny"


def test_a_passcode_is_the_right_one_or_none(client):
    client.state(answers={"alice": "code:123456"})
    assert answer(client.call("/auth/v2/auth", username="alice", passcode="123456"))["result"] == "allow"
    assert answer(client.call("/auth/v2/auth", username="alice", passcode="654321"))["result"] == "deny"
    assert answer(client.call("/auth/v2/auth", username="alice", factor="push"))["result"] == "deny"


def test_a_timeout_takes_its_time(client):
    client.state(answers={"*": "timeout"}, hang_seconds=0.3)
    began = time.monotonic()
    assert answer(client.call("/auth/v2/auth", username="alice", factor="push"))["result"] == "deny"
    assert time.monotonic() - began >= 0.3


def test_answers_that_are_none(client):
    for scripted, status in (("500", 500), ("badsignature", 401), ("garbage", 200)):
        client.state(answers={"*": scripted})
        assert client.call("/auth/v2/preauth", username="alice")[0] == status
    assert b"not an answer" in client.call("/auth/v2/preauth", username="alice")[1]


@pytest.mark.parametrize("certificate", ["wrong-name", "other-authority"])
def test_other_certificates_do_not_verify(client, certificate):
    client.state(certificate=certificate)
    with pytest.raises(urllib.error.URLError, match="CERTIFICATE_VERIFY_FAILED"):
        client.call("/auth/v2/check")
    client.state(certificate="good", answers={"*": "allow"})
    assert answer(client.call("/auth/v2/check"))


def test_it_can_hang_up_and_be_silent(client):
    client.state(service="closed")
    with pytest.raises((urllib.error.URLError, ConnectionError)):
        client.call("/auth/v2/check")
    client.state(service="silent")
    with socket.create_connection(("127.0.0.1", client.port), 5) as connection:
        connection.settimeout(0.3)
        with pytest.raises(TimeoutError):
            connection.recv(1)


def test_keys_are_for_their_owner_alone(directory):
    for path in directory.glob("*.key"):
        assert path.stat().st_mode & 0o077 == 0
