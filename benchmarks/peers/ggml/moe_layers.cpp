// MoE layers in ggml, as llama.cpp builds them: mul_mat_id for gate, up and down, experts chosen at
// random.
//
//   moe_layers TYPE REPACK HIDDEN INTERMEDIATE EXPERTS TOP_K LAYERS THREADS SECONDS
//
// Each number of tokens on the standard input gives a line of JSON with the seconds of a layer and
// the bytes of the experts that were chosen, counted once. A graph has all layers, one after
// another, so the weights are cold and starting the threads costs little.
#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <iostream>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "ggml-alloc.h"
#include "ggml-backend.h"
#include "ggml.h"
#ifdef LSG_PEER_IK
#include "iqk_quantize.h"
#else
#include "ggml-cpu.h"
#endif

#ifdef LSG_PEER_IK
// Attention is left out of the build (most of its time), but ggml.c still names these two.
extern "C" {
void iqk_fa_work_buffer_size() { std::abort(); }
void iqk_flash_attn_noalibi() { std::abort(); }
}
#endif

namespace {

constexpr size_t kMaxNodes = 4096;

struct Shape {
  int64_t hidden, intermediate, experts, top_k;
};

struct Layer {
  ggml_tensor *gate, *up, *down;
};

[[noreturn]] void Fail(const std::string& message) {
  std::fprintf(stderr, "moe_layers: %s\n", message.c_str());
  std::exit(1);
}

ggml_context* Context(size_t tensors) {
  return ggml_init({tensors * ggml_tensor_overhead() + ggml_graph_overhead_custom(kMaxNodes, false),
                    nullptr, true});
}

ggml_type TypeOf(const std::string& name) {
  for (int type = 0; type < GGML_TYPE_COUNT; ++type) {
    const char* found = ggml_type_name(static_cast<ggml_type>(type));
    if (found != nullptr && name == found) return static_cast<ggml_type>(type);
  }
  Fail("this ggml has no type " + name);
}

// Random values of the type, the same for every expert: speed does not depend on them.
std::vector<char> Values(const ggml_tensor* tensor) {
  const int64_t columns = tensor->ne[0], rows = tensor->ne[1];
  std::minstd_rand random(1);
  std::vector<float> floats(columns * rows);
  for (float& value : floats) value = (static_cast<float>(random() % 2001) - 1000) / 50000;
  std::vector<char> one(ggml_row_size(tensor->type, columns) * rows);
#ifdef LSG_PEER_IK
  ggml_quantize_chunk(tensor->type, floats.data(), one.data(), 0, rows, columns, nullptr, nullptr);
#else
  ggml_quantize_chunk(tensor->type, floats.data(), one.data(), 0, rows, columns, nullptr);
#endif
  std::vector<char> all(ggml_nbytes(tensor));
  for (int64_t expert = 0; expert < tensor->ne[2]; ++expert) {
    std::memcpy(all.data() + expert * one.size(), one.data(), one.size());
  }
  return all;
}

#ifndef LSG_PEER_IK
// Where llama.cpp would put the weight: the first extra buffer type whose repacked form can
// multiply it.
ggml_backend_buffer_type_t BufferTypeFor(const Shape& shape, ggml_type type, bool repack) {
  ggml_backend_dev_t device = ggml_backend_dev_by_type(GGML_BACKEND_DEVICE_TYPE_CPU);
  const auto extra =
      reinterpret_cast<ggml_backend_dev_get_extra_bufts_t>(ggml_backend_reg_get_proc_address(
          ggml_backend_dev_backend_reg(device), "ggml_backend_dev_get_extra_bufts"));
  if (repack && extra != nullptr) {
    for (ggml_backend_buffer_type_t* buffer_type = extra(device);
         buffer_type != nullptr && *buffer_type != nullptr; ++buffer_type) {
      ggml_context* context = Context(8);
      ggml_tensor* weight =
          ggml_new_tensor_3d(context, type, shape.hidden, shape.intermediate, shape.experts);
      ggml_tensor* input =
          ggml_new_tensor_3d(context, GGML_TYPE_F32, shape.hidden, shape.top_k, 512);
      ggml_tensor* ids = ggml_new_tensor_2d(context, GGML_TYPE_I32, shape.top_k, 512);
      ggml_tensor* product = ggml_mul_mat_id(context, weight, input, ids);
      weight->buffer = ggml_backend_buft_alloc_buffer(*buffer_type, 0);
      const bool supported = ggml_backend_dev_supports_op(device, product);
      ggml_backend_buffer_free(weight->buffer);
      ggml_free(context);
      if (supported) return *buffer_type;
    }
  }
  return ggml_backend_cpu_buffer_type();
}
#endif

ggml_tensor* Forward(ggml_context* context, const Layer& layer, ggml_tensor* x, ggml_tensor* ids,
                     ggml_tensor* weights, const Shape& shape, int64_t tokens) {
  ggml_tensor* input = ggml_reshape_3d(context, x, shape.hidden, 1, tokens);
#ifdef LSG_PEER_IK
  ggml_tensor* act =
      ggml_moe_up_gate(context, layer.up, layer.gate, input, ids, GGML_UNARY_OP_SILU);
  ggml_tensor* out = ggml_mul_mat_id(context, layer.down, act, ids);
  return ggml_mul_multi_add(context, out, weights);
#else
  ggml_tensor* up = ggml_mul_mat_id(context, layer.up, input, ids);
  ggml_tensor* gate = ggml_mul_mat_id(context, layer.gate, input, ids);
  ggml_tensor* act = ggml_swiglu_split(context, gate, up);
  ggml_tensor* out = ggml_mul(context, ggml_mul_mat_id(context, layer.down, act, ids), weights);
  ggml_tensor* sum = nullptr;
  for (int64_t k = 0; k < shape.top_k; ++k) {
    ggml_tensor* part =
        ggml_view_2d(context, out, shape.hidden, tokens, out->nb[2], k * out->nb[1]);
    sum = sum == nullptr ? part : ggml_add(context, sum, part);
  }
  return sum;
#endif
}

// Distinct experts for each token; returns how many of all were chosen.
int64_t Choose(std::minstd_rand& random, const Shape& shape, int64_t tokens, ggml_tensor* ids) {
  std::vector<int32_t> order(shape.experts), chosen(tokens * shape.top_k);
  std::iota(order.begin(), order.end(), 0);
  std::vector<bool> seen(shape.experts);
  for (int64_t token = 0; token < tokens; ++token) {
    for (int64_t k = 0; k < shape.top_k; ++k) {
      std::swap(order[k], order[k + random() % (shape.experts - k)]);
      chosen[token * shape.top_k + k] = order[k];
      seen[order[k]] = true;
    }
  }
  ggml_backend_tensor_set(ids, chosen.data(), 0, chosen.size() * sizeof(int32_t));
  return std::count(seen.begin(), seen.end(), true);
}

void Measure(ggml_backend_t backend, const std::vector<Layer>& layers, const Shape& shape,
             int64_t tokens, double seconds) {
  const int64_t count = static_cast<int64_t>(layers.size());
  ggml_context* input_context = Context(2 + layers.size());
  ggml_tensor* x = ggml_new_tensor_2d(input_context, GGML_TYPE_F32, shape.hidden, tokens);
  ggml_tensor* weights = ggml_new_tensor_3d(input_context, GGML_TYPE_F32, 1, shape.top_k, tokens);
  std::vector<ggml_tensor*> ids;
  for (int64_t i = 0; i < count; ++i) {
    ids.push_back(ggml_new_tensor_2d(input_context, GGML_TYPE_I32, shape.top_k, tokens));
  }
  ggml_backend_buffer_t inputs = ggml_backend_alloc_ctx_tensors(input_context, backend);
  std::vector<float> values(shape.hidden * tokens);
  std::minstd_rand random(2);
  for (float& value : values) value = (static_cast<float>(random() % 2001) - 1000) / 1000;
  ggml_backend_tensor_set(x, values.data(), 0, ggml_nbytes(x));
  const std::vector<float> shares(shape.top_k * tokens, 1.0f / static_cast<float>(shape.top_k));
  ggml_backend_tensor_set(weights, shares.data(), 0, ggml_nbytes(weights));

  ggml_context* context = Context(kMaxNodes);
  ggml_cgraph* graph = ggml_new_graph_custom(context, kMaxNodes, false);
  ggml_tensor* last = nullptr;
  for (int64_t i = 0; i < count; ++i) {
    ggml_tensor* out = Forward(context, layers[i], x, ids[i], weights, shape, tokens);
    // Joined, so that nothing is left out and buffers can be used again.
    last = last == nullptr ? out : ggml_add(context, last, out);
  }
  ggml_build_forward_expand(graph, last);
  ggml_gallocr_t allocator = ggml_gallocr_new(ggml_backend_get_default_buffer_type(backend));
  if (!ggml_gallocr_alloc_graph(allocator, graph)) Fail("no memory for the graph");

  const int64_t expert_bytes =
      static_cast<int64_t>(ggml_nbytes(layers[0].gate) + ggml_nbytes(layers[0].up) +
                           ggml_nbytes(layers[0].down)) /
      shape.experts;
  std::vector<double> times;
  double chosen = 0, spent = 0;
  bool warm = false;
  while (times.empty() || (spent < seconds && times.size() < 10000)) {
    int64_t unique = 0;
    for (ggml_tensor* each : ids) unique += Choose(random, shape, tokens, each);
    const auto begin = std::chrono::steady_clock::now();
    if (ggml_backend_graph_compute(backend, graph) != GGML_STATUS_SUCCESS) Fail("the graph failed");
    const double took =
        std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
    // The first graph touches memory for the first time; a long one hardly notices.
    if (!warm && took < seconds) {
      warm = true;
      continue;
    }
    spent += took;
    times.push_back(took / static_cast<double>(count));
    chosen += static_cast<double>(unique) / static_cast<double>(count);
  }
  std::vector<float> result(1);
  ggml_backend_tensor_get(last, result.data(), 0, sizeof(float));
  if (!std::isfinite(result[0])) Fail("the result is not finite");
  std::sort(times.begin(), times.end());
  std::printf(
      "{\"batch\": %ld, \"seconds\": %.9g, \"low\": %.9g, \"high\": %.9g, \"bytes\": %.9g}\n",
      static_cast<long>(tokens), times[times.size() / 2], times.front(), times.back(),
      chosen / static_cast<double>(times.size()) * static_cast<double>(expert_bytes));
  std::fflush(stdout);
  ggml_gallocr_free(allocator);
  ggml_free(context);
  ggml_backend_buffer_free(inputs);
  ggml_free(input_context);
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 10) Fail("see the head of moe_layers.cpp for the arguments");
  const ggml_type type = TypeOf(argv[1]);
  const bool repack = std::string(argv[2]) == "1";
  const Shape shape{std::atoll(argv[3]), std::atoll(argv[4]), std::atoll(argv[5]),
                    std::atoll(argv[6])};
  const int num_layers = std::atoi(argv[7]), threads = std::atoi(argv[8]);
  const double seconds = std::atof(argv[9]);

