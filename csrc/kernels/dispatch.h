// The dispatch table: one entry per instruction-set level, best first, scalar last.
#pragma once

#include "base/cpu.h"
#include "kernels/attention/attention.h"
#include "kernels/attention/whole.h"
#include "kernels/image/image.h"
#include "kernels/qmatmul/qmatmul.h"
#include "kernels/rowwise/rowwise.h"

namespace musespark {

struct KernelTable {
  Isa isa;
  QuantizeRowsFn quantize_rows;
  MatmulFn matmul;
  AttendChunkFn attend_chunk;
  MergeFn attention_merge;
  FinishFn attention_finish;
  WriteTokenFn write_token;
  SealPageFn seal_page;
  WholePackFn whole_pack;
  WholeAttendFn whole_attend;
  RowwiseKernels rowwise;
  ImageKernels image;
};

// Whether the level has a table (on any machine).
bool has_kernel_table(Isa isa);
// The table of a level this machine can run; throws Error for one it cannot.
const KernelTable& kernel_table(Isa isa);
// The table in use: the best level, or the one MUSESPARK_ISA names. Chosen once.
const KernelTable& kernels();

}  // namespace musespark
