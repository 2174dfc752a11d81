# SPDX-License-Identifier: Apache-2.0
"""Records: claiming ids in several roots, writing whole or not at all, and surviving whatever lies in the directory."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

import msgspec
import pytest

from runphi_async.errors import NotFoundError, SpecError, StateError
from runphi_async.host.files import boot_id, write_atomically
from runphi_async.record.lifecycle import Status
from runphi_async.record.store import ID_MAX, Record, Store, check_id

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def store(tmp_path: Path) -> Store:
    (tmp_path / "run").mkdir()
    return Store(str(tmp_path / "run"))


@pytest.fixture
def root(tmp_path: Path) -> str:
    return str(tmp_path / "roots" / "a")


def record(name: str, root: str, **more: object) -> Record:
    fields: dict[str, object] = {
        "id": name.partition("@")[0], "name": name, "root": root, "bundle": "/b", "rootfs": "/b/rootfs",
        "backend": "fake", "status": Status.CREATED, "created": 1.5, "boot_id": boot_id(), **more,
    }  # fmt: skip
    return Record(**fields)  # type: ignore[arg-type]


# Section: ids


@pytest.mark.parametrize(
    "good", ["a", "c1", "a_b-c.d+e,f", ".hidden", "-dash", "f" * 64, "x" * ID_MAX, "...", "supervisor.sock", "runc"]
)
def test_good_ids(good: str, store: Store, root: str) -> None:
    check_id(good)
    name = store.claim(good, root)
    assert store.find(good, root) == name
    store.save(record(name, root))
    assert store.names() == [name]
    store.remove(name, root, good)
    assert store.names() == []


@pytest.mark.parametrize(
    "bad",
    ["", ".", "..", "a/b", "../x", "a b", "a\n", "a@2", "~a", "é", "a\0", "x" * (ID_MAX + 1), "\udcff", "$(x)", "*"],
    ids=repr,
)
def test_bad_ids(bad: str, store: Store, root: str) -> None:
    with pytest.raises(SpecError, match="invalid container id") as caught:
        store.claim(bad, root)
    assert caught.value.hint is not None
    assert os.listdir(store.run_dir) == []
    assert not os.path.exists(root)


@pytest.mark.parametrize(
    "name",
    ["runc", "runc.new", "supervisor.sock", "supervisor.lock", "supervisor.sock.123", "start.lock", "accel.json"],
)
def test_no_record_stands_in_the_way_of_the_supervisors_own_files(name: str, store: Store, root: str) -> None:
    assert store.claim(name, root) == f"{name}@2"
    assert not os.path.lexists(store.directory(name))


# Section: claiming


def test_claim_makes_a_private_directory_and_a_link(store: Store, root: str) -> None:
    assert store.claim("c1", root) == "c1"
    assert os.stat(store.directory("c1")).st_mode & 0o777 == 0o700
    assert os.readlink(f"{root}/c1") == f"{store.run_dir}/c1"


def test_the_same_id_in_one_root_is_refused(store: Store, root: str) -> None:
    name = store.claim("c1", root)
    store.save(record(name, root))
    with pytest.raises(StateError, match=r"^container with given ID already exists$"):
        store.claim("c1", root)
    assert store.names() == ["c1"]


def test_an_id_of_runc_is_refused(store: Store, root: str) -> None:
    os.makedirs(f"{root}/c1")
    with pytest.raises(StateError, match="already exists"):
        store.claim("c1", root)
    assert store.names() == []
    assert os.path.isdir(f"{root}/c1")


def test_the_same_id_in_other_roots_gets_another_name(store: Store, tmp_path: Path) -> None:
    roots = [str(tmp_path / "roots" / r) for r in "abc"]
    names = [store.claim("c1", root) for root in roots]
    assert names == ["c1", "c1@2", "c1@3"]
    assert [store.find("c1", root) for root in roots] == names
    store.remove("c1@2", roots[1], "c1")
    assert store.claim("c1", roots[1]) == "c1@2"


@pytest.mark.parametrize("container_id", ["c1", "x" * ID_MAX])
def test_a_link_of_ours_whose_record_is_gone_gives_way(store: Store, root: str, container_id: str) -> None:
    os.makedirs(root)
    os.symlink(f"{store.run_dir}/{container_id}", f"{root}/{container_id}")
    name = store.claim(container_id, root)
    assert store.find(container_id, root) == name
    assert os.listdir(root) == [container_id]


def test_a_link_of_somebody_else_stays(store: Store, root: str) -> None:
    os.makedirs(root)
    os.symlink("/nonexistent/c1", f"{root}/c1")
    with pytest.raises(StateError, match="already exists"):
        store.claim("c1", root)
    assert os.readlink(f"{root}/c1") == "/nonexistent/c1"


def test_a_root_that_cannot_be_used_leaves_nothing(store: Store, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StateError, match="cannot make a record"):
        store.claim("c1", str(tmp_path / "file" / "root"))
    assert store.names() == []


def test_a_link_that_cannot_be_made_leaves_nothing(store: Store, root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "symlink", full)
    with pytest.raises(StateError, match="No space left"):
        store.claim("c1", root)
    assert store.names() == []


# Section: finding


def test_find_says_what_engines_know(store: Store, root: str) -> None:
    for container_id in ("c1", "", "..", "../../etc", "x" * 5000):
        with pytest.raises(NotFoundError, match=r"^container does not exist$"):
            store.find(container_id, root)


def test_find_does_not_follow_links_to_elsewhere(store: Store, root: str, tmp_path: Path) -> None:
    os.makedirs(root)
    os.symlink(str(tmp_path / "other" / "c1"), f"{root}/c1")
    os.symlink(f"{store.run_dir}/../evil", f"{root}/c2")
    for container_id in ("c1", "c2"):
        with pytest.raises(NotFoundError):
            store.find(container_id, root)


# Section: saving and loading


def test_a_record_comes_back_as_it_was(store: Store, root: str) -> None:
    name = store.claim("c1", root)
    saved = record(
        name, root, annotations={"a": "ü\n"}, pid=7, exit_code=3, reason="x", killed_by=9, plan=msgspec.Raw(b'{"a":1}')
    )
    store.save(saved)
    loaded = store.load(name)
    assert loaded is not None
    assert bytes(loaded.plan) == b'{"a":1}'
    assert msgspec.structs.asdict(loaded) | {"plan": 0} == msgspec.structs.asdict(saved) | {"plan": 0}
    assert os.stat(f"{store.directory(name)}/state.json").st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"null", b"[]", b"{}", b'{"id":1}', b"\xff\xfe", b'{"version":1,"id":"c1"}'],
    ids=repr,
)
def test_a_state_that_cannot_be_read_is_damaged(store: Store, root: str, content: bytes) -> None:
    name = store.claim("c1", root)
    with open(f"{store.directory(name)}/state.json", "wb") as file:
        file.write(content)
    with pytest.raises(StateError, match=r"cannot read state\.json of the record c1: "):
        store.load(name)


def test_no_state_is_none(store: Store, root: str) -> None:
    assert store.load(store.claim("c1", root)) is None
    assert store.load("never") is None


def test_names_are_those_of_directories_only(store: Store, root: str) -> None:
    store.claim("b", root)
    store.claim("a", root)
    store.claim(".hidden", root)
    open(f"{store.run_dir}/supervisor.pid", "w").close()
    os.symlink("/etc", f"{store.run_dir}/link")
    os.mkdir(f"{store.run_dir}/~grave")
    assert store.names() == [".hidden", "a", "b"]


def test_a_file_is_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    write_atomically(str(path), b"old")
    real = os.write

    def half(fd: int, data: bytes) -> int:
        if len(data) > 4:
            return real(fd, data[:4])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "write", half)
    with pytest.raises(OSError, match="No space left"):
        write_atomically(str(path), b"something new")
    monkeypatch.undo()
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file"]
    write_atomically(str(path), b"new", 0o644)
    assert path.read_bytes() == b"new"


# Section: removing


def test_remove_takes_link_and_directory(store: Store, root: str) -> None:
    name = store.claim("c1", root)
    store.save(record(name, root))
    os.mkfifo(f"{store.directory(name)}/exit")
    store.remove(name, root, "c1")
    assert os.listdir(store.run_dir) == []
    assert os.listdir(root) == []
    store.remove(name, root, "c1")  # twice is fine


def test_remove_leaves_a_link_to_another_record(store: Store, root: str) -> None:
    store.claim("c1", root)
    os.unlink(f"{root}/c1")
    os.symlink(f"{store.run_dir}/c1@2", f"{root}/c1")
    store.remove("c1", root, "c1")
    assert os.path.lexists(f"{root}/c1")
    assert store.names() == []


def test_remove_does_not_follow_links_out_of_the_record(store: Store, root: str, tmp_path: Path) -> None:
    precious = tmp_path / "rootfs"
    precious.mkdir()
    (precious / "data").write_text("keep")
    name = store.claim("c1", root)
    os.symlink(precious, f"{store.directory(name)}/rootfs")
    store.remove(name, None, "c1")
    assert (precious / "data").read_text() == "keep"


def test_boot_id_is_that_of_the_kernel() -> None:
    assert len(boot_id()) == 36
    assert boot_id() == boot_id()
