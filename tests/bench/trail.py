# SPDX-License-Identifier: GPL-3.0-or-later
"""What the trail costs: the audit rules on a host, the way to the collector, receiver and verification, and the review.

Each of MEASURES measures one thing, once, and returns its section of docs/benchmarks.md; what it is given is a directory for
keys and inventories. Ratios compare what was measured one after the other in the same run.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import ssl
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import yaml
from page import one_in, paragraph

ROOT = Path(__file__).resolve().parents[2]
UTILS, FILES = ROOT / "plugins" / "module_utils", ROOT / "roles" / "log_collector" / "files"
sys.path[:0] = [str(ROOT / "tests" / "lab"), str(ROOT / "tests" / "unit")]
sys.path.append(str(UTILS))  # last: some of its names are those of the lab's
import guests  # noqa: E402
import pki  # noqa: E402
import trail_lines  # noqa: E402

# How much is measured; less is enough to see that it works (BULWARK_BENCH_SCALE=0.02).
SCALE = float(os.environ.get("BULWARK_BENCH_SCALE", "1"))
ROUNDS, NUMBERED, RECEIVED, REVIEWED = (int(SCALE * count) for count in (10_000, 50_000, 100_000, 1_000_000))
UPLOAD = 1000
STORE = "/var/log/bulwark-trail"
SHARED = f"Measured once, on {os.cpu_count()} processor cores that the machine also had other work for."

# Write numbered events as fast as journald takes them: emit.py TAG COUNT. Prints when the first was written, and when all were
# on the disk.
EMIT = """
import socket, subprocess, sys, time
tag, count = sys.argv[1], int(sys.argv[2])
line = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
line.connect('/dev/log')
begin = time.time()
for number in range(1, count + 1):
    line.send(f'<134>numbered: {tag}-{number:06d}-'.encode() + b'x' * 60)
