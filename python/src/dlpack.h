// What is used of DLPack's C interface (version 1), by which torch describes a tensor object of Python without a handle
// for it: https://dmlc.github.io/dlpack/latest/c_api.html. torch's own copy of that header is not for extensions that
// keep to its stable interface.
#pragma once

#include <cstdint>

namespace bigmodel::binding::dlpack {

inline constexpr std::uint32_t major_version = 1;
inline constexpr std::int32_t on_cpu = 1;
inline constexpr std::uint8_t floating = 2, brain_floating = 4;

struct Tensor {
  void* data;
  std::int32_t device_type, device_id;
  std::int32_t dims;
  std::uint8_t dtype_code, dtype_bits;
  std::uint16_t dtype_lanes;
  std::int64_t *sizes, *strides;  // the tensor's own
  std::uint64_t byte_offset;
};

struct ExchangeApi {
  std::uint32_t major, minor;
  ExchangeApi* previous;
  void *allocate, *managed_from_object, *object_from_managed;
  int (*describe)(void* object, Tensor* tensor);  // -1 with a Python error set; nullptr where it is not offered
  void* current_work_stream;
};

static_assert(sizeof(Tensor) == 48 && sizeof(ExchangeApi) == 56);

}  // namespace bigmodel::binding::dlpack
