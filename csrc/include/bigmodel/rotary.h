// Rotary position embedding (Su et al., "RoFormer", 2021): pairs of a head's first features, each turned by an angle.
//   (a, b) -> (a cos - b sin, b cos + a sin)
// Pair i is features (i, i + pairs), or interleaved (2 i, 2 i + 1); features from 2 pairs on are copied. `inverse`
// negates the angles: that is also the gradient, since a turn's transpose is the turn back.
//
// Shapes: query and its output [batch, heads, length, head_dim], key and its output [batch, kv_heads, length,
// head_dim]; cos, sin [batch, rows, pairs], 2 pairs <= head_dim; positions [batch, length], each a row of cos and sin.
// Without positions token t of a sequence takes row t. query and key share one dtype; cos and sin share it or are fp32.
// Products are fp32. All strides are free; an output may be its input, element for element.
#pragma once

#include <cstdint>

#include "bigmodel/tensor.h"

namespace bigmodel {

struct RotaryArgs {
  TensorView query, key;  // key optional
  TensorView cos, sin;
  const std::int64_t* positions = nullptr;  // optional; one after the other
  std::int64_t positions_batch_stride = 0;
  bool interleaved = false, inverse = false;
  TensorView query_output, key_output;
};

}  // namespace bigmodel
