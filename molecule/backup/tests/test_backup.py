# Copyright: (c) 2026, Bulwark contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Lose everything and have it back: files to the last attribute, databases that answer, a whole host that serves again.

Each machine is its own repository. What attacks it has the host's own credential, for that is what an intruder on the host has.
"""

from __future__ import annotations

import json
import re
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
sys.path.insert(0, str(ROOT / "molecule" / "shared"))

import machines  # noqa: E402
from custodians import CUSTODIANS  # noqa: E402

AGENT, STATE, SECRETS = "/usr/local/lib/bulwark/backup_agent", "/var/lib/bulwark/backup", "/etc/bulwark/backup"
RECORDS, CANARY = "/srv/records", "canary-of-the-records-4b9c"
RESTIC = (
    f"restic --repository-file {SECRETS}/repository --password-file {SECRETS}/password --cacert {SECRETS}/ca.crt --no-cache -q"
)
# Everything that is to come back, with every attribute that a file can have here.
TREE = r"""
rm -rf /srv/records/* && cd /srv/records
mkdir -p deep/er empty 'with space' && chmod 2770 deep && chmod 1777 empty
seq 5000 >deep/er/numbers && head -c 300000 /dev/urandom >random && : >nothing
printf 'odd\n' >"$(printf 'new\nline')" && printf 'odd\n' >"$(printf 'latin-\344')" && printf 'odd\n' >'snow-☃'
ln -s ../nowhere dangling && ln random hard && mkfifo pipe
truncate -s 3M holes && printf x | dd of=holes bs=1 seek=2000000 conv=notrunc status=none
cp /bin/true suid && chown nobody suid && chmod 4755 suid && chown nosy:nogroup deep/er/numbers && chmod 0640 deep/er/numbers
setfacl -m u:nosy:rw,g:mail:r random && setfacl -d -m u:nosy:rwx deep && setfattr -n user.origin -v scanner nothing
setcap cap_net_raw=ep suid 2>/dev/null || true
touch -d '2019-03-01 12:34:56.789' nothing && touch -h -d '2018-01-01' dangling && touch -d '2020-02-02' empty
"""
LOOK = r"""
cd {place} && {{ find . ! -type l -printf '%p %y %m %U %G %s %T@\n' -o -printf '%p %U %G %l\n' | sort
find . -type f -print0 | sort -z | xargs -0 sha256sum
getfacl -R -n -p . && getfattr -R -h -d -m - --absolute-names .; }} | cat -v
"""
# Tidying up at the repository is killed in the middle, when its lock is there: whole, under its own name.
KILLED_PRUNE = r"""
locked() {{ ls {store}/locks | grep -qx '[0-9a-f]\{{64\}}'; }}
install -o bulwark-backup -m 0400 {key} /run/prune-key
for turn in $(seq 40); do
  setsid setpriv --reuid bulwark-backup --regid bulwark-backup --clear-groups \
    restic -r {store} --password-file /run/prune-key --no-cache prune >/dev/null 2>&1 & pid=$!
  for wait in $(seq 200); do ! locked || break; sleep 0.01; done
  kill -9 -- -$pid; wait $pid 2>/dev/null
  ! locked || break
done
rm /run/prune-key
"""
# Load the dump of clinic as it lies there.
TRY_DUMP = f"""
import importlib.machinery, importlib.util, os
loader = importlib.machinery.SourceFileLoader("agent", "{AGENT}")
agent = importlib.util.module_from_spec(importlib.util.spec_from_loader("agent", loader)); loader.exec_module(agent)
os.umask(0o077)
base = next(b for s in agent.load("{SECRETS}/settings.json")["sets"] for b in s["databases"] if b["name"] == "clinic")
os.makedirs("/var/lib/try-dump", exist_ok=True); os.chmod("/var/lib/try-dump", 0o711)
try: agent.ask(base, "{STATE}/dumps/clinic", "/var/lib/try-dump")
finally: agent.shutil.rmtree("/var/lib/try-dump")
"""
SNIFF = """
import socket, sys, time
line = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3)); line.settimeout(0.5)
line.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 24)
end = time.monotonic() + float(sys.argv[1])
with open("/root/wire", "wb", buffering=0) as out:
    while time.monotonic() < end:
        try: out.write(line.recv(70000))
        except TimeoutError: pass
"""


class Host:
    """The host, and what it says of its backups."""

    def __init__(self, host, target) -> None:
        self.host, self.target = host, target

    def run(self, name: str = "") -> None:
        """Back up now; fails with what the agent said."""
        self.host.check_output(f"{AGENT} run {f'--set {name}' if name else ''} 2>&1")

    def status(self) -> dict:
        """Return what the agent wrote down."""
        return json.loads(self.host.check_output(f"cat {STATE}/status.json"))

    def snapshots(self, name: str) -> list[str]:
        """Return the ids of a set's backups, oldest first."""
        found = json.loads(self.host.check_output(f"{RESTIC} --no-lock snapshots --json --tag set:{name}"))
        return [entry["id"] for entry in sorted(found, key=lambda entry: entry["time"])]

    def look(self, place: str = RECORDS) -> str:
        """Return what is there: names, types, modes, owners, sizes, times, contents, access control lists, attributes."""
        return self.host.check_output("bash -ec %s", LOOK.format(place=place))

    def edit(self, path: str, change: str) -> None:
        """Change a file of JSON; change is Python that alters d."""
        code = f"import json, time; p = {path!r}; d = json.load(open(p)); {change}; json.dump(d, open(p, 'w'), indent=1)"
        self.host.check_output("python3 -c %s", code)

    def sealed(self) -> str:
        """Return the command that shows the newest sealed key, as docs/backup.md has it."""
        place = f"/srv/backup/escrow/{self.target.name}"
        show = """python3 -c 'import json, sys; print(json.load(sys.stdin)["sealed"])'"""
        return f"cat {place}/$(ls -t {place} | head -n 1) | {show}"

    def test(self) -> dict:
        """Run the restore test; return its result."""
        self.host.run(f"{AGENT} restore-test")
        return self.status()["restore_test"]


@pytest.fixture(scope="module")
def backup(host, target):
    """The host with one backup of everything. Only the proofs decide when something happens, until they are done."""
    host.check_output("systemctl stop bulwark-backup.timer")
    made = Host(host, target)
    host.check_output(f"echo {CANARY} >{RECORDS}/canary")
    made.run()
    yield made
    host.check_output("systemctl start bulwark-backup.timer")


def test_every_generation_comes_back_as_it_was(host, backup):
    host.check_output("bash -ec %s", TREE)
    first = backup.look()
    assert "user:65534" not in first and "user.origin" in first and "default:user" in first, "else this proves little"
    backup.run("records")
    host.check_output(
        f"cd {RECORDS} && rm -r deep && echo more >>random && setfacl -b random && chmod 0600 nothing && mv suid moved"
    )
    second = backup.look()
    backup.run("records")
    ids = backup.snapshots("records")[-2:]
    host.check_output(f"find {RECORDS} -mindepth 1 -delete")
    for number, (snapshot, before) in enumerate(zip(ids, (first, second), strict=True)):
        place = f"/root/generation{number}"
        host.check_output(f"{RESTIC} restore {snapshot} --target {place}")
        assert backup.look(place + RECORDS) == before
    host.check_output(f"cp -a /root/generation1{RECORDS}/. {RECORDS}/")


def test_plaintext_is_neither_in_the_repository_nor_on_the_wire(host, backup):
    host.check_output(f"cat >/root/sniff.py <<'END_OF_FILE'\n{SNIFF}\nEND_OF_FILE")
    host.check_output("(python3 /root/sniff.py 10 >/dev/null 2>&1 &); sleep 0.5")
    host.check_output(f"for i in 1 2 3; do echo $i-{CANARY} >{RECORDS}/canary-$i; done")
    backup.run("records")
    host.check_output(f"curl -s -m 3 -H 'X-Seen: seen-{CANARY[:6]}' http://127.0.0.1:8080/ >/dev/null; sleep 8")
    wire = "grep -a -c -F -e {} /root/wire || true"
    assert int(host.check_output(wire.format(f"seen-{CANARY[:6]}"))) > 0, "the wire was really listened to"
    assert int(host.check_output("stat -c %s /root/wire")) > 3000
    assert host.check_output(wire.format(CANARY)) == "0"
    for secret in ("password", "access"):
        assert host.run(f"grep -a -q -F -f {SECRETS}/{secret} /root/wire").rc == 1
        assert host.run(f"grep -r -a -l -F -f {SECRETS}/{secret} /srv/backup /var/log /var/lib/bulwark").stdout == ""
    assert host.run(f"grep -r -a -l {CANARY} /srv/backup").stdout == ""
    assert CANARY in host.check_output(f"{RESTIC} --no-lock dump latest {RECORDS}/canary-1 --tag set:records")


def test_the_host_cannot_undo_its_backups(host, backup):
    before = backup.snapshots("records")
    store = f"/srv/backup/hosts/{backup.target.name}"
    listing = f"cd {store} && find . -type f -not -path './locks/*' | sort | xargs sha256sum"
    seen = host.check_output(listing)
    ask = f"curl -s -o /dev/null -w '%{{http_code}}' --cacert {SECRETS}/ca.crt -u {backup.target.name}:$(cat {SECRETS}/access)"
    url = f"https://{backup.target.address}:19633/{backup.target.name}"
    for kind in ("snapshots", "keys", "index", "data"):
        name = host.check_output(f"find {store}/{kind} -type f -printf '%f\\n' | head -n 1")
        assert host.check_output(f"{ask} -X DELETE {url}/{kind}/{name}") == "403"
        assert host.check_output(f"{ask} --data-binary evil {url}/{kind}/{name}") == "403"
    tried = host.run(f"timeout 6 {RESTIC} forget --keep-last 1 --prune 2>&1")  # what came of it, the repository's own disk says
    assert tried.rc == 124 or "403" in tried.stdout or "orbidden" in tried.stdout, tried.stdout
    host.run(f"{RESTIC} unlock --remove-all")
    after = set(host.check_output(listing).splitlines())
    assert set(seen.splitlines()) <= after and backup.snapshots("records") == before


def test_killed_again_and_again_it_stays_sound(host, backup):
    """Twenty times in the middle, at other moments, with something new to add each time."""
    host.check_output(f"head -c 3000000 /dev/urandom >{RECORDS}/large")
    kill = (
        f"for turn in $(seq 20); do head -c 400000 /dev/urandom >{RECORDS}/turn$turn; setsid {AGENT} run --set records & pid=$!; "
        "sleep $(awk -v t=$turn 'BEGIN { print 0.1 + t * 0.07 }'); kill -9 -- -$pid && echo $turn >>/root/hit; wait $pid; "
        "done >/dev/null 2>&1; true"
    )
    before = len(backup.snapshots("records"))
    host.check_output("rm -f /root/hit; bash -c %s", kill)
    done = len(backup.snapshots("records")) - before
    assert int(host.check_output("wc -l </root/hit")) > 5 and done < 20, "else nothing was killed in the middle"
    store = f"/srv/backup/hosts/{backup.target.name}"
    host.check_output(f"{RESTIC} unlock --remove-all")
    host.check_output("bash -c %s", KILLED_PRUNE.format(store=store, key=f"{SECRETS}/password"))
    assert host.run(f"ls {store}/locks").stdout, "a lock that keeps all others out was left, else this proves little"
    assert host.run(f"timeout 60 {RESTIC} backup /etc/hostname").rc != 0
    backup.run("records")
    host.check_output(f"{RESTIC} --no-lock check --read-data")
    place = "/root/after-kills"
    host.check_output(f"{RESTIC} restore {backup.snapshots('records')[-1]} --target {place}")
    assert backup.look(place + RECORDS) == backup.look()
    host.check_output(f"rm -rf {place} {RECORDS}/turn* {RECORDS}/large")


def test_what_is_due_is_done_and_nothing_else(host, backup):
    backup.run()
    before = backup.status()["sets"]
    host.check_output(f"{AGENT} tick")
    assert {name: about["success"] for name, about in backup.status()["sets"].items()} == {
        name: about["success"] for name, about in before.items()
    }, "nothing was due"
    backup.edit(
        f"{STATE}/status.json", "d['sets']['records']['started'] -= 23.6 * 3600; d['sets']['system']['started'] -= 23.6 * 3600"
    )
    host.check_output(f"{AGENT} tick")
    after = backup.status()["sets"]
    assert after["records"]["success"] > before["records"]["success"], "a day, and not a minute more"
    assert after["system"]["success"] == before["system"]["success"], "three days"
    backup.run("system")


def test_a_backup_that_fails_is_on_record_and_tried_again(host, backup):
    before = backup.status()["sets"]["records"]["success"]
    backup.edit(f"{STATE}/status.json", "d['sets']['records']['started'] -= 90000")
    host.check_output(f"mv {RECORDS} /srv/elsewhere")
    failed = host.run(f"{AGENT} tick")
    host.check_output(f"mv /srv/elsewhere {RECORDS}")
    assert failed.rc == 1 and "event=failed set=records" in failed.stderr
    assert backup.status()["sets"]["records"]["problem"] == f"declared, but not there: {RECORDS}"
    host.check_output(f"{AGENT} tick")
    about = backup.status()["sets"]["records"]
    assert about["problem"] == "" and about["success"] > before
    host.check_output(f"mv /srv/backup/hosts/{backup.target.name} /srv/backup/hosts/away")
    failed = host.run(f"timeout 60 {AGENT} run --set records")
    host.check_output(
        f"rm -rf /srv/backup/hosts/{backup.target.name}; mv /srv/backup/hosts/away /srv/backup/hosts/{backup.target.name}"
    )
    assert failed.rc == 1 and "the repository is gone" in failed.stderr, "it is not quietly begun anew"
    backup.run("records")


def test_files_that_come_and_go_are_no_fault(host, backup):
    """Somebody who may write among what is backed up makes and removes files all the time."""
    churn = (
        f"mkdir -p {RECORDS}/churn && cd {RECORDS}/churn && while [ ! -e /root/churn-stop ]; do "
        "for i in $(seq 300); do n=$((n + 1)); echo $n >f$n; done; rm -f f*; done; touch /root/churn-over"
    )
    host.check_output("rm -f /root/churn-*; (setsid bash -c %s >/dev/null 2>&1 &)", churn)
    for _turn in range(3):
        backup.run("records")
    about, result = backup.status()["sets"]["records"], backup.test()
    host.check_output(f"touch /root/churn-stop; while [ ! -e /root/churn-over ]; do sleep 0.2; done; rm -r {RECORDS}/churn")
    assert about["vanished"] + about["moved"] > 0, "else nothing came or went"
    assert result["sets"]["records"]["identical"] and result["sets"]["records"]["compared"] > 0, result
    backup.run("records")


def test_nobody_else_sees_schedule_or_key(host, backup):
    for path in (
        f"{SECRETS}/password",
        f"{SECRETS}/settings.json",
        f"{STATE}/status.json",
        f"{STATE}/RECOVERY.md",
        SECRETS,
        STATE,
    ):
        assert host.run(f"su nosy -c 'ls {path}/ 2>/dev/null || cat {path}'").rc != 0, path
    shown = host.check_output(
        "su nosy -c 'systemctl cat bulwark-backup.timer bulwark-backup.service; systemctl show bulwark-backup.timer "
        "bulwark-backup.service; systemctl list-timers; cat /usr/local/lib/bulwark/backup_agent' 2>/dev/null"
    )
    assert "bulwark-backup" in shown
    shown = shown.replace('interval_hours"]', "")
    for word in ("/srv/records", 'interval_hours": ', f"{backup.target.name}:"):
        assert word not in shown, word
    assert not re.search(r"\b72\b", shown), "the hours between two backups"


def test_a_change_on_the_host_is_noticed_and_undone(host, backup):
    before = host.check_output(f"cat {SECRETS}/settings.json")
    host.check_output(
        f"sed -i 's,/srv/records,/srv/www,' {SECRETS}/settings.json; chmod 0644 {SECRETS}/settings.json {SECRETS}/access"
    )
    assert host.check_output(f"cat {SECRETS}/settings.json") != before
    backup.target.reapply()
    assert host.check_output(f"cat {SECRETS}/settings.json") == before
    assert host.check_output(f"stat -c %a {SECRETS}/settings.json {SECRETS}/access").split() == ["600", "600"]


def test_restored_databases_answer(backup):
    backup.run()
    result = backup.test()
    assert result["passed"], result
    assert result["sets"]["system"]["databases"] == {
        name: {"answered": True, "length": length} for name, length in (("clinic", 15), ("appointments", 1), ("ledger", 6))
    }
    assert result["structure"] == "sound" and result["sets"]["records"]["compared"] > 5
    assert result["sets"]["records"]["identical"] and result["sets"]["system"]["moved"] == 0


def test_an_empty_database_and_a_lost_role_are_seen(host, backup):
    """A dump that is formally whole, and yet not what it was: its rows are gone; and one whose owner nobody could know."""
    ask = "su postgres -c 'psql -q -v ON_ERROR_STOP=1 clinic'"
    host.check_output(f"{ask} <<'END'\nCREATE ROLE keeper; CREATE ROLE reader; ALTER TABLE patients OWNER TO keeper;\n"
                      "GRANT SELECT ON patients TO reader;\nEND")  # fmt: skip
    backup.run("system")
    assert backup.test()["passed"], "roles come back with what belongs to them"
    host.check_output(f"sed -i '/ROLE keeper/d' {STATE}/dumps/clinic.globals")
    loaded = host.run(f"python3 - <<'END'\n{TRY_DUMP}\nEND")
    assert loaded.rc != 0 and "pg_restore: exit" in loaded.stderr and "Example Patient" not in loaded.stderr
    host.check_output(f"{ask} <<'END'\nCREATE TABLE kept AS TABLE patients; DELETE FROM patients;\nEND")
    backup.run("system")
    result = backup.test()
    host.check_output(f"{ask} <<'END'\nINSERT INTO patients SELECT * FROM kept; DROP TABLE kept;\nEND")
    assert not result["passed"] and "does not answer" in result["sets"]["system"]["problem"]
    backup.run("system")
    assert backup.test()["passed"]
    assert host.run(f"grep -r -l 'Example Patient' {STATE}/status.json {STATE}/restore-tests").stdout == ""


def test_restore_test_finds_what_is_not_as_it_was(host, backup):
    """First what a comparison sees; then a dump that is no longer whole."""
    manifest, place = f"{STATE}/manifests/records.json", "/root/altered"
    host.check_output("bash -ec %s", TREE)
    backup.run("records")
    host.check_output(f"{RESTIC} restore latest --tag set:records --target {place}")
    assert host.run(f"{AGENT} compare {manifest} {place}").rc == 0
    alterations = {
        "random": "printf y | dd of=random bs=1 seek=9 conv=notrunc status=none; touch -r {0}/random random",
        "nothing": "setfattr -n user.origin -v other nothing", "deep/er/numbers": "chown root deep/er/numbers",
        "suid": "chmod 0755 suid", "deep": "setfacl -d -m u:nosy:r deep", "dangling": "ln -sfn elsewhere dangling",
        "holes": "rm holes", "empty": "touch -d 2001-01-01 empty",
    }  # fmt: skip
    for command in alterations.values():
        host.check_output(f"cd {place}{RECORDS} && {command.format(RECORDS)}")
    seen = host.run(f"{AGENT} compare {manifest} {place}")
    different = "\n".join(json.loads(seen.stdout)["different"])
    assert seen.rc == 1
    for name in alterations:
        assert f"{RECORDS}/{name}: " in different, different
    assert "/snow" not in different
    host.check_output("sed -i 's/sum 42/sum 4/' /srv/ledger")
    backup.run("system")
    result = backup.test()
    host.check_output("sed -i 's/sum 4$/sum 42/' /srv/ledger")
    assert not result["passed"] and "grep" in result["sets"]["system"]["problem"] and result["sets"]["records"]["identical"]
    backup.run("system")
    assert backup.test()["passed"]
    assert not host.file("/var/lib/bulwark-restore-test/bulwark-restore-test").exists, "nothing of it stays"


def test_a_restore_test_removes_nothing_of_others(host, backup):
    """Somebody keeps things where it is tried, and even where exactly."""
    base = "/var/lib/bulwark-restore-test"
    host.check_output(f"install -d {base}/bulwark-restore-test && echo x | tee {base}/mine {base}/bulwark-restore-test/mine")
    result = backup.test()
    assert not result["passed"] and "not made by a restore test" in result["sets"]["records"]["problem"]
    assert host.file(f"{base}/bulwark-restore-test/mine").exists
    host.check_output(f"rm -r {base}/bulwark-restore-test")
    assert backup.test()["passed"]
    assert host.check_output(f"ls {base}") == "mine"
    host.check_output(f"rm {base}/mine")
    with pytest.raises(pytest.fail.Exception, match="must be a directory of its own"):
        backup.target.reapply(backup_scratch_directory="/srv/records")


def test_a_custodian_alone_restores(host, backup):
    """With the repository's disk, a custodian's key, and nothing of the host."""
    for number, secret in enumerate(CUSTODIANS):
        host.check_output("printf '%s\\n' %s >/root/custodian", "%s", secret)
        keep = "import json, sys; print(json.load(sys.stdin)['password'])"  # not as a word of a command: sudo writes those down
        host.check_output(f"{backup.sealed()} | age -d -i /root/custodian | python3 -c %s >/root/key", keep)
        host.check_output(f"restic -r /srv/backup/hosts/{backup.target.name} --password-file /root/key --no-cache --no-lock -q "
                          f"restore latest --tag set:records --target /root/custodian{number}")  # fmt: skip
        assert backup.look(f"/root/custodian{number}{RECORDS}") == backup.look()
    host.check_output("rm -f /root/custodian /root/key")


def test_what_is_kept_of_others_is_not_backed_up(host, backup):
    """The whole of /srv is declared, and the repository lies there."""
    host.check_output(f"echo mine >{RECORDS}/of-this-host")
    backup.edit(f"{SECRETS}/settings.json", "d['sets'][1]['paths'] = ['/srv']")
    backup.run("records")
    listed = host.check_output(f"{RESTIC} --no-lock ls latest --tag set:records | cat -v")  # one name is no text
    assert f"{RECORDS}/of-this-host" in listed
    assert not [line for line in listed.splitlines() if "/srv/backup" in line]
    backup.edit(f"{SECRETS}/settings.json", "d['sets'][1]['paths'] = ['/srv/backup/hosts']")
    failed = host.run(f"{AGENT} run --set records")
    assert failed.rc == 1 and "backups of others" in failed.stderr
    backup.target.reapply()
    backup.run("records")


def test_a_key_that_is_lost_is_not_made_anew(host, backup):
    """Neither a host that forgot its key, nor one that somebody made forget it, makes the old backups worthless."""
    escrow, before = f"/srv/backup/escrow/{backup.target.name}", backup.snapshots("records")
    kept = host.check_output(f"cd {escrow} && sha256sum *")
    host.check_output(f"mv {SECRETS}/password /root/key-lost; mv {SECRETS}/escrow.json /root/escrow-lost")
    for left in ("true", f": >{SECRETS}/password"):
        host.check_output(left)
        with pytest.raises(pytest.fail.Exception, match="custodian"):
            backup.target.reapply()
        assert host.check_output(f"cd {escrow} && sha256sum *") == kept
    host.check_output("printf '%s\\n' %s >/root/custodian", "%s", CUSTODIANS[1])
    keep = "import json, sys; print(json.load(sys.stdin)['password'])"
    host.check_output(f"{backup.sealed()} | age -d -i /root/custodian | python3 -c %s >{SECRETS}/password", keep)
    host.check_output("rm /root/custodian")
    assert host.run(f"cmp {SECRETS}/password /root/key-lost").rc == 0, "what a custodian opens is what was lost"
    backup.target.reapply()  # sealed anew, beside the old one
    assert set(kept.splitlines()) < set(host.check_output(f"cd {escrow} && sha256sum *").splitlines())
    assert backup.snapshots("records") == before
    backup.run("records")


@pytest.fixture
def bare(target):
    """Another machine, with nothing on it but a plain system."""
    container = f"molecule-backup-bare-{target.platform}"
    _key, public = machines.key_pair(Path(target.key).parent)
    address = machines.start(container, target.platform, public)
    yield container, address
    machines.stop(container)


def test_a_lost_host_is_built_anew_and_serves(host, backup, bare):
    """All that is used is what a custodian opens, on a machine that never knew the host."""
    container, address = bare
    host.check_output("printf '%s\\n' %s >/root/custodian", "%s", CUSTODIANS[0])
    opened = json.loads(host.check_output(f"{backup.sealed()} | age -d -i /root/custodian; rm /root/custodian"))
    backup.run()

    def there(command: str, data: str = "") -> str:
        done = machines.finish("podman", "exec", "-i", container, "sh", "-ec", command, data=data)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    there("apt-get install -qq -y --no-install-recommends restic >/dev/null")
    there("cat >/root/url", f"rest:https://{opened['host']}:{opened['access']}@{opened['server']}/{opened['host']}/\n")
    there("cat >/root/key", opened["password"])
    there("cat >/root/ca.crt", host.check_output("cat /etc/bulwark/backup_repository/ca.crt"))
    restic = "restic --repository-file /root/url --password-file /root/key --cacert /root/ca.crt --no-cache -q"
    # What the container's maker mounted there cannot be replaced.
    names = ("hosts", "hostname", "resolv.conf", "mtab", "systemd/system/user@.service.d/50-test-machine.conf")
    mounted = " ".join(f"--exclude /etc/{name}" for name in names)
    for name in ("system", "records"):
        there(f"{restic} restore latest --target /root/back --tag set:{name} {mounted}")
    there("cp -a --remove-destination /root/back/. /")
    there("systemctl daemon-reload; systemctl start clinic-page.service")
    deadline = time.monotonic() + 20
    while (page := host.run(f"curl -s -m 3 http://{address}:8080/")).rc and time.monotonic() < deadline:
        time.sleep(0.5)
    assert page.stdout == "Opening hours of the example clinic\n"
    assert there("getent passwd nosy").startswith("nosy:"), "its people are back"
    compared = json.loads(there(f"{AGENT} compare {STATE}/manifests/records.json /"))
    assert compared["different"] == [] and compared["compared"] > 10
    assert int(there(f"grep -c '^systemd' {STATE}/inventory/packages")) > 0
    sheet = there(f"cat {STATE}/RECOVERY.md")
    assert "Privacy Officer" in sheet and "database clinic" in sheet and RECORDS in sheet
    assert there(f"ls {STATE}/dumps").split() == ["appointments", "clinic", "clinic.globals", "ledger"]


def test_the_role_can_be_taken_back(host, backup):
    backup.target.reapply(backup_state="absent")
    assert host.run("systemctl is-active bulwark-backup.timer").rc != 0
    assert not host.file(AGENT).exists
    assert host.check_output(f"cat {SECRETS}/settings.json") == "{}", "what was there before"
    assert host.file(f"{SECRETS}/password").exists, "without it only a custodian could read what was backed up"
    backup.target.reapply()
    host.check_output("systemctl stop bulwark-backup.timer")
    backup.run()
    assert backup.test()["passed"]
