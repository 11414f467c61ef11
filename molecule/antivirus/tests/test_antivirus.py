# SPDX-License-Identifier: GPL-3.0-or-later
"""Proofs of the antivirus role: what is found, where it goes, who hears of it, and what happens when something breaks.

Here in containers; that infected files cannot be opened is a matter of the kernel, and proven in guests (tests/antivirus).
Signatures come from a server on the host itself. The well-known test file, and texts that are called malware here, are put
together on the spot.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable

import pytest

KINDS = {"plain.com", "a.zip", "a.tar.gz", "nested.tar", "letter.eml"}
QUARANTINE = "/var/lib/bulwark/quarantine"
STATE = "/var/lib/bulwark/antivirus"
WATCH = "/var/lib/bulwark/antivirus-watch"
# Waits until it is taken: the scanner forgets what was asked by somebody who has gone already.
SHUTDOWN = (
    "import socket; s = socket.socket(socket.AF_UNIX); s.settimeout(10); s.connect('/run/clamav/clamd.ctl'); "
    "s.sendall(b'zSHUTDOWN\\0'); s.recv(1)"
)
PING = (
    "import socket; s = socket.socket(socket.AF_UNIX); s.settimeout(10); s.connect('/run/clamav/clamd.ctl'); "
    "s.sendall(b'zPING\\0'); print(s.recv(9).decode().strip(chr(0)))"
)


def until(true: Callable[[], object], seconds: float, what: str) -> object:
    """Wait until something is true and return it."""
    end = time.monotonic() + seconds
    while not (found := true()):
        assert time.monotonic() < end, f"not within {seconds} s: {what}"
        time.sleep(0.5)
    return found


class Guarded:
    """The host under test, with its source of signatures."""

    def __init__(self, host) -> None:
        """Keep the host."""
        self.host, self.since = host, ""

    def mark(self) -> None:
        """Look only at what the journal says from now on. Not by cursor: with a tag, Debian 12 loses the first line behind it."""
        self.since = self.host.check_output("date +@%s.%6N")

    def said(self, tag: str = "bulwark-antivirus") -> str:
        """Return what was said under a tag since the mark."""
        self.host.check_output("journalctl --sync")
        return self.host.check_output("journalctl -q -o cat -t %s --since %s", tag, self.since)

    def heard(self, *words: str, tag: str = "bulwark-antivirus") -> None:
        """Wait until all of this was said under a tag since the mark."""
        until(lambda: all(word in self.said(tag) for word in words), 99, f"{tag} says {words}; it says: {self.said(tag)[-2000:]}")

    def noted(self, name: str) -> dict:
        """Return what the host noted."""
        return json.loads(self.host.file(f"{WATCH if name == 'watch' else STATE}/{name}.json").content_string)

    def start(self, verb: str) -> int:
        """Do now what a timer would do later; return how it ended."""
        return self.host.run(f"systemctl start bulwark-antivirus-{verb}.service").rc

    def sign(self, name: str, text: str = "") -> None:
        """Have the source offer one more signature."""
        # Freshclam asks by date, whole seconds: newer than what it has.
        self.host.check_output("sleep 1.1; python3 /opt/lab_signatures.py sign /opt/signatures %s %s", name, text)

    def pid(self) -> str:
        """Return the scanner's process."""
        return self.host.check_output("systemctl show -p MainPID --value clamav-daemon.service")

    def answers(self) -> bool:
        """Return whether the scanner answers. Asking would wake it, so its state is looked at before."""
        running = self.host.run("systemctl is-active --quiet clamav-daemon.service").rc == 0
        return running and self.host.run("python3 -c %s", PING).stdout.strip() == "PONG"

    def caught(self) -> set[str]:
        """Return the names of what is in the quarantine."""
        return set(self.host.check_output(f"ls {QUARANTINE}").split())


@pytest.fixture(scope="module")
def guarded(host):
    """The host, awake; afterwards as the assessment wants it, whatever a proof did."""
    made = Guarded(host)
    # Updates when a proof asks for them, and no others in between: each change of the role starts the timer anew.
    calm = "/run/systemd/system/bulwark-antivirus-update.timer.d"
    host.check_output(f"mkdir -p {calm}; printf '[Timer]\\nOnBootSec=\\nOnUnitActiveSec=1d\\n' >{calm}/calm.conf; "
                      "systemctl daemon-reload; systemctl restart bulwark-antivirus-update.timer")  # fmt: skip
    assert made.start("update") == 0
    until(made.answers, 120, "the scanner answers")
    yield made
    host.check_output(f"rm -r {calm}; systemctl daemon-reload")
    host.run("systemctl unmask --runtime clamav-daemon.socket clamav-daemon.service; systemctl start clamav-daemon.socket; "
             f"systemctl start clamav-daemon.service lab-signatures; rm -rf /srv/in /opt/in {QUARANTINE}/*")  # fmt: skip
    until(made.answers, 120, "the scanner answers")
    assert [made.start(verb) for verb in ("update", "scan", "watch")] == [0, 0, 0]


