//! Attention of new tokens over the keys and values of their text.
//!
//! Keys lie in panels of 16 tokens, as the weights of a product lie in panels of 16 outputs: the
//! scores of 16 tokens are one vector. Values lie token by token.

use std::collections::TryReserveError;
use std::sync::{RwLock, RwLockReadGuard};

use crate::network::Network;
use crate::simd::{Floats, LANES, Simd, Task, ZEROS};
use crate::team::{View, read, write};
use crate::tile::{BLOCK, GROUP, Singles, scattered};

/// Tokens of one text that are read together by an attention head.
pub(crate) const TOGETHER: usize = 4;

/// Tokens of a page.
pub(crate) const PAGE: usize = LANES;

/// The keys and values of one head, in pages of one panel of keys each.
#[derive(Debug, Default)]
pub(crate) struct Head {
    /// By page: the panel, and then the values token by token, each of which begins a line. Empty
    /// before the first token comes. Each has a lock of its own, so that threads with different
    /// texts never wait for each other.
    pages: Vec<RwLock<Vec<Floats>>>,
}

/// A page that is read.
pub(crate) type Page<'a> = RwLockReadGuard<'a, Vec<Floats>>;

impl Head {
    /// Makes it so many pages at least.
    pub(crate) fn hold(&mut self, pages: usize) -> Result<(), TryReserveError> {
        let more = pages.saturating_sub(self.pages.len());
        self.pages.try_reserve(more)?;
        self.pages
            .resize_with(self.pages.len() + more, RwLock::default);
        Ok(())
    }

    /// Stores the key and value of the token at a place of a page.
    pub(crate) fn put(
        &self,
        page: usize,
        place: usize,
        key: &[f32],
        value: impl Fn(usize) -> Floats,
    ) {
        let lines = key.len().div_ceil(LANES);
        let mut page = write(&self.pages[page]);
        page.resize(key.len() + PAGE * lines, ZEROS);
        let (keys, values) = page.split_at_mut(key.len());
        for (line, x) in keys.iter_mut().zip(key) {
            line.0[place] = *x;
        }
        for (i, line) in values[place * lines..][..lines].iter_mut().enumerate() {
            *line = value(i);
        }
    }

    /// Makes a page the same as another.
    pub(crate) fn copy(&self, from: usize, to: usize) {
        let copy = read(&self.pages[from]).clone();
        *write(&self.pages[to]) = copy;
    }

    /// Some pages, to read.
    pub(crate) fn read(&self, pages: &[i32]) -> Vec<Page<'_>> {
        let numbers = pages.iter().map(|page| *page as usize);
        numbers.map(|page| read(&self.pages[page])).collect()
    }

    /// Bytes that it holds.
    pub(crate) fn bytes(&self) -> usize {
        self.pages
            .iter()
            .map(|page| read(page).len() * size_of::<Floats>())
            .sum()
    }
}

/// The pages of some texts: a row for each, of which the first page holds the first 16 tokens.
#[derive(Clone, Copy, Debug)]
pub struct Table<'a> {
    /// The rows, one after the other. What is behind the pages of a text means nothing.
    pub pages: &'a [i32],
    /// Pages of a row.
    pub width: usize,
}

impl<'a> Table<'a> {
    /// The pages of a text.
    pub(crate) fn of(self, text: usize) -> &'a [i32] {
        &self.pages[text * self.width..][..self.width]
    }
}

/// Some tokens of one text that follow each other.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Block {
    /// Number of the text's row in the table.
    pub(crate) text: usize,
    /// The first of its rows, and how many.
    pub(crate) row: usize,
    pub(crate) rows: usize,
    /// The place of the first in its text.
    pub(crate) position: usize,
}

/// What a worker needs beside what it shares.
#[derive(Debug, Default)]
pub(crate) struct Local {
    /// The inputs of one row.
    pub(crate) row: Vec<Floats>,
    /// One query or key.
    pub(crate) head: Vec<f32>,
    queries: Vec<u32>,
    /// By panel of tokens and query.
    scores: Vec<Floats>,
}

