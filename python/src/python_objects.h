// What the files that call Python share.
#pragma once

#include <Python.h>

namespace bigmodel::binding::direct {

// module.name, where the name may have several parts, a new reference; nullptr, without an error, where there is none.
PyObject* find(const char* module, const char* name);

// A function of torch's that is called without arguments, past what Python does for every call of a function in C.
class Asked {
 public:
  Asked() = default;
  explicit Asked(PyObject* function) : function_(function) {
    if (!function || !PyCFunction_CheckExact(function)) return;
    self_ = PyCFunction_GET_SELF(function);
    const int flags = PyCFunction_GET_FLAGS(function);
    const auto code = reinterpret_cast<void (*)()>(PyCFunction_GET_FUNCTION(function));
    if (flags == METH_NOARGS) plain_ = reinterpret_cast<Plain*>(code);
    if (flags == (METH_FASTCALL | METH_KEYWORDS)) fast_ = reinterpret_cast<Fast*>(code);
    if (flags == (METH_VARARGS | METH_KEYWORDS)) {
      general_ = reinterpret_cast<General*>(code);
      nothing_ = PyTuple_New(0);
    }
  }

  bool exists() const { return function_; }
  PyObject* operator()() const {
    if (plain_) return plain_(self_, nullptr);
    if (fast_) return fast_(self_, nullptr, 0, nullptr);
    if (general_) return general_(self_, nothing_, nullptr);
    return PyObject_CallNoArgs(function_);
  }

 private:
  using Plain = PyObject*(PyObject*, PyObject*);
  using Fast = PyObject*(PyObject*, PyObject* const*, Py_ssize_t, PyObject*);
  using General = PyObject*(PyObject*, PyObject*, PyObject*);

  PyObject *function_ = nullptr, *self_ = nullptr, *nothing_ = nullptr;
  Plain* plain_ = nullptr;
  Fast* fast_ = nullptr;
  General* general_ = nullptr;
};

}  // namespace bigmodel::binding::direct
