"""How vector instructions share the pipes of an AVX-512 processor: what bench/LIMITS.md counts with.

    python -m bigmodel_bench.ports

Twelve independent multiply-adds of 512 bits take twelve cycles where one is done a cycle, as on Zen 4. Each instruction
is timed twelve times alone, beside them, and six times beside them. One that has pipes of its own leaves the twelve
cycles as they are; one that needs theirs adds its own. In cycles of that loop, so that no clock has to be known. A C
compiler and a processor with AVX-512 and AVX512-BF16 are needed.
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

# Operands: registers 30 and 31 are read, {d} is written, {at} is a line of memory.
INSTRUCTIONS = {
    "add": "vaddps %zmm30,%zmm31,%zmm{d}",
    "max": "vmaxps %zmm30,%zmm31,%zmm{d}",
    "multiply": "vmulps %zmm30,%zmm31,%zmm{d}",
    "compare": "vcmpltps %zmm30,%zmm31,%k2",
    "shift": "vpslld $23,%zmm31,%zmm{d}",
    "and": "vpandd %zmm30,%zmm31,%zmm{d}",
    "load": "vmovups {at}(%rax),%zmm{d}",
    "broadcast": "vbroadcastss {at}(%rax),%zmm{d}",
    "store": "vmovups %zmm31,{at}(%rax)",
    "two fp32 to bf16": "vcvtne2ps2bf16 %zmm30,%zmm31,%zmm{d}",
    "fp16 to fp32": "vcvtph2ps %ymm31,%zmm{d}",
    "permute words": "vpermw %zmm30,%zmm31,%zmm{d}",
    "unpack": "vunpcklps %zmm30,%zmm31,%zmm{d}",
    "shuffle blocks": "vshuff32x4 $136,%zmm30,%zmm31,%zmm{d}",
    "bf16 dot": "vdpbf16ps %zmm30,%zmm31,%zmm{d}",
}
TOGETHER = 12

_PROGRAM = """
#include <stdio.h>
#include <time.h>
static float memory[1024] __attribute__((aligned(64)));
static double seconds(void) {{
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return t.tv_sec + 1e-9 * t.tv_nsec;
}}
{functions}
typedef void (*Loop)(long);
static const struct {{ const char* name; Loop alone, beside, half; }} loops[] = {{{table}}};
/* In turns with the loop that it is measured by, the least of many: other work only ever adds. */
static double cycles(Loop loop) {{
  double base = 1e9, least = 1e9;
  for (int turn = 0; turn < 100; ++turn) {{
    const double start = seconds();
    multiply_adds(2000);
    const double middle = seconds();
    loop(2000);
    const double end = seconds();
    if (middle - start < base) base = middle - start;
    if (end - middle < least) least = end - middle;
  }}
  return {together} * least / base;
}}
int main(void) {{
  printf("| {together} of | alone | beside {together} multiply-adds | {half} beside {together} |\\n");
  printf("|---|---:|---:|---:|\\n");
  for (unsigned i = 0; i < sizeof loops / sizeof *loops; ++i) {{
    printf("| %s | %.1f | %.1f | %.1f |\\n", loops[i].name, cycles(loops[i].alone), cycles(loops[i].beside),
           cycles(loops[i].half));
  }}
}}
"""


def source() -> str:
    """The C program."""
    multiply_adds = [f"vfmadd231ps %zmm31,%zmm30,%zmm{i}" for i in range(TOGETHER)]
    functions, table = [_function("multiply_adds", multiply_adds)], []
    for number, (name, pattern) in enumerate(INSTRUCTIONS.items()):
        those = [pattern.format(d=TOGETHER + i, at=64 * i) for i in range(TOGETHER)]
        beside = [text for pair in zip(multiply_adds, those, strict=True) for text in pair]
        half = [text for i, pair in enumerate(zip(multiply_adds, those, strict=True)) for text in pair[: 2 - i % 2]]
        for kind, body in (("alone", those), ("beside", beside), ("half", half)):
            functions.append(_function(f"{kind}_{number}", body))
        table.append(f'{{"{name}", alone_{number}, beside_{number}, half_{number}}}')
    return _PROGRAM.format(
        functions="\n".join(functions), table=", ".join(table), together=TOGETHER, half=TOGETHER // 2
    )


def _function(name: str, body: list[str]) -> str:
    lines = "".join(f'"{text.replace("%", "%%")}\\n"' for text in ("1:", *body, "dec %0", "jnz 1b"))
    lines = lines.replace("%%0", "%0")
    changed = ", ".join(f'"xmm{i}"' for i in range(2 * TOGETHER))
    return (
        f"static __attribute__((noinline)) void {name}(long turns) {{\n"
        f'  __asm__ volatile({lines} : "+r"(turns) : "a"(memory) : "memory", "cc", "k2", {changed});\n}}'
    )


def build(folder: Path) -> Path:
    """Compiles the program into a folder."""
    (folder / "ports.c").write_text(source())
    compiler = os.environ.get("CC", "cc")
    command = [
        compiler,
        "-O2",
        "-march=x86-64-v4",
        "-mavx512bf16",
        "-o",
        str(folder / "ports"),
        str(folder / "ports.c"),
    ]
    subprocess.run(command, check=True)
    return folder / "ports"


def main() -> int:
    with tempfile.TemporaryDirectory() as folder:
        status = subprocess.run([build(Path(folder))], check=False).returncode
    if status < 0:
        print("[bench] this processor lacks AVX-512 or AVX512-BF16", file=sys.stderr)
    return min(1, abs(status))


if __name__ == "__main__":
    sys.exit(main())
