# SPDX-License-Identifier: Apache-2.0
"""`runphi plan` and `runphi map`: plans without touching anything, and pictures of a board."""

from __future__ import annotations

import itertools
import json
import os
import shutil
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

import anyio
import msgspec
import pytest

from backends.jailhouse import gathering, picture
from backends.jailhouse.planner import JailhousePlanner
from backends.jailhouse.settings import Jailhouse
from backends.jailhouse.sysfs import CellSeen, View
from backends.qemu.settings import Qemu
from runphi_async import wire
from runphi_async.board import claims, drawing, loading
from runphi_async.board.claims import Claim, Held, Kind, Owner, Seen
from runphi_async.board.ledger import FILE, Ledger
from runphi_async.board.ranges import Range
from runphi_async.config.schema import Config
from runphi_async.errors import PlanError
from runphi_async.host.files import boot_id
from runphi_async.oci.state import OCI_VERSION
from runphi_async.partition.spec import GuestKind, GuestSpec
from runphi_async.units import MIB
from tests.unit import clikit
from tests.unit.clikit import Answer, answer
from tests.unit.configkit import config as configured

if TYPE_CHECKING:
    from pathlib import Path

    from runphi_async.container.registry import Supervisor


def bundle(path: Path, *env: str, **linux: Any) -> Path:
    rootfs = path / "rootfs"
    (rootfs / "boot").mkdir(parents=True)
    (rootfs / "boot" / "inmate.bin").write_bytes(b"\x01" * 5000)
    config = {
        "ociVersion": OCI_VERSION,
        "process": {"args": ["x"], "cwd": "/", "env": list(env)},
        "root": {"path": "rootfs"},
        "annotations": {},
        "linux": linux,
    }
    (path / "config.json").write_text(json.dumps(config))
    return path


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    path = tmp_path / "run"
    path.mkdir()
    return path


@pytest.fixture
def supervisor(run_dir: Path) -> Supervisor:
    config = configured(Jailhouse(board="qemu-arm64"))
    config = msgspec.structs.replace(config, runc="/nonexistent/runc", backend="jailhouse")
    return clikit.supervisor(config, str(run_dir))


async def test_a_bundle_is_planned_and_nothing_is_touched(supervisor: Supervisor, tmp_path: Path) -> None:
    here = bundle(tmp_path / "web", "INMATE=/boot/inmate.bin", resources={"memory": {"limit": 2 * MIB}})
    before = sorted(os.walk(tmp_path))
    call = await answer(supervisor, "plan", "web", cwd=str(tmp_path))
    assert call.status == 0, call.said(wire.ERR)
    lines = call.said(wire.OUT).splitlines()
    assert "# cpu: CPU 1, the lowest free of 1-3; the root cell is without" in lines
    assert "# memory: 2 MiB from the container's memory limit" in lines
    assert "cell = web" in lines
    assert f"load.0 = raw '{here}/rootfs/boot/inmate.bin' at 0x0 0x200000" in lines
    assert sorted(os.walk(tmp_path)) == before


async def test_the_wishes_of_an_image_reach_the_cell(supervisor: Supervisor, tmp_path: Path) -> None:
    here = bundle(tmp_path / "b", devices=[{"path": "/dev/ttyAMA0", "type": "c"}])
    wishes = {"os_var": "zephyr", "inmate": "/boot/inmate.bin", "starting_vaddress": "0x70000000"}
    config = here / "rootfs" / "boot" / "config.json"
    config.write_text(json.dumps({**wishes, "net": "net0", "netconf": "10.0.0.2/24"}))
    call = await answer(supervisor, "plan", str(here))
    lines = call.said(wire.OUT).splitlines()
    assert "reset_address = 0x70000000" in lines
    assert "ivshmem.0 = 0001:00:01.0 peer 1 of 2, protocol 0x0001 # net0" in lines
    assert "# net: settings '10.0.0.2/24' are for the guest itself" in lines
    assert "# dev: /dev/ttyAMA0 is uart0, which the root system uses: left out" in lines
    config.write_text(json.dumps({**wishes, "rpu_req": True}))
    call = await answer(supervisor, "plan", str(here))
    assert "cannot give the cell a remote processor: board 'qemu-arm64' has none" in call.said(wire.ERR)


