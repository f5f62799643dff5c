//! The merges of a `tokenizer.json`, read without an object for each.
//!
//! They are two thirds of such a file: 280,000 pairs of strings for 100,000 ranks, which Python's
//! parser needs 120 ms for and a look-up of each as much again. Here they take 20 ms together. The
//! rest of the file is left to that parser: whoever reads gets the place of the merges in it.
//!
//! Only what is plain is read; None for anything else, which is then read slowly and complained of.

use std::ops::Range;

use rustc_hash::{FxHashMap, FxHashSet};

/// Merges by the texts of their two tokens, in the order of the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JsonMerges {
    /// Left and right tokens in turn.
    text: String,
    /// Where each token ends in the text.
    ends: Vec<usize>,
    /// Whether each is one string with a space between the tokens.
    pub joined: bool,
}

impl JsonMerges {
    /// How many there are, at least one.
    #[expect(clippy::len_without_is_empty, reason = "an empty list is not read")]
    pub fn len(&self) -> usize {
        self.ends.len() / 2
    }

    /// The two tokens of each merge.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (&str, &str)> {
        (0..self.len()).map(|at| {
            let start = if at == 0 { 0 } else { self.ends[2 * at - 1] };
            let (middle, end) = (self.ends[2 * at], self.ends[2 * at + 1]);
            (&self.text[start..middle], &self.text[middle..end])
        })
    }

    /// Which of `texts` a merge takes or makes.
    pub fn using<'a>(&self, texts: &[&'a str]) -> Vec<&'a str> {
        let mut left_out: FxHashSet<&str> = texts.iter().copied().collect();
        let mut joined = String::new();
        for (left, right) in self.iter() {
            joined.clear();
            joined.extend([left, right]);
            for text in [left, right, &joined] {
                left_out.remove(text);
            }
        }
        let used = texts.iter().filter(|text| !left_out.contains(*text));
        used.copied().collect()
    }

    /// The ids of the two tokens of each merge; None if one has no id.
    pub fn ids(&self, id_of: &FxHashMap<&str, u32>) -> Option<Vec<(u32, u32)>> {
        let pairs = self
            .iter()
            .map(|(left, right)| Some((*id_of.get(left)?, *id_of.get(right)?)));
        pairs.collect()
    }
}

/// The list `merges` of the object `model` in a document, and the bytes at which it stands.
///
/// ```
/// use tinylm_tokenizer::read_json_merges;
///
/// let document = br#"{"model": {"vocab": {}, "merges": [["a", "\u0062"], ["ab", "c"]]}}"#;
/// let (merges, place) = read_json_merges(document).unwrap();
/// assert!(merges.iter().eq([("a", "b"), ("ab", "c")]));
/// assert_eq!(&document[place.end..], b"}}");
/// assert_eq!(read_json_merges(br#"{"model": {"merges": [["a"]]}}"#), None);
/// ```
pub fn read_json_merges(document: &[u8]) -> Option<(JsonMerges, Range<usize>)> {
    let mut scan = Scan {
        bytes: document,
        at: 0,
    };
    let mut found = None;
    scan.object(|scan, key| {
        if key != b"model" {
            return scan.skip();
        }
        scan.object(|scan, key| {
            if key != b"merges" {
                return scan.skip();
            }
            let start = scan.at;
            let merges = scan.merges()?;
            // Of two the last counts, which is for others to know.
            found
                .replace((merges, start..scan.at))
                .is_none()
                .then_some(())
        })
    })?;
    found
}

