# SPDX-License-Identifier: Apache-2.0
"""Answers the thin clients: accepts them, reads what each wants, and has the verb carried out."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Final

import anyio

from runphi_async import wire
from runphi_async.aio.waiting import is_cancelled
from runphi_async.commands import cli
from runphi_async.wire.call import Call
from runphi_async.wire.outgoing import ClientGone

if TYPE_CHECKING:
    import socket

    from runphi_async.aio.tasks import Tasks
    from runphi_async.container.registry import Supervisor

log = logging.getLogger(__name__)

#: Seconds until the next try where there was no descriptor for a client: verbs that end give theirs back.
REST: Final = 0.1


class Server:
    """Who calls, and what comes of it."""

    def __init__(self, supervisor: Supervisor) -> None:
        self._supervisor = supervisor

    async def serve(self, listener: socket.socket, tasks: Tasks) -> None:
        """Accept clients until cancelled; each call gets a task."""
        while True:
            await anyio.wait_readable(listener)
            try:
                sock, _ = listener.accept()
            except (BlockingIOError, ConnectionError):
                continue
            except OSError as exc:  # out of descriptors: the clients wait, the guests must not suffer
                log.error("cannot accept a client: %s", exc.strerror)
                await self._supervisor.shared.clock.sleep(REST)
                continue
            sock.setblocking(False)
            tasks.start_soon(self.answer, Call(sock, self._supervisor.group))

    async def answer(self, call: Call) -> None:
        """Read a call, carry out its verb and hang up; whatever goes wrong with it is that client's alone."""
        try:
            await call.receive()
            call.listen()
            await self._run(call)
        except* ClientGone as group:
            log.debug("%s", group.exceptions[0])
        except* TimeoutError:
            log.debug("a client connected and said nothing")
        except* OSError as group:
            log.warning("a client's call failed: %s", group.exceptions[0])
        except* Exception:
            log.exception("a client's call failed")
        finally:
            call.close()

    async def _run(self, call: Call) -> None:
        try:
            await cli.run(call, self._supervisor)
        except (Exception, asyncio.CancelledError) as exc:
            # One call must not end the supervisor: a task group takes a stray cancellation for its own.
            if _is_gone(exc) or (isinstance(exc, asyncio.CancelledError) and is_cancelled()):
                raise
            log.exception("a call failed: %s", call.argv)
            await call.error("runphi: internal error; the supervisor's log has the details\n")
            await call.send(wire.EXIT, b"1")


def _is_gone(exc: BaseException) -> bool:
    """Whether it is only that the client has left, if need be in a task group of the verb."""
    return isinstance(exc, ClientGone) or (isinstance(exc, ExceptionGroup) and exc.split(ClientGone)[1] is None)
