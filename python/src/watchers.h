// Whether anything needs to see the calls of ops: then they go through torch's dispatcher.
#pragma once

#include <Python.h>

namespace bigmodel::binding::direct {

// Finds how this torch tells. False where it does not.
bool find_watchers();

// 1 if a mode, a transform, tracing or a profiler sees this thread's calls, 0 if nothing does, -1 with an error set.
int watched();

// The same for autocast, which changes dtypes.
int autocast();

}  // namespace bigmodel::binding::direct
