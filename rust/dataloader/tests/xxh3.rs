//! The hash of the manifests is XXH3 (64 bits, seed 0), as its authors publish it.

use tinylm_dataloader::format::hash;

/// (length, hash) of a prefix of `published`, from `tests/sanity_test_vectors.h` of
/// github.com/Cyan4973/xxHash: one or more for each way that the algorithm takes by length.
const VECTORS: [(usize, u64); 13] = [
    (0, 0x2d06_8005_38d3_94c2),
    (1, 0xc44b_dff4_074e_ecdb),
    (6, 0x27b5_6a84_cd2d_7325),
    (12, 0xa713_daf0_dfbb_77e7),
    (24, 0xa3fe_70bf_9d35_10eb),
    (48, 0x397d_a259_ecba_1f11),
    (80, 0xbcde_fbbb_2c47_c90a),
    (195, 0xcd94_217e_e362_ec3a),
    (403, 0xcdeb_804d_65c6_dea4),
    (512, 0x617e_4959_9013_cb6b),
    (2048, 0xdd59_e2c3_a5f0_38e0),
    (2240, 0x6e73_a905_39cf_2948),
    (2367, 0xcb37_aeb9_e5d3_61ed),
];

/// The bytes that the vectors are of: the high byte of a product that grows by one prime.
fn published(length: usize) -> Vec<u8> {
    let mut state: u64 = 2_654_435_761;
    (0..length)
        .map(|_| {
            let byte = (state >> 56) as u8;
            state = state.wrapping_mul(11_400_714_785_074_694_797);
            byte
        })
        .collect()
}

#[test]
fn the_hash_is_the_published_xxh3() {
    for (length, expected) in VECTORS {
        assert_eq!(hash(&published(length)), expected, "{length} bytes");
    }
}
