#include "shortcut.h"

#include <cmath>
#include <vector>

#include "python_objects.h"

namespace bigmodel::binding::direct {
namespace {

// What torch and our package have in Python, found once.
struct Names {
  PyObject *is_grad_enabled, *requires_grad, *name, *straight;
};
Names names;

// One parameter of the documented function that is no tensor.
struct Option {
  PyObject* accepted;  // pairs of a value that a caller may give and what the op gets for it; the first is the default
  bool number;         // any finite number is accepted too, and given to the op as it is
  Py_ssize_t keyword;  // its place among the op's keywords; -1: the op does not see it
};

struct Shortcut {
  PyObject *op, *recorded, *forced, *current;
  PyObject* parameters;  // the documented function's, tensors first
  Py_ssize_t positional, tensors, op_tensors;
  std::vector<Option> options;
  PyObject *keywords, *constants;  // the op's keywords, and what it gets for those that are no parameter here
};

// The documented function's arguments by parameter, borrowed; false where one is unknown.
bool bind(const Shortcut& shortcut, PyObject* const* arguments, Py_ssize_t positional, PyObject* given,
          std::vector<PyObject*>& bound) {
  const Py_ssize_t count = PyTuple_GET_SIZE(shortcut.parameters);
  if (positional > shortcut.positional) return false;
  for (Py_ssize_t i = 0; i < positional; ++i) bound[i] = arguments[i];
  for (Py_ssize_t i = 0; given && i < PyTuple_GET_SIZE(given); ++i) {
    PyObject* name = PyTuple_GET_ITEM(given, i);
    Py_ssize_t place = 0;
    while (place < count && PyTuple_GET_ITEM(shortcut.parameters, place) != name) ++place;  // interned, like ours
    if (place == count || bound[place]) return false;
    bound[place] = arguments[positional + i];
  }
  return true;
}

bool same(PyObject* given, PyObject* accepted) {
  if (given == accepted) return true;
  if (PyUnicode_CheckExact(given) && PyUnicode_CheckExact(accepted)) return PyUnicode_Compare(given, accepted) == 0;
  return PyFloat_CheckExact(given) && PyFloat_CheckExact(accepted) &&
         PyFloat_AS_DOUBLE(given) == PyFloat_AS_DOUBLE(accepted);
}

// What the op gets for a caller's value (nullptr: not given), borrowed; nullptr where it is for the documented
// function.
PyObject* option_value(const Option& option, PyObject* given) {
  if (!given) return PyTuple_GET_ITEM(PyTuple_GET_ITEM(option.accepted, 0), 1);
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
  PyObject* enabled = PyObject_CallNoArgs(names.is_grad_enabled);
  Py_XDECREF(enabled);
  for (Py_ssize_t i = 0; enabled == Py_True && i < count; ++i) {
    if (tensors[i] != Py_None && attribute_is(tensors[i], names.requires_grad, Py_True)) return true;
  }
  return false;
}

// The op's first output: it is called as it is. A refusal, by an error, which is cleared, or by None, gives nullptr.
PyObject* call_op(const Shortcut& shortcut, PyObject* const* tensors, PyObject* const* values) {
  std::vector<PyObject*> arguments(tensors, tensors + shortcut.tensors);
  arguments.resize(shortcut.op_tensors, Py_None);
  arguments.insert(arguments.end(), values, values + PyTuple_GET_SIZE(shortcut.keywords));
  PyObject* outputs = PyObject_Vectorcall(shortcut.op, arguments.data(), shortcut.op_tensors, shortcut.keywords);
  if (!outputs && PyErr_ExceptionMatches(PyExc_Exception)) PyErr_Clear();  // and not an interrupt
  if (outputs == Py_None) Py_CLEAR(outputs);
  if (!outputs || !PyTuple_CheckExact(outputs)) return outputs;
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
  std::vector<PyObject*> arguments(tensors, tensors + shortcut.tensors);
  arguments.push_back(options);
  PyObject* output = PyObject_Vectorcall(shortcut.recorded, arguments.data(), arguments.size(), nullptr);
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

PyObject* answer(PyObject* self, PyObject* const* arguments, Py_ssize_t positional, PyObject* given) {
  const auto& shortcut = *static_cast<const Shortcut*>(PyCapsule_GetPointer(self, nullptr));
  std::vector<PyObject*> bound(PyTuple_GET_SIZE(shortcut.parameters));
  std::vector<PyObject*> values(PyTuple_GET_SIZE(shortcut.keywords));
  if (!bind(shortcut, arguments, positional, given, bound)) Py_RETURN_NOTIMPLEMENTED;
  for (Py_ssize_t i = 0; i < shortcut.tensors; ++i) {
    if (!bound[i]) bound[i] = Py_None;
    if (bound[i] != Py_None && !is_plain_type(bound[i])) Py_RETURN_NOTIMPLEMENTED;
  }
  for (std::size_t i = 0; i < values.size(); ++i) values[i] = PyTuple_GET_ITEM(shortcut.constants, i);
  for (std::size_t i = 0; i < shortcut.options.size(); ++i) {
    const Option& option = shortcut.options[i];
    PyObject* value = option_value(option, bound[shortcut.tensors + i]);
    if (!value) Py_RETURN_NOTIMPLEMENTED;
    if (option.keyword >= 0) values[option.keyword] = value;
  }
  const int takes = takes_tensor(bound[0]);
  if (takes < 0) return nullptr;
  if (!takes || !attribute_is(shortcut.forced, names.name, Py_None)) Py_RETURN_NOTIMPLEMENTED;
  const bool recorded = needs_gradient(bound.data(), shortcut.tensors);
  if (recorded && shortcut.recorded == Py_None) Py_RETURN_NOTIMPLEMENTED;
  PyObject* output = (recorded ? call_recorded : call_op)(shortcut, bound.data(), values.data());
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
  PyObject *op, *recorded, *forced, *current, *tensors, *options, *keywords, *constants;
  Py_ssize_t positional, op_tensors;
  if (!PyArg_ParseTuple(arguments, "OOOOO!nnO!O!O!", &op, &recorded, &forced, &current, &PyTuple_Type, &tensors,
                        &positional, &op_tensors, &PyTuple_Type, &options, &PyTuple_Type, &keywords, &PyTuple_Type,
                        &constants)) {
    return nullptr;
  }
  auto* shortcut = new Shortcut{
      op, recorded,           forced,   current, nullptr, positional, PyTuple_GET_SIZE(tensors), op_tensors,
      {}, interned(keywords), constants};  // lives as long as Python, as what it points at
  PyObject* parameters = PyTuple_New(PyTuple_GET_SIZE(tensors) + PyTuple_GET_SIZE(options));
  for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(tensors); ++i) {
    PyTuple_SET_ITEM(parameters, i, Py_NewRef(PyTuple_GET_ITEM(tensors, i)));
  }
  for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(options); ++i) {
    PyObject *name, *accepted;
    int number;
    if (!PyArg_ParseTuple(PyTuple_GET_ITEM(options, i), "UO!p", &name, &PyTuple_Type, &accepted, &number))
      return nullptr;
    PyTuple_SET_ITEM(parameters, PyTuple_GET_SIZE(tensors) + i, Py_NewRef(name));
    shortcut->options.push_back({Py_NewRef(accepted), number != 0, place_of(name, keywords)});
  }
  shortcut->parameters = interned(parameters);
  Py_DECREF(parameters);
  for (PyObject* kept : {op, recorded, forced, current, constants}) Py_INCREF(kept);
  static PyMethodDef definition = {"shortcut", reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(&answer)),
                                   METH_FASTCALL | METH_KEYWORDS, "The op's answer, or NotImplemented."};
  PyObject* capsule = PyCapsule_New(shortcut, nullptr, nullptr);
  PyObject* function = capsule ? PyCFunction_NewEx(&definition, capsule, nullptr) : nullptr;
  Py_XDECREF(capsule);
  return function;
}

}  // namespace

void add_shortcut(PyObject* module) {
  names = {find("torch", "is_grad_enabled"), PyUnicode_InternFromString("requires_grad"),
           PyUnicode_InternFromString("name"), PyUnicode_InternFromString("straight")};
  if (!names.is_grad_enabled) return;
  static PyMethodDef definitions[] = {
      {"shortcut", &make, METH_VARARGS,
       "shortcut(op, recorded, forced, current, tensors, positional, op_tensors, options, keywords, constants): see "
       "bigmodel_kernels/ops/shortcut.py."},
      {}};
  PyModule_AddFunctions(module, definitions);
}

}  // namespace bigmodel::binding::direct
