# SPDX-License-Identifier: Apache-2.0
"""What the recorded sessions do not show of the fake: hangs, consoles that are followed, guests, injected failures."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import time
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from backends.jailhouse import check, codec
from backends.jailhouse.model import CellFlag
from runphi_async.testing.fake_jailhouse import board, inmates, link, machine, rootsystem, tool
from runphi_async.testing.fake_jailhouse.__main__ import main as by_hand
from runphi_async.testing.fake_jailhouse.place import Place, start_time
from runphi_async.testing.fake_jailhouse.ring import SIZE, Ring
from runphi_async.testing.fake_jailhouse.tool import c_number
from tests.unit.fakeboard import BIN, FakeBoard, Result

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

OK = Result("", "", 0)
#: Seconds that something may take on a busy machine.
PATIENCE = 30.0


@pytest.fixture
def here() -> Iterator[FakeBoard]:
    made = FakeBoard()
    made.enable()
    yield made
    made.off()


def until(condition: Callable[[], Any]) -> Any:
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        if result := condition():
            return result
        time.sleep(0.01)
    raise AssertionError("it did not come to that")


def create(here: FakeBoard, name: str, image: str | None = None, words: str = "") -> str:
    """Make a cell of a configuration, load and start it; return the cell's name."""
    path = here.path(name)
    assert here.jailhouse("cell", "create", str(path)) == OK
    config = codec.decode(path.read_bytes())
    cell = str(getattr(config, "name", ""))
    if image is not None:
        binary = str(here.root / f"root/jh/{image}.bin")
        assert here.jailhouse("cell", "load", cell, binary, "-s", words, "-a", "0x1000") == OK
        assert here.jailhouse("cell", "start", cell) == OK
        hand(here, "settle")
    return cell


def hand(here: FakeBoard, *argv: str) -> None:
    assert by_hand(["--dir", str(here.root), *argv]) == 0


def sysfs(here: FakeBoard, path: str) -> str:
    return (here.place.sysfs / path).read_text()


