// Attention over the caches. At these sizes a step reads more than it computes: keys and values are stored as
// bytes for INT8 models, read once for all rows of a clip, and the next head's are asked for while this one's are used.
#include "attention.h"

#include <cmath>
#include <cstring>

#include "gemm.h"

namespace lavila {
namespace {

constexpr int kRows = kLanes == 16 ? 10 : 5;  // rows of a product whose sums fit into registers, two vectors each

// c (M, 2 vectors) = a (M, inner) · b (inner, kStrip of which two vectors). Each sum is one chain in order of `inner`.
template <int M, class T>
void tile(int inner, const float* a, int64_t lda, const T* b, float* c, int64_t ldc) {
    vf sums[M][2];
    for (int r = 0; r < M; ++r) sums[r][0] = sums[r][1] = splat(0.f);
    for (int k = 0; k < inner; ++k, b += kStrip) {
        const vf low = load(b), high = load(b + kLanes);
        _mm_prefetch(reinterpret_cast<const char*>(b) + 2048, _MM_HINT_T0);
#pragma GCC unroll 10
        for (int r = 0; r < M; ++r) {
            const vf x = splat(a[r * lda + k]);
            sums[r][0] = fma(x, low, sums[r][0]);
            sums[r][1] = fma(x, high, sums[r][1]);
        }
    }
    for (int r = 0; r < M; ++r) {
        store(c + r * ldc, sums[r][0]);
        store(c + r * ldc + kLanes, sums[r][1]);
    }
}

// c (rows, columns) = a (rows, inner) · b, b in panels of kStrip columns.
template <int M, class T>
void product(int rows, int columns, int inner, const float* a, int64_t lda, const T* b, float* c, int64_t ldc) {
    if constexpr (M > 1) {
        if (rows < M) return product<M - 1, T>(rows, columns, inner, a, lda, b, c, ldc);
    }
    for (int column = 0; column < columns; column += kStrip)
        for (int part = 0; part < kStrip; part += 2 * kLanes)
            tile<M, T>(inner, a, lda, b + int64_t(column) * inner + part, c + column + part, ldc);
}

// Scores to weights in place, without dividing by their sum, which is returned. `scores` is overwritten up to a whole
// vector past `count`.
float weigh(float* scores, int count) {
    const int whole = (count + kLanes - 1) / kLanes * kLanes;
    for (int i = count; i < whole; ++i) scores[i] = -INFINITY;
    vf top = load(scores);
    for (int i = kLanes; i < whole; i += kLanes) top = vmax(top, load(scores + i));
    const vf most = splat(largest(top));
    vf total = splat(0.f);
    for (int i = 0; i < whole; i += kLanes) {
        const vf e = vexp(load(scores + i) - most);
        store(scores + i, e);
        total = total + e;
    }
    return sum(total);
}

// Values summed by weight, columns [first, first + N vectors). Even and odd tokens in chains of their own.
template <int N, class T>
void mix(const PageShape<T>& shape, char* const* pages, int count, int first, const float* weights, int64_t ahead,
         float* out) {
    const int deep = lanes(shape.size);
    vf even[N], odd[N];
    for (int j = 0; j < N; ++j) even[j] = odd[j] = splat(0.f);
    for (int begin = 0; begin < count; begin += kPage, weights += kPage) {
        const T* value = reinterpret_cast<const T*>(*pages++ + shape.values()) + first;
        const int here = std::min(count - begin, kPage);
        for (int t = 0; t < here; ++t, value += deep) {
            if (ahead) prefetch(reinterpret_cast<const char*>(value) + ahead, N * kLanes * int(sizeof(T)));
            vf* const chain = t % 2 ? odd : even;
            for (int j = 0; j < N; ++j) chain[j] = fma(splat(weights[t]), load(value + j * kLanes), chain[j]);
        }
    }
    for (int j = 0; j < N; ++j) store(out + j * kLanes, even[j] + odd[j]);
}

// One vector into a cache, element i at to[place(i)], evenly apart within kLanes of them; returns its scale.
template <class T, class F>
float keep(const float* x, int size, T* to, const F& place) {
    vf top = splat(0.f);
    for (int i = 0; i < size; i += kLanes) top = vmax(vabs(load(x + i, mask_of(size - i))), top);
    const float most = largest(top);
    const bool scaled = HeadShape<T>::kScaled && most > 0.f;
    const float factor = scaled ? 127.f / most : 1.f;
    if constexpr (HeadShape<T>::kScaled) {
        const vf limit = splat(127.f);
        for (int i = 0; i < size; i += kLanes) {
            uint8_t bytes[kLanes];
            const vf v = load(x + i, mask_of(size - i)) * splat(factor);
            store_bytes(bytes, add_int(to_int(vmin(vmax(v, splat(-127.f)), limit)), splat_int(128)));
            T* const first = to + place(i);
            const int64_t step = place(i + 1) - place(i), here = std::min(kLanes, size - i);
            if (step == 1 && here == kLanes)
                for (int j = 0; j < kLanes; ++j) first[j] = T(bytes[j] - 128);
            else
                for (int j = 0; j < here; ++j) first[j * step] = T(bytes[j] - 128);
        }
    } else {
        for (int i = 0; i < size; ++i) to[place(i)] = x[i];
    }
    return scaled ? most / 127.f : 1.f;
}

// scores[i] *= scale[i], as far as whole vectors go.
void rescale(const float* scale, int count, float* scores) {
    for (int i = 0; i < count; i += kLanes) store(scores + i, load(scores + i) * load(scale + i));
}

float* scratch(size_t floats) {
    static thread_local Aligned<float> memory;
    memory.resize(floats);
    return memory.data();
}

}  // namespace

template <class T>
void pack_cross(const CrossShape<T>& shape, const float* key, const float* value, int64_t stride, char* head) {
    const int d = shape.size, Q = shape.queries;
    std::memset(head, 0, size_t(shape.head()));
    T *keys = reinterpret_cast<T*>(head), *values = reinterpret_cast<T*>(head + shape.values());
    auto* scales = reinterpret_cast<float*>(head + shape.scales());
    for (int t = 0; t < Q; ++t) {
        T* to = keys + int64_t(t / kStrip) * d * kStrip + t % kStrip;
        const float k = keep(key + t * stride, d, to, [](int i) { return i * kStrip; });
        const auto place = [&](int i) { return (int64_t(i / kStrip) * Q + t) * kStrip + i % kStrip; };
        const float v = keep(value + t * stride, d, values, place);
        if (HeadShape<T>::kScaled) scales[t] = k, scales[shape.tokens + t] = v;
    }
}

template <class T>
void cross_attention(const CrossShape<T>& shape, const char* head, const float* q, float* out, int64_t stride,
                     const int* which, int R) {
    const int d = shape.size, Q = shape.queries, wide = strips(Q), deep = strips(d);
    const T *keys = reinterpret_cast<const T*>(head), *values = reinterpret_cast<const T*>(head + shape.values());
    const auto* scales = reinterpret_cast<const float*>(head + shape.scales());
    float* asked = scratch(size_t(kRows) * size_t(wide + 2 * deep));
    float *scores = asked + kRows * deep, *seen = scores + kRows * wide;
    for (int done = 0, left = (R + kRows - 1) / kRows; done < R; --left) {
        const int rows = (R - done) / left;  // tiles of nearly the same height
        for (int r = 0; r < rows; ++r) std::copy_n(q + which[done + r] * stride, d, asked + r * deep);
        product<kRows, T>(rows, wide, d, asked, deep, keys, scores, wide);
        float total[kRows];
        for (int r = 0; r < rows; ++r) {
            float* mine = scores + r * wide;
            if (HeadShape<T>::kScaled) rescale(scales, Q, mine);
            total[r] = weigh(mine, Q);
            if (HeadShape<T>::kScaled) rescale(scales + shape.tokens, Q, mine);
        }
        product<kRows, T>(rows, deep, Q, scores, wide, values, seen, deep);
        for (int r = 0; r < rows; ++r)
            for (int i = 0; i < d; ++i) out[which[done + r] * stride + i] = seen[r * deep + i] / total[r];
        done += rows;
    }
}

template <class T>
void self_attention(const PageShape<T>& shape, char* const* pages, int length, const float* qkv, int64_t width,
                    float scale, bool ahead, float* out) {
    const int d = shape.size, deep = lanes(d), count = length + 1, place = length % kPage;
    const int64_t step = ahead ? shape.head() : 0;
    float* q = scratch(size_t(2 * deep + count + kPage));
    float *sums = q + deep, *scores = sums + deep;
    for (int i = 0; i < d; ++i) q[i] = qkv[i] * scale;
    char* own = pages[length / kPage];
    T *key = reinterpret_cast<T*>(own) + place, *value = reinterpret_cast<T*>(own + shape.values()) + place * deep;
    const float key_scale = keep(qkv + width, d, key, [](int i) { return i * kPage; });
    const float value_scale = keep(qkv + 2 * width, d, value, [](int i) { return i; });
    if (HeadShape<T>::kScaled) {
        auto* scales = reinterpret_cast<float*>(own + shape.scales());
        scales[place] = key_scale, scales[kPage + place] = value_scale;
    }
    const auto scale_page = [&](int page, int which) {
        const auto* scales = reinterpret_cast<const float*>(pages[page] + shape.scales()) + which * kPage;
        if (HeadShape<T>::kScaled) rescale(scales, kPage, scores + page * kPage);
    };
    for (int page = 0; page * kPage < count; ++page) {
        if (ahead) prefetch(pages[page] + step, int(shape.values()));
        for (int part = 0; part < kPage; part += kLanes) {
            const T* key = reinterpret_cast<const T*>(pages[page]) + part;
            vf s[4] = {splat(0.f), splat(0.f), splat(0.f), splat(0.f)};  // four chains, for their latency
            int i = 0;
            for (; i + 4 <= d; i += 4)
                for (int j = 0; j < 4; ++j) s[j] = fma(splat(q[i + j]), load(key + (i + j) * kPage), s[j]);
            for (; i < d; ++i) s[0] = fma(splat(q[i]), load(key + i * kPage), s[0]);
            store(scores + page * kPage + part, (s[0] + s[1]) + (s[2] + s[3]));
        }
        scale_page(page, 0);
    }
    const float total = weigh(scores, count);
    for (int page = 0; page * kPage < count; ++page) scale_page(page, 1);
    for (int i = 0; i < deep;) {
        const bool four = i + 4 * kLanes <= deep;
        (four ? mix<4, T> : mix<1, T>)(shape, pages, count, i, scores, step, sums + i);
        i += four ? 4 * kLanes : kLanes;
    }
    for (int i = 0; i < d; ++i) out[i] = sums[i] / total;
}

#define LV_STORED_AS(T)                                                                                          \
    template void pack_cross<T>(const CrossShape<T>&, const float*, const float*, int64_t, char*);               \
    template void cross_attention<T>(const CrossShape<T>&, const char*, const float*, float*, int64_t, const int*, \
                                     int);                                                                       \
    template void self_attention<T>(const PageShape<T>&, char* const*, int, const float*, int64_t, float, bool,  \
                                    float*);
LV_STORED_AS(float)
LV_STORED_AS(int8_t)

}  // namespace lavila
