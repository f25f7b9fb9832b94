// Hazards and counters as JSON.
#include <cstdio>
#include <set>

#include <utility>

#include "emulator.h"
#include "host.h"

namespace ptx {
namespace {

std::string quoted(const std::string& text) {
  std::string result = "\"";
  for (const char c : text) {
    if (c == '"' || c == '\\') {
      result += '\\';
      result += c;
    } else if (static_cast<unsigned char>(c) < 0x20) {
      char code[8];
      std::snprintf(code, sizeof(code), "\\u%04x", c);
      result += code;
    } else {
      result += c;
    }
  }
  return result + '"';
}

std::string listed(const Index3& index) {
  return "[" + std::to_string(index.x) + ", " + std::to_string(index.y) + ", " + std::to_string(index.z) + "]";
}

std::string object(const Hazard& hazard) {
  return "{\"kind\": " + quoted(hazard.kind) + ", \"kernel\": " + quoted(hazard.kernel) +
         ", \"line\": " + std::to_string(hazard.line) + ", \"text\": " + quoted(hazard.text) +
         ", \"source\": " + quoted(hazard.source) + ", \"block\": " + listed(hazard.block) +
         ", \"thread\": " + listed(hazard.thread) + ", \"message\": " + quoted(hazard.message) +
         ", \"count\": " + std::to_string(hazard.count) + "}";
}

std::string fields(const Counters::Line& line) {
  return "\"issued\": " + std::to_string(line.issued) + ", \"lanes\": " + std::to_string(line.lanes) +
         ", \"wavefronts\": " + std::to_string(line.wavefronts) +
         ", \"ideal_wavefronts\": " + std::to_string(line.ideal) + ", \"sectors\": " + std::to_string(line.sectors) +
         ", \"bytes\": " + std::to_string(line.bytes);
}

// By class; only what occurred.
std::string by_class(const KernelCounters& kernel) {
  std::string result;
  for (int type = 0; type < static_cast<int>(Class::count); ++type) {
    Counters::Line sum;
    for (std::size_t i = 0; i < kernel.counters.lines.size(); ++i) {
      if (static_cast<int>(kernel.program->code[i].type) == type) sum += kernel.counters.lines[i];
    }
    if (sum.issued == 0) continue;
    result += (result.empty() ? "" : ", ") + quoted(class_names[type]) + ": {" + fields(sum) + "}";
  }
  return result;
}

std::string by_line(const KernelCounters& kernel) {
  std::string result;
  const auto& lines = kernel.program->module->text.lines;
  for (std::size_t i = 0; i < kernel.counters.lines.size(); ++i) {
    const int line = kernel.program->code[i].line;
    if (kernel.counters.lines[i].issued == 0 || line == 0) continue;
    std::string text = lines[line - 1];
    text.erase(0, text.find_first_not_of(" \t"));
    result += (result.empty() ? "" : ", ");
    result += "{\"line\": " + std::to_string(line) + ", \"text\": " + quoted(text) + ", " +
              fields(kernel.counters.lines[i]) + "}";
  }
  return result;
}

}  // namespace

std::string Emulator::take_hazards() {
  std::string result;
  for (const Hazard& hazard : hazards_.take()) result += (result.empty() ? "" : ", ") + object(hazard);
  return "[" + result + "]";
}

std::string Emulator::take_counters(bool lines) {
  std::string result;
  for (const auto& [name, kernel] : counters_) {
    result += (result.empty() ? "" : ", ") + quoted(name) + ": {\"launches\": " + std::to_string(kernel.launches) +
              ", \"blocks\": " + std::to_string(kernel.blocks) + ", \"threads\": " + std::to_string(kernel.threads) +
              ", \"shared_bytes\": " + std::to_string(kernel.dynamic_shared_bytes) + ", \"classes\": {" +
              by_class(kernel) + "}";
    if (lines) result += ", \"lines\": [" + by_line(kernel) + "]";
    result += "}";
  }
  counters_.clear();
  return "{" + result + "}";
}

std::string Emulator::take_calls() {
  std::string result;
  for (const HostCall& call : std::exchange(Host::instance().calls, {})) {
    result += (result.empty() ? "" : ", ") + std::string("{\"name\": ") + quoted(call.name) +
              ", \"kernel\": " + quoted(call.kernel) + ", \"device\": " + std::to_string(call.device) +
              ", \"stream\": " + std::to_string(call.stream) + "}";
  }
  return "[" + result + "]";
}

}  // namespace ptx
