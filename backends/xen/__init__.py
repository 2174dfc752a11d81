# SPDX-License-Identifier: Apache-2.0
"""Xen: each guest is a domain, made by xl and watched in XenStore.

``wishes`` are the annotations that only Xen has, ``known`` what becomes known of a domain, ``watch`` follows it to its
end.
"""
