// attend_chunk for the amx level: the avx512vnni level's, but for the products of sealed pages
// where there are rows enough to fill tiles. Few rows wait for memory, and tiles are too coarse to
// spread the fetching over.
#include "kernels/detail/vector_avx512.inl"

#include "kernels/detail/dot_avx512vnni.inl"

#include "kernels/attention/products_amx.inl"

#include "kernels/attention/attend.inl"
#include "kernels/entries.h"

namespace musespark {

constexpr std::int64_t kLeastRows = 8;

void attend_chunk_amx(const AttendChunkArgs* args) {
  if (args->rows < kLeastRows) return attend_chunk_few_amx(args);
  attend_rows(args);
}

}  // namespace musespark
