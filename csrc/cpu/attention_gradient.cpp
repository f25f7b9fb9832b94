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

// A chunk of keys while queries pass by.
struct OpenChunk {
  Chunk chunk;
  KeyRows rows;
  std::uint32_t started;  // bit i: dK and dV of block i of its keys hold a sum, and not whatever was in memory
};

// Adds what one block of queries gives to dK and dV of a chunk; leaves its part of dQ in the scratch memory.
template <class T>
void block_gradients(const Gradient<T>& g, const GradientScratch& scratch, std::int64_t b, std::int64_t h,
                     std::int64_t first, std::int64_t queries, OpenChunk& open) {
  const GradientPlan& plan = g.plan;
  const AttentionGradientArgs& args = g.args;
  const QueryRows rows = load_queries(g, scratch, b, h, first, queries);
  bool started = false;
  for (std::int64_t key = 0; key < open.chunk.keys; key += key_block) {
    const TileShape tile =
        tile_shape(g.band, first, queries, open.chunk.first + key, at_most(key_block, open.chunk.keys - key));
    const std::int64_t key_at = key * plan.key_stride, value_at = key * plan.value_stride;
    const float *key_rows = open.rows.key + key_at, *value_rows = open.rows.value + value_at;
    if (tile.empty || !tile_gradients(g, scratch, tile, key_rows, value_rows, b, h)) continue;
    const std::uint32_t bit = std::uint32_t(1) << (key / key_block);
    const bool add = open.started & bit;
    if (args.grad_value.data) {
      multiply_to_keys(tile, plan.value_dim, scratch.weights, rows.grad_output, scratch.grad_value + value_at,
                       plan.value_stride, add);
    }
    if (args.grad_input_lse.data) add_keys(tile, scratch.grad_scores, scratch.grad_rows);
    if (args.inputs.options.softcap > 0) {
      for_each_seen(tile, [&](std::int64_t at) {
        store(scratch.grad_scores + at, load(scratch.grad_scores + at) * load(scratch.slopes + at));
      });
    }
    if (args.grad_key.data) {
      multiply_to_keys(tile, plan.head_dim, scratch.grad_scores, rows.query, scratch.grad_key + key_at, plan.key_stride,
                       add);
    }
    if (args.grad_query.data) {
      multiply_to_queries(tile, plan.head_dim, scratch.grad_scores, key_rows, scratch.grad_query, plan.key_stride,
                          started);
    }
    started = true, open.started |= bit;
  }
  if (!started) clear(scratch.grad_query, query_block * plan.key_stride);
}

template <class T>
void store_key_gradients(const Gradient<T>& g, const GradientScratch& scratch, std::int64_t b, std::int64_t kv_head,
                         const OpenChunk& open) {
  const GradientPlan& plan = g.plan;
  const AttentionGradientArgs& args = g.args;
  const auto [first, keys] = open.chunk;
  for (std::int64_t block = 0; block * key_block < keys; ++block) {
    if (open.started >> block & 1) continue;
    clear(scratch.grad_key + block * key_block * plan.key_stride, key_block * plan.key_stride);
    clear(scratch.grad_value + block * key_block * plan.value_stride, key_block * plan.value_stride);
  }
  if (args.grad_key.data) {
    store_rows<T>(args.grad_key, b, kv_head, first, keys, plan.head_dim, scratch.grad_key, plan.key_stride,
                  args.inputs.options.scale);
  }
  if (!args.grad_value.data) return;
  if (args.grad_output.data) {
    store_rows<T>(args.grad_value, b, kv_head, first, keys, plan.value_dim, scratch.grad_value, plan.value_stride,
                  1.0f);
  } else {  // only the lse is differentiated, and no value enters it
    for (std::int64_t i = first; i < first + keys; ++i) {
      __builtin_memset(pointer<T>(args.grad_value, b, kv_head, i), 0, args.grad_value.size[3] * sizeof(T));
    }
  }
}

