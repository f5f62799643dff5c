//! The weights of a model, packed.

use std::collections::BTreeMap;

use crate::level::Level;
use crate::panels::{Kind, Matrix, Order, Source, blocks, padded, vector};
use crate::product::Norm;
use crate::simd::{Floats, LANES, from_bf16, to_bf16};
use crate::{Error, Result};

/// The sizes of a model, and what it is made of.
#[derive(Clone, Debug)]
#[expect(clippy::struct_excessive_bools, reason = "each is a part of its own")]
pub struct Shape {
    /// Rows of the embedding (V).
    pub vocab_size: usize,
    /// Width of the stream (D).
    pub d_model: usize,
    /// Number of blocks.
    pub n_layers: usize,
    /// Query heads (H).
    pub n_heads: usize,
    /// Key and value heads (K).
    pub n_kv_heads: usize,
    /// Width of a head.
    pub head_size: usize,
    /// Inner width of the feedforward network (F).
    pub d_ff: usize,
    /// Most tokens of a text.
    pub context_length: usize,
    /// What the norms add to the variance.
    pub norm_eps: f32,
    /// `LayerNorm` if true, else `RMSNorm`.
    pub layer_norm: bool,
    /// `SwiGLU` if true, else GELU.
    pub gated: bool,
    /// Queries and keys are normed.
    pub qk_norm: bool,
    /// Positions are rotations if true, else a table that is added.
    pub rotary: bool,
}

impl Shape {
    /// Query heads that share a key head.
    pub(crate) fn sharing(&self) -> usize {
        self.n_heads / self.n_kv_heads
    }

    /// Lines of a head.
    pub(crate) fn head_lines(&self) -> usize {
        self.head_size.div_ceil(LANES)
    }

    fn check(&self) -> Result<()> {
        let sizes = [
            ("vocab_size", self.vocab_size),
            ("d_model", self.d_model),
            ("n_layers", self.n_layers),
            ("n_heads", self.n_heads),
            ("n_kv_heads", self.n_kv_heads),
            ("head_size", self.head_size),
            ("d_ff", self.d_ff),
            ("context_length", self.context_length),
        ];
        for (name, size) in sizes {
            if size == 0 || size > 1 << 24 {
                return Err(Error::invalid(format!("{name}={size}: must be 1 to 2^24")));
            }
        }
        if !self.n_heads.is_multiple_of(self.n_kv_heads) {
            let (heads, kv) = (self.n_heads, self.n_kv_heads);
            return Err(Error::invalid(format!(
                "n_kv_heads={kv}: must divide n_heads={heads}"
            )));
        }
        if self.rotary && self.head_size % 2 == 1 {
            let size = self.head_size;
            return Err(Error::invalid(format!(
                "head_size={size}: must be even to be rotated"
            )));
        }
        Ok(())
    }
}

/// Rows of numbers that are looked up.
#[derive(Debug)]
enum Table {
    Float32(Vec<f32>),
    Bfloat16(Vec<u16>),
}

/// One block.
#[derive(Debug)]
pub(crate) struct Layer {
    pub(crate) attention_norm: Norm,
    pub(crate) qkv: Matrix,
    /// Empty if there is no norm.
    pub(crate) q_norm: Vec<f32>,
    pub(crate) k_norm: Vec<f32>,
    pub(crate) o: Matrix,
    pub(crate) feedforward_norm: Norm,
    pub(crate) up: Matrix,
    pub(crate) down: Matrix,
}

/// A model, ready to decode.
pub struct Network {
    pub(crate) shape: Shape,
    pub(crate) level: Level,
    pub(crate) layers: Vec<Layer>,
    pub(crate) norm: Norm,
    pub(crate) head: Matrix,
    /// Angles per position; empty without rotation.
    cos: Vec<f32>,
    sin: Vec<f32>,
    embedding: Table,
    /// Empty with rotation.
    positions: Vec<f32>,
}

impl Network {
    /// The sizes.
    pub fn shape(&self) -> &Shape {
        &self.shape
    }

    /// The instruction set that it runs on.
    pub fn level(&self) -> Level {
        self.level
    }

