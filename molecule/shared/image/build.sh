#!/bin/sh
# Build a test machine without a registry, from Debian's packages: build.sh SUITE container IMAGE
#                                                              or: build.sh SUITE guest DIRECTORY
#
# It is a plain Debian server: vendor defaults, nothing hardened. It carries the login shells and terminal
# multiplexers that the proofs log in with, and the packages that roles install wait in apt's cache, so that a
# converge needs no network. Package lists stay for the same reason.
# A container becomes an image of podman. A guest has a kernel, udev and AppArmor of its own; its disk, kernels and initrds
# are laid into DIRECTORY, and at each start its kernel's command line says whose key opens the account.
# shellcheck disable=SC2016 # $1 is the hook's own: the root of the image
set -eu
suite=$1 kind=$2 result=$3
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
shells=zsh,ksh93u+m,mksh
include=systemd,systemd-sysv,dbus,libpam-systemd,python3,python3-apt,openssh-server,openssh-sftp-server,sudo,cron,rsyslog
include=$include,iproute2,procps,psmisc,kmod,ca-certificates,openssl,login,passwd,util-linux,$shells,tmux,screen
# What roles install, and what the lab's machines look around with; each by itself, because some exclude each other.
later="chrony systemd-timesyncd nftables ulogd2 openvpn libpam-duo nmap tcpdump iperf3"
later="$later auditd audispd-plugins systemd-journal-remote"
later="$later restic age acl attr postgresql nvme-cli hdparm cryptsetup lvm2 mdadm dosfstools usbguard"
later="$later clamav-daemon clamav-freshclam clamdscan"
case $suite in
bookworm) later="$later rclone" ;; # its restic has no server of its own
*) later="$later restic-rest-server systemd-cryptsetup" ;;
esac

# Build the system as a directory or a tar file ($1); further options of mmdebstrap follow.
build() {
  target=$1
  shift
  mmdebstrap --quiet --variant=minbase --aptopt='Apt::Install-Recommends "false"' --dpkgopt=force-unsafe-io \
    --skip=cleanup/apt/lists,cleanup/apt/cache --include="$include" "$@" \
    --customize-hook='set -e; chroot "$1" apt-get clean; for p in '"$later"'; do chroot "$1" apt-get install -qq -y --no-install-recommends --download-only "$p" >/dev/null; done' \
    "$suite" "$target"
}

case $kind in
container)
  build "$work/system.tar" \
    --customize-hook='chroot "$1" systemctl mask systemd-udevd.service getty.target' \
    --customize-hook='rm -f "$1"/etc/ssh/ssh_host_*; printf "[Unit]\nBefore=ssh.service ssh.socket\n[Service]\nType=oneshot\nRemainAfterExit=yes\nExecStart=/usr/bin/ssh-keygen -A\n[Install]\nWantedBy=multi-user.target\n" > "$1"/etc/systemd/system/hostkeys.service; chroot "$1" systemctl enable -q hostkeys.service'
  podman import -q --change 'CMD ["/sbin/init"]' "$work/system.tar" "$result"
  ;;
guest)
  # The cloud kernel starts three times sooner; the generic one knows disks of every kind and USB.
  include=$include,linux-image-cloud-amd64,linux-image-amd64,initramfs-tools,zstd,udev,apparmor,e2fsprogs
  # The initrd holds what finds the disk, no more: it is unpacked at every start.
  build "$work/system" \
    --essential-hook='mkdir -p "$1"/etc/initramfs-tools/conf.d "$1"/usr/share/initramfs-tools/modules.d
      printf "MODULES=list\nCOMPRESS=zstd\n" >"$1"/etc/initramfs-tools/conf.d/guest
      printf "virtio_pci\nvirtio_blk\next4\n" >"$1"/usr/share/initramfs-tools/modules.d/guest'
  cd "$work/system"
  printf '/dev/vda / ext4 errors=remount-ro 0 1\n' >etc/fstab
  : >etc/machine-id # each guest gets its own
  rm -f etc/hostname
  printf '127.0.0.1 localhost\n127.0.1.1 debian12 debian13\n::1 localhost ip6-localhost\n' >etc/hosts
  # QEMU's own little network always looks like this.
  cat >etc/systemd/network/guest.network <<'END'
[Match]
Name=eth0
[Network]
Address=10.0.2.15/24
Gateway=10.0.2.2
END
  printf 'nameserver 10.0.2.3\n' >etc/resolv.conf
  chroot . useradd --create-home --shell /bin/bash --groups sudo --comment 'Automation' deploy
  printf 'deploy ALL=(ALL:ALL) NOPASSWD: ALL\n' >etc/sudoers.d/90-deploy
  chmod 0440 etc/sudoers.d/90-deploy
  chroot . install -d -m 0700 -o deploy -g deploy /home/deploy/.ssh
  cat >etc/systemd/system/deploy-key.service <<'END'
[Unit]
Description=Let the automation account in with the key on the kernel's command line
ConditionKernelCommandLine=deploy_key
Before=ssh.service ssh.socket
[Service]
Type=oneshot
RemainAfterExit=yes
UMask=0077
ExecStart=/bin/sh -ec 'tr " " "\\n" </proc/cmdline | sed -n s/^deploy_key=//p | base64 -d >/home/deploy/.ssh/authorized_keys; chown deploy: /home/deploy/.ssh/authorized_keys'
[Install]
WantedBy=multi-user.target
END
  systemctl --root=. --quiet enable systemd-networkd.service deploy-key.service
  systemctl --root=. --quiet disable systemd-networkd-wait-online.service
  for kernel in boot/vmlinuz-*; do
    case $kernel in *-cloud-amd64) name=cloud ;; *) name=generic ;; esac
    cp "$kernel" "$result/vmlinuz-$name"
    cp "boot/initrd.img-${kernel#boot/vmlinuz-}" "$result/initrd-$name.img"
  done
  truncate -s 4G "$result/disk.img"
  mke2fs -q -F -t ext4 -d . "$result/disk.img"
  [ -z "${SUDO_UID:-}" ] || chown "$SUDO_UID:${SUDO_GID:-0}" "$result" "$result"/*
  ;;
*)
  echo "build.sh: container or guest, not '$kind'" >&2
  exit 2
  ;;
esac
