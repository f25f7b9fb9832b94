// atom and red: one lane after another. A kernel with atomics on global memory runs its blocks one after another, so
// that its results do not depend on threads.
#include <algorithm>

#include "access.h"
#include "floats.h"

namespace ptx {
namespace {

enum class Operation : std::uint8_t {
  add,
  min,
  max,
  logical_and,
  logical_or,
  logical_xor,
  exchange,
  compare_and_swap,
  increment,
  decrement
};
constexpr const char* operation_names[] = {"add", "min", "max", "and", "or", "xor", "exch", "cas", "inc", "dec"};

template <class T>
T integer_result(Operation operation, T old, T b, T c) {
  using U = std::make_unsigned_t<T>;
  switch (operation) {
    case Operation::add:
      return static_cast<T>(U(old) + U(b));
    case Operation::min:
      return std::min(old, b);
    case Operation::max:
      return std::max(old, b);
    case Operation::logical_and:
      return old & b;
    case Operation::logical_or:
      return old | b;
    case Operation::logical_xor:
      return old ^ b;
    case Operation::exchange:
      return b;
    case Operation::compare_and_swap:
      return old == b ? c : old;
    case Operation::increment:
      return U(old) >= U(b) ? T(0) : static_cast<T>(old + 1);
    default:
      return old == 0 || U(old) > U(b) ? b : static_cast<T>(old - 1);
  }
}

template <class T>
struct Integer {
  using Bits = T;
  static T apply(Operation operation, T old, T b, T c) { return integer_result<T>(operation, old, b, c); }
};
struct F32 {  // flushes on global memory only where .ftz would say so; red.f32 on devices keeps subnormals in shared
  using Bits = float;
  static float apply(Operation, float old, float b, float) { return canonical(old + b); }
};
struct F64 {
  using Bits = double;
  static double apply(Operation, double old, double b, double) { return old + b; }
};
template <bool brain, class T>
struct Halves {
  using Bits = T;
  static T apply(Operation, T old, T b, T) {
    T result = 0;
    for (std::size_t i = 0; i < sizeof(T) / 2; ++i) {
      const auto x = static_cast<std::uint16_t>(old >> (16 * i)), y = static_cast<std::uint16_t>(b >> (16 * i));
      const double sum =
          brain ? odd_sum(float_of_bf16(x), float_of_bf16(y)) : odd_sum(float_of_f16(x), float_of_f16(y));
      const std::uint32_t bits = rounded_bits(sum, brain ? bf16_format : f16_format, Rounding::nearest, 0x7fff);
      result |= static_cast<T>(static_cast<std::uint64_t>(bits) << (16 * i));
    }
    return result;
  }
};

// operand: d (0: red), address, b, c.
template <class F>
void atomic(Warp& warp, const Instruction& in) {
  using T = typename F::Bits;
  std::uint64_t addresses[warp_size];
  addresses_of(warp, in, 1, in.immediate, addresses);
  const Places places = places_of(warp, in.access.space, Use::atomic, addresses, warp.exec, sizeof(T));
  T* d = in.operand[0] ? warp.reg<T>(in.operand[0]) : nullptr;
  const T *b = warp.reg<T>(in.operand[2]), *c = in.operand[3] ? warp.reg<T>(in.operand[3]) : b;
  for_lanes(places.allowed, [&](int lane) {
    T old;
    std::memcpy(&old, places.at[lane], sizeof(T));
    const T result = F::apply(static_cast<Operation>(in.choice), old, b[lane], c[lane]);
    std::memcpy(places.at[lane], &result, sizeof(T));
    if (d != nullptr) d[lane] = old;
  });
}

Handler handler_for(Decoder& decoder, Type type, Operation operation) {
  const bool adds = operation == Operation::add;
  switch (type) {
    case Type::u32:
    case Type::b32:
      return &atomic<Integer<std::uint32_t>>;
    case Type::s32:
      return &atomic<Integer<std::int32_t>>;
    case Type::u64:
    case Type::b64:
      return &atomic<Integer<std::uint64_t>>;
    case Type::s64:
      return &atomic<Integer<std::int64_t>>;
    case Type::b16:
      return &atomic<Integer<std::uint16_t>>;
    case Type::f32:
      if (adds) return &atomic<F32>;
      break;
    case Type::f64:
      if (adds) return &atomic<F64>;
      break;
    case Type::f16:
      if (adds) return &atomic<Halves<false, std::uint16_t>>;
      break;
    case Type::bf16:
      if (adds) return &atomic<Halves<true, std::uint16_t>>;
      break;
    case Type::f16x2:
      if (adds) return &atomic<Halves<false, std::uint32_t>>;
      break;
    case Type::bf16x2:
      if (adds) return &atomic<Halves<true, std::uint32_t>>;
      break;
    default:
      break;
  }
  decoder.fail("not for this type");
}

void decode_atomic(Decoder& decoder, bool returns) {
  Form& form = decoder.form;
  Instruction& in = decoder.instruction;
  form.take_one({"relaxed", "acquire", "release", "acq_rel"});
  const bool shared = form.take("shared") || form.take("shared::cta");
  in.access.space = shared ? Space::shared : form.take("global") ? Space::global : Space::generic;
  form.take_one({"cta", "gpu", "sys", "cluster"});
  const std::string name = form.take_one({"add", "min", "max", "and", "or", "xor", "exch", "cas", "inc", "dec"});
  if (name.empty()) decoder.fail("expected an operation");
  const auto found = std::find(std::begin(operation_names), std::end(operation_names), name);
  const auto operation = static_cast<Operation>(found - std::begin(operation_names));
  form.take("noftz");
  const Type type = form.take_type();
  const int at = returns ? 1 : 0, sources = operation == Operation::compare_and_swap ? 2 : 1;
  decoder.has(at + 1 + sources);
  if (returns) in.operand[0] = decoder.destination(0, type);
  in.immediate = decoder.address(at, 1);
  for (int i = 0; i < sources; ++i) in.operand[2 + i] = decoder.source(at + 1 + i, type);
  in.choice = static_cast<std::uint8_t>(operation);
  in.type = Class::atomic;
  in.handler = handler_for(decoder, type, operation);
  if (!shared) decoder.uses_global_atomics();
}

}  // namespace

void add_atomic(DecodeTable& table) {
  table["atom"] = [](Decoder& decoder) { decode_atomic(decoder, true); };
  table["red"] = [](Decoder& decoder) { decode_atomic(decoder, false); };
}

}  // namespace ptx
