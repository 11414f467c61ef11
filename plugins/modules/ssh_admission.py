#!/usr/bin/python
# Copyright: (c) 2026, Bulwark contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: ssh_admission
short_description: Refuse an SSH configuration that would shut Ansible itself out
version_added: 0.1.0
description:
  - Finds out by which account, from which address and with which key this very connection came in, lays the wanted
    configuration out beside the present one, and asks sshd what it would grant that account from that address.
  - Fails, naming the account and the variable, if the account would not be admitted, its key would not be taken, or a second
    factor would be asked for that it did not bring.
  - Nothing on the host is changed. Over a connection that is no SSH connection there is nothing to lose, and it succeeds.
author:
  - Bulwark contributors (@bulwark)
options:
  files:
    description: Configuration files as they are to be, as mappings with C(path) and C(content).
    type: list
    elements: dict
    required: true
    suboptions:
      path:
        description: Where the file is to lie.
        type: path
        required: true
      content:
        description: Its whole text.
        type: str
        required: true
  members:
    description: Accounts that are about to join groups.
    type: list
    elements: dict
    default: []
    suboptions:
      group:
        description: Group that is joined.
        type: str
        required: true
      members:
        description: Accounts that join it.
        type: list
        elements: str
        required: true
attributes:
  check_mode:
    description: Only looks, so check mode makes no difference.
    support: full
  diff_mode:
    description: Nothing is changed, so there is no difference to show.
    support: none
seealso:
  - module: bulwark.hardening.config_set
"""

EXAMPLES = r"""
- name: Look before leaping
  bulwark.hardening.ssh_admission:
    files:
      - path: /etc/ssh/sshd_config.d/00-site.conf
        content: |
          PermitRootLogin no
          AllowGroups staff
    members:
      - group: staff
        members: [alice]
"""

RETURN = r"""
over_ssh:
  description: Whether this connection came in over SSH.
  type: bool
  returned: always
  sample: true
account:
  description: The account it came in with; empty if it did not come over SSH.
  type: str
  returned: always
  sample: alice
address:
  description: The address it came from.
  type: str
  returned: always
  sample: 192.0.2.10
method:
  description: How the account proved itself, as sshd logged it; empty if that log line is gone.
  type: str
  returned: always
  sample: publickey
"""

import fnmatch
import glob
import os
import pwd
import stat
import tempfile

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.bulwark.hardening.plugins.module_utils import ssh
from ansible_collections.bulwark.hardening.plugins.module_utils.posture import ssh as seen
from ansible_collections.bulwark.hardening.plugins.module_utils.posture.common import CannotObserve, read
from ansible_collections.bulwark.hardening.plugins.module_utils.way_in import way_in

VARIABLES = {"allowgroups": "ssh_allowed_groups, ssh_group_members", "permitrootlogin": "ansible_user"}


def lay_out(files: dict[str, str], place: str, main: str) -> str:
    """Write the configuration as it would be below C(place) and return its main file.

    Each file keeps its own scope (a Match ends with its file), so nothing is pasted together: what an Include names is
    copied into a directory of its own, in sshd's order, and the Include points there.
    """
    count = [0]

    def copy(text: str, target: str) -> None:
        lines = []
        for line in text.splitlines():
            said = ssh.words(line)
            if not said or said[0].lower() != "include":
                lines.append(line)
                continue
            for pattern in ssh.includes(line):
                count[0] += 1
                if count[0] > 64:
                    raise CannotObserve("sshd_config: more than 64 Include lines")
                below = os.path.join(place, f"{count[0]}")
                os.mkdir(below, 0o700)
                names = sorted(set(glob.glob(pattern)) | {path for path in files if fnmatch.fnmatchcase(path, pattern)})
                for number, path in enumerate(names):
                    copy(files[path] if path in files else read(path), os.path.join(below, f"{number:04}.conf"))
                lines.append(f"Include {below}/*.conf")
        with open(target, "w", encoding="utf-8") as stream:
            stream.write("\n".join(lines) + "\n")

    target = os.path.join(place, "sshd_config")
    copy(files[main] if main in files else read(main), target)
    return target


def loose(path: str, entry: pwd.struct_passwd) -> str:
    """Return the first file or directory on the way from the home to a key file that StrictModes would object to, or ""."""
    while True:
        try:
            about = os.stat(path)
        except OSError:
            return path
        if about.st_uid not in (0, entry.pw_uid) or about.st_mode & stat.S_IWOTH:
            return path
        if about.st_mode & stat.S_IWGRP:
            # Debian's sshd lets a group write that has nobody but the user in it.
            members = [one for one in pwd.getpwall() if about.st_gid in os.getgrouplist(one.pw_name, one.pw_gid)]
            if any(one.pw_uid != entry.pw_uid for one in members):
                return path
        if path in (entry.pw_dir.rstrip("/"), "/", ""):
            return ""
        path = os.path.dirname(path)


def objections(settings: dict[str, list[str]], way: dict, groups: list[str]) -> list[str]:
    """Return everything that would keep the account out, one sentence each."""
    entry, method, fingerprint = pwd.getpwnam(way["account"]), way["method"], way["fingerprint"]
    if entry.pw_uid == 0 and settings.get("permitrootlogin", ["yes"])[0] != "yes":
        return ["root may not log in (ansible_user)"]  # nothing else about root matters then
    said = []
    for setting, why in ssh.refusals(settings, entry.pw_name, entry.pw_uid, groups, way["address"]):
        if setting == "allowgroups":
            why += f", only in {', '.join(groups)}"
        said.append(f"{why} ({VARIABLES.get(setting, setting)})")
    secret = seen.shadow().get(entry.pw_name, {})
    if secret.get("account_expired"):
        said.append("the account has expired")
    if secret.get("password_expired"):
        said.append("its password has aged out, and sshd with UsePAM demands a new one before anything else (chage)")

    lists = settings.get("authenticationmethods", ["any"])[0].split()
    if method and method != "publickey" and not method.startswith("keyboard-interactive"):
        said.append(f"Ansible came in with {method}, which will not be accepted; put a public key in place and use it")
    elif not method.startswith("keyboard-interactive") and not {"any", "publickey"} & set(lists):
        said.append(f"a key alone will not do, {' or '.join(lists)} is asked for (ssh_authentication_methods)")

    if settings.get("authorizedkeyscommand", ["none"])[0] != "none" or settings.get("trustedusercakeys", ["none"])[0] != "none":
        return said  # keys may come from elsewhere; that they do, this connection has just shown
    refused, usable = [], []
    for path in seen.key_files(settings, entry):
        place = loose(path, entry) if settings.get("strictmodes", ["yes"])[0] == "yes" and os.path.exists(path) else ""
        for key in seen.read_keys(path):
            if fingerprint and key["fingerprint"] != fingerprint:
                continue
            why = ssh.key_refusals(settings, key) + ([f"{place} may be written by others (StrictModes)"] if place else [])
            (refused if why else usable).append((key, why))
    if not usable:
        why = "; ".join(dict.fromkeys(reason for _key, reasons in refused for reason in reasons))
        what = f"its key {fingerprint} would not be accepted" if fingerprint else "none of its keys would be accepted"
        said.append(f"{what}: {why or 'there is none in its authorized_keys'}")
    return said


def others(options: list[str], way: dict, members: list[dict]) -> list[str]:
    """Return the accounts with a key and sudo that would be admitted from the same address, to name a way out."""
    found = []
    for entry in seen.accounts_of_interest():
        groups = groups_with(entry, members)
        if not entry.pw_uid or "sudo" not in groups or entry.pw_name == way["account"]:
            continue
        settings = seen.ask(options, entry.pw_name, way["address"], "client.invalid", way["laddr"], way["lport"])
        keys = [key for path in seen.key_files(settings, entry) for key in seen.read_keys(path)]
        good = [key for key in keys if not ssh.key_refusals(settings, key)]
        if good and not ssh.refusals(settings, entry.pw_name, entry.pw_uid, groups, way["address"]):
            found.append(entry.pw_name)
    return found


def groups_with(entry: pwd.struct_passwd, members: list[dict]) -> list[str]:
    """Return an account's groups, those it is about to join included."""
    return sorted({*seen.groups_of(entry), *(joining["group"] for joining in members if entry.pw_name in joining["members"])})