/// A query or key as the product left it: lines `first` and on of a row.
pub(crate) fn gather(qkv: &View<'_, Floats>, row: usize, first: usize, into: &mut [f32]) {
    for (i, part) in into.chunks_mut(LANES).enumerate() {
        part.copy_from_slice(&qkv.unit(first + i)[row].0[..part.len()]);
    }
}

/// Norms a query or key, where `norm` is not empty, and turns it by the angles.
#[inline(always)]
pub(crate) fn turn(x: &mut [f32], norm: &[f32], eps: f32, angles: Option<(&[f32], &[f32])>) {
    if !norm.is_empty() {
        let mut sums = [0.0; LANES];
        for part in x.chunks(LANES) {
            for (sum, x) in sums.iter_mut().zip(part) {
                *sum += x * x;
            }
        }
        let scale = 1.0 / (sums.iter().sum::<f32>() / x.len() as f32 + eps).sqrt();
        for (x, w) in x.iter_mut().zip(norm) {
            *x *= scale * w;
        }
    }
    if let Some((cos, sin)) = angles {
        let (first, second) = x.split_at_mut(cos.len());
        for i in 0..cos.len() {
            let (a, b) = (first[i], second[i]);
            first[i] = a * cos[i] - b * sin[i];
            second[i] = b * cos[i] + a * sin[i];
        }
    }
}

/// One block of tokens with one head of keys, whose query heads are `sharing` for each token.
pub(crate) struct Attend<'a> {
    pub(crate) network: &'a Network,
    pub(crate) layer: usize,
    pub(crate) block: Block,
    /// Number of the head of keys.
    pub(crate) group: usize,
    /// The pages of the text.
    pub(crate) pages: &'a [Page<'a>],
    pub(crate) qkv: &'a View<'a, Floats>,
    pub(crate) local: &'a mut Local,
    /// By query; each begins a line.
    pub(crate) out: &'a mut [Floats],
}

impl Task for Attend<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(mut self, simd: S) {
        let count = self.block.rows * self.network.shape.sharing();
        let mut first = 0;
        while first < count {
            first += match count - first {
                1 => self.some::<S, 4, 1>(simd, first),
                2 | 3 => self.some::<S, 4, 2>(simd, first),
                _ => self.some::<S, 2, 4>(simd, first),
            };
        }
    }
}

