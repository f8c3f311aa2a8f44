// Activation functions between up and down, over the Simd of the including level.
#pragma once

#include "kernels/kernels.h"

namespace lsg {
namespace {

// e^x = 2^n · (1 + r + r² · tail): x = n·ln 2 + r, |r| ≤ ln 2 / 2, and a degree-6 polynomial for
// e^r (Cephes expf). Inputs are clamped to ±87, where e^x is still normal. NaN stays NaN: in r.
struct ReducedExp {
  Simd::F r, tail, power;  // power: 2^n
};

inline ReducedExp ReduceExp(Simd::F x) {
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
  // A NaN gives an arbitrary exponent here, but r is NaN already and makes the result one.
  const Simd::I power = Simd::ShiftLeft<23>(Simd::AddInt(Simd::ToInt(n), Simd::Set1Bits(127)));
  return {r, p, Simd::FromBits(power)};
}

// e^x to about 2 ulp.
inline Simd::F Exp(Simd::F x) {
  const ReducedExp e = ReduceExp(x);
  const Simd::F one_plus_r = Simd::Add(e.r, Simd::Set1(1.0f));
  return Simd::Mul(Simd::Fma(e.tail, Simd::Mul(e.r, e.r), one_plus_r), e.power);
}

// (e^2x - 1) / (e^2x + 1), to a few ulp even where it is small: e^2x - 1 is put together as
// 2^n · (e^r - 1) + (2^n - 1), in which nothing cancels that counts.
inline Simd::F Tanh(Simd::F x) {
  const ReducedExp e = ReduceExp(Simd::Add(x, x));
  const Simd::F minus_one = Simd::Fma(e.tail, Simd::Mul(e.r, e.r), e.r);
  const Simd::F numerator = Simd::Fma(minus_one, e.power, Simd::Sub(e.power, Simd::Set1(1.0f)));
  return Simd::Div(numerator, Simd::Add(numerator, Simd::Set1(2.0f)));
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

// limit · tanh(x / limit): x where it is small, never beyond the limit.
inline Simd::F SoftClamp(Simd::F x, float limit) {
  return Simd::Mul(Simd::Set1(limit), Tanh(Simd::Div(x, Simd::Set1(limit))));
}

// 1 / (1 + e^-x)
inline Simd::F Sigmoid(Simd::F x) { return Swish(Simd::Set1(1.0f), x); }

inline Simd::F ApplyGated(const ActivationSpec& spec, Simd::F gate, Simd::F up) {
  const Simd::F limit = Simd::Set1(spec.limit > 0 ? spec.limit : 3.4e38f);
  switch (spec.kind) {
    case Activation::kSilu:
      return Simd::Mul(Swish(gate, gate), up);
    case Activation::kSwigluClamped:
      gate = Simd::Min(limit, gate);
      return Simd::Mul(Swish(gate, gate), Clamp(up, limit));
    case Activation::kSiluClamped:
      return Simd::Mul(Simd::Min(limit, Swish(gate, gate)), Clamp(up, limit));
    case Activation::kSwigluOai:
      gate = Simd::Min(limit, gate);
      return Simd::Mul(Swish(gate, Simd::Mul(gate, Simd::Set1(spec.alpha))),
                       Simd::Add(Clamp(up, limit), Simd::Set1(1.0f)));
    case Activation::kGeluTanh:
      return Simd::Mul(GeluTanh(gate), up);
    case Activation::kRelu2:
      return Simd::Mul(Relu2(gate), up);
    case Activation::kSitu:
      if (spec.limit > 0) up = SoftClamp(up, spec.limit);
      return Simd::Mul(Simd::Mul(SoftClamp(gate, spec.alpha), Sigmoid(gate)), up);
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
