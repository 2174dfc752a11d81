#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# Makes the Xen machine of the test suite `xen` in DIRECTORY, from Debian packages alone: hypervisor, kernel and RAM
# disk of dom0, and a disk with Xen's tools, Python and containerd. Needs root and half a minute to two minutes; what
# is made is kept until this folder, the package versions or the modules change.
# usage: build.sh DIRECTORY

# shellcheck source=bin/lib.sh
. "$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")/../../../bin/lib.sh"

RIG=$CHECKOUT/tests/xen/rig
OUT=${1:?usage: build.sh DIRECTORY}
XEN=xen-hypervisor-4.17-amd64
#: packages of dom0 besides the essential ones
DOM0=(
    busybox-static containerd e2fsprogs ipxe-qemu iproute2 kmod libpython3-stdlib mount procps python3-minimal
    qemu-system-xen runc seabios udev xen-utils-4.17 xenstore-utils
)
#: the modules that dom0's RAM disk loads, in order, and those that stay on its disk
BOOT_MODULES=(
    virtio_pci virtio_blk crc32c_generic ext4 virtio_console 9pnet_virtio 9p
    xen-evtchn xen-gntdev xen-gntalloc xen-privcmd xenfs xen-blkback loop overlay
)
DISK_MODULES=(bridge xen-netback)
#: how often a step that needs the network is tried, and how often apt asks for one file
TRIES=3

need_root
apt_need mmdebstrap cpio kmod e2fsprogs python3

# The kernel that the metapackage stands for.
kernel_package() {
    apt-cache depends linux-image-amd64 | sed -n 's/^ *Depends: \(linux-image-[^ ]*\)$/\1/p' | head -n 1
}
refresh() {
    attempt "cannot read the package lists" "check the network and /etc/apt/sources.list*" \
        apt-get -q -o "Acquire::Retries=$TRIES" update
}
KERNEL=$(kernel_package)
if [ -z "$KERNEL" ]; then
    step "reading the package lists"
    refresh
    KERNEL=$(kernel_package)
fi
[ -n "$KERNEL" ] || die "cannot find Debian's kernel package" "apt-get update, then $0 $OUT"
VERSION=${KERNEL#linux-image-}

stamp=$(
    cat "$RIG"/* | sha256sum
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
rm -f "$OUT/stamp"
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
zcat unpacked/boot/xen-4.17-amd64.gz >xen
# Under software emulation the kernel's own decompressor takes eight seconds: it is done here.
python3 "$RIG/unpack_kernel.py" "unpacked/boot/vmlinuz-$VERSION" vmlinux-dom0
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
        bookworm root "${mirrors[@]}" 2>&1 | tee >(sed -un 's/^I: /       /p' >&3)
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
