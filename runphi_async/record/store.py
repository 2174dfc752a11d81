# SPDX-License-Identifier: Apache-2.0
"""The records of containers under the run directory: what survives a supervisor.

A record is a directory ``<run>/<name>/`` readable for people; ``state.json`` in it is ours. In the engine's root
directory a symbolic link ``<root>/<id>`` points to it: ids are unique only within a root, the thin client sees with
one readlink whose container it is, and runc refuses the same id there.
"""

from __future__ import annotations

import os
import re
import shutil
from typing import Final

import msgspec

from runphi_async import regular
from runphi_async.errors import NotFoundError, SpecError, StateError
from runphi_async.host.files import write_atomically
from runphi_async.partition.channels import Channel
from runphi_async.partition.logplan import LogPlan
from runphi_async.record.lifecycle import Status

#: Longest id: a directory name, with room for the ``@2`` of a second root.
ID_MAX: Final = 200
#: What the supervisor must know again, in the record; and the most bytes of it.
STATE: Final = "state.json"
STATE_MAX: Final = 4 << 20
#: The same as it was when the container was made.
MADE: Final = "made.json"
#: Same set as runc's.
_ID: Final = re.compile(r"[\w+.,-]+", re.ASCII)
#: Beginnings of the names of the run and log directories' own files: no record may stand in their way.
_RESERVED: Final = ("supervisor.", "runc.", "start.", "accel.", "hypervisor.", "ledger.")


#: Version of the records, of the plans in them, and of the init stub's descriptors, that are made now.
VERSION: Final = 3
#: Versions whose living guests can be taken over: the descriptors of 2 are those of 3, and backends read its plans.
ADOPTABLE: Final = frozenset({2, VERSION})


class Record(msgspec.Struct, kw_only=True):
    """All that the supervisor must know again after a restart. Times are seconds since the epoch."""

    #: which descriptor of the init stub is which changes with it, and what a driver remembers: a living guest of
    #: one that is not in ``ADOPTABLE`` is left alone
    version: int = 1
    id: str
    #: directory name below the run directory
    name: str
    root: str
    bundle: str
    rootfs: str
    backend: str
    status: Status
    created: float
    boot_id: str
    terminal: bool = False
    #: made by `run`: its client shows the console, no engine does
    attached: bool = False
    annotations: dict[str, str] = {}
    cgroup: str = ""
    #: the init stub, whose pid the engine knows, and its start time in clock ticks since boot
    pid: int = 0
    pid_start: int = 0
    started: float | None = None
    finished: float | None = None
    exit_code: int | None = None
    reason: str | None = None
    #: signal that asked for the guest's end, so that its exit code can say so
    killed_by: int | None = None
    #: whether the guest ever got to run
    booted: bool = False
    #: why the guest was started a second time, without KVM
    fallback: str | None = None
    log_dir: str = ""
    #: milliseconds from start to: first-byte, first-line, ready
    boot: dict[str, int] = {}
    #: what is logged; None: the record was made before there was a choice
    logs: tuple[LogPlan, ...] | None = None
    #: named streams, and which of them is the console
    channels: tuple[Channel, ...] = ()
    console_channel: str | None = None
    #: whatever the backend needs to adopt the guest
    plan: msgspec.Raw = msgspec.Raw(b"null")

    @property
    def engine_terminal(self) -> bool:
        """Whether the console is a terminal that an engine holds, and not the client of ``run``."""
        return self.terminal and not self.attached


_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(Record)


def check_id(container_id: str) -> None:
    """Refuse an id that cannot be a directory name.

    :raises SpecError: with the rule.
    """
    if len(container_id) > ID_MAX or not _ID.fullmatch(container_id) or container_id in {".", ".."}:
        raise SpecError(
            f"invalid container id {container_id!r}",
            f"use 1 to {ID_MAX} letters, digits and the characters _ + - . ,",
        )


