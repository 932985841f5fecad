// How caches are stored: float32, or bytes with a scale a vector. Both are read as float32.
#pragma once
#include <algorithm>
#include <cmath>

#include "simd.h"

namespace lavila {

inline vf load(const int8_t* p) {
#if defined(__AVX512F__)
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i*)p)));
#else
    return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i*)p)));
#endif
}

// Asks for `bytes` from `p` on, without waiting.
inline void prefetch(const void* p, int bytes) {
    for (int i = 0; i < bytes; i += 64) _mm_prefetch(static_cast<const char*>(p) + i, _MM_HINT_T0);
}

}  // namespace lavila
