// See text.h. The functions are those of models/text_towers.py and models/dual_encoder.py.
//
// CLIP is causal: texts that begin alike have the same states there, which are computed once. So texts are taken in the
// order of their words, and of each only what its predecessor has not becomes rows of its own.
//
// Shapes: N rows of all texts in hand, M texts, W width, d head size.
#include "text.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <stdexcept>

#include "grouped.h"
#include "model.h"

namespace lavila {
namespace {

constexpr int64_t kTokens = 2048;  // in hand at once: their activations stay in the caches
constexpr int kMostWidth = 1 << 16;

struct TextLayer {
    Norm first, second;
    Linear q, k, v, out, up, down;
    bool int8() const { return q.int8() && k.int8() && v.int8(); }
};

TextLayer clip_layer(const Tensors& t, const std::string& at, int W, int hidden) {
    const auto part = [&](int i) { return Linear(t, at + "attn.in_proj", W, 3 * W, 1.f, i * W, W); };
    return {Norm(t, at + "ln_1", W, 1e-5f), Norm(t, at + "ln_2", W, 1e-5f), part(0), part(1), part(2),
            Linear(t, at + "attn.out_proj", W, W), Linear(t, at + "mlp.c_fc", W, hidden),
            Linear(t, at + "mlp.c_proj", hidden, W)};
}

TextLayer bert_layer(const Tensors& t, const std::string& at, int W, int hidden) {
    const auto part = [&](const char* name) { return Linear(t, at + "attention." + name, W, W); };
    return {Norm(t, at + "sa_layer_norm", W, 1e-12f), Norm(t, at + "output_layer_norm", W, 1e-12f), part("q_lin"),
            part("k_lin"), part("v_lin"), part("out_lin"), Linear(t, at + "ffn.lin1", W, hidden),
            Linear(t, at + "ffn.lin2", hidden, W)};
}

struct Text {
    const int64_t* ids = nullptr;
    int length = 0;
    int number = 0;             // in the call
    int known = 0;              // tokens at its beginning that are rows of others
    int64_t first = 0;          // row of the token after those
    std::vector<int64_t> rows;  // of all its tokens
};

bool before(const Text& a, const Text& b) {
    return std::lexicographical_compare(a.ids, a.ids + a.length, b.ids, b.ids + b.length);
}

}  // namespace
}  // namespace lavila

using namespace lavila;

struct lv_text {
    const bool clip;
    const int W, heads, hidden, vocab, positions;
    Pool& pool;
    Words words;
    std::vector<float> places;  // (positions, W)
    Norm edge;                  // CLIP's last, DistilBERT's first
    std::vector<TextLayer> layers;
    std::vector<Text> texts;
    Aligned<float> x, wide, mixed, floats, wanted, asked;  // (N, W), (N, 3W or hidden), (N, W), (N, W), (M, W), (M, W)
    QuantRows quantized;
    const float* source = nullptr;

    lv_text(const Tensors& t, bool clip, int W, int heads, int depth, int hidden, int vocab, int positions, Pool& pool)
        : clip(clip), W(W), heads(heads), hidden(hidden), vocab(vocab), positions(positions), pool(pool) {
        const std::string root = clip ? "" : "textual.embeddings.";
        const std::string name = clip ? "token_embedding.weight" : root + "word_embeddings.weight";
        const lv_tensor& w = words.kept = t.get(name);
        if (w.rank != 2 || w.shape[0] != vocab || w.shape[1] != W || w.dtype == LV_I8)
            throw std::runtime_error("tensor '" + name + "' is not (" + std::to_string(vocab) + ", " +
                                     std::to_string(W) + ") floats");
        places = t.floats(clip ? "positional_embedding" : root + "position_embeddings.weight", {positions, W});
        edge = clip ? Norm(t, "ln_final", W, 1e-5f) : Norm(t, root + "LayerNorm", W, 1e-12f);
        for (int i = 0; i < depth; ++i) {
            const std::string number = std::to_string(i) + ".";
            layers.push_back(clip ? clip_layer(t, "transformer.resblocks." + number, W, hidden)
                                  : bert_layer(t, "textual.transformer.layer." + number, W, hidden));
        }
    }

