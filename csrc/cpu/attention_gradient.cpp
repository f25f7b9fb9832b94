// Gradients of attention, tile by tile from recomputed weights: with P = exp(s - lse),
//   dV = P^T dO,  dP = dO V^T,  dS = P (dP - delta),  delta = rowsum(dO O) - dlse,  dQ = scale dS K,  dK = scale dS^T
//   Q.
#include "cpu/attention_gradient.h"

#include "cpu/gradient_of_mask.h"
#include "cpu/gradient_of_queries.h"
#include "cpu/gradient_rows.h"
#include "cpu/jobs.h"

namespace bigmodel::cpu::BIGMODEL_TARGET {

namespace {

template <class T>
void block_gradients(const Gradient<T>& g, const GradientScratch& scratch, std::int64_t b, std::int64_t h,
                     std::int64_t first, std::int64_t queries, const Chunk& chunk) {
  const GradientPlan& plan = g.plan;
  load_queries(g, scratch, b, h, first, queries);
  for (std::int64_t key = 0; key < chunk.keys; key += key_block) {
    const TileShape tile = tile_shape(g.band, first, queries, chunk.first + key, at_most(key_block, chunk.keys - key));
    if (tile.empty) continue;
    const std::int64_t key_at = key * plan.key_stride, value_at = key * plan.value_stride;
    if (!tile_gradients(g, scratch, tile, scratch.key + key_at, scratch.value + value_at, b, h)) continue;
    if (g.args.grad_value.data) {
      multiply_to_keys(tile, plan.value_dim, scratch.weights, scratch.grad_output, scratch.grad_value + value_at,
                       plan.value_stride);
    }
    if (g.args.grad_input_lse.data) add_keys(tile, scratch.grad_scores, scratch.grad_rows);
    if (g.args.inputs.options.softcap > 0) {
      for_each_seen(tile, [&](std::int64_t at) {
        store(scratch.grad_scores + at, load(scratch.grad_scores + at) * load(scratch.slopes + at));
      });
    }
    if (g.args.grad_key.data) {
      multiply_to_keys(tile, plan.head_dim, scratch.grad_scores, scratch.query, scratch.grad_key + key_at,
                       plan.key_stride);
    }
    if (g.args.grad_query.data) {
      multiply_to_queries(tile, plan.head_dim, scratch.grad_scores, scratch.key + key_at, scratch.grad_query,
                          plan.key_stride);
    }
  }
}

// dK and dV of one chunk, and its part of dQ.
template <class T>
void chunk_gradients(const Gradient<T>& g, const GradientScratch& scratch, std::int64_t b, std::int64_t kv_head,
                     std::int64_t index, std::int64_t slot) {
  const GradientPlan& plan = g.plan;
  const AttentionGradientArgs& args = g.args;
  const Chunk chunk = chunk_of(plan, index);
  load_rows<T>(args.inputs.key, b, kv_head, chunk.first, chunk.keys, plan.head_dim, scratch.key, plan.key_stride);
  clear(scratch.grad_key, chunk.keys * plan.key_stride);
  if (plan.value_dim > 0) {
    load_rows<T>(args.inputs.value, b, kv_head, chunk.first, chunk.keys, plan.value_dim, scratch.value,
                 plan.value_stride);
    clear(scratch.grad_value, chunk.keys * plan.value_stride);
  }
  for (std::int64_t h = kv_head * plan.group; h < (kv_head + 1) * plan.group; ++h) {
    for (std::int64_t first = 0; first < plan.q_len; first += query_block) {
      const std::int64_t queries = at_most(query_block, plan.q_len - first);
      const bool seen = sees(g.band, first, queries, chunk);
      if (!seen && plan.schedule != Schedule::single) continue;
      clear(scratch.grad_query, query_block * plan.key_stride);
      clear(scratch.grad_rows, query_block);
      if (seen) block_gradients(g, scratch, b, h, first, queries, chunk);
      store_query_gradient(g, scratch, b, h, first, queries, slot);
    }
  }
  if (args.grad_key.data) {
    store_rows<T>(args.grad_key, b, kv_head, chunk.first, chunk.keys, plan.head_dim, scratch.grad_key, plan.key_stride,
                  args.inputs.options.scale);
  }
  if (args.grad_value.data) {
    store_rows<T>(args.grad_value, b, kv_head, chunk.first, chunk.keys, plan.value_dim, scratch.grad_value,
                  plan.value_stride, 1.0f);
  }
}

template <class T>
struct GradientPass {
  const Gradient<T>& g;

  GradientScratch scratch(int worker) const {
    return carve_scratch(g.plan, g.memory + g.plan.scratch + worker * g.plan.scratch_size);
  }

