# Whether the CUDA kernels are built, with which nvcc, and for which architectures.
#
# BIGMODEL_CUDA=auto: where nvcc is found and the installed torch has CUDA. ON: wherever nvcc is found, so also beside a
# CPU torch and without a GPU. OFF: never. nvcc is looked for in CUDACXX, on the PATH, in CUDA_HOME, and in the PyPI
# packages (nvidia-cuda-nvcc and those that it needs) beside torch.
set(BIGMODEL_CUDA "auto" CACHE STRING "CUDA kernels: auto, ON or OFF")
set(BIGMODEL_CUDA_ARCHS "" CACHE STRING
    "CUDA architectures, a list such as 80;90 (empty: those of the GPUs present, else 80;90;120 and PTX of the last)")

function(bigmodel_find_nvcc result)
  if(DEFINED ENV{CUDACXX})
    set(${result} $ENV{CUDACXX} PARENT_SCOPE)
    return()
  endif()
  get_filename_component(site_packages "${BIGMODEL_TORCH_DIR}" DIRECTORY)
  file(GLOB packaged "${site_packages}/nvidia/cu*/bin")
  find_program(BIGMODEL_NVCC nvcc HINTS $ENV{CUDA_HOME}/bin PATHS /usr/local/cuda/bin ${packaged})
  if(BIGMODEL_NVCC)
    set(${result} ${BIGMODEL_NVCC} PARENT_SCOPE)
  endif()
endfunction()

# Architectures of the GPUs that the driver shows, as 80;90; empty without one.
function(bigmodel_present_architectures result)
  execute_process(COMMAND nvidia-smi --query-gpu=compute_cap --format=csv,noheader
                  OUTPUT_VARIABLE lines RESULT_VARIABLE failed ERROR_QUIET)
  if(NOT failed EQUAL 0)
    set(${result} "" PARENT_SCOPE)
    return()
  endif()
  string(REGEX MATCHALL "[0-9]+\\.[0-9]" found "${lines}")
  list(TRANSFORM found REPLACE "\\." "")
  list(REMOVE_DUPLICATES found)
  set(${result} "${found}" PARENT_SCOPE)
endfunction()

set(BIGMODEL_WITH_CUDA OFF)
if(BIGMODEL_CUDA)
  bigmodel_find_nvcc(nvcc)
  if(BIGMODEL_CUDA STREQUAL "auto" AND NOT EXISTS "${BIGMODEL_TORCH_DIR}/lib/libtorch_cuda.so")
    message(STATUS "CUDA kernels: off, since the installed torch has no CUDA (BIGMODEL_CUDA=ON builds them all the same)")
  elseif(nvcc)
    set(BIGMODEL_WITH_CUDA ON)
  elseif(BIGMODEL_CUDA STREQUAL "auto")
    message(STATUS "CUDA kernels: off, since nvcc was found neither on the PATH, in CUDA_HOME nor in PyPI packages")
  else()
    message(FATAL_ERROR "BIGMODEL_CUDA=ON needs nvcc, which was found neither on the PATH, in CUDA_HOME nor in PyPI packages: pip install nvidia-cuda-nvcc nvidia-cuda-runtime nvidia-cuda-cccl nvidia-cuda-crt nvidia-nvvm")
  endif()
endif()

if(BIGMODEL_WITH_CUDA)
  set(archs ${BIGMODEL_CUDA_ARCHS})
  if(NOT archs)
    bigmodel_present_architectures(archs)
  endif()
  if(archs)
    list(TRANSFORM archs APPEND "-real")
  else()
    set(archs 80-real 90-real 120)
  endif()
  set(CMAKE_CUDA_COMPILER ${nvcc})
  set(CMAKE_CUDA_ARCHITECTURES ${archs})
  set(CMAKE_CUDA_STANDARD 20)
  set(CMAKE_CUDA_STANDARD_REQUIRED ON)
  set(CMAKE_CUDA_EXTENSIONS OFF)
  set(CMAKE_CUDA_RUNTIME_LIBRARY Static)  # the package must load where there is no CUDA at all
  # Where nvcc comes from PyPI its libraries lie in lib, and it looks in lib64.
  get_filename_component(toolkit ${nvcc} DIRECTORY)
  string(APPEND CMAKE_CUDA_FLAGS " -L${toolkit}/../lib")
  enable_language(CUDA)
  message(STATUS "CUDA kernels: on, ${nvcc} ${CMAKE_CUDA_COMPILER_VERSION}, architectures ${archs}")
endif()
