# SPDX-License-Identifier: Apache-2.0
"""libxenvchan by ctypes: two byte rings in pages that a Xen guest grants to us, told of by an event channel.

The guest serves and we connect, as in Qubes OS: the pages are the guest's, so they outlive us. What of the pages the
library believes it checks: it copies the orders of the rings once and refuses those out of bounds, masks every index,
and takes a fill level beyond the ring for nothing at all. Every length it returns is checked here once more.
"""

from __future__ import annotations

import ctypes
import errno
import os
import re
from typing import Any, Final

from consoles.errors import SourceError

#: Where the kernel tells Xen's version.
VERSION: Final = "/sys/hypervisor/version"
#: What a client needs of the kernel, and the module that makes it.
DEVICES: Final = {"/dev/xen/gntdev": "xen-gntdev", "/dev/xen/evtchn": "xen-evtchn"}
#: A guest's directory in XenStore below which its servers are, each by a name; 0 is the domain that it serves.
SERVERS: Final = "data/vchan/0"
#: The library makes its paths in 64 bytes, the longest being PATH/event-channel. Source: init.c of libxenvchan 4.17.
_PATH_MAX: Final = 64 - len("/event-channel") - 1
_DOMID_MAX: Final = 32751
#: Longest name of a server that it can reach in every domain.
NAME_MAX: Final = _PATH_MAX - len(f"/local/domain/{_DOMID_MAX}/{SERVERS}/")
#: One read takes at most this.
CHUNK: Final = 1 << 16
_NODE: Final = re.compile(r"/local/domain/([0-9]{1,5})/.+")


class _Control(ctypes.Structure):
    """The head of ``struct libxenvchan``. Source: libxenvchan.h, the same from Xen 4.2 on."""

    _fields_ = (
        ("grants", ctypes.c_void_p),
        ("ring", ctypes.c_void_p),
        ("event", ctypes.c_void_p),
        ("event_port", ctypes.c_uint32),
        ("is_server", ctypes.c_int, 1),
        ("server_persist", ctypes.c_int, 1),
        ("blocking", ctypes.c_int, 1),
    )


def server(domid: int, name: str) -> str:
    """Return where in XenStore a guest's server of this name is."""
    return f"/local/domain/{domid}/{SERVERS}/{name}"


class Library:
    """The library's functions that a client needs.

    :param functions: the library as ctypes loads it.
    """

    def __init__(self, functions: Any) -> None:
        self.client_init = functions.libxenvchan_client_init
        self.client_init.argtypes = (ctypes.c_void_p, ctypes.c_int, ctypes.c_char_p)
        self.client_init.restype = ctypes.POINTER(_Control)
        self.read, self.write = functions.libxenvchan_read, functions.libxenvchan_write
        for function in (self.read, self.write):
            function.argtypes = (ctypes.POINTER(_Control), ctypes.c_char_p, ctypes.c_size_t)
        self.wait, self.space = functions.libxenvchan_wait, functions.libxenvchan_buffer_space
        self.fd, self.close = functions.libxenvchan_fd_for_select, functions.libxenvchan_close
        for function in (self.wait, self.space, self.fd, self.close):
            function.argtypes = (ctypes.POINTER(_Control),)
        self.close.restype = None

    def connect(self, node: str) -> Vchan:
        """Connect to the server whose place in XenStore is ``node`` (blocks for some milliseconds).

        :raises SourceError: there is none that can be used.
        """
        found = _NODE.fullmatch(node)
        if found is None or len(node) > _PATH_MAX:
            raise SourceError(f"cannot connect to {node!r}: it is no place of a guest's vchan server")
        control = self.client_init(None, int(found[1]), node.encode())
        if not control:
            raise SourceError(f"cannot connect to {node}: no vchan server is there")
        return Vchan(self, control)


class Vchan:
    """One connection; nothing here blocks."""

    def __init__(self, library: Library, control: Any) -> None:
        self._library = library
        self._control = control
        self._buffer = ctypes.create_string_buffer(CHUNK)
        control.contents.blocking = 0  # the library leaves it to chance
        #: becomes readable when the guest did something
        self.fd = int(library.fd(control))
        os.set_blocking(self.fd, False)

    def wait(self) -> bool:
        """Take the event that made ``fd`` readable; return False when there can be no more of them."""
        return int(self._library.wait(self._control)) == 0 or ctypes.get_errno() == errno.EAGAIN

    def read(self) -> bytes | None:
        """Return what is there, b"" when that is nothing, None when the guest closed it and nothing is left."""
        count = int(self._library.read(self._control, self._buffer, CHUNK))
        return ctypes.string_at(self._buffer, count) if 0 <= count <= CHUNK else None

    def write(self, data: bytes) -> int | None:
        """Return how much of ``data`` was taken, None when the guest closed it."""
        count = int(self._library.write(self._control, data, len(data)))
        return count if 0 <= count <= len(data) else None

    def has_room(self) -> bool:
        """Whether ``write`` would take something; when not, the guest is asked to say so as soon as it would."""
        return int(self._library.space(self._control)) > 0

    def close(self) -> None:
        """Tell the guest and give its pages back."""
        self._library.close(self._control)


def load() -> Library:
    """Load the library of the version of Xen that runs (blocks).

    :raises SourceError: it cannot be had here, and why.
    """
    try:
        major, minor = (_first_line(f"{VERSION}/{part}") for part in ("major", "minor"))
    except OSError:
        raise SourceError("cannot use libxenvchan: this machine does not run Xen") from None
    name = f"libxenvchan.so.{major}.{minor}"
    try:
        library = Library(ctypes.CDLL(name, use_errno=True))
    except (OSError, AttributeError) as exc:
        hint = f"install the libraries of Xen {major}.{minor}, Debian's libxenmisc{major}.{minor}"
        raise SourceError(f"cannot load {name}: {exc}; {hint}") from None
    for device, module in DEVICES.items():
        if not os.path.exists(device):
            raise SourceError(f"cannot use libxenvchan: there is no {device}; modprobe {module}")
    return library


def _first_line(path: str) -> str:
    with open(path) as file:
        return file.readline().strip()
