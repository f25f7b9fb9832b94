// linear_cross_entropy's gradients: the logits are computed again, some columns of the vocabulary at a time, and their
// gradient, in the inputs' dtype, is an operand of the products
//   grad_hidden += gradient weight,  grad_weight = gradient^T hidden,  grad_bias = gradient^T ones.
//
// A pass is of as many columns as make 64 MiB of gradient, of at least 512, so that its products fill the device, and
// of at most 8192, in fp32 1024: a row's sum over the vocabulary holds one large term, the target's, and thousands of
// small ones, each of which would be rounded against it. What 16 bits lose of each term is more than that.
#include <algorithm>

#include "cuda/launch.cuh"
#include "cuda/matrix_product.cuh"

namespace bigmodel::cuda {
namespace {

constexpr std::int64_t gradient_bytes = std::int64_t{64} << 20, fewest_columns = 512;
constexpr std::int64_t most_columns = 8192, most_float32_columns = 1024;
constexpr std::int64_t tile_columns = 128;
constexpr int threads = 256;

// A power of two that brings the gradients of the logits into fp16's range, however small grad_loss is.
__global__ __launch_bounds__(threads) void gradient_scale_kernel(const __grid_constant__ LossRule rule,
                                                                 const float* grad_loss, const float* lse,
                                                                 std::int64_t rows, float* scale) {
  __shared__ float room[threads / warp_size];
  float largest = 0.0f;
  for (std::int64_t row = threadIdx.x; row < rows; row += threads) {
    if (rule.ignores(row)) continue;
    const float size = fabsf(grad_loss[row]) * (1.0f + 2.0f * rule.options.z_loss * fabsf(lse[row]));
    if (size > largest) largest = size;
  }
  largest = group_max(largest);
  if (lane_id() == 0) room[warp_id()] = largest;
  __syncthreads();
  if (threadIdx.x != 0) return;
  for (const float each : room) largest = fmaxf(largest, each);
  const int exponent = static_cast<int>(__float_as_uint(largest) >> 23) - 127;
  const bool ordinary = exponent > -100 && exponent < 100;
  *scale = ordinary ? __uint_as_float(static_cast<unsigned>(12 - exponent + 127) << 23) : 1.0f;
}

template <class T>
__global__ __launch_bounds__(threads) void fill_kernel(T* data, std::int64_t count) {
  const std::int64_t index = std::int64_t(blockIdx.x) * threads + threadIdx.x;
  if (index < count) data[index] = from_float<T>(1.0f);
}

std::int64_t columns_of_pass(std::int64_t rows, std::int64_t vocabulary, std::int64_t item_bytes) {
  const std::int64_t fitting = std::max(gradient_bytes / (rows * item_bytes), fewest_columns);
  const std::int64_t most = std::min(fitting, item_bytes == 4 ? most_float32_columns : most_columns);
  const std::int64_t passes = ceil_div(vocabulary, most), each = ceil_div(vocabulary, passes);
  return std::min(vocabulary, round_up(each, tile_columns));
}

template <class T>
struct Backward {
  const LinearCrossEntropyBackwardArgs& args;
  const Place* place;
  std::int64_t rows, width, vocabulary, step;
  T* gradient;             // [rows, step], of the logits in a pass
  TensorView sums, ones;   // of grad_hidden, where it takes several passes; [columns, rows], of which one is wanted
  float* scale = nullptr;  // [1]

  Backward(const LinearCrossEntropyBackwardArgs& args, Workspace& workspace, const Place* place)
      : args(args),
        place(place),
        rows(args.hidden.size[0]),
        width(args.hidden.size[1]),
        vocabulary(args.weight.size[0]),
        step(columns_of_pass(rows, vocabulary, sizeof(T))),
        gradient(workspace.take<T>(rows * step)) {
    if (args.grad_hidden.data && step < vocabulary) {
      sums = matrix_at(workspace.take<float>(rows * width), DType::float32, rows, width);
    }
    if (std::is_same_v<T, half>) scale = workspace.take<float>(1);
    if (args.grad_bias.data) make_ones(workspace);
    if (!place || !scale) return;
    launch(&gradient_scale_kernel, {1, threads}, *place, LossRule{args.options, args.target, vocabulary, 0},
           static_cast<const float*>(args.grad_loss.data), args.lse, rows, scale);
  }

