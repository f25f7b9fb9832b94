#include "direct.h"

#include <algorithm>
#include <iterator>
#include <string_view>
#include <utility>

#include "dlpack.h"
#include "members.h"
#include "python_objects.h"
#include "shortcut.h"
#include "watchers.h"

namespace bigmodel::binding::direct {
namespace {

// A method without arguments of a type written in C, called without looking for it again.
class Method {
 public:
  Method() = default;
  explicit Method(PyObject* descriptor) : descriptor_(descriptor) {
    if (!descriptor || !Py_IS_TYPE(descriptor, &PyMethodDescr_Type)) return;
    const PyMethodDef* definition = reinterpret_cast<PyMethodDescrObject*>(descriptor)->d_method;
    if (definition->ml_flags == METH_NOARGS) function_ = definition->ml_meth;
  }

  bool exists() const { return descriptor_; }
  // Of an object of that type.
  PyObject* operator()(PyObject* self) const {
    return function_ ? function_(self, nullptr) : PyObject_CallOneArg(descriptor_, self);
  }

 private:
  PyObject* descriptor_ = nullptr;
  PyCFunction function_ = nullptr;
};

// What torch has in Python for ahead-of-time compiled models: tensors to handles of its C interface, and back.
struct Torch {
  PyObject *tensor_type, *parameter_type, *to_handle, *from_handles, *is_cpu, *dtype;
  Method is_neg;
  PyObject* dtypes[3];  // of the kernels
  // Of torch's tensors; nullptr where this torch has none.
  int (*describe)(void* object, dlpack::Tensor* tensor);
};
Torch torch;

decltype(Torch::describe) find_describe() {
  PyObject* capsule = find("torch", "Tensor.__dlpack_c_exchange_api__");
  const auto* api = static_cast<dlpack::ExchangeApi*>(capsule ? PyCapsule_GetPointer(capsule, "dlpack_exchange_api")
                                                              : nullptr);  // lives as long as torch
  Py_XDECREF(capsule);
  PyErr_Clear();
  return api && api->major == dlpack::major_version ? api->describe : nullptr;
}

bool find_torch() {
  torch = {find("torch", "Tensor"),
           find("torch.nn", "Parameter"),
           find("torch._C._aoti", "unsafe_alloc_void_ptr_from_tensor"),
           find("torch._C._aoti", "alloc_tensors_by_stealing_from_void_ptrs"),
           PyUnicode_InternFromString("is_cpu"),
           PyUnicode_InternFromString("dtype"),
           Method(find("torch", "Tensor.is_neg")),
           {find("torch", "float32"), find("torch", "bfloat16"), find("torch", "float16")},
           find_describe()};
  return torch.tensor_type && torch.parameter_type && torch.to_handle && torch.from_handles && torch.is_neg.exists();
}

[[noreturn]] void refuse(const char* message) {
  PyErr_SetString(PyExc_TypeError, message);
  throw PythonError();
}

PyObject* required(PyObject* object) {
  if (!object) throw PythonError();
  return object;
}

// Its handle, unchecked.
Tensor made_tensor(PyObject* tensor) {
  PyObject* capsule = required(PyObject_CallOneArg(torch.to_handle, tensor));
  auto* handle = static_cast<AtenTensorHandle>(PyCapsule_GetPointer(capsule, nullptr));
  Py_DECREF(capsule);
  if (!handle) throw PythonError();
  return Tensor(handle);
}

// The same for kernels' functions, which may run without the lock.
Tensor make_tensor(void* object) {
  struct Lock {
    PyGILState_STATE state = PyGILState_Ensure();
    ~Lock() { PyGILState_Release(state); }
  } lock;
  return made_tensor(static_cast<PyObject*>(object));
}

std::optional<DType> dtype_of(const dlpack::Tensor& tensor) {
  if (tensor.dtype_lanes != 1) return std::nullopt;
  const bool half = tensor.dtype_bits == 16;
  if (tensor.dtype_code == dlpack::brain_floating && half) return DType::bfloat16;
  if (tensor.dtype_code != dlpack::floating) return std::nullopt;
  if (half) return DType::float16;
  return tensor.dtype_bits == 32 ? std::optional(DType::float32) : std::nullopt;
}

// What a plain tensor is, if it is what Plain says and torch can tell; it may still be a lazily negated one. A lazily
// cloned one gets memory of its own by being asked.
bool describe(PyObject* object, Plain& plain) {
  dlpack::Tensor told;
  if (!torch.describe) return false;
  if (torch.describe(object, &told) != 0) {  // sparse, batched, on a device unknown to DLPack ...
    PyErr_Clear();
    return false;
  }
  const std::optional<DType> dtype = dtype_of(told);
  if (told.device_type != dlpack::on_cpu || !dtype || !told.data || !told.sizes || !told.strides) return false;
  const auto dims = static_cast<std::size_t>(told.dims);
  plain.data = static_cast<const char*>(told.data) + told.byte_offset;
  plain.layout.sizes = {told.sizes, dims};
  plain.layout.strides = {told.strides, dims};
  plain.dtype = *dtype;
  plain.object = object;
  plain.make = &make_tensor;
  return std::ranges::find(plain.layout.sizes, 0) == plain.layout.sizes.end();
}

// Whether a plain tensor is on the CPU and of a dtype that the kernels compute.
bool suits_kernels(PyObject* tensor) {
  PyObject* on_cpu = required(PyObject_GetAttr(tensor, torch.is_cpu));
  Py_DECREF(on_cpu);
  PyObject* dtype = required(PyObject_GetAttr(tensor, torch.dtype));
  Py_DECREF(dtype);
  return on_cpu == Py_True && std::ranges::find(torch.dtypes, dtype) != std::end(torch.dtypes);
}

// It holds its values as they are, and nothing else is to be asked for them.
void check_plain(PyObject* argument) {
  if (!is_plain_type(argument)) refuse("expected a plain tensor");
  PyObject* negated = required(torch.is_neg(argument));
  Py_DECREF(negated);
  if (negated != Py_False) refuse("expected a tensor whose memory holds its values");
}

PyObject* unwatched(PyObject*, PyObject*) {
  const int value = watched();
  return value < 0 ? nullptr : PyBool_FromLong(!value);
}

PyObject* takes(PyObject*, PyObject* x) {
  const int value = takes_tensor(x);
  return value < 0 ? nullptr : PyBool_FromLong(value);
}

// Of its own, since torch takes it over.
AtenTensorHandle new_handle(const Tensor& tensor) {
  AtenTensorHandle handle = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_new_tensor_handle(tensor.get(), &handle));
  return handle;
}

PyObject* capsule_of(const Tensor& tensor) { return required(PyCapsule_New(new_handle(tensor), nullptr, nullptr)); }

void check_no_error(bool suspicious) {
  if (suspicious && PyErr_Occurred()) throw PythonError();
}

}  // namespace

