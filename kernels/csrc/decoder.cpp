// See decoder.h: reading the decoder's weights, and what it sees of a clip.
#include <atomic>
#include <cmath>
#include <stdexcept>

#include "model.h"

namespace lavila {
namespace {

const char kRoot[] = "text_decoder.transformer.";

uint64_t next_number() {
    static std::atomic<uint64_t> last{0};
    return ++last;
}

template <class T>
void transpose(const void* from, int64_t rows, int64_t columns, std::vector<char>& to) {
    to.resize(size_t(rows * columns) * sizeof(T));
    const T* a = static_cast<const T*>(from);
    T* b = reinterpret_cast<T*>(to.data());
    constexpr int64_t kTile = 64;
    for (int64_t top = 0; top < rows; top += kTile)
        for (int64_t column = 0; column < columns; ++column)
            for (int64_t row = top; row < std::min(rows, top + kTile); ++row)
                b[column * rows + row] = a[row * columns + column];
}

// The head is the embedding transposed.
Linear tied_head(const Tensors& tensors, int E, int V) {
    const std::string wte = std::string(kRoot) + "wte.weight";
    const lv_tensor& w = tensors.get(wte);
    if (w.rank != 2 || w.shape[0] != V || w.shape[1] != E)
        throw std::runtime_error("tensor '" + wte + "' is not (" + std::to_string(V) + ", " + std::to_string(E) + ")");
    std::vector<char> turned;
    const auto turn = w.dtype == LV_I8 ? transpose<int8_t> : w.dtype == LV_F16 ? transpose<uint16_t> : transpose<float>;
    turn(w.data, V, E, turned);
    lv_tensor parts[2] = {{"head.weight", w.dtype, 2, {E, V}, turned.data()}, {}};
    const bool scaled = w.dtype == LV_I8;
    if (scaled) {
        parts[1] = tensors.get(wte + "_scale");
        parts[1].name = "head.weight_scale";
    }
    return Linear(Tensors(parts, scaled ? 2 : 1), "head", E, V);
}

Layer read_layer(const Tensors& t, const std::string& at, bool cross, int E, float scale) {
    Layer l;
    l.cross = cross;
    if (cross) {
        const auto gate = [&](const char* name) { return std::tanh(t.floats(at + name, {})[0]); };
        l.see_norm = Norm(t, at + "ln_cross_attn", E, 1e-5f);
        l.see_kv = Linear(t, at + "crossattention.c_attn", E, 2 * E);
        l.see_q = Linear(t, at + "crossattention.q_attn", E, E, scale);
        l.see_out = Linear(t, at + "crossattention.c_proj", E, E, gate("alpha_cattn"));
        l.see_mlp_norm = Norm(t, at + "ln_2_crossattention", E, 1e-5f);
        l.see_up = Linear(t, at + "mlp_crossattention.c_fc", E, 4 * E);
        l.see_down = Linear(t, at + "mlp_crossattention.c_proj", 4 * E, E, gate("alpha_dense"));
    }
    l.norm = Norm(t, at + "ln_1", E, 1e-5f);
    l.qkv = Linear(t, at + "attn.c_attn", E, 3 * E);
    l.out = Linear(t, at + "attn.c_proj", E, E);
    l.mlp_norm = Norm(t, at + "ln_2", E, 1e-5f);
    l.up = Linear(t, at + "mlp.c_fc", E, 4 * E);
    l.down = Linear(t, at + "mlp.c_proj", 4 * E, E);
    return l;
}

template <class T>
void fill(const Model& m, const float* visual, Clip& clip) {
    const CrossShape<T> shape(m.size(), m.queries);
    int64_t bytes = 0;
    for (const Layer& l : m.layer) {
        clip.at.push_back(bytes);
        bytes += l.cross ? m.heads * shape.head() : 0;
    }
    clip.memory.resize(size_t(bytes));
    std::vector<float> kv(size_t(m.queries) * 2 * size_t(m.E));
    for (size_t i = 0; i < m.layer.size(); ++i) {
        if (!m.layer[i].cross) continue;
        m.layer[i].see_kv.run(m.pool, visual, m.E, m.queries, kv.data(), 2 * m.E);
        parallel(m.pool, m.heads, [&](int64_t h) {
            const float* key = kv.data() + h * m.size();
            pack_cross(shape, key, key + m.E, 2 * m.E, clip.memory.data() + clip.at[i] + h * shape.head());
        });
    }
}

}  // namespace

Model::Model(const Tensors& t, int E, int layers, int heads, int V, int positions, int freq, int queries, Pool& pool)
    : E(E), layers(layers), heads(heads), V(V), positions(positions), queries(queries), number(next_number()),
      pool(pool) {
    require_sizes("the decoder", {E, layers, heads, V, positions, freq, queries});
    if (E % heads) throw std::runtime_error("the decoder: its width is no multiple of its heads");
    const std::string root = kRoot;
    head = tied_head(t, E, V);
    words.kept = t.get(root + "wte.weight");
    if (words.kept.dtype == LV_I8) words.scale = t.floats(root + "wte.weight_scale", {V});
    places = t.floats(root + "wpe.weight", {positions, E});
    last = Norm(t, root + "ln_f", E, 1e-5f);
    for (int i = 0; i < layers; ++i)
        layer.push_back(read_layer(t, root + "h." + std::to_string(i) + ".", i % freq == 0, E, scale()));
    for (const Layer& l : layer) bytes = bytes || l.qkv.int8() || (l.cross && l.see_kv.int8());
}

Clip::Clip(const Model& m, const float* visual) : model(m.number) {
    const int64_t count = int64_t(m.queries) * m.E;
    if (!all_finite(visual, count)) throw std::runtime_error("visual tokens: not all are finite numbers");
    m.bytes ? fill<int8_t>(m, visual, *this) : fill<float>(m, visual, *this);
}

}  // namespace lavila

extern "C" {

lv_decoder* lv_decoder_new(const lv_tensor* tensors, int count, int n_embd, int n_layer, int n_head, int vocab,
                           int n_positions, int freq, int queries, lv_threads* threads) {
    return lavila::guarded([&] {
        return new lv_decoder{std::make_shared<lavila::Model>(lavila::Tensors(tensors, count), n_embd, n_layer, n_head,
                                                              vocab, n_positions, freq, queries, threads->pool)};
    });
}

void lv_decoder_free(lv_decoder* decoder) { delete decoder; }

lv_clip* lv_decoder_clip(lv_decoder* decoder, const float* visual) {
    return lavila::guarded([&] { return new lv_clip{std::make_shared<lavila::Clip>(*decoder->model, visual)}; });
}

void lv_clip_free(lv_clip* clip) { delete clip; }

}  // extern "C"
