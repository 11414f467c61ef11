#!/usr/bin/python
# Copyright: (c) 2026, Bulwark contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: backup_access
short_description: Let hosts add to a backup repository, each with a credential of its own
version_added: 0.2.0
description:
  - With O(state=made), makes a host's secrets where they stay. The password for the repository server and the key that encrypts
    what is sent there never leave the host, but as they are sealed to the custodians' public keys.
  - With O(state=entered), keeps the repository server's list of who may come in, and the sealed keys.
  - Passwords are 256 random bits. The list holds their SHA-1, which is no weakness for something that nobody could guess.
author:
  - Bulwark contributors (@bulwark)
options:
  state:
    description: V(made) works where the secrets are used, V(entered) on the repository server.
    type: str
    choices: [made, entered]
    required: true
  directory:
    description:
      - With V(made), the directory of the secrets, mode 0700.
      - With V(entered), the directory of the sealed keys.
    type: path
    required: true
  name:
    description: Name of the host, which is its name on the server, too.
    type: str
  address:
    description: With V(made), where the server is, as host and port.
    type: str
    default: ""
  authority:
    description: With V(made), the certificate in PEM of the authority that vouches for the server. Empty only in check mode.
    type: str
    default: ""
  taken:
    description:
      - With V(made), whether the server keeps backups of this host already. Then a key that is not here is not made anew,
        for it could open none of them; a custodian gives back the one that was.
    type: bool
    default: false
  custodians:
    description:
      - With V(made), who can recover the key; it is sealed to all of them with age(1), anew whenever they change.
      - Without any, no encryption key is made, as for a server that only fetches copies.
    type: list
    elements: dict
    default: []
    suboptions:
      name:
        description: Who it is.
        type: str
        required: true
      key:
        description: Their public key, as age-keygen(1) prints it.
        type: str
        required: true
  path:
    description: With V(entered), the list (htpasswd). Without it, only a sealed key is kept.
    type: path
  group:
    description: With V(entered), who may read the list.
    type: str
    default: root
  names:
    description: With V(entered), whoever else is on the list is taken off it. Not given, nobody is.
    type: list
    elements: str
  line:
    description: With V(entered), the line that V(made) returned. Empty only in check mode, or to enter nobody.
    type: str
    default: ""
  authority_file:
    description: With V(entered), where the certificate of the server's authority lies, to be returned.
    type: path
  copies:
    description: With V(entered), the directory of a host's backups, to tell whether there are some.
    type: path
  escrow:
    description:
      - With V(entered), the sealed key that V(made) returned. Not given where there is none.
      - It is kept below O(directory), as <host>/<SHA-256>.json, beside those that were sealed before. None is ever overwritten.
    type: dict
attributes:
  check_mode:
    description: Says what would be made. What is not there yet is returned empty.
    support: full
  diff_mode:
    description: Says in words what is made, without contents.
    support: full
"""

EXAMPLES = r"""
- name: Make the host's secrets
  bulwark.hardening.backup_access:
    state: made
    directory: /etc/bulwark/backup
    name: ward-1
    address: backup.clinic.example:19633
    authority: "{{ authority }}"
    custodians:
      - {name: Privacy Officer, key: age1ql3z7hjy54pw3hyww5ayyfg7zqgvc7w3j2elw8zmrj2kg5sfn9aqmcac8p}
  register: made

- name: Let it in
  bulwark.hardening.backup_access:
    state: entered
    directory: /srv/backup/escrow
    path: /var/lib/bulwark/backup-repository/access/hosts
    group: bulwark-backup
    name: ward-1
    line: "{{ made.line }}"
    escrow: "{{ made.escrow }}"
  delegate_to: backup-1
"""

RETURN = r"""
line:
  description: What the server must know to let the host in. Not the password.
  type: str
  returned: with state made
  sample: "ward-1:{SHA}qUqP5cyxm6YcTAhz05Hph5gvu9M="
escrow:
  description: The sealed key, and to whom it is sealed. Empty where there are no custodians.
  type: dict
  returned: with state made
  sample: {sealed: "-----BEGIN AGE ENCRYPTED FILE-----", custodians: [{name: Privacy Officer, key: age1ql3}]}
