# SPDX-License-Identifier: Apache-2.0
"""Xen: each guest is a domain, made by xl and watched in XenStore."""
