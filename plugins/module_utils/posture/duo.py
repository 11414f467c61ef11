# Copyright: (c) 2026, Bulwark contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Observe who is asked for a second factor, who is not, and what becomes of those who are when Duo cannot answer.

Every PAM service is walked through with Duo saying no, and with a configuration that is not sound (see module_utils/pam.py);
the guard is tried on samples; sshd and sudo are asked about every account; Duo's service is asked whether it takes the host's
keys. The keys themselves are read and used here, and never returned.
"""

from __future__ import annotations

import concurrent.futures
import glob
import json
import os
import pwd
import re
import stat
import subprocess
import tempfile
from collections.abc import Iterable

from ansible_collections.bulwark.hardening.plugins.module_utils import duo_api, pam, ssh
from ansible_collections.bulwark.hardening.plugins.module_utils.posture import ssh as server
from ansible_collections.bulwark.hardening.plugins.module_utils.posture.common import SSHD, CannotObserve, read, run

ALARM = "/usr/local/lib/bulwark/break_glass_used"
BREAK_GLASS = "/etc/bulwark/break_glass.json"
RECORDS = "/var/lib/bulwark/break_glass"
SAVED = "/var/lib/pam"
SUDO = "/usr/bin/sudo"
SECRET = ("ikey", "skey")
ENTRANCES = ("sshd", "login", "su", "sudo")  # services by which somebody becomes the sealed account
NO_SERVICE = re.compile(r"common-.*|.*[~]|.*\.(pam-old|pam-new|dpkg-.*|ucf-.*)")
SECONDS = 6  # that Duo's service has for each answer

# Configurations that the guard must refuse, by what is wrong with them; {} stands for a file with certificates.
SOUND = "[duo]\nfailmode = secure\nhost = h\nikey = i\nskey = s\ncafile = {}\n"
SAMPLES = {
    "empty": "",
    "fails open": SOUND.replace("secure", "safe"),
    "unknown setting first": SOUND.replace("[duo]\n", "[duo]\nunknown = 1\n"),
    "unchecked certificates": SOUND + "noverify = 1\n",
    "only some groups": SOUND + "groups = staff\n",
    "said twice": SOUND + "failmode = safe\n",
    "continued line": SOUND.replace("secure\n", "secure\n  safe\n"),
    "no authorities": SOUND.replace("{}", "/nonexistent"),
}


def collect() -> dict:
    """Return how the second factor is asked for.

    installed      whether pam_duo is there
    config         {present, mode, settings (without the keys)}
    guard          {present, trusted, accepts_sound, lets_pass: [samples it should have refused]}
    profiles       what pam-auth-update has switched on; modified: {kind: why it would refuse to touch the file}
    services       [{name, without_duo, with_unsound_config (a way through, or ""), works}]
    ssh            {installed, asks, usepam, without_key, grace_seconds, tries_max}
    sudo           {installed, minutes: {value: [accounts]}}
    free           [{account, ways}] of everybody who can skip the second factor
    break_glass    {account, …}; account is "" if none is declared
    service        {problem, text}: what Duo's service says to this host's keys; problem is "" if it takes them
    """
    modules = glob.glob("/lib/*/security/pam_duo.so") + glob.glob("/usr/lib/*/security/pam_duo.so")
    unobserved: dict[str, str] = {}
    data: dict = {
        "unobserved": unobserved,
        "installed": bool(modules),
        "config": config(),
        "guard": guard(),
        "services": services(),
    }
    data["accounts"] = sorted(entry.pw_name for entry in pwd.getpwall())
    saved = [read(path) for path in (f"{SAVED}/auth", f"{SAVED}/session") if os.path.exists(path)]
    data["profiles"] = list(dict.fromkeys(name for text in saved for name in pam.profiles_of(text)))
    data["modified"] = modified()
    ways: dict[str, list[str]] = {}
    connections: list[dict] = []
    data["ssh"] = {"installed": os.path.exists(SSHD)}
    try:
        if data["ssh"]["installed"]:
            connections = ask_sshd()
            data["ssh"].update(over_ssh(connections))
            for account, places in by_key_alone(connections).items():
                ways.setdefault(account, []).append(f"SSH with a key alone {places}")
        data["sudo"], rules = sudo()
        for account, commands in rules.items():
            ways.setdefault(account, []).append(f"sudo without being asked: {', '.join(commands)}")
        data["free"] = [{"account": account, "ways": ways[account]} for account in sorted(ways)]
    except CannotObserve as exc:
        for key in ("free", "ssh", "sudo"):
            data.pop(key, None)
            unobserved[key] = str(exc)
    data["break_glass"] = break_glass(connections)
    data["service"] = service()
    return data


# --- configuration and guard ------------------------------------------------------------------------------------------


def settings_of(text: str) -> dict[str, str]:
    """Return the settings of a pam_duo.conf, as far as they can be read."""
    pairs = [line.partition("=") for line in text.splitlines() if "=" in line and line[:1] not in ";#"]
    return {name.strip(): value.strip() for name, _equals, value in pairs}


def config() -> dict:
    """Return what the configuration says, without its keys."""
    try:
        about = os.lstat(pam.CONFIG)
        settings = settings_of(read(pam.CONFIG))
    except (OSError, CannotObserve):
        return {"present": False, "mode": "", "settings": {}}
    shown = {name: value for name, value in settings.items() if name not in SECRET}
    return {"present": True, "mode": f"{stat.S_IMODE(about.st_mode):04o}", "settings": shown}


def succeeds(argv: list[str]) -> bool:
    """Say whether a program ends with success."""
    try:
        return (
            subprocess.run(argv, check=False, capture_output=True, stdin=subprocess.DEVNULL, timeout=10, cwd="/").returncode == 0
        )
    except (OSError, subprocess.TimeoutExpired):
        return False


def guard() -> dict:
    """Return whether the guard is root's alone, what it says of the configuration, and which bad samples it lets pass."""
    found = {"present": os.path.isfile(pam.GUARD), "trusted": False, "accepts_config": False, "lets_pass": sorted(SAMPLES)}
    if not found["present"]:
        return found
    found["trusted"] = roots_alone(pam.GUARD)
    if not found["trusted"]:
        return found  # whoever may write it decides what it does: it is not run
    found["accepts_config"] = succeeds([pam.GUARD])
    found["lets_pass"] = []
    with tempfile.TemporaryDirectory(prefix="bulwark-duo-", dir="/run") as place:
        authorities, sample = f"{place}/ca.pem", f"{place}/sample.conf"
        write(authorities, "-----BEGIN CERTIFICATE-----\n", 0o600)
        for name, text in SAMPLES.items():
            write(sample, text.replace("{}", authorities), 0o600)
            if succeeds([pam.GUARD, sample]):
                found["lets_pass"].append(name)
        write(sample, SOUND.replace("{}", authorities), 0o600)
        if not succeeds([pam.GUARD, sample]):
            found["lets_pass"].append("nothing: it refuses a sound one too")
        os.chmod(sample, 0o644)
        if succeeds([pam.GUARD, sample]):
            found["lets_pass"].append("readable to others")
        os.rename(sample, f"{sample}.gone")
        if succeeds([pam.GUARD, sample]):
            found["lets_pass"].append("missing")
    return found


