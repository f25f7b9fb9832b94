// Calls an op's function from Python past torch's dispatcher, which takes longer to convert the arguments than a small
// kernel takes to run (bench/NOTES.md has the figures). One function with its checks serves both ways.
//
// What the dispatcher does for unusual tensors (subclasses, lazy negation, tensors without memory) is not done here:
// such an argument is refused, and bigmodel_kernels/functional makes the call again through the dispatcher.
#pragma once

#include <Python.h>
#include <torch/csrc/stable/tensor.h>

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

// Of what an argument holds, as far as it says so without being asked through torch; else more than a tiny one's.
inline constexpr std::int64_t least_elements_without_gil = 16384;
inline std::int64_t elements(const Operand& operand) { return operand.numel(); }
inline std::int64_t elements(const OptionalOperand& operand) { return operand ? operand->numel() : 0; }
inline std::int64_t elements(const Tensor&) { return least_elements_without_gil; }
inline std::int64_t elements(const std::optional<Tensor>& tensor) { return tensor ? least_elements_without_gil : 0; }
template <class Option>
std::int64_t elements(const Option&) {
  return 0;
}

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
      const WithoutGil released(std::apply([](const auto&... each) { return (0 + ... + elements(each)); }, values) >=
                                least_elements_without_gil);
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
