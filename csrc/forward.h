// Forward on a block of rows, all of it in cache:
//   u = x or LayerNorm(x);  z = sigma(u W_down + b_down);  h = sigma(z W_rec1 + b_rec1)
//   for each panel of columns: out = residual + scale (z W_up + b_up)
//   for each panel of columns: rec = h W_rec2 + b_rec2, its loss summed, never stored

template <class P>
struct ForwardWeights {
  using Element = typename P::Element;
  Element *w_down, *w_up, *w_rec2;
  typename Narrow<P>::Element* w_rec1;
  float *b_down, *b_up, *b_rec1, *b_rec2, *gamma, *beta;
  size_t bytes;

  ForwardWeights(const Sizes<P>& s, const char* base) {
    Memory memory(base);
    w_down = memory.take<Element>(s.width * s.rn);
    w_up = memory.take<Element>(s.rk * s.D);
    w_rec2 = memory.take<Element>(s.hk * s.D);
    w_rec1 = memory.take<typename Narrow<P>::Element>(s.narrow_r * s.hn);
    b_down = memory.take<float>(s.rn);
    b_rec1 = memory.take<float>(s.hn);
    b_up = memory.take<float>(s.D);
    b_rec2 = memory.take<float>(s.D);
    gamma = memory.take<float>(s.D);
    beta = memory.take<float>(s.D);
    bytes = memory.used;
  }
};

template <class P>
struct ForwardScratch {
  using Element = typename P::Element;
  const Element** u;
  const typename Narrow<P>::Element** z_rows;
  char **out, **residual, **next;
  Element *block, *z_elements, *h_elements, *narrow;
  float *z, *h, *sums, *mean, *rstd;
  size_t bytes;

  ForwardScratch(const Sizes<P>& s, const char* base) {
    Memory memory(base);
    u = memory.take<const Element*>(s.rows);
    z_rows = memory.take<const typename Narrow<P>::Element*>(s.rows);
    out = memory.take<char*>(s.rows);
    residual = memory.take<char*>(s.rows);
    next = memory.take<char*>(s.rows);
    block = memory.take<Element>(s.direct && !P::TILES ? 0 : s.rows * s.width);
    z = memory.take<float>(s.rows * s.rn);
    h = memory.take<float>(s.rows * s.hn);
    z_elements = memory.take<Element>(s.PAIRS ? s.rows * s.rn : 0);
    h_elements = memory.take<Element>(s.PAIRS ? s.rows * s.hn : 0);
    narrow = memory.take<Element>(P::TILES ? s.rows * 2 * s.rn : 0);
    sums = memory.take<float>(s.rows * 3 * WIDTH);
    mean = memory.take<float>(s.rows);
    rstd = memory.take<float>(s.rows);
    bytes = memory.used;
  }
};

template <class T, bool HAS_RESIDUAL>
struct WriteOut {
  char** out;
  char** residual;
  float scale;

  template <int N>
  INLINE void operator()(int64_t row, int64_t column, Vec (&base)[N]) const {
    T* to = reinterpret_cast<T*>(out[row]) + column;
    const T* from = reinterpret_cast<const T*>(residual[row]) + column;
    prefetch_near(to + N * WIDTH);
    if (HAS_RESIDUAL) prefetch_near(from + N * WIDTH);
    UNROLL for (int j = 0; j < N; ++j) {
      base[j] = mul(splat(scale), base[j]);
      if (HAS_RESIDUAL) base[j] = add(base[j], load(from + j * WIDTH));
    }
    store_all(to, base);
  }
};

// sums [rows, 3, WIDTH]: the loss; for the cosine x.rec, rec.rec, x.x.
template <class Element, Objective OBJECTIVE>
struct SumLoss {
  const Element* const* u;
  float* sums;

  template <int N>
  INLINE void operator()(int64_t row, int64_t column, Vec (&rec)[N]) const {
    float* p = sums + row * 3 * WIDTH;
    if (OBJECTIVE == Objective::cosine) {
      Vec product = load(p), rec_square = load(p + WIDTH), u_square = load(p + 2 * WIDTH);
      UNROLL for (int j = 0; j < N; ++j) {
        const Vec x = load(u[row] + column + j * WIDTH);
        product = fma(x, rec[j], product);
        rec_square = fma(rec[j], rec[j], rec_square);
        u_square = fma(x, x, u_square);
      }
      store(p, product);
      store(p + WIDTH, rec_square);
      store(p + 2 * WIDTH, u_square);
    } else {
      Vec total = load(p);
      UNROLL for (int j = 0; j < N; ++j) {
        const Vec difference = sub(rec[j], load(u[row] + column + j * WIDTH));
        total = OBJECTIVE == Objective::l2 ? fma(difference, difference, total) : add(abs(difference), total);
      }
      store(p, total);
    }
  }
};

// |x| |rec| and cos(x, rec) of a row from its three sums, the norms clamped at 1e-8.
struct Cosine {
  float u_norm, rec_norm, u_clamped, rec_clamped, value;

