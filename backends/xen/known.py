# SPDX-License-Identifier: Apache-2.0
"""What becomes known of a domain as it lives, in its record: written down before it is needed."""

from __future__ import annotations

import contextlib
import os
from typing import Final

import msgspec

from backends.xen.exitcode import End
from runphi_async import regular
from runphi_async.host.files import write_atomically

FILE: Final = "xen.json"
#: Most bytes of that file.
FILE_MAX: Final = 1 << 20


class KnownDomain(msgspec.Struct, omit_defaults=True):
    """What the plan cannot say.

    :ivar uuid: of the domain, chosen by us; it finds the domain even where its making was cut short.
    """

    uuid: str = ""
    domid: int = -1
    started: bool = False
    end: End | None = None

    @property
    def home(self) -> str:
        """The domain's path in XenStore."""
        return f"/local/domain/{self.domid}"

    def save(self, directory: str) -> None:
        """Write it down."""
        with contextlib.suppress(FileNotFoundError):  # `delete` has given the domain up meanwhile
            write_atomically(os.path.join(directory, FILE), msgspec.json.encode(self))


_decoder = msgspec.json.Decoder(KnownDomain)


def load(directory: str) -> KnownDomain:
    """Return what an earlier supervisor knew, nothing where it knew nothing."""
    try:
        return _decoder.decode(regular.read(os.path.join(directory, FILE), FILE_MAX, links=False))
    except (OSError, msgspec.MsgspecError):
        return KnownDomain()