def test_new_signature_is_picked_up_and_catches_what_was_missed(guarded, host):
    """What nobody knew yet is missed; once its signature is at the source, the next update and scan catch it."""
    host.check_output("mkdir -p /srv/in && python3 /opt/lab_signatures.py make /srv/in LAB-MALWARE-SECOND")
    assert guarded.start("scan") == 0
    assert set(host.check_output("ls /srv/in").split()) == KINDS
    guarded.sign("Lab.Second", "LAB-MALWARE-SECOND")
    guarded.mark()
    assert guarded.start("update") == 0
    guarded.heard("event=signatures_new databases=lab.ndb scanner=RELOADING")
    until(lambda: guarded.start("scan") == 0 and host.check_output("ls /srv/in") == "", 120, "all are taken away")
    assert guarded.caught() >= KINDS
    host.check_output(f"rm -rf {QUARANTINE}/*")


def test_infected_files_are_found_whatever_they_are_packed_in(guarded, host):
    """The well-known test file, plain, packed, packed twice, and in a mail: each is named in the journal."""
    guarded.sign("Lab.TestFile")
    assert guarded.start("update") == 0
    host.check_output("mkdir -p /srv/in && python3 /opt/lab_signatures.py make /srv/in")
    guarded.mark()
    until(lambda: guarded.start("scan") == 0 and host.check_output("ls /srv/in") == "", 120, "all are taken away")
    guarded.heard(*(f"/srv/in/{name}: Lab.TestFile.UNOFFICIAL FOUND" for name in KINDS), tag="clamd")
    guarded.heard("event=scan_finished found=5")
    host.check_output(f"rm -rf {QUARANTINE}/*")


def test_scan_goes_to_the_bottom(guarded, host):
    """ClamAV's own limit would end at fifteen directories in each other, and the exit code would be that of a scan of all."""
    deep = "/opt/in" + "/deeper" * 30
    host.check_output(f"mkdir -p {deep} && python3 /opt/lab_signatures.py make {deep} LAB-MALWARE-FIRST")
    assert guarded.start("scan") == 0
    assert f"{deep}/plain.com" in {path for path, _name in guarded.noted("scan")["found"]}
    host.check_output("rm -r /opt/in")


def test_scheduled_scan_finds_what_lay_there_before(guarded, host):
    """The timer starts it. What lies on a guarded path is taken away, what lies elsewhere is reported and stays."""
    host.check_output("mkdir -p /srv/in /opt/in && python3 /opt/lab_signatures.py make /srv/in LAB-MALWARE-FIRST && "
                      "python3 /opt/lab_signatures.py make /opt/in LAB-MALWARE-FIRST")  # fmt: skip
    began = time.time()
    host.check_output("mkdir -p /run/systemd/system/bulwark-antivirus-scan.timer.d && cd /run/systemd/system && printf "
                      "'[Timer]\\nOnCalendar=\\nOnCalendar=*:*:0/5\\n' >bulwark-antivirus-scan.timer.d/soon.conf && "
                      "systemctl daemon-reload && systemctl restart bulwark-antivirus-scan.timer")  # fmt: skip
    try:
        until(lambda: guarded.noted("scan")["began"] > began, 120, "the timer starts a scan, and it ends")
    finally:
        host.check_output("rm -r /run/systemd/system/bulwark-antivirus-scan.timer.d && systemctl daemon-reload && "
                          "systemctl restart bulwark-antivirus-scan.timer")  # fmt: skip
    assert host.check_output("ls /srv/in") == ""
    assert set(host.check_output("ls /opt/in").split()) == KINDS
    assert {path for path, name in guarded.noted("scan")["found"] if name.startswith("Lab.First")} >= {
        f"/opt/in/{name}" for name in KINDS
    }
    # By another name it is as bad; only a scan tells that it is gone.
    host.check_output("mv /opt/in /opt/out")
    assert set(guarded.noted("scan")["left"]) == {f"/opt/in/{name}" for name in KINDS}
    host.check_output("rm -r /opt/out")
    assert guarded.start("scan") == 0 and guarded.noted("scan")["left"] == []


