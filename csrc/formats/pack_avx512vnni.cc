#include "formats/pack.inl"
#include "formats/pack_feedback.inl"

namespace musespark {
namespace {

void turn(const float* rows, std::int64_t count, float* columns, std::uint32_t* largest) {
  turn_rows(rows, count, columns, largest);
}
void turn_tile(const PackTile& tile, std::int64_t count, float* columns, std::uint32_t* largest) {
  turn_integers(tile, count, columns, largest);
}
void fit(const PackRows& rows) { all_groups<fit_unit_group>(rows); }
void encode(const PackRows& rows) { all_groups<encode_group>(rows); }
void refit(const PackRows& rows, std::int64_t k, int n) { all_lanes<fit_group>(rows, k, n); }
void carry(const PackRows& rows, const PackFeedback& feedback, std::int64_t from, std::int64_t k,
           int n) {
  carry_missed(rows, feedback, from, k, n);
}
void encode_fed(const PackRows& rows, const PackFeedback& feedback, std::int64_t k, int n) {
  encode_group_fed(rows, feedback, k, n);
}
void lay_out(const std::uint8_t* codes, std::int64_t padded_cols, int bits, std::uint8_t* to) {
  lay_out_codes(codes, padded_cols, bits, to);
}

}  // namespace

const PackSteps pack_steps_avx512vnni = {turn,  turn_tile, fit,        encode,
                                         refit, carry,     encode_fed, lay_out};

}  // namespace musespark
