//! The patterns on windows of 64 bytes: all pieces that begin in a window at once.
//!
//! A scanner that goes from piece to piece, as those of [`crate::scan`] do, pays for branches that
//! nobody can predict: what kind of piece comes, and how long it is. Here a window gives sets of
//! bytes ([`Masks`]), and a few shifts and sums of them the set of all places at which a piece
//! begins. What follows is one loop over its bits.
//!
//! A window begins where a piece does, so nothing is carried from window to window: no pattern
//! looks back. It ends before the first place whose bit depends on bytes that are not in it, and
//! the next window begins at the last piece that was found. Where a window finds no second piece
//! (a long piece, white space at the end of a text, a wide space, a number above ASCII), the
//! scanner of [`crate::scan`] takes one. That also defines what is right here: the tests compare.
//!
//! In the rules below a *symbol* is what is neither letter, number nor white space, and a *run* is
//! as long as it can be.

use crate::masks::{Masks, WIDTH, places};
use crate::scan::{BLANK, contraction};
use crate::unicode::Classes;

/// Ends of pieces that [`ends`] writes at most.
pub(crate) const ENDS: usize = 128 + WIDTH;

/// The ends of several pieces.
pub(crate) type Ends = [usize; ENDS];

/// Writes the ends of the pieces of `text` from `at` on to `ends`, as many as it takes; gives their
/// number, 0 at the end of the text alone.
///
/// Pieces begin at the bits of `starts(at)`, which is for the window at `at`; where it has none but
/// bit 0, `end_of(at)` says where the piece at `at` ends.
#[inline]
pub(crate) fn ends(
    text: &[u8],
    mut at: usize,
    ends: &mut Ends,
    starts: impl Fn(usize) -> u64,
    end_of: impl Fn(usize) -> usize,
) -> usize {
    let mut number = 0;
    while at < text.len() && number + WIDTH <= ENDS {
        let window = at;
        let mut rest = starts(window) & !1;
        if rest == 0 {
            at = end_of(at);
            ends[number] = at;
            number += 1;
            continue;
        }
        let mut next = number;
        number += rest.count_ones() as usize;
        // Eight at a time, some of them of no bit, so that the number of bits is no branch.
        while rest != 0 {
            for end in &mut ends[next..next + 8] {
                *end = window + rest.trailing_zeros() as usize;
                rest &= rest.wrapping_sub(1);
            }
            next += 8;
        }
        at = ends[number - 1];
    }
    number
}

/// The lowest `number` bits; all from 64 on.
fn below(number: usize) -> u64 {
    if number < WIDTH {
        (1 << number) - 1
    } else {
        !0
    }
}

/// What the patterns have in common: the symbols of a window and where their runs begin.
struct Symbols {
    /// All bytes of symbols.
    all: u64,
    /// The first byte of each run.
    run: u64,
    /// Letters right after a run that begin a piece of their own: those after a run of more than
    /// one symbol or with a space before it, which is a piece by itself.
    letters_after: u64,
}

impl Symbols {
    #[inline]
    fn of(m: &Masks) -> Self {
        let all = !(m.letter | m.number | m.space);
        let run = all & !(all << 1);
        // A second symbol, or a space before the first. The sum carries from it to the byte after
        // the run; a run of ones carries once, whatever is added inside it.
        let more = (m.first & (all << 1)) | (run & (m.blank << 1));
        let letters_after = all.wrapping_add(more) & (all << 1) & m.letter;
        Self {
            all,
            run,
            letters_after,
        }
    }
}

/// The places in white space at which pieces begin, as GPT-4 and those after it have it, and the
/// first place of which that is not known.
///
/// White space is a piece up to its last line end; of what follows, the last character is by
/// itself or begins the word after it. Line ends in `taken` belong to the symbols before them.
#[inline]
fn white_space(m: &Masks, taken: u64) -> (u64, usize) {
    let space = m.space & !taken;
    // Not line ends: these are never the last of a piece and the first of the next.
    let inner = m.space & !m.newline;
    // After a line end, if no other follows in the same run.
    let after = inner & (m.newline << 1);
    let (sum, over) = inner.overflowing_add(after);
    let ends = sum & !inner;
    let mut limit = m.known.saturating_sub(1);
    // Code indents, so `after` is common, but blanks before a line end are rare.
    if over || ends & (m.newline | !below(m.known)) != 0 {
        let mut rest = after;
        while rest != 0 {
            let place = rest.trailing_zeros() as usize;
            let end = place + (inner >> place).trailing_ones() as usize;
            if end >= m.known || m.newline >> end & 1 == 1 {
                limit = limit.min(place);
                break;
            }
            rest &= rest - 1;
        }
    }
    let last = inner & !(m.space >> 1);
    ((space & !(space << 1)) | after | last, limit)
}

