// The matrix products of linear and feed_forward: block(m x n) = lhs(m x k) rhs(k x n), up to three products at a time
// over the same m and n, handed to an epilogue while they are in cache.
//
// Blocking as in Goto and van de Geijn, "Anatomy of high-performance matrix multiplication" (2008): the micro-kernel
// (isa/tile_gemm.h) runs over a panel of the rhs, `depth` x tile_columns, which stays in L1, and a block of the lhs,
// rows x depth, which stays in L2. The rhs is packed once, by all threads, a chunk of columns at a time (or long ago,
// by linear_pack); each job packs the lhs block it needs, keeps its block of sums in fp32 and takes the next job when
// it is done. Sums run over k in an order that depends on k alone: results do not depend on threads or on other rows.
//
// Few rows (decoding) are bound by reading the rhs once: few_rows.h takes them, without packing, or, where the rhs is
// in cache, swapped_product.h.
#pragma once

#include "bigmodel/parallel.h"
#include "cpu/epilogue.h"
#include "cpu/few_rows.h"
#include "cpu/isa/pack.h"
#include "cpu/jobs.h"
#include "cpu/matrix.h"
#include "cpu/operands.h"
#include "cpu/product.h"
#include "cpu/swapped_product.h"

namespace bigmodel::cpu::BIGMODEL_TARGET {

// For 32 KB of L1 and 512 KB of L2 (Zen 3): a panel of 256 x 16 fp32 fills half of L1, a block of 96 x 256 a fifth of
// L2. Measured there: blocks of 192 rows are no faster; narrower blocks are slower, since each packs its lhs anew (256
// columns: 8 % less than 512), although the sums of 96 x 1024 leave L2; prefetching panels or the lhs gains nothing.
inline constexpr std::int64_t most_block_rows = 96;
inline constexpr std::int64_t most_block_columns = 1024;
// Columns of a block that are handed to the epilogue at a time, while the next are not begun: its reading and writing
// of memory, asked for during the products, then hides behind them.
inline constexpr std::int64_t most_epilogue_columns = 256;
// A chunk of packed rhs: in L3 where k allows, and never so narrow that packing the lhs again for each chunk shows.
inline constexpr std::int64_t chunk_bytes = std::int64_t{16} << 20;
inline constexpr std::int64_t least_chunk_columns = 256;
inline constexpr std::int64_t jobs_per_worker = 8;

template <class T>
using ElementLayout = Layout<ElementOf<T>>;
template <class T>
using Lane = LaneOf<ElementOf<T>>;

// Lanes of one packed rhs panel of all k.
template <class T>
BIGMODEL_INLINE std::int64_t panel_lanes(std::int64_t k) {
  return rhs_rows<ElementOf<T>>(k) * tile_columns;
}

template <class T>
BIGMODEL_INLINE std::int64_t packed_lanes(std::int64_t k, std::int64_t n) {
  return round_up(n, tile_columns) / tile_columns * panel_lanes<T>(k);
}

// How products are computed: in blocks, or one of two ways for few rows.
enum class Route { blocked, few_rows, swapped };

template <class T>
BIGMODEL_INLINE Route route_of(const Product<T>* product, int products) {
  if (all_of(product, products, takes_swapped<T>)) return Route::swapped;
  return all_of(product, products, takes_few_rows<T>) ? Route::few_rows : Route::blocked;
}

template <class T>
struct Gemm {
  std::int64_t m, n;
  Product<T> product[most_products];
  int products;
  Route route;
  int workers;
  std::int64_t block_rows, epilogue_columns, block_columns, chunk_columns;
  std::int64_t depth[most_products], lhs_stride, sums_stride;
  Lane<T>* chunk[most_products];  // a chunk of packed rhs, where it was not packed before
  ElementOf<T>* lhs_blocks;       // one per worker
  float* sums;                    // one per worker
};

template <class T>
BIGMODEL_INLINE std::int64_t sums_size(const Gemm<T>& gemm) {
  return gemm.products * gemm.block_rows * gemm.sums_stride + worker_gap;
}
template <class T>
BIGMODEL_INLINE std::int64_t lhs_block_size(const Gemm<T>& gemm) {
  return gemm.block_rows * gemm.lhs_stride +
         worker_gap * std::int64_t{sizeof(float)} / std::int64_t{sizeof(ElementOf<T>)};
}

// Blocks as large as the caches like, smaller where the threads would not share them out evenly.
template <class T>
static void choose_blocks(Gemm<T>& gemm) {
  std::int64_t packed_bytes = 0, work = 0;
  for (int p = 0; p < gemm.products; ++p) {
    const Product<T>& product = gemm.product[p];
    gemm.depth[p] = depth_for<T>(product.lhs.columns);
    if (!product.packed_rhs) packed_bytes += panel_lanes<T>(product.lhs.columns) * std::int64_t{sizeof(Lane<T>)};
    work += gemm.m * gemm.n * product.lhs.columns;
  }
  std::int64_t columns = round_up(gemm.n, tile_columns);
  if (packed_bytes > 0) {
    const std::int64_t fitting = chunk_bytes / packed_bytes * tile_columns;
    columns = even_part(columns, fitting > least_chunk_columns ? fitting : least_chunk_columns, tile_columns);
  }
  gemm.chunk_columns = columns;
  gemm.block_columns = even_part(columns, most_block_columns, tile_columns);
  constexpr std::int64_t rows = ElementLayout<T>::rows;
  gemm.block_rows = even_part(gemm.m, most_block_rows / rows * rows, rows);
  gemm.workers = workers_for(work, product_worth_a_thread);
  const auto jobs = [&]() BIGMODEL_INLINE_LAMBDA {
    return parts_of(gemm.m, gemm.block_rows) * parts_of(columns, gemm.block_columns);
  };
  while (gemm.workers > 1 && jobs() < gemm.workers * jobs_per_worker) {
    if (gemm.block_columns > 8 * tile_columns) {
      gemm.block_columns = round_up(gemm.block_columns / 2, tile_columns);
    } else if (gemm.block_rows > 4 * rows) {
      gemm.block_rows = round_up(gemm.block_rows / 2, rows);
    } else if (gemm.block_columns > 2 * tile_columns) {
      gemm.block_columns = round_up(gemm.block_columns / 2, tile_columns);
    } else {
      break;
    }
  }
  gemm.epilogue_columns = even_part(gemm.block_columns, most_epilogue_columns, tile_columns);
}

// Chooses how to compute the products and takes what that needs from the arena. The pointers of the products may still
// be missing, except that a packed rhs must be known to be there.
template <class T>
static void plan(Gemm<T>& gemm, Arena& arena) {
  gemm.m = gemm.product[0].lhs.rows;
  gemm.n = gemm.product[0].rhs.columns;
  gemm.route = route_of(gemm.product, gemm.products);
  if (gemm.route != Route::blocked) {
    gemm.workers = workers_for(gemm.m * gemm.n * gemm.product[0].lhs.columns, product_worth_a_thread);
    gemm.block_columns = gemm.route == Route::swapped ? swapped_columns(gemm.n, gemm.workers) : few_rows_columns;
    gemm.lhs_blocks = nullptr;
    gemm.sums =
        take<float>(arena, gemm.route == Route::swapped ? swapped_floats(gemm.product, gemm.products, gemm.workers)
                                                        : few_rows_floats(gemm.product, gemm.products, gemm.workers));
    return;
  }
  choose_blocks(gemm);
  std::int64_t depth = 0;
  for (int p = 0; p < gemm.products; ++p) {
    if (gemm.depth[p] > depth) depth = gemm.depth[p];
    gemm.chunk[p] = gemm.product[p].packed_rhs
                        ? nullptr
                        : take<Lane<T>>(arena, packed_lanes<T>(gemm.product[p].lhs.columns, gemm.chunk_columns));
  }
  // Rows an odd number of cache lines apart do not compete for the same lines of L1.
  constexpr std::int64_t line = 64;
  gemm.lhs_stride =
      round_up(depth, 2 * line / std::int64_t{sizeof(ElementOf<T>)}) + line / std::int64_t{sizeof(ElementOf<T>)};
  gemm.sums_stride = gemm.block_columns + line / std::int64_t{sizeof(float)};
  gemm.lhs_blocks = take<ElementOf<T>>(arena, gemm.workers * lhs_block_size(gemm));
  gemm.sums = take<float>(arena, gemm.workers * sums_size(gemm));
}

// Packs rows [k_first, k_first + k) of columns [column, column + columns) of an rhs into panels that hold all k.
template <class T>
static void pack_panels(Matrix<const T> rhs, std::int64_t k_first, std::int64_t k, std::int64_t column,
                        std::int64_t columns, Lane<T>* panels) {
  const std::int64_t panel_size = panel_lanes<T>(rhs.rows);
  Lane<T>* to = panels + k_first / ElementLayout<T>::group * tile_columns;
  for (std::int64_t j = 0; j < columns; j += tile_columns, to += panel_size) {
    const std::int64_t count = columns - j < tile_columns ? columns - j : tile_columns;
    pack_rhs(k, count, at(rhs, k_first, column + j), rhs.row_stride, rhs.column_stride, to, tile_columns);
  }
}

// All of columns [column, column + columns) of an rhs, shared out over the threads.
template <class T>
static void pack_chunk(int workers, Matrix<const T> rhs, std::int64_t column, std::int64_t columns, Lane<T>* panels) {
  const std::int64_t depth = depth_for<T>(rhs.rows);
  const std::int64_t width = 16 * tile_columns, widths = parts_of(columns, width);
  for_each_job(workers, parts_of(rhs.rows, depth) * widths, [&](std::int64_t job, int) {
    const std::int64_t k = job / widths * depth, j = job % widths * width;
    pack_panels(rhs, k, least(depth, rhs.rows - k), column + j, least(width, columns - j),
                panels + j / tile_columns * panel_lanes<T>(rhs.rows));
  });
}

// The same of each product whose rhs was not packed before.
template <class T>
static void pack_chunks(const Gemm<T>& gemm, std::int64_t column, std::int64_t columns) {
  for (int p = 0; p < gemm.products; ++p) {
    if (gemm.chunk[p]) pack_chunk<T>(gemm.workers, gemm.product[p].rhs, column, columns, gemm.chunk[p]);
  }
}

// Columns [first, first + columns) of a block.
template <class T>
BIGMODEL_INLINE Block columns_of(const Gemm<T>& gemm, Block block, std::int64_t first, std::int64_t columns) {
  block.column += first;
  block.columns = columns;
  for (int p = 0; p < gemm.products; ++p) block.sums[p] += first;
  return block;
}

// Rows whose lines of memory are asked for at a time: a tile's, but a whole panel's where each call of the micro-kernel
// sets the processor's tiles up (AMX).
template <class T>
inline constexpr std::int64_t rows_at_a_time = ElementLayout<T>::amx ? most_block_rows : ElementLayout<T>::rows;

// A tile reads so many lines of a panel in a turn of its loop, and asks for one of another: so many tiles ask for all.
template <class T>
inline constexpr std::int64_t line_lanes = 64 / std::int64_t{sizeof(Lane<T>)};
template <class T>
inline constexpr std::int64_t lines_of_turn = steps_of_turn * tile_columns / line_lanes<T>;

// block.sums[p] (+)= lhs rhs over `depth` of k, of which panel and lhs hold the first: a block of packed rows. Where
// that completes the block, the columns that are done are handed on before the next are begun. asks_ahead: the
// tiles of a block with enough of them ask for the next panel, which comes from beyond L2.
template <bool asks_ahead = false, class T, class Epilogue>
BIGMODEL_INLINE void multiply_pass(const Gemm<T>& gemm, int p, const Block& block, std::int64_t depth,
                                   Rows<ElementOf<T>> lhs, const Lane<T>* panel, bool accumulate, bool completes,
                                   const Touched& touched, Epilogue epilogue) {
  constexpr std::int64_t step = rows_at_a_time<T>;
  const std::int64_t panel_size = panel_lanes<T>(gemm.product[p].rhs.rows), k = packed_k<ElementOf<T>>(depth);
  const bool asks = asks_ahead && block.rows >= lines_of_turn<T> * step;
  for (std::int64_t j = 0; j < block.columns; j += tile_columns, panel += panel_size) {
    const std::int64_t columns = least(tile_columns, block.columns - j);
    for (std::int64_t i = 0; i < block.rows; i += step) {
      const std::int64_t rows = least(step, block.rows - i);
      if (completes) ask_for(touched, block.row + i, rows, block.column + j, columns);
      const ElementOf<T>* const lhs_rows = lhs.data + i * lhs.stride;
      float* const sums = block.sums[p] + i * block.stride + j;
      if constexpr (asks_ahead) {
        if (asks && rows == step && columns == tile_columns) {
          const std::int64_t lanes_ahead = panel_size + i / step % lines_of_turn<T> * line_lanes<T>;
          multiply_tile_asking(k, lhs_rows, lhs.stride, panel, lanes_ahead, sums, block.stride, accumulate);
          continue;
        }
      }
      multiply_by_rows<SumsIn::l2>(rows, columns, k, lhs_rows, lhs.stride, panel, tile_columns, sums, block.stride,
                                   accumulate);
    }
    const std::int64_t end = j + columns, begin = j / gemm.epilogue_columns * gemm.epilogue_columns;
    if (completes && (end == block.columns || end == begin + gemm.epilogue_columns)) {
      epilogue(columns_of(gemm, block, begin, end - begin));
    }
  }
}

// block.sums[p] = lhs rhs for one product and one block: rhs panels begin at the block's first column. The last product
// hands it on.
template <class T, class Epilogue>
BIGMODEL_INLINE void multiply_block(const Gemm<T>& gemm, int p, const Block& block, const Lane<T>* panels,
                                    ElementOf<T>* lhs_block, const Touched& touched, Epilogue epilogue) {
  const Product<T>& product = gemm.product[p];
  const std::int64_t k = product.lhs.columns;
  std::int64_t first = 0;
  do {
    const std::int64_t depth = least(gemm.depth[p], k - first);
    pack_lhs(block.rows, depth, at(product.lhs, block.row, first), product.lhs.row_stride, product.lhs.column_stride,
             lhs_block, gemm.lhs_stride);
    multiply_pass(gemm, p, block, depth, {lhs_block, gemm.lhs_stride},
                  panels + first / ElementLayout<T>::group * tile_columns, first > 0,
                  p == gemm.products - 1 && first + depth >= k, touched, epilogue);
    first += depth;
  } while (first < k);
}

// Columns [column, column + columns) of the result: jobs go down the rows first, so that the rhs is read once.
template <class T, class Epilogue>
BIGMODEL_INLINE void multiply_chunk(const Gemm<T>& gemm, std::int64_t column, std::int64_t columns,
                                    const Touched& touched, Epilogue epilogue) {
  const std::int64_t row_blocks = parts_of(gemm.m, gemm.block_rows);
  const std::int64_t jobs = row_blocks * parts_of(columns, gemm.block_columns);
  for_each_job(gemm.workers, jobs, [&](std::int64_t job, int worker) {
    const std::int64_t row = job % row_blocks * gemm.block_rows, j = job / row_blocks * gemm.block_columns;
    Block block{};
    block.row = row;
    block.column = column + j;
    block.rows = least(gemm.block_rows, gemm.m - row);
    block.columns = least(gemm.block_columns, columns - j);
    block.stride = gemm.sums_stride;
    for (int p = 0; p < gemm.products; ++p) {
      const Product<T>& product = gemm.product[p];
      block.sums[p] = gemm.sums + worker * sums_size(gemm) + p * gemm.block_rows * gemm.sums_stride;
      const Lane<T>* panels = product.packed_rhs ? static_cast<const Lane<T>*>(product.packed_rhs) : gemm.chunk[p];
      const std::int64_t panel = (product.packed_rhs ? block.column : j) / tile_columns;
      multiply_block(gemm, p, block, panels + panel * panel_lanes<T>(product.lhs.columns),
                     gemm.lhs_blocks + worker * lhs_block_size(gemm), touched, epilogue);
    }
  });
}

// Computes the products and calls epilogue(block) once for every part of the result, concurrently. `touched` are the
// matrices that the epilogue reads and writes: touching(...) of product.h.
template <class T, class Epilogue>
static void run(const Gemm<T>& gemm, const Touched& touched, Epilogue epilogue) {
  if (gemm.m == 0 || gemm.n == 0) return;
  if (gemm.route == Route::few_rows) {
    return multiply_few_rows(gemm.product, gemm.products, gemm.workers, gemm.sums, epilogue);
  }
  if (gemm.route == Route::swapped) {
    return multiply_swapped(gemm.product, gemm.products, gemm.workers, gemm.block_columns, gemm.sums, epilogue);
  }
  for (std::int64_t column = 0; column < gemm.n; column += gemm.chunk_columns) {
    const std::int64_t columns = least(gemm.chunk_columns, gemm.n - column);
    pack_chunks(gemm, column, columns);
    multiply_chunk(gemm, column, columns, touched, epilogue);
  }
}

// One product, planned in the workspace from `from` on: products that run in turn share it.
template <class T>
static void plan_product(Gemm<T>& gemm, Arena& arena, std::int64_t from, Matrix<const T> lhs, Matrix<const T> rhs) {
  arena.used = from;
  gemm.products = 1;
  gemm.product[0] = {lhs, rhs};
  plan(gemm, arena);
}

// A block of the result = the sums, as they are.
template <class T>
BIGMODEL_INLINE void store_block(const Block& block, Matrix<T> result) {
  for (std::int64_t i = 0; i < block.rows; ++i) {
    store_row(at(result, block.row + i, block.column), block.sums[0] + i * block.stride, block.columns);
  }
}

template <class T>
static void run_and_store(const Gemm<T>& gemm, Matrix<T> result) {
  run(gemm, touching(result), [&](const Block& block) { store_block(block, result); });
}

}  // namespace bigmodel::cpu::BIGMODEL_TARGET
