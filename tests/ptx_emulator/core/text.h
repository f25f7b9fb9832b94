// PTX text as a tree: variables, kernels, statements. Names of registers are already numbers; nothing else is judged.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <vector>

namespace ptx {

struct Operand {
  enum class Kind { reg, name, integer, f32, f64, address, vector, sink };
  Kind kind = Kind::sink;
  bool negated = false;    // !%p
  int reg = -1;            // index into Kernel::registers; of an address: its base
  int second = -1;         // the predicate of %r|%p
  std::string name;        // variable, label or special register; of an address: its base
  std::int64_t value = 0;  // integer, bits of a float, or offset of an address or a name
  std::vector<Operand> parts;
};

struct Statement {
  int line = 0;         // of the PTX text, from 1
  int source_file = 0;  // of .loc, 0 where there is none
  int source_line = 0;
  int scope = 0;
  int guard = -1;  // predicate register
  bool guard_negated = false;
  std::string opcode;
  std::vector<Operand> operands;
};

struct Variable {
  std::string name;
  std::string space;  // "global", "shared", "local", "const", "param"
  std::int64_t bytes = 0;
  int alignment = 1;
  bool external = false;  // .extern: dynamic shared memory
  std::vector<std::uint8_t> initial;
};

struct Register {
  std::string name;
  int bytes = 0;  // 0: predicate
};

struct Kernel {
  std::string name;
  std::vector<Variable> parameters;
  std::vector<Variable> variables;  // declared in the body: shared, local
  std::vector<Register> registers;
  std::vector<Statement> statements;
  std::map<std::pair<int, std::string>, int> labels;  // (scope, name) -> index of the statement that follows
  std::vector<int> scope_parents;                     // by scope
  std::map<std::string, std::vector<std::string>> branch_targets;
  int required_threads[3] = {0, 0, 0};  // .reqntid; 0: not given
  int maximum_threads = 0;              // .maxntid; 0: not given
};

struct Module {
  std::string target;  // "sm_80"
  std::vector<Variable> variables;
  std::vector<Kernel> kernels;
  std::map<int, std::string> files;  // of .file
  std::vector<std::string> lines;    // the text itself, for messages
};

Module parse(std::string_view text);

}  // namespace ptx
