# SPDX-License-Identifier: Apache-2.0
"""What is done to the board beside the driver: its module comes and goes, CPUs of Linux do, power is cut."""

from __future__ import annotations

import shutil
from errno import EBUSY, EPERM
from typing import TYPE_CHECKING

from runphi_async.testing.fake_jailhouse import link
from runphi_async.testing.fake_jailhouse.place import Errno, cpu_list
from runphi_async.testing.fake_jailhouse.tree import Tree

if TYPE_CHECKING:
    from runphi_async.testing.fake_jailhouse.place import Place


def online(place: Place, cpu: int, *, up: bool) -> None:
    """Take a CPU of Linux offline or online, as writing to its ``online`` file does.

    :raises Errno: the CPU is a cell's.
    """
    with place.mutex():
        state = place.state()
        cpus = set(state["online"])
        if up and any(cpu in record["cpus"] for record in state.get("cells", [])[1:]):
            place.dmesg(f"psci: failed to boot CPU{cpu} (-1)")
            raise Errno(EPERM)
        state["online"] = sorted(cpus | {cpu} if up else cpus - {cpu})
        place.write_state(state)
        place.show_cpus()


def insert(place: Place) -> None:
    """Load the module."""
    with place.mutex():
        state = place.state()
        state |= {"module": True, "enabled": False, "cells": []}
        place.write_state(state)
        Tree(place).inserted()
        place.device.write_bytes(b"")
        place.device.chmod(0o600)
        place.memory.touch()
        place.dmesg("jailhouse: loading out-of-tree module taints kernel.")


def remove(place: Place) -> None:
    """Remove the module.

    :raises Errno: the hypervisor runs.
    """
    with place.mutex():
        state = place.state()
        if state.get("enabled"):
            raise Errno(EBUSY)
        place.device.unlink(missing_ok=True)
        shutil.rmtree(place.sysfs, ignore_errors=True)
        for name in ("ring", "ring.last"):
            (place.run / name).unlink(missing_ok=True)
        place.write_state({"cpus": state["cpus"], "online": state["online"], "module": False})


def power_off(place: Place) -> None:
    """End every cell's process, hung or not, and forget everything but the board."""
    for path in place.run.glob("*.pid"):
        link.kill(path)
    place.remove()


def describe(place: Place) -> str:
    """Return what runs on the board, for people."""
    state = place.state()
    lines = [f"module {'loaded' if state['module'] else 'not loaded'}, CPUs online {cpu_list(state['online'])}"]
    cells = state.get("cells", [])
    lines += [f"{record['id']}: {record['name']}, CPUs {cpu_list(record['cpus']) or 'none'}" for record in cells]
    return "\n".join(lines) + "\n"
