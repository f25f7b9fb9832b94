#include "lexer.h"

#include <cctype>

#include "error.h"

namespace ptx {
namespace {

bool is_word(char c) {
  return std::isalnum(static_cast<unsigned char>(c)) || c == '_' || c == '$' || c == '%' || c == '.';
}

struct Reader {
  std::string_view text;
  std::size_t at = 0;
  int line = 1;

  char peek(std::size_t ahead = 0) const { return at + ahead < text.size() ? text[at + ahead] : '\0'; }
  void advance() { line += text[at++] == '\n'; }

  void skip_blanks_and_comments() {
    while (at < text.size()) {
      if (std::isspace(static_cast<unsigned char>(peek()))) {
        advance();
      } else if (peek() == '/' && peek(1) == '/') {
        while (at < text.size() && peek() != '\n') advance();
      } else if (peek() == '/' && peek(1) == '*') {
        while (at < text.size() && !(peek() == '*' && peek(1) == '/')) advance();
        at += 2;
      } else {
        return;
      }
    }
  }

  // "::" belongs to a word (.L2::128B), a single ':' ends a label.
  std::string word() {
    const std::size_t start = at;
    while (is_word(peek()) || (peek() == ':' && peek(1) == ':')) at += peek() == ':' ? 2 : 1;
    return std::string(text.substr(start, at - start));
  }

  std::string string() {
    const std::size_t start = ++at;
    while (at < text.size() && peek() != '"') advance();
    return std::string(text.substr(start, at++ - start));
  }
};

}  // namespace

std::vector<Token> tokenize(std::string_view text) {
  Reader reader{text};
  std::vector<Token> tokens;
  for (;;) {
    reader.skip_blanks_and_comments();
    const int line = reader.line;
    if (reader.at >= text.size()) break;
    const char c = reader.peek();
    if (is_word(c)) {
      tokens.push_back({Token::Kind::word, reader.word(), line});
    } else if (c == '"') {
      tokens.push_back({Token::Kind::string, reader.string(), line});
    } else {
      tokens.push_back({Token::Kind::punctuation, std::string(1, c), line});
      ++reader.at;
    }
  }
  tokens.push_back({Token::Kind::end, "", reader.line});
  return tokens;
}

}  // namespace ptx
