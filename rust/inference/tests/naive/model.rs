//! A forward pass in plain loops over float64, and random models for it.

use std::sync::Arc;

use tinylm_inference::{Builder, Kind, Level, Network, Shape, Source};

/// A generator of numbers in [-1, 1): xorshift.
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> f32 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 40) as f32 / (1 << 23) as f32 - 1.0
    }

    fn many(&mut self, count: usize, scale: f32) -> Vec<f32> {
        (0..count).map(|_| self.next() * scale).collect()
    }
}

/// Sizes that fill no panel, or whole ones.
pub(crate) fn shape(architecture: &str, small: bool) -> Shape {
    let gpt2 = architecture == "gpt2";
    Shape {
        vocab_size: if small { 37 } else { 1024 },
        d_model: if small { 20 } else { 64 },
        n_layers: 2,
        n_heads: 4,
        n_kv_heads: if gpt2 { 4 } else { 2 },
        head_size: if small { 6 } else { 16 },
        d_ff: if small { 22 } else { 512 },
        context_length: 200,
        norm_eps: 1e-5,
        layer_norm: gpt2,
        gated: !gpt2,
        qk_norm: architecture == "qwen3",
        rotary: !gpt2,
    }
}

pub(crate) type Part = (String, Vec<f32>, Option<Vec<f32>>);

/// Weights of that shape: name, weight, bias.
pub(crate) fn parts(shape: &Shape) -> Vec<Part> {
    let mut numbers = Numbers(88_172_645_463_325_252);
    let (width, heads) = (shape.d_model, shape.n_heads * shape.head_size);
    let qkv = heads + 2 * shape.n_kv_heads * shape.head_size;
    let up = if shape.gated { 2 } else { 1 } * shape.d_ff;
    let biased = shape.layer_norm;
    let mut found: Vec<Part> = Vec::new();
    let mut add = |name: &str, rows: usize, columns: usize, biased: bool| {
        let weight = numbers.many(rows * columns, 1.5 / (columns as f32).sqrt());
        found.push((name.into(), weight, biased.then(|| numbers.many(rows, 0.5))));
    };
    add("embedding", shape.vocab_size, width, false);
    add("head", shape.vocab_size, width, false);
    if !shape.rotary {
        add("positions", shape.context_length, width, false);
    }
    for i in 0..shape.n_layers {
        add(&format!("{i}.qkv"), qkv, width, biased);
        add(&format!("{i}.o"), width, heads, biased);
        add(&format!("{i}.up"), up, width, biased);
        add(&format!("{i}.down"), width, shape.d_ff, biased);
        let norms = [("attention_norm", width), ("feedforward_norm", width)];
        let qk = [("q_norm", shape.head_size), ("k_norm", shape.head_size)];
        for (name, size) in norms
            .iter()
            .chain(if shape.qk_norm { &qk[..] } else { &[] })
        {
            add(&format!("{i}.{name}"), *size, 1, biased);
        }
    }
    add("norm", width, 1, biased);
    if shape.rotary {
        let half = shape.head_size / 2;
        let angle =
            |i: usize| (i / half) as f32 * 100.0f32.powf(-((i % half) as f32) / half as f32);
        let angles: Vec<f32> = (0..shape.context_length * half).map(angle).collect();
        found.push(("cos".into(), angles.iter().map(|a| a.cos()).collect(), None));
        found.push(("sin".into(), angles.iter().map(|a| a.sin()).collect(), None));
    }
    found
}

pub(crate) fn network(shape: &Shape, parts: &[Part], kind: Kind, level: Level) -> Arc<Network> {
    let mut builder = Builder::new(shape.clone(), kind, level).unwrap();
    for (name, weight, bias) in parts {
        builder
            .add(name, &[Source::Float(weight)], bias.as_deref())
            .unwrap();
    }
    Arc::new(builder.finish().unwrap())
}

/// The logits after each token, token by token and number by number.
pub(crate) struct Naive<'a> {
    pub(crate) shape: &'a Shape,
    pub(crate) parts: &'a [Part],
}

