# SPDX-License-Identifier: Apache-2.0
"""A guest's ``hvc`` console by virtio over ivshmem version 2: we are the device, the guest has the driver.

So a Linux cell of Jailhouse has a two-way console without a UART. The guest writes a register by putting its value into
the header at the beginning of the shared memory, the register's offset into ``write_transaction``, and ringing; we act
and set it to 0. Interrupts are INTx: there is one vector, 0, and a doorbell with any other is dropped in silence. The
guest's driver looks once for a device that is ready, so this source must be open before the guest boots.

The guest may write anything at any time: registers are read once, queues are checked
(``consoles.sharedmem.virtqueue``), and a queue that makes no sense stops the device until the guest resets it.

What a crash costs: our state word falls to 0 and the guest's console writers spin until the next supervisor is there.
It goes on with the queues of the last one, which are written down in ``memory``; without that the guest, which sets
them up only once, would hang for ever. A chunk that was being stored comes twice. While paused nothing is taken from
the guest, and its console writers spin as well.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import struct
from typing import TYPE_CHECKING, Final

from consoles.errors import SourceError
from consoles.sharedmem.ivshmem import STATE_READY, UioDevice
from consoles.sharedmem.regions import fence
from consoles.sharedmem.virtqueue import Broken, Queue
from consoles.wakers import Wakers

if TYPE_CHECKING:
    from collections.abc import Callable

    from consoles.sharedmem.ivshmem import Device
    from consoles.sources.base import Listener

# Offsets of the header. Source: virtio over ivshmem, revision 1.
REVISION: Final = 0x00
SIZE: Final = 0x04
WRITE_TRANSACTION: Final = 0x08
DEVICE_FEATURES: Final = 0x0C
DEVICE_FEATURES_SEL: Final = 0x10
DRIVER_FEATURES: Final = 0x14
DRIVER_FEATURES_SEL: Final = 0x18
QUEUE_SEL: Final = 0x1C
QUEUE_CONFIG: Final = 0x20
QUEUE_ENABLE: Final = 0x26
CONFIG_EVENT: Final = 0x40
QUEUE_EVENT: Final = 0x41
DEVICE_STATUS: Final = 0x44
CONFIG_GENERATION: Final = 0x48
CONFIG: Final = 0x4C
HEADER_SIZE: Final = 0x58

#: size, device vector, driver vector, enable; descriptors, driver part, device part
_QUEUE: Final = struct.Struct("<HHHHQQQ")
#: VIRTIO_CONSOLE_F_SIZE; VERSION_1, ACCESS_PLATFORM and ORDER_PLATFORM, counted from bit 32
FEATURES: Final = (0x1, 0x13)
VERSION_1: Final = 0x1
QUEUE_SIZE: Final = 8
RECEIVE, TRANSMIT = 0, 1

STATUS_DRIVER_OK: Final = 0x04
STATUS_FEATURES_OK: Final = 0x08
STATUS_NEEDS_RESET: Final = 0x40

#: Seconds between two looks where no interrupt came: only a guest that forgot to ring waits that long.
SAFETY: Final = 1.0
#: A guest that comes and goes faster than this many seconds is believed only so often.
STEADY: Final = 1.0


class VirtioConsole:
    """The device end of a console; a ``consoles.sources.base.Source``.

    :param open_device: opens the shared memory; called off the loop.
    :param violation: told what the guest did wrong.
    :param size: rows and columns the guest is told.
    :param memory: file in which the guest's queues are kept for a successor; "": they are not.
    """

    def __init__(
        self,
        open_device: Callable[[], Device],
        *,
        violation: Callable[[str], None] = lambda what: None,
        size: tuple[int, int] = (24, 80),
        memory: str = "",
    ) -> None:
        self._memory = memory
        self._open_device = open_device
        self._violation = violation
        self._size = size
        self._loop = asyncio.get_running_loop()
        self._device: Device | None = None
        self._listener: Listener | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._wakers = Wakers()
        self._paused = False
        self._there = False
        self._was_there = False
        self._said: float | None = None
        self._reason = "the guest stopped its console"
        self._count = 0
        #: how often the guest broke the rules
        self.violations = 0
        self._forget()

    def _forget(self) -> None:
        """Everything the guest has told us is void."""
        self._queues: list[Queue | None] = [None, None]
        self._configs = [_QUEUE.pack(QUEUE_SIZE, 0, 0, 0, 0, 0, 0)] * 2
        self._selected = 0
        self._accepted = [0, 0]
        self._running = False

    async def open(self, listener: Listener) -> None:
        """Become ready; the guest may come at any time after that."""
        device = await asyncio.to_thread(self._open_device)
        if device.id > 1 or device.rw.size < 2 * HEADER_SIZE:
            device.close()
            raise SourceError("cannot use the shared-memory device as a console: it wants two peers and 8 KiB")
        self._device, self._listener = device, listener
        there = self._has_driver()
        if not there or not self._resume():
            self._offer()
            if there:
                self._said = self._loop.time()
                listener.gone("what the last supervisor knew of it is lost; the guest must start its driver again")
        device.set_state(STATE_READY)
        self._loop.add_reader(device.fileno(), self._rang)
        self._serve()

    def _offer(self) -> None:
        """Fill in the header of a device that nobody uses."""
        assert self._device is not None
        rw = self._device.rw
        rw.write(0, bytes(HEADER_SIZE))
        rows, cols = self._size
        rw.write(CONFIG, struct.pack("<HHII", cols, rows, 1, 0))
        rw.write(QUEUE_CONFIG, self._configs[0])
        rw.store(SIZE, HEADER_SIZE)
        fence()
        rw.store(REVISION, 1)

    # Section: what a successor must know

    def _has_driver(self) -> bool:
        """Whether a guest uses the device as our predecessor left it."""
        assert self._device is not None
        rw = self._device.rw
        status = rw.load(DEVICE_STATUS)
        there = self._device.state(1 - self._device.id) == STATE_READY and rw.load(REVISION) == 1
        return there and bool(status & STATUS_DRIVER_OK) and not status & STATUS_NEEDS_RESET

    def _resume(self) -> bool:
        """Go on with the queues that our predecessor served; False: nobody knows them any more."""
        assert self._device is not None
        rw = self._device.rw
        try:
            with open(self._memory, "rb") as file:
                kept = json.load(file)
            configs = [bytes.fromhex(text) for text in kept["queues"]]
            for number, config in enumerate(configs):
                size, _, _, _, desc, driver, device = _QUEUE.unpack(config)
                self._queues[number] = Queue(rw, size, desc, driver, device, resume=True)
            self._configs, self._accepted = configs, [int(word) for word in kept["features"]]
        except (OSError, ValueError, KeyError, TypeError, IndexError, struct.error, Broken):
            self._forget()
            return False
        if None in self._queues:
            self._forget()
            return False
        self._selected = rw.load(QUEUE_SEL)
        self._running = self._was_there = self._there = True
        self._said = self._loop.time() - STEADY
        return True

    def _remember(self) -> None:
        if self._memory:
            kept = {"queues": [config.hex() for config in self._configs], "features": self._accepted}
            with open(self._memory + ".new", "w") as file:
                json.dump(kept, file)
            os.replace(self._memory + ".new", self._memory)

    # Section: turns

    def _rang(self) -> None:
        assert self._device is not None
        self._device.answer()
        self._serve()

    def _serve(self) -> None:
        """Look at everything once; each part does a bounded amount of work."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        device = self._device
        if device is None:
            return
        more = False
        if device.state(1 - device.id) == STATE_READY:
            self._was_there = True
            more = self._act()
            if self._running:
                more |= self._guarded(self._transmit)
                self._wake()
        elif self._was_there:
            self._was_there = False
            self._reset("the guest's console driver has left")
        self._tell()
        if self._device is not None:
            self._timer = self._loop.call_later(0 if more else SAFETY, self._serve)

    def _guarded(self, work: Callable[[], bool]) -> bool:
        """Do something with a queue; a broken one stops the device until the guest resets it."""
        assert self._device is not None
        try:
            return work()
        except Broken as exc:
            self._breach(f"its console queue is broken: {exc}")
            self._running = False
            rw = self._device.rw
            rw.store(DEVICE_STATUS, rw.load(DEVICE_STATUS) | STATUS_NEEDS_RESET)
            rw.store_byte(CONFIG_EVENT, 1)
            self._device.ring(1 - self._device.id, 0)
            return False

    def _breach(self, what: str) -> None:
        self.violations += 1
        self._violation(what)

    def _reset(self, reason: str) -> None:
        self._forget()
        if self._memory:
            with contextlib.suppress(OSError):
                os.unlink(self._memory)
        self._offer()
        self._reason = reason

    def _tell(self) -> None:
        """Say that the guest's console is gone or back, at most so often."""
        if self._running == self._there or self._listener is None:
            return
        now = self._loop.time()
        if self._said is None:  # for the first time
            self._there, self._said = True, now
        elif now - self._said >= STEADY:
            self._there, self._said = self._running, now
            if self._running:
                self._listener.back()
            else:
                self._listener.gone(self._reason)

    # Section: the guest's register writes

    def _act(self) -> bool:
        """Carry out the write that the guest waits for; return whether there was one."""
        assert self._device is not None
        rw = self._device.rw
        register = rw.load(WRITE_TRANSACTION)
        if register == 0:
            return False
        fence()
        if register == DEVICE_FEATURES_SEL:
            chosen = rw.load(DEVICE_FEATURES_SEL)
            rw.store(DEVICE_FEATURES, FEATURES[chosen] if chosen < 2 else 0)
        elif register == DRIVER_FEATURES:
            chosen = rw.load(DRIVER_FEATURES_SEL)
            if chosen < 2:
                self._accepted[chosen] = rw.load(DRIVER_FEATURES)
        elif register == QUEUE_SEL:
            self._selected = rw.load(QUEUE_SEL)
            known = self._selected < len(self._configs)
            rw.write(QUEUE_CONFIG, self._configs[self._selected] if known else bytes(_QUEUE.size))
        elif QUEUE_CONFIG <= register < CONFIG_EVENT:
            self._guarded(lambda: self._configure(register))
        elif register == DEVICE_STATUS:
            self._status(rw.load(DEVICE_STATUS))
        elif register != DRIVER_FEATURES_SEL:
            self._breach(f"it wrote register {register:#x}")
        fence()
        rw.store(WRITE_TRANSACTION, 0)
        return True

    def _configure(self, register: int) -> bool:
        assert self._device is not None
        if self._selected >= len(self._configs):
            return False
        rw = self._device.rw
        config = rw.read(QUEUE_CONFIG, _QUEUE.size)
        self._configs[self._selected] = config
        size, _, _, enabled, desc, driver, device = _QUEUE.unpack(config)
        if register == QUEUE_ENABLE:
            self._queues[self._selected] = Queue(rw, size, desc, driver, device) if enabled else None
        return True

    def _status(self, status: int) -> None:
        assert self._device is not None
        rw = self._device.rw
        if status == 0:
            self._reset("the guest reset its console")
            return
        if status & STATUS_FEATURES_OK and not self._accepted[1] & VERSION_1:
            rw.store(DEVICE_STATUS, status & ~STATUS_FEATURES_OK)  # the guest sees that we cannot do without
        self._running = bool(status & STATUS_DRIVER_OK) and None not in self._queues
        if self._running:
            self._remember()

    # Section: bytes

    def _transmit(self) -> bool:
        """Take what the guest wrote; return whether there may be more."""
        queue = self._queues[TRANSMIT]
        assert queue is not None
        assert self._device is not None
        taken = 0
        while taken < QUEUE_SIZE and not self._paused and (chain := queue.peek()) is not None:
            data = b"".join(self._device.rw.read(b.offset, b.length) for b in chain.buffers if not b.writable)
            if data and self._listener is not None:
                self._listener.received(data)
            queue.done(chain, 0)
            taken += 1
        if taken:
            self._notify(TRANSMIT)
        return taken == QUEUE_SIZE

    def _notify(self, number: int) -> None:
        queue, device = self._queues[number], self._device
        assert queue is not None
        assert device is not None
        if queue.wants_interrupt():
            device.rw.store_byte(QUEUE_EVENT, 1)
            fence()
            vector = _QUEUE.unpack(self._configs[number])[2]
            device.ring(1 - device.id, vector)

    def write(self, data: bytes) -> int:
        """Fill the buffers the guest has made available."""
        if self._device is None or not self._running:
            return 0
        self._count = 0
        self._guarded(lambda: self._fill(data))
        return self._count

    def _fill(self, data: bytes) -> bool:
        queue = self._queues[RECEIVE]
        assert queue is not None
        assert self._device is not None
        chains = 0
        while self._count < len(data) and chains < QUEUE_SIZE and (chain := queue.peek()) is not None:
            start = self._count
            for buffer in chain.buffers:
                if buffer.writable:
                    piece = data[self._count : self._count + buffer.length]
                    self._device.rw.write(buffer.offset, piece)
                    self._count += len(piece)
            queue.done(chain, self._count - start)
            chains += 1
        if chains:
            self._notify(RECEIVE)
        return False

    def when_writable(self, wake: Callable[[], None]) -> None:
        """Call ``wake`` once the guest has made a buffer available."""
        self._wakers.add(wake)
        self._loop.call_soon(self._wake)

    def _wake(self) -> None:
        queue = self._queues[RECEIVE]
        if self._wakers and self._running and queue is not None and self._guarded(lambda: queue.waiting() > 0):
            self._wakers.wake()

    def pause(self) -> None:
        """Take nothing more from the guest: its console writers spin."""
        self._paused = True

    def resume(self) -> None:
        """Go on after ``pause``."""
        self._paused = False
        self._serve()

    async def close(self) -> None:
        """Leave; the guest sees our state fall to 0."""
        device = self._device
        if device is None:
            return
        self._paused = False
        self._serve()
        device.set_state(0)
        self.abandon()

    def abandon(self) -> None:
        """Let go as a supervisor does that is killed: without a word to the guest, whose queues stay as they are."""
        device, self._device = self._device, None
        if device is None:
            return
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._wakers.drop()
        self._loop.remove_reader(device.fileno())
        device.close()


def on_uio(path: str, violation: Callable[[str], None] = lambda what: None) -> VirtioConsole:
    """Return the console behind ``/dev/uioN`` of Jailhouse's root cell."""
    return VirtioConsole(lambda: UioDevice(path), violation=violation)
