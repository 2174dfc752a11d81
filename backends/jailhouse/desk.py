# SPDX-License-Identifier: Apache-2.0
"""What the six Jailhouse halves share: what they know, and what each of them contributes to a cell."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from backends.jailhouse.plan import Region
from runphi_async.board.board import Board, Template
from runphi_async.board.claims import Claim, Held
from runphi_async.errors import PlanError
from runphi_async.partition.image import ImageFacts
from runphi_async.partition.spec import GuestKind

if TYPE_CHECKING:
    from runphi_async.partition.spec import GuestSpec


class Facts(msgspec.Struct, frozen=True, kw_only=True):
    """What is true of the machine and the image, gathered before a plan is made.

    :ivar held: what the ledger says is given away, and the CPUs of cells made by others.
    :ivar kernel: the configured kernel, device tree, loader and RAM disk of Linux cells; None where it is not there.
    :ivar sizes: bytes of the files that are loaded, by path; for a root file system, those of its RAM disk.
    :ivar text_offset: where a Linux kernel wants to lie behind an aligned address.
    """

    board: Board
    image: ImageFacts
    held: tuple[Held, ...] = ()
    kernel: str | None = None
    dtb: str | None = None
    loader: str | None = None
    initrd: str | None = None
    sizes: dict[str, int] = {}
    text_offset: int = 0


class Part(msgspec.Struct, frozen=True):
    """What a manager adds to a cell.

    :ivar irqs: interrupts the cell gets.
    """

    regions: tuple[Region, ...] = ()
    irqs: tuple[int, ...] = ()
    claims: tuple[Claim, ...] = ()
    explain: tuple[str, ...] = ()


class Kinds(msgspec.Struct, frozen=True):
    """One number for every kind of guest, as ``mem.decide`` wants its tables."""

    inmate: int
    linux: int
    kernel: int


def kinds(size: int) -> Kinds:
    """Return the same size for every kind: a template is of one kind already."""
    return Kinds(size, size, size)


def template(spec: GuestSpec, board: Board) -> Template:
    """Return the board's template for a guest.

    :raises PlanError: the board holds no such guests.
    """
    if board.arch == "x86":
        raise PlanError(
            f"cannot plan a cell on board '{board.name}': x86 cells need ports and reset code, not planned yet",
            "boards of arch arm64 and arm can be planned for",
        )
    if spec.rpu:
        if spec.kind is not GuestKind.INMATE:
            raise PlanError(f"cannot run a guest of kind {spec.kind} on a remote processor: it takes bare-metal images")
        if not board.rpu:
            raise PlanError(
                f"cannot give the cell a remote processor: board '{board.name}' has none",
                "leave rpu_req or annotation org.runphi.rpu out, or use a board file with [[rpu]]",
            )
    word = "rpu" if spec.rpu else str(spec.kind)
    found: Template | None = getattr(board.template, word)
    if found is None:
        raise PlanError(
            f"cannot make a cell for a guest of kind {word}: board '{board.name}' has no template for it",
            f"add [template.{word}] to the board file",
        )
    return found
