# SPDX-License-Identifier: Apache-2.0
"""A backend without a hypervisor: its guest is a shell script that behaves like the demo inmate.

For tests of the runtime, and of whatever is built on it, where no QEMU is wanted: the whole life of a container
(console, start, pause, signals, exit codes, adoption by a next supervisor) in milliseconds. It passes the same
conformance suite as the real ones (runphi_async/testing/conformance.py).

A supervisor offers it under the name ``fake`` only when the environment variable ``RUNPHI_TESTING_BACKENDS`` is ``1``
(see ``backends.detect``); a container gets it by annotation ``org.runphi.backend=fake`` or by ``backend = "fake"`` in
the configuration. It takes whatever is asked for: the files that ``INMATE=`` and its like name must exist, but are not
looked at.

At its prompt the guest knows these commands, as the demo inmate does: ``echo TEXT``, ``spam N``, ``exit N``, ``crash``,
``hang``, ``reset``, and ``freeze``, which is as if somebody else had paused it. Because it has an ear for a polite
request, it ends with 0 when it is asked to stop unless it hangs. The annotation ``org.runphi.cmdline`` may hold words
that make it fail: ``fail-create`` (the machine ends before it is started), ``fail-start`` (it ends when it is started);
``source-console`` makes its console one that is opened and read as ptys and serial ports are, not spliced.
"""

from __future__ import annotations

import asyncio
import os
import signal
from typing import TYPE_CHECKING, Final

import msgspec

from backends.base import (
    STOP_SECONDS,
    Abilities,
    Capabilities,
    Evidence,
    Finding,
    Inheritance,
    Level,
    Told,
    Verdict,
)
from backends.ending import Ending
from backends.files import write_files
from consoles.sources.link import Link, Returning
from consoles.streams.fifo import LineChannel, open_fifo
from runphi_async.errors import BackendError
from runphi_async.lifeline import stub
from runphi_async.lifeline.child import StubChild
from runphi_async.lifeline.stub import Fd
from runphi_async.partition.spec import PartitionPlan
from runphi_async.testing.settings import Fake

if TYPE_CHECKING:
    from runphi_async.config.schema import Config
    from runphi_async.partition.spec import GuestSpec

#: Seconds the script may take to say that it has started.
PATIENCE: Final = 20.0
#: What a shell takes.
OVERHEAD: Final = 16 << 20
_FIFOS: Final = ("go", "ev.out")

#: The guest. FIFOs are opened for both directions, so that nobody's death is an end of file.
SCRIPT: Final = r"""
exec 0<>con.in 1<>con.out 3<>go 4<>ev.out
case " $1 " in *" fail-create "*) echo "fake: cannot be created" >&2; exit 1 ;; esac
read -r word <&3
case " $1 " in *" fail-start "*) echo "fake: cannot be started" >&2; exit 1 ;; esac
trap 'printf "stopping\r\n"; echo stopped >&4; exit 0' TERM
echo started >&4
printf 'runPHI demo inmate, fake\r\n> '
while IFS= read -r line; do
    printf '%s\r\n' "$line"
    argument=${line#* }
    case $line in
        echo\ *) printf '%s\r\n' "$argument" ;;
        spam\ *)
            i=0
            while [ "$i" -lt "$argument" ]; do
                i=$((i + 1))
                printf 'line %07d\r\n' "$i"
            done
            ;;
        exit\ *) exit "$argument" ;;
        crash) printf 'crashing\r\n'; echo panicked >&4; exit 1 ;;
        freeze) printf 'freezing\r\n'; (kill -STOP $$; echo frozen >&4) & wait $!; echo thawed >&4 ;;
        hang) printf 'hanging\r\n'; trap '' TERM; while :; do read -r word <&3; done ;;
        reset) printf 'resetting\r\n'; echo reset >&4; exit 0 ;;
        '') ;;
        *) printf 'unknown command, try help\r\n' ;;
    esac
    printf '> '
done
"""


