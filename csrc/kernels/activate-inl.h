// Activation functions between up and down, over the Simd of the including level.
#pragma once

#include "kernels/kernels.h"

namespace lsg {
namespace {

// e^x to about 2 ulp: x = n·ln 2 + r, |r| ≤ ln 2 / 2, a degree-6 polynomial for e^r (Cephes expf),
// then 2^n through the exponent bits. Inputs are clamped to ±87, where the result is still normal.
// NaN stays NaN.
inline Simd::F Exp(Simd::F x) {
  x = Simd::Min(Simd::Set1(87.0f), Simd::Max(Simd::Set1(-87.0f), x));
  const Simd::F n = Simd::Round(Simd::Mul(x, Simd::Set1(1.44269504088896341f)));
  Simd::F r = Simd::Fma(n, Simd::Set1(-0.693359375f), x);
  r = Simd::Fma(n, Simd::Set1(2.12194440e-4f), r);
  Simd::F p = Simd::Set1(1.9875691500e-4f);
  p = Simd::Fma(p, r, Simd::Set1(1.3981999507e-3f));
  p = Simd::Fma(p, r, Simd::Set1(8.3334519073e-3f));
  p = Simd::Fma(p, r, Simd::Set1(4.1665795894e-2f));
  p = Simd::Fma(p, r, Simd::Set1(1.6666665459e-1f));
  p = Simd::Fma(p, r, Simd::Set1(5.0000001201e-1f));
  p = Simd::Fma(p, Simd::Mul(r, r), Simd::Add(r, Simd::Set1(1.0f)));
  // A NaN would give an arbitrary exponent here, but p is NaN already and stays so.
  const Simd::I power = Simd::ShiftLeft<23>(Simd::AddInt(Simd::ToInt(n), Simd::Set1Bits(127)));
  return Simd::Mul(p, Simd::FromBits(power));
}

// x · sigmoid(slope · x)
inline Simd::F Swish(Simd::F x, Simd::F slope_x) {
  const Simd::F one = Simd::Set1(1.0f);
  return Simd::Div(x, Simd::Add(one, Exp(Simd::Sub(Simd::Zero(), slope_x))));
}

// 0.5 x (1 + tanh u) = x · sigmoid(2u), u = sqrt(2 / pi) (x + 0.044715 x³).
inline Simd::F GeluTanh(Simd::F x) {
  const Simd::F cubic = Simd::Fma(Simd::Mul(Simd::Mul(x, x), x), Simd::Set1(0.044715f), x);
  return Swish(x, Simd::Mul(cubic, Simd::Set1(1.5957691216057308f)));
}

inline Simd::F Relu2(Simd::F x) {
  const Simd::F positive = Simd::Max(Simd::Zero(), x);
  return Simd::Mul(positive, positive);
}

inline Simd::F Clamp(Simd::F x, Simd::F limit) {
  return Simd::Min(limit, Simd::Max(Simd::Sub(Simd::Zero(), limit), x));
}

inline Simd::F ApplyGated(const ActivationSpec& spec, Simd::F gate, Simd::F up) {
  const Simd::F limit = Simd::Set1(spec.limit > 0 ? spec.limit : 3.4e38f);
  switch (spec.kind) {
    case Activation::kSilu:
      return Simd::Mul(Swish(gate, gate), up);
    case Activation::kSwigluClamped:
      gate = Simd::Min(limit, gate);
      return Simd::Mul(Swish(gate, gate), Clamp(up, limit));
    case Activation::kSwigluOai:
      gate = Simd::Min(limit, gate);
      return Simd::Mul(Swish(gate, Simd::Mul(gate, Simd::Set1(spec.alpha))),
                       Simd::Add(Clamp(up, limit), Simd::Set1(1.0f)));
    case Activation::kGeluTanh:
      return Simd::Mul(GeluTanh(gate), up);
    case Activation::kRelu2:
      return Simd::Mul(Relu2(gate), up);
  }
  return Simd::Zero();
}

inline Simd::F ApplyUngated(const ActivationSpec& spec, Simd::F up) {
  switch (spec.kind) {
    case Activation::kGeluTanh:
      return GeluTanh(up);
    case Activation::kRelu2:
      return Relu2(up);
    default:
      return Swish(up, up);
  }
}

void Activate(const ActivationSpec& spec, bool gated, int unit_rows, const float* gate_up,
              float weight, float* act) {
  const Simd::F scale = Simd::Set1(weight);
  for (int u = 0; u < unit_rows; u += Simd::kLanes) {
    Simd::F value;
    if (gated) {
      const float* gate = gate_up + u / 32 * kBlockN + u % 32;
      value = ApplyGated(spec, Simd::Load(gate), Simd::Load(gate + 32));
    } else {
      value = ApplyUngated(spec, Simd::Load(gate_up + u));
    }
    Simd::Store(act + u, Simd::Mul(value, scale));
  }
}

}  // namespace
}  // namespace lsg
