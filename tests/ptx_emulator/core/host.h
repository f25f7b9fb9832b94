// What host code does to the devices, beside what its kernels compute: which device is current, what it calls, on which
// stream, and what a graph that is being captured keeps for its replays. There are two devices, alike.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

namespace ptx {

struct HostCall {
  std::string name, kernel;
  int device;  // that it concerns
  std::uint64_t stream;
};

class Host {
 public:
  static constexpr int devices = 2;
  static Host& instance();

  // Streams of device d are numbers from 256 (d + 1) on, below 256 (d + 2); 0 is the current device's default stream.
  static int device_of(std::uint64_t stream) { return static_cast<int>(stream / 256) - 1; }

  // Work for a stream: done at once, or kept where that stream is being captured. Throws Error where CUDA would refuse
  // the stream.
  void submit(std::uint64_t stream, std::function<void()> work);
  void begin_capture(std::uint64_t stream);
  void end_capture();
  void replay() const;

  int current_device = 0;
  int device_of_tensors = 0;                  // of all tensors, as torch says
  std::uint64_t torch_streams[devices] = {};  // torch's current stream of each device
  std::vector<HostCall> calls;

 private:
  bool capturing_ = false;
  std::uint64_t captured_stream_ = 0;
  std::vector<std::function<void()>> graph_;
};

}  // namespace ptx
