// Weights laid out by linear_pack, as linear and feed_forward take them.
#pragma once

#include "call.h"

namespace bigmodel::binding {

// The bytes of `packed`, which linear_pack must have made from `weight` for the CPU target in use; nullptr when absent.
const void* checked_packed(const Call& call, const char* name, const OptionalTensor& packed, const TensorView& weight);

}  // namespace bigmodel::binding
