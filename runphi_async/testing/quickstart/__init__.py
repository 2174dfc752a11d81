# SPDX-License-Identifier: Apache-2.0
"""The second half of bin/quickstart: the demo guest's live console, or the conversation with it by itself.

Started by the shell script as ``python -m runphi_async.testing.quickstart STORE RUN [--check] [--backend
jailhouse-sim]`` once everything is installed and built. Whatever it starts ends with it.

``screen`` shows · ``talks`` are the conversations · ``live`` is the console for a person · ``witness`` gathers what is
known of a failure · ``causes`` says what it means and how to mend it · ``__main__`` puts them together.
"""
