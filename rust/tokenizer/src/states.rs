//! The table of an [`crate::automaton::Automaton`]: from an expression to states.
//!
//! The expression becomes a list of steps (Thompson 1968), and every set of places in that list
//! that a text can lead to becomes a state. The places of a set have an order: what stands before
//! is preferred, as an engine that backtracks tries it first, and behind a place where the
//! expression has matched nothing counts any more (Cox 2010, "Regular Expression Matching in the
//! Wild"). All states are made at once; an expression that has too many gets no table.

use rustc_hash::FxHashMap;

use crate::syntax::Node;

/// Of an entry: a match ends before the symbol.
pub(crate) const MATCH: u16 = 1 << 15;
/// The state from which nothing is reached.
pub(crate) const DEAD: u16 = 0;
/// Steps of an expression with all repetitions written out.
const MOST_STEPS: usize = 2000;

/// The table of an expression, and the states in which it begins.
///
/// An entry, by state and symbol, is the next state, and [`MATCH`]; a state is the place of its row.
/// Beginnings are by the symbol before, or one for all if the expression never looks behind. `masks`
/// are the symbols of each set, of `symbols` in all. None if the table would be too large.
pub(crate) fn table(node: &Node, masks: &[u64], symbols: u8) -> Option<(Vec<u16>, Vec<u16>)> {
    let mut steps = Steps {
        list: vec![Step::Match],
        edge: 1 << symbols,
        masks,
        looks_behind: false,
    };
    let first = steps.put(node, 0)?;
    let mut rows = Rows::new(&steps, symbols);
    let before = if steps.looks_behind { symbols } else { 0 };
    let starts = (0..=before)
        .map(|before| rows.state(vec![first], before))
        .collect::<Option<_>>()?;
    Some((rows.table()?, starts))
}

/// A step of the expression; targets are numbers of steps, in order of preference.
#[derive(Debug, Clone)]
enum Step {
    Set {
        symbols: u64,
        next: usize,
    },
    Look {
        ahead: bool,
        symbols: u64,
        next: usize,
    },
    Split(Vec<usize>),
    Match,
}

/// Writes an expression as steps, from its end to its beginning.
struct Steps<'a> {
    list: Vec<Step>,
    /// The symbol of the edges of the text.
    edge: u64,
    masks: &'a [u64],
    looks_behind: bool,
}

impl Steps<'_> {
    /// Adds a node that leads to the step `next`; gives its first step.
    fn put(&mut self, node: &Node, next: usize) -> Option<usize> {
        match node {
            Node::Empty => Some(next),
            Node::Set(set) => {
                let symbols = self.masks[*set];
                self.add(Step::Set { symbols, next })
            }
            Node::Look { ahead, set, edge } => {
                let symbols = self.masks[*set] | if *edge { self.edge } else { 0 };
                let ahead = *ahead;
                self.looks_behind |= !ahead;
                self.add(Step::Look {
                    ahead,
                    symbols,
                    next,
                })
            }
            Node::Concat(parts) => {
                let mut parts = parts.iter().rev();
                parts.try_fold(next, |next, part| self.put(part, next))
            }
            Node::Either(parts) => {
                let parts = parts.iter().map(|part| self.put(part, next));
                let parts = parts.collect::<Option<_>>()?;
                self.add(Step::Split(parts))
            }
            Node::Repeat {
                node,
                least,
                most,
                greedy,
            } => {
                let choice = |more, enough| {
                    Step::Split(if *greedy {
                        vec![more, enough]
                    } else {
                        vec![enough, more]
                    })
                };
                let (mut first, mut left) = (next, *least);
                if let Some(most) = most {
                    for _ in *least..*most {
                        let more = self.put(node, first)?;
                        first = self.add(choice(more, next))?;
                    }
                } else {
                    let again = self.add(Step::Match)?;
                    let more = self.put(node, again)?;
                    self.list[again] = choice(more, next);
                    // The first round is that of the loop.
                    first = if left > 0 { more } else { again };
                    left = left.saturating_sub(1);
                }
                for _ in 0..left {
                    first = self.put(node, first)?;
                }
                Some(first)
            }
        }
    }

    fn add(&mut self, step: Step) -> Option<usize> {
        self.list.push(step);
        (self.list.len() <= MOST_STEPS).then_some(self.list.len() - 1)
    }
}

/// The table as it grows: a row for each set of places that is reached.
struct Rows<'a> {
    steps: &'a Steps<'a>,
    symbols: u8,
    /// Entries of a row, a power of two: a state and a symbol are combined by `|`.
    width: usize,
    known: FxHashMap<(Vec<usize>, u8), u16>,
    /// The places of each row, and the symbol before them.
    places: Vec<(Vec<usize>, u8)>,
}

impl<'a> Rows<'a> {
    fn new(steps: &'a Steps<'a>, symbols: u8) -> Self {
        let nothing = (Vec::new(), 0);
        Self {
            steps,
            symbols,
            width: (usize::from(symbols) + 1).next_power_of_two(),
            known: FxHashMap::from_iter([(nothing.clone(), DEAD)]),
            places: vec![nothing],
        }
    }

    /// The state of these places; None if there are too many states.
    fn state(&mut self, places: Vec<usize>, before: u8) -> Option<u16> {
        let key = match (places.is_empty(), self.steps.looks_behind) {
            (false, true) => (places, before),
            _ => (places, 0),
        };
        if let Some(&state) = self.known.get(&key) {
            return Some(state);
        }
        let state = u16::try_from(self.places.len() * self.width).ok();
        let state = state.filter(|state| state & MATCH == 0)?;
        self.places.push(key.clone());
        self.known.insert(key, state);
        Some(state)
    }

    /// All rows that the states so far lead to.
    fn table(mut self) -> Option<Vec<u16>> {
        let mut table = Vec::new();
        let mut row = 0;
        while let Some((places, before)) = self.places.get(row).cloned() {
            for symbol in 0..=self.symbols {
                let (next, matched) = self.follow(&places, before, symbol);
                let next = self.state(next, symbol)?;
                table.push(next | if matched { MATCH } else { 0 });
            }
            row += 1;
            table.resize(row * self.width, DEAD);
        }
        Some(table)
    }

    /// The places after a symbol, and whether a match ends before it.
    fn follow(&self, places: &[usize], before: u8, symbol: u8) -> (Vec<usize>, bool) {
        let (mut next, mut seen) = (Vec::new(), vec![false; self.steps.list.len()]);
        let mut open: Vec<usize> = places.iter().rev().copied().collect();
        while let Some(place) = open.pop() {
            if std::mem::replace(&mut seen[place], true) {
                continue;
            }
            match &self.steps.list[place] {
                Step::Split(targets) => open.extend(targets.iter().rev()),
                Step::Look {
                    ahead,
                    symbols,
                    next,
                } => {
                    let neighbour = if *ahead { symbol } else { before };
                    if symbols >> neighbour & 1 == 1 {
                        open.push(*next);
                    }
                }
                Step::Set { symbols, next: to } => {
                    if symbol < self.symbols && symbols >> symbol & 1 == 1 && !next.contains(to) {
                        next.push(*to);
                    }
                }
                // What would be tried after it is not.
                Step::Match => return (next, true),
            }
        }
        (next, false)
    }
}
