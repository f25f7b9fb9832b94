// The namespace of torch.ops in which this library defines its schemas. tests/ptx_emulator builds the binding a second
// time in a namespace of its own, where the CUDA kernels take CPU tensors.
#pragma once

#include <torch/csrc/stable/library.h>

#ifndef BIGMODEL_NAMESPACE
#define BIGMODEL_NAMESPACE bigmodel
#endif

// As torch's macros, but the namespace may be a macro itself.
#define BIGMODEL_LIBRARY(space, library) STABLE_TORCH_LIBRARY(space, library)
#define BIGMODEL_LIBRARY_IMPL(space, key, library) STABLE_TORCH_LIBRARY_IMPL(space, key, library)
