# SPDX-License-Identifier: Apache-2.0
"""What a hypervisor must offer to run containers: a ``Backend`` that plans, and a ``Driver`` per guest.

The fake and the real ones pass one conformance suite (``runphi_async/testing/conformance.py``), which drivers of other
people can inherit as well. Adding a backend is adding a folder and a line in ``detect.py``.
"""

from __future__ import annotations

from enum import StrEnum
from types import MappingProxyType
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol, runtime_checkable

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence

    import msgspec

    from backends.lines import Line
    from consoles.sources.base import Source
    from runphi_async.config.section import BackendSection
    from runphi_async.events import AnyEvent
    from runphi_async.lifeline.stub import Fd
    from runphi_async.partition.spec import GuestSpec, PartitionPlan


class Capabilities(NamedTuple):
    """What a backend can do on this machine: one line for people, and the architectures it runs."""

    summary: str
    arches: tuple[str, ...]


class Brings(NamedTuple):
    """What a backend brings beside itself; it is known without loading the backend, and stands in its ``settings.py``.

    :ivar section: its table of the configuration file, which goes by the backend's name.
    :ivar environment: variables that stand for a key of that table where the file does not name it.
    :ivar ledger: file of the run directory with what it has given away; "": its hypervisor has an allocator.
    :ivar looks_ahead: it is to be loaded when a supervisor starts, to find out what takes time.
    :ivar wishes: there are annotations ``org.runphi.BACKEND.NAME``, which it decodes itself.
    :ivar verbs: verbs of ours that are about this backend.
    """

    section: type[BackendSection] | None = None
    environment: Mapping[str, str] = MappingProxyType({})
    ledger: str = ""
    looks_ahead: bool = False
    verbs: tuple[str, ...] = ()
    wishes: bool = False


class Level(StrEnum):
    """How much a finding of ``runphi doctor`` matters."""

    OK = "ok"
    #: nothing is wrong, but somebody may want to know
    NOTE = "note"
    #: something that some containers need is missing
    WARNING = "warning"
    #: nothing works before this is mended
    ERROR = "error"


class Finding(NamedTuple):
    """One thing that was looked at.

    :ivar area: what it belongs to, such as ``host`` or a backend's name.
    :ivar text: what was found, one line.
    :ivar mend: what to do about it, "" when there is nothing to do.
    """

    level: Level
    area: str
    text: str
    mend: str = ""


class Discrepancy(NamedTuple):
    """What a backend's own accounts and its hypervisor disagree about.

    :ivar name: of the record that it is about, "" for none.
    :ivar text: what is wrong, and what was done about it.
    """

    name: str
    text: str


class Verdict(NamedTuple):
    """How a guest ended.

    :ivar code: exit status for the engine, 0 to 255.
    :ivar reason: one line for people; recorded and shown by ``state`` and ``events``.
    """

    code: int
    reason: str


class Evidence(NamedTuple):
    """What the runtime itself knows of a guest's end; drivers add what their hypervisor says.

    :ivar killed_by: signal that asked for the end, None if nobody did.
    :ivar oom_kills: how often the kernel's out-of-memory killer struck in the container's cgroup.
    :ivar booted: whether the guest was ever started.
    """

    killed_by: int | None
    oom_kills: int
    booted: bool


class Inheritance(NamedTuple):
    """Descriptors the driver hands to the init stub; the stub keeps them over a supervisor's death.

    :ivar kept: by their places in the stub's table.
    :ivar extra: further ones for the VMM, as descriptors ``stub.FIRST_EXTRA`` and behind.
    """

    kept: Mapping[Fd, int] = MappingProxyType({})
    extra: tuple[int, ...] = ()


def _unnoted(event: AnyEvent) -> None:
    """Forget an event: nobody keeps them."""


def _unheard(text: str) -> None:
    """Nobody wants to know."""


async def _unenrolled(pids: Sequence[int]) -> None:
    """There is no cgroup."""


