// One output pixel from a YUV picture: taps, conversion to RGB, bilinear mix, normalisation. Compiled by nvcc for the
// kernel and by a C++ compiler for tests and sanitizers, so the arithmetic that runs on a GPU is checked without one.
// What each step means is told by kernels/preprocess/reference.py; integers here are the same integers.
#pragma once
#include <cmath>

#include "lavila_cuda.h"

#ifdef __CUDACC__
#define LV_INLINE __host__ __device__ __forceinline__
#else
#define LV_INLINE inline
#endif

namespace lavila {

LV_INLINE int lower(int a, int b) { return a < b ? a : b; }
LV_INLINE int clamp(int x, int low, int high) { return x < low ? low : lower(x, high); }

template <class T>
LV_INLINE int read(const void* plane, int at) {
#ifdef __CUDA_ARCH__
    return __ldg(static_cast<const T*>(plane) + at);
#else
    return static_cast<const T*>(plane)[at];
#endif
}

// Sample `column` of row `row`.
LV_INLINE int sample(const lv_frame& f, const void* plane, int pitch, int row, int column) {
    const char* line = static_cast<const char*>(plane) + int64_t(row) * pitch;
    return f.bits > 8 ? read<uint16_t>(line, column) >> f.shift : read<uint8_t>(line, column);
}

// Chroma for luma row `row` at chroma column `column`: 3:1 between rows, and between columns if `left`; 8 bits.
LV_INLINE int smooth(const lv_frame& f, const void* plane, int row, int column) {
    const int last_row = (f.height + 1) / 2 - 1, last_column = (f.width + 1) / 2 - 1;
    const int near = row / 2, other = clamp(near + row % 2 * 2 - 1, 0, last_row), extra = f.bits - 8;
    const auto mixed = [&](int at) {
        return 3 * sample(f, plane, f.c_pitch, near, at * f.step) + sample(f, plane, f.c_pitch, other, at * f.step);
    };
    const int here = mixed(column), next = f.left ? mixed(lower(column + 1, last_column)) : here;
    return lower((3 * here + next + (8 << extra)) >> (4 + extra), 255);
}

struct Rgb {
    int r, g, b;
};

LV_INLINE Rgb byte_range(int r, int g, int b) { return {clamp(r, 0, 255), clamp(g, 0, 255), clamp(b, 0, 255)}; }

LV_INLINE Rgb rgb_at(const lv_frame& f, int x, int y) {
    const auto& k = f.colours;
    const int luma = sample(f, f.y, f.y_pitch, y, x);
    if (k.table) {
        const int extra = f.bits - 8, grey = (luma + (1 << extra >> 1)) >> extra;
        const int u = smooth(f, f.u, y, x / 2), v = smooth(f, f.v, y, x / 2);
        const auto moved = [](int c, int factor) { return (c * factor >> 16) - (factor >> 9); };
        const auto look_up = [&](int at) { return (at * k.y + k.y0) >> 16; };
        return byte_range(look_up(grey + moved(v, k.v_to_r)), look_up(grey + moved(u, k.u_to_g) + moved(v, k.v_to_g)),
                          look_up(grey + moved(u, k.u_to_b)));
    }
    const int grey = (8 * luma - k.y0) * k.y >> 16;
    const int u = 8 * sample(f, f.u, f.c_pitch, y / 2, x / 2 * f.step) - 1024;
    const int v = 8 * sample(f, f.v, f.c_pitch, y / 2, x / 2 * f.step) - 1024;
    return byte_range(grey + (v * k.v_to_r >> 16), grey + (u * k.u_to_g >> 16) + (v * k.v_to_g >> 16),
                      grey + (u * k.u_to_b >> 16));
}

// Between samples `low` and `low` + 1 of an axis, `weight` of the way to the latter.
struct Tap {
    int low;
    float weight;
};

LV_INLINE Tap tap(int output, int cut, float scale, int length, bool flipped) {
    const float where = fmaxf(fmaf(scale, float(cut + output) + .5f, -.5f), 0.f);
    const int low = lower(int(where), length - 2);
    const float weight = fminf(where - float(low), 1.f);
    return flipped ? Tap{length - 2 - low, 1.f - weight} : Tap{low, weight};
}

struct Normal {
    float mean[3], factor[3];
};

// Pixel (row, column) of the upright, resized and cropped picture: red, green, blue, normalised.
LV_INLINE void pixel(const lv_frame& f, const Normal& normal, int row, int column, float* out_3) {
    const bool turned = f.turn % 2;
    const Tap a = tap(column, f.across_at, f.across, turned ? f.height : f.width, f.turn >= 2);
    const Tap d = tap(row, f.down_at, f.down, turned ? f.width : f.height, f.turn == 1 || f.turn == 2);
    const Tap x = turned ? d : a, y = turned ? a : d;
    const Rgb p = rgb_at(f, x.low, y.low), q = rgb_at(f, x.low + 1, y.low);
    const Rgb r = rgb_at(f, x.low, y.low + 1), s = rgb_at(f, x.low + 1, y.low + 1);
    const auto mix = [&](int p, int q, int r, int s, int channel) {
        const float top = float(p) + x.weight * float(q - p), bottom = float(r) + x.weight * float(s - r);
        return (top + y.weight * (bottom - top) - normal.mean[channel]) * normal.factor[channel];
    };
    out_3[0] = mix(p.r, q.r, r.r, s.r, 0);
    out_3[1] = mix(p.g, q.g, r.g, s.g, 1);
    out_3[2] = mix(p.b, q.b, r.b, s.b, 2);
}

}  // namespace lavila