class FifoPair(Returning):
    """The script's console as a source that is opened: its two FIFOs."""

    def __init__(self, directory: str) -> None:
        super().__init__()
        self._directory = directory

    async def _connect(self) -> Link:
        dir_fd = os.open(self._directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            output, typed = open_fifo("con.out", dir_fd), open_fifo("con.in", dir_fd)
        finally:
            os.close(dir_fd)
        return Link(output, typed, self._deliver, self._lost.set)


class FakeDriver:
    """Drives one script; see ``backends.base.Driver``."""

    def __init__(self, plan: PartitionPlan, directory: str, patience: float = STOP_SECONDS) -> None:
        self.command = plan.argv
        self.again: tuple[str, ...] = ()
        self.overhead_bytes = OVERHEAD
        self._patience = patience
        self._plan = plan
        self._directory = directory
        self._dir_fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._fds: dict[str, int] = {}
        self._events: list[str] = []
        self._started = asyncio.Event()
        self._channel: LineChannel | None = None
        self._child = StubChild(directory, self._ended, self._ended)
        self._ending = Ending()
        #: sizes told with ``resize`` and totals told with ``end_of_input``, for tests
        self.sizes: list[tuple[int, int]] = []
        self.inputs: list[int] = []

    @property
    def abilities(self) -> Abilities:
        """A script plays a machine: it knows no signals and has no UART, but a power button."""
        return Abilities(stops=self, resizes=self, takes_eof=self, hears_bell=self, patience=self._patience)

    async def create(self) -> None:
        """Write the script and make the FIFOs."""
        write_files(self._directory, self._plan.files)
        for name in _FIFOS:
            os.mkfifo(name, 0o600, dir_fd=self._dir_fd)
        self._open()

    def _open(self) -> None:
        for name in _FIFOS:
            self._fds[name] = open_fifo(name, self._dir_fd)

    def inheritance(self) -> Inheritance:
        """Return the event FIFO."""
        return Inheritance({Fd.EVENTS: self._fds["ev.out"]})

    @property
    def network(self) -> str:
        """Return nothing: a script has no network."""
        return ""

    def console(self) -> FifoPair | None:
        """Return the FIFO pair as a source, if the container asked for that."""
        return FifoPair(self._directory) if "source-console" in self._plan.argv[-1].split() else None

    def helpers(self) -> list[int]:
        """Return nothing: there are none."""
        return []

    async def watch(self, told: Told) -> None:
        """Listen to the script's events."""
        self._ending.attend(told)
        record = os.open("ev.log", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600, dir_fd=self._dir_fd)
        self._channel = LineChannel(os.dup(self._fds["ev.out"]), record, self._on_event)

    def _on_event(self, line: bytes) -> None:
        self._events.append(line.decode())
        told = self._ending.told
        if line == b"started":
            self._started.set()
        elif line == b"frozen" and told is not None:
            told.paused("the guest itself")
        elif line == b"thawed" and told is not None:
            told.resumed("somebody")

    def rang(self) -> None:
        """The stub has written a pid or a status down."""
        self._child.rang()

    def _ended(self) -> None:
        if self._channel is not None:
            self._channel.poll()  # a script may be over before its first word was read
        self._child.over()
        self._ending.once()
        self._started.set()  # whoever waits for it learns that it never will

    async def adopt(self, told: Told) -> bool | None:
        """Open everything again."""
        self._open()
        await self.watch(told)
        assert self._channel is not None
        self._channel.poll()
        if self._child.ended or self._child.hold() is None:
            asyncio.get_running_loop().call_soon(self._ended)
            return None
        return "started" in self._events

    async def start(self) -> None:
        """Let the script go on behind its first read."""
        os.write(self._fds["go"], b"go\n")
        try:
            async with asyncio.timeout(PATIENCE):
                await self._started.wait()
        except TimeoutError:
            raise BackendError("cannot start the fake guest: it does not answer") from None
        if "started" not in self._events:
            raise BackendError("cannot start the fake guest: it has ended")
        self._child.hold()

    def _send(self, number: int, what: str) -> None:
        vmm = self._child.hold()
        if vmm is None or not vmm.send(number):
            raise BackendError(f"cannot {what} the fake guest: it has ended")

    async def suspend(self) -> None:
        """Stop the script's process."""
        self._send(signal.SIGSTOP, "suspend")

    async def resume(self) -> None:
        """Continue the script's process."""
        self._send(signal.SIGCONT, "resume")

    async def stop(self) -> bool:
        """Press the power button."""
        self._send(signal.SIGTERM, "stop")
        return True

    def end(self) -> None:
        """Kill the script; one that the stub is just about to start is killed when the bell rings."""
        self._child.kill()

    def resize(self, rows: int, cols: int) -> None:
        """Remember the size."""
        self.sizes.append((rows, cols))

    def end_of_input(self, total: int) -> None:
        """Remember the total."""
        self.inputs.append(total)

    def settle(self, evidence: Evidence) -> Verdict:
        """Read the script's last events and its status."""
        if self._channel is not None:
            self._channel.poll()
        status = stub.read_status(self._directory)
        if "panicked" in self._events:
            return Verdict(134, "guest panicked")
        if evidence.oom_kills and status != 0:
            return Verdict(137, "out of memory")
        if evidence.killed_by is not None and (status is None or status > 128):
            return Verdict(128 + evidence.killed_by, f"killed by signal {evidence.killed_by}")
        if "reset" in self._events:
            return Verdict(133, "guest reset")
        if status is None:
            return Verdict(137, "VMM is gone and left no status")
        if status > 128:
            return Verdict(status, f"VMM killed by signal {status - 128}")
        if "started" not in self._events:
            return Verdict(125, f"VMM failed with status {status}")
        return Verdict(status, f"exited with {status}")

    async def release(self) -> None:
        """Close everything."""
        self._ending.forget()
        self._child.close()
        if self._channel is not None:
            self._channel.close()
        for fd in self._fds.values():
            os.close(fd)
        self._fds.clear()
        if self._dir_fd >= 0:
            os.close(self._dir_fd)
            self._dir_fd = -1

    async def bury(self) -> None:
        """The script was in the container's cgroup."""
        await self.release()


class FakeBackend:
    """The backend of scripts; see ``backends.base.Backend``."""

    name = "fake"

    def __init__(self, patience: float = STOP_SECONDS) -> None:
        self._patience = patience

    async def probe(self) -> Capabilities:
        """Return that it works."""
        return Capabilities("a shell script that plays a guest", ("x86_64", "aarch64"))

    async def examine(self) -> list[Finding]:
        """Return that it works."""
        return [Finding(Level.OK, self.name, "a shell script that plays a guest")]

    async def plan(self, spec: GuestSpec) -> PartitionPlan:
        """Plan a script for whatever is asked."""
        return PartitionPlan(
            backend=self.name,
            kind=spec.kind,
            arch=spec.arch or os.uname().machine,
            memory_bytes=spec.memory_limit or 1 << 20,
            vcpus=1,
            argv=("/bin/sh", "guest.sh", spec.cmdline or ""),
            files={"guest.sh": SCRIPT.encode()},
            explain=("a shell script plays the guest, whatever was asked for",),
        )

    async def claim(self, spec: GuestSpec, plan: PartitionPlan, owner: str) -> PartitionPlan:
        """Return the plan: a script needs nothing."""
        return plan

    def driver(self, plan: PartitionPlan, directory: str) -> FakeDriver:
        """Return the driver of a new guest."""
        return FakeDriver(plan, directory, self._patience)

    def remember(self, plan: PartitionPlan) -> msgspec.Raw:
        """Return what ``recall`` needs."""
        return msgspec.Raw(msgspec.json.encode(plan.kept()))

    def recall(self, plan: msgspec.Raw, directory: str) -> FakeDriver:
        """Return the driver of an older guest."""
        return FakeDriver(msgspec.json.decode(plan, type=PartitionPlan), directory, self._patience)


def backend(config: Config, run_dir: str) -> FakeBackend:
    """Return the backend; called by ``backends.detect``."""
    return FakeBackend(config.of(Fake).stop_seconds)
