# Copyright: (c) 2026, Bulwark contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Attack a collector: deliver without right, in another's name, too much, too slowly; then alter what was received.

What delivers here is a small client, for it must send what systemd-journal-upload never would. Beside every refusal stands a host
that delivers. The real uploader is proven with the role log_forward.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
sys.path.insert(0, str(ROOT / "molecule" / "shared"))

import machines  # noqa: E402

STORE, PROGRAM, PKI = "/var/log/bulwark-trail", "/usr/local/lib/bulwark/trail_store", "/etc/bulwark/log_collector"
# client.py HOST FIRST LAST [KIND]: deliver numbered entries with a host's certificate, or something that is none.
CLIENT = r"""
import socket, ssl, sys, time
name, first, last, kind = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), (sys.argv[4:] or ["good"])[0]
context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
context.check_hostname = False
context.load_verify_locations("/root/pki/ca.crt")
if name != "-":
    context.load_cert_chain(f"/root/pki/{name}.crt", f"/root/pki/{name}.key")
def entry(n, more=b""):
    return (b"__CURSOR=s=ab;i=%x;b=cd;m=1;t=2;x=%x\n__REALTIME_TIMESTAMP=%d\n_HOSTNAME=ward-2\nMESSAGE=number-%d-%s\n%s\n"
            % (n, n, 1795568523000000 + n, n, b"x" * (800 if kind == "big" else 20), more))
def chunk(data):
    return b"%x\r\n%s\r\n" % (len(data), data)
head = b"POST /upload HTTP/1.1\r\nHost: x\r\nContent-Type: application/vnd.fdo.journal\r\n"
chunked, end = head + b"Transfer-Encoding: chunked\r\n\r\n", b"0\r\n\r\n"
good = b"".join(chunk(entry(n)) for n in range(first, last + 1))
sent = {
    "good": chunked + good + end, "big": chunked + good + end,
    "forged": chunked + chunk(entry(first, b"host=ward-2\n_MACHINE_ID=1\n")) + end,
    "torn": chunked + good + chunk(b"__CURSOR=s=ab;i=fff;b=c;m=1;t=2;x=1\nMESSAGE=half\n") + end,
    "noise": b"\x16\x03\x01\x00" * 400 + b"\r\n\r\n", "get": b"GET /upload HTTP/1.1\r\n\r\n",
    "path": chunked.replace(b"/upload", b"/../../etc/passwd"), "type": chunked.replace(b"vnd.fdo.journal", b"json"),
    "header": b"POST /upload HTTP/1.1\r\nX: " + b"a" * 100000 + b"\r\n\r\n", "chunk": chunked + b"zz\r\nabc",
    "cursor": chunked + chunk(b"MESSAGE=no cursor\n\n") + end,
    "length": head + b"Content-Length: -5\r\n\r\n", "both": head + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n",
    "field": chunked + chunk(b"RAW\n" + (1 << 60).to_bytes(8, "little")) + end,
    "huge": chunked + chunk(entry(first, b"HUGE=" + b"h" * 5000000 + b"\n")) + end,
    "drop": chunked + good + b"400\r\nabc", "slow": b"POST /upl",
}[kind]
try:
    with socket.create_connection(("127.0.0.1", 19532), 10) as raw, context.wrap_socket(raw) as line:
        line.settimeout(40)
        line.sendall(sent)
        if kind == "drop":
            sys.exit(print("dropped"))
        begin, answer = time.monotonic(), b""
        while b"\r\n" not in answer:
            if not (more := line.recv(4096)): break
            answer += more
        print(answer.split(b"\r\n")[0].decode() or "closed", round(time.monotonic() - begin, 1))
except (OSError, ssl.SSLError) as exc:
    print("refused", getattr(exc, "reason", "") or exc)
"""
LOAD = """
import importlib.machinery, importlib.util, os, sys
def load(name):
    loader = importlib.machinery.SourceFileLoader(name, "/usr/local/lib/bulwark/" + name)
    made = importlib.util.module_from_spec(importlib.util.spec_from_loader(name, loader)); loader.exec_module(made)
    return made
"""
# issue.py AUTHORITY NAMES PREFIX|revoke
ISSUE = f"""{LOAD}
pki, directory, names, act = load("trail_pki"), sys.argv[1], sys.argv[2].split(","), sys.argv[3]
with pki.Authority.lock(directory, True):
    authority = pki.Authority(directory)
    if not authority.exists(): authority.create("Other", 30)
    for name in names:
        if act == "revoke":
            authority.revoke({{name}}, False)
            continue
        key = f"/root/pki/{{act}}{{name}}.key"
        pki.write(key, pki.make_key(""), 0o600)
        pki.write(key[:-3] + "crt", authority.issue(name, "client", pki.make_request(key, name), 30).encode(), 0o644)
    if act == "revoke": authority.make_crl(30)
"""
# Another story of ward-1 in /root/copy, with a sound chain, and without seals and counters that would contradict it.
FORGE = f"""{LOAD}
import glob, json, shutil
store = load("trail_store"); chain = store.genesis("ward-1")
for path in sorted(glob.glob("/root/copy/ward-1/*.jsonl")):
    made = []
    for line in open(path):
        e = json.loads(line)
        text, chain = store.make_line(e["n"], e["received"], e["time"], "ward-1", e["cursor"], {{"MESSAGE": "quiet"}}, chain)
        made.append(text)
    open(path, "wb").write(b"".join(made))
shutil.rmtree("/root/copy/.seals"); os.unlink("/root/copy/.state/ward-1.json")
"""
# Days of long ago, as if they had been received then.
OLD = f"""{LOAD}
import datetime
store = load("trail_store"); place = "{STORE}/ward-old"; os.makedirs(place, 0o750); n, chain = 0, store.genesis("ward-old")
for ago in (402, 401, 399, 3):
    day = (datetime.datetime.now(datetime.timezone.utc).date() - datetime.timedelta(days=ago)).isoformat()
    with open(f"{{place}}/{{day}}.jsonl", "wb") as stream:
        for turn in range(3):
            n += 1; at = f"{{day}}T00:00:0{{turn}}.000000Z"
            line, chain = store.make_line(n, at, at, "ward-old", "s=1;i=%x;b=2" % n, {{"MESSAGE": "old"}}, chain)
            stream.write(line)
"""