@contextlib.contextmanager
def running(here: FakeBoard, *args: str) -> Iterator[subprocess.Popen[bytes]]:
    """A call of the tool that is not waited for."""
    process = subprocess.Popen(
        [BIN / "jailhouse", *args], env=here.env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, bufsize=0
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def holds_the_mutex(here: FakeBoard) -> bool:
    return (here.place.run / "wedged").exists()


# Section: the tree


def modes(here: FakeBoard) -> dict[str, str]:
    found = {}
    for path in here.place.sysfs.rglob("*"):
        if "statistics" not in str(path):
            found[str(path.relative_to(here.place.sysfs))] = oct(path.stat().st_mode & 0o777)
    return found


def test_tree_has_the_recorded_files_and_modes(here: FakeBoard) -> None:
    create(here, "qemu-arm64-inmate-demo")
    files = ("name", "state", "cpus_assigned", "cpus_assigned_list", "cpus_failed", "cpus_failed_list")
    expected = {f"cells/{cell}/{name}": "0o444" for cell in (0, 1) for name in files}
    names = ("console", "enabled", "mem_pool_size", "mem_pool_used", "remap_pool_size", "remap_pool_used")
    expected |= dict.fromkeys(names, "0o444") | {"core": "0o400", "uevent": "0o644"}
    expected |= dict.fromkeys(("cells", "cells/0", "cells/1"), "0o755")
    assert modes(here) == expected
    assert sysfs(here, "cells/0/cpus_assigned") == "d\n"
    assert sysfs(here, "cells/1/cpus_failed_list") == "\n"
    assert sysfs(here, "mem_pool_used") == "73\n"
    stats = here.place.sysfs / "cells/1/statistics"
    assert {path.name for path in stats.iterdir() if path.is_dir()} == {"cpu1"}
    assert (stats / "cpu1/vmexits_total").read_text() == "0\n"
    assert not (here.place.sysfs / "cells/0/statistics/cpu1").exists()


def test_ids_are_reused_lowest_first(here: FakeBoard) -> None:
    for name in ("t-vcon1", "t-vcon2", "t-comm"):
        create(here, name)
    assert here.jailhouse("cell", "destroy", "vcon1") == OK
    create(here, "t-cpu1b")
    assert sysfs(here, "cells/1/name") == "cpu1b\n"


# Section: what hangs


def test_a_truncated_cell_hangs_the_whole_machine_and_the_check_knows(here: FakeBoard) -> None:
    path = here.root / "cut.cell"
    path.write_bytes(codec.encode(board.inmate_demo())[:200])
    assert check.hopeless(check.check_bytes(path.read_bytes(), board.root_config()))
    with running(here, "cell", "create", str(path)) as first:
        until(lambda: (here.place.run / "frozen").exists())
        with running(here, "cell", "list") as second:
            with pytest.raises(subprocess.TimeoutExpired):
                second.wait(0.5)
            assert first.poll() is None


def test_loading_outside_the_root_cells_ram_hangs_who_does_it_and_all_after(here: FakeBoard) -> None:
    create(here, "t-noexist-ram")
    assert check.hopeless(check.check_bytes(here.path("t-noexist-ram").read_bytes(), board.root_config()))
    with running(here, "cell", "load", "noram", str(here.root / "root/jh/jhtest.bin")) as first:
        until(lambda: holds_the_mutex(here))
        assert first.poll() is None
        first.terminate()  # what waits on a parked CPU cannot be ended
        with running(here, "cell", "start", "noram") as second, pytest.raises(subprocess.TimeoutExpired):
            second.wait(0.5)
        assert first.poll() is None
    assert here.jailhouse("cell", "list").status == 0  # it needs no ioctl
    console = sysfs(here, "console")
    assert "Unhandled data write at 0x7fa30000(1)" in console
    assert 'Parking CPU 2 (Cell: "qemu-arm64")' in console


def test_a_cell_that_never_answers_freezes_the_root_cell(here: FakeBoard) -> None:
    create(here, "t-comm", "jhtest", "mode=ignore tag=I")
    with running(here, "cell", "shutdown", "comm"):
        until(lambda: (here.place.run / "frozen").exists())
        with running(here, "cell", "list") as other, pytest.raises(subprocess.TimeoutExpired):
            other.wait(0.5)


# Section: consoles


def test_console_is_followed_and_survives_disable_and_enable(here: FakeBoard) -> None:
    with running(here, "console", "-f") as follower:
        assert follower.stdout is not None
        seen = b""

        def has(text: bytes) -> bool:
            nonlocal seen
            assert follower.stdout is not None
            while text not in seen:
                seen += os.read(follower.stdout.fileno(), 4096)
            return True

        assert has(b"Activating hypervisor\n")
        create(here, "t-vcon1", "jhtest", "mode=hello tag=F")
        assert has(b"jhtest[F] mode=hello comm")
        assert here.jailhouse("disable") == OK
        assert has(b" Releasing CPU 3\n")
        assert here.jailhouse("enable", str(here.path("qemu-arm64-4"))) == OK
        seen = b""
        assert has(b"Activating hypervisor\n")
        assert seen.startswith(b"\nInitializing Jailhouse hypervisor")
        assert b"missed" not in seen
        assert follower.poll() is None


def test_console_says_how_much_a_reader_missed(here: FakeBoard) -> None:
    create(here, "t-vcon1", "jhtest", "mode=flood tag=A max=400")
    out = here.jailhouse("console").out
    first, rest = out.split("\n", 1)
    assert first.startswith("<missed ")
    assert len(rest.encode()) == SIZE == len((here.place.sysfs / "console").read_bytes())
    missed = int(first.split()[1])
    assert missed > 8000
    assert rest.endswith("jhtest[A] flood done\r\n")


def test_a_follower_that_was_too_slow_is_told_so_in_the_middle(here: FakeBoard) -> None:
    ring = Ring(here.place)
    with running(here, "console", "--follow") as follower:
        assert follower.stdout is not None
        assert os.read(follower.stdout.fileno(), 1)
        ring.write(b"x" * 10000 + b"end\n")  # all at once: no reader is as fast
        seen = b""
        while not seen.endswith(b"end\n"):
            seen += os.read(follower.stdout.fileno(), 4096)
    assert b"<missed " in seen


def test_console_without_permission(here: FakeBoard) -> None:
    assert here.jailhouse("disable") == OK
    assert here.jailhouse("enable", str(here.path("qemu-arm64-4-novcon"))) == OK
    refused = Result("", "read(console): Operation not permitted\n", 1)
    assert here.jailhouse("console") == here.jailhouse("console", "-f") == refused
    assert here.jailhouse("disable") == OK
    assert here.jailhouse("console").err == "read(console): Resource temporarily unavailable\n"


def test_wrong_words_of_console(here: FakeBoard) -> None:
    assert here.jailhouse("console", "x").out.startswith("Usage: jailhouse ")
    assert "Activating hypervisor" in here.jailhouse("console", "--follow", "extra").out  # read once, words ignored


# Section: guests


def uart(here: FakeBoard) -> int:
    return os.open(here.place.uarts / "9000000", os.O_RDWR | os.O_NOCTTY)


def read_until(fd: int, text: bytes) -> bytes:
    seen = b""
    while text not in seen:
        seen += os.read(fd, 4096)
    return seen


def test_a_cell_with_a_uart_talks_and_listens_there(here: FakeBoard) -> None:
    create(here, "qemu-arm64-inmate-demo", "demo")
    fd = uart(here)
    try:
        assert read_until(fd, b"\n") == b'demo inmate in cell "inmate-demo", CPU 1\r\n'
        os.write(fd, b"hello  you\n")
        assert read_until(fd, b"you\r\n") == b"> hello you\r\n"
        os.write(fd, b"spam 3\r")
        assert read_until(fd, b"spam 2\r\n").count(b"\n") == 3
        os.write(fd, b"exit\n")
        assert read_until(fd, b"bye\r\n")
        until(lambda: sysfs(here, "cells/1/state") == "shut down\n")
        assert "demo inmate" not in sysfs(here, "console")
    finally:
        os.close(fd)
    assert here.jailhouse("cell", "destroy", "inmate-demo") == OK
    assert not list(here.place.uarts.iterdir())


@pytest.mark.parametrize(("word", "state", "failed"), [("fail", "failed", "\n"), ("crash", "failed", "1\n")])
def test_guests_that_end_badly(here: FakeBoard, word: str, state: str, failed: str) -> None:
    create(here, "qemu-arm64-inmate-demo", "demo")
    fd = uart(here)
    try:
        os.write(fd, f"{word}\n".encode())
        until(lambda: sysfs(here, "cells/1/state") == f"{state}\n")
    finally:
        os.close(fd)
    assert sysfs(here, "cells/1/cpus_failed_list") == failed
    assert ("Parking CPU 1" in sysfs(here, "console")) == (word == "crash")


@pytest.mark.parametrize(
    ("script", "state"),
    [
        ("#!/bin/sh\necho in $CELL, tag $ARG_tag\nread x\necho got $x\n", "shut down\n"),
        ("#!/bin/sh\necho in $CELL, tag $ARG_tag\nread x\necho got $x\nexit 3\n", "failed\n"),
        ("#!/bin/sh\necho in $CELL, tag $ARG_tag\nread x\necho got $x\nkill -9 $$\n", "failed\n"),
    ],
)
def test_scripts_are_guests(here: FakeBoard, script: str, state: str) -> None:
    (here.root / "root/jh/script.bin").write_text(script)
    create(here, "qemu-arm64-inmate-demo", "script", "tag=T")
    fd = uart(here)
    try:
        assert read_until(fd, b"\n") == b"in inmate-demo, tag T\r\n"
        os.write(fd, b"that\n")
        assert read_until(fd, b"\n") == b"got that\r\n"
    finally:
        os.close(fd)
    until(lambda: sysfs(here, "cells/1/state") == state)


def test_a_script_ends_with_its_cell(here: FakeBoard) -> None:
    (here.root / "root/jh/script.bin").write_text("#!/bin/sh\necho pid $$ >&2\nexec sleep 1000\n")
    create(here, "t-vcon1", "script")
    line = until(lambda: [row for row in sysfs(here, "console").splitlines() if row.startswith("pid ")])[0]
    assert here.jailhouse("cell", "shutdown", "vcon1") == OK
    pid = int(line.split()[1])
    until(lambda: start_time(pid) is None or _is_dead(pid))


def _is_dead(pid: int) -> bool:
    with open(f"/proc/{pid}/stat") as file:
        return file.read().rpartition(")")[2].split()[0] in "ZX"


def test_cells_never_loaded_run_and_say_nothing(here: FakeBoard) -> None:
    create(here, "t-vcon1")
    assert here.jailhouse("cell", "start", "vcon1") == OK
    hand(here, "settle")
    assert sysfs(here, "cells/1/state") == "running\n"
    assert sysfs(here, "console").endswith('Started cell "vcon1"\n')


def test_a_reset_without_loading_runs_the_same_image_again(here: FakeBoard) -> None:
    create(here, "t-vcon1", "jhtest", "mode=exit tag=A")
    before = sysfs(here, "console").count("setting SHUT_DOWN")
    assert here.jailhouse("cell", "start", "vcon1") == OK
    hand(here, "settle")
    assert sysfs(here, "console").count("setting SHUT_DOWN") == before + 1


def test_several_cells_run_side_by_side(here: FakeBoard) -> None:
    create(here, "t-vcon1", "jhtest", "mode=hello tag=A")
    create(here, "t-vcon2", "jhtest", "mode=hello tag=B")
    assert "jhtest[A] mode=hello" in sysfs(here, "console")
    assert "jhtest[B] mode=hello" in sysfs(here, "console")
    assert here.jailhouse("disable") == OK
    assert list((here.place.sysfs / "cells").iterdir()) == []
    assert (here.place.cpu_dir / "online").read_text() == "0-3\n"
    assert not list(here.place.run.glob("*.pid"))


# Section: failures on demand


def rules(here: FakeBoard, *given: dict[str, Any]) -> None:
    here.place.control.write_text(json.dumps(given))


@pytest.mark.parametrize(
    ("on", "argv", "prefix"),
    [
        ("cell create", ("cell", "create", "t-vcon2"), "JAILHOUSE_CELL_CREATE"),
        ("cell load", ("cell", "load", "vcon1", "-s", "x"), "JAILHOUSE_CELL_LOAD"),
        ("cell shutdown", ("cell", "shutdown", "vcon1"), "JAILHOUSE_CELL_LOAD"),
        ("cell start", ("cell", "start", "vcon1"), "JAILHOUSE_CELL_START"),
        ("cell destroy", ("cell", "destroy", "vcon1"), "JAILHOUSE_CELL_DESTROY"),
        ("disable", ("disable",), "JAILHOUSE_DISABLE"),
    ],
)
def test_injected_errors(here: FakeBoard, on: str, argv: Sequence[str], prefix: str) -> None:
    create(here, "t-vcon1")
    words = [str(here.path(word)) if word.startswith("t-") else word for word in argv]
    rules(here, {"on": on, "errno": "EBUSY", "times": 1, "dmesg": "something happened"})
    assert here.jailhouse(*words) == Result("", f"{prefix}: Device or resource busy\n", 1)
    assert "something happened" in (here.root / "dmesg").read_text()
    assert here.jailhouse(*words) == OK


def test_injected_failures_can_be_for_one_cell(here: FakeBoard) -> None:
    rules(here, {"on": "cell create", "cell": "vcon1", "status": 1, "stderr": "made up"})
    assert here.jailhouse("cell", "create", str(here.path("t-vcon2"))) == OK
    assert here.jailhouse("cell", "create", str(here.path("t-vcon1"))) == Result("", "made up\n", 1)


@pytest.mark.parametrize("kind", ["caller", "mutex", "machine"])
def test_injected_hangs(here: FakeBoard, kind: str) -> None:
    create(here, "t-vcon1")
    rules(here, {"on": "cell start", "hang": kind, "times": 1})
    with running(here, "cell", "start", "vcon1") as process:
        until(lambda: json.loads(here.place.control.read_text())[0]["times"] == 0)
        with running(here, "cell", "list") as other:
            if kind == "machine":
                with pytest.raises(subprocess.TimeoutExpired):
                    other.wait(0.5)
            else:
                assert other.wait(PATIENCE) == 0
        assert process.poll() is None


@pytest.mark.parametrize(
    ("then", "state", "failed"),
    [({"state": 3}, "failed", ""), ({"park": 1}, "failed", "1"), ({"state": 2, "after": 0.2}, "shut down", "")],
)
def test_what_happens_to_a_cell_can_be_ordered_beforehand(
    here: FakeBoard, then: dict[str, Any], state: str, failed: str
) -> None:
    rules(here, {"on": "cell start", "cell": "vcon1", "then": then, "times": 1})
    create(here, "t-vcon1", "jhtest", "mode=hello")
    until(lambda: sysfs(here, "cells/1/state") == f"{state}\n")
    assert sysfs(here, "cells/1/cpus_failed_list") == f"{failed}\n"


def test_a_cell_can_vanish_by_order(here: FakeBoard) -> None:
    rules(here, {"on": "cell start", "then": {"vanish": True}})
    create(here, "t-vcon1", "jhtest", "mode=hello")
    assert not (here.place.sysfs / "cells/1").exists()


def test_power_off_ends_hung_calls(here: FakeBoard) -> None:
    create(here, "t-vcon1")
    rules(here, {"on": "cell start", "hang": "mutex"})
    with running(here, "cell", "start", "vcon1") as process:
        until(lambda: list(here.place.run.glob("hung-*.pid")))
        machine.power_off(here.place)
        assert process.wait(PATIENCE) == -9


def test_cells_can_be_poked(here: FakeBoard) -> None:
    create(here, "t-two", "jhtest", "mode=hello tag=2")
    hand(here, "poke", "twocpu", "--park", "2")
    assert sysfs(here, "cells/1/state") == "running\n"
    assert sysfs(here, "cells/1/cpus_failed_list") == "2\n"
    assert sysfs(here, "cells/1/cpus_failed") == "4\n"
    hand(here, "poke", "twocpu", "--park", "1")
    assert sysfs(here, "cells/1/state") == "failed\n"
    for state, text in ((0, "running"), (1, "running/locked"), (4, "Comm ABI mismatch"), (77, "invalid")):
        hand(here, "poke", "twocpu", "--state", str(state))
        assert sysfs(here, "cells/1/state") == f"{text}\n"
    hand(here, "poke", "twocpu", "--print", "made up\n")
    assert sysfs(here, "console").endswith("made up\n")
    hand(here, "poke", "twocpu", "--vanish")
    assert not (here.place.sysfs / "cells/1").exists()
    assert (here.place.cpu_dir / "online").read_text() == "0-3\n"
    assert by_hand(["--dir", str(here.root), "poke", "twocpu", "--state", "2"]) == 1


def test_a_cell_whose_process_is_killed_can_still_be_destroyed(here: FakeBoard) -> None:
    create(here, "t-vcon1", "jhtest", "mode=count tag=A")
    link.kill(here.place.run / "1.pid")
    assert here.jailhouse("cell", "destroy", "vcon1") == OK


# Section: the board by hand


def test_the_module_comes_and_goes(here: FakeBoard) -> None:
    assert here.jailhouse("cell", "stats", "0").status == 1
    assert by_hand(["--dir", str(here.root), "rmmod"]) == 1
    assert here.jailhouse("disable") == OK
    hand(here, "rmmod")
    assert not here.place.sysfs.exists()
    assert here.jailhouse("cell", "list") == OK
    assert here.jailhouse("disable").err == "opening /dev/jailhouse: No such file or directory\n"
    hand(here, "insmod")
    assert here.jailhouse("console").err == "read(console): Resource temporarily unavailable\n"


def test_power_off_ends_every_process(here: FakeBoard) -> None:
    create(here, "t-vcon1", "jhtest", "mode=count tag=A")
    pid = int((here.place.run / "1.pid").read_text().split()[0])
    machine.power_off(here.place)
    until(lambda: start_time(pid) is None or _is_dead(pid))
    assert not here.root.exists()


def test_files_and_show(here: FakeBoard, tmp_path_factory: pytest.TempPathFactory, capsys: Any) -> None:
    folder = tmp_path_factory.mktemp("files") / "jh"
    hand(here, "files", str(folder))
    assert (folder / "demo.bin").read_bytes() == inmates.image("demo")
    assert check.check_bytes((folder / "qemu-arm64-inmate-demo.cell").read_bytes(), board.root_config()) == []
    create(here, "t-vcon1")
    hand(here, "show")
    shown = capsys.readouterr().out
    assert shown == "module loaded, CPUs online 0,2-3\n0: qemu-arm64, CPUs 0,2-3\n1: vcon1, CPUs 1\n"


def test_scripts_of_the_real_tool_are_missing(here: FakeBoard) -> None:
    missing = Result("", "execvp: No such file or directory\n", 1)
    assert here.jailhouse("cell", "linux", "a", "b") == here.jailhouse("hardware", "check") == missing


def test_the_board_is_found_by_its_sysfs_tree(here: FakeBoard, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FAKE_JAILHOUSE", raising=False)
    monkeypatch.setenv("JAILHOUSE_SYSFS", f"{here.root}/sys/devices/jailhouse/")
    assert Place().root == here.root
    monkeypatch.setenv("JAILHOUSE_SYSFS", "/sys/devices/elsewhere")
    assert str(Place().root) == "/run/fake-jailhouse"


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("0", 0),
        ("42", 42),
        ("0x1000", 4096),
        ("010", 8),
        (" 1", 1),
        ("+7", 7),
        ("-1", -1),
        ("", 0),
        ("08", None),
        ("zzz", None),
        ("1 ", None),
        ("0x", None),
        ("9223372036854775808", None),
    ],
)
def test_numbers_as_c_reads_them(text: str, value: int | None) -> None:
    assert c_number(text) == value


