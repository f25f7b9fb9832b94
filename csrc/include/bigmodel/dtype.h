// Element types of the tensors that kernels read and write.
#pragma once

#include <cstdint>

namespace bigmodel {

enum class DType : std::int32_t { float32, bfloat16, float16, boolean, int8, int32, int64 };

// Storage formats only: arithmetic happens in fp32, after conversion by the vector layer (csrc/cpu/isa).
struct bfloat16 {
  std::uint16_t bits;
};
struct float16 {
  std::uint16_t bits;
};

}  // namespace bigmodel