class Collector:
    """The collector, and hosts that deliver to it."""

    def __init__(self, host, target) -> None:
        self.host, self.target = host, target
        host.check_output(f"mkdir -p -m 0700 /root/pki; cp {PKI}/ca.crt /root/pki/")
        for name, text in (("client", CLIENT), ("issue", ISSUE), ("forge", FORGE), ("old", OLD)):
            host.check_output(f"cat >/root/{name}.py <<'END_OF_FILE'\n{text}\nEND_OF_FILE")
        self.issue("ward-1,ward-2,stranger", "")
        host.check_output("python3 /root/issue.py /root/other-authority ward-1 other-")

    def issue(self, names: str, act: str) -> None:
        """Have certificates signed by the real authority, or revoked."""
        self.host.check_output(f"python3 /root/issue.py /var/lib/bulwark/trail-authority {names} '{act}'")

    def deliver(self, name: str, first: int = 1, last: int = 0, kind: str = "good") -> str:
        """Deliver as a host and return the answer's first line, or refused. Sent again when asked to, as an uploader does."""
        command = f"python3 /root/client.py {name} {first} {last or first} {kind}"
        said = self.host.check_output(command)
        return self.host.check_output(command) if said.startswith("HTTP/1.1 503") else said

    def lines(self, name: str) -> list[dict]:
        """Return a host's lines in the store."""
        return [json.loads(line) for line in self.host.check_output(f"{PROGRAM} cat --host {name}").splitlines()]

    def numbers(self, name: str) -> list[int]:
        """Return the numbers of a host's entries."""
        texts = [str(line["entry"].get("MESSAGE")) for line in self.lines(name)]
        return [int(text.split("-")[1]) for text in texts if text.startswith("number-")]

    def verify(self, *options: str, directory: str = STORE) -> tuple[int, dict]:
        """Return (exit status, answer) of verification."""
        done = self.host.run(f"{PROGRAM} verify --json --directory {directory} {' '.join(options)}")
        return done.rc, json.loads(done.stdout)

    def said(self, text: str) -> bool:
        """Say whether the receiver's log holds a text."""
        return text in self.host.check_output("journalctl -q -o cat -t bulwark-trail -n 400")

    def state(self, name: str) -> dict:
        """Return what the receiver counted."""
        return json.loads(self.host.check_output(f"cat {STORE}/.state/{name}.json"))

    def day(self) -> str:
        """Return the name of today's file."""
        return self.host.check_output(f"ls {STORE}/ward-1 | tail -n 1")


