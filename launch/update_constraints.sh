#!/usr/bin/env bash
# Writes launch/constraints.txt anew: one version of every package that setup.py and all its extras bring, for
# Python 3.11 and later. Installs nothing outside of a temporary folder. Arguments go to uv, instead of --upgrade:
#   bash launch/update_constraints.sh                            the newest versions within setup.py's ranges
#   bash launch/update_constraints.sh --upgrade-package=optax    that of optax; the others stay, as far as they can
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source launch/environment.sh

temporary="$(mktemp -d)"
trap 'rm -rf "$temporary"' EXIT
python="$(find_python)"
"$python" -m venv "$temporary/venv"
"$temporary/venv/bin/python" -m pip install --quiet --disable-pip-version-check uv
# fewest: where a package's newest version is not for Python 3.11, an older one is taken for all, and not one for each.
"$temporary/venv/bin/uv" pip compile setup.py --all-extras --universal --python-version 3.11 --fork-strategy fewest \
  --python "$temporary/venv/bin/python" --custom-compile-command "bash launch/update_constraints.sh" \
  --quiet --no-annotate --output-file launch/constraints.txt "${@:---upgrade}"
echo "wrote launch/constraints.txt; now: bash launch/test.sh"