subprocess.run(['journalctl', '--sync'], check=True)
print(begin, time.time())
"""


def apply(fleet: guests.Fleet, host: str, *roles: str) -> None:
    """Apply roles to a host."""
    for role in roles:
        words = ("--module-name", "ansible.builtin.include_role", "--args", f"name=bulwark.hardening.{role}")
        fleet.ansible("ansible", host, *words)


def put(host: guests.Host, path: str, text: str) -> None:
    """Write a file on a host."""
    host.out(f"cat >{path} <<'END'\n{text}\nEND")


# --- on a host -----------------------------------------------------------------------------------------------------------


def auditing(state: Path) -> list[str]:
    """Return the section about the cost of the audit rules, measured in a guest before and after role audit_log."""
    guests.machines.build_guest_images(["debian12"])
    with guests.fleet(state / "guest") as fleet:
        host = fleet.add(fleet.start_guest("bench-guest", "debian12"))
        put(host, "/root/audit_cost.py", Path(__file__).with_name("audit_cost.py").read_text())

        def cost() -> dict:
            return json.loads(host.out(f"python3 /root/audit_cost.py {ROUNDS}", 600))

        without = cost()
        apply(fleet, host.name, "audit_log")

        def recorded() -> int:
            found = "journalctl -q -a _COMM=audisp-syslog -o cat | grep -c 'type=SYSCALL.*bulwark_permissions'"
            return int(host.run(f"journalctl --sync; {found}").stdout)

        before, ruled = recorded(), cost()
        wanted = ruled["calls"]
        guests.until(lambda: recorded() - before >= wanted, 300, f"{wanted} events in the journal", 5)
        lost = host.out("auditctl -s | sed -n 's/^lost //p'")
        memory = int(host.out("sed -n 's/^VmHWM:[^0-9]*\\([0-9]*\\).*/\\1/p' /proc/$(pidof auditd)/status")) / 1024
        rules = int(host.out("auditctl -l | wc -l"))
    assert lost == "0", f"{lost} audit events were lost"
    return [
        "## Cost of the audit rules",
        "",
        paragraph(
            f"A person's program that does nothing but system calls, in a Debian 12 guest before and after role audit_log with "
            f"its {rules} rules: {ROUNDS:,} times stat, open, read and close of one file, which no rule records, and "
            f"{ruled['calls'] // ruled['runs']:,} times chmod, each of which is recorded, by auditd and in the journal; the best "
            f"of {ruled['runs']} each. All {ruled['calls']:,} recorded calls were found in the journal afterwards, none "
            "was lost. The guest's kernel audits in both cases (audit=1), and its processor is emulated, which makes everything "
            f"in it slower, but not by the same factor. {SHARED} The two were minutes apart, and that other work changed in "
            "between: the ratios are rough, and may be off by a factor of two or more."
        ),
        "",
        "| | with the rules, times without |",
        "|---|--:|",
        f"| calls that no rule records | {ruled['quiet'] / without['quiet']:.2f} |",
        f"| calls that are recorded | {ruled['recorded'] / without['recorded']:.1f} |",
        "",
        f"Memory of auditd at most, while that was recorded: {memory:.0f} MiB.",
        "",
    ]


# --- on the way ----------------------------------------------------------------------------------------------------------


def forwarding(state: Path) -> list[str]:
    """Return the section about the way from a host's journal to the collector's store."""
    with guests.fleet(state / "site") as fleet:
        names = ("bench-host", "bench-collector")
        host, collector = (fleet.add(fleet.start_container(name, "debian13")) for name in names)
        fleet.variables = {
            "log_forward_collector": collector.name,
            "log_forward_collector_address": collector.address,
            "log_collector_hosts": list(names),
            "log_collector_addresses": [collector.address],
            "log_collector_retention_approver": "nobody",
        }
        apply(fleet, collector.name, "log_collector")
        apply(fleet, host.name, "log_forward")
        put(host, "/root/emit.py", EMIT)
        put(collector, "/root/seen.py", SEEN)

        def emit(tag: str) -> list[float]:
            return [float(word) for word in host.out(f"python3 /root/emit.py {tag} {NUMBERED}", 600).split()]

        def seen(tag: str) -> float:
            """Return when the last of a tag's events was received. Fails unless each is there exactly once.

            What does not come within half a minute after something else did is lost.
            """
            end, size = time.monotonic() + 30, ""
            last = f"tail -c 3000000 {STORE}/{host.name}/*.jsonl | grep -q '{tag}-{NUMBERED:06d}-'"
            while collector.run(last).returncode and time.monotonic() < end:
                if size != (size := collector.out(f'grep -c \'"MESSAGE":"{tag}-\' {STORE}/{host.name}/*.jsonl || true')):
                    end = time.monotonic() + 30
                time.sleep(2)
            found = json.loads(collector.out(f"python3 /root/seen.py {host.name} {tag}"))
            numbers = found["numbers"]
            assert sorted(numbers) == list(range(1, NUMBERED + 1)), f"{tag}: {len(numbers)}, {len(set(numbers))} different ones"
            return found["last"]

        host.out("systemctl stop systemd-journal-upload.service")
        begin, end = emit("ALONE")
        alone = NUMBERED / (end - begin)
        begin = time.time()
        host.out("systemctl start systemd-journal-upload.service")
        behind = NUMBERED / (seen("ALONE") - begin)
        begin, _end = emit("BOTH")
        both = NUMBERED / (seen("BOTH") - begin)
    return [
        "## Forwarding",
        "",
        paragraph(
            f"{NUMBERED:,} numbered events into the journal of a host with role log_forward, as fast as journald takes them, "
            "until the collector received the last; host and collector are containers on this machine and share its cores. First "
            "with the forwarder stopped; then it is started and catches up; then another as many while it runs. Each number is "
            f"in the store exactly once; what the forwarder passed over was asked for again, and that time counts. {SHARED}"
        ),
        "",
        "| | events a second | share of the local journal's |",
        "|---|--:|--:|",
        f"| written to the local journal, nothing forwarded | {alone:,.0f} | 1.00 |",
        f"| forwarded after an outage | {behind:,.0f} | {one_in(behind / alone)} |",
        f"| written and forwarded at the same time | {both:,.0f} | {one_in(both / alone)} |",
        "",
    ]


# What the store has of a tag: seen.py HOST TAG
SEEN = """
import datetime, json, re, subprocess, sys
host, tag = sys.argv[1:]
numbers, last = [], ''
with subprocess.Popen(['/usr/local/lib/bulwark/trail_store', 'cat', '--host', host], stdout=subprocess.PIPE) as cat:
    for line in cat.stdout:
        if f'"MESSAGE":"{tag}-'.encode() in line:
            whole = json.loads(line)
            numbers.append(int(whole['entry']['MESSAGE'].split('-')[1]))
            last = whole['received']
