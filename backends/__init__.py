# SPDX-License-Identifier: Apache-2.0
"""Hypervisors: ``base`` says what one must offer, ``detect`` holds the table of those there are.

A backend is a folder that imports ``base``, ``guest`` and ``lines`` of its neighbours here and no other backend.
"""
