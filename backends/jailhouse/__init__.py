# SPDX-License-Identifier: Apache-2.0
"""The Jailhouse backend: planning cells; reading, writing and checking their configurations; driving the tool.

``model`` names the fields and flags, ``layout`` says where each dialect of Jailhouse keeps them, ``codec`` reads and
writes the files, ``csource`` writes the C text of a cell, ``describe`` shows them, ``check`` says what would go wrong.
``tool`` drives Jailhouse's tool, ``errortext`` says what its errors mean, ``watcher`` notices what happens to cells,
``hold`` makes, stops and destroys one, ``console`` is what it prints on, ``ending`` says what its end means, ``driver``
and ``backend`` make containers of cells. ``startup`` enables the hypervisor.

``planner`` plans cells of what ``gathering`` reads: ``generator`` calls the six managers (``mem``, ``net``, ``dev``,
``boot``, ``cpu``, ``comm``), ``joining`` puts their parts together, ``plan`` is what they make, ``cellfile`` turns that
into a ``model.Cell``. ``sysconfig`` makes board files.
"""
