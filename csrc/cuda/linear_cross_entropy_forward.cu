// linear_cross_entropy: the logits are reduced as they leave the product, part_columns of a row to a maximum, a sum of
// exponentials and a sum (Milakov and Gimelshein, "Online normalizer calculation for softmax", 2018), and a row's parts
// are merged in their order. The vocabulary is gone through in passes of 8192 columns, so that a row's parts take 3
// KiB: as many as make 128 blocks of few rows.
#include <algorithm>

#include "cuda/launch.cuh"
#include "cuda/matrix_product.cuh"

namespace bigmodel::cuda {
namespace {

constexpr int merge_warps = 8, merge_threads = merge_warps * warp_size;
constexpr std::int64_t pass_columns = 8192;

struct MergeParams {
  LossRule rule;
  const PartOfRow* parts;  // [rows, parts_of_row]
  PartOfRow* so_far;       // [rows]
  const float* target_logit;
  float *loss, *lse;
  std::int64_t rows;
  int parts_of_row;
  bool first, last;
};

__device__ void finish_loss(const MergeParams& p, std::int64_t row, const PartOfRow& whole) {
  const CrossEntropyOptions& options = p.rule.options;
  const float lse = whole.maximum == -INFINITY ? -INFINITY + whole.sum : whole.maximum + logf(whole.sum);
  p.lse[row] = lse;
  if (p.rule.ignores(row)) {
    p.loss[row] = 0.0f;
    return;
  }
  float loss = NAN;
  if (p.rule.knows(row)) {
    loss = lse - (1.0f - options.label_smoothing) * p.target_logit[row] + options.z_loss * lse * lse;
    // Else a logit of -inf would give 0 * inf.
    if (options.label_smoothing > 0.0f) {
      loss -= options.label_smoothing * (whole.total / static_cast<float>(p.rule.vocabulary));
    }
  }
  p.loss[row] = loss;
}

// A warp takes a row.
__global__ __launch_bounds__(merge_threads) void merge_parts_kernel(const __grid_constant__ MergeParams p) {
  const std::int64_t row = std::int64_t(blockIdx.x) * merge_warps + warp_id();
  if (row >= p.rows) return;
  const PartOfRow* const parts = p.parts + row * p.parts_of_row;
  PartOfRow whole{-INFINITY, 0.0f, 0.0f};
  if (!p.first && lane_id() == 0) whole = p.so_far[row];
  float maximum = whole.maximum;
  for (int i = lane_id(); i < p.parts_of_row; i += warp_size) maximum = fmaxf(maximum, parts[i].maximum);
  maximum = group_max(maximum);
  const float shift = PartOfRow::shift(maximum);
  whole.sum *= expf(whole.maximum - shift);
  for (int i = lane_id(); i < p.parts_of_row; i += warp_size) {
    whole.sum += parts[i].sum * expf(parts[i].maximum - shift);
    whole.total += parts[i].total;
  }
  whole = {maximum, group_sum(whole.sum), group_sum(whole.total)};
  if (lane_id() != 0) return;
  if (p.last) {
    finish_loss(p, row, whole);
  } else {
    p.so_far[row] = whole;
  }
}

template <class T>
std::int64_t run_as(const LinearCrossEntropyForwardArgs& args, Workspace workspace, const Place* place) {
  const std::int64_t rows = args.hidden.size[0], vocabulary = args.weight.size[0];
  const std::int64_t step = std::min(vocabulary, pass_columns);
  const auto parts_of = [](std::int64_t columns) { return static_cast<int>(ceil_div(columns, part_columns)); };
  auto* const parts = workspace.take<PartOfRow>(rows * parts_of(step));
  auto* const so_far = workspace.take<PartOfRow>(rows);
  auto* const target_logit = workspace.take<float>(rows);
  std::int64_t most = 0;
  for (std::int64_t first = 0; first < vocabulary; first += step) {
    const std::int64_t columns = std::min(step, vocabulary - first);
    Workspace of_pass = workspace;
    const PartEpilogue<T> epilogue{.bias = Rows<T>(as_row(rows_of(args.bias, first, columns))),
                                   .rule = {args.options, args.target, vocabulary, first},
                                   .parts = parts,
                                   .target_logit = target_logit,
                                   .rows = rows,
                                   .parts_of_row = parts_of(columns),
                                   .columns = static_cast<int>(columns)};
    multiply_matrices<T>(args.hidden, rows_of(args.weight, first, columns), epilogue, of_pass, place);
    most = std::max(most, of_pass.used());
    if (!place) continue;
    const MergeParams merge{.rule = epilogue.rule,
                            .parts = parts,
                            .so_far = so_far,
                            .target_logit = target_logit,
                            .loss = args.loss,
                            .lse = args.lse,
                            .rows = rows,
                            .parts_of_row = epilogue.parts_of_row,
                            .first = first == 0,
                            .last = first + columns == vocabulary};
    launch(&merge_parts_kernel, {ceil_div(rows, merge_warps), merge_threads}, *place, merge);
  }
  return most;
}

}  // namespace

std::int64_t workspace_bytes(const LinearCrossEntropyForwardArgs& args, const Place& place) {
  std::int64_t bytes = 0;
  with_product_type(args.hidden.dtype, place, [&]<class T>(T) { bytes = run_as<T>(args, Workspace(), nullptr); });
  return bytes;
}

void run(const LinearCrossEntropyForwardArgs& args, const Place& place) {
  with_product_type(args.hidden.dtype, place, [&]<class T>(T) { run_as<T>(args, Workspace(args.workspace), &place); });
}

}  // namespace bigmodel::cuda