  explicit Cosine(const float* sums) {
    rec_norm = std::sqrt(sum(load(sums + WIDTH)));
    u_norm = std::sqrt(sum(load(sums + 2 * WIDTH)));
    rec_clamped = rec_norm < 1e-8f ? 1e-8f : rec_norm;
    u_clamped = u_norm < 1e-8f ? 1e-8f : u_norm;
    value = sum(load(sums)) / u_clamped / rec_clamped;
  }
};

template <class P>
void pack_forward_weights(const Problem& problem, char* packed, int part, int parts) {
  const Sizes<P> s(problem);
  const ForwardWeights<P> to(s, packed);
  const Matrix* w = problem.weights;
  const Dtype dtype = problem.dtype;
  pack<P>(w[w_down], s.D, s.r, s.width, s.rn, dtype, to.w_down, part, parts);
  pack<P>(w[w_up], s.r, s.D, s.rk, s.D, dtype, to.w_up, part, parts);
  if (s.h) {
    pack<Narrow<P>>(w[w_rec1], s.r, s.h, s.narrow_r, s.hn, dtype, to.w_rec1, part, parts);
    pack<P>(w[w_rec2], s.h, s.D, s.hk, s.D, dtype, to.w_rec2, part, parts);
  }
  if (part > 0) return;
  pack_vector(w[b_down], s.r, s.rn, dtype, to.b_down);
  pack_vector(w[b_up], s.D, s.D, dtype, to.b_up);
  pack_vector(w[b_rec1], s.h, s.hn, dtype, to.b_rec1);
  pack_vector(w[b_rec2], s.D, s.D, dtype, to.b_rec2);
  pack_norm(problem, to.gamma, to.beta);
}

template <class P, Objective OBJECTIVE>
void sum_losses(const Sizes<P>& s, const ForwardWeights<P>& w, const ForwardScratch<P>& at, int64_t padded) {
  for (int64_t i = 0; i < padded * 3 * WIDTH; i += WIDTH) store(at.sums + i, splat(0.0f));
  expand<P>(as_elements(at.h, padded, s.hn, at.h_elements), s.hn, padded, s.hk, w.w_rec2, s.D, w.b_rec2,
            SumLoss<typename P::Element, OBJECTIVE>{at.u, at.sums});
}

template <class P>
void forward_block(const Problem& problem, const char* packed, char* scratch, int64_t first, int64_t rows) {
  const Sizes<P> s(problem);
  const ForwardWeights<P> w(s, packed);
  const ForwardScratch<P> at(s, scratch);
  const int64_t padded = round_up(rows, P::ROWS);

  load_input<P>(problem, s, {w.gamma, w.beta, at.mean, at.rstd}, first, rows, padded, at.block, at.u);
  point_to_rows(problem.out, first, rows, padded, at.out);
  if (problem.residual.base) point_to_rows(problem.residual, first, rows, padded, at.residual);

  Ahead ahead;
  // In the third-level cache (788 tokens) fetching ahead costs more than it gives: 84% of the floor against 91%.
  if (!P::TILES && problem.M * s.D > (1 << 20)) {
    const int64_t lines = s.PAIRS && problem.out.dtype == Dtype::f32 ? 2 : 1;
    ahead.add(at.out, lines);
    if (problem.residual.base) ahead.add(at.residual, lines);
    for (int64_t i = 0; i < padded; ++i) {
      const int64_t m = first + i + TILE_ROWS;
      at.next[i] = row_of(problem.x, m < problem.M ? m : first);
    }
    if (s.direct) ahead.add(at.next, 1);
  }
  reduce<P>(at.u, padded, s.width, w.w_down, at.z, s.rn, ahead.count ? &ahead : nullptr);
  activate(problem.activation, at.z, w.b_down, padded, s.rn, nullptr);
  const auto* z = as_elements(at.z, padded, s.rn, at.z_elements);
  with_type(problem.out.dtype, [&](auto* kind) {
    using T = std::remove_pointer_t<decltype(kind)>;
    if (problem.residual.base)
      expand<P>(z, s.rn, padded, s.rk, w.w_up, s.D, w.b_up, WriteOut<T, true>{at.out, at.residual, problem.scale});
    else
      expand<P>(z, s.rn, padded, s.rk, w.w_up, s.D, w.b_up, WriteOut<T, false>{at.out, at.out, problem.scale});
  });
  if (!s.h) return;

  reduce_narrow<P>(at.z, s.rn, padded, s.narrow_r, w.w_rec1, at.h, s.hn, at.narrow, at.z_rows);
  activate(problem.activation, at.h, w.b_rec1, padded, s.hn, nullptr);
  float* loss = problem.rec_loss + first;
  switch (problem.objective) {
    case Objective::l2: sum_losses<P, Objective::l2>(s, w, at, padded); break;
    case Objective::l1: sum_losses<P, Objective::l1>(s, w, at, padded); break;
    case Objective::cosine: sum_losses<P, Objective::cosine>(s, w, at, padded); break;
  }
  for (int64_t i = 0; i < rows; ++i) {
    const float* sums = at.sums + i * 3 * WIDTH;
    loss[i] = problem.objective == Objective::cosine ? 1.0f - Cosine(sums).value : sum(load(sums));
  }
}
