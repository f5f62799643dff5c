//! tiktoken's files of ranks: a line for each token, its bytes in base64 and its rank.
//!
//! 100,000 lines are read in a few milliseconds, where a loop in Python takes 70. Only what
//! tiktoken writes is read here; whoever gets None reads the file slowly and says what is wrong.

use crate::Tokens;

/// Every token and its rank, in the order of the lines; None if a line is anything but canonical
/// base64, one space and a number of 32 bits. Empty lines say nothing.
///
/// ```
/// use tinylm_tokenizer::read_ranks;
///
/// let found = read_ranks(b"bG93 7\n\nZXI= 8\n").unwrap();
/// assert!(found.iter().eq([(b"low".as_slice(), 7), (b"er".as_slice(), 8)]));
/// assert!(read_ranks(b"bG93, 7\n").is_none());
/// ```
pub fn read_ranks(data: &[u8]) -> Option<Tokens> {
    let (mut tokens, mut token) = (Tokens::default(), Vec::new());
    for line in data
        .split(|&byte| byte == b'\n')
        .filter(|line| !line.is_empty())
    {
        let space = line.iter().position(|&byte| byte == b' ')?;
        decode(&line[..space], &mut token)?;
        tokens.push(&token, number(&line[space + 1..])?);
    }
    Some(tokens)
}

/// Canonical base64 with its padding, to `out` in place of what is there; None for anything else.
fn decode(text: &[u8], out: &mut Vec<u8>) -> Option<()> {
    out.clear();
    let padding = text.iter().rev().take_while(|&&byte| byte == b'=').count();
    let (groups, rest) = text.as_chunks::<4>();
    if !rest.is_empty() || groups.is_empty() || padding > 2 {
        return None;
    }
    let (last, whole) = groups.split_last()?;
    for group in whole {
        let [a, b, c, d] = group.map(digit);
        if (a | b | c | d) == NONE {
            return None;
        }
        let bits = u32::from(a) << 18 | u32::from(b) << 12 | u32::from(c) << 6 | u32::from(d);
        out.extend_from_slice(&bits.to_be_bytes()[1..]);
    }
    let mut bits = 0u32;
    for &byte in &last[..4 - padding] {
        let value = digit(byte);
        if value == NONE {
            return None;
        }
        bits = bits << 6 | u32::from(value);
    }
    let bytes = (bits << (6 * padding)).to_be_bytes();
    let kept = 3 - padding;
    // Bits beyond the last byte are zero in what an encoder writes.
    if bytes[1 + kept..].iter().any(|&byte| byte != 0) {
        return None;
    }
    out.extend_from_slice(&bytes[1..=kept]);
    Some(())
}

/// What is no digit of base64; all of its bits are set, which those of no digits together are.
const NONE: u8 = u8::MAX;

/// The value of each digit of base64.
const DIGITS: [u8; 256] = {
    let letters = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut values = [NONE; 256];
    let mut value = 0;
    while value < letters.len() {
        values[letters[value] as usize] = value as u8;
        value += 1;
    }
    values
};

/// The value of a digit of base64, or [`NONE`].
fn digit(byte: u8) -> u8 {
    DIGITS[usize::from(byte)]
}

/// A decimal number below 2^32.
fn number(text: &[u8]) -> Option<u32> {
    if text.is_empty() || text.len() > 10 {
        return None;
    }
    let mut number = 0u64;
    for &byte in text {
        number = number * 10 + u64::from(byte.is_ascii_digit().then_some(byte - b'0')?);
    }
    u32::try_from(number).ok()
}
