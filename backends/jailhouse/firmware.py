# SPDX-License-Identifier: Apache-2.0
"""Images for remote processors, where the root system's remoteproc finds them: links below its firmware directory.

The driver takes a file name and nothing else, and copies 31 bytes of it without an end behind them. So a name is short,
and made of the run directory and the record: no two containers have the same, and what a dead supervisor or a reset
left behind is known as ours.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
from typing import TYPE_CHECKING, Final

from backends.jailhouse.images import FLAT_MAX, copy
from backends.jailhouse.plan import Form
from backends.jailhouse.tool import Image
from runphi_async.errors import BackendError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from backends.jailhouse.plan import CellPlan

#: the image in the record: what the kernel opens is not the container's own file, which may change
FILE: Final = "firmware.elf"
#: longest name that is sure to have an end
NAME_MAX: Final = 30


def prefix(run_dir: str) -> str:
    """Return how the names of a run directory's links begin."""
    return f"runphi-{_short(os.path.realpath(run_dir), 6)}-"


def name_of(directory: str) -> str:
    """Return the name of the link of the container whose record is ``directory``."""
    directory = os.path.normpath(directory)
    return f"{prefix(os.path.dirname(directory))}{_short(os.path.basename(directory), 10)}.elf"


def _short(text: str, digits: int) -> str:
    return hashlib.sha256(os.fsencode(text)).hexdigest()[:digits]


def link(cell: CellPlan, directory: str, firmware: str) -> list[Image]:
    """Link the images of a cell's remote processors; return what the tool is to load (blocks).

    :param directory: of the record.
    :raises BackendError: an image is not as it was when it was planned, or the link cannot be made.
    """
    made = []
    for load, rcpu in zip((load for load in cell.loads if load.form is Form.RPU), cell.rpus, strict=True):
        _check(load.source)
        copied = os.path.join(directory, FILE)
        copy(load.source, copied, FLAT_MAX)
        name = name_of(directory)
        path = os.path.join(firmware, name)
        try:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)  # of an earlier life of this very record
            os.symlink(os.path.realpath(copied), path)
        except OSError as exc:
            raise BackendError(
                f"cannot link {load.source} as {path}: {exc.strerror}",
                "the kernel's remoteproc reads images below jailhouse.firmware; it must be a directory that can be "
                "written",
            ) from exc
        made.append(Image(0, name, rcpu=rcpu))
    return made


def _check(path: str) -> None:
    try:
        status = os.stat(path)
    except OSError as exc:
        raise BackendError(f"cannot load {path}: {exc.strerror}") from exc
    if not stat.S_ISREG(status.st_mode) or status.st_size == 0:
        raise BackendError(f"cannot load {path}: it is no regular file, or empty")


def unlink(directory: str, firmware: str) -> None:
    """Remove a container's link, if there is one. Never fails."""
    with contextlib.suppress(OSError):
        os.unlink(os.path.join(firmware, name_of(directory)))


def sweep(run_dir: str, records: Iterable[str], firmware: str) -> list[str]:
    """Remove the links of this run directory that belong to no record any more; return their names (blocks)."""
    known = {name_of(os.path.join(run_dir, name)) for name in records}
    start, swept = prefix(run_dir), []
    with contextlib.suppress(OSError), os.scandir(firmware) as entries:
        for entry in entries:
            if entry.name.startswith(start) and entry.name not in known and entry.is_symlink():
                with contextlib.suppress(OSError):
                    os.unlink(entry.path)
                    swept.append(entry.name)
    return swept
