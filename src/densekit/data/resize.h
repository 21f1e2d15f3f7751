// Antialiased bilinear resizing of 8-bit rows, one after the other as they are decoded.
//
// The arithmetic is that of torch's `interpolate(mode="bilinear", antialias=True)` for uint8, which
// is Pillow's: weights of 16 bits with as many binary places as the largest allows, first along
// rows, rounded to 8 bits, then along columns. So the pixels are torch's to the bit.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>
#ifdef __SSE4_1__
#include <immintrin.h>
#endif

// What each of `size` outputs takes from one line of inputs.
struct Taps {
  std::vector<int> first, count;
  std::vector<int16_t> weights;  // [size, most]
  int most = 0;                  // even, so that weights can be taken in pairs
  int places = 0;                // binary ones

  // Outputs lie evenly on [start, start + scale * size] of `inputs` values.
  Taps(int inputs, int size, double start, double scale) : first(size), count(size) {
    const double reach = std::max(scale, 1.0);
    most = (2 * static_cast<int>(std::ceil(reach)) + 2) & ~1;
    std::vector<double> shares(size_t(size) * most);
    double largest = 0;
    for (int i = 0; i < size; i++) {
      const double centre = start + scale * (i + 0.5);
      const int low = std::max(static_cast<int>(centre - reach + 0.5), 0);
      const int high = std::min(static_cast<int>(centre + reach + 0.5), inputs);
      double* share = &shares[size_t(i) * most];
      double sum = 0;
      for (int j = low; j < high; j++) {
        share[j - low] = std::max(0.0, 1 - std::fabs((j - centre + 0.5) * (1 / reach)));
        sum += share[j - low];
      }
      for (int j = 0; j < high - low; j++) largest = std::max(largest, share[j] /= sum);
      first[i] = low;
      count[i] = high - low;
    }
    while (places < 22 && static_cast<int>(0.5 + largest * (1 << (places + 1))) < (1 << 15))
      places++;
    weights.resize(shares.size());
    for (size_t i = 0; i < shares.size(); i++)
      weights[i] = static_cast<int16_t>(0.5 + shares[i] * (1 << places));
  }
};

// Takes the rows of a rectangle from above to below, [width, channels] each, and writes the resized
// image, [channels, size, size].
class Resizer {
 public:
  Resizer(int channels, const Taps& across, const Taps& down, int rows, unsigned char* out)
      : channels_(channels), size_(static_cast<int>(across.first.size())), across_(across),
        down_(down), out_(out), lines_(size_t(rows) * channels * size_) {}

  // `row` may be read up to 8 bytes beyond its end.
  void take(int y, const unsigned char* row) {
    along_row(row, &lines_[size_t(y) * channels_ * size_]);
    while (written_ < size_ && down_.first[written_] + down_.count[written_] <= y + 1) {
      along_columns(written_);
      written_++;
    }
  }

 private:
  void along_row(const unsigned char* row, unsigned char* line) const {
    const int half = 1 << (across_.places - 1);
    for (int x = 0; x < size_; x++) {
      const int16_t* weight = &across_.weights[size_t(x) * across_.most];
      const unsigned char* pixel = row + size_t(across_.first[x]) * channels_;
      const int count = across_.count[x];
#ifdef __SSE4_1__
      if (channels_ == 3) {  // pairs of pixels: red, red, green, green, blue, blue
        const __m128i pairs =
            _mm_setr_epi8(0, -1, 3, -1, 1, -1, 4, -1, 2, -1, 5, -1, -1, -1, -1, -1);
        __m128i sum = _mm_set1_epi32(half);
        for (int j = 0; j < count; j += 2, pixel += 6) {
          int32_t two;
          std::memcpy(&two, weight + j, sizeof two);
          const __m128i values = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(pixel));
          const __m128i wide = _mm_shuffle_epi8(values, pairs);
          sum = _mm_add_epi32(sum, _mm_madd_epi16(wide, _mm_set1_epi32(two)));
        }
        sum = _mm_sra_epi32(sum, _mm_cvtsi32_si128(across_.places));
        sum = _mm_packs_epi32(sum, sum);
        const uint32_t rgb = _mm_cvtsi128_si32(_mm_packus_epi16(sum, sum));
        line[x] = static_cast<unsigned char>(rgb);
        line[x + size_] = static_cast<unsigned char>(rgb >> 8);
        line[x + 2 * size_] = static_cast<unsigned char>(rgb >> 16);
        continue;
      }
#endif
      for (int c = 0; c < channels_; c++) {
        int sum = half;
        for (int j = 0; j < count; j++) sum += weight[j] * pixel[size_t(j) * channels_ + c];
        line[x + c * size_] = static_cast<unsigned char>(std::min(sum >> across_.places, 255));
      }
    }
  }

  void along_columns(int y) const {
    constexpr int kBlock = 32;  // sums that the compiler keeps in registers
    const int16_t* weight = &down_.weights[size_t(y) * down_.most];
    const size_t length = size_t(channels_) * size_;
    const unsigned char* top = &lines_[size_t(down_.first[y]) * length];
    for (int c = 0; c < channels_; c++) {
      unsigned char* to = out_ + (size_t(c) * size_ + y) * size_;
      const unsigned char* from = top + size_t(c) * size_;
      for (int x = 0; x < size_; x += kBlock) {
        const int block = std::min(kBlock, size_ - x);
        int sums[kBlock];
        std::fill(sums, sums + kBlock, 1 << (down_.places - 1));
        for (int j = 0; j < down_.count[y]; j++) {
          const unsigned char* values = from + j * length + x;
          if (block == kBlock)
            for (int i = 0; i < kBlock; i++) sums[i] += weight[j] * values[i];
          else
            for (int i = 0; i < block; i++) sums[i] += weight[j] * values[i];
        }
        for (int i = 0; i < block; i++)
          to[x + i] = static_cast<unsigned char>(std::min(sums[i] >> down_.places, 255));
      }
    }
  }

  const int channels_, size_;
  const Taps &across_, &down_;
  unsigned char* out_;
  std::vector<unsigned char> lines_;  // [rows, channels, size], resized along rows
  int written_ = 0;
};
