#include "warp.h"

#include <algorithm>
#include <climits>
#include <filesystem>

#include "block.h"
#include "error.h"

namespace ptx {
namespace {

std::uint64_t special_value(const Block& block, const std::string& name, int warp, int lane) {
  const Index3 thread = block.thread_of(warp, lane);
  const auto pick = [&](const Index3& index) {
    return name.back() == 'x' ? index.x : name.back() == 'y' ? index.y : index.z;
  };
  if (name.starts_with("%tid.")) return pick(thread);
  if (name.starts_with("%ntid.")) return pick(block.launch.block);
  if (name.starts_with("%ctaid.")) return pick(block.index);
  if (name.starts_with("%nctaid.")) return pick(block.launch.grid);
  if (name == "%laneid") return lane;
  if (name == "%warpid") return warp;
  if (name == "%nwarpid") return (block.threads + warp_size - 1) / warp_size;
  if (name == "%smid" || name == "%gridid") return 0;
  if (name == "%lanemask_eq") return 1u << lane;
  if (name == "%lanemask_lt") return (1u << lane) - 1;
  if (name == "%lanemask_le") return (2u << lane) - 1;
  if (name == "%lanemask_gt") return ~((2u << lane) - 1);
  if (name == "%lanemask_ge") return ~((1u << lane) - 1);
  if (name == "%dynamic_smem_size") return block.launch.dynamic_shared_bytes;
  if (name == "%total_smem_size") return block.shared.bytes();
  throw Error("special register " + name + " is not known");
}

}  // namespace

Warp::Warp(Block& block, int index) : block(block), index(index), file_(block.launch.program->file_bytes) {
  for (const Constant& constant : block.launch.program->constants) {
    if (constant.bytes == 0) predicate(constant.offset) = constant.value ? all_lanes : 0;
    for (int lane = 0; constant.bytes && lane < warp_size; ++lane) {
      std::memcpy(reg<std::byte>(constant.offset) + lane * constant.bytes, &constant.value, constant.bytes);
    }
  }
}

void Warp::start(std::uint32_t lanes) {
  for (const SpecialRegister& special : block.launch.program->specials) {
    for (int lane = 0; lane < warp_size; ++lane) {
      const std::uint64_t value = special_value(block, special.name, index, lane);
      std::memcpy(reg<std::byte>(special.offset) + lane * special.bytes, &value, special.bytes);
    }
  }
  alive = active = lanes;
  pc = 0;
  state = State::ready;
  groups_.clear();
  rejoin_ = INT_MAX;
  copies.clear();
  std::fill_n(groups_committed, warp_size, 0u);
  last_buffer = nullptr;
}

void Warp::run() {
  const Instruction* code = block.launch.program->code.data();
  Counters::Line* lines = block.counters.lines.data();
  std::uint64_t steps = 0;
  while (state == State::ready) {
    if (pc >= rejoin_) [[unlikely]]
      rejoin();
    const Instruction& instruction = code[pc];
    exec = active;
    if (instruction.guard)
      exec &= instruction.guard_negated ? ~predicate(instruction.guard) : predicate(instruction.guard);
    Counters::Line& line = lines[pc++];
    ++line.issued;
    line.lanes += std::popcount(exec);
    if (exec) instruction.handler(*this, instruction);
    if (++steps > block.launch.step_limit) {
      hazard("endless", std::countr_zero(active), "ran " + std::to_string(steps) + " instructions without an end");
      throw BlockStopped();
    }
  }
}

void Warp::branch(std::uint32_t taken, int target) {
  if (taken == active) {
    pc = target;
    if (!groups_.empty()) update_rejoin();
    return;
  }
  const int low = std::min(pc, target), high = std::max(pc, target);
  const std::uint32_t at_low = target < pc ? taken : active & ~taken;
  groups_.push_back({high, active & ~at_low, false});
  active = at_low;
  pc = low;
  rejoin();
}

void Warp::exit(std::uint32_t lanes) {
  alive &= ~lanes;
  active &= ~lanes;
  if (active == 0 && !take_lowest()) {
    state = alive ? state : State::done;
    if (alive) throw Error("lanes were lost");
  }
}

// Joins groups at pc, and changes to a lower one that can run.
void Warp::rejoin() {
  for (;;) {
    std::erase_if(groups_, [&](const Group& group) {
      if (group.pc != pc) return false;
      active |= group.lanes;
      return true;
    });
    const auto lowest = std::min_element(groups_.begin(), groups_.end(), [](const Group& a, const Group& b) {
      return std::pair(a.waits, a.pc) < std::pair(b.waits, b.pc);
    });
    if (lowest == groups_.end() || lowest->waits || lowest->pc > pc) break;
    std::swap(lowest->lanes, active);
    std::swap(lowest->pc, pc);
  }
  update_rejoin();
}

void Warp::update_rejoin() {
  rejoin_ = INT_MAX;
  for (const Group& group : groups_) {
    if (!group.waits || group.pc >= pc) rejoin_ = std::min(rejoin_, group.pc);
  }
}

// The next group to run when the current one is gone: the lowest that can, else the lowest that waits.
bool Warp::take_lowest() {
  const auto lowest = std::min_element(groups_.begin(), groups_.end(), [](const Group& a, const Group& b) {
    return std::pair(a.waits, a.pc) < std::pair(b.waits, b.pc);
  });
  if (lowest == groups_.end()) return false;
  active = lowest->lanes;
  pc = lowest->pc;
  groups_.erase(lowest);
  rejoin();
  return true;
}

Warp::Meeting Warp::meet(std::uint32_t members) {
  if ((members & alive & ~active) == 0) return Meeting::all_here;
  const bool others_run = std::any_of(groups_.begin(), groups_.end(), [](const Group& group) { return !group.waits; });
  if (!others_run) return Meeting::never;
  Counters::Line& line = block.counters.lines[pc - 1];  // counted when it really runs
  --line.issued;
  line.lanes -= std::popcount(exec);
  groups_.push_back({pc - 1, active, true});
  active = 0;
  take_lowest();
  return Meeting::later;
}

void Warp::hazard(const char* kind, int lane, const std::string& message) {
  const Program& program = *block.launch.program;
  const Instruction& instruction = program.code[std::max(pc - 1, 0)];
  Hazard result{kind, program.name, instruction.line, "", "", block.index, block.thread_of(index, lane), message};
  const auto& lines = program.module->text.lines;
  if (instruction.line > 0 && instruction.line <= static_cast<int>(lines.size())) {
    result.text = lines[instruction.line - 1];
    result.text.erase(0, result.text.find_first_not_of(" \t"));
  }
  if (const auto file = program.module->text.files.find(instruction.source_file);
      file != program.module->text.files.end()) {
    result.source =
        std::filesystem::path(file->second).filename().string() + ":" + std::to_string(instruction.source_line);
  }
  block.launch.hazards->add(std::move(result), block.number());
}

}  // namespace ptx
