# SPDX-License-Identifier: Apache-2.0
"""Starts the private engine, shows or checks the demo, says what is wrong, and leaves nothing running."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from backends.qemu.settings import ACCEL_VARIABLE
from runphi_async.config.loading import PATH_VARIABLE
from runphi_async.doctor.report import save
from runphi_async.doctor.text import Secrets, Section, render
from runphi_async.errors import RunphiError
from runphi_async.operations.timeline import safe
from runphi_async.testing.cellboard import CellBoard
from runphi_async.testing.containerd import RUNPHI, EngineError, PrivateContainerd, listener_pid, stop_process
from runphi_async.testing.fake_jailhouse import inmates
from runphi_async.testing.quickstart import live
from runphi_async.testing.quickstart.causes import Facts, diagnose
from runphi_async.testing.quickstart.screen import OutputGone, say
from runphi_async.testing.quickstart.talks import (
    DEMO_ARGS,
    TALKS,
    CheckFailure,
    Stage,
    Talk,
    cell_args,
    cell_talk,
    run_args,
)
from runphi_async.testing.quickstart.witness import DOCTOR_PATIENCE, Story, Witness, gather

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType

#: signals that end us; everything that was started ends with us
ENDING: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
#: what the caller may say of the configuration
PASSED_ON: Final = (PATH_VARIABLE, ACCEL_VARIABLE)
#: exit status when nobody reads what we print, as of a program that SIGPIPE ends
PIPE_CLOSED: Final = 141
#: beginnings of reasons that a guest, or whoever uses it, decided on
OWN_ENDS: Final = ("exited with", "guest powered off", "killed by signal", "guest reset")


class Interrupted(BaseException):
    """Raised by the signals that end us."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


class Wish(NamedTuple):
    """What was asked for on the command line.

    :ivar store: what is kept from run to run; the report is written there.
    :ivar check: one line for each conversation, not the conversation itself.
    :ivar terminal: a person is there.
    """

    store: Path
    run: Path
    check: bool
    sim: bool
    terminal: bool

    @property
    def board(self) -> Path:
        """Directory of the simulated board."""
        return self.run.with_name(f"{self.run.name}-sim")


class Desk:
    """The private engine and what is learnt of failures on it."""

    def __init__(self, wish: Wish, engine: PrivateContainerd) -> None:
        self.wish = wish
        self.engine = engine
        self.witness = Witness(engine.run_dir)
        self._stories: list[tuple[str, Story]] = []
        self._report = b""

    def blame(self, container: str, facts: Facts) -> None:
        """Says what is known of a failure, what it means and how to mend it; the container should still be there."""
        story = gather(self.witness, self.engine, container, facts)
        self._stories.append((facts.what, story))
        for line in story.lines:
            say(f"        {safe(line)}")
        cause = diagnose(story.facts)
        say(f"        cause: {cause.says}")
        say(f"        to mend it: {cause.mend}")
        if not self._report:
            self._report = report(self.engine)

    def write_report(self) -> None:
        """Writes the report, what was seen here in front."""
        if not self._stories:
            return
        sections = [Section(f"Quickstart: {what}: {diagnose(s.facts).name}", told(s)) for what, s in self._stories]
        path = self.wish.store / "report.txt"
        try:
            save(str(path), render("# What bin/quickstart saw\n", sections, Secrets(())) + b"\n" + self._report)
        except RunphiError as exc:
            say(f"quickstart: {exc}")
            return
        say(f"quickstart: a report to attach to a bug is in {path}; look through it before you publish it")


def told(story: Story) -> tuple[str, ...]:
    """What a report says of a failure."""
    said = story.facts.said.splitlines()[-20:]
    return (story.facts.error, *story.lines, "printed:", *(f"  {line}" for line in said))