class Told(NamedTuple):
    """What a driver calls back.

    :ivar ended: once, when the guest is gone.
    :ivar done: the guest has nothing more to do and says how many bytes it printed in all: destroy it when they
        have arrived. Only guests that can say so.
    :ivar say: a line for the console: why the guest cannot run what it was asked to.
    :ivar note: writes an event.
    :ivar paused: somebody, who is named, made the guest stand still, and it was not us; what is known already may be
        said again.
    :ivar resumed: somebody let it go on.
    :ivar again: the guest was started a second time, and why.
    :ivar enrol: puts helper processes that were made later into the container's cgroup.
    :ivar init: pid of the container's init process, 0 when it is not known.
    """

    ended: Callable[[], None]
    done: Callable[[int], None]
    say: Callable[[str], None]
    note: Callable[[AnyEvent], None] = _unnoted
    paused: Callable[[str], None] = _unheard
    resumed: Callable[[str], None] = _unheard
    again: Callable[[str], None] = _unheard
    enrol: Callable[[Sequence[int]], Awaitable[None]] = _unenrolled
    init: int = 0


class Signals(Protocol):
    """A guest with somebody in it who can be given a signal."""

    async def deliver(self, signal: int) -> bool:
        """Pass a signal on; False: there is no process yet, or none any more, that could want it."""
        ...

    def unheard(self) -> float | None:
        """Return for how many seconds of its running the guest has left a delivered signal where it was put.

        None: it has taken all, or nobody can know.
        """
        ...


class Stops(Protocol):
    """A guest with an ear for a polite request."""

    async def stop(self) -> bool:
        """Ask it to end by itself; False: just now it has no ear."""
        ...


class Resizes(Protocol):
    """A guest that can be told how large its terminal is."""

    def resize(self, rows: int, cols: int) -> None:
        """Tell it.

        :raises BackendError: it does not listen.
        """
        ...


class TakesEof(Protocol):
    """A guest that can be told that nothing more will be typed."""

    def end_of_input(self, total: int) -> None:
        """Tell it, behind ``total`` bytes of input.

        :raises BackendError: it does not listen.
        """
        ...


class Breaks(Protocol):
    """A guest whose console can have a break, and is the FIFO pair: sources break for themselves."""

    async def send_break(self) -> None:
        """Send one.

        :raises BackendError: it cannot be sent.
        """
        ...


class HearsBell(Protocol):
    """A driver whose machine is the init process's child."""

    def rang(self) -> None:
        """The init process rang its bell: something was written down."""
        ...


#: Seconds that a guest may take to follow a request, where its backend's configuration does not say.
STOP_SECONDS: Final = 10.0


class Abilities(NamedTuple):
    """What one guest can do beyond living and ending, and who does it; None: it cannot.

    :ivar patience: seconds that it may take to end when it is asked to, or to take a signal; then it is destroyed.
    """

    signals: Signals | None = None
    stops: Stops | None = None
    resizes: Resizes | None = None
    takes_eof: TakesEof | None = None
    breaks: Breaks | None = None
    hears_bell: HearsBell | None = None
    patience: float = STOP_SECONDS


class Driver(Protocol):
    """One guest, from before its creation to after its end. Methods are called by one task at a time."""

    #: command that becomes a child of the init stub; empty when the hypervisor has no process per guest
    command: tuple[str, ...]
    #: a second command, which the init stub starts once, when it is told to; empty: there is none
    again: tuple[str, ...]
    #: memory of the command itself, which the container's limit is not meant for
    overhead_bytes: int

    @property
    def network(self) -> str:
        """Path of the network namespace that stub and VMM are to join, where ``create`` made or holds one.

        "": as config.json says.
        """
        ...

    @property
    def abilities(self) -> Abilities:
        """What this guest can be asked, known behind ``create`` and ``console``, or before ``adopt``."""
        ...

    async def create(self) -> None:
        """Write files, make FIFOs and start helpers, before the stub exists (the original's ``mount``)."""
        ...

    def inheritance(self) -> Inheritance:
        """Return what the stub is to keep; the driver closes its own copies in ``watch``."""
        ...

    def console(self) -> Source | None:
        """Return what the guest's console is read from; None: the FIFO pair con.in and con.out of the record.

        Asked once, behind ``create`` or before ``adopt``. It is opened when the stub runs, tried again while it
        cannot be, and closed behind the guest's end; a source may look up where the console is when it is opened.
        """
        ...

    def helpers(self) -> list[int]:
        """Return pids of helper processes, to be put into the container's cgroup."""
        ...

    async def watch(self, told: Told) -> None:
        """The stub runs: begin to watch the guest and call back."""
        ...

    async def adopt(self, told: Told) -> bool | None:
        """Take over a guest that an earlier supervisor made.

        :returns: whether it had been started; None: it has ended meanwhile, and ``told`` will hear of it.
        """
        ...

    async def start(self) -> None:
        """Let the guest execute its first instruction."""
        ...

    async def suspend(self) -> None:
        """Stop the guest where it stands."""
        ...

    async def resume(self) -> None:
        """Let a suspended guest go on."""
        ...

    def end(self) -> None:
        """End the guest at once, wherever it stands; ``Told.ended`` follows, once."""
        ...

    def settle(self, evidence: Evidence) -> Verdict:
        """The guest has ended: read what is left of its channels and say how."""
        ...

    async def release(self) -> None:
        """Let go of everything outside the record directory; a guest that has not ended goes on. Always ends."""
        ...

    async def bury(self) -> None:
        """End what there is of a guest, however far it had come, and release. Always ends.

        Called for one that could not be made, or that nobody will adopt, after the container's cgroup was emptied; and
        for one that has ended under an earlier supervisor, which may not have come to release it.
        """
        ...


