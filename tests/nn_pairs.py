"""Shared by the tests of modules: a torch.nn module and ours with the same state, run and compared."""

import copy

import torch

from bigmodel_kernels import nn as ours


def make_pair(name, *args, dtype=torch.float64, training=True, **kwargs):
    """torch.nn.<name> and bmk.nn.<name> with the same parameters, none of them left at a special initial value."""
    theirs = getattr(torch.nn, name)(*args, **kwargs)
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    mine = getattr(ours, name)(*args, **kwargs)
    mine.load_state_dict(theirs.state_dict())
    return theirs.to(dtype).train(training), mine.to(dtype).train(training)


def leaves(tensors):
    """Copies of tensors that gather gradients, the same copy for the same tensor."""
    copies = {id(t): t.detach().clone().requires_grad_() for t in tensors}
    return [copies[id(t)] for t in tensors]


def run(module, inputs, options, with_grad=True):
    """(outputs, gradients by name) of one call; the loss weighs every element of every output differently."""
    module.zero_grad()
    if not with_grad:
        with torch.no_grad():
            return _tuple(module(*inputs, **options)), {}
    inputs = leaves(inputs)
    outputs = _tuple(module(*inputs, **options))
    loss = sum((out * weighing(out)).sum() for out in outputs if out is not None)
    loss.backward()
    gradients = {name: parameter.grad for name, parameter in module.named_parameters()}
    gradients |= {f"input {i}": x.grad for i, x in enumerate(inputs)}
    return outputs, gradients


def weighing(out):
    """The gradient of the loss with respect to an output: the same random numbers for the same shape."""
    generator = torch.Generator().manual_seed(11)
    return torch.randn(out.shape, generator=generator, dtype=torch.float64).to(out.dtype)


def assert_same(theirs, mine, inputs, options=None, with_grad=True, rtol=1e-9, atol=1e-11):
    """Same outputs, shapes, dtypes and gradients (float64: to rounding)."""
    options = options or {}
    expected, expected_gradients = run(theirs, inputs, options, with_grad)
    actual, actual_gradients = run(mine, inputs, options, with_grad)
    assert len(actual) == len(expected)
    for mine_out, their_out in zip(actual, expected, strict=True):
        if their_out is None:
            assert mine_out is None
        else:
            torch.testing.assert_close(mine_out, their_out, rtol=rtol, atol=atol)
    assert actual_gradients.keys() == expected_gradients.keys()
    for name, gradient in expected_gradients.items():
        assert (actual_gradients[name] is None) == (gradient is None), name
        if gradient is not None:
            torch.testing.assert_close(
                actual_gradients[name], gradient, rtol=rtol, atol=atol, msg=lambda text, name=name: f"{name}: {text}"
            )


def in_float64(module, inputs, options):
    """The same module and call in float64: the truth that a lower precision is held against."""
    wide = copy.deepcopy(module).double()
    options = {
        name: value.double() if torch.is_tensor(value) and value.is_floating_point() else value
        for name, value in options.items()
    }
    copies = {id(x): x.double() for x in inputs}
    return wide, [copies[id(x)] for x in inputs], options


def _tuple(outputs):
    return outputs if isinstance(outputs, tuple) else (outputs,)
