# SPDX-License-Identifier: Apache-2.0
"""The options of a mount in config.json: what each means for a guest. ``mounts.py`` asks."""

from __future__ import annotations

from typing import Final, NamedTuple

from runphi_async.errors import PlanError
from runphi_async.host import syscalls

#: option → (flags it sets, flags it takes back). Source: mount(8); flags of linux/mount.h
_FLAGS: Final = {
    "ro": (syscalls.MS_RDONLY, 0),
    "rw": (0, syscalls.MS_RDONLY),
    "nosuid": (syscalls.MS_NOSUID, 0),
    "suid": (0, syscalls.MS_NOSUID),
    "nodev": (syscalls.MS_NODEV, 0),
    "dev": (0, syscalls.MS_NODEV),
    "noexec": (syscalls.MS_NOEXEC, 0),
    "exec": (0, syscalls.MS_NOEXEC),
    "sync": (0x10, 0),
    "async": (0, 0x10),
    "dirsync": (0x80, 0),
    "noatime": (0x400, 0),
    "atime": (0, 0x400),
    "nodiratime": (0x800, 0),
    "diratime": (0, 0x800),
    "relatime": (0x200000, 0),
    "norelatime": (0, 0x200000),
    "strictatime": (0x1000000, 0),
    "nostrictatime": (0, 0x1000000),
    "defaults": (0, 0),
}
#: the recursive forms of runc: a guest has no mounts below a bind mount that it could tell apart
_RECURSIVE: Final = {"rro": "ro", "rrw": "rw"}
_BIND: Final = ("bind", "rbind")
_SLAVE: Final = ("slave", "rslave")
#: a guest's kernel shares its mounts with nobody
_NO_MATTER: Final = ("private", "rprivate", "unbindable", "runbindable", "silent", "loud")
_SHARED: Final = ("shared", "rshared")
#: the guest's init holds them in buffers
_DATA_MAX: Final = 200


class Options(NamedTuple):
    """What the options of one mount mean.

    :ivar flags: ``MS_*``.
    :ivar recursive: of a bind mount: with what is mounted below its source.
    :ivar slave: what the host mounts below the source later is seen, too.
    :ivar copy_up: a tmpfs begins with what the image has there.
    :ivar data: what is left for the file system, such as ``size=64m``.
    """

    flags: int
    bind: bool
    recursive: bool
    slave: bool
    copy_up: bool
    data: tuple[str, ...]


def parse(destination: str, words: tuple[str, ...]) -> Options:
    """Read the options.

    :raises PlanError: one asks for what no guest can have.
    """
    flags, bind, recursive, slave, copy_up = 0, False, False, False, False
    data = []
    for word in words:
        name = _RECURSIVE.get(word, word)
        if name in _FLAGS:
            flags = flags & ~_FLAGS[name][1] | _FLAGS[name][0]
        elif name in _BIND:
            bind, recursive = True, recursive or name == "rbind"
        elif name in _SLAVE:
            slave = True
        elif name in _SHARED:
            raise PlanError(
                f"cannot mount {destination} with option {name}: a guest's mounts cannot appear on the host",
                "use rprivate or rslave",
            )
        elif name == "tmpcopyup":
            copy_up = True
        elif name not in _NO_MATTER:
            data.append(name)
    joined = ",".join(data)
    if len(joined) > _DATA_MAX or any(char.isspace() or char == "\0" for char in joined):
        raise PlanError(f"cannot mount {destination}: its options {joined!r} are too long or hold white space")
    return Options(flags, bind, recursive, slave, copy_up, tuple(data))
