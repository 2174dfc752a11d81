# SPDX-License-Identifier: Apache-2.0
"""What a verb does, without a command line and without a connection.

The timeline is here; create, start, kill and delete still stand in ``commands`` and ``container``.
"""
