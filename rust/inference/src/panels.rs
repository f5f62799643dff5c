//! Weights in panels of 16 outputs, in the order in which a product reads them.
//!
//! A panel holds, input by input, the weights of its 16 outputs side by side; those of fewer bits
//! come in pairs of inputs, which one instruction multiplies and adds. So a product reads memory
//! strictly forward, and inputs and outputs of any number are filled up with zeros.

use crate::memory::{gather, reserve};
use crate::simd::{Floats, LANES, Line, ZEROS, to_bf16};
use crate::{Error, Result};

/// How weights are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// As they are.
    Float32,
    /// Rounded to 8 bits of mantissa; the inputs of a product are rounded too.
    Bfloat16,
    /// Integers up to 127, times a scale per output. Inputs become integers of up to 15 bits.
    Int8,
}

impl Kind {
    /// The kind of that name.
    pub fn from_name(name: &str) -> Result<Self> {
        match name {
            "float32" => Ok(Self::Float32),
            "bfloat16" => Ok(Self::Bfloat16),
            "int8" => Ok(Self::Int8),
            _ => Err(Error::invalid(format!(
                "weights={name}: must be float32, bfloat16 or int8"
            ))),
        }
    }
}

/// Weights as they come: rows of outputs, each of all inputs.
#[derive(Clone, Copy, Debug)]
pub enum Source<'a> {
    /// Numbers.
    Float(&'a [f32]),
    /// Integers and the scale of each row.
    Int8(&'a [i8], &'a [f32]),
}

impl Source<'_> {
    fn len(&self) -> usize {
        match self {
            Self::Float(weight) => weight.len(),
            Self::Int8(weight, _) => weight.len(),
        }
    }
}

/// One row of a source.
#[derive(Clone, Copy)]
enum Row<'a> {
    Float(&'a [f32]),
    Int8(&'a [i8], f32),
}

impl Row<'_> {
    fn value(&self, column: usize) -> f32 {
        match self {
            Self::Float(row) => row[column],
            Self::Int8(row, scale) => f32::from(row[column]) * scale,
        }
    }

    /// The scale with which the largest weight becomes 127.
    fn scale(&self) -> f32 {
        match self {
            Self::Float(row) => {
                // A NaN must reach the scale, and with it every product of the row.
                let larger = |top: f32, w: &f32| {
                    if top.is_nan() || w.is_nan() {
                        f32::NAN
                    } else {
                        top.max(w.abs())
                    }
                };
                let top = row.iter().fold(0.0, larger);
                if top == 0.0 { 1.0 } else { top / 127.0 }
            }
            Self::Int8(_, scale) => *scale,
        }
    }

    fn integer(&self, column: usize, scale: f32) -> i8 {
        match self {
            Self::Float(row) => (row[column] / scale).round_ties_even() as i8,
            Self::Int8(row, _) => row[column],
        }
    }
}

/// Places of a row or a column: the number that goes there, or None for zeros up to a whole panel.
pub(crate) type Order = Vec<Option<usize>>;

/// `count` blocks of `size`, each filled up to whole panels.
pub(crate) fn blocks(count: usize, size: usize) -> Order {
    let wide = padded(size);
    let place = |i: usize| (i % wide < size).then_some(i / wide * size + i % wide);
    (0..count * wide).map(place).collect()
}

/// A size filled up to whole panels.
pub(crate) fn padded(size: usize) -> usize {
    size.next_multiple_of(LANES)
}

/// The panels of a matrix, of any kind.
#[derive(Debug)]
pub(crate) enum Panels {
    /// A line is one input.
    Float32(Vec<Floats>),
    /// A line is two inputs.
    Bfloat16(Vec<Line<u16, 32>>),
    /// A line is two pairs of inputs.
    Int8(Vec<Line<i8, 64>>),
}

/// A matrix whose panels are packed, with its bias.
#[derive(Debug)]
pub(crate) struct Matrix {
    pub(crate) kind: Kind,
    pub(crate) panels: Panels,
    /// The scales of the outputs of each panel; empty if there are none.
    pub(crate) scales: Vec<Floats>,
    /// The biases of the outputs of each panel; empty if there are none.
    pub(crate) biases: Vec<Floats>,
    /// Inputs, filled up.
    pub(crate) inputs: usize,
    /// Panels of outputs.
    pub(crate) count: usize,
}

