// Attention over whole texts with AMX int8 tiles: 32 query rows meet all keys, and their sums go to
// the second-level cache; then sixteen rows at a time become weights, one row after the other,
// while the tiles multiply the weights of the sixteen before with the values.
#pragma once

#include <immintrin.h>

#include <cstdint>

#include "kernels/attention/whole.inl"

namespace musespark {
namespace {

constexpr std::int64_t kDepth = 64;  // channels or keys of a product
constexpr std::int64_t kSums = 256;  // of a tile
constexpr std::int64_t kSpread =
    64;  // bytes between rows beyond their keys, against a power of two
constexpr std::int64_t kScoreRows = 2 * kWholeRows;

// All tiles are 16 rows of 64 bytes.
void start_tiles() {
  struct alignas(64) {
    std::uint8_t palette = 1, start_row = 0, reserved[14] = {};
    std::uint16_t row_bytes[16] = {};
    std::uint8_t rows[16] = {};
  } config;
  for (int i = 0; i < 8; ++i) {
    config.row_bytes[i] = 64;
    config.rows[i] = 16;
  }
  // GCC 12's intrinsic names only the first bytes as read; this keeps the stores of the rest.
  __asm__ volatile("" : : "r"(&config) : "memory");
  _tile_loadconfig(&config);
}

void zero_tiles() {
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
}

void barrier() { __asm__ volatile("" ::: "memory"); }

// Sums of 32 query rows [32][depth] and all keys: rows `stride` bytes apart.
void whole_scores(const WholeHead& head, const dot_weight* query, std::int64_t depth,
                  std::int32_t* dots, std::int64_t stride) {
  const std::int64_t block = 16 * depth, pairs = 2 * whole_pages(head);
  std::int32_t* lower = dots + kWholeRows * stride / 4;
  const auto store = [&](std::int64_t pair) {
    _tile_stored(0, dots + 32 * pair, stride);
    _tile_stored(1, dots + 32 * pair + 16, stride);
    _tile_stored(2, lower + 32 * pair, stride);
    _tile_stored(3, lower + 32 * pair + 16, stride);
  };
  for (std::int64_t pair = 0; pair < pairs; ++pair) {
    const std::uint8_t* codes = head.keys + 2 * pair * block;
    if (pair > 0) store(pair - 1);
    zero_tiles();
    for (std::int64_t d = 0; d < depth; d += kDepth, codes += 16 * kDepth) {
      _tile_loadd(4, query + d, depth);
      _tile_loadd(6, codes, 64);
      _tile_dpbssd(0, 4, 6);
      _tile_loadd(7, codes + block, 64);
      _tile_dpbssd(1, 4, 7);
      _tile_loadd(5, query + kWholeRows * depth + d, depth);
      _tile_dpbssd(2, 5, 6);
      _tile_dpbssd(3, 5, 7);
    }
  }
  store(pairs - 1);
  barrier();
}

// Sixteen rows of weights on their way through the values, a page at a time.
class WholeValues {
 public:
  WholeValues(const WholeHead& head, std::int32_t* sums)
      : head_(head), dim_(value_dim(head)), sums_(sums) {}

  bool busy() const { return left_ > 0; }
  std::int64_t left() const { return left_; }

  // Planes [16][stride], pages [begin, end); a [16][D padded] gets the sums added.
  void start(const dot_weight* low, const dot_weight* high, std::int64_t stride, std::int64_t begin,
             std::int64_t end, float* a) {
    low_ = low;
    high_ = high;
    stride_ = stride;
    page_ = begin_ = begin;
    end_ = end;
    d_ = 0;
    a_ = a;
    left_ = (end - begin) * ((dim_ + 31) / 32);
  }

  void advance(std::int64_t pages) {
    for (; pages > 0 && left_ > 0; --pages, --left_) {
      if (page_ == begin_) zero_tiles();
      if (dim_ - d_ > 16) {
        multiply<2>();
      } else {
        multiply<1>();
      }
      if (++page_ == end_) finish();
    }
  }

 private:
  template <int kBlocks>
  void multiply() {
    const std::uint8_t* codes = head_.values + page_ * kWholePage * dim_ + 4 * d_;
    _tile_loadd(4, low_ + page_ * kWholePage, stride_);
    _tile_loadd(6, codes, 4 * dim_);
    _tile_dpbusd(0, 4, 6);
    _tile_loadd(5, high_ + page_ * kWholePage, stride_);
    _tile_dpbusd(2, 5, 6);
    if constexpr (kBlocks > 1) {
      _tile_loadd(7, codes + 64, 4 * dim_);
      _tile_dpbusd(1, 4, 7);
      _tile_dpbusd(3, 5, 7);
    }
  }

  // The channels' sums to `a`.
  void finish() {
    _tile_stored(0, sums_, 64);
    _tile_stored(1, sums_ + kSums, 64);
    _tile_stored(2, sums_ + 2 * kSums, 64);
    _tile_stored(3, sums_ + 3 * kSums, 64);
    barrier();
    for (std::int64_t b = 0; b < 2 && d_ + 16 * b < dim_; ++b) {
      for (std::int64_t r = 0; r < kWholeRows; ++r) {
        float* to = a_ + r * dim_ + d_ + 16 * b;
        const std::int32_t* low = sums_ + b * kSums + 16 * r;
        vstore(to, vadd(vload(to), whole_joined(iload(low), iload(low + 2 * kSums))));
      }
    }
    d_ += 32;
    page_ = begin_;
  }

