# SPDX-License-Identifier: Apache-2.0
"""Hypervisors: ``base`` says what one must offer, ``detect`` holds the table of those there are.

A backend is a folder that imports ``base``, ``guest`` and ``lines`` of its neighbours here and no other backend. In
each, ``settings`` is known before the backend is used, ``backend`` is what ``detect`` asks for, ``gathering`` reads
what a plan wants to know, ``generator`` decides, ``plan`` is what comes out, and ``driver`` is the life of one guest.
``configured`` reads the configuration file with the tables of all.
"""
