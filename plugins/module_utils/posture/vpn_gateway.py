# Copyright: (c) 2026, Bulwark contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How a VPN gateway lets people in: the running OpenVPN, its watcher, its certificates, and what else would let somebody in.

What counts is what the running process has read: its own command line, the file it names, whether that changed since, and what
the watcher, which speaks to it, saw of live tunnels. No private key is read and none is returned.
"""

from __future__ import annotations

import glob
import ipaddress
import json
import os
import pwd
import re
import shlex
import stat
import subprocess
import time

from ansible_collections.bulwark.hardening.plugins.module_utils import pki, vpn
from ansible_collections.bulwark.hardening.plugins.module_utils.posture.certificates import days
from ansible_collections.bulwark.hardening.plugins.module_utils.posture.common import (
    CannotObserve,
    load,
    look,
    owner_name,
    read,
    run,
)
from ansible_collections.bulwark.hardening.plugins.module_utils.posture.session import time_span

OPENVPN = "/usr/sbin/openvpn"
UNIT, WATCHER, TIMER = "openvpn-server@bulwark.service", "bulwark-vpn-idle.service", "bulwark-vpn-crl.timer"
UNITS = {"vpn": UNIT, "watcher": WATCHER, "timer": TIMER}
CONFIG = "/etc/openvpn/server/bulwark.conf"
DIRECTORY = "/etc/openvpn/server/bulwark"
CONNECT = "/usr/local/lib/bulwark/vpn_connect"
STATE = "/run/bulwark-vpn/state.json"
NOBODY = 65534
# What the vendor's unit adds to the configuration; more could undo it.
VENDOR_WORDS = "--status /run/openvpn-server/status-bulwark.log --status-version 2 --suppress-timestamps --config bulwark.conf"
# Programs that let somebody in from afar past the VPN, by the name the kernel has them under (15 characters).
REMOTE_TOOLS = {
    "x11vnc", "Xvnc", "Xtigervnc", "Xtightvnc", "x0vncserver", "x0tigervncserv", "vncserver", "vncserver-x11", "vncserver-x11-s",
    "vncserver-virtu", "vino-server", "wayvnc", "krfb", "gnome-remote-de", "xrdp", "xrdp-sesman", "teamviewerd", "TeamViewer",
    "anydesk", "rustdesk", "ngrok", "tailscaled", "zerotier-one", "cloudflared", "frpc", "bore", "chisel", "dwagent", "dwagsvc",
    "nxserver.bin", "nxd", "chrome-remote-d", "SRStreamer", "SRServer", "splashtop-strea", "netbird", "headscale", "nebula",
    "softether", "vpnserver", "vpnbridge", "charon", "charon-systemd", "pppd", "xl2tpd", "ocserv", "telnetd", "in.telnetd",
    "rlogind", "in.rlogind", "rshd", "in.rshd", "shellinaboxd", "ttyd", "mosh-server", "meshagent", "wssh", "gotty",
}  # fmt: skip
REMOTE_PORTS = {23: "telnet", 512: "rexec", 513: "rlogin", 514: "rsh", 3389: "rdp", **dict.fromkeys(range(5900, 5910), "vnc")}


def collect() -> dict:
    """Return how people are let in.

    installed      bool; units {vpn, watcher, timer: state}; at_boot: those of them that start with the system
    bound          whether the VPN ends when its watcher does
    running        {arguments: those the vendor's unit does not give, user, in_force: nothing it read has changed since}
    directives     {name: [arguments, one text a line]} of the configuration, files it includes as well; pushed [texts]
    second_factor  {pam: [lines], guard, module: whether the programs are there}
    connect        {case: whether the program that OpenVPN asks would let somebody in}
    watcher        {looked_seconds_ago, attached, worst_case_seconds, end_after_seconds, session_seconds_max, burst_bytes}
    tunnels        live ones, [{user, address, cipher, channel, seconds, idle_seconds, ending}]; cuts: the last that were ended
    users          [{name, address, address6}] who may connect
    management     {socket, directory: {owner, mode}, tcp: whether it can be reached over a network}
    files          [{path, owner, group, mode, secret}] that decide who is let in
    certificates   {server, authority, crl: days until the end; sound: they belong together; users: [{name, days}]}
    forwarding     {ipv4, ipv6, file: whether our own drop-in is there}
    logged         whether the watcher's lines are in the journal
    other_ways     what else would let somebody in from afar
    accounts       [{name, comment}]; surroundings {networks, peers}; counting: whether the watcher's table is there
    """
    data: dict = {"installed": os.path.exists(OPENVPN)}
    shown = units()
    data["units"] = {short: shown[name].get("ActiveState", "") for short, name in UNITS.items()}
    data["bound"] = WATCHER in shown[UNIT].get("BindsTo", "").split() and WATCHER in shown[UNIT].get("After", "").split()
    parts = {
        "at_boot": at_boot, "running": lambda: running(shown[UNIT]), "second_factor": second_factor, "connect": connect,
        "watcher": lambda: watcher(shown[WATCHER]), "tunnels": lambda: state().get("sessions", []),
        "cuts": lambda: state().get("cuts", []), "users": users, "management": management, "files": files,
        "certificates": certificates, "forwarding": forwarding, "logged": logged, "other_ways": other_ways,
        "accounts": accounts, "surroundings": surroundings, "counting": counting,
    }  # fmt: skip
    seen, data["unobserved"] = look(parts)
    data.update(seen)
    try:
        data["directives"], data["pushed"] = configuration(CONFIG)
    except CannotObserve as exc:
        data["unobserved"].update(directives=str(exc), pushed=str(exc))
    return data


def units() -> dict[str, dict[str, str]]:
    """Return what systemd says of our units, by name."""
    keys = "Id,ActiveState,MainPID,ExecMainStartTimestampMonotonic,BindsTo,After,WatchdogUSec"
    shown = {}
    for block in run(["systemctl", "show", "-p", keys, UNIT, WATCHER, TIMER]).strip().split("\n\n"):
        about = dict(line.split("=", 1) for line in block.splitlines() if "=" in line)
        shown[about["Id"]] = about
    return shown


def at_boot() -> list[str]:
    """Return which of our units are started with the system."""
    wanted = run(["systemctl", "show", "-p", "Wants", "--value", "multi-user.target", "timers.target"]).split()
    return sorted(short for short, name in UNITS.items() if name in wanted)


def running(unit: dict[str, str]) -> dict:
    """Return what the running process was given, and whether it still holds."""
    pid = unit.get("MainPID", "0")
    if pid == "0":
        return {"arguments": [], "user": "", "in_force": False}
    words = read(f"/proc/{pid}/cmdline").split("\0")[1:-1]
    uid = re.search(r"^Uid:\s+(\d+)", read(f"/proc/{pid}/status"), re.MULTILINE)
    started = time.time() - (time.monotonic() - int(unit.get("ExecMainStartTimestampMonotonic") or 0) / 1e6)
    paths = [CONFIG, *(os.path.join(DIRECTORY, name) for name in ("own.crt", "ca.crt", "private.key", "tls-crypt-v2.key"))]
    return {
        "arguments": [] if words == VENDOR_WORDS.split() else words,
        "user": owner_name(int(uid.group(1))) if uid else "",
        "in_force": all(os.path.exists(path) and os.stat(path).st_mtime <= started for path in paths),
    }


def configuration(path: str, depth: int = 0) -> tuple[dict[str, list[str]], list[str]]:
    """Return (directives by name, pushed options) of a configuration file. No file: nothing."""
    directives: dict[str, list[str]] = {}
    pushed: list[str] = []
    if not os.path.exists(path):
        return directives, pushed
    inline = ""
    for line in read(path).splitlines():
        text = line.strip()
        if inline or re.fullmatch(r"<[a-z0-9-]+>", text):
            inline = "" if text == f"</{inline}>" else inline or text.strip("<>")
            continue
        try:
            words = shlex.split(text, comments=True) if text[:1] != ";" else []
        except ValueError as exc:
            raise CannotObserve(f"{path}: {text[:40]}: {exc}") from exc
        if not words:
            continue
        name, rest = words[0].lstrip("-"), " ".join(words[1:])
        if name == "config" and depth < 8:
            more, also = configuration(os.path.join(os.path.dirname(CONFIG), rest), depth + 1)
            pushed += also
            for key, values in more.items():
                directives.setdefault(key, []).extend(values)
        elif name == "push":
            pushed.append(rest)
        else:
            directives.setdefault(name, []).append(rest)
    return directives, pushed


def second_factor() -> dict:
    """Return what PAM asks people who connect."""
    path = "/etc/pam.d/openvpn"
    lines = [" ".join(line.split()) for line in read(path).splitlines()] if os.path.exists(path) else []
    return {
        "pam": [line for line in lines if line and not line.startswith("#")],
        "guard": os.access("/usr/local/lib/bulwark/duo_config_check", os.X_OK),
        "module": bool(glob.glob("/lib/*/security/pam_duo.so") + glob.glob("/usr/lib/*/security/pam_duo.so")),
    }


def connect() -> dict[str, bool]:
    """Return whom the program that OpenVPN asks would let in. It is run as nobody, and decides by its environment alone."""
    good = {"common_name": "a", "username": "a", "session_state": "Initial"}
    cases = {
        "same_person": good,
        "another_person": {**good, "username": "b"},
        "no_certificate": {**good, "common_name": "", "username": ""},
        "old_token": {**good, "session_state": "Authenticated"},
        "expired_token": {**good, "session_state": "Expired"},
        "no_state": {"common_name": "a", "username": "a"},
    }
    if not os.path.exists(CONNECT):
        return dict.fromkeys(cases, False)
    answers = {}
    for case, environment in cases.items():
        try:
            done = subprocess.run(
                [CONNECT, "/dev/null"], env={"PATH": "/usr/bin:/bin", **environment}, cwd="/", check=False, timeout=5,
                stdin=subprocess.DEVNULL, capture_output=True, user=NOBODY, group=NOBODY, extra_groups=[],
            )  # fmt: skip
        except (OSError, subprocess.TimeoutExpired) as exc:
            raise CannotObserve(f"{CONNECT}: {exc}") from exc
        answers[case] = done.returncode == 0
    return answers


def state() -> dict:
    """Return what the watcher left about its last look; nothing if it never looked."""
    return load(STATE)


def watcher(unit: dict[str, str]) -> dict:
    """Return how the watcher works, from its last look and from what systemd does when it looks no more.

    ``worst_case_seconds`` is 0 (never) when nobody looks or systemd would not notice that nobody does.
    """
    seen = state() if unit.get("ActiveState") == "active" else {}
    watchdog = time_span(unit.get("WatchdogUSec") or "0")
    numbers = [seen.get(key) for key in ("end_after", "poll", "kill")]
    known = watchdog > 0 and all(isinstance(number, int) and number > 0 for number in numbers)
    return {
        "looked_seconds_ago": round(time.time() - seen["looked_at"], 1) if seen else None,
        "attached": bool(seen.get("attached")),
        "poll_seconds": seen.get("poll"),
        "end_after_seconds": seen.get("end_after"),
        "worst_case_seconds": vpn.worst_case_seconds(numbers[0], numbers[1], watchdog, numbers[2]) if known else 0,
        "session_seconds_max": seen.get("session_max"),
        "burst_bytes": seen.get("burst"),
    }


def users() -> list[dict]:
    """Return who may connect, with their addresses."""
    found = []
    for path in sorted(glob.glob(os.path.join(glob.escape(DIRECTORY), "users", "*"))):
        lines = dict(line.split(" ", 1) for line in read(path).splitlines() if " " in line and not line.startswith("#"))
        found.append({
            "name": os.path.basename(path),
            "address": lines.get("ifconfig-push", "").split(" ")[0],
            "address6": lines.get("ifconfig-ipv6-push", "").split("/")[0],
            "more": sorted(set(lines) - {"ifconfig-push", "ifconfig-ipv6-push"}),
        })  # fmt: skip
    return found


def management() -> dict:
    """Return who can command the VPN."""
    path = "/run/bulwark-vpn"
    values = configuration(CONFIG)[0].get("management", [])
    return {
        "socket": values,
        "directory": owned(path) if os.path.isdir(path) else {},
        "tcp": any(not value.endswith(" unix") for value in values),
    }


def owned(path: str, secret: bool = False) -> dict:
    """Return {path, owner, mode, secret} of a file."""
    about = os.lstat(path)
    return {"path": path, "owner": owner_name(about.st_uid), "mode": f"{stat.S_IMODE(about.st_mode):04o}", "secret": secret}


def files() -> list[dict]:
    """Return owner and mode of what decides who is let in; what does not exist is left out."""
    plain = [CONFIG, DIRECTORY, CONNECT, "/etc/pam.d/openvpn"]
    plain += ["/usr/local/lib/bulwark", "/usr/local/lib/bulwark/vpn_watch", "/usr/local/lib/bulwark/pki"]
    plain += [os.path.join(DIRECTORY, name) for name in ("ca.crt", "own.crt", "crl.pem", "users")]
    plain += glob.glob(os.path.join(DIRECTORY, "users", "*"))
    secret = [os.path.join(DIRECTORY, name) for name in ("private.key", "tls-crypt-v2.key", "tls-crypt-v2")]
    secret += glob.glob(os.path.join(DIRECTORY, "tls-crypt-v2", "*"))
    secret += [os.path.join("/var/lib/bulwark/vpn-authority", name) for name in ("", "ca.key", "index.json")]
    found = [owned(path) for path in plain if os.path.lexists(path)]
    return found + [owned(path, True) for path in secret if os.path.lexists(path)]


def certificates() -> dict:
    """Return for how many days certificates and revocation list still hold, and whether they belong together.

    ``users`` has each declared user's certificate that lasts longest, by name.
    """
    found: dict = {"server": 0.0, "authority": 0.0, "crl": 0.0, "sound": False, "users": []}
    texts = {key: _text(name) for key, name in (("authority", "ca.crt"), ("server", "own.crt"), ("crl", "crl.pem"))}
    try:
        for key in ("authority", "server"):
            if texts[key]:
                found[key] = days(pki.certificate_facts(texts[key])["not_after"])
        if texts["crl"]:
            found["crl"] = days(pki.crl_facts(texts["crl"])["next_update"])
    except pki.PkiError as exc:
        raise CannotObserve(str(exc)) from exc
    if all(texts.values()):
        authority = os.path.join(DIRECTORY, "ca.crt")
        try:
            pki.openssl("verify", "-purpose", "sslserver", "-CAfile", authority, os.path.join(DIRECTORY, "own.crt"))
            pki.openssl("crl", "-noout", "-verify", "-CAfile", authority, "-in", os.path.join(DIRECTORY, "crl.pem"))
            found["sound"] = True
        except pki.PkiError:
            found["sound"] = False
    declared = {user["name"] for user in users()}
    last: dict[str, float] = {}
    try:
        for entry in json.loads(_text("issued.json") or "[]"):
            if entry["kind"] == "client" and entry["name"] in declared:
                last[entry["name"]] = max(last.get(entry["name"], 0), entry["not_after"])
    except (ValueError, KeyError, TypeError) as exc:
        raise CannotObserve(f"{DIRECTORY}/issued.json: {exc}") from exc
    found["users"] = [{"name": name, "days": days(until)} for name, until in sorted(last.items())]
    return found


def _text(name: str) -> str:
    path = os.path.join(DIRECTORY, name)
    return read(path) if os.path.exists(path) else ""


def forwarding() -> dict:
    """Return whether the kernel passes packets on."""
    switches = {"ipv4": "/proc/sys/net/ipv4/ip_forward", "ipv6": "/proc/sys/net/ipv6/conf/all/forwarding"}
    found = {key: os.path.exists(path) and read(path).strip() == "1" for key, path in switches.items()}
    return {**found, "file": os.path.exists("/etc/sysctl.d/60-bulwark-vpn.conf")}


def logged() -> bool:
    """Return whether what the watcher tells is in the journal."""
    return "event=watching" in run(["journalctl", "-q", "-o", "cat", "-t", "bulwark-vpn", "-n", "5000"])


def other_ways() -> list[str]:
    """Return in words what else lets somebody in from afar: programs, listeners and other tunnels."""
    said = set()
    for path in glob.glob("/proc/[0-9]*/comm"):
        try:
            name, groups = read(path).strip(), read(os.path.join(os.path.dirname(path), "cgroup")).splitlines()
        except CannotObserve:
            continue  # it ended while we looked
        if name in REMOTE_TOOLS:
            said.add(f"program {name}")
        elif name == "openvpn" and not any(group.endswith(f"/{UNIT}") for group in groups):
            unit = next((found[1] for group in groups if (found := re.search(r"/([^/]+\.(?:service|scope))$", group))), "by hand")
            said.add(f"another openvpn ({unit})")
    said.update(f"port {port} ({REMOTE_PORTS[port]})" for port in listening() if port in REMOTE_PORTS)
    said.update(f"interface {name} (WireGuard)" for name in wireguards())
    return sorted(said)


def listening() -> set[int]:
    """Return the TCP ports on which something waits for others than this host itself."""
    found = set()
    for line in run(["ss", "-H", "-t", "-l", "-n"]).splitlines():
        address, _colon, port = line.split()[3].rpartition(":")
        if not address.strip("[]").startswith(("127.", "::1")) and port.isdigit():
            found.add(int(port))
    return found


def wireguards() -> list[str]:
    """Return the interfaces of WireGuard."""
    return [link["ifname"] for link in json.loads(run(["ip", "-j", "link", "show", "type", "wireguard"]) or "[]") if link]


def accounts() -> list[dict]:
    """Return the accounts of this host, by name and comment."""
    return [{"name": entry.pw_name, "comment": entry.pw_gecos} for entry in pwd.getpwall()]


def surroundings() -> dict:
    """Return the networks that this host is attached to, and who is logged in over SSH from where through which interface."""
    networks = []
    for query in (["-4", "route", "show", "scope", "link"], ["-6", "route", "show", "proto", "kernel"]):
        for route in json.loads(run(["ip", "-j", *query]) or "[]"):
            if route.get("dst", "default") != "default" and not route["dst"].startswith(("fe80:", "ff00:")):
                network = str(ipaddress.ip_network(route["dst"], strict=False))
                networks.append({"network": network, "interface": route.get("dev", "")})
    waiting = run(["ss", "-H", "-t", "-l", "-n", "-p"]).splitlines()
    servers = {line.split()[3].rpartition(":")[2] for line in waiting if "sshd" in line} or {"22"}
    peers: list[dict] = []
    for line in run(["ss", "-H", "-t", "-n", "state", "established"]).splitlines():
        local, remote = line.split()[2:4]
        address = remote.rpartition(":")[0].strip("[]").replace("::ffff:", "").partition("%")[0]
        if local.rpartition(":")[2] in servers and address not in [peer["address"] for peer in peers]:
            way = json.loads(run(["ip", "-j", "route", "get", address]) or "[]")
            peers.append({"address": address, "interface": way[0].get("dev", "") if way else ""})
    return {"networks": networks, "peers": peers}


def counting() -> bool:
    """Return whether the watcher's table is there."""
    try:
        return "bulwark_vpn" in run(["nft", "list", "tables"])
    except CannotObserve:
        return False  # no nft, no table
