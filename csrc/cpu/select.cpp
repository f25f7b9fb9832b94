// Which compiled target serves this process.
#include <atomic>
#include <cstdlib>
#include <stdexcept>

#include "compiled_targets.h"
#include "cpu/cpu.h"
#include "cpu/features.h"

namespace bigmodel::cpu {

#define BIGMODEL_DECLARE(name)           \
  namespace name {                       \
  extern const KernelTable kernel_table; \
  }
BIGMODEL_COMPILED_TARGETS(BIGMODEL_DECLARE)
#undef BIGMODEL_DECLARE

namespace {

#define BIGMODEL_ADDRESS(name) &name::kernel_table,
constexpr const KernelTable* tables[] = {BIGMODEL_COMPILED_TARGETS(BIGMODEL_ADDRESS)};
#undef BIGMODEL_ADDRESS

std::atomic<const KernelTable*> active{nullptr};

std::string joined(const std::vector<std::string>& names) {
  std::string text;
  for (const std::string& name : names) text += (text.empty() ? "" : ", ") + name;
  return text;
}

const KernelTable* find(const std::string& name) {
  for (const KernelTable* table : tables) {
    if (name != table->target) continue;
    if (machine_supports(name)) return table;
    throw std::invalid_argument("[cpu_target] '" + name + "' needs instructions that this processor lacks; it runs: " +
                                joined(supported_targets()));
  }
  throw std::invalid_argument("[cpu_target] '" + name +
                              "' is not a CPU target of this build; it has: " + joined(compiled_targets()));
}

const KernelTable* choose() {
  if (const char* forced = std::getenv("BIGMODEL_CPU_TARGET"); forced && *forced) return find(forced);
  return find(supported_targets().front());
}

}  // namespace

std::vector<std::string> compiled_targets() {
  std::vector<std::string> names;
  for (const KernelTable* table : tables) names.emplace_back(table->target);
  return names;
}

std::vector<std::string> supported_targets() {
  std::vector<std::string> names;
  for (const KernelTable* table : tables) {
    if (machine_supports(table->target)) names.emplace_back(table->target);
  }
  return names;
}

const KernelTable& kernels() {
  const KernelTable* table = active.load(std::memory_order_acquire);
  if (!table) {
    table = choose();
    active.store(table, std::memory_order_release);
  }
  return *table;
}

void set_target(const std::string& name) { active.store(find(name), std::memory_order_release); }

}  // namespace bigmodel::cpu
