// Attention of many queries over keys gathered once: the encoder's groups and the attention pool.
#pragma once
#include "gemm.h"

namespace lavila {

constexpr int kAllKeys = 1 << 24;

// The keys and values of one head: put() them, seal(), then attend(). Shapes: K keys, d head size, padded to vectors.
struct Memory {
    int keys = 0, size = 0;
    int64_t ldk = 0, ldv = 0;
    bool tiles = false;         // bfloat16 for AMX, whose rounding is as small as INT8's; else exact float32
    Aligned<float> k;           // (d, K): keys transposed and multiplied by 1/√d
    Aligned<float> v;           // (K, d)
    Aligned<uint16_t> half_k, half_v;      // (K, d) bfloat16
    Aligned<uint16_t> k_tiles, v_tiles;    // [K/16][d/32][16 pairs of d][16 keys][2], [K/32][d/16][16 pairs of keys][16 d][2]
    // `low` allows bfloat16 where the machine has tiles.
    void resize(int keys, int size, bool low);
    // Rows of k and v, with ld floats from row to row, become keys [first, first + count).
    void put(int first, int count, const float* k, const float* v, int64_t ld);
    void seal();
};

// out (rows, d) = softmax(q kᵀ / √d) v for q (rows, d); single-threaded. Query i sees the first `seen` + i keys, or all
// of fewer; without tiles only.
void attend(const Memory&, int rows, const float* q, int64_t ldq, float* out, int64_t ldo, int seen = kAllKeys);

// The parts of these with AMX (grouped_amx.cpp).
void put_tiles(Memory&, int first, int count, const float* k, const float* v, int64_t ld);
void seal_tiles(Memory&);
void attend_tiles(const Memory&, int rows, const float* q, int64_t ldq, float* out, int64_t ldo);

// Divided attention's groups. qkv (1 + frames·patches, 3·heads·size) → out (1 + frames·patches, heads·size); CLS sees
// all tokens, a patch sees CLS and its group: its frame, or its place in all frames.
struct Tokens {
    int heads, size, frames, patches;
    bool low;  // see Memory::resize
    int64_t width() const { return int64_t(heads) * size; }
    int64_t count() const { return 1 + int64_t(frames) * patches; }
};
void attend_space(Pool&, const Tokens&, const float* qkv, float* out);
void attend_time(Pool&, const Tokens&, const float* qkv, float* out);
void attend_cls(Pool&, const Tokens&, const float* qkv, float* out);  // row 0 of out only

}  // namespace lavila
