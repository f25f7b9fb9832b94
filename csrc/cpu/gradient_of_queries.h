// dQ (and, for attention_weights, the gradient of lse) as a sum over chunks of keys.
#pragma once

#include "cpu/gradient_blocks.h"

namespace bigmodel::cpu::BIGMODEL_TARGET {

namespace {

// Where dQ of one head is summed over the chunks.
struct QuerySums {
  float* data;
  std::int64_t stride;
};

template <class T>
QuerySums query_sums(const Gradient<T>& g, std::int64_t b, std::int64_t h) {
  const GradientPlan& plan = g.plan;
  if (!plan.gathers_sums) return {pointer<float>(g.args.grad_query, b, h, 0), g.args.grad_query.stride[2]};
  return {g.memory + plan.query_sums + (b * plan.heads + h) * plan.row_stride * plan.key_stride, plan.key_stride};
}

template <class T>
QuerySums query_slot(const Gradient<T>& g, std::int64_t slot, std::int64_t b, std::int64_t h) {
  const GradientPlan& plan = g.plan;
  const std::int64_t row = (b * plan.heads + h) * plan.row_stride;
  return {g.slots + plan.slot_queries + slot * plan.slot_queries_size + row * plan.key_stride, plan.key_stride};
}

// What one chunk adds to the gradient of one block of queries goes where the schedule wants it.
template <class T>
void store_query_gradient(const Gradient<T>& g, const GradientScratch& scratch, std::int64_t b, std::int64_t h,
                          std::int64_t first, std::int64_t queries, std::int64_t slot) {
  const GradientPlan& plan = g.plan;
  const AttentionGradientArgs& args = g.args;
  const float scale = args.inputs.options.scale;
  const bool split = plan.schedule == Schedule::split;
  if (args.grad_query.data) {
    if (plan.schedule == Schedule::single) {
      store_rows<T>(args.grad_query, b, h, first, queries, plan.head_dim, scratch.grad_query, plan.key_stride, scale);
    } else {
      const QuerySums sums = split ? query_slot(g, slot, b, h) : query_sums(g, b, h);
      add_rows(queries, plan.head_dim, scratch.grad_query, plan.key_stride, split ? 1.0f : scale,
               sums.data + first * sums.stride, sums.stride, !split);
    }
  }
  if (args.grad_input_lse.data) {
    float* rows = split ? g.slot_rows(slot, b, h) : pointer<float>(args.grad_input_lse, b, h, 0);
    add_rows(1, queries, scratch.grad_rows, 0, -1.0f, rows + first, 0, !split);
  }
}

// The sums over chunks start at zero.
template <class T>
void clear_sums(const Gradient<T>& g, std::int64_t b, std::int64_t h, std::int64_t first, std::int64_t queries) {
  const GradientPlan& plan = g.plan;
  if (g.args.grad_query.data && plan.schedule != Schedule::single) {
    const QuerySums sums = query_sums(g, b, h);
    for (std::int64_t i = first; i < first + queries; ++i) clear(sums.data + i * sums.stride, plan.head_dim);
  }
  if (g.args.grad_input_lse.data) clear(pointer<float>(g.args.grad_input_lse, b, h, first), queries);
}

// Adds the partial sums of the chunks from first_chunk on in their order, with the same roundings as a chain would.
template <class T>
void add_slots(const Gradient<T>& g, std::int64_t b, std::int64_t h, std::int64_t first, std::int64_t queries,
               std::int64_t first_chunk) {
  const GradientPlan& plan = g.plan;
  const std::int64_t count = at_most(plan.slots, plan.chunks - first_chunk);
  for (std::int64_t slot = 0; slot < count; ++slot) {
    if (!sees(g.band, first, queries, chunk_of(plan, first_chunk + slot))) continue;
    if (g.args.grad_query.data) {
      const QuerySums from = query_slot(g, slot, b, h), to = query_sums(g, b, h);
      add_rows(queries, plan.head_dim, from.data + first * from.stride, from.stride, g.args.inputs.options.scale,
               to.data + first * to.stride, to.stride, true);
    }
    if (g.args.grad_input_lse.data) {
      const float* from = g.slot_rows(slot, b, h);
      add_rows(1, queries, from + first, 0, 1.0f, pointer<float>(g.args.grad_input_lse, b, h, first), 0, true);
    }
  }
}

// Stores the finished sums once, where the gradient itself is not their memory.
template <class T>
void store_sums(const Gradient<T>& g, std::int64_t b, std::int64_t h, std::int64_t first, std::int64_t queries) {
  if (!g.args.grad_query.data || !g.plan.gathers_sums) return;
  const QuerySums sums = query_sums(g, b, h);
  store_rows<T>(g.args.grad_query, b, h, first, queries, g.plan.head_dim, sums.data + first * sums.stride, sums.stride,
                1.0f);
}

}  // namespace

}  // namespace bigmodel::cpu::BIGMODEL_TARGET
