// Lanes of a warp look at each other: shfl, vote, match, activemask, redux, elect.
#include <algorithm>

#include "block.h"
#include "lanes.h"

namespace ptx {
namespace {

// The lanes that a .sync instruction names must all be here. False: not now.
bool lanes_meet(Warp& warp, std::uint32_t member_register) {
  const int lane = std::countr_zero(warp.exec);
  const std::uint32_t members = warp.reg<std::uint32_t>(member_register)[lane];
  const Warp::Meeting meeting = warp.meet(members);
  if (meeting == Warp::Meeting::later) return false;
  const bool missing = (members & warp.alive & ~warp.exec) != 0;
  if (meeting == Warp::Meeting::never || missing || !(members >> lane & 1)) {
    warp.hazard("divergent exchange", lane, "not all lanes of the member mask run this instruction together");
    if (meeting == Warp::Meeting::never) throw BlockStopped();
  }
  return true;
}

// operand: d, a, b (lane), c (clamp and segments); list: members, predicate (0: none). choice: u(p), d(own), b(fly),
// i(dx).
void shfl(Warp& warp, const Instruction& in) {
  if (!lanes_meet(warp, in.list[0])) return;
  std::uint32_t* d = warp.reg<std::uint32_t>(in.operand[0]);
  const std::uint32_t *b = warp.reg<std::uint32_t>(in.operand[2]), *c = warp.reg<std::uint32_t>(in.operand[3]);
  std::uint32_t a[warp_size], inside = 0;
  std::copy_n(warp.reg<std::uint32_t>(in.operand[1]), warp_size, a);
  const std::uint32_t exec = warp.exec;
  for_lanes(exec, [&](int lane) {
    const int distance = b[lane] & 0x1f, clamp = c[lane] & 0x1f, segment = c[lane] >> 8 & 0x1f;
    const int high = (lane & segment) | (clamp & ~segment), low = lane & segment;
    int from = 0;
    bool valid = false;
    switch (in.choice) {
      case 'u':
        from = lane - distance, valid = from >= high;
        break;
      case 'd':
        from = lane + distance, valid = from <= high;
        break;
      case 'b':
        from = lane ^ distance, valid = from <= high;
        break;
      default:
        from = low | (distance & ~segment), valid = from <= high;
        break;
    }
    if (!valid) from = lane;
    if (!(exec >> from & 1))
      warp.hazard("divergent exchange", lane,
                  "takes from lane " + std::to_string(from) + ", which does not run this instruction");
    d[lane] = a[from];
    inside |= static_cast<std::uint32_t>(valid) << lane;
  });
  if (in.list[1]) {
    std::uint32_t& p = warp.predicate(in.list[1]);
    p = (inside & exec) | (p & ~exec);
  }
}

void decode_shfl(Decoder& decoder) {
  if (!decoder.form.take("sync")) decoder.fail("expected sync");
  const std::string mode = decoder.form.take_one({"up", "down", "bfly", "idx"});
  if (mode.empty() || decoder.form.take_type() != Type::b32) decoder.fail("expected up, down, bfly or idx, of b32");
  decoder.has(5);
  Instruction& in = decoder.instruction;
  in.operand[0] = decoder.destination(0, Type::b32);
  for (int i = 1; i <= 3; ++i) in.operand[i] = decoder.source(i, Type::b32);
  in.list = decoder.list({decoder.source(4, Type::b32), decoder.second_destination(0)});
  in.choice = static_cast<std::uint8_t>(mode[0]);
  in.type = Class::shuffle;
  in.handler = &shfl;
}

// choice: 'l'(all), 'y'(any), 'i'(uni), 'b'(allot). operand: d, a, members; flag: a is negated.
void vote(Warp& warp, const Instruction& in) {
  if (!lanes_meet(warp, in.operand[2])) return;
  const std::uint32_t exec = warp.exec;
  const std::uint32_t yes = (warp.predicate(in.operand[1]) ^ (in.flag ? all_lanes : 0)) & exec;
  if (in.choice == 'b') {
    std::uint32_t* d = warp.reg<std::uint32_t>(in.operand[0]);
    each_lane(warp, d, [=](int) { return yes; });
    return;
  }
  const bool result = in.choice == 'l' ? yes == exec : in.choice == 'y' ? yes != 0 : yes == 0 || yes == exec;
  std::uint32_t& d = warp.predicate(in.operand[0]);
  d = result ? d | exec : d & ~exec;
}

void decode_vote(Decoder& decoder) {
  if (!decoder.form.take("sync")) decoder.fail("expected sync");
  const std::string mode = decoder.form.take_one({"all", "any", "uni", "ballot"});
  const Type type = decoder.form.take_type();
  if (mode.empty() || (mode == "ballot") != (type == Type::b32))
    decoder.fail("expected all, any, uni of pred or ballot of b32");
  decoder.has(3);
  Instruction& in = decoder.instruction;
  in.operand[0] = decoder.destination(0, type);
  in.operand[1] = decoder.source(1, Type::pred);
  in.operand[2] = decoder.source(2, Type::b32);
  in.flag = decoder.operand(1).negated;
  in.choice = mode == "all" ? 'l' : mode == "any" ? 'y' : mode == "uni" ? 'i' : 'b';
  in.type = Class::shuffle;
  in.handler = &vote;
}

void activemask(Warp& warp, const Instruction& in) {
  const std::uint32_t exec = warp.exec;
  each_lane(warp, warp.reg<std::uint32_t>(in.operand[0]), [=](int) { return exec; });
}
void decode_activemask(Decoder& decoder) {
  if (decoder.form.take_type() != Type::b32) decoder.fail("of b32 only");
  decoder.has(1);
  decoder.instruction.operand[0] = decoder.destination(0, Type::b32);
  decoder.instruction.type = Class::shuffle;
  decoder.instruction.handler = &activemask;
}

// choice: the operation's letter; flag: signed.
void redux(Warp& warp, const Instruction& in) {
  if (!lanes_meet(warp, in.operand[2])) return;
  const std::uint32_t* a = warp.reg<std::uint32_t>(in.operand[1]);
  std::uint32_t result = a[std::countr_zero(warp.exec)];
  const auto less = [&](std::uint32_t x, std::uint32_t y) {
    return in.flag ? static_cast<std::int32_t>(x) < static_cast<std::int32_t>(y) : x < y;
  };
  for_lanes(warp.exec & (warp.exec - 1), [&](int lane) {
    switch (in.choice) {
      case '+':
        result += a[lane];
        break;
      case '<':
        result = less(a[lane], result) ? a[lane] : result;
        break;
      case '>':
        result = less(result, a[lane]) ? a[lane] : result;
        break;
      case '&':
        result &= a[lane];
        break;
      case '|':
        result |= a[lane];
        break;
      default:
        result ^= a[lane];
    }
  });
  each_lane(warp, warp.reg<std::uint32_t>(in.operand[0]), [=](int) { return result; });
}

void decode_redux(Decoder& decoder) {
  if (!decoder.form.take("sync")) decoder.fail("expected sync");
  const std::string mode = decoder.form.take_one({"add", "min", "max", "and", "or", "xor"});
  const Type type = decoder.form.take_type();
  if (mode.empty() || bytes_of(type) != 4 || type == Type::f32)
    decoder.fail("expected an operation of 32-bit integers");
  decoder.has(3);
  Instruction& in = decoder.instruction;
  in.operand[0] = decoder.destination(0, type);
  for (int i = 1; i <= 2; ++i) in.operand[i] = decoder.source(i, Type::b32);
  in.choice = mode == "add"   ? '+'
              : mode == "min" ? '<'
              : mode == "max" ? '>'
              : mode == "and" ? '&'
              : mode == "or"  ? '|'
                              : '^';
  in.flag = is_signed(type);
  in.type = Class::shuffle;
  in.handler = &redux;
}

// choice: 'y' any, 'l' all. list: the predicate of match.all (0: none).
template <class T>
void match(Warp& warp, const Instruction& in) {
  if (!lanes_meet(warp, in.operand[2])) return;
  const std::uint32_t exec = warp.exec;
  T a[warp_size];
  std::copy_n(warp.reg<T>(in.operand[1]), warp_size, a);
  std::uint32_t* d = warp.reg<std::uint32_t>(in.operand[0]);
  std::uint32_t agreed = 0;
  for_lanes(exec, [&](int lane) {
    std::uint32_t same = 0;
    for_lanes(exec, [&](int other) { same |= static_cast<std::uint32_t>(a[other] == a[lane]) << other; });
    if (in.choice == 'l') {
      agreed |= same == exec ? 1u << lane : 0;
      same = same == exec ? exec : 0;
    }
    d[lane] = same;
  });
  if (in.list && in.list[0]) {
    std::uint32_t& p = warp.predicate(in.list[0]);
    p = (agreed & exec) | (p & ~exec);
  }
}

void decode_match(Decoder& decoder) {
  const std::string mode = decoder.form.take_one({"any", "all"});
  if (mode.empty() || !decoder.form.take("sync")) decoder.fail("expected any or all, sync");
  const Type type = decoder.form.take_type();
  decoder.has(3);
  Instruction& in = decoder.instruction;
  in.operand[0] = decoder.destination(0, Type::b32);
  in.operand[1] = decoder.source(1, type);
  in.operand[2] = decoder.source(2, Type::b32);
  in.list = decoder.list({decoder.second_destination(0)});
  in.choice = mode == "all" ? 'l' : 'y';
  in.type = Class::shuffle;
  in.handler = bytes_of(type) == 8 ? &match<std::uint64_t> : &match<std::uint32_t>;
}

}  // namespace

void add_exchange(DecodeTable& table) {
  table["shfl"] = decode_shfl;
  table["vote"] = decode_vote;
  table["activemask"] = decode_activemask;
  table["redux"] = decode_redux;
  table["match"] = decode_match;
}

}  // namespace ptx