    /// Bytes of the weights that a step reads; of the embedding it reads only rows.
    pub fn bytes(&self) -> usize {
        let of = |layer: &Layer| {
            layer.qkv.bytes() + layer.o.bytes() + layer.up.bytes() + layer.down.bytes()
        };
        self.layers.iter().map(of).sum::<usize>() + self.head.bytes()
    }

    /// Multiplications of a step for each row.
    pub(crate) fn work(&self) -> usize {
        let of = |matrix: &Matrix| matrix.count * LANES * matrix.inputs;
        let layers = self.layers.iter();
        let layers = layers.map(|l| of(&l.qkv) + of(&l.o) + of(&l.up) + of(&l.down));
        layers.sum::<usize>() + of(&self.head)
    }

    /// Numbers 16 `panel` and on of what goes into the first block.
    pub(crate) fn embed(&self, token: u32, position: usize, panel: usize, into: &mut Floats) {
        let width = self.shape.d_model;
        let within = panel * LANES..((panel + 1) * LANES).min(width);
        let start = token as usize * width;
        into.0.fill(0.0);
        for (place, i) in within.enumerate() {
            into.0[place] = match &self.embedding {
                Table::Float32(rows) => rows[start + i],
                Table::Bfloat16(rows) => from_bf16(rows[start + i]),
            };
            if !self.positions.is_empty() {
                into.0[place] += self.positions[position * width + i];
            }
        }
    }

    /// The angles of a position.
    pub(crate) fn angles(&self, position: usize) -> Option<(&[f32], &[f32])> {
        let half = self.shape.head_size / 2;
        let within = position * half..(position + 1) * half;
        (!self.cos.is_empty()).then(|| (&self.cos[within.clone()], &self.sin[within]))
    }
}

/// Takes the weights of a model one by one, in any order.
pub struct Builder {
    shape: Shape,
    kind: Kind,
    level: Level,
    matrices: BTreeMap<String, Matrix>,
    norms: BTreeMap<String, Norm>,
    numbers: BTreeMap<String, Vec<f32>>,
    embedding: Option<Table>,
}

impl Builder {
    /// For a model of that shape, whose matrices are stored as `kind` if they come as numbers.
    ///
    /// # Errors
    ///
    /// If the sizes make no model.
    pub fn new(shape: Shape, kind: Kind, level: Level) -> Result<Self> {
        shape.check()?;
        Ok(Self {
            shape,
            kind,
            level,
            matrices: BTreeMap::new(),
            norms: BTreeMap::new(),
            numbers: BTreeMap::new(),
            embedding: None,
        })
    }

