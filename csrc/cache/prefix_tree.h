// What prompts begin with, kept: full pages of keys and values under the tokens that made them.
//
//     root (adapter, ropes) -> node: 64 tokens, their page in each class -> node: the next 64 ...
//
// A page's rows are a function of the root's key and of all tokens up to the page's end, so a
// sequence that begins with the same tokens reads the same pages and computes only what follows.
// Tokens are compared, not hashed.
//
// In a class with a window a sequence of length L goes on from the pages that a query at L sees. A
// node has its page of such a class where it was marked as such an end, and for as long as it is in
// sight of the newest end that was put in on its path. So `find` may know more tokens than a
// sequence can go on from: a mark there helps the next one.
//
// Nodes nobody uses go, a path's end before its beginning and least recently used first, when the
// pool needs their bytes. Pages of classes with a window may go from nodes in use as well: whoever
// uses them holds those that it sees itself. Not thread-safe: the pool's driver thread owns it.
#pragma once

#include <array>
#include <compare>
#include <cstdint>
#include <map>
#include <memory>
#include <set>
#include <span>
#include <utility>
#include <vector>

#include "cache/sequence.h"

namespace musespark {

// What keys and values depend on besides the tokens.
struct PrefixKey {
  std::int64_t adapter = -1;
  bool short_rope = false;
  auto operator<=>(const PrefixKey&) const = default;
};

class PrefixTree {
  struct Node;

 public:
  // The pool asks the tree for memory from now on; it must outlive the tree.
  explicit PrefixTree(PagePool& pool);
  ~PrefixTree();
  PrefixTree(const PrefixTree&) = delete;
  PrefixTree& operator=(const PrefixTree&) = delete;

  // Holds a path's nodes in the tree. Moves, never copies.
  class Pin {
   public:
    Pin() = default;
    Pin(Pin&& other) noexcept : tree_(other.tree_), node_(std::exchange(other.node_, nullptr)) {}
    Pin& operator=(Pin&& other) noexcept;
    ~Pin() { reset(); }
    void reset() noexcept;
    // Bytes of the path's pages in the class without a window.
    std::int64_t bytes() const;

   private:
    friend class PrefixTree;
    Pin(PrefixTree* tree, Node* node) : tree_(tree), node_(node) {}
    PrefixTree* tree_ = nullptr;
    Node* node_ = nullptr;
  };

  // Tokens of the longest path that `tokens` begin with, whole pages and at most `most`; and those
  // of the longest that a sequence can go on from.
  struct Found {
    std::int64_t known, usable;
  };
  Found find(const PrefixKey& key, std::span<const std::int32_t> tokens, std::int64_t most) const;

  // A sequence of the first `length` tokens, one that `find` called usable.
  std::pair<Sequence, Pin> take(const PrefixKey& key, std::span<const std::int32_t> tokens,
                                std::int64_t length);

  // Puts in the full pages of `sequence` that these tokens, with which it begins, fill. `marks`:
  // lengths from which others will go on, as far as the sequence still has the pages for it.
  void insert(const PrefixKey& key, std::span<const std::int32_t> tokens, const Sequence& sequence,
              std::span<const std::int64_t> marks);

  // Forgets every path made with the adapter. Pinned ones must be gone.
  void drop_adapter(std::int64_t adapter);

  // Gives pages back, the least recently used first, until those that it alone holds have at most
  // so many bytes.
  void shrink(std::int64_t bytes) noexcept;

  // Bytes of the pages that cannot be evicted: of pinned nodes, in the class without a window.
  std::int64_t pinned_bytes() const { return pinned_bytes_; }

 private:
  using Tokens = std::array<std::int32_t, kPageTokens>;
  using Children = std::map<Tokens, std::unique_ptr<Node>>;
  struct Node {
    Node* parent = nullptr;
    const Tokens* tokens = nullptr;  // its key among the parent's children
    Children children;
    std::vector<PageId> pages;  // by class; kNone: not here
    std::int64_t index = -1;    // page number from position 0; the root's -1
    std::int64_t last_used = 0;
    std::int64_t bytes = 0;  // of its pages that a pin keeps
    int pins = 0;
    bool marked = false;
  };
  static constexpr PageId kNone = -1;
  using Leaf = std::pair<std::int64_t, Node*>;  // last used

  std::vector<Node*> path(const PrefixKey& key, std::span<const std::int32_t> tokens,
                          std::int64_t pages) const;
  Node* child(Node* parent, const std::int32_t* tokens);
  void touch(Node* node) noexcept;
  void count(Node* node, int page_class, std::int64_t bytes) noexcept;
  void hold(Node* node, int page_class, PageId page) noexcept;
  void let_go(Node* node, int page_class) noexcept;
  void keep_windows(std::span<Node* const> path, const Sequence& sequence,
                    std::span<const std::int64_t> marks);
  bool evict() noexcept;
  bool evict_window_page() noexcept;
  void erase(Node* leaf) noexcept;
  void clear(Node* node) noexcept;
  void unpin(Node* node) noexcept;
  // First page of the class that a query at `length` sees.
  std::int64_t first_page(int page_class, std::int64_t length) const;

  PagePool& pool_;
  std::map<PrefixKey, std::unique_ptr<Node>> roots_;
  std::set<Leaf> leaves_;
  std::int64_t clock_ = 0;
  std::int64_t pinned_bytes_ = 0;
};

}  // namespace musespark
