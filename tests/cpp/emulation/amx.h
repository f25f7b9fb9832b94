// The AMX intrinsics that csrc/cpu/isa uses, in plain code: what the instructions do according to Intel's manual
// (Architecture Instruction Set Extensions, chapter 3), for palette 1.
#pragma once

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>

namespace bigmodel::emulation {

struct Tiles {
  bool configured = false;
  int rows[8], bytes[8];
  std::uint8_t data[8][16][64];
};
inline thread_local Tiles tiles;

inline void expect(bool good, const char* what) {
  if (good) return;
  std::fprintf(stderr, "AMX emulation: %s\n", what);
  std::abort();
}

inline void tile_loadconfig(const void* memory) {
  const auto* bytes = static_cast<const std::uint8_t*>(memory);
  expect(bytes[0] == 1 && bytes[1] == 0, "palette 1, start row 0");
  for (int i = 2; i < 16; ++i) expect(bytes[i] == 0, "reserved bytes are zero");
  for (int tile = 0; tile < 8; ++tile) {
    std::uint16_t row_bytes;
    std::memcpy(&row_bytes, bytes + 16 + 2 * tile, sizeof row_bytes);
    tiles.rows[tile] = bytes[48 + tile];
    tiles.bytes[tile] = row_bytes;
    expect(tiles.rows[tile] <= 16 && row_bytes <= 64, "a tile has at most 16 rows of 64 bytes");
    expect((tiles.rows[tile] == 0) == (row_bytes == 0), "rows and bytes of a tile are both zero or neither");
  }
  for (int i = 32; i < 48; ++i) expect(bytes[i] == 0, "reserved bytes are zero");
  for (int i = 56; i < 64; ++i) expect(bytes[i] == 0, "reserved bytes are zero");
  std::memset(tiles.data, 0, sizeof tiles.data);
  tiles.configured = true;
}

inline void tile_release() { tiles.configured = false; }

inline void tile_zero(int tile) {
  expect(tiles.configured, "tilezero before ldtilecfg");
  std::memset(tiles.data[tile], 0, sizeof tiles.data[tile]);
}

inline void tile_load(int tile, const void* base, std::int64_t stride) {
  tile_zero(tile);
  for (int row = 0; row < tiles.rows[tile]; ++row) {
    std::memcpy(tiles.data[tile][row], static_cast<const char*>(base) + row * stride, tiles.bytes[tile]);
  }
}

inline void tile_store(int tile, void* base, std::int64_t stride) {
  expect(tiles.configured, "tilestored before ldtilecfg");
  for (int row = 0; row < tiles.rows[tile]; ++row) {
    std::memcpy(static_cast<char*>(base) + row * stride, tiles.data[tile][row], tiles.bytes[tile]);
  }
}

inline float from_bf16(const std::uint8_t* bytes) {
  std::uint16_t half;
  std::memcpy(&half, bytes, sizeof half);
  const std::uint32_t bits = std::uint32_t{half} << 16;
  float x;
  std::memcpy(&x, &bits, sizeof x);
  return x;
}

inline void tile_dpbf16ps(int c, int a, int b) {
  expect(tiles.configured, "tdpbf16ps before ldtilecfg");
  expect(tiles.rows[c] == tiles.rows[a] && tiles.bytes[c] == tiles.bytes[b] && tiles.bytes[a] == 4 * tiles.rows[b],
         "tdpbf16ps: shapes of the tiles agree");
  for (int m = 0; m < tiles.rows[c]; ++m) {
    for (int n = 0; n < tiles.bytes[c] / 4; ++n) {
      float sum;
      std::memcpy(&sum, tiles.data[c][m] + 4 * n, sizeof sum);
      for (int k = 0; k < tiles.rows[b]; ++k) {
        for (int half = 0; half < 4; half += 2) {
          sum += from_bf16(tiles.data[a][m] + 4 * k + half) * from_bf16(tiles.data[b][k] + 4 * n + half);
        }
      }
      std::memcpy(tiles.data[c][m] + 4 * n, &sum, sizeof sum);
    }
  }
}

}  // namespace bigmodel::emulation

#undef _tile_loadconfig
#undef _tile_release
#undef _tile_zero
#undef _tile_loadd
#undef _tile_stored
#undef _tile_dpbf16ps
#define _tile_loadconfig bigmodel::emulation::tile_loadconfig
#define _tile_release bigmodel::emulation::tile_release
#define _tile_zero bigmodel::emulation::tile_zero
#define _tile_loadd bigmodel::emulation::tile_load
#define _tile_stored bigmodel::emulation::tile_store
#define _tile_dpbf16ps bigmodel::emulation::tile_dpbf16ps
