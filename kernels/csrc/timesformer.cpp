// The video encoder (models/timesformer.py) and the attention pool behind it (models/narrator.py).
//
// Shapes: T frames, N patches a frame, S = 1 + T·N tokens, D width, p patch side; Q queries, E width of the pool's output.
#include <cmath>
#include <cstring>
#include <stdexcept>

#include "grouped.h"

namespace lavila {
namespace {

constexpr int kPoolHead = 64, kMostSide = 8192, kMostWidth = 1 << 16;  // no product of two sizes overflows

struct Attention {
    Linear q, kv, out;
    Attention(const Tensors& tensors, const std::string& prefix, int D, float gate)
        : q(tensors, prefix + ".qkv", D, 3 * D, 1.f, 0, D),
          kv(tensors, prefix + ".qkv", D, 3 * D, 1.f, D, 2 * D),
          out(tensors, prefix + ".proj", D, D, gate) {}
};

struct Block {
    Norm before_time, before_space, before_mlp;
    Attention time, space;
    Linear up, down;
    Block(const Tensors& t, const std::string& prefix, int D, float gate)
        : before_time(t, prefix + "norm3", D, 1e-6f),
          before_space(t, prefix + "norm1", D, 1e-6f),
          before_mlp(t, prefix + "norm2", D, 1e-6f),
          time(t, prefix + "timeattn", D, gate),
          space(t, prefix + "attn", D, 1.f),
          up(t, prefix + "mlp.fc1", D, 4 * D),
          down(t, prefix + "mlp.fc2", 4 * D, D) {}
};

float scalar(const Tensors& t, const std::string& name) {  // of rank 0 or 1: numpy likes to make (1,) of ()
    return t.floats(name, std::vector<int64_t>(size_t(t.get(name).rank != 0), 1))[0];
}

// The weight of a convolution (outputs, inputs) as a linear layer's.
Linear patch_layer(const Tensors& tensors, const std::string& prefix, int D, int patch, bool bias) {
    const int inputs = 3 * patch * patch;
    const auto conv = tensors.floats(prefix + ".weight", {D, 3, patch, patch});
    std::vector<float> weight(conv.size());
    for (int n = 0; n < D; ++n)
        for (int k = 0; k < inputs; ++k) weight[size_t(k) * size_t(D) + size_t(n)] = conv[size_t(n) * size_t(inputs) + size_t(k)];
    return Linear(weight, bias ? tensors.floats(prefix + ".bias", {D}) : std::vector<float>(), inputs, D);
}

}  // namespace
}  // namespace lavila

using namespace lavila;

struct lv_tsf {
    Pool& pool;
    int img, patch, D, heads, frames, N;
    Act act;
    Linear embed;
    std::vector<float> cls, place, time;  // (D), (1 + N, D), (frames, D)
    Norm first, last;
    bool has_first;
    std::vector<Block> blocks;
    Aligned<float> x, u, wide;  // (S, D), (S, D), (S, 4D)
    Aligned<float> floats;
    QuantRows quantized;

    lv_tsf(const Tensors& t, const std::string& prefix, int img, int patch, int D, int depth, int heads, int frames,
           bool ln_pre, Act act, bool gated, Pool& pool)
        : pool(pool), img(img), patch(patch), D(D), heads(heads), frames(frames), N((img / patch) * (img / patch)),
          act(act), embed(patch_layer(t, prefix + "patch_embed.proj", D, patch, !ln_pre)),
          cls(t.floats(prefix + "cls_token", {1, 1, D})), place(t.floats(prefix + "pos_embed", {1, 1 + N, D})),
          time(t.floats(prefix + "temporal_embed", {1, frames, D})), last(t, prefix + "norm", D, 1e-6f),
          has_first(ln_pre) {
        if (ln_pre) first = Norm(t, prefix + "ln_pre", D, 1e-5f);
        for (int i = 0; i < depth; ++i) {
            const std::string name = prefix + "blocks." + std::to_string(i) + ".";
            const float gate = gated ? std::tanh(scalar(t, name + "alpha_timeattn")) : 1.f;
            blocks.emplace_back(t, name, D, gate);
        }
    }

