// Attention weights from query, key and the log-sum-exp of a forward pass: exp(scores - lse), tile by tile, so that the
// mean over the heads needs no more memory than itself.
#include "bigmodel/parallel.h"
#include "cpu/attention_tile.h"
#include "cpu/jobs.h"
#include "cpu/kernels.h"
#include "cpu/matrix.h"

namespace bigmodel::cpu::BIGMODEL_TARGET {
namespace {

// A job: some panels of queries of one head, or of all heads that are averaged, against all keys. Their queries are
// packed once where the second-level cache holds them all.
struct WeightsPlan {
  AttentionShape shape;  // of query heads alone: panels belong to one head
  std::int64_t group;    // query heads per kv head
  std::int64_t job_heads, block_panels, blocks;
  std::int64_t key_block, key_floats, query_floats, tile_floats, scratch_floats;
  int workers;

  bool keeps_queries;

  std::int64_t jobs() const { return shape.batch * (shape.heads / job_heads) * blocks; }
  std::int64_t queries_floats() const { return (keeps_queries ? block_panels * job_heads : 1) * query_floats; }
};

template <class Element>
WeightsPlan plan_weights(const AttentionWeightsForwardArgs& args) {
  constexpr std::int64_t most_panels = 4,
                         most_query_floats = 8192 * lanes;  // half of L2: 512 KiB, or 1 MiB with AVX-512
  constexpr double worth_threads = 1 << 19;
  const AttentionInputs& inputs = args.inputs;
  WeightsPlan plan;
  plan.group = attention_shape(inputs).group;
  plan.shape = ungrouped(attention_shape(inputs));
  const AttentionShape& shape = plan.shape;
  plan.job_heads = args.average_heads && shape.heads > 0 ? shape.heads : 1;
  plan.query_floats = rhs_rows<Element>(shape.head_dim) * tile_columns;
  plan.block_panels = shape.panels < most_panels ? shape.panels : most_panels;
  plan.keeps_queries = plan.block_panels * plan.job_heads * plan.query_floats <= most_query_floats;
  plan.blocks = plan.block_panels > 0 ? ceil_div(shape.panels, plan.block_panels) : 0;
  plan.key_block = key_block_of<Element>(shape.head_dim, shape.head_dim);
  plan.key_floats = rows_floats<Element>(inputs.key, plan.key_block, plan.block_panels);
  plan.tile_floats = tile_scratch_floats(shape.head_dim, plan.key_block);
  plan.scratch_floats =
      plan.key_floats + plan.queries_floats() + (3 + plan.block_panels) * plan.tile_floats + worker_gap;
  const double work = double(shape.batch * shape.heads) * double(shape.q_len * shape.kv_len) * double(shape.head_dim);
  plan.workers = work < worth_threads ? 1 : max_workers();
  return plan;
}

struct Weights {
  const AttentionWeightsForwardArgs& args;
  const WeightsPlan& plan;
  ScoreTask scores;
};

template <class Element>
struct WeightsScratch {
  TileScratch tile;
  float* weights;          // a tile per panel: the sum over the heads
  LaneOf<Element>* query;  // of every panel and head, or of one
  Element* key;
};

template <class Element>
WeightsScratch<Element> carve_scratch(const WeightsPlan& plan, void* workspace, int worker) {
  float* memory = static_cast<float*>(workspace) + worker * plan.scratch_floats;
  const auto take = [&memory](std::int64_t floats) {
    float* const taken = memory;
    memory += floats;
    return taken;
  };
  WeightsScratch<Element> scratch;
  scratch.tile = {take(plan.tile_floats), take(plan.tile_floats), take(plan.tile_floats)};
  scratch.weights = take(plan.block_panels * plan.tile_floats);
  scratch.query = reinterpret_cast<LaneOf<Element>*>(take(plan.queries_floats()));
  scratch.key = reinterpret_cast<Element*>(take(plan.key_floats));
  return scratch;
}

// body(at, weight) with the position of every vector of a tile and exp(score - lse). Rows whose lse is -infinity have
// no weights.
template <class Body>
BIGMODEL_INLINE void for_each_weight(const Weights& call, const Panel& panel, std::int64_t keys, const float* scores,
                                     Body body) {
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
      const std::int64_t at = key * tile_columns + column;
      const F32 score = load(scores + at);
      body(at,
           exp2(unit.wide ? exponent<true>(score, factor, row_maximum) : exponent<false>(score, factor, row_maximum)));
    }
  }
}

// sum += share * weights, these being left in the tile where there is dropout.
void add_share(const Weights& call, const Panel& panel, const KeyRange& keys, const TileScratch& tile, float* sum) {
  const F32 share = set1(1.0f / float(call.plan.job_heads));
  const auto add = [&](std::int64_t at, F32 weight)
                       BIGMODEL_INLINE_LAMBDA { store(sum + at, fma(share, weight, load(sum + at))); };
  const Dropout& dropout = call.args.inputs.options.dropout;
  if (dropout.p == 0) return for_each_weight(call, panel, keys.count(), tile.scores, add);
  for_each_weight(call, panel, keys.count(), tile.scores,
                  [&](std::int64_t at, F32 weight) BIGMODEL_INLINE_LAMBDA { store(tile.scores + at, weight); });
  drop(dropout, panel, keys, tile);
  for (std::int64_t key = 0; key < keys.count(); ++key) {
    for (std::int64_t column = 0; column < panel.queries; column += lanes) {
      add(key * tile_columns + column, load(tile.scores + key * tile_columns + column));
    }
  }
}

