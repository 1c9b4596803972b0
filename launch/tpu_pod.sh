#!/usr/bin/env bash
# Runs utilgen_jax on all workers of a Cloud TPU pod (or a single TPU VM). See usage below, or --help.
set -euo pipefail

usage() {
  cat <<'USAGE'
usage: bash launch/tpu_pod.sh COMMAND [options] [-- arguments of utilgen_jax.main]

commands, in the order one needs them:
  create   makes the pod, or asks for one with --queued
  setup    copies this checkout's last commit to every worker and installs it there
  run      starts the job on all workers; it goes on when this terminal closes
  watch    follows the job's log, of one worker or all
  delete   deletes the pod
  keep     all of it: makes the pod and starts the job, makes the pod again after each preemption, starts the job again
           where it left with status 143, and ends with it. The pod stays.

options:
  --name=NAME          the pod's name              (utilgen)
  --zone=ZONE          Cloud zone                  (us-central1-a)
  --type=TYPE          accelerator type            (v5litepod-16)
  --version=VERSION    TPU VM image                (v2-alpha-tpuv5-lite)
  --project=PROJECT    Cloud project               (gcloud's own default)
  --spot               create: cheaper, can be preempted at any time
  --queued             create: waits in Google's queue until there is a pod; give it to keep and delete too
  --account=EMAIL      create: the service account that the workers are (the project's default one)
  --mount=HOST:/SHARE  setup: an NFS share such as Filestore's, to mount as /mnt/shared on every worker
  --logs=FOLDER        of a log for each worker    (logs, in the job's folder on each; one on a shared disk outlives the pod)
  --worker=N           watch: worker, or all       (0)
  --every=SECONDS      keep: between two looks     (60)
  --retries=N          keep: starts after a failure of the job that is neither a preemption nor bad input (3)
  --dry_run            prints each command and runs nothing

  bash launch/tpu_pod.sh keep --spot --queued -- --config=configs/cifar.py --config.data.path=gs://BUCKET/tfds \
    --workdir=gs://BUCKET/runs/cifar

or step by step:

  bash launch/tpu_pod.sh create --spot
  bash launch/tpu_pod.sh setup
  bash launch/tpu_pod.sh run -- --config=configs/cifar.py --config.data.path=gs://BUCKET/tfds --workdir=gs://BUCKET/runs/cifar
  bash launch/tpu_pod.sh watch --worker=all
  bash launch/tpu_pod.sh delete

The data and the workdir must lie in a bucket that the pod's service account may write, or on a disk that every worker sees, such
as Filestore, with setup's --mount. After a preemption, without keep: delete, create, setup, and the same run again, which continues where it was last saved.
USAGE
}

source "$(dirname "${BASH_SOURCE[0]}")/options.sh"
name=utilgen zone=us-central1-a type=v5litepod-16 version=v2-alpha-tpuv5-lite project='' worker=0 spot='' queued='' dry_run=''
account='' mount='' logs=logs every=60 retries=3
parse_options "create setup run watch delete keep" "name zone type version project worker account mount logs every retries" \
  "spot queued dry_run" "$@"
if [[ "$command" == run || "$command" == keep ]]; then
  ((${#arguments[@]})) || fail "$command needs the job's arguments after --, such as -- --config=configs/digits.py --workdir=..."
else
  [[ ${#arguments[@]} -eq 0 ]] || fail "only run and keep take arguments after --"
fi
# The job's status is in a file of its own for each job, so that keep, started anew, finds it.
job="$(printf '%q ' "${arguments[@]}")"
status_file="status-$(cksum <<<"$job" | cut -d ' ' -f 1)"

# cloud GROUP VERB [more]: one gcloud call, of tpu-vm or queued-resources.
cloud() {
  local group="$1" verb="$2"
  shift 2
  perform gcloud compute tpus "$group" "$verb" "$@" "--zone=$zone" ${project:+"--project=$project"}
}

tpu() {
  cloud tpu-vm "$@"
}

# on_workers WHICH COMMAND: runs a shell command on one worker or on all.
on_workers() {
  tpu ssh "$name" "--worker=$1" "--command=$2"
}

create() {
  # The scope allows all that the account's roles do, such as to write a bucket.
  local more=(--scopes=https://www.googleapis.com/auth/cloud-platform ${account:+"--service-account=$account"} ${spot:+--spot})
  if [[ -n "$queued" ]]; then
    cloud queued-resources create "$name" "--node-id=$name" "--accelerator-type=$type" "--runtime-version=$version" "${more[@]}"
  else
    tpu create "$name" "--accelerator-type=$type" "--version=$version" "${more[@]}"
  fi
}

setup() {
  local archive=/tmp/utilgen_jax.tar.gz
  # The first connection makes and spreads an SSH key; several at once would race for it.
  on_workers 0 true
  perform git -C "$(dirname "${BASH_SOURCE[0]}")/.." archive --format=tar.gz "--output=$archive" HEAD
  tpu scp "$archive" "$name:utilgen_jax.tar.gz" --worker=all
  on_workers all "mkdir -p utilgen_jax && tar -xzf utilgen_jax.tar.gz -C utilgen_jax"
  if [[ -n "$mount" ]]; then
    on_workers all "sudo apt-get -qq install nfs-common && sudo mkdir -p /mnt/shared && sudo chmod a+rwx /mnt/shared \
&& { mountpoint -q /mnt/shared || sudo mount $(printf '%q' "$mount") /mnt/shared; }"
  fi
  # The images' own Python may be older than 3.11: uv brings one.
  on_workers all "python3 -m pip install --quiet --user uv && cd utilgen_jax && python3 -m uv venv --clear --python 3.12 .venv \
&& python3 -m uv pip install --quiet --python .venv/bin/python --constraint launch/constraints.txt --editable '.[tpu,gs]'"
}

run() {
  # With UTILGEN_DISTRIBUTED=1 the workers find each other, once the same command runs on all of them.
  local main="env UTILGEN_DISTRIBUTED=1 .venv/bin/python -m utilgen_jax.main $job"
  on_workers all "cd utilgen_jax && mkdir -p $logs && echo running > $status_file && \
(setsid nohup bash -c $(printf '%q' "$main; echo \$? > $status_file") >> $logs/\$(hostname).log 2>&1 < /dev/null &)"
}

watch() {
  tpu describe "$name" '--format=value(state)'
  if [[ -z "$dry_run" && "$(state)" != ready ]]; then
    fail "the pod is not ready; if it was preempted: delete, create, setup, and the same run again continues"
  fi
  on_workers "$worker" "cd utilgen_jax && tail -n 50 -F $logs/\$(hostname).log | sed -u \"s/^/\$(hostname): /\""
}

delete() {
  if [[ -n "$queued" ]]; then
    cloud queued-resources delete "$name" --force --quiet
  else
    tpu delete "$name" --quiet
  fi
}

# Whether there is a pod: none, waiting, ready, or gone (preempted, and to be deleted).
state() {
  local found
  if [[ -n "$queued" ]]; then
    found="$(cloud queued-resources describe "$name" '--format=value(state.state)' 2>/dev/null)" || found=none
  else
    found="$(tpu describe "$name" '--format=value(state)' 2>/dev/null)" || found=none
  fi
  case "$found" in
    none) echo none ;;
    READY | ACTIVE) echo ready ;;
    PREEMPTED | TERMINATED | STOPPED | SUSPENDING | SUSPENDED | FAILED | DELETING) echo gone ;;
    *) echo waiting ;;
  esac
}

# The job's status on worker 0: running, a number, or nothing where it was never started.
job_status() {
  on_workers 0 "cat utilgen_jax/$status_file 2>/dev/null || true"
}

keep() {
  if [[ -n "$dry_run" ]]; then
    create && setup && run && job_status
    return
  fi
  local failures=0 now
  while true; do
    case "$(state)" in
      none) echo "making the pod"; create || true ;;
      gone) echo "the pod was preempted; making it again"; delete || true ;;
      ready)
        now="$(job_status)" || now=unknown # such as of a pod that is being preempted
        case "$now" in
          '') echo "the pod is ready; starting the job"; setup && run || true ;;
          running | unknown) ;;
          0) echo "the job is done; the pod still costs money: bash launch/tpu_pod.sh delete --name=$name"; return 0 ;;
          143) echo "the job left with status 143, all saved; starting it again"; run || true ;;
          *)
            [[ "$now" != 2 && "$now" != 130 ]] && ((failures++ < retries)) || {
              echo "error: the job ended with status $now; see its log: bash launch/tpu_pod.sh watch --name=$name" >&2
              return 1
            }
            echo "the job ended with status $now; start $failures of $retries more"
            run || true
            ;;
        esac
        ;;
    esac
    sleep "$every"
  done
}

"$command"
