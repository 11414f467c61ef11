# Copyright: (c) 2026, Bulwark contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is right for the accounts of a host: pure rules over what was observed and what was declared.

Nothing here looks at a host. The collector (posture/accounts.py) brings observed accounts, the inventory brings
declared ones, and both the role's module and the assessment ask the same questions here.

An *observed account* is a dict: name, uid, gid, home, kind (root, system, person, reserved), shell, shell_kind (none,
listed, unlisted), password (locked, set, empty, missing), expires_day (days since 1970 or None), expired, keys
(fingerprints), key_files, groups, last_login ({at, source} or None; at in seconds since 1970), first_seen (seconds or
None), sessions (number of live ones), used_by (texts), disabled ({at, reason} or None), removed_name (of reserved ones).

A *declared account* is an entry of accounts_users. Dates are texts YYYY-MM-DD; days are whole days of 86400 s.
"""

from __future__ import annotations

import datetime
import re

DAY = 86400
NOBODY = 65534

# Names that say nothing about who it is; digits and separators around them do not help (test1, user_02).
GENERIC_NAMES = frozenset(
    (
        "account", "adm", "admin", "administrator", "anonymous", "backupuser", "client", "common", "contractor", "default",
        "demo", "desktop", "dev", "developer", "everyone", "generic", "guest", "guests", "helpdesk", "intern", "kiosk",
        "lab", "laptop", "local", "login", "member", "network", "nobody", "office", "operator", "pub", "public",
        "reception", "sample", "scan", "scanner", "share", "shared", "staff", "student", "super", "superuser", "support",
        "sysadmin", "system", "team", "temp", "temporary", "tempuser", "test", "tester", "testing", "testuser", "tmp",
        "trainee", "trainer", "training", "user", "username", "users", "vendor", "visitor", "webmaster", "workstation",
    )
)  # fmt: skip

# Accounts that images and installers of vendors bring along, with a password or key that others may know.
VENDOR_NAMES = frozenset(
    (
        "admin", "almalinux", "alpine", "arch", "azureuser", "bitnami", "centos", "clear-linux", "cloud", "cloud-user",
        "cloudadmin", "core", "debian", "ec2-user", "fedora", "freebsd", "guest", "kali", "linaro", "maintuser", "oem",
        "opc", "osmc", "pi", "rocky", "root4", "toor", "ubnt", "ubuntu", "user", "vagrant", "vyos",
    )
)  # fmt: skip

# Parts of a name that reveal privilege (WTH-7.6-7b).
PRIVILEGE_PARTS = ("admin", "root", "sysadm", "super", "priv", "wheel", "sudo", "dba")

# What an account may have been closed for, to be removed when nobody used it for long enough. One that is declared disabled, or
# whose request is not complete yet, waits for a person to decide.
REMOVABLE = ("dormant", "expired", "generic", "undeclared")

HUMAN_KINDS = ("personal", "temporary")
MACHINE_KINDS = ("service", "automation")


def parse_passwd(text: str) -> list[dict]:
    """Return the lines of /etc/passwd as dicts (name, password, uid, gid, gecos, home, shell, line).

    Lines that hold no account (NIS inclusion, wrong number of fields, no number) have only ``line`` and ``odd`` = why.
    """
    found = []
    for number, line in enumerate(text.splitlines()):
        if not line.strip():
            continue
        fields = line.split(":")
        entry: dict = {"line": number}
        if line.startswith(("+", "-")):
            entry["odd"] = "NIS"
        elif len(fields) != 7 or not fields[0] or not fields[2].isdigit() or not fields[3].isdigit():
            entry["odd"] = "malformed"
        else:
            name, password, uid, gid, gecos, home, shell = fields
            entry.update(name=name, password=password, uid=int(uid), gid=int(gid), gecos=gecos, home=home, shell=shell)
        found.append(entry)
    return found


def parse_shadow(text: str) -> dict:
    """Return {name: (password field, day the account expires or None)} of /etc/shadow. The field is secret."""
    found = {}
    for line in text.splitlines():
        fields = line.split(":")
        if len(fields) >= 8 and fields[0] and not line.startswith(("+", "-")):
            found[fields[0]] = (fields[1], int(fields[7]) if fields[7].lstrip("-").isdigit() else None)
    return found


def parse_groups(text: str) -> dict:
    """Return {group: members} of /etc/group."""
    found = {}
    for line in text.splitlines():
        fields = line.split(":")
        if len(fields) == 4 and fields[0] and not line.startswith(("+", "-")):
            found[fields[0]] = [name for name in fields[3].split(",") if name]
    return found


def nis_lines(text: str) -> list[str]:
    """Return the names of NIS inclusion lines (+, +name, -name, +@netgroup) of an account file, without their fields."""
    return [line.split(":")[0] for line in text.splitlines() if line.startswith(("+", "-"))]


def password_kind(passwd_field: str, shadow_field: str | None) -> str:
    """Return what a password is: locked, set, empty or missing (no shadow entry: nothing can be verified)."""
    field = shadow_field if passwd_field == "x" else passwd_field
    if field is None:
        return "missing"
    if field == "":
        return "empty"
    return "locked" if field.startswith(("!", "*")) else "set"


def account_kind(name: str, uid: int, uid_min: int) -> str:
    """Return root, system or person, by number. A second account of uid 0 is a system account: nobody logs in as it."""
    if name == "root" and uid == 0:
        return "root"
    return "system" if uid < uid_min or uid == NOBODY else "person"


def interactive(account: dict) -> bool:
    """Tell whether an account's shell and expiry would let somebody in who has its password or key."""
    return account["shell_kind"] != "none" and not account["expired"]


