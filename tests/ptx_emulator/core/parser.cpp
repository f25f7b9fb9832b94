// PTX's grammar, as far as compilers emit it: directives of a module, kernels, statements with their operands.
#include <cstdlib>

#include "error.h"
#include "lexer.h"
#include "text.h"

namespace ptx {
namespace {

const std::map<std::string, int> type_bytes = {{".b8", 1},  {".u8", 1},  {".s8", 1},    {".b16", 2}, {".u16", 2},
                                               {".s16", 2}, {".f16", 2}, {".bf16", 2},  {".b32", 4}, {".u32", 4},
                                               {".s32", 4}, {".f32", 4}, {".f16x2", 4}, {".b64", 8}, {".u64", 8},
                                               {".s64", 8}, {".f64", 8}, {".pred", 0}};

class Parser {
 public:
  explicit Parser(std::string_view text) : tokens_(tokenize(text)) {
    std::string_view rest = text;
    while (!rest.empty()) {
      const std::size_t end = rest.find('\n');
      module_.lines.emplace_back(rest.substr(0, end));
      rest = end == std::string_view::npos ? std::string_view() : rest.substr(end + 1);
    }
  }

  Module module() {
    while (peek().kind != Token::Kind::end) directive();
    return std::move(module_);
  }

 private:
  const Token& peek(int ahead = 0) const { return tokens_[std::min(at_ + ahead, tokens_.size() - 1)]; }
  Token next() { return tokens_[at_ + 1 < tokens_.size() ? at_++ : at_]; }
  bool is(const char* text) const { return peek().kind != Token::Kind::string && peek().text == text; }
  bool accept(const char* text) { return is(text) ? (++at_, true) : false; }

  [[noreturn]] void fail(const std::string& what) const {
    throw Error("line " + std::to_string(peek().line) + ": " + what + ", not '" + peek().text + "'");
  }
  void expect(const char* text) {
    if (!accept(text)) fail(std::string("expected '") + text + "'");
  }

  std::int64_t integer() {
    const bool negative = accept("-");
    std::string word = next().text;
    if (word.empty() || !std::isdigit(static_cast<unsigned char>(word[0]))) {
      --at_;
      fail("expected an integer");
    }
    if (word.back() == 'U') word.pop_back();
    const bool binary = word.starts_with("0b") || word.starts_with("0B");
    const auto value = static_cast<std::int64_t>(std::strtoull(word.c_str() + 2 * binary, nullptr, binary ? 2 : 0));
    return negative ? -value : value;
  }

  void skip_statement() {
    while (!is(";") && peek().kind != Token::Kind::end) next();
    accept(";");
  }

  // Directives of a module ------------------------------------------------------------------------------------------
  void directive() {
    const std::string word = peek().text;
    if (word == ".version" || word == ".address_size") {
      next(), next();
    } else if (word == ".target") {
      next();
      module_.target = next().text;
      while (accept(",")) next();
    } else if (word == ".file") {
      file();
    } else if (word == ".section") {
      skip_section();
    } else if (word == ".entry") {
      next();
      kernel();
    } else if (word == ".visible" || word == ".weak" || word == ".common") {
      next();
    } else if (word == ".extern" && peek(1).text == ".func") {
      skip_statement();
    } else if (word == ".extern" || word == ".global" || word == ".const" || word == ".shared") {
      module_.variables.push_back(variable());
      expect(";");
    } else {
      fail("expected a directive that the emulator knows (device functions and textures are not among them)");
    }
  }

  void file() {
    next();
    const int number = static_cast<int>(integer());
    module_.files[number] = next().text;
    while (accept(",")) integer();
  }

  void skip_section() {  // debug information
    while (!is("{")) next();
    for (int depth = 0;;) {
      const Token token = next();
      if (token.text == "{") ++depth;
      if (token.text == "}" && --depth == 0) return;
      if (token.kind == Token::Kind::end) fail("expected the end of a .section");
    }
  }

