// What the kernels of attention's backward pass share. With P = exp(S - lse) and dropout factors F,
//   dV = (P F)^T dO,  dP = (dO V^T) F,  dS = P (dP - delta) slope,  delta = rowsum(dO O) - dlse,
//   dQ = scale dS K,  dK = scale dS^T Q,
// where slope is that of the softcap. dQ has a pass of its own, and so have dK and dV: no sum is shared between blocks,
// so none needs atomics and every result is the same each time.
#pragma once

#include "cuda/attention_inputs.cuh"
#include "cuda/pack_rows.h"

namespace bigmodel::cuda {

// One query's terms. A query that saw no key has the lse +inf, which makes its probabilities 0.
struct RowTerms {
  float lse, delta;
};

inline constexpr int term_tile = 64;

// The terms of all queries, [batch, heads, length]: each head's, and of packed sequences each one's, are filled up to
// whole tiles by queries that see nothing.
struct RowTermsView {
  RowTerms* data = nullptr;
  std::int64_t heads = 0, length = 0;

  template <class T>
  __device__ RowTerms* at(const AttentionTensors<T>& in, int b, int h) const {
    if (!in.query_starts.data) return data + (std::int64_t(b) * heads + h) * length;
    return data + h * length + std::int64_t(Starts::first_tile(in.first_query, b, term_tile, 1)) * term_tile;
  }
};

// Computes them, and the sinks' gradient. place null: only the memory is counted.
RowTermsView row_terms(const AttentionBackwardArgs& args, Workspace& workspace, const Place* place);

// Without tensor cores: exact fp32 and large heads; for every dtype the mask's gradient, and all
// gradients of attention_weights, whose dP is given instead of dO, as grad_weights, and whose delta is 0.
enum class PlainGradient { query, key, value, mask, lse };

struct PlainBackward {
  AttentionInputs inputs;
  TensorView grad_output;
  TensorView grad_weights;  // [batch, heads or 1, q_len, kv_len]; absent for attention
  float grad_weights_scale = 1.0f;
  RowTermsView terms;
};

// `gradient`: of what `which` says.
void run_plain(const PlainBackward& pass, PlainGradient which, const TensorView& gradient, const Place& place);

}  // namespace bigmodel::cuda
