// An encoder: texts in, one row for each; no cache, no head. Embedding models run through it.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <span>
#include <string>

#include "base/thread_pool.h"
#include "model/spec.h"
#include "model/text_model.h"

namespace musespark {

class Encoder {
 public:
  // Tensors and errors as TextModel's; the spec says bidirectional.
  Encoder(ModelSpec spec, const std::map<std::string, TensorView>& tensors, ThreadPool& pool);
  ~Encoder();
  Encoder(const Encoder&) = delete;
  Encoder& operator=(const Encoder&) = delete;

  const ModelSpec& spec() const;

  // The texts as one batch; out [texts][hidden]: pooled, normalized where the spec says so. A
  // text's bits depend on its tokens alone. Throws InvalidRequest (an empty text, an id that is
  // none) and ContextOverflow (longer than spec().max_context). One call at a time.
  void embed(std::span<const std::span<const std::int32_t>> texts, float* out);

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace musespark
