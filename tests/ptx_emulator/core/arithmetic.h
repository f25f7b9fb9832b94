// The arithmetic that integers, floats and halves share by name; arithmetic.cpp picks by type.
#pragma once

#include "decoder.h"

namespace ptx {

void decode_integer_add(Decoder& decoder);
void decode_integer_sub(Decoder& decoder);
void decode_integer_mul(Decoder& decoder);
void decode_integer_mad(Decoder& decoder);
void decode_integer_min(Decoder& decoder);
void decode_integer_max(Decoder& decoder);
void decode_integer_abs(Decoder& decoder);
void decode_integer_neg(Decoder& decoder);
void decode_integer_div(Decoder& decoder);

void decode_float(Decoder& decoder, Type type);  // f32, f64
void decode_half(Decoder& decoder, Type type);   // f16, bf16 and their pairs

}  // namespace ptx
