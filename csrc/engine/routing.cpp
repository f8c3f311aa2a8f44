#include "engine/routing.h"

#include <string>

#include "base/error.h"

namespace lsg {

void Routing::Build(const int32_t* topk_ids, const float* topk_weights, int num_tokens, int top_k,
                    int num_experts) {
  const int64_t entries = int64_t{num_tokens} * top_k;
  starts_.assign(num_experts + 1, 0);
  for (int64_t i = 0; i < entries; ++i) {
    const int32_t id = topk_ids[i];
    if (id >= num_experts) {
      throw Error("topk_ids has expert " + std::to_string(id) + " for token " +
                  std::to_string(i / top_k) + ", but the layer has " + std::to_string(num_experts) +
                  " experts");
    }
    if (id >= 0) ++starts_[id + 1];
  }
  experts.clear();
  for (int e = 0; e < num_experts; ++e) {
    if (starts_[e + 1] > 0) experts.push_back({e, starts_[e], starts_[e]});
    starts_[e + 1] += starts_[e];
  }
  tokens.resize(starts_[num_experts]);
  for (int64_t i = 0; i < entries; ++i) {
    const int32_t id = topk_ids[i];
    if (id < 0) continue;
    const auto token = static_cast<int32_t>(i / top_k);
    const int32_t at = starts_[id]++;
    tokens[at] = {token, topk_weights[i]};
  }
  // An expert that a token names twice counts once, with both weights: kernels write each token's
  // row in one go.
  for (ExpertTokens& expert : experts) {
    expert.end = expert.begin;
    for (int32_t at = expert.begin; at < starts_[expert.expert]; ++at) {
      if (expert.end > expert.begin && tokens[expert.end - 1].token == tokens[at].token) {
        tokens[expert.end - 1].weight += tokens[at].weight;
      } else {
        tokens[expert.end++] = tokens[at];
      }
    }
  }
}

}  // namespace lsg
