// rotary and its form in place: check, allocate, fill the arguments, call the kernel.
#include <torch/csrc/stable/ops.h>

#include <tuple>

#include "bigmodel/rotary.h"
#include "call.h"
#include "cpu/cpu.h"
#include "direct.h"
#include "registration.h"
#include "run.h"

namespace bigmodel::binding {
namespace {

// cos or sin: [rows, pairs], the same for every sequence, or [batch, length, pairs], seen as [batch, rows, pairs].
TensorView angles_view(const Call& call, const char* name, const OptionalTensor& table, std::int64_t batch,
                       std::int64_t length, bool by_position) {
  const Layout layout(*table);
  if (layout.sizes.size() == 3 && !by_position) {
    return call.tensor_or_float32(name, table, {batch, length, any_size});
  }
  TensorView view = call.tensor_or_float32(name, table, {any_size, any_size});
  call.check(by_position || view.size[0] >= length, name, " has ", view.size[0], " rows, expected at least ", length,
             ", one for each token");
  for (int dim = max_dims - 1; dim > 0; --dim) {
    view.size[dim] = view.size[dim - 1];
    view.stride[dim] = view.stride[dim - 1];
  }
  view.size[0] = batch;
  view.stride[0] = 0;
  return view;
}

// The positions, contiguous; `copy` keeps alive those that were not.
void check_positions(const Call& call, const OptionalTensor& positions, OptionalTensor& copy, RotaryArgs& args) {
  if (!positions) return;
  const std::int64_t batch = args.query.size[0], length = args.query.size[2], rows = args.cos.size[1];
  call.check_device("positions", *positions);
  std::int32_t dtype = 0;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_dtype(positions->get(), &dtype));
  const Sizes sizes = Layout(*positions).sizes;
  const bool shared = sizes.size() == 1 && sizes[0] == length;
  const bool each = sizes.size() == 2 && sizes[0] == batch && sizes[1] == length;
  call.check(dtype == aoti_torch_dtype_int64() && (shared || each), "positions has shape ", shape_text(sizes),
             " and dtype ", dtype_name(*positions), ", expected [", length, "] or [", batch, ", ", length,
             "] in int64");
  if (!positions->is_contiguous()) copy = torch::stable::contiguous(*positions);
  args.positions = static_cast<const std::int64_t*>((copy ? *copy : *positions).const_data_ptr());
  args.positions_batch_stride = shared ? 0 : length;
  if (call.on_cuda()) return;
  for (std::int64_t i = 0; i < positions->numel(); ++i) {
    call.check(args.positions[i] >= 0 && args.positions[i] < rows, "positions holds ", args.positions[i],
               ", expected numbers from 0 to ", rows - 1, ", rows of cos and sin");
  }
}

RotaryArgs checked(const Call& call, const Tensor& query, const OptionalTensor& key, const Tensor& cos,
                   const Tensor& sin, const OptionalTensor& positions, OptionalTensor& copy, bool interleaved,
                   bool inverse) {
  RotaryArgs args;
  args.query = call.tensor("query", query, {any_size, any_size, any_size, any_size});
  const std::int64_t batch = args.query.size[0], length = args.query.size[2], head_dim = args.query.size[3];
  args.key = call.tensor("key", key, {batch, any_size, length, head_dim});
  args.cos = angles_view(call, "cos", cos, batch, length, positions.has_value());
  args.sin = angles_view(call, "sin", sin, batch, length, positions.has_value());
  const std::int64_t pairs = args.cos.size[2];
  call.check(args.sin.size[1] == args.cos.size[1] && args.sin.size[2] == pairs && args.sin.dtype == args.cos.dtype,
             "sin has shape ", shape_text(Layout(sin).sizes), " and dtype ", dtype_name(sin),
             ", expected those of cos, ", shape_text(Layout(cos).sizes), " and ", dtype_name(cos));
  call.check(pairs >= 1 && 2 * pairs <= head_dim, "cos has ", pairs,
             " columns, one per pair of features, expected 1 to ", head_dim / 2, ", half of query's head_dim of ",
             head_dim);
  check_positions(call, positions, copy, args);
  args.interleaved = interleaved;
  args.inverse = inverse;
  return args;
}

void run_if_any(const Call& call, const Tensor& query, const OptionalTensor& key, RotaryArgs& args) {
  if (query.numel() == 0 && (!key || key->numel() == 0)) return;
  run(call, cpu::kernels().rotary, args);
}

std::tuple<Tensor, Tensor> rotary(const Tensor& query, const OptionalTensor& key, const Tensor& cos, const Tensor& sin,
                                  const OptionalTensor& positions, bool interleaved, bool inverse) {
  const Call call("rotary", "query", query);
  OptionalTensor copy;
  RotaryArgs args = checked(call, query, key, cos, sin, positions, copy, interleaved, inverse);
  Tensor turned_query = call.empty(Layout(query).sizes, call.dtype());
  Tensor turned_key = key ? call.empty(Layout(*key).sizes, call.dtype()) : call.nothing();
  args.query_output = tensor_view(turned_query, call.dtype());
  if (key) args.key_output = tensor_view(turned_key, call.dtype());
  run_if_any(call, query, key, args);
  return {std::move(turned_query), std::move(turned_key)};
}

void rotary_in_place(const Tensor& query, const OptionalTensor& key, const Tensor& cos, const Tensor& sin,
                     const OptionalTensor& positions, bool interleaved, bool inverse) {
  const Call call("rotary", "query", query);
  OptionalTensor copy;
  RotaryArgs args = checked(call, query, key, cos, sin, positions, copy, interleaved, inverse);
  call.check_writable("query", args.query);
  call.check_writable("key", args.key);
  call.check(!key || key->numel() == 0 || args.key.data != args.query.data,
             "query and key are one memory, expected two");
  args.query_output = args.query;
  args.key_output = args.key;
  run_if_any(call, query, key, args);
}

}  // namespace

void direct::add_rotary(Functions& functions) {
  functions.add<&rotary>("rotary", {"interleaved", "inverse"});
  functions.add<&rotary_in_place>("rotary_", {"interleaved", "inverse"});
}

void register_rotary(Library& library) {
  library.impl("rotary", TORCH_BOX(&rotary));
  library.impl("rotary_", TORCH_BOX(&rotary_in_place));
}

}  // namespace bigmodel::binding
