// Vectors of fp32 for the CPU target being compiled: F32 with `lanes` lanes, Mask, I32, and their operations.
// Arithmetic is always fp32; bfloat16 and float16 exist only in memory and are converted by load and store.
//
// Every target defines, in its own header:
//   zero, set1, load, store and their partial forms load_first(pointer, count), store_first(pointer, v, count), which
//   touch only the first count < lanes elements (missing lanes read as 0), for float, bfloat16 and float16; load and
//   load_first of int8 too;
//   stream(p, v): store past the caches where the target can, at an address aligned to its lanes * sizeof(T) bytes;
//   stream_end() before another thread reads what was streamed;
//   + - * /, fma(a, b, c) = a * b + c, fnma(a, b, c) = c - a * b, max, min (b when unordered, so that
//   max(bound, x) keeps a NaN of x), abs, sqrt, round (to nearest even), less, select(mask, if_true, if_false);
//   to_int (of a whole number), to_float, as_int, as_float, set1_int, + - * & | of I32, shift_left<n>, shift_right<n>
//   (arithmetic); keep_in_register(a): a is loaded once and not again for each use; reduce_add, reduce_max;
//   store_sums(p, a, b, c, d), the four sums of lanes; swap_pairs (lanes 1, 0, 3, 2, ...); transpose(F32 rows[lanes]).
#pragma once

#if defined(__AVX512F__)
#include "cpu/isa/vec_avx512.h"
#elif defined(__AVX2__)
#include "cpu/isa/vec_avx2.h"
#elif defined(__aarch64__)
#include "cpu/isa/vec_neon.h"
#else
#include "cpu/isa/vec_generic.h"
#endif

namespace bigmodel::cpu::BIGMODEL_TARGET {

inline constexpr int lanes = F32::lanes;

template <class A, class B>
inline constexpr bool is_same = false;
template <class A>
inline constexpr bool is_same<A, A> = true;

constexpr std::int64_t round_up(std::int64_t n, std::int64_t multiple) {
  return (n + multiple - 1) / multiple * multiple;
}

}  // namespace bigmodel::cpu::BIGMODEL_TARGET