/// A place in a document, after which all is unread.
struct Scan<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl Scan<'_> {
    fn byte(&self) -> Option<u8> {
        self.bytes.get(self.at).copied()
    }

    /// Passes over white space.
    fn blanks(&mut self) {
        while matches!(self.byte(), Some(b' ' | b'\n' | b'\r' | b'\t')) {
            self.at += 1;
        }
    }

    /// Passes over white space, this byte, and white space.
    fn take(&mut self, byte: u8) -> Option<()> {
        self.blanks();
        (self.byte()? == byte).then(|| self.at += 1)?;
        self.blanks();
        Some(())
    }

    /// An object, with `each` reading the value of each key.
    fn object(&mut self, mut each: impl FnMut(&mut Self, &[u8]) -> Option<()>) -> Option<()> {
        self.take(b'{')?;
        let mut key = Vec::new();
        loop {
            key.clear();
            self.string(&mut key)?;
            self.take(b':')?;
            each(self, &key)?;
            if self.take(b',').is_none() {
                self.blanks();
                (self.byte()? == b'}').then(|| self.at += 1)?;
                return Some(());
            }
        }
    }

    /// Appends the string that begins here.
    fn string(&mut self, out: &mut Vec<u8>) -> Option<()> {
        (self.byte()? == b'"').then(|| self.at += 1)?;
        loop {
            let start = self.at;
            while self.byte()? != b'"' && self.byte()? != b'\\' {
                // An error in JSON.
                if self.byte()? < b' ' {
                    return None;
                }
                self.at += 1;
            }
            out.extend_from_slice(&self.bytes[start..self.at]);
            self.at += 1;
            if self.bytes[self.at - 1] == b'"' {
                return Some(());
            }
            let escape = self.byte()?;
            self.at += 1;
            let char = match escape {
                b'"' | b'\\' | b'/' => char::from(escape),
                b'b' => '\u{8}',
                b'f' => '\u{c}',
                b'n' => '\n',
                b'r' => '\r',
                b't' => '\t',
                // Halves of characters are for others.
                b'u' => char::from_u32(self.unit()?)?,
                _ => return None,
            };
            out.extend_from_slice(char.encode_utf8(&mut [0; 4]).as_bytes());
        }
    }

    /// Four hexadecimal digits.
    fn unit(&mut self) -> Option<u32> {
        let digits = self.bytes.get(self.at..self.at + 4)?;
        self.at += 4;
        digits.iter().try_fold(0, |unit, &digit| {
            Some(unit << 4 | char::from(digit).to_digit(16)?)
        })
    }

    /// Passes over a value, whose inside others check.
    fn skip(&mut self) -> Option<()> {
        let mut depth = 0;
        loop {
            match self.byte()? {
                b'"' => {
                    self.at += 1;
                    while self.byte()? != b'"' {
                        self.at += 1 + usize::from(self.byte()? == b'\\');
                    }
                }
                b'{' | b'[' => depth += 1,
                // It was a number or a word, which ends before this.
                b'}' | b']' | b',' if depth == 0 => return Some(()),
                b'}' | b']' => depth -= 1,
                _ if depth == 0 => {
                    self.at += 1;
                    continue;
                }
                _ => {}
            }
            self.at += 1;
            if depth == 0 {
                return Some(());
            }
        }
    }

    /// A list of merges: lists of two strings, or strings of two with a space between them.
    fn merges(&mut self) -> Option<JsonMerges> {
        self.take(b'[')?;
        let joined = self.byte()? == b'"';
        let (mut text, mut ends) = (Vec::new(), Vec::new());
        loop {
            if joined {
                let start = text.len();
                self.string(&mut text)?;
                let space = start + text[start..].iter().position(|&byte| byte == b' ')?;
                text.remove(space);
                (!text[space..].contains(&b' ')).then_some(())?;
                ends.extend([space, text.len()]);
            } else {
                self.take(b'[')?;
                self.string(&mut text)?;
                ends.push(text.len());
                self.take(b',')?;
                self.string(&mut text)?;
                ends.push(text.len());
                self.close()?;
            }
            if self.take(b',').is_none() {
                self.close()?;
                break;
            }
        }
        let text = String::from_utf8(text).ok()?;
        let whole = ends.iter().all(|&end| text.is_char_boundary(end));
        whole.then_some(JsonMerges { text, ends, joined })
    }

    /// Passes over white space and the end of a list.
    fn close(&mut self) -> Option<()> {
        self.blanks();
        (self.byte()? == b']').then(|| self.at += 1)
    }
}
