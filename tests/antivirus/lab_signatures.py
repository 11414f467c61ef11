# SPDX-License-Identifier: GPL-3.0-or-later
"""A source of signatures for tests, and things that they match; the well-known test file is put together when it is needed.

lab_signatures.py sign DIRECTORY NAME TEXT...    add a signature for files that contain a text to DIRECTORY/lab.ndb
lab_signatures.py serve DIRECTORY PORT [CERT KEY]  serve the directory on this host, over TLS with a certificate and its key
lab_signatures.py make DIRECTORY [TEXT]          write a file with the text (without one, the well-known test file), plain,
                                                 in a zip, in a tar.gz, in a zip in a tar, and as a mail's attachment
"""

from __future__ import annotations

import email.message
import functools
import http.server
import io
import ssl
import sys
import tarfile
import zipfile
from pathlib import Path

TEST_FILE = ("X5O!P%@AP[4\\PZX54(P^)7CC)7}$", "EICAR", "-STANDARD-ANTIVIRUS-TEST-FILE", "!$H+H*")


def sign(directory: Path, name: str, text: str) -> None:
    """Add a signature; the well-known test file is asked for by an empty text."""
    with (directory / "lab.ndb").open("a") as stream:
        stream.write(f"{name}:0:*:{(text or ''.join(TEST_FILE)).encode().hex()}\n")


def serve(directory: Path, port: int, *certificate: str) -> None:
    """Serve a directory until killed, over TLS if a certificate and its key are given."""
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(directory))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", port), handler)
    if certificate:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*certificate)
        server.socket = context.wrap_socket(server.socket, server_side=True)
    server.serve_forever()


def make(directory: Path, text: str) -> None:
    """Write infected files of several kinds."""
    data = (text or "".join(TEST_FILE)).encode()
    zipped, mail = io.BytesIO(), email.message.EmailMessage()
    with zipfile.ZipFile(zipped, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("letter/invoice.com", data)
    for name, inner, kind in (("a.tar.gz", data, "w:gz"), ("nested.tar", zipped.getvalue(), "w")):
        with tarfile.open(directory / name, kind) as archive:
            about = tarfile.TarInfo("invoice.com" if kind == "w:gz" else "more.zip")
            about.size = len(inner)
            archive.addfile(about, io.BytesIO(inner))
    mail["From"], mail["To"], mail["Subject"] = "a@example.org", "b@example.org", "Invoice"
    mail.set_content("See attachment.")
    mail.add_attachment(data, maintype="application", subtype="octet-stream", filename="invoice.com")
    (directory / "plain.com").write_bytes(data)
    (directory / "a.zip").write_bytes(zipped.getvalue())
    (directory / "letter.eml").write_bytes(bytes(mail))


def main() -> None:
    """Do what the command line says."""
    verb, directory, *rest = sys.argv[1:]
    if verb == "sign":
        sign(Path(directory), rest[0], " ".join(rest[1:]))
    elif verb == "serve":
        serve(Path(directory), int(rest[0]), *rest[1:])
    else:
        make(Path(directory), " ".join(rest))


if __name__ == "__main__":
    main()
