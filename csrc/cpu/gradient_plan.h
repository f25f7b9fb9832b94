// How the work and the workspace of attention's backward pass are divided. Keys are taken in chunks; a chunk's K, V, dK
// and dV stay in the second-level cache while all queries pass by, so dK and dV are complete per chunk, while dQ is a
// sum over chunks. That sum is always taken chunk after chunk, so no result depends on the number of threads.
#pragma once

#include "bigmodel/parallel.h"
#include "cpu/attention_gradient.h"
#include "cpu/gradient_tile.h"
#include "cpu/jobs.h"

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
  std::int64_t key_stride, value_stride;  // of rows of head_dim and value_dim: whole vectors
  std::int64_t row_stride;                // q_len in whole blocks
  std::int64_t chunk_keys, chunks;
  Schedule schedule;
  std::int64_t slots;
  // Whether the rows of query and of grad_output are copied side by side before every chunk reads them, and whether dQ
  // is summed in the workspace and stored once.
  bool gathers_query, gathers_grad_output, gathers_sums;
  // Offsets in floats into memory of its own, from its start in the workspace, and into the slots; and their sizes.
  std::int64_t lse, shift, delta, query_sums, query_rows, grad_output_rows, own, own_size;
  std::int64_t slot_queries, slot_rows, slot_queries_size, slot_rows_size, slots_size;
};

// Memory of one worker, in floats; operands of products hold fewer bytes where these are formed in bfloat16.
struct GradientScratch {
  float *key, *value, *grad_key, *grad_value;                        // of a chunk
  float *query, *query_columns, *grad_output, *grad_output_columns;  // of a block of queries, as rows and transposed
  float *grad_query, *grad_query_columns, *grad_rows;
  float *weights, *grad_scores, *slopes, *rules, *mask_sums;  // of a tile: keys x queries
  float* rounded;                                             // one of these at a time as bfloat16
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

// What all that is computed in one workspace has in common.
struct GradientScratchSizes {
  static constexpr std::int64_t tile = key_block * query_block;
  std::int64_t keys, key_stride, value_stride;  // of the longest chunk

