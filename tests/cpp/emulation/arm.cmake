# cmake -C tests/cpp/emulation/arm.cmake: both Arm targets, cross-compiled, run by QEMU's user-mode emulator.
set(CMAKE_SYSTEM_NAME Linux CACHE STRING "")
set(CMAKE_SYSTEM_PROCESSOR aarch64 CACHE STRING "")
set(CMAKE_CXX_COMPILER aarch64-linux-gnu-g++ CACHE STRING "")
set(CMAKE_CXX_FLAGS "-DBIGMODEL_MATH_STEP=65537" CACHE STRING "")
set(CMAKE_CROSSCOMPILING_EMULATOR qemu-aarch64 -cpu max -L /usr/aarch64-linux-gnu CACHE STRING "")
