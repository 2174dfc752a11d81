# SPDX-License-Identifier: Apache-2.0
"""How a console becomes files: three parts that know nothing of each other.

``encode`` turns bytes into records (pure functions), ``files`` opens, rotates and writes files, and ``carry`` moves
a journal from where it stands into files, exactly once across ``kill -9``. ``consoles.streams.sinks.logfile`` is the
sink that drives a carrier off the loop.
"""
