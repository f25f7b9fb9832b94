#include "shared_memory.h"

#include <algorithm>
#include <cstring>

namespace ptx {

void SharedMemory::start(std::uint32_t bytes, int warps) {
  bytes_ = bytes;
  warps_ = warps;
  const std::size_t rounded = (bytes + page - 1) / page * page;
  memory_.assign(rounded, std::byte{0xff});  // as fp32, bf16 or fp16: NaN
  state_.assign(rounded, never);
  writer_.assign(rounded, 0);
  reader_.assign(rounded, 0);
  write_clock_.assign(rounded, 1);
  read_clock_.assign(rounded, 1);
  dirty_.assign(rounded / page, 0);
  partial_ = false;
  std::memset(clock_, 0, sizeof(clock_));
  for (int w = 0; w < max_warps; ++w) clock_[w][w] = 1;
}

void SharedMemory::touch(std::uint32_t offset, std::uint32_t bytes) {
  dirty_[offset / page] = 1;
  dirty_[(offset + bytes - 1) / page] = 1;
}

bool SharedMemory::ordered(int warp, std::uint8_t who, std::uint16_t clock) const {
  const int by = who & owner;
  if (by == 0 || by == warp + 1) return true;
  return partial_ && (by == several || clock <= clock_[warp][by - 1]);
}

Fault SharedMemory::judge_read(int warp, std::uint32_t at) {
  const auto self = static_cast<std::uint8_t>(warp + 1);
  Fault fault = Fault::none;
  if (state_[at] != valid) fault = state_[at] == never ? Fault::unwritten : Fault::copy_pending;
  if (!ordered(warp, writer_[at], write_clock_[at])) {
    note_other(writer_[at]);
    fault = Fault::read_after_write;
  }
  const bool alone = reader_[at] != several && ordered(warp, reader_[at], read_clock_[at]);
  reader_[at] = alone ? self : several;
  read_clock_[at] = clock_[warp][warp];
  return fault;
}

// Whether a word was written before the last barrier or by this warp, and notes the reader, if that is all there is to
// do.
bool SharedMemory::read_word(std::uint32_t self, std::uint32_t at) {
  std::uint32_t state, writer, reader;
  std::memcpy(&state, &state_[at], 4);
  std::memcpy(&writer, &writer_[at], 4);
  std::memcpy(&reader, &reader_[at], 4);
  if (state != 0x01010101u * valid || (writer != 0 && writer != self) || partial_) return false;
  if (reader == self || reader == 0x01010101u * several) return true;
  if (reader != 0 && reader != 0x01010101u * (reader & 0xff)) return false;
  const std::uint32_t now = reader == 0 ? self : 0x01010101u * several;
  std::memcpy(&reader_[at], &now, 4);
  return true;
}

Fault SharedMemory::on_read(int warp, std::uint32_t offset, std::uint32_t bytes) {
  const std::uint32_t self = 0x01010101u * (warp + 1);
  Fault fault = Fault::none;
  touch(offset, bytes);
  for (std::uint32_t at = offset; at < offset + bytes;) {
    if (at % 4 == 0 && at + 4 <= offset + bytes && read_word(self, at)) {
      at += 4;
      continue;
    }
    const Fault found = judge_read(warp, at++);
    if (fault == Fault::none) fault = found;
  }
  return fault;
}

Fault SharedMemory::judge_write(int warp, std::uint32_t at, std::uint8_t as, bool same) {
  Fault fault = Fault::none;
  if (state_[at] == pending) fault = Fault::overwrites_copy;
  const bool both_atomic = (as & by_atomic) && (writer_[at] & by_atomic);
  if (!both_atomic && !same && !ordered(warp, writer_[at], write_clock_[at])) {
    note_other(writer_[at]);
    fault = Fault::write_after_write;
  } else if (!ordered(warp, reader_[at], read_clock_[at])) {
    note_other(reader_[at]);
    fault = Fault::write_after_read;
  }
  return fault;
}

Fault SharedMemory::write_as(int warp, std::uint32_t offset, std::uint32_t bytes, std::uint8_t as,
                             const std::byte* data) {
  const auto self = static_cast<std::uint8_t>(warp + 1);
  Fault fault = Fault::none;
  touch(offset, bytes);
  for (std::uint32_t at = offset; at < offset + bytes; ++at) {
    const bool mine = (writer_[at] == 0 || writer_[at] == self) && (reader_[at] == 0 || reader_[at] == self);
    if (mine && state_[at] != pending) continue;
    const bool same = data != nullptr && state_[at] == valid && data[at - offset] == memory_[at];
    const Fault found = judge_write(warp, at, as, same);
    if (fault == Fault::none) fault = found;
  }
  if (as & by_atomic) {
    for (std::uint32_t at = offset; at < offset + bytes; ++at) {
      const bool shares = (writer_[at] & by_atomic) && writer_[at] != as;
      writer_[at] = shares ? by_atomic | several : as;
    }
  } else {
    std::memset(&writer_[offset], as, bytes);
  }
  if (partial_) std::fill_n(&write_clock_[offset], bytes, clock_[warp][warp]);
  return fault;
}

Fault SharedMemory::on_write(int warp, std::uint32_t offset, std::uint32_t bytes, const std::byte* data) {
  const Fault fault = write_as(warp, offset, bytes, static_cast<std::uint8_t>(warp + 1), data);
  std::memset(&state_[offset], valid, bytes);
  return fault;
}

Fault SharedMemory::on_atomic(int warp, std::uint32_t offset, std::uint32_t bytes) {
  Fault fault = Fault::none;
  for (std::uint32_t at = offset; at < offset + bytes && fault == Fault::none; ++at) {
    if (state_[at] != valid) fault = state_[at] == never ? Fault::unwritten : Fault::copy_pending;
  }
  const Fault race = write_as(warp, offset, bytes, static_cast<std::uint8_t>(by_atomic | (warp + 1)), nullptr);
  std::memset(&state_[offset], valid, bytes);
  return fault == Fault::none ? race : fault;
}

Fault SharedMemory::on_copy(int warp, std::uint32_t offset, std::uint32_t bytes) {
  const Fault fault = write_as(warp, offset, bytes, static_cast<std::uint8_t>(warp + 1), nullptr);
  std::memset(&state_[offset], pending, bytes);
  std::memset(memory_.data() + offset, 0xff, bytes);
  return fault;
}

void SharedMemory::on_copy_done(int warp, std::uint32_t offset, std::uint32_t bytes) {
  touch(offset, bytes);
  std::memset(&state_[offset], valid, bytes);
  std::memset(&writer_[offset], warp + 1, bytes);
  if (partial_) std::fill_n(&write_clock_[offset], bytes, clock_[warp][warp]);
}

void SharedMemory::barrier_of_all() {
  for (std::size_t p = 0; p < dirty_.size(); ++p) {
    if (!dirty_[p]) continue;
    std::memset(&writer_[p * page], 0, page);
    std::memset(&reader_[p * page], 0, page);
    dirty_[p] = 0;
  }
  if (!partial_) return;
  partial_ = false;
  std::fill(write_clock_.begin(), write_clock_.end(), 1);
  std::fill(read_clock_.begin(), read_clock_.end(), 1);
  std::memset(clock_, 0, sizeof(clock_));
  for (int w = 0; w < max_warps; ++w) clock_[w][w] = 1;
}

void SharedMemory::barrier_of(std::uint32_t arrived, std::uint32_t synced) {
  std::uint16_t joined[max_warps] = {};
  bool overflows = false;
  for (int w = 0; w < warps_; ++w) {
    if (!(arrived >> w & 1)) continue;
    for (int other = 0; other < warps_; ++other) joined[other] = std::max(joined[other], clock_[w][other]);
    overflows |= clock_[w][w] == 0xffff;
  }
  if (overflows) return barrier_of_all();  // forgets what it should still know, after 65535 partial barriers
  partial_ = true;
  for (int w = 0; w < warps_; ++w) {
    if (synced >> w & 1) {
      for (int other = 0; other < warps_; ++other) clock_[w][other] = std::max(clock_[w][other], joined[other]);
    }
    if (arrived >> w & 1) ++clock_[w][w];
  }
}

}  // namespace ptx
