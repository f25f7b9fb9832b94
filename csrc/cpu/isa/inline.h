// How every function of this folder is declared: always inlined, internal to its object file, so that the linker can
// never pick one target's copy for another.
#pragma once

#define BIGMODEL_INLINE static inline __attribute__((always_inline))
