// LayerNorm and RMSNorm of a sum: the contract is in bigmodel/add_norm.h.
//
// A row is handled in blocks that fit the first-level cache, so that a row of one block is read from memory once,
// whatever passes its statistics take. RMSNorm is LayerNorm with a mean of zero.
#include "bigmodel/add_norm.h"

#include "cpu/jobs.h"
#include "cpu/kernels.h"
#include "cpu/row_block.h"

namespace bigmodel::cpu::BIGMODEL_TARGET {

namespace {

constexpr int chains = 4;

// With fewer elements than this a worker costs more to start than it saves.
constexpr std::int64_t worker_elements = 16384;

int workers_for(std::int64_t rows, std::int64_t width) {
  const std::int64_t wanted = larger(1, smaller(rows, rows * width / worker_elements));
  return static_cast<int>(smaller(wanted, max_workers()));
}

// ---- forward ----

// input + residual, one block at a time; the sum goes to its tensor, and what is read is the stored sum.
template <class T>
class SumRow {
 public:
  explicit SumRow(const AddNormForwardArgs& args) : args_(args) {}

  // next: the row that will follow.
  void start(std::int64_t row, std::int64_t next) {
    input_ = row_of(args_.input, row);
    residual_ = row_of(args_.residual, row);
    next_input_ = row_of(args_.input, next);
    next_residual_ = row_of(args_.residual, next);
    sum_ = output_row<T>(args_.sum, row);
    summed_ = 0;
  }

  const T* read(std::int64_t begin, std::int64_t count) {
    if (!residual_.data) return input_block_.read(input_, begin, count);
    if (begin >= summed_) {
      const T *a = input_block_.read(input_, begin, count), *b = residual_block_.read(residual_, begin, count);
      over_vectors<1>(count, [&](std::int64_t j, auto part, int) BIGMODEL_INLINE_LAMBDA {
        part.write(sum_ + begin + j, part.read(a + j) + part.read(b + j));
      });
      summed_ = begin + count;
    }
    return sum_ + begin;
  }

  Ahead<T> following(std::int64_t begin) const { return ahead<T>(next_input_, next_residual_, begin); }

