// Gradients of attention, tile by tile from recomputed weights: with P = exp(s - lse),
//   dV = P^T dO,  dP = dO V^T,  dS = P (dP - delta),  delta = rowsum(dO O) - dlse,  dQ = scale dS K,  dK = scale dS^T
//   Q.
#include "cpu/attention_gradient.h"

#include "cpu/attention_sequences.h"
#include "cpu/gradient_of_mask.h"
#include "cpu/gradient_of_queries.h"
#include "cpu/gradient_rows.h"
#include "cpu/jobs.h"
#include "cpu/matrix.h"

namespace bigmodel::cpu::BIGMODEL_TARGET {

namespace {

// A chunk of keys while queries pass by.
template <class T>
struct OpenChunk {
  Chunk chunk;
  KeysOf<T> keys;
  std::uint32_t started;  // bit i: dK and dV of block i of its keys hold a sum, and not whatever was in memory
};

// The weights of a tile, or their gradients, as the lhs of a product.
template <class T>
const ElementOf<T>* as_lhs(const TileShape& tile, const float* scores, float* memory) {
  if constexpr (is_float<ElementOf<T>>) {
    return scores;
  } else {
    auto* const rows = reinterpret_cast<ElementOf<T>*>(memory);
    round_rows(tile, scores, rows);
    return rows;
  }
}

// What one tile gives to dQ: rows in fp32, columns in bfloat16.
template <class T>
void add_to_queries(const Gradient<T>& g, const GradientScratch& scratch, const TileShape& tile, const KeysOf<T>& keys,
                    bool add) {
  const std::int64_t width = g.plan.head_dim;
  if constexpr (is_float<ElementOf<T>>) {
    multiply_to_queries(tile, width, scratch.grad_scores, keys.key_for_query, scratch.grad_query, g.plan.key_stride,
                        add);
  } else {
    auto* const pairs = reinterpret_cast<LaneOf<ElementOf<T>>*>(scratch.rounded);
    round_pairs(tile, scratch.grad_scores, pairs);
    multiply_to_queries(tile, width, pairs, keys.key_for_query, scratch.grad_query_columns, add);
  }
}

// Adds what one block of queries gives to dK and dV of a chunk; leaves its part of dQ in the scratch memory.
template <class T>
void block_gradients(const Gradient<T>& g, const GradientScratch& scratch, std::int64_t b, std::int64_t h,
                     std::int64_t first, std::int64_t queries, OpenChunk<T>& open) {
  const GradientPlan& plan = g.plan;
  const AttentionGradientArgs& args = g.args;
  const QueriesOf<T> operands = load_queries(g, scratch, b, h, first, queries);
  bool started = false;
  for (std::int64_t key = 0; key < open.chunk.keys; key += key_block) {
    const TileShape tile =
        tile_shape(g.band, first, queries, open.chunk.first + key, at_most(key_block, open.chunk.keys - key));
    const KeysOf<T> keys = open.keys.from(key);
    if (tile.empty || !tile_gradients(g, scratch, tile, keys, operands, b, h)) continue;
    const std::uint32_t bit = std::uint32_t(1) << (key / key_block);
    const bool add = open.started & bit;
    if (args.grad_value.data) {
      multiply_to_keys<ElementOf<T>>(tile, plan.value_dim, as_lhs<T>(tile, scratch.weights, scratch.rounded),
                                     operands.grad_output, scratch.grad_value + key * plan.value_stride,
                                     plan.value_stride, add);
    }
    if (args.grad_input_lse.data) add_keys(tile, scratch.grad_scores, scratch.grad_rows);
    if (args.inputs.options.softcap > 0) {
      for_each_seen(tile, [&](std::int64_t at) {
        store(scratch.grad_scores + at, load(scratch.grad_scores + at) * load(scratch.slopes + at));
      });
    }
    if (args.grad_key.data) {
      multiply_to_keys<ElementOf<T>>(tile, plan.head_dim, as_lhs<T>(tile, scratch.grad_scores, scratch.rounded),
                                     operands.query, scratch.grad_key + key * plan.key_stride, plan.key_stride, add);
    }
    if (args.grad_query.data) add_to_queries(g, scratch, tile, keys, started);
    started = true, open.started |= bit;
  }
  if (!started) {
    clear(scratch.grad_query, query_block * plan.key_stride);
  } else if (args.grad_query.data && !is_float<ElementOf<T>>) {
    copy_in(queries, plan.head_dim, scratch.grad_query_columns, 1, query_block, scratch.grad_query, plan.key_stride);
  }
}

template <class T>
void store_key_gradients(const Gradient<T>& g, const GradientScratch& scratch, std::int64_t b, std::int64_t kv_head,
                         const OpenChunk<T>& open) {
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
  OpenChunk<T> open{chunk, load_chunk(g, scratch, b, kv_head, chunk), 0};
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

// The gradients of query, key and value of one call.
template <class T>
struct GradientPass {
  const Gradient<T>& g;
  const GradientScratchSizes& sizes;
  float* scratch_memory;
  int workers;

  GradientScratch scratch(int worker) const { return carve_scratch(sizes, scratch_memory + worker * sizes.floats()); }

  // body(b, h, first, queries, worker) for every block of queries of every head.
  template <class Body>
  void for_each_query_block(Body body) const {
    const GradientPlan& plan = g.plan;
    const std::int64_t blocks = ceil_div(plan.q_len, query_block);
    for_each_job(workers, plan.batch * plan.heads * blocks, [&](std::int64_t job, int worker) {
      const std::int64_t first = job % blocks * query_block, head = job / blocks;
      body(head / plan.heads, head % plan.heads, first, at_most(query_block, plan.q_len - first), worker);
    });
  }

  void prepare(std::int64_t b, std::int64_t h, std::int64_t first, std::int64_t queries, int worker) const {
    gather_rows<T>(g.args.inputs.query, g.query, b, h, first, queries);
    gather_rows<T>(g.args.grad_output, g.grad_output, b, h, first, queries);
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
    for (std::int64_t h = first_head; h < end_head; ++h) store_sums(g, b, h, 0, plan.q_len);
  }

  void run_split() const {
    const GradientPlan& plan = g.plan;
    const std::int64_t heads = plan.batch * plan.kv_heads;
    for_each_query_block([&](std::int64_t b, std::int64_t h, std::int64_t first, std::int64_t queries, int worker) {
      prepare(b, h, first, queries, worker);
    });
    for (std::int64_t first_chunk = 0; first_chunk < plan.chunks; first_chunk += plan.slots) {
      const std::int64_t count = at_most(plan.slots, plan.chunks - first_chunk);
      for_each_job(workers, heads * count, [&](std::int64_t job, int worker) {
        const std::int64_t slot = job / heads, b = job % heads / plan.kv_heads, kv_head = job % plan.kv_heads;
        chunk_gradients(g, scratch(worker), b, kv_head, first_chunk + slot, slot);
      });
      for_each_query_block([&](std::int64_t b, std::int64_t h, std::int64_t first, std::int64_t queries, int) {
        add_slots(g, b, h, first, queries, first_chunk);
        if (first_chunk + count == plan.chunks) store_sums(g, b, h, first, queries);
      });
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

// Where the rows of a view are gathered.
TensorView gathered(const GradientPlan& plan, TensorView view, float* memory) {
  view.data = memory;
  view.stride[3] = 1, view.stride[2] = view.size[3];
  view.stride[1] = plan.row_stride * view.stride[2];
  view.stride[0] = plan.heads * view.stride[1];
  return view;
}

// One of the calls that are computed together, and the number of chains up to its last.
struct GradientPart {
  AttentionGradientArgs args;
  GradientPlan plan;
  std::int64_t end_chain;

  bool splits() const { return plan.schedule == Schedule::split; }
  std::int64_t chains() const { return splits() ? 0 : plan.batch * plan.kv_heads; }
};

// Calls that are computed together: a dense batch is one, packed sequences are one each. order: the places of the parts
// as their work starts; absent for one.
template <class T>
struct GradientRun {
  GradientPart* parts;
  std::int64_t count;
  const std::int64_t* order;
  GradientLayout layout;
  float* workspace;

  GradientPart& in_order(std::int64_t i) const { return parts[order ? order[i] : i]; }

  Gradient<T> gradient(const GradientPart& part) const {
    const AttentionGradientArgs& args = part.args;
    const GradientPlan& plan = part.plan;
    float* const own = workspace + plan.own;
    return {
        .args = args,
        .plan = plan,
        .band = band_of(args.inputs.options, plan.q_len, plan.kv_len),
        .query = plan.gathers_query ? gathered(plan, args.inputs.query, own + plan.query_rows) : args.inputs.query,
        .grad_output =
            plan.gathers_grad_output ? gathered(plan, args.grad_output, own + plan.grad_output_rows) : args.grad_output,
        .memory = own,
        .slots = workspace + layout.slots(),
        .wants_scores = args.grad_query.data || args.grad_key.data || args.grad_input_lse.data || args.grad_mask.data};
  }
  GradientPass<T> pass(const Gradient<T>& g) const { return {g, layout.scratch(), workspace, layout.workers()}; }

  void place() {
    std::int64_t chains = 0;
    for (std::int64_t i = 0; i < count; ++i) layout.add(parts[i].plan);
    for (std::int64_t i = 0; i < count; ++i) layout.place(parts[i].plan);
    for (std::int64_t i = 0; i < count; ++i) in_order(i).end_chain = chains += in_order(i).chains();
  }

  // The part, in order, that a chain belongs to.
  const GradientPart& part_of(std::int64_t chain) const {
    std::int64_t first = 0, last = count - 1;
    while (first < last) {
      const std::int64_t middle = (first + last) / 2;
      if (in_order(middle).end_chain <= chain) {
        first = middle + 1;
      } else {
        last = middle;
      }
    }
    return in_order(first);
  }

  void run_queries_and_keys() const {
    for (std::int64_t i = 0; i < count; ++i) {
      if (in_order(i).splits()) pass(gradient(in_order(i))).run_split();
    }
    for_each_job(layout.workers(), in_order(count - 1).end_chain, [&](std::int64_t job, int worker) {
      const GradientPart& part = part_of(job);
      const std::int64_t chain = job - (part.end_chain - part.chains()), kv_heads = part.plan.kv_heads;
      pass(gradient(part)).run_chain(chain / kv_heads, chain % kv_heads, worker);
    });
  }

  void run_mask(const TensorView& grad_mask) const {
    const MaskTiles tiles = mask_tiles(grad_mask);
    const std::int64_t batch = count == 1 ? parts->plan.batch : count;
    const auto part = [&](std::int64_t i) { return gradient(parts[i]); };
    for_each_job(layout.workers(), tiles.count, [&](std::int64_t job, int worker) {
      const GradientScratch scratch = carve_scratch(layout.scratch(), workspace + worker * layout.scratch().floats());
      mask_tile_gradient<T>(part, count, batch, scratch, grad_mask, tiles, job);
    });
  }

  void run_sinks(const TensorView& sinks, const TensorView& grad_sinks) const {
    for_each_job(layout.workers(), parts->plan.heads, [&](std::int64_t h, int) {
      F32 sum = zero();
      const float sink = *pointer<float>(sinks, h, 0, 0);
      for (std::int64_t i = 0; i < count; ++i) sum = sink_gradient(gradient(parts[i]), sink, h, sum);
      *pointer<float>(grad_sinks, h, 0, 0) = reduce_add(sum);
    });
  }

  void run() {
    place();
    run_queries_and_keys();
    const AttentionGradientArgs& args = parts->args;
    if (args.grad_mask.data) run_mask(args.grad_mask);
    if (args.grad_sinks.data) run_sinks(args.inputs.sinks, args.grad_sinks);
  }
};

void run(GradientPart* parts, std::int64_t count, const std::int64_t* order, double total_work, void* workspace) {
  with_type_of(parts->args.inputs.query.dtype, [&]<class T>(T) {
    GradientRun<T>{parts, count, order, GradientLayout(total_work), static_cast<float*>(workspace)}.run();
  });
}

double total_work(const AttentionVarlenBackwardArgs& args) {
  double work = 0;
  for (std::int64_t s = 0; s < args.sequences.count; ++s) work += gradient_work(gradient_args(sequence_args(args, s)));
  return work;
}

// Where packed sequences keep their parts in the workspace, in bytes.
std::int64_t parts_bytes(const PackedSequences& sequences) {
  return round_up(sequences.count * std::int64_t(sizeof(GradientPart)), 64);
}

}  // namespace

std::int64_t attention_gradient_workspace(const AttentionGradientArgs& args) {
  const double work = gradient_work(args);
  GradientLayout layout(work);
  layout.add(plan_gradient(args, work));
  return layout.total() * std::int64_t(sizeof(float));
}

void attention_gradient(const AttentionGradientArgs& args) {
  const double work = gradient_work(args);
  GradientPart part{args, plan_gradient(args, work), 0};
  run(&part, 1, nullptr, work, args.workspace);
}

std::int64_t attention_varlen_backward_workspace(const AttentionVarlenBackwardArgs& args) {
  const double work = total_work(args);
  GradientLayout layout(work);
  for (std::int64_t s = 0; s < args.sequences.count; ++s) {
    layout.add(plan_gradient(gradient_args(sequence_args(args, s)), work));
  }
  return parts_bytes(args.sequences) + layout.total() * std::int64_t(sizeof(float));
}

void attention_varlen_backward(const AttentionVarlenBackwardArgs& args) {
  const double work = total_work(args);
  GradientPart* parts = static_cast<GradientPart*>(args.workspace);
  for (std::int64_t s = 0; s < args.sequences.count; ++s) {
    const AttentionGradientArgs sequence = gradient_args(sequence_args(args, s));
    parts[s] = {sequence, plan_gradient(sequence, work), 0};
  }
  char* workspace = static_cast<char*>(args.workspace) + parts_bytes(args.sequences);
  run(parts, args.sequences.count, args.sequences.order, work, workspace);
}

}  // namespace bigmodel::cpu::BIGMODEL_TARGET
