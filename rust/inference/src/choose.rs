//! From logits to the next token, or to the caller.

use crate::level::Level;
use crate::simd::{Floats, LANES, Simd, Task};
use crate::team::View;
use crate::{Error, Result};

/// How a token is drawn.
#[derive(Clone, Copy, Debug)]
pub struct Chance {
    /// Divisor of the logits; 0 takes the largest, of equal ones the first.
    pub temperature: f32,
    /// A number in [0, 1): the token is the first whose cumulative probability exceeds it.
    pub number: f64,
}

impl Chance {
    pub(crate) fn check(&self) -> Result<()> {
        let Self {
            temperature,
            number,
        } = self;
        if temperature.is_nan() || *temperature < 0.0 {
            return Err(Error::invalid(format!(
                "temperature={temperature}: must be 0 or more"
            )));
        }
        if !(0.0..1.0).contains(number) {
            return Err(Error::invalid(format!(
                "number={number}: must be at least 0 and below 1"
            )));
        }
        Ok(())
    }
}

/// What is made of the logits after each wanted token.
pub enum Want<'a> {
    /// They are copied: [wanted, `vocab_size`].
    Logits(&'a mut [f32]),
    /// A token is drawn from each; None where a logit is not finite.
    Tokens(&'a [Chance], &'a mut [Option<u32>]),
}

impl Want<'_> {
    /// The same, for a while.
    pub(crate) fn lent(&mut self) -> Want<'_> {
        match self {
            Self::Logits(into) => Want::Logits(into),
            Self::Tokens(chances, into) => Want::Tokens(chances, into),
        }
    }

    /// Those after the first `rows` wanted tokens, and the rest.
    pub(crate) fn split(self, rows: usize, vocab_size: usize) -> (Self, Self) {
        match self {
            Self::Logits(into) => {
                let (first, rest) = into.split_at_mut(rows * vocab_size);
                (Self::Logits(first), Self::Logits(rest))
            }
            Self::Tokens(chances, into) => {
                let (some, others) = chances.split_at(rows);
                let (first, rest) = into.split_at_mut(rows);
                (Self::Tokens(some, first), Self::Tokens(others, rest))
            }
        }
    }
}

/// Which ids may be drawn.
#[derive(Clone, Copy, Debug)]
pub struct Ids<'a> {
    /// Those below this number.
    pub vocab_size: usize,
    /// But not these.
    pub missing: &'a [u32],
}

impl Ids<'_> {
    /// Whether no id may be drawn.
    pub(crate) fn all_missing(self) -> bool {
        if self.missing.len() < self.vocab_size {
            return false;
        }
        let mut left = vec![true; self.vocab_size];
        for id in self.missing {
            if let Some(left) = left.get_mut(*id as usize) {
                *left = false;
            }
        }
        !left.contains(&true)
    }
}

/// The logits of one row.
pub(crate) struct Logits<'a> {
    /// By panel and row.
    pub(crate) view: &'a View<'a, Floats>,
    pub(crate) row: usize,
}

impl Logits<'_> {
    fn line(&self, panel: usize) -> &Floats {
        &self.view.unit(panel)[self.row]
    }

    /// Copies them.
    pub(crate) fn copy(&self, into: &mut [f32]) {
        for (panel, part) in into.chunks_mut(LANES).enumerate() {
            part.copy_from_slice(&self.line(panel).0[..part.len()]);
        }
    }

    /// Draws one of the ids; None if the logit of one is not finite.
    pub(crate) fn draw(
        &self,
        level: Level,
        ids: Ids<'_>,
        chance: Chance,
        line: &mut Vec<Floats>,
    ) -> Option<u32> {
        if !level.run(Finite(self, ids.vocab_size)) {
            return None;
        }
        line.clear();
        line.extend((0..ids.vocab_size.div_ceil(LANES)).map(|panel| *self.line(panel)));
        if let Some(last) = line.last_mut() {
            last.0[(ids.vocab_size - 1) % LANES + 1..].fill(f32::NEG_INFINITY);
        }
        for id in ids.missing {
            if let Some(line) = line.get_mut(*id as usize / LANES) {
                line.0[*id as usize % LANES] = f32::NEG_INFINITY;
            }
        }
        Some(level.run(Draw { chance, line }))
    }
}

struct Finite<'a>(&'a Logits<'a>, usize);