def write(path: str, text: str, mode: int) -> None:
    """Write a sample."""
    with open(path, "w", encoding="utf-8") as stream:
        stream.write(text)
    os.chmod(path, mode)


def roots_alone(path: str) -> bool:
    """Say whether a file and all directories above it belong to root and can be written by nobody else."""
    while True:
        try:
            about = os.stat(path)
        except OSError:
            return False
        if about.st_uid or about.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            return False
        if path == "/":
            return True
        path = os.path.dirname(path)


# --- PAM --------------------------------------------------------------------------------------------------------------


def text_of(name: str) -> str | None:
    """Return the text of a PAM service's file, from the first directory that has it."""
    for directory in pam.DIRECTORIES:
        if os.path.isfile(f"{directory}/{name}"):
            return read(f"{directory}/{name}")
    return None


def stack(name: str, kind: str) -> list[pam.Module]:
    """Return a service's modules; without any, PAM uses those of C(other). Raises pam.CannotFollow."""
    found = pam.stack_of(name, kind, text_of) if text_of(name) is not None else []
    return found or pam.stack_of("other", kind, text_of)


def services() -> list[dict]:
    """Return every PAM service with the ways past Duo, in words; an empty one is none."""
    names = {os.path.basename(path) for directory in pam.DIRECTORIES for path in glob.glob(f"{directory}/*")}
    found = []
    for name in sorted(name for name in names if not NO_SERVICE.fullmatch(name)):
        try:
            lines = stack(name, "auth")
        except pam.CannotFollow as exc:
            raise CannotObserve(f"PAM service {exc}") from exc
        past = [pam.way_through(lines, name, world) for world in (pam.SAYS_NO, pam.UNSOUND, pam.SAYS_YES)]
        words = ["" if way is None else ", ".join(way) or "an empty stack" for way in past]
        found.append({"name": name, "without_duo": words[0], "with_unsound_config": words[1], "works": bool(words[2])})
    return found


