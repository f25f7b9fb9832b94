// What the files that call Python share.
#pragma once

#include <Python.h>

namespace bigmodel::binding::direct {

// module.name, where the name may have several parts, a new reference; nullptr, without an error, where there is none.
PyObject* find(const char* module, const char* name);

}  // namespace bigmodel::binding::direct
