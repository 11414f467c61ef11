# Copyright: (c) 2026, Bulwark contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Attack a backup repository: with a host's own credential, from another host, on its disk, and by lying about time.

The hosts here are played with restic and curl. Each machine's copies are fetched by the other one, at another site.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "shared"))
from custodians import CUSTODIANS

STORE, KEEPER, PKI = "/srv/backup", "/usr/local/lib/bulwark/backup_keeper", "/etc/bulwark/backup_repository"
CANARY = "canary-of-the-records-7d1e"
# enrol.py HOST: what the role backup does with the module backup_access, with a password that the proofs know
ENROL = r"""
import base64, hashlib, json, os, subprocess, sys, time
host, access = sys.argv[1], "/etc/bulwark/backup_repository/access/hosts"
line = host + ":{SHA}" + base64.b64encode(hashlib.sha1(("door-" + host).encode()).digest()).decode()
kept = [text for text in open(access).read().splitlines() if not text.startswith(host + ":")] if os.path.exists(access) else []
open(access, "w").write("\n".join([*kept, line]) + "\n")
keys = json.loads(sys.argv[2])
words = [word for key in keys for word in ("-r", key)]
os.makedirs(f"/srv/backup/escrow/{host}", mode=0o700, exist_ok=True)
if os.listdir(f"/srv/backup/escrow/{host}"): sys.exit()
sealed = subprocess.run(["age", "-a", *words], input=("key-" + host).encode(), capture_output=True, check=True).stdout.decode()
told = {"host": host, "custodians": [{"name": k[:9], "key": k} for k in keys], "of": "", "sealed": sealed}
text = json.dumps(told, indent=1, sort_keys=True) + "\n"
with open(f"/srv/backup/escrow/{host}/{hashlib.sha256(text.encode()).hexdigest()}.json", "w") as stream: stream.write(text)
"""


# fetch.py: fetch this machine's own copies through the door for other repositories, into /root/fetched
FETCH = r"""
import base64, hashlib, importlib.machinery, importlib.util, os, shutil, time
loader = importlib.machinery.SourceFileLoader("keeper", "/usr/local/lib/bulwark/backup_keeper")
keeper = importlib.util.module_from_spec(importlib.util.spec_from_loader("keeper", loader)); loader.exec_module(keeper)
keeper.STATE, place = "/root/fetch-state", "/root/fetch-state/pulls/self"
pullers = "/etc/bulwark/backup_repository/access/pullers"
os.makedirs(place, exist_ok=True)
shutil.copy("/etc/bulwark/backup_repository/ca.crt", place)
open(place + "/access", "w").write("fetching")
line = "proof:{SHA}" + base64.b64encode(hashlib.sha1(b"fetching").digest()).decode() + "\n"
pull = {"server": "self", "site": "x", "address": "127.0.0.1", "port": 19634, "hosts": ["ward-1"]}
before = open(pullers).read()
open(pullers, "w").write(before + line)
for _try in range(40):  # a server may look at its list only now and then
    keeper.pull({"directory": "/root/fetched", "pulls": [pull]}, "proof")
    said = open("/root/fetch-state/pulls.json").read()
    if "401" not in said: break
    time.sleep(1)
open(pullers, "w").write(before)
print(said)
"""


