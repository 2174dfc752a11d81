# SPDX-License-Identifier: Apache-2.0
"""Man page and shell completion, made of the command line's own parsers.

``python -m runphi_async.commands.manual man`` prints packaging/runphi.8 and ``… bash``
packaging/completion/runphi.bash. Both are kept in the repository, because an installation starts before there is an
interpreter with our dependencies; a test keeps them current.
"""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING, Final, NamedTuple

from runphi_async.commands.cli import global_parser, verb_parser
from runphi_async.commands.verbs import VERBS
from runphi_async.version import VERSION

if TYPE_CHECKING:
    from collections.abc import Callable

#: words that stand for the name of a container
_CONTAINERS: Final = ("id", "name", "names")
#: options and arguments that stand for something else than a file
_NO_FILES: Final = ("N", "TIME", "SECONDS", "BYTES", "US", "SHARES", "LIST", "TEXT", "KEYS", "KEY", "OFFSET", "CHANNEL")


class Command(NamedTuple):
    """A verb, or a word of a verb that has several.

    :ivar words: how it is called, such as ("cell", "dump").
    """

    words: tuple[str, ...]
    text: str
    parser: argparse.ArgumentParser

    @property
    def options(self) -> list[argparse.Action]:
        """Its options, without --help."""
        return [action for action in self.parser._actions if action.option_strings and action.dest != "help"]

    @property
    def arguments(self) -> list[argparse.Action]:
        """What it is called with beside options."""
        return [
            action
            for action in self.parser._actions
            if not action.option_strings and not isinstance(action, argparse._SubParsersAction)
        ]


def commands() -> list[Command]:
    """Return every command, in the order of the help."""
    return [
        command for verb in VERBS.values() for command in _below((verb.name,), verb.text, verb_parser(verb.name)[0])
    ]


def _below(words: tuple[str, ...], text: str, parser: argparse.ArgumentParser) -> list[Command]:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            helps = {str(choice.dest): choice.help or "" for choice in action._choices_actions}
            return [
                command
                for name, below in action.choices.items()
                for command in _below((*words, name), helps.get(name, text), below)
            ]
    return [Command(words, text, parser)]


# Section: the man page


def man() -> str:
    """Return the page, in roff."""
    lines = [
        '.\\" SPDX-License-Identifier: Apache-2.0',
        '.\\" made by `python -m runphi_async.commands.manual man`: change runphi_async/commands/',
        f'.TH RUNPHI 8 "" "runPHI async {VERSION}" "System administration"',
        ".SH NAME",
        "runphi \\- OCI runtime whose containers are hypervisor partitions",
        ".SH SYNOPSIS",
        ".B runphi",
        "[global options] VERB [options]",
        ".SH DESCRIPTION",
        "Container engines call runphi as they call runc. A container that asks for a partition becomes a guest of",
        "QEMU, Xen or Jailhouse; every other one is handed to runc. Options are written",
        ".B \\-\\-opt value",
        "or",
        ".BR \\-\\-opt=value ;",
        "abbreviations are refused.",
        ".SH GLOBAL OPTIONS",
    ]
    for action in global_parser()._actions:
        if action.option_strings and action.dest != "help":
            lines += _man_option(action)
    lines.append(".SH VERBS")
    for command in commands():
        lines += _man_command(command)
    return "\n".join([*lines, *_MAN_END]) + "\n"


_MAN_END: Final = (
    ".SH FILES",
    ".TP",
    ".I /etc/runphi/config.toml",
    "The configuration, read when the supervisor starts.",
    ".TP",
    ".I /run/runPHI",
    "The run directory: a record for each partition, the supervisor's socket and its log.",
    ".TP",
    ".I /var/log/runphi",
    "Logs of the consoles.",
    ".SH ENVIRONMENT",
    ".TP",
    ".B RUNPHI_RUN_DIR",
    "Another run directory.",
    ".TP",
    ".B RUNPHI_CONFIG",
    "Another configuration file.",
    ".TP",
    ".B RUNPHI_ACCEL",
    "The accelerator of QEMU guests (auto, kvm or tcg) where the configuration names none.",
    ".TP",
    ".B RUNPHI_PROOFS",
    "Where the proof of the accelerator is kept, instead of /run/runphi.",
    ".SH EXIT STATUS",
    "0 when it worked, 1 after an error, which is one line on standard error; run and attach end with the guest's",
    "exit code, and runc's verbs with runc's.",
    ".SH SEE ALSO",
    ".BR runc (8),",
    ".BR ctr (1),",
    ".BR podman (1)",
)


def _man_command(command: Command) -> list[str]:
    usage = "".join(f" {_usage(action)}" for action in command.arguments)
    has = " [options]" if command.options else ""
    lines = [f".SS {_roff(' '.join(command.words))}{has}{_roff(usage)}", f"{_roff(_sentence(command.text))}"]
    for action in command.arguments:
        if action.help:
            lines += [".TP", f".I {_roff(_metavar(action))}", _roff(_sentence(action.help))]
    for action in command.options:
        lines += _man_option(action)
    return lines


