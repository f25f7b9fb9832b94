#include "options.h"

namespace bigmodel::binding {

Activation activation_named(const Call& call, const std::string& name) {
  if (name == "none") return Activation::none;
  if (name == "relu") return Activation::relu;
  if (name == "gelu") return Activation::gelu;
  if (name == "gelu_tanh") return Activation::gelu_tanh;
  if (name == "silu") return Activation::silu;
  call.fail("activation is '", name, "', expected 'none', 'relu', 'gelu', 'gelu_tanh' or 'silu'");
}

Dropout check_dropout(const Call& call, double dropout_p, const OptionalTensor& seed) {
  call.check(dropout_p >= 0.0 && dropout_p < 1.0, "dropout_p is ", dropout_p, ", expected 0 <= dropout_p < 1");
  if (dropout_p == 0.0) return {};
  call.check(seed.has_value(), "dropout_p is ", dropout_p, " but dropout_seed is missing");
  call.check_device("dropout_seed", *seed);
  std::int32_t dtype = 0;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_dtype(seed->get(), &dtype));
  call.check(dtype == aoti_torch_dtype_int64() && seed->numel() == 1, "dropout_seed has dtype ", dtype_name(*seed),
             " and shape ", shape_text(Layout(*seed).sizes), ", expected one int64");
  // No host waits for a seed that is on a device: the kernel reads it there.
  if (call.on_cuda()) return {dropout_p, 0, static_cast<const std::int64_t*>(seed->const_data_ptr())};
  return {dropout_p, static_cast<std::uint64_t>(*static_cast<const std::int64_t*>(seed->const_data_ptr()))};
}

}  // namespace bigmodel::binding
