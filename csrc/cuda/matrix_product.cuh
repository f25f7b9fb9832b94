// c = left right^T with an epilogue, for any strides: on tensor cores in 16 bits and in TF32, exactly in fp32. Hosts
// call this; the kernels are compiled once, in matrix_product.cu.
#pragma once

#include "cuda/cross_entropy.cuh"
#include "cuda/epilogue.cuh"
#include "cuda/pack_rows.h"

namespace bigmodel::cuda {

// Calls body with a value of what products multiply: the element type, or tf32 where fp32 may be rounded.
template <class Body>
void with_product_type(DType dtype, const Place& place, Body body) {
  if (dtype == DType::float32 && place.tf32) return body(tf32{});
  with_dtype(dtype, body);
}

// An op made of products, in its two passes: `work(type, args, workspace, place)`, with a value of that type, takes
// memory from the workspace and launches, or with `place` null takes memory only, which `product_bytes` counts.
template <class Args, class Work>
std::int64_t product_bytes(const Args& args, const Place& place, Work work) {
  Workspace workspace;
  with_product_type(args.input.dtype, place, [&](auto type) { work(type, args, workspace, nullptr); });
  return workspace.used();
}
template <class Args, class Work>
void run_products(const Args& args, const Place& place, Work work) {
  Workspace workspace(args.workspace);
  with_product_type(args.input.dtype, place, [&](auto type) { work(type, args, workspace, &place); });
}

// left [rows, depth], right [columns, depth]. What must be copied first takes memory from `workspace`; `place` null:
// only the memory is counted. T: as with_product_type gives it, for all.
template <class T>
void multiply_matrices(const TensorView& left, const TensorView& right, const Epilogue<T>& epilogue,
                       Workspace& workspace, const Place* place);
template <class T>
void multiply_matrices(const TensorView& left, const TensorView& right, const GradientEpilogue<T>& epilogue,
                       Workspace& workspace, const Place* place);
// Operands as linear_cross_entropy has them: both lie along the depth but for SumEpilogue, whose right one lies along
// its rows, and the left one either way.
template <class T>
void multiply_matrices(const TensorView& left, const TensorView& right, const PartEpilogue<T>& epilogue,
                       Workspace& workspace, const Place* place);
template <class T>
void multiply_matrices(const TensorView& left, const TensorView& right, const LogitsGradientEpilogue<T>& epilogue,
                       Workspace& workspace, const Place* place);
template <class T>
void multiply_matrices(const TensorView& left, const TensorView& right, const SumEpilogue<T>& epilogue,
                       Workspace& workspace, const Place* place);
// Two products at once, for all T but float.
template <class T>
void multiply_gated(const TensorView& left, const TensorView& right, const TensorView& gate,
                    const GatedEpilogue<T>& epilogue, Workspace& workspace, const Place* place);

// The epilogue alone, of a matrix that is there already.
template <class T>
void apply_epilogue(const TensorView& product, const Epilogue<T>& epilogue, const Place* place);

// The matrix [rows, columns] with its rows as columns.
inline TensorView transposed(const TensorView& matrix) {
  TensorView result = matrix;
  for (int dim = 0; dim < 2; ++dim) {
    result.size[dim] = matrix.size[1 - dim];
    result.stride[dim] = matrix.stride[1 - dim];
  }
  return result;
}

// Some rows of a matrix, or elements of a vector; one that is absent stays so.
inline TensorView rows_of(const TensorView& matrix, std::int64_t first, std::int64_t count) {
  TensorView result = matrix;
  result.size[0] = count;
  if (matrix.data) {
    result.data = static_cast<char*>(matrix.data) + first * matrix.stride[0] * bytes_of(matrix.dtype);
  }
  return result;
}

// A contiguous matrix at `data`.
inline TensorView matrix_at(void* data, DType dtype, std::int64_t rows, std::int64_t columns) {
  TensorView view;
  view.data = data;
  view.dtype = dtype;
  view.size[0] = rows;
  view.size[1] = columns;
  view.stride[0] = columns;
  view.stride[1] = 1;
  return view;
}

// Whether the epilogue may access these matrices in chunks of 128 bits.
template <class T, class... Views>
bool all_packed(const Views&... views) {
  return (is_packed(views, epilogue_elements) && ...);
}

// The epilogue that stores a product, with a residual added where it is present.
template <class T>
Epilogue<T> storing(const TensorView& output, const TensorView& residual = {}) {
  return {.residual = Rows<T>(residual),
          .output = Rows<T>(output),
          .columns = static_cast<int>(output.size[1]),
          .packed = all_packed<T>(residual, output)};
}

}  // namespace bigmodel::cuda
