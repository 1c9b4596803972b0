#!/usr/bin/env bash
# Shows in minutes what this machine's GPU does: makes .venv, installs the package with the cuda extra and runs
# `python -m utilgen_jax.bench device`, to which arguments go. A Python that has JAX for the GPU, and perhaps torch, diffusers, peft and
# transformers to time beside it, is used as it is where PYTHON names it:
#   bash launch/gpu_check.sh --out=h100.json
#   PYTHON=python3 bash launch/gpu_check.sh --minutes=6
#   bash launch/gpu_check.sh --dry_run                           prints the commands and runs nothing
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source launch/environment.sh

EXTRA="${EXTRA:-cuda}" # tpu: of launch/tpu_check.sh
python="${PYTHON:-.venv/bin/python}"
if [[ "${1:-}" == --dry_run ]]; then
  shift
  if [[ -z "${PYTHON:-}" ]]; then
    printf '%q ' .venv/bin/python -m pip install --constraint launch/constraints.txt --editable ".[$EXTRA]"
    echo
  fi
  printf '%q ' "$python" -m utilgen_jax.bench device "$@"
  echo
  exit
fi
if [[ -z "${PYTHON:-}" ]]; then
  ensure_environment "[$EXTRA]"
fi
exec "$python" -m utilgen_jax.bench device "$@"
