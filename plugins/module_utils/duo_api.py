# Copyright: (c) 2026, Bulwark contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Ask Duo's service whether it is there and takes an integration's keys: the calls /auth/v2/ping and /auth/v2/check.

Written after Duo's description of its Auth API. The secret key signs requests and never leaves this process; no message made
here holds it.
"""

from __future__ import annotations

import base64
import email.utils
import hashlib
import hmac
import http.client
import json
import os
import socket
import ssl
import time

CLOCK_TOLERANCE = 300  # seconds that Duo allows between its clock and that of a signed request
WRONG_NAME = 62  # X509_V_ERR_HOSTNAME_MISMATCH
CODES = {
    40101: "it received no credentials",
    40102: "it does not know the integration key",
    40103: "the secret key does not belong to the integration key",
    40104: "it does not let requests in from this address (networks allowed for the integration)",
    40105: "it takes the time of the request for wrong: set this machine's clock",
}


class Problem(Exception):
    """Duo's service cannot be used. ``kind`` is one word for programs, the text says in a sentence what is wrong."""

    def __init__(self, kind: str, text: str) -> None:
        super().__init__(text)
        self.kind = kind


def check(host: str, integration_key: str, secret_key: str, ca_file: str = "", timeout: float = 10) -> float:
    """Return the seconds by which Duo's clock is ahead of ours, when it is there, proves itself and takes the keys.

    ``host`` may end in a port. Without ``ca_file`` the system's authorities are believed. Raises Problem.
    """
    if ca_file and not os.path.isfile(ca_file):
        raise Problem("authority", f"{ca_file} is not there: no authority to check the service's certificate with")
    try:
        context = ssl.create_default_context(cafile=ca_file or None)
    except (OSError, ssl.SSLError) as exc:
        raise Problem("authority", f"{ca_file} holds no certificates: {exc}") from None
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    said = call(host, "/auth/v2/ping", context, timeout)
    ahead = float(said.get("time", 0)) - time.time()
    if abs(ahead) > CLOCK_TOLERANCE:
        raise Problem("clock", f"{host} is {ahead:.0f} seconds ahead of this machine's clock; Duo allows {CLOCK_TOLERANCE}")
    call(host, "/auth/v2/check", context, timeout, (integration_key, secret_key))
    return ahead


def signed(method: str, host: str, path: str, date: str, keys: tuple[str, str]) -> str:
    """Return the Authorization header of a request without parameters."""
    text = "\n".join([date, method, host.lower(), path, ""])
    signature = hmac.new(keys[1].encode(), text.encode(), hashlib.sha512).hexdigest()
    return "Basic " + base64.b64encode(f"{keys[0]}:{signature}".encode()).decode()


def call(host: str, path: str, context: ssl.SSLContext, timeout: float, keys: tuple[str, str] | None = None) -> dict:
    """Return what the service answers to a call, signed if keys are given. Raises Problem."""
    name, _colon, port = host.partition(":")
    date = email.utils.formatdate()
    headers = {"Date": date, "X-Duo-Date": date}
    if keys:
        headers["Authorization"] = signed("GET", name, path, date, keys)
    connection = http.client.HTTPSConnection(name, int(port or 443), timeout=timeout, context=context)
    try:
        connection.request("GET", path, headers=headers)
        answer = connection.getresponse()
        status, text = answer.status, answer.read(1 << 16)
    except ssl.SSLCertVerificationError as exc:
        if exc.verify_code == WRONG_NAME:
            raise Problem("name", f"{host} has a certificate for another name: {exc.verify_message}") from None
        raise Problem(
            "authority", f"{host} has a certificate of an authority that is not believed: {exc.verify_message}"
        ) from None
    except socket.gaierror as exc:
        raise Problem("unreachable", f"the name {name} cannot be resolved: {exc.strerror}") from None
    except (OSError, http.client.HTTPException) as exc:
        said = getattr(exc, "strerror", None) or str(exc) or type(exc).__name__
        raise Problem("unreachable", f"{host} cannot be reached: {said}") from None
    finally:
        connection.close()
    try:
        said = json.loads(text)
        response = said.get("response")
    except (ValueError, AttributeError):
        said, response = {}, None
    if status == 200 and said.get("stat") == "OK" and isinstance(response, dict):
        return response
    code = said.get("code")
    if code in CODES:
        raise Problem("clock" if code == 40105 else "keys", f"{host} refuses the keys: {CODES[code]} ({code})")
    raise Problem("answer", f"{host} answered {path} with status {status}" + (f" ({code})" if isinstance(code, int) else ""))