def able_to_log_in(account: dict) -> bool:
    """Tell whether somebody can log in right now: a shell, not expired, and a password or a key."""
    return interactive(account) and (account["password"] in ("set", "empty") or bool(account["keys"]))


def bare(name: str) -> str:
    """Return a name without digits and separators, in lower case: User_02 becomes user."""
    return re.sub(r"[\d._-]+", "", name.lower())


def refused_name(name: str, generic: list | tuple = (), pattern: str | None = None) -> str | None:
    """Return why a login name is refused, or None.

    ``generic`` are names that a site adds to the built-in ones; ``pattern`` is the form of a person's id, if it is one.
    """
    listed = GENERIC_NAMES | {bare(n) for n in generic} | {n.lower() for n in generic}
    if name.lower() in VENDOR_NAMES:
        return "is a vendor's default account (WTH-7.6-4)"
    if bare(name) in listed or name.lower() in listed:
        return "is generic: an account belongs to one named person (WTH-7.2.1-11)"
    part = next((part for part in PRIVILEGE_PARTS if part in name.lower()), None)
    if part:
        return f"reveals privilege by '{part}' (WTH-7.6-7b)"
    if pattern and not re.fullmatch(pattern, name):
        return f"does not have the form of a personal id, {pattern} (WTH-7.6-7a)"
    return None


def to_date(text: str) -> datetime.date | None:
    """Return the date of a text YYYY-MM-DD, or None for no or no such date."""
    try:
        return datetime.date.fromisoformat(str(text)) if text else None
    except ValueError:
        return None


def to_day(text: str) -> int | None:
    """Return a date as shadow counts it, in days since 1970, or None."""
    date = to_date(text)
    return None if date is None else (date - datetime.date(1970, 1, 1)).days


def from_day(day: int | None) -> str | None:
    """Return days since 1970 as a text YYYY-MM-DD, or None."""
    return None if day is None else (datetime.date(1970, 1, 1) + datetime.timedelta(days=day)).isoformat()


def kind_of(user: dict) -> str:
    """Return the kind of a declared account."""
    return user.get("kind") or "personal"


def state_of(user: dict) -> str:
    """Return the state a declared account shall have."""
    return user.get("state") or "present"


def exception_holds(user: dict, today: datetime.date) -> bool:
    """Tell whether a declared account carries an approved exception that has not run out."""
    granted = user.get("exception") or {}
    until = to_date(granted.get("expires"))
    return bool(granted.get("approver") and granted.get("reason") and until and until >= today)


