#include "access.h"

#include <algorithm>
#include <cstdio>

namespace ptx {
namespace {

const char* verb(Use use) { return use == Use::read ? "reads " : use == Use::write ? "writes " : "updates "; }

std::string misalignment(Use use, std::uint64_t address, std::uint32_t bytes) {
  return std::string(verb(use)) + std::to_string(bytes) + " bytes at " + hexadecimal(address) +
         ", which is not a multiple of that";
}

// "reads 16 bytes at 0x7f..., 4 bytes behind the end of query (1024 bytes)"
std::string outside(GlobalMemory& memory, Use use, std::uint64_t address, std::uint32_t bytes) {
  std::string text = std::string(verb(use)) + std::to_string(bytes) + " bytes at " + hexadecimal(address);
  const Buffer* before = memory.find(address);
  const Buffer* after = memory.after(address);
  const auto size = [](const Buffer& buffer) { return " (" + std::to_string(buffer.end - buffer.begin) + " bytes)"; };
  if (before != nullptr && address < before->end) {
    return text + ", of which " + std::to_string(address + bytes - before->end) + " are behind the end of " +
           before->name + size(*before);
  }
  const std::uint64_t behind = before ? address - before->end : ~0ull, ahead = after ? after->begin - address : ~0ull;
  if (before != nullptr && behind <= ahead) {
    return text + ", " + std::to_string(behind) + " bytes behind the end of " + before->name + size(*before);
  }
  if (after != nullptr) return text + ", " + std::to_string(ahead) + " bytes before " + after->name + size(*after);
  return text + ", and there are no buffers";
}

void count_global(Warp& warp, const std::uint64_t* addresses, std::uint32_t lanes, std::uint32_t bytes) {
  std::uint64_t asked[warp_size];
  int count = 0;
  for_lanes(lanes, [&](int lane) { asked[count++] = addresses[lane]; });
  Counters::Line& line = warp.block.counters.lines[warp.pc - 1];
  line.sectors += sectors_of(asked, count, bytes);
  line.bytes += static_cast<std::uint64_t>(count) * bytes;
}

// A lane's bytes in a buffer that holds them, or nullptr after a report.
std::byte* global_place(Warp& warp, Use use, int lane, std::uint64_t address, std::uint32_t bytes) {
  GlobalMemory& memory = *warp.block.launch.memory;
  Buffer* buffer = warp.last_buffer;
  if (buffer == nullptr || !buffer->contains(address, bytes)) {
    buffer = memory.find(address);
    if (buffer == nullptr || !buffer->contains(address, bytes)) {
      warp.hazard("out of bounds", lane, outside(memory, use, address, bytes));
      return nullptr;
    }
    warp.last_buffer = buffer;
  }
  if (address % bytes != 0) {
    warp.hazard("misaligned", lane, misalignment(use, address, bytes));
    return nullptr;
  }
  if (use != Use::read && buffer->read_only) {
    warp.hazard("read-only", lane, std::string(verb(use)) + buffer->name + ", which must not change");
    return nullptr;
  }
  if (use != Use::write && !buffer->initialised(address, bytes)) {
    warp.hazard("uninitialised", lane,
                std::string(verb(use)) + "byte " + std::to_string(address - buffer->begin) + " of " + buffer->name +
                    ", which nothing has written");
  }
  if (use != Use::read) buffer->wrote(address, bytes);
  return reinterpret_cast<std::byte*>(address);
}

// Whether all lanes' accesses are aligned and between two addresses.
bool all_inside(const std::uint64_t* addresses, std::uint32_t lanes, std::uint32_t bytes, std::uint64_t begin,
                std::uint64_t end) {
  std::uint64_t low = ~0ull, high = 0, odd = 0;
  for_lanes(lanes, [&](int lane) {
    low = std::min(low, addresses[lane]);
    high = std::max(high, addresses[lane]);
    odd |= addresses[lane];
  });
  return odd % bytes == 0 && low >= begin && end >= bytes && high <= end - bytes;
}

Places global_places(Warp& warp, Use use, const std::uint64_t* addresses, std::uint32_t lanes, std::uint32_t bytes) {
  Places places;
  count_global(warp, addresses, lanes, bytes);
  const Buffer* buffer = warp.last_buffer;
  const bool plain = buffer != nullptr && buffer->written.empty() && !buffer->read_only;
  if (plain && all_inside(addresses, lanes, bytes, buffer->begin, buffer->end)) {
    for_lanes(lanes, [&](int lane) { places.at[lane] = reinterpret_cast<std::byte*>(addresses[lane]); });
    places.allowed = lanes;
    return places;
  }
  for_lanes(lanes, [&](int lane) {
    places.at[lane] = global_place(warp, use, lane, addresses[lane], bytes);
    if (places.at[lane] != nullptr) places.allowed |= 1u << lane;
  });
  return places;
}

// An access of 8 or 16 bytes goes in halves or quarters of a warp.
void count_shared(Warp& warp, const std::uint64_t* addresses, std::uint32_t lanes, std::uint32_t bytes) {
  Counters::Line& line = warp.block.counters.lines[warp.pc - 1];
  const std::uint32_t unit = std::max(bytes, 4u);
  const int lanes_at_once = static_cast<int>(128 / unit);
  for (int first = 0; first < warp_size; first += lanes_at_once) {
    std::uint64_t asked[warp_size];
    int count = 0;
    const std::uint32_t group = lanes_at_once == warp_size ? lanes : lanes >> first & ((1u << lanes_at_once) - 1);
    for_lanes(group, [&](int lane) { asked[count++] = addresses[first + lane]; });
    if (count == 0) continue;
    line.wavefronts += bank_passes(asked, count, unit);
    line.ideal += 1;
  }
}

Places shared_places(Warp& warp, Use use, const std::uint64_t* addresses, std::uint32_t lanes, std::uint32_t bytes) {
  Places places;
  SharedMemory& shared = warp.block.shared;
  count_shared(warp, addresses, lanes, bytes);
  const bool inside = all_inside(addresses, lanes, bytes, shared_start, shared_start + shared.bytes());
  std::uint64_t before = ~0ull;  // what the lane before has read needs no second look
  for_lanes(lanes, [&](int lane) {
    auto offset = static_cast<std::uint32_t>(addresses[lane] - shared_start);
    if (!inside && !shared_offset(warp, lane, addresses[lane], bytes, offset)) return;
    if (use == Use::read && addresses[lane] != before) {
      const Fault fault = shared.on_read(warp.index, offset, bytes);
      if (fault != Fault::none) [[unlikely]]
        report_fault(warp, fault, lane, offset, bytes);
      before = addresses[lane];
    } else if (use == Use::atomic) {
      report_fault(warp, shared.on_atomic(warp.index, offset, bytes), lane, offset, bytes);
    }
    places.at[lane] = shared.data(offset);
    places.allowed |= 1u << lane;
  });
  if (use == Use::write) places.in_shared = places.allowed;
  return places;
}

// Local memory of a thread and parameters: plain arrays.
Places plain_places(Warp& warp, Use use, std::byte* start, std::uint64_t stride, std::uint64_t size, const char* name,
                    const std::uint64_t* addresses, std::uint32_t lanes, std::uint32_t bytes) {
  Places places;
  for_lanes(lanes, [&](int lane) {
    const std::uint64_t address = addresses[lane];
    if (address + bytes > size || address + bytes < address) {
      warp.hazard("out of bounds", lane,
                  std::string(verb(use)) + std::to_string(bytes) + " bytes at " + std::to_string(address) + " of " +
                      name + " (" + std::to_string(size) + " bytes)");
    } else if (address % bytes != 0) {
      warp.hazard("misaligned", lane, misalignment(use, address, bytes));
    } else {
      places.at[lane] = start + (warp.index * warp_size + lane) * stride + address;
      places.allowed |= 1u << lane;
    }
  });
  return places;
}

Places generic_places(Warp& warp, Use use, const std::uint64_t* addresses, std::uint32_t lanes, std::uint32_t bytes) {
  Places places;
  for (std::uint32_t left = lanes; left != 0;) {
    const std::uint64_t window = addresses[std::countr_zero(left)] / window_bytes;
    std::uint32_t same = 0;
    std::uint64_t inside[warp_size];
    for_lanes(left, [&](int lane) {
      if (addresses[lane] / window_bytes != window) return;
      same |= 1u << lane;
      inside[lane] = addresses[lane] % window_bytes;
    });
    left &= ~same;
    const Space space = window == shared_window / window_bytes  ? Space::shared
                        : window == local_window / window_bytes ? Space::local
                        : window == param_window / window_bytes ? Space::param
                                                                : Space::global;
    const Places part = places_of(warp, space, use, space == Space::global ? addresses : inside, same, bytes);
    for_lanes(part.allowed, [&](int lane) { places.at[lane] = part.at[lane]; });
    places.allowed |= part.allowed;
    places.in_shared |= part.in_shared;
  }
  return places;
}

}  // namespace

std::string hexadecimal(std::uint64_t x) {
  char text[24];
  std::snprintf(text, sizeof(text), "0x%llx", static_cast<unsigned long long>(x));
  return text;
}

void addresses_of(Warp& warp, const Instruction& in, int slot, std::int64_t offset, std::uint64_t* addresses) {
  if (in.access.address_bytes == 4) {
    const std::uint32_t* base = warp.reg<std::uint32_t>(in.operand[slot]);
    for (int lane = 0; lane < warp_size; ++lane) addresses[lane] = base[lane] + static_cast<std::uint32_t>(offset);
  } else {
    const std::uint64_t* base = warp.reg<std::uint64_t>(in.operand[slot]);
    for (int lane = 0; lane < warp_size; ++lane) addresses[lane] = base[lane] + static_cast<std::uint64_t>(offset);
  }
}

bool shared_offset(Warp& warp, int lane, std::uint64_t address, std::uint32_t bytes, std::uint32_t& offset) {
  const std::uint64_t size = warp.block.shared.bytes();
  if (address < shared_start || address + bytes > shared_start + size || address + bytes < address) {
    warp.hazard("out of bounds", lane,
                std::to_string(bytes) + " bytes at " +
                    std::to_string(static_cast<std::int64_t>(address - shared_start)) + " of shared memory (" +
                    std::to_string(size) + " bytes)");
    return false;
  }
  if (address % bytes != 0) {
    warp.hazard("misaligned", lane,
                std::to_string(bytes) + " bytes at " + std::to_string(address - shared_start) +
                    " of shared memory, which is not a multiple of that");
    return false;
  }
  offset = static_cast<std::uint32_t>(address - shared_start);
  return true;
}

void report_fault(Warp& warp, Fault fault, int lane, std::uint32_t offset, std::uint32_t bytes) {
  if (fault == Fault::none) return;
  const std::string where = std::to_string(bytes) + " bytes at " + std::to_string(offset) + " of shared memory";
  const int other = warp.block.shared.other_warp();
  const std::string whom = other >= 0 ? "warp " + std::to_string(other) : std::string("other warps");
  switch (fault) {
    case Fault::unwritten:
      return warp.hazard("uninitialised", lane, "reads " + where + ", which nothing has written");
    case Fault::copy_pending:
      return warp.hazard("cp.async", lane, "reads " + where + ", whose cp.async was not yet waited for");
    case Fault::read_after_write:
      return warp.hazard("race", lane, "reads " + where + ", which " + whom + " wrote since the last barrier");
    case Fault::write_after_read:
      return warp.hazard("race", lane, "writes " + where + ", which " + whom + " read since the last barrier");
    case Fault::write_after_write:
      return warp.hazard("race", lane, "writes " + where + ", which " + whom + " wrote since the last barrier");
    default:
      return warp.hazard("cp.async", lane, "writes " + where + ", into which a cp.async is still under way");
  }
}

void write(Warp& warp, const Places& places, int lane, const std::byte* data, std::uint32_t bytes) {
  if (places.in_shared >> lane & 1) {
    SharedMemory& shared = warp.block.shared;
    const auto offset = static_cast<std::uint32_t>(places.at[lane] - shared.data(0));
    report_fault(warp, shared.on_write(warp.index, offset, bytes, data), lane, offset, bytes);
  }
  std::memcpy(places.at[lane], data, bytes);
}

Places places_of(Warp& warp, Space space, Use use, const std::uint64_t* addresses, std::uint32_t lanes,
                 std::uint32_t bytes) {
  Block& block = warp.block;
  switch (space) {
    case Space::global:
      return global_places(warp, use, addresses, lanes, bytes);
    case Space::shared:
      return shared_places(warp, use, addresses, lanes, bytes);
    case Space::local:
      return plain_places(warp, use, block.local.data(), block.launch.program->local_bytes,
                          block.launch.program->local_bytes, "local memory", addresses, lanes, bytes);
    case Space::param:
      return plain_places(warp, use, const_cast<std::byte*>(block.launch.parameters.data()), 0,
                          block.launch.parameters.size(), "the parameters", addresses, lanes, bytes);
    default:
      return generic_places(warp, use, addresses, lanes, bytes);
  }
}

}  // namespace ptx
