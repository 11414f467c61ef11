# SPDX-License-Identifier: GPL-3.0-or-later
"""What a visitor without certificate finds at a TLS server, with real servers on the loopback."""

from __future__ import annotations

import os
import socket
import ssl
import subprocess
import threading
import time
import warnings
from pathlib import Path

import pytest
from ansible_collections.bulwark.hardening.plugins.module_utils.posture import services

REFUSED = r"HTTP/1\.[01] 40[13] "


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    """A certificate that nobody vouches for, and its key."""
    place = tmp_path_factory.mktemp("own")
    key, certificate = str(place / "key"), str(place / "crt")
    subprocess.run(["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-subj", "/CN=x",
                    "-days", "1", "-keyout", key, "-out", certificate], check=True, capture_output=True)  # fmt: skip
    return certificate, key


@pytest.fixture
def serve(own):
    """A way to start a server that answers one visitor; it returns its port."""
    threads = []

    def start(answer: bytes, certificate_asked: bool = False, oldest=ssl.TLSVersion.TLSv1_2) -> int:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*own)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            context.minimum_version = oldest
        context.set_ciphers("ALL:@SECLEVEL=0")
        if certificate_asked:
            context.verify_mode = ssl.CERT_REQUIRED
            context.load_verify_locations(own[0])
        listener = socket.create_server(("127.0.0.1", 0))
        listener.settimeout(20)

        def once() -> None:
            try:
                with listener, listener.accept()[0] as raw, context.wrap_socket(raw, server_side=True) as visitor:
                    visitor.recv(1000)
                    visitor.sendall(answer)
            except OSError:
                pass

        threads.append(threading.Thread(target=once))
        threads[-1].start()
        return listener.getsockname()[1]

    yield start
    for thread in threads:
        thread.join()


@pytest.mark.parametrize(
    ("answer", "asked", "what"),
    [
        (b"HTTP/1.1 200 OK\r\n\r\n", False, "open"),
        (b"HTTP/1.1 401 Unauthorized\r\n\r\n", False, "refused"),
        (b"HTTP/1.0 403 Forbidden\r\n\r\n", False, "refused"),
        (b"HTTP/1.1 404 Not Found\r\n\r\n", False, "open"),  # it looked for the thing
        (b"HTTP/1.1 500 Oh\r\nX: HTTP/1.1 401 \r\n", False, "open"),
        (b"", False, "refused"),
        (b"HTTP/1.1 200 OK\r\n\r\n", True, "refused"),
    ],
)
def test_visitor(serve, answer, asked, what):
    assert services.knock("0.0.0.0", serve(answer, asked), b"GET / HTTP/1.1\r\n\r\n", REFUSED) == what


def test_visitor_to_whom_nothing_may_be_answered_takes_every_word_for_open(serve):
    assert services.knock("127.0.0.1", serve(b"HTTP/1.1 401 \r\n"), b"GET / HTTP/1.1\r\n\r\n", "(?!)") == "open"


@pytest.mark.parametrize(("oldest", "what"), [(ssl.TLSVersion.TLSv1, "open"), (ssl.TLSVersion.TLSv1_2, "refused")])
def test_old_protocol(serve, oldest, what):
    """The visitor can speak it: a server that still does is found out."""
    assert (
        services.knock("127.0.0.1", serve(b"HTTP/1.1 200 OK\r\n", oldest=oldest), b"GET / HTTP/1.1\r\n\r\n", REFUSED, True)
        == what
    )


def test_nobody_listens():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    assert services.knock("127.0.0.1", port, b"x", REFUSED) == "closed"


def test_files_written_after_the_start_are_not_in_force(tmp_path):
    path = tmp_path / "settings"
    now = time.time()
    assert not services.unchanged_since(now, str(path)), "nor is one that is not there"
    path.write_text("x")
    os.utime(path, (now, now))
    assert services.unchanged_since(now - 0.5, str(path))
    assert not services.unchanged_since(now - 2, str(path))
    assert not services.unchanged_since(0.0, str(path)), "it does not run"


def test_process_and_units(monkeypatch):
    """Of this very process, as if systemd had started it; and of a service that does not run."""
    said = {
        "mine.service": f"MainPID={os.getpid()}\n",
        "gone.service": "MainPID=0\n",
    }

    def run(argv, **more):
        if "Wants" in argv:
            return "b.timer other.service\n\na.service\n"
        return "active\n\ninactive\n" if "--value" in argv else said[argv[-1]]

    monkeypatch.setattr(services, "run", run)
    about = services.process("mine.service")
    assert about["arguments"] == Path(f"/proc/{os.getpid()}/cmdline").read_text().split("\0")[1:-1]
    assert abs(about["started"] - os.stat(f"/proc/{os.getpid()}").st_ctime) < 60
    child = subprocess.Popen(["sleep", "60"])
    said["mine.service"] = f"MainPID={child.pid}\n"
    started = services.process("mine.service")["started"]
    child.kill()
    child.wait()
    assert abs(started - time.time()) < 5
    assert about["user"] == services.owner_name(os.getuid())
    assert services.process("gone.service") == {"user": "", "no_new_privileges": False, "arguments": [], "started": 0.0}
    assert services.states(["a.service", "b.timer"]) == {"a.service": "active", "b.timer": "inactive"}
    assert services.at_boot(["a.service", "b.timer", "c.timer"]) == ["a.service", "b.timer"]
