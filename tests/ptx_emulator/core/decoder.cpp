#include "decoder.h"

#include <algorithm>
#include <bit>
#include <unordered_set>

#include "error.h"
#include "names.h"

namespace ptx {
namespace {

struct TypeFacts {
  const char* name;
  Type type;
  int bytes;
};
constexpr TypeFacts types[] = {
    {"pred", Type::pred, 0}, {"b8", Type::b8, 1},       {"u8", Type::u8, 1},         {"s8", Type::s8, 1},
    {"b16", Type::b16, 2},   {"u16", Type::u16, 2},     {"s16", Type::s16, 2},       {"f16", Type::f16, 2},
    {"bf16", Type::bf16, 2}, {"b32", Type::b32, 4},     {"u32", Type::u32, 4},       {"s32", Type::s32, 4},
    {"f32", Type::f32, 4},   {"f16x2", Type::f16x2, 4}, {"bf16x2", Type::bf16x2, 4}, {"tf32", Type::tf32, 4},
    {"b64", Type::b64, 8},   {"u64", Type::u64, 8},     {"s64", Type::s64, 8},       {"f64", Type::f64, 8}};

std::uint32_t align(std::uint32_t at, std::uint32_t alignment) { return (at + alignment - 1) / alignment * alignment; }

// Names that a kernel's instructions mention.
void collect_names(const Operand& operand, std::unordered_set<std::string>& names) {
  if (!operand.name.empty()) names.insert(operand.name);
  for (const Operand& part : operand.parts) collect_names(part, names);
}

}  // namespace

int bytes_of(Type type) { return types[static_cast<int>(type)].bytes; }

bool is_signed(Type type) { return type == Type::s8 || type == Type::s16 || type == Type::s32 || type == Type::s64; }

std::optional<Type> type_named(std::string_view name) {
  for (const TypeFacts& each : types) {
    if (name == each.name) return each.type;
  }
  return std::nullopt;
}

Form::Form(const std::string& opcode) {
  for (std::size_t start = 0; start <= opcode.size();) {
    const std::size_t end = std::min(opcode.find('.', start), opcode.size());
    parts_.push_back(opcode.substr(start, end - start));
    start = end + 1;
  }
}

bool Form::take(std::string_view name) {
  const auto found = std::find(parts_.begin() + 1, parts_.end(), name);
  if (found == parts_.end()) return false;
  parts_.erase(found);
  return true;
}

std::string Form::take_one(std::initializer_list<const char*> names) {
  for (const char* name : names) {
    if (take(name)) return name;
  }
  return "";
}

bool Form::has_type() const {
  return std::any_of(parts_.begin() + 1, parts_.end(), [](const std::string& part) { return type_named(part); });
}

Type Form::take_type() {
  for (auto part = parts_.begin() + 1; part != parts_.end(); ++part) {
    if (const auto type = type_named(*part)) {
      parts_.erase(part);
      return *type;
    }
  }
  throw Error("no type in it");
}

const DecodeTable& decode_table() {
  static const DecodeTable table = [] {
    DecodeTable made;
    for (auto add : {add_integer, add_bits, add_float, add_half, add_approximate, add_convert, add_compare, add_move,
                     add_control, add_exchange, add_memory, add_atomic, add_async, add_matrix}) {
      add(made);
    }
    return made;
  }();
  return table;
}

Decoder::Decoder(const Kernel& kernel, LoadedModule& module) : kernel_(kernel), module_(module) {
  offsets_.resize(kernel.registers.size(), 0);
  program_.file_bytes = 64;  // offset 0 means none
  program_.name = readable(kernel.name);
  program_.module = &module;
  program_.parameters = kernel.parameters;
  program_.registers = static_cast<std::uint32_t>(kernel.registers.size());
  std::copy_n(kernel.required_threads, 3, program_.required_threads);
  program_.maximum_threads = kernel.maximum_threads;
  lay_out();
}

void Decoder::place(const Variable& variable, std::uint32_t& at) {
  at = align(at, variable.alignment);
  addresses_[variable.name] = at;
  at += static_cast<std::uint32_t>(variable.bytes);
}

// Where variables and parameters lie. All dynamic shared memory begins where the static one ends. A module's shared
// variables are all its kernels', and each kernel gets those that it mentions.
void Decoder::lay_out() {
  std::unordered_set<std::string> mentioned;
  for (const Statement& statement : kernel_.statements) {
    for (const Operand& operand : statement.operands) collect_names(operand, mentioned);
  }
  std::uint32_t shared = shared_start, local = 0, parameters = 0;
  std::vector<const Variable*> dynamic;
  const auto add = [&](const Variable& variable) {
    if (variable.space == "shared" && !mentioned.contains(variable.name)) return;
    if (variable.space == "shared" && variable.external) {
      dynamic.push_back(&variable);
    } else if (variable.space == "shared") {
      place(variable, shared);
    } else if (variable.space == "local") {
      place(variable, local);
    } else {
      addresses_[variable.name] = reinterpret_cast<std::uint64_t>(module_.globals.at(variable.name).get());
    }
  };
  for (const Variable& variable : module_.text.variables) add(variable);
  for (const Variable& variable : kernel_.variables) add(variable);
  for (const Variable* variable : dynamic) shared = align(shared, std::max(variable->alignment, 16));
  for (const Variable* variable : dynamic) addresses_[variable->name] = shared;
  for (const Variable& parameter : kernel_.parameters) {
    place(parameter, parameters);
    program_.parameter_offsets.push_back(parameters - static_cast<std::uint32_t>(parameter.bytes));
  }
  program_.static_shared_bytes = shared - shared_start;
  program_.local_bytes = align(local, 16);
  program_.parameter_bytes = parameters;
}

Program Decoder::program() {
  for (const Statement& statement : kernel_.statements) decode_statement(statement);
  Statement end;  // for text that ends without ret
  end.opcode = "ret";
  decode_statement(end);
  program_.file_bytes = align(program_.file_bytes, 64);
  return std::move(program_);
}

void Decoder::decode_statement(const Statement& statement) {
  statement_ = &statement;
  form = Form(statement.opcode);
  instruction = Instruction();
  instruction.line = statement.line;
  instruction.source_file = statement.source_file;
  instruction.source_line = statement.source_line;
  const auto found = decode_table().find(form.base());
  if (found == decode_table().end()) fail("it is not known");
  try {
    found->second(*this);
  } catch (const Error& error) {
    if (std::string(error.what()).find("line ") != std::string::npos) throw;
    fail(std::string(error.what()).substr(std::string("[ptx_emulator] ").size()));
  }
  if (!form.empty()) fail("it has a modifier that is not known");
  if (statement.guard >= 0) {
    instruction.guard = register_at(statement.guard);
    instruction.guard_negated = statement.guard_negated;
  }
  program_.code.push_back(instruction);
}

void Decoder::fail(const std::string& why) const {
  throw Error("line " + std::to_string(statement_->line) + ": instruction " + statement_->opcode + ": " + why);
}

const Operand& Decoder::operand(int index) const {
  if (index >= operands()) fail("too few operands");
  return statement_->operands[index];
}

std::int64_t Decoder::immediate(int index) const {
  if (!is_immediate(index)) fail("operand " + std::to_string(index) + " should be an integer");
  return operand(index).value;
}

void Decoder::has(int count) const {
  if (operands() != count) fail("expected " + std::to_string(count) + " operands, not " + std::to_string(operands()));
}

int Decoder::register_bytes(const Operand& operand) const {
  if (operand.kind == Operand::Kind::sink) return 8;
  if (operand.kind != Operand::Kind::reg) fail("expected a register");
  return kernel_.registers[operand.reg].bytes;
}

std::uint32_t Decoder::allocate(int bytes) {
  const std::uint32_t offset = program_.file_bytes;
  program_.file_bytes += bytes == 0 ? 4 : bytes * warp_size;
  return offset;
}

std::uint32_t Decoder::register_at(int reg) {
  if (offsets_[reg] == 0) {
    const int bytes = kernel_.registers[reg].bytes;
    if (bytes) program_.file_bytes = align(program_.file_bytes, 32);
    offsets_[reg] = allocate(bytes);
  }
  return offsets_[reg];
}

std::uint32_t Decoder::constant(std::uint64_t value, int bytes) {
  if (bytes > 0 && bytes < 8) value &= (1ull << (8 * bytes)) - 1;
  std::uint32_t& offset = constants_[{value, bytes}];
  if (offset == 0) {
    program_.file_bytes = align(program_.file_bytes, 32);
    offset = allocate(bytes);
    program_.constants.push_back({offset, static_cast<std::uint8_t>(bytes), value});
  }
  return offset;
}

std::uint32_t Decoder::named(const Operand& operand, int bytes) {
  if (operand.name.starts_with('%')) {
    std::uint32_t& offset = specials_[{operand.name, bytes}];
    if (offset == 0) {
      program_.file_bytes = align(program_.file_bytes, 32);
      offset = allocate(bytes);
      program_.specials.push_back({offset, static_cast<std::uint8_t>(bytes), operand.name});
    }
    return offset;
  }
  if (operand.name == "WARP_SZ") return constant(warp_size, bytes);
  const auto found = addresses_.find(operand.name);
  if (found == addresses_.end()) fail("'" + operand.name + "' is not declared");
  return constant(found->second + operand.value, bytes);
}

std::uint32_t Decoder::source(const Operand& operand, int bytes) {
  switch (operand.kind) {
    case Operand::Kind::reg:
      if (kernel_.registers[operand.reg].bytes != bytes) {
        fail("register " + operand.name + " is not of " + std::to_string(bytes) + " bytes");
      }
      return register_at(operand.reg);
    case Operand::Kind::integer:
      return constant(operand.value, bytes);
    case Operand::Kind::f32:
      if (bytes != 4) fail("a float of 4 bytes where others are expected");
      return constant(operand.value, 4);
    case Operand::Kind::f64:
      if (bytes == 4)
        return constant(std::bit_cast<std::uint32_t>(static_cast<float>(std::bit_cast<double>(operand.value))), 4);
      return constant(operand.value, bytes);
    case Operand::Kind::name:
      return named(operand, bytes);
    default:
      fail("expected a register or a constant");
  }
}

std::uint32_t Decoder::destination(const Operand& operand, int bytes) {
  if (operand.kind == Operand::Kind::sink) {
    program_.file_bytes = align(program_.file_bytes, 32);
    return allocate(8);
  }
  if (operand.kind != Operand::Kind::reg) fail("expected a register to write to");
  return source(operand, bytes);
}

std::uint32_t Decoder::second_destination(int index) {
  const int reg = operand(index).second;
  return reg < 0 ? 0 : register_at(reg);
}

std::int64_t Decoder::address(int index, int slot) {
  const Operand& at = operand(index);
  if (at.kind != Operand::Kind::address) fail("operand " + std::to_string(index) + " should be an address in brackets");
  if (at.reg >= 0) {
    const int bytes = kernel_.registers[at.reg].bytes;
    if (bytes != 4 && bytes != 8) fail("an address needs a register of 4 or 8 bytes");
    instruction.access.address_bytes = static_cast<std::uint8_t>(bytes);
    instruction.operand[slot] = register_at(at.reg);
    return at.value;
  }
  instruction.access.address_bytes = 8;
  std::uint64_t base = at.value;
  if (!at.name.empty()) {
    const auto found = addresses_.find(at.name);
    if (found == addresses_.end()) fail("'" + at.name + "' is not declared");
    base += found->second;
  }
  instruction.operand[slot] = constant(base, 8);
  return 0;
}

const std::uint32_t* Decoder::list(std::vector<std::uint32_t> offsets) {
  program_.lists.push_back(std::move(offsets));
  return program_.lists.back().data();
}

int Decoder::find_label(const std::string& name) const {
  for (int scope = statement_->scope; scope >= 0; scope = kernel_.scope_parents[scope]) {
    if (const auto found = kernel_.labels.find({scope, name}); found != kernel_.labels.end()) return found->second;
  }
  fail("label " + name + " is not there");
}

int Decoder::target(int index) const { return find_label(operand(index).name); }

std::vector<int> Decoder::targets(int index) const {
  const auto found = kernel_.branch_targets.find(operand(index).name);
  if (found == kernel_.branch_targets.end()) fail("expected a list of .branchtargets");
  std::vector<int> result;
  for (const std::string& name : found->second) result.push_back(find_label(name));
  return result;
}

Program decode(const Kernel& kernel, LoadedModule& module) { return Decoder(kernel, module).program(); }

}  // namespace ptx