    void run(const int64_t* ids, const int64_t* lengths, int count, float* features) {
        std::vector<Text> all;
        for (int i = 0; i < count; ids += lengths[i++]) all.push_back(read(ids, lengths[i], i));
        if (clip) std::stable_sort(all.begin(), all.end(), before);
        for (size_t done = 0; done < all.size(); done += texts.size()) {
            int64_t N = 0;
            texts.clear();
            for (size_t i = done; i < all.size() && N < kTokens; ++i) N += add(all[i], N);
            some(N, features);
        }
        if (!all_finite(features, int64_t(count) * W))
            throw std::runtime_error("the text encoder: not all numbers are finite");
    }

    Text read(const int64_t* ids, int64_t length, int number) const {
        if (length < 1 || length > positions)
            throw std::runtime_error("a text has " + std::to_string(length) + " tokens; this model takes 1 to " +
                                     std::to_string(positions));
        for (int64_t i = 0; i < length; ++i)
            if (ids[i] < 0 || ids[i] >= vocab)
                throw std::runtime_error("a text has word " + std::to_string(ids[i]) + "; this model has words 0 to " +
                                         std::to_string(vocab - 1));
        Text text;
        text.ids = ids, text.length = int(length), text.number = number;
        return text;
    }

    // Takes a text in hand, its own rows from N on; gives how many these are.
    int add(Text& text, int64_t N) {
        if (clip && !texts.empty()) {
            const Text& last = texts.back();
            const int most = std::min(text.length, last.length);
            while (text.known < most && text.ids[text.known] == last.ids[text.known]) ++text.known;
            text.rows.assign(last.rows.begin(), last.rows.begin() + text.known);
        }
        text.first = N;
        for (int i = text.known; i < text.length; ++i) text.rows.push_back(N++);
        texts.push_back(text);
        return text.length - text.known;
    }

    // The features of the texts in hand, each at its number.
    void some(int64_t N, float* features) {
        const int64_t M = int64_t(texts.size());
        for (auto* one : {&x, &mixed, &floats}) one->resize(size_t(std::max(N, M) * W));
        wide.resize(size_t(std::max(N, M)) * size_t(std::max(3 * W, hidden)));
        for (auto* one : {&wanted, &asked}) one->resize(size_t(M * W));
        embed();
        if (!clip) edge.run(pool, x.data(), W, N, x.data(), W);
        for (size_t i = 0; i < layers.size(); ++i) layer(layers[i], N, i + 1 == layers.size());
        if (clip) edge.run(pool, wanted.data(), W, M, wanted.data(), W);
        for (int64_t i = 0; i < M; ++i)
            std::memcpy(features + int64_t(texts[size_t(i)].number) * W, &wanted[size_t(i * W)], sizeof(float) * size_t(W));
    }

    void embed() {
        parallel(pool, int64_t(texts.size()), [&](int64_t task) {
            const Text& text = texts[size_t(task)];
            for (int i = text.known; i < text.length; ++i) {
                float* to = &x[size_t(text.rows[size_t(i)] * W)];
                words.read(text.ids[i], W, to);
                for (int j = 0; j < W; ++j) to[j] += places[size_t(i) * size_t(W) + size_t(j)];
            }
        });
    }

    // Makes rows ready for `through`: normed if a norm is given, as bytes if the layers read those.
    void ready(const Norm* norm, const float* from, int64_t rows, bool int8) {
        source = nullptr;
        if (int8 && norm) return norm->run(pool, from, W, rows, quantized);
        if (int8) return quantize(pool, from, W, rows, W, quantized);
        source = from;
        if (!norm) return;
        norm->run(pool, from, W, rows, floats.data(), W);
        source = floats.data();
    }

    void through(const Linear& linear, int64_t rows, float* y, int64_t ldy, Act act = Act::none) {
        if (source) return linear.run(pool, source, W, rows, y, ldy, act);
        linear.run(pool, quantized, y, ldy, act);
    }

    // One layer: over all tokens in x, or, as the last one, over each text's token that is wanted, into `wanted`.
    void layer(const TextLayer& l, int64_t N, bool last) {
        float *q = last ? asked.data() : wide.data(), *keys = wide.data() + W, *to = last ? wanted.data() : x.data();
        const int64_t rows = last ? int64_t(texts.size()) : N, ldq = last ? W : 3 * W;
        ready(clip ? &l.first : nullptr, x.data(), N, l.int8());
        through(l.k, N, keys, 3 * W);
        through(l.v, N, keys + W, 3 * W);
        if (last) {
            for (size_t i = 0; i < texts.size(); ++i)
                std::memcpy(to + int64_t(i) * W, &x[size_t((clip ? texts[i].rows.back() : texts[i].first) * W)],
                            sizeof(float) * size_t(W));
            ready(clip ? &l.first : nullptr, to, rows, l.int8());
        }
        through(l.q, rows, q, ldq);
        attention(q, ldq, keys, last);
        l.out.run(pool, mixed.data(), W, rows, to, W, Act::none, true);
        if (!clip) l.first.run(pool, to, W, rows, to, W);
        ready(clip ? &l.second : nullptr, to, rows, l.up.int8());
        through(l.up, rows, wide.data(), hidden, clip ? Act::quick_gelu : Act::gelu);
        l.down.run(pool, wide.data(), hidden, rows, to, W, Act::none, true);
        if (!clip) l.second.run(pool, to, W, rows, to, W);
    }

