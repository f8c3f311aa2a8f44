// Tokens by expert: the routing of one batch turned around.
//
// Invariant: experts rise, and an expert's tokens strictly rise, so every sum over them has one
// fixed order.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace lsg {

struct RoutedToken {
  int32_t token;
  float weight;
};

struct ExpertTokens {
  int32_t expert;
  int32_t begin, end;  // into Routing::tokens
};

struct Routing {
  std::vector<RoutedToken> tokens;
  std::vector<ExpertTokens> experts;  // those with at least one token

  // topk_ids, topk_weights: [tokens, top_k]. Negative ids are padding and route nowhere.
  // Throws Error for an id ≥ num_experts. Reuses its memory.
  void Build(const int32_t* topk_ids, const float* topk_weights, int num_tokens, int top_k,
             int num_experts);

  std::span<const RoutedToken> TokensOf(const ExpertTokens& e) const {
    return {tokens.data() + e.begin, static_cast<size_t>(e.end - e.begin)};
  }

 private:
  std::vector<int32_t> starts_;
};

}  // namespace lsg
