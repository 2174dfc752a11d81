# SPDX-License-Identifier: Apache-2.0
"""The board itself, by hand: ``python -m runphi_async.testing.fake_jailhouse [--dir DIR] WORD …``.

What a person does to a real board and not through ``jailhouse``: switch it on and off, load the module, take CPUs
offline, and break things. It also writes the board's configurations and images.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from backends.jailhouse import codec
from runphi_async.testing.fake_jailhouse import board, driver, inmates, link, linux, machine
from runphi_async.testing.fake_jailhouse.place import Errno, Place

if TYPE_CHECKING:
    from collections.abc import Sequence

    from backends.jailhouse.model import Cell, System


def main(argv: Sequence[str]) -> int:
    """Do one thing to the board."""
    given = _parser().parse_args(argv)
    place = Place(given.dir)
    try:
        return _do(place, given)
    except Errno as exc:
        sys.stderr.write(f"{given.word}: {exc}\n")
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="fake-jailhouse", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--dir", help="the board's directory; default: $FAKE_JAILHOUSE, or /run/fake-jailhouse")
    words = parser.add_subparsers(dest="word", required=True)
    on = words.add_parser("power-on", help="make the board, and load the module unless told otherwise")
    on.add_argument("--cpus", type=int, default=4)
    on.add_argument("--pace", type=float, default=0, help="how slow calls are; 1: as recorded, 0: not at all")
    on.add_argument("--no-module", action="store_true")
    on.add_argument("--dialect", choices=("mainline", "omnivisor"), default="mainline")
    words.add_parser("power-off", help="end every cell and remove the board's directory")
    words.add_parser("insmod", help="load the module")
    words.add_parser("rmmod", help="remove the module")
    words.add_parser("show", help="say what runs")
    words.add_parser("settle", help="wait until every guest has done what it does at once")
    for word in ("offline", "online"):
        words.add_parser(word, help=f"take a CPU {word}").add_argument("cpu", type=int)
    words.add_parser("files", help="write configurations and images into a directory").add_argument("folder", type=Path)
    poke = words.add_parser("poke", help="do to a cell what its guest or a fault would")
    poke.add_argument("cell")
    poke.add_argument("--state", type=int, help="write this into its communication region: 2 exited, 3 failed, 99 junk")
    poke.add_argument("--park", type=int, metavar="CPU", help="lose a CPU")
    poke.add_argument("--print", metavar="TEXT", help="print on its console")
    poke.add_argument("--vanish", action="store_true", help="take the cell away without a word")
    return parser


def _do(place: Place, given: argparse.Namespace) -> int:
    match given.word:
        case "power-on":
            place.power_on(given.cpus, given.dialect)
            place.set_pace(given.pace)
            if not given.no_module:
                machine.insert(place)
        case "power-off":
            machine.power_off(place)
        case "insmod":
            machine.insert(place)
        case "rmmod":
            machine.remove(place)
        case "show":
            sys.stdout.write(machine.describe(place))
        case "offline" | "online":
            machine.online(place, given.cpu, up=given.word == "online")
        case "settle":
            for record in place.state().get("cells", [])[1:]:
                link.call(place, record["id"], "settle")
        case "files":
            write_files(given.folder)
        case "poke":
            return _poke(place, given)
    return 0


def _poke(place: Place, given: argparse.Namespace) -> int:
    names = [record["name"] for record in place.state()["cells"][1:]]
    if given.cell not in names:
        sys.stderr.write(f"poke: no cell {given.cell!r}\n")
        return 1
    wishes = {key: value for key in ("state", "park", "print") if (value := getattr(given, key)) is not None}
    with place.mutex():
        driver.Driver(place).happen(given.cell, {**wishes, "vanish": given.vanish})
    return 0


def write_files(folder: Path) -> None:
    """Write the board's configurations, and an image of every program."""
    folder.mkdir(parents=True, exist_ok=True)
    configs: dict[str, Cell | System] = {
        "qemu-arm64": board.root_config(),
        "qemu-arm64-inmate-demo": board.inmate_demo(),
    }
    for name, config in configs.items():
        (folder / f"{name}.cell").write_bytes(codec.encode(config))
    for name in inmates.PROGRAMS:
        (folder / f"{name}.bin").write_bytes(inmates.image(name))
    (folder / "linux-loader.bin").write_bytes(linux.loader_image())
    (folder / "Image").write_bytes(linux.kernel_image())


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
