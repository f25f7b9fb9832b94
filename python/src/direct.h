// Calls an op's function from Python past torch's dispatcher, which takes longer to convert the arguments than a small
// kernel takes to run (bench/NOTES.md has the figures). One function with its checks serves both ways.
//
// What the dispatcher does for unusual tensors (subclasses, lazy negation, tensors without memory) is not done here:
// such an argument is refused, and bigmodel_kernels/functional makes the call again through the dispatcher.
#pragma once

#include <Python.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <cstdint>
#include <exception>
#include <initializer_list>
#include <optional>
#include <span>
#include <string>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

#include "operand.h"

namespace bigmodel::binding::direct {

using torch::stable::Tensor;

// Thrown where a Python error is set.
struct PythonError : std::exception {};

// Conversions from Python, each throwing PythonError for an argument that it does not take.
Tensor to_tensor(PyObject* argument);
Operand to_operand(PyObject* argument);
std::string to_string(PyObject* argument);
std::vector<bool> to_flags(PyObject* argument);
std::int64_t to_int(PyObject* argument);
double to_double(PyObject* argument);
bool to_bool(PyObject* argument);

// And back: one tensor, None, a tuple of several, or a number; a new reference.
PyObject* to_python(const Tensor& tensor);
PyObject* to_python(const std::optional<Tensor>& tensor);
PyObject* to_python(std::int64_t number);
// Two, or the second alone where there is no first.
PyObject* to_python(const std::tuple<std::optional<Tensor>, Tensor>& tensors);
PyObject* to_python(std::span<const Tensor* const> tensors);

template <class T>
struct Optional : std::false_type {};
template <class T>
struct Optional<std::optional<T>> : std::true_type {};

template <class T>
T converted(PyObject* argument) {
  if constexpr (Optional<T>::value) {
    return argument == Py_None ? T() : T(converted<typename T::value_type>(argument));
  } else if constexpr (std::is_same_v<T, Tensor>) {
    return to_tensor(argument);
  } else if constexpr (std::is_same_v<T, Operand>) {
    return to_operand(argument);
  } else if constexpr (std::is_same_v<T, std::string>) {
    return to_string(argument);
  } else if constexpr (std::is_same_v<T, std::vector<bool>>) {
    return to_flags(argument);
  } else if constexpr (std::is_same_v<T, bool>) {
    return to_bool(argument);
  } else if constexpr (std::is_same_v<T, std::int64_t>) {
    return to_int(argument);
  } else {
    static_assert(std::is_same_v<T, double>, "a type that no schema has");
    return to_double(argument);
  }
}

template <class... Tensors>
PyObject* to_python(const std::tuple<Tensors...>& tensors) {
  return std::apply(
      [](const auto&... tensor) {
        const Tensor* const all[] = {&tensor...};
        return to_python(std::span(all));
      },
      tensors);
}

// How much a call computes, as far as its arguments say so without being asked through torch: tiny is what holds few
// elements, and whose products have few rows and columns.
class CallSize {
 public:
  template <class... Arguments>
  explicit CallSize(const Arguments&... arguments) {
    (add(arguments), ...);
  }
  bool tiny() const { return elements_ < 16384 && most_rows_ * next_rows_ < 1 << 16; }

 private:
  void add(const Operand& operand) {
    const std::int64_t elements = operand.numel();
    const Layout layout = operand.layout();
    const std::int64_t rows = layout.sizes.empty() || elements == 0 ? 1 : elements / layout.sizes.back();
    elements_ += elements;
    next_rows_ = std::max(next_rows_, std::min(rows, most_rows_));
    most_rows_ = std::max(most_rows_, rows);
  }
  void add(const OptionalOperand& operand) {
    if (operand) add(*operand);
  }
  void add(const Tensor&) { elements_ = 16384; }
  void add(const std::optional<Tensor>& tensor) {
    if (tensor) add(*tensor);
  }
  template <class Option>
  void add(const Option&) {}

  std::int64_t elements_ = 0, most_rows_ = 0, next_rows_ = 0;
};

// Kernels need no interpreter; but giving its lock away and taking it again takes longer than a tiny one runs.
class WithoutGil {
 public:
  explicit WithoutGil(bool worthwhile) : state_(worthwhile ? PyEval_SaveThread() : nullptr) {}
  ~WithoutGil() {
    if (state_) PyEval_RestoreThread(state_);
  }
  WithoutGil(const WithoutGil&) = delete;
  WithoutGil& operator=(const WithoutGil&) = delete;

 private:
  PyThreadState* state_;
};

// Puts positional and keyword arguments in the order of the parameters, all of which must be given. `keywords` names
// the last parameters, `given` the last arguments.
void put_in_order(PyObject* keywords, PyObject* const* arguments, Py_ssize_t positional, PyObject* given,
                  std::span<PyObject*> ordered);

// The Python function of an op's function; `keywords` is what Python calls its self.
template <auto function>
struct Caller;
template <class Result, class... Parameters, Result (*function)(Parameters...)>
struct Caller<function> {
  static PyObject* call(PyObject* keywords, PyObject* const* arguments, Py_ssize_t positional, PyObject* given) {
    try {
      PyObject* ordered[sizeof...(Parameters)];
      put_in_order(keywords, arguments, positional, given, ordered);
      return call_in_order(ordered, std::index_sequence_for<Parameters...>());
    } catch (const PythonError&) {
    } catch (const std::exception& error) {
      PyErr_SetString(PyExc_RuntimeError, error.what());
    }
    return nullptr;
  }

 private:
  template <std::size_t... index>
  static PyObject* call_in_order(PyObject* const* ordered, std::index_sequence<index...>) {
    std::tuple<std::decay_t<Parameters>...> values{converted<std::decay_t<Parameters>>(ordered[index])...};
    const auto run = [&] {
      const CallSize size = std::apply([](const auto&... each) { return CallSize(each...); }, values);
      const WithoutGil released(!size.tiny());
      return std::apply(function, values);
    };
    if constexpr (std::is_void_v<Result>) {
      run();
      return Py_NewRef(Py_None);
    } else {
      return to_python(run());
    }
  }
};

// The functions of a Python module that calls ops directly.
class Functions {
 public:
  explicit Functions(PyObject* module) : module_(module) {}

  // `keywords`: the schema's keyword-only arguments, in its order.
  template <auto function>
  void add(const char* name, std::initializer_list<const char*> keywords) {
    add(name, reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(&Caller<function>::call)), keywords);
  }

 private:
  void add(const char* name, PyCFunction call, std::initializer_list<const char*> keywords);

  PyObject* module_;
};

// Each op's file adds its functions.
void add_attention(Functions& functions);
void add_attention_weights(Functions& functions);
void add_attention_varlen(Functions& functions);
void add_attention_decode(Functions& functions);
void add_linear(Functions& functions);
void add_self_attention(Functions& functions);
void add_encoder_layer(Functions& functions);
void add_feed_forward(Functions& functions);
void add_add_norm(Functions& functions);
void add_rotary(Functions& functions);
void add_linear_cross_entropy(Functions& functions);

// Fills a module with them all; leaves it empty where this torch lacks what converts tensors.
void define(PyObject* module);

}  // namespace bigmodel::binding::direct
