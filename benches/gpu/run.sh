#!/usr/bin/env bash
# Runs all GPU tests, then all benchmarks, in one call of at most nine minutes (METHOD.md).
#
#   benches/gpu/run.sh                       everything, the most important sections first
#   benches/gpu/run.sh norms attention       these sections, in this order
#   benches/gpu/run.sh --dry --results /tmp/x    every case at tiny shapes, without a GPU
#   BUDGET=300 benches/gpu/run.sh            in 300 seconds
#   PYTHON=python3.12 benches/gpu/run.sh     with this Python; otherwise python3
#
# Nothing is installed and nothing is fetched from a network. Wheels of pure Python in
# benches/gpu/wheels/ are put on the path.
set -euo pipefail
cd "$(dirname "$0")/../.."

path="$PWD"
# An installed tinylm is used as it is; the checkout needs its compiled Rust extension.
if compgen -G "python/tinylm/_rust*.so" > /dev/null; then
  path="$PWD/python:$path"
fi
python=${PYTHON:-python3}
if compgen -G "benches/gpu/wheels/*.whl" > /dev/null; then
  # Unpacked, because Triton reads the source of a kernel from its file.
  for wheel in benches/gpu/wheels/*.whl; do
    "$python" -m zipfile -e "$wheel" benches/gpu/wheels/unpacked
  done
  path="$path:$PWD/benches/gpu/wheels/unpacked"
fi
export PYTHONPATH="$path${PYTHONPATH:+:$PYTHONPATH}"

exec "$python" -m benches.gpu.runner --budget "${BUDGET:-540}" "$@"
