//! How many threads a step takes.

/// Whether a step whose threads wait for each other is faster by one or by all: where another process
/// has a core, the others wait for the thread that shares it. The results are the same.
#[derive(Debug, Default)]
pub(crate) struct Pace {
    /// Tokens of the steps that were timed, and how many there were.
    tokens: usize,
    steps: usize,
    /// Recent seconds of a step by one thread, and by all.
    seconds: [f64; 2],
}

impl Pace {
    /// How many threads the next step takes, at most `most`.
    pub(crate) fn workers(&mut self, most: usize, tokens: usize) -> usize {
        if tokens != self.tokens {
            *self = Self {
                tokens,
                ..Self::default()
            };
        }
        self.steps += 1;
        let [alone, all] = self.seconds;
        // The first steps try both in turns, and later every 64th what is not chosen.
        let one = match self.steps {
            n @ 1..=6 => n.is_multiple_of(2),
            n => (alone < all) != n.is_multiple_of(64),
        };
        if one { 1 } else { most }
    }

    /// Notes the seconds of the step.
    pub(crate) fn took(&mut self, workers: usize, seconds: f64) {
        let recent = &mut self.seconds[usize::from(workers > 1)];
        // A slow step may be chance, a fast one is not; and the first ones find the caches cold.
        *recent = if *recent == 0.0 || seconds < *recent {
            seconds
        } else {
            0.75 * *recent + 0.25 * seconds
        };
    }
}
