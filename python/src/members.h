// What the submodules of a torch.nn.Module hold, read from the dictionaries where torch keeps it: attribute after
// attribute, Python takes as long for a layer of a few tokens as two of its products (bench/NOTES.md has the figures).
#pragma once

#include <Python.h>

namespace bigmodel::binding::direct {

// Adds `plain_members` to a module: see bigmodel_kernels/nn/members.py.
void add_plain_members(PyObject* module);

}  // namespace bigmodel::binding::direct