 private:
  const AddNormForwardArgs& args_;
  Line input_, residual_, next_input_, next_residual_;
  T* sum_ = nullptr;
  std::int64_t summed_ = 0;  // elements of the row
  Block<T> input_block_, residual_block_;
};

// The mean is center + offset: a mean rounded to fp32 would spoil rows whose mean is large beside their deviation.
struct Moments {
  float center, offset, rstd;
};

template <class Row>
float mean_of(Row& row, std::int64_t width) {
  double total = 0.0;
  for (std::int64_t begin = 0; begin < width; begin += block_size) {
    const std::int64_t count = smaller(block_size, width - begin);
    const auto* values = row.read(begin, count);
    const auto next = row.following(begin);
    F32 sums[chains] = {};
    over_vectors<chains>(count, [&](std::int64_t j, auto part, int chain) BIGMODEL_INLINE_LAMBDA {
      next.fetch(j, chain);
      sums[chain] = sums[chain] + part.read(values + j);
    });
    total += reduce_add(sums);
  }
  return static_cast<float>(total / static_cast<double>(width));
}

// The second pass measures deviations from the rounded mean and takes their own small mean out again.
template <class Row>
Moments moments_of(Row& row, std::int64_t width, NormKind kind, float eps) {
  const float center = kind == NormKind::layer ? mean_of(row, width) : 0.0f;
  double total = 0.0, total_squares = 0.0;
  for (std::int64_t begin = 0; begin < width; begin += block_size) {
    const std::int64_t count = smaller(block_size, width - begin);
    const auto* values = row.read(begin, count);
    const auto next = row.following(begin);
    F32 sums[chains] = {}, squares[chains] = {};
    over_vectors<chains>(count, [&](std::int64_t j, auto part, int chain) BIGMODEL_INLINE_LAMBDA {
      next.fetch(j, chain);
      const F32 deviation = part.keep(part.read(values + j) - set1(center));
      sums[chain] = sums[chain] + deviation;
      squares[chain] = fma(deviation, deviation, squares[chain]);
    });
    total += reduce_add(sums);
    total_squares += reduce_add(squares);
  }
  const double n = static_cast<double>(width);
  const double offset = kind == NormKind::layer ? total / n : 0.0;
  const double variance = total_squares / n - offset * offset;
  const double rstd = 1.0 / __builtin_sqrt((variance > 0.0 ? variance : 0.0) + static_cast<double>(eps));
  return {center, static_cast<float>(offset), static_cast<float>(rstd)};
}

template <bool streaming, class T>
void normalise(const T* values, const float* weight, const float* bias, const Moments& moments, T* normed,
               std::int64_t count) {
  const F32 center = set1(moments.center), rstd = set1(moments.rstd), shift = set1(-moments.offset * moments.rstd);
  over_vectors<chains>(count, [&](std::int64_t j, auto part, int) BIGMODEL_INLINE_LAMBDA {
    const F32 x = fma(part.read(values + j) - center, rstd, shift);
    const F32 y = fma(x, part.read(weight + j), part.read(bias + j));
    part.template write_or_stream<streaming>(normed + j, y);
  });
}

template <class T, bool streaming>
void forward_rows(const AddNormForwardArgs& args, std::int64_t first, std::int64_t last) {
  const std::int64_t width = args.input.size[1];
  SumRow<T> row(args);
  Block<float> weight, bias;
  for (std::int64_t i = first; i < last; ++i) {
    row.start(i, smaller(i + 1, last - 1));
    const Moments moments = moments_of(row, width, args.kind, args.eps);
    T* normed = output_row<T>(args.normed, i);
    for (std::int64_t begin = 0; begin < width; begin += block_size) {
      const std::int64_t count = smaller(block_size, width - begin);
      normalise<streaming>(row.read(begin, count), weight.read(line_of(args.weight), begin, count, 1.0f),
                           bias.read(line_of(args.bias), begin, count, 0.0f), moments, normed + begin, count);
    }
    if (args.mean.data) static_cast<float*>(args.mean.data)[i] = moments.center + moments.offset;
    if (args.rstd.data) static_cast<float*>(args.rstd.data)[i] = moments.rstd;
  }
  if constexpr (streaming) stream_end();
}

template <class T>
void forward_rows(const AddNormForwardArgs& args, std::int64_t first, std::int64_t last) {
  if (worth_streaming(args.normed)) {
    forward_rows<T, true>(args, first, last);
  } else {
    forward_rows<T, false>(args, first, last);
  }
}

constexpr std::int64_t jobs_per_worker = 8;

template <class T>
void forward(const AddNormForwardArgs& args) {
  const std::int64_t rows = args.input.size[0], width = args.input.size[1];
  const int workers = workers_for(rows, width);
  const std::int64_t rows_each =
      larger(larger(1, worker_elements / larger(1, width)), rows / (workers * jobs_per_worker));
  for_each_job(workers, (rows + rows_each - 1) / rows_each, [&](std::int64_t job, int) {
    forward_rows<T>(args, job * rows_each, smaller(rows, (job + 1) * rows_each));
  });
}

// ---- backward ----
//
// With x = (sum - mean) rstd and g = grad_normed weight:
//   grad_input = rstd (g - mean(g) - x mean(g x)) + grad_sum   (rms: without mean(g))
//   grad_weight = sum over rows of grad_normed x;  grad_bias = sum over rows of grad_normed
// Rows are cut into parts by the shape alone. Each part sums its weight gradients in its own two rows of the workspace;
// the parts are then added in order. So the result does not depend on the number of workers.

constexpr std::int64_t most_parts = 64, least_part_rows = 16;

struct Parts {
  std::int64_t rows_each, count, row_stride;  // row_stride: floats from one row of partial sums to the next
};

Parts parts_of(std::int64_t rows, std::int64_t width) {
  const std::int64_t rows_each = larger(least_part_rows, (rows + most_parts - 1) / most_parts);
  return {rows_each, larger(1, (rows + rows_each - 1) / rows_each), round_up(width, 16)};
}

struct RowGradient {
  std::int64_t row;
  float mean, rstd;
  float *grad_weight, *grad_bias;  // the part's sums so far; nullptr: not wanted
};

template <class T, bool streaming>
class BackwardRow {
 public:
  explicit BackwardRow(const AddNormBackwardArgs& args) : args_(args), width_(args.sum.size[1]) {}