  // .extern .shared .align 16 .b8 name[8] = {1, 2};
  Variable variable() {
    Variable result;
    int element = -1;
    while (peek().text.starts_with('.')) {
      const std::string word = next().text;
      if (word == ".extern") {
        result.external = true;
      } else if (word == ".align") {
        result.alignment = static_cast<int>(integer());
      } else if (type_bytes.contains(word)) {
        element = type_bytes.at(word);
      } else if (word == ".global" || word == ".const" || word == ".shared" || word == ".local" || word == ".param") {
        if (result.space.empty()) result.space = word.substr(1);
      } else if (word != ".ptr" && word != ".visible" && word != ".attribute" && word != ".managed") {
        --at_;
        fail("expected the type or the space of a variable");
      }
    }
    if (element < 0) fail("expected the type of a variable");
    result.name = next().text;
    result.alignment = std::max(result.alignment, element);
    std::int64_t count = 1;
    while (accept("[")) {
      count *= is("]") ? 0 : integer();
      expect("]");
    }
    result.bytes = count * element;
    if (accept("=")) initial_values(result, element);
    return result;
  }

  void initial_values(Variable& variable, int element) {
    const bool list = accept("{");
    do {
      std::uint64_t value;
      if (const std::string word = peek().text; word.starts_with("0f") || word.starts_with("0d")) {
        next();
        value = std::strtoull(word.c_str() + 2, nullptr, 16);
      } else {
        value = static_cast<std::uint64_t>(integer());
      }
      for (int byte = 0; byte < element; ++byte) variable.initial.push_back((value >> (8 * byte)) & 0xff);
    } while (list && accept(","));
    if (list) expect("}");
  }

  // Kernels ---------------------------------------------------------------------------------------------------------
  void kernel() {
    kernel_ = Kernel();
    scopes_.assign(1, {});
    scope_ids_.assign(1, 0);
    kernel_.scope_parents.assign(1, -1);
    kernel_.name = next().text;
    if (accept("(")) {
      while (!accept(")")) {
        kernel_.parameters.push_back(variable());
        accept(",");
      }
    }
    while (!is("{")) launch_bound();
    expect("{");
    while (!scopes_.empty()) statement();
    module_.kernels.push_back(std::move(kernel_));
  }

  void launch_bound() {
    const std::string word = next().text;
    int sizes[3] = {1, 1, 1};
    int count = 0;
    if (word == ".noreturn") return;
    if (!word.starts_with('.')) fail("expected a bound of the launch before this");
    do {
      if (count == 3) fail("expected at most three sizes");
      sizes[count++] = static_cast<int>(integer());
    } while (accept(","));
    if (word == ".reqntid") std::copy(sizes, sizes + 3, kernel_.required_threads);
    if (word == ".maxntid") kernel_.maximum_threads = sizes[0] * sizes[1] * sizes[2];
  }

  void statement() {
    if (accept("{")) {
      scopes_.emplace_back();
      kernel_.scope_parents.push_back(scope_ids_.back());
      scope_ids_.push_back(static_cast<int>(kernel_.scope_parents.size()) - 1);
    } else if (accept("}")) {
      scopes_.pop_back();
      scope_ids_.pop_back();
    } else if (accept(";")) {
    } else if (is(".reg")) {
      registers();
    } else if (is(".loc")) {
      location();
    } else if (is(".pragma")) {
      skip_statement();
    } else if (is(".shared") || is(".local")) {
      kernel_.variables.push_back(variable());
      expect(";");
    } else if (peek(1).text == ":") {
      label();
    } else {
      instruction();
    }
  }

  void label() {
    const std::string name = next().text;
    expect(":");
    if (!is(".branchtargets")) {
      kernel_.labels[{scope_ids_.back(), name}] = static_cast<int>(kernel_.statements.size());
      return;
    }
    next();
    do kernel_.branch_targets[name].push_back(next().text);
    while (accept(","));
    expect(";");
  }

