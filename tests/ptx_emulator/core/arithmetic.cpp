#include "arithmetic.h"

namespace ptx {
namespace {

// The type of an opcode without taking it.
Type type_of(const Decoder& decoder) {
  Form copy = decoder.form;
  return copy.take_type();
}

template <Decode integers>
void decode_by_type(Decoder& decoder) {
  switch (const Type type = type_of(decoder); type) {
    case Type::f32:
    case Type::f64:
      return decode_float(decoder, type);
    case Type::f16:
    case Type::bf16:
    case Type::f16x2:
    case Type::bf16x2:
      return decode_half(decoder, type);
    default:
      return integers(decoder);
  }
}

}  // namespace

void add_float(DecodeTable& table) {
  table["add"] = decode_by_type<decode_integer_add>;
  table["sub"] = decode_by_type<decode_integer_sub>;
  table["mul"] = decode_by_type<decode_integer_mul>;
  table["mad"] = table["fma"] = decode_by_type<decode_integer_mad>;
  table["min"] = decode_by_type<decode_integer_min>;
  table["max"] = decode_by_type<decode_integer_max>;
  table["abs"] = decode_by_type<decode_integer_abs>;
  table["neg"] = decode_by_type<decode_integer_neg>;
  table["div"] = decode_by_type<decode_integer_div>;
}

}  // namespace ptx
