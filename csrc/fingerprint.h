// A fingerprint of what a call's weights hold, by which packed weights are kept from call to call, at a fifth of what packing
// takes. A change of one word, through whichever view of its memory, changes it, other changes but for one in 2^32; torch's
// version counters miss what is written through `.data` or NumPy, and cost as much to ask.

#if defined(__GNUC__)
struct Fingerprint {
  typedef uint32_t Words __attribute__((vector_size(64)));
  static constexpr int STREAMS = 8;  // independent of each other, since a step waits for the one before it
  Words streams[STREAMS] = {};

  // Injective in each argument, so that no single change is lost; the turn brings high bits to where they spread again.
  static INLINE void step(Words& state, const Words& words) {
    const Words product = (state ^ words) * 0x9e3779b1u;
    state = product << 15 | product >> 17;
  }

  INLINE void add(const char* data, int64_t bytes) {
    constexpr int64_t VECTOR = sizeof(Words);
    Words words;
    int64_t at = 0;
    for (; at + STREAMS * VECTOR <= bytes; at += STREAMS * VECTOR)
      UNROLL for (int i = 0; i < STREAMS; ++i) {
        std::memcpy(&words, data + at + i * VECTOR, VECTOR);
        step(streams[i], words);
      }
    for (; at < bytes; at += VECTOR) {
      words = Words{};
      std::memcpy(&words, data + at, bytes - at < VECTOR ? bytes - at : VECTOR);
      step(streams[0], words);
    }
  }

  // Adds a [rows, columns] matrix; false where it does not lie in one piece.
  INLINE bool add(const Matrix& m, int64_t rows, int64_t columns) {
    const int64_t size = size_of(m.dtype);
    const bool by_rows = m.column_stride == size && (rows == 1 || m.row_stride == columns * size);
    const bool by_columns = m.row_stride == size && m.column_stride == rows * size;
    const uint32_t kind = 1u + (m.data ? 1u : 0u) + 2u * static_cast<uint32_t>(m.dtype) + (by_rows ? 8u : 0u);
    step(streams[0], Words{kind});
    if (!m.data) return true;
    if (by_rows || by_columns) add(m.data, rows * columns * size);
    return by_rows || by_columns;
  }

  INLINE void write(uint64_t* to) const {
    Words all = streams[0];
    for (int i = 1; i < STREAMS; ++i) step(all, streams[i]);
    std::memcpy(to, &all, sizeof all);
  }
};

// Of everything that pack_forward reads.
bool fingerprint_weights(const Problem& p, uint64_t* to) {
  Fingerprint found;
  const int64_t shapes[weight_count][2] = {{p.D, p.r}, {1, p.r}, {p.r, p.D}, {1, p.D},
                                           {p.r, p.h}, {1, p.h}, {p.h, p.D}, {1, p.D}};
  for (int i = 0; i < weight_count; ++i)
    if (!found.add(p.weights[i], shapes[i][0], shapes[i][1])) return false;
  if (p.normalise && !(found.add(p.norm_weight, 1, p.D) && found.add(p.norm_bias, 1, p.D))) return false;
  found.write(to);
  return true;
}
#else
bool fingerprint_weights(const Problem&, uint64_t*) { return false; }
#endif
