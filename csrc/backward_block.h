// The order of the steps of backward on a block; its pieces are in backward.h.

template <class P>
void pack_backward_weights(const Problem& problem, char* packed, int part, int parts) {
  const Sizes<P> s(problem);
  const BackwardWeights<P> to(s, packed);
  const Matrix* w = problem.weights;
  const Dtype dtype = problem.dtype;
  const Steps steps(problem);
  pack<P>(w[w_down], s.D, s.r, s.width, s.rn, dtype, to.w_down, part, parts);
  if (steps.x) pack<P>(transposed(w[w_down]), s.r, s.D, s.rk, s.D, dtype, to.w_down_t, part, parts);
  if (steps.base) pack<P>(transposed(w[w_up]), s.D, s.r, s.width, s.rn, dtype, to.w_up_t, part, parts);
  if (steps.rec) {
    pack<Narrow<P>>(w[w_rec1], s.r, s.h, s.narrow_r, s.hn, dtype, to.w_rec1, part, parts);
    pack<P>(w[w_rec2], s.h, s.D, s.hk, s.D, dtype, to.w_rec2, part, parts);
  }
  if (steps.e_product) {
    pack<Narrow<P>>(transposed(w[w_rec1]), s.h, s.r, s.narrow_h, s.rn, dtype, to.w_rec1_t, part, parts);
    pack<P>(transposed(w[w_rec2]), s.D, s.h, s.width, s.hn, dtype, to.w_rec2_t, part, parts);
  }
  if (part > 0) return;
  pack_vector(w[b_down], s.r, s.rn, dtype, to.b_down);
  pack_vector(w[b_rec1], s.h, s.hn, dtype, to.b_rec1);
  pack_vector(w[b_rec2], s.D, s.D, dtype, to.b_rec2);
  pack_norm(problem, to.gamma, to.beta);
}

// The factors of a weight-gradient product, [steps, n, DEPTH]: row[i] times values[i, n], or values themselves.
INLINE const float* as_factors(const float* values, const float* row, int64_t rows, int64_t n, float* to) {
  if (!row) return values;
  for (int64_t i = 0; i < rows; ++i)
    for (int64_t j = 0; j < n; j += WIDTH) store(to + i * n + j, mul(splat(row[i]), load(values + i * n + j)));
  return to;
}

#ifdef RMADAPTER_BF16
INLINE const BFloat16* as_factors(const float* values, const float* row, int64_t rows, int64_t n, BFloat16* to) {
  for (int64_t i = 0; i < rows; i += 2) {
    const bool both = i + 1 < rows;  // else the second row, which repeats the first, counts zero times
    const Vec even = splat(row ? row[i] : 1.0f), odd = splat(!both ? 0.0f : row ? row[i + 1] : 1.0f);
    for (int64_t j = 0; j < n; j += WIDTH) {
      BFloat16 rounded[2 * WIDTH];
      store(rounded, mul(even, load(values + i * n + j)));
      store(rounded + WIDTH, both ? mul(odd, load(values + (i + 1) * n + j)) : odd);
      interleave(rounded, rounded + WIDTH, WIDTH, to + i * n + 2 * j);
    }
  }
  return to;
}
#endif

// total [D, n], on tiles [n, stride], += a^T values, a [rows, D] by row pointers, values [rows, n] each times its `factor`
// (null: 1).
template <class P>
void collect_rows(const BackwardScratch<P>& at, const typename P::Element* const* a, int64_t rows, int64_t D,
                  const float* values, const float* factor, float* total, int64_t n, [[maybe_unused]] int64_t stride) {
  if constexpr (P::TILES) {
    const int64_t tokens = interleave_rows(a, rows, D, at.pair_block);
    transposed_factors(values, factor, rows, n, at.factors);
    collect_on_tiles(at.pair_block, tokens, D, at.factors, total, n, stride);
  } else {
    const typename P::Element* factors = as_factors(values, factor, rows, n, at.factors);
    if constexpr (P::DEPTH == 2) {
      const int64_t steps = (rows + 1) / 2;
      for (int64_t i = 0; i < steps; ++i) {
        typename P::Element* to = at.pair_block + 2 * i * D;
        interleave(a[2 * i], a[2 * i + 1 < rows ? 2 * i + 1 : 2 * i], D, to);
        at.pairs[i] = to;
      }
      collect<P>(at.pairs, steps, D, factors, total, n);
    } else {
      collect<P>(a, rows, D, factors, total, n);
    }
  }
}

