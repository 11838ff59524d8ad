// Backward on a block of rows; the formulas are those of rmadapter_kernels/eager.py, and its names.
//   u, pre, z and, for the loss, pre_h, h and e (gradient of the loss to rec, not yet times dl) are computed again;
//   dz_base = d_out W_up^T, dz_rec = dh W_rec1^T;  sums += u^T dz, d_out^T z, e^T (dl h), z^T dh;  dx = v W_down^T + t
// scale, branch_grad_scale and dl multiply fp32 sums; in 16 bits are only u, d_out, e, z, dz, v and dl h themselves.

template <class P>
struct BackwardWeights {
  using Element = typename P::Element;
  Element *w_down, *w_down_t, *w_up_t, *w_rec2, *w_rec2_t;
  typename Narrow<P>::Element *w_rec1, *w_rec1_t;
  float *b_down, *b_rec1, *b_rec2, *gamma, *beta;
  size_t bytes;

  BackwardWeights(const Sizes<P>& s, const char* base) {
    Memory memory(base);
    w_down = memory.take<Element>(s.width * s.rn);
    w_down_t = memory.take<Element>(s.rk * s.D);
    w_up_t = memory.take<Element>(s.width * s.rn);
    w_rec2 = memory.take<Element>(s.hk * s.D);
    w_rec2_t = memory.take<Element>(s.width * s.hn);
    w_rec1 = memory.take<typename Narrow<P>::Element>(s.narrow_r * s.hn);
    w_rec1_t = memory.take<typename Narrow<P>::Element>(s.narrow_h * s.rn);
    b_down = memory.take<float>(s.rn);
    b_rec1 = memory.take<float>(s.hn);
    b_rec2 = memory.take<float>(s.D);
    gamma = memory.take<float>(s.D);
    beta = memory.take<float>(s.D);
    bytes = memory.used;
  }
};

// Which of the steps somebody asked for.
struct Steps {
  bool x, dz, base, rec, e_product, target;

  explicit Steps(const Problem& p) {
    const auto needed = [&](Weight weight) { return p.gradients[weight].data != nullptr; };
    x = p.dx.base != nullptr;
    dz = needed(w_down) || needed(b_down);
    base = p.d_out.base && (x || dz);
    rec = p.d_loss && p.h > 0;
    e_product = rec && (dz || needed(w_rec1) || needed(b_rec1) || (x && !p.local));
    target = rec && x && !p.local;
    rec = rec && (e_product || needed(w_rec2) || needed(b_rec2));
  }
};

template <class P>
struct BackwardScratch {
  using Element = typename P::Element;
  const Element **u, **g, **e, **pairs;
  char **x, **dx;
  const typename Narrow<P>::Element **z_rows, **dh_rows;
  const float** z_floats;
  Element *u_block, *g_block, *e_block, *pair_block, *elements, *factors, *narrow;
  float *target, *du, *z, *z_slope, *h, *h_slope, *dz_base, *dz_rec, *dh, *sums, *mean, *rstd, *dl, *target_factor;
  size_t bytes;

  BackwardScratch(const Problem& problem, const Sizes<P>& s, const char* base) {
    const Steps steps(problem);
    const int64_t block = s.rows * s.width;
    const int64_t widest = s.rows * (s.rn > s.hn ? s.rn : s.hn);
    Memory memory(base);
    u = memory.take<const Element*>(s.rows);
    g = memory.take<const Element*>(s.rows);
    e = memory.take<const Element*>(s.rows);
    pairs = memory.take<const Element*>(s.rows);
    x = memory.take<char*>(s.rows);
    dx = memory.take<char*>(s.rows);
    z_rows = memory.take<const typename Narrow<P>::Element*>(s.rows);
    z_floats = memory.take<const float*>(s.rows);
    dh_rows = memory.take<const typename Narrow<P>::Element*>(s.rows);
    u_block = memory.take<Element>(s.direct && !P::TILES ? 0 : block);
    g_block = memory.take<Element>(block);
    e_block = memory.take<Element>(steps.rec ? block : 0);
    pair_block = memory.take<Element>(s.PAIRS ? round_up(s.rows, P::K_STEP) * s.width : 0);
    const bool cosine = problem.objective == Objective::cosine;
    target = memory.take<float>(steps.rec && (cosine || (steps.target && s.PAIRS)) ? block : 0);
    du = memory.take<float>(problem.normalise && steps.x ? block : 0);
    elements = memory.take<Element>(s.PAIRS ? widest : 0);
    factors = memory.take<Element>(round_up(s.rows, P::K_STEP) * (s.rn > s.hn ? s.rn : s.hn));
    narrow = memory.take<Element>(P::TILES ? 2 * widest : 0);
    z = memory.take<float>(s.rows * s.rn);
    z_slope = memory.take<float>(s.rows * s.rn);
    dz_base = memory.take<float>(s.rows * s.rn);
    dz_rec = memory.take<float>(s.rows * s.rn);
    h = memory.take<float>(s.rows * s.hn);
    h_slope = memory.take<float>(s.rows * s.hn);
    dh = memory.take<float>(s.rows * s.hn);
    sums = memory.take<float>(s.rows * 3 * WIDTH);
    mean = memory.take<float>(s.rows);
    rstd = memory.take<float>(s.rows);
    dl = memory.take<float>(s.rows);
    target_factor = memory.take<float>(s.rows);
    bytes = memory.used;
  }
};

// Weight-gradient sums, of w_up and w_rec2 transposed, since the long side of a product is its rows [D, n]. On tiles it
// is its columns, [n, stride], with a stride that puts rows into different sets of a cache.
template <class P>
struct Sums {
  int64_t stride;
  int64_t w_down = 0, w_up = 0, w_rec1 = 0, w_rec2 = 0, b_down = 0, b_up = 0, b_rec1 = 0, b_rec2 = 0, count = 0;

