// The two attentions of a decoder step. Both read keys that lie transposed, so that one vector holds the scores of many
// tokens, and both treat every row alike whatever other rows are there.
//
// Shapes: d head size, Q visual tokens, R rows of one clip. T is float or int8_t, how the caches are stored.
#pragma once
#include "stored.h"

namespace lavila {

constexpr int kPage = 16;  // tokens in a page of the self-attention cache
constexpr int kStrip = 32;  // columns in a panel of the cross-attention cache

inline int strips(int columns) { return (columns + kStrip - 1) / kStrip * kStrip; }
inline int lanes(int columns) { return (columns + kPage - 1) / kPage * kPage; }

// How a head's part of a cache lies, in bytes: `keys` and `values` elements, and for T = int8_t a float scale of each
// token's key, then of each one's value.
template <class T>
struct HeadShape {
    static constexpr bool kScaled = sizeof(T) == 1;
    int64_t keys, after, tokens;
    int64_t values() const { return keys * int64_t(sizeof(T)); }
    int64_t scales() const { return values() + after * int64_t(sizeof(T)); }
    int64_t head() const { return scales() + (kScaled ? 2 * tokens * int64_t(sizeof(float)) : 0); }
};

// One head of one clip: keys [Q/32][d][32], then values [d/32][Q][32].
template <class T>
struct CrossShape : HeadShape<T> {
    int size, queries;
    CrossShape(int d, int Q)
        : HeadShape<T>{int64_t(d) * strips(Q), int64_t(Q) * strips(d), strips(Q)}, size(d), queries(Q) {}
};

// key, value: row t at t · stride.
template <class T>
void pack_cross(const CrossShape<T>&, const float* key, const float* value, int64_t stride, char* head);

// R rows, `which` of those in q and out (each `stride` floats a row), against one head. q is scaled already.
template <class T>
void cross_attention(const CrossShape<T>&, const char* head, const float* q, float* out, int64_t stride,
                     const int* which, int R);

// One head of one page: keys [d][16], then values [16][d rounded up].
template <class T>
struct PageShape : HeadShape<T> {
    int size;
    explicit PageShape(int d) : HeadShape<T>{int64_t(d) * kPage, int64_t(kPage) * lanes(d), kPage}, size(d) {}
};

// Writes token number `length` into its page and attends to all length + 1 tokens. qkv: this head's q; its key and
// value are `width` and 2 · `width` further on. pages: the row's, each at this head. `ahead`: the next head follows.
template <class T>
void self_attention(const PageShape<T>&, char* const* pages, int length, const float* qkv, int64_t width, float scale,
                    bool ahead, float* out);

}  // namespace lavila
