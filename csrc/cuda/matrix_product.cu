#include "cuda/matrix_product.cuh"

#include <algorithm>

#include "cuda/gemm.cuh"
#include "cuda/plain_gemm.cuh"

namespace bigmodel::cuda {
namespace {

using LargeShape = GemmShape<128, 128, 64, 32, 1>;
using SmallShape = GemmShape<64, 64, 32, 32, 1>;

std::int64_t ceil_div(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }

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

// How an operand can be copied as it is; packed along the depth where it cannot, or where `rows_allowed` is false.
template <class T>
struct Prepared {
  Inside inside = Inside::depth;
  Operand<T> operand{};
  std::int64_t depth;  // filled up to whole chunks where they lie along it

  Prepared(const TensorView& matrix, bool rows_allowed, Workspace& workspace, const Place* place) {
    if (!has_packed_rows(as_four(matrix)) && rows_allowed && has_packed_rows(as_four(transposed(matrix)))) {
      inside = Inside::rows;
      operand = {static_cast<const T*>(matrix.data), matrix.stride[1]};
      depth = matrix.size[1];
      return;
    }
    const TensorView packed = packed_rows(as_four(matrix), workspace, place);
    operand = {static_cast<const T*>(packed.data), packed.stride[2]};
    depth = packed.size[3];
  }
};

template <class T, Inside Left, Inside Right, class Shape>
void launch_gemm(GemmParams<T, 1, Epilogue<T>> p, const Place& place) {
  p.row_tiles = static_cast<int>(ceil_div(p.rows, Shape::rows));
  p.column_tiles = static_cast<int>(ceil_div(p.columns, Shape::columns));
  p.stages = place.capability >= 80 ? Shape::stages : 2;
  launch(&gemm_kernel<T, Left, Right, Shape, Epilogue<T>>,
         {std::int64_t(p.row_tiles) * p.column_tiles, Shape::threads, Shape::shared_bytes(p.stages)}, place, p);
}

// Large tiles read operands less often; small ones where large ones would leave a part of the device idle.
template <class T, Inside Left, Inside Right>
void launch_shape(const GemmParams<T, 1, Epilogue<T>>& p, const Place& place) {
  const std::int64_t large = ceil_div(p.rows, LargeShape::rows) * ceil_div(p.columns, LargeShape::columns);
  if (large >= place.multiprocessors) {
    launch_gemm<T, Left, Right, LargeShape>(p, place);
  } else {
    launch_gemm<T, Left, Right, SmallShape>(p, place);
  }
}

template <class T>
void multiply_tiles(const TensorView& left, const TensorView& right, const Epilogue<T>& epilogue, Workspace& workspace,
                    const Place* place) {
  const Prepared<T> b(right, true, workspace, place);
  const Prepared<T> a(left, b.inside == Inside::rows, workspace, place);
  if (!place) return;
  const GemmParams<T, 1, Epilogue<T>> p{.left = a.operand,
                                        .right = {b.operand},
                                        .rows = left.size[0],
                                        .columns = right.size[0],
                                        .depth = std::min(a.depth, b.depth),
                                        .epilogue = epilogue};
  if (b.inside == Inside::depth) {
    launch_shape<T, Inside::depth, Inside::depth>(p, *place);
  } else if (a.inside == Inside::depth) {
    launch_shape<T, Inside::depth, Inside::rows>(p, *place);
  } else {
    launch_shape<T, Inside::rows, Inside::rows>(p, *place);
  }
}

template <bool LeftDepthInside, bool RightDepthInside>
void launch_plain(const PlainGemmParams& p, const Place& place) {
  launch(&plain_gemm_kernel<LeftDepthInside, RightDepthInside>,
         {std::int64_t(p.row_tiles) * p.column_tiles, plain_threads}, place, p);
}

void multiply_plain(const TensorView& left, const TensorView& right, const Epilogue<float>& epilogue,
                    const Place& place) {
  const PlainGemmParams p{.left = Rows<const float>(left),
                          .right = Rows<const float>(right),
                          .rows = left.size[0],
                          .columns = right.size[0],
                          .depth = left.size[1],
                          .row_tiles = static_cast<int>(ceil_div(left.size[0], plain_tile)),
                          .column_tiles = static_cast<int>(ceil_div(right.size[0], plain_tile)),
                          .epilogue = epilogue};
  const bool left_depth = left.stride[1] == 1, right_depth = right.stride[1] == 1;
  if (left_depth && right_depth) {
    launch_plain<true, true>(p, place);
  } else if (left_depth) {
    launch_plain<true, false>(p, place);
  } else if (right_depth) {
    launch_plain<false, true>(p, place);
  } else {
    launch_plain<false, false>(p, place);
  }
}

}  // namespace

template <>
void multiply_matrices<half>(const TensorView& left, const TensorView& right, const Epilogue<half>& epilogue,
                             Workspace& workspace, const Place* place) {
  multiply_tiles(left, right, epilogue, workspace, place);
}

template <>
void multiply_matrices<bf16>(const TensorView& left, const TensorView& right, const Epilogue<bf16>& epilogue,
                             Workspace& workspace, const Place* place) {
  multiply_tiles(left, right, epilogue, workspace, place);
}

template <>
void multiply_matrices<float>(const TensorView& left, const TensorView& right, const Epilogue<float>& epilogue,
                              Workspace&, const Place* place) {
  if (place) multiply_plain(left, right, epilogue, *place);
}

}  // namespace bigmodel::cuda
