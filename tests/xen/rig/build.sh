#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# Makes the Xen machine of the test suite `xen` in DIRECTORY, from packages of this machine's Debian alone: hypervisor,
# kernel and RAM disk of dom0, and a disk with Xen's tools, Python and containerd. Needs root and half a minute to two
# minutes; what is made is kept until this folder, the package versions or the modules change.
# usage: build.sh DIRECTORY

# shellcheck source=bin/lib.sh
. "$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")/../../../bin/lib.sh"

RIG=$CHECKOUT/tests/xen/rig
OUT=${1:?usage: build.sh DIRECTORY}
#: of the same release as this machine: dom0 runs what was installed here for this machine's Python
# shellcheck source=/dev/null
CODENAME=$(. /etc/os-release && printf '%s' "$VERSION_CODENAME")
#: packages of dom0 besides the essential ones
DOM0=(
    busybox-static containerd e2fsprogs ipxe-qemu iproute2 kmod libpython3-stdlib mount procps python3-minimal
    qemu-system-xen runc seabios udev xenstore-utils
)
#: the modules that dom0's RAM disk loads, in order, and those that stay on its disk
BOOT_MODULES=(
    virtio_pci virtio_blk crc32c_generic ext4 virtio_console 9pnet_virtio 9p
    xen-evtchn xen-gntdev xen-gntalloc xen-privcmd xenfs xen-blkback loop overlay
)
DISK_MODULES=(bridge xen-netback veth sch_ingress cls_u32 act_mirred)
#: how often a step that needs the network is tried, and how often apt asks for one file
TRIES=3

need_root
apt_need mmdebstrap cpio kmod e2fsprogs python3

# stands_for METAPACKAGE PREFIX: the package it depends on whose name begins so
stands_for() {
    apt-cache depends "$1" | sed -n "s/^ *Depends: \\($2[^ ]*\\)\$/\\1/p" | head -n 1
}
refresh() {
    attempt "cannot read the package lists" "check the network and /etc/apt/sources.list*" \
        apt-get -q -o "Acquire::Retries=$TRIES" update
}
KERNEL=$(stands_for linux-image-amd64 linux-image-)
if [ -z "$KERNEL" ]; then
    step "reading the package lists"
    refresh
    KERNEL=$(stands_for linux-image-amd64 linux-image-)
