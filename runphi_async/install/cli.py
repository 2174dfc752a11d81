# SPDX-License-Identifier: Apache-2.0
"""The command line of ``bin/configure`` (``runphi-configure`` once it is installed)."""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import os
import sys
from typing import TYPE_CHECKING, NoReturn

from runphi_async.errors import RunphiError, UsageError
from runphi_async.install import change, detect, layout, runc
from runphi_async.install.engines import ENGINES, containerd, engine
from runphi_async.install.root import SBIN, Root

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(message, f"{self.prog} --help shows how")


def parser(name: str = "configure") -> argparse.ArgumentParser:
    """Return the parser."""
    made = _Parser(
        prog=name,
        allow_abbrev=False,
        description="Put runPHI on this machine, make it known to container engines, and take both back.",
    )
    what = made.add_argument_group("install")
    which = what.add_mutually_exclusive_group()
    which.add_argument("-c", dest="backend", choices=detect.ORDER, help="install for this backend")
    which.add_argument("-a", dest="auto", action="store_true", help=f"the first there is of {', '.join(detect.ORDER)}")
    which.add_argument("--uninstall", action="store_true", help="undo everything, and remove what was installed")
    which.add_argument("--before-removal", action="store_true", help="undo everything; the package calls it")
    what.add_argument("--board", default="", metavar="BOARD", help="Jailhouse's board: a name or a file")
    what.add_argument("--wheels", metavar="DIR", help="take the Python packages from here, without a network")
    what.add_argument("--destdir", default="", metavar="DIR", help="work on the tree in DIR instead of on this machine")
    name_group = made.add_argument_group("under the name runc").add_mutually_exclusive_group()
    name_group.add_argument(
        "--replace-runc", action="store_true", help="be runc; the ordinary one is kept as runc_vanilla"
    )
    name_group.add_argument("--restore", action="store_true", help="runc becomes runc again")
    engines = made.add_argument_group("as a runtime of an engine")
    engines.add_argument("--engine", action="append", choices=ENGINES, help="add a runtime runphi; may be repeated")
    engines.add_argument("--undo", action="store_true", help="put back what --engine changed; without it all")
    engines.add_argument("--yes", "-y", action="store_true", help="do not ask")
    return made


def main(argv: Sequence[str], name: str = "configure") -> int:
    """Do what the command line says; return the exit status."""
    try:
        given = parser(name).parse_args(argv)
        root = Root(given.destdir)
        if root.is_machine and os.geteuid() != 0:
            raise RunphiError("cannot change this machine: only root may", f"sudo {name} …")
        with _alone(root):
            return _run(given, root, name)
    except RunphiError as exc:
        _say(f"{name}: {exc}", error=True)
        return exc.status
    except OSError as exc:
        _say(f"{name}: cannot go on: {exc.strerror}: {exc.filename}; mend it and say the same again", error=True)
        return 1


def _run(given: argparse.Namespace, root: Root, name: str) -> int:
    if given.uninstall or given.before_removal:
        _undo(root, change.changed(root))
        if runc.is_replaced(root):
            _say(runc.restore(root))
        layout.stop(root) if given.before_removal else layout.uninstall(root, _say)
        return 0
    if given.undo:
        _undo(root, given.engine or change.changed(root))
        return 0
    backend = _detected(root) if given.auto else given.backend
    if backend:
        layout.install(root, backend, given.board, given.wheels, _say)
    if given.replace_runc:
        _say(runc.replace(root))
    if given.restore:
        _say(runc.restore(root))
    for engine_name in given.engine or ():
        if not _engine(root, engine_name, given.yes):
            return 1
    if not (backend or given.replace_runc or given.restore or given.engine):
        raise UsageError("nothing to do", f"{name} -a installs; {name} --help lists the rest")
    return 0


def _detected(root: Root) -> str:
    answers = detect.judge(detect.read(root.destdir))
    for line in detect.explain(answers):
        _say(line)
    backend = detect.choose(answers)
    if backend is None:
        raise RunphiError("cannot find any backend on this machine", "install one of them, or say which with -c")
    return backend


def _engine(root: Root, name: str, yes: bool) -> bool:
    """Add the runtime to an engine; False when somebody said no."""
    if not os.path.exists(root(f"{SBIN}/runphi")):
        raise RunphiError(f"cannot make runPHI known to {name}: it is not installed", "configure -a installs it")
    planned = change.plan(root, name)
    if not planned.needed:
        _say(f"{root(planned.path)} names the runtime runphi already")
        return True
    _say(change.diff(planned.before, planned.after, root(planned.path)).rstrip("\n"))
    if not yes:
        if not sys.stdin.isatty():
            raise RunphiError(f"cannot ask whether to change {root(planned.path)}", "say --yes to change it unasked")
        _say("Change it so? [y/N] ", end="")
        if sys.stdin.readline().strip().lower() not in ("y", "yes"):
            _say("nothing was changed")
            return False
    change.apply(root, planned)
    _say(f"{root(planned.path)} is changed; --engine {name} --undo puts it back")
    if name == "containerd" and (remark := containerd.remark(planned.after.decode())):
        _say(remark)
    if engine(name).after:
        _say(f"for {name} to read it: {engine(name).after}")
    _say(f"then: {engine(name).use}")
    return True


def _undo(root: Root, names: Sequence[str]) -> None:
    """Undo all that can be; the first refusal is said last, when the others are done."""
    refused: RunphiError | None = None
    for name in names:
        try:
            _say(change.undo(root, name))
            if engine(name).after:
                _say(f"for {name} to read it: {engine(name).after}")
        except RunphiError as exc:
            refused = refused or exc
    if refused is not None:
        raise refused


@contextlib.contextmanager
def _alone(root: Root) -> Iterator[None]:
    """Let one of us work on a tree at a time."""
    os.makedirs(root("/"), exist_ok=True)
    fd = os.open(root("/"), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def _say(text: str, *, end: str = "\n", error: bool = False) -> None:
    stream = sys.stderr if error else sys.stdout
    stream.write(text + end)
    stream.flush()
