#include "formats/pack.inl"

namespace musespark {
namespace {

void turn(const float* rows, std::int64_t count, float* columns, std::uint32_t* largest) {
  turn_rows(rows, count, columns, largest);
}
void turn_tile(const PackTile& tile, std::int64_t count, float* columns, std::uint32_t* largest) {
  turn_integers(tile, count, columns, largest);
}
void fit(const PackRows& rows) { all_groups<fit_group>(rows); }
void encode(const PackRows& rows) { all_groups<encode_group>(rows); }
void lay_out(const std::uint8_t* codes, std::int64_t padded_cols, int bits, std::uint8_t* to) {
  lay_out_codes(codes, padded_cols, bits, to);
}

}  // namespace

const PackSteps pack_steps_avx2 = {turn, turn_tile, fit, encode, lay_out};

}  // namespace musespark
