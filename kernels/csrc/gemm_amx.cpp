// INT8 products with AMX: 2 x 2 tiles of 16 x 16 sums, over all inputs.
#include "tiles.h"

#if defined(__AVX512F__)
#define LV_AMX __attribute__((target("amx-tile,amx-int8")))

namespace lavila {
namespace {

// Tiles 0..3 sums, 4 5 activations, 6 7 weights. While the tiles work, the vector units finish the block before, a few
// rows at each step: alone either would wait for the other.
template <Act A, int T>
LV_AMX inline __attribute__((always_inline)) void product(const int8_t* tile, const uint8_t* x, int blocks,
                                                          int32_t* sums, const Int8Matrix& w,
                                                          const Target& to, Sums& before) {
    const int64_t rows_a_step = (before.left + blocks - 1) / blocks;
    _tile_zero(0);
    _tile_zero(1);
    if (T == 2) _tile_zero(2);
    if (T == 2) _tile_zero(3);
    for (int k = 0; k < blocks; ++k, tile += 2048, x += 1024) {
        _tile_loadd(4, x, 64);
        _tile_loadd(6, tile, 64);
        _tile_dpbusd(0, 4, 6);
        _tile_loadd(7, tile + 1024, 64);
        _tile_dpbusd(1, 4, 7);
        if (T == 2) {
            _tile_loadd(5, x + blocks * 1024, 64);
            _tile_dpbusd(2, 5, 6);
            _tile_dpbusd(3, 5, 7);
        }
        finish_rows<A>(w, to, before, rows_a_step);
    }
    _tile_stored(0, sums, kWide * 4);
    _tile_stored(1, sums + 16, kWide * 4);
    if (T == 2) _tile_stored(2, sums + 16 * kWide, kWide * 4);
    if (T == 2) _tile_stored(3, sums + 16 * kWide + 16, kWide * 4);
}

template <Act A>
LV_AMX void run(const Int8Matrix& w, const QuantRows& x, int64_t row, int64_t rows, int panel, int last,
                const Target& to) {
    static const TileConfig config;
    _tile_loadconfig(&config);
    alignas(64) int32_t sums[2][32 * kWide];
    Sums before;
    for (int turn = 0; panel < last; ++panel)
        for (int64_t r = row; r < row + rows; r += 32, turn ^= 1) {
            const int8_t* tiles = &w.panels[size_t(panel) * size_t(w.panel_bytes())];
            const uint8_t* a = &x.data[x.at(r, 0)];
            const int64_t count = std::min<int64_t>(32, row + rows - r);
            const int blocks = x.stride / 64;
            if (count > 16) product<A, 2>(tiles, a, blocks, sums[turn], w, to, before);
            else product<A, 1>(tiles, a, blocks, sums[turn], w, to, before);
            before = {sums[turn], &x.scale[size_t(r)], count, panel * kWide, to.y + r * to.ldy + panel * kWide};
        }
    finish_rows<A>(w, to, before, before.left);
    _tile_release();
}

}  // namespace

void gemm_int8_amx(const Int8Matrix& w, const QuantRows& x, int64_t row, int64_t rows, int panel, int last,
                   const Target& to) {
    with_act(to.act, [&](auto act) { run<decltype(act)::value>(w, x, row, rows, panel, last, to); });
}

}  // namespace lavila
#endif
