# THE table of CPU targets, best first: name | processors it compiles for | flags.
# A target is compiled where the compiler accepts its flags, and chosen at run time where the machine has the features
# (csrc/cpu/features.cpp). The name is also the C++ namespace and the value of BIGMODEL_CPU_TARGET.
set(BIGMODEL_CPU_TARGET_TABLE
  "amx|x86|-march=x86-64-v4 -mavx512bf16 -mavx512vnni -mamx-tile -mamx-bf16 -mprefer-vector-width=512"
  "avx512bf16|x86|-march=x86-64-v4 -mavx512bf16 -mavx512vnni -mprefer-vector-width=512"
  "avx512|x86|-march=x86-64-v4 -mprefer-vector-width=512"
  "avx2|x86|-march=x86-64-v3"
  "neon_bf16|arm|-march=armv8.2-a+fp16+bf16"
  "baseline|any|"
)
set(BIGMODEL_CPU_TARGETS "" CACHE STRING "Only these CPU targets (a list; empty: all that compile here). baseline is always built")

# Never -ffast-math: results must not depend on what the compiler may reorder. No LTO and hidden symbols: nothing
# compiled for one target may be picked by the linker for another.
set(BIGMODEL_KERNEL_FLAGS -O3 -fno-math-errno -fno-trapping-math -ffp-contract=fast -fno-exceptions -fno-rtti
    -fvisibility=hidden -fvisibility-inlines-hidden -fno-lto -fno-semantic-interposition -Wall -Wextra
    -Wno-unused-function -Wno-psabi -Wno-ignored-attributes)
if(BIGMODEL_SANITIZE)
  list(TRANSFORM BIGMODEL_KERNEL_FLAGS REPLACE "^-O3$" -O1)
endif()
# GCC's own AVX-512 headers warn of the undefined vectors that they make on purpose (GCC bug 105593). The same sources
# keep these warnings where they are compiled for other targets.
set(BIGMODEL_KERNEL_FLAGS_amx -Wno-uninitialized -Wno-maybe-uninitialized)
set(BIGMODEL_KERNEL_FLAGS_avx512bf16 ${BIGMODEL_KERNEL_FLAGS_amx})
set(BIGMODEL_KERNEL_FLAGS_avx512 ${BIGMODEL_KERNEL_FLAGS_amx})

if(CMAKE_SYSTEM_PROCESSOR MATCHES "x86_64|AMD64|amd64")
  set(BIGMODEL_PROCESSOR x86)
elseif(CMAKE_SYSTEM_PROCESSOR MATCHES "aarch64|arm64|ARM64")
  set(BIGMODEL_PROCESSOR arm)
else()
  set(BIGMODEL_PROCESSOR other)
endif()

include(CheckCXXSourceCompiles)

# bigmodel_add_cpu_targets(<library> <sources>...): one object library <library>_<target> per target, and the list
# BIGMODEL_COMPILED_TARGETS, best first.
function(bigmodel_add_cpu_targets library)
  set(compiled "")
  foreach(row IN LISTS BIGMODEL_CPU_TARGET_TABLE)
    string(REPLACE "|" ";" fields "${row}")
    list(GET fields 0 name)
    list(GET fields 1 processor)
    list(LENGTH fields field_count)
    set(flags "")
    if(field_count GREATER 2)
      list(GET fields 2 flags)
      separate_arguments(flags UNIX_COMMAND "${flags}")
    endif()
    if(NOT processor STREQUAL "any" AND NOT processor STREQUAL BIGMODEL_PROCESSOR)
      continue()
    endif()
    if(DEFINED BIGMODEL_EMULATED_FLAGS_${name})  # tests/cpp/emulation
      set(flags ${BIGMODEL_EMULATED_FLAGS_${name}})
    endif()
    if(BIGMODEL_CPU_TARGETS AND NOT name IN_LIST BIGMODEL_CPU_TARGETS AND NOT name STREQUAL "baseline")
      continue()
    endif()
    set(CMAKE_REQUIRED_FLAGS "${flags}")
    list(JOIN CMAKE_REQUIRED_FLAGS " " CMAKE_REQUIRED_FLAGS)
    check_cxx_source_compiles("int main() { return 0; }" BIGMODEL_COMPILES_${name})
    unset(CMAKE_REQUIRED_FLAGS)
    if(NOT BIGMODEL_COMPILES_${name})
      message(STATUS "CPU target ${name}: not built, this compiler does not accept: ${flags}")
      continue()
    endif()
    add_library(${library}_${name} OBJECT ${ARGN})
    target_compile_options(${library}_${name} PRIVATE ${BIGMODEL_KERNEL_FLAGS} ${BIGMODEL_KERNEL_FLAGS_${name}} ${flags})
    target_compile_definitions(${library}_${name} PRIVATE BIGMODEL_TARGET=${name})
    target_include_directories(${library}_${name} PRIVATE ${PROJECT_SOURCE_DIR}/csrc ${PROJECT_SOURCE_DIR}/csrc/include)
    set_target_properties(${library}_${name} PROPERTIES POSITION_INDEPENDENT_CODE ON)
    list(APPEND compiled ${name})
  endforeach()
  set(BIGMODEL_COMPILED_TARGETS ${compiled} PARENT_SCOPE)
endfunction()
