//! Runs of one script: where the pre-tokenizer `UnicodeScripts` cuts.
//!
//! The scripts are those of Unicode 9, the table that `tokenizers` has; a blank, and what is newer
//! or unassigned, goes with any. Hiragana and Katakana count as Han. [`crate::scripts`] has another
//! rule, that of sentencepiece's training.
//!
//! Defined by `scripts` in `python/tinylm/reference/pieces.py`, held to it by the rung `scripts`.

use std::sync::LazyLock;

use regex_syntax::hir::{Class, HirKind};

use crate::find::Found;

/// All scripts of Unicode 9.
#[rustfmt::skip]
const SCRIPTS: [&str; 137] = [
    "Adlam", "Ahom", "Anatolian_Hieroglyphs", "Arabic", "Armenian", "Avestan", "Balinese", "Bamum",
    "Bassa_Vah", "Batak", "Bengali", "Bhaiksuki", "Bopomofo", "Brahmi", "Braille", "Buginese",
    "Buhid", "Canadian_Aboriginal", "Carian", "Caucasian_Albanian", "Chakma", "Cham", "Cherokee",
    "Common", "Coptic", "Cuneiform", "Cypriot", "Cyrillic", "Deseret", "Devanagari", "Duployan",
    "Egyptian_Hieroglyphs", "Elbasan", "Ethiopic", "Georgian", "Glagolitic", "Gothic", "Grantha",
    "Greek", "Gujarati", "Gurmukhi", "Han", "Hangul", "Hanunoo", "Hatran", "Hebrew", "Hiragana",
    "Imperial_Aramaic", "Inherited", "Inscriptional_Pahlavi", "Inscriptional_Parthian", "Javanese",
    "Kaithi", "Kannada", "Katakana", "Kayah_Li", "Kharoshthi", "Khmer", "Khojki", "Khudawadi",
    "Lao", "Latin", "Lepcha", "Limbu", "Linear_A", "Linear_B", "Lisu", "Lycian", "Lydian",
    "Mahajani", "Malayalam", "Mandaic", "Manichaean", "Marchen", "Meetei_Mayek", "Mende_Kikakui",
    "Meroitic_Cursive", "Meroitic_Hieroglyphs", "Miao", "Modi", "Mongolian", "Mro", "Multani",
    "Myanmar", "Nabataean", "New_Tai_Lue", "Newa", "Nko", "Ogham", "Ol_Chiki", "Old_Hungarian",
    "Old_Italic", "Old_North_Arabian", "Old_Permic", "Old_Persian", "Old_South_Arabian",
    "Old_Turkic", "Oriya", "Osage", "Osmanya", "Pahawh_Hmong", "Palmyrene", "Pau_Cin_Hau",
    "Phags_Pa", "Phoenician", "Psalter_Pahlavi", "Rejang", "Runic", "Samaritan", "Saurashtra",
    "Sharada", "Shavian", "Siddham", "SignWriting", "Sinhala", "Sora_Sompeng", "Sundanese",
    "Syloti_Nagri", "Syriac", "Tagalog", "Tagbanwa", "Tai_Le", "Tai_Tham", "Tai_Viet", "Takri",
    "Tamil", "Tangut", "Telugu", "Thaana", "Thai", "Tibetan", "Tifinagh", "Tirhuta", "Ugaritic",
    "Vai", "Warang_Citi", "Yi",
];
/// Goes with any.
const ANY: u8 = u8::MAX;
/// Characters that have another script by now.
const MOVED: [(char, &str); 4] = [
    ('\u{589}', "Common"),
    ('\u{61C}', "Common"),
    ('\u{953}', "Devanagari"),
    ('\u{954}', "Devanagari"),
];

/// Ranges of characters and the number of their script, in order.
static RANGES: LazyLock<Vec<(char, char, u8)>> = LazyLock::new(|| {
    let mut found = Vec::new();
    for (number, name) in (0..).zip(SCRIPTS) {
        // The names are those of the table, so that this never fails.
        let class = format!(r"[\p{{Script={name}}}&&\p{{age:9.0}}]");
        if let Ok(parsed) = regex_syntax::parse(&class)
            && let HirKind::Class(Class::Unicode(class)) = parsed.kind()
        {
            found.extend(
                class
                    .iter()
                    .map(|range| (range.start(), range.end(), number)),
            );
        }
    }
    found.sort_unstable();
    found
});

fn number_of(name: &str) -> u8 {
    let number = SCRIPTS.iter().position(|script| *script == name);
    number.map_or(ANY, |number| number as u8)
}

fn script(char: char) -> u8 {
    // Most text is ASCII: a letter is Latin, and the rest is common to all.
    static LATIN: LazyLock<[u8; 3]> = LazyLock::new(|| ["Latin", "Common", "Han"].map(number_of));
    let [latin, common, han] = *LATIN;
    match char {
        ' ' => ANY,
        'a'..='z' | 'A'..='Z' => latin,
        '\0'..='\x7F' => common,
        '\u{30FC}' => han,
        _ => {
            if let Some((_, name)) = MOVED.iter().find(|moved| moved.0 == char) {
                return number_of(name);
            }
            let at = RANGES.partition_point(|range| range.1 < char);
            match RANGES.get(at) {
                Some(range) if range.0 <= char => match SCRIPTS[usize::from(range.2)] {
                    "Hiragana" | "Katakana" => han,
                    _ => range.2,
                },
                _ => ANY,
            }
        }
    }
}

/// Appends the runs of one script in `text`. What goes with any at the beginning is found, and to be
/// removed.
pub(crate) fn runs(text: &str, out: &mut Vec<Found>) {
    let (mut start, mut last) = (0, ANY);
    for (at, char) in text.char_indices() {
        let now = script(char);
        if now == ANY || now == last {
            continue;
        }
        if start < at {
            out.push((start, at, last == ANY));
        }
        (start, last) = (at, now);
    }
    if start < text.len() {
        out.push((start, text.len(), last == ANY));
    }
}
