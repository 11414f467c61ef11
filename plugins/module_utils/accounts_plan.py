# Copyright: (c) 2026, Bulwark contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Work out what has to happen to the accounts of a host, and refuse what would lock people out. Pure.

`plan` takes what was observed (posture/accounts.py), the role's own record and what is declared, and returns:

refusals   sentences; if there is one, nothing at all may be changed
warnings   sentences about what a person has to decide
want       {name: {attribute: value}}: shell, password (locked or open), expires_day, uid, groups
disable    {name: (reason, why)}; the attributes are in want, sessions are to be ended
enable     names taken out of the record of disabled accounts; the attributes are in want
create     declared accounts that do not exist yet
revive     declared accounts whose removed predecessor gets its name and uid back
remove     {name: why}
keys       {name: lines}: the only keys that shall open an account
put_away   {path: name}: files of keys that must not be there
nis        whether NIS lines are to be taken out
"""

from __future__ import annotations

from ansible_collections.bulwark.hardening.plugins.module_utils import accounts as rules

NOLOGIN = "/usr/sbin/nologin"
SHELL = "/bin/bash"
NAME_LENGTH = 32
CLOSED = {"shell": NOLOGIN, "password": "locked", "expires_day": 1}


def plan(seen: dict, record: dict, settings: dict, login_names: set, root_over_ssh: bool, can_become_root) -> dict:
    """Return the plan (see above).

    ``settings`` are the module's parameters; ``login_names`` are the accounts Ansible came in with; ``can_become_root`` is
    asked about a name only where the answer matters, for looking costs time.
    """
    made: dict = {
        "refusals": [], "warnings": [], "want": {}, "disable": {}, "enable": [], "create": [], "revive": [], "remove": {},
        "keys": {}, "put_away": {}, "nis": bool(seen["nis_entries"]),
    }  # fmt: skip
    refuse, warn = made["refusals"].append, made["warnings"].append
    users = rules.by_name(settings["users"])
    accounts = {a["name"]: a for a in [seen["root"], *seen["system"], *seen["people"], *seen["reserved"]] if a}

    if "login_sources" not in seen:
        refuse(f"last logins cannot be read, so nobody can be called dormant: {seen['unobserved']['login_sources']}")
    skew = seen["now"] - settings["controller_time"]
    if abs(skew) > settings["clock_tolerance"]:
        refuse(
            f"the host's clock differs from the controller's by {skew} s: days without login cannot be counted "
            f"(allowed are {settings['clock_tolerance']} s)"
        )
    for name in seen["repeated_names"]:
        refuse(f"{name} has more than one line in /etc/passwd: which one counts is for a person to decide")

    _close_root(made, seen["root"], root_over_ssh)
    _close_system(made, seen["system"], users, settings["system_exempt"])
    _unshare_uids(made, seen["shared_uids"], accounts, users)
    for account in seen["reserved"]:
        _want(made, account, CLOSED)
    for account in seen["people"]:
        if account["name"] not in made["disable"]:  # not one that just lost a shared uid
            _person(made, account, users.get(account["name"]), seen, record, settings, login_names)
    for name, user in users.items():
        if name not in accounts and rules.state_of(user) == "present":
            _newcomer(made, user, record, settings, accounts)
        if rules.state_of(user) == "present" and user.get("shell") in settings["missing_shells"]:
            refuse(f"accounts_users: {name}: the shell {user['shell']} does not exist")
        for group in user.get("groups") or []:
            if group not in settings["known_groups"]:
                refuse(f"accounts_users: {name}: the group {group} does not exist")

    _not_too_many(made, seen, users, settings)
    _not_the_way_in(made, accounts, users, login_names)
    _not_the_last_way_to_root(made, seen, users, login_names, can_become_root)
    for name in seen["lost_reservations"]:
        warn(f"{name}: the reservation of its uid is gone from /etc/passwd")
    return made


def _want(made: dict, account: dict, attributes: dict) -> None:
    """Note wanted attributes, where they differ from what is there."""
    for key, value in attributes.items():
        if key == "password":
            same = account["password"] in ("locked", "missing") if value == "locked" else account["password"] == "set"
        elif key == "shell" and value == NOLOGIN:
            same = account["shell_kind"] == "none"
        else:
            same = account[key] == value
        if not same:
            made["want"].setdefault(account["name"], {})[key] = value


def _close(made: dict, account: dict, reason: str, why: str) -> None:
    _want(made, account, CLOSED)
    if not account["disabled"] or account["disabled"]["reason"] != reason:
        made["disable"][account["name"]] = (reason, why)


def _close_root(made: dict, root: dict | None, root_over_ssh: bool) -> None:
    if root is None:
        made["refusals"].append("/etc/passwd has no account root with uid 0")
        return
    if root_over_ssh:
        made["refusals"].append(
            "Ansible came in as root over SSH, and root is to be closed: connect as another account that may use sudo, "
            "declared in accounts_users as kind automation (WTH-7.6-4)"
        )
    _want(made, root, {"password": "locked"})
    made["put_away"].update(dict.fromkeys(root["key_files"], "root"))


def _close_system(made: dict, system: list, users: dict, exempt: list) -> None:
    left_out = {entry["name"] for entry in exempt}
    for account in system:
        user = users.get(account["name"])
        if account["name"] in left_out or (user and rules.kind_of(user) == "automation"):
            continue
        _want(made, account, {"shell": NOLOGIN, "password": "locked"})
        made["put_away"].update(dict.fromkeys(account["key_files"], account["name"]))


def _unshare_uids(made: dict, shared: dict, accounts: dict, users: dict) -> None:
    """Give all but one account of a shared uid a uid of its own and close them; who keeps it must be clear."""
    taken = {account["uid"] for account in accounts.values()}
    for uid, names in shared.items():
        declared = [name for name in names if name in users and rules.state_of(users[name]) == "present"]
        keeper = "root" if uid == "0" and "root" in names else declared[0] if len(declared) == 1 else None
        if keeper is None:
            made["refusals"].append(
                f"uid {uid} is shared by {', '.join(names)}: declare exactly one of them in accounts_users, it keeps the uid; "
                "the others are closed and get another (WTH-7.6-5)"
            )
            continue
        for name in names:
            if name == keeper:
                continue
            free = next((number for number in range(999, 99, -1) if number not in taken), None)
            if free is None:
                made["refusals"].append(f"no free uid for {name} among 100 to 999")
                continue
            taken.add(free)
            _close(made, accounts[name], "shared uid", f"shares uid {uid} with {keeper}")
            made["want"].setdefault(name, {})["uid"] = free
            made["put_away"].update(
                {path: name for path in accounts[name]["key_files"] if path not in accounts[keeper]["key_files"]}
            )


def _person(made: dict, account: dict, user: dict | None, seen: dict, record: dict, settings: dict, login_names: set) -> None:
    name, now = account["name"], seen["now"]
    closed = account["disabled"]
    reason = _reason(account, user, seen, settings, login_names)
    state = rules.state_of(user) if user else None
    if state == "absent":
        made["remove"][name] = "declared absent"
    elif closed and closed["reason"] in rules.REMOVABLE and not _cured(account, user, reason, now):
        idle = rules.idle_days(account, user, now, seen["logins_lost_at"])
        if rules.removal_due(account, idle, settings["remove_days"], settings["notice_days"], now):
            if user is None and set(account["used_by"]) - {"processes"}:
                made["warnings"].append(f"{name}: would be removed, but is in use by {', '.join(account['used_by'])}")
            else:
                made["remove"][name] = f"unused for {idle} days"
                return
        _want(made, account, CLOSED)
    elif reason:
        _close(made, account, *reason)
    else:
        if closed:
            made["enable"].append(name)
            before = record["before"].get(name, {})
            _want(made, account, {key: before[key][0] for key in CLOSED if key in before})
            if account["uid"] != before.get("uid", [account["uid"]])[0]:
                made["warnings"].append(f"{name}: keeps uid {account['uid']}, its former one belongs to somebody else")
        if user:
            _declared(made, account, user, seen)
    if account["password"] == "empty" or name in seen.get("default_passwords", []):
        _want(made, account, {"password": "locked"})


def _reason(account: dict, user: dict | None, seen: dict, settings: dict, login_names: set) -> tuple[str, str] | None:
    """Return (reason, why) for closing a person's account, judged as if it were open; None if it may be open."""
    now = seen["now"]
    if user:
        if rules.state_of(user) == "disabled":
            return "declared", "declared disabled"
        gaps = rules.request_gaps(user, settings["approvers"]) if settings["approval_required"] else []
        if gaps:
            return "unapproved", f"the request lacks {', '.join(gaps)}"
        until = rules.to_day(user.get("expires"))
        if until is not None and until <= now // rules.DAY:
            return "expired", f"expired on {user['expires']}"
    elif rules.interactive(account) or account["disabled"]:
        if account["name"].lower() in rules.VENDOR_NAMES:
            return "generic", "a vendor's default account"
        if rules.bare(account["name"]) in rules.GENERIC_NAMES | {rules.bare(n) for n in settings["generic_names"]}:
            return "generic", "a generic name"
        if settings["undeclared"] == "disable" and account["name"] not in login_names:
            return "undeclared", "not declared"
    if account["name"] in login_names or not rules.watched(account, user) or not rules.interactive(account):
        return None
    idle = rules.idle_days(account, user, now, seen["logins_lost_at"])
    if idle is not None and idle >= settings["disable_days"]:
        return "dormant", f"unused for {idle} days"
    return None