@pytest.fixture(scope="module")
def collector(host, target):
    """The collector with clients' certificates."""
    return Collector(host, target)


def test_a_declared_host_delivers(collector):
    assert collector.deliver("ward-1", 1, 50).startswith("HTTP/1.1 200")
    assert collector.numbers("ward-1") == list(range(1, 51))
    line = collector.lines("ward-1")[0]
    assert line["host"] == "ward-1" and line["entry"]["_HOSTNAME"] == "ward-2", "whatever it calls itself"
    assert line["time"].startswith("2026-11-25T01:02:03")
    assert collector.verify()[0] == 0


def test_what_comes_again_is_counted_and_not_written(collector):
    before = collector.state("ward-1")
    assert collector.deliver("ward-1", 31, 60).startswith("HTTP/1.1 200")
    assert collector.numbers("ward-1") == list(range(1, 61))
    assert collector.state("ward-1")["duplicates"] == before["duplicates"] + 20


def test_only_certificates_of_our_authority_open_the_door(host, collector):
    for name in ("-", "other-ward-1"):
        assert collector.deliver(name).startswith(("refused", "closed")), name
    assert collector.deliver("stranger").startswith("HTTP/1.1 403")
    assert collector.said("event=unknown_host") and collector.said("event=refused")
    assert not host.file(f"{STORE}/stranger").exists
    assert collector.deliver("ward-1", 61).startswith("HTTP/1.1 200")


def test_a_host_writes_in_its_own_name_only(host, collector):
    assert collector.deliver("ward-1", 900, 900, "forged").startswith("HTTP/1.1 200")
    line = collector.lines("ward-1")[-1]
    assert line["host"] == "ward-1" and line["entry"]["host"] == "ward-2"
    assert not host.file(f"{STORE}/ward-2").exists
    assert collector.deliver("ward-2", 1, 40).startswith("HTTP/1.1 200")
    assert {line["host"] for line in collector.lines("ward-2")} == {"ward-2"}


def test_malformed_uploads_are_refused_and_leave_nothing(collector):
    before = collector.numbers("ward-2")
    wanted = {"noise": 400, "get": 405, "path": 404, "type": 415, "header": 400, "chunk": 400, "cursor": 400, "length": 400,
              "both": 400, "field": 400}  # fmt: skip
    for kind, status in wanted.items():
        assert collector.deliver("ward-2", 41, 41, kind).startswith(f"HTTP/1.1 {status}"), kind
    assert collector.numbers("ward-2") == before and collector.verify()[0] == 0
    assert collector.said("event=malformed peer=ward-2")


def test_a_torn_upload_keeps_what_was_whole(host, collector):
    assert collector.deliver("ward-2", 41, 45, "torn").startswith("HTTP/1.1 400")
    assert collector.deliver("ward-2", 46, 48, "drop") == "dropped"
    time.sleep(0.5)
    assert collector.deliver("ward-2", 41, 50).startswith("HTTP/1.1 200")
    assert collector.numbers("ward-2") == list(range(1, 51))
    assert "half" not in host.check_output(f"cat {STORE}/ward-2/*.jsonl")
    assert collector.verify()[0] == 0