  int64_t row_step(int64_t n) const { return P::TILES ? 1 : n; }
  int64_t column_step() const { return P::TILES ? stride : 1; }

  Sums(const Problem& problem, const Sizes<P>& s) : stride(P::TILES ? s.width + 16 : s.D) {
    const auto place = [&](Weight weight, int64_t floats) {
      const int64_t start = count;
      if (problem.gradients[weight].data) count += round_up(floats, 16);
      return start;
    };
    w_down = place(Weight::w_down, stride * s.rn);
    w_up = place(Weight::w_up, stride * s.rn);
    w_rec2 = place(Weight::w_rec2, stride * s.hn);
    w_rec1 = place(Weight::w_rec1, round_up(s.rn, TILE_COLUMNS) * s.hn);
    b_down = place(Weight::b_down, s.rn);
    b_up = place(Weight::b_up, s.D);
    b_rec1 = place(Weight::b_rec1, s.hn);
    b_rec2 = place(Weight::b_rec2, s.D);
  }
};

// e and, where it is wanted, the same in floats.
template <class Element, Objective OBJECTIVE>
struct WriteDifference {
  const Element* const* u;
  Element* e;
  float* wide;
  int64_t D;

  template <int N>
  INLINE void operator()(int64_t row, int64_t column, Vec (&rec)[N]) const {
    Vec difference[N];
    UNROLL for (int j = 0; j < N; ++j) {
      const int64_t d = column + j * WIDTH;
      difference[j] = sub(rec[j], load(u[row] + d));
      if (OBJECTIVE == Objective::l1) {
        const Vec negative = sub(splat(0.0f), difference[j]);
        difference[j] = where_positive(difference[j], splat(1.0f), where_positive(negative, splat(-1.0f), splat(0.0f)));
      }
      if (wide) store(wide + row * D + d, difference[j]);
    }
    store_all(e + row * D + column, difference);
  }
};

// rec itself and the three sums of the cosine.
template <class Element>
struct WriteReconstruction {
  SumLoss<Element, Objective::cosine> sum;
  float* wide;
  int64_t D;

  template <int N>
  INLINE void operator()(int64_t row, int64_t column, Vec (&rec)[N]) const {
    sum(row, column, rec);
    UNROLL for (int j = 0; j < N; ++j) store(wide + row * D + column + j * WIDTH, rec[j]);
  }
};

// e = along rec - x / product in `e`, t = along' x - rec / product in place of rec.
template <class Element>
INLINE void cosine_gradients(const Element* u, const float* sums, int64_t D, Element* e, float* rec) {
  const Cosine cosine(sums);
  const auto along = [&](float norm, float clamped) {  // below the clamp the norm is a constant
    return splat(norm >= 1e-8f ? cosine.value / clamped / clamped : 0.0f);
  };
  const Vec e_along = along(cosine.rec_norm, cosine.rec_clamped), t_along = along(cosine.u_norm, cosine.u_clamped);
  const Vec across = splat(-1.0f / cosine.u_clamped / cosine.rec_clamped);
  for (int64_t d = 0; d < D; d += WIDTH) {
    const Vec x = load(u + d), y = load(rec + d);
    store(e + d, fma(e_along, y, mul(across, x)));
    store(rec + d, fma(t_along, x, mul(across, y)));
  }
}

template <class T>
struct WriteInputGradient {
  char** dx;
  const float* target;  // null: none
  const float* factor;
  int64_t D;

  template <int N>
  INLINE void operator()(int64_t row, int64_t column, Vec (&du)[N]) const {
    T* to = reinterpret_cast<T*>(dx[row]) + column;
    prefetch_near(to + N * WIDTH);
    UNROLL for (int j = 0; j < N; ++j) {
      if (target) du[j] = fma(splat(factor[row]), load(target + row * D + column + j * WIDTH), du[j]);
    }
    store_all(to, du);
  }
};

// du gamma into `wide`, and sums [rows, 3, WIDTH]: of it, and of it times x_hat.
template <class T>
struct WriteNormalisedGradient {
  char** x;
  const float* target;
  const float* factor;
  const float *gamma, *mean, *rstd;
  float *wide, *sums;
  int64_t D;

  template <int N>
  INLINE void operator()(int64_t row, int64_t column, Vec (&du)[N]) const {
    float* p = sums + row * 3 * WIDTH;
    Vec plain = load(p), along = load(p + WIDTH);
    UNROLL for (int j = 0; j < N; ++j) {
      const int64_t d = column + j * WIDTH;
      if (target) du[j] = fma(splat(factor[row]), load(target + row * D + d), du[j]);
      const Vec d_hat = mul(du[j], load(gamma + d));
      const Vec x_hat = mul(sub(load(reinterpret_cast<const T*>(x[row]) + d), splat(mean[row])), splat(rstd[row]));
      store(wide + row * D + d, d_hat);
      plain = add(plain, d_hat);
      along = fma(d_hat, x_hat, along);
    }
    store(p, plain);
    store(p + WIDTH, along);
  }
};

template <class T>
INLINE void norm_backward(const T* x, const float* d_hat, const float* sums, int64_t D, float mean, float rstd, T* dx) {
  const Vec plain = splat(sum(load(sums)) / static_cast<float>(D));
  const Vec along = splat(sum(load(sums + WIDTH)) / static_cast<float>(D));
  for (int64_t d = 0; d < D; d += WIDTH) {
    const Vec x_hat = mul(sub(load(x + d), splat(mean)), splat(rstd));
    store(dx + d, mul(splat(rstd), sub(sub(load(d_hat + d), plain), mul(x_hat, along))));
  }
}
