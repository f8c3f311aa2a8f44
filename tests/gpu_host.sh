#!/usr/bin/env bash
# Builds lsg on an x86-64 GPU host without network and runs what only such a host can.
#
#   [WAYS="…"] [OUT=DIR] [STEP_OPTIONS…] tests/gpu_host.sh STEP...
#
#   kernels    every kernel on AVX-512, VNNI and beyond
#   doctor     what lsg doctor says
#   power      idle CPU and the price of letting workers sleep, about a minute; POWER holds options of benchmarks/power.py
#   bench      the engine's figures; BENCH holds options of benchmarks/engine.py
#   peers      the engine beside llama.cpp, ik_llama.cpp and kt-kernel, which benchmarks/peers/bundle.sh put into .peers/; a
#              format at a time, those in PEERS
#   convert    how fast lsg-convert is beside kt-kernel's converter, which .peers/kt.txz may hold
#   hand_over  what each way between a CUDA graph and the engine costs; HAND_OVER holds options of benchmarks/hand_over.py
#   proof      stock sglang against lsg-serve, alone and 64 requests at once; PROOF holds options of gpu_proof.py
#   draft      drafting with a model's own last layer, about three minutes
#   served     every model family, many at a time, within SERVED_SECONDS; SERVED holds options of benchmarks/served.py
#   decode     tokens per second of a synthetic Qwen3-30B-A3B against the engine's limit, with a timeline
#   overlap    the timeline of a model with shared experts, about a minute
#   parallel   two GPUs: every way to spread
#   tensor_parallel  two GPUs: decode with one and with two processes, those in TP_SIZES
#
# Expects a g++ and a Python with numpy, pybind11, scikit-build-core and torch. Wheels in .whl/ (pytest and what it needs) and a
# sglang site folder in .gpu/ are unpacked to /tmp/site when they are there; with a wheel of lsg among them, or
# named by WHEEL, nothing is built. JSON goes to OUT, build/gpu by default, and so does a wheel that was built.
set -euo pipefail
cd "$(dirname "$0")/.."
site=/tmp/site
out="${OUT:-build/gpu}"
read -ra ways <<< "${WAYS:-kernels memops hostfunc}"
on_a_gpu=(--attention-backend triton --sampling-backend pytorch --grammar-backend none --mem-fraction-static 0.3)
mkdir -p "$site" "$out"
if [ -f .gpu/site.txz ] && [ ! -d "$site/sglang" ] && [[ " $* " =~ " proof "|" draft "|" served "|" decode "|" overlap "|"parallel " ]]; then
  tar xJf .gpu/site.txz -C "$site"
  for wheel in .gpu/*.whl; do python3 -m zipfile -e "$wheel" "$site"; done
fi
for wheel in .whl/*.whl; do [ -f "$wheel" ] && python3 -m zipfile -e "$wheel" "$site"; done
export PYTHONPATH=$site HF_HUB_OFFLINE=1 PYTHONUNBUFFERED=1
export CMAKE_BUILD_PARALLEL_LEVEL="$(nproc)"
if [ -n "${WHEEL:-}" ]; then
  python3 -m zipfile -e "$WHEEL" "$site"
elif ! compgen -G ".whl/lsg-*.whl" > /dev/null; then
  python3 -m pip wheel --quiet --no-build-isolation --no-deps --no-index --wheel-dir "$out" .
  python3 -m zipfile -e "$out"/lsg-*.whl "$site"
fi

hand_over() {
  # A process for each way: one that hangs its GPU is killed, and the others are still measured.
  for way in "${ways[@]}"; do
    # shellcheck disable=SC2086 # HAND_OVER holds options
    timeout -k 5 "${HAND_OVER_SECONDS:-120}" python3 benchmarks/hand_over.py --scratch /tmp --way "$way" ${HAND_OVER:-} \
      --out "$out/hand_over-$way.json" || echo "$way: failed or killed ($?)"
  done
}

model=/tmp/lsg-30b
make_model() {
  [ -f "$model/experts/manifest.json" ] || PYTHONPATH="$site:tests" python3 -m checkpoints.synthetic "$model"
}

overlap() {
  local shared=/tmp/lsg-shared
  PYTHONPATH="$site:tests" python3 -m checkpoints.synthetic "$shared" --shared --layers 12
  timeout -k 5 "${OVERLAP_SECONDS:-150}" python3 -m lsg.cli bench serve "$shared" --batch 1 --json "$out/overlap.json" \
    --trace "$out/overlap-timeline.json" --cuda-graph-bs-decode 1 --skip-server-warmup "${on_a_gpu[@]}" ||
    echo "overlap: failed or killed ($?)"
}

decode() {
  make_model
  local trace=(--trace "$out/timeline.json")
  for way in "${ways[@]}"; do
    timeout -k 5 "${DECODE_SECONDS:-300}" python3 -m lsg.cli bench serve "$model" --json "$out/decode-$way.json" \
      "${trace[@]}" --hand-over "$way" --cuda-graph-bs-decode 1 2 4 8 16 --skip-server-warmup "${on_a_gpu[@]}" ||
      echo "$way: failed or killed ($?)"
    trace=()
  done
}

# Chrome traces are large: they are packed. What knows no commit gets it.
finish() {
  local file
  for file in "$out"/*timeline.json; do [ ! -f "$file" ] || gzip -f "$file"; done
  for file in "$out"/*.json; do [ ! -f "$file" ] || python3 benchmarks/stamp.py "$file"; done
}
trap finish EXIT

convert() {
  local peer=()
  if [ -f .peers/kt.txz ]; then
    tar xJf .peers/kt.txz -C /tmp
    peer=(--kt-convert /tmp/ktransformers)
  fi
  # shellcheck disable=SC2086 # CONVERT holds options
  python3 benchmarks/convert.py --scratch "${SCRATCH:-/tmp/lsg-convert}" --copy "$out" "${peer[@]}" ${CONVERT:-}
}

peers() {
  for format in ${PEERS:-int4 bf16 int8 fp8 mxfp4}; do
    python3 benchmarks/peers/run.py --llama .peers/llama --ik .peers/ik --kt .peers/kt --build /tmp/lsg-peers \
      --format "$format" --load huge --seconds 0.3 --save "$out/peers-$format.json" || echo "peers $format: failed ($?)"
  done
}

machine="$(python3 -c 'from lsg.runtime.bench.machine import name; print(name())')"

parallel() {
  timeout -k 5 "${WAYS_SECONDS:-240}" python3 tests/integration/gpu_parallel.py --out /tmp/parallel/parallel.json ||
    echo "ways: failed or killed ($?)"
  cp /tmp/parallel/parallel.json "$out"
  tar czf "$out/parallel_logs.tgz" -C /tmp parallel
}

tensor_parallel() {
  make_model
  for size in ${TP_SIZES:-1 2}; do
    # Plain NCCL, as in gpu_parallel.py.
    timeout -k 5 "${DECODE_SECONDS:-150}" python3 -m lsg.cli bench serve "$model" --batch 1 --batch 4 --batch 16 \
      --json "$out/tensor-parallel-$size.json" --tp-size "$size" --cuda-graph-bs-decode 1 4 16 --skip-server-warmup \
      --disable-custom-all-reduce --enforce-disable-flashinfer-allreduce-fusion "${on_a_gpu[@]}" ||
      echo "tensor parallel $size: failed or killed ($?)"
  done
}

for what in "$@"; do
  case $what in
    kernels) python3 -m pytest -q -p no:cacheprovider tests/kernels tests/format ;;
    doctor) python3 -m lsg.cli doctor | tee "$out/doctor-$machine.txt" ;;
    # shellcheck disable=SC2086
    power) python3 benchmarks/power.py --scratch /tmp --out "$out/power-$machine.json" ${POWER:-} ;;
    # shellcheck disable=SC2086 # BENCH and PROOF hold options
    bench) python3 benchmarks/engine.py --scratch /tmp ${BENCH:-} ;;
    convert) convert ;;
    peers) peers ;;
    hand_over) hand_over ;;
    # shellcheck disable=SC2086
    proof)
      timeout -k 5 "${PROOF_SECONDS:-360}" python3 tests/integration/gpu_proof.py --out "$out" ${PROOF:-} ||
        echo "proof: failed or killed ($?)" ;;
    draft)
      # sglang's drafts import every attention backend, among them one that imports deep_gemm and is not used.
      if ! python3 -c 'import deep_gemm' 2> /dev/null; then
        mkdir -p /tmp/standins && touch /tmp/standins/deep_gemm.py
      fi
      # Not to be mistaken for the real one.
      PYTHONPATH="$PYTHONPATH:/tmp/standins" SGLANG_ENABLE_JIT_DEEPGEMM=0 timeout -k 5 "${DRAFT_SECONDS:-240}" python3 tests/integration/gpu_draft.py --out "$out/gpu_draft.json" ||
        echo "draft: failed or killed ($?)" ;;
    served)
      # shellcheck disable=SC2086
      python3 benchmarks/served.py ${SERVED:-} --jobs "$(($(nproc) * 3 / 4))" --timeout 150 \
        --limit "${SERVED_SECONDS:-300}" --logs /tmp/served --out "$out/served_gpu.json" || true
      tar czf "$out/served_logs.tgz" -C /tmp served ;;
    decode) decode ;;
    overlap) overlap ;;
    parallel) parallel ;;
    tensor_parallel) tensor_parallel ;;
    *) echo "unknown step '$what'; the steps are listed at the top of $0" >&2; exit 2 ;;
  esac
done
