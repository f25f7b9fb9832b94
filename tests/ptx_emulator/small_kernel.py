"""Small kernels of PTX text, as tests write them: a common beginning, and a launch on two tensors."""

import torch

from . import Emulator

HEADER = """
.version 8.8
.target sm_80
.address_size 64
.extern .shared .align 16 .b8 dynamic[];
.visible .entry test(.param .u64 in, .param .u64 out)
{
.reg .b64 %in, %out;
.reg .b32 %lane, %r<64>;
.reg .b16 %h<8>;
.reg .f32 %f<64>;
.reg .b64 %d<8>;
.reg .pred %p<8>;
ld.param.u64 %in, [in];
ld.param.u64 %out, [out];
mov.u32 %lane, %tid.x;
"""


def launch(body: str, given: torch.Tensor, found: torch.Tensor, threads: int = 32, shared_bytes: int = 0) -> Emulator:
    emulator = Emulator()
    emulator.counters()  # those of earlier tests
    with emulator.buffers(given=given, found=found):
        text = HEADER + body + "\nret;\n}\n"
        emulator.launch_ptx(text, "test", (1,), (threads,), [given, found], shared_bytes)
    return emulator
