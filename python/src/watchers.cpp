#include "watchers.h"

#include "python_objects.h"

namespace bigmodel::binding::direct {
namespace {

// A Python function that tells of one kind of watcher: something true where one is there.
struct Question {
  const char *module, *name;
  PyObject* function = nullptr;
};
Question questions[] = {
    {"torch._C", "_len_torch_dispatch_stack"},
    {"torch._C", "_len_torch_function_stack"},
    {"torch._C", "_is_tracing"},
    {"torch._C", "_are_functorch_transforms_active"},
    {"torch.autograd", "_profiler_enabled"},
};

// Modes that trace before the dispatcher switch this key on in the thread; it is asked for faster than they are.
PyObject *key_included, *pre_dispatch_key;
PyObject* any_autocast;
// Forward-mode differentiation runs from level 0 on.
PyObject *forward_ad, *current_level;

// What an answer comes to; takes the reference. -1 with an error set.
int truth(PyObject* answer) {
  if (!answer) return -1;
  const int value = PyObject_IsTrue(answer);
  Py_DECREF(answer);
  return value;
}

int forward_mode() {
  PyObject* level = PyObject_GetAttr(forward_ad, current_level);
  if (!level) return -1;
  const long value = PyLong_AsLong(level);
  Py_DECREF(level);
  return value == -1 && PyErr_Occurred() ? -1 : value >= 0;
}

}  // namespace

bool find_watchers() {
  bool found = true;
  for (Question& question : questions) {
    question.function = find(question.module, question.name);
    found = found && question.function;
  }
  key_included = find("torch._C", "_dispatch_tls_is_dispatch_key_included");
  any_autocast = find("torch._C", "_is_any_autocast_enabled");
  PyObject* keys = find("torch._C", "DispatchKey");
  pre_dispatch_key = keys ? PyObject_GetAttrString(keys, "PreDispatch") : nullptr;
  Py_XDECREF(keys);
  PyErr_Clear();
  forward_ad = find("torch.autograd", "forward_ad");
  current_level = PyUnicode_InternFromString("_current_level");
  const bool has_level = forward_ad && current_level && PyObject_HasAttr(forward_ad, current_level);
  return found && any_autocast && key_included && pre_dispatch_key && has_level;
}

int watched() {
  for (const Question& question : questions) {
    if (const int value = truth(PyObject_CallNoArgs(question.function)); value != 0) return value;
  }
  if (const int value = truth(PyObject_CallOneArg(key_included, pre_dispatch_key)); value != 0) return value;
  return forward_mode();
}

int autocast() { return truth(PyObject_CallNoArgs(any_autocast)); }

}  // namespace bigmodel::binding::direct