def _cured(account: dict, user: dict | None, reason: tuple[str, str] | None, now: int) -> bool:
    """Tell whether what an account was closed for is no more."""
    closed_for = account["disabled"]["reason"]
    if closed_for in ("generic", "undeclared"):
        return reason is None or reason[0] not in ("generic", "undeclared")
    if user is None:
        return False
    if closed_for == "expired":
        until = rules.to_day(user.get("expires"))
        return until is None or until > now // rules.DAY
    return rules.renewed(account, user)


def _declared(made: dict, account: dict, user: dict, seen: dict) -> None:
    """Bring an open, declared account to its declaration. What the declaration does not mention is left alone."""
    name, kind = account["name"], rules.kind_of(user)
    if user.get("uid") is not None and user["uid"] != account["uid"]:
        made["refusals"].append(
            f"accounts_users: {name}: has uid {account['uid']}, declared is {user['uid']}; it is never changed"
        )
    shell = NOLOGIN if kind == "service" else user.get("shell")
    if shell:
        _want(made, account, {"shell": shell})
    if user.get("expires"):
        _want(made, account, {"expires_day": rules.to_day(user["expires"])})
    if kind in rules.MACHINE_KINDS:
        _want(made, account, {"password": "locked"})
    if user.get("groups") is not None:
        _want(made, account, {"groups": sorted(set(user["groups"]))})
    if user.get("authorized_keys") is not None:
        made["keys"][name] = list(user["authorized_keys"])


