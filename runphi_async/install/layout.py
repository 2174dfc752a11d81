# SPDX-License-Identifier: Apache-2.0
"""What an installation consists of, how it is put on the machine and taken off again.

Every file and directory is written down before it is made. An installation that was killed is finished by the same
call, or removed by ``--uninstall``, which leaves alone what somebody has changed.
"""

from __future__ import annotations

import os
import select
import signal
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from runphi_async import digits, wire
from runphi_async.errors import RunphiError
from runphi_async.install import record, settings, tree, units
from runphi_async.install.root import CONFIG, HOME, SBIN, digest, digest_of, relative, remove
from runphi_async.install.steps import step
from runphi_async.version import VERSION

if TYPE_CHECKING:
    from collections.abc import Callable

    from runphi_async.install.root import Root

NAME: Final = "install"
UNITS: Final = "/etc/systemd/system"
#: Where Debian's package lists its files: what it brought, it takes away.
PACKAGE: Final = "/var/lib/dpkg/info/runphi-async.list"
RUN_DIR: Final = wire.DEFAULT_RUN_DIR
#: What backends.qemu.accel.cache keeps for all supervisors; one that is left proves anew.
PROOFS: Final = "/run/runphi"
#: Seconds that a supervisor may take to end; it only closes what it has.
ENDING: Final = 30.0
#: files of packaging/ and where they go
_EXTRAS: Final = {
    "completion/runphi.bash": "/usr/share/bash-completion/completions/runphi",
    "runphi.8": "/usr/share/man/man8/runphi.8",
}


def files(top: str) -> dict[str, bytes]:
    """Return the files beside the home and the configuration, by name."""
    found = {}
    for name in units.NAMES:
        with open(f"{top}/packaging/{name}") as file:
            found[f"{UNITS}/{name}"] = units.text(file.read()).encode()
    for name, path in _EXTRAS.items():
        with open(f"{top}/packaging/{name}", "rb") as data:
            found[path] = data.read()
    return found


def launchers() -> dict[str, str]:
    """Return the launchers on the PATH and what they start."""
    return {
        f"{SBIN}/runphi": f"{HOME}/bin/runphi",
        f"{SBIN}/runphid": f"{HOME}/bin/runphid",
        f"{SBIN}/runphi-configure": f"{HOME}/bin/configure",
        f"{SBIN}/runphi-prepare-guest": f"{HOME}/bin/prepare-guest",
        f"{SBIN}/start_jailhouse": f"{HOME}/bin/start_jailhouse",
    }


def is_package(root: Root) -> bool:
    """Whether Debian's package made the installation: then it is the package manager's, all but the configuration."""
    return os.path.exists(root(PACKAGE)) and os.path.isdir(root(HOME))


class Plan(NamedTuple):
    """What an installation writes.

    :ivar extras: files by their names; ``links``: launchers and what they start.
    :ivar during: the record until it is done: both the old and the new version of a file are ours; ``after``: then.
    :ivar kept: files of ours that somebody has changed.
    """

    extras: dict[str, bytes]
    links: dict[str, str]
    during: dict[str, Any]
    after: dict[str, Any]
    kept: list[str]


def plan(root: Root, backend: str, board: str) -> Plan:
    """Decide what is written; nothing is.

    :raises RunphiError: a file of somebody else is in one of the places.
    """
    whole = not is_package(root)
    known: dict[str, Any] = record.load(root, NAME) or {"files": {}, "directories": []}
    old: dict[str, list[str]] = known["files"]
    extras, links = (files(tree.source()), launchers()) if whole else ({}, {})
    for path in (*extras, *links):
        if os.path.lexists(root(path)) and path not in old:
            what = f"cannot install: {root(path)} is there and was not made by us"
            raise RunphiError(what, "move it away and try again")
    extras[CONFIG] = settings.text(backend, board).encode()
    kept = [path for path in extras if digest(root(path)) not in ("", *old.get(path, []))]
    extras = {path: data for path, data in extras.items() if path not in kept}
    new = {path: [digest_of(data)] for path, data in extras.items()}
    new |= {path: [f"link:{relative(path, target)}"] for path, target in links.items()}
    places = [os.path.dirname(path) for path in new] + ([HOME] if whole else [])
    directories = {directory for place in places for directory in root.missing_directories(place)}
    after = {
        **known,
        "version": VERSION,
        "backend": backend,
        "trees": tree.parts() if whole else [],
        "directories": sorted(directories | set(known["directories"])),
        "files": {path: was[-1:] for path, was in old.items()} | new,
    }
    during = {**after, "files": {path: [*old.get(path, []), *then] for path, then in after["files"].items()}}
    return Plan(extras, links, during, after, kept)