def report(engine: PrivateContainerd) -> bytes:
    """The runtime's own report; a line that says so where there is none."""
    try:
        done = subprocess.run(
            [RUNPHI, "doctor", "--report", "-"], env=engine.client_env, stdin=subprocess.DEVNULL, capture_output=True,
            timeout=DOCTOR_PATIENCE, check=False,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired) as exc:
        return f"(`runphi doctor --report` failed: {exc})\n".encode()
    return done.stdout or f"(`runphi doctor --report` failed: {done.stderr.decode(errors='replace')})\n".encode()


# Section: with and without a person


def converse(desk: Desk, talks: tuple[Talk, ...]) -> int:
    """Holds every conversation; returns how many failed."""
    failures = 0
    stage = Stage(desk.engine, show=not desk.wish.check)
    for talk in talks:
        if stage.show:
            say(f"\n{talk.title}: {talk.shown}")
        desk.witness.forget(talk.container)
        begun = time.monotonic()
        try:
            verdict, facts = f"ok      {talk.run(stage)}", None
        except (CheckFailure, EngineError, OSError) as exc:
            failures += 1
            verdict = f"FAILED  {exc}"
            facts = Facts(
                talk.title, error=str(exc), said=stage.said(), late=getattr(exc, "late", False),
                number=getattr(exc, "errno", 0) or 0,
            )  # fmt: skip
        if isinstance(facts, Facts) and stage.show:
            say("")
        say(f"  {talk.title:18}{time.monotonic() - begun:6.2f} s  {verdict}")
        if facts is not None:
            desk.blame(talk.container, facts)
        elif why := desk.witness.fallback(talk.container):
            say(f"        KVM failed it, so it was started once more in software: {safe(why)}")
        stage.clear()
    return failures


def show(desk: Desk, talk: Talk, args: tuple[str, ...]) -> int:
    """Leaves the person in the console of a demo guest; returns the exit code."""
    keys = "exit 0 in the guest, or ctrl-c or ctrl-d"
    attach = f"RUNPHI_RUN_DIR={desk.engine.run_dir} {RUNPHI} attach {talk.container}"
    say(f"\nThe console of a {talk.title}. To leave: {keys}   To join from a second terminal: {attach}\n")
    command = desk.engine.command(*run_args(*args, talk.container, "/x", tty=True))
    ending = live.hold(command, desk.engine.client_env)
    events = desk.witness.events(talk.container)
    reason = next((str(e.get("reason")) for e in reversed(events) if e.get("event") == "exit"), "")
    if ending.left and ending.seen:
        say(f"\nLeft the {talk.title}; it ends with this.")
        return ending.code
    if reason.startswith(OWN_ENDS) and not ending.left:
        say(f"\nThe guest has ended with exit code {ending.code}.")
        return ending.code
    said = ending.seen.decode(errors="replace")
    error = "it said nothing until you left" if ending.left else f"the {talk.title} ended with {ending.code}"
    say(f"\n  {talk.title}  FAILED  {error}")
    desk.blame(talk.container, Facts(talk.title, error=error, said=said, late=ending.left))
    return ending.code or 1


# Section: all of it


def simulate(place: Path) -> tuple[CellBoard, dict[str, str]]:
    """Switches a simulated board on; returns it and the environment of its runtime."""
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    board = CellBoard(place)
    (place / "demo.bin").write_bytes(inmates.image("demo"))
    settings = "\n".join(f"{key} = {json.dumps(value)}" for key, value in board.settings().items())
    config = place / "config.toml"
    config.write_text(f'[inmate]\nhost_paths = ["{place}"]\n[jailhouse]\n{settings}\n')
    return board, {"RUNPHI_CONFIG": str(config), "FAKE_JAILHOUSE": str(board.place.root)}