def test_unprivileged_user_gets_nowhere(guarded, host, person):
    """Somebody with an account ends no scanner, sees nothing that was caught, and decides nothing."""
    person("mallory")
    host.check_output(f"echo taken >{QUARANTINE}/taken && chmod 0644 {QUARANTINE}/taken")
    before = guarded.pid()
    assert host.run("su mallory -c true").rc == 0
    for attempt in (
        f"python3 -c \"{SHUTDOWN}\"", f"ls {QUARANTINE}", f"cat {QUARANTINE}/taken", "ls /var/lib/bulwark/antivirus-canary",
        "echo >>/etc/bulwark/antivirus/clamd.conf", "rm /var/lib/clamav/lab.ndb", "touch /var/lib/clamav/mine.ign2",
        f"kill {before}", "systemctl stop clamav-daemon.service", f"rm {STATE}/update.json", f"touch {WATCH}/watch.json",
    ):  # fmt: skip
        assert host.run("su mallory -c %s", attempt).rc != 0, attempt
    assert host.run("setpriv --reuid=clamav --regid=clamav --clear-groups touch %s/watch.json", WATCH).rc != 0
    assert host.run("setpriv --reuid=clamav --regid=clamav --clear-groups touch %s/update.json", STATE).rc == 0
    assert guarded.answers() and guarded.pid() == before
    assert host.run("python3 -c %s", SHUTDOWN).rc == 0  # root could: so nothing but the socket's mode kept mallory out
    until(lambda: guarded.pid() not in ("0", before) and guarded.answers(), 120, "it comes back")
    host.check_output(f"rm {QUARANTINE}/taken")


def test_killed_scanner_comes_back_and_that_is_said(guarded, host):
    """Killed several times in a row it is back each time; each end is on record; while it is away, that is said."""
    for _turn in range(3):
        guarded.mark()
        before = guarded.pid()
        host.check_output("kill -KILL %s", before)
        until(lambda pid=before: guarded.pid() not in ("0", pid) and guarded.answers(), 120, "it comes back")
        guarded.heard("event=stopped unit=clamav-daemon.service result=signal how=killed status=KILL")
    guarded.mark()
    host.check_output("systemctl stop clamav-daemon.socket clamav-daemon.service")
    guarded.start("watch")
    guarded.heard("event=stopped unit=clamav-daemon.service", "event=scanner_off", "can be opened whatever they hold")
    assert guarded.noted("watch")["wrong"] == ["scanner_off"]
    host.check_output("systemctl start clamav-daemon.socket clamav-daemon.service")
    until(guarded.answers, 120, "it runs again")
    guarded.start("watch")
    assert guarded.noted("watch")["wrong"] == []


def test_scan_without_a_scanner_does_not_count(guarded, host):
    """A scan that does not find what was put there for it has found nothing, and is none."""
    before = guarded.noted("scan")
    guarded.mark()
    host.check_output("systemctl stop clamav-daemon.socket clamav-daemon.service && "
                      "systemctl mask --runtime clamav-daemon.socket clamav-daemon.service")  # fmt: skip
    try:
        assert guarded.start("scan") != 0
    finally:
        host.check_output("systemctl unmask --runtime clamav-daemon.socket clamav-daemon.service && "
                          "systemctl start clamav-daemon.socket clamav-daemon.service")  # fmt: skip
    guarded.heard("event=scan_failed")
    assert guarded.noted("scan") == before
    until(guarded.answers, 120, "it runs again")


# Whose command line has the configuration for what is not guarded: the client, on its way through the rest of the host.
SCANNING = "grep -lzx -e '--config-file=.*/scan[.]conf' /proc/[0-9]*/cmdline 2>/dev/null"


def test_scanner_that_dies_during_a_scan_makes_it_none(guarded, host):
    """It is back soon, and finds the canary; but nobody looked at what lay between. What was noted before still stands."""
    host.check_output("mkdir -p /opt/in && cd /opt/in && seq 20000 | split -l 1 -a 4 -")
    before = guarded.noted("scan")
    guarded.mark()
    host.check_output("systemctl start --no-block bulwark-antivirus-scan.service")
    until(lambda: "/proc/" in host.run(SCANNING).stdout, 120, "the scan is on its way")
    host.check_output("kill -KILL %s", guarded.pid())
    until(lambda: "event=scan_failed" in guarded.said(), 120, "it is said")
    assert guarded.noted("scan") == before
    host.check_output("rm -r /opt/in")
    until(guarded.answers, 120, "it runs again")


