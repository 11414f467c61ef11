# Copyright: (c) 2026, Bulwark contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Observe the SSH server: what it really grants to whom, what it offers, and what would let machines in without a key.

The server itself is asked (C(sshd -T -C user=…,addr=…)), with the options its service starts it with, for root, for an
ordinary account and for one of every kind of account and address that some C(Match) line of the configuration treats
differently. So a setting that is fine for most and open for one shows up, with the one's name beside it.
"""

from __future__ import annotations

import concurrent.futures
import glob
import grp
import itertools
import os
import pwd
import re
import stat
import time

from ansible_collections.bulwark.hardening.plugins.module_utils import ssh
from ansible_collections.bulwark.hardening.plugins.module_utils.posture.common import (
    SSHD,
    CannotObserve,
    group_name,
    owner_name,
    read,
    run,
    sshd_effective,
)

MAIN = "/etc/ssh/sshd_config"
SFTP_SERVER = "/usr/lib/openssh/sftp-server"
TRUST_EVERYWHERE = ("/etc/hosts.equiv", "/etc/ssh/shosts.equiv")
TRUST_AT_HOME = (".rhosts", ".shosts")
SET_ASIDE = ".set-aside-by-bulwark"
PID_FILE = "/run/sshd.pid"  # written whenever sshd has read its configuration, also after SIGHUP

# Addresses nobody has (RFC 5737, RFC 3849): they stand for "from somewhere else".
ELSEWHERE = ("203.0.113.7", "2001:db8::7")
NOBODY = "nobody"
MOST_CONNECTIONS = 120  # more kinds of connection than this are not asked for; that is said, never passed over

SETTINGS = (
    "permitrootlogin", "passwordauthentication", "kbdinteractiveauthentication", "permitemptypasswords",
    "hostbasedauthentication", "ignorerhosts", "kerberosauthentication", "gssapiauthentication",
    "pubkeyauthentication", "authenticationmethods", "allowgroups", "allowusers", "denygroups", "denyusers",
    "authorizedkeysfile", "usepam", "strictmodes", "permituserenvironment", "requiredrsasize", "subsystem",
    "logingracetime", "maxauthtries", "maxsessions", "maxstartups", "persourcemaxstartups", "persourcepenalties",
    "persourcepenaltyexemptlist", "loglevel", "syslogfacility",
)  # fmt: skip
OFFERS = {
    "ciphers": "ciphers",
    "macs": "macs",
    "kex": "kexalgorithms",
    "host_key": "hostkeyalgorithms",
    "public_key": "pubkeyacceptedalgorithms",
    "ca_signature": "casignaturealgorithms",
}
QUERIES = {
    "ciphers": "cipher",
    "macs": "mac",
    "kex": "kex",
    "host_key": "key-sig",
    "public_key": "key-sig",
    "ca_signature": "sig",
}


def collect() -> dict:
    """Return what the SSH server grants and offers. Raises CannotObserve when there is none or it cannot be asked."""
    if not os.path.exists(SSHD):
        raise CannotObserve("openssh-server is not installed")
    options = options_of_daemon()
    files = configuration_files(options)
    people = accounts_of_interest()
    unobserved: dict[str, str] = {}
    data: dict = {
        "version": re.sub(r"^\d+:", "", run(["dpkg-query", "-W", "-f", "${Version}", "openssh-server"])),
        "supported": {name: run(["ssh", "-Q", query]).split() for name, query in QUERIES.items()},
        "daemon_options": options,
        "configuration_files": sorted(files),
        "trust_files": trust_files(),
        "trust_files_set_aside": trust_files(SET_ASIDE),
        "sftp_server": sftp_server(),
        "groups": sorted(entry.gr_name for entry in grp.getgrall()),
        "unobserved": unobserved,
    }
    data.update(running(files))
    try:
        seen = connections(people, [text for text in files.values() if text is not None], options)
    except CannotObserve as exc:
        for key in ("settings", "offers", "forwarding", "accounts", "host_keys"):
            unobserved[key] = str(exc)
        return data
    usual = seen[0]["settings"]
    data["offers"] = {name: offered(key, seen) for name, key in OFFERS.items()}
    data["settings"] = {key: by_value(key, seen) for key in SETTINGS}
    data["forwarding"] = forwarding(seen)
    data["host_keys"] = host_keys(usual.get("hostkey", []))
    data["accounts"] = described(people, seen)
    return data


# --- the service ------------------------------------------------------------------------------------------------------


def options_of_daemon() -> list[str]:
    """Return the configuration options with which systemd starts sshd."""
    try:
        command = run(["systemctl", "show", "ssh.service", "-p", "ExecStart"])
    except CannotObserve:
        command = ""  # no systemd here: /etc/default/ssh is what an init script would use
    return ssh.daemon_options(command, read("/etc/default/ssh") if os.path.exists("/etc/default/ssh") else "")


def configuration_files(options: list[str]) -> dict[str, str | None]:
    """Return the text of sshd's main file and of all it includes, by path; None for one that cannot be read."""
    main = next((value for option, value in zip(options, options[1:]) if option == "-f"), MAIN)
    found: dict[str, str | None] = {}
    waiting = [main]
    while waiting:
        path = waiting.pop(0)
        if path in found:
            continue
        try:
            found[path] = read(path)
        except CannotObserve:
            found[path] = None
            continue
        for pattern in ssh.includes(found[path] or ""):
            waiting += sorted(glob.glob(pattern))
    return found


