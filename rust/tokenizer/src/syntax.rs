//! A regular expression as an automaton can run it: sets of characters, and looks at one neighbour.
//!
//! The expressions by which tokenizers split look ahead, but no further than one character:
//! `\s+(?!\S)` leaves the last blank to the word that follows. And they are possessive, as in
//! `\p{L}++`, which takes all letters that there are, so no letter follows: `\p{L}+(?!\p{L})`. Both
//! are a condition on the next character. What cannot be said so (references to groups, a look at
//! several characters) has no [`Node`], and `fancy-regex` runs it.
//!
//! The parser is that of `fancy-regex`, so an expression means the same to both engines.

use fancy_regex::{Assertion, Expr, LookAround};
use regex_syntax::hir::{Class, ClassUnicode, ClassUnicodeRange, Hir, HirKind};

/// Copies of what is repeated without a second try.
const MOST_COPIES: usize = 1000;

/// A part of an expression. Sets are numbers of [`Reader::sets`].
#[derive(Debug, Clone)]
pub(crate) enum Node {
    /// The empty text.
    Empty,
    /// A character of a set.
    Set(usize),
    /// One after the other.
    Concat(Vec<Node>),
    /// The first that leads to a match.
    Either(Vec<Node>),
    /// So many times, `most` of None without end; as often as possible if `greedy`.
    Repeat {
        /// What is repeated; it takes a character.
        node: Box<Node>,
        /// How often at least.
        least: usize,
        /// How often at most.
        most: Option<usize>,
        /// Whether more is better than less.
        greedy: bool,
    },
    /// The empty text beside a character of a set, or with `edge` beside none.
    Look {
        /// The character after this place, else the one before.
        ahead: bool,
        /// The set.
        set: usize,
        /// Whether the end of the text will do.
        edge: bool,
    },
}

impl Node {
    /// Whether it may match the empty text.
    fn is_nullable(&self) -> bool {
        match self {
            Self::Empty | Self::Look { .. } => true,
            Self::Set(_) => false,
            Self::Concat(parts) => parts.iter().all(Self::is_nullable),
            Self::Either(parts) => parts.iter().any(Self::is_nullable),
            Self::Repeat { node, least, .. } => *least == 0 || node.is_nullable(),
        }
    }
}

/// Reads an expression and collects its sets.
#[derive(Debug, Default)]
pub(crate) struct Reader {
    /// Each different set once.
    pub(crate) sets: Vec<ClassUnicode>,
}

impl Reader {
    /// An expression in the dialect of `fancy-regex`; None for one that no automaton runs.
    pub(crate) fn read(&mut self, expression: &str) -> Option<Node> {
        let tree = Expr::parse_tree(expression).ok()?;
        self.node(&tree.expr, true)
    }

    /// `last`: nothing of the whole expression comes after it.
    fn node(&mut self, expr: &Expr, last: bool) -> Option<Node> {
        match expr {
            Expr::Empty => Some(Node::Empty),
            Expr::Literal { val, casei } if val.chars().nth(1).is_some() => {
                let parts = val.chars().map(|c| literal(c, *casei));
                let parts: Option<Vec<ClassUnicode>> = parts.collect();
                let parts = parts?.into_iter().map(|class| self.set(class));
                Some(Node::Concat(parts.map(Node::Set).collect()))
            }
            Expr::Any { .. } | Expr::Delegate { .. } | Expr::Literal { .. } => {
                let class = class_of(expr)?;
                Some(Node::Set(self.set(class)))
            }
            Expr::Concat(parts) => {
                let end = parts.len().saturating_sub(1);
                let parts = parts.iter().enumerate();
                let parts = parts.map(|(at, part)| self.node(part, last && at == end));
                parts.collect::<Option<_>>().map(Node::Concat)
            }
            Expr::Alt(parts) => {
                let parts = parts.iter().map(|part| self.node(part, last));
                parts.collect::<Option<_>>().map(Node::Either)
            }
            Expr::Group(inner) => self.node(inner, last),
            Expr::Repeat {
                child,
                lo,
                hi,
                greedy,
            } => {
                let node = Box::new(self.node(child, last && *hi == 1)?);
                // Engines differ in what becomes of an empty round.
                (!node.is_nullable()).then_some(Node::Repeat {
                    node,
                    least: *lo,
                    most: (*hi != usize::MAX).then_some(*hi),
                    greedy: *greedy,
                })
            }
            Expr::LookAround(inner, kind) => {
                use LookAround::{LookAhead, LookAheadNeg, LookBehind, LookBehindNeg};
                let ahead = matches!(kind, LookAhead | LookAheadNeg);
                let (class, edge) = neighbour(inner, ahead)?;
                let not = matches!(kind, LookAheadNeg | LookBehindNeg);
                debug_assert!(ahead || matches!(kind, LookBehind | LookBehindNeg));
                Some(self.look(ahead, class, edge, not))
            }
            Expr::AtomicGroup(inner) => self.atomic(inner, last),
            Expr::Assertion(assertion) => self.assertion(*assertion),
            _ => None,
        }
    }

