// Branches, exit, barriers, fences.
#include "block.h"
#include "error.h"
#include "lanes.h"

namespace ptx {
namespace {

void branch(Warp& warp, const Instruction& in) { warp.branch(warp.exec, static_cast<int>(in.immediate)); }

void decode_bra(Decoder& decoder) {
  decoder.form.take("uni");
  decoder.has(1);
  decoder.instruction.immediate = decoder.target(0);
  decoder.instruction.type = Class::branch;
  decoder.instruction.handler = &branch;
}

// brx.idx: lanes go one by one to the target that their index names.
void branch_by_index(Warp& warp, const Instruction& in) {
  const std::uint32_t* index = warp.reg<std::uint32_t>(in.operand[0]);
  const std::uint32_t first = index[std::countr_zero(warp.exec)];
  std::uint32_t same = 0;
  for_lanes(warp.exec, [&](int lane) { same |= static_cast<std::uint32_t>(index[lane] == first) << lane; });
  if (first >= in.immediate) throw Error("brx.idx: index " + std::to_string(first) + " is outside its targets");
  const std::uint32_t rest = warp.exec & ~same;
  if (rest == 0 && warp.exec == warp.active) return warp.branch(same, static_cast<int>(in.list[first]));
  if (warp.exec != warp.active) throw Error("brx.idx under a predicate that differs among lanes is not known");
  --warp.pc;  // the others come back to this instruction
  warp.branch(same, static_cast<int>(in.list[first]));
}

void decode_brx(Decoder& decoder) {
  if (!decoder.form.take("idx")) decoder.fail("expected idx");
  decoder.form.take("uni");
  decoder.has(2);
  std::vector<std::uint32_t> targets;
  for (int target : decoder.targets(1)) targets.push_back(static_cast<std::uint32_t>(target));
  decoder.instruction.operand[0] = decoder.source(0, Type::u32);
  decoder.instruction.immediate = static_cast<std::int64_t>(targets.size());
  decoder.instruction.list = decoder.list(targets);
  decoder.instruction.type = Class::branch;
  decoder.instruction.handler = &branch_by_index;
}

void exit_lanes(Warp& warp, const Instruction&) { warp.exit(warp.exec); }
void decode_exit(Decoder& decoder) {
  decoder.form.take("uni");
  decoder.has(0);
  decoder.instruction.type = Class::branch;
  decoder.instruction.handler = &exit_lanes;
}

void trap(Warp& warp, const Instruction&) {
  warp.hazard("trap", std::countr_zero(warp.exec), "the kernel gave up by itself");
  throw BlockStopped();
}
void decode_trap(Decoder& decoder) {
  decoder.has(0);
  decoder.instruction.type = Class::other;
  decoder.instruction.handler = &trap;
}

void nothing(Warp&, const Instruction&) {}

// A memory fence orders what runs in order here anyway.
void decode_fence(Decoder& decoder) {
  decoder.form.take_one({"sc", "acq_rel", "proxy", "acquire", "release"});
  if (decoder.form.take_one({"cta", "gl", "gpu", "sys", "cluster"}).empty()) decoder.fail("expected a scope");
  decoder.has(0);
  decoder.instruction.type = Class::barrier;
  decoder.instruction.handler = &nothing;
}

// Hints: no effect on results.
void decode_hint(Decoder& decoder) {
  decoder.form.take_one({"global", "local"});
  decoder.form.take_one({"L1", "L2", "L2::evict_normal", "L2::evict_last"});
  decoder.instruction.type = Class::other;
  decoder.instruction.handler = &nothing;
}

// operand: barrier number, threads, values to reduce, result. choice: a(rrive), s(ync), p(opc), and, o(r);
// flag: the reduced predicate is negated.
void barrier(Warp& warp, const Instruction& in) {
  const int lane = std::countr_zero(warp.exec);
  if (warp.exec != warp.active) {
    warp.hazard("divergent barrier", lane, "only some of the warp's threads run this barrier");
    throw BlockStopped();
  }
  const Warp::Meeting meeting = warp.meet(all_lanes);
  if (meeting == Warp::Meeting::later) return;
  if (meeting == Warp::Meeting::never) {
    warp.hazard("divergent barrier", lane, "other threads of the warp wait elsewhere");
    throw BlockStopped();
  }
  const std::uint32_t number = warp.reg<std::uint32_t>(in.operand[0])[lane];
  const std::uint32_t threads = in.operand[1] ? warp.reg<std::uint32_t>(in.operand[1])[lane] : 0;
  if (number >= 16 || threads % warp_size != 0) {
    warp.hazard("barrier", lane,
                "barrier " + std::to_string(number) + " of " + std::to_string(threads) +
                    " threads: there are 16 barriers, of whole warps");
    throw BlockStopped();
  }
  if (in.operand[2]) {
    const std::uint32_t values = warp.predicate(in.operand[2]) ^ (in.flag ? all_lanes : 0);
    warp.block.reduce(static_cast<int>(number), warp.alive, values);
    warp.reduction = in.operand[3];
    warp.reduction_kind = in.choice;
  }
  const std::uint32_t counted = threads == warp.block.threads ? 0 : threads;
  warp.block.arrive(warp, static_cast<int>(number), counted, in.choice != 'r', in.operand[1] ? -1 : warp.pc);
}

void warp_barrier(Warp& warp, const Instruction& in) {  // bar.warp.sync
  const int lane = std::countr_zero(warp.exec);
  const std::uint32_t members = warp.reg<std::uint32_t>(in.operand[0])[lane];
  if (warp.meet(members) == Warp::Meeting::never) {
    warp.hazard("divergent barrier", lane, "lanes that bar.warp.sync names wait elsewhere");
    throw BlockStopped();
  }
}

void decode_bar(Decoder& decoder) {
  Form& form = decoder.form;
  Instruction& in = decoder.instruction;
  in.type = Class::barrier;
  const bool of_warp = form.take("warp");
  form.take("cta");
  const std::string what = form.take_one({"sync", "arrive", "red"});
  if (what.empty()) decoder.fail("expected sync, arrive or red");
  form.take("aligned");
  if (of_warp) {
    decoder.has(1);
    in.operand[0] = decoder.source(0, Type::u32);
    in.handler = &warp_barrier;
    return;
  }
  in.handler = &barrier;
  in.choice = what == "sync" ? 's' : 'r';
  if (what != "red") {
    in.operand[0] = decoder.source(0, Type::u32);
    if (decoder.operands() > 1) in.operand[1] = decoder.source(1, Type::u32);
    return;
  }
  const std::string operation = form.take_one({"popc", "and", "or"});
  if (operation.empty()) decoder.fail("expected popc, and or or");
  in.choice = static_cast<std::uint8_t>(operation[0]);
  const Type type = form.take_type();
  in.operand[3] = decoder.destination(0, type);
  in.operand[0] = decoder.source(1, Type::u32);
  const int last = decoder.operands() - 1;
  if (last == 3) in.operand[1] = decoder.source(2, Type::u32);
  in.operand[2] = decoder.source(last, Type::pred);
  in.flag = decoder.operand(last).negated;
}

}  // namespace

void add_control(DecodeTable& table) {
  table["bra"] = decode_bra;
  table["brx"] = decode_brx;
  table["ret"] = table["exit"] = decode_exit;
  table["trap"] = table["brkpt"] = decode_trap;
  table["membar"] = table["fence"] = decode_fence;
  table["prefetch"] = table["prefetchu"] = table["discard"] = decode_hint;
  table["bar"] = table["barrier"] = decode_bar;
}

}  // namespace ptx
