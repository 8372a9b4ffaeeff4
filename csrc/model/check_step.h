// What TextModel::forward may be asked.
#pragma once

#include <span>

#include "model/text_model.h"

namespace musespark {

// Throws InvalidRequest, and ContextOverflow beyond the model's context; `layout`: of its pages.
void check_step(std::span<const StepSpan> spans, const ModelSpec& spec, const KvLayout& layout);

}  // namespace musespark
