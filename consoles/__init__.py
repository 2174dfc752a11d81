# SPDX-License-Identifier: Apache-2.0
"""The console path, in three rooms: ``streams`` over ``sources`` over ``sharedmem``.

It knows no containers and no hypervisors: of the project it imports the error tree alone. Names and grammars of others
are handed in.
"""
