// Keyword arguments that several ops take.
#pragma once

#include <string>

#include "bigmodel/activation.h"
#include "bigmodel/philox.h"
#include "call.h"

namespace bigmodel::binding {

Activation activation_named(const Call& call, const std::string& name);

// dropout_p and its seed, which is a tensor so that a compiled graph can draw it.
Dropout check_dropout(const Call& call, double dropout_p, const OptionalTensor& seed);

}  // namespace bigmodel::binding
