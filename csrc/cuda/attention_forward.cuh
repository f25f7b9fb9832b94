// What the forward kernels with and without tensor cores share: where they write, and how the keys of a row may be
// split among blocks and merged again.
#pragma once

#include "cuda/attention_inputs.cuh"
#include "cuda/pack_rows.h"

namespace bigmodel::cuda {

// The partial outputs of splits: fp32 [splits, rows, value_dim] and their log-sum-exps [splits, rows], where rows are
// [batch, heads, q_len] and no sink has entered. Absent without splits.
struct Splits {
  int count = 1;
  float *output = nullptr, *lse = nullptr;
  std::int64_t rows = 0;

  static Splits in(Workspace& workspace, int count, const AttentionForwardArgs& args);
};

// How many blocks share the keys of a row: none do where there are blocks enough or few keys; else as few as fill the
// device within 85 % of the best that any number reaches.
int choose_splits(std::int64_t blocks, int key_tiles, const Place& place);

void merge_splits(const AttentionForwardArgs& args, const Splits& splits, const Place& place);

// What uses_tiles refuses: exact fp32, and large heads.
void run_plain(const AttentionForwardArgs& args, const Place& place);

}  // namespace bigmodel::cuda
