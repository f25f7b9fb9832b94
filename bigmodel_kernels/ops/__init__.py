"""What torch needs to know of the ops beyond their kernels: shapes without data (fakes) and gradients (autograd)."""
