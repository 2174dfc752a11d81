# SPDX-License-Identifier: Apache-2.0
"""Files that somebody else may have put there: FIFOs, links, devices and endless ones in their place."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from typing import TYPE_CHECKING, Any

import pytest

from backends.guest import elf, nics
from backends.jailhouse.gathering import check_tree
from backends.xen.notes import is_pv_kernel
from runphi_async import regular
from runphi_async.board import loading
from runphi_async.commands.board import _check
from runphi_async.commands.cell import _contents
from runphi_async.container.bundle import read_bundle
from runphi_async.errors import RunphiError
from runphi_async.lifeline import stub
from runphi_async.oci import spec as oci
from runphi_async.record.store import Store

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

#: seconds in which a reader that does not wait has come back
PATIENCE = 10.0


def test_a_regular_file_and_its_bound(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"12345")
    assert regular.read(str(path), 5) == b"12345"
    assert regular.tail(str(path), 2) == b"45"
    with pytest.raises(OSError, match="larger than 4 bytes"):
        regular.read(str(path), 4)
    (tmp_path / "link").symlink_to(path)
    assert regular.read(str(tmp_path / "link"), 5) == b"12345"
    assert regular.tail(str(tmp_path / "link"), 5) == b""
    with pytest.raises(OSError, match="not a regular file"):
        regular.read(str(tmp_path / "link"), 5, links=False)
    with pytest.raises(FileNotFoundError):
        regular.read(str(tmp_path / "absent"), 5)
    with pytest.raises(OSError, match="not a file name"):
        regular.read("a\0b", 5)
    dir_fd = os.open(tmp_path, os.O_PATH)
    assert regular.read("file", 5, dir_fd=dir_fd) == b"12345"
    os.close(dir_fd)


def test_no_descriptor_is_left(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    before = len(os.listdir("/proc/self/fd"))
    for name in ("fifo", "absent", "."):
        with contextlib.suppress(OSError):
            regular.read(str(tmp_path / name), 5)
    assert len(os.listdir("/proc/self/fd")) == before


def namespace(path: str) -> object:
    return nics.open_netns(path)


#: everything that reads a file by a name of somebody else's, given that file's path
READERS: dict[str, Callable[[str], Any]] = {
    "config.json": lambda path: (oci.load(os.path.dirname(path)), read_bundle(os.path.dirname(path), ())),
    "board check": lambda path: _check(path, path, None),
    "boards": loading.load,
    "cell verbs": _contents,
    "images": elf.inspect,
    "Xen's notes": is_pv_kernel,
    "device trees": check_tree,
    "network namespaces": namespace,
    "the VMM's status": lambda path: stub.read_status(os.path.dirname(path)),
    "the VMM's pid": lambda path: stub.read_pid(os.path.dirname(path)),
    "the VMM's log": lambda path: stub.vmm_log(os.path.dirname(path)),
    "the record": lambda path: Store(os.path.dirname(os.path.dirname(path))).load(
        os.path.basename(os.path.dirname(path))
    ),
}
NAMES = {
    "config.json": "config.json",
    "boards": "x.toml",
    "board check": "x.toml",
    "the VMM's status": stub.VMM_STATUS,
    "the VMM's pid": stub.VMM_PID,
    "the VMM's log": stub.VMM_LOG,
    "the record": "state.json",
}


def fifo(path: Path) -> None:
    os.mkfifo(path)


def link_to_a_fifo(path: Path) -> None:
    os.mkfifo(path.with_name("other"))
    path.symlink_to("other")


def sock(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(path))


def endless(path: Path) -> None:
    path.symlink_to("/dev/zero")


def huge(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(1 << 40)


@pytest.mark.parametrize("put", [fifo, link_to_a_fifo, sock, endless, huge], ids=lambda put: put.__name__)
@pytest.mark.parametrize("name", READERS)
def test_no_reader_waits_acts_or_reads_for_ever(tmp_path: Path, name: str, put: Callable[[Path], None]) -> None:
    path = tmp_path / NAMES.get(name, "file")
    put(path)
    failures: list[BaseException] = []

    def read() -> None:
        try:
            READERS[name](str(path))
        except (RunphiError, OSError):
            pass
        except BaseException as exc:
            failures.append(exc)

    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    thread.join(PATIENCE)
    assert not thread.is_alive(), f"{name}: still waits"
    assert not failures