PyObject* find(const char* module, const char* name) {
  PyObject* found = PyImport_ImportModule(module);
  for (std::string_view rest = name; found && !rest.empty();) {
    const std::string part(rest.substr(0, rest.find('.')));
    rest.remove_prefix(std::min(rest.size(), part.size() + 1));
    Py_SETREF(found, PyObject_GetAttrString(found, part.c_str()));
  }
  PyErr_Clear();
  return found;
}

bool is_plain_type(PyObject* object) {
  PyObject* type = reinterpret_cast<PyObject*>(Py_TYPE(object));
  return type == torch.tensor_type || type == torch.parameter_type;
}

int takes_tensor(PyObject* x) {
  try {
    if (!is_plain_type(x) || !suits_kernels(x)) return 0;
  } catch (const PythonError&) {
    return -1;
  }
  const int changes = autocast();
  const int value = changes == 0 ? watched() : changes;
  return value < 0 ? value : !value;
}

Tensor to_tensor(PyObject* argument) {
  check_plain(argument);
  const Tensor tensor = made_tensor(argument);
  try {
    if (tensor.numel() == 0 || tensor.const_data_ptr()) return tensor;
  } catch (const std::exception&) {  // torch knows no address for it: sparse, batched ...
  }
  refuse("expected a tensor with memory");
}

Operand to_operand(PyObject* argument) {
  check_plain(argument);
  if (Plain plain; describe(argument, plain)) return Operand(plain);
  return Operand::owning(to_tensor(argument));
}

PyObject* to_python(std::span<const Tensor* const> tensors) {
  const auto count = static_cast<Py_ssize_t>(tensors.size());
  PyObject* capsules = required(PyList_New(count));
  for (Py_ssize_t i = 0; i < count; ++i)
    PyList_SET_ITEM(capsules, i, capsule_of(*tensors[static_cast<std::size_t>(i)]));
  PyObject* list = PyObject_CallOneArg(torch.from_handles, capsules);
  Py_DECREF(capsules);
  PyObject* result = PyList_AsTuple(required(list));
  Py_DECREF(list);
  return required(result);
}

PyObject* to_python(const Tensor& tensor) {
  // The list of one is kept from call to call; another is made while this one is in use, by a finaliser say.
  static PyObject* kept = nullptr;
  PyObject* capsules = std::exchange(kept, nullptr);
  if (!capsules) {
    capsules = required(PyList_New(1));
    PyList_SET_ITEM(capsules, 0, capsule_of(tensor));
  } else {
    PyCapsule_SetPointer(PyList_GET_ITEM(capsules, 0), new_handle(tensor));
  }
  PyObject* list = PyObject_CallOneArg(torch.from_handles, capsules);
  Py_XSETREF(kept, capsules);
  PyObject* result = Py_NewRef(PyList_GET_ITEM(required(list), 0));
  Py_DECREF(list);
  return result;
}