def declaration_problems(
    users: list, generic: list, pattern: str, temporary_days: int, today: datetime.date, windows: tuple = (90, 90)
) -> list[str]:
    """Return what makes a declaration impossible to carry out, one message each, with variable, value and statement.

    Only what looks at several values is here; the form of each single value is checked before (check_input).
    ``windows`` are the days until an unused account is disabled and until it is removed.
    """
    said: list[str] = []
    if windows[1] < windows[0]:
        said.append(
            f"accounts_dormant_remove_days = {windows[1]}: must be at least accounts_dormant_disable_days = {windows[0]}: "
            "an account is disabled before it is removed (CF-01)"
        )
    try:
        re.compile(pattern)
    except re.error as exc:
        return [*said, f"accounts_name_pattern = {pattern}: is not a regular expression: {exc}"]
    names: dict = {}
    owners: dict = {}
    uids: dict = {}
    keys: dict = {}
    for number, user in enumerate(users):
        where, name, kind = f"accounts_users[{number}]", user["name"], kind_of(user)
        if name in names:
            said.append(f"{where}.name = {name}: is declared twice, first in accounts_users[{names[name]}]")
        names.setdefault(name, number)
        if state_of(user) != "present":
            continue
        why = refused_name(name, generic, pattern if kind in HUMAN_KINDS else None)
        if why and not exception_holds(user, today):
            said.append(f"{where}.name = {name}: {why}")
        if name == "root":
            said.append(f"{where}.name = root: is disabled, never declared (WTH-7.6-4)")
        if kind in HUMAN_KINDS and user.get("owner"):
            owner = " ".join(user["owner"].split()).casefold()
            if owner in owners and not exception_holds(user, today):
                said.append(
                    f"{where}.owner = {user['owner']}: already has {owners[owner]}; one person has one id unless an "
                    "exception with approver, reason and a date not yet past allows another (WTH-7.6-8)"
                )
            owners.setdefault(owner, name)
        if user.get("uid") is not None:
            if user["uid"] in uids:
                said.append(f"{where}.uid = {user['uid']}: is {uids[user['uid']]}'s; ids are never shared (WTH-7.6-5)")
            uids.setdefault(user["uid"], name)
        for key in user.get("authorized_keys") or []:
            blob = key_blob(key)
            if blob is None:
                said.append(f"{where}.authorized_keys: '{key[:40]}' is not a public key")
            elif blob in keys and keys[blob] != name:
                said.append(f"{where}.authorized_keys: holds a key of {keys[blob]}; keys are never shared (WTH-7.6-5)")
            keys.setdefault(blob, name)
        if kind == "temporary":
            until = to_date(user.get("expires"))
            if user.get("audience") == "customer":
                said.append(f"{where}.kind = temporary: is refused for customers (WTH-7.2.2-6, CF-10)")
            if until is None:
                said.append(f"{where}.expires is missing: a temporary account needs a date (WTH-7.2.1-7a)")
            elif (until - today).days > temporary_days:
                said.append(f"{where}.expires = {until}: must be at most {temporary_days} days away (WTH-7.2.1-7a)")
            if not user.get("ticket"):
                said.append(f"{where}.ticket is missing: a temporary account needs one (WTH-7.2.1-7a)")
        if kind in MACHINE_KINDS:
            said += [
                f"{where}.{key} is missing: a {kind} account needs owner, reason and peers (WTH-7.2.1-10)"
                for key in ("owner", "reason", "peers")
                if not user.get(key)
            ]
        for key in ("approved_on", "identity_verified_on", "agreement_on", "attested_on"):
            when = to_date(user.get(key))
            if when and (when - today).days > 1:  # one day of grace for hosts on the other side of the date line
                said.append(f"{where}.{key} = {when}: lies in the future")
    return said


def key_blob(line: str) -> str | None:
    """Return the base64 part of a public key line (options allowed before it), or None."""
    kind = r"(?:ssh-(?:rsa|dss|ed25519)|ecdsa-sha2-nistp\d+|sk-[a-z0-9@.-]+|ssh-[a-z0-9-]+-cert-v01@openssh\.com)"
    found = re.search(rf"(?:^|[\s,\"]){kind}\s+([A-Za-z0-9+/]+={{0,3}})(?:\s|$)", line)
    return found.group(1) if found else None


def request_gaps(user: dict, approvers: list) -> list[str]:
    """Return what a request for a person's account still lacks before it may be used (WTH-7.2.1-1 to -2)."""
    if kind_of(user) not in HUMAN_KINDS:
        return []
    gaps = [key for key in ("owner", "ticket", "approved_by", "approved_on", "identity_method") if not user.get(key)]
    if user.get("approved_by") and approvers and user["approved_by"] not in approvers:
        gaps.append("approved_by one of accounts_approvers")
    if user.get("approved_by") and user.get("owner") and user["approved_by"].casefold() == user["owner"].casefold():
        gaps.append("approval by someone else than the owner")
    audience = user.get("audience") or "staff"
    if audience in ("external", "vendor"):
        gaps += [key for key in ("sponsor", "agreement_on", "expires") if not user.get(key)]
    if audience == "vendor" and not user.get("attested_on"):
        gaps.append("attested_on")
    return gaps


