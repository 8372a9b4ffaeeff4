// Attention of one layer over paged keys and values: heads made ready and written, then attended.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "ops/linear.h"
#include "ops/norm.h"
#include "ops/rope.h"

namespace musespark {

// The parts of a page, null where there is none, and where a layer's slabs lie in them.
struct KvPageView {
  std::uint8_t* open;
  std::uint8_t* sealed;
  KvForm form;
};
struct KvSlabs {
  std::int64_t open_offset, open_stride;  // bytes: offset + KV head * stride
  const SealedSlab* sealed[kKvForms];     // [form][KV head]
};

// Consecutive rows of one sequence: slots `position` .. position + rows - 1 of its pages; their
// rotary positions are `shift` more.
struct AttentionSpan {
  std::int64_t row;  // first row in the batch
  std::int64_t rows;
  std::int64_t position;
  const KvPageView* pages;  // by position / 64, from position 0
  bool short_rope = false;  // HeadsArgs::short_rope is its table
  std::int64_t shift = 0;
  const RopePlace* places = nullptr;    // [rows] rotary positions by axis, in place of the shift
  const std::int32_t* ahead = nullptr;  // [rows] how many rows behind it a row sees; null: none

  std::int64_t last_seen(std::int64_t r) const { return position + r + (ahead ? ahead[r] : 0); }
};

struct AttentionShape {
  bool floats;  // pages stay f32: nothing is sealed or turned into the pages' frame
  std::int64_t heads, kv_heads;
  std::int64_t head_dim;    // D as in the matrices
  std::int64_t padded_dim;  // Dp, D rounded up to 16
  std::int64_t window;      // 0: full
  float softcap;            // 0: none
  KvSlabs slabs;
  const SealedSlab& slab(KvForm form, std::int64_t kv_head) const {
    return slabs.sealed[static_cast<int>(form)][kv_head];
  }
  std::int64_t group() const { return heads / kv_heads; }
  static constexpr std::int64_t kMaxHeadDim = 512;  // kernels/rowwise: rotate
};

// Throws InvalidRequest, prefixed [op], unless the numbers make a shape.
void check_attention_shape(const char* op, const AttentionShape& shape);

struct HeadsArgs {
  Norm q_norm, k_norm;
  const RopeTable* rope;        // null: none
  const RopeTable* short_rope;  // of the spans that say so
  bool interleaved;
  float query_scale;
  const float* qkv;  // [rows][ld]: q heads, k heads, v heads, head_dim floats each
  std::int64_t ld;
  float* queries;  // out [kv_heads][rows][group][Dp]; null: keys and values alone
};

// Norms and rotates q and k heads, scales q, and (unless they stay floats) turns q, k and v into
// the pages' frame; writes k and v into the open pages and seals the pages that are full. One job.
void prepare_heads(Jobs& jobs, const KernelTable& kernels, const AttentionShape& shape,
                   std::span<const AttentionSpan> spans, std::int64_t rows, const HeadsArgs& args);

// What attend() works with between calls: lists and partial results, grown as needed and kept.
class AttentionPlan {
 public:
  // The pieces of work of a step for layers of this shape on `threads` threads. Few rows of several
  // spans that read the same sealed pages of a merge chunk (a prefix they share) become one piece,
  // so that the pages are read once for all of them.
  void make(const AttentionShape& shape, std::span<const AttentionSpan> spans, int threads);

 private:
  friend struct AttentionRun;
  friend void attend(Jobs&, const KernelTable&, const AttentionShape&,
                     std::span<const AttentionSpan>, std::int64_t, AttentionPlan&, const float*,
                     const float*, float*);
  struct Tile {  // query rows of one span that share a page, for one KV head
    std::int64_t span, kv_head, first, count;  // rows of the span
    std::int64_t chunk_begin, chunk_end;       // merge chunks with anything visible
    std::int64_t parts = -1;                   // of `parts_`, one a chunk; -1: finished at once
  };
  struct Piece {                // tiles that read the same pages, all their chunks or one of them
    std::int64_t first, count;  // of `members_`
    std::int64_t chunk_begin, chunk_end;
    std::int64_t part;  // row of `partials_` for the results; -1: finish at once
  };
  struct Group {  // tiles that read the same pages of a chunk: [begin, end) of `candidates_`
    std::int64_t begin, end;
  };
  void make_tiles(const AttentionShape& shape, std::span<const AttentionSpan> spans, int threads);
  void share_prefixes(const AttentionShape& shape, std::span<const AttentionSpan> spans);
  void split_groups(std::span<const AttentionSpan> spans, std::int64_t chunk);
  void share_chunk(const AttentionShape& shape, const Group& group, std::int64_t chunk);
  void add_pieces(const AttentionShape& shape, int threads);
  void split_tile(Tile* tile);

  std::vector<Tile> tiles_;  // those of a span's rows for all KV heads follow each other
  std::vector<Piece> pieces_;
  std::vector<std::int64_t> members_;     // tiles
  std::vector<std::int64_t> parts_;       // rows of `partials_`; -1: not given out
  std::vector<std::int64_t> candidates_;  // tiles of KV head 0
  std::vector<Group> groups_, before_;
  std::int64_t partial_rows_ = 0;
  double cost_ = 0;
  AlignedBuffer partials_;
};

std::int64_t attend_scratch_bytes(const AttentionShape& shape);

// out[kv_head][row][group][Dp] = attention of queries (same layout), in the model's frame.
// sinks: [heads] or null. One job, two where chunks are spread over threads.
void attend(Jobs& jobs, const KernelTable& kernels, const AttentionShape& shape,
            std::span<const AttentionSpan> spans, std::int64_t rows, AttentionPlan& plan,
            const float* queries, const float* sinks, float* out);

// Lays the heads of the chosen batch rows side by side: out row i is batch row chosen[i], out.cols
// = heads * D; norms each head, multiplies with sigmoid(gate) where gate [rows][ld_gate] is not
// null, and quantizes where out.q is there. One job.
void join_heads(Jobs& jobs, const KernelTable& kernels, const AttentionShape& shape,
                const float* heads, std::int64_t rows, std::span<const std::int64_t> chosen,
                const Norm& norm, const float* gate, std::int64_t ld_gate, const Rows& out);

}  // namespace musespark
