// A small matrix product in the style of our kernels: cp.async in two stages, swizzled shared memory, ldmatrix,
// mma.sync. FAULT plants one fault, which the emulator must find.
#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include <cstdint>

#ifndef FAULT
#define FAULT 0
#endif
#define NO_BARRIER 1
#define NO_WAIT 2
#define ADDRESS_OFF_BY_ONE 3
#define WRONG_SWIZZLE 4
#define NO_SECOND_BARRIER 5
#define ROW_TOO_MANY 6
#define DIVERGENT_BARRIER 7
#define NO_SWIZZLE 8

namespace {

constexpr int block_m = 64, block_n = 64, block_k = 32, threads = 128;

__device__ uint32_t shared_address(const void* p) { return static_cast<uint32_t>(__cvta_generic_to_shared(p)); }

// A row of 32 bf16 is four chunks of 16 bytes; chunks are permuted by row, so that ldmatrix meets every bank once.
__device__ int place(int row, int chunk) {
#if FAULT == NO_SWIZZLE
  return row * block_k + chunk * 8;
#else
  return row * block_k + ((chunk ^ (row >> 1)) & 3) * 8;
#endif
}

__device__ void copy_16(void* to, const void* from, bool valid) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(to)), "l"(from),
               "r"(valid ? 16 : 0));
}

__device__ void load_tile(__nv_bfloat16* tile, const __nv_bfloat16* from, int rows, int k, int row0, int k0) {
  for (int i = threadIdx.x; i < 64 * 4; i += threads) {
    const int row = i / 4, chunk = i % 4;
#if FAULT == ROW_TOO_MANY
    const bool valid = row0 + row <= rows && k0 + chunk * 8 < k;
#else
    const bool valid = row0 + row < rows && k0 + chunk * 8 < k;
#endif
    const int at = valid ? (row0 + row) * k + k0 + chunk * 8 : 0;
#if FAULT == ADDRESS_OFF_BY_ONE
    copy_16(tile + place(row, chunk), from + at + 1, valid);
#else
    copy_16(tile + place(row, chunk), from + at, valid);
#endif
  }
}

__device__ void load_matrices(uint32_t (&r)[4], const __nv_bfloat16* p) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(p)));
}

__device__ void multiply_add(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, "
      "%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// c [m, n] = a [m, k] b [n, k]^T; k is a multiple of 8.
__global__ void __launch_bounds__(threads)
    gemm(const __nv_bfloat16* a, const __nv_bfloat16* b, float* c, int m, int n, int k) {
  extern __shared__ __align__(128) __nv_bfloat16 shared[];
  __nv_bfloat16* tiles_a = shared;
  __nv_bfloat16* tiles_b = shared + 2 * block_m * block_k;
  const int row0 = blockIdx.y * block_m, column0 = blockIdx.x * block_n;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  float sums[8][4] = {};
  const int steps = (k + block_k - 1) / block_k;

  load_tile(tiles_a, a, m, k, row0, 0);
  load_tile(tiles_b, b, n, k, column0, 0);
  asm volatile("cp.async.commit_group;");
  for (int step = 0; step < steps; ++step) {
    const __nv_bfloat16* tile_a = tiles_a + (step % 2) * block_m * block_k;
    const __nv_bfloat16* tile_b = tiles_b + (step % 2) * block_n * block_k;
    if (step + 1 < steps) {
      load_tile(tiles_a + ((step + 1) % 2) * block_m * block_k, a, m, k, row0, (step + 1) * block_k);
      load_tile(tiles_b + ((step + 1) % 2) * block_n * block_k, b, n, k, column0, (step + 1) * block_k);
    }
    asm volatile("cp.async.commit_group;");
#if FAULT == NO_WAIT
    asm volatile("cp.async.wait_group 2;");
#else
    asm volatile("cp.async.wait_group 1;");
#endif
#if FAULT == DIVERGENT_BARRIER
    if (lane != 3) __syncthreads();
#elif FAULT != NO_BARRIER
    __syncthreads();
#endif
    for (int inner = 0; inner < block_k / 16; ++inner) {
      uint32_t fragment_a[4];
      const int row = warp * 16 + lane % 16, chunk = inner * 2 + lane / 16;
#if FAULT == WRONG_SWIZZLE
      load_matrices(fragment_a, tile_a + row * block_k + ((chunk ^ (row >> 2)) & 3) * 8);
#else
      load_matrices(fragment_a, tile_a + place(row, chunk));
#endif
      for (int column = 0; column < block_n; column += 16) {
        uint32_t fragment_b[4];
        load_matrices(fragment_b, tile_b + place(column + lane % 8 + lane / 16 * 8, inner * 2 + lane / 8 % 2));
        multiply_add(sums[column / 8], fragment_a, fragment_b[0], fragment_b[1]);
        multiply_add(sums[column / 8 + 1], fragment_a, fragment_b[2], fragment_b[3]);
      }
    }
#if FAULT != NO_SECOND_BARRIER
    __syncthreads();
#endif
  }
  for (int j = 0; j < 8; ++j) {
    for (int i = 0; i < 4; ++i) {
      const int row = row0 + warp * 16 + lane / 4 + i / 2 * 8, column = column0 + j * 8 + lane % 4 * 2 + i % 2;
      if (row < m && column < n) c[row * n + column] = sums[j][i];
    }
  }
}

}  // namespace

extern "C" const char* launch_gemm(const __nv_bfloat16* a, const __nv_bfloat16* b, float* c, int m, int n, int k) {
  const dim3 grid((n + block_n - 1) / block_n, (m + block_m - 1) / block_m);
  const int bytes = 2 * (block_m + block_n) * block_k * sizeof(__nv_bfloat16);
  cudaFuncSetAttribute(gemm, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
  gemm<<<grid, threads, bytes>>>(a, b, c, m, n, k);
  const cudaError_t error = cudaGetLastError();
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}
