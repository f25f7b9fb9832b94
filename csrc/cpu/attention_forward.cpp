// Fused attention, forward: softmax(scores) V block by block, with never more than a tile of scores (Dao et al.,
// "FlashAttention", 2022).
//
// Everything is transposed: the lanes of a vector are queries. With K in rows and Q^T packed once, S^T = K Q^T is a
// plain tile GEMM, the softmax runs down its rows, and S^T, now P^T, is the right operand of O^T += V^T P^T: as it lies
// in fp32, rounded to pairs of bfloat16 where the CPU target multiplies these.
//
// Packed sequences are calls computed together: their jobs are one list.
#include "cpu/attention_forward_plan.h"
#include "cpu/attention_output.h"
#include "cpu/attention_sequences.h"
#include "cpu/attention_tile.h"
#include "cpu/jobs.h"
#include "cpu/kernels.h"

namespace bigmodel::cpu::BIGMODEL_TARGET {
namespace {

// What all jobs of a call read.
struct Forward {
  const AttentionForwardArgs& args;
  const ForwardPlan& plan;
  ScoreTask scores;
};

// One panel meets one block of keys.
template <class T, class Element>
void add_keys(const Forward& call, const Panel& panel, const LaneOf<Element>* query, Rows<Element> key,
              const Values<Element>& value, KeyRange block, const ForwardScratch<Element>& scratch,
              const PanelRecord& record) {
  KeyRange keys = {panel.first_key > block.first ? panel.first_key : block.first,
                   panel.end_key < block.end ? panel.end_key : block.end};
  if (keys.count() <= 0) return;
  key.data += (keys.first - block.first) * key.stride;
  panel_scores<T>(call.scores, panel, query, key, keys, scratch.tile);
  if (keys.count() <= 0) return;

  float rescale[tile_columns];
  const std::int64_t value_dim = call.plan.value_dim;
  const bool first = record.state->empty;
  record.state->empty = false;
  if (update_softmax<weight_degree<T>>(keys.count(), panel.queries, call.scores.unit, scratch.tile.scores,
                                       record.state->softmax, rescale) &&
      !first) {
    scale_columns(value_dim, panel.queries, rescale, record.output);
  }
  const Dropout& dropout = call.args.inputs.options.dropout;
  if (dropout.p > 0) drop(dropout, panel, keys, scratch.tile);
  add_values(from_key(value, keys.first - block.first), keys.count(), panel.queries, value_dim, scratch.tile,
             record.output, !first);
}

template <class T>
void write_panel(const Forward& call, const Panel& panel, const PanelRecord& record) {
  float normalizer[tile_columns];
  end_panel<T>(call.args.inputs.sinks, call.scores.unit, panel, record.state->softmax, record.output, call.args.output,
               call.args.lse, normalizer);
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

template <class T, class Element>
void run_job(const Forward& call, std::int64_t job, int worker) {
  const ForwardPlan& plan = call.plan;
  const ForwardScratch<Element> scratch = carve_scratch<Element>(plan, call.args.workspace, worker);
  const JobPlace place = place_of(plan, job);
  const std::int64_t set = plan.keeps_sets() ? job : worker;
  const auto record = [&](std::int64_t p) { return panel_record(plan, call.args.workspace, set, p); };
  const AttentionInputs& inputs = call.args.inputs;

  KeyRange seen = {place.keys.end, place.keys.first};
  for (std::int64_t p = 0; p < place.panels; ++p) {
    Panel& panel = scratch.panels[p];
    make_panel(plan.shape, call.scores.band, place.batch, place.kv_head, place.first_panel + p, panel);
    pack_query<T>(inputs, panel, scratch.tile, scratch.query + p * plan.query_floats);
    start_record(record(p));
    if (panel.first_key < seen.first) seen.first = panel.first_key;
    if (panel.end_key > seen.end) seen.end = panel.end_key;
  }
  if (seen.first < place.keys.first) seen.first = place.keys.first;
  if (seen.end > place.keys.end) seen.end = place.keys.end;

  // Blocks start at multiples of key_block whatever the panels see: results do not depend on how panels are grouped.
  for (std::int64_t first = seen.first / plan.key_block * plan.key_block; first < seen.end; first += plan.key_block) {
    const std::int64_t end = first + plan.key_block;
    const KeyRange block = {first > seen.first ? first : seen.first, end < seen.end ? end : seen.end};
    const Rows<Element> key = rows_of<T>(inputs.key, place.batch, place.kv_head, block, plan.block_panels, scratch.key);
    const Values<Element> value =
        values_of<T>(inputs.value, place.batch, place.kv_head, block, plan.block_panels, scratch.value);
    for (std::int64_t p = 0; p < place.panels; ++p) {
      add_keys<T, Element>(call, scratch.panels[p], scratch.query + p * plan.query_floats, key, value, block, scratch,
                           record(p));
    }
  }
  for (std::int64_t p = 0; p < place.panels; ++p) {
    clear_if_empty(plan, record(p));
    if (!plan.keeps_sets()) write_panel<T>(call, scratch.panels[p], record(p));
  }
}

// result += part, both weighted sums of values with their own softmax states.
void merge_records(const ForwardPlan& plan, std::int64_t queries, const ScoreUnit& unit, const PanelRecord& part,
                   const PanelRecord& result) {
  const F32 in_powers = set1(unit.maxima_in_powers());
  float keep[tile_columns] = {}, take[tile_columns] = {};
  for (std::int64_t column = 0; column < queries; column += lanes) {
    const F32 old_maximum = load(result.state->softmax.maximum + column),
              its_maximum = load(part.state->softmax.maximum + column);
    const F32 maximum = max(old_maximum, its_maximum);
    const F32 k = exp2(in_powers * (old_maximum - maximum)), t = exp2(in_powers * (its_maximum - maximum));
    store(result.state->softmax.maximum + column, maximum);
    store(result.state->softmax.sum + column,
          fma(load(part.state->softmax.sum + column), t, load(result.state->softmax.sum + column) * k));
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
template <class T, class Element>
void merge_job(const Forward& call, std::int64_t block, int worker) {
  const ForwardPlan& plan = call.plan;
  const std::int64_t job = block * plan.splits;
  const JobPlace place = place_of(plan, job);
  Panel& panel = *carve_scratch<Element>(plan, call.args.workspace, worker).panels;
  for (std::int64_t p = 0; p < place.panels; ++p) {
    make_panel(plan.shape, call.scores.band, place.batch, place.kv_head, place.first_panel + p, panel);
    const PanelRecord result = panel_record(plan, call.args.workspace, job, p);
    for (std::int64_t split = 1; split < plan.splits; ++split) {
      const PanelRecord part = panel_record(plan, call.args.workspace, job + split, p);
      merge_records(plan, panel.queries, call.scores.unit, part, result);
    }
    write_panel<T>(call, panel, result);
  }
}

// One of the calls that are computed together, and the number of jobs up to its last.
struct CallPart {
  AttentionForwardArgs args;
  ForwardPlan plan;
  std::int64_t end_job;
};

// The part that a job belongs to.
const CallPart& part_of(const CallPart* parts, std::int64_t count, std::int64_t job) {
  std::int64_t first = 0, last = count - 1;
  while (first < last) {
    const std::int64_t middle = (first + last) / 2;
    if (parts[middle].end_job <= job) {
      first = middle + 1;
    } else {
      last = middle;
    }
  }
  return parts[first];
}

// Parts with their args and plans.
template <class T, class Element>
void run_parts(CallPart* parts, std::int64_t count, void* workspace) {
  ForwardLayout layout;
  for (std::int64_t i = 0; i < count; ++i) layout.add(parts[i].plan);
  std::int64_t jobs = 0;
  for (std::int64_t i = 0; i < count; ++i) {
    layout.place(parts[i].plan);
    parts[i].args.workspace = workspace;
    parts[i].end_job = jobs += parts[i].plan.jobs();
  }
  const auto call_of = [](const CallPart& part) { return Forward{part.args, part.plan, score_task(part.args.inputs)}; };
  for_each_job(layout.workers(), jobs, [&](std::int64_t job, int worker) {
    const CallPart& part = part_of(parts, count, job);
    run_job<T, Element>(call_of(part), job - (part.end_job - part.plan.jobs()), worker);
  });
  for (const CallPart* part = parts; part < parts + count; ++part) {
    if (!part->plan.keeps_sets()) continue;
    for_each_job(layout.workers(), part->plan.jobs() / part->plan.splits,
                 [&](std::int64_t block, int worker) { merge_job<T, Element>(call_of(*part), block, worker); });
  }
}

template <class T, class Element>
void forward(const AttentionForwardArgs& args) {
  CallPart part{args, plan_forward<Element>(args), 0};
  run_parts<T, Element>(&part, 1, args.workspace);
}

// Where packed sequences keep their parts in the workspace.
std::int64_t parts_floats(const PackedSequences& sequences) {
  return floats_of<char>(sequences.count * std::int64_t(sizeof(CallPart)));
}

template <class T, class Element>
void forward(const AttentionVarlenForwardArgs& args) {
  CallPart* parts = static_cast<CallPart*>(args.workspace);
  for (std::int64_t i = 0; i < args.sequences.count; ++i) {
    const AttentionForwardArgs sequence = sequence_args(args, args.sequences.order[i]);
    parts[i] = {sequence, plan_forward<Element>(sequence), 0};
  }
  float* workspace = static_cast<float*>(args.workspace) + parts_floats(args.sequences);
  run_parts<T, Element>(parts, args.sequences.count, workspace);
}

template <class Element>
std::int64_t workspace_floats(const AttentionForwardArgs& args) {
  ForwardLayout layout;
  layout.add(plan_forward<Element>(args));
  return layout.total_floats();
}

template <class Element>
std::int64_t workspace_floats(const AttentionVarlenForwardArgs& args) {
  ForwardLayout layout;
  for (std::int64_t s = 0; s < args.sequences.count; ++s) layout.add(plan_forward<Element>(sequence_args(args, s)));
  return parts_floats(args.sequences) + layout.total_floats();
}

// The queries that a panel may have.
std::int64_t panel_rows(const AttentionForwardArgs& args) {
  const AttentionShape shape = attention_shape(args.inputs);
  return shape.shares_panels ? shape.group * shape.q_len : shape.q_len;
}
std::int64_t panel_rows(const AttentionVarlenForwardArgs& args) {
  std::int64_t most = 0;
  for (std::int64_t s = 0; s < args.sequences.count; ++s) {
    const std::int64_t rows = panel_rows(sequence_args(args, s));
    if (rows > most) most = rows;
  }
  return most;
}

// A call's tensors are of T and multiplied as Element.
template <class T, class Element>
struct Types {};

// body(Types<T, Element>()) for a call. Panels with few queries are computed in fp32 whatever the CPU target: reading
// the keys takes longer than multiplying them, and a block's values need not be transposed.
template <class T, class Body>
auto with_element(std::int64_t rows, const Body& body) {
  return few_queries(rows) ? body(Types<T, float>()) : body(Types<T, typename Multiply<T>::Element>());
}

template <class Body>
auto with_types(const AttentionInputs& inputs, std::int64_t rows, const Body& body) {
  switch (inputs.query.dtype) {
    case DType::bfloat16:
      return with_element<bfloat16>(rows, body);
    case DType::float16:
      return with_element<float16>(rows, body);
    default:
      return with_element<float>(rows, body);
  }
}

const AttentionInputs& inputs_of(const AttentionForwardArgs& args) { return args.inputs; }
const AttentionInputs& inputs_of(const AttentionVarlenForwardArgs& args) { return args.packed.inputs; }

template <class Args>
std::int64_t workspace_bytes(const Args& args) {
  return with_types(inputs_of(args), panel_rows(args), [&]<class T, class Element>(Types<T, Element>) {
    return workspace_floats<Element>(args) * std::int64_t(sizeof(float));
  });
}

template <class Args>
void run_forward(const Args& args) {
  with_types(inputs_of(args), panel_rows(args),
             [&]<class T, class Element>(Types<T, Element>) { forward<T, Element>(args); });
}

}  // namespace

std::int64_t attention_forward_workspace(const AttentionForwardArgs& args) { return workspace_bytes(args); }
void attention_forward(const AttentionForwardArgs& args) { run_forward(args); }

std::int64_t attention_varlen_forward_workspace(const AttentionVarlenForwardArgs& args) {
  return workspace_bytes(args);
}
void attention_varlen_forward(const AttentionVarlenForwardArgs& args) { run_forward(args); }

}  // namespace bigmodel::cpu::BIGMODEL_TARGET
