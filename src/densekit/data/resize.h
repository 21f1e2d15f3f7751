// Antialiased bilinear resizing of 8-bit rows, strip by strip as they are decoded.
//
// Same arithmetic as torch's `interpolate(mode="bilinear", antialias=True)` for uint8, which is
// Pillow's: 16-bit fixed-point weights with as many fraction bits as the largest weight allows;
// along rows first, rounded to 8 bits, then along columns. So pixels equal torch's bit for bit.
//
// A strip is transposed (its columns become lines), so that both passes sum whole lines.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>
#ifdef __SSE2__
#include <immintrin.h>
#endif

constexpr int kLanes = 16;  // bytes in a vector, and rows in a strip

// The inputs and weights of each of `size` outputs along one side.
struct Taps {
  int inputs;
  std::vector<int> first, count;
  std::vector<int16_t> weights;  // [size, most]
  int most = 0;                  // weights per output; even, so that they can be used in pairs
  int places = 0;                // fraction bits of the weights

  // The outputs divide [start, start + scale * size] of the inputs evenly.
  Taps(int inputs, int size, double start, double scale)
      : inputs(inputs), first(size), count(size) {
    const double reach = std::max(scale, 1.0);
    most = 2 * static_cast<int>(std::ceil(reach)) + 2;
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

  // Keeps `size` outputs from output `from` on. Returns the first input that they take, which is
  // then input 0.
  int keep(int from, int size) {
    const int low = first[from];
    inputs = first[from + size - 1] + count[from + size - 1] - low;
    cut(first, from, size);
    cut(count, from, size);
    cut(weights, size_t(from) * most, size_t(size) * most);
    for (int& each : first) each -= low;
    return low;
  }

 private:
  template <class Value>
  static void cut(std::vector<Value>& values, size_t from, size_t size) {
    values.erase(values.begin() + from + size, values.end());
    values.erase(values.begin(), values.begin() + from);
  }
};

// kLanes weighted sums over `count` lines, `stride` bytes apart; may read one line more.
inline void add_up(const unsigned char* from, size_t stride, const int16_t* weights, int count,
                   int places, unsigned char* to) {
#ifdef __AVX2__
  __m256i low = _mm256_set1_epi32(1 << (places - 1)), high = low;
  for (int j = 0; j < count; j += 2, from += 2 * stride) {  // pairs of lines, byte by byte
    const __m128i one = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
    const __m128i other = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from + stride));
    int32_t pair;
    std::memcpy(&pair, weights + j, sizeof pair);
    const __m256i both = _mm256_set1_epi32(pair);
    const __m256i first = _mm256_cvtepu8_epi16(_mm_unpacklo_epi8(one, other));
    const __m256i second = _mm256_cvtepu8_epi16(_mm_unpackhi_epi8(one, other));
    low = _mm256_add_epi32(low, _mm256_madd_epi16(first, both));
    high = _mm256_add_epi32(high, _mm256_madd_epi16(second, both));
  }
  const __m128i shift = _mm_cvtsi32_si128(places);
  const __m256i words =
      _mm256_packs_epi32(_mm256_sra_epi32(low, shift), _mm256_sra_epi32(high, shift));
  const __m256i in_order = _mm256_permute4x64_epi64(words, _MM_SHUFFLE(3, 1, 2, 0));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(to),
                   _mm_packus_epi16(_mm256_castsi256_si128(in_order),
                                    _mm256_extracti128_si256(in_order, 1)));
#else
  int sums[kLanes];
  std::fill(sums, sums + kLanes, 1 << (places - 1));
  for (int j = 0; j < count; j++, from += stride)
    for (int i = 0; i < kLanes; i++) sums[i] += weights[j] * from[i];
  for (int i = 0; i < kLanes; i++)
    to[i] = static_cast<unsigned char>(std::min(sums[i] >> places, 255));
#endif
}

