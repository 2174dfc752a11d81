# SPDX-License-Identifier: Apache-2.0
"""What a container may ask of its guest, decoded: the values that annotations, environment and image become.

``request.py`` makes them of texts, once; halves and backends read them and never see a text that would have to be
understood again. What stays a ``str`` is a name, a path, or words of the guest's own.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec

from runphi_async import units
from runphi_async.partition.channels import Channel

#: what stands for no network, beside "no"
NO_NET: Final = "none"


class NetWish(msgspec.Struct, frozen=True):
    """Whether a network is wanted.

    :ivar name: which one, by its own name; None: any, or none.
    :ivar annotated: who runs the container says so, and not its image.
    """

    wanted: bool
    name: str | None = None
    annotated: bool = False


def net(text: str, *, annotated: bool = False) -> NetWish:
    """Understand yes, no, or the name of a network."""
    try:
        return NetWish(units.parse_bool(text), None, annotated)
    except ValueError:
        word = text.strip()
        return NetWish(word.lower() != NO_NET, word, annotated)


class Wishes(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """What a container asks of its guest, whichever backend will make it; None: it does not say.

    :ivar arch: x86_64 or aarch64.
    :ivar cmdline: the guest's own words.
    :ivar load_address: where a flat image is loaded.
    :ivar machine: name of a kind of machine; each backend knows its own.
    :ivar netconf: settings of the network for the guest itself, in its own words.
    :ivar rpu: a remote processor of the board instead of a CPU.
    :ivar colors: cache colours of a cell's memory, ascending.
    :ivar console_port: name of what a cell prints on.
    :ivar channels: named streams beside the console.
    :ivar console: name of the channel that is the console.
    :ivar own: annotations of one backend alone, by what stands behind ``org.runphi.``; that backend decodes them.
    """

    arch: str | None = None
    cmdline: str | None = None
    load_address: int | None = None
    vcpus: int | None = None
    machine: str | None = None
    net: NetWish | None = None
    netconf: str | None = None
    rpu: bool = False
    colors: tuple[int, ...] | None = None
    console_port: str | None = None
    channels: tuple[Channel, ...] = ()
    console: str | None = None
    own: dict[str, str] = {}


def common(asked: Wishes) -> dict[str, Any]:
    """Return the wishes of something that holds more than those."""
    return {name: getattr(asked, name) for name in Wishes.__struct_fields__}
