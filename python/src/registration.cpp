// Which ops each device has. A layout of packed weights is the CPU kernels' own.
#include "registration.h"

#include "namespace.h"

namespace {

void register_everywhere(bigmodel::binding::Library& library) {
  bigmodel::binding::register_attention(library);
  bigmodel::binding::register_attention_weights(library);
  bigmodel::binding::register_attention_varlen(library);
  bigmodel::binding::register_attention_decode(library);
  bigmodel::binding::register_linear(library);
  bigmodel::binding::register_feed_forward(library);
  bigmodel::binding::register_add_norm(library);
  bigmodel::binding::register_rotary(library);
  bigmodel::binding::register_linear_cross_entropy(library);
}

}  // namespace

BIGMODEL_LIBRARY_IMPL(BIGMODEL_NAMESPACE, CPU, library) {
  register_everywhere(library);
#if !defined(BIGMODEL_EMULATED)
  bigmodel::binding::register_linear_pack(library);
#endif
}
#if defined(BIGMODEL_CUDA) && !defined(BIGMODEL_EMULATED)
BIGMODEL_LIBRARY_IMPL(BIGMODEL_NAMESPACE, CUDA, library) { register_everywhere(library); }
#endif