class Repository:
    """The repository, and hosts that use it."""

    def __init__(self, host, target) -> None:
        self.host, self.target = host, target
        host.check_output("apt-get install -qq -y --no-install-recommends age curl >/dev/null")
        host.check_output(f"cat >/root/enrol.py <<'END_OF_FILE'\n{ENROL}\nEND_OF_FILE")
        self.keys = [host.check_output("echo %s | age-keygen -y", secret) for secret in CUSTODIANS]
        for name in ("ward-1", "ward-2"):
            host.check_output("python3 /root/enrol.py %s %s", name, json.dumps(self.keys))
            host.check_output(f"install -d -m 0700 /root/{name}; printf %s key-{name} >/root/{name}/key")
            url = f"rest:https://{name}:door-{name}@127.0.0.1:19633/{name}/"
            host.check_output("printf %s %s >/root/%s/url", "%s", url, name)
        deadline = time.monotonic() + 40  # a server may look at its list only now and then
        while self.http("ward-2", "GET", "/ward-2/config") in (401, 403) and time.monotonic() < deadline:
            time.sleep(1)

    def restic(self, name: str, words: str) -> str:
        """Run restic as a host."""
        return self.host.check_output(self.command(name, words))

    def command(self, name: str, words: str) -> str:
        """Return how a host runs restic."""
        return (
            f"restic --repository-file /root/{name}/url --password-file /root/{name}/key --no-cache -q "
            f"--cacert {PKI}/ca.crt {words}"
        )

    def backup(self, name: str, more: str = "") -> None:
        """Add a backup of a host's few files."""
        self.restic(name, f"backup --host {name} {more} /root/data")

    def http(self, name: str, method: str, path: str, data: str = "", password: str = "", port: int = 19633) -> int:
        """Ask the server something as a host; return the status of its answer."""
        words = f"-X {method} -u {name}:{password or f'door-{name}'} {f'--data-binary {data}' if data else ''} --path-as-is"
        asked = f"curl -s {words} --cacert {PKI}/ca.crt -o /dev/null -w '%{{http_code}}' https://127.0.0.1:{port}{path}"
        return int(self.host.check_output(asked))

    def check(self, more: str = "") -> dict:
        """Let the keeper look; return its report."""
        self.host.run(f"{KEEPER} check {more}")
        return json.loads(self.host.check_output("cat /var/lib/bulwark/backup-repository/report.json"))

    def one(self, kind: str, name: str = "ward-1") -> str:
        """Return the path of one file of a copy."""
        return self.host.check_output(f"find {STORE}/hosts/{name}/{kind} -type f | sort | head -n 1")


@pytest.fixture(scope="module")
def repository(host, target):
    """The repository with two hosts that have added something."""
    made = Repository(host, target)
    host.check_output(f"install -d /root/data && seq 20000 >/root/data/numbers && echo {CANARY} >/root/data/records")
    for name in ("ward-1", "ward-2"):
        if made.http(name, "GET", f"/{name}/config") == 404:
            made.restic(name, "init")
        made.backup(name)
    made.check()
    return made


def test_a_host_backs_up_and_restores(host, repository):
    repository.restic("ward-1", "restore latest --target /root/back")
    assert host.run("diff -r /root/data /root/back/root/data").rc == 0
    report = repository.check()
    assert report["broken"] == 0, report
    assert report["copies"]["ward-1"]["snapshots"] >= 1 and report["copies"]["ward-1"]["newest_hours"] < 1


def test_nothing_is_deleted_or_overwritten(host, repository):
    listing = f"cd {STORE}/hosts/ward-1 && find . -type f -not -path './locks/*' | sort | xargs sha256sum"
    before = host.check_output(listing)
    for kind in ("data", "index", "snapshots", "keys"):
        name = repository.one(kind).rsplit("/", 1)[1]
        assert repository.http("ward-1", "DELETE", f"/ward-1/{kind}/{name}") == 403, kind
        assert repository.http("ward-1", "POST", f"/ward-1/{kind}/{name}", data="evil") == 403, kind
    assert repository.http("ward-1", "DELETE", "/ward-1/config") in (403, 404, 405)
    assert repository.http("ward-1", "POST", "/ward-1/config", data="evil") == 403
    assert repository.http("ward-1", "DELETE", "/ward-1/") in (403, 404, 405)
    # Debian 12's restic asks for three quarters of a minute before it believes a refusal
    host.run(f"timeout 8 {repository.command('ward-1', 'forget --keep-last 1 --prune --group-by host')}")
    assert host.check_output(listing) == before
    repository.restic("ward-1", "unlock --remove-all")
    repository.backup("ward-1")
    assert len(host.check_output(listing)) > len(before), "and adding still works"


