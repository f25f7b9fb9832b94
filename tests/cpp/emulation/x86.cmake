# cmake -C tests/cpp/emulation/x86.cmake -DBIGMODEL_SIMDE=<folder that holds simde/>: the AVX-512 and AMX targets, compiled
# for a processor with AVX2 and run there.
set(emulation ${CMAKE_CURRENT_LIST_DIR})
set(flags -march=x86-64-v3 -O2 -I${emulation} -isystem ${BIGMODEL_SIMDE} -D__AVX512F__ -DBIGMODEL_MATH_STEP=4001)
set(BIGMODEL_CPU_TARGETS "avx512;avx512bf16;amx" CACHE STRING "")
set(BIGMODEL_EMULATED_FLAGS_avx512 ${flags} CACHE STRING "")
set(BIGMODEL_EMULATED_FLAGS_avx512bf16 ${flags} -D__AVX512BF16__ CACHE STRING "")
set(BIGMODEL_EMULATED_FLAGS_amx ${flags} -D__AVX512BF16__ -D__AMX_BF16__ CACHE STRING "")
set(BIGMODEL_FEATURES_SOURCE ${emulation}/features.cpp CACHE STRING "")
