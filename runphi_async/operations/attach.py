# SPDX-License-Identifier: Apache-2.0
"""What a person on a stream does, and what comes of it: typing, sizes, keys behind the escape key, signals.

Without the connection: whoever has one hands over what came, and tells the session's notices.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final

from runphi_async.errors import RunphiError
from runphi_async.operations.kill import kill
from runphi_async.terminals.sessions import read_size

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from runphi_async.container.container import Container
    from runphi_async.terminals.sessions import Row, Session
    from runphi_async.terminals.stream import Stream

log = logging.getLogger(__name__)

#: What the keys behind the escape key do; some of them are the client's business (client/attach.py).
HELP: Final = (
    ("?", "this help"),
    (". or d", "leave"),
    ("t", "take over: be the only one who types"),
    ("+", "type beside the others"),
    ("o", "only watch"),
    ("w", "who is here"),
    ("b", "send a serial break"),
    ("s", "send a file, or stop sending it"),
    ("z", "suspend this client"),
)


class Attendee:
    """One person on a stream of a container.

    :param escape: the escape key in words, "" for none.
    :param console: whether the stream is the console: a channel has no break.
    :param listed: how people are shown to a person.
    """

    def __init__(
        self,
        container: Container,
        stream: Stream,
        session: Session,
        *,
        escape: str,
        console: bool,
        listed: Callable[[Sequence[Row]], str],
    ) -> None:
        self._container = container
        self._stream = stream
        self._session = session
        self._escape = escape
        self._console = console
        self._listed = listed

    def typed(self, data: bytes) -> None:
        """Something was typed; who only watches is told so."""
        if self._session.types():
            self._stream.typed(data)

    def resized(self, payload: bytes) -> None:
        """The person's terminal has another size."""
        size = read_size(payload)
        if size is not None:
            self._stream.people.resized(self._session, size)

    async def key(self, key: bytes) -> None:
        """Do what the key behind the escape key says."""
        people = self._stream.people
        match key:
            case b"t":
                people.take(self._session)
            case b"+":
                people.share(self._session)
            case b"o":
                people.observe(self._session)
            case b"w":
                self._session.say(self._listed(people.rows()).rstrip("\n"))
            case b"b":
                await self._break()
            case _:
                twice = (self._escape, f"send {self._escape} itself")
                self._session.say("\n".join(f"{self._escape} {keys:<7} {text}" for keys, text in (*HELP, twice)))

    async def _break(self) -> None:
        if not self._session.types():
            return
        if not self._console:
            self._session.say("a channel has no break")
            return
        running = self._container.running
        try:
            sent = running is not None and await running.send_break()
        except RunphiError as exc:
            self._session.say(str(exc))
            return
        self._session.say("break sent" if sent else "this guest's console has no break")


class AttendingOwner(Attendee):
    """The client of ``run``, which stands for an engine: its signals and its end of input are the container's."""

    async def signal(self, number: int) -> None:
        """The client was sent a signal."""
        try:
            await kill(self._container, number)
        except RunphiError as exc:
            log.info("%s: %s", self._container.record.name, exc)

    def end_of_input(self) -> None:
        """The client's stdin has ended."""
        console = self._container.console
        if console is not None and self._container.record.attached:
            console.end_of_input()
