// AMX: eight tiles of 16 rows of 64 bytes.
#pragma once
#include "gemm.h"

namespace lavila {

struct alignas(64) TileConfig {
    uint8_t palette = 1, start_row = 0, reserved[14] = {};
    uint16_t row_bytes[16] = {};
    uint8_t rows[16] = {};
    TileConfig() {
        for (int i = 0; i < 8; ++i) row_bytes[i] = 64, rows[i] = 16;
    }
};

}  // namespace lavila