    void run(const float* video, int T, float* tokens, bool cls_only) {
        if (T < 1 || T > frames)
            throw std::runtime_error("video has " + std::to_string(T) + " frames; this model takes 1 to " +
                                     std::to_string(frames));
        const int64_t S = 1 + int64_t(T) * N;
        x.resize(size_t(S * D)), u.resize(size_t(S * D)), wide.resize(size_t(S) * size_t(std::max(4 * D, 3 * patch * patch)));
        patches(video, T);
        if (has_first) first.run(pool, x.data(), D, S, x.data(), D);
        for (size_t i = 0; i < blocks.size(); ++i) block(blocks[i], T, cls_only && i + 1 == blocks.size());
        const int64_t rows = cls_only ? 1 : S;
        last.run(pool, x.data(), D, rows, tokens, D);
        if (!all_finite(tokens, rows * D)) throw std::runtime_error("the video encoder: not all numbers are finite");
    }

    // x = patch embedding + positions; rows: CLS, then frame by frame.
    void patches(const float* video, int T) {
        const int side = img / patch;
        parallel(pool, int64_t(T) * side, [&](int64_t task) {
            const int f = int(task / side), row = int(task % side);
            for (int column = 0; column < side; ++column) {
                float* to = &wide[size_t(f * N + row * side + column) * size_t(3 * patch * patch)];
                for (int c = 0; c < 3; ++c)
                    for (int y = 0; y < patch; ++y, to += patch)
                        std::memcpy(to, video + ((int64_t(c) * T + f) * img + row * patch + y) * img + column * patch,
                                    sizeof(float) * size_t(patch));
            }
        });
        parallel(pool, 1 + int64_t(T) * N, [&](int64_t s) {
            const int64_t n = s ? 1 + (s - 1) % N : 0;
            const float* more = s ? &time[size_t((s - 1) / N * D)] : cls.data();
            for (int i = 0; i < D; ++i) x[size_t(s * D + i)] = place[size_t(n * D + i)] + more[i];
        });
        embed.run(pool, wide.data(), 3 * patch * patch, int64_t(T) * N, &x[size_t(D)], D, Act::none, true);
    }

    // norm(from) as the layers that read it want it: INT8 rows or floats.
    void normed(const Norm& norm, const float* from, int64_t rows, bool int8) {
        if (int8) return norm.run(pool, from, D, rows, quantized);
        floats.resize(size_t(rows * D));
        norm.run(pool, from, D, rows, floats.data(), D);
    }
    void layer(const Linear& layer, int64_t rows, float* y, int64_t ldy, Act act = Act::none) {
        if (!layer.int8()) return layer.run(pool, floats.data(), D, rows, y, ldy, act);
        quantized.rows = rows;
        layer.run(pool, quantized, y, ldy, act);
    }

    // to += out(attention(norm(from))) over the first `rows` tokens: all, or CLS alone.
    template <class F>
    void attention(const Attention& a, const Norm& norm, const float* from, int64_t S, int64_t rows, const F& attend,
                   float* to) {
        float *qkv = wide.data(), *mixed = &wide[size_t(S * 3 * D)];
        normed(norm, from, S, a.kv.int8());
        layer(a.kv, S, qkv + D, 3 * D);
        layer(a.q, rows, qkv, 3 * D);
        attend(qkv, mixed);
        a.out.run(pool, mixed, D, rows, to, D, Act::none, true);
    }

    void block(const Block& b, int T, bool cls_only) {
        const Tokens t{heads, D / heads, T, N, b.space.kv.int8()};
        const int64_t S = t.count(), rows = cls_only ? 1 : S;
        constexpr int64_t kRows = 16;
        parallel(pool, (S + kRows - 1) / kRows, [&](int64_t task) {
            const int64_t row = task * kRows;
            std::memcpy(&u[size_t(row * D)], &x[size_t(row * D)], sizeof(float) * size_t(std::min(kRows, S - row) * D));
        });
        attention(b.time, b.before_time, x.data(), S, S,
                  [&](const float* qkv, float* mixed) { attend_time(pool, t, qkv, mixed); }, u.data());
        attention(b.space, b.before_space, u.data(), S, rows,
                  [&](const float* qkv, float* mixed) { (cls_only ? attend_cls : attend_space)(pool, t, qkv, mixed); },
                  x.data());
        normed(b.before_mlp, x.data(), rows, b.up.int8());
        layer(b.up, rows, wide.data(), 4 * D, act);
        b.down.run(pool, wide.data(), 4 * D, rows, x.data(), D, Act::none, true);
    }
};

struct lv_pool {
    Pool& pool;
    int D, E, heads, Q;
    Norm context, after;
    Linear kv, out;
    std::vector<float> q;  // (Q, heads·64)
    Aligned<float> normed, pairs, mixed;
    Memory memory;

