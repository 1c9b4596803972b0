#!/usr/bin/env bash
# Makes .venv, installs the package and runs the main job on the embedded digits. Arguments go to the main job:
#   bash launch/local.sh --config.data.shots=5 --workdir=runs/five_shots
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source launch/environment.sh

ensure_environment ""
exec .venv/bin/python -m utilgen_jax.main --config=configs/digits.py --workdir=runs/digits "$@"
