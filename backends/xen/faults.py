# SPDX-License-Identifier: Apache-2.0
"""What libxl's error texts mean, in words for people: one line and how to mend it. Texts of Xen 4.17."""

from __future__ import annotations

import re
from typing import Final, NamedTuple

from runphi_async.errors import BackendError


class Fault(NamedTuple):
    """A known failure: what libxl writes, what it means and how to mend it; groups of the pattern fill the texts."""

    pattern: re.Pattern[str]
    text: str
    hint: str | None = None


def _fault(pattern: str, text: str, hint: str | None = None) -> Fault:
    return Fault(re.compile(pattern), text, hint)


#: The first that is found anywhere in stderr counts: causes come before the lines that follow from them.
FAULTS: Final = (
    _fault(
        r"Can't find hypervisor information|Could not obtain handle on privileged command interface|"
        r"cannot init xl context",
        "this machine does not run Xen, or this is not dom0",
        "boot it with Xen and run the supervisor in dom0 as root",
    ),
    _fault(
        r'Domain with name "(.+)" already exists', 'a domain named "{0}" is already there', "xl list shows all domains"
    ),
    _fault(
        r"xc_dom_boot_mem_init|can't allocate low memory|failed to free memory for the domain",
        "Xen has not enough free memory",
        "give the container less memory, or dom0 (dom0_mem= on Xen's command line, or xl mem-set 0)",
    ),
    _fault(
        r"segment \w+ too large|xc_dom_alloc_segment|xc_dom_chk_alloc_pages",
        "the guest's memory is too small for its kernel and RAM disk",
        "raise the container's memory limit or set annotation org.runphi.memory",
    ),
    _fault(r"failed to open file '([^']+)'", "cannot open {0}"),
    _fault(
        r"no loader found: Invalid kernel|xc_dom_find_loader",
        "the image is no kernel that Xen can start",
        "it needs Xen's ELF notes; see docs/reference/inmates.md",
    ),
    _fault(
        r"device model (\S+) is not executable",
        "this needs a device model, and there is none at {0}",
        "apt-get install qemu-system-xen in dom0, or leave out hvm, 9p and channels",
    ),
    _fault(r"Disk vdev=(\S+) failed to stat: (\S+): (.+)", "cannot use {1} as disk {0}: {2}"),
    _fault(
        r"unable to add device with path \S*/vif/",
        "the network device cannot be made",
        "in dom0 run: modprobe xen-netback, and see that the bridge is there",
    ),
    _fault(
        r"unable to add device with path \S*/(vbd|qdisk)/",
        "the disk cannot be attached",
        "in dom0 run: modprobe xen-blkback loop, and see that losetup (package mount) is there",
    ),
    _fault(r"Illegal pool specified: (\S+)", "there is no cpupool {0}", "xl cpupool-list shows all cpupools"),
    _fault(
        r"vcpu hard affinity map is empty", "none of the CPUs to pin to is there", "xl info shows nr_cpus"
    ),
    _fault(r"Invalid pcpu range: (.+)", "{0} is no CPU range"),
    _fault(r"config parsing error near `(.*)'", "xl cannot read the configuration near {0}"),
    _fault(r"failed to read BIOS file", "HVM guests need a firmware", "apt-get install seabios in dom0"),
    _fault(r"Invalid domain type (\S+)\.", "Xen has no guests of type {0}"),
    _fault(r"HVM guest without HVM support|is not supported on this platform|PVH guest.*(?:HAP|HVM)",
           "the processor cannot run PVH or HVM guests", "use a PV image: annotation org.runphi.machine=pv"),
    _fault(r"passthrough not supported on this platform",
           "Xen uses no IOMMU here, so no device can be handed over",
           "turn VT-d or AMD-Vi on in the firmware, and leave iommu=0 off Xen's command line"),
    _fault(r"[Dd]evice model did not start|device model: spawn failed", "the device model did not start",
           "/var/log/xen/qemu-dm-NAME.log in dom0 says why"),
    # In the first line only: every create that failed for another reason destroys its domain, and says so behind it.
    _fault(r"\A[^\n]*(?:Domain '?\d+'? does not exist|Non-exist[ae]nt domain|is an invalid domain identifier)",
           "the domain is gone"),
    _fault(r"guest didn't acknowledge control request", "the guest has no ear for it"),
)  # fmt: skip


def explain(what: str, stderr: str, status: int | None = None) -> BackendError:
    """Return the error for a failed call.

    :param what: the step, as in "create the domain".
    """
    for fault in FAULTS:
        match = fault.pattern.search(stderr)
        if match is not None:
            return BackendError(f"cannot {what}: {fault.text.format(*match.groups())}", fault.hint)
    lines = [line for line in stderr.splitlines() if line.strip()]
    said = f": {lines[0].strip()}" if lines else ""
    ended = f"xl ended with {status}" if status is not None else "xl failed"
    return BackendError(f"cannot {what}: {ended}{said}")
