# Sourced by tpu_pod.sh and gke_xpk.sh, which have a function `usage`: how they read their command lines.

fail() {
  echo "error: $*" >&2
  exit 2
}

# parse_options COMMANDS OPTIONS SWITCHES "$@": sets `command`; the variable of each option, --NAME=VALUE, and of each switch,
# --NAME, to "yes"; and `arguments` to those that come after --. The first three are lists of names.
parse_options() {
  local commands=" $1 " options=" $2 " switches=" $3 " option
  shift 3
  command='' arguments=()
  while (($#)); do
    option="${1%%=*}"
    option="${option#--}"
    case "$1" in
      --help | -h) usage; exit 0 ;;
      --) shift; arguments=("$@"); break ;;
      --*=*)
        [[ "$options" == *" $option "* ]] || unknown "$1"
        printf -v "$option" '%s' "${1#*=}"
        ;;
      --*)
        [[ "$switches" == *" $option "* ]] || unknown "$1"
        printf -v "$option" yes
        ;;
      *)
        [[ "$commands" == *" $1 "* ]] || unknown "$1"
        [[ -z "$command" ]] || fail "two commands, $command and $1: give one at a time"
        command="$1"
        ;;
    esac
    shift
  done
  commands="${commands# }"
  commands="${commands% }"
  [[ -n "$command" ]] || fail "no command: $(sed 's/ /, /g; s/\(.*\), /\1 or /' <<<"$commands"); see --help"
}

unknown() {
  fail "unknown argument '$1'; see --help (arguments of the job come after --)"
}

# perform COMMAND [more]: prints a command in a form that can be pasted into a shell where `dry_run` is set, or else runs it.
perform() {
  if [[ -n "$dry_run" ]]; then
    printf '%q ' "$@"
    echo
  else
    "$@"
  fi
}