// dK and dV of one chunk, and its part of dQ.
template <class T>
void chunk_gradients(const Gradient<T>& g, const GradientScratch& scratch, std::int64_t b, std::int64_t kv_head,
                     std::int64_t index, std::int64_t slot) {
  const GradientPlan& plan = g.plan;
  const Chunk chunk = chunk_of(plan, index);
  OpenChunk open{chunk, load_keys(g, scratch, b, kv_head, chunk.first, chunk.keys), 0};
  for (std::int64_t h = kv_head * plan.group; h < (kv_head + 1) * plan.group; ++h) {
    for (std::int64_t first = 0; first < plan.q_len; first += query_block) {
      const std::int64_t queries = at_most(query_block, plan.q_len - first);
      const bool seen = sees(g.band, first, queries, chunk);
      if (!seen && plan.schedule != Schedule::single) continue;
      clear(scratch.grad_rows, query_block);
      if (seen) {
        block_gradients(g, scratch, b, h, first, queries, open);
      } else {
        clear(scratch.grad_query, query_block * plan.key_stride);
      }
      store_query_gradient(g, scratch, b, h, first, queries, slot);
    }
  }
  store_key_gradients(g, scratch, b, kv_head, open);
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

  void prepare(std::int64_t b, std::int64_t h, std::int64_t first, std::int64_t queries, int worker) const {
    prepare_rows(g, scratch(worker), b, h, first, queries);
    if (!g.args.grad_weights.data) correct_rows(g, scratch(worker), b, h, first, queries);
    clear_sums(g, b, h, first, queries);
  }

  void run_chain(std::int64_t b, std::int64_t kv_head, int worker) const {
    const GradientPlan& plan = g.plan;
    const std::int64_t first_head = kv_head * plan.group, end_head = first_head + plan.group;
    for (std::int64_t h = first_head; h < end_head; ++h) {
      for (std::int64_t first = 0; first < plan.q_len; first += query_block) {
        prepare(b, h, first, at_most(query_block, plan.q_len - first), worker);
      }
    }
    for (std::int64_t chunk = 0; chunk < plan.chunks; ++chunk) {
      chunk_gradients(g, scratch(worker), b, kv_head, chunk, 0);
    }
    for (std::int64_t h = first_head; h < end_head; ++h) round_sums(g, b, h, 0, plan.q_len);
  }

  void run_split() const {
    const GradientPlan& plan = g.plan;
    const std::int64_t heads = plan.batch * plan.kv_heads;
    for_each_query_block([&](std::int64_t b, std::int64_t h, std::int64_t first, std::int64_t queries, int worker) {
      prepare(b, h, first, queries, worker);
    });
    for (std::int64_t first_chunk = 0; first_chunk < plan.chunks; first_chunk += plan.slots) {
      const std::int64_t count = at_most(plan.slots, plan.chunks - first_chunk);
      for_each_job(plan.workers, heads * count, [&](std::int64_t job, int worker) {
        const std::int64_t slot = job / heads, b = job % heads / plan.kv_heads, kv_head = job % plan.kv_heads;
        chunk_gradients(g, scratch(worker), b, kv_head, first_chunk + slot, slot);
      });
      for_each_query_block([&](std::int64_t b, std::int64_t h, std::int64_t first, std::int64_t queries, int) {
        add_slots(g, b, h, first, queries, first_chunk);
        if (first_chunk + count == plan.chunks) round_sums(g, b, h, first, queries);
      });
    }
  }

  void run_mask() const {
    const MaskTiles tiles = mask_tiles(g.args.grad_mask);
    for_each_job(g.plan.workers, tiles.count,
                 [&](std::int64_t job, int worker) { mask_tile_gradient(g, scratch(worker), tiles, job); });
  }

  void run() const {
    const GradientPlan& plan = g.plan;
    if (plan.schedule == Schedule::split) {
      run_split();
    } else {
      for_each_job(plan.workers, plan.batch * plan.kv_heads,
                   [&](std::int64_t job, int worker) { run_chain(job / plan.kv_heads, job % plan.kv_heads, worker); });
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