    lv_pool(const Tensors& t, int D, int E, int heads, int Q, Pool& pool)
        : pool(pool), D(D), E(E), heads(heads), Q(Q), context(scale_norm(t, "img_attn_pool.context_norm", D)),
          after(scale_norm(t, "img_attn_pool_norm", E)), kv(t, "img_attn_pool.to_kv", D, 2 * kPoolHead),
          out(t, "img_attn_pool.to_out", heads * kPoolHead, E) {
        auto queries = t.floats("img_queries", {Q, E});
        q.resize(size_t(Q) * size_t(heads) * kPoolHead);
        scale_norm(t, "img_attn_pool.norm", E).run(pool, queries.data(), E, Q, queries.data(), E);
        Linear(t, "img_attn_pool.to_q", E, heads * kPoolHead)
            .run(pool, queries.data(), E, Q, q.data(), heads * kPoolHead);
    }

    static Norm scale_norm(const Tensors& t, const std::string& prefix, int width) {
        Norm norm;
        norm.weight = t.floats(prefix + ".gamma", {width});
        norm.bias = t.has(prefix + ".beta") ? t.floats(prefix + ".beta", {width}) : std::vector<float>(size_t(width));
        return norm;
    }

    // tokens (S, D) → visual (Q, E)
    void run(const float* tokens, int S, float* visual) {
        constexpr int kStep = 96;  // queries a task
        const int64_t inner = int64_t(heads) * kPoolHead, steps = (Q + kStep - 1) / kStep;
        normed.resize(size_t(S) * size_t(D)), pairs.resize(size_t(S) * 2 * kPoolHead), mixed.resize(size_t(Q * inner));
        context.run(pool, tokens, D, S, normed.data(), D);
        kv.run(pool, normed.data(), D, S, pairs.data(), 2 * kPoolHead);
        memory.resize(S, kPoolHead, kv.int8());
        memory.put(0, S, pairs.data(), pairs.data() + kPoolHead, 2 * kPoolHead);
        memory.seal();
        parallel(pool, heads * steps, [&](int64_t task) {
            const int64_t row = task / heads * kStep, at = row * inner + task % heads * kPoolHead;
            attend(memory, int(std::min<int64_t>(kStep, Q - row)), &q[size_t(at)], inner, &mixed[size_t(at)], inner);
        });
        out.run(pool, mixed.data(), inner, Q, visual, E);
        after.run(pool, visual, E, Q, visual, E);
    }
};

extern "C" {

lv_tsf* lv_tsf_new(const lv_tensor* tensors, int count, const char* prefix, int img, int patch, int dim, int depth,
                   int heads, int frames, int ln_pre, int act, int gated, lv_threads* threads) {
    return guarded([&] {
        require_sizes("timesformer", {img, patch, dim, depth, heads, frames});
        if (img > kMostSide || dim > kMostWidth || img % patch || dim % heads || act < 1 || act > 2)
            throw std::runtime_error("timesformer: sizes that make no sense");
        if (frames > 256) throw std::runtime_error("timesformer: more than 256 frames");
        return new lv_tsf(Tensors(tensors, count), prefix, img, patch, dim, depth, heads, frames, ln_pre != 0,
                          Act(act), gated != 0, threads->pool);
    });
}

int lv_tsf_run(lv_tsf* encoder, const float* video, int frames, float* tokens, int cls_only) {
    return guarded([&] {
        encoder->run(video, frames, tokens, cls_only != 0);
        return 1;
    }) - 1;
}

void lv_tsf_free(lv_tsf* encoder) { delete encoder; }

lv_pool* lv_pool_new(const lv_tensor* tensors, int count, int dim, int width, int heads, int queries,
                     lv_threads* threads) {
    return guarded([&] {
        require_sizes("the attention pool", {dim, width, heads, queries});
        if (heads > kMostWidth / kPoolHead || dim > kMostWidth || width > kMostWidth)
            throw std::runtime_error("the attention pool: sizes that make no sense");
        return new lv_pool(Tensors(tensors, count), dim, width, heads, queries, threads->pool);
    });
}

int lv_pool_run(lv_pool* pool, const float* tokens, int count, float* visual) {
    return guarded([&] {
        if (count < 1) throw std::runtime_error("the attention pool: no tokens");
        pool->run(tokens, count, visual);
        return 1;
    }) - 1;
}

void lv_pool_free(lv_pool* pool) { delete pool; }
}
