// What every part of attention's backward pass reads and does: rows in and out, once-per-row sums, the scores of a
// tile.
#pragma once

#include "cpu/gradient_plan.h"
#include "cpu/gradient_scores.h"

namespace bigmodel::cpu::BIGMODEL_TARGET {

namespace {

template <class T>
T* pointer(const TensorView& view, std::int64_t i0, std::int64_t i1, std::int64_t i2) {
  return static_cast<T*>(view.data) + i0 * view.stride[0] + i1 * view.stride[1] + i2 * view.stride[2];
}

// What every job reads.
template <class T>
struct Gradient {
  const AttentionGradientArgs& args;
  const GradientPlan& plan;
  Band band;
  float *memory, *slots;  // of its own, and for the partial sums of a split schedule
  bool wants_scores;      // dS, and not dV alone

  float* rows(std::int64_t offset, std::int64_t b, std::int64_t h) const {
    return memory + offset + (b * plan.heads + h) * plan.row_stride;
  }
  float* slot_rows(std::int64_t slot, std::int64_t b, std::int64_t h) const {
    return slots + plan.slot_rows + slot * plan.slot_rows_size + (b * plan.heads + h) * plan.row_stride;
  }
};

// Keys of a chunk, and whether any query of a block sees one of them.
struct Chunk {
  std::int64_t first, keys;
};

Chunk chunk_of(const GradientPlan& plan, std::int64_t chunk) {
  const std::int64_t first = chunk * plan.chunk_keys;
  return {first, at_most(plan.chunk_keys, plan.kv_len - first)};
}

bool sees(const Band& band, std::int64_t first_query, std::int64_t queries, const Chunk& chunk) {
  return band.first_key(first_query) < chunk.first + chunk.keys &&
         band.end_key(first_query + queries - 1) > chunk.first;
}

// Rows of a tensor as fp32 with the given stride: in place where they already are that, else converted into `memory`.
template <class T>
const float* load_rows(const TensorView& view, std::int64_t b, std::int64_t h, std::int64_t first, std::int64_t rows,
                       std::int64_t width, float* memory, std::int64_t stride) {
  const T* source = pointer<const T>(view, b, h, first);
  if (view.dtype == DType::float32 && view.stride[3] == 1 && view.stride[2] == stride && width == stride) {
    return reinterpret_cast<const float*>(source);
  }
  copy_in(rows, width, source, view.stride[2], view.stride[3], memory, stride);
  return memory;
}

template <class T>
void store_rows(const TensorView& view, std::int64_t b, std::int64_t h, std::int64_t first, std::int64_t rows,
                std::int64_t width, const float* source, std::int64_t stride, float factor) {
  const F32 factors = set1(factor);
  for (std::int64_t i = 0; i < rows; ++i) {
    T* row = pointer<T>(view, b, h, first + i);
    for (std::int64_t j = 0; j < width; j += lanes) {
      store_up_to(row + j, load(source + i * stride + j) * factors, width - j);
    }
  }
}

void clear(float* p, std::int64_t count) { __builtin_memset(p, 0, count * sizeof(float)); }

// destination (+)= factor * source
void add_rows(std::int64_t rows, std::int64_t width, const float* source, std::int64_t source_stride, float factor,
              float* destination, std::int64_t stride, bool add) {
  const F32 factors = set1(factor);
  for (std::int64_t i = 0; i < rows; ++i) {
    for (std::int64_t j = 0; j < width; j += lanes) {
      float* at = destination + i * stride + j;
      const F32 sum = add ? load_up_to(at, width - j) : zero();
      store_up_to(at, fma(factors, load(source + i * source_stride + j), sum), width - j);
    }
  }
}

// The rows that a tile multiplies, as fp32 with the plan's strides.
struct KeyRows {
  const float *key, *value;
};
struct QueryRows {
  const float *query, *grad_output;
};

template <class T>
KeyRows load_keys(const Gradient<T>& g, const GradientScratch& scratch, std::int64_t b, std::int64_t kv_head,
                  std::int64_t first, std::int64_t keys) {
  const GradientPlan& plan = g.plan;
  const AttentionInputs& inputs = g.args.inputs;
  KeyRows rows{};
  rows.key = load_rows<T>(inputs.key, b, kv_head, first, keys, plan.head_dim, scratch.key, plan.key_stride);
  if (plan.value_dim > 0) {
    rows.value = load_rows<T>(inputs.value, b, kv_head, first, keys, plan.value_dim, scratch.value, plan.value_stride);
  }
  return rows;
}

// Also lays their transposes out in the scratch memory.
template <class T>
QueryRows load_queries(const Gradient<T>& g, const GradientScratch& scratch, std::int64_t b, std::int64_t h,
                       std::int64_t first, std::int64_t queries) {
  const GradientPlan& plan = g.plan;
  const std::int64_t key_stride = plan.key_stride, value_stride = plan.value_stride;
  QueryRows rows{};
  rows.query = load_rows<T>(g.args.inputs.query, b, h, first, queries, plan.head_dim, scratch.query, key_stride);
  copy_in(plan.head_dim, queries, rows.query, 1, key_stride, scratch.query_columns, query_block);
  if (plan.value_dim > 0) {
    const TensorView& view = g.args.grad_output;
    rows.grad_output = load_rows<T>(view, b, h, first, queries, plan.value_dim, scratch.grad_output, value_stride);
    copy_in(plan.value_dim, queries, rows.grad_output, 1, value_stride, scratch.grad_output_columns, query_block);
  }
  return rows;
}

// grad_scores = dL/dweights^T of one tile: dP^T = V dO^T, or what was given.
template <class T>
void load_weight_gradients(const Gradient<T>& g, const GradientScratch& scratch, const TileShape& tile,
                           const float* value, std::int64_t b, std::int64_t h) {
  const AttentionGradientArgs& args = g.args;
  if (args.grad_weights.data) {
    const TensorView& view = args.grad_weights;
    const T* first = pointer<const T>(view, b, args.average_heads ? 0 : h, tile.first_query);
    copy_in(tile.keys, tile.queries, first + tile.first_key * view.stride[3], view.stride[3], view.stride[2],
            scratch.grad_scores, query_block);
    if (args.average_heads) {
      const F32 share = set1(1.0f / float(g.plan.heads));
      for_each_seen(tile,
                    [&](std::int64_t at) { store(scratch.grad_scores + at, load(scratch.grad_scores + at) * share); });
    }
  } else if (args.grad_output.data) {
    multiply_scores(tile, g.plan.value_dim, value, g.plan.value_stride, scratch.grad_output_columns,
                    scratch.grad_scores);
  } else {
    clear(scratch.grad_scores, key_block * query_block);
  }
}

template <class T>
RowTerms row_terms(const Gradient<T>& g, const TileShape& tile, std::int64_t b, std::int64_t h) {
  const std::int64_t first = tile.first_query;
  return {g.rows(g.plan.lse, b, h) + first, g.rows(g.plan.delta, b, h) + first, g.rows(g.plan.shift, b, h) + first};
}

// A tile's scores, ready for weigh.
struct ScoredTile {
  bool empty;  // the mask leaves nothing of it
  float factor;
  RowTerms rows;
};

template <class T>
ScoredTile score_tile(const Gradient<T>& g, const GradientScratch& scratch, const TileShape& tile, const float* key,
                      std::int64_t b, std::int64_t h) {
  const AttentionInputs& inputs = g.args.inputs;
  RowTerms rows = row_terms(g, tile, b, h);
  // dP's memory is still free: the mask's landing place.
  const MaskEffect effect = load_mask<T>(inputs.mask, b, h, tile, scratch.grad_scores, scratch.rules);
  if (effect == MaskEffect::keeps_none) return {true, 0, rows};
  multiply_scores(tile, g.plan.head_dim, key, g.plan.key_stride, scratch.query_columns, scratch.weights);
  const ScoreRules rules{.scale = inputs.options.scale,
                         .softcap = inputs.options.softcap,
                         .slope = inputs.alibi_slopes.data ? *pointer<float>(inputs.alibi_slopes, b, h, 0) : 0.0f,
                         .mask = effect == MaskEffect::changes ? scratch.rules : nullptr};
  if (!rules.any()) return {false, rules.scale * log2_e, rows};
  apply_rules(rules, g.band, tile, rows.lse, scratch.weights, scratch.slopes);
  rows.lse = nullptr;
  return {false, log2_e, rows};
}

// weights = P^T with dropout, as dV wants it, and grad_scores = dS^T, up to the softcap's derivative, of one tile.
// False when the mask leaves nothing of it.
template <class T>
bool tile_gradients(const Gradient<T>& g, const GradientScratch& scratch, const TileShape& tile, const float* key,
                    const float* value, std::int64_t b, std::int64_t h) {
  const auto [empty, factor, rows] = score_tile(g, scratch, tile, key, b, h);
  if (empty) return false;
  if (g.wants_scores) load_weight_gradients(g, scratch, tile, value, b, h);
  float* grad_scores = g.wants_scores ? scratch.grad_scores : nullptr;
  const Dropout& dropout = g.args.inputs.options.dropout;
  if (dropout.p > 0) {
    load_dropout(dropout, b, h, tile, scratch.rules);
    weigh<true, true>(g.band, tile, factor, rows, scratch.rules, scratch.weights, grad_scores);
  } else if (tile.inside) {
    weigh<false, false>(g.band, tile, factor, rows, nullptr, scratch.weights, grad_scores);
  } else {
    weigh<true, false>(g.band, tile, factor, rows, nullptr, scratch.weights, grad_scores);
  }
  return true;
}

}  // namespace

}  // namespace bigmodel::cpu::BIGMODEL_TARGET
