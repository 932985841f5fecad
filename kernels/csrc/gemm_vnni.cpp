// INT8 products without tiles: AVX512-VNNI, and the same sums by widening to 16 bits where there is no VNNI.
#include <cstring>

#include "gemm.h"

namespace lavila {
namespace {

inline int32_t four(const uint8_t* p) {
    int32_t x;
    std::memcpy(&x, p, 4);
    return x;
}


}  // namespace

#if defined(__AVX512F__)
namespace {

constexpr int kRows = 12;  // 12 x 2 sums, 2 vectors of weights, one of activations: 27 of 32 registers

template <int R>
__attribute__((target("avx512vnni"))) void block(const int8_t* w, const uint8_t* x, int64_t stride, int groups,
                                                 int32_t* sums) {
    __m512i low[R], high[R];
#pragma GCC unroll 12
    for (int r = 0; r < R; ++r) low[r] = high[r] = _mm512_setzero_si512();
    for (int g = 0; g < groups; ++g) {
        const int8_t* tile = w + g / 16 * 2048 + g % 16 * 64;
        const __m512i w_low = _mm512_load_si512(tile), w_high = _mm512_load_si512(tile + 1024);
#pragma GCC unroll 12
        for (int r = 0; r < R; ++r) {
            const __m512i a = _mm512_set1_epi32(four(x + r * stride + g * 4));
            low[r] = _mm512_dpbusd_epi32(low[r], a, w_low);
            high[r] = _mm512_dpbusd_epi32(high[r], a, w_high);
        }
    }
#pragma GCC unroll 12
    for (int r = 0; r < R; ++r) {
        _mm512_store_si512(sums + r * kWide, low[r]);
        _mm512_store_si512(sums + r * kWide + 16, high[r]);
    }
}

template <int R = kRows>
void blocks(const int8_t* w, const uint8_t* x, int64_t stride, int groups, int rows, int32_t* sums) {
    if constexpr (R > 1)
        if (rows < R) return blocks<R - 1>(w, x, stride, groups, rows, sums);
    block<R>(w, x, stride, groups, sums);
}

}  // namespace

void gemm_int8_vnni(const Int8Matrix& w, const QuantRows& x, int64_t row, int64_t rows, int panel, int last,
                    const Target& to) {
    alignas(64) int32_t sums[kRows * kWide];
    for (; panel < last; ++panel)
        for (int64_t r = row; r < row + rows; r += kRows) {
            const int count = int(std::min<int64_t>(kRows, row + rows - r));
            blocks(&w.panels[size_t(panel) * size_t(w.panel_bytes())], &x.data[size_t(r * x.stride)], x.stride,
                   x.stride / 4, count, sums);
            finish(w, x, sums, r, count, panel * kWide, to);
        }
}
#endif

// Even and odd bytes as 16-bit numbers: pairs of products are summed without saturation.
void gemm_int8_wide(const Int8Matrix& w, const QuantRows& x, int64_t row, int64_t rows, int panel, int last,
                    const Target& to) {
    alignas(64) int32_t sums[kWide];
    for (; panel < last; ++panel)
        for (int64_t r = row; r < row + rows; ++r) {
            const int8_t* weights = &w.panels[size_t(panel) * size_t(w.panel_bytes())];
            const uint8_t* a = &x.data[size_t(r * x.stride)];
            __m256i total[4] = {};
            for (int g = 0; g < x.stride / 4; ++g) {
                const int8_t* tile = weights + g / 16 * 2048 + g % 16 * 64;
                const __m256i bytes = _mm256_set1_epi32(four(a + g * 4));
                const __m256i even = _mm256_and_si256(bytes, _mm256_set1_epi16(0xff));
                const __m256i odd = _mm256_srli_epi16(bytes, 8);
                for (int i = 0; i < 4; ++i) {
                    const __m256i b = _mm256_load_si256((const __m256i*)(tile + i / 2 * 1024 + i % 2 * 32));
                    const __m256i b_even = _mm256_srai_epi16(_mm256_slli_epi16(b, 8), 8), b_odd = _mm256_srai_epi16(b, 8);
                    total[i] = _mm256_add_epi32(total[i], _mm256_add_epi32(_mm256_madd_epi16(even, b_even),
                                                                           _mm256_madd_epi16(odd, b_odd)));
                }
            }
            std::memcpy(sums, total, sizeof sums);
            finish(w, x, sums, r, 1, panel * kWide, to);
        }
}

}  // namespace lavila
