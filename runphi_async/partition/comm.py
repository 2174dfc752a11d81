# SPDX-License-Identifier: Apache-2.0
"""Which channels lead into a guest: the decision every backend shares; backends say by which device."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from runphi_async.errors import PlanError
from runphi_async.partition.channels import Channel
from runphi_async.partition.spec import GuestKind

if TYPE_CHECKING:
    from runphi_async.partition.spec import GuestSpec


class Channels(msgspec.Struct, frozen=True):
    """The channels decided, and why."""

    #: the console is the machine's serial port; else a paravirtual one
    serial_console: bool
    #: our init listens: exit code, window size, signals
    control: bool
    #: the guest kernel's own messages are kept apart from the console
    kernel_log: bool
    explain: tuple[str, ...]
    #: channels in shared memory that the guest is given as devices
    shared: tuple[Channel, ...] = ()


def decide(spec: GuestSpec) -> Channels:
    """Only a guest with our init knows our channels; all others have a serial port, as on a board."""
    shared = tuple(channel for channel in spec.channels if channel.made)
    named = explain_channels(spec)
    if spec.kind is GuestKind.LINUX:
        return Channels(
            serial_console=False,
            control=True,
            kernel_log=True,
            explain=("comm: paravirtual console, control channel to the init, kernel log kept apart", *named),
            shared=shared,
        )
    return Channels(
        serial_console=True,
        control=False,
        kernel_log=False,
        explain=("comm: console on the serial port", *named),
        shared=shared,
    )


def refuse_vchan(spec: GuestSpec) -> None:
    """Refuse channels of libxenvchan, which only Xen has.

    :raises PlanError: naming the channel.
    """
    for channel in spec.channels:
        if channel.vchan:
            raise PlanError(
                f"cannot make channel {channel.name}: only a guest on Xen can serve a vchan",
                "use shmem, or set org.runphi.backend=xen",
            )


def explain_channels(spec: GuestSpec) -> tuple[str, ...]:
    """Return a sentence for each channel, and which of them is the console."""
    named = tuple(f"comm: channel {channel.name}: {channel.text()}" for channel in spec.channels)
    return (*named, f"comm: channel {spec.console} is the console") if spec.console is not None else named


def console_wish(spec: GuestSpec, usual: str) -> tuple[str, str]:
    """Return which of a board's consoles the guest has, and why."""
    if spec.console_port is not None:
        return spec.console_port, "annotation org.runphi.console-port says so"
    return usual, "the board's for this kind of guest"
