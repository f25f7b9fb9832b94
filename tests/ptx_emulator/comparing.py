"""Dynamic instruction counts of the same calls, on the CUDA kernels and on the Triton kernels as compiled for sm_80."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch

from bigmodel_kernels import attention, feed_forward, linear

from . import Emulator, emulated

# A device that these calls fill, so that both choose the tiles of large problems.
MULTIPROCESSORS, L2_BYTES = 1, 40 << 20
TOKENS, WIDTH, HIDDEN = 256, 512, 512
LENGTH, HEAD_DIMS = 512, (64, 128)


@dataclass(frozen=True)
class Count:
    """What one kernel of one call issued, over all warps."""

    call: str
    backend: str  # "cuda" or "triton"
    kernel: str
    blocks: int
    instructions: int  # by warps
    mma: int
    ldmatrix: int
    cp_async: int
    conflicts: int  # passes through shared memory beyond those that the bytes need

    @property
    def per_mma(self) -> float | None:
        return self.instructions / self.mma if self.mma else None


def names() -> tuple[str, ...]:
    """Of the calls."""
    return tuple(_calls(torch.bfloat16))


def table(counts: Sequence[Count]) -> Iterator[str]:
    """Markdown: a line for each kernel."""
    yield "| call | backend | kernel | instructions | mma | instructions per mma | ldmatrix per mma | bank conflicts |"
    yield "| --- | --- | --- | ---: | ---: | ---: | ---: | ---: |"
    for each in counts:
        per_mma = ("", "") if each.per_mma is None else (f"{each.per_mma:.2f}", f"{each.ldmatrix / each.mma:.2f}")
        cells = (each.call, each.backend, each.kernel, f"{each.instructions:,}", f"{each.mma:,}", *per_mma)
        yield "| " + " | ".join((*cells, f"{each.conflicts:,}")) + " |"


def counts(name: str, triton: bool = True, dtype: torch.dtype = torch.bfloat16) -> list[Count]:
    """One call on the CUDA kernels, and on Triton's. Raises: HazardError if a kernel did something wrong."""
    backends = _calls(dtype)[name][: 2 if triton else 1]
    return [count for run in backends for count in run(name)]


def _calls(dtype: torch.dtype) -> dict[str, tuple[Callable, Callable]]:
    found = {}
    for head_dim in HEAD_DIMS:
        for causal in (False, True):
            suffix = f"{' causal' if causal else ''} d{head_dim}"
            for backward in (False, True):
                name = f"attention {'backward' if backward else 'forward'}{suffix}"
                found[name] = _attention(dtype, head_dim, causal, backward)
    found["linear"] = _linear(dtype)
    found["feed_forward"] = _feed_forward(dtype)
    return found


def _random(*shape: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype)


def _counted(backend: str, name: str, run: Callable[[Emulator], None]) -> list[Count]:
    emulator = Emulator()
    emulator.hazards(), emulator.counters()
    run(emulator)
    emulator.check()
    return list(_counts(backend, name, emulator.counters()))


def _counts(backend: str, name: str, counters: dict[str, dict]) -> Iterator[Count]:
    for kernel, counted in counters.items():
        classes = counted["classes"]
        issued = {key: each["issued"] for key, each in classes.items()}
        yield Count(
            name,
            backend,
            _short(kernel),
            counted["blocks"],
            sum(issued.values()),
            issued.get("mma", 0),
            issued.get("ldmatrix", 0),
            issued.get("cp_async", 0),
            sum(each["wavefronts"] - each["ideal_wavefronts"] for each in classes.values()),
        )


def _short(kernel: str) -> str:
    """A kernel's name without namespaces, template arguments and parameters."""
    return kernel.split("<")[0].split("(")[0].split("::")[-1].split()[-1]


def _cuda(run: Callable[[], None]) -> Callable[[str], list[Count]]:
    def counted(name: str) -> list[Count]:
        with emulated.cuda_backend() as emulator:
            emulator.device(multiprocessors=MULTIPROCESSORS)
            found = _counted("cuda", name, lambda _: run())
            emulator.device()
        return found

    return counted


