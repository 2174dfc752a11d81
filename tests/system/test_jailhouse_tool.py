# SPDX-License-Identifier: Apache-2.0
"""The driver of the tool, on the fake: what people are told of every recorded error, and what is never called."""

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
from runphi_async.testing.fake_jailhouse import board, driver
from runphi_async.testing.fake_jailhouse.__main__ import main as by_hand
from tests.unit.fakeboard import BIN, FakeBoard

if TYPE_CHECKING:
    from collections.abc import Iterator

# Section: words


def words(action: Action, err: str, *, enabled: bool = True, reason: str = "", root: bool = False) -> str:
    target = "" if action in (Action.DISABLE, Action.CONSOLE) else "demo"
    facts = Facts(target, Condition.ENABLED if enabled else Condition.LOADED, reason, root)
    return str(explain(action, Answer(1, "", f"{err}\n"), facts))


def row(action: Action, err: str, message: str, **facts: Any) -> Any:
    return pytest.param(action, err, message, facts, id=f"{action}: {err} {facts or ''}")


A = Action
INVALID = "Invalid argument"
DEVICE = "opening /dev/jailhouse: "
NOT_ENABLED = "Jailhouse is not enabled; enable it with the board's system configuration"
#: Every line that was recorded, and what a person is told.
ROWS = [
    *(
        row(action, f"{DEVICE}No such file or directory", "Jailhouse's kernel module is not loaded; load it with")
        for action in (A.ENABLE, A.DISABLE, A.CREATE, A.LOAD, A.START, A.SHUTDOWN, A.DESTROY, A.CONSOLE)
    ),
    row(A.DISABLE, f"JAILHOUSE_DISABLE: {INVALID}", f"cannot disable Jailhouse: {NOT_ENABLED}", enabled=False),
    row(A.CREATE, f"JAILHOUSE_CELL_CREATE: {INVALID}", f"cannot create cell 'demo': {NOT_ENABLED}", enabled=False),
    row(A.LOAD, f"JAILHOUSE_CELL_LOAD: {INVALID}", NOT_ENABLED, enabled=False),
    row(A.SHUTDOWN, f"JAILHOUSE_CELL_LOAD: {INVALID}", f"cannot shut down cell 'demo': {NOT_ENABLED}", enabled=False),
    row(A.START, f"JAILHOUSE_CELL_START: {INVALID}", NOT_ENABLED, enabled=False),
    row(A.DESTROY, f"JAILHOUSE_CELL_DESTROY: {INVALID}", NOT_ENABLED, enabled=False),
    row(A.CONSOLE, "read(console): Resource temporarily unavailable", "not been enabled since its module was loaded"),
    row(A.ENABLE, "JAILHOUSE_ENABLE: Device or resource busy", "cannot enable Jailhouse: it is enabled already"),
    row(
        A.ENABLE,
        f"JAILHOUSE_ENABLE: {INVALID}",
        "the file is no system configuration of this Jailhouse; look at it with `runphi cell dump`",
        enabled=False,
        reason="Not a system configuration",
    ),
    row(
        A.ENABLE,
        "JAILHOUSE_ENABLE: No such file or directory",
        "the hypervisor's image is not in /lib/firmware; install jailhouse.bin there",
        enabled=False,
    ),
    row(
        A.ENABLE,
        f"JAILHOUSE_ENABLE: {INVALID}",
        "must list exactly the CPUs that are online and be whole",
        enabled=False,
    ),
    row(A.CREATE, "opening /x.cell: No such file or directory", "/x.cell cannot be opened: No such file or directory"),
    row(A.CREATE, "reading /root: Is a directory", "/root cannot be read: Is a directory"),
    row(A.CREATE, f"{DEVICE}Permission denied", "/dev/jailhouse may not be opened; run the supervisor as root"),
    row(A.CREATE, "JAILHOUSE_CELL_CREATE: File exists", "Jailhouse has a cell of that name; destroy it"),
    row(A.CREATE, "JAILHOUSE_CELL_CREATE: Device or resource busy", "a CPU of it belongs to another cell or is not"),
    row(
        A.CREATE,
        f"JAILHOUSE_CELL_CREATE: {INVALID}",
        "the file is no cell configuration of this Jailhouse",
        reason="Not a cell configuration",
    ),
    row(
        A.CREATE,
        f"JAILHOUSE_CELL_CREATE: {INVALID}",
        "the file has another revision than this Jailhouse; build it for the board's Jailhouse",
        reason="Configuration revision mismatch",
    ),
    row(A.CREATE, f"JAILHOUSE_CELL_CREATE: {INVALID}", "Jailhouse refused the configuration; check it with `runphi"),
    row(A.CREATE, "JAILHOUSE_CELL_CREATE: Operation not permitted", "another cell is locked and allows no changes"),
    *(
        row(action, f"JAILHOUSE_CELL_{name}: No such file or directory", "Jailhouse has no cell of that name")
        for action, name in ((A.START, "START"), (A.SHUTDOWN, "LOAD"), (A.LOAD, "LOAD"), (A.DESTROY, "DESTROY"))
    ),
    *(
        row(action, f"JAILHOUSE_CELL_{name}: {INVALID}", "it is the root cell, in which Linux runs", root=True)
        for action, name in ((A.START, "START"), (A.SHUTDOWN, "LOAD"), (A.LOAD, "LOAD"), (A.DESTROY, "DESTROY"))
    ),
    row(
        A.LOAD,
        f"JAILHOUSE_CELL_LOAD: {INVALID}",
        "cannot load images into cell 'demo': an image does not fit into a LOADABLE region at its address; "
        "the cell has been stopped",
    ),
    *(
        row(action, f"JAILHOUSE_CELL_{name}: Operation not permitted", "the cell refuses to shut down; end what runs")
        for action, name in ((A.START, "START"), (A.SHUTDOWN, "LOAD"), (A.LOAD, "LOAD"), (A.DESTROY, "DESTROY"))
    ),
    row(A.DISABLE, "JAILHOUSE_DISABLE: Operation not permitted", "a cell refuses to shut down; cells before it"),
    row(A.DISABLE, "JAILHOUSE_DISABLE: Device or resource busy", "a CPU of the root cell is offline; all other cells"),
    row(A.OTHER, "reading stats: No such file or directory", "Jailhouse has no statistics of it"),
    row(A.OTHER, "_curses.error: setupterm: could not find terminal", "jailhouse said '_curses.error: setupterm:"),
    row(A.OTHER, "No device tree specified", "jailhouse said 'No device tree specified' and ended with status 1"),
    row(A.OTHER, "No space found to load all images", "jailhouse said 'No space found to load all images'"),
    row(A.OTHER, "Not a cell configuration: /x", "jailhouse said 'Not a cell configuration: /x'"),
    row(A.CONSOLE, "read(console): Operation not permitted", "does not allow it; set VIRTUAL_DEBUG_CONSOLE"),
    row(A.CREATE, "JAILHOUSE_CELL_CREATE: Argument list too long", "larger than 64 KiB"),
    row(A.CREATE, "JAILHOUSE_CELL_CREATE: Cannot allocate memory", "the hypervisor has no memory left"),
    row(A.LOAD, "JAILHOUSE_CELL_LOAD: Interrupted system call", "the call was interrupted; try again"),
    row(A.START, "JAILHOUSE_CELL_START: Bad address", "jailhouse said 'Bad address'"),
    row(A.START, "", "jailhouse said nothing and ended with status 1"),
]


@pytest.mark.parametrize(("action", "err", "message", "facts"), ROWS)
def test_every_recorded_error_in_words(action: Action, err: str, message: str, facts: dict[str, Any]) -> None:
    text = words(action, err, **facts)
    assert text.startswith(f"cannot {action}")
    assert message in text
    assert "does not exist" not in text  # engines take it for an unknown container
    assert "; " in text  # there is a way to mend it


def test_usage_means_another_tool() -> None:
    error = explain(A.START, Answer(1, "Usage: jailhouse {", ""), Facts("x", Condition.ENABLED))
    assert "the tool does not understand the command" in str(error)


# Section: on the fake


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeBoard]:
    made = FakeBoard()
    driver.insert(made.place)
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
