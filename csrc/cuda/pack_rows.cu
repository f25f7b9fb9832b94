#include "cuda/pack_rows.h"

#include <cstdint>

#include "cuda/launch.cuh"

namespace bigmodel::cuda {
namespace {

constexpr int pack_threads = 256;

// Elements of a chunk.
std::int64_t chunk_of(DType dtype) { return std::int64_t(sizeof(uint4)) / bytes_of(dtype); }

struct Params {
  const void* from;
  std::int64_t stride[max_dims];
  std::int64_t heads, length, width, chunks, total;  // total: of chunks, in all rows
  uint4* to;
};

// A thread fills one chunk. Bits: an unsigned number as large as an element.
template <class Bits>
__global__ __launch_bounds__(pack_threads) void pack_rows_kernel(const __grid_constant__ Params p) {
  constexpr int chunk = 16 / sizeof(Bits);
  const std::int64_t index = std::int64_t(blockIdx.x) * pack_threads + threadIdx.x;
  if (index >= p.total) return;
  const std::int64_t row = index / p.chunks, column = index % p.chunks * chunk;
  const std::int64_t r = row % p.length, h = row / p.length % p.heads, b = row / p.length / p.heads;
  const Bits* const from = static_cast<const Bits*>(p.from) + b * p.stride[0] + h * p.stride[1] + r * p.stride[2];
  std::uint32_t words[4] = {};
#pragma unroll
  for (int i = 0; i < chunk; ++i) {
    const std::uint32_t bits = column + i < p.width ? from[(column + i) * p.stride[3]] : 0;
    words[i * int(sizeof(Bits)) / 4] |= bits << (i * 8 * int(sizeof(Bits)) % 32);
  }
  p.to[index] = {words[0], words[1], words[2], words[3]};
}

}  // namespace

bool has_packed_rows(const TensorView& view) {
  const std::int64_t chunk = chunk_of(view.dtype);
  const auto whole = [&](int dim) { return view.size[dim] == 1 || view.stride[dim] % chunk == 0; };
  return reinterpret_cast<std::uintptr_t>(view.data) % 16 == 0 && view.stride[3] == 1 && view.size[3] % chunk == 0 &&
         whole(0) && whole(1) && whole(2);
}

TensorView packed_rows(const TensorView& view, Workspace& workspace, const Place* place) {
  if (!view.data || has_packed_rows(view)) return view;
  const std::int64_t chunk = chunk_of(view.dtype), chunks = ceil_div(view.size[3], chunk);
  const std::int64_t total = view.size[0] * view.size[1] * view.size[2] * chunks;
  TensorView packed = view;
  packed.data = workspace.take<uint4>(total);
  packed.size[3] = chunks * chunk;
  packed.stride[3] = 1;
  for (int dim = 2; dim >= 0; --dim) packed.stride[dim] = packed.stride[dim + 1] * packed.size[dim + 1];
  if (!place) return packed;
  Params p{.from = view.data,
           .heads = view.size[1],
           .length = view.size[2],
           .width = view.size[3],
           .chunks = chunks,
           .total = total,
           .to = static_cast<uint4*>(packed.data)};
  for (int dim = 0; dim < max_dims; ++dim) p.stride[dim] = view.stride[dim];
  const Launch shape{ceil_div(total, pack_threads), pack_threads};
  if (view.dtype == DType::float32) {
    launch(&pack_rows_kernel<std::uint32_t>, shape, *place, p);
  } else {
    launch(&pack_rows_kernel<std::uint16_t>, shape, *place, p);
  }
  return packed;
}

}  // namespace bigmodel::cuda
