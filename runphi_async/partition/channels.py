# SPDX-License-Identifier: Apache-2.0
"""Named streams of a guest beside its console, as annotations and images ask for them.

``org.runphi.channel.telemetry=shmem,size=64KiB`` is shared memory that the backend makes;
``vchan`` is memory of the guest itself, which serves it by libxenvchan, on Xen only.
``shmem:/dev/uio0:2,size=32KiB`` lies on the host already, and everything else (``serial:``, ``unix:``, ``pty:``) is a
source of the host too: the configuration must list such a place (``channels.places``), and an image may not ask for it.
"""

from __future__ import annotations

import functools
import os
import re
from typing import TYPE_CHECKING, Final, Protocol

import msgspec

from consoles.errors import SourceError
from consoles.sharedmem import ivshmem, shmem, shmfiles
from consoles.sharedmem.regions import parse_place
from consoles.sources import describe
from runphi_async import units
from runphi_async.errors import SpecError
from runphi_async.partition import sources

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from consoles.sources.base import Source

#: a name is a directory of the log and fits into the channel's header
NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,30}")
_UIO: Final = re.compile(r"/dev/uio[0-9]+:")
#: the name under which the serial port goes on when a channel is the console
SERIAL: Final = "serial"
#: the place of a channel that the guest serves by libxenvchan
VCHAN: Final = "vchan"
#: PCI devices that a machine takes besides its own
MAX_CHANNELS: Final = 8


class Channel(msgspec.Struct, frozen=True, omit_defaults=True):
    """One named stream.

    :ivar size: bytes of shared memory; 0 = no shared memory, ``place`` describes a source.
    :ivar place: where it is on the host; empty = the backend makes it.
    """

    name: str
    size: int = 0
    place: str = ""
    #: whom to ring at on a device with a doorbell; None: it is looked at
    peer: int | None = None
    #: unix socket in the record directory on which the backend's device model listens; empty = none
    socket: str = ""

    @property
    def made(self) -> bool:
        """Whether the backend makes the memory and gives it to the guest as a device."""
        return not self.place and not self.socket

    @property
    def vchan(self) -> bool:
        """Whether the guest serves it by libxenvchan."""
        return self.place == VCHAN

    @property
    def shared(self) -> bool:
        """Whether it is a byte ring in shared memory."""
        return self.size > 0

    def text(self) -> str:
        """Return the channel for people."""
        if self.socket:
            return f"unix:{self.socket} in the record"
        if not self.shared:
            return self.place
        where = f"shmem:{self.place}" if self.place else "shmem"
        bell = f",peer={self.peer}" if self.peer is not None else ""
        return f"{where},size={units.human(self.size).replace(' ', '')}{bell}"


def parse(name: str, text: str) -> Channel:
    """Understand the value of ``org.runphi.channel.<name>``.

    :raises ValueError: it cannot be understood.
    """
    check_name(name)
    what, *options = text.strip().split(",")
    kind, _, place = what.partition(":")
    if text.strip() == VCHAN:
        return Channel(name, place=VCHAN)
    try:
        if kind != "shmem":
            describe.parse(text.strip())
            return Channel(name, place=text.strip())
        if place:
            parse_place(place)
        elif what != "shmem":
            raise SourceError("the place behind 'shmem:' is missing")
        size, peer = _options(options)
        shmem.layout(size)
        if peer is not None and not _UIO.match(place):
            raise SourceError("only memory of a uio device has a peer to ring at")
    except SourceError as exc:
        raise ValueError(str(exc)) from None
    return Channel(name, size, place, peer)


def check_name(name: str) -> None:
    """Refuse a name that cannot be one.

    :raises ValueError: with the rule.
    """
    if not NAME.fullmatch(name) or name == SERIAL:
        raise ValueError(
            f"'{name}' is no name for a channel: use 1 to 31 letters, digits, '_', '.' and '-'; '{SERIAL}' is taken"
        )


def _options(options: Sequence[str]) -> tuple[int, int | None]:
    size, peer = shmem.SIZE_DEFAULT, None
    for option in options:
        key, _, value = option.partition("=")
        if key == "size":
            size = units.parse_size(value)
        elif key == "peer":
            peer = units.parse_int(value)
        else:
            raise SourceError(f"there is no option '{key}': write size=64KiB")
    return size, peer


def parse_console(text: str) -> str:
    """Understand the value of ``org.runphi.console``: the name of a channel.

    :raises ValueError: it is no ``channel:NAME``.
    """
    kind, _, name = text.strip().partition(":")
    if kind != "channel":
        raise ValueError(f"'{text}' is not channel:NAME")
    check_name(name)
    return name


def source(
    channel: Channel,
    directory: str,
    stored: int | None = None,
    violation: Callable[[str], None] | None = None,
) -> Source:
    """Return what a channel is read from; nothing is opened yet.

    :param directory: the record directory.
    :param stored: as for ``ShmemSource``.
    """
    if channel.socket:
        return describe.make(describe.Unix(os.path.join(directory, channel.socket)))
    if channel.vchan:
        from consoles.sources.vchan import VchanSource

        return VchanSource(functools.partial(shmfiles.find, directory, channel.name))
    if not channel.shared:
        return describe.make(describe.parse(channel.place))
    from consoles.sources.shmem import ShmemSource

    place = channel.place or os.path.join(directory, shmfiles.LINK + channel.name)
    opener = None
    if channel.peer is not None:
        opener = functools.partial(ivshmem.bell, place.partition(":")[0], channel.peer)
    return ShmemSource(place, channel.name, channel.size, stored=stored, violation=violation, open_bell=opener)


class Allowed(Protocol):
    """The part of the configuration that is asked here."""

    @property
    def places(self) -> Sequence[str]:
        """Shared memory of the host that annotations may use."""

    @property
    def max_bytes(self) -> int:
        """Most memory of all channels of one guest."""


def check_allowed(channels: Sequence[Channel], allowed: Allowed, host_paths: Sequence[str]) -> None:
    """Refuse places of the host that the configuration does not list, and more memory than it allows.

    :param host_paths: sources that are no shared memory, ``source.host_paths``.
    :raises SpecError: with the key that would allow it.
    """
    wanted = sum(channel.size for channel in channels if channel.made)
    if wanted > allowed.max_bytes:
        raise SpecError(
            f"cannot give a guest {units.human(wanted)} of channels: {units.human(allowed.max_bytes)} is the most",
            "make them smaller, or set channels.max_bytes in the configuration",
        )
    for channel in channels:
        if channel.vchan:
            continue  # no place of the host's
        if channel.place and not channel.shared:
            sources.from_annotation(f"org.runphi.channel.{channel.name}", channel.place, host_paths)
        elif channel.place and channel.place not in allowed.places:
            raise SpecError(
                f"cannot use {channel.place} as channel '{channel.name}': the configuration does not allow it",
                "list it, written in the same way, under channels.places",
            )