def test_active_flag_of_the_demo_cells() -> None:
    assert board.small_cell("x").flags == CellFlag.PASSIVE_COMMREG | CellFlag.VIRTUAL_CONSOLE_ACTIVE


# Section: modules and pace


def test_the_tools_for_modules(here: FakeBoard) -> None:
    def run(tool: str, *words: str) -> Result:
        done = subprocess.run(
            [BIN / tool, *words], env=here.env, capture_output=True, text=True, timeout=50, check=False
        )
        return Result(done.stdout, done.stderr, done.returncode)

    assert run("rmmod", "jailhouse") == Result("", "rmmod: ERROR: Module jailhouse is in use\n", 1)
    assert run("modprobe", "jailhouse") == OK  # it is loaded already
    assert here.jailhouse("disable") == OK
    assert run("modprobe", "-r", "jailhouse") == OK
    assert not here.place.sysfs.exists()
    assert run("rmmod", "jailhouse").err == "rmmod: ERROR: Module jailhouse is not currently loaded\n"
    assert run("modprobe", "other").err.startswith("modprobe: FATAL: Module other not found in directory /lib/modules/")
    module = str(here.root / rootsystem.here(rootsystem.MODULE))
    assert run("insmod", "/nonexistent").err == (
        "insmod: ERROR: could not load module /nonexistent: No such file or directory\n"
    )
    assert run("insmod", module) == OK
    assert run("insmod", module).err == f"insmod: ERROR: could not insert module {module}: File exists\n"
    here.place.control.write_text(json.dumps([{"on": "rmmod", "status": 1, "stderr": "rmmod: made up"}]))
    assert run("rmmod", "jailhouse") == Result("", "rmmod: made up\n", 1)


