// Runs everything that the C interface offers, on random weights and odd sizes: see kernels/sanitize.py.
// Each part runs on 1 and on 4 threads and must give the same bits; the sanitizer says whether that was luck.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "../decoder.h"
#include "../lavila.h"
#include "../sampling.h"
#include "../text.h"
#include "pictures.h"

extern "C" {  // of check.cpp
struct lv_linear;
lv_linear* lv_linear_new(const lv_tensor*, int, const char* prefix, int inputs, int outputs, lv_threads*);
int lv_linear_run(const lv_linear*, const float* x, int64_t rows, float* y, int act, int add);
void lv_linear_free(lv_linear*);
void lv_quantize(lv_threads*, const float* x, int64_t rows, int width, uint8_t* q, float* scale);
int lv_norm(const lv_tensor*, int, const char* prefix, float eps, lv_threads*, const float* x, int64_t rows, int width,
            float* y);
void lv_act(int act, const float* x, int64_t count, float* y);
int lv_fail(lv_threads*, int64_t tasks, int64_t every, int64_t* done);
}

namespace {

using Floats = std::vector<float>;

Floats random(size_t count, unsigned seed) {
    std::mt19937 bits(seed);
    Floats out(count);
    for (float& x : out) x = float(bits()) / 4294967296.f - .5f;
    return out;
}

void must(bool good, const char* what) {
    if (good) return;
    std::fprintf(stderr, "%s: %s\n", what, lv_error());
    std::exit(1);
}

// Named random tensors. Matrices of linear layers take the type under test; each tensor ends where its memory does.
class Weights {
  public:
    explicit Weights(int type) : type_(type) {}

    void floats(const std::string& name, std::vector<int64_t> shape) { add(name, LV_F32, shape, 4); }

    void linear(const std::string& name, int64_t inputs, int64_t outputs) {
        matrix(name, inputs, outputs, outputs);
        floats(name + ".bias", {outputs});
    }

    void matrix(const std::string& name, int64_t rows, int64_t columns, int64_t scales) {
        add(name + ".weight", type_, {rows, columns}, type_ == LV_F32 ? 4 : type_ == LV_F16 ? 2 : 1);
        if (type_ == LV_I8) floats(name + ".weight_scale", {scales});
    }

    void norm(const std::string& name, int64_t width) {
        floats(name + ".weight", {width});
        floats(name + ".bias", {width});
    }

    const lv_tensor* data() const { return table_.data(); }
    int count() const { return int(table_.size()); }

  private:
    void add(const std::string& name, int type, const std::vector<int64_t>& shape, size_t bytes) {
        size_t count = 1;
        for (int64_t side : shape) count *= size_t(side);
        names_.push_back(name);
        memory_.emplace_back(count * bytes);
        auto& to = memory_.back();
        const Floats from = random(count, unsigned(names_.size()));
        if (type == LV_F32) std::memcpy(to.data(), from.data(), to.size());
        for (size_t i = 0; i < count && type == LV_I8; ++i) to[i] = char(std::lround(from[i] * 254));
        for (size_t i = 0; i < count && type == LV_F16; ++i) {
            const size_t noise = (names_.size() * 131 + i * 7919) % 1024;
            const uint16_t half = uint16_t(0x2c00 | noise | (i % 2 << 15));  // ±1/16 to 1/8
            std::memcpy(&to[2 * i], &half, 2);
        }
        lv_tensor entry{names_.back().c_str(), type, int32_t(shape.size()), {}, to.data()};
        std::copy(shape.begin(), shape.end(), entry.shape);
        table_.push_back(entry);
    }

