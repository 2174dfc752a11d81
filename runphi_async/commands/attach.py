# SPDX-License-Identifier: Apache-2.0
"""`runphi attach`: join the console of a container; one person types, any number watches."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from consoles.streams import terminal
from runphi_async import digits, wire
from runphi_async.commands import detachkeys, shown
from runphi_async.commands.cli import find_named
from runphi_async.errors import StateError, UsageError
from runphi_async.terminals import replay
from runphi_async.terminals.people import Role, Wish
from runphi_async.wire.console import AttachStart

if TYPE_CHECKING:
    from argparse import Namespace

    from runphi_async.commands.cli import Globals, Parser
    from runphi_async.container.registry import Supervisor
    from runphi_async.wire.call import Call

#: Roles that a client may have had under an earlier supervisor; the client of `run` cannot come back.
BACK: Final = [Role.WRITER.value, Role.SHARER.value, Role.OBSERVER.value]


def arguments(parser: Parser) -> None:
    """Declare the verb's options."""
    role = parser.add_mutually_exclusive_group()
    role.add_argument("--observe", "--no-stdin", action="store_true", help="only watch")
    role.add_argument("--take", action="store_true", help="be the only one who types")
    role.add_argument("--share", action="store_true", help="type beside the others")
    parser.add_argument("--replay", metavar="WHAT", help="the past to show: none, screen, a number of lines, or all")
    parser.add_argument("--quiet", "-q", action="store_true", help="no notices of others who come, go or take over")
    parser.add_argument("--words", metavar="TEXT", default="", help="what others see beside your name")
    parser.add_argument("--detach-keys", metavar="KEYS", help="leave by these keys, such as ctrl-p,ctrl-q")
    parser.add_argument("--escape-key", metavar="KEY", help="key in front of commands, such as ctrl-]; '' for none")
    parser.add_argument("--channel", metavar="CHANNEL", help="a named stream; runphi channels lists them")
    # A client that lost its supervisor goes on at this byte, in this role.
    parser.add_argument("--from", dest="start", type=digits.number, metavar="OFFSET", help="show from this byte on")
    parser.add_argument("--back", metavar="ROLE", choices=BACK, help="come back as ROLE")
    parser.add_argument("id", metavar="NAME")


async def run(call: Call, supervisor: Supervisor, options: Globals, given: Namespace) -> int:
    """Show the console until the guest ends or the person leaves; the status is the guest's."""
    guest = find_named(supervisor, given.id, options)
    limits = supervisor.config.console
    keys = detachkeys.parse(limits.detach_keys if given.detach_keys is None else given.detach_keys)
    name = limits.escape_key if given.escape_key is None else given.escape_key
    escape = detachkeys.parse_one(name)
    replay.check(given.replay)
    stream = guest.stream(given.channel)
    if given.start is not None and given.start < 0:
        raise UsageError("--from wants a byte offset")
    if guest.settled.is_set() or stream is None:
        if given.start is not None:  # it ended while its client looked for a supervisor
            return guest.record.exit_code or 0
        raise StateError("container not running", f"runphi logs {given.id} shows what it printed")
    is_terminal = _is_terminal(call)
    # An observer's terminal is read as well: the escape key is how an observer leaves.
    reads = is_terminal or not given.observe
    start = AttachStart(terminal=is_terminal, stdin=reads, people=True, escape=escape, detach=keys)
    await call.send(wire.ATTACH, start.encode())
    order = shown.Order(
        wish=_wish(given),
        how=f"{name} t" if is_terminal and escape else "--take",
        words=given.words,
        quiet=given.quiet,
        is_terminal=is_terminal,
        start=given.start,
        replay=given.replay,
        escape=name if is_terminal and escape else "",
        channel=given.channel,
        stream=stream,
        log_dir=next((log.directory for log in guest.logs(given.channel) if log.kind == "raw"), ""),
    )
    if is_terminal and given.start is None:
        # Before the first byte of the guest: the mark it carries is what tells ours from the guest's.
        await call.send(wire.NOTICE, _welcome(given.id, order.escape).encode())
    return await shown.show(call, guest, order)


def _wish(given: Namespace) -> Wish | Role:
    if given.back is not None:
        return Role(given.back)
    wishes = ((given.observe, Wish.OBSERVE), (given.take, Wish.TAKE), (given.share, Wish.SHARE))
    return next((wish for asked, wish in wishes if asked), Wish.PLAIN)


def _welcome(name: str, escape: str) -> str:
    keys = f"{escape} ? lists the keys; " if escape else ""
    return f"console of {name}; {keys}only lines marked as this one are runphi's"


def _is_terminal(call: Call) -> bool:
    try:
        terminal.get_size(call.fds[0])
    except OSError:
        return False
    return True