/// The places at which groups of `group` digits begin, counted from the start of their run.
#[inline]
fn numbers(number: u64, group: usize) -> u64 {
    if group == 1 {
        return number;
    }
    let mut starts = number & !(number << 1);
    let longer = number & (number << 1) & (number << 2) & (number << 3);
    let mut next = (starts << 3) & longer;
    while next != 0 {
        starts |= next;
        next = (next << 3) & longer;
    }
    starts
}

/// GPT-4, Llama 3 (`group` is 3) and Qwen 2 (1): these differ at the end of a text, which no window
/// decides.
#[inline]
pub(crate) fn gpt4(c: &Classes, text: &[u8], at: usize, group: usize) -> u64 {
    let m = Masks::at(c, text, at, false);
    let symbols = Symbols::of(&m);
    // Line ends right after symbols belong to them.
    let taken = m.newline & !m.newline.wrapping_add(m.newline & (symbols.all << 1));
    let (spaces, limit) = white_space(&m, taken);
    let inner = m.space & !m.newline;
    // A letter begins a piece if no letter, blank or symbol before it does.
    let letters = m.letter & !((m.letter | inner | symbols.all) << 1) | symbols.letters_after;
    let alone = symbols.run & !(m.blank << 1);
    let mut starts = letters | alone | spaces | numbers(m.number, group);
    // A contraction ends, whatever follows it: of `'so`, `'s` is a piece.
    let mut rest = alone & m.quote & (m.letter >> 1);
    while rest != 0 {
        let place = rest.trailing_zeros();
        let width = contraction(text, at + place as usize, true);
        // After its last byte, if it is not the last of the window.
        if width > 0 {
            starts |= (1 << place << width) & m.letter;
        }
        rest &= rest - 1;
    }
    starts & below(limit)
}

/// GPT-2.
#[inline]
pub(crate) fn gpt2(c: &Classes, text: &[u8], at: usize) -> u64 {
    let m = Masks::at(c, text, at, false);
    let symbols = Symbols::of(&m);
    let run = |class: u64| class & !(class << 1);
    // Each run takes the space before it; of white space the last character is by itself.
    let words = (run(m.letter) | run(m.number) | symbols.run) & !(m.blank << 1);
    let mut starts = words | run(m.space) | (m.space & !(m.space >> 1));
    let mut rest = words & m.quote & (m.letter >> 1);
    while rest != 0 {
        let place = rest.trailing_zeros();
        let width = contraction(text, at + place as usize, false);
        if width > 0 {
            starts &= !(1 << place << 1);
            starts |= (1 << place << width) & m.letter;
        }
        rest &= rest - 1;
    }
    starts & below(m.known.saturating_sub(1))
}

/// GPT-4o, for ASCII alone.
#[inline]
pub(crate) fn o200k(c: &Classes, text: &[u8], at: usize) -> u64 {
    let m = Masks::at(c, text, at, true);
    let symbols = Symbols::of(&m);
    let taken = m.newline & !m.newline.wrapping_add(m.newline & (symbols.all << 1));
    let (spaces, mut limit) = white_space(&m, taken);
    let inner = m.space & !m.newline;
    let letters = m.letter & !((m.letter | inner | symbols.all) << 1) | symbols.letters_after;
    // A word ends where lower case turns to upper case.
    let words = m.letter & !m.lower & (m.lower << 1);
    let alone = symbols.run & !(m.blank << 1);
    let mut starts = letters | words | alone | spaces | numbers(m.number, 3);
    // A contraction belongs to the word before it and ends the piece.
    let mut rest = m.quote & (m.letter << 1) & (m.letter >> 1);
    while rest != 0 {
        let place = rest.trailing_zeros();
        rest &= rest - 1;
        let width = contraction(text, at + place as usize, true);
        if width > 0 {
            let bytes = ((1 << width) - 1) << place;
            starts &= !bytes;
            starts |= (1 << place << width) & m.letter;
            // The apostrophe after `'t` in `don't's` begins a piece.
            rest &= !(1 << place << width);
        }
    }
    // Symbols take slashes after their line ends too, which no rule here knows.
    let mut slashes = symbols.all & (m.newline << 1);
    while slashes != 0 {
        let place = slashes.trailing_zeros() as usize;
        if text.get(at + place) == Some(&b'/') {
            limit = limit.min(place);
            break;
        }
        slashes &= slashes - 1;
    }
    starts & below(limit)
}

