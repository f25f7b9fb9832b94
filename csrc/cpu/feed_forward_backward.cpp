// Gradients of the feed-forward layer: see bigmodel/feed_forward.h for the formulas.
//
// One pass computes grad_output w2, the gradient of the hidden units, and in its epilogue everything that depends on
// them element by element: the gradients of the arguments of activation and gate and, for grad_w2, the hidden units
// themselves, rebuilt from their preactivations. Preactivations that were not saved are further products of that same
// pass and exist only as its blocks of sums. The other products then read what it left.
//
// Without a gate, and with the preactivation saved, that pass and the product with w1 go together over blocks of rows
// (row_products.h), and what the weights' gradients read is written as the packed rhs of their products: grad_w1 is
// formed as (input^T grad_up)^T.
//
// Workspace, in the tensors' dtype: [rows, hidden] for each of the gradient of w1's output, the hidden units (if
// grad_w2 is wanted) and the gradient of w_gate's output ([rows, width] for Gate::input, as is the gated input), those
// that are packed in the element that the target multiplies; and what gemm.h needs.
#include "cpu/column_sums.h"
#include "cpu/gemm.h"
#include "cpu/kernels.h"
#include "cpu/row_products.h"

namespace bigmodel::cpu::BIGMODEL_TARGET {
namespace {

constexpr int absent = -1;

template <class T>
struct FeedForwardBackward {
  Matrix<const T> input, grad_output, w1, w2, w_gate;
  Matrix<T> hidden, grad_up, grad_gate, gated;  // in the workspace; absent when not needed
  float *b1, *b_gate;
  Gemm<T> gated_input{};  // Gate::input, preactivation not saved: x w_gate^T
  Gemm<T> inner{};        // grad_output w2 and preactivations that were not saved
  int up_product = absent, gate_product = absent;
  Gemm<T> outer{};  // grad_up w1, and grad_gate w_gate for Gate::hidden; x w_gate^T for Gate::input if not saved
  int outer_gate_product = absent;
  Gemm<T> through_gate{};  // Gate::input: grad_gate w_gate
  Gemm<T> w1_product{}, w2_product{}, w_gate_product{};
  float* sums = nullptr;
  std::int64_t kept;      // workspace before the products
  RowProducts<T> both{};  // grad_output w2 and the product with w1, where they go together; and what they leave:
  Panels<T> hidden_panels, grad_up_panels;
  float* grad_up_sums = nullptr;  // of every `summed_together` rows
};

struct Wanted {
  bool up, gate, hidden;  // which of the inner pass's results are read later
};

Wanted wanted_by(const FeedForwardBackwardArgs& args) {
  const bool through_gate = args.grad_w_gate.data || args.grad_b_gate.data;
  Wanted wanted;
  wanted.up =
      args.grad_input.data || args.grad_w1.data || args.grad_b1.data || (args.gate == Gate::input && through_gate);
  wanted.gate = args.gate != Gate::none && (args.grad_input.data || through_gate);
  wanted.hidden = args.grad_w2.data;
  return wanted;
}

template <class T>
Matrix<T> take_matrix(Arena& arena, bool wanted, std::int64_t rows, std::int64_t columns) {
  return row_major(wanted ? take<T>(arena, rows * columns) : nullptr, rows, columns);
}

template <class T>
void add_product(Gemm<T>& gemm, Matrix<const T> lhs, Matrix<const T> rhs, int* number = nullptr) {
  if (number) *number = gemm.products;
  gemm.product[gemm.products++] = {lhs, rhs};
}

// What the inner pass and the pass through w1 multiply.
template <class T>
void plan_passes(const FeedForwardBackwardArgs& args, FeedForwardBackward<T>& back, Arena& arena) {
  const Wanted wanted = wanted_by(args);
  const bool gate_missing = !args.gate_preactivation.data;
  const Matrix<const T> up_input = args.gate == Gate::input ? readable(back.gated) : back.input;
  if (args.gate == Gate::input && gate_missing) {
    plan_product(back.gated_input, arena, back.kept, back.input, transposed(back.w_gate));
  }
  if (wanted.up || wanted.gate || wanted.hidden) {
    add_product(back.inner, back.grad_output, back.w2);
    if (!args.preactivation.data) add_product(back.inner, up_input, transposed(back.w1), &back.up_product);
    if (args.gate == Gate::hidden && gate_missing) {
      add_product(back.inner, back.input, transposed(back.w_gate), &back.gate_product);
    }
    arena.used = back.kept;
    plan(back.inner, arena);
  }
  if (!args.grad_input.data && !(args.gate == Gate::input && wanted.gate)) return;
  add_product(back.outer, readable(back.grad_up), back.w1);
  if (args.gate == Gate::hidden) add_product(back.outer, readable(back.grad_gate), back.w_gate);
  if (args.gate == Gate::input && gate_missing) {
    add_product(back.outer, back.input, transposed(back.w_gate), &back.outer_gate_product);
  }
  arena.used = back.kept;
  plan(back.outer, arena);
  if (args.gate == Gate::input && args.grad_input.data) {
    plan_product(back.through_gate, arena, back.kept, readable(back.grad_gate), back.w_gate);
  }
}

// A product of which the rhs, `panels`, is written before it runs.
template <class T>
void plan_with_panels(Gemm<T>& gemm, Arena& arena, std::int64_t from, Matrix<const T> lhs, const Panels<T>& panels,
                      std::int64_t columns) {
  arena.used = from;
  gemm.products = 1;
  // While the workspace is only counted, any address says that the rhs will be there.
  const void* const rhs = arena.base ? static_cast<const void*>(panels.data) : &gemm;
  gemm.product[0] = {lhs, {nullptr, panels.rows, columns, 0, 1}, rhs};
  plan(gemm, arena);
}

// The whole backward pass where the products with w2 and w1 go together, or false.
template <class T>
bool plan_both(const FeedForwardBackwardArgs& args, FeedForwardBackward<T>& back, Arena& arena) {
  if (args.gate != Gate::none || !args.preactivation.data || !args.grad_input.data) return false;
  back.both.first.products = back.both.second.products = 1;
  back.both.first.product[0] = {back.grad_output, back.w2};
  back.both.second.product[0] = {{}, back.w1};
  if (!choose_row_products(back.both, summed_together)) return false;
  const std::int64_t rows = back.input.rows, hidden = back.w1.rows, groups = parts_of(rows, summed_together);
  back.hidden_panels = take_panels<T>(arena, args.grad_w2.data, rows, hidden);
  back.grad_up_panels = take_panels<T>(arena, args.grad_w1.data, rows, hidden);
  if (args.grad_b1.data) back.grad_up_sums = take<float>(arena, groups * round_up(hidden, lanes));
  back.kept = arena.used;
  plan_row_products(back.both, arena);
  if (args.grad_w1.data) {
    plan_with_panels(back.w1_product, arena, back.kept, transposed(back.input), back.grad_up_panels, hidden);
  }
  if (args.grad_w2.data) {
    plan_with_panels(back.w2_product, arena, back.kept, transposed(back.grad_output), back.hidden_panels, hidden);
  }
  arena.used = back.kept;
  back.sums = take<float>(arena, column_sums_floats(rows, back.w2.rows));
  return true;
}

template <class T>
FeedForwardBackward<T> plan_backward(const FeedForwardBackwardArgs& args, Arena& arena) {
  FeedForwardBackward<T> back;
  const FeedForwardWeights& weights = args.weights;
  const Wanted wanted = wanted_by(args);
  const std::int64_t rows = args.input.size[0], width = args.input.size[1], hidden = weights.w1.size[0];
  back.input = matrix<const T>(args.input);
  back.grad_output = matrix<const T>(args.grad_output);
  back.w1 = matrix<const T>(weights.w1);
  back.w2 = matrix<const T>(weights.w2);
  back.w_gate = matrix<const T>(weights.w_gate);
  if (plan_both(args, back, arena)) return back;
  back.hidden = take_matrix<T>(arena, wanted.hidden, rows, hidden);
  back.grad_up = take_matrix<T>(arena, wanted.up, rows, hidden);
  back.grad_gate = take_matrix<T>(arena, wanted.gate, rows, args.gate == Gate::input ? width : hidden);
  back.gated = take_matrix<T>(arena, args.gate == Gate::input, rows, width);
  back.b1 = take<float>(arena, round_up(hidden, lanes));
  back.b_gate = take<float>(arena, round_up(weights.w_gate.size[0], lanes));
  back.kept = arena.used;
  plan_passes(args, back, arena);

  const Matrix<const T> up_input = args.gate == Gate::input ? readable(back.gated) : back.input;
  if (args.grad_w1.data) {
    plan_product(back.w1_product, arena, back.kept, transposed(readable(back.grad_up)), up_input);
  }
  if (args.grad_w2.data) {
    plan_product(back.w2_product, arena, back.kept, transposed(back.grad_output), readable(back.hidden));
  }
  if (args.grad_w_gate.data) {
    plan_product(back.w_gate_product, arena, back.kept, transposed(readable(back.grad_gate)), back.input);
  }
  arena.used = back.kept;
  const std::int64_t out_width = weights.w2.size[0];
  std::int64_t widest = hidden > width ? hidden : width;
  widest = widest > out_width ? widest : out_width;
  back.sums = take<float>(arena, column_sums_floats(rows, widest));
  return back;
}

// A saved preactivation as it is, or the sums of the product that recomputes it plus its bias.
template <class T>
BIGMODEL_INLINE F32 preactivation_at(const Block& block, const Place& place, Matrix<const T> saved, int product,
                                     const float* bias) {
  if (saved.data) return read(saved, place);
  return load(block.sums[product] + place.offset) + load(bias + place.column);
}

// Gate::input: the gated input, from its saved preactivation or the product that recomputes it.
template <class T>
void compute_gated(const FeedForwardBackwardArgs& args, const FeedForwardBackward<T>& back) {
  const auto saved = matrix<const T>(args.gate_preactivation);
  const auto gate_block = [&](const Block& block) {
    for_each_vector(block, [&](const Place& place) BIGMODEL_INLINE_LAMBDA {
      const F32 g = preactivation_at(block, place, saved, 0, back.b_gate);
      write(back.gated, place, sigmoid(g) * read(back.input, place));
    });
  };
  if (saved.data) {
    for_each_rows(back.input.rows, back.input.columns, gate_block);
  } else {
    run(back.gated_input, touching(back.input, back.gated), gate_block);
  }
}

// The gradients of the activation's argument and of the gate's, and the hidden units, of one row of a block.
template <class T, class Formula>
BIGMODEL_INLINE void differentiate_row(const FeedForwardBackwardArgs& args, const FeedForwardBackward<T>& back,
                                       const Block& block, std::int64_t i, Formula formula) {
  const auto preactivation = matrix<const T>(args.preactivation);
  const auto gate_preactivation = matrix<const T>(args.gate_preactivation);
  float kept[most_epilogue_columns];
  const bool drops = args.dropout.p > 0;
  if (drops) dropout_row(args.dropout, block.row + i, block.column, kept, block.columns);
  for_each_vector_of(block, i, [&](const Place& place) BIGMODEL_INLINE_LAMBDA {
    const F32 factor = drops ? load(kept + place.column - block.column) : set1(1.0f);
    const F32 grad = load(block.sums[0] + place.offset) * factor;
    const F32 z = preactivation_at(block, place, preactivation, back.up_product, back.b1);
    F32 unit;
    if (args.gate == Gate::hidden) {
      const F32 g = preactivation_at(block, place, gate_preactivation, back.gate_product, back.b_gate);
      const ValueAndSlope gate = value_and_slope_for<T>(formula, g);
      write_if_there(back.grad_gate, place, gate.slope * z * grad);
      write_if_there(back.grad_up, place, gate.value * grad);
      unit = z * gate.value;
    } else {
      const ValueAndSlope up = value_and_slope_for<T>(formula, z);
      write_if_there(back.grad_up, place, up.slope * grad);
      unit = up.value;
    }
    write_if_there(back.hidden, place, unit * factor);
  });
}

template <class T>
void compute_inner(const FeedForwardBackwardArgs& args, const FeedForwardBackward<T>& back) {
  const auto preactivation = matrix<const T>(args.preactivation);
  const auto gate_preactivation = matrix<const T>(args.gate_preactivation);
  const Touched touched = touching(preactivation, gate_preactivation, back.grad_up, back.grad_gate, back.hidden);
  run(back.inner, touched, [&](const Block& block) {
    with_activation(args.activation, [&](auto formula) BIGMODEL_INLINE_LAMBDA {
      for (std::int64_t i = 0; i < block.rows; ++i) differentiate_row(args, back, block, i, formula);
    });
  });
}

// Gate::none and Gate::hidden: grad_input = grad_up w1 (+ grad_gate w_gate).
template <class T>
void compute_grad_input(const FeedForwardBackwardArgs& args, const FeedForwardBackward<T>& back) {
  const auto grad_input = matrix<T>(args.grad_input);
  run(back.outer, touching(grad_input), [&](const Block& block) {
    for_each_vector(block, [&](const Place& place) BIGMODEL_INLINE_LAMBDA {
      const F32 up = load(block.sums[0] + place.offset);
      write(grad_input, place, args.gate == Gate::hidden ? up + load(block.sums[1] + place.offset) : up);
    });
  });
}

// Gate::input, with s the sigmoid and g the gradient of x s: grad_gate = g x s (1 - s), and grad_input = g s +
// grad_gate w_gate, whose first term waits in grad_input for the second.
template <class T>
void compute_grad_input_gated(const FeedForwardBackwardArgs& args, const FeedForwardBackward<T>& back) {
  const auto grad_input = matrix<T>(args.grad_input);
  const auto saved = matrix<const T>(args.gate_preactivation);
  run(back.outer, touching(saved, back.input, grad_input, back.grad_gate), [&](const Block& block) {
    for_each_vector(block, [&](const Place& place) BIGMODEL_INLINE_LAMBDA {
      const F32 s = sigmoid(preactivation_at(block, place, saved, back.outer_gate_product, back.b_gate));
      const F32 through = load(block.sums[0] + place.offset) * s;
      write_if_there(grad_input, place, through);
      write_if_there(back.grad_gate, place, through * read(back.input, place) * (set1(1.0f) - s));
    });
  });
  if (!grad_input.data) return;
  run(back.through_gate, touching(grad_input), [&](const Block& block) {
    for_each_vector(block, [&](const Place& place) BIGMODEL_INLINE_LAMBDA {
      write(grad_input, place, load(block.sums[0] + place.offset) + read(grad_input, place));
    });
  });
}

// The epilogue of grad_output w2 where the product with w1 follows at once.
template <class T, class Formula>
BIGMODEL_INLINE void differentiate(const FeedForwardBackwardArgs& args, const FeedForwardBackward<T>& back,
                                   const Block& block, const Between<T>& grad_up, Formula formula) {
  const auto preactivation = matrix<const T>(args.preactivation);
  const std::int64_t stride = round_up(back.w1.rows, lanes);
  const bool drops = args.dropout.p > 0;
  float factors[2][most_epilogue_columns], unwanted[most_epilogue_columns];
  for (std::int64_t i = 0; i < block.rows; i += 2) {
    const std::int64_t row = block.row + i, count = least(2, block.rows - i);
    for (std::int64_t r = 0; r < count && drops; ++r) {
      dropout_row(args.dropout, row + r, block.column, factors[r], block.columns);
    }
    float* const sums =
        back.grad_up_sums ? back.grad_up_sums + row / summed_together * stride + block.column : unwanted;
    const bool begins = row % summed_together == 0;
    for_each_vector_of(block, i, [&](const Place& first) BIGMODEL_INLINE_LAMBDA {
      F32 grads[2] = {zero(), zero()}, units[2] = {zero(), zero()};
#pragma GCC unroll 2
      for (std::int64_t r = 0; r < 2; ++r) {
        if (r >= count) break;
        const Place place{first.row + r, first.column, first.left, first.offset + r * block.stride};
        const ValueAndSlope up = value_and_slope_for<T>(formula, read(preactivation, place));
        const F32 factor = drops ? load(factors[r] + place.column - block.column) : set1(1.0f);
        grads[r] = up.slope * (load(block.sums[0] + place.offset) * factor);
        units[r] = up.value * factor;
        grad_up.write(place, grads[r]);
      }
      back.grad_up_panels.write(row, first.column, grads[0], grads[1]);
      back.hidden_panels.write(row, first.column, units[0], units[1]);
      float* const sum = sums + first.column - block.column;
      const F32 before = begins ? zero() : load(sum);
      store(sum, before + as_stored<T>(grads[0]) + as_stored<T>(grads[1]));
    });
  }
}

template <class T>
void compute_both(const FeedForwardBackwardArgs& args, const FeedForwardBackward<T>& back) {
  const auto preactivation = matrix<const T>(args.preactivation);
  const auto grad_input = matrix<T>(args.grad_input);
  run_row_products(
      back.both, touching(preactivation),
      [&](const Block& block, const Between<T>& grad_up) {
        with_activation(args.activation, [&](auto formula) BIGMODEL_INLINE_LAMBDA {
          differentiate(args, back, block, grad_up, formula);
        });
      },
      touching(grad_input), [&](const Block& block) { store_block(block, grad_input); });
  if (args.grad_w1.data) {
    const auto grad_w1 = matrix<T>(args.grad_w1);
    run(back.w1_product, {}, [&](const Block& block) {
      copy_out_transposed(block.rows, block.columns, block.sums[0], block.stride, at(grad_w1, block.column, block.row),
                          grad_w1.row_stride);
    });
  }
  if (args.grad_w2.data) run_and_store(back.w2_product, matrix<T>(args.grad_w2));
  if (args.grad_b1.data) {
    const std::int64_t groups = parts_of(back.input.rows, summed_together), hidden = back.w1.rows;
    const Matrix<const float> sums{back.grad_up_sums, groups, hidden, round_up(hidden, lanes), 1};
    column_sums_of_groups(sums, static_cast<T*>(args.grad_b1.data));
  }
  if (args.grad_b2.data) column_sums(back.grad_output, static_cast<T*>(args.grad_b2.data), back.sums);
}

template <class T>
void run_backward(const FeedForwardBackwardArgs& args) {
  Arena arena{static_cast<char*>(args.workspace)};
  const FeedForwardBackward<T> back = plan_backward<T>(args, arena);
  if (back.both.rows_at_once > 0) return compute_both(args, back);
  load_bias<T>(back.b1, args.weights.b1, back.w1.rows);
  if (args.gate != Gate::none) load_bias<T>(back.b_gate, args.weights.b_gate, back.w_gate.rows);
  if (args.gate == Gate::input) compute_gated(args, back);
  if (back.inner.products > 0) compute_inner(args, back);
  if (back.outer.products > 0) {
    if (args.gate == Gate::input) {
      compute_grad_input_gated(args, back);
    } else {
      compute_grad_input(args, back);
    }
  }
  if (args.grad_w1.data) run_and_store(back.w1_product, matrix<T>(args.grad_w1));
  if (args.grad_w2.data) run_and_store(back.w2_product, matrix<T>(args.grad_w2));
  if (args.grad_w_gate.data) run_and_store(back.w_gate_product, matrix<T>(args.grad_w_gate));
  const auto sum = [&](const TensorView& grad, Matrix<const T> of) {
    if (grad.data) column_sums(of, static_cast<T*>(grad.data), back.sums);
  };
  sum(args.grad_b1, readable(back.grad_up));
  sum(args.grad_b2, back.grad_output);
  sum(args.grad_b_gate, readable(back.grad_gate));
}

}  // namespace

std::int64_t feed_forward_backward_workspace(const FeedForwardBackwardArgs& args) {
  Arena arena;
  with_type_of(args.input.dtype, [&](auto type) { plan_backward<decltype(type)>(args, arena); });
  return arena.most;
}

void feed_forward_backward(const FeedForwardBackwardArgs& args) {
  with_type_of(args.input.dtype, [&](auto type) { run_backward<decltype(type)>(args); });
}

}  // namespace bigmodel::cpu::BIGMODEL_TARGET