def test_path_that_went_is_said_and_does_not_count(guarded, host):
    """A declared directory that is gone is named, and not among those that were scanned."""
    config = "/etc/bulwark/antivirus/settings.json"
    host.check_output(f'cp -p {config} /root/s && sed -i \'s,"/opt","/opt/gone",\' {config}')
    guarded.mark()
    try:
        assert guarded.start("scan") == 0
    finally:
        host.check_output(f"cp -p /root/s {config}")
    guarded.heard("event=scan_path_missing path=/opt/gone")
    assert "/opt/gone" not in guarded.noted("scan")["paths"]


def test_host_that_was_never_scanned_raises_an_alarm(guarded, host):
    """A host on which the role has been for longer than from one scan to the next, and none ever ended."""
    host.check_output(f"mv {STATE}/scan.json /root/scan.json && touch -d '9 days ago' /etc/bulwark-antivirus.before")
    guarded.mark()
    try:
        guarded.start("watch")
    finally:
        host.check_output(f"mv /root/scan.json {STATE}/scan.json && touch /etc/bulwark-antivirus.before")
    guarded.heard("event=scan_overdue days=9.0 limit=8")
    assert guarded.noted("watch")["wrong"] == ["scan_overdue"]


def test_quarantine_that_nobody_empties_raises_an_alarm(guarded, host):
    """Nothing goes from there by itself; more than declared is said with each trial."""
    host.check_output(f"truncate -s 1100M {QUARANTINE}/large")
    guarded.mark()
    guarded.start("watch")
    guarded.heard("event=quarantine_full mib=1100 limit=1024")
    assert guarded.noted("watch")["wrong"] == ["quarantine_full"]
    host.check_output(f"rm {QUARANTINE}/large")


def test_repository_that_the_host_keeps_is_left_alone(guarded, host, target):
    """Sealed copies of others are neither guarded nor scanned, though they lie below a guarded path; what lies beside them is."""
    host.check_output("mkdir -p /srv/backup /srv/backup-not && for at in /srv/backup /srv/backup-not; "
                      "do python3 /opt/lab_signatures.py make $at LAB-MALWARE-FIRST; done")  # fmt: skip
    target.reapply(backup_repository_hosts=["web"])
    try:
        until(guarded.answers, 120, "it runs")
        assert guarded.start("scan") == 0
        assert set(host.check_output("ls /srv/backup").split()) == KINDS and host.check_output("ls /srv/backup-not") == ""
        assert "OnAccessExcludePath /srv/backup\n" in host.file("/etc/bulwark/antivirus/clamd.conf").content_string
    finally:
        target.reapply()
        host.check_output(f"rm -rf /srv/backup /srv/backup-not {QUARANTINE}/*")
    until(guarded.answers, 120, "it runs")


TLS = """
cd /root && for name in ca other; do
openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=$name -keyout $name.key -out $name.pem; done
openssl req -newkey rsa:2048 -nodes -subj /CN=localhost -keyout tls.key -out tls.csr
printf 'subjectAltName=DNS:localhost\n' >tls.ext
openssl x509 -req -in tls.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 -extfile tls.ext -out tls.pem
systemd-run --quiet --unit=lab-tls python3 /opt/lab_signatures.py serve /opt/signatures 8443 /root/tls.pem /root/tls.key
"""


def test_source_with_a_certificate_of_others_is_not_believed(guarded, host, target):
    """From a source whose authority is declared signatures come; when another one is, none do, though the source is the same."""
    host.check_output(TLS)
    authority = host.file("/root/ca.pem").content_string
    target.reapply(antivirus_custom_urls=["https://localhost:8443/lab.ndb"], antivirus_authorities=[authority])
    try:
        guarded.sign("Lab.Fourth", "LAB-MALWARE-FOURTH")
        guarded.mark()
        assert guarded.start("update") == 0
        guarded.heard("event=signatures_new databases=lab.ndb")
        host.check_output("cat /root/other.pem >/etc/bulwark/antivirus/authorities.pem")
        guarded.sign("Lab.Fifth", "LAB-MALWARE-FIFTH")
        guarded.mark()
        assert guarded.start("update") != 0
        guarded.heard("event=update_failed", "missing=lab.ndb")
    finally:
        host.run("systemctl stop lab-tls")
        target.reapply()
    until(guarded.answers, 120, "it runs")
    assert guarded.start("update") == 0


