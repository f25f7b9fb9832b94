// How every function of this folder is declared: always inlined, internal to its object file, so that the linker can
// never pick one target's copy for another.
#pragma once

#define BIGMODEL_INLINE static inline __attribute__((always_inline))
// For members, which cannot be internal: inlined always, they leave no symbol behind.
#define BIGMODEL_INLINE_MEMBER inline __attribute__((always_inline))
// For lambdas, after their parameters: handed to a loop they must vanish into it.
#define BIGMODEL_INLINE_LAMBDA __attribute__((always_inline))
