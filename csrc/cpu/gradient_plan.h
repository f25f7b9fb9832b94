// How the work and the workspace of attention's backward pass are divided. Keys are taken in chunks; a chunk's K, V, dK
// and dV stay in the second-level cache while all queries pass by, so dK and dV are complete per chunk, while dQ is a
// sum over chunks. That sum is always taken chunk after chunk, so no result depends on the number of threads.
#pragma once

#include "bigmodel/parallel.h"
#include "cpu/attention_gradient.h"
#include "cpu/gradient_tile.h"

namespace bigmodel::cpu::BIGMODEL_TARGET {

namespace {

// Where the partial sums of dQ go.
enum class Schedule {
  single,   // one chunk holds all keys: dQ is complete at once
  chained,  // a job takes all chunks of one kv head in turn and adds to the sums
  split     // a job takes one chunk; the partial sums of `slots` chunks are added up after them
};

struct GradientPlan {
  std::int64_t batch, heads, kv_heads, group, q_len, kv_len, head_dim, value_dim;
  std::int64_t key_stride, value_stride;  // of fp32 rows of head_dim and value_dim: whole vectors
  std::int64_t row_stride;                // q_len in whole blocks
  std::int64_t chunk_keys, chunks;
  Schedule schedule;
  std::int64_t slots;
  int workers;
  bool rounds;  // the gradients' dtype is not fp32: dQ is summed in the workspace, then rounded once
  // Offsets into the workspace in floats, and the workspace's size.
  std::int64_t lse, shift, delta, query_sums, slot_queries, slot_rows, scratch;
  std::int64_t slot_queries_size, slot_rows_size, scratch_size, total;
};

// fp32 memory of one worker.
struct GradientScratch {
  float *key, *value, *grad_key, *grad_value;                        // of a chunk
  float *query, *query_columns, *grad_output, *grad_output_columns;  // of a block of queries, as rows and transposed
  float *grad_query, *grad_rows;
  float *weights, *grad_scores, *slopes, *rules, *mask_sums;  // of a tile: keys x queries
};

// Hands out consecutive cache-line-aligned pieces of memory, in floats.
struct Carver {
  std::int64_t used = 0;
  std::int64_t take(std::int64_t floats) {
    const std::int64_t at = used;
    used += round_up(floats, 16);
    return at;
  }
};

std::int64_t at_least(std::int64_t a, std::int64_t b) { return a > b ? a : b; }
std::int64_t at_most(std::int64_t a, std::int64_t b) { return a < b ? a : b; }
std::int64_t ceil_div(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }

std::int64_t scratch_floats(const GradientPlan& plan) {
  const std::int64_t widths = plan.key_stride + plan.value_stride;
  return 2 * plan.chunk_keys * widths + 2 * query_block * widths + query_block * plan.key_stride + query_block +
         5 * key_block * query_block;
}

GradientScratch carve_scratch(const GradientPlan& plan, float* memory) {
  Carver carver;
  const auto take = [&](std::int64_t floats) { return memory + carver.take(floats); };
  GradientScratch scratch;
  scratch.key = take(plan.chunk_keys * plan.key_stride);
  scratch.value = take(plan.chunk_keys * plan.value_stride);
  scratch.grad_key = take(plan.chunk_keys * plan.key_stride);
  scratch.grad_value = take(plan.chunk_keys * plan.value_stride);
  scratch.query = take(query_block * plan.key_stride);
  scratch.query_columns = take(query_block * plan.key_stride);
  scratch.grad_output = take(query_block * plan.value_stride);
  scratch.grad_output_columns = take(query_block * plan.value_stride);
  scratch.grad_query = take(query_block * plan.key_stride);
  scratch.grad_rows = take(query_block);
  scratch.weights = take(key_block * query_block);
  scratch.grad_scores = take(key_block * query_block);
  scratch.slopes = take(key_block * query_block);
  scratch.rules = take(key_block * query_block);
  scratch.mask_sums = take(key_block * query_block);
  return scratch;
}

// Keys per chunk: K, V, dK and dV in half of a 512 KiB cache, but never so many that a few long heads leave most of
// a machine idle. Decided by the shape alone, since it decides the order in which dQ is summed.
std::int64_t chunk_keys(const GradientPlan& plan) {
  constexpr std::int64_t cache_floats = 256 * 1024 / sizeof(float), enough_jobs = 16;
  std::int64_t keys = cache_floats / (2 * (plan.key_stride + plan.value_stride)) / key_block * key_block;
  keys = at_least(key_block, at_most(keys, 8 * key_block));
  while (keys > 2 * key_block && plan.batch * plan.kv_heads * ceil_div(plan.kv_len, keys) < enough_jobs) keys /= 2;
  keys = round_up(keys, key_block);
  const std::int64_t chunks = at_least(1, ceil_div(plan.kv_len, keys));
  return round_up(at_least(1, ceil_div(plan.kv_len, chunks)), key_block);
}

void choose_schedule(GradientPlan& plan) {
  const std::int64_t jobs = plan.batch * plan.kv_heads;
  const double work = double(jobs * plan.group) * double(plan.q_len * plan.kv_len) * double(plan.head_dim + 16);
  constexpr double worth_threads = 1 << 17;
  plan.workers = work < worth_threads ? 1 : max_workers();
  plan.slots = 0;
  if (plan.chunks == 1) {
    plan.schedule = Schedule::single;
  } else if (plan.workers == 1 || jobs >= 4 * plan.workers) {
    plan.schedule = Schedule::chained;
  } else {
    plan.schedule = Schedule::split;
    plan.slots = at_most(plan.chunks, ceil_div(4 * plan.workers, at_least(1, jobs)));
  }
}

GradientPlan plan_gradient(const AttentionGradientArgs& args) {
  const AttentionInputs& inputs = args.inputs;
  GradientPlan plan;
  plan.batch = inputs.query.size[0], plan.heads = inputs.query.size[1], plan.q_len = inputs.query.size[2];
  plan.kv_heads = inputs.key.size[1], plan.kv_len = inputs.key.size[2];
  plan.group = plan.kv_heads > 0 ? plan.heads / plan.kv_heads : 0;
  plan.head_dim = inputs.query.size[3];
  plan.value_dim = args.grad_output.data ? args.grad_output.size[3] : 0;
  plan.key_stride = round_up(plan.head_dim, lanes), plan.value_stride = round_up(plan.value_dim, lanes);
  plan.row_stride = round_up(plan.q_len, query_block);
  plan.chunk_keys = chunk_keys(plan);
  plan.chunks = at_least(1, ceil_div(plan.kv_len, plan.chunk_keys));
  plan.rounds = inputs.query.dtype != DType::float32;
  choose_schedule(plan);

  const std::int64_t rows = plan.batch * plan.heads * plan.row_stride;
  Carver carver;
  plan.lse = carver.take(rows);
  plan.shift = carver.take(rows);
  plan.delta = carver.take(rows);
  plan.query_sums = carver.take(plan.rounds && plan.chunks > 1 ? rows * plan.key_stride : 0);
  plan.slot_queries_size = round_up(rows * plan.key_stride, 16), plan.slot_rows_size = round_up(rows, 16);
  plan.slot_queries = carver.take(plan.slots * plan.slot_queries_size);
  plan.slot_rows = carver.take(plan.slots * plan.slot_rows_size);
  plan.scratch_size = round_up(scratch_floats(plan), 16);
  plan.scratch = carver.take(plan.workers * plan.scratch_size);
  plan.total = carver.used;
  return plan;
}

}  // namespace

}  // namespace bigmodel::cpu::BIGMODEL_TARGET
