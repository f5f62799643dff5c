#!/usr/bin/env bash
# Runs all GPU tests, then all benchmarks, in one call of at most nine minutes (METHOD.md).
#
#   benches/gpu/run.sh                       everything, the most important sections first
#   benches/gpu/run.sh norms attention       these sections, in this order
#   benches/gpu/run.sh --dry                 every case at tiny shapes on the CPU, without a GPU
#   BUDGET=300 benches/gpu/run.sh            in 300 seconds
#   PYTHON=python3.12 benches/gpu/run.sh     with this Python; otherwise python3
#
# Nothing is installed and nothing is fetched from a network. Wheels of pure Python in
# benches/gpu/wheels/ are put on the path as they are.
set -euo pipefail
cd "$(dirname "$0")/../.."

path="$PWD"
# An installed tinylm is used as it is; the checkout needs its compiled Rust extension.
if compgen -G "python/tinylm/_rust*.so" > /dev/null; then
  path="$PWD/python:$path"
fi
for wheel in benches/gpu/wheels/*.whl; do
  [ -e "$wheel" ] && path="$path:$PWD/$wheel"
done
export PYTHONPATH="$path${PYTHONPATH:+:$PYTHONPATH}"
# A wheel is a zip file: what is read from it is compiled anew in every process without this.
export PYTHONDONTWRITEBYTECODE=1

exec "${PYTHON:-python3}" -m benches.gpu.runner --budget "${BUDGET:-540}" "$@"
