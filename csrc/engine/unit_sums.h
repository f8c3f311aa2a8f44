// Sums over a layer's units in one fixed order, whatever part of them each NUMA node has.
//
// Invariant: the order is a binary tree over the layer's range of units alone. A node adds up the
// largest subtrees inside its range (its pieces), next to its memory; adding the pieces of all
// nodes along the rest of the tree gives the same bits as one node that has everything.
#pragma once

#include <vector>

namespace lsg {

struct UnitRange {
  int begin = 0, end = 0;

  int size() const { return end - begin; }
  bool operator==(const UnitRange&) const = default;
};

// Where a subtree's range is cut; as base and remainder are, so that even splits give few pieces.
inline int MiddleOf(UnitRange range) { return range.begin + (range.size() + 1) / 2; }

// Appends the largest subtrees of `tree` that lie inside `part`, in order.
inline void AppendPieces(UnitRange tree, UnitRange part, std::vector<UnitRange>& pieces) {
  if (tree.size() <= 0 || tree.end <= part.begin || part.end <= tree.begin) return;
  if (part.begin <= tree.begin && tree.end <= part.end) {
    pieces.push_back(tree);
    return;
  }
  AppendPieces({tree.begin, MiddleOf(tree)}, part, pieces);
  AppendPieces({MiddleOf(tree), tree.end}, part, pieces);
}

// sum[0 … N) = the tree's sum. `leaf(range, sum)` either writes the sum of a subtree and returns
// true, or returns false to have it added up from its halves; for single units it must do the
// former.
template <int N, typename Leaf>
void SumUnits(UnitRange tree, float* sum, const Leaf& leaf) {
  if (leaf(tree, sum)) return;
  alignas(64) float right[N];
  SumUnits<N>({tree.begin, MiddleOf(tree)}, sum, leaf);
  SumUnits<N>({MiddleOf(tree), tree.end}, right, leaf);
  for (int n = 0; n < N; ++n) sum[n] += right[n];
}

}  // namespace lsg
