# SPDX-License-Identifier: Apache-2.0
"""Debian 12 and 13 beside each other: a root of either, made from packages, in which bin/quickstart and bin/test run.

The root is made by mmdebstrap and kept; what runs in it gets namespaces of its own and a copy of the checkout, and
leaves nothing behind. Only the standard library is used: this runs before there is an environment.
"""