/// The words of `SentencePiece`: at marks that follow another character.
#[inline]
pub(crate) fn marks(text: &[u8], at: usize) -> u64 {
    let Some(bytes) = text[at..].first_chunk() else {
        return 0;
    };
    let (mut rest, mut marks) = (places(bytes, BLANK[0]), 0);
    while rest != 0 {
        let place = rest.trailing_zeros();
        let mark = bytes[place as usize..].starts_with(BLANK);
        marks |= u64::from(mark) << place;
        rest &= rest - 1;
    }
    marks & !(marks << 3)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scan as one;

    type Starts = fn(&Classes, &[u8], usize) -> u64;
    type EndOf = fn(&Classes, &[u8], usize) -> usize;

    /// What each pattern is in windows, and from piece to piece, which defines it.
    const BOTH: [(&str, Starts, EndOf); 6] = [
        ("gpt2", gpt2, one::gpt2),
        (
            "gpt4",
            |c, text, at| gpt4(c, text, at, 3),
            |c, text, at| one::gpt4(c, text, at, true, 3),
        ),
        (
            "llama3",
            |c, text, at| gpt4(c, text, at, 3),
            |c, text, at| one::gpt4(c, text, at, false, 3),
        ),
        (
            "qwen2",
            |c, text, at| gpt4(c, text, at, 1),
            |c, text, at| one::gpt4(c, text, at, false, 1),
        ),
        ("o200k", o200k, one::o200k),
        (
            "marks",
            |_, text, at| marks(text, at),
            |_, text, at| one::marks(text, at),
        ),
    ];

    #[test]
    fn windows_give_the_pieces_of_the_scanners() {
        // Between bars; with white space, and with what is no UTF-8 besides.
        let parts = "a|b|T|lo|LLama|'s|'S|'ll|'Ll|'VE|'re|'d|'m|'t|'|''| | |  |    |\t|\n|\n\n|\r\n|\
            \r|\x0b|1|23|4567|!|.|(|))|/|\n/|_|-->|\u{e9}|\u{c9}a|\u{6587}|\u{6587}\u{5b57}\u{5217}|\u{301}|\u{17f}|'\u{17f}|\u{3000}|\u{a0}|\u{b2}|\u{663}|\u{1f600}|\u{60c}|\
            \u{1c5}|the | The|\u{2581}|\u{2581}\u{2581}|\u{2581}the";
        let mut parts: Vec<&[u8]> = parts.split('|').map(str::as_bytes).collect();
        parts.extend([b"\xff".as_slice(), b"\xe4\xb8", b"\xc5"]);
        let mut state = 1u64;
        let mut below = |bound: usize| {
            state ^= state >> 12;
            state ^= state << 25;
            state ^= state >> 27;
            (state.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 33) as usize % bound
        };
        let (c, mut text, mut some) = (Classes::get(), Vec::new(), [0; ENDS]);
        for round in 0..20_000 {
            text.clear();
            // Few kinds of parts in half of the texts, so that runs and rare neighbours meet.
            let kinds = 1 + below(if round % 2 == 0 { 4 } else { 40 });
            let kinds: Vec<&[u8]> = (0..kinds).map(|_| parts[below(parts.len())]).collect();
            for _ in 0..below(120) {
                text.extend_from_slice(kinds[below(kinds.len())]);
            }
            for (name, starts, end_of) in BOTH {
                let (mut found, mut expected, mut at) = (Vec::new(), Vec::new(), 0);
                while at < text.len() {
                    at = end_of(c, &text, at);
                    expected.push(at);
                }
                at = 0;
                while at < text.len() {
                    let starts = |at| starts(c, &text, at);
                    let number = ends(&text, at, &mut some, starts, |at| end_of(c, &text, at));
                    found.extend_from_slice(&some[..number]);
                    at = some[number - 1];
                }
                assert_eq!(found, expected, "{name}: {}", text.escape_ascii());
            }
        }
    }
}
