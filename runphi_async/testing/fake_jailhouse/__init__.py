# SPDX-License-Identifier: Apache-2.0
"""A Jailhouse without a board: the ``jailhouse`` tool, its sysfs tree, and cells that are small processes.

``bin/jailhouse`` beside this file is the tool. It behaves as the recorded one did on a qemu-arm64 board with mainline
Jailhouse (docs/reference/fake-jailhouse.md), so that drivers of the real tool can be built and tried on any Linux.
"""
