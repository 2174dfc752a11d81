# SPDX-License-Identifier: Apache-2.0
"""What there is to be asked for: each verb once, with all that is decided by its name alone.

What a verb takes and does is in the module of its name. The thin client keeps names out of this table, because it
decides before anything is loaded; a test holds them together.
"""

from __future__ import annotations

from typing import Final, NamedTuple


class Verb(NamedTuple):
    """A verb.

    :ivar text: what it does, for the help.
    :ivar group: members of ``supervisor.group`` may ask for it.
    :ivar repeatable: it may simply be asked for again when the supervisor died while it answered.
    :ivar shared: it acts on an existing container, which may be the ordinary runtime's: that one then gets the call.
    """

    name: str
    text: str
    group: bool = False
    repeatable: bool = False
    shared: bool = False


_ALL: Final = (
    Verb("create", "create a container from a bundle"),
    Verb("start", "start a created container", shared=True),
    Verb("run", "create and start a container, and wait for it"),
    Verb("state", "print the state of a container", group=True, repeatable=True, shared=True),
    Verb("kill", "send a signal to a container", repeatable=True, shared=True),
    Verb("delete", "delete a container", repeatable=True, shared=True),
    Verb("pause", "make a container stand still", repeatable=True, shared=True),
    Verb("resume", "let a paused container go on", repeatable=True, shared=True),
    Verb("ps", "list the host processes of a container", repeatable=True, shared=True),
    Verb("list", "list containers", group=True, repeatable=True),
    Verb("update", "change resource limits", shared=True),
    Verb("attach", "join the console of a container", group=True, repeatable=True),
    Verb("send", "type a file into a container"),
    Verb("who", "list the people on a container's console", group=True),
    Verb("console", "list the rules of a container's console", group=True),
    Verb("stats", "print a container's numbers", group=True),
    Verb("logs", "show what a container printed", group=True, repeatable=True),
    Verb("replay", "play a timed log as it happened", repeatable=True),
    Verb("reopen-logs", "go on in new log files, after logrotate has renamed the old ones", repeatable=True),
    Verb("timeline", "show what hypervisor, guests and runtime said, in order of time"),
    Verb("channels", "list the named streams of a container"),
    Verb("events", "show what happened to a container"),
    Verb("doctor", "look whether this machine has what is needed"),
    Verb("features", "print what this runtime can do", repeatable=True),
    Verb("spec", "write a sample config.json"),
    Verb("cell", "look into, check and compare Jailhouse configurations"),
    Verb("exec", "run a further process (partitions cannot)", shared=True),
    Verb("checkpoint", "save a container's state (partitions cannot)", shared=True),
    Verb("restore", "restore a saved container (partitions cannot)", shared=True),
    Verb("plan", "say how a bundle's partition would be made, and why"),
    Verb("map", "draw a board's CPUs and memory with their owners"),
    Verb("board", "check and list the files that say what a board can give to cells"),
    Verb("version", "print the version", group=True, repeatable=True),
)
#: Every verb by its name, in the order of the help.
VERBS: Final = {verb.name: verb for verb in _ALL}
