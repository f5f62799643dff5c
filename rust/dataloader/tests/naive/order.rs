//! The permutations: bijections, and evenly spread.

use std::collections::BTreeSet;

use tinylm_dataloader::order::{Permutation, mix};

#[test]
fn permutations_are_bijections_at_every_size() {
    for n in (1..1500).chain([4095, 4096, 4097, 1_000_003]) {
        let permutation = Permutation::new(n, n * 31);
        let mut seen = vec![false; n as usize];
        for i in 0..n {
            let to = &mut seen[permutation.at(i) as usize];
            assert!(!*to, "n = {n}, i = {i}");
            *to = true;
        }
    }
    let huge = Permutation::new(10_000_000_019, 5);
    let images: BTreeSet<u64> = (0..10_000).map(|i| huge.at(i * 1_000_001)).collect();
    assert!(images.len() == 10_000 && images.iter().all(|&to| to < 10_000_000_019));
}

#[test]
fn permutations_look_random() {
    // chi2 / df over the keys, of where 0 goes and of how far 1 lands from 0; expected 1 +- 0.1.
    for n in [16_u64, 100, 1024, 1500] {
        let keys = 200 * n;
        let mut place = vec![0.0; n as usize];
        let mut distance = vec![0.0; n as usize];
        for key in 0..keys {
            let permutation = Permutation::new(n, mix(key));
            let (zero, one) = (permutation.at(0), permutation.at(1));
            place[zero as usize] += 1.0;
            distance[((one + n - zero) % n) as usize] += 1.0;
        }
        let chi2 = |counts: &[f64]| {
            let expected = keys as f64 / counts.len() as f64;
            let squares: f64 = counts.iter().map(|count| (count - expected).powi(2)).sum();
            squares / expected / (counts.len() - 1) as f64
        };
        assert!(distance[0] < 0.5);
        // The spread of chi2 / df is sqrt(2 / df): three of them, and no less than 0.2.
        let bound = 1.0 + (4.0 * (2.0 / (n - 2) as f64).sqrt()).max(0.2);
        assert!(
            chi2(&place) < bound && chi2(&distance[1..]) < bound,
            "n = {n}"
        );
    }
}
