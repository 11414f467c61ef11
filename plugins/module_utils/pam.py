# Copyright: (c) 2026, Bulwark contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Work out what a PAM stack can be brought to say. Pure but for the reader of files that is handed in.

A stack is walked as Linux-PAM walks it (pam.conf(5)), with every outcome that each module may have. So the question "can this
service say yes although Duo said no?" is answered by trying all ways, not by looking for a line that should be there: a
C(sufficient) above it, a jump across it or a service file of its own are all found.
"""

from __future__ import annotations

import fnmatch
import os
import re
from collections.abc import Callable, Iterable
from typing import NamedTuple

GUARD = "/usr/local/lib/bulwark/duo_config_check"
CONFIG = "/etc/bulwark/pam_duo.conf"
DIRECTORIES = ("/etc/pam.d", "/usr/lib/pam.d")  # in the order in which PAM looks

WORDS = {
    "required": {"success": "ok", "new_authtok_reqd": "ok", "ignore": "ignore", "default": "bad"},
    "requisite": {"success": "ok", "new_authtok_reqd": "ok", "ignore": "ignore", "default": "die"},
    "sufficient": {"success": "done", "new_authtok_reqd": "done", "default": "ignore"},
    "optional": {"success": "ok", "new_authtok_reqd": "ok", "default": "ignore"},
}
FAILURES = frozenset({"auth_err", "abort", "service_err", "system_err", "user_unknown", "module_unknown", "maxtries"})
UNDECIDED, YES, NO = "undecided", "yes", "no"


class CannotFollow(Exception):
    """A stack that cannot be followed: a file is missing, a line cannot be read, or files include each other for ever."""


class Module(NamedTuple):
    """One line of a stack; C(below) holds the lines of a substack."""

    control: dict
    name: str
    arguments: tuple
    below: tuple = ()


class World(NamedTuple):
    """What the guard and Duo say in a case that is looked at."""

    guard: frozenset
    duo: frozenset


SAYS_NO = World(frozenset({"success"}), FAILURES)  # the configuration is sound, Duo refuses or cannot be asked
UNSOUND = World(FAILURES, FAILURES | {"success"})  # the configuration is not sound: pam_duo may then well say yes
SAYS_YES = World(frozenset({"success"}), frozenset({"success"}))


# --- reading ----------------------------------------------------------------------------------------------------------


def lines_of(text: str) -> list[list[str]]:
    """Return the words of each line, comments gone, lines that end in a backslash joined; [..] is one word."""
    found = []
    for line in text.replace("\\\n", " ").splitlines():
        words = re.findall(r"\[[^\]]*\]|\S+", line.split("#", 1)[0])
        if words:
            found.append(words)
    return found


def control_of(word: str) -> dict:
    """Return {outcome: action} of a control, e.g. C(required) or C([success=ok default=die]). Raises CannotFollow."""
    if not word.startswith("["):
        if word.lower() not in WORDS:
            raise CannotFollow(f"unknown control {word}")
        return WORDS[word.lower()]
    pairs = [part.partition("=") for part in word.strip("[]").split()]
    return {outcome: action for outcome, _equals, action in pairs}


def stack_of(service: str, kind: str, read: Callable[[str], str | None], depth: int = 0) -> list[Module]:
    """Return a service's modules of one kind (C(auth), …), what it includes filled in. Raises CannotFollow.

    ``read`` returns the text of a service's file by name, or None when there is none.
    """
    if depth > 32:
        raise CannotFollow(f"{service}: files include each other")
    text = read(service)
    if text is None:
        raise CannotFollow(f"{service}: no such file")
    found: list[Module] = []
    for words in lines_of(text):
        if words[0] == "@include" and len(words) > 1:
            found += stack_of(words[1], kind, read, depth + 1)
            continue
        if words[0].lstrip("-").lower() != kind:
            continue
        if len(words) < 3:
            raise CannotFollow(f"{service}: {' '.join(words)}")
        if words[1].lower() == "include":
            found += stack_of(words[2], kind, read, depth + 1)
        elif words[1].lower() == "substack":
            found.append(Module({}, words[2], (), tuple(stack_of(words[2], kind, read, depth + 1))))
        else:
            found.append(Module(control_of(words[1]), os.path.basename(words[2]), tuple(words[3:])))
    return found


# --- walking ----------------------------------------------------------------------------------------------------------


def outcomes(module: Module, service: str, world: World) -> frozenset:
    """Return everything a module may say to somebody who is not root."""
    if module.name == "pam_permit.so":
        return frozenset({"success"})
    if module.name in ("pam_deny.so", "pam_rootok.so"):
        return frozenset({"auth_err"})
    if module.name == "pam_duo.so" and f"conf={CONFIG}" in module.arguments:
        return world.duo
    if module.name == "pam_exec.so" and GUARD in module.arguments:
        return world.guard
    if module.name == "pam_succeed_if.so":
        return succeeds_if(module.arguments, service)
    return frozenset({"success", "auth_err", "ignore"} | (set(module.control) - {"default"}))


def succeeds_if(arguments: Iterable[str], service: str) -> frozenset:
    """Return what pam_succeed_if may say: conditions about the service are known, all others may hold or not."""
    flags = ("debug", "use_uid", "audit")
    words = [word for word in arguments if word not in flags and not word.startswith("quiet")]
    unknown = len(words) % 3 != 0 or not words
    for field, test, value in zip(words[::3], words[1::3], words[2::3]):
        if field != "service" or test not in TESTS:
            unknown = True
        elif not TESTS[test](service, value):
            return frozenset({"auth_err"})
    return frozenset({"success", "auth_err"} if unknown else {"success"})


TESTS = {
    "=": lambda service, value: service == value,
    "!=": lambda service, value: service != value,
    "=~": fnmatch.fnmatchcase,
    "!~": lambda service, value: not fnmatch.fnmatchcase(service, value),
    "in": lambda service, value: service in value.split(":"),
    "notin": lambda service, value: service not in value.split(":"),
}


def way_through(stack: Iterable[Module], service: str, world: World) -> list[str] | None:
    """Return one way in which a stack says yes, C(["pam_unix.so: success", …]), or None when there is none."""
    ends = walk(tuple(stack), service, world, UNDECIDED)
    return next((way for impression, way in ends.items() if impression == YES), None)


def walk(stack: tuple, service: str, world: World, impression: str) -> dict[str, list[str]]:
    """Return every impression with which a stack may end, with one way to it."""
    ends: dict[str, list[str]] = {}
    seen = set()
    waiting: list[tuple[int, str, list[str]]] = [(0, impression, [])]
    while waiting:
        here, now, way = waiting.pop()
        if here >= len(stack):
            # a jump beyond the last module is an error, and PAM then refuses
            ends.setdefault(now if here == len(stack) else NO, way)
            continue
        if (here, now) in seen:
            continue
        seen.add((here, now))
        module = stack[here]
        if module.below:
            for then, steps in walk(module.below, service, world, now).items():
                waiting.append((here + 1, then, way + steps))
            continue
        for outcome in sorted(outcomes(module, service, world)):
            action = module.control.get(outcome, module.control.get("default", "bad"))
            step = [*way, f"{module.name}: {outcome}"]
            # what lets somebody through with a failure (ok on auth_err) still ends as that failure
            good = YES if outcome in ("success", "new_authtok_reqd", "ignore") else NO
            if action.isdigit() and int(action):
                waiting.append((here + 1 + int(action), now, step))
            elif action in ("ok", "done"):
                then = good if now == UNDECIDED else now if now == NO else good
                if action == "done" and then == YES:
                    ends.setdefault(then, step)
                else:
                    waiting.append((here + 1, then, step))
            elif action == "die":
                ends.setdefault(NO, step)
            elif action == "bad":
                waiting.append((here + 1, NO, step))
            elif action == "reset":
                waiting.append((here + 1, UNDECIDED, step))
            else:
                waiting.append((here + 1, now, step))
    return ends


# --- pam-auth-update --------------------------------------------------------------------------------------------------

BEGIN = (
    '# here are the per-package modules (the "Primary" block)',
    '# and here are more per-package modules (the "Additional" block)',
)
END = ("# here's the fallback if no module succeeds", "# end of pam-auth-update config")


def profiles_of(saved: str) -> list[str]:
    """Return the profiles that pam-auth-update has switched on, from its record of one kind (/var/lib/pam/auth)."""
    return [line.split(": ", 1)[1] for line in saved.splitlines() if line.startswith("Module: ")]


def locally_modified(kind: str, current: str, saved: str) -> str:
    """Say why pam-auth-update would refuse to touch /etc/pam.d/common-<kind>; "" when it would not.

    It wants its four marks, and each line between them to be one that it wrote, in its order; options may have been added.
    ``saved`` is /var/lib/pam/<kind>.
    """
    inside, blocks, written = False, 0, []
    for line in current.splitlines():
        if blocks < 2 and not inside and line.startswith(BEGIN[blocks]):
            inside = True
        elif inside and line.startswith(END[blocks]):
            inside, blocks = False, blocks + 1
        elif inside:
            written.append(line)
    if blocks < 2:
        return "the marks between which pam-auth-update writes are gone"
    known = [_without_jumps(line) for line in saved.splitlines() if line and not line.startswith("Module: ")]
    for line in written:
        bare = _without_jumps(re.sub(rf"^{kind.split('-')[0]}\s+", "", line))
        while known:
            head = re.match(r"(\[[^\]]+\]|\w+)\s+\S+", known.pop(0))
            if head and bare.startswith(head.group(0)):
                break
        else:
            return f"a line that pam-auth-update did not write: {line.strip()}"
    return ""


def _without_jumps(line: str) -> str:
    """Return a line with the number of its jump taken out, which differs with what stands below."""
    return re.sub(r"(\[.*)\bend\b(.*\])", r"\1\2", re.sub(r"(\[[^0-9]*)[0-9]+(.*\])", r"\1\2", line))