    /// What is never tried in another way once it has matched.
    fn atomic(&mut self, inner: &Expr, last: bool) -> Option<Node> {
        let node = self.node(inner, last)?;
        // At the end of the expression nothing can fail after it.
        if last {
            return Some(node);
        }
        match node {
            // Only one way to match.
            Node::Set(_) => Some(node),
            Node::Concat(ref parts) if parts.iter().all(|p| matches!(p, Node::Set(_))) => {
                Some(node)
            }
            Node::Repeat {
                node,
                least,
                most,
                greedy: true,
            } => {
                let Node::Set(set) = *node else { return None };
                let class = self.sets[set].clone();
                let stop = self.look(true, class, false, true);
                let one = Node::Set(set);
                let mut tail = match most {
                    Some(_) => Node::Empty,
                    None => Node::Concat(vec![
                        Node::Repeat {
                            node: Box::new(one.clone()),
                            least,
                            most: None,
                            greedy: true,
                        },
                        stop.clone(),
                    ]),
                };
                if let Some(most) = most {
                    if most > MOST_COPIES {
                        return None;
                    }
                    // Each further character, or no such character here.
                    for _ in least..most {
                        let further = Node::Concat(vec![one.clone(), tail]);
                        tail = Node::Either(vec![further, stop.clone()]);
                    }
                    let first = std::iter::repeat_n(one, least);
                    tail = Node::Concat(first.chain([tail]).collect());
                }
                Some(tail)
            }
            _ => None,
        }
    }

    fn assertion(&mut self, assertion: Assertion) -> Option<Node> {
        let none = ClassUnicode::empty;
        match assertion {
            Assertion::StartText => Some(self.look(false, none(), true, false)),
            Assertion::EndText => Some(self.look(true, none(), true, false)),
            Assertion::StartLine { crlf: false } => Some(self.look(false, line_end(), true, false)),
            Assertion::EndLine { crlf: false } => Some(self.look(true, line_end(), true, false)),
            Assertion::WordBoundary | Assertion::NotWordBoundary => {
                let word = class_of_hir(&regex_syntax::parse(r"\w").ok()?)?;
                let is_boundary = assertion == Assertion::WordBoundary;
                let mut side = |before: bool, after: bool| {
                    Node::Concat(vec![
                        self.look(false, word.clone(), false, !before),
                        self.look(true, word.clone(), false, !after),
                    ])
                };
                let both = vec![side(true, !is_boundary), side(false, is_boundary)];
                Some(Node::Either(both))
            }
            _ => None,
        }
    }

    fn look(&mut self, ahead: bool, mut class: ClassUnicode, edge: bool, not: bool) -> Node {
        if not {
            class.negate();
        }
        let set = self.set(class);
        Node::Look {
            ahead,
            set,
            edge: edge != not,
        }
    }

    fn set(&mut self, class: ClassUnicode) -> usize {
        let known = self.sets.iter().position(|set| *set == class);
        known.unwrap_or_else(|| {
            self.sets.push(class);
            self.sets.len() - 1
        })
    }
}

/// The characters of a look-around at one character, and whether the end of the text will do.
fn neighbour(expr: &Expr, ahead: bool) -> Option<(ClassUnicode, bool)> {
    match expr {
        Expr::Group(inner) => neighbour(inner, ahead),
        // Of several one is enough.
        Expr::Repeat { child, lo: 1, .. } => {
            let (class, edge) = neighbour(child, ahead)?;
            (!edge).then_some((class, false))
        }
        Expr::Alt(parts) => {
            let mut all = (ClassUnicode::empty(), false);
            for part in parts {
                let (class, edge) = neighbour(part, ahead)?;
                all.0.union(&class);
                all.1 |= edge;
            }
            Some(all)
        }
        Expr::Assertion(Assertion::EndText) if ahead => Some((ClassUnicode::empty(), true)),
        Expr::Assertion(Assertion::StartText) if !ahead => Some((ClassUnicode::empty(), true)),
        Expr::Assertion(Assertion::EndLine { crlf: false }) if ahead => Some((line_end(), true)),
        Expr::Assertion(Assertion::StartLine { crlf: false }) if !ahead => Some((line_end(), true)),
        _ => class_of(expr).map(|class| (class, false)),
    }
}

fn line_end() -> ClassUnicode {
    ClassUnicode::new([ClassUnicodeRange::new('\n', '\n')])
}

/// The set of an expression for one character.
fn class_of(expr: &Expr) -> Option<ClassUnicode> {
    let spelled = match expr {
        Expr::Literal { val, casei } => {
            let mut chars = val.chars();
            let (char, None) = (chars.next()?, chars.next()) else {
                return None;
            };
            return literal(char, *casei);
        }
        Expr::Any { newline: true, .. } => "(?s:.)".to_owned(),
        Expr::Any {
            newline: false,
            crlf,
        } => (if *crlf { r"[^\r\n]" } else { r"[^\n]" }).to_owned(),
        Expr::Delegate { inner, casei: true } => format!("(?i:{inner})"),
        Expr::Delegate {
            inner,
            casei: false,
        } => inner.clone(),
        _ => return None,
    };
    class_of_hir(&regex_syntax::parse(&spelled).ok()?)
}

fn literal(char: char, casei: bool) -> Option<ClassUnicode> {
    let mut class = ClassUnicode::new([ClassUnicodeRange::new(char, char)]);
    if casei {
        class.try_case_fold_simple().ok()?;
    }
    Some(class)
}

/// The characters of one that is a class or a single character.
fn class_of_hir(hir: &Hir) -> Option<ClassUnicode> {
    match hir.kind() {
        HirKind::Class(Class::Unicode(class)) => Some(class.clone()),
        HirKind::Literal(text) => {
            let mut chars = std::str::from_utf8(&text.0).ok()?.chars();
            let (char, None) = (chars.next()?, chars.next()) else {
                return None;
            };
            literal(char, false)
        }
        HirKind::Capture(capture) => class_of_hir(&capture.sub),
        _ => None,
    }
}
