//! Numbers that are the same on every machine: a fixed generator, and logarithms made of IEEE operations alone (the
//! mathematical library of a host may differ from that of another in the last digit).

/// SplitMix64 (Steele, Lea, Flood 2014).
pub(super) struct SplitMix64(u64);

impl SplitMix64 {
    pub(super) fn new(seed: u64) -> Self {
        Self(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// From 0, below 1.
    #[allow(clippy::cast_precision_loss)] // 53 bits are exact
    pub(super) fn fraction(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1_u64 << 53) as f64
    }

    /// From 0, below `bound`, which must not be 0.
    pub(super) fn below(&mut self, bound: usize) -> usize {
        let bound = u128::try_from(bound).unwrap_or(1);
        let scaled = (u128::from(self.next()) * bound) >> 64;
        usize::try_from(scaled).unwrap_or(0)
    }
}

/// The number at this part of the way from one to the other, both above 0, evenly in the logarithm.
pub(super) fn between_logarithms(start: f64, end: f64, part: f64) -> f64 {
    let (from, to) = (ln(start), ln(end));
    exp(from + (to - from) * part)
}

/// Natural logarithm of a number above 0.
fn ln(x: f64) -> f64 {
    // x = m · 2^e with m near 1, by exact steps.
    let (mut m, mut e) = (x, 0_i32);
    while m > 1.5 {
        m *= 0.5;
        e += 1;
    }
    while m < 0.75 {
        m *= 2.0;
        e -= 1;
    }
    // ln m = 2 artanh((m - 1) / (m + 1)), whose argument is at most 1/5.
    let y = (m - 1.0) / (m + 1.0);
    let square = y * y;
    let (mut power, mut sum) = (y, 0.0);
    for k in 0..14 {
        sum += power / f64::from(2 * k + 1);
        power *= square;
    }
    2.0 * sum + f64::from(e) * std::f64::consts::LN_2
}

/// e to the power of `x`, which is the logarithm of a double.
fn exp(x: f64) -> f64 {
    let mut halvings = 0;
    let mut r = x;
    while r.abs() > 0.25 && halvings < 64 {
        r *= 0.5;
        halvings += 1;
    }
    let (mut term, mut sum) = (1.0, 1.0);
    for k in 1..16 {
        term *= r / f64::from(k);
        sum += term;
    }
    for _ in 0..halvings {
        sum *= sum;
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_generator_gives_the_published_numbers() {
        let mut generator = SplitMix64::new(1_234_567);
        let drawn: Vec<u64> = (0..3).map(|_| generator.next()).collect();
        assert_eq!(
            drawn,
            [
                6_457_827_717_110_365_317,
                3_203_168_211_198_807_973,
                9_817_491_932_198_370_423
            ]
        );
    }

    #[test]
    fn logarithms_are_those_of_mathematics() {
        for x in [1e-300, 1e-5, 0.3, 1.0, 2.5, 7.0, 1e9, 1e300] {
            assert!(
                (ln(x) - x.ln()).abs() <= 1e-12 * (1.0 + x.ln().abs()),
                "{x}"
            );
            assert!((exp(ln(x)) / x - 1.0).abs() < 1e-9, "{x}");
        }
        assert!((between_logarithms(1e-4, 1e-2, 0.5) - 1e-3).abs() < 1e-12);
    }
}
