// From a statement's text to an Instruction: what the files of instructions need to describe theirs.
#pragma once

#include <initializer_list>
#include <map>
#include <optional>
#include <string>
#include <unordered_map>
#include <vector>

#include "program.h"

namespace ptx {

enum class Type : std::uint8_t {
  pred,
  b8,
  u8,
  s8,
  b16,
  u16,
  s16,
  f16,
  bf16,
  b32,
  u32,
  s32,
  f32,
  f16x2,
  bf16x2,
  tf32,
  b64,
  u64,
  s64,
  f64
};
int bytes_of(Type type);  // per lane; 0: a predicate
bool is_signed(Type type);
std::optional<Type> type_named(std::string_view name);

// An opcode taken apart at its dots. What nobody took is a modifier that the emulator does not know.
class Form {
 public:
  explicit Form(const std::string& opcode);
  const std::string& base() const { return parts_[0]; }
  bool take(std::string_view name);
  // The first of these that is there; empty if none.
  std::string take_one(std::initializer_list<const char*> names);
  Type take_type();
  bool has_type() const;
  bool empty() const { return parts_.size() == 1; }

 private:
  std::vector<std::string> parts_;
};

class Decoder {
 public:
  Decoder(const Kernel& kernel, LoadedModule& module);
  Program program();

  // For the files of instructions ------------------------------------------------------------------------------------
  Form form{""};
  Instruction instruction;

  [[noreturn]] void fail(const std::string& why) const;
  int operands() const { return static_cast<int>(statement_->operands.size()); }
  const Operand& operand(int index) const;
  bool is_vector(int index) const { return operand(index).kind == Operand::Kind::vector; }
  bool is_immediate(int index) const { return operand(index).kind == Operand::Kind::integer; }
  std::int64_t immediate(int index) const;
  bool is_register(int index) const { return operand(index).kind == Operand::Kind::reg; }
  int register_bytes(int index) const { return register_bytes(operand(index)); }
  int register_bytes(const Operand& operand) const;

  // Offsets into the file of a register, or of a constant, with exactly the bytes of the type.
  std::uint32_t source(int index, Type type) { return source(operand(index), bytes_of(type)); }
  std::uint32_t source(const Operand& operand, int bytes);
  std::uint32_t destination(int index, Type type) { return destination(operand(index), bytes_of(type)); }
  std::uint32_t destination(const Operand& operand, int bytes);
  std::uint32_t second_destination(int index);  // the predicate of %r|%p
  // [base + offset]: base goes to instruction.operand[slot], the offset is returned.
  std::int64_t address(int index, int slot);
  std::uint32_t constant(std::uint64_t value, int bytes);
  const std::uint32_t* list(std::vector<std::uint32_t> offsets);
  int target(int index) const;
  std::vector<int> targets(int index) const;

  void has(int count) const;  // operands
  void uses_global_atomics() { program_.has_global_atomics = true; }

 private:
  friend Program decode(const Kernel&, LoadedModule&);
  void lay_out();
  void place(const Variable& variable, std::uint32_t& at);
  void decode_statement(const Statement& statement);
  std::uint32_t register_at(int reg);
  std::uint32_t allocate(int bytes);
  std::uint32_t named(const Operand& operand, int bytes);
  int find_label(const std::string& name) const;

  const Kernel& kernel_;
  LoadedModule& module_;
  Program program_;
  const Statement* statement_ = nullptr;
  std::vector<std::uint32_t> offsets_;  // by register; 0: not used yet
  std::map<std::pair<std::uint64_t, int>, std::uint32_t> constants_;
  std::map<std::pair<std::string, int>, std::uint32_t> specials_;
  std::unordered_map<std::string, std::uint64_t> addresses_;  // of variables, in their space
};

using Decode = void (*)(Decoder&);
using DecodeTable = std::unordered_map<std::string, Decode>;
const DecodeTable& decode_table();

// Each adds its instructions, by the opcode's first word.
void add_integer(DecodeTable& table);
void add_bits(DecodeTable& table);
void add_float(DecodeTable& table);
void add_half(DecodeTable& table);
void add_approximate(DecodeTable& table);
void add_convert(DecodeTable& table);
void add_compare(DecodeTable& table);
void add_move(DecodeTable& table);
void add_control(DecodeTable& table);
void add_exchange(DecodeTable& table);
void add_memory(DecodeTable& table);
void add_atomic(DecodeTable& table);
void add_async(DecodeTable& table);
void add_matrix(DecodeTable& table);

}  // namespace ptx
