#include "names.h"

#include <cxxabi.h>

#include <cstdlib>
#include <memory>
#include <regex>

namespace ptx {
namespace {

// Where the parameters begin: the first parenthesis outside of template arguments.
std::size_t parameters_of(const std::string& name) {
  int depth = 0;
  for (std::size_t i = 0; i < name.size(); ++i) {
    if (name[i] == '<') ++depth;
    if (name[i] == '>') --depth;
    if (name[i] == '(' && depth == 0 && name.compare(i, 11, "(anonymous ") != 0) return i;
  }
  return name.size();
}

}  // namespace

std::string readable(const std::string& name) {
  int status = 0;
  const std::unique_ptr<char, void (*)(void*)> text(abi::__cxa_demangle(name.c_str(), nullptr, nullptr, &status),
                                                    &std::free);
  if (status != 0) return name;
  std::string result = text.get();
  result.resize(parameters_of(result));
  if (result.starts_with("void ")) result.erase(0, 5);
  // nvcc names an anonymous namespace after its file, between numbers that change with the file.
  static const std::regex anonymous("_GLOBAL__N__[0-9a-f]+_[0-9]+_(\\w+?)_[0-9a-f]{8}(?=::)");
  return std::regex_replace(result, anonymous, "$1");
}

}  // namespace ptx
