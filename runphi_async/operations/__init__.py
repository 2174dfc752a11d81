# SPDX-License-Identifier: Apache-2.0
"""What a verb does, without a command line and without a connection; and the timeline. One module a verb or two.

Turns on a container are taken here, and hooks are run here. What is printed, and how, is in ``commands``; what a
container is and how it lives and ends is in ``container``.
"""