def _man_option(action: argparse.Action) -> list[str]:
    names = ", ".join(f"\\fB{_roff(name)}\\fR" for name in action.option_strings)
    value = f" \\fI{_roff(_metavar(action))}\\fR" if action.nargs != 0 else ""
    text = action.help or ("form of the answer" if action.dest == "format" else "")
    return [".TP", names + value, *([_roff(_sentence(text))] if text else [])]


def _roff(text: str) -> str:
    text = text.replace("\\", "\\e").replace("-", "\\-")
    return "\\&" + text if text.startswith((".", "'")) else text


def _sentence(text: str) -> str:
    first = text.split(maxsplit=1)[0]
    if first.isalpha() and first.islower():  # no name such as cgroupsPath
        text = text[:1].upper() + text[1:]
    return text + ("" if text.endswith(".") else ".")


def _metavar(action: argparse.Action) -> str:
    if action.choices is not None:
        return "|".join(map(str, action.choices))
    return str(action.metavar or action.dest.upper())


def _usage(action: argparse.Action) -> str:
    name = _metavar(action)
    return {"?": f"[{name}]", "*": f"[{name}…]", "+": f"{name}…"}.get(str(action.nargs), name)


# Section: completion


_BASH: Final = """# SPDX-License-Identifier: Apache-2.0
# bash completion of runphi; made by `python -m runphi_async.commands.manual bash`
_runphi_names() {
    local entry
    for entry in "${RUNPHI_RUN_DIR:-/run/runPHI}"/*/state.json; do
        [ -e "$entry" ] && entry=${entry%/state.json} && printf '%s\\n' "${entry##*/}"
    done
}
_runphi() {
    local word=${COMP_WORDS[COMP_CWORD]} before=${COMP_WORDS[COMP_CWORD - 1]} verb= more= i options= words= kind=
    COMPREPLY=()
    for ((i = 1; i < COMP_CWORD; i++)); do
        case ${COMP_WORDS[i]} in
            @GLOBAL_VALUES@) [ -n "$verb" ] || ((i++)) ;;
            -*) ;;
            *)
                if [ -z "$verb" ]; then
                    verb=${COMP_WORDS[i]}
                elif [ -z "$more" ]; then
                    case $verb in @GROUPS@) more=${COMP_WORDS[i]} ;; esac
                fi
                ;;
        esac
    done
    case $verb${more:+ $more} in
        '')
            options='@GLOBAL_OPTIONS@'
            words='@VERBS@'
            case $before in
@GLOBAL_CHOICES@            esac
            ;;
@CASES@    esac
    if [[ $word == -* ]]; then
        mapfile -t COMPREPLY < <(compgen -W "$options" -- "$word")
        return
    fi
    case $kind in
        none) ;;
        names) mapfile -t COMPREPLY < <(compgen -W "$(_runphi_names)" -- "$word") ;;
        files) mapfile -t COMPREPLY < <(compgen -f -- "$word") && compopt -o filenames 2>/dev/null ;;
        *) mapfile -t COMPREPLY < <(compgen -W "$words" -- "$word") ;;
    esac
}
complete -F _runphi runphi
"""


def bash() -> str:
    """Return the completion for bash."""
    found = commands()
    groups = list(dict.fromkeys(command.words[0] for command in found if len(command.words) > 1))
    top = [action for action in global_parser()._actions if action.option_strings]
    takes = [name for action in top if action.nargs != 0 for name in action.option_strings]
    cases = ""
    for group in groups:
        below = " ".join(command.words[1] for command in found if command.words[0] == group)
        cases += f"        {group}) words='{below}' ;;\n"
    for command in found:
        cases += _bash_case(command)
    filled = {
        "GLOBAL_VALUES": " | ".join(takes),
        "GROUPS": " | ".join(groups),
        "GLOBAL_OPTIONS": _names([*top]),
        "VERBS": " ".join(VERBS),
        "GLOBAL_CHOICES": "".join(_bash_values(action, 16) for action in top),
        "CASES": cases,
    }
    text = _BASH
    for name, value in filled.items():
        text = text.replace(f"@{name}@", value)
    return text


def _bash_case(command: Command) -> str:
    values = "".join(_bash_values(action, 16) for action in command.options)
    first = command.arguments[0] if command.arguments else None
    kind = "none" if first is None else "names" if first.dest in _CONTAINERS else "files"
    lines = [f"        '{' '.join(command.words)}')", f"            options='{_names(command.options)} --help'"]
    lines.append(f"            kind={kind}")
    if values:
        lines += ["            case $before in", values.rstrip("\n"), "            esac"]
    return "\n".join([*lines, "            ;;"]) + "\n"


def _bash_values(action: argparse.Action, indent: int) -> str:
    if action.nargs == 0:
        return ""
    names = " | ".join(action.option_strings)
    if action.choices is not None:
        words = " ".join(map(str, action.choices))
        return f"{' ' * indent}{names}) kind=words words='{words}' ;;\n"
    kind = "none" if _metavar(action) in _NO_FILES else "files"
    return f"{' ' * indent}{names}) kind={kind} ;;\n"


def _names(actions: list[argparse.Action]) -> str:
    return " ".join(name for action in actions for name in action.option_strings if name.startswith("--"))


MADE: Final[dict[str, Callable[[], str]]] = {"man": man, "bash": bash}

if __name__ == "__main__":
    sys.stdout.write(MADE[sys.argv[1]]())
