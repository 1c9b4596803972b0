# Sourced by local.sh and test.sh: makes .venv in the repository root and keeps the package installed in it.
# PYTHON names the interpreter to make it with; otherwise the first one found that is 3.11 or newer.
# launch/constraints.txt says which version of every package, so that it is the same environment on any day.

find_python() {
  local candidate
  for candidate in ${PYTHON:+"$PYTHON"} python3 python3.13 python3.12 python3.11 python; do
    if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then
      echo "$candidate"
      return
    fi
    if [[ "$candidate" == "${PYTHON:-}" ]]; then
      echo "error: PYTHON=$PYTHON is not a Python 3.11 or newer" >&2
      return 1
    fi
  done
  echo "error: found no Python 3.11 or newer; install one, or name it: PYTHON=/path/to/python3.11 bash $0" >&2
  return 1
}

# ensure_environment EXTRA: EXTRA is empty, or an extra of setup.py in brackets such as [test].
ensure_environment() {
  local extra="$1" stamp=".venv/installed$1" python
  if [[ ! -x .venv/bin/pip ]]; then # the last thing that venv makes
    python="$(find_python)"
    echo "making .venv with $("$python" --version)"
    "$python" -m venv .venv
  fi
  # Installed again only when the requirements or their versions are others than at the last install.
  if ! cat setup.py launch/constraints.txt | cmp -s - "$stamp"; then
    echo "installing the package and what it needs into .venv (minutes the first time)"
    .venv/bin/python -m pip install --quiet --disable-pip-version-check --constraint launch/constraints.txt \
      --editable ".$extra"
    cat setup.py launch/constraints.txt >"$stamp"
    echo "installed"
  fi
}