print(json.dumps({'numbers': numbers, 'last': datetime.datetime.fromisoformat(last).timestamp()}))
"""


# --- at the collector ----------------------------------------------------------------------------------------------------


def upload(first: int, last: int) -> bytes:
    """Return entries as journald exports them, with the fields that a line of syslog has, chunked."""
    parts = []
    for number in range(first, last + 1):
        text = (
            f"__CURSOR=s=ab;i={number:x};b=cd;m={number:x};t={number:x};x={number:x}\n"
            f"__REALTIME_TIMESTAMP={1795568523000000 + number}\n"
            f"__MONOTONIC_TIMESTAMP={number}\n_BOOT_ID=3dd6437b192b41528ff4b197eba132cd\nPRIORITY=6\nSYSLOG_FACILITY=10\n"
            f"SYSLOG_IDENTIFIER=sshd\n_UID=0\n_GID=0\n_COMM=sshd\n_EXE=/usr/sbin/sshd\n_PID={number}\n"
            "_CMDLINE=sshd: alice [priv]\n"
            "_SYSTEMD_CGROUP=/system.slice/ssh.service\n_SYSTEMD_UNIT=ssh.service\n_TRANSPORT=syslog\n_HOSTNAME=ward-1\n"
            f"MESSAGE=Accepted publickey for alice from 192.0.2.{number % 250} port 50000 ssh2\n\n"
        ).encode()
        parts.append(b"%x\r\n%s\r\n" % (len(text), text))
    head = b"POST /upload HTTP/1.1\r\nContent-Type: application/vnd.fdo.journal\r\nTransfer-Encoding: chunked\r\n\r\n"
    return head + b"".join(parts) + b"0\r\n\r\n"


def receive() -> dict:
    """Return {events, seconds, resident_kib, bytes, verify_seconds, sum_seconds} of a receiver and its store, both here."""
    place = Path(tempfile.mkdtemp(prefix="bulwark-trail-"))
    receiver = None
    try:
        authority = pki.Authority(str(place / "authority"))
        with pki.Authority.lock(authority.directory, create=True):
            authority.create("Bench", 30)
            for name, kind in (("collector", "server"), ("ward-1", "client")):
                pki.write(str(place / f"{name}.key"), pki.make_key(""), 0o600)
                pem = authority.issue(name, kind, pki.make_request(str(place / f"{name}.key"), name), 30)
                (place / f"{name}.crt").write_text(pem)
            authority.make_crl(30)
        for name, source in (("trail_store", UTILS / "trail_store.py"), ("trail_receive", FILES / "trail_receive.py")):
            shutil.copy(source, place / name)
        (place / "trail").mkdir()
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        about = {
            "listen": "127.0.0.1", "port": port, "directory": str(place / "trail"), "hosts": ["ward-1"],
            "authority": authority.path("ca.crt"), "certificate": str(place / "collector.crt"),
            "key": str(place / "collector.key"), "crl": authority.path("crl.pem"), "reserve_bytes": 0, "seal_seconds": 300,
        }  # fmt: skip
        (place / "about.json").write_text(json.dumps(about))
        uploads = [upload(first, first + UPLOAD - 1) for first in range(1, RECEIVED, UPLOAD)]
        receiver = subprocess.Popen(["/usr/bin/python3", "-IS", place / "trail_receive", place / "about.json"])
        context = ssl.create_default_context(cafile=authority.path("ca.crt"))
        context.load_cert_chain(place / "ward-1.crt", place / "ward-1.key")
        line = connect(context, port)
        begin = time.monotonic()
        for data in uploads:
            line.sendall(data)
            said = line.recv(4096)
            if not said.startswith(b"HTTP/1.1 200"):
                sys.exit(f"the receiver said {said!r}")
        seconds = time.monotonic() - begin
        status = Path(f"/proc/{receiver.pid}/status").read_text()
        resident = int(status.split("VmHWM:")[1].split()[0])
        line.close()
        size = sum(path.stat().st_size for path in (place / "trail" / "ward-1").iterdir())
        begin = time.monotonic()
        done = subprocess.run(
            ["/usr/bin/python3", "-IS", place / "trail_store", "verify", "--directory", place / "trail"],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        verify = time.monotonic() - begin
        if done.returncode or f"sound: {RECEIVED} lines" not in done.stdout:
            sys.exit(f"verification said {done.stdout!r}")
        files = [str(path) for path in (place / "trail" / "ward-1").iterdir()]
        begin = time.monotonic()
        subprocess.run(["sha256sum", *files], check=True, stdout=subprocess.DEVNULL)
        summed = time.monotonic() - begin
        return {"events": RECEIVED, "seconds": seconds, "resident_kib": resident, "bytes": size, "verify_seconds": verify,
                "sum_seconds": summed}  # fmt: skip
    finally:
        if receiver:
            receiver.kill()
            receiver.wait()
        shutil.rmtree(place)


def connect(context: ssl.SSLContext, port: int) -> ssl.SSLSocket:
    """Return a connection to the receiver once it listens."""
    end = time.monotonic() + 20
    while True:
        try:
            return context.wrap_socket(socket.create_connection(("127.0.0.1", port), 30), server_hostname="collector")
        except OSError:
            if time.monotonic() > end:
                raise
            time.sleep(0.2)


def receiving(_state: Path) -> list[str]:
    """Return the section about receiver and verification."""
    seen = receive()
    rate, verified = seen["events"] / seen["seconds"], seen["events"] / seen["verify_seconds"]
    return [
        "## Receiving and verifying",
        "",
        paragraph(
            f"{seen['events']:,} events with the fields of a line of syslog, in uploads of {UPLOAD:,}, from one connection over "
            "TLS with certificates on both sides, without journald and network; each upload is answered once it is on the "
            f"disk. All arrived, and the store verified as sound. Compared with sha256sum of the same files. {SHARED}"
        ),
        "",
        "| | |",
        "|---|--:|",
        f"| received, events a second | {rate:,.0f} |",
        f"| receiver's memory, at most | {seen['resident_kib'] / 1024:.0f} MiB |",
        f"| in the store, bytes an event (before packing) | {seen['bytes'] / seen['events']:.0f} |",
        f"| verified, lines a second | {verified:,.0f} |",
        f"| verification, times sha256sum | {seen['verify_seconds'] / seen['sum_seconds']:.1f} |",
        "",
    ]


def store(directory: Path, lines: int) -> int:
    """Write about so many lines into a store and return how many there are."""
    writer, files, count = trail_lines.Writer(directory), {}, 0
    yesterday = (time.time() // 86400 - 1) * 86400
    for host, entry, received in trail_lines.normal_day(day=yesterday, lines=lines):
        line = writer.line(host, entry, received)
        if host not in files:
            (directory / host).mkdir(parents=True)
            files[host] = (directory / host / f"{trail_lines.stamp(received)[:10]}.jsonl").open("wb")
        files[host].write(line)
        count += 1
    for stream in files.values():
        stream.close()
    return count


def timed(argv: list[str]) -> tuple[float, float]:
    """Return (seconds, MiB at most) of a command that must succeed."""
    code = ("import resource, subprocess, sys; rc = subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL).returncode; "
            "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss); sys.exit(rc)")  # fmt: skip
    started = time.monotonic()
    done = subprocess.run([sys.executable, "-c", code, *argv], check=True, capture_output=True, text=True)
    return time.monotonic() - started, int(done.stdout.split()[-1]) / 1024


# The least that any review must do: parse each line.
PARSE = """
import json, pathlib, sys
for path in pathlib.Path(sys.argv[1]).rglob('*.jsonl'):
    for line in path.open('rb'):
        json.loads(line)