  // body(b, h, first, queries, worker) for every block of queries of every head.
  template <class Body>
  void for_each_query_block(Body body) const {
    const GradientPlan& plan = g.plan;
    const std::int64_t blocks = ceil_div(plan.q_len, query_block);
    for_each_job(plan.workers, plan.batch * plan.heads * blocks, [&](std::int64_t job, int worker) {
      const std::int64_t first = job % blocks * query_block, head = job / blocks;
      body(head / plan.heads, head % plan.heads, first, at_most(query_block, plan.q_len - first), worker);
    });
  }

  void run_chains() const {
    const GradientPlan& plan = g.plan;
    for_each_job(plan.workers, plan.batch * plan.kv_heads, [&](std::int64_t job, int worker) {
      const std::int64_t b = job / plan.kv_heads, kv_head = job % plan.kv_heads;
      for (std::int64_t chunk = 0; chunk < plan.chunks; ++chunk) {
        chunk_gradients(g, scratch(worker), b, kv_head, chunk, 0);
      }
    });
  }

  void run_split() const {
    const GradientPlan& plan = g.plan;
    const std::int64_t heads = plan.batch * plan.kv_heads;
    for (std::int64_t first_chunk = 0; first_chunk < plan.chunks; first_chunk += plan.slots) {
      const std::int64_t count = at_most(plan.slots, plan.chunks - first_chunk);
      for_each_job(plan.workers, heads * count, [&](std::int64_t job, int worker) {
        const std::int64_t slot = job / heads, b = job % heads / plan.kv_heads, kv_head = job % plan.kv_heads;
        chunk_gradients(g, scratch(worker), b, kv_head, first_chunk + slot, slot);
      });
      for_each_query_block([&](std::int64_t b, std::int64_t h, std::int64_t first, std::int64_t queries, int) {
        add_slots(g, b, h, first, queries, first_chunk);
      });
    }
  }

  void run_mask() const {
    const MaskTiles tiles = mask_tiles(g.args.grad_mask);
    for_each_job(g.plan.workers, tiles.count,
                 [&](std::int64_t job, int worker) { mask_tile_gradient(g, scratch(worker), tiles, job); });
  }

  void run() const {
    for_each_query_block([&](std::int64_t b, std::int64_t h, std::int64_t first, std::int64_t queries, int worker) {
      prepare_rows(g, b, h, first);
      if (!g.args.grad_weights.data) correct_rows(g, scratch(worker), b, h, first, queries);
      clear_sums(g, b, h, first, queries);
    });
    if (g.plan.schedule == Schedule::split) {
      run_split();
    } else {
      run_chains();
    }
    if (g.plan.rounds && g.plan.schedule != Schedule::single) {
      for_each_query_block([&](std::int64_t b, std::int64_t h, std::int64_t first, std::int64_t queries, int) {
        round_sums(g, b, h, first, queries);
      });
    }
    if (g.args.grad_mask.data) run_mask();
    if (g.args.grad_sinks.data) {
      for_each_job(g.plan.workers, g.plan.heads, [&](std::int64_t h, int) { sink_gradient(g, h); });
    }
  }
};

Band band_of(const AttentionOptions& options, std::int64_t q_len, std::int64_t kv_len) {
  constexpr std::int64_t unbounded = std::int64_t(1) << 40;
  Band band{.offset = options.causal == Causal::top_left ? 0 : kv_len - q_len,
            .before = options.window_left < 0 ? unbounded : options.window_left,
            .after = options.window_right < 0 ? unbounded : options.window_right,
            .kv_len = kv_len};
  if (options.causal != Causal::none) band.after = 0;
  return band;
}

template <class T>
void run(const AttentionGradientArgs& args) {
  const GradientPlan plan = plan_gradient(args);
  const Gradient<T> g{
      .args = args,
      .plan = plan,
      .band = band_of(args.inputs.options, plan.q_len, plan.kv_len),
      .memory = static_cast<float*>(args.workspace),
      .wants_scores = args.grad_query.data || args.grad_key.data || args.grad_input_lse.data || args.grad_mask.data};
  GradientPass<T>{g}.run();
}

}  // namespace

std::int64_t attention_gradient_workspace(const AttentionGradientArgs& args) {
  return plan_gradient(args).total * std::int64_t(sizeof(float));
}

void attention_gradient(const AttentionGradientArgs& args) {
  switch (args.inputs.query.dtype) {
    case DType::bfloat16:
      return run<bfloat16>(args);
    case DType::float16:
      return run<float16>(args);
    default:
      return run<float>(args);
  }
}

}  // namespace bigmodel::cpu::BIGMODEL_TARGET
