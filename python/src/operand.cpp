#include "operand.h"

namespace bigmodel::binding {
namespace {

// What a question of torch's C interface answers about a tensor.
template <class Answer>
Answer ask(AOTITorchError (*question)(AtenTensorHandle, Answer*), const torch::stable::Tensor& tensor) {
  Answer answer{};
  STABLE_TORCH_ERROR_CODE_CHECK(question(tensor.get(), &answer));
  return answer;
}

// Tensors on the CPU have no index.
constexpr std::int32_t cpu_index = -1;

}  // namespace

std::int64_t Operand::numel() const {
  if (handle()) return handle()->numel();
  std::int64_t count = 1;
  for (const std::int64_t size : plain_.layout.sizes) count *= size;
  return count;
}

std::int32_t Operand::torch_dtype() const {
  return handle() ? ask(&aoti_torch_get_dtype, *handle()) : binding::torch_dtype(plain_.dtype);
}

std::int32_t Operand::device_type() const {
  return handle() ? ask(&aoti_torch_get_device_type, *handle()) : aoti_torch_device_type_cpu();
}

std::int32_t Operand::device_index() const {
  return handle() ? ask(&aoti_torch_get_device_index, *handle()) : cpu_index;
}

}  // namespace bigmodel::binding
