// Half a layer (norm, relu, convolution) and its backward pass, each in one pass over memory.
//
// A tile of a feature map is normalised into the cache and multiplied there, so that neither the
// normalised activations nor their gradients are ever written to memory. The tile is padded with a
// zero column after each row and a row above and below: a pixel's neighbours are then at the same
// offsets everywhere, and a 3x3 convolution is nine products with shifted rows.
#pragma once
#include "multiply.h"
#include "norm.h"

namespace {

// How maps [n, h, w] are cut into tiles: a few rows of an image for a 3x3 convolution; for a 1x1
// convolution, a run of pixels.
struct Tiles {
  Index h, w, reach, pitch, tall, each, count;

  Tiles(Index n, Index h, Index w, bool spatial, Index pixels, int threads)
      : h(spatial ? h : 1), w(spatial ? w : n * h * w), reach(spatial) {
    Index whole = spatial ? h : this->w, most = spatial ? pixels / (w + 1) : pixels;
    most = std::max<Index>(1, most);
    each = std::max<Index>(1, rounded(whole, most) / most);
    if (!spatial) each = rounded(each, threads);  // the same number of tiles per thread
    tall = std::max<Index>(1, rounded(whole, each) / each);
    each = rounded(whole, tall) / tall;
    count = each * (spatial ? n : 1);
    pitch = spatial ? w + 1 : tall;
  }
  // Pixels in a tile's scratch, with room for what products read past its end; and where the
  // tile's own pixels start in it.
  Index size() const { return pixels() + 2 * reach * (pitch + 1) + kHeight + 2; }
  Index start() const { return reach * (pitch + 1); }
  Index pixels() const { return reach ? tall * pitch : tall; }
  // Offsets of a window's rows from its centre, in words; a pixel has ld words.
  std::vector<Index> window(Index ld) const {
    std::vector<Index> offsets;
    for (Index dy = -reach; dy <= reach; dy++) offsets.push_back((dy * pitch - reach) * ld);
    return offsets;
  }

  struct Tile {
    Index first, top, rows, width;  // first pixel in the maps; first row in its image; size
    Index pixels() const { return rows * width; }
  };
  Tile at(Index i) const {
    if (i >= count) return {0, 0, 0, 0};
    Index top = i % each * tall;
    if (!reach) return {top, 0, 1, std::min(tall, w - top)};
    return {(i / each * h + top) * w, top, std::min(tall, h - top), w};
  }
  // Pixels from a tile's first to its last, including the zeros after each row.
  Index span(const Tile& tile) const { return reach ? tile.rows * pitch : tile.width; }

