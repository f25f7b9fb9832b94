#include "host.h"

#include <string>
#include <utility>

#include "error.h"

namespace ptx {

Host& Host::instance() {
  static Host host;
  return host;
}

void Host::submit(std::uint64_t stream, std::function<void()> work) {
  if (stream != 0 && device_of(stream) != current_device) {
    throw Error("stream " + std::to_string(stream) + " is none of device " + std::to_string(current_device) +
                ", which is current");
  }
  if (!capturing_) return work();
  if (stream != captured_stream_) {
    throw Error("stream " + std::to_string(stream) + " is used while stream " + std::to_string(captured_stream_) +
                " is being captured");
  }
  graph_.push_back(std::move(work));
}

void Host::begin_capture(std::uint64_t stream) {
  graph_.clear();
  captured_stream_ = stream;
  capturing_ = true;
}

void Host::end_capture() { capturing_ = false; }

void Host::replay() const {
  for (const auto& work : graph_) work();
}

}  // namespace ptx
