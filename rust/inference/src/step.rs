//! One pass of a chunk of tokens through the network, by a team of workers.

use std::sync::{Mutex, PoisonError};

use crate::attend::{Attend, Block, Head, Local, PAGE, Table, gather, turn};
use crate::network::{Network, panels};
use crate::panels::Matrix;
use crate::product::{Norm, Pack, Product, Then, group, width};
use crate::simd::{Floats, LANES, ZEROS};
use crate::team::{Parts, View, Worker};
use crate::tile::GROUP;

/// Tokens that go through the network together.
pub(crate) struct Chunk<'a> {
    pub(crate) tokens: &'a [u32],
    /// The pages of each text.
    table: Table<'a>,
    blocks: Vec<Block>,
    /// For each token its block, and its number in that.
    places: Vec<(usize, usize)>,
    /// The tokens whose logits are wanted.
    pub(crate) wanted: Vec<usize>,
    /// How many blocks of the network they go through.
    layers: usize,
}

impl<'a> Chunk<'a> {
    pub(crate) fn new(
        tokens: &'a [u32],
        table: Table<'a>,
        blocks: Vec<Block>,
        wanted: Vec<usize>,
        layers: usize,
    ) -> Self {
        let numbered = blocks.iter().enumerate();
        let places = numbered.flat_map(|(i, block)| (0..block.rows).map(move |n| (i, n)));
        Self {
            tokens,
            table,
            places: places.collect(),
            blocks,
            wanted,
            layers,
        }
    }

    /// The block of a token, and the token's position in its text.
    fn block(&self, row: usize) -> (&Block, usize) {
        let (block, n) = self.places[row];
        (&self.blocks[block], self.blocks[block].position + n)
    }
}

/// The numbers between the products. Memory stays from step to step.
#[derive(Default)]
pub(crate) struct Scratch {
    /// The stream, by panel and row; so are `qkv`, `inner` and `logits`.
    x: Parts<Floats>,
    qkv: Parts<Floats>,
    inner: Parts<Floats>,
    /// By wanted row.
    pub(crate) logits: Parts<Floats>,
    /// Outputs of attention, by block and head of keys.
    mixed: Parts<Floats>,
    /// Inputs of a product, by group of rows, and their scales.
    words: Parts<u32>,
    scales: Parts<f32>,
    locals: Vec<Mutex<Local>>,
}

impl Scratch {
    /// Makes room for a chunk.
    pub(crate) fn shape(&mut self, network: &Network, chunk: &Chunk<'_>, workers: usize) {
        let shape = &network.shape;
        let rows = chunk.tokens.len();
        let lines = shape.head_lines();
        let first = &network.layers[0];
        let matrices = [&first.qkv, &first.o, &first.down];
        let widest = matrices
            .iter()
            .map(|matrix| matrix.inputs)
            .max()
            .unwrap_or(0);
        let wide = width(rows.min(GROUP));
        let together = chunk
            .blocks
            .iter()
            .map(|block| block.rows)
            .max()
            .unwrap_or(0);
        let panelled = |parts: &mut Parts<Floats>, panels, rows| {
            parts.shape(panels, rows, workers, ZEROS);
        };
        panelled(&mut self.x, panels(shape.d_model), rows);
        panelled(&mut self.qkv, first.qkv.count, rows);
        panelled(&mut self.inner, panels(shape.d_ff), rows);
        panelled(
            &mut self.logits,
            panels(shape.vocab_size),
            chunk.wanted.len(),
        );
        let jobs = chunk.blocks.len() * shape.n_kv_heads;
        panelled(&mut self.mixed, jobs, together * shape.sharing() * lines);
        let groups = rows.div_ceil(GROUP);
        self.words.shape(groups, widest * wide, workers, 0);
        self.scales.shape(groups, GROUP, workers, 0.0);
        self.locals.resize_with(workers, Default::default);
    }