    // Queries of all rows, or with `last` one a text, over the keys (N, 3W) of their text → mixed. One task is one head
    // of one text.
    void attention(const float* q, int64_t ldq, const float* keys, bool last) {
        const int d = W / heads;
        parallel(pool, int64_t(texts.size()) * heads, [&](int64_t task) {
            static thread_local Memory memory;
            const int64_t number = task / heads, at = task % heads * d;
            const Text& text = texts[size_t(number)];
            const int64_t first = last ? number : text.first;
            const int queries = last ? 1 : text.length - text.known;
            if (!queries) return;
            memory.resize(text.length, d, false);
            for (int i = 0; i < text.length; ++i) {
                const float* from = keys + text.rows[size_t(i)] * 3 * W + at;
                memory.put(i, 1, from, from + W, 3 * W);
            }
            memory.seal();
            attend(memory, queries, q + first * ldq + at, ldq, &mixed[size_t(first * W + at)], W,
                   clip && !last ? text.known + 1 : text.length);
        });
    }
};

struct lv_head {
    Pool& pool;
    const int inputs, outputs;
    const bool relu, unit;
    Linear layer;
    std::vector<float> positive;

    lv_head(const Tensors& t, const std::string& name, int inputs, int outputs, bool relu, bool unit, Pool& pool)
        : pool(pool), inputs(inputs), outputs(outputs), relu(relu), unit(unit),
          layer(t.has(name) ? Linear(t.floats(name, {inputs, outputs}), {}, inputs, outputs)
                            : Linear(t, name, inputs, outputs)) {}

    void run(const float* x, int rows, float* y) {
        if (relu) {
            positive.assign(x, x + int64_t(rows) * inputs);
            for (float& one : positive) one = std::max(one, 0.f);
            x = positive.data();
        }
        layer.run(pool, x, inputs, rows, y, outputs);
        for (int r = 0; unit && r < rows; ++r) {
            float* row = y + int64_t(r) * outputs;
            double squares = 0;
            for (int i = 0; i < outputs; ++i) squares += double(row[i]) * double(row[i]);
            const float factor = float(1 / std::max(std::sqrt(squares), 1e-12));
            for (int i = 0; i < outputs; ++i) row[i] *= factor;
        }
        if (!all_finite(y, int64_t(rows) * outputs))
            throw std::runtime_error("the last layer: not all numbers are finite");
    }
};

extern "C" {

lv_text* lv_text_new(const lv_tensor* tensors, int count, int kind, int width, int heads, int layers, int hidden,
                     int vocab, int positions, lv_threads* threads) {
    return guarded([&] {
        require_sizes("the text encoder", {width, heads, layers, hidden, vocab, positions});
        if (width > kMostWidth || hidden > 4 * kMostWidth || width % heads || kind < 0 || kind > 1)
            throw std::runtime_error("the text encoder: sizes that make no sense");
        return new lv_text(Tensors(tensors, count), kind == 0, width, heads, layers, hidden, vocab, positions,
                           threads->pool);
    });
}

int lv_text_run(lv_text* text, const int64_t* ids, const int64_t* lengths, int texts, float* features) {
    return code([&] { text->run(ids, lengths, texts, features); });
}

void lv_text_free(lv_text* text) { delete text; }

lv_head* lv_head_new(const lv_tensor* tensors, int count, const char* name, int inputs, int outputs, int relu, int unit,
                     lv_threads* threads) {
    return guarded([&] {
        require_sizes("the last layer", {inputs, outputs});
        return new lv_head(Tensors(tensors, count), name, inputs, outputs, relu != 0, unit != 0, threads->pool);
    });
}

int lv_head_run(lv_head* head, const float* x, int rows, float* y) {
    return code([&] { head->run(x, rows, y); });
}

void lv_head_free(lv_head* head) { delete head; }

}  // extern "C"