impl Task for Finite<'_> {
    type Output = bool;

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) -> bool {
        let Self(logits, vocab_size) = self;
        // 0 x is 0 for a number x, and NaN for anything else. What fills the last panel is 0.
        let (mut sum, zero) = (simd.splat(0.0), simd.splat(0.0));
        for panel in 0..vocab_size / LANES {
            sum = simd.mul_add(simd.load(logits.line(panel)), zero, sum);
        }
        let rest = &logits.line((vocab_size - 1) / LANES).0[..=(vocab_size - 1) % LANES];
        simd.total(sum) == 0.0 && rest.iter().all(|x| x.is_finite())
    }
}

/// Draws from logits, which it spoils.
struct Draw<'a> {
    chance: Chance,
    line: &'a mut [Floats],
}

impl Task for Draw<'_> {
    type Output = u32;

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) -> u32 {
        let mut top = simd.splat(f32::NEG_INFINITY);
        for line in &*self.line {
            top = simd.max(top, simd.load(line));
        }
        let top = simd.largest(top);
        if self.chance.temperature == 0.0 {
            // Not below: the largest is one of them, so that equality is what is meant.
            return first(self.line, |x| x >= top);
        }
        // 0 / 0 is no number: so small a divisor leaves the largest logits alone anyway. And so is
        // -inf / inf, which ids that are not drawn would come to: so large a one makes all equal.
        let divisor = simd.splat(self.chance.temperature.clamp(1e-30, f32::MAX));
        let mut sums = Vec::with_capacity(self.line.len());
        let mut total = 0.0;
        for line in &mut *self.line {
            let e = simd.exp(simd.div(simd.sub(simd.load(line), simd.splat(top)), divisor));
            simd.store(e, line);
            total += f64::from(simd.total(e));
            sums.push(total);
        }
        let target = self.chance.number * total;
        let panel = sums
            .partition_point(|sum| *sum <= target)
            .min(sums.len() - 1);
        let mut sum = if panel == 0 { 0.0 } else { sums[panel - 1] };
        let within = first(&self.line[panel..=panel], |p| {
            sum += f64::from(p);
            sum > target
        });
        if within < LANES as u32 {
            return (panel * LANES) as u32 + within;
        }
        // The sum lane by lane may round below that of the panel: the last that has a share.
        let lanes = self.line[panel].0;
        let last = lanes.iter().rposition(|p| *p > 0.0).unwrap_or(0);
        (panel * LANES + last) as u32
    }
}

/// The number of the first that `is` so; beyond the last if none is.
#[inline(always)]
fn first(lines: &[Floats], mut is: impl FnMut(f32) -> bool) -> u32 {
    let mut number = 0;
    for line in lines {
        for x in line.0 {
            if is(x) {
                return number;
            }
            number += 1;
        }
    }
    number
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simd::ZEROS;

    fn drawn(logits: &[f32], temperature: f32, number: f64) -> Vec<u32> {
        let each = Level::all().into_iter().map(|level| {
            let mut lines = vec![ZEROS; logits.len().div_ceil(LANES)];
            for line in &mut lines {
                line.0.fill(f32::NEG_INFINITY);
            }
            for (i, x) in logits.iter().enumerate() {
                lines[i / LANES].0[i % LANES] = *x;
            }
            let chance = Chance {
                temperature,
                number,
            };
            level.run(Draw {
                chance,
                line: &mut lines,
            })
        });
        each.collect()
    }

    #[test]
    fn greedy_takes_the_first_of_equal_logits() {
        let mut logits = vec![-1.0; 40];
        logits[17] = 2.0;
        logits[35] = 2.0;
        assert!(drawn(&logits, 0.0, 0.5).iter().all(|id| *id == 17));
    }

    #[test]
    fn a_draw_inverts_the_distribution_function() {
        let shares = [0.125f32, 0.5, 0.0, 0.25, 0.125];
        let logits: Vec<f32> = shares.iter().map(|p| p.ln()).collect();
        for (number, wanted) in [
            (0.0, 0),
            (0.124, 0),
            (0.126, 1),
            (0.626, 3),
            (0.8749, 3),
            (0.8751, 4),
            (0.999_999, 4),
        ] {
            assert!(
                drawn(&logits, 1.0, number).iter().all(|id| *id == wanted),
                "{number}"
            );
        }
        // A small temperature leaves the largest alone, and no id of probability 0 is drawn.
        assert!(drawn(&logits, 1e-40, 0.999_999).iter().all(|id| *id == 1));
        // An infinite one makes the others equal: ids 0, 1, 3 and 4, and none of the filling.
        for (number, wanted) in [(0.0, 0), (0.3, 1), (0.6, 3), (0.999_999, 4)] {
            let found = drawn(&logits, f32::INFINITY, number);
            assert!(found.iter().all(|id| *id == wanted), "{number}: {found:?}");
        }
    }
}
