# SPDX-License-Identifier: Apache-2.0
"""QEMU: each guest is a process, child of the container's init process.

``vmm`` is that process, ``beside`` what lies around it, ``reins`` lets it run and stand, ``watch`` looks after it; when
KVM fails a guest, ``second`` starts it once more in software. ``accel`` proves what guests run on.
"""
