# SPDX-License-Identifier: Apache-2.0
"""runPHI async in rooms on floors: a room imports only from rooms on floors below (docs/explanation/architecture.md).

Nothing else lives in this hall but what stands below every room: the error tree, the version, units, and events. It
imports nothing: the thin client comes through here with every verb.
"""
