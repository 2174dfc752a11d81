# SPDX-License-Identifier: Apache-2.0
"""The host's ends of one guest's interfaces, in the network namespace of its container.

They are made with the guest, and connected to the container's interfaces when it is started: engines plug those in
before ``create``, or (docker) in a hook at its end. An end has no life of its own: it is gone when the guest is,
however that ended. What stays then is a filter at the container's interface; ``net.json`` in the record says where, so
that any later supervisor removes it. How ends are made is each backend's own.
"""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING, Final, TypeVar

import msgspec

from runphi_async import regular
from runphi_async.errors import BackendError
from runphi_async.host import namespaces, nic
from runphi_async.host.files import write_atomically
from runphi_async.host.netlink import Netlink
from runphi_async.host.nic import Tap

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from runphi_async.host.nic import Link

FILE: Final = "net.json"
#: most bytes of it
_STATE_MAX: Final = 1 << 20
_T = TypeVar("_T")
log = logging.getLogger(__name__)

#: what to do where no network can be made
HINT: Final = "org.runphi.net=no gives the guest no network"


class State(msgspec.Struct, omit_defaults=True):
    """What is remembered in the record."""

    #: path of the namespace, "" where it was made for the container
    netns: str
    taps: tuple[Tap, ...] = ()
    #: interfaces whose place the guest has, or is about to have
    connected: tuple[str, ...] = ()


class Nics:
    """The host's ends of one guest's interfaces; every method blocks for a moment."""

    def __init__(self, directory: str) -> None:
        self._path = os.path.join(directory, FILE)
        self._netns = -1
        self._state = State("")

    def join(self, netns: str) -> None:
        """Open or make the namespace.

        :raises BackendError: it cannot be done, or a guest has the place of an interface there.
        """
        try:
            self._netns = open_netns(netns) if netns else namespaces.new_network()
        except OSError as exc:
            why = (exc.strerror or str(exc)).lower()
            raise BackendError(f"cannot make a network namespace: {why}", "the supervisor needs CAP_SYS_ADMIN") from exc
        self._state = State(netns)
        self._use(_check_free)

    def _made(self, taps: Iterable[Tap]) -> None:
        """Remember the ends."""
        self._state.taps = tuple(taps)
        self._save()

    @property
    def network(self) -> str:
        """Where a process of the host finds the namespace."""
        return f"/proc/{os.getpid()}/fd/{self._netns}"

    def take_up(self, process: int | None) -> None:
        """Remember what an earlier supervisor made, unless it was made here.

        :param process: one of the guest's, None if there is none left.
        """
        if self._netns >= 0:
            return
        try:
            self._state = msgspec.json.decode(regular.read(self._path, _STATE_MAX, links=False), type=State)
        except (OSError, msgspec.MsgspecError):
            return  # it died before it had made anything
        where = self._state.netns or (f"/proc/{process}/ns/net" if process is not None else "")
        if where:
            try:
                self._netns = os.open(where, os.O_RDONLY | os.O_CLOEXEC)
            except OSError:
                log.info("the network namespace %s is gone, and all that was in it", where)

    def connect(self) -> list[str]:
        """Put the guest into the place of the container's interfaces; return what its init must know.

        :raises BackendError: an interface is left without one of ours, or cannot be connected.
        """
        return self._use(self._connect)

    def _connect(self, netlink: Netlink) -> list[str]:
        links, taps = nic.links(netlink), self._state.taps
        if len(links) > len(taps):
            names = ", ".join(link.name for link in links[len(taps) :])
            raise BackendError(f"cannot connect the guest to {names}: it was made with {len(taps)} network devices")
        self._state.connected = tuple(link.name for link in links)
        self._save()  # first: what is half done must be found by whoever cleans up
        there = nic.taps(netlink)
        lines: list[str] = []
        for link, tap in zip(links, taps, strict=False):
            if tap.index not in there:
                raise BackendError(f"cannot connect the guest to {link.name}: its network device {tap.name} is gone")
            lines += nic.describe(netlink, link, tap)
            nic.connect(netlink, link, tap.index)
        return lines

    def _use(self, work: Callable[[Netlink], _T]) -> _T:
        try:
            netlink = namespaces.in_network(self._netns, Netlink)
            try:
                return work(netlink)
            finally:
                netlink.close()
        except OSError as exc:
            raise BackendError(
                f"cannot connect the guest to its network: {(exc.strerror or str(exc)).lower()}",
                "the supervisor needs CAP_NET_ADMIN, and the kernel sch_ingress, cls_u32 and act_mirred",
            ) from exc

    def remove(self) -> None:
        """Undo what is left outside the record; never fails."""
        if self._netns < 0:
            return
        names, ours = self._state.connected, [tap.index for tap in self._state.taps]
        if names:
            try:
                self._use(lambda netlink: nic.disconnect(netlink, names, ours))
            except BackendError as exc:
                log.warning("%s", exc)
        os.close(self._netns)
        self._netns = -1

    def _save(self) -> None:
        write_atomically(self._path, msgspec.json.encode(self._state))


def _check_free(netlink: Netlink) -> None:
    for link in nic.links(netlink):
        if nic.taken(netlink, link):
            raise BackendError(
                f"cannot connect the guest to {link.name}: another guest of the pod has its place",
                "one of them must do without: org.runphi.net=no",
            )


def open_netns(path: str) -> int:
    """Open a network namespace by its path.

    :raises BackendError: there is none.
    """
    try:
        return regular.opened(path)  # what a namespace is to stat(2); a FIFO there would make us wait
    except OSError as exc:
        raise BackendError(
            f"cannot join network namespace {path}: it cannot be opened",
            "linux.namespaces in config.json names one that is gone",
        ) from exc


def look(path: str | None) -> tuple[Link, ...] | None:
    """Return the interfaces in a namespace so far; None: it is the host's.

    :param path: as in GuestSpec.
    :raises BackendError: there is no such namespace.
    """
    if path is None:
        return None
    if path == "":
        return ()
    netns = open_netns(path)
    try:
        if namespaces.is_ours(netns):
            return None
        netlink = namespaces.in_network(netns, Netlink)
        try:
            return tuple(nic.links(netlink))
        finally:
            netlink.close()
    except OSError as exc:
        raise BackendError(f"cannot join network namespace {path}: {(exc.strerror or str(exc)).lower()}") from exc
    finally:
        os.close(netns)
