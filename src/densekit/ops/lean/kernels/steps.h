// The steps of a network, each computed by a team: see inference.h.
#pragma once
#include "inference.h"
#include "winograd.h"

namespace {

template <int W>
struct Scale {
  Float<W> scale, shift;
  Scale(const float* norm, Index c, Index j)
      : scale(load<W>(norm + j)), shift(load<W>(norm + c + j)) {}
  Float<W> operator()(Float<W> x) const { return relu<W>(x * scale + shift); }
};

// Zeroes the unused second half of a row's last word: its weight is 0, but 0 * NaN is NaN.
template <class T>
void finish_word(Word<T>* a, Index lda, Index rows, Index c) {
  if (c % kParts<T> == 0) return;
  for (Index r = 0; r < rows; r++) reinterpret_cast<Part<T>*>(a + r * lda)[c] = {};
}

// out [pixels, columns] = a b for each block of columns; then done(first column, columns).
template <class T, class Done>
void blocks(const void* weight, Index c, Index k, const Word<T>* a, Index lda, Index pixels,
            float* out, Soon& soon, Done done) {
  static const std::vector<Index> point{0};
  auto packed = static_cast<const Word<T>*>(weight);
  for (Index first = 0; first < k; first += kBlock) {
    Index left = std::min(kBlock, k - first);
    multiply(vectors_of(left), pixels, words_of<T>(c), point, a, lda, 1,
             packed + first * words_of<T>(c), out, kBlock, false, soon);
    done(first, left);
  }
}

// y = relu(relu(norm(x)) conv + shift), with a 1x1 convolution.
template <class T>
void point(const Step& step, Maps<T> x, Bordered<T> y, Space<T>& space, Team& team) {
  Index c = step.c, lda = Sizes<T>::lda(c), tall = Sizes<T>::pixels(c), area = x.h * x.w;
  auto [from, to] = team.share(x.pixels());
  Soon soon;
  Word<T>* a = space.words;
  T* rows[kPixels];
  for (Index lo = from; lo < to; lo += tall) {
    Index m = std::min(tall, to - lo), then = std::min(tall, to - lo - m);
    const T* p = x.p + lo * x.ld;
    columns(c, [&](auto width, Index j) {
      WIDTH;
      Scale<W> of(step.norm, c, j);
      for (Index r = 0; r < m; r++)
        store<W>(reinterpret_cast<Part<T>*>(a + r * lda) + j, of(load<W>(p + r * x.ld + j)));
    });
    finish_word<T>(a, lda, m, c);
    Index image = lo / area, row = lo % area / x.w, column = lo % x.w;
    for (Index r = 0; r < m; r++) {
      rows[r] = y.at(image, row, column);
      if (++column == x.w) column = 0, ++row;
      if (row == x.h) row = 0, ++image;
    }
    if (then > 0) soon.add(x.p + (lo + m) * x.ld, x.ld, then, c);
    blocks<T>(step.weight, c, step.k, a, lda, m, space.products, soon,
              [&](Index first, Index left) {
                columns(left, [&](auto width, Index j) {
                  WIDTH;
                  auto shift = load<W>(step.shift + first + j);
                  for (Index r = 0; r < m; r++)
                    store<W>(rows[r] + first + j,
                             relu<W>(load<W>(space.products + r * kBlock + j) + shift));
                });
              });
  }
}

// y = relu(norm(x)).
template <class T>
void norm(const Step& step, Maps<T> x, Bordered<T> y, Team& team) {
  auto [from, to] = team.share(x.n * x.h);
  for (Index r = from; r < to; r++) {
    const T* p = x.p + r * x.w * x.ld;
    T* q = y.at(r / x.h, r % x.h, 0);
    columns(step.c, [&](auto width, Index j) {
      WIDTH;
      Scale<W> of(step.norm, step.c, j);
      for (Index i = 0; i < x.w; i++) store<W>(q + i * y.ld + j, of(load<W>(p + i * x.ld + j)));
    });
  }
}

// k columns of z = a 3x3 convolution of y.
template <class T>
void window(const Step& step, Bordered<T> y, Maps<T> z, Index column, Space<T>& space, Team& team) {
  Index c = step.c, k = step.k, lda = Sizes<T>::lda(c), most = Sizes<T>::windows(c);
  Index tall = (y.h + 1) / 2, wide = (y.w + 1) / 2, place = packed_words<T>(1, c, k);
  auto [from, to] = team.share(y.n * tall * wide);
  Soon soon;
  for (Index lo = from; lo < to; lo += most) {
    Index m = std::min(most, to - lo);
    for (Index i = 0; i < m; i++) {
      Index tile = lo + i, image = tile / (tall * wide);
      const T* p = y.at(image, tile / wide % tall * 2 - 1, tile % wide * 2 - 1);
      Word<T>* a = space.words + i * lda;
      columns(c, [&](auto width, Index j) {
        WIDTH;
        Float<W> d[4][4];
#pragma GCC unroll 16
        for (int q = 0; q < kPlaces; q++)
          d[q / 4][q % 4] = load<W>(p + (q / 4 * y.pitch() + q % 4) * y.ld + j);
        tile_to_products(d);
#pragma GCC unroll 16
        for (int q = 0; q < kPlaces; q++)
          store<W>(reinterpret_cast<Part<T>*>(a + q * most * lda) + j, d[q / 4][q % 4]);
      });
    }
    for (Index q = 0; q < kPlaces; q++) finish_word<T>(space.words + q * most * lda, lda, m, c);
    for (Index first = 0; first < k; first += kBlock) {
      Index left = std::min(kBlock, k - first);
      for (Index q = 0; q < kPlaces; q++)
        blocks<T>(static_cast<const Word<T>*>(step.weight) + q * place + first * words_of<T>(c), c,
                  left, space.words + q * most * lda, lda, m, space.products + q * most * kBlock,
                  soon, [](Index, Index) {});
      for (Index i = 0; i < m; i++) {
        Index tile = lo + i, image = tile / (tall * wide);
        Index top = tile / wide % tall * 2, left_most = tile % wide * 2;
        T* out = z.p + ((image * z.h + top) * z.w + left_most) * z.ld + column + first;
        bool below = top + 1 < z.h, beside = left_most + 1 < z.w;
        columns(left, [&](auto width, Index j) {
          WIDTH;
          Float<W> found[4][4], done[2][2];
#pragma GCC unroll 16
          for (int q = 0; q < kPlaces; q++)
            found[q / 4][q % 4] = load<W>(space.products + (q * most + i) * kBlock + j);
          products_to_tile(found, done);
          store<W>(out + j, done[0][0]);
          if (beside) store<W>(out + z.ld + j, done[0][1]);
          if (below) store<W>(out + z.w * z.ld + j, done[1][0]);
          if (below && beside) store<W>(out + (z.w + 1) * z.ld + j, done[1][1]);
        });
      }
    }
  }
}

// z = a 1x1 convolution of the 2x2 averages of relu(norm(x)). The published order is convolution,
// then average; both are linear, so they commute.
template <class T>
void transition(const Step& step, Maps<T> x, Maps<T> z, Space<T>& space, Team& team) {
  Index c = step.c, lda = Sizes<T>::lda(c), tall = Sizes<T>::pixels(c);
  auto [from, to] = team.share(z.pixels());
  Soon soon;
  Word<T>* a = space.words;
  for (Index lo = from; lo < to; lo += tall) {
    Index m = std::min(tall, to - lo);
    const T* rows[kPixels];
    for (Index r = 0; r < m; r++) {
      Index pixel = lo + r, image = pixel / (z.h * z.w);
      rows[r] = x.p + ((image * x.h + pixel / z.w % z.h * 2) * x.w + pixel % z.w * 2) * x.ld;
    }
    columns(c, [&](auto width, Index j) {
      WIDTH;
      Scale<W> of(step.norm, c, j);
      for (Index r = 0; r < m; r++) {
        const T* p = rows[r] + j;
        auto sum = of(load<W>(p)) + of(load<W>(p + x.ld)) + of(load<W>(p + x.w * x.ld)) +
                   of(load<W>(p + (x.w + 1) * x.ld));
        store<W>(reinterpret_cast<Part<T>*>(a + r * lda) + j, sum * 0.25f);
      }
    });
    finish_word<T>(a, lda, m, c);
    blocks<T>(
        step.weight, c, step.k, a, lda, m, space.products, soon, [&](Index first, Index left) {
          columns(left, [&](auto width, Index j) {
            WIDTH;
            for (Index r = 0; r < m; r++)
              store<W>(z.p + (lo + r) * z.ld + first + j, load<W>(space.products + r * kBlock + j));
          });
        });
  }
}

// out [n, c] = means over pixels of relu(norm(x)).
template <class T>
void last(const Step& step, Maps<T> x, float* out, Team& team) {
  auto [from, to] = team.share((step.c + kLanes - 1) / kLanes);
  Index area = x.h * x.w, first = from * kLanes, end = std::min(to * kLanes, step.c);
  for (Index image = 0; image < x.n; image++)
    columns(end - first, [&](auto width, Index i) {
      WIDTH;
      Index j = first + i;
      Scale<W> of(step.norm, step.c, j);
      Double<W> sum{};
      for (Index r = 0; r < area; r++)
        sum += wide<W>(of(load<W>(x.p + (image * area + r) * x.ld + j)));
      store<W>(out + image * step.c + j, __builtin_convertvector(sum / double(area), Float<W>));
    });
}

}  // namespace
