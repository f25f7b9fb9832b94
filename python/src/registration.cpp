// Which ops each device has. A device without a kernel for an op does not register it, and backends.py says so.
#include "registration.h"

#include "namespace.h"

namespace {

#if defined(BIGMODEL_CUDA)
void register_cuda(bigmodel::binding::Library& library) { bigmodel::binding::register_add_norm(library); }
#endif

#if !defined(BIGMODEL_EMULATED)
void register_cpu(bigmodel::binding::Library& library) {
  bigmodel::binding::register_attention(library);
  bigmodel::binding::register_attention_weights(library);
  bigmodel::binding::register_linear(library);
  bigmodel::binding::register_linear_pack(library);
  bigmodel::binding::register_feed_forward(library);
  bigmodel::binding::register_add_norm(library);
}
#endif

}  // namespace

#if defined(BIGMODEL_EMULATED)
BIGMODEL_LIBRARY_IMPL(BIGMODEL_NAMESPACE, CPU, library) { register_cuda(library); }
#else
BIGMODEL_LIBRARY_IMPL(BIGMODEL_NAMESPACE, CPU, library) { register_cpu(library); }
#if defined(BIGMODEL_CUDA)
BIGMODEL_LIBRARY_IMPL(BIGMODEL_NAMESPACE, CUDA, library) { register_cuda(library); }
#endif
#endif