// h, its slope and e of a block; dl and the target's factor of each row.
template <class P>
void reconstruct(const Problem& problem, const Sizes<P>& s, const BackwardWeights<P>& w, const BackwardScratch<P>& at,
                 int64_t first, int64_t rows, int64_t padded) {
  using Element = typename P::Element;
  reduce_narrow<P>(at.z, s.rn, padded, s.narrow_r, w.w_rec1, at.h, s.hn, at.narrow, at.z_rows);
  activate(problem.activation, at.h, w.b_rec1, padded, s.hn, at.h_slope);
  const bool cosine = problem.objective == Objective::cosine;
  const float power = problem.objective == Objective::l2 ? 2.0f : 1.0f;
  for (int64_t i = 0; i < padded; ++i) {  // in the padding like the last row, so that its dx may be written twice
    at.dl[i] = power * problem.d_loss[first + (i < rows ? i : rows - 1)];
    at.target_factor[i] = cosine ? at.dl[i] : -at.dl[i];
  }
  point_to_rows<const Element>(at.e_block, s.width, padded, at.e);

  const Element* h = as_elements(at.h, padded, s.hn, at.elements);
  float* wide = Steps(problem).target && s.PAIRS ? at.target : nullptr;
  const auto run = [&](const auto& epilogue) { expand<P>(h, s.hn, padded, s.hk, w.w_rec2, s.D, w.b_rec2, epilogue); };
  switch (problem.objective) {
    case Objective::l2: run(WriteDifference<Element, Objective::l2>{at.u, at.e_block, wide, s.width}); break;
    case Objective::l1: run(WriteDifference<Element, Objective::l1>{at.u, at.e_block, wide, s.width}); break;
    case Objective::cosine:
      for (int64_t i = 0; i < padded * 3 * WIDTH; i += WIDTH) store(at.sums + i, splat(0.0f));
      run(WriteReconstruction<Element>{{at.u, at.sums}, at.target, s.width});
      for (int64_t i = 0; i < padded; ++i)
        cosine_gradients(at.u[i], at.sums + i * 3 * WIDTH, s.D, at.e_block + i * s.width, at.target + i * s.width);
  }
  complete_rows(s, at.e_block, padded, padded);
}

// dx of a block from v [padded, rn].
template <class P, class T>
void write_input_gradient(const Problem& problem, const Sizes<P>& s, const BackwardWeights<P>& w,
                          const BackwardScratch<P>& at, const float* v, int64_t first, int64_t rows, int64_t padded) {
  const float* target = nullptr;
  if (Steps(problem).target) {
    target = at.target;
    if constexpr (P::DEPTH == 1) {
      if (problem.objective != Objective::cosine) target = at.e_block;
    }
  }
  point_to_rows(problem.dx, first, rows, padded, at.dx);
  const auto* a = as_elements(v, padded, s.rn, at.elements);
  const auto run = [&](const auto& epilogue) { expand<P>(a, s.rn, padded, s.rk, w.w_down_t, s.D, nullptr, epilogue); };
  if (!problem.normalise) return run(WriteInputGradient<T>{at.dx, target, at.target_factor, s.width});
  point_to_rows(problem.x, first, rows, padded, at.x);
  for (int64_t i = 0; i < padded * 3 * WIDTH; i += WIDTH) store(at.sums + i, splat(0.0f));
  for (int64_t i = rows; i < padded; ++i) at.mean[i] = at.rstd[i] = 0.0f;
  run(WriteNormalisedGradient<T>{at.x, target, at.target_factor, w.gamma, at.mean, at.rstd, at.du, at.sums, s.width});
  for (int64_t i = 0; i < rows; ++i)
    norm_backward(reinterpret_cast<const T*>(at.x[i]), at.du + i * s.width, at.sums + i * 3 * WIDTH, s.D, at.mean[i],
                  at.rstd[i], reinterpret_cast<T*>(at.dx[i]));
}

