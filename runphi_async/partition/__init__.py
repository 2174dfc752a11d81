# SPDX-License-Identifier: Apache-2.0
"""What a container asks for, and the half of planning for which no hypervisor matters.

``request`` reads annotations, environment and image, and makes ``wishes`` of them; ``guest`` makes the ``spec`` of a
guest; ``cpu``, ``mem``, ``net``, ``dev``, ``boot`` and ``comm`` decide; ``logplan``, ``rules``, ``sources`` and
``channels`` are asked of its consoles. How a hypervisor is told is in ``backends``; what a board can give is in
``board``.
"""