impl Naive<'_> {
    fn part(&self, name: &str) -> &Part {
        self.parts.iter().find(|part| part.0 == name).unwrap()
    }

    fn product(&self, name: &str, x: &[f64]) -> Vec<f64> {
        let (_, weight, bias) = self.part(name);
        let rows = weight.chunks(x.len()).enumerate().map(|(row, w)| {
            let sum: f64 = w.iter().zip(x).map(|(w, x)| f64::from(*w) * x).sum();
            sum + bias.as_ref().map_or(0.0, |bias| f64::from(bias[row]))
        });
        rows.collect()
    }

    fn norm(&self, name: &str, x: &[f64], centred: bool) -> Vec<f64> {
        let (_, weight, bias) = self.part(name);
        let size = x.len() as f64;
        let mean = if centred {
            x.iter().sum::<f64>() / size
        } else {
            0.0
        };
        let variance = x.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / size;
        let scale = (variance + f64::from(self.shape.norm_eps)).sqrt();
        let each = x.iter().zip(weight).enumerate().map(|(i, (x, w))| {
            (x - mean) / scale * f64::from(*w)
                + bias.as_ref().map_or(0.0, |bias| f64::from(bias[i]))
        });
        each.collect()
    }

    /// A query or key as attention sees it.
    fn turned(&self, norm: &str, position: usize, x: &[f64]) -> Vec<f64> {
        let x = if self.shape.qk_norm {
            self.norm(norm, x, false)
        } else {
            x.to_vec()
        };
        if !self.shape.rotary {
            return x;
        }
        let half = x.len() / 2;
        let at = |name: &str, i: usize| f64::from(self.part(name).1[position * half + i % half]);
        let turn = |i: usize| {
            let other = if i < half { -x[i + half] } else { x[i - half] };
            x[i] * at("cos", i) + other * at("sin", i)
        };
        (0..x.len()).map(turn).collect()
    }

    pub(crate) fn logits(&self, tokens: &[u32]) -> Vec<Vec<f64>> {
        let s = self.shape;
        let (width, size) = (s.d_model, s.head_size);
        let sharing = s.n_heads / s.n_kv_heads;
        let row = |name: &str, i: usize| {
            let row = &self.part(name).1[i * width..][..width];
            row.iter().map(|x| f64::from(*x)).collect::<Vec<f64>>()
        };
        let mut kept = vec![Vec::new(); s.n_layers];
        let mut found = Vec::new();
        for (position, token) in tokens.iter().enumerate() {
            let mut x = row("embedding", *token as usize);
            if !s.rotary {
                x = x
                    .iter()
                    .zip(row("positions", position))
                    .map(|(a, b)| a + b)
                    .collect();
            }
            for (i, kept) in kept.iter_mut().enumerate() {
                let normed = self.norm(&format!("{i}.attention_norm"), &x, s.layer_norm);
                let qkv = self.product(&format!("{i}.qkv"), &normed);
                let heads: Vec<&[f64]> = qkv.chunks(size).collect();
                let (q, kv) = heads.split_at(s.n_heads);
                let (k, v) = kv.split_at(s.n_kv_heads);
                let turn = |x: &&[f64]| self.turned(&format!("{i}.k_norm"), position, x);
                let values: Vec<Vec<f64>> = v.iter().map(|v| v.to_vec()).collect();
                kept.push((k.iter().map(turn).collect::<Vec<_>>(), values));
                let mut mixed = Vec::new();
                for (head, q) in q.iter().enumerate() {
                    let q = self.turned(&format!("{i}.q_norm"), position, q);
                    let score = |(k, _): &(Vec<Vec<f64>>, Vec<Vec<f64>>)| {
                        let dot: f64 = k[head / sharing].iter().zip(&q).map(|(a, b)| a * b).sum();
                        (dot / (size as f64).sqrt()).exp()
                    };
                    let scores: Vec<f64> = kept.iter().map(score).collect();
                    let total: f64 = scores.iter().sum();
                    mixed.extend((0..size).map(|d| {
                        let pairs = scores.iter().zip(&*kept);
                        pairs
                            .map(|(p, (_, v))| p / total * v[head / sharing][d])
                            .sum::<f64>()
                    }));
                }
                add(&mut x, &self.product(&format!("{i}.o"), &mixed));
                let normed = self.norm(&format!("{i}.feedforward_norm"), &x, s.layer_norm);
                let up = self.product(&format!("{i}.up"), &normed);
                let inner: Vec<f64> = if s.gated {
                    let (gate, up) = up.split_at(s.d_ff);
                    gate.iter()
                        .zip(up)
                        .map(|(g, u)| g / (1.0 + (-g).exp()) * u)
                        .collect()
                } else {
                    up.iter().map(|x| gelu(*x)).collect()
                };
                add(&mut x, &self.product(&format!("{i}.down"), &inner));
            }
            found.push(self.product("head", &self.norm("norm", &x, s.layer_norm)));
        }
        found
    }
}

fn add(x: &mut [f64], y: &[f64]) {
    for (x, y) in x.iter_mut().zip(y) {
        *x += y;
    }
}

fn gelu(x: f64) -> f64 {
    let inner = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044_715 * x * x * x);
    0.5 * x * (1.0 + inner.tanh())
}
