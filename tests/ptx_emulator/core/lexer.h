// PTX text as words and punctuation.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace ptx {

struct Token {
  enum class Kind { word, string, punctuation, end };
  Kind kind = Kind::end;
  std::string text;
  int line = 0;
};

std::vector<Token> tokenize(std::string_view text);

}  // namespace ptx
