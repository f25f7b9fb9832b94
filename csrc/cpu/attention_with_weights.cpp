// Attention and its weights in one pass over the keys, so that query and key are multiplied once, where attention and
// then attention_weights do it twice. A panel's weights are kept as they were when its output took them in, each block
// of keys with the maximum that it was measured by; the softmax's end tells what they have to be multiplied by. They
// and their mean over the heads should fit in the second-level cache together; memory holds no more than these per
// worker, and keys and values where they have to be packed: once, since many panels meet them.
#include "bigmodel/parallel.h"
#include "cpu/attention_output.h"
#include "cpu/attention_values.h"
#include "cpu/jobs.h"
#include "cpu/kernels.h"
#include "cpu/matrix.h"

namespace bigmodel::cpu::BIGMODEL_TARGET {
namespace {

constexpr std::int64_t max_block_panels = 4;

// What a panel saw of a block of keys, and by which maxima its weights are measured.
struct Seen {
  KeyRange keys;
  float maximum[tile_columns];
};

// A job: some panels of queries of one head, or of all heads that are averaged, against all keys.
struct Plan {
  AttentionShape shape;  // of query heads alone: panels belong to one head
  std::int64_t group;    // query heads per kv head
  std::int64_t value_dim, job_heads, block_panels, blocks;
  std::int64_t key_block, key_blocks;
  std::int64_t key_floats, value_floats;  // of a block of keys, packed; 0 where it is read in place
  std::int64_t query_floats, tile_floats, output_floats;
  std::int64_t block_floats, weights_floats, sum_floats;  // weights of a block, of all keys, and their sum over heads
  std::int64_t scratch_floats;
  int workers;