  std::int64_t floats() const {
    const std::int64_t widths = key_stride + value_stride;
    return round_up(2 * keys * widths + 2 * query_block * widths + 2 * query_block * key_stride + query_block +
                        5 * tile + tile / 2 + worker_gap,
                    16);
  }
};

GradientScratch carve_scratch(const GradientScratchSizes& sizes, float* memory) {
  const auto [keys, key_stride, value_stride] = sizes;
  Carver carver;
  const auto take = [&](std::int64_t floats) { return memory + carver.take(floats); };
  GradientScratch scratch;
  scratch.key = take(keys * key_stride);
  scratch.value = take(keys * value_stride);
  scratch.grad_key = take(keys * key_stride);
  scratch.grad_value = take(keys * value_stride);
  scratch.query = take(query_block * key_stride);
  scratch.query_columns = take(query_block * key_stride);
  scratch.grad_output = take(query_block * value_stride);
  scratch.grad_output_columns = take(query_block * value_stride);
  scratch.grad_query = take(query_block * key_stride);
  scratch.grad_query_columns = take(query_block * key_stride);
  scratch.grad_rows = take(query_block);
  scratch.weights = take(sizes.tile);
  scratch.grad_scores = take(sizes.tile);
  scratch.slopes = take(sizes.tile);
  scratch.rules = take(sizes.tile);
  scratch.mask_sums = take(sizes.tile);
  scratch.rounded = take(sizes.tile / 2);
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

// Multiply-adds of one product of the backward pass, about, without a mask.
double gradient_work(const AttentionGradientArgs& args) {
  const std::int64_t *query = args.inputs.query.size, kv_len = args.inputs.key.size[2];
  return double(query[0] * query[1]) * double(query[2] * kv_len) * double(query[3] + 16);
}

// Threads for all that is computed in one workspace.
int gradient_workers(double total_work) {
  constexpr double worth_threads = 1 << 17;
  return total_work < worth_threads ? 1 : max_workers();
}

// A chain of chunks is a job where threads find enough of them: where none is too large a part of all the work.
void choose_schedule(GradientPlan& plan, double work, double total_work) {
  const std::int64_t jobs = plan.batch * plan.kv_heads;
  const int workers = gradient_workers(total_work);
  plan.slots = 0;
  if (plan.chunks == 1) {
    plan.schedule = Schedule::single;
  } else if (workers == 1 || work * (4 * workers) <= total_work * double(jobs)) {
    plan.schedule = Schedule::chained;
  } else {
    plan.schedule = Schedule::split;
    plan.slots = at_most(plan.chunks, ceil_div(4 * workers, at_least(1, jobs)));
  }
}

// Rows that lie apart, as those of a head among others do, cost every pass over them: they fall into few sets of the
// caches, each into a page of its own.
bool lies_apart(const TensorView& view) { return view.data && view.stride[3] == 1 && view.stride[2] != view.size[3]; }

// total_work: of all that is computed in one workspace.
GradientPlan plan_gradient(const AttentionGradientArgs& args, double total_work) {
  const AttentionInputs& inputs = args.inputs;
  GradientPlan plan;
  plan.batch = inputs.query.size[0], plan.heads = inputs.query.size[1], plan.q_len = inputs.query.size[2];
  plan.kv_heads = inputs.key.size[1], plan.kv_len = inputs.key.size[2];
  plan.group = plan.kv_heads > 0 ? plan.heads / plan.kv_heads : 0;
  plan.head_dim = inputs.query.size[3];
  plan.value_dim = args.grad_output.data ? args.grad_output.size[3] : 0;
  const auto width = [&](std::int64_t n) {
    return inputs.query.dtype == DType::bfloat16 ? lhs_width<ElementOf<bfloat16>>(n) : lhs_width<float>(n);
  };
  plan.key_stride = width(plan.head_dim), plan.value_stride = width(plan.value_dim);
  plan.row_stride = round_up(plan.q_len, query_block);
  plan.chunk_keys = chunk_keys(plan);
  plan.chunks = at_least(1, ceil_div(plan.kv_len, plan.chunk_keys));
  plan.gathers_query = plan.chunks > 1 && lies_apart(inputs.query);
  plan.gathers_grad_output = plan.chunks > 1 && lies_apart(args.grad_output);
  plan.gathers_sums = plan.chunks > 1 && (inputs.query.dtype != DType::float32 || lies_apart(args.grad_query));
  choose_schedule(plan, gradient_work(args), total_work);

  const std::int64_t rows = plan.batch * plan.heads * plan.row_stride;
  Carver carver;
  plan.lse = carver.take(rows);
  plan.shift = carver.take(rows);
  plan.delta = carver.take(rows);
  plan.query_sums = carver.take(plan.gathers_sums ? rows * plan.key_stride : 0);
  const auto take_rows = [&](bool wanted, std::int64_t width) {
    return carver.take(wanted ? ceil_div(rows * width * bytes_of(inputs.query.dtype), sizeof(float)) : 0);
  };
  plan.query_rows = take_rows(plan.gathers_query, plan.head_dim);
  plan.grad_output_rows = take_rows(plan.gathers_grad_output, plan.value_dim);
  plan.own_size = carver.used;
  Carver slots;
  plan.slot_queries_size = round_up(rows * plan.key_stride, 16), plan.slot_rows_size = round_up(rows, 16);
  plan.slot_queries = slots.take(plan.slots * plan.slot_queries_size);
  plan.slot_rows = slots.take(plan.slots * plan.slot_rows_size);
  plan.slots_size = slots.used;
  return plan;
}

// The workspace: scratch memory per worker, slots for one split call at a time, and what each call has of its own.
// First every plan is added, then every plan is placed in the same order.
class GradientLayout {
 public:
  explicit GradientLayout(double total_work) : workers_(gradient_workers(total_work)) {}

  void add(const GradientPlan& plan) {
    scratch_ = {at_least(scratch_.keys, plan.chunk_keys), plan.key_stride, plan.value_stride};
    slots_size_ = at_least(slots_size_, plan.slots_size);
    own_size_ += plan.own_size;
  }
  void place(GradientPlan& plan) {
    plan.own = slots() + slots_size_ + placed_;
    placed_ += plan.own_size;
  }

  int workers() const { return workers_; }
  const GradientScratchSizes& scratch() const { return scratch_; }
  std::int64_t slots() const { return workers_ * scratch_.floats(); }
  std::int64_t total() const { return slots() + slots_size_ + own_size_; }

 private:
  int workers_;
  GradientScratchSizes scratch_ = {};
  std::int64_t slots_size_ = 0, own_size_ = 0, placed_ = 0;
};

}  // namespace

}  // namespace bigmodel::cpu::BIGMODEL_TARGET
