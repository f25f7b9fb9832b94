// The gradients that sum over whole heads: of an additive mask, dS summed over the dimensions that the mask broadcasts
// over, and of the sinks. Each job owns a tile of the result and walks, in a fixed order, all that is summed into it,
// with the scores computed once more: nothing of size q_len x kv_len is needed but the gradient itself. Both are sums
// over all packed sequences.
#pragma once

#include "cpu/gradient_blocks.h"

namespace bigmodel::cpu::BIGMODEL_TARGET {

namespace {

// The mask's gradient in tiles, and whether a dimension is summed over (the mask has size 1 there).
struct MaskTiles {
  std::int64_t size[max_dims], query_tiles, key_tiles, count;
};

MaskTiles mask_tiles(const TensorView& grad_mask) {
  MaskTiles tiles;
  for (int dim = 0; dim < max_dims; ++dim) tiles.size[dim] = grad_mask.size[dim];
  tiles.query_tiles = ceil_div(tiles.size[2], query_block);
  tiles.key_tiles = ceil_div(tiles.size[3], key_block);
  tiles.count = tiles.size[0] * tiles.size[1] * tiles.query_tiles * tiles.key_tiles;
  return tiles;
}

// What a job walks in one dimension: where its tile is, or everything when the mask broadcasts.
struct Walk {
  std::int64_t begin, end;
};

Walk walk(std::int64_t mask_size, std::int64_t size, std::int64_t begin, std::int64_t step) {
  if (mask_size == 1) return {0, size};
  return {begin, at_most(begin + step, size)};
}

// sums += dS^T of one tile.
template <class T>
void add_tile(const Gradient<T>& g, const GradientScratch& scratch, const TileShape& tile, const QueriesOf<T>& queries,
              std::int64_t b, std::int64_t h, float* sums) {
  const KeysOf<T> keys = load_keys(g, scratch, b, h / g.plan.group, tile.first_key, tile.keys);
  if (!tile_gradients(g, scratch, tile, keys, queries, b, h)) return;
  for_each_seen(tile, [&](std::int64_t at) { store(sums + at, load(sums + at) + load(scratch.grad_scores + at)); });
}

// Sums over the whole tile in the dimensions that the mask broadcasts over, into the first row or column, and writes.
template <class M>
void store_mask_tile(const TensorView& grad_mask, M* destination, std::int64_t keys, std::int64_t queries,
                     float* sums) {
  if (grad_mask.size[3] == 1) {
    for (std::int64_t query = 0; query < query_block; query += lanes) {
      F32 sum = zero();
      for (std::int64_t key = 0; key < key_block; ++key) sum = sum + load(sums + key * query_block + query);
      store(sums + query, sum);
    }
    keys = 1;
  }
  if (grad_mask.size[2] == 1) {
    for (std::int64_t key = 0; key < keys; ++key) {
      F32 sum = zero();
      float* row = sums + key * query_block;
      for (std::int64_t query = 0; query < query_block; query += lanes) sum = sum + load(row + query);
      row[0] = reduce_add(sum);
    }
    queries = 1;
  }
  copy_out_transposed(keys, queries, sums, query_block, destination, grad_mask.size[3]);
}

// What one batch of one call adds to a tile of the mask's gradient that begins at first_query and first_key.
template <class T>
void add_batch(const Gradient<T>& g, const GradientScratch& scratch, const MaskTiles& tiles, std::int64_t b,
               std::int64_t mask_h, std::int64_t first_query, std::int64_t first_key) {
  const Walk heads = walk(tiles.size[1], g.plan.heads, mask_h, 1);
  const Walk rows = walk(tiles.size[2], g.plan.q_len, first_query, query_block);
  const Walk columns = walk(tiles.size[3], g.plan.kv_len, first_key, key_block);
  if (columns.begin >= columns.end) return;
  for (std::int64_t h = heads.begin; h < heads.end; ++h) {
    for (std::int64_t query = rows.begin; query < rows.end; query += query_block) {
      const std::int64_t queries = at_most(query_block, rows.end - query);
      if (!sees(g.band, query, queries, {columns.begin, columns.end - columns.begin})) continue;
      const QueriesOf<T> operands = load_queries(g, scratch, b, h, query, queries);
      for (std::int64_t key = columns.begin; key < columns.end; key += key_block) {
        const TileShape tile = tile_shape(g.band, query, queries, key, at_most(key_block, columns.end - key));
        if (!tile.empty) add_tile(g, scratch, tile, operands, b, h, scratch.mask_sums);
      }
    }
  }
}

// parts(i) is the i-th of the calls that are computed together: one of `batch`, or one per batch index.
template <class T, class Parts>
void mask_tile_gradient(const Parts& parts, std::int64_t count, std::int64_t batch, const GradientScratch& scratch,
                        const TensorView& grad_mask, const MaskTiles& tiles, std::int64_t job) {
  const std::int64_t first_key = job % tiles.key_tiles * key_block;
  const std::int64_t first_query = job / tiles.key_tiles % tiles.query_tiles * query_block;
  const std::int64_t head = job / (tiles.key_tiles * tiles.query_tiles);
  const std::int64_t mask_b = head / tiles.size[1], mask_h = head % tiles.size[1];
  const Walk batches = walk(tiles.size[0], batch, mask_b, 1);

  clear(scratch.mask_sums, key_block * query_block);
  for (std::int64_t b = batches.begin; b < batches.end; ++b) {
    const Gradient<T> g = parts(count == 1 ? 0 : b);
    add_batch(g, scratch, tiles, count == 1 ? b : 0, mask_h, first_query, first_key);
  }

  const std::int64_t row = (mask_b * tiles.size[1] + mask_h) * tiles.size[2] + first_query;
  const std::int64_t at = row * tiles.size[3] + first_key;
  const std::int64_t keys = at_most(key_block, tiles.size[3] - first_key);
  const std::int64_t queries = at_most(query_block, tiles.size[2] - first_query);
  if (grad_mask.dtype == DType::float32) {
    store_mask_tile(grad_mask, static_cast<float*>(grad_mask.data) + at, keys, queries, scratch.mask_sums);
  } else {
    store_mask_tile(grad_mask, static_cast<T*>(grad_mask.data) + at, keys, queries, scratch.mask_sums);
  }
}

// d lse / d sink = exp(sink - lse) in every row, and the output shrinks by as much: -exp(sink - lse) delta, summed.
template <class T>
F32 sink_gradient(const Gradient<T>& g, float sink, std::int64_t h, F32 sum) {
  for (std::int64_t b = 0; b < g.plan.batch; ++b) {
    const float* lse = g.rows(g.plan.lse, b, h);
    const float* shift = g.rows(g.plan.shift, b, h);
    const float* delta = g.rows(g.plan.delta, b, h);
    for (std::int64_t i = 0; i < g.plan.row_stride; i += lanes) {
      const F32 weight = exp2(fma(set1(sink) - load(lse + i), set1(log2_e), load(shift + i)));
      sum = fnma(weight, load(delta + i), sum);
    }
  }
  return sum;
}

}  // namespace

}  // namespace bigmodel::cpu::BIGMODEL_TARGET
