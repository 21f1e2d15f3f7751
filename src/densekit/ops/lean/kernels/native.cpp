// The kernels of plain.py for CPUs, each in one pass over memory.
//
// Rows are pixels, columns are channels; channels are contiguous and rows of x are ldx elements
// apart. Second moments are taken about the mean, tile by tile, so that nothing cancels even at
// mean = 1000 std. NaN and Inf propagate as in torch.
//
// No torch headers: native.py compiles this file and passes pointers.
#include <cmath>

#include "convolution.h"
#include "norm.h"

namespace {

// relu(norm(x)); norm is [4, c]: mean, scale, shift, rstd --------------------------------------

void normalisation(const double* moments, Index ld, double count, const float* gamma,
                   const float* beta, double eps, float* norm, Index c) {
  for (Index j = 0; j < c; j++) {
    double rstd = 1 / std::sqrt(moments[ld + j] / count + eps);
    norm[j] = float(moments[j]);
    norm[c + j] = float(gamma[j] * rstd);
    norm[2 * c + j] = beta[j];
    norm[3 * c + j] = float(rstd);
  }
}

// line [2, c]: shift and slope of BatchNorm's deferred correction (docs/concepts/dense-block.md).
void correction(const float* norm, const double* sums, double count, double* line, Index c) {
  for (Index j = 0; j < c; j++) {
    double scale = norm[c + j], rstd = norm[3 * c + j];
    line[j] = -sums[j] * scale / count;
    line[c + j] = -sums[c + j] * scale * rstd * rstd / count;
  }
}

// out = relu(norm(x)).
template <class T>
void norm_relu(const T* x, Index ldx, const float* norm, T* out, Index rows, Index c, int threads) {
  tiles(rows, threads, [&](Index, Index lo, Index hi) {
    ahead(x, ldx, c, hi, rows);
    ahead(out, c, c, hi, rows);
    columns(c, [&](auto width, Index j) {
      WIDTH;
      Norm<W> normed(norm, c, j);
      for (Index r = lo; r < hi; r++)
        store<W>(out + r * c + j, relu<W>(normed(load<W>(x + r * ldx + j))));
    });
  });
}

// out = a 2x2 average pool of relu(norm(x)).
template <class T>
void norm_relu_average(const T* x, Index ldx, const float* norm, T* out, Index n, Index h, Index w,
                       Index c, int threads) {
  Index ph = h / 2, pw = w / 2;
  tiles(n * ph * pw, threads, [&](Index, Index lo, Index hi) {
    columns(c, [&](auto width, Index j) {
      WIDTH;
      Norm<W> normed(norm, c, j);
      for (Index r = lo; r < hi; r++) {
        const T* p = x + ((r / pw / ph * h + r / pw % ph * 2) * w + r % pw * 2) * ldx + j;
        auto sum = relu<W>(normed(load<W>(p))) + relu<W>(normed(load<W>(p + ldx))) +
                   relu<W>(normed(load<W>(p + w * ldx))) +
                   relu<W>(normed(load<W>(p + (w + 1) * ldx)));
        store<W>(out + r * c + j, sum * 0.25f);
      }
    });
  });
}

// out = a 3x3 max pool, stride 2, padding 1, of relu(norm(x)); taken: the argmax, 0..8.
template <class T>
void norm_relu_max(const T* x, Index ldx, const float* norm, T* out, uint8_t* taken, Index n,
                   Index h, Index w, Index c, int threads) {
  Index ph = (h + 1) / 2, pw = (w + 1) / 2;
  tiles(n * ph * pw, threads, [&](Index, Index lo, Index hi) {
    columns(c, [&](auto width, Index j) {
      WIDTH;
      using Word = typename Vec<W>::Word;
      Norm<W> normed(norm, c, j);
      for (Index r = lo; r < hi; r++) {
        Index image = r / pw / ph * h, top = r / pw % ph * 2 - 1, left = r % pw * 2 - 1;
        Float<W> best = Float<W>{} - 1;
        Word index{};
        for (int k = 0; k < 9; k++) {
          Index row = top + k / 3, column = left + k % 3;
          if (row < 0 || row >= h || column < 0 || column >= w) continue;
          auto v = relu<W>(normed(load<W>(x + ((image + row) * w + column) * ldx + j)));
          auto better = (v > best) | (v != v);  // the last NaN wins, as in torch
          best = better ? v : best;
          index = better ? Word{} + k : index;
        }
        store<W>(out + r * c + j, best);
        auto bytes = __builtin_convertvector(index, typename Vec<W>::Byte);
        std::memcpy(taken + r * c + j, &bytes, sizeof bytes);
      }
    });
  });
}

// Writes z's moments to out [2, c], and z to `copy` unless that is null.
template <class T>
void moments(const T* z, Index ldz, T* copy, Index ldc, double* out, Index rows, Index c,
             int threads) {
  Moments of(c, threads);
  tiles(rows, threads, [&](Index t, Index lo, Index hi) {
    ahead(z, ldz, c, hi, rows);
    if (copy) ahead(copy, ldc, c, hi, rows);
    of.tile(t, z + lo * ldz, ldz, hi - lo, copy ? copy + lo * ldc : nullptr, ldc);
  });
  of.merge(out);
}

// Backward: a pixel's gradient, directly or through an average or max pool ----------------------

template <class T>
struct Own {
  const T* da;
  Index c;
  void tile(Index, Index hi, Index rows) { ahead(da, c, c, hi, rows); }
  template <int W>
  Float<W> at(Index r, Index j) const {
    return load<W>(da + r * c + j);
  }
};

template <class T>
struct Average {
  const T* da;
  Index c, h, w, first;
  const T* of[kRows];
  void tile(Index lo, Index hi, Index) {
    first = lo;
    for (Index r = lo; r < hi; r++) {
      Index column = r % w, row = r / w % h, image = r / w / h;
      bool none = row >= h / 2 * 2 || column >= w / 2 * 2;
      of[r - lo] = none ? nullptr : da + ((image * (h / 2) + row / 2) * (w / 2) + column / 2) * c;
    }
  }
  template <int W>
  Float<W> at(Index r, Index j) const {
    return of[r - first] ? load<W>(of[r - first] + j) * 0.25f : Float<W>{};
  }
};

template <class T>
struct Max {
  const T* da;
  const uint8_t* taken;
  Index c, h, w, first;
  struct Windows {
    int count;
    Index row[4];
    int place[4];  // the pixel's position in that window, 0..8
  } of[kRows];
  void tile(Index lo, Index hi, Index) {
    first = lo;
    Index ph = (h + 1) / 2, pw = (w + 1) / 2;
    for (Index r = lo; r < hi; r++) {
      Windows& windows = of[r - lo];
      windows.count = 0;
      Index column = r % w, row = r / w % h, image = r / w / h;
      for (Index i = row / 2; i <= std::min((row + 1) / 2, ph - 1); i++)
        for (Index k = column / 2; k <= std::min((column + 1) / 2, pw - 1); k++) {
          windows.row[windows.count] = ((image * ph + i) * pw + k) * c;
          windows.place[windows.count++] = int((row + 1 - 2 * i) * 3 + column + 1 - 2 * k);
        }
    }
  }
  template <int W>
  Float<W> at(Index r, Index j) const {
    const Windows& windows = of[r - first];
    Float<W> sum{};
    for (int i = 0; i < windows.count; i++) {
      typename Vec<W>::Byte bytes;
      std::memcpy(&bytes, taken + windows.row[i] + j, sizeof bytes);
      auto mine = __builtin_convertvector(bytes, typename Vec<W>::Int) == windows.place[i];
      sum += mine ? load<W>(da + windows.row[i] + j) : Float<W>{};
    }
    return sum;
  }
};

// Adds to out [2, c] the sums of g and of g * (x - mean), where g is the gradient before the relu.
template <class T, class Gradient>
void grad_sums(const T* x, Index ldx, const float* norm, Gradient gradient, double* out,
               Index rows, Index c, int threads) {
  two_sums(rows, c, threads, out, [=](Index, Index lo, Index hi, double* sums) {
    Gradient grad = gradient;
    grad.tile(lo, hi, rows);
    ahead(x, ldx, c, hi, rows);
    columns(c, [&](auto width, Index j) {
      WIDTH;
      Norm<W> normed(norm, c, j);
      Float<W> sum{}, product{};
      for (Index r = lo; r < hi; r++) {
        auto v = load<W>(x + r * ldx + j), y = normed(v);
        auto g = y <= 0 ? Float<W>{} : grad.template at<W>(r, j);
        sum += g;
        product += g * (v - normed.mean);
      }
      add<W>(sums + j, sum);
      add<W>(sums + c + j, product);
    });
  });
}

// out = scale * g + shift + slope * (x - mean), with line [2, c]: shift, slope. out may be da.
template <class T, class Gradient>
void norm_relu_grad(const T* x, Index ldx, const float* norm, Gradient gradient, const float* line,
                    T* out, Index rows, Index c, int threads) {
  tiles(rows, threads, [=](Index, Index lo, Index hi) {
    Gradient grad = gradient;
    grad.tile(lo, hi, rows);
    ahead(x, ldx, c, hi, rows);
    columns(c, [&](auto width, Index j) {
      WIDTH;
      Norm<W> normed(norm, c, j);
      auto shift = load<W>(line + j), slope = load<W>(line + c + j);
      for (Index r = lo; r < hi; r++) {
        auto v = load<W>(x + r * ldx + j);
        auto g = normed(v) <= 0 ? Float<W>{} : grad.template at<W>(r, j);
        store<W>(out + r * c + j, g * normed.scale + (shift + sloping<W>(slope, v - normed.mean)));
      }
    });
  });
}

// out = d + shift + slope * (x - mean), with line [3, c]: mean, shift, slope.
template <class T>
void add_line(const T* d, Index ldd, const T* x, Index ldx, const float* line, T* out, Index rows,
              Index c, int threads) {
  tiles(rows, threads, [&](Index, Index lo, Index hi) {
    ahead(x, ldx, c, hi, rows);
    ahead(d, ldd, c, hi, rows);
    columns(c, [&](auto width, Index j) {
      WIDTH;
      auto mean = load<W>(line + j), shift = load<W>(line + c + j);
      auto slope = load<W>(line + 2 * c + j);
      for (Index r = lo; r < hi; r++) {
        auto v = load<W>(d + r * ldd + j) + shift;
        store<W>(out + r * c + j, v + sloping<W>(slope, load<W>(x + r * ldx + j) - mean));
      }
    });
  });
}

// Calls f with the gradient's source: no pool (h = 0), average pool (no `taken`), or max pool.
template <class T, class F>
void with_gradient(const T* da, const uint8_t* taken, Index c, Index h, Index w, F f) {
  if (h == 0)
    f(Own<T>{da, c});
  else if (taken == nullptr)
    f(Average<T>{da, c, h, w, 0, {}});
  else
    f(Max<T>{da, taken, c, h, w, 0, {}});
}

}  // namespace