@pytest.mark.parametrize(("pace", "slept"), [("0", 0.0), ("1", 0.165), ("2", 0.33)])
def test_calls_take_as_long_as_recorded(
    here: FakeBoard, pace: str, slept: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A call sleeps for what is left of its recorded time; the clock stands still here."""
    here.place.pace.write_text(f"{pace}\n")
    naps: list[float] = []
    clock = SimpleNamespace(monotonic=lambda: 100.0, sleep=naps.append)
    monkeypatch.setattr(tool, "time", clock)
    monkeypatch.setenv("FAKE_JAILHOUSE", str(here.root))
    assert tool.Tool(here.place, ["jailhouse", "cell", "create", str(here.path("t-vcon1"))]).run() == 0
    assert naps[-1] == pytest.approx(slept)
    assert set(tool.DURATIONS) >= {"cell create", "cell load", "cell start", "cell shutdown", "cell destroy"}


def test_the_pace_is_given_when_the_board_is_made(tmp_path: Path) -> None:
    assert by_hand(["--dir", str(tmp_path / "b"), "power-on", "--pace", "1.5", "--no-module"]) == 0
    assert Place(tmp_path / "b").pace.read_text() == "1.5\n"
    assert by_hand(["--dir", str(tmp_path / "b"), "power-off"]) == 0
