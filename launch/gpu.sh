#!/usr/bin/env bash
# Makes .venv, installs the package with the cuda extra and runs the main job on all GPUs of this machine, as one process; again
# where it leaves with status 143. Arguments go to the job; CUDA_VISIBLE_DEVICES chooses GPUs:
#   bash launch/gpu.sh --config=configs/cifar.py --workdir=runs/cifar
#   bash launch/gpu.sh --dry_run --config=configs/cifar.py         prints the commands and runs nothing
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source launch/environment.sh
source launch/rerun.sh

if [[ "${1:-}" == --dry_run ]]; then
  shift
  printf '%q ' .venv/bin/python -m pip install --constraint launch/constraints.txt --editable '.[cuda]'
  echo
  printf '%q ' .venv/bin/python -m utilgen_jax.main "$@"
  echo
  exit
fi
ensure_environment "[cuda]"
extras="$(.venv/bin/python launch/extras.py "$@")"
if [[ -n "$extras" ]]; then
  ensure_environment "$extras"
fi
rerun .venv/bin/python -m utilgen_jax.main "$@"