  // next: the row that will follow.
  void run(const RowGradient& row, std::int64_t next) {
    grad_ = row_of(args_.grad_normed, row.row);
    sum_ = row_of(args_.sum, row.row);
    next_grad_ = row_of(args_.grad_normed, next);
    next_sum_ = row_of(args_.sum, next);
    double mean_grad = 0.0, mean_product = 0.0;
    for (std::int64_t begin = 0; begin < width_; begin += block_size) {
      const std::int64_t count = smaller(block_size, width_ - begin);
      F32 grads[chains] = {}, products[chains] = {};
      if (row.grad_weight) {
        reduce<true>(row, begin, count, grads, products);
      } else {
        reduce<false>(row, begin, count, grads, products);
      }
      mean_grad += reduce_add(grads);
      mean_product += reduce_add(products);
    }
    if (!args_.grad_input.data) return;
    mean_grad = args_.kind == NormKind::layer ? mean_grad / static_cast<double>(width_) : 0.0;
    mean_product /= static_cast<double>(width_);
    for (std::int64_t begin = 0; begin < width_; begin += block_size) {
      write_grad_input(row, begin, smaller(block_size, width_ - begin), static_cast<float>(mean_grad),
                       static_cast<float>(mean_product));
    }
  }

 private:
  const float* weight(std::int64_t begin, std::int64_t count) {
    return weight_block_.read(line_of(args_.weight), begin, count, 1.0f);
  }

  // Adds g and g x of the block to the row's sums, and the block to the weight gradients when they are wanted.
  template <bool weight_gradients>
  void reduce(const RowGradient& row, std::int64_t begin, std::int64_t count, F32 (&grads)[chains],
              F32 (&products)[chains]) {
    const T* grad_normed = grad_block_.read(grad_, begin, count);
    const T* sum = sum_block_.read(sum_, begin, count);
    const float* scale = weight(begin, count);
    const F32 mean = set1(row.mean), rstd = set1(row.rstd);
    const Ahead<T> next = ahead<T>(next_grad_, next_sum_, begin);
    over_vectors<chains>(count, [&](std::int64_t j, auto part, int chain) BIGMODEL_INLINE_LAMBDA {
      next.fetch(j, chain);
      const F32 grad = part.read(grad_normed + j), x = (part.read(sum + j) - mean) * rstd;
      const F32 product = grad * x, w = part.read(scale + j);
      grads[chain] = fma(grad, w, grads[chain]);
      products[chain] = fma(product, w, products[chain]);
      if constexpr (weight_gradients) {
        float *grad_weight = row.grad_weight + begin + j, *grad_bias = row.grad_bias + begin + j;
        part.write(grad_weight, part.read(grad_weight) + product);
        part.write(grad_bias, part.read(grad_bias) + grad);
      }
    });
  }

  void write_grad_input(const RowGradient& row, std::int64_t begin, std::int64_t count, float mean_grad,
                        float mean_product) {
    const T* grad_normed = grad_block_.read(grad_, begin, count);
    const T* sum = sum_block_.read(sum_, begin, count);
    const float* scale = weight(begin, count);
    const T* grad_sum = grad_sum_block_.read(row_of(args_.grad_sum, row.row), begin, count);
    T* grad_input = output_row<T>(args_.grad_input, row.row) + begin;
    const F32 mean = set1(row.mean), rstd = set1(row.rstd), grad_offset = set1(mean_grad), slope = set1(mean_product);
    over_vectors<chains>(count, [&](std::int64_t j, auto part, int) BIGMODEL_INLINE_LAMBDA {
      const F32 x = (part.read(sum + j) - mean) * rstd;
      const F32 centred = fnma(x, slope, fma(part.read(grad_normed + j), part.read(scale + j), zero() - grad_offset));
      part.template write_or_stream<streaming>(grad_input + j, fma(centred, rstd, part.read(grad_sum + j)));
    });
  }

  const AddNormBackwardArgs& args_;
  const std::int64_t width_;
  Line grad_, sum_, next_grad_, next_sum_;
  Block<T> grad_block_, sum_block_, grad_sum_block_;
  Block<float> weight_block_;
};

struct BackwardJob {
  const AddNormBackwardArgs& args;
  Parts parts;
  int workers;
  bool weight_gradients;

