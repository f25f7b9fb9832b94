#include "cpu/features.h"

#if defined(__aarch64__) && defined(__linux__)
#include <asm/hwcap.h>
#include <sys/auxv.h>
#endif
#if defined(__x86_64__) && defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace bigmodel::cpu {

#if defined(__x86_64__)
namespace {

bool has_avx2() {
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c") &&
         __builtin_cpu_supports("bmi") && __builtin_cpu_supports("bmi2");
}

bool has_avx512() {
  return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}

// Every processor with AVX512-BF16 so far has VNNI too, so the target takes both.
bool has_avx512bf16() {
  return has_avx512() && __builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512vnni");
}

// AMX needs the processor's word (CPUID leaf 7: bit 22 of edx is amx-bf16, bit 24 amx-tile) and the kernel's
// permission to use the tile registers, asked for once per process.
bool has_amx() {
#if defined(__linux__)
  unsigned int eax = 7, ebx = 0, ecx = 0, edx = 0;
  __asm__("cpuid" : "+a"(eax), "=b"(ebx), "+c"(ecx), "=d"(edx));
  if (!(edx & (1u << 22)) || !(edx & (1u << 24))) return false;
  constexpr long arch_req_xcomp_perm = 0x1023, xfeature_xtiledata = 18;
  return syscall(SYS_arch_prctl, arch_req_xcomp_perm, xfeature_xtiledata) == 0 && has_avx512bf16();
#else
  return false;
#endif
}

}  // namespace
#endif

bool machine_supports(std::string_view target) {
  if (target == "baseline") return true;
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (target == "avx2") return has_avx2();
  if (target == "avx512") return has_avx512();
  if (target == "avx512bf16") return has_avx512bf16();
  if (target == "amx") return has_amx();
#elif defined(__aarch64__) && defined(__linux__)
  if (target == "neon_bf16") {
    const bool half = getauxval(AT_HWCAP) & HWCAP_ASIMDHP;
    return half && (getauxval(AT_HWCAP2) & HWCAP2_BF16);
  }
#endif
  return false;
}

}  // namespace bigmodel::cpu