  // body(pixel of the maps, pixel of the scratch) for a tile and `reach` rows around it
  template <class Body>
  void with_border(const Tile& tile, Body body) const {
    for (Index r = -reach; r < tile.rows + reach; r++)
      if (tile.top + r >= 0 && tile.top + r < h)
        for (Index i = 0; i < tile.width; i++)
          body(tile.first + r * w + i, start() + r * pitch + i);
  }
  // body(pixel of the maps, pixel of the tile)
  template <class Body>
  void inside(const Tile& tile, Body body) const {
    for (Index r = 0; r < tile.rows; r++)
      for (Index i = 0; i < tile.width; i++) body(tile.first + r * w + i, r * pitch + i);
  }
  // Zeroes the row above or below the tile where it is outside the image.
  template <class Word>
  void clear_outside(const Tile& tile, Word* scratch, Index ld) const {
    for (Index r : {-reach, tile.rows + reach - 1})
      if (tile.top + r < 0 || tile.top + r >= h)
        std::memset(scratch + (start() + r * pitch) * ld, 0, w * ld * sizeof *scratch);
  }
};

// A convolution's weight or its gradient, [k, c, taps] in any order of c and taps.
template <class Number>
struct Weight {
  Number* p;
  Index k, c, taps, of_c, of_tap;
  Number& at(Index o, Index i, Index tap) const {
    return p[o * c * taps + i * of_c + tap * of_tap];
  }
};

// z [pixels, k] = conv(relu(norm(x))); z's moments are written to `found` unless it is null.
template <class T>
void norm_relu_conv(const T* x, Index ldx, const float* norm, Weight<const float> weight, T* z,
                    Index ldz, double* found, Index n, Index h, Index w, int threads) {
  Index c = weight.c, k = weight.k, kw = words_of<T>(c);
  bool spatial = weight.taps > 1;
  Index lda = spatial ? kw : rounded(kw, 16) | 16;  // never a multiple of 4 KiB
  Tiles map(n, h, w, spatial, spatial ? std::min<Index>(264, 50000 / lda) : 96, threads);
  Scratch<Word<T>> packed(packed_words<T>(weight.taps, c, k));
  pack<T>(packed.data(), weight.taps, c, k, threads,
          [=](Index tap, Index i, Index o) { return weight.at(o, i, tap); });
  auto block = [&](Index column) { return &packed[column * weight.taps * kw]; };
  auto window = map.window(lda);
  Index across = (2 * map.reach + 1) * kw;
  Scratch<Word<T>> normed(threads * map.size() * lda);
  Scratch<float> products(threads * (map.pixels() + kHeight) * kBlock);
  std::vector<Soon> soon(threads);
  Moments moments(k, threads);
  auto work = [&](Index t, Index i, Index) {
    auto tile = map.at(i), next = map.at(i + 1);
    Word<T>* a = &normed[t * map.size() * lda];
    float* out = &products[t * (map.pixels() + kHeight) * kBlock];
    map.clear_outside(tile, a, lda);
    columns(c, [&](auto width, Index j) {
      WIDTH;
      Norm<W> of(norm, c, j);
      map.with_border(tile, [&](Index pixel, Index at) {
        auto v = relu<W>(of(load<W>(x + pixel * ldx + j)));
        store<W>(reinterpret_cast<Part<T>*>(a + at * lda) + j, v);
      });
    });
    soon[t].add(z + tile.first * ldz, ldz, tile.pixels(), k);
    soon[t].add(x + next.first * ldx, ldx, next.pixels(), c);
    for (Index first = 0; first < k; first += kBlock) {
      multiply(vectors_of(k - first), map.span(tile), across, window, a + map.start() * lda,
               lda, 1, block(first), out, kBlock, false, soon[t]);
      columns(std::min(kBlock, k - first), [&](auto width, Index j) {
        WIDTH;
        map.inside(tile, [&](Index pixel, Index at) {
          store<W>(z + pixel * ldz + first + j, load<W>(out + at * kBlock + j));
        });
      });
    }
    if (found) moments.tile(t, z + tile.first * ldz, ldz, tile.pixels());
  };
  tiles(map.count, threads, work, 1);
  if (found) moments.merge(found);
}

// Two ways to compute the gradient of a convolution's output, [pixels, k], at (pixel, column j).
template <class T>
struct DeferredGrad {  // d + shift + slope * (x - mean); line is [3, k]: mean, shift, slope
  const T *d, *x;
  Index ldd, ldx;
  const float* line;
  Index k;
  template <int W>
  auto column(Index j) const {
    auto mean = load<W>(line + j), shift = load<W>(line + k + j), slope = load<W>(line + 2 * k + j);
    return [=, d = d + j, x = x + j, ldd = ldd, ldx = ldx](Index pixel) {
      auto v = load<W>(d + pixel * ldd) + shift;
      return v + sloping<W>(slope, load<W>(x + pixel * ldx) - mean);
    };
  }
  void fetch(Soon& soon, Index pixel, Index pixels) const {
    soon.add(d + pixel * ldd, ldd, pixels, k);
    soon.add(x + pixel * ldx, ldx, pixels, k);
  }
};
template <class T>
struct NormReluGrad {  // norm_relu_grad of (y, norm, da, line), all [pixels, k]
  const T *y, *da;
  const float *norm, *line;
  Index k;
  template <int W>
  auto column(Index j) const {
    Norm<W> of(norm, k, j);
    auto shift = load<W>(line + j), slope = load<W>(line + k + j);
    return [=, y = y + j, da = da + j, k = k](Index pixel) {
      auto v = load<W>(y + pixel * k);
      auto g = of(v) <= 0 ? Float<W>{} : load<W>(da + pixel * k);
      return g * of.scale + (shift + sloping<W>(slope, v - of.mean));
    };
  }
  void fetch(Soon& soon, Index pixel, Index pixels) const {
    soon.add(y + pixel * k, k, pixels, k);
    soon.add(da + pixel * k, k, pixels, k);
  }
};

template <class Word>
inline void zero(Word* rows, Index row, Index ld) {
  std::memset(rows + row * ld, 0, ld * sizeof *rows);
}

// Packs pairs of bfloat16 rows [_, c] into words: first with first + 1, first + 2 with first + 3...
inline void interleave(const uint32_t* rows, Index ld, Index first, Index words, Index c,
                       uint32_t* out, Index ldo) {
  auto part = reinterpret_cast<const uint16_t*>(rows) + first * 2 * ld;
  for (Index i = 0; i < words; i++, part += 4 * ld, out += ldo)
    for (Index j = 0; j < c; j++) out[j] = part[j] | uint32_t(part[2 * ld + j]) << 16;
}

// What the backward pass computes; null members are skipped. With g, the gradient before the relu:
// sums (see grad_sums), to = d + scale * g (to = g if d is null), and weight += the weight's
// gradient. Without sums, `to` is not computed.
template <class T>
struct Asked {
  double* sums;
  const T* d;
  T* to;
  Index ld;
  float* weight;
};

template <class T, class Behind>
void norm_relu_conv_backward(Behind behind, const T* x, Index ldx, const float* norm,
                             Weight<const float> weight, Asked<T> asked, Index n, Index h, Index w,
                             int threads) {
  constexpr Index P = kParts<T>;
  bool spatial = weight.taps > 1;
  Index c = weight.c, k = weight.k, kw = words_of<T>(k);
  Index deep = rounded(rounded(k, kHeight), 16), wide = rounded(c, kLanes);
  Index ld = spatial ? kw : deep / P;
  Tiles map(n, h, w, spatial, spatial ? 128 : 96, threads);
  Index taps = asked.sums ? weight.taps : 0;
  Scratch<Word<T>> packed(packed_words<T>(taps, k, c));
  pack<T>(packed.data(), taps, k, c, threads, [=](Index tap, Index o, Index i) {
    return weight.at(o, i, weight.taps - 1 - tap);
  });
  auto block = [&](Index column) { return &packed[column * taps * kw]; };
  auto window = map.window(ld);
  Index across = (2 * map.reach + 1) * kw;
  const std::vector<Index> point{0};
  Index size = map.size(), pixels = rounded(map.pixels(), kHeight), words = pixels / P;
  Scratch<Word<T>> rows(threads * size * ld), pairs(P > 1 ? threads * size * deep : 0);
  Scratch<Word<T>> activations(threads * pixels * kBlock);
  Scratch<Word<T>> activation_pairs(P > 1 ? threads * words * kBlock : 0);
  Scratch<float> products(threads * pixels * kBlock);
  Scratch<float> parts(asked.weight ? threads * weight.taps * deep * wide : 0);
  std::vector<Soon> ahead(threads);
  auto work = [&](Index t, Index i, Index, double* sums) {
    auto tile = map.at(i), next = map.at(i + 1);
    Soon& soon = ahead[t];
    Word<T>*dz = &rows[t * size * ld], *a = &activations[t * pixels * kBlock];
    float* out = &products[t * pixels * kBlock];
    map.clear_outside(tile, dz, ld);
    columns(k, [&](auto width, Index j) {
      WIDTH;
      auto at = behind.template column<W>(j);
      map.with_border(tile, [&](Index pixel, Index to) {
        store<W>(reinterpret_cast<Part<T>*>(dz + to * ld) + j, at(pixel));
      });
    });
    Word<T>*dzs[2] = {}, *as = a;  // pairs of pixels as words; dz's start at pixel 0 and at 1
    if constexpr (P > 1) {
      dzs[0] = &pairs[t * size * deep], dzs[1] = dzs[0] + size / 2 * deep;
      interleave(dz, ld, 0, size / 2, k, dzs[0], deep);
      if (spatial) interleave(dz, ld, 1, size / 2 - 1, k, dzs[1], deep);
      as = &activation_pairs[t * words * kBlock];
    }
    for (Index first = 0; first < c; first += kBlock) {
      Index left = std::min(kBlock, c - first), then = first + left;
      int vectors = vectors_of(left);
      Index lda = vectors * kLanes;
      auto fetch = [&](const Tiles::Tile& of, Index j) {
        Index block = std::min(kBlock, c - j);
        soon.add(x + of.first * ldx + j, ldx, of.pixels(), block);
        if (asked.d) soon.add(asked.d + of.first * asked.ld + j, asked.ld, of.pixels(), block);
      };
      if (then < c) {
        fetch(tile, then);
      } else {
        fetch(next, 0);
        behind.fetch(soon, next.first, next.pixels());
      }
      if (asked.sums)
        multiply(vectors, map.span(tile), across, window, dz + map.start() * ld, ld, 1,
                 block(first), out, kBlock, false, soon);
      columns(left, [&](auto width, Index i) {
        WIDTH;
        Index j = first + i;
        Norm<W> of(norm, c, j);
        Float<W> sum{}, product{};
        map.inside(tile, [&](Index pixel, Index p) {
          auto v = load<W>(x + pixel * ldx + j), y = of(v);
          store<W>(reinterpret_cast<Part<T>*>(a + p * lda / P) + i, relu<W>(y));
          if (!asked.sums) return;
          auto g = y <= 0 ? Float<W>{} : load<W>(out + p * kBlock + i);
          sum += g;
          product += g * (v - of.mean);
          Index to = pixel * asked.ld + j;
          if (asked.d)
            store<W>(asked.to + to, load<W>(asked.d + to) + g * of.scale);
          else if (asked.to)
            store<W>(asked.to + to, g);
        });
        if (!asked.sums) return;
        add<W>(sums + j, sum);
        add<W>(sums + c + j, product);
      });
      if (!asked.weight) continue;
      Index m = map.span(tile), depth = rounded(m, P) / P;
      for (Index r = 0; spatial && r < tile.rows; r++) zero(a, r * map.pitch + map.w, lda / P);
      if (m % P) zero(a, m, lda / P);
      if constexpr (P > 1) interleave(a, lda / P, 0, depth, lda, as, lda);
      for (Index tap = 0; tap < weight.taps; tap++) {
        Index from = map.start() - (tap / 3 - map.reach) * map.pitch - (tap % 3 - map.reach);
        const Word<T>* of = P > 1 ? dzs[from % P] + from / P * deep : dz + from * ld;
        float* into = &parts[(t * weight.taps + tap) * deep * wide + first];
        multiply(vectors, k, depth, point, of, 1, P > 1 ? deep : ld, as, into, wide, true, soon);
      }
    }
  };
  two_sums(map.count, c, threads, asked.sums, work, 1);
  if (!asked.weight) return;
  Weight<float> grad{asked.weight, k, c, weight.taps, weight.of_c, weight.of_tap};
#pragma omp parallel for num_threads(threads)
  for (Index o = 0; o < k; o++)
    for (Index tap = 0; tap < weight.taps; tap++)
      for (Index t = 0; t < threads; t++)
        for (Index j = 0; j < c; j++)
          grad.at(o, j, tap) += parts[((t * weight.taps + tap) * deep + o) * wide + j];
}

}  // namespace