def test_an_entry_too_large_to_keep_stops_nobody(collector):
    assert collector.deliver("ward-2", 51, 51, "huge").startswith("HTTP/1.1 200")
    huge = collector.lines("ward-2")[-1]["entry"]["HUGE"]
    assert huge["length"] == 5000000 and len(huge["sha256"]) == 64 and len(huge["base64"]) < 400000


def test_who_is_slow_keeps_nobody_else_out(host, collector):
    host.check_output("for i in 1 2 3; do (timeout 60 python3 /root/client.py ward-2 1 1 slow >/root/slow.$i 2>&1 &) ; done")
    crowd = "import socket, time; s = [socket.create_connection(('127.0.0.1', 19532)) for _ in range(40)]; time.sleep(25)"
    host.check_output(f'(timeout 30 python3 -c "{crowd}" >/dev/null 2>&1 &)')
    time.sleep(1)
    assert collector.deliver("ward-1", 62).startswith("HTTP/1.1 200")
    end = time.monotonic() + 45
    while not all(host.file(f"/root/slow.{i}").size for i in (1, 2, 3)):
        assert time.monotonic() < end, "the slow are cut off"
        time.sleep(1)
    assert host.check_output("cat /root/slow.1").startswith(("closed", "HTTP/1.1 4", "refused"))
    memory = int(host.check_output("ps -o rss= -p $(systemctl show -p MainPID --value bulwark-trail.service)"))
    assert memory < 150000, f"{memory} KiB"


def test_a_kill_in_the_middle_loses_nothing_that_was_acknowledged(host, collector):
    one = "python3 /root/client.py ward-1 $a $((a+999)); sleep 0.1"
    host.check_output(f"(for a in 1001 2001 3001 4001; do {one}; done) >/root/acks 2>&1 &")
    for _turn in range(3):
        time.sleep(0.5)
        host.run("systemctl kill --signal=KILL bulwark-trail.service")
    end = time.monotonic() + 40
    while len(acks := host.check_output("cat /root/acks").splitlines()) < 4:
        assert time.monotonic() < end, acks
        time.sleep(0.5)
    time.sleep(2)
    numbers = collector.numbers("ward-1")
    assert len(numbers) == len(set(numbers))
    for turn, said in enumerate(acks):
        if said.startswith("HTTP/1.1 200"):
            assert set(range(1001 + turn * 1000, 2001 + turn * 1000)) <= set(numbers)
    # Now a line that a crash tore: cut off at the next start, and told.
    host.check_output(f"printf '{{\"n\":9,\"rec' >>{STORE}/ward-1/{collector.day()}; systemctl restart bulwark-trail.service")
    assert collector.said("event=repaired host=ward-1")
    assert collector.deliver("ward-1", 1001, 5000).startswith("HTTP/1.1 200")
    assert collector.verify()[0] == 0
    assert set(range(1001, 5001)) <= set(collector.numbers("ward-1"))


def test_whatever_is_altered_is_named(host, collector):
    day = collector.day()
    time.sleep(6)  # seals are noted every five seconds here

    def broken(command: str) -> list[tuple]:
        host.check_output(f"rm -rf /root/copy; cp -a {STORE} /root/copy; cd /root/copy && {command}")
        status, answer = collector.verify(directory="/root/copy")
        assert status == 1
        return [(f["file"], f["line"], f["kind"]) for f in answer["findings"]]

    assert broken(f"sed -i '3s/number-3/number-8/' ward-1/{day}") == [(f"ward-1/{day}", 3, "altered")]
    assert broken(f"sed -i 7d ward-1/{day}") == [(f"ward-1/{day}", 7, "removed")]
    assert set(broken(f"sed -i '20,$d' ward-1/{day}")) == {(f"ward-1/{day}", 0, "truncated")}
    assert (f"ward-1/{day}", 1, "swapped") in broken(f"mv ward-1/{day} x; mv ward-2/{day} ward-1/{day}; mv x ward-2/{day}")
    assert ("ward-1/2026-01-01.jsonl", 1, "swapped") in broken(f"mv ward-1/{day} ward-1/2026-01-01.jsonl")
    assert {found[2] for found in broken("rm -r ward-1")} == {"truncated"}


