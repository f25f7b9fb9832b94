// One of several packed sequences as a call of its own: views of its part of every tensor.
#pragma once

#include "bigmodel/attention_varlen.h"
#include "cpu/isa/inline.h"

namespace bigmodel::cpu::BIGMODEL_TARGET {

// The view moved by `steps` along a dimension. Absent tensors stay absent.
BIGMODEL_INLINE void advance(TensorView& view, int dim, std::int64_t steps) {
  if (view.data) view.data = static_cast<char*>(view.data) + steps * view.stride[dim] * bytes_of(view.dtype);
}

// A run of the tokens of a view [1, heads, tokens, ...].
struct Tokens {
  std::int64_t first, count;

  void choose(TensorView& view) const {
    advance(view, 2, first);
    view.size[2] = count;
  }
};
BIGMODEL_INLINE Tokens queries_of(const PackedSequences& sequences, std::int64_t s) {
  const std::int64_t first = sequences.query_starts[s];
  return {first, sequences.query_starts[s + 1] - first};
}
BIGMODEL_INLINE Tokens keys_of(const PackedSequences& sequences, std::int64_t s) {
  const std::int64_t first = sequences.key_starts[s];
  return {first, sequences.key_starts[s + 1] - first};
}

BIGMODEL_INLINE void choose_sequence(AttentionInputs& inputs, const PackedSequences& sequences, std::int64_t s) {
  const Tokens queries = queries_of(sequences, s), keys = keys_of(sequences, s);
  queries.choose(inputs.query);
  keys.choose(inputs.key);
  keys.choose(inputs.value);
  advance(inputs.mask, 0, s);
  inputs.mask.size[0] = 1, inputs.mask.size[2] = queries.count, inputs.mask.size[3] = keys.count;
  advance(inputs.alibi_slopes, 0, s);
  inputs.alibi_slopes.size[0] = 1;
  inputs.options.dropout.first_batch = s;
}

BIGMODEL_INLINE AttentionForwardArgs sequence_args(const AttentionVarlenForwardArgs& args, std::int64_t s) {
  AttentionForwardArgs sequence = args.packed;
  choose_sequence(sequence.inputs, args.sequences, s);
  const Tokens queries = queries_of(args.sequences, s);
  queries.choose(sequence.output);
  queries.choose(sequence.lse);
  return sequence;
}

// But grad_mask and grad_sinks, which belong to all sequences, stay whole.
BIGMODEL_INLINE AttentionBackwardArgs sequence_args(const AttentionVarlenBackwardArgs& args, std::int64_t s) {
  AttentionBackwardArgs sequence = args.packed;
  choose_sequence(sequence.inputs, args.sequences, s);
  const Tokens queries = queries_of(args.sequences, s), keys = keys_of(args.sequences, s);
  queries.choose(sequence.output);
  queries.choose(sequence.lse);
  queries.choose(sequence.grad_output);
  queries.choose(sequence.grad_lse);
  queries.choose(sequence.grad_query);
  keys.choose(sequence.grad_key);
  keys.choose(sequence.grad_value);
  return sequence;
}

}  // namespace bigmodel::cpu::BIGMODEL_TARGET
