#!/usr/bin/env bash
# The same as gpu_check.sh on a TPU VM.
EXTRA=tpu exec bash "$(dirname "${BASH_SOURCE[0]}")/gpu_check.sh" "$@"