def test_only_passwords_open_the_door(host, repository):
    assert repository.http("ward-1", "GET", "/ward-1/config") == 200
    assert repository.http("ward-1", "GET", "/ward-1/config", password="wrong") == 401
    assert repository.http("stranger", "GET", "/ward-1/config") == 401
    assert repository.http("ward-1", "GET", "/ward-1/config", port=19634) == 401, "a host is no other repository"
    plain = host.run("curl -s -m 5 http://127.0.0.1:19633/ward-1/config")
    assert "ward" not in plain.stdout and len(plain.stdout) < 100
    other = host.run("openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout /root/x.key -out /root/x.crt "
                     "-subj /CN=127.0.0.1 2>/dev/null; curl -s --cacert /root/x.crt https://127.0.0.1:19633/")  # fmt: skip
    assert other.rc == 60, "a host that trusts another authority does not talk to this server"


def test_a_host_sees_its_own_copies_only(repository):
    others = (
        "/ward-2/config",
        "/ward-1/../ward-2/config",
        "/ward-2/snapshots/",
        "/",
        "//ward-2/config",
        "/ward-1/%2e%2e/ward-2/config",
    )
    for path in others:
        assert repository.http("ward-1", "GET", path) in (301, 400, 401, 403, 404, 405), path
    assert repository.http("ward-1", "POST", "/ward-2/snapshots/" + "ab" * 32, data="evil") in (401, 403)
    assert repository.http("ward-2", "GET", "/ward-2/config") == 200


def test_copies_are_unreadable_without_the_key(host, repository):
    assert host.run(f"grep -r -a -l {CANARY} /root/data").rc == 0, "else this proves nothing"
    assert host.run(f"grep -r -a -l {CANARY} {STORE}").stdout == ""
    assert host.run(f"echo wrong | restic -r {STORE}/hosts/ward-1 --no-cache --no-lock snapshots").rc != 0
    assert host.run("grep -r -a -l -e key-ward-1 -e door-ward-1 /srv /etc /var/lib/bulwark").stdout == "", "the key is not there"
    for path in (STORE, f"{STORE}/hosts/ward-1/config", "/etc/bulwark/backup_keeper.json", f"{PKI}/access/hosts"):
        assert host.run(f"su nosy -c 'ls {path}/ 2>/dev/null || cat {path}'").rc != 0, path


def test_a_flipped_byte_is_named(host, repository):
    repository.check()  # what has never been looked at could still be on its way
    path = repository.one("data")
    name = path.split("/hosts/ward-1/")[1]
    host.check_output(f"cp -p {path} /root/whole && size=$(stat -c %s {path}) && printf '\\377\\001' | "
                      f"dd of={path} bs=1 seek=$((size / 2)) conv=notrunc status=none")  # fmt: skip
    found: dict = {}
    for _turn in range(4):  # there are four slices: it is found when its turn comes
        found = found or repository.check()["copies"]["ward-1"]["broken"]
    assert found == {name: "is not what was written"}
    again = host.run(f"{KEEPER} check")
    assert again.rc == 1 and f"event=broken copy=ward-1 file={name}" in again.stderr, "and is named until it is whole again"
    assert "files are broken" in host.run(f"echo key-ward-1 | {KEEPER} prune --host ward-1").stderr, "nothing goes meanwhile"
    host.check_output(f"cat /root/whole >{path}")
    assert repository.check()["broken"] == 0


def test_what_is_gone_is_named(host, repository):
    path, extra = repository.one("snapshots"), f"{STORE}/hosts/ward-1/extra"
    name = path.split("/hosts/ward-1/")[1]
    host.check_output(f"mv {path} /root/gone; printf x >{extra}")
    found = repository.check()["copies"]["ward-1"]["broken"]
    assert found == {name: "is missing", "extra": "does not belong here"}
    host.check_output(f"mv /root/gone {path}; rm {extra}")
    host.check_output(f"mv {STORE}/hosts/ward-2 /root/copy-ward-2; mv {STORE}/escrow/ward-2 /root/escrow-ward-2")
    report = repository.check()
    assert report["copies"]["ward-2"]["broken"] == {"copy": "is missing as a whole"}
    assert list(report["escrow"].values()) == ["is missing"]
    host.check_output(f"mv /root/copy-ward-2 {STORE}/hosts/ward-2; mv /root/escrow-ward-2 {STORE}/escrow/ward-2")
    assert repository.check()["broken"] == 0


