// Decodes a rectangle of a JPEG file with the libjpeg that Pillow has loaded.
//
// Rows above the rectangle are skipped, rows below are never read, and within a row only the DCT
// blocks that the rectangle needs are transformed. The pixels equal those of a full decode bit for
// bit: a margin is decoded too, since chroma upsampling reads neighbours, and libjpeg upsamples
// one or two columns differently.
//
// No libjpeg header is needed: the structs below declare its 6.2 ABI on 64-bit machines, and
// libjpeg checks that itself (jpeg_CreateDecompress compares version and size).
#include <dlfcn.h>

#include <algorithm>
#include <csetjmp>
#include <cstddef>
#include <cstdlib>
#include <cstring>
#include <new>

#include "resize.h"

namespace {

constexpr int kVersion = 62, kGrey = 1, kRgb = 2;
constexpr unsigned kRows = 1, kColumns = 16;  // the margin decoded around the rectangle
static_assert(sizeof(void*) == 8, "the structs below are those of 64-bit machines");

struct Decompress;
struct Errors {
  void (*error_exit)(Decompress*);
  void (*emit_message)(Decompress*, int level);
  void* others[3];
  char rest[128];
  jmp_buf failed;  // ours, not libjpeg's
};
struct Decompress {
  Errors* err;
  void *mem, *progress, *client_data;
  int is_decompressor, global_state;
  void* src;
  unsigned image_width, image_height;
  int num_components, jpeg_color_space, out_color_space;
  unsigned scale_num, scale_denom;
  double output_gamma;
  int options[12];  // the defaults: accurate DCT, fancy upsampling
  unsigned output_width, output_height;
  int sizes[4];
  void* colormap;
  unsigned output_scanline;
  char rest[460];
};
static_assert(offsetof(Decompress, output_width) == 136);
static_assert(offsetof(Decompress, output_scanline) == 168 && sizeof(Decompress) == 632);

struct Library {
  Errors* (*std_error)(Errors*);
  void (*create)(Decompress*, int version, size_t size);
  void (*source)(Decompress*, const unsigned char*, unsigned long);
  int (*read_header)(Decompress*, int);
  int (*start)(Decompress*);
  void (*crop)(Decompress*, unsigned* left, unsigned* width);
  unsigned (*skip)(Decompress*, unsigned rows);
  unsigned (*read)(Decompress*, unsigned char** rows, unsigned count);
  int (*finish)(Decompress*);
  void (*destroy)(Decompress*);
} library;

void fail(Decompress* jpeg) { longjmp(jpeg->err->failed, 1); }
void warn(Decompress* jpeg, int level) {
  if (level < 0) fail(jpeg);  // corrupt data: leave the file to Pillow
}

template <class Function>
bool find(void* handle, const char* name, Function& function) {
  function = reinterpret_cast<Function>(dlsym(handle, name));
  return function != nullptr;
}

void start(Decompress& jpeg, Errors& errors) {
  jpeg.err = library.std_error(&errors);
  errors.error_exit = fail;
  errors.emit_message = warn;
}

}  // namespace

// Loads the libjpeg at `path`. Returns 0 if it cannot be used.
extern "C" int use_library(const char* path) {
  void* handle = dlopen(path, RTLD_NOW);
  Library& l = library;
  if (!handle || !find(handle, "jpeg_std_error", l.std_error) ||
      !find(handle, "jpeg_CreateDecompress", l.create) ||
      !find(handle, "jpeg_mem_src", l.source) || !find(handle, "jpeg_read_header", l.read_header) ||
      !find(handle, "jpeg_start_decompress", l.start) ||
      !find(handle, "jpeg_crop_scanline", l.crop) ||
      !find(handle, "jpeg_skip_scanlines", l.skip) ||
      !find(handle, "jpeg_read_scanlines", l.read) ||
      !find(handle, "jpeg_finish_decompress", l.finish) ||
      !find(handle, "jpeg_destroy_decompress", l.destroy))
    return 0;
  Errors errors{};
  Decompress jpeg{};
  start(jpeg, errors);
  if (setjmp(errors.failed)) return 0;
  l.create(&jpeg, kVersion, sizeof jpeg);
  l.destroy(&jpeg);
  return 1;
}