PyObject* to_python(const std::optional<Tensor>& tensor) { return tensor ? to_python(*tensor) : Py_NewRef(Py_None); }

PyObject* to_python(const std::tuple<std::optional<Tensor>, Tensor>& tensors) {
  const auto& [first, second] = tensors;
  if (!first) return to_python(second);
  const Tensor* const both[] = {&*first, &second};
  return to_python(std::span(both));
}

PyObject* to_python(std::int64_t number) { return required(PyLong_FromLongLong(number)); }

std::string to_string(PyObject* argument) {
  Py_ssize_t size = 0;
  const char* text = PyUnicode_AsUTF8AndSize(argument, &size);
  if (!text) throw PythonError();
  return std::string(text, static_cast<std::size_t>(size));
}

std::vector<bool> to_flags(PyObject* argument) {
  PyObject* sequence = required(PySequence_Fast(argument, "expected a sequence of bools"));
  std::vector<bool> flags(static_cast<std::size_t>(PySequence_Fast_GET_SIZE(sequence)));
  for (std::size_t i = 0; i < flags.size(); ++i) {
    flags[i] = to_bool(PySequence_Fast_GET_ITEM(sequence, static_cast<Py_ssize_t>(i)));
  }
  Py_DECREF(sequence);
  return flags;
}

std::int64_t to_int(PyObject* argument) {
  const std::int64_t value = PyLong_AsLongLong(argument);
  check_no_error(value == -1);
  return value;
}

double to_double(PyObject* argument) {
  const double value = PyFloat_AsDouble(argument);
  check_no_error(value == -1.0);
  return value;
}

bool to_bool(PyObject* argument) {
  const int value = PyObject_IsTrue(argument);
  check_no_error(value == -1);
  return value != 0;
}

void put_in_order(PyObject* keywords, PyObject* const* arguments, Py_ssize_t positional, PyObject* given,
                  std::span<PyObject*> ordered) {
  const Py_ssize_t keyword_count = PyTuple_GET_SIZE(keywords), given_count = given ? PyTuple_GET_SIZE(given) : 0;
  const Py_ssize_t first_keyword = static_cast<Py_ssize_t>(ordered.size()) - keyword_count;
  if (positional != first_keyword || given_count != keyword_count) {
    refuse("expected all of the op's arguments, those after the * by name");
  }
  for (Py_ssize_t i = 0; i < positional; ++i) ordered[i] = arguments[i];
  for (Py_ssize_t i = 0; i < given_count; ++i) {
    // Names in programs are interned, as ours are, so that one name is mostly one object.
    PyObject* name = PyTuple_GET_ITEM(given, i);
    Py_ssize_t place = 0;
    while (place < keyword_count && PyTuple_GET_ITEM(keywords, place) != name) ++place;
    if (place == keyword_count) {
      for (place = 0; place < keyword_count && PyUnicode_Compare(PyTuple_GET_ITEM(keywords, place), name) != 0;)
        ++place;
    }
    if (place == keyword_count) refuse("expected only arguments of the op");
    ordered[first_keyword + place] = arguments[positional + i];
  }
}

void Functions::add(const char* name, PyCFunction call, std::initializer_list<const char*> keywords) {
  PyObject* names = required(PyTuple_New(static_cast<Py_ssize_t>(keywords.size())));
  Py_ssize_t index = 0;
  for (const char* keyword : keywords) {
    PyTuple_SET_ITEM(names, index++, required(PyUnicode_InternFromString(keyword)));
  }
  auto* definition = new PyMethodDef{name, call, METH_FASTCALL | METH_KEYWORDS, nullptr};  // lives as long as Python
  PyObject* function = required(PyCFunction_NewEx(definition, names, nullptr));
  Py_DECREF(names);
  if (PyModule_AddObject(module_, name, function) != 0) throw PythonError();
}

void define(PyObject* module) {
  if (!find_torch() || !find_watchers()) return;
  static PyMethodDef questions[] = {
      {"unwatched", &unwatched, METH_NOARGS, "Whether nothing needs to see the calls of ops in this thread now."},
      {"takes", &takes, METH_O, "Whether unwatched(), without autocast, and the argument is a tensor for the kernels."},
      {}};
  if (PyModule_AddFunctions(module, questions) != 0) throw PythonError();
  add_shortcut(module);
  add_plain_members(module);
  Functions functions(module);
  add_attention(functions);
  add_attention_weights(functions);
  add_attention_varlen(functions);
  add_attention_decode(functions);
  add_linear(functions);
  add_self_attention(functions);
  add_encoder_layer(functions);
  add_feed_forward(functions);
  add_add_norm(functions);
  add_rotary(functions);
  add_linear_cross_entropy(functions);
}

}  // namespace bigmodel::binding::direct
