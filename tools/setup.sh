#!/bin/sh
# Make this clone able to work on a machine with nothing installed: tools/setup.sh [lint|lab|test]...
#
# Installs the system packages that are missing (Debian, Ubuntu; as root or with sudo) and the locked Python tools into
# .venv, with the distribution's own python3. Says nothing when there is nothing to do. Elsewhere it names what is
# missing before it does anything.
set -eu
cd "$(dirname "$0")/.."
started=$(date +%s)
log=$(mktemp)
trap 'rm -f "$log"' EXIT

say() { printf '[%3s s] %s\n' "$(($(date +%s) - started))" "$*"; }
die() {
    printf 'setup: %s\n' "$*" >&2
    exit 1
}

# package:file whose presence stands for it where there is no dpkg
want="git:git make:make openssh-client:ssh ca-certificates:/etc/ssl/certs python3:python3 python3-venv:python3"
browser="chromium:chromium chromium-driver:chromedriver"
# Ubuntu has chromium as a snap only, which cannot be driven headless by root; Chrome does where it is installed.
if grep -qs '^ID=ubuntu' /etc/os-release; then browser=; fi
for part in "$@"; do
    case $part in
    lint) want="$want shellcheck:shellcheck" ;;
    lab)
        want="$want podman:podman runc:runc netavark:/usr/lib/podman/netavark aardvark-dns:/usr/lib/podman/aardvark-dns"
        want="$want iptables:iptables nftables:nft mmdebstrap:mmdebstrap debian-archive-keyring:/usr/share/keyrings"
        ;;
    test)
        want="$want shellcheck:shellcheck ssh-audit:ssh-audit $browser"
        want="$want qemu-system-x86:qemu-system-x86_64 e2fsprogs:mke2fs" # guests, for what needs a kernel of its own
        want="$want age:age" # custodians open sealed keys on the controller
        ;;
    *) die "unknown part '$part' (lint, lab, test)" ;;
    esac
done

missing=
if command -v apt-get >/dev/null && command -v dpkg-query >/dev/null; then
    there=" $(dpkg-query -W -f '${db:Status-Status} ${Package}\n' 2>/dev/null | sed -n 's/^installed //p' | tr '\n' ' ') "
    for pair in $want; do
        case $there in *" ${pair%%:*} "*) ;; *) missing="$missing ${pair%%:*}" ;; esac
    done
    can_install=yes
else
    for pair in $want; do
        command -v "${pair#*:}" >/dev/null || [ -e "${pair#*:}" ] || missing="$missing ${pair%%:*}"
    done
    can_install=no
fi

python=/usr/bin/python3
modern='import sys; sys.exit(sys.version_info < (3, 11))'
if [ -x $python ] && ! $python -c "$modern"; then
    die "$($python --version 2>&1) is too old: 3.11 or newer is needed (Debian 12, Ubuntu 24.04, or newer)"
fi

if [ -n "$missing" ]; then
    [ $can_install = yes ] || die "this system has no apt-get; please install what these Debian packages hold:$missing"
    sudo=
    if [ "$(id -u)" -ne 0 ]; then
        command -v sudo >/dev/null || die "neither root nor sudo; as root: apt-get install$missing"
        sudo -n true 2>/dev/null || { [ -t 0 ] && sudo -v; } || die "sudo wants a password; as root: apt-get install$missing"
        sudo=sudo
    fi
    say "System packages:$missing"
    # shellcheck disable=SC2086 # lists of words
    if ! { $sudo apt-get update -q && $sudo env DEBIAN_FRONTEND=noninteractive \
        apt-get install -q -y --no-install-recommends $missing; } >"$log" 2>&1 </dev/null; then
        tail -n 25 "$log" >&2
        die "apt-get could not install$missing"
    fi
    $python -c "$modern" || die "$($python --version) is too old: 3.11 or newer is needed"
fi

# Containers run as root; say so now, not in the middle.
case " $* " in *" lab "*)
    if [ "$(id -u)" -ne 0 ] && ! sudo -n true 2>/dev/null; then
        { [ -t 0 ] && sudo -v; } || die "containers need root: run as root, or as a user with sudo"
    fi
    ;;
esac

# A moved clone or another python3 needs a new environment; a changed lock is installed over the old one.
place="$($python --version) $PWD"
lock=$(sha256sum <requirements.lock)
if [ "$(cat .venv/.lock 2>/dev/null)" != "$place $lock" ]; then
    say "Python tools into .venv ($($python --version), requirements.lock)"
    [ "$(cat .venv/.place 2>/dev/null)" = "$place" ] || $python -m venv --clear .venv
    printf '%s\n' "$place" >.venv/.place
    if ! .venv/bin/python -m pip install --quiet --disable-pip-version-check --no-input --progress-bar off \
        --require-hashes --requirement requirements.lock >"$log" 2>&1; then
        tail -n 25 "$log" >&2
        die "the locked Python tools could not be installed"
    fi
    printf '%s\n' "$place $lock" >.venv/.lock
    say "Ready: ansible-core $(.venv/bin/python -c 'import ansible.release as r; print(r.__version__)')"
fi
