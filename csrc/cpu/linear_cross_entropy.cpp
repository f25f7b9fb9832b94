// The cross-entropy of a linear layer's logits: the contract is in bigmodel/linear_cross_entropy.h.
//
// Forward, the product's blocks are summarised as they leave the micro-kernel (Milakov and Gimelshein, "Online
// normalizer calculation for softmax", 2018): a maximum, a sum of exponentials and a sum for each row and block, merged
// at the end. Where blocks begin depends on the number of threads, and so do the last bits of the loss.
//
// Backward, the logits are computed again, some columns of the vocabulary at a time: as many as make 16 MB of gradient,
// at least 512, so that the products stay worth their packing, and at most 1024: a row's sum over the vocabulary holds
// one large term, the target's, and thousands of small ones, each of which would be rounded against it (of 32000
// columns, 16384 at a time lost seven times what torch's product loses, 1024 less than twice). Those columns' part of
// grad_weight and grad_bias is then complete, and grad_hidden is summed up over the passes, in fp32.
#include "bigmodel/linear_cross_entropy.h"

#include "cpu/column_sums.h"
#include "cpu/cross_entropy_rows.h"
#include "cpu/gemm.h"
#include "cpu/kernels.h"

namespace bigmodel::cpu::BIGMODEL_TARGET {
namespace {

// ---- forward ----

template <class T>
struct Forward {
  Gemm<T> gemm{};
  float* bias = nullptr;
  std::int64_t chunk, block, parts_of_chunk, parts;  // the columns of the product's blocks
  PartOfRow* part = nullptr;                         // [rows, parts]
  float* target_logit = nullptr;                     // [rows]

