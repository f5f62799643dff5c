"""The wrong lines of `make mutants` in Rust."""

from tests.support.wrong_lines import Mutant

RUST = [
    Mutant(
        "rust/tokenizer/src/train.rs",
        "    a.key < b.key\n",
        "    a.key.rotate_left(32) < b.key.rotate_left(32)\n",
        "train_ties",
    ),
    Mutant(
        "rust/tokenizer/src/merge.rs",
        "heap.extend(entry(before.rank, node.previous));",
        "heap.extend(entry(before.rank, at));",
        "encode-lists",
    ),
    Mutant(
        "rust/tokenizer/src/scan.rs",
        ".or_else(|| try_at(at, inside, lower_word))\n            "
        ".or_else(|| try_at(at + width, before, upper_word))",
        ".or_else(|| try_at(at + width, before, upper_word))\n            "
        ".or_else(|| try_at(at, inside, lower_word))",
        "split_o200k",
    ),
    Mutant(
        "rust/tokenizer/src/table.rs",
        "                slot.count += count;\n                return;",
        "                slot.count += 1;\n                return;",
        "train_many_words",
    ),
    Mutant(
        "rust/tokenizer/src/vocab.rs",
        "if length <= INLINE && end + 16 <= out.len() {",
        "if length <= INLINE + 1 && end + 16 <= out.len() {",
        "decode",
    ),
    Mutant(
        "rust/tokenizer/src/frequent.rs",
        ".sort_unstable_by(|a, b| b.1.cmp(&a.1).then_with(|| b.0.cmp(a.0)));",
        ".sort_unstable_by_key(|word| std::cmp::Reverse(word.1));",
        "train_whole",
    ),
    Mutant(
        "rust/tokenizer/src/added.rs",
        "text.len().saturating_sub(unsure.max(1))",
        "text.len().saturating_sub(1)",
        "cut",
    ),
    Mutant(
        "rust/tokenizer/src/added.rs",
        "Policy::Only(ids) => !token.special || ids.contains(&token.id),",
        "Policy::Only(_) => true,",
        "some",
    ),
    Mutant(
        "rust/tokenizer/src/added.rs",
        "MatchKind::LeftmostLongest",
        "MatchKind::LeftmostFirst",
        "special_tokens",
    ),
    Mutant(
        "rust/tokenizer/src/added.rs",
        "Policy::Raise => !token.special,",
        "Policy::Raise => false,",
        "added_tokens",
    ),
    Mutant(
        "rust/tokenizer/src/added.rs",
        "Policy::Text => &self.plain,",
        "Policy::Text => &self.all,",
        "added_tokens",
    ),
    Mutant(
        "rust/tokenizer/src/added.rs",
        "let unsure = self.longest * self.all.len();",
        "let unsure = self.longest;",
        "cut_of_added",
    ),
    Mutant(
        "rust/tokenizer/src/added.rs",
        "self.divide(text, between, late, policy, interrupt, each)",
        "each(between, interrupt)",
        "added_tokens",
    ),
    Mutant(
        "rust/dataloader/src/order.rs",
        "if *e == epoch)",
        "if true || *e == epoch)",
        "batches",
    ),
    Mutant(
        "rust/dataloader/src/order.rs",
        "key(&[self.seed, 0, epoch])",
        "key(&[self.seed, 1, epoch])",
        "order",
    ),
    Mutant(
        "rust/dataloader/src/shard.rs",
        "self.pread(self.offset(block) + from as u64, bytes)",
        "self.pread(self.offset(block), bytes)",
        "tokens-lists",
    ),
    Mutant(
        "rust/dataloader/src/shard.rs",
        'if found != expected {\n                let problem =\n                    format!("block',
        'if false {\n                let problem =\n                    format!("block',
        "damage-lists",
    ),
    Mutant(
        "rust/dataloader/src/shard.rs",
        "self.entry.payload + block as u64 * BLOCK_BYTES as u64",
        "HEADER_BYTES as u64 + block as u64 * BLOCK_BYTES as u64",
        "tokens_of_other_files",
    ),
    Mutant(
        "rust/dataloader/src/mix.rs",
        "key(&[seed, MIX, first_row])",
        "key(&[seed, MIX, begin])",
        "mixture",
    ),
    Mutant(
        "rust/dataloader/src/mix.rs",
        "(u64::MAX - rest, source)",
        "(u64::MAX - rest, usize::MAX - source)",
        "mixture",
    ),
    Mutant(
        "rust/dataloader/src/plan.rs",
        "last.min(self.shuffle.row(epoch, i) * self.stride)",
        "self.shuffle.row(epoch, i) * self.stride",
        "epoch",
    ),
    Mutant(
        "rust/dataloader/src/plan.rs",
        "anywhere(self.seed, epoch, i, last + 1)",
        "anywhere(self.seed, epoch, i, last.max(1))",
        "order",
    ),
    Mutant(
        "rust/dataloader/src/plan.rs",
        "length: self.context_length.min(left) as usize,",
        "length: self.context_length.min(left.saturating_sub(1)) as usize,",
        "epoch",
    ),
    Mutant(
        "rust/dataloader/src/batch.rs",
        "let after = usize::from(left > piece.length as u64);",
        "let after = usize::from(left > piece.length as u64 + 1);",
        "row or batches or epoch",
    ),
    Mutant(
        "rust/dataloader/src/batch.rs",
        "let skipped = if done == 0 { width.bytes() } else { 0 };",
        "let skipped = width.bytes();",
        "row or batches or epoch",
    ),
    Mutant(
        "rust/dataloader/src/batch.rs",
        "piece.get_mut(at + 1..)",
        "piece.get_mut(at..)",
        "row or batches",
    ),
    Mutant(
        "rust/dataloader/src/batch.rs",
        "is_none_or(|end| row < end)",
        "is_none_or(|end| row <= end)",
        "epoch",
    ),
    Mutant(
        "rust/dataloader/src/arrays.rs",
        "array.get_mut(k * size..(k + 1) * size)",
        "array.get_mut(..size)",
        "batches",
    ),
    Mutant(
        "rust/dataloader/src/order.rs",
        "low ^= mix(high ^ pair[1]) & low_mask;",
        "low ^= mix(high ^ pair[0]) & low_mask;",
        "order",
    ),
]
