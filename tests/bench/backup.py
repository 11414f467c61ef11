#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-3.0-or-later
"""How long backups and restores take and how much room they need, beside tar with gpg and beside borg: backup.py prints it.

All in one container, which is its own repository: no network is between. borg is installed from Debian for the occasion.
"""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "tests" / "lab")]
import guests  # noqa: E402
from page import paragraph  # noqa: E402

REPEATS = int(os.environ.get("BULWARK_BENCH_REPEATS", "3"))
PLATFORM = "debian13"
FILES, MIB = 2500, 200
# Nobody opens what is sealed to them.
CUSTODIANS = [
    {"name": "One", "key": "age1xc8yex8tdh49a7g3j3aypydw5wxq95d6suw52ed2cgzlu652y3jqhlggxq"},
    {"name": "Another", "key": "age1ne8qprz3wpwwxmr0xasnxhzt6wrkwtqsrwrffwct7n8509n09slsesqsm2"},
]
# fill.py COUNT MIB: files of different sizes, half of them words, half noise, in directories of a hundred. fill.py again: every
# twentieth is another one, by the number that follows.
FILL = """
import os, random, sys
place, dice = "/srv/records", random.Random(4)
words = [f"{dice.getrandbits(24):06x}" for _ in range(4000)]
def content(size, plain):
    return " ".join(dice.choices(words, k=size // 7 + 1)).encode()[:size] if plain else dice.randbytes(size)
if sys.argv[1] == "again":
    dice.seed(int(sys.argv[2]))
    names = sorted(os.path.join(at, name) for at, _dirs, files in os.walk(place) for name in files)
    for number, name in enumerate(names[::20]):
        size = os.path.getsize(name)
        with open(name, "wb") as stream:
            stream.write(content(size, number % 2))
else:
    count, total = int(sys.argv[1]), int(sys.argv[2]) << 20
    sizes = [dice.paretovariate(1.3) for _ in range(count)]
    for number, size in enumerate(sizes):
        os.makedirs(f"{place}/{number // 100}", exist_ok=True)
        with open(f"{place}/{number // 100}/{number}", "wb") as stream:
            stream.write(content(int(size / sum(sizes) * total) + 1, number % 2))
"""
PLAY = """
- hosts: all
  gather_facts: false
  roles: [bulwark.hardening.backup_repository, bulwark.hardening.backup]
"""
SECRETS = "/etc/bulwark/backup"
RESTIC = (
    f"restic --repository-file {SECRETS}/repository --password-file {SECRETS}/password --cacert {SECRETS}/ca.crt --no-cache -q"
)
GPG = "gpg --batch --quiet --pinentry-mode loopback --passphrase-file /root/word"
WAYS = {
    "ours": (
        "/usr/local/lib/bulwark/backup_agent run --set records",
        f"{RESTIC} restore latest --tag set:records --target /root/back",
        "/srv/backup/hosts",
    ),
    "tar": (
        f"tar -C / -cf - srv/records | {GPG} --yes --symmetric --cipher-algo AES256 -o /root/plain/all.gpg",
        f"{GPG} --decrypt /root/plain/all.gpg | tar -C /root/back -xf -",
        "/root/plain",
    ),
    "borg": (
        "cd / && borg create /root/borg::$(date +%s%N) srv/records",
        "cd /root/back && borg extract /root/borg::$(borg list --last 1 --short /root/borg)",
        "/root/borg",
    ),
}


def seconds(host: guests.Host, script: str) -> float:
    """Return how long a script takes on the host, and nothing else."""
    said = host.out(
        f"export BORG_PASSPHRASE=word; s=$(date +%s%N); {{ {script}; }} >/dev/null && echo $(($(date +%s%N) - s))", 900
    )
    return int(said.splitlines()[-1]) / 1e9


def copying(state: Path) -> list[str]:
    """Return the section about backups and restores."""
    guests.machines.build_images([PLATFORM])
    state.mkdir(parents=True, exist_ok=True)
    (state / "play.yml").write_text(PLAY)
    with guests.fleet(state / "fleet") as fleet:
        host = fleet.add(fleet.start_container("bench-backup", PLATFORM))
        host.out("mkdir -p /srv/records /root/plain; echo word >/root/word")
        host.out("DEBIAN_FRONTEND=noninteractive apt-get install -qy --no-install-recommends borgbackup gpg gpg-agent 2>&1", 600)
        host.out(f"cat >/root/fill.py <<'END'\n{FILL}\nEND\npython3 /root/fill.py {FILES} {MIB}", 300)
        fleet.variables = {
            "backup_server": host.name,
            "backup_server_address": host.address,
            "backup_sets": [{"name": "records", "volatility": "high", "paths": ["/srv/records"]}],
            "backup_repository_hosts": [host.name],
            "backup_repository_addresses": [host.address, "127.0.0.1"],
            "backup_repository_site": "Bench",
            "backup_repository_free_percent": 1,
            "backup_repository_custodians": CUSTODIANS,
        }
        fleet.ansible("ansible-playbook", str(state / "play.yml"))
        host.out("systemctl stop bulwark-backup.timer; systemctl stop bulwark-backup.service || true")
        host.out("export BORG_PASSPHRASE=word; borg init --encryption=repokey /root/borg 2>/dev/null")
        time.sleep(40)  # the server looks every half a minute who may come in
        first = {way: seconds(host, make) for way, (make, _back, _place) in WAYS.items()}
        size = {way: int(host.out(f"du -sb {place}").split()[0]) for way, (_make, _back, place) in WAYS.items()}
        turns: dict[str, dict[str, list[float]]] = {what: {way: [] for way in WAYS} for what in ("same", "changed", "back")}
        for turn in range(REPEATS):
            for way, (make, back, _place) in WAYS.items():
                turns["same"][way].append(seconds(host, make))
                host.out("rm -rf /root/back; mkdir /root/back")
                turns["back"][way].append(seconds(host, back))
                host.out("diff -r /srv/records /root/back/srv/records")
            host.out(f"python3 /root/fill.py again {100 + turn}")
            for way, (make, _back, _place) in WAYS.items():
                turns["changed"][way].append(seconds(host, make))
        tested = seconds(host, "/usr/local/lib/bulwark/backup_agent restore-test")
    middle = {what: {way: statistics.median(some) for way, some in ways.items()} for what, ways in turns.items()}
    rows = [
        ("the first backup (once)", first),
        ("another, with nothing changed", middle["same"]),
        ("another, with a twentieth of the files changed", middle["changed"]),
        ("restore of all files", middle["back"]),
        ("room for the first backup", size),
    ]
    return [
        "## Backups and restores",
        "",
        paragraph(
            f"{FILES} files of {MIB} MiB together, half words and half noise, in a Debian 13 container that is its own "
            "repository. Ours goes to it over TLS, with the credential that can only add, and first writes down every "
            "file's attributes and digest for the restore test. Beside it tar through gpg (AES-256), which always copies "
            "everything and keeps one generation; and borg (repokey) into a directory, with no server between. What was "
            "restored was the same."
        ),
        "",
        "| | of the time of tar with gpg | of the time of borg |",
        "|---|--:|--:|",
        *(f"| {what} | {about['ours'] / about['tar']:.2f} | {about['ours'] / about['borg']:.2f} |" for what, about in rows),
        "",
        paragraph(
            "The last line is about room, not time. A restore test, which also compares every file's content, owner, mode, ACL "
            f"and extended attributes, takes {tested / middle['back']['ours']:.1f} times a plain restore."
        ),
        "",
    ]


MEASURES = (copying,)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as place:
        sys.stdout.write("\n".join(copying(Path(place))) + "\n")