// Transposes kLanes rows of kLanes bytes.
inline void turn(const unsigned char* from, size_t stride, unsigned char* to, size_t to_stride) {
#ifdef __SSE2__
  static_assert(kLanes == 16);
  __m128i rows[16], turned[16];
  for (int i = 0; i < 16; i++)
    rows[i] = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from + i * stride));
  for (int step = 0; step < 4; step++) {  // each interleaves the first half with the second
    for (int i = 0; i < 8; i++) {
      turned[2 * i] = _mm_unpacklo_epi8(rows[i], rows[i + 8]);
      turned[2 * i + 1] = _mm_unpackhi_epi8(rows[i], rows[i + 8]);
    }
    for (int i = 0; i < 16; i++) rows[i] = turned[i];
  }
  for (int i = 0; i < 16; i++)
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to + i * to_stride), rows[i]);
#else
  for (int i = 0; i < kLanes; i++)
    for (int j = 0; j < kLanes; j++) to[i * to_stride + j] = from[j * stride + i];
#endif
}

constexpr size_t whole_vectors(size_t bytes) { return (bytes + kLanes - 1) / kLanes * kLanes; }

// Takes the rows of a rectangle, [width, channels] each, from top to bottom, and writes the resized
// (and optionally mirrored) image, [channels, size, size].
class Resizer {
 public:
  Resizer(int channels, const Taps& across, const Taps& down, bool mirrored, unsigned char* out)
      : channels_(channels), size_(static_cast<int>(across.first.size())), mirrored_(mirrored),
        across_(across), down_(down), out_(out), padded_(whole_vectors(size_)),
        values_(size_t(across.inputs) * channels), turned_((whole_vectors(values_) + channels) * kLanes),
        resized_(padded_ * channels * kLanes),
        lines_((whole_vectors(down.inputs) + 1) * channels * padded_) {}

  // Takes the next `count` rows, at most kLanes. Always kLanes rows must be readable, each to
  // kLanes bytes past its end.
  void take(const unsigned char* rows, size_t stride, int count) {
    for (size_t i = 0; i < values_; i += kLanes)
      turn(rows + i, stride, &turned_[i * kLanes], kLanes);
    along_rows();
    unsigned char* line = &lines_[size_t(taken_) * channels_ * padded_];
    for (size_t i = 0; i < channels_ * padded_; i += kLanes)
      turn(&resized_[i * kLanes], kLanes, line + i, channels_ * padded_);
    taken_ += count;
    while (written_ < size_ && down_.first[written_] + down_.count[written_] <= taken_)
      along_columns(written_++);
  }

 private:
  void along_rows() {
    for (int x = 0; x < size_; x++) {
      const int16_t* weights = &across_.weights[size_t(x) * across_.most];
      const unsigned char* from = &turned_[size_t(across_.first[x]) * channels_ * kLanes];
      const int to = mirrored_ ? size_ - 1 - x : x;
      for (int c = 0; c < channels_; c++)
        add_up(from + c * kLanes, size_t(channels_) * kLanes, weights, across_.count[x],
               across_.places, &resized_[(c * padded_ + to) * kLanes]);
    }
  }

  void along_columns(int y) const {
    const int16_t* weights = &down_.weights[size_t(y) * down_.most];
    const size_t stride = channels_ * padded_;
    for (int c = 0; c < channels_; c++) {
      const unsigned char* from = &lines_[down_.first[y] * stride + c * padded_];
      unsigned char* to = out_ + (size_t(c) * size_ + y) * size_;
      for (int x = 0; x < size_; x += kLanes) {
        unsigned char rest[kLanes];
        unsigned char* sums = x + kLanes <= size_ ? to + x : rest;
        add_up(from + x, stride, weights, down_.count[y], down_.places, sums);
        if (sums == rest) std::memcpy(to + x, rest, size_ - x);
      }
    }
  }

  const int channels_, size_;
  const bool mirrored_;
  const Taps &across_, &down_;
  unsigned char* out_;
  const size_t padded_, values_;  // bytes in an output line (padded) and in an input row
  std::vector<unsigned char> turned_;   // [width, channels, kLanes]
  std::vector<unsigned char> resized_;  // [channels, padded, kLanes]
  std::vector<unsigned char> lines_;    // [rows, channels, padded], resized along rows
  int taken_ = 0, written_ = 0;
};