authority:
  description: The certificate in PEM of the server's authority, if O(authority_file) was given. Empty if it is not there yet.
  type: str
  returned: with state entered
  sample: "-----BEGIN CERTIFICATE-----"
held:
  description: Whether there are backups below O(copies).
  type: bool
  returned: with state entered
  sample: true
removed:
  description: Names that were taken off the list.
  type: list
  elements: str
  returned: with state entered
  sample: [ward-9]
"""

import base64
import grp
import hashlib
import json
import os
import re
import secrets
import time

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.bulwark.hardening.plugins.module_utils import backup_escrow
from ansible_collections.bulwark.hardening.plugins.module_utils.pki import PkiError, alone, load, openssl, write

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")


def made(params: dict, said: list[str], check: bool) -> dict:
    """Make what is missing, and return what the server needs to know."""
    place, name, custodians = params["directory"], params["name"], params["custodians"]
    if os.path.isdir(place) and os.stat(place).st_mode & 0o7777 != 0o700:
        said.append(f"{place}: mode 0700")
    if not check:
        if not os.path.isdir(parent := os.path.dirname(place)):
            os.makedirs(parent)
            os.chmod(parent, 0o755)  # others keep things there that are not secret
        os.makedirs(place, mode=0o700, exist_ok=True)
        os.chmod(place, 0o700)
    if custodians and params["taken"] and not load(os.path.join(place, "password")).strip():
        raise PkiError(
            f"{place}/password: the key is not here, and the server keeps backups of {name} that a new one could not open. "
            f"A custodian gives it back, or somebody moves those backups out of the way there (docs/backup.md)"
        )
    access = secret(os.path.join(place, "access"), "a new password for the server", said, check)
    key = secret(os.path.join(place, "password"), "a new encryption key", said, check) if custodians else ""
    if not (params["authority"] or check):
        raise PkiError("authority: is empty")
    texts = {"ca.crt": params["authority"].strip() + "\n"}
    texts["repository"] = f"rest:https://{name}:{access}@{params['address']}/{name}/\n" if custodians else ""
    for file, text in texts.items():
        path = os.path.join(place, file)
        if text and load(path) != text:
            said.append(f"{path}: {params['address']}")
            if not check:
                write(path, text.encode(), 0o600)
    escrow = {}
    if custodians:
        what = backup_escrow.inside(name, params["address"], access, key)
        escrow = sealed(place, what, custodians, said, check)
    digest = base64.b64encode(hashlib.sha1(access.encode(), usedforsecurity=False).digest()).decode()
    return {"line": f"{name}:{{SHA}}{digest}" if access else "", "escrow": escrow}


def secret(path: str, what: str, said: list[str], check: bool) -> str:
    """Return a secret, made now if there was none; nothing if it would be made."""
    text = load(path).strip()
    if not text:
        said.append(f"{path}: {what}")
        if check:
            return ""
        text = secrets.token_hex(32)
        write(path, text.encode() + b"\n", 0o600)
    about = os.stat(path)
    if about.st_mode & 0o7777 != 0o600 or about.st_uid != os.geteuid():
        said.append(f"{path}: owner root, mode 0600")
        if not check:
            os.chown(path, os.geteuid(), os.getegid())
            os.chmod(path, 0o600)
    return text


def sealed(place: str, what: dict, custodians: list[dict], said: list[str], check: bool) -> dict:
    """Return the key sealed to the custodians: as it was, unless somebody or something changed."""
    path = os.path.join(place, "escrow.json")
    try:
        before = json.loads(load(path) or "{}")
    except ValueError:
        before = {}
    mark = backup_escrow.mark(what)
    if before.get("custodians") == custodians and before.get("of") == mark and before.get("sealed"):
        return before
    said.append(f"{path}: the key sealed to {', '.join(entry['name'] for entry in custodians)}")
    if check:
        return {}
    words = [word for entry in custodians for word in ("-r", entry["key"])]
    given = json.dumps(what, indent=1).encode() + b"\n"
    escrow = {
        "host": what["host"], "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "custodians": custodians, "of": mark,
        "sealed": openssl("-a", *words, given=given, program="age").decode(),
    }  # fmt: skip
    write(path, json.dumps(escrow, indent=1).encode() + b"\n", 0o600)
    return escrow


def entered(params: dict, said: list[str], check: bool) -> dict:
    """Bring the list, and the sealed key of a host, to what is wanted."""
    path, name, removed = params["path"], params["name"], []
    if path and (name is not None or params["names"] is not None):
        removed = listed(params, said, check)
    if name and params["escrow"] is not None:
        fresh, place = backup_escrow.text_of(params["escrow"]), os.path.join(params["directory"], name)
        if not (params["escrow"] or check):
            raise PkiError("escrow: is empty")
        path = os.path.join(place, backup_escrow.name_of(fresh))
        if not params["escrow"] or load(path) != fresh:
            said.append(f"{place}: a sealed key of {name}")
            if not check:
                os.makedirs(place, mode=0o700, exist_ok=True)
                write(path, fresh.encode(), 0o600)
    return {
        "removed": removed, "authority": load(params["authority_file"]) if params["authority_file"] else "",
        "held": bool(params["copies"]) and os.path.exists(os.path.join(params["copies"], "config")),
    }  # fmt: skip


def listed(params: dict, said: list[str], check: bool) -> list[str]:
    """Bring the list to what is wanted, and return who was taken off it."""
    with alone(os.path.dirname(params["path"])):
        return relisted(params, said, check)


def relisted(params: dict, said: list[str], check: bool) -> list[str]:
    """Do so, while nobody else does."""
    path, name = params["path"], params["name"]
    before = dict(line.split(":", 1) for line in load(path).splitlines() if ":" in line)
    after = {key: value for key, value in before.items() if params["names"] is None or key in params["names"]}
    removed = sorted(set(before) - set(after))
    said.extend(f"{path}: {gone} may no longer come in" for gone in removed)
    if name and not (params["line"] or check):
        raise PkiError("line: is empty")
    if name and params["line"]:
        if not params["line"].startswith(f"{name}:{{SHA}}"):
            raise PkiError(f"line: is not one of {name}")
        after[name] = params["line"].split(":", 1)[1]
    if name and (not params["line"] or after[name] != before.get(name)):
        said.append(f"{path}: {name} may come in")
    wrong = os.path.exists(path) and (os.stat(path).st_mode & 0o7777, os.stat(path).st_uid) != (0o640, os.geteuid())
    if wrong:
        said.append(f"{path}: owner root, mode 0640")
    if not check and (after != before or wrong or not os.path.exists(path)):
        write(path, "".join(f"{key}:{value}\n" for key, value in sorted(after.items())).encode(), 0o640)
        os.chown(path, os.geteuid(), grp.getgrnam(params["group"]).gr_gid)
    return removed


def main() -> None:
    """Make secrets, or let hosts in."""
    custodian = {"name": {"type": "str", "required": True}, "key": {"type": "str", "required": True, "no_log": False}}
    module = AnsibleModule(
        argument_spec={
            "state": {"type": "str", "choices": ["made", "entered"], "required": True},
            "directory": {"type": "path", "required": True},
            "name": {"type": "str"},
            "address": {"type": "str", "default": ""},
            "authority": {"type": "str", "default": ""},
            "taken": {"type": "bool", "default": False},
            "custodians": {"type": "list", "elements": "dict", "default": [], "options": custodian},
            "path": {"type": "path"},
            "group": {"type": "str", "default": "root"},
            "names": {"type": "list", "elements": "str"},
            "line": {"type": "str", "default": ""},
            "authority_file": {"type": "path"},
            "copies": {"type": "path"},
            "escrow": {"type": "dict"},
        },
        supports_check_mode=True,
        required_if=[("state", "made", ["name"])],
    )
    said: list[str] = []
    os.umask(0o077)
    try:
        if module.params["name"] and not NAME.fullmatch(module.params["name"]):
            raise PkiError(f"{module.params['name']!r} is no name of a host")
        work = made if module.params["state"] == "made" else entered
        outcome = work(module.params, said, module.check_mode)
    except (PkiError, OSError, KeyError) as exc:
        module.fail_json(msg=f"{module.params['state']}: {exc}")
    difference = {"diff": {"before": "", "after": "".join(f"{line}\n" for line in said)}} if said and module._diff else {}
    module.exit_json(changed=bool(said), **difference, **outcome)


if __name__ == "__main__":
    main()
