#!/bin/bash
# SPDX-License-Identifier: GPL-3.0-or-later
# Makes a host that every control of the role accounts must fail on.
set -eu
mkdir -p /opt/proof

person() { # NAME [SHELL]: a person with a key of their own
    useradd --create-home --shell "${2:-/bin/bash}" "$1"
    key "$1" "/home/$1"
}

key() { # NAME HOME: a key in the account's home
    ssh-keygen -q -t ed25519 -N '' -C "$1" -f "/opt/proof/$1"
    install -d -m 0700 "$2/.ssh"
    cat "/opt/proof/$1.pub" >>"$2/.ssh/authorized_keys"
    chown -R "$1:" "$2/.ssh"
}

password() { # NAME PASSWORD
    usermod --password "$(openssl passwd -6 "$2")" "$1"
}

last_login() { # NAME DAYS: as lastlog has it on both releases (292 bytes a uid)
    python3 - "$(id -u "$1")" "$2" <<'PYTHON'
import struct, sys, time
uid, days = map(int, sys.argv[1:])
with open("/var/log/lastlog", "r+b") as stream:
    stream.seek(uid * 292)
    stream.write(struct.pack("<I32s256s", int(time.time()) - days * 86400, b"pts/0", b"192.0.2.1"))
PYTHON
}

# OpenSSH of Debian 13 shuts out an address after a few failures; the proofs fail on purpose, many times.
if sshd -T | grep -q '^persourcepenalties'; then
    echo 'PerSourcePenalties no' >/etc/ssh/sshd_config.d/99-proof.conf
    systemctl reload ssh
fi

# In a container on a machine with cgroup v1, stopping a user manager can hang for minutes, and the next login waits for it.
mkdir -p /etc/systemd/logind.conf.d
printf '[Login]\nUserStopDelaySec=infinity\n' >/etc/systemd/logind.conf.d/99-proof.conf
systemctl restart systemd-logind

key root /root
password root toor-and-tired
useradd --non-unique --uid 0 --gid 0 --no-create-home --home-dir /root --shell /bin/bash toor
password toor second-root

install -m 0755 /bin/bash /usr/games/sh
usermod --shell /usr/games/sh games
password games play-and-win
usermod --shell /bin/bash --home /var/list list
key list /var/list

person jdoe
person ghost
cat /opt/proof/jdoe.pub >>/home/ghost/.ssh/authorized_keys
person pend
person tempo
person pi
password pi raspberry
person blank
passwd --quiet --delete blank
person feeder
password feeder laboratory
person stale
last_login stale 100

person leaver
echo 'thesis' >/home/leaver/thesis.txt
last_login leaver 120
chage --expiredate 1 leaver
usermod --lock --shell /usr/sbin/nologin leaver
install -d -m 0700 /var/lib/bulwark/accounts
cat >/var/lib/bulwark/accounts/record.json <<JSON
{"schema": 1, "disabled": {"leaver": {"at": $(($(date +%s) - 3 * 86400)), "reason": "dormant", "why": "unused for 117 days"}}}
JSON

echo '+@clinic::::::' >>/etc/passwd
