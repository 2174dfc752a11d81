# SPDX-License-Identifier: Apache-2.0
"""The ``jailhouse`` tool, driven: one call at a time, each with a deadline, each verified by sysfs.

The tool prints nothing when it succeeds, and success is no proof: it reports success for a cell of another architecture
and makes none. So what counts is sysfs. Two kinds of bad input stop the board, so cells are checked before the tool
sees them. A call that does not come back holds the driver's mutex for ever; from then on nothing else is tried.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import re
import shutil
from asyncio.subprocess import DEVNULL, PIPE
from typing import TYPE_CHECKING, Final, NamedTuple

import anyio

from backends.jailhouse import check, codec, sysfs
from backends.jailhouse.errortext import NOT_ENABLED, NOT_LOADED, Action, Answer, Condition, Facts, Gone, Hung, explain
from backends.jailhouse.model import NAME_MAX, System
from backends.jailhouse.reading import HANGS, Reading
from runphi_async.errors import BackendError, CellError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from backends.jailhouse.model import Cell
    from backends.jailhouse.sysfs import CellSeen, View

#: Seconds that a call may take. Recorded on a slow board: 0.2; loading a Linux of 10 MB: 5.
DEADLINE: Final = 30.0
#: Seconds that a killed tool may take to end; one whose CPU is parked never does.
KILL_GRACE: Final = 1.0
#: Where daemons look for programs when the starter's PATH says nothing useful.
PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
#: Bytes of the kernel's log that are looked at for the driver's words.
LOG_MAX: Final = 1 << 16


class Places(NamedTuple):
    """Where things are: the tool, the sysfs tree, the kernel's log."""

    program: str = "jailhouse"
    sysfs: str = "/sys/devices/jailhouse"
    kernel_log: str = "/dev/kmsg"


class Image(NamedTuple):
    """What to load: a file or, where ``text`` is given, a string; and the guest's address for it.

    :ivar rcpu: the remote processor for which it is; ``path`` is a name below the firmware directory then.
    """

    address: int
    path: str = ""
    text: str | None = None
    rcpu: int | None = None