def main() -> None:
    """Judge the wanted configuration by the connection we are on."""
    module = AnsibleModule(
        argument_spec={
            "files": {
                "type": "list",
                "elements": "dict",
                "required": True,
                "options": {"path": {"type": "path", "required": True}, "content": {"type": "str", "required": True}},
            },
            "members": {
                "type": "list",
                "elements": "dict",
                "default": [],
                "options": {
                    "group": {"type": "str", "required": True},
                    "members": {"type": "list", "elements": "str", "required": True},
                },
            },
        },
        supports_check_mode=True,
    )
    members = module.params["members"]
    result = {"changed": False, "over_ssh": False, "account": "", "address": "", "method": ""}
    known = {entry.pw_name for entry in pwd.getpwall()}
    strangers = sorted({name for joining in members for name in joining["members"]} - known)
    if strangers:
        module.fail_json(msg=f"ssh_group_members = {strangers}: no such account on this host; make it first", **result)
    try:
        way = way_in()
    except CannotObserve as exc:
        module.fail_json(msg=f"Refused before anything changed: whether Ansible could come in again is unknown: {exc}", **result)
    if way is None:
        module.exit_json(**result)
    result.update(over_ssh=True, account=way["account"], address=way["address"], method=way["method"])
    if not os.path.exists(seen.SSHD):
        if module.check_mode:  # the package is yet to come, and another server than OpenSSH let us in
            module.exit_json(**result)
        module.fail_json(msg=f"{seen.SSHD} is missing although this is an SSH connection: another SSH server is in use", **result)
    try:
        options = seen.options_of_daemon()
        at = next((i + 1 for i, option in enumerate(options[:-1]) if option == "-f"), None)
        with tempfile.TemporaryDirectory(dir=module.tmpdir) as place:
            wanted = {item["path"]: item["content"] for item in module.params["files"]}
            staged = lay_out(wanted, place, options[at] if at is not None else seen.MAIN)
            if at is not None:
                options[at] = staged
            else:
                options = ["-f", staged, *options]
            settings = seen.ask(options, way["account"], way["address"], "client.invalid", way["laddr"], way["lport"])
            said = objections(settings, way, groups_with(pwd.getpwnam(way["account"]), members))
            rest = others(options, way, members) if said else []
        if said:
            advice = f" Would be let in and is in group sudo: {', '.join(rest)}." if rest else ""
            module.fail_json(
                msg=f"Refused before anything changed: Ansible came in as {way['account']} from {way['address']} and could not "
                f"come in again: {'; '.join(said)}.{advice}",
                **result,
            )
    except (CannotObserve, KeyError) as exc:
        module.fail_json(
            msg=f"Refused before anything changed: whether {way['account']} could come in again is unknown: {exc}", **result
        )
    module.exit_json(**result)


if __name__ == "__main__":
    main()