  std::int64_t index(std::int64_t column) const { return column / chunk * parts_of_chunk + column % chunk / block; }
};

template <class T>
Forward<T> plan_forward(const LinearCrossEntropyForwardArgs& args, Arena& arena) {
  Forward<T> forward;
  const std::int64_t rows = args.hidden.size[0], vocabulary = args.weight.size[0];
  forward.bias = args.bias.data ? take<float>(arena, round_up(vocabulary, lanes)) : nullptr;
  forward.gemm.products = 1;
  forward.gemm.product[0] = {matrix<const T>(args.hidden), transposed(matrix<const T>(args.weight))};
  plan(forward.gemm, arena);
  forward.chunk = forward.gemm.route == Route::blocked ? forward.gemm.chunk_columns : vocabulary;
  forward.block = forward.gemm.block_columns;
  forward.parts_of_chunk = parts_of(forward.chunk, forward.block);
  forward.parts = parts_of(vocabulary, forward.chunk) * forward.parts_of_chunk;
  forward.part = take<PartOfRow>(arena, rows * forward.parts);
  forward.target_logit = take<float>(arena, rows);
  return forward;
}

// Merges a row's parts; those that no block has written, as of a last, shorter chunk, are empty.
template <class T>
void finish_row(const LinearCrossEntropyForwardArgs& args, const Forward<T>& forward, std::int64_t row) {
  const CrossEntropyOptions& options = args.options;
  const PartOfRow* parts = forward.part + row * forward.parts;
  float maximum = -infinity;
  for (std::int64_t p = 0; p < forward.parts; ++p) maximum = parts[p].maximum > maximum ? parts[p].maximum : maximum;
  double sum = 0.0, total = 0.0;
  for (std::int64_t p = 0; p < forward.parts; ++p) {
    sum += parts[p].sum * first_lane(exp(set1(parts[p].maximum - maximum)));
    total += parts[p].total;
  }
  const float lse = maximum + first_lane(log(set1(static_cast<float>(sum))));
  args.lse[row] = lse;
  if (args.target[row] == options.ignore_index) {
    args.loss[row] = 0.0f;
    return;
  }
  const double mean = total / static_cast<double>(args.weight.size[0]);
  const double smoothing = options.label_smoothing;
  args.loss[row] = static_cast<float>(lse - (1.0 - smoothing) * forward.target_logit[row] - smoothing * mean +
                                      static_cast<double>(options.z_loss) * lse * lse);
}

template <class T>
void run_forward(const LinearCrossEntropyForwardArgs& args) {
  Arena arena{static_cast<char*>(args.workspace)};
  const Forward<T> forward = plan_forward<T>(args, arena);
  const std::int64_t rows = args.hidden.size[0];
  if (forward.bias) load_bias<T>(forward.bias, args.bias, args.weight.size[0]);
  const bool wants_total = args.options.label_smoothing != 0.0f;
  for (std::int64_t i = 0; i < rows * forward.parts; ++i) forward.part[i] = {-infinity, 0.0f, 0.0f};
  run(forward.gemm, touching<>(), [&](const Block& block) {
    for (std::int64_t i = 0; i < block.rows; ++i) {
      const std::int64_t row = block.row + i, target = args.target[row] - block.column;
      float* const logits = block.sums[0] + i * block.stride;
      finish_logits(args.options, forward.bias ? forward.bias + block.column : nullptr, logits, nullptr, block.columns);
      // One worker takes all columns of a block, in turn.
      PartOfRow& part = forward.part[row * forward.parts + forward.index(block.column)];
      part = merged(part, summarise(logits, block.columns, wants_total));
      if (target >= 0 && target < block.columns) forward.target_logit[row] = logits[target];
    }
  });
  constexpr std::int64_t together = 16;
  for_each_job(workers_for(rows * forward.parts * 8), parts_of(rows, together), [&](std::int64_t job, int) {
    for (std::int64_t row = job * together; row < least(rows, (job + 1) * together); ++row) {
      finish_row(args, forward, row);
    }
  });
}

// ---- backward ----

constexpr std::int64_t gradient_bytes = std::int64_t{16} << 20, least_columns = 512, most_columns = 1024;

template <class T>
struct Backward {
  std::int64_t columns;                         // of a pass
  T* gradient = nullptr;                        // [rows, columns], of the logits
  float* bias = nullptr;                        // as fp32
  float* accumulated = nullptr;                 // [rows, width], where grad_hidden is not fp32 itself
  float *sums = nullptr, *bias_sums = nullptr;  // of grad_bias
  std::int64_t shared = 0;                      // of the workspace, where the products begin, which take turns
  Gemm<T> logits{}, hidden{}, weight{};
};

template <class T>
Backward<T> plan_backward(const LinearCrossEntropyBackwardArgs& args, Arena& arena) {
  Backward<T> backward;
  const std::int64_t rows = args.hidden.size[0], width = args.hidden.size[1], vocabulary = args.weight.size[0];
  const std::int64_t fitting = gradient_bytes / (rows * std::int64_t{sizeof(T)});
  const std::int64_t most = least(most_columns, fitting > least_columns ? fitting : least_columns);
  backward.columns = even_part(vocabulary, most, tile_columns);
  backward.gradient = take<T>(arena, rows * backward.columns);
  if (args.bias.data) backward.bias = take<float>(arena, round_up(vocabulary, lanes));
  if (args.grad_hidden.data && sizeof(T) != sizeof(float)) {
    backward.accumulated = take<float>(arena, rows * round_up(width, lanes));
  }
  if (args.grad_bias.data) {
    backward.sums = take<float>(arena, column_sums_floats(rows, backward.columns));
    backward.bias_sums = take<float>(arena, round_up(backward.columns, lanes));
  }
  backward.shared = arena.used;
  return backward;
}

// Columns [first, first + columns) of the vocabulary.
template <class T>
void plan_pass(const LinearCrossEntropyBackwardArgs& args, Backward<T>& backward, Arena& arena, std::int64_t first,
               std::int64_t columns) {
  const auto hidden = matrix<const T>(args.hidden);
  const auto weight = rows_of(matrix<const T>(args.weight), first, columns);
  const auto gradient = readable(row_major(backward.gradient, hidden.rows, columns));
  plan_product(backward.logits, arena, backward.shared, hidden, transposed(weight));
  if (args.grad_hidden.data) plan_product(backward.hidden, arena, backward.shared, gradient, weight);
  if (args.grad_weight.data) plan_product(backward.weight, arena, backward.shared, transposed(gradient), hidden);
}

// A power of two that brings the gradients of the logits into fp16's range, however small grad_loss is; 1 for types
// with the range of fp32.
float gradient_scale(const LinearCrossEntropyBackwardArgs& args) {
  if (args.hidden.dtype != DType::float16) return 1.0f;
  float largest = 0.0f;
  for (std::int64_t i = 0; i < args.hidden.size[0]; ++i) {
    if (args.target[i] == args.options.ignore_index) continue;
    const float grad = static_cast<const float*>(args.grad_loss.data)[i * args.grad_loss.stride[0]];
    const float size = __builtin_fabsf(grad) * (1.0f + 2.0f * args.options.z_loss * __builtin_fabsf(args.lse[i]));
    largest = size > largest ? size : largest;
  }
  if (!(largest > 0x1p-100f && largest < 0x1p100f)) return 1.0f;
  const std::int32_t exponent = std::int32_t(__builtin_bit_cast(std::uint32_t, largest) >> 23) - 127;
  return __builtin_bit_cast(float, std::uint32_t(12 - exponent + 127) << 23);
}

// The gradients of the logits of a pass, into backward.gradient.
template <class T>
void form_gradient(const LinearCrossEntropyBackwardArgs& args, const Backward<T>& backward, std::int64_t first,
                   std::int64_t columns, float scale) {
  run(backward.logits, touching(row_major(backward.gradient, args.hidden.size[0], columns)), [&](const Block& block) {
    float slopes[most_epilogue_columns];
    float* const slope = args.options.softcap > 0 ? slopes : nullptr;
    const std::int64_t column = first + block.column;
    for (std::int64_t i = 0; i < block.rows; ++i) {
      const std::int64_t row = block.row + i;
      float* const logits = block.sums[0] + i * block.stride;
      if (args.target[row] == args.options.ignore_index) {
        __builtin_memset(logits, 0, round_up(block.columns, lanes) * sizeof(float));
      } else {
        const float grad = static_cast<const float*>(args.grad_loss.data)[row * args.grad_loss.stride[0]];
        finish_logits(args.options, backward.bias ? backward.bias + column : nullptr, logits, slope, block.columns);
        differentiate(args.options, {args.lse[row], grad * scale, args.target[row] - column, args.weight.size[0]},
                      slope, logits, block.columns);
      }
      store_row(backward.gradient + row * columns + block.column, logits, block.columns);
    }
  });
}

// Adds this pass to grad_hidden, and ends it in the last.
template <class T>
void add_to_hidden(const LinearCrossEntropyBackwardArgs& args, const Backward<T>& backward, bool first, bool last,
                   float unscale) {
  const auto grad_hidden = matrix<T>(args.grad_hidden);
  const std::int64_t stride = backward.accumulated ? round_up(grad_hidden.columns, lanes) : grad_hidden.row_stride;
  float* const so_far = backward.accumulated ? backward.accumulated : static_cast<float*>(args.grad_hidden.data);
  const Matrix<float> sums{so_far, grad_hidden.rows, grad_hidden.columns, stride, 1};
  run(backward.hidden, touching(sums, grad_hidden), [&](const Block& block) {
    for (std::int64_t i = 0; i < block.rows; ++i) {
      float* const row = block.sums[0] + i * block.stride;
      float* const sum = at(sums, block.row + i, block.column);
      if (!first) add_tensor_row(row, static_cast<const float*>(sum), 1, block.columns);
      if (!last) {
        store_row(sum, row, block.columns);
        continue;
      }
      if (unscale != 1.0f) scale_row(row, unscale, block.columns);
      store_row(at(grad_hidden, block.row + i, block.column), row, block.columns);
    }
  });
}

template <class T>
void write_weight(const LinearCrossEntropyBackwardArgs& args, const Backward<T>& backward, std::int64_t first,
                  float unscale) {
  const auto grad_weight = matrix<T>(args.grad_weight);
  run(backward.weight, touching(rows_of(grad_weight, first, backward.weight.m)), [&](const Block& block) {
    for (std::int64_t i = 0; i < block.rows; ++i) {
      float* const row = block.sums[0] + i * block.stride;
      if (unscale != 1.0f) scale_row(row, unscale, block.columns);
      store_row(at(grad_weight, first + block.row + i, block.column), row, block.columns);
    }
  });
}

template <class T>
void run_backward(const LinearCrossEntropyBackwardArgs& args) {
  Arena arena{static_cast<char*>(args.workspace)};
  Backward<T> backward = plan_backward<T>(args, arena);
  const std::int64_t rows = args.hidden.size[0], vocabulary = args.weight.size[0];
  if (backward.bias) load_bias<T>(backward.bias, args.bias, vocabulary);
  const float scale = gradient_scale(args), unscale = 1.0f / scale;
  for (std::int64_t first = 0; first < vocabulary; first += backward.columns) {
    const std::int64_t columns = least(backward.columns, vocabulary - first);
    plan_pass(args, backward, arena, first, columns);
    form_gradient(args, backward, first, columns, scale);
    if (args.grad_hidden.data) {
      add_to_hidden(args, backward, first == 0, first + columns == vocabulary, unscale);
    }
    if (args.grad_weight.data) write_weight(args, backward, first, unscale);
    if (args.grad_bias.data) {
      column_sums(readable(row_major(backward.gradient, rows, columns)), backward.bias_sums, backward.sums);
      scale_row(backward.bias_sums, unscale, columns);
      store_row(static_cast<T*>(args.grad_bias.data) + first, backward.bias_sums, columns);
    }
  }
}

}  // namespace

std::int64_t linear_cross_entropy_forward_workspace(const LinearCrossEntropyForwardArgs& args) {
  Arena arena;
  with_type_of(args.hidden.dtype, [&](auto type) { plan_forward<decltype(type)>(args, arena); });
  return arena.most;
}

void linear_cross_entropy_forward(const LinearCrossEntropyForwardArgs& args) {
  with_type_of(args.hidden.dtype, [&](auto type) { run_forward<decltype(type)>(args); });
}

std::int64_t linear_cross_entropy_backward_workspace(const LinearCrossEntropyBackwardArgs& args) {
  Arena arena;
  with_type_of(args.hidden.dtype, [&](auto type) {
    auto backward = plan_backward<decltype(type)>(args, arena);
    const std::int64_t vocabulary = args.weight.size[0];
    for (std::int64_t first = 0; first < vocabulary; first += backward.columns) {
      plan_pass(args, backward, arena, first, least(backward.columns, vocabulary - first));
    }
  });
  return arena.most;
}

void linear_cross_entropy_backward(const LinearCrossEntropyBackwardArgs& args) {
  with_type_of(args.hidden.dtype, [&](auto type) { run_backward<decltype(type)>(args); });
}

}  // namespace bigmodel::cpu::BIGMODEL_TARGET
