// What becomes of a whole batch of images on a CPU; on_cpu.py says what, in words.
//
// N images, C channels, `pixels` of each; x(n, c, i) lies at x[n * x_n + c * x_c + i * x_i].
// Every operation rounds as IEEE 754 has it, and none is fused, so the bits are torch's.
#include <algorithm>
#include <cstdint>
#include <vector>

namespace {

using Index = std::int64_t;
constexpr Index kPixels = 64;     // normalised at once, for each channel
constexpr Index kPart = 1 << 12;  // pixels of a thread at a time: batches may have one image

float in_unit(std::uint8_t value) { return value / 255.0f; }
float in_unit(float value) { return value; }

template <class Value>
void normalize_line(const Value* x, Index step, float mean, float std, float* out, Index count) {
  if (step == 1)
    for (Index i = 0; i < count; i++) out[i] = (in_unit(x[i]) - mean) / std;
  else
    for (Index i = 0; i < count; i++) out[i] = (in_unit(x[i * step]) - mean) / std;
}

// lines [C, kPixels] -> out [count, C]
void interleave(const float* lines, float* out, Index channels, Index count) {
  if (channels == 3) {  // which compilers make vectors of
    const float *red = lines, *green = red + kPixels, *blue = green + kPixels;
    for (Index i = 0; i < count; i++) {
      out[3 * i] = red[i];
      out[3 * i + 1] = green[i];
      out[3 * i + 2] = blue[i];
    }
    return;
  }
  for (Index c = 0; c < channels; c++)
    for (Index i = 0; i < count; i++) out[i * channels + c] = lines[c * kPixels + i];
}

template <class Value>
void normalize(const Value* x, Index x_n, Index x_c, Index x_i, const float* mean, const float* std,
               float* out, Index images, Index channels, Index pixels, bool channels_last,
               int threads) {
  const Index parts = (pixels + kPart - 1) / kPart;
#pragma omp parallel num_threads(threads)
  {
    std::vector<float> lines(channels_last ? channels * kPixels : 0);
#pragma omp for collapse(2)
    for (Index n = 0; n < images; n++)
      for (Index part = 0; part < parts; part++) {
        const Index first = part * kPart, last = std::min(first + kPart, pixels);
        const Value* image = x + n * x_n;
        float* to = out + n * channels * pixels;
        if (!channels_last) {
          for (Index c = 0; c < channels; c++)
            normalize_line(image + c * x_c + first * x_i, x_i, mean[c], std[c],
                           to + c * pixels + first, last - first);
          continue;
        }
        for (Index i = first; i < last; i += kPixels) {
          const Index count = std::min(kPixels, last - i);
          for (Index c = 0; c < channels; c++)
            normalize_line(image + c * x_c + i * x_i, x_i, mean[c], std[c], &lines[c * kPixels],
                           count);
          interleave(lines.data(), to + i * channels, channels, count);
        }
      }
  }
}

// A row of the batch, and what Crop of on_cpu.py has.
struct Crop {
  Index row, start, height, width, top, left, mirrored;
};

// Columns [first, last) of a line [width, C] of an image -> the line of each channel of a square.
template <class Value>
void copy_line(const Value* line, Index first, Index last, const Crop& crop, Index channels,
               Index side, Value* out) {
  for (Index c = 0; c < channels; c++, out += side * side)
    if (crop.mirrored)
      for (Index x = first; x < last; x++)
        out[side - 1 - x] = line[(crop.left + x) * channels + c];
    else
      for (Index x = first; x < last; x++) out[x] = line[(crop.left + x) * channels + c];
}

template <class Value>
void copy_crops(const Value* pixels, const Crop* crops, Index count, Value* out, Index channels,
                Index side) {
  const Index size = channels * side * side;
  for (const Crop* crop = crops; crop < crops + count; crop++) {
    Value* square = out + crop->row * size;
    const Index top = std::clamp<Index>(-crop->top, 0, side);
    const Index bottom = std::clamp<Index>(crop->height - crop->top, top, side);
    const Index first = std::clamp<Index>(-crop->left, 0, side);
    const Index last = std::clamp<Index>(crop->width - crop->left, first, side);
    if (bottom - top < side || last - first < side) std::fill_n(square, size, Value(0));
    for (Index y = top; y < bottom; y++)
      copy_line(pixels + crop->start + (crop->top + y) * crop->width * channels, first, last, *crop,
                channels, side, square + y * side);
  }
}

}  // namespace

extern "C" void copy_crops_u8(const std::uint8_t* pixels, const Crop* crops, Index count,
                              std::uint8_t* out, Index channels, Index side) {
  copy_crops(pixels, crops, count, out, channels, side);
}

extern "C" void copy_crops_f32(const float* pixels, const Crop* crops, Index count, float* out,
                               Index channels, Index side) {
  copy_crops(pixels, crops, count, out, channels, side);
}

extern "C" void normalize_u8(const std::uint8_t* x, Index x_n, Index x_c, Index x_i,
                             const float* mean, const float* std, float* out, Index images,
                             Index channels, Index pixels, int channels_last, int threads) {
  normalize(x, x_n, x_c, x_i, mean, std, out, images, channels, pixels, channels_last, threads);
}

extern "C" void normalize_f32(const float* x, Index x_n, Index x_c, Index x_i, const float* mean,
                              const float* std, float* out, Index images, Index channels,
                              Index pixels, int channels_last, int threads) {
  normalize(x, x_n, x_c, x_i, mean, std, out, images, channels, pixels, channels_last, threads);
}
