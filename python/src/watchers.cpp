#include "watchers.h"

#include "python_objects.h"

namespace bigmodel::binding::direct {
namespace {

// A Python function that tells of one kind of watcher: something true where one is there.
struct Question {
  const char *module, *name;
  Asked function = {};
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
Asked any_autocast;
// Forward-mode differentiation runs from level 0 on, a name in its module.
PyObject *forward_ad, *current_level;

// What an answer comes to; takes the reference. -1 with an error set.
int truth(PyObject* answer) {
  if (!answer) return -1;
  const int value = PyObject_IsTrue(answer);
  Py_DECREF(answer);
  return value;
}

int forward_mode() {
  PyObject* level = PyDict_GetItemWithError(forward_ad, current_level);
  if (!level) {
    if (!PyErr_Occurred()) PyErr_SetObject(PyExc_KeyError, current_level);
    return -1;
  }
  const long value = PyLong_AsLong(level);
  return value == -1 && PyErr_Occurred() ? -1 : value >= 0;
}

}  // namespace

bool find_watchers() {
  bool found = true;
  for (Question& question : questions) {
    question.function = Asked(find(question.module, question.name));
    found = found && question.function.exists();
  }
  key_included = find("torch._C", "_dispatch_tls_is_dispatch_key_included");
  any_autocast = Asked(find("torch._C", "_is_any_autocast_enabled"));
  PyObject* keys = find("torch._C", "DispatchKey");
  pre_dispatch_key = keys ? PyObject_GetAttrString(keys, "PreDispatch") : nullptr;
  Py_XDECREF(keys);
  PyErr_Clear();
  forward_ad = find("torch.autograd.forward_ad", "__dict__");
  current_level = PyUnicode_InternFromString("_current_level");
  const bool has_level = forward_ad && current_level && PyDict_Contains(forward_ad, current_level) == 1;
  return found && any_autocast.exists() && key_included && pre_dispatch_key && has_level;
}

int watched() {
  for (const Question& question : questions) {
    if (const int value = truth(question.function()); value != 0) return value;
  }
  if (const int value = truth(PyObject_CallOneArg(key_included, pre_dispatch_key)); value != 0) return value;
  return forward_mode();
}

int autocast() { return truth(any_autocast()); }

}  // namespace bigmodel::binding::direct
