#include "grouped.h"

#include <cmath>
#include <cstring>

namespace lavila {
namespace {

// weights (count) → e^(w - max) in place; gives their sum. Lanes past the end are left as they are.
float exponentials(float* w, int count) {
    const int whole = count / kLanes * kLanes;
    const Mask rest = mask_of(count - whole);
    vf top = splat(w[0]);
    for (int i = 0; i < whole; i += kLanes) top = vmax(top, load(w + i));
    float most = largest(top);
    for (int i = whole; i < count; ++i) most = std::max(most, w[i]);
    vf total = splat(0.f);
    for (int i = 0; i < whole; i += kLanes) {
        const vf e = vexp(load(w + i) - splat(most));
        total = total + e;
        store(w + i, e);
    }
    if (whole < count) {
        store(w + whole, vexp(load(w + whole, rest) - splat(most)), rest);
        total = total + load(w + whole, rest);
    }
    return sum(total);
}

float dot(const float* a, const float* b, int size) {
    vf total = splat(0.f);
    int i = 0;
    for (; i + kLanes <= size; i += kLanes) total = fma(load(a + i), load(b + i), total);
    if (i < size) total = fma(load(a + i, mask_of(size - i)), load(b + i, mask_of(size - i)), total);
    return sum(total);
}

// to = or += factor · from
void scaled(float* to, const float* from, float factor, int size, bool add) {
    for (int i = 0; i < size; i += kLanes) {
        const Mask m = mask_of(size - i);
        const vf old = add ? load(to + i, m) : splat(0.f);
        store(to + i, fma(load(from + i, m), splat(factor), old), m);
    }
}

// One query over keys row(0), row(1) … of stride `width` from each other's v.
template <class F>
void attend_one(const float* q, int keys, const F& row, int64_t width, int size, float* weights, float* out) {
    const float scale = 1.f / std::sqrt(float(size));
    for (int j = 0; j < keys; ++j) weights[j] = dot(q, row(j), size) * scale;
    const float whole = 1.f / exponentials(weights, keys);
    for (int j = 0; j < keys; ++j) scaled(out, row(j) + width, weights[j] * whole, size, j > 0);
}

}  // namespace

void Memory::resize(int new_keys, int new_size, bool low) {
    keys = new_keys, size = new_size;
    tiles = low && isa() == Isa::amx && size % 32 == 0;
    ldk = round_up(keys, tiles ? 32 : kLanes), ldv = round_up(size, kLanes);
    if (tiles) {
        for (auto* m : {&half_k, &half_v, &k_tiles, &v_tiles}) m->resize(size_t(ldk * size));
    } else {
        k.resize(size_t(size * ldk)), v.resize(size_t(keys * ldv));
    }
}

void Memory::put(int first, int count, const float* from_k, const float* from_v, int64_t ld) {
#if defined(__AVX512F__)
    if (tiles) return put_tiles(*this, first, count, from_k, from_v, ld);
#endif
    const float scale = 1.f / std::sqrt(float(size));
    for (int j = 0; j < count; ++j) {
        for (int i = 0; i < size; ++i) k[size_t(i * ldk + first + j)] = from_k[j * ld + i] * scale;
        std::memcpy(&v[size_t((first + j) * ldv)], from_v + j * ld, sizeof(float) * size_t(size));
    }
}

void Memory::seal() {
#if defined(__AVX512F__)
    if (tiles) seal_tiles(*this);
#endif
}

void attend(const Memory& memory, int rows, const float* q, int64_t ldq, float* out, int64_t ldo) {
#if defined(__AVX512F__)
    if (memory.tiles) return attend_tiles(memory, rows, q, ldq, out, ldo);
#endif
    constexpr int kRows = 24;
    static thread_local Aligned<float> weights;
    weights.resize(size_t(kRows * memory.ldk));
    for (int row = 0; row < rows; row += kRows) {
        const int count = std::min(kRows, rows - row);
        multiply(count, memory.keys, memory.size, q + row * ldq, ldq, memory.k.data(), memory.ldk, weights.data(),
                 memory.ldk);
        float totals[kRows];
        for (int r = 0; r < count; ++r) totals[r] = exponentials(&weights[size_t(r * memory.ldk)], memory.keys);
        float* to = out + row * ldo;
        multiply(count, memory.size, memory.keys, weights.data(), memory.ldk, memory.v.data(), memory.ldv, to, ldo);
        for (int r = 0; r < count; ++r) scaled(to + r * ldo, to + r * ldo, 1.f / totals[r], memory.size, false);
    }
}

void attend_cls(Pool& pool, const Tokens& t, const float* qkv, float* out) {
    parallel(pool, t.heads, [&](int64_t head) {
        static thread_local std::vector<float> weights;
        weights.resize(size_t(t.count()));
        const float* q = qkv + head * t.size;
        const auto key = [&](int j) { return q + t.width() + j * 3 * t.width(); };
        attend_one(q, int(t.count()), key, t.width(), t.size, weights.data(), out + head * t.size);
    });
}

void attend_space(Pool& pool, const Tokens& t, const float* qkv, float* out) {
    const int64_t width = t.width(), ld = 3 * width;
    attend_cls(pool, t, qkv, out);
    parallel(pool, int64_t(t.frames) * t.heads, [&](int64_t task) {
        static thread_local Memory memory;
        const int64_t head = task % t.heads, first = 1 + task / t.heads * t.patches;
        const float *cls = qkv + head * t.size, *group = cls + first * ld;
        memory.resize(t.patches + 1, t.size, t.low);
        memory.put(0, 1, cls + width, cls + 2 * width, ld);
        memory.put(1, t.patches, group + width, group + 2 * width, ld);
        memory.seal();
        attend(memory, t.patches, group, ld, out + first * width + head * t.size, width);
    });
}

void attend_time(Pool& pool, const Tokens& t, const float* qkv, float* out) {
    const int64_t width = t.width(), ld = 3 * width;
    attend_cls(pool, t, qkv, out);
    parallel(pool, t.patches, [&](int64_t place) {
        float weights[kLanes * 64];
        for (int head = 0; head < t.heads; ++head) {
            const auto token = [&](int f) { return f < 0 ? int64_t(0) : 1 + int64_t(f) * t.patches + place; };
            const auto key = [&](int j) { return qkv + token(j - 1) * ld + width + head * t.size; };
            for (int f = 0; f < t.frames; ++f)
                attend_one(qkv + token(f) * ld + head * t.size, t.frames + 1, key, width, t.size, weights,
                           out + token(f) * width + head * t.size);
        }
    });
}

}  // namespace lavila
