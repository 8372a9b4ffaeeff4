// Every kernel entry point, by the name grammar of kernels/README.md: <operation>_<isa>.
// Only dispatch.cc and the kernel files themselves include this.
#pragma once

#include "kernels/attention/attention.h"
#include "kernels/attention/whole.h"
#include "kernels/image/image.h"
#include "kernels/qmatmul/qmatmul.h"
#include "kernels/rowwise/rowwise.h"

namespace musespark {

// qmatmul/
void quantize_rows_scalar(const float* x, std::int64_t ldx, std::int64_t m, std::int64_t k,
                          const QuantizedRows* out);
void matmul_scalar(const MatmulArgs* args);

// attention/
void attend_chunk_scalar(const AttendChunkArgs* args);
void attention_merge_scalar(std::int64_t rows, std::int64_t d, AttentionPartial* state, float* o,
                            const AttentionPartial* other, const float* other_o);
void attention_finish_scalar(std::int64_t rows, std::int64_t d, const AttentionPartial* state,
                             const float* o, const float* sink, float* out, std::int64_t ldo,
                             std::int64_t head_dim_out);
void write_token_scalar(KvFormat format, std::int64_t d, std::int64_t slot, const float* k,
                        const float* v, std::uint8_t* open);
void seal_page_scalar(KvFormat format, std::int64_t d, const std::uint8_t* open,
                      std::uint8_t* sealed);
void whole_pack_scalar(const float* k, const float* v, std::int64_t ld, const WholeHead* to);
void whole_attend_scalar(const WholeHead* head, const float* q, std::int64_t ldq, std::int64_t rows,
                         float factor, float* out, std::int64_t ldo, void* scratch);

// rowwise/
extern const RowwiseKernels rowwise_scalar;

// image/
extern const ImageKernels image_scalar;

#if defined(__x86_64__)

// qmatmul/
void quantize_rows_avx2(const float* x, std::int64_t ldx, std::int64_t m, std::int64_t k,
                        const QuantizedRows* out);
void matmul_avx2(const MatmulArgs* args);
void matmul_float_avx2(const MatmulArgs* args);  // the f32 and bf16 part of the line above
void matmul_avxvnni(const MatmulArgs* args);
void quantize_rows_avx512vnni(const float* x, std::int64_t ldx, std::int64_t m, std::int64_t k,
                              const QuantizedRows* out);
void matmul_avx512vnni(const MatmulArgs* args);
void matmul_float_avx512vnni(const MatmulArgs* args);  // the f32 and bf16 part of the line above
void matmul_amx(const MatmulArgs* args);

// attention/
void attend_chunk_avx2(const AttendChunkArgs* args);
void attention_merge_avx2(std::int64_t rows, std::int64_t d, AttentionPartial* state, float* o,
                          const AttentionPartial* other, const float* other_o);
void attention_finish_avx2(std::int64_t rows, std::int64_t d, const AttentionPartial* state,
                           const float* o, const float* sink, float* out, std::int64_t ldo,
                           std::int64_t head_dim_out);
void write_token_avx2(KvFormat format, std::int64_t d, std::int64_t slot, const float* k,
                      const float* v, std::uint8_t* open);
void seal_page_avx2(KvFormat format, std::int64_t d, const std::uint8_t* open,
                    std::uint8_t* sealed);
void attend_chunk_avx512vnni(const AttendChunkArgs* args);
void attend_chunk_amx(const AttendChunkArgs* args);
void attend_chunk_few_amx(const AttendChunkArgs* args);  // the few rows of the line above
void attention_merge_avx512vnni(std::int64_t rows, std::int64_t d, AttentionPartial* state,
                                float* o, const AttentionPartial* other, const float* other_o);
void attention_finish_avx512vnni(std::int64_t rows, std::int64_t d, const AttentionPartial* state,
                                 const float* o, const float* sink, float* out, std::int64_t ldo,
                                 std::int64_t head_dim_out);
void write_token_avx512vnni(KvFormat format, std::int64_t d, std::int64_t slot, const float* k,
                            const float* v, std::uint8_t* open);
void seal_page_avx512vnni(KvFormat format, std::int64_t d, const std::uint8_t* open,
                          std::uint8_t* sealed);
void whole_pack_avx2(const float* k, const float* v, std::int64_t ld, const WholeHead* to);
void whole_attend_avx2(const WholeHead* head, const float* q, std::int64_t ldq, std::int64_t rows,
                       float factor, float* out, std::int64_t ldo, void* scratch);
void whole_pack_avx512vnni(const float* k, const float* v, std::int64_t ld, const WholeHead* to);
void whole_attend_avx512vnni(const WholeHead* head, const float* q, std::int64_t ldq,
                             std::int64_t rows, float factor, float* out, std::int64_t ldo,
                             void* scratch);
void whole_pack_amx(const float* k, const float* v, std::int64_t ld, const WholeHead* to);
void whole_attend_amx(const WholeHead* head, const float* q, std::int64_t ldq, std::int64_t rows,
                      float factor, float* out, std::int64_t ldo, void* scratch);

// rowwise/
extern const RowwiseKernels rowwise_avx2;
extern const RowwiseKernels rowwise_avx512vnni;

// image/
extern const ImageKernels image_avx2;
extern const ImageKernels image_avx512vnni;

#elif defined(__aarch64__)

// qmatmul/
void quantize_rows_neon(const float* x, std::int64_t ldx, std::int64_t m, std::int64_t k,
                        const QuantizedRows* out);
void matmul_neon(const MatmulArgs* args);
void matmul_float_neon(const MatmulArgs* args);  // the f32 and bf16 part of the line above
void matmul_i8mm(const MatmulArgs* args);

// attention/
void attend_chunk_neon(const AttendChunkArgs* args);
void attention_merge_neon(std::int64_t rows, std::int64_t d, AttentionPartial* state, float* o,
                          const AttentionPartial* other, const float* other_o);
void attention_finish_neon(std::int64_t rows, std::int64_t d, const AttentionPartial* state,
                           const float* o, const float* sink, float* out, std::int64_t ldo,
                           std::int64_t head_dim_out);
void write_token_neon(KvFormat format, std::int64_t d, std::int64_t slot, const float* k,
                      const float* v, std::uint8_t* open);
void seal_page_neon(KvFormat format, std::int64_t d, const std::uint8_t* open,
                    std::uint8_t* sealed);
void attend_chunk_i8mm(const AttendChunkArgs* args);
void whole_pack_neon(const float* k, const float* v, std::int64_t ld, const WholeHead* to);
void whole_attend_neon(const WholeHead* head, const float* q, std::int64_t ldq, std::int64_t rows,
                       float factor, float* out, std::int64_t ldo, void* scratch);

// rowwise/
extern const RowwiseKernels rowwise_neon;

// image/
extern const ImageKernels image_neon;

#endif

}  // namespace musespark