"""


def reviewing(_state: Path) -> list[str]:
    """Return the section about the review: what a million lines cost a watch that has seen none of them, and a digest."""
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        (place / "review").mkdir()
        count = store(place / "store", REVIEWED)
        size = sum(path.stat().st_size for path in (place / "store").rglob("*.jsonl")) / 2**20
        programs = yaml.safe_load((ROOT / "roles/log_review/vars/main.yml").read_text())["__log_review_programs"]
        config = {
            "store": str(place / "store"), "directory": str(place / "review"), "verify": "", "collector": "log",
            "hosts": dict.fromkeys(("web", "db", "gate"), "server"), "reviewers": ["rita"], "max_days": {"server": 7},
            "silent_minutes": 3, "clock_jump_seconds": 5, "sample_size": 20, "incident_severity": "high", "mail_severity": "high",
            "mail_to": [], "sensitive_paths": ["/srv/records"], "tickets": [], "vpn_hours": {},
            "lists": {**programs, "automation": ["deploy"]},
            "rules": yaml.safe_load((ROOT / "roles/log_review/files/rules.yml").read_text()),
        }  # fmt: skip
        file = place / "config.json"
        file.write_text(json.dumps(config))
        parse, _parse_mib = timed([sys.executable, "-IS", "-c", PARSE, str(place / "store")])
        command = [sys.executable, "-IS", str(UTILS / "trail_review.py"), "--config", str(file)]
        watch, watch_mib = timed([*command, "watch"])
        digest, digest_mib = timed([*command, "digest"])
    return [
        "## Review",
        "",
        paragraph(
            f"{count:,} lines ({size:.0f} MiB) of an ordinary day of three busy hosts, audit events in several lines included: "
            "what the watch takes that has seen none of them yet (it runs every half minute, and then reads what is new), and "
            "the digest of that day, both without verifying the store. Compared with a program that only parses these lines as "
            f"JSON. {SHARED}"
        ),
        "",
        "| | seconds | times only parsing | memory at most |",
        "|---|--:|--:|--:|",
        f"| watch | {watch:.0f} | {watch / parse:.1f} | {watch_mib:.0f} MiB |",
        f"| digest | {digest:.0f} | {digest / parse:.1f} | {digest_mib:.0f} MiB |",
        "",
    ]


MEASURES = (receiving, forwarding, reviewing, auditing)
