#include "cuda/matrix_product.cuh"

#include <algorithm>

#include "cuda/gemm.cuh"
#include "cuda/launch.cuh"
#include "cuda/plain_gemm.cuh"

namespace bigmodel::cuda {
namespace {

using LargeShape = GemmShape<128, 128, 64, 32, 1>;
using SmallShape = GemmShape<64, 64, 32, 32, 1>;
using GatedShape = GemmShape<128, 64, 32, 32, 2>;

TensorView as_four(const TensorView& matrix) {
  TensorView view;
  view.data = matrix.data;
  view.dtype = matrix.dtype;
  for (int dim = 0; dim < 2; ++dim) {
    view.size[2 + dim] = matrix.size[dim];
    view.stride[2 + dim] = matrix.stride[dim];
  }
  return view;
}

bool lies_along_rows(const TensorView& matrix) { return !has_packed_rows(as_four(matrix)) && matrix.stride[0] == 1; }

// An operand as the kernels can copy it: itself, or a copy.
template <class T>
Operand<T> along_depth(const TensorView& matrix, Workspace& workspace, const Place* place) {
  const TensorView packed = packed_rows(as_four(matrix), workspace, place);
  return {static_cast<const T*>(packed.data), packed.stride[2]};
}
template <class T>
Operand<T> along_rows(const TensorView& matrix, Workspace& workspace, const Place* place) {
  return along_depth<T>(transposed(matrix), workspace, place);
}

template <class T, Inside Left, Inside Right, class Shape, class Epilogue>
void launch_gemm(GemmParams<T, Shape::rights, Epilogue> p, const Place& place) {
  check_products<T>(place);
  p.row_tiles = static_cast<int>(ceil_div(p.rows, Shape::rows));
  p.column_tiles = static_cast<int>(ceil_div(p.columns, Shape::columns));
  p.stages = place.capability >= 80 ? Shape::stages : 2;
  launch(&gemm_kernel<T, Left, Right, Shape, Epilogue>,
         {std::int64_t(p.row_tiles) * p.column_tiles, Shape::threads, Shape::shared_bytes(p.stages)}, place, p);
}

// Large tiles read operands less often; small ones where large ones would leave a part of the device idle.
template <class T, Inside Left, Inside Right, class Epilogue>
void launch_shape(const GemmParams<T, 1, Epilogue>& p, const Place& place) {
  const std::int64_t large = ceil_div(p.rows, LargeShape::rows) * ceil_div(p.columns, LargeShape::columns);
  if (large >= place.multiprocessors) {
    launch_gemm<T, Left, Right, LargeShape>(p, place);
  } else {
    launch_gemm<T, Left, Right, SmallShape>(p, place);
  }
}

template <class T, class Epilogue>
GemmParams<T, 1, Epilogue> params(const TensorView& left, const TensorView& right, Operand<T> a, Operand<T> b,
                                  const Epilogue& epilogue) {
  return {.left = a,
          .right = {b},
          .rows = left.size[0],
          .columns = right.size[0],
          .depth = left.size[1],
          .epilogue = epilogue};
}

template <bool LeftDepthInside, bool RightDepthInside, class Epilogue>
void launch_plain(const PlainGemmParams<Epilogue>& p, const Place& place) {
  launch(&plain_gemm_kernel<LeftDepthInside, RightDepthInside, Epilogue>,
         {std::int64_t(p.row_tiles) * p.column_tiles, plain_threads}, place, p);
}

template <class Epilogue>
PlainGemmParams<Epilogue> plain_params(const TensorView& left, const TensorView& right, const Epilogue& epilogue) {
  return {.left = Rows<const float>(left),
          .right = Rows<const float>(right),
          .rows = left.size[0],
          .columns = right.size[0],
          .depth = left.size[1],
          .row_tiles = static_cast<int>(ceil_div(left.size[0], plain_tile)),
          .column_tiles = static_cast<int>(ceil_div(right.size[0], plain_tile)),
          .epilogue = epilogue};
}

// With operands that lie so, or are copied to.
template <class T, Inside Left, Inside Right, class Epilogue>
void multiply_as(const TensorView& left, const TensorView& right, const Epilogue& epilogue, Workspace& workspace,
                 const Place* place) {
  if constexpr (!std::is_same_v<T, float>) {
    const Operand<T> a =
        Left == Inside::depth ? along_depth<T>(left, workspace, place) : along_rows<T>(left, workspace, place);
    const Operand<T> b =
        Right == Inside::depth ? along_depth<T>(right, workspace, place) : along_rows<T>(right, workspace, place);
    if (place) launch_shape<T, Left, Right>(params(left, right, a, b, epilogue), *place);
  } else if (place) {
    launch_plain<Left == Inside::depth, Right == Inside::depth>(plain_params(left, right, epilogue), *place);
  }
}

// By how the operands lie: x weight^T, grad weight, and grad^T x are three of the four ways, and the fourth is copied.
template <class T>
void multiply_tiles(const TensorView& left, const TensorView& right, const Epilogue<T>& epilogue, Workspace& workspace,
                    const Place* place) {
  if (!lies_along_rows(right)) {
    multiply_as<T, Inside::depth, Inside::depth>(left, right, epilogue, workspace, place);
  } else if (!lies_along_rows(left)) {
    multiply_as<T, Inside::depth, Inside::rows>(left, right, epilogue, workspace, place);
  } else {
    multiply_as<T, Inside::rows, Inside::rows>(left, right, epilogue, workspace, place);
  }
}

void multiply_plain(const TensorView& left, const TensorView& right, const Epilogue<float>& epilogue,
                    const Place& place) {
  const auto p = plain_params(left, right, epilogue);
  const bool left_rows = left.stride[0] == 1 && left.stride[1] != 1;
  const bool right_rows = right.stride[0] == 1 && right.stride[1] != 1;
  if (!right_rows) {
    launch_plain<true, true>(p, place);
  } else if (!left_rows) {
    launch_plain<true, false>(p, place);
  } else {
    launch_plain<false, false>(p, place);
  }
}

constexpr int element_threads = 256;

template <class T, int N>
__global__ __launch_bounds__(element_threads) void epilogue_kernel(const __grid_constant__ Rows<T> product,
                                                                   std::int64_t rows, int chunks,
                                                                   const __grid_constant__ Epilogue<T> epilogue) {
  const std::int64_t index = std::int64_t(blockIdx.x) * element_threads + threadIdx.x;
  if (index >= rows * chunks) return;
  const std::int64_t row = index / chunks;
  const int column = static_cast<int>(index % chunks) * N;
  float x[N];
  load(product, row, column, x);
  epilogue(row, column, x);
}

template <class T, int N>
void launch_epilogue(const TensorView& product, const Epilogue<T>& epilogue, const Place& place) {
  const std::int64_t rows = product.size[0], chunks = ceil_div(product.size[1], N);
  launch(&epilogue_kernel<T, N>, {ceil_div(rows * chunks, element_threads), element_threads}, place, Rows<T>(product),
         rows, static_cast<int>(chunks), epilogue);
}

}  // namespace

template <class T>
void multiply_matrices(const TensorView& left, const TensorView& right, const Epilogue<T>& epilogue,
                       Workspace& workspace, const Place* place) {
  if constexpr (!std::is_same_v<T, float>) {
    multiply_tiles(left, right, epilogue, workspace, place);
  } else if (place) {
    multiply_plain(left, right, epilogue, *place);
  }
}

template <class T>
void multiply_matrices(const TensorView& left, const TensorView& right, const GradientEpilogue<T>& epilogue,
                       Workspace& workspace, const Place* place) {
  multiply_as<T, Inside::depth, Inside::rows>(left, right, epilogue, workspace, place);
}

template <class T>
void multiply_matrices(const TensorView& left, const TensorView& right, const PartEpilogue<T>& epilogue,
                       Workspace& workspace, const Place* place) {
  multiply_as<T, Inside::depth, Inside::depth>(left, right, epilogue, workspace, place);
}

template <class T>
void multiply_matrices(const TensorView& left, const TensorView& right, const LogitsGradientEpilogue<T>& epilogue,
                       Workspace& workspace, const Place* place) {
  multiply_as<T, Inside::depth, Inside::depth>(left, right, epilogue, workspace, place);
}

template <class T>
void multiply_matrices(const TensorView& left, const TensorView& right, const SumEpilogue<T>& epilogue,
                       Workspace& workspace, const Place* place) {
  if (left.stride[1] == 1) {
    multiply_as<T, Inside::depth, Inside::rows>(left, right, epilogue, workspace, place);
  } else {
    multiply_as<T, Inside::rows, Inside::rows>(left, right, epilogue, workspace, place);
  }
}

template <class T>
void multiply_gated(const TensorView& left, const TensorView& right, const TensorView& gate,
                    const GatedEpilogue<T>& epilogue, Workspace& workspace, const Place* place) {
  const Operand<T> a = along_depth<T>(left, workspace, place), b = along_depth<T>(right, workspace, place),
                   c = along_depth<T>(gate, workspace, place);
  const GemmParams<T, 2, GatedEpilogue<T>> p{.left = a,
                                             .right = {b, c},
                                             .rows = left.size[0],
                                             .columns = right.size[0],
                                             .depth = left.size[1],
                                             .epilogue = epilogue};
  if (place) launch_gemm<T, Inside::depth, Inside::depth, GatedShape>(p, *place);
}

template <class T>
void apply_epilogue(const TensorView& product, const Epilogue<T>& epilogue, const Place* place) {
  if (!place) return;
  if (epilogue.packed && is_packed(product, epilogue_elements)) {
    launch_epilogue<T, epilogue_elements>(product, epilogue, *place);
  } else {
    launch_epilogue<T, 1>(product, epilogue, *place);
  }
}

#define BIGMODEL_INSTANTIATE(T)                                                                                        \
  template void multiply_matrices(const TensorView&, const TensorView&, const Epilogue<T>&, Workspace&, const Place*); \
  template void multiply_matrices(const TensorView&, const TensorView&, const GradientEpilogue<T>&, Workspace&,        \
                                  const Place*);                                                                       \
  template void multiply_matrices(const TensorView&, const TensorView&, const PartEpilogue<T>&, Workspace&,            \
                                  const Place*);                                                                       \
  template void multiply_matrices(const TensorView&, const TensorView&, const LogitsGradientEpilogue<T>&, Workspace&,  \
                                  const Place*);                                                                       \
  template void multiply_matrices(const TensorView&, const TensorView&, const SumEpilogue<T>&, Workspace&,             \
                                  const Place*);                                                                       \
  template void apply_epilogue(const TensorView&, const Epilogue<T>&, const Place*);
BIGMODEL_INSTANTIATE(half)
BIGMODEL_INSTANTIATE(bf16)
BIGMODEL_INSTANTIATE(float)
BIGMODEL_INSTANTIATE(tf32)
#undef BIGMODEL_INSTANTIATE

#define BIGMODEL_INSTANTIATE_GATED(T)                                                                            \
  template void multiply_gated(const TensorView&, const TensorView&, const TensorView&, const GatedEpilogue<T>&, \
                               Workspace&, const Place*);
BIGMODEL_INSTANTIATE_GATED(half)
BIGMODEL_INSTANTIATE_GATED(bf16)
BIGMODEL_INSTANTIATE_GATED(tf32)
#undef BIGMODEL_INSTANTIATE_GATED

}  // namespace bigmodel::cuda