class Store:
    """The run directory; every method is one or a few system calls on a tmpfs."""

    def __init__(self, run_dir: str) -> None:
        self.run_dir = run_dir

    def directory(self, name: str) -> str:
        """Return a record's directory."""
        return os.path.join(self.run_dir, name)

    def claim(self, container_id: str, root: str) -> str:
        """Reserve a record directory and the id in its root; return the record's name.

        :raises StateError: the root has the id already, ours or runc's.
        """
        check_id(container_id)
        try:
            os.makedirs(root, mode=0o711, exist_ok=True)
            name = self._free_name(container_id)
        except OSError as exc:
            raise StateError(f"cannot make a record for {container_id}: {exc.filename}: {exc.strerror}") from exc
        link = os.path.join(root, container_id)
        try:
            try:
                os.symlink(self.directory(name), link)
            except FileExistsError:
                if not self._replace_dangling(link, name):
                    raise StateError("container with given ID already exists") from None
        except OSError as exc:
            os.rmdir(self.directory(name))
            raise StateError(f"cannot make a record for {container_id}: {link}: {exc.strerror}") from exc
        except StateError:
            os.rmdir(self.directory(name))
            raise
        return name

    def _free_name(self, container_id: str) -> str:
        number = 1
        while True:
            name = container_id if number == 1 else f"{container_id}@{number}"
            if number > 1 or (name != "runc" and not name.startswith(_RESERVED)):
                try:
                    os.mkdir(self.directory(name), 0o700)
                except FileExistsError:
                    pass
                else:
                    return name
            number += 1

    def _replace_dangling(self, link: str, name: str) -> bool:
        """A link of ours whose record is gone (a crash, a cleaned /run) gives way."""
        try:
            target = os.readlink(link)
        except OSError:
            return False
        if not target.startswith(self.run_dir + "/") or os.path.exists(os.path.join(target, STATE)):
            return False
        temporary = os.path.join(os.path.dirname(link), f".runphi.{os.getpid()}.new")  # an id may have 200 characters
        os.symlink(self.directory(name), temporary)
        os.replace(temporary, link)
        return True

    def find(self, container_id: str, root: str) -> str:
        """Return the name of the record an id in a root stands for.

        :raises NotFoundError: with the words engines know.
        """
        try:
            target = os.readlink(os.path.join(root, container_id))
        except OSError:
            target = ""
        if os.path.dirname(target) != self.run_dir:
            raise NotFoundError("container does not exist")
        return os.path.basename(target)

    def names(self) -> list[str]:
        """Return every record's name, sorted."""
        with os.scandir(self.run_dir) as entries:
            return sorted(e.name for e in entries if e.is_dir(follow_symlinks=False) and e.name[0] != "~")

    def save(self, record: Record) -> None:
        """Write a record's state.json: complete or not at all."""
        path = os.path.join(self.directory(record.name), STATE)
        write_atomically(path, _encoder.encode(record))

    def save_made(self, record: Record) -> None:
        """Write down what will not change of a container, for the day on which state.json cannot be read."""
        write_atomically(os.path.join(self.directory(record.name), MADE), _encoder.encode(record))

    def load(self, name: str) -> Record | None:
        """Read a record; None when there is none: create was interrupted.

        :raises StateError: there is one, and it is damaged.
        """
        return self._read(name, STATE)

    def load_made(self, name: str) -> Record | None:
        """Read what was written down when the container was made; None when that cannot be had either."""
        try:
            return self._read(name, MADE)
        except StateError:
            return None

    def _read(self, name: str, file: str) -> Record | None:
        try:
            data = regular.read(os.path.join(self.directory(name), file), STATE_MAX, links=False)
            record = _decoder.decode(data)
            _check(record, name)
        except FileNotFoundError:
            return None
        except (OSError, msgspec.MsgspecError, ValueError, SpecError) as exc:
            # a ValueError: msgspec's of a text that is no UTF-8
            raise StateError(f"cannot read {file} of the record {name}: {exc}") from exc
        return record

    def remove(self, name: str, root: str | None, container_id: str) -> None:
        """Forget a record: first the engine's view of it, then the directory."""
        if root is not None:
            link = os.path.join(root, container_id)
            try:
                if os.readlink(link) == self.directory(name):
                    os.unlink(link)
            except OSError:
                pass  # never made, or removed by hand
        grave = os.path.join(self.run_dir, "~" + name)
        shutil.rmtree(grave, ignore_errors=True)
        try:
            os.rename(self.directory(name), grave)
        except FileNotFoundError:
            return
        shutil.rmtree(grave, ignore_errors=True)


def _check(record: Record, name: str) -> None:
    """Refuse a record that would lead to something else than its own: what it names is removed, and killed."""
    check_id(record.id)
    if record.name != name:
        raise ValueError(f"it is of {record.name!r}")
    if record.cgroup and not os.path.normpath(record.cgroup).strip("/"):
        raise ValueError("its cgroup is everybody's")
    for path in (record.root, record.bundle):
        if not os.path.isabs(path) or "\0" in path:
            raise ValueError(f"{path!r} is no directory")
