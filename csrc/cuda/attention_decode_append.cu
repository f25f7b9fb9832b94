// attention_decode's new keys and values, written to the caches: a warp takes a row of one head.
#include <cmath>

#include "cuda/attention_decode.cuh"
#include "cuda/attention_inputs.cuh"
#include "cuda/launch.cuh"
#include "cuda/warp.cuh"

namespace bigmodel::cuda {
namespace {

constexpr int append_threads = 128;

template <class T, class C>
struct Params {
  View<const T> new_key, new_value;
  Cache<C> key, value;
  Places places;
  int kv_heads;
  std::int64_t rows;  // of new_key
};

// NaN counts as the largest.
__device__ inline float larger(float a, float b) { return a > b || a != a ? a : b; }

// All lanes get the scale that the row is written with.
template <class T>
__device__ float write_quantized(const T* from, std::int64_t stride, int features, std::int8_t* to) {
  float largest = 0.0f;
  for (int i = lane_id(); i < features; i += warp_size) largest = larger(fabsf(to_float(from[i * stride])), largest);
#pragma unroll
  for (int step = warp_size / 2; step > 0; step /= 2) {
    largest = larger(__shfl_xor_sync(whole_warp, largest, step), largest);
  }
  const float scale = largest / 127.0f;
  for (int i = lane_id(); i < features; i += warp_size) {
    const float whole = scale > 0.0f ? rintf(to_float(from[i * stride]) / scale) : 0.0f;
    to[i] = static_cast<std::int8_t>(fminf(fmaxf(whole, -127.0f), 127.0f));
  }
  return scale;
}

template <class T, class C>
__global__ __launch_bounds__(append_threads) void append_kernel(const __grid_constant__ Params<T, C> p) {
  const std::int64_t row = std::int64_t(blockIdx.x) * (append_threads / warp_size) + warp_id();
  if (row >= 2 * p.rows) return;
  const bool of_keys = row < p.rows;
  const std::int64_t r = of_keys ? row : row - p.rows;
  const View<const T>& source = of_keys ? p.new_key : p.new_value;
  const Cache<C>& cache = of_keys ? p.key : p.value;
  const auto head = static_cast<int>(r % p.kv_heads), token = static_cast<int>(r / p.kv_heads % p.places.q_len),
             batch = static_cast<int>(r / p.kv_heads / p.places.q_len);
  const Entry entry = p.places.find(batch, p.places.total(batch) - p.places.q_len + token);
  if (!entry.exists) return;
  const T* const from = source.at(batch, head, token);
  C* const to = cache.data + cache.at(entry, head);
  if constexpr (sizeof(C) == 1) {
    const float scale = write_quantized(from, source.column, cache.features, to);
    if (lane_id() == 0) cache.scale(entry, head) = scale;
  } else {
    for (int i = lane_id(); i < cache.features; i += warp_size)
      to[i] = from_float<C>(to_float(from[i * source.column]));
  }
}

}  // namespace

void append(const AttentionDecodeArgs& args, const Place& place) {
  with_dtype(args.query.dtype, [&]<class T>(T) {
    with_cache_dtype(args.key_cache.dtype, [&]<class C>(C) {
      const TensorView& rows = args.new_key;
      const Params<T, C> p{.new_key = View<const T>(rows),
                           .new_value = View<const T>(args.new_value),
                           .key = Cache<C>(args.key_cache, args.key_scales),
                           .value = Cache<C>(args.value_cache, args.value_scales),
                           .places = Places(args),
                           .kv_heads = static_cast<int>(rows.size[1]),
                           .rows = rows.size[0] * rows.size[1] * rows.size[2]};
      constexpr int warps = append_threads / warp_size;
      launch(&append_kernel<T, C>, {ceil_div(2 * p.rows, warps), append_threads}, place, p);
    });
  });
}

}  // namespace bigmodel::cuda
