// Attention weights from query, key and the log-sum-exp of a forward pass: exp(scores - lse), tile by tile, so that the
// mean over the heads needs no more memory than itself.
#include "bigmodel/parallel.h"
#include "cpu/attention_tile.h"
#include "cpu/jobs.h"
#include "cpu/kernels.h"

namespace bigmodel::cpu::BIGMODEL_TARGET {
namespace {

// A job: some panels of queries of one head, or of all heads that are averaged, against all keys.
struct WeightsPlan {
  AttentionShape shape;  // of query heads alone: panels belong to one head
  std::int64_t group;    // query heads per kv head
  std::int64_t job_heads, block_panels, blocks;
  std::int64_t key_block, key_floats, query_floats, tile_floats, scratch_floats;
  int workers;

  std::int64_t jobs() const { return shape.batch * (shape.heads / job_heads) * blocks; }
};

WeightsPlan plan_weights(const AttentionWeightsForwardArgs& args) {
  constexpr std::int64_t most_panels = 4;
  constexpr double worth_threads = 1 << 19;
  const AttentionInputs& inputs = args.inputs;
  WeightsPlan plan;
  plan.shape = attention_shape(inputs);
  AttentionShape& shape = plan.shape;
  plan.group = shape.group;
  shape.kv_heads = shape.heads, shape.group = 1, shape.shares_panels = false;
  shape.panels = ceil_div(shape.q_len, tile_columns);
  plan.job_heads = args.average_heads && shape.heads > 0 ? shape.heads : 1;
  plan.block_panels = shape.panels < most_panels ? shape.panels : most_panels;
  plan.blocks = plan.block_panels > 0 ? ceil_div(shape.panels, plan.block_panels) : 0;
  plan.key_block = key_block_of<float>(shape.head_dim, shape.head_dim);
  plan.key_floats = rows_floats<float>(inputs.key, plan.key_block);
  plan.query_floats = whole_lines(shape.head_dim * tile_columns);
  plan.tile_floats = tile_scratch_floats(shape.head_dim, plan.key_block);
  plan.scratch_floats = plan.key_floats + plan.query_floats + (3 + plan.block_panels) * plan.tile_floats + worker_gap;
  const double work = double(shape.batch * shape.heads) * double(shape.q_len * shape.kv_len) * double(shape.head_dim);
  plan.workers = work < worth_threads ? 1 : max_workers();
  return plan;
}

struct Weights {
  const AttentionWeightsForwardArgs& args;
  const WeightsPlan& plan;
  ScoreTask scores;
};

struct WeightsScratch {
  TileScratch tile;
  float *query, *key;
  float* weights;  // a tile per panel: the sum over the heads
};

WeightsScratch carve_scratch(const WeightsPlan& plan, void* workspace, int worker) {
  float* memory = static_cast<float*>(workspace) + worker * plan.scratch_floats;
  WeightsScratch scratch;
  scratch.tile = {memory, memory + plan.tile_floats, memory + 2 * plan.tile_floats};
  scratch.query = memory + 3 * plan.tile_floats;
  scratch.key = scratch.query + plan.query_floats;
  scratch.weights = scratch.key + plan.key_floats;
  return scratch;
}

// scores -> exp(scores - lse), in place. Rows whose lse is -infinity have no weights.
void weigh(const Weights& call, const Panel& panel, std::int64_t keys, float* scores) {
  const ScoreUnit& unit = call.scores.unit;
  const TensorView& view = call.args.lse;
  float maximum[tile_columns];  // what the softmax would have used, had it known the sum before
  for (int lane = 0; lane < tile_columns; ++lane) {
    const float lse = static_cast<const float*>(view.data)[lane_offset(view, panel, lane)];
    maximum[lane] = lse == -infinity ? infinity : unit.wide ? lse : lse * log2_e;
  }
  const F32 factor = set1(unit.factor);
  for (std::int64_t column = 0; column < panel.queries; column += lanes) {
    const F32 row_maximum = load(maximum + column);
    for (std::int64_t key = 0; key < keys; ++key) {
      float* at = scores + key * tile_columns + column;
      store(at, exp2(unit.wide ? exponent<true>(load(at), factor, row_maximum)
                               : exponent<false>(load(at), factor, row_maximum)));
    }
  }
}

// sum[keys x queries] += share * weights
void add_share(std::int64_t keys, std::int64_t queries, float share, const float* weights, float* sum) {
  for (std::int64_t key = 0; key < keys; ++key) {
    for (std::int64_t column = 0; column < queries; column += lanes) {
      float* at = sum + key * tile_columns + column;
      store(at, fma(set1(share), load(weights + key * tile_columns + column), load(at)));
    }
  }
}

// Adds one head's share of the weights of one panel with one block of keys to `sum`.
template <class T>
void add_head(const Weights& call, const Panel& panel, Rows<float> key, const KeyRange& block,
              const WeightsScratch& scratch, float* sum) {
  KeyRange keys = {panel.first_key > block.first ? panel.first_key : block.first,
                   panel.end_key < block.end ? panel.end_key : block.end};
  if (keys.count() <= 0) return;
  const AttentionInputs& inputs = call.args.inputs;
  key.data += (keys.first - block.first) * key.stride;
  pack_query<T>(inputs, panel, scratch.tile, scratch.query);
  panel_scores<T>(call.scores, panel, scratch.query, key, keys, scratch.tile);
  if (keys.count() <= 0) return;
  weigh(call, panel, keys.count(), scratch.tile.scores);
  if (inputs.options.dropout.p > 0) drop(inputs.options.dropout, panel, keys, scratch.tile);
  add_share(keys.count(), panel.queries, 1.0f / float(call.plan.job_heads), scratch.tile.scores,
            sum + (keys.first - block.first) * tile_columns);
}

template <class T>
void run_job(const Weights& call, std::int64_t job, int worker) {
  const WeightsPlan& plan = call.plan;
  const AttentionShape& shape = plan.shape;
  const WeightsScratch scratch = carve_scratch(plan, call.args.workspace, worker);
  const TensorView& weights = call.args.weights;
  const std::int64_t first_panel = job % plan.blocks * plan.block_panels, rest = job / plan.blocks;
  const std::int64_t last_panel =
      first_panel + plan.block_panels < shape.panels ? first_panel + plan.block_panels : shape.panels;
  const std::int64_t first_head = rest % (shape.heads / plan.job_heads) * plan.job_heads;
  const std::int64_t batch = rest / (shape.heads / plan.job_heads);
  T* matrix =
      static_cast<T*>(weights.data) + batch * weights.stride[0] + first_head / plan.job_heads * weights.stride[1];

  for (std::int64_t first = 0; first < shape.kv_len; first += plan.key_block) {
    const std::int64_t end = first + plan.key_block;
    const KeyRange block = {first, end < shape.kv_len ? end : shape.kv_len};
    for (std::int64_t i = 0; i < plan.block_panels * plan.tile_floats; i += lanes) store(scratch.weights + i, zero());
    for (std::int64_t head = first_head; head < first_head + plan.job_heads; ++head) {
      const Rows<float> key = rows_of<T>(call.args.inputs.key, batch, head / plan.group, block, scratch.key);
      for (std::int64_t p = first_panel; p < last_panel; ++p) {
        Panel panel;
        make_panel(shape, call.scores.band, batch, head, p, panel);
        add_head<T>(call, panel, key, block, scratch, scratch.weights + (p - first_panel) * plan.tile_floats);
      }
    }
    for (std::int64_t p = first_panel; p < last_panel; ++p) {
      const std::int64_t query = p * tile_columns, left = shape.q_len - query;
      copy_out_transposed(block.count(), left < tile_columns ? left : tile_columns,
                          scratch.weights + (p - first_panel) * plan.tile_floats, tile_columns,
                          matrix + query * weights.stride[2] + first, weights.stride[2]);
    }
  }
}

template <class T>
void weights_forward(const AttentionWeightsForwardArgs& args) {
  const WeightsPlan plan = plan_weights(args);
  const Weights call = {args, plan, score_task(args.inputs)};
  for_each_job(plan.workers, plan.jobs(), [&](std::int64_t job, int worker) { run_job<T>(call, job, worker); });
}

}  // namespace

std::int64_t attention_weights_forward_workspace(const AttentionWeightsForwardArgs& args) {
  const WeightsPlan plan = plan_weights(args);
  return plan.workers * plan.scratch_floats * std::int64_t(sizeof(float));
}

void attention_weights_forward(const AttentionWeightsForwardArgs& args) {
  switch (args.inputs.query.dtype) {
    case DType::bfloat16:
      return weights_forward<bfloat16>(args);
    case DType::float16:
      return weights_forward<float16>(args);
    default:
      return weights_forward<float>(args);
  }
}

}  // namespace bigmodel::cpu::BIGMODEL_TARGET