def test_only_what_outlived_its_time_goes(host, repository):
    """Snapshots of 45, 40 and 34 days ago, arrived then; the time is 35 days."""
    for days in (45, 40, 34):
        when = host.check_output(f"date -u -d '{days} days ago' '+%Y-%m-%d %H:%M:%S'")
        seen = set(host.check_output(f"ls {STORE}/hosts/ward-2/snapshots").split())
        repository.backup("ward-2", f"--time '{when}'")
        (new,) = set(host.check_output(f"ls {STORE}/hosts/ward-2/snapshots").split()) - seen
        host.check_output(f"touch -d '{days} days ago' {STORE}/hosts/ward-2/snapshots/{new}")
    repository.check()
    count = int(host.check_output(f"ls {STORE}/hosts/ward-2/snapshots | wc -l"))
    assert host.run(f"printf 'wrong\\n' | {KEEPER} prune --host ward-2").rc != 0, "without the key nothing goes"
    record = json.loads(host.check_output(f"printf 'key-ward-2\\n' | {KEEPER} prune --host ward-2"))
    assert len(record["removed"]) == 2 and record["kept"] == count - 2
    assert json.loads(host.check_output("tail -n 1 /var/lib/bulwark/backup-repository/pruned.jsonl")) == record
    assert repository.check()["broken"] == 0
    host.check_output('sed -i \'s/"retention_days": 35/"retention_days": 29/\' /etc/bulwark/backup_keeper.json')
    said = host.run(f"printf 'key-ward-2\\n' | {KEEPER} prune --host ward-2")
    host.check_output('sed -i \'s/"retention_days": 29/"retention_days": 35/\' /etc/bulwark/backup_keeper.json')
    assert said.rc == 2 and "MA-2.4b" in said.stderr


def test_lying_about_time_pushes_nothing_out(host, repository):
    """A host that was taken over floods its backups with the past and the future. What it had before stays."""
    before = set(host.check_output(f"ls {STORE}/hosts/ward-2/snapshots").split())
    for when in ("2001-01-01 00:00:00", "2044-01-01 00:00:00"):
        repository.backup("ward-2", f"--time '{when}'")
    repository.check()
    record = json.loads(host.check_output(f"printf 'key-ward-2\\n' | {KEEPER} prune --host ward-2"))
    assert record["removed"] == []
    assert before < set(host.check_output(f"ls {STORE}/hosts/ward-2/snapshots").split())


def test_the_copy_off_site_alone_restores(host, repository):
    """What the other machine keeps was fetched to here; the other machine is not asked for anything when it is restored."""
    others = json.loads(host.check_output("cat /etc/bulwark/backup_keeper.json"))["pulls"]
    assert others, "there is another site"
    server = others[0]["server"]
    deadline = time.monotonic() + 120  # its own proofs may just begin
    while host.run("systemctl start bulwark-backup-pull.service").rc and time.monotonic() < deadline:
        time.sleep(3)
    read = f"restic -r {STORE}/offsite/{server}/ward-1 --password-file /root/k --no-cache --no-lock -q"
    host.check_output(f"printf key-ward-1 >/root/k; {read} check --read-data; {read} restore latest --target /root/elsewhere")
    assert host.check_output("cat /root/elsewhere/root/data/records") == CANARY
    assert host.run("diff -r /root/data /root/elsewhere/root/data").rc == 0


