# SPDX-License-Identifier: GPL-3.0-or-later
"""The lab, hardened once for all tests of a run; and plain servers of a test's own beside it."""

from __future__ import annotations

import dataclasses
import json
import re
import subprocess
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import lab
import pytest
import way_in

MISSING = "lab-server-99"  # in the inventory for the audits, but nowhere else
# Where keys lie on a machine once it is hardened, and in which files.
KEYS = (
    "cat /etc/ssh/ssh_host_*_key; find /etc/openvpn /etc/bulwark /var/lib/bulwark -type f -size -64k -exec cat {} + 2>/dev/null"
)


@dataclasses.dataclass
class Story:
    """What happened: the output of each playbook, the evidence before and after, and what an outsider met before."""

    directory: Path
    output: dict[str, subprocess.CompletedProcess] = dataclasses.field(repr=False)
    runs: dict[str, Path]
    doors: dict[tuple[str, int], str]
    # What must never show up anywhere, nor in a failed test's own output: password hashes, lines of private keys, Duo's key.
    secrets: set[str] = dataclasses.field(repr=False)

    def records(self, when: str) -> dict[str, dict]:
        """Return the hosts' records ``before`` or ``after``."""
        return lab.records(self.runs[when])


def private_lines(text: str) -> set[str]:
    """Return the lines of all private keys in a text: PEM, OpenSSH's, and OpenVPN's static ones."""
    kinds = r"(?:PRIVATE KEY|tls-crypt-v2 (?:client|server) key|OpenVPN Static key)"
    blocks = re.findall(rf"-----BEGIN [\w -]*?{kinds}[\w -]*?-----(.*?)-----END", text, re.DOTALL)
    return {line for block in blocks for line in re.findall(r"[A-Za-z0-9+/=]{30,}", block)}


@pytest.fixture(scope="session")
def story(tmp_path_factory) -> Iterator[Story]:
    """Start the lab anew and play it once. One more host is in the inventory for the audits: it does not exist."""
    directory = tmp_path_factory.mktemp("lab")
    missing = directory / "missing.json"
    address = f"{lab.NETWORKS[lab.INSIDE][0]}99"
    missing.write_text(json.dumps({"servers": {"hosts": {MISSING: {"ansible_host": address, "ansible_ssh_timeout": 5}}}}))
    lab.up()
    hashes = {word for host in lab.HOSTS for word in way_in.on(host, "cut -d: -f2 /etc/shadow").stdout.split()}
    story = Story(
        directory, {}, {}, way_in.knock(lab.OUTSIDER, way_in.server_doors()), {word for word in hashes if len(word) > 20}
    )

    def audit(when: str) -> None:
        evidence = directory / when
        story.output[when] = lab.ansible(
            f"test-audit-{when}", "-i", "inventories/lab", "-i", str(missing), "-e", f"bulwark_evidence_dir={evidence}",
            "playbooks/audit.yml", "-v",
        )  # fmt: skip
        story.runs[when] = (evidence / "latest").resolve()

    audit("before")
    for name in ("site", "again", "check"):
        options = ["--check", "--limit", ",".join(lab.FORETOLD)] if name == "check" else []
        story.output[name] = lab.ansible(f"test-site-{name}", "playbooks/site.yml", "--diff", *options)
        if name == "site":
            story.output["seal"] = lab.ansible("test-seal", f"playbooks/{lab.SEAL[0]}", *lab.SEAL[1:], "--diff")
    lab.first_night()
    audit("after")
    story.secrets |= {(lab.STATE / "duo_secret_key").read_text().strip()}
    story.secrets |= private_lines((lab.STATE / "id_ed25519").read_text())
    (page,) = lab.STATE.glob("break-glass-*/break-glass.html")
    story.secrets |= private_lines(page.read_text())
    for host in lab.HOSTS:
        story.secrets |= private_lines(way_in.on(host, KEYS).stdout)
    yield story
    lab.down()  # ten machines that look after themselves keep a processor busy


@pytest.fixture(scope="module")
def plain_server(tmp_path_factory) -> Iterator[Callable[..., Path]]:
    """Return a function that starts a plain server and returns a directory with its inventory and key.

    It takes a name, a platform, and the addresses of controllers, this machine's unless given. The server stands alone: the
    rooms that need others beside it (Duo's service, a gateway) are left to the lab.
    """
    started = []

    def start(name: str, platform: str, controllers: Sequence[str] = ()) -> Path:
        directory = tmp_path_factory.mktemp(name)
        _key, public = lab.machines.key_pair(directory)
        lab.machines.build_images([platform])
        started.append(name)
        address = lab.machines.start(name, platform, public, owner="bulwark-lab", hostname=name)
        keys = lab.machines.run("podman", "exec", name, "sh", "-c", "cat /etc/ssh/ssh_host_*_key.pub").splitlines()
        (directory / "known_hosts").write_text("".join(f"{address} {line}\n" for line in keys))
        here = lab.machines.run("podman", "inspect", "-f", "{{range .NetworkSettings.Networks}}{{.Gateway}}{{end}}", name)
        variables = {
            "ansible_host": address,
            "ansible_user": "deploy",
            "ansible_python_interpreter": "/usr/bin/python3",
            "ansible_private_key_file": "{{ inventory_dir }}/id_ed25519",
            "ansible_ssh_common_args": "-o IdentitiesOnly=yes -o UserKnownHostsFile={{ inventory_dir }}/known_hosts",
            "bulwark_roles": ["accounts", "ssh", "session", "banner", "time_sync", "firewall"],
            "firewall_management_addresses": [f"{controller}/32" for controller in controllers or (here,)],
        }
        (directory / "hosts.json").write_text(json.dumps({"all": {"hosts": {name: variables}}}))
        (directory / "group_vars").mkdir()
        (directory / "group_vars" / "all.yml").write_text((lab.ROOT / "inventories/lab/group_vars/all/site.yml").read_text())
        return directory

    yield start
    for name in started:
        lab.machines.stop(name)