def _newcomer(made: dict, user: dict, record: dict, settings: dict, accounts: dict) -> None:
    name = user["name"]
    gone = record["removed"].get(name)
    if settings["approval_required"] and rules.request_gaps(user, settings["approvers"]):
        made["warnings"].append(
            f"{name}: not created, the request lacks {', '.join(rules.request_gaps(user, settings['approvers']))}"
        )
        return
    if (
        rules.to_day(user.get("expires")) is not None
        and rules.to_day(user["expires"]) <= settings["controller_time"] // rules.DAY
    ):
        made["warnings"].append(f"{name}: not created, it expired on {user['expires']}")
        return
    if gone:
        approved = rules.to_day(user.get("approved_on"))
        if gone.get("owner") and user.get("owner") and gone["owner"].casefold() != user["owner"].casefold():
            made["refusals"].append(
                f"accounts_users: {name}: was {gone['owner']}'s and stays reserved; another person gets another name"
            )
        elif gone["reserved_as"] not in accounts:
            made["refusals"].append(
                f"accounts_users: {name}: was removed, and its reserved uid {gone['uid']} is gone from /etc/passwd"
            )
        elif approved is None or approved < gone["at"] // rules.DAY:
            made["warnings"].append(
                f"{name}: declared, but was removed on {rules.from_day(gone['at'] // rules.DAY)}; "
                "approve it again (approved_on) or take the declaration out"
            )
        else:
            made["revive"].append(user)
            if user.get("authorized_keys") is not None:
                made["keys"][name] = list(user["authorized_keys"])
        return
    holder = next((a["name"] for a in accounts.values() if user.get("uid") is not None and a["uid"] == user["uid"]), None)
    if holder:
        made["refusals"].append(f"accounts_users: {name}: uid {user['uid']} is {holder}'s")
    made["create"].append(user)
    if user.get("authorized_keys") is not None:
        made["keys"][name] = list(user["authorized_keys"])