  std::int64_t head_blocks() const { return shape.heads / job_heads; }
  std::int64_t jobs() const { return shape.batch * head_blocks() * blocks; }
  std::int64_t readers() const { return group * shape.panels; }                            // panels that read a kv head
  std::int64_t parts() const { return shape.batch * (shape.heads / group) * key_blocks; }  // blocks of keys in all
  // Of a panel: its weights, their sum over the heads, its queries, its output.
  std::int64_t panel_floats() const { return weights_floats + sum_floats + query_floats + output_floats; }
};

void plan_blocks(Plan& plan) {
  constexpr std::int64_t enough_jobs = 32;
  constexpr std::int64_t cache_floats = 8192 * lanes;  // half of L2: 512 KiB, or 1 MiB with AVX-512
  std::int64_t panels = plan.shape.batch * plan.head_blocks() * plan.shape.panels / enough_jobs;
  if (panels > cache_floats / plan.panel_floats()) panels = cache_floats / plan.panel_floats();
  if (panels > max_block_panels) panels = max_block_panels;
  if (panels < 1) panels = 1;
  plan.blocks = ceil_div(plan.shape.panels, panels);
  plan.block_panels = plan.blocks > 0 ? ceil_div(plan.shape.panels, plan.blocks) : 1;
}

template <class Element>
Plan plan_attention(const AttentionWithWeightsArgs& args) {
  constexpr double worth_threads = 1 << 18;
  const AttentionInputs& inputs = args.inputs;
  Plan plan;
  plan.group = attention_shape(inputs).group;
  plan.shape = ungrouped(attention_shape(inputs));
  const AttentionShape& shape = plan.shape;
  plan.value_dim = inputs.value.size[3];
  plan.job_heads = args.average_heads && shape.heads > 0 ? shape.heads : 1;
  plan.key_block = key_block_of<Element>(shape.head_dim, plan.value_dim);
  plan.key_blocks = ceil_div(shape.kv_len, plan.key_block);
  plan.key_floats = rows_floats<Element>(inputs.key, plan.key_block, plan.readers());
  plan.value_floats = values_floats<Element>(inputs.value, plan.key_block, plan.readers());
  plan.query_floats = rhs_rows<Element>(shape.head_dim) * tile_columns;
  plan.tile_floats = tile_scratch_floats(shape.head_dim, plan.key_block);
  plan.block_floats = rhs_rows<Element>(plan.key_block) * tile_columns;
  plan.weights_floats = plan.key_blocks * plan.block_floats + plan.tile_floats;  // a tile has room for a mask
  plan.sum_floats = (shape.kv_len + 1) * tile_columns;                           // and the second of the last pair
  plan.output_floats = plan.value_dim * tile_columns + cache_line_floats;
  plan_blocks(plan);
  plan.scratch_floats = 3 * plan.tile_floats + plan.block_panels * plan.panel_floats() +
                        floats_of<Seen>(plan.block_panels * plan.key_blocks) + worker_gap;
  const double work =
      double(shape.batch * shape.heads) * double(shape.q_len * shape.kv_len) * double(shape.head_dim + plan.value_dim);
  plan.workers = work < worth_threads ? 1 : max_workers();
  return plan;
}

KeyRange block_of(const Plan& plan, std::int64_t index) {
  const std::int64_t first = index * plan.key_block, end = first + plan.key_block;
  return {first, end < plan.shape.kv_len ? end : plan.shape.kv_len};
}

// A block of keys of one kv head and its values, in place or packed.
template <class Element>
struct Part {
  Rows<Element> key;
  Values<Element> value;
};

template <class Element>
struct Attention {
  const AttentionWithWeightsArgs& args;
  const Plan& plan;
  ScoreTask scores;
  Part<Element>* parts;  // [batch, kv_heads, key_blocks]
};

template <class Element>
struct Scratch {
  TileScratch tile;
  float* panels;
  Seen* seen;
};

template <class Element>
Scratch<Element> carve_scratch(const Plan& plan, void* workspace, int worker) {
  float* memory = static_cast<float*>(workspace) + worker * plan.scratch_floats;
  const auto take = [&memory](std::int64_t floats) {
    float* const taken = memory;
    memory += whole_lines(floats);
    return taken;
  };
  Scratch<Element> scratch;
  scratch.tile = {take(plan.tile_floats), take(plan.tile_floats), take(plan.tile_floats)};
  scratch.panels = take(plan.block_panels * plan.panel_floats());
  scratch.seen = reinterpret_cast<Seen*>(memory);
  return scratch;
}

// One panel of the job and what it has come to.
template <class Element>
struct PanelWork {
  Panel panel;
  SoftmaxState softmax;
  float *weights, *sum, *output;  // of one head, over the heads (kv_len x lanes), of one head (value_dim x lanes)
  LaneOf<Element>* query;
  Seen* seen;  // of every block of keys
};

template <class Element>
PanelWork<Element> panel_work(const Plan& plan, const Scratch<Element>& scratch, std::int64_t p) {
  PanelWork<Element> work;
  work.weights = scratch.panels + p * plan.panel_floats();
  work.sum = work.weights + plan.weights_floats;
  work.query = reinterpret_cast<LaneOf<Element>*>(work.sum + plan.sum_floats);
  work.output = work.sum + plan.sum_floats + plan.query_floats;
  work.seen = scratch.seen + p * plan.key_blocks;
  return work;
}

// A tile that leaves its weights among the panel's: in fp32 they are made from the scores where these lie, in bfloat16
// the product of weights and values rounds them to pairs in the tile's room.
BIGMODEL_INLINE TileScratch keeping_tile(const Scratch<float>& scratch, float* weights) {
  return {weights, scratch.tile.mask, scratch.tile.room};
}
BIGMODEL_INLINE TileScratch keeping_tile(const Scratch<bfloat16>& scratch, float* weights) {
  return {scratch.tile.scores, scratch.tile.mask, weights};
}

// One panel meets block b of the keys.
template <class T, class Element>
void add_keys(const Attention<Element>& call, PanelWork<Element>& work, const Part<Element>& part, std::int64_t b,
              const Scratch<Element>& scratch, bool accumulate) {
  const Plan& plan = call.plan;
  const Panel& panel = work.panel;
  Seen& seen = work.seen[b];
  const KeyRange block = block_of(plan, b);
  KeyRange& keys = seen.keys = {panel.first_key > block.first ? panel.first_key : block.first,
                                panel.end_key < block.end ? panel.end_key : block.end};
  if (keys.count() <= 0) return;
  const TileScratch tile = keeping_tile(scratch, work.weights + b * plan.block_floats);
  const Rows<Element> key = {part.key.data + (keys.first - block.first) * part.key.stride, part.key.stride};
  panel_scores<T>(call.scores, panel, work.query, key, keys, tile);
  if (keys.count() <= 0) return;

  float rescale[tile_columns];
  if (update_softmax<weight_degree<T>>(keys.count(), panel.queries, call.scores.unit, tile.scores, work.softmax,
                                       rescale) &&
      accumulate) {
    scale_columns(plan.value_dim, panel.queries, rescale, work.output);
  }
  __builtin_memcpy(seen.maximum, work.softmax.maximum, sizeof(seen.maximum));
  const Dropout& dropout = call.args.inputs.options.dropout;
  if (dropout.p > 0) drop(dropout, panel, keys, tile);
  add_values(from_key(part.value, keys.first - block.first), keys.count(), panel.queries, plan.value_dim, tile,
             work.output, accumulate);
}

// sum [keys x lanes] += factors[lane] * weights
void add_weights(std::int64_t keys, const float* factors, const float* weights, float* sum) {
  for (std::int64_t key = 0; key < keys; ++key) {
#pragma GCC unroll 4
    for (std::int64_t column = 0; column < tile_columns; column += lanes) {
      const std::int64_t at = key * tile_columns + column;
      store(sum + at, fma(load(factors + column), load(weights + at), load(sum + at)));
    }
  }
}

#if defined(BIGMODEL_BF16_DOT)
// The same of pairs of keys. The last of an odd number has a zero beside it.
void add_weights(std::int64_t keys, const float* factors, const BFloat16Pair* weights, float* sum) {
  for (std::int64_t key = 0; key < keys; key += 2) {
#pragma GCC unroll 4
    for (std::int64_t column = 0; column < tile_columns; column += lanes) {
      const std::int64_t at = key * tile_columns + column;
      const F32 factor = load(factors + column);
      F32 weight, next_weight;
      widen(load_lanes(weights + key / 2 * tile_columns + column), weight, next_weight);
      store(sum + at, fma(factor, weight, load(sum + at)));
      store(sum + at + tile_columns, fma(factor, next_weight, load(sum + at + tile_columns)));
    }
  }
}
#endif

// What is left to do for a panel of one head: output, lse and its share of the weights.
template <class T, class Element>
void end_head(const Attention<Element>& call, PanelWork<Element>& work, bool empty) {
  const AttentionWithWeightsArgs& args = call.args;
  const Plan& plan = call.plan;
  if (empty) {
    for (std::int64_t i = 0; i < plan.value_dim * tile_columns; i += lanes) store(work.output + i, zero());
  }
  float normalizer[tile_columns] = {}, factors[tile_columns];
  end_panel<T>(args.inputs.sinks, call.scores.unit, work.panel, work.softmax, work.output, args.output, args.lse,
               normalizer);
  const F32 in_powers = set1(call.scores.unit.maxima_in_powers()), share = set1(1.0f / float(plan.job_heads));
  for (std::int64_t b = 0; b < plan.key_blocks; ++b) {
    const Seen& seen = work.seen[b];
    if (seen.keys.count() <= 0) continue;
    for (std::int64_t column = 0; column < tile_columns; column += lanes) {
      const F32 past = load(seen.maximum + column) - load(work.softmax.maximum + column);
      store(factors + column, load(normalizer + column) * share * exp2(in_powers * past));
    }
    add_weights(seen.keys.count(), factors, reinterpret_cast<LaneOf<Element>*>(work.weights + b * plan.block_floats),
                work.sum + seen.keys.first * tile_columns);
  }
}

// Packs a block of keys and its values, where they are not read in place.
template <class T, class Element>
void make_part(const Attention<Element>& call, std::int64_t index, float* packed) {
  const Plan& plan = call.plan;
  const AttentionInputs& inputs = call.args.inputs;
  const std::int64_t rest = index / plan.key_blocks, kv_heads = plan.shape.heads / plan.group;
  const std::int64_t batch = rest / kv_heads, kv_head = rest % kv_heads;
  const KeyRange block = block_of(plan, index % plan.key_blocks);
  float* const key = packed + index * (plan.key_floats + plan.value_floats);
  call.parts[index] = {rows_of<T>(inputs.key, batch, kv_head, block, plan.readers(), reinterpret_cast<Element*>(key)),
                       values_of<T>(inputs.value, batch, kv_head, block, plan.readers(),
                                    reinterpret_cast<Element*>(key + plan.key_floats))};
}

// All panels of a job meet the keys of one head.
template <class T, class Element>
void run_head(const Attention<Element>& call, std::int64_t batch, std::int64_t head, PanelWork<Element>* works,
              std::int64_t first_panel, std::int64_t panels, const Scratch<Element>& scratch) {
  const Plan& plan = call.plan;
  const Part<Element>* parts =
      call.parts + (batch * (plan.shape.heads / plan.group) + head / plan.group) * plan.key_blocks;
  for (std::int64_t p = 0; p < panels; ++p) {
    make_panel(plan.shape, call.scores.band, batch, head, first_panel + p, works[p].panel);
    pack_query<T>(call.args.inputs, works[p].panel, scratch.tile, works[p].query);
    start_softmax(works[p].softmax);
  }
  bool started[max_block_panels] = {};
  for (std::int64_t b = 0; b < plan.key_blocks; ++b) {
    for (std::int64_t p = 0; p < panels; ++p) {
      add_keys<T>(call, works[p], parts[b], b, scratch, started[p]);
      started[p] |= works[p].seen[b].keys.count() > 0;
    }
  }
  for (std::int64_t p = 0; p < panels; ++p) end_head<T>(call, works[p], !started[p]);
}

template <class T, class Element>
void run_job(const Attention<Element>& call, std::int64_t job, int worker) {
  const Plan& plan = call.plan;
  const Scratch<Element> scratch = carve_scratch<Element>(plan, call.args.workspace, worker);
  const TensorView& weights = call.args.weights;
  const std::int64_t first_panel = job % plan.blocks * plan.block_panels, rest = job / plan.blocks;
  const std::int64_t left = plan.shape.panels - first_panel;
  const std::int64_t panels = left < plan.block_panels ? left : plan.block_panels;
  const std::int64_t head_block = rest % plan.head_blocks(), batch = rest / plan.head_blocks();
  PanelWork<Element> works[max_block_panels];
  for (std::int64_t p = 0; p < panels; ++p) {
    works[p] = panel_work(plan, scratch, p);
    for (std::int64_t i = 0; i < plan.shape.kv_len * tile_columns; i += lanes) store(works[p].sum + i, zero());
  }
  for (std::int64_t head = 0; head < plan.job_heads; ++head) {
    run_head<T>(call, batch, head_block * plan.job_heads + head, works, first_panel, panels, scratch);
  }
  T* matrix = static_cast<T*>(weights.data) + batch * weights.stride[0] + head_block * weights.stride[1];
  for (std::int64_t p = 0; p < panels; ++p) {
    const std::int64_t query = (first_panel + p) * tile_columns;
    copy_out_transposed(plan.shape.kv_len, works[p].panel.queries, works[p].sum, tile_columns,
                        matrix + query * weights.stride[2], weights.stride[2]);
  }
}

template <class T, class Element>
void run_attention(const AttentionWithWeightsArgs& args) {
  const Plan plan = plan_attention<Element>(args);
  float* const parts = static_cast<float*>(args.workspace) + plan.workers * plan.scratch_floats;
  float* const packed = parts + floats_of<Part<Element>>(plan.parts());
  const Attention<Element> call = {args, plan, score_task(args.inputs), reinterpret_cast<Part<Element>*>(parts)};
  for_each_job(plan.key_floats + plan.value_floats > 0 ? plan.workers : 1, plan.parts(),
               [&](std::int64_t part, int) { make_part<T>(call, part, packed); });
  for_each_job(plan.workers, plan.jobs(),
               [&](std::int64_t job, int worker) { run_job<T, Element>(call, job, worker); });
}

template <class Element>
std::int64_t workspace_floats(const AttentionWithWeightsArgs& args) {
  const Plan plan = plan_attention<Element>(args);
  return plan.workers * plan.scratch_floats + floats_of<Part<Element>>(plan.parts()) +
         plan.parts() * (plan.key_floats + plan.value_floats);
}

}  // namespace

std::int64_t attention_with_weights_workspace(const AttentionWithWeightsArgs& args) {
  std::int64_t floats = 0;
  with_type_of(args.inputs.query.dtype, [&]<class T>(T) { floats = workspace_floats<ElementOf<T>>(args); });
  return floats * std::int64_t(sizeof(float));
}

void attention_with_weights(const AttentionWithWeightsArgs& args) {
  with_type_of(args.inputs.query.dtype, [&]<class T>(T) { run_attention<T, ElementOf<T>>(args); });
}

}  // namespace bigmodel::cpu::BIGMODEL_TARGET