def modified() -> dict[str, str]:
    """Return why pam-auth-update would refuse to touch a file of /etc/pam.d/common-*; what it may touch is left out."""
    found = {}
    for kind in ("auth", "account", "password", "session", "session-noninteractive"):
        paths = (f"/etc/pam.d/common-{kind}", f"{SAVED}/{kind}")
        missing = [path for path in paths if not os.path.isfile(path)]
        why = f"{missing[0]} is missing" if missing else pam.locally_modified(kind, read(paths[0]), read(paths[1]))
        if why:
            found[kind] = why
    return found


# --- SSH --------------------------------------------------------------------------------------------------------------


def ask_sshd() -> list[dict]:
    """Return sshd's settings for every kind of connection (see the ssh collector)."""
    options = server.options_of_daemon()
    texts = [text for text in server.configuration_files(options).values() if text is not None]
    return server.connections(server.accounts_of_interest(), texts, options)


def methods(settings: dict[str, list[str]]) -> list[list[str]]:
    """Return the lists of methods of which one must be gone through, as far as sshd would take part."""
    found = [one.split(",") for one in settings.get("authenticationmethods", ["any"])[0].split()]
    if found == [["any"]]:
        found = [["publickey"], ["password"], ["keyboard-interactive"]]
    closed = set()
    for setting, method in (
        ("pubkeyauthentication", "publickey"),
        ("passwordauthentication", "password"),
        ("kbdinteractiveauthentication", "keyboard-interactive"),
        ("hostbasedauthentication", "hostbased"),
    ):
        if settings.get(setting, ["no"])[0] == "no":
            closed.add(method)
    steps = [[step.partition(":")[0] for step in one] for one in found]
    return [one for one in steps if not closed & set(one)]


def admitted(connections: list[dict]) -> list[tuple[pwd.struct_passwd, dict]]:
    """Return each account with each connection by which sshd would let it in."""
    return [
        (entry, connection)
        for connection in connections
        for entry in connection["accounts"]
        if not ssh.refusals(connection["settings"], entry.pw_name, entry.pw_uid, server.groups_of(entry), connection["address"])
    ]


def over_ssh(connections: list[dict]) -> dict:
    """Return what sshd asks of people, and how long it waits for them."""
    usual = connections[0]["settings"]
    asked = methods(usual)
    return {
        "asks": bool(asked) and all({"publickey", "keyboard-interactive"} <= set(one) for one in asked),
        "usepam": sorted({connection["settings"].get("usepam", ["no"])[0] for connection in connections}),
        "without_key": sorted({
            f"{entry.pw_name} {connection['place']}".strip()
            for entry, connection in admitted(connections)
            if any("publickey" not in one for one in methods(connection["settings"]))
        }),
        "grace_seconds": min(int(connection["settings"].get("logingracetime", ["0"])[0]) for connection in connections),
        "tries_max": max(int(connection["settings"].get("maxauthtries", ["6"])[0]) for connection in connections),
    }  # fmt: skip


def by_key_alone(connections: list[dict]) -> dict[str, str]:
    """Return who is let in without PAM being asked, and from where in words: ``{"deploy": "from 192.0.2.1"}``."""
    found: dict[str, list[str]] = {}
    for entry, connection in admitted(connections):
        if any("keyboard-interactive" not in one for one in methods(connection["settings"])):
            found.setdefault(entry.pw_name, []).append(connection["place"] or "from anywhere")
    return {name: "from anywhere" if "from anywhere" in places else ", ".join(places) for name, places in found.items()}


# --- sudo -------------------------------------------------------------------------------------------------------------


def sudo() -> tuple[dict, dict[str, list[str]]]:
    """Return ({installed, minutes: {value: accounts}}, {account: commands it may run unasked}). Raises CannotObserve."""
    if not os.path.exists(SUDO):
        return {"installed": False, "minutes": {}}, {}
    usual = re.search(r"^Authentication timestamp timeout: (\S+) minutes$", run([SUDO, "-V"]), re.MULTILINE)
    if not usual:
        raise CannotObserve("sudo -V does not say for how long it does not ask again")
    special = bound(read(path) for path in ["/etc/sudoers", *glob.glob("/etc/sudoers.d/*")] if os.path.isfile(path))
    people = [entry.pw_name for entry in pwd.getpwall() if entry.pw_uid]
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        said = dict(zip(people, pool.map(lambda name: run([SUDO, "-n", "-ll", "-U", name]), people)))
    minutes: dict[str, list[str]] = {}
    rules = {}
    for name, text in said.items():
        allowed, free, own = granted(text, special)
        if allowed:
            minutes.setdefault(str(float(own or usual.group(1))), []).append(name)
        if free:
            rules[name] = free
    return {"installed": True, "minutes": minutes}, rules


