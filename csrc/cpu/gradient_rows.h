// What the backward pass needs to know of every row of weights before it starts: lse, delta, and a correction of lse.
#pragma once

#include "cpu/gradient_blocks.h"

namespace bigmodel::cpu::BIGMODEL_TARGET {

namespace {

template <class T>
float row_dot(std::int64_t width, const T* a, const T* b, std::int64_t b_stride) {
  F32 sum = zero();
  for (std::int64_t j = 0; j < width; j += lanes) {
    const F32 other = b_stride == 1 ? load_up_to(b + j, width - j) : gather(b + j * b_stride, b_stride, width - j);
    sum = fma(load_up_to(a + j, width - j), other, sum);
  }
  return reduce_add(sum);
}

// lse and delta of one block of rows. A row without keys (lse -inf), like the rows that fill up the last block, gets
// the lse +inf.
template <class T>
void prepare_rows(const Gradient<T>& g, std::int64_t b, std::int64_t h, std::int64_t first) {
  const AttentionGradientArgs& args = g.args;
  float* lse = g.rows(g.plan.lse, b, h);
  float* delta = g.rows(g.plan.delta, b, h);
  clear(g.rows(g.plan.shift, b, h) + first, query_block);
  for (std::int64_t i = first; i < first + query_block; ++i) {
    lse[i] = infinity, delta[i] = 0;
    if (i >= g.plan.q_len) continue;
    const float row_lse = *pointer<float>(args.lse, b, h, i);
    if (row_lse == -infinity) continue;
    lse[i] = row_lse;
    if (args.grad_output.data) {
      delta[i] = row_dot(g.plan.value_dim, pointer<const T>(args.output, b, h, i),
                         pointer<const T>(args.grad_output, b, h, i), args.grad_output.stride[3]);
    }
    if (args.grad_lse.data) delta[i] -= *pointer<float>(args.grad_lse, b, h, i);
  }
}

// Beyond this lse, fp32 no longer resolves it well enough: half a unit in its last place changes a weight by 3e-5.
constexpr float resolved_lse = 512.0f;

// shift of a block of rows: additive masks as large as -1e9 leave an lse that has lost the logarithm of the number of
// keys, and weights that would not sum to 1. The weights of such rows are summed once more, and divided by their sum.
template <class T>
void correct_rows(const Gradient<T>& g, const GradientScratch& scratch, std::int64_t b, std::int64_t h,
                  std::int64_t first, std::int64_t queries) {
  const GradientPlan& plan = g.plan;
  const float* lse = g.rows(plan.lse, b, h) + first;
  const auto unresolved = [&](std::int64_t i) { return __builtin_fabsf(lse[i]) > resolved_lse && lse[i] < infinity; };
  bool any = false;
  for (std::int64_t i = 0; i < queries; ++i) any |= unresolved(i);
  if (!any) return;

  load_queries(g, scratch, b, h, first, queries);
  clear(scratch.grad_rows, query_block);
  for (std::int64_t key = 0; key < plan.kv_len; key += key_block) {
    const TileShape tile = tile_shape(g.band, first, queries, key, at_most(key_block, plan.kv_len - key));
    if (tile.empty) continue;
    const KeyRows keys = load_keys(g, scratch, b, h / plan.group, key, tile.keys);
    const auto [empty, factor, rows] = score_tile(g, scratch, tile, keys.key, b, h);
    if (empty) continue;
    weigh<true, false>(g.band, tile, factor, rows, nullptr, scratch.weights, nullptr);
    add_keys(tile, scratch.weights, scratch.grad_rows);
  }
  const TensorView& sinks = g.args.inputs.sinks;
  const F32 sink = set1(sinks.data ? *pointer<float>(sinks, h, 0, 0) : -infinity);
  float* shift = g.rows(plan.shift, b, h) + first;
  for (std::int64_t query = 0; query < queries; query += lanes) {
    const F32 sum = load(scratch.grad_rows + query) + exp((sink - load(lse + query)));
    float correction[lanes];
    store(correction, log(max(set1(__FLT_MIN__), sum)) * set1(-log2_e));
    for (std::int64_t i = query; i < query + lanes; ++i) {
      if (i < queries && unresolved(i)) shift[i] = correction[i - query];
    }
  }
}

}  // namespace

}  // namespace bigmodel::cpu::BIGMODEL_TARGET
