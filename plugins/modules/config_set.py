#!/usr/bin/python
# Copyright: (c) 2026, Bulwark contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: config_set
short_description: Write a set of configuration files as one transaction
version_added: 0.1.0
description:
  - Brings all files of a named set to their wanted content, owner, group and mode, or none of them.
  - The new files are first laid out in a staging root and validated together. Then each is swapped in atomically
    (made ready beside its place, flushed to disk, renamed). Then the live system is checked and the change is activated.
    If any of this fails, every file is put back as it was before the run, and the module fails.
  - Before it first touches a path, the set records what lay there. A file that leaves the set is put back exactly as it
    was, content, owner, group, mode, modification time, access control list, security context, symbolic link or
    nothing at all. With O(state=absent) that happens to all files of the set. Directories made for files of the set are
    removed again once they are empty.
  - A run may be killed at any moment. Each file is then either old or new in full. The next run, of whichever set, first goes
    back to the state before the killed run and says so in RV(recovered), then does its own work.
  - A file that was altered by hand is put right, and that counts as a change.
author:
  - Bulwark contributors (@bulwark)
options:
  name:
    description:
      - Name of the set, 1 to 64 of the characters a-z, 0-9, C(_) and C(-).
      - A path belongs to one set only. A path that another set owns is refused.
    type: str
    required: true
  state:
    description:
      - With V(present), the host has exactly the files of the set.
      - With V(absent), every file is put back as it was before the set first owned it, and the set is forgotten. It makes no
        difference whether somebody altered the file in the meantime. O(files) and O(validate) are then not looked at.
    type: str
    choices: [present, absent]
    default: present
  files:
    description:
      - All files of the set. One that an earlier run wrote and that is no longer listed is put back as it was before.
    type: list
    elements: dict
    default: []
    suboptions:
      path:
        description:
          - Where the file lies, absolute, without C(.) and C(..).
          - Directories above it that are missing are made with mode 0755. Refused if a directory or symbolic link above it
            belongs to, or can be changed by, anyone but root or the running user.
          - If a symbolic link lies at the path itself, the link is replaced, not what it points to.
        type: str
        required: true
      state:
        description: With V(absent), nothing may lie at the path. What was there is kept for the day the file leaves the set.
        type: str
        choices: [present, absent]
        default: present
      content:
        description: The whole text of the file, at most 16 MiB. Numbers and other types are refused, quote them.
        type: raw
      owner:
        description: Name of the owner, who must exist, or a number.
        type: str
        default: root
      group:
        description: Name of the group, which must exist, or a number.
        type: str
        default: root
      mode:
        description: Quoted octal permissions. Set-id, sticky and world-writable modes are refused.
        type: raw
        default: "0644"
      secret:
        description:
          - Keeps the content out of diff, results and log. If a set has a secret file, the output of a failed command is
            withheld as well, for it might quote the file.
        type: bool
        default: false
  validate:
    description:
      - Commands that must succeed before any file is swapped in; only run if something is to be changed.
      - V(%(root\)s) stands for the staging root, in which each file of the set lies under its full path, with its owner and mode.
        The staging root lies within O(state_dir), in check mode within Ansible's temporary directory; a program confined
        by AppArmor or SELinux may be unable to read there.
      - As everywhere here, a command is split into words as a shell would, but no shell runs.
      - In check mode a validator that is not installed (yet) is passed over with a warning.
    type: list
    elements: str
    default: []
  check:
    description: Commands that must succeed after the swap, on the live system. Not run in check mode.
    type: list
    elements: str
    default: []
  activate:
    description:
      - Commands that make a change effective, run after the checks and only if something was changed. Not run in check mode.
      - If one fails, the files are put back and the commands are run again, so that the old configuration is in effect.
        Should even that fail, the next run of the set activates again, and reports a change, even if no file changes.
    type: list
    elements: str
    default: []
  timeout:
    description: Seconds that each command may take, 1 to 3600.
    type: int
    default: 60
  lock_timeout:
    description: Seconds to wait for another run of this module on the host, 0 to 3600.
    type: int
    default: 120
  state_dir:
    description: Directory of the records, one file a set. It is made with mode 0700.
    type: path
    default: /var/lib/bulwark/config_set
attributes:
  check_mode:
    description: Plans and validates, changes nothing, and returns what the real run would return.
    support: full
  diff_mode:
    description: Lists content and attributes before and after for every file that changes.
    support: full
