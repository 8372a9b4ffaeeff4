// What happened in an engine, as tuples.
#pragma once

#include <pybind11/pybind11.h>

#include <vector>

#include "decode/engine.h"

namespace musespark {

// [(token, logprob), …]
pybind11::list top_list(const std::vector<TokenLogprob>& top);

// ('tokens', id, ids, logprobs|None, tops|None, signals|None), ('logits', id, first, array),
// ('rows_wanted', id, index of params['given']), ('finished', id, reason, (kind, message)|None,
// stats). The arrays take the numbers of the events with them.
pybind11::list events_to_python(std::vector<Event>& events);

}  // namespace musespark
