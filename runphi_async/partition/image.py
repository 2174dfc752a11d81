# SPDX-License-Identifier: Apache-2.0
"""What an image's header says, and which files of an image a plan hands to another program: pure data."""

from __future__ import annotations

from enum import StrEnum

import msgspec


class ImageFormat(StrEnum):
    """What the first bytes of an image say it is."""

    ELF = "elf"
    #: x86 Linux kernel with the setup header ("HdrS")
    BZIMAGE = "bzimage"
    #: arm64 Linux kernel ("ARM\\x64" at 56)
    ARM64_IMAGE = "arm64-image"
    GZIP = "gzip"
    #: bytes that say nothing: loaded as they are
    FLAT = "flat"


class Segment(msgspec.Struct, frozen=True):
    """One range of guest memory an image fills."""

    start: int
    #: first address behind it
    end: int


class ImageFacts(msgspec.Struct, frozen=True):
    """What an image's header says."""

    format: ImageFormat
    #: bytes of the file
    size: int
    #: "x86_64", "aarch64", another ELF machine by name, or None when the bytes do not say
    arch: str | None = None
    #: 32 or 64; 0 = no ELF
    bits: int = 0
    entry: int = 0
    segments: tuple[Segment, ...] = ()
    #: entry of the PVH protocol, from the Xen note
    pvh_entry: int | None = None
    #: a valid multiboot 1 header lies in the first 8 KiB
    multiboot: bool = False


class Handed(msgspec.Struct, frozen=True, omit_defaults=True):
    """A file of the image that another program opens: it gets a copy, under a name of ours in the record.

    The program would take the image's own path apart at its blanks and commas, follow the links in it, and open
    whatever a guest that shares the directory had put there meanwhile.
    """

    #: in the record directory
    name: str
    #: host path without any link
    source: str
    #: what the header said when the plan was made; None: the file has none
    facts: ImageFacts | None = None
    #: an ELF file is written anew with nothing in it but what was understood
    anew: bool = False
