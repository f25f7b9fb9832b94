// cp.async: copies from global to shared memory that arrive when their group is waited for.
#include "access.h"

namespace ptx {
namespace {

// What one cp.async does in each lane.
struct Request {
  std::uint32_t bytes;              // written
  std::uint64_t to[warp_size];      // in shared memory
  std::uint64_t from[warp_size];    // in global memory
  std::uint32_t wanted[warp_size];  // bytes read; the rest is zeros
  std::uint32_t reads = 0;          // lanes that read anything
};

// operand: shared address, global address, bytes to read (0: all). list: predicate that ignores the source (0: none).
// choice: bytes to write; flag: shared addresses of 32 bits; immediate: both offsets.
Request request_of(Warp& warp, const Instruction& in) {
  Request request;
  request.bytes = in.choice;
  const std::uint32_t* wanted = in.operand[2] ? warp.reg<std::uint32_t>(in.operand[2]) : nullptr;
  const std::uint32_t ignored = in.list[0] ? warp.predicate(in.list[0]) : 0;
  const std::byte* base = warp.reg<std::byte>(in.operand[0]);
  const int width = in.flag ? 4 : 8;
  addresses_of(warp, in, 1, static_cast<std::int32_t>(in.immediate), request.from);
  for_lanes(warp.exec, [&](int lane) {
    std::uint64_t& to = request.to[lane] = 0;
    std::memcpy(&to, base + lane * width, width);
    to += static_cast<std::uint64_t>(in.immediate >> 32);
    if (in.flag) to &= 0xffffffffu;
    request.wanted[lane] = ignored >> lane & 1 ? 0 : wanted ? wanted[lane] : request.bytes;
    if (request.wanted[lane] > request.bytes) {
      warp.hazard("cp.async", lane,
                  "asks for " + std::to_string(wanted[lane]) + " of " + std::to_string(request.bytes) + " bytes");
      request.wanted[lane] = request.bytes;
    }
    request.reads |= static_cast<std::uint32_t>(request.wanted[lane] > 0) << lane;
  });
  return request;
}

// Part of a copy: byte by byte, so that only what is read must be there.
void read_part(Warp& warp, const Request& request, int lane, Places& places) {
  if (request.from[lane] % request.bytes != 0) {
    warp.hazard(
        "misaligned", lane,
        "reads at " + hexadecimal(request.from[lane]) + " for a copy of " + std::to_string(request.bytes) + " bytes");
  }
  std::uint64_t each[warp_size];
  for (std::uint32_t i = 0; i < request.wanted[lane]; ++i) {
    each[lane] = request.from[lane] + i;
    if (places_of(warp, Space::global, Use::read, each, 1u << lane, 1).allowed == 0) return;
  }
  places.at[lane] = reinterpret_cast<std::byte*>(request.from[lane]);
  places.allowed |= 1u << lane;
}

Places sources_of(Warp& warp, const Request& request) {
  std::uint32_t whole = 0;
  for_lanes(request.reads,
            [&](int lane) { whole |= static_cast<std::uint32_t>(request.wanted[lane] == request.bytes) << lane; });
  Places places;
  if (whole) places = places_of(warp, Space::global, Use::read, request.from, whole, request.bytes);
  for_lanes(request.reads & ~whole, [&](int lane) { read_part(warp, request, lane, places); });
  return places;
}

void copy(Warp& warp, const Instruction& in) {
  const Request request = request_of(warp, in);
  const Places sources = sources_of(warp, request);
  for_lanes(warp.exec, [&](int lane) {
    std::uint32_t offset;
    if (!shared_offset(warp, lane, request.to[lane], request.bytes, offset)) return;
    report_fault(warp, warp.block.shared.on_copy(warp.index, offset, request.bytes), lane, offset, request.bytes);
    Warp::Copy& made = warp.copies.emplace_back();
    made.offset = offset;
    made.group = warp.groups_committed[lane];
    made.lane = static_cast<std::uint8_t>(lane);
    made.bytes = static_cast<std::uint8_t>(request.bytes);
    std::memset(made.data, 0, sizeof(made.data));
    if (sources.allowed >> lane & 1) {
      std::memcpy(made.data, sources.at[lane], request.wanted[lane]);
    } else if (request.reads >> lane & 1) {  // it must not read: as floats NaN
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
