#!/usr/bin/env bash
# Runs utilgen_jax on all workers of a Cloud TPU pod (or a single TPU VM). See usage below, or --help.
set -euo pipefail

usage() {
  cat <<'USAGE'
usage: bash launch/tpu_pod.sh COMMAND [options] [-- arguments of utilgen_jax.main]

commands, in the order one needs them:
  create   makes the pod
  setup    copies this checkout's last commit to every worker and installs it there
  run      starts the job on all workers; it goes on when this terminal closes
  watch    follows the job's log, of one worker or all
  delete   deletes the pod

options:
  --name=NAME          the pod's name              (utilgen)
  --zone=ZONE          Cloud zone                  (us-central1-a)
  --type=TYPE          accelerator type            (v5litepod-16)
  --version=VERSION    TPU VM image                (v2-alpha-tpuv5-lite)
  --project=PROJECT    Cloud project               (gcloud's own default)
  --worker=N           watch: worker, or all       (0)
  --spot               create: cheaper, can be preempted at any time
  --dry_run            prints each command and runs nothing

  bash launch/tpu_pod.sh create --spot
  bash launch/tpu_pod.sh setup
  bash launch/tpu_pod.sh run -- --config=configs/cifar.py --config.data.path=/mnt/shared/tfds --workdir=/mnt/shared/runs/cifar
  bash launch/tpu_pod.sh watch --worker=all
  bash launch/tpu_pod.sh delete

The data and the workdir must lie on a disk that every worker sees, such as a mounted bucket or Filestore. After a preemption:
delete, create, setup, and the same run again, which continues where it was last saved.
USAGE
}

fail() {
  echo "error: $*" >&2
  exit 2
}

name=utilgen zone=us-central1-a type=v5litepod-16 version=v2-alpha-tpuv5-lite project='' worker=0 spot='' dry_run=''
command='' arguments=()
while (($#)); do
  case "$1" in
    --name=* | --zone=* | --type=* | --version=* | --project=* | --worker=*)
      option="${1%%=*}"
      printf -v "${option#--}" '%s' "${1#*=}"
      ;;
    --spot) spot=yes ;;
    --dry_run) dry_run=yes ;;
    --help | -h) usage; exit 0 ;;
    --) shift; arguments=("$@"); break ;;
    create | setup | run | watch | delete)
      [[ -z "$command" ]] || fail "two commands, $command and $1: give one at a time"
      command="$1"
      ;;
    *) fail "unknown argument '$1'; see --help (arguments of the job come after --)" ;;
  esac
  shift
done
[[ -n "$command" ]] || fail "no command: create, setup, run, watch or delete; see --help"
[[ "$command" == run || ${#arguments[@]} -eq 0 ]] || fail "only run takes arguments after --"

# Prints a command in a form that can be pasted into a shell, and runs it unless --dry_run.
perform() {
  if [[ -n "$dry_run" ]]; then
    printf '%q ' "$@"
    echo
  else
    "$@"
  fi
}

# tpu VERB [more]: one gcloud call on the pod.
tpu() {
  local verb="$1"
  shift
  perform gcloud compute tpus tpu-vm "$verb" "$@" "--zone=$zone" ${project:+"--project=$project"}
}

# on_workers WHICH COMMAND: runs a shell command on one worker or on all.
on_workers() {
  tpu ssh "$name" "--worker=$1" "--command=$2"
}

create() {
  tpu create "$name" "--accelerator-type=$type" "--version=$version" ${spot:+--spot}
}

setup() {
  local archive=/tmp/utilgen_jax.tar.gz
  # The first connection makes and spreads an SSH key; several at once would race for it.
  on_workers 0 true
  perform git -C "$(dirname "${BASH_SOURCE[0]}")/.." archive --format=tar.gz "--output=$archive" HEAD
  tpu scp "$archive" "$name:utilgen_jax.tar.gz" --worker=all
  on_workers all "mkdir -p utilgen_jax && tar -xzf utilgen_jax.tar.gz -C utilgen_jax"
  # The images' own Python may be older than 3.11: uv brings one.
  on_workers all "python3 -m pip install --quiet --user uv && cd utilgen_jax && python3 -m uv venv --clear --python 3.12 .venv \
&& python3 -m uv pip install --quiet --python .venv/bin/python --constraint launch/constraints.txt --editable '.[tpu]'"
}

run() {
  ((${#arguments[@]})) || fail "run needs the job's arguments after --, such as -- --config=configs/digits.py --workdir=..."
  local quoted
  printf -v quoted '%q ' "${arguments[@]}"
  # With UTILGEN_DISTRIBUTED=1 the workers find each other, once the same command runs on all of them.
  on_workers all "cd utilgen_jax && (setsid nohup env UTILGEN_DISTRIBUTED=1 .venv/bin/python -m utilgen_jax.main ${quoted}>> run.log 2>&1 < /dev/null &)"
}

watch() {
  if [[ -z "$dry_run" ]]; then
    local state
    state="$(tpu describe "$name" '--format=value(state)')"
    if [[ "$state" != READY ]]; then
      fail "the pod is $state, not READY; if it was preempted: delete, create, setup, and the same run again continues"
    fi
  else
    tpu describe "$name" '--format=value(state)'
  fi
  on_workers "$worker" "tail -n 50 -F utilgen_jax/run.log | sed -u \"s/^/\$(hostname): /\""
}

delete() {
  tpu delete "$name" --quiet
}

"$command"
