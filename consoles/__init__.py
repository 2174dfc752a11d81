# SPDX-License-Identifier: Apache-2.0
"""The console path: sources → hub → sinks. Imports nothing else of the project, so it can be used alone."""
