// How decoding divides its work and its workspace.
//
// A job is one split: a run of keys of one kv head of one sequence, for all queries of that kv head. Whoever finishes
// the last split of a kv head merges them. Splits follow from the shapes and the lengths, not from the number of
// threads, and so do the results.
#pragma once

#include "bigmodel/parallel.h"
#include "cpu/attention_decode_bf16.h"
#include "cpu/attention_decode_cache.h"
#include "cpu/attention_decode_int8.h"
#include "cpu/jobs.h"
#include "cpu/matrix.h"

namespace bigmodel::cpu::BIGMODEL_TARGET {

// In what the products are formed.
enum class Arithmetic { fp32, int16, bf16 };

struct DecodePlan {
  std::int64_t batch, heads, kv_heads, group, q_len, head_dim, value_dim;
  std::int64_t queries, tiles;  // of one kv head: its heads' queries, head by head
  std::int64_t block_keys, split_keys, most_splits;
  std::int64_t query_stride, value_stride;  // of the queries' rows and of fp32 output's
  std::int64_t record_floats, scratch_floats;
  Arithmetic arithmetic;
  int workers;

  std::int64_t state_floats() const { return round_up(tiles * tile_queries, lanes); }
  std::int64_t narrow_floats() const { return arithmetic == Arithmetic::fp32 ? 0 : queries * query_stride / 2; }
};

// The keys of a sequence that any query sees.
struct Sequence {
  std::int64_t length, total, first;  // before this call, with it, and the first key that is seen
  std::int64_t first_split, splits;   // at least one, which may be empty
};

BIGMODEL_INLINE Sequence sequence_of(const AttentionDecodeArgs& args, const DecodePlan& plan, std::int64_t b) {
  Sequence s;
  s.length = index_at(args.cache_lengths, b);
  s.total = s.length + (args.new_key.data ? plan.q_len : 0);
  s.first = args.window_left < 0 ? 0 : s.total - plan.q_len - args.window_left;
  if (s.first < 0) s.first = 0;
  s.first_split = s.first / plan.split_keys;
  s.splits = (s.total + plan.split_keys - 1) / plan.split_keys - s.first_split;
  if (s.splits < 1) s.splits = 1;
  return s;
}

BIGMODEL_INLINE void plan_splits(const AttentionDecodeArgs& args, std::int64_t element_bytes, DecodePlan& plan) {
  // A block's keys and values and the keys of the next are to fit the first-level cache beside the queries (with
  // AVX-512, which asks for more at once, the second-level one); 4 KB of
  // keys read bf16 faster than 8 KB by 6 % on Zen 3, whereas int8, bound by arithmetic there, wants 8 KB by as much.
  constexpr std::int64_t fewest_keys = 8, enough_jobs = 64, fewest_split = 256, most_split = 2048;
  const std::int64_t block_bytes = element_bytes == 1 ? 8192 : 4096;
  std::int64_t keys = block_bytes / (plan.head_dim * element_bytes) / fewest_keys * fewest_keys;
  if (keys < fewest_keys) keys = fewest_keys;
  if (keys > DecodeBlock<float>::most) keys = DecodeBlock<float>::most;
  plan.block_keys = keys;

  const std::int64_t kv_heads = plan.batch * plan.kv_heads;
  std::int64_t seen = args.longest;
  if (args.window_left >= 0 && seen > args.window_left + plan.q_len) seen = args.window_left + plan.q_len;
  const std::int64_t splits = kv_heads > 0 ? (enough_jobs + kv_heads - 1) / kv_heads : 1;
  std::int64_t split = (seen + splits - 1) / splits;
  if (split < fewest_split) split = fewest_split;
  if (split > most_split) split = most_split;
  plan.split_keys = round_up(split, plan.block_keys);
  plan.most_splits = (seen + plan.split_keys - 1) / plan.split_keys + 1;  // a window begins anywhere

  // Below this much to read, waking another thread costs more than it saves.
  constexpr std::int64_t worth_threads = 1 << 17;
  const std::int64_t bytes = kv_heads * seen * (plan.head_dim + plan.value_dim) * element_bytes;
  plan.workers = bytes < worth_threads ? 1 : max_workers();
}

BIGMODEL_INLINE Arithmetic arithmetic_of(const AttentionDecodeArgs& args) {
  const DType cache = args.key_cache.dtype, query = args.query.dtype;
  if (has_bf16_dots && cache == DType::bfloat16 && query == DType::bfloat16) return Arithmetic::bf16;
  const bool small = args.query.size[3] <= most_int_head_dim;
  if (has_int16_dots && cache == DType::int8 && query != DType::float32 && small) return Arithmetic::int16;
  return Arithmetic::fp32;
}

static DecodePlan plan_decode(const AttentionDecodeArgs& args) {
  constexpr std::int64_t line = 16;  // floats
  DecodePlan plan;
  plan.batch = args.query.size[0], plan.heads = args.query.size[1], plan.q_len = args.query.size[2];
  plan.head_dim = args.query.size[3];
  plan.kv_heads = args.key_cache.size[1];
  plan.value_dim = args.value_cache.size[3];
  plan.group = plan.kv_heads > 0 ? plan.heads / plan.kv_heads : 0;
  plan.queries = plan.group * plan.q_len;
  plan.tiles = (plan.queries + tile_queries - 1) / tile_queries;
  plan.query_stride = round_up(plan.head_dim, pair_lanes);
  plan.value_stride = round_up(plan.value_dim, pair_lanes);
  plan_splits(args, bytes_of(args.key_cache.dtype), plan);
  plan.record_floats = round_up(2 * plan.state_floats() + plan.queries * plan.value_stride, line);
  const std::int64_t row = plan.query_stride > plan.value_stride ? plan.query_stride : plan.value_stride;
  plan.arithmetic = arithmetic_of(args);
  plan.scratch_floats =
      plan.queries * plan.query_stride + plan.state_floats() + row + worker_gap + plan.narrow_floats();
  plan.scratch_floats = round_up(plan.scratch_floats, line);
  return plan;
}

// The memory of one worker.
struct DecodeScratch {
  float *query, *unit, *room;  // queries as fp32, what their dots are multiples of, and a row
  void* narrow;                // queries as int16 or bfloat16
};

BIGMODEL_INLINE DecodeScratch carve_scratch(const DecodePlan& plan, float* memory) {
  float* const unit = memory + plan.queries * plan.query_stride;
  float* const narrow = unit + plan.state_floats();
  return {memory, unit, narrow + plan.narrow_floats(), narrow};
}

struct DecodeMemory {
  std::int64_t* first_job;  // of every sequence, and the number of all jobs
  std::int32_t* done;       // splits of every kv head of every sequence
  float *scratch, *records;
  std::int64_t bytes;
};

static DecodeMemory lay_out(const DecodePlan& plan, void* workspace) {
  const std::int64_t kv_heads = plan.batch * plan.kv_heads;
  Arena arena;
  arena.base = static_cast<char*>(workspace);
  DecodeMemory memory;
  memory.first_job = take<std::int64_t>(arena, plan.batch + 1);
  memory.done = take<std::int32_t>(arena, kv_heads);
  memory.scratch = take<float>(arena, plan.workers * plan.scratch_floats);
  memory.records = take<float>(arena, kv_heads * plan.most_splits * plan.record_floats);
  memory.bytes = arena.most;
  return memory;
}

// What is known of a kv head's queries after one split.
struct DecodeRecord {
  float *maximum, *sum;  // per query; maxima are exponents of two
  float* output;         // queries x value_stride, not yet divided by the sums
};

BIGMODEL_INLINE DecodeRecord record_of(const DecodePlan& plan, const DecodeMemory& memory, std::int64_t job) {
  float* at = memory.records + job * plan.record_floats;
  return {at, at + plan.state_floats(), at + 2 * plan.state_floats()};
}

}  // namespace bigmodel::cpu::BIGMODEL_TARGET
