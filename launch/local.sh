#!/usr/bin/env bash
# Makes .venv, installs the package and runs the main job; on the embedded digits, unless the arguments name a config. They
# go to the main job, and what its data and captions need is installed too:
#   bash launch/local.sh --config.data.shots=5 --workdir=runs/five_shots
#   bash launch/local.sh --config=configs/cifar.py
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source launch/environment.sh

ensure_environment ""
extras="$(.venv/bin/python launch/extras.py "$@")"
if [[ -n "$extras" ]]; then
  ensure_environment "$extras"
fi
if [[ " $*" != *" --config="* && " $*" != *" --config "* ]]; then
  set -- --config=configs/digits.py --workdir=runs/digits "$@"
fi
exec .venv/bin/python -m utilgen_jax.main "$@"