def bound(texts: Iterable[str]) -> bool:
    """Say whether sudoers files have Defaults for some users, hosts, targets or commands about asking and its time.

    These win over those for all, wherever they stand, and sudo's list does not tell them apart.
    """
    return any(re.search(r"^\s*Defaults[:@>!].*(authenticate|timestamp_timeout)", text, re.MULTILINE) for text in texts)


def granted(text: str, special: bool) -> tuple[bool, list[str], str]:
    """Return (may it run anything, what of it unasked, its own timestamp_timeout or "") from C(sudo -ll -U).

    A rule further down may ask after all, and so may Defaults where there are ``special`` ones; that is not worked out, so
    more may be listed than is so, never less.
    """
    header, *entries = re.split(r"^(?:Sudoers|LDAP|SSSD) (?:entry|Role):.*$", text, flags=re.MULTILINE)
    times = re.findall(r"timestamp_timeout=([-\d.]+)", header)
    own = "" if not times else times[-1] if not special else min(times) if min(map(float, times)) < 0 else max(times, key=float)
    asking = re.findall(r"(!?)\bauthenticate\b", header)
    unasked = bool(asking) and (asking[-1] == "!" or (special and "!" in asking))
    free = []
    for entry in entries:
        options = re.search(r"^\s*Options: (.*)$", entry, re.MULTILINE)
        said = options.group(1).split(", ") if options else []
        if "!authenticate" in said or (unasked and "authenticate" not in said):
            commands = entry.partition("Commands:")[2].split("\n")
            free += [line.strip() for line in commands if line.strip()] or ["?"]
    return bool(entries), sorted(set(free)), own


# --- the sealed account -----------------------------------------------------------------------------------------------


def break_glass(connections: list[dict]) -> dict:
    """Return how the sealed account stands; ``account`` is "" if the host has none.

    ``opened_by`` are the fingerprints of the keys that would open it; ``sealed`` is the one of the last rotation; ``uses``
    counts the records since then; ``silent`` names services by which it could be used without an alarm; ``admitted_from``
    are the addresses, of those asked about, from which sshd lets it in.
    """
    gone = {
        "account": "", "exists": False, "opened_by": [], "password": "none", "sealed": "", "sealed_at": "", "uses": 0,
        "last_use": "", "silent": [], "admitted_from": [],
    }  # fmt: skip
    if not os.path.exists(BREAK_GLASS):
        return gone
    account = json.loads(read(BREAK_GLASS))["account"]
    try:
        entry = pwd.getpwnam(account)
    except KeyError:
        return {**gone, "account": account}
    mine = [connection for one, connection in admitted(connections) if one == entry]
    settings = mine[0]["settings"] if mine else connections[0]["settings"] if connections else {}
    try:
        seal = json.loads(read(f"{RECORDS}/sealed.json"))
    except CannotObserve:
        seal = {}
    used = read(f"{RECORDS}/used").splitlines() if os.path.exists(f"{RECORDS}/used") else []
    silent = []
    for name in ENTRANCES:
        if text_of(name) is None:
            continue
        try:
            if not any(ALARM in module.arguments for module in stack(name, "session")):
                silent.append(name)
        except pam.CannotFollow as exc:
            raise CannotObserve(f"PAM service {exc}") from exc
    return {
        "account": account,
        "exists": True,
        "opened_by": sorted({key["fingerprint"] for path in server.key_files(settings, entry) for key in server.read_keys(path)}),
        "password": server.shadow().get(account, {}).get("password", "none"),
        "sealed": seal.get("fingerprint", ""),
        "sealed_at": seal.get("at", ""),
        "uses": len(used),
        "last_use": used[-1] if used else "",
        "silent": silent if roots_alone(ALARM) else list(ENTRANCES),
        "admitted_from": sorted({connection["address"] for connection in mine}),
    }


# --- Duo's service ----------------------------------------------------------------------------------------------------


def service() -> dict:
    """Return whether Duo's service takes this host's keys, from here; never the keys."""
    if not os.path.isfile(pam.CONFIG):
        return {"problem": "config", "text": f"{pam.CONFIG} is missing"}
    said = settings_of(read(pam.CONFIG))
    if not all(said.get(name) for name in ("host", *SECRET)):
        return {"problem": "config", "text": f"{pam.CONFIG} names no host or no keys"}
    try:
        duo_api.check(said["host"], said["ikey"], said["skey"], said.get("cafile", ""), SECONDS)
    except duo_api.Problem as problem:
        return {"problem": problem.kind, "text": str(problem)}
    except ValueError as exc:
        return {"problem": "config", "text": f"{pam.CONFIG}: {type(exc).__name__}"}
    return {"problem": "", "text": ""}