@runtime_checkable
class Accounting(Protocol):
    """A backend that keeps accounts of its own, because its hypervisor has no allocator."""

    async def look_over(self) -> list[Discrepancy]:
        """Compare the accounts with the hypervisor, once every record was recalled; free what stands for nothing."""
        ...


class Planner(Protocol):
    """What can say how a partition would be made on one hypervisor."""

    name: str

    async def plan(self, spec: GuestSpec) -> PartitionPlan:
        """Plan a partition; decides only, changes nothing.

        :raises PlanError: what was asked for cannot be had.
        """
        ...


class Backend(Planner, Protocol):
    """One hypervisor on this machine."""

    async def probe(self) -> Capabilities:
        """Return what the hypervisor can do here.

        :raises BackendError: it cannot be used, and why.
        """
        ...

    async def examine(self) -> list[Finding]:
        """Look at everything the backend needs on this machine; ``runphi doctor`` shows what was found."""
        ...

    async def claim(self, spec: GuestSpec, plan: PartitionPlan, owner: str) -> PartitionPlan:
        """Claim what the plan needs, where the hypervisor has no allocator; the driver's ``release`` frees it.

        :param owner: name of the record.
        :returns: the plan to carry out: what was free when it was planned may be somebody's by now.
        :raises PlanError: it cannot be had any more.
        """
        ...

    def driver(self, plan: PartitionPlan, directory: str) -> Driver:
        """Return the driver of a new guest whose record lies in ``directory``."""
        ...

    def remember(self, plan: PartitionPlan) -> msgspec.Raw:
        """Return what ``recall`` needs, as JSON."""
        ...

    def recall(self, plan: msgspec.Raw, directory: str) -> Driver:
        """Return the driver of a guest that an earlier supervisor made."""
        ...


@runtime_checkable
class Draws(Protocol):
    """A backend whose guests are parts of a board, which it can draw."""

    async def draw(self, board: str, *, svg: bool) -> str:
        """Return a picture of who has what.

        :param board: another board than the configured one, drawn empty; "": the configured one.
        :raises ConfigError: there is no such board.
        """
        ...


class HypervisorLog(Protocol):
    """The hypervisor's own console, which the supervisor follows where it is configured to."""

    def running(self, cells: set[str]) -> None:
        """Say which guests run and may print there; it is taken where the console itself has not told."""
        ...

    def attend(self, hear: Callable[[Line], None], mute: Callable[[], Collection[str]]) -> None:
        """Call ``hear`` with every new line; ``mute`` returns the guests that cannot print there."""
        ...


@runtime_checkable
class LooksAhead(Protocol):
    """A backend that finds out slowly what its guests can be given."""

    async def look_ahead(self) -> None:
        """Find it out before anybody asks; called in the background when the supervisor has started."""
        ...


@runtime_checkable
class Hears(Protocol):
    """A backend whose guests print on the hypervisor's own console, or are spoken of there."""

    def hear(self, log: HypervisorLog) -> None:
        """Take part in it from now on."""
        ...