def test_a_chain_made_anew_is_caught_by_an_earlier_head(host, collector):
    """Somebody with the receiver's rights writes another story, with a sound chain, and puts seals and counters right."""
    host.check_output(f"{PROGRAM} heads >/root/heads.json; rm -rf /root/copy; cp -a {STORE} /root/copy; python3 /root/forge.py")
    answer = collector.verify(directory="/root/copy")[1]
    assert answer["hosts"]["ward-1"]["lines"] > 50 and "ward-1" not in [found["host"] for found in answer["findings"]]
    found = collector.verify("--heads /root/heads.json", directory="/root/copy")[1]["findings"]
    assert [(f["host"], f["kind"]) for f in found] == [("ward-1", "rewritten")]
    assert collector.verify("--heads /root/heads.json")[0] == 0


def test_readers_read_and_nobody_else(host, collector):
    path = f"{STORE}/ward-1/{collector.day()}"
    assert "number-1-" in host.check_output(f"runuser -u reader -- head -n 1 {path}")
    assert host.run(f"runuser -u reader -- {PROGRAM} verify").rc == 0
    for command in (f"echo x >>{path}", f"rm {path}", f"mv {path} {path}.x", f"truncate -s 0 {path}", f"touch {STORE}/ward-1/x"):
        assert host.run(f"runuser -u reader -- sh -c '{command}'").rc != 0, command
    for command in (f"cat {path}", f"ls {STORE}", f"{PROGRAM} cat --host ward-1", f"cat {PKI}/private.key"):
        assert host.run(f"runuser -u nosy -- {command}").rc != 0, command


def test_files_only_grow_where_that_is_possible(host, collector):
    """In a container the flag cannot be set, and the keeper is not told to; on a machine of its own it is."""
    able = int(host.check_output("grep CapBnd /proc/1/status").split()[1], 16) >> 9 & 1
    assert ("--protect" in host.check_output("systemctl cat bulwark-trail-keep.service")) == bool(able)
    if able:
        host.check_output("systemctl start bulwark-trail-keep.service")
        assert host.run(f"truncate -s 0 {STORE}/ward-1/{collector.day()}").rc != 0, "not even root, until the flag is taken off"


def test_old_days_go_and_that_is_on_record(host, collector):
    """Days of long ago are packed, kept for the agreed time, then let go; the rest still verifies."""
    host.check_output("runuser -u bulwark-trail -- sh -c 'umask 027; python3 -' </root/old.py")
    host.check_output("systemctl start bulwark-trail-keep.service; systemctl start bulwark-trail-keep.service")
    names = host.check_output(f"ls {STORE}/ward-old").split()
    assert len(names) == 2 and all(name.endswith(".jsonl.gz") for name in names)
    assert collector.said("event=removed host=ward-old") and collector.said('approver="Records committee"')
    status, answer = collector.verify()
    assert status == 0, answer["findings"]
    assert [(gone["first_n"], gone["n"], gone["approver"]) for gone in answer["removed"]] == [
        (1, 3, "Records committee"), (4, 6, "Records committee"),
    ]  # fmt: skip
    assert host.check_output(f"{PROGRAM} cat --host ward-old | wc -l") == "6"