  ggml_backend_t backend = ggml_backend_cpu_init();
  ggml_backend_cpu_set_n_threads(backend, threads);
#ifdef LSG_PEER_IK
  ggml_backend_buffer_type_t buffer_type = ggml_backend_get_default_buffer_type(backend);
#else
  ggml_backend_buffer_type_t buffer_type = BufferTypeFor(shape, type, repack);
  std::fprintf(stderr, "weights in %s\n", ggml_backend_buft_name(buffer_type));
#endif
  std::vector<Layer> layers;
  for (int i = 0; i < num_layers; ++i) {
    ggml_context* context = Context(3);
    const auto matrix = [&](int64_t columns, int64_t rows) {
      return ggml_new_tensor_3d(context, type, columns, rows, shape.experts);
    };
    layers.push_back({matrix(shape.hidden, shape.intermediate),
                      matrix(shape.hidden, shape.intermediate),
                      matrix(shape.intermediate, shape.hidden)});
    if (ggml_backend_alloc_ctx_tensors_from_buft(context, buffer_type) == nullptr)
      Fail("no memory for the weights");
    static const std::vector<char> gate = Values(layers[0].gate), down = Values(layers[0].down);
    ggml_backend_tensor_set(layers.back().gate, gate.data(), 0, gate.size());
    ggml_backend_tensor_set(layers.back().up, gate.data(), 0, gate.size());
    ggml_backend_tensor_set(layers.back().down, down.data(), 0, down.size());
#ifdef LSG_PEER_IK
    if (repack) {
      for (ggml_tensor* tensor : {layers.back().gate, layers.back().up, layers.back().down}) {
        iqk_repack_tensor(tensor);
      }
    }
#endif
  }
  for (int64_t tokens; std::cin >> tokens;) Measure(backend, layers, shape, tokens, seconds);
}
