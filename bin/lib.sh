# SPDX-License-Identifier: Apache-2.0
# Shell helpers that bin/quickstart, bin/test and the other scripts share. Source it, do not run it.
# shellcheck shell=bash

set -euo pipefail

CHECKOUT=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)
VENV=$CHECKOUT/.venv
PYTHON=$VENV/bin/python
#: there while the environment is changed: found there by the next run, it tells that the last one was interrupted
VENV_UNFINISHED=$VENV.unfinished
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

#: seconds that apt waits for another apt, such as that of a run which was killed
APT_WAITS=300

# apt_need PACKAGE…: install the packages that are not there yet
apt_need() {
    local package missing=()
    allow_services
    for package in "$@"; do
        dpkg-query -W -f '${db:Status-Status}\n' "$package" 2>/dev/null | grep -qx installed ||
            missing+=("$package")
    done
    [ ${#missing[@]} = 0 ] && return
    need_debian
    need_root
    step "installing ${missing[*]} (once, a minute or two)"
    export DEBIAN_FRONTEND=noninteractive
    case " ${missing[*]} " in *" docker.io "*) forbid_services ;; esac
    finish_dpkg
    mapfile -t -O ${#missing[@]} missing < <(half_installed)
    attempt "cannot read the package lists" "check the network and /etc/apt/sources.list*" \
        apt-get -q -o Acquire::Retries=3 update
    attempt "cannot install ${missing[*]}" "run: apt-get install ${missing[*]}" \
        apt-get -q -y --no-install-recommends -o Dpkg::Use-Pty=0 -o Acquire::Retries=3 \
        -o "DPkg::Lock::Timeout=$APT_WAITS" install --reinstall "${missing[@]}"
    allow_services
}

# finish_dpkg: go on with an installation that was interrupted: apt refuses any other before
finish_dpkg() {
    [ -n "$(dpkg --audit)" ] || [ -n "$(ls /var/lib/dpkg/updates)" ] || return 0
    step "finishing an installation that was interrupted"
    # whatever it cannot do is tried by apt, and told by it
    dpkg --configure -a --force-confdef --force-confold >/dev/null 2>&1 </dev/null || true
}

# half_installed: the packages that dpkg was killed over; they have to be unpacked anew, which apt does only when told to
half_installed() {
    dpkg-query -W -f '${binary:Package} ${db:Status-Status}\n' | sed -n 's/ half-installed$//p'
}

#: asked by Debian's packages before they start a daemon
POLICY=/usr/sbin/policy-rc.d

# forbid_services: let no package start its daemon: a dockerd nobody asked for would change firewall and bridges
forbid_services() {
    [ ! -e "$POLICY" ] || return 0
    printf '#!/bin/sh\n# runphi: while process %s installs packages\nexit 101\n' "$$" >"$POLICY.new"
    chmod 755 "$POLICY.new"
    mv "$POLICY.new" "$POLICY"
    trap allow_services EXIT
}

# allow_services: take back what forbid_services did, here or in a run that was killed; a policy of somebody else stays
allow_services() {
    local by
    grep -qs '^# runphi: while ' "$POLICY" || return 0
    by=$(sed -n 's/^# runphi: while process \([0-9]*\) .*/\1/p' "$POLICY")
    if [ "$by" = "$$" ]; then
        trap - EXIT
    elif [ "$(id -u)" != 0 ] || { [ -n "$by" ] && [ -e "/proc/$by" ]; }; then
        return 0
    fi
    rm -f "$POLICY"
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

# need_venv [EXTRA…]: make <checkout>/.venv and install what pyproject.toml asks for; no work when nothing changed. What
# an interrupted run has left half made is made anew.
need_venv() {
    local lock
    ! venv_is_ready "$@" || return 0
    # held by pip as well, which may outlive a run that was killed
    exec {lock}>"$VENV.lock"
    if ! flock -n "$lock"; then
        step "waiting for another run to make $VENV"
        flock "$lock"
    fi
    make_venv "$@"
    exec {lock}>&-
}

# venv_is_whole: is the environment there, and was it never left while it was changed?
venv_is_whole() {
    [ ! -e "$VENV_UNFINISHED" ] && "$PYTHON" -c 'import pip, sys; sys.exit(sys.prefix == sys.base_prefix)' 2>/dev/null
}

# venv_has LIST STAMP: were these packages installed?
venv_has() {
    [ -e "$2" ] && [ "$1" = "$(cat "$2")" ]
}

# venv_is_ready [EXTRA…]: is there nothing to do?
venv_is_ready() {
    local extra
    venv_is_whole || return 1
    for extra in "" "$@"; do
        venv_has "$(requirements ${extra:+"$extra"})" "$VENV/.installed-${extra:-run}" || return 1
    done
}

# make_venv [EXTRA…]: what need_venv does while no other run does
make_venv() {
    local extra list stamp
    if ! venv_is_whole; then
        step "making the Python environment $VENV"
        : >"$VENV_UNFINISHED"
        rm -rf "$VENV"
        attempt "cannot make the Python environment $VENV" "install python3-venv" \
            /usr/bin/python3 -m venv "$VENV"
        rm "$VENV_UNFINISHED"
    fi
    for extra in "" "$@"; do
        list=$(requirements ${extra:+"$extra"})
        stamp=$VENV/.installed-${extra:-run}
        ! venv_has "$list" "$stamp" || continue
        step "installing Python packages (${extra:-run})"
        : >"$VENV_UNFINISHED"
        if ! (venv_install "$list"); then
            # as without a network: pip has ended before it changed anything, and what was there is as good as before
            [ -n "$(find "$VENV/" -newer "$VENV_UNFINISHED" -print -quit)" ] || rm "$VENV_UNFINISHED"
            exit 1
        fi
        printf '%s\n' "$list" >"$stamp"
        rm "$VENV_UNFINISHED"
    done
}

# venv_install LIST: install packages, one a line
venv_install() {
    local packages
    mapfile -t packages <<<"$1"
    attempt "cannot install the Python packages ${packages[*]}" "check the network, then run $0 again" \
        "$PYTHON" -m pip install --quiet --disable-pip-version-check "${packages[@]}"
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