def _triton(launches: Callable[[], list]) -> Callable[[str], list[Count]]:
    """launches: (kernel, grid, arguments by name, warps, stages) of each."""

    def counted(name: str) -> list[Count]:
        from . import triton_kernels

        def run(emulator: Emulator) -> None:
            for kernel, grid, arguments, num_warps, num_stages in launches():
                triton_kernels.run(emulator, kernel, grid, arguments, num_warps, num_stages)

        return _counted("triton", name, run)

    return counted


def _attention(dtype: torch.dtype, head_dim: int, causal: bool, backward: bool) -> tuple[Callable, Callable]:
    def tensors() -> tuple[torch.Tensor, ...]:
        return tuple(_random(1, 1, LENGTH, head_dim, dtype=dtype) for _ in range(4))

    def cuda_run() -> None:
        query, key, value, grad = tensors()
        if backward:
            query, key, value = (x.requires_grad_() for x in (query, key, value))
        output = attention(query, key, value, causal=causal, backend="cuda")
        if backward:
            Emulator().counters()
            torch.autograd.grad(output, (query, key, value), grad)

    def triton_launches() -> list:
        from bigmodel_kernels.triton.attention_backward import Gradients, empty_row_terms, gradient_calls
        from bigmodel_kernels.triton.attention_forward import forward_calls
        from bigmodel_kernels.triton.attention_gradient import Incoming, Terms
        from bigmodel_kernels.triton.attention_inputs import prepare, view
        from bigmodel_kernels.triton.attention_launch import Device

        query, key, value, grad = tensors()
        device = Device(80, MULTIPROCESSORS, L2_BYTES)
        options = {"scale": None, "window_left": -1, "window_right": -1, "softcap": 0.0, "dropout_p": 0.0}
        rule = "top_left" if causal else "none"
        inputs, features = prepare("attention", query, key, value, None, None, None, None, causal=rule, **options)
        output, lse = torch.zeros_like(query), torch.zeros(1, 1, LENGTH)
        calls = forward_calls(inputs, features, output, lse, dtype, device)
        if backward:
            incoming = Incoming(Terms(*empty_row_terms(query)), view(grad), view(None))
            grads = Gradients(query=torch.empty_like(query), key=torch.empty_like(key), value=torch.empty_like(value))
            calls = gradient_calls(inputs, features, incoming, "output", (output, grad, lse, None), grads, None, device)
        return [
            (c.kernel, c.grid, dict(zip(c.kernel.arg_names, c.arguments, strict=True)), c.num_warps, c.num_stages)
            for c in calls
        ]

    return _cuda(cuda_run), _triton(triton_launches)


def _recorded(call: Callable) -> list:
    from bigmodel_kernels.triton import launch

    with launch.recorded(80, MULTIPROCESSORS) as launches:
        call()
    return [(each.kernel, each.grid, each.arguments, each.num_warps, each.num_stages) for each in launches]


def _linear(dtype: torch.dtype) -> tuple[Callable, Callable]:
    x, weight, bias = (
        _random(TOKENS, WIDTH, dtype=dtype),
        _random(WIDTH, WIDTH, dtype=dtype),
        _random(WIDTH, dtype=dtype),
    )

    def triton_launches() -> list:
        from bigmodel_kernels.triton.linear import linear as triton_linear

        return _recorded(lambda: triton_linear(x, weight, bias))

    return _cuda(lambda: linear(x.clone(), weight.clone(), bias.clone(), backend="cuda")), _triton(triton_launches)


def _feed_forward(dtype: torch.dtype) -> tuple[Callable, Callable]:
    x, w1 = _random(TOKENS, WIDTH, dtype=dtype), _random(HIDDEN, WIDTH, dtype=dtype)
    gate, w2 = _random(HIDDEN, WIDTH, dtype=dtype), _random(WIDTH, HIDDEN, dtype=dtype)

    def cuda_run() -> None:
        mine = [each.clone() for each in (x, w1, w2, gate)]
        feed_forward(
            mine[0], mine[1], None, mine[2], None, w_gate=mine[3], activation="silu", gate="hidden", backend="cuda"
        )

    def triton_launches() -> list:
        from bigmodel_kernels.triton.feed_forward import feed_forward as triton_feed_forward

        return _recorded(lambda: triton_feed_forward(x, w1, None, w2, None, gate, activation="silu", gate="hidden"))

    return _cuda(cuda_run), _triton(triton_launches)
