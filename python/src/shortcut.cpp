#include "shortcut.h"

#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "python_objects.h"

namespace bigmodel::binding::direct {
namespace {

// What torch and our package have in Python, found once.
struct Names {
  PyObject *requires_grad, *name, *straight;
};
Names names;

// One parameter of the documented function that is no tensor.
struct Option {
  PyObject* accepted;  // pairs of a value that a caller may give and what the op gets for it
  bool number;         // any finite number is accepted too, and given to the op as it is
  Py_ssize_t keyword;  // its place among the op's keywords; -1: the op does not see it
};

// Of an op and of the documented function, more than any has.
constexpr Py_ssize_t most_arguments = 32;

struct Shortcut {
  PyObject* (*function)(PyObject* self, PyObject* const* arguments, Py_ssize_t positional, PyObject* keywords);
  PyObject* self;  // of the op, whose function this is
  PyObject *recorded, *forced, *current;
  Py_ssize_t tensors, op_tensors;
  bool first;
  std::vector<Option> options;
  PyObject *keywords, *constants;  // the op's keywords, and what it gets for those that are no parameter here
};

bool same(PyObject* given, PyObject* accepted) {
  if (given == accepted) return true;
  if (PyUnicode_CheckExact(given) && PyUnicode_CheckExact(accepted)) return PyUnicode_Compare(given, accepted) == 0;
  return PyFloat_CheckExact(given) && PyFloat_CheckExact(accepted) &&
         PyFloat_AS_DOUBLE(given) == PyFloat_AS_DOUBLE(accepted);
}

// What the op gets for a caller's value, borrowed; nullptr where it is for the documented function.
PyObject* option_value(const Option& option, PyObject* given) {
  for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(option.accepted); ++i) {
    PyObject* pair = PyTuple_GET_ITEM(option.accepted, i);
    if (same(given, PyTuple_GET_ITEM(pair, 0))) return PyTuple_GET_ITEM(pair, 1);
  }
  const bool finite = option.number && PyFloat_CheckExact(given) && std::isfinite(PyFloat_AS_DOUBLE(given));
  return finite ? given : nullptr;
}

// Whether an object's attribute is the very object expected; false too where there is none.
bool attribute_is(PyObject* object, PyObject* name, PyObject* expected) {
  PyObject* value = PyObject_GetAttr(object, name);
  Py_XDECREF(value);
  PyErr_Clear();
  return value == expected;
}

bool needs_gradient(PyObject* const* tensors, Py_ssize_t count) {
  if (!aoti_torch_grad_mode_is_enabled()) return false;
  for (Py_ssize_t i = 0; i < count; ++i) {
    if (tensors[i] != Py_None && attribute_is(tensors[i], names.requires_grad, Py_True)) return true;
  }
  return false;
}

// The op's outputs, or the first alone: it is called as it is. A refusal, by an error, which is cleared, or by None,
// gives nullptr.
PyObject* call_op(const Shortcut& shortcut, PyObject* const* tensors, PyObject* const* values) {
  PyObject* arguments[most_arguments];
  PyObject** end = std::copy_n(tensors, shortcut.tensors, arguments);
  end = std::fill_n(end, shortcut.op_tensors - shortcut.tensors, Py_None);
  std::copy_n(values, PyTuple_GET_SIZE(shortcut.keywords), end);
  PyObject* outputs = shortcut.function(shortcut.self, arguments, shortcut.op_tensors, shortcut.keywords);
  if (!outputs && PyErr_ExceptionMatches(PyExc_Exception)) PyErr_Clear();  // and not an interrupt
  if (outputs == Py_None) Py_CLEAR(outputs);
  if (!outputs || !shortcut.first) return outputs;
  PyObject* first = Py_NewRef(PyTuple_GET_ITEM(outputs, 0));
  Py_DECREF(outputs);
  return first;
}

// The op recorded for the backward pass: recorded(*tensors, options). nullptr with an error set for what failed after
// the op had accepted the call, nullptr without one for a refusal.
PyObject* call_recorded(const Shortcut& shortcut, PyObject* const* tensors, PyObject* const* values) {
  PyObject* options = PyDict_New();
  for (Py_ssize_t i = 0; options && i < PyTuple_GET_SIZE(shortcut.keywords); ++i) {
    if (PyDict_SetItem(options, PyTuple_GET_ITEM(shortcut.keywords, i), values[i]) < 0) Py_CLEAR(options);
  }
  if (!options || PyObject_SetAttr(shortcut.current, names.straight, Py_True) < 0) {
    Py_XDECREF(options);
    return nullptr;
  }
  PyObject* arguments[most_arguments];
  *std::copy_n(tensors, shortcut.tensors, arguments) = options;
  PyObject* output = PyObject_Vectorcall(shortcut.recorded, arguments, shortcut.tensors + 1, nullptr);
  Py_DECREF(options);
  if (output) return output;
  PyObject *type, *value, *trace;
  PyErr_Fetch(&type, &value, &trace);
  const bool refused = PyErr_GivenExceptionMatches(type, PyExc_Exception);  // and not an interrupt
  if (refused && attribute_is(shortcut.current, names.straight, Py_True)) {
    Py_XDECREF(type), Py_XDECREF(value), Py_XDECREF(trace);
  } else {
    PyErr_Restore(type, value, trace);
  }
  return nullptr;
}

PyObject* answer(PyObject* self, PyObject* const* arguments, Py_ssize_t count) {
  const auto& shortcut = *static_cast<const Shortcut*>(PyCapsule_GetPointer(self, nullptr));
  if (count != shortcut.tensors + static_cast<Py_ssize_t>(shortcut.options.size())) {
    return PyErr_Format(PyExc_TypeError, "expected all of the function's arguments, got %zd", count);
  }
  for (Py_ssize_t i = 0; i < shortcut.tensors; ++i) {
    if (arguments[i] != Py_None && !is_plain_type(arguments[i])) Py_RETURN_NOTIMPLEMENTED;
  }
  PyObject* values[most_arguments];
  for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(shortcut.constants); ++i) {
    values[i] = PyTuple_GET_ITEM(shortcut.constants, i);
  }
  for (std::size_t i = 0; i < shortcut.options.size(); ++i) {
    const Option& option = shortcut.options[i];
    PyObject* value = option_value(option, arguments[shortcut.tensors + static_cast<Py_ssize_t>(i)]);
    if (!value) Py_RETURN_NOTIMPLEMENTED;
    if (option.keyword >= 0) values[option.keyword] = value;
  }
  const int takes = takes_tensor(arguments[0]);
  if (takes < 0) return nullptr;
  if (!takes || !attribute_is(shortcut.forced, names.name, Py_None)) Py_RETURN_NOTIMPLEMENTED;
  const bool recorded = needs_gradient(arguments, shortcut.tensors);
  if (recorded && shortcut.recorded == Py_None) Py_RETURN_NOTIMPLEMENTED;
  PyObject* output = (recorded ? call_recorded : call_op)(shortcut, arguments, values);
  if (output || PyErr_Occurred()) return output;
  Py_RETURN_NOTIMPLEMENTED;
}

