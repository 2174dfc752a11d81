# SPDX-License-Identifier: Apache-2.0
"""The streams of a container while it lives: console, channels, logs, people attached, replay, the hypervisor's own.

Puts ``consoles`` together for a container of ``record``; whose guest that is, and when it ends, is in ``container``.
"""
