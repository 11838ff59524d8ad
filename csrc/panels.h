// Columns are cut into panels of two vectors (the last may be one), and packed weights lie panel by panel.

constexpr int PANEL = 2 * WIDTH;

template <class T, int N>
INLINE void store_all(T* p, const Vec (&v)[N]) {
  UNROLL for (int j = 0; j < N; ++j) store(p + j * WIDTH, v[j]);
}

// Calls f(first column, one or two vectors as an integral constant) for each panel of n columns, n a multiple of WIDTH.
template <class F>
INLINE void for_panels(int64_t n, F f) {
  int64_t column = 0;
  for (; column + PANEL <= n; column += PANEL) f(column, std::integral_constant<int, 2>());
  if (column < n) f(column, std::integral_constant<int, 1>());
}

// Rows that will be needed soon, fetched into the second-level cache while `reduce` runs: the processor's own
// prefetcher does not follow a dozen rows of 3 KB (forward at 12,608 tokens: 96% of the floor, without it 77%).
struct Ahead {
  struct Group {
    char* const* rows;
    int64_t lines;  // of the group for one of x
  };
  Group groups[3] = {};
  int count = 0;

  void add(char* const* rows, int64_t lines) { groups[count++] = {rows, lines}; }

  // Line `line` of each of R rows from `row` on.
  template <int R>
  INLINE void fetch(int64_t row, int64_t line) const {
    for (int g = 0; g < count; ++g) {
      const Group& group = groups[g];
      for (int64_t l = line * group.lines; l < (line + 1) * group.lines; ++l)
        UNROLL for (int i = 0; i < R; ++i) prefetch(group.rows[row + i] + 64 * l);
    }
  }
};
