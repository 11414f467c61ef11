#!/bin/sh
# Build a systemd container image without a registry: build.sh SUITE IMAGE
#
# The image is a plain Debian server: vendor defaults, nothing hardened. It carries the login shells and terminal
# multiplexers that the proofs log in with, and the packages that roles install wait in apt's cache, so that a
# converge needs no network. Package lists stay for the same reason.
# shellcheck disable=SC2016 # $1 is the hook's own: the root of the image
set -eu
suite=$1 image=$2
tar=$(mktemp --suffix=.tar)
trap 'rm -f "$tar"' EXIT
shells=zsh,ksh93u+m,mksh
include=systemd,systemd-sysv,dbus,libpam-systemd,python3,python3-apt,openssh-server,openssh-sftp-server,sudo,cron,rsyslog
include=$include,iproute2,procps,psmisc,kmod,ca-certificates,openssl,login,passwd,util-linux,$shells,tmux,screen
mmdebstrap --quiet --variant=minbase --aptopt='Apt::Install-Recommends "false"' \
  --skip=cleanup/apt/lists,cleanup/apt/cache \
  --include="$include" \
  --customize-hook='chroot "$1" systemctl mask systemd-udevd.service getty.target' \
  --customize-hook='rm -f "$1"/etc/ssh/ssh_host_*; printf "[Unit]\nBefore=ssh.service ssh.socket\n[Service]\nType=oneshot\nRemainAfterExit=yes\nExecStart=/usr/bin/ssh-keygen -A\n[Install]\nWantedBy=multi-user.target\n" > "$1"/etc/systemd/system/hostkeys.service; chroot "$1" systemctl enable -q hostkeys.service' \
  --customize-hook='chroot "$1" apt-get clean; for p in chrony systemd-timesyncd; do chroot "$1" apt-get install -qq -y --no-install-recommends --download-only "$p" >/dev/null; done' \
  "$suite" "$tar"
podman import -q --change 'CMD ["/sbin/init"]' "$tar" "$image"
