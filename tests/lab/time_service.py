# SPDX-License-Identifier: GPL-3.0-or-later
"""Time servers for machines under test: chrony with Network Time Security and an authority of its own, and one that lies.

A time server runs in a container, whose clock is that of the machine it stands on, and never touches it (chronyd -x). So it
must not be the clock of a container that is to follow it, but of a guest, which has its own. In such a container:

    chronyd          NTP on 123, NTS on 4460, certificate of the authority, ``local stratum``; believed by whoever trusts that
    the liar         NTP on 12000, with a shared key of the hash SHA256; off by as many seconds as the test last said
"""

from __future__ import annotations

import datetime
import secrets
import shlex
import sys
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "molecule" / "shared"))
import machines

LIAR_PORT = 12000

SERVE = r"""
cd /srv/time
apt-get install -qq -y --no-install-recommends chrony >/dev/null 2>&1 || { echo 'no chrony in this image' >&2; exit 1; }
systemctl stop chrony
cat >server.conf <<'END'
ntsserverkey /srv/time/server.key
ntsservercert /srv/time/server.pem
ntsdumpdir /srv/time
local stratum 3
allow
cmdport 0
pidfile /run/time-server.pid
END
chown -R _chrony: .
echo 0 >offset
systemd-run --quiet --collect --unit=time-server chronyd -x -d -f /srv/time/server.conf
systemd-run --quiet --collect --unit=time-liar python3 /srv/time/liar.py
"""

# What a server with a shared key answers (RFC 5905, RFC 8573's layout with another hash), with a clock of its own choice.
LIAR = r"""
import hashlib, pathlib, socket, struct, time
key = bytes.fromhex(pathlib.Path("/srv/time/shared.key").read_text())
def stamp(seconds):
    return struct.pack("!Q", int((seconds + 2208988800) * 2**32))
sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
sock.bind(("", 12000))
while True:
    asked, asker = sock.recvfrom(1024)
    now = time.time() + float(pathlib.Path("/srv/time/offset").read_text())
    said = struct.pack("!BBbb3I", 0x24, 2, asked[2], -20, 0, 0, 0x4C414221)
    said += stamp(now - 1) + asked[40:48] + stamp(now) + stamp(now)
    sock.sendto(said + asked[48:52] + hashlib.sha256(key + said).digest()[:20], asker)
"""


def make_authority(directory: Path, *names: str) -> str:
    """Make an authority that vouches for servers of these names, and a shared key; return its certificate (PEM).

    Its certificates are valid since yesterday (a clock that is an hour slow must be able to believe them) and for 30 days.
    What was made before is used again.
    """
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    if not (directory / "server.pem").exists():
        own, server = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
        issuer = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Lab authority for time")])
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, names[0])])
        authority = certificate(issuer, issuer, own.public_key()).add_extension(x509.BasicConstraints(True, 0), True)
        leaf = certificate(subject, issuer, server.public_key()).add_extension(x509.BasicConstraints(False, None), True)
        leaf = leaf.add_extension(x509.SubjectAlternativeName([x509.DNSName(name) for name in names]), False)
        pem, plain = serialization.Encoding.PEM, serialization.NoEncryption()
        for name, made in (("authority", authority), ("server", leaf)):
            (directory / f"{name}.pem").write_bytes(made.sign(own, hashes.SHA256()).public_bytes(pem))
        key = server.private_bytes(pem, serialization.PrivateFormat.PKCS8, plain)
        for path, content in (("server.key", key), ("shared.key", secrets.token_hex(32).encode())):
            (directory / path).touch(mode=0o600)
            (directory / path).write_bytes(content)
    return (directory / "authority.pem").read_text()


def certificate(subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey) -> x509.CertificateBuilder:
    """Return a certificate that is yet to be signed."""
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=30))
    )


def serve(container: str, directory: Path) -> None:
    """Make a running container of the project's image a time server, with what make_authority() made in a directory."""
    files = {name: (directory / name).read_text() for name in ("server.key", "server.pem", "shared.key")} | {"liar.py": LIAR}
    script = "umask 077\ninstall -d -m 0755 /srv/time\n"
    for name, text in files.items():
        script += f"printf %s {shlex.quote(text)} >/srv/time/{name}\n"
    in_container(container, script + SERVE)


def lie(container: str, seconds: float) -> None:
    """Let the liar of a container be off by as many seconds from now on."""
    in_container(container, f"echo {seconds} >/srv/time/offset.new && mv /srv/time/offset.new /srv/time/offset")


def in_container(container: str, script: str) -> None:
    """Run a script there. Ends the program if it fails."""
    done = machines.finish("podman", "exec", "-i", container, "sh", "-e", data=script)
    if done.returncode:
        sys.exit(f"time server {container}: {done.stderr}")