fi
[ -n "$KERNEL" ] || die "cannot find Debian's kernel package" "apt-get update, then $0 $OUT"
VERSION=${KERNEL#linux-image-}
XEN=$(stands_for xen-system-amd64 xen-hypervisor-)
[ -n "$XEN" ] || die "cannot find Debian's package of Xen" "apt-get update, then $0 $OUT"
XEN_VERSION=${XEN#xen-hypervisor-} XEN_VERSION=${XEN_VERSION%-amd64}
DOM0+=("xen-utils-$XEN_VERSION")

stamp=$(
    cat "$RIG"/* "$CHECKOUT/backends/guest/kernelimage.py" | sha256sum
    apt-cache policy "$KERNEL" "$XEN" "${DOM0[@]}" | grep -E '^[a-z]|Candidate'
)
if [ -f "$OUT/stamp" ] && [ "$(cat "$OUT/stamp")" = "$stamp" ]; then
    exit 0
fi

# downloading WHAT HINT COMMAND…: run a command that needs the network, again when it fails
downloading() {
    local try
    for ((try = 1; try < TRIES; try++)); do
        if (attempt "$@"); then
            return
        fi
        step "try $((try + 1)) of $TRIES in $((try * 5)) s"
        sleep $((try * 5))
        refresh # what failed may be a version that is no longer there
    done
    attempt "$@"
}

mkdir -p "$OUT"
# Held until all ends, by what was started as well: it may outlive a run that was killed, whose remains go.
exec {lock}>"$OUT/.lock"
flock "$lock"
if [ -f "$OUT/stamp" ] && [ "$(cat "$OUT/stamp")" = "$stamp" ]; then
    exit 0 # another run has made it meanwhile
fi
rm -rf "$OUT"/stamp "$OUT"/work.*
work=$(mktemp -d "$OUT/work.XXXXXX")
trap 'rm -rf "$work"' EXIT
cd "$work"

step "downloading Xen and $KERNEL"
downloading "cannot download $KERNEL and $XEN" "check the network, then apt-get update" \
    apt-get -q -o APT::Sandbox::User=root -o "Acquire::Retries=$TRIES" download "$KERNEL" "$XEN"
for deb in ./*.deb; do
    dpkg-deb -x "$deb" unpacked
done

step "unpacking the hypervisor and the kernel"
zcat "unpacked/boot/xen-$XEN_VERSION-amd64.gz" >xen
# modules lie below /usr since Debian 13
[ -e unpacked/lib ] || ln -s usr/lib unpacked/lib
# Under software emulation decompressors take long: the kernel's own and those for modules are done without.
PYTHONPATH=$CHECKOUT python3 - "unpacked/boot/vmlinuz-$VERSION" vmlinux-dom0 "unpacked/lib/modules/$VERSION" <<'PY'
import sys
from pathlib import Path

from backends.guest.kernelimage import MODULE_SUFFIXES, extract_x86, plain_module

image, out, modules = map(Path, sys.argv[1:])
out.write_bytes(extract_x86(image.read_bytes()))
for suffix in MODULE_SUFFIXES:
    for module in list(modules.rglob(f"*.ko{suffix}")):
        plain_module(module)
        module.unlink()
PY
depmod -b unpacked "$VERSION"

# with_dependencies MODULE…: the files of modules and of all they need, each once, in the order to load them
with_dependencies() {
    local module
    for module in "$@"; do
        modprobe -d unpacked -S "$VERSION" --ignore-install --show-depends "$module"
    done | sed -n 's/^insmod \([^ ]*\).*/\1/p' | awk '!seen[$0]++'
}

step "installing dom0 ($(printf '%s ' "${DOM0[@]}"))"
mirrors=()
for file in /etc/apt/sources.list /etc/apt/sources.list.d/*.sources /etc/apt/sources.list.d/*.list; do
    [ ! -s "$file" ] || mirrors+=("$file")
done
# install_dom0: fill root with dom0's packages, from the mirrors this machine has; says what it does meanwhile
exec 3>&1
install_dom0() {
    rm -rf root
    mmdebstrap --mode=root --variant=essential "--include=$(IFS=,; printf '%s' "${DOM0[*]}")" \
        --aptopt='APT::Install-Recommends "false"' --aptopt="Acquire::Retries \"$TRIES\"" \
        --dpkgopt=force-unsafe-io --dpkgopt='path-exclude=/usr/share/doc/*' \
        --dpkgopt='path-exclude=/usr/share/man/*' --dpkgopt='path-exclude=/usr/share/locale/*' \
        "$CODENAME" root "${mirrors[@]}" 2>&1 | tee >(sed -un 's/^I: /       /p' >&3)
}
downloading "cannot install dom0" "check the network, then $0 $OUT" install_dom0

step "making dom0's RAM disk and disk"
mkdir -p ramdisk/bin ramdisk/modules ramdisk/dev ramdisk/proc ramdisk/sys ramdisk/root
cp root/bin/busybox ramdisk/bin/
install -m 755 "$RIG/ramdisk-init" ramdisk/init
with_dependencies "${BOOT_MODULES[@]}" | while read -r module; do
    cp "$module" ramdisk/modules/
    basename "$module" >>ramdisk/modules/order
done
(cd ramdisk && find . | cpio -o -H newc --quiet) >initrd-dom0
with_dependencies "${DISK_MODULES[@]}" | while read -r module; do
    install -D "$module" "root/lib/modules/$VERSION/${module##*"/$VERSION/"}"
done
cp "unpacked/lib/modules/$VERSION"/modules.{order,builtin,builtin.modinfo} "root/lib/modules/$VERSION/"
depmod -b root "$VERSION"
install -m 755 "$RIG/dom0-init" root/sbin/dom0-init
install -D -m 644 "$RIG/agent.py" root/opt/agent.py
mkdir -p root/host
rm -rf root/var/cache/apt/* root/var/lib/apt/lists/*
# no journal and no checksums: every run starts from this image and throws its changes away
mke2fs -q -t ext4 -O ^metadata_csum,^has_journal -m 0 -d root disk "$(($(du -sm root | cut -f1) + 300))M"

for file in xen vmlinux-dom0 initrd-dom0 disk; do
    mv "$file" "$OUT/$file"
done
printf '%s\n' "$stamp" >"$OUT/stamp"
step "made $OUT: disk of $(du -m "$OUT/disk" | cut -f1) MiB"
