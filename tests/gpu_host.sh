#!/usr/bin/env bash
# Builds lsg on an x86-64 GPU host without network and runs what only such a host can: every kernel on AVX-512, VNNI and
# beyond, the engine's figures, and stock sglang against lsg-serve on a GPU.
#
#   [BENCH="OPTIONS OF benchmarks/engine.py"] tests/gpu_host.sh [kernels] [bench] [proof]
#
# Expects a g++ and a Python with numpy, pybind11, scikit-build-core and torch. Wheels in .whl/ (pytest and what it needs) and a
# sglang site folder in .gpu/ are unpacked to /tmp/site when they are there.
set -euo pipefail
cd "$(dirname "$0")/.."
site=/tmp/site
mkdir -p "$site"
if [ -f .gpu/site.txz ] && [[ " $* " == *" proof "* ]]; then
  tar xJf .gpu/site.txz -C "$site"
  for wheel in .gpu/*.whl; do python3 -m zipfile -e "$wheel" "$site"; done
fi
for wheel in .whl/*.whl; do [ -f "$wheel" ] && python3 -m zipfile -e "$wheel" "$site"; done
export PYTHONPATH=$site HF_HUB_OFFLINE=1 PYTHONUNBUFFERED=1
export CMAKE_BUILD_PARALLEL_LEVEL="$(nproc)"
python3 -m pip install --quiet --no-build-isolation --no-deps --no-index --upgrade --target "$site" .
for what in "$@"; do
  case $what in
    kernels) python3 -m pytest -q -p no:cacheprovider tests/kernels tests/format ;;
    # shellcheck disable=SC2086 # BENCH holds options
    bench) python3 benchmarks/engine.py --scratch /tmp/lsg-bench ${BENCH:-} ;;
    proof) python3 tests/integration/gpu_proof.py --out "${OUT:-build/gpu-proof}" ;;
    *) echo "unknown step '$what': kernels, bench or proof" >&2; exit 2 ;;
  esac
done
