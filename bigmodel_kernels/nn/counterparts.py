"""Which class of ours computes in place of which torch.nn class, and how an existing module becomes ours.

A counterpart subclasses its torch.nn class and adds no attribute of its own, so changing a module's ``__class__`` is
all it takes: the module, its parameters, buffers, hooks and training mode stay the same objects, whoever holds them.
"""

import functools

import torch

COUNTERPARTS: dict[type[torch.nn.Module], type[torch.nn.Module]] = {}


def computes_for(torch_class):
    """Class decorator: registers the class as the counterpart of `torch_class`."""

    def register(our_class):
        COUNTERPARTS[torch_class] = our_class
        return our_class

    return register


def adopt(module: torch.nn.Module) -> bool:
    """Makes one torch.nn module compute as ours, in place; returns whether it has a counterpart."""
    our_class = COUNTERPARTS.get(type(module))
    if our_class is None:
        return False
    module.__class__ = our_class
    return True


def adopting(torch_class):
    """The constructor of `torch_class`, after which the modules that it made, but not those it was given, are ours."""

    @functools.wraps(torch_class.__init__)
    def construct(self, *args, **kwargs):
        torch_class.__init__(self, *args, **kwargs)
        given = {id(argument) for argument in (*args, *kwargs.values())}
        for child in self.children():
            if id(child) not in given:
                for module in child.modules():
                    adopt(module)

    return construct
