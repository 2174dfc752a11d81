# SPDX-License-Identifier: Apache-2.0
# Shell helpers that bin/quickstart, bin/test and the other scripts share. Source it, do not run it.
# shellcheck shell=bash

set -euo pipefail

CHECKOUT=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)
VENV=$CHECKOUT/.venv
PYTHON=$VENV/bin/python
#: where bin/prepare-guest puts the guest kernel and its initrd
GUEST_DIR=/var/lib/runphi/guest
STEP_START=$SECONDS

#: what the runtime and its demo need to run
RUN_PACKAGES=(
    qemu-system-x86 qemu-system-common qemu-system-arm containerd runc busybox-static
    gcc libc6-dev binutils gcc-aarch64-linux-gnu python3 python3-venv
    ca-certificates cpio kmod lz4 xz-utils zstd
)

#: what the tests need beside that
TEST_PACKAGES=(
    socat containernetworking-plugins iproute2 podman conmon catatonit docker.io git netavark aardvark-dns
    device-tree-compiler e2fsprogs libc6-dev-arm64-cross libxen-dev procps systemd
)

# What other releases than Debian 12 call otherwise or have in packages of their own; testing has no VERSION_ID.
# shellcheck source=/dev/null
case $(. /etc/os-release && printf '%s' "${ID:-}${VERSION_ID:-}") in
    debian12) ;;
    *)
        RUN_PACKAGES+=(virtiofsd)
        TEST_PACKAGES+=(docker-cli nftables)
        ;;
esac

# step TEXT: say what is being done now, with the seconds since the script started
step() {
    printf '[%3ds] %s\n' "$((SECONDS - STEP_START))" "$1"
}

# die WHAT HINT: say what failed and how to mend it, then end
die() {
    printf '%s: %s\n' "${0##*/}" "$1" >&2
    [ -z "${2:-}" ] || printf '  to mend it: %s\n' "$2" >&2
    exit 1
}

# attempt WHAT HINT COMMAND…: run a command quietly; when it fails show its last words, then die
attempt() {
    local what=$1 hint=$2 log
    shift 2
    log=$(mktemp)
    if ! "$@" >"$log" 2>&1 </dev/null; then
        tail -n 15 "$log" | sed 's/^/    /' >&2
        rm -f "$log"
        die "$what" "$hint"
    fi
    rm -f "$log"
}

need_root() {
    [ "$(id -u)" = 0 ] || die "must run as root" "sudo $0"
}

need_debian() {
    command -v apt-get >/dev/null ||
        die "no apt-get on this system: only Debian 12 and 13 are supported" "install by hand: ${RUN_PACKAGES[*]}"
}

# apt_need PACKAGE…: install the packages that are not there yet
apt_need() {
    local package missing=()
    for package in "$@"; do
        dpkg-query -W -f '${db:Status-Status}\n' "$package" 2>/dev/null | grep -qx installed ||
            missing+=("$package")
    done
    [ ${#missing[@]} = 0 ] && return
    need_debian
    need_root
    step "installing ${missing[*]} (once, a minute or two)"
    export DEBIAN_FRONTEND=noninteractive
    attempt "cannot read the package lists" "check the network and /etc/apt/sources.list*" \
        apt-get -q -o Acquire::Retries=3 update
    case " ${missing[*]} " in *" docker.io "*) forbid_services ;; esac
    attempt "cannot install ${missing[*]}" "run: apt-get install ${missing[*]}" \
        apt-get -q -y --no-install-recommends -o Dpkg::Use-Pty=0 -o Acquire::Retries=3 install "${missing[@]}"
    allow_services
}

#: asked by Debian's packages before they start a daemon
POLICY=/usr/sbin/policy-rc.d

# forbid_services: let no package start its daemon: a dockerd nobody asked for would change firewall and bridges
forbid_services() {
    [ ! -e "$POLICY" ] || return 0
    printf '#!/bin/sh\n# runphi: while packages are installed\nexit 101\n' >"$POLICY"
    chmod 755 "$POLICY"
    trap allow_services EXIT
}

# allow_services: take back what forbid_services did; a policy of somebody else stays
allow_services() {
    if grep -qsx '# runphi: while packages are installed' "$POLICY"; then
        rm -f "$POLICY"
        trap - EXIT
    fi
}

# requirements EXTRA…: the dependencies named in pyproject.toml, one a line
requirements() {
    /usr/bin/python3 - "$CHECKOUT/pyproject.toml" "$@" <<'PY'
import sys, tomllib

with open(sys.argv[1], "rb") as file:
    project = tomllib.load(file)["project"]
wanted = list(project["dependencies"])
for extra in sys.argv[2:]:
    wanted += project["optional-dependencies"][extra]
print("\n".join(wanted))
PY
}

# need_venv [EXTRA…]: make <checkout>/.venv and install what pyproject.toml asks for; no work when nothing changed
need_venv() {
    local wanted extra list stamp
    if ! "$PYTHON" -c 'import sys; sys.exit(sys.prefix == sys.base_prefix)' 2>/dev/null; then
        step "making the Python environment $VENV"
        rm -rf "$VENV"
        attempt "cannot make the Python environment $VENV" "install python3-venv" \
            /usr/bin/python3 -m venv "$VENV"
    fi
    for wanted in "" "$@"; do
        extra=${wanted:-run}
        list=$(requirements ${wanted:+"$wanted"})
        stamp=$VENV/.installed-$extra
        [ -e "$stamp" ] && [ "$list" = "$(cat "$stamp")" ] && continue
        step "installing Python packages ($extra)"
        mapfile -t lines <<<"$list"
        attempt "cannot install the Python packages ${list//$'\n'/ }" "check the network, then run $0 again" \
            "$PYTHON" -m pip install --quiet --disable-pip-version-check "${lines[@]}"
        printf '%s\n' "$list" >"$stamp"
    done
}

# need_guest: unpack the guest kernel and build the initrd unless they are there already and of this checkout
need_guest() {
    if ! "$CHECKOUT/bin/prepare-guest" --check; then
        need_root
        step "preparing the guest kernel in $GUEST_DIR (once)"
        "$CHECKOUT/bin/prepare-guest" || die "cannot prepare the guest kernel" "run $CHECKOUT/bin/prepare-guest to see why"
    fi
}

# need_cells: the same for Linux cells, which are arm64 whatever this machine is
need_cells() {
    # done in no time when nothing has changed
    "$CHECKOUT/bin/prepare-guest" --cells >/dev/null ||
        die "cannot prepare the kernel of Linux cells" "run $CHECKOUT/bin/prepare-guest --cells to see why"
}
