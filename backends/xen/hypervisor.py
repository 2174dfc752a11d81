# SPDX-License-Identifier: Apache-2.0
"""The hypervisor as drivers need it: look at domains, pause them, destroy them, each step verified.

libxenctrl's Python module, part of Debian's xen-utils, answers in a third of a millisecond; without it ``xl list``
does, in the time of a process. Pauses are counted by Xen: a domain paused twice needs two words to go on.
"""

from __future__ import annotations

import errno
import glob
import importlib
import logging
import os
import sys
from typing import TYPE_CHECKING, Any, Final

from backends.xen.faults import explain
from backends.xen.states import Domain, from_xc, parse_list
from backends.xen.xl import LONG, Xl
from runphi_async.errors import BackendError

if TYPE_CHECKING:
    from collections.abc import Sequence

log = logging.getLogger(__name__)

#: Where Debian keeps Xen's Python modules, for every version of Xen that is installed.
MODULES: Final = "/usr/lib/xen-*/lib/python"
CAPABILITIES: Final = "/proc/xen/capabilities"
#: How many pauses of others are taken back before we give up.
PAUSES: Final = 8


def find_xc(patterns: Sequence[str] = (MODULES,)) -> Any:
    """Return an open ``xen.lowlevel.xc.xc``, or None when there is none for the Xen that runs."""
    if not os.path.exists("/proc/xen/privcmd") and not os.path.exists("/dev/xen/privcmd"):
        return None
    places = [place for pattern in patterns for place in sorted(glob.glob(pattern), reverse=True)]
    for place in places:
        sys.path.append(place)
        try:
            return importlib.import_module("xen.lowlevel.xc").xc()
        except Exception as exc:  # the module has an exception class of its own, which is not importable without it
            log.debug("cannot use %s: %s", place, exc)
            sys.modules.pop("xen.lowlevel.xc", None)
        finally:
            sys.path.remove(place)
    return None


def is_dom0(path: str = CAPABILITIES) -> bool:
    """Whether this is the domain that controls the others."""
    try:
        with open(path) as file:
            return "control_d" in file.read()
    except OSError:
        return False


class Hypervisor:
    """What runs on Xen.

    :param xc: libxenctrl's module opened (``find_xc``), None to do without.
    """

    def __init__(self, xl: Xl, xc: Any = None) -> None:
        self.xl = xl
        self._xc = xc

    @property
    def exact(self) -> bool:
        """Whether ``Domain.ran`` is always known."""
        return self._xc is not None

    async def domains(self) -> list[Domain]:
        """Return all domains, also those half made and half gone."""
        if self._xc is None:
            return parse_list(await self.xl.must("list the domains", "list", "-v"))
        found: list[Domain] = []
        first = 0
        while True:
            more = self._infos(first, 256)
            found += map(from_xc, more)
            if len(more) < 256:
                return found
            first = found[-1].domid + 1

    def _infos(self, first: int, most: int) -> list[dict[str, Any]]:
        try:
            return list(self._xc.domain_getinfo(first, most))
        except Exception as exc:  # xen.lowlevel.xc.Error, which nobody can name without the module
            if exc.args[:1] == (errno.ESRCH,):  # there is none with this number or a higher one
                return []
            raise BackendError(f"cannot list the domains: {exc}") from exc

    async def look(self, domid: int, uuid: str) -> Domain | None:
        """Return one domain; None: it is gone (another may have its number by now)."""
        if self._xc is None:
            domains = await self.domains()
        else:
            # The domain asked for, or the first one above it.
            domains = list(map(from_xc, self._infos(domid, 1)))
        return next((domain for domain in domains if domain.domid == domid and domain.uuid == uuid), None)

    async def find(self, uuid: str) -> Domain | None:
        """Return the domain made with this uuid, however far its making got."""
        return next((domain for domain in await self.domains() if domain.uuid == uuid), None)

    async def free_memory(self) -> int:
        """Return the bytes that Xen can still give to domains."""
        if self._xc is not None:
            return int(self._xc.physinfo()["free_memory"]) * 1024
        text = await self.xl.must("ask Xen for its free memory", "info", "free_memory")
        return int(text) << 20

    async def pause(self, domid: int, uuid: str) -> None:
        """Make a domain stand still; one that stands still already is not paused a second time.

        :raises BackendError: it is gone, or goes on.
        """
        domain = await self._living(domid, uuid, "pause")
        if domain.paused:
            return
        await self._switch("pause", domid)
        domain = await self._living(domid, uuid, "pause")
        if not domain.paused:
            raise BackendError("cannot pause the domain: it goes on")

    async def unpause(self, domid: int, uuid: str) -> None:
        """Let a domain go on, whoever paused it and how often.

        :raises BackendError: it is gone, or stands still.
        """
        for _ in range(PAUSES):
            domain = await self._living(domid, uuid, "resume")
            if not domain.paused:
                return
            await self._switch("unpause", domid)
        last = await self.look(domid, uuid)
        if last is not None and last.paused:
            raise BackendError("cannot resume the domain: somebody keeps it paused", f"xl unpause {domid}, in dom0")

    async def _living(self, domid: int, uuid: str, what: str) -> Domain:
        domain = await self.look(domid, uuid)
        if domain is None or domain.dying:
            raise BackendError(f"cannot {what} the domain: it has ended")
        return domain

    async def _switch(self, verb: str, domid: int) -> None:
        if self._xc is None:
            await self.xl.must(f"{verb} the domain", verb, str(domid))
            return
        try:
            getattr(self._xc, f"domain_{verb}")(domid)
        except Exception as exc:  # xen.lowlevel.xc.Error
            raise BackendError(f"cannot {verb} the domain: {exc}") from exc

    async def destroy(self, uuid: str) -> None:
        """Destroy the domain made with this uuid, however far its making got; one that is gone is fine.

        :raises BackendError: it is still there afterwards.
        """
        domain = await self.find(uuid)
        if domain is None or domain.dying:
            return
        answer = await self.xl.run("destroy", str(domain.domid), seconds=LONG)
        domain = await self.find(uuid)
        # A dying domain executes nothing any more: it waits for somebody to let go of its memory.
        if domain is not None and not domain.dying:
            raise explain(f"destroy domain {domain.domid}", answer.err, answer.status)


def opened(xl: str, *, libxenctrl: bool) -> Hypervisor:
    """Return the hypervisor of this machine; ``libxenctrl``: its Python module is used where there is one."""
    return Hypervisor(Xl(xl), find_xc() if libxenctrl else None)