notes:
  - A file with several hard links is replaced under the given name only; the other names keep the old content.
  - A file that is itself a mount point, as F(/etc/hosts) in some containers, cannot be replaced atomically, and the run fails.
seealso:
  - module: ansible.builtin.copy
  - module: ansible.builtin.template
"""

EXAMPLES = r"""
- name: End idle sessions over ssh and in login shells, both or neither
  bulwark.hardening.config_set:
    name: session
    files:
      - path: /etc/ssh/sshd_config.d/00-session.conf
        content: |
          ClientAliveInterval 0
          ChannelTimeout session=30m
      - path: /etc/profile.d/zz-session.sh
        content: |
          readonly TMOUT=1800
      - path: /etc/profile.d/old-timeout.sh
        state: absent
    validate:
      - sshd -t -f %(root)s/etc/ssh/sshd_config.d/00-session.conf
    check:
      - sshd -t
    activate:
      - systemctl try-reload-or-restart ssh.service

- name: Keep a key out of diff, results and log
  bulwark.hardening.config_set:
    name: time_keys
    files:
      - path: /etc/chrony/chrony.keys
        content: "{{ time_keys }}"
        group: _chrony
        mode: "0640"
        secret: true

- name: Put everything back as it was before
  bulwark.hardening.config_set:
    name: session
    state: absent
    activate:
      - systemctl try-reload-or-restart ssh.service
"""

RETURN = r"""
files:
  description: The paths that changed, sorted. A wanted path as it was given, any other with symbolic links resolved.
  type: list
  elements: str
  returned: always
  sample: [/etc/profile.d/zz-session.sh, /etc/ssh/sshd_config.d/00-session.conf]
removed:
  description: Those of RV(files) at which nothing lies any more.
  type: list
  elements: str
  returned: always
  sample: [/etc/profile.d/old-timeout.sh]
recovered:
  description: Whether an earlier run had been killed and was undone first. In check mode, whether it would be.
  type: bool
  returned: always
  sample: false
rolled_back:
  description: Whether every file is again as it was before this run.
  type: bool
  returned: when a run failed after files had been changed
  sample: true
command:
  description: The command that failed, as it was given.
  type: str
  returned: when a command failed
  sample: sshd -t
output:
  description: What the failed command printed, its last 4000 characters, both streams.
  type: str
  returned: when a command failed and the set has no secret file
  sample: "/etc/ssh/sshd_config.d/00-session.conf: line 2: Bad configuration option: ChanelTimeout"
