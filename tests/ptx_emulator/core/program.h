// A kernel ready to run: one Instruction per statement, registers and constants at fixed places of a warp's file.
#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "text.h"

namespace ptx {

class Warp;
struct Instruction;
using Handler = void (*)(Warp&, const Instruction&);

inline constexpr int warp_size = 32;
inline constexpr std::uint32_t all_lanes = 0xffffffffu;

// What the counters call an instruction.
enum class Class : std::uint8_t {
  integer,
  fp32,
  half,
  fp64,
  special,
  convert,
  compare,
  move,
  branch,
  barrier,
  shuffle,
  load_global,
  store_global,
  load_shared,
  store_shared,
  local,
  param,
  ldmatrix,
  mma,
  cp_async,
  atomic,
  other,
  count
};
inline constexpr const char* class_names[] = {
    "integer", "fp32",     "half",    "fp64",        "special",      "convert",     "compare",      "move",
    "branch",  "barrier",  "shuffle", "load_global", "store_global", "load_shared", "store_shared", "local",
    "param",   "ldmatrix", "mma",     "cp_async",    "atomic",       "other"};
static_assert(sizeof(class_names) / sizeof(*class_names) == static_cast<std::size_t>(Class::count));

enum class Space : std::uint8_t { generic, global, shared, local, param };

// How memory is touched: by ld, st, atom, cp.async, ldmatrix.
struct Access {
  Space space = Space::generic;
  std::uint8_t bytes = 4;           // of one element
  std::uint8_t elements = 1;        // 1, 2, 4, 8
  std::uint8_t register_bytes = 4;  // of the register that holds an element
  std::uint8_t address_bytes = 8;
  bool is_signed = false;
};

// Operands are offsets into the warp's file. 32 lanes stand side by side there; a predicate is one 32-bit mask.
struct Instruction {
  Handler handler = nullptr;
  std::uint32_t operand[4] = {0, 0, 0, 0};  // usually d, a, b, c
  std::int64_t immediate = 0;
  const std::uint32_t* list = nullptr;  // further operands: of vectors, matrices
  Access access;
  std::uint32_t guard = 0;  // offset of a predicate; 0: none
  bool guard_negated = false;
  bool flag = false;  // a choice of the handler's own
  Class type = Class::other;
  std::uint8_t choice = 0;  // likewise
  int line = 0;
  int source_file = 0, source_line = 0;
};

// Values that every warp finds in its file before it starts.
struct Constant {
  std::uint32_t offset;
  std::uint8_t bytes;  // per lane; 0: a predicate
  std::uint64_t value;
};
struct SpecialRegister {
  std::uint32_t offset;
  std::uint8_t bytes;
  std::string name;
};

struct Program {
  std::string name;
  std::vector<Instruction> code;
  std::uint32_t file_bytes = 0;
  std::vector<Constant> constants;
  std::vector<SpecialRegister> specials;
  std::deque<std::vector<std::uint32_t>> lists;
  std::vector<Variable> parameters;
  std::vector<std::uint32_t> parameter_offsets;
  std::uint32_t parameter_bytes = 0;
  std::uint32_t static_shared_bytes = 0;  // dynamic shared memory begins here
  std::uint32_t local_bytes = 0;
  std::uint32_t registers = 0;
  int required_threads[3] = {0, 0, 0};
  int maximum_threads = 0;
  bool has_global_atomics = false;
  const struct LoadedModule* module = nullptr;
};

// A module and the memory of its variables.
struct LoadedModule {
  Module text;
  std::map<std::string, std::unique_ptr<std::byte[]>> globals;
  std::map<std::string, Program> programs;
};

inline constexpr std::uint32_t shared_start = 1024;  // the device keeps what is below for itself
inline constexpr std::uint64_t shared_window = 0x0001'0000'0000'0000;
inline constexpr std::uint64_t local_window = 0x0002'0000'0000'0000;
inline constexpr std::uint64_t param_window = 0x0003'0000'0000'0000;
inline constexpr std::uint64_t window_bytes = 0x0001'0000'0000'0000;

Program decode(const Kernel& kernel, LoadedModule& module);

}  // namespace ptx
