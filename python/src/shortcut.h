// A Python function's plain calls, answered without Python's own code between the call and the op: for small tensors
// that code takes as long as the kernel (bench/NOTES.md has the figures).
#pragma once

#include <Python.h>

namespace bigmodel::binding::direct {

// Adds `shortcut` to a module, which makes such answers; its docstring says what of. Called after find_watchers().
void add_shortcut(PyObject* module);

// Whether a call, of which x is the first tensor, may go to the kernels as it is: 1, 0, or -1 with an error set.
int takes_tensor(PyObject* x);

// Whether an argument is a tensor without subclass.
bool is_plain_type(PyObject* object);

}  // namespace bigmodel::binding::direct
