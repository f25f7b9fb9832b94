# cmake -C tests/cpp/emulation/x86.cmake: the targets that this processor lacks, compiled for it and run on it.
#   -DBIGMODEL_SIMDE=<folder that holds simde/>   it has AVX2: AVX-512, AVX512-BF16 and AMX
#   without                                       it has AVX512-BF16: AMX
set(emulation ${CMAKE_CURRENT_LIST_DIR})
set(flags -O2 -I${emulation} -DBIGMODEL_MATH_STEP=4001)
if(BIGMODEL_SIMDE)
  list(APPEND flags -march=x86-64-v3 -isystem ${BIGMODEL_SIMDE} -DBIGMODEL_SIMDE -D__AVX512F__)
  set(BIGMODEL_CPU_TARGETS "avx512;avx512bf16;amx" CACHE STRING "")
  set(BIGMODEL_EMULATED_FLAGS_avx512 ${flags} CACHE STRING "")
  set(BIGMODEL_EMULATED_FLAGS_avx512bf16 ${flags} -D__AVX512BF16__ CACHE STRING "")
  list(APPEND flags -D__AVX512BF16__)
else()
  list(APPEND flags -march=x86-64-v4 -mavx512bf16 -mavx512vnni -mprefer-vector-width=512)
  set(BIGMODEL_CPU_TARGETS amx CACHE STRING "")
endif()
set(BIGMODEL_EMULATED_FLAGS_amx ${flags} -D__AMX_BF16__ CACHE STRING "")
set(BIGMODEL_FEATURES_SOURCE ${emulation}/features.cpp CACHE STRING "")
