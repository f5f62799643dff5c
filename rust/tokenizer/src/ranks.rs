//! tiktoken's files of ranks: a line for each token, its bytes in base64 and its rank.
//!
//! 100,000 lines are read in a few milliseconds, where a loop in Python takes 70. Only what
//! tiktoken writes is read here; whoever gets None reads the file slowly and says what is wrong.

/// Calls `each` with every token and its rank; None if a line is anything but canonical base64, one
/// space and a number of 32 bits. Empty lines say nothing.
///
/// ```
/// use tinylm_tokenizer::read_ranks;
///
/// let mut found = Vec::new();
/// read_ranks(b"bG93 7\n\nZXI= 8\n", &mut |token, rank| found.push((token.to_vec(), rank)));
/// assert_eq!(found, [(b"low".to_vec(), 7), (b"er".to_vec(), 8)]);
/// assert_eq!(read_ranks(b"bG93, 7\n", &mut |_, _| ()), None);
/// ```
pub fn read_ranks(data: &[u8], each: &mut dyn FnMut(&[u8], u32)) -> Option<()> {
    let mut token = Vec::new();
    for line in data
        .split(|&byte| byte == b'\n')
        .filter(|line| !line.is_empty())
    {
        let space = line.iter().position(|&byte| byte == b' ')?;
        decode(&line[..space], &mut token)?;
        each(&token, number(&line[space + 1..])?);
    }
    Some(())
}

/// Canonical base64 with its padding, to `out` in place of what is there; None for anything else.
fn decode(text: &[u8], out: &mut Vec<u8>) -> Option<()> {
    out.clear();
    let padding = text.iter().rev().take_while(|&&byte| byte == b'=').count();
    let (groups, rest) = text.as_chunks::<4>();
    if !rest.is_empty() || groups.is_empty() || padding > 2 {
        return None;
    }
    for (number, group) in groups.iter().enumerate() {
        let last = number + 1 == groups.len();
        let digits = if last { 4 - padding } else { 4 };
        let mut bits = 0u32;
        for (at, &byte) in group.iter().enumerate() {
            bits = bits << 6 | if at < digits { digit(byte)? } else { 0 };
        }
        let bytes = bits.to_be_bytes();
        let kept = digits - 1;
        // Bits beyond the last byte are zero in what an encoder writes.
        if bytes[1 + kept..].iter().any(|&byte| byte != 0) {
            return None;
        }
        out.extend_from_slice(&bytes[1..=kept]);
    }
    Some(())
}

/// The value of a digit of base64.
fn digit(byte: u8) -> Option<u32> {
    let value = match byte {
        b'A'..=b'Z' => byte - b'A',
        b'a'..=b'z' => byte - b'a' + 26,
        b'0'..=b'9' => byte - b'0' + 52,
        b'+' => 62,
        b'/' => 63,
        _ => return None,
    };
    Some(u32::from(value))
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
