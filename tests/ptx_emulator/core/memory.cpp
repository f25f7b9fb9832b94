// ld and st, of every space and vector length.
#include "access.h"

namespace ptx {
namespace {

// What lanes get that were not allowed to read: as floats NaN.
constexpr std::uint64_t poison = ~0ull;

template <class Memory, class Register>
void load_element(Warp& warp, const Places& places, std::uint32_t lanes, std::uint32_t destination, int element) {
  Register* d = warp.reg<Register>(destination);
  for_lanes(lanes, [&](int lane) {
    Memory value = static_cast<Memory>(poison);
    if (places.allowed >> lane & 1) std::memcpy(&value, places.at[lane] + element * sizeof(Memory), sizeof(Memory));
    d[lane] = static_cast<Register>(value);
  });
}

template <class Memory>
void load_extended(Warp& warp, const Instruction& in, const Places& places, int element) {
  switch (in.access.register_bytes) {
    case 2:
      return load_element<Memory, std::uint16_t>(warp, places, warp.exec, in.list[element], element);
    case 4:
      return load_element<Memory, std::uint32_t>(warp, places, warp.exec, in.list[element], element);
    default:
      return load_element<Memory, std::uint64_t>(warp, places, warp.exec, in.list[element], element);
  }
}

void load(Warp& warp, const Instruction& in) {
  std::uint64_t addresses[warp_size];
  addresses_of(warp, in, 1, in.immediate, addresses);
  const Access& access = in.access;
  const Places places = places_of(warp, access.space, Use::read, addresses, warp.exec, access.bytes * access.elements);
  for (int i = 0; i < access.elements; ++i) {
    switch (access.bytes * 2 + access.is_signed) {
      case 2:
        load_extended<std::uint8_t>(warp, in, places, i);
        break;
      case 3:
        load_extended<std::int8_t>(warp, in, places, i);
        break;
      case 4:
        load_extended<std::uint16_t>(warp, in, places, i);
        break;
      case 5:
        load_extended<std::int16_t>(warp, in, places, i);
        break;
      case 8:
        load_extended<std::uint32_t>(warp, in, places, i);
        break;
      case 9:
        load_extended<std::int32_t>(warp, in, places, i);
        break;
      default:
        load_extended<std::uint64_t>(warp, in, places, i);
        break;
    }
  }
}

void store(Warp& warp, const Instruction& in) {
  std::uint64_t addresses[warp_size];
  addresses_of(warp, in, 1, in.immediate, addresses);
  const Access& access = in.access;
  const int bytes = access.bytes, whole = bytes * access.elements, width = access.register_bytes;
  const Places places = places_of(warp, access.space, Use::write, addresses, warp.exec, whole);
  std::byte data[warp_size][64];
  for (int i = 0; i < access.elements; ++i) {  // lowest bytes first: the narrow part of a wide register
    const std::byte* a = warp.reg<std::byte>(in.list[i]);
    for_lanes(places.allowed, [&](int lane) { std::memcpy(data[lane] + i * bytes, a + lane * width, bytes); });
  }
  for_lanes(places.allowed, [&](int lane) { write(warp, places, lane, data[lane], whole); });
}

Space take_space(Form& form) {
  form.take("cta");
  if (form.take("global") || form.take("const")) return Space::global;
  if (form.take("shared") || form.take("shared::cta")) return Space::shared;
  if (form.take("local")) return Space::local;
  if (form.take("param") || form.take("param::entry")) return Space::param;
  return Space::generic;
}

// Ordering and caching: no effect on what is read, in an order that is already sequential.
bool take_hints(Form& form) {
  form.take_one({"weak", "relaxed", "acquire", "release", "volatile", "mmio"});
  form.take_one({"cta", "gpu", "sys", "cluster"});
  form.take_one({"ca", "cg", "cs", "lu", "cv", "wb", "wt"});
  form.take("nc");
  form.take_one({"L1::evict_normal", "L1::evict_unchanged", "L1::evict_first", "L1::evict_last", "L1::no_allocate"});
  form.take_one({"L2::evict_normal", "L2::evict_first", "L2::evict_last"});
  const bool policy = form.take("L2::cache_hint");
  form.take_one({"L2::64B", "L2::128B", "L2::256B"});
  return policy;
}

Class class_of(Space space, bool is_load) {
  switch (space) {
    case Space::shared:
      return is_load ? Class::load_shared : Class::store_shared;
    case Space::local:
      return Class::local;
    case Space::param:
      return Class::param;
    default:
      return is_load ? Class::load_global : Class::store_global;
  }
}

void decode_access(Decoder& decoder, bool is_load) {
  Form& form = decoder.form;
  Instruction& in = decoder.instruction;
  const bool policy = take_hints(form);
  in.access.space = take_space(form);
  const std::string vector = form.take_one({"v2", "v4", "v8"});
  const Type type = form.take_type();
  decoder.has(policy ? 3 : 2);
  const int value = is_load ? 0 : 1, at = is_load ? 1 : 0;
  const std::vector<Operand> parts =
      decoder.is_vector(value) ? decoder.operand(value).parts : std::vector<Operand>{decoder.operand(value)};
  if (static_cast<int>(parts.size()) != (vector.empty() ? 1 : vector[1] - '0'))
    decoder.fail("another number of registers than its vector");
  in.access.bytes = static_cast<std::uint8_t>(bytes_of(type));
  in.access.elements = static_cast<std::uint8_t>(parts.size());
  in.access.is_signed = is_signed(type);
  int width = bytes_of(type);
  for (const Operand& part : parts) {
    if (part.kind == Operand::Kind::reg) width = decoder.register_bytes(part);
  }
  if (bytes_of(type) == 0 || width < bytes_of(type)) decoder.fail("a register narrower than its type");
  in.access.register_bytes = static_cast<std::uint8_t>(width);
  std::vector<std::uint32_t> offsets;
  for (const Operand& part : parts)
    offsets.push_back(is_load ? decoder.destination(part, width) : decoder.source(part, width));
  in.list = decoder.list(offsets);
  in.immediate = decoder.address(at, 1);
  in.type = class_of(in.access.space, is_load);
  in.handler = is_load ? &load : &store;
}

void decode_ld(Decoder& decoder) { decode_access(decoder, true); }
void decode_st(Decoder& decoder) { decode_access(decoder, false); }

}  // namespace

void add_memory(DecodeTable& table) {
  table["ld"] = table["ldu"] = decode_ld;
  table["st"] = decode_st;
}

}  // namespace ptx
