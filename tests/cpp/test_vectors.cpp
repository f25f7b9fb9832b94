// csrc/cpu/isa/vec*.h and dot_int16.h: conversions, partial access, reductions, transpose, integer dot products.
#include <initializer_list>

#include "check.h"
#include "cpu/isa/dot_int16.h"
#include "cpu/isa/loops.h"
#include "guarded.h"
#include "numbers.h"
#include "vocabulary.h"

namespace bigmodel::cpu::BIGMODEL_TARGET {

using namespace bigmodel::test;

namespace {

template <class T>
T bits_as(std::uint16_t bits) {
  return T{bits};
}

// All 65,536 numbers, lanes at a time.
template <class T>
void check_loads() {
  for (int base = 0; base < 65536; base += lanes) {
    T halves[lanes];
    float got[lanes];
    for (int i = 0; i < lanes; ++i) halves[i] = bits_as<T>(static_cast<std::uint16_t>(base + i));
    store(got, load(halves));
    for (int i = 0; i < lanes; ++i) {
      const double want = value_of(halves[i]);
      const bool good =
          std::isnan(want) ? std::isnan(got[i]) : got[i] == want && std::signbit(got[i]) == std::signbit(want);
      check(good, "load of %s bits %04x: got %g, want %g", Format<T>::name, base + i, got[i], want);
    }
  }
}

template <class T>
void check_store(float x) {
  T got[lanes];
  store(got, set1(x));
  const double want = Format<T>::round(x), value = value_of(got[lanes - 1]);
  const bool good = std::isnan(want) ? std::isnan(value) : value == want && std::signbit(value) == std::signbit(want);
  check(good, "store of %a as %s: got %a, want %a", x, Format<T>::name, value, want);
}

// Each number of the format, the middle to the next one (a tie) and the floats beside both.
template <class T>
void check_stores() {
  for (int bits = 0; bits < 65536; ++bits) {
    const double value = value_of(bits_as<T>(static_cast<std::uint16_t>(bits)));
    const double next = value_of(bits_as<T>(static_cast<std::uint16_t>(bits + 1)));
    if (std::isnan(value)) continue;
    // Past the largest number the next one would be where the format would go on.
    const double following = std::isinf(next) && std::isfinite(value)
                                 ? 2 * value - value_of(bits_as<T>(static_cast<std::uint16_t>(bits - 1)))
                                 : next;
    for (const double x : {value, std::isfinite(following) && std::isfinite(value) ? (value + following) / 2 : value}) {
      const float exact = static_cast<float>(x);
      check_store<T>(exact);
      check_store<T>(std::nextafter(exact, INFINITY));
      check_store<T>(std::nextafter(exact, -INFINITY));
    }
  }
  for (const std::uint32_t bits : {0x7f800001u, 0x7fbfffffu, 0x7fc00000u, 0x7fffffffu, 0xff800001u, 0xffffffffu}) {
    check_store<T>(float_of(bits));
  }
  check_store<T>(INFINITY);
  check_store<T>(-INFINITY);
  check_store<T>(3.0e38f);
  check_store<T>(float_of(0x00000001u));
}

// Partial access at the very end of readable memory, and nothing written past count.
template <class T>
void check_partial() {
  Random random(7);
  for (int count = 0; count < lanes; ++count) {
    Guarded<T> source(static_cast<std::size_t>(count)), destination(static_cast<std::size_t>(count));
    for (int i = 0; i < count; ++i) assign(source[i], random.normal());
    const F32 vector = load_first(source.data(), count);
    float values[lanes];
    store(values, vector);
    for (int i = 0; i < lanes; ++i) {
      check(values[i] == (i < count ? value_of(source[i]) : 0.0), "load_first<%s>(%d), lane %d", Format<T>::name, count,
            i);
    }
    store_first(destination.data(), vector, count);
    for (int i = 0; i < count; ++i) {
      check(value_of(destination[i]) == value_of(source[i]), "store_first<%s>(%d), lane %d", Format<T>::name, count, i);
    }
    T untouched[lanes];
    std::memset(untouched, 0x5a, sizeof untouched);
    store_first(untouched, vector, count);
    for (int i = count; i < lanes; ++i) {
      T before;
      std::memset(&before, 0x5a, sizeof before);
      check(std::memcmp(&untouched[i], &before, sizeof before) == 0, "store_first<%s>(%d) wrote lane %d",
            Format<T>::name, count, i);
    }
  }
}

template <class T>
void check_streams() {
  alignas(64) T streamed[lanes];
  float values[lanes];
  for (int i = 0; i < lanes; ++i) values[i] = static_cast<float>(i) - 2.5f;
  stream(streamed, load(values));
  stream_end();
  for (int i = 0; i < lanes; ++i) check(value_of(streamed[i]) == values[i], "stream<%s>, lane %d", Format<T>::name, i);
}

// Every int8, whole vectors and first lanes, up to the last readable byte.
void check_int8_loads() {
  for (int base = -128; base < 128; base += lanes) {
    for (int count = 1; count <= lanes; ++count) {
      Guarded<std::int8_t> bytes(count);
      for (int i = 0; i < count; ++i) bytes[i] = static_cast<std::int8_t>(base + i);
      float got[lanes];
      store(got, count == lanes ? load(bytes.data()) : load_first(bytes.data(), count));
      for (int i = 0; i < lanes; ++i) {
        check(got[i] == (i < count ? base + i : 0), "load of %d int8 from %d, lane %d", count, base, i);
      }
    }
  }
}

void check_store_sums() {
  Random random(5);
  float rows[4][lanes], got[4];
  for (auto& row : rows) {
    for (float& x : row) x = static_cast<float>(random.normal());
  }
  store_sums(got, load(rows[0]), load(rows[1]), load(rows[2]), load(rows[3]));
  for (int i = 0; i < 4; ++i) {
    double sum = 0.0, size = 0.0;
    for (const float x : rows[i]) sum += x, size += std::fabs(x);
    check_close(got[i], sum, size * 0x1p-22, "store_sums, row %d", i);
  }
}

// Pairs of the largest integers and of any others, from rows of int8 and from two interleaved ones.
void check_int16_dots() {
  Random random(7);
  std::int16_t words[int16_lanes];
  std::int8_t bytes[2][int16_lanes];
  for (int round = 0; round < 64; ++round) {
    for (int i = 0; i < int16_lanes; ++i) {
      words[i] = static_cast<std::int16_t>(round == 0 ? -32767 : random.uniform(-32767, 32767));
      for (auto& row : bytes) row[i] = static_cast<std::int8_t>(round == 0 ? -127 : random.uniform(-127, 127));
    }
    std::int32_t got[lanes];
    const I32 dots = dot_pairs(load_int16(words), load_int16(bytes[0]), set1_int(round));
    std::memcpy(got, &dots.v, sizeof got);
    for (int i = 0; i < lanes; ++i) {
      const int want = round + words[2 * i] * bytes[0][2 * i] + words[2 * i + 1] * bytes[0][2 * i + 1];
      check(got[i] == want, "dot_pairs, lane %d: got %d, want %d", i, got[i], want);
    }
    I16 half[2];
    load_interleaved(bytes[0], bytes[1], half[0], half[1]);
    const I16 pair = set1_pair((words[0] & 0xffff) | words[1] * 65536);
    I32 sums[2] = {dot_pairs(pair, half[0], set1_int(0)), dot_pairs(pair, half[1], set1_int(0))};
    put_in_order(sums[0], sums[1]);
    for (int h = 0; h < 2; ++h) {
      std::memcpy(got, &sums[h].v, sizeof got);
      for (int i = 0; i < lanes; ++i) {
        const int want = words[0] * bytes[0][h * lanes + i] + words[1] * bytes[1][h * lanes + i];
        check(got[i] == want, "interleaved pairs, half %d, lane %d: got %d, want %d", h, i, got[i], want);
      }
    }
  }
}

void check_reductions_and_transpose() {
  Random random(3);
  float rows[lanes][lanes];
  F32 vectors[lanes];
  for (int i = 0; i < lanes; ++i) {
    double sum = 0.0, largest = -INFINITY, size = 0.0;
    for (int j = 0; j < lanes; ++j) {
      rows[i][j] = static_cast<float>(random.normal());
      sum += rows[i][j];
      size += std::fabs(rows[i][j]);
      largest = std::fmax(largest, rows[i][j]);
    }
    vectors[i] = load(rows[i]);
    check_close(reduce_add(vectors[i]), sum, size * 0x1p-22, "reduce_add");
    check(reduce_max(vectors[i]) == largest, "reduce_max");
    float swapped[lanes];
    store(swapped, swap_pairs(vectors[i]));
    for (int j = 0; j < lanes; ++j) check(swapped[j] == rows[i][j ^ 1], "swap_pairs, lane %d", j);
  }
  transpose(vectors);
  for (int i = 0; i < lanes; ++i) {
    float column[lanes];
    store(column, vectors[i]);
    for (int j = 0; j < lanes; ++j) check(column[j] == rows[j][i], "transpose, row %d, column %d", i, j);
  }
}

float first(F32 a) {
  float values[lanes];
  store(values, a);
  return values[0];
}

void check_arithmetic() {
  const F32 a = set1(3.25f), b = set1(-1.5f), nan = set1(NAN);
  check(first(a + b) == 1.75f && first(a - b) == 4.75f && first(a * b) == -4.875f && first(a / b) == 3.25f / -1.5f,
        "+ - * /");
  check(first(fma(a, b, a)) == -1.625f && first(fnma(a, b, a)) == 8.125f, "fma, fnma");
  check(first(max(a, b)) == 3.25f && first(min(a, b)) == -1.5f, "max, min");
  check(std::isnan(first(max(a, nan))) && std::isnan(first(min(a, nan))), "max and min keep a NaN of the second");
  check(first(max(nan, a)) == 3.25f && first(min(nan, a)) == 3.25f, "max and min answer the second when unordered");
  check(first(abs(b)) == 1.5f && first(sqrt(set1(2.25f))) == 1.5f, "abs, sqrt");
  for (const float x : {0.5f, 1.5f, 2.5f, -0.5f, -1.5f, 126.4999f, -126.5f}) {
    check(first(round(set1(x))) == std::nearbyint(x), "round(%g)", x);
  }
  check(first(select(less(b, a), a, b)) == 3.25f && first(select(less(a, b), a, b)) == -1.5f, "less, select");
  check(first(select(less(nan, a), a, b)) == -1.5f, "NaN is not less");
  check(first(to_float(to_int(set1(-77.0f)))) == -77.0f, "to_int, to_float");
  check(
      first(to_float(shift_right<2>(set1_int(-9)))) == -3.0f && first(to_float(shift_left<3>(set1_int(-9)))) == -72.0f,
      "shifts");
  check(first(to_float(set1_int(12) + set1_int(-5))) == 7.0f && first(to_float(set1_int(12) - set1_int(-5))) == 17.0f,
        "I32 + -");
  check(first(to_float(set1_int(12) * set1_int(-5))) == -60.0f &&
            first(to_float(set1_int(1 << 17 | 3) * set1_int(1 << 15))) == 98304.0f,
        "I32 *, which wraps around");
  check(first(to_float(set1_int(12) & set1_int(10))) == 8.0f && first(to_float(set1_int(12) | set1_int(3))) == 15.0f,
        "I32 & |");
  check(first(as_float(as_int(b))) == -1.5f, "as_int, as_float");
}

void check_loops() {
  for (std::int64_t count = 0; count < 6 * lanes; ++count) {
    Guarded<float> values(static_cast<std::size_t>(count));
    double want = 0.0;
    for (std::int64_t i = 0; i < count; ++i) want += values[i] = static_cast<float>(i + 1);
    F32 sums[4] = {};
    over_vectors<4>(count, [&](std::int64_t j, auto part, int chain) {
      sums[chain] = sums[chain] + part.keep(part.read(values.data() + j) + set1(1.0f));
      part.write(values.data() + j, part.read(values.data() + j) + set1(1.0f));
    });
    check(reduce_add(sums) == want + static_cast<double>(count), "over_vectors<4>(%d)", static_cast<int>(count));
    for (std::int64_t i = 0; i < count; ++i) check(values[i] == static_cast<float>(i + 2), "over_vectors writes");
  }
}

}  // namespace

void test_vectors() {
  check_loads<bfloat16>();
  check_loads<float16>();
  check_stores<bfloat16>();
  check_stores<float16>();
  check_partial<float>();
  check_partial<bfloat16>();
  check_partial<float16>();
  check_streams<float>();
  check_streams<bfloat16>();
  check_streams<float16>();
  check_int8_loads();
  check_store_sums();
  check_int16_dots();
  check_reductions_and_transpose();
  check_arithmetic();
  check_loops();
}

}  // namespace bigmodel::cpu::BIGMODEL_TARGET