class Tool:
    """The one door to the hypervisor; calls wait for each other, whoever makes them."""

    def __init__(self, places: Places | None = None, deadline: float = DEADLINE) -> None:
        self._places = places or Places()
        self._deadline = deadline
        self.reading = Reading(self._places.sysfs)
        self._lock = anyio.Lock()
        self._stuck: asyncio.subprocess.Process | None = None
        self._stuck_at = ""

    # Section: looking

    async def look(self) -> View:
        """Return what sysfs shows.

        :raises Hung: it does not answer.
        """
        return await self.reading.call(functools.partial(sysfs.look, self._places.sysfs))

    async def condition(self) -> Condition:
        """Return what can be done with Jailhouse."""
        view = await self.look()
        if not view.module:
            return Condition.ABSENT
        return Condition.ENABLED if view.enabled else Condition.LOADED

    async def enabled(self) -> View:
        """Return what sysfs shows of a hypervisor that runs.

        :raises BackendError: none does, and why.
        """
        view = await self.look()
        if view.enabled:
            return view
        why, mend = NOT_ENABLED if view.module else NOT_LOADED
        raise BackendError(f"cannot use Jailhouse: {why}", mend)

    async def cells(self) -> dict[str, CellSeen]:
        """Return all cells by name, the root cell among them; none when Jailhouse is not enabled."""
        return {cell.name: cell for cell in (await self.look()).cells}

    # Section: doing

    async def insert(self, file: str = "") -> None:
        """Load the kernel module: the kernel's own, or the one in a file."""
        words = ("insmod", file) if file else ("modprobe", "jailhouse")
        await self._module(Action.INSERT, words, Condition.LOADED)

    async def remove(self) -> None:
        """Remove the kernel module."""
        await self._module(Action.REMOVE, ("rmmod", "jailhouse"), Condition.ABSENT)

    async def enable(self, path: str) -> None:
        """Enable the hypervisor with a system configuration.

        :raises BackendError: it cannot be enabled, and why.
        """
        async with self._lock:
            await self._run(Action.ENABLE, path, "enable", path)
            await self._expect(Action.ENABLE, path, await self.condition() is Condition.ENABLED)

    async def disable(self) -> None:
        """Destroy all cells and disable the hypervisor."""
        async with self._lock:
            await self._run(Action.DISABLE, "", "disable")
            await self._expect(Action.DISABLE, "", await self.condition() is Condition.LOADED)

    async def create(self, path: str, system: System | None = None, others: Sequence[check.Named] = ()) -> CellSeen:
        """Make a cell of a configuration file, after checking it.

        :raises BackendError: the file would hang the board, or Jailhouse refuses it.
        """
        cell = await self._checked(path, system, others)
        async with self._lock:
            await self._run(Action.CREATE, cell.name, "cell", "create", path)
            return await self._status(Action.CREATE, cell.name)

    async def load(self, name: str, images: Sequence[Image]) -> CellSeen:
        """Stop a cell and load images into it, in this order."""
        # the tool reads the words a second time and takes those for remote processors to be last
        ordered = sorted(images, key=lambda image: image.rcpu is not None)
        words = [word for image in ordered for word in _image_words(image)]
        return await self._on_cell(Action.LOAD, name, "load", *words)

    async def start(self, name: str) -> CellSeen:
        """Reset a cell's CPUs; the status is what the guest has come to since."""
        return await self._on_cell(Action.START, name, "start")

    async def shutdown(self, name: str) -> CellSeen:
        """Stop a cell; it keeps its CPUs and memory. A cell that is stopped stays so."""
        return await self._on_cell(Action.SHUTDOWN, name, "shutdown")

    async def destroy(self, name: str) -> None:
        """Take a cell away and give back what it had."""
        async with self._lock:
            await self._run(Action.DESTROY, name, "cell", "destroy", "--name", name)
            await self._expect(Action.DESTROY, name, name not in await self.cells())

    # Section: parts

    async def _module(self, action: Action, words: Sequence[str], wanted: Condition) -> None:
        async with self._lock:
            self._refuse_if_stuck(action)
            program = shutil.which(words[0], path=f"{os.environ.get('PATH', '')}:{PATH}") or words[0]
            answer = await self._call(action, words[1:], program)
            if answer.status != 0:
                raise explain(action, answer, Facts("", await self.condition()))
            await self._expect(action, "", await self.condition() is wanted)

    async def _on_cell(self, action: Action, name: str, verb: str, *words: str) -> CellSeen:
        async with self._lock:
            await self._run(action, name, "cell", verb, "--name", name, *words)
            status = await self._status(action, name)
            await self._expect(
                action, name, action is Action.START or not status.runs, f"its state is {status.state!r}"
            )
            return status

    async def _checked(self, path: str, system: System | None, others: Sequence[check.Named]) -> Cell:
        try:
            data = await anyio.to_thread.run_sync(_contents, path)
            findings = check.check_bytes(data, system, others)
            config = codec.decode(data)
        except OSError as exc:
            raise BackendError(f"cannot create a cell: {path} cannot be read: {exc.strerror}") from exc
        except CellError as exc:
            raise BackendError(f"cannot create a cell of {path}: {exc.msg}", exc.hint) from exc
        if isinstance(config, System):
            raise BackendError(f"cannot create a cell of {path}: it is a system configuration", "name a cell's file")
        errors = [finding for finding in findings if finding.severity is check.Severity.ERROR]
        if errors:
            why = f"{errors[0].where or 'the file'}: {errors[0].words}"
            raise BackendError(f"cannot create cell {config.name!r} of {path}: {why}", errors[0].mend)
        return config

    async def _status(self, action: Action, name: str) -> CellSeen:
        status = (await self.cells()).get(name)
        if status is None:
            why = "the tool reported success, but there is no such cell in sysfs"
            hint = "is the configuration for this architecture? The kernel's log tells"
            kind = BackendError if action is Action.CREATE else Gone
            raise kind(f"cannot {action} {name!r}: {why}", hint)
        return status

    async def _expect(self, action: Action, name: str, done: bool, seen: str = "sysfs shows no change") -> None:
        if not done:
            about = f" {name!r}" if name else ""
            raise BackendError(f"cannot {action}{about}: the tool reported success, but {seen}")

    async def _run(self, action: Action, target: str, *words: str) -> None:
        """Call the tool.

        :raises BackendError: it failed, cannot be called or did not come back.
        """
        self._refuse_if_stuck(action)
        if action is not Action.ENABLE and len(os.fsencode(target)) > NAME_MAX:
            raise BackendError(f"cannot {action} {target!r}: the name has more than {NAME_MAX} bytes")
        log = _KernelLog(self._places.kernel_log)
        try:
            answer = await self._call(f"{action} {target!r}" if target else action, words)
            if answer.status != 0:
                raise explain(action, answer, await self._facts(action, target, log.read()))
        finally:
            log.close()

    async def _facts(self, action: Action, target: str, reason: str) -> Facts:
        cells = await self.cells()
        is_root = action not in (Action.ENABLE, Action.CREATE) and target in cells and cells[target].id == 0
        locked = next((name for name, cell in cells.items() if cell.state == sysfs.LOCKED and name != target), "")
        return Facts(target, await self.condition(), reason, is_root, locked)

    async def _call(self, what: str, words: Sequence[str], program: str = "") -> Answer:
        hint = "install kmod" if program else "install Jailhouse's tools"
        program = program or self._places.program
        try:
            process = await asyncio.create_subprocess_exec(
                program, *words, stdin=DEVNULL, stdout=PIPE, stderr=PIPE, start_new_session=True
            )
        except OSError as exc:
            raise BackendError(f"cannot {what}: {program} cannot be run: {exc.strerror}", hint) from exc
        try:
            async with asyncio.timeout(self._deadline):
                out, err = await process.communicate()
        except TimeoutError:
            await self._give_up(process, " ".join(("jailhouse", *words[:2])))
            raise Hung(f"cannot {what}: jailhouse did not come back within {self._deadline:g} s", HANGS) from None
        except asyncio.CancelledError:
            # The driver may be half way: nothing else must be tried before the call has ended.
            with anyio.CancelScope(shield=True):
                await self._give_up(process, " ".join(("jailhouse", *words[:2])))
            raise
        assert process.returncode is not None
        return Answer(process.returncode, out.decode("utf-8", "replace"), err.decode("utf-8", "replace"))

    async def _give_up(self, process: asyncio.subprocess.Process, words: str) -> None:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        try:
            async with asyncio.timeout(KILL_GRACE):
                await process.wait()
        except TimeoutError:
            self._stuck, self._stuck_at = process, words

    def _refuse_if_stuck(self, action: Action) -> None:
        if self._stuck is not None and self._stuck.returncode is not None:
            self._stuck = None
        if self._stuck is not None:
            raise Hung(f"cannot {action}: `{self._stuck_at}` hangs and holds the driver", HANGS)


