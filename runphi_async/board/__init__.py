# SPDX-License-Identifier: Apache-2.0
"""Boards and who has what of them: board files, ranges of memory, claims, the ledger, the drawing.

An allocator for hypervisors that have none. It knows names of owners and nothing else of containers.
"""
