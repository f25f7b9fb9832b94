// ldmatrix, stmatrix, movmatrix and mma.sync. In PTX's words: lane 4g + t is thread t of group g.
#include <algorithm>

#include "access.h"
#include "floats.h"

namespace ptx {
namespace {

bool whole_warp(Warp& warp) {
  const int lane = std::countr_zero(warp.exec);
  const Warp::Meeting meeting = warp.exec == warp.active ? warp.meet(all_lanes) : Warp::Meeting::never;
  if (meeting == Warp::Meeting::never || (meeting == Warp::Meeting::all_here && warp.exec != all_lanes)) {
    warp.hazard("divergent exchange", lane, "not all lanes of the warp run this instruction together");
    throw BlockStopped();
  }
  return meeting == Warp::Meeting::all_here;
}

// Matrices are rows of 8 values of 16 bits: lanes 8m to 8m + 7 give the addresses of matrix m's rows.

// list: the registers; choice: matrices; flag: transposed; immediate: the offset.
void ldmatrix(Warp& warp, const Instruction& in) {
  if (!whole_warp(warp)) return;
  std::uint64_t addresses[warp_size];
  addresses_of(warp, in, 1, in.immediate, addresses);
  std::uint16_t rows[4][8][8];
  for (int m = 0; m < in.choice; ++m) {
    const Places places = places_of(warp, in.access.space, Use::read, addresses, 0xffu << (8 * m), 16);
    for (int row = 0; row < 8; ++row) {
      if (places.allowed >> (8 * m + row) & 1) {
        std::memcpy(rows[m][row], places.at[8 * m + row], 16);
      } else {
        std::memset(rows[m][row], 0xff, 16);
      }
    }
  }
  for (int m = 0; m < in.choice; ++m) {
    std::uint16_t* d = warp.reg<std::uint16_t>(in.list[m]);
    for (int lane = 0; lane < warp_size; ++lane) {
      const int g = lane / 4, t = lane % 4;
      for (int i = 0; i < 2; ++i) d[2 * lane + i] = in.flag ? rows[m][2 * t + i][g] : rows[m][g][2 * t + i];
    }
  }
}

void stmatrix(Warp& warp, const Instruction& in) {
  if (!whole_warp(warp)) return;
  std::uint64_t addresses[warp_size];
  addresses_of(warp, in, 1, in.immediate, addresses);
  for (int m = 0; m < in.choice; ++m) {
    const Places places = places_of(warp, in.access.space, Use::write, addresses, 0xffu << (8 * m), 16);
    const std::uint16_t* a = warp.reg<std::uint16_t>(in.list[m]);
    std::uint16_t rows[8][8];
    for (int lane = 0; lane < warp_size; ++lane) {
      const int g = lane / 4, t = lane % 4;
      for (int i = 0; i < 2; ++i) (in.flag ? rows[2 * t + i][g] : rows[g][2 * t + i]) = a[2 * lane + i];
    }
    for_lanes(places.allowed,
              [&](int lane) { write(warp, places, lane, reinterpret_cast<const std::byte*>(rows[lane % 8]), 16); });
  }
}

void decode_matrix_access(Decoder& decoder, bool loads) {
  Form& form = decoder.form;
  Instruction& in = decoder.instruction;
  if (!form.take("sync") || !form.take("aligned") || !form.take("m8n8")) decoder.fail("expected sync.aligned.m8n8");
  const std::string count = form.take_one({"x1", "x2", "x4"});
  in.flag = form.take("trans");
  in.access.space = form.take("shared") || form.take("shared::cta") ? Space::shared : Space::generic;
  if (count.empty() || form.take_type() != Type::b16) decoder.fail("expected x1, x2 or x4, of b16");
  in.choice = static_cast<std::uint8_t>(count[1] - '0');
  decoder.has(2);
  const Operand& value = decoder.operand(loads ? 0 : 1);
  const std::vector<Operand> parts = value.kind == Operand::Kind::vector ? value.parts : std::vector<Operand>{value};
  if (parts.size() != in.choice) decoder.fail("another number of registers than matrices");
  std::vector<std::uint32_t> offsets;
  for (const Operand& part : parts) offsets.push_back(loads ? decoder.destination(part, 4) : decoder.source(part, 4));
  in.list = decoder.list(offsets);
  in.immediate = decoder.address(loads ? 1 : 0, 1);
  in.type = loads ? Class::ldmatrix : Class::store_shared;
  in.handler = loads ? &ldmatrix : &stmatrix;
}

void movmatrix(Warp& warp, const Instruction& in) {
  if (!whole_warp(warp)) return;
  std::uint16_t rows[8][8];
  const std::uint16_t* a = warp.reg<std::uint16_t>(in.operand[1]);
  std::uint16_t* d = warp.reg<std::uint16_t>(in.operand[0]);
  for (int i = 0; i < 64; ++i) rows[i / 8][i % 8] = a[i];
  for (int i = 0; i < 64; ++i) d[i] = rows[i % 8][i / 8];
}
void decode_movmatrix(Decoder& decoder) {
  Form& form = decoder.form;
  for (const char* part : {"sync", "aligned", "m8n8", "trans"}) {
    if (!form.take(part)) decoder.fail("expected sync.aligned.m8n8.trans");
  }
  if (form.take_type() != Type::b16) decoder.fail("of b16 only");
  same_type_operands(decoder, Type::b32, 1);
  decoder.instruction.type = Class::shuffle;
  decoder.instruction.handler = &movmatrix;
}

// mma.m16n8k*: D = A B + C, A [16, k], B [k, 8]. ----------------------------------------------------------------------
enum class Element : std::uint8_t { f16, bf16, tf32 };

float element_value(Element element, std::uint16_t bits) {
  return element == Element::f16 ? float_of_f16(bits) : float_of_bf16(bits);
}

// 16-bit elements: register r of A holds rows g + 8 (r & 1), columns 2t, 2t + 1 (+ 8 from register 2 on).
template <Element element, int k>
void read_factors(Warp& warp, const std::uint32_t* list, float (&a)[16][k], float (&b)[k][8]) {
  if constexpr (element == Element::tf32) {  // register r of A: rows g + 8 (r & 1), column t + 4 (r / 2)
    for (int r = 0; r < k / 2; ++r) {
      const std::uint32_t* bits = warp.reg<std::uint32_t>(list[r]);
      for (int lane = 0; lane < warp_size; ++lane)
        a[lane / 4 + 8 * (r & 1)][lane % 4 + 4 * (r / 2)] = float_of(bits[lane] & 0xffffe000u);
    }
    for (int r = 0; r < k / 4; ++r) {
      const std::uint32_t* bits = warp.reg<std::uint32_t>(list[k / 2 + r]);
      for (int lane = 0; lane < warp_size; ++lane) b[lane % 4 + 4 * r][lane / 4] = float_of(bits[lane] & 0xffffe000u);
    }
  } else {
    for (int r = 0; r < k / 4; ++r) {
      float values[2 * warp_size];
      const std::uint16_t* bits = warp.reg<std::uint16_t>(list[r]);
      for (int i = 0; i < 2 * warp_size; ++i) values[i] = element_value(element, bits[i]);
      for (int i = 0; i < 2 * warp_size; ++i) a[i / 8 + 8 * (r & 1)][i % 8 + 8 * (r / 2)] = values[i];
    }
    for (int r = 0; r < k / 8; ++r) {
      float values[2 * warp_size];
      const std::uint16_t* bits = warp.reg<std::uint16_t>(list[k / 4 + r]);
      for (int i = 0; i < 2 * warp_size; ++i) values[i] = element_value(element, bits[i]);
      for (int i = 0; i < 2 * warp_size; ++i) b[i % 8 + 8 * r][i / 8] = values[i];
    }
  }
}

template <int k>
void multiply(const float (&a)[16][k], const float (&b)[k][8], float (&c)[16][8]) {
  for (int row = 0; row < 16; row += 4) {
    float sum[4][8];
    std::memcpy(sum, c[row], sizeof(sum));
    for (int term = 0; term < k; ++term) {
      for (int i = 0; i < 4; ++i) {
        for (int column = 0; column < 8; ++column)
          sum[i][column] = std::fma(a[row + i][term], b[term][column], sum[i][column]);
      }
    }
    std::memcpy(c[row], sum, sizeof(sum));
  }
}

// list: registers of A, B, C, D. With f32 sums register 2h + i holds row g + 8h, column 2t + i; with f16 ones h a pair.
template <Element element, int k, bool half_sums>
void mma(Warp& warp, const Instruction& in) {
  if (!whole_warp(warp)) return;
  constexpr int registers_of_a = element == Element::tf32 ? k / 2 : k / 4, registers_of_b = registers_of_a / 2;
  const std::uint32_t* c_list = in.list + registers_of_a + registers_of_b;
  const std::uint32_t* d_list = c_list + (half_sums ? 2 : 4);
  alignas(32) float a[16][k], b[k][8], c[16][8];
  read_factors<element, k>(warp, in.list, a, b);
  for (int h = 0; h < 2; ++h) {
    if constexpr (half_sums) {
      const std::uint16_t* bits = warp.reg<std::uint16_t>(c_list[h]);
      for (int i = 0; i < 2 * warp_size; ++i) c[8 * h + i / 8][i % 8] = float_of_f16(bits[i]);
    } else {
      const float *even = warp.reg<float>(c_list[2 * h]), *odd = warp.reg<float>(c_list[2 * h + 1]);
      for (int lane = 0; lane < warp_size; ++lane) {
        c[8 * h + lane / 4][2 * (lane % 4)] = even[lane];
        c[8 * h + lane / 4][2 * (lane % 4) + 1] = odd[lane];
      }
    }
  }
  multiply<k>(a, b, c);
  for (int h = 0; h < 2; ++h) {
    if constexpr (half_sums) {
      std::uint16_t* bits = warp.reg<std::uint16_t>(d_list[h]);
      for (int i = 0; i < 2 * warp_size; ++i) bits[i] = f16_of(c[8 * h + i / 8][i % 8]);
    } else {
      float *even = warp.reg<float>(d_list[2 * h]), *odd = warp.reg<float>(d_list[2 * h + 1]);
      for (int lane = 0; lane < warp_size; ++lane) {
        even[lane] = canonical(c[8 * h + lane / 4][2 * (lane % 4)]);
        odd[lane] = canonical(c[8 * h + lane / 4][2 * (lane % 4) + 1]);
      }
    }
  }
}

Handler mma_handler(Element element, int k, bool half_sums) {
  if (half_sums) {
    if (element != Element::f16) return nullptr;
    return k == 16 ? &mma<Element::f16, 16, true> : k == 8 ? &mma<Element::f16, 8, true> : nullptr;
  }
  if (element == Element::f16)
    return k == 16 ? &mma<Element::f16, 16, false> : k == 8 ? &mma<Element::f16, 8, false> : nullptr;
  if (element == Element::bf16)
    return k == 16 ? &mma<Element::bf16, 16, false> : k == 8 ? &mma<Element::bf16, 8, false> : nullptr;
  return k == 8 ? &mma<Element::tf32, 8, false> : k == 4 ? &mma<Element::tf32, 4, false> : nullptr;
}

void decode_mma(Decoder& decoder) {
  Form& form = decoder.form;
  Instruction& in = decoder.instruction;
  if (!form.take("sync") || !form.take("aligned")) decoder.fail("expected sync.aligned");
  const std::string shape = form.take_one({"m16n8k16", "m16n8k8", "m16n8k4"});
  if (!form.take("row") || !form.take("col")) decoder.fail("expected row.col");
  const Type d = form.take_type(), a = form.take_type(), b = form.take_type(), c = form.take_type();
  const bool known =
      a == b && c == d && (a == Type::f16 || a == Type::bf16 || a == Type::tf32) && (d == Type::f32 || d == Type::f16);
  const int k = shape == "m16n8k16" ? 16 : shape == "m16n8k8" ? 8 : shape == "m16n8k4" ? 4 : 0;
  const Element element = a == Type::f16 ? Element::f16 : a == Type::bf16 ? Element::bf16 : Element::tf32;
  in.handler = known ? mma_handler(element, k, d == Type::f16) : nullptr;
  if (in.handler == nullptr) decoder.fail("not a product that is known");
  decoder.has(4);
  const std::size_t of_a = static_cast<std::size_t>(element == Element::tf32 ? k / 2 : k / 4),
                    of_sums = d == Type::f16 ? 2 : 4;
  const std::size_t sizes[] = {of_sums, of_a, of_a / 2, of_sums};
  std::vector<std::uint32_t> offsets;
  for (int index : {1, 2, 3, 0}) {
    const Operand& value = decoder.operand(index);
    const std::vector<Operand> parts = value.kind == Operand::Kind::vector ? value.parts : std::vector<Operand>{value};
    if (parts.size() != sizes[index]) decoder.fail("another number of registers than its shape");
    for (const Operand& part : parts)
      offsets.push_back(index == 0 ? decoder.destination(part, 4) : decoder.source(part, 4));
  }
  in.list = decoder.list(offsets);
  in.type = Class::mma;
}

}  // namespace

void add_matrix(DecodeTable& table) {
  table["ldmatrix"] = [](Decoder& decoder) { decode_matrix_access(decoder, true); };
  table["stmatrix"] = [](Decoder& decoder) { decode_matrix_access(decoder, false); };
  table["movmatrix"] = decode_movmatrix;
  table["mma"] = decode_mma;
}

}  // namespace ptx
