# SPDX-License-Identifier: Apache-2.0
"""The configuration file: its schema, reading it, saying what is wrong with it, and its reference page.

``schema`` holds every key that is no backend's, made of what ``section`` offers; ``loading`` makes a ``Config`` of a
file; go on there. Nothing here looks at a container. This door opens without the packages of the supervisor:
``bin/configure`` comes through to ``realrunc``.
"""
