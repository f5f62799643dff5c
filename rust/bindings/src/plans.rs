//! The plans that Python can ask for, as one type.
//!
//! A stream is made for one type of plan. With an enum there is one stream for every kind of rows,
//! and a mixture may have sources of either kind; the branch costs nothing beside a row.

use tinylm_dataloader::plan::Span;
use tinylm_dataloader::{Mixture, Packed, Piece, Plan, Windows};

/// The plan of some rows.
#[derive(Clone, Debug)]
pub(crate) enum Kind {
    Windows(Windows),
    Packed(Packed),
    Mixed(Mixture<Self>),
}

/// The same call of whichever plan it is.
macro_rules! of_each {
    ($kind:expr, $plan:ident => $call:expr) => {
        match $kind {
            Kind::Windows($plan) => $call,
            Kind::Packed($plan) => $call,
            Kind::Mixed($plan) => $call,
        }
    };
}

impl Plan for Kind {
    fn n_rows(&self) -> u64 {
        of_each!(self, plan => plan.n_rows())
    }

    fn row_length(&self) -> usize {
        of_each!(self, plan => plan.row_length())
    }

    fn row(&mut self, epoch: u64, i: u64, pieces: &mut Vec<Piece>) {
        of_each!(self, plan => plan.row(epoch, i, pieces));
    }

    fn packed(&self) -> bool {
        of_each!(self, plan => plan.packed())
    }

    fn most_pieces(&self) -> usize {
        of_each!(self, plan => plan.most_pieces())
    }

    fn scattered(&self) -> bool {
        of_each!(self, plan => plan.scattered())
    }

    fn ahead(&mut self, epoch: u64, i: u64, n: u64) -> Vec<Span> {
        of_each!(self, plan => plan.ahead(epoch, i, n))
    }
}