def running(files: dict[str, str | None]) -> dict:
    """Return how the server runs: service or socket, what it listens on, and whether it has read today's files."""
    states = {}
    for unit in ("ssh.service", "ssh.socket"):
        try:
            said = run(["systemctl", "show", unit, "-p", "ActiveState", "-p", "UnitFileState"])
        except CannotObserve:
            said = ""
        states[unit] = dict(line.split("=", 1) for line in said.splitlines() if "=" in line)
    service = states["ssh.service"].get("ActiveState", "") in ("active", "reloading")
    socket = states["ssh.socket"].get("ActiveState", "") == "active"
    changed = max(((os.stat(path).st_ctime) for path in files if os.path.exists(path)), default=0.0)
    try:
        read_at = os.stat(PID_FILE).st_mtime
    except OSError:
        read_at = 0.0
    return {
        "service_active": service,
        "socket_active": socket,
        "enabled": {unit: state.get("UnitFileState", "") for unit, state in states.items()},
        # Waiting behind a socket, sshd reads its files when the first connection comes.
        "in_force": (socket and not service) or (service and read_at >= changed),
        "listening": listening(),
    }


def listening() -> list[str]:
    """Return the addresses sshd (or systemd for it) listens on, such as ``0.0.0.0:22``."""
    try:
        text = run(["ss", "-H", "-l", "-t", "-n", "-p"])
        sockets = run(["systemctl", "show", "ssh.socket", "-p", "Listen"])
    except CannotObserve:
        return []
    ports = set(re.findall(r"(\d+) \(Stream\)", sockets))
    found = set()
    for line in text.splitlines():
        parts = line.split()
        if len(parts) < 5:
            continue
        port = parts[3].rsplit(":", 1)[1]
        if '"sshd"' in line or ('"systemd"' in line and port in ports):
            found.add(parts[3])
    return sorted(found)


def sftp_server() -> dict:
    """Return the permissions of the program for file transfers, and what dpkg was told they are to be."""
    try:
        mode = f"{stat.S_IMODE(os.stat(SFTP_SERVER).st_mode):04o}"
    except OSError:
        mode = ""
    try:
        overrides = read("/var/lib/dpkg/statoverride")
    except CannotObserve:
        overrides = ""
    override = next((line for line in overrides.splitlines() if line.endswith(f" {SFTP_SERVER}")), "")
    return {"path": SFTP_SERVER, "mode": mode, "override": override}


def host_keys(used: list[str]) -> list[dict]:
    """Return every host key: type, size, owner and permissions of its private file, and whether sshd offers it."""
    found = []
    for path in sorted(set(glob.glob("/etc/ssh/ssh_host_*_key")) | set(used)):
        entry: dict = {"path": path, "used": path in used, "type": "", "bits": 0, "owner": "", "group": "", "mode": ""}
        try:
            about = os.stat(path)
            key = ssh.parse_key(read(f"{path}.pub"))
        except (OSError, CannotObserve):
            found.append(entry)
            continue
        entry.update(owner=owner_name(about.st_uid), group=group_name(about.st_gid), mode=f"{stat.S_IMODE(about.st_mode):04o}")
        if key:
            entry.update(type=key["type"], bits=key["bits"])
        found.append(entry)
    return found


# --- trust without proof ----------------------------------------------------------------------------------------------


def trust_files(suffix: str = "") -> list[str]:
    """Return the files by which machines or accounts are trusted without a key, in /etc and in every home."""
    paths = [] if suffix else [path for path in TRUST_EVERYWHERE if os.path.lexists(path)]
    for home in sorted({entry.pw_dir for entry in pwd.getpwall()}):
        paths += [f"{home.rstrip('/')}/{name}{suffix}" for name in TRUST_AT_HOME]
    return [path for path in paths if os.path.lexists(path)]


