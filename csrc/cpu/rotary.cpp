// Rotary position embedding: the contract is in bigmodel/rotary.h. It is bound by memory: every job reads the angles of
// a few tokens once, as fp32, and turns all heads of these tokens.
#include "bigmodel/rotary.h"

#include "cpu/epilogue.h"
#include "cpu/kernels.h"
#include "cpu/product.h"

namespace bigmodel::cpu::BIGMODEL_TARGET {
namespace {

constexpr std::int64_t job_tokens = 16, most_pairs = 64;

// cos and sin of a job's tokens for pairs [first, first + pairs). Interleaved each stands twice, beside both features
// of its pair, and sin with the sign that it has there.
struct Angles {
  std::int64_t first, pairs;
  alignas(64) float cos[job_tokens][2 * most_pairs];
  alignas(64) float sin[job_tokens][2 * most_pairs];
};

struct Job {
  std::int64_t batch, first_token, tokens;
};

template <class T>
BIGMODEL_INLINE void write(T* p, std::int64_t stride, std::int64_t j, F32 a, std::int64_t count) {
  if (stride == 1) return store_up_to(p + j, a, count);
  T values[lanes];
  store(values, a);
  for (std::int64_t i = 0; i < least(lanes, count); ++i) p[(j + i) * stride] = values[i];
}

template <class W>
void load_angles(const TensorView& table, std::int64_t batch, std::int64_t row, const Angles& angles, float* to) {
  const std::int64_t offset = batch * table.stride[0] + row * table.stride[1] + angles.first * table.stride[2];
  load_row(to, static_cast<const W*>(table.data) + offset, table.stride[2], angles.pairs);
}

void load_angles(const TensorView& table, std::int64_t batch, std::int64_t row, const Angles& angles, float* to) {
  with_type_of(table.dtype, [&](auto type) { load_angles<decltype(type)>(table, batch, row, angles, to); });
}

// From the last pair down, so that nothing is overwritten before it is read.
void spread(float* values, std::int64_t pairs, float first_sign) {
  for (std::int64_t i = pairs; i-- > 0;) {
    const float value = values[i];
    values[2 * i] = first_sign * value;
    values[2 * i + 1] = value;
  }
}

void load_angles(const RotaryArgs& args, const Job& job, Angles& angles) {
  for (std::int64_t t = 0; t < job.tokens; ++t) {
    const std::int64_t token = job.first_token + t;
    const std::int64_t row = args.positions ? args.positions[job.batch * args.positions_batch_stride + token] : token;
    load_angles(args.cos, job.batch, row, angles, angles.cos[t]);
    load_angles(args.sin, job.batch, row, angles, angles.sin[t]);
    if (args.inverse) {
      for (std::int64_t j = 0; j < angles.pairs; ++j) angles.sin[t][j] = -angles.sin[t][j];
    }
    if (args.interleaved) {
      spread(angles.cos[t], angles.pairs, 1.0f);
      spread(angles.sin[t], angles.pairs, -1.0f);
    }
  }
}

// `second` is how far apart the features of a pair are, in elements of x and y.
template <class T>
void turn_halves(const float* cos, const float* sin, std::int64_t pairs, const T* x, std::int64_t x_stride,
                 std::int64_t x_second, T* y, std::int64_t y_stride, std::int64_t y_second) {
  for (std::int64_t j = 0; j < pairs; j += lanes) {
    const F32 a = read(x, x_stride, j, pairs - j), b = read(x + x_second, x_stride, j, pairs - j);
    const F32 c = load(cos + j), s = load(sin + j);
    write(y, y_stride, j, fnma(b, s, a * c), pairs - j);
    write(y + y_second, y_stride, j, fma(a, s, b * c), pairs - j);
  }
}

template <class T>
void turn_neighbours(const float* cos, const float* sin, std::int64_t features, const T* x, std::int64_t x_stride, T* y,
                     std::int64_t y_stride) {
  for (std::int64_t j = 0; j < features; j += lanes) {
    const F32 a = read(x, x_stride, j, features - j);
    write(y, y_stride, j, fma(swap_pairs(a), load(sin + j), a * load(cos + j)), features - j);
  }
}

template <class T>
void copy_features(const T* x, std::int64_t x_stride, T* y, std::int64_t y_stride, std::int64_t features) {
  for (std::int64_t j = 0; j < features; j += lanes) {
    write(y, y_stride, j, read(x, x_stride, j, features - j), features - j);
  }
}

// All heads of the job's tokens; `rest`: also what is not turned.
template <class T>
void turn_heads(const RotaryArgs& args, const Job& job, const Angles& angles, const TensorView& input,
                const TensorView& output, bool rest) {
  const std::int64_t pairs = args.cos.size[2], x_stride = input.stride[3], y_stride = output.stride[3];
  const std::int64_t first = args.interleaved ? 2 * angles.first : angles.first;
  rest = rest && input.data != output.data;
  for (std::int64_t head = 0; head < input.size[1]; ++head) {
    for (std::int64_t t = 0; t < job.tokens; ++t) {
      const std::int64_t token = job.first_token + t;
      const T* x = static_cast<const T*>(input.data) + job.batch * input.stride[0] + head * input.stride[1] +
                   token * input.stride[2];
      T* y = static_cast<T*>(output.data) + job.batch * output.stride[0] + head * output.stride[1] +
             token * output.stride[2];
      if (args.interleaved) {
        turn_neighbours(angles.cos[t], angles.sin[t], 2 * angles.pairs, x + first * x_stride, x_stride,
                        y + first * y_stride, y_stride);
      } else {
        turn_halves(angles.cos[t], angles.sin[t], angles.pairs, x + first * x_stride, x_stride, pairs * x_stride,
                    y + first * y_stride, y_stride, pairs * y_stride);
      }
      if (rest) {
        copy_features(x + 2 * pairs * x_stride, x_stride, y + 2 * pairs * y_stride, y_stride,
                      input.size[3] - 2 * pairs);
      }
    }
  }
}

template <class T>
void run_rotary(const RotaryArgs& args) {
  const std::int64_t batch = args.query.size[0], length = args.query.size[2], pairs = args.cos.size[2];
  const std::int64_t blocks = parts_of(length, job_tokens);
  const std::int64_t heads = args.query.size[1] + (args.key.data ? args.key.size[1] : 0);
  // An element costs about as much as four multiply-adds of a product.
  const int workers = workers_for(4 * batch * heads * length * args.query.size[3]);
  for_each_job(workers, batch * blocks, [&](std::int64_t index, int) {
    Job job{index / blocks, index % blocks * job_tokens, 0};
    job.tokens = least(job_tokens, length - job.first_token);
    Angles angles;
    for (angles.first = 0; angles.first < pairs; angles.first += most_pairs) {
      angles.pairs = least(most_pairs, pairs - angles.first);
      load_angles(args, job, angles);
      turn_heads<T>(args, job, angles, args.query, args.query_output, angles.first == 0);
      if (args.key.data) turn_heads<T>(args, job, angles, args.key, args.key_output, angles.first == 0);
    }
  });
}

}  // namespace

std::int64_t rotary_workspace(const RotaryArgs&) { return 0; }

void rotary(const RotaryArgs& args) {
  with_type_of(args.query.dtype, [&](auto type) { run_rotary<decltype(type)>(args); });
}

}  // namespace bigmodel::cpu::BIGMODEL_TARGET
