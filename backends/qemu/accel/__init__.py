# SPDX-License-Identifier: Apache-2.0
"""Which accelerator guests run on: KVM only where it has done the work of a kernel, and faster than software.

That ``/dev/kvm`` opens proves nothing, and three instructions prove little: in nested and sandboxed machines there are
KVMs that emulate ring 0, slower than QEMU does, or stop at the first instruction they do not know. So a proof is the
work itself:

a. A probe guest (``backends/qemu/probe``) does what kernels do and looks at every result, in software and on KVM.
b. For Linux guests, beside that: their own kernel starts once, to our init, and ends.

``decide`` judges without I/O, ``proof`` and ``linuxproof`` run, ``cache`` keeps answers for this boot and this machine.
"""

from __future__ import annotations

import asyncio
import os
import time
from typing import Final

import msgspec

from backends.qemu.accel import cache, decide, linuxproof, proof
from backends.qemu.accel.decide import Accel, Unfinished, Wish

__all__ = ["Accel", "Question", "Wish", "distrust", "find", "keep"]

#: Seconds after a proof that did not get done (the machine was too busy) before the next find() tries again: until then
#: it says software at once, so that no row of creates waits for one proof after the other.
RETRY: Final = 60.0


class Question(msgspec.Struct, frozen=True):
    """What is to be accelerated; ``kernel`` and ``initrd`` are None for guests that bring no Linux."""

    binary: str
    kernel: str | None = None
    initrd: str | None = None


#: what did not get done: when it was tried, by key
_unfinished: dict[str, tuple[float, str]] = {}


async def find(wish: Wish, question: Question) -> Accel:
    """Answer from the configuration, from what was proven on this boot, or by a proof.

    A proof takes a part of a second, that of a Linux kernel as long as the kernel's own start.

    :raises BackendError: when KVM is demanded and was not proven.
    """
    if wish == "tcg":
        return decide.choose(wish, Accel("tcg", ""))
    return decide.choose(wish, await _proven(question))


def distrust(binary: str, reason: str) -> None:
    """KVM failed in a real guest: until the next boot every find() for this QEMU says software, with the reason.

    Short, but it blocks.
    """
    path = os.path.realpath(binary)

    def note(book: cache.Book) -> None:
        book.distrusted.pop(path, None)  # the newest stand last
        book.distrusted[path] = reason

    cache.change(note)


def keep(question: Question, answer: Accel) -> None:
    """Write down the answer of a proof, for this boot. Short, but it blocks."""
    cache.change(lambda book: book.remember(_key(question), answer))


async def _proven(question: Question) -> Accel:
    problem = await asyncio.to_thread(proof.obstacle, question.binary)
    if problem:
        return Accel("tcg", problem)
    bare = await _answer(Question(question.binary))
    if bare.name != "kvm" or question.kernel is None or question.initrd is None:
        return bare
    return await _answer(question)


async def _answer(question: Question) -> Accel:
    key, known = await asyncio.to_thread(_look_up, question)
    if known is not None:
        return known
    tried, why = _unfinished.get(key, (0.0, ""))
    if why and time.monotonic() - tried < RETRY:
        return Accel("tcg", why)
    async with cache.one_prover("linux" if question.kernel else "bare"):
        key, known = await asyncio.to_thread(_look_up, question)  # somebody else may have proven it meanwhile
        if known is not None:
            return known
        try:
            answer = await _prove(question)
        except Unfinished as exc:
            _unfinished[key] = (time.monotonic(), str(exc))
            return Accel("tcg", str(exc))
        await asyncio.to_thread(keep, question, answer)
        # KVM may have failed in a real guest while we proved
        return (await asyncio.to_thread(_look_up, question))[1] or answer


async def _prove(question: Question) -> Accel:
    if question.kernel is None or question.initrd is None:
        return await proof.prove(question.binary)
    return await linuxproof.prove(question.binary, question.kernel, question.initrd)


def _key(question: Question) -> str:
    files = [path for path in (question.binary, question.kernel, question.initrd) if path is not None]
    return cache.key([proof.device(), *files], proof.image().read_bytes())


def _look_up(question: Question) -> tuple[str, Accel | None]:
    key = _key(question)
    book = cache.read()
    why = book.distrusted.get(os.path.realpath(question.binary))
    return key, Accel("tcg", f"KVM failed in a guest on this boot: {why}") if why is not None else book.recall(key)
