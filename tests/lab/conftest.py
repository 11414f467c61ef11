# SPDX-License-Identifier: GPL-3.0-or-later
"""Plain servers of a test's own, beside the lab's."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import lab
import pytest


@pytest.fixture(scope="module")
def plain_server(tmp_path_factory) -> Iterator[Callable[[str, str], Path]]:
    """Return a function (name, platform) that starts a plain server and returns a directory with its inventory and key."""
    started = []

    def start(name: str, platform: str) -> Path:
        directory = tmp_path_factory.mktemp(name)
        _key, public = lab.machines.key_pair(directory)
        lab.machines.build_images([platform])
        started.append(name)
        address = lab.machines.start(name, platform, public, owner="bulwark-lab", hostname=name)
        keys = lab.machines.run("podman", "exec", name, "sh", "-c", "cat /etc/ssh/ssh_host_*_key.pub").splitlines()
        (directory / "known_hosts").write_text("".join(f"{address} {line}\n" for line in keys))
        variables = {
            "ansible_host": address,
            "ansible_user": "deploy",
            "ansible_python_interpreter": "/usr/bin/python3",
            "ansible_private_key_file": "{{ inventory_dir }}/id_ed25519",
            "ansible_ssh_common_args": "-o IdentitiesOnly=yes -o UserKnownHostsFile={{ inventory_dir }}/known_hosts",
        }
        (directory / "hosts.json").write_text(json.dumps({"all": {"hosts": {name: variables}}}))
        (directory / "group_vars").mkdir()
        (directory / "group_vars" / "all.yml").write_text((lab.ROOT / "inventories/lab/group_vars/all.yml").read_text())
        return directory

    yield start
    for name in started:
        lab.machines.stop(name)
