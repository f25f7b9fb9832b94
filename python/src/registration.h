// What each op's file registers with torch's dispatcher: the same functions on every device.
#pragma once

#include <torch/csrc/stable/library.h>

namespace bigmodel::binding {

using Library = torch::stable::detail::StableLibrary;

void register_attention(Library& library);
void register_attention_weights(Library& library);
void register_attention_varlen(Library& library);
void register_attention_decode(Library& library);
void register_linear(Library& library);
void register_linear_pack(Library& library);  // a layout of the CPU kernels
void register_feed_forward(Library& library);
void register_add_norm(Library& library);
void register_rotary(Library& library);
void register_linear_cross_entropy(Library& library);

}  // namespace bigmodel::binding
