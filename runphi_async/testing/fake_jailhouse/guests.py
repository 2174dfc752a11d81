# SPDX-License-Identifier: Apache-2.0
"""What a guest program of the fake sees of its cell."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from runphi_async.testing.fake_jailhouse.cellprocess import CellProcess


#: Registers of the crash that was recorded; the others were zero.
_RECORDED: Final = {
    0: 0x30000000,
    1: 1,
    2: 0x180,
    4: 6,
    5: 0x6FB0,
    11: 0x57D4,
    13: 0x20,
    19: 0x6FB0,
    20: 0x6FD0,
    21: 1,
}


_REGISTERS: Final = "".join(
    f"{f'x{number}':>3}: {_RECORDED.get(number, 0):016x}" + ("\n" if number % 3 == 2 else "  ") for number in range(30)
)


_DUMP: Final = f"""
FATAL: unhandled trap (exception class 0x{{0:02x}})
Cell state before exception:
 pc: 00000000000041dc   lr: 00000000000041d4 spsr: 60000005     EL1
 sp: 0000000000006f60  elr: 00000000000041dc  esr: {{0:02x}} 1 1810046
{_REGISTERS}"""


class Guest:
    """What a guest program sees: its command line, its consoles, its communication region."""

    def __init__(self, cell: CellProcess, words: str) -> None:
        self.cell = cell
        self.args = {key: value for key, _, value in (word.partition("=") for word in words.split())}

    def say(self, text: str) -> None:
        """Print a line."""
        self.cell.write(f"{text}\r\n".encode(), putc=self.args.get("con-virtual") == "true")

    def crash(self, cause: str = "Unhandled data write at 0x30000000(4)", kind: int = 0x24) -> None:
        """Touch what is not the cell's."""
        self.cell.crash(cause, _DUMP.format(kind, kind))