impl Matrix {
    /// Packs the rows of `sources`, numbered through, in the order `rows`; and so the columns.
    ///
    /// Integers stay integers, whatever the kind, if all sources are.
    ///
    /// # Errors
    ///
    /// If the sources do not have the rows and columns that the orders name.
    pub(crate) fn pack(
        name: &str,
        kind: Kind,
        sources: &[Source<'_>],
        bias: Option<&[f32]>,
        rows: &Order,
        columns: &Order,
    ) -> Result<Self> {
        let (outputs, inputs) = (number(rows), number(columns));
        let given: usize = sources.iter().map(Source::len).sum();
        if given != outputs * inputs {
            return Err(Error::invalid(format!(
                "{name} has {given} weights: must be {outputs} x {inputs}"
            )));
        }
        if let Some(bias) = bias.filter(|bias| bias.len() != outputs) {
            let given = bias.len();
            return Err(Error::invalid(format!(
                "{name} has {given} biases: must be {outputs}"
            )));
        }
        let found = each_row(name, sources, inputs)?;
        let integers = found.iter().all(|row| matches!(row, Row::Int8(..)));
        let kind = if integers { Kind::Int8 } else { kind };
        let at = |place: usize| rows[place].map(|row| found[row]);
        let line = |panel: usize, f: &dyn Fn(usize) -> f32| {
            let lane = |lane: usize| rows[panel * LANES + lane].map_or(0.0, f);
            Line(std::array::from_fn(lane))
        };
        let count = rows.len() / LANES;
        let panels = match kind {
            Kind::Float32 => Panels::Float32(packed(count, columns, 1, |panel, k| {
                Line(std::array::from_fn(|lane| {
                    value(at(panel * LANES + lane), columns[k])
                }))
            })),
            Kind::Bfloat16 => Panels::Bfloat16(packed(count, columns, 2, |panel, k| {
                Line(std::array::from_fn(|i| {
                    to_bf16(value(at(panel * LANES + i / 2), columns[k + i % 2]))
                }))
            })),
            Kind::Int8 => {
                let scales: Vec<f32> = found.iter().map(Row::scale).collect();
                Panels::Int8(packed(count, columns, 4, |panel, k| {
                    Line(std::array::from_fn(|i| {
                        // Two pairs of inputs, and in each the outputs side by side.
                        let (place, k) = (panel * LANES + i % 32 / 2, k + i / 32 * 2 + i % 2);
                        match (rows[place], columns[k]) {
                            (Some(row), Some(column)) => found[row].integer(column, scales[row]),
                            _ => 0,
                        }
                    }))
                }))
            }
        };
        let scales = if kind == Kind::Int8 {
            (0..count)
                .map(|panel| line(panel, &|row| found[row].scale()))
                .collect()
        } else {
            Vec::new()
        };
        let biases = bias.map_or_else(Vec::new, |bias| {
            (0..count)
                .map(|panel| line(panel, &|row| bias[row]))
                .collect()
        });
        Ok(Self {
            kind,
            panels,
            scales,
            biases,
            inputs: columns.len(),
            count,
        })
    }

    /// Moves the panels to large pages, once all matrices are packed.
    pub(crate) fn gather(&self) {
        match &self.panels {
            Panels::Float32(lines) => gather(lines),
            Panels::Bfloat16(lines) => gather(lines),
            Panels::Int8(lines) => gather(lines),
        }
    }

    /// Bytes that a product reads.
    pub(crate) fn bytes(&self) -> usize {
        let lines = match &self.panels {
            Panels::Float32(lines) => lines.len(),
            Panels::Bfloat16(lines) => lines.len(),
            Panels::Int8(lines) => lines.len(),
        };
        (lines + self.scales.len() + self.biases.len()) * size_of::<Floats>()
    }
}

/// How many numbers an order has places for.
fn number(order: &Order) -> usize {
    order.iter().flatten().count()
}

/// All rows of the sources.
fn each_row<'a>(name: &str, sources: &[Source<'a>], inputs: usize) -> Result<Vec<Row<'a>>> {
    let mut found = Vec::new();
    for source in sources {
        match *source {
            Source::Float(weight) => found.extend(weight.chunks(inputs).map(Row::Float)),
            Source::Int8(weight, scales) => {
                let rows = weight.len() / inputs;
                if scales.len() != rows {
                    let given = scales.len();
                    return Err(Error::invalid(format!(
                        "{name} has {given} scales: must be {rows}"
                    )));
                }
                let pairs = weight.chunks(inputs).zip(scales);
                found.extend(pairs.map(|(row, scale)| Row::Int8(row, *scale)));
            }
        }
    }
    Ok(found)
}

fn value(row: Option<Row<'_>>, column: Option<usize>) -> f32 {
    row.zip(column)
        .map_or(0.0, |(row, column)| row.value(column))
}

/// Panel by panel the lines of every `step` inputs.
fn packed<T>(
    count: usize,
    columns: &Order,
    step: usize,
    line: impl Fn(usize, usize) -> T,
) -> Vec<T> {
    let mut lines = reserve(count * columns.len() / step);
    for panel in 0..count {
        lines.extend((0..columns.len()).step_by(step).map(|k| line(panel, k)));
    }
    lines
}

/// Numbers in panels, such as the weights of a norm.
pub(crate) fn vector(name: &str, values: &[f32], order: &Order) -> Result<Vec<Floats>> {
    let wanted = number(order);
    if values.len() != wanted {
        let given = values.len();
        return Err(Error::invalid(format!(
            "{name} has {given} numbers: must be {wanted}"
        )));
    }
    let mut lines = vec![ZEROS; order.len() / LANES];
    for (place, source) in order.iter().enumerate() {
        lines[place / LANES].0[place % LANES] = source.map_or(0.0, |i| values[i]);
    }
    Ok(lines)
}
