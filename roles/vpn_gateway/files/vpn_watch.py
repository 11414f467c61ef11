# Managed by bulwark.hardening (role vpn_gateway). Changes made here are overwritten.
# Copyright: (c) 2026, Bulwark contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""End VPN tunnels that nobody uses, that last too long, or whose owner may no longer come. Run by bulwark-vpn-idle.service.

OpenVPN's own `inactive` counts bytes without end: keepalives that trickle through a tunnel add up and keep it alive for ever.
So this program looks at what each client sent during each short interval, and only an interval with more than a burst of bytes
is activity. Counted are TCP and UDP packets from a client to the networks behind the gateway and to the gateway itself; pings,
router solicitations, multicast, and whatever others send to the client are not.

It holds OpenVPN's management socket, and OpenVPN holds its breath (management-hold) until this program is there. If it ends, or
systemd finds that it no longer looks, systemd stops OpenVPN with it (BindsTo): a VPN that nobody watches is no VPN.

All times are on the clock that runs since boot and through suspension; a wall clock that is set ends no tunnel and saves none.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import select
import socket
import subprocess
import sys
import time

REASONS = {  # what OpenVPN logs when a client's part of it ends
    "remote-exit": "left", "delayed-exit": "left", "ping-restart": "lost", "connection-reset": "lost", "inactive": "idle",
}  # fmt: skip
CUTS_KEPT = 50
COMPARE_SECONDS = 60
PATIENCE = 30  # seconds that one answer may take; systemd's watchdog decides when all of it takes too long


class Lost(Exception):
    """The VPN can no longer be watched, so it must not go on."""


# --- deciding ---------------------------------------------------------------------------------------------------------


def burst(before: int, now: int) -> int:
    """Return how many bytes a counter grew by; one that shrank was set up anew, and holds only what came since."""
    return now - before if now >= before else now


def note(session: dict, sent: int, now: float, looked: float, threshold: int) -> None:
    """Take a look's counter into a session: activity is dated to the start of the interval, so that it never counts longer."""
    if burst(session["sent"], sent) > threshold:
        session["active"] = max(session["active"], looked)
        session["bursts"] += 1
    session["sent"] = sent


def verdict(session: dict, now: float, limits: dict, declared: set[str], revoked: set[str]) -> str:
    """Return why a session must end, or nothing. ``limits`` has end_after and session_max in seconds."""
    if session["serial"] in revoked:
        return "revoked"
    if session["user"] not in declared:
        return "removed"
    if now - session["since"] >= limits["session_max"]:
        return "session_limit"
    if now - session["active"] >= limits["end_after"]:
        return "idle"
    return ""


def sample(session: dict, now: float) -> dict:
    """Return what others may know of a session."""
    return {
        "user": session["user"],
        "address": session["address"],
        "real": session["real"],
        "cipher": session["cipher"],
        "channel": session["channel"],
        "seconds": round(now - session["since"]),
        "idle_seconds": round(now - session["active"]),
        "ending": session["ending"],
    }


# --- reading ----------------------------------------------------------------------------------------------------------


def status_rows(lines: list[str]) -> list[dict]:
    """Return the clients of `status 3`, by the names in its own header."""
    names: list[str] = []
    rows = []
    for line in lines:
        words = line.split("\t")
        if words[:2] == ["HEADER", "CLIENT_LIST"]:
            names = words[2:]
        elif words[0] == "CLIENT_LIST":
            rows.append(dict(zip(names, words[1:], strict=False)))
    return rows


def counters(listing: str) -> tuple[dict[str, int], int]:
    """Return ({address: bytes}, number of rules that count) of a table that nft printed as JSON."""
    found: dict[str, int] = {}
    rules = 0
    for item in json.loads(listing).get("nftables", []):
        for entry in item.get("set", {}).get("elem", []):
            inner = entry.get("elem", {}) if isinstance(entry, dict) else {}
            if "counter" in inner:
                found[str(inner["val"])] = inner["counter"]["bytes"]
        statements = item.get("rule", {}).get("expr", [])
        rules += any(statement.get("set", {}).get("set", "").startswith("@sent") for statement in statements)
    return found, rules


