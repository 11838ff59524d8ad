// A fingerprint of what a call's weights hold, by which packed weights are kept from call to call: eight sums of 64 bits, at
// the rate of memory, a fifth of what packing takes. Whatever changes a weight, through whichever view of its memory,
// changes it; torch's version counters miss what goes through `.data` or NumPy, and cost as much to ask.

struct Fingerprint {
  uint64_t lanes[8] = {0x9e3779b97f4a7c15u, 0xbf58476d1ce4e5b9u, 0x94d049bb133111ebu, 0xd6e8feb86659fd93u,
                       0xa0761d6478bd642fu, 0xe7037ed1a0b428dbu, 0x8ebc6af09c88c6e3u, 0x589965cc75374cc3u};
  uint64_t position = 0;

  // Every lane adds the product of the halves of its word, which a key of its position was mixed into, and its
  // neighbour's word itself, so that no word is lost where a product is zero.
  INLINE void add(const uint64_t (&words)[8]) {
    position += 0x9fb21c651e98df25u;
    uint64_t mixed[8];
    for (int i = 0; i < 8; ++i) mixed[i] = words[i] ^ (position + static_cast<uint64_t>(i) * 0xc2b2ae3d27d4eb4fu);
    for (int i = 0; i < 8; ++i) lanes[i] += (mixed[i] & 0xffffffffu) * (mixed[i] >> 32) + words[i ^ 1];
  }

  INLINE void add(const char* data, int64_t bytes) {
    uint64_t words[8];
    int64_t at = 0;
    for (; at + 64 <= bytes; at += 64) {
      std::memcpy(words, data + at, 64);
      add(words);
      if (at % 1024 == 960) stir();
    }
    std::memset(words, 0, 64);
    std::memcpy(words, data + at, bytes - at);
    words[7] ^= static_cast<uint64_t>(bytes) << 32;
    add(words);
    stir();
  }

  // Else the last additions could be undone by others.
  INLINE void stir() {
    for (int i = 0; i < 8; ++i) {
      lanes[i] ^= lanes[i] >> 47;
      lanes[i] = (lanes[i] ^ position) * 0x9e3779b1u;
    }
  }
};

// Adds an [rows, columns] matrix; false where it does not lie in one piece.
INLINE bool add_to(Fingerprint& fingerprint, const Matrix& m, int64_t rows, int64_t columns) {
  const uint64_t kind = (m.data ? 1 : 0) + 2 * static_cast<uint64_t>(m.dtype) + 16 * static_cast<uint64_t>(m.row_stride);
  fingerprint.position += kind * 0xff51afd7ed558ccdu;
  if (!m.data) return true;
  const int64_t size = size_of(m.dtype);
  const bool by_rows = m.column_stride == size && (rows == 1 || m.row_stride == columns * size);
  const bool by_columns = m.row_stride == size && m.column_stride == rows * size;
  if (!by_rows && !by_columns) return false;
  fingerprint.add(m.data, rows * columns * size);
  return true;
}

// Of everything that pack_forward reads.
bool fingerprint_weights(const Problem& p, uint64_t* to) {
  Fingerprint found;
  const int64_t shapes[weight_count][2] = {{p.D, p.r}, {1, p.r}, {p.r, p.D}, {1, p.D},
                                           {p.r, p.h}, {1, p.h}, {p.h, p.D}, {1, p.D}};
  for (int i = 0; i < weight_count; ++i)
    if (!add_to(found, p.weights[i], shapes[i][0], shapes[i][1])) return false;
  if (p.normalise && !(add_to(found, p.norm_weight, 1, p.D) && add_to(found, p.norm_bias, 1, p.D))) return false;
  std::memcpy(to, found.lanes, sizeof found.lanes);
  return true;
}