async def test_a_plan_as_json(supervisor: Supervisor, tmp_path: Path) -> None:
    bundle(tmp_path / "b", "INMATE=/boot/inmate.bin")
    call = await answer(supervisor, "plan", "--format", "json", "--id", "0" * 64, str(tmp_path / "b"))
    found = json.loads(call.said(wire.OUT))
    assert (found["backend"], found["kind"], found["cell"]["cpus"]) == ("jailhouse", "inmate", [1])
    assert len(found["cell"]["name"]) == 31
    assert found["cell"]["regions"][0]["phys"] == 0x7000_0000
    assert found["claims"][0] == {"kind": "cpu", "start": 1, "end": 2}


async def test_the_plan_sees_what_the_ledger_holds(supervisor: Supervisor, tmp_path: Path) -> None:
    bundle(tmp_path / "b", "INMATE=/boot/inmate.bin", resources={"cpu": {"cpus": "1"}})
    ledger = Ledger(str(tmp_path / "run" / FILE), boot_id())
    ledger.claim(Owner("other", boot_id(), "other"), [Claim(Kind.CPU, 1, 2)])
    call = await answer(supervisor, "plan", str(tmp_path / "b"))
    assert call.status == 1
    assert "of CPUs 1 none is free; 'other' has 1; a CPU belongs to one cell" in call.said(wire.ERR)


async def test_what_cannot_be_planned_is_said(tmp_path: Path, run_dir: Path, supervisor: Supervisor) -> None:
    bundle(tmp_path / "b", "INMATE=/boot/inmate.bin")
    bundle(tmp_path / "plain")
    bare = clikit.supervisor(Config(), str(run_dir))
    for given, words in (
        ((bare, str(tmp_path / "plain")), "it asks for no partition, so the ordinary runtime would run it"),
        ((bare, "--backend", "jailhouse", str(tmp_path / "b")), "no board is configured; set jailhouse.board to"),
        (
            (bare, "--backend", "zen", str(tmp_path / "b")),
            "unknown backend 'zen'; this version has: jailhouse, qemu",
        ),
        ((supervisor, str(tmp_path / "none")), "cannot read"),
        ((supervisor, "--id", "a/b", str(tmp_path / "b")), "invalid container id"),
    ):
        call = await answer(given[0], "plan", *given[1:])
        assert call.status == 1
        assert words in call.said(wire.ERR)


async def test_a_cell_cannot_be_made_without_a_hypervisor(supervisor: Supervisor, tmp_path: Path) -> None:
    bundle(tmp_path / "b", "INMATE=/boot/inmate.bin")
    root = str(tmp_path / "root")
    call = await answer(supervisor, "--root", root, "create", "--bundle", str(tmp_path / "b"), "c1")
    assert call.status == 1
    assert call.said(wire.ERR) == (
        "cannot use Jailhouse: Jailhouse's kernel module is not loaded; load it with modprobe jailhouse\n"
    )


async def test_a_qemu_guest_is_planned_too(tmp_path: Path, run_dir: Path) -> None:
    fake = tmp_path / "qemu-system-aarch64"
    shutil.copy("/bin/true", fake)
    qemu = Qemu(accel="tcg", x86_64="/nonexistent/qemu", aarch64=str(fake))
    here = bundle(tmp_path / "b", "INMATE=/boot/inmate.bin")
    raw = json.loads((here / "config.json").read_text())
    raw["annotations"]["org.runphi.arch"] = "aarch64"
    (here / "config.json").write_text(json.dumps(raw))
    call = await answer(clikit.supervisor(configured(qemu), str(run_dir)), "plan", str(here))
    assert call.status == 0, call.said(wire.ERR)
    assert f"argv = {fake} \\" in call.said(wire.OUT).splitlines()
    assert sorted(os.listdir(run_dir)) == []


def test_a_root_file_system_is_measured_up_to_a_limit(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "big").write_bytes(bytes(10_000))
    (tmp_path / "link").symlink_to("/proc/kcore")
    assert 10_000 < gathering.rootfs_size(str(tmp_path), 1 << 30) < 11_000


# Section: planning and claiming in one step


def sysfs(path: Path, **names: str) -> str:
    """Cells as the driver shows them, the root cell first."""
    for number, (name, cpus) in enumerate({"root": "0-3", **names}.items()):
        cell = path / "cells" / str(number)
        cell.mkdir(parents=True)
        (cell / "name").write_text(f"{name}\n")
        (cell / "cpus_assigned_list").write_text(f"{cpus}\n")
    return str(path)


