# SPDX-License-Identifier: Apache-2.0
"""Tests against real engines."""

import os

# gRPC mends its threads and files in a child that Python forked. The terminals of these tests are such children, and
# now and then that work ended one before it became the program it was to be, which looked like a console that lost
# its guest. Nothing here calls gRPC in a child, so it is told not to, before anything imports it.
os.environ["GRPC_ENABLE_FORK_SUPPORT"] = "0"
