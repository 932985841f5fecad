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

namespace {

constexpr int kWideRows = 4;  // 4 x 2 sums, 4 vectors of weights, one of activations: 13 of 16 registers

// The bytes of rows as 16-bit numbers, even ones apart from odd ones: [groups][2] pairs a row.
void widen(const uint8_t* x, int64_t stride, int rows, int32_t* pairs) {
    for (int r = 0; r < rows; ++r)
        for (int64_t i = 0; i < stride; i += 32) {
            const __m256i bytes = _mm256_loadu_si256((const __m256i*)(x + r * stride + i));
            const __m256i even = _mm256_and_si256(bytes, _mm256_set1_epi16(0xff)), odd = _mm256_srli_epi16(bytes, 8);
            const __m256i low = _mm256_unpacklo_epi32(even, odd), high = _mm256_unpackhi_epi32(even, odd);
            auto* to = (__m256i*)(pairs + r * (stride / 2) + i / 2);
            _mm256_storeu_si256(to, _mm256_permute2x128_si256(low, high, 0x20));
            _mm256_storeu_si256(to + 1, _mm256_permute2x128_si256(low, high, 0x31));
        }
}

// Pairs of products are summed without saturation, which bytes times bytes would need. Half a panel at a time.
template <int R>
void wide_block(const int8_t* w, const int32_t* pairs, int64_t stride, int groups, int32_t* sums) {
    for (int half = 0; half < 2; ++half) {
        __m256i total[R][2];
#pragma GCC unroll 4
        for (int r = 0; r < R; ++r) total[r][0] = total[r][1] = _mm256_setzero_si256();
        for (int g = 0; g < groups; ++g) {
            const int8_t* tile = w + g / 16 * 2048 + g % 16 * 64 + half * 1024;
            const __m256i b0 = _mm256_load_si256((const __m256i*)tile);
            const __m256i b1 = _mm256_load_si256((const __m256i*)(tile + 32));
            const __m256i even0 = _mm256_srai_epi16(_mm256_slli_epi16(b0, 8), 8), odd0 = _mm256_srai_epi16(b0, 8);
            const __m256i even1 = _mm256_srai_epi16(_mm256_slli_epi16(b1, 8), 8), odd1 = _mm256_srai_epi16(b1, 8);
#pragma GCC unroll 4
            for (int r = 0; r < R; ++r) {
                const int32_t* a = pairs + r * (stride / 2) + g * 2;
                const __m256i a_even = _mm256_set1_epi32(a[0]), a_odd = _mm256_set1_epi32(a[1]);
                total[r][0] = _mm256_add_epi32(total[r][0], _mm256_madd_epi16(a_even, even0));
                total[r][1] = _mm256_add_epi32(total[r][1], _mm256_madd_epi16(a_even, even1));
                total[r][0] = _mm256_add_epi32(total[r][0], _mm256_madd_epi16(a_odd, odd0));
                total[r][1] = _mm256_add_epi32(total[r][1], _mm256_madd_epi16(a_odd, odd1));
            }
        }
#pragma GCC unroll 4
        for (int r = 0; r < R; ++r) {
            _mm256_store_si256((__m256i*)(sums + r * kWide + half * 16), total[r][0]);
            _mm256_store_si256((__m256i*)(sums + r * kWide + half * 16 + 8), total[r][1]);
        }
    }
}

template <int R = kWideRows>
void wide_blocks(const int8_t* w, const int32_t* pairs, int64_t stride, int groups, int rows, int32_t* sums) {
    if constexpr (R > 1)
        if (rows < R) return wide_blocks<R - 1>(w, pairs, stride, groups, rows, sums);
    wide_block<R>(w, pairs, stride, groups, sums);
}

}  // namespace

void gemm_int8_wide(const Int8Matrix& w, const QuantRows& x, int64_t row, int64_t rows, int panel, int last,
                    const Target& to) {
    alignas(64) int32_t sums[kWideRows * kWide];
    thread_local std::vector<int32_t> pairs;
    pairs.resize(size_t(kWideRows * (x.stride / 2)));
    for (int64_t r = row; r < row + rows; r += kWideRows) {  // widened once for all panels, which the caches hold
        const int count = int(std::min<int64_t>(kWideRows, row + rows - r));
        widen(&x.data[size_t(r * x.stride)], x.stride, count, pairs.data());
        for (int p = panel; p < last; ++p) {
            wide_blocks(&w.panels[size_t(p) * size_t(w.panel_bytes())], pairs.data(), x.stride, int(x.stride / 4), count,
                        sums);
            finish(w, x, sums, r, count, p * kWide, to);
        }
    }
}

}  // namespace lavila
