#!/usr/bin/python
# Copyright: (c) 2026, Bulwark contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: pki
short_description: Keep the certificates of machines and people who prove who they are
version_added: 0.2.0
description:
  - Makes keys where they are used, has their requests signed by an authority, and puts what was signed in place. A private key
    never leaves the host on which it was made.
  - Drives the host's own openssl, and openvpn for the keys of tls-crypt-v2. Files are written atomically, keys with mode 0600.
  - A secret never is an argument of a process nor part of its environment.
author:
  - Bulwark contributors (@bulwark)
options:
  state:
    description:
      - V(requested) makes a key and returns a request for it (RV(request)).
      - V(signed) works on the authority, which is made if there is none. It signs O(requests), revokes, and keeps the revocation
        list current (RV(authority), RV(crl), RV(certificates), RV(issued)).
      - V(installed) checks that certificate, key, authority and revocation list belong together, and puts them in place.
      - V(tls_crypt) makes the gateway's key of tls-crypt-v2 and one for each of O(names), takes those of others away, and returns
        them (RV(keys)). Use C(no_log) on that task.
    type: str
    choices: [requested, signed, installed, tls_crypt]
    required: true
  directory:
    description: Where key, certificates and lists lie; with O(state=signed), the authority's own directory (mode 0700).
    type: path
    required: true
  name:
    description: Name in the certificate (V(requested), V(installed)), or of a new authority (V(signed)).
    type: str
  key_passphrase:
    description:
      - With V(requested), the new key is encrypted with it (PKCS#8, AES-256). With V(signed), the authority's own key is.
    type: str
    default: ""
  requests:
    description: Requests to sign. One whose certificate still lasts longer than O(renew_days) is answered with that certificate.
    type: list
    elements: dict
    default: []
    suboptions:
      name:
        description: Name that the certificate is for. The request must be for the same.
        type: str
        required: true
      kind:
        description: What the certificate may be used for.
        type: str
        choices: [server, client]
        default: client
      request:
        description: The request in PEM. Empty only in check mode, when its key is yet to be made.
        type: str
        required: true
      addresses:
        description: With V(server), other names and addresses under which it is reached. A change needs another certificate.
        type: list
        elements: str
        default: []
      supersede:
        description: Whether certificates of the same name for other keys are revoked.
        type: bool
        default: false
      unblock:
        description: Whether a name that was revoked and blocked gets certificates again. Otherwise its request is refused.
        type: bool
        default: false
  people:
    description: With V(signed), everybody else's client certificates are revoked. Not given, nobody's are for that reason.
    type: list
    elements: str
  revoke:
    description: Names whose client certificates are revoked and who get none until a request says O(requests[].unblock).
    type: list
    elements: str
    default: []
  days:
    description: How long a certificate lasts.
    type: int
    default: 365
  renew_days:
    description: A certificate that lasts no longer than this is renewed.
    type: int
    default: 30
  authority_days:
    description: How long a new authority lasts.
    type: int
    default: 3650
  crl_days:
    description: How long a revocation list lasts.
    type: int
    default: 30
  crl_renew_days:
    description: A revocation list that lasts no longer than this is made anew.
    type: int
    default: 15
  authority:
    description: With V(installed), the authority's certificate.
    type: str
    default: ""
  certificate:
    description: With V(installed), the certificate for the key in O(directory). Empty leaves certificates as they are.
    type: str
    default: ""
  crl:
    description: With V(installed), the revocation list, if one is to be kept here.
    type: str
    default: ""
  issued:
    description: With V(installed), RV(issued) of the authority, kept for those who watch over expiry. No secret.
    type: list
    elements: dict
    default: []
  kind:
    description: With V(installed), what the certificate must be good for.
    type: str
    choices: [server, client]
    default: client
  names:
    description: With V(tls_crypt), who gets a key.
    type: list
    elements: str
    default: []
attributes:
  check_mode:
    description: Says what would be made. What is not there yet is returned empty.
    support: full
  diff_mode:
    description: Says in words what is made, without contents.
    support: full
"""

EXAMPLES = r"""
- name: Make the workstation's key
  bulwark.hardening.pki:
    state: requested
    directory: /etc/openvpn/client/bulwark
    name: alice
  register: asked

- name: Have it signed where the authority is
  bulwark.hardening.pki:
    state: signed
    directory: /var/lib/bulwark/vpn-authority
    name: Example Clinic VPN
    requests:
      - name: alice
        request: "{{ asked.request }}"
  delegate_to: gateway
  register: signed

- name: Put it in place
  bulwark.hardening.pki:
    state: installed
    directory: /etc/openvpn/client/bulwark
    name: alice
    authority: "{{ signed.authority }}"
    certificate: "{{ signed.certificates.alice }}"
"""

RETURN = r"""
request:
  description: The request in PEM.
  type: str
  returned: with state requested
  sample: "-----BEGIN CERTIFICATE REQUEST-----"
authority:
  description: The authority's certificate in PEM.
  type: str
  returned: with state signed
  sample: "-----BEGIN CERTIFICATE-----"
crl:
  description: The revocation list in PEM.
  type: str
  returned: with state signed
  sample: "-----BEGIN X509 CRL-----"
certificates:
  description: The certificates that were asked for, in PEM, by name.
  type: dict
  returned: with state signed
  sample: {alice: "-----BEGIN CERTIFICATE-----"}
renewed:
  description: Whether another certificate was put in place, which a running program has not read yet.
  type: bool
  returned: with state installed
  sample: true
issued:
  description: Name, kind, serial and end (seconds since the epoch) of each certificate that is valid.
  type: list
  elements: dict
  returned: with state signed
  sample: [{name: alice, kind: client, serial: 4AC36F1A, not_after: 1827093837}]
keys:
  description: The secret keys of tls-crypt-v2, by name.
  type: dict
  returned: with state tls_crypt
  sample: {alice: "-----BEGIN OpenVPN tls-crypt-v2 client key-----"}
"""

import json
import os
import tempfile
import time

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.bulwark.hardening.plugins.module_utils import pki as core
from ansible_collections.bulwark.hardening.plugins.module_utils.pki import Authority, PkiError


def make_directory(path: str, mode: int) -> None:
    """Make a directory and those above it, and give it its mode."""
    os.makedirs(os.path.dirname(path), mode=0o755, exist_ok=True)
    if not os.path.isdir(path):
        os.mkdir(path, mode)
    os.chmod(path, mode)


def tighten(path: str, mode: int, said: list[str], check: bool) -> None:
    """Give a file that exists its owner and mode back."""
    if os.path.exists(path):
        about = os.stat(path)
        if about.st_mode & 0o7777 != mode or about.st_uid != os.geteuid():
            said.append(f"{path}: owner and mode {mode:04o}")
            if not check:
                os.chown(path, os.geteuid(), os.getegid())
                os.chmod(path, mode)


def requested(params: dict, said: list[str], check: bool) -> dict:
    """Make the key if there is none and return a request for it."""
    key_file = os.path.join(params["directory"], "private.key")
    if not params["name"]:
        raise PkiError("name: is missing")
    if not os.path.exists(key_file):
        said.append(f"{key_file}: a new private key")
        if check:
            return {"request": ""}
        make_directory(params["directory"], 0o755)
        core.write(key_file, core.make_key(params["key_passphrase"]), 0o600)
    tighten(key_file, 0o600, said, check)
    return {"request": core.make_request(key_file, params["name"], params["key_passphrase"])}


def signed(params: dict, said: list[str], check: bool) -> dict:
    """Bring the authority to what is wanted of it, and return what it gives out."""
    with Authority.lock(params["directory"], create=not check):
        authority, now = Authority(params["directory"], params["key_passphrase"]), time.time()
        fresh = not authority.exists()
        if fresh:
            if not params["name"]:
                raise PkiError("name: a new authority needs one")
            said.append(f"authority: {params['name']}, for {params['authority_days']} days")
            if not check:
                authority.create(params["name"], params["authority_days"])
        for name in ("ca.key", "index.json"):
            tighten(authority.path(name), 0o600, said, check)
        certificates = {entry["name"]: answer(authority, entry, params, now, said, check) for entry in params["requests"]}

        entries = authority.index["certificates"]
        people = {entry["name"] for entry in entries if entry["kind"] == "client" and not entry["revoked"]}
        strangers = people - set(params["people"]) if params["people"] is not None else set()
        for names, block in ((strangers, False), (set(params["revoke"]), True)):
            late = names & people if not block else {n for n in names if n in people or n not in authority.index["blocked"]}
            said.extend(f"certificates of {name}: revoked" for name in sorted(late))
            if late and not check:
                authority.revoke(late, block)
        if check:  # what would be revoked is not on the index, which stays as it is
            due = fresh or any("revoked" in line for line in said) or authority.crl_due(params["crl_renew_days"], now)
        else:
            due = authority.crl_due(params["crl_renew_days"], now)
        if due:
            said.append(f"revocation list: a new one, for {params['crl_days']} days")
            if not check:
                authority.make_crl(params["crl_days"])
        return {
            "authority": core.load(authority.path("ca.crt")),
            "crl": "" if check and due else core.load(authority.path("crl.pem")),
            "certificates": certificates,
            "issued": authority.public_index(now),
        }


def answer(authority: Authority, entry: dict, params: dict, now: float, said: list[str], check: bool) -> str:
    """Return the certificate for one request: the one that still lasts, or a new one. Nothing where one would be made."""
    name, kind = entry["name"], entry["kind"]
    if not core.NAME.fullmatch(name):
        raise PkiError(f"{name!r} is no name for a certificate")
    if kind == "client" and name in authority.index["blocked"]:
        if not entry["unblock"]:
            raise PkiError(f"{name} was revoked and gets no certificate until playbooks/vpn_user.yml adds them again")
        said.append(f"{name}: may have certificates again")
        if not check:
            authority.index["blocked"].remove(name)
            authority.save()
    if kind == "client" and params["people"] is not None and name not in params["people"]:
        raise PkiError(f"{name} is not declared, so nothing was signed")
    if not entry["request"]:
        if not check:
            raise PkiError(f"the request of {name} is empty")
    else:
        facts = core.request_facts(entry["request"])
        if facts["name"] != name:
            raise PkiError(f"the request is for {facts['name']!r}, not for {name!r}")
        before = authority.current(name, kind, facts["key"], now, entry["addresses"])
        if before and before["not_after"] - now > params["renew_days"] * core.DAY:
            return core.load(authority.path(f"issued/{before['serial']}.pem"))
    said.append(f"{kind} certificate of {name}: issued, for {params['days']} days")
    return "" if check else authority.issue(name, kind, entry["request"], params["days"], entry["supersede"], entry["addresses"])


def installed(params: dict, said: list[str], check: bool) -> dict:
    """Put certificates and lists in place once they are seen to belong together."""
    directory = params["directory"]
    place = {"authority": "ca.crt", "certificate": "own.crt", "crl": "crl.pem"}
    wanted = {name: params[key] for key, name in place.items() if params[key]}
    issued = json.dumps(params["issued"], indent=1, sort_keys=True) + "\n" if params["issued"] else ""
    if not check:
        make_directory(directory, 0o755)
        missing = {"ca.crt", "own.crt"} - set(wanted)
        if missing:
            raise PkiError(f"{', '.join(sorted(missing))}: nothing was given")
        belong(params)
    renewed = False
    for key, name in place.items():
        path = os.path.join(directory, name)
        expected = key != "crl" or params["crl"] or (check and params["kind"] == "server")
        if expected and (not params[key] or core.load(path).strip() != params[key].strip()):
            said.append(f"{path}: {key}")
            renewed = renewed or key != "crl"
            if not check:
                core.write(path, params[key].strip().encode() + b"\n", 0o644)
        tighten(path, 0o644, said, check)
    path = os.path.join(directory, "issued.json")
    if params["kind"] == "server" and not check and core.load(path) != issued:
        # no change to report: it follows from the certificates, each of which was one
        core.write(path, (issued or "[]\n").encode(), 0o644)
    return {"renewed": renewed}


def belong(params: dict) -> None:
    """Raise PkiError unless certificate, key, authority and list belong together."""
    with tempfile.TemporaryDirectory() as place:
        paths = {}
        for key in ("authority", "certificate", "crl"):
            paths[key] = os.path.join(place, key)
            with open(paths[key], "w", encoding="ascii") as stream:
                stream.write(params[key])
        purpose = "sslserver" if params["kind"] == "server" else "sslclient"
        core.openssl("verify", "-purpose", purpose, "-CAfile", paths["authority"], paths["certificate"])
        if params["crl"]:
            core.openssl("crl", "-noout", "-verify", "-CAfile", paths["authority"], "-in", paths["crl"])
    facts = core.certificate_facts(params["certificate"])
    if params["name"] and facts["name"] != params["name"]:
        raise PkiError(f"the certificate is for {facts['name']!r}, not for {params['name']!r}")
    key_file = os.path.join(params["directory"], "private.key")
    if facts["key"] != core.request_facts(core.make_request(key_file, facts["name"], params["key_passphrase"]))["key"]:
        raise PkiError(f"the certificate does not belong to {key_file}")


def tls_crypt(params: dict, said: list[str], check: bool) -> dict:
    """Keep the keys of tls-crypt-v2, which hide the gateway from those who have none."""
    directory, keys = params["directory"], {}
    server, clients = os.path.join(directory, "tls-crypt-v2.key"), os.path.join(directory, "tls-crypt-v2")
    if not os.path.exists(server):
        said.append(f"{server}: a new key")
        if not check:
            make_directory(directory, 0o755)
            core.write(server, generate(directory, "tls-crypt-v2-server"), 0o600)
    tighten(server, 0o600, said, check)
    if not check:
        make_directory(clients, 0o700)
    there = {name[:-4] for name in os.listdir(clients) if name.endswith(".key")} if os.path.isdir(clients) else set()
    for name in sorted(set(params["names"])):
        if not core.NAME.fullmatch(name):
            raise PkiError(f"{name!r} is no name for a key")
        path = os.path.join(clients, f"{name}.key")
        if name not in there:
            said.append(f"{path}: a new key")
            if not check:
                core.write(path, generate(directory, "tls-crypt-v2-client", "--tls-crypt-v2", server), 0o600)
        tighten(path, 0o600, said, check)
        keys[name] = core.load(path)
    for name in sorted(there - set(params["names"])):
        said.append(f"{os.path.join(clients, name)}.key: removed")
        if not check:
            os.unlink(os.path.join(clients, f"{name}.key"))
    return {"keys": keys}


def generate(directory: str, kind: str, *options: str) -> bytes:
    """Return a key that openvpn made."""
    with tempfile.TemporaryDirectory(dir=directory) as place:
        path = os.path.join(place, "key")
        core.openssl(*options, "--genkey", kind, path, program="openvpn")
        with open(path, "rb") as stream:
            return stream.read()


def main() -> None:
    """Do what is asked for."""
    request = {
        "name": {"type": "str", "required": True},
        "kind": {"type": "str", "choices": ["server", "client"], "default": "client"},
        "request": {"type": "str", "required": True},
        "addresses": {"type": "list", "elements": "str", "default": []},
        "supersede": {"type": "bool", "default": False},
        "unblock": {"type": "bool", "default": False},
    }
    states = {"requested": requested, "signed": signed, "installed": installed, "tls_crypt": tls_crypt}
    module = AnsibleModule(
        argument_spec={
            "state": {"type": "str", "choices": list(states), "required": True},
            "directory": {"type": "path", "required": True},
            "name": {"type": "str"},
            "key_passphrase": {"type": "str", "default": "", "no_log": True},
            "requests": {"type": "list", "elements": "dict", "default": [], "options": request},
            "people": {"type": "list", "elements": "str"},
            "revoke": {"type": "list", "elements": "str", "default": []},
            "days": {"type": "int", "default": 365},
            "renew_days": {"type": "int", "default": 30},
            "authority_days": {"type": "int", "default": 3650},
            "crl_days": {"type": "int", "default": 30},
            "crl_renew_days": {"type": "int", "default": 15},
            "authority": {"type": "str", "default": ""},
            "certificate": {"type": "str", "default": ""},
            "crl": {"type": "str", "default": ""},
            "issued": {"type": "list", "elements": "dict", "default": []},
            "kind": {"type": "str", "choices": ["server", "client"], "default": "client"},
            "names": {"type": "list", "elements": "str", "default": []},
        },
        supports_check_mode=True,
    )
    said: list[str] = []
    try:
        result = states[module.params["state"]](module.params, said, module.check_mode)
    except (PkiError, OSError) as exc:
        module.fail_json(msg=f"pki: {exc}", changed=bool(said) and not module.check_mode)
    difference = {"diff": {"before": "", "after": "".join(f"{line}\n" for line in said)}} if said and module._diff else {}
    module.exit_json(changed=bool(said), **difference, **result)


if __name__ == "__main__":
    main()
