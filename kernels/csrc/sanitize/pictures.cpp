// Pictures for the sanitizers, in memory that ends with their last sample: through the CPU's preprocessing and the CUDA
// kernel's arithmetic, which must agree. Reading past a plane shows here as it never would on a GPU.
#include "pictures.h"

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <random>
#include <vector>

#include "../cuda/pixel.h"
#include "../lavila.h"

namespace {

struct Kind {
    int bits, shift, paired;
    int colours[7];  // BT.709, limited range: kernels/preprocess/reference.py
};
const Kind kKinds[] = {
    {8, 0, 0, {0, 9539, 128, 14686, -1747, -4366, 17305}},
    {8, 0, 1, {1, 76309, -1304898, 100902, -12001, -29993, 118894}},
    {10, 0, 0, {1, 76309, -1304898, 100902, -12001, -29993, 118894}},
    {10, 6, 1, {1, 76309, -1304898, 100902, -12001, -29993, 118894}},
};
const float kMean[3] = {108.f, 117.f, 104.f}, kStd[3] = {68.f, 67.f, 70.f};

// Noise of rows × samples, not a byte more.
std::unique_ptr<uint8_t[]> plane(const Kind& kind, int rows, int samples, std::mt19937& bits) {
    const size_t wide = kind.bits > 8 ? 2 : 1, count = size_t(rows * samples);
    std::unique_ptr<uint8_t[]> out(new uint8_t[count * wide]);
    for (size_t i = 0; i < count; ++i) {
        const uint16_t sample = uint16_t((bits() % (1u << kind.bits)) << kind.shift);
        std::memcpy(&out[i * wide], &sample, wide);
    }
    return out;
}

// The levels are the normalised values, rounded; their memory ends with the last of them.
bool whole_levels(const lv_picture& picture, const lv_window& window, const std::vector<float>& normal) {
    const auto area = size_t(window.size * window.size);
    const std::unique_ptr<uint8_t[]> levels(new uint8_t[3 * area]);
    bool good = !lv_preprocess_levels(&picture, &window, levels.get());
    for (size_t i = 0; i < area; ++i)
        for (size_t c = 0; c < 3; ++c)
            good = good && std::fabs(normal[c * area + i] * kStd[c] + kMean[c] - float(levels[3 * i + c])) < .501f;
    return good;
}

// Planes that are a byte short, and windows that reach a sample too far, are not read.
bool refused(lv_picture picture, lv_window window) {
    std::vector<float> out(size_t(3 * window.size * window.size));
    std::vector<uint8_t> levels(out.size());
    const auto both = [&] {
        return lv_preprocess(&picture, &window, out.data()) && lv_preprocess_levels(&picture, &window, levels.data());
    };
    bool good = true;
    for (int i = 0; i < (picture.paired ? 2 : 3); ++i) --picture.bytes[i], good = good && both(), ++picture.bytes[i];
    std::vector<int32_t> far(window.low_y, window.low_y + window.size);
    far.back() = picture.height - 1;
    window.low_y = far.data();
    return good && both();
}

void compare(const Kind& kind, int width, int height, int size, int left, int turn) {
    std::mt19937 bits(unsigned(width * height + size));
    const int rows = (height + 1) / 2, columns = (width + 1) / 2, wide = kind.bits > 8 ? 2 : 1, step = 1 + kind.paired;
    const auto y = plane(kind, height, width, bits), u = plane(kind, rows, columns * step, bits);
    const auto v = plane(kind, rows, columns, bits);
    const bool turned = turn % 2;
    const float across = float(turned ? height : width) / float(size);
    const float down = float(turned ? width : height) / float(size);
    lv_frame frame{};
    frame.y = y.get(), frame.u = u.get(), frame.v = kind.paired ? u.get() + wide : v.get();
    frame.y_pitch = width * wide, frame.c_pitch = columns * step * wide, frame.width = width, frame.height = height;
    frame.bits = kind.bits, frame.shift = kind.shift, frame.step = step, frame.left = left, frame.turn = turn;
    frame.across = across, frame.down = down;
    std::memcpy(&frame.colours, kind.colours, sizeof kind.colours);
    const lavila::Normal normal{{kMean[0], kMean[1], kMean[2]}, {1 / kStd[0], 1 / kStd[1], 1 / kStd[2]}};
    const auto area = size_t(size * size);
    std::vector<float> got(3 * area), wanted(3 * area);
    for (int at = 0; at < size * size; ++at) {
        float rgb[3];
        lavila::pixel(frame, normal, at / size, at % size, rgb);
        for (size_t c = 0; c < 3; ++c) got[c * area + size_t(at)] = rgb[c];
    }
    if (turn) return;
    std::vector<int32_t> low[2];
    std::vector<float> weight[2], rest[2];
    for (int axis = 0; axis < 2; ++axis)
        for (int i = 0; i < size; ++i) {
            const auto tap = lavila::tap(i, 0, axis ? down : across, axis ? height : width, false);
            low[axis].push_back(tap.low), weight[axis].push_back(tap.weight), rest[axis].push_back(1 - tap.weight);
        }
    lv_picture picture{{y.get(), u.get(), v.get()}, {frame.y_pitch, frame.c_pitch, frame.c_pitch}, {}, width, height,
                       kind.bits, kind.shift, kind.paired, left, {}};
    std::memcpy(picture.colours, kind.colours, sizeof kind.colours);
    picture.bytes[0] = int64_t(height) * frame.y_pitch;
    picture.bytes[1] = picture.bytes[2] = int64_t(rows) * frame.c_pitch;
    const lv_window window{size, low[0].data(), weight[0].data(), rest[0].data(), low[1].data(), weight[1].data(),
                           rest[1].data(), {kMean[0], kMean[1], kMean[2]}, {kStd[0], kStd[1], kStd[2]}};
    bool good = !lv_preprocess(&picture, &window, wanted.data());
    for (size_t i = 0; i < got.size(); ++i) good = good && std::fabs(got[i] - wanted[i]) < 1e-5f;
    good = good && whole_levels(picture, window, wanted) && refused(picture, window);
    if (good) return;
    std::fprintf(stderr, "pictures of %dx%d to %d, %d bits: CPU and CUDA differ; %s\n", width, height, size, kind.bits,
                 lv_error());
    std::exit(1);
}

}  // namespace

void pictures() {
    const int sizes[][2] = {{8, 8}, {66, 38}, {18, 90}};
    for (const Kind& kind : kKinds)
        for (const auto& [width, height] : sizes)
            for (int size : {5, 33, 64})
                for (int turn = 0; turn < 4; ++turn) compare(kind, width, height, size, size % 2, turn);
}