// Adds one head's share of the weights of one panel with one block of keys to `sum`.
template <class T, class Element>
void add_head(const Weights& call, const Panel& panel, const LaneOf<Element>* query, Rows<Element> key,
              const KeyRange& block, const TileScratch& tile, float* sum) {
  KeyRange keys = {panel.first_key > block.first ? panel.first_key : block.first,
                   panel.end_key < block.end ? panel.end_key : block.end};
  if (keys.count() <= 0) return;
  key.data += (keys.first - block.first) * key.stride;
  panel_scores<T>(call.scores, panel, query, key, keys, tile);
  if (keys.count() > 0) add_share(call, panel, keys, tile, sum + (keys.first - block.first) * tile_columns);
}

template <class T, class Element>
void run_job(const Weights& call, std::int64_t job, int worker) {
  const WeightsPlan& plan = call.plan;
  const AttentionShape& shape = plan.shape;
  const AttentionInputs& inputs = call.args.inputs;
  const WeightsScratch<Element> scratch = carve_scratch<Element>(plan, call.args.workspace, worker);
  const TensorView& weights = call.args.weights;
  const std::int64_t first_panel = job % plan.blocks * plan.block_panels, rest = job / plan.blocks;
  const std::int64_t last_panel =
      first_panel + plan.block_panels < shape.panels ? first_panel + plan.block_panels : shape.panels;
  const std::int64_t first_head = rest % (shape.heads / plan.job_heads) * plan.job_heads;
  const std::int64_t batch = rest / (shape.heads / plan.job_heads);
  const auto panel_of = [&](std::int64_t head, std::int64_t p) {
    Panel panel;
    make_panel(shape, call.scores.band, batch, first_head + head, first_panel + p, panel);
    return panel;
  };
  const auto query_of = [&](std::int64_t head, std::int64_t p) {
    return scratch.query + (plan.keeps_queries ? head * plan.block_panels + p : 0) * plan.query_floats;
  };
  const auto pack = [&](std::int64_t head, std::int64_t p, const Panel& panel) {
    pack_query<T>(inputs, panel, scratch.tile, query_of(head, p));
  };
  const std::int64_t panels = last_panel - first_panel;
  T* matrix =
      static_cast<T*>(weights.data) + batch * weights.stride[0] + first_head / plan.job_heads * weights.stride[1];

  for (std::int64_t head = 0; head < (plan.keeps_queries ? plan.job_heads : 0); ++head) {
    for (std::int64_t p = 0; p < panels; ++p) pack(head, p, panel_of(head, p));
  }
  for (std::int64_t first = 0; first < shape.kv_len; first += plan.key_block) {
    const std::int64_t end = first + plan.key_block;
    const KeyRange block = {first, end < shape.kv_len ? end : shape.kv_len};
    for (std::int64_t i = 0; i < plan.block_panels * plan.tile_floats; i += lanes) store(scratch.weights + i, zero());
    for (std::int64_t head = 0; head < plan.job_heads; ++head) {
      const Rows<Element> key =
          rows_of<T>(inputs.key, batch, (first_head + head) / plan.group, block, plan.block_panels, scratch.key);
      for (std::int64_t p = 0; p < panels; ++p) {
        const Panel panel = panel_of(head, p);
        if (!plan.keeps_queries) pack(head, p, panel);
        add_head<T>(call, panel, query_of(head, p), key, block, scratch.tile, scratch.weights + p * plan.tile_floats);
      }
    }
    for (std::int64_t p = 0; p < panels; ++p) {
      const std::int64_t query = (first_panel + p) * tile_columns, left = shape.q_len - query;
      copy_out_transposed(block.count(), left < tile_columns ? left : tile_columns,
                          scratch.weights + p * plan.tile_floats, tile_columns,
                          matrix + query * weights.stride[2] + first, weights.stride[2]);
    }
  }
}

template <class T>
void weights_forward(const AttentionWeightsForwardArgs& args) {
  const WeightsPlan plan = plan_weights<ElementOf<T>>(args);
  const Weights call = {args, plan, score_task(args.inputs)};
  for_each_job(plan.workers, plan.jobs(),
               [&](std::int64_t job, int worker) { run_job<T, ElementOf<T>>(call, job, worker); });
}

}  // namespace

std::int64_t attention_weights_forward_workspace(const AttentionWeightsForwardArgs& args) {
  std::int64_t floats = 0;
  with_type_of(args.inputs.query.dtype, [&]<class T>(T) {
    const WeightsPlan plan = plan_weights<ElementOf<T>>(args);
    floats = plan.workers * plan.scratch_floats;
  });
  return floats * std::int64_t(sizeof(float));
}

void attention_weights_forward(const AttentionWeightsForwardArgs& args) {
  with_type_of(args.inputs.query.dtype, [&]<class T>(T) { weights_forward<T>(args); });
}

}  // namespace bigmodel::cpu::BIGMODEL_TARGET