template <class P>
void backward_block(const Problem& problem, const char* packed, char* scratch, float* sums, int64_t first,
                    int64_t rows) {
  using Element = typename P::Element;
  const Sizes<P> s(problem);
  const BackwardWeights<P> w(s, packed);
  const BackwardScratch<P> at(problem, s, scratch);
  const Sums<P> sum_at(problem, s);
  const Steps steps(problem);
  const auto needed = [&](Weight weight) { return problem.gradients[weight].data != nullptr; };
  const int64_t padded = round_up(rows, P::ROWS), r_floats = padded * s.rn;

  load_input<P>(problem, s, {w.gamma, w.beta, at.mean, at.rstd}, first, rows, padded, at.u_block, at.u);
  reduce<P>(at.u, padded, s.width, w.w_down, at.z, s.rn);
  activate(problem.activation, at.z, w.b_down, padded, s.rn, at.z_slope);

  if (problem.d_out.base) {
    if (problem.d_out.dtype == (s.PAIRS ? Dtype::bf16 : Dtype::f32)) {
      point_to_elements<P>(s, problem.d_out, first, rows, padded, at.g_block, at.g);
    } else {
      with_type(problem.d_out.dtype, [&](auto* kind) {
        using T = std::remove_pointer_t<decltype(kind)>;
        for (int64_t i = 0; i < rows; ++i)
          convert_row(reinterpret_cast<const T*>(row_of(problem.d_out, first + i)), at.g_block + i * s.width, s.D);
      });
      complete_rows(s, at.g_block, rows, padded);
      point_to_rows<const Element>(at.g_block, s.width, padded, at.g);
    }
    if (needed(w_up))
      collect_rows<P>(at, at.g, rows, s.D, at.z, nullptr, sums + sum_at.w_up, s.rn, sum_at.stride);
    if (needed(b_up)) add_rows(at.g, rows, s.D, nullptr, sums + sum_at.b_up);
  }
  if (steps.base) {
    reduce<P>(at.g, padded, s.width, w.w_up_t, at.dz_base, s.rn);
  } else {
    for (int64_t i = 0; i < r_floats; i += WIDTH) store(at.dz_base + i, splat(0.0f));
  }

  const bool with_dz_rec = steps.e_product && (steps.dz || (steps.x && !problem.local));
  if (steps.rec) {
    reconstruct<P>(problem, s, w, at, first, rows, padded);
    if (needed(w_rec2))
      collect_rows<P>(at, at.e, rows, s.D, at.h, at.dl, sums + sum_at.w_rec2, s.hn, sum_at.stride);
    if (needed(b_rec2)) add_rows(at.e, rows, s.D, at.dl, sums + sum_at.b_rec2);
  }
  if (steps.e_product) {
    reduce<P>(at.e, padded, s.width, w.w_rec2_t, at.dh, s.hn);
    for (int64_t i = 0; i < padded; ++i)
      for (int64_t j = i * s.hn; j < (i + 1) * s.hn; j += WIDTH)
        store(at.dh + j, mul(mul(splat(at.dl[i]), load(at.dh + j)), load(at.h_slope + j)));
    if (needed(w_rec1)) {
      point_to_rows<const float>(at.z, s.rn, rows, at.z_floats);
      collect<Floats>(at.z_floats, rows, s.rn, at.dh, sums + sum_at.w_rec1, s.hn);
    }
    if (needed(b_rec1))
      for (int64_t i = 0; i < rows; ++i)
        for (int64_t j = 0; j < s.hn; j += WIDTH) {
          float* total = sums + sum_at.b_rec1 + j;
          store(total, add(load(total), load(at.dh + i * s.hn + j)));
        }
    if (with_dz_rec)
      reduce_narrow<P>(at.dh, s.hn, padded, s.narrow_h, w.w_rec1_t, at.dz_rec, s.rn, at.narrow, at.dh_rows);
  }

  // dz takes dz_base's place, v that of z.
  const Vec scale = splat(problem.scale), c_scale = splat(problem.branch_grad_scale * problem.scale);
  for (int64_t i = 0; i < r_floats; i += WIDTH) {
    const Vec base = load(at.dz_base + i), slope = load(at.z_slope + i);
    const Vec rec = with_dz_rec ? load(at.dz_rec + i) : splat(0.0f);
    store(at.z + i, mul(fma(scale, base, problem.local ? splat(0.0f) : rec), slope));
    store(at.dz_base + i, mul(fma(c_scale, base, rec), slope));
  }
  if (needed(w_down))
    collect_rows<P>(at, at.u, rows, s.D, at.dz_base, nullptr, sums + sum_at.w_down, s.rn, sum_at.stride);
  if (needed(b_down))
    for (int64_t i = 0; i < rows; ++i)
      for (int64_t j = 0; j < s.rn; j += WIDTH) {
        float* total = sums + sum_at.b_down + j;
        store(total, add(load(total), load(at.dz_base + i * s.rn + j)));
      }
  if (steps.x)
    with_type(problem.dtype, [&](auto* kind) {
      using T = std::remove_pointer_t<decltype(kind)>;
      write_input_gradient<P, T>(problem, s, w, at, at.z, first, rows, padded);
    });
}

template <class P>
void write_weight_gradients(const Problem& problem, const float* total, int part, int parts) {
  const Sizes<P> s(problem);
  const Sums<P> at(problem, s);
  const Matrix* to = problem.gradients;
  const float up = problem.branch_grad_scale * problem.scale;
  write_gradient(to[w_down], s.D, s.r, total + at.w_down, at.row_step(s.rn), at.column_step(), 1.0f, part, parts);
  write_gradient(to[w_up], s.r, s.D, total + at.w_up, at.column_step(), at.row_step(s.rn), up, part, parts);
  write_gradient(to[w_rec1], s.r, s.h, total + at.w_rec1, s.hn, 1, 1.0f, part, parts);
  write_gradient(to[w_rec2], s.h, s.D, total + at.w_rec2, at.column_step(), at.row_step(s.hn), 1.0f, part, parts);
  if (part > 0) return;
  write_vector_gradient(to[b_down], s.r, total + at.b_down, 1.0f);
  write_vector_gradient(to[b_up], s.D, total + at.b_up, up);
  write_vector_gradient(to[b_rec1], s.h, total + at.b_rec1, 1.0f);
  write_vector_gradient(to[b_rec2], s.D, total + at.b_rec2, 1.0f);
}