impl Attend<'_> {
    /// N queries from `first` on, with P panels of keys at a time; returns N.
    #[inline(always)]
    fn some<S: Simd, const P: usize, const N: usize>(&mut self, simd: S, first: usize) -> usize {
        let limits: [usize; N] = self.queries(first);
        let most = limits[N - 1];
        self.scores::<S, P, N>(simd, most.div_ceil(LANES));
        let mut sums = [0.0; N];
        for n in 0..N {
            sums[n] = self.soften::<S, N>(simd, n, limits[n], most.div_ceil(LANES));
        }
        let lines = self.network.shape.head_lines();
        let mut line = 0;
        while line < lines {
            line += if lines - line >= 4 {
                self.mix::<S, N, 4>(simd, first, line, most, &sums)
            } else {
                self.mix::<S, N, 1>(simd, first, line, most, &sums)
            };
        }
        N
    }

    /// Packs N queries side by side; returns how many keys each sees, which is most for the last.
    #[inline(always)]
    fn queries<const N: usize>(&mut self, first: usize) -> [usize; N] {
        let shape = &self.network.shape;
        let size = shape.head_size;
        let scale = 1.0 / (size as f32).sqrt();
        let Local { head, queries, .. } = &mut *self.local;
        head.resize(size, 0.0);
        queries.resize(size * N, 0);
        let mut limits = [0; N];
        for n in 0..N {
            let (token, number) = ((first + n) / shape.sharing(), (first + n) % shape.sharing());
            let (row, position) = (self.block.row + token, self.block.position + token);
            let panel = (self.group * shape.sharing() + number) * shape.head_lines();
            gather(self.qkv, row, panel, head);
            let norm = &self.network.layers[self.layer].q_norm;
            turn(head, norm, shape.norm_eps, self.network.angles(position));
            for (i, x) in head.iter().enumerate() {
                queries[i * N + n] = (x * scale).to_bits();
            }
            limits[n] = position + 1;
        }
        limits
    }

    /// The products of the queries with the keys in the first `panels`.
    #[inline(always)]
    fn scores<S: Simd, const P: usize, const N: usize>(&mut self, simd: S, panels: usize) {
        let size = self.network.shape.head_size;
        let Local {
            queries, scores, ..
        } = &mut *self.local;
        if scores.len() < panels * N {
            scores.resize(panels * N, ZEROS);
        }
        let mut out = [[ZEROS; GROUP]; BLOCK];
        let scores = &mut scores[..panels * N];
        for (pages, scores) in self.pages[..panels]
            .chunks(BLOCK)
            .zip(scores.chunks_mut(BLOCK * N))
        {
            let keys = |panel: usize| &pages[panel][..size];
            scattered::<S, Singles, P, N>(simd, pages.len(), keys, size, queries, &mut out);
            for (some, out) in scores.chunks_exact_mut(N).zip(&out) {
                some.copy_from_slice(&out[..N]);
            }
        }
    }

    /// Scores of query n to e^(score - largest), 0 where it sees nothing; returns their sum.
    #[inline(always)]
    fn soften<S: Simd, const N: usize>(
        &mut self,
        simd: S,
        n: usize,
        limit: usize,
        panels: usize,
    ) -> f32 {
        let scores = &mut self.local.scores;
        let seen = limit.div_ceil(LANES);
        if !limit.is_multiple_of(LANES) {
            scores[(seen - 1) * N + n].0[limit % LANES..].fill(f32::NEG_INFINITY);
        }
        let mut top = simd.splat(f32::NEG_INFINITY);
        for panel in 0..seen {
            top = simd.max(top, simd.load(&scores[panel * N + n]));
        }
        let top = simd.splat(simd.largest(top));
        let mut sum = simd.splat(0.0);
        for panel in 0..seen {
            let score = &mut scores[panel * N + n];
            let e = simd.exp(simd.sub(simd.load(score), top));
            sum = simd.add(sum, e);
            simd.store(e, score);
        }
        for panel in seen..panels {
            scores[panel * N + n] = ZEROS;
        }
        simd.total(sum)
    }

    /// Lines `line` to `line + J` of the values, mixed by the scores; returns J.
    #[inline(always)]
    fn mix<S: Simd, const N: usize, const J: usize>(
        &mut self,
        simd: S,
        first: usize,
        line: usize,
        most: usize,
        sums: &[f32; N],
    ) -> usize {
        let shape = &self.network.shape;
        let lines = shape.head_lines();
        let mut mixed = [[simd.splat(0.0); J]; N];
        let panels = self.local.scores.chunks_exact(N).zip(self.pages);
        for (start, (panel, page)) in (0..most).step_by(PAGE).zip(panels) {
            let values = &page[shape.head_size..];
            let values = values.chunks_exact(lines).take(most - start);
            for (t, value) in values.enumerate() {
                let value = &value[line..line + J];
                for n in 0..N {
                    let p = simd.splat(panel[n].0[t]);
                    for j in 0..J {
                        mixed[n][j] = simd.mul_add(simd.load(&value[j]), p, mixed[n][j]);
                    }
                }
            }
        }
        for n in 0..N {
            let inverse = simd.splat(1.0 / sums[n]);
            for j in 0..J {
                let out = &mut self.out[(first + n) * lines + line + j];
                simd.store(simd.mul(mixed[n][j], inverse), out);
            }
        }
        J
    }
}
