// Handlers made of a function of one lane.
#pragma once

#include "decoder.h"
#include "warp.h"

namespace ptx {

// d = F(a), F(a, b), F(a, b, c), lane by lane. D is the type of d; A, B, C of the operands.
template <class F, class D, class A>
void unary(Warp& warp, const Instruction& in) {
  D* d = warp.reg<D>(in.operand[0]);
  const A* a = warp.reg<A>(in.operand[1]);
  each_lane(warp, d, [=](int lane) { return F::apply(a[lane]); });
}

template <class F, class D, class A, class B>
void binary(Warp& warp, const Instruction& in) {
  D* d = warp.reg<D>(in.operand[0]);
  const A* a = warp.reg<A>(in.operand[1]);
  const B* b = warp.reg<B>(in.operand[2]);
  each_lane(warp, d, [=](int lane) { return F::apply(a[lane], b[lane]); });
}

template <class F, class D, class A, class B, class C>
void ternary(Warp& warp, const Instruction& in) {
  D* d = warp.reg<D>(in.operand[0]);
  const A* a = warp.reg<A>(in.operand[1]);
  const B* b = warp.reg<B>(in.operand[2]);
  const C* c = warp.reg<C>(in.operand[3]);
  each_lane(warp, d, [=](int lane) { return F::apply(a[lane], b[lane], c[lane]); });
}

// The same for functions that must not see the lanes that do not run (a division by zero would trap), or are slow.
template <class F, class D, class A>
void unary_scalar(Warp& warp, const Instruction& in) {
  D* d = warp.reg<D>(in.operand[0]);
  const A* a = warp.reg<A>(in.operand[1]);
  for_lanes(warp.exec, [=](int lane) { d[lane] = F::apply(a[lane]); });
}

template <class F, class D, class A, class B>
void binary_scalar(Warp& warp, const Instruction& in) {
  D* d = warp.reg<D>(in.operand[0]);
  const A* a = warp.reg<A>(in.operand[1]);
  const B* b = warp.reg<B>(in.operand[2]);
  for_lanes(warp.exec, [=](int lane) { d[lane] = F::apply(a[lane], b[lane]); });
}

// The operands of d = f(a, b, ...), all of one type.
inline void same_type_operands(Decoder& decoder, Type type, int sources) {
  decoder.has(sources + 1);
  decoder.instruction.operand[0] = decoder.destination(0, type);
  for (int i = 1; i <= sources; ++i) decoder.instruction.operand[i] = decoder.source(i, type);
}

}  // namespace ptx
