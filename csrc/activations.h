// Activations and their derivatives on vectors, within 5e-7 of their value; in the tails the rounding of the exponential's
// argument adds x^2 / 2 (gelu) or x (the others) half steps. For |x| above 1e30 the derivative of gelu is no number to rely on: the
// exponential ends at the smallest normal number, and is multiplied by x.

// exp(x); x is cut to the range of normal numbers.
INLINE Vec exponential(Vec x) {
  x = max(splat(-87.3f), min(splat(88.0f), x));
  const Vec n = round(mul(x, splat(1.44269504f)));
  // ln 2 in two parts, the first with few enough bits that n times it is exact.
  Vec f = fma(n, splat(-0.693359375f), x);
  f = fma(n, splat(2.12194440e-4f), f);
  // Minimax of relative error 2e-9 on |f| <= ln 2 / 2.
  Vec p = splat(0.00138368f);
  p = fma(p, f, splat(0.00837482f));
  p = fma(p, f, splat(0.04166823f));
  p = fma(p, f, splat(0.1666642f));
  p = fma(p, f, splat(0.49999992f));
  p = fma(p, f, splat(1.0f));
  p = fma(p, f, splat(1.0f));
  return mul(p, power_of_two(n));
}

struct Activated {
  Vec value, derivative;
};

// Phi(-t) = exp(-t^2 / 2) q(1 / (1 + 0.35 t)) for t >= 0, q a minimax polynomial of relative error 4e-8: the exponential
// serves the derivative too, and the tail keeps its relative precision, which 1 + erf loses.
INLINE Activated gelu(Vec x) {
  const Vec t = abs(x);
  const Vec s = div(splat(1.0f), fma(splat(0.35f), t, splat(1.0f)));
  Vec q = splat(-0.02853133f);
  q = fma(q, s, splat(0.14127332f));
  q = fma(q, s, splat(-0.25073951f));
  q = fma(q, s, splat(0.15416825f));
  q = fma(q, s, splat(-0.02011891f));
  q = fma(q, s, splat(0.10442793f));
  q = fma(q, s, splat(0.12006162f));
  q = fma(q, s, splat(0.13983606f));
  q = fma(q, s, splat(0.13962258f));
  const Vec e = exponential(mul(splat(-0.5f), mul(t, t)));
  const Vec tail = mul(mul(q, s), e);
  const Vec phi = where_positive(x, sub(splat(1.0f), tail), tail);
  return {mul(x, phi), fma(mul(x, splat(0.398942280f)), e, phi)};
}

// x sigmoid(slope x)
INLINE Activated sigmoid_gate(Vec x, float slope) {
  const Vec y = mul(splat(slope), x);
  const Vec s = div(splat(1.0f), add(splat(1.0f), exponential(sub(splat(0.0f), y))));
  return {mul(x, s), mul(s, fma(y, sub(splat(1.0f), s), splat(1.0f)))};
}

INLINE Activated relu(Vec x) {
  return {max(splat(0.0f), x), where_positive(x, splat(1.0f), splat(0.0f))};
}

// Calls f(activation) with the one that `name` names, so that its loop is compiled for each.
template <class F>
INLINE void with_activation(Activation name, F f) {
  switch (name) {
    case Activation::gelu: f([](Vec x) INLINE_LAMBDA { return gelu(x); }); break;
    case Activation::relu: f([](Vec x) INLINE_LAMBDA { return relu(x); }); break;
    case Activation::quick_gelu: f([](Vec x) INLINE_LAMBDA { return sigmoid_gate(x, 1.702f); }); break;
    case Activation::silu: f([](Vec x) INLINE_LAMBDA { return sigmoid_gate(x, 1.0f); }); break;
  }
}
