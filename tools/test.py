#!/usr/bin/env python3
"""Run the test stages three at a time, show how it goes, and end with one table: tools/test.py all|check|STAGE... [--list]

Three even on two cores, for stages wait more than they work; those that do work go in two rows.
Every stage runs, whatever the others did. Its output goes to .cache/logs/<stage>.log; the end of a failed one is shown.
Standard library only.
"""

from __future__ import annotations

import argparse
import concurrent.futures as cf
import dataclasses
import fcntl
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LOGS = ROOT / ".cache" / "logs"
BEAT = 30  # seconds between two signs of life
LIMIT = 60 * 60  # seconds after which a stage counts as hung; the longest takes half of it beside two others
# Stages that go one after the other: those that keep all processors busy, and those with guests of which mostly one works.
ROWS = (
    ("trail", "lab", "devices media", "molecule audit_log", "molecule audit_log both", "devices both"),
    ("devices encryption", "antivirus", "devices usb", "clock", "antivirus both"),
)
# The scenario in guests takes the newer release; the older one records as much in stage trail.
TURNS = {"audit_log": ("env", "BULWARK_PLATFORMS=debian13")}
TAIL = 60  # lines of a failed stage that are shown
TELLING = re.compile(r"^(FAILED|ERROR|E  |fatal:|\[ERROR\]| +fail_msg:| +msg:)|^\S+:\d+:(\d+:)? |Error: ")


@dataclasses.dataclass
class Stage:
    """One row of the table: a command, and what became of it."""

    name: str
    argv: list[str]
    started: float = 0.0
    seconds: float = 0.0
    outcome: str = "waiting"
    ended: str = ""
    process: subprocess.Popen | None = None

    @property
    def log(self) -> Path:
        """Where its output goes."""
        return LOGS / f"{self.name.replace(' ', '-')}.log"


def shell_scripts() -> list[str]:
    """Return the tracked files that are shell scripts, by their first line; templates are none before they are filled in."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    files = [name for name in listed.split("\0") if name and not name.endswith(".j2") and (ROOT / name).is_file()]
    return [name for name in files if (ROOT / name).open("rb").readline().startswith((b"#!/bin/sh", b"#!/bin/bash"))]


def lint_stages() -> list[Stage]:
    """Return the stages that need neither a host nor the network."""
    documentation = ["antsibull-docs", "lint-collection-docs", "--plugin-docs", "--skip-rstcheck"]
    return [
        Stage("unit", ["pytest", "-q", "tests/unit"]),
        Stage("lint ansible", ["ansible-lint", "--offline", "-q"]),
        Stage("lint yaml", ["yamllint", "."]),
        Stage("lint python", ["ruff", "check", "."]),
        Stage("lint shell", ["shellcheck", *shell_scripts()]),
        Stage("lint changelog", ["antsibull-changelog", "lint"]),
        Stage("lint docs", [*documentation, "--validate-collection-refs", "self", "."]),
        Stage("lint policy", ["python", "tools/policy.py", "lint"]),
        Stage("generated docs", ["python", "tools/docs.py", "--check"]),
        *(
            # Only the play that refuses wrong input: no host is contacted.
            Stage(f"inventory {name}", ["ansible-playbook", "-i", f"inventories/{name}", "--tags=always", "playbooks/site.yml"])
            for name in ("example", "lab")
        ),
    ]


def host_stages() -> list[Stage]:
    """Return the stages that take minutes, the longest first: hosts, browsers, the built artefact."""
    longest = ("audit_log", "vpn_gateway", "firewall", "duo", "backup", "antivirus", "backup_repository")
    scenarios = [path.parent.name for path in ROOT.glob("molecule/*/molecule.yml")]
    scenarios.sort(key=lambda name: (name not in longest, name))
    guard = "tests/faults/test_change_guard.py"
    return [
        Stage("trail", ["pytest", "-q", "tests/trail"]),
        Stage("clock", ["pytest", "-q", "tests/clock"]),
        *(Stage(f"devices {kind}", ["pytest", "-q", f"tests/devices/test_{kind}.py"]) for kind in ("encryption", "media", "usb")),
        Stage("antivirus", ["pytest", "-q", "tests/antivirus"]),
        Stage("lab", ["pytest", "-q", *(f"tests/lab/test_{part}.py" for part in ("lab", "collector", "copies", "access"))]),
        Stage("guard", ["pytest", "-q", guard]),
        *(Stage(f"molecule {name}", [*TURNS.get(name, ()), "molecule", "test", "-s", name]) for name in scenarios),
        Stage("core 2.21", ["pytest", "-q", "tests/lab/test_core_2_21.py"]),
        Stage("installed", ["pytest", "-q", "tests/lab/test_installed.py"]),
        Stage("sanity", ["tools/sanity.sh", "sanity"]),
        Stage("faults", ["pytest", "-q", "tests/faults", f"--ignore={guard}"]),
        Stage("browser", ["pytest", "-q", "tests/browser"]),
    ]


def later_stages() -> list[Stage]:
    """Return the stages that run only when named: what every run tries on one of two releases by turns, on both."""
    return [
        Stage("molecule audit_log both", ["molecule", "test", "-s", "audit_log"]),
        *(
            Stage(f"{name} both", ["env", "BULWARK_RELEASES=both", "pytest", "-q", f"tests/{name}"])
            for name in ("devices", "antivirus")
        ),
    ]


def environment() -> dict[str, str]:
    """Return the environment of every stage: this clone's tools first, plain output."""
    return {
        **os.environ,
        "PATH": f"{ROOT / '.venv' / 'bin'}:{os.environ['PATH']}",
        "ANSIBLE_NOCOLOR": "1",
        "NO_COLOR": "1",
        "PY_COLORS": "0",
        "PYTHONUNBUFFERED": "1",
        "MOLECULE_GLOB": "molecule/*/molecule.yml",
    }