#: words of the driver; what it says of remote processors does not begin with its name
_DRIVER: Final = re.compile("jailhouse|rcpu|image file", re.IGNORECASE)


def _image_words(image: Image) -> list[str]:
    if image.rcpu is not None:
        return ["--rcpu", image.path, str(image.rcpu)]
    what = [image.path] if image.text is None else ["--string", image.text]
    return [*what, "--address", hex(image.address)]


def _contents(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read(check.CONFIG_PAGES * 4096 + 1)


class _KernelLog:
    """The kernel's log from now on; without a log, or without permission, there is nothing in it."""

    def __init__(self, path: str) -> None:
        self._fd = -1
        with contextlib.suppress(OSError):
            self._fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            os.lseek(self._fd, 0, os.SEEK_END)

    def read(self) -> str:
        """Return what the driver has said since, one line."""
        if self._fd < 0:
            return ""
        text = b""
        with contextlib.suppress(OSError):
            # /dev/kmsg gives one record a read, a file all at once; a full ring ends with an error.
            while len(text) < LOG_MAX and (part := os.read(self._fd, 8192)):
                text += part
        lines = [line for line in text.decode("utf-8", "replace").splitlines() if _DRIVER.search(line)]
        return "; ".join(line.partition("ailhouse: ")[2] or line for line in lines)

    def close(self) -> None:
        """Let go of it."""
        if self._fd >= 0:
            os.close(self._fd)