namespace {

// Part of an image, in pixels of the file.
struct Part {
  unsigned top, left, height, width;
  bool to_end = false;  // decode the rows below it too, whose damage would else not be seen
};

// Decodes `part` and passes its rows to `take(rows, stride, count)`, kLanes at a time. A
// `denominator` of 2, 4 or 8 decodes the image at 1/2, 1/4 or 1/8 of its size; the part's edges are
// then rounded outward to whole pixels. Returns 0 if libjpeg warns or fails.
//
// No local may have a destructor: libjpeg's errors longjmp past it.
template <class Take>
int decode(const unsigned char* file, size_t size, int channels, unsigned denominator, Part part,
           Take& take) {
  Errors errors{};
  Decompress jpeg{};
  unsigned char* volatile strip = nullptr;
  start(jpeg, errors);
  if (setjmp(errors.failed)) {
    library.destroy(&jpeg);
    std::free(strip);
    return 0;
  }
  library.create(&jpeg, kVersion, sizeof jpeg);
  library.source(&jpeg, file, size);
  library.read_header(&jpeg, 1);
  if (part.left + part.width > jpeg.image_width || part.top + part.height > jpeg.image_height)
    fail(&jpeg);
  jpeg.out_color_space = channels == 1 ? kGrey : kRgb;
  jpeg.scale_num = 1;
  jpeg.scale_denom = denominator;
  library.start(&jpeg);

  const unsigned top = part.top / denominator, left = part.left / denominator;
  const unsigned bottom = (part.top + part.height + denominator - 1) / denominator;
  const unsigned right = (part.left + part.width + denominator - 1) / denominator;
  unsigned first = left > kColumns ? left - kColumns : 0, above = top > kRows ? top - kRows : 0;
  unsigned last = right + kColumns;
  unsigned columns = (last < jpeg.output_width ? last : jpeg.output_width) - first;
  library.crop(&jpeg, &first, &columns);  // moves `first` left, to a block's edge
  if (above) library.skip(&jpeg, above);
  const size_t stride = size_t(jpeg.output_width) * channels + kLanes;
  strip = static_cast<unsigned char*>(std::calloc(kLanes, stride));
  if (!strip) fail(&jpeg);
  unsigned char* rows[kLanes];
  for (int i = 0; i < kLanes; i++) rows[i] = strip + i * stride;
  while (jpeg.output_scanline < top)
    if (library.read(&jpeg, rows, 1) != 1) fail(&jpeg);
  while (jpeg.output_scanline < bottom) {
    const unsigned begin = jpeg.output_scanline, end = std::min(begin + kLanes, bottom);
    while (jpeg.output_scanline < end)
      if (!library.read(&jpeg, rows + jpeg.output_scanline - begin, end - jpeg.output_scanline))
        fail(&jpeg);
    take(rows[0] + size_t(left - first) * channels, stride, static_cast<int>(end - begin));
  }
  while (part.to_end && jpeg.output_scanline < jpeg.output_height)
    if (!library.read(&jpeg, rows, kLanes)) fail(&jpeg);
  // only after the last row, as Pillow does: data after it may be corrupt, too
  if (jpeg.output_scanline == jpeg.output_height) library.finish(&jpeg);
  library.destroy(&jpeg);
  std::free(strip);
  return 1;
}

// The resize weights along one side of a part: `length` pixels from `start` to `size` outputs.
Taps along(unsigned start, unsigned length, unsigned denominator, int size) {
  const double times = denominator, begin = start / times;
  const unsigned low = start / denominator;
  const unsigned high = (start + length + denominator - 1) / denominator;
  return {static_cast<int>(high - low), size, begin - low, length / times / size};
}

}  // namespace

// Writes rows top..top + height and columns left..left + width to out, [height, width, channels],
// with 1 or 3 channels. Returns 0 if Pillow has to decode the file.
extern "C" int read_rectangle(const unsigned char* file, size_t size, int channels, unsigned top,
                              unsigned left, unsigned height, unsigned width, unsigned char* out) {
  const size_t bytes = size_t(width) * channels;
  auto copy = [&](const unsigned char* rows, size_t stride, int count) {
    for (int i = 0; i < count; i++, out += bytes) std::memcpy(out, rows + i * stride, bytes);
  };
  return decode(file, size, channels, 1, {top, left, height, width}, copy);
}

// The same rectangle, resized to out, [channels, side, side], after decoding at 1/denominator of
// the image's size.
extern "C" int read_square(const unsigned char* file, size_t size, int channels, unsigned top,
                           unsigned left, unsigned height, unsigned width, unsigned denominator,
                           int side, int mirrored, unsigned char* out) {
  try {
    const Taps across = along(left, width, denominator, side);
    const Taps down = along(top, height, denominator, side);
    Resizer resizer(channels, across, down, mirrored, out);
    auto take = [&](const unsigned char* rows, size_t stride, int count) {
      resizer.take(rows, stride, count);
    };
    return decode(file, size, channels, denominator, {top, left, height, width}, take);
  } catch (const std::bad_alloc&) {
    return 0;
  }
}

// An image of height x width, resized to to_height x to_width, of which the square of `side` pixels
// at (top, left) is written to out, [channels, side, side]. Only what it takes is decoded.
extern "C" int read_window(const unsigned char* file, size_t size, int channels, int height,
                           int width, int to_height, int to_width, int top, int left, int side,
                           unsigned char* out) {
  try {
    Taps across(width, to_width, 0, double(width) / to_width);
    Taps down(height, to_height, 0, double(height) / to_height);
    const unsigned x = across.keep(left, side), y = down.keep(top, side);
    Resizer resizer(channels, across, down, false, out);
    auto take = [&](const unsigned char* rows, size_t stride, int count) {
      resizer.take(rows, stride, count);
    };
    const Part part{y, x, unsigned(down.inputs), unsigned(across.inputs), true};
    return decode(file, size, channels, 1, part, take);
  } catch (const std::bad_alloc&) {
    return 0;
  }
}