  const WholeHead& head_;
  std::int64_t dim_;
  std::int32_t* sums_;  // [2 planes][2 blocks][16][16]
  const dot_weight *low_ = nullptr, *high_ = nullptr;
  std::int64_t stride_ = 0, begin_ = 0, end_ = 0, page_ = 0, d_ = 0, left_ = 0;
  float* a_ = nullptr;
};

// Sixteen rows, from their sums to `out`.
struct WholeSixteen {
  WholeRow row[kWholeRows];
  float largest[kWholeRows];
  std::int64_t rows = 0;  // that exist
  dot_weight *low, *high;
  float* out;
  float a[kWholeRows * kWholeMostDim];
};

class WholeRows {
 public:
  WholeRows(const WholeHead& head, float factor, float* out, std::int64_t ldo, void* scratch)
      : head_(head),
        factor_(factor),
        out_(out),
        ldo_(ldo),
        depth_(rounded_up(head.head_dim, kDepth)),
        keys_(whole_pages(head) * kWholePage),
        dots_(static_cast<std::int32_t*>(scratch)),
        values_(head, dots_ + kScoreRows * (keys_ + kSpread / 4)) {
    auto* at =
        reinterpret_cast<dot_weight*>(dots_ + kScoreRows * (keys_ + kSpread / 4) + 4 * kSums);
    query_ = at;
    at += kScoreRows * depth_;
    for (WholeSixteen& rows : kept_) {
      rows.low = at;
      rows.high = at + kWholeRows * stride();
      at += 2 * kWholeRows * stride();
    }
  }

  void run(const float* q, std::int64_t ldq, std::int64_t rows) {
    start_tiles();
    for (std::int64_t r = 0; r < rows; r += kScoreRows) {
      const std::int64_t count = rows - r < kScoreRows ? rows - r : kScoreRows;
      WholeRow row[kScoreRows];
      for (std::int64_t i = 0; i < kScoreRows; ++i) {
        dot_weight* codes = query_ + i * depth_;
        if (i < count) {
          whole_query(q + (r + i) * ldq, ldq, head_.head_dim, depth_, factor_, codes, &row[i]);
        } else {
          __builtin_memset(codes, 0, static_cast<std::size_t>(depth_));
        }
      }
      finish_values();  // the products of scores take its tiles
      whole_scores(head_, query_, depth_, dots_, 4 * (keys_ + kSpread / 4));
      for (std::int64_t half = 0; half < count; half += kWholeRows) {
        sixteen(row + half, r + half, count - half, dots_ + half * (keys_ + kSpread / 4));
      }
    }
    finish_values();
    _tile_release();
  }

 private:
  std::int64_t stride() const { return keys_ + kSpread; }

  void sixteen(const WholeRow* row, std::int64_t first, std::int64_t left,
               const std::int32_t* dots) {
    WholeSixteen& rows = kept_[n_++ % 2];
    rows.rows = left < kWholeRows ? left : kWholeRows;
    rows.out = out_ + first * ldo_;
    for (std::int64_t i = 0; i < kWholeRows * value_dim(head_); i += 16) {
      vstore(rows.a + i, vset(0.0f));
    }
    for (std::int64_t g = 0; g < whole_pages(head_); g += kWholeSumPages) {
      const std::int64_t end =
          whole_pages(head_) - g < kWholeSumPages ? whole_pages(head_) : g + kWholeSumPages;
      for (std::int64_t i = 0; i < rows.rows; ++i) {
        const std::int32_t* own = dots + i * (keys_ + kSpread / 4);
        if (g == 0) {
          rows.row[i] = row[i];
          rows.largest[i] = whole_largest(head_, own, &rows.row[i]);
          rows.row[i].sum = 0.0f;
        }
        weigh(&rows, i, own, g, end);
        values_.advance((values_.left() + rows.rows - i - 1) / (rows.rows - i));
      }
      finish_values();
      pending_ = &rows;
      values_.start(rows.low, rows.high, stride(), g, end, rows.a);
    }
  }

  void weigh(WholeSixteen* rows, std::int64_t i, const std::int32_t* dots, std::int64_t begin,
             std::int64_t end) {
    dot_weight *low = rows->low + i * stride(), *high = rows->high + i * stride();
    WholeRow& row = rows->row[i];
    if (row.usable) {
      row.sum += static_cast<float>(
          whole_weights(head_, dots, row, rows->largest[i], begin, end, low, high));
    } else {
      __builtin_memset(low, 0, static_cast<std::size_t>(keys_));
      __builtin_memset(high, 0, static_cast<std::size_t>(keys_));
    }
  }

  // What is under way goes through the rest of the values, and if these were the last, to `out`.
  void finish_values() {
    values_.advance(values_.left());
    if (!pending_) return;
    const std::int64_t dim = value_dim(head_);
    for (std::int64_t r = 0; r < pending_->rows; ++r) {
      for (std::int64_t d = 0; d < dim; d += 16) {
        whole_finish(head_, pending_->row[r], d, vload(pending_->a + r * dim + d),
                     pending_->out + r * ldo_);
      }
    }
    pending_ = nullptr;
  }

  const WholeHead& head_;
  float factor_;
  float* out_;
  std::int64_t ldo_, depth_, keys_;
  std::int32_t* dots_;  // [32][keys + a line]
  WholeValues values_;
  dot_weight* query_;  // [32][depth]
  WholeSixteen kept_[2];
  WholeSixteen* pending_ = nullptr;
  std::int64_t n_ = 0;
};

}  // namespace
}  // namespace musespark