    fn local(&self, worker: Worker<'_>) -> std::sync::MutexGuard<'_, Local> {
        self.locals[worker.number]
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

impl Network {
    /// A worker's part of the pass. Every phase ends where all wait for each other.
    pub(crate) fn step(&self, worker: Worker<'_>, chunk: &Chunk<'_>, heads: &[Head], s: &Scratch) {
        let each = heads.chunks(self.shape.n_kv_heads);
        let rows = chunk.tokens.len();
        self.embed_all(worker, chunk, s);
        let layers = self.layers[..chunk.layers].iter().zip(each);
        for (number, (layer, heads)) in layers.enumerate() {
            self.pack(
                worker,
                s,
                rows,
                &layer.qkv,
                Some(&layer.attention_norm),
                Inputs::Stream,
            );
            self.product(worker, s, rows, &layer.qkv, &s.qkv, Then::Store);
            self.store(worker, chunk, heads, s, number);
            self.attend(worker, chunk, heads, s, number);
            self.pack(worker, s, rows, &layer.o, None, Inputs::Mixed(chunk));
            self.product(worker, s, rows, &layer.o, &s.x, Then::Add);
            self.pack(
                worker,
                s,
                rows,
                &layer.up,
                Some(&layer.feedforward_norm),
                Inputs::Stream,
            );
            let then = if self.shape.gated {
                Then::Gate
            } else {
                Then::Gelu
            };
            self.product(worker, s, rows, &layer.up, &s.inner, then);
            self.pack(worker, s, rows, &layer.down, None, Inputs::Inner);
            self.product(worker, s, rows, &layer.down, &s.x, Then::Add);
        }
        let wanted = chunk.wanted.len();
        if wanted > 0 {
            self.pack(
                worker,
                s,
                wanted,
                &self.head,
                Some(&self.norm),
                Inputs::Wanted(&chunk.wanted),
            );
            self.product(worker, s, wanted, &self.head, &s.logits, Then::Store);
        }
    }

    /// Embeds the tokens.
    fn embed_all(&self, worker: Worker<'_>, chunk: &Chunk<'_>, s: &Scratch) {
        let rows = chunk.tokens.len();
        let mut x = s.x.mine(worker);
        for (lines, panel) in x
            .chunks_mut(rows)
            .zip(worker.share(panels(self.shape.d_model)))
        {
            for (row, line) in lines.iter_mut().enumerate() {
                self.embed(chunk.tokens[row], chunk.block(row).1, panel, line);
            }
        }
        drop(x);
        worker.wait();
    }

    /// Packs `rows` rows for a product.
    fn pack(
        &self,
        worker: Worker<'_>,
        s: &Scratch,
        rows: usize,
        matrix: &Matrix,
        norm: Option<&Norm>,
        inputs: Inputs<'_>,
    ) {
        let view = match inputs {
            Inputs::Stream | Inputs::Wanted(_) => s.x.all(),
            Inputs::Inner => s.inner.all(),
            Inputs::Mixed(_) => s.mixed.all(),
        };
        let (mut words, mut scales) = (s.words.mine(worker), s.scales.mine(worker));
        let mut local = s.local(worker);
        local.row.resize(matrix.inputs / LANES, ZEROS);
        let unit = s.words.unit();
        for (i, number) in worker.share(rows.div_ceil(GROUP)).enumerate() {
            self.level.run(Pack {
                kind: matrix.kind,
                rows: group(number, rows),
                gather: |row, into: &mut [Floats]| match inputs {
                    Inputs::Stream | Inputs::Inner => panelled(&view, row, into),
                    Inputs::Wanted(wanted) => panelled(&view, wanted[row], into),
                    Inputs::Mixed(chunk) => self.heads(chunk, &view, row, into),
                },
                norm,
                row: &mut local.row,
                words: &mut words[i * unit..][..unit],
                scales: &mut scales[i * GROUP..][..GROUP],
            });
        }
        drop((view, words, scales, local));
        worker.wait();
    }

    /// The outputs of attention of a row.
    fn heads(&self, chunk: &Chunk<'_>, mixed: &View<'_, Floats>, row: usize, into: &mut [Floats]) {
        let (sharing, lines) = (self.shape.sharing(), self.shape.head_lines());
        let (block, n) = chunk.places[row];
        for (head, into) in into.chunks_mut(lines).enumerate() {
            let job = block * self.shape.n_kv_heads + head / sharing;
            let query = n * sharing + head % sharing;
            into.copy_from_slice(&mixed.unit(job)[query * lines..][..lines]);
        }
    }

    /// The product of the packed rows with a matrix, into `y`.
    fn product(
        &self,
        worker: Worker<'_>,
        s: &Scratch,
        rows: usize,
        matrix: &Matrix,
        y: &Parts<Floats>,
        then: Then,
    ) {
        let (x, scales) = (s.words.all(), s.scales.all());
        let units = matrix.count / if then == Then::Gate { 2 } else { 1 };
        self.level.run(Product {
            matrix,
            rows,
            x: &x,
            scales: &scales,
            share: worker.share(units),
            y: &mut y.mine(worker),
            then,
        });
        drop((x, scales));
        worker.wait();
    }

    /// Stores the keys and values of the tokens.
    fn store(
        &self,
        worker: Worker<'_>,
        chunk: &Chunk<'_>,
        heads: &[Head],
        s: &Scratch,
        layer: usize,
    ) {
        let shape = &self.shape;
        let (rows, lines) = (chunk.tokens.len(), shape.head_lines());
        let qkv = s.qkv.all();
        let mut local = s.local(worker);
        local.head.resize(shape.head_size, 0.0);
        // Head by head: so workers seldom want the same page.
        for unit in worker.share(rows * heads.len()) {
            let (head, row) = (unit / rows, unit % rows);
            let (block, position) = chunk.block(row);
            let key = (shape.n_heads + head) * lines;
            let value = key + heads.len() * lines;
            gather(&qkv, row, key, &mut local.head);
            let norm = &self.layers[layer].k_norm;
            turn(&mut local.head, norm, shape.norm_eps, self.angles(position));
            let (page, place) = (chunk.table.of(block.text)[position / PAGE], position % PAGE);
            let value = |line| qkv.unit(value + line)[row];
            heads[head].put(page as usize, place, &local.head, value);
        }
        drop((qkv, local));
        worker.wait();
    }

    /// Attention of all tokens.
    fn attend(
        &self,
        worker: Worker<'_>,
        chunk: &Chunk<'_>,
        heads: &[Head],
        s: &Scratch,
        layer: usize,
    ) {
        let qkv = s.qkv.all();
        let mut local = s.local(worker);
        let mut mixed = s.mixed.mine(worker);
        let unit = s.mixed.unit();
        for (i, job) in worker.share(chunk.blocks.len() * heads.len()).enumerate() {
            let (block, group) = (chunk.blocks[job / heads.len()], job % heads.len());
            let seen = (block.position + block.rows).div_ceil(PAGE);
            let pages = heads[group].read(&chunk.table.of(block.text)[..seen]);
            self.level.run(Attend {
                network: self,
                layer,
                block,
                group,
                pages: &pages,
                qkv: &qkv,
                local: &mut local,
                out: &mut mixed[i * unit..][..unit],
            });
        }
        drop((qkv, local, mixed));
        worker.wait();
    }
}

/// Where the inputs of a product are.
#[derive(Clone, Copy)]
enum Inputs<'a> {
    Stream,
    /// The stream, of these rows alone.
    Wanted(&'a [usize]),
    Inner,
    Mixed(&'a Chunk<'a>),
}

/// A row of what lies by panel and row.
fn panelled(view: &View<'_, Floats>, row: usize, into: &mut [Floats]) {
    for (panel, line) in into.iter_mut().enumerate() {
        *line = view.unit(panel)[row];
    }
}