"""

import grp
import os
import pwd
import shutil
import signal
import tempfile

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.bulwark.hardening.plugins.module_utils import config_set as core
from ansible_collections.bulwark.hardening.plugins.module_utils.config_set import Failed, Refused

SECRET = "(secret)"


class Interrupted(Exception):
    """The run was asked to end by a signal."""


# --- the wish ---------------------------------------------------------------------------------------------------------


def number(kind: str, name: str, path: str, tolerate: bool, module: AnsibleModule) -> int | None:
    """Return the uid or gid (C(kind) is owner or group) of a name or number.

    Unknown ones are refused; with C(tolerate) (check mode, where a package that brings the account may be yet to come)
    they are None, with a warning.
    """
    try:
        return pwd.getpwnam(name).pw_uid if kind == "owner" else grp.getgrnam(name).gr_gid
    except KeyError:
        pass
    if name.isascii() and name.isdigit() and int(name) < 2**32 - 1:
        return int(name)
    if tolerate:
        module.warn(f"{path}: {kind} {name!r} does not exist; taken for one that comes before the real run")
        return None
    raise Refused(f"{path}: {kind} = {name!r}: does not exist on this host")


def read_wish(module: AnsibleModule) -> list[dict]:
    """Return the wanted files as {"given": path, "entry": entry, "secret": bool}; refuse what is wrong by itself."""
    wishes = []
    for index, item in enumerate(module.params["files"]):
        path = item["path"]
        core.check_path(path, f"files[{index}].path")
        if item["state"] == "absent":
            if item["content"] is not None:
                raise Refused(f"{path}: content makes no sense with state absent")
            wishes.append({"given": path, "entry": dict(core.ABSENT), "secret": item["secret"]})
            continue
        if item["content"] is None:
            raise Refused(f"{path}: content is missing")
        content = core.check_content(item["content"], path)
        mode = core.check_mode(item["mode"], path)
        uid = number("owner", item["owner"], path, module.check_mode, module)
        gid = number("group", item["group"], path, module.check_mode, module)
        entry = core.file_entry(content, mode, uid, gid)
        wishes.append({"given": path, "entry": entry, "secret": item["secret"]})
    return wishes


def settle(wishes: list[dict], records: dict, name: str, state_dir: str) -> dict:
    """Return the wishes by resolved path; refuse those at odds with each other, other sets, or the state directory."""
    wanted = {}
    for wish in wishes:
        path = core.resolve(wish["given"])
        if core.inside(path, state_dir) or core.inside(state_dir, path):
            raise Refused(f"{wish['given']}: lies in or above the state directory {state_dir}")
        if path in wanted:
            raise Refused(f"{wish['given']}: is listed twice (also as {wanted[path]['given']})")
        wanted[path] = wish
        for other, record in records.items():
            if other != name and path in record["files"]:
                raise Refused(f"{wish['given']}: already belongs to the set {other!r}")
    for path in wanted:
        for parent in core.parents(path):
            if parent in wanted:
                raise Refused(f"{wanted[path]['given']}: lies below {wanted[parent]['given']}, which is a file of this set")
    return wanted


# --- the transaction --------------------------------------------------------------------------------------------------


class Transaction:
    """One run: from the lock to the result."""

    def __init__(self, module: AnsibleModule) -> None:
        self.module = module
        self.name = module.params["name"]
        self.keep = module.params["state"] == "present"
        self.timeout = module.params["timeout"]
        self.outcome = {"changed": False, "files": [], "removed": [], "recovered": False}
        if module._diff:
            self.outcome["diff"] = []
        self.store = core.Store(module.params["state_dir"])
        self.secret = False

    def run(self) -> None:
        """Do it all; Refused, Failed or OSError if it cannot be done."""
        params, check_mode = self.module.params, self.module.check_mode
        core.check_name(self.name)
        for option, most, least in (("timeout", 3600, 1), ("lock_timeout", 3600, 0)):
            if not least <= params[option] <= most:
                raise Refused(f"{option} = {params[option]}: must be {least} to {most} seconds")
        core.check_path(params["state_dir"], "state_dir")
        for option in ("validate", "check", "activate"):
            for command in params[option]:
                core.split(command, option)
        wishes = read_wish(self.module) if self.keep else []
        self.store.directory = core.resolve(params["state_dir"])
        if core.snapshot(self.store.directory)["type"] not in ("absent", "directory"):
            raise Refused(f"state_dir = {params['state_dir']!r}: is not a directory")
        core.resolve(os.path.join(self.store.directory, "x"))  # nor may it belong to others, or be writable by them

        locked = self.store.open(create=False, patience=params["lock_timeout"])
        if not locked and not check_mode:
            if not self.keep and not self.store.load():
                return  # there never was such a set
            self.survey(wishes)  # what is to be refused is refused before even the state directory is made
            self.store.open(create=True, patience=params["lock_timeout"])

        if not check_mode:
            self.store.tidy()
        records = self.store.load()
        open_journals = {name: record for name, record in records.items() if record["journal"]}
        killed = records[self.name]["journal"] if self.name in open_journals else {"before": [], "secret": False}
        undone = {path: (core.snapshot(path), before, killed["secret"]) for path, before in killed["before"]}
        for name, record in open_journals.items():
            self.outcome.update(recovered=True, changed=True)
            self.module.warn(f"an earlier run of the set {name} was killed; it is undone first")
            if not check_mode:
                for problem in self.undo(record):
                    self.module.warn(problem)

        record, wanted, steps, after = self.survey(wishes)
        self.secret = any(owned["secret"] for owned in [*record["files"].values(), *after["files"].values()])
        self.report(record, wanted, steps, undone)
        if steps or record["owed"]:
            self.outcome["changed"] = True
            if self.keep and params["validate"] and steps:
                self.validate(wanted)
            if not check_mode:
                self.commit(record, steps, after)
        elif not check_mode and after != record:
            self.store.save(after)

    def survey(self, wishes: list[dict]) -> tuple[dict, dict, list, dict]:
        """Return (record, wanted, steps, record afterwards), as if open journals had been undone."""
        records = self.store.load()
        record = records.get(self.name) or core.new_record(self.name)
        wanted = settle(wishes, records, self.name, self.store.directory)
        # A directory may have become a link to where its files are now. And nobody may redirect these either.
        record["files"] = {core.resolve(path): owned for path, owned in record["files"].items()}
        record["directories"] = sorted({core.resolve(path) for path in record["directories"]})
        view = core.View([other["journal"] for other in records.values() if other["journal"]])
        others_made = {path for name in records if name != self.name for path in records[name]["directories"]}
        steps, after = core.make_plan(view, record, wanted, others_made, self.keep)
        return record, wanted, steps, after

    def report(self, record: dict, wanted: dict, steps: list, undone: dict) -> None:
        """Fill in what changes, from what lay there when the run started to what will lie there at its end.

        C(undone) is {path: (entry at the start, entry after recovery, whether secret)} of what a killed run had touched.
        """

        def owner(uid: int | None) -> str:
            try:
                return pwd.getpwuid(uid).pw_name
            except (KeyError, TypeError):
                return "(does not exist yet)" if uid is None else str(uid)

        def group(gid: int | None) -> str:
            try:
                return grp.getgrgid(gid).gr_name
            except (KeyError, TypeError):
                return "(does not exist yet)" if gid is None else str(gid)

        changes = {path: (before, after) for path, (before, after, _secret) in undone.items()}
        for path, before, after in steps:
            changes[path] = (undone[path][0] if path in undone else before, after)
        for path in sorted(changes):
            before, after = changes[path]
            if core.same(before, after):
                continue
            given = wanted[path]["given"] if path in wanted else path
            secret = any(place.get(path, {}).get("secret", False) for place in (record["files"], wanted))
            secret = secret or (path in undone and undone[path][2])
            if self.module._diff:
                self.outcome["diff"] += core.difference(given, before, after, secret, owner, group)
            self.outcome["changed"] = True
            if "directory" in (before["type"], after["type"]):
                continue
            self.outcome["files"].append(given)
            if after["type"] == "absent":
                self.outcome["removed"].append(given)
        self.outcome["files"].sort()
        self.outcome["removed"].sort()

    def validate(self, wanted: dict) -> None:
        """Lay the wanted files out in a staging root and run the validators on it."""
        if self.module.check_mode:
            root = tempfile.mkdtemp(prefix="config_set-", dir=self.module.tmpdir)
        else:
            root = self.store.staging(self.name)
            os.mkdir(root, 0o700)
        try:
            for wish in wanted.values():
                if wish["entry"]["type"] == "absent":
                    continue
                place = root + wish["given"]
                os.makedirs(os.path.dirname(place), mode=0o755, exist_ok=True)
                core.write(place, wish["entry"])
            for command in self.module.params["validate"]:
                program = core.split(command, "validate")[0].replace("%(root)s", root)
                if self.module.check_mode and core.find(program) is None:
                    self.module.warn(f"set {self.name}: {program} is not installed yet, {command!r} was not run")
                    continue
                core.run(command, "validate", self.timeout, self.outcome["files"], self.secret, root)
        finally:
            shutil.rmtree(root, ignore_errors=True)

    def label(self, path: str, final: str) -> None:
        """Give a new file the security context of the one it replaces, or else the default of its place."""
        if not self.module.selinux_enabled():
            return
        exists = os.path.lexists(final) and path != final
        context = self.module.selinux_context(final) if exists else self.module.selinux_default_context(final)
        self.module.set_context_if_different(path, context, False)

    def commit(self, record: dict, steps: list, after: dict) -> None:
        """Take the steps, check, activate, and remember; or go back."""
        params = self.module.params
        commands = params["activate"] or record["owed"]
        targets = {path for path, _before, entry in steps if entry["type"] == "file"}
        for option, listed in (("check", params["check"]), ("activate", commands)):
            for command in listed:  # better now than with the files half-way
                program = core.split(command, option)[0]
                if core.find(program) is None and program not in targets:
                    raise Failed(f"{option} command {command!r}: {program} is not installed", command=command)
        journal = {"before": [[path, before] for path, before, _after in steps], "activate": commands}
        record["journal"] = {**journal, "activating": False, "secret": self.secret}
        self.store.save(record)
        try:
            for path, _before, entry in steps:
                try:
                    core.put(path, entry, self.label)
                except OSError as exc:
                    raise Failed(f"{path}: {exc.strerror}") from exc
            for command in params["check"]:
                core.run(command, "check", self.timeout, self.outcome["files"], self.secret)
            if commands:
                record["journal"]["activating"] = True
                self.store.save(record)
                option = "activate" if params["activate"] else "owed (give activate to replace it)"
                for command in commands:
                    core.run(command, option, self.timeout, self.outcome["files"], self.secret)
            self.store.save(after)
        except Exception as exc:
            for signum in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
                # The way back is not left half-way. Not SIG_IGN, which the commands would inherit.
                signal.signal(signum, lambda _signum, _frame: None)
            try:
                problems = self.undo(record)
            except Exception as second:
                message = f"{exc}; and putting the files back failed, the next run tries again: {second}"
                raise Failed(message, **getattr(exc, "facts", {}), rolled_back=False) from exc
            more = "".join(f"; {problem}" for problem in problems)
            message = f"{exc}; every file has been put back{more}"
            raise Failed(message, **getattr(exc, "facts", {}), rolled_back=True) from exc

    def undo(self, record: dict) -> list[str]:
        """Go back to before the record's open journal; return what could not be had but is no torn file.

        Goes on past a path that cannot be put back, then fails, and leaves the journal for the next run.
        """
        journal, problems, fatal = record["journal"], [], []
        for path, before in reversed(journal["before"]):
            try:
                core.discard(core.temporary(path))
                if before["type"] == "directory" or not core.same(core.snapshot(path), before):
                    core.put(path, before)
            except OSError as exc:
                if before["type"] == "absent" and os.path.isdir(path):
                    problems.append(f"the directory {path} stays, for it is not empty")
                else:
                    fatal.append(f"{path}: {exc.strerror}")
            except Refused as exc:
                fatal.append(str(exc))
        if fatal:
            raise Failed("; ".join(fatal))
        record["journal"] = None
        if journal["activating"]:
            record["owed"] = journal["activate"]
        self.store.save(record)
        if journal["activating"]:
            try:
                concerned = sorted(path for path, _before in journal["before"])
                for command in journal["activate"]:
                    core.run(command, "activate", self.timeout, concerned, journal["secret"])
            except Failed as exc:
                problems.append(f"activating what was put back failed too: {exc}")
            else:
                record["owed"] = []
                self.store.save(record)
        return problems


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "name": {"type": "str", "required": True},
            "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
            "files": {
                "type": "list",
                "elements": "dict",
                "default": [],
                "no_log": True,  # whatever goes wrong while options are read, no content gets out; lifted below
                "options": {
                    "path": {"type": "str", "required": True},
                    "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
                    "content": {"type": "raw"},
                    "owner": {"type": "str", "default": "root"},
                    "group": {"type": "str", "default": "root"},
                    "mode": {"type": "raw", "default": "0644"},
                    "secret": {"type": "bool", "default": False},
                },
            },
            "validate": {"type": "list", "elements": "str", "default": []},
            "check": {"type": "list", "elements": "str", "default": []},
            "activate": {"type": "list", "elements": "str", "default": []},
            "timeout": {"type": "int", "default": 60},
            "lock_timeout": {"type": "int", "default": 120},
            "state_dir": {"type": "path", "default": "/var/lib/bulwark/config_set"},
        },
        supports_check_mode=True,
    )
    # From here on only secret contents are hidden; masking every word of the options would make results unreadable.
    module.no_log_values.clear()

    def interrupted(signum: int, _frame: object) -> None:
        raise Interrupted(f"ended by signal {signum}")

    for signum in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        signal.signal(signum, interrupted)

    transaction = Transaction(module)
    try:
        transaction.run()
    except Failed as exc:
        facts, message = exc.facts, f"set {transaction.name}: {exc}"
        if "rolled_back" not in facts:
            message += "; no file was changed"
    except (Refused, Interrupted, OSError) as exc:
        facts, message = {}, f"set {transaction.name}: {exc}; no file was changed"
    else:
        facts, message = {}, ""
    finally:
        transaction.store.close()
    for item in module.params["files"]:
        if item["secret"] and item["content"] is not None:
            item["content"] = SECRET  # the result repeats the options
    if message:
        if transaction.outcome["recovered"]:
            message += "; before that, what a killed run had begun was undone"
        changed = transaction.outcome["recovered"] or facts.get("rolled_back") is False
        recovered = transaction.outcome["recovered"]
        module.fail_json(msg=message, changed=changed, files=[], removed=[], recovered=recovered, **facts)
    module.exit_json(**transaction.outcome)


if __name__ == "__main__":
    main()
