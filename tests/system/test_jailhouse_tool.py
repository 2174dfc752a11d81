# SPDX-License-Identifier: Apache-2.0
"""The driver of the tool, on the fake: what people are told of errors, and what is never called.

The words for every recorded error are in tests/unit/test_jailhouse_errors.py.
"""

from __future__ import annotations

import asyncio
import json
import os
from typing import TYPE_CHECKING, Any

import anyio
import pytest

from backends.jailhouse.errortext import Action, Answer, Condition, Facts, explain
from backends.jailhouse.sysfs import CellSeen
from backends.jailhouse.tool import Image, Places, Tool
from runphi_async.errors import BackendError
from runphi_async.testing.fake_jailhouse import board, machine
from runphi_async.testing.fake_jailhouse.__main__ import main as by_hand
from tests.unit.fakeboard import BIN, FakeBoard

if TYPE_CHECKING:
    from collections.abc import Iterator


def test_usage_means_another_tool() -> None:
    error = explain(Action.START, Answer(1, "Usage: jailhouse {", ""), Facts("x", Condition.ENABLED))
    assert "the tool does not understand the command" in str(error)


# Section: on the fake


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeBoard]:
    made = FakeBoard()
    machine.insert(made.place)
    monkeypatch.setenv("FAKE_JAILHOUSE", str(made.root))
    yield made
    made.off()


def tool(here: FakeBoard, deadline: float = 40) -> Tool:
    return Tool(Places(str(BIN / "jailhouse"), str(here.place.sysfs), str(here.root / "dmesg")), deadline)


async def enabled(here: FakeBoard) -> Tool:
    made = tool(here)
    await made.enable(str(here.path("qemu-arm64-4")))
    return made


def jhtest(here: FakeBoard, text: str) -> list[Image]:
    return [Image(0, str(here.root / "root/jh/jhtest.bin")), Image(0x1000, text=text)]


async def test_the_life_of_a_cell(here: FakeBoard) -> None:
    made = tool(here)
    assert await made.condition() is Condition.LOADED
    assert await made.cells() == {}
    await made.enable(str(here.path("qemu-arm64-4")))
    assert await made.condition() is Condition.ENABLED
    created = await made.create(str(here.path("t-vcon1")), board.root_config())
    assert created == CellSeen(1, "vcon1", "shut down", (1,))
    assert (await made.load("vcon1", jhtest(here, "mode=hello tag=T"))).state == "shut down"
    assert (await made.start("vcon1")).state == "running"
    assert by_hand(["--dir", str(here.root), "settle"]) == 0
    assert "jhtest[T] mode=hello" in (here.place.sysfs / "console").read_text()
    assert (await made.cells())["qemu-arm64"].cpus == (0, 2, 3)
    assert (await made.shutdown("vcon1")).state == "shut down"
    assert (await made.shutdown("vcon1")).state == "shut down"
    await made.destroy("vcon1")
    assert list(await made.cells()) == ["qemu-arm64"]
    await made.disable()
    assert await made.condition() is Condition.LOADED


async def test_names_that_read_as_ids_are_names(here: FakeBoard) -> None:
    made = await enabled(here)
    await made.create(str(here.path("t-num")))
    await made.load("42", [Image(0, text="x")])
    await made.destroy("42")
    assert "42" not in await made.cells()


async def test_long_names_never_reach_the_tool(here: FakeBoard) -> None:
    made = await enabled(here)
    await made.create(str(here.path("t-name31")))
    with pytest.raises(BackendError, match="the name has more than 31 bytes"):
        await made.destroy("a23456789012345678901234567890X_and_more")
    assert "a23456789012345678901234567890X" in await made.cells()


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("cut", r"cannot create a cell of .*cut.cell: offset 0xc8: the file ends here.*truncated"),
        ("qemu-arm64-4", "it is a system configuration"),
        ("t-noexist-ram", r"cannot create cell 'noram' of .*: memory\[0\]: .* loading an image hangs the board"),
        ("t-comm", "msg_reply_timeout: an active communication region and no reply timeout"),
        ("t-arch", "architecture: is for x86.* the tool would report success and make no cell"),
        ("t-cpu99", "CPU 9 is not the root cell's"),
        ("missing", "missing.cell cannot be read: No such file or directory"),
    ],
)
async def test_what_would_hang_or_be_refused_never_reaches_the_tool(here: FakeBoard, name: str, words: str) -> None:
    made = await enabled(here)
    here.path("cut").write_bytes(here.path("t-vcon1").read_bytes()[:200])
    here.place.control.write_text(json.dumps([{"on": "cell create", "hang": "machine"}]))
    with pytest.raises(BackendError, match=words):
        await made.create(str(here.path(name)), board.root_config())


async def test_success_without_a_cell_is_found_out(here: FakeBoard) -> None:
    made = await enabled(here)
    with pytest.raises(BackendError, match="the tool reported success, but there is no such cell") as caught:
        await made.create(str(here.path("t-arch")))  # nobody said what the board is
    assert "architecture" in str(caught.value.hint)


async def test_the_kernel_log_says_why(here: FakeBoard) -> None:
    made = tool(here)
    here.place.dmesg("jailhouse: Not a cell configuration")  # of an earlier call
    with pytest.raises(BackendError, match="no system configuration of this Jailhouse"):
        await made.enable(str(here.path("t-vcon1")))
    await made.enable(str(here.path("qemu-arm64-4")))
    with pytest.raises(BackendError, match="it is enabled already"):
        await made.enable(str(here.path("qemu-arm64-4")))


