//! Tokens to text one at a time: a character is handed out when all its bytes are there.

/// The bytes of a character that is not complete yet.
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
                    rest = &[];
                    break;
                }
                Err(error) => {
                    let (valid, after) = rest.split_at(error.valid_up_to());
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
        self.pending = rest.to_vec();
        text
    }

    /// What is left at the end: nothing, or U+FFFD for a character cut short.
    pub fn finish(&mut self) -> String {
        let text = String::from_utf8_lossy(&self.pending).into_owned();
        self.pending.clear();
        text
    }
}