// The position of a name in a tuple of names, -1 if it is not there.
Py_ssize_t place_of(PyObject* name, PyObject* tuple) {
  for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(tuple); ++i) {
    if (PyUnicode_Compare(PyTuple_GET_ITEM(tuple, i), name) == 0) return i;
  }
  return -1;
}

PyObject* interned(PyObject* given) {
  PyObject* result = PyTuple_New(PyTuple_GET_SIZE(given));
  for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(given); ++i) {
    PyObject* name = Py_NewRef(PyTuple_GET_ITEM(given, i));
    PyUnicode_InternInPlace(&name);
    PyTuple_SET_ITEM(result, i, name);
  }
  return result;
}

PyObject* make(PyObject*, PyObject* arguments) {
  PyObject *op, *recorded, *forced, *current, *options, *keywords, *constants;
  Py_ssize_t tensors, op_tensors;
  int first;
  if (!PyArg_ParseTuple(arguments, "O!OOOnnO!O!O!p", &PyCFunction_Type, &op, &recorded, &forced, &current, &tensors,
                        &op_tensors, &PyTuple_Type, &options, &PyTuple_Type, &keywords, &PyTuple_Type, &constants,
                        &first)) {
    return nullptr;
  }
  if (std::max(op_tensors, tensors + 1) + PyTuple_GET_SIZE(keywords) > most_arguments) {
    return PyErr_Format(PyExc_ValueError, "expected at most %zd arguments", most_arguments);
  }
  if (PyCFunction_GET_FLAGS(op) != (METH_FASTCALL | METH_KEYWORDS)) {
    return PyErr_Format(PyExc_TypeError, "expected one of the ops, got %R", op);
  }
  const auto function =
      reinterpret_cast<decltype(Shortcut::function)>(reinterpret_cast<void (*)()>(PyCFunction_GET_FUNCTION(op)));
  auto* shortcut =
      new Shortcut{function, PyCFunction_GET_SELF(op), recorded, forced, current, tensors, op_tensors, first != 0,
                   {},       interned(keywords),       constants};
  for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(options); ++i) {
    PyObject *name, *accepted;
    int number;
    if (!PyArg_ParseTuple(PyTuple_GET_ITEM(options, i), "UO!p", &name, &PyTuple_Type, &accepted, &number))
      return nullptr;
    shortcut->options.push_back({Py_NewRef(accepted), number != 0, place_of(name, keywords)});
  }
  // The shortcut lives as long as Python, as what it points at.
  for (PyObject* kept : {op, recorded, forced, current, constants}) Py_INCREF(kept);
  static PyMethodDef definition = {"shortcut", reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(&answer)),
                                   METH_FASTCALL, "The op's answer, or NotImplemented."};
  PyObject* capsule = PyCapsule_New(shortcut, nullptr, nullptr);
  PyObject* made = capsule ? PyCFunction_NewEx(&definition, capsule, nullptr) : nullptr;
  Py_XDECREF(capsule);
  return made;
}

}  // namespace

void add_shortcut(PyObject* module) {
  names = {PyUnicode_InternFromString("requires_grad"), PyUnicode_InternFromString("name"),
           PyUnicode_InternFromString("straight")};
  static PyMethodDef definitions[] = {
      {"shortcut", &make, METH_VARARGS,
       "shortcut(op, recorded, forced, current, tensors, op_tensors, options, keywords, constants, first): see "
       "bigmodel_kernels/ops/shortcut.py."},
      {}};
  PyModule_AddFunctions(module, definitions);
}

}  // namespace bigmodel::binding::direct
