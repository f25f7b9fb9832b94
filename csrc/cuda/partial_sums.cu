#include "cuda/partial_sums.cuh"

#include "cuda/launch.cuh"
#include "cuda/rows.cuh"

namespace bigmodel::cuda {
namespace {

constexpr int threads = 256;

template <class T>
__global__ __launch_bounds__(threads) void add_partials_kernel(const float* partial, int blocks, int columns,
                                                               const __grid_constant__ Rows<T> sums) {
  const int column = static_cast<int>(blockIdx.x) * threads + static_cast<int>(threadIdx.x);
  if (column >= columns) return;
  float sum = 0.0f;
  for (int block = 0; block < blocks; ++block) sum += partial[std::int64_t(block) * columns + column];
  store(sums, 0, column, {sum});
}

}  // namespace

void add_partials(const float* partial, int blocks, const TensorView& sums, const Place& place) {
  const auto columns = static_cast<int>(sums.size[0]);
  with_dtype(sums.dtype, [&]<class T>(T) {
    launch(&add_partials_kernel<T>, {ceil_div(columns, threads), threads}, place, partial, blocks, columns,
           Rows<T>(as_row(sums)));
  });
}

}  // namespace bigmodel::cuda
