// cp.async: copies from global to shared memory that arrive when their group is waited for.
#include "access.h"

namespace ptx {
namespace {

// operand: shared address, global address, bytes to read (0: all). list: predicate that ignores the source (0: none).
// choice: bytes to write; immediate: both offsets.
void copy(Warp& warp, const Instruction& in) {
  const std::uint32_t bytes = in.choice;
  const std::uint32_t* wanted = in.operand[2] ? warp.reg<std::uint32_t>(in.operand[2]) : nullptr;
  const std::uint32_t ignored = in.list[0] ? warp.predicate(in.list[0]) : 0;
  std::uint64_t to[warp_size], from[warp_size];
  const auto* shared = warp.reg<std::byte>(in.operand[0]);
  const int shared_width = in.flag ? 4 : 8;
  std::uint32_t reads = 0;
  for_lanes(warp.exec, [&](int lane) {
    std::uint64_t base = 0;
    std::memcpy(&base, shared + lane * shared_width, shared_width);
    to[lane] = base + static_cast<std::uint64_t>(in.immediate >> 32);
    if (in.flag) to[lane] &= 0xffffffffu;
    if (wanted && wanted[lane] > bytes) {
      warp.hazard("cp.async", lane,
                  "asks for " + std::to_string(wanted[lane]) + " of " + std::to_string(bytes) + " bytes");
    }
    if ((wanted == nullptr || wanted[lane] > 0) && !(ignored >> lane & 1)) reads |= 1u << lane;
  });
  addresses_of(warp, in, 1, static_cast<std::int32_t>(in.immediate), from);
  const std::uint32_t size_read = wanted && reads ? wanted[std::countr_zero(reads)] : bytes;
  bool same_size = true;
  if (wanted) for_lanes(reads, [&](int lane) { same_size &= wanted[lane] == bytes; });
  Places sources;
  if (reads && same_size && size_read == bytes) {
    sources = places_of(warp, Space::global, Use::read, from, reads, bytes);
  } else {  // parts of a copy: byte by byte, so that only what is read must be there
    for_lanes(reads, [&](int lane) {
      if (from[lane] % bytes)
        warp.hazard("misaligned", lane,
                    "reads at " + hexadecimal(from[lane]) + " for a copy of " + std::to_string(bytes) + " bytes");
      bool all = true;
      for (std::uint32_t i = 0; i < std::min(wanted[lane], bytes); ++i) {
        std::uint64_t each[warp_size];
        each[lane] = from[lane] + i;
        all &= places_of(warp, Space::global, Use::read, each, 1u << lane, 1).allowed != 0;
      }
      sources.at[lane] = reinterpret_cast<std::byte*>(from[lane]);
      if (all) sources.allowed |= 1u << lane;
    });
  }
  for_lanes(warp.exec, [&](int lane) {
    std::uint32_t offset;
    if (!shared_offset(warp, lane, to[lane], bytes, offset)) return;
    report_fault(warp, warp.block.shared.on_copy(warp.index, offset, bytes), lane, offset, bytes);
    Warp::Copy& made = warp.copies.emplace_back();
    made.offset = offset;
    made.group = warp.groups_committed[lane];
    made.lane = static_cast<std::uint8_t>(lane);
    made.bytes = static_cast<std::uint8_t>(bytes);
    std::memset(made.data, 0, sizeof(made.data));
    if (!(reads >> lane & 1)) return;
    if (sources.allowed >> lane & 1) {
      std::memcpy(made.data, sources.at[lane], wanted ? std::min(wanted[lane], bytes) : bytes);
    } else {
      std::memset(made.data, 0xff, sizeof(made.data));
    }
  });
}

void commit(Warp& warp, const Instruction&) {
  for_lanes(warp.exec, [&](int lane) { ++warp.groups_committed[lane]; });
}

// All but the latest `pending` groups of each lane arrive; those not committed too if `open`.
void arrive(Warp& warp, std::uint32_t pending, bool open) {
  std::erase_if(warp.copies, [&](const Warp::Copy& copy) {
    if (!(warp.exec >> copy.lane & 1)) return false;
    const std::uint32_t committed = warp.groups_committed[copy.lane];
    if (!open && copy.group + pending >= committed) return false;
    std::memcpy(warp.block.shared.data(copy.offset), copy.data, copy.bytes);
    warp.block.shared.on_copy_done(warp.index, copy.offset, copy.bytes);
    return true;
  });
}
void wait_group(Warp& warp, const Instruction& in) { arrive(warp, static_cast<std::uint32_t>(in.immediate), false); }
void wait_all(Warp& warp, const Instruction&) { arrive(warp, 0, true); }

void decode_copy(Decoder& decoder) {
  Form& form = decoder.form;
  Instruction& in = decoder.instruction;
  const bool through_l2 = form.take_one({"ca", "cg"}) == "cg";
  if (!form.take("shared") && !form.take("shared::cta")) decoder.fail("expected shared");
  if (!form.take("global")) decoder.fail("expected global");
  form.take_one({"L2::64B", "L2::128B", "L2::256B"});
  const bool policy = form.take("L2::cache_hint");
  const std::int64_t bytes = decoder.immediate(2);
  if (through_l2 ? bytes != 16 : bytes != 4 && bytes != 8 && bytes != 16) decoder.fail("cannot copy so many bytes");
  in.choice = static_cast<std::uint8_t>(bytes);
  const std::int64_t to = decoder.address(0, 0);
  in.flag = in.access.address_bytes == 4;
  const std::int64_t from = decoder.address(1, 1);
  in.immediate = static_cast<std::int64_t>(static_cast<std::uint64_t>(to) << 32 | static_cast<std::uint32_t>(from));
  std::uint32_t ignores = 0;
  if (decoder.operands() - policy > 3) {
    const bool predicate = decoder.is_register(3) && decoder.register_bytes(3) == 0;
    if (predicate)
      ignores = decoder.source(3, Type::pred);
    else
      in.operand[2] = decoder.source(3, Type::b32);
  }
  in.list = decoder.list({ignores});
  in.type = Class::cp_async;
  in.handler = &copy;
}

void decode_cp(Decoder& decoder) {
  Form& form = decoder.form;
  Instruction& in = decoder.instruction;
  if (!form.take("async")) decoder.fail("expected async");
  in.type = Class::cp_async;
  if (form.take("commit_group")) {
    decoder.has(0);
    in.handler = &commit;
  } else if (form.take("wait_group")) {
    decoder.has(1);
    in.immediate = decoder.immediate(0);
    in.handler = &wait_group;
  } else if (form.take("wait_all")) {
    decoder.has(0);
    in.handler = &wait_all;
  } else {
    decode_copy(decoder);
  }
}

}  // namespace

void add_async(DecodeTable& table) { table["cp"] = decode_cp; }

}  // namespace ptx