def alone(run: Path) -> int | None:
    """Takes the lock of a run directory for as long as we live; None when another quickstart has it."""
    run.parent.mkdir(parents=True, exist_ok=True)
    fd = os.open(run.with_name(f"{run.name}.lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        return None
    return fd


def sweep(engine: PrivateContainerd) -> None:
    """Ends what an earlier quickstart left that was killed (we have its lock), and begins new logs."""
    pid = listener_pid(engine.socket)
    if pid is not None or engine.supervisor_pid() is not None or any(engine.processes()):
        say("quickstart: an earlier one was killed: ending what it left")
        if pid is not None:
            stop_process(pid)
        engine.clean()
    for log in (engine.log, engine.run_dir / "supervisor.log"):
        log.unlink(missing_ok=True)


def perform(desk: Desk, board: CellBoard | None) -> int:
    """Starts the engine and does what was asked for."""
    wish, engine = desk.wish, desk.engine
    try:
        sweep(engine)
        engine.start()
        engine.remove_containers()
        taken = engine.import_images(sorted((wish.store / "images").glob("*.tar")))
    except (EngineError, OSError, subprocess.TimeoutExpired) as exc:
        say(f"quickstart: {exc}")
        desk.blame("", Facts("private engine", error=str(exc), number=getattr(exc, "errno", 0) or 0))
        return 1
    if taken:
        say(f"       imported {', '.join(archive.stem for archive in taken)}")
    inmate = wish.board / "demo.bin"
    talks = (cell_talk(inmate),) if board is not None else TALKS
    if wish.check or not wish.terminal:
        return int(bool(converse(desk, talks)))
    return show(desk, talks[0], cell_args(inmate) if board is not None else DEMO_ARGS)


def _interrupted(number: int, frame: FrameType | None) -> None:
    for each in ENDING:  # the clean-up is bounded, and not to be disturbed
        signal.signal(each, signal.SIG_IGN)
    raise Interrupted(number)


@contextlib.contextmanager
def undisturbed() -> Iterator[None]:
    """Lets a signal wait for the end of the block: what is made there can be taken away only when all of it is known.

    The signals are not blocked, as children would inherit that.
    """
    came: list[int] = []
    for each in ENDING:
        signal.signal(each, lambda number, frame: came.append(number))
    yield
    for each in ENDING:
        signal.signal(each, _interrupted)
    if came:
        _interrupted(came[0], None)


def main(wish: Wish) -> int:
    """Does it and leaves nothing running; returns the exit status."""
    lock = alone(wish.run)
    if lock is None:
        say(f"quickstart: another one runs in {wish.run}\n  to mend it: end it, or set RUNPHI_QUICKSTART=other-name")
        return 1
    code, left = 1, []
    board: CellBoard | None = None
    engine: PrivateContainerd | None = None
    desk: Desk | None = None
    try:
        with undisturbed():
            board, env = simulate(wish.board) if wish.sim else (None, {})
            env = {**{name: os.environ[name] for name in PASSED_ON if os.environ.get(name)}, **env}
            engine = PrivateContainerd(wish.store, wish.run, wish.run.name, env=env)
            desk = Desk(wish, engine)
        code = perform(desk, board)
    except Interrupted as exc:
        code = 128 + exc.number
        with contextlib.suppress(OutputGone):
            say(f"\nquickstart: {signal.Signals(exc.number).name}: cleaning up")
    except OutputGone:
        code = PIPE_CLOSED
    finally:
        for number in ENDING:
            signal.signal(number, signal.SIG_IGN)
        with contextlib.suppress(OutputGone):
            if desk is not None:
                desk.write_report()
        if desk is not None:
            desk.witness.close()
        if engine is not None:
            left = engine.stop()
        if board is not None:
            board.close()
            shutil.rmtree(wish.board, ignore_errors=True)
    with contextlib.suppress(OutputGone):
        for thing in left:
            say(f"quickstart: was left over and is removed now: {thing}")
        if wish.check or not wish.terminal:
            code = code or int(bool(left))
            say("quickstart: something is wrong" if code else "quickstart: all is well")
    return code


if __name__ == "__main__":
    options = sys.argv[3:]
    both = os.isatty(0) and os.isatty(1)
    asked = Wish(Path(sys.argv[1]), Path(sys.argv[2]), "--check" in options, "jailhouse-sim" in options, both)
    sys.exit(main(asked))
