// What the backward pass needs to know of every row of weights before it starts: lse, delta, and a correction of lse.
#pragma once

#include "cpu/gradient_blocks.h"

namespace bigmodel::cpu::BIGMODEL_TARGET {

namespace {

// Copies a block of rows to where they lie side by side, if they do not yet.
template <class T>
void gather_rows(const TensorView& from, const TensorView& to, std::int64_t b, std::int64_t h, std::int64_t first,
                 std::int64_t queries) {
  if (from.data == to.data) return;
  for (std::int64_t i = first; i < first + queries; ++i) {
    __builtin_memcpy(pointer<T>(to, b, h, i), pointer<const T>(from, b, h, i), from.size[3] * sizeof(T));
  }
}

// delta = rowsum(grad_output output) of a block of rows, summed in the order in which the tile GEMM sums dP. A row that
// sees a single key then has delta = dP exactly, and gradients of exactly 0, as it should. In bfloat16 that order is
// the instruction's own: the diagonal of the tile GEMM's product, `lanes` rows at a time.
template <class T>
void multiply_delta(const Gradient<T>& g, const GradientScratch& scratch, std::int64_t b, std::int64_t h,
                    std::int64_t first, std::int64_t queries, float* delta) {
  const std::int64_t width = g.plan.value_dim;
  const auto columns = load_columns<T>(g.grad_output, b, h, first, queries, width, scratch.grad_output_columns);
  // Room for a block of rows that is free until the chunks begin.
  const auto rows = load_rows<T>(g.args.output, b, h, first, queries, width, scratch.grad_value, g.plan.value_stride);
  float products[lanes * lanes];
  for (std::int64_t i = 0; i < queries; i += lanes) {
    const std::int64_t count = at_most(lanes, queries - i);
    multiply_by_rows(count, count, packed_k<ElementOf<T>>(width), rows.data + i * rows.stride, rows.stride, columns + i,
                     query_block, products, lanes, false);
    for (std::int64_t j = 0; j < count; ++j) delta[i + j] = products[j * lanes + j];
  }
}

template <class T>
void sum_delta(const Gradient<T>& g, const GradientScratch& scratch, std::int64_t b, std::int64_t h, std::int64_t first,
               std::int64_t queries, float* delta) {
  const TensorView &grad_output = g.grad_output, &output = g.args.output;
  const std::int64_t width = g.plan.value_dim;
  // Room for a block of rows that is free until the chunks begin.
  float *grad_columns = scratch.grad_output_columns, *columns = scratch.grad_value;
  copy_in(width, queries, pointer<const T>(grad_output, b, h, first), grad_output.stride[3], grad_output.stride[2],
          grad_columns, query_block);
  copy_in(width, queries, pointer<const T>(output, b, h, first), 1, output.stride[2], columns, query_block);
  constexpr int vectors = query_block / lanes;
  F32 sums[vectors] = {};
  for (std::int64_t j = 0; j < width; ++j) {
#pragma GCC unroll 16
    for (int v = 0; v < vectors; ++v) {
      const std::int64_t at = j * query_block + v * lanes;
      sums[v] = fma(load(columns + at), load(grad_columns + at), sums[v]);
    }
  }
  for (int v = 0; v < vectors; ++v) store(delta + v * lanes, sums[v]);
}

// lse and delta of one block of rows. A row without keys (lse -inf), like the rows that fill up the last block, gets
// the lse +inf and the delta 0.
template <class T>
void prepare_rows(const Gradient<T>& g, const GradientScratch& scratch, std::int64_t b, std::int64_t h,
                  std::int64_t first, std::int64_t queries) {
  const AttentionGradientArgs& args = g.args;
  float* lse = g.rows(g.plan.lse, b, h) + first;
  float* delta = g.rows(g.plan.delta, b, h) + first;
  clear(g.rows(g.plan.shift, b, h) + first, query_block);
  clear(delta, query_block);
  if (args.grad_output.data) {
    if constexpr (is_float<ElementOf<T>>) {
      sum_delta(g, scratch, b, h, first, queries, delta);
    } else {
      multiply_delta(g, scratch, b, h, first, queries, delta);
    }
  }
  for (std::int64_t i = 0; i < query_block; ++i) {
    lse[i] = i < queries ? *pointer<float>(args.lse, b, h, first + i) : -infinity;
    if (lse[i] == -infinity) {
      lse[i] = infinity, delta[i] = 0;
    } else if (args.grad_lse.data) {
      delta[i] -= *pointer<float>(args.grad_lse, b, h, first + i);
    }
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

  const QueriesOf<T> operands = load_queries(g, scratch, b, h, first, queries);
  clear(scratch.grad_rows, query_block);
  for (std::int64_t key = 0; key < plan.kv_len; key += key_block) {
    const TileShape tile = tile_shape(g.band, first, queries, key, at_most(key_block, plan.kv_len - key));
    if (tile.empty) continue;
    const KeysOf<T> keys = load_keys(g, scratch, b, h / plan.group, key, tile.keys);
    const auto [empty, factor, rows] = score_tile(g, scratch, tile, keys, operands, b, h);
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
