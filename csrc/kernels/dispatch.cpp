#include <string>

#include "base/error.h"
#include "kernels/kernels.h"

namespace lsg {

const Kernels& KernelsOf(Isa isa) {
  switch (isa) {
    case Isa::kScalar:
      return scalar::Table();
    case Isa::kAvx2:
      return avx2::Table();
    case Isa::kAvx512:
      return avx512::Table();
    case Isa::kVnni:
    case Isa::kBf16:  // no kernels of their own yet
    case Isa::kAmx:
      return vnni::Table();
  }
  throw UnsupportedIsaError("no kernels for ISA level " + std::to_string(static_cast<int>(isa)));
}

const PanelKernels& SelectPanelKernels(const Kernels& kernels, const PanelFormat& format) {
  const bool plain = !format.zero_point && !format.global_scale;
  if (plain && format.scale_dtype == ScaleDtype::kNone) {
    if (format.dtype == Dtype::kBf16) return kernels.bf16;
    if (format.dtype == Dtype::kF16) return kernels.f16;
  }
  if (plain && format.dtype == Dtype::kInt4 && format.scale_rows == 1 && format.scale_k >= kTileK) {
    if (format.scale_dtype == ScaleDtype::kBf16) return kernels.int4_bf16_scales;
    if (format.scale_dtype == ScaleDtype::kF16) return kernels.int4_f16_scales;
    if (format.scale_dtype == ScaleDtype::kF32) return kernels.int4_f32_scales;
  }
  throw FormatError("the engine has no kernel for " + std::string(NameOf(format.dtype)) + " with " +
                    std::string(NameOf(format.scale_dtype)) + " scales" +
                    (format.zero_point ? " and zero points" : "") +
                    (format.global_scale ? " and a global scale" : "") + " yet");
}

}  // namespace lsg
