// How attention's forward pass divides its work and its workspace.
//
// A job is one block of panels of one kv head against all their keys: the block shares each block of keys while it is
// in the second-level cache, converted to fp32 once. When there are few such jobs but many keys, the keys are split,
// and the parts are merged at the end. Everything but the number of workers follows from the shapes, so results do not
// depend on the number of threads.
#pragma once

#include "bigmodel/parallel.h"
#include "cpu/attention_panel.h"
#include "cpu/online_softmax.h"

namespace bigmodel::cpu::BIGMODEL_TARGET {

struct ForwardPlan {
  AttentionShape shape;
  std::int64_t value_dim;
  bool converts_key, converts_value;             // to fp32 with unit stride
  std::int64_t key_stride, value_stride;         // of rows of a block of keys, in elements
  std::int64_t key_block, block_panels, blocks;  // blocks of panels of one kv head
  std::int64_t splits, split_keys;
  int workers;
  // The workspace, in floats. A panel's record: output (value_dim x lanes), its SoftmaxState.
  std::int64_t record_floats, query_floats, tile_floats, scratch_floats, total_floats;

  std::int64_t jobs() const { return shape.batch * shape.kv_heads * blocks * splits; }
};

inline constexpr std::int64_t cache_line_floats = 16;

// Keys per block: the scores of a panel stay in the first-level cache between their two products. Measured on Zen 3 at
// head_dim 64 and 128 (bench/NOTES.md).
BIGMODEL_INLINE std::int64_t key_block_of(std::int64_t head_dim, std::int64_t value_dim) {
  const std::int64_t keys = head_dim + value_dim <= 512 ? 96 : 48;
  return round_up(keys, tile_rows);
}

BIGMODEL_INLINE void plan_blocks(ForwardPlan& plan) {
  const AttentionShape& shape = plan.shape;
  constexpr std::int64_t enough_jobs = 32, fewest_panels = 4, cache_floats = 48 * 1024;
  const std::int64_t kv_heads = shape.batch * shape.kv_heads;
  const std::int64_t floats = tile_columns * (shape.head_dim + plan.value_dim);
  const std::int64_t fitting = floats < cache_floats ? cache_floats / floats : 1;
  std::int64_t panels = ceil_div(kv_heads * shape.panels, enough_jobs);
  if (panels < fewest_panels) panels = fewest_panels;
  if (panels > fitting) panels = fitting;
  if (panels > shape.panels) panels = shape.panels;
  if (panels < 1) panels = 1;
  plan.blocks = ceil_div(shape.panels, panels);
  plan.block_panels = plan.blocks > 0 ? ceil_div(shape.panels, plan.blocks) : 1;

  constexpr std::int64_t fewest_keys = 512;
  const std::int64_t jobs = kv_heads * plan.blocks;
  plan.splits = 1;
  if (jobs > 0 && jobs < enough_jobs / 2) plan.splits = ceil_div(enough_jobs / 2, jobs);
  if (plan.splits > shape.kv_len / fewest_keys) plan.splits = shape.kv_len / fewest_keys;
  if (plan.splits < 1) plan.splits = 1;
  plan.split_keys = round_up(ceil_div(shape.kv_len, plan.splits), plan.key_block);
  if (plan.splits > 1) plan.splits = ceil_div(shape.kv_len, plan.split_keys);
}

static bool in_place(const TensorView& view) {
  return view.dtype == DType::float32 && (view.stride[3] == 1 || view.size[3] == 1);
}

static ForwardPlan plan_forward(const AttentionForwardArgs& args) {
  const AttentionInputs& inputs = args.inputs;
  ForwardPlan plan;
  plan.shape = attention_shape(inputs);
  const AttentionShape& shape = plan.shape;
  plan.value_dim = inputs.value.size[3];
  plan.converts_key = !in_place(inputs.key);
  plan.converts_value = !in_place(inputs.value);
  plan.key_stride = plan.converts_key ? round_up(shape.head_dim, lanes) : inputs.key.stride[2];
  plan.value_stride = plan.converts_value ? round_up(plan.value_dim, lanes) : inputs.value.stride[2];
  plan.key_block = key_block_of(shape.head_dim, plan.value_dim);
  plan_blocks(plan);

  // Below this much work, waking another thread costs more than it saves.
  constexpr double worth_threads = 1 << 20;
  const double work =
      double(shape.batch * shape.heads) * double(shape.q_len * shape.kv_len) * double(shape.head_dim + plan.value_dim);
  plan.workers = work < worth_threads ? 1 : max_workers();

  const std::int64_t wider = shape.head_dim > plan.key_block ? shape.head_dim : plan.key_block;
  const auto whole_lines = [](std::int64_t floats) { return round_up(floats, cache_line_floats); };
  plan.query_floats = whole_lines(shape.head_dim * tile_columns);
  plan.record_floats = whole_lines(plan.value_dim * tile_columns + sizeof(SoftmaxState) / sizeof(float));
  plan.tile_floats = whole_lines(wider * tile_columns);
  plan.scratch_floats = plan.block_panels * plan.query_floats + 3 * plan.tile_floats +
                        whole_lines(plan.block_panels * sizeof(Panel) / sizeof(float) + 1) +
                        (plan.converts_key ? plan.key_block * plan.key_stride : 0) +
                        (plan.converts_value ? plan.key_block * plan.value_stride : 0) + cache_line_floats;
  plan.scratch_floats = whole_lines(plan.scratch_floats);
  const std::int64_t record_sets = plan.splits > 1 ? plan.jobs() : plan.workers;
  plan.total_floats = plan.workers * plan.scratch_floats + record_sets * plan.block_panels * plan.record_floats;
  return plan;
}

// The running result of one panel. What is read past the output's last row is the state.
struct PanelRecord {
  float* output;  // value_dim x lanes, not yet divided by the sums
  SoftmaxState* state;
};

// The memory of one worker.
struct ForwardScratch {
  float *query, *scores, *mask, *room, *key, *value;
  Panel* panels;
};

static ForwardScratch carve_scratch(const ForwardPlan& plan, void* workspace, int worker) {
  float* next = static_cast<float*>(workspace) + worker * plan.scratch_floats;
  const auto take = [&next](std::int64_t floats) {
    float* memory = next;
    next += round_up(floats, cache_line_floats);
    return memory;
  };
  ForwardScratch scratch;
  scratch.query = take(plan.block_panels * plan.query_floats);
  scratch.scores = take(plan.tile_floats);
  scratch.mask = take(plan.tile_floats);
  scratch.room = take(plan.tile_floats);
  scratch.panels = reinterpret_cast<Panel*>(take(plan.block_panels * sizeof(Panel) / sizeof(float) + 1));
  scratch.key = plan.converts_key ? take(plan.key_block * plan.key_stride) : nullptr;
  scratch.value = plan.converts_value ? take(plan.key_block * plan.value_stride) : nullptr;
  return scratch;
}

// The record of a panel in a set of records: one set per worker, or per job when its parts are merged later.
static PanelRecord panel_record(const ForwardPlan& plan, void* workspace, std::int64_t set, std::int64_t panel) {
  float* records = static_cast<float*>(workspace) + plan.workers * plan.scratch_floats;
  float* record = records + (set * plan.block_panels + panel) * plan.record_floats;
  return {record, reinterpret_cast<SoftmaxState*>(record + plan.value_dim * tile_columns)};
}

}  // namespace bigmodel::cpu::BIGMODEL_TARGET
