// The kernel table of one CPU target: compiled once per target, each time with another BIGMODEL_TARGET.
#include "cpu/kernels.h"

#define BIGMODEL_NAME_OF(name) #name
#define BIGMODEL_TARGET_NAME(name) BIGMODEL_NAME_OF(name)

namespace bigmodel::cpu::BIGMODEL_TARGET {

extern constinit const KernelTable kernel_table = {
    .target = BIGMODEL_TARGET_NAME(BIGMODEL_TARGET),
    .attention_forward = {attention_forward_workspace, attention_forward},
    .attention_backward = {attention_backward_workspace, attention_backward},
    .attention_weights_forward = {attention_weights_forward_workspace, attention_weights_forward},
    .attention_with_weights = {attention_with_weights_workspace, attention_with_weights},
    .attention_weights_backward = {attention_weights_backward_workspace, attention_weights_backward},
    .attention_varlen_forward = {attention_varlen_forward_workspace, attention_varlen_forward},
    .attention_varlen_backward = {attention_varlen_backward_workspace, attention_varlen_backward},
    .attention_decode = {attention_decode_workspace, attention_decode},
    .linear_forward = {linear_forward_workspace, linear_forward},
    .linear_backward = {linear_backward_workspace, linear_backward},
    .linear_packed_bytes = linear_packed_bytes,
    .linear_pack = {linear_pack_workspace, linear_pack},
    .fingerprint = fingerprint,
    .feed_forward_forward = {feed_forward_forward_workspace, feed_forward_forward},
    .feed_forward_backward = {feed_forward_backward_workspace, feed_forward_backward},
    .add_norm_forward = {add_norm_forward_workspace, add_norm_forward},
    .add_norm_backward = {add_norm_backward_workspace, add_norm_backward},
    .rotary = {rotary_workspace, rotary},
    .linear_cross_entropy_forward = {linear_cross_entropy_forward_workspace, linear_cross_entropy_forward},
    .linear_cross_entropy_backward = {linear_cross_entropy_backward_workspace, linear_cross_entropy_backward},
    .peak_multiply_add = peak_multiply_add,
    .peak_bf16_dot = peak_bf16_dot,
    .peak_int8_dot = peak_int8_dot,
    .peak_read = peak_read,
};

}  // namespace bigmodel::cpu::BIGMODEL_TARGET
