#!/usr/bin/env bash
# Makes .venv, installs the test extra, checks lint and types and runs the tests. Arguments go to pytest:
#   bash launch/test.sh                    everything
#   bash launch/test.sh -m 'not slow'      the fast part
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source launch/environment.sh

ensure_environment "[test]"
.venv/bin/ruff check .
.venv/bin/mypy
exec .venv/bin/python -m pytest --numprocesses=2 --dist=worksteal "$@"
