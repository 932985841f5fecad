// What decoder.cpp makes and rows.cpp runs: the decoder's layers, and what it sees of a clip.
//
// Shapes: N rows, E width, V vocabulary, Q visual tokens, d head size.
#pragma once
#include "attention.h"
#include "decoder.h"
#include "gemm.h"

namespace lavila {

struct Layer {
    bool cross = false;
    Linear see_kv, see_q, see_out, see_up, see_down;  // the gated block
    Norm see_norm, see_mlp_norm;
    Linear qkv, out, up, down;
    Norm norm, mlp_norm;
};

// The words' vectors, read where they lie.
struct Words {
    lv_tensor kept{};
    std::vector<float> scale;

    void read(int64_t word, int width, float* out) const {
        const int64_t at = word * width;
        for (int i = 0; i < width; ++i) {
            if (kept.dtype == LV_I8)
                out[i] = float(static_cast<const int8_t*>(kept.data)[at + i]) * scale[size_t(word)];
            else if (kept.dtype == LV_F16)
                out[i] = _cvtsh_ss(static_cast<const uint16_t*>(kept.data)[at + i]);
            else
                out[i] = static_cast<const float*>(kept.data)[at + i];
        }
    }
};

struct Model {
    int E, layers, heads, V, positions, queries;
    const uint64_t number;  // of all models of this process
    Pool& pool;
    Words words;
    std::vector<float> places;
    std::vector<Layer> layer;
    Norm last;
    Linear head;
    bool bytes = false;  // an INT8 model keeps keys and values in bytes too

    int size() const { return E / heads; }
    float scale() const { return 1.f / std::sqrt(float(size())); }

    Model(const Tensors&, int E, int layers, int heads, int V, int positions, int freq, int queries, Pool&);
};

// What the decoder sees of one clip: keys and values of every gated block and head.
struct Clip {
    uint64_t model;           // whose shapes it has: its number
    std::vector<int64_t> at;  // where each block's begin
    Aligned<char> memory;

    Clip(const Model&, const float* visual);  // (Q, E)
};

// 0, or 1 with the thread's error set.
template <class F>
int code(const F& body) {
    return !guarded([&] {
        body();
        return true;
    });
}

}  // namespace lavila

struct lv_decoder {
    std::shared_ptr<const lavila::Model> model;
};

struct lv_clip {
    std::shared_ptr<const lavila::Clip> clip;
};