def _not_too_many(made: dict, seen: dict, users: dict, settings: dict) -> None:
    """Many people going dormant in one moment is a broken clock or lost records, not absence."""
    watched = [a for a in seen["people"] if rules.watched(a, users.get(a["name"])) and rules.interactive(a)]
    going = sorted(name for name, (reason, _why) in made["disable"].items() if reason == "dormant")
    allowed = max(1, len(watched) * settings["at_once_percent"] // 100)
    if len(going) > allowed:
        made["refusals"].append(
            f"{len(going)} of {len(watched)} accounts would be disabled as dormant at once ({', '.join(going)}), more than "
            f"{settings['at_once_percent']} %: is the clock right, are login records missing? If they really are unused, "
            "raise accounts_dormant_at_once_percent for one run"
        )


def _not_the_way_in(made: dict, accounts: dict, users: dict, login_names: set) -> None:
    for name in sorted(login_names & set(accounts) - {"root"}):
        account, wanted = accounts[name], made["want"].get(name, {})
        harm = []
        if name in made["remove"]:
            harm.append("removed")
        if name in made["disable"]:
            harm.append(f"disabled ({made['disable'][name][1]})")
        elif "shell" in wanted or "uid" in wanted:
            harm.append(f"given {' and '.join(f'{key} {wanted[key]}' for key in ('shell', 'uid') if key in wanted)}")
        if wanted.get("password") == "locked" and not account["keys"]:
            harm.append("left without password, and it has no key")
        lost = sorted(set(account["groups"]) - set(wanted.get("groups", account["groups"])))
        if lost:
            harm.append(f"taken out of {', '.join(lost)}")
        if name in made["keys"] and set(account["keys"]) - set(users[name].get("__fingerprints", [])):
            harm.append("left without a key that it has now")
        if harm:
            made["refusals"].append(
                f"Ansible came in as {name}, which would be {', '.join(harm)}: declare it in accounts_users as kind automation "
                "with all it needs, or come in as another account"
            )


def _not_the_last_way_to_root(made: dict, seen: dict, users: dict, login_names: set, can_become_root) -> None:
    leaving = set(made["disable"]) | set(made["remove"])
    if not leaving and not made["want"].get("root") and "root" not in made["put_away"].values():
        return
    open_now = [a for a in [*seen["people"], *seen["system"]] if rules.able_to_log_in(a) or a["name"] in login_names]
    staying = [a["name"] for a in open_now if a["name"] not in leaving]
    if not any(can_become_root(name) for name in sorted(staying, key=lambda name: name not in login_names)):
        made["refusals"].append(
            "no account would be left that can log in and become root by sudo: root is not closed and nobody is disabled"
        )
        return

    def human(name: str) -> bool:
        return name not in users or rules.kind_of(users[name]) in rules.HUMAN_KINDS

    people = [a["name"] for a in open_now if a["kind"] == "person" and human(a["name"])]
    nobodies = {name for name, (reason, _why) in made["disable"].items() if reason in ("generic", "shared uid")}
    going = [name for name in people if name in leaving - nobodies and can_become_root(name)]
    if going and not any(
        can_become_root(name) for name in people if name not in leaving and name not in login_names - set(users)
    ):
        made["refusals"].append(f"{', '.join(sorted(going))}: no person would be left who can become root by sudo")


def reserved_name(name: str, uid: int, taken: set) -> str:
    """Return the name under which the uid of a removed account stays in /etc/passwd."""
    wished = f"removed-{name}"
    return wished if len(wished) <= NAME_LENGTH and wished not in taken else f"removed-{uid}"
