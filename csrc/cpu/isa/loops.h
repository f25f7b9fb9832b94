// The loop over one contiguous row: whole vectors, then what is left of one.
#pragma once

#include "cpu/isa/vec.h"

namespace bigmodel::cpu::BIGMODEL_TARGET {

// How over_vectors' body reads and writes its vector. keep() zeroes the lanes past the end of the row.
struct WholeVector {
  template <class T>
  BIGMODEL_INLINE_MEMBER F32 read(const T* p) const {
    return load(p);
  }
  template <class T>
  BIGMODEL_INLINE_MEMBER void write(T* p, F32 a) const {
    store(p, a);
  }
  template <bool streaming, class T>
  BIGMODEL_INLINE_MEMBER void write_or_stream(T* p, F32 a) const {
    if constexpr (streaming) {
      stream(p, a);
    } else {
      store(p, a);
    }
  }
  BIGMODEL_INLINE_MEMBER F32 keep(F32 a) const { return a; }
};

struct FirstLanes {
  int count;

  template <class T>
  BIGMODEL_INLINE_MEMBER F32 read(const T* p) const {
    return load_first(p, count);
  }
  template <class T>
  BIGMODEL_INLINE_MEMBER void write(T* p, F32 a) const {
    store_first(p, a, count);
  }
  template <bool, class T>
  BIGMODEL_INLINE_MEMBER void write_or_stream(T* p, F32 a) const {
    store_first(p, a, count);
  }
  BIGMODEL_INLINE_MEMBER F32 keep(F32 a) const {
    float values[lanes] = {};
    store_first(values, a, count);
    return load(values);
  }
};

// body(offset, part, chain) for every vector of a row of `count` elements. Consecutive vectors get the chains 0, 1, ...
// in turn: a sum kept per chain does not wait for its own last addition.
template <int chains, class Body>
BIGMODEL_INLINE void over_vectors(std::int64_t count, Body body) {
  std::int64_t j = 0;
  for (; j + chains * lanes <= count; j += chains * lanes) {
#pragma GCC unroll 8
    for (int chain = 0; chain < chains; ++chain) body(j + chain * lanes, WholeVector{}, chain);
  }
  for (; j + lanes <= count; j += lanes) body(j, WholeVector{}, 0);
  if (j < count) body(j, FirstLanes{static_cast<int>(count - j)}, 0);
}

// The sum of all lanes of all chains.
template <int chains>
BIGMODEL_INLINE float reduce_add(const F32 (&sums)[chains]) {
  F32 total = sums[0];
#pragma GCC unroll 8
  for (int chain = 1; chain < chains; ++chain) total = total + sums[chain];
  return reduce_add(total);
}

}  // namespace bigmodel::cpu::BIGMODEL_TARGET
