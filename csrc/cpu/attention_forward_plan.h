// How attention's forward pass divides its work and its workspace.
//
// A job is one block of panels of one kv head against all their keys: the block shares each block of keys while it is
// in the second-level cache, packed once. When there are few such jobs but many keys, the keys are split,
// and the parts are merged at the end. Everything but the number of workers follows from the shapes, so results do not
// depend on the number of threads.
#pragma once

#include "bigmodel/parallel.h"
#include "cpu/attention_values.h"
#include "cpu/jobs.h"
#include "cpu/online_softmax.h"

namespace bigmodel::cpu::BIGMODEL_TARGET {

struct PanelState {
  SoftmaxState softmax;
  bool empty;  // the panel's output holds nothing yet
};

struct ForwardPlan {
  AttentionShape shape;
  std::int64_t value_dim;
  std::int64_t key_floats, value_floats;         // of a block of keys, packed; 0 where it is read in place
  std::int64_t key_block, block_panels, blocks;  // blocks of panels of one kv head
  std::int64_t splits, split_keys;
  double work;  // multiply-adds, without a mask
  // What the workspace holds of it, in floats. A panel's record: output (value_dim x lanes), its SoftmaxState. A set
  // has the records of a job's panels.
  std::int64_t record_floats, query_floats, tile_floats;
  // Where it lies, by ForwardLayout: one worker's scratch memory after the other's, then the sets.
  std::int64_t scratch_floats, sets, set_floats;

  std::int64_t jobs() const { return shape.batch * shape.kv_heads * blocks * splits; }
  // One set per worker; or per job, where its parts are merged later.
  bool keeps_sets() const { return splits > 1; }
};

BIGMODEL_INLINE void plan_blocks(ForwardPlan& plan) {
  const AttentionShape& shape = plan.shape;
  // A job has at least so many panels, and no more than 64 queries for it: one head of 256 serves four threads.
  constexpr std::int64_t fewest_panels = tile_columns > 16 ? 64 / tile_columns : 4;
  constexpr std::int64_t enough_jobs = 32, cache_floats = 48 * 1024;
  const std::int64_t kv_heads = shape.batch * shape.kv_heads;
  const std::int64_t floats = plan.query_floats + tile_columns * plan.value_dim;
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

template <class Element>
static ForwardPlan plan_forward(const AttentionForwardArgs& args) {
  const AttentionInputs& inputs = args.inputs;
  ForwardPlan plan;
  plan.shape = attention_shape(inputs);
  const AttentionShape& shape = plan.shape;
  plan.value_dim = inputs.value.size[3];
  plan.key_block = key_block_of<Element>(shape.head_dim, plan.value_dim);
  plan.query_floats = rhs_rows<Element>(shape.head_dim) * tile_columns;
  plan_blocks(plan);
  plan.key_floats = rows_floats<Element>(inputs.key, plan.key_block, plan.block_panels);
  plan.value_floats = values_floats<Element>(inputs.value, plan.key_block, plan.block_panels);

  plan.work =
      double(shape.batch * shape.heads) * double(shape.q_len * shape.kv_len) * double(shape.head_dim + plan.value_dim);
  plan.record_floats = whole_lines(plan.value_dim * tile_columns + sizeof(PanelState) / sizeof(float));
  plan.tile_floats = tile_scratch_floats(shape.head_dim, plan.key_block);
  plan.scratch_floats = plan.block_panels * plan.query_floats + 3 * plan.tile_floats +
                        whole_lines(plan.block_panels * sizeof(Panel) / sizeof(float) + 1) + plan.key_floats +
                        plan.value_floats + worker_gap;
  plan.scratch_floats = whole_lines(plan.scratch_floats);
  plan.set_floats = plan.block_panels * plan.record_floats;
  return plan;
}

// One workspace for calls that are computed together: a dense batch is one, packed sequences are one each. First every
// plan is added, then every plan is placed in the same order.
class ForwardLayout {
 public:
  void add(const ForwardPlan& plan) {
    work_ += plan.work;
    if (plan.scratch_floats > scratch_floats_) scratch_floats_ = plan.scratch_floats;
    if (plan.keeps_sets()) {
      kept_ += plan.jobs() * plan.set_floats;
    } else if (plan.set_floats + worker_gap > set_floats_) {
      set_floats_ = plan.set_floats + worker_gap;
    }
  }

  // Below some work, waking another thread costs more than it saves.
  int workers() const {
    constexpr double worth_threads = 1 << 18;
    return work_ < worth_threads ? 1 : max_workers();
  }
  std::int64_t total_floats() const { return workers() * (scratch_floats_ + set_floats_) + kept_; }

  void place(ForwardPlan& plan) {
    plan.scratch_floats = scratch_floats_;
    plan.sets = workers() * scratch_floats_;
    if (plan.keeps_sets()) {
      plan.sets += workers() * set_floats_ + placed_;
      placed_ += plan.jobs() * plan.set_floats;
    } else {
      plan.set_floats = set_floats_;
    }
  }

 private:
  double work_ = 0;
  std::int64_t scratch_floats_ = 0, set_floats_ = 0, kept_ = 0, placed_ = 0;
};

// The running result of one panel. What is read past the output's last row is the state.
struct PanelRecord {
  float* output;  // value_dim x lanes, not yet divided by the sums
  PanelState* state;
};

// The memory of one worker.
template <class Element>
struct ForwardScratch {
  TileScratch tile;
  LaneOf<Element>* query;
  Element *key, *value;
  Panel* panels;
};

template <class Element>
static ForwardScratch<Element> carve_scratch(const ForwardPlan& plan, void* workspace, int worker) {
  float* next = static_cast<float*>(workspace) + worker * plan.scratch_floats;
  const auto take = [&next](std::int64_t floats) {
    float* memory = next;
    next += round_up(floats, cache_line_floats);
    return memory;
  };
  ForwardScratch<Element> scratch;
  scratch.query = reinterpret_cast<LaneOf<Element>*>(take(plan.block_panels * plan.query_floats));
  scratch.tile = {take(plan.tile_floats), take(plan.tile_floats), take(plan.tile_floats)};
  scratch.panels = reinterpret_cast<Panel*>(take(plan.block_panels * sizeof(Panel) / sizeof(float) + 1));
  scratch.key = reinterpret_cast<Element*>(take(plan.key_floats));
  scratch.value = reinterpret_cast<Element*>(take(plan.value_floats));
  return scratch;
}

// The record of a panel in a set of records.
static PanelRecord panel_record(const ForwardPlan& plan, void* workspace, std::int64_t set, std::int64_t panel) {
  float* record = static_cast<float*>(workspace) + plan.sets + set * plan.set_floats + panel * plan.record_floats;
  return {record, reinterpret_cast<PanelState*>(record + plan.value_dim * tile_columns)};
}

static void start_record(const PanelRecord& record) {
  start_softmax(record.state->softmax);
  record.state->empty = true;
}

// A panel that met no key.
static void clear_if_empty(const ForwardPlan& plan, const PanelRecord& record) {
  if (!record.state->empty) return;
  for (std::int64_t i = 0; i < plan.value_dim * tile_columns; i += lanes) store(record.output + i, zero());
}

}  // namespace bigmodel::cpu::BIGMODEL_TARGET
