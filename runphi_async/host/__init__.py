# SPDX-License-Identifier: Apache-2.0
"""What Linux offers: system calls, netlink, interfaces, namespaces, cgroups, processes, files, paths inside a root.

No word of containers, annotations or engines: who asks says what it is for, and adds the advice to an error. What a
container makes of these is in ``container``, what a guest's network card is in ``backends.guest``.
"""
