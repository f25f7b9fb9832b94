"""Every instruction that compilers emit for our kernels is one that the emulator's own tests have checked."""

import re
from pathlib import Path

import pytest

from tests.ptx_emulator import building, known_answers

# Instructions with tests of their own, which build many forms of one from a few words.
ELSEWHERE = {
    "test_memory_instructions.py": "ld st atom red cp bar membar fence prefetch bra brx ret exit isspacep",
    "test_warp_instructions.py": "mma ldmatrix movmatrix shfl vote activemask redux match",
    "planted.py": "trap",
}
# No effect on results: where a value is kept, and that a branch is taken by all lanes or none.
IGNORED = re.compile(r"\.uni\b")


def opcodes(text: str) -> set[str]:
    """All opcodes of a PTX text."""
    found = set()
    for line in re.sub(r"//.*", "", text).splitlines():
        for statement in line.split(";"):
            words = re.sub(r"^[\s{]*(?:\$?\w+:)?\s*(?:@!?\S+)?\s*", "", statement).split()
            if words and re.fullmatch(r"[a-z][a-z0-9]*(\.[\w:]+)*", words[0]) and not words[0].endswith(":"):
                found.add(IGNORED.sub("", words[0]))
    return found


def checked() -> set[str]:
    rows = [*known_answers.EXACT, *known_answers.APPROXIMATE_SPECIAL]
    return {row.instruction.split()[0] for row in rows} | {name for name, *_ in known_answers.APPROXIMATE}


def missing(text: str) -> set[str]:
    elsewhere = {name for names in ELSEWHERE.values() for name in names.split()}
    return {each for each in opcodes(text) if each.split(".")[0] not in elsewhere} - checked()


def test_the_search_finds_opcodes():
    text = "{ .reg .b32 %r1;\n$L: @!%p1 add.s32 %r1, %r2, 1; // sub.s32\n\tbra.uni $L;}\n"
    assert opcodes(text) == {"add.s32", "bra"}


@pytest.mark.parametrize("file, names", ELSEWHERE.items())
def test_other_files_have_what_is_left_to_them(file, names):
    text = (Path(__file__).parent / file).read_text()
    for name in names.split():
        assert re.search(rf"\b{name}(?:\b|{{)", text), name


@pytest.mark.skipif(building.nvcc() is None, reason=building.NO_NVCC)
def test_of_the_cuda_kernels():
    from tests.ptx_emulator import Emulator, emulated

    for name in emulated.NAMESPACES.values():
        emulated.namespace(name)
    text = Emulator().registered_ptx()
    assert {".target sm_75", ".target sm_80", ".target sm_120"} == set(re.findall(r"\.target \w+", text))
    assert "mma.sync" in text and "cp.async" in text
    assert missing(text) == set()


def test_of_triton_attention():
    triton = pytest.importorskip("triton", reason="the package triton, which compiles the kernels, is not installed")
    if triton.knobs.runtime.interpret:
        pytest.skip("TRITON_INTERPRET is set, and interpreted kernels have no PTX")
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from bigmodel_kernels.triton.attention_audit import audit_cases

    for case in audit_cases(80):
        if case.name in ("forward causal d64", "grad_query causal d64") and case.dtype in ("fp32", "bf16"):
            aligned = {path: [["tt.divisibility", 16]] for path in case.divisible_by_16}
            source = ASTSource(case.kernel, case.signature, case.constexprs, aligned)
            options = {"num_warps": case.num_warps, "num_stages": case.num_stages, "enable_fp_fusion": True}
            compiled = triton.compile(source, target=GPUTarget("cuda", 80, 32), options=options)
            assert missing(compiled.asm["ptx"]) == set()