def test_a_full_disk_loses_nothing_that_was_accepted(host, target, collector):
    """The receiver on a small file system that fills up under it: what it said it kept is kept, and it recovers by itself."""
    name = f"molecule-log_collector-{target.platform}-small"
    machines.stop(name)
    try:
        machines.run("podman", "run", "-d", "--name", name, "--label", "owner=molecule", "--tmpfs=/srv/trail:size=4m",
                     machines.image_name(target.platform), "sleep", "infinity")  # fmt: skip

        def inside(command: str, data: str = "") -> subprocess.CompletedProcess:
            return machines.finish("podman", "exec", "-i", name, "sh", "-c", command, data=data)

        paths = ["/usr/local/lib/bulwark/trail_receive", PROGRAM, "/root/client.py"]
        paths += [f"{PKI}/{file}" for file in ("ca.crt", "own.crt", "crl.pem", "private.key")]
        paths += [f"/root/pki/{file}" for file in ("ca.crt", "ward-1.crt", "ward-1.key")]
        for path in paths:
            inside(f"mkdir -p $(dirname {path}); cat >{path}; chmod 0700 {path}", host.file(path).content_string)
        about = json.loads(host.file("/etc/bulwark-trail.json").content_string)
        about.update(directory="/srv/trail", key=f"{PKI}/private.key", reserve_bytes=0)
        inside("cat >/root/about.json", json.dumps(about))
        # What else fills the disk, and is taken away again.
        inside("head -c 2500000 /dev/zero >/srv/trail/other")
        machines.run("podman", "exec", "-d", name, paths[0], "/root/about.json")
        time.sleep(2)
        accepted, refused = 0, ""
        while not refused and accepted < 5000:
            said = inside(f"python3 /root/client.py ward-1 {accepted + 1} {accepted + 100} big").stdout
            if said.startswith("HTTP/1.1 200"):
                accepted += 100
            else:
                refused = said
        assert accepted >= 100 and refused.startswith("HTTP/1.1 507"), (accepted, refused)
        cat = f"{PROGRAM} cat --directory /srv/trail --host ward-1 | grep -o 'number-[0-9]*' | cut -d- -f2"
        assert [int(word) for word in inside(cat).stdout.split()] == list(range(1, accepted + 1)), "no more, no less"
        assert inside(f"{PROGRAM} verify --directory /srv/trail").returncode == 0
        inside("rm /srv/trail/other")
        again = inside(f"python3 /root/client.py ward-1 {accepted + 1} {accepted + 100} big").stdout
        assert again.startswith("HTTP/1.1 200"), again
        assert [int(word) for word in inside(cat).stdout.split()] == list(range(1, accepted + 101))
    finally:
        machines.stop(name)


def test_too_little_room_is_refused_before_the_disk_is_full(host, collector):
    config, before = "/etc/bulwark-trail.json", collector.numbers("ward-1")
    more = f's/"reserve_bytes": [0-9]*/"reserve_bytes": 1{"0" * 15}/'
    host.check_output(f"cp -p {config} /root/c.json; sed -i '{more}' {config}")
    try:
        host.check_output("systemctl restart bulwark-trail.service")
        assert collector.deliver("ward-1", 6001, 6010).startswith("HTTP/1.1 507")
        assert collector.said("event=no_space") and collector.numbers("ward-1") == before
    finally:
        host.check_output(f"cp -p /root/c.json {config}; systemctl restart bulwark-trail.service")
    assert collector.deliver("ward-1", 6001, 6010).startswith("HTTP/1.1 200"), "it recovers"


def test_who_is_revoked_is_cut_off(host, collector):
    assert collector.deliver("ward-2", 60).startswith("HTTP/1.1 200")
    collector.issue("ward-2", "revoke")
    host.check_output("systemctl start bulwark-trail-crl.service; sleep 3")
    assert collector.deliver("ward-2", 61).startswith(("refused", "closed"))
    assert collector.deliver("ward-1", 6011).startswith("HTTP/1.1 200")


def test_the_role_can_be_taken_back(host, target):
    before = host.check_output(f"cat {STORE}/*/*.jsonl | sha256sum")
    target.reapply(log_collector_state="absent")
    assert host.run("systemctl is-active bulwark-trail.service").stdout.strip() == "inactive"
    assert not host.file("/etc/bulwark-trail.json").exists and not host.file(PKI).exists
    assert host.check_output(f"cat {STORE}/*/*.jsonl | sha256sum") == before, "the trail stays"
    target.reapply()