async def test_cells_made_by_others_keep_their_cpus(tmp_path: Path, run_dir: Path) -> None:
    image = tmp_path / "i.bin"
    image.write_bytes(b"\x01" * 100)
    spec = GuestSpec(id="c1", kind=GuestKind.INMATE, rootfs="/r", inmate=str(image))
    shown = sysfs(tmp_path / "sys", linux="1-2", idle="")
    iomem = tmp_path / "iomem"
    iomem.write_text("40000000-6fffffff : System RAM\n")
    config = configured(Jailhouse(board="qemu-arm64"))
    there = JailhousePlanner(config, str(run_dir), shown, str(iomem))
    assert there.cells() == [Seen("linux", (1, 2)), Seen("idle", ())]
    assert (await there.plan(spec)).cell.cpus == (3,)
    assert (await there.reserve(spec, "c1")).cell.cpus == (3,)
    with pytest.raises(PlanError, match="'c1' has 3, 'cell linux' has 1-2"):
        await there.plan(spec)
    assert there.ledger.held()[0].owner == Owner("c1", boot_id(), "c1")
    there.ledger.free("c1")
    assert (await there.plan(spec)).cell.cpus == (3,)
    assert gathering.cells(str(tmp_path / "nothing")) == []
    named = msgspec.structs.replace(spec, id="idle")
    assert (await there.plan(named)).cell.name.startswith("idle-")
    iomem.write_text("40000000-7fffffff : System RAM\n")
    with pytest.raises(PlanError, match=r"cannot use board 'qemu-arm64': .* which the running root system uses"):
        await there.plan(spec)
    iomem.unlink()
    with pytest.raises(PlanError, match="which says what memory the root system uses: No such file"):
        await there.plan(spec)


async def test_of_many_at_once_each_gets_its_own(tmp_path: Path, run_dir: Path) -> None:
    image = tmp_path / "i.bin"
    image.write_bytes(b"\x01" * 100)
    config = configured(Jailhouse(board="qemu-arm64"))
    there = JailhousePlanner(config, str(run_dir), str(tmp_path / "none"))
    refused: list[str] = []

    async def make(number: int) -> None:
        spec = GuestSpec(id="same", kind=GuestKind.INMATE, rootfs="/r", inmate=str(image))
        try:
            await there.reserve(spec, f"same@{number}")
        except PlanError as exc:
            refused.append(str(exc))

    async with anyio.create_task_group() as tasks:
        for number in range(5):
            tasks.start_soon(make, number)
    held = there.ledger.held()
    given = [claims.numbers(held, name, Kind.CPU) for name in {h.owner.name for h in held}]
    assert sorted(given) == [(1,), (2,), (3,)]
    # the same id in several roots: every cell has a name of its own
    assert len({h.owner.cell for h in held}) == len({h.owner.name for h in held}) == 3
    assert len(refused) == 2
    assert all("CPUs 1-3 none is free" in text for text in refused)


# Section: the map

HELD = [
    Held(Owner("zephyr"), Claim(Kind.CPU, 1, 3)),
    Held(Owner("zephyr"), Claim(Kind.MEMORY, 0x7000_0000, 0x7400_0000, what="RAM")),
    Held(Owner("<plc>"), Claim(Kind.MEMORY, 0x7800_0000, 0x7801_0000, what="RAM")),
    Held(Owner("<plc>"), Claim(Kind.IVSHMEM, 1, 2, "net0")),
]
QEMU = loading.load("qemu-arm64")


def test_the_text_names_every_owner() -> None:
    lines = drawing.text(QEMU, HELD).splitlines()
    assert [line.split()[2:] for line in lines[2:6]] == [["root", "cell"], ["zephyr"], ["zephyr"], ["free"]]
    assert "  net0.1  <plc>" in lines
    (bar,) = [line.strip() for line in lines if line.startswith("  [")]
    assert len(bar) == drawing.COLUMNS + 2
    assert bar.startswith("[AAAA")
    assert bar.count("B") == 1
    assert "  A 0x70000000-0x73ffffff         64 MiB  zephyr  RAM" in lines


def test_pieces_cover_a_range_without_a_gap() -> None:
    whole = QEMU.memory[0].range
    cut = drawing.pieces(whole, HELD)
    assert cut[0].range.start == whole.start
    assert cut[-1].range.end == whole.end
    assert all(one.range.end == two.range.start for one, two in itertools.pairwise(cut))
    assert [piece.owner for piece in cut] == ["zephyr", "free", "<plc>", "free"]
    assert drawing.pieces(Range(0, 4), HELD) == [drawing.Piece(Range(0, 4), "free", "")]


