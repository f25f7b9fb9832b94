// Attention of a few queries over a cache. Reading the cache takes longest, so all queries of a kv head share one pass
// over its keys and values, block by block: dots, softmax, values, while the next rows are on their way.
#include "cpu/attention_decode_plan.h"
#include "cpu/attention_decode_softmax.h"
#include "cpu/jobs.h"
#include "cpu/kernels.h"

namespace bigmodel::cpu::BIGMODEL_TARGET {
namespace {

struct Decode {
  const AttentionDecodeArgs& args;
  const DecodePlan& plan;
  DecodeMemory memory;
  DecodeRule rule;
};

// One kv head of one sequence, and one of its splits.
struct SplitPlace {
  std::int64_t b, kv_head, split;
  Sequence sequence;
  std::int64_t first, end;  // keys

  std::int64_t position(std::int64_t query, std::int64_t q_len) const { return sequence.total - q_len + query % q_len; }
};

// Jobs of a sequence follow each other, those of a kv head too.
SplitPlace place_of(const Decode& call, std::int64_t job) {
  const DecodePlan& plan = call.plan;
  std::int64_t b = 0;
  for (std::int64_t step = std::int64_t(1) << 62; step > 0; step >>= 1) {
    if (step <= plan.batch - 1 - b && call.memory.first_job[b + step] <= job) b += step;
  }
  SplitPlace place;
  place.b = b;
  place.sequence = sequence_of(call.args, plan, b);
  const Sequence& sequence = place.sequence;
  place.kv_head = (job - call.memory.first_job[b]) / sequence.splits;
  place.split = (job - call.memory.first_job[b]) % sequence.splits;
  const std::int64_t first = (sequence.first_split + place.split) * plan.split_keys, end = first + plan.split_keys;
  place.first = first > sequence.first ? first : sequence.first;
  place.end = end < sequence.total ? end : sequence.total;
  return place;
}

template <class C>
void append(const Decode& call, const SplitPlace& place, float* room) {
  const AttentionDecodeArgs& args = call.args;
  const std::int64_t length = place.sequence.length;
  if (!args.new_key.data || place.end <= length) return;
  with_type_of(args.query.dtype, [&]<class T>(T) {
    append_rows<T, C>(args, args.new_key, args.key_cache, args.key_scales, place.b, place.kv_head, length, place.first,
                      place.end, room);
    append_rows<T, C>(args, args.new_value, args.value_cache, args.value_scales, place.b, place.kv_head, length,
                      place.first, place.end, room);
  });
}

// The offset of a kv head's query in a tensor [batch, heads, q_len, ...].
std::int64_t query_offset(const DecodePlan& plan, const TensorView& view, const SplitPlace& place, std::int64_t query) {
  const std::int64_t head = place.kv_head * plan.group + query / plan.q_len;
  return place.b * view.stride[0] + head * view.stride[1] + query % plan.q_len * view.stride[2];
}

// The queries of a kv head as what is multiplied: fp32 in the order of the cache's elements, integers, or bfloat16.
template <class C>
void pack_queries(const Decode& call, const SplitPlace& place, const DecodeScratch& scratch) {
  const DecodePlan& plan = call.plan;
  const TensorView& view = call.args.query;
  for (std::int64_t query = 0; query < plan.state_floats(); ++query) scratch.unit[query] = 1.0f;
  for (std::int64_t query = 0; query < plan.queries; ++query) {
    const std::int64_t at = query * plan.query_stride;
    float* packed = scratch.query + at;
    with_type_of(view.dtype, [&]<class T>(T) {
      copy_in(1, plan.head_dim, static_cast<const T*>(view.data) + query_offset(plan, view, place, query), 0,
              view.stride[3], scratch.room, 0);
    });
    if (plan.arithmetic == Arithmetic::bf16) {
      bfloat16* const row = static_cast<bfloat16*>(scratch.narrow) + at;
      for (std::int64_t e = 0; e < plan.query_stride; e += lanes) {
        store(row + e, e < plan.head_dim ? load_up_to(scratch.room + e, plan.head_dim - e) : zero());
      }
      continue;
    }
    for (std::int64_t p = 0; p < plan.query_stride; p += lanes) store(packed + p, zero());
    for (std::int64_t e = 0; e < plan.head_dim; ++e) packed[position_of<C>(e)] = scratch.room[e];
    if (plan.arithmetic == Arithmetic::int16) {
      scratch.unit[query] = quantize_query(plan.query_stride, packed, static_cast<std::int16_t*>(scratch.narrow) + at);
    }
  }
}

// Removes the keys of a block that a tile's queries do not see.
void remove_unseen(const Decode& call, const SplitPlace& place, std::int64_t tile, std::int64_t first,
                   std::int64_t count, float* scores) {
  const std::int64_t q_len = call.plan.q_len, window = call.args.window_left;
  const std::int64_t first_position = place.sequence.total - q_len, last_position = place.sequence.total - 1;
  if (first + count - 1 <= first_position && (window < 0 || first >= last_position - window)) return;  // all are seen
  for (int q = 0; q < tile_queries; ++q) {
    const std::int64_t position = place.position(tile * tile_queries + q, q_len);
    for (std::int64_t key = 0; key < count; ++key) {
      const bool seen = first + key <= position && (window < 0 || first + key >= position - window);
      if (!seen) scores[key * tile_queries + q] = -infinity;
    }
  }
}

// The products of a tile of queries with a block.
template <int queries, class C>
void dot_block(const DecodePlan& plan, const DecodeBlock<C>& block, const DecodeScratch& scratch, std::int64_t first,
               float* scores, Prefetch<C>& prefetch) {
  const std::int64_t at = first * plan.query_stride;
  if constexpr (is_int8<C>) {
    if (plan.arithmetic == Arithmetic::int16) {
      return dot_int8_tile<queries>(block.count, plan.head_dim, static_cast<std::int16_t*>(scratch.narrow) + at,
                                    plan.query_stride, block.key, scores, prefetch);
    }
  }
  if constexpr (has_bf16_dots && is_same<C, bfloat16>) {
    if (plan.arithmetic == Arithmetic::bf16) {
      return dot_bf16_tile<queries>(block.count, plan.head_dim, static_cast<bfloat16*>(scratch.narrow) + at,
                                    plan.query_stride, block.key, scores, prefetch);
    }
  }
  dot_tile<queries>(block.count, plan.head_dim, scratch.query + at, plan.query_stride, block.key, scores, prefetch);
}

template <int queries, class C>
void add_values(const DecodePlan& plan, const DecodeBlock<C>& block, float* weights, const float* keep, float* output,
                Prefetch<C>& prefetch) {
  if constexpr (is_int8<C>) {
    if (plan.arithmetic == Arithmetic::int16) {
      return add_int8_tile<queries>(block.count, plan.value_dim, weights, block.value, keep, output, plan.value_stride,
                                    prefetch);
    }
  }
  if constexpr (has_bf16_dots && is_same<C, bfloat16>) {
    if (plan.arithmetic == Arithmetic::bf16) {
      return add_bf16_tile<queries>(block.count, plan.value_dim, weights, block.value, keep, output, plan.value_stride,
                                    prefetch);
    }
  }
  add_tile<queries>(block.count, plan.value_dim, weights, block.value, keep, output, plan.value_stride, prefetch);
}

// Takes a block of keys and values into the record. Where there is AVX-512 a block is done in about the time that
// memory takes to answer, so what is asked for meanwhile is read one block later: the values of the next one and the
// keys of the one after it. Elsewhere it is this block's values and the next one's keys, and all of it stays in L1.
template <class C>
void add_block(const Decode& call, const SplitPlace& place, const DecodeBlock<C>& block, const DecodeBlock<C>& next,
               const DecodeBlock<C>& after_next, const DecodeScratch& scratch, const DecodeRecord& record) {
  const DecodePlan& plan = call.plan;
  const DecodeBlock<C>&with_values = asks_block_ahead ? next : block, &with_keys = asks_block_ahead ? after_next : next;
  Prefetch<C> values = {with_values.value, with_values.count, plan.value_dim};
  Prefetch<C> keys = {with_keys.key, with_keys.count, plan.head_dim};
  for (std::int64_t tile = 0; tile < plan.tiles; ++tile) {
    const std::int64_t first = tile * tile_queries, left = plan.queries - first;
    float scores[DecodeBlock<C>::most * tile_queries], keep[tile_queries];
    with_queries(left, [&]<int n>(Queries<n>) { dot_block<n>(plan, block, scratch, first, scores, values); });
    exponents_of(call.rule, block.count, scratch.unit + first, is_int8<C> ? block.key_scale : nullptr, scores);
    remove_unseen(call, place, tile, block.first, block.count, scores);
    weigh_keys(block.count, is_int8<C> ? block.value_scale : nullptr, scores, record.maximum + first,
               record.sum + first, keep);
    with_queries(left, [&]<int n>(Queries<n>) {
      add_values<n>(plan, block, scores, keep, record.output + first * plan.value_stride, keys);
    });
  }
}

void start_record(const DecodePlan& plan, const DecodeRecord& record) {
  for (std::int64_t q = 0; q < plan.state_floats(); ++q) record.maximum[q] = lowest_maximum, record.sum[q] = 0;
  for (std::int64_t i = 0; i < plan.queries * plan.value_stride; i += lanes) store(record.output + i, zero());
}

// Merges the records of a kv head's splits into the first of them.
void merge(const DecodePlan& plan, const DecodeMemory& memory, std::int64_t first_record, std::int64_t splits) {
  const DecodeRecord result = record_of(plan, memory, first_record);
  for (std::int64_t q = 0; q < plan.queries; q += lanes) {
    F32 maximum = load(result.maximum + q), sum = zero();
    for (std::int64_t s = 1; s < splits; ++s) {
      maximum = max(maximum, load(record_of(plan, memory, first_record + s).maximum + q));
    }
    for (std::int64_t s = 0; s < splits; ++s) {
      const DecodeRecord part = record_of(plan, memory, first_record + s);
      float share[lanes];
      const F32 shares = exp2(load(part.maximum + q) - maximum);
      store(share, shares);
      sum = fma(load(part.sum + q), shares, sum);
      for (std::int64_t i = 0; i < lanes && q + i < plan.queries; ++i) {
        float* to = result.output + (q + i) * plan.value_stride;
        const float* from = part.output + (q + i) * plan.value_stride;
        for (std::int64_t e = 0; e < plan.value_stride; e += lanes) {
          const F32 before = s == 0 ? zero() : load(to + e);
          store(to + e, fma(load(from + e), set1(share[i]), before));
        }
      }
    }
    store(result.maximum + q, maximum);
    store(result.sum + q, sum);
  }
}

// Divides by the softmax's denominators and writes output and lse of a kv head.
template <class C>
void write_result(const Decode& call, const SplitPlace& place, const DecodeRecord& record, float* room) {
  const DecodePlan& plan = call.plan;
  const AttentionDecodeArgs& args = call.args;
  const ScoreUnit unit = {1.0f, false};
  for (std::int64_t q = 0; q < plan.queries; q += lanes) {
    float sink[lanes], lse[lanes], normalizer[lanes];
    for (int i = 0; i < lanes; ++i) {
      const std::int64_t head = place.kv_head * plan.group + (q + i) / plan.q_len;
      const bool has_sink = args.sinks.data && q + i < plan.queries;
      sink[i] = has_sink ? static_cast<const float*>(args.sinks.data)[head * args.sinks.stride[0]] : -infinity;
    }
    const SoftmaxEnd end = end_softmax(load(record.maximum + q), load(record.sum + q), unit, load(sink));
    store(lse, end.lse);
    store(normalizer, end.normalizer);
    for (std::int64_t i = 0; i < lanes && q + i < plan.queries; ++i) {
      const float* from = record.output + (q + i) * plan.value_stride;
      for (std::int64_t e = 0; e < plan.value_dim; ++e) room[e] = from[position_of<C>(e)] * normalizer[i];
      static_cast<float*>(args.lse.data)[query_offset(plan, args.lse, place, q + i)] = lse[i];
      with_type_of(args.output.dtype, [&]<class T>(T) {
        T* to = static_cast<T*>(args.output.data) + query_offset(plan, args.output, place, q + i);
        for (std::int64_t e = 0; e < plan.value_dim; e += lanes) {
          store_up_to(to + e, load(room + e), plan.value_dim - e);
        }
      });
    }
  }
}

template <class C>
void run_job(const Decode& call, std::int64_t job, int worker) {
  const DecodePlan& plan = call.plan;
  const SplitPlace place = place_of(call, job);
  const DecodeRecord record = record_of(plan, call.memory, job);
  const DecodeScratch scratch = carve_scratch(plan, call.memory.scratch + worker * plan.scratch_floats);
  append<C>(call, place, scratch.room);
  pack_queries<C>(call, place, scratch);
  start_record(plan, record);

  DecodeBlock<C> memory[3], *block = memory, *next = memory + 1, *after_next = memory + 2;
  const auto locate_block = [&](std::int64_t first, DecodeBlock<C>& found) {
    const std::int64_t count = place.end - first;
    found.count = 0;
    if (count > 0) {
      locate(call.args, place.b, place.kv_head, first, count < plan.block_keys ? count : plan.block_keys, found);
    }
  };
  locate_block(place.first, *block);
  locate_block(place.first + plan.block_keys, *next);
  for (std::int64_t first = place.first; first < place.end; first += plan.block_keys) {
    locate_block(first + 2 * plan.block_keys, *after_next);
    add_block(call, place, *block, *next, *after_next, scratch, record);
    DecodeBlock<C>* const done = block;
    block = next, next = after_next, after_next = done;
  }

  std::int32_t* done = call.memory.done + place.b * plan.kv_heads + place.kv_head;
  const std::int64_t splits = place.sequence.splits;
  if (splits > 1 && __atomic_add_fetch(done, 1, __ATOMIC_ACQ_REL) < splits) return;
  if (splits > 1) merge(plan, call.memory, job - place.split, splits);
  write_result<C>(call, place, record_of(plan, call.memory, job - place.split), scratch.room);
}

template <class C>
void decode(const AttentionDecodeArgs& args) {
  const DecodePlan plan = plan_decode(args);
  const Decode call = {args, plan, lay_out(plan, args.workspace), decode_rule(args.scale, args.softcap)};
  std::int64_t jobs = 0;
  for (std::int64_t b = 0; b < plan.batch; ++b) {
    call.memory.first_job[b] = jobs;
    jobs += plan.kv_heads * sequence_of(args, plan, b).splits;
  }
  for (std::int64_t i = 0; i < plan.batch * plan.kv_heads; ++i) call.memory.done[i] = 0;
  for_each_job(plan.workers, jobs, [&](std::int64_t job, int worker) { run_job<C>(call, job, worker); });
}

}  // namespace

std::int64_t attention_decode_workspace(const AttentionDecodeArgs& args) {
  return lay_out(plan_decode(args), nullptr).bytes;
}

void attention_decode(const AttentionDecodeArgs& args) {
  switch (args.key_cache.dtype) {
    case DType::int8:
      return decode<std::int8_t>(args);
    case DType::bfloat16:
      return decode<bfloat16>(args);
    case DType::float16:
      return decode<float16>(args);
    default:
      return decode<float>(args);
  }
}

}  // namespace bigmodel::cpu::BIGMODEL_TARGET
