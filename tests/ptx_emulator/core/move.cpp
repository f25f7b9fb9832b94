// mov, with packing and unpacking, and cvta.
#include "lanes.h"

namespace ptx {
namespace {

struct Same {
  template <class T>
  static T apply(T a) {
    return a;
  }
};

void move_predicate(Warp& warp, const Instruction& in) {
  std::uint32_t& d = warp.predicate(in.operand[0]);
  d = (warp.predicate(in.operand[1]) & warp.exec) | (d & ~warp.exec);
}

// list: the parts, lowest first. choice: how many; immediate: bytes of a part.
void pack(Warp& warp, const Instruction& in) {
  const int part = static_cast<int>(in.immediate), whole = part * in.choice;
  std::byte* d = warp.reg<std::byte>(in.operand[0]);
  std::byte result[8 * warp_size];
  for (int i = 0; i < in.choice; ++i) {
    const std::byte* a = warp.reg<std::byte>(in.list[i]);
    for (int lane = 0; lane < warp_size; ++lane) std::memcpy(result + lane * whole + i * part, a + lane * part, part);
  }
  for_lanes(warp.exec, [&](int lane) { std::memcpy(d + lane * whole, result + lane * whole, whole); });
}

void unpack(Warp& warp, const Instruction& in) {
  const int part = static_cast<int>(in.immediate), whole = part * in.choice;
  std::byte copy[8 * warp_size];
  std::memcpy(copy, warp.reg<std::byte>(in.operand[1]), whole * warp_size);
  for (int i = 0; i < in.choice; ++i) {
    std::byte* d = warp.reg<std::byte>(in.list[i]);
    for_lanes(warp.exec, [&](int lane) { std::memcpy(d + lane * part, copy + lane * whole + i * part, part); });
  }
}

void decode_pack(Decoder& decoder, Type type, int packed, bool packs) {
  Instruction& in = decoder.instruction;
  const auto& parts = decoder.operand(packed).parts;
  const int whole = bytes_of(type), part = whole / static_cast<int>(parts.size());
  if (part == 0 || part * static_cast<int>(parts.size()) != whole) decoder.fail("the parts do not make up the whole");
  std::vector<std::uint32_t> offsets;
  for (const Operand& each : parts) {
    offsets.push_back(packs ? decoder.source(each, part) : decoder.destination(each, part));
  }
  in.list = decoder.list(offsets);
  in.choice = static_cast<std::uint8_t>(parts.size());
  in.immediate = part;
  if (packs)
    in.operand[0] = decoder.destination(0, type);
  else
    in.operand[1] = decoder.source(1, type);
  in.handler = packs ? &pack : &unpack;
}

void decode_mov(Decoder& decoder) {
  const Type type = decoder.form.take_type();
  Instruction& in = decoder.instruction;
  decoder.has(2);
  in.type = Class::move;
  if (decoder.is_vector(1)) return decode_pack(decoder, type, 1, true);
  if (decoder.is_vector(0)) return decode_pack(decoder, type, 0, false);
  in.operand[0] = decoder.destination(0, type);
  in.operand[1] = decoder.source(1, type);
  switch (bytes_of(type)) {
    case 0:
      in.handler = &move_predicate;
      break;
    case 2:
      in.handler = &unary<Same, std::uint16_t, std::uint16_t>;
      break;
    case 4:
      in.handler = &unary<Same, std::uint32_t, std::uint32_t>;
      break;
    case 8:
      in.handler = &unary<Same, std::uint64_t, std::uint64_t>;
      break;
    default:
      decoder.fail("not for this type");
  }
}

struct Plus {
  static std::uint64_t apply(std::uint64_t a, std::uint64_t b) { return a + b; }
};

// Between an address in a space and a generic one: the space's window is added or taken away.
void decode_cvta(Decoder& decoder) {
  const bool to = decoder.form.take("to");
  const std::string space = decoder.form.take_one({"global", "shared::cta", "shared", "local", "param", "const"});
  if (space.empty()) decoder.fail("expected a space");
  const Type type = decoder.form.take_type();
  if (type != Type::u64 && type != Type::b64) decoder.fail("for 64-bit addresses only");
  std::uint64_t window = space.starts_with("shared") ? shared_window
                         : space == "local"          ? local_window
                         : space == "param"          ? param_window
                                                     : 0;
  decoder.has(2);
  Instruction& in = decoder.instruction;
  in.operand[0] = decoder.destination(0, type);
  in.operand[1] = decoder.source(1, type);
  in.operand[2] = decoder.constant(to ? -window : window, 8);
  in.type = Class::integer;
  in.handler = &binary<Plus, std::uint64_t, std::uint64_t, std::uint64_t>;
}

// Generic addresses, by space. A predicate for those inside.
void isspacep(Warp& warp, const Instruction& in) {
  const std::uint64_t* a = warp.reg<std::uint64_t>(in.operand[1]);
  const auto window = static_cast<std::uint64_t>(in.immediate);
  std::uint32_t& d = warp.predicate(in.operand[0]);
  d = mask_of(warp, d, [=](int lane) { return a[lane] / window_bytes == window / window_bytes; });
}
void decode_isspacep(Decoder& decoder) {
  const std::string space = decoder.form.take_one({"global", "shared::cta", "shared", "local", "param"});
  if (space.empty()) decoder.fail("expected a space");
  decoder.has(2);
  Instruction& in = decoder.instruction;
  in.operand[0] = decoder.destination(0, Type::pred);
  in.operand[1] = decoder.source(1, Type::u64);
  in.immediate = static_cast<std::int64_t>(space.starts_with("shared") ? shared_window
                                           : space == "local"          ? local_window
                                           : space == "param"          ? param_window
                                                                       : 0);
  in.type = Class::compare;
  in.handler = &isspacep;
}

}  // namespace

void add_move(DecodeTable& table) {
  table["mov"] = decode_mov;
  table["cvta"] = decode_cvta;
  table["isspacep"] = decode_isspacep;
}

}  // namespace ptx
