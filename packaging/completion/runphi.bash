# SPDX-License-Identifier: Apache-2.0
# bash completion of runphi; made by `python -m runphi_async.commands.manual bash`
_runphi_names() {
    local entry
    for entry in "${RUNPHI_RUN_DIR:-/run/runPHI}"/*/state.json; do
        [ -e "$entry" ] && entry=${entry%/state.json} && printf '%s\n' "${entry##*/}"
    done
}
_runphi() {
    local word=${COMP_WORDS[COMP_CWORD]} before=${COMP_WORDS[COMP_CWORD - 1]} verb= more= i options= words= kind=
    COMPREPLY=()
    for ((i = 1; i < COMP_CWORD; i++)); do
        case ${COMP_WORDS[i]} in
            --root | --log | --log-format | --rootless | --criu) [ -n "$verb" ] || ((i++)) ;;
            -*) ;;
            *)
                if [ -z "$verb" ]; then
                    verb=${COMP_WORDS[i]}
                elif [ -z "$more" ]; then
                    case $verb in console | cell | board) more=${COMP_WORDS[i]} ;; esac
                fi
                ;;
        esac
    done
    case $verb${more:+ $more} in
        '')
            options='--help --root --log --log-format --debug --systemd-cgroup --rootless --criu --version'
            words='create start run state kill delete pause resume ps list update attach send who console stats logs replay reopen-logs timeline channels events doctor features spec cell exec checkpoint restore plan map board version'
            case $before in
                --root) kind=files ;;
                --log) kind=files ;;
                --log-format) kind=words words='text json' ;;
                --rootless) kind=files ;;
                --criu) kind=files ;;
            esac
            ;;
        console) words='rules' ;;
        cell) words='dump check diff' ;;
        board) words='list check from-sysconfig' ;;
        'create')
            options='--bundle --pid-file --console-socket --no-pivot --no-new-keyring --preserve-fds --help'
            kind=names
            case $before in
                --bundle | -b) kind=files ;;
                --pid-file) kind=files ;;
                --console-socket) kind=files ;;
                --preserve-fds) kind=none ;;
            esac
            ;;
        'start')
            options=' --help'
            kind=names
            ;;
        'run')
            options='--detach --keep --no-subreaper --bundle --pid-file --console-socket --no-pivot --no-new-keyring --preserve-fds --help'
            kind=names
            case $before in
                --bundle | -b) kind=files ;;
                --pid-file) kind=files ;;
                --console-socket) kind=files ;;
                --preserve-fds) kind=none ;;
            esac
            ;;
        'state')
            options=' --help'
            kind=names
            ;;
        'kill')
            options='--all --help'
            kind=names
            ;;
        'delete')
            options='--force --help'
            kind=names
            ;;
        'pause')
            options=' --help'
            kind=names
            ;;
        'resume')
            options=' --help'
            kind=names
            ;;
        'ps')
            options='--format --help'
            kind=names
            case $before in
                --format | -f) kind=words words='table json' ;;
            esac
            ;;
        'list')
            options='--format --quiet --help'
            kind=none
            case $before in
                --format | -f) kind=words words='table json' ;;
            esac
            ;;
        'update')
            options='--resources --cpu-quota --cpu-period --cpu-share --cpuset-cpus --cpuset-mems --memory --memory-reservation --memory-swap --pids-limit --blkio-weight --help'
            kind=names
            case $before in
                --resources | -r) kind=files ;;
                --cpu-quota) kind=none ;;
                --cpu-period) kind=none ;;
                --cpu-share) kind=none ;;
                --cpuset-cpus) kind=none ;;
                --cpuset-mems) kind=none ;;
                --memory) kind=none ;;
                --memory-reservation) kind=none ;;
                --memory-swap) kind=none ;;
                --pids-limit) kind=none ;;
                --blkio-weight) kind=none ;;
            esac
            ;;
        'attach')
            options='--observe --no-stdin --take --share --replay --quiet --words --detach-keys --escape-key --channel --from --back --help'
            kind=names
            case $before in
                --replay) kind=files ;;
                --words) kind=none ;;
                --detach-keys) kind=none ;;
                --escape-key) kind=none ;;
                --channel) kind=none ;;
                --from) kind=none ;;
                --back) kind=words words='writer sharer observer' ;;
            esac
            ;;
        'send')
            options='--take --share --rate --help'
            kind=names
            case $before in
                --rate) kind=none ;;
            esac
            ;;
        'who')
            options='--format --channel --help'
            kind=names
            case $before in
                --format | -f) kind=words words='table json' ;;
                --channel) kind=none ;;
            esac
            ;;
        'console rules')
            options='--format --help'
            kind=names
            case $before in
                --format | -f) kind=words words='table json' ;;
            esac
            ;;
        'stats')
            options='--format --help'
            kind=names
            case $before in
                --format | -f) kind=words words='table json' ;;
            esac
            ;;
        'logs')
            options='--follow --tail --since --safe --channel --from --help'
            kind=names
            case $before in
                --tail | -n) kind=none ;;
                --since) kind=none ;;
                --channel) kind=none ;;
                --from) kind=none ;;
            esac
            ;;
        'replay')
            options='--speed --idle --safe --from --help'
            kind=files
            case $before in
                --speed) kind=none ;;
                --idle) kind=none ;;
                --from) kind=none ;;
            esac
            ;;
        'reopen-logs')
            options=' --help'
            kind=names
            ;;
        'timeline')
            options='--follow --since --format --help'
            kind=names
            case $before in
                --since) kind=none ;;
                --format) kind=words words='text json' ;;
            esac
            ;;
        'channels')
            options='--format --help'
            kind=names
            case $before in
                --format | -f) kind=words words='table json' ;;
            esac
            ;;
        'events')
            options='--stats --interval --no-follow --help'
            kind=names
            case $before in
                --interval) kind=none ;;
            esac
            ;;
        'doctor')
            options='--json --report --with-consoles --help'
            kind=none
            case $before in
                --report) kind=files ;;
            esac
            ;;
        'features')
            options=' --help'
            kind=none
            ;;
        'spec')
            options='--bundle --linux --help'
            kind=none
            case $before in
                --bundle | -b) kind=files ;;
            esac
            ;;
        'cell dump')
            options='--format --dialect --help'
            kind=files
            case $before in
                --format | -f) kind=words words='text json' ;;
                --dialect) kind=words words='mainline mainline-13 mainline-10 mainline-9 coloured omnivisor-2024 omnivisor' ;;
            esac
            ;;
        'cell check')
            options='--format --system --help'
            kind=files
            case $before in
                --format | -f) kind=words words='text json' ;;
                --system) kind=files ;;
            esac
            ;;
        'cell diff')
            options=' --help'
            kind=files
            ;;
        'exec')
            options='--process --detach --pid-file --console-socket --tty --cwd --env --user --additional-gids --preserve-fds --cap --no-new-privs --process-label --apparmor --cgroup --ignore-paused --help'
            kind=names
            case $before in
                --process | -p) kind=files ;;
                --pid-file) kind=files ;;
                --console-socket) kind=files ;;
                --cwd) kind=files ;;
                --env | -e) kind=files ;;
                --user | -u) kind=files ;;
                --additional-gids | -g) kind=files ;;
                --preserve-fds) kind=none ;;
                --cap | -c) kind=files ;;
                --process-label) kind=files ;;
                --apparmor) kind=files ;;
                --cgroup) kind=files ;;
            esac
            ;;
        'checkpoint')
            options='--image-path --work-path --parent-path --leave-running --tcp-established --ext-unix-sk --shell-job --file-locks --pre-dump --lazy-pages --auto-dedup --empty-ns --status-fd --page-server --manage-cgroups-mode --help'
            kind=names
            case $before in
                --image-path) kind=files ;;
                --work-path) kind=files ;;
                --parent-path) kind=files ;;
                --empty-ns) kind=files ;;
                --status-fd) kind=files ;;
                --page-server) kind=files ;;
                --manage-cgroups-mode) kind=files ;;
            esac
            ;;
        'restore')
            options='--image-path --work-path --parent-path --tcp-established --ext-unix-sk --shell-job --file-locks --lazy-pages --auto-dedup --empty-ns --status-fd --page-server --manage-cgroups-mode --bundle --detach --pid-file --console-socket --no-pivot --no-subreaper --help'
            kind=names
            case $before in
                --image-path) kind=files ;;
                --work-path) kind=files ;;
                --parent-path) kind=files ;;
                --empty-ns) kind=files ;;
                --status-fd) kind=files ;;
                --page-server) kind=files ;;
                --manage-cgroups-mode) kind=files ;;
                --bundle | -b) kind=files ;;
                --pid-file) kind=files ;;
                --console-socket) kind=files ;;
            esac
            ;;
        'plan')
            options='--backend --id --format --help'
            kind=files
            case $before in
                --backend) kind=files ;;
                --id) kind=files ;;
                --format) kind=words words='text json' ;;
            esac
            ;;
        'map')
            options='--board --svg --help'
            kind=none
            case $before in
                --board) kind=files ;;
                --svg) kind=files ;;
            esac
            ;;
        'board list')
            options=' --help'
            kind=none
            ;;
        'board check')
            options='--iomem --help'
            kind=files
            case $before in
                --iomem) kind=files ;;
            esac
            ;;
        'board from-sysconfig')
            options='--iomem --help'
            kind=files
            case $before in
                --iomem) kind=files ;;
            esac
            ;;
        'version')
            options=' --help'
            kind=none
            ;;
    esac
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