  float* grad_weight(std::int64_t part) const {
    return static_cast<float*>(args.workspace) + 2 * part * parts.row_stride;
  }
  float* grad_bias(std::int64_t part) const { return grad_weight(part) + parts.row_stride; }
};

template <class T, bool streaming>
void backward_part(const BackwardJob& job, BackwardRow<T, streaming>& row, std::int64_t part) {
  const AddNormBackwardArgs& args = job.args;
  RowGradient gradient{};
  if (job.weight_gradients) {
    gradient.grad_weight = job.grad_weight(part);
    gradient.grad_bias = job.grad_bias(part);
    __builtin_memset(gradient.grad_weight, 0, sizeof(float) * 2 * job.parts.row_stride);
  }
  const std::int64_t last = smaller(args.sum.size[0], (part + 1) * job.parts.rows_each);
  for (gradient.row = part * job.parts.rows_each; gradient.row < last; ++gradient.row) {
    gradient.mean = args.mean.data ? static_cast<const float*>(args.mean.data)[gradient.row] : 0.0f;
    gradient.rstd = static_cast<const float*>(args.rstd.data)[gradient.row];
    row.run(gradient, smaller(gradient.row + 1, args.sum.size[0] - 1));
  }
}

template <class T, bool streaming>
void backward_rows(const BackwardJob& job) {
  for_each_job(job.workers, job.parts.count, [&](std::int64_t part, int) {
    BackwardRow<T, streaming> row(job.args);
    backward_part(job, row, part);
    if constexpr (streaming) stream_end();
  });
}

template <class T>
void backward_rows(const BackwardJob& job) {
  if (job.args.grad_input.data && worth_streaming(job.args.grad_input)) {
    backward_rows<T, true>(job);
  } else {
    backward_rows<T, false>(job);
  }
}

// Adds the parts of `partial` (the first part's row) in order, for the columns [first, last).
template <class T>
void add_parts(const BackwardJob& job, const float* partial, T* gradient, std::int64_t first, std::int64_t last) {
  over_vectors<1>(last - first, [&](std::int64_t j, auto part, int) BIGMODEL_INLINE_LAMBDA {
    F32 total = zero();
    for (std::int64_t p = 0; p < job.parts.count; ++p) {
      total = total + part.read(partial + 2 * p * job.parts.row_stride + first + j);
    }
    part.write(gradient + first + j, total);
  });
}

void add_parts(const BackwardJob& job, const float* partial, const TensorView& gradient) {
  if (!gradient.data) return;
  constexpr std::int64_t columns = 512;
  const std::int64_t width = job.args.sum.size[1];
  for_each_job(job.workers, (width + columns - 1) / columns, [&](std::int64_t share, int) {
    const std::int64_t first = share * columns, last = smaller(width, first + columns);
    void* data = gradient.data;
    if (gradient.dtype == DType::float32) add_parts(job, partial, static_cast<float*>(data), first, last);
    if (gradient.dtype == DType::bfloat16) add_parts(job, partial, static_cast<bfloat16*>(data), first, last);
    if (gradient.dtype == DType::float16) add_parts(job, partial, static_cast<float16*>(data), first, last);
  });
}

template <class T>
void backward(const BackwardJob& job) {
  backward_rows<T>(job);
  if (!job.weight_gradients) return;
  add_parts(job, job.grad_weight(0), job.args.grad_weight);
  add_parts(job, job.grad_bias(0), job.args.grad_bias);
}

}  // namespace

std::int64_t add_norm_forward_workspace(const AddNormForwardArgs&) { return 0; }

void add_norm_forward(const AddNormForwardArgs& args) {
  if (args.input.dtype == DType::float32) forward<float>(args);
  if (args.input.dtype == DType::bfloat16) forward<bfloat16>(args);
  if (args.input.dtype == DType::float16) forward<float16>(args);
}

std::int64_t add_norm_backward_workspace(const AddNormBackwardArgs& args) {
  if (!args.grad_weight.data && !args.grad_bias.data) return 0;
  const Parts parts = parts_of(args.sum.size[0], args.sum.size[1]);
  return static_cast<std::int64_t>(sizeof(float)) * 2 * parts.count * parts.row_stride;
}

void add_norm_backward(const AddNormBackwardArgs& args) {
  const std::int64_t rows = args.sum.size[0], width = args.sum.size[1];
  const Parts parts = parts_of(rows, width);
  const int workers = static_cast<int>(larger(1, smaller(parts.count, workers_for(rows, width))));
  const BackwardJob job{args, parts, workers, args.grad_weight.data || args.grad_bias.data};
  if (args.sum.dtype == DType::float32) backward<float>(job);
  if (args.sum.dtype == DType::bfloat16) backward<bfloat16>(job);
  if (args.sum.dtype == DType::float16) backward<float16>(job);
}

}  // namespace bigmodel::cpu::BIGMODEL_TARGET