  void registers() {
    next();
    const std::string type = next().text;
    if (!type_bytes.contains(type)) fail("expected the type of registers before this");
    const int bytes = type_bytes.at(type);
    do {
      const std::string name = next().text;
      if (accept("<")) {
        const auto count = integer();
        expect(">");
        for (std::int64_t i = 0; i < count; ++i) declare(name + std::to_string(i), bytes);
      } else {
        declare(name, bytes);
      }
    } while (accept(","));
    expect(";");
  }

  void declare(const std::string& name, int bytes) {
    scopes_.back()[name] = static_cast<int>(kernel_.registers.size());
    kernel_.registers.push_back({name, bytes});
  }

  void location() {  // .loc 1 95 0, function_name $L__info_string0, inlined_at 1 116 13
    next();
    source_file_ = static_cast<int>(integer());
    source_line_ = static_cast<int>(integer());
    integer();
    while (accept(",")) {
      const std::string what = next().text;
      next();
      if (accept("+")) integer();
      if (what == "inlined_at") integer(), integer();
    }
  }

  void instruction() {
    Statement statement;
    statement.line = peek().line;
    statement.source_file = source_file_;
    statement.source_line = source_line_;
    statement.scope = scope_ids_.back();
    if (accept("@")) {
      statement.guard_negated = accept("!");
      statement.guard = find_register(next().text);
      if (statement.guard < 0) fail("expected a declared predicate before this");
    }
    if (peek().kind != Token::Kind::word) fail("expected an instruction");
    statement.opcode = next().text;
    if (!is(";")) {
      do statement.operands.push_back(operand());
      while (accept(","));
    }
    expect(";");
    kernel_.statements.push_back(std::move(statement));
  }

  // Operands --------------------------------------------------------------------------------------------------------
  int find_register(const std::string& name) const {
    for (auto scope = scopes_.rbegin(); scope != scopes_.rend(); ++scope) {
      if (const auto found = scope->find(name); found != scope->end()) return found->second;
    }
    return -1;
  }

  Operand operand() {
    Operand result;
    if (accept("{")) {
      result.kind = Operand::Kind::vector;
      do result.parts.push_back(operand());
      while (accept(","));
      expect("}");
    } else if (accept("[")) {
      result = operand();
      result.kind = Operand::Kind::address;
      expect("]");
    } else if (accept("!")) {
      result = operand();
      result.negated = true;
    } else if (is("-") || std::isdigit(static_cast<unsigned char>(peek().text[0]))) {
      number(result);
    } else if (accept("_")) {
      result.kind = Operand::Kind::sink;
    } else {
      named(result);
    }
    return result;
  }

  void number(Operand& result) {
    const std::string& word = peek().text;
    const char kind = word.size() > 2 && word[0] == '0' ? word[1] : '\0';
    if (kind == 'f' || kind == 'F' || kind == 'd' || kind == 'D') {
      result.kind = kind == 'f' || kind == 'F' ? Operand::Kind::f32 : Operand::Kind::f64;
      result.value = static_cast<std::int64_t>(std::strtoull(next().text.c_str() + 2, nullptr, 16));
    } else if (word.find('.') != std::string::npos) {
      fail("expected an integer or a float in hexadecimal");
    } else {
      result.kind = Operand::Kind::integer;
      result.value = integer();
    }
  }

  void named(Operand& result) {  // %r1, %r1|%p1, variable, variable+4, %r1+-16
    if (peek().kind != Token::Kind::word) fail("expected an operand");
    result.name = next().text;
    result.reg = find_register(result.name);
    result.kind = result.reg >= 0 ? Operand::Kind::reg : Operand::Kind::name;
    if (accept("|")) {
      result.second = find_register(next().text);
      if (result.second < 0) fail("expected a declared predicate before this");
    }
    if (accept("+")) result.value = integer();
    if (is("-")) result.value = integer();
  }

  Module module_;
  Kernel kernel_;
  std::vector<Token> tokens_;
  std::size_t at_ = 0;
  std::vector<std::map<std::string, int>> scopes_;
  std::vector<int> scope_ids_;
  int source_file_ = 0, source_line_ = 0;
};

}  // namespace

Module parse(std::string_view text) { return Parser(text).module(); }

}  // namespace ptx
