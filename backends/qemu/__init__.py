# SPDX-License-Identifier: Apache-2.0
"""QEMU: each guest is a process, child of the container's init process."""
