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
  TensorView query, grad_output;  // of the call, or gathered
  float *memory, *slots;          // of its own, and for the partial sums of a split schedule
  bool wants_scores;              // dS, and not dV alone

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

// Rows of a tensor as an lhs with the given stride: in place where they already are that, else packed in `memory`.
template <class T>
Rows<ElementOf<T>> load_rows(const TensorView& view, std::int64_t b, std::int64_t h, std::int64_t first,
                             std::int64_t rows, std::int64_t width, float* memory, std::int64_t stride) {
  using Element = ElementOf<T>;
  const T* source = pointer<const T>(view, b, h, first);
  if (view.dtype == dtype_of<Element> && view.stride[3] == 1 && view.stride[2] == stride && width == stride) {
    return {reinterpret_cast<const Element*>(source), stride};
  }
  Element* const packed = reinterpret_cast<Element*>(memory);
  pack_lhs(rows, width, source, view.stride[2], view.stride[3], packed, stride);
  return {packed, stride};
}

// The same as an rhs, whose rows are the queries: in place where fp32 rows already are that.
template <class T>
const LaneOf<ElementOf<T>>* load_rhs(const TensorView& view, std::int64_t b, std::int64_t h, std::int64_t first,
                                     std::int64_t rows, std::int64_t width, float* memory, std::int64_t stride) {
  if constexpr (is_float<ElementOf<T>>) {
    return load_rows<T>(view, b, h, first, rows, width, memory, stride).data;
  } else {
    auto* const packed = reinterpret_cast<LaneOf<ElementOf<T>>*>(memory);
    pack_rhs(rows, width, pointer<const T>(view, b, h, first), view.stride[2], view.stride[3], packed, stride);
    return packed;
  }
}

// A block of queries or of their gradients, transposed, as an rhs.
template <class T>
LaneOf<ElementOf<T>>* load_columns(const TensorView& view, std::int64_t b, std::int64_t h, std::int64_t first,
                                   std::int64_t queries, std::int64_t width, float* memory) {
  auto* const packed = reinterpret_cast<LaneOf<ElementOf<T>>*>(memory);
  pack_rhs(width, queries, pointer<const T>(view, b, h, first), view.stride[3], view.stride[2], packed, query_block);
  return packed;
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

// The operands that come from keys, with the plan's strides.
template <class Element>
struct KeyOperands {
  Rows<Element> key, value;
  Rows<Element> key_for_query;  // what dQ is made of: the keys in fp32, K^T in bfloat16

  KeyOperands from(std::int64_t row) const {
    return {{key.data + row * key.stride, key.stride},
            {value.data + row * value.stride, value.stride},
            {key_for_query.data + row * (is_float<Element> ? key_for_query.stride : 1), key_for_query.stride}};
  }
};

// The operands that come from a block of queries.
template <class Element>
struct QueryOperands {
  const LaneOf<Element>*query, *query_columns, *grad_output, *grad_output_columns;
};

template <class T>
using KeysOf = KeyOperands<ElementOf<T>>;
template <class T>
using QueriesOf = QueryOperands<ElementOf<T>>;

// Without key_for_query.
template <class T>
KeysOf<T> load_keys(const Gradient<T>& g, const GradientScratch& scratch, std::int64_t b, std::int64_t kv_head,
                    std::int64_t first, std::int64_t keys) {
  const GradientPlan& plan = g.plan;
  const AttentionInputs& inputs = g.args.inputs;
  KeysOf<T> rows{};
  rows.key = load_rows<T>(inputs.key, b, kv_head, first, keys, plan.head_dim, scratch.key, plan.key_stride);
  if (plan.value_dim > 0) {
    rows.value = load_rows<T>(inputs.value, b, kv_head, first, keys, plan.value_dim, scratch.value, plan.value_stride);
  }
  return rows;
}

// The keys of a chunk.
template <class T>
KeysOf<T> load_chunk(const Gradient<T>& g, const GradientScratch& scratch, std::int64_t b, std::int64_t kv_head,
                     const Chunk& chunk) {
  KeysOf<T> keys = load_keys(g, scratch, b, kv_head, chunk.first, chunk.keys);
  if constexpr (is_float<ElementOf<T>>) {
    keys.key_for_query = keys.key;
  } else {
    // Rows take half of the memory for keys, their transpose the other half.
    auto* const columns = reinterpret_cast<ElementOf<T>*>(scratch.key) + g.plan.chunk_keys * g.plan.key_stride;
    keys.key_for_query = {columns, g.plan.chunk_keys};
    if (!g.args.grad_query.data) return keys;
    const TensorView& key = g.args.inputs.key;
    pack_lhs(g.plan.head_dim, chunk.keys, pointer<const T>(key, b, kv_head, chunk.first), key.stride[3], key.stride[2],
             columns, g.plan.chunk_keys);
  }
  return keys;
}

template <class T>
QueriesOf<T> load_queries(const Gradient<T>& g, const GradientScratch& scratch, std::int64_t b, std::int64_t h,
                          std::int64_t first, std::int64_t queries) {
  const GradientPlan& plan = g.plan;
  QueriesOf<T> operands{};
  const TensorView &query = g.query, &grad_output = g.grad_output;
  operands.query = load_rhs<T>(query, b, h, first, queries, plan.head_dim, scratch.query, plan.key_stride);
  operands.query_columns = load_columns<T>(query, b, h, first, queries, plan.head_dim, scratch.query_columns);
  if (plan.value_dim > 0) {
    operands.grad_output =
        load_rhs<T>(grad_output, b, h, first, queries, plan.value_dim, scratch.grad_output, plan.value_stride);
    operands.grad_output_columns =
        load_columns<T>(grad_output, b, h, first, queries, plan.value_dim, scratch.grad_output_columns);
  }
  return operands;
}

// grad_scores = dL/dweights^T of one tile: dP^T = V dO^T, or what was given.
template <class T>
void load_weight_gradients(const Gradient<T>& g, const GradientScratch& scratch, const TileShape& tile,
                           const KeysOf<T>& keys, const QueriesOf<T>& queries, std::int64_t b, std::int64_t h) {
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
    multiply_scores(tile, g.plan.value_dim, keys.value, queries.grad_output_columns, scratch.grad_scores);
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
ScoredTile score_tile(const Gradient<T>& g, const GradientScratch& scratch, const TileShape& tile,
                      const KeysOf<T>& keys, const QueriesOf<T>& queries, std::int64_t b, std::int64_t h) {
  const AttentionInputs& inputs = g.args.inputs;
  RowTerms rows = row_terms(g, tile, b, h);
  // dP's memory is still free: the mask's landing place.
  const MaskEffect effect = load_mask<T>(inputs.mask, b, h, tile, scratch.grad_scores, scratch.rules);
  if (effect == MaskEffect::keeps_none) return {true, 0, rows};
  multiply_scores(tile, g.plan.head_dim, keys.key, queries.query_columns, scratch.weights);
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
bool tile_gradients(const Gradient<T>& g, const GradientScratch& scratch, const TileShape& tile, const KeysOf<T>& keys,
                    const QueriesOf<T>& queries, std::int64_t b, std::int64_t h) {
  const auto [empty, factor, rows] = score_tile(g, scratch, tile, keys, queries, b, h);
  if (empty) return false;
  if (g.wants_scores) load_weight_gradients(g, scratch, tile, keys, queries, b, h);
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
