//! Sums of probabilities by their logarithms, the logarithm with a sparse prior, and the order of
//! numbers that were rounded.

use crate::seeds::Edge;

/// Adds how often each token is expected in a word of `length` bytes that occurs `count` times;
/// returns its log likelihood.
pub(crate) fn by_logarithms(
    edges: &[Edge],
    length: usize,
    count: f64,
    scores: &[f64],
    expected: &mut [f64],
) -> f64 {
    let mut alpha = vec![f64::NEG_INFINITY; length + 1];
    let mut beta = alpha.clone();
    alpha[0] = 0.0;
    beta[length] = 0.0;
    for edge in edges {
        let path = alpha[usize::from(edge.start)] + scores[edge.token as usize];
        let end = &mut alpha[usize::from(edge.end)];
        *end = log_add(*end, path);
    }
    let all = alpha[length];
    for edge in edges.iter().rev() {
        let path = scores[edge.token as usize] + beta[usize::from(edge.end)];
        let start = &mut beta[usize::from(edge.start)];
        *start = log_add(*start, path);
        let share = (alpha[usize::from(edge.start)] + path - all).exp();
        expected[edge.token as usize] += count * share;
    }
    all
}

/// ln(exp(a) + exp(b)).
fn log_add(a: f64, b: f64) -> f64 {
    let (high, low) = (a.max(b), a.min(b));
    if low == f64::NEG_INFINITY {
        return high;
    }
    high + (low - high).exp().ln_1p()
}

/// The derivative of ln gamma for x > 0: recurrence up to 7, then its asymptotic series.
pub(crate) fn digamma(mut x: f64) -> f64 {
    let mut result = 0.0;
    while x < 7.0 {
        result -= 1.0 / x;
        x += 1.0;
    }
    let square = 1.0 / (x * x);
    result + x.ln() - 0.5 / x - square * (1.0 / 12.0 - square * (1.0 / 120.0 - square / 252.0))
}

/// Some places by their falling values; values whose first nine digits agree are equal, because the
/// order of such tokens must not depend on how a sum was rounded.
pub(crate) fn sort_by_worth(places: &mut [usize], values: &[f64]) {
    let digits = |place: usize| {
        let value = values[place];
        let unit = 10f64.powf(value.abs().log10().floor() - 8.0);
        // Zero has no first digit.
        if unit > 0.0 {
            (value / unit).round() * unit
        } else {
            value
        }
    };
    places.sort_by(|&a, &b| digits(b).total_cmp(&digits(a)));
}