def test_what_is_broken_there_is_not_fetched(host, repository):
    """Here the machine fetches from itself, into another place, so that it can be broken there."""
    host.check_output(f"cat >/root/fetch.py <<'END_OF_FILE'\n{FETCH}\nEND_OF_FILE")
    path = repository.one("data")
    host.check_output(f"cp -p {path} /root/whole && printf x >>{path}")
    try:
        assert "is not what was written, there" in host.check_output("python3 /root/fetch.py")
        name = path.split("/hosts/ward-1/")[1]
        assert not host.file(f"/root/fetched/offsite/self/ward-1/{name}").exists
    finally:
        host.check_output(f"cat /root/whole >{path}")
    assert '"problem": ""' in host.check_output("python3 /root/fetch.py")
    gone = repository.one("snapshots")
    host.check_output(f"mv {gone} /root/gone; python3 /root/fetch.py; mv /root/gone {gone}")
    name = gone.split("/hosts/ward-1/")[1]
    assert host.file(f"/root/fetched/offsite/self/ward-1/{name}").exists, "what is deleted there stays here"
    host.check_output(f"rm /root/fetched/offsite/self/ward-1/{name}; mkdir -p /root/fetch-state/ledger")
    ledger = json.dumps({"let_go": [name.split("/")[1]]})
    host.check_output("printf %s %s >/root/fetch-state/ledger/self@ward-1.json", "%s", ledger)
    assert '"problem": ""' in host.check_output("python3 /root/fetch.py")
    assert not host.file(f"/root/fetched/offsite/self/ward-1/{name}").exists, "what was let go is not fetched again"
    assert repository.check()["broken"] == 0


def test_each_custodian_alone_opens_the_key(host, repository):
    show = 'import json, sys; print(json.load(sys.stdin)["sealed"])'
    host.check_output("cat /srv/backup/escrow/ward-1/*.json | python3 -c %s >/root/sealed.age", show)
    for number, secret in enumerate(CUSTODIANS):
        host.check_output("printf '%s\\n' %s >/root/custodian", "%s", secret)
        host.check_output(f"age -d -i /root/custodian -o /root/k{number} /root/sealed.age")
        repository.host.check_output(
            f"rm -rf /root/by{number}; restic -r {STORE}/hosts/ward-1 --password-file /root/k{number} --no-cache --no-lock -q "
            f"restore latest --target /root/by{number}"
        )
        assert host.check_output(f"cat /root/by{number}/root/data/records") == CANARY
    host.check_output("age-keygen >/root/stranger 2>/dev/null")
    assert host.run("age -d -i /root/stranger /root/sealed.age").rc != 0
    host.check_output("rm -f /root/custodian /root/k0 /root/k1")


def test_lack_of_space_is_said(host, repository):
    host.check_output('sed -i \'s/"free_percent": 1/"free_percent": 100/\' /etc/bulwark/backup_keeper.json')
    said = host.run(f"{KEEPER} check")
    host.check_output('sed -i \'s/"free_percent": 100/"free_percent": 1/\' /etc/bulwark/backup_keeper.json')
    assert "event=capacity" in said.stderr


def test_the_role_can_be_taken_back(host, target, repository):
    host.check_output(f"cp -a {PKI}/access /root/access")
    target.reapply(backup_repository_state="absent")
    assert host.run("systemctl is-active bulwark-backup-server.service").rc != 0
    assert not host.file("/etc/bulwark/backup_keeper.json").exists
    assert not host.file("/etc/systemd/system/restic-rest-server.service").exists
    for question in ("is-active", "is-enabled"):  # the package's own, open to everybody
        assert host.run(f"systemctl {question} restic-rest-server.service").rc != 0
    assert host.run("curl -s -m 3 http://127.0.0.1:8000/").rc == 7, "nobody serves"
    assert host.file(f"{STORE}/hosts/ward-1/config").exists, "copies stay"
    deadline = time.monotonic() + 180
    while True:  # the other site, whose authority it asks for, may be taken back by its own proof at this moment
        try:
            target.reapply()
            break
        except pytest.fail.Exception as refused:
            assert "authority: is empty" in str(refused) and time.monotonic() < deadline
            time.sleep(5)
    assert repository.http("ward-1", "GET", "/ward-1/config") == 401, "hosts and the other site are let in when their roles run"
    host.check_output(
        f"cp -a /root/access/. {PKI}/access/; systemctl restart bulwark-backup-server bulwark-backup-offer; sleep 1"
    )
    assert repository.http("ward-1", "GET", "/ward-1/config") == 200
    assert repository.check()["broken"] == 0
