// Kernels' names as people read them.
#pragma once

#include <string>

namespace ptx {

// _ZN8bigmodel4cuda... -> bigmodel::cuda::file_cu::kernel<float, 64>; names that are not C++'s stay.
std::string readable(const std::string& name);

}  // namespace ptx