#define EXPORT(T, name)                                                                            \
  void norm_relu_##name(const T* x, Index ldx, const float* norm, T* out, Index rows, Index c,     \
                        int threads) {                                                             \
    norm_relu(x, ldx, norm, out, rows, c, threads);                                                \
  }                                                                                                \
  void norm_relu_average_##name(const T* x, Index ldx, const float* norm, T* out, Index n,         \
                                Index h, Index w, Index c, int threads) {                          \
    norm_relu_average(x, ldx, norm, out, n, h, w, c, threads);                                     \
  }                                                                                                \
  void norm_relu_max_##name(const T* x, Index ldx, const float* norm, T* out, uint8_t* taken,      \
                            Index n, Index h, Index w, Index c, int threads) {                     \
    norm_relu_max(x, ldx, norm, out, taken, n, h, w, c, threads);                                  \
  }                                                                                                \
  void norm_relu_conv_##name(const T* x, Index ldx, const float* norm, const float* weight,        \
                             Index k, Index c, Index taps, Index of_c, Index of_tap, T* z,         \
                             Index ldz, double* found, Index n, Index h, Index w, int threads) {   \
    Weight<const float> of{weight, k, c, taps, of_c, of_tap};                                      \
    norm_relu_conv(x, ldx, norm, of, z, ldz, found, n, h, w, threads);                             \
  }                                                                                                \
  void norm_relu_conv_backward_##name(                                                             \
      const T* y, Index ldy, const T* d, Index ldd, const float* norm_y, const float* line,        \
      const T* x, Index ldx, const float* norm, const float* weight, Index k, Index c, Index taps, \
      Index of_c, Index of_tap, double* sums, const T* from, T* to, Index ld, float* grad,         \
      Index n, Index h, Index w, int threads) {                                                    \
    Weight<const float> of{weight, k, c, taps, of_c, of_tap};                                      \
    Asked<T> asked{sums, from, to, ld, grad};                                                      \
    if (norm_y)                                                                                    \
      norm_relu_conv_backward(NormReluGrad<T>{y, d, norm_y, line, k}, x, ldx, norm, of, asked, n, h, w,  \
                              threads);                                                            \
    else                                                                                           \
      norm_relu_conv_backward(DeferredGrad<T>{d, y, ldd, ldy, line, k}, x, ldx, norm, of, asked, n,   \
                              h, w, threads);                                                      \
  }                                                                                                \
  void moments_##name(const T* z, Index ldz, T* copy, Index ldc, double* out, Index rows,          \
                      Index c, int threads) {                                                      \
    moments(z, ldz, copy, ldc, out, rows, c, threads);                                             \
  }                                                                                                \
  void grad_sums_##name(const T* x, Index ldx, const float* norm, const T* da,                     \
                        const uint8_t* taken, Index h, Index w, double* out, Index rows, Index c,  \
                        int threads) {                                                             \
    with_gradient(da, taken, c, h, w, [&](auto gradient) {                                         \
      grad_sums(x, ldx, norm, gradient, out, rows, c, threads);                                    \
    });                                                                                            \
  }                                                                                                \
  void norm_relu_grad_##name(const T* x, Index ldx, const float* norm, const T* da,                \
                             const uint8_t* taken, Index h, Index w, const float* line, T* out,    \
                             Index rows, Index c, int threads) {                                   \
    with_gradient(da, taken, c, h, w, [&](auto gradient) {                                         \
      norm_relu_grad(x, ldx, norm, gradient, line, out, rows, c, threads);                         \
    });                                                                                            \
  }                                                                                                \
  void add_line_##name(const T* d, Index ldd, const T* x, Index ldx, const float* line, T* out,    \
                       Index rows, Index c, int threads) {                                         \
    add_line(d, ldd, x, ldx, line, out, rows, c, threads);                                         \
  }

extern "C" {
void normalisation_f32(const double* moments, Index ld, double count, const float* gamma,
                       const float* beta, double eps, float* norm, Index c, int) {
  normalisation(moments, ld, count, gamma, beta, eps, norm, c);
}
void correction_f32(const float* norm, const double* sums, double count, double* line, Index c,
                    int) {
  correction(norm, sums, count, line, c);
}
EXPORT(float, f32)
EXPORT(bf16, bf16)
}
