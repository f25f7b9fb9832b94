// The Transformer's feed-forward layer, forward: see bigmodel/feed_forward.h for the formulas.
//
// Tokens go through both products in blocks that a core keeps in its caches (row_products.h), or, where rows are few or
// wide, in larger blocks: the first product then leaves a block's hidden units, bias, activation, gate and dropout
// applied, in the workspace, and the second reads them back from cache. Workspace: that block (and the gated input), at
// most most_rows rows in the tensors' dtype, and what gemm.h needs.
#include "cpu/gemm.h"
#include "cpu/kernels.h"
#include "cpu/row_products.h"

namespace bigmodel::cpu::BIGMODEL_TARGET {
namespace {

// With packed weights a block need only be high enough to share out; packing anew for each must not show.
constexpr std::int64_t most_rows = 2048, most_rows_packed = 512;

template <class T>
struct FeedForward {
  std::int64_t rows;  // of a block of tokens
  float *b1, *b2, *b_gate;
  T *hidden, *gated;
  Gemm<T> gate{}, up{}, down{};
  RowProducts<T> both{};  // up and down at once, where they are
};

template <class T>
bool plan_both(const FeedForwardForwardArgs& args, FeedForward<T>& ff, Arena& arena) {
  const auto input = matrix<const T>(args.input), w2 = matrix<const T>(args.weights.w2);
  Gemm<T>&up = ff.both.first, &down = ff.both.second;
  up.products = args.gate == Gate::hidden ? 2 : 1;
  up.product[0] = {input, transposed(matrix<const T>(args.weights.w1)), args.packed_w1};
  up.product[1] = {input, transposed(matrix<const T>(args.weights.w_gate)), args.packed_w_gate};
  down.products = 1;
  down.product[0] = {{}, transposed(w2), args.packed_w2};
  if (!choose_row_products(ff.both, 1)) return false;
  plan_row_products(ff.both, arena);
  return true;
}

template <class T>
FeedForward<T> plan_forward(const FeedForwardForwardArgs& args, Arena& arena) {
  FeedForward<T> ff;
  const FeedForwardWeights& weights = args.weights;
  const bool packed = args.packed_w1 && args.packed_w2 && (args.packed_w_gate || args.gate == Gate::none);
  const std::int64_t width = args.input.size[1], hidden = weights.w1.size[0];
  ff.rows = even_part(args.input.size[0], packed ? most_rows_packed : most_rows, 1);
  ff.b1 = take<float>(arena, round_up(hidden, lanes));
  ff.b2 = take<float>(arena, round_up(weights.w2.size[0], lanes));
  ff.b_gate = take<float>(arena, round_up(weights.w_gate.size[0], lanes));
  if (args.gate != Gate::input && plan_both(args, ff, arena)) return ff;
  ff.hidden = take<T>(arena, ff.rows * hidden);
  ff.gated = args.gate == Gate::input ? take<T>(arena, ff.rows * width) : nullptr;

  const auto input = rows_of(matrix<const T>(args.input), 0, ff.rows);
  const auto w_gate = transposed(matrix<const T>(weights.w_gate));
  const std::int64_t kept = arena.used;
  ff.up.products = args.gate == Gate::hidden ? 2 : 1;
  ff.up.product[0] = {args.gate == Gate::input ? readable(row_major(ff.gated, ff.rows, width)) : input,
                      transposed(matrix<const T>(weights.w1)), args.packed_w1};
  ff.up.product[1] = {input, w_gate, args.packed_w_gate};
  ff.down.products = 1;
  ff.down.product[0] = {readable(row_major(ff.hidden, ff.rows, hidden)), transposed(matrix<const T>(weights.w2)),
                        args.packed_w2};
  plan(ff.up, arena);
  if (args.gate == Gate::input) {
    arena.used = kept;
    ff.gate.products = 1;
    ff.gate.product[0] = {input, w_gate, args.packed_w_gate};
    plan(ff.gate, arena);
  }
  arena.used = kept;
  plan(ff.down, arena);
  return ff;
}

// The epilogue of the first product: write_hidden(place, hidden units) for every vector of a block of rows, counted
// from token `first`.
template <class T, class Write>
BIGMODEL_INLINE void finish_hidden(const FeedForwardForwardArgs& args, const FeedForward<T>& ff, std::int64_t first,
                                   const Block& block, Write write_hidden) {
  const std::int64_t rows = args.input.size[0] - first;
  const auto preactivation = rows_of(matrix<T>(args.preactivation), first, rows);
  const auto gate_preactivation = rows_of(matrix<T>(args.gate_preactivation), first, rows);
  const bool drops = args.dropout.p > 0;
  float factors[most_epilogue_columns];
  with_activation(args.activation, [&](auto formula) BIGMODEL_INLINE_LAMBDA {
    for (std::int64_t i = 0; i < block.rows; ++i) {
      if (drops) dropout_row(args.dropout, first + block.row + i, block.column, factors, block.columns);
      for_each_vector_of(block, i, [&](const Place& place) BIGMODEL_INLINE_LAMBDA {
        const F32 z = load(block.sums[0] + place.offset) + load(ff.b1 + place.column);
        write_if_there(preactivation, place, z);
        F32 unit;
        if (args.gate == Gate::hidden) {
          const F32 g = load(block.sums[1] + place.offset) + load(ff.b_gate + place.column);
          write_if_there(gate_preactivation, place, g);
          unit = z * value_for<T>(formula, g);
        } else {
          unit = value_for<T>(formula, z);
        }
        write_hidden(place, drops ? unit * load(factors + place.column - block.column) : unit);
      });
    }
  });
}

// The first product of a block of tokens that begins at token `first`: hidden units, ready for the second.
template <class T>
void compute_hidden(const FeedForwardForwardArgs& args, const FeedForward<T>& ff, std::int64_t first) {
  const auto preactivation = rows_of(matrix<T>(args.preactivation), first, ff.rows);
  const auto gate_preactivation = rows_of(matrix<T>(args.gate_preactivation), first, ff.rows);
  const auto hidden = row_major(ff.hidden, ff.rows, args.weights.w1.size[0]);
  run(ff.up, touching(hidden, preactivation, gate_preactivation), [&](const Block& block) {
    finish_hidden(args, ff, first, block,
                  [&](const Place& place, F32 units) BIGMODEL_INLINE_LAMBDA { write(hidden, place, units); });
  });
}

// Gate::input: the block of tokens times its sigmoid.
template <class T>
void compute_gated(const FeedForwardForwardArgs& args, const FeedForward<T>& ff, Matrix<const T> input,
                   std::int64_t first) {
  const auto gate_preactivation = rows_of(matrix<T>(args.gate_preactivation), first, ff.rows);
  const auto gated = row_major(ff.gated, ff.rows, input.columns);
  run(ff.gate, touching(gated, gate_preactivation, input), [&](const Block& block) {
    for_each_vector(block, [&](const Place& place) BIGMODEL_INLINE_LAMBDA {
      const F32 g = load(block.sums[0] + place.offset) + load(ff.b_gate + place.column);
      write_if_there(gate_preactivation, place, g);
      write(gated, place, sigmoid(g) * read(input, place));
    });
  });
}

template <class T>
BIGMODEL_INLINE void finish_output(const FeedForward<T>& ff, const Block& block, Matrix<T> output,
                                   Matrix<const T> residual) {
  for_each_vector(block, [&](const Place& place) BIGMODEL_INLINE_LAMBDA {
    const F32 y = load(block.sums[0] + place.offset) + load(ff.b2 + place.column);
    write(output, place, residual.data ? y + read(residual, place) : y);
  });
}

template <class T>
void compute_output(const FeedForwardForwardArgs& args, const FeedForward<T>& ff, std::int64_t first) {
  const auto output = rows_of(matrix<T>(args.output), first, ff.rows);
  const auto residual = rows_of(matrix<const T>(args.residual), first, ff.rows);
  run(ff.down, touching(output, residual), [&](const Block& block) { finish_output(ff, block, output, residual); });
}

template <class T>
void compute_both(const FeedForwardForwardArgs& args, const FeedForward<T>& ff) {
  const auto preactivation = matrix<T>(args.preactivation), gate_preactivation = matrix<T>(args.gate_preactivation);
  const auto output = matrix<T>(args.output);
  const auto residual = matrix<const T>(args.residual);
  run_row_products(
      ff.both, touching(preactivation, gate_preactivation),
      [&](const Block& block, const Between<T>& hidden) {
        finish_hidden(args, ff, 0, block,
                      [&](const Place& place, F32 units) BIGMODEL_INLINE_LAMBDA { hidden.write(place, units); });
      },
      touching(output, residual), [&](const Block& block) { finish_output(ff, block, output, residual); });
}

template <class T>
void run_forward(const FeedForwardForwardArgs& args) {
  Arena arena{static_cast<char*>(args.workspace)};
  FeedForward<T> ff = plan_forward<T>(args, arena);
  const FeedForwardWeights& weights = args.weights;
  load_bias<T>(ff.b1, weights.b1, weights.w1.size[0]);
  load_bias<T>(ff.b2, weights.b2, weights.w2.size[0]);
  if (args.gate != Gate::none) load_bias<T>(ff.b_gate, weights.b_gate, weights.w_gate.size[0]);
  if (ff.both.rows_at_once > 0) return compute_both(args, ff);
  const std::int64_t tokens = args.input.size[0];
  for (std::int64_t first = 0; first < tokens; first += ff.rows) {
    const std::int64_t rows = least(ff.rows, tokens - first);
    const auto input = rows_of(matrix<const T>(args.input), first, rows);
    ff.gate.m = ff.up.m = ff.down.m = rows;
    if (args.gate == Gate::input) {
      ff.gate.product[0].lhs = input;
      compute_gated(args, ff, input, first);
    } else {
      ff.up.product[0].lhs = input;
    }
    ff.up.product[1].lhs = input;
    compute_hidden(args, ff, first);
    compute_output(args, ff, first);
  }
}

}  // namespace

std::int64_t feed_forward_forward_workspace(const FeedForwardForwardArgs& args) {
  Arena arena;
  with_type_of(args.input.dtype, [&](auto type) { plan_forward<decltype(type)>(args, arena); });
  return arena.most;
}

void feed_forward_forward(const FeedForwardForwardArgs& args) {
  with_type_of(args.input.dtype, [&](auto type) { run_forward<decltype(type)>(args); });
}

}  // namespace bigmodel::cpu::BIGMODEL_TARGET