    /// Adds a part: `sources` are its weights, which follow each other.
    ///
    /// The names are `embedding`, `cos` and `sin` or `positions`, `norm`, `head`, and in block i
    /// `i.attention_norm`, `i.qkv`, `i.q_norm`, `i.k_norm`, `i.o`, `i.feedforward_norm`, `i.up`
    /// (of `SwiGLU` the gate, then the rest) and `i.down`.
    ///
    /// # Errors
    ///
    /// For another name, and for a part of another size.
    pub fn add(&mut self, name: &str, sources: &[Source<'_>], bias: Option<&[f32]>) -> Result<()> {
        let shape = &self.shape;
        let (width, head) = (shape.d_model, shape.head_size);
        let stream = blocks(1, width);
        let heads = shape.n_heads + 2 * shape.n_kv_heads;
        let part = name.rsplit('.').next().unwrap_or(name);
        let orders = match part {
            "qkv" => Some((blocks(heads, head), stream)),
            "o" => Some((stream, blocks(shape.n_heads, head))),
            "up" => Some((inner(shape), stream)),
            "down" => Some((stream, blocks(1, shape.d_ff))),
            "head" => Some((blocks(1, shape.vocab_size), stream)),
            _ => None,
        };
        if let Some((rows, columns)) = orders {
            let matrix = Matrix::pack(name, self.kind, sources, bias, &rows, &columns)?;
            self.matrices.insert(name.into(), matrix);
            return Ok(());
        }
        let [Source::Float(values)] = *sources else {
            return Err(Error::invalid(format!(
                "{name}: must be one array of floats"
            )));
        };
        let wanted = match part {
            "embedding" => shape.vocab_size * width,
            "positions" => shape.context_length * width,
            "cos" | "sin" => shape.context_length * (head / 2),
            "q_norm" | "k_norm" => head,
            _ => width,
        };
        if values.len() != wanted {
            let given = values.len();
            return Err(Error::invalid(format!(
                "{name} has {given} numbers: must be {wanted}"
            )));
        }
        match part {
            "embedding" => {
                self.embedding = Some(match self.kind {
                    Kind::Bfloat16 => Table::Bfloat16(values.iter().map(|x| to_bf16(*x)).collect()),
                    _ => Table::Float32(values.to_vec()),
                });
            }
            "norm" | "attention_norm" | "feedforward_norm" => {
                let order = blocks(1, width);
                let norm = Norm {
                    weight: vector(name, values, &order)?,
                    bias: bias.map_or_else(|| Ok(Vec::new()), |bias| vector(name, bias, &order))?,
                    centred: shape.layer_norm,
                    eps: shape.norm_eps,
                    size: width,
                };
                self.norms.insert(name.into(), norm);
            }
            "positions" | "cos" | "sin" | "q_norm" | "k_norm" => {
                self.numbers.insert(name.into(), values.to_vec());
            }
            _ => {
                return Err(Error::invalid(format!(
                    "{name}: the model has no such part"
                )));
            }
        }
        Ok(())
    }

    /// The model of all parts.
    ///
    /// # Errors
    ///
    /// If a part is missing.
    pub fn finish(mut self) -> Result<Network> {
        let (qk, rotary) = (self.shape.qk_norm, self.shape.rotary);
        for matrix in self.matrices.values() {
            matrix.gather();
        }
        let mut layers = Vec::new();
        for i in 0..self.shape.n_layers {
            layers.push(Layer {
                attention_norm: taken(&mut self.norms, &format!("{i}.attention_norm"))?,
                qkv: taken(&mut self.matrices, &format!("{i}.qkv"))?,
                q_norm: self.numbers(qk, &format!("{i}.q_norm"))?,
                k_norm: self.numbers(qk, &format!("{i}.k_norm"))?,
                o: taken(&mut self.matrices, &format!("{i}.o"))?,
                feedforward_norm: taken(&mut self.norms, &format!("{i}.feedforward_norm"))?,
                up: taken(&mut self.matrices, &format!("{i}.up"))?,
                down: taken(&mut self.matrices, &format!("{i}.down"))?,
            });
        }
        let missing = || Error::invalid("embedding is missing");
        Ok(Network {
            layers,
            norm: taken(&mut self.norms, "norm")?,
            head: taken(&mut self.matrices, "head")?,
            cos: self.numbers(rotary, "cos")?,
            sin: self.numbers(rotary, "sin")?,
            positions: self.numbers(!rotary, "positions")?,
            embedding: self.embedding.take().ok_or_else(missing)?,
            shape: self.shape,
            level: self.level,
        })
    }

    /// The numbers of that name, or none where the shape has none.
    fn numbers(&mut self, wanted: bool, name: &str) -> Result<Vec<f32>> {
        if wanted {
            taken(&mut self.numbers, name)
        } else {
            Ok(Vec::new())
        }
    }
}

fn taken<T>(parts: &mut BTreeMap<String, T>, name: &str) -> Result<T> {
    let missing = || Error::invalid(format!("{name} is missing"));
    parts.remove(name).ok_or_else(missing)
}

/// The rows of the feedforward's first product; of `SwiGLU` a panel of the gate, then one of the rest.
fn inner(shape: &Shape) -> Order {
    let plain = blocks(1, shape.d_ff);
    if !shape.gated {
        return plain;
    }
    let panels = plain.chunks(LANES);
    let both = panels.flat_map(|panel| {
        let up = panel.iter().map(|row| row.map(|row| row + shape.d_ff));
        panel.iter().copied().chain(up).collect::<Order>()
    });
    both.collect()
}

/// Panels of a size.
pub(crate) fn panels(size: usize) -> usize {
    padded(size) / LANES
}
