// Fused attention, forward: softmax(scores) V block by block, with never more than a tile of scores (Dao et al.,
// "FlashAttention", 2022).
//
// Everything is transposed: the lanes of a vector are queries. With K in rows and Q^T packed once, S^T = K Q^T is a
// plain tile GEMM, the softmax runs down its rows, and S^T, now P^T, is the right operand of O^T += V^T P^T as it lies.
#include "cpu/attention_forward_plan.h"
#include "cpu/attention_scores.h"
#include "cpu/jobs.h"
#include "cpu/kernels.h"
#include "cpu/philox.h"

namespace bigmodel::cpu::BIGMODEL_TARGET {
namespace {

// What all jobs of a call read.
struct Forward {
  const AttentionForwardArgs& args;
  const ForwardPlan& plan;
  Band band;
  bool applies_rules;
  float factor;  // scores are in units of 1 / factor powers of two
};

// A matrix of keys or values: rows of one kv head, fp32.
struct Rows {
  const float* data;
  std::int64_t stride;
};

template <class T>
Rows rows_of(const TensorView& view, std::int64_t batch, std::int64_t kv_head, const KeyRange& keys, bool converts,
             float* scratch, std::int64_t stride) {
  const T* first = static_cast<const T*>(view.data) + batch * view.stride[0] + kv_head * view.stride[1] +
                   keys.first * view.stride[2];
  if (!converts) return {reinterpret_cast<const float*>(first), stride};
  copy_in(keys.count(), view.size[3], first, view.stride[2], view.stride[3], scratch, stride);
  return {scratch, stride};
}

// S^T of a panel with a run of keys, in the unit of call.factor. May find that a mask leaves fewer keys.
template <class T>
void panel_scores(const Forward& call, const Panel& panel, const float* query, const Rows& key, KeyRange& keys,
                  const ForwardScratch& scratch) {
  const std::int64_t first = keys.first;
  TileMask mask{.values = scratch.mask, .room = scratch.room};
  if (call.args.inputs.mask.data) load_mask<T>(call.args.inputs.mask, panel, keys, mask);
  if (keys.count() <= 0) return;
  multiply_by_rows(keys.count(), panel.queries, call.plan.shape.head_dim, key.data + (keys.first - first) * key.stride,
                   key.stride, query, tile_columns, scratch.scores, tile_columns, false);
  if (call.applies_rules) {
    ScoreRules rules;
    make_rules(call.args.inputs, call.band, panel, rules);
    apply_rules(rules, mask, keys, panel.queries, scratch.scores);
  }
  if (mask.removes && mask.form != TileMask::Form::none) {
    apply_boolean_mask(mask, keys.count(), panel.queries, scratch.scores);
  }
  apply_band(call.band, panel, keys, scratch.scores);
}

// weights *= dropout factors
void drop(const Dropout& dropout, const Panel& panel, const KeyRange& keys, float* room, float* weights) {
  for (std::int64_t column = 0; column < panel.queries; column += lanes) {
    PhiloxWord heads, rows;
    for (int l = 0; l < lanes; ++l) {
      heads.lane[l] = std::uint32_t(panel.head[column + l]);
      rows.lane[l] = std::uint32_t(panel.query[column + l]);
    }
    dropout_factors(dropout, panel.batch, heads, rows, keys.first, keys.count(), room + column, tile_columns);
    for (std::int64_t key = 0; key < keys.count(); ++key) {
      const std::int64_t at = key * tile_columns + column;
      store(weights + at, load(weights + at) * load(room + at));
    }
  }
}

// One panel meets one block of keys.
template <class T>
void add_keys(const Forward& call, const Panel& panel, const float* query, Rows key, Rows value, KeyRange block,
              const ForwardScratch& scratch, const PanelRecord& record) {
  KeyRange keys = {panel.first_key > block.first ? panel.first_key : block.first,
                   panel.end_key < block.end ? panel.end_key : block.end};
  if (keys.count() <= 0) return;
  key.data += (keys.first - block.first) * key.stride;
  panel_scores<T>(call, panel, query, key, keys, scratch);
  if (keys.count() <= 0) return;
  value.data += (keys.first - block.first) * value.stride;

  float rescale[tile_columns];
  const std::int64_t value_dim = call.plan.value_dim;
  if (update_softmax(keys.count(), panel.queries, call.factor, scratch.scores, *record.state, rescale)) {
    scale_columns(value_dim, panel.queries, rescale, record.output);
  }
  const Dropout& dropout = call.args.inputs.options.dropout;
  if (dropout.p > 0) drop(dropout, panel, keys, scratch.mask, scratch.scores);
  multiply_by_columns(value_dim, panel.queries, keys.count(), value.data, value.stride, scratch.scores, tile_columns,
                      record.output, tile_columns, true);
}

// Divides by the softmax's denominator and writes output and lse.
template <class T>
void write_panel(const Forward& call, const Panel& panel, const PanelRecord& record) {
  const AttentionForwardArgs& args = call.args;
  float lse[tile_columns], normalizer[tile_columns], sink[tile_columns];
  for (int lane = 0; lane < tile_columns; ++lane) {
    const TensorView& sinks = args.inputs.sinks;
    sink[lane] = sinks.data ? static_cast<const float*>(sinks.data)[panel.head[lane] * sinks.stride[0]] : -infinity;
  }
  for (std::int64_t column = 0; column < panel.queries; column += lanes) {
    const SoftmaxEnd end = end_softmax(load(record.state->maximum + column), load(record.state->sum + column),
                                       call.factor, load(sink + column));
    store(lse + column, end.lse);
    store(normalizer + column, end.normalizer);
  }
  scale_columns(call.plan.value_dim, panel.queries, normalizer, record.output);
  store_panel<T>(record.output, call.plan.value_dim, panel, args.output);
  for (std::int64_t lane = 0; lane < panel.queries; ++lane) {
    static_cast<float*>(args.lse.data)[lane_offset(args.lse, panel, lane)] = lse[lane];
  }
}

// Packs Q^T, with the sign of the scale, and clears the results.
template <class T>
void start_panel(const Forward& call, const Panel& panel, float* query, float* room, const PanelRecord& record) {
  const AttentionInputs& inputs = call.args.inputs;
  const std::int64_t head_dim = call.plan.shape.head_dim;
  load_panel<T>(inputs.query, panel, 0, head_dim, room, query);
  if (inputs.options.scale < 0) {
    float sign[tile_columns];
    for (int lane = 0; lane < tile_columns; ++lane) sign[lane] = -1.0f;
    scale_columns(head_dim, panel.queries, sign, query);
  }
  start_softmax(*record.state);
  for (std::int64_t i = 0; i < call.plan.value_dim * tile_columns; i += lanes) store(record.output + i, zero());
}

// Where a job stands: jobs of one kv head follow each other, its last queries first, for causal ones have the most
// keys.
struct JobPlace {
  std::int64_t batch, kv_head, first_panel, panels;
  KeyRange keys;
};

JobPlace place_of(const ForwardPlan& plan, std::int64_t job) {
  const std::int64_t split = job % plan.splits, rest = job / plan.splits;
  const std::int64_t block = plan.blocks - 1 - rest % plan.blocks, kv_head = rest / plan.blocks;
  JobPlace place;
  place.batch = kv_head / plan.shape.kv_heads, place.kv_head = kv_head % plan.shape.kv_heads;
  place.first_panel = block * plan.block_panels;
  const std::int64_t left = plan.shape.panels - place.first_panel;
  place.panels = left < plan.block_panels ? left : plan.block_panels;
  const std::int64_t end = (split + 1) * plan.split_keys;
  place.keys = {split * plan.split_keys, end < plan.shape.kv_len ? end : plan.shape.kv_len};
  return place;
}

template <class T>
void run_job(const Forward& call, std::int64_t job, int worker) {
  const ForwardPlan& plan = call.plan;
  const ForwardScratch scratch = carve_scratch(plan, call.args.workspace, worker);
  const JobPlace place = place_of(plan, job);
  const std::int64_t set = plan.splits > 1 ? job : worker;
  const auto record = [&](std::int64_t p) { return panel_record(plan, call.args.workspace, set, p); };

  KeyRange seen = {place.keys.end, place.keys.first};
  for (std::int64_t p = 0; p < place.panels; ++p) {
    Panel& panel = scratch.panels[p];
    make_panel(plan.shape, call.band, place.batch, place.kv_head, place.first_panel + p, panel);
    start_panel<T>(call, panel, scratch.query + p * plan.query_floats, scratch.room, record(p));
    if (panel.first_key < seen.first) seen.first = panel.first_key;
    if (panel.end_key > seen.end) seen.end = panel.end_key;
  }
  if (seen.first < place.keys.first) seen.first = place.keys.first;
  if (seen.end > place.keys.end) seen.end = place.keys.end;

  const AttentionInputs& inputs = call.args.inputs;
  // Blocks start at multiples of key_block whatever the panels see: results do not depend on how panels are grouped.
  for (std::int64_t first = seen.first / plan.key_block * plan.key_block; first < seen.end; first += plan.key_block) {
    const std::int64_t end = first + plan.key_block;
    const KeyRange block = {first > seen.first ? first : seen.first, end < seen.end ? end : seen.end};
    const Rows key =
        rows_of<T>(inputs.key, place.batch, place.kv_head, block, plan.converts_key, scratch.key, plan.key_stride);
    const Rows value = rows_of<T>(inputs.value, place.batch, place.kv_head, block, plan.converts_value, scratch.value,
                                  plan.value_stride);
    for (std::int64_t p = 0; p < place.panels; ++p) {
      add_keys<T>(call, scratch.panels[p], scratch.query + p * plan.query_floats, key, value, block, scratch,
                  record(p));
    }
  }
  if (plan.splits > 1) return;
  for (std::int64_t p = 0; p < place.panels; ++p) write_panel<T>(call, scratch.panels[p], record(p));
}

// result += part, both weighted sums of values with their own softmax states.
void merge_records(const ForwardPlan& plan, std::int64_t queries, float factor, const PanelRecord& part,
                   const PanelRecord& result) {
  float keep[tile_columns] = {}, take[tile_columns] = {};
  for (std::int64_t column = 0; column < queries; column += lanes) {
    const F32 old_maximum = load(result.state->maximum + column), its_maximum = load(part.state->maximum + column);
    const F32 maximum = max(old_maximum, its_maximum);
    const F32 k = exp2(set1(factor) * (old_maximum - maximum)), t = exp2(set1(factor) * (its_maximum - maximum));
    store(result.state->maximum + column, maximum);
    store(result.state->sum + column, fma(load(part.state->sum + column), t, load(result.state->sum + column) * k));
    store(keep + column, k);
    store(take + column, t);
  }
  scale_columns(plan.value_dim, queries, keep, result.output);
  for (std::int64_t row = 0; row < plan.value_dim; ++row) {
    for (std::int64_t column = 0; column < queries; column += lanes) {
      float* at = result.output + row * tile_columns + column;
      store(at, fma(load(part.output + row * tile_columns + column), load(take + column), load(at)));
    }
  }
}

// Merges the parts of one block of panels into the first part and writes it.
template <class T>
void merge_job(const Forward& call, std::int64_t block, int worker) {
  const ForwardPlan& plan = call.plan;
  const std::int64_t job = block * plan.splits;
  const JobPlace place = place_of(plan, job);
  Panel& panel = *carve_scratch(plan, call.args.workspace, worker).panels;
  for (std::int64_t p = 0; p < place.panels; ++p) {
    make_panel(plan.shape, call.band, place.batch, place.kv_head, place.first_panel + p, panel);
    const PanelRecord result = panel_record(plan, call.args.workspace, job, p);
    for (std::int64_t split = 1; split < plan.splits; ++split) {
      const PanelRecord part = panel_record(plan, call.args.workspace, job + split, p);
      merge_records(plan, panel.queries, call.factor, part, result);
    }
    write_panel<T>(call, panel, result);
  }
}

template <class T>
void forward(const AttentionForwardArgs& args) {
  const ForwardPlan plan = plan_forward(args);
  const bool applies_rules = has_rules(args.inputs);
  const float factor = applies_rules ? log2_e : __builtin_fabsf(args.inputs.options.scale) * log2_e;
  const Forward call = {args, plan, attention_band(args.inputs), applies_rules, factor};
  for_each_job(plan.workers, plan.jobs(), [&](std::int64_t job, int worker) { run_job<T>(call, job, worker); });
  if (plan.splits == 1) return;
  for_each_job(plan.workers, plan.jobs() / plan.splits,
               [&](std::int64_t block, int worker) { merge_job<T>(call, block, worker); });
}

}  // namespace

std::int64_t attention_forward_workspace(const AttentionForwardArgs& args) {
  return plan_forward(args).total_floats * std::int64_t(sizeof(float));
}

void attention_forward(const AttentionForwardArgs& args) {
  switch (args.inputs.query.dtype) {
    case DType::bfloat16:
      return forward<bfloat16>(args);
    case DType::float16:
      return forward<float16>(args);
    default:
      return forward<float>(args);
  }
}

}  // namespace bigmodel::cpu::BIGMODEL_TARGET
