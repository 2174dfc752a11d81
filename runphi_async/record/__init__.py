# SPDX-License-Identifier: Apache-2.0
"""What is known of a container on disk: its record and directory, its status, its events.

Read and written by everything above, so it holds no task and no driver. ``lifecycle`` says what an event means in a
status; who carries that out is in ``container``.
"""
