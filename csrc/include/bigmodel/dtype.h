// Element types of the tensors that kernels read and write.
#pragma once

#include <cstdint>

namespace bigmodel {

enum class DType : std::int32_t { float32, bfloat16, float16, boolean, int8, int32, int64 };

// Of one element. Internal, so that no CPU target's code serves another.
static constexpr std::int64_t bytes_of(DType dtype) {
  switch (dtype) {
    case DType::float32:
    case DType::int32:
      return 4;
    case DType::bfloat16:
    case DType::float16:
      return 2;
    case DType::boolean:
    case DType::int8:
      return 1;
    case DType::int64:
      return 8;
  }
  return 0;
}

// Storage formats only: arithmetic happens in fp32, after conversion by the vector layer (csrc/cpu/isa).
struct bfloat16 {
  std::uint16_t bits;
};
struct float16 {
  std::uint16_t bits;
};

}  // namespace bigmodel
