// e^x for 16 lanes: 2^n by the exponent field, the rest (|r| <= ln2/2) by a polynomial of degree 6; below 1e-7 relative.
static inline F exp16(F x) {
  x = fmin(fmax(x, fset(-87.0f)), fset(88.0f));
  I n = toint(mul(x, fset(1.44269504f)));
  F fn = tofloat(n);
  F r = fnma(fn, fset(0.693359375f), x);
  r = fnma(fn, fset(-2.12194440e-4f), r);
  F p = fset(1.0f / 720);
  p = fma(p, r, fset(1.0f / 120));
  p = fma(p, r, fset(1.0f / 24));
  p = fma(p, r, fset(1.0f / 6));
  p = fma(p, r, fset(0.5f));
  p = fma(p, r, fset(1.0f));
  p = fma(p, r, fset(1.0f));
  return mul(p, pow2(n));
}
