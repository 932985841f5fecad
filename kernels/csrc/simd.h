// One vector type for both builds of the library: 16 floats with AVX-512, 8 with AVX2, and the functions that the
// engine needs of it. Products and sums are only fused where fma() says so, so both operands of a tail or of another
// batch go through exactly the same operations.
#pragma once
#include <immintrin.h>

#include <cstdint>

namespace lavila {

#if defined(__AVX512F__)
constexpr int kLanes = 16;
typedef __m512 vf;
typedef __m512i vi;
typedef __mmask16 Mask;
inline Mask mask_of(int64_t n) { return n >= 16 ? 0xffff : n <= 0 ? 0 : Mask((1u << n) - 1); }  // the first n lanes
inline vf load(const float* p) { return _mm512_loadu_ps(p); }
inline vf load(const float* p, Mask m) { return _mm512_maskz_loadu_ps(m, p); }
inline void store(float* p, vf v) { _mm512_storeu_ps(p, v); }
inline void store(float* p, vf v, Mask m) { _mm512_mask_storeu_ps(p, m, v); }
inline vf splat(float x) { return _mm512_set1_ps(x); }
inline vf fma(vf a, vf b, vf c) { return _mm512_fmadd_ps(a, b, c); }
inline vf vmax(vf a, vf b) { return _mm512_max_ps(a, b); }
inline vf vmin(vf a, vf b) { return _mm512_min_ps(a, b); }
inline vf vabs(vf a) { return _mm512_abs_ps(a); }
inline vf nearest(vf a) { return _mm512_roundscale_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
inline vi to_int(vf a) { return _mm512_cvtps_epi32(a); }
inline vf to_float(vi a) { return _mm512_cvtepi32_ps(a); }
inline vf scale2(vf a, vf n) { return _mm512_scalef_ps(a, n); }  // a · 2^n, n whole
inline vf if_negative(vf x, vf yes, vf no) {
    return _mm512_mask_mov_ps(no, _mm512_cmp_ps_mask(x, _mm512_setzero_ps(), _CMP_LT_OQ), yes);
}
inline float sum(vf a) { return _mm512_reduce_add_ps(a); }
inline float largest(vf a) { return _mm512_reduce_max_ps(a); }
inline vi load_int(const int32_t* p) { return _mm512_loadu_si512(p); }
inline void store_bytes(uint8_t* p, vi v) { _mm_storeu_si128((__m128i*)p, _mm512_cvtepi32_epi8(v)); }
inline vi add_int(vi a, vi b) { return _mm512_add_epi32(a, b); }
inline vi sub_int(vi a, vi b) { return _mm512_sub_epi32(a, b); }
inline vi splat_int(int32_t x) { return _mm512_set1_epi32(x); }
// Of numbers without a sign, by their bits: among these, one that is no number is the largest.
inline vf vmax_positive(vf a, vf b) {
    return _mm512_castsi512_ps(_mm512_max_epi32(_mm512_castps_si512(a), _mm512_castps_si512(b)));
}
inline float largest_positive(vf a) {
    const int bits = _mm512_reduce_max_epi32(_mm512_castps_si512(a));
    return _mm_cvtss_f32(_mm_castsi128_ps(_mm_cvtsi32_si128(bits)));
}
#else
constexpr int kLanes = 8;
typedef __m256 vf;
typedef __m256i vi;
struct Mask {
    __m256i lanes;
};
inline Mask mask_of(int64_t n) {
    const int count = n > 8 ? 8 : n < 0 ? 0 : int(n);
    return {_mm256_cmpgt_epi32(_mm256_set1_epi32(count), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7))};
}
inline vf load(const float* p) { return _mm256_loadu_ps(p); }
inline vf load(const float* p, Mask m) { return _mm256_maskload_ps(p, m.lanes); }
inline void store(float* p, vf v) { _mm256_storeu_ps(p, v); }
inline void store(float* p, vf v, Mask m) { _mm256_maskstore_ps(p, m.lanes, v); }
inline vf splat(float x) { return _mm256_set1_ps(x); }
inline vf fma(vf a, vf b, vf c) { return _mm256_fmadd_ps(a, b, c); }
inline vf vmax(vf a, vf b) { return _mm256_max_ps(a, b); }
inline vf vmin(vf a, vf b) { return _mm256_min_ps(a, b); }
inline vf vabs(vf a) { return _mm256_andnot_ps(_mm256_set1_ps(-0.f), a); }
inline vf nearest(vf a) { return _mm256_round_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
inline vi to_int(vf a) { return _mm256_cvtps_epi32(a); }
inline vf to_float(vi a) { return _mm256_cvtepi32_ps(a); }
inline vf scale2(vf a, vf n) {  // in two steps, so that results below 2^-126 come out too
    const vi whole = to_int(n), half = _mm256_srai_epi32(whole, 1), bias = _mm256_set1_epi32(127);
    const vi rest = _mm256_sub_epi32(whole, half);
    a = a * _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(half, bias), 23));
    return a * _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(rest, bias), 23));
}
inline vf if_negative(vf x, vf yes, vf no) {
    return _mm256_blendv_ps(no, yes, _mm256_cmp_ps(x, _mm256_setzero_ps(), _CMP_LT_OQ));
}
inline float sum(vf a) {
    __m128 s = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    s = _mm_add_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
}
inline float largest(vf a) {
    __m128 s = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    s = _mm_max_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_max_ss(s, _mm_movehdup_ps(s)));
}
inline vi load_int(const int32_t* p) { return _mm256_loadu_si256((const __m256i*)p); }
inline void store_bytes(uint8_t* p, vi v) {
    const __m128i words = _mm_packus_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
    _mm_storel_epi64((__m128i*)p, _mm_packus_epi16(words, words));
}
inline vi add_int(vi a, vi b) { return _mm256_add_epi32(a, b); }
inline vi sub_int(vi a, vi b) { return _mm256_sub_epi32(a, b); }
inline vi splat_int(int32_t x) { return _mm256_set1_epi32(x); }
inline vf vmax_positive(vf a, vf b) {
    return _mm256_castsi256_ps(_mm256_max_epi32(_mm256_castps_si256(a), _mm256_castps_si256(b)));
}
inline float largest_positive(vf a) {
    const __m256i bits = _mm256_castps_si256(a);
    __m128i s = _mm_max_epi32(_mm256_castsi256_si128(bits), _mm256_extracti128_si256(bits, 1));
    s = _mm_max_epi32(s, _mm_shuffle_epi32(s, 0x4e));
    return _mm_cvtss_f32(_mm_castsi128_ps(_mm_max_epi32(s, _mm_shuffle_epi32(s, 0xb1))));
}
#endif