def counted_from(account: dict, user: dict | None, lost_at: int | None) -> tuple[int | None, str]:
    """Return (seconds since 1970 from which an account counts as unused, why), or (None, why) if the count begins now.

    The last login known from any source counts; without one, when the account was first seen. A renewed approval is a
    new beginning. Where login records were lost (``lost_at``), nobody is judged by what was not written down before.
    """
    starts = []
    if account["last_login"]:
        starts.append((account["last_login"]["at"], f"last login ({account['last_login']['source']})"))
    elif account["first_seen"] is None:
        return None, "first seen just now, no login known"
    else:
        starts.append((account["first_seen"], "first seen, no login known"))
    approved = to_day((user or {}).get("approved_on"))
    if approved is not None:
        starts.append((approved * DAY, "approved"))
    if lost_at:
        starts.append((lost_at, "login records lost before"))
    return max(starts)


def watched(account: dict, user: dict | None) -> bool:
    """Tell whether disuse is judged for an account: people's, and those nobody declared, unless something runs on them."""
    if account["kind"] != "person" or (user and kind_of(user) in MACHINE_KINDS):
        return False
    return bool(user) or not account["used_by"]


def idle_days(account: dict, user: dict | None, now: int, lost_at: int | None) -> int | None:
    """Return for how many whole days nobody used an account; None if that cannot be told (records from the future)."""
    if account["sessions"]:
        return 0
    since, _why = counted_from(account, user, lost_at)
    if since is None:
        return 0
    if since > now + DAY:
        return None
    return max(0, (now - since) // DAY)


def by_name(users: list) -> dict:
    """Return declared accounts by name."""
    return {user["name"]: user for user in users}


# ---------------------------------------------------------------------------------------------------------------
# What the assessment asks. Each returns sentences (`name: what is wrong`) and an empty list when all is well.


def find_open_system(accounts: list, exempt: list, users: list) -> list[str]:
    """Return system accounts (and reserved ones) somebody could log in to."""
    left_out = {entry["name"] for entry in exempt} | {user["name"] for user in users if kind_of(user) == "automation"}
    said = []
    for account in accounts:
        if account["name"] in left_out:
            continue
        wrong = []
        if account["shell_kind"] != "none":
            wrong.append(f"shell {account['shell'] or '(empty)'}")
        if account["password"] in ("set", "empty"):
            wrong.append(f"password {account['password']}")
        if account["key_files"]:
            wrong.append(f"keys in {', '.join(account['key_files'])}")
        if wrong:
            said.append(f"{account['name']}: {', '.join(wrong)}")
    return said


def find_refused_names(accounts: list, users: list, generic: list, pattern: str, today: datetime.date) -> list[str]:
    """Return accounts that could be logged in to and whose name is refused."""
    declared = by_name(users)
    said = []
    for account in accounts:
        user = declared.get(account["name"])
        if not interactive(account) or (user and exception_holds(user, today)):
            continue
        form = pattern if user and kind_of(user) in HUMAN_KINDS else None
        why = refused_name(account["name"], generic, form)
        if why:
            said.append(f"{account['name']}: {why}")
    return said


def find_undeclared(accounts: list, users: list) -> list[str]:
    """Return accounts that could be logged in to, or that programs run under, without an entry in accounts_users."""
    declared = by_name(users)
    said = []
    for account in accounts:
        user = declared.get(account["name"])
        if account["kind"] == "reserved" or account["disabled"]:
            continue
        if user is None and (interactive(account) or account["used_by"]):
            run = f" (in use by {', '.join(account['used_by'])})" if account["used_by"] else ""
            said.append(f"{account['name']}: not declared{run}")
        elif user and state_of(user) != "present" and interactive(account):
            said.append(f"{account['name']}: declared {state_of(user)}, but open")
    return said


def find_dormant(accounts: list, users: list, days: int, now: int, lost_at: int | None) -> list[str]:
    """Return accounts that could be logged in to although unused for so many days, and those that cannot be judged."""
    declared = by_name(users)
    said = []
    for account in accounts:
        user = declared.get(account["name"])
        if not watched(account, user) or not interactive(account):
            continue
        idle = idle_days(account, user, now, lost_at)
        if idle is None:
            said.append(f"{account['name']}: last login lies in the future; is the clock right?")
        elif idle >= days:
            said.append(f"{account['name']}: unused for {idle} days since {counted_from(account, user, lost_at)[1]}")
    return said


def find_overdue(accounts: list, users: list, days: int, notice_days: int, now: int, lost_at: int | None) -> list[str]:
    """Return closed accounts that should be removed by now."""
    declared = by_name(users)
    said = []
    for account in accounts:
        if account["kind"] != "person" or not account["disabled"]:
            continue
        idle = idle_days(account, declared.get(account["name"]), now, lost_at)
        if removal_due(account, idle, days, notice_days, now) and not renewed(account, declared.get(account["name"])):
            said.append(f"{account['name']}: unused for {idle} days, disabled, still there")
    return said


def removal_due(account: dict, idle: int | None, days: int, notice_days: int, now: int) -> bool:
    """Tell whether a disabled account is to be removed: unused for more than ``days``, and disabled long enough ago."""
    disabled = account["disabled"]
    if not disabled or disabled["reason"] not in REMOVABLE or idle is None or account["sessions"]:
        return False
    return idle > days and now - disabled["at"] >= notice_days * DAY


def renewed(account: dict, user: dict | None) -> bool:
    """Tell whether a declared account was approved again after it was disabled for disuse."""
    approved = to_day((user or {}).get("approved_on"))
    return bool(user) and approved is not None and approved >= account["disabled"]["at"] // DAY


def find_unlimited(accounts: list, users: list, days: int, now: int) -> list[str]:
    """Return temporary accounts without ticket, or whose expiry on the host is missing or too far away."""
    declared = by_name(users)
    said = []
    for account in accounts:
        user = declared.get(account["name"])
        if not user or state_of(user) != "present":
            continue
        wanted = to_day(user.get("expires"))
        if kind_of(user) == "temporary":
            if not user.get("ticket"):
                said.append(f"{account['name']}: no ticket")
            if account["expires_day"] is None:
                said.append(f"{account['name']}: never expires")
            elif account["expires_day"] - now // DAY > days:
                said.append(f"{account['name']}: expires only on {from_day(account['expires_day'])}")
        if wanted is not None and (account["expires_day"] is None or account["expires_day"] > wanted):
            said.append(f"{account['name']}: declared until {user['expires']}")
    return said


def find_open_service(accounts: list, users: list) -> list[str]:
    """Return declared service accounts that lack owner, reason or peers, or that somebody could log in to."""
    observed = {account["name"]: account for account in accounts}
    said = []
    for user in users:
        if kind_of(user) not in MACHINE_KINDS or state_of(user) != "present":
            continue
        name = user["name"]
        said += [f"{name}: no {key}" for key in ("owner", "reason", "peers") if not user.get(key)]
        account = observed.get(name)
        if account and kind_of(user) == "service" and account["shell_kind"] != "none":
            said.append(f"{name}: shell {account['shell'] or '(empty)'}")
        if account and account["password"] in ("set", "empty"):
            said.append(f"{name}: password {account['password']}")
    return said


def find_unapproved(accounts: list, users: list, approvers: list) -> list[str]:
    """Return declared people's accounts that are open although their request is not complete and approved."""
    declared = by_name(users)
    said = []
    for account in accounts:
        user = declared.get(account["name"])
        if user and state_of(user) == "present" and interactive(account):
            gaps = request_gaps(user, approvers)
            if gaps:
                said.append(f"{account['name']}: open without {', '.join(gaps)}")
    return said


def find_shared_owner(users: list, accounts: list, today: datetime.date) -> list[str]:
    """Return people with more than one open account."""
    observed = {account["name"]: account for account in accounts}
    owners: dict = {}
    said = []
    for user in users:
        account = observed.get(user["name"])
        if kind_of(user) not in HUMAN_KINDS or not user.get("owner") or not account or not interactive(account):
            continue
        owner = " ".join(user["owner"].split()).casefold()
        if owner in owners and not exception_holds(user, today):
            said.append(f"{user['owner']}: {owners[owner]} and {user['name']}")
        owners.setdefault(owner, user["name"])
    return said


def find_shared_keys(accounts: list) -> list[str]:
    """Return keys that open more than one account."""
    holders: dict = {}
    for account in accounts:
        if interactive(account):
            for key in account["keys"]:
                holders.setdefault(key, set()).add(account["name"])
    return [f"{key}: {', '.join(sorted(names))}" for key, names in sorted(holders.items()) if len(names) > 1]
