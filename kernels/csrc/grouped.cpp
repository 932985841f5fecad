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

// sum() of each of kLanes vectors, the same bits, in a vector.
vf sums(const vf* v) {
#if defined(__AVX512F__)
    vf a[8], b[4];
    for (int i = 0; i < 8; ++i) {
        const vf x = v[i / 4 * 8 + i % 4], y = v[i / 4 * 8 + i % 4 + 4];
        a[i] = _mm512_shuffle_f32x4(x, y, 0x44) + _mm512_shuffle_f32x4(x, y, 0xee);
    }
    for (int i = 0; i < 4; ++i)
        b[i] = _mm512_shuffle_f32x4(a[i], a[i + 4], 0x88) + _mm512_shuffle_f32x4(a[i], a[i + 4], 0xdd);
    const vf c = _mm512_shuffle_ps(b[0], b[1], 0x44) + _mm512_shuffle_ps(b[0], b[1], 0xee);
    const vf d = _mm512_shuffle_ps(b[2], b[3], 0x44) + _mm512_shuffle_ps(b[2], b[3], 0xee);
    return _mm512_shuffle_ps(c, d, 0x88) + _mm512_shuffle_ps(c, d, 0xdd);
#else
    float each[kLanes];
    for (int i = 0; i < kLanes; ++i) each[i] = sum(v[i]);
    return load(each);
#endif
}

// The products of two rows, not yet summed over lanes.
inline vf products(const float* a, const float* b, int size) {
    vf total = splat(0.f);
    int i = 0;
    for (; i + kLanes <= size; i += kLanes) total = fma(load(a + i), load(b + i), total);
    if (i < size) total = fma(load(a + i, mask_of(size - i)), load(b + i, mask_of(size - i)), total);
    return total;
}

// out = the sum of row(j) · weight(j)
template <class Row, class Weight>
inline void weighted(int keys, int size, const Row& row, const Weight& weight, float* out) {
    constexpr int kStep = 4 * kLanes;
    int i = 0;
    for (; i + kStep <= size; i += kStep) {
        vf total[4] = {splat(0.f), splat(0.f), splat(0.f), splat(0.f)};
        for (int j = 0; j < keys; ++j) {
            const float* from = row(j) + i;
            const vf w = splat(weight(j));
            for (int n = 0; n < 4; ++n) total[n] = fma(load(from + n * kLanes), w, total[n]);
        }
        for (int n = 0; n < 4; ++n) store(out + i + n * kLanes, total[n]);
    }
    for (; i < size; i += kLanes) {
        const Mask m = mask_of(size - i);
        vf total = splat(0.f);
        for (int j = 0; j < keys; ++j) total = fma(load(row(j) + i, m), splat(weight(j)), total);
        store(out + i, total, m);
    }
}

// One query over keys row(0), row(1) … of stride `width` from each other's v. `weights`: room for whole vectors.
template <class F>
void attend_one(const float* q, int keys, const F& row, int64_t width, int size, float* weights, float* out) {
    const vf scale = splat(1.f / std::sqrt(float(size)));
    for (int j = 0; j < keys; j += kLanes) {
        vf each[kLanes];
        for (int i = 0; i < kLanes; ++i) each[i] = j + i < keys ? products(q, row(j + i), size) : splat(0.f);
        store(weights + j, sums(each) * scale);
    }
    const float whole = 1.f / exponentials(weights, keys);
    weighted(keys, size, [&](int j) { return row(j) + width; }, [&](int j) { return weights[j] * whole; }, out);
}

// As many queries as a vector has lanes, each over its own `keys` (no more than lanes): the results of attend_one.
template <class Q, class K, class O>
void attend_few(int queries, int keys, const Q& query, const K& key, int64_t width, int size, const O& out) {
    const vf scale = splat(1.f / std::sqrt(float(size)));
    vf weights[kLanes], tree[kLanes], top = splat(0.f);
    for (int j = 0; j < keys; ++j) {
        vf each[kLanes];
        for (int i = 0; i < kLanes; ++i) each[i] = i < queries ? products(query(i), key(i, j), size) : splat(0.f);
        weights[j] = sums(each) * scale;
        top = j ? vmax(top, weights[j]) : weights[j];
    }
    for (int j = 0; j < kLanes; ++j) tree[j] = j < keys ? weights[j] = vexp(weights[j] - top) : splat(0.f);
    for (int step = kLanes / 2; step; step /= 2)  // as sum() does
        for (int j = 0; j < step; ++j) tree[j] = tree[j] + tree[j + step];
    const vf whole = splat(1.f) / tree[0];
    float shares[kLanes][kLanes];
    for (int j = 0; j < keys; ++j) store(shares[j], weights[j] * whole);
    for (int i = 0; i < queries; ++i)
        weighted(keys, size, [&](int j) { return key(i, j) + width; }, [&](int j) { return shares[j][i]; }, out(i));
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

void attend(const Memory& memory, int rows, const float* q, int64_t ldq, float* out, int64_t ldo, int seen) {
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
        for (int r = 0; r < count; ++r) {
            float* line = &weights[size_t(r * memory.ldk)];
            const int keys = std::min(memory.keys, seen + row + r);
            totals[r] = exponentials(line, keys);
            std::fill(line + keys, line + memory.keys, 0.f);
        }
        float* to = out + row * ldo;
        multiply(count, memory.size, memory.keys, weights.data(), memory.ldk, memory.v.data(), memory.ldv, to, ldo);
        for (int r = 0; r < count; ++r)
            for (int i = 0; i < memory.size; i += kLanes) {
                const Mask m = mask_of(memory.size - i);
                store(to + r * ldo + i, load(to + r * ldo + i, m) * splat(1.f / totals[r]), m);
            }
    }
}

void attend_cls(Pool& pool, const Tokens& t, const float* qkv, float* out) {
    parallel(pool, t.heads, [&](int64_t head) {
        static thread_local std::vector<float> weights;
        weights.resize(size_t(round_up(t.count(), kLanes)));
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
        const auto token = [&](int f) { return f < 0 ? int64_t(0) : 1 + int64_t(f) * t.patches + place; };
        const int keys = t.frames + 1, queries = t.heads * t.frames;
        const auto column = [&](int query) { return int64_t(query / t.frames) * t.size; };
        const auto asked = [&](int query) { return qkv + token(query % t.frames) * ld + column(query); };
        const auto key = [&](int query, int j) { return qkv + token(j - 1) * ld + width + column(query); };
        const auto to = [&](int query) { return out + token(query % t.frames) * width + column(query); };
        if (keys > kLanes) {
            float weights[kLanes * 64];
            for (int i = 0; i < queries; ++i)
                attend_one(asked(i), keys, [&](int j) { return key(i, j); }, width, t.size, weights, to(i));
            return;
        }
        for (int i = 0; i < queries; i += kLanes)
            attend_few(
                std::min(kLanes, queries - i), keys, [&](int n) { return asked(i + n); },
                [&](int n, int j) { return key(i + n, j); }, width, t.size, [&](int n) { return to(i + n); });
    });
}

}  // namespace lavila
