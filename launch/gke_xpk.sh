#!/usr/bin/env bash
# Runs utilgen_jax on TPUs of a GKE cluster by xpk (pip install xpk). See usage below, or --help.
set -euo pipefail

usage() {
  cat <<'USAGE'
usage: bash launch/gke_xpk.sh COMMAND [options] [-- arguments of utilgen_jax.main]

commands, in the order one needs them:
  create   makes a cluster with one slice of TPUs
  run      builds an image of this checkout and starts the job on all workers of the slice. GKE starts it again where it leaves
           with status 143, or its node was preempted
  watch    lists the job and its state
  stop     ends the job
  delete   deletes the cluster

options:
  --cluster=NAME       the cluster's name          (utilgen)
  --workload=NAME      the job's name              (utilgen)
  --zone=ZONE          Cloud zone                  (us-central1-a)
  --project=PROJECT    Cloud project               (gcloud's own default)
  --type=TYPE          xpk's name of the TPUs      (v5litepod-16)
  --image=IMAGE        run: an image on which the package can be installed (python:3.12)
  --storage=NAME       run: of xpk's storages, mounted on every worker; see `xpk storage --help`
  --restarts=N         run: at most so many times  (100)
  --spot               create: cheaper, can be preempted at any time
  --dry_run            prints each command and runs nothing

  bash launch/gke_xpk.sh create --spot
  bash launch/gke_xpk.sh run -- --config=configs/cifar.py --config.data.path=gs://BUCKET/tfds --workdir=gs://BUCKET/runs/cifar
  bash launch/gke_xpk.sh run --storage=data -- --config=configs/cifar.py --config.data.path=/data/tfds --workdir=/data/runs/cifar

The data and the workdir must lie in a bucket that the nodes' service account may write, or on a storage that every worker sees.
USAGE
}

source "$(dirname "${BASH_SOURCE[0]}")/options.sh"
cluster=utilgen workload=utilgen zone=us-central1-a project='' type=v5litepod-16 image=python:3.12 storage='' restarts=100
spot='' dry_run=''
parse_options "create run watch stop delete" "cluster workload zone project type image storage restarts" "spot dry_run" "$@"
[[ "$command" == run || ${#arguments[@]} -eq 0 ]] || fail "only run takes arguments after --"

xpk_call() {
  perform xpk "$@" "--cluster=$cluster" "--zone=$zone" ${project:+"--project=$project"}
}

create() {
  local capacity=--on-demand
  [[ -z "$spot" ]] || capacity=--spot
  xpk_call cluster create "--tpu-type=$type" --num-slices=1 "$capacity"
}

run() {
  ((${#arguments[@]})) || fail "run needs the job's arguments after --, such as -- --config=configs/digits.py --workdir=..."
  # With UTILGEN_DISTRIBUTED=1 the workers find each other. A shell that waited would keep SIGTERM from the job: exec.
  local quoted install="pip install --quiet --constraint launch/constraints.txt --editable .[tpu,gs]"
  printf -v quoted '%q ' "${arguments[@]}"
  xpk_call workload create "--workload=$workload" "--tpu-type=$type" --num-slices=1 \
    "--base-docker-image=$image" "--script-dir=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)" ${storage:+"--storage=$storage"} \
    "--max-restarts=$restarts" --restart-on-exit-codes=143 --termination-grace-period-seconds=30 \
    "--command=$install && exec env UTILGEN_DISTRIBUTED=1 python -m utilgen_jax.main $quoted"
}

watch() {
  xpk_call workload list "--filter-by-job=$workload"
}

stop() {
  xpk_call workload delete "--workload=$workload"
}

delete() {
  xpk_call cluster delete
}

"$command"
