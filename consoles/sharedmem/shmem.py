# SPDX-License-Identifier: Apache-2.0
"""The byte-ring channel in shared memory, host side: layout, checks, and the rules of memory order.

docs/reference/shared-memory.md draws the layout and examples/channels/runphi_channel.h is the guest's side. The
guest is not trusted: it may write any value anywhere at any time. So

- a word of the guest's is loaded once and checked before use; every offset that follows from it lies inside the ring;
- words of our own are never read back: we keep them here and put them right when somebody wrote over them;
- a wrong index is counted, told once, and answered by starting over at the guest's own index (output) or by sending
  nothing until the index is right again (input). No loop depends on what the guest writes.

Order: bytes first, then the index that gives them away; the index first, then the bytes it gives away (``fence``).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from consoles.errors import SourceError
from consoles.sharedmem.regions import fence

if TYPE_CHECKING:
    from collections.abc import Callable

    from consoles.sharedmem.regions import Region

MAGIC: Final = int.from_bytes(b"RPCH", "little")
VERSION: Final = 1
NAME_MAX: Final = 31
#: Least and largest channel. The least holds both rings; the largest keeps indices far from their 32-bit wrap.
SIZE_MIN: Final = 4096
SIZE_MAX: Final = 64 << 20
SIZE_DEFAULT: Final = 64 << 10

# Offsets. "down" goes to the guest, "up" comes from it. The two sides write to different cache lines.
OFF_MAGIC: Final = 0x00
OFF_VERSION: Final = 0x04
OFF_SIZE: Final = 0x08
OFF_FLAGS: Final = 0x0C
OFF_DOWN_OFFSET: Final = 0x10
OFF_DOWN_SIZE: Final = 0x14
OFF_UP_OFFSET: Final = 0x18
OFF_UP_SIZE: Final = 0x1C
OFF_NAME: Final = 0x20
# written by the host only
OFF_HOST_GENERATION: Final = 0x40
OFF_DOWN_HEAD: Final = 0x44
OFF_UP_TAIL: Final = 0x48
OFF_HOST_BEAT: Final = 0x4C
OFF_STORED_BASE: Final = 0x50
# written by the guest only
OFF_GUEST_GENERATION: Final = 0x80
OFF_UP_HEAD: Final = 0x84
OFF_DOWN_TAIL: Final = 0x88
OFF_GUEST_STATE: Final = 0x8C
HEADER_SIZE: Final = 0x100

#: Values of the guest's state word.
GUEST_NONE: Final = 0
GUEST_OPEN: Final = 1
GUEST_CLOSED: Final = 2

_MASK: Final = 0xFFFF_FFFF


class Ring(NamedTuple):
    """Where one ring lies; ``size`` is a power of two, so that indices may run on through 2³²."""

    offset: int
    size: int


class Layout(NamedTuple):
    """A channel of ``size`` bytes: half of it for what comes from the guest, a quarter for what goes there."""

    size: int
    down: Ring
    up: Ring


class ChannelStatistics(NamedTuple):
    """Numbers of one channel: bytes in both directions and waiting, breaches of the rules, and who is there."""

    received: int
    sent: int
    waiting_up: int
    waiting_down: int
    violations: int
    guest_generation: int
    guest_state: int


def layout(size: int) -> Layout:
    """Lay a channel out.

    :raises SourceError: the size will not do.
    """
    if not SIZE_MIN <= size <= SIZE_MAX or size & (size - 1):
        raise SourceError(f"cannot make a channel of {size} bytes: use a power of two from 4 KiB to 64 MiB")
    down = Ring(HEADER_SIZE, size // 4)
    return Layout(size, down, Ring(down.offset + down.size, size // 2))


class Channel:
    """The host's end of a channel.

    :param region: at least ``size`` bytes; owned.
    :param violation: told what the guest did wrong, each time; whoever prints it should not do so each time.
    :param fresh: whatever the memory holds is an earlier guest's: lay the channel out anew.
    :ivar generation: how often the host has opened this channel.
    """

    def __init__(
        self,
        region: Region,
        name: str,
        size: int,
        violation: Callable[[str], None] | None = None,
        *,
        fresh: bool = False,
    ) -> None:
        raw = name.encode()
        if not 0 < len(raw) <= NAME_MAX:
            raise SourceError(f"cannot name a channel {name!r}: use 1 to {NAME_MAX} bytes")
        if region.size < size:
            raise SourceError(f"cannot put a channel of {size} bytes into {region.size} bytes of shared memory")
        self.name = name
        self.layout = layout(size)
        self._region = region
        self._tell = violation
        self._down_head = 0
        self._up_tail = 0
        self._beat = 0
        self._base = 0
        self._received = 0
        self._sent = 0
        self._violations = 0
        self._fixed = self._header(raw)
        if region.load(OFF_MAGIC) == MAGIC and not fresh:
            self._take_up()
        else:
            self._format()
        self.generation = region.load(OFF_HOST_GENERATION) + 1 & _MASK or 1
        region.store(OFF_HOST_GENERATION, self.generation)

    def _header(self, name: bytes) -> dict[int, int]:
        """The words that never change, magic last: whoever sees it sees all."""
        down, up = self.layout.down, self.layout.up
        words = {
            OFF_VERSION: VERSION,
            OFF_SIZE: self.layout.size,
            OFF_FLAGS: 0,
            OFF_DOWN_OFFSET: down.offset,
            OFF_DOWN_SIZE: down.size,
            OFF_UP_OFFSET: up.offset,
            OFF_UP_SIZE: up.size,
        }
        padded = name.ljust(NAME_MAX + 1, b"\0")
        for i in range(0, len(padded), 4):
            words[OFF_NAME + i] = int.from_bytes(padded[i : i + 4], "little")
        words[OFF_MAGIC] = MAGIC
        return words

    def _format(self) -> None:
        for offset in range(0, HEADER_SIZE, 4):
            self._region.store(offset, 0)
        self._write_header()

    def _write_header(self) -> None:
        for offset, value in self._fixed.items():
            if offset == OFF_MAGIC:
                fence()
            self._region.store(offset, value)

    def _take_up(self) -> None:
        """Go on where an earlier host stopped: its words are here, if the guest has left them alone."""
        region, (_, down, up) = self._region, self.layout
        if any(region.load(offset) != value for offset, value in self._fixed.items()):
            self._breach("the header was written over")
            self._write_header()
        self._down_head = region.load(OFF_DOWN_HEAD)
        self._up_tail = region.load(OFF_UP_TAIL)
        self._base = region.load(OFF_STORED_BASE)
        self._beat = region.load(OFF_HOST_BEAT)
        fence()
        if (region.load(OFF_UP_HEAD) - self._up_tail) & _MASK > up.size:
            self._start_over(region.load(OFF_UP_HEAD))
        if (self._down_head - region.load(OFF_DOWN_TAIL)) & _MASK > down.size:
            self._breach("the indices of its input do not fit")

    # Section: output of the guest

    def readable(self) -> int:
        """Return how many bytes wait; a wrong index empties the ring."""
        head = self._region.load(OFF_UP_HEAD)
        waiting = (head - self._up_tail) & _MASK
        if waiting > self.layout.up.size:
            self._start_over(head)
            return 0
        return waiting

    def peek(self, limit: int) -> bytes:
        """Return up to ``limit`` bytes; they stay in the ring until ``release``."""
        waiting = min(self.readable(), limit)
        if waiting == 0:
            return b""
        fence()
        ring = self.layout.up
        at = self._up_tail & (ring.size - 1)
        first = min(waiting, ring.size - at)
        data = self._region.read(ring.offset + at, first)
        return data + self._region.read(ring.offset, waiting - first) if first < waiting else data

    def release(self, count: int) -> None:
        """Give the room of the oldest ``count`` bytes back to the guest: they are stored elsewhere now."""
        fence()
        self._up_tail = (self._up_tail + count) & _MASK
        self._received += count
        self._region.store(OFF_UP_TAIL, self._up_tail)

    def _start_over(self, head: int) -> None:
        self._breach(f"the index {head:#x} of its output does not fit: what the ring held is dropped")
        # What was stored stays as much as it was: the base moves along, so that ``settle`` still fits.
        self._base = (self._base - (head - self._up_tail)) & _MASK
        self._up_tail = head
        self._region.store(OFF_STORED_BASE, self._base)
        self._region.store(OFF_UP_TAIL, head)

    def settle(self, stored: int) -> None:
        """After a crash: of all that ever came, ``stored`` bytes are safe elsewhere. Bytes that were stored but not
        released are released now, so that none is doubled.
        """
        missed = (stored - self._base - self._up_tail) & _MASK
        if missed <= self.readable():
            self.release(missed)
        else:  # a new journal, or an index that somebody wrote over
            self._base = (stored - self._up_tail) & _MASK
            self._region.store(OFF_STORED_BASE, self._base)

    # Section: input of the guest

    def writable(self) -> int:
        """Return how many bytes the ring takes now; none while the guest's index is wrong."""
        used = (self._down_head - self._region.load(OFF_DOWN_TAIL)) & _MASK
        if used > self.layout.down.size:
            self._breach("the index of its input does not fit: it is sent nothing until it does")
            return 0
        return self.layout.down.size - used

    def write(self, data: bytes) -> int:
        """Put as much of ``data`` into the ring as it takes; return how many bytes that was."""
        count = min(self.writable(), len(data))
        if count == 0:
            return 0
        fence()
        ring = self.layout.down
        at = self._down_head & (ring.size - 1)
        first = min(count, ring.size - at)
        self._region.write(ring.offset + at, data[:first])
        if first < count:
            self._region.write(ring.offset, data[first:count])
        fence()
        self._down_head = (self._down_head + count) & _MASK
        self._sent += count
        self._region.store(OFF_DOWN_HEAD, self._down_head)
        return count

    # Section: both

    def beat(self) -> None:
        """Say that we are here, and put our words right if somebody wrote over them."""
        region = self._region
        ours = (
            (OFF_HOST_BEAT, self._beat),
            (OFF_HOST_GENERATION, self.generation),
            (OFF_DOWN_HEAD, self._down_head),
            (OFF_UP_TAIL, self._up_tail),
            (OFF_STORED_BASE, self._base),
        )
        for offset, value in ours:
            if region.load(offset) != value:
                self._breach(f"our word at {offset:#x} was written over")
                region.store(offset, value)
        self._beat = (self._beat + 1) & _MASK
        region.store(OFF_HOST_BEAT, self._beat)

    def guest(self) -> tuple[int, int]:
        """Return the guest's generation (how often it has opened the channel) and its state."""
        return self._region.load(OFF_GUEST_GENERATION), self._region.load(OFF_GUEST_STATE)

    def statistics(self) -> ChannelStatistics:
        """Return the channel's numbers."""
        up = (self._region.load(OFF_UP_HEAD) - self._up_tail) & _MASK
        down = (self._down_head - self._region.load(OFF_DOWN_TAIL)) & _MASK
        return ChannelStatistics(
            self._received,
            self._sent,
            min(up, self.layout.up.size),
            min(down, self.layout.down.size),
            self._violations,
            *self.guest(),
        )

    def _breach(self, what: str) -> None:
        self._violations += 1
        if self._tell is not None:
            self._tell(what)

    def close(self) -> None:
        """Let go of the memory; what it holds stays for the next host."""
        self._region.close()
