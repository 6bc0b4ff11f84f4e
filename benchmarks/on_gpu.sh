#!/usr/bin/env bash
# Measure on a GPU what is worth measuring there, the most valuable first, in eight minutes.
# Nothing is downloaded. It has not run on a GPU yet, only dry on a CPU. README.md says more.
#   OUT=FOLDER benchmarks/on_gpu.sh [--again PART ...] [--minutes 8]
#   benchmarks/on_gpu.sh --dry-run
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
if [ -z "${PYTHON:-}" ]; then
    PYTHON=python3
    [ ! -x "$here/../.venv/bin/python" ] || PYTHON=$here/../.venv/bin/python
fi
exec "$PYTHON" "$here/on_gpu.py" "$@"
