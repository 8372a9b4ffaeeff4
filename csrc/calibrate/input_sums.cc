#include "calibrate/input_sums.h"

#include <algorithm>
#include <cstring>
#include <string>

#include "base/checked.h"
#include "base/errors.h"
#include "formats/weights_codec.h"

namespace musespark {
namespace {

constexpr std::int64_t kStrip = 256;  // rows of products made at a time

float* room(AlignedBuffer* buffer, std::int64_t floats) {
  const auto bytes = static_cast<std::size_t>(floats) * sizeof(float);
  if (buffer->size() < bytes) {
    *buffer = AlignedBuffer();
    *buffer = AlignedBuffer(bytes);
  }
  return buffer->as<float>();
}

}  // namespace

void InputSums::want(const InputKey& key, std::int64_t cols, bool products) {
  if (cols < 1) throw InvalidRequest("[calibrate] inputs of " + std::to_string(cols) + " columns");
  InputSum sum;
  sum.cols = cols;
  sum.squares.assign(static_cast<std::size_t>(cols), 0.0);
  if (products) {
    const auto count = checked_mul<InvalidRequest>(cols, cols, "[calibrate] products");
    const auto bytes = checked_mul<InvalidRequest>(count, std::int64_t{4}, "[calibrate] products");
    sum.products = AlignedBuffer(static_cast<std::size_t>(bytes));
    std::memset(sum.products.data(), 0, sum.products.size());
  }
  sums_.insert_or_assign(key, std::move(sum));
}

InputSum InputSums::take(const InputKey& key) {
  const auto found = sums_.find(key);
  if (found == sums_.end()) throw InvalidRequest("[calibrate] an input that was not asked for");
  InputSum sum = std::move(found->second);
  sums_.erase(found);
  return sum;
}

std::int64_t InputSums::last_layer(std::int64_t layers) const {
  std::int64_t last = -1;
  for (const auto& [key, sum] : sums_) {
    last = std::max(last, key.what == InputOf::head ? layers : key.layer);
  }
  return last;
}

void InputSums::see(InputOf what, std::int64_t layer, std::int64_t expert, const Rows& rows) {
  const auto found = sums_.find({what, layer, expert});
  if (found == sums_.end() || rows.rows == 0) return;
  InputSum& sum = found->second;
  if (rows.cols != sum.cols) {
    throw InvalidRequest("[calibrate] inputs of " + std::to_string(rows.cols) + " columns, " +
                         std::to_string(sum.cols) + " were announced");
  }
  const Rows floats = as_floats(rows);
  add_squares(floats, &sum);
  if (sum.products.size() > 0) add_products(floats, &sum);
  sum.rows += rows.rows;
}

// Rows that exist in their quantized form alone are what the matrix multiplies: their numbers.
Rows InputSums::as_floats(const Rows& rows) {
  if (rows.x) return rows;
  Rows out{rows.rows, rows.cols, room(&floats_, rows.rows * rows.cols), rows.cols, {}, {}, {}};
  jobs_.run(rows.rows, static_cast<double>(rows.cols) * 0.5,
            [&](std::int64_t begin, std::int64_t end, int) {
              for (std::int64_t r = begin; r < end; ++r) {
                const QuantizedRows q = (rows.q64.q    ? rows.q64
                                         : rows.q256.q ? rows.q256
                                                       : rows.q1024)
                                            .slice(r, 1);
                for (std::int64_t k = 0; k < rows.cols; ++k) {
                  out.x[r * out.ldx + k] = static_cast<float>(q.q[k]) * q.scale[k / kActGroup];
                }
              }
            });
  return out;
}

void InputSums::add_squares(const Rows& rows, InputSum* sum) {
  jobs_.run(
      rows.cols, static_cast<double>(rows.rows),
      [&](std::int64_t begin, std::int64_t end, int) {
        for (std::int64_t r = 0; r < rows.rows; ++r) {
          const float* x = rows.x + r * rows.ldx;
          for (std::int64_t k = begin; k < end; ++k) {
            sum->squares[static_cast<std::size_t>(k)] +=
                static_cast<double>(x[k]) * static_cast<double>(x[k]);
          }
        }
      },
      kStrip);
}

// products += X^T . X: the columns of X as rows, times the columns of X as a packed f32 matrix.
void InputSums::add_products(const Rows& rows, InputSum* sum) {
  const std::int64_t n = rows.cols, count = rows.rows, ld = RowsBuffer::padded(n);
  const WeightLayout layout = weight_layout(WeightFormat::f32, n, count);
  float* turned = room(&turned_, n * count);
  float* packed = room(&packed_, layout.bytes / 4);
  float* strip = room(&strip_, kStrip * ld);
  jobs_.run(layout.row_blocks, static_cast<double>(kRowBlock * count),
            [&](std::int64_t begin, std::int64_t end, int) {
              for (std::int64_t k = begin * kRowBlock; k < end * kRowBlock; ++k) {
                float* at = packed + k / kRowBlock * (layout.row_block_bytes / 4) + k % kRowBlock;
                for (std::int64_t r = 0; r < count; ++r) {
                  const float x = k < n ? rows.x[r * rows.ldx + k] : 0.0f;
                  at[r * kRowBlock] = x;
                  if (k < n) turned[k * count + r] = x;
                }
              }
            });
  jobs_.reserve_scratch(linear_scratch_bytes(WeightFormat::f32, count, kStrip));
  const auto* bytes = reinterpret_cast<const std::uint8_t*>(packed);
  for (std::int64_t first = 0; first < n; first += kStrip) {
    const std::int64_t height = std::min(kStrip, n - first);
    const Rows in{height, count, turned + first * count, count, {}};
    const Matrix matrix{{bytes + first / kRowBlock * layout.row_block_bytes, layout.row_block_bytes,
                         n - first, count, WeightFormat::f32}};
    const LinearOutput output{&in, &matrix, strip, ld};
    linear(jobs_, kernels_, std::span(&output, 1));
    jobs_.run(height, static_cast<double>(n - first) * 0.3,
              [&](std::int64_t begin, std::int64_t end, int) {
                for (std::int64_t i = begin; i < end; ++i) {
                  float* to = sum->products.as<float>() + (first + i) * n + first;
                  for (std::int64_t j = i; j < n - first; ++j) to[j] += strip[i * ld + j];
                }
              });
  }
}

}  // namespace musespark
