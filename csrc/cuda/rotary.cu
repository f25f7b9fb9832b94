// rotary: pairs of features turned by an angle. A thread reads the angles of a chunk of pairs of one token once, and
// turns some heads of query and key by them.
#include "bigmodel/rotary.h"

#include <cmath>

#include "cuda/attention_inputs.cuh"
#include "cuda/launch.cuh"
#include "cuda/pack_rows.h"
#include "cuda/rows.cuh"

namespace bigmodel::cuda {
namespace {

constexpr int rotary_threads = 256;
constexpr int heads_at_once = 4;  // of a thread: as many loads are under way

// cos or sin [batch, rows, pairs], of the op's dtype or of fp32.
template <class T>
struct Angles {
  T* own = nullptr;
  float* wide = nullptr;
  std::int64_t batch, row, pair;  // strides

  explicit Angles(const TensorView& view) : batch(view.stride[0]), row(view.stride[1]), pair(view.stride[2]) {
    if (view.dtype == DType::float32) {
      wide = static_cast<float*>(view.data);
    } else {
      own = static_cast<T*>(view.data);
    }
  }
};

template <class T>
struct Params {
  View<T> query, key, query_output, key_output;
  Angles<T> cos, sin;
  std::int64_t table_rows;
  const std::int64_t* positions;
  std::int64_t positions_batch;  // stride
  int heads, all_heads, length, pairs;
  bool inverse;
  int turning, chunks;           // of a token: chunks of pairs, and with those of features that are copied
  std::int64_t groups, threads;  // of heads of one token; and in all that have a chunk
};

// The angles of the N pairs from `pair` on; NaN of a row that the tables do not have.
template <int N, class T>
__device__ void load_angles(const Params<T>& p, const Angles<T>& table, int batch, std::int64_t row, int pair,
                            float (&values)[N]) {
  const std::int64_t at = batch * table.batch + row * table.row;
  if (row < 0 || row >= p.table_rows) {
#pragma unroll
    for (int i = 0; i < N; ++i) values[i] = NAN;
  } else if (table.wide) {
    load(Rows<float>(table.wide + at, table.pair), 0, pair, values);
  } else {
    load(Rows<T>(table.own + at, table.pair), 0, pair, values);
  }
}

// Both features of N pairs: N neighbours twice, or interleaved 2 N neighbours.
template <bool Interleaved, int N, class T>
__device__ void load_pairs(const Rows<T>& row, int pair, int pairs, float (&a)[N], float (&b)[N]) {
  if constexpr (Interleaved && N > 1) {
    float both[2 * N];
    load(row, 0, 2 * pair, both);
#pragma unroll
    for (int i = 0; i < N; ++i) a[i] = both[2 * i], b[i] = both[2 * i + 1];
  } else {
    const int first = Interleaved ? 2 * pair : pair;
    load(row, 0, first, a);
    load(row, 0, first + (Interleaved ? 1 : pairs), b);
  }
}

template <bool Interleaved, int N, class T>
__device__ void store_pairs(const Rows<T>& row, int pair, int pairs, const float (&a)[N], const float (&b)[N]) {
  if constexpr (Interleaved && N > 1) {
    float both[2 * N];
#pragma unroll
    for (int i = 0; i < N; ++i) both[2 * i] = a[i], both[2 * i + 1] = b[i];
    store(row, 0, 2 * pair, both);
  } else {
    const int first = Interleaved ? 2 * pair : pair;
    store(row, 0, first, a);
    store(row, 0, first + (Interleaved ? 1 : pairs), b);
  }
}

// A token of up to `heads_at_once` heads: body(number, row read, row written). Query's heads first, then key's.
template <class T, class Body>
__device__ void for_each_head(const Params<T>& p, int batch, int first_head, int token, Body body) {
#pragma unroll
  for (int i = 0; i < heads_at_once; ++i) {
    const int head = first_head + i;
    if (head >= p.all_heads) return;
    const bool of_query = head < p.heads;
    const View<T>&from = of_query ? p.query : p.key, &to = of_query ? p.query_output : p.key_output;
    const int h = of_query ? head : head - p.heads;
    body(i, Rows<T>(from.at(batch, h, token), from.column), Rows<T>(to.at(batch, h, token), to.column));
  }
}

template <class T, bool Interleaved, int N>
__global__ __launch_bounds__(rotary_threads) void rotary_kernel(const __grid_constant__ Params<T> p) {
  const std::int64_t index = std::int64_t(blockIdx.x) * rotary_threads + threadIdx.x;
  if (index >= p.threads) return;
  const auto chunk = static_cast<int>(index % p.chunks), token = static_cast<int>(index / p.chunks % p.length);
  const std::int64_t rest = index / p.chunks / p.length;
  const auto batch = static_cast<int>(rest / p.groups), first_head = static_cast<int>(rest % p.groups) * heads_at_once;
  if (chunk >= p.turning) {
    const int column = 2 * p.pairs + (chunk - p.turning) * N;
    for_each_head(p, batch, first_head, token, [&](int, const Rows<T>& from, const Rows<T>& to) {
      float x[N];
      load(from, 0, column, x);
      store(to, 0, column, x);
    });
    return;
  }
  const int pair = chunk * N;
  const std::int64_t row = p.positions ? p.positions[batch * p.positions_batch + token] : token;
  float cos[N], sin[N], a[heads_at_once][N], b[heads_at_once][N];
  load_angles(p, p.cos, batch, row, pair, cos);
  load_angles(p, p.sin, batch, row, pair, sin);
  for_each_head(p, batch, first_head, token, [&](int i, const Rows<T>& from, const Rows<T>&) {
    load_pairs<Interleaved>(from, pair, p.pairs, a[i], b[i]);
  });
  for_each_head(p, batch, first_head, token, [&](int i, const Rows<T>&, const Rows<T>& to) {
    float first[N], second[N];
#pragma unroll
    for (int j = 0; j < N; ++j) {
      const float s = p.inverse ? -sin[j] : sin[j];
      first[j] = a[i][j] * cos[j] - b[i][j] * s;
      second[j] = b[i][j] * cos[j] + a[i][j] * s;
    }
    store_pairs<Interleaved>(to, pair, p.pairs, first, second);
  });
}

// Whether all of a call can be moved in chunks of 128 bits.
bool all_packed(const RotaryArgs& args, std::int64_t size) {
  const auto packed = [](const TensorView& view) { return !view.data || has_packed_rows(view); };
  const auto packed_table = [&](const TensorView& table) {
    TensorView view = table;  // [1, batch, rows, pairs]
    for (int dim = max_dims - 1; dim > 0; --dim) {
      view.size[dim] = table.size[dim - 1];
      view.stride[dim] = table.stride[dim - 1];
    }
    view.size[0] = 1;
    return has_packed_rows(view);
  };
  return args.cos.size[2] % size == 0 && packed(args.query) && packed(args.key) && packed(args.query_output) &&
         packed(args.key_output) && packed_table(args.cos) && packed_table(args.sin);
}

template <class T, int N>
void launch_rotary(const RotaryArgs& args, const Place& place) {
  const TensorView& query = args.query;
  const bool in_place = query.data ? args.query_output.data == query.data : args.key_output.data == args.key.data;
  const std::int64_t pairs = args.cos.size[2], left = in_place ? 0 : query.size[3] - 2 * pairs;
  const std::int64_t all_heads = query.size[1] + (args.key.data ? args.key.size[1] : 0);
  Params<T> p{.query = View<T>(query),
              .key = View<T>(args.key),
              .query_output = View<T>(args.query_output),
              .key_output = View<T>(args.key_output),
              .cos = Angles<T>(args.cos),
              .sin = Angles<T>(args.sin),
              .table_rows = args.cos.size[1],
              .positions = args.positions,
              .positions_batch = args.positions_batch_stride,
              .heads = static_cast<int>(query.size[1]),
              .all_heads = static_cast<int>(all_heads),
              .length = static_cast<int>(query.size[2]),
              .pairs = static_cast<int>(pairs),
              .inverse = args.inverse,
              .turning = static_cast<int>(pairs / N),
              .chunks = static_cast<int>((pairs + left) / N),
              .groups = ceil_div(all_heads, heads_at_once)};
  p.threads = query.size[0] * p.groups * p.length * p.chunks;
  const Launch shape{ceil_div(p.threads, rotary_threads), rotary_threads};
  if (args.interleaved) {
    launch(&rotary_kernel<T, true, N>, shape, place, p);
  } else {
    launch(&rotary_kernel<T, false, N>, shape, place, p);
  }
}

}  // namespace

std::int64_t workspace_bytes(const RotaryArgs&, const Place&) { return 0; }

void run(const RotaryArgs& args, const Place& place) {
  with_dtype(args.query.dtype, [&]<class T>(T) {
    if (all_packed(args, Pack<T>::size)) {
      launch_rotary<T, Pack<T>::size>(args, place);
    } else {
      launch_rotary<T, 1>(args, place);
    }
  });
}

}  // namespace bigmodel::cuda