def install(root: Root, backend: str, board: str, wheels: str | None, say: Callable[[str], None]) -> None:
    """Install, or bring an installation up to date."""
    settings.check_board(board)
    wanted = plan(root, backend, board)
    record.save(root, NAME, wanted.during)
    step("install: written down")
    new = not is_package(root) and tree.put(root, wheels or tree.wheels_beside(tree.source()))
    say(f"runPHI {VERSION} is in {root(HOME)}" if new else f"runPHI {VERSION} in {root(HOME)} stays as it is")
    for path, data in wanted.extras.items():
        root.write(path, data)
        step(f"install: {path}")
    for path, target in wanted.links.items():
        root.link(path, relative(path, target))
        step(f"install: {path}")
    record.save(root, NAME, wanted.after)
    units.systemctl(root, "daemon-reload")
    _tell(root, backend, board, wanted, say)


def _tell(root: Root, backend: str, board: str, wanted: Plan, say: Callable[[str], None]) -> None:
    for path in wanted.kept:
        if path != CONFIG:
            say(f"{root(path)} was changed by somebody and stays so")
    if CONFIG not in wanted.kept:
        say(f"{root(CONFIG)} says backend {backend}")
        if backend == "jailhouse" and not board:
            say(f"no board is set: write jailhouse.board into {root(CONFIG)}, or say --board NAME")
    elif missing := settings.differences(root, backend, board):
        say(f"{root(CONFIG)} is yours and was left alone; write into it: {', '.join(missing)}")


def uninstall(root: Root, say: Callable[[str], None]) -> None:
    """Remove everything that was installed and is as we made it."""
    if is_package(root):
        raise RunphiError("cannot uninstall: Debian's package runphi-async is installed", "apt-get remove runphi-async")
    known = record.load(root, NAME)
    if known is None:
        say("runPHI is not installed here")
        return
    stop(root)
    step("uninstall: supervisor ended")
    for path, written in sorted(known["files"].items()):
        if digest(root(path)) not in ("", *written):
            say(f"{root(path)} was changed by somebody and stays")
        else:
            remove(root(path))
    step("uninstall: files")
    for path in known["trees"]:
        remove(root(path))
        step(f"uninstall: {os.path.basename(path)}")
    record.remove_empty(root, known["directories"])
    step("uninstall: directories")
    record.forget(root, NAME)
    units.systemctl(root, "daemon-reload")
    say("runPHI is removed")
    for path in ("/var/log/runphi", "/var/lib/runphi"):
        if os.path.isdir(root(path)):
            say(f"{root(path)} holds what was made since and stays")


def stop(root: Root) -> None:
    """End the supervisor for good.

    :raises RunphiError: there are partitions, which would be left to nobody.
    """
    _refuse_containers(root)
    units.systemctl(root, "disable", "--now", *reversed(units.NAMES))
    _end_supervisor(root)


def containers(root: Root) -> list[str]:
    """Return the names of the partitions there are."""
    directory = root(RUN_DIR)
    try:
        names = os.listdir(directory)
    except FileNotFoundError:
        return []
    return sorted(name for name in names if os.path.isfile(f"{directory}/{name}/state.json"))


def _refuse_containers(root: Root) -> None:
    living = containers(root)
    if living:
        raise RunphiError(f"cannot uninstall: there are partitions: {', '.join(living)}", "delete them first")


def _end_supervisor(root: Root) -> None:
    """End the supervisor of this installation and remove what it left in memory."""
    if not root.is_machine:
        return
    directory = RUN_DIR
    pid = root.read(f"{directory}/supervisor.pid")
    number = digits.whole(pid.strip(), digits.PID_MAX) if pid is not None else None
    if number and _is_supervisor(number):
        _end(number)
    if os.path.isdir(directory) and os.path.exists(f"{directory}/start.lock"):
        remove(directory)
    remove(PROOFS)


def _is_supervisor(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            return b"/bin/runphid" in file.read()
    except OSError:
        return False


def _end(pid: int) -> None:
    try:
        process = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        if _is_supervisor(pid):
            signal.pidfd_send_signal(process, signal.SIGTERM)
            if not select.select([process], [], [], ENDING)[0]:
                raise RunphiError(f"cannot end the supervisor: process {pid} goes on", "end it, then try again")
    finally:
        os.close(process)