# --- accounts ---------------------------------------------------------------------------------------------------------


def groups_of(entry: pwd.struct_passwd) -> list[str]:
    """Return the names of an account's groups, the primary one included, sorted."""
    return sorted({group_name(gid) for gid in os.getgrouplist(entry.pw_name, entry.pw_gid)})


def shadow() -> dict[str, dict]:
    """Return by account whether it has a usable password and whether that has aged out; never the hash."""
    today = int(time.time() // 86400)
    found = {}
    for line in read("/etc/shadow").splitlines():
        fields = line.split(":")
        if len(fields) < 9:
            continue

        def day(field: str) -> int | None:
            return int(field) if field.lstrip("-").isdigit() else None

        last, longest, ends = day(fields[2]), day(fields[4]), day(fields[7])
        aged = last == 0 or (last is not None and longest is not None and 0 <= longest < 99999 and last + longest < today)
        found[fields[0]] = {
            "password": "empty" if fields[1] == "" else "none" if fields[1][0] in "!*" else "set",
            "password_expired": aged,
            "account_expired": ends is not None and 0 <= ends <= today,
        }
    return found


def accounts_of_interest() -> list[pwd.struct_passwd]:
    """Return root, an account without rights, and all who could come in somehow: by shell, password or key."""
    text = read("/etc/shells") if os.path.exists("/etc/shells") else ""
    shells = {line for line in text.splitlines() if line.startswith("/")}
    passwords = shadow()
    found = []
    for entry in pwd.getpwall():
        files = [f"{entry.pw_dir}/.ssh/authorized_keys", f"{entry.pw_dir}/.ssh/authorized_keys2"]
        if (
            entry.pw_uid == 0
            or entry.pw_name == NOBODY
            or entry.pw_shell in shells
            or passwords.get(entry.pw_name, {}).get("password", "none") != "none"
            or any(os.path.lexists(path) for path in files)
        ):
            found.append(entry)
    return found


def key_files(settings: dict[str, list[str]], entry: pwd.struct_passwd) -> list[str]:
    """Return the files in which sshd looks for an account's keys."""
    found = []
    for pattern in settings.get("authorizedkeysfile", [""])[0].split():
        if pattern == "none":
            continue
        path = pattern.replace("%%", "\0").replace("%h", entry.pw_dir).replace("%u", entry.pw_name)
        path = path.replace("%U", str(entry.pw_uid)).replace("\0", "%")
        found.append(path if path.startswith("/") else f"{entry.pw_dir.rstrip('/')}/{path}")
    return found


def read_keys(path: str) -> list[dict]:
    """Return the keys of one authorized_keys file; a file that is missing or no plain file has none.

    The file belongs to its user, so a pipe must not make us wait, nor a huge file fill our memory.
    """
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY)
    except OSError:
        return []
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        return []
    with os.fdopen(handle, "rb") as stream:
        text = stream.read(1 << 20).decode("utf-8", "replace")
    return [key for key in map(ssh.parse_key, text.splitlines()) if key]


# --- what is granted to whom ------------------------------------------------------------------------------------------


def ask(options: list[str], user: str, address: str, host: str, laddr: str, lport: str) -> dict[str, list[str]]:
    """Return the effective settings of one connection. Raises CannotObserve when sshd refuses its configuration."""
    about = f"user={user},host={host},addr={address},laddr={laddr},lport={lport}"
    return ssh.parse_effective(sshd_effective(*options, "-C", about))


def kinds(people: list[pwd.struct_passwd], rules: list[dict[str, list[str]]]) -> list[list[pwd.struct_passwd]]:
    """Return the accounts in lots that no C(Match) line can tell apart; root and nobody head lots of their own."""
    lots: dict[tuple, list[pwd.struct_passwd]] = {}
    for entry in people:
        groups = groups_of(entry)
        mark = [entry.pw_uid == 0, entry.pw_name == NOBODY]
        for rule in rules:
            mark.append("user" in rule and ssh.in_list([entry.pw_name], rule["user"]))
            mark.append("group" in rule and ssh.in_list(groups, rule["group"]))
        lots.setdefault(tuple(mark), []).append(entry)
    return list(lots.values())


