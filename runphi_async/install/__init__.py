# SPDX-License-Identifier: Apache-2.0
"""Putting runPHI on a machine and taking it off again: what ``bin/configure`` runs.

It starts before there is a Python environment, so everything here needs the standard library only, and reads nothing
of the machine while it is imported. Whatever is changed is written down first (``record.py``), so that a call which
was killed at any moment can be repeated or taken back.
"""
