#include "kernels/dispatch.h"

#include <cstdlib>
#include <string>

#include "base/errors.h"
#include "kernels/entries.h"

#if defined(__x86_64__) && defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace musespark {
namespace {

// Best first, scalar last. A level without an own kernel for an operation names that of the level
// below it.
const KernelTable kTables[] = {
#if defined(__x86_64__)
    {Isa::amx, quantize_rows_avx512vnni, matmul_amx, attend_chunk_amx, attention_merge_avx512vnni,
     attention_finish_avx512vnni, write_token_avx512vnni, seal_page_avx512vnni, whole_pack_amx,
     whole_attend_amx, rowwise_avx512vnni, image_avx512vnni},
    {Isa::avx512vnni, quantize_rows_avx512vnni, matmul_avx512vnni, attend_chunk_avx512vnni,
     attention_merge_avx512vnni, attention_finish_avx512vnni, write_token_avx512vnni,
     seal_page_avx512vnni, whole_pack_avx512vnni, whole_attend_avx512vnni, rowwise_avx512vnni,
     image_avx512vnni},
    {Isa::avxvnni, quantize_rows_avx2, matmul_avxvnni, attend_chunk_avx2, attention_merge_avx2,
     attention_finish_avx2, write_token_avx2, seal_page_avx2, whole_pack_avx2, whole_attend_avx2,
     rowwise_avx2, image_avx2},
    {Isa::avx2, quantize_rows_avx2, matmul_avx2, attend_chunk_avx2, attention_merge_avx2,
     attention_finish_avx2, write_token_avx2, seal_page_avx2, whole_pack_avx2, whole_attend_avx2,
     rowwise_avx2, image_avx2},
#elif defined(__aarch64__)
    {Isa::i8mm, quantize_rows_neon, matmul_i8mm, attend_chunk_i8mm, attention_merge_neon,
     attention_finish_neon, write_token_neon, seal_page_neon, whole_pack_neon, whole_attend_neon,
     rowwise_neon, image_neon},
    {Isa::neon, quantize_rows_neon, matmul_neon, attend_chunk_neon, attention_merge_neon,
     attention_finish_neon, write_token_neon, seal_page_neon, whole_pack_neon, whole_attend_neon,
     rowwise_neon, image_neon},
#endif
    {Isa::scalar, quantize_rows_scalar, matmul_scalar, attend_chunk_scalar, attention_merge_scalar,
     attention_finish_scalar, write_token_scalar, seal_page_scalar, whole_pack_scalar,
     whole_attend_scalar, rowwise_scalar, image_scalar},
};

const KernelTable* find(Isa isa) {
  for (const KernelTable& table : kTables) {
    if (table.isa == isa) return &table;
  }
  return nullptr;
}

// Linux grants the large tile state to a process that asks, for all of its threads.
// False if it refuses, as it does when an alternate signal stack is too small for the state.
bool request_tile_data() {
#if defined(__x86_64__) && defined(__linux__)
  constexpr int kRequestPermission = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM
  static const bool granted = syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
  return granted;
#else
  return false;
#endif
}

// Whether the level's kernels may run: beyond the instructions, tiles need the system's permission.
bool permitted(Isa isa) { return isa != Isa::amx || request_tile_data(); }

const KernelTable& choose() {
  const bool forced = std::getenv("MUSESPARK_ISA") != nullptr;
  for (const Isa isa : isa_levels()) {
    const KernelTable* table = find(isa);
    if (!table) continue;
    if (permitted(isa)) return *table;
    if (forced) throw Error("MUSESPARK_ISA: the system refuses the tile state that amx needs");
  }
  throw Error("no kernel table for this machine");
}

}  // namespace

bool has_kernel_table(Isa isa) { return find(isa) != nullptr; }

const KernelTable& kernel_table(Isa isa) {
  for (const IsaStatus& status : isa_report()) {
    if (status.isa != isa) continue;
    if (!status.present) throw Error(std::string(isa_name(isa)) + ": " + status.reason);
    const KernelTable* table = find(isa);
    if (table && permitted(isa)) return *table;
    if (table) throw Error(std::string(isa_name(isa)) + ": the system refuses the tile state");
  }
  throw Error(std::string("no kernels for level ") + isa_name(isa));
}

const KernelTable& kernels() {
  static const KernelTable& table = choose();
  return table;
}

}  // namespace musespark
