//! Mixtures: what is read ahead for each source, and what a mixture refuses.

use tinylm_dataloader::mix::{LEAST_SHARE, WHOLE, seed_of};
use tinylm_dataloader::plan::Span;
use tinylm_dataloader::{Mixture, Order, Piece, Plan, Stage, Windows};

/// The windows of sources of so many tokens.
fn windows(n_tokens: &[u64]) -> Vec<Windows> {
    let one =
        |(source, &n)| Windows::new(Order::Shuffle, seed_of(5, source), n, 1000, 1000).unwrap();
    n_tokens.iter().enumerate().map(one).collect()
}

fn stage(first_row: u64, shares: &[u64]) -> Stage {
    Stage {
        first_row,
        shares: shares.to_vec(),
    }
}

#[test]
fn each_source_is_read_ahead_as_far_as_its_rows_were_served() {
    let sizes = [40_000_000, 20_000_000];
    let mut alone = windows(&sizes);
    let stages = [stage(0, &[WHOLE / 4 * 3, WHOLE / 4])];
    let mut mixed = Mixture::new(windows(&sizes), &stages, 5).unwrap();
    let (mut served, mut found) = ([0, 0], Vec::<Span>::new());
    let mut expected = Vec::new();
    for i in (0..60_000).step_by(300) {
        found.extend(mixed.ahead(0, i, 300));
        let mut pieces = Vec::<Piece>::new();
        (i..i + 300).for_each(|row| mixed.row(0, row, &mut pieces));
        for (source, plan) in alone.iter_mut().enumerate() {
            let n = pieces.iter().filter(|piece| piece.source == source).count() as u64;
            let (first, n_rows): (u64, u64) = (served[source], plan.n_rows());
            let spans = plan.ahead(first / n_rows, first % n_rows, n);
            expected.extend(spans.into_iter().map(|span| Span { source, ..span }));
            served[source] += n;
        }
        assert_eq!(mixed.counts(i + 300), served);
    }
    assert_eq!(found, expected);
    assert!(found.iter().any(|span| span.source == 1));
}

#[test]
fn many_large_sources_are_scattered_and_read_nothing_ahead() {
    let shares = [WHOLE / 16; 16];
    for (size, scattered) in [(1_000_000, false), (40_000_000, true)] {
        let mut mixed = Mixture::new(windows(&[size; 16]), &[stage(0, &shares)], 5).unwrap();
        assert_eq!(mixed.scattered(), scattered);
        assert!(mixed.ahead(0, 0, 300).is_empty() || !scattered);
    }
}

#[test]
fn what_is_no_mixture_is_an_error_with_its_limit() {
    let half = WHOLE / 2;
    for (stages, problem) in [
        (vec![], "begins at row 0"),
        (vec![stage(1, &[half, half])], "begins at row 0"),
        (
            vec![stage(0, &[half, half]), stage(0, &[WHOLE, 0])],
            "one after the other",
        ),
        (
            vec![stage(0, &[half, half - 1])],
            "must be 2 that add up to 4294967296",
        ),
        (vec![stage(0, &[WHOLE])], "1 shares"),
        (
            vec![stage(0, &[WHOLE - LEAST_SHARE + 1, LEAST_SHARE - 1])],
            "share=65535 must be",
        ),
    ] {
        let error = Mixture::new(windows(&[5000, 5000]), &stages, 5).unwrap_err();
        assert!(error.to_string().contains(problem), "{error}");
    }
    let longer = Windows::new(Order::Shuffle, 5, 5000, 900, 900).unwrap();
    let plans = vec![windows(&[5000]).remove(0), longer];
    let error = Mixture::new(plans, &[stage(0, &[half, half])], 5).unwrap_err();
    assert!(error.to_string().contains("must have one length"));
}
