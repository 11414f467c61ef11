# Copyright: (c) 2026, Bulwark contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Exports that must end and what must not end with them; a register that somebody would rather have otherwise.

Disks are not here: containers have none. What is done to those is proven in tests/devices.
"""

from __future__ import annotations

import json

import pytest

PROGRAM, PLACE = "/usr/local/lib/bulwark/media_register", "/var/lib/bulwark/media"
DISK = "EXAMPLE DISK 2T EX0002"
# Make everything that lies in exports look as if it had been seen first so many hours ago: age.py HOURS
AGE = f"""
import json, subprocess, sys, time
subprocess.run(["{PROGRAM}", "expire"], capture_output=True)
seen = json.load(open("{PLACE}/exports.json"))
json.dump(dict.fromkeys(seen, time.time() - 3600 * float(sys.argv[1])), open("{PLACE}/exports.json", "w"))
"""


@pytest.fixture(scope="module")
def age(host):
    """Make what lies in exports as old as is said, in hours, and let the keeper come. Returns how that ended."""
    host.check_output(f"cat >/root/age.py <<'END'\n{AGE}\nEND")

    def come(hours: float, keep: bool = True):
        host.check_output(f"python3 /root/age.py {hours}")
        return host.run("systemctl start bulwark-media.service") if keep else None

    return come


def entries(host) -> list[dict]:
    """Return the entries of the register."""
    return [json.loads(line) for line in host.check_output(f"cat {PLACE}/register.jsonl").splitlines()]


def show(host) -> dict:
    """Return what the register says of each medium."""
    return json.loads(host.check_output(f"{PROGRAM} show"))["media"]


def test_an_export_ends(host, age):
    host.check_output("echo canary-old >/srv/exports/old.csv; mkdir -p /srv/exports/deep/er; echo x >/srv/exports/deep/er/two")
    host.check_output("echo list >/srv/single/list.csv")
    assert age(23).rc == 0
    assert host.file("/srv/exports/old.csv").exists, "not before its time"
    assert not host.file("/srv/single/list.csv").exists, "this one has two hours only"
    host.check_output("touch -d '2030-01-01' /srv/exports/old.csv; echo more >>/srv/exports/old.csv")
    assert age(25).rc == 0
    for path in ("/srv/exports/old.csv", "/srv/exports/deep/er/two"):
        assert not host.file(path).exists, f"{path}: touching and writing make nothing younger"
    gone = [entry for entry in entries(host) if entry["event"] == "deleted"]
    assert {"/srv/exports/old.csv", "/srv/single/list.csv"} <= {entry["path"] for entry in gone}
    assert all("Records committee" in entry["by"] for entry in gone)
    journal = host.check_output("journalctl -q -o cat -t bulwark-media -n 50")
    assert "event=deleted" in journal and "/srv/exports/old.csv" in journal


def test_its_content_is_overwritten_before_it_goes(host, age):
    """Whoever still has the file open (as a disk's old blocks would) finds nothing in it."""
    host.check_output("yes canary-content | head -c 300000 >/srv/exports/content; chmod a-w /srv/exports/content")
    watch = ("import os,sys,time\nf=os.open('/srv/exports/content',os.O_RDONLY)\nopen('/root/ready','w')\n"
             "end=time.time()+60\nseen=set()\n"
             "while time.time()<end:\n"
             "    d=os.pread(f,300000,0)\n"
             "    seen.add('canary' if b'canary' in d else 'zeros' if d else 'empty')\n"
             "    if not d: break\n"
             "print(*sorted(seen))\n")  # fmt: skip
    host.check_output(f"rm -f /root/ready; cat >/root/watch.py <<'END'\n{watch}\nEND")
    host.check_output("systemd-run -q --unit=watch-content -p StandardOutput=file:/root/seen python3 /root/watch.py; "
                      "until test -e /root/ready; do sleep 0.1; done")  # fmt: skip
    assert age(25).rc == 0
    host.check_output("while systemctl -q is-active watch-content; do sleep 0.2; done")
    assert "canary" in host.check_output("cat /root/seen") and "empty" in host.check_output("cat /root/seen")
    [entry] = [entry for entry in entries(host) if entry.get("path") == "/srv/exports/content"]
    assert entry["bytes"] == 300000
    assert entry["overwritten"] or "new blocks" in entry["why"], "where that reaches nothing, it says so"


def test_nothing_outside_of_an_export_is_touched(host, age, person):
    """Links, further names and directories that are exchanged lead nowhere."""
    person("mallory")
    host.check_output("echo precious >/root/precious; mkdir -p /root/place; echo precious >/root/place/file")
    host.check_output("ln -s /root/precious /srv/exports/link; ln -s /root/place /srv/exports/dir")
    assert age(25).rc == 0
    assert not host.file("/srv/exports/link").exists
    assert host.check_output("cat /root/precious /root/place/file").split() == ["precious", "precious"]

    host.check_output("ln /root/precious /srv/exports/hard")
    try:
        assert age(25).rc != 0, "a file with another name elsewhere is left, loudly"
        assert host.check_output("cat /root/precious") == "precious"
        assert "has 2 names" in host.check_output("journalctl -q -o cat -t bulwark-media -n 20")
    finally:
        host.check_output("rm /srv/exports/hard; systemctl start bulwark-media.service")


def test_a_sparse_file_does_not_fill_the_disk(host, age):
    host.check_output("truncate -s 8T /srv/exports/sparse 2>/dev/null || truncate -s 200G /srv/exports/sparse; "
                      "echo end >>/srv/exports/sparse")  # fmt: skip
    assert age(25).rc == 0
    assert not host.file("/srv/exports/sparse").exists


def test_a_preview_deletes_nothing(host, age):
    host.check_output("echo x >/srv/exports/kept")
    age(25, keep=False)
    assert "would delete /srv/exports/kept" in host.check_output(f"{PROGRAM} expire --preview")
    assert host.file("/srv/exports/kept").exists
    host.check_output("rm /srv/exports/kept")


def test_a_movement_is_written_down(host, target):
    before = len(entries(host))
    moved = [
        {"id": "M-0001", "model": "EXAMPLE DISK 1T", "serial": "EX0001", "size": 1000204886016, "class": "high",
         "location": "Courier", "custodian": "Example Colleague"},
        {"id": "M-0003", "model": "EXAMPLE STICK", "serial": "EX0003", "size": 8000000000, "class": "low", "location": "Desk",
         "custodian": "Example Person"},
    ]  # fmt: skip
    target.reapply(media_declared=moved, media_declared_by="Example Admin")
    try:
        new = entries(host)[before:]
        assert [(entry["event"], entry["medium"].split()[-1]) for entry in new] == [
            ("moved", "EX0001"), ("declared", "EX0003"), ("withdrawn", "EX0002")]  # fmt: skip
        assert (new[0]["from_location"], new[0]["location"], new[0]["by"]) == ("Server room", "Courier", "Example Admin")
        assert "event=moved" in host.check_output("journalctl -q -o cat -t bulwark-media -n 20"), "and forwarded with the journal"
    finally:
        target.reapply()
    assert show(host)["EXAMPLE DISK 1T EX0001"]["location"] == "Server room"


@pytest.mark.parametrize(
    ("break_it", "named"),
    [
        ("sed -i '2s/EX0001/EX0009/'", "line 2"),
        ("sed -i 2d", "line 2"),
        ("sed -i '$s/$/x/'", "no line"),
    ],
)
def test_whatever_is_altered_in_the_register_is_named(host, break_it, named):
    assert host.run(f"{PROGRAM} verify").rc == 0
    host.check_output(f"cp -p {PLACE}/register.jsonl /root/register; {break_it} {PLACE}/register.jsonl")
    try:
        done = host.run(f"{PROGRAM} verify")
        assert done.rc == 1 and named in done.stdout, done.stdout
    finally:
        host.check_output(f"cp -p /root/register {PLACE}/register.jsonl")


def test_a_register_made_anew_is_caught_by_an_earlier_head(host):
    head = host.check_output(f"{PROGRAM} verify").split("head ")[1]
    host.check_output(f"cp -p {PLACE}/register.jsonl /root/register; sed -i '$d' {PLACE}/register.jsonl")
    try:
        assert host.run(f"{PROGRAM} verify").rc == 0, "cut off at its end it is sound in itself"
        assert host.run(f"{PROGRAM} verify --head {head}").rc == 1
    finally:
        host.check_output(f"cp -p /root/register {PLACE}/register.jsonl")


def test_an_altered_register_takes_no_more_entries(host, target):
    host.check_output(f"cp -p {PLACE}/register.jsonl /root/register; sed -i '2s/EX0001/EX0009/' {PLACE}/register.jsonl")
    try:
        assert host.run(f"{PROGRAM} add moved --medium '{DISK}' --by alice --location Home").rc == 2
        with pytest.raises(pytest.fail.Exception, match="altered"):
            target.reapply()
    finally:
        host.check_output(f"cp -p /root/register {PLACE}/register.jsonl")


def test_many_at_once_lose_nothing(host):
    before = len(entries(host))
    add = f"{PROGRAM} add moved --medium '{DISK}' --location Safe --by"
    host.check_output(f"for n in $(seq 20); do {add} person-$n & done; wait")
    new = entries(host)[before:]
    assert sorted(entry["by"] for entry in new) == sorted(f"person-{n}" for n in range(1, 21))
    assert host.run(f"{PROGRAM} verify").rc == 0


def test_no_reuse_without_a_purge(host):
    done = host.run(f"{PROGRAM} add reused --medium '{DISK}' --by alice")
    assert done.rc == 2 and "UMDNJ-I-2" in done.stderr
    assert not show(host)[DISK]["reused"]
    assert host.run(f"{PROGRAM} add moved --medium 'NO SUCH DISK' --by alice --location x").rc == 2


def test_what_is_overdue_is_named(host, target):
    late = {"id": "M-0002", "model": "EXAMPLE DISK 2T", "serial": "EX0002", "size": 2000398934016, "class": "moderate",
            "location": "Safe", "custodian": "Example Person", "sanitise_by": "2026-01-31"}  # fmt: skip
    target.reapply(media_declared=[late])
    try:
        host.check_output("systemctl start bulwark-media.service")
        said = host.check_output("journalctl -q -o cat -t bulwark-media -n 20")
        assert "event=overdue" in said and "M-0002 was to be sanitised by 2026-01-31" in said
    finally:
        target.reapply()


def test_nobody_else_reads_or_writes(host, person):
    person("nosy")
    for attempt in (f"cat {PLACE}/register.jsonl", f"ls {PLACE}", f"{PROGRAM} add moved --medium '{DISK}' --by nosy --location x",
                    "cat /etc/bulwark-media.json"):  # fmt: skip
        assert host.run("su nosy -c %s", attempt).rc != 0, attempt


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({"media_exports": [{"path": "/etc", "keep_hours": 1, "approver": "a", "reason": "r"}]}, "media_exports"),
        ({"media_declared": [{"id": "M-1", "model": "x", "serial": "y", "size": 512, "class": "secret", "location": "l",
                              "custodian": "c"}]}, "must be one of"),
    ],
)  # fmt: skip
def test_wrong_input_is_refused_before_anything_changes(host, target, variables, said):
    before = host.check_output(f"sha256sum /etc/bulwark-media.json {PLACE}/register.jsonl")
    with pytest.raises(pytest.fail.Exception, match=said):
        target.reapply(**variables)
    assert host.check_output(f"sha256sum /etc/bulwark-media.json {PLACE}/register.jsonl") == before


def test_the_role_can_be_taken_back(host, target):
    before = host.check_output(f"sha256sum {PLACE}/register.jsonl")
    target.reapply(media_state="absent")
    try:
        assert host.run("systemctl is-active bulwark-media.timer").stdout.strip() == "inactive"
        for path in ("/etc/bulwark-media.json", PROGRAM, "/etc/systemd/system/bulwark-media.service"):
            assert not host.file(path).exists
        assert host.check_output(f"sha256sum {PLACE}/register.jsonl") == before, "the register stays"
    finally:
        target.reapply()
    assert host.run(f"{PROGRAM} verify").rc == 0
