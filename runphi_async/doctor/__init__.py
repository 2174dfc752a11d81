# SPDX-License-Identifier: Apache-2.0
"""What ``runphi doctor`` looks at on this machine, and the program that makes a board ready for Jailhouse.

It looks and advises, and changes nothing but what ``start_jailhouse`` is asked to. Installing is in ``install``.
"""
