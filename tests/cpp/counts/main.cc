// kernel_counts [--more]: runs each hot kernel once, in a function of its own named count_<case>,
// for a tool that counts instructions (tests/support/instruction_counts.py). Prints the compiler.
// --more gives every kernel at least 6% more to do: the check must see it.
//
// The AVX2 kernels are counted: valgrind knows no later instructions. Sizes are fixed, so are the
// data, and no kernel of that level branches on them but for numbers that are not finite.
#include <cstdio>
#include <cstring>
#include <memory>
#include <vector>

#include "base/aligned.h"
#include "base/float_env.h"
#include "formats/weights_codec.h"
#include "kernels/dispatch.h"

namespace musespark::counts {

class Random {
 public:
  std::uint32_t word() { return state_ = state_ * 1664525u + 1013904223u; }
  float number() { return static_cast<float>(word() >> 8) * 0x1p-23f - 1.0f; }
  void fill(float* to, std::int64_t count) {
    for (std::int64_t i = 0; i < count; ++i) to[i] = number();
  }

 private:
  std::uint32_t state_ = 1;
};

template <class T>
class Array {
 public:
  explicit Array(std::int64_t count)
      : memory_(static_cast<std::size_t>(count) * sizeof(T) + 64), count_(count) {}
  T* data() { return reinterpret_cast<T*>(memory_.data()); }
  std::int64_t size() const { return count_; }

 private:
  AlignedBuffer memory_;
  std::int64_t count_;
};

// Rows quantized and as floats, a packed matrix of random codes, and room for the product.
struct Product {
  Product(const KernelTable& table, WeightFormat format, std::int64_t rows, std::int64_t cols,
          std::int64_t m)
      : kernels(table),
        layout(weight_layout(format, rows, cols)),
        packed(layout.bytes),
        x(m * cols),
        q(m * cols),
        scale(m * cols / kActGroup),
        bias(m * cols / kActGroup),
        half_bias(m * cols / kActGroup * 2),
        out(m * rows),
        scratch(matmul_scratch_bytes(format, cols, m)) {
    Random random;
    for (std::int64_t i = 0; i < packed.size(); ++i) {
      packed.data()[i] = static_cast<std::uint8_t>(random.word() >> 24);
    }
    for (std::int64_t block = 0; block < layout.row_blocks; ++block) {
      fill_scales(packed.data() + block * layout.row_block_bytes);
    }
    random.fill(x.data(), x.size());
    quantized = {q.data(), scale.data(), bias.data(), half_bias.data(),
                 m,        cols,         cols,        act_scale_cols(format)};
    kernels.quantize_rows(x.data(), cols, m, cols, &quantized);
    args.w = {packed.data(), layout.row_block_bytes, rows, cols, format};
    args.xq = &quantized;
    args.m = m;
    args.block_end = layout.row_blocks;
    args.out = out.data();
    args.ldo = rows;
    args.scratch = scratch.data();
  }

  void fill_scales(std::uint8_t* block) const {
    const float one = 1.0f;
    for (int row = 0; row < kRowBlock; ++row) std::memcpy(block + 4 * row, &one, 4);
    const std::uint16_t half = 0x2c00;  // 1/16
    for (std::int64_t i = 0; i < layout.blocks * kRowBlock; ++i) {
      std::memcpy(block + layout.block_offset + 2 * i, &half, 2);
    }
  }

  const KernelTable& kernels;
  WeightLayout layout;
  Array<std::uint8_t> packed;
  Array<float> x;
  Array<std::int8_t> q;
  Array<float> scale;
  Array<std::int32_t> bias, half_bias;
  QuantizedRows quantized{};
  Array<float> out;
  Array<std::byte> scratch;
  MatmulArgs args{};
};

// Rows of queries against one chunk of sealed pages, all of which they see: decoding, the heads of
// one group.
struct Attention {
  Attention(const KernelTable& table, std::int64_t rows, std::int64_t dim)
      : kernels(table),
        q(rows * dim),
        positions(static_cast<std::size_t>(rows), 2 * kMergeChunk - 1),
        firsts(static_cast<std::size_t>(rows), 0),
        partial(rows),
        o(rows * dim),
        scratch(attention_scratch_bytes(rows, dim)),
        formats(2 * kPagesPerChunk, KvFormat::kv8) {
    Random random;
    random.fill(q.data(), q.size());
    for (int page = 0; page < kPagesPerChunk; ++page) add_page(random, dim);
    args.head_dim = dim;
    args.rows = rows;
    args.q = q.data();
    args.ldq = dim;
    args.pos = args.hi = positions.data();
    args.lo = firsts.data();
    args.formats = formats.data();
    args.open = open;
    args.sealed = sealed;
    args.partial = partial.data();
    args.o = o.data();
    args.scratch = scratch.data();
  }