  // As many columns as can be copied in chunks, so that nothing copies them once more.
  void make_ones(Workspace& workspace) {
    const std::int64_t count = rows * epilogue_elements;
    T* const data = workspace.take<T>(count);
    ones = transposed(matrix_at(data, args.hidden.dtype, rows, epilogue_elements));
    if (place) launch(&fill_kernel<T>, {ceil_div(count, threads), threads}, *place, data, count);
  }

  void run_pass(std::int64_t first, std::int64_t columns, Workspace& workspace) const {
    const TensorView weight = rows_of(args.weight, first, columns);
    const TensorView chunk = matrix_at(gradient, args.hidden.dtype, rows, columns);
    const LogitsGradientEpilogue<T> epilogue{.bias = Rows<T>(as_row(rows_of(args.bias, first, columns))),
                                             .gradient = Rows<T>(chunk),
                                             .rule = {args.options, args.target, vocabulary, first},
                                             .lse = args.lse,
                                             .grad_loss = static_cast<const float*>(args.grad_loss.data),
                                             .scale = scale,
                                             .columns = static_cast<int>(columns),
                                             .packed = all_packed<T>(chunk)};
    multiply_matrices<T>(args.hidden, weight, epilogue, workspace, place);
    if (args.grad_hidden.data) {
      SumEpilogue<T> sum{.columns = static_cast<int>(width), .packed = all_packed<T>(sums, args.grad_hidden)};
      if (first > 0) sum.so_far = Rows<float>(sums);
      if (first + columns == vocabulary) {
        sum.output = Rows<T>(args.grad_hidden), sum.scale = scale;
      } else {
        sum.sums = Rows<float>(sums);
      }
      multiply_matrices<T>(chunk, transposed(weight), sum, workspace, place);
    }
    if (args.grad_weight.data) {
      finish<T>(chunk, transposed(args.hidden), rows_of(args.grad_weight, first, columns), width, workspace);
    }
    if (args.grad_bias.data) {
      TensorView bias = transposed(as_row(rows_of(args.grad_bias, first, columns)));
      // Not on TF32: these are sums, whose terms no switch allows to be rounded.
      finish<std::conditional_t<std::is_same_v<T, tf32>, float, T>>(chunk, ones, bias, 1, workspace);
    }
  }

  // output = chunk^T right^T / scale, multiplied as U.
  template <class U>
  void finish(const TensorView& chunk, const TensorView& right, const TensorView& output, std::int64_t columns,
              Workspace& workspace) const {
    const SumEpilogue<U> epilogue{.output = Rows<U>(output),
                                  .scale = scale,
                                  .columns = static_cast<int>(columns),
                                  .packed = all_packed<U>(output)};
    multiply_matrices<U>(transposed(chunk), right, epilogue, workspace, place);
  }
};

template <class T>
std::int64_t run_as(const LinearCrossEntropyBackwardArgs& args, Workspace workspace, const Place* place) {
  const Backward<T> backward(args, workspace, place);
  std::int64_t most = 0;
  for (std::int64_t first = 0; first < backward.vocabulary; first += backward.step) {
    Workspace of_pass = workspace;
    backward.run_pass(first, std::min(backward.step, backward.vocabulary - first), of_pass);
    most = std::max(most, of_pass.used());
  }
  return most;
}

}  // namespace

std::int64_t workspace_bytes(const LinearCrossEntropyBackwardArgs& args, const Place& place) {
  std::int64_t bytes = 0;
  with_product_type(args.hidden.dtype, place, [&]<class T>(T) { bytes = run_as<T>(args, Workspace(), nullptr); });
  return bytes;
}

void run(const LinearCrossEntropyBackwardArgs& args, const Place& place) {
  with_product_type(args.hidden.dtype, place, [&]<class T>(T) { run_as<T>(args, Workspace(args.workspace), &place); });
}

}  // namespace bigmodel::cuda