def run(stage: Stage, say) -> None:
    """Run one stage to its end, or to the limit."""
    stage.started = time.monotonic()
    stage.outcome = "running"
    say(f"start   {stage.name}")
    try:
        with stage.log.open("wb") as log:
            stage.process = subprocess.Popen(
                stage.argv, cwd=ROOT, env=environment(), stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
            try:
                code = stage.process.wait(LIMIT)
            except subprocess.TimeoutExpired:
                os.killpg(stage.process.pid, signal.SIGTERM)
                stage.process.wait()
                code = f"no end after {LIMIT} s"
    except OSError as exc:
        stage.log.write_text(f"{exc}\n")
        code = str(exc)
    stage.ended = f"exit {code}" if isinstance(code, int) else code
    stage.seconds = time.monotonic() - stage.started
    stage.outcome = "ok" if code == 0 else "FAILED"
    say(f"{stage.outcome:7} {stage.name} ({stage.seconds:.0f} s)")
    if code != 0:
        lines = stage.log.read_text(errors="replace").splitlines()
        say(f"{stage.name}: {stage.ended}; the last lines of {stage.log.relative_to(ROOT)}:")
        print("\n".join(f"    {line}" for line in lines[-TAIL:]), flush=True)


def telling(lines: list[str]) -> list[str]:
    """Return the few lines of a failed stage's output that most likely say why, or its last ones; each cut to 300 characters."""
    return [line[:300] for line in [line for line in lines if TELLING.search(line)][-8:] or lines[-3:]]


def main() -> int:
    """Run the stages asked for; return 0 when all are well."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stages", nargs="+", metavar="STAGE", help="all, check (no host needed), or names of stages")
    parser.add_argument("--workers", type=int, default=3)
    parser.add_argument("--list", action="store_true", help="only name the stages")
    args = parser.parse_args()
    every = [*host_stages(), *lint_stages()]
    known = {stage.name: [stage] for stage in [*every, *later_stages()]} | {"all": every, "check": lint_stages()}
    if unknown := sorted(set(args.stages) - set(known)):
        parser.error(f"unknown: {', '.join(unknown)}; known: {', '.join(known)}")
    stages = [stage for name in args.stages for stage in known[name]]
    if args.list:
        print("\n".join(stage.name for stage in stages))
        return 0

    # Test machines have fixed names and addresses, so a second run on this machine waits for the first to end.
    machines = Path("/tmp/bulwark-test.lock").open("w")  # noqa: SIM115 # held until the program ends
    try:
        fcntl.flock(machines, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        print("another run of the tests is using this machine; waiting for its end", flush=True)
        fcntl.flock(machines, fcntl.LOCK_EX)

    begin = time.monotonic()
    lock = threading.Lock()
    LOGS.mkdir(parents=True, exist_ok=True)

    def say(text: str) -> None:
        with lock:
            print(f"[{time.monotonic() - begin:4.0f} s] {text}", flush=True)

    rows = [[stage for stage in stages if stage.name in row] for row in ROWS]
    chains = [row for row in rows if row] + [[stage] for stage in stages if not any(stage in row for row in rows)]
    with cf.ThreadPoolExecutor(args.workers) as pool:
        waiting = {pool.submit(lambda chain: [run(stage, say) for stage in chain], chain) for chain in chains}
        try:
            while waiting:
                done, waiting = cf.wait(waiting, BEAT, return_when=cf.FIRST_COMPLETED)
                for future in done:
                    future.result()
                if not done:
                    busy = [f"{s.name} {time.monotonic() - s.started:.0f} s" for s in stages if s.outcome == "running"]
                    left = sum(s.outcome == "waiting" for s in stages)
                    say(f"…       {', '.join(busy)}; {left} to come")
        except KeyboardInterrupt:
            pool.shutdown(wait=False, cancel_futures=True)
            for stage in stages:
                if stage.outcome == "running" and stage.process:
                    os.killpg(stage.process.pid, signal.SIGTERM)
            raise

    width = max(len(stage.name) for stage in stages)
    print("\n".join(["", *(f"{s.name:{width}}  {s.outcome:6}  {s.seconds:5.0f} s" for s in stages)]))
    failed = [stage.name for stage in stages if stage.outcome != "ok"]
    total = time.monotonic() - begin
    print(f"\n{len(stages) - len(failed)} of {len(stages)} stages ok, {total / 60:.1f} minutes")
    if failed:  # once more and last, for those who only see the end of a log
        for stage in stages:
            if stage.outcome != "ok":
                lines = stage.log.read_text(errors="replace").splitlines()
                print(f"\n{stage.name}: {stage.ended}", *telling(lines), sep="\n    ")
        print(f"failed: {', '.join(failed)}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
