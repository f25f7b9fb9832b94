#include "members.h"

#include <memory>

namespace bigmodel::binding::direct {
namespace {

constexpr int kinds_of_hooks = 4;

struct Names {
  PyObject *submodules, *parameters, *forward, *hooks[kinds_of_hooks];
};
Names names;

struct Release {
  void operator()(PyObject* object) const { Py_XDECREF(object); }
};
using Owned = std::unique_ptr<PyObject, Release>;

// An item, borrowed; nullptr where there is none, or no dictionary.
PyObject* item(PyObject* dictionary, PyObject* name) {
  PyObject* found = dictionary && PyDict_Check(dictionary) ? PyDict_GetItemWithError(dictionary, name) : nullptr;
  if (!found) PyErr_Clear();
  return found;
}

bool is_one_of(PyObject* classes, PyTypeObject* type) {
  for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(classes); ++i) {
    if (PyTuple_GET_ITEM(classes, i) == reinterpret_cast<PyObject*>(type)) return true;
  }
  return false;
}

// Whether nothing but its class decides what calling a module does, by the module's dictionary.
bool is_untouched(PyObject* members) {
  if (item(members, names.forward)) return false;
  for (PyObject* hooks : names.hooks) {
    PyObject* kept = item(members, hooks);
    if (!kept || !PyDict_Check(kept) || PyDict_GET_SIZE(kept) > 0) return false;
  }
  return true;
}

// Appends what a part names to a list; false where the module does not hold it, or not as its class alone would have
// it.
bool append_members(PyObject* module_members, PyObject* part, PyObject* found) {
  PyObject* const name = PyTuple_GET_ITEM(part, 0);
  PyObject *const classes = PyTuple_GET_ITEM(part, 1), *const wanted = PyTuple_GET_ITEM(part, 2);
  Owned owned(Py_NewRef(module_members));
  if (name != Py_None) {
    PyObject* submodule = item(item(module_members, names.submodules), name);
    if (!submodule || !is_one_of(classes, Py_TYPE(submodule))) return false;
    owned.reset(PyObject_GenericGetDict(submodule, nullptr));
    if (!owned || !is_untouched(owned.get())) return false;
  }
  PyObject* const members = owned.get();
  PyObject* const parameters = item(members, names.parameters);
  for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(wanted); ++i) {
    PyObject* value = item(parameters, PyTuple_GET_ITEM(wanted, i));
    if (!value) value = item(members, PyTuple_GET_ITEM(wanted, i));
    if (!value || PyList_Append(found, value) < 0) return false;
  }
  return true;
}

bool is_part(PyObject* part) {
  return PyTuple_Check(part) && PyTuple_GET_SIZE(part) == 3 && PyTuple_Check(PyTuple_GET_ITEM(part, 1)) &&
         PyTuple_Check(PyTuple_GET_ITEM(part, 2));
}

PyObject* plain_members(PyObject*, PyObject* const* arguments, Py_ssize_t count) {
  if (count != 2 || !PyTuple_Check(arguments[1])) {
    return PyErr_Format(PyExc_TypeError, "[plain_members] expected a module and a tuple of parts");
  }
  const Owned members(PyObject_GenericGetDict(arguments[0], nullptr));
  Owned found(members ? PyList_New(0) : nullptr);
  if (!found) return nullptr;
  for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(arguments[1]); ++i) {
    PyObject* const part = PyTuple_GET_ITEM(arguments[1], i);
    if (!is_part(part)) return PyErr_Format(PyExc_TypeError, "[plain_members] expected a part, got %R", part);
    if (append_members(members.get(), part, found.get())) continue;
    if (PyErr_Occurred()) return nullptr;
    Py_RETURN_NONE;
  }
  return found.release();
}

}  // namespace

void add_plain_members(PyObject* module) {
  names = {PyUnicode_InternFromString("_modules"),
           PyUnicode_InternFromString("_parameters"),
           PyUnicode_InternFromString("forward"),
           {PyUnicode_InternFromString("_forward_hooks"), PyUnicode_InternFromString("_forward_pre_hooks"),
            PyUnicode_InternFromString("_backward_hooks"), PyUnicode_InternFromString("_backward_pre_hooks")}};
  static PyMethodDef definitions[] = {
      {"plain_members", reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(&plain_members)), METH_FASTCALL,
       "plain_members(module, parts): see bigmodel_kernels/nn/members.py."},
      {}};
  PyModule_AddFunctions(module, definitions);
}

}  // namespace bigmodel::binding::direct
