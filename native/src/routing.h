// Which expert each token goes to, turned round: the tokens of each expert.
#pragma once

#include <cstdint>
#include <vector>

#include "experts.h"

namespace tunebook {

// Rows of one expert that one task takes: pairs [first, first + rows) in the order of experts.
struct Segment {
  int64_t expert;
  int64_t first;
  int64_t rows;
};

// The pairs (token, choice) that have an expert, ordered by expert, then token, then choice.
struct Routing {
  // `by_token`: whether of_token and choices are wanted. Indices are in 0..E.
  Routing(const ExpertsCall& call, int64_t experts, bool by_token);

  int64_t pairs = 0;
  std::vector<int32_t> token;      // of each pair
  std::vector<float> scale;        // of each pair
  std::vector<int32_t> of_token;   // [tokens, choices]: its pairs, ascending
  std::vector<int32_t> choices;    // [tokens]: how many of them
  std::vector<Segment> segments;
};

}  // namespace tunebook