def connections(people: list[pwd.struct_passwd], texts: list[str], options: list[str]) -> list[dict]:
    """Ask sshd about every kind of connection its rules tell apart; the first answer is the usual one.

    Returns ``[{"accounts": [struct_passwd], "address": "203.0.113.7", "place": "", "settings": {…}}]``; ``place`` says in
    words what is special about where the connection comes from, and is empty for the usual one.
    """
    rules = [rule for text in texts for rule in ssh.match_criteria(text)]

    def named(criterion: str) -> list[str]:
        return sorted({pattern for rule in rules for pattern in rule.get(criterion, [])})

    addresses = [ELSEWHERE[0]]
    if named("address"):
        addresses += [ELSEWHERE[1], "127.0.0.1"]
        addresses += [sample for sample in map(ssh.sample_address, named("address")) if sample]
    hosts = ["client.invalid", *(name.lstrip("!").replace("*", "x").replace("?", "x") for name in named("host"))]
    laddrs = ["192.0.2.1", *(sample for sample in map(ssh.sample_address, named("localaddress")) if sample)]
    lports = ["22", *(port.lstrip("!") for port in named("localport") if port.lstrip("!").isdigit())]
    places = list(dict.fromkeys(itertools.product(addresses, hosts, laddrs, lports)))

    lots = kinds(people, rules)
    lots.sort(key=lambda lot: lot[0].pw_name != NOBODY)
    asked = [(lot, place) for place in places for lot in lots]
    if len(asked) > MOST_CONNECTIONS:
        raise CannotObserve(f"Match lines tell {len(asked)} kinds of connection apart; at most {MOST_CONNECTIONS} are asked for")
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda one: ask(options, one[0][0].pw_name, *one[1]), asked))
    found = []
    for (lot, place), settings in zip(asked, answers):
        special = [label for label, part, usual in zip(("from", "host", "to", "port"), place, places[0]) if part != usual]
        words = " ".join(f"{label} {part}" for label, part in zip(("from", "host", "to", "port"), place) if label in special)
        found.append({"accounts": lot, "address": place[0], "place": words, "settings": settings})
    return found


def who(connection: dict) -> str:
    """Return in words whom a connection stands for."""
    names = ", ".join(entry.pw_name for entry in connection["accounts"])
    return f"{names} {connection['place']}".strip()


def by_value(key: str, seen: list[dict]) -> dict[str, list[str]]:
    """Return every value a setting takes, with those it takes it for: ``{"no": ["anyone"], "yes": ["kiosk from 10.0.0.1"]}``.

    Settings that sshd prints on several lines are one value, separated by blanks; one it does not print is "".
    """
    values = [" ".join(connection["settings"].get(key, [])) for connection in seen]
    found: dict[str, list[str]] = {values[0]: ["anyone"]}
    for value, connection in zip(values[1:], seen[1:]):
        if value != values[0]:
            found.setdefault(value, []).append(who(connection))
    return found


def offered(key: str, seen: list[dict]) -> list[str]:
    """Return the algorithms that any connection is offered, in the usual one's order, then what others get besides."""
    lists = [connection["settings"].get(key, [""])[0].split(",") for connection in seen]
    return list(dict.fromkeys(name for names in lists for name in names if name))


def forwarding(seen: list[dict]) -> list[dict]:
    """Return every connection that may forward anything, what, and the groups of the accounts it stands for."""
    found = []
    for connection in seen:
        open_ = ssh.forwards(connection["settings"])
        for entry in connection["accounts"] if open_ else []:
            found.append({"account": entry.pw_name, "place": connection["place"], "groups": groups_of(entry), **open_})
    return found


def described(people: list[pwd.struct_passwd], seen: list[dict]) -> list[dict]:
    """Return the accounts that could come in, with their keys and from where sshd would admit them."""
    secrets = shadow()
    found = []
    for entry in people:
        mine = [connection for connection in seen if entry in connection["accounts"]]
        groups = groups_of(entry)
        admitted, refused = set(), set()
        for connection in mine:
            why = ssh.refusals(connection["settings"], entry.pw_name, entry.pw_uid, groups, connection["address"])
            (refused if why else admitted).add(connection["address"])
        usual = mine[0]["settings"]
        found.append(
            {
                "name": entry.pw_name,
                "uid": entry.pw_uid,
                "groups": groups,
                "shell": entry.pw_shell,
                **secrets.get(entry.pw_name, {"password": "none", "password_expired": False, "account_expired": False}),
                "keys": [key for path in key_files(usual, entry) for key in read_keys(path)],
                "admitted_from": sorted(admitted),
                "refused_from": sorted(refused),
                "terminal": sorted({connection["settings"].get("permittty", ["yes"])[0] for connection in mine}),
                "forced_command": sorted({connection["settings"].get("forcecommand", ["none"])[0] for connection in mine}),
                "chroot": sorted({connection["settings"].get("chrootdirectory", ["none"])[0] for connection in mine}),
                "forwards": sorted({name for connection in mine for name in ssh.forwards(connection["settings"])}),
            }
        )
    return found
