#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-3.0-or-later
"""The lab's story (make lab): plain machines fail the audit, are hardened, pass it, and are reached by the one way in only."""

from __future__ import annotations

import calendar
import secrets
import sys
import time

import collected
import lab
import way_in
from guests import until

BAR = 30  # characters of a score that is perfect


def picture(evidence: dict[str, dict]) -> str:
    """Return one line a host: how much of what concerns it holds, as a bar, and what does not."""
    lines = []
    for host, record in evidence.items():
        counts, score = record["counts"], record["score"]["after_exceptions"] or 0
        told = ", ".join(f"{counts[status]} {status.replace('_', ' ')}" for status in counts if counts[status])
        lines.append(f"         {host:14} {'█' * int(score * BAR):░<{BAR}} {int(score * 100):3} %   {told}")
    return "\n".join(lines)


def audit(name: str) -> dict[str, dict]:
    """Audit the machines, show their scores, and return their records."""
    lab.play(f"lab-audit-{name}", "audit.yml")
    evidence = lab.records()
    print(picture(evidence), flush=True)
    return evidence


def way() -> bool:
    """Try the way in from outside, and return whether each attempt ended as it should."""
    good = True

    def tell(who: str, what: str, seen: str, wanted: bool) -> None:
        nonlocal good
        good = good and wanted
        print(f"         {'✓' if wanted else '✗'} {who:9} {what:58} {seen}", flush=True)

    doors = way_in.server_doors()
    met = set(way_in.knock(lab.OUTSIDER, doors).values())
    tell("outsider", f"SSH to the servers' {len(doors)} addresses, IPv4 and IPv6", ", ".join(sorted(met)), met <= way_in.SHUT)
    lab.duo("deny")
    ended = way_in.tunnel()
    tell("jdoe", "VPN: certificate, and Duo says no", ended, ended == "AUTH_FAILED")
    lab.duo("allow")
    began = time.monotonic()
    ended = way_in.tunnel()
    tell("jdoe", "VPN: certificate, and Duo says yes", f"{ended} in {time.monotonic() - began:.0f} s", ended == "up")
    server = lab.SERVERS["lab-server-13"]
    done = way_in.ssh(server.address(), "hostname")
    tell("jdoe", "SSH through it: key, and Duo says yes", done.stdout.strip() or done.stderr.strip(), done.returncode == 0)
    password = secrets.token_hex(12)  # as she would set it at the desk of whoever checked her identity
    way_in.on("lab-server-13", "chpasswd", data=f"{lab.PERSON}:{password}\n")
    done = way_in.ssh(server.address(), "sudo -k -S -p '' id -un", data=f"{password}\n")
    tell(
        "jdoe",
        "sudo there: password, and Duo says yes",
        (done.stdout.split() or [done.stderr])[-1],
        "root" in done.stdout.split(),
    )
    way_in.close_tunnel()
    met = set(way_in.knock(lab.MEMBER, doors).values())
    tell("jdoe", "SSH without the tunnel", ", ".join(sorted(met)), met <= way_in.SHUT)
    return good


def clocks() -> bool:
    """Have every host ask the time as the role set it up, without setting a clock; return whether all believe what they hear."""
    good = True
    for host in lab.HOSTS:
        off, said = way_in.ask_time(host)
        good = good and off is not None
        told = f"{off:+.6f} s" if off is not None else (said.splitlines() or ["no answer"])[-1]
        what = "time-a.lab and time-b.lab prove who they are; offset"
        print(f"         {'✗' if off is None else '✓'} {host:14} {what:53} {told}", flush=True)
    return good


def trail(begin: float) -> bool:
    """Have the collector tell what it knows of the way in, and raise an alarm; return whether it does."""
    scanned, server = time.time(), "lab-server-12"
    way_in.knock(lab.OUTSIDER, [(lab.SERVERS[server].address(lab.OUTSIDE), port) for port in range(3000, 3100)])

    def hers(host: str, kind: str, **fields: str) -> str:
        event = collected.known(begin, host, kind, person=lab.PERSON, **fields)
        return event and f"{event['time'][11:19]} {host}: {lab.PERSON} from {event['source'] or event['terminal'] or '-'}"

    def alarm() -> str:
        raised = [alarm["raised"][:19] for alarm in collected.alarms("port_scan", server, scanned)]
        return raised and f"alarm after {calendar.timegm(time.strptime(raised[0], '%Y-%m-%dT%H:%M:%S')) - scanned:.0f} s"

    good = True
    for what, look in (
        ("the tunnel is known, and whose it was", lambda: hers(lab.GATEWAY, "vpn", action="connect")),
        ("the login is known, and whose it was", lambda: hers("lab-server-13", "login", result="success")),
        ("sudo is known, and whose it was", lambda: hers("lab-server-13", "sudo", action="run")),
        ("an outsider tries a hundred ports of a server", alarm),
    ):
        try:
            mark, told = "✓", until(look, 60, what)
        except TimeoutError as exc:
            good, mark, told = False, "✗", str(exc)
        print(f"         {mark} collector {what:58} {told}", flush=True)
    return good


def main() -> int:
    """Tell it; return 0 when every control holds and the way in is the only one."""
    lab.say("Starting plain machines: a gateway, two servers, a collector, two repositories, two people's, and Duo's stand-in")
    lab.up()
    doors = way_in.knock(lab.OUTSIDER, way_in.server_doors())
    lab.say(f"From outside, {list(doors.values()).count('SSH-')} of the servers' {len(doors)} addresses answer on SSH. Auditing")
    before = audit("before")
    lab.say("Hardening them: playbooks/site.yml")
    lab.play("lab-site", "site.yml")
    lab.say("Sealing the account for the day Duo cannot answer: playbooks/rotate_break_glass.yml")
    lab.play("lab-seal", *lab.SEAL)
    lab.say("Having both repositories fetch and read the first backups, as they do each night")
    lab.first_night()
    lab.say("Auditing them again")
    after = audit("after")
    bad = [
        f"         {host}: {control['id']} {control['status']}: {control['why']}"
        for host, record in after.items()
        for control in record["controls"]
        if control["status"] in ("fail", "error")
    ]
    if bad or not after:
        lab.say("Not every control holds:")
        print("\n".join(bad))
    else:
        lab.say("Every control holds, but for approved exceptions: Ansible's own account and the sealed one skip Duo")
    lab.say("The way in, tried from outside")
    tried = time.time()
    good = way()
    lab.say("What time it is, asked of two sources over Network Time Security")
    good = clocks() and good
    lab.say("What the collector knows of it")
    good = trail(tried) and good
    if not good:
        print(f"         Where to look: journalctl on the machines (podman exec lab-gateway journalctl -e), {lab.LOGS}/lab-*.log")

    print(f"\n{'':14}  before   after")
    for host in after:
        first, last = (run[host]["score"]["after_exceptions"] or 0 for run in (before, after))
        print(f"{host:14}  {first:6.0%}  {last:6.0%}")
    print(f"\nReport:  {(lab.ROOT / 'evidence' / 'latest').resolve() / 'report.html'}")
    address = lab.SERVERS["lab-server-13"].address()
    print(f"Look in: ssh -i .cache/lab/id_ed25519 -o UserKnownHostsFile=.cache/lab/known_hosts deploy@{address}")
    print("Remove:  make lab-down")
    return 0 if good and after and not bad else 1


if __name__ == "__main__":
    sys.exit(main())
