// Attention in bfloat16 with AMX, softmax in float32 (see grouped.h). 32 queries at a time: all scores, then all outputs.
#include "grouped.h"

#if defined(__AVX512F__)
#include <cmath>

#include "tiles.h"
#define LV_AMX __attribute__((target("amx-tile,amx-bf16,avx512bf16")))

namespace lavila {
namespace {

constexpr int kRows = 32, kTile = 512;  // a tile has 512 numbers

LV_AMX inline void to_half(const float* x, float factor, int count, uint16_t* y) {  // count: a multiple of 32
    for (int i = 0; i < count; i += 32)
        _mm512_storeu_si512(y + i, (__m512i)_mm512_cvtne2ps_pbh(load(x + i + 16) * splat(factor),
                                                                 load(x + i) * splat(factor)));
}

// c (32, 32) floats = a (32, 32·steps) times tiles b: two beside each other, `next` numbers from step to step.
LV_AMX inline void product(const uint16_t* a, int64_t lda, const uint16_t* b, const uint16_t* beside, int64_t next,
                           int64_t steps, float* c, int64_t ldc) {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    for (int64_t k = 0; k < steps; ++k) {
        _tile_loadd(4, a + k * 32, size_t(lda * 2));
        _tile_loadd(6, b + k * next, 64);
        _tile_dpbf16ps(0, 4, 6);
        _tile_loadd(7, beside + k * next, 64);
        _tile_dpbf16ps(1, 4, 7);
        _tile_loadd(5, a + k * 32 + 16 * lda, size_t(lda * 2));
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
    }
    _tile_stored(0, c, size_t(ldc * 4));
    _tile_stored(1, c + 16, size_t(ldc * 4));
    _tile_stored(2, c + 16 * ldc, size_t(ldc * 4));
    _tile_stored(3, c + 16 * ldc + 16, size_t(ldc * 4));
}

// scores (keys) → e^(score - max) as bfloat16, zeros up to `padded`; gives the sum.
LV_AMX inline float softmax(float* scores, int keys, int64_t padded, uint16_t* weights) {
    for (int64_t j = keys; j < padded; ++j) scores[j] = -INFINITY;
    vf top = load(scores);
    for (int64_t j = 16; j < padded; j += 16) top = vmax(top, load(scores + j));
    const vf most = splat(largest(top));
    vf total = splat(0.f);
    for (int64_t j = 0; j < padded; j += 32) {
        const vf low = vexp(load(scores + j) - most), high = vexp(load(scores + j + 16) - most);
        total = total + (low + high);
        _mm512_storeu_si512(weights + j, (__m512i)_mm512_cvtne2ps_pbh(high, low));
    }
    return sum(total);
}

}  // namespace

LV_AMX void put_tiles(Memory& m, int first, int count, const float* k, const float* v, int64_t ld) {
    for (int j = 0; j < count; ++j) {
        to_half(k + j * ld, 1.f / std::sqrt(float(m.size)), m.size, &m.half_k[size_t((first + j) * m.size)]);
        to_half(v + j * ld, 1.f, m.size, &m.half_v[size_t((first + j) * m.size)]);
    }
}

LV_AMX void seal_tiles(Memory& m) {
    const int d = m.size;
    for (auto* half : {&m.half_k, &m.half_v}) std::fill(half->begin() + m.keys * d, half->begin() + m.ldk * d, 0);
    const __m512i column = _mm512_mullo_epi32(_mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15),
                                              _mm512_set1_epi32(d / 2));
    uint16_t* to = m.k_tiles.data();
    for (int64_t key = 0; key < m.ldk; key += 16)
        for (int i = 0; i < d; i += 2, to += 32)
            _mm512_store_si512(to, _mm512_i32gather_epi32(column, &m.half_k[size_t(key * d + i)], 4));
    to = m.v_tiles.data();
    for (int64_t key = 0; key < m.ldk; key += 32)
        for (int i = 0; i < d; i += 16)
            for (int pair = 0; pair < 32; pair += 2, to += 32) {
                const uint16_t* from = &m.half_v[size_t((key + pair) * d + i)];
                const __m512i even = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)from));
                const __m512i odd = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)(from + d)));
                _mm512_store_si512(to, _mm512_or_si512(even, _mm512_slli_epi32(odd, 16)));
            }
}

LV_AMX void attend_tiles(const Memory& m, int rows, const float* q, int64_t ldq, float* out, int64_t ldo) {
    static const TileConfig config;
    static thread_local Aligned<float> scores;            // (32, K)
    static thread_local Aligned<uint16_t> half_q, weights;  // (32, d), (32, K)
    const int64_t K = m.ldk, d = m.size;
    scores.resize(size_t(kRows * K)), weights.resize(size_t(kRows * K)), half_q.resize(size_t(kRows * d));
    alignas(64) float block[kRows * 32];
    _tile_loadconfig(&config);
    for (int row = 0; row < rows; row += kRows) {
        const int count = std::min(kRows, rows - row);
        float totals[kRows];
        for (int r = 0; r < count; ++r) to_half(q + (row + r) * ldq, 1.f, int(d), &half_q[size_t(r * d)]);
        for (int64_t key = 0; key < K; key += 32) {
            const uint16_t* tile = &m.k_tiles[size_t(key * d)];
            product(half_q.data(), d, tile, tile + 16 * d, kTile, d / 32, &scores[size_t(key)], K);
        }
        for (int r = 0; r < count; ++r)
            totals[r] = 1.f / softmax(&scores[size_t(r * K)], m.keys, K, &weights[size_t(r * K)]);
        for (int64_t i = 0; i < d; i += 32) {
            const uint16_t* tile = &m.v_tiles[size_t(i * 32)];
            product(weights.data(), K, tile, tile + kTile, 32 * d, K / 32, block, 32);
            for (int r = 0; r < count; ++r)
                for (int j = 0; j < 32; j += 16)
                    store(out + (row + r) * ldo + i + j, load(block + r * 32 + j) * splat(totals[r]));
        }
    }
    _tile_release();
}

}  // namespace lavila
#endif