// e^x for x from -87.3 to 87, and what these give beyond (1.2e-38, 6e37); relative error below 2e-7. No subnormal
// numbers come out, nor from 1 / (1 + e^x): they would cost a hundred times as much.
inline vf vexp(vf x) {
    x = vmin(vmax(x, splat(-87.3f)), splat(87.f));
    const vf n = nearest(x * splat(1.44269504f));
    // ln 2 in two parts, so that n · ln 2 is subtracted exactly; then Taylor's polynomial, refined, on |r| ≤ ln(2)/2.
    const vf r = fma(n, splat(2.12194440e-4f), fma(n, splat(-0.693359375f), x));
    vf p = fma(splat(1.9875691500e-4f), r, splat(1.3981999507e-3f));
    p = fma(p, r, splat(8.3334519073e-3f));
    p = fma(p, r, splat(4.1665795894e-2f));
    p = fma(p, r, splat(1.6666665459e-1f));
    p = fma(p, r, splat(5.0000001201e-1f));
    return scale2(fma(p, r * r, r + splat(1.f)), n);
}

inline vf sigmoid(vf x) { return splat(1.f) / (splat(1.f) + vexp(splat(0.f) - x)); }

// The same within two units in the last place, without a division, for which AMX would wait.
inline vf quick_sigmoid(vf x) {
#if defined(__AVX512F__)
    const vf whole = splat(1.f) + vexp(splat(0.f) - x), part = _mm512_rcp14_ps(whole);
    return fma(part, fma(splat(0.f) - part, whole, splat(1.f)), part);
#else
    return sigmoid(x);
#endif
}

// The normal distribution's integral up to x: half of erfc(-x/√2), by the rational Chebyshev fit of Numerical Recipes
// (erfcc); relative error below 5e-7 for |x| < 5.
inline vf normal_cdf(vf x) {
    const vf z = vabs(x) * splat(0.70710678f), t = splat(1.f) / fma(z, splat(0.5f), splat(1.f));
    vf p = fma(splat(0.17087277f), t, splat(-0.82215223f));
    p = fma(p, t, splat(1.48851587f));
    p = fma(p, t, splat(-1.13520398f));
    p = fma(p, t, splat(0.27886807f));
    p = fma(p, t, splat(-0.18628806f));
    p = fma(p, t, splat(0.09678418f));
    p = fma(p, t, splat(0.37409196f));
    p = fma(p, t, splat(1.00002368f));
    p = fma(p, t, splat(-1.26551223f));
    const vf half = splat(0.5f) * t * vexp(fma(splat(0.f) - z, z, p));
    return if_negative(x, half, splat(1.f) - half);
}

}  // namespace lavila
