# SPDX-License-Identifier: Apache-2.0
"""The console path, in three rooms: ``streams`` over ``sources`` over ``sharedmem``.

It can be used alone: of the project it imports nothing. Names and grammars of others are handed in.
"""