def crl_serials(text: str) -> set[str]:
    """Return the serials, upper-case hex without leading zeros, that openssl printed of a revocation list."""
    return {serial.upper().lstrip("0") for serial in re.findall(r"Serial Number: ([0-9A-Fa-f]+)", text)}


def serial_of(environment: dict) -> str:
    """Return the serial of a client's certificate as OpenVPN tells it: hex with colons."""
    return environment.get("tls_serial_hex_0", "").replace(":", "").upper().lstrip("0")


def line_of(event: str, **values: object) -> str:
    """Return one line for the journal, key=value, in which no value can hold a blank, a quote or anything that is no text."""
    words = [f"{key}={re.sub(r'[^A-Za-z0-9_.:@%/-]', '?', str(value)) or '-'}" for key, value in values.items()]
    return " ".join([f"event={event}", *words])


def say(event: str, **values: object) -> None:
    """Write one line to the journal."""
    print(line_of(event, **values), flush=True)


def now() -> float:
    """Return seconds since boot, suspension included."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def notify(text: str) -> None:
    """Tell systemd something."""
    path = os.environ.get("NOTIFY_SOCKET")
    if path:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
            channel.sendto(text.encode(), "\0" + path[1:] if path.startswith("@") else path)


def run(*argv: str, given: str = "") -> str:
    """Return what a command prints. Raises Lost when it fails: what cannot be looked at cannot be watched."""
    try:
        done = subprocess.run(argv, input=given, capture_output=True, text=True, check=False, timeout=PATIENCE)
    except (OSError, subprocess.TimeoutExpired) as exc:
        raise Lost(f"{argv[0]}: {exc}") from exc
    if done.returncode:
        raise Lost(f"{' '.join(argv[:4])}: {done.stderr.strip().splitlines()[:1]}")
    return done.stdout


class Counting:
    """A table of our own in nftables that counts what each client sends. Other tables are left alone."""

    def __init__(self, interface: str, networks: list[str], networks6: list[str]) -> None:
        families = ((4, "ip", networks), (6, "ip6", networks6))
        inside = "".join(
            f"  set inside{family} {{ type ipv{family}_addr; flags interval; elements = {{ {', '.join(listed)} }} }}\n"
            for family, _name, listed in families
            if listed
        )
        sent = "".join(f"  set sent{n} {{ type ipv{n}_addr; size 65536; flags dynamic; counter; }}\n" for n in (4, 6))
        counted = 'iifname "{}" meta l4proto {{ tcp, udp }} meta nfproto ipv{} {} add @sent{} {{ {} saddr }}'
        through = [counted.format(interface, n, f"{name} daddr @inside{n}", n, name) for n, name, listed in families if listed]
        to_us = [counted.format(interface, n, "fib daddr type local", n, name) for n, name, _listed in families]
        self.expected = len(through) + len(to_us)
        chains = "".join(
            f"  chain {hook} {{\n    type filter hook {hook} priority 100; policy accept;\n    {body}\n  }}\n"
            for hook, body in (("forward", "\n    ".join(through)), ("input", "\n    ".join(to_us)))
        )
        # Late in both ways, so that what a firewall refuses is nobody's activity.
        table = "table inet bulwark_vpn"
        self.rules = f"{table}\ndelete {table}\n{table} {{\n{inside}{sent}{chains}}}\n"

    def set_up(self) -> None:
        """Make the table, empty."""
        run("nft", "-f", "-", given=self.rules)

    def look(self) -> dict[str, int]:
        """Return {address: bytes}. If somebody took the table or a rule away, it is made anew, and nobody was active."""
        try:
            found, rules = counters(run("nft", "-j", "list", "table", "inet", "bulwark_vpn"))
        except Lost as exc:
            found, rules, problem = {}, 0, str(exc)
        else:
            problem = f"{rules} of {self.expected} rules"
        if rules == self.expected:
            return found
        say("counters_lost", problem=problem)
        self.set_up()
        return {}


class Management:
    """OpenVPN's management socket: lines in, lines out."""

    def __init__(self, path: str) -> None:
        self.channel = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.channel.settimeout(PATIENCE)
        self.channel.connect(path)
        self.pending = b""

    def send(self, command: str) -> None:
        """Send a command."""
        try:
            self.channel.sendall(command.encode() + b"\n")
        except OSError as exc:
            raise ConnectionError(f"management: {exc}") from exc

    def lines(self, until: float) -> list[str]:
        """Return the lines that come until a time; at once when there are some. Raises ConnectionError at the end."""
        while b"\n" not in self.pending:
            left = until - now()
            if left <= 0:
                return []
            if select.select([self.channel], [], [], left)[0]:
                try:
                    got = self.channel.recv(1 << 16)
                except OSError as exc:
                    raise ConnectionError(f"management: {exc}") from exc
                if not got:
                    raise ConnectionError("management: closed")
                self.pending += got
        whole, _newline, self.pending = self.pending.rpartition(b"\n")
        return whole.decode(errors="replace").replace("\r", "").split("\n")

    def close(self) -> None:
        """Let go."""
        self.channel.close()


