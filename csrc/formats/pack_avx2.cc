#include "formats/pack.inl"

namespace musespark {
namespace {

void fit(const PackRows& rows) { all_groups<fit_group>(rows); }
void encode(const PackRows& rows) { all_groups<encode_group>(rows); }

}  // namespace

const PackSteps pack_steps_avx2 = {fit, encode};

}  // namespace musespark
