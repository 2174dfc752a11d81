# SPDX-License-Identifier: Apache-2.0
"""What a guest is made of, whatever hypervisor runs it: images, initial ramdisks, and the init (in C) of Linux guests.

No backend of its own: the backends share it.
"""
