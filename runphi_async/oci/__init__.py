# SPDX-License-Identifier: Apache-2.0
"""The documents of the OCI runtime specification: config.json, state, features; and what a signal asks of a container.

Structure and spelling only; what a container makes of them is in ``partition`` and ``container``.
"""
