# SPDX-License-Identifier: GPL-3.0-or-later
"""Asking Duo's service: each thing that may be wrong is told from the others, and the secret key is never in what is said."""

from __future__ import annotations

import json
import threading

import duo_service
import pytest
from ansible_collections.bulwark.hardening.plugins.module_utils import duo_api

IKEY, SKEY = "DILABLABLABLABLABLAB", "lab0only0lab0only0lab0only0lab0only0lab0"


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    """A stand-in for Duo: (its directory, its host and port)."""
    directory = tmp_path_factory.mktemp("duo")
    (directory / "integration.json").write_text(json.dumps({"ikey": IKEY, "skey": SKEY}))
    duo_service.make_pki(directory, "localhost")
    server = duo_service.Server(("127.0.0.1", 0), directory)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield directory, f"localhost:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


def test_right_keys_are_taken(service):
    directory, host = service
    (directory / "state.json").write_text('{"answers": {"*": "allow"}}')
    assert abs(duo_api.check(host, IKEY, SKEY, str(directory / "ca.pem"), 5)) < 5


@pytest.mark.parametrize(
    ("state", "change", "kind", "words"),
    [
        ({}, {"secret_key": "0" * 40}, "keys", "(40103)"),
        ({}, {"integration_key": "DIOTHER"}, "keys", "(40102)"),
        ({"clock_offset_seconds": 1000}, {}, "clock", "seconds ahead"),
        ({"certificate": "wrong-name"}, {}, "name", "another name"),
        ({"certificate": "other-authority"}, {}, "authority", "not believed"),
        ({}, {"ca_file": ""}, "authority", "not believed"),
        ({}, {"ca_file": "/nonexistent"}, "authority", "/nonexistent is not there"),
        ({}, {"ca_file": __file__}, "authority", "holds no certificates"),
        ({"service": "closed"}, {}, "unreachable", "cannot be reached"),
        ({"service": "silent"}, {"timeout": 0.3}, "unreachable", "timed out"),
        ({}, {"host": "localhost:1"}, "unreachable", "refused"),
        ({}, {"host": "nowhere.invalid"}, "unreachable", "cannot be resolved"),
        ({"answers": {"*": "500"}}, {}, "answer", "status 500"),
        ({"answers": {"*": "garbage"}}, {}, "answer", "status 200"),
    ],
)
def test_what_is_wrong_is_told(service, state, change, kind, words):
    directory, host = service
    (directory / "state.json").write_text(json.dumps({"answers": {"*": "allow"}, **state}))
    wanted = {
        "host": host,
        "integration_key": IKEY,
        "secret_key": SKEY,
        "ca_file": str(directory / "ca.pem"),
        "timeout": 5,
        **change,
    }
    with pytest.raises(duo_api.Problem) as problem:
        duo_api.check(**wanted)
    assert problem.value.kind == kind and words in str(problem.value), str(problem.value)
    assert wanted["secret_key"] not in str(problem.value)