async def test_errors_of_the_fake_in_words(here: FakeBoard) -> None:
    made = tool(here)
    with pytest.raises(BackendError, match=r"cannot create cell 'vcon1': Jailhouse is not enabled"):
        await made.create(str(here.path("t-vcon1")))
    here.place.firmware.unlink()
    with pytest.raises(BackendError, match="image is not in /lib/firmware"):
        await made.enable(str(here.path("qemu-arm64-4")))
    here.place.firmware.write_bytes(b"x")
    await made.enable(str(here.path("qemu-arm64-4")))
    with pytest.raises(BackendError, match="Jailhouse has no cell of that name"):
        await made.start("nosuch")
    with pytest.raises(BackendError, match="it is the root cell"):
        await made.destroy("qemu-arm64")
    await made.create(str(here.path("t-vcon1")))
    with pytest.raises(BackendError, match="Jailhouse has a cell of that name"):
        await made.create(str(here.path("t-vcon1")))
    with pytest.raises(BackendError, match="does not fit into a LOADABLE region"):
        await made.load("vcon1", [Image(0x5000000, text="x")])
    with pytest.raises(BackendError, match="/nonexistent cannot be opened: No such file"):
        await made.load("vcon1", [Image(0, "/nonexistent")])
    await made.disable()
    assert by_hand(["--dir", str(here.root), "rmmod"]) == 0
    assert await made.condition() is Condition.ABSENT
    with pytest.raises(BackendError, match="Jailhouse's kernel module is not loaded"):
        await made.disable()


async def test_a_cell_that_denies_in_words(here: FakeBoard) -> None:
    made = await enabled(here)
    await made.create(str(here.path("t-commto")))
    await made.load("commto", jhtest(here, "mode=lock denials=1"))
    await made.start("commto")
    assert by_hand(["--dir", str(here.root), "settle"]) == 0
    with pytest.raises(BackendError, match="another cell is locked"):
        await made.create(str(here.path("t-vcon1")))
    with pytest.raises(BackendError, match="cannot shut down cell 'commto': the cell refuses to shut down"):
        await made.shutdown("commto")
    await made.destroy("commto")


async def test_a_cell_that_another_one_keeps_from_being_destroyed(here: FakeBoard) -> None:
    made = await enabled(here)
    await made.create(str(here.path("t-vcon1")))
    await made.create(str(here.path("t-commto")))
    await made.load("commto", jhtest(here, "mode=lock"))
    await made.start("commto")
    assert by_hand(["--dir", str(here.root), "settle"]) == 0
    with pytest.raises(BackendError, match="cannot destroy cell 'vcon1': cell 'commto' is locked and allows no"):
        await made.destroy("vcon1")


async def test_calls_wait_for_each_other(here: FakeBoard) -> None:
    made = await enabled(here)
    async with anyio.create_task_group() as group:
        for name in ("t-vcon1", "t-vcon2", "t-commto"):
            group.start_soon(made.create, str(here.path(name)))
    assert sorted(await made.cells()) == ["commto", "qemu-arm64", "vcon1", "vcon2"]


async def test_a_call_that_does_not_come_back(here: FakeBoard) -> None:
    made = await enabled(here)
    await made.create(str(here.path("t-vcon1")))
    here.place.control.write_text(json.dumps([{"on": "cell start", "hang": "mutex"}]))
    with pytest.raises(
        BackendError, match="cannot start cell 'vcon1': jailhouse did not come back within 2 s"
    ) as caught:
        await tool(here, deadline=2).start("vcon1")
    assert "the board must be reset" in str(caught.value.hint)


async def test_after_a_call_that_cannot_be_killed_nothing_is_tried(here: FakeBoard, tmp_path_factory: Any) -> None:
    made = await enabled(here)

    class Parked:
        """A process on a parked CPU."""

        returncode = None

        def kill(self) -> None:
            """It does not hear."""

        async def wait(self) -> None:
            await asyncio.Event().wait()

    await made._give_up(Parked(), "jailhouse cell load")  # type: ignore[arg-type]
    with pytest.raises(
        BackendError, match="cannot disable Jailhouse: `jailhouse cell load` hangs and holds the driver"
    ):
        await made.disable()
    Parked.returncode = 137  # type: ignore[assignment]
    await made.disable()


async def test_a_cancelled_call_is_ended_first(here: FakeBoard) -> None:
    made = await enabled(here)
    await made.create(str(here.path("t-vcon1")))
    here.place.control.write_text(json.dumps([{"on": "cell start", "delay": 1000, "times": 1}]))
    async with anyio.create_task_group() as group:
        group.start_soon(made.start, "vcon1")
        while json.loads(here.place.control.read_text())[0]["times"]:
            await anyio.sleep(0.01)
        group.cancel_scope.cancel()
    assert (await made.start("vcon1")).state == "running"


async def test_a_tool_that_is_not_there() -> None:
    made = Tool(Places("/nonexistent/jailhouse", "/nonexistent", "/nonexistent"))
    assert await made.condition() is Condition.ABSENT
    with pytest.raises(BackendError, match="/nonexistent/jailhouse cannot be run: No such file") as caught:
        await made.disable()
    assert caught.value.hint == "install Jailhouse's tools"


async def test_a_tool_that_lies_is_found_out(here: FakeBoard) -> None:
    liar = here.root / "shims/true"
    liar.write_text("#!/bin/sh\n")
    liar.chmod(0o755)
    honest = await enabled(here)
    await honest.create(str(here.path("t-vcon1")))
    await honest.start("vcon1")
    made = Tool(Places(str(liar), str(here.place.sysfs), os.devnull))
    with pytest.raises(BackendError, match="the tool reported success, but its state is 'running'"):
        await made.shutdown("vcon1")
    with pytest.raises(BackendError, match="the tool reported success, but sysfs shows no change"):
        await made.destroy("vcon1")
    with pytest.raises(BackendError, match="sysfs shows no change"):
        await made.disable()