    int type_;
    std::deque<std::string> names_;
    std::deque<std::vector<char>> memory_;
    std::vector<lv_tensor> table_;
};

Floats layers(int type, lv_threads* threads) {
    Floats all;
    const int sizes[][2] = {{1, 1}, {3, 33}, {65, 47}, {130, 96}, {64, 201}};
    for (const auto& [inputs, outputs] : sizes) {
        Weights w(type);
        w.linear("it", inputs, outputs), w.norm("norm", inputs);
        lv_linear* layer = lv_linear_new(w.data(), w.count(), "it", inputs, outputs, threads);
        must(layer, "linear");
        for (int rows : {1, 2, 5, 37, 70}) {
            const Floats x = random(size_t(rows * inputs), 7);
            Floats y = random(size_t(rows * outputs), 8), normed(x.size()), scale(static_cast<size_t>(rows));
            std::vector<uint8_t> bytes(x.size());
            must(!lv_norm(w.data(), w.count(), "norm", 1e-5f, threads, x.data(), rows, inputs, normed.data()), "norm");
            lv_quantize(threads, normed.data(), rows, inputs, bytes.data(), scale.data());
            for (int act = 0; act < 5; ++act) must(!lv_linear_run(layer, normed.data(), rows, y.data(), act, 1), "run");
            lv_act(rows % 5, y.data(), int64_t(y.size()), y.data());
            all.insert(all.end(), y.begin(), y.end()), all.insert(all.end(), scale.begin(), scale.end());
        }
        lv_linear_free(layer);
    }
    return all;
}

Floats encoder(int type, lv_threads* threads) {
    constexpr int kImg = 12, kPatch = 4, kDim = 36, kHeads = 3, kFrames = 3, kPatches = 9, kWidth = 20, kQueries = 5;
    Weights w(type);
    w.floats("v.patch_embed.proj.weight", {kDim, 3, kPatch, kPatch}), w.floats("v.cls_token", {1, 1, kDim});
    w.floats("v.pos_embed", {1, 1 + kPatches, kDim}), w.floats("v.temporal_embed", {1, kFrames, kDim});
    w.norm("v.ln_pre", kDim), w.norm("v.norm", kDim);
    for (const std::string at : {"v.blocks.0.", "v.blocks.1."}) {
        for (const char* name : {"norm1", "norm2", "norm3"}) w.norm(at + name, kDim);
        for (const char* name : {"attn", "timeattn"})
            w.linear(at + name + ".qkv", kDim, 3 * kDim), w.linear(at + name + ".proj", kDim, kDim);
        w.linear(at + "mlp.fc1", kDim, 4 * kDim), w.linear(at + "mlp.fc2", 4 * kDim, kDim);
        w.floats(at + "alpha_timeattn", {1});
    }
    w.floats("img_queries", {kQueries, kWidth}), w.floats("img_attn_pool_norm.gamma", {kWidth});
    w.floats("img_attn_pool.norm.gamma", {kWidth}), w.floats("img_attn_pool.context_norm.gamma", {kDim});
    w.matrix("img_attn_pool.to_q", kWidth, 2 * 64, 2 * 64), w.matrix("img_attn_pool.to_kv", kDim, 2 * 64, 2 * 64);
    w.matrix("img_attn_pool.to_out", 2 * 64, kWidth, kWidth);
    lv_tsf* video = lv_tsf_new(w.data(), w.count(), "v.", kImg, kPatch, kDim, 2, kHeads, kFrames, 1, 1, 1, threads);
    lv_pool* pool = lv_pool_new(w.data(), w.count(), kDim, kWidth, 2, kQueries, threads);
    must(video && pool, "encoder");
    Floats all;
    for (int frames = 1; frames <= kFrames; ++frames) {
        const Floats x = random(size_t(3 * frames * kImg * kImg), 3);
        Floats tokens(size_t((1 + frames * kPatches) * kDim)), cls(kDim), seen(kQueries * kWidth);
        must(!lv_tsf_run(video, x.data(), frames, tokens.data(), 0), "encode");
        must(!lv_tsf_run(video, x.data(), frames, cls.data(), 1), "encode CLS");
        must(!lv_pool_run(pool, tokens.data(), 1 + frames * kPatches, seen.data()), "pool");
        for (const Floats* part : {&tokens, &cls, &seen}) all.insert(all.end(), part->begin(), part->end());
    }
    must(lv_tsf_run(video, all.data(), kFrames + 1, all.data(), 0) && std::strstr(lv_error(), "frames"), "too long");
    lv_pool_free(pool), lv_tsf_free(video);
    return all;
}

// Rows that join, part, die and fill several pages, then full ones that say so.
void write(lv_rows* rows, lv_clip* const* clips, int vocab, int positions, Floats& all) {
    must(!lv_rows_join(rows, clips, 2, 3), "join");
    for (int step = 1;; ++step) {
        const int count = lv_rows_count(rows);
        Floats logits(size_t(count * vocab)), logprob(static_cast<size_t>(count)), entropy(logprob);
        std::vector<int64_t> tokens(logprob.size()), slots(tokens);
        std::vector<double> u(tokens.size(), .37 + step % 7 * .09);
        lv_rows_slots(rows, slots.data());
        must(!lv_rows_logits(rows, logits.data()), "logits");
        must(!lv_rows_sample(rows, step % 3 * .5, step % 4, .9, u.data(), tokens.data(), logprob.data(),
                             entropy.data()), "sample");
        all.insert(all.end(), logits.begin(), logits.end()), all.insert(all.end(), entropy.begin(), entropy.end());
        must(!lv_rows_logprobs(rows, logits.data()), "logprobs");
        if (step == 2) must(!lv_rows_join(rows, clips, 1, 2), "join while others write");
        if (step == 2) tokens.resize(tokens.size() + 2, 1), slots.resize(tokens.size());
        const int failed = lv_rows_step(rows, tokens.data(), int(tokens.size()));
        if (step >= positions) return must(failed && std::strstr(lv_error(), "full"), "a full row");
        must(!failed, "step");
        const int64_t which[] = {3, 3, 0, int64_t(tokens.size()) - 1, 1};
        if (step % 5 == 0) must(!lv_rows_select(rows, which, 5), "select");
    }
}

Floats decoder(int type, lv_threads* threads) {
    constexpr int kWidth = 42, kHeads = 3, kVocab = 71, kPositions = 37, kQueries = 5;
    Weights w(type);
    const std::string root = "text_decoder.transformer.";
    w.matrix(root + "wte", kVocab, kWidth, kVocab);
    w.floats(root + "wpe.weight", {kPositions, kWidth}), w.norm(root + "ln_f", kWidth);
    for (int i = 0; i < 3; ++i) {
        const std::string at = root + "h." + std::to_string(i) + ".";
        for (const char* name : {"ln_cross_attn", "ln_2_crossattention", "ln_1", "ln_2"}) w.norm(at + name, kWidth);
        w.linear(at + "crossattention.c_attn", kWidth, 2 * kWidth);
        for (const char* name : {"crossattention.q_attn", "crossattention.c_proj", "attn.c_proj"})
            w.linear(at + name, kWidth, kWidth);
        w.linear(at + "attn.c_attn", kWidth, 3 * kWidth);
        for (const char* name : {"mlp", "mlp_crossattention"}) {
            w.linear(at + name + ".c_fc", kWidth, 4 * kWidth), w.linear(at + name + ".c_proj", 4 * kWidth, kWidth);
        }
        w.floats(at + "alpha_cattn", {}), w.floats(at + "alpha_dense", {});
    }
    lv_decoder* text =
        lv_decoder_new(w.data(), w.count(), kWidth, 3, kHeads, kVocab, kPositions, 2, kQueries, threads);
    must(text, "decoder");
    lv_clip* clips[2];
    for (unsigned i = 0; i < 2; ++i)
        must((clips[i] = lv_decoder_clip(text, random(kQueries * kWidth, i).data())), "clip");
    lv_rows *first = lv_rows_new(text), *second = lv_rows_new(text);
    lv_decoder_free(text);  // rows keep what they need of it
    Floats all;
    write(first, clips, kVocab, kPositions, all);
    lv_rows_free(first);
    must(!lv_rows_join(second, clips, 2, 1), "join");
    lv_clip_free(clips[0]), lv_clip_free(clips[1]), lv_rows_free(second);
    return all;
}

// Both kinds of text tower with more tokens than are in hand at once, and last layers; then what they refuse.
Floats texts(int type, lv_threads* threads) {
    constexpr int kWidth = 44, kHeads = 4, kHidden = 71, kVocab = 53, kPositions = 19, kTexts = 230, kOutputs = 13;
    Floats all;
    for (int kind : {0, 1}) {
        Weights w(type);
        const std::string root = kind ? "textual.embeddings." : "";
        w.floats(root + (kind ? "word_embeddings.weight" : "token_embedding.weight"), {kVocab, kWidth});
        w.floats(root + (kind ? "position_embeddings.weight" : "positional_embedding"), {kPositions, kWidth});
        w.norm(kind ? root + "LayerNorm" : "ln_final", kWidth);
        for (int i = 0; i < 2; ++i) {
            const std::string before = kind ? "textual.transformer.layer." : "transformer.resblocks.";
            const std::string at = before + std::to_string(i) + ".";
            for (const char* name : {"q_lin", "k_lin", "v_lin", "out_lin"})
                if (kind) w.linear(at + "attention." + name, kWidth, kWidth);
            if (!kind) w.linear(at + "attn.in_proj", kWidth, 3 * kWidth), w.linear(at + "attn.out_proj", kWidth, kWidth);
            w.linear(at + (kind ? "ffn.lin1" : "mlp.c_fc"), kWidth, kHidden);
            w.linear(at + (kind ? "ffn.lin2" : "mlp.c_proj"), kHidden, kWidth);
            w.norm(at + (kind ? "sa_layer_norm" : "ln_1"), kWidth);
            w.norm(at + (kind ? "output_layer_norm" : "ln_2"), kWidth);
        }
        w.floats("projection", {kWidth, kOutputs}), w.linear("head", kWidth, kOutputs);
        lv_text* text =
            lv_text_new(w.data(), w.count(), kind, kWidth, kHeads, 2, kHidden, kVocab, kPositions, threads);
        const char* last = kind ? "head" : "projection";
        lv_head* head = lv_head_new(w.data(), w.count(), last, kWidth, kOutputs, kind, 1, threads);
        must(text && head, "text");
        std::vector<int64_t> ids, lengths;
        for (int i = 0; i < kTexts; ++i) {
            lengths.push_back(1 + i * 7 % kPositions);
            for (int64_t j = 0; j < lengths.back(); ++j) ids.push_back(((j < 5 ? i % 3 : i) * 31 + j * 17) % kVocab);
        }
        Floats features(size_t(kTexts) * kWidth), out(size_t(kTexts) * kOutputs);
        must(!lv_text_run(text, ids.data(), lengths.data(), kTexts, features.data()), "read");
        must(!lv_head_run(head, features.data(), kTexts, out.data()), "project");
        for (const Floats* part : {&features, &out}) all.insert(all.end(), part->begin(), part->end());
        ids[3] = kVocab;
        const auto refused = [&](int count, const char* why) {
            must(lv_text_run(text, ids.data(), lengths.data(), count, features.data()) && std::strstr(lv_error(), why), why);
        };
        refused(kTexts, "words");
        lengths[1] = kPositions + 1;
        refused(2, "tokens");
        lv_head_free(head), lv_text_free(text);
    }
    return all;
}

Floats sampling(int, lv_threads* threads) {
    constexpr int kVocab = 1237, kRows = 9;
    const Floats logits = random(3 * kVocab, 1);
    Floats all(kRows * kVocab), logprob(kRows), entropy(kRows);
    std::vector<int64_t> source(kRows), tokens(kRows);
    std::vector<double> u(kRows);
    for (size_t i = 0; i < kRows; ++i) source[i] = int64_t(i % 3), u[i] = double(i) / kRows;
    must(!lv_log_softmax(threads, logits.data(), kVocab, source.data(), kRows, all.data()), "log_softmax");
    for (int64_t top_k : {0, 1, 40}) {
        must(!lv_choose(threads, logits.data(), kVocab, source.data(), kRows, .7, top_k, .95, u.data(), tokens.data(),
                        logprob.data(), entropy.data()), "choose");
        all.insert(all.end(), tokens.begin(), tokens.end()), all.insert(all.end(), logprob.begin(), logprob.end());
    }
    return all;
}

// Two callers at once on one pool, and pools that end while their threads are still waking up.
void crowd() {
    for (int i = 0; i < 20; ++i) lv_threads_free(lv_threads_new(1 + i % 4));
    lv_threads* threads = lv_threads_new(3);
    std::thread other([&] { sampling(0, threads); });
    layers(LV_F32, threads);
    other.join();
    lv_threads_free(threads);
}

// Tasks that throw, in the caller and in workers: an error each time, and the pool is as good as before.
void failures() {
    for (int count : {1, 2, 4}) {
        lv_threads* threads = lv_threads_new(count);
        for (int64_t every = 1; every <= 64; ++every) {
            int64_t done = 0;
            must(lv_fail(threads, 64, every, &done) && std::strstr(lv_error(), "failed"), "a task that throws");
        }
        sampling(0, threads);
        lv_threads_free(threads);
    }
}

}  // namespace

int main() {
    for (const auto part : {layers, encoder, decoder, texts, sampling})
        for (int type : {LV_F32, LV_F16, LV_I8}) {
            lv_threads *one = lv_threads_new(1), *four = lv_threads_new(4);
            const Floats alone = part(type, one), together = part(type, four);
            must(alone.size() == together.size() &&
                     !std::memcmp(alone.data(), together.data(), alone.size() * sizeof(float)),
                 "other bits with more threads");
            lv_threads_free(one), lv_threads_free(four);
        }
    crowd();
    failures();
    std::thread other(pictures);  // any number of threads may at once
    pictures();
    other.join();
    std::printf("lavila_check: good (%s)\n", lv_isa());
}