def test_update_that_fails_is_said_and_does_not_count(guarded, host):
    """Without its source an update fails and says so. Where one of two fails, what the other had is in force all the same."""
    before = guarded.noted("update")
    guarded.mark()
    config = "/etc/bulwark/antivirus/freshclam.conf"
    try:
        host.check_output("systemctl stop lab-signatures")
        assert guarded.start("update") != 0
        host.check_output("systemctl start lab-signatures")
        guarded.heard("event=update_failed", "missing=lab.ndb")
        assert guarded.noted("update") == before
        host.check_output(f"cp -p {config} /root/f && echo 'DatabaseCustomURL http://127.0.0.1:8081/gone.hdb' >>{config}")
        guarded.sign("Lab.Third", "LAB-MALWARE-THIRD")
        assert guarded.start("update") != 0
        assert guarded.noted("update") == before
    finally:
        host.check_output(f"test ! -e /root/f || cp -p /root/f {config}; systemctl start lab-signatures")
    host.check_output("mkdir -p /srv/in && python3 /opt/lab_signatures.py make /srv/in LAB-MALWARE-THIRD")
    until(lambda: guarded.start("scan") == 0 and host.check_output("ls /srv/in") == "", 120, "the new signature is in force")
    assert guarded.start("update") == 0
    assert guarded.noted("update")["checked"] > before["checked"]


def test_stale_signatures_raise_an_alarm(guarded, host):
    """A day without a successful update is said, each time the host looks after itself, until there is one."""
    old = {**guarded.noted("update"), "checked": time.time() - 25 * 3600}
    host.check_output(f"printf %s >{STATE}/update.json", json.dumps(old))
    guarded.mark()
    guarded.start("watch")
    guarded.heard("event=signatures_stale hours=25.0 limit=24")
    assert guarded.start("update") == 0
    guarded.mark()
    guarded.start("watch")
    assert guarded.said() == ""


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({"antivirus_paths": ["/srv", "/nowhere"]}, "/nowhere"),
        ({"antivirus_custom_urls": []}, "needs antivirus_custom_urls"),
        ({"antivirus_exclude_paths": ["/srv"]}, "excluded as a whole, so not to be guarded: /srv"),
        ({"antivirus_paths": ["/srv/backup"], "backup_repository_hosts": ["web"]}, "/srv/backup"),
        ({"antivirus_scan_paths": ["/", "/dev/shm"]}, "never looked into, so not to be scanned: /dev/shm"),
    ],
)
def test_bad_input_is_refused_before_anything_changes(host, target, variables, said):
    """What cannot be guarded, and signatures from nowhere, never reach the host (single values: tests/faults)."""
    before = host.check_output("sha256sum /etc/bulwark/antivirus/*")
    with pytest.raises(pytest.fail.Exception, match=said):
        target.reapply(**variables)
    assert host.check_output("sha256sum /etc/bulwark/antivirus/*") == before


def test_upgrade_of_the_package_changes_nothing(guarded, host):
    """No file of the packages was edited, so installing them anew asks nothing and leaves ours in force."""
    host.check_output("DEBIAN_FRONTEND=noninteractive apt-get install -y --reinstall clamav-daemon clamav-freshclam")
    assert host.check_output("dpkg --verify clamav-daemon clamav-freshclam clamdscan") == ""
    until(guarded.answers, 120, "it runs")
    assert "/etc/bulwark/antivirus/clamd.conf" in host.check_output(f"tr '\\0' ' ' </proc/{guarded.pid()}/cmdline")
    assert host.run("systemctl is-active clamav-freshclam.service").stdout.strip() == "inactive"


def test_all_can_be_taken_back(host, target, guarded):
    """With `antivirus_state: absent` the vendor's packages are as they were, or gone. The quarantine stays."""
    target.reapply(antivirus_state="absent")
    try:
        assert host.package("clamav-daemon").is_installed == (target.platform == "debian12")
        assert host.check_output("find /etc /usr/local /var/lib/bulwark -name '*antivirus*' ! -path '*/config_set/*'") == ""
        assert host.run("grep -r bulwark /etc/apparmor.d").rc != 0
        assert host.run("ls /var/lib/clamav/bulwark.hsb /var/lib/clamav/lab.ndb").stdout == ""
        assert host.file(QUARANTINE).is_directory
        if target.platform == "debian12":
            assert host.run("systemctl is-active clamav-freshclam.service").stdout.strip() in ("active", "activating")
    finally:
        target.reapply()
    until(guarded.answers, 120, "it runs again")
