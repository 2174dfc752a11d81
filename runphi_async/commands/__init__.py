# SPDX-License-Identifier: Apache-2.0
"""The verbs: one module each, which parses its words and prints its answer; ``cli`` is what they have in common.

What a verb does belongs below, to ``operations`` and ``container``. Modules are loaded when their verb is first said.
"""
