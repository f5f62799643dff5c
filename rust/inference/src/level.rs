//! The instruction sets that a machine may have, found at run time.

use std::fmt;
use std::str::FromStr;

#[cfg(target_arch = "x86_64")]
use crate::avx512::{Avx2, Avx512, run_avx2};
use crate::simd::{Portable, Task};

/// An instruction set that this machine has.
#[derive(Clone, Copy)]
pub struct Level(Kind);

#[derive(Clone, Copy)]
enum Kind {
    Portable,
    #[cfg(target_arch = "x86_64")]
    Avx2(Avx2),
    #[cfg(target_arch = "x86_64")]
    Avx512(Avx512),
}

impl Level {
    /// All levels of this machine, the fastest first.
    pub fn all() -> Vec<Self> {
        let mut found = Vec::new();
        #[cfg(target_arch = "x86_64")]
        {
            found.extend(Avx512::detect().map(|simd| Self(Kind::Avx512(simd))));
            found.extend(Avx2::detect().map(|simd| Self(Kind::Avx2(simd))));
        }
        found.push(Self(Kind::Portable));
        found
    }

    /// The fastest level of this machine.
    pub fn best() -> Self {
        Self::all()[0]
    }

    /// Runs a loop, compiled for this level.
    pub(crate) fn run<T: Task>(self, task: T) -> T::Output {
        match self.0 {
            // On ARM every machine has FMA, and the compiler makes it of `mul_add`.
            Kind::Portable => task.run(Portable::<{ cfg!(target_arch = "aarch64") }>),
            #[cfg(target_arch = "x86_64")]
            Kind::Avx2(proof) => run_avx2(proof, task),
            #[cfg(target_arch = "x86_64")]
            Kind::Avx512(simd) => simd.enter(task),
        }
    }
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.0 {
            Kind::Portable => "portable",
            #[cfg(target_arch = "x86_64")]
            Kind::Avx2(_) => "avx2",
            #[cfg(target_arch = "x86_64")]
            Kind::Avx512(_) => "avx512",
        })
    }
}

impl FromStr for Level {
    type Err = crate::Error;

    /// The level of that name; "auto" is the best one.
    fn from_str(name: &str) -> Result<Self, Self::Err> {
        if name == "auto" {
            return Ok(Self::best());
        }
        let all = Self::all();
        let names: Vec<String> = all.iter().map(ToString::to_string).collect();
        let found = names.iter().position(|known| known == name);
        found.map(|at| all[at]).ok_or_else(|| {
            let names = names.join(", ");
            crate::Error::invalid(format!(
                "simd={name}: must be auto or one of {names}, which this machine has"
            ))
        })
    }
}
