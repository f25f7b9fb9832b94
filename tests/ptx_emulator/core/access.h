// From addresses of lanes to memory of the host, with every check on the way.
#pragma once

#include "block.h"
#include "lanes.h"

namespace ptx {

enum class Use : std::uint8_t { read, write, atomic };

// Where the lanes of one access find their bytes. Lanes that must not touch memory are missing from `allowed`. Writes
// to shared memory are judged when their data is known: by write().
struct Places {
  std::byte* at[warp_size];
  std::uint32_t allowed = 0;
  std::uint32_t in_shared = 0;
};

// The lanes' addresses: register + offset.
void addresses_of(Warp& warp, const Instruction& in, int slot, std::int64_t offset, std::uint64_t* addresses);

// bytes: of the whole access of a lane. Counts the access too.
Places places_of(Warp& warp, Space space, Use use, const std::uint64_t* addresses, std::uint32_t lanes,
                 std::uint32_t bytes);

// Writes a lane's data to its place.
void write(Warp& warp, const Places& places, int lane, const std::byte* data, std::uint32_t bytes);
void report_fault(Warp& warp, Fault fault, int lane, std::uint32_t offset, std::uint32_t bytes);
// Whether [address, address + bytes) lies in shared memory, aligned; reports if not. offset: from shared_start.
bool shared_offset(Warp& warp, int lane, std::uint64_t address, std::uint32_t bytes, std::uint32_t& offset);

std::string hexadecimal(std::uint64_t x);

}  // namespace ptx
