// Which ops each device has. A layout of packed weights is the CPU kernels' own. attention_decode, rotary and
// linear_cross_entropy have no other kernels yet: the first is not registered elsewhere, the other two refuse there.
#include "registration.h"

#include "namespace.h"

namespace {

void register_everywhere(bigmodel::binding::Library& library) {
  bigmodel::binding::register_attention(library);
  bigmodel::binding::register_attention_weights(library);
  bigmodel::binding::register_attention_varlen(library);
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
  bigmodel::binding::register_attention_decode(library);
#endif
}
#if defined(BIGMODEL_CUDA) && !defined(BIGMODEL_EMULATED)
BIGMODEL_LIBRARY_IMPL(BIGMODEL_NAMESPACE, CUDA, library) { register_everywhere(library); }
#endif