  void add_page(Random& random, std::int64_t dim) {
    Array<std::uint8_t> slab(open_page_bytes(KvFormat::kv8, dim));
    Array<float> token(2 * dim);
    for (int slot = 0; slot < kPageTokens; ++slot) {
      random.fill(token.data(), token.size());
      kernels.write_token(KvFormat::kv8, dim, slot, token.data(), token.data() + dim, slab.data());
    }
    const std::size_t page = pages.size();
    pages.push_back(std::make_unique<Array<std::uint8_t>>(sealed_page_bytes(KvFormat::kv8, dim)));
    kernels.seal_page(KvFormat::kv8, dim, slab.data(), pages.back()->data());
    sealed[page] = pages.back()->data();
  }

  const KernelTable& kernels;
  Array<float> q;
  std::vector<std::int64_t> positions, firsts;
  std::vector<std::unique_ptr<Array<std::uint8_t>>> pages;
  const std::uint8_t* open[kPagesPerChunk] = {};
  const std::uint8_t* sealed[kPagesPerChunk] = {};
  Array<AttentionPartial> partial;
  Array<float> o;
  Array<std::byte> scratch;
  std::vector<KvFormat> formats;
  AttendChunkArgs args{};
};

}  // namespace musespark::counts

using namespace musespark;
using namespace musespark::counts;

// What is counted: C names for the tool, and something behind each call, or it would be a jump.
extern "C" {
[[gnu::noinline]] void count_q4_1_row(Product& p) {
  p.kernels.matmul(&p.args);
  asm volatile("" ::: "memory");
}
[[gnu::noinline]] void count_q4_128_rows(Product& p) {
  p.kernels.matmul(&p.args);
  asm volatile("" ::: "memory");
}
[[gnu::noinline]] void count_q8_1_row(Product& p) {
  p.kernels.matmul(&p.args);
  asm volatile("" ::: "memory");
}
[[gnu::noinline]] void count_q8_128_rows(Product& p) {
  p.kernels.matmul(&p.args);
  asm volatile("" ::: "memory");
}
[[gnu::noinline]] void count_attend_chunk_kv8_4_rows(Attention& a) {
  a.kernels.attend_chunk(&a.args);
  asm volatile("" ::: "memory");
}
[[gnu::noinline]] void count_quantize_128_rows(Product& p) {
  p.kernels.quantize_rows(p.x.data(), p.quantized.cols, p.args.m, p.quantized.cols, &p.quantized);
  asm volatile("" ::: "memory");
}
}

int main(int argc, char** argv) {
  const FloatEnv environment;
  const bool more = argc > 1 && std::strcmp(argv[1], "--more") == 0;
  const std::int64_t rows = more ? 17 * 64 : 16 * 64, m = more ? 136 : 128;
  const KernelTable& kernels = kernel_table(Isa::avx2);
#if defined(__clang__)
  std::printf("Clang %s\n", __clang_version__);
#else
  std::printf("GCC %s\n", __VERSION__);
#endif
  Product q4_one(kernels, WeightFormat::q4, rows, 2048, 1);
  Product q4_many(kernels, WeightFormat::q4, rows / 4, 1024, 128);
  Product q8_one(kernels, WeightFormat::q8, rows, 2048, 1);
  Product q8_many(kernels, WeightFormat::q8, rows / 4, 1024, m);
  Attention attention(kernels, 4, more ? 144 : 128);
  count_q4_1_row(q4_one);
  count_q4_128_rows(q4_many);
  count_q8_1_row(q8_one);
  count_q8_128_rows(q8_many);
  count_attend_chunk_kv8_4_rows(attention);
  count_quantize_128_rows(q8_many);
  return 0;
}
