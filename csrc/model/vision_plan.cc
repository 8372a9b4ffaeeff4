#include "model/vision_plan.h"

#include <algorithm>
#include <cmath>

namespace musespark {
namespace {

struct Place {
  std::int64_t patch;
  std::int32_t y, x;
};

// The patches of a frame in the order in which they come.
std::vector<Place> places(const VisionSpec& spec, const Frame& frame, std::int64_t first) {
  std::vector<Place> out;
  out.reserve(static_cast<std::size_t>(frame.patches()));
  const std::int64_t side = spec.order == PatchOrder::blocks ? spec.merge : 1;
  for (std::int64_t top = 0; top < frame.height; top += side) {
    for (std::int64_t left = 0; left < frame.width; left += side) {
      for (std::int64_t i = 0; i < side * side; ++i) {
        out.push_back({first + static_cast<std::int64_t>(out.size()),
                       static_cast<std::int32_t>(top + i / side),
                       static_cast<std::int32_t>(left + i % side)});
      }
    }
  }
  return out;
}

// Sorts by window and notes where each window's rows lie, counted from `row`.
void cut_windows(std::int64_t window, const Frame& frame, std::int64_t row,
                 std::vector<Place>* patches, std::vector<TextSpan>* spans) {
  const std::int64_t across = (frame.width + window - 1) / window;
  const auto number = [&](const Place& p) { return p.y / window * across + p.x / window; };
  std::stable_sort(patches->begin(), patches->end(),
                   [&](const Place& a, const Place& b) { return number(a) < number(b); });
  for (std::size_t i = 0; i < patches->size(); ++i) {
    if (i == 0 || number((*patches)[i]) != number((*patches)[i - 1])) {
      spans->push_back({row + static_cast<std::int64_t>(i), 0});
    }
    ++spans->back().count;
  }
}

std::vector<PositionShare> bucket(std::int64_t index, std::int64_t size, std::int64_t side) {
  // As Idefics3: the float32 place of the patch among float32 boundaries i / side, one on a
  // boundary beyond it.
  const auto step = 1.0f / static_cast<float>(size);
  const float at = std::min(static_cast<float>(index) * step, static_cast<float>(1.0 - 1e-6));
  std::int64_t found = 0;
  const double width = 1.0 / static_cast<double>(side);
  const auto boundary = [&](std::int64_t i) {
    return static_cast<float>(width + static_cast<double>(i) * width);
  };
  while (found + 1 < side && at >= boundary(found)) ++found;
  return {{found, 1.0f}};
}

std::vector<PositionShare> two_taps(float at, std::int64_t side, bool zeros) {
  const float floor = std::floor(at);
  const auto low = static_cast<std::int64_t>(floor);
  std::vector<PositionShare> out;
  for (std::int64_t tap = low; tap <= low + 1; ++tap) {
    const float weight = 1.0f - std::abs(at - static_cast<float>(tap));
    if (zeros && (tap < 0 || tap >= side)) continue;
    if (weight > 0.0f) out.push_back({std::clamp<std::int64_t>(tap, 0, side - 1), weight});
  }
  return out;
}

// The triangle filter, widened where entries are denser than patches, normalized.
std::vector<PositionShare> area(std::int64_t index, std::int64_t size, std::int64_t side) {
  const float scale = static_cast<float>(side) / static_cast<float>(size);
  const float support = std::max(scale, 1.0f);
  const float center = scale * (static_cast<float>(index) + 0.5f);
  const auto first = std::max<std::int64_t>(static_cast<std::int64_t>(center - support + 0.5f), 0);
  const auto end = std::min<std::int64_t>(static_cast<std::int64_t>(center + support + 0.5f), side);
  std::vector<PositionShare> out;
  float total = 0.0f;
  for (std::int64_t tap = first; tap < end; ++tap) {
    const float distance = std::abs((static_cast<float>(tap) - center + 0.5f) / support);
    const float weight = distance < 1.0f ? 1.0f - distance : 0.0f;
    out.push_back({tap, weight});
    total += weight;
  }
  for (PositionShare& share : out) share.weight /= total;
  return out;
}

std::vector<PositionShare> shares_of(PositionKind kind, std::int64_t index, std::int64_t size,
                                     std::int64_t side) {
  const auto at = static_cast<float>(index);
  switch (kind) {
    case PositionKind::none:
      return {};
    case PositionKind::table:
      return {{index, 1.0f}};
    case PositionKind::buckets:
      return bucket(index, size, side);
    case PositionKind::bilinear_corners:
      return two_taps(at * static_cast<float>(side - 1) /
                          static_cast<float>(std::max<std::int64_t>(size - 1, 1)),
                      side, false);
    case PositionKind::bilinear_zeros:
      return two_taps((at + 0.5f) * static_cast<float>(side) / static_cast<float>(size) - 0.5f,
                      side, true);
    case PositionKind::bilinear_area:
      return area(index, size, side);
  }
  return {};
}

void add_row(const Place& place, VisionPlan* plan) {
  plan->patch.push_back(place.patch);
  plan->y.push_back(place.y);
  plan->x.push_back(place.x);
  if (place.patch == VisionPlan::kClass) plan->share.push_back({0, 1.0f});
  plan->share_end.push_back(static_cast<std::int64_t>(plan->share.size()));
}

void add_patches(const VisionSpec& spec, const Frame& frame, const std::vector<Place>& patches,
                 VisionPlan* plan) {
  const PositionSpec& table = spec.positions;
  const std::int64_t height = table.turned ? frame.width : frame.height;
  const std::int64_t width = table.turned ? frame.height : frame.width;
  const auto rows = axis_shares(table.kind, height, table.side);
  const auto cols = axis_shares(table.kind, width, table.side);
  const std::int64_t before = spec.class_token ? 1 : 0;
  for (const Place& place : patches) {
    const std::int64_t number = place.y * frame.width + place.x;
    for (const PositionShare& row : rows[static_cast<std::size_t>(number / width)]) {
      for (const PositionShare& col : cols[static_cast<std::size_t>(number % width)]) {
        plan->share.push_back(
            {before + row.entry * table.side + col.entry, row.weight * col.weight});
      }
    }
    add_row(place, plan);
  }
}

// The rows of each token; the frame's patches lie from `first` on.
void add_members(const VisionSpec& spec, const Frame& frame, const std::vector<Place>& patches,
                 std::int64_t first, VisionPlan* plan) {
  std::vector<std::int64_t> row_of(patches.size());  // [y][x]
  for (std::size_t i = 0; i < patches.size(); ++i) {
    row_of[static_cast<std::size_t>(patches[i].y * frame.width + patches[i].x)] =
        first + static_cast<std::int64_t>(i);
  }
  const std::int64_t side = spec.merge;
  for (std::int64_t top = 0; top < frame.height; top += side) {
    for (std::int64_t left = 0; left < frame.width; left += side) {
      for (std::int64_t i = 0; i < side * side; ++i) {
        const std::int64_t at = (top + i / side) * frame.width + left + i % side;
        plan->members.push_back(row_of[static_cast<std::size_t>(at)]);
      }
    }
  }
}

}  // namespace

std::int64_t most_shares(const PositionSpec& positions, const Frame& frame) {
  const auto taps = [&](std::int64_t size) {
    if (positions.kind != PositionKind::bilinear_area) return std::int64_t{2};
    return 2 * (positions.side / size) + 3;
  };
  return frame.patches() * taps(frame.height) * taps(frame.width);
}

std::vector<std::vector<PositionShare>> axis_shares(PositionKind kind, std::int64_t size,
                                                    std::int64_t side) {
  std::vector<std::vector<PositionShare>> out;
  for (std::int64_t i = 0; i < size; ++i) out.push_back(shares_of(kind, i, size, side));
  return out;
}

VisionPlan plan_frames(const VisionSpec& spec, std::int64_t window, std::span<const Frame> frames) {
  VisionPlan plan;
  std::int64_t patches_before = 0;
  for (const Frame& frame : frames) {
    std::vector<Place> patches = places(spec, frame, patches_before);
    const std::int64_t first = plan.rows();
    if (spec.class_token) add_row({VisionPlan::kClass, 0, 0}, &plan);
    if (window > 0) cut_windows(window, frame, plan.rows(), &patches, &plan.windows);
    add_patches(spec, frame, patches, &plan);
    plan.frames.push_back({first, plan.rows() - first});
    add_members(spec, frame, patches, plan.rows() - frame.patches(), &plan);
    patches_before += frame.patches();
  }
  return plan;
}

}  // namespace musespark