# --- watching ---------------------------------------------------------------------------------------------------------


class Watch:
    """Who is connected, since when, and what they did."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.limits = {"end_after": args.end_after, "session_max": args.session_max}
        self.counting = Counting(args.interface, args.network, args.network6)
        self.sessions: dict[str, dict] = {}
        self.cuts: list[dict] = []
        self.collecting: tuple[str, dict] | None = None
        self.channels: dict[str, str] = {}  # TLS as negotiated, by real address
        self.looked = now()
        self.compared = 0.0
        self.crl: tuple[object, set[str]] = (None, set())
        self.management: Management | None = None
        self.answer: list[str] | None = None

    def start(self) -> None:
        """Count from nothing, and tell of sessions that an earlier watcher left without a last word."""
        self.counting.set_up()
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            with open(self.args.state, encoding="ascii") as stream:
                before = json.load(stream)
            self.cuts = list(before["cuts"])[-CUTS_KEPT:]
            for left in before["sessions"]:
                say("disconnect", user=left["user"], real=left["real"], address=left["address"], received="unknown",
                    sent="unknown", seconds=left["seconds"], reason="watcher_lost")  # fmt: skip
        say("watching", end_after=self.args.end_after, poll=self.args.poll, session_max=self.args.session_max)

    def line(self, text: str) -> None:
        """Take one line of the management socket."""
        if text.startswith(">CLIENT:ENV,"):
            if self.collecting:
                body = text[len(">CLIENT:ENV,") :]
                cid, about = self.collecting
                if body == "END":
                    self.collecting = None
                    # OpenVPN tells of those that vpn_connect turns away as well; they are told by the same signs.
                    if about.get("session_state") == "Initial" and about.get("common_name") == about.get("username"):
                        self.connected(cid, about)
                else:
                    key, _equals, value = body.partition("=")
                    about[key] = value
        elif text.startswith(">CLIENT:"):
            words = text[len(">CLIENT:") :].split(",")
            self.collecting = (words[1], {}) if words[0] == "ESTABLISHED" else None
        elif text.startswith(">BYTECOUNT_CLI:"):
            cid, received, sent = text[len(">BYTECOUNT_CLI:") :].split(",")
            if cid in self.sessions:
                self.sessions[cid]["bytes"] = (int(received), int(sent))
        elif text.startswith(">HOLD:"):
            self.management.send("hold release")
        elif text.startswith(">LOG:"):
            self.log(text.split(",", 2)[-1])
        elif not text.startswith(">") and self.answer is not None:
            self.answer.append(text)

    def log(self, message: str) -> None:
        """Learn from OpenVPN's log what its status does not say."""
        found = re.match(r"(?:\S+?/)?(\S+:\d+) Control Channel: (TLSv[\d.]+), cipher \S+ (\S+),", message)
        if found:
            self.channels[found.group(1)] = f"{found.group(2)} {found.group(3)}"
            while len(self.channels) > 1000:
                del self.channels[next(iter(self.channels))]
        again = re.search(r"MULTI: new connection by client '([^']+)' will cause previous active sessions", message)
        if again:  # said before the new session is told of, so these are the former ones
            for cid, session in list(self.sessions.items()):
                if session["user"] == again.group(1):
                    self.gone(cid, "replaced")
        ended = re.match(r"(?:\S+?/)?(\S+:\d+) SIG\w+\[soft,([\w-]+)\] received, client-instance", message)
        if ended:
            for cid, session in list(self.sessions.items()):
                if session["real"] == ended.group(1):
                    self.gone(cid, REASONS.get(ended.group(2), ended.group(2)))

    def connected(self, cid: str, about: dict) -> None:
        """Begin a session."""
        user = about.get("common_name", "")
        real = f"{about.get('trusted_ip') or about.get('trusted_ip6', '')}:{about.get('trusted_port', '')}"
        at = now()
        self.sessions[cid] = {
            "user": user, "real": real, "serial": serial_of(about), "since": at, "active": at, "sent": 0, "bursts": 0,
            "address": about.get("ifconfig_pool_remote_ip", ""), "address6": about.get("ifconfig_pool_remote_ip6", ""),
            "cipher": "", "channel": self.channels.get(real, ""), "ending": "", "ending_at": 0.0, "mark": None, "bytes": (0, 0),
        }  # fmt: skip
        session = self.sessions[cid]
        say("connect", user=user, real=real, address=session["address"], address6=session["address6"], serial=session["serial"])

    def gone(self, cid: str, reason: str = "stopped") -> None:
        """End a session, with its last line in the journal. Why we ended it counts more than how OpenVPN puts it."""
        session = self.sessions.pop(cid)
        say("disconnect", user=session["user"], real=session["real"], address=session["address"],
            received=session["bytes"][0], sent=session["bytes"][1], seconds=round(now() - session["since"]),
            reason=session["ending"] or reason)  # fmt: skip

    def ask(self, command: str, last: str) -> list[str]:
        """Send a command and return its answer, up to the line that ends it."""
        self.answer = []
        self.management.send(command)
        until = now() + PATIENCE
        while not any(re.match(last, line) for line in self.answer):
            lines = self.management.lines(until)
            if not lines:
                raise Lost(f"management: no answer to {command.split()[0]}")
            for text in lines:
                self.line(text)
        got, self.answer = self.answer, None
        return got

    def revoked(self) -> set[str]:
        """Return the serials on the revocation list, read anew when the file changed. No readable list: Lost."""
        try:
            about = os.stat(self.args.crl)
        except OSError as exc:
            raise Lost(f"{self.args.crl}: {exc}") from exc
        mark = (about.st_mtime_ns, about.st_ino, about.st_size)
        if mark != self.crl[0]:
            self.crl = (mark, crl_serials(run("openssl", "crl", "-in", self.args.crl, "-noout", "-text")))
        return self.crl[1]

    def look(self) -> None:
        """Look at everybody once, and end what must end."""
        sent = self.counting.look()
        if self.uncertain():
            self.compare()
        at, revoked = now(), self.revoked()
        declared = set(os.listdir(self.args.users))
        for cid, session in list(self.sessions.items()):
            session["channel"] = self.channels.get(session["real"], session["channel"])
            count = sent.get(session["address"], 0) + sent.get(session["address6"], 0)
            if session["mark"] is None:  # what somebody else sent from this address earlier is not this session's
                session.update(mark=count, sent=count)
            note(session, count, at, self.looked, self.args.burst)
            if session["ending"]:
                if at - session["ending_at"] > self.args.kill:
                    raise Lost(f"{session['user']} could not be ended")
                continue
            reason = verdict(session, at, self.limits, declared, revoked)
            if reason:
                session.update(ending=reason, ending_at=at)
                self.cuts = [*self.cuts, {"at": round(time.time()), "user": session["user"], "reason": reason,
                                          "idle_seconds": round(at - session["active"])}][-CUTS_KEPT:]  # fmt: skip
                say("end", user=session["user"], address=session["address"], reason=reason, idle=round(at - session["active"]))
                self.kill(cid)
        self.looked = at
        self.remember(at)
        notify("WATCHDOG=1")

    def uncertain(self) -> bool:
        """Say whether OpenVPN must be asked who is there. Each time is a line in its log, so not at every look."""
        fresh = any(session["ending"] or not session["cipher"] for session in self.sessions.values())
        return fresh or now() - self.compared >= COMPARE_SECONDS

    def compare(self) -> None:
        """Ask OpenVPN who is there, and leave nobody out and nobody in."""
        rows = {row["Client ID"]: row for row in status_rows(self.ask("status 3", "END$"))}
        for cid in [cid for cid in self.sessions if cid not in rows]:
            self.gone(cid)
        for cid, row in rows.items():
            if not row.get("Virtual Address"):
                continue  # still proving who they are; OpenVPN gives up on them by itself
            if cid not in self.sessions:  # connected before we came: known by nothing but the status, so not known well enough
                self.connected(cid, {"common_name": row["Common Name"], "ifconfig_pool_remote_ip": row["Virtual Address"]})
                self.sessions[cid].update(real=row["Real Address"], ending="unknown_session", ending_at=now())
                self.kill(cid)
            self.sessions[cid]["cipher"] = row.get("Data Channel Cipher", "")
        self.compared = now()

    def kill(self, cid: str) -> None:
        """Tell a client to stop (HALT: and not to come back by itself, which would ask for a factor), and take its side down."""
        self.ask(f"client-kill {cid} HALT", "SUCCESS|ERROR")

    def remember(self, at: float) -> None:
        """Leave for others what was seen."""
        state = {
            "looked_at": time.time(), "end_after": self.args.end_after, "poll": self.args.poll, "kill": self.args.kill,
            "burst": self.args.burst, "session_max": self.args.session_max, "attached": self.management is not None,
            "sessions": [sample(session, at) for session in self.sessions.values()], "cuts": self.cuts,
        }  # fmt: skip
        temporary = f"{self.args.state}.new"
        with open(temporary, "w", encoding="ascii") as stream:
            json.dump(state, stream)
        os.replace(temporary, self.args.state)

    def attach(self) -> bool:
        """Get hold of OpenVPN if it is there: until somebody does, it lets nobody in."""
        try:
            self.management = Management(self.args.management)
        except (FileNotFoundError, ConnectionRefusedError):
            return False
        self.ask("log on", "SUCCESS|ERROR")
        self.ask(f"bytecount {self.args.poll}", "SUCCESS|ERROR")
        self.ask("hold release", "SUCCESS|ERROR")
        self.looked, self.compared = now(), 0.0
        return True

    def detach(self) -> None:
        """OpenVPN has ended, and all sessions with it."""
        if self.management:
            self.management.close()
        self.management, self.collecting, self.answer = None, None, None
        for cid in list(self.sessions):
            self.gone(cid)
        self.remember(now())

    def go_on(self) -> None:
        """Watch for ever."""
        self.start()
        self.remember(now())
        notify("READY=1")
        while True:
            due = now() + self.args.poll
            try:
                if self.management is None and not self.attach():
                    self.remember(now())
                    notify("WATCHDOG=1")
                    time.sleep(0.2)
                    continue
                self.look()
                while now() < due:
                    for text in self.management.lines(due):
                        self.line(text)
            except ConnectionError as exc:
                say("detached", problem=exc)
                self.detach()


def main(argv: list[str] | None = None) -> int:
    """Read the options and watch."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--management", required=True)
    parser.add_argument("--state", required=True)
    parser.add_argument("--interface", required=True)
    parser.add_argument("--network", action="append", default=[])
    parser.add_argument("--network6", action="append", default=[])
    parser.add_argument("--users", required=True)
    parser.add_argument("--crl", required=True)
    for name in ("end-after", "poll", "kill", "burst", "session-max"):
        parser.add_argument(f"--{name}", type=int, required=True)
    parser.add_argument("--try", action="store_true", dest="only_try", help="look at the options and do nothing")
    args = parser.parse_args(argv)
    if args.only_try:
        Watch(args)
        return 0
    try:
        Watch(args).go_on()
    except (Lost, OSError, ValueError, KeyError) as exc:
        say("lost", problem=exc)
    return 1


if __name__ == "__main__":
    sys.exit(main())
