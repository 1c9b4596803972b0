# Sourced by gpu.sh and slurm.sbatch.

# rerun COMMAND [more]: runs a command, and again each time that it leaves with status 143, all saved; returns its last status.
# SIGTERM to this script goes to the command, which then is not run again.
rerun() {
  local status stopped='' child=''
  trap 'stopped=yes; kill -TERM "$child" 2>/dev/null || true' TERM
  while true; do
    "$@" &
    child=$!
    [[ -z "$stopped" ]] || kill -TERM "$child" 2>/dev/null || true # it came while the command was started
    status=0
    wait "$child" || status=$?
    # A signal ends `wait`, not the command.
    while kill -0 "$child" 2>/dev/null; do
      status=0
      wait "$child" || status=$?
    done
    if ((status != 143)) || [[ -n "$stopped" ]]; then
      trap - TERM
      return "$status"
    fi
    echo "left with status 143, all saved; running it again" >&2
  done
}
