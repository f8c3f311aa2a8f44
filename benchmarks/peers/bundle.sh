#!/bin/sh
# Collects what run.py needs of the peers into one small directory, for a machine without a network:
#   benchmarks/peers/bundle.sh LLAMA IK KT_WHEEL OUT
# LLAMA, IK: checkouts; KT_WHEEL: kt-kernel's wheel for that machine's Python. There, run
#   python benchmarks/peers/run.py --llama OUT/llama --ik OUT/ik --kt OUT/kt
set -eu
test $# -eq 4 || { sed -n '2,5s/^# //p' "$0" >&2; exit 2; }
out=$4
mkdir -p "$out/kt"
for peer in llama ik; do
  from=$1; shift
  mkdir -p "$out/$peer"
  # The CPU's part of ggml; the other backends are most of its size.
  (cd "$from" && find ggml -type f ! -path '*/src/ggml-[!c]*/*' ! -path '*/src/ggml-cuda/*' ! -path '*/src/ggml-cann/*' \
    ! -path '*/vulkan-shaders/*' ! -path '*/arch/[!x]*/*' ! -path '*/kleidiai/*' ! -path '*/spacemit/*' \
    ! -name '*.cu' ! -name '*.m' ! -name '*.metal' | tar cf - -T -) | tar xf - -C "$out/$peer"
done
python3 -m zipfile -e "$1" "$out/kt.all"
mv "$out"/kt.all/kt_kernel.libs "$out/kt/"
mkdir -p "$out/kt/kt_kernel"
# The builds for processors that have AVX-512 but neither BF16 nor AMX stay behind.
for variant in amx avx512_bf16 avx2; do
  mv "$out"/kt.all/kt_kernel/_kt_kernel_ext_$variant.*.so "$out/kt/kt_kernel/"
done
rm -r "$out/kt.all"
du -sh "$out"