@pytest.mark.parametrize("name", loading.shipped())
def test_the_picture_is_whole_and_inside_its_frame(name: str) -> None:
    board = loading.load(name)
    start = board.memory[0].start
    many = [Held(Owner(f"guest-{i}"), Claim(Kind.MEMORY, start + i * MIB, start + (i + 1) * MIB)) for i in range(40)]
    root = ElementTree.fromstring(drawing.svg(board, [*HELD, *many]))
    space = "{http://www.w3.org/2000/svg}"
    width, height = int(root.attrib["width"]), int(root.attrib["height"])
    boxes = root.findall(f"{space}rect")
    assert boxes
    for box in boxes:
        assert int(box.attrib["x"]) + int(box.attrib["width"]) <= width
        assert int(box.attrib["y"]) + int(box.attrib["height"]) <= height
    words = {text.text for text in root.findall(f"{space}text")}
    assert {"CPU 0", "CPU 3", "root cell", "free", "zephyr", "<plc>"} <= words


async def drawn(supervisor: Supervisor, *argv: str, cwd: str = "/cwd") -> Answer:
    return await answer(supervisor, "map", *argv, cwd=cwd)


async def test_the_verb_draws_the_configured_board_and_others(supervisor: Supervisor, tmp_path: Path) -> None:
    ledger = Ledger(str(tmp_path / "run" / FILE), boot_id())
    ledger.claim(Owner("web", boot_id(), "web"), [Claim(Kind.CPU, 2, 3)])
    assert "CPU 2   web" in (await drawn(supervisor)).said(wire.OUT)
    assert "CPU 2   free" in (await drawn(supervisor, "--board", "zcu104")).said(wire.OUT)
    assert (await drawn(supervisor, "--svg", "-")).said(wire.OUT).startswith("<svg ")
    call = await drawn(supervisor, "--svg", "board.svg", cwd=str(tmp_path))
    assert (call.status, call.said(wire.OUT)) == (0, "")
    assert ">web<" in (tmp_path / "board.svg").read_text()
    call = await drawn(supervisor, "--svg", "/nonexistent/x.svg")
    assert "cannot write /nonexistent/x.svg: No such file or directory" in call.said(wire.ERR)


async def test_the_map_looks_where_the_configuration_says(run_dir: Path, tmp_path: Path) -> None:
    tree = tmp_path / "elsewhere"
    for number, (name, cpus) in enumerate((("root", "0,2-3"), ("linux", "1"))):
        cell = tree / "cells" / str(number)
        cell.mkdir(parents=True)
        files = {"name": name, "state": "running", "cpus_assigned_list": cpus, "cpus_failed_list": ""}
        for file, text in files.items():
            (cell / file).write_text(f"{text}\n")
    (tree / "enabled").write_text("1\n")
    config = configured(Jailhouse(board="qemu-arm64", sysfs=str(tree)))
    call = await drawn(clikit.supervisor(config, str(run_dir)))
    assert "  CPU 1   cell linux" in call.said(wire.OUT).splitlines()
    assert "note: nobody: cell 'linux' on CPUs 1 was made by somebody else" in call.said(wire.OUT)


def test_the_map_tells_where_ledger_and_hypervisor_disagree(run_dir: Path) -> None:
    ledger = Ledger(str(run_dir / FILE), boot_id())
    ledger.claim(Owner("web", "", "web"), [Claim(Kind.CPU, 2, 3)])
    root, linux = CellSeen(0, "root", "running", (0, 2, 3)), CellSeen(1, "linux", "running", (1,))
    view = View(True, True, (root, linux))
    lines = picture.draw("qemu-arm64", ledger.held(), view, svg=False).splitlines()
    assert "  CPU 1   cell linux" in lines
    assert lines[-2:] == [
        "  note: web: its cell 'web' does not exist any more",
        "  note: nobody: cell 'linux' on CPUs 1 was made by somebody else",
    ]


async def test_without_a_board_nothing_is_drawn(run_dir: Path) -> None:
    call = await drawn(clikit.supervisor(Config(), str(run_dir)))
    assert call.status == 1
    assert "cannot draw a board: none is configured; set jailhouse.board, or give --board" in call.said(wire.ERR)
