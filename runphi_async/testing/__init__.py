# SPDX-License-Identifier: Apache-2.0
"""Stand-ins that ship with the product: a backend of scripts, a board with Jailhouse, XenStore and xl, far ends, time.

They pass the suites that the real ones pass. Nothing of the product imports them but the table of backends, when the
environment of tests asks for it.
"""
