//! Tokens to text one at a time: a character is handed out when all its bytes are there.
//!
//! A token may end inside a character, so decoding each token by itself could break characters
//! that decoding all of them keeps. At most three bytes wait at any time, so `push` takes time
//! linear in the bytes it gets.
//!
//! The rung `stream` compares it with a slow decoder in `tests/rungs/text.py`.

/// The bytes of a character that is not complete yet.
///
/// ```
/// use tinylm_tokenizer::DecodeStream;
///
/// let mut stream = DecodeStream::default();
/// assert_eq!(stream.push(b"caf\xC3"), "caf");
/// assert_eq!(stream.push(b"\xA9!"), "\u{e9}!");
/// assert_eq!(stream.push(b"\xE2\x82"), "");
/// // The text ends inside a character.
/// assert_eq!(stream.finish(), "\u{fffd}");
/// ```
#[derive(Debug, Default, Clone)]
pub struct DecodeStream {
    pending: Vec<u8>,
}

impl DecodeStream {
    /// Appends `bytes` and takes out all text that later bytes cannot change.
    ///
    /// Bytes that can no longer become UTF-8 give U+FFFD, one per maximal invalid sequence, so
    /// that the parts joined with [`DecodeStream::finish`] equal `String::from_utf8_lossy` of
    /// the whole.
    pub fn push(&mut self, bytes: &[u8]) -> String {
        self.pending.extend_from_slice(bytes);
        let mut text = String::new();
        let mut rest = self.pending.as_slice();
        loop {
            match std::str::from_utf8(rest) {
                Ok(valid) => {
                    text.push_str(valid);
                    // Nothing waits: the bytes end with a whole character.
                    rest = &[];
                    break;
                }
                Err(error) => {
                    let (valid, after) = rest.split_at(error.valid_up_to());
                    // Valid already, so nothing is lost; the unchecked conversion is unsafe code.
                    text.push_str(&String::from_utf8_lossy(valid));
                    rest = after;
                    // No length: the text ends inside a character that may yet become whole.
                    let Some(length) = error.error_len() else {
                        break;
                    };
                    text.push(char::REPLACEMENT_CHARACTER);
                    rest = &rest[length..];
                }
            }
        }
        // A copy of three bytes at most.
        self.pending = rest.to_vec();
        text
    }

    /// What is left at the end: nothing, or U+FFFD for a character cut short.
    ///
    /// The stream is empty afterwards and can be used again.
    pub fn finish(&mut self) -> String {
        let text = String::from_utf8_lossy(&self.pending).into_owned();
        self.pending.clear();
        text
    }
}
