// Weights laid out by linear_pack, as linear and feed_forward take them, and when that is no use.
#pragma once

#include "call.h"

namespace bigmodel::binding {

// The bytes of `packed`, which linear_pack must have made from `weight` for the CPU target in use; nullptr when absent.
const void* checked_packed(const Call& call, const char* name, const OptionalTensor& packed, const TensorView& weight);

// Laying out a smaller weight on the way costs about as much as looking its packed form up.
inline constexpr std::int64_t least_packed_elements = 16384;

// So many rows gain nothing from a packed form of a weight of so many elements that has to be looked up: they are
// multiplied by it as it lies in memory, or it is small (csrc/cpu/few_rows.h). Pairs of bfloat16 are multiplied faster
// by a packed form, but looking it up costs more than that saves where the weight is small, and where it comes from
// memory, which the look-up reads once more (Zen 4).
std::int64_t few_rows(DType dtype, std::int64_t weight_elements);

// Whether the rows of `input` gain nothing from a packed form of a weight.
bool takes_as_it_lies(const Call& call, const Operand& input, const Operand& weight);

}  // namespace bigmodel::binding
